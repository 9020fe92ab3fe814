// Attention of the R rows of a unit over some pages, in the space of their latents: for each row the largest score m, l = sum exp(s - m) and
// o = sum exp(s - m) z_v, over tokens n of scores s = absorbed[0] + sum_c absorbed[1 + c] z_k[c]. Exact rows are pages too, of d channels.
//
// A workgroup takes 64 tokens at a time. Scores: an invocation a token, so that words of codes are read side by side, each latent is made once for R rows.
// Sums: an invocation some words of channels and every S-th of the tokens, all in registers until the end. Reads every code once for each R rows (and for
// each CHANNELS channels of values beyond the first): floor bytes of the pages over the bandwidth, while R and the group are the same.
//
// The host appends const R: u32 (4 or 8), const VALUE_BITS: u32, const WORDS: u32 (words of an invocation).

struct Params {
    groups: u32,
    groups_x: u32,
    tiles: u32,         // of 64 * WORDS words of values
    exact: u32,         // pages are places of exact rows
    key_bits: u32,
    heads_at: u32,      // words of sets
    entries: u32,       // words of tables
    key_words: u32,     // of a page of keys
    key_offset: u32,
    value_words: u32,
    value_offset: u32,
    stride: u32,        // tokens of a word's row
    channels: u32,      // of absorbed, from one block to the next
    blocks: u32,
    first_block: u32,
    block: u32,         // tokens of a frame block, 0 where there is one for all
    causal: u32,
    members: u32,
    first_query: u32,
    part_stride: u32,   // elements of a row of a part
    sinks: u32,
    ring: u32,
    places: u32,
    pad0: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> tables: array<u32>;         // records (12 words each, as read below), entries (place of the page of keys, of values)
@group(0) @binding(2) var<storage, read> sets: array<u32>;         // heads (key params, codes, rank, value params, codes, rank)
@group(0) @binding(3) var<storage, read> absorbed: array<vec4<f32>>; // (units, blocks, channels, R / 4)
@group(0) @binding(4) var<storage, read> keys: array<u32>;
@group(0) @binding(5) var<storage, read> values: array<u32>;
@group(0) @binding(6) var<storage, read_write> parts: array<f32>;    // (parts, R, part_stride): m and l for each tile, o
@group(0) @binding(7) var<storage, read_write> status: array<atomic<u32>>; // [2]: a score is not finite

const NO_KEY: f32 = -1e30;
const LANES: u32 = 64u;
const SHARES: u32 = 8u;
const V: u32 = R / 4u;
const OF_WORD: u32 = 32u / VALUE_BITS;

alias Rows = array<vec4<f32>, V>;

var<workgroup> weights: array<vec4<f32>, LANES * V>;
var<workgroup> maxima: array<vec4<f32>, SHARES * V>;

// exp of a number that is not above 0; far below, drivers differ.
fn decay(x: vec4<f32>) -> vec4<f32> {
    return exp(max(x, vec4<f32>(-120.0)));
}

// Scores of integers: absorbed times minimum + scale * code, a minimum and a scale for each channel.
fn by_codes(bits: u32, source: u32, page: u32, codes: u32, rank: u32) -> Rows {
    var sums = Rows();
    let of_word = 32u / bits;
    let mask = (1u << bits) - 1u;
    for (var first = 0u; first < rank; first += of_word) {
        let word = keys[codes + first / of_word * params.stride];
        for (var i = 0u; i < of_word; i++) {
            if first + i < rank {
                let scaling = unpack2x16float(keys[page + first + i]);
                let z = fma(scaling.y, f32((word >> (bits * i)) & mask), scaling.x);
                for (var v = 0u; v < V; v++) {
                    sums[v] = fma(vec4<f32>(z), absorbed[source + (first + i) * V + v], sums[v]);
                }
            }
        }
    }
    return sums;
}

fn by_halves(source: u32, codes: u32, rank: u32) -> Rows {
    var sums = Rows();
    for (var first = 0u; first < rank; first += 2u) {
        let pair = unpack2x16float(keys[codes + first / 2u * params.stride]);
        for (var v = 0u; v < V; v++) {
            sums[v] = fma(vec4<f32>(pair.x), absorbed[source + first * V + v], sums[v]);
        }
        if first + 1u < rank {
            for (var v = 0u; v < V; v++) {
                sums[v] = fma(vec4<f32>(pair.y), absorbed[source + (first + 1u) * V + v], sums[v]);
            }
        }
    }
    return sums;
}

fn by_floats(source: u32, codes: u32, rank: u32) -> Rows {
    var sums = Rows();
    for (var c = 0u; c < rank; c++) {
        let z = bitcast<f32>(keys[codes + c * params.stride]);
        for (var v = 0u; v < V; v++) {
            sums[v] = fma(vec4<f32>(z), absorbed[source + c * V + v], sums[v]);
        }
    }
    return sums;
}

fn scores(source: u32, page: u32, codes: u32, rank: u32) -> Rows {
    switch params.key_bits {
        case 2u: {
            return by_codes(2u, source, page, codes, rank);
        }
        case 4u: {
            return by_codes(4u, source, page, codes, rank);
        }
        case 8u: {
            return by_codes(8u, source, page, codes, rank);
        }
        case 16u: {
            return by_halves(source, codes, rank);
        }
        default: {
            return by_floats(source, codes, rank);
        }
    }
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let flat = group.y * params.groups_x + group.x;
    if flat >= params.groups {
        return;
    }
    let tile = flat % params.tiles;
    let record = flat / params.tiles * 12u;
    let unit = tables[record];
    let head = params.heads_at + tables[record + 1u] * 8u;
    let rows = tables[record + 2u];
    let row0 = tables[record + 3u];
    let entry = params.entries + 2u * tables[record + 4u];
    let pages = tables[record + 5u];
    let first_page = tables[record + 6u];
    let part = tables[record + 7u] * R;
    let continued = tables[record + 8u] == 1u;
    let len = tables[record + 9u];
    let shift = bitcast<i32>(tables[record + 10u]);
    let boundary = tables[record + 11u];

    // Which words of values an invocation sums, and of which tokens.
    let rank = sets[head + 5u];
    let all_words = (rank + OF_WORD - 1u) / OF_WORD;
    let first_word = tile * LANES * WORDS;
    if first_word >= max(all_words, 1u) {
        return;
    }
    let words = min(all_words - first_word, LANES * WORDS);
    var subsets = 1u;
    while subsets < 32u && 2u * subsets * words <= LANES {
        subsets *= 2u;
    }
    let own_word = lane / subsets;
    let step_word = LANES / subsets;
    let subset = lane % subsets;

    // Tokens that each row sees.
    var seen = array<vec4<u32>, V>();
    for (var r = 0u; r < rows; r++) {
        var count = len;
        if params.causal == 1u {
            count = u32(clamp(i32(params.first_query + (row0 + r) / params.members) + 1 + shift, 0, i32(len)));
        }
        seen[r / 4u][r % 4u] = count;
    }

    var largest = Rows();
    for (var v = 0u; v < V; v++) {
        largest[v] = vec4<f32>(NO_KEY);
    }
    var sums = Rows();
    var totals = array<vec4<f32>, WORDS * OF_WORD * V>();
    var fine = true;
    for (var step = 0u; step < pages; step += 2u) {
        let at = step + lane / 32u;
        let page = first_page + at;
        var n = page * 32u + lane % 32u;
        var in_page = lane % 32u;
        var live = at < pages;
        if params.exact == 1u {
            in_page = n;
            live = live && in_page < params.places;
            if in_page >= params.sinks {
                // The token of this place of the ring, if there is one.
                let start = max(boundary, params.sinks);
                n = start + (in_page - params.sinks + params.ring - start % params.ring) % params.ring;
            }
        } else {
            live = live && n >= params.sinks;
        }
        live = live && n < len;
        var s = Rows();
        for (var v = 0u; v < V; v++) {
            s[v] = vec4<f32>(NO_KEY);
        }
        if live {
            let base = tables[select(entry + 2u * at, entry, params.exact == 1u)] * params.key_words + params.key_offset;
            var b = 0u;
            if params.block != 0u {
                b = page * 32u / params.block - params.first_block;
            }
            let source = (unit * params.blocks + b) * params.channels * V;
            let found = scores(source + V, base + sets[head], base + sets[head + 1u] + in_page, sets[head + 2u]);
            for (var v = 0u; v < V; v++) {
                let score = found[v] + absorbed[source + v];
                s[v] = select(s[v], score, vec4<u32>(n) < seen[v]);
                fine = fine && finite(score.x) && finite(score.y) && finite(score.z) && finite(score.w);
            }
        }
        for (var v = 0u; v < V; v++) {
            weights[lane * V + v] = s[v];
        }
        workgroupBarrier();
        // The largest scores: some invocations take four rows and a share of the tokens each.
        if lane < SHARES * V {
            var high = vec4<f32>(NO_KEY);
            for (var i = lane / V; i < LANES; i += SHARES) {
                high = max(high, weights[i * V + lane % V]);
            }
            maxima[lane] = high;
        }
        workgroupBarrier();
        for (var v = 0u; v < V; v++) {
            var next = largest[v];
            for (var i = 0u; i < SHARES; i++) {
                next = max(next, maxima[i * V + v]);
            }
            let fade = decay(largest[v] - next);
            largest[v] = next;
            let weight = select(vec4<f32>(), decay(s[v] - next), s[v] > vec4<f32>(NO_KEY));
            sums[v] = fma(sums[v], fade, weight);
            weights[lane * V + v] = weight;
            if any(fade != vec4<f32>(1.0)) {
                for (var a = 0u; a < WORDS * OF_WORD; a++) {
                    totals[a * V + v] *= fade;
                }
            }
        }
        workgroupBarrier();
        for (var token = subset; token < LANES; token += subsets) {
            let of_page = step + token / 32u;
            if of_page >= pages {
                break;
            }
            var weight = Rows();
            var some = false;
            for (var v = 0u; v < V; v++) {
                weight[v] = weights[token * V + v];
                some = some || any(weight[v] != vec4<f32>());
            }
            // What no row sees may be anything.
            if !some {
                continue;
            }
            var place = token % 32u;
            var base = params.value_offset;
            if params.exact == 1u {
                place += (first_page + of_page) * 32u;
                base += tables[entry + 1u] * params.value_words;
            } else {
                base += tables[entry + 2u * of_page + 1u] * params.value_words;
            }
            for (var k = 0u; k < WORDS; k++) {
                let g = first_word + own_word + k * step_word;
                if own_word + k * step_word < words {
                    let word = values[base + sets[head + 4u] + g * params.stride + place];
                    if VALUE_BITS == 32u {
                        for (var v = 0u; v < V; v++) {
                            totals[k * V + v] = fma(weight[v], vec4<f32>(bitcast<f32>(word)), totals[k * V + v]);
                        }
                    } else if VALUE_BITS == 16u {
                        let pair = unpack2x16float(word);
                        for (var v = 0u; v < V; v++) {
                            totals[2u * k * V + v] = fma(weight[v], vec4<f32>(pair.x), totals[2u * k * V + v]);
                            totals[(2u * k + 1u) * V + v] = fma(weight[v], vec4<f32>(pair.y), totals[(2u * k + 1u) * V + v]);
                        }
                    } else {
                        let scaling = unpack2x16float(values[base + sets[head + 3u] + g * OF_WORD / 32u * 32u + place]);
                        for (var i = 0u; i < OF_WORD; i++) {
                            let z = fma(scaling.y, f32((word >> (VALUE_BITS * i)) & ((1u << (VALUE_BITS & 15u)) - 1u)), scaling.x);
                            for (var v = 0u; v < V; v++) {
                                let a = (k * OF_WORD + i) * V + v;
                                totals[a] = fma(weight[v], vec4<f32>(z), totals[a]);
                            }
                        }
                    }
                }
            }
        }
        workgroupBarrier();
    }
    if !fine {
        atomicMax(&status[2], 0xffffffffu);
    }

    // What was there before, if this part goes on, and what this adds: each by its factor.
    var before = Rows();
    var after = Rows();
    var old = Rows();
    for (var r = 0u; r < R; r++) {
        let at = (part + r) * params.part_stride + 2u * tile;
        var known = NO_KEY;
        if continued {
            known = parts[at];
            old[r / 4u][r % 4u] = parts[at + 1u];
        }
        let next = max(known, largest[r / 4u][r % 4u]);
        before[r / 4u][r % 4u] = exp(max(known - next, -120.0));
        after[r / 4u][r % 4u] = exp(max(largest[r / 4u][r % 4u] - next, -120.0));
        largest[r / 4u][r % 4u] = next;
    }
    for (var v = 0u; v < V; v++) {
        weights[lane * V + v] = sums[v];
    }
    workgroupBarrier();
    if lane < R {
        var sum = 0.0;
        for (var i = 0u; i < LANES; i++) {
            sum += weights[i * V + lane / 4u][lane % 4u];
        }
        let at = (part + lane) * params.part_stride + 2u * tile;
        parts[at] = largest[lane / 4u][lane % 4u];
        parts[at + 1u] = sum * after[lane / 4u][lane % 4u] + old[lane / 4u][lane % 4u] * before[lane / 4u][lane % 4u];
    }
    workgroupBarrier();
    for (var a = 0u; a < WORDS * OF_WORD; a++) {
        for (var v = 0u; v < V; v++) {
            weights[lane * V + v] = totals[a * V + v];
        }
        workgroupBarrier();
        let own = own_word + a / OF_WORD * step_word;
        let channel = (first_word + own) * OF_WORD + a % OF_WORD;
        if own < words && channel < rank {
            // The invocations of a word share the rows.
            for (var r = subset; r < R; r += subsets) {
                var sum = 0.0;
                for (var i = 0u; i < subsets; i++) {
                    sum += weights[(own_word * subsets + i) * V + r / 4u][r % 4u];
                }
                sum *= after[r / 4u][r % 4u];
                let at = (part + r) * params.part_stride + 2u * params.tiles + channel;
                if continued {
                    sum += parts[at] * before[r / 4u][r % 4u];
                }
                parts[at] = sum;
            }
        }
        workgroupBarrier();
    }
}
