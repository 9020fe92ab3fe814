//! The probes of a device's limits against their CPU path.

use anyhow::Result;
use ndarray::{Array1, Ix1};
use orthant::kernels::limits::{STEPS, copy, multiply_add};
use orthant::{Device, Real, Tensor};

use crate::common::{Case, F64, compare, poison};

type Call<T> = fn(&Tensor<T, Ix1>) -> orthant::Result<Tensor<T, Ix1>>;

/// A multiply-add errs by an ulp where it is fused and by two where it is not, of values below 2; a chain of STEPS adds that up at most.
fn parity<T: Real>(device: &Device, eps: f64, value: impl Fn(usize) -> T, probe: Call<T>, steps: u32) -> Result<()> {
    for length in [0, 4, 1020, 1024, 1028, 65_540] {
        let x = Array1::from_shape_fn(length, &value);
        poison(device, length * size_of::<T>())?;
        let run = |device: &Device| -> Result<Vec<f64>> {
            Ok(probe(&device.tensor(&x)?)?.to_array()?.iter().map(|value| value.to_f64()).collect())
        };
        compare("probe", &run(device)?, &run(&Device::cpu())?, |_, _| f64::from(3 * steps) * 2.0 * eps)?;
    }
    Ok(())
}

pub fn cases() -> Vec<Case> {
    let single = |i: usize| (i % 97) as f32 / 48.0;
    let double = |i: usize| (i % 97) as f64 / 48.0;
    let (eps_f32, eps_f64) = (f64::from(f32::EPSILON), f64::EPSILON);
    vec![
        Case::new("limits_f32", "copy", move |device| parity(device, eps_f32, single, copy, 0)),
        Case::new("limits_f32", "multiply_add", move |device| parity(device, eps_f32, single, multiply_add, STEPS)),
        Case::new("limits_f64", "copy", move |device| parity(device, eps_f64, double, copy, 0)).needs(&[F64]),
        Case::new("limits_f64", "multiply_add", move |device| parity(device, eps_f64, double, multiply_add, STEPS))
            .needs(&[F64]),
    ]
}
