// Gradients of attention from recomputed tiles: with P = exp(s - lse) and dS = P (dP - delta), dP = grad v^T,
//   OUTPUT QUERIES dq = scale dS k, KEYS dk = dS^T (scale q), VALUES dv = P^T grad, BIAS dbias = dS before the soft cap's derivative.
// One workgroup of 64 a tile of 32 rows of the result of one head and sequence; it loops over the 32-row tiles of the other side that the mask lets it
// meet, and (keys) over the heads of the group; of BIAS, a 32x32 tile of the bias, over every axis that is broadcast. No atomics, orders are fixed.
// A tile of 32x32 is made of 4x4 scores an invocation, operands staged 32 deep; 12.7 KiB of workgroup memory.
// Flops a pair of query and key: QUERIES, KEYS 2 (2 d + d_v), VALUES 2 (d + d_v), BIAS 2 (d + d_v): 2 (6 d + 4 d_v) in all with BIAS, 2 (5 d + 3 d_v)
// without; the floor, one pass with atomics, is 2 (3 d + 2 d_v). Bytes: a tile reads the other side's rows twice (once a product they are in), so
// (pairs / 32) (3 d + d_v) elements for QUERIES and KEYS each, mostly from cache; the floor is q, k, v, grad once and the gradients once.

struct Params {
    q_offset: u32,     // elements into the bound windows
    k_offset: u32,
    v_offset: u32,
    grad_offset: u32,
    stats_offset: u32,
    bias_offset: u32,
    out_offset: u32,
    d: u32,
    d_v: u32,
    q_rows: u32,       // rows from one query head to the next
    kv_rows: u32,
    heads: u32,        // query heads here
    group: u32,        // query heads of a key head
    head0: u32,        // number of the first query head
    sequences: u32,
    flags: u32,        // 1 causal, 2 soft cap, 4 ALiBi, 8 bias, 16 add to out instead of replacing it
    window: i32,       // 1 << 30 without one
    scale: f32,
    cap: f32,
    bias_sequence: u32, // strides of the bias, 0 where it is broadcast
    bias_head: u32,
    bias_query: u32,
    bias_key: u32,
    i_limit: u32,      // queries and keys that the bias has here
    j_limit: u32,
    pad0: u32,
    pad1: u32,
    pad2: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<u32>;      // [batch, q_heads, q_len, d], f32 bits or pairs of f16
@group(0) @binding(2) var<storage, read> k: array<u32>;      // [batch, kv_heads, kv_len, d]
@group(0) @binding(3) var<storage, read> v: array<u32>;      // [batch, kv_heads, kv_len, d_v]
@group(0) @binding(4) var<storage, read> grad: array<u32>;   // as q, d_v wide
@group(0) @binding(5) var<storage, read> stats: array<f32>;  // (lse, delta) of each query
@group(0) @binding(6) var<storage, read> table: array<u32>;  // 12 words a sequence, then the slopes of ALiBi by head
@group(0) @binding(7) var<storage, read> bias: array<u32>;   // f32 bits
@group(0) @binding(8) var<storage, read_write> out: array<f32>;

const QUERIES: u32 = 0u;
const KEYS: u32 = 1u;
const VALUES: u32 = 2u;
const BIAS: u32 = 3u;

// What is staged.
const OF_Q: u32 = 0u;
const OF_K: u32 = 1u;
const OF_V: u32 = 2u;
const OF_GRAD: u32 = 3u;

const TILE: u32 = 32u;
const PITCH: u32 = 33u;
const NO_KEY: f32 = -1e30;
const NO_KEY_BITS: u32 = 0xf149f2cau;
const WORDS: u32 = 12u;

var<workgroup> tile_own: array<f32, 1056>;     // (depth, own row)
var<workgroup> tile_other: array<f32, 1056>;   // (depth, other row), or (other row, column)
var<workgroup> tile_weights: array<f32, 1056>; // (other row, own row)

// A sequence; row numbers wrap below 0 where a window begins later.
struct Sequence {
    q_row: u32,
    kv_row: u32,
    q_len: i32,
    kv_len: i32,
    i_first: u32, // the queries and keys of this dispatch
    i_last: u32,
    j_first: u32,
    j_last: u32,
    bias_at: u32,
}

fn sequence_at(index: u32) -> Sequence {
    let at = index * WORDS;
    return Sequence(table[at], table[at + 1u], i32(table[at + 2u]), i32(table[at + 3u]), table[at + 4u], table[at + 5u], table[at + 6u],
        table[at + 7u], table[at + 8u]);
}

// The keys that any of the queries i0..i1 sees.
fn keys_seen(s: Sequence, i0: u32, i1: u32) -> vec2<u32> {
    let position = s.kv_len - s.q_len;
    let first = max(i32(i0) + position - params.window + 1, i32(s.j_first));
    var last = i32(i1) - 1 + position + params.window;
    if (params.flags & 1u) != 0u {
        last = i32(i1) + position;
    }
    last = min(last, i32(s.j_last));
    return vec2<u32>(u32(first), u32(max(first, last)));
}

// The queries that see any of the keys j0..j1.
fn queries_seeing(s: Sequence, j0: u32, j1: u32) -> vec2<u32> {
    let position = s.kv_len - s.q_len;
    var first = i32(j0) - params.window + 1 - position;
    if (params.flags & 1u) != 0u {
        first = i32(j0) - position;
    }
    first = max(first, i32(s.i_first));
    let last = min(i32(j1) - 1 + params.window - position, i32(s.i_last));
    return vec2<u32>(u32(first), u32(max(first, last)));
}

fn element(matrix: u32, row: u32, c: u32) -> f32 {
    if matrix == OF_Q || matrix == OF_K {
        let at = row * params.d + c;
        if matrix == OF_Q {
            let index = params.q_offset + at;
            if HALF == 1u {
                return unpack2x16float(q[index / 2u])[index % 2u] * params.scale;
            }
            return bitcast<f32>(q[index]) * params.scale;
        }
        let index = params.k_offset + at;
        if HALF == 1u {
            return unpack2x16float(k[index / 2u])[index % 2u];
        }
        return bitcast<f32>(k[index]);
    }
    let at = row * params.d_v + c;
    if matrix == OF_V {
        let index = params.v_offset + at;
        if HALF == 1u {
            return unpack2x16float(v[index / 2u])[index % 2u];
        }
        return bitcast<f32>(v[index]);
    }
    let index = params.grad_offset + at;
    if HALF == 1u {
        return unpack2x16float(grad[index / 2u])[index % 2u];
    }
    return bitcast<f32>(grad[index]);
}

// tile_own = 32 columns from `depth` of up to 32 rows, transposed; zeros beyond either end.
fn stage_own(matrix: u32, row: u32, count: u32, depth: u32, width: u32, lane: u32) {
    for (var at = lane; at < TILE * TILE; at += 64u) {
        let along = at % TILE;
        let across = at / TILE;
        var value = 0.0;
        if across < count && depth + along < width {
            value = element(matrix, row + across, depth + along);
        }
        tile_own[along * PITCH + across] = value;
    }
}

// The same of the other side; `turned` 0 leaves it (row, column).
fn stage_other(matrix: u32, row: u32, count: u32, depth: u32, width: u32, turned: u32, lane: u32) {
    for (var at = lane; at < TILE * TILE; at += 64u) {
        let along = at % TILE;
        let across = at / TILE;
        var value = 0.0;
        if across < count && depth + along < width {
            value = element(matrix, row + across, depth + along);
        }
        tile_other[select(across * PITCH + along, along * PITCH + across, turned == 1u)] = value;
    }
}

fn four_own(at: u32) -> vec4<f32> {
    return vec4<f32>(tile_own[at], tile_own[at + 1u], tile_own[at + 2u], tile_own[at + 3u]);
}
fn four_other(at: u32) -> vec4<f32> {
    return vec4<f32>(tile_other[at], tile_other[at + 1u], tile_other[at + 2u], tile_other[at + 3u]);
}
fn four_weights(at: u32) -> vec4<f32> {
    return vec4<f32>(tile_weights[at], tile_weights[at + 1u], tile_weights[at + 2u], tile_weights[at + 3u]);
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) place: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let x = (lane % 8u) * 4u; // the other side's rows, or columns of the result
    let y = (lane / 8u) * 4u; // own rows
    // What this workgroup's tile sums over.
    var sequence_first = place.z;
    var sequence_last = place.z + 1u;
    var head_first = place.y;
    var head_last = place.y + 1u;
    var bias_head = 0u;
    if OUTPUT == KEYS || OUTPUT == VALUES {
        head_first = place.y * params.group;
        head_last = head_first + params.group;
    }
    if OUTPUT == BIAS {
        let heads = select(params.heads, 1u, params.bias_head == 0u);
        bias_head = place.z % heads;
        sequence_first = place.z / heads;
        sequence_last = sequence_first + 1u;
        if params.bias_sequence == 0u {
            sequence_first = 0u;
            sequence_last = params.sequences;
        }
        head_first = bias_head;
        head_last = bias_head + 1u;
        if params.bias_head == 0u {
            head_first = 0u;
            head_last = params.heads;
        }
    }
    var sums: array<array<vec4<f32>, 4>, CHUNKS>;
    for (var index = sequence_first; index < sequence_last; index++) {
        let s = sequence_at(index);
        // Own tiles: one, but of a bias that is broadcast along the queries.
        var own_first = place.x * TILE;
        var own_end = own_first + 1u;
        if OUTPUT == BIAS {
            own_first = place.y * TILE;
            own_end = own_first + 1u;
            if params.bias_query == 0u {
                own_first = 0u;
                own_end = s.i_last - s.i_first;
            }
        }
        let by_keys = OUTPUT == KEYS || OUTPUT == VALUES;
        let own_base = select(s.i_first, s.j_first, by_keys);
        let own_limit = select(s.i_last, s.j_last, by_keys);
        for (var head = head_first; head < head_last; head++) {
            let q_row = s.q_row + head * params.q_rows;
            let kv_row = s.kv_row + (head / params.group) * params.kv_rows;
            for (var own_at = own_first; own_at < own_end; own_at += TILE) {
                let own = own_base + own_at;
                if own >= own_limit {
                    continue;
                }
                let own_count = min(TILE, own_limit - own);
                var met = keys_seen(s, own, own + own_count);
                if by_keys {
                    met = queries_seeing(s, own, own + own_count);
                }
                if OUTPUT == BIAS && params.bias_key != 0u {
                    let tile = s.j_first + place.x * TILE;
                    let last = min(met.y, tile + TILE);
                    met = vec2<u32>(tile, select(tile, last, last > max(met.x, tile)));
                }
                for (var other = met.x; other < met.y; other += TILE) {
                    let other_count = min(TILE, met.y - other);
                    let own_row = select(q_row, kv_row, by_keys) + own;
                    let other_row = select(kv_row, q_row, by_keys) + other;
                    // With their zeros written out: Dawn on SwiftShader keeps the last round's values in variables without.
                    var scores = array<vec4<f32>, 4>();
                    var products = array<vec4<f32>, 4>();
                    for (var depth = 0u; depth < params.d; depth += TILE) {
                        workgroupBarrier();
                        stage_own(select(OF_Q, OF_K, by_keys), own_row, own_count, depth, params.d, lane);
                        stage_other(select(OF_K, OF_Q, by_keys), other_row, other_count, depth, params.d, 1u, lane);
                        workgroupBarrier();
                        for (var c = 0u; c < TILE; c++) {
                            let a = four_own(c * PITCH + y);
                            let b = four_other(c * PITCH + x);
                            scores[0] += a.x * b;
                            scores[1] += a.y * b;
                            scores[2] += a.z * b;
                            scores[3] += a.w * b;
                        }
                    }
                    if OUTPUT != VALUES {
                        for (var depth = 0u; depth < params.d_v; depth += TILE) {
                            workgroupBarrier();
                            stage_own(select(OF_GRAD, OF_V, by_keys), own_row, own_count, depth, params.d_v, lane);
                            stage_other(select(OF_V, OF_GRAD, by_keys), other_row, other_count, depth, params.d_v, 1u, lane);
                            workgroupBarrier();
                            for (var c = 0u; c < TILE; c++) {
                                let a = four_own(c * PITCH + y);
                                let b = four_other(c * PITCH + x);
                                products[0] += a.x * b;
                                products[1] += a.y * b;
                                products[2] += a.z * b;
                                products[3] += a.w * b;
                            }
                        }
                    }
                    // P, or dS, of each pair.
                    for (var r = 0u; r < 4u; r++) {
                        for (var c = 0u; c < 4u; c++) {
                            let i = select(own + y + r, other + x + c, by_keys);
                            let j = select(other + x + c, own + y + r, by_keys);
                            let position = i32(i) + s.kv_len - s.q_len;
                            let last = select(position + params.window - 1, position, (params.flags & 1u) != 0u);
                            var seen = y + r < own_count && x + c < other_count && i32(j) > position - params.window && i32(j) <= last;
                            var weight = 0.0;
                            if seen {
                                var score = scores[r][c];
                                var slope = 1.0;
                                if (params.flags & 2u) != 0u {
                                    let t = tanh(clamp(score / params.cap, -10.0, 10.0));
                                    score = params.cap * t;
                                    slope = (1.0 - t) * (1.0 + t);
                                }
                                if (params.flags & 4u) != 0u {
                                    let alibi = bitcast<f32>(table[params.sequences * WORDS + params.head0 + head]);
                                    score -= alibi * f32(abs(position - i32(j)));
                                }
                                if (params.flags & 8u) != 0u {
                                    let at = s.bias_at + head * params.bias_head + i * params.bias_query + j * params.bias_key;
                                    let bits = bias[params.bias_offset + at];
                                    if bits >= NO_KEY_BITS {
                                        seen = false;
                                    } else {
                                        score += bitcast<f32>(bits);
                                    }
                                }
                                let row = params.stats_offset + 2u * (q_row + i);
                                let lse = stats[row];
                                if seen && score > NO_KEY && lse > NO_KEY {
                                    weight = exp_f32(min(score - lse, 80.0));
                                    if OUTPUT != VALUES {
                                        weight *= products[r][c] - stats[row + 1u];
                                    }
                                    if OUTPUT != BIAS {
                                        weight *= select(slope, 1.0, OUTPUT == VALUES);
                                    }
                                }
                            }
                            if OUTPUT == BIAS {
                                sums[0][r][c] += weight;
                            } else {
                                tile_weights[(x + c) * PITCH + y + r] = weight;
                            }
                        }
                    }
                    if OUTPUT != BIAS {
                        let matrix = select(select(OF_GRAD, OF_Q, OUTPUT == KEYS), OF_K, OUTPUT == QUERIES);
                        let width = select(params.d, params.d_v, OUTPUT == VALUES);
                        for (var chunk = 0u; chunk < CHUNKS; chunk++) {
                            if chunk * TILE < width {
                                workgroupBarrier();
                                stage_other(matrix, other_row, other_count, chunk * TILE, width, 0u, lane);
                                workgroupBarrier();
                                for (var inner = 0u; inner < TILE; inner++) {
                                    let a = four_weights(inner * PITCH + y);
                                    let b = four_other(inner * PITCH + x);
                                    sums[chunk][0] += a.x * b;
                                    sums[chunk][1] += a.y * b;
                                    sums[chunk][2] += a.z * b;
                                    sums[chunk][3] += a.w * b;
                                }
                            }
                        }
                    }
                }
            }
        }
    }
    if OUTPUT == BIAS {
        workgroupBarrier();
        for (var r = 0u; r < 4u; r++) {
            for (var c = 0u; c < 4u; c++) {
                tile_weights[(y + r) * PITCH + x + c] = sums[0][r][c];
            }
        }
        workgroupBarrier();
        if params.bias_query == 0u {
            if lane < TILE {
                var sum = 0.0;
                for (var row = 0u; row < TILE; row++) {
                    sum += tile_weights[row * PITCH + lane];
                }
                tile_weights[lane] = sum;
            }
            workgroupBarrier();
        }
        if params.bias_key == 0u {
            if lane < TILE {
                var sum = 0.0;
                for (var column = 0u; column < TILE; column++) {
                    sum += tile_weights[lane * PITCH + column];
                }
                tile_weights[lane * PITCH] = sum;
            }
            workgroupBarrier();
        }
        let s = sequence_at(sequence_first);
        for (var at = lane; at < TILE * TILE; at += 64u) {
            let row = at / TILE;
            let column = at % TILE;
            let i = s.i_first + place.y * TILE + row;
            let j = s.j_first + place.x * TILE + column;
            let in_row = select(i < params.i_limit, row == 0u, params.bias_query == 0u);
            let in_column = select(j < params.j_limit, column == 0u, params.bias_key == 0u);
            if in_row && in_column {
                let index = params.out_offset + s.bias_at + bias_head * params.bias_head + i * params.bias_query + j * params.bias_key;
                var before = 0.0;
                if (params.flags & 16u) != 0u {
                    before = out[index];
                }
                out[index] = before + tile_weights[row * PITCH + column];
            }
        }
    } else {
        let s = sequence_at(place.z);
        let by_keys = OUTPUT == KEYS || OUTPUT == VALUES;
        let width = select(params.d, params.d_v, OUTPUT == VALUES);
        let factor = select(1.0, params.scale, OUTPUT == QUERIES);
        let own = select(s.i_first, s.j_first, by_keys) + place.x * TILE;
        let limit = select(s.i_last, s.j_last, by_keys);
        let base = select(s.q_row + place.y * params.q_rows, s.kv_row + place.y * params.kv_rows, by_keys);
        for (var chunk = 0u; chunk < CHUNKS; chunk++) {
            for (var r = 0u; r < 4u; r++) {
                for (var c = 0u; c < 4u; c++) {
                    let column = chunk * TILE + x + c;
                    if own + y + r < limit && column < width {
                        let index = params.out_offset + (base + own + y + r) * width + column;
                        var before = 0.0;
                        if (params.flags & 16u) != 0u {
                            before = out[index];
                        }
                        out[index] = before + factor * sums[chunk][r][c];
                    }
                }
            }
        }
    }
}
