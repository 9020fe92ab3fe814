//! Extended precision beyond the Bessel functions: sums of unit rows, log-densities and kappa, beside the same in f32 on GPUs and in f64 on the CPU.
//!
//! Operations of f32 in double-single, guards left out: an element of a row 3 loads, 35 for its square and 40 for its term of the sum (f32: 4), or
//! 42 for the product with the mean; a kappa six steps of two ratios (3500) and 500 beside. Bytes: the rows once, 4 an element.

use anyhow::{Result, ensure};
use ndarray::{Array1, Array2, Ix2};
use orthant::vmf::{Vmf, VmfStats};
use orthant::{Arithmetic, Device, DoubleSingle, Precision, Real, Tensor, kernels};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::harness::{Bench, Case, Effort, Place, Traffic, Work, host};

/// A place, its device or the same adapter with another arithmetic for pairs, and what rows are labelled.
type Way<'a> = (&'a Place, Device, &'static str, Precision);

pub fn run(bench: &mut Bench, places: &[Place]) -> Result<()> {
    let (rows, count) = match bench.effort {
        Effort::Smoke => (300, 300),
        Effort::Quick => (5_000, 5_000),
        Effort::Full => (50_000, 50_000),
    };
    let inputs = Inputs::new(rows, 384, count)?;
    let ways = ways(places)?;
    let resultants = ways.iter().map(|way| inputs.resultant(way)).collect::<Result<Vec<_>>>()?;
    bench.time("extended", resultants);
    let densities = ways.iter().map(|way| inputs.density(way)).collect::<Result<Vec<_>>>()?;
    bench.time("extended", densities);
    let mut kappas = Vec::new();
    for way @ (place, _, _, precision) in &ways {
        kappas.push(match (place.device.is_cpu(), precision) {
            (true, _) => inputs.kappa::<f64>(way)?,
            (false, Precision::Single) => inputs.kappa::<f32>(way)?,
            (false, Precision::Extended) => inputs.kappa::<DoubleSingle>(way)?,
        });
    }
    bench.time("extended", kappas);
    Ok(())
}

fn ways(places: &[Place]) -> Result<Vec<Way<'_>>> {
    let mut all = Vec::new();
    for place in places {
        let Some(gpu) = place.device.as_gpu() else {
            all.push((place, Device::Cpu, "f64", Precision::Extended));
            continue;
        };
        all.push((place, place.device.clone(), "f32", Precision::Single));
        for (arithmetic, dtype) in [(Arithmetic::DoubleSingle, "double-single"), (Arithmetic::F64, "pairs, in f64")] {
            let device = Device::gpu_at(gpu.info().index)?;
            if device.as_gpu().is_some_and(|gpu| gpu.use_arithmetic(arithmetic).is_ok()) {
                all.push((place, device, dtype, Precision::Extended));
            }
        }
    }
    Ok(all)
}

struct Inputs {
    rows: Array2<f32>,
    vmf: Vmf,
    /// d, R and 1 - R.
    solves: Vec<[f64; 3]>,
    resultant: Vec<f64>,
    densities: Array1<f64>,
    kappas: Vec<f64>,
}

impl Inputs {
    fn new(n: usize, d: usize, count: usize) -> Result<Self> {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let rows = Array2::from_shape_simple_fn((n, d), || random.random_range(-0.5f32..1.0));
        let vmf = Vmf::new(Array1::from_elem(d, 1.0).view(), 300.0)?;
        let solves: Vec<[f64; 3]> = (0..count)
            .map(|_| {
                let length = f64::from(random.random_range(0.01f32..0.99));
                [f64::from(random.random_range(2u32..4096)), length, 1.0 - length]
            })
            .collect();
        let near = Device::Cpu.tensor(&rows)?;
        let column = |k: usize| Device::Cpu.tensor(&solves.iter().map(|row| row[k]).collect::<Array1<f64>>());
        let kappas = kernels::vmf_kappa(&column(0)?, &column(1)?, &column(2)?)?.to_array()?.to_vec();
        let resultant = VmfStats::from_rows(&near, None, Precision::Extended)?.resultant().to_vec();
        let densities = vmf.log_density_in(&near, Precision::Extended)?;
        Ok(Self { rows, vmf, solves, resultant, densities, kappas })
    }

    fn work(&self, kernel: &str, dtype: &'static str, operations: [f64; 2]) -> Work {
        let (n, d) = self.rows.dim();
        let each = if dtype == "double-single" { operations[0] } else { operations[1] };
        Work {
            kernel: kernel.into(),
            shape: format!("{n} x {d}"),
            dtype,
            flops: each * (n * d) as f64,
            bytes: (4 * n * d) as f64,
            traffic: Some(Traffic::Read),
        }
    }

    fn resultant<'a>(&'a self, (place, device, dtype, precision): &'a Way<'a>) -> Result<Case<'a>> {
        let rows: Tensor<f32, Ix2> = device.tensor(&self.rows)?;
        let run = move || host(|| VmfStats::from_rows(&rows, None, *precision));
        let bound =
            self.rows.nrows() as f64 * if *precision == Precision::Single { 34.0 / 16_777_216.0 } else { 1e-13 };
        let check = move |stats: &VmfStats| close(&stats.resultant().to_vec(), &self.resultant, |_| bound);
        Ok(Case::new(self.work("resultant", dtype, [75.0, 4.0]), place, run, check))
    }

    fn density<'a>(&'a self, (place, device, dtype, precision): &'a Way<'a>) -> Result<Case<'a>> {
        let rows: Tensor<f32, Ix2> = device.tensor(&self.rows)?;
        let run = move || host(|| self.vmf.log_density_in(&rows, *precision));
        // ln C and kappa, in f32 the terms of 384 products too.
        let bound =
            if *precision == Precision::Single { 1e-3 } else { 1e-13 * (self.vmf.log_normalizer().abs() + 300.0) };
        let check = move |found: &Array1<f64>| close(&found.to_vec(), &self.densities.to_vec(), |_| bound);
        Ok(Case::new(self.work("log density", dtype, [77.0, 4.0]), place, run, check))
    }

    fn kappa<'a, T: Real>(&'a self, (place, device, dtype, _): &'a Way<'a>) -> Result<Case<'a>> {
        let column =
            |k: usize| device.tensor(&self.solves.iter().map(|row| T::from_f64(row[k])).collect::<Array1<T>>());
        let [d, r, c] = [column(0)?, column(1)?, column(2)?];
        let run = move || host(|| kernels::vmf_kappa(&d, &r, &c)?.to_array());
        let relative = if T::NAME == "f32" { 4e-6 } else { 1e-13 };
        let check = move |found: &Array1<T>| {
            let found: Vec<f64> = found.iter().map(|value| value.to_f64()).collect();
            close(&found, &self.kappas, |kappa| relative * kappa)
        };
        let count = self.solves.len();
        let each = if *dtype == "double-single" { 6.0 * 3500.0 + 500.0 } else { 5.0 * 600.0 };
        let work = Work {
            kernel: "vmf_kappa".into(),
            shape: count.to_string(),
            dtype,
            flops: each * count as f64,
            bytes: (4 * count * size_of::<T>()) as f64,
            traffic: None,
        };
        Ok(Case::new(work, place, run, check))
    }
}

fn close(found: &[f64], expected: &[f64], bound: impl Fn(f64) -> f64) -> Result<String> {
    ensure!(found.len() == expected.len(), "{} values, expected {}", found.len(), expected.len());
    let mut worst = 0.0f64;
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (found - expected).abs() / bound(expected.abs());
        ensure!(error <= 1.0, "{found} at {index}, expected {expected}: {error:.2} of its bound");
        worst = worst.max(error);
    }
    Ok(format!("against the CPU's f64 {worst:.2} of the bound"))
}
