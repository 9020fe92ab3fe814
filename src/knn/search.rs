//! The search: tiles of products, candidates of each query, distances computed again.

use ndarray::{Array2, ArrayView2, Axis, Ix2, s};
use rayon::prelude::*;

use super::candidates::{Bound, Candidates};
use super::rows::{Factors, Rows, distance};
use super::{Metric, Neighbours};
use crate::gpu::block_on;
use crate::kernels::{self, MatmulElement};
use crate::tensor::Tensor;
use crate::{Device, Error, Result};

/// Rows of the base and of the queries in a tile of products: 8 MiB of them.
const BASE_TILE: usize = 8192;
const QUERY_TILE: usize = 256;
/// Rows of products that a binding holds at least, or most of a workgroup's 64 would have nothing to do.
const BINDING_ROWS: usize = 64;
/// Queries whose candidates are held at a time.
const QUERIES: usize = 4096;

/// The `k` nearest rows of `base` (n, d) for each of `queries` (q, d), exactly: by (distance, lowest id), the distance computed in f64 from the rows as they
/// are. With fewer than `k` rows in the base all of them, in order.
///
/// * `T`: f32 or f16; ids are rows of the base, so at most 2^32 - 1 of them
///
/// Products are f32, in tiles, on the device of the tensors; all rows whose distance could be among the k smallest, given what an f32 product of d terms may be
/// off by ((d + 160) 2^-24 |q| |b|), are computed again on the host, and the k nearest of these are the result. So it is the same on every device. Memory:
/// one tile (8 MiB) and the candidates of 4096 queries, about 4 k each; on a GPU also both inputs on the host.
///
/// # Errors
/// [`Error::Argument`] for k = 0; [`Error::Shape`] for rows of another length, or an empty base; [`Error::Domain`] names the first element that is not finite
/// (row-major), or with [`Metric::Cosine`] the first row of zeros; [`Error::DeviceMismatch`]; the device's own.
pub fn search<T: MatmulElement<Sum = f32>>(
    base: &Tensor<T, Ix2>,
    queries: &Tensor<T, Ix2>,
    k: usize,
    metric: Metric,
) -> Result<Neighbours> {
    block_on(search_async(base, queries, k, metric))
}

/// [`search()`] where a thread must not block.
///
/// # Errors
/// As [`search()`].
pub async fn search_async<T: MatmulElement<Sum = f32>>(
    base: &Tensor<T, Ix2>,
    queries: &Tensor<T, Ix2>,
    k: usize,
    metric: Metric,
) -> Result<Neighbours> {
    let device = base.device();
    device.same("knn", "queries", queries.device())?;
    admit(base.shape(), queries.shape(), k)?;
    let base = Rows::new(base, metric, "base").await?;
    let queries = Rows::new(queries, metric, "query").await?;
    let (count, found) = (queries.rows.nrows(), k.min(base.rows.nrows()));
    let mut ids = Array2::<u32>::zeros((count, found));
    let mut distances = Array2::<f32>::zeros((count, found));
    for first in (0..count).step_by(QUERIES) {
        let end = (first + QUERIES).min(count);
        let candidates = candidates(device, &base, &queries, (first, end), found, metric).await?;
        (ids.slice_mut(s![first..end, ..]).axis_iter_mut(Axis(0)).into_par_iter())
            .zip(distances.slice_mut(s![first..end, ..]).axis_iter_mut(Axis(0)))
            .zip(candidates)
            .enumerate()
            .for_each(|(query, ((mut ids, mut distances), candidates))| {
                let query = queries.wide(metric, first + query);
                let nearest = nearest(&base, query.as_slice().unwrap_or(&[]), candidates.finish(), metric);
                for (at, (key, id)) in nearest.into_iter().take(found).enumerate() {
                    ids[at] = id;
                    distances[at] = distance(metric, key);
                }
            });
    }
    Ok(Neighbours { ids, distances, metric })
}

/// The `k` nearest rows of each query among `candidates` (queries, any number of ids), say of a search among binary codes, as [`search()`] among all
/// rows: by (distance, lowest id), the distances computed in f64. Repeated ids count once, and ids past the base (as `u32::MAX`, where an index found too
/// few) are passed over. On a GPU it reads both inputs back.
///
/// # Errors
/// As [`search()`]; [`Error::Shape`] where there is not one row of candidates a query; [`Error::Argument`] where a query has fewer than `k`.
pub fn rescore<T: MatmulElement<Sum = f32>>(
    base: &Tensor<T, Ix2>,
    queries: &Tensor<T, Ix2>,
    candidates: ArrayView2<'_, u32>,
    k: usize,
    metric: Metric,
) -> Result<Neighbours> {
    block_on(rescore_async(base, queries, candidates, k, metric))
}

/// [`rescore()`] where a thread must not block.
///
/// # Errors
/// As [`rescore()`].
pub async fn rescore_async<T: MatmulElement<Sum = f32>>(
    base: &Tensor<T, Ix2>,
    queries: &Tensor<T, Ix2>,
    candidates: ArrayView2<'_, u32>,
    k: usize,
    metric: Metric,
) -> Result<Neighbours> {
    base.device().same("knn", "queries", queries.device())?;
    admit(base.shape(), queries.shape(), k)?;
    let count = queries.shape()[0];
    if candidates.nrows() != count {
        let expected = format!("{count} rows, one a query");
        return Err(Error::Shape {
            place: "knn",
            quantity: "candidates",
            expected,
            found: candidates.shape().to_vec(),
        });
    }
    if k > candidates.ncols() {
        return Err(Error::Argument {
            place: "knn",
            quantity: "k",
            expected: format!("at most {}, the candidates of a query", candidates.ncols()),
            found: k.to_string(),
        });
    }
    let base = Rows::new(base, metric, "base").await?;
    let queries = Rows::new(queries, metric, "query").await?;
    let lists: Vec<Vec<u32>> = (candidates.outer_iter())
        .map(|row| {
            let mut list: Vec<u32> = row.iter().copied().filter(|id| (*id as usize) < base.rows.nrows()).collect();
            list.sort_unstable();
            list.dedup();
            list
        })
        .collect();
    if let Some((query, list)) = lists.iter().enumerate().find(|(_, list)| list.len() < k) {
        return Err(Error::Argument {
            place: "knn",
            quantity: "k",
            expected: format!("at most {}, the candidates of query {query}", list.len()),
            found: k.to_string(),
        });
    }
    let found: Vec<Vec<(f64, u32)>> = (lists.into_par_iter().enumerate())
        .map(|(query, list)| nearest(&base, queries.wide(metric, query).as_slice().unwrap_or(&[]), list, metric))
        .collect();
    Ok(Neighbours {
        ids: Array2::from_shape_fn((count, k), |(query, at)| found[query][at].1),
        distances: Array2::from_shape_fn((count, k), |(query, at)| distance(metric, found[query][at].0)),
        metric,
    })
}

fn admit(base: &[usize], queries: &[usize], k: usize) -> Result<()> {
    let place = "knn";
    if k == 0 {
        return Err(Error::Argument { place, quantity: "k", expected: "at least 1".into(), found: "0".into() });
    }
    if base[0] == 0 || u32::try_from(base[0]).is_err() {
        let expected = "from 1 to 2^32 - 1 rows".to_string();
        return Err(Error::Shape { place, quantity: "base", expected, found: base.to_vec() });
    }
    if queries[1] != base[1] {
        let expected = format!("rows of {} elements, as the base", base[1]);
        return Err(Error::Shape { place, quantity: "queries", expected, found: queries.to_vec() });
    }
    Ok(())
}

/// The candidates of queries `first..end`.
async fn candidates<T: MatmulElement<Sum = f32>>(
    device: &Device,
    base: &Rows<'_, T>,
    queries: &Rows<'_, T>,
    (first, end): (usize, usize),
    k: usize,
    metric: Metric,
) -> Result<Vec<Candidates>> {
    let bound = Bound::new(base.rows.ncols());
    let mut all: Vec<Candidates> = (first..end).map(|_| Candidates::new(k)).collect();
    let rows = base.rows.nrows();
    let most = device.as_gpu().map_or(BASE_TILE, |gpu| gpu.max_binding() as usize / (4 * BINDING_ROWS));
    let step = BASE_TILE.min(most).max(1);
    for base_first in (0..rows).step_by(step) {
        let base_end = (base_first + step).min(rows);
        let lengths = &base.lengths[base_first..base_end];
        let tile = Operand::new(device, base.factors(metric, base_first, base_end))?;
        for query_first in (first..end).step_by(QUERY_TILE) {
            let query_end = (query_first + QUERY_TILE).min(end);
            let block = Operand::new(device, queries.factors(metric, query_first, query_end))?;
            let products = block.product(&tile).await?;
            (all[query_first - first..query_end - first].par_iter_mut())
                .zip(products.axis_iter(Axis(0)))
                .zip(&queries.lengths[query_first..query_end])
                .for_each(|((candidates, products), length)| {
                    let products = products.to_slice().unwrap_or(&[]);
                    candidates.add(metric, bound, *length, lengths, products, base_first as u32);
                });
        }
    }
    Ok(all)
}

/// (key, id) of `ids`, the nearest first.
fn nearest<T: MatmulElement<Sum = f32>>(
    base: &Rows<'_, T>,
    query: &[f64],
    ids: Vec<u32>,
    metric: Metric,
) -> Vec<(f64, u32)> {
    let mut found: Vec<(f64, u32)> = ids.into_iter().map(|id| (base.key(metric, query, id as usize), id)).collect();
    found.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    found
}

/// A side of a product, where the product is made.
enum Operand<'a, T: MatmulElement<Sum = f32>> {
    Host(Factors<'a, T>),
    Plain(Tensor<T, Ix2>),
    Unit(Tensor<f32, Ix2>),
}

impl<'a, T: MatmulElement<Sum = f32>> Operand<'a, T> {
    fn new(device: &Device, factors: Factors<'a, T>) -> Result<Self> {
        Ok(match (device, factors) {
            (Device::Cpu, factors) => Self::Host(factors),
            (Device::Gpu(_), Factors::Plain(rows)) => Self::Plain(device.tensor(&rows)?),
            (Device::Gpu(_), Factors::Unit(rows)) => Self::Unit(device.tensor(&rows)?),
        })
    }

    /// Every row of this with every row of the other.
    async fn product(&self, other: &Self) -> Result<Array2<f32>> {
        match (self, other) {
            (Self::Host(Factors::Plain(a)), Self::Host(Factors::Plain(b))) => Ok(kernels::matmul::on_host(a, b)),
            (Self::Host(Factors::Unit(a)), Self::Host(Factors::Unit(b))) => {
                Ok(kernels::matmul::on_host(&a.view(), &b.view()))
            }
            (Self::Plain(a), Self::Plain(b)) => kernels::matmul(a, b, false, true)?.to_array_async().await,
            (Self::Unit(a), Self::Unit(b)) => kernels::matmul(a, b, false, true)?.to_array_async().await,
            _ => unreachable!("both sides are made alike"),
        }
    }
}
