//! Few rows over latents of 2, 4 and 8 bits, which are not unpacked: by multiplying bytes where the processor can ([`integers`]), else as numbers where
//! they lie ([`Isa::key_codes`]).

#[cfg(target_arch = "x86_64")]
mod integers;

use crate::kernels::attention::cpu::micro::Isa;
use crate::kernels::attention::cpu::micro::codes::{CodeSums, ValueCodes};
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
pub(super) enum Sums {
    #[cfg(target_arch = "x86_64")]
    Integers(integers::Sums),
    Floats(Isa, CodeSums),
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

    /// Scores of a page: `q` is [rows, ldq], D q and behind it q . mean; `scores` [rows, ld], of which the first 32 of each row are written. Words of
    /// `ahead` will be read soon.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn scores(
        self,
        set: &SetLayout,
        page: &[u32],
        q: &[f32],
        ldq: usize,
        rows: usize,
        scores: &mut [f32],
        ld: usize,
        scratch: &mut Scratch,
        ahead: [&[u32]; 2],
    ) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Integers => integers::scores(set, page, q, ldq, rows, scores, ld, &mut scratch.integers),
            Self::Floats(isa) => {
                let (params, codes) = (&page[set.params..set.codes], &page[set.codes..set.end]);
                let bits = set.bits.count();
                isa.key_codes(bits, params, codes, set.rank, q, ldq, rows, &mut scratch.scaled, scores, ld, ahead);
            }
        }
    }

    /// Sums of no tokens.
    pub(super) fn sums(self, set: &SetLayout, rows: usize) -> Sums {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Integers => Sums::Integers(integers::Sums::new(set, rows)),
            Self::Floats(isa) => Sums::Floats(isa, CodeSums::new(isa, set.rank, rows)),
        }
    }
}

impl Sums {
    /// Scales what was added before, each row by its own.
    pub(super) fn fade(&mut self, by: &[f32]) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Integers(sums) => sums.fade(by),
            Self::Floats(isa, sums) => sums.fade(*isa, by),
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
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Integers(sums) => sums.add(set, pages, weights, ld, rows, &mut scratch.integers),
            Self::Floats(isa, sums) => {
                let layout =
                    ValueCodes { bits: set.bits.count(), rank: set.rank, params: set.params, codes: set.codes };
                isa.value_codes(layout, pages, weights, ld, rows, &mut scratch.scaled, sums);
            }
        }
    }

    /// The sums as [rank, ld] of rows.
    pub(super) fn finish(&self, set: &SetLayout, rows: usize, to: &mut [f32], ld: usize) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Integers(sums) => sums.finish(set, rows, to, ld),
            Self::Floats(isa, sums) => sums.finish(*isa, set.rank, rows, to, ld),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::latents::{LatentBits, PAGE, PageLayout};

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
                    way.scores(keys, &pages[0], &q, ldq, rows, &mut found, 40, &mut scratch, [&[]; 2]);
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
                    let mut sums = way.sums(values, rows);
                    sums.add(values, &borrowed[..2], &weights, 160, rows, &mut scratch);
                    let by: Vec<f32> = (0..rows).map(|row| 0.5 + row as f32).collect();
                    sums.fade(&by);
                    sums.add(values, &borrowed[2..], &weights[64..], 160, rows, &mut scratch);
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
