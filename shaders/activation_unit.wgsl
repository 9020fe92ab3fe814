// out[t, u] = activation(bias[u] + sum_c inputs[t, c] weights[c, u]), a layer of a small network; with GATED its first one, of keys t of queries r(t):
// out[t, u] = activation(bias[u] + base[r, u] + sum_c k[t, c] (weights[c, u] + q[r, c] weights[depth + c, u])): [q, k, q - k, q * k] is never built.
// One workgroup 16 keys and 64 units, a unit an invocation; inputs are staged 32 deep in 4 KiB of workgroup memory, weights come from cache.
// 2 depth units flops a key (4 with GATED); bytes 4 (depth + units) a key, weights once for 16 keys. At 32 -> 80: 10 kflop on 450 bytes: the floor is
// the f32 rate, 0.3 ns a key at 30 Tflop/s.
// With GATED a row whose sums are not finite is reported in status: the activation behind them may hide it.

struct Params {
    keys: u32,
    depth: u32,
    units: u32,
    kind: u32,      // 0 sigmoid, 1 PReLU, 2 Dice
    first_row: u32, // query of the first row of queries and base
    tiles: u32,     // of 64 units
    groups_x: u32,
    inputs_offset: u32, // elements into the bound window
    out_offset: u32,
    queries_offset: u32,
    base_offset: u32,
    rows_offset: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> inputs: array<f32>;        // (keys, depth)
@group(0) @binding(2) var<storage, read> weights: array<f32>;       // (depth, units), twice with GATED
@group(0) @binding(3) var<storage, read> of_units: array<vec4<f32>>; // (units): bias, alpha, Dice's 1 / deviation, its mean
@group(0) @binding(4) var<storage, read_write> out: array<f32>;     // (keys, units)
@group(0) @binding(5) var<storage, read> queries: array<f32>;       // (rows, depth) if GATED, else anything
@group(0) @binding(6) var<storage, read> base: array<f32>;          // (rows, units) if GATED, else anything
@group(0) @binding(7) var<storage, read> rows: array<u32>;          // (keys) if GATED, else anything: the query of each
@group(0) @binding(8) var<storage, read_write> status: array<atomic<u32>>; // [0] not finite: 0xffffffff - the lowest row

const DEEP: u32 = 32u;

var<workgroup> plain: array<vec4<f32>, 128>; // (DEEP, 16 keys)
var<workgroup> gated: array<vec4<f32>, 128>; // the same, times the query

fn sigmoid(x: f32) -> f32 {
    let power = exp(-abs(x));
    return select(1.0, power, x < 0.0) / (1.0 + power);
}

fn activation(x: f32, unit: vec4<f32>) -> f32 {
    switch params.kind {
        case 0u: {
            return sigmoid(x);
        }
        case 1u: {
            return select(x, unit.y * x, x < 0.0);
        }
        default: {
            let p = sigmoid((x - unit.w) * unit.z);
            return x * (p + (1.0 - p) * unit.y);
        }
    }
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let number = group.y * params.groups_x + group.x;
    let key0 = (number / params.tiles) * 16u;
    let unit = (number % params.tiles) * 64u + lane;
    if key0 >= params.keys {
        return;
    }
    var sums: array<vec4<f32>, 4>;
    for (var i = 0u; i < 4u; i++) {
        sums[i] = vec4<f32>();
    }
    for (var first = 0u; first < params.depth; first += DEEP) {
        for (var at = lane; at < 128u; at += 64u) {
            let c = first + at % DEEP;
            var value = vec4<f32>();
            var product = vec4<f32>();
            for (var i = 0u; i < 4u; i++) {
                let key = key0 + (at / DEEP) * 4u + i;
                if key < params.keys && c < params.depth {
                    value[i] = inputs[params.inputs_offset + key * params.depth + c];
                    if GATED == 1u {
                        let row = rows[params.rows_offset + key] - params.first_row;
                        product[i] = value[i] * queries[params.queries_offset + row * params.depth + c];
                    }
                }
            }
            plain[(at % DEEP) * 4u + at / DEEP] = value;
            if GATED == 1u {
                gated[(at % DEEP) * 4u + at / DEEP] = product;
            }
        }
        workgroupBarrier();
        if unit < params.units {
            for (var c = 0u; c < min(DEEP, params.depth - first); c++) {
                let weight = weights[(first + c) * params.units + unit];
                for (var i = 0u; i < 4u; i++) {
                    sums[i] += plain[c * 4u + i] * weight;
                }
                if GATED == 1u {
                    let gate = weights[(params.depth + first + c) * params.units + unit];
                    for (var i = 0u; i < 4u; i++) {
                        sums[i] += gated[c * 4u + i] * gate;
                    }
                }
            }
        }
        workgroupBarrier();
    }
    if unit < params.units {
        let of_unit = of_units[unit];
        for (var i = 0u; i < 16u; i++) {
            let key = key0 + i;
            if key < params.keys {
                var x = sums[i / 4u][i % 4u] + of_unit.x;
                if GATED == 1u {
                    let row = rows[params.rows_offset + key] - params.first_row;
                    x += base[params.base_offset + row * params.units + unit];
                    if (bitcast<u32>(x) & 0x7fffffffu) >= 0x7f800000u {
                        atomicMax(&status[0], 0xffffffffu - (params.first_row + row));
                    }
                }
                out[params.out_offset + key * params.units + unit] = activation(x, of_unit);
            }
        }
    }
}
