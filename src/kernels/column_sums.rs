//! Sums over the rows of a matrix, by a tree.

use ndarray::{Array1, Axis, Ix1, Ix2};
use rayon::prelude::*;

use crate::gpu::{Buffer, Constant, Gpu, Kernel, Needs, Params, View, params, shader};
use crate::tensor::{Storage, Tensor};
use crate::{Error, Result};

params! {
    /// As in `shaders/column_sums.wgsl`.
    ColumnSumsParams {
        rows: u32,
        columns: u32,
        values_offset: u32,
        out_offset: u32,
        keep: f32,
        add: f32,
        groups_x: u32,
        blocks: u32,
    }
}

static COLUMN_SUMS: Kernel = Kernel {
    name: "column_sums",
    sources: &[shader!("column_sums.wgsl")],
    needs: Needs::NONE,
    fields: ColumnSumsParams::FIELDS,
    params_bytes: size_of::<ColumnSumsParams>(),
};

const WORKGROUP: u32 = 64;
/// Rows that one pass turns into one.
const ROWS: usize = 256;

fn constants() -> [(&'static str, Constant); 2] {
    [("WORKGROUP", Constant::U32(WORKGROUP)), ("ROWS", Constant::U32(ROWS as u32))]
}

pub(crate) fn variants() -> Vec<(&'static Kernel, Vec<(&'static str, Constant)>)> {
    vec![(&COLUMN_SUMS, constants().to_vec())]
}

/// The sum of each column of `values` (rows, columns).
///
/// The error of a sum is at most `32 ceil(log_256 rows) * 2^-24 * sum |values|`: blocks of 16 rows of blocks of 16, then again. On the CPU at most
/// `2^-24` of the sum's own magnitude more than that of f64 sums.
///
/// # Errors
/// [`Error::TooLarge`] where one row of several exceeds a binding; the device's own errors.
pub fn column_sums(values: &Tensor<f32, Ix2>) -> Result<Tensor<f32, Ix1>> {
    match values.storage() {
        Storage::Host(values) => {
            let columns = values.ncols();
            let sums = values
                .axis_chunks_iter(Axis(0), 4096)
                .into_par_iter()
                .map(|rows| {
                    let mut sums = vec![0.0f64; columns];
                    for row in rows.outer_iter() {
                        sums.iter_mut().zip(row).for_each(|(sum, &value)| *sum += f64::from(value));
                    }
                    sums
                })
                .reduce(
                    || vec![0.0; columns],
                    |mut a, b| {
                        a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
                        a
                    },
                );
            Ok(Tensor::host(sums.into_iter().map(|sum| sum as f32).collect::<Array1<f32>>()))
        }
        Storage::Gpu(gpu, buffer) => {
            let (rows, columns) = (values.shape()[0], values.shape()[1]);
            let out = gpu.allocate("column_sums", (columns * 4) as u64)?;
            tree(gpu, buffer, rows, columns, &out, 0.0, 1.0)?;
            Ok(Tensor::on_gpu(gpu, out, Ix1(columns), values.checks().to_vec()))
        }
    }
}

/// The sums of blocks of 256 rows of f32 `values` on a GPU, (ceil(rows / 256), columns): the last few terms are the host's to add, in f64.
pub(crate) fn block_sums(values: &Tensor<f32, Ix2>) -> Result<Tensor<f32, Ix2>> {
    let (rows, columns) = (values.shape()[0], values.shape()[1]);
    let blocks = rows.div_ceil(ROWS).max(1);
    match values.storage() {
        Storage::Gpu(gpu, buffer) => {
            let out = gpu.allocate("column_sums", (blocks * columns * 4) as u64)?;
            pass(gpu, buffer, rows, columns, &out, 0.0, 1.0)?;
            Ok(Tensor::on_gpu(gpu, out, Ix2(blocks, columns), values.checks().to_vec()))
        }
        Storage::Host(_) => unreachable!("the CPU sums in f64 itself"),
    }
}

/// keep * `old` + add * `new`, elementwise, on a GPU.
pub(crate) fn blend(old: &Tensor<f32, Ix2>, keep: f32, new: &Tensor<f32, Ix2>, add: f32) -> Result<Tensor<f32, Ix2>> {
    match (old.storage(), new.storage()) {
        (Storage::Gpu(gpu, old_buffer), Storage::Gpu(_, new_buffer)) => {
            let out = gpu.allocate("blend", old_buffer.bytes())?;
            gpu.copy(old_buffer.view(), &out, 0);
            tree(gpu, new_buffer, 1, new.len(), &out, keep, add)?;
            Ok(Tensor::on_gpu(gpu, out, old.raw_dim(), super::inherit(&[old.checks(), new.checks()])))
        }
        _ => unreachable!("the CPU blends in its own loop"),
    }
}

/// Records out = keep * out + add * (the sum over the rows of `values`), pass after pass.
pub(crate) fn tree(
    gpu: &Gpu,
    values: &Buffer,
    rows: usize,
    columns: usize,
    out: &Buffer,
    keep: f32,
    add: f32,
) -> Result<()> {
    if columns == 0 {
        return Ok(());
    }
    let blocks = rows.div_ceil(ROWS).max(1);
    if blocks == 1 {
        return pass(gpu, values, rows, columns, out, keep, add);
    }
    let partial = gpu.allocate("column_sums", (blocks * columns * 4) as u64)?;
    pass(gpu, values, rows, columns, &partial, 0.0, 1.0)?;
    tree(gpu, &partial, blocks, columns, out, keep, add)
}

fn pass(gpu: &Gpu, values: &Buffer, rows: usize, columns: usize, out: &Buffer, keep: f32, add: f32) -> Result<()> {
    let alignment = gpu.binding_alignment();
    let limit = (gpu.max_binding() - alignment) as usize;
    let fitting = limit / (columns * 4);
    if fitting == 0 && rows == 1 {
        return one_row(gpu, values, columns, out, keep, add);
    }
    if fitting == 0 {
        return Err(Error::TooLarge {
            place: "column_sums",
            quantity: "one row",
            needed: (columns * 4) as u64,
            limit: limit as u64,
            device: gpu.to_string(),
        });
    }
    // Whole blocks a window, or a part of one block that divides it.
    let step = if fitting >= ROWS { fitting / ROWS * ROWS } else { 1 << fitting.ilog2() };
    for first in (0..rows.max(1)).step_by(step) {
        let count = step.min(rows - first);
        let blocks = count.div_ceil(ROWS).max(1);
        let (values, values_shift) =
            View::window(values, (first * columns * 4) as u64, (count.max(1) * columns * 4) as u64, alignment);
        let (out, out_shift) =
            View::window(out, (first / ROWS * columns * 4) as u64, (blocks * columns * 4) as u64, alignment);
        let grid = gpu.grid("column_sums", ((blocks * columns) as u64).div_ceil(u64::from(WORKGROUP)))?;
        let params = ColumnSumsParams {
            rows: count as u32,
            columns: columns as u32,
            values_offset: values_shift as u32 / 4,
            out_offset: out_shift as u32 / 4,
            // The later parts of a block add to its first.
            keep: if first % ROWS == 0 { keep } else { 1.0 },
            add,
            groups_x: grid[0],
            blocks: blocks as u32,
        };
        gpu.run(&COLUMN_SUMS, &constants(), &params, &[values, out], grid)?;
    }
    Ok(())
}

/// The same for one row that is longer than a binding: windows of columns.
fn one_row(gpu: &Gpu, values: &Buffer, columns: usize, out: &Buffer, keep: f32, add: f32) -> Result<()> {
    let alignment = gpu.binding_alignment();
    let step = ((gpu.max_binding() - alignment) / 4) as usize;
    for first in (0..columns).step_by(step) {
        let count = step.min(columns - first);
        let window = |buffer| View::window(buffer, (first * 4) as u64, (count * 4) as u64, alignment);
        let ((values, values_shift), (out, out_shift)) = (window(values), window(out));
        let grid = gpu.grid("column_sums", (count as u64).div_ceil(u64::from(WORKGROUP)))?;
        let params = ColumnSumsParams {
            rows: 1,
            columns: count as u32,
            values_offset: values_shift as u32 / 4,
            out_offset: out_shift as u32 / 4,
            keep,
            add,
            groups_x: grid[0],
            blocks: 1,
        };
        gpu.run(&COLUMN_SUMS, &constants(), &params, &[values, out], grid)?;
    }
    Ok(())
}
