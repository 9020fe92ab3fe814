//! Searches by what follows from Hamming distances: Jaccard distances, and distances to queries that are not binary.

use ndarray::Ix2;

use super::base::Store;
use super::distances::{Measure, Queries};
use super::nearest::{neighbours, search, words};
use super::{PLACE, values};
use crate::Result;
use crate::hamming::{Codes, Neighbours};
use crate::kernels::hamming::{Int4Queries, cpu};
use crate::tensor::Tensor;

/// As the CPU's: the k nearest by Jaccard distance.
pub(crate) fn nearest_jaccard(
    store: &Store,
    queries: &Codes,
    k: usize,
    allowed: Option<&[u32]>,
) -> Result<Neighbours<f32>> {
    let (wanted, count) = (Queries { buffer: words(queries), words: store.words, totals: None }, queries.len());
    let found = search(store, wanted, count, Measure::Jaccard, k, allowed)?;
    values::record(&store.gpu, &found.0, (count, k), None)?;
    Ok(neighbours(store, queries.words().checks(), (count, k), found))
}

/// As the CPU's: the k nearest by the magnitudes whose signs differ.
pub(crate) fn nearest_int4(
    store: &Store,
    queries: &Int4Queries,
    k: usize,
    allowed: Option<&[u32]>,
) -> Result<Neighbours<f32>> {
    let upload = |bytes| store.gpu.upload(PLACE, bytes);
    let (totals, scales) =
        (upload(bytemuck::cast_slice(&queries.totals))?, upload(bytemuck::cast_slice(&queries.scales))?);
    let wanted = Queries { buffer: words(&queries.planes), words: store.words, totals: Some(&totals) };
    let count = queries.totals.len();
    let found = search(store, wanted, count, Measure::Int4, k, allowed)?;
    values::record(&store.gpu, &found.0, (count, k), Some(&scales))?;
    Ok(neighbours(store, queries.planes.words().checks(), (count, k), found))
}

/// As the CPU's: the k nearest by the magnitudes of a float query whose signs differ. Waits for the queries; their tables, 128 bytes a bit and query, are the
/// host's.
pub(crate) fn nearest_float(
    store: &Store,
    queries: &Tensor<f32, Ix2>,
    k: usize,
    allowed: Option<&[u32]>,
) -> Result<Neighbours<f32>> {
    let rows = queries.to_array()?;
    let tables: Vec<f32> = rows.rows().into_iter().flat_map(|row| cpu::tables(row.iter().copied())).flatten().collect();
    let tables = store.gpu.upload(PLACE, bytemuck::cast_slice(&tables))?;
    let count = rows.nrows();
    // No kernel reads words of queries.
    let wanted = Queries { buffer: &tables, words: store.words, totals: Some(&tables) };
    let found = search(store, wanted, count, Measure::Float, k, allowed)?;
    Ok(neighbours(store, queries.checks(), (count, k), found))
}
