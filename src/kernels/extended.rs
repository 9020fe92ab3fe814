//! Sums over rows and log-densities of rows in extended precision: pairs of f32, or f64 where an adapter's is the faster.

use ndarray::{Array1, Array2, ArrayView2, Axis, Ix1, Ix2};
use rayon::prelude::*;

use super::matmul::MatmulElement;
use crate::double_single::DoubleSingle;
use crate::gpu::{Arithmetic, Buffer, Constant, Finding, Gpu, Kernel, Needs, Params, View, block_on, params, shader};
use crate::tensor::{Element, Storage, Tensor};
use crate::{Error, Result};

params! {
    /// As in `shaders/extended/rows.wgsl`.
    ExtendedRowsParams {
        zero: u32,
        rows: u32,
        columns: u32,
        rows_offset: u32,
        out_offset: u32,
        first: u32,
        groups_x: u32,
        factors_offset: u32,
        weighted: u32,
        pad: u32,
        log_normalizer: [f32; 2],
        kappa: [f32; 2],
    }
}

params! {
    /// As in `shaders/extended/sums.wgsl`.
    ExtendedSumsParams {
        zero: u32,
        rows: u32,
        columns: u32,
        values_offset: u32,
        scales_offset: u32,
        out_offset: u32,
        add: u32,
        groups_x: u32,
    }
}

macro_rules! kernels {
    ($($kernel:ident, $name:literal, $file:literal, $params:ident, f64: $f64:literal, $($source:literal),*;)*) => { $(
        static $kernel: Kernel = Kernel {
            name: $name,
            sources: &[shader!($file), $(shader!($source)),*],
            needs: Needs { f64: $f64, ..Needs::NONE },
            fields: $params::FIELDS,
            params_bytes: size_of::<$params>(),
        };
    )* };
}
kernels! {
    ROWS, "extended_rows", "extended/rows.wgsl", ExtendedRowsParams, f64: false,
        "shared/real_pairs.wgsl", "shared/double_single.wgsl";
    ROWS_F64, "extended_rows_f64", "extended/rows.wgsl", ExtendedRowsParams, f64: true,
        "shared/real_f64.wgsl", "shared/stored_pairs.wgsl";
    SUMS, "extended_sums", "extended/sums.wgsl", ExtendedSumsParams, f64: false,
        "shared/real_pairs.wgsl", "shared/double_single.wgsl";
    SUMS_F64, "extended_sums_f64", "extended/sums.wgsl", ExtendedSumsParams, f64: true,
        "shared/real_f64.wgsl", "shared/stored_pairs.wgsl";
}

const WORKGROUP: u32 = 64;
/// Rows that one pass turns into one.
const BLOCK: usize = 256;
/// Rows of sums that are left for the host to add, in f64.
const LEFT: usize = 64;

/// Bytes to bind where a pass has no weights or scales.
const NOTHING: u64 = 16;

/// What a pass over rows makes of each.
#[derive(Clone, Copy, PartialEq)]
enum RowForm {
    Scales,
    Densities,
}

/// What a pass of sums adds.
#[derive(Clone, Copy, PartialEq)]
enum SumForm {
    Values,
    UnitRows,
    Pairs,
}

/// The arithmetic of `guard` (0: f64).
fn arithmetic_constants(guard: u32) -> Vec<(&'static str, Constant)> {
    let mut all = vec![("WORKGROUP", Constant::U32(WORKGROUP))];
    match guard {
        0 => all.push(("Real", Constant::Type("f64"))),
        _ => all.extend([("Real", Constant::Type("vec2f")), ("GUARD", Constant::U32(guard))]),
    }
    all
}

fn row_constants(form: RowForm, half: bool, guard: u32) -> Vec<(&'static str, Constant)> {
    let mut all = arithmetic_constants(guard);
    all.extend([("SCALES", Constant::Option(0)), ("DENSITIES", Constant::Option(1))]);
    all.push(("FORM", Constant::Choice(["SCALES", "DENSITIES"][form as usize])));
    all.push(("HALF", Constant::U32(half.into())));
    all
}

fn sum_constants(form: SumForm, half: bool, guard: u32) -> Vec<(&'static str, Constant)> {
    let mut all = arithmetic_constants(guard);
    all.extend([("VALUES", Constant::Option(0)), ("UNIT_ROWS", Constant::Option(1)), ("PAIRS", Constant::Option(2))]);
    all.push(("FORM", Constant::Choice(["VALUES", "UNIT_ROWS", "PAIRS"][form as usize])));
    all.push(("HALF", Constant::U32(half.into())));
    all.push(("ROWS", Constant::U32(BLOCK as u32)));
    all
}

pub(crate) fn variants() -> Vec<(&'static Kernel, Vec<(&'static str, Constant)>)> {
    let mut all: Vec<(&'static Kernel, _)> = Vec::new();
    for guard in 0..3 {
        let (rows, sums) = if guard == 0 { (&ROWS_F64, &SUMS_F64) } else { (&ROWS, &SUMS) };
        for half in [false, true] {
            for form in [RowForm::Scales, RowForm::Densities] {
                all.push((rows, row_constants(form, half, guard)));
            }
            for form in [SumForm::Values, SumForm::UnitRows] {
                all.push((sums, sum_constants(form, half, guard)));
            }
        }
        all.push((sums, sum_constants(SumForm::Pairs, false, guard)));
    }
    all
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

/// A pass over rows.
struct RowJob<'a> {
    place: &'static str,
    form: RowForm,
    /// Weights (rows), or the mean direction (columns).
    factors: Option<&'a Buffer>,
    log_normalizer: f64,
    kappa: f64,
}

impl RowJob<'_> {
    fn run<T: Element>(
        &self,
        gpu: &Gpu,
        rows: &Tensor<T, Ix2>,
        buffer: &Buffer,
        range: std::ops::Range<usize>,
        out: &Buffer,
        status: View<'_>,
    ) -> Result<()> {
        let (count, columns) = (range.len(), rows.shape()[1]);
        let half = T::NAME == "f16";
        let element = size_of::<T>();
        let guard = guard(gpu, self.place)?;
        let kernel = if guard == 0 { &ROWS_F64 } else { &ROWS };
        let bytes_out = if self.form == RowForm::Scales { 16 } else { 8 };
        let pair = |value: f64| {
            let DoubleSingle { high, low } = value.into();
            [high, low]
        };
        let nothing = gpu.allocate(self.place, NOTHING)?;
        // The mean direction is bound whole.
        let least = if self.form == RowForm::Densities { columns * 8 } else { bytes_out };
        let step = gpu.rows_per_window(self.place, (columns * element).max(least))?;
        for first in (0..count).step_by(step) {
            let part = step.min(count - first);
            let window = |buffer, first: usize, stride: usize| {
                View::window(buffer, (first * stride) as u64, (part * stride) as u64, gpu.binding_alignment())
            };
            let (values, values_shift) = window(buffer, range.start + first, columns * element);
            let (out, out_shift) = window(out, first, bytes_out);
            let (factors, factors_shift) = match (self.factors, self.form) {
                (Some(weights), RowForm::Scales) => window(weights, first, 8),
                (Some(mean), RowForm::Densities) => (View { buffer: mean, offset: 0, bytes: columns as u64 * 8 }, 0),
                (None, _) => (nothing.view(), 0),
            };
            let grid = gpu.grid(self.place, part as u64)?;
            let params = ExtendedRowsParams {
                zero: 0,
                rows: part as u32,
                columns: columns as u32,
                rows_offset: values_shift as u32 / element as u32,
                out_offset: (out_shift / bytes_out as u64) as u32,
                first: (range.start + first) as u32,
                groups_x: grid[0],
                factors_offset: factors_shift as u32 / 8,
                weighted: (self.factors.is_some() && self.form == RowForm::Scales).into(),
                pad: 0,
                log_normalizer: pair(self.log_normalizer),
                kappa: pair(self.kappa),
            };
            let constants = row_constants(self.form, half, guard);
            gpu.run(kernel, &constants, &params, &[values, factors, out, status], grid)?;
        }
        Ok(())
    }
}

/// Rows to add.
struct Source<'a> {
    buffer: &'a Buffer,
    first: usize,
    rows: usize,
    columns: usize,
    form: SumForm,
    half: bool,
}

/// Pass after pass, until at most [`LEFT`] rows of sums remain.
fn tree(gpu: &Gpu, source: &Source<'_>, scales: Option<&Buffer>) -> Result<Tensor<DoubleSingle, Ix2>> {
    let mut sums = pass(gpu, source, scales)?;
    while sums.shape()[0] > LEFT {
        let (rows, columns) = (sums.shape()[0], sums.shape()[1]);
        let Storage::Gpu(_, buffer) = sums.storage() else { unreachable!("a pass leaves it on the GPU") };
        let pairs = Source { buffer, first: 0, rows, columns, form: SumForm::Pairs, half: false };
        sums = pass(gpu, &pairs, None)?;
    }
    Ok(sums)
}

fn pass(gpu: &Gpu, source: &Source<'_>, scales: Option<&Buffer>) -> Result<Tensor<DoubleSingle, Ix2>> {
    let place = "column_sums";
    let guard = guard(gpu, place)?;
    let kernel = if guard == 0 { &SUMS_F64 } else { &SUMS };
    let constants = sum_constants(source.form, source.half, guard);
    let &Source { buffer, first: origin, rows, columns, form, half } = source;
    let blocks = rows.div_ceil(BLOCK);
    if columns == 0 {
        return Ok(Tensor::on_gpu(gpu, gpu.allocate(place, NOTHING)?, Ix2(blocks, 0), Vec::new()));
    }
    let out = gpu.allocate(place, (blocks * columns * 8) as u64)?;
    let nothing = gpu.allocate(place, NOTHING)?;
    let element = match (form, half) {
        (SumForm::Pairs, _) => 8,
        (_, true) => 2,
        (_, false) => 4,
    };
    let row_bytes = columns * element;
    // The output of one block must fit as well: at a sixteenth of a window of rows it does, but for the fewest.
    let fitting = gpu.rows_per_window(place, row_bytes.max(columns * 8))?;
    let step = if fitting >= BLOCK { fitting / BLOCK * BLOCK } else { 1 << fitting.ilog2() };
    for first in (0..rows).step_by(step) {
        let part = step.min(rows - first);
        let window = |buffer, first: usize, count: usize, stride: usize| {
            View::window(buffer, (first * stride) as u64, (count * stride) as u64, gpu.binding_alignment())
        };
        let (values, values_shift) = window(buffer, origin + first, part, row_bytes);
        let (out, out_shift) = window(&out, first / BLOCK, part.div_ceil(BLOCK), columns * 8);
        let (scales, scales_shift) = match scales {
            Some(scales) => window(scales, first, part, 16),
            None => (nothing.view(), 0),
        };
        let grid = gpu.grid(place, ((part.div_ceil(BLOCK) * columns) as u64).div_ceil(u64::from(WORKGROUP)))?;
        let params = ExtendedSumsParams {
            zero: 0,
            rows: part as u32,
            columns: columns as u32,
            values_offset: (values_shift / element as u64) as u32,
            scales_offset: scales_shift as u32 / 16,
            out_offset: out_shift as u32 / 8,
            // The later parts of a block add to its first.
            add: (first % BLOCK != 0).into(),
            groups_x: grid[0],
        };
        gpu.run(kernel, &constants, &params, &[values, scales, out], grid)?;
    }
    Ok(Tensor::on_gpu(gpu, out, Ix2(blocks, columns), Vec::new()))
}

/// The last sums, on the host.
async fn add_left(
    left: Tensor<DoubleSingle, Ix2>,
    checks: &[std::sync::Arc<crate::gpu::Check>],
) -> Result<Array1<f64>> {
    let left: Array2<DoubleSingle> = left.checked(checks).to_array_async().await?;
    let mut sums = Array1::zeros(left.ncols());
    for row in left.outer_iter() {
        sums.zip_mut_with(&row, |sum: &mut f64, part| *sum += part.to_f64());
    }
    Ok(sums)
}
