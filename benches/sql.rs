//! `cargo bench --features datafusion --bench sql [-- ROWS [FILE]]`: SQL over a Parquet file of ROWS x 128 f32 (2 million, 1 GB), against the library reading the same
//! file itself and against its kernels over rows in memory.
//!
//! Results are compared before times are printed. Every task runs in a process of its own, which says what memory it took at its peak; SQL and library take turns,
//! three times each, and the medians count.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, FixedSizeListArray, Float32Array, Int32Array, Int64Array, RecordBatch,
};
use datafusion::arrow::datatypes::{
    DataType, Field, Float32Type, Float64Type, Int32Type, Int64Type, Schema, UInt32Type,
};
use datafusion::parquet::arrow::ArrowWriter;
use datafusion::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use datafusion::parquet::file::properties::WriterProperties;
use datafusion::prelude::{ParquetReadOptions, SessionConfig, SessionContext};
use ndarray::{Array2, ArrayView1, ArrayView2, ArrayViewMut2, Axis};
use orthant::Device;
use orthant::hamming::{Binarizer, Index, SearchOptions, binarize};
use orthant::sql::{self, SqlMixtureOptions, fit_mixture};
use orthant::vmf::{MixtureOptions, RowSource, Vmf, VmfMixture, VmfStats};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

const DIM: usize = 128;
const GROUPS: usize = 100;
const ROW_GROUP: usize = 100_000;
const BATCH: usize = 8192;
const TASKS: [&str; 4] = ["fit", "groups", "hamming", "mixture"];
const RUNS: usize = 3;

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    match &words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--task", task, how, file] => child(task, how, Path::new(file)),
        [] => parent(2_000_000, None),
        [rows] => parent(rows.parse().context("ROWS is no number")?, None),
        [rows, file] => parent(rows.parse().context("ROWS is no number")?, Some(file.into())),
        _ => bail!("expected ROWS and FILE"),
    }
}

/// What a child says: seconds, and numbers that must agree between SQL and library.
#[derive(serde::Serialize, serde::Deserialize)]
struct Report {
    seconds: f64,
    numbers: Vec<f64>,
    peak_bytes: u64,
}

fn parent(rows: usize, file: Option<PathBuf>) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = file.unwrap_or_else(|| folder.path().join("rows.parquet"));
    if !file.exists() {
        write(&file, rows)?;
    }
    let bytes = std::fs::metadata(&file)?.len();
    println!("{rows} x {DIM} f32 in Parquet, {:.2} GB, {} threads", bytes as f64 / 1e9, rayon::current_num_threads());
    println!(
        "task, seconds of SQL, library, its kernels in memory; SQL over library; rows a second; outside the kernels; peak memory of SQL and library, MB"
    );
    for task in TASKS {
        let mut times: BTreeMap<&str, Vec<Report>> = BTreeMap::new();
        for _ in 0..RUNS {
            for how in ["sql", "library"] {
                times.entry(how).or_default().push(ask(task, how, &file)?);
            }
        }
        times.entry("kernels").or_default().push(ask(task, "kernels", &file)?);
        let first = |how: &str| &times[how][0].numbers;
        for (sql, library) in first("sql").iter().zip(first("library")) {
            // Mixtures begin at other seeds, and are compared by likelihood.
            let tolerance = if task == "mixture" { 0.01 } else { 1e-12 };
            ensure!((sql - library).abs() <= tolerance * library.abs(), "{task}: {sql}, expected {library}");
        }
        ensure!(first("sql").len() == first("library").len() && !first("sql").is_empty(), "{task}: results differ");
        let median = |how: &str| {
            let mut seconds: Vec<f64> = times[how].iter().map(|report| report.seconds).collect();
            seconds.sort_by(f64::total_cmp);
            seconds[seconds.len() / 2]
        };
        let peak = |how: &str| times[how].iter().map(|report| report.peak_bytes).max().unwrap_or(0) as f64 / 1e6;
        let (sql, library, kernels) = (median("sql"), median("library"), median("kernels"));
        println!(
            "{task:8} {sql:7.2} {library:7.2} {kernels:7.2} {:6.2} {:10.0} {:4.0} % {:6.0} {:6.0}",
            sql / library,
            rows as f64 * if task == "mixture" { 5.0 } else { 1.0 } / sql,
            100.0 * (1.0 - kernels / sql),
            peak("sql"),
            peak("library")
        );
    }
    Ok(())
}

fn ask(task: &str, how: &str, file: &Path) -> Result<Report> {
    let output = Command::new(std::env::current_exe()?).args(["--task", task, how]).arg(file).output()?;
    ensure!(output.status.success(), "{task} by {how}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn child(task: &str, how: &str, file: &Path) -> Result<()> {
    let (seconds, numbers) = match how {
        "sql" => by_sql(task, file)?,
        "library" => by_library(task, file)?,
        _ => in_memory(task, file)?,
    };
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    println!("{}", serde_json::to_string(&Report { seconds, numbers, peak_bytes: peak.unwrap_or(0) * 1024 })?);
    Ok(())
}

/// Rows around a direction of their group, in row groups, with a code of their signs beside them.
fn write(path: &Path, rows: usize) -> Result<()> {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let mut normal = |_: usize| (0..4).map(|_| rng.random::<f32>()).sum::<f32>() - 2.0;
    let centres: Vec<f32> = (0..GROUPS * DIM).map(&mut normal).collect();
    let item = Arc::new(Field::new("item", DataType::Float32, false));
    let schema = Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("g", DataType::Int32, false),
        Field::new("embedding", DataType::FixedSizeList(item.clone(), DIM as i32), false),
    ]));
    let properties =
        WriterProperties::builder().set_max_row_group_row_count(Some(ROW_GROUP)).set_dictionary_enabled(false).build();
    let mut writer = ArrowWriter::try_new(File::create(path)?, schema.clone(), Some(properties))?;
    for first in (0..rows).step_by(BATCH) {
        let count = BATCH.min(rows - first);
        let group = |row: usize| (row * 7919) % GROUPS;
        let elements: Vec<f32> = (first..first + count)
            .flat_map(|row| (0..DIM).map(move |j| (row, j)))
            .map(|(row, j)| centres[group(row) * DIM + j] + 1.5 * normal(j))
            .collect();
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int64Array::from_iter_values((first..first + count).map(|row| row as i64))),
            Arc::new(Int32Array::from_iter_values((first..first + count).map(|row| group(row) as i32))),
            Arc::new(FixedSizeListArray::new(item.clone(), DIM as i32, Arc::new(Float32Array::from(elements)), None)),
        ];
        writer.write(&RecordBatch::try_new(schema.clone(), columns)?)?;
    }
    writer.close()?;
    Ok(())
}

fn mixture_options() -> MixtureOptions {
    MixtureOptions::new(16).max_iterations(5).tolerance(0.0)
}

/// The code that is searched for.
fn wanted() -> Vec<u8> {
    (0..DIM as u8 / 8).map(|byte| byte.wrapping_mul(37) ^ 0x5a).collect()
}

fn by_sql(task: &str, file: &Path) -> Result<(f64, Vec<f64>)> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let ctx =
            SessionContext::new_with_config(SessionConfig::new().with_target_partitions(rayon::current_num_threads()));
        sql::register(&ctx, Device::Cpu);
        ctx.register_parquet("rows", &file.to_string_lossy(), ParquetReadOptions::default()).await?;
        let start = Instant::now();
        let query = |text: String| {
            let ctx = ctx.clone();
            async move {
                let batches = ctx.sql(&text).await?.collect().await?;
                let schema = batches.first().context("no batch")?.schema();
                anyhow::Ok(datafusion::arrow::compute::concat_batches(&schema, &batches)?)
            }
        };
        let kappas = |array: &ArrayRef| -> Vec<f64> {
            let kappas =
                array.as_struct().column_by_name("kappa").map(|kappas| kappas.as_primitive::<Float64Type>().clone());
            kappas.map_or(Vec::new(), |kappas| kappas.values().to_vec())
        };
        let numbers = match task {
            "fit" => kappas(query("SELECT vmf_fit(embedding) FROM rows".into()).await?.column(0)),
            "groups" => {
                kappas(query("SELECT g, vmf_fit(embedding) FROM rows GROUP BY g ORDER BY g".into()).await?.column(1))
            }
            "hamming" => {
                let code: String = wanted().iter().map(|byte| format!("{byte:02x}")).collect();
                let text = format!("SELECT hamming_top_k(id, binarize(embedding, 'sign'), X'{code}', 100) FROM rows");
                let found = query(text).await?.column(0).as_list::<i32>().value(0);
                let (ids, distances) = (found.as_struct().column(0), found.as_struct().column(1));
                let ids = ids.as_primitive::<Int64Type>().values().iter().map(|&id| id as f64);
                ids.chain(distances.as_primitive::<UInt32Type>().values().iter().map(|&d| d.into())).collect()
            }
            _ => {
                let options = SqlMixtureOptions::new(mixture_options());
                vec![fit_mixture(&ctx, "SELECT embedding FROM rows", &options).await?.mixture.log_likelihood()]
            }
        };
        Ok((start.elapsed().as_secs_f64(), numbers))
    })
}

/// `each` of the batches of a row group, in order; row groups by all threads, in order.
fn row_groups<T: Send>(
    file: &Path,
    columns: &[&str],
    each: impl Fn(Vec<RecordBatch>) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let builder = || anyhow::Ok(ParquetRecordBatchReaderBuilder::try_new(File::open(file)?)?);
    let groups = builder()?.metadata().num_row_groups();
    (0..groups)
        .into_par_iter()
        .map(|group| {
            let builder = builder()?;
            let mask =
                datafusion::parquet::arrow::ProjectionMask::columns(builder.parquet_schema(), columns.iter().copied());
            let reader = builder.with_projection(mask).with_row_groups(vec![group]).with_batch_size(BATCH).build()?;
            each(reader.collect::<std::result::Result<Vec<_>, _>>()?)
        })
        .collect()
}

fn rows_of(batch: &RecordBatch) -> Result<ArrayView2<'_, f32>> {
    let list = batch.column_by_name("embedding").context("no embedding")?.as_fixed_size_list();
    Ok(ArrayView2::from_shape((list.len(), DIM), list.values().as_primitive::<Float32Type>().values())?)
}

fn groups_of(rows: ArrayView2<'_, f32>, labels: &[i32], groups: &mut BTreeMap<i32, VmfStats>) -> Result<()> {
    let mut members: BTreeMap<i32, Vec<usize>> = BTreeMap::new();
    labels.iter().enumerate().for_each(|(row, label)| members.entry(*label).or_default().push(row));
    for (label, members) in members {
        let stats = match groups.entry(label) {
            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::btree_map::Entry::Vacant(entry) => entry.insert(VmfStats::new(DIM)?),
        };
        stats.push(rows.select(Axis(0), &members).view())?;
    }
    Ok(())
}

type Groups = BTreeMap<i32, VmfStats>;

fn kappas(groups: Vec<Groups>) -> Result<Vec<f64>> {
    let mut all = Groups::new();
    for (label, stats) in groups.into_iter().flatten() {
        match all.get_mut(&label) {
            Some(before) => before.merge(&stats)?,
            None => drop(all.insert(label, stats)),
        }
    }
    all.values().map(|stats| Ok(Vmf::from_stats(stats)?.kappa())).collect()
}

/// (distance, id) of the nearest codes.
fn nearest(rows: ArrayView2<'_, f32>, first: u64) -> Result<Vec<(u32, u64)>> {
    let cpu = Device::Cpu;
    let mut index = Index::new(&cpu, DIM)?;
    index.add(&binarize(&cpu.tensor(&rows)?, &Binarizer::sign(DIM, DIM)?)?)?;
    let code = wanted();
    let query = orthant::hamming::Codes::from_bytes(&cpu, &ArrayView2::from_shape((1, code.len()), &code)?)?;
    let found = index.search(&query, &SearchOptions::new(100))?;
    let distances = found.distances.to_array()?;
    Ok(distances.iter().copied().zip(found.ids.to_array()?.iter().map(|id| first + u64::from(*id))).collect())
}

fn hundred(mut found: Vec<(u32, u64)>) -> Vec<f64> {
    found.sort_unstable();
    found.truncate(100);
    found.iter().map(|(_, id)| *id as f64).chain(found.iter().map(|(distance, _)| f64::from(*distance))).collect()
}

fn by_library(task: &str, file: &Path) -> Result<(f64, Vec<f64>)> {
    let start = Instant::now();
    let numbers = match task {
        "fit" | "groups" => {
            let parts = row_groups(file, &["g", "embedding"][usize::from(task == "fit")..], |batches| {
                let mut groups = Groups::new();
                for batch in &batches {
                    let rows = rows_of(batch)?;
                    match batch.column_by_name("g") {
                        Some(labels) => groups_of(rows, labels.as_primitive::<Int32Type>().values(), &mut groups)?,
                        None => match groups.get_mut(&0) {
                            Some(stats) => stats.push(rows)?,
                            None => {
                                let mut stats = VmfStats::new(DIM)?;
                                stats.push(rows)?;
                                groups.insert(0, stats);
                            }
                        },
                    }
                }
                Ok(groups)
            })?;
            kappas(parts)?
        }
        "hamming" => {
            let parts = row_groups(file, &["id", "embedding"], |batches| {
                let mut found = Vec::new();
                for batch in &batches {
                    let ids = batch.column_by_name("id").context("no id")?.as_primitive::<Int64Type>();
                    found.extend(nearest(rows_of(batch)?, ids.value(0) as u64)?);
                }
                Ok(found)
            })?;
            hundred(parts.concat())
        }
        // read anew in every pass, as the query is
        _ => {
            vec![VmfMixture::fit_source(&Device::Cpu, &ParquetRows::open(file)?, &mixture_options())?.log_likelihood()]
        }
    };
    Ok((start.elapsed().as_secs_f64(), numbers))
}

/// A row group's elements.
type Decoded = (usize, Arc<Vec<f32>>);

/// The embeddings of a file as the library reads them in pieces. Threads go through neighbouring pieces, so that a row group is decoded once a pass.
struct ParquetRows {
    file: PathBuf,
    rows: usize,
    /// Those of late, the last at the end.
    groups: Mutex<Vec<Decoded>>,
}

impl ParquetRows {
    fn open(file: &Path) -> Result<Self> {
        let rows = ParquetRecordBatchReaderBuilder::try_new(File::open(file)?)?.metadata().file_metadata().num_rows();
        Ok(Self { file: file.into(), rows: rows as usize, groups: Mutex::default() })
    }

    fn group(&self, number: usize) -> Result<Arc<Vec<f32>>> {
        let held = |groups: &[Decoded]| groups.iter().find(|(group, _)| *group == number).map(|(_, rows)| rows.clone());
        if let Some(rows) = held(&self.groups.lock().unwrap()) {
            return Ok(rows);
        }
        let builder = ParquetRecordBatchReaderBuilder::try_new(File::open(&self.file)?)?;
        let mask = datafusion::parquet::arrow::ProjectionMask::columns(builder.parquet_schema(), ["embedding"]);
        let reader = builder.with_projection(mask).with_row_groups(vec![number]).with_batch_size(BATCH).build()?;
        let mut elements = Vec::with_capacity(ROW_GROUP * DIM);
        for batch in reader {
            elements.extend_from_slice(rows_of(&batch?)?.to_slice().unwrap_or(&[]));
        }
        let rows = Arc::new(elements);
        let mut groups = self.groups.lock().unwrap();
        if groups.len() == 2 * rayon::current_num_threads() {
            groups.remove(0);
        }
        groups.push((number, rows.clone()));
        Ok(rows)
    }
}

impl RowSource for ParquetRows {
    fn rows(&self) -> usize {
        self.rows
    }

    fn dim(&self) -> usize {
        DIM
    }

    fn read(&self, first: usize, mut into: ArrayViewMut2<'_, f32>) -> orthant::Result<()> {
        let mut group: Option<Decoded> = None;
        for (row, mut into) in (first..).zip(into.outer_iter_mut()) {
            let number = row / ROW_GROUP;
            if group.as_ref().is_none_or(|(held, _)| *held != number) {
                let rows = self.group(number).map_err(|error| orthant::Error::Io {
                    what: self.file.display().to_string(),
                    reason: error.to_string(),
                })?;
                group = Some((number, rows));
            }
            if let Some((_, rows)) = &group {
                into.assign(&ArrayView1::from(&rows[row % ROW_GROUP * DIM..][..DIM]));
            }
        }
        Ok(())
    }
}

fn load(file: &Path) -> Result<Array2<f32>> {
    let parts = row_groups(file, &["embedding"], |batches| {
        let mut elements = Vec::new();
        for batch in &batches {
            elements.extend_from_slice(rows_of(batch)?.to_slice().unwrap_or(&[]));
        }
        Ok(elements)
    })?;
    let mut elements = Vec::with_capacity(parts.iter().map(Vec::len).sum());
    for part in parts {
        elements.extend_from_slice(&part);
    }
    Ok(Array2::from_shape_vec((elements.len() / DIM, DIM), elements)?)
}

/// The kernels alone, over rows that are in memory.
fn in_memory(task: &str, file: &Path) -> Result<(f64, Vec<f64>)> {
    let rows = load(file)?;
    let labels: Vec<i32> = (0..rows.nrows()).map(|row| ((row * 7919) % GROUPS) as i32).collect();
    let tensor = Device::Cpu.tensor_from(rows)?;
    let rows = tensor.as_host().context("on the CPU")?;
    let start = Instant::now();
    let chunks = || rows.axis_chunks_iter(Axis(0), BATCH).into_par_iter().zip(labels.par_chunks(BATCH));
    let numbers = match task {
        "fit" => vec![Vmf::fit(&tensor)?.kappa()],
        "groups" => {
            let parts = chunks().map(|(rows, labels)| {
                let mut groups = Groups::new();
                groups_of(rows, labels, &mut groups)?;
                Ok(groups)
            });
            kappas(parts.collect::<Result<Vec<_>>>()?)?
        }
        "hamming" => hundred(nearest(rows, 0)?),
        _ => vec![VmfMixture::fit(&tensor, &mixture_options())?.log_likelihood()],
    };
    Ok((start.elapsed().as_secs_f64(), numbers))
}
