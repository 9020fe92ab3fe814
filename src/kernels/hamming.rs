//! Hamming distances of binary codes: all pairs, the nearest, those within a radius.

pub(crate) mod cpu;
pub(crate) mod gpu;

use ndarray::Ix2;

use crate::hamming::{Codes, Neighbours, Ranges};
use crate::tensor::{Storage, Tensor};
use crate::{Device, Result};

/// Codes laid out for search, on a device.
pub(crate) enum Store {
    Host(cpu::Tiles),
    Gpu(gpu::Store),
}

impl Store {
    /// An empty one.
    pub(crate) fn new(device: &Device, bits: usize) -> Result<Self> {
        match device {
            Device::Cpu => Ok(Self::Host(cpu::Tiles::new(bits))),
            Device::Gpu(gpu) => Ok(Self::Gpu(gpu::Store::new(gpu, bits)?)),
        }
    }

    /// Adds codes of its width and device; on an error none.
    pub(crate) fn append(&mut self, codes: &Codes) -> Result<()> {
        match (self, codes.words().storage()) {
            (Self::Host(tiles), Storage::Host(words)) => tiles.append(&words),
            (Self::Gpu(store), Storage::Gpu(..)) => store.append(codes),
            _ => unreachable!("both are on one device"),
        }
    }

    /// Number of codes.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Host(tiles) => tiles.len(),
            Self::Gpu(store) => store.len(),
        }
    }
}

/// distances\[i, j\] = number of bits in which code i of `a` and code j of `b` differ, as u16.
///
/// * `a`: n codes, `b`: m codes of the same width; returns (n, m)
///
/// # Errors
/// [`Error::Argument`](crate::Error::Argument) for widths that differ; [`Error::DeviceMismatch`](crate::Error::DeviceMismatch); the device's own.
pub fn hamming(a: &Codes, b: &Codes) -> Result<Tensor<u16, Ix2>> {
    a.agree("hamming", "b", b)?;
    match (a.words().storage(), b.words().storage()) {
        (Storage::Host(_), Storage::Host(_)) => cpu::pairwise(a, b),
        (Storage::Gpu(gpu, _), Storage::Gpu(..)) => gpu::pairwise(gpu, a, b),
        _ => unreachable!("both are on one device"),
    }
}

/// The k nearest of each query by (distance, lowest id), [queries, k], k at most the number of codes in `allowed` (bit i % 32 of word i / 32; None: all).
pub(crate) fn nearest(store: &Store, queries: &Codes, k: usize, allowed: Option<&[u32]>) -> Result<Neighbours<u32>> {
    match (store, queries.words().storage()) {
        (Store::Host(tiles), Storage::Host(_)) => cpu::nearest(tiles, queries, k, allowed),
        (Store::Gpu(store), Storage::Gpu(..)) => gpu::nearest(store, queries, k, allowed),
        _ => unreachable!("both are on one device"),
    }
}

/// All codes in `allowed` at most `radius` from each query, by (distance, lowest id). Waits.
pub(crate) fn within(store: &Store, queries: &Codes, radius: u32, allowed: Option<&[u32]>) -> Result<Ranges> {
    match (store, queries.words().storage()) {
        (Store::Host(tiles), Storage::Host(_)) => cpu::within(tiles, queries, radius, allowed),
        (Store::Gpu(store), Storage::Gpu(..)) => gpu::within(store, queries, radius, allowed),
        _ => unreachable!("both are on one device"),
    }
}
