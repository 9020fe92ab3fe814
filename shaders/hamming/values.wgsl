// Keys as the distances they stand for, in place. MODE 0, Jaccard: key / 2^28 in f32, rounded to the nearest here, for a conversion may round either way.
// MODE 1, queries of int4: key times the query's scale; such keys are below 2^16. One invocation a key.

struct Params {
    keys: u32,
    k: u32,          // keys of a query
    groups_x: u32,
    keys_offset: u32, // words into the bound window
    first: u32,      // number of the first query
    pad0: u32,
    pad1: u32,
    pad2: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> scales: array<f32>;     // (queries), or anything
@group(0) @binding(2) var<storage, read_write> keys: array<u32>; // (queries, k): keys in, f32 bits out

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let at = (group.y * params.groups_x + group.x) * 256u + lane;
    if at >= params.keys {
        return;
    }
    var key = keys[params.keys_offset + at];
    if MODE == 1u {
        keys[params.keys_offset + at] = bitcast<u32>(f32(key) * scales[params.first + at / params.k]);
        return;
    }
    if key >= 16777216u {
        // To a multiple of 2^excess: the nearest, of two the even one.
        let excess = 8u - countLeadingZeros(key);
        let half = 1u << (excess - 1u);
        let odd = (key >> excess) & 1u;
        key = ((key + half - 1u + odd) >> excess) << excess;
    }
    keys[params.keys_offset + at] = bitcast<u32>(f32(key) * bitcast<f32>(0x31800000u));
}
