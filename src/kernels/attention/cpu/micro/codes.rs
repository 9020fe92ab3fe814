//! Few rows times latents of 2, 4 and 8 bits where they lie: [`Isa::key_codes`] and [`Isa::value_codes`].
//!
//! A word has codes of several channels of one token, so a vector of words is one of tokens. A channel's codes are masked where they stand and taken as
//! numbers, 2^shift too large, which the coefficient makes up for (exactly: it is a power of two): for R rows 2 instructions and R fused
//! multiply-adds a channel and vector of tokens, where unpacking to memory first takes 5 more.
//!
//! Measured on AVX2 (no AVX-512) at 32768 tokens, 32/8 heads, rank 64, 4 bits: 8 GFLOP/s by way of unpacked latents; see benches/RESULTS.md for what
//! came of it.

use super::*;
use crate::kv::latents::{GROUP, PAGE};

/// Rows of a pass: with two vectors of each, as many sums as 16 registers hold beside what they are made of.
pub(crate) const CODE_ROWS: usize = 4;
/// Channels are padded to whole words of 2 bits.
const CHANNELS: usize = 16;

/// Of a page's part that is one projection's values: where minima and scales are, and where codes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ValueCodes {
    pub(crate) bits: u32,
    pub(crate) rank: usize,
    pub(crate) params: usize,
    pub(crate) codes: usize,
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
    /// Scores (rows, ld) of the 32 tokens of a page of `rank` channels: q . z + q[rank] with z = minimum + scale * code; `q` is (rows, ldq), `params`
    /// has a channel's minimum and scale as two f16. `scaled` is scratch; memory of `ahead` is asked for on the way.
    fn key_codes(
        bits: u32, params: &[u32], codes: &[u32], rank: usize, q: &[f32], ldq: usize, rows: usize, scaled: &mut Vec<f32>,
        scores: &mut [f32], ld: usize, ahead: [&[u32]; 2],
    );
    /// Adds weights (rows, ld) times the latents of pages to `sums`.
    fn value_codes(
        layout: ValueCodes, pages: &[&[u32]], weights: &[f32], ld: usize, rows: usize, scaled: &mut Vec<f32>, sums: &mut CodeSums,
    );
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

/// Cache lines to ask for, a few at a time: in bursts they would fill the buffers that the loop's own reads need.
struct Lines<'a> {
    slices: [&'a [u32]; 2],
    next: usize,
    at_once: usize,
}

/// Words of a line.
const LINE: usize = 16;

impl<'a> Lines<'a> {
    /// To be asked for in `times` portions.
    fn new(slices: [&'a [u32]; 2], times: usize) -> Self {
        let lines: usize = slices.iter().map(|slice| slice.len().div_ceil(LINE)).sum();
        Self { slices, next: 0, at_once: lines.div_ceil(times.max(1)) }
    }

    #[inline(always)]
    fn ask<S: Simd>(&mut self) {
        for _ in 0..self.at_once {
            let first = self.slices[0].len().div_ceil(LINE);
            let (slice, line) =
                if self.next < first { (self.slices[0], self.next) } else { (self.slices[1], self.next - first) };
            // SAFETY: an address need not be of anything.
            unsafe { S::prefetch(slice.as_ptr().wrapping_add(line * LINE).cast()) };
            self.next += 1;
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
    bits: u32,
    params: &[u32],
    codes: &[u32],
    rank: usize,
    q: &[f32],
    ldq: usize,
    rows: usize,
    scaled: &mut Vec<f32>,
    scores: &mut [f32],
    ld: usize,
    ahead: [&[u32]; 2],
) {
    assert!(matches!(bits, 2 | 4 | 8) && params.len() >= rank && rank < ldq && PAGE.is_multiple_of(2 * S::LANES));
    assert!(codes.len() >= rank.div_ceil(32 / bits as usize) * PAGE);
    assert!(q.len() >= rows * ldq && ld >= PAGE && scores.len() + ld >= rows * ld + PAGE);
    scaled.resize(CODE_ROWS * rank.next_multiple_of(CHANNELS), 0.0);
    let passes = rows.div_ceil(CODE_ROWS) * PAGE / (2 * S::LANES) * rank.div_ceil(32 / bits as usize);
    let mut lines = Lines::new(ahead, passes);
    for first in (0..rows).step_by(CODE_ROWS) {
        let (q, scores) = (&q[first * ldq..], &mut scores[first * ld..]);
        // SAFETY: what each pointer needs was asserted.
        unsafe {
            by_bits_and_rows!(
                keys_of,
                S,
                bits,
                rows - first,
                (params, codes, rank, q, ldq, scaled.as_mut_slice(), scores, ld, &mut lines)
            );
        }
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn keys_of<S: Simd, const BITS: u32, const R: usize>(
    params: &[u32],
    codes: &[u32],
    rank: usize,
    q: &[f32],
    ldq: usize,
    scaled: &mut [f32],
    scores: &mut [f32],
    ld: usize,
    lines: &mut Lines<'_>,
) {
    let of_word = 32 / BITS as usize;
    let factors = const { factors(BITS) };
    let padded = rank.next_multiple_of(CHANNELS);
    unsafe {
        let mut offsets = [S::splat(0.0); R];
        for c in (0..padded).step_by(S::LANES) {
            // Behind the rank: zeros.
            let (mut words, mut rest) = ([0u32; 16], [[0.0f32; 16]; R]);
            let there = rank.saturating_sub(c).min(S::LANES);
            let whole = there == S::LANES;
            if !whole {
                words[..there].copy_from_slice(&params[c.min(rank)..][..there]);
                for r in 0..R {
                    rest[r][..there].copy_from_slice(&q[r * ldq + c.min(rank)..][..there]);
                }
            }
            let (minimum, scale) = S::halves(if whole { params.as_ptr().add(c) } else { words.as_ptr() });
            let scale = S::mul(scale, S::load(factors.as_ptr().add(c % CHANNELS)));
            for r in 0..R {
                let q = S::load(if whole { q.as_ptr().add(r * ldq + c) } else { rest[r].as_ptr() });
                offsets[r] = S::fma(q, minimum, offsets[r]);
                S::store(scaled.as_mut_ptr().add(r * padded + c), S::mul(q, scale));
            }
        }
        let offsets: [f32; R] = std::array::from_fn(|r| S::sum(offsets[r]) + q[r * ldq + rank]);
        let low = (1u32 << BITS) - 1;
        for first in (0..PAGE).step_by(2 * S::LANES) {
            let mut sums: [[S::V; 2]; R] = std::array::from_fn(|r| [S::splat(offsets[r]); 2]);
            for word in 0..rank.div_ceil(of_word) {
                lines.ask::<S>();
                let at = codes.as_ptr().add(word * PAGE + first);
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

impl CodeSums {
    /// Of no tokens yet.
    pub(crate) fn new(isa: Isa, rank: usize, rows: usize) -> Self {
        let rows = rows.next_multiple_of(CODE_ROWS);
        Self { parts: vec![0.0; rank * rows * isa.lanes()], minima: vec![0.0; rank.div_ceil(GROUP) * rows] }
    }

    /// Scales what was added before, each row by its own.
    pub(crate) fn fade(&mut self, isa: Isa, by: &[f32]) {
        let rows = by.len().next_multiple_of(CODE_ROWS);
        let of_row = |at: usize| by.get(at % rows).copied().unwrap_or(0.0);
        for (at, part) in self.parts.chunks_exact_mut(isa.lanes()).enumerate() {
            part.iter_mut().for_each(|sum| *sum *= of_row(at));
        }
        self.minima.iter_mut().enumerate().for_each(|(at, sum)| *sum *= of_row(at));
    }

    /// The sums as [rank, ld] of rows.
    pub(crate) fn finish(&self, isa: Isa, rank: usize, rows: usize, to: &mut [f32], ld: usize) {
        let (passes, lanes) = (rows.next_multiple_of(CODE_ROWS), isa.lanes());
        for channel in 0..rank {
            for row in 0..rows {
                let sum: f32 = self.parts[(channel * passes + row) * lanes..][..lanes].iter().sum();
                to[channel * ld + row] = sum + self.minima[channel / GROUP * passes + row];
            }
        }
    }
}

#[inline(always)]
unsafe fn value_codes<S: Simd>(
    layout: ValueCodes,
    pages: &[&[u32]],
    weights: &[f32],
    ld: usize,
    rows: usize,
    scaled: &mut Vec<f32>,
    sums: &mut CodeSums,
) {
    let ValueCodes { bits, rank, params, codes } = layout;
    let (tokens, passes) = (pages.len() * PAGE, rows.next_multiple_of(CODE_ROWS));
    assert!(matches!(bits, 2 | 4 | 8) && PAGE.is_multiple_of(S::LANES));
    let ends = [params + rank.div_ceil(GROUP) * PAGE, codes + rank.div_ceil(32 / bits as usize) * PAGE];
    assert!(pages.iter().all(|page| ends.iter().all(|end| page.len() >= *end)));
    assert!(ld >= tokens && weights.len() + ld >= rows * ld + tokens);
    assert!(sums.parts.len() >= rank * passes * S::LANES && sums.minima.len() >= rank.div_ceil(GROUP) * passes);
    scaled.resize((CODE_ROWS * tokens).max(scaled.len()), 0.0);
    for first in (0..rows).step_by(CODE_ROWS) {
        let weights = &weights[first * ld..];
        // SAFETY: what each pointer needs was asserted.
        unsafe {
            by_bits_and_rows!(
                values_of,
                S,
                bits,
                rows - first,
                (layout, pages, weights, ld, scaled.as_mut_slice(), sums, passes, first)
            );
        }
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn values_of<S: Simd, const BITS: u32, const R: usize>(
    layout: ValueCodes,
    pages: &[&[u32]],
    weights: &[f32],
    ld: usize,
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
                sums.minima[group * passes + first + r] += S::sum(minima[r]);
            }
            let channels = (group * GROUP)..layout.rank.min((group + 1) * GROUP);
            for channel in channels.step_by(2) {
                let (word, i) = (channel / of_word, channel % of_word);
                let at = layout.codes + word * PAGE;
                let products = match i + 2 == of_word {
                    true => pair::<S, BITS, R, true>(pages, at, i, scaled),
                    false => pair::<S, BITS, R, false>(pages, at, i, scaled),
                };
                for (k, products) in products.iter().enumerate().take(layout.rank - channel) {
                    let factor = S::splat(factors[i + k]);
                    for r in 0..R {
                        let part = sums.parts.as_mut_ptr().add(((channel + k) * passes + first + r) * S::LANES);
                        S::store(part, S::fma(products[r], factor, S::load(part)));
                    }
                }
            }
        }
    }
}

/// Channels i and i + 1 of words that begin at `at` of each page, times rows of weights.
#[inline(always)]
unsafe fn pair<S: Simd, const BITS: u32, const R: usize, const HIGHEST: bool>(
    pages: &[&[u32]],
    at: usize,
    i: usize,
    weights: &[f32],
) -> [[S::V; R]; 2] {
    let tokens = pages.len() * PAGE;
    let (shift, low) = (i as u32 * BITS, (1u32 << BITS) - 1);
    unsafe {
        let mut sums = [[S::splat(0.0); R]; 2];
        for (number, page) in pages.iter().enumerate() {
            for t in (0..PAGE).step_by(S::LANES) {
                let words = page.as_ptr().add(at + t);
                let second = match HIGHEST {
                    true => S::shifted(words, 32 - BITS),
                    false => S::masked(words, low << (shift + BITS)),
                };
                let z = [S::masked(words, low << shift), second];
                for r in 0..R {
                    let weight = S::load(weights.as_ptr().add(r * tokens + number * PAGE + t));
                    sums[0][r] = S::fma(z[0], weight, sums[0][r]);
                    sums[1][r] = S::fma(z[1], weight, sums[1][r]);
                }
            }
        }
        sums
    }
}
