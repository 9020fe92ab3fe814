//! von Mises-Fisher distributions on the unit sphere: fits, densities, samples and mixtures for rows of embeddings.
//!
//! ```text
//! rows -> VmfStats (weight, sum of the unit rows; mergeable) -> kappa solve -> Vmf -> log_density, entropy, sample ...
//! rows -> seeds -> E-step: matmul, log-sum-exp <-> M-step: matmul, kappa solves -> VmfMixture -> predict, score ...
//! ```

mod distribution;
mod files;
mod kappa;
mod mixture;
mod on_gpu;
mod reduce;
mod rows;
mod sample;
mod stats;

pub use distribution::{Vmf, log_density_pairs, log_density_pairs_async};
pub use kappa::{MAX_KAPPA, Resultant, solve_kappa};
pub use mixture::{Component, MixtureOptions, VmfMixture};
#[cfg(feature = "datafusion")]
pub(crate) use mixture::{Fit, OverBatches, Selection, step};
#[cfg(feature = "datafusion")]
pub(crate) use reduce::dot_f64;
#[cfg(feature = "datafusion")]
pub(crate) use rows::inverse_norm;
pub use rows::{RowSource, Rows};
pub use stats::VmfStats;
