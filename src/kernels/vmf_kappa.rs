//! The concentration kappa of von Mises-Fisher distributions from their mean resultant lengths: the root of A_d(kappa) = R.

use ndarray::{ArrayView, Dimension, Zip};
use rayon::prelude::*;

use super::bessel::cpu::iv_ratio_pair;
use super::bessel::{Function, constants};
use crate::gpu::{Arithmetic, Buffer, Constant, Finding, Gpu, Kernel, Needs, Params, View, params, shader};
use crate::tensor::{Real, Storage, Tensor};
use crate::{Error, Result};

/// The largest concentration a fit reports. Rows so close together that their spread drowns in rounding get this value.
pub const MAX_KAPPA: f64 = 1e12;

params! {
    /// As in `shaders/vmf_kappa.wgsl`.
    VmfKappaParams {
        zero: u32,
        count: u32,
        start: u32,
        groups_x: u32,
        dim_offset: u32,
        length_offset: u32,
        complement_offset: u32,
        out_offset: u32,
    }
}

macro_rules! kernels {
    ($($kernel:ident, $name:literal, f64: $f64:literal, $($source:literal),*;)*) => { $(
        static $kernel: Kernel = Kernel {
            name: $name,
            sources: &[shader!("vmf_kappa.wgsl"), $(shader!($source)),*],
            needs: Needs { f64: $f64, ..Needs::NONE },
            fields: VmfKappaParams::FIELDS,
            params_bytes: size_of::<VmfKappaParams>(),
        };
    )* };
}
kernels! {
    F32, "vmf_kappa_f32", f64: false, "shared/bessel_f32.wgsl", "shared/math_f32.wgsl", "shared/real_f32.wgsl";
    F64, "vmf_kappa_f64", f64: true,
        "shared/bessel_f64.wgsl", "shared/math_f64.wgsl", "shared/real_f64.wgsl", "shared/stored_f64.wgsl";
    PAIRS_F64, "vmf_kappa_pairs_f64", f64: true,
        "shared/bessel_f64.wgsl", "shared/math_f64.wgsl", "shared/real_f64.wgsl", "shared/stored_pairs.wgsl";
    DOUBLE_SINGLE, "vmf_kappa_double_single", f64: false,
        "shared/bessel_double_single.wgsl", "shared/double_single.wgsl", "shared/math_f32.wgsl", "shared/real_pairs.wgsl";
}

const WORKGROUP: u32 = 64;

fn ratio_constants(real: &'static str, stored: &'static str, guard: u32) -> Vec<(&'static str, Constant)> {
    constants(Function::IvRatio, real, stored, guard)
}

pub(crate) fn variants() -> Vec<(&'static Kernel, Vec<(&'static str, Constant)>)> {
    vec![
        (&F32, ratio_constants("f32", "f32", 0)),
        (&F64, ratio_constants("f64", "f64", 0)),
        (&PAIRS_F64, ratio_constants("f64", "vec2f", 0)),
        (&DOUBLE_SINGLE, ratio_constants("vec2f", "vec2f", 1)),
        (&DOUBLE_SINGLE, ratio_constants("vec2f", "vec2f", 2)),
    ]
}

const DIM: Finding = Finding { quantity: "dim", expected: "2 to 1e7", found: "out of the domain, or not finite" };
const LENGTH: Finding = Finding { quantity: "length", expected: "0 to 1", found: "out of the domain, or not finite" };
const COMPLEMENT: Finding = Finding {
    quantity: "complement",
    expected: "0 to 1, and 1 - length to 1e-6",
    found: "out of the domain, or not finite",
};

/// kappa with A_d(kappa) = R, elementwise: the concentrations of von Mises-Fisher distributions from their mean resultant lengths.
///
/// * `dim` d, 2 to 1e7; `length` R and `complement` 1 - R (to 1e-6), in \[0, 1\]; all of one shape. Near R = 1 the complement carries the digits.
/// * returns 0 for R = 0, at most [`MAX_KAPPA`], that shape
/// * `T`: f64, within 34 eps (99 % within 3) of the root for the given pair (R, 1 - R); [`DoubleSingle`](crate::DoubleSingle), within 1e-13 for R of 0
///   or above 1e-20; f32, within 32 eps
///
/// # Errors
/// [`Error::Domain`] names the first element out of the domain (on a GPU at the wait); [`Error::Shape`]; [`Error::DeviceMismatch`];
/// [`Error::Unsupported`] for pairs where neither arithmetic will do.
///
/// Source: Banerjee et al. 2005 for the start, Sra 2012 for Newton's steps; here on 1 - A where R > 1/2.
pub fn vmf_kappa<T: Real, D: Dimension>(
    dim: &Tensor<T, D>,
    length: &Tensor<T, D>,
    complement: &Tensor<T, D>,
) -> Result<Tensor<T, D>> {
    let place = "vmf_kappa";
    for (quantity, other) in [("length", length), ("complement", complement)] {
        dim.device().same(place, quantity, other.device())?;
        if other.shape() != dim.shape() {
            let expected = format!("{:?}, that of dim", dim.shape());
            return Err(Error::Shape { place, quantity, expected, found: other.shape().to_vec() });
        }
    }
    match (dim.storage(), length.storage(), complement.storage()) {
        (Storage::Host(d), Storage::Host(r), Storage::Host(c)) => {
            check(place, DIM, &d, 2.0, 1e7)?;
            check(place, LENGTH, &r, 0.0, 1.0)?;
            check(place, COMPLEMENT, &c, 0.0, 1.0)?;
            let apart = |(r, c): (&T, &T)| (r.to_f64() + c.to_f64() - 1.0).abs() > 1e-6;
            if let Some(index) = r.iter().zip(&c).position(apart) {
                let found = c.iter().nth(index).map(ToString::to_string).unwrap_or_default();
                let Finding { quantity, expected, .. } = COMPLEMENT;
                return Err(Error::Domain { place, quantity, index, expected, found });
            }
            let mut out = ndarray::Array::from_elem(d.raw_dim(), T::zeroed());
            Zip::from(&mut out).and(&d).and(&r).and(&c).into_par_iter().for_each(|(out, d, r, c)| {
                *out = T::from_f64(solve(d.to_f64(), r.to_f64(), c.to_f64()));
            });
            Ok(Tensor::host(out))
        }
        (Storage::Gpu(gpu, d), Storage::Gpu(_, r), Storage::Gpu(_, c)) => {
            if dim.len() >= u32::MAX as usize {
                let (needed, limit) = (dim.len() as u64, u64::from(u32::MAX) - 1);
                let device = "a 32-bit index".into();
                return Err(Error::TooLarge { place, quantity: "elements", needed, limit, device });
            }
            let check = gpu.check(place, &[DIM, LENGTH, COMPLEMENT])?;
            let out = gpu.allocate(place, (dim.len() * size_of::<T>()) as u64)?;
            on_gpu::<T>(gpu, dim.len(), [d, r, c], &out, check.view())?;
            let checks = super::inherit(&[&[check], dim.checks(), length.checks(), complement.checks()]);
            Ok(Tensor::on_gpu(gpu, out, dim.raw_dim(), checks))
        }
        _ => unreachable!("all are on one device"),
    }
}

fn check<T: Real, D: Dimension>(
    place: &'static str,
    finding: Finding,
    values: &ArrayView<'_, T, D>,
    smallest: f64,
    largest: f64,
) -> Result<()> {
    match values.iter().position(|value| !(smallest..=largest).contains(&value.to_f64())) {
        None => Ok(()),
        Some(index) => Err(Error::Domain {
            place,
            quantity: finding.quantity,
            index,
            expected: finding.expected,
            found: values.iter().nth(index).map(ToString::to_string).unwrap_or_default(),
        }),
    }
}

/// Records the dispatches: as many windows as bindings need.
fn on_gpu<T: Real>(gpu: &Gpu, count: usize, inputs: [&Buffer; 3], out: &Buffer, status: View<'_>) -> Result<()> {
    let place = "vmf_kappa";
    let (kernel, constants) = match T::NAME {
        "f32" => (&F32, ratio_constants("f32", "f32", 0)),
        "f64" => (&F64, ratio_constants("f64", "f64", 0)),
        _ => match gpu.arithmetic(place)? {
            (Arithmetic::F64, _) => (&PAIRS_F64, ratio_constants("f64", "vec2f", 0)),
            (Arithmetic::DoubleSingle, guard) => (&DOUBLE_SINGLE, ratio_constants("vec2f", "vec2f", guard)),
        },
    };
    let element = size_of::<T>();
    let alignment = gpu.binding_alignment();
    let step = (gpu.max_binding() - alignment) as usize / element;
    for start in (0..count).step_by(step) {
        let part = step.min(count - start);
        let window = |buffer| {
            let (view, shift) = View::window(buffer, (start * element) as u64, (part * element) as u64, alignment);
            (view, shift as u32 / element as u32)
        };
        let [dim, length, complement] = inputs.map(window);
        let (out, out_offset) = window(out);
        let grid = gpu.grid(place, (part as u64).div_ceil(u64::from(WORKGROUP)))?;
        let params = VmfKappaParams {
            zero: 0,
            count: part as u32,
            start: start as u32,
            groups_x: grid[0],
            dim_offset: dim.1,
            length_offset: length.1,
            complement_offset: complement.1,
            out_offset,
        };
        gpu.run(kernel, &constants, &params, &[dim.0, length.0, complement.0, out, status], grid)?;
    }
    Ok(())
}

/// One solve in f64; R and 1 - R in \[0, 1\].
pub(crate) fn solve(d: f64, r: f64, c: f64) -> f64 {
    if r.is_nan() || r <= 0.0 {
        return 0.0;
    }
    // the root is near (d - 1) / (2 (1 - R)) there
    if c <= 0.0 || d - 1.0 > 2.0 * MAX_KAPPA * c {
        return MAX_KAPPA;
    }
    let mut kappa = r * (d - r * r) / (c * (1.0 + r));
    // Four steps reach rounding everywhere; the others cost nothing where they stop early.
    for _ in 0..8 {
        let pair = iv_ratio_pair(d / 2.0 - 1.0, kappa);
        let residual = if r > 0.5 { pair.1 - c } else { r - pair.0 };
        let step = residual / ratio_derivative(d, kappa, pair);
        // A is concave in kappa: a step from the right of the root may overshoot, never past a half of the way to 0 for long
        kappa = (kappa + step).max(kappa / 2.0);
        if step.abs() <= 1e-15 * kappa {
            break;
        }
    }
    kappa.min(MAX_KAPPA)
}

/// A'_d(kappa), the derivative of the mean resultant length and the variance of mu'x, from A and 1 - A.
///
/// * `dim` d >= 2, `kappa` > 0
/// * relative accuracy 1e-7 or better: 1 - A^2 - (d-1) A / kappa loses about eps * 2 kappa (1 + d / kappa) to cancellation; where
///   that is more than 1 / (2 kappa), the error of the uniform leading term a / (sigma (a + sigma)), a = (d-1)/2,
///   sigma = hypot(a, kappa), the leading term is taken.
///
/// Source: Mardia & Jupp 2000, (A.14).
pub(crate) fn ratio_derivative(dim: f64, kappa: f64, (ratio, complement): (f64, f64)) -> f64 {
    let a = (dim - 1.0) / 2.0;
    let sigma = a.hypot(kappa);
    if sigma > 4e7 { a / (sigma * (a + sigma)) } else { complement * (1.0 + ratio) - (dim - 1.0) * (ratio / kappa) }
}
