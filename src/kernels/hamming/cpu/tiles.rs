//! Codes as [`Isa::scan`](super::simd::Isa::scan) reads them.

use ndarray::{Array2, ArrayView2};
use rayon::prelude::*;

#[cfg(not(target_arch = "wasm32"))]
use super::mapped::Mapped;
use super::simd::TILE;
use crate::{Device, Error, Result};

/// One byte of 64 codes: a cache line.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub(crate) struct Row([u8; TILE]);

/// Codes in tiles of 64, [tile][byte][64], in memory or in a mapped file; places beyond the last code are 0.
pub(crate) struct Tiles {
    /// Of a code.
    bytes: usize,
    len: usize,
    memory: Memory,
}

enum Memory {
    Owned(Vec<Row>),
    #[cfg(not(target_arch = "wasm32"))]
    Mapped(Mapped),
}

impl Tiles {
    pub(crate) fn new(bits: usize) -> Self {
        Self { bytes: bits / 8, len: 0, memory: Memory::Owned(Vec::new()) }
    }

    /// Those that a file has; `mapped` begins with them.
    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) fn mapped(bits: usize, len: usize, mapped: Mapped) -> Self {
        Self { bytes: bits / 8, len, memory: Memory::Mapped(mapped) }
    }

    /// `len` codes, whose tiles `fill` writes.
    pub(crate) fn filled(bits: usize, len: usize, fill: impl FnOnce(&mut [u8]) -> Result<()>) -> Result<Self> {
        let (mut rows, count) = (Vec::new(), len.div_ceil(TILE) * (bits / 8));
        reserve(&mut rows, count)?;
        rows.resize(count, Row([0; TILE]));
        fill(bytemuck::cast_slice_mut(&mut rows))?;
        Ok(Self { bytes: bits / 8, len, memory: Memory::Owned(rows) })
    }

    pub(crate) fn of_codes(bits: usize, codes: &ArrayView2<'_, u32>) -> Result<Self> {
        let mut tiles = Self::new(bits);
        tiles.append(codes)?;
        Ok(tiles)
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Bytes of a code.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Number of tiles.
    pub(crate) fn count(&self) -> usize {
        self.len.div_ceil(TILE)
    }

    /// All tiles.
    pub(crate) fn data(&self) -> &[u8] {
        match &self.memory {
            Memory::Owned(rows) => bytemuck::cast_slice(rows),
            #[cfg(not(target_arch = "wasm32"))]
            Memory::Mapped(mapped) => &mapped.bytes()[..self.count() * self.bytes * TILE],
        }
    }

    /// Adds codes, words [n, ceil(bits / 32)]; on an error none. Codes of a mapped file are copied to memory first.
    pub(crate) fn append(&mut self, codes: &ArrayView2<'_, u32>) -> Result<()> {
        #[cfg(not(target_arch = "wasm32"))]
        if let Memory::Mapped(_) = &self.memory {
            *self = Self::filled(self.bytes * 8, self.len, |tiles| {
                tiles.copy_from_slice(self.data());
                Ok(())
            })?;
        }
        let (old, new, bytes) = (self.len, self.len + codes.nrows(), self.bytes);
        let rows = match &mut self.memory {
            Memory::Owned(rows) => rows,
            #[cfg(not(target_arch = "wasm32"))]
            Memory::Mapped(_) => unreachable!("copied above"),
        };
        let more = new.div_ceil(TILE) * bytes - rows.len();
        reserve(rows, more)?;
        rows.resize(rows.len() + more, Row([0; TILE]));
        let first = old / TILE;
        rows[first * bytes..].par_chunks_exact_mut(bytes).enumerate().for_each(|(tile, rows)| {
            let tile = first + tile;
            for id in old.max(tile * TILE)..new.min((tile + 1) * TILE) {
                let code = codes.row(id - old);
                for (row, byte) in rows.iter_mut().zip(code.iter().flat_map(|word| word.to_le_bytes())) {
                    row.0[id % TILE] = byte;
                }
            }
        });
        self.len = new;
        Ok(())
    }

    /// The words of codes `first..end`, [n, ceil(bits / 32)].
    pub(crate) fn codes(&self, first: usize, end: usize) -> Array2<u32> {
        let data = self.data();
        let mut words = Array2::zeros((end - first, self.bytes.div_ceil(4)));
        for (id, mut code) in (first..end).zip(words.rows_mut()) {
            for byte in 0..self.bytes {
                let value = data[(id / TILE * self.bytes + byte) * TILE + id % TILE];
                code[byte / 4] |= u32::from(value) << (8 * (byte % 4));
            }
        }
        words
    }
}

/// Room for `more` rows, or the error that there is none.
fn reserve(rows: &mut Vec<Row>, more: usize) -> Result<()> {
    rows.try_reserve(more).map_err(|_| Error::OutOfMemory {
        place: "hamming::Index",
        bytes: (more as u64).saturating_mul(TILE as u64),
        device: Device::Cpu.to_string(),
    })
}
