// keys[q, c] = bits of the f32 sum over the bytes of code c, in order, of tables[q, byte, its value]: what the components of a float query whose signs
// differ add up to (never negative, so bits order as sums do); 0xffffffff where the mask hides the code. One invocation a query and code, a load a byte.
// A table that exceeds a binding is gone through in parts, the sum so far kept in keys.

struct Params {
    queries: u32,
    codes: u32,
    first_byte: u32,
    bytes: u32,         // of this part
    tables_offset: u32, // floats into the bound window
    tables_stride: u32, // floats between queries
    code_offset: u32,   // words
    tile_stride: u32,
    code_stride: u32,
    word_stride: u32,
    out_offset: u32,
    out_stride: u32,
    mask_offset: u32,
    masked: u32,
    accumulate: u32,    // 1: go on from keys
    last: u32,          // 1: the mask is looked at
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> tables: array<f32>;    // (queries, bytes, 256)
@group(0) @binding(2) var<storage, read> codes: array<u32>;     // as in distances.wgsl
@group(0) @binding(3) var<storage, read> mask: array<u32>;      // bits, or anything if not masked
@group(0) @binding(4) var<storage, read_write> keys: array<u32>; // (queries, out_stride)

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let code = group.x * 256u + lane;
    let query = group.y;
    if code >= params.codes {
        return;
    }
    let out = params.out_offset + query * params.out_stride + code;
    var sum = 0.0;
    if params.accumulate == 1u {
        sum = bitcast<f32>(keys[out]);
    }
    let at = params.code_offset + (code / 64u) * params.tile_stride + (code % 64u) * params.code_stride;
    let table = params.tables_offset + query * params.tables_stride;
    for (var byte = 0u; byte < params.bytes; byte++) {
        let whole = params.first_byte + byte;
        let value = (codes[at + (whole / 4u) * params.word_stride] >> (8u * (whole % 4u))) & 0xffu;
        sum += tables[table + byte * 256u + value];
    }
    var key = bitcast<u32>(sum);
    if params.last == 1u && params.masked == 1u && ((mask[params.mask_offset + code / 32u] >> (code % 32u)) & 1u) == 0u {
        key = 0xffffffffu;
    }
    keys[out] = key;
}
