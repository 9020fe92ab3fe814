//! Low-rank caches of keys and values: [`Projections`] to latents, and [`KvCache`].
//!
//! ```text
//! given factors -> Projections -> with_ranks -> KvCache::new
//! k, v -> KvCache::append -> exact rows, and pages of latents -> KvCache::attend(q) -> attention::Output
//! ```

mod cache;
pub(crate) mod files;
pub(crate) mod latents;
pub(crate) mod layer;
mod projections;
mod rope;
pub(crate) mod store;

pub use cache::{AttendOptions, CacheOptions, KvCache, Sequence};
pub use latents::{LatentBits, Side};
pub use layer::ExactType;
pub use projections::{Basis, Projections, Ranks};
pub use rope::{Frame, Rope, RopeLayout, RopeScaling};
