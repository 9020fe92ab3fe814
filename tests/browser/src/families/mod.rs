//! What the page shows, as numbers: on WebGPU, on the CPU in WebAssembly, and natively, where `tests/browser.rs` writes what they have to be.
//!
//! Data are files' bytes; `now` gives milliseconds.

mod bessel;
mod cache;
mod emoji;
mod mixture;
mod npy;

pub use bessel::bessel;
pub use cache::cache;
pub use emoji::Emoji;
pub use mixture::mixture;

/// The library's errors, and those of the data.
pub type Failure = Box<dyn std::error::Error>;

/// A clock.
pub type Clock = fn() -> f64;
