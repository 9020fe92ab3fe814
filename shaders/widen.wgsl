// out[i] = (values[i], 0): f32 as pairs of f32, exactly. One invocation an element: 4 bytes in, 8 out.

struct Params {
    count: u32,
    groups_x: u32,
    values_offset: u32, // elements into the bound window
    out_offset: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> values: array<f32>;          // (count)
@group(0) @binding(2) var<storage, read_write> out: array<vec2<f32>>; // (count)

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = (group.y * params.groups_x + group.x) * WORKGROUP + lane;
    if i < params.count {
        out[params.out_offset + i] = vec2(values[params.values_offset + i], 0.0);
    }
}
