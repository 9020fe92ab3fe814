//! The GPU's way: delta, then one dispatch for each gradient over all sequences and heads; where a tensor exceeds a binding, one for each window of queries
//! and keys of each head, added up in order.

use std::ops::Range;
use std::sync::Arc;

use super::*;
use crate::attention::Sequence;
use crate::gpu::{Buffer, Check, Constant, Gpu, Kernel, Needs, Params, View, params, shader};

params! {
    /// As in `shaders/attention/backward.wgsl`.
    BackwardParams {
        q_offset: u32,
        k_offset: u32,
        v_offset: u32,
        grad_offset: u32,
        stats_offset: u32,
        bias_offset: u32,
        out_offset: u32,
        d: u32,
        d_v: u32,
        q_rows: u32,
        kv_rows: u32,
        heads: u32,
        group: u32,
        head0: u32,
        sequences: u32,
        flags: u32,
        window: i32,
        scale: f32,
        cap: f32,
        bias_sequence: u32,
        bias_head: u32,
        bias_query: u32,
        bias_key: u32,
        i_limit: u32,
        j_limit: u32,
        pad0: u32,
        pad1: u32,
        pad2: u32,
    }
}

params! {
    /// As in `shaders/attention/backward_delta.wgsl`.
    DeltaParams {
        rows: u32,
        d_v: u32,
        output_offset: u32,
        grad_offset: u32,
        lse_offset: u32,
        stats_offset: u32,
        first: u32,
        groups_x: u32,
    }
}

params! {
    /// As in `shaders/attention/backward_sinks.wgsl`.
    SinksParams {
        rows: u32,
        batches: u32,
        head_rows: u32,
        batch_rows: u32,
        stats_offset: u32,
        head0: u32,
        accumulate: u32,
        pad0: u32,
    }
}

params! {
    /// As in `shaders/attention/backward_bias.wgsl`.
    BiasParams {
        bias_offset: u32,
        bias_head: u32,
        bias_query: u32,
        bias_key: u32,
        q_rows: u32,
        first_row: u32,
        causal: u32,
        window: i32,
    }
}

static BACKWARD: Kernel = Kernel {
    name: "attention_backward",
    sources: &[shader!("attention/backward.wgsl"), shader!("shared/math_f32.wgsl")],
    needs: Needs::NONE,
    fields: BackwardParams::FIELDS,
    params_bytes: size_of::<BackwardParams>(),
};
static DELTA: Kernel = Kernel {
    name: "attention_backward_delta",
    sources: &[shader!("attention/backward_delta.wgsl")],
    needs: Needs::NONE,
    fields: DeltaParams::FIELDS,
    params_bytes: size_of::<DeltaParams>(),
};
static BIAS: Kernel = Kernel {
    name: "attention_backward_bias",
    sources: &[shader!("attention/backward_bias.wgsl")],
    needs: Needs::NONE,
    fields: BiasParams::FIELDS,
    params_bytes: size_of::<BiasParams>(),
};
static SINKS: Kernel = Kernel {
    name: "attention_backward_sinks",
    sources: &[shader!("attention/backward_sinks.wgsl"), shader!("shared/math_f32.wgsl")],
    needs: Needs::NONE,
    fields: SinksParams::FIELDS,
    params_bytes: size_of::<SinksParams>(),
};

/// Queries and keys of a tile.
const TILE: usize = 32;
/// Words of a sequence in the table.
const WORDS: usize = 12;

/// Which gradient a dispatch makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Of {
    Queries,
    Keys,
    Values,
    Bias,
}

const ALL: [Of; 4] = [Of::Queries, Of::Keys, Of::Values, Of::Bias];

fn constants(of: Of, half: bool, width: usize) -> Vec<(&'static str, Constant)> {
    let name = ["QUERIES", "KEYS", "VALUES", "BIAS"][of as usize];
    // Chunks of 32 columns that an invocation keeps sums of.
    let chunks = if of == Of::Bias { 1 } else { width.div_ceil(TILE).next_power_of_two() as u32 };
    vec![("OUTPUT", Constant::Choice(name)), ("HALF", Constant::U32(half.into())), ("CHUNKS", Constant::U32(chunks))]
}

pub(crate) fn variants() -> Vec<(&'static Kernel, Vec<(&'static str, Constant)>)> {
    let mut all = Vec::new();
    for half in [false, true] {
        for of in ALL {
            for width in if of == Of::Bias { vec![1] } else { vec![32, 64, 128, 256] } {
                all.push((&BACKWARD, constants(of, half, width)));
            }
        }
        all.push((&DELTA, vec![("HALF", Constant::U32(half.into()))]));
    }
    all.extend([(&BIAS, Vec::new()), (&SINKS, Vec::new())]);
    all
}

/// A call's buffers.
struct Call<'a> {
    gpu: &'a Gpu,
    problem: &'a Problem,
    half: bool,
    q: &'a Buffer,
    k: &'a Buffer,
    v: &'a Buffer,
    grad: &'a Buffer,
    bias: Option<(&'a Buffer, [usize; 4])>,
    alibi: Option<&'a [f32]>,
    stats: Buffer,
    check: &'a Check,
    out: [Option<Buffer>; 4],
}

/// Rows of one head and sequence that a dispatch sees, where it does not see all.
struct Window {
    head: usize,
    queries: Range<usize>,
    keys: Range<usize>,
}

pub(super) fn backward<T: AttentionElement>(
    gpu: &Gpu,
    problem: &Problem,
    options: &Options,
    tensors: [&Tensor<T, Ix4>; 5],
    lse: &Tensor<f32, Ix3>,
) -> Result<Gradients> {
    let [q, k, v, output, grad] = tensors.map(buffer_of);
    let lse_buffer = buffer_of(lse);
    let half = T::NAME == "f16";
    let check = gpu.check(PLACE, &[FINDING, BIAS_FINDING])?;
    let stats = delta(gpu, problem, half, [output, grad, lse_buffer], &check)?;
    let bias = options.bias.as_ref().map(|bias| {
        let shape = bias.shape();
        (buffer_of(bias), [shape[0], shape[1], shape[2], shape[3]])
    });
    let zeros = |elements: usize| -> Result<Option<Buffer>> {
        let buffer = gpu.allocate(PLACE, (elements * 4) as u64)?;
        gpu.clear(&buffer);
        Ok(Some(buffer))
    };
    let out = [
        zeros(tensors[0].len())?,
        zeros(tensors[1].len())?,
        zeros(tensors[2].len())?,
        match &options.bias {
            Some(bias) => zeros(bias.len())?,
            None => None,
        },
    ];
    let alibi = options.alibi.as_deref();
    let mut call = Call { gpu, problem, half, q, k, v, grad, bias, alibi, stats, check: &check, out };
    call.run()?;
    let sinks = match &options.sinks {
        Some(sinks) => Some(call.sinks(sinks)?),
        None => None,
    };
    let mut inputs: Vec<&[Arc<Check>]> = tensors.iter().map(|tensor| tensor.checks()).collect();
    inputs.extend([lse.checks(), std::slice::from_ref(&check)]);
    inputs.extend(options.bias.as_ref().map(Tensor::checks));
    let checks = crate::kernels::inherit(&inputs);
    let mut tensor =
        |of: Of, dim| call.out[of as usize].take().map(|out| Tensor::on_gpu(gpu, out, dim, checks.clone()));
    let made = (
        tensor(Of::Queries, tensors[0].raw_dim()),
        tensor(Of::Keys, tensors[1].raw_dim()),
        tensor(Of::Values, tensors[2].raw_dim()),
    );
    let (Some(q), Some(k), Some(v)) = made else { unreachable!("allocated above") };
    let bias = options.bias.as_ref().and_then(|bias| tensor(Of::Bias, bias.raw_dim()));
    let sinks = sinks.map(|out| Tensor::on_gpu(gpu, out, Ix1(problem.q_heads), checks.clone()));
    Ok(Gradients { q, k, v, bias, sinks })
}

fn buffer_of<T: crate::Element, D: ndarray::Dimension>(tensor: &Tensor<T, D>) -> &Buffer {
    match tensor.storage() {
        Storage::Gpu(_, buffer) => buffer,
        Storage::Host(_) => unreachable!("all are on one device"),
    }
}

/// (lse, delta) of every query.
fn delta(gpu: &Gpu, problem: &Problem, half: bool, inputs: [&Buffer; 3], check: &Check) -> Result<Buffer> {
    let [output, grad, lse] = inputs;
    let rows = problem.batch * problem.q_heads * problem.q_len;
    let element = if half { 2 } else { 4 };
    let stats = gpu.allocate(PLACE, (rows * 8) as u64)?;
    let step = gpu.rows_per_window(PLACE, (problem.d_v * element).max(8))?;
    for first in (0..rows).step_by(step) {
        let part = step.min(rows - first);
        let window = |buffer, bytes: usize| {
            View::window(buffer, (first * bytes) as u64, (part * bytes) as u64, gpu.binding_alignment())
        };
        let (output, output_shift) = window(output, problem.d_v * element);
        let (grad, grad_shift) = window(grad, problem.d_v * element);
        let (lse, lse_shift) = window(lse, 4);
        let (stats, stats_shift) = window(&stats, 8);
        let grid = gpu.grid(PLACE, part.div_ceil(16) as u64)?;
        let params = DeltaParams {
            rows: part as u32,
            d_v: problem.d_v as u32,
            output_offset: output_shift as u32 / element as u32,
            grad_offset: grad_shift as u32 / element as u32,
            lse_offset: lse_shift as u32 / 4,
            stats_offset: stats_shift as u32 / 4,
            first: first as u32,
            groups_x: grid[0],
        };
        let constants = [("HALF", Constant::U32(half.into()))];
        gpu.run(&DELTA, &constants, &params, &[output, grad, lse, stats, check.view()], grid)?;
    }
    Ok(stats)
}

impl Call<'_> {
    /// Records all of q, k, v and the bias.
    fn run(&self) -> Result<()> {
        let problem = self.problem;
        if problem.q_len.max(problem.kv_len) >= 1 << 29 {
            return Err(Error::TooLarge {
                place: PLACE,
                quantity: "q_len or kv_len",
                needed: problem.q_len.max(problem.kv_len) as u64,
                limit: (1 << 29) - 1,
                device: self.gpu.to_string(),
            });
        }
        let (limit, groups) = (self.gpu.max_binding(), self.gpu.max_groups());
        let buffers = [self.q, self.k, self.v, self.grad, &self.stats].into_iter().chain(self.out.iter().flatten());
        let fits = buffers.map(Buffer::bytes).all(|bytes| bytes <= limit)
            && problem.q_heads <= groups
            && problem.q_len.max(problem.kv_len).div_ceil(TILE) <= groups;
        if fits {
            // A table of this many sequences, its slopes behind it, within a binding; and, with a bias, as many grids of heads.
            let most = ((limit as usize / 4 - problem.q_heads) / WORDS).min(groups / problem.q_heads).max(1);
            for first in (0..problem.sequences.len()).step_by(most) {
                let last = (first + most).min(problem.sequences.len());
                self.dispatch(first..last, None)?;
            }
            return Ok(());
        }
        // Columns of the widest row of queries and of keys; gradients are f32.
        let width = problem.d.max(problem.d_v) * 4;
        let most = self.gpu.rows_per_window(PLACE, width.max(8))?.min(groups * TILE);
        let elements = self.gpu.rows_per_window(PLACE, 4)?;
        let bias_row = problem.bias_strides.map_or(0, |strides| strides[2]);
        let queries_step = most.min(elements.checked_div(bias_row).unwrap_or(most)).max(1);
        let keys_step = if bias_row > elements { most.min(elements) } else { most };
        for (index, sequence) in problem.sequences.iter().enumerate() {
            for head in 0..problem.q_heads {
                for first in (0..sequence.q_len).step_by(queries_step) {
                    let queries = first..(first + queries_step).min(sequence.q_len);
                    let seen = problem.keys(sequence, queries.start).start..problem.keys(sequence, queries.end - 1).end;
                    for first in (0..sequence.kv_len).step_by(keys_step) {
                        let keys = first..(first + keys_step).min(sequence.kv_len);
                        if keys.start.max(seen.start) < keys.end.min(seen.end) {
                            self.dispatch(index..index + 1, Some(Window { head, queries: queries.clone(), keys }))?;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Records the gradients of some of the sequences, or of a window of one.
    fn dispatch(&self, sequences: Range<usize>, window: Option<Window>) -> Result<()> {
        let problem = self.problem;
        let strides = problem.bias_strides.unwrap_or([0; 4]);
        let element = if self.half { 2 } else { 4 };
        let alignment = self.gpu.binding_alignment();
        // The first row of a window in its tensor, and its rows; all of it where there is none.
        let rows = |sequence: &Sequence, by_keys: bool| {
            window.as_ref().map(|window| {
                let (heads, head, length, start, range) = match by_keys {
                    false => (problem.q_heads, window.head, problem.q_len, sequence.q_start, &window.queries),
                    true => {
                        let head = window.head / problem.group();
                        (problem.kv_heads, head, problem.kv_len, sequence.kv_start, &window.keys)
                    }
                };
                ((sequence.batch * heads + head) * length + start + range.start, range.len())
            })
        };
        let one = &problem.sequences[sequences.start];
        let (of_queries, of_keys) = (rows(one, false), rows(one, true));
        let view = |buffer, rows: Option<(usize, usize)>, columns: usize, element: usize| match rows {
            None => (View { ..Buffer::view(buffer) }, 0),
            Some((first, count)) => {
                let bytes = |rows: usize| (rows * columns * element) as u64;
                let (view, shift) = View::window(buffer, bytes(first), bytes(count), alignment);
                (view, (shift / element as u64) as u32)
            }
        };
        let (q, q_offset) = view(self.q, of_queries, problem.d, element);
        let (grad, grad_offset) = view(self.grad, of_queries, problem.d_v, element);
        let (stats, stats_offset) = view(&self.stats, of_queries, 2, 4);
        let (k, k_offset) = view(self.k, of_keys, problem.d, element);
        let (v, v_offset) = view(self.v, of_keys, problem.d_v, element);
        // The bias from the window's first element to its last.
        let bias_rows = window.as_ref().map(|window| {
            let at = |i: usize, j: usize| {
                sequences.start * strides[0] + window.head * strides[1] + i * strides[2] + j * strides[3]
            };
            let first = at(window.queries.start, window.keys.start);
            (first, at(window.queries.end - 1, window.keys.end - 1) + 1 - first)
        });
        let (bias, bias_offset) = match self.bias {
            Some((bias, _)) => view(bias, bias_rows, 1, 4),
            None => (stats, stats_offset),
        };
        let mut table = Vec::with_capacity(sequences.len() * WORDS + problem.q_heads);
        let (mut i_limit, mut j_limit) = (0, 0);
        for (at, sequence) in problem.sequences[sequences.clone()].iter().enumerate() {
            let (queries, keys) = match &window {
                None => (0..sequence.q_len, 0..sequence.kv_len),
                Some(window) => (window.queries.clone(), window.keys.clone()),
            };
            // Of a window, its first query, key and element of the bias are number 0; all of this wraps, as the shader's sums do.
            let (q_row, kv_row, bias_at) = match &window {
                None => (
                    sequence.batch * problem.q_heads * problem.q_len + sequence.q_start,
                    sequence.batch * problem.kv_heads * problem.kv_len + sequence.kv_start,
                    (sequences.start + at) * strides[0],
                ),
                Some(_) => (
                    queries.start.wrapping_neg(),
                    keys.start.wrapping_neg(),
                    (queries.start * strides[2] + keys.start * strides[3]).wrapping_neg(),
                ),
            };
            i_limit = i_limit.max(queries.end);
            j_limit = j_limit.max(keys.end);
            let words = [
                q_row,
                kv_row,
                sequence.q_len,
                sequence.kv_len,
                queries.start,
                queries.end,
                keys.start,
                keys.end,
                bias_at,
                0,
                0,
                0,
            ];
            table.extend(words.map(|word| word as u32));
        }
        table.extend(self.alibi.unwrap_or(&[]).iter().map(|slope| slope.to_bits()));
        let table = self.gpu.upload(PLACE, bytemuck::cast_slice(&table))?;
        let flag = |set: bool, bit: u32| if set { bit } else { 0 };
        // A window's gradients join those of the windows before; so does a bias over several tables.
        let add = window.is_some();
        let params = BackwardParams {
            q_offset,
            k_offset,
            v_offset,
            grad_offset,
            stats_offset,
            bias_offset,
            out_offset: 0,
            d: problem.d as u32,
            d_v: problem.d_v as u32,
            q_rows: problem.q_len as u32,
            kv_rows: problem.kv_len as u32,
            heads: if window.is_some() { 1 } else { problem.q_heads as u32 },
            group: if window.is_some() { 1 } else { problem.group() as u32 },
            head0: window.as_ref().map_or(0, |window| window.head as u32),
            sequences: sequences.len() as u32,
            flags: flag(problem.causal, 1)
                | flag(problem.softcap.is_some(), 2)
                | flag(self.alibi.is_some(), 4)
                | flag(self.bias.is_some(), 8)
                | flag(add, 16),
            window: problem.window.map_or(1 << 30, |window| window.min(1 << 30)) as i32,
            scale: problem.scale,
            cap: problem.softcap.unwrap_or(1.0),
            bias_sequence: strides[0] as u32,
            bias_head: strides[1] as u32,
            bias_query: strides[2] as u32,
            bias_key: strides[3] as u32,
            i_limit: i_limit as u32,
            j_limit: j_limit as u32,
            pad0: 0,
            pad1: 0,
            pad2: 0,
        };
        if self.bias.is_some() && i_limit > 0 && j_limit > 0 {
            let heads = if strides[1] == 0 { 1 } else { params.heads };
            let params = BiasParams {
                bias_offset,
                bias_head: params.bias_head,
                bias_query: params.bias_query,
                bias_key: params.bias_key,
                q_rows: params.q_rows,
                first_row: of_queries.map_or(0, |(first, _)| first) as u32,
                causal: problem.causal.into(),
                window: params.window,
            };
            let first = window.as_ref().map_or(0, |window| window.queries.start);
            let grid = [(i_limit - first).div_ceil(TILE) as u32, heads, sequences.len() as u32];
            self.gpu.run(&BIAS, &[], &params, &[table.view(), bias, self.check.view()], grid)?;
        }
        for of in ALL {
            let Some(out) = &self.out[of as usize] else { continue };
            let (rows, width) = match of {
                Of::Queries => (of_queries, problem.d),
                Of::Keys => (of_keys, problem.d),
                Of::Values => (of_keys, problem.d_v),
                Of::Bias => (bias_rows, 1),
            };
            let (out, out_offset) = view(out, rows, width, 4);
            let mut params = BackwardParams { out_offset, ..params };
            let longest = |keys: bool| {
                let starts = |window: &Window| if keys { window.keys.start } else { window.queries.start };
                let length = if keys { j_limit } else { i_limit } - window.as_ref().map_or(0, starts);
                length.div_ceil(TILE) as u32
            };
            let grid = match of {
                Of::Queries => [longest(false), params.heads, params.sequences],
                Of::Keys | Of::Values => [longest(true), params.heads / params.group, params.sequences],
                Of::Bias => {
                    params.flags |= flag(strides[0] == 0 && sequences.len() < problem.sequences.len(), 16);
                    let of = |stride: usize, count: u32| if stride == 0 { 1 } else { count };
                    let slabs = of(strides[0], params.sequences) * of(strides[1], params.heads);
                    [of(strides[3], longest(true)), of(strides[2], longest(false)), slabs]
                }
            };
            // Nothing there, no gradient.
            if i_limit == 0 || j_limit == 0 {
                continue;
            }
            let bindings = [q, k, v, grad, stats, table.view(), bias, out];
            self.gpu.run(&BACKWARD, &constants(of, self.half, width), &params, &bindings, grid)?;
        }
        Ok(())
    }

    /// The gradients of the sinks, one a query head.
    fn sinks(&self, sinks: &[f32]) -> Result<Buffer> {
        let problem = self.problem;
        let out = self.gpu.allocate(PLACE, (sinks.len() * 4) as u64)?;
        self.gpu.clear(&out);
        if problem.batch * problem.q_len == 0 {
            return Ok(out);
        }
        let sinks = self.gpu.upload(PLACE, bytemuck::cast_slice(sinks))?;
        let mut params = SinksParams {
            rows: problem.q_len as u32,
            batches: problem.batch as u32,
            head_rows: problem.q_len as u32,
            batch_rows: (problem.q_heads * problem.q_len) as u32,
            stats_offset: 0,
            head0: 0,
            accumulate: 0,
            pad0: 0,
        };
        if self.stats.bytes() <= self.gpu.max_binding() && problem.q_heads <= self.gpu.max_groups() {
            let bindings = [self.stats.view(), sinks.view(), out.view()];
            self.gpu.run(&SINKS, &[], &params, &bindings, [problem.q_heads as u32, 1, 1])?;
            return Ok(out);
        }
        let step = self.gpu.rows_per_window(PLACE, 8)?;
        (params.batches, params.accumulate) = (1, 1);
        for plane in 0..problem.batch * problem.q_heads {
            for first in (0..problem.q_len).step_by(step) {
                let rows = step.min(problem.q_len - first);
                let from = ((plane * problem.q_len + first) * 8) as u64;
                let (stats, shift) = View::window(&self.stats, from, (rows * 8) as u64, self.gpu.binding_alignment());
                params.rows = rows as u32;
                params.stats_offset = (shift / 4) as u32;
                params.head0 = (plane % problem.q_heads) as u32;
                self.gpu.run(&SINKS, &[], &params, &[stats, sinks.view(), out.view()], [1, 1, 1])?;
            }
        }
        Ok(out)
    }
}
