//! von Mises-Fisher fits: one against the memory's bandwidth, an iteration of EM against its two matrix products, and peak memory.
//!
//! A fit reads its data once; 4 operations an element (its square, its share of the sum). An iteration is 4 n d K operations: two products.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use ndarray::{Array1, Array2, ArrayView2, Axis, Ix2, s};
use orthant::Tensor;
use orthant::vmf::{MixtureOptions, Vmf, VmfMixture};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::matmul::PEERS;
use super::peak;
use crate::harness::{Bench, Case, Effort, Goal, Place, Times, Traffic, Work, host, limits, staged};

/// (rows, dim) of fits and, with components, of mixtures; what a software adapter is given.
const FITS: [(usize, usize); 2] = [(2000, 32_768), (200_000, 384)];
const QUICK_FITS: [(usize, usize); 2] = [(500, 32_768), (40_000, 384)];
const SMOKE_FITS: [(usize, usize); 1] = [(50, 33)];
const SOFTWARE_FITS: [(usize, usize); 1] = [(4000, 384)];
const MIXTURES: [(usize, usize, usize); 3] = [(4000, 384, 45), (100_000, 384, 64), (20_000, 2048, 32)];
const SMOKE_MIXTURES: [(usize, usize, usize); 1] = [(200, 16, 3)];

pub fn run(bench: &mut Bench, places: &[Place]) -> Result<()> {
    let hardware: Vec<&Place> = places.iter().filter(|place| place.hardware).collect();
    let software: Vec<&Place> = places.iter().filter(|place| !place.hardware).collect();
    let (fits, mixtures): (&[_], &[_]) = match bench.effort {
        Effort::Smoke => (&SMOKE_FITS, &SMOKE_MIXTURES),
        Effort::Quick => (&QUICK_FITS, &MIXTURES[..1]),
        Effort::Full => (&FITS, &MIXTURES),
    };
    for &shape in fits {
        single(bench, &hardware, shape)?;
    }
    for &shape in mixtures {
        mixture(bench, &hardware, shape)?;
    }
    if !software.is_empty() {
        single(bench, &software, if bench.effort == Effort::Smoke { SMOKE_FITS[0] } else { SOFTWARE_FITS[0] })?;
        mixture(bench, &software, SMOKE_MIXTURES[0])?;
    }
    peak::run(bench)
}

/// One fit, beside reading the same memory on the same threads.
fn single(bench: &mut Bench, places: &[&Place], (rows, dim): (usize, usize)) -> Result<()> {
    let data = clustered(rows, dim, 1);
    let flat = data.as_slice().context("the data are row-major")?;
    let oracle = Oracle::new(&data);
    let mut cases = Vec::new();
    for &place in places {
        let work = |kernel: &str, flops: f64| Work {
            kernel: kernel.into(),
            shape: format!("{rows} x {dim}"),
            dtype: "f32",
            flops: flops * flat.len() as f64,
            bytes: 4.0 * flat.len() as f64,
            traffic: Some(Traffic::Read),
        };
        let check = |fitted: &Vmf| oracle.check(fitted);
        match place.device.as_gpu() {
            None => {
                let threads = place.threads.unwrap_or(1);
                let sum: f64 = flat.iter().map(|&value| f64::from(value)).sum();
                let read = move || host(|| Ok(limits::read(flat, threads)));
                let near = move |read: &f32| {
                    let error = (f64::from(*read) - sum).abs();
                    ensure!(error <= 1e-4 * flat.len() as f64, "the sum is {read}, expected {sum}");
                    Ok("a sum in f64".into())
                };
                cases.push(Case::new(work("read", 1.0), place, read, near));
                let tensor = place.device.tensor(&data)?;
                cases.push(Case::new(work("Vmf::fit", 4.0), place, move || host(|| Vmf::fit(&tensor)), check));
            }
            Some(gpu) => {
                let device = &place.device;
                let data = &data;
                let fit = move || staged(gpu, || device.tensor(data), Vmf::fit, Ok);
                cases.push(Case::new(work("Vmf::fit", 4.0), place, fit, check));
            }
        }
    }
    let names: Vec<String> = cases.iter().map(|case| case.place.name.clone()).collect();
    let seconds = bench.time("vmf", cases);
    if bench.effort < Effort::Full || names.len() < 2 * places.len() {
        return Ok(());
    }
    for (place, pair) in names.chunks(2).map(|pair| &pair[0]).zip(seconds.chunks(2)) {
        if let [Some(read), Some(fit)] = pair {
            bench.goal(Goal {
                what: format!("Vmf::fit, {rows} x {dim}: share of the read bandwidth, {place}"),
                measured: read / fit,
                at_least: Some(0.7),
                at_most: None,
            });
        }
    }
    Ok(())
}

/// What a fit must find, from plain sums in f64.
struct Oracle {
    resultant: Array1<f64>,
}

impl Oracle {
    fn new(data: &Array2<f32>) -> Self {
        let unit = |row: ndarray::ArrayView1<'_, f32>| {
            let row = row.mapv(f64::from);
            let norm = row.dot(&row).sqrt();
            row / norm
        };
        let sums: Vec<Array1<f64>> = data
            .axis_chunks_iter(Axis(0), 256)
            .into_par_iter()
            .map(|rows| rows.axis_iter(Axis(0)).fold(Array1::zeros(data.ncols()), |sum, row| sum + unit(row)))
            .collect();
        let total = sums.into_iter().fold(Array1::zeros(data.ncols()), |total, sum| total + sum);
        Self { resultant: total / data.nrows() as f64 }
    }

    /// R and the mean direction within 1e-9 (f32 sums on a GPU: 1e-5), and A_d(kappa) = R as far as f64 tells.
    fn check(&self, fitted: &Vmf) -> Result<String> {
        let length = self.resultant.dot(&self.resultant).sqrt();
        let cosine = self.resultant.dot(&fitted.mean_direction()) / length;
        let error = (fitted.resultant_length() / length - 1.0).abs();
        ensure!(error < 1e-5 && cosine > 1.0 - 1e-9, "R is off by {error:e}, the direction by {:e}", 1.0 - cosine);
        let order = fitted.dim() as f64 / 2.0 - 1.0;
        let one = |value| orthant::Device::Cpu.tensor(&ndarray::arr1(&[value]));
        let ratio = orthant::kernels::iv_ratio(&one(order)?, &one(fitted.kappa())?)?.to_array()?[0];
        let residual = (ratio / fitted.resultant_length() - 1.0).abs();
        ensure!(residual < 1e-12, "A(kappa) is off R by {residual:e}");
        Ok(format!("sums in f64, R {error:.0e}, A(kappa) - R {residual:.0e}"))
    }
}

/// One iteration of EM, beside its two products by the crates that multiply fastest.
fn mixture(bench: &mut Bench, places: &[&Place], (rows, dim, components): (usize, usize, usize)) -> Result<()> {
    let data = clustered(rows, dim, components);
    let means = clustered(components, dim, 1);
    let shares = Array2::from_elem((rows, components), 1.0 / components as f32);
    let mut cases = Vec::new();
    let work = |kernel: &str| Work {
        kernel: kernel.into(),
        shape: format!("{rows} x {dim}, K = {components}"),
        dtype: "f32",
        flops: 4.0 * (rows * dim * components) as f64,
        bytes: 4.0 * (rows * dim + 2 * dim * components) as f64,
        traffic: Some(Traffic::Read),
    };
    for &place in places {
        let tensor = place.device.tensor(&data)?;
        let (data, means, shares) = (&data, &means, &shares);
        let iteration = move || iteration(&tensor, components);
        let check = move |mixture: &VmfMixture| check_mixture(mixture, data.view());
        cases.push(Case::new(work("EM iteration"), place, iteration, check));
        for peer in PEERS.iter().filter(|_| place.device.is_cpu()) {
            let mut cosines = Array2::zeros((rows, components));
            let mut sums = Array2::zeros((components, dim));
            let products = move || {
                host(|| {
                    (peer.multiply)(data, means, [false, true], &mut cosines);
                    (peer.multiply)(shares, data, [true, false], &mut sums);
                    Ok(())
                })
            };
            cases.push(Case::new(
                work(&format!("2 x {}", peer.name)),
                place,
                products,
                |()| Ok("matmul's rows".into()),
            ));
        }
    }
    let at: Vec<_> = cases.iter().map(|case| case.place.name.clone()).collect();
    let seconds = bench.time("vmf", cases);
    for place in places.iter().filter(|place| place.device.is_cpu()) {
        let mut of: Vec<f64> =
            at.iter().zip(&seconds).filter(|(name, _)| **name == place.name).filter_map(|(_, s)| *s).collect();
        if of.len() == PEERS.len() + 1 && bench.effort == Effort::Full {
            let iteration = of.remove(0);
            bench.goal(Goal {
                what: format!("EM iteration, {rows} x {dim}, K = {components}: over its two products, {}", place.name),
                measured: iteration / of.into_iter().fold(f64::INFINITY, f64::min),
                at_least: None,
                at_most: Some(1.3),
            });
        }
    }
    Ok(())
}

/// A fit of a few iterations; its time is the median between two of them.
fn iteration(rows: &Tensor<f32, Ix2>, components: usize) -> Result<(VmfMixture, Times)> {
    let marks = Arc::new(Mutex::new(Vec::new()));
    let noted = marks.clone();
    let options = MixtureOptions::new(components).seed(1).max_iterations(8).tolerance(0.0).progress(move |_, _| {
        if let Ok(mut marks) = noted.lock() {
            marks.push(Instant::now());
        }
    });
    let mixture = VmfMixture::fit(rows, &options)?;
    let marks = marks.lock().map(|marks| marks.clone()).unwrap_or_default();
    let mut between: Vec<f64> = marks.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
    ensure!(!between.is_empty(), "EM ended after its first iteration");
    Ok((mixture, Times { whole: crate::harness::median(&mut between), stages: None }))
}

/// The likelihood grows with every iteration, and is that of the mixture's own parameters, in f64.
fn check_mixture(mixture: &VmfMixture, data: ArrayView2<'_, f32>) -> Result<String> {
    let trace = mixture.log_likelihood_trace();
    // f32 cosines, each within a few eps, times kappa.
    let largest = mixture.components().iter().map(|component| component.kappa).fold(0.0, f64::max);
    let tolerance = 16.0 * f64::from(f32::EPSILON) * largest + 1e-6;
    ensure!(trace.windows(2).all(|pair| pair[1] >= pair[0] - tolerance), "the likelihood falls: {trace:?}");
    let step = data.nrows().div_ceil(500);
    let sample = data.slice(s![..;step, ..]).to_owned();
    let scores = mixture.score(&orthant::Device::Cpu.tensor(&sample)?)?.to_array()?;
    let mut worst: f64 = 0.0;
    for (row, &score) in sample.axis_iter(Axis(0)).zip(&scores) {
        let row = row.mapv(f64::from);
        let row = &row / row.dot(&row).sqrt();
        let term = |component: &orthant::vmf::Component| {
            let cosine = row.dot(&component.mean_direction.mapv(f64::from));
            component.weight.ln() + component.log_normalizer + component.kappa * cosine
        };
        let terms: Vec<f64> = mixture.components().iter().map(term).collect();
        let best = terms.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let expected = best + terms.iter().map(|term| (term - best).exp()).sum::<f64>().ln();
        let error = (f64::from(score) - expected).abs();
        ensure!(
            error <= tolerance + 4.0 * f64::from(f32::EPSILON) * expected.abs(),
            "score {score}, expected {expected}"
        );
        worst = worst.max(error);
    }
    Ok(format!("growing likelihood, scores in f64 within {worst:.0e} nats"))
}

/// Rows around `components` random directions, the noise as long as the direction; not normalised.
fn clustered(rows: usize, dim: usize, components: usize) -> Array2<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(components as u64);
    let centres = Array2::from_shape_simple_fn((components, dim), || random.random::<f32>() - 0.5);
    let mut data = Array2::zeros((rows, dim));
    data.axis_chunks_iter_mut(Axis(0), 64).into_par_iter().enumerate().for_each(|(chunk, mut rows)| {
        let mut random = ChaCha8Rng::seed_from_u64(chunk as u64);
        for mut row in rows.axis_iter_mut(Axis(0)) {
            let centre = centres.row(random.random_range(0..components));
            row.iter_mut().zip(centre).for_each(|(value, &centre)| *value = centre + random.random::<f32>() - 0.5);
        }
    });
    data
}
