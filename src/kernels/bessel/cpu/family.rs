//! The nine functions, each as the three forms it takes over the quadrant.

use super::real::Real;
use super::series::{self, Precision};
use super::{contour, debye, quadrature};

/// One function: the formulas of its regions.
pub(super) trait Family {
    /// hypot(v, x) >= the reach of the expansion with that many terms
    fn debye<T: Real, const TERMS: usize>(v: T, x: T) -> T;
    /// below that reach, a point a lane
    fn below<T: Real, const L: usize>(v: [T; L], x: [T; L], precision: Precision) -> [T; L];
    /// the limit for x -> 0
    fn at_0(v: f64) -> f64;
}

macro_rules! family {
    ($name:ident, $function:ident, |$v:ident, $x:ident, $precision:ident| $below:expr, |$at:ident| $limit:expr) => {
        pub(super) struct $name;
        impl Family for $name {
            #[inline(always)]
            fn debye<T: Real, const TERMS: usize>(v: T, x: T) -> T {
                debye::$function::<T, TERMS>(v, x)
            }
            #[inline(always)]
            fn below<T: Real, const L: usize>($v: [T; L], $x: [T; L], $precision: Precision) -> [T; L] {
                $below
            }
            fn at_0($at: f64) -> f64 {
                $limit
            }
        }
    };
}
const INFINITY: f64 = f64::INFINITY;
family!(LogIv, log_iv, |v, x, precision| series::log_iv(v, x, precision), |v| if v == 0.0 { 0.0 } else { -INFINITY });
family!(LogKv, log_kv, |v, x, _precision| quadrature::log_kv(v, x), |_v| INFINITY);
family!(IvRatio, iv_ratio, |v, x, precision| series::iv_ratio(v, x, precision), |_v| 0.0);
family!(IvRatioComplement, iv_ratio_complement, |v, x, precision| series::iv_ratio_complement(v, x, precision), |_v| {
    1.0
});
family!(LogIvDx, log_iv_dx, |v, x, precision| series::log_iv_dx(v, x, precision), |v| if v == 0.0 {
    0.0
} else {
    INFINITY
});
family!(LogKvDx, log_kv_dx, |v, x, _precision| quadrature::log_kv_dx(v, x), |_v| -INFINITY);
family!(LogIvDv, log_iv_dv, |v, x, precision| contour::log_iv_dv(v, x, precision), |_v| -INFINITY);
family!(LogKvDv, log_kv_dv, |v, x, _precision| quadrature::log_kv_dv(v, x), |v| if v == 0.0 { 0.0 } else { INFINITY });
family!(VmfLogNormalizer, vmf_log_normalizer, |v, x, precision| series::vmf_log_normalizer(v, x, precision), |v| {
    super::double_inside::<VmfLogNormalizer>(v, 0.0)
});
