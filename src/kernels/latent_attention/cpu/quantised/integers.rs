//! Few rows over latents of 2, 4 and 8 bits where the processor multiplies bytes (AVX-512 VNNI and VBMI): codes stay bytes, and what they are multiplied
//! with, scale times query or weight, becomes three signed digits of 8 bits. Their products are exact, so a sum is as good as in f32: coefficients
//! are rounded to 2^-24 of the largest.
//!
//! For 4 channels of 16 tokens one row takes 3 instructions in place of 4 fused multiply-adds, and unpacking 8 channels takes 3 in place of 15.
//!
//! # Safety
//! Every function here needs the instructions that [`available`] asks for, and asserts that its slices hold what its pointers touch.
#![allow(unsafe_code)]
// Rows, digits and vectors index registers.
#![allow(clippy::needless_range_loop)]

use std::arch::x86_64::*;

use crate::kv::latents::{GROUP, PAGE, SetLayout};

/// The largest coefficient as an integer: below 127 in each of three digits (8355711), which rounding the product must not exceed.
const LARGEST: f32 = 8_355_000.0;
/// Rows of a pass.
const ROWS: usize = 4;
/// What makes digits signed: added with carries, then taken off each byte.
const BIAS: i32 = 0x0080_8080;
/// Tokens of a vector.
const LANES: usize = 16;

/// Whether this processor has it.
pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vbmi")
        && is_x86_feature_detected!("avx512vnni")
        && is_x86_feature_detected!("fma")
}

/// What a thread holds.
#[derive(Default)]
pub(super) struct Scratch {
    /// Digits of the coefficients of keys: for each row and 16 channels, 4 steps of 3 words.
    keys: Vec<[u32; 16]>,
    /// Scaled queries of a page, [rows, channels].
    scaled: Vec<f32>,
    /// Digits of weights of one group: for each vector of tokens and row 3 vectors.
    weights: Vec<[u32; 16]>,
}

/// Sums over values: what [`Sums::add`] adds, and [`Sums::finish`] brings in order.
#[derive(Default)]
pub(in super::super) struct Sums {
    /// [word, part of it, rows, 16]: of four channels and four quarters of the tokens.
    parts: Vec<[f32; 16]>,
    /// [group, rows]: of weight times minimum.
    minima: Vec<f32>,
}

macro_rules! by_bits_and_rows {
    ($function:ident, $bits:expr, $rows:expr, $($argument:expr),*) => {
        match ($bits, $rows) {
            (2, 1) => $function::<2, 1>($($argument),*),
            (2, 2) => $function::<2, 2>($($argument),*),
            (2, 3) => $function::<2, 3>($($argument),*),
            (2, _) => $function::<2, 4>($($argument),*),
            (4, 1) => $function::<4, 1>($($argument),*),
            (4, 2) => $function::<4, 2>($($argument),*),
            (4, 3) => $function::<4, 3>($($argument),*),
            (4, _) => $function::<4, 4>($($argument),*),
            (_, 1) => $function::<8, 1>($($argument),*),
            (_, 2) => $function::<8, 2>($($argument),*),
            (_, 3) => $function::<8, 3>($($argument),*),
            _ => $function::<8, 4>($($argument),*),
        }
    };
}

/// Scores of a page: `q` is [rows, ldq], D q and behind it q . mean; `scores` [rows, ld], of which the first 32 of each row are written.
#[allow(clippy::too_many_arguments)]
pub(super) fn scores(
    set: &SetLayout,
    page: &[u32],
    q: &[f32],
    ldq: usize,
    rows: usize,
    scores: &mut [f32],
    ld: usize,
    scratch: &mut Scratch,
) {
    assert!(available() && set.bits.quantised() && page.len() >= set.end && set.rank < ldq);
    assert!(q.len() >= rows * ldq && ld >= PAGE && scores.len() + ld >= rows * ld + PAGE);
    let blocks = set.rank.div_ceil(LANES);
    scratch.keys.resize(ROWS * blocks, [0; 16]);
    scratch.scaled.resize(ROWS * blocks * LANES, 0.0);
    for first in (0..rows).step_by(ROWS) {
        let count = ROWS.min(rows - first);
        let (q, scores) = (&q[first * ldq..], &mut scores[first * ld..]);
        // SAFETY: the processor has it; what each pointer needs was asserted.
        unsafe { by_bits_and_rows!(scores_of, set.bits.count(), count, set, page, q, ldq, scores, ld, scratch) };
    }
}

/// For 16 channels as 32-bit numbers of three digits: step j, digit i as word 3 j + i, whose byte b is that of the channel that byte b of the codes is of.
const fn key_bytes<const BITS: u32>() -> [u8; 64] {
    let mut bytes = [0; 64];
    let mut at = 0;
    while at < 48 {
        let (step, digit, byte) = (at / 12, at / 4 % 3, at % 4);
        bytes[at] = (4 * channel::<BITS>(step, byte) + digit) as u8;
        at += 1;
    }
    bytes
}

/// The channel of 16 that byte `byte` of step `step` is of: a step is the codes of four channels of a word, as many bits apart as a byte has.
const fn channel<const BITS: u32>(step: usize, byte: usize) -> usize {
    let steps = 8 / BITS as usize;
    step / steps * 4 * steps + step % steps + steps * byte
}

#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vnni,avx2,fma,f16c")]
unsafe fn scores_of<const BITS: u32, const R: usize>(
    set: &SetLayout,
    page: &[u32],
    q: &[f32],
    ldq: usize,
    scores: &mut [f32],
    ld: usize,
    scratch: &mut Scratch,
) {
    let rank = set.rank;
    let blocks = rank.div_ceil(LANES);
    unsafe {
        let mut largest = [_mm512_setzero_ps(); R];
        let mut offsets = [_mm512_setzero_ps(); R];
        let scaled = scratch.scaled.as_mut_ptr();
        for block in 0..blocks {
            let there = mask(rank - block * LANES);
            let params = _mm512_maskz_loadu_epi32(there, page.as_ptr().add(set.params + block * LANES).cast());
            let minimum = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(params));
            let scale = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(params)));
            for r in 0..R {
                let q = _mm512_maskz_loadu_ps(there, q.as_ptr().add(r * ldq + block * LANES));
                let coefficient = _mm512_mul_ps(q, scale);
                offsets[r] = _mm512_fmadd_ps(q, minimum, offsets[r]);
                largest[r] = _mm512_max_ps(largest[r], _mm512_abs_ps(coefficient));
                _mm512_storeu_ps(scaled.add((r * blocks + block) * LANES), coefficient);
            }
        }
        let bytes = const { key_bytes::<BITS>() };
        let bytes = _mm512_loadu_si512(bytes.as_ptr().cast());
        let bias = _mm512_set1_epi32(BIAS);
        let mut units = [0.0; R];
        for r in 0..R {
            let largest = _mm512_reduce_max_ps(largest[r]).max(1e-30);
            units[r] = largest / LARGEST;
            let by = _mm512_set1_ps(LARGEST / largest);
            for block in 0..blocks {
                let number = _mm512_mul_ps(_mm512_loadu_ps(scaled.add((r * blocks + block) * LANES)), by);
                let number = _mm512_xor_si512(_mm512_add_epi32(_mm512_cvtps_epi32(number), bias), bias);
                let digits = _mm512_permutexvar_epi8(bytes, number);
                _mm512_storeu_si512(scratch.keys[r * blocks + block].as_mut_ptr().cast(), digits);
            }
        }
        let steps = 8 / BITS as usize;
        let low = _mm512_set1_epi32((0x0101_0101u32 * ((1u32 << BITS) - 1)) as i32);
        let words = rank.div_ceil(4 * steps);
        let mut sums = [[[_mm512_setzero_si512(); 2]; 3]; R];
        for word in 0..words {
            let at = page.as_ptr().add(set.codes + word * PAGE);
            let codes = [_mm512_loadu_si512(at.cast()), _mm512_loadu_si512(at.add(LANES).cast())];
            // A block of 16 channels has 4 steps.
            let (block, first) = (word * steps / 4, word * steps % 4);
            for step in 0..steps {
                let shift = _mm_cvtsi32_si128(step as i32 * BITS as i32);
                let codes = [
                    _mm512_and_si512(_mm512_srl_epi32(codes[0], shift), low),
                    _mm512_and_si512(_mm512_srl_epi32(codes[1], shift), low),
                ];
                for r in 0..R {
                    let digits = scratch.keys.as_ptr().add(r * blocks + block).cast::<i32>().add(3 * (first + step));
                    for i in 0..3 {
                        let digit = _mm512_set1_epi32(*digits.add(i));
                        for half in 0..2 {
                            sums[r][i][half] = _mm512_dpbusd_epi32(sums[r][i][half], codes[half], digit);
                        }
                    }
                }
            }
        }
        for r in 0..R {
            let offset = _mm512_set1_ps(_mm512_reduce_add_ps(offsets[r]) + q[r * ldq + rank]);
            for half in 0..2 {
                let sums = [sums[r][0][half], sums[r][1][half], sums[r][2][half]];
                let score = _mm512_fmadd_ps(whole(sums), _mm512_set1_ps(units[r]), offset);
                _mm512_storeu_ps(scores.as_mut_ptr().add(r * ld + half * LANES), score);
            }
        }
    }
}

fn mask(count: usize) -> u16 {
    if count >= LANES { u16::MAX } else { (1 << count) - 1 }
}

/// Three sums over digits as one.
#[inline]
#[target_feature(enable = "avx512f")]
fn whole(sums: [__m512i; 3]) -> __m512 {
    let high = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[2]), _mm512_set1_ps(256.0), _mm512_cvtepi32_ps(sums[1]));
    _mm512_fmadd_ps(high, _mm512_set1_ps(256.0), _mm512_cvtepi32_ps(sums[0]))
}

impl Sums {
    pub(super) fn new(set: &SetLayout, rows: usize) -> Self {
        let passes = rows.div_ceil(ROWS) * ROWS;
        let parts = vec![[0.0; 16]; set.rank.div_ceil(LANES) * 4 * passes];
        Self { parts, minima: vec![0.0; set.rank.div_ceil(GROUP) * passes] }
    }

    /// Scales what was added before, each row by its own.
    pub(super) fn fade(&mut self, by: &[f32]) {
        let passes = by.len().div_ceil(ROWS) * ROWS;
        for (at, part) in self.parts.iter_mut().enumerate() {
            let by = by.get(at % passes).copied().unwrap_or(0.0);
            part.iter_mut().for_each(|sum| *sum *= by);
        }
        for (at, sum) in self.minima.iter_mut().enumerate() {
            *sum *= by.get(at % passes).copied().unwrap_or(0.0);
        }
    }

    /// Adds weights [rows, ld] (not negative) times the latents of pages.
    pub(super) fn add(
        &mut self,
        set: &SetLayout,
        pages: &[&[u32]],
        weights: &[f32],
        ld: usize,
        rows: usize,
        scratch: &mut Scratch,
    ) {
        assert!(available() && set.bits.quantised() && pages.iter().all(|page| page.len() >= set.end));
        assert!(ld >= pages.len() * PAGE && weights.len() + ld >= rows * ld + pages.len() * PAGE);
        let passes = rows.div_ceil(ROWS) * ROWS;
        assert!(self.parts.len() >= set.rank.div_ceil(LANES) * 4 * passes);
        scratch.weights.resize(pages.len() * 2 * ROWS * 3, [0; 16]);
        for first in (0..rows).step_by(ROWS) {
            let count = ROWS.min(rows - first);
            let weights = &weights[first * ld..];
            // SAFETY: the processor has it; what each pointer needs was asserted.
            unsafe {
                by_bits_and_rows!(
                    add_of,
                    set.bits.count(),
                    count,
                    self,
                    set,
                    pages,
                    weights,
                    ld,
                    passes,
                    first,
                    scratch
                )
            };
        }
    }

    /// The sums as [rank, ld] of rows.
    pub(super) fn finish(&self, set: &SetLayout, rows: usize, to: &mut [f32], ld: usize) {
        let passes = rows.div_ceil(ROWS) * ROWS;
        let steps = 8 / set.bits.count() as usize;
        for channel in 0..set.rank {
            let (word, of_word) = (channel / (4 * steps), channel % (4 * steps));
            let (step, byte) = (of_word % steps, of_word / steps);
            for row in 0..rows {
                let part = &self.parts[(word * steps + step) * passes + row];
                let sum = (part[byte] + part[4 + byte]) + (part[8 + byte] + part[12 + byte]);
                to[channel * ld + row] = sum + self.minima[channel / GROUP * passes + row];
            }
        }
    }
}

/// For 16 tokens as 32-bit numbers of three digits: of each quarter four times the bytes of its four tokens.
const fn weight_bytes(digit: usize) -> [u8; 64] {
    let mut bytes = [0; 64];
    let mut at = 0;
    while at < 64 {
        bytes[at] = (4 * (at / 16 * 4 + at % 4) + digit) as u8;
        at += 1;
    }
    bytes
}

/// Four numbers of four bytes, transposed, in each quarter.
const fn transposed() -> [u8; 64] {
    let mut bytes = [0; 64];
    let mut at = 0;
    while at < 64 {
        bytes[at] = (at % 4 * 4 + at % 16 / 4) as u8;
        at += 1;
    }
    bytes
}

#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vnni,avx2,fma,f16c")]
#[allow(clippy::too_many_arguments)]
unsafe fn add_of<const BITS: u32, const R: usize>(
    sums: &mut Sums,
    set: &SetLayout,
    pages: &[&[u32]],
    weights: &[f32],
    ld: usize,
    passes: usize,
    first: usize,
    scratch: &mut Scratch,
) {
    let steps = 8 / BITS as usize;
    // Steps at once, whose sums stay in registers.
    let at_once = steps.min(2);
    let words = set.rank.div_ceil(4 * steps);
    unsafe {
        let bytes = const { [weight_bytes(0), weight_bytes(1), weight_bytes(2)] };
        let bytes = [
            _mm512_loadu_si512(bytes[0].as_ptr().cast()),
            _mm512_loadu_si512(bytes[1].as_ptr().cast()),
            _mm512_loadu_si512(bytes[2].as_ptr().cast()),
        ];
        let turn = const { transposed() };
        let turn = _mm512_loadu_si512(turn.as_ptr().cast());
        let bias = _mm512_set1_epi32(BIAS);
        let low = _mm512_set1_epi32((0x0101_0101u32 * ((1u32 << BITS) - 1)) as i32);
        for group in 0..set.rank.div_ceil(GROUP) {
            let mut units = [0.0; R];
            let mut largest = [_mm512_setzero_ps(); R];
            let mut minima = [_mm512_setzero_ps(); R];
            for vector in 0..2 * pages.len() {
                let params = params_of(set, pages, group, vector);
                let minimum = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(params));
                let scale = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(params)));
                for r in 0..R {
                    let weight = _mm512_loadu_ps(weights.as_ptr().add(r * ld + vector * LANES));
                    largest[r] = _mm512_max_ps(largest[r], _mm512_mul_ps(weight, scale));
                    minima[r] = _mm512_fmadd_ps(weight, minimum, minima[r]);
                }
            }
            let mut by = [_mm512_setzero_ps(); R];
            for r in 0..R {
                let largest = _mm512_reduce_max_ps(largest[r]).max(1e-30);
                (units[r], by[r]) = (largest / LARGEST, _mm512_set1_ps(LARGEST / largest));
                sums.minima[group * passes + first + r] += _mm512_reduce_add_ps(minima[r]);
            }
            let digits = scratch.weights.as_mut_ptr();
            for vector in 0..2 * pages.len() {
                let params = params_of(set, pages, group, vector);
                let scale = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(params)));
                for r in 0..R {
                    let weight = _mm512_loadu_ps(weights.as_ptr().add(r * ld + vector * LANES));
                    let number = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_mul_ps(weight, scale), by[r]));
                    let number = _mm512_xor_si512(_mm512_add_epi32(number, bias), bias);
                    for i in 0..3 {
                        let at = digits.add((vector * R + r) * 3 + i);
                        _mm512_storeu_si512(at.cast(), _mm512_permutexvar_epi8(bytes[i], number));
                    }
                }
            }
            let of_group = GROUP / (4 * steps);
            for word in group * of_group..words.min((group + 1) * of_group) {
                for step in (0..steps).step_by(at_once) {
                    let mut products = [[[_mm512_setzero_si512(); 3]; R]; 2];
                    for vector in 0..2 * pages.len() {
                        let at = set.codes + word * PAGE + vector % 2 * LANES;
                        let codes = _mm512_loadu_si512(pages.get_unchecked(vector / 2).as_ptr().add(at).cast());
                        let digits = digits.add(vector * R * 3);
                        for k in 0..2 {
                            if k < at_once {
                                let shift = _mm_cvtsi32_si128((step + k) as i32 * BITS as i32);
                                let codes = _mm512_and_si512(_mm512_srl_epi32(codes, shift), low);
                                let codes = _mm512_shuffle_epi8(codes, turn);
                                for r in 0..R {
                                    for i in 0..3 {
                                        let digit = _mm512_loadu_si512(digits.add(3 * r + i).cast());
                                        products[k][r][i] = _mm512_dpbusd_epi32(products[k][r][i], codes, digit);
                                    }
                                }
                            }
                        }
                    }
                    for k in 0..at_once {
                        for r in 0..R {
                            let part = &mut sums.parts[(word * steps + step + k) * passes + first + r];
                            let sum = _mm512_loadu_ps(part.as_ptr());
                            let more = whole(products[k][r]);
                            let sum = _mm512_fmadd_ps(more, _mm512_set1_ps(units[r]), sum);
                            _mm512_storeu_ps(part.as_mut_ptr(), sum);
                        }
                    }
                }
            }
        }
    }
}

/// Minima and scales of 16 tokens.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn params_of(set: &SetLayout, pages: &[&[u32]], group: usize, vector: usize) -> __m512i {
    let at = set.params + group * PAGE + vector % 2 * LANES;
    unsafe { _mm512_loadu_si512(pages.get_unchecked(vector / 2).as_ptr().add(at).cast()) }
}
