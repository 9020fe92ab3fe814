//! Times `log_iv` on points from a file, for benches/peers/scipy_bessel.py: `peer_bessel POINTS [SECONDS]`.
//!
//! POINTS holds all orders, then all arguments, as little-endian f64. On stdout, one JSON object: the best time of a call for f64
//! and f32 on one thread and on two, and the f64 values written beside POINTS as `.values`.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ndarray::{Array1, Ix1};
use orthant::{Device, Tensor, kernels};

/// Best time of a call, calling for `budget`.
fn best<T>(budget: Duration, mut call: impl FnMut() -> orthant::Result<T>) -> Result<f64> {
    let begin = Instant::now();
    let mut best = f64::INFINITY;
    while begin.elapsed() < budget {
        let start = Instant::now();
        std::hint::black_box(call()?);
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(best)
}

fn main() -> Result<()> {
    // cargo bench adds --bench.
    let mut arguments = std::env::args().skip(1).filter(|argument| !argument.starts_with("--"));
    let Some(path) = arguments.next() else {
        println!("peer_bessel is run by benches/peers/scipy_bessel.py");
        return Ok(());
    };
    let budget = Duration::from_secs_f64(arguments.next().map_or(Ok(0.3), |seconds| seconds.parse())?);
    let bytes = std::fs::read(&path).with_context(|| path.clone())?;
    let numbers: Vec<f64> = bytes.as_chunks().0.iter().map(|&bytes| f64::from_le_bytes(bytes)).collect();
    let (order, x) = numbers.split_at(numbers.len() / 2);
    let device = Device::cpu();
    let double = |values: &[f64]| -> orthant::Result<Tensor<f64, Ix1>> {
        device.tensor(&values.iter().copied().collect::<Array1<f64>>())
    };
    let single = |values: &[f64]| -> orthant::Result<Tensor<f32, Ix1>> {
        device.tensor(&values.iter().map(|&value| value as f32).collect::<Array1<f32>>())
    };
    let (order_64, x_64, order_32, x_32) = (double(order)?, double(x)?, single(order)?, single(x)?);

    let mut times = serde_json::Map::new();
    for threads in [1, 2] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
        let f64_seconds = pool.install(|| best(budget, || kernels::log_iv(&order_64, &x_64)))?;
        let f32_seconds = pool.install(|| best(budget, || kernels::log_iv(&order_32, &x_32)))?;
        times.insert(format!("f64_{threads}"), f64_seconds.into());
        times.insert(format!("f32_{threads}"), f32_seconds.into());
    }
    let values = kernels::log_iv(&order_64, &x_64)?.to_array()?;
    let values: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    std::fs::write(format!("{path}.values"), values)?;
    println!("{}", serde_json::Value::Object(times));
    Ok(())
}
