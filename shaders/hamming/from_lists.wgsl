// Entries are lists of keys and ids, one after the other, 0xffffffff where there is none.

@group(0) @binding(4) var<storage, read> keys_in: array<u32>; // (queries, in_stride)
@group(0) @binding(5) var<storage, read> ids_in: array<u32>;

fn key_at(query: u32, at: u32) -> u32 {
    return keys_in[params.in_offset + query * params.in_stride + at];
}

fn id_at(query: u32, at: u32) -> u32 {
    return ids_in[params.ids_offset + query * params.in_stride + at];
}
