//! Scaled dot-product attention: the door. The CPU's and the GPU's ways are in the rooms beside.

mod backward;
pub(crate) mod cpu;
mod gpu;
mod merge;

use half::f16;
use ndarray::{Array3, Array4, Ix3, Ix4};

use crate::attention::{Options, Problem};
use crate::tensor::{Element, Storage, Tensor};
use crate::{Error, Result};

pub(crate) use backward::variants as backward_variants;
pub use backward::{Gradients, attention_backward};
pub use merge::{merge_attention, merge_attention_async};

/// An element that queries, keys and values are stored in: f32 or f16. Scores, sums and the log-sum-exp are f32 all the same.
#[allow(private_bounds)]
pub trait AttentionElement: Element + cpu::micro::Stored {
    /// As it is computed with.
    fn widen(self) -> f32;
    /// The nearest of its kind.
    fn narrow(value: f32) -> Self;
}

impl AttentionElement for f32 {
    fn widen(self) -> f32 {
        self
    }
    fn narrow(value: f32) -> Self {
        value
    }
}
impl AttentionElement for f16 {
    fn widen(self) -> f32 {
        self.to_f32()
    }
    fn narrow(value: f32) -> Self {
        f16::from_f32(value)
    }
}

/// The first of `values` that is not a number, or of a magnitude above `largest`.
pub(crate) fn first_beyond<T: AttentionElement>(values: &[T], largest: f32) -> Option<usize> {
    const PART: usize = 1024;
    let isa = cpu::micro::Isa::best();
    let mut part = [0.0; PART];
    for (number, values) in values.chunks(PART).enumerate() {
        let part = &mut part[..values.len()];
        isa.pack_row(values, 1.0, part);
        let beyond = |x: f32| x.is_nan() || x.abs() > largest;
        if beyond(isa.largest(part)) {
            return part.iter().position(|x| beyond(*x)).map(|index| number * PART + index);
        }
    }
    None
}

pub(in crate::kernels) use gpu::narrow;
pub(crate) use gpu::variants;

/// What an attention gives.
#[derive(Debug, Clone)]
pub struct Output<T: AttentionElement> {
    /// [batch, q_heads, q_len, d_v].
    pub output: Tensor<T, Ix4>,
    /// ln of the sum of exp(score) over the keys each query sees, [batch, q_heads, q_len], if it was asked for; -1e30 where it sees none.
    pub lse: Option<Tensor<f32, Ix3>>,
}

/// softmax(scale q k^T + mask) v, without ever holding the scores.
///
/// * `q` [batch, q_heads, q_len, d], `k` [batch, kv_heads, kv_len, d], `v` [batch, kv_heads, kv_len, d_v]; `kv_heads` divides `q_heads` (query heads
///   h * q_heads / kv_heads and the ones after it share key head h); d and d_v from 1 to 256; all finite
/// * `options`: masks, bias, sinks, scale, and whether the log-sum-exp is returned: see [`Options`]
/// * a query that sees no key gets zeros
/// * every row within 1e-5 (f16: 2e-3) of the definition in f64, relative to its largest element (of f16 at least 2^-14), scores up to 100; at d_v = 1, where
///   nothing stands beside an element whose terms cancel, relative to a tenth of the sum of their sizes (f16: a quarter)
///
/// # Errors
/// [`Error::Shape`] and [`Error::Argument`] name what does not fit; [`Error::Domain`] an element that is not finite (a bias of -inf is fine): on a GPU, at
/// the wait for the result, its index is that of the first row of the output that meets one; [`Error::DeviceMismatch`]; [`Error::Unsupported`] for an [`Algorithm`](crate::attention::Algorithm) that the adapter cannot run.
///
/// `Algorithm::Auto` takes, on hardware: subgroups where a key head has at most 16 rows (queries times heads of its group) and the adapter has them, else,
/// for f16, matrix units where the device was opened with them (`ORTHANT_COOPERATIVE_MATRICES=1`), else large tiles where there are 32 KiB of workgroup
/// memory; else, and on software adapters, portable tiles. `Algorithm::Subgroups` decodes up to 16 rows straight from memory, and reduces the rows of
/// tiles beyond that. Where a key head has fewer than 32 rows, its keys are split until about 256 workgroups run, of at least 128 keys each, and the parts
/// merged.
///
/// Source: Dao et al. 2022 (online softmax over tiles), Dao 2023 (split keys).
pub fn attention<T: AttentionElement>(
    q: &Tensor<T, Ix4>,
    k: &Tensor<T, Ix4>,
    v: &Tensor<T, Ix4>,
    options: &Options,
) -> Result<Output<T>> {
    let device = q.device();
    device.same("attention", "k", k.device())?;
    device.same("attention", "v", v.device())?;
    let problem = Problem::new("attention", device, q.shape(), k.shape(), v.shape(), options)?;
    match (q.storage(), k.storage(), v.storage()) {
        (Storage::Host(q), Storage::Host(k), Storage::Host(v)) => {
            let (output, lse) = cpu::forward(&problem, options, &q, &k, &v)?;
            Ok(Output { output: Tensor::host(output), lse: options.lse.then(|| Tensor::host(lse)) })
        }
        (Storage::Gpu(gpu, _), Storage::Gpu(..), Storage::Gpu(..)) => {
            let (output, lse) = gpu::forward(gpu, &problem, options, q, k, v)?;
            Ok(Output { output, lse: options.lse.then_some(lse) })
        }
        _ => unreachable!("all are on one device"),
    }
}
