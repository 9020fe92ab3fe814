//! What a fitted mixture says of rows: labels, responsibilities, densities.

use faer::Par;
use ndarray::{Array1, Array2, ArrayView1, ArrayView2, Ix1, Ix2, s};
use rayon::prelude::*;

use super::VmfMixture;
use super::chunks::{Chunks, Memory, Streamed, chunk_rows};
use super::em_cpu::{Evaluated, each_chunk};
use crate::gpu::block_on;
use crate::kernels::Posterior;
use crate::vmf::on_gpu::{self, GpuRows, Terms};
use crate::vmf::rows::{RowSource, Rows};
use crate::{Device, Element, Error, Result, Tensor};

/// Chunks that a task takes at a time.
const TASK: usize = 8;

impl VmfMixture {
    /// The most probable component of each of `rows`, (n, d), normalised on the way; (n).
    ///
    /// # Errors
    /// [`Error::Domain`] names the first row that is all zeros or has an element that is not finite; [`Error::Shape`]; the device's own.
    pub fn predict<T: Rows>(&self, rows: &Tensor<T, Ix2>) -> Result<Tensor<u32, Ix1>> {
        if !rows.device().is_cpu() {
            return self.on_gpu(rows, |posterior| posterior.labels);
        }
        self.on_rows(rows, 1, label).and_then(|labels| rows.device().tensor_from(Array1::from(labels)))
    }

    /// The probability of each component given each of `rows`, (n, d); (n, K), rows add up to 1.
    ///
    /// # Errors
    /// As [`VmfMixture::predict`].
    pub fn responsibilities<T: Rows>(&self, rows: &Tensor<T, Ix2>) -> Result<Tensor<f32, Ix2>> {
        let k = self.components().len();
        if !rows.device().is_cpu() {
            let count = rows.shape()[0];
            return self.on_gpu(rows, |posterior| posterior.shares.flatten())?.into_shape((count, k));
        }
        let values = self.on_rows(rows, k, |chunk, out: &mut [f32]| {
            for (out, values) in out.chunks_exact_mut(k).zip(chunk.responsibilities.chunks_exact(chunk.padded)) {
                out.copy_from_slice(&values[..k]);
            }
        })?;
        match Array2::from_shape_vec((rows.shape()[0], k), values) {
            Ok(array) => rows.device().tensor_from(array),
            Err(_) => unreachable!("n * K values"),
        }
    }

    /// ln of the mixture's density at each of `rows`, (n, d), normalised on the way; (n), nats, within about 1e-6 kappa (f32 cosines).
    ///
    /// # Errors
    /// As [`VmfMixture::predict`].
    pub fn score<T: Rows>(&self, rows: &Tensor<T, Ix2>) -> Result<Tensor<f32, Ix1>> {
        if !rows.device().is_cpu() {
            return self.on_gpu(rows, |posterior| posterior.scores);
        }
        self.on_rows(rows, 1, density).and_then(|values| rows.device().tensor_from(Array1::from(values)))
    }

    /// [`VmfMixture::predict`] for rows read in pieces; `sink` takes the labels of the rows from a number on, in order.
    ///
    /// # Errors
    /// As [`VmfMixture::predict`], and what the source or the sink fails with.
    pub fn predict_source(
        &self,
        device: &Device,
        source: &dyn RowSource,
        sink: &mut dyn FnMut(usize, ArrayView1<'_, u32>) -> Result<()>,
    ) -> Result<()> {
        match device {
            Device::Cpu => self.on_source(source, label, sink),
            Device::Gpu(_) => self.on_gpu_source(device, source, |posterior| posterior.labels, sink),
        }
    }

    /// [`VmfMixture::score`] for rows read in pieces; `sink` takes the log-densities of the rows from a number on, in order.
    ///
    /// # Errors
    /// As [`VmfMixture::predict`], and what the source or the sink fails with.
    pub fn score_source(
        &self,
        device: &Device,
        source: &dyn RowSource,
        sink: &mut dyn FnMut(usize, ArrayView1<'_, f32>) -> Result<()>,
    ) -> Result<()> {
        match device {
            Device::Cpu => self.on_source(source, density, sink),
            Device::Gpu(_) => self.on_gpu_source(device, source, |posterior| posterior.scores, sink),
        }
    }

    fn on_rows<T: Rows, R: Default + Copy + Send>(
        &self,
        rows: &Tensor<T, Ix2>,
        width: usize,
        write: impl Fn(&Evaluated<'_>, &mut [R]) + Sync,
    ) -> Result<Vec<R>> {
        let Some(view) = rows.as_host() else { unreachable!("a GPU has its own way") };
        self.on_view(&view, width, write)
    }

    fn on_view<T: Rows, R: Default + Copy + Send>(
        &self,
        view: &ArrayView2<'_, T>,
        width: usize,
        write: impl Fn(&Evaluated<'_>, &mut [R]) + Sync,
    ) -> Result<Vec<R>> {
        self.check_dim(view.nrows(), view.ncols())?;
        let mut out = vec![R::default(); view.nrows() * width];
        self.evaluate(&Memory::new(view, None)?, 0, width, &mut out, write)?;
        Ok(out)
    }

    /// [`VmfMixture::predict`] of row-major rows on the host.
    #[cfg(feature = "datafusion")]
    pub(crate) fn predict_of<T: Rows>(&self, rows: &ArrayView2<'_, T>) -> Result<Vec<u32>> {
        self.on_view(rows, 1, label)
    }

    /// [`VmfMixture::score`] of row-major rows on the host.
    #[cfg(feature = "datafusion")]
    pub(crate) fn score_of<T: Rows>(&self, rows: &ArrayView2<'_, T>) -> Result<Vec<f32>> {
        self.on_view(rows, 1, density)
    }

    fn on_source<R: Default + Copy + Send>(
        &self,
        source: &dyn RowSource,
        write: impl Fn(&Evaluated<'_>, &mut [R]) + Sync,
        sink: &mut dyn FnMut(usize, ArrayView1<'_, R>) -> Result<()>,
    ) -> Result<()> {
        self.check_dim(source.rows(), source.dim())?;
        let chunks = Streamed { source };
        let step = chunk_rows(source.dim()) * TASK * rayon::current_num_threads();
        let mut out = vec![R::default(); step.min(source.rows())];
        for first in (0..source.rows()).step_by(step) {
            let out = &mut out[..step.min(source.rows() - first)];
            self.evaluate(&chunks, first, 1, out, &write)?;
            sink(first, ArrayView1::from(&*out))?;
        }
        Ok(())
    }

    /// A part of the posterior of rows on a GPU, chunk by chunk; it stays there.
    fn on_gpu<T: Rows, R: Element>(
        &self,
        rows: &Tensor<T, Ix2>,
        part: impl Fn(Posterior) -> Tensor<R, Ix1>,
    ) -> Result<Tensor<R, Ix1>> {
        self.check_dim(rows.shape()[0], rows.shape()[1])?;
        let (means, terms) = self.on_device(rows.device())?;
        let step = on_gpu::chunk_rows(self.dim(), self.components().len());
        let mut parts = Vec::new();
        // Only rows of f64, which have to be rounded on the host, make this wait.
        let source = block_on(GpuRows::new(rows))?;
        for first in (0..rows.shape()[0]).step_by(step) {
            let unit = source.unit(first..(first + step).min(rows.shape()[0]), None)?;
            parts.push(part(on_gpu::posterior(&unit, &means, &terms, None, false)?));
        }
        Tensor::concatenate(rows.device(), &parts)
    }

    fn on_gpu_source<R: Element>(
        &self,
        device: &Device,
        source: &dyn RowSource,
        part: impl Fn(Posterior) -> Tensor<R, Ix1>,
        sink: &mut dyn FnMut(usize, ArrayView1<'_, R>) -> Result<()>,
    ) -> Result<()> {
        self.check_dim(source.rows(), source.dim())?;
        let (means, terms) = self.on_device(device)?;
        let step = on_gpu::chunk_rows(self.dim(), self.components().len()).min(source.rows());
        let mut buffer = Array2::<f32>::zeros((step, source.dim()));
        for first in (0..source.rows()).step_by(step.max(1)) {
            let mut rows = buffer.slice_mut(s![..step.min(source.rows() - first), ..]);
            source.read(first, rows.view_mut())?;
            let unit = on_gpu::unit(device, rows.view(), first)?;
            let values = part(on_gpu::posterior(&unit, &means, &terms, None, false)?).to_array()?;
            sink(first, values.view())?;
        }
        Ok(())
    }

    /// Mean directions and terms for an E-step on `device`.
    fn on_device(&self, device: &Device) -> Result<(Tensor<f32, Ix2>, Terms)> {
        let (means, parameters) = self.inside();
        let k = self.components().len();
        let Ok(means) = ArrayView2::from_shape((k, self.dim()), &means) else { unreachable!("K d elements") };
        let densities = parameters.densities(self.dim());
        Ok((device.tensor(&means)?, Terms::new(&densities.kappa[..k], &densities.bias[..k])))
    }

    /// `write` for every chunk of the rows from `first` on, as many as `out` has room for, by all threads.
    fn evaluate<R: Send>(
        &self,
        chunks: &dyn Chunks,
        first: usize,
        width: usize,
        out: &mut [R],
        write: impl Fn(&Evaluated<'_>, &mut [R]) + Sync,
    ) -> Result<()> {
        let (means, parameters) = self.inside();
        let densities = parameters.densities(self.dim());
        let step = chunk_rows(self.dim()) * TASK;
        out.par_chunks_mut(step * width).enumerate().try_for_each(|(task, out)| {
            let start = first + task * step;
            let range = start..start + out.len() / width;
            let k = self.components().len();
            each_chunk(chunks, range, k, &means, &densities, false, false, Par::Seq, |chunk| {
                write(chunk, &mut out[(chunk.first - start) * width..][..chunk.posterior.len() * width]);
                Ok(())
            })
        })
    }

    fn check_dim(&self, rows: usize, dim: usize) -> Result<()> {
        if dim == self.dim() {
            return Ok(());
        }
        let expected = format!("(any, {})", self.dim());
        Err(Error::Shape { place: super::PLACE, quantity: "rows", expected, found: vec![rows, dim] })
    }
}

fn label(chunk: &Evaluated<'_>, out: &mut [u32]) {
    out.iter_mut().zip(chunk.posterior).for_each(|(out, row)| *out = row.label);
}

fn density(chunk: &Evaluated<'_>, out: &mut [f32]) {
    out.iter_mut().zip(chunk.posterior).for_each(|(out, row)| *out = row.log_density as f32);
}
