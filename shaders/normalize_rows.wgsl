// out[i] = rows[i] / |rows[i]| and norms[i] = |rows[i]|, f32 or f16 in, f32 out. One workgroup a row: the largest magnitude, then the sum of
// squares over it (no overflow, no underflow), each by a tree in workgroup memory. Three loads and a store an element, the last two from cache.
// A zero row and a row with an infinity or NaN are reported in status and give zeros; with KEEP a zero row leaves out as it was.

struct Params {
    rows: u32,
    columns: u32,
    rows_offset: u32, // elements into the bound window
    out_offset: u32,
    norms_offset: u32,
    first: u32,       // index of the first row in the whole
    groups_x: u32,
    weights_offset: u32,
    weighted: u32,    // 1: rows of weight 0 are not looked at and give zeros
    pad0: u32,
    pad1: u32,
    pad2: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> rows: array<u32>;        // f32 bits, or pairs of f16; (rows, columns)
@group(0) @binding(2) var<storage, read_write> out: array<f32>;   // (rows, columns)
@group(0) @binding(3) var<storage, read_write> norms: array<f32>; // (rows)
@group(0) @binding(4) var<storage, read_write> status: array<atomic<u32>>; // [0] zero row, [1] not finite: 0xffffffff - the lowest index
@group(0) @binding(5) var<storage, read> weights: array<f32>; // (rows), or anything if not weighted

var<workgroup> tree: array<f32, WORKGROUP>;
var<workgroup> bits: array<u32, WORKGROUP>;

fn element(at: u32) -> f32 {
    if HALF == 1u {
        return unpack2x16float(rows[at / 2u])[at % 2u];
    }
    return bitcast<f32>(rows[at]);
}

// The magnitude's bits as they order magnitudes; an infinity or NaN of f16 is one of f32 in these bits, without arithmetic on it.
fn magnitude(at: u32) -> u32 {
    if HALF == 1u {
        let half = (rows[at / 2u] >> (16u * (at % 2u))) & 0x7fffu;
        if half >= 0x7c00u {
            return 0x7f800000u;
        }
    }
    return bitcast<u32>(element(at)) & 0x7fffffffu;
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = group.y * params.groups_x + group.x;
    let inside = row < params.rows;
    let columns = select(0u, params.columns, inside);
    var skipped = false;
    if params.weighted == 1u && inside {
        skipped = weights[params.weights_offset + row] == 0.0;
    }
    let begin = params.rows_offset + row * params.columns;

    var largest = 0u;
    for (var column = lane; column < columns; column += WORKGROUP) {
        largest = max(largest, magnitude(begin + column));
    }
    bits[lane] = largest;
    workgroupBarrier();
    for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
        if lane < half {
            bits[lane] = max(bits[lane], bits[lane + half]);
        }
        workgroupBarrier();
    }
    largest = bits[0];
    let finite = largest < 0x7f800000u;
    // Below the smallest normal number a magnitude may be flushed to zero: it counts as zero.
    let nonzero = largest >= 0x00800000u;
    let usable = finite && nonzero && !skipped;
    // The power of two below the largest magnitude: dividing by it is exact. Held within f32's reach of its own inverse.
    let exponent = clamp(largest >> 23u, 2u, 252u);
    let unit = bitcast<f32>(exponent << 23u);
    let inverse_unit = bitcast<f32>((254u - exponent) << 23u);

    var sum = 0.0;
    if usable {
        for (var column = lane; column < columns; column += WORKGROUP) {
            let value = element(begin + column) * inverse_unit;
            sum += value * value;
        }
    }
    tree[lane] = sum;
    workgroupBarrier();
    for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
        if lane < half {
            tree[lane] += tree[lane + half];
        }
        workgroupBarrier();
    }
    let length = sqrt(tree[0]);
    if !inside {
        return;
    }
    if lane == 0u {
        norms[params.norms_offset + row] = select(0.0, length * unit, usable);
        if !nonzero && !skipped && KEEP == 0u {
            atomicMax(&status[0], 0xffffffffu - (params.first + row));
        }
        if !finite && !skipped {
            atomicMax(&status[1], 0xffffffffu - (params.first + row));
        }
    }
    if KEEP == 1u && !nonzero {
        return;
    }
    let scale = select(0.0, inverse_unit / max(length, 0.25), usable);
    for (var column = lane; column < columns; column += WORKGROUP) {
        var value = 0.0;
        if usable {
            value = element(begin + column) * scale;
        }
        out[params.out_offset + row * params.columns + column] = value;
    }
}
