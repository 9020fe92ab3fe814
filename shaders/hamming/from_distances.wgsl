// Entries are the codes of a window, their keys a row of distances: two u16 a word, 0xffff where there is none.

@group(0) @binding(4) var<storage, read> distances: array<u32>; // (queries, in_stride)

fn key_at(query: u32, at: u32) -> u32 {
    let word = distances[params.in_offset + query * params.in_stride + at / 2u];
    let key = (word >> (16u * (at % 2u))) & 0xffffu;
    return select(key, 0xffffffffu, key == 0xffffu);
}

fn id_at(query: u32, at: u32) -> u32 {
    return params.first + at;
}
