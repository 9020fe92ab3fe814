//! `orthant knn`: exact neighbours of rows of floats.

use std::time::Instant;

use ndarray::Array2;
use orthant::knn::{self, Metric};
use serde_json::json;

use super::args::{Knn, KnnMetric};
use super::complaint::{InFile, bad};
use super::output::{Outputs, print};
use super::{devices, files};

pub fn run(args: &Knn) -> anyhow::Result<()> {
    let start = Instant::now();
    if args.lid.is_some() && args.metric == KnnMetric::Ip {
        return Err(bad("--lid", "inner products are no distances: take --metric l2 or cosine"));
    }
    let base = files::open(&args.base, None)?.into_matrix_of(1)?;
    let queries = files::open(&args.queries, None)?.into_matrix_of(1)?;
    if queries.dim() != base.dim() {
        let what =
            format!("the rows have {} elements, those of {} have {}", queries.dim(), args.base.display(), base.dim());
        return Err(bad(args.queries.display(), what));
    }
    let found = match &args.found {
        Some(path) => Some(files::open(path, None)?.into_id_lists(queries.rows())?),
        None => None,
    };
    let mut outputs = Outputs::beside([&args.base, &args.queries].into_iter().chain(&args.found));
    for path in [Some(&args.ids), Some(&args.distances), args.lid.as_ref()].into_iter().flatten() {
        outputs.claim(path)?;
    }
    let (base_rows, query_rows) = (base.read_all()?, queries.read_all()?);
    if args.metric == KnnMetric::Cosine {
        for (path, rows) in [(&args.base, &base_rows), (&args.queries, &query_rows)] {
            if let Some(row) = rows.outer_iter().position(|row| row.iter().all(|x| *x == 0.0)) {
                let what = format!("row {row} is zero, which has no direction (rows count from 0)");
                return Err(bad(path.display(), what));
            }
        }
    }

    let device = devices::open(args.common.device)?;
    let metric = match args.metric {
        KnnMetric::L2 => Metric::L2,
        KnnMetric::Ip => Metric::InnerProduct,
        KnnMetric::Cosine => Metric::Cosine,
    };
    let base_rows = device.tensor_from(base_rows).in_file(&args.base)?;
    let query_rows = device.tensor_from(query_rows).in_file(&args.queries)?;
    let neighbours = knn::search(&base_rows, &query_rows, args.k, metric).in_file(&args.queries)?;
    let (ids, distances) = (&neighbours.ids, &neighbours.distances);
    let shape = [ids.nrows() as u64, ids.ncols() as u64];
    outputs.stage(&args.ids, |to| Ok(files::write_npy(to, &shape, ids.as_slice().unwrap_or(&[]))?))?;
    outputs.stage(&args.distances, |to| Ok(files::write_npy(to, &shape, distances.as_slice().unwrap_or(&[]))?))?;
    let mut mean_lid = None;
    if let Some(path) = &args.lid {
        let dimension = neighbours.local_dimension().in_file(&args.queries)?;
        outputs.stage(path, |to| Ok(files::write_npy(to, &shape[..1], dimension.as_slice().unwrap_or(&[]))?))?;
        let finite: Vec<f64> = dimension.iter().filter(|x| x.is_finite()).map(|x| f64::from(*x)).collect();
        mean_lid = (!finite.is_empty()).then(|| finite.iter().sum::<f64>() / finite.len() as f64);
    }
    let recall = match found {
        Some((found, length)) => {
            let found: Vec<u32> = found.into_iter().map(|id| u32::try_from(id).unwrap_or(u32::MAX)).collect();
            let found = Array2::from_shape_vec((ids.nrows(), length), found)?;
            Some(knn::recall(found.view(), ids.view()).in_file(&args.queries)?)
        }
        None => None,
    };
    outputs.commit()?;

    let seconds = start.elapsed().as_secs_f64();
    if args.common.json {
        let report = json!({
            "queries": queries.rows(), "base": base.rows(), "dim": base.dim(), "k": ids.ncols(),
            "ids": args.ids, "distances": args.distances, "lid": args.lid, "mean_lid": mean_lid, "recall": recall,
            "device": device.to_string(), "seconds": seconds,
        });
        return print(&format!("{report}\n"));
    }
    let (n, m, k) = (queries.rows(), base.rows(), ids.ncols());
    let mut text = format!(
        "the {k} nearest of {m} rows for {n} queries, to {} and {} ({device}, {seconds:.2} s)\n",
        args.ids.display(),
        args.distances.display()
    );
    if let (Some(path), Some(mean)) = (&args.lid, mean_lid) {
        text.push_str(&format!("  local intrinsic dimension {mean:.2} on average, to {}\n", path.display()));
    }
    if let (Some(path), Some(recall)) = (&args.found, recall) {
        text.push_str(&format!("  {} has {:.2} % of them\n", path.display(), 100.0 * recall));
    }
    print(&text)
}
