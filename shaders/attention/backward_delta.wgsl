// stats[row] = (lse[row], sum over c of grad[row, c] output[row, c]). One workgroup of 256 for 16 rows, 16 invocations a row, a tree over them.
// 2 rows d_v flops; reads rows (2 d_v + 1) elements, writes 2 rows: bandwidth is the floor.

struct Params {
    rows: u32,
    d_v: u32,
    output_offset: u32, // elements into the bound windows
    grad_offset: u32,
    lse_offset: u32,
    stats_offset: u32,
    first: u32,         // number of the first row
    groups_x: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> output: array<u32>; // [rows, d_v], f32 bits or pairs of f16
@group(0) @binding(2) var<storage, read> grad: array<u32>;   // the same
@group(0) @binding(3) var<storage, read> lse: array<f32>;    // [rows]
@group(0) @binding(4) var<storage, read_write> stats: array<f32>; // [rows, 2]
@group(0) @binding(5) var<storage, read_write> status: array<atomic<u32>, 4>;

var<workgroup> parts: array<f32, 256>;

fn output_at(at: u32) -> f32 {
    if HALF == 1u {
        return unpack2x16float(output[at / 2u])[at % 2u];
    }
    return bitcast<f32>(output[at]);
}

fn grad_at(at: u32) -> f32 {
    if HALF == 1u {
        return unpack2x16float(grad[at / 2u])[at % 2u];
    }
    return bitcast<f32>(grad[at]);
}

fn finite(value: f32) -> bool {
    return (bitcast<u32>(value) & 0x7f800000u) != 0x7f800000u;
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = (group.y * params.groups_x + group.x) * 16u + lane / 16u;
    var sum = 0.0;
    if row < params.rows {
        for (var c = lane % 16u; c < params.d_v; c += 16u) {
            sum += output_at(params.output_offset + row * params.d_v + c) * grad_at(params.grad_offset + row * params.d_v + c);
        }
    }
    parts[lane] = sum;
    for (var width = 8u; width > 0u; width /= 2u) {
        workgroupBarrier();
        if lane % 16u < width {
            parts[lane] += parts[lane + width];
        }
    }
    if row < params.rows && lane % 16u == 0u {
        let known = lse[params.lse_offset + row];
        stats[params.stats_offset + 2u * row] = known;
        stats[params.stats_offset + 2u * row + 1u] = parts[lane];
        if !finite(known) || !finite(parts[lane]) {
            atomicMax(&status[0], 0xffffffffu - (params.first + row));
        }
    }
}
