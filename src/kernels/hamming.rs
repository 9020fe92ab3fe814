//! Hamming distances of binary codes: all pairs, the nearest (also by what follows from Hamming distances), those within a radius.

pub(crate) mod cpu;
mod gpu;

use ndarray::{Array2, Ix1, Ix2, s};

use crate::hamming::{Codes, Neighbours, Ranges};
use crate::tensor::{Storage, Tensor};
use crate::{Device, Result};

pub(crate) use gpu::variants;

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

    /// The words of codes `first..end`, [n, ceil(bits / 32)]. Waits.
    pub(crate) fn codes(&self, first: usize, end: usize) -> Result<Array2<u32>> {
        match self {
            Self::Host(tiles) => Ok(tiles.codes(first, end)),
            Self::Gpu(store) => store.codes(first, end),
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

/// For each query, how many codes of the base are at each distance, and how many of those have the query's label: (queries, bits + 1) each.
///
/// * `base`: n codes with `labels` (n); `queries`: codes of the same width with `query_labels`
///
/// Distances are held a tile at a time. What averages over the ranking need of retrieval follows from the two (mAP but for the order of ties).
///
/// # Errors
/// [`Error::Argument`](crate::Error::Argument) for widths that differ; [`Error::Shape`](crate::Error::Shape) where there is not one label a code;
/// [`Error::DeviceMismatch`](crate::Error::DeviceMismatch); the device's own.
pub fn hamming_histograms(
    base: &Codes,
    labels: &Tensor<u32, Ix1>,
    queries: &Codes,
    query_labels: &Tensor<u32, Ix1>,
) -> Result<(Tensor<u32, Ix2>, Tensor<u32, Ix2>)> {
    let place = "hamming_histograms";
    base.agree(place, "queries", queries)?;
    for (quantity, codes, labels) in [("labels", base, labels), ("query_labels", queries, query_labels)] {
        base.device().same(place, quantity, labels.device())?;
        if labels.len() != codes.len() {
            let expected = format!("[{}], one a code", codes.len());
            return Err(crate::Error::Shape { place, quantity, expected, found: labels.shape().to_vec() });
        }
    }
    match (base.words().storage(), labels.storage(), query_labels.storage()) {
        (Storage::Gpu(gpu, _), ..) => gpu::histograms(gpu, base, labels, queries, query_labels),
        (Storage::Host(_), Storage::Host(labels), Storage::Host(query_labels)) => {
            let shape = (queries.len(), base.bits() + 1);
            let (mut all, mut relevant) = (Array2::<u32>::zeros(shape), Array2::<u32>::zeros(shape));
            let (base_words, words) = (base.words().to_array()?, queries.words().to_array()?);
            for first in (0..base.len()).step_by(4096) {
                let last = base.len().min(first + 4096);
                let part = base_words.slice(s![first..last, ..]).to_owned();
                let part = Codes::trusted(Tensor::host(part), base.bits());
                for (query, label) in query_labels.iter().enumerate() {
                    let wanted =
                        Codes::trusted(Tensor::host(words.slice(s![query..query + 1, ..]).to_owned()), base.bits());
                    for (distance, of_code) in
                        cpu::pairwise(&wanted, &part)?.to_array()?.iter().zip(labels.slice(s![first..last]))
                    {
                        all[[query, usize::from(*distance)]] += 1;
                        relevant[[query, usize::from(*distance)]] += u32::from(of_code == label);
                    }
                }
            }
            Ok((Tensor::host(all), Tensor::host(relevant)))
        }
        _ => unreachable!("all are on one device"),
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

/// The k nearest by Jaccard distance, 1 - intersection / union of the bits set (0 for two codes without any); else as [`nearest`].
pub(crate) fn nearest_jaccard(
    store: &Store,
    queries: &Codes,
    k: usize,
    allowed: Option<&[u32]>,
) -> Result<Neighbours<f32>> {
    match (store, queries.words().storage()) {
        (Store::Host(tiles), Storage::Host(_)) => cpu::nearest_jaccard(tiles, queries, k, allowed),
        (Store::Gpu(store), Storage::Gpu(..)) => gpu::nearest_jaccard(store, queries, k, allowed),
        _ => unreachable!("both are on one device"),
    }
}

/// Jaccard distance as an integer that orders as it does: floor(2^28 (union - intersection) / union), of the numbers of bits set in either code and
/// of those that differ. Two of these fractions with unions up to 2^13 are 2^-26 apart at least, so none that differ have the same key.
pub(crate) fn jaccard_key(a: u32, b: u32, differ: u32) -> u32 {
    let union = (a + b + differ) / 2;
    if union == 0 { 0 } else { ((u64::from(differ) << 28) / u64::from(union)) as u32 }
}

/// The distance of a key, rounded to f32.
pub(crate) fn jaccard_value(key: u32) -> f32 {
    key as f32 / (1u32 << 28) as f32
}

/// Codes of an int4 query.
pub(crate) const INT4: usize = 4;

/// Queries of 4 bits a component: a sign, and a magnitude of up to 7.
pub(crate) struct Int4Queries {
    /// Four codes a query: signs (1 for >= 0); then for bit 0, 1, 2 of the magnitude, signs with those turned over whose magnitude has it.
    pub(crate) planes: Codes,
    /// Sums of magnitudes.
    pub(crate) totals: Vec<u32>,
    /// What a magnitude of 1 stands for.
    pub(crate) scales: Vec<f32>,
}

/// The k nearest by (sum of magnitudes of components whose sign differs from the code's bit, lowest id); distances are sums times scales.
///
/// With s the Hamming distance to the signs, `s_p` that to plane p: the sum is `(7 s - s_0 - 2 s_1 - 4 s_2 + total) / 2`, in integers.
pub(crate) fn nearest_int4(
    store: &Store,
    queries: &Int4Queries,
    k: usize,
    allowed: Option<&[u32]>,
) -> Result<Neighbours<f32>> {
    match (store, queries.planes.words().storage()) {
        (Store::Host(tiles), Storage::Host(_)) => cpu::nearest_int4(tiles, queries, k, allowed),
        (Store::Gpu(store), Storage::Gpu(..)) => gpu::nearest_int4(store, queries, k, allowed),
        _ => unreachable!("both are on one device"),
    }
}

/// The k nearest by (sum of |q_j| over the components whose sign differs from the code's bit j, lowest id), the sum in f32, by bytes of the code in order.
///
/// * `queries`: [queries, bits], finite; a bit is 1 for >= 0
pub(crate) fn nearest_float(
    store: &Store,
    queries: &Tensor<f32, Ix2>,
    k: usize,
    allowed: Option<&[u32]>,
) -> Result<Neighbours<f32>> {
    match (store, queries.storage()) {
        (Store::Host(tiles), Storage::Host(queries)) => cpu::nearest_float(tiles, &queries, k, allowed),
        (Store::Gpu(store), Storage::Gpu(..)) => gpu::nearest_float(store, queries, k, allowed),
        _ => unreachable!("both are on one device"),
    }
}

/// All codes in `allowed` at most `radius` from each query, by (distance, lowest id). Waits.
pub(crate) async fn within(store: &Store, queries: &Codes, radius: u32, allowed: Option<&[u32]>) -> Result<Ranges> {
    match (store, queries.words().storage()) {
        (Store::Host(tiles), Storage::Host(_)) => cpu::within(tiles, queries, radius, allowed),
        (Store::Gpu(store), Storage::Gpu(..)) => gpu::within(store, queries, radius, allowed).await,
        _ => unreachable!("both are on one device"),
    }
}
