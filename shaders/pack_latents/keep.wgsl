// New tokens to their places in the exact rows of their sequences, rounded to what those are stored as (to nearest, ties to even). One invocation a word:
// one channel of a token, or two of f16. Reads and writes each element once. The host appends const HALF: u32: whether x is pairs of f16.

struct Params {
    words: u32,       // invocations: jobs * heads * of_row * most
    groups_x: u32,
    d: u32,
    exact: u32,       // 16 or 32
    x_offset: u32,
    x_sequence: u32,
    x_head: u32,
    slot_offset: u32, // that of the side in it
    slot_words: u32,
    head_words: u32,
    first_head: u32,
    heads: u32,
    of_row: u32,      // words of a token
    most: u32,        // tokens of the longest job
    places: u32,
    ring: u32,
    sinks: u32,
    pad0: u32,
    pad1: u32,
    pad2: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<u32>;           // (sequences, kv_heads, n, d)
@group(0) @binding(2) var<storage, read> jobs: array<u32>;        // (jobs, 8): row of x, first token, its index in x, tokens, slot
@group(0) @binding(3) var<storage, read_write> slots: array<u32>; // (slots, 2, kv_heads, words, places)

fn x_element(at: u32) -> f32 {
    if HALF == 1u {
        return half_value((x[at / 2u] >> (16u * (at % 2u))) & 0xffffu);
    }
    return bitcast<f32>(x[at]);
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let index = (group.y * params.groups_x + group.x) * 64u + lane;
    if index >= params.words {
        return;
    }
    let word = index % params.of_row;
    let token = index / params.of_row % params.most;
    let rest = index / params.of_row / params.most;
    let head = params.first_head + rest % params.heads;
    let job = rest / params.heads * 8u;
    if token >= jobs[job + 3u] {
        return;
    }
    let n = jobs[job + 1u] + token;
    var place = n;
    if n >= params.sinks {
        place = params.sinks + n % params.ring;
    }
    let row = jobs[job] * params.x_sequence + head * params.x_head + (jobs[job + 2u] + token) * params.d + params.x_offset;
    let to = jobs[job + 4u] * params.slot_words + head * params.head_words + word * params.places + place + params.slot_offset;
    if params.exact == 32u {
        slots[to] = bitcast<u32>(x_element(row + word));
        return;
    }
    var pair = half_bits(x_element(row + 2u * word));
    if 2u * word + 1u < params.d {
        pair |= half_bits(x_element(row + 2u * word + 1u)) << 16u;
    }
    slots[to] = pair;
}
