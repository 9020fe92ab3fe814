// What the kernels of attention's forward pass share: params and bindings, elements, what becomes of a score, which rows and keys a workgroup has.

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
    first_in_tables: u32, // the sequence that the tables begin with
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

const NO_KEY: f32 = -1e30;
const D4: u32 = D / 4u;

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

// exp of a number that is not above 0, within 1.5 ulp: WGSL allows its own exp 3 + 2 |x|, which shows where values cancel.
fn decay(x: f32) -> f32 {
    return exp_f32(x);
}

// tanh within 2 eps also near 0, where a driver's own may be off by eps of 1.
fn saturate_score(x: f32) -> f32 {
    let size = abs(x);
    if size < 0.25 {
        let s = x * x;
        return x * (1.0 + s * (-0.333333333 + s * (0.133333333 + s * (-0.053968254 + s * 0.021869489))));
    }
    let tail = 2.0 / (exp_f32(min(2.0 * size, 40.0)) + 1.0);
    return select(-1.0, 1.0, x > 0.0) * (1.0 - tail);
}

// What softcap, ALiBi and the bias make of a score.
fn modified(score: f32, sequence: u32, head: u32, query: u32, key: u32, distance: f32) -> f32 {
    if !finite(score) {
        return score; // the soft cap would make a number of it
    }
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
        if size >= 0x7f800000u {
            return bitcast<f32>(bits);
        }
        s += bitcast<f32>(bits);
    }
    return s;
}

// A workgroup's part: row0.. of `rows` (row = query * members + head in the group), keys begin..end; a stretch of keys within all_first..all_last is
// seen by all its rows. Without rows there is nothing to do.
struct Part {
    split: u32,
    head: u32,
    sequence: u32,
    q_first: u32,
    k_rows: u32,
    row0: u32,
    rows: u32,
    shift: i32,     // from a query to its position among the keys
    begin: i32,
    end: i32,
    all_first: i32,
    all_last: i32,
}

// The part of a workgroup of `height` rows that goes through keys in steps of `stride`.
fn part_of(group: vec3<u32>, height: u32, stride: u32) -> Part {
    var part: Part;
    part.rows = 0u;
    let flat = group.y * params.groups_x + group.x;
    if flat >= params.groups {
        return part;
    }
    part.split = flat % params.splits;
    let place = flat / params.splits;
    part.head = params.first_head + (place / params.tiles) % params.heads;
    let sequence = params.first_sequence + place / params.tiles / params.heads;
    part.sequence = sequence;
    part.q_first = sequence * params.q_heads * params.q_len;
    var q_count = params.q_len;
    var kv_first = sequence * params.kv_heads * params.kv_len;
    var kv_count = params.kv_len;
    if (params.flags & TABLE) != 0u {
        let row = 4u * (sequence - params.first_in_tables);
        part.q_first = tables[row];
        q_count = tables[row + 1u];
        kv_first = tables[row + 2u];
        kv_count = tables[row + 3u];
    }
    let last_query = min(params.first_query + params.queries, q_count);
    let rows = (last_query - min(params.first_query, last_query)) * params.members;
    part.row0 = (place % params.tiles) * height;
    if part.row0 >= rows {
        return part;
    }
    part.rows = rows;
    part.k_rows = kv_first + part.head * params.kv_len;
    part.shift = i32(kv_count) - i32(q_count);

    // Keys that any row sees, and those that all see.
    let lowest = i32(params.first_query + part.row0 / params.members) + part.shift;
    let highest = i32(params.first_query + (min(part.row0 + height, rows) - 1u) / params.members) + part.shift;
    let window = i32(params.window);
    var first = i32(params.first_key);
    var last = min(i32(params.last_key), i32(kv_count));
    part.all_first = 0;
    part.all_last = last;
    if (params.flags & CAUSAL) != 0u {
        last = min(last, highest + 1);
        part.all_last = lowest + 1;
    } else if (params.flags & WINDOW) != 0u {
        last = min(last, highest + window);
        part.all_last = lowest + window;
    }
    if (params.flags & WINDOW) != 0u {
        first = max(first, lowest - window + 1);
        part.all_first = highest - window + 1;
    }
    let strides = (u32(max(last - first, 0)) + stride - 1u) / stride;
    let length = i32((strides + params.splits - 1u) / params.splits * stride);
    part.begin = first + i32(part.split) * length;
    part.end = min(part.begin + length, last);
    return part;
}

// Whether the mask hides a key from the query at `position`.
fn hidden(position: i32, key: i32, end: i32) -> bool {
    let ahead = key - position;
    let window = i32(params.window);
    return key >= end || ((params.flags & CAUSAL) != 0u && ahead > 0)
        || ((params.flags & WINDOW) != 0u && (-ahead >= window || ahead >= window));
}
