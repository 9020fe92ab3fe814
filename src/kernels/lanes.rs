//! Small products and exponentials of 16 rows side by side: what the small networks of one sample are made of on the CPU. The compiler turns a
//! [`Lanes`] into one vector register or several, so each function is inlined into one compiled for the processor's features.

/// One element of each of 16 rows.
pub(super) type Lanes = [f32; 16];
pub(super) const LANES: usize = 16;

/// a b + c, in one rounding if the function around is compiled for a processor that has it.
#[inline(always)]
pub(super) fn fma<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// c[i] = sum_k a[k * stride + i] b[k] for every i of `c`: each element of `a` times 16 rows.
#[inline(always)]
pub(super) fn product<const FUSED: bool>(a: &[f32], stride: usize, b: &[Lanes], c: &mut [Lanes]) {
    let (eights, rest) = c.as_chunks_mut::<8>();
    let mut at = 0;
    for c in eights {
        eight::<FUSED>(a.get(at..).unwrap_or(&[]), stride, b, c);
        at += 8;
    }
    for c in rest {
        one::<FUSED>(a.get(at..).unwrap_or(&[]), stride, b, c);
        at += 1;
    }
}

/// sum += a b.
#[inline(always)]
fn add<const FUSED: bool>(sum: &mut Lanes, a: f32, b: &Lanes) {
    for lane in 0..LANES {
        sum[lane] = fma::<FUSED>(a, b[lane], sum[lane]);
    }
}

/// Eight of [`product`], in registers: each has a name, or the compiler puts the first lanes of all eight into one vector and is twenty times slower.
#[inline(always)]
fn eight<const FUSED: bool>(a: &[f32], stride: usize, b: &[Lanes], c: &mut [Lanes; 8]) {
    let zero = [0.0f32; LANES];
    let (mut c0, mut c1, mut c2, mut c3) = (zero, zero, zero, zero);
    let (mut c4, mut c5, mut c6, mut c7) = (zero, zero, zero, zero);
    for (k, b) in b.iter().enumerate() {
        let Some((a, _)) = a[k * stride..].split_first_chunk::<8>() else { unreachable!("a has as many there") };
        add::<FUSED>(&mut c0, a[0], b);
        add::<FUSED>(&mut c1, a[1], b);
        add::<FUSED>(&mut c2, a[2], b);
        add::<FUSED>(&mut c3, a[3], b);
        add::<FUSED>(&mut c4, a[4], b);
        add::<FUSED>(&mut c5, a[5], b);
        add::<FUSED>(&mut c6, a[6], b);
        add::<FUSED>(&mut c7, a[7], b);
    }
    *c = [c0, c1, c2, c3, c4, c5, c6, c7];
}

#[inline(always)]
fn one<const FUSED: bool>(a: &[f32], stride: usize, b: &[Lanes], c: &mut Lanes) {
    let mut sum = [0.0f32; LANES];
    for (k, b) in b.iter().enumerate() {
        add::<FUSED>(&mut sum, a[k * stride], b);
    }
    *c = sum;
}

/// e^x for x <= 0, within 2 eps; 0 below -87; NaN stays NaN.
#[inline(always)]
pub(super) fn exp<const FUSED: bool>(x: f32) -> f32 {
    // Adding 1.5 * 2^23 rounds to an integer, which then lies in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let clamped = if x < -87.0 { -87.0 } else { x };
    let shifted = fma::<FUSED>(clamped, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = fma::<FUSED>(n, -LN_2_LOW, fma::<FUSED>(n, -LN_2_HIGH, clamped));
    // Cephes' polynomial of expf on |r| <= ln 2 / 2.
    let mut p = 1.987_569_1e-4;
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = fma::<FUSED>(p, r, c);
    }
    let p = fma::<FUSED>(p * r, r, r) + 1.0;
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    if x < -87.0 { 0.0 } else { p * power }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_are_within_two_eps() {
        for at in 0..=870_000 {
            let x = -(at as f32) * 1e-4;
            for got in [exp::<true>(x), exp::<false>(x)] {
                let expected = f64::from(x).exp();
                let bound = 2.0 * f64::from(f32::EPSILON) * expected;
                assert!((f64::from(got) - expected).abs() <= bound, "e^{x}: {got}, expected {expected}");
            }
        }
        assert_eq!(exp::<true>(-1e30), 0.0);
        assert!(exp::<true>(f32::NAN).is_nan() && exp::<false>(f32::NAN).is_nan());
    }

    #[test]
    fn products_of_any_length_are_sums() {
        for count in 0..20 {
            let a: Vec<f32> = (0..5 * 23).map(|at| (at % 7) as f32 - 3.0).collect();
            let b: Vec<Lanes> = (0..5).map(|k| std::array::from_fn(|lane| (k * lane % 5) as f32)).collect();
            let mut c = vec![[f32::NAN; LANES]; count];
            product::<false>(&a, 23, &b, &mut c);
            for (i, row) in c.iter().enumerate() {
                for (lane, &value) in row.iter().enumerate() {
                    let expected: f32 = (0..5).map(|k| a[k * 23 + i] * b[k][lane]).sum();
                    assert_eq!(value, expected, "{count} {i} {lane}");
                }
            }
        }
    }
}
