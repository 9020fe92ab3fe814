//! Exact nearest neighbours of float rows, what they say about local dimension, and how much of them an approximate index found.
//!
//! A matrix product finds candidates, and every distance that is returned is computed again from the rows themselves in f64: the expansion
//! |q|^2 - 2 q'b + |b|^2 cancels where rows are close. What the product may be off by is known, so no neighbour is lost (see [`search()`]).

mod candidates;
mod dimension;
mod rows;
mod search;

use ndarray::{Array1, Array2, ArrayView2};

pub use dimension::local_dimension;
#[cfg(feature = "datafusion")]
pub(crate) use rows::Query;
pub use search::{rescore, rescore_async, search, search_async};

use crate::{Error, Result};

/// How far two rows are apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Metric {
    /// The Euclidean distance |q - b|, not its square.
    #[default]
    L2,
    /// The inner product q'b: larger is nearer.
    InnerProduct,
    /// The cosine distance 1 - q'b / (|q| |b|), from 0 to 2.
    Cosine,
}

/// The nearest rows of each query, nearest first; rows of equal distance by the lower id.
#[derive(Clone, Debug, PartialEq)]
pub struct Neighbours {
    /// Rows of the base, (queries, k).
    pub ids: Array2<u32>,
    /// How far they are, (queries, k): computed in f64, rounded once (infinite where f32 has no room).
    pub distances: Array2<f32>,
    /// What the distances are.
    pub metric: Metric,
}

impl Neighbours {
    /// The local intrinsic dimension at each query, see [`local_dimension()`]. Of the cosine distance it is that of the chord between unit rows,
    /// sqrt(2 distance), so that it is a dimension there too.
    ///
    /// # Errors
    /// [`Error::Argument`] for inner products, which are no distances.
    pub fn local_dimension(&self) -> Result<Array1<f32>> {
        match self.metric {
            Metric::L2 => Ok(local_dimension(self.distances.view())),
            Metric::Cosine => Ok(local_dimension(self.distances.mapv(|distance| (2.0 * distance).sqrt()).view())),
            Metric::InnerProduct => Err(Error::Argument {
                place: "local_dimension",
                quantity: "metric",
                expected: "a distance: L2 or Cosine".into(),
                found: "InnerProduct".into(),
            }),
        }
    }
}

/// The mean share of each row of `truth` (queries, k) that the same row of `found` (queries, any length) has, in any order: recall@k of an
/// approximate index whose answers are `found`. 1 where there are no queries or k is 0.
///
/// Repeated ids count once, so do ids that are none (-1 as `u32::MAX` where an index found too few).
///
/// # Errors
/// [`Error::Shape`] where the numbers of queries differ.
pub fn recall(found: ArrayView2<'_, u32>, truth: ArrayView2<'_, u32>) -> Result<f64> {
    if found.nrows() != truth.nrows() {
        return Err(Error::Shape {
            place: "recall",
            quantity: "found",
            expected: format!("{} rows, one a query", truth.nrows()),
            found: found.shape().to_vec(),
        });
    }
    if truth.is_empty() {
        return Ok(1.0);
    }
    let mut hits = 0usize;
    for (found, truth) in found.outer_iter().zip(truth.outer_iter()) {
        let found: std::collections::HashSet<u32> = found.iter().copied().collect();
        hits += truth.iter().filter(|id| found.contains(id)).count();
    }
    Ok(hits as f64 / truth.len() as f64)
}
