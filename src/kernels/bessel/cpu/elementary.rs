//! log, log1p and exp as straight lines of arithmetic, within one ulp.

use super::real::Real;

/// sum of c[k] y^k by Horner's rule
#[inline(always)]
pub(super) fn horner<T: Real>(c: &[f64], y: T) -> T {
    let mut sum = T::of(c[c.len() - 1]);
    for k in (0..c.len() - 1).rev() {
        sum = sum.madd(y, T::of(c[k]));
    }
    sum
}

/// ln(x) for positive normal x
#[inline(always)]
pub(super) fn log<T: Real>(x: T) -> T {
    let (m, k) = x.split();
    log_split(m - T::of(1.0), k)
}

/// ln(x + tail) where the tail is at most an ulp or so of x
#[inline(always)]
pub(super) fn log_sum<T: Real>(x: T, tail: T) -> T {
    let (m, k) = x.split();
    log_split(tail.madd(T::exp2i(-k), m - T::of(1.0)), k)
}

/// ln(1 + z) for z >= 0, accurate relative to the result
#[inline(always)]
pub(super) fn log1p<T: Real>(z: T) -> T {
    let u = T::of(1.0) + z;
    // What the addition rounded off, exactly (Knuth's two-sum).
    let added = u - T::of(1.0);
    let tail = (T::of(1.0) - (u - added)) + (z - added);
    log_sum(u, tail)
}

/// k ln 2 + ln(1 + f) for f in [-0.3, 0.42].
///
/// ln(1 + f) = f - f^2/2 + s (f^2/2 + R(s^2)), s = f / (2 + f), where R collects DLMF 4.6.4 past its first term.
#[inline(always)]
fn log_split<T: Real>(f: T, k: T) -> T {
    let s = f / (T::of(2.0) + f);
    let z = s * s;
    let r = horner(T::LOG_SERIES, z);
    let half = T::of(0.5) * f * f;
    let low = s.madd(r.madd(z, half), k * T::of(T::LN_2.1));
    k.madd(T::of(T::LN_2.0), f - (half - low))
}

/// exp(x) for x <= 80 (f32) or 700 (f64); far below, 0
#[inline(always)]
pub(super) fn exp<T: Real>(x: T) -> T {
    let (p, n) = exp_parts(x.max(T::of(T::LEAST_EXPONENT)));
    // In two steps, because a result below the normal numbers is rounded by the last one.
    let half = (n * T::of(0.5)).round();
    (T::of(1.0) + p) * T::exp2i(half) * T::exp2i(n - half)
}

/// (exp(x), exp(x) - 1) for |x| <= 80 (f32) or 700 (f64), both accurate relative to the result
#[inline(always)]
pub(super) fn exp_and_expm1<T: Real>(x: T) -> (T, T) {
    let (p, n) = exp_parts(x);
    let scale = T::exp2i(n);
    (p.madd(scale, scale), p.madd(scale, scale - T::of(1.0)))
}

/// exp(x) - 1
#[inline(always)]
pub(super) fn expm1<T: Real>(x: T) -> T {
    exp_and_expm1(x).1
}

/// (exp(r) - 1, n) with x = n ln 2 + r, |r| <= ln(2)/2: the Taylor series, DLMF 4.2.19
#[inline(always)]
fn exp_parts<T: Real>(x: T) -> (T, T) {
    let n = (x * T::of(std::f64::consts::LOG2_E)).round();
    let r = (-n).madd(T::of(T::LN_2.1), (-n).madd(T::of(T::LN_2.0), x));
    (horner(T::EXP_SERIES, r).madd(r * r, r), n)
}
