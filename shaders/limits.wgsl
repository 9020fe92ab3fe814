// Two probes of a device's limits, elementwise over vectors of four: COPY reads and writes once, output = input; MULTIPLY_ADD stays in registers,
// y <- y * RATE + (1 - RATE), STEPS times. One workgroup takes 4 * WORKGROUP vectors, each invocation four: 16 chains hide the latency of an fma.
// The host appends
//   alias Real = f32; (or f64)    const WORKGROUP: u32 = 64u;    const STEPS: u32 = 512u;    const PROBE: u32 = COPY; (or MULTIPLY_ADD)
//   const COPY: u32 = 0u; MULTIPLY_ADD 1

struct Params {
    count: u32,    // vectors of this dispatch
    groups_x: u32, // workgroups in x
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> input: array<vec4<Real>>; // (count)
@group(0) @binding(2) var<storage, read_write> output: array<vec4<Real>>; // (count)

// 1 - 2^-10: exact in f32, with the fixed point 1
const RATE: f32 = 0.9990234375;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let first = (group.y * params.groups_x + group.x) * 4u * WORKGROUP + lane;
    let last = max(params.count, 1u) - 1u;
    let i = min(vec4<u32>(first) + vec4<u32>(0u, 1u, 2u, 3u) * WORKGROUP, vec4<u32>(last));
    var a = input[i.x];
    var b = input[i.y];
    var c = input[i.z];
    var d = input[i.w];
    if PROBE == MULTIPLY_ADD {
        let rate = vec4<Real>(Real(RATE));
        let rest = vec4<Real>(Real(1.0 - RATE));
        for (var step = 0u; step < STEPS; step++) {
            a = fma(a, rate, rest);
            b = fma(b, rate, rest);
            c = fma(c, rate, rest);
            d = fma(d, rate, rest);
        }
    }
    if first >= params.count {
        return;
    }
    // Indices past the end were moved to the last vector: they write there what its own invocation does.
    output[i.x] = a;
    output[i.y] = b;
    output[i.z] = c;
    output[i.w] = d;
}
