// exp, log and log1p of f64 within 1.5 ulp, and the values WGSL has no words for. The built-in exp, log and pow of an
// f64 compile and return garbage without an error; these use only + - * / and bits (SHADER_F64 and SHADER_INT64).
// Arguments are finite and normal. Source of the log's polynomial: fdlibm, e_log.c; of the exp's: a Chebyshev fit.

const LN2_HIGH_F64: f64 = 6.93147180369123816490e-01lf;
const LN2_LOW_F64: f64 = 1.90821492927058770002e-10lf;

// ln(1 + f) for 1 + f in [sqrt(1/2), sqrt(2)], plus k ln 2
fn log_reduced_f64(f: f64, k: f64) -> f64 {
    let s = f / (2.0 + f);
    let z = s * s;
    var p = 1.479819860511658591e-01lf;
    p = 1.531383769920937332e-01 + z * p;
    p = 1.818357216161805012e-01 + z * p;
    p = 2.222219843214978396e-01 + z * p;
    p = 2.857142874366239149e-01 + z * p;
    p = 3.999999999940941908e-01 + z * p;
    p = 6.666666666666735130e-01 + z * p;
    let half_square = 0.5 * f * f;
    return k * LN2_HIGH_F64 + (f + (k * LN2_LOW_F64 + (s * (half_square + z * p) - half_square)));
}

// The exponent k that leaves value / 2^k in [sqrt(1/2), sqrt(2)]
fn log_exponent_f64(value: f64) -> i64 {
    return (bitcast<i64>(value) - 0x3fe6a09e667f3bcdli) >> 52u;
}

fn scale_down_f64(value: f64, k: i64) -> f64 {
    return bitcast<f64>(bitcast<i64>(value) - (k << 52u));
}

// ln(value) for value > 0
fn log_f64(value: f64) -> f64 {
    let k = log_exponent_f64(value);
    return log_reduced_f64(scale_down_f64(value, k) - 1.0, f64(i32(k)));
}

// ln(1 + value) for value > -0.29, with the relative accuracy of a small value kept
fn log1p_f64(value: f64) -> f64 {
    let u = 1.0 + value;
    let k = log_exponent_f64(u);
    return log_reduced_f64(select(scale_down_f64(u, k) - 1.0, value, k == 0li), f64(i32(k)));
}

// e^r - 1 for |r| <= 0.36, relative accuracy kept
fn expm1_reduced_f64(r: f64) -> f64 {
    var p = 2.091767738180507e-9lf;
    p = 2.5109404672957823e-8 + r * p;
    p = 2.7557266175047446e-7 + r * p;
    p = 2.7557244942221745e-6 + r * p;
    p = 2.4801587331670256e-5 + r * p;
    p = 0.0001984126988339433 + r * p;
    p = 0.0013888888888881927 + r * p;
    p = 0.008333333333323584 + r * p;
    p = 0.04166666666666667 + r * p;
    p = 0.16666666666666674 + r * p;
    p = 0.5 + r * p;
    return r + r * r * p;
}

// e^value, 0 below e^-708
fn exp_f64(value: f64) -> f64 {
    let x = clamp(value, -709.0, 709.0);
    let k = floor(x * 1.4426950408889634 + 0.5);
    let mantissa = 1.0 + expm1_reduced_f64((x - k * LN2_HIGH_F64) - k * LN2_LOW_F64);
    return select(mantissa * bitcast<f64>(i64(i32(k) + 1023) << 52u), 0.0, value < -708.0);
}

// A result that is infinite in truth (a limit at x = 0), as bits, which the compiler must not see as a constant:
// WGSL has no infinity, and an expression known to give one does not compile.
fn infinity_f64(sign_bit: u32) -> f64 {
    var bits = 0x7ff0000000000000lu | (u64(sign_bit) << 32u);
    return bitcast<f64>(bits);
}

fn nan_f64() -> f64 {
    var bits = 0x7ff8000000000000lu;
    return bitcast<f64>(bits);
}

// Zero or positive and finite, seen from the bits: a compiler may assume that NaN and infinity do not exist.
fn is_finite_nonnegative_f64(value: f64) -> bool {
    let bits = bitcast<u64>(value);
    return bits < 0x7ff0000000000000lu || bits == 0x8000000000000000lu;
}
