// What extended precision needs of each row x of f32 or f16: with FORM = SCALES what makes it a unit row, out[2 i] = weights[i] / |x / unit| and
// out[2 i + 1] = (1 / unit, 0) for a power of two `unit` near its largest element; with FORM = DENSITIES
// out[i] = log_normalizer + kappa (mean . x) / |x|, the log-density of a von Mises-Fisher distribution.
// One workgroup a row: the largest magnitude, then the sums of squares and of products in extended precision, by a tree in workgroup memory.
// Three loads an element, two from cache; 35 operations of f32 in pairs for each sum.
// Shared: real_pairs.wgsl and double_single.wgsl, or real_f64.wgsl and stored_pairs.wgsl. The host appends alias Real, const HALF: u32 (1: f16),
// SCALES 0, DENSITIES 1, FORM, WORKGROUP.
// A zero row and a row with an infinity or NaN are reported in status and give zeros.

struct Params {
    zero: u32,        // 0: see shared/double_single.wgsl
    rows: u32,
    columns: u32,
    rows_offset: u32, // elements into the bound window
    out_offset: u32,
    first: u32,       // index of the first row in the whole
    groups_x: u32,
    factors_offset: u32,
    weighted: u32,    // 1: SCALES has weights; rows of weight 0 are not looked at and give zeros
    pad: u32,
    log_normalizer: vec2<f32>,
    kappa: vec2<f32>,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> rows: array<u32>;            // f32 bits, or pairs of f16; (rows, columns)
@group(0) @binding(2) var<storage, read> factors: array<vec2<f32>>;   // SCALES: weights (rows), or anything; DENSITIES: mean (columns)
@group(0) @binding(3) var<storage, read_write> out: array<vec2<f32>>; // (rows, 2) or (rows)
@group(0) @binding(4) var<storage, read_write> status: array<atomic<u32>>; // [0] zero row, [1] not finite: 0xffffffff - the lowest index

var<workgroup> squares: array<Real, WORKGROUP>;
var<workgroup> products: array<Real, WORKGROUP>;
var<workgroup> bits: array<u32, WORKGROUP>;

fn element(at: u32) -> f32 {
    if HALF == 1u {
        return unpack2x16float(rows[at / 2u])[at % 2u];
    }
    return bitcast<f32>(rows[at]);
}

// The magnitude's bits as they order magnitudes; an infinity or NaN of f16 is one of f32 in these bits, without arithmetic on it.
fn magnitude(at: u32) -> u32 {
    if HALF == 1u {
        let half = (rows[at / 2u] >> (16u * (at % 2u))) & 0x7fffu;
        if half >= 0x7c00u {
            return 0x7f800000u;
        }
    }
    return bitcast<u32>(element(at)) & 0x7fffffffu;
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = group.y * params.groups_x + group.x;
    let inside = row < params.rows;
    let columns = select(0u, params.columns, inside);
    let begin = params.rows_offset + row * params.columns;
    var weight = real(1.0);
    if FORM == SCALES && params.weighted == 1u && inside {
        weight = load(factors[params.factors_offset + row]);
    }
    let skipped = single(weight) == 0.0;

    var largest = 0u;
    for (var column = lane; column < columns; column += WORKGROUP) {
        largest = max(largest, magnitude(begin + column));
    }
    bits[lane] = largest;
    workgroupBarrier();
    for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
        if lane < half {
            bits[lane] = max(bits[lane], bits[lane + half]);
        }
        workgroupBarrier();
    }
    largest = bits[0];
    let finite = largest < 0x7f800000u;
    // Below the smallest normal number a magnitude may be flushed to zero: it counts as zero.
    let nonzero = largest >= 0x00800000u;
    let usable = finite && nonzero && !skipped;
    let exponent = clamp(largest >> 23u, 2u, 252u);
    let inverse_unit = bitcast<f32>((254u - exponent) << 23u);

    var square = real(0.0);
    var product = real(0.0);
    if usable {
        for (var column = lane; column < columns; column += WORKGROUP) {
            let value = element(begin + column) * inverse_unit;
            square = add_product(square, value, value);
            if FORM == DENSITIES {
                product = add(product, mul_f32(load(factors[params.factors_offset + column]), value));
            }
        }
    }
    squares[lane] = square;
    products[lane] = product;
    workgroupBarrier();
    for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
        if lane < half {
            squares[lane] = add(squares[lane], squares[lane + half]);
            if FORM == DENSITIES {
                products[lane] = add(products[lane], products[lane + half]);
            }
        }
        workgroupBarrier();
    }
    if lane > 0u || !inside {
        return;
    }
    if !nonzero && !skipped {
        atomicMax(&status[0], 0xffffffffu - (params.first + row));
    }
    if !finite && !skipped {
        atomicMax(&status[1], 0xffffffffu - (params.first + row));
    }
    let at = params.out_offset + row;
    if FORM == SCALES {
        var scale = real(0.0);
        if usable {
            scale = div(weight, root(squares[0]));
        }
        out[2u * at] = store(scale);
        out[2u * at + 1u] = vec2(select(0.0, inverse_unit, usable), 0.0);
    } else {
        var density = real(0.0);
        if usable {
            let cosine = div(products[0], root(squares[0]));
            density = add(load(params.log_normalizer), mul(load(params.kappa), cosine));
        }
        out[at] = store(density);
    }
}
