// Pairs of neighbouring sorted runs of (key, id) become one: an entry's place is its own in its run plus how many of the other run come before it,
// found by bisection. One invocation an entry; ties go by id. The first `keep` entries of a row are kept; 0xffffffff past its end.

struct Params {
    queries: u32,
    length: u32,     // entries of a row, in
    run: u32,        // entries of a run
    keep: u32,       // entries of a row, out
    groups_x: u32,
    in_offset: u32,  // entries into the bound window
    in_stride: u32,
    out_offset: u32,
    out_stride: u32,
    ids_offset: u32,
    out_ids_offset: u32,
    width: u32,      // invocations of a row: max(length, keep)
    bits: u32,       // which bits of a key are kept
    pad0: u32,
    pad1: u32,
    pad2: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> keys_in: array<u32>;       // (queries, length)
@group(0) @binding(2) var<storage, read> ids_in: array<u32>;
@group(0) @binding(3) var<storage, read_write> keys_out: array<u32>; // (queries, keep)
@group(0) @binding(4) var<storage, read_write> ids_out: array<u32>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let at = (group.y * params.groups_x + group.x) * 256u + lane;
    let query = group.z;
    if at >= params.width {
        return;
    }
    let out_at = params.out_offset + query * params.out_stride;
    let out_ids_at = params.out_ids_offset + query * params.out_stride;
    if at >= params.length {
        keys_out[out_at + at] = 0xffffffffu;
        ids_out[out_ids_at + at] = 0xffffffffu;
        return;
    }
    let row = params.in_offset + query * params.in_stride;
    let ids_row = params.ids_offset + query * params.in_stride;
    let key = keys_in[row + at];
    let id = ids_in[ids_row + at];
    let own = at / params.run;
    let right = own % 2u == 1u;
    let pair = (own - own % 2u) * params.run;
    let other = select(pair + params.run, pair, right);
    var low = min(other, params.length);
    var high = min(other + params.run, params.length);
    let begin = low;
    while low < high {
        let middle = low + (high - low) / 2u;
        let its = keys_in[row + middle];
        // Of entries without an id, equal in both, those of the left run come first.
        let its_id = ids_in[ids_row + middle];
        let before = its < key || (its == key && (its_id < id || (its_id == id && right)));
        if before {
            low = middle + 1u;
        } else {
            high = middle;
        }
    }
    let place = pair + (at - own * params.run) + (low - begin);
    if place < params.keep {
        keys_out[out_at + place] = key & params.bits;
        ids_out[out_ids_at + place] = id;
    }
}
