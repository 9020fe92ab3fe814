//! ln I, the ratio A = I_(v+1)/I_v and its complement where hypot(v, x) is too small for the Debye expansion.
//!
//! All are sums of positive terms or positive continued fractions. Points come in groups of `L`, one a lane, and a group runs
//! as long as its largest x asks for.

use super::elementary::{log, log1p};
use super::gamma::lgamma1p;
use super::real::{Real, Sum};
use std::f64::consts::PI;

/// How exact the result is to be: for an f64, or for an f32 that is computed in f64.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Precision {
    Single,
    Double,
}

/// sum_(k >= 1) (x^2/4)^k / (k! (v+1)_k), the power series of I over its first term, without that (DLMF 10.25.2); down to x = 0.
///
/// The sum runs over the common denominator, two products and a multiply-add a term and no division: below 1e200 for
/// `terms` <= 50 and v, x < 35.
#[inline(always)]
pub(super) fn tail<T: Real, const L: usize>(v: [T; L], x: [T; L], precision: Precision) -> [T; L] {
    let largest = largest(x);
    // The first term left out is below 2^-55 (2^-28) of the sum at v = 0, where the series is slowest.
    let terms = match precision {
        Precision::Double => 5.5 + 3.5 * largest.sqrt() + 0.65 * largest,
        Precision::Single => 3.0 + 2.2 * largest.sqrt() + 0.65 * largest,
    };
    let mut q = x;
    for l in 0..L {
        q[l] = x[l] * x[l] * T::of(0.25);
    }
    let mut power = [T::of(1.0); L];
    let mut numerator = [T::of(0.0); L];
    let mut denominator = [T::of(1.0); L];
    for k in 1..=terms.ceil() as usize {
        let k = T::of(k as f64);
        for l in 0..L {
            let factor = k.madd(v[l], k * k);
            power[l] = power[l] * q[l];
            numerator[l] = numerator[l].madd(factor, power[l]);
            denominator[l] = denominator[l] * factor;
        }
    }
    let mut out = x;
    for l in 0..L {
        out[l] = numerator[l] / denominator[l];
    }
    out
}

/// ln I_v(x) = v ln(x/2) - ln Gamma(v + 1) + ln(1 + tail)
#[inline(always)]
pub(super) fn log_iv<T: Real, const L: usize>(v: [T; L], x: [T; L], precision: Precision) -> [T; L] {
    let mut out = tail(v, x, precision);
    for l in 0..L {
        out[l] = log1p(out[l]) + v[l].madd(log(x[l] * T::of(0.5)), -lgamma1p(v[l]));
    }
    out
}

/// ln C = ln Gamma(v + 1) - v ln(pi) - ln(2 pi) - ln(1 + tail): the powers of x cancel
#[inline(always)]
pub(super) fn vmf_log_normalizer<T: Real, const L: usize>(v: [T; L], x: [T; L], precision: Precision) -> [T; L] {
    let mut out = tail(v, x, precision);
    for l in 0..L {
        out[l] = (-v[l]).madd(T::of(PI.ln()), lgamma1p(v[l]) - T::of((2.0 * PI).ln())) - log1p(out[l]);
    }
    out
}

/// A / x by its continued fraction A_v = x / (2 (v + 1) + x A_(v+1)) (DLMF 10.33.1), from the bound of Amos at order v + n:
/// x / (m + 1/2 + sqrt((m + 3/2)^2 + x^2)), and as a fraction of two positive numbers: one division in all.
#[inline(always)]
fn ratio_over_x<T: Real, const L: usize>(v: [T; L], x: [T; L], precision: Precision) -> [T; L] {
    let largest = largest(x).sqrt();
    // Enough steps that the bound's error is damped below 2^-55 (2^-28) at v = 0, the slowest.
    let steps = match precision {
        Precision::Double => 5.0 + 5.0 * largest,
        Precision::Single => 3.0 + 3.2 * largest,
    };
    let steps = steps.ceil() as usize;
    let mut square = x;
    let mut numerator = [T::of(1.0); L];
    let mut denominator = x;
    for l in 0..L {
        square[l] = x[l] * x[l];
        let m = v[l] + T::of(steps as f64);
        denominator[l] = m + T::of(0.5) + (m + T::of(1.5)).madd(m + T::of(1.5), square[l]).sqrt();
    }
    for j in (1..=steps).rev() {
        for l in 0..L {
            let twice = T::of(2.0) * v[l] + T::of(2.0 * j as f64);
            let next = twice.madd(denominator[l], square[l] * numerator[l]);
            numerator[l] = denominator[l];
            denominator[l] = next;
        }
    }
    let mut out = x;
    for l in 0..L {
        out[l] = numerator[l] / denominator[l];
    }
    out
}

#[inline(always)]
pub(super) fn iv_ratio<T: Real, const L: usize>(v: [T; L], x: [T; L], precision: Precision) -> [T; L] {
    let ratio = ratio_over_x(v, x, precision);
    std::array::from_fn(|l| x[l] * ratio[l])
}

/// (ln I)_x = v/x + A
#[inline(always)]
pub(super) fn log_iv_dx<T: Real, const L: usize>(v: [T; L], x: [T; L], precision: Precision) -> [T; L] {
    let ratio = ratio_over_x(v, x, precision);
    std::array::from_fn(|l| x[l].madd(ratio[l], v[l] / x[l]))
}

/// 1 - A = M(v + 1/2, 2v + 2, 2x) / M(v + 1/2, 2v + 1, 2x), Kummer's functions (from DLMF 10.32.2 and 13.4.1 as the mean of
/// 1 - cos theta), where A > 1/2; both are sums over the same positive terms.
#[inline(always)]
pub(super) fn iv_ratio_complement<T: Real, const L: usize>(v: [T; L], x: [T; L], precision: Precision) -> [T; L] {
    let mut out = ratio_over_x(v, x, precision);
    if precision == Precision::Single {
        // Cancellation costs at most a factor 40 of the f64's accuracy.
        for l in 0..L {
            out[l] = (-x[l]).madd(out[l], T::of(1.0));
        }
        return out;
    }
    let largest = largest(x);
    let terms = (20.0 + 2.0 * largest + 10.0 * largest.sqrt()) as usize;
    let mut term = [T::of(1.0); L];
    let mut upper = [Sum::new(T::of(0.0)); L];
    let mut lower = upper;
    for k in 0..terms {
        let k = T::of(k as f64);
        for l in 0..L {
            let b = T::of(2.0).madd(v[l], T::of(1.0));
            let inverse = T::of(1.0) / ((b + k) * (k + T::of(1.0)));
            upper[l].add(term[l] * (b * inverse * (k + T::of(1.0))));
            lower[l].add(term[l]);
            term[l] = term[l] * ((v[l] + k + T::of(0.5)) * (T::of(2.0) * x[l]) * inverse);
        }
    }
    for l in 0..L {
        let ratio = x[l] * out[l];
        let small = ratio.below(T::of(0.5));
        out[l] = if small { T::of(1.0) - ratio } else { upper[l].value() / lower[l].value() };
    }
    out
}

/// of x in the group, as a plain number
#[inline(always)]
fn largest<T: Real, const L: usize>(x: [T; L]) -> f64 {
    let mut largest = x[0];
    for value in x {
        largest = largest.max(value);
    }
    largest.value()
}
