//! What searches return.

use ndarray::{Array2, Ix1, Ix2};

use crate::tensor::Element;
use crate::{Error, Result, Tensor};

/// The k nearest of each query, in order of (distance, lowest id). `T` is u32 for Hamming distances, f32 for others.
///
/// Ids are 32 bits, counted from `first_id`, 64 bits: an index holds up to 2^32 codes, and a base of more is several indexes whose `first_id` differ
/// ([`Neighbours::merge`]).
#[derive(Debug, Clone)]
pub struct Neighbours<T: Element> {
    /// (queries, k), counted from `first_id`; k is what was asked for, or all that there are.
    pub ids: Tensor<u32, Ix2>,
    /// (queries, k).
    pub distances: Tensor<T, Ix2>,
    /// What ids count from.
    pub first_id: u64,
}

impl<T: Element> Neighbours<T> {
    /// Ids as they are, `first_id` added. Waits.
    ///
    /// # Errors
    /// Those of [`Tensor::to_array`].
    pub fn global_ids(&self) -> Result<Array2<u64>> {
        let ids = self.ids.to_array()?;
        let last = ids.iter().copied().max().unwrap_or(0);
        if self.first_id.checked_add(u64::from(last)).is_none() {
            return Err(first_id("Neighbours", u64::from(last), self.first_id));
        }
        Ok(ids.mapv(|id| self.first_id + u64::from(id)))
    }

    /// The k nearest among results of several parts of a base, with their ids as they are: ids and distances, (queries, k). Waits.
    ///
    /// Right for any order of parts, if each was asked for at least k neighbours.
    ///
    /// # Errors
    /// [`Error::Shape`] where the numbers of queries differ; those of [`Tensor::to_array`].
    pub fn merge(parts: &[Self], k: usize) -> Result<(Array2<u64>, Array2<T>)> {
        let arrays = parts.iter().map(|part| Ok((part.global_ids()?, part.distances.to_array()?)));
        merge(&arrays.collect::<Result<Vec<_>>>()?, k)
    }
}

/// The k smallest of each row among `parts`, ids and distances, by (distance, id).
/// Of ids that count from so much that the last is beyond 2^64.
pub(super) fn first_id(place: &'static str, last: u64, found: u64) -> Error {
    let expected = format!("at most 2^64 - 1 less the last id, {last}");
    Error::Argument { place, quantity: "first_id", expected, found: found.to_string() }
}

pub(super) fn merge<T: Element>(parts: &[(Array2<u64>, Array2<T>)], k: usize) -> Result<(Array2<u64>, Array2<T>)> {
    let queries = parts.first().map_or(0, |(ids, _)| ids.nrows());
    let mut all: Vec<Vec<(T, u64)>> = vec![Vec::new(); queries];
    for (ids, distances) in parts {
        if ids.nrows() != queries {
            return Err(Error::Shape {
                place: "Neighbours::merge",
                quantity: "ids",
                expected: format!("{queries} queries, as in the first part"),
                found: ids.shape().to_vec(),
            });
        }
        for ((all, ids), distances) in all.iter_mut().zip(ids.rows()).zip(distances.rows()) {
            all.extend(distances.iter().copied().zip(ids.iter().copied()));
        }
    }
    let k = all.first().map_or(0, Vec::len).min(k);
    let (mut ids, mut distances) = (Array2::zeros((queries, k)), Array2::from_elem((queries, k), T::zeroed()));
    for (query, mut all) in all.into_iter().enumerate() {
        // No distance is NaN.
        all.sort_by(|a, b| a.0.partial_cmp(&b.0).unwrap_or(std::cmp::Ordering::Equal).then(a.1.cmp(&b.1)));
        for (rank, (distance, id)) in all.into_iter().take(k).enumerate() {
            (ids[[query, rank]], distances[[query, rank]]) = (id, distance);
        }
    }
    Ok((ids, distances))
}

/// All codes within a radius of each query. Those of query q are `offsets[q]..offsets[q + 1]` of `ids` and `distances`, in order of (distance, lowest id).
#[derive(Debug, Clone)]
pub struct Ranges {
    /// Where each query's hits begin, and the end: queries + 1 numbers.
    pub offsets: Vec<u64>,
    /// (hits), counted from `first_id`.
    pub ids: Tensor<u32, Ix1>,
    /// (hits).
    pub distances: Tensor<u32, Ix1>,
    /// What ids count from.
    pub first_id: u64,
}
