//! Few rows times latents of 2, 4 and 8 bits where they lie: [`Isa::key_codes`] and [`Isa::value_codes`].
//!
//! A word has codes of several channels of one token, so a vector of words is one of tokens. A channel's codes are masked where they stand and taken as
//! numbers, 2^shift too large, which the coefficient makes up for (exactly: it is a power of two): for R rows 2 instructions and R fused
//! multiply-adds a channel and vector of tokens, where unpacking to memory first takes 5 more.
//!
//! Measured on AVX2 (no AVX-512) at 32768 tokens, 32/8 heads, rank 64, 4 bits: 8 GFLOP/s by way of unpacked latents, 54 now; benches/RESULTS.md has the
//! steps between.

use super::*;
use crate::kv::latents::{GROUP, PAGE};

/// Rows of a pass: with two vectors of each, as many sums as 16 registers hold beside what they are made of.
pub(crate) const CODE_ROWS: usize = 4;
/// Channels are padded to whole words of 2 bits.
const CHANNELS: usize = 16;

/// Of a page's part that is one projection's keys or values: where minima and scales are, and where codes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PageCodes {
    pub(crate) bits: u32,
    pub(crate) rank: usize,
    pub(crate) params: usize,
    pub(crate) codes: usize,
}

impl PageCodes {
    /// Words of codes.
    fn words(self) -> usize {
        self.rank.div_ceil(32 / self.bits as usize)
    }
}

/// What is asked of memory on the way through keys: with each page the keys of one that comes later, and its own values.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ahead<'a> {
    /// As far as there are any.
    pub(crate) pages: &'a [&'a [u32]],
    /// Where values are in a page: the first word, and the one behind the last.
    pub(crate) values: (usize, usize),
}

/// Sums over values: what [`Isa::value_codes`] adds to. Of lanes, to be added up.
#[derive(Debug, Default)]
pub(crate) struct CodeSums {
    /// [channel, rows (a multiple of 4), lanes].
    pub(crate) parts: Vec<f32>,
    /// [group of 32 channels, rows (a multiple of 4)]: of weight times minimum.
    pub(crate) minima: Vec<f32>,
}

for_every_isa! {
    /// Scores (rows, ld) of the tokens of pages, 32 each: q . z + q[rank] with z = minimum + scale * code; `q` is (rows, ldq), minimum and scale of a
    /// channel are two f16. `scaled` is scratch.
    fn key_codes(
        layout: PageCodes, pages: &[&[u32]], ahead: Ahead<'_>, q: &[f32], ldq: usize, rows: usize, scaled: &mut Vec<f32>,
        scores: &mut [f32], ld: usize,
    );
    /// Multiplies `sums` by `fade`, each row by its own, and adds weights (rows, ld) times the latents of pages.
    fn value_codes(
        layout: PageCodes, pages: &[&[u32]], weights: &[f32], ld: usize, rows: usize, fade: &[f32], scaled: &mut Vec<f32>,
        sums: &mut CodeSums,
    );
    /// The sums as [rank, ld] of rows.
    fn finish_codes(sums: &CodeSums, rank: usize, rows: usize, to: &mut [f32], ld: usize);
    /// The low and the high halves of 32 words, each an f16.
    fn unpack_halves(words: &[u32; PAGE], low: &mut [f32; PAGE], high: &mut [f32; PAGE]);
}

macro_rules! by_bits_and_rows {
    ($function:ident, $isa:ident, $bits:expr, $rows:expr, ($($argument:expr),* $(,)?)) => {
        match ($bits, $rows) {
            (2, 1) => $function::<$isa, 2, 1>($($argument),*),
            (2, 2) => $function::<$isa, 2, 2>($($argument),*),
            (2, 3) => $function::<$isa, 2, 3>($($argument),*),
            (2, _) => $function::<$isa, 2, 4>($($argument),*),
            (4, 1) => $function::<$isa, 4, 1>($($argument),*),
            (4, 2) => $function::<$isa, 4, 2>($($argument),*),
            (4, 3) => $function::<$isa, 4, 3>($($argument),*),
            (4, _) => $function::<$isa, 4, 4>($($argument),*),
            (_, 1) => $function::<$isa, 8, 1>($($argument),*),
            (_, 2) => $function::<$isa, 8, 2>($($argument),*),
            (_, 3) => $function::<$isa, 8, 3>($($argument),*),
            (_, _) => $function::<$isa, 8, 4>($($argument),*),
        }
    };
}

/// 2^-shift of the channels of a word, from the lowest; 1 for the highest, whose codes are shifted down.
const fn factors(bits: u32) -> [f32; CHANNELS] {
    let mut factors = [1.0; CHANNELS];
    let of_word = 32 / bits as usize;
    let mut channel = 0;
    while channel < CHANNELS {
        let at = channel % of_word;
        if at + 1 < of_word {
            factors[channel] = f32::from_bits((127 - at as u32 * bits) << 23);
        }
        channel += 1;
    }
    factors
}

/// Cache lines of two slices to ask for, a few at a time: in bursts they would fill the buffers that the loop's own reads need.
struct Lines {
    next: [*const u8; 2],
    end: [*const u8; 2],
}

/// Bytes of a line.
const LINE: usize = 64;

impl Lines {
    fn new(slices: [&[u32]; 2]) -> Self {
        Self {
            next: slices.map(|slice| slice.as_ptr().cast()),
            end: slices.map(|slice| slice.as_ptr_range().end.cast()),
        }
    }

    /// To be called for every word of two vectors of tokens, the `step`th: a page has 1 to 1.5 lines for 16 tokens of a word.
    #[inline(always)]
    fn ask<S: Simd>(&mut self, step: usize) {
        let lines = S::LANES.div_ceil(8) + step % 2;
        for (next, end) in self.next.iter_mut().zip(self.end) {
            for _ in 0..lines {
                if *next < end {
                    // SAFETY: an address need not be of anything.
                    unsafe { S::prefetch(*next) };
                    *next = next.wrapping_add(LINE);
                }
            }
        }
    }
}

/// The halves of 32 words, each an f16.
#[inline(always)]
unsafe fn unpack_halves<S: Simd>(words: &[u32; PAGE], low: &mut [f32; PAGE], high: &mut [f32; PAGE]) {
    const { assert!(PAGE.is_multiple_of(16)) };
    for at in (0..PAGE).step_by(S::LANES) {
        // SAFETY: whole vectors of all three.
        unsafe {
            let (a, b) = S::halves(words.as_ptr().add(at));
            S::store(low.as_mut_ptr().add(at), a);
            S::store(high.as_mut_ptr().add(at), b);
        }
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn key_codes<S: Simd>(
    layout: PageCodes,
    pages: &[&[u32]],
    ahead: Ahead<'_>,
    q: &[f32],
    ldq: usize,
    rows: usize,
    scaled: &mut Vec<f32>,
    scores: &mut [f32],
    ld: usize,
) {
    let PageCodes { bits, rank, params, codes } = layout;
    let tokens = pages.len() * PAGE;
    assert!(matches!(bits, 2 | 4 | 8) && rank < ldq && PAGE.is_multiple_of(2 * S::LANES));
    let end = (params + rank).max(codes + layout.words() * PAGE);
    assert!(pages.iter().all(|page| page.len() >= end));
    assert!(q.len() >= rows * ldq && ld >= tokens && scores.len() + ld >= rows * ld + tokens);
    scaled.resize((CODE_ROWS * rank.next_multiple_of(CHANNELS)).max(scaled.len()), 0.0);
    for first in (0..rows).step_by(CODE_ROWS) {
        let (q, scores) = (&q[first * ldq..], &mut scores[first * ld..]);
        // The first rows ask for all rows.
        let ahead = if first == 0 { ahead } else { Ahead { pages: &[], values: (0, 0) } };
        // SAFETY: what each pointer needs was asserted.
        unsafe {
            by_bits_and_rows!(
                keys_of,
                S,
                bits,
                rows - first,
                (layout, pages, ahead, q, ldq, scaled.as_mut_slice(), scores, ld)
            );
        }
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn keys_of<S: Simd, const BITS: u32, const R: usize>(
    layout: PageCodes,
    pages: &[&[u32]],
    ahead: Ahead<'_>,
    q: &[f32],
    ldq: usize,
    scaled: &mut [f32],
    scores: &mut [f32],
    ld: usize,
) {
    let rank = layout.rank;
    let of_word = 32 / BITS as usize;
    let words_of_token = rank.div_ceil(of_word);
    let factors = const { factors(BITS) };
    let padded = rank.next_multiple_of(CHANNELS);
    let whole = rank / S::LANES * S::LANES;
    let low = (1u32 << BITS) - 1;
    let (from, end) = (layout.params, layout.codes + words_of_token * PAGE);
    for (number, page) in pages.iter().enumerate() {
        let keys = ahead.pages.get(number).and_then(|page| page.get(from..end)).unwrap_or_default();
        let mut lines = Lines::new([keys, page.get(ahead.values.0..ahead.values.1).unwrap_or_default()]);
        let scores = &mut scores[number * PAGE..];
        unsafe {
            let (params, codes) = (page.as_ptr().add(layout.params), page.as_ptr().add(layout.codes));
            let mut offsets = [S::splat(0.0); R];
            for c in (0..whole).step_by(S::LANES) {
                let q: [*const f32; R] = std::array::from_fn(|r| q.as_ptr().add(r * ldq + c));
                coefficients::<S, R>(c, params.add(c), q, factors.as_ptr(), scaled.as_mut_ptr(), padded, &mut offsets);
            }
            for c in (whole..padded).step_by(S::LANES) {
                // Behind the rank: zeros.
                let (mut words, mut rest, there) = ([0u32; 16], [[0.0f32; 16]; R], rank.saturating_sub(c));
                words[..there].copy_from_slice(&page[layout.params + c.min(rank)..][..there]);
                for r in 0..R {
                    rest[r][..there].copy_from_slice(&q[r * ldq + c.min(rank)..][..there]);
                }
                let q: [*const f32; R] = std::array::from_fn(|r| rest[r].as_ptr());
                coefficients::<S, R>(c, words.as_ptr(), q, factors.as_ptr(), scaled.as_mut_ptr(), padded, &mut offsets);
            }
            let offsets: [f32; R] = std::array::from_fn(|r| S::sum(offsets[r]) + q[r * ldq + rank]);
            for first in (0..PAGE).step_by(2 * S::LANES) {
                let mut sums: [[S::V; 2]; R] = std::array::from_fn(|r| [S::splat(offsets[r]); 2]);
                for word in 0..words_of_token {
                    lines.ask::<S>(word);
                    let at = codes.add(word * PAGE + first);
                    let coefficients = scaled.as_ptr().add(word * of_word);
                    for i in 0..of_word {
                        let (shift, highest) = (i as u32 * BITS, i + 1 == of_word);
                        let code = |at: *const u32| match highest {
                            true => S::shifted(at, shift),
                            false => S::masked(at, low << shift),
                        };
                        let z = [code(at), code(at.add(S::LANES))];
                        for r in 0..R {
                            let coefficient = S::splat(*coefficients.add(r * padded + i));
                            sums[r] = [S::fma(z[0], coefficient, sums[r][0]), S::fma(z[1], coefficient, sums[r][1])];
                        }
                    }
                }
                for r in 0..R {
                    S::store(scores.as_mut_ptr().add(r * ld + first), sums[r][0]);
                    S::store(scores.as_mut_ptr().add(r * ld + first + S::LANES), sums[r][1]);
                }
            }
        }
    }
}

/// Coefficients of the codes of channels from `c` on, and what their minima add to the score.
#[inline(always)]
unsafe fn coefficients<S: Simd, const R: usize>(
    c: usize,
    params: *const u32,
    q: [*const f32; R],
    factors: *const f32,
    scaled: *mut f32,
    padded: usize,
    offsets: &mut [S::V; R],
) {
    unsafe {
        let (minimum, scale) = S::halves(params);
        let scale = S::mul(scale, S::load(factors.add(c % CHANNELS)));
        for r in 0..R {
            let q = S::load(q[r]);
            offsets[r] = S::fma(q, minimum, offsets[r]);
            S::store(scaled.add(r * padded + c), S::mul(q, scale));
        }
    }
}

impl CodeSums {
    /// Of no tokens yet.
    pub(crate) fn clear(&mut self, isa: Isa, rank: usize, rows: usize) {
        let rows = rows.next_multiple_of(CODE_ROWS);
        self.parts.clear();
        self.parts.resize(rank * rows * isa.lanes(), 0.0);
        self.minima.clear();
        self.minima.resize(rank.div_ceil(GROUP) * rows, 0.0);
    }
}

/// The sums as [rank, ld] of rows.
#[inline(always)]
unsafe fn finish_codes<S: Simd>(sums: &CodeSums, rank: usize, rows: usize, to: &mut [f32], ld: usize) {
    let passes = rows.next_multiple_of(CODE_ROWS);
    assert!(sums.parts.len() >= rank * passes * S::LANES && to.len() >= rank * ld && ld >= rows);
    for channel in 0..rank {
        for row in 0..rows {
            // SAFETY: a vector of the parts, as was asserted.
            let sum = unsafe { S::sum(S::load(sums.parts.as_ptr().add((channel * passes + row) * S::LANES))) };
            to[channel * ld + row] = sum + sums.minima[channel / GROUP * passes + row];
        }
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn value_codes<S: Simd>(
    layout: PageCodes,
    pages: &[&[u32]],
    weights: &[f32],
    ld: usize,
    rows: usize,
    fade: &[f32],
    scaled: &mut Vec<f32>,
    sums: &mut CodeSums,
) {
    let PageCodes { bits, rank, params, codes } = layout;
    let (tokens, passes) = (pages.len() * PAGE, rows.next_multiple_of(CODE_ROWS));
    assert!(matches!(bits, 2 | 4 | 8) && PAGE.is_multiple_of(S::LANES));
    let ends = [params + rank.div_ceil(GROUP) * PAGE, codes + rank.div_ceil(32 / bits as usize) * PAGE];
    assert!(pages.iter().all(|page| ends.iter().all(|end| page.len() >= *end)));
    assert!(ld >= tokens && weights.len() + ld >= rows * ld + tokens && fade.len() >= rows);
    assert!(sums.parts.len() >= rank * passes * S::LANES && sums.minima.len() >= rank.div_ceil(GROUP) * passes);
    // Weights times scales, and behind them the words of a group.
    scaled.resize(((CODE_ROWS + bits as usize) * tokens).max(scaled.len()), 0.0);
    for first in (0..rows).step_by(CODE_ROWS) {
        let weights = &weights[first * ld..];
        // SAFETY: what each pointer needs was asserted.
        unsafe {
            by_bits_and_rows!(
                values_of,
                S,
                bits,
                rows - first,
                (layout, pages, weights, ld, &fade[first..], scaled.as_mut_slice(), sums, passes, first)
            );
        }
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn values_of<S: Simd, const BITS: u32, const R: usize>(
    layout: PageCodes,
    pages: &[&[u32]],
    weights: &[f32],
    ld: usize,
    fade: &[f32],
    scaled: &mut [f32],
    sums: &mut CodeSums,
    passes: usize,
    first: usize,
) {
    let of_word = 32 / BITS as usize;
    let factors = const { factors(BITS) };
    let tokens = pages.len() * PAGE;
    unsafe {
        for group in 0..layout.rank.div_ceil(GROUP) {
            let mut minima = [S::splat(0.0); R];
            for (number, page) in pages.iter().enumerate() {
                for t in (0..PAGE).step_by(S::LANES) {
                    let (minimum, scale) = S::halves(page.as_ptr().add(layout.params + group * PAGE + t));
                    for r in 0..R {
                        let at = number * PAGE + t;
                        let weight = S::load(weights.as_ptr().add(r * ld + at));
                        minima[r] = S::fma(weight, minimum, minima[r]);
                        S::store(scaled.as_mut_ptr().add(r * tokens + at), S::mul(weight, scale));
                    }
                }
            }
            for r in 0..R {
                let sum = &mut sums.minima[group * passes + first + r];
                *sum = *sum * fade[r] + S::sum(minima[r]);
            }
            let channels = (group * GROUP)..layout.rank.min((group + 1) * GROUP);
            // Side by side: pages of as many bytes as a cache has sets would drive each other out of it.
            let words = scaled.as_mut_ptr().add(CODE_ROWS * tokens).cast::<u32>();
            for word in 0..channels.len().div_ceil(of_word) {
                for (number, page) in pages.iter().enumerate() {
                    let from = page.as_ptr().add(layout.codes + (channels.start / of_word + word) * PAGE);
                    std::ptr::copy_nonoverlapping(from, words.add(word * tokens + number * PAGE), PAGE);
                }
            }
            for channel in channels.clone().step_by(2) {
                let (word, i) = ((channel - channels.start) / of_word, channel % of_word);
                let (words, weights) = (words.add(word * tokens).cast_const(), scaled.as_ptr());
                let products = match i + 2 == of_word {
                    true => pair::<S, BITS, R, true>(words, tokens, i, weights),
                    false => pair::<S, BITS, R, false>(words, tokens, i, weights),
                };
                for (k, products) in products.iter().enumerate().take(layout.rank - channel) {
                    let factor = S::splat(factors[i + k]);
                    for r in 0..R {
                        let part = sums.parts.as_mut_ptr().add(((channel + k) * passes + first + r) * S::LANES);
                        S::store(part, S::fma(products[r], factor, S::mul(S::load(part), S::splat(fade[r]))));
                    }
                }
            }
        }
    }
}

/// Channels i and i + 1 of a word of each token, times rows of weights.
#[inline(always)]
unsafe fn pair<S: Simd, const BITS: u32, const R: usize, const HIGHEST: bool>(
    words: *const u32,
    tokens: usize,
    i: usize,
    weights: *const f32,
) -> [[S::V; R]; 2] {
    let (shift, low) = (i as u32 * BITS, (1u32 << BITS) - 1);
    unsafe {
        let mut sums = [[S::splat(0.0); R]; 2];
        for t in (0..tokens).step_by(S::LANES) {
            let words = words.add(t);
            let second = match HIGHEST {
                true => S::shifted(words, 32 - BITS),
                false => S::masked(words, low << (shift + BITS)),
            };
            let z = [S::masked(words, low << shift), second];
            for r in 0..R {
                let weight = S::load(weights.add(r * tokens + t));
                sums[0][r] = S::fma(z[0], weight, sums[0][r]);
                sums[1][r] = S::fma(z[1], weight, sums[1][r]);
            }
        }
        sums
    }
}
