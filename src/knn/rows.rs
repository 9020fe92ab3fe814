//! Rows on the host with their lengths, and the distances between them as they are returned.

use ndarray::{Array1, Array2, ArrayView2, Axis, CowArray, Ix2, s};
use rayon::prelude::*;

use super::Metric;
use crate::kernels::MatmulElement;
use crate::tensor::Tensor;
use crate::{Error, Result};

/// Rows of a base or of queries, checked.
pub(super) struct Rows<'a, T> {
    pub rows: CowArray<'a, T, Ix2>,
    /// The Euclidean length of each.
    pub lengths: Vec<f64>,
}

impl<'a, T: MatmulElement<Sum = f32>> Rows<'a, T> {
    /// Finite rows, and with the cosine none that is zero: where they are on the CPU, else a copy of them.
    pub async fn new(rows: &'a Tensor<T, Ix2>, metric: Metric, quantity: &'static str) -> Result<Self> {
        let rows: CowArray<'a, T, Ix2> = match rows.as_host() {
            Some(rows) => rows.into(),
            None => rows.to_array_async().await?.into(),
        };
        let lengths: Vec<f64> =
            rows.axis_iter(Axis(0)).into_par_iter().map(|row| length(row.as_slice().unwrap_or(&[]))).collect();
        let place = "knn";
        // No sum of finite f32 squares leaves f64.
        if let Some(row) = lengths.iter().position(|length| !length.is_finite()) {
            let column = rows.row(row).iter().position(|value| !value.widen().is_finite()).unwrap_or(0);
            return Err(Error::Domain {
                place,
                quantity,
                index: row * rows.ncols() + column,
                expected: "a finite number",
                found: rows.get((row, column)).map_or(f32::NAN, |value| value.widen()).to_string(),
            });
        }
        if metric == Metric::Cosine
            && let Some(index) = lengths.iter().position(|length| *length == 0.0)
        {
            let expected = "a row with a direction";
            return Err(Error::Domain { place, quantity, index, expected, found: "a row of zeros".into() });
        }
        Ok(Self { rows, lengths })
    }

    /// Rows `first..end` as they go into the product: with the cosine as unit rows.
    pub fn factors(&self, metric: Metric, first: usize, end: usize) -> Factors<'_, T> {
        let rows = self.rows.slice(s![first..end, ..]);
        match metric {
            Metric::Cosine => {
                let mut unit = rows.mapv(|value| value.widen());
                for (mut row, length) in unit.outer_iter_mut().zip(&self.lengths[first..end]) {
                    row.mapv_inplace(|value| (f64::from(value) / length) as f32);
                }
                Factors::Unit(unit)
            }
            _ => Factors::Plain(rows),
        }
    }

    /// A row in f64, and with the cosine of unit length.
    pub fn wide(&self, metric: Metric, row: usize) -> Array1<f64> {
        let length = if metric == Metric::Cosine { self.lengths[row] } else { 1.0 };
        self.rows.row(row).mapv(|value| f64::from(value.widen()) / length)
    }

    /// How far `query` ([`Rows::wide`]) and row `row` are apart: what neighbours are sorted by, in f64 and always in the same order of terms. The
    /// squared distance, with the cosine that of the unit rows, or the negative inner product.
    pub fn key(&self, metric: Metric, query: &[f64], row: usize) -> f64 {
        let base = self.rows.row(row);
        key(metric, query, base.as_slice().unwrap_or(&[]), self.lengths[row])
    }
}

/// [`Rows::key`] of a row of that length.
fn key<T: MatmulElement<Sum = f32>>(metric: Metric, query: &[f64], base: &[T], length: f64) -> f64 {
    match metric {
        Metric::L2 => sum(query, base, |q, b| (q - b) * (q - b)),
        Metric::Cosine => sum(query, base, |q, b| (q - b / length) * (q - b / length)),
        Metric::InnerProduct => -sum(query, base, |q, b| q * b),
    }
}

/// One query, for rows that come a batch at a time.
#[cfg(feature = "datafusion")]
pub(crate) struct Query {
    metric: Metric,
    wide: Vec<f64>,
}

#[cfg(feature = "datafusion")]
impl Query {
    /// None for a query with an element that is not finite, or with the cosine one of zeros.
    pub fn new<T: MatmulElement<Sum = f32>>(row: &[T], metric: Metric) -> Option<Self> {
        let length = if metric == Metric::Cosine { length(row) } else { 1.0 };
        let wide: Vec<f64> = row.iter().map(|value| f64::from(value.widen()) / length).collect();
        wide.iter().all(|value| value.is_finite()).then_some(Self { metric, wide })
    }

    /// Elements of the query.
    pub fn dim(&self) -> usize {
        self.wide.len()
    }

    /// What rows are sorted by, as [`Rows::key`]; None for a row as [`Query::new`] refuses.
    pub fn key<T: MatmulElement<Sum = f32>>(&self, row: &[T]) -> Option<f64> {
        let length = if self.metric == Metric::Cosine { length(row) } else { 1.0 };
        Some(key(self.metric, &self.wide, row, length)).filter(|key| key.is_finite())
    }

    /// The distance a key stands for.
    pub fn distance(&self, key: f64) -> f32 {
        distance(self.metric, key)
    }
}

/// The Euclidean length of a row.
fn length<T: MatmulElement<Sum = f32>>(row: &[T]) -> f64 {
    sum(row, row, |a, b| a * b).sqrt()
}

/// The distance a key stands for.
pub(super) fn distance(metric: Metric, key: f64) -> f32 {
    match metric {
        Metric::L2 => key.sqrt() as f32,
        Metric::Cosine => (0.5 * key) as f32,
        Metric::InnerProduct => -key as f32,
    }
}

/// What is computed with in f64.
trait Wide: Copy {
    fn wide(self) -> f64;
}

impl Wide for f64 {
    fn wide(self) -> f64 {
        self
    }
}

impl<T: MatmulElement<Sum = f32>> Wide for T {
    fn wide(self) -> f64 {
        self.widen().into()
    }
}

/// The sum of `term` over pairs of elements, in eight partial sums, which a compiler can put side by side.
fn sum<Q: Wide, T: Wide>(query: &[Q], base: &[T], term: impl Fn(f64, f64) -> f64) -> f64 {
    let mut sums = [0.0; 8];
    let (query, query_rest) = query.as_chunks::<8>();
    let (base, base_rest) = base.as_chunks::<8>();
    for (query, base) in query.iter().zip(base) {
        for lane in 0..8 {
            sums[lane] += term(query[lane].wide(), base[lane].wide());
        }
    }
    for (lane, (query, base)) in query_rest.iter().zip(base_rest).enumerate() {
        sums[lane] += term(query.wide(), base.wide());
    }
    sums.iter().sum()
}

/// Rows of a product.
pub(super) enum Factors<'a, T> {
    Plain(ArrayView2<'a, T>),
    Unit(Array2<f32>),
}
