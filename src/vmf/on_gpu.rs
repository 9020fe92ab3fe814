//! What fits and densities do with rows on a GPU: unit rows, and terms of components that f32 can tell apart.

use std::ops::Range;

use ndarray::{Array2, ArrayView2, Ix1, Ix2};

use super::rows::{Rows, inverse_norm};
use crate::kernels::{Posterior, matmul, mixture_posterior, normalize_rows};
use crate::{Device, Result, Tensor};

/// Elements of rows, and of their shares, that a step works on at a time.
const CHUNK: usize = 16 << 20;

/// Rows of a pass that fit [`CHUNK`].
pub(crate) fn chunk_rows(dim: usize, components: usize) -> usize {
    (CHUNK / dim.max(components)).clamp(256, 1 << 20)
}

/// The rows of a tensor on a GPU as its kernels take them.
pub(crate) enum GpuRows<'a, T: Rows> {
    Themselves(&'a Tensor<T, Ix2>),
    /// f64 rows.
    Rounded(Tensor<f32, Ix2>),
}

impl<'a, T: Rows> GpuRows<'a, T> {
    /// f64 rows are rounded to f32 through the host, once, at unit length: f32 may not hold theirs.
    pub(crate) async fn new(rows: &'a Tensor<T, Ix2>) -> Result<Self> {
        if T::NAME != "f64" {
            return Ok(Self::Themselves(rows));
        }
        let wide = rows.to_array_async().await?;
        let mut narrow = Array2::zeros(wide.raw_dim());
        for (mut narrow, wide) in narrow.outer_iter_mut().zip(wide.outer_iter()) {
            // A row that has no unit vector stays as it is, for the kernel to name unless its weight is 0.
            let factor = wide.as_slice().and_then(|row| inverse_norm("normalize_rows", row, 0).ok()).unwrap_or(1.0);
            narrow.zip_mut_with(&wide, |narrow, &value| *narrow = (value.wide() * factor) as f32);
        }
        Ok(Self::Rounded(rows.device().tensor_from(narrow)?))
    }

    /// Unit rows from `range`, (n, d).
    pub(crate) fn unit(&self, range: Range<usize>, weights: Option<&Tensor<f32, Ix1>>) -> Result<Tensor<f32, Ix2>> {
        Ok(match self {
            Self::Themselves(rows) => normalize_rows::on_gpu(rows, range, weights, None)?.0,
            Self::Rounded(rows) => normalize_rows::on_gpu(rows, range, weights, None)?.0,
        })
    }
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
