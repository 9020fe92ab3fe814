//! EM over rows that are elsewhere: each pass is one question to whoever has them.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use ndarray::ArrayView2;

use super::backend::{Backend, Pass, Summary};
use super::chunks::Memory;
use super::em_cpu::unit_sums;
use super::fit::{Fitted, Parameters};
use super::seed;
use super::step::{Model, Sums};
use super::{MixtureOptions, PLACE, Starts, VmfMixture, check_shape};
use crate::vmf::reduce;
use crate::{Error, Result};

/// The rows that take part in a pass: those whose hash falls on `batch` of `batches`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Selection {
    pub(crate) batch: u64,
    pub(crate) batches: u64,
    pub(crate) seed: u64,
}

/// Whoever has the rows.
pub(crate) trait OverBatches: Sync {
    /// What asking may fail with.
    type Failure: Send;
    /// The bytes of the [`Sums`] of a pass.
    fn pass(
        &self,
        model: Model,
        selection: Selection,
    ) -> impl Future<Output = std::result::Result<Vec<u8>, Self::Failure>> + Send;
}

/// A fit over such rows.
pub(crate) struct Fit<'a> {
    options: &'a MixtureOptions,
    rows: usize,
    dim: usize,
    unit: f64,
    checkpoint: Option<&'a Path>,
    resumed: Option<VmfMixture>,
}

impl<'a> Fit<'a> {
    /// Rows to draw for the seeds of rows of any length.
    pub(crate) fn sample_rows(options: &MixtureOptions) -> usize {
        seed::sample_rows(options.components)
    }

    /// Of `rows` rows of positive weight, whose weights are divided by `unit`.
    ///
    /// # Errors
    /// [`Error::Argument`] for options that make no sense; [`Error::Format`] for a checkpoint of another shape.
    pub(crate) fn new(
        options: &'a MixtureOptions,
        (rows, dim): (usize, usize),
        unit: f64,
        checkpoint: Option<&'a Path>,
        resumed: Option<VmfMixture>,
    ) -> Result<Self> {
        check_shape(rows, dim, options)?;
        if let Some(found) = &resumed
            && (found.dim(), found.components().len()) != (dim, options.components)
        {
            let (k, of) = (found.components().len(), found.dim());
            let expected = format!("{} components in {dim} dimensions", options.components);
            let reason = format!("the checkpoint has {k} components in {of} dimensions, expected {expected}");
            return Err(Error::Format { what: "VmfMixture", reason });
        }
        Ok(Self { options, rows, dim, unit, checkpoint, resumed })
    }

    /// Seeds from `sample`, (n, d), with its weights; then EM.
    ///
    /// # Errors
    /// This crate's, and beside it what asking failed with, if that was why.
    pub(crate) async fn run<O: OverBatches>(
        &self,
        over: &O,
        sample: &[f32],
        weights: &[f64],
    ) -> std::result::Result<VmfMixture, (Error, Option<O::Failure>)> {
        let failed = Mutex::new(None);
        let fitted = self.run_on(over, sample, weights, &failed).await;
        fitted.map_err(|error| (error, failed.into_inner().unwrap_or_else(PoisonError::into_inner)))
    }

    async fn run_on<O: OverBatches>(
        &self,
        over: &O,
        sample: &[f32],
        weights: &[f64],
        failed: &Mutex<Option<O::Failure>>,
    ) -> Result<VmfMixture> {
        let Ok(view) = ArrayView2::from_shape((weights.len(), self.dim), sample) else {
            let reason = format!("a sample of {} elements for {} rows of {}", sample.len(), weights.len(), self.dim);
            return Err(Error::Format { what: PLACE, reason });
        };
        let weights: Vec<f64> = weights.iter().map(|weight| weight / self.unit).collect();
        let sample = Memory::new(&view, Some(&weights))?;
        let elements = self.options.components * self.dim;
        let mut remote =
            Remote { fit: self, over, failed, means: Vec::new(), sums: vec![0.0; elements], worst: Vec::new() };
        let resumed = self.resumed.as_ref();
        let starts = Starts { sample: &sample, dim: self.dim, unit: self.unit, options: self.options, resumed };
        starts.run(&mut remote).await
    }
}

/// The host's side: mean directions, sums, and the rows explained worst.
struct Remote<'a, O: OverBatches> {
    fit: &'a Fit<'a>,
    over: &'a O,
    failed: &'a Mutex<Option<O::Failure>>,
    /// (K, d).
    means: Vec<f32>,
    /// (K, d).
    sums: Vec<f64>,
    worst: Vec<Vec<f32>>,
}

impl<O: OverBatches> Backend for Remote<'_, O> {
    fn rows(&self) -> usize {
        self.fit.rows
    }

    fn set_means(&mut self, means: Vec<f32>) -> Result<()> {
        self.means = means;
        Ok(())
    }

    async fn step(&mut self, pass: Pass<'_>) -> Result<Summary> {
        let Fit { rows, dim, unit, options, .. } = *self.fit;
        let model = |means| Model {
            components: options.components,
            means,
            densities: pass.densities.clone(),
            hard: pass.hard,
            unit,
        };
        let all = pass.rows.len() == rows;
        let size = if all { rows } else { options.batch.unwrap_or(rows) }.max(1);
        let selection = Selection {
            batch: (pass.rows.start / size) as u64,
            batches: rows.div_ceil(size) as u64,
            seed: options.seed,
        };
        let bytes = self.over.pass(model(self.means.clone()), selection).await.map_err(|failure| {
            *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure);
            Error::Io { what: PLACE.into(), reason: "the query failed".into() }
        })?;
        let shape = model(std::mem::take(&mut self.means));
        let sums = Sums::from_bytes(&shape, &bytes);
        self.means = shape.means;
        let (mut summary, totals, worst) = sums?.finish();
        let (keep, add) = pass.blend;
        self.sums.iter_mut().zip(totals).for_each(|(sum, new)| *sum = keep * *sum + add * new);
        summary.lengths = self.sums.chunks_exact(dim).map(|sum| reduce::squared_norm_f64(sum).sqrt()).collect();
        summary.worst = worst.iter().enumerate().map(|(number, (density, _))| (*density, number)).collect();
        self.worst = worst.into_iter().map(|(_, row)| row).collect();
        Ok(summary)
    }

    fn update_means(&mut self) -> Result<()> {
        unit_sums(&mut self.means, &self.sums, self.fit.dim);
        Ok(())
    }

    async fn reseed(&mut self, k: usize, row: usize) -> Result<()> {
        let dim = self.fit.dim;
        if let Some(worst) = self.worst.get(row) {
            self.means[k * dim..][..dim].copy_from_slice(worst);
        }
        Ok(())
    }

    async fn means(&mut self) -> Result<Vec<f32>> {
        Ok(self.means.clone())
    }

    fn after_step(&mut self, parameters: &Parameters, trace: &[f64], last: &Summary) -> Result<()> {
        let Some(path) = self.fit.checkpoint else { return Ok(()) };
        let fitted = Fitted {
            parameters: parameters.clone(),
            means: self.means.clone(),
            trace: trace.to_vec(),
            converged: false,
            last: last.clone(),
        };
        VmfMixture::of(fitted, self.fit.dim, self.fit.unit, self.fit.options).save(path)
    }
}
