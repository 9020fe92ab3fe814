//! Keys of a block of queries and a window of codes.

use std::ops::Range;

use super::PLACE;
use super::base::Window;
use super::select::Keys;
use crate::Result;
use crate::gpu::{Buffer, Constant, Gpu, Kernel, Needs, Params, View, params, shader};
use crate::kernels::hamming::INT4;

params! {
    /// As in `shaders/hamming/distances.wgsl`.
    DistancesParams {
        queries: u32,
        codes: u32,
        words: u32,
        totals_offset: u32,
        query_offset: u32,
        code_offset: u32,
        tile_stride: u32,
        code_stride: u32,
        word_stride: u32,
        out_offset: u32,
        out_stride: u32,
        mask_offset: u32,
        masked: u32,
        pad0: u32,
        pad1: u32,
        pad2: u32,
    }
}

params! {
    /// As in `shaders/hamming/pack_pairs.wgsl`.
    PackPairsParams {
        elements: u32,
        columns: u32,
        in_stride: u32,
        groups_x: u32,
        in_offset: u32,
        out_offset: u32,
        pad0: u32,
        pad1: u32,
    }
}

static DISTANCES: Kernel = Kernel {
    name: "hamming_distances",
    sources: &[shader!("hamming/distances.wgsl")],
    needs: Needs::NONE,
    fields: DistancesParams::FIELDS,
    params_bytes: size_of::<DistancesParams>(),
};

static PACK_PAIRS: Kernel = Kernel {
    name: "hamming_pack_pairs",
    sources: &[shader!("hamming/pack_pairs.wgsl")],
    needs: Needs::NONE,
    fields: PackPairsParams::FIELDS,
    params_bytes: size_of::<PackPairsParams>(),
};

pub(super) fn variants() -> Vec<(&'static Kernel, Vec<(&'static str, Constant)>)> {
    vec![
        (&DISTANCES, Measure::Hamming.constants().to_vec()),
        (&DISTANCES, Measure::Jaccard.constants().to_vec()),
        (&DISTANCES, Measure::Int4.constants().to_vec()),
        (&PACK_PAIRS, Vec::new()),
    ]
}

/// What a key is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Measure {
    /// The number of bits that differ, u16.
    Hamming,
    /// [`jaccard_key`](crate::kernels::hamming::jaccard_key), u32.
    Jaccard,
    /// The sum of the magnitudes of a query of int4 whose signs differ, u16.
    Int4,
    /// The sum of the magnitudes of a float query whose signs differ, f32 bits.
    Float,
}

impl Measure {
    fn constants(self) -> [(&'static str, Constant); 1] {
        [("MEASURE", Constant::U32(self as u32))]
    }

    /// Bytes of a key.
    pub(super) fn bytes(self) -> usize {
        if self.keys() == Keys::Wide { 4 } else { 2 }
    }

    /// Codes of a query.
    pub(super) fn planes(self) -> usize {
        if self == Self::Int4 { INT4 } else { 1 }
    }

    pub(super) fn keys(self) -> Keys {
        if matches!(self, Self::Jaccard | Self::Float) { Keys::Wide } else { Keys::Narrow }
    }

    /// The largest key between codes of `bits`.
    pub(super) fn largest(self, bits: usize) -> usize {
        match self {
            Self::Hamming => bits,
            Self::Jaccard => 1 << 28,
            Self::Int4 => 7 * bits,
            Self::Float => u32::MAX as usize,
        }
    }
}

/// Codes that are looked for, (n, words), or four times as many.
#[derive(Clone, Copy)]
pub(super) struct Queries<'a> {
    pub(super) buffer: &'a Buffer,
    pub(super) words: usize,
    /// Of queries of int4 the sums of magnitudes, of float queries the tables.
    pub(super) totals: Option<&'a Buffer>,
}

impl<'a> Queries<'a> {
    /// Those of a block, and words into the view.
    pub(super) fn window(&self, gpu: &Gpu, block: &Range<usize>) -> (View<'a>, u32) {
        let code = self.words * 4;
        let first = (block.start * code) as u64;
        let (view, shift) = View::window(self.buffer, first, (block.len() * code) as u64, gpu.binding_alignment());
        (view, shift as u32 / 4)
    }
}

/// Where rows of keys go: words into the view, and between rows.
pub(super) struct Rows<'a> {
    pub(super) view: View<'a>,
    pub(super) offset: usize,
    pub(super) stride: usize,
}

/// The words of a mask that speak of a window whose first code is number `first`, and words into the view; anything where there is no mask.
pub(super) fn mask_window<'a>(
    gpu: &Gpu,
    mask: Option<&'a Buffer>,
    first: usize,
    len: usize,
    other: View<'a>,
) -> (View<'a>, u32) {
    match mask {
        None => (other, 0),
        Some(mask) => {
            let bytes = (len.div_ceil(32) * 4) as u64;
            let (view, shift) = View::window(mask, (first / 32 * 4) as u64, bytes, gpu.binding_alignment());
            (view, shift as u32 / 4)
        }
    }
}

/// Records the keys of the queries of `block` and the codes of `window`; `mask` and the number of the window's first code in it.
pub(super) fn record(
    gpu: &Gpu,
    measure: Measure,
    queries: &Queries<'_>,
    block: Range<usize>,
    window: &Window<'_>,
    mask: Option<(&Buffer, usize)>,
    out: &Rows<'_>,
) -> Result<()> {
    let planes = measure.planes();
    let rows = block.start * planes..block.end * planes;
    let (view, query_offset) = queries.window(gpu, &rows);
    let (totals, totals_offset) = match queries.totals {
        None => (view, 0),
        Some(totals) => {
            let (first, bytes) = ((block.start * 4) as u64, (block.len() * 4) as u64);
            let (view, shift) = View::window(totals, first, bytes, gpu.binding_alignment());
            (view, shift as u32 / 4)
        }
    };
    let (mask_view, mask_offset) =
        mask_window(gpu, mask.map(|(mask, _)| mask), mask.map_or(0, |(_, first)| first), window.len, view);
    let params = DistancesParams {
        queries: rows.len() as u32,
        codes: window.len as u32,
        words: window.words as u32,
        totals_offset,
        query_offset,
        code_offset: window.offset as u32,
        tile_stride: window.strides[0] as u32,
        code_stride: window.strides[1] as u32,
        word_stride: window.strides[2] as u32,
        out_offset: out.offset as u32,
        out_stride: out.stride as u32,
        mask_offset,
        masked: mask.is_some().into(),
        pad0: 0,
        pad1: 0,
        pad2: 0,
    };
    let grid = [window.len.div_ceil(256) as u32, rows.len().div_ceil(16) as u32, 1];
    gpu.run(&DISTANCES, &measure.constants(), &params, &[view, window.view, mask_view, totals, out.view], grid)
}

/// Records closing up `elements` u16 of rows that begin at whole words; `out` and bytes into it, a multiple of 4.
pub(super) fn close_up(
    gpu: &Gpu,
    padded: &Buffer,
    stride: usize,
    elements: usize,
    columns: usize,
    (out, shift): (View<'_>, u64),
) -> Result<()> {
    let grid = gpu.grid(PLACE, (elements as u64).div_ceil(512))?;
    let params = PackPairsParams {
        elements: elements as u32,
        columns: columns as u32,
        in_stride: stride as u32,
        groups_x: grid[0],
        in_offset: 0,
        out_offset: shift as u32 / 4,
        pad0: 0,
        pad1: 0,
    };
    gpu.run(&PACK_PAIRS, &[], &params, &[padded.view(), out], if elements == 0 { [0; 3] } else { grid })
}
