// keys[q, c] = how far code c is from query q. MEASURE 0, Hamming: popcount(query ^ code), two u16 a word, 0xffff where the mask hides the code.
// MEASURE 1, Jaccard: floor(2^28 (1 - |q & c| / |q | c|)), 0 for two empty codes, one u32 each, 0xffffffff where hidden. Distinct ratios of at
// most 8192 bits differ by 2^-26 and more, so these integers order them exactly.
// MEASURE 2, queries of int4: four codes a query, its signs and, for each bit of the magnitudes, the signs with those turned over that have it;
// with s and s_p the Hamming distances to them, (7 s - s_0 - 2 s_1 - 4 s_2 + total) / 2, the magnitudes whose sign differs. u16 as in 0.
// One workgroup of 256 a tile of 16 queries x 256 codes, 8 words deep, in 8.5 KiB; an invocation keeps 4 queries x 4 codes in registers.
// The base is read queries/16 times; queries * codes * words xor-and-popcounts (twice for Jaccard).

struct Params {
    queries: u32,      // rows of words: four a query of int4
    codes: u32,
    words: u32,        // of a code
    totals_offset: u32,
    query_offset: u32, // words into the bound window
    code_offset: u32,
    tile_stride: u32,  // words between groups of 64 codes
    code_stride: u32,  // between codes of a group
    word_stride: u32,  // between words of a code
    out_offset: u32,
    out_stride: u32,   // words between rows of out
    mask_offset: u32,  // word of the first code's bit; codes of a window begin at a multiple of 32
    masked: u32,       // 1: bit c of the mask allows code c
    pad0: u32,
    pad1: u32,
    pad2: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> queries: array<u32>;     // (queries, words)
@group(0) @binding(2) var<storage, read> codes: array<u32>;       // (codes, words), or groups of 64 of them word by word
@group(0) @binding(3) var<storage, read> mask: array<u32>;        // bits, or anything if not masked
@group(0) @binding(4) var<storage, read> totals: array<u32>;      // (queries) of int4: sums of magnitudes; else anything
@group(0) @binding(5) var<storage, read_write> out: array<u32>;

const DEPTH: u32 = 8u;

var<workgroup> tile_codes: array<vec2<u32>, 1024>;  // (DEPTH, 128 pairs)
var<workgroup> tile_queries: array<vec4<u32>, 32>;  // (DEPTH, 4)

fn code_word(code: u32, word: u32) -> u32 {
    if code >= params.codes || word >= params.words {
        return 0u;
    }
    return codes[params.code_offset + (code / 64u) * params.tile_stride + (code % 64u) * params.code_stride + word * params.word_stride];
}

fn query_word(query: u32, word: u32) -> u32 {
    if query >= params.queries || word >= params.words {
        return 0u;
    }
    return queries[params.query_offset + query * params.words + word];
}

fn hidden(code: u32) -> bool {
    if code >= params.codes {
        return true;
    }
    if params.masked == 1u {
        return ((mask[params.mask_offset + code / 32u] >> (code % 32u)) & 1u) == 0u;
    }
    return false;
}

fn jaccard(shared_bits: u32, all_bits: u32) -> u32 {
    if all_bits == 0u {
        return 0u;
    }
    // A long division in two steps of 14 bits, each below 2^27.
    let apart = (all_bits - shared_bits) << 14u;
    let high = apart / all_bits;
    return (high << 14u) + ((apart - high * all_bits) << 14u) / all_bits;
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let x = lane % 64u;
    let y = lane / 64u;
    let code0 = group.x * 256u;
    let query0 = group.y * 16u;
    var near: array<vec2<u32>, 4>;
    var far: array<vec2<u32>, 4>;
    var near_all: array<vec2<u32>, 4>;
    var far_all: array<vec2<u32>, 4>;
    for (var depth = 0u; depth < params.words; depth += DEPTH) {
        for (var load = 0u; load < 4u; load++) {
            let pair = lane % 128u;
            let along = lane / 128u + load * 2u;
            let code = code0 + pair * 2u;
            tile_codes[along * 128u + pair] = vec2(code_word(code, depth + along), code_word(code + 1u, depth + along));
        }
        if lane < 32u {
            let query = query0 + (lane % 4u) * 4u;
            let word = depth + lane / 4u;
            tile_queries[lane] = vec4(
                query_word(query, word),
                query_word(query + 1u, word),
                query_word(query + 2u, word),
                query_word(query + 3u, word),
            );
        }
        workgroupBarrier();
        // Words past the last are 0 on both sides.
        for (var along = 0u; along < DEPTH; along++) {
            let a = tile_codes[along * 128u + x];
            let b = tile_codes[along * 128u + 64u + x];
            let q = tile_queries[along * 4u + y];
            if MEASURE != 1u {
                near[0] += countOneBits(vec2(q.x) ^ a);
                near[1] += countOneBits(vec2(q.y) ^ a);
                near[2] += countOneBits(vec2(q.z) ^ a);
                near[3] += countOneBits(vec2(q.w) ^ a);
                far[0] += countOneBits(vec2(q.x) ^ b);
                far[1] += countOneBits(vec2(q.y) ^ b);
                far[2] += countOneBits(vec2(q.z) ^ b);
                far[3] += countOneBits(vec2(q.w) ^ b);
            } else {
                for (var i = 0u; i < 4u; i++) {
                    let words = vec2(q[i]);
                    near[i] += countOneBits(words & a);
                    far[i] += countOneBits(words & b);
                    near_all[i] += countOneBits(words | a);
                    far_all[i] += countOneBits(words | b);
                }
            }
        }
        workgroupBarrier();
    }
    if MEASURE == 2u {
        // The four rows of an invocation are one query.
        let query = query0 / 4u + y;
        if query >= params.queries / 4u {
            return;
        }
        let total = totals[params.totals_offset + query];
        let row = params.out_offset + query * params.out_stride;
        for (var half = 0u; half < 2u; half++) {
            let code = code0 + half * 128u + x * 2u;
            if code < params.codes {
                let signs = select(near[0], far[0], half == 1u) * 7u;
                let planes = select(near[1] + 2u * near[2] + 4u * near[3], far[1] + 2u * far[2] + 4u * far[3], vec2(half == 1u));
                let sums = (signs + total - planes) / 2u;
                let pair = select(sums, vec2(0xffffu), vec2(hidden(code), hidden(code + 1u)));
                out[row + code / 2u] = pair.x | (pair.y << 16u);
            }
        }
        return;
    }
    for (var i = 0u; i < 4u; i++) {
        let query = query0 + y * 4u + i;
        if query >= params.queries {
            return;
        }
        let row = params.out_offset + query * params.out_stride;
        for (var half = 0u; half < 2u; half++) {
            let code = code0 + half * 128u + x * 2u;
            if code >= params.codes {
                continue;
            }
            let bits = select(near[i], far[i], half == 1u);
            let hide = vec2(hidden(code), hidden(code + 1u));
            if MEASURE == 0u {
                let pair = select(bits, vec2(0xffffu), hide);
                out[row + code / 2u] = pair.x | (pair.y << 16u);
            } else {
                let all = select(near_all[i], far_all[i], half == 1u);
                out[row + code] = select(jaccard(bits.x, all.x), 0xffffffffu, hide.x);
                if code + 1u < params.codes {
                    out[row + code + 1u] = select(jaccard(bits.y, all.y), 0xffffffffu, hide.y);
                }
            }
        }
    }
}
