// The writing pass of compact.wgsl.

@group(0) @binding(4) var<storage, read> rows: array<u32>;           // (queries): where a query's entries begin
@group(0) @binding(5) var<storage, read_write> out_keys: array<u32>; // the entries of all queries
@group(0) @binding(6) var<storage, read_write> out_ids: array<u32>;

fn finish(query: u32, at: u32, row: u32, begin: u32, limit: u32, ties: u32, before: u32, total: u32, lane: u32) {
    var below = counts[at] + (before & 0xffffu);
    var tied = counts[at + 1u] + (before >> 16u);
    let out = params.out_offset + rows[params.rows_offset + query];
    for (var i = 0u; i < 8u; i++) {
        let distance = distance_at(row, begin + i);
        let is_below = distance < limit && params.exact == 0u;
        if is_below || (distance == limit && tied < ties) {
            let place = out + below + min(tied, ties);
            if place < params.room {
                out_keys[place] = distance | ((query << 14u) * params.tag);
                out_ids[place] = params.first + begin + i;
            }
        }
        if is_below {
            below += 1u;
        } else if distance == limit {
            tied += 1u;
        }
    }
}
