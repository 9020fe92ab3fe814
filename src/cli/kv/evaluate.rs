//! `orthant kv evaluate`.

use std::time::Instant;

use orthant::Device;
use orthant::kv::{Activations, CacheOptions, Evaluation, LatentBits, Projections, evaluate};
use serde_json::json;

use super::input::{Input, Queries};
use super::plan::{self, Planned};
use super::report;
use crate::cli::args::KvEvaluate;
use crate::cli::complaint::{InFile, InLine};
use crate::cli::output::{Outputs, print};
use crate::cli::plot::tradeoff::{self, Point, Tradeoff};
use crate::cli::{devices, files, progress};

pub fn run(args: &KvEvaluate) -> anyhow::Result<()> {
    let start = Instant::now();
    let choice = &args.choice;
    let input = Input::open(&args.input)?;
    let layers = input.layers(&choice.layers)?;
    let mut outputs = Outputs::beside([Some(&args.input), args.projections.as_ref()].into_iter().flatten());
    if let Some(plot) = &args.plot {
        outputs.claim(plot)?;
    }
    let options = plan::options(choice);
    let whole = match &args.projections {
        Some(path) => {
            // What is wrong with a file that is none is said as of other files.
            files::contents(path)?;
            Projections::load(path).in_file(path)?
        }
        None if plan::as_they_are(choice)? => plan::identity(&input, &layers)?,
        None => plan::calibrated(&input, choice, &layers)?,
    };
    let cut = choice.rank.map(|rank| whole.with_rank(rank).in_line()).transpose()?;
    let rope = |layer| match &args.projections {
        Some(_) => Ok(whole.rope().clone()),
        None => plan::rope(&input, choice, layer),
    };
    let activations = layers.iter().map(|layer| input.activations(*layer, Queries::Evaluated, &rope(*layer)?));
    let activations = activations.collect::<anyhow::Result<Vec<_>>>()?;
    let between = plan::between(&input, choice, &layers, rope)?;
    let device = devices::open(args.common.device)?;
    let planned = match cut {
        Some(projections) => Planned { projections, expected: None },
        None => plan::ranked(&device, &input, &whole, choice, &between)?,
    };
    let case = Case { input: &input, device: &device, activations: &activations };
    let found = case.evaluate(&planned.projections, &options, "attending")?;
    if let Some(path) = &args.plot {
        let svg = picture(args, &case, &whole, &options, &found)?;
        outputs.stage(path, |to| Ok(to.write_all(svg.as_bytes())?))?;
    }
    outputs.commit()?;

    let seconds = start.elapsed().as_secs_f64();
    let (bytes, uncompressed) = report::bytes(&found);
    if args.common.json {
        let report = json!({
            "relative_error": Evaluation::joint_relative_error(&found), "bytes": bytes, "bytes_uncompressed": uncompressed,
            "heads": report::heads(&found), "layers": layers, "bits": choice.bits.count(), "window": choice.window,
            "sinks": choice.sinks, "device": device.to_string(), "seconds": seconds,
        });
        return print(&format!("{report}\n"));
    }
    print(&format!("{}({}; {device}, {seconds:.2} s)\n", report::table(&found), report::cache(choice)))
}

/// What evaluations have in common.
struct Case<'a> {
    input: &'a Input,
    device: &'a Device,
    activations: &'a [Activations],
}

impl Case<'_> {
    fn evaluate(
        &self,
        projections: &Projections,
        options: &CacheOptions,
        what: &str,
    ) -> anyhow::Result<Vec<Evaluation>> {
        let bar = progress::bar(self.activations.len() as u64, what, "layers");
        let found = self.activations.iter().map(|of_layer| {
            let found = evaluate(self.device, projections, of_layer, options).in_file(self.input.path());
            bar.inc(1);
            found
        });
        let found = found.collect();
        bar.finish_and_clear();
        found
    }
}

fn point(label: String, found: &[Evaluation]) -> Point {
    let (bytes, uncompressed) = report::bytes(found);
    Point { label, share: bytes as f64 / uncompressed as f64, error: Evaluation::joint_relative_error(found) }
}

/// This configuration's curve over ranks, itself, and a cache without ranks.
fn picture(
    args: &KvEvaluate,
    case: &Case,
    whole: &Projections,
    options: &CacheOptions,
    found: &[Evaluation],
) -> anyhow::Result<String> {
    let choice = &args.choice;
    let layers: Vec<usize> = case.activations.iter().map(Activations::layer).collect();
    let most = plan::ranks(whole, &layers).iter().map(|head| head.rank).min().unwrap_or(1);
    let d = case.activations.first().map_or(1, |of_layer| of_layer.dim().2);
    let mut curve = Vec::new();
    for rank in plan::grid(d).into_iter().filter(|rank| *rank <= most) {
        let projections = whole.with_rank(rank).in_file(case.input.path())?;
        curve.push(point(rank.to_string(), &case.evaluate(&projections, options, &format!("rank {rank}"))?));
    }
    let four = options.clone().bits(LatentBits::Four, LatentBits::Four).window(choice.window.max(32));
    let only = plan::identity(case.input, &layers)?;
    let only = point("4 bits only".into(), &case.evaluate(&only, &four, "4 bits only")?);
    let uncompressed = Point { label: "uncompressed".into(), share: 1.0, error: 0.0 };
    let list: Vec<String> = layers.iter().map(usize::to_string).collect();
    let chosen = match (choice.rank, choice.budget, choice.bytes) {
        (Some(rank), ..) => format!("rank {rank}"),
        (_, Some(budget), _) => format!("ranks by worth, {:.0} % kept", 100.0 * budget),
        (.., Some(bytes)) => format!("ranks by worth, {bytes} bytes a token"),
        _ if args.projections.is_some() => "the ranks of the file".into(),
        _ => "full rank".into(),
    };
    tradeoff::draw(&Tradeoff {
        title: "Attention over a low-rank cache: error against memory".into(),
        subtitle: format!(
            "{}, layer {}: {}",
            args.input.file_name().unwrap_or_default().to_string_lossy(),
            list.join(", "),
            report::cache(choice)
        ),
        curve,
        curve_name: "one rank for all heads".into(),
        chosen: point(chosen, found),
        baselines: vec![only, uncompressed],
    })
}
