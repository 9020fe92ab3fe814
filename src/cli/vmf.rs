//! `orthant vmf`: fit, score, sample.

pub mod fit;
mod model;
mod prepared;
mod report;
pub mod sample;
pub mod score;
