// Double-single arithmetic: a value is the unevaluated sum of two f32, vec2(high, low), |low| <= ulp(high) / 2: 48 bits and
// more, with the exponents of f32 (a value below 2^-77, 7e-24, may lose low bits to underflow). u = 2^-24 in the bounds,
// which hold where f32 addition and multiplication round to nearest; division may err by 5 u, sqrt by 9 u.
//
// An optimiser that treats floats as real numbers turns every error term into 0. What it must not see through passes an
// opaque identity: an xor with params.zero, 0 at run time, in the uniform of the kernel. The host appends
//   const GUARD: u32 = 1u;  guards the sums of two-sums and the products of two-products; 2 every step; 0 none
// and takes the least that the self-test (double_single/check.wgsl) passes with on the adapter at hand. Two constants must
// not be added even so: compilers join them first. fma is no help: drivers do not fuse it.
//
// Sources: Knuth, TAOCP 4.2.2; Dekker 1971; bounds: Joldes, Muller, Popescu 2017 (ACM TOMS 44, 15res), algorithms 4, 6, 7, 10.

// Without a branch: a thousand inlined returns keep a driver's compiler busy for seconds.
const SUMS: u32 = ((GUARD & 1u) | (GUARD >> 1u)) * 0xffffffffu;
const STEPS: u32 = (GUARD >> 1u) * 0xffffffffu;

fn guarded(value: f32) -> f32 {
    return bitcast<f32>(bitcast<u32>(value) ^ (params.zero & SUMS));
}

fn held(value: f32) -> f32 {
    return bitcast<f32>(bitcast<u32>(value) ^ (params.zero & STEPS));
}

// high + low = a + b exactly. 6 operations and the guard. Knuth.
fn two_sum(a: f32, b: f32) -> vec2<f32> {
    let sum = guarded(a + b);
    let b_part = held(sum - a);
    let a_part = held(sum - b_part);
    let a_rest = held(a - a_part);
    let b_rest = held(b - b_part);
    return vec2(sum, a_rest + b_rest);
}

// The same for |a| >= |b| or a = 0. 3 operations. Dekker.
fn quick_two_sum(a: f32, b: f32) -> vec2<f32> {
    let sum = guarded(a + b);
    let b_part = held(sum - a);
    return vec2(sum, b - b_part);
}

// high + low = a b exactly where no part underflows. 15 operations. Dekker, split by a mask: 12 bits a half, so that no product of two
// halves rounds, nor any partial sum in this order.
fn two_product(a: f32, b: f32) -> vec2<f32> {
    let product = guarded(a * b);
    let a_high = bitcast<f32>(bitcast<u32>(a) & 0xfffff000u);
    let b_high = bitcast<f32>(bitcast<u32>(b) & 0xfffff000u);
    let a_low = held(a - a_high);
    let b_low = held(b - b_high);
    let first = held(a_high * b_high - product);
    let second = held(first + a_high * b_low);
    let third = held(second + a_low * b_high);
    return vec2(product, third + a_low * b_low);
}

fn ds(value: f32) -> vec2<f32> {
    return vec2(value, 0.0);
}

// ---- comparison: of normalised values the high words decide, the low ones where those are equal ----

fn ds_less(a: vec2<f32>, b: vec2<f32>) -> bool {
    return a.x < b.x || (a.x == b.x && a.y < b.y);
}

fn ds_less_equal(a: vec2<f32>, b: vec2<f32>) -> bool {
    return a.x < b.x || (a.x == b.x && a.y <= b.y);
}

fn ds_max(a: vec2<f32>, b: vec2<f32>) -> vec2<f32> {
    return select(a, b, ds_less(a, b));
}

fn ds_min(a: vec2<f32>, b: vec2<f32>) -> vec2<f32> {
    return select(b, a, ds_less(a, b));
}

// ---- arithmetic ----

// Relative error 3 u^2, 20 operations. Algorithm 6.
fn ds_add(a: vec2<f32>, b: vec2<f32>) -> vec2<f32> {
    let high = two_sum(a.x, b.x);
    let low = two_sum(a.y, b.y);
    let first = quick_two_sum(high.x, high.y + low.x);
    return quick_two_sum(first.x, low.y + first.y);
}

fn ds_sub(a: vec2<f32>, b: vec2<f32>) -> vec2<f32> {
    return ds_add(a, -b);
}

// a + b with an error of 4 u^2 (|a| + |b|), that of operands which are rounded themselves: 11 operations. Dekker's sum.
fn ds_add_loose(a: vec2<f32>, b: vec2<f32>) -> vec2<f32> {
    let sum = two_sum(a.x, b.x);
    return quick_two_sum(sum.x, sum.y + (a.y + b.y));
}

// a + b, 2 u^2, 10 operations. Algorithm 4.
fn ds_add_f32(a: vec2<f32>, b: f32) -> vec2<f32> {
    let sum = two_sum(a.x, b);
    return quick_two_sum(sum.x, a.y + sum.y);
}

// 5 u^2, 22 operations. Algorithm 10.
fn ds_mul(a: vec2<f32>, b: vec2<f32>) -> vec2<f32> {
    let product = two_product(a.x, b.x);
    return quick_two_sum(product.x, product.y + (a.x * b.y + a.y * b.x));
}

// a b, 2 u^2, 19 operations. Algorithm 7, its last two sums in one.
fn ds_mul_f32(a: vec2<f32>, b: f32) -> vec2<f32> {
    let product = two_product(a.x, b);
    return quick_two_sum(product.x, product.y + a.y * b);
}

fn ds_square(a: vec2<f32>) -> vec2<f32> {
    let product = two_product(a.x, a.x);
    return quick_two_sum(product.x, product.y + 2.0 * (a.x * a.y));
}

// a 2^k for -126 <= k <= 127, exact but for underflow.
fn ds_scale(a: vec2<f32>, k: i32) -> vec2<f32> {
    return a * bitcast<f32>(u32(k + 127) << 23u);
}

// 15 u^2, 32 operations: a quotient and that of what it leaves, which is corrected for devices whose division errs by 5 u.
fn ds_div(a: vec2<f32>, b: vec2<f32>) -> vec2<f32> {
    let first = a.x / b.x;
    let product = two_product(first, b.x);
    let rest = (held(a.x - product.x) - product.y) + (a.y - first * b.y);
    let second = rest / b.x;
    return quick_two_sum(first, second + (rest - second * b.x) / b.x);
}

// 1 / b, as ds_div(1, b)
fn ds_inverse(b: vec2<f32>) -> vec2<f32> {
    return ds_div(vec2(1.0, 0.0), b);
}

// sqrt(a), a >= 0. 8 u^2, 55 operations: two steps of Newton's, the second for devices whose sqrt errs by 9 u.
fn ds_sqrt(a: vec2<f32>) -> vec2<f32> {
    let root = sqrt(max(a.x, 1e-37));
    let half = 0.5 / root;
    let square = two_product(root, root);
    let first = quick_two_sum(root, ((held(a.x - square.x) - square.y) + a.y) * half);
    let better = ds_square(first);
    let second = quick_two_sum(first.x, first.y + (held(a.x - better.x) + (a.y - better.y)) * half);
    return select(second, vec2(0.0, 0.0), a.x <= 0.0);
}

// ---- log and exp ----

// ln 2 = A + B: A has 16 bits, so that an exponent times it is exact
const LN2_A: f32 = 0.693145751953125;
const LN2_B: vec2<f32> = vec2(1.4286068e-06, 5.497923e-14);

// ln(1 + f) for 1 + f in [sqrt(1/2), sqrt(2)], plus k ln 2; 12 u^2 of the result. 2 artanh(s), s = f / (2 + f) (DLMF 4.6.4).
fn ds_log_reduced(f: vec2<f32>, k: f32) -> vec2<f32> {
    let s = ds_div(f, ds_add_f32(f, 2.0));
    let z = ds_square(s);
    let high = 0.09090909 + z.x * (0.07692308 + z.x * (0.06666667 + z.x * (0.05882353 + z.x * 0.05263158)));
    var p = ds_add_loose(vec2(0.11111111, -8.278423e-10), ds(z.x * high));
    p = ds_add_loose(vec2(0.14285715, -6.386212e-09), ds_mul(z, p));
    p = ds_add_loose(vec2(0.2, -2.9802323e-09), ds_mul(z, p));
    p = ds_add_loose(vec2(0.33333334, -9.934108e-09), ds_mul(z, p));
    let twice = 2.0 * s;
    let log = ds_add_loose(twice, ds_mul(twice, ds_mul(z, p)));
    return ds_add_loose(ds_add_f32(ds_mul_f32(LN2_B, k), k * LN2_A), log);
}

// The exponent k that leaves value / 2^k in [sqrt(1/2), sqrt(2)]
fn ds_log_exponent(value: f32) -> i32 {
    return (bitcast<i32>(value) - 0x3f3504f3) >> 23u;
}

// ln(a) for a from 2e-38 to 1e38. 14 u^2 of max(|ln a|, |a - 1|), 420 operations.
fn ds_log(a: vec2<f32>) -> vec2<f32> {
    let k = ds_log_exponent(a.x);
    return ds_log_reduced(ds_add_f32(ds_scale(a, -clamp(k, -126, 126)), -1.0), f32(k));
}

// ln(1 + a) for a > -0.29, with the relative accuracy of a small value kept: 14 u^2.
fn ds_log1p(a: vec2<f32>) -> vec2<f32> {
    let one_more = ds_add_f32(a, 1.0);
    let k = ds_log_exponent(one_more.x);
    let f = ds_add_f32(ds_scale(one_more, -clamp(k, -126, 126)), -1.0);
    return ds_log_reduced(select(f, a, k == 0), f32(k));
}

// e^r - 1 for |r| <= 0.36, relative accuracy kept: 8 u^2, 330 operations. Taylor's series (DLMF 4.2.19), single from the eighth power on.
fn ds_expm1_reduced(r: vec2<f32>) -> vec2<f32> {
    let high = 2.4801588e-05 + r.x * (2.7557319e-06 + r.x * (2.755732e-07 + r.x * (2.5052108e-08 + r.x * 2.0876756e-09)));
    var p = ds_add_loose(vec2(0.0001984127, 2.7255969e-12), ds(r.x * high));
    p = ds_add_loose(vec2(0.0013888889, -3.3631094e-11), ds_mul(r, p));
    p = ds_add_loose(vec2(0.008333334, -4.346172e-10), ds_mul(r, p));
    p = ds_add_loose(vec2(0.041666668, -1.2417635e-09), ds_mul(r, p));
    p = ds_add_loose(vec2(0.16666667, -4.967054e-09), ds_mul(r, p));
    p = ds_add_f32(ds_mul(r, p), 0.5);
    return ds_add_loose(r, ds_mul(ds_square(r), p));
}

// r and k with a = r + k ln 2, |r| <= 0.35, for |a| <= 88
fn ds_exp_exponent(a: vec2<f32>) -> f32 {
    return floor(a.x * 1.442695 + 0.5);
}

fn ds_exp_reduce(a: vec2<f32>, k: f32) -> vec2<f32> {
    return ds_sub(ds_add_f32(a, -(k * LN2_A)), ds_mul_f32(LN2_B, k));
}

fn ds_exp_clamp(a: vec2<f32>) -> vec2<f32> {
    return select(a, ds(clamp(a.x, -87.0, 88.0)), a.x < -87.0 || a.x > 88.0);
}

// e^a, 0 below e^-87 and e^88 above that. 8 u^2 + 3 u^2 |a|, 400 operations.
fn ds_exp(a: vec2<f32>) -> vec2<f32> {
    let inside = ds_exp_clamp(a);
    let k = ds_exp_exponent(inside);
    let grown = ds_add_f32(ds_expm1_reduced(ds_exp_reduce(inside, k)), 1.0);
    return select(ds_scale(grown, clamp(i32(k), -126, 127)), vec2(0.0, 0.0), a.x < -87.0);
}

// e^a - 1, relative accuracy kept: 12 u^2 for |a| < 0.35, as e^a else; -1 below e^-87
fn ds_expm1(a: vec2<f32>) -> vec2<f32> {
    let k = select(0.0, ds_exp_exponent(ds_exp_clamp(a)), abs(a.x) >= 0.35);
    let reduced = ds_expm1_reduced(ds_exp_reduce(ds_exp_clamp(a), k));
    // 2^k (1 + reduced) - 1
    let scaled = ds_scale(ds_add_f32(reduced, 1.0), clamp(i32(k), -126, 127));
    return select(ds_add_f32(scaled, -1.0), reduced, k == 0.0);
}

// ---- conversion and limits ----

// Zero or positive and finite, seen from the bits: a compiler may assume that NaN and infinity do not exist.
fn ds_is_finite_nonnegative(a: vec2<f32>) -> bool {
    let high = bitcast<u32>(a.x);
    let low = bitcast<u32>(a.y) & 0x7fffffffu;
    return (high < 0x7f800000u || high == 0x80000000u) && low < 0x7f800000u;
}
