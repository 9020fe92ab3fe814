// status[1]: the lowest query that sees a bias of NaN or +inf (-inf hides a key). One workgroup of 64 for 32 queries of one head and sequence, one query
// after the other, the invocations along its keys. No flops; reads every bias that is seen once (once a head where heads differ): bandwidth is the floor.

struct Params {
    bias_offset: u32, // elements into the bound window
    bias_head: u32,   // strides, 0 where it is broadcast
    bias_query: u32,
    bias_key: u32,
    q_rows: u32,      // rows from one query head to the next
    first_row: u32,   // from a row here to one of the whole
    causal: u32,
    window: i32,      // 1 << 30 without one
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> table: array<u32>; // 12 words a sequence, as backward.wgsl has them
@group(0) @binding(2) var<storage, read> bias: array<u32>;  // f32 bits
@group(0) @binding(3) var<storage, read_write> status: array<atomic<u32>, 4>;

const TILE: u32 = 32u;
const WORDS: u32 = 12u;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) place: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let at = place.z * WORDS;
    let shift = i32(table[at + 3u]) - i32(table[at + 2u]); // from a query to its position among the keys
    let first = table[at + 4u] + place.x * TILE;
    let last = min(first + TILE, table[at + 5u]);
    for (var i = first; i < last; i++) {
        let position = i32(i) + shift;
        let begin = u32(max(position - params.window + 1, i32(table[at + 6u])));
        let ahead = select(position + params.window, position + 1, params.causal == 1u);
        let end = u32(clamp(ahead, 0, i32(table[at + 7u])));
        let row = table[at + 8u] + place.y * params.bias_head + i * params.bias_query + params.bias_offset;
        for (var j = begin + lane; j < end; j += 64u) {
            let bits = bias[row + j * params.bias_key];
            if bits == 0x7f800000u || (bits & 0x7fffffffu) > 0x7f800000u {
                atomicMax(&status[1], 0xffffffffu - (params.first_row + table[at] + place.y * params.q_rows + i));
            }
        }
    }
}
