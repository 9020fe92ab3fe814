//! The E- and M-step on the CPU, fused: a chunk of rows stays in the cache from the first matrix product to the second.

use std::ops::Range;

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use super::backend::{Backend, Pass, Summary};
use super::chunks::{Chunks, Scratch, chunk_rows};
use super::posterior::{Densities, RowPosterior, posterior};
use crate::Result;
use crate::kernels::matmul::parallel;

/// Rows whose sums may stay in f32 before they are added to f64 sums: 4096 additions cost at most 4096 * 2^-24 = 2.4e-4 of the sum of
/// absolute values in the worst case, 4e-6 at random signs.
const FLUSH: usize = 4096;

/// Bytes that the sums of the parts may take on top of the data.
const SUMS_BYTES: usize = 64 << 20;

/// Worst rows that a part remembers.
const WORST: usize = 64;

/// The CPU's side of a fit.
pub(crate) struct Cpu<'a> {
    chunks: &'a dyn Chunks,
    components: usize,
    /// (K, d).
    means: Vec<f32>,
    /// (K, d).
    sums: Vec<f64>,
}

impl<'a> Cpu<'a> {
    pub(crate) fn new(chunks: &'a dyn Chunks, components: usize) -> Self {
        let elements = components * chunks.dim();
        Cpu { chunks, components, means: vec![0.0; elements], sums: vec![0.0; elements] }
    }
}

/// A thread's own sums and working memory.
pub(crate) struct Part {
    pub(crate) summary: Summary,
    sums: Vec<f32>,
    /// Where `sums` go after [`FLUSH`] rows; empty if the part has no more rows than that.
    long_sums: Vec<f64>,
    pending: usize,
}

impl Backend for Cpu<'_> {
    fn rows(&self) -> usize {
        self.chunks.rows()
    }

    fn set_means(&mut self, means: Vec<f32>) -> Result<()> {
        self.means = means;
        Ok(())
    }

    async fn step(&mut self, pass: Pass<'_>) -> Result<Summary> {
        let (k, dim) = (self.components, self.chunks.dim());
        let rows = pass.rows.len();
        let threads = rayon::current_num_threads();
        let part_bytes = k * dim * 4;
        let parts = threads.min((SUMS_BYTES / part_bytes).max(2)).min(rows.div_ceil(chunk_rows(dim))).max(1);
        // fewer parts than threads only where the sums are huge: then the matrix products themselves are parallel
        let par = if threads / parts > 1 { parallel(threads / parts) } else { Par::Seq };
        let results = (0..parts)
            .into_par_iter()
            .map(|part| {
                let range = pass.rows.start + rows * part / parts..pass.rows.start + rows * (part + 1) / parts;
                let mut part = Part::new(k, dim, range.len());
                each_chunk(self.chunks, range, k, &self.means, pass.densities, pass.hard, true, par, |chunk| {
                    part.add(chunk, par)
                })?;
                Ok(part)
            })
            .collect::<Result<Vec<Part>>>()?;
        let (keep, add) = pass.blend;
        self.sums.par_chunks_mut(4096).enumerate().for_each(|(at, sums)| {
            let range = at * 4096..at * 4096 + sums.len();
            sums.iter_mut().for_each(|sum| *sum *= keep);
            for part in &results {
                sums.iter_mut().zip(&part.sums[range.clone()]).for_each(|(sum, &value)| *sum += add * value as f64);
                if !part.long_sums.is_empty() {
                    sums.iter_mut().zip(&part.long_sums[range.clone()]).for_each(|(sum, &value)| *sum += add * value);
                }
            }
        });
        let mut total = Summary { mass: vec![0.0; k], sizes: vec![0; k], ..Summary::default() };
        for part in results {
            total.add(part.summary);
        }
        total.worst.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        total.lengths =
            self.sums.chunks_exact(dim).map(|sum| crate::vmf::reduce::squared_norm_f64(sum).sqrt()).collect();
        Ok(total)
    }

    fn update_means(&mut self) -> Result<()> {
        unit_sums(&mut self.means, &self.sums, self.chunks.dim());
        Ok(())
    }

    async fn reseed(&mut self, k: usize, row: usize) -> Result<()> {
        let dim = self.chunks.dim();
        let mut scratch = Scratch::default();
        let chunk = self.chunks.chunk(row, 1, &mut scratch)?;
        let mean = &mut self.means[k * dim..][..dim];
        mean.iter_mut().zip(chunk.rows).for_each(|(mean, &value)| *mean = value * chunk.inverse[0]);
        Ok(())
    }

    async fn means(&mut self) -> Result<Vec<f32>> {
        Ok(self.means.clone())
    }
}

/// Means become the sums at unit length; one whose sum is zero stays.
pub(crate) fn unit_sums(means: &mut [f32], sums: &[f64], dim: usize) {
    for (mean, sum) in means.chunks_exact_mut(dim).zip(sums.chunks_exact(dim)) {
        let length = crate::vmf::reduce::squared_norm_f64(sum).sqrt();
        if length > 0.0 {
            mean.iter_mut().zip(sum).for_each(|(mean, &sum)| *mean = (sum / length) as f32);
        }
    }
}

impl Summary {
    /// Adds the rows of another part.
    pub(crate) fn add(&mut self, other: Summary) {
        self.weight += other.weight;
        self.log_likelihood += other.log_likelihood;
        self.best += other.best;
        self.mass.iter_mut().zip(&other.mass).for_each(|(sum, value)| *sum += value);
        self.sizes.iter_mut().zip(&other.sizes).for_each(|(sum, value)| *sum += value);
        self.worst.extend(other.worst);
    }
}

/// A chunk after its E-step.
pub(crate) struct Evaluated<'a> {
    /// Number of the first row.
    pub(crate) first: usize,
    pub(crate) rows: &'a [f32],
    pub(crate) inverse: &'a [f32],
    pub(crate) weights: Option<&'a [f64]>,
    /// (rows, padded): responsibilities, times weight and `inverse` if they were asked for so.
    pub(crate) responsibilities: &'a [f32],
    pub(crate) padded: usize,
    pub(crate) posterior: &'a [RowPosterior],
    /// Weight that the components gained.
    pub(crate) mass: &'a [f64],
}

/// The E-step over a range of rows, chunk by chunk, in order, on this thread.
#[allow(clippy::too_many_arguments)]
pub(crate) fn each_chunk(
    chunks: &dyn Chunks,
    range: Range<usize>,
    components: usize,
    means: &[f32],
    densities: &Densities,
    hard: bool,
    scaled: bool,
    par: Par,
    mut visit: impl FnMut(&Evaluated<'_>) -> Result<()>,
) -> Result<()> {
    let (dim, padded) = (chunks.dim(), densities.padded());
    let step = chunk_rows(dim).min(range.len().max(1));
    let mut scratch = Scratch::default();
    let mut cosines = vec![0.0f32; step * padded];
    let mut terms = vec![0.0f64; padded];
    let mut mass = vec![0.0f64; padded];
    let mut posteriors = vec![RowPosterior::default(); step];
    let means = MatRef::from_row_major_slice(means, components, dim);
    for first in range.clone().step_by(step) {
        let count = step.min(range.end - first);
        let chunk = chunks.chunk(first, count, &mut scratch)?;
        let cosines = &mut cosines[..count * padded];
        let rows = MatRef::from_row_major_slice(chunk.rows, count, dim);
        // (from_row_major_slice_with_stride_mut of faer 0.24 mixes up the strides)
        let products = MatMut::from_column_major_slice_with_stride_mut(cosines, components, count, padded);
        let products = products.transpose_mut();
        matmul(products, Accum::Replace, rows, means.transpose(), 1.0f32, par);
        mass.fill(0.0);
        let weights = chunks.weights().map(|weights| &weights[first..first + count]);
        let posteriors = &mut posteriors[..count];
        posterior(cosines, chunk.inverse, weights, densities, hard, scaled, &mut terms, &mut mass, posteriors);
        visit(&Evaluated {
            first,
            rows: chunk.rows,
            inverse: chunk.inverse,
            weights,
            responsibilities: cosines,
            padded,
            posterior: posteriors,
            mass: &mass,
        })?;
    }
    Ok(())
}

impl Part {
    /// Nothing yet, of `components` in `dim` dimensions, for `rows` rows at most.
    pub(crate) fn new(components: usize, dim: usize, rows: usize) -> Self {
        Part {
            summary: Summary { mass: vec![0.0; components], sizes: vec![0; components], ..Summary::default() },
            sums: vec![0.0; components * dim],
            long_sums: vec![0.0; if rows > FLUSH { components * dim } else { 0 }],
            pending: 0,
        }
    }

    /// The sums so far, (K, d).
    #[cfg(feature = "datafusion")]
    pub(crate) fn sums(&self) -> Vec<f64> {
        let mut sums: Vec<f64> = self.sums.iter().map(|&sum| sum.into()).collect();
        sums.iter_mut().zip(&self.long_sums).for_each(|(sum, long)| *sum += long);
        sums
    }

    pub(crate) fn add(&mut self, chunk: &Evaluated<'_>, par: Par) -> Result<()> {
        let (k, count) = (self.summary.mass.len(), chunk.posterior.len());
        let dim = chunk.rows.len() / count;
        if self.pending + count > FLUSH && !self.long_sums.is_empty() {
            self.long_sums.iter_mut().zip(&mut self.sums).for_each(|(long, sum)| *long += std::mem::take(sum) as f64);
            self.pending = 0;
        }
        self.pending += count;
        let responsibilities = MatRef::from_row_major_slice_with_stride(chunk.responsibilities, count, k, chunk.padded);
        let rows = MatRef::from_row_major_slice(chunk.rows, count, dim);
        let sums = MatMut::from_row_major_slice_mut(&mut self.sums, k, dim);
        matmul(sums, Accum::Add, responsibilities.transpose(), rows, 1.0f32, par);

        let summary = &mut self.summary;
        summary.mass.iter_mut().zip(chunk.mass).for_each(|(sum, value)| *sum += value);
        let mut worst = (f64::INFINITY, 0);
        for (index, row) in chunk.posterior.iter().enumerate() {
            if chunk.inverse[index] == 0.0 {
                continue;
            }
            let weight = chunk.weights.map_or(1.0, |weights| weights[index]);
            summary.weight += weight;
            summary.log_likelihood += weight * row.log_density;
            summary.best += weight * row.best;
            summary.sizes[row.label as usize] += 1;
            if row.log_density < worst.0 {
                worst = (row.log_density, chunk.first + index);
            }
        }
        if worst.0 < f64::INFINITY {
            if summary.worst.len() < WORST {
                summary.worst.push(worst);
            } else if let Some(best) = summary.worst.iter_mut().max_by(|a, b| a.0.total_cmp(&b.0))
                && worst.0 < best.0
            {
                *best = worst;
            }
        }
        Ok(())
    }
}
