// The arithmetic of kernels written over any Real, in pairs of f32. Needs double_single.wgsl.

fn load(stored: vec2<f32>) -> vec2<f32> {
    return stored;
}

fn store(value: vec2<f32>) -> vec2<f32> {
    return value;
}

fn real(value: f32) -> vec2<f32> {
    return vec2(value, 0.0);
}

fn single(value: vec2<f32>) -> f32 {
    return value.x;
}

fn add(a: vec2<f32>, b: vec2<f32>) -> vec2<f32> {
    return ds_add(a, b);
}

fn mul(a: vec2<f32>, b: vec2<f32>) -> vec2<f32> {
    return ds_mul(a, b);
}

fn mul_f32(a: vec2<f32>, b: f32) -> vec2<f32> {
    return ds_mul_f32(a, b);
}

// sum + a b
fn add_product(sum: vec2<f32>, a: f32, b: f32) -> vec2<f32> {
    return ds_add(sum, two_product(a, b));
}

fn div(a: vec2<f32>, b: vec2<f32>) -> vec2<f32> {
    return ds_div(a, b);
}

fn root(a: vec2<f32>) -> vec2<f32> {
    return ds_sqrt(a);
}

// The rounding that a step of Newton's may leave.
fn rounding() -> vec2<f32> {
    return vec2(4e-14, 0.0);
}

// sigma = hypot(d/2, kappa) beyond which rounding costs 1 - A^2 - (d-1) A / kappa more than the leading term of its expansion lacks
fn far() -> f32 {
    return 4e6;
}

// 1e12
fn largest_kappa() -> vec2<f32> {
    return vec2(999999995904.0, 4096.0);
}

fn less_equal(a: vec2<f32>, b: vec2<f32>) -> bool {
    return ds_less_equal(a, b);
}

fn is_zero(a: vec2<f32>) -> bool {
    return a.x == 0.0;
}
