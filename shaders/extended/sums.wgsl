// out[block, c] = sum over the rows r of the block of values[r, c], in extended precision; with FORM = UNIT_ROWS of values[r, c] times the scales
// that rows.wgsl gave the row. A pass turns (rows, columns) into (ceil(rows / ROWS), columns); the next takes its pairs, until few
// rows are left: a tree whose error grows with its depth.
// One invocation a column of a block: neighbours read neighbours. A load, and 20 operations of f32 an element (40 of unit rows).
// Shared: real_pairs.wgsl and double_single.wgsl, or real_f64.wgsl and stored_pairs.wgsl. The host appends alias Real, const HALF: u32 (1: f16),
// VALUES 0 (f32 or f16), UNIT_ROWS 1 (the same), PAIRS 2, FORM, ROWS, WORKGROUP.

struct Params {
    zero: u32,          // 0: see shared/double_single.wgsl
    rows: u32,
    columns: u32,
    values_offset: u32, // elements into the bound window
    scales_offset: u32, // rows
    out_offset: u32,
    add: u32,           // 1: to what out holds already
    groups_x: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> values: array<u32>;          // bits of f32, of two f16, or of half a pair; (rows, columns)
@group(0) @binding(2) var<storage, read> scales: array<vec2<f32>>;    // (rows, 2), or anything
@group(0) @binding(3) var<storage, read_write> out: array<vec2<f32>>; // (blocks, columns)

fn element(at: u32) -> f32 {
    if HALF == 1u {
        return unpack2x16float(values[at / 2u])[at % 2u];
    }
    return bitcast<f32>(values[at]);
}

fn term(row: u32, column: u32) -> Real {
    let at = params.values_offset + row * params.columns + column;
    if FORM == PAIRS {
        return load(vec2(bitcast<f32>(values[2u * at]), bitcast<f32>(values[2u * at + 1u])));
    }
    if FORM == UNIT_ROWS {
        let scale = 2u * (params.scales_offset + row);
        let inverse_unit = scales[scale + 1u].x;
        // A row that is not to be looked at has unit 0, and may hold NaN.
        let value = select(0.0, element(at), inverse_unit > 0.0);
        return mul_f32(load(scales[scale]), value * inverse_unit);
    }
    return real(element(at));
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let index = (group.y * params.groups_x + group.x) * WORKGROUP + lane;
    let blocks = (params.rows + ROWS - 1u) / ROWS;
    if index >= blocks * params.columns {
        return;
    }
    let block = index / params.columns;
    let column = index % params.columns;
    let last = min((block + 1u) * ROWS, params.rows);
    var sum = real(0.0);
    for (var outer = block * ROWS; outer < last; outer += 16u) {
        var part = real(0.0);
        for (var row = outer; row < min(outer + 16u, last); row++) {
            part = add(part, term(row, column));
        }
        sum = add(sum, part);
    }
    let at = params.out_offset + index;
    // Not in an `if`: lavapipe (Mesa 22.3.6) then stores 0 for the low word.
    let before = select(vec2(0.0, 0.0), out[at], params.add == 1u);
    out[at] = store(add(load(before), sum));
}
