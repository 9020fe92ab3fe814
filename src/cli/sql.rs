//! `orthant sql`: a query over files, here or on a cluster.

use std::path::PathBuf;
use std::time::Instant;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::json::ArrayWriter;
use datafusion::arrow::util::pretty::pretty_format_batches;
use datafusion::error::DataFusionError;
use datafusion::prelude::{SessionConfig, SessionContext};
use orthant::sql;
use serde_json::{Value, json};

use super::args::Sql;
use super::complaint::bad;
use super::devices;
use super::output::print;

/// Rows of a batch on a GPU, which has more to do for each batch.
const GPU_BATCH: usize = 1 << 16;

pub fn run(args: &Sql) -> anyhow::Result<()> {
    let start = Instant::now();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(answer(args, start))
}

async fn answer(args: &Sql, start: Instant) -> anyhow::Result<()> {
    let (ctx, place) = match &args.cluster {
        Some(address) => (connect(args, address).await?, format!("cluster {address}")),
        None => {
            let device = devices::open(args.common.device)?;
            let config = SessionConfig::new();
            let config = if device.is_cpu() { config } else { config.with_batch_size(GPU_BATCH) };
            let ctx = SessionContext::new_with_config(config);
            sql::register(&ctx, device.clone());
            (ctx, device.to_string())
        }
    };
    for table in &args.table {
        let Some((name, path)) = table.split_once('=') else {
            return Err(bad(format!("--table {table}"), "expected NAME=FILE"));
        };
        sql::register_file(&ctx, name, PathBuf::from(path)).await.map_err(complaint)?;
    }
    sql::register_files_of(&ctx, &args.query).await.map_err(complaint)?;
    let result = ctx.sql(&args.query).await.map_err(complaint)?;
    let columns: Vec<String> = result.schema().fields().iter().map(|field| field.name().clone()).collect();
    let batches = result.collect().await.map_err(complaint)?;
    let count: usize = batches.iter().map(RecordBatch::num_rows).sum();
    if !args.common.json {
        return print(&format!("{}\n", pretty_format_batches(&batches)?));
    }
    let report = json!({
        "columns": columns, "rows": rows(&batches)?, "count": count,
        "device": place, "seconds": start.elapsed().as_secs_f64(),
    });
    print(&format!("{report}\n"))
}

#[cfg(feature = "ballista")]
async fn connect(args: &Sql, address: &str) -> anyhow::Result<SessionContext> {
    if args.common.device.is_some() {
        return Err(bad("--device", "executors of a cluster have their own"));
    }
    sql::cluster::connect(address).await.map_err(complaint)
}

#[cfg(not(feature = "ballista"))]
async fn connect(_: &Sql, address: &str) -> anyhow::Result<SessionContext> {
    Err(bad(format!("--cluster {address}"), "this program was built without the feature `ballista`"))
}

/// The rows as JSON objects, columns that are NULL among them. (JSON has no infinite numbers: they are null.)
fn rows(batches: &[RecordBatch]) -> anyhow::Result<Value> {
    let mut writer = ArrayWriter::new(Vec::new());
    batches.iter().try_for_each(|batch| writer.write(batch))?;
    writer.finish()?;
    let text = writer.into_inner();
    Ok(if text.is_empty() { json!([]) } else { serde_json::from_slice(&text)? })
}

/// What went wrong, as a mistake of whoever asked: all that a query says is theirs, and so are the files.
fn complaint(error: DataFusionError) -> anyhow::Error {
    match error.find_root() {
        DataFusionError::External(inner) => match inner.downcast_ref::<orthant::Error>() {
            Some(error @ (orthant::Error::OutOfMemory { .. } | orthant::Error::DeviceLost { .. })) => {
                anyhow::Error::new(error.clone())
            }
            _ => bad("query", inner),
        },
        root => bad("query", root),
    }
}
