// x_steps of x_{k+1} = x_k / 2 + 1 from x_0 = i / 2^16 for every invocation i, in the arithmetic that `chain` has: how long it takes decides
// which arithmetic an adapter uses for extended precision. As many invocations as fill it; out[i % slots] takes one of their results.
// Shared: double_single.wgsl and double_single/rate_pairs.wgsl, or double_single/rate_f64.wgsl. The host appends const WORKGROUP: u32.

struct Params {
    zero: u32, // 0
    count: u32,
    steps: u32,
    slots: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> out: array<vec2<f32>>; // (slots)

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x < params.count {
        // The half comes from the host's zero, so that no compiler can fold the chain.
        out[id.x % params.slots] = chain(f32(id.x) / 65536.0, 0.5 + f32(params.zero), params.steps);
    }
}
