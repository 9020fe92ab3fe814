//! Searches by what follows from several Hamming distances: Jaccard distances, and distances to queries that are not binary.

use std::ops::Range;

use super::select::Smallest;
use super::simd::{GROUP, Hits, TILE};
use super::walk::Base;
use crate::kernels::hamming::{INT4, jaccard_key};

/// The k nearest by Jaccard distance (keys of [`jaccard_key`]) among a range of tiles.
///
/// * `queries`: prepared, one after the other; `weights`: number of bits set in each
/// * `nothing`: a prepared query of zeros, whose distances are the weights of codes
pub(super) fn jaccard(
    base: &Base<'_>,
    range: Range<usize>,
    queries: &[u8],
    weights: &[u32],
    nothing: &[u8],
    k: usize,
) -> Vec<Vec<u64>> {
    let stride = base.isa.prepared(base.tiles.bytes());
    let mut found: Vec<Smallest> = weights.iter().map(|_| Smallest::new(k)).collect();
    let (mut of_codes, mut hits): ([Hits; 1], [Hits; GROUP]) = Default::default();
    base.blocks(range, |block| {
        block.scan(nothing, &[i32::MAX], &mut of_codes);
        // Tiles with no code to find are left out of hits: place of a tile of the block.
        let mut places = vec![0; block.admitted.len()];
        of_codes[0].tiles.iter().enumerate().for_each(|(place, &(tile, _))| places[tile as usize] = place);
        let heaviest = of_codes[0].distances.iter().flatten().copied().max().unwrap_or(0);
        let groups = queries.chunks(GROUP * stride).zip(weights.chunks(GROUP)).zip(found.chunks_mut(GROUP));
        for ((queries, weights), found) in groups {
            let mut limits = [-1; GROUP];
            for ((limit, found), &weight) in limits.iter_mut().zip(&*found).zip(weights) {
                *limit = limit_of(found.below, weight + u32::from(heaviest));
            }
            block.scan(queries, &limits[..weights.len()], &mut hits[..weights.len()]);
            for ((hits, found), &weight) in hits.iter().zip(found).zip(weights) {
                for (&(tile, which), distances) in hits.tiles.iter().zip(&hits.distances) {
                    let of_codes = &of_codes[0].distances[places[tile as usize]];
                    for code in (0..TILE).filter(|code| which >> code & 1 == 1) {
                        let key = jaccard_key(weight, of_codes[code].into(), distances[code].into());
                        found.push(key, block.first_id(tile) + code as u32);
                    }
                }
            }
        }
    });
    found.into_iter().map(Smallest::finish).collect()
}

/// The Hamming distance beyond which no code with both weights `weights` together at most has a key below `below`: d / union with
/// union = (weights + d) / 2 is below t exactly where d (2 - t) < t weights.
fn limit_of(below: u64, weights: u32) -> i32 {
    if below == u64::MAX {
        return i32::MAX;
    }
    // The key rounds down, by at most 2^-28.
    let t = ((below >> 32) + 2) as f64 / f64::from(1u32 << 28);
    if t >= 1.0 { i32::MAX } else { (t * f64::from(weights) / (2.0 - t)).ceil() as i32 }
}

/// Queries of signs and magnitudes of up to 7, as codes: the signs, then for each bit of the magnitude the signs with those turned over whose
/// magnitude has that bit; prepared.
pub(super) struct Planes {
    pub(super) prepared: Vec<u8>,
    /// Sum of all magnitudes.
    pub(super) total: u32,
}

/// The k nearest by sum of magnitudes of signs that differ, among a range of tiles.
///
/// With s the distance to the signs and `s_p` that to plane p, the magnitudes with bit p among the signs that differ are
/// `(s - s_p + number with bit p) / 2`; the sum over p, times 2^p, is `(7 s - s_0 - 2 s_1 - 4 s_2 + total) / 2`.
pub(super) fn asymmetric(base: &Base<'_>, range: Range<usize>, queries: &[Planes], k: usize) -> Vec<Vec<u64>> {
    let mut found: Vec<Smallest> = queries.iter().map(|_| Smallest::new(k)).collect();
    let mut hits: [Hits; INT4] = Default::default();
    base.blocks(range, |block| {
        for (query, found) in queries.iter().zip(&mut found) {
            block.scan(&query.prepared, &[i32::MAX; INT4], &mut hits);
            let [signs, low, middle, high] = &hits;
            for (place, &(tile, which)) in signs.tiles.iter().enumerate() {
                let [s, a, b, c] = [signs, low, middle, high].map(|hits| &hits.distances[place]);
                let mut sums = [0u32; TILE];
                for code in 0..TILE {
                    let of = |counts: &[u16; TILE]| u32::from(counts[code]);
                    sums[code] = (query.total + 7 * of(s) - of(a) - 2 * of(b) - 4 * of(c)) / 2;
                }
                let limit = (found.below >> 32).min(u32::MAX.into()) as u32;
                for code in (0..TILE).filter(|code| sums[*code] <= limit && which >> code & 1 == 1) {
                    found.push(sums[code], block.first_id(tile) + code as u32);
                }
            }
        }
    });
    found.into_iter().map(Smallest::finish).collect()
}

/// The k nearest by sums of `tables`, [byte of a code][value of that byte], among a range of tiles; one set of tables a query.
pub(super) fn tables(base: &Base<'_>, range: Range<usize>, queries: &[Vec<[f32; 256]>], k: usize) -> Vec<Vec<u64>> {
    let mut found: Vec<Smallest> = queries.iter().map(|_| Smallest::new(k)).collect();
    base.blocks(range, |block| {
        for (tables, found) in queries.iter().zip(&mut found) {
            for (number, &admitted) in block.admitted.iter().enumerate().filter(|(_, admitted)| **admitted != 0) {
                let mut sums = [0.0f32; TILE];
                for (row, table) in block.tile(number).chunks_exact(TILE).zip(tables) {
                    sums.iter_mut().zip(row).for_each(|(sum, &byte)| *sum += table[usize::from(byte)]);
                }
                for (code, sum) in sums.iter().enumerate().filter(|(code, _)| admitted >> code & 1 == 1) {
                    // None is negative, so their bits order as they do.
                    found.push(sum.to_bits(), block.first_id(number as u32) + code as u32);
                }
            }
        }
    });
    found.into_iter().map(Smallest::finish).collect()
}
