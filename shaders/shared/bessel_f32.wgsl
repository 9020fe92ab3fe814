// bessel(v, x): the FUNCTION of order v and argument x that the host chose, in f32. Needs math_f32.wgsl, the constants
// LOG_IV .. VMF_LOG_NORMALIZER and FUNCTION. v from 0 to 1e7, x from 1e-15 to 1e9 or 0: nothing overflows there.
// With s = hypot(v, x), t = v / s, t0 = asinh(v / x):
//
//   s >= 17: one Debye expansion (DLMF 10.41.3-4) in 1/s with coefficients in t^2, so that v = 0 is no case apart
//     ln I = s - v t0 - ln(2 pi s)/2 + ln U(1/s)      ln K = v t0 - s + ln(pi / 2s)/2 + ln U(-1/s)
//     (ln I)' = s/x - x/s^2 W/U (1/s)                 (ln K)' = -s/x - x/s^2 W/U (-1/s)
//     d/dv ln I = -t0 - t/s V/U (1/s)                 d/dv ln K = t0 - t/s V/U (-1/s)
//   s < 17: ln I by its power series (DLMF 10.25.2); the ratio by a downward recurrence of what is left of I_{v+1}/I_v
//     beside x / (v + 1/2 + hypot(v + 1/2, x)), and d/dv ln I from it; K by the trapezoid rule on (10.32.9).
//
// Accurate to a few eps where division and sqrt are; to 9 eps (logs, scaled), 13 (ratio, complement, d/dx) where they
// err by 2.5 and 4.5 ulp. d/dv ln I below 17 is accurate to 6 eps max(1, |value|): it nearly cancels for v << x.
// Operations a point, s >= 17: logs 130, ratio, d/dx and d/dv 100. Below: ln I and vMF 150 + 10 a term (at most 23),
// ratio and (ln I)' 25 + 18 a step (x + 6), d/dv ln I 120 + 25 a step (at most 32), K 220 + 110 a node (20, at most 85)

const DEBYE_FROM: f32 = 17.0;
const LN_PI: f32 = 1.1447298858;
const LN_2PI: f32 = 1.8378770664;
const HALF_LN_2PI: f32 = 0.9189385332;
const HALF_LN_HALF_PI: f32 = 0.2257913526;
const INVERSE_2PI: f32 = 0.15915494309;

fn bessel(v: f32, x: f32) -> f32 {
    if FUNCTION == VMF_LOG_NORMALIZER {
        return vmf_log_normalizer(v, x);
    }
    if x == 0.0 {
        return at_zero(v);
    }
    let s = sqrt(v * v + x * x);
    let debye = s >= DEBYE_FROM;
    if FUNCTION == LOG_IV {
        if debye { return debye_log_iv(v, x, s); }
        return series_log_iv(v, x);
    }
    if FUNCTION == LOG_KV {
        if debye { return debye_log_kv(v, x, s); }
        return integrate_kv(v, x, s).log;
    }
    if FUNCTION == IV_RATIO {
        return ratios(v, x).ratio;
    }
    if FUNCTION == IV_RATIO_COMPLEMENT {
        return ratios(v, x).complement;
    }
    if FUNCTION == LOG_IV_DX {
        if debye { return s / x - debye_dx(1.0 / s, v, x, s); }
        return v / x + recur_ratio(v, x, 0u).ratio;
    }
    if FUNCTION == LOG_KV_DX {
        if debye { return -s / x - debye_dx(-1.0 / s, v, x, s); }
        return integrate_kv(v, x, s).dx;
    }
    if FUNCTION == LOG_IV_DV {
        // -K_0 / I_0 exactly; the expansion would give 0 and the series noise
        if v == 0.0 {
            if debye { return -exp_f32(debye_log_kv(v, x, s) - debye_log_iv(v, x, s)); }
            return -exp_f32(integrate_kv(v, x, s).log - series_log_iv(v, x));
        }
        if debye { return -asinh_ratio(v, x, s) - debye_dv(1.0 / s, v, s); }
        return recur_log_iv_dv(v, x);
    }
    // LOG_KV_DV
    if debye { return asinh_ratio(v, x, s) - debye_dv(-1.0 / s, v, s); }
    return integrate_kv(v, x, s).dv;
}

// The limits as x falls to 0
fn at_zero(v: f32) -> f32 {
    let zero_order = v == 0.0;
    if FUNCTION == LOG_IV { return select(infinity_f32(0x80000000u), 0.0, zero_order); }
    if FUNCTION == LOG_KV { return infinity_f32(0u); }
    if FUNCTION == IV_RATIO { return 0.0; }
    if FUNCTION == IV_RATIO_COMPLEMENT { return 1.0; }
    if FUNCTION == LOG_IV_DX { return select(infinity_f32(0u), 0.0, zero_order); }
    if FUNCTION == LOG_KV_DX || FUNCTION == LOG_IV_DV { return infinity_f32(0x80000000u); }
    return select(infinity_f32(0u), 0.0, zero_order); // LOG_KV_DV
}

// ln C_d(x) = v ln x - (v + 1) ln 2pi - ln I_v(x), v = d/2 - 1, with the terms that cancel left out. At x = 0 it is
// minus the log of the sphere's area.
fn vmf_log_normalizer(v: f32, x: f32) -> f32 {
    let s = sqrt(v * v + x * x);
    if s >= DEBYE_FROM {
        let t = v / s;
        let rest = 0.5 * log_f32(s) - HALF_LN_2PI - log1p_small(debye_u(1.0 / s, t * t));
        return v * log_f32((v + s) * INVERSE_2PI) - s + rest;
    }
    let l = log1p_f32(v);
    return v * (l - (1.0 + LN_PI)) + (0.5 * l + stirling_rest(v) - LN_2PI) - log1p_f32(power_series(v, x));
}

// ---- s >= 17 ----

// asinh(v / x), relative accuracy kept for v << x
fn asinh_ratio(v: f32, x: f32, s: f32) -> f32 {
    return log1p_f32(v / x * (1.0 + v / (x + s)));
}

fn debye_log_iv(v: f32, x: f32, s: f32) -> f32 {
    let t = v / s;
    let rest = 0.5 * log_f32(s) + HALF_LN_2PI - log1p_small(debye_u(1.0 / s, t * t));
    return s - v * asinh_ratio(v, x, s) - rest;
}

fn debye_log_kv(v: f32, x: f32, s: f32) -> f32 {
    let t = v / s;
    let rest = 0.5 * log_f32(s) - HALF_LN_HALF_PI - log1p_small(debye_u(-1.0 / s, t * t));
    return v * asinh_ratio(v, x, s) - s - rest;
}

// x/s^2 W/U at r = 1/s (I) or -1/s (K)
fn debye_dx(r: f32, v: f32, x: f32, s: f32) -> f32 {
    let t = v / s;
    let y = t * t;
    return x / s / s * debye_w(r, y) / (1.0 + debye_u(r, y));
}

// t/s V/U at r = 1/s (I) or -1/s (K)
fn debye_dv(r: f32, v: f32, s: f32) -> f32 {
    let t = v / s;
    let y = t * t;
    return t / s * debye_v(r, y) / (1.0 + debye_u(r, y));
}

// ln(1 + a), |a| < 0.02
fn log1p_small(a: f32) -> f32 {
    return a * (1.0 - a * (0.5 - a * (0.33333333 - a * 0.25)));
}

// sum_{k=1..5} r^k U_k(t) / t^k, y = t^2
fn debye_u(r: f32, y: f32) -> f32 {
    let u1 = 0.125 + y * -0.2083333333;
    let u2 = 0.0703125 + y * (-0.4010416667 + y * 0.3342013889);
    let u3 = 0.0732421875 + y * (-0.8912109375 + y * (1.846462674 + y * -1.025812596));
    let u4 = 0.1121520996 + y * (-2.364086914 + y * (8.789123535 + y * (-11.20700262 + y * 4.669584423)));
    let u5 = 0.2271080017
        + y * (-7.368794359 + y * (42.53499875 + y * (-91.81824154 + y * (84.63621767 + y * -28.21207256))));
    return r * (u1 + r * (u2 + r * (u3 + r * (u4 + r * u5))));
}

// The same with each power t^e of U_k weighted by 1/2 + e
fn debye_w(r: f32, y: f32) -> f32 {
    let w1 = 0.1875 + y * -0.7291666667;
    let w2 = 0.17578125 + y * (-1.8046875 + y * 2.172309028);
    let w3 = 0.2563476562 + y * (-4.901660156 + y * (13.84847005 + y * -9.745219666));
    let w4 = 0.5046844482 + y * (-15.36656494 + y * (74.70755005 + y * (-117.6735275 + y * 58.36980529)));
    let w5 = 1.249094009
        + y * (-55.2659577 + y * (404.0824881 + y * (-1055.909778 + y * (1142.588939 + y * -437.2871247))));
    return 0.5 + r * (w1 + r * (w2 + r * (w3 + r * (w4 + r * w5))));
}

// v_k = (1/2 + k) p_k - 2 (1 - y) dp_k/dy for p_k(y) = U_k / t^k
fn debye_v(r: f32, y: f32) -> f32 {
    let v1 = 0.6041666667 + y * -0.7291666667;
    let v2 = 0.9778645833 + y * (-3.141493056 + y * 2.172309028);
    let v3 = 2.038769531 + y * (-12.28751085 + y * (20.00334563 + y * -9.745219666));
    let v4 = 5.232858276 + y * (-50.52305908 + y * (141.9495657 + y * (-155.0302029 + y * 58.36980529)));
    let v5 = 15.98668273
        + y * (-225.4059527 + y * (954.9919373 + y * (-1732.999519 + y * (1424.709664 + y * -437.2871247))));
    return 0.5 + r * (v1 + r * (v2 + r * (v3 + r * (v4 + r * v5))));
}

// ---- s < 17: I ----

// sum_{k>=1} q^k / (k! (v+1)..(v+k)), q = x^2/4
fn power_series(v: f32, x: f32) -> f32 {
    let q = 0.25 * x * x;
    var term = 1.0;
    var sum = 0.0;
    for (var k = 1u; k <= 40u; k++) {
        term *= q / (f32(k) * (v + f32(k)));
        sum += term;
        if term <= 2e-8 * sum { break; }
    }
    return sum;
}

// ln Gamma(1+v) - (v + 1/2) ln(1+v) + v, 0 <= v <= 17: what Stirling's formula leaves, 0 at v = 0
fn stirling_rest(v: f32) -> f32 {
    let w = v / (1.0 + v);
    return w * (-0.07721566873 + w * (-0.004748234972 + w * (3.594852209e-4 + w * (4.167457434e-4 + w * (2.665871308e-5
        + w * (1.955761197e-4 + w * -9.597640212e-5))))));
}

fn series_log_iv(v: f32, x: f32) -> f32 {
    let z = 1.0 + v;
    // v ln(x/2) - ln Gamma(1+v), with v (ln z - 1) of the second merged into the first: no cancellation near v = 0
    let power = v * (log_f32(0.5 * x / z) + 1.0) - 0.5 * log1p_f32(v) - stirling_rest(v);
    return power + log1p_f32(power_series(v, x));
}

struct Ratio {
    ratio: f32,      // A = I_{v+1} / I_v
    complement: f32, // 1 - A, from positive terms
    log_dv: f32,     // LOG_IV_DV: sum_{j<orders} d/dv ln(I_{v+j+1} / I_{v+j})
}

fn ratios(v: f32, x: f32) -> Ratio {
    let s = sqrt(v * v + x * x);
    if s < DEBYE_FROM {
        return recur_ratio(v, x, 0u);
    }
    let correction = debye_dx(1.0 / s, v, x, s);
    return Ratio(x / (v + s) - correction, v * (1.0 + v / (s + x)) / (s + v) + correction, 0.0);
}

// With a = v + 1/2, sigma = hypot(a, x), b = a + sigma: A = x / (b + d). From x/A_v = 2(v+1) + x A_{v+1},
// d_v = 2(v+1) / (sigma_v + sigma_{v+1}) - x^2 d_{v+1} / (b_{v+1} (b_{v+1} + d_{v+1})); d is small, so its error hardly
// shows. Started at d = a b / (2 sigma^2), its first term, x + 6 orders up: what that lacks has no weight at v.
fn recur_ratio(v: f32, x: f32, orders: u32) -> Ratio {
    let square = x * x;
    var j = orders + u32(x) + 6u;
    var a = v + (f32(j) + 0.5);
    var sigma = sqrt(a * a + square);
    var b = a + sigma;
    var d = 0.5 * (a / sigma) * (b / sigma);
    var ratio = x / (b + d);
    var slope = -1.0 / sigma; // d/dv ln ratio
    var log_dv = 0.0;
    while j > 0u {
        j--;
        let above = sigma;
        let tail = square * d / (b * (b + d));
        a = v + (f32(j) + 0.5); // anew from v: a - 1 would keep the rounding of the largest order
        sigma = sqrt(a * a + square);
        b = a + sigma;
        d = (2.0 * a + 1.0) / (sigma + above) - tail;
        if FUNCTION == LOG_IV_DV {
            let ratio_above = ratio;
            ratio = x / (b + d);
            slope = -ratio * (2.0 / x + ratio_above * slope);
            log_dv += select(0.0, slope, j < orders);
        }
    }
    return Ratio(x / (b + d), (a + a * a / (sigma + x) + d) / (b + d), log_dv);
}

// d/dv ln I_v = d/dv ln I_{v+n} less those of the ratios between, n the orders to where the expansion holds
fn recur_log_iv_dv(v: f32, x: f32) -> f32 {
    let orders = u32(max(sqrt(max(DEBYE_FROM * DEBYE_FROM - x * x, 0.0)) - v, 0.0)) + 1u;
    let w = v + f32(orders);
    let s = sqrt(w * w + x * x);
    return -asinh_ratio(w, x, s) - debye_dv(1.0 / s, w, s) - recur_ratio(v, x, orders).log_dv;
}

// ---- s < 17: K ----

struct Kv {
    log: f32,
    dx: f32,
    dv: f32,
}

// K_v(x) = int_0^inf exp(-x cosh t) cosh(v t) dt by the trapezoid rule, which converges exponentially. With t = t0 + u
// the exponent falls from its peak v t0 - s by E(u) = d (cosh u - 1) + v (e^u - 1 - u), d = s - v, all positive. The
// nodes span where E < 18; (ln K)' = -mean of cosh t, d/dv ln K = mean of t tanh(v t).
fn integrate_kv(v: f32, x: f32, s: f32) -> Kv {
    let t0 = asinh_ratio(v, x, s);
    let d = x * (x / (s + v));
    let qd = 18.0 / d;
    let qv = 18.0 / max(v, 1e-18);
    let root = sqrt(2.0 * qv);
    // each bound keeps one of E's two terms, with e^u - 1 - u >= u^2/2 and e^-u - 1 + u >= u^2 / (2 + u)
    let reach = log1p_f32(qd + sqrt(qd) * sqrt(qd + 2.0));
    let high = min(reach, log1p_f32(qv + log1p_f32(qv + root)));
    let low = min(reach, 0.5 * qv + sqrt(0.25 * qv * qv + 2.0 * qv));
    // nodes t = step k, with u taken from the node next to the peak: u near 0 keeps its accuracy where t0 is large
    let step = 1.0 / sqrt(s + 4.0);
    let peak = floor(t0 / step + 0.5);
    let rest = t0 - step * peak;
    let first = u32(max(peak - low / step, 0.0));
    let grown = (s + v) / x; // e^t0
    // each sum in two halves, from the far end, where the terms are small: rounding stays low
    var sum = vec2<f32>();
    var sum_dx = vec2<f32>();
    var sum_dv = vec2<f32>();
    for (var k = u32(peak + high / step) + 2u; k > first;) {
        k--;
        let t = step * f32(k);
        let u = step * (f32(k) - peak) - rest;
        let e = exp_f32(u);
        let inverse = 1.0 / e;
        var weight = exp_f32(-(0.5 * d * (e - 1.0) * ((e - 1.0) * inverse) + v * ((e - 1.0) - u)));
        weight *= select(1.0, 0.5, k == 0u);
        let mirror = exp_f32(-2.0 * v * t);
        sum = vec2(sum.y, sum.x + weight * (1.0 + mirror));
        if FUNCTION == LOG_KV_DX {
            let twice_cosh = e * grown + inverse / grown;
            sum_dx = vec2(sum_dx.y, sum_dx.x + weight * (1.0 + mirror) * twice_cosh);
        }
        if FUNCTION == LOG_KV_DV {
            // 1 - e^{-2 v t} without cancellation
            let p = 2.0 * v * t;
            let shrunk = select(1.0 - mirror, -expm1_reduced_f32(-min(p, 0.3)), p < 0.3);
            sum_dv = vec2(sum_dv.y, sum_dv.x + weight * t * shrunk);
        }
    }
    let total = sum.x + sum.y;
    let dx = -0.5 * (sum_dx.x + sum_dx.y) / total;
    return Kv(v * t0 - s + log_f32(0.5 * step * total), dx, (sum_dv.x + sum_dv.y) / total);
}

// ---- what bessel.wgsl asks ----

fn order_in_domain(v: f32) -> bool {
    return is_finite_nonnegative_f32(v) && v <= 1e7;
}

fn argument_in_domain(x: f32) -> bool {
    return is_finite_nonnegative_f32(x) && (x == 0.0 || (x >= 1e-15 && x <= 1e9));
}

// 0 for -0
fn magnitude(value: f32) -> f32 {
    return abs(value);
}

fn not_a_number() -> f32 {
    return nan_f32();
}
