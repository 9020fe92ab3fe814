// Parts of a row joined and brought to d: with w = exp(m - max m), out = (sum w o D + sum w l mean + sum w' o') / (sum w l + sum w' l'), where o are latents
// and o' rows, and the log-sum-exp; in the order of the parts. A workgroup makes 64 columns of one row: reads its parts once for each 64 columns, D once a row.
// Rows that see no token give zeros and -1e30. The host appends const HALF: u32: whether out is pairs of f16 (d is even then).

struct Params {
    groups: u32,
    groups_x: u32,
    d: u32,
    rows_of_unit: u32,
    tiles: u32,          // of 64 columns, of this dispatch
    first_tile: u32,
    heads_at: u32,
    up_offset: u32,
    part_stride: u32,
    part_tiles: u32,     // of a row's m and l
    exact_stride: u32,
    exact_tiles: u32,
    out_offset: u32,
    lse_offset: u32,
    q_heads: u32,
    q_len: u32,
    group: u32,
    first_member: u32,
    members: u32,
    first_query: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> units: array<u32>;  // (units, 8): kv head, first row, rows, sequence, first part, parts, first exact part, parts
@group(0) @binding(2) var<storage, read> sets: array<u32>; // heads
@group(0) @binding(3) var<storage, read> up: array<f32>;     // of a head (tiles, rank + 1, 64): mean, then D
@group(0) @binding(4) var<storage, read> parts: array<f32>;
@group(0) @binding(5) var<storage, read> exacts: array<f32>;
@group(0) @binding(6) var<storage, read_write> out: array<u32>; // (sequences, q_heads, q_len, d)
@group(0) @binding(7) var<storage, read_write> lse: array<f32>; // (sequences, q_heads, q_len)
@group(0) @binding(8) var<storage, read_write> status: array<atomic<u32>>; // [1]: 0xffffffff - the lowest element of out that is not finite

const NO_KEY: f32 = -1e30;
const TILE: u32 = 512u;

var<workgroup> latents: array<f32, TILE>;
var<workgroup> row_out: array<f32, 64>;

fn decay(x: f32) -> f32 {
    return exp(max(x, -120.0));
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let flat = group.y * params.groups_x + group.x;
    if flat >= params.groups {
        return;
    }
    let tile = params.first_tile + flat % params.tiles;
    let r = flat / params.tiles % params.rows_of_unit;
    let unit = flat / params.tiles / params.rows_of_unit * 8u;
    if r >= units[unit + 2u] {
        return;
    }
    let head = params.heads_at + units[unit] * 8u;
    let rank = sets[head + 5u];
    let count = units[unit + 5u];
    let exact_count = units[unit + 7u];
    let first = (units[unit + 4u] * params.rows_of_unit + r) * params.part_stride;
    let first_exact = (units[unit + 6u] * params.rows_of_unit + r) * params.exact_stride;
    let step = params.rows_of_unit * params.part_stride;
    let exact_step = params.rows_of_unit * params.exact_stride;

    var largest = NO_KEY;
    for (var p = 0u; p < count; p++) {
        largest = max(largest, parts[first + p * step]);
    }
    for (var p = 0u; p < exact_count; p++) {
        largest = max(largest, exacts[first_exact + p * exact_step]);
    }
    var total = 0.0;
    for (var p = 0u; p < count; p++) {
        total += decay(parts[first + p * step] - largest) * parts[first + p * step + 1u];
    }
    for (var p = 0u; p < exact_count; p++) {
        total += decay(exacts[first_exact + p * exact_step] - largest) * exacts[first_exact + p * exact_step + 1u];
    }

    var sum = 0.0;
    if count > 0u {
        let source = sets[head + 7u] + tile * (rank + 1u) * 64u + lane + params.up_offset;
        for (var c = 0u; c <= rank; c += TILE) {
            let end = min(TILE, rank + 1u - c);
            for (var i = lane; i < end; i += 64u) {
                // The sum of weights, for the mean, then the latents.
                let at = select(2u * params.part_tiles + c + i - 1u, 1u, c + i == 0u);
                var latent = 0.0;
                for (var p = 0u; p < count; p++) {
                    latent += decay(parts[first + p * step] - largest) * parts[first + p * step + at];
                }
                latents[i] = latent;
            }
            workgroupBarrier();
            for (var i = 0u; i < end; i++) {
                sum += latents[i] * up[source + (c + i) * 64u];
            }
            workgroupBarrier();
        }
    }
    let column = tile * 64u + lane;
    if column < params.d {
        for (var p = 0u; p < exact_count; p++) {
            sum += decay(exacts[first_exact + p * exact_step] - largest) * exacts[first_exact + p * exact_step + 2u * params.exact_tiles + column];
        }
    }
    let row_of_unit = units[unit + 1u] + r;
    let own_head = units[unit] * params.group + params.first_member + row_of_unit % params.members;
    let row = (units[unit + 3u] * params.q_heads + own_head) * params.q_len + params.first_query + row_of_unit / params.members;
    var fine = finite(total);
    var value = 0.0;
    var log_sum = NO_KEY;
    if total > 0.0 {
        value = sum / total;
        log_sum = largest + log(total);
    }
    row_out[lane] = value;
    workgroupBarrier();
    if column >= params.d {
        return;
    }
    fine = fine && finite(sum) && finite(value);
    let at = row * params.d + column;
    if HALF == 0u {
        out[at + params.out_offset] = bitcast<u32>(value);
    } else {
        fine = fine && abs(value) < 65520.0;
        if lane % 2u == 0u {
            out[(at + params.out_offset) / 2u] = half_bits(value) | (half_bits(row_out[lane + 1u]) << 16u);
        }
    }
    if column == 0u {
        fine = fine && finite(log_sum);
        lse[row + params.lse_offset] = log_sum;
    }
    if !fine {
        atomicMax(&status[1], 0xffffffffu - at);
    }
}
