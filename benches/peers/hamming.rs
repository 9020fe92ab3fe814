//! Times `hamming::Index` on codes from a file, for benches/peers/faiss_hamming.py: `peer_hamming FILE BITS CODES QUERIES K [SECONDS]`.
//!
//! FILE holds codes, then queries, bits / 8 bytes each, as FAISS has them. On stdout, one JSON object: the best time of one query with k = 10 and of all
//! queries with k = K, and of reading the base as it lies in memory, on one thread and on two. Ids and distances of all queries, then of the
//! first with k = 10, are written beside FILE as `.values`: u32, [queries, K] ids, distances, then [1, 10] each.

use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use multiversion::multiversion;
use ndarray::ArrayView2;
use orthant::Device;
use orthant::hamming::{Codes, Index, SearchOptions};
use rayon::prelude::*;

/// Best time of a call, calling for `budget`.
fn best<R>(budget: Duration, mut call: impl FnMut() -> orthant::Result<R>) -> Result<f64> {
    let begin = Instant::now();
    let mut best = f64::INFINITY;
    while begin.elapsed() < budget {
        let start = Instant::now();
        black_box(call()?);
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(best)
}

/// In as many chains as it takes to wait for memory only.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn fold(x: &[u64]) -> u64 {
    let mut all = [0u64; 64];
    let (blocks, rest) = x.as_chunks::<64>();
    for block in blocks {
        all.iter_mut().zip(block).for_each(|(all, x)| *all ^= x);
    }
    all.iter().chain(rest).fold(0, |all, x| all ^ x)
}

fn main() -> Result<()> {
    // cargo bench adds --bench.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let [path, numbers @ ..] = arguments.as_slice() else {
        println!("peer_hamming is run by benches/peers/faiss_hamming.py");
        return Ok(());
    };
    let numbers: Vec<f64> = numbers.iter().map(|number| number.parse()).collect::<Result<_, _>>()?;
    let sizes: Vec<usize> = numbers.iter().map(|&number| number as usize).collect();
    let &[bits, n, count, k, ..] = sizes.as_slice() else {
        anyhow::bail!("four numbers: bits, codes, queries, k");
    };
    let budget = Duration::from_secs_f64(numbers.get(4).copied().unwrap_or(0.5));
    let bytes = std::fs::read(path).with_context(|| path.clone())?;
    let (base, queries) = bytes.split_at(n * bits / 8);
    let device = Device::cpu();
    let mut index = Index::new(&device, bits)?;
    index.add(&Codes::from_bytes(&device, &ArrayView2::from_shape((n, bits / 8), base)?)?)?;
    let queries = ArrayView2::from_shape((count, bits / 8), queries)?;
    let one = Codes::from_bytes(&device, &queries.slice(ndarray::s![..1, ..]))?;
    let queries = Codes::from_bytes(&device, &queries)?;
    let (ten, many) = (SearchOptions::new(10), SearchOptions::new(k));
    let memory: Vec<u64> = base.as_chunks().0.iter().map(|&word| u64::from_ne_bytes(word)).collect();
    drop(bytes);

    let mut times = serde_json::Map::new();
    for threads in [1, 2] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
        let read = || Ok(memory.par_chunks(memory.len().div_ceil(threads)).map(fold).reduce(|| 0, |a, b| a ^ b));
        times.insert(format!("read_{threads}"), pool.install(|| best(budget, read))?.into());
        times.insert(format!("one_{threads}"), pool.install(|| best(budget, || index.search(&one, &ten)))?.into());
        times
            .insert(format!("many_{threads}"), pool.install(|| best(budget, || index.search(&queries, &many)))?.into());
    }
    let mut values: Vec<u8> = Vec::new();
    for found in [index.search(&queries, &many)?, index.search(&one, &ten)?] {
        for array in [found.ids.to_array()?, found.distances.to_array()?] {
            values.extend(array.iter().flat_map(|value| value.to_le_bytes()));
        }
    }
    std::fs::write(format!("{path}.values"), values)?;
    println!("{}", serde_json::Value::Object(times));
    Ok(())
}
