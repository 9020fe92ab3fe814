//! [`MixtureOptions`].

use std::fmt;
use std::sync::Arc;

use crate::vmf::MAX_KAPPA;
use crate::{Error, Result};

type Progress = Arc<dyn Fn(usize, f64) + Send + Sync>;

/// How a [`VmfMixture`](super::VmfMixture) is fitted. The defaults are those of [`MixtureOptions::new`].
#[derive(Clone)]
pub struct MixtureOptions {
    pub(crate) components: usize,
    pub(crate) seed: u64,
    pub(crate) hard: bool,
    pub(crate) starts: usize,
    pub(crate) max_iterations: usize,
    pub(crate) tolerance: f64,
    pub(crate) tied_kappa: bool,
    pub(crate) max_kappa: f64,
    pub(crate) min_weight: f64,
    pub(crate) batch: Option<usize>,
    pub(crate) progress: Option<Progress>,
}

impl MixtureOptions {
    /// A soft fit of `components` K: one start, at most 200 iterations, until the mean log-likelihood of a row grows by less than 1e-4
    /// nats.
    pub fn new(components: usize) -> Self {
        MixtureOptions {
            components,
            seed: 0,
            hard: false,
            starts: 1,
            max_iterations: 200,
            tolerance: 1e-4,
            tied_kappa: false,
            max_kappa: MAX_KAPPA,
            min_weight: 1.0,
            batch: None,
            progress: None,
        }
    }

    /// Seed of everything random. The same seed, data, device and number of threads give the same mixture. Default 0.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Give each row wholly to its most probable component (classification EM; with one kappa that is spherical k-means but for the
    /// components' weights). The trace then holds the classification log-likelihood. Default: soft.
    pub fn hard(mut self, hard: bool) -> Self {
        self.hard = hard;
        self
    }

    /// Fits from this many seedings, of which the one with the highest log-likelihood is kept. Default 1.
    pub fn starts(mut self, starts: usize) -> Self {
        self.starts = starts;
        self
    }

    /// The most E-steps of a start. Default 200.
    pub fn max_iterations(mut self, iterations: usize) -> Self {
        self.max_iterations = iterations;
        self
    }

    /// Growth of the mean log-likelihood of a row, in nats, below which a start has converged. Default 1e-4.
    pub fn tolerance(mut self, tolerance: f64) -> Self {
        self.tolerance = tolerance;
        self
    }

    /// One kappa for all components. Default: each its own.
    pub fn tied_kappa(mut self, tied: bool) -> Self {
        self.tied_kappa = tied;
        self
    }

    /// The largest kappa a component may take, at most [`MAX_KAPPA`]. Default [`MAX_KAPPA`].
    pub fn max_kappa(mut self, kappa: f64) -> Self {
        self.max_kappa = kappa;
        self
    }

    /// A component that holds less than this many rows is empty: it is seeded again at a row the mixture explains worst, up to three times. Of
    /// weighted rows, less than this times the mean positive weight. Default 1.
    pub fn min_weight(mut self, weight: f64) -> Self {
        self.min_weight = weight;
        self
    }

    /// Update the components after every `rows` rows instead of after all (stepwise EM): far fewer passes over large data. Batches are runs of
    /// neighbouring rows, taken in a random order; the first pass, and the last M-step, are over all rows. Default: all rows.
    pub fn batch(mut self, rows: Option<usize>) -> Self {
        self.batch = rows;
        self
    }

    /// Called after each E-step with its number (from 1, over all starts) and the mean log-likelihood of a row.
    pub fn progress(mut self, callback: impl Fn(usize, f64) + Send + Sync + 'static) -> Self {
        self.progress = Some(Arc::new(callback));
        self
    }

    /// An error for options that make no sense for `rows` rows.
    pub(crate) fn check(&self, rows: usize) -> Result<()> {
        let bad = |quantity, expected: String, found: String| {
            Err(Error::Argument { place: "VmfMixture", quantity, expected, found })
        };
        if self.components == 0 || self.components > rows {
            let expected = format!("between 1 and the number of rows, {rows}");
            return bad("components", expected, self.components.to_string());
        }
        if self.components > u32::MAX as usize / 2 {
            return bad("components", "below 2^31".into(), self.components.to_string());
        }
        for (quantity, value) in
            [("starts", self.starts), ("max_iterations", self.max_iterations), ("batch", self.batch.unwrap_or(1))]
        {
            if value == 0 {
                return bad(quantity, "at least 1".into(), "0".into());
            }
        }
        if !(self.tolerance.is_finite() && self.tolerance >= 0.0) {
            return bad("tolerance", "finite and not negative".into(), self.tolerance.to_string());
        }
        if !(self.max_kappa > 0.0 && self.max_kappa <= MAX_KAPPA) {
            return bad("max_kappa", format!("above 0, at most {MAX_KAPPA:e}"), self.max_kappa.to_string());
        }
        if !(self.min_weight.is_finite() && self.min_weight >= 0.0) {
            return bad("min_weight", "finite and not negative".into(), self.min_weight.to_string());
        }
        Ok(())
    }
}

impl fmt::Debug for MixtureOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MixtureOptions")
            .field("components", &self.components)
            .field("seed", &self.seed)
            .field("hard", &self.hard)
            .field("starts", &self.starts)
            .field("max_iterations", &self.max_iterations)
            .field("tolerance", &self.tolerance)
            .field("tied_kappa", &self.tied_kappa)
            .field("max_kappa", &self.max_kappa)
            .field("min_weight", &self.min_weight)
            .field("batch", &self.batch)
            .finish_non_exhaustive()
    }
}
