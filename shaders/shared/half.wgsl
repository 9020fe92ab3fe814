// f16 and f32 by integer arithmetic: to nearest, ties to even, subnormal halves too. A driver rounds pack2x16float as it likes.

fn finite(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7f800000u) != 0x7f800000u;
}

// The bits of x as f16; infinity from 65520 on, and for what is not a number.
fn half_bits(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    let sign = (bits >> 16u) & 0x8000u;
    let size = bits & 0x7fffffffu;
    if size >= 0x47800000u {
        return sign | 0x7c00u;
    }
    if size >= 0x38800000u {
        return sign | ((size + 0xfffu + ((size >> 13u) & 1u) - 0x38000000u) >> 13u);
    }
    // Below 2^-14: in steps of 2^-24.
    let exponent = size >> 23u;
    if exponent < 102u {
        return sign;
    }
    let mantissa = (size & 0x7fffffu) | 0x800000u;
    let shift = 126u - exponent;
    let steps = mantissa >> shift;
    let rest = mantissa & ((1u << shift) - 1u);
    let middle = 1u << (shift - 1u);
    return sign | (steps + select(0u, 1u, rest > middle || (rest == middle && (steps & 1u) == 1u)));
}

// The value of finite f16 bits.
fn half_value(half: u32) -> f32 {
    let sign = (half & 0x8000u) << 16u;
    let size = half & 0x7fffu;
    if size < 0x400u {
        return bitcast<f32>(sign | bitcast<u32>(f32(size) * 5.9604644775390625e-8));
    }
    return bitcast<f32>(sign | ((size << 13u) + 0x38000000u));
}
