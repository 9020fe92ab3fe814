//! f32 as pairs of f32.

use ndarray::Dimension;

use crate::Result;
use crate::double_single::DoubleSingle;
use crate::gpu::{Constant, Kernel, Needs, Params, View, params, shader};
use crate::tensor::{Storage, Tensor};

params! {
    /// As in `shaders/widen.wgsl`.
    WidenParams { count: u32, groups_x: u32, values_offset: u32, out_offset: u32 }
}

static WIDEN: Kernel = Kernel {
    name: "widen",
    sources: &[shader!("widen.wgsl")],
    needs: Needs::NONE,
    fields: WidenParams::FIELDS,
    params_bytes: size_of::<WidenParams>(),
};

const WORKGROUP: u32 = 64;

fn constants() -> [(&'static str, Constant); 1] {
    [("WORKGROUP", Constant::U32(WORKGROUP))]
}

pub(crate) fn variants() -> Vec<(&'static Kernel, Vec<(&'static str, Constant)>)> {
    vec![(&WIDEN, constants().to_vec())]
}

/// `values` as pairs whose low words are 0, on their device: the way from f32 results to kernels in extended precision.
///
/// # Errors
/// The device's own.
pub fn widen<D: Dimension>(values: &Tensor<f32, D>) -> Result<Tensor<DoubleSingle, D>> {
    match values.storage() {
        Storage::Host(view) => Ok(Tensor::host(view.mapv(DoubleSingle::from))),
        Storage::Gpu(gpu, buffer) => {
            let count = values.len();
            let out = gpu.allocate("widen", (count * size_of::<DoubleSingle>()) as u64)?;
            let alignment = gpu.binding_alignment();
            let step = (gpu.max_binding() - alignment) as usize / size_of::<DoubleSingle>();
            for start in (0..count).step_by(step) {
                let part = step.min(count - start);
                let window = |buffer, element: usize| {
                    let (view, shift) =
                        View::window(buffer, (start * element) as u64, (part * element) as u64, alignment);
                    (view, shift as u32 / element as u32)
                };
                let ((values, values_offset), (out, out_offset)) = (window(buffer, 4), window(&out, 8));
                let grid = gpu.grid("widen", (part as u64).div_ceil(u64::from(WORKGROUP)))?;
                let params = WidenParams { count: part as u32, groups_x: grid[0], values_offset, out_offset };
                gpu.run(&WIDEN, &constants(), &params, &[values, out], grid)?;
            }
            Ok(Tensor::on_gpu(gpu, out, values.raw_dim(), values.checks().to_vec()))
        }
    }
}
