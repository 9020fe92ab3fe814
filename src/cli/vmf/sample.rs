//! `orthant vmf sample`.

use std::time::Instant;

use serde_json::json;

use super::model;
use crate::cli::args::Sample;
use crate::cli::complaint::bad;
use crate::cli::files;
use crate::cli::output::{Outputs, print};
use crate::cli::{devices, memory};

pub fn run(args: &Sample) -> anyhow::Result<()> {
    let start = Instant::now();
    let (model, center) = model::read(&args.model)?;
    let mut outputs = Outputs::beside([&args.model]);
    outputs.claim(&args.out)?;
    let needed = args.number as u128 * model.dim() as u128 * 4;
    if needed > u128::from(memory::available().unwrap_or(u64::MAX >> 1)) {
        return Err(bad(
            "-n",
            format!("{} rows of {} need {needed} bytes, more than the free memory", args.number, model.dim()),
        ));
    }

    // It is rejection and serial random numbers.
    let device = devices::cpu_for(args.common.device, "samples are drawn")?;
    let rows = model.sample(args.number, args.seed);
    outputs.stage(&args.out, |out| {
        let shape = [args.number as u64, model.dim() as u64];
        Ok(files::write_npy(out, &shape, rows.as_standard_layout().as_slice().unwrap_or(&[]))?)
    })?;
    outputs.commit()?;

    let (device, seconds) = (device.to_string(), start.elapsed().as_secs_f64());
    if args.common.json {
        let report = json!({
            "rows": args.number, "dim": model.dim(), "seed": args.seed, "centered": center.is_some(), "out": args.out,
            "device": device, "seconds": seconds,
        });
        return print(&format!("{report}\n"));
    }
    let what = if center.is_some() { " (of the centred rows)" } else { "" };
    let out = args.out.display();
    print(&format!("{} rows of {}{what} to {out} ({device}, {seconds:.2} s)\n", args.number, model.dim()))
}
