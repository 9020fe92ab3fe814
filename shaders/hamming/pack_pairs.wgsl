// Rows of u16 that begin at whole words, closed up: element e of out is column e % columns of row e / columns. One invocation a word of out.

struct Params {
    elements: u32,
    columns: u32,
    in_stride: u32,  // words between rows
    groups_x: u32,
    in_offset: u32,  // words into the bound window
    out_offset: u32,
    pad0: u32,
    pad1: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> padded: array<u32>;    // (rows, in_stride)
@group(0) @binding(2) var<storage, read_write> out: array<u32>; // (rows, columns), two u16 a word

fn element(at: u32) -> u32 {
    if at >= params.elements {
        return 0u;
    }
    let column = at % params.columns;
    return (padded[params.in_offset + (at / params.columns) * params.in_stride + column / 2u] >> (16u * (column % 2u))) & 0xffffu;
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let word = (group.y * params.groups_x + group.x) * 256u + lane;
    if word * 2u >= params.elements {
        return;
    }
    out[params.out_offset + word] = element(word * 2u) | (element(word * 2u + 1u) << 16u);
}
