//! Low-rank caches of keys and values: [`KvCache`].
//!
//! ```text
//! k, v -> KvCache::append -> exact rows, and pages of latents -> KvCache::attend(q) -> attention::Output
//! ```

// Who makes it of projections comes next.
#[allow(dead_code)]
mod cache;
pub(crate) mod latents;
pub(crate) mod layer;
pub(crate) mod store;

pub use cache::{AttendOptions, CacheOptions, KvCache, Sequence};
pub use latents::LatentBits;
pub use layer::ExactType;
