//! The arithmetic of an E-step on the host: from cosines to responsibilities.

use multiversion::multiversion;

/// Components are padded to a multiple of this, so that loops over them fill vectors.
pub(crate) const LANES: usize = 16;

/// The parameters of the components as an E-step needs them, padded with components of no weight.
#[derive(Clone, Debug, Default)]
pub(crate) struct Densities {
    /// kappa_k.
    pub(crate) kappa: Vec<f64>,
    /// ln weight_k + ln C_d(kappa_k).
    pub(crate) bias: Vec<f64>,
}

/// A bias that no real component reaches: its exp is 0.
const NEVER: f64 = -1e30;

impl Densities {
    pub(crate) fn new(kappa: &[f64], bias: impl Iterator<Item = f64>) -> Self {
        let mut densities = Densities { kappa: kappa.to_vec(), bias: bias.map(|bias| bias.max(NEVER)).collect() };
        let padded = kappa.len().next_multiple_of(LANES);
        densities.kappa.resize(padded, 0.0);
        densities.bias.resize(padded, 2.0 * NEVER);
        densities
    }

    /// Components with the padding.
    pub(crate) fn padded(&self) -> usize {
        self.kappa.len()
    }
}

/// What the rows of a chunk say of one row each.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RowPosterior {
    /// ln sum_k exp(bias_k + kappa_k cos_k): the log-density of the row under the mixture.
    pub(crate) log_density: f64,
    /// The largest of the terms: the classification log-likelihood.
    pub(crate) best: f64,
    /// The component of the largest term; the first of equal ones.
    pub(crate) label: u32,
}

/// exp(x) for x <= 0 within 2 ulp; 0 below -87.
///
/// Cephes' expf: x = n ln 2 + r, a polynomial of degree 7 in r.
#[inline(always)]
#[allow(clippy::excessive_precision)]
fn exp(x: f32) -> f32 {
    let clamped = x.max(-87.0);
    // adding and subtracting 1.5 * 2^23 rounds to the nearest integer
    let n = (clamped * std::f32::consts::LOG2_E + 12_582_912.0) - 12_582_912.0;
    let r = (clamped - n * 0.693_359_375) + n * 2.121_944_4e-4;
    let mut p = 1.987_569_15e-4f32;
    p = p * r + 1.398_199_95e-3;
    p = p * r + 8.333_451_9e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_55e-1;
    p = p * r + 0.5;
    let value = (p * r * r + r) + 1.0;
    let scaled = value * f32::from_bits(((n as i32 + 127) as u32) << 23);
    if x < -87.0 { 0.0 } else { scaled }
}

/// From dot products to responsibilities, in place, row by row.
///
/// * `cosines` (n, padded): row'mean of the raw rows; returned as the responsibilities, all of a row times its `inverse` if `scaled`
/// * `inverse` (n): 1 / |row|; `weights` (n)
/// * `mass` (padded): what the components gain, sum of weight * responsibility
///
/// The terms are f64 until the row's largest is subtracted, so that large log-normalisers cost no digits; the exponentials are f32.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
#[allow(clippy::too_many_arguments)]
pub(crate) fn posterior(
    cosines: &mut [f32],
    inverse: &[f32],
    weights: Option<&[f64]>,
    densities: &Densities,
    hard: bool,
    scaled: bool,
    terms: &mut [f64],
    mass: &mut [f64],
    rows: &mut [RowPosterior],
) {
    let padded = densities.kappa.len();
    let (kappa, bias) = (&densities.kappa[..padded], &densities.bias[..padded]);
    let (terms, mass) = (&mut terms[..padded], &mut mass[..padded]);
    for (index, cosines) in cosines.chunks_exact_mut(padded).enumerate() {
        let factor = inverse[index] as f64;
        let mut largest = [f64::NEG_INFINITY; LANES];
        for at in (0..padded).step_by(LANES) {
            for lane in 0..LANES {
                let term = cosines[at + lane] as f64 * factor * kappa[at + lane] + bias[at + lane];
                terms[at + lane] = term;
                largest[lane] = if term > largest[lane] { term } else { largest[lane] };
            }
        }
        let largest = largest.iter().fold(f64::NEG_INFINITY, |a, &b| if b > a { b } else { a });
        let mut sums = [0.0f32; LANES];
        for at in (0..padded).step_by(LANES) {
            for lane in 0..LANES {
                let value = exp((terms[at + lane] - largest) as f32);
                cosines[at + lane] = value;
                sums[lane] += value;
            }
        }
        let sum = sums.iter().map(|&value| value as f64).sum::<f64>();
        let label = terms.iter().position(|&term| term == largest).unwrap_or(0);
        rows[index] = RowPosterior { log_density: largest + sum.ln(), best: largest, label: label as u32 };
        let weight = if factor == 0.0 { 0.0 } else { weights.map_or(1.0, |weights| weights[index]) };
        let carried = if scaled { factor * weight } else { 1.0 };
        if hard {
            cosines.fill(0.0);
            cosines[label] = carried as f32;
            mass[label] += weight;
        } else {
            let (share, carried) = ((weight / sum), (carried / sum) as f32);
            for (value, mass) in cosines.iter_mut().zip(mass.iter_mut()) {
                *mass += *value as f64 * share;
                *value *= carried;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn exp_is_within_two_ulp() {
        for i in 0..200_000 {
            let x = -(i as f32) * 4.4e-4;
            let (got, expected) = (super::exp(x), (x as f64).exp());
            assert!(
                (got as f64 - expected).abs() <= 2.0 * f32::EPSILON as f64 * expected || x < -87.0,
                "exp({x}) = {got}"
            );
        }
        assert_eq!((super::exp(0.0), super::exp(-88.0), super::exp(f32::NEG_INFINITY)), (1.0, 0.0, 0.0));
    }
}
