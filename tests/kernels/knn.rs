//! What is made of matrix products: exact neighbours, and views in one.

use anyhow::{Result, ensure};
use half::f16;
use ndarray::Array2;
use orthant::hamming::{Fusion, fuse};
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

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("matmul", "exact neighbours, f32", |device| neighbours(device, |value| value)),
        Case::new("matmul", "exact neighbours, f16", |device| neighbours(device, f16::from_f32)),
        Case::new("matmul", "views", fused),
    ]
}
