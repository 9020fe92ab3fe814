//! Means of a map's rows and columns, the gates a convolution and a GroupNorm make of them, and the map times its gates.

mod cpu;

use ndarray::{Ix1, Ix3, Ix4};

use crate::gpu::{Constant, Finding, Gpu, Kernel, Needs, Params, View, params, shader};
use crate::tensor::{Storage, Tensor};
use crate::{Error, Result};

const PLACE: &str = "efficient_local_attention";

params! {
    /// As in `shaders/strip_means.wgsl`.
    StripMeansParams {
        planes: u32,
        height: u32,
        width: u32,
        groups_x: u32,
        x_offset: u32,
        rows_offset: u32,
        columns_offset: u32,
        pad0: u32,
    }
}

params! {
    /// As in `shaders/strip_gates.wgsl`.
    StripGatesParams {
        groups: u32,
        channels: u32,
        strip: u32,
        norm_groups: u32,
        inner: u32,
        taps: u32,
        first: u32,
        groups_x: u32,
        strips_offset: u32,
        gates_offset: u32,
        epsilon: f32,
        pad0: u32,
    }
}

params! {
    /// As in `shaders/strip_product.wgsl`.
    StripProductParams {
        elements: u32,
        height: u32,
        width: u32,
        groups_x: u32,
        x_offset: u32,
        rows_offset: u32,
        columns_offset: u32,
        out_offset: u32,
    }
}

static STRIP_MEANS: Kernel = Kernel {
    name: "strip_means",
    sources: &[shader!("strip_means.wgsl")],
    needs: Needs::NONE,
    fields: StripMeansParams::FIELDS,
    params_bytes: size_of::<StripMeansParams>(),
};
static STRIP_GATES: Kernel = Kernel {
    name: "strip_gates",
    sources: &[shader!("strip_gates.wgsl")],
    needs: Needs::NONE,
    fields: StripGatesParams::FIELDS,
    params_bytes: size_of::<StripGatesParams>(),
};
static STRIP_PRODUCT: Kernel = Kernel {
    name: "strip_product",
    sources: &[shader!("strip_product.wgsl")],
    needs: Needs::NONE,
    fields: StripProductParams::FIELDS,
    params_bytes: size_of::<StripProductParams>(),
};

pub(crate) fn variants() -> Vec<(&'static Kernel, Vec<(&'static str, Constant)>)> {
    [&STRIP_MEANS, &STRIP_GATES, &STRIP_PRODUCT].map(|kernel| (kernel, Vec::new())).to_vec()
}

const NOT_FINITE: Finding =
    Finding { quantity: "x (by its map)", expected: "finite elements and sums", found: "not finite" };

/// Everything of a call but its elements.
pub(crate) struct Shape {
    pub(crate) batch: usize,
    pub(crate) channels: usize,
    pub(crate) height: usize,
    pub(crate) width: usize,
    /// Channels of a group of the convolution.
    pub(crate) inner: usize,
    /// Elements of the convolution.
    pub(crate) length: usize,
    pub(crate) norm_groups: usize,
    pub(crate) epsilon: f32,
}

pub(crate) fn on_cpu(
    shape: &Shape,
    x: &Tensor<f32, Ix4>,
    convolution: &Tensor<f32, Ix3>,
    affine: &Tensor<f32, Ix1>,
) -> Result<Tensor<f32, Ix4>> {
    let (Storage::Host(x), Storage::Host(convolution), Storage::Host(affine)) =
        (x.storage(), convolution.storage(), affine.storage())
    else {
        unreachable!("only called for the CPU")
    };
    let (Some(x), Some(convolution), Some(affine)) = (x.as_slice(), convolution.as_slice(), affine.as_slice()) else {
        unreachable!("tensors are row-major")
    };
    let Shape { batch, channels, height, width, .. } = *shape;
    let mut out = crate::device::host_memory(PLACE, x.len())?;
    if let Some(index) = cpu::forward(shape, x, convolution, affine, &mut out) {
        let Finding { quantity, expected, found } = NOT_FINITE;
        return Err(Error::Domain { place: PLACE, quantity, index, expected, found: found.into() });
    }
    match ndarray::Array4::from_shape_vec((batch, channels, height, width), out) {
        Ok(out) => Ok(Tensor::host(out)),
        Err(_) => unreachable!("as many elements as x"),
    }
}

pub(crate) fn on_gpu(
    shape: &Shape,
    x: &Tensor<f32, Ix4>,
    convolution: &Tensor<f32, Ix3>,
    affine: &Tensor<f32, Ix1>,
) -> Result<Tensor<f32, Ix4>> {
    let (Storage::Gpu(gpu, x_buffer), Storage::Gpu(_, convolution), Storage::Gpu(_, affine)) =
        (x.storage(), convolution.storage(), affine.storage())
    else {
        unreachable!("only called for a GPU")
    };
    let &Shape { batch, channels, height, width, .. } = shape;
    let planes = batch * channels;
    let out = gpu.allocate(PLACE, (x.len() * 4) as u64)?;
    let check = gpu.check(PLACE, &[NOT_FINITE])?;
    let checks = super::inherit(&[std::slice::from_ref(&check), x.checks()]);
    if x.is_empty() {
        return Ok(Tensor::on_gpu(gpu, out, x.raw_dim(), checks));
    }
    gpu.rows_per_window(PLACE, (convolution.bytes() as usize).max(channels * 12))?;
    let alignment = gpu.binding_alignment();
    let window = |buffer, first: usize, count: usize, stride: usize| {
        let (view, shift) = View::window(buffer, (first * stride * 4) as u64, (count * stride * 4) as u64, alignment);
        (view, shift as u32 / 4)
    };
    let strips =
        [gpu.allocate(PLACE, (planes * height * 4) as u64)?, gpu.allocate(PLACE, (planes * width * 4) as u64)?];
    let step = gpu.rows_per_window(PLACE, height * width * 4)?;
    for first in (0..planes).step_by(step) {
        let count = step.min(planes - first);
        let (x, x_offset) = window(x_buffer, first, count, height * width);
        let (rows, rows_offset) = window(&strips[0], first, count, height);
        let (columns, columns_offset) = window(&strips[1], first, count, width);
        let grid = gpu.grid(PLACE, count as u64)?;
        let params = StripMeansParams {
            planes: count as u32,
            height: height as u32,
            width: width as u32,
            groups_x: grid[0],
            x_offset,
            rows_offset,
            columns_offset,
            pad0: 0,
        };
        gpu.run(&STRIP_MEANS, &[], &params, &[x, rows, columns], grid)?;
    }
    let gates = [
        gates(gpu, shape, &strips[0], height, convolution, affine, &check)?,
        gates(gpu, shape, &strips[1], width, convolution, affine, &check)?,
    ];
    for first in (0..planes).step_by(step) {
        let count = step.min(planes - first);
        let (x, x_offset) = window(x_buffer, first, count, height * width);
        let (rows, rows_offset) = window(&gates[0], first, count, height);
        let (columns, columns_offset) = window(&gates[1], first, count, width);
        let (to, out_offset) = window(&out, first, count, height * width);
        let elements = count * height * width;
        let grid = gpu.grid(PLACE, elements.div_ceil(256) as u64)?;
        let params = StripProductParams {
            elements: elements as u32,
            height: height as u32,
            width: width as u32,
            groups_x: grid[0],
            x_offset,
            rows_offset,
            columns_offset,
            out_offset,
        };
        gpu.run(&STRIP_PRODUCT, &[], &params, &[x, rows, columns, to], grid)?;
    }
    Ok(Tensor::on_gpu(gpu, out, x.raw_dim(), checks))
}

/// The gates of strips [batch, channels, strip].
fn gates(
    gpu: &Gpu,
    shape: &Shape,
    strips: &crate::gpu::Buffer,
    strip: usize,
    convolution: &crate::gpu::Buffer,
    affine: &crate::gpu::Buffer,
    check: &crate::gpu::Check,
) -> Result<crate::gpu::Buffer> {
    let &Shape { batch, channels, norm_groups, .. } = shape;
    let gates = gpu.allocate(PLACE, (batch * channels * strip * 4) as u64)?;
    let step = gpu.rows_per_window(PLACE, channels * strip * 4)?;
    for first in (0..batch).step_by(step) {
        let count = step.min(batch - first);
        let bytes = (channels * strip * 4) as u64;
        let window = |buffer| View::window(buffer, first as u64 * bytes, count as u64 * bytes, gpu.binding_alignment());
        let ((from, from_shift), (to, to_shift)) = (window(strips), window(&gates));
        let grid = gpu.grid(PLACE, (count * norm_groups) as u64)?;
        let params = StripGatesParams {
            groups: (count * norm_groups) as u32,
            channels: channels as u32,
            strip: strip as u32,
            norm_groups: norm_groups as u32,
            inner: shape.inner as u32,
            taps: shape.length as u32,
            first: first as u32,
            groups_x: grid[0],
            strips_offset: from_shift as u32 / 4,
            gates_offset: to_shift as u32 / 4,
            epsilon: shape.epsilon,
            pad0: 0,
        };
        let bindings = [from, convolution.view(), affine.view(), to, check.view()];
        gpu.run(&STRIP_GATES, &[], &params, &bindings, grid)?;
    }
    Ok(gates)
}
