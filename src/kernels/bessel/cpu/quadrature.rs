//! K and its derivatives where hypot(v, x) is too small for the Debye expansion: the integral
//!
//! K_v(x) = (1/2) int exp(v u - x cosh u) du over the real line (DLMF 10.32.9)
//!
//! by the trapezoidal rule, which converges exponentially. Around the peak, u = t0 + w with t0 = asinh(v/x), the exponent is
//! v t0 - s - E(w) with E(w) = d (cosh w - 1) + v (e^w - 1 - w), d = s - v = x^2 / (s + v): every term is positive.
//! The nodes are u = i h for integers i, so that an even integrand sees its mirror image.

use super::elementary::{exp, exp_and_expm1, expm1, log, log1p};
use super::real::{Real, Sum};

/// Nodes with E beyond this are left out: e^-42 = 2^-60.
const CUT: f64 = 42.0;

/// The moments of the measure exp(-E) over the nodes, and what they refer to.
struct Moments<T> {
    t0: T,
    s: T,
    /// step times the sum of the weights
    mass: T,
    /// mean of x cosh u = d cosh w + v e^w
    x_cosh: T,
    /// mean of u tanh(v u)
    u_tanh: T,
}

#[inline(always)]
fn moments<T: Real, const L: usize, const WITH_TANH: bool>(v: [T; L], x: [T; L]) -> [Moments<T>; L] {
    let (zero, one, two) = (T::of(0.0), T::of(1.0), T::of(2.0));
    let mut s = x;
    let mut t0 = x;
    let mut d = x;
    let mut step = x;
    let mut first = x;
    let mut nodes = one;
    for l in 0..L {
        s[l] = v[l].madd(v[l], x[l] * x[l]).sqrt();
        t0[l] = log1p(v[l] * (x[l] + s[l] + v[l]) / (x[l] * (x[l] + s[l])));
        d[l] = x[l] * (x[l] / (s[l] + v[l]));
        // A Gaussian of variance 1/s asks for 0.72 / sqrt(s), the strip |Im u| < pi/2 of e^(-x cosh u) for 0.26.
        step[l] = T::of(STEP.0) / (s[l] + T::of(STEP.1)).sqrt();
        // E > s (cosh w - 1) right of the peak; left of it E > d (cosh w - 1) and E > v w^2 / (2 - w).
        let half = T::of(CUT * 0.5) / v[l].max(T::of(1e-30));
        let left = acosh1p(T::of(CUT) / d[l]).min(half + (half + T::of(4.0)).max(zero).sqrt() * half.sqrt());
        let right = acosh1p(T::of(CUT) / s[l]);
        first[l] = ((t0[l] - left) / step[l]).round();
        nodes = nodes.max((left + right) / step[l] + two);
    }
    let mut mass = [Sum::new(zero); L];
    let mut x_cosh = mass;
    let mut u_tanh = mass;
    for i in 0..nodes.value() as usize {
        for l in 0..L {
            let u = (first[l] + T::of(i as f64)) * step[l];
            let w = u - t0[l];
            let (e, em1) = exp_and_expm1(w);
            let cosh_m1 = T::of(0.5) * em1 * (em1 / e);
            let weight = exp(-(d[l] * cosh_m1 + v[l] * (em1 - w)));
            mass[l].add(weight);
            x_cosh[l].add(weight * (v[l].madd(e, d[l].madd(cosh_m1, d[l]))));
            if WITH_TANH {
                let u = u.max(-u);
                let em1 = expm1((two * v[l] * u).min(T::of(80.0)));
                u_tanh[l].add(weight * u * (em1 / (em1 + two)));
            }
        }
    }
    std::array::from_fn(|l| Moments {
        t0: t0[l],
        s: s[l],
        mass: step[l] * mass[l].value(),
        x_cosh: x_cosh[l].value() / mass[l].value(),
        u_tanh: u_tanh[l].value() / mass[l].value(),
    })
}

/// (a, b): the step is a / sqrt(s + b)
const STEP: (f64, f64) = (0.63, 9.0);

/// acosh(1 + z)
#[inline(always)]
fn acosh1p<T: Real>(z: T) -> T {
    log1p(z + z.sqrt() * (z + T::of(2.0)).sqrt())
}

#[inline(always)]
pub(super) fn log_kv<T: Real, const L: usize>(v: [T; L], x: [T; L]) -> [T; L] {
    let m = moments::<T, L, false>(v, x);
    std::array::from_fn(|l| v[l].madd(m[l].t0, -m[l].s) + log(T::of(0.5) * m[l].mass))
}

/// K_0(x) e^x
#[inline(always)]
pub(super) fn scaled_k0<T: Real, const L: usize>(x: [T; L]) -> [T; L] {
    let m = moments::<T, L, false>([T::of(0.0); L], x);
    std::array::from_fn(|l| T::of(0.5) * m[l].mass)
}

/// (ln K)_x = -(mean of cosh u)
#[inline(always)]
pub(super) fn log_kv_dx<T: Real, const L: usize>(v: [T; L], x: [T; L]) -> [T; L] {
    let m = moments::<T, L, false>(v, x);
    std::array::from_fn(|l| -m[l].x_cosh / x[l])
}

/// (ln K)_v = mean of u tanh(v u): of u over the measure folded at 0, without the cancellation of t0 + w
#[inline(always)]
pub(super) fn log_kv_dv<T: Real, const L: usize>(v: [T; L], x: [T; L]) -> [T; L] {
    let m = moments::<T, L, true>(v, x);
    std::array::from_fn(|l| m[l].u_tanh)
}
