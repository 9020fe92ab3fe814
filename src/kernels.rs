//! The list of rooms: each checks its inputs, allocates its output and runs, on the CPU or on a GPU.

pub(crate) mod activation_unit;
pub(crate) mod attention;
pub(crate) mod bessel;
pub(crate) mod column_sums;
pub(crate) mod extended;
pub(crate) mod hamming;
pub(crate) mod interacting_layer;
mod lanes;
pub(crate) mod latent_attention;
#[doc(hidden)]
pub mod limits;
pub(crate) mod matmul;
mod mixture_posterior;
pub(crate) mod normalize_rows;
pub(crate) mod pack_latents;
pub(crate) mod sign_pack;
pub(crate) mod strips;
pub(crate) mod vmf_kappa;
mod widen;

use std::collections::HashSet;
use std::sync::Arc;

pub use bessel::{
    iv_ratio, iv_ratio_complement, log_iv, log_iv_dv, log_iv_dx, log_kv, log_kv_dv, log_kv_dx, vmf_log_normalizer,
};

use crate::gpu::{Check, Constant, Kernel};
pub use column_sums::column_sums;
pub use extended::{column_sums_extended, column_sums_extended_async};
pub use hamming::{hamming, hamming_histograms};
pub use matmul::{MatmulElement, matmul};
pub use mixture_posterior::{Posterior, PosteriorSummary, mixture_posterior, mixture_summary};
pub use normalize_rows::normalize_rows;
pub use sign_pack::{SignRule, sign_pack};
pub use vmf_kappa::vmf_kappa;
pub use widen::widen;

pub use crate::gpu::{Needs, Variant};
#[doc(hidden)]
pub use crate::gpu::{Step, Trace, mutate};

/// Every kernel with every set of constants it is compiled with.
pub(crate) fn registry() -> Vec<(&'static Kernel, Vec<(&'static str, Constant)>)> {
    [
        activation_unit::variants(),
        attention::backward_variants(),
        attention::variants(),
        bessel::variants(),
        column_sums::variants(),
        extended::variants(),
        hamming::variants(),
        interacting_layer::variants(),
        latent_attention::variants(),
        limits::variants(),
        matmul::variants(),
        crate::gpu::extended::variants(),
        mixture_posterior::variants(),
        normalize_rows::variants(),
        sign_pack::variants(),
        pack_latents::variants(),
        strips::variants(),
        vmf_kappa::variants(),
        widen::variants(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The checks of several inputs, each once.
fn inherit(inputs: &[&[Arc<Check>]]) -> Vec<Arc<Check>> {
    // A chain of thousands of calls has as many checks. One input's are each there once.
    if let [only] = *inputs.iter().copied().filter(|checks| !checks.is_empty()).collect::<Vec<_>>() {
        return only.to_vec();
    }
    let mut known = HashSet::new();
    inputs.iter().copied().flatten().filter(|check| known.insert(Arc::as_ptr(check))).cloned().collect()
}

/// Every shader as it is compiled, as text.
pub fn variants() -> Vec<Variant> {
    registry().into_iter().map(|(kernel, constants)| kernel.variant(&constants)).collect()
}
