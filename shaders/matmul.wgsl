// out = keep * out + a b, with a (m, k) or its transpose, b (k, n) or its transpose, f32 or f16 elements, f32 sums.
// One workgroup a 64x64 tile of out and a range of k; 256 invocations, each 4x4 elements, operands staged 16 deep in 8 KiB of workgroup memory.
// Sums run over at most 128 terms before they join an outer sum, and ranges of k are summed in a tree by column_sums.wgsl: f32 all the way.
// 2 m n k flops; a is read n/64 times, b m/64 times.

struct Params {
    m: u32,
    n: u32,
    k: u32,
    lda: u32,        // elements between stored rows
    ldb: u32,
    ldc: u32,
    a_offset: u32,   // elements into the bound window
    b_offset: u32,
    c_offset: u32,
    k_range: u32,    // terms of one workgroup, a multiple of 16
    split_stride: u32, // elements of out between ranges of k
    accumulate: u32, // 1: add to out, else replace it
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<u32>; // f32 bits, or pairs of f16; stored (m, k), or (k, m) if TRANSPOSE_A
@group(0) @binding(2) var<storage, read> b: array<u32>; // stored (k, n), or (n, k) if TRANSPOSE_B
@group(0) @binding(3) var<storage, read_write> out: array<f32>; // (splits, m, n)

const TILE: u32 = 64u;
const DEPTH: u32 = 16u;
const FLUSH: u32 = 8u; // depths between outer sums

var<workgroup> tile_a: array<f32, 1024>; // (DEPTH, TILE)
var<workgroup> tile_b: array<f32, 1024>;

fn element_a(at: u32) -> f32 {
    if HALF == 1u {
        return unpack2x16float(a[at / 2u])[at % 2u];
    }
    return bitcast<f32>(a[at]);
}

fn element_b(at: u32) -> f32 {
    if HALF == 1u {
        return unpack2x16float(b[at / 2u])[at % 2u];
    }
    return bitcast<f32>(b[at]);
}

@compute @workgroup_size(16, 16)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row0 = group.y * TILE;
    let column0 = group.x * TILE;
    let first = group.z * params.k_range;
    let last = min(first + params.k_range, params.k);
    var sum: array<vec4<f32>, 4>;
    var part: array<vec4<f32>, 4>;
    var depths = 0u;
    for (var depth = first; depth < last; depth += DEPTH) {
        // Neighbouring invocations read neighbouring elements of the stored rows.
        for (var load = 0u; load < 4u; load++) {
            let at = lane + load * 256u;
            var along = at % DEPTH;
            var across = at / DEPTH;
            if TRANSPOSE_A == 1u {
                along = at / TILE;
                across = at % TILE;
            }
            var k = depth + along;
            let row = row0 + across;
            var value = 0.0;
            if k < last && row < params.m {
                value = element_a(params.a_offset + select(row * params.lda + k, k * params.lda + row, TRANSPOSE_A == 1u));
            }
            tile_a[along * TILE + across] = value;

            along = at / TILE;
            across = at % TILE;
            if TRANSPOSE_B == 1u {
                along = at % DEPTH;
                across = at / DEPTH;
            }
            k = depth + along;
            let column = column0 + across;
            value = 0.0;
            if k < last && column < params.n {
                value = element_b(params.b_offset + select(k * params.ldb + column, column * params.ldb + k, TRANSPOSE_B == 1u));
            }
            tile_b[along * TILE + across] = value;
        }
        workgroupBarrier();
        for (var along = 0u; along < DEPTH; along++) {
            let from_a = along * TILE + local.y * 4u;
            let from_b = along * TILE + local.x * 4u;
            let columns = vec4(tile_b[from_b], tile_b[from_b + 1u], tile_b[from_b + 2u], tile_b[from_b + 3u]);
            part[0] += tile_a[from_a] * columns;
            part[1] += tile_a[from_a + 1u] * columns;
            part[2] += tile_a[from_a + 2u] * columns;
            part[3] += tile_a[from_a + 3u] * columns;
        }
        depths += 1u;
        if depths % FLUSH == 0u {
            for (var i = 0u; i < 4u; i++) {
                sum[i] += part[i];
                part[i] = vec4(0.0);
            }
        }
        workgroupBarrier();
    }
    for (var i = 0u; i < 4u; i++) {
        let row = row0 + local.y * 4u + i;
        for (var j = 0u; j < 4u; j++) {
            let column = column0 + local.x * 4u + j;
            if row < params.m && column < params.n {
                let at = params.c_offset + group.z * params.split_stride + row * params.ldc + column;
                var value = sum[i][j] + part[i][j];
                if params.accumulate == 1u {
                    value += out[at];
                }
                out[at] = value;
            }
        }
    }
}
