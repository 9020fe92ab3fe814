//! Seeding: k-means++ on the sphere.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::chunks::{Chunks, Scratch, chunk_rows};
use crate::Result;

/// Rows that seeds are chosen from where there are many more: enough for 64 a component.
pub(crate) fn sample_rows(components: usize) -> usize {
    (64 * components).max(16_384)
}

/// `count` row numbers below `rows`, distinct, sorted.
pub(crate) fn sample_indices(rows: usize, count: usize, seed: u64) -> Vec<usize> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0x5eed);
    let mut indices = rand::seq::index::sample(&mut rng, rows, count.min(rows)).into_vec();
    indices.sort_unstable();
    indices
}

/// `components` rows, unit length, (K, d): the first at random by weight, each other the best of a few candidates drawn by weight times
/// 1 - cos to the nearest seed so far. Fewer distinct rows than components give repeated seeds.
///
/// Source: Arthur & Vassilvitskii 2007, greedy as in their section 5; on the sphere |x - y|^2 = 2 (1 - x'y).
pub(crate) fn plus_plus(chunks: &dyn Chunks, components: usize, seed: u64) -> Result<Vec<f32>> {
    let (rows, dim) = (chunks.rows(), chunks.dim());
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let weight = |row: usize| chunks.weights().map_or(1.0, |weights| weights[row]);
    let candidates = 2 + (components as f64).ln() as usize;
    let mut means = Vec::with_capacity(components * dim);
    // 1 - cos to the nearest seed
    let mut nearest = vec![f32::INFINITY; rows];
    let mut distances = vec![0.0f32; rows * candidates];
    for chosen in 0..components {
        let tried = if chosen == 0 { 1 } else { candidates };
        let potential = |row: usize| weight(row) * if chosen == 0 { 1.0 } else { nearest[row] as f64 };
        let total: f64 = (0..rows).map(potential).sum();
        let mut points: Vec<f64> = (0..tried).map(|_| rng.random::<f64>() * total).collect();
        points.sort_by(f64::total_cmp);
        let mut drawn = draw(&points, rows, potential);
        if total == 0.0 {
            // every row is a seed already
            drawn = (0..tried).map(|_| rng.random_range(0..rows)).collect();
        }
        let mut tips = vec![0.0f32; tried * dim];
        let mut scratch = Scratch::default();
        for (tip, &row) in tips.chunks_exact_mut(dim).zip(&drawn) {
            let chunk = chunks.chunk(row, 1, &mut scratch)?;
            tip.iter_mut().zip(chunk.rows).for_each(|(tip, &value)| *tip = value * chunk.inverse[0]);
        }
        let distances = &mut distances[..rows * tried];
        one_less_cosines(chunks, &tips, distances)?;
        let sums = distances
            .par_chunks(1024 * tried)
            .enumerate()
            .map(|(block, distances)| {
                let mut sums = vec![0.0f64; tried];
                for (index, distances) in distances.chunks_exact(tried).enumerate() {
                    let row = 1024 * block + index;
                    let weight = weight(row);
                    for (sum, &distance) in sums.iter_mut().zip(distances) {
                        *sum += weight * distance.min(nearest[row]) as f64;
                    }
                }
                sums
            })
            .collect::<Vec<_>>();
        let sum = |candidate: usize| sums.iter().map(|sums| sums[candidate]).sum::<f64>();
        let best = (0..tried).min_by(|&a, &b| sum(a).total_cmp(&sum(b))).unwrap_or(0);
        means.extend_from_slice(&tips[best * dim..][..dim]);
        for (nearest, distances) in nearest.iter_mut().zip(distances.chunks_exact(tried)) {
            *nearest = nearest.min(distances[best]);
        }
    }
    Ok(means)
}

/// For each of the ascending `points`, the row in which the running sum of `potential` passes it.
fn draw(points: &[f64], rows: usize, potential: impl Fn(usize) -> f64) -> Vec<usize> {
    let mut drawn = Vec::with_capacity(points.len());
    let (mut sum, mut last) = (0.0, 0);
    for row in 0..rows {
        let value = potential(row);
        if value > 0.0 {
            last = row;
            sum += value;
            while drawn.len() < points.len() && points[drawn.len()] < sum {
                drawn.push(row);
            }
        }
    }
    drawn.resize(points.len(), last);
    drawn
}

/// 1 - cos of every row with every of `tips` (t, d), into `out` (rows, t); not negative.
fn one_less_cosines(chunks: &dyn Chunks, tips: &[f32], out: &mut [f32]) -> Result<()> {
    let dim = chunks.dim();
    let tried = tips.len() / dim;
    let step = chunk_rows(dim);
    let tips = MatRef::from_row_major_slice(tips, tried, dim);
    out.par_chunks_mut(step * tried).enumerate().try_for_each_init(Scratch::default, |scratch, (block, out)| {
        let count = out.len() / tried;
        let chunk = chunks.chunk(block * step, count, scratch)?;
        let rows = MatRef::from_row_major_slice(chunk.rows, count, dim);
        matmul(
            MatMut::from_row_major_slice_mut(out, count, tried),
            Accum::Replace,
            rows,
            tips.transpose(),
            1.0f32,
            Par::Seq,
        );
        for (distances, &inverse) in out.chunks_exact_mut(tried).zip(chunk.inverse) {
            distances.iter_mut().for_each(|distance| *distance = (1.0 - *distance * inverse).max(0.0));
        }
        Ok(())
    })
}
