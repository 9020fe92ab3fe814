// The entry of forward.wgsl where rows are reduced across subgroups of any size: 3 shuffles a row where 8 invocations in a row share a subgroup, else as
// many as there are, and the rest through workgroup memory. Same flops, bytes and floor; 16 accesses of workgroup memory a row and tile fewer.

var<workgroup> reduced: array<f32, RQ * LANES>;

// For each row, a value of the 8 invocations that share it, `stride` apart; in subgroups below `width`, which is the same for all, else with barriers.
fn partners(values: ptr<function, array<f32, RQ>>, lane: u32, stride: u32, width: u32) -> array<f32, RQ> {
    var others: array<f32, RQ>;
    if stride < width {
        for (var r = 0u; r < RQ; r++) {
            others[r] = subgroupShuffleXor((*values)[r], stride);
        }
        return others;
    }
    workgroupBarrier();
    for (var r = 0u; r < RQ; r++) {
        reduced[r * LANES + lane] = (*values)[r];
    }
    workgroupBarrier();
    for (var r = 0u; r < RQ; r++) {
        others[r] = reduced[r * LANES + (lane ^ stride)];
    }
    return others;
}

// The largest of the 8 invocations that share rows, for each of their rows; a barrier for all.
fn rows_max(values: ptr<function, array<f32, RQ>>, lane: u32, width: u32) {
    for (var stride = 1u; stride < TC; stride *= 2u) {
        let others = partners(values, lane, stride, width);
        for (var r = 0u; r < RQ; r++) {
            (*values)[r] = max((*values)[r], others[r]);
        }
    }
    workgroupBarrier();
}

fn rows_sum(values: ptr<function, array<f32, RQ>>, lane: u32, width: u32) {
    for (var stride = 1u; stride < TC; stride *= 2u) {
        let others = partners(values, lane, stride, width);
        for (var r = 0u; r < RQ; r++) {
            (*values)[r] += others[r];
        }
    }
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_invocation_id) invocation: u32,
) {
    attend(group, lane, runs(lane, invocation, TC));
}
