//! What attention makes of tokens: the sum of p_t^2 over queries.

use ndarray::{Array2, Array4, Axis, s};
use rayon::prelude::*;

use crate::device::Device;
use crate::kernels::matmul;
use crate::{Error, Result};

/// Rows of scores that are there at a time.
const ROWS: usize = 256;
/// Rows of a thread's turn.
const TURN: usize = 16;

/// The weight of each token for each KV head, [sequences * n, kv_heads]: the sum of its squared causal attention probability over the queries of
/// the group; 0 for the positions before `sinks`. Queries are those of the last tokens. Errors of values, if independent of one another, add up to
/// an error of the output with these weights.
pub(super) fn weights(
    device: &Device,
    q: &Array4<f32>,
    k: &Array4<f32>,
    starts: &[usize],
    sinks: usize,
) -> Result<Array2<f64>> {
    let (sequences, q_heads, q_len, d) = q.dim();
    let (_, kv_heads, count, _) = k.dim();
    let group = q_heads / kv_heads;
    let scale = 1.0 / (d as f64).sqrt();
    let mut out = Array2::zeros((sequences * count, kv_heads));
    for (sequence, start) in starts.iter().enumerate() {
        for head in 0..q_heads {
            let queries = q.slice(s![sequence, head, .., ..]);
            let keys = k.slice(s![sequence, head / group, .., ..]);
            let mut to = out.slice_mut(s![sequence * count..(sequence + 1) * count, head / group]);
            for (block, queries) in queries.axis_chunks_iter(Axis(0), ROWS).enumerate() {
                // Row i of the block sees the first seen + i tokens.
                let seen = count - q_len + block * ROWS + 1;
                let last = seen + queries.nrows() - 1;
                let keys = device.tensor(&keys.slice(s![..last, ..]))?;
                let scores = matmul(&device.tensor(&queries)?, &keys, false, true)?.to_array()?;
                let Some(scores) = scores.as_slice() else { unreachable!("tensors are in row-major order") };
                // Turns are added up in their order, whichever thread took them.
                let turns: Vec<Vec<f64>> = scores
                    .par_chunks(TURN * last)
                    .enumerate()
                    .map(|(turn, scores)| {
                        let mut sums = vec![0.0; last];
                        let mut weights = vec![0.0; last];
                        for (row, scores) in scores.chunks_exact(last).enumerate() {
                            add_row(&scores[..seen + turn * TURN + row], scale, &mut weights, &mut sums);
                        }
                        sums
                    })
                    .collect();
                for sums in turns {
                    to.iter_mut().zip(sums).for_each(|(to, sum)| *to += sum);
                }
            }
            to.iter_mut().take(sinks.saturating_sub(*start)).for_each(|to| *to = 0.0);
        }
    }
    match out.iter().position(|x: &f64| !x.is_finite()) {
        None => Ok(out),
        Some(index) => {
            let (place, quantity, expected) = (super::PLACE, "the attention to a token", "finite");
            Err(Error::Domain { place, quantity, index: index / kv_heads, expected, found: "not finite".into() })
        }
    }
}

/// Adds softmax(scale scores)^2.
fn add_row(scores: &[f32], scale: f64, weights: &mut [f64], sums: &mut [f64]) {
    let largest = f64::from(scores.iter().fold(f32::MIN, |a, x| a.max(*x)));
    let mut total = 0.0;
    for (weight, score) in weights.iter_mut().zip(scores) {
        *weight = ((f64::from(*score) - largest) * scale).exp();
        total += *weight;
    }
    for (sum, weight) in sums.iter_mut().zip(&weights[..scores.len()]) {
        let p = weight / total;
        *sum += p * p;
    }
}
