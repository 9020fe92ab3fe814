//! Embedding-space compute on every GPU through wgpu.
#![deny(unsafe_code)]
#![warn(missing_docs)]

mod error;
pub mod kernels;
pub mod vmf;

pub use error::{Error, Result};
