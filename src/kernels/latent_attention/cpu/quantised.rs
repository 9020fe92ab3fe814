//! Few rows over latents of 2, 4 and 8 bits, which are not unpacked: by multiplying bytes where the processor can ([`integers`]), else as numbers where
//! they lie ([`Isa::key_codes`]).

#[cfg(target_arch = "x86_64")]
mod integers;

use crate::kernels::attention::cpu::micro::Isa;
use crate::kernels::attention::cpu::micro::codes::{Ahead, CodeSums, PageCodes};
#[cfg(any(test, target_arch = "x86_64"))]
use crate::kv::latents::PAGE;
use crate::kv::latents::SetLayout;

/// How.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    #[cfg(target_arch = "x86_64")]
    Integers,
    Floats(Isa),
}

/// What a thread holds.
#[derive(Default)]
pub(super) struct Scratch {
    #[cfg(target_arch = "x86_64")]
    integers: integers::Scratch,
    scaled: Vec<f32>,
}

/// Sums over values.
#[derive(Default)]
pub(super) enum Sums {
    #[default]
    None,
    #[cfg(target_arch = "x86_64")]
    Integers(integers::Sums),
    Floats(Isa, CodeSums),
}

fn codes(set: &SetLayout) -> PageCodes {
    PageCodes { bits: set.bits.count(), rank: set.rank, params: set.params, codes: set.codes }
}

impl Way {
    /// The best of this machine, whose other loops are of `isa`.
    pub(super) fn best(isa: Isa) -> Self {
        #[cfg(target_arch = "x86_64")]
        if integers::available() {
            return Self::Integers;
        }
        Self::Floats(isa)
    }

    /// Scores of pages: `q` is [rows, ldq], D q and behind it q . mean; `scores` [rows, ld], of which the first 32 a page of each row are written.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn scores(
        self,
        set: &SetLayout,
        pages: &[&[u32]],
        ahead: Ahead<'_>,
        q: &[f32],
        ldq: usize,
        rows: usize,
        scores: &mut [f32],
        ld: usize,
        scratch: &mut Scratch,
    ) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Integers => {
                for (number, page) in pages.iter().enumerate() {
                    integers::scores(set, page, q, ldq, rows, &mut scores[number * PAGE..], ld, &mut scratch.integers);
                }
            }
            Self::Floats(isa) => {
                isa.key_codes(codes(set), pages, ahead, q, ldq, rows, &mut scratch.scaled, scores, ld);
            }
        }
    }

    /// Makes sums of no tokens.
    pub(super) fn clear(self, sums: &mut Sums, set: &SetLayout, rows: usize) {
        match (self, &mut *sums) {
            (Self::Floats(isa), Sums::Floats(of, sums)) if *of == isa => sums.clear(isa, set.rank, rows),
            #[cfg(target_arch = "x86_64")]
            (Self::Integers, _) => *sums = Sums::Integers(integers::Sums::new(set, rows)),
            (Self::Floats(isa), _) => {
                let mut new = CodeSums::default();
                new.clear(isa, set.rank, rows);
                *sums = Sums::Floats(isa, new);
            }
        }
    }
}

impl Sums {
    /// Scales what was added before, each row by its own of `fade`, and adds weights [rows, ld] (not negative) times the latents of pages.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn add(
        &mut self,
        set: &SetLayout,
        pages: &[&[u32]],
        weights: &[f32],
        ld: usize,
        rows: usize,
        fade: &[f32],
        scratch: &mut Scratch,
    ) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Integers(sums) => {
                if fade[..rows].iter().any(|fade| *fade != 1.0) {
                    sums.fade(&fade[..rows]);
                }
                sums.add(set, pages, weights, ld, rows, &mut scratch.integers);
            }
            Self::None => unreachable!("cleared before"),
            Self::Floats(isa, sums) => {
                isa.value_codes(codes(set), pages, weights, ld, rows, fade, &mut scratch.scaled, sums);
            }
        }
    }

    /// The sums as [rank, ld] of rows.
    pub(super) fn finish(&self, set: &SetLayout, rows: usize, to: &mut [f32], ld: usize) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Integers(sums) => sums.finish(set, rows, to, ld),
            Self::None => {}
            Self::Floats(isa, sums) => isa.finish_codes(sums, set.rank, rows, to, ld),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::latents::{LatentBits, PageLayout};

    /// Against the same in f64. 2e-6 of the largest: coefficients are good to 2^-24 of the largest each, sums exact or of as many terms as channels.
    #[test]
    fn every_way_agrees_with_the_definition() {
        let ways = Isa::available().map(Way::Floats).chain([Way::best(Isa::best())]);
        ways.for_each(agrees);
    }

    fn agrees(way: Way) {
        let noise = |i: usize| ((i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32 / 8_388_608.0 - 1.0;
        for bits in [LatentBits::Two, LatentBits::Four, LatentBits::Eight] {
            for rank in [1, 5, 16, 33, 64, 100] {
                for rows in 1..=9 {
                    let layout = PageLayout::new(&[rank], bits, &[rank], bits);
                    let pages: Vec<Vec<u32>> = (0..5)
                        .map(|page| {
                            let mut words = vec![0; layout.words];
                            let z: Vec<f32> = (0..rank * PAGE).map(|i| noise(i + page * 9999)).collect();
                            assert!(layout.keys[0].encode(&z, 0, &mut words));
                            assert!(layout.values[0].encode(&z, 0, &mut words));
                            words
                        })
                        .collect();
                    let (keys, values) = (&layout.keys[0], &layout.values[0]);
                    let mut scratch = Scratch::default();
                    let ldq = rank + 3;
                    let q: Vec<f32> = (0..rows * ldq).map(|i| noise(i + 77)).collect();
                    let mut found = vec![0.0; rows * 40];
                    let ahead = Ahead { pages: &[], values: (0, 0) };
                    way.scores(keys, &[&pages[0]], ahead, &q, ldq, rows, &mut found, 40, &mut scratch);
                    for row in 0..rows {
                        for t in 0..PAGE {
                            let z = |c: usize| f64::from(keys.decode(&pages[0], c, t));
                            let expected = (0..rank).map(|c| f64::from(q[row * ldq + c]) * z(c)).sum::<f64>();
                            let expected = expected + f64::from(q[row * ldq + rank]);
                            let error = (f64::from(found[row * 40 + t]) - expected).abs();
                            assert!(
                                error <= 2e-6 * (rank as f64).sqrt().max(2.0),
                                "{way:?} {bits:?} {rank} {rows} {row} {t}: {error:e} {expected}"
                            );
                        }
                    }
                    let weights: Vec<f32> = (0..rows * 160).map(|i| noise(i + 5).abs()).collect();
                    let borrowed: Vec<&[u32]> = pages.iter().map(|page| &page[..]).collect();
                    let mut sums = Sums::default();
                    way.clear(&mut sums, values, rows);
                    let by: Vec<f32> = (0..rows).map(|row| 0.5 + row as f32).collect();
                    sums.add(values, &borrowed[..2], &weights, 160, rows, &[1.0; 9], &mut scratch);
                    sums.add(values, &borrowed[2..], &weights[64..], 160, rows, &by, &mut scratch);
                    let mut found = vec![0.0; rank * 16];
                    sums.finish(values, rows, &mut found, 16);
                    for row in 0..rows {
                        for c in 0..rank {
                            let term = |t: usize| {
                                let weight =
                                    f64::from(weights[row * 160 + t]) * if t < 64 { f64::from(by[row]) } else { 1.0 };
                                weight * f64::from(values.decode(&pages[t / PAGE], c, t % PAGE))
                            };
                            let expected: f64 = (0..160).map(term).sum();
                            let error = (f64::from(found[c * 16 + row]) - expected).abs();
                            assert!(
                                error <= 1e-5 * f64::from(by[row]).max(1.0) * 8.0,
                                "{way:?} {bits:?} {rank} {rows}: {error:e} of {expected}"
                            );
                        }
                    }
                }
            }
        }
    }
}
