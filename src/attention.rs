//! Attention: softmax(q k^T scale + mask) v and its gradients, prefill and decode, on every device.
//!
//! ```text
//! q, k, v -> attention -> Output { output, lse } -> merge_attention (of parts of the keys, also across devices)
//!                           |
//!                           +-> attention_backward -> Gradients { q, k, v, bias, sinks }
//! ```

mod options;
mod problem;

pub use crate::kernels::attention::{
    AttentionElement, Gradients, Output, attention, attention_backward, merge_attention, merge_attention_async,
};
pub use options::{Algorithm, Options, alibi_slopes};
pub(crate) use problem::{NO_KEY, Problem, Sequence};
