// out[row, :] = sum_j softmax_j(score[row, j]) v[j, :] and lse[row] = ln sum_j exp(score[row, j]), without ever holding the scores.
// One workgroup: BQ rows of one key head in one sequence (row = query * members + head in the group, so heads share the staged keys) and one of
// `splits` ranges of the keys they see. TR x 8 invocations, each BQ/TR rows x BK/8 scores and BQ/TR rows x D/8 elements of the output in registers.
// q (scaled), tiles of k, then of v, and the weights go through workgroup memory; max, sum and output are f32, divided once at the end.
// Keys no row sees are outside the loop's bounds; only tiles at an edge of the mask are masked.
// Params, bindings and masks are in problem.wgsl, the reductions of rows in by_workgroup.wgsl or by_subgroup.wgsl.
// 2 (d + d_v) flops a score and some 16 of its own exp (6 % at d = d_v = 64); k and v are read once for every BQ rows, q and out once: decode floors at the
// bytes of k and v over the bandwidth, prefill at the flops over the f32 rate. With splits, out and lse are partial results that merge.wgsl joins.

const TC: u32 = 8u;
const LANES: u32 = TR * TC;
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

fn attend(group: vec3<u32>, lane: u32, width: u32) {
    let part = part_of(group, BQ, BK);
    if part.rows == 0u {
        return;
    }
    let split = part.split;
    let head = part.head;
    let sequence = part.sequence;
    let q_first = part.q_first;
    let k_rows = part.k_rows;
    let row0 = part.row0;
    let rows = part.rows;
    let end = part.end;

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
        position[r] = i32(query[r]) + part.shift;
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

    // Rows with a score that is not finite, by bits: max and comparisons may take it for a hidden key.
    var strange = 0u;
    for (var key0 = part.begin; key0 < end; key0 += i32(BK)) {
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
        let whole = key0 >= part.all_first && key0 + i32(BK) <= min(part.all_last, end);
        if !whole {
            for (var r = 0u; r < RQ; r++) {
                for (var x = 0u; x < CK; x++) {
                    let key = key0 + i32(tc + TC * x);
                    if hidden(position[r], key, end) {
                        score[r * CK + x] = NO_KEY;
                    }
                }
            }
        }
        var local: array<f32, RQ>;
        for (var r = 0u; r < RQ; r++) {
            local[r] = NO_KEY;
            for (var x = 0u; x < CK; x++) {
                strange |= select(1u << r, 0u, finite(score[r * CK + x]));
                local[r] = max(local[r], score[r * CK + x]);
            }
        }
        rows_max(&local, lane, width); // with a barrier: nobody reads the keys any more
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
        for (var slice = 0u; slice < BK; slice += BKV) {
            for (var at = lane; at < BKV * D4; at += LANES) {
                let key = u32(key0) + slice + at / D4;
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
                    let weight = weights[(tr + TR * r) * BK + slice + j];
                    for (var x = 0u; x < OC; x++) {
                        sum[r * OC + x] += weight * values[x];
                    }
                }
            }
            workgroupBarrier();
        }
    }

    rows_sum(&total, lane, width);
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
        var fine = ((strange >> r) & 1u) == 0u && finite(log_sum) && finite(whole_total);
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
