//! Embeddings and codes in Arrow arrays, as the library's kernels take them: borrowed where they lie side by side, gathered where NULLs are between.

use std::borrow::Cow;

use datafusion::arrow::array::{Array, AsArray};
use datafusion::arrow::buffer::NullBuffer;
use datafusion::arrow::datatypes::{DataType, Float16Type, Float32Type, Float64Type};
use datafusion::error::{DataFusionError, Result};
use half::f16;
use ndarray::ArrayView2;

use crate::Error;

/// Where an argument comes from, for messages.
#[derive(Clone, Debug)]
pub(crate) struct Site {
    pub(crate) function: &'static str,
    pub(crate) column: String,
    /// Rows that came before this batch.
    pub(crate) first: usize,
}

impl Site {
    pub(crate) fn new(function: &'static str, column: &str) -> Self {
        Self { function, column: column.to_string(), first: 0 }
    }

    /// The error that a row (of the batch), or the whole column, is not what was expected.
    pub(crate) fn bad(
        &self,
        row: Option<usize>,
        found: impl Into<String>,
        expected: impl Into<String>,
    ) -> DataFusionError {
        external(Error::Column {
            place: self.function,
            column: self.column.clone(),
            row: row.map(|row| self.first + row),
            expected: expected.into(),
            found: found.into(),
        })
    }

    /// The library's error about `rows`, named as the column and row it came from.
    pub(crate) fn in_column(&self, error: Error, rows: &Embeddings<'_>) -> DataFusionError {
        match error {
            Error::Domain { quantity, index, expected, found, .. } if ["row", "rows", "weight"].contains(&quantity) => {
                let row = if quantity == "rows" { index / rows.dim.max(1) } else { index };
                let what = if quantity == "weight" { format!("weight {found}") } else { found };
                self.bad(Some(rows.row(row)), what, expected)
            }
            error => external(error),
        }
    }
}

/// An error of this crate in DataFusion's.
pub(crate) fn external(error: Error) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}

/// Elements of rows, one row after the other.
#[derive(Debug)]
pub(crate) enum Values<'a> {
    F16(Cow<'a, [f16]>),
    F32(Cow<'a, [f32]>),
    F64(Cow<'a, [f64]>),
}

/// The rows of a batch that are there, side by side.
#[derive(Debug)]
pub(crate) struct Embeddings<'a> {
    pub(crate) values: Values<'a>,
    /// Elements of a row; 0 where there is no row and the type does not tell.
    pub(crate) dim: usize,
    /// Rows of the batch, those that are NULL too.
    pub(crate) batch: usize,
    /// Numbers of the rows that are there, unless all are.
    pub(crate) present: Option<Vec<u32>>,
}

/// `$body` with `$view`, an `ArrayView2` of the elements of `$rows`.
macro_rules! with_rows {
    ($rows:expr, |$view:ident| $body:expr) => {
        match &$rows.values {
            $crate::sql::column::Values::F16(values) => {
                let $view = $crate::sql::column::view(values, $rows.dim);
                $body
            }
            $crate::sql::column::Values::F32(values) => {
                let $view = $crate::sql::column::view(values, $rows.dim);
                $body
            }
            $crate::sql::column::Values::F64(values) => {
                let $view = $crate::sql::column::view(values, $rows.dim);
                $body
            }
        }
    };
}
pub(crate) use with_rows;

/// (rows, dim).
pub(crate) fn view<T>(values: &[T], dim: usize) -> ArrayView2<'_, T> {
    let rows = values.len().checked_div(dim).unwrap_or(0);
    match ArrayView2::from_shape((rows, dim), values) {
        Ok(view) => view,
        Err(_) => unreachable!("rows of one length"),
    }
}

/// Whether this is a list of numbers that embeddings may be.
pub(crate) fn is_embedding(kind: &DataType) -> bool {
    let element = match kind {
        DataType::FixedSizeList(field, _) | DataType::List(field) | DataType::LargeList(field) => field.data_type(),
        _ => return false,
    };
    matches!(element, DataType::Float16 | DataType::Float32 | DataType::Float64)
}

/// Elements of a row where the type tells.
pub(crate) fn width(kind: &DataType) -> Option<usize> {
    match kind {
        DataType::FixedSizeList(_, width) => usize::try_from(*width).ok(),
        _ => None,
    }
}

/// Where a row begins among the elements, and how many it has.
type Span<'a> = Box<dyn Fn(usize) -> (usize, usize) + 'a>;

impl<'a> Embeddings<'a> {
    /// The rows of `array`, (batch, dim), but for those that are NULL there or in `also`; each of `dim` elements where that is known already (and whence).
    ///
    /// Nothing is copied where no row is NULL.
    ///
    /// # Errors
    /// [`Error::Column`] names the first row of another length or with an element that is NULL.
    pub(crate) fn new(
        site: &Site,
        array: &'a dyn Array,
        dim: Option<(usize, &str)>,
        also: Option<&NullBuffer>,
    ) -> Result<Self> {
        let batch = array.len();
        let nulls = NullBuffer::union(array.nulls(), also).filter(|nulls| nulls.null_count() > 0);
        let present: Option<Vec<u32>> =
            nulls.as_ref().map(|nulls| (0..batch).filter(|&row| nulls.is_valid(row)).map(|row| row as u32).collect());
        let count = present.as_ref().map_or(batch, Vec::len);
        let row = |at: usize| present.as_ref().map_or(at, |present| present[at] as usize);
        let (child, span): (&dyn Array, Span<'_>) = match array.data_type() {
            DataType::FixedSizeList(_, width) => {
                let (list, width) = (array.as_fixed_size_list(), *width as usize);
                let first = list.value_offset(0) as usize;
                (list.values(), Box::new(move |row| (first + row * width, width)))
            }
            DataType::List(_) => {
                let list = array.as_list::<i32>();
                (list.values(), Box::new(|row| (list.value_offsets()[row] as usize, list.value_length(row) as usize)))
            }
            DataType::LargeList(_) => {
                let list = array.as_list::<i64>();
                (list.values(), Box::new(|row| (list.value_offsets()[row] as usize, list.value_length(row) as usize)))
            }
            other => {
                return Err(site.bad(None, format!("values of type {other}"), "lists of Float16, Float32 or Float64"));
            }
        };
        let known = dim.map(|(dim, whence)| (dim, whence.to_string()));
        let first = || (count > 0).then(|| (span(row(0)).1, format!("as row {} has", site.first + row(0))));
        let (dim, whence) = known.or_else(first).unwrap_or((width(array.data_type()).unwrap_or(0), String::new()));
        if dim == 0 && count > 0 {
            return Err(site.bad(Some(row(0)), "0 elements", "1 or more"));
        }
        let mut apart = false;
        for at in 0..count {
            let (start, length) = span(row(at));
            if length != dim {
                return Err(site.bad(Some(row(at)), format!("{length} elements"), format!("{dim} {whence}")));
            }
            apart |= start != span(row(0)).0 + at * dim;
            if child.null_count() > 0
                && let Some(element) = (0..length).find(|element| child.is_null(start + element))
            {
                return Err(site.bad(Some(row(at)), format!("element {element} is NULL"), "a number"));
            }
        }
        let starts = || (0..count).map(|at| span(row(at)).0);
        let start = if count > 0 { span(row(0)).0 } else { 0 };
        let values = match child.data_type() {
            DataType::Float16 => {
                Values::F16(gather(child.as_primitive::<Float16Type>().values(), start, count, dim, apart.then(starts)))
            }
            DataType::Float32 => {
                Values::F32(gather(child.as_primitive::<Float32Type>().values(), start, count, dim, apart.then(starts)))
            }
            DataType::Float64 => {
                Values::F64(gather(child.as_primitive::<Float64Type>().values(), start, count, dim, apart.then(starts)))
            }
            other => {
                let found = format!("lists of {other}");
                return Err(site.bad(None, found, "lists of Float16, Float32 or Float64"));
            }
        };
        Ok(Self { values, dim, batch, present })
    }

    /// Rows that are there.
    pub(crate) fn len(&self) -> usize {
        self.present.as_ref().map_or(self.batch, Vec::len)
    }

    /// The number in the batch of row `at` of those that are there.
    pub(crate) fn row(&self, at: usize) -> usize {
        self.present.as_ref().map_or(at, |present| present[at] as usize)
    }

    /// One value a row of the batch from one a row that is there.
    pub(crate) fn spread<T>(&self, values: Vec<T>) -> Vec<Option<T>> {
        match &self.present {
            None => values.into_iter().map(Some).collect(),
            Some(present) => {
                let mut all: Vec<Option<T>> = (0..self.batch).map(|_| None).collect();
                present.iter().zip(values).for_each(|(&row, value)| all[row as usize] = Some(value));
                all
            }
        }
    }
}

/// `count` rows of `dim` elements from `start` on, or else those that start where `starts` says.
fn gather<T: Copy>(
    values: &[T],
    start: usize,
    count: usize,
    dim: usize,
    starts: Option<impl Iterator<Item = usize>>,
) -> Cow<'_, [T]> {
    match starts {
        None => Cow::Borrowed(&values[start..start + count * dim]),
        Some(starts) => {
            let mut gathered = Vec::with_capacity(count * dim);
            starts.for_each(|start| gathered.extend_from_slice(&values[start..start + dim]));
            Cow::Owned(gathered)
        }
    }
}

/// Codes of a batch: rows of bytes, NULL or of one width.
pub(crate) struct CodeRows<'a> {
    array: &'a dyn Array,
    /// Bytes of a code; None where there is no code and the type does not tell.
    pub(crate) width: Option<usize>,
}

impl<'a> CodeRows<'a> {
    /// Codes of `width` bytes each where that is known already (and whence).
    ///
    /// # Errors
    /// [`Error::Column`] names the first row of another width.
    pub(crate) fn new(site: &Site, array: &'a dyn Array, width: Option<(usize, &str)>) -> Result<Self> {
        let mut codes = Self { array, width: None };
        if !is_code(array.data_type()) {
            return Err(site.bad(None, format!("values of type {}", array.data_type()), "codes: FixedSizeBinary"));
        }
        let (mut expected, mut whence) = match width {
            Some((width, whence)) => (Some(width), whence.to_string()),
            None => (None, String::new()),
        };
        for row in 0..array.len() {
            let Some(code) = codes.get(row) else { continue };
            match expected {
                Some(width) if width != code.len() => {
                    let expected = format!("{} bits {whence}", 8 * width);
                    return Err(site.bad(Some(row), format!("a code of {} bits", 8 * code.len()), expected));
                }
                Some(_) => {}
                None => (expected, whence) = (Some(code.len()), format!("as row {} has", site.first + row)),
            }
            if matches!(array.data_type(), DataType::FixedSizeBinary(_)) {
                break;
            }
        }
        codes.width = expected;
        Ok(codes)
    }

    /// The code of a row, unless it is NULL.
    pub(crate) fn get(&self, row: usize) -> Option<&'a [u8]> {
        if self.array.is_null(row) {
            return None;
        }
        Some(match self.array.data_type() {
            DataType::FixedSizeBinary(_) => self.array.as_fixed_size_binary().value(row),
            DataType::Binary => self.array.as_binary::<i32>().value(row),
            DataType::LargeBinary => self.array.as_binary::<i64>().value(row),
            DataType::BinaryView => self.array.as_binary_view().value(row),
            _ => unreachable!("is_code said so"),
        })
    }
}

/// Whether this is a type that codes may have.
pub(crate) fn is_code(kind: &DataType) -> bool {
    matches!(kind, DataType::FixedSizeBinary(_) | DataType::Binary | DataType::LargeBinary | DataType::BinaryView)
}
