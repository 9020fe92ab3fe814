// kappa[i] with A_d(kappa) = R, d = dim[i], R = length[i], 1 - R = complement[i]: the concentration of a von Mises-Fisher distribution from the
// length of its mean resultant. Newton's steps from R (d - R^2) / (1 - R^2) (Banerjee et al. 2005; Sra 2012), on 1 - A where R > 1/2.
// One invocation an element, five or six steps of the two ratios each.
// Shared: bessel_f32.wgsl and real_f32.wgsl; bessel_f64.wgsl, real_f64.wgsl and stored_pairs.wgsl or stored_f64.wgsl; or
// bessel_double_single.wgsl and real_pairs.wgsl; and what these need. The host appends the constants of bessel.wgsl with FUNCTION = IV_RATIO.
// R of 0 gives 0; a root beyond 1e12 gives 1e12. A d out of [2, 1e7], an R or 1 - R out of [0, 1], a 1 - R that is not 1 less R to 1e-6 is
// reported in status and gives NaN.

struct Params {
    zero: u32,   // 0: see shared/double_single.wgsl
    count: u32,
    start: u32,  // index of the first element in the whole
    groups_x: u32,
    dim_offset: u32, // elements into the bound window
    length_offset: u32,
    complement_offset: u32,
    out_offset: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> dim: array<Stored>;        // (count)
@group(0) @binding(2) var<storage, read> length_: array<Stored>;    // (count)
@group(0) @binding(3) var<storage, read> complement: array<Stored>; // (count)
@group(0) @binding(4) var<storage, read_write> out: array<Stored>;  // (count)
// [0] for dim, [1] for length, [2] for complement: 0xffffffff - the lowest index of an element out of the domain, else 0
@group(0) @binding(5) var<storage, read_write> status: array<atomic<u32>>;

fn solve(d: Real, r: Real, c: Real) -> Real {
    let d1 = add(d, real(-1.0));
    if is_zero(r) {
        return real(0.0);
    }
    if is_zero(c) || single(d1) > 2e12 * single(c) {
        return largest_kappa();
    }
    let order = add(mul(d, real(0.5)), real(-1.0));
    let upper = single(r) > 0.5;
    var kappa = div(mul(r, add(d, -mul(r, r))), mul(c, add(real(1.0), r)));
    for (var step = 0u; step < 8u; step++) {
        let at = ratios(order, kappa);
        var residual = add(r, -at.ratio);
        if upper {
            residual = add(at.complement, -c);
        }
        let half = 0.5 * single(d1);
        let sigma = sqrt(half * half + single(kappa) * single(kappa));
        // A' = 1 - A^2 - (d - 1) A / kappa, or a / (sigma (a + sigma))
        var slope = add(mul(at.complement, add(real(1.0), at.ratio)), -mul(d1, div(at.ratio, kappa)));
        if sigma > far() {
            slope = real(half / sigma / (half + sigma));
        }
        let change = div(residual, slope);
        let next = add(kappa, change);
        // A is concave: a step from the right of the root may overshoot, never past a half of the way to 0 for long
        if single(next) > 0.5 * single(kappa) {
            kappa = next;
        } else {
            kappa = mul(kappa, real(0.5));
        }
        if abs(single(change)) <= single(rounding()) * single(kappa) { break; }
    }
    if single(kappa) > 1e12 {
        return largest_kappa();
    }
    return kappa;
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = (group.y * params.groups_x + group.x) * WORKGROUP + lane;
    if i >= params.count {
        return;
    }
    let d = load(dim[params.dim_offset + i]);
    let r = load(length_[params.length_offset + i]);
    let c = load(complement[params.complement_offset + i]);
    let valid = vec3(
        order_in_domain(d) && less_equal(real(2.0), d),
        order_in_domain(r) && less_equal(r, real(1.0)),
        order_in_domain(c) && less_equal(c, real(1.0)) && abs(single(r) + single(c) - 1.0) <= 1e-6,
    );
    for (var quantity = 0u; quantity < 3u; quantity++) {
        if !valid[quantity] {
            atomicMax(&status[quantity], 0xffffffffu - (params.start + i));
        }
    }
    var kappa = not_a_number();
    if all(valid) {
        kappa = solve(d, magnitude(r), magnitude(c));
    }
    out[params.out_offset + i] = store(kappa);
}
