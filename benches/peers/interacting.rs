//! Times `interacting_layer` on tensors from a file, for benches/peers/torch_interacting.py: `peer_interacting TENSORS [SECONDS]`.
//!
//! TENSORS holds x [1024, 39, 16], then W_query, W_key, W_value and W_res [16, 32], as little-endian f32; 2 heads. On stdout, one JSON object: the best
//! time of a call on one thread and on two; the output is written beside TENSORS as `.values`.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ndarray::{Array2, Array3};
use orthant::Device;
use orthant::attention::{InteractingOptions, InteractingWeights, interacting_layer};

const X: (usize, usize, usize) = (1024, 39, 16);
const W: (usize, usize) = (16, 32);

fn main() -> Result<()> {
    // cargo bench adds --bench.
    let mut arguments = std::env::args().skip(1).filter(|argument| !argument.starts_with("--"));
    let Some(path) = arguments.next() else {
        println!("peer_interacting is run by benches/peers/torch_interacting.py");
        return Ok(());
    };
    let budget = Duration::from_secs_f64(arguments.next().map_or(Ok(0.5), |seconds| seconds.parse())?);
    let bytes = std::fs::read(&path).with_context(|| path.clone())?;
    let mut numbers = bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes));
    let x = Array3::from_shape_vec(X, numbers.by_ref().take(X.0 * X.1 * X.2).collect())?;
    let mut matrix = || Array2::from_shape_vec(W, numbers.by_ref().take(W.0 * W.1).collect());
    let (query, key, value, residual) = (matrix()?, matrix()?, matrix()?, matrix()?);
    let device = Device::cpu();
    let x = device.tensor_from(x)?;
    let weights =
        InteractingWeights::new(&device, &query.view(), &key.view(), &value.view(), Some(&residual.view()), 2)?;
    let options = InteractingOptions::new();

    let mut times = serde_json::Map::new();
    for threads in [1, 2] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
        let best = pool.install(|| -> Result<f64> {
            let (begin, mut best) = (Instant::now(), f64::INFINITY);
            while begin.elapsed() < budget {
                let start = Instant::now();
                std::hint::black_box(interacting_layer(&x, &weights, &options)?);
                best = best.min(start.elapsed().as_secs_f64());
            }
            Ok(best)
        })?;
        times.insert(format!("threads_{threads}"), best.into());
    }
    let output = interacting_layer(&x, &weights, &options)?.output.to_array()?;
    let values: Vec<u8> = output.iter().flat_map(|value| value.to_le_bytes()).collect();
    std::fs::write(format!("{path}.values"), values)?;
    println!("{}", serde_json::Value::Object(times));
    Ok(())
}
