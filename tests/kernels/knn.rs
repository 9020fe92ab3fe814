//! What tasks make of kernels: exact neighbours, views in one, codes of rows and how well they retrieve.

use anyhow::{Result, ensure};
use half::f16;
use ndarray::Array2;
use orthant::hamming::{Binarizer, Codes, EvaluateOptions, Fusion, SignRule, binarize, evaluate, fuse};
use orthant::knn::{self, Metric};
use orthant::{Device, Element, kernels::MatmulElement};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use crate::common::Case;

fn noise(rows: usize, dim: usize, seed: u64) -> Array2<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    Array2::from_shape_simple_fn((rows, dim), || StandardNormal.sample(&mut rng))
}

/// Distances and their order come from the host, so a GPU's rounding must not show: copies of rows, rows that cancel, more than a tile.
fn neighbours<T: Element + MatmulElement<Sum = f32>>(device: &Device, of: fn(f32) -> T) -> Result<()> {
    let base = Array2::from_shape_fn((8300, 24), |(i, j)| noise_at(i % 8200, j));
    let queries = noise(260, 24, 2);
    for (base, queries) in
        [(base, queries), (noise(500, 21, 3).mapv(|x| 100.0 + 0.01 * x), noise(7, 21, 4).mapv(|x| 100.0 + 0.01 * x))]
    {
        let (base, queries) = (base.mapv(of), queries.mapv(of));
        let host = Device::cpu();
        for metric in [Metric::L2, Metric::InnerProduct, Metric::Cosine] {
            let found = knn::search(&device.tensor(&base)?, &device.tensor(&queries)?, 20, metric)?;
            let expected = knn::search(&host.tensor(&base)?, &host.tensor(&queries)?, 20, metric)?;
            ensure!(found == expected, "{metric:?}, rows of {}", base.ncols());
        }
    }
    Ok(())
}

/// Repeatable, whatever the order of calls.
fn noise_at(i: usize, j: usize) -> f32 {
    let mut state = (i as u64 * 1_000_003 + j as u64).wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
    state ^= state >> 29;
    state = state.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
}

/// Products with scaled unit matrices: exact for one view; the sum of two rounds once more.
fn fused(device: &Device) -> Result<()> {
    let (a, b) = (noise(130, 24, 5).mapv(f16::from_f32), noise(130, 24, 6).mapv(f16::from_f32));
    let host = Device::cpu();
    for fusion in [Fusion::Concatenate, Fusion::Sum] {
        let on = |device: &Device| fuse(&[&device.tensor(&a)?, &device.tensor(&b)?], &[2.0, -0.3], fusion)?.to_array();
        let (found, expected) = (on(device)?, on(&host)?);
        ensure!(found.dim() == expected.dim());
        for (found, expected) in found.iter().zip(&expected) {
            ensure!(
                (found - expected).abs() <= 1e-6 * expected.abs().max(1.0),
                "{fusion:?}: {found}, expected {expected}"
            );
        }
    }
    Ok(())
}

/// Comparisons are exact; a projection near its threshold may fall on either side.
fn codes<T: Element + MatmulElement<Sum = f32>>(device: &Device, of: fn(f32) -> T) -> Result<()> {
    let host = Device::cpu();
    let rows = noise(700, 70, 7).mapv(|x| (2.0 * x).round()).mapv(of);
    let (on_host, on_gpu) = (host.tensor(&rows)?, device.tensor(&rows)?);
    for bits in [40, 64] {
        for binarizer in
            [Binarizer::sign(70, bits)?, Binarizer::mean(&on_gpu, bits)?, Binarizer::median(&on_gpu, bits)?]
        {
            let binarizer = binarizer.rule(SignRule::Above);
            let found = binarize(&on_gpu, &binarizer)?.words().to_array()?;
            ensure!(found == binarize(&on_host, &binarizer)?.words().to_array()?, "{bits} bits");
        }
    }
    ensure!(Binarizer::median(&on_gpu, 64)? == Binarizer::median(&on_host, 64)?);
    let planes = Binarizer::hyperplanes(70, 96, 3)?;
    let (found, expected) = (binarize(&on_gpu, &planes)?.unpack()?, binarize(&on_host, &planes)?.unpack()?);
    let projected = planes.project(&on_host)?.to_array()?;
    for (at, projected) in projected.indexed_iter() {
        // 2 (70 + 160) 2^-24 |plane| |x|, of lengths of about 9 and 17.
        ensure!(found[at] == expected[at] || projected.abs() < 5e-3, "{at:?}: {projected}");
    }
    Ok(())
}

/// Counts are whole numbers, and what is made of them is made on the host.
fn evaluations(device: &Device) -> Result<()> {
    let bits = noise(400, 24, 8).mapv(|x| x > 0.0);
    let bits = Array2::from_shape_fn((400, 24), |(i, j)| bits[[i % 90, j]] ^ (j == i % 31));
    let labels: Vec<usize> = (0..400).map(|i| i % 90 % 7).collect();
    let run = |device: &Device, leave: bool| -> Result<_> {
        let codes = Codes::pack(device, &bits.view())?;
        let options = EvaluateOptions::new().tops(&[1, 20]).leave_one_out(leave);
        Ok(evaluate(&codes, &labels, &codes, &labels, &options)?)
    };
    for leave in [false, true] {
        ensure!(run(device, leave)? == run(&Device::cpu(), leave)?, "leave one out: {leave}");
    }
    Ok(())
}

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("sign_pack", "codes of f32", |device| codes(device, |value| value)),
        Case::new("sign_pack", "codes of f16", |device| codes(device, f16::from_f32)),
        Case::new("hamming_histogram_labels", "evaluations", evaluations),
        Case::new("matmul", "exact neighbours, f32", |device| neighbours(device, |value| value)),
        Case::new("matmul", "exact neighbours, f16", |device| neighbours(device, f16::from_f32)),
        Case::new("matmul", "views", fused),
    ]
}
