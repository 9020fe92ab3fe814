//! The families, in the order in which they run.

mod attention;
mod bessel;
mod extended;
mod hamming;
mod hamming_gpu;
mod knn;
mod kv;
mod layers;
mod matmul;
mod peak;
mod transfer;
mod vmf;

use anyhow::Result;

use crate::harness::{Bench, Place};

type Family = fn(&mut Bench, &[Place]) -> Result<()>;

pub const FAMILIES: &[(&str, Family)] = &[
    ("bessel", bessel::run),
    ("extended", extended::run),
    ("matmul", matmul::run),
    ("vmf", vmf::run),
    ("attention", attention::run),
    ("layers", layers::run),
    ("kv", kv::run),
    ("hamming", hamming::run),
    ("knn", knn::run),
    ("transfer", transfer::run),
];

pub use peak::child as peak_memory;
