// out[i] = relu(sum_j softmax_j(scale q_i . k_j) v_j + r_i) over the fields i, j of each sample and head, from projected rows (q | k | r | v).
// An invocation a row of queries, 128 a workgroup: of as many (sample, head) pairs as fit (3 of 39 fields), or a block of the fields of one.
// Keys and values are staged in 16 KiB of workgroup memory, `step` keys of each pair at a time, under an online softmax; with MAPS the keys pass again.
// Flops: 4 fields^2 head_dim a pair, and fields^2 exp. Bytes: each projected element once, each output once (maps: fields^2 more, keys again):
// 39 fields, 2 heads of 16: 0.2 Mflop and 25 KB a sample, so 8 flop a byte: the floor is bandwidth, 0.5 us a hundred samples at 5 TB/s.
// A row that is not finite is reported in status.

struct Params {
    samples: u32,
    fields: u32,
    heads: u32,
    head_dim: u32,
    columns: u32,  // elements of a projected row
    residual: u32, // 1: it holds r
    packed: u32,   // pairs of a workgroup
    step: u32,     // keys of a pair staged at a time
    blocks: u32,   // of 128 rows that the fields of a pair make
    groups: u32,   // workgroups in all
    groups_x: u32,
    first: u32,    // index of the first row in the whole
    projected_offset: u32, // elements into the bound window
    out_offset: u32,
    maps_offset: u32,
    scale: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> projected: array<f32>;      // (samples, fields, columns)
@group(0) @binding(2) var<storage, read_write> out: array<f32>;      // (samples, fields, heads, head_dim)
@group(0) @binding(3) var<storage, read_write> maps: array<f32>;     // (samples, heads, fields, fields) if MAPS, else anything
@group(0) @binding(4) var<storage, read_write> status: array<atomic<u32>>; // [0] not finite: 0xffffffff - the lowest row

const NO_KEY: f32 = -1e30;

var<workgroup> keys: array<vec4<f32>, STAGED>;   // (packed, step, QUADS)
var<workgroup> values: array<vec4<f32>, STAGED>;

// Four elements of a head from `at` on; zeros behind its end.
fn quad(at: u32, column: u32) -> vec4<f32> {
    var four = vec4<f32>();
    for (var i = 0u; i < 4u; i++) {
        if column + i < params.head_dim {
            four[i] = projected[at + column + i];
        }
    }
    return four;
}

// Where the row of a field of a pair begins.
fn row_of(pair: u32, field: u32) -> u32 {
    return params.projected_offset + ((pair / params.heads) * params.fields + field) * params.columns;
}

// Stages the keys of `count` fields from `begin` on of every pair from `pair0` on.
fn stage(pair0: u32, begin: u32, count: u32, lane: u32) {
    let all = params.packed * count * QUADS;
    for (var at = lane; at < all; at += 128u) {
        let column = (at % QUADS) * 4u;
        let key = (at / QUADS) % count;
        let local = at / QUADS / count;
        let pair = pair0 + local;
        var k = vec4<f32>();
        var v = vec4<f32>();
        if pair < params.samples * params.heads {
            let width = params.heads * params.head_dim;
            let row = row_of(pair, begin + key) + (pair % params.heads) * params.head_dim;
            k = quad(row + width, column);
            v = quad(row + params.columns - width, column);
        }
        let to = (local * params.step + key) * QUADS + at % QUADS;
        keys[to] = k;
        values[to] = v;
    }
}

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let number = group.y * params.groups_x + group.x;
    if number >= params.groups {
        return;
    }
    let pair0 = (number / params.blocks) * params.packed;
    var local = 0u;
    var field = (number % params.blocks) * 128u + lane;
    if params.blocks == 1u {
        local = lane / params.fields;
        field = lane % params.fields;
    }
    let pair = pair0 + local;
    let head = pair % params.heads;
    let inside = local < params.packed && field < params.fields && pair < params.samples * params.heads;
    // Rows outside work on whatever is staged, and write nothing.
    local = min(local, params.packed - 1u);

    var q: array<vec4<f32>, QUADS>;
    var sums: array<vec4<f32>, QUADS>;
    let begin = row_of(pair, field) + head * params.head_dim;
    for (var c = 0u; c < QUADS; c++) {
        sums[c] = vec4<f32>();
        q[c] = vec4<f32>();
        if inside {
            q[c] = quad(begin, c * 4u) * params.scale;
        }
    }
    var largest = NO_KEY;
    var total = 0.0;
    for (var first = 0u; first < params.fields; first += params.step) {
        let count = min(params.step, params.fields - first);
        stage(pair0, first, count, lane);
        workgroupBarrier();
        for (var key = 0u; key < count; key++) {
            let at = (local * params.step + key) * QUADS;
            var products = vec4<f32>();
            for (var c = 0u; c < QUADS; c++) {
                products += q[c] * keys[at + c];
            }
            let score = dot(products, vec4<f32>(1.0));
            if score > largest {
                let shrink = exp(largest - score);
                largest = score;
                total *= shrink;
                for (var c = 0u; c < QUADS; c++) {
                    sums[c] *= shrink;
                }
            }
            let weight = exp(score - largest);
            total += weight;
            for (var c = 0u; c < QUADS; c++) {
                sums[c] += weight * values[at + c];
            }
        }
        workgroupBarrier();
    }

    if inside {
        var finite = true;
        let to = params.out_offset + ((pair / params.heads) * params.fields + field) * params.heads * params.head_dim
            + head * params.head_dim;
        for (var c = 0u; c < params.head_dim; c++) {
            var value = sums[c / 4u][c % 4u] / total;
            if params.residual == 1u {
                value += projected[begin + 2u * params.heads * params.head_dim + c];
            }
            finite = finite && (bitcast<u32>(value) & 0x7fffffffu) < 0x7f800000u;
            out[to + c] = max(value, 0.0);
        }
        if !finite {
            atomicMax(&status[0], 0xffffffffu - (params.first + (pair / params.heads) * params.fields + field));
        }
    }

    if MAPS == 1u {
        for (var first = 0u; first < params.fields; first += params.step) {
            let count = min(params.step, params.fields - first);
            if params.step < params.fields {
                stage(pair0, first, count, lane);
            }
            workgroupBarrier();
            for (var key = 0u; key < count; key++) {
                let at = (local * params.step + key) * QUADS;
                var products = vec4<f32>();
                for (var c = 0u; c < QUADS; c++) {
                    products += q[c] * keys[at + c];
                }
                if inside {
                    let score = dot(products, vec4<f32>(1.0));
                    maps[params.maps_offset + (pair * params.fields + field) * params.fields + first + key] =
                        exp(score - largest) / total;
                }
            }
            workgroupBarrier();
        }
    }
}
