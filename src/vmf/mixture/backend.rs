//! What the EM loop asks of a device.

use std::ops::Range;

use super::fit::Parameters;
use super::posterior::Densities;
use crate::Result;

/// One pass over some rows.
pub(crate) struct Pass<'a> {
    pub(crate) rows: Range<usize>,
    pub(crate) densities: &'a Densities,
    /// Give each row wholly to its best component.
    pub(crate) hard: bool,
    /// The sums become keep * old + add * those of this pass: (0, 1) but in mini-batches.
    pub(crate) blend: (f64, f64),
}

/// What the host learns of a pass.
#[derive(Clone, Debug, Default)]
pub(crate) struct Summary {
    /// Weight of the rows of the pass.
    pub(crate) weight: f64,
    /// sum of weight * ln density of a row under the mixture.
    pub(crate) log_likelihood: f64,
    /// sum of weight * the largest term: the classification log-likelihood.
    pub(crate) best: f64,
    /// Weight that each component gained in this pass (not blended).
    pub(crate) mass: Vec<f64>,
    /// |S_k| of the blended sums.
    pub(crate) lengths: Vec<f64>,
    /// Rows whose most probable component this is.
    pub(crate) sizes: Vec<usize>,
    /// Rows that the mixture explains worst, the worst first: (ln density, row).
    pub(crate) worst: Vec<(f64, usize)>,
}

/// Holds the rows, the mean directions and the sums, wherever they are.
pub(crate) trait Backend {
    fn rows(&self) -> usize;
    /// Sets all mean directions, (K, d), unit rows.
    fn set_means(&mut self, means: Vec<f32>) -> Result<()>;
    /// The E-step and the sums of the M-step.
    async fn step(&mut self, pass: Pass<'_>) -> Result<Summary>;
    /// The M-step's end: mean directions from the sums; a component whose sum is zero keeps its own.
    fn update_means(&mut self) -> Result<()>;
    /// Makes `row` the mean direction of component `k`.
    async fn reseed(&mut self, k: usize, row: usize) -> Result<()>;
    /// The mean directions, (K, d).
    async fn means(&mut self) -> Result<Vec<f32>>;
    /// Told after every M-step: what the mean directions go with, and the objectives so far. Does nothing unless something is to be kept.
    fn after_step(&mut self, _: &Parameters, _: &[f64], _: &Summary) -> Result<()> {
        Ok(())
    }
}
