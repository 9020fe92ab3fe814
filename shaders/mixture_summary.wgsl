// What an EM step tells the host, one row of partial sums a block of rows: (mass (K), size (K), weight, log-likelihood, best), which
// column_sums.wgsl then adds up, and the row that the mixture explains worst.
// One workgroup a block of ROWS rows; its invocations stride over the components, then over the rows.

struct Params {
    rows: u32,
    components: u32,
    shares_offset: u32,    // elements into the bound windows
    densities_offset: u32, // in rows
    sums_offset: u32,
    worst_offset: u32,     // in blocks
    first: u32,            // index of the first row in the whole
    groups_x: u32,
    blocks: u32,
    pad0: u32,
    pad1: u32,
    pad2: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> shares: array<f32>;           // (rows, K): weight * responsibility
@group(0) @binding(2) var<storage, read> densities: array<vec4<f32>>;  // (rows): log_density, best, label, weight
@group(0) @binding(3) var<storage, read_write> sums: array<f32>;       // (blocks, 2 K + 3)
@group(0) @binding(4) var<storage, read_write> worst: array<vec2<u32>>; // (blocks): log_density's bits, index; 0xffffffff where no row has weight

var<workgroup> trees: array<vec3<f32>, WORKGROUP>;
var<workgroup> lows: array<vec2<f32>, WORKGROUP>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let block = group.y * params.groups_x + group.x;
    let inside = block < params.blocks;
    let first = min(block * ROWS, params.rows);
    let last = select(first, min(first + ROWS, params.rows), inside);
    let width = 2u * params.components + 3u;

    for (var k = lane; k < select(0u, params.components, inside); k += WORKGROUP) {
        var mass = 0.0;
        var size = 0.0;
        for (var outer = first; outer < last; outer += 16u) {
            var part = 0.0;
            for (var row = outer; row < min(outer + 16u, last); row++) {
                part += shares[params.shares_offset + row * params.components + k];
                let density = densities[params.densities_offset + row];
                size += select(0.0, 1.0, density.z == f32(k) && density.w > 0.0);
            }
            mass += part;
        }
        sums[params.sums_offset + block * width + k] = mass;
        sums[params.sums_offset + block * width + params.components + k] = size;
    }

    var total = vec3(0.0);
    var low = 1e38;
    var low_row = 0xffffffffu;
    for (var row = first + lane; row < last; row += WORKGROUP) {
        let density = densities[params.densities_offset + row];
        if density.w > 0.0 {
            total += vec3(density.w, density.w * density.x, density.w * density.y);
            if density.x < low {
                low = density.x;
                low_row = params.first + row;
            }
        }
    }
    trees[lane] = total;
    lows[lane] = vec2(low, f32(lane));
    workgroupBarrier();
    for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
        if lane < half {
            trees[lane] += trees[lane + half];
            if lows[lane + half].x < lows[lane].x {
                lows[lane] = lows[lane + half];
            }
        }
        workgroupBarrier();
    }
    if !inside {
        return;
    }
    if lane == 0u {
        let at = params.sums_offset + block * width + 2u * params.components;
        sums[at] = trees[0].x;
        sums[at + 1u] = trees[0].y;
        sums[at + 2u] = trees[0].z;
    }
    // The lane that saw the lowest row says which it was.
    if lane == u32(lows[0].y) {
        worst[params.worst_offset + block] = vec2(bitcast<u32>(low), low_row);
    }
}
