//! What a row is: f16, f32 or f64 elements, in memory ([`Rows`]) or read in pieces ([`RowSource`]).

use half::f16;
use half::slice::HalfFloatSliceExt;
use ndarray::ArrayViewMut2;

use super::reduce::{self, GROUP};
use crate::tensor::{Element, Real};
use crate::{Error, Result};

/// Elements that rows may have: f16, f32, f64. The arithmetic is f64 for a single distribution, f32 for mixtures.
pub trait Rows: Element + Row {
    /// What log-densities of such rows are returned in: f32 for f16 and f32, f64 for f64.
    type Score: Real;
}

impl Rows for f16 {
    type Score = f32;
}
impl Rows for f32 {
    type Score = f32;
}
impl Rows for f64 {
    type Score = f64;
}

/// Rows read in pieces from wherever they are: a file larger than memory, a socket, a generator.
///
/// A fit reads from several threads at once, and reads every row once a pass.
pub trait RowSource: Sync {
    /// How many rows there are.
    fn rows(&self) -> usize;
    /// Elements of a row.
    fn dim(&self) -> usize;
    /// Fills `into`, (any number of rows, dim), with the rows from `first` on.
    ///
    /// # Errors
    /// Whatever reading fails with, usually [`Error::Io`].
    fn read(&self, first: usize, into: ArrayViewMut2<'_, f32>) -> Result<()>;
}

/// The arithmetic on a row that vMF fitting needs. Public only because [`Rows`] names it.
#[doc(hidden)]
pub trait Row: Sized + Copy + Send + Sync + 'static {
    /// The element rows are computed in after [`Row::widen`].
    type Wide: Row;
    /// The rows themselves, or their widening in `scratch`.
    fn widen<'a>(rows: &'a [Self], scratch: &'a mut Vec<f32>) -> &'a [Self::Wide];
    /// Rows to widen at a time.
    fn block_rows(_dim: usize) -> usize {
        1 << 20
    }
    fn squared_norm(row: &[Self]) -> f64;
    /// sum += the rows times their factors.
    fn add_rows(sum: &mut [f64], rows: [&[Self]; GROUP], factors: [f64; GROUP]);
    fn dot(row: &[Self], vector: &[f64]) -> f64;
    fn wide(self) -> f64;
    /// The rows as f32: themselves, or rounded into `scratch`.
    fn as_f32<'a>(rows: &'a [Self], scratch: &'a mut Vec<f32>) -> &'a [f32];
}

impl Row for f32 {
    type Wide = f32;
    fn widen<'a>(rows: &'a [f32], _: &'a mut Vec<f32>) -> &'a [f32] {
        rows
    }
    fn squared_norm(row: &[f32]) -> f64 {
        reduce::squared_norm_f32(row)
    }
    fn add_rows(sum: &mut [f64], rows: [&[f32]; GROUP], factors: [f64; GROUP]) {
        reduce::add_rows_f32(sum, rows, factors);
    }
    fn dot(row: &[f32], vector: &[f64]) -> f64 {
        reduce::dot_f32(row, vector)
    }
    fn wide(self) -> f64 {
        self as f64
    }
    fn as_f32<'a>(rows: &'a [f32], _: &'a mut Vec<f32>) -> &'a [f32] {
        rows
    }
}

impl Row for f64 {
    type Wide = f64;
    fn widen<'a>(rows: &'a [f64], _: &'a mut Vec<f32>) -> &'a [f64] {
        rows
    }
    fn squared_norm(row: &[f64]) -> f64 {
        reduce::squared_norm_f64(row)
    }
    fn add_rows(sum: &mut [f64], rows: [&[f64]; GROUP], factors: [f64; GROUP]) {
        reduce::add_rows_f64(sum, rows, factors);
    }
    fn dot(row: &[f64], vector: &[f64]) -> f64 {
        reduce::dot_f64(row, vector)
    }
    fn wide(self) -> f64 {
        self
    }
    fn as_f32<'a>(rows: &'a [f64], scratch: &'a mut Vec<f32>) -> &'a [f32] {
        scratch.clear();
        scratch.extend(rows.iter().map(|&value| value as f32));
        scratch
    }
}

impl Row for f16 {
    type Wide = f32;
    fn block_rows(dim: usize) -> usize {
        // 64 KiB of f32 stay in the nearest caches; groups are of eight
        (16_384 / dim).next_multiple_of(GROUP).clamp(GROUP, 1024)
    }
    fn widen<'a>(rows: &'a [f16], scratch: &'a mut Vec<f32>) -> &'a [f32] {
        scratch.resize(rows.len(), 0.0);
        rows.convert_to_f32_slice(scratch);
        scratch
    }
    fn squared_norm(row: &[f16]) -> f64 {
        row.iter().map(|&value| value.wide() * value.wide()).sum()
    }
    fn add_rows(sum: &mut [f64], rows: [&[f16]; GROUP], factors: [f64; GROUP]) {
        for (row, factor) in rows.into_iter().zip(factors) {
            sum.iter_mut().zip(row).for_each(|(sum, &value)| *sum += factor * value.wide());
        }
    }
    fn dot(row: &[f16], vector: &[f64]) -> f64 {
        row.iter().zip(vector).map(|(&value, &other)| value.wide() * other).sum()
    }
    fn wide(self) -> f64 {
        self.to_f64()
    }
    fn as_f32<'a>(rows: &'a [f16], scratch: &'a mut Vec<f32>) -> &'a [f32] {
        Self::widen(rows, scratch)
    }
}

/// 1 / |row|, in f64, also where the squares of an f64 row overflow or underflow.
///
/// # Errors
/// [`Error::Domain`] naming row `index` if an element is not finite, or all are zero (or below 1e-300).
pub(crate) fn inverse_norm<T: Row>(place: &'static str, row: &[T], index: usize) -> Result<f64> {
    let squared = T::squared_norm(row);
    if squared > 1e-280 && squared < 1e300 {
        return Ok(1.0 / squared.sqrt());
    }
    let largest = row.iter().fold(0.0f64, |largest, value| largest.max(value.wide().abs()));
    let found = if let Some(value) = row.iter().map(|value| value.wide()).find(|value| !value.is_finite()) {
        format!("a row with {value}")
    } else if largest == 0.0 {
        "a row of zeros".to_string()
    } else if largest < 1e-300 {
        format!("a row whose largest element is {largest:e}")
    } else {
        // scaled by the power of two nearest the largest element, so that no square leaves f64's range
        let scale = 2f64.powi(-(largest.log2().floor() as i32).clamp(-1000, 1000));
        let squared: f64 = row.iter().map(|value| (value.wide() * scale).powi(2)).sum();
        return Ok(scale / squared.sqrt());
    };
    Err(Error::Domain { place, quantity: "row", index, expected: "finite elements, not all zero", found })
}

/// An error unless `weights` holds a weight for each of `rows` rows, all finite and not negative.
pub(crate) fn check_weights(place: &'static str, rows: usize, weights: Option<&[f64]>) -> Result<()> {
    let Some(weights) = weights else { return Ok(()) };
    if weights.len() != rows {
        let expected = format!("[{rows}], one a row");
        return Err(Error::Shape { place, quantity: "weights", expected, found: vec![weights.len()] });
    }
    match weights.iter().position(|weight| !(weight.is_finite() && *weight >= 0.0)) {
        None => Ok(()),
        Some(index) => Err(Error::Domain {
            place,
            quantity: "weight",
            index,
            expected: "finite and not negative",
            found: weights[index].to_string(),
        }),
    }
}
