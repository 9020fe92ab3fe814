//! Rows of floating-point numbers in a file: a run of rows at a time, checked as they come.

use std::io;
use std::path::Path;

use half::f16;
use half::slice::HalfFloatSliceExt;
use ndarray::{Array2, ArrayView1, ArrayView2, ArrayViewMut2, s};
use orthant::{Error, Result};

use super::RawArray;
use super::array::Dtype;
use crate::cli::complaint::{bad, reason};

/// What one read of the file asks for.
const PIECE_BYTES: usize = 1 << 20;

/// An element type that rows are read as.
pub trait Scalar: bytemuck::Pod + ndarray::NdFloat {
    const DTYPE: Dtype;
    fn convert_f16(from: &[f16], into: &mut [Self]);
    fn from_f64(x: f64) -> Self;
    fn wide(self) -> f64;
}

impl Scalar for f32 {
    const DTYPE: Dtype = Dtype::F32;
    fn convert_f16(from: &[f16], into: &mut [f32]) {
        from.convert_to_f32_slice(into);
    }
    fn from_f64(x: f64) -> f32 {
        x as f32
    }
    fn wide(self) -> f64 {
        f64::from(self)
    }
}

impl Scalar for f64 {
    const DTYPE: Dtype = Dtype::F64;
    fn convert_f16(from: &[f16], into: &mut [f64]) {
        from.convert_to_f64_slice(into);
    }
    fn from_f64(x: f64) -> f64 {
        x
    }
    fn wide(self) -> f64 {
        self
    }
}

/// A two-dimensional array of f16, f32 or f64 in a file.
pub struct Matrix {
    raw: RawArray,
    rows: usize,
    dim: usize,
}

impl Matrix {
    pub(super) fn new(raw: RawArray, rows: usize, dim: usize) -> Matrix {
        Matrix { raw, rows, dim }
    }

    pub fn path(&self) -> &Path {
        &self.raw.path
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Whether the file's elements are f16.
    pub fn is_f16(&self) -> bool {
        self.raw.dtype == Dtype::F16
    }

    /// Whether the file's elements carry more than f32 does.
    pub fn is_f64(&self) -> bool {
        self.raw.dtype == Dtype::F64
    }

    /// Zeros for all rows, or a complaint where memory has no room for them.
    pub fn room<T: bytemuck::Pod>(&self) -> anyhow::Result<Array2<T>> {
        let mut all = Vec::new();
        all.try_reserve_exact(self.rows * self.dim).map_err(|_| {
            bad(self.path().display(), format!("{} rows of {} do not fit into memory", self.rows, self.dim))
        })?;
        all.resize(self.rows * self.dim, T::zeroed());
        Ok(Array2::from_shape_vec((self.rows, self.dim), all)?)
    }

    /// All rows as f32 (f64 rounded), every one finite.
    pub fn read_all(&self) -> anyhow::Result<Array2<f32>> {
        let mut all = self.room::<f32>()?;
        let mut view = all.view_mut();
        let read = if self.raw.fortran { self.read_columns(0, &mut view) } else { self.read_pieces(0, &mut view) };
        read.map_err(|failure| bad(self.path().display(), reason(&failure)))?;
        check_finite(0, all.view()).map_err(|problem| bad(self.path().display(), problem))?;
        Ok(all)
    }

    /// Rows `first..` into all of `into`, every one finite and not zero. f64 rows that f32 has no room for are scaled:
    /// what counts of a row is its direction.
    pub fn read_rows<T: Scalar>(&self, first: usize, mut into: ArrayViewMut2<'_, T>) -> Result<()> {
        if self.raw.dtype == Dtype::F64 && T::DTYPE == Dtype::F32 {
            let step = if self.raw.fortran { into.nrows() } else { (PIECE_BYTES / (8 * self.dim)).max(1) };
            let rows = into.nrows();
            for start in (0..rows).step_by(step.max(1)) {
                let mut piece = into.slice_mut(s![start..(start + step).min(rows), ..]);
                let mut wide = Array2::<f64>::zeros(piece.raw_dim());
                self.read_rows(first + start, wide.view_mut())?;
                for (mut row, wide) in piece.outer_iter_mut().zip(wide.outer_iter()) {
                    let largest = wide.fold(0.0_f64, |most, x| most.max(x.abs()));
                    // By a power of two, which changes no digit.
                    let power = f64::from_bits(largest.to_bits() & 0x7ff0_0000_0000_0000);
                    let scale = if (1e-15..=1e15).contains(&largest) { 1.0 } else { power.max(f64::MIN_POSITIVE) };
                    row.zip_mut_with(&wide, |to, x| *to = T::from_f64(x / scale));
                }
            }
            return Ok(());
        }
        let error = |reason: String| Error::Io { what: self.path().display().to_string(), reason };
        let read =
            if self.raw.fortran { self.read_columns(first, &mut into) } else { self.read_pieces(first, &mut into) };
        read.map_err(|failure| error(reason(&failure)))?;
        check_rows(first, into.view()).map_err(error)
    }

    fn read_pieces<T: Scalar>(&self, first: usize, into: &mut ArrayViewMut2<'_, T>) -> io::Result<()> {
        let step = (PIECE_BYTES / (self.dim * self.element_bytes())).max(1);
        let rows = into.nrows();
        for start in (0..rows).step_by(step) {
            let mut piece = into.slice_mut(s![start..(start + step).min(rows), ..]);
            let at = (first + start) * self.dim;
            match piece.as_slice_mut() {
                Some(slice) => self.read_elements(at, slice)?,
                None => {
                    let mut own = vec![T::zero(); piece.len()];
                    self.read_elements(at, &mut own)?;
                    piece.iter_mut().zip(&own).for_each(|(to, from)| *to = *from);
                }
            }
        }
        Ok(())
    }

    fn read_columns<T: Scalar>(&self, first: usize, into: &mut ArrayViewMut2<'_, T>) -> io::Result<()> {
        let mut own = vec![T::zero(); into.nrows()];
        for (j, mut column) in into.columns_mut().into_iter().enumerate() {
            self.read_elements(j * self.rows + first, &mut own)?;
            column.iter_mut().zip(&own).for_each(|(to, from)| *to = *from);
        }
        Ok(())
    }

    /// Elements `at..` in the file's own order.
    fn read_elements<T: Scalar>(&self, at: usize, into: &mut [T]) -> io::Result<()> {
        let bytes = self.element_bytes();
        let at = at as u64 * bytes as u64;
        if self.raw.dtype == T::DTYPE && !self.raw.swapped {
            return self.raw.body.read_at(at, bytemuck::cast_slice_mut(into));
        }
        let mut aligned = vec![0u64; (into.len() * bytes).div_ceil(8)];
        let raw = &mut bytemuck::cast_slice_mut::<u64, u8>(&mut aligned)[..into.len() * bytes];
        self.raw.body.read_at(at, raw)?;
        if self.raw.swapped {
            raw.chunks_exact_mut(bytes).for_each(<[u8]>::reverse);
        }
        match self.raw.dtype {
            Dtype::F16 => T::convert_f16(bytemuck::cast_slice(raw), into),
            Dtype::F32 => convert::<f32, T>(bytemuck::cast_slice(raw), into),
            _ => convert::<f64, T>(bytemuck::cast_slice(raw), into),
        }
        Ok(())
    }

    fn element_bytes(&self) -> usize {
        self.raw.dtype.bytes().unwrap_or(1)
    }
}

fn convert<S: Scalar, T: Scalar>(from: &[S], into: &mut [T]) {
    into.iter_mut().zip(from).for_each(|(to, from)| *to = T::from_f64(from.wide()));
}

/// Says which row, counted from `first`, is not finite or is zero.
fn check_rows<T: Scalar>(first: usize, rows: ArrayView2<'_, T>) -> std::result::Result<(), String> {
    for (i, row) in rows.outer_iter().enumerate() {
        // One sum decides nearly always: not finite if an element is not, zero only if all are.
        let sum = row.fold(T::zero(), |sum, x| sum + x.abs());
        if sum.is_finite() && sum > T::zero() {
            continue;
        }
        let row_number = first + i;
        not_finite(row_number, row)?;
        if row.iter().all(|x| x.is_zero()) {
            return Err(format!("row {row_number} is zero, which has no direction (rows count from 0)"));
        }
    }
    Ok(())
}

/// Says which row, counted from `first`, is not finite.
fn check_finite<T: Scalar>(first: usize, rows: ArrayView2<'_, T>) -> std::result::Result<(), String> {
    rows.outer_iter().enumerate().try_for_each(|(i, row)| not_finite(first + i, row))
}

fn not_finite<T: Scalar>(row_number: usize, row: ArrayView1<'_, T>) -> std::result::Result<(), String> {
    match row.iter().enumerate().find(|(_, x)| !x.is_finite()) {
        None => Ok(()),
        Some((j, x)) => Err(format!("row {row_number} is not finite: element {j} is {x} (both count from 0)")),
    }
}
