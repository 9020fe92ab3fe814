// Pages of latents: z = (R_{-n0} x - mean) E of 32 tokens, quantised and packed as src/kv/latents.rs has it, in one pass. A workgroup makes 32 channels of
// the 32 tokens of one page: rows are staged 32 columns at a time, each invocation sums 8 channels of a token, in the order of the columns.
//
// Codes, minima and scales are those of the CPU for the same z: every quotient is rounded as IEEE has it, by integers or exact comparisons. Reads the
// rows once for each 32 channels, E once for each page.
//
// The host appends const HALF: u32: whether x is pairs of f16.

struct Params {
    groups: u32,       // workgroups in all
    groups_x: u32,
    tiles: u32,        // of 32 channels, of this dispatch
    first_tile: u32,   // words of sets, as all places there
    d: u32,
    side: u32,         // 0 keys, 1 values
    bits: u32,
    exact: u32,        // bits of exact rows, 16 or 32
    x_offset: u32,     // elements from an index in the whole to one in the bound window, modulo 2^32; as all offsets
    x_sequence: u32,   // strides, elements
    x_head: u32,
    slot_offset: u32,
    slot_words: u32,
    head_words: u32,
    kv_heads: u32,
    places: u32,
    ring: u32,
    sinks: u32,
    page_offset: u32,
    page_words: u32,
    down_offset: u32,  // vectors
    turns: u32,
    pairs: u32,
    block: u32,        // tokens of a frame block, 0 for none
    angle_offset: u32, // elements
    pad0: u32,
    pad1: u32,
    pad2: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<u32>;            // (sequences, kv_heads, n, d), f32 bits or pairs of f16
@group(0) @binding(2) var<storage, read> slots: array<u32>;        // (slots, 2, kv_heads, words, places): exact rows, one channel a word or two f16
@group(0) @binding(3) var<storage, read> down: array<vec4<f32>>;   // (tiles, width, 8): E, 32 channels a tile, zeros behind the rank
@group(0) @binding(4) var<storage, read> angles: array<vec2<f32>>; // (blocks, pairs): cosine and sine
@group(0) @binding(5) var<storage, read> jobs: array<u32>;         // (jobs, 8): row of x, first new token, its index in x, page, place of the page, slot
@group(0) @binding(6) var<storage, read> sets: array<u32>;       // tiles (first head, width, rank, tile, params, codes, mean, down), turns, means
@group(0) @binding(7) var<storage, read_write> pages: array<u32>;  // (pages, words)
@group(0) @binding(8) var<storage, read_write> status: array<atomic<u32>>; // [2 + side]: 0xffffffff - the first token of a page with a latent too large

var<workgroup> rows: array<f32, 1024>; // [column][token], then z [channel][token]
var<workgroup> minima: array<f32, 32>;
var<workgroup> scales: array<f32, 32>;

// Element `at` of x.
fn x_element(at: u32) -> f32 {
    if HALF == 1u {
        return half_value((x[at / 2u] >> (16u * (at % 2u))) & 0xffffu);
    }
    return bitcast<f32>(x[at]);
}

// Column j of the row of token n, as exact rows have it.
fn kept(job: u32, n: u32, head: u32, j: u32) -> f32 {
    if n >= jobs[job + 1u] {
        let at = jobs[job] * params.x_sequence + head * params.x_head + (n - jobs[job + 2u]) * params.d + j + params.x_offset;
        let value = x_element(at);
        if params.exact == 16u {
            return half_value(half_bits(value));
        }
        return value;
    }
    var place = n;
    if n >= params.sinks {
        place = params.sinks + n % params.ring;
    }
    let first = jobs[job + 5u] * params.slot_words + (params.side * params.kv_heads + head) * params.head_words + params.slot_offset;
    if params.exact == 16u {
        return half_value((slots[first + j / 2u * params.places + place] >> (16u * (j % 2u))) & 0xffffu);
    }
    return bitcast<f32>(slots[first + j * params.places + place]);
}

// The same, turned back to the origin of its block.
fn turned(job: u32, n: u32, head: u32, j: u32) -> f32 {
    let own = kept(job, n, head, j);
    if params.side == 1u || params.block == 0u {
        return own;
    }
    let pair = sets[params.turns + 2u * j + 1u];
    if pair == 0xffffffffu {
        return own;
    }
    let partner = sets[params.turns + 2u * j];
    let other = kept(job, n, head, partner & 0x7fffffffu);
    let angle = angles[n / params.block * params.pairs + pair + params.angle_offset];
    let sine = select(angle.y, -angle.y, partner >= 0x80000000u);
    return own * angle.x + other * sine;
}

// x / levels (2^bits - 1) to nearest, ties to even, of a finite x that is not negative; 0 far below any f16.
fn divided(x: f32, levels: u32, bits: u32) -> f32 {
    let whole = bitcast<u32>(x);
    var exponent = whole >> 23u;
    if exponent < 24u {
        return 0.0;
    }
    exponent -= bits;
    let mantissa = ((whole & 0x7fffffu) | 0x800000u) << bits;
    var quotient = mantissa / levels;
    let rest = mantissa % levels;
    if quotient >= 0x1000000u {
        let odd = quotient & 1u;
        quotient >>= 1u;
        exponent += 1u;
        quotient += select(0u, 1u, odd == 1u && (rest != 0u || (quotient & 1u) == 1u));
    } else {
        quotient += select(0u, 1u, 2u * rest > levels);
    }
    return bitcast<f32>((exponent << 23u) + (quotient - 0x800000u));
}

// (z - minimum) / scale to nearest, ties to even, within 0..=levels. The products below are exact (9 bits times 11), and a quotient of f32 by f16 rounds
// to the middle of two codes only if it is that.
fn code(z: f32, minimum: f32, scale: f32, levels: u32) -> u32 {
    let x = z - minimum;
    let middle = 0.5 * scale;
    if scale == 0.0 || !(x > middle) {
        return 0u;
    }
    if x > f32(2u * levels - 1u) * middle {
        return levels;
    }
    let near = clamp(u32(x / scale + 0.5), 1u, levels);
    let above = f32(2u * near + 1u) * middle;
    let below = f32(2u * near - 1u) * middle;
    let odd = (near & 1u) == 1u;
    if x > above || (x == above && odd) {
        return near + 1u;
    }
    if x < below || (x == below && odd) {
        return near - 1u;
    }
    return near;
}

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let flat = group.y * params.groups_x + group.x;
    if flat >= params.groups {
        return;
    }
    let tile = params.first_tile + flat % params.tiles * 8u;
    let job = flat / params.tiles * 8u;
    let first_head = sets[tile];
    let width = sets[tile + 1u];
    let rank = sets[tile + 2u];
    let number = sets[tile + 3u];
    let mean = sets[tile + 6u];
    let first = jobs[job + 3u] * 32u;
    let token = lane % 32u;
    let eight = lane / 32u;

    var low = vec4<f32>();
    var high = vec4<f32>();
    for (var column = 0u; column < width; column += 32u) {
        for (var j = eight; j < 32u; j += 4u) {
            var value = 0.0;
            let own = column + j;
            if own < width {
                value = turned(job, first + token, first_head + own / params.d, own % params.d) - bitcast<f32>(sets[mean + own]);
            }
            rows[j * 32u + token] = value;
        }
        workgroupBarrier();
        for (var j = 0u; j < min(32u, width - column); j++) {
            let at = sets[tile + 7u] + (column + j) * 8u + eight * 2u + params.down_offset;
            let value = rows[j * 32u + token];
            low = fma(vec4<f32>(value), down[at], low);
            high = fma(vec4<f32>(value), down[at + 1u], high);
        }
        workgroupBarrier();
    }
    let channels = min(32u, rank - number * 32u);
    let skip = params.sinks - min(first, params.sinks);
    let largest = select(0x477fe000u, 0x7f7fffffu, params.bits == 32u);
    for (var i = 0u; i < 8u; i++) {
        let channel = eight * 8u + i;
        let z = select(low[i % 4u], high[i % 4u], i >= 4u);
        rows[channel * 32u + token] = z;
        if channel < channels && token >= skip && (bitcast<u32>(z) & 0x7fffffffu) > largest {
            atomicMax(&status[2u + params.side], 0xffffffffu - first);
        }
    }
    workgroupBarrier();

    let page = jobs[job + 4u] * params.page_words + params.page_offset;
    let levels = (1u << (params.bits & 15u)) - 1u;
    if params.bits <= 8u && lane < 32u {
        // Of keys a channel over the tokens that count, of values a token over the channels.
        let keys = params.side == 0u;
        let stride = select(32u, 1u, keys);
        let start = select(lane, lane * 32u, keys);
        var begin = 0u;
        var end = channels;
        if keys {
            begin = skip;
            end = select(0u, 32u, lane < channels);
        } else if lane < skip {
            end = 0u;
        }
        var minimum = 0.0;
        var scale = 0.0;
        if begin < end {
            var low_z = rows[start + begin * stride];
            var high_z = low_z;
            for (var i = begin + 1u; i < end; i++) {
                let z = rows[start + i * stride];
                low_z = min(low_z, z);
                high_z = max(high_z, z);
            }
            // No minimum of -0.
            let bits = select(half_bits(low_z), 0u, low_z == 0.0);
            minimum = half_value(bits);
            // From the rounded minimum, so that the largest code reaches the maximum.
            let word = bits | (half_bits(divided(max(high_z - minimum, 0.0), levels, params.bits)) << 16u);
            scale = half_value(word >> 16u);
            pages[page + sets[tile + 4u] + number * 32u + lane] = word;
        } else if !keys || lane < channels {
            pages[page + sets[tile + 4u] + number * 32u + lane] = 0u;
        }
        minima[lane] = minimum;
        scales[lane] = scale;
    }
    workgroupBarrier();

    let of_word = 32u / params.bits;
    let words = (channels + of_word - 1u) / of_word;
    for (var row = eight; row < words; row += 4u) {
        var word = 0u;
        for (var i = 0u; i < of_word; i++) {
            let channel = row * of_word + i;
            if channel >= channels {
                break;
            }
            let z = rows[channel * 32u + token];
            let by = select(token, channel, params.side == 0u);
            if params.bits == 32u {
                word = bitcast<u32>(z);
            } else if params.bits == 16u {
                word |= half_bits(z) << (16u * i);
            } else {
                word |= code(z, minima[by], scales[by], levels) << (params.bits * i);
            }
        }
        pages[page + sets[tile + 5u] + (number * 32u / of_word + row) * 32u + token] = word;
    }
}
