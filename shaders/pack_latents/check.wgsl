// status[finding] = 0xffffffff - the lowest index of an element of x whose magnitude is above `largest`, or that is not finite. One invocation an
// element. The host appends const HALF: u32 = 1u where x is pairs of f16, else 0u.

struct Params {
    elements: u32,
    x_offset: u32, // elements
    first: u32,    // index of the first element
    finding: u32,
    largest: u32,  // bits of an f32
    groups_x: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<u32>; // (elements)
@group(0) @binding(2) var<storage, read_write> status: array<atomic<u32>>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let index = (group.y * params.groups_x + group.x) * 64u + lane;
    if index >= params.elements {
        return;
    }
    let at = index + params.x_offset;
    var bad = false;
    if HALF == 1u {
        bad = ((x[at / 2u] >> (16u * (at % 2u))) & 0x7c00u) == 0x7c00u;
    } else {
        bad = (x[at] & 0x7fffffffu) > params.largest;
    }
    if bad {
        atomicMax(&status[params.finding], 0xffffffffu - (params.first + index));
    }
}
