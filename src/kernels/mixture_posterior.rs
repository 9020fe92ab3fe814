//! The E-step of a mixture on cosines: shares, log-densities, and the few sums that the host needs of them.

use ndarray::{Array2, Axis, Ix1, Ix2, Zip};

use super::column_sums;
use crate::gpu::{Constant, Kernel, Needs, Params, View, params, shader};
use crate::tensor::{Storage, Tensor};
use crate::{Error, Result};

params! {
    /// As in `shaders/mixture_posterior.wgsl`.
    MixturePosteriorParams {
        rows: u32,
        components: u32,
        cosines_offset: u32,
        shares_offset: u32,
        weights_offset: u32,
        densities_offset: u32,
        hard: u32,
        weighted: u32,
        groups_x: u32,
        labels_offset: u32,
        scores_offset: u32,
        reference: f32,
    }
}

params! {
    /// As in `shaders/mixture_summary.wgsl`.
    MixtureSummaryParams {
        rows: u32,
        components: u32,
        shares_offset: u32,
        densities_offset: u32,
        sums_offset: u32,
        worst_offset: u32,
        first: u32,
        groups_x: u32,
        blocks: u32,
        pad0: u32,
        pad1: u32,
        pad2: u32,
    }
}

static MIXTURE_POSTERIOR: Kernel = Kernel {
    name: "mixture_posterior",
    sources: &[shader!("mixture_posterior.wgsl"), shader!("shared/math_f32.wgsl")],
    needs: Needs::NONE,
    fields: MixturePosteriorParams::FIELDS,
    params_bytes: size_of::<MixturePosteriorParams>(),
};

static MIXTURE_SUMMARY: Kernel = Kernel {
    name: "mixture_summary",
    sources: &[shader!("mixture_summary.wgsl")],
    needs: Needs::NONE,
    fields: MixtureSummaryParams::FIELDS,
    params_bytes: size_of::<MixtureSummaryParams>(),
};

const WORKGROUP: u32 = 64;
/// Rows of a block of the summary.
const ROWS: usize = 256;

fn posterior_constants() -> [(&'static str, Constant); 1] {
    [("WORKGROUP", Constant::U32(WORKGROUP))]
}

fn summary_constants() -> [(&'static str, Constant); 2] {
    [("WORKGROUP", Constant::U32(WORKGROUP)), ("ROWS", Constant::U32(ROWS as u32))]
}

pub(crate) fn variants() -> Vec<(&'static Kernel, Vec<(&'static str, Constant)>)> {
    vec![(&MIXTURE_POSTERIOR, posterior_constants().to_vec()), (&MIXTURE_SUMMARY, summary_constants().to_vec())]
}

/// What the rows of an E-step are, one row each.
#[derive(Debug, Clone)]
pub struct Posterior {
    /// (n, K): weight of the row times the responsibility of the component.
    pub shares: Tensor<f32, Ix2>,
    /// (n, 4): ln sum exp(term), the largest term, the component it belongs to (the first of equal ones), the row's weight.
    pub densities: Tensor<f32, Ix2>,
    /// (n): the component of the largest term, the first of equal ones.
    pub labels: Tensor<u32, Ix1>,
    /// (n): `reference` + ln sum exp(term).
    pub scores: Tensor<f32, Ix1>,
}

/// From the cosines (n, K) of unit rows with mean directions to shares: the term of component k is `bias[k] - kappa[k] (1 - cosine)`.
///
/// * `kappa` (K): concentrations, at least 0; `bias` (K): what a row at the mean direction scores, finite; in f32, so the caller subtracts what all
///   have in common first
/// * `reference`: that common part, which `scores` get back
/// * `weights` (n): of the rows, or `None` where each is 1
/// * `hard`: give each row wholly to its best component
/// * accuracy: a term within 2 eps of `|bias| + 2 kappa`, a share within that of its terms plus 4 eps
///
/// # Errors
/// [`Error::Shape`] where lengths differ; [`Error::Argument`] without a component; [`Error::DeviceMismatch`].
pub fn mixture_posterior(
    cosines: &Tensor<f32, Ix2>,
    kappa: &[f32],
    bias: &[f32],
    reference: f32,
    weights: Option<&Tensor<f32, Ix1>>,
    hard: bool,
) -> Result<Posterior> {
    let place = "mixture_posterior";
    let (count, components) = (cosines.shape()[0], cosines.shape()[1]);
    for (quantity, length) in [("kappa", kappa.len()), ("bias", bias.len())] {
        if length != components {
            let expected = format!("{components} components");
            return Err(Error::Shape { place, quantity, expected, found: vec![length] });
        }
    }
    if components == 0 {
        return Err(Error::Argument {
            place,
            quantity: "components",
            expected: "at least 1".into(),
            found: "0".into(),
        });
    }
    if let Some(weights) = weights {
        cosines.device().same(place, "weights", weights.device())?;
        if weights.len() != count {
            let expected = format!("{count} rows");
            return Err(Error::Shape { place, quantity: "weights", expected, found: vec![weights.len()] });
        }
    }
    match cosines.storage() {
        Storage::Host(cosines) => {
            // Views, not tensors, go to other threads: a browser's device handles cannot.
            let weights = weights.and_then(Tensor::as_host);
            let mut shares = Array2::<f32>::zeros((count, components));
            let mut densities = Array2::<f32>::zeros((count, 4));
            Zip::indexed(shares.axis_iter_mut(Axis(0)))
                .and(densities.axis_iter_mut(Axis(0)))
                .and(cosines.axis_iter(Axis(0)))
                .par_for_each(|index, mut shares, mut density, cosines| {
                    let term = |k: usize| f64::from(bias[k]) - f64::from(kappa[k]) * (1.0 - f64::from(cosines[k]));
                    let best = (0..components).fold(0, |best, k| if term(k) > term(best) { k } else { best });
                    let largest = term(best);
                    let sum: f64 = (0..components).map(|k| (term(k) - largest).exp()).sum();
                    let weight = weights.as_ref().map_or(1.0, |weights| weights[index]);
                    density[0] = (largest + sum.ln()) as f32;
                    density[1] = largest as f32;
                    density[2] = best as f32;
                    density[3] = weight;
                    for (k, share) in shares.iter_mut().enumerate() {
                        let responsibility = match hard {
                            true => f64::from(u8::from(k == best)),
                            false => (term(k) - largest).exp() / sum,
                        };
                        *share = (f64::from(weight) * responsibility) as f32;
                    }
                });
            let labels = densities.column(2).mapv(|label| label as u32);
            let scores = densities.column(0).mapv(|density| reference + density);
            Ok(Posterior {
                shares: Tensor::host(shares),
                densities: Tensor::host(densities),
                labels: Tensor::host(labels),
                scores: Tensor::host(scores),
            })
        }
        Storage::Gpu(gpu, buffer) => {
            let pairs: Vec<f32> = kappa.iter().zip(bias).flat_map(|(&kappa, &bias)| [kappa, bias]).collect();
            let parameters = gpu.upload(place, bytemuck::cast_slice(&pairs))?;
            let shares = gpu.allocate(place, (count * components * 4) as u64)?;
            let densities = gpu.allocate(place, (count * 16) as u64)?;
            let labels = gpu.allocate(place, (count * 4) as u64)?;
            let scores = gpu.allocate(place, (count * 4) as u64)?;
            // Something to bind where there are no weights.
            let weights_buffer = match weights.map(Tensor::storage) {
                Some(Storage::Gpu(_, weights)) => weights.as_ref(),
                _ => &parameters,
            };
            let step = gpu.rows_per_window(place, components.max(4) * 4)?;
            for first in (0..count).step_by(step) {
                let part = step.min(count - first);
                let window = |buffer, stride: usize| {
                    View::window(buffer, (first * stride) as u64, (part * stride) as u64, gpu.binding_alignment())
                };
                let (cosines, cosines_shift) = window(buffer, components * 4);
                let (out, out_shift) = window(&shares, components * 4);
                let (rows, rows_shift) = window(&densities, 16);
                let (best, labels_shift) = window(&labels, 4);
                let (totals, scores_shift) = window(&scores, 4);
                let (row_weights, weights_shift) =
                    if weights.is_some() { window(weights_buffer, 4) } else { (weights_buffer.view(), 0) };
                let grid = gpu.grid(place, part as u64)?;
                let params = MixturePosteriorParams {
                    rows: part as u32,
                    components: components as u32,
                    cosines_offset: cosines_shift as u32 / 4,
                    shares_offset: out_shift as u32 / 4,
                    weights_offset: weights_shift as u32 / 4,
                    densities_offset: rows_shift as u32 / 16,
                    hard: hard.into(),
                    weighted: weights.is_some().into(),
                    groups_x: grid[0],
                    labels_offset: labels_shift as u32 / 4,
                    scores_offset: scores_shift as u32 / 4,
                    reference,
                };
                let bindings = [parameters.view(), row_weights, cosines, out, rows, best, totals];
                gpu.run(&MIXTURE_POSTERIOR, &posterior_constants(), &params, &bindings, grid)?;
            }
            let checks = super::inherit(&[cosines.checks(), weights.map_or(&[], Tensor::checks)]);
            Ok(Posterior {
                densities: Tensor::on_gpu(gpu, densities, Ix2(count, 4), checks.clone()),
                labels: Tensor::on_gpu(gpu, labels, Ix1(count), checks.clone()),
                scores: Tensor::on_gpu(gpu, scores, Ix1(count), checks.clone()),
                shares: Tensor::on_gpu(gpu, shares, Ix2(count, components), checks),
            })
        }
    }
}

/// What an EM step tells the host of a posterior.
#[derive(Debug, Clone)]
pub struct PosteriorSummary {
    /// (2 K + 3): the mass of each component, the number of rows (of weight above 0) that it is the best for, then the rows' weight, and the sums of
    /// weight times log-density and of weight times best term.
    pub sums: Tensor<f32, Ix1>,
    /// (blocks, 2): in each block of 256 rows the lowest log-density (its bits) and the index of its row; `u32::MAX` where no row has weight.
    pub worst: Tensor<u32, Ix2>,
}

/// The sums of a [`Posterior`] over its rows, by a tree; the error as that of [`super::column_sums()`].
///
/// # Errors
/// [`Error::Shape`] where the two parts differ in rows; [`Error::DeviceMismatch`].
pub fn mixture_summary(posterior: &Posterior) -> Result<PosteriorSummary> {
    let place = "mixture_summary";
    let Posterior { shares, densities, .. } = posterior;
    shares.device().same(place, "densities", densities.device())?;
    let (count, components) = (shares.shape()[0], shares.shape()[1]);
    if densities.shape() != [count, 4] {
        let expected = format!("[{count}, 4]");
        return Err(Error::Shape { place, quantity: "densities", expected, found: densities.shape().to_vec() });
    }
    let width = 2 * components + 3;
    let blocks = count.div_ceil(ROWS);
    match (shares.storage(), densities.storage()) {
        (Storage::Host(shares), Storage::Host(densities)) => {
            let mut sums = vec![0.0f64; width];
            let mut worst = Array2::from_shape_fn((blocks, 2), |(_, at)| [1e38f32.to_bits(), u32::MAX][at]);
            for (index, (shares, density)) in shares.outer_iter().zip(densities.outer_iter()).enumerate() {
                sums[..components].iter_mut().zip(shares).for_each(|(sum, &share)| *sum += f64::from(share));
                let weight = f64::from(density[3]);
                if weight > 0.0 {
                    sums[components + density[2] as usize] += 1.0;
                    sums[2 * components] += weight;
                    sums[2 * components + 1] += weight * f64::from(density[0]);
                    sums[2 * components + 2] += weight * f64::from(density[1]);
                    let lowest = &mut worst.row_mut(index / ROWS);
                    if density[0] < f32::from_bits(lowest[0]) {
                        lowest[0] = density[0].to_bits();
                        lowest[1] = index as u32;
                    }
                }
            }
            let sums = sums.into_iter().map(|sum| sum as f32).collect();
            Ok(PosteriorSummary { sums: Tensor::host(sums), worst: Tensor::host(worst) })
        }
        (Storage::Gpu(gpu, shares_buffer), Storage::Gpu(_, densities_buffer)) => {
            let partial = gpu.allocate(place, (blocks * width * 4) as u64)?;
            let worst = gpu.allocate(place, (blocks * 8) as u64)?;
            let step = gpu.rows_per_window(place, components.max(4) * 4)?.next_multiple_of(ROWS);
            let step = if step > ROWS { step - ROWS } else { step };
            for first in (0..count).step_by(step) {
                let part = step.min(count - first);
                let part_blocks = part.div_ceil(ROWS);
                let window = |buffer, first: usize, count: usize, stride: usize| {
                    View::window(buffer, (first * stride) as u64, (count * stride) as u64, gpu.binding_alignment())
                };
                let (shares, shares_shift) = window(shares_buffer, first, part, components * 4);
                let (rows, rows_shift) = window(densities_buffer, first, part, 16);
                let (sums, sums_shift) = window(&partial, first / ROWS, part_blocks, width * 4);
                let (low, low_shift) = window(&worst, first / ROWS, part_blocks, 8);
                let grid = gpu.grid(place, part_blocks as u64)?;
                let params = MixtureSummaryParams {
                    rows: part as u32,
                    components: components as u32,
                    shares_offset: shares_shift as u32 / 4,
                    densities_offset: rows_shift as u32 / 16,
                    sums_offset: sums_shift as u32 / 4,
                    worst_offset: low_shift as u32 / 8,
                    first: first as u32,
                    groups_x: grid[0],
                    blocks: part_blocks as u32,
                    pad0: 0,
                    pad1: 0,
                    pad2: 0,
                };
                gpu.run(&MIXTURE_SUMMARY, &summary_constants(), &params, &[shares, rows, sums, low], grid)?;
            }
            let sums = gpu.allocate(place, (width * 4) as u64)?;
            column_sums::tree(gpu, &partial, blocks, width, &sums, 0.0, 1.0)?;
            let checks = super::inherit(&[shares.checks(), densities.checks()]);
            let worst = Tensor::on_gpu(gpu, worst, Ix2(blocks, 2), checks.clone());
            Ok(PosteriorSummary { sums: Tensor::on_gpu(gpu, sums, Ix1(width), checks), worst })
        }
        _ => unreachable!("both are on one device"),
    }
}
