//! The way over a base: blocks of tiles, and for each block all queries, four at a time.

use std::ops::Range;

use super::select::Collect;
use super::simd::{GROUP, Hits, Isa, TILE};
use super::tiles::Tiles;

/// Bytes of a block of tiles: what stays in a core's own cache while all queries pass.
const BLOCK: usize = 128 << 10;

/// Where to search.
#[derive(Clone, Copy)]
pub(super) struct Base<'a> {
    pub(super) isa: Isa,
    pub(super) tiles: &'a Tiles,
    /// Bit i % 32 of word i / 32 for code i; None: all.
    pub(super) allowed: Option<&'a [u32]>,
}

impl<'a> Base<'a> {
    pub(super) fn new(tiles: &'a Tiles, allowed: Option<&'a [u32]>) -> Self {
        Self { isa: Isa::best(), tiles, allowed }
    }

    /// Which codes of a tile may be found.
    fn admitted(&self, tile: usize) -> u64 {
        let there = match self.tiles.len() - tile * TILE {
            rest if rest < TILE => (1 << rest) - 1,
            _ => u64::MAX,
        };
        let word = |index: usize, words: &[u32]| u64::from(words.get(index).copied().unwrap_or(0));
        self.allowed.map_or(there, |words| there & (word(2 * tile, words) | word(2 * tile + 1, words) << 32))
    }

    /// Calls `each` with blocks of `range`, small ones first: limits fall fastest at the start.
    pub(super) fn blocks(&self, range: Range<usize>, mut each: impl FnMut(Block<'_>)) {
        let tile_bytes = self.tiles.bytes() * TILE;
        let most = (BLOCK / tile_bytes).max(1);
        let (mut first, mut count, mut admitted) = (range.start, 1, Vec::new());
        while first < range.end {
            let end = range.end.min(first + count);
            admitted.clear();
            admitted.extend((first..end).map(|tile| self.admitted(tile)));
            let data = &self.tiles.data()[first * tile_bytes..end * tile_bytes];
            each(Block { isa: self.isa, bytes: self.tiles.bytes(), first, data, admitted: &admitted });
            (first, count) = (end, most.min(2 * count));
        }
    }

    /// Gives each of `collectors`, one a prepared query, the codes of `range` (of tiles) that are within its limit.
    pub(super) fn walk(&self, range: Range<usize>, queries: &[u8], collectors: &mut [impl Collect]) {
        let stride = self.isa.prepared(self.tiles.bytes());
        let mut hits: [Hits; GROUP] = Default::default();
        self.blocks(range, |block| {
            for (queries, collectors) in queries.chunks(GROUP * stride).zip(collectors.chunks_mut(GROUP)) {
                let mut limits = [-1; GROUP];
                limits.iter_mut().zip(&*collectors).for_each(|(limit, collector)| *limit = collector.limit());
                if limits.iter().all(|&limit| limit < 0) {
                    continue;
                }
                block.scan(queries, &limits[..collectors.len()], &mut hits[..collectors.len()]);
                for (hits, collector) in hits.iter_mut().zip(collectors) {
                    for (&(tile, found), distances) in hits.tiles.iter().zip(&hits.distances) {
                        collector.take(block.first_id(tile), found, distances);
                    }
                }
            }
        });
    }
}

/// Tiles next to each other.
pub(super) struct Block<'a> {
    isa: Isa,
    bytes: usize,
    /// The number of the first tile.
    first: usize,
    data: &'a [u8],
    pub(super) admitted: &'a [u64],
}

impl Block<'_> {
    /// As [`Isa::scan`], with `hits` cleared first.
    pub(super) fn scan(&self, queries: &[u8], limits: &[i32], hits: &mut [Hits]) {
        hits.iter_mut().for_each(Hits::clear);
        self.isa.scan(self.data, self.bytes, self.admitted, queries, limits, hits);
    }

    /// The rows of a tile of this block.
    pub(super) fn tile(&self, number: usize) -> &[u8] {
        &self.data[number * self.bytes * TILE..][..self.bytes * TILE]
    }

    /// The id of the first code of a tile of this block.
    pub(super) fn first_id(&self, tile: u32) -> u32 {
        ((self.first + tile as usize) * TILE) as u32
    }
}
