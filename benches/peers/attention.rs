//! Times `attention` on tensors from a file, for benches/peers/torch_attention.py:
//! `peer_attention FILE BATCH Q_HEADS KV_HEADS Q_LEN KV_LEN D CAUSAL [SECONDS]`.
//!
//! FILE holds q, then k, then v, as little-endian f32. On stdout, one JSON object: the best time of a call on one thread and on two, in f32 and
//! (tensors rounded) f16; the f32 output is written beside FILE as `.values`.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use half::f16;
use ndarray::{Array4, Ix4};
use orthant::attention::{AttentionElement, Options, attention};
use orthant::{Device, Tensor};

/// Best time of a call, calling for `budget`.
fn best<T: AttentionElement>(budget: Duration, tensors: &[Tensor<T, Ix4>; 3], options: &Options) -> Result<f64> {
    let [q, k, v] = tensors;
    let begin = Instant::now();
    let mut best = f64::INFINITY;
    while begin.elapsed() < budget {
        let start = Instant::now();
        std::hint::black_box(attention(q, k, v, options)?);
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(best)
}

fn main() -> Result<()> {
    // cargo bench adds --bench.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let [path, numbers @ ..] = arguments.as_slice() else {
        println!("peer_attention is run by benches/peers/torch_attention.py");
        return Ok(());
    };
    let numbers: Vec<f64> = numbers.iter().map(|number| number.parse()).collect::<Result<_, _>>()?;
    let sizes: Vec<usize> = numbers.iter().map(|&number| number as usize).collect();
    let &[batch, q_heads, kv_heads, q_len, kv_len, d, causal, ..] = sizes.as_slice() else {
        anyhow::bail!("seven numbers: batch, heads of q and of k, lengths of q and k, d, causal");
    };
    let budget = Duration::from_secs_f64(numbers.get(7).copied().unwrap_or(0.3));
    let bytes = std::fs::read(path).with_context(|| path.clone())?;
    let mut elements = bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes));
    let mut next = |heads: usize, length: usize| -> Result<Array4<f32>> {
        let shape = [batch, heads, length, d];
        Ok(Array4::from_shape_vec(shape, elements.by_ref().take(shape.iter().product()).collect())?)
    };
    let arrays = [next(q_heads, q_len)?, next(kv_heads, kv_len)?, next(kv_heads, kv_len)?];
    let device = Device::cpu();
    let [q, k, v] = &arrays;
    let single = [device.tensor(q)?, device.tensor(k)?, device.tensor(v)?];
    let narrow = |array: &Array4<f32>| device.tensor(&array.mapv(f16::from_f32));
    let half = [narrow(q)?, narrow(k)?, narrow(v)?];
    let options = if causal == 0 { Options::new() } else { Options::new().causal() };

    let mut times = serde_json::Map::new();
    for threads in [1, 2] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
        times.insert(format!("f32_{threads}"), pool.install(|| best(budget, &single, &options))?.into());
        times.insert(format!("f16_{threads}"), pool.install(|| best(budget, &half, &options))?.into());
    }
    let [q, k, v] = &single;
    let values = attention(q, k, v, &options)?.output.to_array()?;
    let values: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    std::fs::write(format!("{path}.values"), values)?;
    println!("{}", serde_json::Value::Object(times));
    Ok(())
}
