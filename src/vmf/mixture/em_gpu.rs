//! The E- and M-step on a GPU: rows, mean directions and sums stay there; a pass reads back once, a few numbers a component and a block of rows.

use ndarray::{Array1, Array2, Axis, Ix1, Ix2, s};

use super::backend::{Backend, Pass, Summary};
use crate::kernels::column_sums::blend;
use crate::kernels::matmul::matmul_add;
use crate::kernels::normalize_rows;
use crate::kernels::{PosteriorSummary, mixture_summary};
use crate::vmf::on_gpu::{GpuRows, Terms, chunk_rows, posterior, unit};
use crate::vmf::rows::{RowSource, Rows};
use crate::{Device, Result, Tensor};

/// Unit rows on the device.
struct Chunk {
    first: usize,
    unit: Tensor<f32, Ix2>,
    weights: Option<Tensor<f32, Ix1>>,
}

/// Where the rows of a pass come from.
enum Data<'a> {
    Resident(Vec<Chunk>),
    Streamed { source: &'a dyn RowSource, step: usize },
}

/// The GPU's side of a fit.
pub(crate) struct OnGpu<'a> {
    device: Device,
    data: Data<'a>,
    rows: usize,
    dim: usize,
    components: usize,
    /// (K, d), unit rows.
    means: Option<Tensor<f32, Ix2>>,
    /// (K, d).
    sums: Option<Tensor<f32, Ix2>>,
    /// The sums at unit length, or the means where a sum is zero: what the M-step makes of them.
    next: Option<Tensor<f32, Ix2>>,
}

impl<'a> OnGpu<'a> {
    /// Keeps `rows` on the device at unit length. `batch` is the length of the ranges that passes will ask for, where not all rows.
    pub(crate) async fn resident<T: Rows>(
        rows: &Tensor<T, Ix2>,
        weights: Option<&[f64]>,
        components: usize,
        batch: Option<usize>,
    ) -> Result<Self> {
        let (count, dim) = (rows.shape()[0], rows.shape()[1]);
        let step = batch.unwrap_or(usize::MAX).min(chunk_rows(dim, components));
        let source = GpuRows::new(rows).await?;
        let mut chunks = Vec::new();
        for batch_first in (0..count).step_by(batch.unwrap_or(count).max(1)) {
            let batch_end = batch.map_or(count, |batch| (batch_first + batch).min(count));
            for first in (batch_first..batch_end).step_by(step) {
                let range = first..(first + step).min(batch_end);
                let weights = match weights {
                    None => None,
                    Some(weights) => {
                        let weights: Array1<f32> = weights[range.clone()].iter().map(|&weight| weight as f32).collect();
                        Some(rows.device().tensor(&weights)?)
                    }
                };
                let unit = source.unit(range, weights.as_ref())?;
                chunks.push(Chunk { first, unit, weights });
            }
        }
        Ok(Self::new(rows.device(), Data::Resident(chunks), (count, dim), components))
    }

    /// Reads the rows anew in every pass.
    pub(crate) fn streamed(device: &Device, source: &'a dyn RowSource, components: usize) -> Self {
        let (rows, dim) = (source.rows(), source.dim());
        let step = chunk_rows(dim, components);
        Self::new(device, Data::Streamed { source, step }, (rows, dim), components)
    }

    /// Rows at `indices`, ascending, at unit length; for the seeds.
    pub(crate) async fn select(&self, indices: &[usize]) -> Result<Array2<f32>> {
        let mut selected = Array2::zeros((indices.len(), self.dim));
        match &self.data {
            Data::Resident(chunks) => {
                for chunk in chunks {
                    let end = chunk.first + chunk.unit.shape()[0];
                    let (from, to) =
                        (indices.partition_point(|&row| row < chunk.first), indices.partition_point(|&row| row < end));
                    let inside: Vec<usize> = indices[from..to].iter().map(|row| row - chunk.first).collect();
                    let rows = chunk.unit.select_rows(&inside)?.to_array_async().await?;
                    selected.slice_mut(s![from..to, ..]).assign(&rows);
                }
            }
            Data::Streamed { source, .. } => {
                for (mut row, &index) in selected.axis_chunks_iter_mut(Axis(0), 1).zip(indices) {
                    source.read(index, row.view_mut())?;
                }
            }
        }
        Ok(selected)
    }

    fn new(device: &Device, data: Data<'a>, (rows, dim): (usize, usize), components: usize) -> Self {
        Self { device: device.clone(), data, rows, dim, components, means: None, sums: None, next: None }
    }

    /// The E-step and the sums of one chunk, added to `sums`.
    fn add(
        &self,
        chunk: &Chunk,
        terms: &Terms,
        hard: bool,
        sums: Tensor<f32, Ix2>,
    ) -> Result<(PosteriorSummary, Tensor<f32, Ix2>)> {
        let posterior = posterior(&chunk.unit, self.current(), terms, chunk.weights.as_ref(), hard)?;
        let summary = mixture_summary(&posterior)?;
        let sums = matmul_add(&sums, &posterior.shares, &chunk.unit, true, false)?;
        // What this chunk was made of may be used again from here on.
        Ok((summary, sums))
    }

    /// The sums of the steps so far, (K, d).
    #[cfg(feature = "datafusion")]
    pub(crate) async fn sums(&self) -> Result<Vec<f32>> {
        match &self.sums {
            Some(sums) => Ok(sums.to_array_async().await?.into_raw_vec_and_offset().0),
            None => Ok(vec![0.0; self.components * self.dim]),
        }
    }

    fn current(&self) -> &Tensor<f32, Ix2> {
        match &self.means {
            Some(means) => means,
            None => unreachable!("means are set before the first step"),
        }
    }
}

impl Backend for OnGpu<'_> {
    fn rows(&self) -> usize {
        self.rows
    }

    fn set_means(&mut self, means: Vec<f32>) -> Result<()> {
        let Ok(means) = Array2::from_shape_vec((self.components, self.dim), means) else {
            unreachable!("K d elements");
        };
        self.means = Some(self.device.tensor(&means)?);
        Ok(())
    }

    async fn step(&mut self, pass: Pass<'_>) -> Result<Summary> {
        let k = self.components;
        debug_assert!(self.current().checks().is_empty() && self.sums.iter().all(|sums| sums.checks().is_empty()));
        let terms = Terms::new(&pass.densities.kappa[..k], &pass.densities.bias[..k]);
        let mut sums: Tensor<f32, Ix2> = self.device.zeros((k, self.dim))?;
        let mut parts = Vec::new();
        match &self.data {
            Data::Resident(chunks) => {
                for chunk in chunks.iter().filter(|chunk| pass.rows.contains(&chunk.first)) {
                    let (summary, added) = self.add(chunk, &terms, pass.hard, sums)?;
                    sums = added;
                    parts.push((chunk.first, summary));
                }
            }
            Data::Streamed { source, step } => {
                let mut buffer = Array2::<f32>::zeros(((*step).min(pass.rows.len()), self.dim));
                for first in pass.rows.clone().step_by(*step) {
                    let count = (*step).min(pass.rows.end - first);
                    source.read(first, buffer.slice_mut(s![..count, ..]))?;
                    let unit = unit(&self.device, buffer.slice(s![..count, ..]), first)?;
                    let chunk = Chunk { first, unit, weights: None };
                    let (summary, added) = self.add(&chunk, &terms, pass.hard, sums)?;
                    sums = added;
                    parts.push((first, summary));
                }
            }
        }
        let (keep, add) = pass.blend;
        let sums = match &self.sums {
            Some(old) if keep != 0.0 => blend(old, keep as f32, &sums, add as f32)?,
            _ if add != 1.0 => blend(&sums, 0.0, &sums, add as f32)?,
            _ => sums,
        };
        let (next, lengths) = normalize_rows::on_gpu(&sums, 0..k, None, Some(self.current()))?;
        self.sums = Some(sums);
        self.next = Some(next);

        // One readback: the sums of every chunk, the worst rows of their blocks, the lengths.
        let mut pieces: Vec<Tensor<u32, Ix1>> = vec![lengths.bits()];
        for (_, part) in &parts {
            pieces.push(part.sums.bits());
            let blocks = part.worst.len();
            pieces.push(part.worst.clone().into_shape(blocks)?);
        }
        let words = Tensor::concatenate(&self.device, &pieces)?.to_array_async().await?.to_vec();
        let mut rest = &words[..];
        let mut take = |count: usize| {
            let (taken, after) = rest.split_at(count);
            rest = after;
            taken
        };
        // The wait has checked all that these were made from; what comes after them need not ask again.
        self.sums = self.sums.take().map(Tensor::verified);
        self.next = self.next.take().map(Tensor::verified);
        if let Data::Resident(chunks) = &mut self.data {
            for chunk in chunks.iter_mut().filter(|chunk| pass.rows.contains(&chunk.first)) {
                chunk.unit = chunk.unit.clone().verified();
            }
        }
        let float = |&bits: &u32| f64::from(f32::from_bits(bits));
        let lengths = take(k).iter().map(float).collect();
        let mut summary = Summary { mass: vec![0.0; k], sizes: vec![0; k], lengths, ..Summary::default() };
        for (first, part) in &parts {
            let sums: Vec<f64> = take(2 * k + 3).iter().map(float).collect();
            summary.mass.iter_mut().zip(&sums[..k]).for_each(|(mass, sum)| *mass += sum);
            summary.sizes.iter_mut().zip(&sums[k..2 * k]).for_each(|(size, &sum)| *size += sum as usize);
            let weight = sums[2 * k];
            summary.weight += weight;
            summary.log_likelihood += sums[2 * k + 1] + weight * terms.reference;
            summary.best += sums[2 * k + 2] + weight * terms.reference;
            for worst in take(part.worst.len()).chunks_exact(2) {
                if worst[1] != u32::MAX {
                    summary.worst.push((float(&worst[0]) + terms.reference, first + worst[1] as usize));
                }
            }
        }
        summary.worst.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        Ok(summary)
    }

    fn update_means(&mut self) -> Result<()> {
        if let Some(next) = self.next.take() {
            self.means = Some(next);
        }
        Ok(())
    }

    async fn reseed(&mut self, k: usize, row: usize) -> Result<()> {
        let means = match &self.data {
            Data::Resident(chunks) => {
                let Some(chunk) = chunks.iter().rfind(|chunk| chunk.first <= row) else {
                    unreachable!("rows come from chunks");
                };
                self.current().with_row(k, &chunk.unit, row - chunk.first)?
            }
            Data::Streamed { source, .. } => {
                let mut buffer = Array2::<f32>::zeros((1, self.dim));
                source.read(row, buffer.view_mut())?;
                self.current().with_row(k, &unit(&self.device, buffer.view(), row)?, 0)?
            }
        };
        self.means = Some(means);
        Ok(())
    }

    async fn means(&mut self) -> Result<Vec<f32>> {
        Ok(self.current().to_array_async().await?.into_raw_vec_and_offset().0)
    }
}
