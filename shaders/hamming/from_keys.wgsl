// Entries are the codes of a window, their keys a row of u32, 0xffffffff where there is none.

@group(0) @binding(4) var<storage, read> keys_in: array<u32>; // (queries, in_stride)

fn key_at(query: u32, at: u32) -> u32 {
    return keys_in[params.in_offset + query * params.in_stride + at];
}

fn id_at(query: u32, at: u32) -> u32 {
    return params.first + at;
}
