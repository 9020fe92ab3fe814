//! The CPU's way.

use ndarray::ArrayView4;

use super::*;
use crate::attention::NO_KEY;

/// Output and log-sum-exp.
pub(super) fn forward<T: AttentionElement>(
    problem: &Problem,
    options: &Options,
    q: &ArrayView4<'_, T>,
    k: &ArrayView4<'_, T>,
    v: &ArrayView4<'_, T>,
) -> Result<(Array4<T>, Array3<f32>)> {
    let bias = options.bias.as_ref().and_then(|bias| bias.as_host());
    let bias = bias.as_ref().and_then(|bias| bias.as_slice());
    let mut output = Array4::from_elem((problem.batch, problem.q_heads, problem.q_len, problem.d_v), T::default());
    let mut lse = Array3::from_elem((problem.batch, problem.q_heads, problem.q_len), NO_KEY);
    for (index, sequence) in problem.sequences.iter().enumerate() {
        for head in 0..problem.q_heads {
            let kv_head = head / problem.group();
            for i in 0..sequence.q_len {
                let mut scores = Vec::new();
                let position = i as f32 + sequence.kv_len as f32 - sequence.q_len as f32;
                let keys = problem.keys(sequence, i);
                for j in keys.clone() {
                    let mut score = 0.0;
                    for c in 0..problem.d {
                        score += q[[sequence.batch, head, sequence.q_start + i, c]].widen()
                            * problem.scale
                            * k[[sequence.batch, kv_head, sequence.kv_start + j, c]].widen();
                    }
                    if let Some(cap) = problem.softcap {
                        score = cap * (score / cap).tanh();
                    }
                    if let Some(slopes) = &options.alibi {
                        score -= slopes[head] * (position - j as f32).abs();
                    }
                    if let (Some(strides), Some(bias)) = (problem.bias_strides, bias) {
                        score += bias[index * strides[0] + head * strides[1] + i * strides[2] + j * strides[3]];
                    }
                    scores.push(if score > NO_KEY { score } else { NO_KEY });
                }
                let sink = options.sinks.as_ref().map(|sinks| sinks[head]);
                let largest = scores.iter().copied().fold(sink.unwrap_or(NO_KEY), f32::max);
                if largest <= NO_KEY {
                    continue;
                }
                let mut total = sink.map_or(0.0, |sink| (sink - largest).exp());
                let mut row = vec![0.0; problem.d_v];
                for (score, j) in scores.into_iter().zip(keys) {
                    let weight = if score > NO_KEY { (score - largest).exp() } else { 0.0 };
                    total += weight;
                    for (c, sum) in row.iter_mut().enumerate() {
                        *sum += weight * v[[sequence.batch, kv_head, sequence.kv_start + j, c]].widen();
                    }
                }
                lse[[sequence.batch, head, sequence.q_start + i]] = largest + total.ln();
                for (c, sum) in row.into_iter().enumerate() {
                    output[[sequence.batch, head, sequence.q_start + i, c]] = T::narrow(sum / total);
                }
            }
        }
    }
    Ok((output, lse))
}
