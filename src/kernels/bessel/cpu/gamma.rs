//! ln Gamma(v + 1) for orders below the Debye expansion's reach.

use super::elementary::{horner, log_sum};
use super::real::Real;

/// Orders from here on take Stirling's series.
const STIRLING: f64 = 8.5;

/// ln Gamma(1 + v) for v in [0, 1e3], accurate relative to hypot(v, ln Gamma(1 + v)): down to v = 0.
///
/// With n the nearest integer and f = v - n: Gamma(1 + v) = (f + 2) .. (f + n) Gamma(f + 2), and Gamma(2 + f) / (1 + f) for n = 0;
/// ln Gamma(2 + f) by its Taylor series (DLMF 5.7.3). From 8.5 on Stirling's series (DLMF 5.11.1).
#[inline(always)]
pub(super) fn lgamma1p<T: Real>(v: T) -> T {
    let one = T::of(1.0);
    let large = T::of(STIRLING).below(v);
    let small = if large { T::of(0.0) } else { v };
    let n = small.round();
    let f = small - n;
    let mut product = one;
    for j in 2..9 {
        let factor = f + T::of(j as f64);
        product = if n.below(T::of(j as f64)) { product } else { product * factor };
    }
    // The one log of both ways: ln(1 + v) in Stirling's, ln(1 + f) for n = 0, with what each sum rounded off.
    let first = n.below(T::of(0.5));
    let addend = if large { v } else { f };
    let u = one + addend;
    let added = u - one;
    let tail = (one - (u - added)) + (addend - added);
    let log = log_sum(if first { u } else { product }, if first { tail } else { T::of(0.0) });
    let taylor = f.madd(horner(&TAYLOR, f), if first { -log } else { log });

    let z = one / u;
    let stirling = (v + T::of(0.5)).madd(log, z.madd(horner(&BERNOULLI, z * z), T::of(HALF_LN_2PI) - u));
    if large { stirling } else { taylor }
}

/// ln(2 pi) / 2
const HALF_LN_2PI: f64 = 0.918_938_533_204_672_7;

/// B_2n / (2n (2n - 1)), n = 1..8; the next term is 1e-17 at v = 8.5
const BERNOULLI: [f64; 8] = [
    1.0 / 12.0,
    -1.0 / 360.0,
    1.0 / 1260.0,
    -1.0 / 1680.0,
    1.0 / 1188.0,
    -691.0 / 360_360.0,
    1.0 / 156.0,
    -3617.0 / 122_400.0,
];

/// 1 - Euler's constant, then (-1)^k (zeta(k) - 1) / k, k = 2..25; the next term is below 1e-18 at |f| = 1/2
const TAYLOR: [f64; 25] = [
    0.42278433509846713,
    0.3224670334241132,
    -0.06735230105319809,
    0.020580808427784546,
    -0.007385551028673986,
    0.0028905103307415234,
    -0.001192753911703261,
    0.0005096695247430425,
    -0.00022315475845357939,
    9.945751278180853e-05,
    -4.492623673813314e-05,
    2.050721277567069e-05,
    -9.439488275268397e-06,
    4.374866789907488e-06,
    -2.039215753801366e-06,
    9.55141213040742e-07,
    -4.492469198764566e-07,
    2.1207184805554667e-07,
    -1.00432248239681e-07,
    4.7698101693639804e-08,
    -2.2711094608943164e-08,
    1.0838659214896955e-08,
    -5.183475041970047e-09,
    2.4836745438024785e-09,
    -1.1921401405860912e-09,
];

#[cfg(test)]
mod tests {
    use super::*;

    /// zeta(k) - 1 by direct summation and the first terms of Euler and Maclaurin for the rest.
    #[test]
    fn taylor_coefficients_are_those_of_zeta() {
        for k in 2..=25_i32 {
            let n = 40.0_f64;
            let p = f64::from(k);
            let rise = p * (p + 1.0) * (p + 2.0);
            let rest = n.powi(1 - k) / (p - 1.0) - n.powi(-k) / 2.0 + p * n.powi(-k - 1) / 12.0
                - rise * n.powi(-k - 3) / 720.0
                + rise * (p + 3.0) * (p + 4.0) * n.powi(-k - 5) / 30240.0;
            let sum: f64 = (2..=40).rev().map(|m| f64::from(m).powi(-k)).sum();
            let expect = if k % 2 == 0 { sum + rest } else { -(sum + rest) } / p;
            let found = TAYLOR[k as usize - 1];
            // A sum of 40 rounded powers, each within k roundings.
            assert!((found - expect).abs() < 1e-14 * expect.abs(), "{k}: {found} {expect}");
        }
    }

    #[test]
    fn factorials() {
        let mut factorial = 1.0_f64;
        for n in 1..=34 {
            factorial *= f64::from(n);
            let found = lgamma1p(f64::from(n));
            assert!((found - factorial.ln()).abs() <= 4.0 * f64::EPSILON * f64::from(n).max(factorial.ln()), "{n}");
        }
    }
}
