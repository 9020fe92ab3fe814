//! What fits and densities do with rows on a GPU: unit rows, and terms of components that f32 can tell apart.

use std::ops::Range;

use ndarray::{ArrayView2, Ix1, Ix2};

use super::rows::Rows;
use crate::kernels::{Posterior, matmul, mixture_posterior, normalize_rows};
use crate::{Device, Result, Tensor};

/// Elements of rows, and of their shares, that a step works on at a time.
const CHUNK: usize = 16 << 20;

/// Rows of a pass that fit [`CHUNK`].
pub(crate) fn chunk_rows(dim: usize, components: usize) -> usize {
    (CHUNK / dim.max(components)).clamp(256, 1 << 20)
}

/// Unit rows of a tensor on a GPU, from `range`, (n, d) f32. f64 rows are rounded to f32 on the way, through the host.
pub(crate) async fn unit_rows<T: Rows>(
    rows: &Tensor<T, Ix2>,
    range: Range<usize>,
    weights: Option<&Tensor<f32, Ix1>>,
) -> Result<Tensor<f32, Ix2>> {
    if T::NAME == "f64" {
        let wide = rows.to_array_async().await?;
        let narrow = rows.device().tensor_from(wide.mapv(|value| value.wide() as f32))?;
        return Ok(normalize_rows::on_gpu(&narrow, range, weights, None)?.0);
    }
    Ok(normalize_rows::on_gpu(rows, range, weights, None)?.0)
}

/// Rows just read, of which the first has number `first` in messages, on the device at unit length.
pub(crate) fn unit(device: &Device, rows: ArrayView2<'_, f32>, first: usize) -> Result<Tensor<f32, Ix2>> {
    let rows = device.tensor(&rows)?;
    let range = 0..rows.shape()[0];
    Ok(normalize_rows::on_gpu_from(&rows, range, first, None, None)?.0)
}

/// The parameters of an E-step as the kernel takes them.
pub(crate) struct Terms {
    kappa: Vec<f32>,
    bias: Vec<f32>,
    /// What all biases had in common.
    pub(crate) reference: f64,
}

impl Terms {
    /// Of components with the density exp(bias + kappa cos): the biases at a row in the mean direction, less their largest, in f64 here, so that f32
    /// keeps their differences.
    pub(crate) fn new(kappa: &[f64], bias: &[f64]) -> Self {
        let peaks: Vec<f64> = kappa.iter().zip(bias).map(|(kappa, bias)| kappa + bias).collect();
        let reference = peaks.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        Self {
            kappa: kappa.iter().map(|&kappa| kappa as f32).collect(),
            // A component of no weight: finite, and its exp is 0.
            bias: peaks.iter().map(|peak| (peak - reference).max(-1e30) as f32).collect(),
            reference,
        }
    }
}

/// The E-step of unit rows (n, d) under mean directions (K, d).
pub(crate) fn posterior(
    unit: &Tensor<f32, Ix2>,
    means: &Tensor<f32, Ix2>,
    terms: &Terms,
    weights: Option<&Tensor<f32, Ix1>>,
    hard: bool,
) -> Result<Posterior> {
    let cosines = matmul(unit, means, false, true)?;
    mixture_posterior(&cosines, &terms.kappa, &terms.bias, terms.reference as f32, weights, hard)
}
