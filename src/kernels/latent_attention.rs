//! Attention over a low-rank cache, in the space of its latents: the door.

mod cpu;
mod gpu;

use ndarray::Ix4;

use crate::Result;
use crate::attention::{AttentionElement, Output};
use crate::kv::layer::{CachedSequence, LatentLayer};
use crate::kv::store::Store;
use crate::tensor::{Storage, Tensor};

pub(crate) use cpu::HostTables;
pub(crate) use gpu::variants;

pub(crate) const PLACE: &str = "KvCache::attend";

/// What an attention over a cache is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attending {
    /// What scores are multiplied by.
    pub(crate) scale: f32,
    /// Query i of a sequence of `len` tokens sees the keys n <= len - q_len + i; else all.
    pub(crate) causal: bool,
    /// Whether the log-sum-exp is wished for.
    pub(crate) lse: bool,
}

/// softmax(scale q k^T) v over the packed tokens, whose scores are (D R_{-n0} q) . z + (R_{-n0} q) . mean, and the exact ones, in one pass.
///
/// * `q`: [sequences, q_heads, q_len, d], after rotary embedding; KV head of query head h is h / (q_heads / kv_heads)
/// * the latent output is brought to d at the end: o = (sum p z) D + (sum p) mean
///
/// # Errors
/// [`Error::Domain`](crate::Error::Domain) for an element of q, or an output, that is not finite; on a GPU at the wait for the output.
pub(crate) fn latent_attention<T: AttentionElement>(
    layer: &LatentLayer,
    store: &Store,
    sequences: &[CachedSequence<'_>],
    q: &Tensor<T, Ix4>,
    attending: Attending,
) -> Result<Output<T>> {
    match (store, q.storage()) {
        (Store::Host(store), Storage::Host(q)) => {
            let (output, lse) = cpu::forward(layer, store, sequences, &q, attending)?;
            Ok(Output { output: Tensor::host(output), lse: attending.lse.then(|| Tensor::host(lse)) })
        }
        (Store::Device(store), Storage::Gpu(..)) => gpu::forward(layer, store, sequences, q, attending),
        _ => unreachable!("all are on one device"),
    }
}
