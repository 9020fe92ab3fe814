//! What it costs to bring data to a device and back.

use anyhow::{Result, ensure};
use ndarray::Array1;

use crate::harness::{Bench, Case, Effort, Place, Traffic, Work, host, wait};

pub fn run(bench: &mut Bench, places: &[Place]) -> Result<()> {
    let sizes: &[usize] = match bench.effort {
        Effort::Smoke => &[1 << 10],
        Effort::Quick => &[1 << 14, 1 << 22],
        Effort::Full => &[1 << 14, 1 << 22, 1 << 25],
    };
    for &length in sizes {
        let x = Array1::from_shape_fn(length, |i| i as f32);
        for place in places {
            let bytes = 4.0 * length as f64;
            let cpu = place.device.is_cpu();
            let work = |kernel: &str| Work {
                kernel: kernel.into(),
                shape: format!("{length}"),
                dtype: "f32",
                flops: 0.0,
                // On the CPU it is a copy, so its bytes are read and written.
                bytes: if cpu { 2.0 * bytes } else { bytes },
                traffic: cpu.then_some(Traffic::Copy),
            };
            let tensor = place.device.tensor(&x)?;
            let upload = Case::new(
                work("upload"),
                place,
                || {
                    let ((tensor, ()), times) = host(|| {
                        let tensor = place.device.tensor(&x)?;
                        Ok((
                            tensor,
                            if let Some(gpu) = place.device.as_gpu() {
                                wait(gpu)?
                            },
                        ))
                    })?;
                    Ok((tensor, times))
                },
                |tensor| same(&tensor.to_array()?, &x),
            );
            let readback = Case::new(work("readback"), place, || host(|| tensor.to_array()), |array| same(array, &x));
            bench.time("transfer", vec![upload, readback]);
        }
    }
    Ok(())
}

fn same(array: &Array1<f32>, expected: &Array1<f32>) -> Result<String> {
    ensure!(array == expected, "the data that came back differs");
    Ok("what was sent".into())
}
