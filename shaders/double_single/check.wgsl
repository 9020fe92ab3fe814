// The self-test of double-single arithmetic on an adapter: results[i] = the sums, products, quotient, root, log, exp and a loop of sums
// of the pair (a, b) = inputs[i] as the functions of shared/double_single.wgsl give them. The host knows the exact sums and products (f64 holds
// them) and the others to more digits than pairs have. One invocation a pair.
// Shared: double_single.wgsl. The host appends const WORKGROUP: u32 and const GUARD: u32.

struct Params {
    zero: u32, // 0
    count: u32,
}

struct Results {
    two_sum: vec2<f32>,     // a.x + b.x
    two_product: vec2<f32>, // a.x b.x
    sum: vec2<f32>,         // a + b
    product: vec2<f32>,     // a b
    quotient: vec2<f32>,    // a / b
    root: vec2<f32>,        // sqrt |a|
    log: vec2<f32>,         // ln |a|
    exp: vec2<f32>,         // e^-|ln |a||
    chain: vec2<f32>,       // x_8 of x_{k+1} = 3/4 x_k + a + b (k even) or a (k odd), x_0 = 0
    loose: vec2<f32>,       // a + b
    log1p: vec2<f32>,       // ln(1 + |a| / 128)
    expm1: vec2<f32>,       // e^(|a| / 128) - 1
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> inputs: array<vec4<f32>>;      // (count): a high, a low, b high, b low; none 0
@group(0) @binding(2) var<storage, read_write> results: array<Results>; // (count)

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let i = id.x;
    if i >= params.count {
        return;
    }
    let a = inputs[i].xy;
    let b = inputs[i].zw;
    let size = select(a, -a, a.x < 0.0);
    var out: Results;
    out.two_sum = two_sum(a.x, b.x);
    out.two_product = two_product(a.x, b.x);
    out.sum = ds_add(a, b);
    out.product = ds_mul(a, b);
    out.quotient = ds_div(a, b);
    out.root = ds_sqrt(size);
    out.log = ds_log(size);
    out.exp = ds_exp(select(out.log, -out.log, out.log.x > 0.0));
    // Sums that a loop carries, and constants among the operands.
    var x = vec2(0.0, 0.0);
    for (var k = 0u; k < 8u; k++) {
        x = ds_add(ds_mul_f32(x, 0.75), a);
        if k % 2u == 0u {
            x = ds_add(x, b);
        }
    }
    out.chain = x;
    out.loose = ds_add_loose(a, b);
    out.log1p = ds_log1p(size / 128.0);
    out.expm1 = ds_expm1(size / 128.0);
    results[i] = out;
}
