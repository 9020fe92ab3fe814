//! Latents as they are stored: pages of 32 tokens, quantised and packed in words; the same words on the CPU, on a GPU and in files.
//!
//! A page holds the tokens [32 p, 32 p + 32) of one sequence and layer: its sets of keys in their order, then those of values. A set is the latents
//! [rank, 32] of one projection: parameters (at 8 bits and below), then codes.
//!
//! * codes: words[g][token] for g in 0..ceil(rank / w), w = 32 / bits: channel g * w + i in the bits [i * bits, (i + 1) * bits); behind the rank zeros
//! * parameters: one word of two f16, the minimum in the low half, the scale in the high half; of keys one a channel, words[channel]; of values one a
//!   token for each 32 channels, words[channel / 32][token]
//! * minimum = min rounded to f16, scale = (max - minimum) / (2^bits - 1) rounded to f16, 0 where that is below 0 (to nearest, ties to even); code =
//!   (z - minimum) / scale, all f32, rounded (ties to even) and clamped to 0..2^bits, 0 where the scale is 0; stands for minimum + scale * code
//! * a minimum of zero is +0. The words that a GPU makes are these for its own z, bit for bit; its z differ from the CPU's by the roundings of sums in
//!   another order alone
//! * tokens that are held exactly beside (sinks) take no part in min and max
//! * 16 bits are f16, 32 bits f32
//!
//! Source: Liu et al. 2024 (KIVI: keys by channel, values by token), with a minimum in place of a zero point.

use half::f16;
use multiversion::multiversion;

use crate::{Error, Result};

/// Tokens of a page.
pub(crate) const PAGE: usize = 32;
/// Channels of values that share a token's minimum and scale.
pub(crate) const GROUP: usize = 32;

/// How many bits a latent takes. 2, 4 and 8 are integers with a minimum and a scale for 32 of them (1 bit more), 16 is f16, 32 is f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LatentBits {
    /// 4 levels.
    Two,
    /// 16 levels.
    Four,
    /// 256 levels.
    Eight,
    /// f16.
    Sixteen,
    /// f32.
    ThirtyTwo,
}

impl LatentBits {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Two, Self::Four, Self::Eight, Self::Sixteen, Self::ThirtyTwo];

    /// That of so many bits.
    ///
    /// # Errors
    /// [`Error::Argument`] for others than 2, 4, 8, 16 and 32.
    pub fn new(bits: u32) -> Result<Self> {
        Self::ALL.into_iter().find(|known| known.count() == bits).ok_or_else(|| Error::Argument {
            place: "KvCache",
            quantity: "bits",
            expected: "2, 4, 8, 16 or 32".into(),
            found: bits.to_string(),
        })
    }

    /// The number of bits.
    pub fn count(self) -> u32 {
        match self {
            Self::Two => 2,
            Self::Four => 4,
            Self::Eight => 8,
            Self::Sixteen => 16,
            Self::ThirtyTwo => 32,
        }
    }

    /// Whether latents are integers with a minimum and a scale.
    pub fn quantised(self) -> bool {
        self.count() <= 8
    }

    /// Channels of a word.
    pub(crate) fn channels(self) -> usize {
        32 / self.count() as usize
    }

    /// The largest code.
    fn levels(self) -> f32 {
        ((1u64 << self.count()) - 1) as f32
    }
}

/// Keys or values: their latents differ in what shares a minimum and a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// Keys.
    Keys,
    /// Values.
    Values,
}

impl Side {
    /// `keys` or `values`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Keys => "keys",
            Self::Values => "values",
        }
    }
}

impl std::fmt::Display for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Where the latents of one projection are in a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SetLayout {
    pub(crate) side: Side,
    pub(crate) rank: usize,
    pub(crate) bits: LatentBits,
    /// The first word of the parameters; as `codes` where there are none.
    pub(crate) params: usize,
    /// The first word of the codes.
    pub(crate) codes: usize,
    /// Behind the last word.
    pub(crate) end: usize,
}

impl SetLayout {
    fn new(side: Side, rank: usize, bits: LatentBits, params: usize) -> Self {
        let words = match side {
            _ if !bits.quantised() => 0,
            Side::Keys => rank,
            Side::Values => rank.div_ceil(GROUP) * PAGE,
        };
        let codes = params + words;
        Self { side, rank, bits, params, codes, end: codes + rank.div_ceil(bits.channels()) * PAGE }
    }

    /// Packs `z` [rank, 32] into its words of `page`; tokens before `skip` take no part in minima and maxima, and are clamped. False, with the words
    /// in no certain state, where a latent that counts is not finite, or beyond f16 below 32 bits.
    pub(crate) fn encode(&self, z: &[f32], skip: usize, page: &mut [u32]) -> bool {
        let bits = self.bits.count() as usize;
        page[self.codes..self.end].fill(0);
        let mut fine = true;
        let largest = if bits == 32 { f32::MAX } else { f16::MAX.to_f32() };
        for (channel, z) in z.chunks_exact(PAGE).enumerate() {
            fine &= z[skip.min(PAGE)..].iter().all(|z| z.abs() <= largest);
            let words = &mut page[self.codes + channel / self.bits.channels() * PAGE..][..PAGE];
            let shift = channel % self.bits.channels() * bits;
            match self.bits {
                LatentBits::ThirtyTwo => words.iter_mut().zip(z).for_each(|(word, z)| *word = z.to_bits()),
                LatentBits::Sixteen => {
                    words
                        .iter_mut()
                        .zip(z)
                        .for_each(|(word, z)| *word |= u32::from(f16::from_f32(*z).to_bits()) << shift);
                }
                _ => {}
            }
        }
        if !fine || !self.bits.quantised() {
            return fine;
        }
        let (of_word, bits) = (self.bits.channels(), self.bits.count());
        match self.side {
            Side::Keys => {
                for (channel, z) in z.chunks_exact(PAGE).enumerate() {
                    let scaling = Scaling::of(&z[skip.min(PAGE)..], self.bits);
                    page[self.params + channel] = scaling.word();
                    let scalings = ([scaling.minimum.to_f32(); PAGE], [scaling.scale.to_f32(); PAGE]);
                    let words = &mut page[self.codes + channel / of_word * PAGE..][..PAGE];
                    add_codes(z, &scalings, self.bits.levels(), (channel % of_word) as u32 * bits, words);
                }
            }
            Side::Values => {
                for (group, z) in z.chunks(GROUP * PAGE).enumerate() {
                    let (min, max) = extremes(z);
                    let mut scalings = ([0.0; PAGE], [0.0; PAGE]);
                    // An exact token's own minimum harms no one else, but might not be finite.
                    for token in skip.min(PAGE)..PAGE {
                        let scaling = Scaling::between(min[token], max[token], self.bits);
                        page[self.params + group * PAGE + token] = scaling.word();
                        (scalings.0[token], scalings.1[token]) = (scaling.minimum.to_f32(), scaling.scale.to_f32());
                    }
                    page[self.params + group * PAGE..][..skip.min(PAGE)].fill(0);
                    for (channel, z) in (group * GROUP..).zip(z.chunks_exact(PAGE)) {
                        let words = &mut page[self.codes + channel / of_word * PAGE..][..PAGE];
                        add_codes(z, &scalings, self.bits.levels(), (channel % of_word) as u32 * bits, words);
                    }
                }
            }
        }
        fine
    }

    /// Whether all that the tokens from `skip` on stand for is finite, and the parameters of all are.
    pub(crate) fn is_finite(&self, page: &[u32], skip: usize) -> bool {
        let codes = |finite: fn(u32) -> bool| {
            let words = page[self.codes..self.end].chunks_exact(PAGE);
            words.flat_map(|words| words.iter().skip(skip)).all(|&word| finite(word))
        };
        let halves = |word: u32| half_at(word, 0).is_finite() && half_at(word, 16).is_finite();
        match self.bits {
            LatentBits::ThirtyTwo => codes(|word| f32::from_bits(word).is_finite()),
            LatentBits::Sixteen => codes(halves),
            _ => page[self.params..self.codes].iter().all(|&word| halves(word)),
        }
    }

    /// The minimum and the scale of a latent.
    pub(crate) fn scaling(&self, page: &[u32], channel: usize, token: usize) -> (f32, f32) {
        let word = match self.side {
            Side::Keys => page[self.params + channel],
            Side::Values => page[self.params + channel / GROUP * PAGE + token],
        };
        (half_at(word, 0), half_at(word, 16))
    }

    /// The latent of a channel and a token.
    pub(crate) fn decode(&self, page: &[u32], channel: usize, token: usize) -> f32 {
        let (of_word, bits) = (self.bits.channels(), self.bits.count());
        let word = page[self.codes + channel / of_word * PAGE + token];
        let shift = (channel % of_word) as u32 * bits;
        match self.bits {
            LatentBits::ThirtyTwo => f32::from_bits(word),
            LatentBits::Sixteen => half_at(word, shift),
            _ => {
                let (minimum, scale) = self.scaling(page, channel, token);
                minimum + scale * ((word >> shift) & ((1 << bits) - 1)) as f32
            }
        }
    }
}

fn half_at(word: u32, shift: u32) -> f32 {
    f16::from_bits((word >> shift) as u16).to_f32()
}

/// A minimum and a scale, both rounded to f16.
#[derive(Clone, Copy)]
struct Scaling {
    minimum: f16,
    scale: f16,
}

impl Scaling {
    const NONE: Self = Self { minimum: f16::ZERO, scale: f16::ZERO };

    fn of(z: &[f32], bits: LatentBits) -> Self {
        let (min, max) = z.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(min, max), z| (min.min(*z), max.max(*z)));
        if min > max { Self::NONE } else { Self::between(min, max, bits) }
    }

    fn between(min: f32, max: f32, bits: LatentBits) -> Self {
        // From the rounded minimum, so that the largest code reaches the maximum. No minimum of -0, whichever of two zeros came first.
        let minimum = f16::from_f32(min + 0.0);
        Self { minimum, scale: f16::from_f32(((max - minimum.to_f32()) / bits.levels()).max(0.0)) }
    }

    fn word(self) -> u32 {
        u32::from(self.minimum.to_bits()) | u32::from(self.scale.to_bits()) << 16
    }
}

/// The least and the largest over channels of each token of `z` [channels, 32].
#[multiversion(targets("x86_64+avx2+fma"))]
fn extremes(z: &[f32]) -> ([f32; PAGE], [f32; PAGE]) {
    let (mut min, mut max) = ([f32::INFINITY; PAGE], [f32::NEG_INFINITY; PAGE]);
    for z in z.chunks_exact(PAGE) {
        for token in 0..PAGE {
            min[token] = if z[token] < min[token] { z[token] } else { min[token] };
            max[token] = if z[token] > max[token] { z[token] } else { max[token] };
        }
    }
    (min, max)
}

/// Puts the codes of a channel's 32 latents into their words, by the minima and scales of the tokens.
#[multiversion(targets("x86_64+avx2+fma"))]
fn add_codes(z: &[f32], (minima, scales): &([f32; PAGE], [f32; PAGE]), levels: f32, shift: u32, words: &mut [u32]) {
    // From 2^23 on an f32 has no digits behind the point: a sum is rounded to a whole number, ties to even.
    const WHOLE: f32 = 8_388_608.0;
    // Lengths that the compiler sees.
    let (z, words) = (&z[..PAGE], &mut words[..PAGE]);
    for token in 0..PAGE {
        // With a scale of 0 infinite or not a number, and then not what is chosen.
        let code = (z[token] - minima[token]) / scales[token];
        // What is not a number becomes 0.
        let code = if code > 0.0 && scales[token] > 0.0 { code } else { 0.0 };
        let code = if code < levels { code } else { levels };
        words[token] |= ((code + WHOLE).to_bits() - WHOLE.to_bits()) << shift;
    }
}

/// Where everything is in the pages of one layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PageLayout {
    pub(crate) keys: Vec<SetLayout>,
    pub(crate) values: Vec<SetLayout>,
    /// Words of a page.
    pub(crate) words: usize,
}

impl PageLayout {
    /// That of sets of keys and of values of these ranks.
    pub(crate) fn new(keys: &[usize], key_bits: LatentBits, values: &[usize], value_bits: LatentBits) -> Self {
        let mut words = 0;
        let mut sets = |side, ranks: &[usize], bits| -> Vec<SetLayout> {
            let set = |&rank: &usize| {
                let set = SetLayout::new(side, rank, bits, words);
                words = set.end;
                set
            };
            ranks.iter().map(set).collect()
        };
        let keys = sets(Side::Keys, keys, key_bits);
        let values = sets(Side::Values, values, value_bits);
        Self { keys, values, words }
    }

    /// Bytes of a page.
    pub(crate) fn bytes(&self) -> u64 {
        4 * self.words as u64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(side: Side, rank: usize, bits: LatentBits) -> SetLayout {
        let none: &[usize] = &[];
        let layout = match side {
            Side::Keys => PageLayout::new(&[rank], bits, none, bits),
            Side::Values => PageLayout::new(none, bits, &[rank], bits),
        };
        layout.keys.first().or(layout.values.first()).copied().unwrap()
    }

    #[test]
    fn a_page_of_rank_64_at_4_bits_takes_5_bits_a_latent() {
        let layout = PageLayout::new(&[64; 8], LatentBits::Four, &[64; 8], LatentBits::Four);
        assert_eq!(layout.bytes(), 32 * 8 * 2 * 64 * 5 / 8);
        assert_eq!(layout.keys[1].params, 64 + 8 * 32);
        assert_eq!(layout.values[0].params, 8 * (64 + 8 * 32));
    }

    #[test]
    fn words_are_as_written_above() {
        // Channel 9 of token 3 of keys at 4 bits: word 1, the second nibble. 0..=15 over tokens 16.. has scale 1 and minimum 0.
        let keys = set(Side::Keys, 10, LatentBits::Four);
        let z: Vec<f32> = (0..10 * PAGE).map(|i| (i % PAGE % 16) as f32).collect();
        let mut page = vec![u32::MAX; keys.end];
        assert!(keys.encode(&z, 0, &mut page));
        assert_eq!(page[keys.params + 9], 0x3c00_0000);
        assert_eq!(page[keys.codes + PAGE + 3], 0x33, "channels 8 and 9, zeros behind them");
        // A sink far out does not change the scale of the others, and is clamped.
        let mut far = z.clone();
        far[0] = 1e6;
        assert!(keys.encode(&far, 4, &mut page));
        assert_eq!((page[keys.params], page[keys.codes] & 15), (0x3c00_0000, 15));
        // Values: one word a token and group of 32 channels.
        let values = set(Side::Values, 40, LatentBits::Two);
        let z: Vec<f32> = (0..40 * PAGE).map(|i| (i / PAGE % 4) as f32 * 0.5 - 1.0).collect();
        let mut page = vec![0; values.end];
        assert!(values.encode(&z, 0, &mut page));
        assert_eq!(values.codes - values.params, 2 * PAGE);
        assert_eq!(page[values.params + PAGE + 7], 0x3800_bc00);
        assert_eq!(page[values.codes + 5], 0xe4e4_e4e4);
    }

    #[test]
    fn halves_round_to_even_and_a_constant_has_code_0() {
        let keys = set(Side::Keys, 1, LatentBits::Eight);
        let mut page = vec![0; keys.end];
        assert!(keys.encode(&[2.5; PAGE], 0, &mut page));
        assert!(page[keys.codes..].iter().all(|&word| word == 0));
        assert_eq!(keys.decode(&page, 0, 31), 2.5);
        let mut z = [0.0; PAGE];
        (z[1], z[2], z[3], z[4]) = (0.5, 1.5, 254.5, 255.0);
        assert!(keys.encode(&z, 0, &mut page));
        assert_eq!([1, 2, 3, 4].map(|token| page[keys.codes + token]), [0, 2, 254, 255]);
    }

    #[test]
    fn what_is_not_finite_or_too_large_is_refused() {
        for (bits, bad) in
            [(LatentBits::Four, f32::NAN), (LatentBits::Sixteen, 1e6), (LatentBits::ThirtyTwo, f32::INFINITY)]
        {
            let values = set(Side::Values, 3, bits);
            let mut z = [0.0; 3 * PAGE];
            z[40] = bad;
            let mut page = vec![0; values.end];
            assert!(!values.encode(&z, 0, &mut page), "{bits:?}");
            assert!(values.encode(&z, 9, &mut page), "{bits:?}: an exact token does not count");
        }
    }

    proptest! {
        /// Off by half a step, and by what rounding minimum and scale to f16 adds: 2^-11 of either (below 2^-14, 2^-25), that of the scale `levels` times.
        #[test]
        fn a_latent_comes_back_within_half_a_step(
            bits in prop::sample::select(&LatentBits::ALL), keys: bool, rank in 1usize..70, skip in 0usize..6, seed: u64, size in -3.0f32..3.0
        ) {
            let set = set(if keys { Side::Keys } else { Side::Values }, rank, bits);
            let noise = |i: usize| (((seed ^ i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32 / 8_388_608.0 - 1.0) * 10f32.powf(size);
            let z: Vec<f32> = (0..rank * PAGE).map(noise).collect();
            let mut page = vec![0; set.end];
            prop_assert!(set.encode(&z, skip, &mut page));
            for channel in 0..rank {
                for token in skip..PAGE {
                    let (z, back) = (z[channel * PAGE + token], set.decode(&page, channel, token));
                    let bound = match bits {
                        LatentBits::ThirtyTwo => 0.0,
                        LatentBits::Sixteen => z.abs() / 2048.0 + 3e-8,
                        _ => {
                            let (minimum, scale) = set.scaling(&page, channel, token);
                            0.501 * scale + (minimum.abs() + scale * bits.levels()) / 2000.0 + (1.0 + bits.levels()) / 3.3e7
                        }
                    };
                    prop_assert!((z - back).abs() <= bound, "{bits:?} {channel} {token}: {z} {back}");
                }
            }
        }
    }
}
