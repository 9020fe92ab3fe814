//! [`Vmf`]: one von Mises-Fisher distribution.

use std::path::Path;

use ndarray::{Array1, Array2, ArrayView1, ArrayView2, Axis, Ix1, Ix2};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::kappa::{self, MAX_KAPPA, Resultant, solve_kappa};
use super::on_gpu::{self, GpuRows, Terms};
use super::rows::{self, Rows};
use super::stats::VmfStats;
use super::{files, reduce};
use crate::gpu::block_on;
use crate::kernels::bessel::cpu::{iv_ratio_pair, vmf_log_normalizer};
use crate::kernels::extended;
use crate::{Device, Error, Precision, Real, Result, Tensor};

const PLACE: &str = "Vmf";

/// A von Mises-Fisher distribution on the unit sphere of R^d: density C_d(kappa) exp(kappa mu'x).
///
/// C_d(kappa) = kappa^(d/2-1) / ((2 pi)^(d/2) I_{d/2-1}(kappa)), with respect to the sphere's surface measure; all logs are natural.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Parts")]
pub struct Vmf {
    mean_direction: Vec<f64>,
    kappa: f64,
    /// What it was fitted to; `None` for a distribution given by its parameters.
    fitted: Option<Fitted>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Fitted {
    n: f64,
    resultant_length: f64,
    /// 1 - resultant_length, which carries the digits when it is small.
    resultant_complement: f64,
}

/// What a serialised [`Vmf`] claims to be.
#[derive(Deserialize)]
struct Parts {
    mean_direction: Vec<f64>,
    kappa: f64,
    fitted: Option<Fitted>,
}

impl TryFrom<Parts> for Vmf {
    type Error = Error;
    fn try_from(Parts { mean_direction, kappa, fitted }: Parts) -> Result<Self> {
        let format = |reason: &str| Error::Format { what: "Vmf", reason: reason.into() };
        let length = reduce::squared_norm_f64(&mean_direction).sqrt();
        if mean_direction.len() < 2 || !(1.0 - 1e-6..1.0 + 1e-6).contains(&length) {
            return Err(format("mean_direction is not a unit vector of at least 2 elements"));
        }
        if !(0.0..=MAX_KAPPA).contains(&kappa) {
            return Err(format("kappa is not between 0 and 1e12"));
        }
        if let Some(Fitted { n, resultant_length, resultant_complement }) = fitted {
            let unit = 0.0..=1.0;
            // both are rounded from sums; a thousand times what that takes
            let agree = (resultant_length + resultant_complement - 1.0).abs() < 1e-9;
            if !(n > 0.0 && n.is_finite()) {
                return Err(format("n is not a number above 0"));
            }
            if !(unit.contains(&resultant_length) && unit.contains(&resultant_complement) && agree) {
                return Err(format("resultant_length and resultant_complement are not two parts of 1"));
            }
        }
        Ok(Vmf { mean_direction, kappa, fitted })
    }
}

impl Vmf {
    /// The distribution with these parameters. `mean_direction`, (d), is normalised; kappa in [0, 1e12].
    ///
    /// # Errors
    /// [`Error::Domain`] for a direction that is zero or not finite, or another kappa; [`Error::Argument`] for d < 2.
    pub fn new(mean_direction: ArrayView1<'_, f64>, kappa: f64) -> Result<Self> {
        let mut mean_direction = mean_direction.to_vec();
        VmfStats::new(mean_direction.len())?;
        let factor = rows::inverse_norm(PLACE, &mean_direction, 0)?;
        mean_direction.iter_mut().for_each(|value| *value *= factor);
        check_kappa(kappa, 0)?;
        Ok(Vmf { mean_direction, kappa, fitted: None })
    }

    /// The maximum-likelihood fit to `rows`, (n, d), each normalised on the way.
    ///
    /// kappa solves A_d(kappa) = R within 34 eps (99 % within 3) for the R of the sums, which are good to about 1e-13
    /// (on a GPU to about 1e-6: f32 rows and blocks of 256 of them, finished in f64). What the data
    /// themselves allow to know of kappa is [`Vmf::kappa_relative_error`]. At the edges:
    ///
    /// * identical rows, or one row (R = 1 to rounding): no finite maximum exists; kappa is [`MAX_KAPPA`], `is_resolvable` false
    /// * rows that cancel (R = 0 exactly): kappa 0, the mean direction e1 by convention, `is_resolvable` false
    ///
    /// # Errors
    /// [`Error::Domain`] names the first row that is all zeros or has an element that is not finite; [`Error::Argument`] for no rows or
    /// d < 2; the device's own errors.
    pub fn fit<T: Rows>(rows: &Tensor<T, Ix2>) -> Result<Self> {
        block_on(Self::fit_async(rows))
    }

    /// [`Vmf::fit`] where a thread must not block.
    ///
    /// # Errors
    /// As [`Vmf::fit`].
    pub async fn fit_async<T: Rows>(rows: &Tensor<T, Ix2>) -> Result<Self> {
        Self::from_stats(&VmfStats::from_rows_async(rows, None, Precision::Single).await?)
    }

    /// [`Vmf::fit`] with `weights`, (n), finite and not negative: weight 2 counts as the row twice, a row of weight 0 is skipped unseen.
    ///
    /// # Errors
    /// As [`Vmf::fit`]; [`Error::Shape`] and [`Error::Domain`] for the weights.
    pub fn fit_weighted<T: Rows>(rows: &Tensor<T, Ix2>, weights: ArrayView1<'_, f64>) -> Result<Self> {
        block_on(Self::fit_weighted_async(rows, weights))
    }

    /// [`Vmf::fit_weighted`] where a thread must not block.
    ///
    /// # Errors
    /// As [`Vmf::fit_weighted`].
    pub async fn fit_weighted_async<T: Rows>(rows: &Tensor<T, Ix2>, weights: ArrayView1<'_, f64>) -> Result<Self> {
        Self::from_stats(&VmfStats::from_rows_async(rows, Some(weights), Precision::Single).await?)
    }

    /// [`Vmf::fit`], or with `weights` [`Vmf::fit_weighted`], with the rows of a GPU summed in `precision`: see [`VmfStats::from_rows`].
    ///
    /// # Errors
    /// As [`Vmf::fit_weighted`]; [`Error::Unsupported`] where a GPU has no extended precision.
    pub fn fit_in<T: Rows>(
        rows: &Tensor<T, Ix2>,
        weights: Option<ArrayView1<'_, f64>>,
        precision: Precision,
    ) -> Result<Self> {
        Self::from_stats(&VmfStats::from_rows(rows, weights, precision)?)
    }

    /// The maximum-likelihood fit to everything `stats` has seen; see [`Vmf::fit`].
    ///
    /// # Errors
    /// [`Error::Argument`] if it has seen no row.
    pub fn from_stats(stats: &VmfStats) -> Result<Self> {
        if stats.weight() <= 0.0 {
            return Err(Error::Argument {
                place: PLACE,
                quantity: "rows",
                expected: "at least one of positive weight".into(),
                found: "none".into(),
            });
        }
        let resultant = stats.mean_resultant();
        let mut mean_direction = stats.resultant().to_vec();
        let largest = mean_direction.iter().fold(0.0f64, |largest, value| largest.max(value.abs()));
        if largest > 0.0 && !(1e-150..1e150).contains(&largest) {
            // so are the weights: squares would leave f64's range
            mean_direction.iter_mut().for_each(|value| *value /= largest);
        }
        match rows::inverse_norm(PLACE, &mean_direction, 0) {
            Ok(factor) if resultant.length > 0.0 => mean_direction.iter_mut().for_each(|value| *value *= factor),
            _ => {
                mean_direction.fill(0.0);
                mean_direction[0] = 1.0;
            }
        }
        let fitted = Fitted {
            n: stats.weight(),
            resultant_length: resultant.length,
            resultant_complement: resultant.complement,
        };
        Ok(Vmf { mean_direction, kappa: solve_kappa(stats.dim(), resultant), fitted: Some(fitted) })
    }

    /// mu, the unit vector the density is highest at.
    pub fn mean_direction(&self) -> ArrayView1<'_, f64> {
        ArrayView1::from(&self.mean_direction[..])
    }

    /// Where the density is highest: the mean direction.
    pub fn mode(&self) -> ArrayView1<'_, f64> {
        self.mean_direction()
    }

    /// The concentration.
    pub fn kappa(&self) -> f64 {
        self.kappa
    }

    /// Elements of a row.
    pub fn dim(&self) -> usize {
        self.mean_direction.len()
    }

    /// The sum of the weights of the rows it was fitted to; 0 for a distribution given by its parameters.
    pub fn n(&self) -> f64 {
        self.fitted.map_or(0.0, |fitted| fitted.n)
    }

    /// R: of the rows it was fitted to, else A_d(kappa).
    pub fn resultant_length(&self) -> f64 {
        match self.fitted {
            Some(fitted) => fitted.resultant_length,
            None if self.kappa == 0.0 => 0.0,
            None => iv_ratio_pair(self.order(), self.kappa).0,
        }
    }

    /// The estimated relative error of kappa (root mean square): with n rows, R is biased upward by about (1-R^2)/(2nR), and varies by
    /// sqrt(A'/n). Infinite where nothing is known (n < 2, R of 0 or 1); 0 for a distribution given by its parameters.
    pub fn kappa_relative_error(&self) -> f64 {
        let Some(Fitted { n, resultant_length: length, resultant_complement: complement }) = self.fitted else {
            return 0.0;
        };
        kappa::kappa_relative_error(self.dim(), self.kappa, Resultant { length, complement }, n)
    }

    /// Whether kappa means something at this number of rows: [`Vmf::kappa_relative_error`] is below 1/2.
    pub fn is_resolvable(&self) -> bool {
        self.kappa_relative_error() < 0.5
    }

    /// ln C_d(kappa), nats.
    pub fn log_normalizer(&self) -> f64 {
        vmf_log_normalizer(self.dim() as f64, self.kappa)
    }

    /// The differential entropy, nats; within 16 eps of max(|H|, kappa, d).
    pub fn entropy(&self) -> f64 {
        kappa::entropy(self.dim(), self.kappa)
    }

    /// The Kullback-Leibler divergence from `other` to this, E\[ln p(x) - ln q(x)\] for x from this, nats; never negative.
    ///
    /// # Errors
    /// [`Error::Shape`] if the dimensions differ.
    pub fn kl_divergence(&self, other: &Vmf) -> Result<f64> {
        if self.dim() != other.dim() {
            let expected = format!("[{}]", self.dim());
            return Err(Error::Shape { place: PLACE, quantity: "other", expected, found: vec![other.dim()] });
        }
        let ratio = if self.kappa == 0.0 { 0.0 } else { iv_ratio_pair(self.order(), self.kappa).0 };
        // 1 - cos of the angle between the means, without cancellation
        let apart: f64 = self.mean_direction.iter().zip(&other.mean_direction).map(|(a, b)| (a - b).powi(2)).sum();
        Ok(kappa::bregman(self.dim(), self.kappa, other.kappa) + other.kappa * ratio * apart / 2.0)
    }

    /// ln of the density at each of `rows`, (n, d), normalised on the way; (n), nats. On the CPU, and for f64 rows, f64 inside, so within a
    /// rounding of the result plus 1e-15 kappa; on a GPU within about 1e-6 kappa (f32 cosines), without a wait.
    ///
    /// # Errors
    /// [`Error::Domain`] names the first row that is all zeros or has an element that is not finite; [`Error::Shape`]; the device's own.
    pub fn log_density<T: Rows>(&self, rows: &Tensor<T, Ix2>) -> Result<Tensor<T::Score, Ix1>> {
        self.check_rows(rows.shape())?;
        let log_normalizer = self.log_normalizer();
        if !rows.device().is_cpu() && T::NAME != "f64" {
            let mean = self.mean_direction().insert_axis(Axis(0)).mapv(|value| value as f32);
            let mean = rows.device().tensor_from(mean)?;
            let terms = Terms::new(&[self.kappa], &[log_normalizer]);
            let step = on_gpu::chunk_rows(self.dim(), 1);
            let source = GpuRows::Themselves(rows);
            let mut parts = Vec::new();
            for first in (0..rows.shape()[0]).step_by(step) {
                let unit = source.unit(first..(first + step).min(rows.shape()[0]), None)?;
                parts.push(on_gpu::posterior(&unit, &mean, &terms, None, false)?.scores);
            }
            return Ok(Tensor::concatenate(rows.device(), &parts)?.of());
        }
        on_host(rows, |view| {
            per_row(view, |row, index| {
                let cosine = T::dot(row, &self.mean_direction) * rows::inverse_norm(PLACE, row, index)?;
                Ok(T::Score::from_f64(log_normalizer + self.kappa * cosine))
            })
        })
    }

    /// ln density of each row of `rows`, (n, d), normalised on the way, as f64 on the host: (n), nats.
    ///
    /// `precision` decides on a GPU: [`Precision::Single`] as [`Vmf::log_density`]; [`Precision::Extended`] within 1e-13 of |ln C_d| + kappa
    /// (f64 rows come to the host).
    ///
    /// # Errors
    /// As [`Vmf::log_density`]; [`Error::Unsupported`] where a GPU has no extended precision.
    pub fn log_density_in<T: Rows>(&self, rows: &Tensor<T, Ix2>, precision: Precision) -> Result<Array1<f64>> {
        block_on(self.log_density_in_async(rows, precision))
    }

    /// [`Vmf::log_density_in`] where a thread must not block.
    ///
    /// # Errors
    /// As [`Vmf::log_density_in`].
    pub async fn log_density_in_async<T: Rows>(
        &self,
        rows: &Tensor<T, Ix2>,
        precision: Precision,
    ) -> Result<Array1<f64>> {
        self.check_rows(rows.shape())?;
        let on_host = rows.device().is_cpu() || T::NAME == "f64";
        if precision == Precision::Single && !on_host {
            return Ok(self.log_density(rows)?.to_array_async().await?.mapv(|value| value.to_f64()));
        }
        let log_normalizer = vmf_log_normalizer(self.dim() as f64, self.kappa);
        if !on_host {
            let densities = extended::log_densities(rows, &self.mean_direction, log_normalizer, self.kappa)?;
            return densities.to_f64_array_async().await;
        }
        let near = rows.to_device_async(&Device::Cpu).await?;
        let Some(view) = near.as_host() else { unreachable!("it is on the CPU") };
        Ok(self.log_density_of(view)?.into())
    }

    /// [`Vmf::log_density_in`] of rows on the host.
    pub(crate) fn log_density_of<T: Rows>(&self, rows: ArrayView2<'_, T>) -> Result<Vec<f64>> {
        self.check_rows(rows.shape())?;
        let log_normalizer = self.log_normalizer();
        per_row(rows, |row, index| {
            Ok(log_normalizer
                + self.kappa * (T::dot(row, &self.mean_direction) * rows::inverse_norm(PLACE, row, index)?))
        })
    }

    /// Saves the distribution as JSON: written beside `path`, then renamed.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        files::save(path.as_ref(), self)
    }

    /// Loads what [`Vmf::save`] wrote.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Format`].
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        files::load(path.as_ref(), "Vmf")
    }

    /// d/2 - 1, the order of the Bessel function of the normaliser.
    fn order(&self) -> f64 {
        self.dim() as f64 / 2.0 - 1.0
    }

    fn check_rows(&self, shape: &[usize]) -> Result<()> {
        if shape[1] == self.dim() {
            return Ok(());
        }
        let expected = format!("(any, {})", self.dim());
        Err(Error::Shape { place: PLACE, quantity: "rows", expected, found: shape.to_vec() })
    }
}

/// ln density of each row under a distribution of its own: ln C_d(kappa_i) + kappa_i mu_i'x_i.
///
/// * `rows` x and `means` mu, (n, d), normalised on the way; `kappas`, (n), in [0, 1e12]
/// * returns (n), nats, on the device of the rows; computed in f64 on the host
///
/// # Errors
/// [`Error::Domain`] names the first row of zeros or with an element that is not finite, or kappa out of range; [`Error::Shape`];
/// [`Error::DeviceMismatch`]; the device's own.
pub fn log_density_pairs<T: Rows>(
    rows: &Tensor<T, Ix2>,
    means: &Tensor<T, Ix2>,
    kappas: &Tensor<T, Ix1>,
) -> Result<Tensor<T::Score, Ix1>> {
    block_on(log_density_pairs_async(rows, means, kappas))
}

/// [`log_density_pairs`] where a thread must not block.
///
/// # Errors
/// As [`log_density_pairs`].
pub async fn log_density_pairs_async<T: Rows>(
    rows: &Tensor<T, Ix2>,
    means: &Tensor<T, Ix2>,
    kappas: &Tensor<T, Ix1>,
) -> Result<Tensor<T::Score, Ix1>> {
    const PAIRS: &str = "log_density_pairs";
    let (n, d) = (rows.shape()[0], rows.shape()[1]);
    VmfStats::new(d)?;
    let shape = |quantity, expected: &[usize], found: &[usize]| {
        if expected == found {
            return Ok(());
        }
        Err(Error::Shape { place: PAIRS, quantity, expected: format!("{expected:?}"), found: found.to_vec() })
    };
    shape("means", &[n, d], means.shape())?;
    shape("kappas", &[n], kappas.shape())?;
    rows.device().same(PAIRS, "means", means.device())?;
    rows.device().same(PAIRS, "kappas", kappas.device())?;
    let (means, kappas) = (means.to_device_async(&Device::Cpu).await?, kappas.to_device_async(&Device::Cpu).await?);
    let (Some(means), Some(kappas)) = (means.as_host(), kappas.as_host()) else { unreachable!("they are on the CPU") };
    let near = rows.to_device_async(&Device::Cpu).await?;
    let densities = on_host(&near, |view| {
        per_row(view, |row, index| {
            let mean = means.row(index);
            let mean: Vec<f64> = mean.iter().map(|value| value.wide()).collect();
            let scale = rows::inverse_norm(PAIRS, row, index)? * rows::inverse_norm(PAIRS, &mean, index)?;
            let kappa = kappas[index].wide();
            check_kappa(kappa, index)?;
            Ok(T::Score::from_f64(vmf_log_normalizer(d as f64, kappa) + kappa * (scale * T::dot(row, &mean))))
        })
    })?;
    densities.to_device_async(rows.device()).await
}

fn check_kappa(kappa: f64, index: usize) -> Result<()> {
    if (0.0..=MAX_KAPPA).contains(&kappa) {
        return Ok(());
    }
    Err(Error::Domain { place: PLACE, quantity: "kappa", index, expected: "0 to 1e12", found: kappa.to_string() })
}

/// Runs `body` where the rows are on the host, and puts the result where the rows were.
fn on_host<T: Rows, R: crate::Element>(
    rows: &Tensor<T, Ix2>,
    body: impl FnOnce(ArrayView2<'_, T>) -> Result<Vec<R>>,
) -> Result<Tensor<R, Ix1>> {
    let host: Array2<T>;
    let view = match rows.as_host() {
        Some(view) => view,
        None => {
            host = rows.to_array()?;
            host.view()
        }
    };
    rows.device().tensor_from(body(view)?.into())
}

/// `value(row, index)` for every row, by all threads.
fn per_row<T: Rows, R: Send>(
    view: ArrayView2<'_, T>,
    value: impl Fn(&[T], usize) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let dim = view.ncols();
    let elements = view.as_standard_layout();
    let elements = elements.as_slice().unwrap_or(&[]);
    elements.par_chunks_exact(dim.max(1)).with_min_len(16).enumerate().map(|(index, row)| value(row, index)).collect()
}
