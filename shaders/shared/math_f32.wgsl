// exp, log and log1p of f32 within 1.5 ulp, and the values WGSL has no words for. The built-in log may err by 2^-21 on
// [0.5, 2] and exp by 3 + 2 |x| ulp; these use only + - * and bits, so they are the same on every GPU. Where a compiler
// merges the two words of ln 2, one ulp more is lost. Arguments are finite and normal.
// Source of the two polynomials: Cephes logf and expf.

const LN2_HIGH_F32: f32 = 0.693359375;
const LN2_LOW_F32: f32 = -2.12194440e-4;

// ln(1 + f) for 1 + f in [sqrt(1/2), sqrt(2)], plus k ln 2
fn log_reduced_f32(f: f32, k: f32) -> f32 {
    var p = 7.0376836292e-2;
    p = -1.1514610310e-1 + f * p;
    p = 1.1676998740e-1 + f * p;
    p = -1.2420140846e-1 + f * p;
    p = 1.4249322787e-1 + f * p;
    p = -1.6668057665e-1 + f * p;
    p = 2.0000714765e-1 + f * p;
    p = -2.4999993993e-1 + f * p;
    p = 3.3333331174e-1 + f * p;
    let square = f * f;
    return k * LN2_HIGH_F32 + (f + (k * LN2_LOW_F32 + square * (f * p - 0.5)));
}

// The exponent k that leaves value / 2^k in [sqrt(1/2), sqrt(2)]
fn log_exponent_f32(value: f32) -> i32 {
    return (bitcast<i32>(value) - 0x3f3504f3) >> 23u;
}

fn scale_down_f32(value: f32, k: i32) -> f32 {
    return bitcast<f32>(bitcast<i32>(value) - (k << 23u));
}

// ln(value) for value > 0
fn log_f32(value: f32) -> f32 {
    let k = log_exponent_f32(value);
    return log_reduced_f32(scale_down_f32(value, k) - 1.0, f32(k));
}

// ln(1 + value) for value > -0.29, with the relative accuracy of a small value kept
fn log1p_f32(value: f32) -> f32 {
    let u = 1.0 + value;
    let k = log_exponent_f32(u);
    return log_reduced_f32(select(scale_down_f32(u, k) - 1.0, value, k == 0), f32(k));
}

// e^r - 1 for |r| <= 0.35, relative accuracy kept
fn expm1_reduced_f32(r: f32) -> f32 {
    var p = 1.9875691500e-4;
    p = 1.3981999507e-3 + r * p;
    p = 8.3334519073e-3 + r * p;
    p = 4.1665795894e-2 + r * p;
    p = 1.6666665459e-1 + r * p;
    p = 5.0000001201e-1 + r * p;
    return r + r * r * p;
}

// e^value, 0 below e^-87
fn exp_f32(value: f32) -> f32 {
    let x = clamp(value, -88.0, 88.0);
    let k = floor(x * 1.44269504 + 0.5);
    let mantissa = 1.0 + expm1_reduced_f32((x - k * LN2_HIGH_F32) - k * LN2_LOW_F32);
    return select(mantissa * bitcast<f32>((i32(k) + 127) << 23u), 0.0, value < -87.0);
}

// A result that is infinite in truth (a limit at x = 0), as bits, which the compiler must not see as a constant:
// WGSL has no infinity, and an expression known to give one does not compile.
fn infinity_f32(sign_bit: u32) -> f32 {
    var bits = 0x7f800000u | sign_bit;
    return bitcast<f32>(bits);
}

fn nan_f32() -> f32 {
    var bits = 0x7fc00000u;
    return bitcast<f32>(bits);
}

// Zero or positive and finite, seen from the bits: a compiler may assume that NaN and infinity do not exist.
fn is_finite_nonnegative_f32(value: f32) -> bool {
    let bits = bitcast<u32>(value);
    return bits < 0x7f800000u || bits == 0x80000000u;
}
