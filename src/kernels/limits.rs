//! Two probes that benches measure the other kernels against: a copy, for the bandwidth, and chains of multiply-adds, for the rate of arithmetic.

use std::ops::{Add, Mul};

use ndarray::Ix1;
use rayon::prelude::*;

use crate::gpu::{Constant, Kernel, Needs, Params, View, params, shader};
use crate::tensor::{Real, Storage, Tensor};
use crate::{Error, Result};

params! {
    /// As in `shaders/limits.wgsl`.
    LimitsParams { count: u32, groups_x: u32 }
}

macro_rules! kernel {
    ($name:ident, $text:literal, $f64:literal) => {
        static $name: Kernel = Kernel {
            name: $text,
            sources: &[shader!("limits.wgsl")],
            needs: Needs { f64: $f64, ..Needs::NONE },
            fields: LimitsParams::FIELDS,
            params_bytes: size_of::<LimitsParams>(),
        };
    };
}
kernel!(LIMITS_F32, "limits_f32", false);
kernel!(LIMITS_F64, "limits_f64", true);

#[derive(Clone, Copy, PartialEq)]
enum Probe {
    Copy,
    MultiplyAdd,
}

const WORKGROUP: u32 = 64;
/// Multiply-adds of an element: enough that reading and writing it does not count.
#[doc(hidden)]
pub const STEPS: u32 = 512;
/// 1 - 2^-10, exact in f32; the chain's fixed point is 1.
const RATE: f32 = 1.0 - 1.0 / 1024.0;
/// Elements of a vector, and those of a workgroup.
const LANES: u64 = 4;
const TILE: u64 = 4 * LANES * WORKGROUP as u64;

fn constants(probe: Probe, real: &'static str) -> Vec<(&'static str, Constant)> {
    vec![
        ("COPY", Constant::U32(Probe::Copy as u32)),
        ("MULTIPLY_ADD", Constant::U32(Probe::MultiplyAdd as u32)),
        ("PROBE", Constant::U32(probe as u32)),
        ("STEPS", Constant::U32(STEPS)),
        ("Real", Constant::Type(real)),
        ("WORKGROUP", Constant::U32(WORKGROUP)),
    ]
}

/// The kernel as it is compiled: both probes, f32 and f64.
pub(crate) fn variants() -> Vec<(&'static Kernel, Vec<(&'static str, Constant)>)> {
    let of = |kernel, real| [Probe::Copy, Probe::MultiplyAdd].map(|probe| (kernel, constants(probe, real)));
    [of(&LIMITS_F32, "f32"), of(&LIMITS_F64, "f64")].concat()
}

/// The elements of `x` once more. Their number is a multiple of 4.
///
/// # Errors
/// [`Error::Shape`] for another length, and the device's own.
#[doc(hidden)]
pub fn copy<T: Real>(x: &Tensor<T, Ix1>) -> Result<Tensor<T, Ix1>> {
    probe(Probe::Copy, "copy", x, |x| x)
}

/// Every element of `x` after [`STEPS`] times `y <- y * rate + (1 - rate)`, with `rate = 1 - 2^-10`. Their number is a multiple of 4.
///
/// # Errors
/// As [`copy`].
#[doc(hidden)]
pub fn multiply_add<T: Real + From<f32> + Mul<Output = T> + Add<Output = T>>(
    x: &Tensor<T, Ix1>,
) -> Result<Tensor<T, Ix1>> {
    let (rate, rest) = (T::from(RATE), T::from(1.0 - RATE));
    probe(Probe::MultiplyAdd, "multiply_add", x, |x| (0..STEPS).fold(x, |y, _| y * rate + rest))
}

fn probe<T: Real>(
    probe: Probe,
    place: &'static str,
    x: &Tensor<T, Ix1>,
    on_cpu: impl Fn(T) -> T + Sync,
) -> Result<Tensor<T, Ix1>> {
    if !(x.len() as u64).is_multiple_of(LANES) {
        let expected = format!("a multiple of {LANES} elements");
        return Err(Error::Shape { place, quantity: "x", expected, found: x.shape().to_vec() });
    }
    match x.storage() {
        Storage::Host(x) => {
            let values: Vec<T> = x.as_slice().unwrap_or(&[]).par_iter().map(|&x| on_cpu(x)).collect();
            Ok(Tensor::host(values.into()))
        }
        Storage::Gpu(gpu, input) => {
            let bytes = (x.len() * size_of::<T>()) as u64;
            let out = gpu.allocate(place, bytes)?;
            let kernel = if T::NAME == "f64" { &LIMITS_F64 } else { &LIMITS_F32 };
            // Windows of whole tiles: of a power of two bytes, so aligned for every adapter.
            let tile = TILE * size_of::<T>() as u64;
            let window = (gpu.max_binding() / tile * tile).max(tile);
            let mut first = 0;
            while first < bytes {
                let part = window.min(bytes - first);
                let vectors = part / (LANES * size_of::<T>() as u64);
                let grid = gpu.grid(place, part.div_ceil(tile))?;
                let params = LimitsParams { count: vectors as u32, groups_x: grid[0] };
                let view = |buffer| View { buffer, offset: first, bytes: part };
                gpu.run(kernel, &constants(probe, T::NAME), &params, &[view(input), view(&out)], grid)?;
                first += part;
            }
            Ok(Tensor::on_gpu(gpu, out, x.raw_dim(), x.checks().to_vec()))
        }
    }
}
