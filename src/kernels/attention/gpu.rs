//! The GPU's way: one dispatch of tiles, or windows of them where a tensor exceeds a binding, and a merge where keys are split.

use std::ops::Range;

use half::f16;
use ndarray::{Ix3, Ix4};

use super::*;
use crate::gpu::{Buffer, Check, Constant, Finding, Gpu, Kernel, Needs, Params, View, params, shader};
use crate::tensor::Storage;

mod choice;
mod merge;
mod windows;

use choice::Choice;
use merge::Join;
pub(super) use merge::merge_parts;
use windows::Region;

params! {
    /// As in `shaders/attention/problem.wgsl`.
    ForwardParams {
        q_offset: u32,
        k_offset: u32,
        v_offset: u32,
        bias_offset: u32,
        out_offset: u32,
        lse_offset: u32,
        flags: u32,
        splits: u32,
        d: u32,
        d_v: u32,
        q_heads: u32,
        kv_heads: u32,
        q_len: u32,
        kv_len: u32,
        group: u32,
        sequences: u32,
        first_sequence: u32,
        first_head: u32,
        heads: u32,
        first_member: u32,
        members: u32,
        first_query: u32,
        queries: u32,
        first_key: u32,
        last_key: u32,
        tiles: u32,
        groups: u32,
        groups_x: u32,
        window: u32,
        scale: f32,
        softcap: f32,
        slot: u32,
        bias_sequence: u32,
        bias_head: u32,
        bias_query: u32,
        bias_key: u32,
        slot_rows: u32,
        first_in_tables: u32,
        pad1: u32,
        pad2: u32,
    }
}

const CAUSAL: u32 = 1;
const WINDOW: u32 = 2;
const SOFTCAP: u32 = 4;
const ALIBI: u32 = 8;
const SINKS: u32 = 16;
const BIAS: u32 = 32;
const TABLE: u32 = 64;
const HALF_OUT: u32 = 128;

const PLACE: &str = "attention";
const NOT_FINITE: Finding =
    Finding { quantity: "q, k, v, bias or what came of them", expected: "finite", found: "not finite, in a row" };

pub(crate) fn variants() -> Vec<(&'static Kernel, Vec<(&'static str, Constant)>)> {
    choice::variants().into_iter().chain(merge::variants()).collect()
}

/// One call on a GPU: everything that its dispatches share.
struct Call<'a> {
    gpu: &'a Gpu,
    problem: &'a Problem,
    choice: Choice,
    flags: u32,
    /// Elements of q, k and v have so many bytes.
    element: usize,
    splits: Option<usize>,
    inputs: [&'a Buffer; 4],
    options: &'a Options,
    /// Of all sequences, where they fit into a binding.
    tables: Option<Buffer>,
    /// Sequences whose tables fit.
    most_sequences: usize,
    /// [rows, d_v], f16 pairs if `half_out`.
    out: &'a Buffer,
    half_out: bool,
    lse: &'a Buffer,
    check: &'a Check,
}

/// Output and log-sum-exp on `gpu`.
pub(super) fn forward<T: AttentionElement>(
    gpu: &Gpu,
    problem: &Problem,
    options: &Options,
    q: &Tensor<T, Ix4>,
    k: &Tensor<T, Ix4>,
    v: &Tensor<T, Ix4>,
) -> Result<(Tensor<T, Ix4>, Tensor<f32, Ix3>)> {
    let half = T::NAME == f16::NAME;
    let choice = Choice::new(gpu, problem, options, half)?;
    // Positions and windows are counted in i32.
    let longest = problem.q_len.max(problem.kv_len);
    if longest > 1 << 28 {
        let (needed, limit, device) = (longest as u64, 1 << 28, gpu.to_string());
        return Err(Error::TooLarge { place: PLACE, quantity: "a sequence", needed, limit, device });
    }
    let rows = problem.batch * problem.q_heads * problem.q_len;
    // Rows of an odd length share words of f16: they go through f32, and a pass over words.
    let odd = half && problem.d_v % 2 == 1;
    let element = size_of::<T>();
    let out = gpu.allocate(PLACE, (rows * problem.d_v * element) as u64)?;
    let wide = odd.then(|| gpu.allocate(PLACE, (rows * problem.d_v * 4) as u64)).transpose()?;
    let lse = gpu.allocate(PLACE, (rows * 4) as u64)?;
    let check = gpu.check(PLACE, &[NOT_FINITE])?;
    let bias = options.bias.as_ref().map(Tensor::storage);
    let (Storage::Gpu(_, q_buffer), Storage::Gpu(_, k_buffer), Storage::Gpu(_, v_buffer)) =
        (q.storage(), k.storage(), v.storage())
    else {
        unreachable!("all are on one device")
    };
    let (bias, bias_checks) = match (&bias, &options.bias) {
        (Some(Storage::Gpu(_, buffer)), Some(tensor)) => (buffer.as_ref(), tensor.checks()),
        _ => (q_buffer.as_ref(), &[][..]),
    };
    let sequences = problem.sequences.len();
    let by_table =
        options.ragged.is_some() || options.key_lengths.is_some() || options.sinks.is_some() || options.alibi.is_some();
    let most_sequences = match by_table {
        true => (gpu.rows_per_window(PLACE, 4)?.saturating_sub(2 * problem.q_heads) / 4).max(1),
        false => sequences,
    };
    let tables = match by_table && sequences <= most_sequences {
        true => Some(gpu.upload(PLACE, bytemuck::cast_slice(&tables(problem, options, 0..sequences)))?),
        false => None,
    };
    let mut flags = 0;
    for (flag, set) in [
        (CAUSAL, problem.causal),
        (WINDOW, problem.window.is_some()),
        (SOFTCAP, problem.softcap.is_some()),
        (ALIBI, options.alibi.is_some()),
        (SINKS, options.sinks.is_some()),
        (BIAS, problem.bias_strides.is_some()),
        (TABLE, by_table),
    ] {
        flags |= if set { flag } else { 0 };
    }
    let call = Call {
        gpu,
        problem,
        choice,
        flags,
        element,
        splits: options.splits,
        inputs: [q_buffer, k_buffer, v_buffer, bias],
        options,
        tables,
        most_sequences,
        out: wide.as_ref().unwrap_or(&out),
        half_out: half && !odd,
        lse: &lse,
        check: &check,
    };
    if rows > 0 {
        call.region(Region::whole(problem))?;
        if let Some(wide) = &wide {
            narrow(gpu, PLACE, problem.d_v, (wide, &lse), &out, rows * problem.d_v, &check)?;
        }
    }
    let checks =
        crate::kernels::inherit(&[std::slice::from_ref(&check), q.checks(), k.checks(), v.checks(), bias_checks]);
    let dim = Ix4(problem.batch, problem.q_heads, problem.q_len, problem.d_v);
    let lse = Tensor::on_gpu(gpu, lse, Ix3(problem.batch, problem.q_heads, problem.q_len), checks.clone());
    Ok((Tensor::on_gpu(gpu, out, dim, checks), lse))
}

/// What the shader reads of these sequences, and of heads.
fn tables(problem: &Problem, options: &Options, sequences: Range<usize>) -> Vec<u32> {
    let sequence = |sequence: &crate::attention::Sequence| {
        let q_row = sequence.batch * problem.q_heads * problem.q_len + sequence.q_start;
        let kv_row = sequence.batch * problem.kv_heads * problem.kv_len + sequence.kv_start;
        [q_row as u32, sequence.q_len as u32, kv_row as u32, sequence.kv_len as u32]
    };
    let none = vec![0.0; problem.q_heads];
    let per_head = [&options.sinks, &options.alibi].map(|values| values.as_ref().unwrap_or(&none));
    let per_head = per_head.into_iter().flatten().map(|value| value.to_bits());
    problem.sequences[sequences].iter().flat_map(sequence).chain(per_head).collect()
}

impl Call<'_> {
    /// Records the attention of `rows` workgroups' regions to `out` and `lse`, whose first row is `base` and whose slots are `slot_rows` apart.
    #[allow(clippy::too_many_arguments)]
    fn dispatch(
        &self,
        region: &Region,
        splits: usize,
        slot: usize,
        with_sinks: bool,
        half_out: bool,
        (out, lse): (&Buffer, &Buffer),
        (base, slot_rows): (usize, usize),
    ) -> Result<()> {
        let (gpu, problem) = (self.gpu, self.problem);
        let alignment = gpu.binding_alignment();
        let window = |buffer, (first, count): (usize, usize), bytes: usize| {
            let (view, shift) =
                View::window(buffer, (first * bytes) as u64, ((count * bytes).max(4)) as u64, alignment);
            (view, ((shift as usize / bytes) as u32).wrapping_sub(first as u32))
        };
        let spans = region.spans(problem);
        let (q, q_offset) = window(self.inputs[0], spans.q, self.element);
        let (k, k_offset) = window(self.inputs[1], spans.k, self.element);
        let (v, v_offset) = window(self.inputs[2], spans.v, self.element);
        let (bias, bias_offset) = match problem.bias_strides {
            Some(_) => window(self.inputs[3], spans.bias, 4),
            None => (q, 0),
        };
        let own = spans.rows;
        let slots = slot + splits;
        let out_element = if half_out { 2 } else { 4 };
        let (out_first, lse_first) = (own.0 - base, own.0 - base);
        let (out_rows, lse_rows) = ((slots - 1) * slot_rows + own.1, (slots - 1) * slot_rows + own.1);
        let (out, out_offset) = window(out, (out_first * problem.d_v, out_rows * problem.d_v), out_element);
        let (lse, lse_offset) = window(lse, (lse_first, lse_rows), 4);
        let cut;
        let (tables, in_tables) = match &self.tables {
            Some(tables) => (tables.view(), 0..problem.sequences.len()),
            None if self.flags & TABLE == 0 => (q, 0..0),
            None => {
                let words = tables(problem, self.options, region.sequences.clone());
                cut = gpu.upload(PLACE, bytemuck::cast_slice(&words))?;
                (cut.view(), region.sequences.clone())
            }
        };
        let members = region.members.len();
        let queries = region.queries.len();
        let tiles = (members * queries).div_ceil(self.choice.rows as usize);
        let groups = tiles * region.heads.len() * region.sequences.len() * splits;
        let grid = gpu.grid(PLACE, groups as u64)?;
        let strides = problem.bias_strides.unwrap_or([0; 4]);
        let mut flags = self.flags;
        if !with_sinks {
            flags &= !SINKS;
        }
        if half_out {
            flags |= HALF_OUT;
        }
        let params = ForwardParams {
            q_offset,
            k_offset,
            v_offset,
            bias_offset,
            // Indices into out and lse are those of the whole, moved down by the rows before this part's first.
            out_offset: out_offset.wrapping_sub((base as u32).wrapping_mul(problem.d_v as u32)),
            lse_offset: lse_offset.wrapping_sub(base as u32),
            flags,
            splits: splits as u32,
            d: problem.d as u32,
            d_v: problem.d_v as u32,
            q_heads: problem.q_heads as u32,
            kv_heads: problem.kv_heads as u32,
            q_len: problem.q_len as u32,
            kv_len: problem.kv_len as u32,
            group: problem.group() as u32,
            sequences: in_tables.len() as u32,
            first_sequence: region.sequences.start as u32,
            first_head: region.heads.start as u32,
            heads: region.heads.len() as u32,
            first_member: region.members.start as u32,
            members: members as u32,
            first_query: region.queries.start as u32,
            queries: queries as u32,
            first_key: region.keys.start as u32,
            last_key: region.keys.end as u32,
            tiles: tiles as u32,
            groups: groups as u32,
            groups_x: grid[0],
            window: problem.window.map_or(0, |window| window.min(1 << 29)) as u32,
            scale: problem.scale,
            softcap: problem.softcap.unwrap_or(1.0),
            slot: slot as u32,
            bias_sequence: strides[0] as u32,
            bias_head: strides[1] as u32,
            bias_query: strides[2] as u32,
            bias_key: strides[3] as u32,
            slot_rows: slot_rows as u32,
            first_in_tables: in_tables.start as u32,
            pad1: 0,
            pad2: 0,
        };
        let bindings = [q, k, v, bias, tables, out, lse, self.check.view()];
        gpu.run(self.choice.kernel, &self.choice.constants, &params, &bindings, grid)
    }

    /// Records `out` and `lse`, rows from `row` on, from `parts` parts of `rows` rows, the first of which is `first_row` of the whole.
    fn merge(
        &self,
        (part, part_lse): (&Buffer, &Buffer),
        parts: usize,
        (out, lse): (&Buffer, &Buffer),
        row: usize,
        (first_row, rows): (usize, usize),
        half_out: bool,
    ) -> Result<()> {
        let join = Join {
            place: PLACE,
            d_v: self.problem.d_v,
            half: false,
            half_out,
            part: (part.view(), 0),
            part_lse: (part_lse.view(), 0),
            parts,
            stride: rows,
            rows,
            row,
            first_row,
        };
        join.run(self.gpu, (out, lse), self.check)
    }
}

/// Records the f16 of `elements` f32 in rows of `d_v`, in windows of whole words: a merge of one part, whose log-sum-exps it leaves as they are.
pub(in crate::kernels) fn narrow(
    gpu: &Gpu,
    place: &'static str,
    d_v: usize,
    (wide, lse): (&Buffer, &Buffer),
    out: &Buffer,
    elements: usize,
    check: &Check,
) -> Result<()> {
    let alignment = gpu.binding_alignment();
    // Two rows are whole words, whatever their length.
    let limit = (gpu.max_binding() - alignment - 4) as usize;
    let step = limit / (d_v * 8) * 2;
    let rows = elements / d_v;
    let spare = gpu.allocate(place, (rows * 4) as u64)?;
    for row in (0..rows).step_by(step) {
        let count = step.min(rows - row);
        let window = |buffer, bytes: usize| {
            let (view, shift) = View::window(buffer, (row * bytes) as u64, (count * bytes) as u64, alignment);
            (view, shift as u32 / 4)
        };
        let join = Join {
            place,
            d_v,
            half: false,
            half_out: true,
            part: window(wide, d_v * 4),
            part_lse: window(lse, 4),
            parts: 1,
            stride: 0,
            rows: count,
            row,
            first_row: row,
        };
        join.run(gpu, (out, &spare), check)?;
    }
    Ok(())
}
