// The entry of forward.wgsl where rows are reduced in workgroup memory: for every adapter.

var<workgroup> reduced: array<f32, BQ * TC>;

// The largest of the 8 invocations that share rows, for each of their rows; a barrier for all. `width` is by_subgroup.wgsl's.
fn rows_max(values: ptr<function, array<f32, RQ>>, lane: u32, width: u32) {
    for (var r = 0u; r < RQ; r++) {
        reduced[(lane / TC + TR * r) * TC + lane % TC] = (*values)[r];
    }
    workgroupBarrier();
    for (var r = 0u; r < RQ; r++) {
        for (var x = 0u; x < TC; x++) {
            (*values)[r] = max((*values)[r], reduced[(lane / TC + TR * r) * TC + x]);
        }
    }
}

fn rows_sum(values: ptr<function, array<f32, RQ>>, lane: u32, width: u32) {
    workgroupBarrier();
    for (var r = 0u; r < RQ; r++) {
        reduced[(lane / TC + TR * r) * TC + lane % TC] = (*values)[r];
    }
    workgroupBarrier();
    for (var r = 0u; r < RQ; r++) {
        var sum = 0.0;
        for (var x = 0u; x < TC; x++) {
            sum += reduced[(lane / TC + TR * r) * TC + x];
        }
        (*values)[r] = sum;
    }
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    attend(group, lane, 1u);
}
