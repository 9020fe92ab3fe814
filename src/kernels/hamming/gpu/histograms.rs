//! Histograms of distances, of all codes and of those of a query's label.

use ndarray::{Ix1, Ix2};

use super::PLACE;
use super::base::Base;
use super::compact::{Histogram, Labels};
use super::distances::{self, Measure, Queries, Rows};
use super::nearest::Plan;
use crate::Result;
use crate::gpu::{Gpu, View};
use crate::hamming::Codes;
use crate::kernels::inherit;
use crate::tensor::{Storage, Tensor};

/// As the CPU's.
pub(crate) fn histograms(
    gpu: &Gpu,
    base: &Codes,
    labels: &Tensor<u32, Ix1>,
    queries: &Codes,
    query_labels: &Tensor<u32, Ix1>,
) -> Result<(Tensor<u32, Ix2>, Tensor<u32, Ix2>)> {
    let (Storage::Gpu(_, codes), Storage::Gpu(_, wanted)) = (base.words().storage(), queries.words().storage()) else {
        unreachable!("only called for a GPU")
    };
    let (Storage::Gpu(_, labels_buffer), Storage::Gpu(_, query_labels_buffer)) =
        (labels.storage(), query_labels.storage())
    else {
        unreachable!("only called for a GPU")
    };
    let (count, bins, words) = (queries.len(), base.bits() + 1, base.words().shape()[1]);
    let plan = Plan::new(gpu, words, base.len(), Measure::Hamming.bytes(), count, bins * 4)?;
    let bytes = (count * bins * 4) as u64;
    let (all, relevant) = (gpu.allocate(PLACE, bytes)?, gpu.allocate(PLACE, bytes)?);
    let stride = plan.chunk / 2;
    let scratch = gpu.allocate(PLACE, (plan.block * stride * 4) as u64)?;
    let wanted = Queries { buffer: wanted, words, totals: None };
    let window_of = |buffer, first: usize, len: usize| {
        let (view, shift) = View::window(buffer, (first * 4) as u64, (len * 4) as u64, gpu.binding_alignment());
        (view, shift as usize / 4)
    };
    for first in (0..count).step_by(plan.block) {
        let block = first..count.min(first + plan.block);
        let (of_all, of_relevant) = (Histogram::new(gpu, block.len(), bins)?, Histogram::new(gpu, block.len(), bins)?);
        for window in Base::rows(codes, base.len(), words).windows(gpu, plan.chunk) {
            let out = Rows { view: scratch.view(), offset: 0, stride };
            distances::record(gpu, Measure::Hamming, &wanted, block.clone(), &window, None, &out)?;
            let labels = Labels {
                codes: window_of(labels_buffer, window.first, window.len),
                queries: window_of(query_labels_buffer, first, block.len()),
            };
            of_all.add_labelled(&scratch, stride, window.len, &labels, &of_relevant)?;
        }
        for (from, to) in [(&of_all, &all), (&of_relevant, &relevant)] {
            let bytes = (block.len() * bins * 4) as u64;
            gpu.copy(View { buffer: &from.counts, offset: 0, bytes }, to, (first * bins * 4) as u64);
        }
    }
    let checks = inherit(&[base.words().checks(), queries.words().checks(), labels.checks(), query_labels.checks()]);
    Ok((
        Tensor::on_gpu(gpu, all, Ix2(count, bins), checks.clone()),
        Tensor::on_gpu(gpu, relevant, Ix2(count, bins), checks),
    ))
}
