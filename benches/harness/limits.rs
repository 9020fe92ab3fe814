//! What the machine can do at most, measured in the run whose rows are held against it.

use std::hint::black_box;
use std::time::Instant;

use anyhow::Result;
use multiversion::multiversion;
use ndarray::{Array1, Ix1};
use orthant::kernels::limits::{STEPS, copy, multiply_add};
use orthant::{Device, Gpu, Real, Tensor};
use rayon::prelude::*;
use serde::Serialize;

use super::Effort;

/// Rates of one place: bytes and floating-point operations a second.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Limits {
    /// Reading memory larger than any cache; on GPUs that of the copy.
    pub read: f64,
    /// Copying memory: bytes read plus bytes written.
    pub copy: f64,
    pub fma_f32: f64,
    /// None without f64.
    pub fma_f64: Option<f64>,
}

/// How a kernel moves its bytes, so which bandwidth bounds it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Traffic {
    Read,
    Copy,
}

impl Limits {
    /// The seconds that work takes at the limit, and the name of the limit that counts.
    pub fn floor(&self, flops: f64, bytes: f64, traffic: Traffic, dtype: &str) -> (f64, &'static str) {
        let (bandwidth, name) = match traffic {
            Traffic::Read => (self.read, "read bandwidth"),
            Traffic::Copy => (self.copy, "copy bandwidth"),
        };
        let (rate, fma) = match (dtype, self.fma_f64) {
            ("f64", Some(rate)) => (rate, "fma f64"),
            _ => (self.fma_f32, "fma f32"),
        };
        if flops / rate > bytes / bandwidth { (flops / rate, fma) } else { (bytes / bandwidth, name) }
    }
}

/// Elements a vector register and chain; 6 registers of 512 bits, 12 of 256: enough to hide an fma's latency of 4 on two ports,
/// and they fit in the 16 registers of AVX2.
const CHAINS_F32: usize = 96;
const CHAINS_F64: usize = 48;

macro_rules! cpu_probes {
    ($fma:ident, $type:ty, $lanes:expr) => {
        /// `steps` fused multiply-adds on every element of a block that stays in registers.
        #[multiversion(targets("x86_64+avx512f+avx512vl+fma", "x86_64+avx2+fma", "x86_64+avx+fma"))]
        fn $fma(block: &mut [$type; $lanes], steps: usize, rate: $type, rest: $type) {
            let mut y = *block;
            for _ in 0..steps {
                for y in &mut y {
                    *y = y.mul_add(rate, rest);
                }
            }
            *block = y;
        }
    };
}
cpu_probes!(fma_f32, f32, CHAINS_F32);
cpu_probes!(fma_f64, f64, CHAINS_F64);

/// The sum of `x` in as many chains as it takes to wait for memory only.
#[multiversion(targets("x86_64+avx512f+avx512vl+fma", "x86_64+avx2+fma", "x86_64+avx+fma"))]
fn sum(x: &[f32]) -> f32 {
    let mut sums = [0.0f32; 128];
    let (blocks, rest) = x.as_chunks::<128>();
    for block in blocks {
        for (sum, x) in sums.iter_mut().zip(block) {
            *sum += x;
        }
    }
    sums.iter().chain(rest).sum()
}

/// Reads all of `x` on `threads` threads, in equal parts: what a kernel that reads its input once is held against.
pub fn read(x: &[f32], threads: usize) -> f32 {
    x.par_chunks(x.len().div_ceil(threads).max(1)).map(sum).sum()
}

/// The best rate of `work` units done by each call of `call`, which says how many seconds it took: a limit is what the machine can do undisturbed.
fn rate(effort: Effort, work: f64, mut call: impl FnMut() -> Result<f64>) -> Result<f64> {
    call()?;
    let (start, mut best) = (Instant::now(), f64::INFINITY);
    for repetition in 0.. {
        best = best.min(call()?);
        if effort == Effort::Smoke || (repetition >= 6 && start.elapsed().as_secs_f64() > 0.3) {
            break;
        }
    }
    Ok(work / best)
}

fn timed<R>(call: impl FnOnce() -> R) -> Result<f64> {
    let start = Instant::now();
    black_box(call());
    Ok(start.elapsed().as_secs_f64())
}

/// Limits of `threads` threads of the current rayon pool.
pub fn cpu(threads: usize, effort: Effort) -> Result<Limits> {
    // 256 MiB: eight times the cache of most machines.
    let length = if effort == Effort::Smoke { 1 << 16 } else { 64 << 20 };
    let bytes = 4.0 * length as f64;
    let from = vec![1.0f32; length];
    let mut to = vec![0.0f32; length];
    let steps = if effort == Effort::Smoke { 1000 } else { 2_000_000 };
    let part = length.div_ceil(threads);
    let read_rate = rate(effort, bytes, || timed(|| read(black_box(&from), threads)))?;
    let copy_rate = rate(effort, 2.0 * bytes, || {
        timed(|| to.par_chunks_mut(part).zip(from.par_chunks(part)).for_each(|(to, from)| to.copy_from_slice(from)))
    })?;
    let flops = |chains: usize| 2.0 * (threads * steps * chains) as f64;
    let fma_f32 = rate(effort, flops(CHAINS_F32), || {
        timed(|| {
            (0..threads).into_par_iter().with_max_len(1).for_each(|_| {
                let mut block = black_box([0.5; CHAINS_F32]);
                fma_f32(&mut block, steps, 0.999, 0.001);
                black_box(block);
            })
        })
    })?;
    let fma_f64 = rate(effort, flops(CHAINS_F64), || {
        timed(|| {
            (0..threads).into_par_iter().with_max_len(1).for_each(|_| {
                let mut block = black_box([0.5; CHAINS_F64]);
                fma_f64(&mut block, steps, 0.999, 0.001);
                black_box(block);
            })
        })
    })?;
    Ok(Limits { read: read_rate, copy: copy_rate, fma_f32, fma_f64: Some(fma_f64) })
}

/// The seconds of the kernels that `call` records: the device's own clock, or the host's where it has none.
pub fn kernel_seconds<R>(gpu: &Gpu, call: impl FnOnce() -> orthant::Result<R>) -> Result<(R, f64)> {
    let start = Instant::now();
    let (result, kernels) = gpu.timed(|| {
        let result = call()?;
        gpu.flush()?;
        Ok(result)
    })?;
    match kernels {
        Some(kernels) => Ok((result, kernels.iter().map(|kernel| kernel.seconds).sum())),
        None => {
            wait(gpu)?;
            Ok((result, start.elapsed().as_secs_f64()))
        }
    }
}

/// Waits for everything recorded on `gpu`.
pub fn wait(gpu: &Gpu) -> orthant::Result<()> {
    Device::Gpu(gpu.clone()).tensor(&Array1::<f32>::zeros(1))?.to_array().map(drop)
}

/// Limits of a GPU by its own clock: of `limits.wgsl`.
pub fn gpu(gpu: &Gpu, effort: Effort) -> Result<Limits> {
    let device = Device::Gpu(gpu.clone());
    let length = if effort == Effort::Smoke { 1 << 12 } else { (gpu.max_binding() / 4).min(64 << 20) as usize / 4 * 4 };
    let x = device.zeros(length)?;
    let copied = rate(effort, 8.0 * length as f64, || Ok(kernel_seconds(gpu, || copy::<f32>(&x))?.1))?;
    drop(x);
    let fma_f32 = fma(&device, gpu, effort, multiply_add::<f32>)?;
    let fma_f64 = if gpu.has_f64() { Some(fma(&device, gpu, effort, multiply_add::<f64>)?) } else { None };
    Ok(Limits { read: copied, copy: copied, fma_f32, fma_f64 })
}

/// The rate of multiply-adds over so many elements that the probe takes milliseconds.
fn fma<T: Real>(
    device: &Device,
    gpu: &Gpu,
    effort: Effort,
    probe: impl Fn(&Tensor<T, Ix1>) -> orthant::Result<Tensor<T, Ix1>>,
) -> Result<f64> {
    let mut length = 1 << 14;
    loop {
        let x = device.zeros(length)?;
        kernel_seconds(gpu, || probe(&x))?;
        let (_, seconds) = kernel_seconds(gpu, || probe(&x))?;
        if effort == Effort::Smoke || seconds > 4e-3 || length >= 1 << 26 {
            return rate(effort, 2.0 * f64::from(STEPS) * length as f64, || Ok(kernel_seconds(gpu, || probe(&x))?.1));
        }
        length *= 4;
    }
}
