// out[row, :] = sum_j softmax_j(score[row, j]) v[j, :] and lse[row] = ln sum_j exp(score[row, j]), without ever holding the scores.
// One workgroup: BQ rows of one key head in one sequence (row = query * members + head in the group, so heads share the staged keys) and one of
// `splits` ranges of the keys they see. TR x 8 invocations, each BQ/TR rows x BK/8 scores and BQ/TR rows x D/8 elements of the output in registers.
// q (scaled), tiles of k, then of v, and the weights go through workgroup memory; max, sum and output are f32, divided once at the end.
// Keys no row sees are outside the loop's bounds; only tiles at an edge of the mask are masked.
// 2 (d + d_v) flops a score; k and v are read once for every BQ rows, q and out once: decode floors at the bytes of k and v over the bandwidth,
// prefill at the flops over the f32 rate. With splits, out and lse are partial results that merge.wgsl joins.

struct Params {
    q_offset: u32,       // elements from an index in the whole tensor to one in the bound window, modulo 2^32; as all offsets here
    k_offset: u32,
    v_offset: u32,
    bias_offset: u32,
    out_offset: u32,
    lse_offset: u32,
    flags: u32,          // the constants below
    splits: u32,
    d: u32,
    d_v: u32,
    q_heads: u32,
    kv_heads: u32,
    q_len: u32,          // of the tensors, sequences may be shorter
    kv_len: u32,
    group: u32,          // query heads of a key head
    sequences: u32,      // in the tables
    first_sequence: u32, // what this dispatch computes: sequences, key heads, members of each group, queries, keys
    first_head: u32,
    heads: u32,
    first_member: u32,
    members: u32,
    first_query: u32,
    queries: u32,
    first_key: u32,
    last_key: u32,
    tiles: u32,          // of rows, for each key head
    groups: u32,         // workgroups in all
    groups_x: u32,
    window: u32,
    scale: f32,
    softcap: f32,
    slot: u32,           // of the first split
    bias_sequence: u32,  // strides
    bias_head: u32,
    bias_query: u32,
    bias_key: u32,
    slot_rows: u32,      // rows of out between splits
    pad0: u32,
    pad1: u32,
    pad2: u32,
}

const CAUSAL: u32 = 1u;
const WINDOW: u32 = 2u;
const SOFTCAP: u32 = 4u;
const ALIBI: u32 = 8u;
const SINKS: u32 = 16u;
const BIAS: u32 = 32u;
const TABLE: u32 = 64u;     // sequences by table, else one a batch, all of full length
const HALF_OUT: u32 = 128u; // out is pairs of f16 (d_v is even)

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<u32>;      // f32 bits, or pairs of f16; (batch, q_heads, q_len, d)
@group(0) @binding(2) var<storage, read> k: array<u32>;      // (batch, kv_heads, kv_len, d)
@group(0) @binding(3) var<storage, read> v: array<u32>;      // (batch, kv_heads, kv_len, d_v)
@group(0) @binding(4) var<storage, read> bias: array<u32>;   // f32 bits, by strides; anything without BIAS
@group(0) @binding(5) var<storage, read> tables: array<u32>; // first query row, queries, first key row, keys of each sequence; sinks; slopes
@group(0) @binding(6) var<storage, read_write> out: array<u32>; // (splits, batch, q_heads, q_len, d_v)
@group(0) @binding(7) var<storage, read_write> lse: array<f32>; // (splits, batch, q_heads, q_len)
@group(0) @binding(8) var<storage, read_write> status: array<atomic<u32>>; // 0xffffffff - the lowest row that is not finite

const TC: u32 = 8u;
const LANES: u32 = TR * TC;
const NO_KEY: f32 = -1e30;
const D4: u32 = D / 4u;
const DC4: u32 = DC / 4u;        // of a chunk of k
const QS: u32 = D4 + 1u;         // strides that keep rows in different banks
const KS: u32 = DC4 + 1u;
const RQ: u32 = BQ / TR;
const CK: u32 = BK / TC;
const OC: u32 = (D4 + TC - 1u) / TC;
const CHUNKS: u32 = D / DC;
const TILE: u32 = max(BK * KS, BKV * D4);

var<workgroup> q_tile: array<vec4<f32>, BQ * QS>;
var<workgroup> tile: array<vec4<f32>, TILE>;       // BK keys x DC of k, then BKV keys x D of v
var<workgroup> weights: array<f32, BQ * BK>;

fn q_element(at: u32) -> f32 {
    if HALF == 1u {
        return unpack2x16float(q[at / 2u])[at % 2u];
    }
    return bitcast<f32>(q[at]);
}

fn k_element(at: u32) -> f32 {
    if HALF == 1u {
        return unpack2x16float(k[at / 2u])[at % 2u];
    }
    return bitcast<f32>(k[at]);
}

fn v_element(at: u32) -> f32 {
    if HALF == 1u {
        return unpack2x16float(v[at / 2u])[at % 2u];
    }
    return bitcast<f32>(v[at]);
}

fn q_four(at: u32, column: u32) -> vec4<f32> {
    let left = params.d - min(column, params.d);
    if HALF == 1u && left >= 4u && at % 2u == 0u {
        return vec4<f32>(unpack2x16float(q[at / 2u]), unpack2x16float(q[at / 2u + 1u]));
    }
    var four = vec4<f32>();
    for (var c = 0u; c < min(left, 4u); c++) {
        four[c] = q_element(at + c);
    }
    return four;
}

fn k_four(at: u32, column: u32) -> vec4<f32> {
    let left = params.d - min(column, params.d);
    if left >= 4u {
        if HALF == 0u {
            return vec4<f32>(k_element(at), k_element(at + 1u), k_element(at + 2u), k_element(at + 3u));
        }
        if at % 2u == 0u {
            return vec4<f32>(unpack2x16float(k[at / 2u]), unpack2x16float(k[at / 2u + 1u]));
        }
    }
    var four = vec4<f32>();
    for (var c = 0u; c < min(left, 4u); c++) {
        four[c] = k_element(at + c);
    }
    return four;
}

fn v_four(at: u32, column: u32) -> vec4<f32> {
    let left = params.d_v - min(column, params.d_v);
    if left >= 4u {
        if HALF == 0u {
            return vec4<f32>(v_element(at), v_element(at + 1u), v_element(at + 2u), v_element(at + 3u));
        }
        if at % 2u == 0u {
            return vec4<f32>(unpack2x16float(v[at / 2u]), unpack2x16float(v[at / 2u + 1u]));
        }
    }
    var four = vec4<f32>();
    for (var c = 0u; c < min(left, 4u); c++) {
        four[c] = v_element(at + c);
    }
    return four;
}

fn finite(value: f32) -> bool {
    return (bitcast<u32>(value) & 0x7f800000u) != 0x7f800000u;
}

// exp of a number that is not above 0; far below, drivers differ.
fn decay(x: f32) -> f32 {
    return exp(max(x, -120.0));
}

// tanh within 2 eps also near 0, where a driver's own may be off by eps of 1.
fn saturate_score(x: f32) -> f32 {
    let size = abs(x);
    if size < 0.25 {
        let s = x * x;
        return x * (1.0 + s * (-0.333333333 + s * (0.133333333 + s * (-0.053968254 + s * 0.021869489))));
    }
    let tail = 2.0 / (exp(min(2.0 * size, 40.0)) + 1.0);
    return select(-1.0, 1.0, x > 0.0) * (1.0 - tail);
}

// What softcap, ALiBi and the bias make of a score.
fn modified(score: f32, sequence: u32, head: u32, query: u32, key: u32, distance: f32) -> f32 {
    var s = score;
    if (params.flags & SOFTCAP) != 0u {
        s = params.softcap * saturate_score(s / params.softcap);
    }
    if (params.flags & ALIBI) != 0u {
        s -= bitcast<f32>(tables[4u * params.sequences + params.q_heads + head]) * distance;
    }
    if (params.flags & BIAS) != 0u {
        let bits = bias[sequence * params.bias_sequence + head * params.bias_head + query * params.bias_query + key * params.bias_key
            + params.bias_offset];
        let size = bits & 0x7fffffffu;
        // -1e30 and below, by the bits: WGSL knows no infinity.
        if bits != size && size >= 0x7149f2cau && size <= 0x7f800000u {
            return NO_KEY;
        }
        s += bitcast<f32>(bits);
    }
    return s;
}

fn attend(group: vec3<u32>, lane: u32) {
    let flat = group.y * params.groups_x + group.x;
    if flat >= params.groups {
        return;
    }
    let split = flat % params.splits;
    let place = flat / params.splits;
    let head = params.first_head + (place / params.tiles) % params.heads;
    let sequence = params.first_sequence + place / params.tiles / params.heads;
    var q_first = sequence * params.q_heads * params.q_len;
    var q_count = params.q_len;
    var kv_first = sequence * params.kv_heads * params.kv_len;
    var kv_count = params.kv_len;
    if (params.flags & TABLE) != 0u {
        q_first = tables[4u * sequence];
        q_count = tables[4u * sequence + 1u];
        kv_first = tables[4u * sequence + 2u];
        kv_count = tables[4u * sequence + 3u];
    }
    let last_query = min(params.first_query + params.queries, q_count);
    let rows = (last_query - min(params.first_query, last_query)) * params.members;
    let row0 = (place % params.tiles) * BQ;
    if row0 >= rows {
        return;
    }
    let k_rows = kv_first + head * params.kv_len;

    // Keys that any row sees, and those that all see.
    let lowest = i32(params.first_query + row0 / params.members) + i32(kv_count) - i32(q_count);
    let highest = i32(params.first_query + (min(row0 + BQ, rows) - 1u) / params.members) + i32(kv_count) - i32(q_count);
    let window = i32(params.window);
    var first = i32(params.first_key);
    var last = min(i32(params.last_key), i32(kv_count));
    var all_first = 0;
    var all_last = last;
    if (params.flags & CAUSAL) != 0u {
        last = min(last, highest + 1);
        all_last = lowest + 1;
    } else if (params.flags & WINDOW) != 0u {
        last = min(last, highest + window);
        all_last = lowest + window;
    }
    if (params.flags & WINDOW) != 0u {
        first = max(first, lowest - window + 1);
        all_first = highest - window + 1;
    }
    let tiles = (u32(max(last - first, 0)) + BK - 1u) / BK;
    let step = i32((tiles + params.splits - 1u) / params.splits * BK);
    let begin = first + i32(split) * step;
    let end = min(begin + step, last);

    let tr = lane / TC;
    let tc = lane % TC;
    var position: array<i32, RQ>;
    var query: array<u32, RQ>;
    var q_head: array<u32, RQ>;
    var largest: array<f32, RQ>;
    var total: array<f32, RQ>;
    var sum: array<vec4<f32>, RQ * OC>;
    for (var r = 0u; r < RQ; r++) {
        // Rows past the end repeat the last and are not written.
        let row = min(row0 + tr + TR * r, rows - 1u);
        query[r] = params.first_query + row / params.members;
        q_head[r] = head * params.group + params.first_member + row % params.members;
        position[r] = i32(query[r]) + i32(kv_count) - i32(q_count);
        largest[r] = NO_KEY;
        total[r] = 0.0;
        for (var x = 0u; x < OC; x++) {
            sum[r * OC + x] = vec4<f32>();
        }
    }
    for (var at = lane; at < BQ * D4; at += LANES) {
        let row = min(row0 + at / D4, rows - 1u);
        let own = params.first_query + row / params.members;
        let own_head = head * params.group + params.first_member + row % params.members;
        let column = (at % D4) * 4u;
        let start = (q_first + own_head * params.q_len + own) * params.d + column + params.q_offset;
        q_tile[at / D4 * QS + at % D4] = q_four(start, column) * params.scale;
    }

    for (var key0 = begin; key0 < end; key0 += i32(BK)) {
        var score: array<f32, RQ * CK>;
        for (var s = 0u; s < RQ * CK; s++) {
            score[s] = 0.0;
        }
        for (var chunk = 0u; chunk < CHUNKS; chunk++) {
            for (var at = lane; at < BK * DC4; at += LANES) {
                let key = u32(key0) + at / DC4;
                let column = chunk * DC + (at % DC4) * 4u;
                var four = vec4<f32>();
                if key < u32(end) {
                    four = k_four((k_rows + key) * params.d + column + params.k_offset, column);
                }
                tile[at / DC4 * KS + at % DC4] = four;
            }
            workgroupBarrier();
            for (var c = 0u; c < DC4; c++) {
                var keys: array<vec4<f32>, CK>;
                for (var x = 0u; x < CK; x++) {
                    keys[x] = tile[(tc + TC * x) * KS + c];
                }
                for (var r = 0u; r < RQ; r++) {
                    let own = q_tile[(tr + TR * r) * QS + chunk * DC4 + c];
                    for (var x = 0u; x < CK; x++) {
                        score[r * CK + x] += dot(own, keys[x]);
                    }
                }
            }
            if CHUNKS > 1u {
                workgroupBarrier();
            }
        }
        if (params.flags & (SOFTCAP | ALIBI | BIAS)) != 0u {
            for (var r = 0u; r < RQ; r++) {
                for (var x = 0u; x < CK; x++) {
                    let key = key0 + i32(tc + TC * x);
                    if key < end {
                        let distance = f32(abs(position[r] - key));
                        score[r * CK + x] = modified(score[r * CK + x], sequence, q_head[r], query[r], u32(key), distance);
                    }
                }
            }
        }
        let whole = key0 >= all_first && key0 + i32(BK) <= min(all_last, end);
        if !whole {
            for (var r = 0u; r < RQ; r++) {
                for (var x = 0u; x < CK; x++) {
                    let key = key0 + i32(tc + TC * x);
                    let ahead = key - position[r];
                    var hidden = key >= end;
                    hidden = hidden || ((params.flags & CAUSAL) != 0u && ahead > 0);
                    hidden = hidden || ((params.flags & WINDOW) != 0u && (-ahead >= window || ahead >= window));
                    if hidden {
                        score[r * CK + x] = NO_KEY;
                    }
                }
            }
        }
        var local: array<f32, RQ>;
        for (var r = 0u; r < RQ; r++) {
            local[r] = score[r * CK];
            for (var x = 1u; x < CK; x++) {
                local[r] = max(local[r], score[r * CK + x]);
            }
        }
        rows_max(&local, lane); // with a barrier: nobody reads the keys any more
        for (var r = 0u; r < RQ; r++) {
            let new_largest = max(largest[r], local[r]);
            let fade = decay(largest[r] - new_largest);
            largest[r] = new_largest;
            total[r] *= fade;
            for (var x = 0u; x < OC; x++) {
                sum[r * OC + x] *= fade;
            }
            for (var x = 0u; x < CK; x++) {
                let s = score[r * CK + x];
                let weight = select(decay(s - new_largest), 0.0, s <= NO_KEY);
                total[r] += weight;
                weights[(tr + TR * r) * BK + tc + TC * x] = weight;
            }
        }
        for (var part = 0u; part < BK; part += BKV) {
            for (var at = lane; at < BKV * D4; at += LANES) {
                let key = u32(key0) + part + at / D4;
                let column = (at % D4) * 4u;
                var four = vec4<f32>();
                if key < u32(end) {
                    four = v_four((k_rows + key) * params.d_v + column + params.v_offset, column);
                }
                tile[at] = four;
            }
            workgroupBarrier();
            for (var j = 0u; j < BKV; j++) {
                var values: array<vec4<f32>, OC>;
                for (var x = 0u; x < OC; x++) {
                    // Where 8 columns are too many, the last is read again and not written.
                    values[x] = tile[j * D4 + min(tc + TC * x, D4 - 1u)];
                }
                for (var r = 0u; r < RQ; r++) {
                    let weight = weights[(tr + TR * r) * BK + part + j];
                    for (var x = 0u; x < OC; x++) {
                        sum[r * OC + x] += weight * values[x];
                    }
                }
            }
            workgroupBarrier();
        }
    }

    rows_sum(&total, lane);
    for (var r = 0u; r < RQ; r++) {
        if row0 + tr + TR * r >= rows {
            continue;
        }
        var whole_total = total[r];
        var fade = 1.0;
        if (params.flags & SINKS) != 0u && split == 0u {
            let sink = bitcast<f32>(tables[4u * params.sequences + q_head[r]]);
            let new_largest = max(largest[r], sink);
            fade = decay(largest[r] - new_largest);
            whole_total = whole_total * fade + decay(sink - new_largest);
            largest[r] = new_largest;
        }
        let row = q_first + q_head[r] * params.q_len + query[r];
        let slot_row = (params.slot + split) * params.slot_rows + row;
        var factor = 0.0;
        var log_sum = NO_KEY;
        // A sum that is not a number is not above 0 and must still be seen.
        if whole_total > 0.0 || !finite(whole_total) {
            factor = fade / whole_total;
            log_sum = largest[r] + log(whole_total);
        }
        var fine = finite(log_sum) && finite(whole_total);
        for (var x = 0u; x < OC; x++) {
            let value = sum[r * OC + x] * factor;
            let column = (tc + TC * x) * 4u;
            let start = slot_row * params.d_v + column + params.out_offset;
            for (var c = 0u; c < 4u; c++) {
                if column + c >= params.d_v {
                    break;
                }
                fine = fine && finite(value[c]);
                if (params.flags & HALF_OUT) == 0u {
                    out[start + c] = bitcast<u32>(value[c]);
                } else if c % 2u == 0u {
                    out[(start + c) / 2u] = pack2x16float(vec2<f32>(value[c], value[c + 1u]));
                }
            }
        }
        if tc == 0u {
            lse[slot_row + params.lse_offset] = log_sum;
        }
        if !fine {
            atomicMax(&status[0], 0xffffffffu - row);
        }
    }
}
