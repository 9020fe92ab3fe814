//! The SQL functions against the library on the same rows, on the CPU and on every adapter, whatever the number of partitions.

mod common;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use common::Case;
use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, FixedSizeBinaryArray, FixedSizeListArray, Float16Array, Float32Array, Float64Array,
    Int32Array, Int64Array, ListArray, RecordBatch, StructArray, UInt64Array,
};
use datafusion::arrow::buffer::{NullBuffer, OffsetBuffer};
use datafusion::arrow::datatypes::{
    DataType, Field, Float32Type, Float64Type, Int64Type, Schema, UInt32Type, UInt64Type,
};
use datafusion::datasource::MemTable;
use datafusion::error::DataFusionError;
use datafusion::parquet::arrow::ArrowWriter;
use datafusion::prelude::{SessionConfig, SessionContext};
use half::f16;
use libtest_mimic::{Failed, Trial};
use ndarray::{Array1, Array2, ArrayView1, Axis, s};
use orthant::hamming::{Binarizer, Codes, Index, SearchOptions, binarize};
use orthant::knn::{self, Metric};
use orthant::sql::{self, SqlMixtureOptions, fit_mixture};
use orthant::vmf::{MixtureOptions, Vmf, VmfMixture};
use orthant::{Device, Error, Precision, kernels};

fn main() {
    type Test = fn(&Device) -> Result<()>;
    let tests: [(&str, Test); 14] = [
        ("bessel functions", bessel),
        ("densities and labels", densities),
        ("codes and distances", codes),
        ("one fit, whatever the partitions", one_fit),
        ("a fit for each of the 45 labels", grouped_fits),
        ("NULL rows are skipped and counted", nulls),
        ("the nearest codes", nearest_codes),
        ("the nearest rows", nearest_rows),
        ("over windows", windows),
        ("of nothing", nothing),
        ("a mixture", mixture),
        ("a mixture with weights, in mini-batches, resumed", resumed_mixture),
        ("models from files, tables and fits", models),
        ("what is wrong is said", errors),
    ];
    let on_cpu = tests.map(|(name, test)| {
        Trial::test(format!("sql::{name}"), move || {
            test(&Device::Cpu).map_err(|error| Failed::from(format!("{error:#}")))
        })
        .with_kind("CPU")
    });
    type Once = fn() -> Result<()>;
    let once: [(&str, Once); 2] = [("files as tables", files), ("every layout of lists", layouts)];
    let once = once.map(|(name, test)| {
        Trial::test(format!("sql::{name}"), move || test().map_err(|error| Failed::from(format!("{error:#}"))))
    });
    let cases = tests.map(|(name, test)| Case::new("sql", name, test));
    common::main(cases.into(), on_cpu.into_iter().chain(once).collect());
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().worker_threads(3).enable_all().build().unwrap().block_on(future)
}

fn npy<T: npyz::Deserialize>(name: &str) -> Result<(Vec<usize>, Vec<T>)> {
    let path = format!("{}/tests/data/{name}", env!("CARGO_MANIFEST_DIR"));
    let file = npyz::NpyFile::new(std::fs::File::open(&path).context(path)?)?;
    Ok((file.shape().iter().map(|n| *n as usize).collect(), file.into_vec()?))
}

/// Sentence embeddings, (4000, 384), and their labels.
fn wordnet() -> Result<(Array2<f32>, Vec<i32>)> {
    let (shape, rows) = npy::<f16>("wordnet_minilm_4k.npy")?;
    let rows = Array2::from_shape_vec((shape[0], shape[1]), rows)?.mapv(f16::to_f32);
    Ok((rows, npy("wordnet_labels_4k.npy")?.1))
}

/// Speaker embeddings, (1535, 256).
fn speakers() -> Result<Array2<f32>> {
    let (shape, rows) = npy::<f16>("speakers_ge2e.npy")?;
    Ok(Array2::from_shape_vec((shape[0], shape[1]), rows)?.mapv(f16::to_f32))
}

fn list(rows: &Array2<f32>, nulls: Option<NullBuffer>) -> ArrayRef {
    let item = Arc::new(Field::new("item", DataType::Float32, true));
    let values = Arc::new(Float32Array::from(rows.iter().copied().collect::<Vec<f32>>()));
    Arc::new(FixedSizeListArray::new(item, rows.ncols() as i32, values, nulls))
}

fn bytes(codes: &Array2<u8>) -> ArrayRef {
    Arc::new(FixedSizeBinaryArray::try_from_iter(codes.outer_iter().map(|code| code.to_vec())).unwrap())
}

/// A context with a table `t` of those columns, cut into batches of uneven lengths that are dealt out to `partitions`.
fn context(device: &Device, columns: &[(&str, ArrayRef)], partitions: usize) -> Result<SessionContext> {
    let ctx = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(partitions));
    sql::register(&ctx, device.clone());
    table(&ctx, "t", columns, partitions)?;
    Ok(ctx)
}

fn table(ctx: &SessionContext, name: &str, columns: &[(&str, ArrayRef)], partitions: usize) -> Result<()> {
    let fields: Vec<Field> =
        columns.iter().map(|(name, array)| Field::new(*name, array.data_type().clone(), true)).collect();
    let schema = Arc::new(Schema::new(fields));
    let all = RecordBatch::try_new(schema.clone(), columns.iter().map(|(_, array)| array.clone()).collect())?;
    let mut dealt = vec![Vec::new(); partitions];
    let (mut first, mut number) = (0, 0);
    while first < all.num_rows() {
        let count = [1, 300, 77, 513][number % 4].min(all.num_rows() - first);
        dealt[number % partitions].push(all.slice(first, count));
        (first, number) = (first + count, number + 1);
    }
    ctx.register_table(name, Arc::new(MemTable::try_new(schema, dealt)?))?;
    Ok(())
}

/// The only batch of a result.
fn query(ctx: &SessionContext, text: &str) -> Result<RecordBatch> {
    let batches = block_on(async { ctx.sql(text).await?.collect().await })?;
    let schema = batches.first().context("no batch")?.schema();
    Ok(datafusion::arrow::compute::concat_batches(&schema, &batches)?)
}

fn refused(ctx: &SessionContext, text: &str) -> Result<Error> {
    match block_on(async { ctx.sql(text).await?.collect().await }) {
        Ok(_) => bail!("{text}: not refused"),
        Err(error) => match error.find_root() {
            DataFusionError::External(inner) => {
                inner.downcast_ref::<Error>().cloned().with_context(|| format!("{text}: {inner}"))
            }
            other => bail!("{text}: {other}"),
        },
    }
}

fn numbers(array: &dyn Array) -> Vec<f64> {
    array.as_primitive::<Float64Type>().values().to_vec()
}

#[track_caller]
fn near(actual: f64, expected: f64, tolerance: f64, what: &str) -> Result<()> {
    ensure!(
        (actual - expected).abs() <= tolerance * expected.abs() || actual == expected,
        "{what}: {actual:e}, expected {expected:e} within {tolerance:e}"
    );
    Ok(())
}

fn bessel(device: &Device) -> Result<()> {
    let orders: Vec<f64> = (0..600).map(|i| f64::from(i) * 1.7).collect();
    let points: Vec<f64> = (0..600).map(|i| 0.01 + f64::from(i * i) * 0.02).collect();
    let columns: [(&str, ArrayRef); 2] =
        [("v", Arc::new(Float64Array::from(orders.clone()))), ("x", Arc::new(Float64Array::from(points.clone())))];
    let ctx = context(device, &columns, 3)?;
    let got = query(&ctx, "SELECT v, log_iv(v, x), log_kv(v, x) FROM t ORDER BY v")?;
    let cpu = Device::Cpu;
    let (v, x) = (cpu.tensor(&ArrayView1::from(&orders[..]))?, cpu.tensor(&ArrayView1::from(&points[..]))?);
    // On GPUs pairs of f32 are within 1e-13 of hypot(v, x) or the value.
    let tolerance = if device.is_cpu() { 0.0 } else { 1e-13 };
    for (column, expected) in [(1, kernels::log_iv(&v, &x)?), (2, kernels::log_kv(&v, &x)?)] {
        for (i, (got, expected)) in numbers(got.column(column)).iter().zip(&expected.to_array()?).enumerate() {
            let scale = expected.abs().max(orders[i].hypot(points[i]));
            ensure!(
                (got - expected).abs() <= tolerance * scale,
                "column {column}, row {i}: {got}, expected {expected}"
            );
        }
    }
    let constant = query(&ctx, "SELECT log_iv(16383, 1e4), log_iv(NULL, 1.0), log_kv(2, 3)")?;
    let expected = kernels::log_iv(&cpu.tensor(&Array1::from(vec![16383.0]))?, &cpu.tensor(&Array1::from(vec![1e4]))?)?;
    near(numbers(constant.column(0))[0], expected.to_array()?[0], 1e-12, "order 16383")?;
    ensure!(constant.column(1).is_null(0));
    let error = refused(&ctx, "SELECT log_kv(v, x - 0.02) FROM t")?;
    ensure!(matches!(&error, Error::Column { row: Some(0), .. }), "{error}");
    Ok(())
}

fn densities(device: &Device) -> Result<()> {
    let (rows, _) = wordnet()?;
    let rows = rows.slice(s![..1500, ..]).to_owned();
    let tensor = device.tensor(&rows)?;
    let vmf = Vmf::fit_in(&Device::Cpu.tensor(&rows)?, None, Precision::Extended)?;
    let mixture = VmfMixture::fit(&Device::Cpu.tensor(&rows)?, &MixtureOptions::new(5).max_iterations(5))?;
    let folder = tempfile::tempdir()?;
    let [one, many] = ["vmf.json", "mixture.json"].map(|name| folder.path().join(name));
    vmf.save(&one)?;
    mixture.save(&many)?;
    let ctx = context(device, &[("e", list(&rows, None))], 1)?;
    let text = format!(
        "SELECT vmf_log_density(e, '{}'), vmf_log_density(e, '{many}'), vmf_predict(e, '{many}') FROM t",
        one.display(),
        many = many.display()
    );
    let got = query(&ctx, &text)?;
    let expected = vmf.log_density_in(&tensor, Precision::Extended)?;
    ensure!(numbers(got.column(0)) == expected.to_vec(), "densities are the library's");
    let expected: Vec<f64> = mixture.score(&tensor)?.to_array()?.iter().map(|&value| value.into()).collect();
    let labels = mixture.predict(&tensor)?.to_array()?.to_vec();
    // Batches end elsewhere, which a matrix product may round otherwise: f32 cosines times kappa.
    for (row, (got, expected)) in numbers(got.column(1)).iter().zip(&expected).enumerate() {
        ensure!((got - expected).abs() < 1e-3, "row {row}: {got}, expected {expected}");
    }
    ensure!(got.column(2).as_primitive::<UInt32Type>().values()[..] == labels[..], "labels are the library's");
    Ok(())
}

fn codes(device: &Device) -> Result<()> {
    let (rows, _) = wordnet()?;
    let rows = rows.slice(s![..1000, ..]).to_owned();
    let tensor = device.tensor(&rows)?;
    let learned = Binarizer::median(&Device::Cpu.tensor(&rows)?, 384)?;
    let folder = tempfile::tempdir()?;
    let saved = folder.path().join("median.safetensors");
    learned.save(&saved)?;
    let others = rows.slice(s![..;-1, ..]).to_owned();
    let ctx = context(device, &[("e", list(&rows, None)), ("o", list(&others, None))], 1)?;
    let methods = [
        ("sign".to_string(), Binarizer::sign(384, 384)?),
        ("sign 128".into(), Binarizer::sign(384, 128)?),
        ("hyperplanes 256 7".into(), Binarizer::hyperplanes(384, 256, 7)?),
        (saved.display().to_string(), learned),
    ];
    for (method, binarizer) in methods {
        let got = query(&ctx, &format!("SELECT binarize(e, '{method}') FROM t"))?;
        let expected = binarize(&tensor, &binarizer)?.to_bytes()?;
        let got = got.column(0).as_fixed_size_binary();
        ensure!(got.len() == rows.nrows() && got.value_size() as usize == expected.ncols(), "{method}: its width");
        for (row, expected) in expected.outer_iter().enumerate() {
            ensure!(got.value(row) == expected.as_slice().unwrap(), "{method}: row {row}");
        }
    }
    let got = query(
        &ctx,
        "SELECT hamming_distance(binarize(e, 'sign'), binarize(o, 'sign')), cosine_similarity(e, o), \
         hamming_distance(binarize([1.0, -1.0, 1.0, 1.0, 1.0, 1.0, 1.0, -1.0], 'sign 8'), X'00') FROM t",
    )?;
    let packed = binarize(&tensor, &Binarizer::sign(384, 384)?)?;
    let all = kernels::hamming(&packed, &packed)?.to_array()?;
    for row in 0..rows.nrows() {
        let other = rows.nrows() - 1 - row;
        let distance = got.column(0).as_primitive::<UInt32Type>().value(row);
        ensure!(distance == u32::from(all[[row, other]]), "distance of row {row}");
        let (a, b) = (rows.row(row).mapv(f64::from), rows.row(other).mapv(f64::from));
        let expected = a.dot(&b) / (a.dot(&a) * b.dot(&b)).sqrt();
        let cosine = numbers(got.column(1))[row];
        ensure!((cosine - expected).abs() < 1e-14, "cosine of row {row}: {cosine}, expected {expected}");
    }
    ensure!(got.column(2).as_primitive::<UInt32Type>().value(0) == 6);
    Ok(())
}

/// A row of what `vmf_fit` returns.
struct Fitted {
    mean: Vec<f64>,
    kappa: f64,
    error: f64,
    length: f64,
    count: u64,
    skipped: u64,
}

fn fitted(array: &dyn Array, row: usize) -> Fitted {
    let fit = array.as_struct();
    let number = |name: &str| fit.column_by_name(name).unwrap().as_primitive::<Float64Type>().value(row);
    let count = |name: &str| fit.column_by_name(name).unwrap().as_primitive::<UInt64Type>().value(row);
    Fitted {
        mean: numbers(&fit.column_by_name("mean_direction").unwrap().as_list::<i32>().value(row)),
        kappa: number("kappa"),
        error: number("kappa_relative_error"),
        length: number("resultant_length"),
        count: count("count"),
        skipped: count("skipped"),
    }
}

/// Equal within 1e-12 relative, as sums whose order differs are.
fn same_fit(got: &Fitted, expected: &Vmf, what: &str) -> Result<()> {
    near(got.kappa, expected.kappa(), 1e-12, &format!("{what}: kappa"))?;
    near(got.length, expected.resultant_length(), 1e-12, &format!("{what}: resultant_length"))?;
    near(got.error, expected.kappa_relative_error(), 1e-12, &format!("{what}: kappa_relative_error"))?;
    let off = got.mean.iter().zip(expected.mean_direction()).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    ensure!(got.mean.len() == expected.dim() && off <= 1e-12, "{what}: mean_direction is off by {off:e}");
    Ok(())
}

fn one_fit(device: &Device) -> Result<()> {
    let (rows, _) = wordnet()?;
    let weights: Array1<f64> = (0..rows.nrows()).map(|row| (row % 5) as f64 / 3.0).collect();
    let tensor = Device::Cpu.tensor(&rows)?;
    let plain = Vmf::fit(&tensor)?;
    let weighted = Vmf::fit_weighted(&tensor, weights.view())?;
    for partitions in [1, 2, 7] {
        let columns: [(&str, ArrayRef); 2] =
            [("e", list(&rows, None)), ("w", Arc::new(Float64Array::from(weights.to_vec())))];
        let ctx = context(device, &columns, partitions)?;
        let got = query(&ctx, "SELECT vmf_fit(e), vmf_fit(e, w), vmf_fit(e) FILTER (WHERE w > 0) FROM t")?;
        let what = format!("{partitions} partitions");
        let fits = [0, 1, 2].map(|column| fitted(got.column(column), 0));
        same_fit(&fits[0], &plain, &what)?;
        same_fit(&fits[1], &weighted, &format!("{what}, weighted"))?;
        ensure!(
            (fits[0].count, fits[0].skipped) == (4000, 0) && fits[1].count == 3200 && fits[2].count == 3200,
            "{what}"
        );
    }
    Ok(())
}

fn grouped_fits(device: &Device) -> Result<()> {
    let (rows, labels) = wordnet()?;
    let mut members: BTreeMap<i32, Vec<usize>> = BTreeMap::new();
    labels.iter().enumerate().for_each(|(row, label)| members.entry(*label).or_default().push(row));
    ensure!(members.len() == 45);
    for partitions in [1, 3, 6] {
        let columns: [(&str, ArrayRef); 2] =
            [("e", list(&rows, None)), ("label", Arc::new(Int32Array::from(labels.clone())))];
        let ctx = context(device, &columns, partitions)?;
        let got = query(&ctx, "SELECT label, vmf_fit(e) FROM t GROUP BY label ORDER BY label")?;
        ensure!(got.num_rows() == 45);
        for (row, (label, members)) in members.iter().enumerate() {
            let expected = Vmf::fit(&Device::Cpu.tensor(&rows.select(Axis(0), members))?)?;
            let got = fitted(got.column(1), row);
            same_fit(&got, &expected, &format!("{partitions} partitions, label {label}"))?;
            ensure!(got.count == members.len() as u64);
        }
    }
    Ok(())
}

fn nulls(device: &Device) -> Result<()> {
    let rows = speakers()?;
    let rows = rows.slice(s![..900, ..]).to_owned();
    let there: Vec<bool> = (0..900).map(|row| row % 3 != 1).collect();
    let kept: Vec<usize> = (0..900).filter(|row| there[*row]).collect();
    // what is NULL may hold anything
    let mut dirty = rows.clone();
    (0..900).filter(|row| !there[*row]).for_each(|row| dirty.row_mut(row).fill(f32::NAN));
    let groups: Vec<i64> = (0..900).map(|row| row / 450).collect();
    let columns: [(&str, ArrayRef); 3] = [
        ("e", list(&dirty, Some(NullBuffer::from(there.clone())))),
        ("g", Arc::new(Int64Array::from(groups))),
        ("id", Arc::new(Int64Array::from((0..900).collect::<Vec<i64>>()))),
    ];
    let ctx = context(device, &columns, 4)?;
    let expected = Vmf::fit(&Device::Cpu.tensor(&rows.select(Axis(0), &kept))?)?;
    let got = fitted(query(&ctx, "SELECT vmf_fit(e) FROM t")?.column(0), 0);
    same_fit(&got, &expected, "some NULL")?;
    ensure!((got.count, got.skipped) == (600, 300));
    let got = query(&ctx, "SELECT g, vmf_fit(e) FROM t GROUP BY g ORDER BY g")?;
    ensure!(fitted(got.column(1), 0).skipped == 150 && fitted(got.column(1), 1).skipped == 150);
    let got = query(&ctx, "SELECT vmf_fit(e) FROM t WHERE e IS NULL")?;
    let fit = got.column(0).as_struct();
    ensure!(fit.column_by_name("kappa").unwrap().is_null(0), "no rows have no kappa");
    ensure!(fit.column_by_name("skipped").unwrap().as_primitive::<UInt64Type>().value(0) == 300);
    let got = query(&ctx, "SELECT vmf_fit(e) FROM t WHERE id < 0")?;
    ensure!(got.column(0).as_struct().column_by_name("count").unwrap().as_primitive::<UInt64Type>().value(0) == 0);

    let got = query(&ctx, "SELECT id, binarize(e, 'sign'), cosine_similarity(e, e) FROM t ORDER BY id")?;
    for (row, there) in there.iter().enumerate() {
        ensure!(got.column(1).is_valid(row) == *there && got.column(2).is_valid(row) == *there, "row {row}");
    }
    let text = "SELECT knn_top_k(id, e, (SELECT e FROM t WHERE id = 3), 1000, 'l2'), \
         hamming_top_k(id, binarize(e, 'sign'), (SELECT binarize(e, 'sign') FROM t WHERE id = 3), 1000) FROM t";
    let got = query(&ctx, text)?;
    ensure!(
        got.column(0).as_list::<i32>().value_length(0) == 600 && got.column(1).as_list::<i32>().value_length(0) == 600
    );
    Ok(())
}

/// The neighbours in the only row of a result: ids and distances.
fn neighbours(array: &dyn Array) -> (Vec<i64>, ArrayRef) {
    let list = array.as_list::<i32>().value(0);
    let found: &StructArray = list.as_struct();
    let ids = found.column_by_name("id").unwrap().as_primitive::<Int64Type>().values().to_vec();
    (ids, found.column_by_name("distance").unwrap().clone())
}

/// Ids of rows in an order of their own, negative ones among them.
fn shuffled(count: usize) -> Vec<i64> {
    (0..count as i64).map(|row| (row * 7919) % count as i64 - 100).collect()
}

/// Rows in the order of their ids, and the ids.
fn by_id(ids: &[i64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..ids.len()).collect();
    order.sort_by_key(|&row| ids[row]);
    order
}

fn hex(code: ArrayView1<'_, u8>) -> String {
    code.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn nearest_codes(device: &Device) -> Result<()> {
    // Few bits, so that most distances are tied.
    let (rows, _) = wordnet()?;
    let codes = binarize(&Device::Cpu.tensor(&rows)?, &Binarizer::sign(384, 24)?)?.to_bytes()?;
    let ids = shuffled(codes.nrows());
    let order = by_id(&ids);
    let sorted = codes.select(Axis(0), &order);
    let cpu = Device::Cpu;
    let mut index = Index::new(&cpu, 24)?;
    index.add(&Codes::from_bytes(&cpu, &sorted.view())?)?;
    for (query_row, k, partitions) in [(0, 1, 1), (5, 100, 1), (17, 100, 5), (99, 5000, 3)] {
        let columns: [(&str, ArrayRef); 2] = [("id", Arc::new(Int64Array::from(ids.clone()))), ("code", bytes(&codes))];
        let ctx = context(device, &columns, partitions)?;
        let wanted = codes.slice(s![query_row..=query_row, ..]).to_owned();
        let found = index.search(&Codes::from_bytes(&cpu, &wanted.view())?, &SearchOptions::new(k))?;
        let expected: Vec<i64> = found.ids.to_array()?.iter().map(|&row| ids[order[row as usize]]).collect();
        let literal = format!("SELECT hamming_top_k(id, code, X'{}', {k}) FROM t", hex(wanted.row(0)));
        let looked_up =
            format!("SELECT hamming_top_k(id, code, (SELECT code FROM t WHERE id = {}), {k}) FROM t", ids[query_row]);
        for text in [literal, looked_up] {
            let (got, distances) = neighbours(query(&ctx, &text)?.column(0));
            ensure!(got == expected, "{text}: ids");
            let distances = distances.as_primitive::<UInt32Type>().values().to_vec();
            ensure!(
                distances == found.distances.to_array()?.iter().copied().collect::<Vec<u32>>(),
                "{text}: distances"
            );
        }
    }
    Ok(())
}

fn nearest_rows(device: &Device) -> Result<()> {
    let rows = speakers()?;
    // every row twice, so that every distance is tied
    let rows = ndarray::concatenate![Axis(0), rows.slice(s![..600, ..]), rows.slice(s![..600, ..])];
    let ids = shuffled(rows.nrows());
    let order = by_id(&ids);
    let sorted = rows.select(Axis(0), &order);
    let cpu = Device::Cpu;
    let metrics = [("l2", Metric::L2), ("cosine", Metric::Cosine), ("inner_product", Metric::InnerProduct)];
    for (name, metric) in metrics {
        for (k, partitions) in [(1, 1), (37, 1), (37, 4), (2000, 3)] {
            let columns: [(&str, ArrayRef); 2] =
                [("id", Arc::new(Int64Array::from(ids.clone()))), ("e", list(&rows, None))];
            let ctx = context(device, &columns, partitions)?;
            let wanted = rows.slice(s![8..9, ..]).to_owned();
            let found = knn::search(&cpu.tensor(&sorted)?, &cpu.tensor(&wanted)?, k, metric)?;
            let expected: Vec<i64> = found.ids.iter().map(|&row| ids[order[row as usize]]).collect();
            let elements: Vec<String> = wanted.iter().map(|value| format!("{value:?}")).collect();
            let literal = format!("SELECT knn_top_k(id, e, [{}], {k}, '{name}') FROM t", elements.join(", "));
            let looked_up =
                format!("SELECT knn_top_k(id, e, (SELECT e FROM t WHERE id = {}), {k}, '{name}') FROM t", ids[8]);
            for text in [literal, looked_up] {
                let (got, distances) = neighbours(query(&ctx, &text)?.column(0));
                ensure!(got == expected, "{name}, k {k}, {partitions} partitions: ids");
                let distances = distances.as_primitive::<Float32Type>().values().to_vec();
                ensure!(distances == found.distances.iter().copied().collect::<Vec<f32>>(), "{name}: distances");
            }
        }
    }
    Ok(())
}

/// Over windows: what was seen so far, row after row.
fn windows(device: &Device) -> Result<()> {
    let rows = speakers()?;
    let rows = rows.slice(s![..40, ..]).to_owned();
    let ids = Arc::new(Int64Array::from((0..40).collect::<Vec<i64>>()));
    let ctx = context(device, &[("id", ids), ("e", list(&rows, None))], 1)?;
    let wanted: Vec<f32> = rows.row(3).to_vec();
    let text = format!(
        "SELECT id, vmf_fit(e) OVER (ORDER BY id), knn_top_k(id, e, {wanted:?}, 5, 'l2') OVER (ORDER BY id) FROM t ORDER BY id"
    );
    let got = query(&ctx, &text)?;
    let cpu = Device::Cpu;
    for row in [0, 1, 7, 39] {
        let seen = rows.slice(s![..=row, ..]).to_owned();
        same_fit(&fitted(got.column(1), row), &Vmf::fit(&cpu.tensor(&seen)?)?, &format!("up to row {row}"))?;
        let found =
            knn::search(&cpu.tensor(&seen)?, &cpu.tensor(&rows.slice(s![3..4, ..]).to_owned())?, 5, Metric::L2)?;
        let (ids, _) = neighbours(&got.column(2).slice(row, 1));
        ensure!(
            ids == found.ids.iter().map(|&id| i64::from(id)).collect::<Vec<_>>(),
            "neighbours up to row {row}: {ids:?}"
        );
    }
    Ok(())
}

/// Columns without a value, and tables without a row.
fn nothing(device: &Device) -> Result<()> {
    let rows = Array2::from_elem((3, 8), 1.0f32);
    let model = serde_json::to_string(&VmfMixture::fit(
        &Device::Cpu.tensor(&speakers()?.slice(s![..50, ..8]).to_owned())?,
        &MixtureOptions::new(2),
    )?)?;
    let columns: [(&str, ArrayRef); 3] = [
        ("id", Arc::new(Int64Array::from(vec![None::<i64>; 3]))),
        ("e", list(&rows, Some(NullBuffer::new_null(3)))),
        ("x", Arc::new(Float64Array::from(vec![None; 3]))),
    ];
    let ctx = context(device, &columns, 2)?;
    let each = format!(
        "SELECT log_iv(x, x), vmf_log_density(e, '{model}'), vmf_predict(e, '{model}'), binarize(e, 'sign'), \
         hamming_distance(binarize(e, 'sign'), X'00'), cosine_similarity(e, e) FROM t"
    );
    let all = "SELECT vmf_fit(e), vmf_fit(e, x), hamming_top_k(id, binarize(e, 'sign'), X'00', 3), \
               knn_top_k(id, e, [1,2,3,4,5,6,7,8], 3, 'cosine') FROM t";
    for empty in ["", " WHERE id > 5"] {
        let got = block_on(async { ctx.sql(&format!("{each}{empty}")).await?.collect().await })?;
        let nulls: usize = got.iter().flat_map(|batch| batch.columns()).map(|column| column.null_count()).sum();
        ensure!(nulls == if empty.is_empty() { 18 } else { 0 }, "{empty}: {nulls} NULL");
        let got = query(&ctx, &format!("{all}{empty}"))?;
        let skipped =
            got.column(0).as_struct().column_by_name("skipped").unwrap().as_primitive::<UInt64Type>().value(0);
        ensure!(skipped == if empty.is_empty() { 3 } else { 0 });
        ensure!(
            got.column(2).as_list::<i32>().value_length(0) == 0 && got.column(3).as_list::<i32>().value_length(0) == 0
        );
    }
    Ok(())
}

/// Components by their weights, the heaviest first.
fn sorted_components(mixture: &VmfMixture) -> Vec<(f64, f64)> {
    let mut all: Vec<(f64, f64)> = mixture.components().iter().map(|c| (c.weight, c.kappa)).collect();
    all.sort_by(|a, b| b.0.total_cmp(&a.0));
    all
}

fn mixture(device: &Device) -> Result<()> {
    let rows = speakers()?;
    let options = MixtureOptions::new(8).seed(3).max_iterations(40).tolerance(1e-7);
    let direct = VmfMixture::fit(&Device::Cpu.tensor(&rows)?, &options)?;
    let mut first: Option<VmfMixture> = None;
    for partitions in [1, 4] {
        let ctx = context(device, &[("e", list(&rows, None))], partitions)?;
        let fit = block_on(fit_mixture(
            &ctx,
            "SELECT e FROM t",
            &SqlMixtureOptions::new(options.clone()).device(device.clone()),
        ))?;
        ensure!((fit.rows, fit.skipped) == (1535, 0) && fit.mixture.components().len() == 8);
        let trace = fit.mixture.log_likelihood_trace();
        ensure!(trace.windows(2).all(|pair| pair[1] > pair[0] - 1e-3), "the likelihood grows: {trace:?}");
        // Seeds are drawn from a sample in another order, so local maxima may be others: as good as the library's, within 1 % of its likelihood.
        let (got, expected) = (fit.mixture.log_likelihood(), direct.log_likelihood());
        near(got, expected, 0.01, "log-likelihood")?;
        // Partitions differ by f32 roundings alone.
        if let Some(first) = &first {
            for (got, expected) in sorted_components(&fit.mixture).iter().zip(sorted_components(first)) {
                near(got.0, expected.0, 1e-4, "weight between partitions")?;
                near(got.1, expected.1, 1e-4, "kappa between partitions")?;
            }
        }
        first.get_or_insert(fit.mixture);
    }
    Ok(())
}

fn resumed_mixture(device: &Device) -> Result<()> {
    let rows = speakers()?;
    let weights: Vec<f64> =
        (0..rows.nrows()).map(|row| if row % 6 == 0 { 0.0 } else { (row % 3 + 1) as f64 }).collect();
    let there: Vec<bool> = (0..rows.nrows()).map(|row| row % 100 != 7).collect();
    let skipped = there.iter().filter(|there| !**there).count() as u64;
    let columns: [(&str, ArrayRef); 2] =
        [("e", list(&rows, Some(NullBuffer::from(there)))), ("w", Arc::new(Float64Array::from(weights)))];
    let ctx = context(device, &columns, 1)?;
    let folder = tempfile::tempdir()?;
    let checkpoint = folder.path().join("checkpoint.json");
    let options = |iterations| {
        let mixture = MixtureOptions::new(4).seed(1).max_iterations(iterations).tolerance(0.0);
        SqlMixtureOptions::new(mixture).device(device.clone())
    };
    let run = |options: &SqlMixtureOptions| block_on(fit_mixture(&ctx, "SELECT e, w FROM t", options));
    let whole = run(&options(7))?;
    ensure!(whole.skipped == skipped, "{} skipped", whole.skipped);
    let part = run(&options(4).checkpoint(&checkpoint))?;
    let saved = VmfMixture::load(&checkpoint)?;
    // the last iteration has no M-step behind it
    ensure!(saved.iterations() == 3 && part.mixture.iterations() == 4);
    let rest = run(&options(7).checkpoint(&checkpoint).resume(true))?;
    ensure!(rest.mixture.log_likelihood_trace() == whole.mixture.log_likelihood_trace(), "the trace goes on");
    ensure!(rest.mixture.components() == whole.mixture.components(), "a resumed fit is the same fit");

    let mismatch = SqlMixtureOptions::new(MixtureOptions::new(5)).checkpoint(&checkpoint).resume(true);
    ensure!(run(&mismatch).is_err_and(|error| error.to_string().contains("the checkpoint has 4 components")));
    let starts = SqlMixtureOptions::new(MixtureOptions::new(4).starts(2)).checkpoint(&checkpoint);
    ensure!(run(&starts).is_err_and(|error| error.to_string().contains("starts")));

    let batches = SqlMixtureOptions::new(MixtureOptions::new(4).seed(1).max_iterations(6).batch(Some(300)));
    let sampled = run(&batches.device(device.clone()))?;
    near(sampled.mixture.log_likelihood(), whole.mixture.log_likelihood(), 0.02, "mini-batches")
}

fn models(device: &Device) -> Result<()> {
    let rows = speakers()?;
    let vmf = Vmf::fit(&Device::Cpu.tensor(&rows)?)?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("vmf.json");
    vmf.save(&path)?;
    let json = std::fs::read_to_string(&path)?;
    let ctx = context(device, &[("e", list(&rows, None))], 2)?;
    table(&ctx, "models", &[("model", Arc::new(datafusion::arrow::array::StringArray::from(vec![json.clone()])))], 1)?;
    let from_file = query(&ctx, &format!("SELECT SUM(vmf_log_density(e, '{}')) FROM t", path.display()))?;
    let from_text = query(&ctx, &format!("SELECT SUM(vmf_log_density(e, '{json}')) FROM t"))?;
    let from_table = query(&ctx, "SELECT SUM(vmf_log_density(e, (SELECT model FROM models))) FROM t")?;
    let from_fit = query(&ctx, "SELECT SUM(vmf_log_density(e, (SELECT vmf_fit(e) FROM t))) FROM t")?;
    let expected = vmf.log_density_in(&Device::Cpu.tensor(&rows)?, Precision::Extended)?.sum();
    for (got, what) in [(from_file, "file"), (from_text, "text"), (from_table, "table"), (from_fit, "fit")] {
        near(numbers(got.column(0))[0], expected, 1e-11, what)?;
    }
    Ok(())
}

fn errors(device: &Device) -> Result<()> {
    let rows = Array2::from_shape_fn((700, 16), |(i, j)| ((i * 31 + j * 7) % 13) as f32 - 5.5);
    let mut spoilt = rows.clone();
    spoilt[[505, 3]] = f32::NAN;
    let item = || Arc::new(Field::new("item", DataType::Float32, true));
    let ragged = |bad: usize| -> ArrayRef {
        let lengths = (0..700).map(|row| if row == bad { 15 } else { 16 });
        let values = Float32Array::from(vec![0.5f32; 700 * 16 - 1]);
        Arc::new(ListArray::new(item(), OffsetBuffer::from_lengths(lengths), Arc::new(values), None))
    };
    let codes = Array2::from_shape_fn((700, 2), |(i, j)| (i * 3 + j) as u8);
    let ids: ArrayRef = Arc::new(UInt64Array::from((0..700).map(|row| row + 1000).collect::<Vec<u64>>()));
    let weights: Vec<f64> = (0..700).map(|row| if row == 640 { -1.0 } else { 1.0 }).collect();
    let columns = [
        ("e", list(&rows, None)),
        ("n", list(&spoilt, None)),
        ("r", ragged(600)),
        ("code", bytes(&codes)),
        ("id", ids),
        ("w", Arc::new(Float64Array::from(weights)) as ArrayRef),
    ];
    let ctx = context(device, &columns, 1)?;
    let model = serde_json::to_string(&Vmf::fit(&Device::Cpu.tensor(&rows.slice(s![.., ..8]).to_owned())?)?)?;
    let place = |error: &Error| match error {
        Error::Column { column, row, .. } => Some((column.clone(), *row)),
        _ => None,
    };
    let is = |text: &str, column: &str, row: Option<usize>| -> Result<()> {
        let error = refused(&ctx, text)?;
        ensure!(
            place(&error) == Some((column.to_string(), row)),
            "{text}: {error}, expected column {column}, row {row:?}"
        );
        Ok(())
    };
    // A GPU is told of many batches at once: there the column is known, and what of the row is in the text.
    let on_cpu = |row| device.is_cpu().then_some(row);
    is("SELECT vmf_fit(n) FROM t", "n", on_cpu(505))?;
    is("SELECT w, vmf_fit(n) FROM t GROUP BY w", "n", Some(505))?;
    is("SELECT vmf_fit(r) FROM t", "r", Some(600))?;
    is("SELECT vmf_fit(e, w) FROM t", "w", Some(640))?;
    is(&format!("SELECT knn_top_k(id, n, {:?}, 3, 'l2') FROM t", vec![1.0f32; 16]), "n", on_cpu(505))?;
    is(&format!("SELECT knn_top_k(id, e, {:?}, 3, 'l2') FROM t", vec![1.0f32; 15]), "e", Some(0))?;
    is(&format!("SELECT knn_top_k(id, e, {:?}, 3, 'manhattan') FROM t", vec![1.0f32; 16]), "metric", None)?;
    is(&format!("SELECT knn_top_k(id, e, {:?}, 0, 'l2') FROM t", vec![1.0f32; 16]), "k", None)?;
    is("SELECT hamming_top_k(id, code, X'000000', 3) FROM t", "code", Some(0))?;
    is("SELECT hamming_top_k(id, code, X'', 3) FROM t", "query", None)?;
    is(
        "SELECT cosine_similarity(arrow_cast([], 'List(Float32)'), e) FROM t",
        "arrow_cast(make_array(),Utf8(\"List(Float32)\"))",
        Some(0),
    )
    .or_else(|error| match error.to_string() {
        text if text.contains("0 elements, expected 1 or more") => Ok(()),
        _ => Err(error),
    })?;
    is("SELECT hamming_distance(code, X'00') FROM t", "lit", Some(0)).or_else(|error| match error.to_string() {
        // literals are named by DataFusion
        text if text.contains("a code of 8 bits, expected 16 bits as code has") => Ok(()),
        _ => Err(error),
    })?;
    is(&format!("SELECT vmf_log_density(e, '{model}') FROM t"), "e", Some(0))?;
    let mixture = SqlMixtureOptions::new(MixtureOptions::new(3)).device(device.clone());
    for (text, column, row) in
        [("SELECT n FROM t", "n", 505), ("SELECT r FROM t", "r", 600), ("SELECT e, w FROM t", "w", 640)]
    {
        let error = block_on(fit_mixture(&ctx, text, &mixture)).unwrap_err();
        let DataFusionError::External(inner) = error.find_root() else { bail!("{text}: {error}") };
        let found = inner.downcast_ref::<Error>().and_then(place);
        ensure!(found == Some((column.to_string(), Some(row))), "{text}: {inner}");
    }
    for (text, expected) in [
        ("SELECT vmf_fit(missing) FROM t", "missing"),
        ("SELECT vmf_fit(w) FROM t", "an embedding of type Float64"),
        ("SELECT binarize(r, 'sign') FROM t", "FixedSizeList"),
        ("SELECT binarize(e, 'nonsense') FROM t", "'hyperplanes BITS SEED'"),
        ("SELECT binarize(e, 'sign 17') FROM t", "multiple of 8"),
        ("SELECT vmf_predict(e, 'no such file.json') FROM t", "no such file.json"),
        ("SELECT vmf_predict(e, '{\"kappa\": 1}') FROM t", "Vmf"),
        ("SELECT vmf_fit(e) FROM nowhere", "nowhere"),
    ] {
        let error = block_on(async { ctx.sql(text).await?.collect().await });
        let error = error.err().with_context(|| format!("{text}: not refused"))?.to_string();
        ensure!(error.contains(expected), "{text}: {error}, expected {expected:?}");
    }
    Ok(())
}

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn files() -> Result<()> {
    let (rows, labels) = wordnet()?;
    let folder = tempfile::tempdir()?;
    let parquet = folder.path().join("rows.parquet");
    let schema = Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("e", list(&rows, None).data_type().clone(), false),
    ]));
    let ids = Arc::new(Int64Array::from((0..4000).collect::<Vec<i64>>()));
    let batch = RecordBatch::try_new(schema.clone(), vec![ids, list(&rows, None)])?;
    let mut writer = ArrowWriter::try_new(std::fs::File::create(&parquet)?, schema, None)?;
    writer.write(&batch)?;
    writer.close()?;
    let csv = folder.path().join("labels.csv");
    let lines: String = labels.iter().enumerate().map(|(row, label)| format!("{row},{label}\n")).collect();
    std::fs::write(&csv, format!("id,label\n{lines}"))?;

    let ctx = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(3));
    sql::register(&ctx, Device::Cpu);
    let [npy_rows, npy_labels] = ["wordnet_minilm_4k.npy", "wordnet_labels_4k.npy"].map(path);
    let expected = Vmf::fit(&Device::Cpu.tensor(&rows)?)?;
    for file in [&parquet, &npy_rows] {
        let column = if file == &parquet { "e" } else { "embedding" };
        let text = format!("SELECT vmf_fit({column}) FROM '{}'", file.display());
        block_on(sql::register_files_of(&ctx, &text))?;
        same_fit(&fitted(query(&ctx, &text)?.column(0), 0), &expected, &text)?;
    }
    block_on(sql::register_file(&ctx, "notes", &npy_rows))?;
    block_on(sql::register_file(&ctx, "labels", &npy_labels))?;
    block_on(sql::register_file(&ctx, "table", &csv))?;
    let joined = query(
        &ctx,
        "SELECT COUNT(*), SUM(CASE WHEN value = label THEN 1 ELSE 0 END), SUM(row) \
         FROM labels JOIN \"table\" ON labels.row = id",
    )?;
    let number = |column: usize| joined.column(column).as_primitive::<Int64Type>().value(0);
    ensure!((number(0), number(1), number(2)) == (4000, 4000, 4000 * 3999 / 2));
    ensure!(query(&ctx, "SELECT COUNT(*) FROM notes")?.column(0).as_primitive::<Int64Type>().value(0) == 4000);

    let long = folder.path().join("long.npy");
    std::fs::write(
        &long,
        b"\x93NUMPY\x01\x00\x46\x00{'descr': '<f4', 'fortran_order': False, 'shape': (9999999, 384), }     \n",
    )?;
    for (file, expected) in [
        (folder.path().join("none.parquet"), "none.parquet"),
        (path("golden_kv.json"), "expected .parquet, .csv or .npy"),
        (long, "truncated"),
    ] {
        let error = block_on(sql::register_file(&ctx, "bad", &file)).err().context("not refused")?.to_string();
        ensure!(error.contains(expected), "{error}, expected {expected:?}");
    }
    Ok(())
}

/// f16, f32 and f64 in lists of every kind, sliced and with NULLs of length 0 between.
fn layouts() -> Result<()> {
    let (shape, halves) = npy::<f16>("speakers_ge2e.npy")?;
    let (count, dim) = (300, shape[1]);
    let halves = &halves[..count * dim];
    let rows = Array2::from_shape_vec((count, dim), halves.iter().map(|value| value.to_f32()).collect())?;
    let there: Vec<bool> = (0..count).map(|row| row % 7 != 3).collect();
    let kept: Vec<usize> = (5..count).filter(|row| there[*row]).collect();
    let expected = Vmf::fit(&Device::Cpu.tensor(&rows.select(Axis(0), &kept))?)?;
    let children: [ArrayRef; 3] = [
        Arc::new(Float16Array::from(halves.to_vec())),
        Arc::new(Float32Array::from(rows.iter().copied().collect::<Vec<f32>>())),
        Arc::new(Float64Array::from(rows.iter().map(|&value| value.into()).collect::<Vec<f64>>())),
    ];
    for child in children {
        let item = Arc::new(Field::new("item", child.data_type().clone(), true));
        let valid = Some(NullBuffer::from(there.clone()));
        let fixed: ArrayRef = Arc::new(FixedSizeListArray::new(item.clone(), dim as i32, child.clone(), valid.clone()));
        let lengths = vec![dim; count];
        let full: ArrayRef = Arc::new(ListArray::new(
            item.clone(),
            OffsetBuffer::from_lengths(lengths.clone()),
            child.clone(),
            valid.clone(),
        ));
        let large: ArrayRef = Arc::new(datafusion::arrow::array::LargeListArray::new(
            item.clone(),
            OffsetBuffer::from_lengths(lengths),
            child.clone(),
            valid.clone(),
        ));
        // NULLs that take no room
        let dense = datafusion::arrow::compute::take(
            &child,
            &UInt64Array::from_iter_values(
                (0..count).filter(|row| there[*row]).flat_map(|row| (row * dim..(row + 1) * dim).map(|at| at as u64)),
            ),
            None,
        )?;
        let lengths = there.iter().map(|there| if *there { dim } else { 0 });
        let sparse: ArrayRef = Arc::new(ListArray::new(item, OffsetBuffer::from_lengths(lengths), dense, valid));
        for array in [fixed, full, large, sparse] {
            let what = array.data_type().to_string();
            let ctx = context(&Device::Cpu, &[("e", array.slice(5, count - 5))], 2)?;
            let got = fitted(query(&ctx, "SELECT vmf_fit(e) FROM t")?.column(0), 0);
            same_fit(&got, &expected, &what)?;
            ensure!((got.count + got.skipped) as usize == count - 5, "{what}");
        }
    }
    Ok(())
}
