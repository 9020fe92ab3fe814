//! The pass over rows: lengths, and log-densities.

use ndarray::Ix2;

use super::{NOTHING, arithmetic_constants, guard};
use crate::Result;
use crate::double_single::DoubleSingle;
use crate::gpu::{Buffer, Constant, Gpu, Kernel, Needs, Params, View, params, shader};
use crate::tensor::{Element, Tensor};

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

static ROWS: Kernel = Kernel {
    name: "extended_rows",
    sources: &[shader!("extended/rows.wgsl"), shader!("shared/real_pairs.wgsl"), shader!("shared/double_single.wgsl")],
    needs: Needs::NONE,
    fields: ExtendedRowsParams::FIELDS,
    params_bytes: size_of::<ExtendedRowsParams>(),
};

static ROWS_F64: Kernel = Kernel {
    name: "extended_rows_f64",
    sources: &[shader!("extended/rows.wgsl"), shader!("shared/real_f64.wgsl"), shader!("shared/stored_pairs.wgsl")],
    needs: Needs { f64: true, ..Needs::NONE },
    fields: ExtendedRowsParams::FIELDS,
    params_bytes: size_of::<ExtendedRowsParams>(),
};

/// What a pass over rows makes of each.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum RowForm {
    Scales,
    Densities,
}

fn constants(form: RowForm, half: bool, guard: u32) -> Vec<(&'static str, Constant)> {
    let mut all = arithmetic_constants(guard);
    all.extend([("SCALES", Constant::Option(0)), ("DENSITIES", Constant::Option(1))]);
    all.push(("FORM", Constant::Choice(["SCALES", "DENSITIES"][form as usize])));
    all.push(("HALF", Constant::U32(half.into())));
    all
}

pub(super) fn variants(guard: u32) -> Vec<(&'static Kernel, Vec<(&'static str, Constant)>)> {
    let kernel = if guard == 0 { &ROWS_F64 } else { &ROWS };
    [(RowForm::Scales, false), (RowForm::Scales, true), (RowForm::Densities, false), (RowForm::Densities, true)]
        .map(|(form, half)| (kernel, constants(form, half, guard)))
        .to_vec()
}

/// A pass over rows.
pub(super) struct RowJob<'a> {
    pub(super) place: &'static str,
    pub(super) form: RowForm,
    /// Weights (rows), or the mean direction (columns).
    pub(super) factors: Option<&'a Buffer>,
    pub(super) log_normalizer: f64,
    pub(super) kappa: f64,
}

impl RowJob<'_> {
    pub(super) fn run<T: Element>(
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
            let constants = constants(self.form, half, guard);
            gpu.run(kernel, &constants, &params, &[values, factors, out, status], grid)?;
        }
        Ok(())
    }
}
