// out[p, i, j] = x[p, i, j] rows[p, i] columns[p, j]. One invocation an element, 256 a workgroup.
// 2 flops an element; 8 bytes of memory each, for rows and columns come from cache: the floor is the bandwidth of a copy.

struct Params {
    elements: u32,
    height: u32,
    width: u32,
    groups_x: u32,
    x_offset: u32, // elements into the bound window
    rows_offset: u32,
    columns_offset: u32,
    out_offset: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;           // (planes, height, width)
@group(0) @binding(2) var<storage, read> rows: array<f32>;        // (planes, height)
@group(0) @binding(3) var<storage, read> columns: array<f32>;     // (planes, width)
@group(0) @binding(4) var<storage, read_write> out: array<f32>;   // (planes, height, width)

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let at = (group.y * params.groups_x + group.x) * 256u + lane;
    if at >= params.elements {
        return;
    }
    let line = at / params.width; // (planes, height)
    let column = (line / params.height) * params.width + at % params.width;
    out[params.out_offset + at] =
        x[params.x_offset + at] * rows[params.rows_offset + line] * columns[params.columns_offset + column];
}
