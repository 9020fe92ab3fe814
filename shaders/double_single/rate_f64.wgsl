// The chain of rate.wgsl in f64 (SHADER_F64).
fn chain(start: f32, factor: f32, steps: u32) -> vec2<f32> {
    var x = f64(start);
    let scale = f64(factor);
    for (var k = 0u; k < steps; k++) {
        x = x * scale + 1.0lf;
    }
    let high = f32(x);
    return vec2(high, f32(x - f64(high)));
}
