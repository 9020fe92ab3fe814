// Of every 2048 codes of a query's row of distances: WRITE 0 counts those below the query's limit and those at it, (queries, blocks, 2); WRITE 1 takes
// these numbers summed over what comes before (offsets.wgsl) and writes distance and id of every code that is kept, in the order of ids: all below
// the limit, the first `ties` at it. No atomics: tens of thousands of codes may be at one distance, and their order matters.

struct Params {
    codes: u32,
    first: u32,        // id of code 0
    blocks: u32,       // of a row
    in_offset: u32,    // words into the bound window
    in_stride: u32,
    thresholds_offset: u32,
    counts_offset: u32,
    rows_offset: u32,
    out_offset: u32,   // entries; rows[q] counts from here
    room: u32,         // entries that the bound windows of out hold
    exact: u32,        // 1: none below the limit
    tag: u32,          // 1: keys are query << 14 | distance
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> distances: array<u32>;  // (queries, in_stride): two u16 a word
@group(0) @binding(2) var<storage, read> thresholds: array<u32>; // (queries, 2): limit, ties
@group(0) @binding(3) var<storage, read_write> counts: array<u32>; // (queries, blocks, 2)

var<workgroup> sums: array<u32, 256>;

fn distance_at(row: u32, code: u32) -> u32 {
    if code >= params.codes {
        return 0xffffu;
    }
    return (distances[row + code / 2u] >> (16u * (code % 2u))) & 0xffffu;
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let query = group.y;
    let row = params.in_offset + query * params.in_stride;
    let limit = thresholds[params.thresholds_offset + query * 2u];
    let ties = thresholds[params.thresholds_offset + query * 2u + 1u];
    let begin = group.x * 2048u + lane * 8u;
    // Two counts a word: those at the limit in the upper half.
    var own = 0u;
    for (var i = 0u; i < 8u; i++) {
        let distance = distance_at(row, begin + i);
        if distance < limit && params.exact == 0u {
            own += 1u;
        } else if distance == limit {
            own += 65536u;
        }
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
    let at = params.counts_offset + (query * params.blocks + group.x) * 2u;
    finish(query, at, row, begin, limit, ties, sum - own, sums[255], lane);
}
