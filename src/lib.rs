//! Embedding-space compute on every GPU through wgpu, with a CPU path for every kernel.
//!
//! The way of the data is the order of the modules:
//!
//! ```text
//! ndarray array ──Device::tensor──▶ Tensor ──kernels::*──▶ Tensor ──vmf::*──▶ model, labels, densities
//!                  one copy          │ │                     │
//!                     host array ◀───┘ └──▶ device buffer    └──to_array──▶ ndarray array
//!                        │                     │                 the one wait
//!                   CPU path: rayon       shaders/*.wgsl, recorded into one encoder,
//!                   and SIMD              submitted in batches
//! ```
//!
//! A [`Device`] is the CPU or an open GPU, chosen once. A [`Tensor`] lives on one. [`kernels`] compute tensors from tensors and never wait;
//! [`vmf`], [`attention`], [`kv`], [`hamming`] and [`knn`] put them in a row. What waits for a device has an `_async` form, for browsers and executors, but for what reads files
//! ([`vmf::RowSource`], the loaders of weights, caches and indexes), f64 rows of a GPU, which no browser has, and evaluations of whole data sets
//! ([`kv::evaluate`], [`kv::error_table`]), which are for native programs.
#![deny(unsafe_code)]
#![warn(missing_docs)]

pub mod attention;
mod device;
mod double_single;
mod error;
mod gpu;
pub mod hamming;
pub mod kernels;
pub mod knn;
pub mod kv;
#[cfg(feature = "datafusion")]
mod npy_header;
mod precision;
#[cfg(feature = "datafusion")]
pub mod sql;
mod tensor;
pub mod vmf;

pub use device::Device;
pub use double_single::DoubleSingle;
pub use error::{Error, Result};
pub use gpu::{AdapterInfo, AdapterKind, Arithmetic, Extended, Gpu, KernelTime};
pub use precision::Precision;
pub use tensor::{Element, Real, Tensor};

/// The README's example, compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeDoctests;
