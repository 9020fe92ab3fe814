//! Embedding-space compute on every GPU through wgpu, with a CPU path for every kernel.
#![deny(unsafe_code)]
#![warn(missing_docs)]

mod device;
mod error;
mod gpu;
pub mod kernels;
mod tensor;
pub mod vmf;

pub use device::Device;
pub use error::{Error, Result};
pub use gpu::{AdapterInfo, AdapterKind, Gpu, KernelTime};
pub use tensor::{Element, Real, Tensor};

/// The README's example, compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeDoctests;
