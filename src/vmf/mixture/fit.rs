//! The EM loop: the same on every device; what it holds on the host is a few numbers a component.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::backend::{Backend, Pass, Summary};
use super::chunks::Chunks;
use super::em_cpu::Cpu;
use super::options::MixtureOptions;
use super::posterior::Densities;
use super::seed::plus_plus;
use crate::Result;
use crate::gpu::block_on;
use crate::kernels::bessel::cpu::vmf_log_normalizer;
use crate::vmf::kappa::{Resultant, solve_kappa};

/// Passes of spherical k-means between seeds and EM: they cost an EM iteration each and save several.
const WARM_UP: usize = 8;

/// Seedings tried a start. k-means cannot leave a seeding with two seeds in one cluster and none in another; on the speakers' data a third
/// of the seedings are right, and the cosines tell which.
const SEEDINGS: u64 = 4;

/// How often a component may be seeded again.
const RESEEDS: usize = 3;

/// 1 - R below which the f32 arithmetic of a pass no longer tells rows from identical ones.
pub(crate) const RESOLUTION: f64 = 5e-7;

/// Weights and concentrations; the mean directions are the backend's.
#[derive(Clone, Debug, Default)]
pub(crate) struct Parameters {
    pub(crate) weight: Vec<f64>,
    pub(crate) kappa: Vec<f64>,
}

/// A finished start.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fitted {
    pub(crate) parameters: Parameters,
    /// (K, d).
    pub(crate) means: Vec<f32>,
    pub(crate) trace: Vec<f64>,
    pub(crate) converged: bool,
    /// Of the parameters, over all rows.
    pub(crate) last: Summary,
}

impl Parameters {
    /// What an E-step adds to kappa cos: ln weight + ln C_d(kappa), in f64.
    pub(crate) fn densities(&self, dim: usize) -> Densities {
        let bias = |(weight, &kappa): (&f64, &f64)| weight.ln() + vmf_log_normalizer(dim as f64, kappa);
        Densities::new(&self.kappa, self.weight.iter().zip(&self.kappa).map(bias))
    }

    /// The M-step for weights and kappas from the components' masses and resultant lengths.
    fn maximise(&mut self, dim: usize, mass: &[f64], lengths: &[f64], options: &MixtureOptions) {
        let total: f64 = mass.iter().sum();
        let resultant = |length: f64, mass: f64| {
            let complement = ((mass - length) / mass).max(RESOLUTION);
            Resultant { length: 1.0 - complement, complement }
        };
        let solve = |length, mass| solve_kappa(dim, resultant(length, mass)).min(options.max_kappa);
        self.weight = mass.iter().map(|mass| mass / total).collect();
        if options.tied_kappa {
            self.kappa.fill(solve(lengths.iter().sum(), total));
        } else {
            for ((kappa, &mass), &length) in self.kappa.iter_mut().zip(mass).zip(lengths) {
                if mass > 0.0 {
                    *kappa = solve(length, mass);
                }
            }
        }
    }
}

/// The best of a few seedings after a few passes of spherical k-means each, on `chunks`: mean directions and parameters to start EM from.
pub(crate) fn start(chunks: &dyn Chunks, options: &MixtureOptions, seed: u64) -> Result<(Vec<f32>, Parameters)> {
    let mut best: Option<(f64, (Vec<f32>, Parameters))> = None;
    for seeding in 0..SEEDINGS {
        let (cosine, start) = warm_up(chunks, options, seed ^ (seeding << 32))?;
        if best.as_ref().is_none_or(|(before, _)| cosine > *before) {
            best = Some((cosine, start));
        }
    }
    match best {
        Some((_, start)) => Ok(start),
        None => unreachable!("there is at least one seeding"),
    }
}

/// One seeding and its k-means: the sum of the rows' cosines with their mean directions, and where it got to.
fn warm_up(chunks: &dyn Chunks, options: &MixtureOptions, seed: u64) -> Result<(f64, (Vec<f32>, Parameters))> {
    let k = options.components;
    let mut backend = Cpu::new(chunks, k);
    backend.set_means(plus_plus(chunks, k, seed)?)?;
    let mut parameters = Parameters { weight: vec![1.0 / k as f64; k], kappa: vec![1.0; k] };
    let cosine = Densities::new(&vec![1.0; k], std::iter::repeat_n(0.0, k));
    let mut reseeds = vec![0; k];
    let mut before = f64::NEG_INFINITY;
    for _ in 0..WARM_UP {
        let pass = Pass { rows: 0..chunks.rows(), densities: &cosine, hard: true, blend: (0.0, 1.0) };
        let summary = block_on(backend.step(pass))?;
        backend.update_means()?;
        parameters.maximise(chunks.dim(), &summary.mass, &summary.lengths, options);
        let again = block_on(reseed(&mut backend, &mut parameters, &summary, chunks.dim(), options, &mut reseeds))?;
        // the mean cosine grows by less than a ten-thousandth
        let done = !again && summary.best - before <= 1e-4 * summary.weight;
        before = summary.best;
        if done {
            break;
        }
    }
    Ok((before, (block_on(backend.means())?, parameters)))
}

/// EM on the backend's rows from `means` and `parameters`; `trace` holds the objectives of the iterations that led there, if any.
pub(crate) async fn run<B: Backend>(
    backend: &mut B,
    dim: usize,
    (means, mut parameters): (Vec<f32>, Parameters),
    trace: Vec<f64>,
    options: &MixtureOptions,
    mut report: impl FnMut(f64),
) -> Result<Fitted> {
    backend.set_means(means)?;
    let rows = backend.rows();
    let mut reseeds = vec![0; options.components];
    let mut batches = Batches::new(rows, options);
    // sums of mini-batches begin with those of all rows
    let mut again = trace.is_empty() || batches.is_some();
    let mut fitted = Fitted { trace, ..Fitted::default() };
    loop {
        // A pass over all rows wherever components were just seeded, so that the sums a mini-batch is blended with are those of every component.
        let in_batches = batches.as_mut().filter(|_| !again);
        let full = in_batches.is_none();
        let summary = match in_batches {
            Some(batches) => batches.epoch(backend, &mut parameters, dim, options).await?,
            None => {
                let densities = parameters.densities(dim);
                let pass = Pass { rows: 0..rows, densities: &densities, hard: options.hard, blend: (0.0, 1.0) };
                backend.step(pass).await?
            }
        };
        let objective = if options.hard { summary.best } else { summary.log_likelihood } / summary.weight;
        let before = fitted.trace.last().copied().unwrap_or(f64::NEG_INFINITY);
        fitted.trace.push(objective);
        report(objective);
        fitted.converged = !again && objective - before <= options.tolerance;
        fitted.last = summary;
        if fitted.converged || fitted.trace.len() >= options.max_iterations {
            break;
        }
        if full {
            backend.update_means()?;
            parameters.maximise(dim, &fitted.last.mass, &fitted.last.lengths, options);
            if let Some(batches) = &mut batches {
                batches.mass.clone_from(&fitted.last.mass);
            }
        }
        again = reseed(backend, &mut parameters, &fitted.last, dim, options, &mut reseeds).await?;
        backend.after_step(&parameters, &fitted.trace, &fitted.last)?;
    }
    if batches.is_some() {
        // An M-step over all rows takes out what the last batches weigh too much; then what the model says of the rows: an epoch's report
        // belongs to parameters that moved under it.
        let densities = parameters.densities(dim);
        let pass = Pass { rows: 0..rows, densities: &densities, hard: options.hard, blend: (0.0, 1.0) };
        let summary = backend.step(pass).await?;
        backend.update_means()?;
        parameters.maximise(dim, &summary.mass, &summary.lengths, options);
        let densities = parameters.densities(dim);
        let pass = Pass { rows: 0..rows, densities: &densities, hard: options.hard, blend: (1.0, 0.0) };
        fitted.last = backend.step(pass).await?;
    }
    fitted.means = backend.means().await?;
    fitted.parameters = parameters;
    Ok(fitted)
}

/// Seeds components that hold too little again, at the rows explained worst. Says whether it did.
async fn reseed<B: Backend>(
    backend: &mut B,
    parameters: &mut Parameters,
    summary: &Summary,
    dim: usize,
    options: &MixtureOptions,
    reseeds: &mut [usize],
) -> Result<bool> {
    let total: f64 = summary.mass.iter().sum();
    let mut worst = summary.worst.iter();
    let mut any = false;
    for (k, reseeds) in reseeds.iter_mut().enumerate() {
        if summary.mass[k] >= options.min_weight || *reseeds == RESEEDS {
            continue;
        }
        let Some(&(_, row)) = worst.next() else { break };
        backend.reseed(k, row).await?;
        // as concentrated as the rows are around the other components on average
        let mut tied = Parameters { weight: Vec::new(), kappa: vec![0.0] };
        let tied_options = MixtureOptions { tied_kappa: true, ..options.clone() };
        tied.maximise(dim, &[total], &[summary.lengths.iter().sum()], &tied_options);
        parameters.kappa[k] = tied.kappa[0];
        parameters.weight[k] = options.min_weight.max(1.0) / total;
        *reseeds += 1;
        any = true;
    }
    if any {
        let sum: f64 = parameters.weight.iter().sum();
        parameters.weight.iter_mut().for_each(|weight| *weight /= sum);
    }
    Ok(any)
}

/// Stepwise EM: sums that forget, updated after every batch. They start from a pass over all rows, which counts for as many steps as there
/// are batches: no batch can wipe out a component that has no row in it.
///
/// Source: Cappe & Moulines 2009; step sizes (t + 2)^-0.7 as in Liang & Klein 2009.
struct Batches {
    rows: usize,
    size: usize,
    order: Vec<usize>,
    rng: ChaCha8Rng,
    steps: usize,
    mass: Vec<f64>,
}

impl Batches {
    fn new(rows: usize, options: &MixtureOptions) -> Option<Self> {
        let size = options.batch.filter(|&size| size < rows)?;
        let rng = ChaCha8Rng::seed_from_u64(options.seed ^ 0xba7c);
        let order: Vec<usize> = (0..rows.div_ceil(size)).collect();
        Some(Batches { rows, size, steps: order.len(), order, rng, mass: vec![0.0; options.components] })
    }

    async fn epoch<B: Backend>(
        &mut self,
        backend: &mut B,
        parameters: &mut Parameters,
        dim: usize,
        options: &MixtureOptions,
    ) -> Result<Summary> {
        self.order.shuffle(&mut self.rng);
        let k = options.components;
        let mut total = Summary { mass: vec![0.0; k], sizes: vec![0; k], ..Summary::default() };
        for &batch in &self.order {
            let rows = batch * self.size..((batch + 1) * self.size).min(self.rows);
            let step = (self.steps as f64 + 2.0).powf(-0.7);
            self.steps += 1;
            // sums per row times all rows, so that masses stay comparable with min_weight
            let blend = (1.0 - step, step * self.rows as f64 / rows.len() as f64);
            let densities = parameters.densities(dim);
            let summary = backend.step(Pass { rows, densities: &densities, hard: options.hard, blend }).await?;
            for (mass, gained) in self.mass.iter_mut().zip(&summary.mass) {
                *mass = blend.0 * *mass + blend.1 * gained;
            }
            backend.update_means()?;
            parameters.maximise(dim, &self.mass, &summary.lengths, options);
            total.lengths.clone_from(&summary.lengths);
            total.add(summary);
        }
        total.worst.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        Ok(total)
    }
}
