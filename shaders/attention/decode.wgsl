// out[row, :] = sum_j softmax_j(score[row, j]) v[j, :] and lse[row] = ln sum_j exp(score[row, j]) of few rows: decoding.
// One workgroup: up to R rows of one key head in one sequence (row = query * members + head in the group) and one of `splits` ranges of the keys they
// see. Runs of L invocations each take every (128 / L)-th key, U at a time, straight from memory to registers, and keep their own max, sum and output:
// an invocation holds D/L columns of q and of the output for each row. Scores are summed over the run, by shuffles where subgroups.wgsl finds runs in
// one subgroup; the runs are joined once, at the end, in their order. Params, bindings and masks are in problem.wgsl.
// 2 (d + d_v) flops a score; k and v are read once for every R rows, q and out once: floors at the bytes of k and v over the bandwidth.
// With splits, out and lse are partial results that merge.wgsl joins.

const LANES: u32 = 128u;
const RUNS: u32 = LANES / L;
const STEP: u32 = RUNS * U;          // keys at a time
const E: u32 = (D4 + L - 1u) / L;    // fours of columns an invocation holds

var<workgroup> exchange: array<f32, LANES * max(U, 4u * E)>;
var<workgroup> run_max: array<f32, RUNS * R>;
var<workgroup> run_sum: array<f32, RUNS * R>;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_invocation_id) invocation: u32,
) {
    let part = part_of(group, R, STEP);
    if part.rows == 0u {
        return;
    }
    let width = runs(lane, invocation, L);
    let run = lane / L;
    let own = lane % L;
    var position: array<i32, R>;
    var query: array<u32, R>;
    var q_head: array<u32, R>;
    var largest: array<f32, R>;
    var total: array<f32, R>;
    var scaled: array<vec4<f32>, R * E>;
    var sum: array<vec4<f32>, R * E>;
    for (var r = 0u; r < R; r++) {
        // Rows past the end repeat the last and are not written.
        let row = min(part.row0 + r, part.rows - 1u);
        query[r] = params.first_query + row / params.members;
        q_head[r] = part.head * params.group + params.first_member + row % params.members;
        position[r] = i32(query[r]) + part.shift;
        largest[r] = NO_KEY;
        total[r] = 0.0;
        let start = (part.q_first + q_head[r] * params.q_len + query[r]) * params.d + params.q_offset;
        for (var x = 0u; x < E; x++) {
            let column = (own + L * x) * 4u;
            scaled[r * E + x] = q_four(start + column, column) * params.scale;
            sum[r * E + x] = vec4<f32>();
        }
    }

    // Rows with a score that is not finite, by bits: max and comparisons may take it for a hidden key.
    var strange = 0u;
    for (var key0 = part.begin; key0 < part.end; key0 += i32(STEP)) {
        var keys: array<vec4<f32>, U * E>;
        var values: array<vec4<f32>, U * E>;
        for (var u = 0u; u < U; u++) {
            let key = u32(key0) + u * RUNS + run;
            if key < u32(part.end) {
                for (var x = 0u; x < E; x++) {
                    let column = (own + L * x) * 4u;
                    keys[u * E + x] = k_four((part.k_rows + key) * params.d + column + params.k_offset, column);
                }
                for (var x = 0u; x < E; x++) {
                    let column = (own + L * x) * 4u;
                    values[u * E + x] = v_four((part.k_rows + key) * params.d_v + column + params.v_offset, column);
                }
            }
        }
        let whole = key0 >= part.all_first && key0 + i32(STEP) <= min(part.all_last, part.end);
        for (var r = 0u; r < R; r++) {
            var score: array<f32, U>;
            for (var u = 0u; u < U; u++) {
                score[u] = 0.0;
                for (var x = 0u; x < E; x++) {
                    score[u] += dot(scaled[r * E + x], keys[u * E + x]);
                }
            }
            for (var stride = 1u; stride < L; stride *= 2u) {
                if stride < width {
                    for (var u = 0u; u < U; u++) {
                        score[u] += subgroupShuffleXor(score[u], stride);
                    }
                } else {
                    workgroupBarrier();
                    for (var u = 0u; u < U; u++) {
                        exchange[u * LANES + lane] = score[u];
                    }
                    workgroupBarrier();
                    for (var u = 0u; u < U; u++) {
                        score[u] += exchange[u * LANES + (lane ^ stride)];
                    }
                }
            }
            var new_largest = largest[r];
            for (var u = 0u; u < U; u++) {
                let key = key0 + i32(u * RUNS + run);
                if (params.flags & (SOFTCAP | ALIBI | BIAS)) != 0u && key < part.end {
                    let distance = f32(abs(position[r] - key));
                    score[u] = modified(score[u], part.sequence, q_head[r], query[r], u32(key), distance);
                }
                if !whole && hidden(position[r], key, part.end) {
                    score[u] = NO_KEY;
                }
                strange |= select(1u << r, 0u, finite(score[u]));
                new_largest = max(new_largest, score[u]);
            }
            let fade = decay(largest[r] - new_largest);
            largest[r] = new_largest;
            total[r] *= fade;
            for (var x = 0u; x < E; x++) {
                sum[r * E + x] *= fade;
            }
            for (var u = 0u; u < U; u++) {
                let weight = select(decay(score[u] - new_largest), 0.0, score[u] <= NO_KEY);
                total[r] += weight;
                for (var x = 0u; x < E; x++) {
                    sum[r * E + x] += weight * values[u * E + x];
                }
            }
        }
    }

    // Join the runs, row by row.
    if own == 0u {
        for (var r = 0u; r < R; r++) {
            run_max[r * RUNS + run] = largest[r];
            run_sum[r * RUNS + run] = total[r];
            if ((strange >> r) & 1u) == 1u && part.row0 + r < part.rows {
                atomicMax(&status[0], 0xffffffffu - (part.q_first + q_head[r] * params.q_len + query[r]));
            }
        }
    }
    for (var r = 0u; r < R; r++) {
        workgroupBarrier();
        var row_max = NO_KEY;
        for (var g = 0u; g < RUNS; g++) {
            row_max = max(row_max, run_max[r * RUNS + g]);
        }
        if (params.flags & SINKS) != 0u && part.split == 0u {
            row_max = max(row_max, bitcast<f32>(tables[4u * params.sequences + q_head[r]]));
        }
        let fade = decay(largest[r] - row_max);
        for (var x = 0u; x < E; x++) {
            let faded = sum[r * E + x] * fade;
            for (var c = 0u; c < 4u; c++) {
                exchange[(4u * x + c) * LANES + lane] = faded[c];
            }
        }
        workgroupBarrier();
        if lane < D4 && part.row0 + r < part.rows {
            var row_sum = 0.0;
            for (var g = 0u; g < RUNS; g++) {
                row_sum += run_sum[r * RUNS + g] * decay(run_max[r * RUNS + g] - row_max);
            }
            if (params.flags & SINKS) != 0u && part.split == 0u {
                row_sum += decay(bitcast<f32>(tables[4u * params.sequences + q_head[r]]) - row_max);
            }
            let row = part.q_first + q_head[r] * params.q_len + query[r];
            let slot_row = (params.slot + part.split) * params.slot_rows + row;
            var factor = 0.0;
            var log_sum = NO_KEY;
            // A sum that is not a number is not above 0 and must still be seen.
            if row_sum > 0.0 || !finite(row_sum) {
                factor = 1.0 / row_sum;
                log_sum = row_max + log(row_sum);
            }
            var fine = finite(log_sum) && finite(row_sum);
            let column = lane * 4u;
            let start = slot_row * params.d_v + column + params.out_offset;
            var four = vec4<f32>();
            for (var c = 0u; c < 4u; c++) {
                for (var g = 0u; g < RUNS; g++) {
                    four[c] += exchange[(4u * (lane / L) + c) * LANES + g * L + lane % L];
                }
                four[c] *= factor;
            }
            for (var c = 0u; c < 4u; c++) {
                if column + c >= params.d_v {
                    break;
                }
                fine = fine && finite(four[c]);
                if (params.flags & HALF_OUT) == 0u {
                    out[start + c] = bitcast<u32>(four[c]);
                } else if c % 2u == 0u {
                    out[(start + c) / 2u] = pack2x16float(vec2<f32>(four[c], four[c + 1u]));
                }
            }
            if lane == 0u {
                lse[slot_row + params.lse_offset] = log_sum;
            }
            if !fine {
                atomicMax(&status[0], 0xffffffffu - row);
            }
        }
    }
}
