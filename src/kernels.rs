//! The list of rooms: each checks its inputs, allocates its output and runs, on the CPU or on a GPU.

pub(crate) mod bessel;

pub use bessel::{
    iv_ratio, iv_ratio_complement, log_iv, log_iv_dv, log_iv_dx, log_kv, log_kv_dv, log_kv_dx, vmf_log_normalizer,
};

use crate::gpu::{Constant, Kernel};
pub use crate::gpu::{Needs, Variant};

/// Every kernel with every set of constants it is compiled with.
pub(crate) fn registry() -> Vec<(&'static Kernel, Vec<(&'static str, Constant)>)> {
    [bessel::variants()].into_iter().flatten().collect()
}

/// Every shader as it is compiled, as text.
pub fn variants() -> Vec<Variant> {
    registry().into_iter().map(|(kernel, constants)| kernel.variant(&constants)).collect()
}
