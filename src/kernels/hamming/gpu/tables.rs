//! Keys of float queries, by tables of what each byte of a code adds.

use std::ops::Range;

use super::base::Window;
use super::distances::{Rows, mask_window};
use crate::Result;
use crate::gpu::{Buffer, Constant, Gpu, Kernel, Needs, Params, View, params, shader};

params! {
    /// As in `shaders/hamming/tables.wgsl`.
    TablesParams {
        queries: u32,
        codes: u32,
        first_byte: u32,
        bytes: u32,
        tables_offset: u32,
        tables_stride: u32,
        code_offset: u32,
        tile_stride: u32,
        code_stride: u32,
        word_stride: u32,
        out_offset: u32,
        out_stride: u32,
        mask_offset: u32,
        masked: u32,
        accumulate: u32,
        last: u32,
    }
}

static TABLES: Kernel = Kernel {
    name: "hamming_tables",
    sources: &[shader!("hamming/tables.wgsl")],
    needs: Needs::NONE,
    fields: TablesParams::FIELDS,
    params_bytes: size_of::<TablesParams>(),
};

pub(super) fn variants() -> Vec<(&'static Kernel, Vec<(&'static str, Constant)>)> {
    vec![(&TABLES, Vec::new())]
}

/// Bytes of the table of one byte of a code.
pub(super) const TABLE: usize = 256 * 4;

/// Records the keys of the queries of `block` and the codes of `window`; `tables` are those of all queries, for codes of `bytes`.
pub(super) fn record(
    gpu: &Gpu,
    tables: &Buffer,
    bytes: usize,
    block: Range<usize>,
    window: &Window<'_>,
    mask: Option<(&Buffer, usize)>,
    out: &Rows<'_>,
) -> Result<()> {
    // A block of several queries fits a binding; of one the table may not.
    let step = if block.len() > 1 { bytes } else { bytes.min(gpu.max_binding() as usize / TABLE) };
    for first in (0..bytes).step_by(step) {
        let part = step.min(bytes - first);
        let held = if block.len() > 1 { block.len() * bytes } else { part };
        let start = (block.start * bytes + first) * TABLE;
        let (view, shift) = View::window(tables, start as u64, (held * TABLE) as u64, gpu.binding_alignment());
        let (mask_view, mask_offset) =
            mask_window(gpu, mask.map(|(mask, _)| mask), mask.map_or(0, |(_, first)| first), window.len, window.view);
        let params = TablesParams {
            queries: block.len() as u32,
            codes: window.len as u32,
            first_byte: first as u32,
            bytes: part as u32,
            tables_offset: shift as u32 / 4,
            tables_stride: (bytes * 256) as u32,
            code_offset: window.offset as u32,
            tile_stride: window.strides[0] as u32,
            code_stride: window.strides[1] as u32,
            word_stride: window.strides[2] as u32,
            out_offset: out.offset as u32,
            out_stride: out.stride as u32,
            mask_offset,
            masked: mask.is_some().into(),
            accumulate: (first > 0).into(),
            last: (first + part == bytes).into(),
        };
        let grid = [window.len.div_ceil(256) as u32, block.len() as u32, 1];
        gpu.run(&TABLES, &[], &params, &[view, window.view, mask_view, out.view], grid)?;
    }
    Ok(())
}
