// rows[p, i] = the mean over j of x[p, i, j], and columns[p, j] = that over i, of each plane p. One workgroup a plane: rows by 16 invocations each
// and a tree in workgroup memory, columns one an invocation; sums over at most 16 terms before they join an outer sum.
// 2 height width flops a plane; the plane is read twice, the second time from cache; the floor is 4 bytes an element at the bandwidth of memory.

struct Params {
    planes: u32,
    height: u32,
    width: u32,
    groups_x: u32,
    x_offset: u32, // elements into the bound window
    rows_offset: u32,
    columns_offset: u32,
    pad0: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;                // (planes, height, width)
@group(0) @binding(2) var<storage, read_write> rows: array<f32>;       // (planes, height)
@group(0) @binding(3) var<storage, read_write> columns: array<f32>;    // (planes, width)

var<workgroup> parts: array<f32, 64>; // (4 rows, 16)

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let plane = group.y * params.groups_x + group.x;
    if plane >= params.planes {
        return;
    }
    let begin = params.x_offset + plane * params.height * params.width;
    for (var first = 0u; first < params.height; first += 4u) {
        let row = first + lane / 16u;
        var sum = 0.0;
        if row < params.height {
            for (var j0 = lane % 16u; j0 < params.width; j0 += 256u) {
                var part = 0.0;
                for (var j = j0; j < min(j0 + 256u, params.width); j += 16u) {
                    part += x[begin + row * params.width + j];
                }
                sum += part;
            }
        }
        parts[lane] = sum;
        workgroupBarrier();
        for (var half = 8u; half > 0u; half /= 2u) {
            if lane % 16u < half {
                parts[lane] += parts[lane + half];
            }
            workgroupBarrier();
        }
        if lane % 16u == 0u && row < params.height {
            rows[params.rows_offset + plane * params.height + row] = parts[lane] / f32(params.width);
        }
        workgroupBarrier();
    }
    for (var j = lane; j < params.width; j += 64u) {
        var sum = 0.0;
        for (var first = 0u; first < params.height; first += 16u) {
            var part = 0.0;
            for (var row = first; row < min(first + 16u, params.height); row++) {
                part += x[begin + row * params.width + j];
            }
            sum += part;
        }
        columns[params.columns_offset + plane * params.width + j] = sum / f32(params.height);
    }
}
