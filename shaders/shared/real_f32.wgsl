// The arithmetic of kernels written over any Real, in f32.

fn load(stored: f32) -> f32 {
    return stored;
}

fn store(value: f32) -> f32 {
    return value;
}

fn real(value: f32) -> f32 {
    return value;
}

fn single(value: f32) -> f32 {
    return value;
}

fn add(a: f32, b: f32) -> f32 {
    return a + b;
}

fn mul(a: f32, b: f32) -> f32 {
    return a * b;
}

fn div(a: f32, b: f32) -> f32 {
    return a / b;
}

// The rounding that a step of Newton's may leave.
fn rounding() -> f32 {
    return 2e-7;
}

// sigma = hypot(d/2, kappa) beyond which rounding costs 1 - A^2 - (d-1) A / kappa more than the leading term of its expansion lacks
fn far() -> f32 {
    return 1000.0;
}

// 1e12
fn largest_kappa() -> f32 {
    return 1e12;
}

fn less_equal(a: f32, b: f32) -> bool {
    return a <= b;
}

fn is_zero(a: f32) -> bool {
    return a == 0.0;
}
