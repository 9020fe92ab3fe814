//! The GPU's way: windows of the base and blocks of queries, keys of one such tile at a time, and the nearest so far carried along.

mod base;
mod compact;
mod distances;
mod histograms;
mod nearest;
mod rated;
mod select;
mod tables;
mod values;
mod within;

use ndarray::Ix2;

pub(crate) use base::Store;
pub(crate) use histograms::histograms;
pub(crate) use nearest::nearest;
pub(crate) use rated::{nearest_float, nearest_int4, nearest_jaccard};
pub(crate) use within::within;

use crate::gpu::{Constant, Gpu, Kernel, View};
use crate::hamming::Codes;
use crate::tensor::{Storage, Tensor};
use crate::{Error, Result};

const PLACE: &str = "hamming";

/// What a list holds where it has no entry: larger than every key.
pub(super) const NONE: u32 = u32::MAX;

pub(crate) fn variants() -> Vec<(&'static Kernel, Vec<(&'static str, Constant)>)> {
    [
        base::variants(),
        compact::variants(),
        distances::variants(),
        select::variants(),
        tables::variants(),
        values::variants(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Distances of all pairs, two u16 a word as they lie in memory.
pub(crate) fn pairwise(gpu: &Gpu, a: &Codes, b: &Codes) -> Result<Tensor<u16, Ix2>> {
    let (Storage::Gpu(_, queries), Storage::Gpu(_, codes)) = (a.words().storage(), b.words().storage()) else {
        unreachable!("only called for a GPU")
    };
    let (rows, columns, words) = (a.len(), b.len(), a.words().shape()[1]);
    let out = gpu.allocate(PLACE, (rows * columns * 2) as u64)?;
    let checks = crate::kernels::inherit(&[a.words().checks(), b.words().checks()]);
    if rows * columns == 0 {
        return Ok(Tensor::on_gpu(gpu, out, Ix2(rows, columns), checks));
    }
    let base = base::Base::rows(codes, columns, words);
    let queries = distances::Queries { buffer: queries, words, totals: None };
    let even = columns.is_multiple_of(2);
    let stride = columns.div_ceil(2);
    // Rows of an odd number of distances begin inside words: they are written apart first, and a whole number of words at a time (two rows) closed up.
    let together = if even { 1 } else { 2 };
    let chunk = base::chunk(gpu, words, 2)?;
    let step = (gpu.rows_per_window(PLACE, stride * 4 * together)? * together)
        .min(gpu.rows_per_window(PLACE, words * 4)?)
        .min(gpu.max_groups() * 16);
    let step = if even { step } else { step.min((32 << 20) / (stride * 4)) / 2 * 2 }.max(together);
    for first in (0..rows).step_by(step) {
        let part = first..rows.min(first + step);
        let out_view = View::window(
            &out,
            (first * columns * 2) as u64,
            (part.len() * columns * 2) as u64,
            gpu.binding_alignment(),
        );
        if even {
            for window in base.windows(gpu, chunk) {
                let to =
                    distances::Rows { view: out_view.0, offset: out_view.1 as usize / 4 + window.first / 2, stride };
                distances::record(gpu, distances::Measure::Hamming, &queries, part.clone(), &window, None, &to)?;
            }
        } else {
            let padded = gpu.allocate(PLACE, (part.len() * stride * 4) as u64)?;
            for window in base.windows(gpu, chunk) {
                let to = distances::Rows { view: padded.view(), offset: window.first / 2, stride };
                distances::record(gpu, distances::Measure::Hamming, &queries, part.clone(), &window, None, &to)?;
            }
            distances::close_up(gpu, &padded, stride, part.len() * columns, columns, out_view)?;
        }
    }
    Ok(Tensor::on_gpu(gpu, out, Ix2(rows, columns), checks))
}

/// The error that one row of `bytes` exceeds a binding.
fn too_large(gpu: &Gpu, quantity: &'static str, bytes: usize) -> Error {
    Error::TooLarge { place: PLACE, quantity, needed: bytes as u64, limit: gpu.max_binding(), device: gpu.to_string() }
}
