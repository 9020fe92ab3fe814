//! The projections of a layer as shaders read them.

use std::ops::Range;

use super::{PLACE, head_words};
use crate::Result;
use crate::gpu::{Buffer, Gpu};
use crate::kv::latents::{PAGE, SetLayout};
use crate::kv::layer::{ExactType, Factors, LatentLayer};

/// Channels of a tile that is packed, and of one that is brought back.
pub(crate) const DOWN: usize = 32;
pub(crate) const UP: usize = 64;

/// Where the parts of the table `layout` begin, in words.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Places {
    /// Heads (8 words each: params, codes and rank of keys, then of values; where D of keys and of values begins) of packed pages, of rebuilt keys beside
    /// packed values, and of exact rows.
    pub(crate) packed: u32,
    pub(crate) rebuilt: u32,
    pub(crate) exact: u32,
    /// Partner (with the highest bit for the second of a pair) and number of the pair of each column.
    pub(crate) turns: u32,
}

/// 32 channels of a projection that are packed together.
#[derive(Debug, Clone)]
pub(crate) struct Tile {
    /// Words of `layout`.
    pub(crate) place: u32,
    pub(crate) heads: Range<usize>,
    /// Words of E.
    pub(crate) down: Range<usize>,
    /// Words of the set in a page.
    pub(crate) page: Range<usize>,
}

/// Projections in buffers.
pub(crate) struct DeviceFactors {
    pub(crate) layout: Buffer,
    pub(crate) places: Places,
    /// Of keys and of values: tiles, one after the other [heads * d, 32].
    pub(crate) tiles: [Vec<Tile>; 2],
    pub(crate) down: [Buffer; 2],
    /// Of keys and of values, where each head's mean and D are: of keys tiles [d, 64] of channels, of values tiles [rank + 1, 64] of columns.
    pub(crate) heads: [Vec<Range<usize>>; 2],
    pub(crate) up: [Buffer; 2],
}

impl DeviceFactors {
    pub(super) fn new(gpu: &Gpu, layer: &LatentLayer) -> Result<Self> {
        let d = layer.head_dim;
        let sides = [(&layer.keys, &layer.layout.keys), (&layer.values, &layer.layout.values)];
        let mut heads = [Vec::new(), Vec::new()];
        let mut ups = [Vec::new(), Vec::new()];
        // Params, codes and rank of each head's set.
        let mut of_head: [Vec<[u32; 3]>; 2] = [Vec::new(), Vec::new()];
        for (side, (sets, layouts)) in sides.iter().enumerate() {
            for (set, layout) in sets.iter().zip(layouts.iter()) {
                for head in 0..set.heads {
                    let first = ups[side].len();
                    if side == 0 {
                        key_up(set, head, d, &mut ups[side])
                    } else {
                        value_up(set, head, d, &mut ups[side])
                    }
                    heads[side].push(first..ups[side].len());
                    of_head[side].push([layout.params, layout.codes, layout.rank].map(|x| x as u32));
                }
            }
        }
        let mut words: Vec<u32> = Vec::new();
        let packed = words.len() as u32;
        for head in 0..layer.kv_heads {
            words.extend(of_head[0][head].iter().chain(&of_head[1][head]));
            words.extend([heads[0][head].start as u32, heads[1][head].start as u32]);
        }
        let rebuilt = words.len() as u32;
        for head in 0..layer.kv_heads {
            words.extend([0, (head * d * PAGE) as u32, d as u32]);
            words.extend(of_head[1][head]);
            words.extend([0, heads[1][head].start as u32]);
        }
        let exact = words.len() as u32;
        for head in 0..layer.kv_heads {
            let codes = |side: usize| ((side * layer.kv_heads + head) * head_words(layer)) as u32;
            words.extend([0, codes(0), d as u32, 0, codes(1), d as u32, 0, 0]);
        }
        let turns = words.len() as u32;
        let mut of_column = vec![[0, u32::MAX]; d];
        for (pair, &(i, j, _)) in layer.turns.pairs.iter().enumerate() {
            of_column[i] = [j as u32, pair as u32];
            of_column[j] = [i as u32 | 1 << 31, pair as u32];
        }
        words.extend(of_column.iter().flatten());
        let mut tiles = [Vec::new(), Vec::new()];
        let mut downs = [Vec::new(), Vec::new()];
        for (side, (sets, layouts)) in sides.iter().enumerate() {
            let mut first_head = 0;
            for (set, layout) in sets.iter().zip(layouts.iter()) {
                let mean = words.len() as u32;
                words.extend(set.mean.iter().map(|x| x.to_bits()));
                for tile in 0..set.rank.div_ceil(DOWN) {
                    tiles[side].push(tile_of(set, layout, first_head, tile, mean, &mut downs[side]));
                }
                first_head += set.heads;
            }
        }
        let tiles = tiles.map(|of_side| {
            let place = |(mut tile, record): (Tile, [u32; 8])| {
                tile.place = words.len() as u32;
                words.extend(record);
                tile
            };
            of_side.into_iter().map(place).collect::<Vec<_>>()
        });
        let upload = |floats: &Vec<f32>| gpu.upload(PLACE, bytemuck::cast_slice(floats));
        Ok(Self {
            layout: gpu.upload(PLACE, bytemuck::cast_slice(&words))?,
            places: Places { packed, rebuilt, exact, turns },
            tiles,
            down: [upload(&downs[0])?, upload(&downs[1])?],
            heads,
            up: [upload(&ups[0])?, upload(&ups[1])?],
        })
    }
}

/// Appends 32 channels of E.
fn tile_of(
    set: &Factors,
    layout: &SetLayout,
    first_head: usize,
    tile: usize,
    mean: u32,
    down: &mut Vec<f32>,
) -> (Tile, [u32; 8]) {
    let (width, first) = (set.mean.len(), down.len());
    for row in set.down.chunks_exact(set.rank) {
        let channels = &row[tile * DOWN..set.rank.min((tile + 1) * DOWN)];
        down.extend(channels);
        down.resize(down.len() + DOWN - channels.len(), 0.0);
    }
    let numbers = [first_head, width, set.rank, tile, layout.params, layout.codes, mean as usize, first / 4];
    let own = Tile {
        place: 0,
        heads: first_head..first_head + set.heads,
        down: first..down.len(),
        page: layout.params..layout.end,
    };
    (own, numbers.map(|x| x as u32))
}

/// The mean and D of a head, as columns: tiles of 64 of them.
fn key_up(set: &Factors, head: usize, d: usize, to: &mut Vec<f32>) {
    let rows: Vec<&[f32]> = [&set.mean[..]].into_iter().chain(set.up.chunks_exact(set.mean.len())).collect();
    for rows in rows.chunks(UP) {
        for j in 0..d {
            to.extend(rows.iter().map(|row| row[head * d + j]));
            to.resize(to.len() + UP - rows.len(), 0.0);
        }
    }
}

/// The mean and D of a head, as rows: tiles of 64 columns.
fn value_up(set: &Factors, head: usize, d: usize, to: &mut Vec<f32>) {
    for first in (0..d).step_by(UP) {
        for row in [&set.mean[..]].into_iter().chain(set.up.chunks_exact(set.mean.len())) {
            let columns = &row[head * d + first..head * d + d.min(first + UP)];
            to.extend(columns);
            to.resize(to.len() + UP - columns.len(), 0.0);
        }
    }
}

/// Bits of exact rows.
pub(crate) fn exact_bits(layer: &LatentLayer) -> u32 {
    match layer.exact {
        ExactType::Half => 16,
        ExactType::Single => 32,
    }
}
