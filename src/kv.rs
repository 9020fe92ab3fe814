//! Low-rank caches of keys and values: [`Calibration`], [`Projections`] to latents, and [`KvCache`].
//!
//! ```text
//! q, k, v -> Calibration::add -> moments -> Projections -> with_ranks -> KvCache::new
//! activations -> error_table -> allocate -> ranks; evaluate -> error and bytes of a cache
//! k, v -> KvCache::append -> exact rows, and pages of latents -> KvCache::attend(q) -> attention::Output
//! ```

mod allocate;
mod cache;
mod calibration;
mod evaluate;
pub(crate) mod files;
pub(crate) mod latents;
pub(crate) mod layer;
mod projections;
mod rope;
pub(crate) mod store;

pub use allocate::{Allocation, Budget, allocate, allocate_bits};
pub use cache::{AttendOptions, CacheOptions, KvCache, Sequence};
pub use calibration::{Calibration, ProjectionOptions, Weighting};
pub use evaluate::{Activations, Evaluation, HeadError, error_table, evaluate};
pub use latents::{LatentBits, Side};
pub use layer::ExactType;
pub use projections::{Basis, CskvNames, MatryoshkaNames, Projections, Ranks};
pub use rope::{Frame, Rope, RopeLayout, RopeScaling};
