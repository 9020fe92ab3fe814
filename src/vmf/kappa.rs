//! The concentration kappa from the resultant length R: the root of A_d(kappa) = R, and what follows from it.
//!
//! A_d(kappa) = I_{d/2}(kappa) / I_{d/2-1}(kappa) is the mean resultant length of a vMF distribution on the sphere of R^d.

use crate::kernels::bessel::cpu::{iv_ratio_pair, vmf_log_normalizer};
pub use crate::kernels::vmf_kappa::MAX_KAPPA;
use crate::kernels::vmf_kappa::{ratio_derivative, solve};

/// A resultant length R in [0, 1] with its complement 1 - R: near 1 the complement carries the information.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Resultant {
    /// R, the length of the mean of the unit rows.
    pub length: f64,
    /// 1 - R.
    pub complement: f64,
}

impl Resultant {
    /// From R alone; exact in the complement for R >= 1/2.
    pub fn new(length: f64) -> Self {
        Resultant { length, complement: 1.0 - length }
    }
}

/// kappa with A_d(kappa) = R, by Newton from R (d - R^2) / (1 - R^2).
///
/// * `dim` d >= 2; R in [0, 1]
/// * returns 0 for R = 0, at most [`MAX_KAPPA`]; within 34 eps relative (99 % within 3) of the root for the given pair (R, 1 - R)
///
/// Source: Banerjee et al. 2005 for the start; Sra 2012 for Newton, here with complements where R > 1/2.
pub fn solve_kappa(dim: usize, resultant: Resultant) -> f64 {
    solve(dim as f64, resultant.length, resultant.complement)
}

/// The differential entropy in nats, -ln C_d(kappa) - kappa A_d(kappa).
///
/// * within 16 eps of max(|H|, kappa); kappa = 0 gives the log of the sphere's area
pub(crate) fn entropy(dim: usize, kappa: f64) -> f64 {
    let d = dim as f64;
    if kappa == 0.0 {
        return -vmf_log_normalizer(d, 0.0);
    }
    let (_, complement) = iv_ratio_pair(d / 2.0 - 1.0, kappa);
    kappa * complement - (vmf_log_normalizer(d, kappa) + kappa)
}

/// The estimated relative error (RMSE) of kappa fitted to `n` rows: bias and variance of R through the solve.
///
/// hypot(amp (1-R^2) / (2 n R^2), 1 / (kappa sqrt(n A'))), amp = 1 + 2R^2/(1-R^2) - 2R^2/(d-R^2). Infinite for n or R of 0, for R of 1,
/// and for less than two rows.
pub(crate) fn kappa_relative_error(dim: usize, kappa: f64, resultant: Resultant, n: f64) -> f64 {
    let Resultant { length: r, complement: c } = resultant;
    if n < 2.0 || r <= 0.0 || c <= 0.0 || kappa <= 0.0 || kappa >= MAX_KAPPA {
        return f64::INFINITY;
    }
    let d = dim as f64;
    let (r2, one_less_r2) = (r * r, c * (1.0 + r));
    let amplification = 1.0 + 2.0 * r2 / one_less_r2 - 2.0 * r2 / (d - r2);
    let bias = amplification * one_less_r2 / (2.0 * n * r2);
    let slope = ratio_derivative(d, kappa, iv_ratio_pair(d / 2.0 - 1.0, kappa));
    bias.hypot(1.0 / (kappa * (n * slope).sqrt()))
}

/// The Kullback-Leibler divergence's radial part, ln C(p) - ln C(q) + (p - q) A(p) >= 0 for concentrations p and q.
///
/// Close by (|q - p| <= p / 8) it is the integral of (q - t) A'(t) from p to q by Gauss-Legendre of 6 points: no cancellation.
pub(crate) fn bregman(dim: usize, p: f64, q: f64) -> f64 {
    let d = dim as f64;
    let order = d / 2.0 - 1.0;
    if p > 0.0 && (q - p).abs() <= p / 8.0 {
        const NODES: [(f64, f64); 3] = [
            (0.238_619_186_083_196_9, 0.467_913_934_572_691_04),
            (0.661_209_386_466_264_5, 0.360_761_573_048_138_6),
            (0.932_469_514_203_152, 0.171_324_492_379_170_36),
        ];
        let half = (q - p) / 2.0;
        let value = |u: f64| {
            let t = p + half * (1.0 + u);
            half * (1.0 - u) * ratio_derivative(d, t, iv_ratio_pair(order, t))
        };
        return half * NODES.iter().map(|&(u, w)| w * (value(u) + value(-u))).sum::<f64>();
    }
    let ratio = if p == 0.0 { 0.0 } else { iv_ratio_pair(order, p).0 };
    (vmf_log_normalizer(d, p) - vmf_log_normalizer(d, q) + (p - q) * ratio).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_derivative_agrees_with_the_golden_table() {
        let table = include_str!("../../tests/data/golden_vmf.csv");
        let mut rows = 0;
        for line in table.lines().skip(1) {
            let values: Vec<f64> = line.split(',').map(|value| value.parse().expect("a number")).collect();
            let [d, _, kappa, _, _, expected] = values[..] else { panic!("{line}") };
            let found = ratio_derivative(d, kappa, iv_ratio_pair(d / 2.0 - 1.0, kappa));
            // cancellation below sigma = 4e7, the next term of the expansion above
            assert!((found - expected).abs() <= 1e-7 * expected, "d {d} kappa {kappa}: {found}, expected {expected}");
            rows += 1;
        }
        assert_eq!(rows, 518);
    }
}
