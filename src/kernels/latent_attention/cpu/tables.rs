//! Projections and pages as the products want them.

use std::sync::Mutex;

use multiversion::multiversion;

use super::*;
use crate::kv::latents::{GROUP, LatentBits, SetLayout, Side};
use crate::kv::layer::{Factors, Turns};

/// The projections of a layer, in panels of [`Isa::product`].
#[derive(Debug)]
pub(crate) struct HostTables {
    pub(crate) isa: Isa,
    /// Of each set, E [heads * d, rank].
    pub(crate) key_down: Vec<Vec<f32>>,
    pub(crate) value_down: Vec<Vec<f32>>,
    /// Of each set and each of its heads.
    pub(crate) key_heads: Vec<Vec<KeyHead>>,
    /// Of each set and each of its heads, [rank + 1, d]: D, and the mean below.
    pub(crate) value_heads: Vec<Vec<Vec<f32>>>,
    /// Cosines and sines of the origins of the first blocks.
    angles: Mutex<Arc<Vec<(f32, f32)>>>,
}

/// D^T of one head with the mean as its last column, [d, rank + 1]: as panels and as rows.
#[derive(Debug)]
pub(crate) struct KeyHead {
    pub(crate) panels: Vec<f32>,
    pub(crate) rows: Vec<f32>,
}

impl HostTables {
    pub(crate) fn new(keys: &[Factors], values: &[Factors], d: usize) -> Self {
        let isa = Isa::best();
        let down = |set: &Factors| panels(isa, &set.down, set.mean.len(), set.rank);
        let of_head = |set: &Factors, head: usize| {
            let rows = set.up.chunks_exact(set.mean.len()).chain([&set.mean[..]]);
            rows.map(|row| row[head * d..][..d].to_vec()).collect::<Vec<_>>()
        };
        let key_head = |set: &Factors, head| {
            let up = of_head(set, head);
            let rows: Vec<f32> = (0..d).flat_map(|c| up.iter().map(move |row| row[c])).collect();
            KeyHead { panels: panels(isa, &rows, d, set.rank + 1), rows }
        };
        let value_head = |set: &Factors, head| panels(isa, &of_head(set, head).concat(), set.rank + 1, d);
        Self {
            isa,
            key_down: keys.iter().map(down).collect(),
            value_down: values.iter().map(down).collect(),
            key_heads: keys.iter().map(|set| (0..set.heads).map(|head| key_head(set, head)).collect()).collect(),
            value_heads: values.iter().map(|set| (0..set.heads).map(|head| value_head(set, head)).collect()).collect(),
            angles: Mutex::default(),
        }
    }

    /// Cosines and sines of the origins of all blocks of `tokens` tokens, pairs within a block: kept, since they cost as much as all else (half of decoding
    /// in blocks of 64).
    pub(super) fn angles(&self, turns: &Turns, tokens: usize) -> Arc<Vec<(f32, f32)>> {
        let Some(block) = turns.block() else { return Arc::default() };
        let needed = tokens.div_ceil(block) * turns.pairs.len();
        let mut known = self.angles.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if known.len() < needed {
            // A few more, since a decoder asks again after every token.
            let blocks = tokens.div_ceil(block) + tokens.div_ceil(8 * block);
            let mut of_block = Vec::new();
            let mut all = Vec::with_capacity(blocks * turns.pairs.len());
            for number in 0..blocks {
                turns.angles(number * block, &mut of_block);
                all.extend_from_slice(&of_block);
            }
            *known = Arc::new(all);
        }
        known.clone()
    }
}

/// A matrix in panels of two vectors of columns.
fn panels(isa: Isa, matrix: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut panels = vec![0.0; rows * isa.whole(columns)];
    isa.pack_values(matrix, rows, columns, &mut panels);
    panels
}

/// The latents of pages, and a row of ones below: panels [rank + 1][panel] of tokens.
pub(super) fn decode_panels(isa: Isa, set: &SetLayout, pages: &[&[u32]], panel: usize, to: &mut [f32]) {
    let rank = set.rank;
    for (page, words) in pages.iter().enumerate() {
        decode(isa, set, words, |channel, z| {
            for (at, z) in z.chunks_exact(panel).enumerate() {
                let first = (page * (PAGE / panel) + at) * (rank + 1);
                to[(first + channel) * panel..][..panel].copy_from_slice(z);
            }
        });
    }
    for at in to.chunks_exact_mut((rank + 1) * panel) {
        at[rank * panel..].fill(1.0);
    }
}

/// The latents of pages: [rank, tokens].
pub(super) fn decode_rows(isa: Isa, set: &SetLayout, pages: &[&[u32]], to: &mut [f32]) {
    let count = pages.len() * PAGE;
    for (page, words) in pages.iter().enumerate() {
        decode(isa, set, words, |channel, z| to[channel * count + page * PAGE..][..PAGE].copy_from_slice(z));
    }
}

/// One channel of a page after the other.
fn decode(isa: Isa, set: &SetLayout, page: &[u32], mut take: impl FnMut(usize, &[f32; PAGE])) {
    let (of_word, bits) = (set.bits.channels(), set.bits.count());
    let mut z = [0.0; PAGE];
    let (mut minima, mut scales, mut high) = ([0.0; PAGE], [0.0; PAGE], [0.0; PAGE]);
    for channel in 0..set.rank {
        let words = page[set.codes + channel / of_word * PAGE..].first_chunk().unwrap_or(&[0; PAGE]);
        let shift = (channel % of_word) as u32 * bits;
        match (set.bits, set.side) {
            (LatentBits::ThirtyTwo, _) => (0..PAGE).for_each(|t| z[t] = f32::from_bits(words[t])),
            (LatentBits::Sixteen, _) if channel % 2 == 0 => isa.unpack_halves(words, &mut z, &mut high),
            (LatentBits::Sixteen, _) => z = high,
            (_, Side::Keys) => {
                let (minimum, scale) = set.scaling(page, channel, 0);
                integers(words, shift, bits, &[minimum; PAGE], &[scale; PAGE], &mut z);
            }
            (_, Side::Values) => {
                if channel % GROUP == 0 {
                    let params = page[set.params + channel / GROUP * PAGE..].first_chunk().unwrap_or(&[0; PAGE]);
                    isa.unpack_halves(params, &mut minima, &mut scales);
                }
                integers(words, shift, bits, &minima, &scales, &mut z);
            }
        }
        take(channel, &z);
    }
}

/// minimum + scale * code.
#[multiversion(targets("x86_64+avx512f+avx2+fma+f16c", "x86_64+avx2+fma+f16c", "aarch64+neon"))]
fn integers(
    words: &[u32; PAGE],
    shift: u32,
    bits: u32,
    minima: &[f32; PAGE],
    scales: &[f32; PAGE],
    to: &mut [f32; PAGE],
) {
    let mask = (1 << bits) - 1;
    for t in 0..PAGE {
        to[t] = minima[t] + scales[t] * ((words[t] >> shift) & mask) as i32 as f32;
    }
}
