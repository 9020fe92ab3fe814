// weights[t] = last . hidden[t] + bias, or the softmax of scale times that over the keys t of a row, and out[r, c] = sum_t weights[t] keys[t, c].
// One workgroup of 64 a row: a key an invocation for the weights, then an element an invocation for the sums, 64 keys at a time.
// 2 (units + depth) flops a key and 4 (units + depth) bytes: the floor is the bandwidth of memory.
// A row that is not finite is reported in status; one without keys gives zeros.

struct Params {
    rows: u32,
    depth: u32,
    units: u32,
    softmax: u32,   // 1: of scale times the weights
    scale: f32,
    first: u32,     // index of the first row in the whole
    first_key: u32, // that of the first key
    groups_x: u32,
    hidden_offset: u32, // elements into the bound window
    offsets_offset: u32,
    keys_offset: u32,
    weights_offset: u32,
    out_offset: u32,
    pad0: u32,
    pad1: u32,
    pad2: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> hidden: array<f32>;        // (keys, units)
@group(0) @binding(2) var<storage, read> last: array<f32>;          // (units + 1): weights, bias
@group(0) @binding(3) var<storage, read> offsets: array<u32>;       // (rows + 1)
@group(0) @binding(4) var<storage, read> keys: array<f32>;          // (keys, depth)
@group(0) @binding(5) var<storage, read_write> weights: array<f32>; // (keys)
@group(0) @binding(6) var<storage, read_write> out: array<f32>;     // (rows, depth)
@group(0) @binding(7) var<storage, read_write> status: array<atomic<u32>>; // [0] not finite: 0xffffffff - the lowest row

var<workgroup> tree: array<f32, 64>;
var<workgroup> staged: array<f32, 64>;

fn finite(value: f32) -> bool {
    return (bitcast<u32>(value) & 0x7fffffffu) < 0x7f800000u;
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = group.y * params.groups_x + group.x;
    if row >= params.rows {
        return;
    }
    let begin = offsets[params.offsets_offset + row] - params.first_key;
    let end = offsets[params.offsets_offset + row + 1u] - params.first_key;

    // Each invocation comes back to its own keys.
    var largest = -3.4e38;
    for (var key = begin + lane; key < end; key += 64u) {
        var sum = 0.0;
        for (var unit = 0u; unit < params.units; unit++) {
            sum += last[unit] * hidden[params.hidden_offset + key * params.units + unit];
        }
        sum = (sum + last[params.units]) * params.scale;
        weights[params.weights_offset + key] = sum;
        largest = max(largest, sum);
    }
    var inverse = 1.0;
    if params.softmax == 1u {
        tree[lane] = largest;
        workgroupBarrier();
        for (var half = 32u; half > 0u; half /= 2u) {
            if lane < half {
                tree[lane] = max(tree[lane], tree[lane + half]);
            }
            workgroupBarrier();
        }
        largest = tree[0];
        workgroupBarrier();
        var total = 0.0;
        for (var key = begin + lane; key < end; key += 64u) {
            let weight = exp(weights[params.weights_offset + key] - largest);
            weights[params.weights_offset + key] = weight;
            total += weight;
        }
        tree[lane] = total;
        workgroupBarrier();
        for (var half = 32u; half > 0u; half /= 2u) {
            if lane < half {
                tree[lane] += tree[lane + half];
            }
            workgroupBarrier();
        }
        inverse = 1.0 / tree[0];
    }

    var fine = true;
    for (var c = lane; c < params.depth; c += 64u) {
        out[params.out_offset + row * params.depth + c] = 0.0;
    }
    for (var first = begin; first < end; first += 64u) {
        if first + lane < end {
            let weight = weights[params.weights_offset + first + lane] * inverse;
            weights[params.weights_offset + first + lane] = weight;
            staged[lane] = weight;
            fine = fine && finite(weight);
        }
        workgroupBarrier();
        for (var c = lane; c < params.depth; c += 64u) {
            var sum = 0.0;
            for (var key = first; key < min(first + 64u, end); key++) {
                sum += staged[key - first] * keys[params.keys_offset + key * params.depth + c];
            }
            out[params.out_offset + row * params.depth + c] += sum;
        }
        workgroupBarrier();
    }
    for (var c = lane; c < params.depth; c += 64u) {
        fine = fine && finite(out[params.out_offset + row * params.depth + c]);
    }
    if !fine {
        atomicMax(&status[0], 0xffffffffu - (params.first + row));
    }
}
