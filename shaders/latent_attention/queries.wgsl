// Queries as pages want them: absorbed[unit, b, 0, r] = scale (R_{-n0} q_r) . mean, absorbed[unit, b, 1 + c, r] = scale (R_{-n0} q_r) . D_c for the r-th
// row of a unit and frame block b; or plain, 0 and scale q_r itself, for keys that are not latents. A workgroup makes 64 channels of one unit and block.
// The host appends const HALF: u32 (q is pairs of f16) and const R: u32 (rows of a unit, 4 or 8).

struct Params {
    groups: u32,
    groups_x: u32,
    d: u32,
    plain: u32,
    tiles: u32,        // of 64 channels
    channels: u32,     // from one block to the next
    blocks: u32,       // of this dispatch
    first_block: u32,
    angle_offset: u32, // elements
    heads_at: u32,
    turns: u32,
    pairs: u32,        // 0 where nothing turns
    up_offset: u32,
    q_offset: u32,
    q_heads: u32,
    q_len: u32,
    group: u32,
    first_member: u32,
    members: u32,
    first_query: u32,
    scale: f32,
    pad0: u32,
    pad1: u32,
    pad2: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<u32>;            // (sequences, q_heads, q_len, d)
@group(0) @binding(2) var<storage, read> units: array<u32>;        // (units, 8): kv head, first row, rows, sequence
@group(0) @binding(3) var<storage, read> up: array<f32>;           // of a head tiles of 64 channels (tiles, d, 64): mean, then D
@group(0) @binding(4) var<storage, read> angles: array<vec2<f32>>; // (blocks, pairs)
@group(0) @binding(5) var<storage, read> sets: array<u32>;
@group(0) @binding(6) var<storage, read_write> absorbed: array<f32>; // (units, blocks, channels, R)
@group(0) @binding(7) var<storage, read_write> status: array<atomic<u32>>; // [0]: 0xffffffff - the lowest element of q that is not finite

var<workgroup> turned: array<f32, 32u * R>;

// Element j of row r of a unit, times the scale.
fn query(unit: u32, r: u32, j: u32) -> f32 {
    let row = units[unit + 1u] + r;
    let head = units[unit] * params.group + params.first_member + row % params.members;
    let at = ((units[unit + 3u] * params.q_heads + head) * params.q_len + params.first_query + row / params.members) * params.d + j;
    var value = 0.0;
    var fine = true;
    if HALF == 1u {
        let place = at + params.q_offset;
        let half = (q[place / 2u] >> (16u * (place % 2u))) & 0xffffu;
        fine = (half & 0x7c00u) != 0x7c00u;
        value = half_value(half);
    } else {
        value = bitcast<f32>(q[at + params.q_offset]);
        fine = finite(value);
    }
    if !fine {
        atomicMax(&status[0], 0xffffffffu - at);
    }
    return value * params.scale;
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let flat = group.y * params.groups_x + group.x;
    if flat >= params.groups {
        return;
    }
    let channel = flat % params.tiles * 64u + lane;
    let b = flat / params.tiles % params.blocks;
    let number = flat / params.tiles / params.blocks;
    let unit = number * 8u;
    let rows = units[unit + 2u];
    let to = ((number * params.blocks + b) * params.channels + channel) * R;
    if params.plain == 1u {
        for (var r = 0u; r < R; r++) {
            var value = 0.0;
            if channel > 0u && channel <= params.d && r < rows {
                value = query(unit, r, channel - 1u);
            }
            if channel <= params.d {
                absorbed[to + r] = value;
            }
        }
        return;
    }
    let head = params.heads_at + units[unit] * 8u;
    let rank = sets[head + 2u];
    if flat % params.tiles * 64u > rank {
        return;
    }
    let source = sets[head + 6u] + flat % params.tiles * params.d * 64u + lane + params.up_offset;
    let origin = (params.first_block + b) * params.pairs + params.angle_offset;
    var sums = array<f32, R>();
    for (var column = 0u; column < params.d; column += 32u) {
        for (var index = lane; index < 32u * R; index += 64u) {
            let r = index % R;
            let j = column + index / R;
            var value = 0.0;
            if r < rows && j < params.d {
                value = query(unit, r, j);
                if params.pairs != 0u {
                    let pair = sets[params.turns + 2u * j + 1u];
                    if pair != 0xffffffffu {
                        let partner = sets[params.turns + 2u * j];
                        let angle = angles[origin + pair];
                        let sine = select(angle.y, -angle.y, partner >= 0x80000000u);
                        value = value * angle.x + query(unit, r, partner & 0x7fffffffu) * sine;
                    }
                }
            }
            turned[index] = value;
        }
        workgroupBarrier();
        for (var j = 0u; j < min(32u, params.d - column); j++) {
            let weight = up[source + (column + j) * 64u];
            for (var r = 0u; r < R; r++) {
                sums[r] += weight * turned[j * R + r];
            }
        }
        workgroupBarrier();
    }
    if channel <= rank {
        for (var r = 0u; r < R; r++) {
            absorbed[to + r] = sums[r];
        }
    }
}
