//! Hamming distances on a GPU.

use ndarray::Ix2;

use crate::gpu::Gpu;
use crate::hamming::{Codes, Neighbours, Ranges};
use crate::kernels::hamming::Int4Queries;
use crate::{Error, Result, Tensor};

/// Codes in device memory.
pub(crate) struct Store {
    gpu: Gpu,
    len: usize,
}

fn unsupported<T>(gpu: &Gpu) -> Result<T> {
    Err(Error::Unsupported { place: "hamming", feature: "search", device: gpu.to_string() })
}

impl Store {
    pub(crate) fn new(gpu: &Gpu, _bits: usize) -> Result<Self> {
        Ok(Self { gpu: gpu.clone(), len: 0 })
    }

    pub(crate) fn append(&mut self, _codes: &Codes) -> Result<()> {
        unsupported(&self.gpu)
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

pub(crate) fn pairwise(gpu: &Gpu, _a: &Codes, _b: &Codes) -> Result<Tensor<u16, Ix2>> {
    unsupported(gpu)
}

pub(crate) fn nearest(store: &Store, _queries: &Codes, _k: usize, _allowed: Option<&[u32]>) -> Result<Neighbours<u32>> {
    unsupported(&store.gpu)
}

pub(crate) fn within(store: &Store, _queries: &Codes, _radius: u32, _allowed: Option<&[u32]>) -> Result<Ranges> {
    unsupported(&store.gpu)
}

pub(crate) fn nearest_jaccard(
    store: &Store,
    _queries: &Codes,
    _k: usize,
    _allowed: Option<&[u32]>,
) -> Result<Neighbours<f32>> {
    unsupported(&store.gpu)
}

pub(crate) fn nearest_int4(
    store: &Store,
    _queries: &Int4Queries,
    _k: usize,
    _allowed: Option<&[u32]>,
) -> Result<Neighbours<f32>> {
    unsupported(&store.gpu)
}
