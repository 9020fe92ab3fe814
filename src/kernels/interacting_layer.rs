//! Self-attention over the fields of many samples, with residual and ReLU.

mod cpu;

use ndarray::{Array3, Array4, Ix2, Ix3, Ix4};

use crate::device::host_memory;
use crate::gpu::{Constant, Finding, Kernel, Needs, Params, View, params, shader};
use crate::tensor::{Storage, Tensor};
use crate::{Error, Result};

const PLACE: &str = "interacting_layer";

params! {
    /// As in `shaders/interacting_layer.wgsl`.
    InteractingLayerParams {
        samples: u32,
        fields: u32,
        heads: u32,
        head_dim: u32,
        columns: u32,
        residual: u32,
        packed: u32,
        step: u32,
        blocks: u32,
        groups: u32,
        groups_x: u32,
        first: u32,
        projected_offset: u32,
        out_offset: u32,
        maps_offset: u32,
        scale: f32,
    }
}

static INTERACTING_LAYER: Kernel = Kernel {
    name: "interacting_layer",
    sources: &[shader!("interacting_layer.wgsl")],
    needs: Needs::NONE,
    fields: InteractingLayerParams::FIELDS,
    params_bytes: size_of::<InteractingLayerParams>(),
};

/// Invocations of a workgroup, one a row of queries.
const WORKGROUP: usize = 128;
/// Elements of staged keys, and of values: with both 16 KiB.
const STAGED: usize = 2048;
/// What a head's size is rounded up to.
const HEADS: [usize; 5] = [16, 32, 64, 128, 256];

fn constants(padded: usize, maps: bool) -> [(&'static str, Constant); 3] {
    [
        ("QUADS", Constant::U32(padded as u32 / 4)),
        ("STAGED", Constant::U32(STAGED as u32 / 4)),
        ("MAPS", Constant::U32(maps.into())),
    ]
}

pub(crate) fn variants() -> Vec<(&'static Kernel, Vec<(&'static str, Constant)>)> {
    let all = HEADS.into_iter().flat_map(|padded| [false, true].map(|maps| constants(padded, maps)));
    all.map(|constants| (&INTERACTING_LAYER, constants.to_vec())).collect()
}

const NOT_FINITE: Finding =
    Finding { quantity: "output row", expected: "finite, as x must be and its sums", found: "not finite" };

/// Everything of a call but its elements.
pub(crate) struct Shape {
    pub(crate) batch: usize,
    pub(crate) fields: usize,
    pub(crate) input: usize,
    pub(crate) heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) residual: bool,
    pub(crate) scale: f32,
    pub(crate) maps: bool,
}

impl Shape {
    /// Elements of an output row.
    fn width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Elements of a projected row: query, key, the residual if there is one, value.
    fn columns(&self) -> usize {
        self.width() * if self.residual { 4 } else { 3 }
    }

    fn maps_dim(&self) -> [usize; 4] {
        [self.batch, self.heads, self.fields, self.fields]
    }
}

type Results = (Tensor<f32, Ix3>, Option<Tensor<f32, Ix4>>);

/// Of `x` [batch, fields, in] and `projections` [in, columns].
pub(crate) fn on_cpu(shape: &Shape, x: &Tensor<f32, Ix3>, projections: &Tensor<f32, Ix2>) -> Result<Results> {
    let (Storage::Host(x), Storage::Host(projections)) = (x.storage(), projections.storage()) else {
        unreachable!("only called for the CPU")
    };
    let (Some(x), Some(projections)) = (x.as_slice(), projections.as_slice()) else {
        unreachable!("tensors are row-major")
    };
    let maps_dim = shape.maps_dim();
    let mut output = host_memory(PLACE, shape.batch * shape.fields * shape.width())?;
    let mut maps = host_memory(PLACE, if shape.maps { maps_dim.iter().product() } else { 0 })?;
    if let Some(index) = cpu::forward(shape, x, projections, &mut output, &mut maps) {
        let Finding { quantity, expected, found } = NOT_FINITE;
        return Err(Error::Domain { place: PLACE, quantity, index, expected, found: found.into() });
    }
    let output = Array3::from_shape_vec((shape.batch, shape.fields, shape.width()), output);
    let maps = shape.maps.then(|| Array4::from_shape_vec(maps_dim, maps));
    match (output, maps.transpose()) {
        (Ok(output), Ok(maps)) => Ok((Tensor::host(output), maps.map(Tensor::host))),
        _ => unreachable!("as many elements as the shapes have"),
    }
}

/// Of `projected` [batch * fields, columns].
pub(crate) fn on_gpu(shape: &Shape, projected: &Tensor<f32, Ix2>) -> Result<Results> {
    let Storage::Gpu(gpu, buffer) = projected.storage() else { unreachable!("only called for a GPU") };
    let &Shape { batch, fields, heads, head_dim, .. } = shape;
    let (width, columns) = (shape.width(), shape.columns());
    let out = gpu.allocate(PLACE, (batch * fields * width * 4) as u64)?;
    // Something to bind where no maps are asked for.
    let maps_bytes = if shape.maps { (batch * heads * fields * fields * 4) as u64 } else { 4 };
    let maps = gpu.allocate(PLACE, maps_bytes)?;
    let check = gpu.check(PLACE, &[NOT_FINITE])?;
    let Some(padded) = HEADS.into_iter().find(|&padded| head_dim <= padded) else {
        unreachable!("the weights' head_dim is at most 256")
    };
    let per_sample = columns.max(if shape.maps { heads * fields } else { 0 }) * fields * 4;
    let step = gpu.rows_per_window(PLACE, per_sample.max(1))?;
    let samples = if fields == 0 { 0 } else { batch };
    for first in (0..samples).step_by(step) {
        let part = step.min(samples - first);
        let window = |buffer, stride: usize| {
            let (view, shift) =
                View::window(buffer, (first * stride * 4) as u64, (part * stride * 4) as u64, gpu.binding_alignment());
            (view, shift as u32 / 4)
        };
        let (values, projected_offset) = window(buffer, fields * columns);
        let (rows, out_offset) = window(&out, fields * width);
        let (map, maps_offset) = if shape.maps { window(&maps, heads * fields * fields) } else { (maps.view(), 0) };
        let packed = (WORKGROUP / fields).clamp(1, STAGED / padded);
        let blocks = fields.div_ceil(WORKGROUP);
        let groups = (part * heads).div_ceil(packed) * blocks;
        let grid = gpu.grid(PLACE, groups as u64)?;
        let params = InteractingLayerParams {
            samples: part as u32,
            fields: fields as u32,
            heads: heads as u32,
            head_dim: head_dim as u32,
            columns: columns as u32,
            residual: shape.residual.into(),
            packed: packed as u32,
            step: (STAGED / padded / packed).min(fields) as u32,
            blocks: blocks as u32,
            groups: groups as u32,
            groups_x: grid[0],
            first: (first * fields) as u32,
            projected_offset,
            out_offset,
            maps_offset,
            scale: shape.scale,
        };
        let constants = constants(padded, shape.maps);
        gpu.run(&INTERACTING_LAYER, &constants, &params, &[values, rows, map, check.view()], grid)?;
    }
    let checks = super::inherit(&[&[check], projected.checks()]);
    let output = Tensor::on_gpu(gpu, out, Ix3(batch, fields, width), checks.clone());
    let maps = shape.maps.then(|| Tensor::on_gpu(gpu, maps, Ix4(batch, heads, fields, fields), checks));
    Ok((output, maps))
}
