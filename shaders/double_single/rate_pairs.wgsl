// The chain of rate.wgsl in pairs of f32. Needs double_single.wgsl.
fn chain(start: f32, factor: f32, steps: u32) -> vec2<f32> {
    var x = vec2(start, 0.0);
    let scale = vec2(factor, 0.0);
    for (var k = 0u; k < steps; k++) {
        x = ds_add(ds_mul(x, scale), vec2(1.0, 0.0));
    }
    return x;
}
