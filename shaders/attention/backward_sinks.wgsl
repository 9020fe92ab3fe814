// gradients[h] = -sum over the queries of head h of exp(sink_h - lse) delta. One workgroup of 256 a head; each invocation sums every 256th query of a
// sequence of rows, a tree over them. 3 flops and 8 bytes a query: bandwidth is the floor, but with few heads the workgroups are.

struct Params {
    rows: u32,         // queries of a head in one batch
    batches: u32,
    head_rows: u32,    // rows from one head to the next
    batch_rows: u32,   // and from one batch to the next
    stats_offset: u32, // elements into the bound window
    head0: u32,        // number of the first head
    accumulate: u32,
    pad0: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> stats: array<f32>; // (lse, delta) of each query
@group(0) @binding(2) var<storage, read> sinks: array<f32>; // [heads]
@group(0) @binding(3) var<storage, read_write> out: array<f32>; // [heads]

var<workgroup> parts: array<f32, 256>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let head = params.head0 + group.x;
    let sink = sinks[head];
    var sum = 0.0;
    for (var batch = 0u; batch < params.batches; batch++) {
        for (var i = lane; i < params.rows; i += 256u) {
            let at = params.stats_offset + 2u * (batch * params.batch_rows + group.x * params.head_rows + i);
            sum -= exp_f32(min(sink - stats[at], 80.0)) * stats[at + 1u];
        }
    }
    parts[lane] = sum;
    for (var width = 128u; width > 0u; width /= 2u) {
        workgroupBarrier();
        if lane < width {
            parts[lane] += parts[lane + width];
        }
    }
    if lane == 0u {
        var before = 0.0;
        if params.accumulate == 1u {
            before = out[head];
        }
        out[head] = before + parts[0];
    }
}
