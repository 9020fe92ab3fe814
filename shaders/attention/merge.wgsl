// out[row, :] = sum_p exp(lse[p, row]) part[p, row, :] / sum_p exp(lse[p, row]) and the lse of that sum: partial attentions joined, in the order of p.
// One invocation a word of out: an f32, or two f16 (which may belong to two rows). Reads parts * rows * d_v elements once and writes rows * d_v:
// floor (parts + 1) rows d_v 4 bytes over the bandwidth. Rows where no part saw a key give zeros and -1e30.

struct Params {
    words: u32,       // of out
    d_v: u32,
    elements: u32,    // rows * d_v
    parts: u32,
    part_stride: u32, // elements between parts
    lse_stride: u32,
    part_offset: u32, // elements, as all offsets
    part_lse_offset: u32,
    out_offset: u32,
    lse_offset: u32,
    groups_x: u32,
    first_row: u32,   // of out, in the whole
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> part: array<u32>;      // (parts, rows, d_v), f32 bits, or pairs of f16 with HALF
@group(0) @binding(2) var<storage, read> part_lse: array<f32>;  // (parts, rows)
@group(0) @binding(3) var<storage, read_write> out: array<u32>; // (rows, d_v), f32 bits, or pairs of f16 with HALF_OUT
@group(0) @binding(4) var<storage, read_write> lse: array<f32>; // (rows)
@group(0) @binding(5) var<storage, read_write> status: array<atomic<u32>>; // 0xffffffff - the lowest row that is not finite

const NO_KEY: f32 = -1e30;

fn element(at: u32) -> f32 {
    if HALF == 1u {
        return unpack2x16float(part[at / 2u])[at % 2u];
    }
    return bitcast<f32>(part[at]);
}

fn finite(value: f32) -> bool {
    return (bitcast<u32>(value) & 0x7f800000u) != 0x7f800000u;
}

fn joined(index: u32) -> f32 {
    if index >= params.elements {
        return 0.0;
    }
    let row = index / params.d_v;
    var largest = NO_KEY;
    var fine = true;
    for (var p = 0u; p < params.parts; p++) {
        let own = part_lse[p * params.lse_stride + row + params.part_lse_offset];
        fine = fine && finite(own);
        largest = max(largest, own);
    }
    var total = 0.0;
    var sum = 0.0;
    for (var p = 0u; p < params.parts; p++) {
        let own = part_lse[p * params.lse_stride + row + params.part_lse_offset];
        let value = element(p * params.part_stride + index + params.part_offset);
        fine = fine && finite(value);
        if own > NO_KEY {
            let weight = exp_f32(own - largest);
            total += weight;
            sum += weight * value;
        }
    }
    if !fine || !finite(sum) {
        atomicMax(&status[0], 0xffffffffu - (params.first_row + row));
    }
    if index % params.d_v == 0u {
        lse[row + params.lse_offset] = select(NO_KEY, largest + log(max(total, 1.0)), total > 0.0);
    }
    return select(0.0, sum / max(total, 1.0), total > 0.0);
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let word = (group.y * params.groups_x + group.x) * 64u + lane;
    if word >= params.words {
        return;
    }
    if HALF_OUT == 1u {
        let low = joined(2u * word);
        let high = joined(2u * word + 1u);
        out[word + params.out_offset / 2u] = pack2x16float(vec2<f32>(low, high));
    } else {
        out[word + params.out_offset] = bitcast<u32>(joined(word));
    }
}
