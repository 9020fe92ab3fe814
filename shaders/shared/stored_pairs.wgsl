// Elements stored as pairs of f32, computed in f64: vec2(high, low) is high + low exactly; a result keeps 48 bits.

fn load(stored: vec2<f32>) -> f64 {
    return f64(stored.x) + f64(stored.y);
}

fn store(value: f64) -> vec2<f32> {
    let high = f32(value);
    // Infinities and NaNs have no low word: from the bits, for a compiler may assume that neither exists.
    let finite = (bitcast<u32>(high) & 0x7f800000u) != 0x7f800000u;
    return vec2(high, select(0.0, f32(value - f64(high)), finite));
}
