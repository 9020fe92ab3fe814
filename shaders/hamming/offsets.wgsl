// counts[q, b] becomes carry[q] + the sum of the blocks before b of query q, and carry[q] the sum of all: both numbers of compact.wgsl.
// One workgroup a query, at most 256 blocks.

struct Params {
    blocks: u32,        // at most 256
    counts_offset: u32, // words into the bound window
    carry_offset: u32,
    pad0: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> counts: array<u32>; // (queries, blocks, 2)
@group(0) @binding(2) var<storage, read_write> carry: array<u32>;  // (queries, 2)

var<workgroup> sums: array<vec2<u32>, 256>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let query = group.x;
    let carried = params.carry_offset + query * 2u;
    let before = vec2(carry[carried], carry[carried + 1u]);
    let at = params.counts_offset + (query * params.blocks + lane) * 2u;
    var own = vec2(0u);
    if lane < params.blocks {
        own = vec2(counts[at], counts[at + 1u]);
    }
    var sum = own;
    sums[lane] = sum;
    workgroupBarrier();
    for (var reach = 1u; reach < 256u; reach *= 2u) {
        if lane >= reach {
            sum += sums[lane - reach];
        }
        workgroupBarrier();
        sums[lane] = sum;
        workgroupBarrier();
    }
    if lane < params.blocks {
        let offset = before + sum - own;
        counts[at] = offset.x;
        counts[at + 1u] = offset.y;
    }
    if lane == 255u {
        carry[carried] = before.x + sum.x;
        carry[carried + 1u] = before.y + sum.y;
    }
}
