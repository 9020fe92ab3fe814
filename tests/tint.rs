//! Kernels of every family on another host of WebGPU: here a device is told what to do and the steps are written down with what the CPU path gives;
//! `.ci/tint.mjs` takes the steps under Dawn's Tint and compares.

mod common;

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use common::attention::noise;
use half::f16;
use ndarray::{Array1, Array2, Array4, ArrayD, Dimension};
use orthant::attention::{
    Activation, ActivationUnitOptions, ActivationUnitWeights, AttentionElement, ElaWeights, HiddenLayer,
    InteractingOptions, InteractingWeights, Options, attention, attention_backward, efficient_local_attention,
    interacting_layer, local_activation_unit, merge_attention,
};
use orthant::hamming::{Codes, Index, Mask, Precision, SearchOptions};
use orthant::kernels::{self, SignRule, Trace};
use orthant::kv::{AttendOptions, Basis, CacheOptions, ExactType, Frame, KvCache, LatentBits, Projections, Rope};
use orthant::vmf::Vmf;
use orthant::{Device, DoubleSingle, Element, Tensor};

/// How many f64 a value of a buffer is, and how its words are read.
#[derive(Clone, Copy, PartialEq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    F32,
    F16,
    U32,
    U16,
    Pairs,
}

/// What was read, and how far it may be off elsewhere.
#[derive(serde::Serialize)]
struct Output {
    kind: Kind,
    expected: Vec<f64>,
    tolerance: Vec<f64>,
}

/// A trace with what its last reads must give.
#[derive(serde::Serialize)]
struct Run {
    name: &'static str,
    trace: Trace,
    outputs: Vec<Output>,
}

trait Read: Element {
    const KIND: Kind;
    fn wide(self) -> f64;
}

macro_rules! read {
    ($($element:ty, $kind:ident, $wide:expr;)*) => {$(
        impl Read for $element {
            const KIND: Kind = Kind::$kind;
            fn wide(self) -> f64 {
                $wide(self)
            }
        }
    )*};
}
read! { f32, F32, f64::from; f16, F16, f64::from; u32, U32, f64::from; u16, U16, f64::from; DoubleSingle, Pairs, DoubleSingle::to_f64; }

/// Elements equal in every bit.
fn exact<T: Read, D: Dimension>(tensor: &Tensor<T, D>) -> Result<Output> {
    within(tensor, |_, _| 0.0)
}

/// Elements within `tolerance(index, value)`.
fn within<T: Read, D: Dimension>(tensor: &Tensor<T, D>, tolerance: impl Fn(usize, f64) -> f64) -> Result<Output> {
    let expected: Vec<f64> = tensor.to_array()?.iter().map(|&value| value.wide()).collect();
    let tolerance = expected.iter().enumerate().map(|(at, &value)| tolerance(at, value)).collect();
    Ok(Output { kind: T::KIND, expected, tolerance })
}

/// Elements within `bound` of the largest of their row of `width`.
fn by_rows<T: Read, D: Dimension>(tensor: &Tensor<T, D>, width: usize, bound: f64) -> Result<Output> {
    let values: Vec<f64> = tensor.to_array()?.iter().map(|&value| value.wide()).collect();
    let largest = values.chunks(width).map(|row| row.iter().fold(0.0f64, |most, value| most.max(value.abs())));
    let tolerance = largest.flat_map(|most| std::iter::repeat_n(bound * most + 1e-30, width)).collect();
    Ok(Output { kind: T::KIND, expected: values, tolerance })
}

type Work = fn(&Device) -> Result<Vec<Output>>;

/// `work` on `device`, traced, beside `work` on the CPU: the two must agree here already.
fn run(name: &'static str, device: &Device, work: Work) -> Result<Run> {
    let outputs = work(&Device::cpu())?;
    let (found, trace) = device.as_gpu().context("a GPU")?.traced(|| Ok(work(device)))?;
    let found = found?;
    ensure!(found.len() == outputs.len() && !trace.shaders().is_empty(), "{name}: {} outputs", found.len());
    let numbers = outputs.iter().flat_map(|output| &output.expected);
    ensure!(numbers.clone().any(|value| *value != 0.0), "{name}: nothing but zeros is expected");
    for (found, output) in found.iter().zip(&outputs) {
        ensure!(output.tolerance.len() == output.expected.len() && found.kind == output.kind, "{name}: lengths");
        common::compare(name, &found.expected, &output.expected, |at, _| output.tolerance[at])?;
    }
    Ok(Run { name, trace, outputs })
}

fn array(shape: &[usize], seed: u32) -> ArrayD<f32> {
    let count = shape.iter().product();
    ArrayD::from_shape_vec(shape, noise(count, seed)).expect("as many values")
}

fn matrix(rows: usize, columns: usize, seed: u32) -> Array2<f32> {
    array(&[rows, columns], seed).into_dimensionality().expect("two axes")
}

fn heads(shape: [usize; 4], seed: u32) -> Array4<f32> {
    array(&shape, seed).into_dimensionality().expect("four axes")
}

fn table(name: &str, every: usize) -> Vec<Vec<f64>> {
    let path = format!("{}/tests/data/{name}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let row = |line: &str| line.split(',').map(|field| field.parse().unwrap_or(f64::NAN)).collect();
    text.lines().skip(1).step_by(every).map(row).collect()
}

/// The nine functions of `T` on rows of the golden tables; `bound` in the scales of the README.
fn bessel<T: Read + orthant::Real>(device: &Device, every: usize, of: fn(f64) -> T, bound: f64) -> Result<Vec<Output>> {
    let logs = table("golden_bessel.csv", every);
    let densities: Vec<Vec<f64>> =
        table("golden_vmf.csv", every).iter().map(|r| vec![0.5 * r[0] - 1.0, r[2]]).collect();
    let column =
        |rows: &[Vec<f64>], at: usize| device.tensor(&rows.iter().map(|row| of(row[at])).collect::<Array1<T>>());
    let (order, x) = (column(&logs, 0)?, column(&logs, 1)?);
    let scales = |rows: &[Vec<f64>]| rows.iter().map(|row| row[0].hypot(row[1])).collect::<Vec<f64>>();
    let (of_logs, of_densities) = (scales(&logs), scales(&densities));
    // Pairs have no denormals below the smallest normal f32.
    let least = f64::from(f32::MIN_POSITIVE);
    let hypot = |at: usize, value: f64| (bound * value.abs().max(of_logs[at])).max(least);
    let relative = |_: usize, value: f64| (bound * value.abs()).max(least);
    let one = |_: usize, value: f64| bound * value.abs().max(1.0);
    let kappas = (column(&densities, 0)?, column(&densities, 1)?);
    Ok(vec![
        within(&kernels::log_iv(&order, &x)?, hypot)?,
        within(&kernels::log_kv(&order, &x)?, hypot)?,
        within(&kernels::iv_ratio(&order, &x)?, relative)?,
        within(&kernels::iv_ratio_complement(&order, &x)?, relative)?,
        within(&kernels::log_iv_dx(&order, &x)?, relative)?,
        within(&kernels::log_kv_dx(&order, &x)?, relative)?,
        within(&kernels::log_iv_dv(&order, &x)?, one)?,
        within(&kernels::log_kv_dv(&order, &x)?, one)?,
        within(&kernels::vmf_log_normalizer(&kappas.0, &kappas.1)?, |at, value| {
            bound * value.abs().max(of_densities[at])
        })?,
    ])
}

fn kappa<T: Read + orthant::Real>(device: &Device, of: fn(f64) -> T, bound: f64) -> Result<Vec<Output>> {
    let rows = table("golden_vmf.csv", 3);
    let column =
        |of_row: &dyn Fn(&[f64]) -> f64| device.tensor(&rows.iter().map(|row| of(of_row(row))).collect::<Array1<T>>());
    let (d, length, complement) = (column(&|row| row[0])?, column(&|row| row[1])?, column(&|row| 1.0 - row[1])?);
    Ok(vec![within(&kernels::vmf_kappa(&d, &length, &complement)?, |_, value| bound * value)?])
}

/// Values of either sign and many sizes, the sums of blocks of 256 rows as pairs: on the host they are exact in f64 to 1e-13 of their magnitudes.
fn extended_sums(device: &Device) -> Result<Vec<Output>> {
    let (rows, columns) = (3000, 3);
    let value = |i: usize| ((i * 7919 % 10_007) as f32 - 5000.0) * 2f32.powi((i % 13) as i32 - 20);
    let values = Array2::from_shape_fn((rows, columns), |(i, j)| value(i * columns + j));
    kernels::column_sums_extended(&device.tensor(&values)?)?;
    let blocks = rows.div_ceil(256);
    let mut exact = vec![(0.0, 0.0); blocks * columns];
    for ((i, j), value) in values.indexed_iter() {
        let (sum, size) = &mut exact[i / 256 * columns + j];
        *sum += f64::from(*value);
        *size += f64::from(value.abs());
    }
    let (expected, sizes): (Vec<_>, Vec<_>) = exact.into_iter().unzip();
    Ok(vec![Output {
        kind: Kind::Pairs,
        expected,
        tolerance: sizes.into_iter().map(|size: f64| 1e-13 * size).collect(),
    }])
}

/// (128 + k/128 + log2 k) u sum |a b| of each side.
fn products(device: &Device) -> Result<Vec<Output>> {
    let mut outputs = Vec::new();
    for (m, n, k, transposed) in
        [(70, 65, 33, (false, false)), (65, 130, 70, (true, false)), (1, 9, 300, (false, true))]
    {
        let (a, b) = (matrix(m, k, 1), matrix(k, n, 2));
        let bound = 2.0 * 140.0 * 2f64.powi(-24);
        let sizes = a.mapv(f32::abs).dot(&b.mapv(f32::abs));
        let sizes: Vec<f64> = sizes.iter().map(|&size| bound * f64::from(size)).collect();
        let on = |matrix: &Array2<f32>, turned: bool| {
            if turned { device.tensor(&matrix.t()) } else { device.tensor(matrix) }
        };
        let product = kernels::matmul(&on(&a, transposed.0)?, &on(&b, transposed.1)?, transposed.0, transposed.1)?;
        outputs.push(within(&product, |at, _| sizes[at])?);
    }
    let (a, b) = (matrix(33, 40, 3).mapv(f16::from_f32), matrix(40, 20, 4).mapv(f16::from_f32));
    outputs.push(within(&kernels::matmul(&device.tensor(&a)?, &device.tensor(&b)?, false, false)?, |_, _| 1e-4)?);
    Ok(outputs)
}

fn rows(device: &Device) -> Result<Vec<Output>> {
    let eps = f64::from(f32::EPSILON);
    let x = matrix(700, 37, 5);
    let (unit, norms) = kernels::normalize_rows(&device.tensor(&x)?, None)?;
    let half = x.mapv(f16::from_f32);
    let (unit_half, norms_half) = kernels::normalize_rows(&device.tensor(&half)?, None)?;
    // Elements of units below 1, norms: 2 eps + eps log2 37 on either side.
    let bound = 16.0 * eps;
    Ok(vec![
        within(&unit, |_, _| bound)?,
        within(&norms, |_, value| bound * value)?,
        within(&unit_half, |_, _| bound)?,
        within(&norms_half, |_, value| bound * value)?,
        // 32 ceil(log_256 700) u sum |x|, some 350 a column.
        within(&kernels::column_sums(&device.tensor(&x)?)?, |_, _| 2.0 * 64.0 * 0.5 * eps * 350.0)?,
    ])
}

fn posterior(device: &Device) -> Result<Vec<Output>> {
    let cosines = matrix(300, 70, 6);
    let kappa: Vec<f32> = noise(70, 7).iter().map(|x| 40.0 * (x + 1.01)).collect();
    let bias = noise(70, 8);
    let weights = device.tensor(&Array1::from_shape_fn(300, |i| (i % 4) as f32))?;
    // Terms of up to 80: 2 eps of |bias| + 2 kappa on either side, and a share as much.
    let term = 4.0 * f64::from(f32::EPSILON) * 162.0;
    let soft = kernels::mixture_posterior(&device.tensor(&cosines)?, &kappa, &bias, 3.0, Some(&weights), false)?;
    let summary = kernels::mixture_summary(&soft)?;
    Ok(vec![
        within(&soft.shares, |_, value| 4.0 * term * value + 1e-30)?,
        exact(&soft.labels)?,
        within(&soft.scores, |_, value| term + f64::from(f32::EPSILON) * value.abs())?,
        within(&summary.sums, |_, value| 4.0 * term * value.abs().max(450.0))?,
    ])
}

fn attended<T: Read + AttentionElement>(device: &Device, bound: f64) -> Result<Vec<Output>> {
    let of = |shape, seed| heads(shape, seed).mapv(T::narrow);
    let mut outputs = Vec::new();
    let mut call = |q: [usize; 4], kv: [usize; 4], options: &Options| -> Result<()> {
        let (q, k, v) = (device.tensor(&of(q, 1))?, device.tensor(&of(kv, 2))?, device.tensor(&of(kv, 3))?);
        let result = attention(&q, &k, &v, options)?;
        outputs.push(by_rows(&result.output, kv[3], bound)?);
        let lse = result.lse.context("a log-sum-exp")?;
        outputs.push(within(&lse, |_, value| 2e-5 * value.abs().max(1.0))?);
        Ok(())
    };
    let options = Options::new().lse();
    call([2, 4, 33, 20], [2, 2, 70, 20], &options.clone().causal())?;
    let bias = device.tensor(&heads([1, 4, 9, 40], 4))?;
    let all = options.clone().window(25).softcap(5.0).alibi(vec![0.1, 0.2, 0.3, 0.4]).sinks(vec![0.5; 4]).bias(bias);
    call([1, 4, 9, 80], [1, 1, 40, 80], &all)?;
    call([1, 8, 1, 64], [1, 2, 600, 64], &options.clone().splits(3))?;
    call([1, 2, 7, 128], [1, 2, 40, 128], &options.ragged(vec![0, 3, 7], vec![0, 30, 40]))?;
    Ok(outputs)
}

/// Both halves of the keys, then joined.
fn merged(device: &Device) -> Result<Vec<Output>> {
    let q = device.tensor(&heads([1, 2, 5, 16], 1))?;
    let part = |seed| -> Result<_> {
        let (k, v) = (device.tensor(&heads([1, 2, 30, 16], seed))?, device.tensor(&heads([1, 2, 30, 16], seed + 1))?);
        Ok(attention(&q, &k, &v, &Options::new().lse())?)
    };
    let joined = merge_attention(&[part(2)?, part(4)?])?;
    Ok(vec![by_rows(&joined.output, 16, 2e-5)?])
}

/// Sums of up to 80 terms on either side; elements that cancel are measured by the largest of their tensor.
fn gradients(device: &Device) -> Result<Vec<Output>> {
    let (shape, keys) = ([1, 4, 33, 40], [1, 2, 65, 40]);
    let (q, k, v) =
        (device.tensor(&heads(shape, 1))?, device.tensor(&heads(keys, 2))?, device.tensor(&heads(keys, 3))?);
    let bias = device.tensor(&heads([1, 1, 33, 65], 5))?;
    let options = Options::new().lse().causal().bias(bias).sinks(vec![0.5, -0.5, 0.0, 1.0]);
    let output = attention(&q, &k, &v, &options)?;
    let gradients = attention_backward(&q, &k, &v, &output, &device.tensor(&heads(shape, 4))?, &options)?;
    let whole = |tensor: &Tensor<f32, _>| by_rows(tensor, tensor.len(), 3e-5);
    let lse = output.lse.context("a log-sum-exp")?;
    let (bias, sinks) = (gradients.bias.context("of the bias")?, gradients.sinks.context("of the sinks")?);
    Ok(vec![
        by_rows(&output.output, 40, 2e-5)?,
        within(&lse, |_, value| 2e-5 * value.abs().max(1.0))?,
        whole(&gradients.q)?,
        whole(&gradients.k)?,
        whole(&gradients.v)?,
        whole(&bias)?,
        by_rows(&sinks, sinks.len(), 3e-5)?,
    ])
}

fn layers(device: &Device) -> Result<Vec<Output>> {
    let of = |seed| matrix(9, 24, seed) * 0.5;
    let (q, k, v, r) = (of(1), of(2), of(3), of(4));
    let weights = InteractingWeights::new(device, &q.view(), &k.view(), &v.view(), Some(&r.view()), 2)?;
    let x = array(&[20, 7, 9], 5).into_dimensionality()?;
    let interacted = interacting_layer(&device.tensor(&x)?, &weights, &InteractingOptions::new().maps())?;
    let maps = interacted.maps.context("maps")?;

    let hidden = vec![
        HiddenLayer {
            weights: matrix(44, 20, 6) * 0.15,
            bias: Array1::from(noise(20, 7)),
            activation: Activation::Sigmoid,
        },
        HiddenLayer {
            weights: matrix(20, 5, 8) * 0.2,
            bias: Array1::from(noise(5, 9)),
            activation: Activation::Prelu { alpha: Array1::from(noise(5, 10)) },
        },
    ];
    let unit = ActivationUnitWeights::new(device, &hidden, &Array1::from(noise(5, 11)).view(), 0.1)?;
    let (query, history) = (device.tensor(&matrix(4, 11, 12))?, device.tensor(&matrix(60, 11, 13))?);
    let pooled =
        local_activation_unit(&query, &history, &[0, 17, 17, 40, 60], &unit, &ActivationUnitOptions::new().weights())?;

    let (convolution, ones) = (array(&[16, 4, 5], 14).into_dimensionality()?, Array1::ones(16));
    let ela = ElaWeights::new(device, &convolution.view(), None, &ones.view(), &ones.view(), 4)?;
    let gated = efficient_local_attention(&device.tensor(&heads([2, 16, 9, 13], 15))?, &ela)?;
    Ok(vec![
        by_rows(&interacted.output, 24, 2e-5)?,
        by_rows(&maps, 7, 2e-5)?,
        by_rows(&pooled.output, 11, 1e-4)?,
        by_rows(&gated, 9 * 13, 2e-5)?,
    ])
}

/// 300 tokens appended in two pieces, attended to by five queries, cut and gone on with; latents of 4 bits have the words of the CPU where they are not at
/// a border, and those of 32 bits differ by roundings of sums.
fn cached(device: &Device) -> Result<Vec<Output>> {
    let (d, rank, heads_kv) = (24, 9, 2);
    let mut outputs = Vec::new();
    for (bits, bound) in [(LatentBits::ThirtyTwo, 1e-5), (LatentBits::Sixteen, 2e-3), (LatentBits::Four, 2e-3)] {
        let basis = |seed| {
            let mut up = matrix(rank, d, seed);
            up.rows_mut().into_iter().for_each(|mut row| row /= row.dot(&row).sqrt());
            Basis::new(1, Array1::from(noise(d, seed + 1)) * 0.2, up.t().as_standard_layout().into_owned(), up)
        };
        let sets = |seed| (0..heads_kv as u32).map(|head| basis(seed + 10 * head)).collect::<orthant::Result<Vec<_>>>();
        let rope = Rope::new(orthant::kv::RopeLayout::Halves, d, 1e4)?;
        let projections = Projections::new(heads_kv, d, rope, Frame::Block(64))?.with_layer(0, sets(1)?, sets(100)?)?;
        let options = CacheOptions::new().bits(bits, bits).exact(ExactType::Single).window(32).sinks(4);
        let mut cache = KvCache::new(device, &projections, &options)?;
        let sequence = [cache.insert()?];
        for (tokens, seed) in [(190, 2), (110, 4)] {
            let rows = |seed| device.tensor(&heads([1, 2, tokens, d], seed));
            cache.append(0, &sequence, &rows(seed)?, &rows(seed + 1)?)?;
        }
        let q = device.tensor(&heads([1, 4, 5, d], 9))?;
        let attended = cache.attend(0, &sequence, &q, &AttendOptions::new().causal())?;
        outputs.push(by_rows(&attended.output, d, bound)?);
        // Cut into the exact rows, some of which are rebuilt; then on.
        cache.truncate(sequence[0], 280)?;
        let rows = |seed| device.tensor(&heads([1, 2, 20, d], seed));
        cache.append(0, &sequence, &rows(6)?, &rows(7)?)?;
        let attended = cache.attend(0, &sequence, &q, &AttendOptions::new().causal())?;
        outputs.push(by_rows(&attended.output, d, 2.0 * bound)?);
    }
    Ok(outputs)
}

/// Distances are whole numbers and ties go to the lowest id.
fn searched(device: &Device) -> Result<Vec<Output>> {
    let words = |rows: usize, columns: usize, seed: u32| {
        // Few values, so that many codes are equal.
        Array2::from_shape_vec(
            (rows, columns),
            noise(rows * columns, seed).iter().map(|x| (x * 3.0) as i32 as u32).collect(),
        )
    };
    let mut outputs = Vec::new();
    for (columns, rows, k) in [(1, 5000, 10), (2, 700, 200), (8, 900, 33), (40, 300, 7)] {
        let codes =
            |rows, seed| -> Result<_> { Ok(Codes::new(device.tensor(&words(rows, columns, seed)?)?, 32 * columns)?) };
        let mut index = Index::new(device, 32 * columns)?;
        index.add(&codes(rows, 1)?)?;
        let queries = codes(6, 2)?;
        let found = index.search(&queries, &SearchOptions::new(k))?;
        outputs.push(exact(&found.ids)?);
        outputs.push(exact(&found.distances)?);
    }
    let codes = |rows, seed| -> Result<_> { Ok(Codes::new(device.tensor(&words(rows, 3, seed)?)?, 96)?) };
    let (base, queries) = (codes(301, 3)?, codes(9, 4)?);
    outputs.push(exact(&kernels::hamming(&queries, &base)?)?);
    let labels = |rows: usize| device.tensor(&Array1::from_shape_fn(rows, |i| (i % 5) as u32));
    let (all, same) = kernels::hamming_histograms(&base, &labels(301)?, &queries, &labels(9)?)?;
    outputs.extend([exact(&all)?, exact(&same)?]);
    let mut index = Index::new(device, 96)?;
    index.add(&base)?;
    let within = index.within(&queries, 30, None)?;
    outputs.extend([exact(&within.ids)?, exact(&within.distances)?]);
    let floats = device.tensor(&matrix(65, 70, 5))?;
    let thresholds = device.tensor(&Array1::from(noise(70, 6)))?;
    outputs.push(exact(&kernels::sign_pack(&floats, Some(&thresholds), SignRule::AtLeast)?)?);
    Ok(outputs)
}

/// Repeatable codes of whole words.
fn codes_of(device: &Device, rows: usize, bits: usize, seed: u32) -> Result<Codes> {
    let words = noise(rows * bits / 32, seed).iter().map(|x| (f64::from(*x) * 2e9) as i64 as u32).collect();
    Ok(Codes::new(device.tensor(&Array2::from_shape_vec((rows, bits / 32), words)?)?, bits)?)
}

/// Distances in f32, whose bits are the CPU's, with a mask and more neighbours asked for than it leaves.
fn rated(device: &Device) -> Result<Vec<Output>> {
    let mut outputs = Vec::new();
    for (rows, bits, k, masked) in [(300, 64, 12, false), (700, 128, 280, true)] {
        let mut index = Index::new(device, bits)?;
        index.add(&codes_of(device, rows, bits, 1)?)?;
        let options = SearchOptions::new(k);
        let options = if masked { options.allowed(&Mask::new((0..rows).map(|id| id % 3 == 1))) } else { options };
        let floats = device.tensor(&matrix(3, bits, 2))?;
        let found = [
            index.search_jaccard(&codes_of(device, 3, bits, 3)?, &options)?,
            index.search_asymmetric(&floats, Precision::Int4, &options)?,
            index.search_asymmetric(&floats, Precision::Float, &options)?,
        ];
        for found in found {
            outputs.extend([exact(&found.ids)?, exact(&found.distances)?]);
        }
    }
    Ok(outputs)
}

/// More neighbours than lists hold (histograms, limits, ties in order), a single query, and an index with one code left.
fn many(device: &Device) -> Result<Vec<Output>> {
    let mut outputs = Vec::new();
    for (rows, queries, bits, k) in [(3000, 3, 64, 700), (2500, 1, 64, 10), (40, 2, 32, 60)] {
        let mut index = Index::new(device, bits)?;
        index.add(&codes_of(device, rows, bits, 5)?)?;
        if rows == 40 {
            index.remove(&(0..39).collect::<Vec<_>>())?;
        }
        let found = index.search(&codes_of(device, queries, bits, 6)?, &SearchOptions::new(k))?;
        outputs.extend([exact(&found.ids)?, exact(&found.distances)?]);
    }
    Ok(outputs)
}

/// What f32 makes of values, in pairs; and log-densities of rows in pairs.
fn in_pairs(device: &Device) -> Result<Vec<Output>> {
    let wide = kernels::widen(&device.tensor(&Array1::from(noise(300, 3)))?)?.to_f64_array()?.to_vec();
    let vmf = Vmf::new(Array1::from_shape_fn(40, |i| 1.0 + i as f64 / 40.0).view(), 300.0)?;
    let rows = device.tensor(&matrix(70, 40, 4).mapv(|value| 0.3 * value + 0.5))?;
    let expected = vmf.log_density_in(&rows, orthant::Precision::Extended)?.to_vec();
    let size = expected.iter().fold(300.0f64, |most, value| most.max(value.abs()));
    let tolerance = vec![1e-13 * size; expected.len()];
    Ok(vec![
        Output { kind: Kind::Pairs, tolerance: vec![0.0; wide.len()], expected: wide },
        Output { kind: Kind::Pairs, expected, tolerance },
    ])
}

/// By name.
const RUNS: [(&str, Work); 17] = [
    ("bessel_f32", |device| bessel::<f32>(device, 40, |x| x as f32, 32.0 * f64::from(f32::EPSILON))),
    // 28 roundings of 2^-48.
    ("bessel_pairs", |device| bessel::<DoubleSingle>(device, 10, DoubleSingle::new, 1e-13)),
    ("kappa_f32", |device| kappa::<f32>(device, |x| x as f32, 64.0 * f64::from(f32::EPSILON))),
    ("kappa_pairs", |device| kappa::<DoubleSingle>(device, DoubleSingle::new, 1e-13)),
    ("sums_extended", extended_sums),
    ("matmul", products),
    ("rows", rows),
    ("posterior", posterior),
    ("attention_f32", |device| attended::<f32>(device, 2e-5)),
    ("attention_f16", |device| attended::<f16>(device, 2e-3)),
    ("attention_merge", merged),
    ("attention_backward", gradients),
    ("layers", layers),
    ("hamming", searched),
    ("hamming_rated", rated),
    ("hamming_many", many),
    ("in_pairs", in_pairs),
];

/// The first adapter with what a browser's device has: no f64, so pairs are pairs of f32.
fn browser_like() -> Result<Device> {
    let adapters = Device::adapters();
    let adapter = adapters.first().context("an adapter is needed to write the steps down")?;
    Ok(Device::gpu_as_in_browsers(adapter.index)?)
}

/// Writes every run to `$ORTHANT_WRITE_SHADERS/runs`, for `.ci/tint.mjs` to take its steps with the variants' own texts.
#[test]
#[ignore = "writes files and needs an adapter: CI runs it for Tint"]
fn runs_are_written_for_other_compilers() -> Result<()> {
    let folder = std::env::var_os("ORTHANT_WRITE_SHADERS").context("ORTHANT_WRITE_SHADERS names a folder")?;
    let folder = PathBuf::from(folder).join("runs");
    std::fs::create_dir_all(&folder)?;
    let variants = kernels::variants();
    let device = browser_like()?;
    let mut kernels = BTreeSet::new();
    for (name, work) in RUNS.into_iter().chain([("cache", cached as Work)]) {
        let run = run(name, &device, work).with_context(|| name)?;
        for shader in run.trace.shaders() {
            // What runs is what the other tests read and Tint compiles.
            let variant = variants.iter().find(|variant| variant.name == shader);
            let variant = variant.with_context(|| format!("{name}: {shader} is not in kernels::variants()"))?;
            ensure!(variant.needs == kernels::Needs::NONE, "{name}: {shader} needs {:?}", variant.needs);
            kernels.insert(variant.kernel);
        }
        serde_json::to_writer(std::fs::File::create(folder.join(format!("{name}.json")))?, &run)?;
    }
    println!("{} kernels: {kernels:?}", kernels.len());
    // All that a browser can run but for what only measures, and what only larger data need.
    let others: BTreeSet<_> = variants
        .iter()
        .filter(|variant| variant.needs == kernels::Needs::NONE && !kernels.contains(variant.kernel))
        .map(|variant| variant.kernel)
        .collect();
    println!("not among them: {others:?}");
    Ok(())
}
