//! A small network of candidates and their behaviours, and the sum of the behaviours by what it gives.

mod cpu;

use ndarray::{Array1, Array2, Ix1, Ix2};

use crate::device::host_memory;
use crate::gpu::{Constant, Finding, Kernel, Needs, Params, View, params, shader};
use crate::tensor::{Storage, Tensor};
use crate::{Error, Result};

const PLACE: &str = "local_activation_unit";

params! {
    /// As in `shaders/activation_unit.wgsl`.
    ActivationUnitParams {
        keys: u32,
        depth: u32,
        units: u32,
        kind: u32,
        first_row: u32,
        tiles: u32,
        groups_x: u32,
        inputs_offset: u32,
        out_offset: u32,
        queries_offset: u32,
        base_offset: u32,
        rows_offset: u32,
    }
}

params! {
    /// As in `shaders/activation_pool.wgsl`.
    ActivationPoolParams {
        rows: u32,
        depth: u32,
        units: u32,
        softmax: u32,
        scale: f32,
        first: u32,
        first_key: u32,
        groups_x: u32,
        hidden_offset: u32,
        offsets_offset: u32,
        keys_offset: u32,
        weights_offset: u32,
        out_offset: u32,
        pad0: u32,
        pad1: u32,
        pad2: u32,
    }
}

static ACTIVATION_UNIT: Kernel = Kernel {
    name: "activation_unit",
    sources: &[shader!("activation_unit.wgsl")],
    needs: Needs::NONE,
    fields: ActivationUnitParams::FIELDS,
    params_bytes: size_of::<ActivationUnitParams>(),
};
static ACTIVATION_POOL: Kernel = Kernel {
    name: "activation_pool",
    sources: &[shader!("activation_pool.wgsl")],
    needs: Needs::NONE,
    fields: ActivationPoolParams::FIELDS,
    params_bytes: size_of::<ActivationPoolParams>(),
};

fn constants(gated: bool) -> [(&'static str, Constant); 1] {
    [("GATED", Constant::U32(gated.into()))]
}

pub(crate) fn variants() -> Vec<(&'static Kernel, Vec<(&'static str, Constant)>)> {
    let layers = [true, false].map(|gated| (&ACTIVATION_UNIT, constants(gated).to_vec()));
    layers.into_iter().chain([(&ACTIVATION_POOL, Vec::new())]).collect()
}

const NOT_FINITE: Finding =
    Finding { quantity: "output row", expected: "finite, as the inputs must be and their sums", found: "not finite" };

/// The activation of a layer, numbered as in the shader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Sigmoid = 0,
    Prelu = 1,
    Dice = 2,
}

/// Everything of a call but candidates and behaviours.
pub(crate) struct Problem<'a> {
    /// Where the behaviours of each candidate begin, and where the last ones end.
    pub(crate) offsets: &'a [usize],
    /// What weights are multiplied by before a softmax over them.
    pub(crate) softmax: Option<f32>,
    /// [2 d, units]: by the behaviour, by candidate * behaviour.
    pub(crate) key: &'a Tensor<f32, Ix2>,
    pub(crate) deeper: &'a [Tensor<f32, Ix2>],
    /// Of each layer [units, 4]: bias, alpha, Dice's 1 / deviation, its mean.
    pub(crate) units: &'a [Tensor<f32, Ix2>],
    pub(crate) kinds: &'a [Kind],
    /// [units + 1]: weights, bias.
    pub(crate) last: &'a Tensor<f32, Ix1>,
}

type Results = (Tensor<f32, Ix2>, Tensor<f32, Ix1>);

/// The sums and the weights; `base` [candidates, units] is what each candidate brings to the first layer.
pub(crate) fn on_cpu(
    problem: &Problem<'_>,
    candidates: &Tensor<f32, Ix2>,
    behaviours: &Tensor<f32, Ix2>,
    base: &Tensor<f32, Ix2>,
) -> Result<Results> {
    let mut output = host_memory(PLACE, candidates.len())?;
    let mut weights = host_memory(PLACE, behaviours.shape()[0])?;
    if let Some(index) = cpu::forward(problem, candidates, behaviours, base, &mut output, &mut weights) {
        let Finding { quantity, expected, found } = NOT_FINITE;
        return Err(Error::Domain { place: PLACE, quantity, index, expected, found: found.into() });
    }
    match Array2::from_shape_vec(candidates.raw_dim(), output) {
        Ok(output) => Ok((Tensor::host(output), Tensor::host(Array1::from_vec(weights)))),
        Err(_) => unreachable!("as many elements as the candidates"),
    }
}

/// Keys of a workgroup, and units.
const KEYS: usize = 16;
const UNITS: usize = 64;

/// As [`on_cpu`].
pub(crate) fn on_gpu(
    problem: &Problem<'_>,
    candidates: &Tensor<f32, Ix2>,
    behaviours: &Tensor<f32, Ix2>,
    base: &Tensor<f32, Ix2>,
) -> Result<Results> {
    let (Storage::Gpu(gpu, queries), Storage::Gpu(_, keys), Storage::Gpu(_, base_buffer)) =
        (candidates.storage(), behaviours.storage(), base.storage())
    else {
        unreachable!("only called for a GPU")
    };
    let (rows, d, total) = (candidates.shape()[0], candidates.shape()[1], behaviours.shape()[0]);
    let widths: Vec<usize> = problem.units.iter().map(|units| units.shape()[0]).collect();
    let widest = widths.iter().copied().max().unwrap_or(1);
    let out = gpu.allocate(PLACE, (rows * d * 4) as u64)?;
    let weights = gpu.allocate(PLACE, (total * 4) as u64)?;
    let check = gpu.check(PLACE, &[NOT_FINITE])?;
    let checks = super::inherit(&[std::slice::from_ref(&check), base.checks(), behaviours.checks()]);
    let result = |out, weights, checks: Vec<_>| {
        (Tensor::on_gpu(gpu, out, Ix2(rows, d), checks.clone()), Tensor::on_gpu(gpu, weights, Ix1(total), checks))
    };
    if rows == 0 {
        return Ok(result(out, weights, checks));
    }
    let host = |values: Vec<u32>| gpu.upload(PLACE, bytemuck::cast_slice(&values));
    let offsets = host(problem.offsets.iter().map(|&offset| offset as u32).collect())?;
    let of_key = problem.offsets.windows(2).enumerate();
    let row_of_key = host(of_key.flat_map(|(row, ends)| std::iter::repeat_n(row as u32, ends[1] - ends[0])).collect())?;
    let alignment = gpu.binding_alignment();
    let window = |buffer, first: usize, count: usize, stride: usize| {
        let (view, shift) = View::window(buffer, (first * stride * 4) as u64, (count * stride * 4) as u64, alignment);
        (view, shift as u32 / 4)
    };
    let most_keys = gpu.rows_per_window(PLACE, d.max(widest) * 4)?;
    let most_rows = gpu.rows_per_window(PLACE, d.max(widest) * 4)?.min(gpu.rows_per_window(PLACE, 4)? - 1);
    for tensor in problem.deeper.iter().chain([problem.key]) {
        gpu.rows_per_window(PLACE, tensor.len() * 4)?;
    }
    let mut first = 0;
    while first < rows {
        let begin = problem.offsets[first];
        let mut end = first + 1;
        while end < rows && end - first < most_rows && problem.offsets[end + 1] - begin <= most_keys {
            end += 1;
        }
        let (count, length) = (end - first, problem.offsets[end] - begin);
        if length > most_keys {
            gpu.rows_per_window(PLACE, length * d.max(widest) * 4)?;
        }
        let (query_view, queries_offset) = window(queries, first, count, d);
        let (base_view, base_offset) = window(base_buffer, first, count, widths[0]);
        let (row_view, rows_offset) = window(&row_of_key, begin, length, 1);
        let (key_view, keys_offset) = window(keys, begin, length, d);
        let mut hidden = None;
        for (layer, &units) in widths.iter().enumerate() {
            let to = gpu.allocate(PLACE, (length * units * 4) as u64)?;
            let (inputs, inputs_offset, depth, matrix) = match &hidden {
                None => (key_view, keys_offset, d, problem.key),
                Some((hidden, depth)) => {
                    let hidden: &crate::gpu::Buffer = hidden;
                    (hidden.view(), 0, *depth, &problem.deeper[layer - 1])
                }
            };
            let (Storage::Gpu(_, matrix), Storage::Gpu(_, table)) = (matrix.storage(), problem.units[layer].storage())
            else {
                unreachable!("the weights are where the candidates are")
            };
            let tiles = units.div_ceil(UNITS);
            let grid = gpu.grid(PLACE, (length.div_ceil(KEYS) * tiles) as u64)?;
            let params = ActivationUnitParams {
                keys: length as u32,
                depth: depth as u32,
                units: units as u32,
                kind: problem.kinds[layer] as u32,
                first_row: first as u32,
                tiles: tiles as u32,
                groups_x: grid[0],
                inputs_offset,
                out_offset: 0,
                queries_offset,
                base_offset,
                rows_offset,
            };
            let bindings =
                [inputs, matrix.view(), table.view(), to.view(), query_view, base_view, row_view, check.view()];
            if length > 0 {
                gpu.run(&ACTIVATION_UNIT, &constants(layer == 0), &params, &bindings, grid)?;
            }
            hidden = Some((to, units));
        }
        let (Some((hidden, units)), Storage::Gpu(_, last)) = (hidden, problem.last.storage()) else {
            unreachable!("there is a layer")
        };
        let (offset_view, offsets_offset) = window(&offsets, first, count + 1, 1);
        let (weight_view, weights_offset) = window(&weights, begin, length, 1);
        let (out_view, out_offset) = window(&out, first, count, d);
        let grid = gpu.grid(PLACE, count as u64)?;
        let params = ActivationPoolParams {
            rows: count as u32,
            depth: d as u32,
            units: units as u32,
            softmax: problem.softmax.is_some().into(),
            scale: problem.softmax.unwrap_or(1.0),
            first: first as u32,
            first_key: begin as u32,
            groups_x: grid[0],
            hidden_offset: 0,
            offsets_offset,
            keys_offset,
            weights_offset,
            out_offset,
            pad0: 0,
            pad1: 0,
            pad2: 0,
        };
        let bindings = [hidden.view(), last.view(), offset_view, key_view, weight_view, out_view, check.view()];
        gpu.run(&ACTIVATION_POOL, &[], &params, &bindings, grid)?;
        first = end;
    }
    Ok(result(out, weights, checks))
}
