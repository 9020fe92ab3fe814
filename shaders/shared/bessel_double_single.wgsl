// bessel(v, x): the FUNCTION of order v and argument x that the host chose, in pairs of f32. Needs double_single.wgsl,
// math_f32.wgsl and the constants LOG_IV .. VMF_LOG_NORMALIZER and FUNCTION. v from 0 to 1e7, x from 1e-15 to 1e9 or 0:
// nothing overflows there.
// With s = hypot(v, x), t = v / s, t0 = asinh(v / x):
//
//   s >= 25 (d/dv: 34): one Debye expansion (DLMF 10.41.3-4) in 1/s with coefficients in t^2, so that v = 0 is no case
//   apart; what lies beyond its fourth term is below 2^-22 of the first and is summed in single
//     ln I = s - v t0 - ln(2 pi s)/2 + ln U(1/s)      ln K = v t0 - s + ln(pi / 2s)/2 + ln U(-1/s)
//     (ln I)' = s/x - x/s^2 W/U (1/s)                 (ln K)' = -s/x - x/s^2 W/U (-1/s)
//     d/dv ln I = -t0 - t/s V/U (1/s)                 d/dv ln K = t0 - t/s V/U (-1/s)
//   s < 25: ln I by its power series (DLMF 10.25.2) for x <= 8, else by I_{v-1} = I_{v+1} + (2v/x) I_v down from orders
//   where the expansion holds; the ratio by a downward recurrence of what is left of I_{v+1}/I_v beside
//   x / (v + 1/2 + hypot(v + 1/2, x)); d/dv ln I by that of the ratios' slopes; K by the trapezoid rule on (10.32.9).
//
// Errors within 1e-13: of max(|value|, s) for the logs, of the value for ratio, complement and d/dx, of max(1, |value|)
// for d/dv; for v to 1e6 and x from 1e-8 to 1e8.
// Operations of f32 a point, guards left out (a sum is 20 or 11, a product 22, a quotient 32, a log 290, an exp 310),
// s >= 25: logs 1800, ratio and d/dx 1750, d/dv 1900. Below: ln I 1100 + 105 a term (at most 32), or 2900 + 95 a step (at
// most 26); ratio, complement and (ln I)' 250 + 300 a step (4.2 sqrt(x) + 3); d/dv ln I 4500 + 170 a step (at most 35);
// K 1500 + 1300 a node (18 to 180).

const LN_PI: vec2<f32> = vec2(1.1447299, 3.317301e-8);
const LN_2PI: vec2<f32> = vec2(1.837877, 3.1268353e-8);
const HALF_LN_2PI: vec2<f32> = vec2(0.9189385, 1.5634177e-8);
const HALF_LN_HALF_PI: vec2<f32> = vec2(0.22579135, 2.6376703e-9);
const INVERSE_2PI: vec2<f32> = vec2(0.15915494, 6.4206382e-9);

fn bessel(v: vec2<f32>, x: vec2<f32>) -> vec2<f32> {
    if FUNCTION == VMF_LOG_NORMALIZER {
        return vmf_log_normalizer(v, x);
    }
    if x.x == 0.0 {
        return at_zero(v);
    }
    let s = hypot(v, x);
    if FUNCTION == LOG_IV {
        return log_iv(v, x, s);
    }
    if FUNCTION == LOG_KV {
        if s.x >= 25.0 { return debye_log_kv(v, x, s); }
        return integrate_kv(v, x, s).log;
    }
    if FUNCTION == IV_RATIO {
        return ratios(v, x).ratio;
    }
    if FUNCTION == IV_RATIO_COMPLEMENT {
        return ratios(v, x).complement;
    }
    if FUNCTION == LOG_IV_DX {
        if s.x >= 25.0 { return ds_sub(ds_div(s, x), debye_dx(ds_inverse(s), v, x)); }
        return ds_add(ds_div(v, x), recur_ratio(v, x).ratio);
    }
    if FUNCTION == LOG_KV_DX {
        if s.x >= 25.0 { return ds_sub(-ds_div(s, x), debye_dx(-ds_inverse(s), v, x)); }
        return integrate_kv(v, x, s).dx;
    }
    if FUNCTION == LOG_IV_DV {
        return log_iv_dv(v, x, s);
    }
    // LOG_KV_DV
    if s.x >= 34.0 { return ds_sub(asinh_ratio(v, x, s), debye_dv(-ds_inverse(s), v)); }
    return integrate_kv(v, x, s).dv;
}

fn hypot(a: vec2<f32>, b: vec2<f32>) -> vec2<f32> {
    return ds_sqrt(ds_add(ds_square(a), ds_square(b)));
}

// The limits as x falls to 0
fn at_zero(v: vec2<f32>) -> vec2<f32> {
    let zero_order = v.x == 0.0;
    if FUNCTION == LOG_IV { return ds(select(infinity_f32(0x80000000u), 0.0, zero_order)); }
    if FUNCTION == LOG_KV { return ds(infinity_f32(0u)); }
    if FUNCTION == IV_RATIO { return ds(0.0); }
    if FUNCTION == IV_RATIO_COMPLEMENT { return ds(1.0); }
    if FUNCTION == LOG_IV_DX { return ds(select(infinity_f32(0u), 0.0, zero_order)); }
    if FUNCTION == LOG_KV_DX || FUNCTION == LOG_IV_DV { return ds(infinity_f32(0x80000000u)); }
    return ds(select(infinity_f32(0u), 0.0, zero_order)); // LOG_KV_DV
}

// ln C_d(x) = v ln x - (v + 1) ln 2pi - ln I_v(x), v = d/2 - 1, with the terms that cancel left out. At x = 0 it is
// minus the log of the sphere's area.
fn vmf_log_normalizer(v: vec2<f32>, x: vec2<f32>) -> vec2<f32> {
    let s = hypot(v, x);
    if s.x < 25.0 && x.x <= 8.0 {
        let l = ds_log1p(v);
        let power = ds_mul(v, ds_sub(ds_add_f32(l, -1.0), LN_PI));
        let rest = ds_sub(ds_add(0.5 * l, stirling_rest(v)), LN_2PI);
        return ds_sub(ds_add(power, rest), ds_log1p(power_series(v, x)));
    }
    let down = descend(v, x, s);
    let e = down.top;
    let rest = ds_sub(ds_sub(0.5 * ds_log(e.s), HALF_LN_2PI), log1p_small(e.u));
    let top = ds_add(ds_sub(ds_mul(e.v, ds_log(ds_mul(ds_add(e.v, e.s), INVERSE_2PI))), e.s), rest);
    // of order w = v + steps; steps ln(x / 2pi) + ln(I_v / I_w) more than that of v
    return ds_sub(top, ds_add(down.log_growth, ds_mul_f32(ds_log(ds_mul(x, INVERSE_2PI)), down.steps)));
}

// ---- the Debye expansion ----

// What the expansion at order v has in common.
struct Debye {
    v: vec2<f32>,
    s: vec2<f32>,
    r: vec2<f32>, // 1/s
    y: vec2<f32>, // (v / s)^2
    u: vec2<f32>, // U - 1 at r, for I
}

fn debye(v: vec2<f32>, x: vec2<f32>) -> Debye {
    let s = hypot(v, x);
    let r = ds_inverse(s);
    let y = ds_square(ds_mul(v, r));
    return Debye(v, s, r, y, debye_u(r, y));
}

// asinh(v / x), relative accuracy kept for v << x
fn asinh_ratio(v: vec2<f32>, x: vec2<f32>, s: vec2<f32>) -> vec2<f32> {
    return ds_log1p(ds_mul(ds_div(v, x), ds_add_f32(ds_div(v, ds_add(x, s)), 1.0)));
}

fn debye_log_kv(v: vec2<f32>, x: vec2<f32>, s: vec2<f32>) -> vec2<f32> {
    let t = ds_div(v, s);
    let correction = log1p_small(debye_u(-ds_inverse(s), ds_square(t)));
    let rest = ds_sub(ds_sub(0.5 * ds_log(s), HALF_LN_HALF_PI), correction);
    return ds_sub(ds_sub(ds_mul(v, asinh_ratio(v, x, s)), s), rest);
}

// I_{v+1} / I_v
fn debye_ratio(e: Debye, x: vec2<f32>) -> vec2<f32> {
    let correction = ds_mul(ds_mul(x, ds_square(e.r)), ds_div(debye_w(e.r, e.y), ds_add_f32(e.u, 1.0)));
    return ds_sub(ds_div(x, ds_add(e.v, e.s)), correction);
}

// x/s^2 W/U at r = 1/s (I) or -1/s (K)
fn debye_dx(r: vec2<f32>, v: vec2<f32>, x: vec2<f32>) -> vec2<f32> {
    let y = ds_square(ds_mul(v, r));
    let quotient = ds_div(debye_w(r, y), ds_add_f32(debye_u(r, y), 1.0));
    return ds_mul(ds_mul(x, ds_square(r)), quotient);
}

// t/s V/U at r = 1/s (I) or -1/s (K)
fn debye_dv(r: vec2<f32>, v: vec2<f32>) -> vec2<f32> {
    let y = ds_square(ds_mul(v, r));
    let quotient = ds_div(debye_v(r, y), ds_add_f32(debye_u(r, y), 1.0));
    return ds_mul(ds_mul(v, ds_square(r)), quotient);
}

// ln(1 + a), |a| < 0.009: single from the fourth power on
fn log1p_small(a: vec2<f32>) -> vec2<f32> {
    let high = -0.25 + a.x * (0.2 - a.x * (0.16666667 - a.x * 0.14285715));
    var p = ds_add_loose(vec2(0.33333334, -9.934108e-9), ds(a.x * high));
    p = ds_add_f32(ds_mul(a, p), -0.5);
    return ds_add_loose(a, ds_mul(ds_square(a), p));
}

fn poly1(y: vec2<f32>, c0: vec2<f32>, c1: vec2<f32>) -> vec2<f32> {
    return ds_add_loose(c0, ds_mul(y, c1));
}

fn poly2(y: vec2<f32>, c0: vec2<f32>, c1: vec2<f32>, c2: vec2<f32>) -> vec2<f32> {
    return ds_add_loose(c0, ds_mul(y, poly1(y, c1, c2)));
}

fn poly3(y: vec2<f32>, c0: vec2<f32>, c1: vec2<f32>, c2: vec2<f32>, c3: vec2<f32>) -> vec2<f32> {
    return ds_add_loose(c0, ds_mul(y, poly2(y, c1, c2, c3)));
}

fn poly4(y: vec2<f32>, c0: vec2<f32>, c1: vec2<f32>, c2: vec2<f32>, c3: vec2<f32>, c4: vec2<f32>) -> vec2<f32> {
    return ds_add_loose(c0, ds_mul(y, poly3(y, c1, c2, c3, c4)));
}


// sum_{k>=1} r^k U_k(t) / t^k, y = t^2, |r| <= 1/25
fn debye_u(r: vec2<f32>, y: vec2<f32>) -> vec2<f32> {
    let rest = debye_u_rest(25.0 * r.x, y.x);
    let u1 = poly1(y, ds(0.125), vec2(-0.20833333, -4.967054e-9));
    let u2 = poly2(y, ds(0.0703125), vec2(-0.40104166, -9.934108e-9), vec2(0.3342014, -6.6227384e-9));
    let u3 = poly3(y, ds(0.07324219), vec2(-0.8912109, -2.3841858e-8), vec2(1.8464627, -5.2981907e-8),
        vec2(-1.0258126, 2.9434393e-8));
    let u4 = poly4(y, ds(0.1121521), vec2(-2.3640869, -4.7683717e-8), ds(8.789124), vec2(-11.207003, 2.3547514e-8),
        vec2(4.6695843, 1.4913425e-7));
    var sum = ds_add_loose(u4, ds_mul_f32(r, rest));
    sum = ds_add_loose(u3, ds_mul(r, sum));
    sum = ds_add_loose(u2, ds_mul(r, sum));
    sum = ds_add_loose(u1, ds_mul(r, sum));
    return ds_mul(r, sum);
}

// sum_{k>=5} of the expansion over r^5, rho = 25 r, in single: its value at y = 0 and y times a sum of Chebyshev polynomials in
// 2 y - 1, after Clenshaw, which alone would lose two digits near y = 0.
fn debye_u_rest(rho: f32, y: f32) -> f32 {
    let z = 2.0 * y - 1.0;
    let start = 0.227108 + rho * (0.02290012 + rho * (0.0027643992 + rho * (0.0003882506 + rho * (6.224101e-5
        + rho * (1.2214605e-5 + rho * 2.5254321e-6)))));
    let twice = 2.0 * z;
    let b11 = -2.0824274e-8 + rho * (7.459594e-8 + rho * 1.0829399e-7);
    let b10 = twice * b11 + (-3.3074922e-8 + rho * (-8.745084e-8 + rho * (5.469607e-7 + rho * (6.5896523e-7
        + rho * (-1.2180334e-6 + rho * -1.1657653e-6)))));
    let b9 = twice * b10 - b11 + (-7.1089086e-9 + rho * (2.1980706e-7 + rho * (2.2244801e-7 + rho * (-1.6924329e-6
        + rho * (-1.0717694e-6 + rho * (5.700611e-6 + rho * 4.058738e-6))))));
    let b8 = twice * b9 - b10 + (1.1269773e-8 + rho * (1.8525848e-8 + rho * (-3.5402687e-7 + rho * (-2.4187955e-7
        + rho * (-1.7261154e-5 + rho * (-1.4554823e-5 + rho * (-1.0106205e-5 + rho * -4.015478e-6)))))));
    let b7 = twice * b8 - b9 + (-1.5688123e-8 + rho * (-2.3991262e-8 + rho * (4.9383976e-7 + rho * (0.00015815976
        + rho * (0.00010387397 + rho * (4.306945e-5 + rho * (1.882501e-5 + rho * 6.234003e-6)))))));
    let b6 = twice * b7 - b8 + (2.014524e-8 + rho * (2.9463317e-8 + rho * (-0.0015002112 + rho * (-0.000821185
        + rho * (-0.00028282584 + rho * (-8.34126e-5 + rho * (-2.8706276e-5 + rho * -8.5400325e-6)))))));
    let b5 = twice * b6 - b7 + (-2.4603132e-8 + rho * (0.016607007 + rho * (0.007198742 + rho * (0.0020650967
        + rho * (0.0005178928 + rho * (0.00012780105 + rho * (3.880319e-5 + rho * 1.085366e-5)))))));
    let b4 = twice * b5 - b6 + (-0.22040679 + rho * (-0.07307094 + rho * (-0.01687601 + rho * (-0.0035833975
        + rho * (-0.000766493 + rho * (-0.00017262499 + rho * (-4.8905174e-5 + rho * -1.3167058e-5)))))));
    let b3 = twice * b4 - b5 + (0.88162726 + rho * (0.15917371 + rho * (0.02788862 + rho * (0.0051399623
        + rho * (0.0010154794 + rho * (0.00021743272 + rho * (5.900688e-5 + rho * 1.5480487e-5)))))));
    let b2 = twice * b3 - b4 + (-1.7793802 + rho * (-0.25108382 + rho * (-0.038949545 + rho * (-0.0066946843
        + rho * (-0.0012644414 + rho * (-0.00026224324 + rho * (-6.910861e-5 + rho * -1.7793911e-5)))))));
    let b1 = twice * b2 - b3 + (2.688824 + rho * (0.34259912 + rho * (0.05000684 + rho * (0.008249818
        + rho * (0.0015134054 + rho * (0.00030705292 + rho * (7.921034e-5 + rho * 2.0107336e-5)))))));
    return start + y * (z * b1 - b2 + (-1.7985561 + rho * (-0.21712236 + rho * (-0.03053217 + rho * (-0.0049023917
        + rho * (-0.0008811849 + rho * (-0.0001759315 + rho * (-4.4656033e-5 + rho * -1.121038e-5))))))));
}

// The same with each power t^e of U_k weighted by 1/2 + e, and 1/2 for k = 0
fn debye_w(r: vec2<f32>, y: vec2<f32>) -> vec2<f32> {
    let rest = debye_w_rest(25.0 * r.x, y.x);
    let w1 = poly1(y, ds(0.1875), vec2(-0.7291667, 1.9868216e-8));
    let w2 = poly2(y, ds(0.17578125), ds(-1.8046875), vec2(2.172309, 1.05963814e-7));
    let w3 = poly3(y, ds(0.25634766), vec2(-4.90166, -1.9073487e-7), vec2(13.84847, 3.1789145e-7),
        vec2(-9.745219, -4.35629e-7));
    let w4 = poly4(y, ds(0.50468445), vec2(-15.366565, -1.9073487e-7), ds(74.70755), vec2(-117.67353, 3.1082718e-6),
        vec2(58.369804, 9.105039e-7));
    var sum = ds_add_loose(w4, ds_mul_f32(r, rest));
    sum = ds_add_loose(w3, ds_mul(r, sum));
    sum = ds_add_loose(w2, ds_mul(r, sum));
    sum = ds_add_loose(w1, ds_mul(r, sum));
    return ds_add_f32(ds_mul(r, sum), 0.5);
}

// sum_{k>=5} of the expansion over r^5, rho = 25 r, in single: its value at y = 0 and y times a sum of Chebyshev polynomials in
// 2 y - 1, after Clenshaw, which alone would lose two digits near y = 0.
fn debye_w_rest(rho: f32, y: f32) -> f32 {
    let z = 2.0 * y - 1.0;
    let start = 1.249094 + rho * (0.14885035 + rho * (0.020733219 + rho * (0.0033045476 + rho * (0.00059054286
        + rho * (0.000117347685 + rho * (2.9639881e-5 + rho * 7.4150353e-6))))));
    let twice = 2.0 * z;
    let b13 = 5.4879845e-8 + rho * 1.1995043e-7;
    let b12 = twice * b13 + (-6.725249e-8 + rho * (-2.1901249e-7 + rho * (1.0248675e-6 + rho * (1.5054973e-6
        + rho * (-1.8873482e-6 + rho * -2.1342728e-6)))));
    let b11 = twice * b12 - b13 + (-4.134667e-8 + rho * (-1.08210614e-7 + rho * (1.2716185e-6 + rho * (1.3926865e-6
        + rho * (-5.9493323e-6 + rho * (-4.7275516e-6 + rho * (8.303629e-6 + rho * 7.919598e-6)))))));
    let b10 = twice * b11 - b12 + (8.662921e-8 + rho * (1.8182087e-7 + rho * (-2.6962077e-6 + rho * (-2.3569135e-6
        + rho * (1.2874213e-5 + rho * (8.098651e-6 + rho * (-3.1686486e-5 + rho * -2.1969588e-5)))))));
    let b9 = twice * b10 - b11 + (5.8898806e-9 + rho * (-2.6247835e-7 + rho * (-2.895484e-7 + rho * (3.4149966e-6
        + rho * (2.2584056e-6 + rho * (6.645577e-5 + rho * (5.6216304e-5 + rho * (4.548436e-5
        + rho * 1.9218702e-5))))))));
    let b8 = twice * b9 - b10 + (-7.3397186e-9 + rho * (3.4438816e-7 + rho * (3.611537e-7 + rho * (-4.4897733e-6
        + rho * (-0.0005247175 + rho * (-0.0003308335 + rho * (-0.0001409045 + rho * (-7.397982e-5
        + rho * -2.7267084e-5))))))));
    let b7 = twice * b8 - b9 + (8.789559e-9 + rho * (-4.263526e-7 + rho * (-4.3275912e-7 + rho * (0.003872793
        + rho * (0.0021061525 + rho * (0.0007506879 + rho * (0.00024107345 + rho * (0.000103584156
        + rho * 3.5370234e-5))))))));
    let b6 = twice * b7 - b8 + (-1.0239401e-8 + rho * (5.0831585e-7 + rho * (-0.032240387 + rho * (-0.014054937
        + rho * (-0.004354638 + rho * (-0.0012172137 + rho * (-0.00034342578 + rho * (-0.00013324566
        + rho * -4.3473396e-5))))))));
    let b5 = twice * b6 - b7 + (1.1689243e-8 + rho * (0.30722967 + rho * (0.10436993 + rho * (0.027053323
        + rho * (0.006726997 + rho * (0.0016866861 + rho * (0.00044577653 + rho * (0.00016290572
        + rho * 5.1576604e-5))))))));
    let b4 = twice * b5 - b6 + (-3.4163058 + rho * (-0.87352973 + rho * (-0.18734398 + rho * (-0.040278558
        + rho * (-0.009099092 + rho * (-0.0021560718 + rho * (-0.00054813025 + rho * (-0.00019256586
        + rho * -5.96798e-5))))))));
    let b3 = twice * b4 - b5 + (8.375459 + rho * (1.4710239 + rho * (0.2702245 + rho * (0.053496726
        + rho * (0.011471444 + rho * (0.002625462 + rho * (0.00065048324 + rho * (0.00022222601
        + rho * 6.7783e-5))))))));
    let b2 = twice * b3 - b4 + (-13.409855 + rho * (-2.0654573 + rho * (-0.35318312 + rho * (-0.06671436
        + rho * (-0.013843739 + rho * (-0.0030948534 + rho * (-0.0007528364 + rho * (-0.00025188614
        + rho * -7.58862e-5))))))));
    let b1 = twice * b2 - b3 + (18.361803 + rho * (2.6617107 + rho * (0.43609437 + rho * (0.07992037
        + rho * (0.016216032 + rho * (0.0036100058 + rho * (0.0008551895 + rho * (0.00022053017 + rho * (8.39894e-5
        + rho * 2.7118276e-5)))))))));
    return start + y * (z * b1 - b2 + (-11.702536 + rho * (-1.6281319 + rho * (-0.25952113 + rho * (-0.046575397
        + rho * (-0.009294172 + rho * (-0.0020168172 + rho * (-0.0004787713 + rho * (-0.00015560321
        + rho * -4.60463e-5)))))))));
}

// 1/2 + sum r^k v_k, v_k = (1/2 + k) p_k - 2 (1 - y) dp_k/dy for p_k(y) = U_k / t^k; |r| <= 1/34
fn debye_v(r: vec2<f32>, y: vec2<f32>) -> vec2<f32> {
    let rest = debye_v_rest(34.0 * r.x, y.x);
    let v1 = poly1(y, vec2(0.6041667, -1.9868216e-8), vec2(-0.7291667, 1.9868216e-8));
    let v2 = poly2(y, vec2(0.97786456, 1.9868216e-8), vec2(-3.141493, 2.6490953e-8), vec2(2.172309, 1.05963814e-7));
    let v3 = poly3(y, vec2(2.0387695, 4.7683717e-8), vec2(-12.287511, 2.1192763e-8), vec2(20.003345, 1.4128508e-7),
        vec2(-9.745219, -4.35629e-7));
    let v4 = poly4(y, vec2(5.232858, 9.536743e-8), vec2(-50.52306, 7.6293946e-7), vec2(141.94957, -3.9559823e-6),
        vec2(-155.0302, -5.7141965e-6), vec2(58.369804, 9.105039e-7));
    var sum = ds_add_loose(v4, ds_mul_f32(r, rest));
    sum = ds_add_loose(v3, ds_mul(r, sum));
    sum = ds_add_loose(v2, ds_mul(r, sum));
    sum = ds_add_loose(v1, ds_mul(r, sum));
    return ds_add_f32(ds_mul(r, sum), 0.5);
}

// sum_{k>=5} of the expansion over r^5, rho = 34 r, in single: its value at y = 0 and y times a sum of Chebyshev polynomials in
// 2 y - 1, after Clenshaw, which alone would lose two digits near y = 0.
fn debye_v_rest(rho: f32, y: f32) -> f32 {
    let z = 2.0 * y - 1.0;
    let start = 15.986683 + rho * (1.6677709 + rho * (0.19821906 + rho * (0.026426233 + rho * (0.003908501
        + rho * (0.000676802 + rho * 0.00012246825)))));
    let twice = 2.0 * z;
    let b9 = -3.017543e-6 + rho * (-9.459214e-6 + rho * (1.765177e-5 + rho * 3.3420893e-5));
    let b8 = twice * b9 + (-2.18217e-6 + rho * (-2.787912e-6 + rho * (3.83386e-5 + rho * (2.1866352e-5
        + rho * (-0.00024991707 + rho * -0.00016056158)))));
    let b7 = twice * b8 - b9 + (-1.1726841e-7 + rho * (5.3911963e-6 + rho * (3.7134414e-6 + rho * (0.0014949513
        + rho * (0.0009958395 + rho * (0.0004946794 + rho * 0.0001658337))))));
    let b6 = twice * b7 - b8 + (1.7987777e-7 + rho * (-9.018824e-6 + rho * (-0.01743698 + rho * (-0.0095296865
        + rho * (-0.003320679 + rho * (-0.0011181838 + rho * -0.00031132568))))));
    let b5 = twice * b6 - b7 + (-2.5689187e-7 + rho * (0.22591828 + rho * (0.10183924 + rho * (0.029920718
        + rho * (0.007590513 + rho * (0.0020596008 + rho * 0.0005097717))))));
    let b4 = twice * b5 - b6 + (-3.4163053 + rho * (-1.228452 + rho * (-0.30107087 + rho * (-0.06549429
        + rho * (-0.013923489 + rho * (-0.0033221517 + rho * -0.00076120597))))));
    let b3 = twice * b4 - b5 + (17.19173 + rho * (3.4261854 + rho * (0.6317001 + rho * (0.11666502
        + rho * (0.02232356 + rho * (0.0049057254 + rho * 0.0010656265))))));
    let b2 = twice * b3 - b4 + (-45.148438 + rho * (-6.9051843 + rho * (-1.0944407 + rho * (-0.18341468
        + rho * (-0.03279045 + rho * (-0.006810341 + rho * -0.0014230335))))));
    let b1 = twice * b2 - b3 + (87.51575 + rho * (11.660223 + rho * (1.6892307 + rho * (0.2660932
        + rho * (0.045324184 + rho * (0.008343897 + rho * (0.0018334269 + rho * 0.00039548322)))))));
    return start + y * (z * b1 - b2 + (-72.13373 + rho * (-8.846485 + rho * (-1.208039 + rho * (-0.18183048
        + rho * (-0.029962383 + rho * (-0.005791341 + rho * -0.0011484034)))))));
}
// ---- s < 25: I ----

// sum_{k>=1} q^k / (k! (v+1)..(v+k)), q = x^2/4
fn power_series(v: vec2<f32>, x: vec2<f32>) -> vec2<f32> {
    let q = 0.25 * ds_square(x);
    var term = ds(1.0);
    var sum = ds(0.0);
    for (var k = 1u; k <= 48u; k++) {
        let factor = ds_div(q, ds_mul_f32(ds_add_f32(v, f32(k)), f32(k)));
        term = ds_mul(term, factor);
        sum = ds_add(sum, term);
        if term.x <= 1e-16 * sum.x { break; }
    }
    return sum;
}

// ln Gamma(1+v) - (v + 1/2) ln(1+v) + v, 0 <= v <= 34: what Stirling's formula leaves, 0 at v = 0
fn stirling_rest(v: vec2<f32>) -> vec2<f32> {
    let w = ds_div(v, ds_add_f32(v, 1.0));
    var p = vec2(3.3917004e-5, -7.502747e-15);
    p = ds_add_loose(vec2(-0.00028453354, -1.10979385e-11), ds_mul(w, p));
    p = ds_add_loose(vec2(0.0010945346, -2.6722059e-11), ds_mul(w, p));
    p = ds_add_loose(vec2(-0.002568501, 3.0162754e-11), ds_mul(w, p));
    p = ds_add_loose(vec2(0.0041168346, -5.2479986e-11), ds_mul(w, p));
    p = ds_add_loose(vec2(-0.0047744275, -1.3356084e-10), ds_mul(w, p));
    p = ds_add_loose(vec2(0.0041403826, -3.3185836e-11), ds_mul(w, p));
    p = ds_add_loose(vec2(-0.0027343142, -9.958898e-11), ds_mul(w, p));
    p = ds_add_loose(vec2(0.0013878102, 5.744414e-11), ds_mul(w, p));
    p = ds_add_loose(vec2(-0.0005439563, -7.427003e-12), ds_mul(w, p));
    p = ds_add_loose(vec2(0.00015999876, -7.761814e-14), ds_mul(w, p));
    p = ds_add_loose(vec2(-4.2366504e-5, 1.7571438e-12), ds_mul(w, p));
    p = ds_add_loose(vec2(-4.6598822e-7, -1.6696381e-15), ds_mul(w, p));
    p = ds_add_loose(vec2(-1.2648798e-6, 1.0984325e-14), ds_mul(w, p));
    p = ds_add_loose(vec2(3.4065695e-5, -1.7373579e-12), ds_mul(w, p));
    p = ds_add_loose(vec2(0.00014300791, 3.5436058e-13), ds_mul(w, p));
    p = ds_add_loose(vec2(0.00037600743, 1.0577472e-11), ds_mul(w, p));
    p = ds_add_loose(vec2(0.0003661009, -4.9625937e-12), ds_mul(w, p));
    p = ds_add_loose(vec2(-0.0047486313, -2.0866132e-10), ds_mul(w, p));
    p = ds_add_loose(vec2(-0.077215664, -8.128068e-10), ds_mul(w, p));
    return ds_mul(w, p);
}
// Down from orders w + 1 and w = v + steps, where the expansion holds, by I_{j-1} = I_{j+1} + (2j/x) I_j; no step where s >= 25.
// I_v / I_w stays below 1e15 for x > 8.
struct Descent {
    top: Debye,             // at w
    steps: f32,
    log_growth: vec2<f32>,  // ln(I_v / I_w)
}

fn descend(v: vec2<f32>, x: vec2<f32>, s: vec2<f32>) -> Descent {
    let missing = max(sqrt(max(625.0 - x.x * x.x, 0.0)) - v.x, 0.0) + 1.0;
    let steps = select(0u, u32(missing), s.x < 25.0);
    let top = debye(ds_add_f32(v, f32(steps)), x);
    var here = ds(1.0);
    if steps > 0u {
        let twice_over_x = ds_div(ds(2.0), x);
        var above = debye_ratio(top, x);
        for (var j = steps; j > 0u; j--) {
            let order = ds_add_f32(v, f32(j));
            let below = ds_add(above, ds_mul(ds_mul(order, twice_over_x), here));
            above = here;
            here = below;
        }
    }
    return Descent(top, f32(steps), ds_log(here));
}

fn log_iv(v: vec2<f32>, x: vec2<f32>, s: vec2<f32>) -> vec2<f32> {
    if s.x < 25.0 && x.x <= 8.0 {
        // v ln(x/2) - ln Gamma(1+v), with v (ln z - 1) of the second merged into the first: no cancellation near v = 0
        let z = ds_add_f32(v, 1.0);
        let merged = ds_mul(v, ds_add_f32(ds_log(ds_div(0.5 * x, z)), 1.0));
        let power = ds_sub(ds_sub(merged, 0.5 * ds_log1p(v)), stirling_rest(v));
        return ds_add(power, ds_log1p(power_series(v, x)));
    }
    let down = descend(v, x, s);
    let e = down.top;
    let rest = ds_sub(ds_add(0.5 * ds_log(e.s), HALF_LN_2PI), log1p_small(e.u));
    return ds_add(ds_sub(ds_sub(e.s, ds_mul(e.v, asinh_ratio(e.v, x, e.s))), rest), down.log_growth);
}

struct Ratio {
    ratio: vec2<f32>,      // A = I_{v+1} / I_v
    complement: vec2<f32>, // 1 - A, from positive terms
}

fn ratios(v: vec2<f32>, x: vec2<f32>) -> Ratio {
    let s = hypot(v, x);
    if s.x < 25.0 {
        return recur_ratio(v, x);
    }
    let correction = debye_dx(ds_inverse(s), v, x);
    let lead = ds_div(ds_mul(v, ds_add_f32(ds_div(v, ds_add(s, x)), 1.0)), ds_add(s, v));
    return Ratio(ds_sub(ds_div(x, ds_add(v, s)), correction), ds_add(lead, correction));
}

// With a = v + 1/2, sigma = hypot(a, x), b = a + sigma: A = x / (b + d). From x/A_v = 2(v+1) + x A_{v+1},
// d_v = 2(v+1) / (sigma_v + sigma_{v+1}) - x^2 d_{v+1} / (b_{v+1} (b_{v+1} + d_{v+1})); d is small, so its error hardly
// shows, and a step down shrinks it by A^2: in single, from d = a b / (2 sigma^2), its first term, as far down as what is
// left of single's error is below 2^-48 at v; the rest in pairs.
fn recur_ratio(v: vec2<f32>, x: vec2<f32>) -> Ratio {
    var d = 0.0;
    let pairs = u32(sqrt(17.0 * x.x)) + 3u;
    {
        let square = x.x * x.x;
        var j = max(pairs, u32(x.x) + 12u);
        var a = v.x + (f32(j) + 0.5);
        var sigma = sqrt(a * a + square);
        var b = a + sigma;
        d = 0.5 * (a / sigma) * (b / sigma);
        while j > pairs {
            j--;
            let above = sigma;
            let tail = square * d / (b * (b + d));
            a = v.x + (f32(j) + 0.5);
            sigma = sqrt(a * a + square);
            b = a + sigma;
            d = (2.0 * a + 1.0) / (sigma + above) - tail;
        }
    }
    let square = ds_square(x);
    var a = ds_add_f32(v, f32(pairs) + 0.5);
    var sigma = ds_sqrt(ds_add(ds_square(a), square));
    var b = ds_add(a, sigma);
    var rest = ds(d);
    for (var j = pairs; j > 0u; j--) {
        let above = sigma;
        let tail = ds_div(ds_mul(square, rest), ds_mul(b, ds_add(b, rest)));
        a = ds_add_f32(v, f32(j) - 0.5);
        sigma = ds_sqrt(ds_add(ds_square(a), square));
        b = ds_add(a, sigma);
        rest = ds_sub(ds_div(ds_add_f32(2.0 * a, 1.0), ds_add(sigma, above)), tail);
    }
    let whole = ds_add(b, rest);
    let gap = ds_add(ds_add(a, ds_div(ds_square(a), ds_add(sigma, x))), rest);
    return Ratio(ds_div(x, whole), ds_div(gap, whole));
}

// d/dv ln I_v = d/dv ln I_{v+n} less those of the ratios between, n the orders to where the expansion holds (none for
// s >= 34), by the recurrences 1/A_v = 2(v+1)/x + A_{v+1} and (ln A_v)' = -A_v (2/x + A_{v+1} (ln A_{v+1})'), whose errors
// A^2 shrinks from step to step
fn log_iv_dv(v: vec2<f32>, x: vec2<f32>, s: vec2<f32>) -> vec2<f32> {
    if v.x == 0.0 && s.x >= 34.0 {
        // -K_0 / I_0, below e^-66; the expansion would give 0
        return ds(-3.1415927 * exp(-2.0 * x.x) * (1.0 - 0.25 / x.x));
    }
    let missing = max(sqrt(max(1156.0 - x.x * x.x, 0.0)) - v.x, 0.0) + 1.0;
    let steps = select(0u, u32(missing), s.x < 34.0);
    // -d/dv ln I at order w = v + n, and d/dv ln A there, the difference from that of the order above. A loop, for the size of the code.
    var fall = ds(0.0);
    var slope = ds(0.0);
    var top: Debye;
    for (var above = 2u; above > 0u;) {
        above--;
        top = debye(ds_add_f32(v, f32(steps + above)), x);
        let correction = ds_mul(ds_mul(top.v, ds_square(top.r)), ds_div(debye_v(top.r, top.y), ds_add_f32(top.u, 1.0)));
        let here = ds_add(asinh_ratio(top.v, x, top.s), correction);
        slope = ds_sub(here, fall);
        fall = here;
    }
    if steps > 0u {
        let twice_over_x = ds_div(ds(2.0), x);
        var ratio = debye_ratio(top, x);
        var sum = ds(0.0); // from the smallest slope on
        for (var j = steps; j > 0u; j--) {
            let below = ds_inverse(ds_add(ds_mul(ds_add_f32(v, f32(j)), twice_over_x), ratio));
            slope = -ds_mul(below, ds_add(twice_over_x, ds_mul(ratio, slope)));
            sum = ds_add(sum, slope);
            ratio = below;
        }
        fall = ds_add(fall, sum);
    }
    return -fall;
}

// ---- s < 25 (d/dv: 34): K ----

struct Kv {
    log: vec2<f32>,
    dx: vec2<f32>,
    dv: vec2<f32>,
}

// K_v(x) = int_0^inf exp(-x cosh t) cosh(v t) dt by the trapezoid rule, which converges exponentially. With t = t0 + u
// the exponent falls from its peak v t0 - s by E(u) = d (cosh u - 1) + v (e^u - 1 - u), d = s - v, all positive. The
// nodes span where E < 35; (ln K)' = -mean of cosh t, d/dv ln K = mean of t tanh(v t).
fn integrate_kv(v: vec2<f32>, x: vec2<f32>, s: vec2<f32>) -> Kv {
    let t0 = asinh_ratio(v, x, s);
    let s_and_v = ds_add(s, v);
    let d = ds_mul(x, ds_div(x, s_and_v));
    let qd = 35.0 / d.x;
    let qv = 35.0 / max(v.x, 1e-18);
    // each bound keeps one of E's two terms, with e^u - 1 - u >= u^2/2 and e^-u - 1 + u >= u^2 / (2 + u)
    let reach = log(1.0 + qd + sqrt(qd) * sqrt(qd + 2.0));
    let high = min(reach, log(1.0 + qv + log(1.0 + qv + sqrt(2.0 * qv))));
    let low = min(reach, 0.5 * qv + sqrt(0.25 * qv * qv + 2.0 * qv));
    // nodes t = step k, with u taken from the node next to the peak: u near 0 keeps its accuracy where t0 is large
    let step = 0.55 / sqrt(s.x + 4.0);
    let peak = floor(t0.x / step + 0.5);
    let rest = ds_sub(t0, two_product(step, peak));
    let first = u32(max(peak - low / step, 0.0));
    let grown = ds_div(s_and_v, x); // e^t0
    var sum = ds(0.0);
    var sum_dx = ds(0.0);
    var sum_dv = ds(0.0);
    for (var k = u32(peak + high / step) + 2u; k > first;) {
        k--;
        let t = two_product(step, f32(k));
        let u = ds_sub(two_product(step, f32(k) - peak), rest);
        // e^u and e^u - 1, the second accurate near u = 0, the first where it is small
        var e: vec2<f32>;
        var more: vec2<f32>;
        if abs(u.x) < 0.35 {
            more = ds_expm1_reduced(u);
            e = ds_add_f32(more, 1.0);
        } else {
            e = ds_exp(u);
            more = ds_add_f32(e, -1.0);
        }
        // cosh u - 1 = (e^u - 1)^2 / (2 e^u)
        let bend = ds_div(ds_square(more), e);
        let fall = ds_add(0.5 * ds_mul(d, bend), ds_mul(v, ds_sub(more, u)));
        var weight = ds_exp(-fall);
        if k == 0u { weight = 0.5 * weight; }
        // 1 - e^{-2 v t} without cancellation
        let shrunk = -ds_expm1(-2.0 * ds_mul(v, t));
        let both = ds_mul(weight, ds_sub(ds(2.0), shrunk));
        sum = ds_add(sum, both);
        if FUNCTION == LOG_KV_DX {
            let cosh_twice = ds_add(ds_mul(e, grown), ds_inverse(ds_mul(e, grown)));
            sum_dx = ds_add(sum_dx, ds_mul(both, cosh_twice));
        }
        if FUNCTION == LOG_KV_DV {
            sum_dv = ds_add(sum_dv, ds_mul(weight, ds_mul(t, shrunk)));
        }
    }
    let log_sum = ds_log(ds_mul_f32(sum, 0.5 * step));
    let peak_log = ds_sub(ds_mul(v, t0), s);
    return Kv(ds_add(peak_log, log_sum), -0.5 * ds_div(sum_dx, sum), ds_div(sum_dv, sum));
}

// ---- what bessel.wgsl asks ----

fn order_in_domain(v: vec2<f32>) -> bool {
    return ds_is_finite_nonnegative(v) && ds_less_equal(v, ds(1e7));
}

fn argument_in_domain(x: vec2<f32>) -> bool {
    let inside = ds_less_equal(vec2(1e-15, -3.6274936e-24), x) && ds_less_equal(x, ds(1e9)); // 1e-15
    return ds_is_finite_nonnegative(x) && (x.x == 0.0 || inside);
}

// 0 for -0
fn magnitude(value: vec2<f32>) -> vec2<f32> {
    return select(value, ds(0.0), value.x == 0.0);
}

fn not_a_number() -> vec2<f32> {
    return vec2(nan_f32(), 0.0);
}
