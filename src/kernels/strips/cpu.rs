//! The CPU's way: a map of the batch at a time; sums in f64.

use multiversion::multiversion;
use rayon::prelude::*;

use super::Shape;

/// Fills `out`; the first map whose statistics are not finite, if any has.
pub(super) fn forward(shape: &Shape, x: &[f32], convolution: &[f32], affine: &[f32], out: &mut [f32]) -> Option<usize> {
    let (height, width) = (shape.height, shape.width);
    let (plane, map) = (height * width, shape.channels * height * width);
    if x.is_empty() {
        return None;
    }
    let bad = x.par_chunks(map).zip(out.par_chunks_mut(map)).enumerate().filter_map(|(index, (x, out))| {
        let mut rows = vec![0.0; shape.channels * height];
        let mut columns = vec![0.0; shape.channels * width];
        let strips = rows.par_chunks_mut(height).zip(columns.par_chunks_mut(width));
        x.par_chunks(plane).zip(strips).for_each(|(x, (rows, columns))| means(x, rows, columns));
        let (Some(rows), Some(columns)) =
            (gates(shape, &rows, height, convolution, affine), gates(shape, &columns, width, convolution, affine))
        else {
            return Some(index);
        };
        let gates = rows.par_chunks(height).zip(columns.par_chunks(width));
        let planes = x.par_chunks(plane).zip(out.par_chunks_mut(plane));
        planes.zip(gates).for_each(|((x, out), (rows, columns))| product(x, rows, columns, out));
        None
    });
    bad.min()
}

/// The mean of each row and each column of a plane.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
fn means(x: &[f32], rows: &mut [f32], columns: &mut [f32]) {
    const LANES: usize = 16;
    let (height, width) = (rows.len(), columns.len());
    let mut sums = vec![0.0f64; width];
    for (row, mean) in x.chunks_exact(width).zip(rows) {
        let mut lanes = [0.0f64; LANES];
        let (blocks, rest) = row.as_chunks::<LANES>();
        let (sum_blocks, sum_rest) = sums.as_chunks_mut::<LANES>();
        for (block, sums) in blocks.iter().zip(sum_blocks) {
            for lane in 0..LANES {
                let value = f64::from(block[lane]);
                lanes[lane] += value;
                sums[lane] += value;
            }
        }
        for (&value, sum) in rest.iter().zip(sum_rest) {
            lanes[0] += f64::from(value);
            *sum += f64::from(value);
        }
        *mean = (lanes.iter().sum::<f64>() / width as f64) as f32;
    }
    for (mean, sum) in columns.iter_mut().zip(sums) {
        *mean = (sum / height as f64) as f32;
    }
}

/// sigmoid(GroupNorm(conv1d)) of strips [channels, strip], or none if that is not finite.
fn gates(shape: &Shape, strips: &[f32], strip: usize, convolution: &[f32], affine: &[f32]) -> Option<Vec<f32>> {
    let &Shape { channels, inner, length, .. } = shape;
    let mut out = vec![0.0; strips.len()];
    for (channel, out) in out.chunks_mut(strip).enumerate() {
        out.fill(affine[channel]);
        for k in 0..inner {
            let from = &strips[(channel / inner * inner + k) * strip..][..strip];
            for (tap, &weight) in convolution[(channel * inner + k) * length..][..length].iter().enumerate() {
                // out[i] += weight from[i + tap - length / 2], where that is there.
                let (skip, begin) = ((length / 2).saturating_sub(tap), tap.saturating_sub(length / 2));
                let from = from.get(begin..).unwrap_or(&[]);
                out.iter_mut().skip(skip).zip(from).for_each(|(out, &value)| *out += weight * value);
            }
        }
    }
    let group = channels / shape.norm_groups;
    for (index, out) in out.chunks_mut(group * strip).enumerate() {
        let mean = out.iter().map(|&value| f64::from(value)).sum::<f64>() / out.len() as f64;
        let variance = out.iter().map(|&value| (f64::from(value) - mean).powi(2)).sum::<f64>() / out.len() as f64;
        if !variance.is_finite() {
            return None;
        }
        let scale = 1.0 / (variance + f64::from(shape.epsilon)).sqrt();
        for (local, out) in out.chunks_mut(strip).enumerate() {
            let channel = index * group + local;
            let (gamma, beta) = (f64::from(affine[channels + channel]), f64::from(affine[2 * channels + channel]));
            for value in out {
                let normal = (f64::from(*value) - mean) * scale * gamma + beta;
                *value = (1.0 / (1.0 + (-normal).exp())) as f32;
            }
        }
    }
    Some(out)
}

fn product(x: &[f32], rows: &[f32], columns: &[f32], out: &mut [f32]) {
    let lines = x.chunks_exact(columns.len()).zip(out.chunks_exact_mut(columns.len()));
    for ((x, out), row) in lines.zip(rows) {
        for ((out, x), column) in out.iter_mut().zip(x).zip(columns) {
            *out = x * row * column;
        }
    }
}
