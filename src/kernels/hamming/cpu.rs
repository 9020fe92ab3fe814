//! Hamming distances on the CPU.

use ndarray::{Array1, Array2, ArrayView2, Ix2};

use crate::Result;
use crate::hamming::{Codes, Neighbours, Ranges};
use crate::tensor::Tensor;

/// Codes in memory.
pub(crate) struct Tiles {
    words: Vec<u32>,
    stride: usize,
    len: usize,
}

impl Tiles {
    pub(crate) fn new(bits: usize) -> Self {
        Self { words: Vec::new(), stride: bits.div_ceil(32), len: 0 }
    }

    pub(crate) fn append(&mut self, codes: &ArrayView2<'_, u32>) -> Result<()> {
        self.words.extend(codes.iter());
        self.len += codes.nrows();
        Ok(())
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

fn distance(a: impl Iterator<Item = u32>, b: &[u32]) -> u32 {
    a.zip(b).map(|(a, b)| (a ^ b).count_ones()).sum()
}

pub(crate) fn pairwise(a: &Codes, b: &Codes) -> Result<Tensor<u16, Ix2>> {
    let (a, b) = (a.words().to_array()?, b.words().to_array()?);
    Ok(Tensor::host(Array2::from_shape_fn((a.nrows(), b.nrows()), |(i, j)| {
        a.row(i).iter().zip(b.row(j)).map(|(a, b)| (a ^ b).count_ones()).sum::<u32>() as u16
    })))
}

fn all(tiles: &Tiles, query: &[u32], allowed: Option<&[u32]>) -> Vec<u64> {
    let codes = tiles.words.chunks_exact(tiles.stride).enumerate();
    let codes = codes.filter(|(id, _)| allowed.is_none_or(|words| words[id / 32] >> (id % 32) & 1 == 1));
    let mut keys: Vec<u64> =
        codes.map(|(id, code)| u64::from(distance(query.iter().copied(), code)) << 32 | id as u64).collect();
    keys.sort_unstable();
    keys
}

pub(crate) fn nearest(tiles: &Tiles, queries: &Codes, k: usize, allowed: Option<&[u32]>) -> Result<Neighbours<u32>> {
    let words = queries.words().to_array()?;
    let (mut ids, mut distances) = (Array2::zeros((words.nrows(), k)), Array2::zeros((words.nrows(), k)));
    for (i, query) in words.rows().into_iter().enumerate() {
        for (j, key) in all(tiles, &query.to_vec(), allowed).into_iter().take(k).enumerate() {
            ids[[i, j]] = key as u32;
            distances[[i, j]] = (key >> 32) as u32;
        }
    }
    Ok(Neighbours { ids: Tensor::host(ids), distances: Tensor::host(distances), first_id: 0 })
}

pub(crate) fn within(tiles: &Tiles, queries: &Codes, radius: u32, allowed: Option<&[u32]>) -> Result<Ranges> {
    let words = queries.words().to_array()?;
    let (mut offsets, mut ids, mut distances) = (vec![0], Vec::new(), Vec::new());
    for query in words.rows() {
        for key in all(tiles, &query.to_vec(), allowed).into_iter().take_while(|key| (key >> 32) as u32 <= radius) {
            ids.push(key as u32);
            distances.push((key >> 32) as u32);
        }
        offsets.push(ids.len() as u64);
    }
    let (ids, distances) = (Tensor::host(Array1::from(ids)), Tensor::host(Array1::from(distances)));
    Ok(Ranges { offsets, ids, distances, first_id: 0 })
}
