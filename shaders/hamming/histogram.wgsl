// counts[q, d] += how many codes of a window are at distance d from query q; with LABELS also relevant[q, d], those with its label.
// One workgroup a query and 8192 codes; bins in workgroup memory where they fit.

struct Params {
    codes: u32,
    bins: u32,       // bits + 1
    in_offset: u32,  // words into the bound window
    in_stride: u32,
    out_offset: u32,
    relevant_offset: u32,
    labels_offset: u32,       // of the first code
    query_labels_offset: u32, // of the first query
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> distances: array<u32>;             // (queries, in_stride): two u16 a word, 0xffff for none
@group(0) @binding(2) var<storage, read_write> counts: array<atomic<u32>>;  // (queries, bins)

const LOCAL: u32 = 1920u;

var<workgroup> local_counts: array<atomic<u32>, LOCAL>;
var<workgroup> local_relevant: array<atomic<u32>, RELEVANT>; // RELEVANT = LOCAL with labels, else 1

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let query = group.y;
    let begin = group.x * 8192u;
    let end = min(begin + 8192u, params.codes);
    let local = params.bins <= LOCAL;
    for (var bin = lane; bin < LOCAL; bin += 256u) {
        atomicStore(&local_counts[bin], 0u);
        if RELEVANT > 1u {
            atomicStore(&local_relevant[bin], 0u);
        }
    }
    workgroupBarrier();
    for (var code = begin + lane; code < end; code += 256u) {
        let word = distances[params.in_offset + query * params.in_stride + code / 2u];
        let distance = (word >> (16u * (code % 2u))) & 0xffffu;
        if distance >= params.bins {
            continue;
        }
        let same = RELEVANT > 1u && is_relevant(query, code);
        if local {
            atomicAdd(&local_counts[distance], 1u);
            if same {
                atomicAdd(&local_relevant[distance], 1u);
            }
        } else {
            atomicAdd(&counts[params.out_offset + query * params.bins + distance], 1u);
            if same {
                add_relevant(query * params.bins + distance, 1u);
            }
        }
    }
    workgroupBarrier();
    if local {
        for (var bin = lane; bin < params.bins; bin += 256u) {
            let count = atomicLoad(&local_counts[bin]);
            if count > 0u {
                atomicAdd(&counts[params.out_offset + query * params.bins + bin], count);
            }
            if RELEVANT > 1u {
                let same = atomicLoad(&local_relevant[bin]);
                if same > 0u {
                    add_relevant(query * params.bins + bin, same);
                }
            }
        }
    }
}
