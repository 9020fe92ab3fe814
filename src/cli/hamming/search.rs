//! `orthant hamming search`.

use std::time::Instant;

use orthant::hamming::{Index, SearchOptions};
use serde_json::json;

use super::codes::Read;
use crate::cli::args::HammingSearch;
use crate::cli::complaint::InFile;
use crate::cli::output::{Outputs, print};
use crate::cli::{devices, files};

pub fn run(args: &HammingSearch) -> anyhow::Result<()> {
    let start = Instant::now();
    let base = Read::open(&args.base)?;
    let queries = Read::open(&args.queries)?.of_the_width_of(&base)?;
    let mut outputs = Outputs::beside([&args.base, &args.queries]);
    outputs.claim(&args.ids)?;
    outputs.claim(&args.distances)?;

    let device = devices::open(args.common.device)?;
    let mut index = Index::new(&device, base.bits()).in_file(&args.base)?;
    base.on(&device).and_then(|codes| index.add(&codes).in_file(&args.base))?;
    let found = index.search(&queries.on(&device)?, &SearchOptions::new(args.k)).in_file(&args.queries)?;
    let (ids, distances) =
        (found.ids.to_array().in_file(&args.queries)?, found.distances.to_array().in_file(&args.queries)?);
    let shape = [ids.nrows() as u64, ids.ncols() as u64];
    outputs.stage(&args.ids, |to| Ok(files::write_npy(to, &shape, ids.as_slice().unwrap_or(&[]))?))?;
    outputs.stage(&args.distances, |to| Ok(files::write_npy(to, &shape, distances.as_slice().unwrap_or(&[]))?))?;
    outputs.commit()?;

    let seconds = start.elapsed().as_secs_f64();
    if args.common.json {
        let report = json!({
            "queries": queries.len(), "base": base.len(), "bits": base.bits(), "k": ids.ncols(),
            "ids": args.ids, "distances": args.distances, "device": device.to_string(), "seconds": seconds,
        });
        return print(&format!("{report}\n"));
    }
    let (n, k, m) = (queries.len(), ids.ncols(), base.len());
    print(&format!(
        "the {k} nearest of {m} codes of {} bits for {n} queries, to {} and {} ({device}, {seconds:.2} s)\n",
        base.bits(),
        args.ids.display(),
        args.distances.display()
    ))
}
