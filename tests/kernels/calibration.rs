//! Moments of keys, values and queries, by matrix products.

use anyhow::{Result, ensure};
use ndarray::{Array2, Array4};
use orthant::Device;
use orthant::kv::{Calibration, Frame, ProjectionOptions, Projections, Rope, RopeLayout, Side, Weighting};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::common::Case;

/// Projections of each layer and weighting, from two batches.
fn calibrated(device: &Device, frame: Frame) -> Result<Vec<Projections>> {
    let mut random = ChaCha8Rng::seed_from_u64(9);
    let mut noise = |heads: usize| {
        Array4::from_shape_fn((2, heads, 600, 24), |(_, _, _, c)| {
            random.random_range(-1.0f32..1.0) * (1 + c % 5) as f32 / 3.0 + 0.2
        })
    };
    let rope = Rope::new(RopeLayout::Halves, 16, 1e4)?;
    let mut calibration = Calibration::new((4, 2, 24), rope, frame)?;
    for starts in [[0, 100], [600, 0]] {
        let [q, k, v] = [4, 2, 2].map(&mut noise);
        calibration.add(3, &starts, &device.tensor(&q)?, &device.tensor(&k)?, &device.tensor(&v)?)?;
    }
    calibration.output_weights(3, &Array2::from_shape_fn((50, 96), |(i, j)| (i * j % 7) as f32 - 3.0).view())?;
    let mut all = Vec::new();
    for (weighting, joint) in [(Weighting::Pca, 1), (Weighting::Query, 1), (Weighting::Query, 2)] {
        let options = ProjectionOptions::new().weighting(weighting, weighting).joint(joint, joint);
        all.push(calibration.projections(&options)?);
    }
    Ok(all)
}

/// The spectra, and what a basis keeps of the other's rows.
fn calibrates(device: &Device) -> Result<()> {
    for frame in [Frame::Pre, Frame::Post, Frame::Block(64)] {
        let (actual, expected) = (calibrated(device, frame)?, calibrated(&Device::cpu(), frame)?);
        for (actual, expected) in actual.iter().zip(&expected) {
            for side in [Side::Keys, Side::Values] {
                for (actual, expected) in actual.bases(3, side)?.iter().zip(expected.bases(3, side)?) {
                    let (Some(a), Some(b)) = (actual.spectrum(), expected.spectrum()) else {
                        anyhow::bail!("no spectrum")
                    };
                    ensure!(a.len() == b.len() && a.len() == expected.width());
                    for (a, b) in a.iter().zip(b) {
                        // Sums of 1024 products in f32, and scores in f32.
                        ensure!(
                            (a - b).abs() <= 1e-5 * expected.spectrum().map_or(0.0, |s| s[0]),
                            "{frame} {side}: {a} {b}"
                        );
                    }
                    let off = (actual.mean() - expected.mean()).iter().fold(0.0f32, |worst, x| worst.max(x.abs()));
                    ensure!(off <= 1e-5, "{frame} {side}: means {off:e} apart");
                }
            }
        }
    }
    Ok(())
}

pub fn cases() -> Vec<Case> {
    vec![Case::new("matmul", "calibration of a low-rank cache", calibrates)]
}
