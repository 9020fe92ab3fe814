//! Mixtures of von Mises-Fisher distributions, fitted by EM on either device, from memory or from a [`RowSource`].

mod backend;
mod chunks;
mod em_cpu;
mod em_gpu;
mod evaluate;
mod fit;
mod model;
mod options;
mod posterior;
#[cfg(feature = "datafusion")]
mod remote;
mod seed;
#[cfg(feature = "datafusion")]
pub(crate) mod step;

use ndarray::{Array2, ArrayView1, Axis, Ix2};

pub use model::{Component, VmfMixture};
pub use options::MixtureOptions;
#[cfg(feature = "datafusion")]
pub(crate) use remote::{Fit, OverBatches, Selection};

use super::rows::{self, RowSource, Rows};
use super::stats::{VmfStats, view_mut};
use crate::gpu::block_on;
use crate::{Device, Error, Result, Tensor};
use chunks::{Chunks, Memory, Streamed};
use em_cpu::Cpu;
use em_gpu::OnGpu;
use fit::Fitted;

const PLACE: &str = "VmfMixture";

impl VmfMixture {
    /// Fits a mixture to `rows`, (n, d), each normalised on the way.
    ///
    /// k-means++ seeds, a few passes of spherical k-means, then EM until the mean log-likelihood of a row grows by less than the tolerance;
    /// of several starts the best is kept. Where there are far more rows than 64 a component, seeds and k-means see a sample of them.
    ///
    /// On the CPU the data are never copied whole; beside them it needs the sums of the components (4 d K bytes a thread, 12 d K in
    /// all), the sample (at most an eighth of the data, or 32 MB), and 4 bytes a row.
    ///
    /// A component's kappa is the maximum-likelihood one, capped by [`MixtureOptions::max_kappa`] and where 1 - R < 5e-7 drowns in the
    /// rounding of f32 rows. With fewer rows than dimensions it is too large by far: [`Component::kappa_relative_error`] says so.
    ///
    /// # Errors
    /// [`Error::Domain`] names the first row that is all zeros or has an element that is not finite; [`Error::Argument`] for options that
    /// make no sense, more components than rows among them; the device's own errors.
    pub fn fit<T: Rows>(rows: &Tensor<T, Ix2>, options: &MixtureOptions) -> Result<Self> {
        block_on(Self::fit_async(rows, options))
    }

    /// [`VmfMixture::fit`] where a thread must not block.
    ///
    /// # Errors
    /// As [`VmfMixture::fit`].
    pub async fn fit_async<T: Rows>(rows: &Tensor<T, Ix2>, options: &MixtureOptions) -> Result<Self> {
        fit_tensor(rows, None, options).await
    }

    /// [`VmfMixture::fit`] with `weights`, (n), finite and not negative: weight 2 counts as the row twice, a row of weight 0 is skipped unseen.
    /// A common factor of all weights changes nothing but the number of rows that errors of kappa, AIC and BIC reckon with.
    ///
    /// # Errors
    /// As [`VmfMixture::fit`]; [`Error::Shape`] and [`Error::Domain`] for the weights, [`Error::Argument`] for a sum that is not finite.
    pub fn fit_weighted<T: Rows>(
        rows: &Tensor<T, Ix2>,
        weights: ArrayView1<'_, f64>,
        options: &MixtureOptions,
    ) -> Result<Self> {
        block_on(Self::fit_weighted_async(rows, weights, options))
    }

    /// [`VmfMixture::fit_weighted`] where a thread must not block.
    ///
    /// # Errors
    /// As [`VmfMixture::fit_weighted`].
    pub async fn fit_weighted_async<T: Rows>(
        rows: &Tensor<T, Ix2>,
        weights: ArrayView1<'_, f64>,
        options: &MixtureOptions,
    ) -> Result<Self> {
        let weights = weights.to_vec();
        fit_tensor(rows, Some(&weights), options).await
    }

    /// Fits a mixture to rows that are read in pieces: every iteration reads each row once, from all threads. Memory holds a sample of 64 rows a
    /// component (at least 16384) for the seeds, and the sums.
    ///
    /// # Errors
    /// As [`VmfMixture::fit`], and what the source fails with.
    pub fn fit_source(device: &Device, source: &dyn RowSource, options: &MixtureOptions) -> Result<Self> {
        check_shape(source.rows(), source.dim(), options)?;
        let streamed = Streamed { source };
        let sample = read_sample(source, options)?;
        let view = sample.view();
        let sample = Memory::new(&view, None)?;
        let starts = Starts { sample: &sample, dim: source.dim(), unit: 1.0, options, resumed: None };
        match device {
            Device::Cpu => block_on(starts.run(&mut Cpu::new(&streamed, options.components))),
            Device::Gpu(_) => block_on(starts.run(&mut OnGpu::streamed(device, source, options.components))),
        }
    }
}

async fn fit_tensor<T: Rows>(
    rows: &Tensor<T, Ix2>,
    weights: Option<&[f64]>,
    options: &MixtureOptions,
) -> Result<VmfMixture> {
    let (n, dim) = (rows.shape()[0], rows.shape()[1]);
    check_shape(n, dim, options)?;
    rows::check_weights(PLACE, n, weights)?;
    let scaled = weights.map(scale).transpose()?;
    let (weights, unit) = scaled.as_ref().map_or((None, 1.0), |(scaled, unit)| (Some(&scaled[..]), *unit));
    if weights.is_some_and(|weights| weights.iter().filter(|weight| **weight > 0.0).count() < options.components) {
        let expected = "at most the number of rows of positive weight".into();
        return Err(Error::Argument {
            place: PLACE,
            quantity: "components",
            expected,
            found: options.components.to_string(),
        });
    }
    let wanted = seed::sample_rows(options.components).min((n / 8).max((8 << 20) / dim));
    let indices: Vec<usize> =
        if n <= 4 * wanted { (0..n).collect() } else { seed::sample_indices(n, wanted, options.seed) };
    let select = |weights: &[f64]| indices.iter().map(|&row| weights[row]).collect::<Vec<f64>>();
    let sample_weights = weights.map(select);
    let Some(view) = rows.as_host() else {
        let mut backend = OnGpu::resident(rows, weights, options.components, options.batch).await?;
        let sample_rows = backend.select(&indices).await?;
        let sample_view = sample_rows.view();
        let sample = Memory::new(&sample_view, sample_weights.as_deref())?;
        return Starts { sample: &sample, dim, unit, options, resumed: None }.run(&mut backend).await;
    };
    let data = Memory::new(&view, weights)?;
    let mut backend = Cpu::new(&data, options.components);
    if indices.len() == n {
        return Starts { sample: &data, dim, unit, options, resumed: None }.run(&mut backend).await;
    }
    let sample_rows = view.select(Axis(0), &indices);
    let sample_view = sample_rows.view();
    let sample = Memory::new(&sample_view, sample_weights.as_deref())?;
    Starts { sample: &sample, dim, unit, options, resumed: None }.run(&mut backend).await
}

/// `weights` in units of the mean positive one, and that unit: neither their squares nor f32 then limit their scale. All zero, they stay.
fn scale(weights: &[f64]) -> Result<(Vec<f64>, f64)> {
    let largest = weights.iter().copied().fold(0.0, f64::max);
    if largest == 0.0 {
        return Ok((weights.to_vec(), 1.0));
    }
    let positive = weights.iter().filter(|weight| **weight > 0.0).count() as f64;
    let mean = weights.iter().map(|weight| weight / largest).sum::<f64>() / positive;
    if !(largest * mean * positive).is_finite() {
        let expected = "a finite sum".into();
        return Err(Error::Argument { place: PLACE, quantity: "weights", expected, found: "an infinite one".into() });
    }
    Ok((weights.iter().map(|weight| weight / largest / mean).collect(), largest * mean))
}

/// Rows at random places of a source.
fn read_sample(source: &dyn RowSource, options: &MixtureOptions) -> Result<Array2<f32>> {
    let indices = seed::sample_indices(source.rows(), seed::sample_rows(options.components), options.seed);
    let mut sample = Array2::zeros((indices.len(), source.dim()));
    for (mut row, &index) in sample.rows_mut().into_iter().zip(&indices) {
        if let Some(row) = row.as_slice_mut() {
            source.read(index, view_mut(row, source.dim()))?;
        }
    }
    Ok(sample)
}

fn check_shape(rows: usize, dim: usize, options: &MixtureOptions) -> Result<()> {
    VmfStats::new(dim)?;
    options.check(rows)
}

/// The starts of a fit, one after the other.
struct Starts<'a> {
    /// What seeds are chosen from.
    sample: &'a dyn Chunks,
    dim: usize,
    /// What weights were divided by.
    unit: f64,
    options: &'a MixtureOptions,
    /// What to go on from instead of seeds.
    resumed: Option<&'a VmfMixture>,
}

impl Starts<'_> {
    async fn run<B: backend::Backend>(&self, backend: &mut B) -> Result<VmfMixture> {
        let mut best: Option<Fitted> = None;
        let mut iteration = 0;
        for number in 0..self.options.starts {
            let seed = self.options.seed.wrapping_add(number as u64);
            let (start, trace) = match self.resumed {
                Some(mixture) => (mixture.inside(), mixture.log_likelihood_trace().to_vec()),
                None => (fit::start(self.sample, self.options, seed)?, Vec::new()),
            };
            iteration += trace.len();
            let report = |objective: f64| {
                iteration += 1;
                if let Some(progress) = &self.options.progress {
                    progress(iteration, objective);
                }
            };
            let fitted = fit::run(backend, self.dim, start, trace, self.options, report).await?;
            let better = |best: &Fitted| fitted.last.log_likelihood > best.last.log_likelihood;
            if best.as_ref().is_none_or(better) {
                best = Some(fitted);
            }
        }
        match best {
            Some(fitted) => Ok(VmfMixture::of(fitted, self.dim, self.unit, self.options)),
            None => unreachable!("the options ask for at least one start"),
        }
    }
}
