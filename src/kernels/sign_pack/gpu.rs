//! The GPU's way: windows of rows, what is not finite noted in status words.

use ndarray::{Ix1, Ix2};

use super::SignRule;
use crate::Result;
use crate::gpu::{Constant, Finding, Kernel, Needs, Params, View, params, shader};
use crate::kernels::inherit;
use crate::tensor::{Element, Storage, Tensor};

params! {
    /// As in `shaders/sign_pack.wgsl`.
    SignPackParams {
        rows: u32,
        columns: u32,
        words: u32,
        values_offset: u32,
        out_offset: u32,
        first: u32,
        rule: u32,
        thresholded: u32,
        groups_x: u32,
        row0: u32,
        pad0: u32,
        pad1: u32,
    }
}

static SIGN_PACK: Kernel = Kernel {
    name: "sign_pack",
    sources: &[shader!("sign_pack.wgsl")],
    needs: Needs::NONE,
    fields: SignPackParams::FIELDS,
    params_bytes: size_of::<SignPackParams>(),
};

fn constants(half: bool) -> [(&'static str, Constant); 1] {
    [("HALF", Constant::U32(half.into()))]
}

pub(crate) fn variants() -> Vec<(&'static Kernel, Vec<(&'static str, Constant)>)> {
    [false, true].map(|half| (&SIGN_PACK, constants(half).to_vec())).to_vec()
}

const FINDINGS: [Finding; 2] = [
    Finding { quantity: "threshold", expected: "a finite number", found: "not finite" },
    Finding { quantity: "value", expected: "a finite number", found: "not finite" },
];

/// `values` on a GPU, `thresholds` there too, one a column.
pub(super) fn on_gpu<T: Element>(
    place: &'static str,
    values: &Tensor<T, Ix2>,
    thresholds: Option<&Tensor<f32, Ix1>>,
    rule: SignRule,
) -> Result<Tensor<u32, Ix2>> {
    let Storage::Gpu(gpu, buffer) = values.storage() else { unreachable!("only called for a GPU") };
    let (rows, columns) = (values.shape()[0], values.shape()[1]);
    let words = columns.div_ceil(32);
    let half = T::NAME == "f16";
    let element = if half { 2 } else { 4 };
    let out = gpu.allocate(place, (rows * words * 4) as u64)?;
    let check = gpu.check(place, &FINDINGS)?;
    // Something to bind where there are no thresholds.
    let spare = gpu.allocate(place, 4)?;
    let limits = match thresholds.map(Tensor::storage) {
        Some(Storage::Gpu(_, limits)) => limits.view(),
        _ => spare.view(),
    };
    let step = gpu.rows_per_window(place, (columns * element).max(words * 4).max(1))?;
    // Indices of values are 32 bits. Rows of no words need nothing.
    let step = step.min((1 << 31) / columns.max(1)).max(1);
    let rows_to_do = if columns == 0 { 0 } else { rows };
    for first in (0..rows_to_do).step_by(step) {
        let count = step.min(rows - first);
        let window = |buffer, row: usize| {
            View::window(buffer, (first * row) as u64, (count * row) as u64, gpu.binding_alignment())
        };
        let ((values, values_shift), (out, out_shift)) = (window(buffer, columns * element), window(&out, words * 4));
        let grid = gpu.grid(place, ((count * words) as u64).div_ceil(8))?;
        let params = SignPackParams {
            rows: count as u32,
            columns: columns as u32,
            words: words as u32,
            values_offset: (values_shift / element as u64) as u32,
            out_offset: out_shift as u32 / 4,
            first: (first * columns) as u32,
            rule: (rule == SignRule::Above).into(),
            thresholded: thresholds.is_some().into(),
            groups_x: grid[0],
            row0: (first == 0).into(),
            pad0: 0,
            pad1: 0,
        };
        gpu.run(&SIGN_PACK, &constants(half), &params, &[values, limits, out, check.view()], grid)?;
    }
    let checks = inherit(&[&[check], values.checks(), thresholds.map(Tensor::checks).unwrap_or_default()]);
    Ok(Tensor::on_gpu(gpu, out, Ix2(rows, words), checks))
}
