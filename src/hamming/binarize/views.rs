//! Several feature sets of the same things made into one, before a code is learned from it.

use ndarray::{Array2, Ix2, s};

use super::widen;
use crate::kernels::MatmulElement;
use crate::kernels::matmul::{matmul, matmul_add};
use crate::tensor::{Storage, Tensor};
use crate::{Error, Result};

/// How views become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fusion {
    /// Side by side: as many features as all views have.
    Concatenate,
    /// Added up: views of equally many features.
    Sum,
}

/// One matrix of features (n, D) from several views (n, d_v) of the same n things, each times its weight, side by side or added up, on the device of the
/// views. A [`Binarizer`](super::Binarizer) then makes one code of it.
///
/// Views should be of one scale, or the larger outweighs the others: [`normalize_rows`](crate::kernels::normalize_rows()) before. On a GPU it is a matrix product
/// with scaled unit matrices (exact but for one rounding a view).
///
/// # Errors
/// [`Error::Argument`] without views, or for a weight that is not finite; [`Error::Shape`] where there is not one weight a view, the views have not the same
/// rows, or, to be added, not the same features; [`Error::DeviceMismatch`]; the device's own.
///
/// Source: Yan et al., Deep Multi-View Enhancement Hashing for Image Retrieval, TPAMI 2021, whose variants differ in this step.
pub fn fuse<T: MatmulElement<Sum = f32>>(
    views: &[&Tensor<T, Ix2>],
    weights: &[f32],
    fusion: Fusion,
) -> Result<Tensor<f32, Ix2>> {
    let place = "fuse";
    let Some(first) = views.first() else {
        let expected = "at least one".to_string();
        return Err(Error::Argument { place, quantity: "views", expected, found: "none".into() });
    };
    if weights.len() != views.len() {
        let expected = format!("[{}], one a view", views.len());
        return Err(Error::Shape { place, quantity: "weights", expected, found: vec![weights.len()] });
    }
    if let Some(weight) = weights.iter().find(|weight| !weight.is_finite()) {
        let expected = "a finite number".to_string();
        return Err(Error::Argument { place, quantity: "weight", expected, found: weight.to_string() });
    }
    let (rows, dim) = (first.shape()[0], first.shape()[1]);
    for view in views {
        first.device().same(place, "view", view.device())?;
        let fits = view.shape()[0] == rows && (fusion == Fusion::Concatenate || view.shape()[1] == dim);
        if !fits {
            let expected = match fusion {
                Fusion::Concatenate => format!("{rows} rows, as the first"),
                Fusion::Sum => format!("[{rows}, {dim}], as the first"),
            };
            return Err(Error::Shape { place, quantity: "view", expected, found: view.shape().to_vec() });
        }
    }
    let widths = views.iter().map(|view| view.shape()[1]);
    let (total, mut offset) = match fusion {
        Fusion::Concatenate => (widths.sum(), 0),
        Fusion::Sum => (dim, 0),
    };
    let mut on_host = Array2::<f32>::zeros(if first.device().is_cpu() { (rows, total) } else { (0, 0) });
    let mut on_gpu: Option<Tensor<f32, Ix2>> = None;
    for (view, weight) in views.iter().zip(weights) {
        let width = view.shape()[1];
        match view.storage() {
            Storage::Host(view) => on_host
                .slice_mut(s![.., offset..offset + width])
                .zip_mut_with(&view, |sum, value| *sum += weight * value.widen()),
            Storage::Gpu(..) => {
                let placed =
                    Array2::from_shape_fn((width, total), |(i, j)| if i + offset == j { *weight } else { 0.0 });
                let (view, placed) = (widen(view)?, view.device().tensor_from(placed)?);
                on_gpu = Some(match &on_gpu {
                    None => matmul(&view, &placed, false, false)?,
                    Some(sum) => matmul_add(sum, &view, &placed, false, false)?,
                });
            }
        }
        if fusion == Fusion::Concatenate {
            offset += width;
        }
    }
    Ok(on_gpu.unwrap_or_else(|| Tensor::host(on_host)))
}
