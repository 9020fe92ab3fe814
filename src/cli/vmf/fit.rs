//! `orthant vmf fit`.

use std::path::{Path, PathBuf};
use std::time::Instant;

use half::f16;
use ndarray::{Array1, Ix2};
use orthant::vmf::{MixtureOptions, RowSource, Rows, Vmf, VmfMixture, VmfStats};
use orthant::{Device, Precision, Result, Tensor};

use super::model::{self, Model};
use super::prepared::Prepared;
use super::report::{self, Fitted, Summary};
use crate::cli::args::{Fit, FitPrecision};
use crate::cli::clustering::{self, Confusion};
use crate::cli::complaint::{InFile, bad};
use crate::cli::files::{self, Matrix};
use crate::cli::output::{Outputs, print};
use crate::cli::{devices, memory, plot, progress};

pub fn run(args: &Fit) -> anyhow::Result<()> {
    let start = Instant::now();
    let matrix = files::open(&args.rows, args.array.as_deref())?.into_matrix()?;
    if let Some(components) = args.components.filter(|k| *k > matrix.rows()) {
        let what = format!("it has {} rows, fewer than --components {components}", matrix.rows());
        return Err(bad(args.rows.display(), what));
    }
    let labels =
        args.labels.as_ref().map(|path| Labels::read(path, args.label_names.as_deref(), matrix.rows())).transpose()?;
    let weights = args.weights.as_ref().map(|path| read_weights(path, matrix.rows())).transpose()?;
    if let (Some(path), Some(labels)) = (&args.labels, &labels) {
        let (distinct, components) = (clustering::distinct(&labels.values), args.components.unwrap_or(1));
        if distinct.saturating_mul(components) > clustering::MAX_CELLS {
            let most = clustering::MAX_CELLS / components;
            let what = format!("{distinct} different labels, expected at most {most} with {components} components");
            return Err(bad(path.display(), what));
        }
    }
    let read = [Some(&args.rows), args.labels.as_ref(), args.label_names.as_ref(), args.weights.as_ref()];
    let mut outputs = Outputs::beside(read.into_iter().flatten());
    for path in [&args.model, &args.assign, &args.plot].into_iter().flatten() {
        outputs.claim(path)?;
    }

    let mut rows = Prepared { matrix: &matrix, center: None };
    if args.center {
        let stats = rows.stats(weights.as_ref().map(|w| w.view()))?;
        rows.center = Some(&stats.resultant() / stats.weight());
    }
    let (fitted, device) = match args.components {
        None => fit_one(args, &rows, weights.as_ref())?,
        Some(_) => fit_mixture(args, &rows, weights.as_ref())?,
    };

    let components = fitted.components();
    let confusion = labels.as_ref().map(|labels| Confusion::new(&fitted.assigned, &labels.values, components.len()));
    let summary =
        Summary { args, matrix: &matrix, device: device.to_string(), fitted: &fitted, confusion: confusion.as_ref() };
    if let Some(path) = &args.model {
        let center = rows.center.as_ref().and_then(|center| center.as_slice());
        outputs.stage(path, |to| model::write(&fitted.model, center, to))?;
    }
    if let Some(path) = &args.assign {
        let shape = [fitted.assigned.len() as u64];
        outputs.stage(path, |to| Ok(files::write_npy(to, &shape, &fitted.assigned)?))?;
    }
    if let Some(path) = &args.plot {
        let names: Option<Vec<String>> =
            labels.as_ref().zip(confusion.as_ref()).map(|(labels, confusion)| labels.names_of(&confusion.labels));
        let (indices, sample) = rows.sample(plot::MAX_POINTS)?;
        let assigned: Vec<u32> = indices.iter().map(|i| fitted.assigned[*i]).collect();
        let svg = plot::draw(&plot::Picture {
            title: summary.title(),
            subtitle: summary.subtitle(),
            rows: sample.view(),
            assigned: &assigned,
            total_rows: matrix.rows(),
            components: &components,
            trace: &fitted.trace,
            labels: confusion.as_ref().zip(names.as_deref()).map(|(confusion, names)| plot::Labels {
                confusion,
                names,
                named: args.label_names.is_some(),
            }),
        })?;
        outputs.stage(path, |to| Ok(to.write_all(svg.as_bytes())?))?;
    }
    outputs.commit()?;

    let seconds = start.elapsed().as_secs_f64();
    print(&if args.common.json { report::json(&summary, seconds)? } else { report::text(&summary, seconds) })
}

/// On the CPU one pass over the file in f64; on a GPU in f32 or extended precision, from memory.
fn fit_one(args: &Fit, rows: &Prepared, weights: Option<&Array1<f64>>) -> anyhow::Result<(Fitted, Device)> {
    let path = rows.matrix.path();
    rows.check_first()?;
    let mut device = devices::open(args.common.device)?;
    let extended = args.precision == FitPrecision::Extended;
    if !device.is_cpu() && (args.stream || (weights.is_some() && !extended) || !fits_memory(rows.matrix)) {
        let which = if extended { "streamed" } else { "weighted or streamed" };
        device = devices::instead(&device, &format!("one distribution of {which} rows is fitted"));
    }
    let vmf = if device.is_cpu() {
        Vmf::from_stats(&rows.stats(weights.map(|w| w.view()))?).in_file(path)?
    } else {
        let precision = if extended { Precision::Extended } else { Precision::Single };
        let weights = weights.map(|weights| weights.view());
        let sums = device.tensor_from(rows.load()?).and_then(|rows| VmfStats::from_rows(&rows, weights, precision));
        sums.and_then(|stats| Vmf::from_stats(&stats)).in_file(path)?
    };
    let log_likelihood = vmf.log_normalizer() + vmf.kappa() * vmf.resultant_length();
    let assigned = vec![0; rows.matrix.rows()];
    Ok((Fitted { assigned, model: Model::One(vmf), trace: vec![log_likelihood] }, device))
}

/// By EM, on the device that the command line asks for.
fn fit_mixture(args: &Fit, rows: &Prepared, weights: Option<&Array1<f64>>) -> anyhow::Result<(Fitted, Device)> {
    let path = rows.matrix.path();
    let streamed = args.stream || !fits_memory(rows.matrix);
    if streamed && weights.is_some() {
        let what = format!("--weights needs the rows of {} in memory, and they are streamed", path.display());
        return Err(bad("vmf fit", what));
    }
    let (mixture, device);
    let mut assigned = Vec::new();
    if streamed {
        assigned.resize(rows.matrix.rows(), 0);
        rows.check_first()?;
        device = devices::open(args.common.device)?;
        mixture = with_progress(args, |options| VmfMixture::fit_source(&device, rows, &options)).in_file(path)?;
        let bar = progress::bar(rows.rows() as u64, "assigning", "rows");
        let predicted = mixture.predict_source(&device, rows, &mut |first, part| {
            assigned[first..first + part.len()].iter_mut().zip(part).for_each(|(to, from)| *to = *from);
            bar.set_position((first + part.len()) as u64);
            Ok(())
        });
        bar.finish_and_clear();
        predicted.in_file(path)?;
    } else {
        // Read and checked first: drivers may print lines of their own when a device is opened.
        let fitted = if rows.matrix.is_f16() && rows.center.is_none() {
            let array = rows.load_f16()?;
            device = devices::open(args.common.device)?;
            // Half the memory; a GPU may lack f16.
            match &device {
                Device::Cpu => fit_rows(args, weights, device.tensor_from(array)),
                Device::Gpu(_) => fit_rows(args, weights, device.tensor_from(array.mapv(f16::to_f32))),
            }
        } else {
            let array = rows.load()?;
            device = devices::open(args.common.device)?;
            fit_rows(args, weights, device.tensor_from(array))
        };
        (mixture, assigned) = fitted.in_file(path)?;
    }
    let trace = mixture.log_likelihood_trace().to_vec();
    Ok((Fitted { model: Model::Mixture(mixture), assigned, trace }, device))
}

/// A mixture of rows in memory, and the component of each.
fn fit_rows<T: Rows>(
    args: &Fit,
    weights: Option<&Array1<f64>>,
    rows: Result<Tensor<T, Ix2>>,
) -> Result<(VmfMixture, Vec<u32>)> {
    let rows = rows?;
    let mixture = with_progress(args, |options| match weights {
        Some(weights) => VmfMixture::fit_weighted(&rows, weights.view(), &options),
        None => VmfMixture::fit(&rows, &options),
    })?;
    let assigned = mixture.predict(&rows)?.to_array()?;
    Ok((mixture, assigned.to_vec()))
}

fn options(args: &Fit) -> MixtureOptions {
    let options = MixtureOptions::new(args.components.unwrap_or(1))
        .seed(args.seed)
        .hard(args.hard)
        .tied_kappa(args.tied_kappa)
        .starts(args.starts)
        .max_iterations(args.max_iterations)
        .tolerance(args.tolerance)
        .batch(args.batch);
    match args.max_kappa {
        Some(kappa) => options.max_kappa(kappa),
        None => options,
    }
}

/// Runs a fit under a bar of its iterations; the time left is that of the most iterations there may be.
fn with_progress<R>(args: &Fit, fit: impl FnOnce(MixtureOptions) -> R) -> R {
    let most = args.starts.saturating_mul(args.max_iterations);
    let bar = progress::bar(most as u64, "seeding", "iterations at most");
    let shown = bar.clone();
    let result = fit(options(args).progress(move |iteration, log_likelihood| {
        shown.set_position(iteration as u64);
        shown.set_message(format!("log-likelihood {log_likelihood:.4}"));
    }));
    bar.finish_and_clear();
    result
}

/// Whether the rows as f32 take at most half of the memory that is free; unknown memory is taken to be enough.
fn fits_memory(matrix: &Matrix) -> bool {
    let needed = matrix.rows() as u128 * matrix.dim() as u128 * 4;
    memory::available().is_none_or(|available| needed <= u128::from(available / 2))
}

fn read_weights(path: &Path, rows: usize) -> anyhow::Result<Array1<f64>> {
    let weights = files::open(path, None)?.into_floats("weight", rows)?;
    match weights.iter().enumerate().find(|(_, w)| !(w.is_finite() && **w >= 0.0)) {
        Some((i, w)) => {
            Err(bad(path.display(), format!("weight {i} is {w}, expected a number from 0 up (they count from 0)")))
        }
        None if weights.iter().all(|w| *w == 0.0) => Err(bad(path.display(), "every weight is 0")),
        None => Ok(Array1::from(weights)),
    }
}

/// The label of every row, and what labels are called.
struct Labels {
    values: Vec<i64>,
    names: Option<(PathBuf, serde_json::Value)>,
}

impl Labels {
    fn read(path: &Path, names: Option<&Path>, rows: usize) -> anyhow::Result<Labels> {
        let values = files::open(path, None)?.into_integers("label", rows)?;
        let names = names.map(|path| -> anyhow::Result<_> {
            let text = std::fs::read_to_string(path).in_file(path)?;
            let names =
                serde_json::from_str(&text).map_err(|error| bad(path.display(), format!("not JSON: {error}")))?;
            if !matches!(names, serde_json::Value::Array(_) | serde_json::Value::Object(_)) {
                return Err(bad(path.display(), "expected a list of names, or an object from label to name"));
            }
            Ok((path.to_path_buf(), names))
        });
        let labels = Labels { values, names: names.transpose()? };
        if let Some((path, _)) = &labels.names
            && let Some(value) = labels.values.iter().find(|value| labels.name(**value).is_none())
        {
            return Err(bad(path.display(), format!("label {value} has no name")));
        }
        Ok(labels)
    }

    fn name(&self, value: i64) -> Option<String> {
        match &self.names {
            None => Some(value.to_string()),
            Some((_, serde_json::Value::Array(names))) => {
                names.get(usize::try_from(value).ok()?)?.as_str().map(str::to_string)
            }
            Some((_, names)) => names.get(value.to_string())?.as_str().map(str::to_string),
        }
    }

    fn names_of(&self, values: &[i64]) -> Vec<String> {
        values.iter().map(|value| self.name(*value).unwrap_or_else(|| value.to_string())).collect()
    }
}
