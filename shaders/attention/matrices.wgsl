// out[row, :] = sum_j softmax_j(score[row, j]) v[j, :] and lse[row] = ln sum_j exp(score[row, j]) of f16 q, k and v, by matrix units. In two forms of one
// text: fragments are those of cooperative.wgsl (T x T x T matrices of a subgroup) or of emulated.wgsl (the same by plain loops, on every adapter).
// One workgroup: BQ rows of one key head in one sequence (row = query * members + head in the group), BQ/16 teams of 32 invocations, 16 rows each. A step:
// BK keys staged as f16; scores q k^T of a team's rows as fragments, in f32, to workgroup memory; two invocations a row mask them, find the largest, and
// write weights as f16; BK values staged where the keys were; the output, fragments in registers in f32, += weights v.
// q stays unscaled (exact in f16), scores are scaled in f32. Fragments have no elements to reach, so rows cannot be rescaled in registers: weights are
// exp(score - base) with a base per row that stays where it is until a score exceeds it by 10.5 (weights stay below 36316, within f16); then base becomes
// that score - 3 (small weights stay out of f16's subnormals) and the output goes once through workgroup memory, in the first steps only as a rule.
// Sums of weights are f32, before the rounding to f16; out is off by up to 2^-11 of each weight, by chance, and its own rounding.
// 2 (d + d_v) flops a score, d and d_v padded to D, at the matrix units' rate; beside them 2 reads of a score, 1 exp, 1 f16 store. Bytes: k and v once for
// every BQ rows, q and out once; workgroup memory a step: 2 BQ/16 BK D reads of keys and values (f16), BQ D of q, 12 BQ BK of scores and weights.
// Workgroup memory: 2 ((BQ + BK) (D + 8) + BQ (BK + 8)) + 4 BQ (BK + 4) + 4 BQ + 4 bytes: at most 31492 (D = 80). 4 barriers a step.
// Floor: flops over the rate of f16 matrix units with f32 sums. With splits, out and lse are partial results that merge.wgsl joins.

const ROWS: u32 = 16u;             // of a team
const LANES: u32 = 2u * BQ;
const HS: u32 = D + 8u;            // strides: whole units of 16 bytes, rows in different banks
const WS: u32 = BK + 8u;
const SS: u32 = BK + 4u;
const TILE_AT: u32 = BQ * HS;      // in halves: q, then keys or values, then weights
const WEIGHTS_AT: u32 = TILE_AT + BK * HS;
const HALVES: u32 = WEIGHTS_AT + BQ * WS;
const ROW_TILES: u32 = ROWS / T;
const COLUMN_TILES: u32 = D / T;
const KEY_TILES: u32 = BK / T;
const CHUNK: u32 = 16u;            // columns of the output that pass through `scores` at a time
const LIMIT: f32 = 10.5;
const HEADROOM: f32 = 3.0;

var<workgroup> scores: array<f32, BQ * SS>;
var<workgroup> fades: array<f32, BQ>;
var<workgroup> moved: atomic<u32>;  // whether a row's base moved in this step


// Two halves from an element on, of a row that has `left` more.
fn q_pair(at: u32, left: u32) -> u32 {
    var bits = q[at / 2u] >> (16u * (at % 2u));
    if at % 2u == 1u && left > 1u {
        bits |= q[at / 2u + 1u] << 16u;
    }
    return select(bits, bits & 0xffffu, left == 1u);
}

fn k_pair(at: u32, left: u32) -> u32 {
    var bits = k[at / 2u] >> (16u * (at % 2u));
    if at % 2u == 1u && left > 1u {
        bits |= k[at / 2u + 1u] << 16u;
    }
    return select(bits, bits & 0xffffu, left == 1u);
}

fn v_pair(at: u32, left: u32) -> u32 {
    var bits = v[at / 2u] >> (16u * (at % 2u));
    if at % 2u == 1u && left > 1u {
        bits |= v[at / 2u + 1u] << 16u;
    }
    return select(bits, bits & 0xffffu, left == 1u);
}

// Rows of `team` are computed as fragments by the calling subgroup; the row of an invocation for everything else follows from `lane`.
fn attend(group: vec3<u32>, lane: u32, team: u32) {
    let part = part_of(group, BQ, BK);
    if part.rows == 0u {
        return;
    }
    let end = part.end;
    let own = lane / 2u;
    let side = lane % 2u;
    // Rows past the end repeat the last and are not written.
    let row = min(part.row0 + own, part.rows - 1u);
    let query = params.first_query + row / params.members;
    let q_head = part.head * params.group + params.first_member + row % params.members;
    let position = i32(query) + part.shift;
    for (var at = lane; at < BQ * D4; at += LANES) {
        let other = min(part.row0 + at / D4, part.rows - 1u);
        let other_query = params.first_query + other / params.members;
        let other_head = part.head * params.group + params.first_member + other % params.members;
        let start = (part.q_first + other_head * params.q_len + other_query) * params.d + params.q_offset;
        for (var x = 0u; x < 4u; x += 2u) {
            let column = at % D4 * 4u + x;
            var bits = 0u;
            if column < params.d {
                bits = q_pair(start + column, params.d - column);
            }
            put_pair(at / D4 * HS + column, bits);
        }
    }
    for (var at = lane; at < BQ * SS; at += LANES) {
        scores[at] = 0.0;
    }
    workgroupBarrier();
    let first_row = team * ROWS;
    let zero = load_c(first_row * SS);
    var sum: array<FragmentC, ROW_TILES * COLUMN_TILES>;
    for (var x = 0u; x < ROW_TILES * COLUMN_TILES; x++) {
        sum[x] = zero;
    }
    var base = NO_KEY;
    var total = 0.0;
    var fine = true;

    for (var key0 = part.begin; key0 < end; key0 += i32(BK)) {
        for (var at = lane; at < BK * D4; at += LANES) {
            let key = u32(key0) + at / D4;
            for (var x = 0u; x < 4u; x += 2u) {
                let column = at % D4 * 4u + x;
                var bits = 0u;
                if key < u32(end) && column < params.d {
                    bits = k_pair((part.k_rows + key) * params.d + column + params.k_offset, params.d - column);
                }
                put_pair(TILE_AT + at / D4 * HS + column, bits);
            }
        }
        if lane == 0u {
            atomicStore(&moved, 0u);
        }
        workgroupBarrier();
        for (var r = 0u; r < ROW_TILES; r++) {
            var score: array<FragmentC, KEY_TILES>;
            for (var j = 0u; j < KEY_TILES; j++) {
                score[j] = zero;
            }
            for (var x = 0u; x < COLUMN_TILES; x++) {
                let rows = load_a((first_row + r * T) * HS + x * T, HS);
                for (var j = 0u; j < KEY_TILES; j++) {
                    score[j] = multiply_add(rows, load_keys(TILE_AT + j * T * HS + x * T, HS), score[j]);
                }
            }
            for (var j = 0u; j < KEY_TILES; j++) {
                store_c(score[j], (first_row + r * T) * SS + j * T);
            }
        }
        workgroupBarrier();
        for (var at = lane; at < BK * D4; at += LANES) {
            let key = u32(key0) + at / D4;
            for (var x = 0u; x < 4u; x += 2u) {
                let column = at % D4 * 4u + x;
                var bits = 0u;
                if key < u32(end) && column < params.d_v {
                    bits = v_pair((part.k_rows + key) * params.d_v + column + params.v_offset, params.d_v - column);
                }
                put_pair(TILE_AT + at / D4 * HS + column, bits);
            }
        }
        let whole = key0 >= part.all_first && key0 + i32(BK) <= min(part.all_last, end);
        var factor = params.scale;
        if !whole || (params.flags & (SOFTCAP | ALIBI | BIAS)) != 0u {
            factor = 1.0;
            for (var j = side * (BK / 2u); j < (side + 1u) * (BK / 2u); j++) {
                let key = key0 + i32(j);
                var s = NO_KEY;
                if !hidden(position, key, end) {
                    let distance = f32(abs(position - key));
                    s = modified(scores[own * SS + j] * params.scale, part.sequence, q_head, query, u32(key), distance);
                }
                scores[own * SS + j] = s;
            }
            workgroupBarrier();
        }
        // Both invocations of a row come to the same base, each sums its half.
        var largest = NO_KEY;
        for (var j = 0u; j < BK; j++) {
            largest = max(largest, scores[own * SS + j] * factor);
        }
        var fade = 1.0;
        if largest > base + LIMIT {
            let new_base = largest - HEADROOM;
            fade = decay(base - new_base);
            base = new_base;
            total *= fade;
            atomicStore(&moved, 1u);
        }
        if side == 0u {
            fades[own] = fade;
        }
        for (var j = side * (BK / 2u); j < (side + 1u) * (BK / 2u); j += 2u) {
            let s = vec2<f32>(scores[own * SS + j], scores[own * SS + j + 1u]) * factor;
            fine = fine && finite(s.x) && finite(s.y);
            // The built-in exp is far better than the f16 that these become.
            let weight = select(exp(max(s - base, vec2<f32>(-87.0))), vec2<f32>(), s <= vec2<f32>(NO_KEY));
            total += weight.x + weight.y;
            put_pair(WEIGHTS_AT + own * WS + j, pack2x16float(weight));
        }
        let rescale = workgroupUniformLoad(&moved);
        // In the first step the output is still zero.
        if rescale == 1u && key0 != part.begin {
            for (var c = 0u; c < D / CHUNK; c++) {
                for (var r = 0u; r < ROW_TILES; r++) {
                    for (var x = 0u; x < CHUNK / T; x++) {
                        store_c(sum[r * COLUMN_TILES + c * (CHUNK / T) + x], (first_row + r * T) * SS + x * T);
                    }
                }
                workgroupBarrier();
                for (var x = side * (CHUNK / 2u); x < (side + 1u) * (CHUNK / 2u); x++) {
                    scores[own * SS + x] *= fades[own];
                }
                workgroupBarrier();
                for (var r = 0u; r < ROW_TILES; r++) {
                    for (var x = 0u; x < CHUNK / T; x++) {
                        sum[r * COLUMN_TILES + c * (CHUNK / T) + x] = load_c((first_row + r * T) * SS + x * T);
                    }
                }
                workgroupBarrier();
            }
        }
        for (var j = 0u; j < KEY_TILES; j++) {
            for (var r = 0u; r < ROW_TILES; r++) {
                let weights = load_a(WEIGHTS_AT + (first_row + r * T) * WS + j * T, WS);
                for (var x = 0u; x < COLUMN_TILES; x++) {
                    let at = r * COLUMN_TILES + x;
                    sum[at] = multiply_add(weights, load_values(TILE_AT + j * T * HS + x * T, HS), sum[at]);
                }
            }
        }
        workgroupBarrier();
    }

    scores[own * SS + side] = total;
    workgroupBarrier();
    var whole_total = scores[own * SS] + scores[own * SS + 1u];
    workgroupBarrier();
    let written = part.row0 + own < part.rows;
    var fade = 1.0;
    if (params.flags & SINKS) != 0u && part.split == 0u {
        let sink = bitcast<f32>(tables[4u * params.sequences + q_head]);
        let new_base = max(base, sink);
        fade = decay(base - new_base);
        whole_total = whole_total * fade + decay(sink - new_base);
        base = new_base;
    }
    let out_row = part.q_first + q_head * params.q_len + query;
    let slot_row = (params.slot + part.split) * params.slot_rows + out_row;
    var factor = 0.0;
    var log_sum = NO_KEY;
    // A sum that is not a number is not above 0 and must still be seen.
    if whole_total > 0.0 || !finite(whole_total) {
        factor = fade / whole_total;
        log_sum = base + log(whole_total);
    }
    fine = fine && finite(log_sum) && finite(whole_total);
    for (var c = 0u; c < D / CHUNK; c++) {
        for (var r = 0u; r < ROW_TILES; r++) {
            for (var x = 0u; x < CHUNK / T; x++) {
                store_c(sum[r * COLUMN_TILES + c * (CHUNK / T) + x], (first_row + r * T) * SS + x * T);
            }
        }
        workgroupBarrier();
        for (var x = side * (CHUNK / 2u); x < (side + 1u) * (CHUNK / 2u); x += 2u) {
            let value = vec2<f32>(scores[own * SS + x], scores[own * SS + x + 1u]) * factor;
            let column = c * CHUNK + x;
            let start = slot_row * params.d_v + column + params.out_offset;
            if written && column < params.d_v {
                fine = fine && finite(value.x);
                if (params.flags & HALF_OUT) != 0u {
                    out[start / 2u] = pack2x16float(value);
                } else {
                    out[start] = bitcast<u32>(value.x);
                }
                if column + 1u < params.d_v {
                    fine = fine && finite(value.y);
                    if (params.flags & HALF_OUT) == 0u {
                        out[start + 1u] = bitcast<u32>(value.y);
                    }
                }
            }
        }
        workgroupBarrier();
    }
    if written {
        if side == 0u {
            lse[slot_row + params.lse_offset] = log_sum;
        }
        if !fine {
            atomicMax(&status[0], 0xffffffffu - out_row);
        }
    }
}
