// Sums and maxima over aligned runs of invocations, by shuffles where the subgroups hold the runs and through workgroup memory where they do not.
// WGSL promises nothing about which invocations share a subgroup, in which order: each workgroup finds out once. The order of a sum is the same either way.

var<workgroup> disorder: atomic<u32>;
var<workgroup> found: u32;

// The largest power of two up to `most` such that everywhere aligned runs of so many invocations lie in one subgroup, partner to partner. Of the whole
// workgroup, with barriers.
fn runs(lane: u32, invocation: u32, most: u32) -> u32 {
    if lane == 0u {
        atomicStore(&disorder, most);
    }
    workgroupBarrier();
    let present = subgroupBallot(true);
    var own = 0u;
    for (var stride = 1u; stride < most; stride *= 2u) {
        let other = invocation ^ stride;
        let there = other < 128u && ((present[min(other / 32u, 3u)] >> (other % 32u)) & 1u) == 1u;
        let partner = subgroupShuffle(lane, select(invocation, other, there));
        if !there || partner != (lane ^ stride) {
            own |= stride;
        }
    }
    atomicOr(&disorder, own);
    workgroupBarrier();
    if lane == 0u {
        let broken = atomicLoad(&disorder);
        // The lowest bit: the first stride that fails, or `most`.
        found = broken & (~broken + 1u);
    }
    return workgroupUniformLoad(&found);
}
