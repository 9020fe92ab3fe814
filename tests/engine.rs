//! The engine on every adapter: transfers, chaining, tiling, typed errors, timing, warm-up.

mod common;

use anyhow::{Result, ensure};
use common::{Case, F64, poison};
use half::f16;
use ndarray::{Array1, Array2, Array3, Array4, Axis, arr0, s};
use orthant::attention::{Algorithm, Options, attention};
use orthant::{Device, Element, Error, Tensor, kernels};

fn round_trip<T: Element>(device: &Device, make: impl Fn(usize) -> T) -> Result<()> {
    for length in [0, 1, 2, 3, 63, 64, 65, 1001, 70_001] {
        poison(device, length * size_of::<T>())?;
        let array = Array1::from_shape_fn(length, &make);
        ensure!(device.tensor(&array)?.to_array()? == array, "{} of {length}", T::NAME);
        ensure!(device.tensor_from(array.clone())?.to_array()? == array, "{} of {length}, moved", T::NAME);
    }
    let zeros: Tensor<T, _> = device.zeros((3, 5))?;
    ensure!(zeros.to_array()? == Array2::from_elem((3, 5), T::zeroed()), "zeros are zero");
    Ok(())
}

fn bits(x: usize) -> u32 {
    (x as u32).wrapping_mul(2_654_435_761)
}

fn views_become_row_major(device: &Device) -> Result<()> {
    let base = Array3::from_shape_fn((4, 6, 5), |(i, j, k)| (i * 100 + j * 10 + k) as f32);
    let mut view = base.slice(s![..;2, 1..5;-1, 1..]);
    view.swap_axes(0, 2);
    let tensor = device.tensor(&view)?;
    ensure!(tensor.shape() == view.shape());
    ensure!(tensor.to_array()? == view);
    let flat = tensor.into_shape(view.len())?;
    ensure!(flat.to_array()?.to_vec() == view.iter().copied().collect::<Vec<_>>());
    ensure!(matches!(flat.into_shape(3), Err(Error::Shape { .. })));
    Ok(())
}

/// A large upload goes in pieces; what is read is what was written.
fn large_transfers(device: &Device) -> Result<()> {
    let array = Array1::from_shape_fn((20 << 20) / 4 + 3, |i| bits(i) as i32);
    ensure!(device.tensor(&array)?.to_array()? == array);
    Ok(())
}

fn pool_reuses(device: &Device) -> Result<()> {
    let Some(gpu) = device.as_gpu() else { anyhow::bail!("not a GPU") };
    let array = Array1::from_elem(1 << 18, 1.0f32);
    drop(device.tensor(&array)?);
    let (_, idle) = gpu.memory();
    ensure!(idle >= 1 << 20, "{idle} bytes idle");
    // A buffer freed while an open batch still reads it must not be overwritten by the next upload.
    let x = device.tensor(&Array1::from_elem(1 << 18, 2.0f32))?;
    let order = device.tensor(&arr0(0.5f32))?;
    let first = kernels::log_iv(&order, &x)?;
    drop(x);
    let y = device.tensor(&Array1::from_elem(1 << 18, 50.0f32))?;
    let second = kernels::log_iv(&order, &y)?;
    let (first, second) = (first.to_array()?, second.to_array()?);
    ensure!(first.iter().all(|value| value == &first[0]) && second.iter().all(|value| value == &second[0]));
    ensure!(first[0] < 2.0 && second[0] > 40.0, "{} {}", first[0], second[0]);
    Ok(())
}

fn chains_without_readback(device: &Device) -> Result<()> {
    let x = device.tensor(&Array1::from_elem(5, 3.0f32))?;
    let order = device.tensor(&arr0(1.0f32))?;
    let mut value = x;
    for _ in 0..100 {
        value = kernels::iv_ratio_complement(&order, &value)?;
    }
    let value = value.to_array()?;
    let mut expected = 3.0;
    for _ in 0..100 {
        let cpu = Device::cpu();
        let one = cpu.tensor(&arr0(expected))?;
        expected = kernels::iv_ratio_complement(&cpu.tensor(&arr0(1.0f64))?, &one)?.to_array()?.into_scalar();
    }
    // The map contracts: errors of single steps (16 eps) do not add up.
    ensure!((f64::from(value[0]) - expected).abs() < 1e-5, "{} {expected}", value[0]);
    Ok(())
}

fn domain_errors_come_at_the_wait(device: &Device) -> Result<()> {
    let zero = device.tensor(&arr0(0.0f32))?;
    let mut x = Array1::from_elem(1000, 1.0f32);
    x[700] = f32::NAN;
    x[913] = -1.0;
    for (value, index) in [(f32::NAN, 700), (-1.0, 700), (f32::INFINITY, 700), (1.0, 913)] {
        x[700] = value;
        let result = kernels::log_iv(&zero, &device.tensor(&x)?)?;
        let chained = kernels::log_iv(&zero, &kernels::iv_ratio(&zero, &device.tensor(&x)?)?)?;
        for error in [result.to_array().err(), chained.to_array().err()] {
            let found = match &error {
                Some(Error::Domain { quantity: "x", index, .. }) => Some(*index),
                _ => None,
            };
            ensure!(found == Some(index), "{value}: {error:?}");
        }
    }
    // Another tensor of the device is not touched by it.
    let fine = kernels::log_iv(&zero, &device.tensor(&Array1::from_elem(3, 1.0f32))?)?;
    fine.to_array()?;
    let bad_order = kernels::log_kv(&device.tensor(&arr0(-1.0f32))?, &device.tensor(&Array1::from_elem(3, 1.0f32))?)?;
    ensure!(matches!(bad_order.to_array(), Err(Error::Domain { quantity: "order", index: 0, .. })));
    Ok(())
}

fn mismatches_are_typed(device: &Device) -> Result<()> {
    let a = device.tensor(&Array1::from_elem(3, 1.0f32))?;
    let b = device.tensor(&Array1::from_elem(4, 1.0f32))?;
    ensure!(matches!(kernels::log_iv(&a, &b), Err(Error::Shape { .. })));
    let c = Device::cpu().tensor(&Array1::from_elem(3, 1.0f32))?;
    ensure!(matches!(kernels::log_iv(&a, &c), Err(Error::DeviceMismatch { .. })));
    let Some(gpu) = device.as_gpu() else { anyhow::bail!("not a GPU") };
    ensure!(matches!(gpu.warm_up(&["no such kernel"]), Err(Error::Argument { .. })));
    ensure!(matches!(Device::gpu_at(10_000), Err(Error::NoGpu { .. })));
    if !gpu.has_f64() {
        ensure!(matches!(device.tensor(&arr0(1.0f64)), Err(Error::Unsupported { .. })));
    }
    let limit = gpu.info().limits["maxBufferSize"] as usize;
    let error = device.zeros::<u32, _>(limit / 4 + 1).err();
    ensure!(matches!(error, Some(Error::TooLarge { .. } | Error::OutOfMemory { .. })), "{error:?}");
    Ok(())
}

fn broadcasts(device: &Device) -> Result<()> {
    let cpu = Device::cpu();
    let order = Array2::from_shape_fn((7, 1), |(i, _)| i as f32);
    let x = Array1::from_shape_fn(5, |i| 1.0 + i as f32);
    let expected = kernels::log_kv(&cpu.tensor(&order)?, &cpu.tensor(&x)?)?.to_array()?;
    let actual = kernels::log_kv(&device.tensor(&order)?, &device.tensor(&x)?)?.to_array()?;
    ensure!(actual.shape() == [7, 5]);
    for ((i, j), value) in actual.indexed_iter() {
        let error = (value - expected[[i, j]]).abs();
        // 16 eps of the GPU and 8 of the CPU on the scale of the result, at most 30 here.
        ensure!(error <= 24.0 * f32::EPSILON * 30.0, "{i},{j}: {value} {}", expected[[i, j]]);
    }
    ensure!(
        kernels::log_kv(&device.tensor(&order)?, &device.tensor(&Array1::<f32>::zeros(0))?)?.to_array()?.is_empty()
    );
    Ok(())
}

/// Windows of 64 KiB give bit for bit what one binding gives.
fn tiles_past_the_binding(device: &Device) -> Result<()> {
    let Some(gpu) = device.as_gpu() else { anyhow::bail!("not a GPU") };
    let tiled = Device::gpu_tiled(gpu.info().index, 64 << 10)?;
    let order = Array2::from_shape_fn((3, 30_001), |(i, j)| (i * 7 + j % 50) as f32);
    let x = Array2::from_shape_fn((3, 30_001), |(i, j)| 0.1 + (i + j % 97) as f32);
    let row = x.index_axis(Axis(0), 1).to_owned();
    let run = |device: &Device| -> Result<_> {
        let (order, x, row) = (device.tensor(&order)?, device.tensor(&x)?, device.tensor(&row)?);
        Ok((kernels::log_iv(&order, &x)?.to_array()?, kernels::log_iv(&order, &row)?.to_array()?))
    };
    ensure!(run(device)? == run(&tiled)?);
    let mut bad = x.clone();
    bad[[2, 20_000]] = -3.0;
    let error = kernels::log_iv(&tiled.tensor(&order)?, &tiled.tensor(&bad)?)?.to_array().err();
    ensure!(matches!(error, Some(Error::Domain { index: 80_002, .. })), "{error:?}");
    Ok(())
}

/// More than 65535 workgroups: the grid folds into two dimensions.
fn beyond_65535_groups(device: &Device) -> Result<()> {
    let length = 65_536 * 64 + 77;
    let x = Array1::from_shape_fn(length, |i| (1 + i % 1000) as f32);
    let order = device.tensor(&arr0(50.0f32))?;
    let long = kernels::iv_ratio(&order, &device.tensor(&x)?)?.to_array()?;
    let short = kernels::iv_ratio(&order, &device.tensor(&x.slice(s![..1000]))?)?.to_array()?;
    ensure!(long.iter().enumerate().all(|(i, value)| *value == short[i % 1000]));
    Ok(())
}

fn times_kernels(device: &Device) -> Result<()> {
    let Some(gpu) = device.as_gpu() else { anyhow::bail!("not a GPU") };
    // A device of its own: what other tests record meanwhile would be timed, too.
    let device = &Device::gpu_at(gpu.info().index)?;
    let Some(gpu) = device.as_gpu() else { anyhow::bail!("not a GPU") };
    // Short enough for one window also where CI makes bindings small: one dispatch a call.
    let (order, x) = (device.tensor(&arr0(2.0f32))?, device.tensor(&Array1::from_elem(10_000, 3.0f32))?);
    let (result, times) = gpu.timed(|| {
        let mut last = None;
        for _ in 0..100 {
            last = Some(kernels::log_iv(&order, &x)?);
        }
        Ok(last)
    })?;
    ensure!(result.is_some());
    match times {
        None => ensure!(!gpu.has_timestamps()),
        Some(times) => {
            ensure!(times.len() == 100, "{} times", times.len());
            ensure!(times.iter().all(|time| time.kernel == "bessel_f32" && (0.0..10.0).contains(&time.seconds)));
            ensure!(times.iter().map(|time| time.seconds).sum::<f64>() > 0.0);
        }
    }
    Ok(())
}

fn a_lost_device_says_so(device: &Device) -> Result<()> {
    let Some(gpu) = device.as_gpu() else { anyhow::bail!("not a GPU") };
    let lost = Device::gpu_at(gpu.info().index)?;
    let tensor = lost.tensor(&Array1::from_elem(1000, 1.0f32))?;
    if let Some(gpu) = lost.as_gpu() {
        gpu.destroy();
    }
    ensure!(matches!(tensor.to_array(), Err(Error::DeviceLost { .. })), "{:?}", tensor.to_array());
    ensure!(matches!(lost.tensor(&Array1::from_elem(1 << 20, 1.0f32)), Err(Error::DeviceLost { .. })));
    ensure!(matches!(kernels::log_iv(&tensor, &tensor), Err(Error::DeviceLost { .. })));
    Ok(())
}

/// Sizes that no memory holds, on the CPU and here.
fn impossible_sizes_are_typed(device: &Device) -> Result<()> {
    for device in [device.clone(), Device::cpu()] {
        let overflow = device.zeros::<f32, _>((usize::MAX, 3)).err();
        ensure!(matches!(overflow, Some(Error::TooLarge { .. })), "{overflow:?}");
        let huge = device.zeros::<f32, _>(1usize << 58).err();
        ensure!(matches!(huge, Some(Error::TooLarge { .. } | Error::OutOfMemory { .. })), "{huge:?}");
    }
    Ok(())
}

/// The async door completes under an executor that knows nothing of the device.
fn the_async_door_wakes_by_itself(device: &Device) -> Result<()> {
    let x = device.tensor(&Array1::from_elem(100_000, 2.0f32))?;
    let result = kernels::log_iv(&x, &x)?;
    let array = pollster::block_on(result.to_array_async())?;
    ensure!(array.len() == 100_000);
    Ok(())
}

fn threads_share_a_device(device: &Device) -> Result<()> {
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|worker| {
                scope.spawn(move || -> Result<()> {
                    for round in 0..20 {
                        let array = Array1::from_shape_fn(3000 + 100 * worker, |i| (i * round) as u32);
                        ensure!(device.tensor(&array)?.to_array()? == array);
                    }
                    Ok(())
                })
            })
            .collect();
        workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?)
    })
}

fn warms_up(device: &Device) -> Result<()> {
    let Some(gpu) = device.as_gpu() else { anyhow::bail!("not a GPU") };
    gpu.warm_up(&["bessel_f32"])?;
    Ok(())
}

/// Where a workgroup has 16 KiB, all that needs no more is compiled; a kernel that needs 32 is refused by name.
fn warms_up_what_fits(device: &Device) -> Result<()> {
    let Some(gpu) = device.as_gpu() else { anyhow::bail!("not a GPU") };
    let small = Device::gpu_small(gpu.info().index)?;
    let Some(gpu) = small.as_gpu() else { anyhow::bail!("not a GPU") };
    gpu.warm_up(&[])?;
    let large = gpu.warm_up(&["attention_large"]);
    let feature = "32 KiB of workgroup memory";
    ensure!(matches!(&large, Err(Error::Unsupported { feature: found, .. }) if *found == feature), "{large:?}");
    let x = small.tensor(&Array4::<f32>::zeros((1, 1, 2, 4)))?;
    let refused = attention(&x, &x, &x, &Options::new().algorithm(Algorithm::LargeTiles));
    ensure!(matches!(refused, Err(Error::Unsupported { feature: found, .. }) if found == feature), "large tiles");
    Ok(())
}

fn main() {
    let engine = |name: &str, run: fn(&Device) -> Result<()>| Case::new("engine", name, run);
    let cases = vec![
        engine("round trip f32", |device| round_trip(device, |i| f32::from_bits(bits(i) & 0x3fff_ffff))),
        engine("round trip f16", |device| round_trip(device, |i| f16::from_bits(bits(i) as u16 & 0x3fff))),
        engine("round trip u32", |device| round_trip(device, bits)),
        engine("round trip i32", |device| round_trip(device, |i| bits(i) as i32)),
        engine("round trip f64", |device| round_trip(device, |i| i as f64 / 3.0)).needs(&[F64]),
        engine("views become row-major", views_become_row_major),
        engine("large transfers", large_transfers),
        engine("pool reuses", pool_reuses),
        engine("chains without readback", chains_without_readback),
        engine("domain errors come at the wait", domain_errors_come_at_the_wait),
        engine("mismatches are typed", mismatches_are_typed),
        engine("broadcasts", broadcasts),
        engine("tiles past the binding", tiles_past_the_binding),
        engine("beyond 65535 groups", beyond_65535_groups),
        engine("times kernels", times_kernels),
        engine("a lost device says so", a_lost_device_says_so),
        engine("impossible sizes are typed", impossible_sizes_are_typed),
        engine("the async door wakes by itself", the_async_door_wakes_by_itself),
        engine("threads share a device", threads_share_a_device),
        engine("warms up", warms_up),
        engine("warms up what fits", warms_up_what_fits),
    ];
    common::main(cases, Vec::new())
}
