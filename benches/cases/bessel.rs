//! The log-Bessel functions: orders 0 to 150 and mixed orders 0 to 1e4, arguments from 0.001 to 1e4 evenly in their logarithm.
//!
//! The published table's points of that range lie among the timed ones. Results are held against the table there, and everywhere against f64 on the
//! CPU, evaluated in the reverse order, so that other points share a vector.
//!
//! Operations are counted by the model of [`operations`]: what the formulas need, however a device computes them.

use anyhow::{Context, Result, ensure};
use ndarray::{Array1, Ix1};
use orthant::{Arithmetic, Device, DoubleSingle, Real, Tensor, kernels};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::harness::{Bench, Case, Effort, Place, Traffic, Work, host, staged};

type Call<T> = fn(&Tensor<T, Ix1>, &Tensor<T, Ix1>) -> orthant::Result<Tensor<T, Ix1>>;

macro_rules! functions {
    ($($name:ident),*) => {
        const NAMES: &[&str] = &[$(stringify!($name)),*];
        fn calls<T: Real>() -> Vec<Call<T>> {
            vec![$(kernels::$name),*]
        }
    };
}
functions!(
    log_iv,
    log_kv,
    iv_ratio,
    iv_ratio_complement,
    log_iv_dx,
    log_kv_dx,
    log_iv_dv,
    log_kv_dv,
    vmf_log_normalizer
);

pub fn run(bench: &mut Bench, places: &[Place]) -> Result<()> {
    let golden = Golden::read()?;
    let (sizes, longest): (&[usize], f64) = match bench.effort {
        Effort::Smoke => (&[500], f64::INFINITY),
        Effort::Quick => (&[10_000, 1_000_000], 0.1),
        Effort::Full => (&[10_000, 1_000_000, 4_000_000], 1.0),
    };
    let pairs = extended(places)?;
    for &largest in &[150.0, 1e4] {
        for (index, name) in NAMES.iter().enumerate() {
            // Seconds a point of the slowest place: a size that would take too long is left out.
            let mut pace: f64 = 0.0;
            for &length in sizes {
                if pace * length as f64 > longest {
                    println!("{name:<20}{length} points are left out: about {:.1} s a call", pace * length as f64);
                    continue;
                }
                let points = Points::new(&golden, length, largest);
                let reference = points.reference(calls::<f64>()[index])?;
                let mut cases = Vec::new();
                let here = |place: &&Place| place.hardware || length <= 10_000;
                for place in places.iter().filter(here) {
                    cases.push(case::<f32>(&points, &golden, &reference, index, place, &place.device, "f32")?);
                    if place.device.as_gpu().is_none_or(|gpu| gpu.has_f64()) {
                        cases.push(case::<f64>(&points, &golden, &reference, index, place, &place.device, "f64")?);
                    }
                }
                for (place, device, dtype) in pairs.iter().filter(|(place, ..)| here(place)) {
                    cases.push(case::<DoubleSingle>(&points, &golden, &reference, index, place, device, dtype)?);
                }
                let hardware: Vec<bool> = cases.iter().map(|case| case.place.hardware).collect();
                let seconds = bench.time("bessel", cases);
                let slowest =
                    seconds.iter().zip(hardware).filter(|(_, hardware)| *hardware).filter_map(|(seconds, _)| *seconds);
                pace = slowest.fold(0.0, f64::max) / length as f64;
            }
        }
    }
    Ok(())
}

/// The GPUs once more for each arithmetic that they can compute pairs in.
fn extended(places: &[Place]) -> Result<Vec<(&Place, Device, &'static str)>> {
    let mut all = Vec::new();
    for place in places {
        let Some(gpu) = place.device.as_gpu() else { continue };
        for (arithmetic, dtype) in [(Arithmetic::DoubleSingle, "double-single"), (Arithmetic::F64, "pairs, in f64")] {
            let device = Device::gpu_at(gpu.info().index)?;
            if device.as_gpu().is_some_and(|gpu| gpu.use_arithmetic(arithmetic).is_ok()) {
                all.push((place, device, dtype));
            }
        }
    }
    Ok(all)
}

/// On `device`, which is that of `place` or the same adapter with another arithmetic for pairs.
fn case<'a, T: Real>(
    points: &'a Points,
    golden: &'a Golden,
    reference: &'a [f64],
    index: usize,
    place: &'a Place,
    device: &'a Device,
    dtype: &'static str,
) -> Result<Case<'a>> {
    let call = calls::<T>()[index];
    let order: Array1<T> = points.order.iter().map(|&v| T::from_f64(v)).collect();
    let x: Array1<T> = points.x.iter().map(|&x| T::from_f64(x)).collect();
    let sample = points.order.iter().zip(&points.x).take(10_000);
    let count = |(&v, &x): (&f64, &f64)| match dtype {
        "double-single" => pair_operations(NAMES[index], v, x),
        _ => operations(NAMES[index], dtype == "f32", v, x),
    };
    let counted: f64 = sample.clone().map(count).sum();
    let length = points.order.len();
    let work = Work {
        kernel: NAMES[index].into(),
        shape: format!("{length}, orders to {}", points.largest),
        dtype,
        flops: counted / sample.len() as f64 * length as f64,
        bytes: (3 * length * size_of::<T>()) as f64,
        traffic: Some(Traffic::Copy),
    };
    let check = move |values: &Array1<T>| points.check::<T>(index, golden, values, reference);
    let tensors = (device.tensor(&order)?, device.tensor(&x)?);
    Ok(match device.as_gpu() {
        None => {
            // The result stays a tensor: only the call is timed.
            let run = move || {
                let (values, times) = host(|| call(&tensors.0, &tensors.1))?;
                Ok((values.to_array()?, times))
            };
            Case::new(work, place, run, check)
        }
        Some(gpu) => {
            let run = move || {
                let upload = || Ok((device.tensor(&order)?, device.tensor(&x)?));
                staged(gpu, upload, |(order, x)| call(order, x), |values| values.to_array())
            };
            Case::new(work, place, run, check)
        }
    })
}

/// Inputs of one size and range of orders, all of them f32 values.
struct Points {
    largest: f64,
    order: Vec<f64>,
    x: Vec<f64>,
    /// (index among the points, row of the table)
    planted: Vec<(usize, usize)>,
}

impl Points {
    fn new(golden: &Golden, length: usize, largest: f64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(length as u64);
        let single = |value: f64| f64::from(value as f32);
        let mut order: Vec<f64> = (0..length).map(|_| single(largest * random.random::<f64>())).collect();
        let mut x: Vec<f64> = (0..length).map(|_| single(10f64.powf(7.0 * random.random::<f64>() - 3.0))).collect();
        let rows: Vec<usize> = (0..golden.rows.len())
            .filter(|&row| golden.rows[row].v <= largest && (1e-3..=1e4).contains(&golden.rows[row].x))
            .collect();
        // A tenth of the points at most, from all over the table.
        let count = rows.len().min(length / 10);
        let planted: Vec<_> = (0..count).map(|i| (i * length / count, rows[i * rows.len() / count])).collect();
        for &(at, row) in &planted {
            (order[at], x[at]) = (golden.rows[row].v, golden.rows[row].x);
        }
        Self { largest, order, x, planted }
    }

    /// f64 on the CPU, evaluated from the last point to the first.
    fn reference(&self, call: Call<f64>) -> Result<Vec<f64>> {
        let reversed = |values: &[f64]| values.iter().rev().copied().collect::<Array1<f64>>();
        let (order, x) = (reversed(&self.order), reversed(&self.x));
        let values = call(&Device::Cpu.tensor_from(order)?, &Device::Cpu.tensor_from(x)?)?.to_array()?;
        Ok(values.iter().rev().copied().collect())
    }

    /// Within 16 eps (pairs: of 1e-13 / 16) of the scaled error of the table, the widest bound that orthant promises, and within twice that of f64 on the CPU.
    fn check<T: Real>(&self, index: usize, golden: &Golden, values: &Array1<T>, reference: &[f64]) -> Result<String> {
        let name = NAMES[index];
        let eps = match T::NAME {
            "f32" => f64::from(f32::EPSILON),
            "f64" => f64::EPSILON,
            // Pairs are promised within 1e-13.
            _ => 1e-13 / 16.0,
        };
        let error = |at: usize, expected: f64| {
            let (v, x) = (self.order[at], self.x[at]);
            let scale = match name {
                "log_iv" | "log_kv" => v.hypot(x),
                // Its terms v ln x and ln I cancel; d/dv passes through 0.
                "vmf_log_normalizer" => v.hypot(x).max(v * x.ln().abs()),
                "log_iv_dv" | "log_kv_dv" => 1.0,
                // Subnormal results are not promised.
                _ => f64::from(f32::MIN_POSITIVE),
            };
            let value = values[at].to_f64();
            if value == expected { 0.0 } else { (value - expected).abs() / expected.abs().max(scale) / eps }
        };
        let mut worst = [0.0f64; 2];
        let table = self.planted.iter().filter_map(|&(at, row)| Some((0, at, golden.rows[row].value(name)?)));
        let everywhere = reference.iter().enumerate().map(|(at, &expected)| (1, at, expected));
        let bounds = [16.0, 32.0];
        let mut rows = 0;
        for (kind, at, expected) in table.chain(everywhere) {
            let error = error(at, expected);
            ensure!(
                error <= bounds[kind],
                "{name}({}, {}) = {}, expected {expected:e}: {error:.1} eps",
                self.order[at],
                self.x[at],
                values[at]
            );
            worst[kind] = worst[kind].max(error);
            rows += usize::from(kind == 0);
        }
        Ok(format!("{rows} table rows {:.1} eps, CPU f64 {:.1} eps", worst[0], worst[1]))
    }
}

/// What one point needs, an addition, multiplication, division or root as one and a fused multiply-add as two; ln and exp count 30.
///
/// From s = hypot(v, x) >= 34 (f64; f32: 17) on the Debye expansion: about 80 for s, asinh and the logs, and for each of its series of K terms
/// K (K + 1) for the polynomials and 2 K for the powers, with K = 13, from s = 93 on 8 (f32: 5). log takes one series, ratio and d/dx two, d/dv three.
/// Below: the power series, 5 a term, as many terms as eps asks for (one sum for ln I and ln C, two for the ratio); for ln K and its derivatives the
/// trapezoidal rule, 64 points (f32: 32) of 75, each with two exponentials; for d/dv ln I about 100 points (an estimate) of 120.
fn operations(name: &str, single: bool, v: f64, x: f64) -> f64 {
    let s = v.hypot(x);
    let first = if single { 17.0 } else { 34.0 };
    if s >= first {
        let terms = match (single, s >= 93.0) {
            (true, _) => 5.0,
            (false, true) => 8.0,
            (false, false) => 13.0,
        };
        let series = match name {
            "log_iv" | "log_kv" | "vmf_log_normalizer" => 1.0,
            "log_iv_dv" | "log_kv_dv" => 3.0,
            _ => 2.0,
        };
        return 80.0 + series * (terms * (terms + 1.0) + 2.0 * terms);
    }
    let terms = {
        let eps = if single { 6e-8 } else { 1e-16 };
        let (mut term, mut sum, mut k) = (1.0, 1.0, 0.0);
        while term > eps * sum && k < 64.0 {
            k += 1.0;
            term *= x * x / (4.0 * k * (v + k));
            sum += term;
        }
        k
    };
    match name {
        "log_iv" | "vmf_log_normalizer" => 120.0 + 5.0 * terms,
        "iv_ratio" | "iv_ratio_complement" | "log_iv_dx" => 20.0 + 10.0 * terms,
        "log_iv_dv" => 120.0 * 100.0,
        _ => 75.0 * if single { 32.0 } else { 64.0 },
    }
}

/// Operations of f32 of one point in double-single, guards left out: as `shaders/shared/bessel_double_single.wgsl` counts them.
fn pair_operations(name: &str, v: f64, x: f64) -> f64 {
    let s = v.hypot(x);
    let steps_to = |reach: f64| ((reach * reach - x * x).max(0.0).sqrt() - v).max(0.0);
    match name {
        "log_iv_dv" if s < 34.0 => 4500.0 + 170.0 * steps_to(34.0),
        "log_iv" | "vmf_log_normalizer" if s < 25.0 && x <= 8.0 => {
            let (mut term, mut sum, mut k) = (1.0, 1.0, 0.0);
            while term > 1e-16 * sum {
                k += 1.0;
                term *= x * x / (4.0 * k * (v + k));
                sum += term;
            }
            1100.0 + 105.0 * k
        }
        "log_iv" | "vmf_log_normalizer" if s < 25.0 => 2900.0 + 95.0 * steps_to(25.0),
        "iv_ratio" | "iv_ratio_complement" | "log_iv_dx" if s < 25.0 => 250.0 + 300.0 * (4.2 * x.sqrt() + 3.0),
        "log_kv" | "log_kv_dx" if s < 25.0 => 1500.0 + 1300.0 * nodes(v, x, s),
        "log_kv_dv" if s < 34.0 => 1500.0 + 1300.0 * nodes(v, x, s),
        "log_iv" | "log_kv" | "vmf_log_normalizer" => 1800.0,
        "log_iv_dv" | "log_kv_dv" => 1900.0,
        _ => 1750.0,
    }
}

/// Nodes of the trapezoid rule in double-single, as `integrate_kv` of the shader spans them.
fn nodes(v: f64, x: f64, s: f64) -> f64 {
    let t0 = (v / x).asinh();
    let (qd, qv) = (35.0 * (s + v) / (x * x), 35.0 / v.max(1e-18));
    let reach = (qd + qd.sqrt() * (qd + 2.0).sqrt()).ln_1p();
    let high = reach.min((qv + (qv + (2.0 * qv).sqrt()).ln_1p()).ln_1p());
    let low = reach.min(0.5 * qv + (0.25 * qv * qv + 2.0 * qv).sqrt());
    (high + low.min(t0)) * (s + 4.0).sqrt() / 0.55 + 2.0
}

/// The published tables' rows whose inputs f32 holds.
struct Golden {
    rows: Vec<GoldenRow>,
}

struct GoldenRow {
    v: f64,
    x: f64,
    /// (name of the column, value)
    values: Vec<(String, f64)>,
}

impl Golden {
    fn read() -> Result<Self> {
        let mut rows = Vec::new();
        for file in ["golden_bessel.csv", "golden_bessel_aux.csv"] {
            let path = format!("{}/tests/data/{file}", env!("CARGO_MANIFEST_DIR"));
            let mut reader = csv::Reader::from_path(&path).with_context(|| path.clone())?;
            let columns: Vec<String> = reader.headers()?.iter().map(str::to_string).collect();
            for record in reader.records() {
                let values: Vec<f64> = record?.iter().map(str::parse).collect::<Result<_, _>>()?;
                let (v, x) = (values[0], values[1]);
                if [v, x].iter().all(|&value| f64::from(value as f32) == value) {
                    rows.push(GoldenRow { v, x, values: columns.iter().cloned().zip(values).skip(2).collect() });
                }
            }
        }
        Ok(Self { rows })
    }
}

impl GoldenRow {
    fn value(&self, name: &str) -> Option<f64> {
        let of = |column: &str| self.values.iter().find(|(known, _)| known == column).map(|(_, value)| *value);
        match name {
            "log_iv" | "log_kv" => of(name),
            "iv_ratio" => of("ratio_i"),
            "log_iv_dx" => of("dlogi_dx"),
            "log_kv_dx" => of("dlogk_dx"),
            "log_iv_dv" => of("dlogi_dv"),
            "log_kv_dv" => of("dlogk_dv"),
            "vmf_log_normalizer" => {
                Some(self.v * self.x.ln() - (self.v + 1.0) * std::f64::consts::TAU.ln() - of("log_iv")?)
            }
            // Above, 1 - ratio would lose the digits that the complement is there for.
            _ => of("ratio_i").filter(|ratio| *ratio < 0.5).map(|ratio| 1.0 - ratio),
        }
    }
}
