//! The pairs that double-single arithmetic is tested with, and what must come out.

use crate::double_single::DoubleSingle;

/// Pairs of the self-test: random ones, and those whose error terms are the hard ones. Their results fill the smallest binding, 64 KiB.
const PAIRS: usize = 640;
/// Pairs that come out for each.
pub(super) const OUTPUTS: usize = 12;

/// The loop of the shader.
fn chain(a: f64, b: f64) -> f64 {
    (0..8).fold(0.0, |x, k| 0.75 * x + a + if k % 2 == 0 { b } else { 0.0 })
}

/// Inputs (a, b) of the self-test, exponents within 2^12 of 1: sums of two words are exact in f64.
pub(super) fn inputs() -> Vec<[DoubleSingle; 2]> {
    let mut state = 0x5eed_u64;
    // splitmix64
    let mut next = move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    };
    let mut value = |kind: u64| {
        let bits = next();
        // All ones, one bit, few bits at both ends, or any.
        let mantissa = match kind {
            0 => 0x7f_ffff,
            1 => 0,
            2 => (bits as u32 & 0x7) | 0x7f_f000,
            _ => bits as u32 & 0x7f_ffff,
        };
        let exponent = 127 - 12 + ((bits >> 32) % 25) as u32;
        let high = f32::from_bits((((bits >> 63) as u32) << 31) | (exponent << 23) | mantissa);
        // A low word of 24 bits below half a unit of the high one's last place, none in an eighth of the pairs.
        let unit = f32::from_bits((exponent - 24) << 23);
        let low = if bits >> 60 & 7 == 0 { 0.0 } else { unit * ((bits >> 8) as u32 as f32 / 4_294_967_296.0 - 0.5) };
        DoubleSingle { high, low }
    };
    let mut all = Vec::with_capacity(PAIRS);
    for i in 0..PAIRS as u64 {
        let a = value(i % 5);
        let b = match i % 7 {
            // Nearly opposite: the sum cancels to the last bits.
            0 => DoubleSingle { high: -f32::from_bits(a.high.to_bits() + (i % 3) as u32), low: a.low * 0.5 },
            1 => DoubleSingle { high: -a.high, low: -a.low * 0.25 },
            // Half a unit of the last place: a tie.
            2 => DoubleSingle { high: f32::from_bits((a.high.to_bits() & 0x7f80_0000) - (24 << 23)), low: 0.0 },
            kind => value(kind),
        };
        all.push([a, b]);
    }
    all
}

/// Where `results` of the self-test, twelve pairs for each of `inputs`, leave what the shader promises.
pub(super) fn verdict(inputs: &[[DoubleSingle; 2]], results: &[DoubleSingle]) -> std::result::Result<(), String> {
    const UNIT: f64 = 1.0 / (1u64 << 48) as f64;
    let names = [
        "two-sum",
        "two-product",
        "sum",
        "product",
        "quotient",
        "root",
        "log",
        "exp",
        "chain",
        "loose sum",
        "log1p",
        "expm1",
    ];
    let mut wrong = [0usize; 12];
    for ([a, b], found) in inputs.iter().zip(results.chunks_exact(OUTPUTS)) {
        let exact = [f64::from(a.high) + f64::from(b.high), f64::from(a.high) * f64::from(b.high)];
        let (a, b) = (a.to_f64(), b.to_f64());
        let log = found[6].to_f64();
        let small = a.abs() / 128.0;
        // Each with its bound, in units of 2^-48: exact, or as its comment in shared/double_single.wgsl says.
        let expected = [
            (exact[0], 0.0),
            (exact[1], 0.0),
            (a + b, 3.0 * (a + b).abs()),
            (a * b, 5.0 * (a * b).abs()),
            (a / b, 15.0 * (a / b).abs()),
            (a.abs().sqrt(), 8.0 * a.abs().sqrt()),
            (a.abs().ln(), 14.0 * a.abs().ln().abs().max((a.abs() - 1.0).abs().min(1.0))),
            ((-log.abs()).exp(), (8.0 + 3.0 * log.abs()) * (-log.abs()).exp()),
            // Sixteen sums and products of at most 4 (|a| + |b|), each of the roundings above.
            (chain(a, b), 100.0 * (a.abs() + b.abs())),
            (a + b, 4.0 * (a.abs() + b.abs())),
            (small.ln_1p(), 14.0 * small),
            (small.exp_m1(), (12.0 + 3.0 * small) * small.exp()),
        ];
        for ((wrong, found), (expected, bound)) in wrong.iter_mut().zip(found).zip(expected) {
            // f64 itself rounds the sums and products of two pairs: 2^-53 of them, a thirtieth of a unit.
            let slack = if bound == 0.0 { 0.0 } else { UNIT / 16.0 * (expected.abs() + bound) };
            let error = (found.to_f64() - expected).abs();
            let normal = f64::from(found.low().abs()) <= f64::from(found.high().abs()) / 8_388_608.0;
            *wrong += usize::from(!(error <= bound * UNIT + slack && normal));
        }
    }
    let failures: Vec<String> = names
        .iter()
        .zip(wrong)
        .filter(|(_, wrong)| *wrong > 0)
        .map(|(name, wrong)| format!("{wrong} of {} {name}s", inputs.len()))
        .collect();
    if failures.is_empty() { Ok(()) } else { Err(format!("{} come out wrong", failures.join(", "))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the shader computes, in f32 on the CPU, where nothing is reassociated; `lossy` leaves error terms out as an optimiser would.
    fn results(inputs: &[[DoubleSingle; 2]], lossy: bool) -> Vec<DoubleSingle> {
        let pair = |exact: f64| DoubleSingle::new(exact);
        let lossless = |value: DoubleSingle| if lossy { DoubleSingle::from(value.high) } else { value };
        let mut all = Vec::new();
        for [a, b] in inputs {
            let sum = pair(f64::from(a.high) + f64::from(b.high));
            let product = pair(f64::from(a.high) * f64::from(b.high));
            let (a, b) = (a.to_f64(), b.to_f64());
            let log = pair(a.abs().ln());
            all.extend([lossless(sum), product, pair(a + b), pair(a * b), pair(a / b), pair(a.abs().sqrt()), log]);
            all.push(pair((-log.to_f64().abs()).exp()));
            all.extend([
                pair(chain(a, b)),
                pair(a + b),
                pair((a.abs() / 128.0).ln_1p()),
                pair((a.abs() / 128.0).exp_m1()),
            ]);
        }
        all
    }

    #[test]
    fn the_self_test_sees_a_lost_low_word() {
        let inputs = inputs();
        assert_eq!(inputs.len(), PAIRS);
        assert_eq!(verdict(&inputs, &results(&inputs, false)), Ok(()));
        let failure = verdict(&inputs, &results(&inputs, true)).unwrap_err();
        assert!(failure.contains("two-sums") && !failure.contains("product"), "{failure}");
        let mut planted = results(&inputs, false);
        planted[OUTPUTS * 600 + 4].low = 0.0;
        assert_eq!(verdict(&inputs, &planted), Err("1 of 640 quotients come out wrong".into()));
        planted = results(&inputs, false);
        planted[OUTPUTS * 77].low = f32::NAN;
        assert!(verdict(&inputs, &planted).is_err());
    }

    #[test]
    fn inputs_are_normalised_and_their_sums_exact() {
        for [a, b] in inputs() {
            for value in [a, b] {
                assert!(value.high != 0.0 && value.low.abs() <= value.high.abs() / 8_388_608.0, "{value:?}");
            }
            let (small, large) = (a.high.abs().min(b.high.abs()), a.high.abs().max(b.high.abs()));
            // 24 bits of the smaller, 28 between them: f64 holds the sum.
            assert!(large / small < 2f32.powi(28), "{a:?} {b:?}");
        }
    }
}
