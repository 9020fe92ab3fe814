//! The jobs of a soak: random shapes and values, on the adapter and on the CPU, compared within the parity tests' tolerances.

use anyhow::{Context, Result, ensure};
use half::f16;
use ndarray::{Array, Array1, Array2, Array4, Axis, Dimension, Slice};
use orthant::attention::{Options, attention, merge_attention};
use orthant::hamming::{Codes, Index, Mask, SearchOptions};
use orthant::knn::{self, Metric};
use orthant::kv::{
    AttendOptions, Basis, CacheOptions, ExactType, Frame, KvCache, LatentBits, Projections, Rope, RopeLayout,
};
use orthant::vmf::{MixtureOptions, Vmf, VmfMixture};
use orthant::{Device, DoubleSingle, Element, Error, Tensor, kernels};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use crate::common::attention::{Setup, forward, row_error};
use crate::common::{attention_backward, compare};

const EPS: f64 = f32::EPSILON as f64;

/// What jobs share.
pub struct Soak {
    pub device: Device,
    pub random: ChaCha8Rng,
    /// The same cache here and on the CPU.
    pub caches: Option<[KvCache; 2]>,
    /// To the device and back.
    pub bytes: u64,
}

type Job = fn(&mut Soak) -> Result<()>;

pub const JOBS: [(&str, Job); 17] = [
    ("bessel", bessel),
    ("double-single", double_single),
    ("kappa", kappa),
    ("matmul", matmul),
    ("column sums", column_sums),
    ("normalize", normalize),
    ("posterior", posterior),
    ("sign pack", sign_pack),
    ("vmf fit", vmf_fit),
    ("mixture fit", mixture_fit),
    ("attention", dense),
    ("backward", backward),
    ("merge", merge),
    ("kv", cache),
    ("kv", cache),
    ("hamming", hamming),
    ("knn", neighbours),
];

impl Soak {
    fn up<T: Element, D: Dimension>(&mut self, array: &Array<T, D>) -> orthant::Result<Tensor<T, D>> {
        self.bytes += (array.len() * size_of::<T>()) as u64;
        self.device.tensor(array)
    }

    fn down<T: Element, D: Dimension>(&mut self, tensor: &Tensor<T, D>) -> orthant::Result<Array<T, D>> {
        self.bytes += (tensor.len() * size_of::<T>()) as u64;
        tensor.to_array()
    }

    fn size(&mut self, most: usize) -> usize {
        // As many small ones as large ones.
        let largest = (most as f64).powf(self.random.random_range(0.0..1.0)) as usize;
        self.random.random_range(1..=largest.max(1))
    }

    fn noise(&mut self, rows: usize, columns: usize) -> Array2<f32> {
        Array2::from_shape_simple_fn((rows, columns), || self.random.random_range(-1.0f32..1.0))
    }

    fn four(&mut self, shape: [usize; 4]) -> Array4<f32> {
        Array4::from_shape_simple_fn(shape, || self.random.random_range(-1.0f32..1.0))
    }
}

fn wide<'a>(values: impl IntoIterator<Item = &'a f32>) -> Vec<f64> {
    values.into_iter().map(|value| f64::from(*value)).collect()
}

fn host<T: Element, D: Dimension>(array: &Array<T, D>) -> orthant::Result<Tensor<T, D>> {
    Device::cpu().tensor(array)
}

type Vector = Tensor<f32, ndarray::Ix1>;
type Call = fn(&Vector, &Vector) -> orthant::Result<Vector>;
type Scale = fn(f64, f64) -> f64;

fn bessel(soak: &mut Soak) -> Result<()> {
    let functions: [(Call, Scale); 8] = [
        (kernels::log_iv, f64::hypot),
        (kernels::log_kv, f64::hypot),
        (kernels::iv_ratio, |_, _| 0.0),
        (kernels::iv_ratio_complement, |_, _| 0.0),
        (kernels::log_iv_dx, |_, _| 0.0),
        (kernels::log_iv_dv, |_, _| 1.0),
        (kernels::log_kv_dv, |_, _| 1.0),
        (kernels::vmf_log_normalizer, f64::hypot),
    ];
    let (call, scale) = functions[soak.random.random_range(0..functions.len())];
    let length = soak.size(20_000);
    let mut power = |most: f32| 10f32.powf(soak.random.random_range(-2.0..most));
    let order = Array1::from_shape_simple_fn(length, || power(3.0));
    let x = Array1::from_shape_simple_fn(length, || power(4.0));
    let (orders, arguments) = (soak.up(&order)?, soak.up(&x)?);
    let actual = soak.down(&call(&orders, &arguments)?)?;
    let expected = call(&host(&order)?, &host(&x)?)?.to_array()?;
    compare("bessel", &wide(&actual), &wide(&expected), |at, reference| {
        32.0 * EPS * reference.abs().max(scale(order[at].into(), x[at].into())).max(f64::from(f32::MIN_POSITIVE) / EPS)
    })
}

fn double_single(soak: &mut Soak) -> Result<()> {
    let length = soak.size(1000);
    let mut pairs = |most: f64| {
        Array1::from_shape_simple_fn(length, || DoubleSingle::new(10f64.powf(soak.random.random_range(-1.0..most))))
    };
    let (order, x) = (pairs(2.0), pairs(3.0));
    let (orders, arguments) = (soak.up(&order)?, soak.up(&x)?);
    let result = match kernels::log_iv(&orders, &arguments) {
        Err(Error::Unsupported { .. }) => return Ok(()),
        result => soak.down(&result?)?.mapv(DoubleSingle::to_f64).to_vec(),
    };
    let expected = kernels::log_iv(&host(&order)?, &host(&x)?)?.to_f64_array()?.to_vec();
    compare("log_iv of pairs", &result, &expected, |at, reference| {
        1.1e-13 * reference.abs().max(order[at].to_f64().hypot(x[at].to_f64()))
    })
}

fn kappa(soak: &mut Soak) -> Result<()> {
    let length = soak.size(3000);
    let mut r = || soak.random.random_range(0.001f64..0.999);
    let r = Array1::from_shape_simple_fn(length, || r() as f32);
    let (dim, rest) = (Array1::from_elem(length, (2 + soak.size(500)) as f32), r.mapv(|r| 1.0 - r));
    let (dims, lengths, complements) = (soak.up(&dim)?, soak.up(&r)?, soak.up(&rest)?);
    let actual = soak.down(&kernels::vmf_kappa(&dims, &lengths, &complements)?)?;
    let expected = kernels::vmf_kappa(&host(&dim)?, &host(&r)?, &host(&rest)?)?.to_array()?;
    compare("kappa", &wide(&actual), &wide(&expected), |_, kappa| 64.0 * EPS * kappa)
}

fn matmul(soak: &mut Soak) -> Result<()> {
    let (m, n, k) = (soak.size(150), soak.size(150), soak.size(800));
    let (ta, tb, half) = (soak.random.random(), soak.random.random(), soak.random.random_bool(0.3));
    let mut a = if ta { soak.noise(k, m) } else { soak.noise(m, k) };
    let mut b = if tb { soak.noise(n, k) } else { soak.noise(k, n) };
    let (actual, on_host) = if half {
        let (x, y) = (a.mapv(f16::from_f32), b.mapv(f16::from_f32));
        (a, b) = (x.mapv(f16::to_f32), y.mapv(f16::to_f32));
        let (left, right) = (soak.up(&x)?, soak.up(&y)?);
        let actual = soak.down(&kernels::matmul(&left, &right, ta, tb)?)?;
        (actual, kernels::matmul(&host(&x)?, &host(&y)?, ta, tb)?.to_array()?)
    } else {
        let (left, right) = (soak.up(&a)?, soak.up(&b)?);
        let actual = soak.down(&kernels::matmul(&left, &right, ta, tb)?)?;
        (actual, kernels::matmul(&host(&a)?, &host(&b)?, ta, tb)?.to_array()?)
    };
    let (a, b) = (a.mapv(f64::from), b.mapv(f64::from));
    let (a, b) = (if ta { a.reversed_axes() } else { a }, if tb { b.reversed_axes() } else { b });
    let (expected, sizes) = (a.dot(&b), a.mapv(f64::abs).dot(&b.mapv(f64::abs)));
    let (expected, sizes): (Vec<f64>, Vec<f64>) = (expected.iter().copied().collect(), sizes.iter().copied().collect());
    let bound = (129.0 + k as f64 / 128.0 + (k.max(2) as f64).log2()) * EPS / 2.0;
    compare("matmul", &wide(&actual), &expected, |at, _| bound * sizes[at])?;
    compare("matmul on the CPU", &wide(&on_host), &expected, |at, _| bound.max(k as f64 * EPS) * sizes[at])
}

fn column_sums(soak: &mut Soak) -> Result<()> {
    let (rows, columns) = (soak.size(5000), soak.size(40));
    let values = soak.noise(rows, columns).mapv(|value| value.abs() + 0.1);
    let tensor = soak.up(&values)?;
    let actual = soak.down(&kernels::column_sums(&tensor)?)?;
    let on_host = kernels::column_sums(&host(&values)?)?.to_array()?;
    let expected: Vec<f64> = values.columns().into_iter().map(|c| c.iter().map(|&v| f64::from(v)).sum()).collect();
    let passes = (rows.max(2) as f64).log(256.0).ceil();
    compare("column sums", &wide(&actual), &expected, |_, sum| 32.0 * passes * EPS / 2.0 * sum)?;
    compare("column sums on the CPU", &wide(&on_host), &expected, |_, sum| 2.0 * EPS * sum)
}

fn normalize(soak: &mut Soak) -> Result<()> {
    let (rows, columns) = (soak.size(500), soak.size(300));
    let scale = 10f32.powf(soak.random.random_range(-15.0..15.0));
    let values = soak.noise(rows, columns).mapv(|value| (value + value.signum() * 0.01) * scale);
    let tensor = soak.up(&values)?;
    let (unit, norms) = kernels::normalize_rows(&tensor, None)?;
    let (unit, norms) = (soak.down(&unit)?, soak.down(&norms)?);
    let (expected, expected_norms) = kernels::normalize_rows(&host(&values)?, None)?;
    let bound = (4.0 + (columns.max(2) as f64).log2()) * EPS;
    compare("rows", &wide(&unit), &wide(&expected.to_array()?), |_, value| bound * value.abs())?;
    compare("norms", &wide(&norms), &wide(&expected_norms.to_array()?), |_, norm| bound * norm)
}

fn posterior(soak: &mut Soak) -> Result<()> {
    let (rows, k) = (soak.size(1000), soak.size(60));
    let strongest = 10f32.powf(soak.random.random_range(0.0..3.0));
    let cosines = soak.noise(rows, k);
    let kappas: Vec<f32> = (0..k).map(|at| strongest * (1 + at) as f32 / k as f32).collect();
    let bias: Vec<f32> = (0..k).map(|at| -(at as f32) * 0.7).collect();
    let tensor = soak.up(&cosines)?;
    let found = kernels::mixture_posterior(&tensor, &kappas, &bias, 10.0, None, false)?;
    let (shares, scores) = (soak.down(&found.shares)?, soak.down(&found.scores)?);
    let expected = kernels::mixture_posterior(&host(&cosines)?, &kappas, &bias, 10.0, None, false)?;
    // Terms reach |bias| + 2 kappa, each within 2 eps of that, on either side.
    let term = 4.0 * EPS * (f64::from(2.0 * strongest) + 0.7 * k as f64 + 1.0);
    compare("shares", &wide(&shares), &wide(&expected.shares.to_array()?), |_, share| {
        (term + 8.0 * EPS) * share + 1e-37
    })?;
    compare("scores", &wide(&scores), &wide(&expected.scores.to_array()?), |_, score| {
        term + 2.0 * EPS * (10.0 + score.abs())
    })
}

fn sign_pack(soak: &mut Soak) -> Result<()> {
    let (rows, columns) = (soak.size(500), soak.size(300));
    let values = soak.noise(rows, columns).mapv(|value| (4.0 * value).round());
    let tensor = soak.up(&values)?;
    let packed = kernels::sign_pack(&tensor, None, kernels::SignRule::Above)?;
    let expected = kernels::sign_pack(&host(&values)?, None, kernels::SignRule::Above)?.to_array()?;
    ensure!(soak.down(&packed)? == expected, "signs of {rows} by {columns}");
    Ok(())
}

/// Rows about a few directions, of which each is an axis.
fn clusters(soak: &mut Soak, rows: usize, dim: usize, k: usize) -> Array2<f32> {
    let spread = 0.5 / (dim as f32).sqrt();
    Array2::from_shape_fn((rows, dim), |(i, j)| {
        f32::from(u8::from(i % k == j)) + spread * soak.random.random_range(-1.0f32..1.0)
    })
}

fn vmf_fit(soak: &mut Soak) -> Result<()> {
    let (dim, rows) = (3 + soak.size(60), 50 + soak.size(1000));
    let rows = clusters(soak, rows, dim, 1);
    let tensor = soak.up(&rows)?;
    let (actual, expected) = (Vmf::fit(&tensor)?, Vmf::fit(&host(&rows)?)?);
    // Rows round to f32: R is off by up to an eps, and 1 - R, to which kappa is inverse, by as much.
    let bound = 2e-6 + 2.0 * EPS / (1.0 - expected.resultant_length());
    ensure!((actual.kappa() / expected.kappa() - 1.0).abs() < bound, "kappa {} {}", actual.kappa(), expected.kappa());
    ensure!(actual.mean_direction().dot(&expected.mean_direction()) > 1.0 - 1e-10);
    let densities = soak.down(&expected.log_density(&tensor)?)?;
    let others = expected.log_density(&host(&rows)?)?.to_array()?;
    // Cosines within 1e-6, times kappa.
    let bound = 2e-6 * expected.kappa() + 4.0 * EPS * expected.log_normalizer().abs() + 1e-5;
    compare("densities", &wide(&densities), &wide(&others), |_, _| bound)
}

fn mixture_fit(soak: &mut Soak) -> Result<()> {
    let k = 2 + soak.size(3);
    let (dim, rows) = (k + 1 + soak.size(20), 40 * k + soak.size(400));
    let rows = clusters(soak, rows, dim, k);
    let tensor = soak.up(&rows)?;
    let options = MixtureOptions::new(k).seed(soak.random.random()).max_iterations(4).hard(soak.random.random());
    let (actual, expected) = (VmfMixture::fit(&tensor, &options)?, VmfMixture::fit(&host(&rows)?, &options)?);
    let (a, b) = (actual.log_likelihood(), expected.log_likelihood());
    ensure!((a - b).abs() <= 1e-4 * b.abs().max(1.0), "log-likelihood {a} {b}");
    let labels = soak.down(&expected.predict(&tensor)?)?;
    let others = expected.predict(&host(&rows)?)?.to_array()?;
    let same = labels.iter().zip(&others).filter(|(a, b)| a == b).count();
    ensure!(same as f64 >= 0.98 * others.len() as f64, "{same} of {} labels", others.len());
    Ok(())
}

/// Random heads, lengths and options, and the same for the definition.
fn options(soak: &mut Soak) -> Result<(Setup, Options)> {
    let kv_heads = 1 + soak.size(3);
    let group = soak.size(4);
    let (d, d_v, batch) = (soak.size(80), 1 + soak.size(79), soak.size(3));
    let lengths = (soak.size(60), soak.size(150));
    let mut setup = Setup::new(batch, (kv_heads * group, kv_heads), lengths, (d, d_v));
    let mut options = Options::new().lse();
    let heads = setup.q_heads;
    let mut chance = |share: f64| soak.random.random_bool(share);
    if chance(0.4) {
        setup.causal = true;
        options = options.causal();
    }
    if chance(0.3) {
        setup.window = Some(lengths.1.div_ceil(2));
        options = options.window(lengths.1.div_ceil(2));
    }
    if chance(0.3) {
        setup.softcap = Some(5.0);
        options = options.softcap(5.0);
    }
    if chance(0.3) {
        let slopes: Vec<f32> = (0..heads).map(|head| 0.5 / (1 + head) as f32).collect();
        setup.alibi = Some(slopes.clone());
        options = options.alibi(slopes);
    }
    if chance(0.3) {
        let sinks: Vec<f32> = (0..heads).map(|head| head as f32 * 0.3 - 0.5).collect();
        setup.sinks = Some(sinks.clone());
        options = options.sinks(sinks);
    }
    if chance(0.3) {
        options = options.splits(3);
    }
    if chance(0.3) {
        let present: Vec<usize> = (0..batch).map(|number| lengths.1.saturating_sub(number * 7)).collect();
        setup.key_lengths = Some(present.clone());
        options = options.key_lengths(present);
    }
    Ok((setup, options))
}

fn inputs(soak: &mut Soak, setup: &Setup) -> [Array4<f32>; 3] {
    let &Setup { batch, q_heads, kv_heads, q_len, kv_len, d, d_v, .. } = setup;
    [
        soak.four([batch, q_heads, q_len, d]),
        soak.four([batch, kv_heads, kv_len, d]),
        soak.four([batch, kv_heads, kv_len, d_v]),
    ]
}

/// Within 1e-5 of a row's largest element; a row whose terms cancel is measured against a tenth of the values' size.
fn rows_agree(what: &str, actual: &Array4<f32>, expected: &[f64], width: usize) -> Result<()> {
    let (error, row) = row_error(&wide(actual), expected, width, |_| 0.1);
    ensure!(error <= 1e-5, "{what}: row {row} is off by {error:e}");
    Ok(())
}

fn dense(soak: &mut Soak) -> Result<()> {
    let (setup, options) = options(soak)?;
    let [q, k, v] = inputs(soak, &setup);
    let expected = forward(&setup, &wide(&q), &wide(&k), &wide(&v));
    let (queries, keys, values) = (soak.up(&q)?, soak.up(&k)?, soak.up(&v)?);
    let on_gpu = attention(&queries, &keys, &values, &options)?;
    let on_host = attention(&host(&q)?, &host(&k)?, &host(&v)?, &options)?;
    for (what, output) in [("attention", on_gpu), ("attention on the CPU", on_host)] {
        rows_agree(what, &soak.down(&output.output)?, &expected.output, setup.d_v)?;
        let lse = soak.down(&output.lse.context("a log-sum-exp")?)?;
        compare(what, &wide(&lse), &expected.lse, |_, lse| 1e-5 * lse.abs().max(1.0))?;
    }
    Ok(())
}

fn backward(soak: &mut Soak) -> Result<()> {
    let kv_heads = soak.size(3);
    let q_heads = kv_heads * soak.size(3);
    let mut setup = attention_backward::Setup {
        batch: soak.size(2),
        q_heads,
        kv_heads,
        q_len: soak.size(40),
        kv_len: soak.size(60),
        d: soak.size(40),
        d_v: soak.size(40),
        seed: soak.random.random_range(1..1_000_000),
        causal: soak.random.random(),
        ..Default::default()
    };
    if soak.random.random_bool(0.3) {
        setup.softcap = Some(5.0);
    }
    if soak.random.random_bool(0.3) {
        setup.sinks = Some((0..q_heads).map(|head| head as f32 * 0.3 - 0.5).collect());
    }
    setup.check(&soak.device, soak.random.random_bool(0.2), ROUNDINGS)?;
    Ok(())
}

/// As in the parity tests of the backward kernels.
const ROUNDINGS: f64 = 8.0;

fn merge(soak: &mut Soak) -> Result<()> {
    let (heads, q_len, d) = (soak.size(4), soak.size(30), soak.size(64));
    let cuts = [soak.size(50), soak.size(50), soak.size(50)];
    let setup = Setup::new(1, (heads, heads), (q_len, cuts.iter().sum()), (d, d + 1));
    let [q, k, v] = inputs(soak, &setup);
    let expected = forward(&setup, &wide(&q), &wide(&k), &wide(&v));
    let queries = soak.up(&q)?;
    let (mut parts, mut first) = (Vec::new(), 0);
    for count in cuts {
        let part = |x: &Array4<f32>| x.slice_axis(Axis(2), Slice::from(first..first + count)).to_owned();
        let (keys, values) = (soak.up(&part(&k))?, soak.up(&part(&v))?);
        parts.push(attention(&queries, &keys, &values, &Options::new().lse())?);
        first += count;
    }
    let merged = merge_attention(&parts)?;
    rows_agree("merge", &soak.down(&merged.output)?, &expected.output, setup.d_v)?;
    let lse = soak.down(&merged.lse.context("a log-sum-exp")?)?;
    compare("merge", &wide(&lse), &expected.lse, |_, lse| 1e-5 * lse.abs().max(1.0))
}

const HEADS: usize = 2;
const D: usize = 24;

fn new_cache(soak: &mut Soak, device: &Device, seed: u64) -> Result<KvCache> {
    use rand::SeedableRng;
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let (rank, block, layers) =
        (random.random_range(1..=D), [32, 64][random.random_range(0..2)], random.random_range(1..3));
    let rope = Rope::new(RopeLayout::Halves, D, 1e4)?;
    let frame = if random.random() { Frame::Post } else { Frame::Block(block) };
    let mut projections = Projections::new(HEADS, D, rope, frame)?;
    for layer in 0..layers {
        let mut basis = || {
            let mut up = Array2::from_shape_simple_fn((rank, D), || random.random_range(-1.0f32..1.0));
            up.rows_mut().into_iter().for_each(|mut row| row /= row.dot(&row).sqrt());
            let mean = Array1::from_shape_simple_fn(D, || random.random_range(-0.3f32..0.3));
            Basis::new(1, mean, up.t().as_standard_layout().into_owned(), up)
        };
        let keys = (0..HEADS).map(|_| basis()).collect::<orthant::Result<Vec<_>>>()?;
        let values = (0..HEADS).map(|_| basis()).collect::<orthant::Result<Vec<_>>>()?;
        projections = projections.with_layer(layer, keys, values)?;
    }
    soak.bytes += (layers * 4 * rank * D * 4 * HEADS) as u64;
    let window = random.random_range(0..80);
    let options = CacheOptions::new().bits(LatentBits::ThirtyTwo, LatentBits::ThirtyTwo);
    Ok(KvCache::new(device, &projections, &options.exact(ExactType::Single).window(window))?)
}

/// One step of the life of a cache: first here, and on the CPU only if it went well here.
fn cache(soak: &mut Soak) -> Result<()> {
    let mut pair = match soak.caches.take() {
        Some(pair) if soak.random.random_bool(0.97) => pair,
        _ => {
            let (seed, device) = (soak.random.random(), soak.device.clone());
            [new_cache(soak, &device, seed)?, new_cache(soak, &Device::cpu(), seed)?]
        }
    };
    let result = life(soak, &mut pair);
    // What an error has left is as before, so it goes on.
    soak.caches = Some(pair);
    result
}

fn life(soak: &mut Soak, [gpu, cpu]: &mut [KvCache; 2]) -> Result<()> {
    let sequences: Vec<_> = gpu.sequences().collect();
    ensure!(sequences == cpu.sequences().collect::<Vec<_>>() && gpu.bytes() == cpu.bytes(), "caches differ");
    let layers = 1 + usize::from(sequences.first().is_some_and(|one| gpu.len(1, *one).is_ok()));
    if sequences.is_empty() {
        gpu.insert()?;
        cpu.insert()?;
        return Ok(());
    }
    let one = sequences[soak.random.random_range(0..sequences.len())];
    let layer = soak.random.random_range(0..layers);
    match soak.random.random_range(0..10) {
        0 if sequences.len() < 4 => {
            gpu.insert()?;
            cpu.insert()?;
        }
        1 if sequences.len() < 4 => {
            gpu.fork(one)?;
            cpu.fork(one)?;
        }
        2 => {
            gpu.remove(one)?;
            cpu.remove(one)?;
        }
        3 => {
            let len = soak.random.random_range(0..=gpu.len(layer, one)?);
            gpu.truncate(one, len)?;
            cpu.truncate(one, len)?;
        }
        _ if gpu.len(layer, one)? < 1500 => {
            let shape = [1, HEADS, soak.size(200), D];
            let (k, v) = (soak.four(shape), soak.four(shape));
            let (keys, values) = (soak.up(&k)?, soak.up(&v)?);
            match soak.random.random() {
                true => gpu.append(layer, &[one], &keys, &values)?,
                false => gpu.append_without_wait(layer, &[one], &keys, &values)?,
            }
            cpu.append(layer, &[one], &host(&k)?, &host(&v)?)?;
        }
        _ => {
            gpu.clear(one)?;
            cpu.clear(one)?;
            return Ok(());
        }
    }
    let sequences: Vec<_> = gpu.sequences().collect();
    if sequences.is_empty() {
        return Ok(());
    }
    let q_len = soak.size(20);
    let q = soak.four([sequences.len(), HEADS * 2, q_len, D]);
    let options = if soak.random.random() { AttendOptions::new().causal().lse() } else { AttendOptions::new().lse() };
    let queries = soak.up(&q)?;
    let actual = gpu.attend(layer, &sequences, &queries, &options)?;
    let expected = cpu.attend(layer, &sequences, &host(&q)?, &options)?;
    // Rows that were rebuilt and packed again lose a rounding each time.
    let expected_rows = wide(&expected.output.to_array()?);
    let (error, row) = row_error(&wide(&soak.down(&actual.output)?), &expected_rows, D, |_| 0.1);
    ensure!(error <= 5e-5, "attend: row {row} is off by {error:e}");
    let lse = soak.down(&actual.lse.context("a log-sum-exp")?)?;
    let expected = expected.lse.context("a log-sum-exp")?.to_array()?;
    compare("attend", &wide(&lse), &wide(&expected), |_, lse| 5e-5 * lse.abs().max(1.0))
}

fn hamming(soak: &mut Soak) -> Result<()> {
    let bits = 8 * soak.size(40);
    let columns = bits.div_ceil(32);
    let last = if bits.is_multiple_of(32) { u32::MAX } else { (1 << (bits % 32)) - 1 };
    let mut words = |count: usize| {
        // Few bits turn over, so that distances tie.
        let mut words = Array2::from_shape_simple_fn((count, columns), || {
            let word: u32 = soak.random.random();
            word & soak.random.random::<u32>() & soak.random.random::<u32>()
        });
        words.column_mut(columns - 1).mapv_inplace(|word| word & last);
        words
    };
    let parts = [words(300), words(700)];
    let queries = words(11);
    let k = soak.size(80);
    let mask = Mask::new((0..1000).map(|id| id % 5 != 2));
    let options = SearchOptions::new(k);
    let options = if soak.random.random() { options.allowed(&mask) } else { options };
    let radius = (bits / 4) as u32;
    let device = soak.device.clone();
    soak.bytes += (1011 * columns * 4) as u64;
    let run = |device: &Device| -> Result<_> {
        let mut index = Index::new(device, bits)?;
        for part in &parts {
            index.add(&Codes::new(device.tensor(part)?, bits)?)?;
        }
        let queries = Codes::new(device.tensor(&queries)?, bits)?;
        let near = index.search(&queries, &options)?;
        let jaccard = index.search_jaccard(&queries, &options)?;
        let within = index.within(&queries, radius, None)?;
        let first = (near.ids.to_array()?, near.distances.to_array()?);
        let second = (jaccard.ids.to_array()?, jaccard.distances.to_array()?);
        Ok((first, second, (within.offsets, within.ids.to_array()?, within.distances.to_array()?)))
    };
    let (actual, expected) = (run(&device)?, run(&Device::cpu())?);
    ensure!(actual == expected, "{bits} bits, k = {k}");
    // The nearest of each query as its definition reads.
    let (ids, distances) = &actual.0;
    let all: Vec<_> = parts.iter().flat_map(|part| part.rows()).collect();
    for (query, row) in queries.rows().into_iter().enumerate() {
        let of = |id: usize| row.iter().zip(all[id]).map(|(a, b)| (a ^ b).count_ones()).sum::<u32>();
        for (id, distance) in ids.row(query).iter().zip(distances.row(query)) {
            ensure!(of(*id as usize) == *distance, "query {query}: the distance of {id}");
        }
    }
    Ok(())
}

fn neighbours(soak: &mut Soak) -> Result<()> {
    let (rows, queries, dim, k) = (soak.size(1000), soak.size(40), soak.size(60), soak.size(30));
    let (base, asked) = (soak.noise(rows, dim), soak.noise(queries, dim));
    let metric = [Metric::L2, Metric::InnerProduct, Metric::Cosine][soak.random.random_range(0..3)];
    let (rows, of) = (soak.up(&base)?, soak.up(&asked)?);
    let found = knn::search(&rows, &of, k, metric)?;
    ensure!(found == knn::search(&host(&base)?, &host(&asked)?, k, metric)?, "{metric:?}");
    Ok(())
}
