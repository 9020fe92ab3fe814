//! Files as tables.

use std::path::Path;
use std::sync::Arc;

use datafusion::common::TableReference;
use datafusion::error::{DataFusionError, Result};
use datafusion::prelude::{CsvReadOptions, ParquetReadOptions, SessionContext};

use super::column::external;
use super::npy::NpyTable;
use crate::Error;

/// Makes the file at `path` the table `name`: Parquet, CSV (with a line of names) or NumPy's `.npy`, by its ending.
///
/// A `.npy` of two axes has the columns `row` (Int64, counted from 0) and `embedding` (FixedSizeList), or of bytes `code` (FixedSizeBinary, as
/// [`Codes::to_bytes`](crate::hamming::Codes::to_bytes) has them); one of one axis has `row` and `value`. It must be in C order and this machine's byte order. On a cluster
/// executors open the file by its absolute path.
///
/// # Errors
/// [`Error::Io`], [`Error::Format`]; [`Error::Argument`] for another ending; DataFusion's own.
pub async fn register_file(ctx: &SessionContext, name: &str, path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    let table = TableReference::bare(name);
    let there = path
        .canonicalize()
        .map_err(|error| external(Error::Io { what: path.display().to_string(), reason: error.to_string() }))?;
    let text = there.to_string_lossy();
    let ending = there.extension().map(|ending| ending.to_string_lossy().into_owned()).unwrap_or_default();
    // DataFusion does not say which file it is about.
    let named = |what: &'static str| {
        let path = path.display().to_string();
        move |error: DataFusionError| external(Error::Format { what, reason: format!("{path}: {}", error.find_root()) })
    };
    match ending.as_str() {
        "parquet" => ctx.register_parquet(table, text, ParquetReadOptions::default()).await.map_err(named("Parquet")),
        "csv" => ctx.register_csv(table, text, CsvReadOptions::new()).await.map_err(named("CSV")),
        "npy" => ctx.register_table(table, Arc::new(NpyTable::open(&there)?)).map(|_| ()),
        _ => Err(external(Error::Argument {
            place: "sql",
            quantity: "file",
            expected: ".parquet, .csv or .npy".into(),
            found: path.display().to_string(),
        })),
    }
}

/// Registers the files that `query` names as tables, as in `SELECT ... FROM 'notes.parquet'`, each under the name it has there.
///
/// # Errors
/// As [`register_file`]; those of parsing.
pub async fn register_files_of(ctx: &SessionContext, query: &str) -> Result<()> {
    let state = ctx.state();
    let dialect = state.config().options().sql_parser.dialect;
    let statement = state.sql_to_statement(query, &dialect)?;
    for table in state.resolve_table_references(&statement)? {
        let name = table.table();
        let is_file = [".parquet", ".csv", ".npy"].iter().any(|ending| name.ends_with(ending));
        if is_file && matches!(table, TableReference::Bare { .. }) && !ctx.table_exist(table.clone())? {
            register_file(ctx, name, name).await?;
        }
    }
    Ok::<(), DataFusionError>(())
}
