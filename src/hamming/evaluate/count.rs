//! The passes over the base: tiles of distances from the device, counted on the host.

use std::collections::HashMap;
use std::hash::Hash;

use ndarray::{Array1, Array2, Axis, s};
use rayon::prelude::*;

use super::OfQuery;
use super::average::{self, Top};
use crate::Result;
use crate::hamming::Codes;
use crate::kernels;
use crate::tensor::Tensor;

/// Distances in a tile: 2 MiB of them.
const BASE_TILE: usize = 8192;
const QUERY_TILE: usize = 128;

/// Queries whose histograms are held at a time: about 64 MiB of them.
pub(super) fn queries_at_once(bits: usize) -> usize {
    ((64 << 20) / (16 * (bits + 1))).clamp(QUERY_TILE, 8192)
}

/// Whom to compare with whom.
pub(super) struct Task<'a, L> {
    pub base: &'a Codes,
    pub labels: &'a [L],
    pub queries: &'a Codes,
    pub query_labels: &'a [L],
    pub leave_one_out: bool,
    /// N of each first-N figure, at most what a query may find.
    pub tops: Vec<u64>,
}

/// A query on its way through the base in the order of ids.
#[derive(Default)]
struct Walk {
    /// (all, relevant) at or below each distance so far in this order: the rank of the next code at that distance, less one.
    ranks: Vec<[u32; 2]>,
    sum: f64,
    /// Of each N: sum of rel_i P@i, and relevant ones, so far.
    tops: Vec<(f64, u64)>,
}

impl<L: Eq + Hash + Sync> Task<'_, L> {
    /// (all, relevant) at each distance, for queries `first..end`.
    pub async fn histograms(&self, first: usize, end: usize) -> Result<Vec<Vec<[u32; 2]>>> {
        if !self.base.device().is_cpu() {
            return self.histograms_of_gpu(first, end).await;
        }
        let mut counts = vec![vec![[0u32; 2]; self.base.bits() + 1]; end - first];
        self.each_distance(first, end, &mut counts, |counts, distance, relevant| {
            counts[distance][0] += 1;
            counts[distance][1] += u32::from(relevant);
        })
        .await?;
        Ok(counts)
    }

    /// The same, counted on a GPU.
    async fn histograms_of_gpu(&self, first: usize, end: usize) -> Result<Vec<Vec<[u32; 2]>>> {
        let device = self.base.device();
        let mut numbers: HashMap<&L, u32> = HashMap::new();
        let mut number = |label| {
            let next = numbers.len() as u32;
            *numbers.entry(label).or_insert(next)
        };
        let labels: Array1<u32> = self.labels.iter().map(&mut number).collect();
        let wanted: Array1<u32> = self.query_labels[first..end].iter().map(&mut number).collect();
        let queries = words(self.queries).await?;
        let queries = Codes::trusted(device.tensor(&queries.slice(s![first..end, ..]))?, self.base.bits());
        let (all, relevant) =
            kernels::hamming_histograms(self.base, &device.tensor(&labels)?, &queries, &device.tensor(&wanted)?)?;
        let (all, relevant) = (all.to_array_async().await?, relevant.to_array_async().await?);
        let mut counts: Vec<Vec<[u32; 2]>> = (all.outer_iter().zip(relevant.outer_iter()))
            .map(|(all, relevant)| all.iter().zip(relevant).map(|(all, relevant)| [*all, *relevant]).collect())
            .collect();
        if self.leave_one_out {
            // Each is at distance 0 of itself, and of its own label.
            counts.iter_mut().for_each(|counts| counts[0] = [counts[0][0] - 1, counts[0][1] - 1]);
        }
        Ok(counts)
    }

    /// What depends on the order of codes at equal distance: by the lowest id, and expected. `counts` are the histograms of the same queries.
    pub async fn in_order(&self, first: usize, end: usize, counts: &[Vec<[u32; 2]>]) -> Result<Vec<OfQuery>> {
        let start = |counts: &Vec<[u32; 2]>| {
            let before = counts.iter().scan([0u32; 2], |sum, [all, relevant]| {
                let before = *sum;
                *sum = [sum[0] + all, sum[1] + relevant];
                Some(before)
            });
            Walk { ranks: before.collect(), sum: 0.0, tops: vec![(0.0, 0); self.tops.len()] }
        };
        let mut walks: Vec<Walk> = counts.iter().map(start).collect();
        self.each_distance(first, end, &mut walks, |walk, distance, relevant| {
            let ranks = &mut walk.ranks[distance];
            ranks[0] += 1;
            if relevant {
                ranks[1] += 1;
                let precision = f64::from(ranks[1]) / f64::from(ranks[0]);
                walk.sum += precision;
                for (n, (sum, found)) in self.tops.iter().zip(&mut walk.tops) {
                    if u64::from(ranks[0]) <= *n {
                        *sum += precision;
                        *found += 1;
                    }
                }
            }
        })
        .await?;
        let finish = |(counts, walk): (&Vec<[u32; 2]>, Walk)| {
            let relevant: u64 = counts.iter().map(|[_, relevant]| u64::from(*relevant)).sum();
            let of_top = |(n, (sum, found)): (&u64, (f64, u64))| {
                let expected = average::expected_top(counts, *n);
                if found == 0 {
                    return (Top::default(), expected);
                }
                let precision = found as f64 / *n as f64;
                (Top { average_precision: sum / found as f64, precision, hit: 1.0, sure: false }, expected)
            };
            OfQuery {
                relevant,
                average_precision: if relevant == 0 { 0.0 } else { walk.sum / relevant as f64 },
                expected: average::expected(counts),
                tops: self.tops.iter().zip(walk.tops).map(of_top).collect(),
            }
        };
        Ok(counts.par_iter().zip(walks).map(finish).collect())
    }

    /// Shows the state of each query every code of the base, in the order of ids: its distance and whether it is relevant.
    async fn each_distance<S: Send>(
        &self,
        first: usize,
        end: usize,
        states: &mut [S],
        see: impl Fn(&mut S, usize, bool) + Sync,
    ) -> Result<()> {
        let device = self.base.device();
        // On a GPU both are read back once and go up again tile by tile, so that either may be larger than its memory.
        let (base, queries) = (words(self.base).await?, words(self.queries).await?);
        let tile = |words: &Array2<u32>, first: usize, end: usize| -> Result<Codes> {
            Ok(Codes::trusted(device.tensor(&words.slice(s![first..end, ..]))?, self.base.bits()))
        };
        for base_first in (0..base.nrows()).step_by(BASE_TILE) {
            let base_end = (base_first + BASE_TILE).min(base.nrows());
            let codes = tile(&base, base_first, base_end)?;
            let labels = &self.labels[base_first..base_end];
            for query_first in (first..end).step_by(QUERY_TILE) {
                let query_end = (query_first + QUERY_TILE).min(end);
                let distances = kernels::hamming(&tile(&queries, query_first, query_end)?, &codes)?;
                let distances = distances.to_array_async().await?;
                (states[query_first - first..query_end - first].par_iter_mut())
                    .zip(distances.axis_iter(Axis(0)))
                    .enumerate()
                    .for_each(|(query, (state, distances))| {
                        let query = query_first + query;
                        let label = &self.query_labels[query];
                        for ((distance, of_code), id) in distances.iter().zip(labels).zip(base_first..) {
                            if !(self.leave_one_out && id == query) {
                                see(state, usize::from(*distance), of_code == label);
                            }
                        }
                    });
            }
        }
        Ok(())
    }
}

async fn words(codes: &Codes) -> Result<Array2<u32>> {
    let words: &Tensor<u32, _> = codes.words();
    words.to_array_async().await
}
