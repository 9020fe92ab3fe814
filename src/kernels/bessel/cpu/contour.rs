//! d/dv ln I where hypot(v, x) is too small for the Debye expansion.
//!
//! Schläfli's integral (DLMF 10.32.12) along its path of steepest descent t = tau + i theta, sinh(tau) = (v/x) theta / sin(theta),
//! has a positive integrand, and so has its derivative:
//!
//! I_v(x) = (1/pi) int_0^pi exp(x cosh(tau) cos(theta) - v tau) d theta
//! (ln I)_v = -(mean of tau + tanh(tau) (1 - theta cot(theta)))
//!
//! theta = pi tanh(q) makes the ends decay doubly exponentially: the trapezoidal rule in q, over the same nodes at every point.
//! At v = 0 the path's end is lost: -K_0/I_0 there.

use super::elementary::{exp, log1p};
use super::quadrature;
use super::real::{Real, Sum};
use super::series::{self, Precision};
use std::f64::consts::PI;
use std::sync::LazyLock;

/// Step in q for hypot(v, x) < 34; a stride over the nodes serves smaller ones.
const STEP: f64 = 0.032;
/// pi - theta = 4e-22 there: beyond where v >= 1e-19 still matters
const LAST: f64 = 25.0;
/// The exponent falls along the path; where all are below this the rest of the nodes add nothing, not even to the part that is
/// e^-68 of the whole and all there is near v = 0.
const LEAST_EXPONENT: f64 = -120.0;
/// Below this order the derivative is that at 0 and a slope.
const LEAST_ORDER: f64 = 1e-18;

struct Node {
    /// theta / sin(theta)
    stretch: f64,
    cos: f64,
    /// 1 - theta cot(theta)
    lift: f64,
    /// theta^2
    square: f64,
    /// d theta / dq, up to a factor
    weight: f64,
}

static NODES: LazyLock<Vec<Node>> = LazyLock::new(|| {
    (0..=(LAST / STEP) as usize)
        .map(|i| {
            let q = i as f64 * STEP;
            let weight = q.cosh().powi(-2);
            if i == 0 {
                return Node { stretch: 1.0, cos: 1.0, lift: 0.0, square: 0.0, weight: 0.5 };
            }
            let rest = 2.0 * PI / ((2.0 * q).exp() + 1.0);
            let theta = PI * q.tanh();
            let (sin, cos) = if q < 0.5 { theta.sin_cos() } else { (rest.sin(), -rest.cos()) };
            Node { stretch: theta / sin, cos, lift: 1.0 - theta * cos / sin, square: theta * theta, weight }
        })
        .collect()
});

#[inline(always)]
pub(super) fn log_iv_dv<T: Real, const L: usize>(v: [T; L], x: [T; L], precision: Precision) -> [T; L] {
    let (zero, one) = (T::of(0.0), T::of(1.0));
    let mut s = x;
    let mut t0 = x;
    let mut slope = x;
    let mut largest = zero;
    for l in 0..L {
        s[l] = v[l].madd(v[l], x[l] * x[l]).sqrt();
        t0[l] = log1p(v[l] * (x[l] + s[l] + v[l]) / (x[l] * (x[l] + s[l])));
        slope[l] = v[l] / x[l];
        largest = largest.max(s[l]);
    }
    let stride = if largest.value() > 8.0 { 1 } else { 2 };
    let mut exponents = [zero; L];
    let mut mass = [Sum::new(zero); L];
    let mut sum = mass;
    let mut sum_0 = mass;
    for node in NODES.iter().step_by(stride) {
        let mut highest = exponents[0];
        for exponent in exponents {
            highest = highest.max(exponent);
        }
        if highest.below(T::of(LEAST_EXPONENT)) {
            break;
        }
        for l in 0..L {
            let sinh = slope[l] * T::of(node.stretch);
            let cosh = sinh.madd(sinh, one).sqrt();
            let tau = log1p(sinh + sinh * (sinh / (one + cosh)));
            exponents[l] = (x[l] * cosh * T::of(node.cos) - v[l] * tau) - (s[l] - v[l] * t0[l]);
            let weight = exp(exponents[l]) * T::of(node.weight);
            mass[l].add(weight);
            sum[l].add(weight * (tau + sinh / cosh * T::of(node.lift)));
            sum_0[l].add(weight * T::of(node.square));
        }
    }
    // At v = 0: -K_0/I_0, and the slope of the rest, -(mean of theta^2).
    let tail = series::tail([zero; L], x, precision);
    let k = quadrature::scaled_k0(x);
    std::array::from_fn(|l| {
        let at_0 = -exp(-x[l]) * k[l] / (one + tail[l]) - v[l] * (sum_0[l].value() / mass[l].value());
        if v[l].below(T::of(LEAST_ORDER)) { at_0 } else { -(sum[l].value() / mass[l].value()) }
    })
}
