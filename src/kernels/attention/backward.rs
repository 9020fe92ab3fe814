//! The gradients of an attention: the door. The CPU's and the GPU's ways are in the rooms beside.

mod cpu;
mod gpu;

pub(crate) use gpu::variants;
use ndarray::{Ix1, Ix3, Ix4};

use super::{AttentionElement, Output};
use crate::attention::{Options, Problem};
use crate::device::Device;
use crate::tensor::{Storage, Tensor};
use crate::{Error, Result};

const PLACE: &str = "attention_backward";

/// What a loss changes by with each input of an attention, in f32 on the device of the inputs.
#[derive(Debug, Clone)]
pub struct Gradients {
    /// [batch, q_heads, q_len, d].
    pub q: Tensor<f32, Ix4>,
    /// [batch, kv_heads, kv_len, d]; zeros behind [`Options::key_lengths`].
    pub k: Tensor<f32, Ix4>,
    /// [batch, kv_heads, kv_len, d_v]; zeros behind [`Options::key_lengths`].
    pub v: Tensor<f32, Ix4>,
    /// In the shape of [`Options::bias`], summed over the axes along which it is broadcast; `None` without one.
    pub bias: Option<Tensor<f32, Ix4>>,
    /// One for each query head; `None` without [`Options::sinks`].
    pub sinks: Option<Tensor<f32, Ix1>>,
}

/// The gradients of a loss by the inputs of [`attention()`](super::attention()), from its gradient by the output.
///
/// * `q`, `k`, `v`, `options`: those of the forward call, whose `output` is, with [`Options::lse`]; merged parts serve as well
/// * `grad_output` [batch, q_heads, q_len, d_v]; finite
/// * f32 and f16 storage; everything is computed in f32, and the gradients are f32
/// * deterministic: no sum depends on the number of threads or on a race
///
/// With s the scores, P_ij = exp(s_ij - lse_i) and delta_i = sum_c grad_ic output_ic:
/// `v_j = sum_i P_ij grad_i`, `dS_ij = P_ij (grad_i . v_j - delta_i)`, `bias = dS`, then through the soft cap dS *= 1 - (s / cap)^2 (s before ALiBi
/// and bias), `q_i = scale sum_j dS_ij k_j`, `k_j = scale sum_i dS_ij q_i`, `sinks_h = -sum_i exp(sink_h - lse_i) delta_i`. Tiles of P are recomputed, and
/// only delta (one number a query) is kept.
///
/// Rounding: P_ij is off by a factor of up to 1 + `eps max(|s|, |lse|) + d eps/2 sum|q k|`, as an f32 score must be. An f16 `output` is rounded, so
/// delta_i is off by up to 2^-11 sum_c |grad_ic output_ic| beside that, and dS_ij by P_ij times it.
///
/// # Errors
/// [`Error::Argument`] for an output without its log-sum-exp; [`Error::Shape`] and [`Error::Argument`] as `attention()`; [`Error::DeviceMismatch`];
/// [`Error::Domain`] names a row of `grad_output` whose delta, or whose log-sum-exp, is not finite, or a query that sees a bias of NaN or +inf (on a GPU
/// at the wait).
///
/// Source: Dao et al. 2022, algorithm 4.
pub fn attention_backward<T: AttentionElement>(
    q: &Tensor<T, Ix4>,
    k: &Tensor<T, Ix4>,
    v: &Tensor<T, Ix4>,
    output: &Output<T>,
    grad_output: &Tensor<T, Ix4>,
    options: &Options,
) -> Result<Gradients> {
    let device = q.device();
    device.same(PLACE, "k", k.device())?;
    device.same(PLACE, "v", v.device())?;
    let problem = Problem::new(PLACE, device, q.shape(), k.shape(), v.shape(), options)?;
    let Some(lse) = &output.lse else {
        let expected = "an output with its log-sum-exp (Options::lse)".into();
        return Err(Error::Argument { place: PLACE, quantity: "output", expected, found: "none".into() });
    };
    let rows = [problem.batch, problem.q_heads, problem.q_len];
    let full = [rows[0], rows[1], rows[2], problem.d_v];
    fits(device, "output", &output.output, &full)?;
    fits(device, "lse", lse, &rows)?;
    fits(device, "grad_output", grad_output, &full)?;
    match q.storage() {
        Storage::Host(_) => cpu::backward(&problem, options, [q, k, v, &output.output, grad_output], lse),
        Storage::Gpu(gpu, _) => gpu::backward(gpu, &problem, options, [q, k, v, &output.output, grad_output], lse),
    }
}

/// An error unless `tensor` has that shape on that device.
fn fits<T: crate::Element, D: ndarray::Dimension>(
    device: &Device,
    quantity: &'static str,
    tensor: &Tensor<T, D>,
    shape: &[usize],
) -> Result<()> {
    device.same(PLACE, quantity, tensor.device())?;
    if tensor.shape() != shape {
        let expected = format!("{shape:?}, that of the attention's");
        return Err(Error::Shape { place: PLACE, quantity, expected, found: tensor.shape().to_vec() });
    }
    Ok(())
}

/// What a row of the gradient must be.
const FINDING: crate::gpu::Finding = crate::gpu::Finding {
    quantity: "grad_output",
    expected: "rows whose product with the output, and whose log-sum-exp, is finite",
    found: "not finite",
};
const BIAS_FINDING: crate::gpu::Finding = crate::gpu::Finding {
    quantity: "bias",
    expected: "finite, or -inf for a hidden key",
    found: "NaN or infinite, seen by a query",
};
