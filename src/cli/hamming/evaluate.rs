//! `orthant hamming evaluate`.

use std::fmt::Write;
use std::path::Path;
use std::time::Instant;

use orthant::hamming::{EvaluateOptions, Evaluation, evaluate};
use serde_json::{Value, json};

use super::codes::Read;
use crate::cli::args::HammingEvaluate;
use crate::cli::complaint::InFile;
use crate::cli::output::{Outputs, print};
use crate::cli::plot::retrieval;
use crate::cli::{devices, files};

pub fn run(args: &HammingEvaluate) -> anyhow::Result<()> {
    let start = Instant::now();
    let base = Read::open(&args.base)?;
    let labels = labels(&args.labels, base.len())?;
    let given = match (&args.queries, &args.query_labels) {
        (Some(queries), Some(query_labels)) => {
            let codes = Read::open(queries)?.of_the_width_of(&base)?;
            let query_labels = self::labels(query_labels, codes.len())?;
            Some((codes, query_labels))
        }
        _ => None,
    };
    let read = [Some(&args.base), Some(&args.labels), args.queries.as_ref(), args.query_labels.as_ref()];
    let mut outputs = Outputs::beside(read.into_iter().flatten());
    if let Some(plot) = &args.plot {
        outputs.claim(plot)?;
    }

    let device = devices::open(args.common.device)?;
    let codes = base.on(&device)?;
    let options = EvaluateOptions::new().tops(&args.top).leave_one_out(given.is_none());
    let evaluation = match &given {
        Some((queries, query_labels)) => evaluate(&codes, &labels, &queries.on(&device)?, query_labels, &options),
        None => evaluate(&codes, &labels, &codes, &labels, &options),
    };
    let evaluation = evaluation.in_file(args.queries.as_ref().unwrap_or(&args.base))?;
    if let Some(path) = &args.plot {
        let svg = retrieval::draw(&retrieval::Picture {
            title: format!("Retrieval by codes of {} bits", evaluation.bits),
            subtitle: format!(
                "{} queries, {} codes; mAP {:.4} by the lowest id, {:.4} expected over ties",
                evaluation.queries, evaluation.base, evaluation.map_all, evaluation.map_all_tie_aware
            ),
            evaluation: &evaluation,
        })?;
        outputs.stage(path, |to| Ok(to.write_all(svg.as_bytes())?))?;
    }
    outputs.commit()?;

    let (device, seconds) = (device.to_string(), start.elapsed().as_secs_f64());
    if args.common.json {
        return print(&format!("{}\n", report(&evaluation, given.is_none(), &device, seconds)));
    }
    print(&text(&evaluation, &device, seconds))
}

fn labels(path: &Path, codes: usize) -> anyhow::Result<Vec<i64>> {
    files::open(path, None)?.into_integers("label", codes)
}

/// The contract's radius, or the whole code where it is shorter.
fn radius_2(evaluation: &Evaluation) -> orthant::hamming::WithinRadius {
    evaluation.radii[2.min(evaluation.bits)]
}

fn report(evaluation: &Evaluation, leave_one_out: bool, device: &str, seconds: f64) -> Value {
    let within = radius_2(evaluation);
    let tops: Vec<Value> = (evaluation.tops.iter())
        .map(|top| {
            json!({
                "n": top.n, "map": top.map, "map_tie_aware": top.map_tie_aware,
                "precision": top.precision, "precision_tie_aware": top.precision_tie_aware,
                "hits": top.hits, "hits_tie_aware": top.hits_tie_aware, "hits_sure": top.hits_sure,
            })
        })
        .collect();
    let column = |of: fn(&orthant::hamming::WithinRadius) -> f64| evaluation.radii.iter().map(of).collect::<Vec<_>>();
    json!({
        "queries": evaluation.queries, "base": evaluation.base, "bits": evaluation.bits,
        "leave_one_out": leave_one_out, "without_relevant": evaluation.without_relevant,
        "map_all": evaluation.map_all, "map_all_tie_aware": evaluation.map_all_tie_aware,
        "precision_radius_2": within.precision, "recall_radius_2": within.recall, "empty_balls": within.empty_balls,
        "top": tops,
        "radius": {
            "precision": column(|within| within.precision), "recall": column(|within| within.recall),
            "empty_balls": column(|within| within.empty_balls),
        },
        "same_label": evaluation.same_label, "different_label": evaluation.different_label,
        "device": device, "seconds": seconds,
    })
}

fn text(evaluation: &Evaluation, device: &str, seconds: f64) -> String {
    let mut text = String::new();
    let Evaluation { queries, base, bits, without_relevant, map_all, map_all_tie_aware, .. } = evaluation;
    let _ = writeln!(text, "{queries} queries among {base} codes of {bits} bits ({device}, {seconds:.2} s)");
    if *without_relevant > 0 {
        let _ = writeln!(text, "  {without_relevant} queries have no code of their label and count as 0");
    }
    let _ = writeln!(text, "  mAP {map_all:.4} (lowest id first), {map_all_tie_aware:.4} (expected over ties)");
    for top in &evaluation.tops {
        let orthant::hamming::TopN { n, map, map_tie_aware, precision, hits, .. } = top;
        let _ = writeln!(
            text,
            "  first {n}: mAP {map:.4} ({map_tie_aware:.4} over ties), precision {precision:.4}, queries with a hit {hits:.4}"
        );
    }
    let within = radius_2(evaluation);
    let (precision, recall, empty) = (within.precision, within.recall, 100.0 * within.empty_balls);
    let _ = writeln!(
        text,
        "  within 2 bits: precision {precision:.4}, recall {recall:.4}, nothing for {empty:.1} % of the queries"
    );
    text
}
