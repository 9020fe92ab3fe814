//! Sums over rows and log-densities of rows in extended precision: pairs of f32, or f64 where an adapter's is the faster.

mod rows;
mod sums;

use ndarray::{Array1, ArrayView2, Axis, Ix1, Ix2};
use rayon::prelude::*;

use self::rows::{RowForm, RowJob};
use self::sums::{Source, SumForm, add_left, tree};
use super::matmul::MatmulElement;
use crate::double_single::DoubleSingle;
use crate::gpu::{Arithmetic, Constant, Finding, Gpu, Kernel, block_on};
use crate::tensor::{Element, Storage, Tensor};
use crate::{Error, Result};

const WORKGROUP: u32 = 64;
/// Bytes to bind where a pass has no weights or scales.
const NOTHING: u64 = 16;

/// The arithmetic of `guard` (0: f64).
fn arithmetic_constants(guard: u32) -> Vec<(&'static str, Constant)> {
    let mut all = vec![("WORKGROUP", Constant::U32(WORKGROUP))];
    match guard {
        0 => all.push(("Real", Constant::Type("f64"))),
        _ => all.extend([("Real", Constant::Type("vec2f")), ("GUARD", Constant::U32(guard))]),
    }
    all
}

pub(crate) fn variants() -> Vec<(&'static Kernel, Vec<(&'static str, Constant)>)> {
    (0..3).flat_map(|guard| [rows::variants(guard), sums::variants(guard)]).flatten().collect()
}

const ZERO: Finding = Finding { quantity: "row", expected: "a row with a nonzero element", found: "zero" };
const NOT_FINITE: Finding = Finding { quantity: "row", expected: "finite elements", found: "not finite" };

/// The guard of this GPU's double-single arithmetic, or 0 for its f64.
fn guard(gpu: &Gpu, place: &'static str) -> Result<u32> {
    Ok(match gpu.arithmetic(place)? {
        (Arithmetic::F64, _) => 0,
        (Arithmetic::DoubleSingle, guard) => guard,
    })
}

/// The sum of each column of `values` (rows, columns) of f32 or f16, in extended precision.
///
/// * returns (columns), each within 1e-13 of the sum of magnitudes of the values from 1e-24 on; smaller ones keep 24 bits
///
/// # Errors
/// [`Error::Domain`] names a column with a sum that is not finite, or on a GPU beyond f32's largest;
/// [`Error::TooLarge`] where one row exceeds a binding; [`Error::Unsupported`] where neither arithmetic will do; the device's own errors.
pub fn column_sums_extended<T: MatmulElement<Sum = f32>>(values: &Tensor<T, Ix2>) -> Result<Array1<f64>> {
    block_on(column_sums_extended_async(values))
}

/// [`column_sums_extended`] where a thread must not block.
///
/// # Errors
/// As [`column_sums_extended`].
pub async fn column_sums_extended_async<T: MatmulElement<Sum = f32>>(values: &Tensor<T, Ix2>) -> Result<Array1<f64>> {
    match values.storage() {
        Storage::Host(view) => finite(host_sums(&view)),
        Storage::Gpu(gpu, buffer) => {
            let (rows, columns) = (values.shape()[0], values.shape()[1]);
            let source = Source { buffer, first: 0, rows, columns, form: SumForm::Values, half: T::NAME == "f16" };
            let left = tree(gpu, &source, None)?;
            finite(add_left(left, values.checks()).await?)
        }
    }
}

fn finite(sums: Array1<f64>) -> Result<Array1<f64>> {
    match sums.iter().position(|sum| !sum.is_finite()) {
        None => Ok(sums),
        Some(index) => Err(Error::Domain {
            place: "column_sums_extended",
            quantity: "column",
            index,
            expected: "a finite sum, on a GPU within 3.4e38",
            found: sums[index].to_string(),
        }),
    }
}

/// Blocks in f64, added as a binary tree.
fn host_sums<T: MatmulElement<Sum = f32>>(values: &ArrayView2<'_, T>) -> Array1<f64> {
    let mut parts: Vec<Array1<f64>> = values
        .axis_chunks_iter(Axis(0), 4096)
        .into_par_iter()
        .map(|rows| {
            let mut sums = Array1::zeros(rows.ncols());
            for row in rows.outer_iter() {
                sums.zip_mut_with(&row, |sum: &mut f64, value| *sum += f64::from(value.widen()));
            }
            sums
        })
        .collect();
    while parts.len() > 1 {
        let upper = parts.split_off(parts.len().div_ceil(2));
        parts.iter_mut().zip(&upper).for_each(|(part, other)| *part += other);
    }
    parts.pop().unwrap_or_else(|| Array1::zeros(values.ncols()))
}

/// The sums of `range` of the rows of a matrix on a GPU, each row divided by its length and times its weight, if there are any (one a row of the
/// range, finite and not negative).
pub(crate) async fn resultant<T: Element>(
    rows: &Tensor<T, Ix2>,
    range: std::ops::Range<usize>,
    weights: Option<&[f64]>,
) -> Result<Array1<f64>> {
    let place = "resultant";
    let Storage::Gpu(gpu, buffer) = rows.storage() else { unreachable!("only called for a GPU") };
    let columns = rows.shape()[1];
    let check = gpu.check(place, &[ZERO, NOT_FINITE])?;
    let scales = gpu.allocate(place, (range.len() * 16) as u64)?;
    // Weights over the largest, rounded to a power of two: f32 holds them, those too small for it count for nothing in f64 either.
    let largest = weights.into_iter().flatten().fold(0.0f64, |largest, &weight| largest.max(weight));
    let unit = if largest > 0.0 { 2f64.powi((largest.log2().floor() as i32).max(-1000)) } else { 1.0 };
    let weights = match weights {
        None => None,
        Some(weights) => {
            let pairs: Vec<DoubleSingle> = weights.iter().map(|&weight| (weight / unit).into()).collect();
            Some(gpu.upload(place, bytemuck::cast_slice(&pairs))?)
        }
    };
    let job = RowJob { place, form: RowForm::Scales, factors: weights.as_ref(), log_normalizer: 0.0, kappa: 0.0 };
    job.run(gpu, rows, buffer, range.clone(), &scales, check.view())?;
    let source = Source {
        buffer,
        first: range.start,
        rows: range.len(),
        columns,
        form: SumForm::UnitRows,
        half: T::NAME == "f16",
    };
    let left = tree(gpu, &source, Some(&scales))?;
    Ok(add_left(left, &super::inherit(&[&[check], rows.checks()])).await? * unit)
}

/// log_normalizer + kappa mean'x / |x| of each row x of a matrix on a GPU; `mean` (d) has length 1.
pub(crate) fn log_densities<T: Element>(
    rows: &Tensor<T, Ix2>,
    mean: &[f64],
    log_normalizer: f64,
    kappa: f64,
) -> Result<Tensor<DoubleSingle, Ix1>> {
    let place = "log_density";
    let Storage::Gpu(gpu, buffer) = rows.storage() else { unreachable!("only called for a GPU") };
    let count = rows.shape()[0];
    let pairs: Vec<DoubleSingle> = mean.iter().map(|&value| value.into()).collect();
    let mean = gpu.upload(place, bytemuck::cast_slice(&pairs))?;
    let check = gpu.check(place, &[ZERO, NOT_FINITE])?;
    let out = gpu.allocate(place, (count * 8) as u64)?;
    let job = RowJob { place, form: RowForm::Densities, factors: Some(&mean), log_normalizer, kappa };
    job.run(gpu, rows, buffer, 0..count, &out, check.view())?;
    Ok(Tensor::on_gpu(gpu, out, Ix1(count), super::inherit(&[&[check], rows.checks()])))
}
