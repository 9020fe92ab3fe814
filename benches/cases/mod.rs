//! The families, in the order in which they run.

mod bessel;
mod transfer;

use anyhow::{Result, bail};

use crate::harness::{Bench, Place};

type Family = fn(&mut Bench, &[Place]) -> Result<()>;

pub const FAMILIES: &[(&str, Family)] = &[("bessel", bessel::run), ("transfer", transfer::run)];

/// The child's side of a measurement of peak memory.
pub fn peak_memory(case: &str) -> Result<()> {
    bail!("there is no case {case:?}")
}
