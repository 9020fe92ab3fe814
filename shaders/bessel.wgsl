// out[out_offset + i] = bessel(order[..], x[..]), elementwise, one invocation an element; the inputs broadcast as in
// NumPy.
// Shared: bessel_f32.wgsl; or bessel_f64.wgsl, over f64 (stored_f64.wgsl) or pairs of f32 (stored_pairs.wgsl); or
// bessel_double_single.wgsl, in pairs throughout; and what these need. The host appends
//   alias Real = f32; (f64, vec2<f32>: what is computed in)    alias Stored = f32; (what elements are)
//   const WORKGROUP: u32 = 64u;    const FUNCTION: u32 = LOG_IV; (one of these)
//   const LOG_IV: u32 = 0u; LOG_KV 1, IV_RATIO 2, IV_RATIO_COMPLEMENT 3, LOG_IV_DX 4, LOG_KV_DX 5, LOG_IV_DV 6,
//   LOG_KV_DV 7, VMF_LOG_NORMALIZER 8
// An order out of [0, 1e7], an x that is neither 0 nor in [1e-15, 1e9], an infinity or a NaN is reported in status and
// gives NaN; -0 counts as 0.

struct Params {
    count: u32,        // elements of this dispatch
    rank: u32,         // 0: order, x and out are contiguous and of equal length
    order_offset: u32, // in elements, into the bound window
    x_offset: u32,
    out_start: u32,    // the index of the first element in the whole output
    groups_x: u32,     // workgroups in x
    out_offset: u32,
    zero: u32,         // 0: see shared/double_single.wgsl
    shape: array<vec4<u32>, 2>, // of the whole output, row-major, up to 8 axes
    order_stride: array<vec4<u32>, 2>, // 0 along a broadcast axis
    x_stride: array<vec4<u32>, 2>,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> order: array<Stored>;
@group(0) @binding(2) var<storage, read> x: array<Stored>;
@group(0) @binding(3) var<storage, read_write> out: array<Stored>; // (count)
// [0] for order, [1] for x: 0xffffffff - the lowest index (in the whole output) of an element out of the domain, else 0
@group(0) @binding(4) var<storage, read_write> status: array<atomic<u32>>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = (group.y * params.groups_x + group.x) * WORKGROUP + lane;
    if i >= params.count {
        return;
    }
    var order_at = params.order_offset;
    var x_at = params.x_offset;
    if params.rank == 0u {
        order_at += i;
        x_at += i;
    } else {
        var rest = params.out_start + i;
        for (var axis = params.rank; axis > 0u; axis--) {
            let major = (axis - 1u) / 4u;
            let minor = (axis - 1u) % 4u;
            let size = params.shape[major][minor];
            let along = rest % size;
            rest /= size;
            order_at += along * params.order_stride[major][minor];
            x_at += along * params.x_stride[major][minor];
        }
    }
    let order_value = load(order[order_at]);
    let x_value = load(x[x_at]);
    let order_valid = order_in_domain(order_value);
    let x_valid = argument_in_domain(x_value);
    if !order_valid {
        atomicMax(&status[0], 0xffffffffu - (params.out_start + i));
    }
    if !x_valid {
        atomicMax(&status[1], 0xffffffffu - (params.out_start + i));
    }
    if order_valid && x_valid {
        out[params.out_offset + i] = store(bessel(magnitude(order_value), magnitude(x_value)));
    } else {
        out[params.out_offset + i] = store(not_a_number());
    }
}
