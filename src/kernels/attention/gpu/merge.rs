//! Parts of an attention joined: those of one call's dispatches, and those that were computed apart, which are stacked on their GPU first.

use super::*;
use crate::attention::Output;
use crate::kernels::attention::AttentionElement;
use crate::kernels::attention::merge::Part;

const PLACE: &str = "merge_attention";
const NOT_FINITE: Finding = Finding { quantity: "output or lse", expected: "finite", found: "not finite, in a row" };

params! {
    /// As in `shaders/attention/merge.wgsl`.
    MergeParams {
        words: u32,
        d_v: u32,
        elements: u32,
        parts: u32,
        part_stride: u32,
        lse_stride: u32,
        part_offset: u32,
        part_lse_offset: u32,
        out_offset: u32,
        lse_offset: u32,
        groups_x: u32,
        first_row: u32,
    }
}

static MERGE: Kernel = Kernel {
    name: "attention_merge",
    sources: &[shader!("attention/merge.wgsl"), shader!("shared/math_f32.wgsl")],
    needs: Needs::NONE,
    fields: MergeParams::FIELDS,
    params_bytes: size_of::<MergeParams>(),
};

fn merge_constants(half: bool, half_out: bool) -> [(&'static str, Constant); 2] {
    [("HALF", Constant::U32(half.into())), ("HALF_OUT", Constant::U32(half_out.into()))]
}

pub(super) fn variants() -> impl Iterator<Item = (&'static Kernel, Vec<(&'static str, Constant)>)> {
    let merges = [(false, false), (false, true), (true, true)];
    merges.into_iter().map(|(half, half_out)| (&MERGE, merge_constants(half, half_out).to_vec()))
}

/// One dispatch of the merge.
pub(super) struct Join<'a> {
    pub(super) place: &'static str,
    pub(super) d_v: usize,
    /// Whether parts, and out, are f16.
    pub(super) half: bool,
    pub(super) half_out: bool,
    /// What is bound of each, and the first element in it.
    pub(super) part: (View<'a>, u32),
    pub(super) part_lse: (View<'a>, u32),
    pub(super) parts: usize,
    /// Rows from one part to the next.
    pub(super) stride: usize,
    pub(super) rows: usize,
    /// The first row in out, and what errors call it.
    pub(super) row: usize,
    pub(super) first_row: usize,
}

impl Join<'_> {
    pub(super) fn run(&self, gpu: &Gpu, (out, lse): (&Buffer, &Buffer), check: &Check) -> Result<()> {
        let &Self { place, d_v, half, half_out, part, part_lse, parts, stride, rows, row, first_row } = self;
        let element = if half_out { 2 } else { 4 };
        let window = |buffer, bytes: usize| {
            View::window(buffer, (row * bytes) as u64, (rows * bytes) as u64, gpu.binding_alignment())
        };
        let (out, out_shift) = window(out, d_v * element);
        let (lse, lse_shift) = window(lse, 4);
        let words = (rows * d_v * element).div_ceil(4);
        let grid = gpu.grid(place, words.div_ceil(64) as u64)?;
        let params = MergeParams {
            words: words as u32,
            d_v: d_v as u32,
            elements: (rows * d_v) as u32,
            parts: parts as u32,
            part_stride: (stride * d_v) as u32,
            lse_stride: stride as u32,
            part_offset: part.1,
            part_lse_offset: part_lse.1,
            out_offset: (out_shift as usize / element) as u32,
            lse_offset: lse_shift as u32 / 4,
            groups_x: grid[0],
            first_row: first_row as u32,
        };
        let bindings = [part.0, part_lse.0, out, lse, check.view()];
        gpu.run(&MERGE, &merge_constants(half, half_out), &params, &bindings, grid)
    }
}

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
            let join = Join {
                place: PLACE,
                d_v,
                half,
                half_out: half,
                part: (stack.view(), 0),
                part_lse: (stack_lse.view(), 0),
                parts: parts.len(),
                stride: step,
                rows: count,
                row,
                first_row: row,
            };
            join.run(gpu, (&out, &lse), &check)?;
        }
    }
    let inputs = parts.iter().flat_map(|(output, lse)| [output.checks(), lse.checks()]);
    let inputs: Vec<_> = std::iter::once(std::slice::from_ref(&check)).chain(inputs).collect();
    let checks = crate::kernels::inherit(&inputs);
    let lse = Tensor::on_gpu(gpu, lse, lse_dim, checks.clone());
    Ok(Output { output: Tensor::on_gpu(gpu, out, dim, checks), lse: Some(lse) })
}
