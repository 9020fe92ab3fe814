//! What a cache holds, as keys and values again: for who measures what it loses.

use ndarray::{Array2, Array3, s};

use super::*;
use crate::kv::latents::{PAGE, SetLayout};

/// The tokens of a sequence that are latents, as keys and values again, and what each head takes.
pub(crate) struct Rebuilt {
    /// Tokens [packed, kv_heads, d] of the pages 0..; those that are exact as well are not to be read.
    pub(crate) keys: Array3<f32>,
    pub(crate) values: Array3<f32>,
    /// Rank and bytes of each head, of keys and of values: they add up to [`KvCache::bytes`], were this sequence and layer all there is.
    pub(crate) heads: [Vec<(usize, u64)>; 2],
}

impl KvCache {
    /// Keys and values of the packed tokens of a layer: R_{n0} (mean + z D) and mean + z D. Waits for a GPU.
    pub(crate) fn rebuild(&self, layer: usize, sequence: Sequence) -> Result<Rebuilt> {
        let index = self.layer(layer)?;
        let (layer, held) = (&self.layers[index], &self.held(sequence)?[index]);
        let shape = &layer.shape;
        let words = layer.store.read_pages(&held.pages)?;
        let pages: Vec<&[u32]> = words.chunks(shape.layout.words.max(1)).collect();
        let (keys, of_keys) = side(shape, &shape.keys, &shape.layout.keys, &pages);
        let (values, of_values) = side(shape, &shape.values, &shape.layout.values, &pages);
        let mut keys = keys;
        if shape.turns.block().is_some() {
            let mut angles = Vec::new();
            for (n, mut token) in keys.outer_iter_mut().enumerate() {
                shape.turns.angles(shape.turns.origin(n), &mut angles);
                for mut head in token.outer_iter_mut() {
                    if let Some(row) = head.as_slice_mut() {
                        shape.turns.forth(row, &angles);
                    }
                }
            }
        }
        Ok(Rebuilt { keys, values, heads: [of_keys, of_values] })
    }
}

/// One side's rows [packed, kv_heads, d], before they are turned, and rank and bytes of its heads.
fn side(
    shape: &LatentLayer,
    sets: &[Factors],
    layouts: &[SetLayout],
    pages: &[&[u32]],
) -> (Array3<f32>, Vec<(usize, u64)>) {
    let (heads, d) = (shape.kv_heads, shape.head_dim);
    let mut rows = Array3::zeros((pages.len() * PAGE, heads, d));
    let mut of_heads: Vec<(usize, u64)> = Vec::with_capacity(heads);
    for (set, layout) in sets.iter().zip(layouts) {
        let width = set.mean.len();
        let latents = Array2::from_shape_fn((pages.len() * PAGE, set.rank), |(n, channel)| {
            layout.decode(pages[n / PAGE], channel, n % PAGE)
        });
        let up = Array2::from_shape_fn((set.rank, width), |(i, j)| set.up[i * width + j]);
        let first = of_heads.len();
        let rebuilt = latents.dot(&up);
        for (n, row) in rebuilt.outer_iter().enumerate() {
            let mut of_token = rows.slice_mut(s![n, first..first + set.heads, ..]);
            of_token.iter_mut().zip(row.iter().zip(&set.mean)).for_each(|(to, (x, mean))| *to = x + mean);
        }
        // What heads share is split evenly, the rest to the first.
        let words = (pages.len() * (layout.end - layout.params)) as u64;
        let exact = shape.slot_bytes() / (2 * heads as u64);
        let split = |i: u64| words * 4 / set.heads as u64 + if i == 0 { words * 4 % set.heads as u64 } else { 0 };
        of_heads.extend((0..set.heads as u64).map(|i| (set.rank, split(i) + exact)));
    }
    (rows, of_heads)
}
