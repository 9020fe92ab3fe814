//! Parts of an attention that were computed apart, stacked and joined on their GPU.

use super::*;
use crate::attention::Output;
use crate::kernels::attention::AttentionElement;
use crate::kernels::attention::merge::Part;

const PLACE: &str = "merge_attention";
const NOT_FINITE: Finding = Finding { quantity: "output or lse", expected: "finite", found: "not finite, in a row" };

/// The attention of all parts, each of which is on `gpu` and of the first's shape.
pub(in crate::kernels::attention) fn merge_parts<T: AttentionElement>(
    gpu: &Gpu,
    parts: &[Part<T>],
) -> Result<Output<T>> {
    let (dim, lse_dim) = (parts[0].0.raw_dim(), parts[0].1.raw_dim());
    let (rows, d_v, element) = (parts[0].1.len(), dim[3], size_of::<T>());
    let out = gpu.allocate(PLACE, (rows * d_v * element) as u64)?;
    let lse = gpu.allocate(PLACE, (rows * 4) as u64)?;
    let check = gpu.check(PLACE, &[NOT_FINITE])?;
    if rows * d_v > 0 {
        let alignment = gpu.binding_alignment();
        let half = T::NAME == f16::NAME;
        // Two rows are whole words, whatever their length and storage.
        let step = 2 * gpu.rows_per_window(PLACE, 2 * parts.len() * (d_v * element).max(4))?;
        let step = step.min(rows.next_multiple_of(2));
        let stack = gpu.allocate(PLACE, (parts.len() * step * d_v * element) as u64)?;
        let stack_lse = gpu.allocate(PLACE, (parts.len() * step * 4) as u64)?;
        for row in (0..rows).step_by(step) {
            let count = step.min(rows - row);
            for (index, (part, part_lse)) in parts.iter().enumerate() {
                let (Storage::Gpu(_, part), Storage::Gpu(_, part_lse)) = (part.storage(), part_lse.storage()) else {
                    unreachable!("all are on one device")
                };
                let copy = |part: &Buffer, stack: &Buffer, bytes: usize| {
                    let size = (count * bytes).next_multiple_of(4) as u64;
                    let (view, _) = View::window(part, (row * bytes) as u64, size, 4);
                    gpu.copy(view, stack, (index * step * bytes) as u64);
                };
                copy(part, &stack, d_v * element);
                copy(part_lse, &stack_lse, 4);
            }
            let (out, out_shift) =
                View::window(&out, (row * d_v * element) as u64, (count * d_v * element) as u64, alignment);
            let (lse, lse_shift) = View::window(&lse, (row * 4) as u64, (count * 4) as u64, alignment);
            let words = (count * d_v * element).div_ceil(4);
            let grid = gpu.grid(PLACE, words.div_ceil(64) as u64)?;
            let params = MergeParams {
                words: words as u32,
                d_v: d_v as u32,
                elements: (count * d_v) as u32,
                parts: parts.len() as u32,
                part_stride: (step * d_v) as u32,
                lse_stride: step as u32,
                part_offset: 0,
                part_lse_offset: 0,
                out_offset: (out_shift as usize / element) as u32,
                lse_offset: lse_shift as u32 / 4,
                groups_x: grid[0],
                first_row: row as u32,
            };
            let bindings = [stack.view(), stack_lse.view(), out, lse, check.view()];
            gpu.run(&MERGE, &merge_constants(half, half), &params, &bindings, grid)?;
        }
    }
    let inputs = parts.iter().flat_map(|(output, lse)| [output.checks(), lse.checks()]);
    let inputs: Vec<_> = std::iter::once(std::slice::from_ref(&check)).chain(inputs).collect();
    let checks = crate::kernels::inherit(&inputs);
    let lse = Tensor::on_gpu(gpu, lse, lse_dim, checks.clone());
    Ok(Output { output: Tensor::on_gpu(gpu, out, dim, checks), lse: Some(lse) })
}
