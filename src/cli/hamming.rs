//! `orthant hamming`: binarize, search, evaluate.

pub mod binarize;
mod codes;
pub mod evaluate;
pub mod search;
