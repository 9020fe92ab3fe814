//! Rows scaled to unit length.

use std::ops::Range;

use ndarray::{Array1, Array2, Axis, Ix1, Ix2, Zip};

use super::matmul::MatmulElement;
use crate::gpu::{Constant, Finding, Kernel, Needs, Params, View, params, shader};
use crate::tensor::{Element, Storage, Tensor};
use crate::{Error, Result};

params! {
    /// As in `shaders/normalize_rows.wgsl`.
    NormalizeRowsParams {
        rows: u32,
        columns: u32,
        rows_offset: u32,
        out_offset: u32,
        norms_offset: u32,
        first: u32,
        groups_x: u32,
        weights_offset: u32,
        weighted: u32,
        pad0: u32,
        pad1: u32,
        pad2: u32,
    }
}

static NORMALIZE_ROWS: Kernel = Kernel {
    name: "normalize_rows",
    sources: &[shader!("normalize_rows.wgsl")],
    needs: Needs::NONE,
    fields: NormalizeRowsParams::FIELDS,
    params_bytes: size_of::<NormalizeRowsParams>(),
};

const WORKGROUP: u32 = 128;

fn constants(half: bool, keep: bool) -> [(&'static str, Constant); 3] {
    [
        ("HALF", Constant::U32(half.into())),
        ("KEEP", Constant::U32(keep.into())),
        ("WORKGROUP", Constant::U32(WORKGROUP)),
    ]
}

pub(crate) fn variants() -> Vec<(&'static Kernel, Vec<(&'static str, Constant)>)> {
    [(false, false), (true, false), (false, true)]
        .map(|(half, keep)| (&NORMALIZE_ROWS, constants(half, keep).to_vec()))
        .to_vec()
}

const ZERO: Finding = Finding { quantity: "row", expected: "a row with a nonzero element", found: "zero" };
const NOT_FINITE: Finding = Finding { quantity: "row", expected: "finite elements", found: "not finite" };

/// Each row of `rows` (n, d) over its Euclidean norm, and the norms (n), in f32.
///
/// * `T`: f32 or f16. An element is within 2 eps of its own magnitude plus `eps log2(d)` (CPU: 1 eps); no norm overflows or underflows.
/// * `fallback` (n, d): what a zero row becomes; without it a zero row is an error.
///
/// # Errors
/// [`Error::Domain`] names the first row that is zero (below the smallest normal f32) or not finite, on a GPU at the wait; [`Error::Shape`].
pub fn normalize_rows<T: MatmulElement<Sum = f32>>(
    rows: &Tensor<T, Ix2>,
    fallback: Option<&Tensor<f32, Ix2>>,
) -> Result<(Tensor<f32, Ix2>, Tensor<f32, Ix1>)> {
    let place = "normalize_rows";
    if let Some(fallback) = fallback {
        rows.device().same(place, "fallback", fallback.device())?;
        if fallback.shape() != rows.shape() {
            let expected = format!("{:?}, that of the rows", rows.shape());
            return Err(Error::Shape { place, quantity: "fallback", expected, found: fallback.shape().to_vec() });
        }
    }
    let (count, columns) = (rows.shape()[0], rows.shape()[1]);
    match rows.storage() {
        Storage::Host(rows) => {
            let mut unit = match fallback.map(Tensor::storage) {
                Some(Storage::Host(fallback)) => fallback.to_owned(),
                _ => Array2::zeros((count, columns)),
            };
            let mut norms = Array1::<f64>::zeros(count);
            Zip::from(unit.axis_iter_mut(Axis(0))).and(rows.axis_iter(Axis(0))).and(&mut norms).par_for_each(
                |mut unit, row, norm| {
                    *norm = row.iter().map(|value| f64::from(value.widen()).powi(2)).sum::<f64>().sqrt();
                    if *norm >= f64::from(f32::MIN_POSITIVE) && norm.is_finite() {
                        unit.iter_mut()
                            .zip(row)
                            .for_each(|(out, value)| *out = (f64::from(value.widen()) / *norm) as f32);
                    }
                },
            );
            let bad = |norm: &f64| !norm.is_finite() || (*norm < f64::from(f32::MIN_POSITIVE) && fallback.is_none());
            if let Some(index) = norms.iter().position(bad) {
                let finding = if norms[index].is_finite() { ZERO } else { NOT_FINITE };
                let Finding { quantity, expected, found } = finding;
                return Err(Error::Domain { place, quantity, index, expected, found: found.into() });
            }
            Ok((Tensor::host(unit), Tensor::host(norms.mapv(|norm| norm as f32))))
        }
        Storage::Gpu(..) => on_gpu(rows, 0..count, None, fallback),
    }
}

/// [`normalize_rows()`] of some of the rows of a tensor on a GPU; errors count rows from the first of all. With `weights`, one a row of the
/// range, rows of weight 0 are not looked at and give zeros.
pub(crate) fn on_gpu<T: Element>(
    rows: &Tensor<T, Ix2>,
    range: Range<usize>,
    weights: Option<&Tensor<f32, Ix1>>,
    fallback: Option<&Tensor<f32, Ix2>>,
) -> Result<(Tensor<f32, Ix2>, Tensor<f32, Ix1>)> {
    let number = range.start;
    on_gpu_from(rows, range, number, weights, fallback)
}

/// [`on_gpu`] for rows whose first is number `number` of something larger.
pub(crate) fn on_gpu_from<T: Element>(
    rows: &Tensor<T, Ix2>,
    range: Range<usize>,
    number: usize,
    weights: Option<&Tensor<f32, Ix1>>,
    fallback: Option<&Tensor<f32, Ix2>>,
) -> Result<(Tensor<f32, Ix2>, Tensor<f32, Ix1>)> {
    let place = "normalize_rows";
    let Storage::Gpu(gpu, buffer) = rows.storage() else { unreachable!("only called for a GPU") };
    let (count, columns) = (range.len(), rows.shape()[1]);
    let half = T::NAME == "f16";
    let element = if half { 2 } else { 4 };
    let unit = gpu.allocate(place, (count * columns * 4) as u64)?;
    let norms = gpu.allocate(place, (count * 4) as u64)?;
    if let Some(Storage::Gpu(_, fallback)) = fallback.map(Tensor::storage) {
        gpu.copy(fallback.view(), &unit, 0);
    }
    // Something to bind where there are no weights.
    let weights_buffer = match weights.map(Tensor::storage) {
        Some(Storage::Gpu(_, weights)) => weights.as_ref(),
        _ => buffer.as_ref(),
    };
    let check = gpu.check(place, &[ZERO, NOT_FINITE])?;
    let step = gpu.rows_per_window(place, columns.max(1) * 4)?;
    for first in (0..count).step_by(step) {
        let part = step.min(count - first);
        let window = |buffer, first: usize, stride: usize| {
            View::window(buffer, (first * stride) as u64, (part * stride) as u64, gpu.binding_alignment())
        };
        let (values, values_shift) = window(buffer, range.start + first, columns * element);
        let (out, out_shift) = window(&unit, first, columns * 4);
        let (lengths, lengths_shift) = window(&norms, first, 4);
        let (row_weights, weights_shift) =
            if weights.is_some() { window(weights_buffer, first, 4) } else { (values, 0) };
        let grid = gpu.grid(place, part as u64)?;
        let params = NormalizeRowsParams {
            rows: part as u32,
            columns: columns as u32,
            rows_offset: values_shift as u32 / element as u32,
            out_offset: out_shift as u32 / 4,
            norms_offset: lengths_shift as u32 / 4,
            first: (number + first) as u32,
            groups_x: grid[0],
            weights_offset: weights_shift as u32 / 4,
            weighted: weights.is_some().into(),
            pad0: 0,
            pad1: 0,
            pad2: 0,
        };
        let constants = constants(half, fallback.is_some());
        gpu.run(&NORMALIZE_ROWS, &constants, &params, &[values, out, lengths, check.view(), row_weights], grid)?;
    }
    let checks = super::inherit(&[&[check], rows.checks()]);
    let norms = Tensor::on_gpu(gpu, norms, Ix1(count), checks.clone());
    Ok((Tensor::on_gpu(gpu, unit, Ix2(count, columns), checks), norms))
}
