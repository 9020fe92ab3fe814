//! A real number the formulas are written over: `f32`, `f64`, and both with a fused multiply-add.
//!
//! Every formula of this folder is one straight line of arithmetic, without a branch or a call, so that a loop over points
//! becomes SIMD code. `mul_add` of the standard library is one instruction where the target has it and a slow call where it
//! has not: [`Fused`] is used inside the functions compiled for such targets only, the bare types elsewhere.

use std::ops::{Add, Div, Mul, Neg, Sub};

/// What a formula needs of its numbers.
pub(super) trait Real:
    Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Div<Output = Self> + Neg<Output = Self>
{
    /// 2/3, 2/5, ..: ln((1 + s) / (1 - s)) = 2 s + s (c_0 s^2 + c_1 s^4 + ..), DLMF 4.6.4; |s| < 0.172 needs no more.
    const LOG_SERIES: &'static [f64];
    /// 1/2, 1/6, ..: exp(r) = 1 + r + r^2 (c_0 + c_1 r + ..), DLMF 4.2.19; |r| <= ln(2)/2 needs no more.
    const EXP_SERIES: &'static [f64];
    /// ln 2 in two parts; an exponent times the first is exact.
    const LN_2: (f64, f64);
    /// exp of less is 0
    const LEAST_EXPONENT: f64;

    fn of(value: f64) -> Self;
    fn value(self) -> f64;
    /// self * factor + term
    fn madd(self, factor: Self, term: Self) -> Self;
    fn sqrt(self) -> Self;
    fn below(self, other: Self) -> bool;
    /// (m, k) with self = m 2^k and m in [0.707, 1.415), for positive normal numbers
    fn split(self) -> (Self, Self);
    /// 2^k of an integral k from one below the smallest normal exponent (then 0) to the largest
    fn exp2i(k: Self) -> Self;
    /// the nearest integer, for |self| < 2^21
    fn round(self) -> Self;

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        if self.below(other) { other } else { self }
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        if self.below(other) { self } else { other }
    }
    #[inline(always)]
    fn squared(self) -> Self {
        self * self
    }
}

/// A running sum that carries what each addition rounds off (Kahan).
#[derive(Clone, Copy)]
pub(super) struct Sum<T> {
    sum: T,
    lost: T,
}

impl<T: Real> Sum<T> {
    pub(super) const fn new(zero: T) -> Self {
        Self { sum: zero, lost: zero }
    }

    #[inline(always)]
    pub(super) fn add(&mut self, term: T) {
        let term = term - self.lost;
        let sum = self.sum + term;
        self.lost = (sum - self.sum) - term;
        self.sum = sum;
    }

    #[inline(always)]
    pub(super) fn value(self) -> T {
        self.sum
    }
}

/// A number whose `madd` rounds once, by one instruction of the target.
#[derive(Clone, Copy)]
pub(super) struct Fused<T>(pub T);

macro_rules! real {
    ($float:ident, $bits:ident, mantissa $mantissa:literal, bias $bias:literal, log $log:literal, exp $exp:literal, least $least:literal, $ln_2:expr) => {
        impl Real for $float {
            const LOG_SERIES: &'static [f64] = &log_series::<$log>();
            const EXP_SERIES: &'static [f64] = &exp_series::<$exp>();
            const LN_2: (f64, f64) = $ln_2;
            const LEAST_EXPONENT: f64 = $least;

            #[inline(always)]
            fn of(value: f64) -> Self {
                value as $float
            }
            #[inline(always)]
            fn value(self) -> f64 {
                f64::from(self)
            }
            #[inline(always)]
            fn madd(self, factor: Self, term: Self) -> Self {
                self * factor + term
            }
            #[inline(always)]
            fn sqrt(self) -> Self {
                $float::sqrt(self)
            }
            #[inline(always)]
            fn below(self, other: Self) -> bool {
                self < other
            }
            // Integers become floats, and floats integers, in the low bits of 1.5 * 2^mantissa: SIMD units lack the conversion.
            #[inline(always)]
            fn split(self) -> (Self, Self) {
                const ONE: $bits = $bias << $mantissa;
                const MIDDLE: $bits = (std::f64::consts::FRAC_1_SQRT_2 as $float).to_bits();
                const SHIFTER: $float = ((1 as $bits) << $mantissa) as $float;
                let bits = self.to_bits() + (ONE - MIDDLE);
                let m = $float::from_bits((bits & ((1 << $mantissa) - 1)) + MIDDLE);
                let k = $float::from_bits((bits >> $mantissa) | SHIFTER.to_bits()) - (SHIFTER + $bias as $float);
                (m, k)
            }
            #[inline(always)]
            fn exp2i(k: Self) -> Self {
                const SHIFTER: $float = ((1 as $bits) << $mantissa) as $float;
                $float::from_bits((k + (SHIFTER + $bias as $float)).to_bits() << $mantissa)
            }
            #[inline(always)]
            fn round(self) -> Self {
                const SHIFTER: $float = ((3 as $bits) << ($mantissa - 1)) as $float;
                (self + SHIFTER) - SHIFTER
            }
        }

        impl Real for Fused<$float> {
            const LOG_SERIES: &'static [f64] = &log_series::<$log>();
            const EXP_SERIES: &'static [f64] = &exp_series::<$exp>();
            const LN_2: (f64, f64) = $ln_2;
            const LEAST_EXPONENT: f64 = $least;

            #[inline(always)]
            fn of(value: f64) -> Self {
                Fused(value as $float)
            }
            #[inline(always)]
            fn value(self) -> f64 {
                f64::from(self.0)
            }
            #[inline(always)]
            fn madd(self, factor: Self, term: Self) -> Self {
                Fused(self.0.mul_add(factor.0, term.0))
            }
            #[inline(always)]
            fn sqrt(self) -> Self {
                Fused(self.0.sqrt())
            }
            #[inline(always)]
            fn below(self, other: Self) -> bool {
                self.0 < other.0
            }
            #[inline(always)]
            fn split(self) -> (Self, Self) {
                let (m, k) = self.0.split();
                (Fused(m), Fused(k))
            }
            #[inline(always)]
            fn exp2i(k: Self) -> Self {
                Fused($float::exp2i(k.0))
            }
            #[inline(always)]
            fn round(self) -> Self {
                Fused(Real::round(self.0))
            }
        }
    };
}
real!(f32, u32, mantissa 23, bias 127, log 5, exp 6, least -104.0, (0.693_138_122_558_593_8, 9.058_001_351_559_4e-6));
real!(f64, u64, mantissa 52, bias 1023, log 11, exp 12, least -746.0, (0.693_147_180_369_123_8, 1.908_214_929_270_587_7e-10));

const fn log_series<const N: usize>() -> [f64; N] {
    let mut c = [0.0; N];
    let mut k = 0;
    while k < N {
        c[k] = 2.0 / (2 * k + 3) as f64;
        k += 1;
    }
    c
}

const fn exp_series<const N: usize>() -> [f64; N] {
    let mut c = [0.0; N];
    let mut factorial = 1.0;
    let mut k = 0;
    while k < N {
        factorial *= (k + 2) as f64;
        c[k] = 1.0 / factorial;
        k += 1;
    }
    c
}

macro_rules! operator {
    ($($operator:ident, $method:ident);*) => { $(
        impl<T: $operator<Output = T>> $operator for Fused<T> {
            type Output = Self;
            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                Fused(self.0.$method(other.0))
            }
        }
    )* };
}
operator!(Add, add; Sub, sub; Mul, mul; Div, div);

impl<T: Neg<Output = T>> Neg for Fused<T> {
    type Output = Self;
    #[inline(always)]
    fn neg(self) -> Self {
        Fused(-self.0)
    }
}
