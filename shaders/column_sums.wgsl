// out[block, c] = keep * out[block, c] + add * sum over the rows r of the block of values[r, c]. A pass turns (rows, columns) into
// (ceil(rows / ROWS), columns); the host repeats it until few rows are left: a tree whose error grows with its depth, not with the rows.
// One invocation a column of a block: neighbours read neighbours. rows * columns loads and additions.

struct Params {
    rows: u32,
    columns: u32,
    values_offset: u32, // elements into the bound window
    out_offset: u32,
    keep: f32,
    add: f32,
    groups_x: u32,
    blocks: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> values: array<f32>;     // (rows, columns)
@group(0) @binding(2) var<storage, read_write> out: array<f32>;  // (blocks, columns)

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let index = (group.y * params.groups_x + group.x) * WORKGROUP + lane;
    if index >= params.blocks * params.columns {
        return;
    }
    let block = index / params.columns;
    let column = index % params.columns;
    let last = min((block + 1u) * ROWS, params.rows);
    var sum = 0.0;
    for (var outer = block * ROWS; outer < last; outer += 16u) {
        var part = 0.0;
        for (var row = outer; row < min(outer + 16u, last); row++) {
            part += values[params.values_offset + row * params.columns + column];
        }
        sum += part;
    }
    let at = params.out_offset + index;
    // What is kept may be uninitialised where nothing is.
    if params.keep == 0.0 {
        out[at] = params.add * sum;
    } else {
        out[at] = params.keep * out[at] + params.add * sum;
    }
}
