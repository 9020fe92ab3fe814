// The k entries of lowest (key, id) of every `step` entries of a query, in order; NONE, NONE where there are fewer. One workgroup a query and step.
// Where entries come from is a file of its own (from_*.wgsl), with `key_at`, `id_at` and the bindings from 4 on. WIDE 0: keys below 2^16, ids that
// ascend with the place, so key << 11 | place sorts by (key, id) as one u32. WIDE 1: any key, sorted with its id.
// Entries above the query's running limit are dropped as they are read; then (WIDE 0) those above the bin of the k-th; the rest is sorted
// (bitonic). In the end a full list lowers the limit. Which groups a limit helps depends on their order, the result does not: ties are kept.

struct Params {
    count: u32,      // entries of a query
    step: u32,       // entries of a workgroup, at most TILE
    k: u32,
    shift: u32,      // bins of 2^shift keys
    first: u32,      // id of entry 0
    in_offset: u32,  // words into the bound window
    in_stride: u32,  // words (from_codes: words of a query) between queries
    ids_offset: u32,
    out_offset: u32, // entries into keys and ids
    out_stride: u32, // entries between queries
    words: u32,      // from_codes: of a code
    code_offset: u32,
    tile_stride: u32,
    code_stride: u32,
    word_stride: u32,
    mask_offset: u32,
    masked: u32,
    limits_offset: u32,
    limited: u32,    // 1: the running limits are used
    pad0: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> limits: array<atomic<u32>>; // (queries): NONE - limit, 0 at first
@group(0) @binding(2) var<storage, read_write> out_keys: array<u32>;       // (queries, lists, k)
@group(0) @binding(3) var<storage, read_write> out_ids: array<u32>;

const NONE: u32 = 0xffffffffu;
const EACH: u32 = TILE / 256u;

var<workgroup> keys: array<u32, TILE>;
var<workgroup> ids: array<u32, IDS>; // TILE where WIDE, else 1
var<workgroup> bins: array<atomic<u32>, 256>;
var<workgroup> sums: array<u32, 256>;
var<workgroup> kept: atomic<u32>;
var<workgroup> count: u32;
var<workgroup> last_bin: u32;

fn after(a: u32, b: u32) -> bool {
    if WIDE == 1u {
        return keys[a] > keys[b] || (keys[a] == keys[b] && ids[a] > ids[b]);
    }
    return keys[a] > keys[b];
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let query = group.y;
    let begin = group.x * params.step;
    let end = min(begin + params.step, params.count);
    var limit = NONE;
    if params.limited == 1u {
        limit = NONE - atomicLoad(&limits[params.limits_offset + query]);
    }
    atomicStore(&bins[lane], 0u);
    if lane == 0u {
        atomicStore(&kept, 0u);
        last_bin = 255u;
    }
    workgroupBarrier();

    var mine: array<u32, EACH>;
    for (var i = 0u; i < EACH; i++) {
        let at = begin + i * 256u + lane;
        var key = NONE;
        if at < end {
            key = key_at(query, at);
        }
        if key > limit {
            key = NONE;
        }
        mine[i] = key;
        if WIDE == 0u && key != NONE {
            atomicAdd(&bins[min(key >> params.shift, 255u)], 1u);
        }
    }
    workgroupBarrier();
    if WIDE == 0u {
        let own = atomicLoad(&bins[lane]);
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
        if sum >= params.k && sum - own < params.k {
            last_bin = lane;
        }
        workgroupBarrier();
    }
    let last = last_bin;
    for (var i = 0u; i < EACH; i++) {
        let place = i * 256u + lane;
        let key = mine[i];
        if key == NONE || (WIDE == 0u && min(key >> params.shift, 255u) > last) {
            continue;
        }
        let slot = atomicAdd(&kept, 1u);
        if WIDE == 1u {
            keys[slot] = key;
            ids[slot] = id_at(query, begin + place);
        } else {
            keys[slot] = (key << 11u) | place;
        }
    }
    workgroupBarrier();
    if lane == 0u {
        count = atomicLoad(&kept);
    }
    let total = workgroupUniformLoad(&count);
    var padded = 1u;
    while padded < total {
        padded *= 2u;
    }
    for (var at = total + lane; at < padded; at += 256u) {
        keys[at] = NONE;
        if WIDE == 1u {
            ids[at] = NONE;
        }
    }
    workgroupBarrier();
    for (var size = 2u; size <= padded; size *= 2u) {
        for (var stride = size / 2u; stride > 0u; stride /= 2u) {
            for (var i = lane; i < padded / 2u; i += 256u) {
                let a = (i / stride) * stride * 2u + i % stride;
                let b = a + stride;
                if after(a, b) == ((a & size) == 0u) {
                    let key = keys[a];
                    keys[a] = keys[b];
                    keys[b] = key;
                    if WIDE == 1u {
                        let id = ids[a];
                        ids[a] = ids[b];
                        ids[b] = id;
                    }
                }
            }
            workgroupBarrier();
        }
    }
    let row = params.out_offset + query * params.out_stride + group.x * params.k;
    for (var at = lane; at < params.k; at += 256u) {
        var key = NONE;
        var id = NONE;
        if at < total {
            key = keys[at];
            if WIDE == 1u {
                id = ids[at];
            } else {
                id = id_at(query, begin + key % 2048u);
                key = key >> 11u;
            }
            if at + 1u == params.k && params.limited == 1u {
                atomicMax(&limits[params.limits_offset + query], NONE - key);
            }
        }
        out_keys[row + at] = key;
        out_ids[row + at] = id;
    }
}
