// Bit j % 32 of out[i, j / 32] = whether values[i, j] is at least (rule 0) or above (rule 1) threshold j; bits past the last column are 0.
// One invocation a bit: neighbours read neighbours, and 32 of them join their bits in workgroup memory. One load a value.
// Comparisons are of integers that order floats, -0 as 0: exact also where a device takes subnormal numbers for 0, and blind to what it makes of NaN.

struct Params {
    rows: u32,
    columns: u32,
    words: u32,
    values_offset: u32, // elements into the bound window
    out_offset: u32,
    first: u32,         // index of the first value in the whole
    rule: u32,
    thresholded: u32,   // 0: every threshold is 0
    groups_x: u32,
    row0: u32,          // 1: this is the window with the first row, which looks at the thresholds
    pad0: u32,
    pad1: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> values: array<u32>;     // f32 bits, or pairs of f16; (rows, columns)
@group(0) @binding(2) var<storage, read> thresholds: array<u32>; // f32 bits (columns), or anything if not thresholded
@group(0) @binding(3) var<storage, read_write> out: array<u32>;  // (rows, words)
@group(0) @binding(4) var<storage, read_write> status: array<atomic<u32>>; // 0xffffffff - the lowest index that is not finite: [0] threshold, [1] value

var<workgroup> packed: array<atomic<u32>, 8>;

// The bits of the f32 that an element is.
fn element(at: u32) -> u32 {
    if HALF == 0u {
        return values[at];
    }
    let half = (values[at / 2u] >> (16u * (at % 2u))) & 0xffffu;
    let sign = (half & 0x8000u) << 16u;
    let magnitude = half & 0x7fffu;
    if magnitude >= 0x7c00u {
        return sign | 0x7f800000u;
    }
    if magnitude < 0x0400u {
        // A subnormal f16 is a normal f32.
        return sign | bitcast<u32>(f32(magnitude) * bitcast<f32>(0x33800000u));
    }
    return sign | ((magnitude << 13u) + 0x38000000u);
}

fn finite(bits: u32) -> bool {
    return (bits & 0x7f800000u) != 0x7f800000u;
}

// Integers in the order of the floats.
fn ordered(bits: u32) -> i32 {
    let magnitude = i32(bits & 0x7fffffffu);
    return select(magnitude, -magnitude, (bits & 0x80000000u) != 0u);
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    if lane < 8u {
        atomicStore(&packed[lane], 0u);
    }
    workgroupBarrier();
    let first_word = (group.y * params.groups_x + group.x) * 8u;
    let word = first_word + lane / 32u;
    let row = word / params.words;
    let column = (word % params.words) * 32u + lane % 32u;
    if row < params.rows && column < params.columns {
        let index = row * params.columns + column;
        let bits = element(params.values_offset + index);
        if !finite(bits) {
            atomicMax(&status[1], 0xffffffffu - (params.first + index));
        }
        var threshold = 0;
        if params.thresholded == 1u {
            let its = thresholds[column];
            threshold = ordered(its);
            if row == 0u && params.row0 == 1u && !finite(its) {
                atomicMax(&status[0], 0xffffffffu - column);
            }
        }
        let value = ordered(bits);
        if value > threshold || (value == threshold && params.rule == 0u) {
            atomicOr(&packed[lane / 32u], 1u << (lane % 32u));
        }
    }
    workgroupBarrier();
    if lane < 8u && first_word + lane < params.rows * params.words {
        out[params.out_offset + first_word + lane] = atomicLoad(&packed[lane]);
    }
}
