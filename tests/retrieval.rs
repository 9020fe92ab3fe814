//! Codes of embeddings, how well they retrieve, and the exact neighbours they are measured against.

#[path = "retrieval/binarize.rs"]
mod binarize;
#[path = "retrieval/evaluate.rs"]
mod evaluate;
#[path = "retrieval/knn.rs"]
mod knn;
#[path = "retrieval/real.rs"]
mod real;

use ndarray::{Array2, Ix2};
use orthant::{Device, Element, Tensor};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

fn tensor<T: Element>(rows: &Array2<T>) -> Tensor<T, Ix2> {
    Device::cpu().tensor(rows).expect("a tensor on the CPU")
}

/// Standard normal elements.
fn noise(rows: usize, dim: usize, seed: u64) -> Array2<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    Array2::from_shape_simple_fn((rows, dim), || StandardNormal.sample(&mut rng))
}

/// Bits that are set with probability `share`.
fn bits(rows: usize, bits: usize, share: f64, seed: u64) -> Array2<bool> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    Array2::from_shape_simple_fn((rows, bits), || rng.random_bool(share))
}
