//! Attention: softmax(q k^T scale + mask) v and its gradients, prefill and decode, on every device.
//!
//! ```text
//! q, k, v -> attention -> Output { output, lse } -> merge_attention (of parts of the keys, also across devices)
//!                           |
//!                           +-> attention_backward -> Gradients { q, k, v, bias, sinks }
//! ```
//!
//! And the attention of models of clicks and of images, each with its weights: [`interacting_layer`] (AutoInt), [`local_activation_unit`] (DIN),
//! [`efficient_local_attention`] (ELA).

mod efficient_local_attention;
mod interacting_layer;
mod local_activation_unit;
mod options;
mod problem;
mod weights;

pub use crate::kernels::attention::{
    AttentionElement, Gradients, Output, attention, attention_backward, merge_attention, merge_attention_async,
};
pub use efficient_local_attention::{ElaVariant, ElaWeights, efficient_local_attention};
pub use interacting_layer::{Interacted, InteractingOptions, InteractingWeights, interacting_layer};
pub use local_activation_unit::{
    Activated, Activation, ActivationKind, ActivationUnitOptions, ActivationUnitWeights, HiddenLayer,
    local_activation_unit,
};
pub use options::{Algorithm, Options, alibi_slopes};
pub(crate) use problem::{NO_KEY, Problem, Sequence};
