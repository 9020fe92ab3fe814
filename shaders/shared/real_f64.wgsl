// The arithmetic of kernels written over any Real, in f64.

fn real(value: f32) -> f64 {
    return f64(value);
}

fn single(value: f64) -> f32 {
    return f32(value);
}

fn add(a: f64, b: f64) -> f64 {
    return a + b;
}

fn mul(a: f64, b: f64) -> f64 {
    return a * b;
}

fn mul_f32(a: f64, b: f32) -> f64 {
    return a * f64(b);
}

// sum + a b
fn add_product(sum: f64, a: f32, b: f32) -> f64 {
    return sum + f64(a) * f64(b);
}

fn div(a: f64, b: f64) -> f64 {
    return a / b;
}

fn root(a: f64) -> f64 {
    return sqrt(a);
}

// The rounding that a step of Newton's may leave.
fn rounding() -> f64 {
    return 4e-16lf;
}

// sigma = hypot(d/2, kappa) beyond which rounding costs 1 - A^2 - (d-1) A / kappa more than the leading term of its expansion lacks
fn far() -> f32 {
    return 4e7;
}

// 1e12
fn largest_kappa() -> f64 {
    return 1e12lf;
}

fn less_equal(a: f64, b: f64) -> bool {
    return a <= b;
}

fn is_zero(a: f64) -> bool {
    return a == 0.0;
}
