// Entries are the codes of a window, their keys the Hamming distances to the query, computed here: the base is read once a query, nothing else.

@group(0) @binding(4) var<storage, read> queries: array<u32>; // (queries, in_stride)
@group(0) @binding(5) var<storage, read> codes: array<u32>;   // as in distances.wgsl
@group(0) @binding(6) var<storage, read> mask: array<u32>;    // bits, or anything if not masked

fn key_at(query: u32, at: u32) -> u32 {
    if params.masked == 1u && ((mask[params.mask_offset + at / 32u] >> (at % 32u)) & 1u) == 0u {
        return 0xffffffffu;
    }
    let code = params.code_offset + (at / 64u) * params.tile_stride + (at % 64u) * params.code_stride;
    let row = params.in_offset + query * params.in_stride;
    var sum = 0u;
    for (var word = 0u; word < params.words; word++) {
        sum += countOneBits(queries[row + word] ^ codes[code + word * params.word_stride]);
    }
    return sum;
}

fn id_at(query: u32, at: u32) -> u32 {
    return params.first + at;
}
