//! Hamming distances on the CPU. A search of many queries goes in parallel over queries, one of few over parts of the base too.

#[cfg(not(target_arch = "wasm32"))]
pub(crate) mod mapped;
mod rated;
mod select;
pub(crate) mod simd;
mod tiles;
mod walk;

use std::ops::Range;

use ndarray::{Array1, Array2, ArrayView2, Ix2};
use rayon::prelude::*;

use crate::device::host_memory;
use crate::hamming::{Codes, Neighbours, Ranges};
use crate::tensor::Tensor;
use crate::{Error, Result};
use select::{Collect, Nearest, Within};
use simd::{GROUP, Isa, TILE};
pub(crate) use tiles::Tiles;
use walk::Base;

use super::{INT4, Int4Queries, jaccard_value};

const PLACE: &str = "hamming";
/// Queries of a task at most: what it keeps of them stays in the cache.
const QUERIES: usize = 128;
/// Bytes of codes times queries below which another thread is not worth its while.
const SMALL: usize = 256 << 10;

/// Words of codes on the CPU.
fn words(codes: &Codes) -> ArrayView2<'_, u32> {
    match codes.words().as_host() {
        Some(words) => words,
        None => unreachable!("the door has seen that they are on the CPU"),
    }
}

/// Queries as [`Isa::scan`] reads them.
fn prepare(isa: Isa, bits: usize, rows: &ArrayView2<'_, u32>) -> Vec<u8> {
    let mut prepared = Vec::with_capacity(rows.nrows() * isa.prepared(bits / 8));
    let mut bytes = Vec::new();
    for row in rows.rows() {
        bytes.clear();
        bytes.extend(row.iter().flat_map(|word| word.to_le_bytes()).take(bits / 8));
        isa.prepare(&bytes, &mut prepared);
    }
    prepared
}

/// How a search is cut: queries of a task, and ranges of tiles that are searched on their own.
struct Plan {
    queries: usize,
    ranges: Vec<Range<usize>>,
}

impl Plan {
    fn new(tiles: &Tiles, queries: usize, kept: usize) -> Self {
        let (count, threads) = (tiles.count(), rayon::current_num_threads());
        // What is kept of a task's queries should not be more than a part of memory.
        let most = ((64 << 20) / kept.max(1)).clamp(1, QUERIES);
        let chunk = queries.div_ceil(threads).next_multiple_of(GROUP).min(most).max(1);
        let tasks = queries.div_ceil(chunk);
        let work = count * tiles.bytes() * TILE * chunk;
        let parts = if tasks >= threads { 1 } else { (2 * threads).div_ceil(tasks) };
        let parts = parts.min(work / SMALL).min(count).max(1);
        let ranges = (0..parts).map(|part| part * count / parts..(part + 1) * count / parts).collect();
        Self { queries: chunk, ranges }
    }

    /// `search` of every range for the queries of a task, each giving keys in order; then those of each query together, in order.
    fn merged(&self, search: impl Fn(Range<usize>) -> Vec<Vec<u64>> + Sync) -> Vec<Vec<u64>> {
        let mut parts: Vec<Vec<Vec<u64>>> = self.ranges.par_iter().map(|range| search(range.clone())).collect();
        let mut all = parts.swap_remove(0);
        for (query, all) in all.iter_mut().enumerate() {
            parts.iter_mut().for_each(|part| all.append(&mut part[query]));
            if !parts.is_empty() {
                // Runs in order already, which this sort finds.
                all.sort();
            }
        }
        all
    }
}

/// Ids and distances, [queries, k], of what `search` finds for a range of queries: keys in order, k at least a query.
fn collect<T: crate::Element>(
    queries: usize,
    k: usize,
    plan: &Plan,
    search: impl Fn(Range<usize>) -> Vec<Vec<u64>> + Sync,
    value: impl Fn(usize, u32) -> T + Sync,
) -> Result<Neighbours<T>> {
    let count = queries.saturating_mul(k);
    let (mut ids, mut distances) = (host_memory::<u32>(PLACE, count)?, host_memory::<T>(PLACE, count)?);
    if count > 0 {
        let rows = plan.queries * k;
        ids.par_chunks_mut(rows).zip(distances.par_chunks_mut(rows)).enumerate().for_each(
            |(task, (ids, distances))| {
                let first = task * plan.queries;
                let found = search(first..queries.min(first + plan.queries));
                let rows = ids.chunks_exact_mut(k).zip(distances.chunks_exact_mut(k));
                for (query, ((ids, distances), keys)) in rows.zip(found).enumerate() {
                    for ((id, distance), key) in ids.iter_mut().zip(distances).zip(keys) {
                        (*id, *distance) = (key as u32, value(first + query, (key >> 32) as u32));
                    }
                }
            },
        );
    }
    let shape = (queries, k);
    match (Array2::from_shape_vec(shape, ids), Array2::from_shape_vec(shape, distances)) {
        (Ok(ids), Ok(distances)) => {
            Ok(Neighbours { ids: Tensor::host(ids), distances: Tensor::host(distances), first_id: 0 })
        }
        _ => unreachable!("queries k elements"),
    }
}

pub(crate) fn nearest(tiles: &Tiles, queries: &Codes, k: usize, allowed: Option<&[u32]>) -> Result<Neighbours<u32>> {
    let (base, bits) = (Base::new(tiles, allowed), queries.bits());
    let prepared = prepare(base.isa, bits, &words(queries));
    let stride = base.isa.prepared(tiles.bytes());
    let plan = Plan::new(tiles, queries.len(), 16 * k);
    let search = |which: Range<usize>| {
        plan.merged(|range| {
            let mut found: Vec<Nearest> = which.clone().map(|_| Nearest::new(k, bits)).collect();
            base.walk(range, &prepared[which.start * stride..which.end * stride], &mut found);
            found.into_iter().map(Nearest::finish).collect()
        })
    };
    collect(queries.len(), k, &plan, search, |_, distance| distance)
}

pub(crate) fn nearest_jaccard(
    tiles: &Tiles,
    queries: &Codes,
    k: usize,
    allowed: Option<&[u32]>,
) -> Result<Neighbours<f32>> {
    let (base, rows) = (Base::new(tiles, allowed), words(queries));
    let prepared = prepare(base.isa, queries.bits(), &rows);
    let stride = base.isa.prepared(tiles.bytes());
    let weights: Vec<u32> = rows.rows().into_iter().map(|row| row.iter().map(|word| word.count_ones()).sum()).collect();
    let mut nothing = Vec::new();
    base.isa.prepare(&vec![0; tiles.bytes()], &mut nothing);
    let plan = Plan::new(tiles, queries.len(), 16 * k);
    let search = |which: Range<usize>| {
        let queries = &prepared[which.start * stride..which.end * stride];
        plan.merged(|range| rated::jaccard(&base, range, queries, &weights[which.clone()], &nothing, k))
    };
    collect(queries.len(), k, &plan, search, |_, key| jaccard_value(key))
}

pub(crate) fn nearest_int4(
    tiles: &Tiles,
    queries: &Int4Queries,
    k: usize,
    allowed: Option<&[u32]>,
) -> Result<Neighbours<f32>> {
    let (base, rows) = (Base::new(tiles, allowed), words(&queries.planes));
    let stride = base.isa.prepared(tiles.bytes());
    let prepared = prepare(base.isa, queries.planes.bits(), &rows);
    let planes = prepared.chunks_exact(INT4 * stride).zip(&queries.totals);
    let planes: Vec<_> = planes.map(|(plane, &total)| rated::Planes { prepared: plane.to_vec(), total }).collect();
    let plan = Plan::new(tiles, planes.len(), 16 * k);
    let search = |which: Range<usize>| plan.merged(|range| rated::asymmetric(&base, range, &planes[which.clone()], k));
    collect(planes.len(), k, &plan, search, |query, sum| sum as f32 * queries.scales[query])
}

pub(crate) fn nearest_float(
    tiles: &Tiles,
    queries: &ArrayView2<'_, f32>,
    k: usize,
    allowed: Option<&[u32]>,
) -> Result<Neighbours<f32>> {
    let base = Base::new(tiles, allowed);
    // Of tables there are 32 floats a bit and query.
    let plan = Plan::new(tiles, queries.nrows(), 16 * k + 128 * queries.ncols());
    let search = |which: Range<usize>| {
        let tables: Vec<_> = which.map(|query| tables(queries.row(query).iter().copied())).collect();
        plan.merged(|range| rated::tables(&base, range, &tables, k))
    };
    collect(queries.nrows(), k, &plan, search, |_, sum| f32::from_bits(sum))
}

/// For each byte of a code and each value of it: the sum of magnitudes of the components whose sign differs from its bit.
pub(super) fn tables(query: impl Iterator<Item = f32>) -> Vec<[f32; 256]> {
    let query: Vec<f32> = query.collect();
    let table = |components: &[f32]| {
        std::array::from_fn(|value| {
            let differs = |(bit, component): (usize, &f32)| {
                if (value >> bit & 1 == 1) == (*component >= 0.0) { 0.0 } else { f64::from(component.abs()) }
            };
            components.iter().enumerate().map(differs).sum::<f64>() as f32
        })
    };
    query.chunks_exact(8).map(table).collect()
}

pub(crate) fn within(tiles: &Tiles, queries: &Codes, radius: u32, allowed: Option<&[u32]>) -> Result<Ranges> {
    let (base, bits) = (Base::new(tiles, allowed), queries.bits());
    let prepared = prepare(base.isa, bits, &words(queries));
    let stride = base.isa.prepared(tiles.bytes());
    let plan = Plan::new(tiles, queries.len(), 0);
    let radius = radius.min(bits as u32) as i32;
    let tasks: Vec<usize> = (0..queries.len()).step_by(plan.queries).collect();
    let found = tasks.par_iter().map(|&first| {
        let which = first..queries.len().min(first + plan.queries);
        plan.merged(|range| {
            let mut found: Vec<Within> = which.clone().map(|_| Within { radius, keys: Vec::new() }).collect();
            base.walk(range, &prepared[which.start * stride..which.end * stride], &mut found);
            found.iter_mut().for_each(|found| select::sort(&mut found.keys, bits + 1));
            found.into_iter().map(|found| found.keys).collect()
        })
    });
    let found: Vec<Vec<Vec<u64>>> = found.collect();
    let keys = || found.iter().flatten();
    let total: usize = keys().map(Vec::len).sum();
    let (mut ids, mut distances) = (host_memory::<u32>(PLACE, total)?, host_memory::<u32>(PLACE, total)?);
    for ((id, distance), &key) in ids.iter_mut().zip(&mut distances).zip(keys().flatten()) {
        (*id, *distance) = (key as u32, (key >> 32) as u32);
    }
    let mut offsets = vec![0];
    offsets.extend(keys().scan(0, |end, keys| {
        *end += keys.len() as u64;
        Some(*end)
    }));
    let (ids, distances) = (Tensor::host(Array1::from(ids)), Tensor::host(Array1::from(distances)));
    Ok(Ranges { offsets, ids, distances, first_id: 0 })
}

pub(crate) fn pairwise(a: &Codes, b: &Codes) -> Result<Tensor<u16, Ix2>> {
    let tiles = Tiles::of_codes(b.bits(), &words(b))?;
    let base = Base::new(&tiles, None);
    let prepared = prepare(base.isa, a.bits(), &words(a));
    let stride = base.isa.prepared(tiles.bytes());
    let (n, m) = (a.len(), b.len());
    let Some(count) = n.checked_mul(m) else {
        return Err(Error::OutOfMemory { place: PLACE, bytes: u64::MAX, device: a.device().to_string() });
    };
    let mut out = host_memory::<u16>(PLACE, count)?;
    if count > 0 {
        let rows = out.par_chunks_mut(GROUP * m).zip(prepared.par_chunks(GROUP * stride));
        rows.for_each(|(rows, queries)| {
            let mut rows: Vec<All<'_>> = rows.chunks_exact_mut(m).map(All).collect();
            base.walk(0..tiles.count(), queries, &mut rows);
        });
    }
    match Array2::from_shape_vec((n, m), out) {
        Ok(array) => Ok(Tensor::host(array)),
        Err(_) => unreachable!("n m elements"),
    }
}

/// Distances to all codes.
struct All<'a>(&'a mut [u16]);

impl Collect for All<'_> {
    fn limit(&self) -> i32 {
        i32::MAX
    }

    fn take(&mut self, first: u32, _: u64, distances: &[u16; TILE]) {
        let row = &mut self.0[first as usize..];
        row.iter_mut().zip(distances).for_each(|(to, &distance)| *to = distance);
    }
}
