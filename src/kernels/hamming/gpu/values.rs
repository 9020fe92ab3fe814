//! Keys as the distances they stand for.

use super::PLACE;
use crate::Result;
use crate::gpu::{Buffer, Constant, Gpu, Kernel, Needs, Params, View, params, shader};

params! {
    /// As in `shaders/hamming/values.wgsl`.
    ValuesParams {
        keys: u32,
        k: u32,
        groups_x: u32,
        keys_offset: u32,
        first: u32,
        pad0: u32,
        pad1: u32,
        pad2: u32,
    }
}

static VALUES: Kernel = Kernel {
    name: "hamming_values",
    sources: &[shader!("hamming/values.wgsl")],
    needs: Needs::NONE,
    fields: ValuesParams::FIELDS,
    params_bytes: size_of::<ValuesParams>(),
};

fn constants(scaled: bool) -> [(&'static str, Constant); 1] {
    [("MODE", Constant::U32(scaled.into()))]
}

pub(super) fn variants() -> Vec<(&'static Kernel, Vec<(&'static str, Constant)>)> {
    vec![(&VALUES, constants(false).to_vec()), (&VALUES, constants(true).to_vec())]
}

/// Records turning (queries, k) `keys` into f32: keys of Jaccard distances, or with one of `scales` a query those of int4.
pub(super) fn record(gpu: &Gpu, keys: &Buffer, (queries, k): (usize, usize), scales: Option<&Buffer>) -> Result<()> {
    if queries * k == 0 {
        return Ok(());
    }
    let step = gpu.rows_per_window(PLACE, k * 4)?;
    for first in (0..queries).step_by(step) {
        let rows = step.min(queries - first);
        let (bytes, row) = ((rows * k * 4) as u64, (k * 4) as u64);
        let (view, shift) = View::window(keys, first as u64 * row, bytes, gpu.binding_alignment());
        let grid = gpu.grid(PLACE, (rows as u64 * k as u64).div_ceil(256))?;
        let params = ValuesParams {
            keys: (rows * k) as u32,
            k: k as u32,
            groups_x: grid[0],
            keys_offset: shift as u32 / 4,
            first: first as u32,
            pad0: 0,
            pad1: 0,
            pad2: 0,
        };
        let spare = gpu.allocate(PLACE, 4)?;
        let given = scales.unwrap_or(&spare).view();
        gpu.run(&VALUES, &constants(scales.is_some()), &params, &[given, view], grid)?;
    }
    Ok(())
}
