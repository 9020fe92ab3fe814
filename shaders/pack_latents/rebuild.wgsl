// Tokens of packed pages rebuilt, R_{n0}(mean + z D) or mean + z D: to the exact rows of their sequence, or as pages of 32 bits with d channels. An
// invocation makes four columns of a token: 2 rank multiply-adds a column, twice where it turns.

struct Params {
    invocations: u32, // jobs * heads * fours * 32
    groups_x: u32,
    d: u32,
    side: u32,
    bits: u32,
    to_slot: u32,     // bits of exact rows, 16 or 32; 0: to pages
    heads_at: u32,    // words of sets
    first_head: u32,
    heads: u32,
    fours: u32,       // groups of four columns
    page_offset: u32,
    page_words: u32,
    up_offset: u32,
    out_offset: u32,
    out_words: u32,   // of a job's page
    head_words: u32,
    places: u32,
    ring: u32,
    sinks: u32,
    first: u32,       // tokens that are wanted
    end: u32,
    turns: u32,
    pairs: u32,
    block: u32,
    angle_offset: u32, // elements
    pad0: u32,
    pad1: u32,
    pad2: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> jobs: array<u32>;         // (jobs, 2): place of the page, its number
@group(0) @binding(2) var<storage, read> sets: array<u32>;       // heads, turns
@group(0) @binding(3) var<storage, read> up: array<f32>;           // of a head mean and D: keys (tiles of 64 channels, d, 64), values (tiles of 64 columns, rank + 1, 64)
@group(0) @binding(4) var<storage, read> angles: array<vec2<f32>>; // (blocks, pairs)
@group(0) @binding(5) var<storage, read> pages: array<u32>;        // (pages, words)
@group(0) @binding(6) var<storage, read_write> out: array<u32>;    // slots, or (jobs, heads, d, 32)

// z of a channel and a token.
fn latent(page: u32, head: u32, channel: u32, token: u32) -> f32 {
    let of_word = 32u / params.bits;
    let codes = sets[head + 1u + 3u * params.side];
    let word = pages[page + codes + channel / of_word * 32u + token];
    if params.bits == 32u {
        return bitcast<f32>(word);
    }
    let shift = channel % of_word * params.bits;
    if params.bits == 16u {
        return half_value((word >> shift) & 0xffffu);
    }
    let at = select(channel, channel / 32u * 32u + token, params.side == 1u);
    let scaling = pages[page + sets[head + 3u * params.side] + at];
    return half_value(scaling & 0xffffu) + half_value(scaling >> 16u) * f32((word >> shift) & ((1u << params.bits) - 1u));
}

// Element c (0 the mean, then channels) of column j.
fn upward(head: u32, rank: u32, c: u32, j: u32) -> f32 {
    let at = sets[head + 6u + params.side] + params.up_offset;
    if params.side == 0u {
        return up[at + (c / 64u * params.d + j) * 64u + c % 64u];
    }
    return up[at + (j / 64u * (rank + 1u) + c) * 64u + j % 64u];
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let index = (group.y * params.groups_x + group.x) * 64u + lane;
    if index >= params.invocations {
        return;
    }
    let token = index % 32u;
    let column = index / 32u % params.fours * 4u;
    let rest = index / 32u / params.fours;
    let own_head = params.first_head + rest % params.heads;
    let job = rest / params.heads;
    let n = jobs[2u * job + 1u] * 32u + token;
    if n < params.first || n >= params.end {
        return;
    }
    let head = params.heads_at + own_head * 8u;
    let rank = sets[head + 2u + 3u * params.side];
    let page = jobs[2u * job] * params.page_words + params.page_offset;
    let turning = params.side == 0u && params.block != 0u;
    var partners = vec4<u32>();
    var pairs = vec4<u32>(0xffffffffu);
    var own = vec4<f32>();
    var other = vec4<f32>();
    for (var i = 0u; i < 4u; i++) {
        let j = min(column + i, params.d - 1u);
        own[i] = upward(head, rank, 0u, j);
        if turning {
            partners[i] = sets[params.turns + 2u * j];
            pairs[i] = sets[params.turns + 2u * j + 1u];
            other[i] = upward(head, rank, 0u, partners[i] & 0x7fffffffu);
        }
    }
    for (var c = 0u; c < rank; c++) {
        let z = latent(page, head, c, token);
        for (var i = 0u; i < 4u; i++) {
            own[i] += z * upward(head, rank, c + 1u, min(column + i, params.d - 1u));
        }
        if turning {
            for (var i = 0u; i < 4u; i++) {
                other[i] += z * upward(head, rank, c + 1u, partners[i] & 0x7fffffffu);
            }
        }
    }
    if turning {
        for (var i = 0u; i < 4u; i++) {
            if pairs[i] != 0xffffffffu {
                let angle = angles[n / params.block * params.pairs + pairs[i] + params.angle_offset];
                own[i] = own[i] * angle.x + other[i] * select(-angle.y, angle.y, partners[i] >= 0x80000000u);
            }
        }
    }
    if params.to_slot == 0u {
        for (var i = 0u; i < min(4u, params.d - column); i++) {
            out[job * params.out_words + (rest % params.heads * params.d + column + i) * 32u + token + params.out_offset] = bitcast<u32>(own[i]);
        }
        return;
    }
    let place = params.sinks + n % params.ring;
    let row = own_head * params.head_words + place + params.out_offset;
    for (var i = 0u; i < min(4u, params.d - column); i++) {
        if params.to_slot == 32u {
            out[row + (column + i) * params.places] = bitcast<u32>(own[i]);
        } else if i % 2u == 0u {
            var pair = half_bits(clamp(own[i], -65504.0, 65504.0));
            if column + i + 1u < params.d {
                pair |= half_bits(clamp(own[i + 1u], -65504.0, 65504.0)) << 16u;
            }
            out[row + (column + i) / 2u * params.places] = pair;
        }
    }
}
