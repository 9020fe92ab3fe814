//! `orthant kv calibrate`.

use std::time::Instant;

use serde_json::json;

use super::input::Input;
use super::plan::{self, Planned};
use super::report;
use crate::cli::args::KvCalibrate;
use crate::cli::complaint::{InFile, InLine, bad};
use crate::cli::devices;
use crate::cli::output::{Outputs, print};

pub fn run(args: &KvCalibrate) -> anyhow::Result<()> {
    let start = Instant::now();
    let choice = &args.choice;
    if choice.rank.is_none() && choice.budget.is_none() && choice.bytes.is_none() {
        return Err(bad("kv calibrate", "give --rank, --budget or --bytes"));
    }
    let input = Input::open(&args.input)?;
    let layers = input.layers(&choice.layers)?;
    let mut outputs = Outputs::beside([&args.input]);
    outputs.claim(&args.out)?;
    let whole = plan::calibrated(&input, choice, &layers)?;
    let cut = choice.rank.map(|rank| whole.with_rank(rank).in_line()).transpose()?;
    let between = plan::between(&input, choice, &layers, |layer| plan::rope(&input, choice, layer))?;
    let device = devices::open(args.common.device)?;
    let planned = match cut {
        Some(projections) => Planned { projections, expected: None },
        None => plan::ranked(&device, &input, &whole, choice, &between)?,
    };
    let bytes = planned.projections.to_bytes().in_file(&args.out)?;
    outputs.stage(&args.out, |to| Ok(to.write_all(&bytes)?))?;
    outputs.commit()?;

    let (seconds, out) = (start.elapsed().as_secs_f64(), args.out.display());
    let ranks = plan::ranks(&planned.projections, &layers);
    let full: usize = ranks.len() * whole.head_dim();
    let kept = ranks.iter().map(|head| head.rank).sum::<usize>() as f64 / full as f64;
    if args.common.json {
        let heads: Vec<_> = ranks
            .iter()
            .map(|head| json!({"layer": head.layer, "kind": report::name(head.side), "head": head.head, "rank": head.rank}))
            .collect();
        let report = json!({
            "layers": layers, "kept": kept, "expected_error": planned.expected, "heads": heads, "out": args.out,
            "device": device.to_string(), "seconds": seconds,
        });
        return print(&format!("{report}\n"));
    }
    let mut text = format!("{:>5} {:>4}  rank of each head\n", "layer", "kind");
    for of_kind in ranks.chunk_by(|a, b| (a.layer, a.side) == (b.layer, b.side)) {
        let list: Vec<String> = of_kind.iter().map(|head| format!("{:>3}", head.rank)).collect();
        text.push_str(&format!("{:>5} {:>4}  {}\n", of_kind[0].layer, report::name(of_kind[0].side), list.join(" ")));
    }
    let percent = 100.0 * kept;
    print(&format!(
        "{text}\n{percent:.1} % of the latents of full rank kept; projections to {out} ({device}, {seconds:.2} s)\n"
    ))
}
