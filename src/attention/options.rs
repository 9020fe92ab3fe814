//! [`Options`] of an attention.

use ndarray::Ix4;

use crate::tensor::Tensor;

/// Which of the GPU kernels computes an attention. Results differ by rounding alone. The CPU has one, and takes any of these for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Algorithm {
    /// By the adapter and the shape: see [`attention()`](super::attention()).
    #[default]
    Auto,
    /// Within every browser's limits: 16 KiB of workgroup memory, no subgroups, no f16 arithmetic.
    Portable,
    /// Larger tiles, in 32 KiB of workgroup memory.
    LargeTiles,
    /// Reductions across subgroups, and a kernel of its own for few rows (native adapters that have them).
    Subgroups,
    /// Matrix units, 16 x 16 x 16 (or Metal's 8 x 8 x 8), of f16 with f32 sums. For tensors of f16 only: f32 rounded to f16 would not keep its accuracy.
    /// Where the adapter has them, in subgroups of 32, and the environment asked for them (`ORTHANT_COOPERATIVE_MATRICES=1`) before the device was
    /// opened: wgpu calls them experimental, and this kernel has been validated, and run with plain loops in place of the units, but not on hardware.
    CooperativeMatrices,
    /// The kernel of `CooperativeMatrices` with plain loops for units of so many rows, 8 or 16: slow, for tests.
    #[doc(hidden)]
    EmulatedMatrices(u32),
}

/// What an attention masks, adds to its scores and returns. [`Options::default`] is plain softmax(q k^T / sqrt(d)) v.
///
/// A score is made in this order: (q * scale) . k, the soft cap, ALiBi, the bias, the mask. With `p = i + kv_len - q_len` the position of query `i`
/// among the keys (queries are aligned to the end of the keys, as decoders need):
#[derive(Debug, Clone, Default)]
pub struct Options {
    pub(crate) scale: Option<f32>,
    pub(crate) causal: bool,
    pub(crate) window: Option<usize>,
    pub(crate) softcap: Option<f32>,
    pub(crate) alibi: Option<Vec<f32>>,
    pub(crate) sinks: Option<Vec<f32>>,
    pub(crate) bias: Option<Tensor<f32, Ix4>>,
    pub(crate) key_lengths: Option<Vec<usize>>,
    pub(crate) ragged: Option<(Vec<usize>, Vec<usize>)>,
    pub(crate) lse: bool,
    pub(crate) algorithm: Algorithm,
    pub(crate) splits: Option<usize>,
}

impl Options {
    /// Plain attention: no mask, scale 1 / sqrt(d), no log-sum-exp.
    pub fn new() -> Self {
        Self::default()
    }

    /// What scores are multiplied by; finite. Default 1 / sqrt(d).
    pub fn scale(mut self, scale: f32) -> Self {
        self.scale = Some(scale);
        self
    }

    /// Query `i` sees the keys `j <= p` only.
    pub fn causal(mut self) -> Self {
        self.causal = true;
        self
    }

    /// Query `i` sees the keys `p - window < j` only (itself and the `window - 1` before it) and, where it is not causal, `j < p + window`. At least 1.
    pub fn window(mut self, window: usize) -> Self {
        self.window = Some(window);
        self
    }

    /// Scores become `cap * tanh(score / cap)`; finite, above 0.
    pub fn softcap(mut self, cap: f32) -> Self {
        self.softcap = Some(cap);
        self
    }

    /// Adds `-slope * |p - j|`, one finite slope for each query head; [`alibi_slopes`] gives the usual ones.
    pub fn alibi(mut self, slopes: Vec<f32>) -> Self {
        self.alibi = Some(slopes);
        self
    }

    /// One learned logit for each query head, finite: it takes its share of the softmax and gives no value. The log-sum-exp contains it, so among
    /// parts that will be merged only one may have it.
    pub fn sinks(mut self, logits: Vec<f32>) -> Self {
        self.sinks = Some(logits);
        self
    }

    /// Adds a tensor to the scores, on the device of q; each axis is 1 or that of [batch, q_heads, q_len, kv_len] (with
    /// [`Options::ragged`]: [sequences, q_heads, the longest q, the longest kv]). -inf (and whatever lies below -1e30) masks a key.
    pub fn bias(mut self, bias: Tensor<f32, Ix4>) -> Self {
        self.bias = Some(bias);
        self
    }

    /// Of each batch only the first so many keys are there (at most kv_len); what lies behind them is never read. Queries are aligned to the end of those.
    pub fn key_lengths(mut self, lengths: Vec<usize>) -> Self {
        self.key_lengths = Some(lengths);
        self
    }

    /// Sequences of different lengths in one row: tensors of batch 1, where sequence `s` has the queries `q_offsets[s]..q_offsets[s + 1]` and the keys
    /// `kv_offsets[s]..kv_offsets[s + 1]`. Both begin with 0, never fall, and end with q_len and kv_len.
    pub fn ragged(mut self, q_offsets: Vec<usize>, kv_offsets: Vec<usize>) -> Self {
        self.ragged = Some((q_offsets, kv_offsets));
        self
    }

    /// Also return the log-sum-exp of each query's scores: what [`merge_attention`](super::merge_attention) and
    /// [`attention_backward`](super::attention_backward) need.
    pub fn lse(mut self) -> Self {
        self.lse = true;
        self
    }

    /// A certain GPU kernel. Default: by the adapter and the shape.
    pub fn algorithm(mut self, algorithm: Algorithm) -> Self {
        self.algorithm = algorithm;
        self
    }

    /// In how many ranges a GPU splits the keys, at least 1. Default: as many as fill the device.
    pub fn splits(mut self, splits: usize) -> Self {
        self.splits = Some(splits);
        self
    }
}

/// The slopes of ALiBi for `heads` query heads: 2^(-8/n), 2^(-16/n), ... for n a power of two; for others those of the power below, then every second
/// one of the power above. Source: Press et al. 2022.
pub fn alibi_slopes(heads: usize) -> Vec<f32> {
    let powers = |n: usize| (1..=n).map(move |i| (-8.0 * i as f64 / n as f64).exp2() as f32);
    if heads == 0 {
        return Vec::new();
    }
    let below = 1 << heads.ilog2();
    powers(below).chain(powers(2 * below).step_by(2)).take(heads).collect()
}
