//! The Debye expansions in s = hypot(v, x), uniform in the order and the argument: DLMF 10.41.3-10.41.6 with z = x/v,
//! rewritten so that they stay valid at v = 0, where they become Hankel's (DLMF 10.40.1-10.40.2).
//!
//! With t = v/s, y = t^2, w = 1/s and t0 = asinh(v/x):
//!
//! ```text
//! ln I = s - v t0 - ln(2 pi s)/2 + ln U(w),     U(w) = sum_k w^k p_k(y),    p_k(t^2) = U_k(t) / t^k
//! ln K = v t0 - s + ln(pi/(2 s))/2 + ln U(-w)
//! ```
//!
//! A term c t^e w^k of U stands for c v^(e-k) s^-e, so differentiating sqrt(w) U by x or v multiplies it by 1/2 + e or e - k:
//!
//! ```text
//! (ln I)_x =  s/x - (x/s^2) W(w)/U(w)          (ln I)_v = -t0 + (v/s^2) (2 Q(w) - W(w)) / U(w)
//! (ln K)_x = -s/x - (x/s^2) W(-w)/U(-w)        (ln K)_v =  t0 + (v/s^2) (2 Q(-w) - W(-w)) / U(-w)
//! W = sum_k w^k sum_j (1/2 + k + 2j) c_kj y^j,     Q = sum_k w^k p_k'(y)
//! ```

use super::elementary::{exp, horner, log, log1p};
use super::real::Real;
use std::f64::consts::PI;

/// The most terms after the first that any region takes.
pub(super) const MOST_TERMS: usize = 13;
type Table = [[f64; MOST_TERMS + 1]; MOST_TERMS + 1];

/// c_kj, the coefficient of y^j in p_k, from DLMF 10.41.9: every c_(k+1)j is a sum of two numbers of the same sign, so that
/// doubles lose nothing.
static U: Table = coefficients();
static W: Table = weighted(true);
static Q: Table = weighted(false);

const fn coefficients() -> Table {
    let mut c = [[0.0; MOST_TERMS + 1]; MOST_TERMS + 1];
    c[0][0] = 1.0;
    let mut k = 0;
    while k < MOST_TERMS {
        let mut j = 0;
        while j <= k {
            // U_(k+1) = t^2 (1 - t^2) U_k'/2 + (1/8) integral of (1 - 5 t^2) U_k, term by term of U_k
            let e = (k + 2 * j) as f64;
            c[k + 1][j] += c[k][j] * (e / 2.0 + 1.0 / (8.0 * (e + 1.0)));
            c[k + 1][j + 1] -= c[k][j] * (e / 2.0 + 5.0 / (8.0 * (e + 3.0)));
            j += 1;
        }
        k += 1;
    }
    c
}

/// The coefficients of W, or else those of Q.
const fn weighted(of_w: bool) -> Table {
    let u = coefficients();
    let mut c = [[0.0; MOST_TERMS + 1]; MOST_TERMS + 1];
    let mut k = 0;
    while k <= MOST_TERMS {
        let mut j = 0;
        while j <= k {
            if of_w {
                c[k][j] = (0.5 + (k + 2 * j) as f64) * u[k][j];
            } else if j > 0 {
                c[k][j - 1] = j as f64 * u[k][j];
            }
            j += 1;
        }
        k += 1;
    }
    c
}

/// (even, odd) parts in w of sum_(k <= TERMS) w^k sum_j c_kj y^j: the sum at w is even + odd, at -w it is even - odd.
#[inline(always)]
fn parts<T: Real, const TERMS: usize>(c: &Table, y: T, w: T) -> (T, T) {
    let mut sums = [T::of(0.0); 2];
    macro_rules! terms {
        ($($k:literal)*) => { $(
            if $k <= TERMS {
                sums[$k % 2] = sums[$k % 2].madd(w * w, horner(&c[$k][..=$k], y));
            }
        )* };
    }
    terms!(13 12 11 10 9 8 7 6 5 4 3 2 1);
    (sums[0].madd(w * w, T::of(c[0][0])), sums[1] * w)
}

/// What all of them share.
struct Point<T> {
    v: T,
    x: T,
    s: T,
    /// 1/s
    w: T,
    y: T,
}

impl<T: Real> Point<T> {
    #[inline(always)]
    fn new(v: T, x: T) -> Self {
        let s = v.madd(v, x * x).sqrt();
        let w = T::of(1.0) / s;
        Self { v, x, s, w, y: (v * w).squared() }
    }

    /// asinh(v/x): its exponential is 1 + z
    #[inline(always)]
    fn t0(&self) -> T {
        let z = self.v * (self.x + self.s + self.v) / (self.x * (self.x + self.s));
        log1p(z)
    }

    #[inline(always)]
    fn u<const TERMS: usize>(&self) -> (T, T) {
        parts::<T, TERMS>(&U, self.y, self.w)
    }

    #[inline(always)]
    fn w<const TERMS: usize>(&self) -> (T, T) {
        parts::<T, TERMS>(&W, self.y, self.w)
    }

    #[inline(always)]
    fn q<const TERMS: usize>(&self) -> (T, T) {
        parts::<T, TERMS>(&Q, self.y, self.w)
    }
}

#[inline(always)]
pub(super) fn log_iv<T: Real, const TERMS: usize>(v: T, x: T) -> T {
    let p = Point::new(v, x);
    let (even, odd) = p.u::<TERMS>();
    // One log for -ln(2 pi s)/2 + ln U.
    let square = (even + odd).squared() * p.w * T::of(0.5 / PI);
    T::of(0.5).madd(log(square), (-v).madd(p.t0(), p.s))
}

#[inline(always)]
pub(super) fn log_kv<T: Real, const TERMS: usize>(v: T, x: T) -> T {
    let p = Point::new(v, x);
    let (even, odd) = p.u::<TERMS>();
    let square = (even - odd).squared() * p.w * T::of(0.5 * PI);
    T::of(0.5).madd(log(square), v.madd(p.t0(), -p.s))
}

/// ln C_d(x), d = 2 v + 2: C_d = x^v / ((2 pi)^(v + 1) I_v(x)); x may be 0
#[inline(always)]
pub(super) fn vmf_log_normalizer<T: Real, const TERMS: usize>(v: T, x: T) -> T {
    let p = Point::new(v, x);
    let (even, odd) = p.u::<TERMS>();
    let power = v.madd(log((v + p.s) * T::of(0.5 / PI)), -p.s);
    T::of(0.5).madd(log(p.s * T::of(0.5 / PI) / (even + odd).squared()), power)
}

#[inline(always)]
pub(super) fn iv_ratio<T: Real, const TERMS: usize>(v: T, x: T) -> T {
    let p = Point::new(v, x);
    let (u, w) = (p.u::<TERMS>(), p.w::<TERMS>());
    x * (T::of(1.0) / (v + p.s) - p.w.squared() * ((w.0 + w.1) / (u.0 + u.1)))
}

#[inline(always)]
pub(super) fn iv_ratio_complement<T: Real, const TERMS: usize>(v: T, x: T) -> T {
    let p = Point::new(v, x);
    let (u, w) = (p.u::<TERMS>(), p.w::<TERMS>());
    // 1 - x/(s + v) without its cancellation
    let first = v * (T::of(1.0) + v / (p.s + x)) / (p.s + v);
    (x * p.w.squared()).madd((w.0 + w.1) / (u.0 + u.1), first)
}

#[inline(always)]
pub(super) fn log_iv_dx<T: Real, const TERMS: usize>(v: T, x: T) -> T {
    let p = Point::new(v, x);
    let (u, w) = (p.u::<TERMS>(), p.w::<TERMS>());
    p.s / x - x * p.w.squared() * ((w.0 + w.1) / (u.0 + u.1))
}

#[inline(always)]
pub(super) fn log_kv_dx<T: Real, const TERMS: usize>(v: T, x: T) -> T {
    let p = Point::new(v, x);
    let (u, w) = (p.u::<TERMS>(), p.w::<TERMS>());
    -(p.s / x) - x * p.w.squared() * ((w.0 - w.1) / (u.0 - u.1))
}

#[inline(always)]
pub(super) fn log_iv_dv<T: Real, const TERMS: usize>(v: T, x: T) -> T {
    let p = Point::new(v, x);
    let (u, w, q) = (p.u::<TERMS>(), p.w::<TERMS>(), p.q::<TERMS>());
    let ratio = (T::of(2.0) * (q.0 + q.1) - (w.0 + w.1)) / (u.0 + u.1);
    // The expansion is even in v. The recessive part of I, -sin(pi v) K / pi (DLMF 10.27.2), is what is left of the derivative
    // at v = 0 and nothing beside the rest from v = 1e-28 on: its factor cos(pi v) is 1 wherever it counts.
    let recessive = T::of(PI) * exp(T::of(-2.0) * x) * ((u.0 - u.1) / (u.0 + u.1));
    let recessive = if v.below(T::of(0.5)) { recessive } else { T::of(0.0) };
    (v * p.w.squared()).madd(ratio, -p.t0()) - recessive
}

#[inline(always)]
pub(super) fn log_kv_dv<T: Real, const TERMS: usize>(v: T, x: T) -> T {
    let p = Point::new(v, x);
    let (u, w, q) = (p.u::<TERMS>(), p.w::<TERMS>(), p.q::<TERMS>());
    let ratio = (T::of(2.0) * (q.0 - q.1) - (w.0 - w.1)) / (u.0 - u.1);
    (v * p.w.squared()).madd(ratio, p.t0())
}

#[cfg(test)]
mod tests {
    /// DLMF 10.41.10
    #[test]
    fn coefficients_are_the_published_ones() {
        let expect = [
            (1, vec![3.0 / 24.0, -5.0 / 24.0]),
            (2, vec![81.0 / 1152.0, -462.0 / 1152.0, 385.0 / 1152.0]),
            (3, vec![30375.0 / 414720.0, -369603.0 / 414720.0, 765765.0 / 414720.0, -425425.0 / 414720.0]),
        ];
        for (k, row) in expect {
            for (j, value) in row.into_iter().enumerate() {
                assert!((super::U[k][j] - value).abs() <= 4.0 * f64::EPSILON * f64::abs(value), "U_{k}, power {j}");
            }
        }
    }
}
