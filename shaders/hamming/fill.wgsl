// out[i] = value: what lists hold where there are fewer entries than places.

struct Params {
    words: u32,
    value: u32,
    groups_x: u32,
    pad0: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> out: array<u32>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let at = (group.y * params.groups_x + group.x) * 256u + lane;
    if at < params.words {
        out[at] = params.value;
    }
}
