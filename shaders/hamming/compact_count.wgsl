// The counting pass of compact.wgsl: the block's numbers.

fn finish(query: u32, at: u32, row: u32, begin: u32, limit: u32, ties: u32, before: u32, total: u32, lane: u32) {
    if lane == 0u {
        counts[at] = total & 0xffffu;
        counts[at + 1u] = total >> 16u;
    }
}
