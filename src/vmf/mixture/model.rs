//! [`VmfMixture`]: the fitted model and what it is good for.

use std::path::Path;

use ndarray::{Array1, Array2};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::fit::{Fitted, Parameters, RESOLUTION};
use super::options::MixtureOptions;
use crate::kernels::bessel::cpu::{iv_ratio_pair, vmf_log_normalizer};
use crate::vmf::kappa::{self, MAX_KAPPA, Resultant};
use crate::vmf::{Vmf, files, reduce};
use crate::{Error, Result};

/// A component of a [`VmfMixture`].
#[derive(Clone, Debug, PartialEq)]
pub struct Component {
    /// The share of the rows it explains; the weights add up to 1.
    pub weight: f64,
    /// Its concentration.
    pub kappa: f64,
    /// The estimated relative error of kappa at this number of rows; infinite where nothing is known (see [`Vmf::kappa_relative_error`]), and
    /// where kappa is not the maximum of the likelihood but a cap: [`MixtureOptions::max_kappa`], or what f32 sums resolve (1 - R of 4e-6).
    pub kappa_relative_error: f64,
    /// ln C_d(kappa), nats.
    pub log_normalizer: f64,
    /// Rows whose most probable component it is.
    pub size: usize,
    /// Its mean direction, a unit vector.
    pub mean_direction: Array1<f32>,
}

/// A mixture of von Mises-Fisher distributions: density sum_k weight_k C_d(kappa_k) exp(kappa_k mu_k'x).
///
/// Fitted by EM: the E-step is a matrix product of rows and mean directions, the log-normalisers and a log-sum-exp; the M-step is the product of
/// responsibilities and rows, and a kappa solve a component. Rows are normalised on the way and computed in f32 (f64 rows are rounded);
/// log-normalisers, kappas and sums over many rows are f64. See the fitting functions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Parts", into = "Parts")]
pub struct VmfMixture {
    components: Vec<Component>,
    dim: usize,
    total_weight: f64,
    tied_kappa: bool,
    max_kappa: f64,
    log_likelihood: f64,
    trace: Vec<f64>,
    converged: bool,
}

/// What of a model is saved; the rest follows from it.
#[derive(Clone, Serialize, Deserialize)]
struct Parts {
    dim: usize,
    total_weight: f64,
    tied_kappa: bool,
    /// The cap that the fit was given.
    #[serde(default = "max_kappa")]
    max_kappa: f64,
    log_likelihood: f64,
    converged: bool,
    log_likelihood_trace: Vec<f64>,
    components: Vec<SavedComponent>,
}

fn max_kappa() -> f64 {
    MAX_KAPPA
}

#[derive(Clone, Serialize, Deserialize)]
struct SavedComponent {
    weight: f64,
    kappa: f64,
    size: usize,
    mean_direction: Vec<f32>,
}

impl From<VmfMixture> for Parts {
    fn from(mixture: VmfMixture) -> Parts {
        let saved = |component: Component| SavedComponent {
            weight: component.weight,
            kappa: component.kappa,
            size: component.size,
            mean_direction: component.mean_direction.to_vec(),
        };
        Parts {
            dim: mixture.dim,
            total_weight: mixture.total_weight,
            tied_kappa: mixture.tied_kappa,
            max_kappa: mixture.max_kappa,
            log_likelihood: mixture.log_likelihood,
            converged: mixture.converged,
            log_likelihood_trace: mixture.trace,
            components: mixture.components.into_iter().map(saved).collect(),
        }
    }
}

impl TryFrom<Parts> for VmfMixture {
    type Error = Error;
    fn try_from(parts: Parts) -> Result<Self> {
        let format = |reason: String| Error::Format { what: "VmfMixture", reason };
        if parts.dim < 2 || parts.components.is_empty() {
            return Err(format("it has no components, or less than 2 dimensions".into()));
        }
        for (k, component) in parts.components.iter().enumerate() {
            let length = reduce::squared_norm_f32(&component.mean_direction).sqrt();
            if component.mean_direction.len() != parts.dim || !(0.999..1.001).contains(&length) {
                return Err(format(format!(
                    "component {k}: mean_direction is not a unit vector of {} elements",
                    parts.dim
                )));
            }
            if !(0.0..=1.0).contains(&component.weight) || !(0.0..=MAX_KAPPA).contains(&component.kappa) {
                return Err(format(format!("component {k}: weight or kappa is out of range")));
            }
        }
        let total = parts.components.iter().map(|component| component.weight).sum::<f64>();
        if !((total - 1.0).abs() < 1e-6 && parts.total_weight > 0.0) {
            return Err(format("the weights do not add up to 1".into()));
        }
        let components = parts
            .components
            .into_iter()
            .map(|c| {
                Component::new(
                    (parts.total_weight, parts.max_kappa),
                    c.weight,
                    c.kappa,
                    c.size,
                    c.mean_direction.into(),
                )
            })
            .collect();
        Ok(VmfMixture {
            components,
            dim: parts.dim,
            total_weight: parts.total_weight,
            tied_kappa: parts.tied_kappa,
            max_kappa: parts.max_kappa,
            log_likelihood: parts.log_likelihood,
            trace: parts.log_likelihood_trace,
            converged: parts.converged,
        })
    }
}

impl Component {
    fn new(
        (total_weight, max_kappa): (f64, f64),
        weight: f64,
        kappa: f64,
        size: usize,
        mean_direction: Array1<f32>,
    ) -> Self {
        let dim = mean_direction.len();
        let resultant = if kappa > 0.0 {
            let (length, complement) = iv_ratio_pair(dim as f64 / 2.0 - 1.0, kappa);
            Resultant { length, complement }
        } else {
            Resultant::new(0.0)
        };
        // R is the root's again, but for its rounding. Below 4e-6 f32 sums of thousands of rows may have made all of 1 - R up.
        let capped = kappa >= max_kappa || resultant.complement <= 8.0 * RESOLUTION;
        let of_sample = || kappa::kappa_relative_error(dim, kappa, resultant, weight * total_weight);
        let estimate = || of_sample().hypot(RESOLUTION / resultant.complement);
        Component {
            weight,
            kappa,
            kappa_relative_error: if capped { f64::INFINITY } else { estimate() },
            log_normalizer: vmf_log_normalizer(dim as f64, kappa),
            size,
            mean_direction,
        }
    }
}

impl VmfMixture {
    /// The model of a finished fit to rows whose weights were divided by `unit`.
    pub(crate) fn of(fitted: Fitted, dim: usize, unit: f64, options: &MixtureOptions) -> Self {
        let Fitted { parameters, means, trace, converged, last } = fitted;
        let total_weight = last.weight * unit;
        let component = |(k, mean): (usize, &[f32])| {
            let mean = Array1::from(mean.to_vec());
            let (weight, kappa) = (parameters.weight[k], parameters.kappa[k]);
            Component::new((total_weight, options.max_kappa), weight, kappa, last.sizes[k], mean)
        };
        VmfMixture {
            components: means.chunks_exact(dim).enumerate().map(component).collect(),
            dim,
            total_weight,
            tied_kappa: options.tied_kappa,
            max_kappa: options.max_kappa,
            log_likelihood: last.log_likelihood / last.weight,
            trace,
            converged,
        }
    }

    /// The components, in no particular order.
    pub fn components(&self) -> &[Component] {
        &self.components
    }

    /// Elements of a row.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// The mean log-likelihood of a row after each E-step, nats (for hard fits, the classification log-likelihood). Without a cap on kappa,
    /// re-seeding or mini-batches it never falls by more than the rounding of f32 cosines, about 1e-6 kappa.
    pub fn log_likelihood_trace(&self) -> &[f64] {
        &self.trace
    }

    /// The mean log-likelihood of a row it was fitted to, nats.
    pub fn log_likelihood(&self) -> f64 {
        self.log_likelihood
    }

    /// E-steps it took.
    pub fn iterations(&self) -> usize {
        self.trace.len()
    }

    /// Whether the log-likelihood stopped growing before the iterations ran out.
    pub fn converged(&self) -> bool {
        self.converged
    }

    /// Free parameters: directions, kappas, weights.
    fn parameters(&self) -> f64 {
        let k = self.components.len() as f64;
        let kappas = if self.tied_kappa { 1.0 } else { k };
        k * (self.dim as f64 - 1.0) + kappas + k - 1.0
    }

    /// Akaike's criterion, 2 p - 2 ln L with p free parameters: lower is better.
    pub fn aic(&self) -> f64 {
        2.0 * self.parameters() - 2.0 * self.log_likelihood * self.total_weight
    }

    /// The Bayesian criterion, p ln n - 2 ln L: lower is better.
    pub fn bic(&self) -> f64 {
        self.parameters() * self.total_weight.ln() - 2.0 * self.log_likelihood * self.total_weight
    }

    /// `n` rows drawn from the mixture, (n, d), and the components they come from. The same seed gives the same rows.
    pub fn sample(&self, n: usize, seed: u64) -> (Array2<f32>, Array1<u32>) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut labels = Array1::zeros(n);
        let mut counts = vec![0; self.components.len()];
        for label in &mut labels {
            let mut left: f64 = rng.random();
            let reached = self.components.iter().position(|component| {
                left -= component.weight;
                left < 0.0
            });
            let k = reached.unwrap_or(self.components.len() - 1);
            *label = k as u32;
            counts[k] += 1;
        }
        let mut rows = Array2::zeros((n, self.dim));
        for (k, component) in self.components.iter().enumerate() {
            let mean = component.mean_direction.mapv(f64::from);
            let Ok(vmf) = Vmf::new(mean.view(), component.kappa) else { unreachable!("components are valid") };
            // a seed of its own for each component
            let drawn = vmf.sample(counts[k], rng.random());
            let mut drawn = drawn.rows().into_iter();
            for (mut row, _) in rows.rows_mut().into_iter().zip(&labels).filter(|(_, label)| **label == k as u32) {
                if let Some(drawn) = drawn.next() {
                    row.assign(&drawn);
                }
            }
        }
        (rows, labels)
    }

    /// Saves the mixture as JSON: written beside `path`, then renamed.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        files::save(path.as_ref(), self)
    }

    /// Loads what [`VmfMixture::save`] wrote.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Format`].
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        files::load(path.as_ref(), "VmfMixture")
    }

    /// Mean directions (K, d), weights and kappas.
    pub(crate) fn inside(&self) -> (Vec<f32>, Parameters) {
        let means = self.components.iter().flat_map(|component| component.mean_direction.iter().copied()).collect();
        let weight = self.components.iter().map(|component| component.weight).collect();
        let kappa = self.components.iter().map(|component| component.kappa).collect();
        (means, Parameters { weight, kappa })
    }
}
