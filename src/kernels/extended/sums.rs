//! The passes that add rows.

use ndarray::{Array1, Array2, Ix2};

use super::{NOTHING, WORKGROUP, arithmetic_constants, guard};
use crate::Result;
use crate::double_single::DoubleSingle;
use crate::gpu::{Buffer, Check, Constant, Gpu, Kernel, Needs, Params, View, params, shader};
use crate::tensor::{Storage, Tensor};

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

static SUMS: Kernel = Kernel {
    name: "extended_sums",
    sources: &[shader!("extended/sums.wgsl"), shader!("shared/real_pairs.wgsl"), shader!("shared/double_single.wgsl")],
    needs: Needs::NONE,
    fields: ExtendedSumsParams::FIELDS,
    params_bytes: size_of::<ExtendedSumsParams>(),
};

static SUMS_F64: Kernel = Kernel {
    name: "extended_sums_f64",
    sources: &[shader!("extended/sums.wgsl"), shader!("shared/real_f64.wgsl"), shader!("shared/stored_pairs.wgsl")],
    needs: Needs { f64: true, ..Needs::NONE },
    fields: ExtendedSumsParams::FIELDS,
    params_bytes: size_of::<ExtendedSumsParams>(),
};

/// Rows that one pass turns into one.
const BLOCK: usize = 256;
/// Rows of sums that are left for the host to add, in f64.
const LEFT: usize = 64;

/// What a pass of sums adds.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum SumForm {
    Values,
    UnitRows,
    Pairs,
}

fn constants(form: SumForm, half: bool, guard: u32) -> Vec<(&'static str, Constant)> {
    let mut all = arithmetic_constants(guard);
    all.extend([("VALUES", Constant::Option(0)), ("UNIT_ROWS", Constant::Option(1)), ("PAIRS", Constant::Option(2))]);
    all.push(("FORM", Constant::Choice(["VALUES", "UNIT_ROWS", "PAIRS"][form as usize])));
    all.push(("HALF", Constant::U32(half.into())));
    all.push(("ROWS", Constant::U32(BLOCK as u32)));
    all
}

pub(super) fn variants(guard: u32) -> Vec<(&'static Kernel, Vec<(&'static str, Constant)>)> {
    let kernel = if guard == 0 { &SUMS_F64 } else { &SUMS };
    [
        (SumForm::Values, false),
        (SumForm::Values, true),
        (SumForm::UnitRows, false),
        (SumForm::UnitRows, true),
        (SumForm::Pairs, false),
    ]
    .map(|(form, half)| (kernel, constants(form, half, guard)))
    .to_vec()
}

/// Rows to add.
pub(super) struct Source<'a> {
    pub(super) buffer: &'a Buffer,
    pub(super) first: usize,
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) form: SumForm,
    pub(super) half: bool,
}

/// Pass after pass, until at most [`LEFT`] rows of sums remain.
pub(super) fn tree(gpu: &Gpu, source: &Source<'_>, scales: Option<&Buffer>) -> Result<Tensor<DoubleSingle, Ix2>> {
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
    let constants = constants(source.form, source.half, guard);
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
pub(super) async fn add_left(left: Tensor<DoubleSingle, Ix2>, checks: &[std::sync::Arc<Check>]) -> Result<Array1<f64>> {
    let left: Array2<DoubleSingle> = left.checked(checks).to_array_async().await?;
    let mut sums = Array1::zeros(left.ncols());
    for row in left.outer_iter() {
        sums.zip_mut_with(&row, |sum: &mut f64, part| *sum += part.to_f64());
    }
    Ok(sums)
}
