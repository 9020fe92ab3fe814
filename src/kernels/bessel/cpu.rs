//! The log-Bessel functions on the CPU: single thread, SIMD over points, no tensors.
//!
//! ```text
//!                      hypot(v, x) >= 34 (f32: 17)      below
//! ln I, ln C_d         Debye expansion (debye.rs)       power series (series.rs)
//! A = I_(v+1)/I_v      Debye expansion                  continued fraction; 1 - A: Kummer's series (series.rs)
//! ln K, its d/dx d/dv  Debye expansion                  trapezoidal rule on the real line (quadrature.rs)
//! d/dv ln I            Debye expansion                  trapezoidal rule on the path of steepest descent (contour.rs)
//! ```
//!
//! Every formula is one straight line of arithmetic over [`real::Real`], so one text serves scalars and SIMD loops.

mod blocks;
mod contour;
mod debye;
mod elementary;
mod family;
mod gamma;
mod quadrature;
mod real;
mod series;
#[cfg(test)]
mod tests;

use crate::double_single::DoubleSingle;
use family::*;
use series::Precision;

/// Which function of (order, x).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Function {
    /// ln I_v(x); at x = 0: 0 for v = 0, else -inf
    LogIv,
    /// ln K_v(x); at x = 0: +inf
    LogKv,
    /// I_(v+1)(x) / I_v(x); at x = 0: 0
    IvRatio,
    /// 1 - I_(v+1)(x) / I_v(x), accurate where it is small; at x = 0: 1
    IvRatioComplement,
    /// d/dx ln I_v(x); at x = 0: 0 for v = 0, else +inf
    LogIvDx,
    /// d/dx ln K_v(x); at x = 0: -inf
    LogKvDx,
    /// d/dv ln I_v(x); at x = 0: -inf
    LogIvDv,
    /// d/dv ln K_v(x); at x = 0: 0 for v = 0, else +inf
    LogKvDv,
    /// ln C_d(x), the log normaliser of the von Mises-Fisher density in dimension d = 2 v + 2 at concentration x:
    /// C_d = x^v / ((2 pi)^(v + 1) I_v(x)); at x = 0: minus the log of the sphere's area
    VmfLogNormalizer,
}

/// The element types of the CPU path.
pub trait CpuReal: Sized {
    /// `function` of (order\[i\], x\[i\]) into out\[i\]: single thread, slices of equal length, order and x finite and >= 0.
    ///
    /// Never an overflow or a NaN for order <= 1e7 and x <= 1e30; accuracy is measured for order <= 1e6 and x in [1e-8, 1e8].
    fn bessel(function: Function, order: &[Self], x: &[Self], out: &mut [Self]);
}

macro_rules! cpu_real {
    ($real:ident) => {
        impl CpuReal for $real {
            fn bessel(function: Function, order: &[Self], x: &[Self], out: &mut [Self]) {
                match function {
                    Function::LogIv => blocks::run::<LogIv, Self>(order, x, out),
                    Function::LogKv => blocks::run::<LogKv, Self>(order, x, out),
                    Function::IvRatio => blocks::run::<IvRatio, Self>(order, x, out),
                    Function::IvRatioComplement => blocks::run::<IvRatioComplement, Self>(order, x, out),
                    Function::LogIvDx => blocks::run::<LogIvDx, Self>(order, x, out),
                    Function::LogKvDx => blocks::run::<LogKvDx, Self>(order, x, out),
                    Function::LogIvDv => blocks::run::<LogIvDv, Self>(order, x, out),
                    Function::LogKvDv => blocks::run::<LogKvDv, Self>(order, x, out),
                    Function::VmfLogNormalizer => blocks::run::<VmfLogNormalizer, Self>(order, x, out),
                }
            }
        }
    };
}
cpu_real!(f32);
cpu_real!(f64);

/// In f64, a piece at a time.
impl CpuReal for DoubleSingle {
    fn bessel(function: Function, order: &[Self], x: &[Self], out: &mut [Self]) {
        const PIECE: usize = 1024;
        let mut wide = [[0.0f64; PIECE]; 3];
        for ((order, x), out) in order.chunks(PIECE).zip(x.chunks(PIECE)).zip(out.chunks_mut(PIECE)) {
            let [wide_order, wide_x, wide_out] = wide.each_mut().map(|all| &mut all[..out.len()]);
            wide_order.iter_mut().zip(order).for_each(|(wide, value)| *wide = value.to_f64());
            wide_x.iter_mut().zip(x).for_each(|(wide, value)| *wide = value.to_f64());
            f64::bessel(function, wide_order, wide_x, wide_out);
            out.iter_mut().zip(&*wide_out).for_each(|(out, &value)| *out = DoubleSingle::new(value));
        }
    }
}

/// (A, 1 - A) of A = I_(v+1)(x) / I_v(x), each within 4 eps of itself: the second is not the first's rounding error where A -> 1.
pub(crate) fn iv_ratio_pair(v: f64, x: f64) -> (f64, f64) {
    (double::<IvRatio>(v, x), double::<IvRatioComplement>(v, x))
}

/// ln C_d(kappa) of one von Mises-Fisher density in dimension d >= 2, within 4 eps of max(|ln C|, hypot(d/2 - 1, kappa))
pub(crate) fn vmf_log_normalizer(d: f64, kappa: f64) -> f64 {
    double::<VmfLogNormalizer>(0.5 * d - 1.0, kappa)
}

/// One value in f64, without SIMD; x is 0 or in [1e-140, 1e150].
fn double<F: Family>(v: f64, x: f64) -> f64 {
    if x == 0.0 { F::at_0(v) } else { double_inside::<F>(v, x) }
}

fn double_inside<F: Family>(v: f64, x: f64) -> f64 {
    let square = v * v + x * x;
    if square < 34.0 * 34.0 {
        F::below([v], [x], Precision::Double)[0]
    } else if square < 93.0 * 93.0 {
        F::debye::<f64, 13>(v, x)
    } else {
        F::debye::<f64, 8>(v, x)
    }
}
