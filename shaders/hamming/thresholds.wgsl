// thresholds[q] = (limit, ties): the k nearest codes of query q are all below distance `limit` and the first `ties` at it; fewer than k: all.
// One invocation a query walks its histogram.

struct Params {
    queries: u32,
    bins: u32,
    k: u32,
    groups_x: u32,
    counts_offset: u32, // words into the bound window
    out_offset: u32,
    pad0: u32,
    pad1: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> counts: array<u32>;          // (queries, bins)
@group(0) @binding(2) var<storage, read_write> thresholds: array<u32>; // (queries, 2)

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let query = (group.y * params.groups_x + group.x) * 64u + lane;
    if query >= params.queries {
        return;
    }
    var left = params.k;
    var limit = params.bins;
    var ties = 0u;
    for (var bin = 0u; bin < params.bins; bin++) {
        let count = counts[params.counts_offset + query * params.bins + bin];
        if count >= left {
            limit = bin;
            ties = left;
            break;
        }
        left -= count;
    }
    thresholds[params.out_offset + query * 2u] = limit;
    thresholds[params.out_offset + query * 2u + 1u] = ties;
}
