//! `orthant kv`: projections for a low-rank cache, and what such a cache does to attention.

pub mod calibrate;
pub mod evaluate;
mod input;
mod plan;
mod report;
