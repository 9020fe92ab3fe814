//! Low-rank caches of keys and values.

// What packs and reads them comes next.
#[allow(dead_code)]
pub(crate) mod latents;

pub use latents::LatentBits;
