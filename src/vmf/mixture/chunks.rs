//! Rows as a pass over them sees them: a few at a time, as f32, with the factors that make them unit length.

use ndarray::ArrayView2;
use rayon::prelude::*;

use crate::Result;
use crate::vmf::rows::{self, Row, RowSource};
use crate::vmf::stats::view_mut;

const PLACE: &str = "VmfMixture";

/// Elements of a chunk: half of a core's second-level cache.
const CHUNK: usize = 128 << 10;

/// Rows of a chunk of `dim` elements each; enough for a matrix product to run at full speed.
pub(crate) fn chunk_rows(dim: usize) -> usize {
    (CHUNK / dim).clamp(64, 2048)
}

/// Some rows: `inverse[i] * rows[i * dim..][..dim]` has length 1, or is zero where the row is skipped.
pub(crate) struct Chunk<'a> {
    pub(crate) rows: &'a [f32],
    pub(crate) inverse: &'a [f32],
}

/// Room for a chunk that is not f32 already.
#[derive(Default)]
pub(crate) struct Scratch {
    rows: Vec<f32>,
    inverse: Vec<f32>,
}

/// Rows in memory or elsewhere, read in chunks from any thread.
pub(crate) trait Chunks: Sync {
    fn rows(&self) -> usize;
    fn dim(&self) -> usize;
    /// Rows `first..first + count`.
    fn chunk<'a>(&'a self, first: usize, count: usize, scratch: &'a mut Scratch) -> Result<Chunk<'a>>;
    /// Weights of all rows; `None` where each is 1.
    fn weights(&self) -> Option<&[f64]>;
}

/// Rows in memory, never copied whole.
pub(crate) struct Memory<'a, T> {
    elements: &'a [T],
    dim: usize,
    /// 1 / |row|; 0 where the row's weight is.
    inverse: Vec<f32>,
    weights: Option<&'a [f64]>,
}

/// Norms outside of which a product of raw f32 rows may overflow or lose digits: such rows are normalised in a copy first.
const SAFE: std::ops::RangeInclusive<f32> = 1e-15..=1e15;

impl<'a, T: Row> Memory<'a, T> {
    /// Checks every row, in one pass.
    pub(crate) fn new(rows: &'a ArrayView2<'a, T>, weights: Option<&'a [f64]>) -> Result<Self> {
        let dim = rows.ncols();
        rows::check_weights(PLACE, rows.nrows(), weights)?;
        let Some(elements) = rows.as_slice() else { unreachable!("tensors are row-major") };
        let inverse = elements
            .par_chunks_exact(dim)
            .with_min_len(64)
            .enumerate()
            .map(|(index, row)| match weights {
                Some(weights) if weights[index] == 0.0 => Ok(0.0),
                _ => norm_factor(row, index),
            })
            .collect::<Result<Vec<f32>>>()?;
        Ok(Memory { elements, dim, inverse, weights })
    }
}

/// 1 / |row| in f32; a norm that f32 cannot hold the inverse of is clamped, and the rows of its chunk are normalised in f64.
fn norm_factor<T: Row>(row: &[T], index: usize) -> Result<f32> {
    Ok(rows::inverse_norm(PLACE, row, index)?.clamp(1e-37, 1e37) as f32)
}

impl<T: Row> Chunks for Memory<'_, T> {
    fn rows(&self) -> usize {
        self.inverse.len()
    }
    fn dim(&self) -> usize {
        self.dim
    }
    fn weights(&self) -> Option<&[f64]> {
        self.weights
    }
    fn chunk<'a>(&'a self, first: usize, count: usize, scratch: &'a mut Scratch) -> Result<Chunk<'a>> {
        let elements = &self.elements[first * self.dim..][..count * self.dim];
        let inverse = &self.inverse[first..][..count];
        if inverse.iter().all(|factor| SAFE.contains(factor)) {
            return Ok(Chunk { rows: T::as_f32(elements, &mut scratch.rows), inverse });
        }
        scratch.rows.clear();
        scratch.inverse.clear();
        for (index, (row, &factor)) in elements.chunks_exact(self.dim).zip(inverse).enumerate() {
            let seen = factor != 0.0;
            let factor = if seen { rows::inverse_norm(PLACE, row, first + index)? } else { 0.0 };
            scratch.rows.extend(row.iter().map(|value| if seen { (value.wide() * factor) as f32 } else { 0.0 }));
            scratch.inverse.push(if seen { 1.0 } else { 0.0 });
        }
        Ok(Chunk { rows: &scratch.rows, inverse: &scratch.inverse })
    }
}

/// Rows of a [`RowSource`], read anew in every pass.
pub(crate) struct Streamed<'a> {
    pub(crate) source: &'a dyn RowSource,
}

impl Chunks for Streamed<'_> {
    fn rows(&self) -> usize {
        self.source.rows()
    }
    fn dim(&self) -> usize {
        self.source.dim()
    }
    fn weights(&self) -> Option<&[f64]> {
        None
    }
    fn chunk<'a>(&'a self, first: usize, count: usize, scratch: &'a mut Scratch) -> Result<Chunk<'a>> {
        let dim = self.dim();
        scratch.rows.resize(count * dim, 0.0);
        self.source.read(first, view_mut(&mut scratch.rows, dim))?;
        scratch.inverse.clear();
        for (index, row) in scratch.rows.chunks_exact_mut(dim).enumerate() {
            let factor = rows::inverse_norm(PLACE, row, first + index)?;
            if SAFE.contains(&(factor as f32)) {
                scratch.inverse.push(factor as f32);
            } else {
                row.iter_mut().for_each(|value| *value = (*value as f64 * factor) as f32);
                scratch.inverse.push(1.0);
            }
        }
        Ok(Chunk { rows: &scratch.rows, inverse: &scratch.inverse })
    }
}
