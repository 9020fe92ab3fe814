//! The CPU's way: 64 x 64 tiles of P and dS, made again for each of three passes (dK and dV, dQ, dbias), so that every pass is parallel over rows of its
//! own result. All products go through one blocked loop that vectorises.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use multiversion::multiversion;
use ndarray::{Array1, Array4, IntoDimension};
use rayon::prelude::*;

use super::*;
use crate::attention::{NO_KEY, Sequence};

/// Queries and keys of a tile.
const TILE: usize = 64;
/// Rows and columns of a product that are summed in registers.
const ROWS: usize = 4;
const LANES: usize = 16;

/// Everything but the results.
struct Inputs<'a, T> {
    problem: &'a Problem,
    q: &'a [T],
    k: &'a [T],
    v: &'a [T],
    grad: &'a [T],
    lse: &'a [f32],
    delta: Vec<f32>,
    bias: Option<&'a [f32]>,
    alibi: Option<&'a [f32]>,
    /// The first query that sees a bias of NaN or +inf.
    strange: AtomicUsize,
    /// d and d_v up to whole blocks of columns.
    d: usize,
    d_v: usize,
}

/// Packed operands and results of one tile.
struct Work {
    /// q * scale, and the gradient of the output: (query, column).
    q: Vec<f32>,
    grad: Vec<f32>,
    /// (key, column), and both transposed: (column, key).
    k: Vec<f32>,
    k_across: Vec<f32>,
    v_across: Vec<f32>,
    /// (query, key): P, P (dP - delta), and the same through the soft cap.
    weights: Vec<f32>,
    by_bias: Vec<f32>,
    by_score: Vec<f32>,
}

/// The gradients of tensors on the CPU; `tensors` are q, k, v, the output and its gradient.
pub(super) fn backward<T: AttentionElement>(
    problem: &Problem,
    options: &Options,
    tensors: [&Tensor<T, Ix4>; 5],
    lse: &Tensor<f32, Ix3>,
) -> Result<Gradients> {
    let views = tensors.map(|tensor| tensor.as_host());
    let [q, k, v, output, grad] = views.each_ref().map(|view| match view.as_ref().and_then(|view| view.to_slice()) {
        Some(elements) => elements,
        None => unreachable!("row-major, on the CPU"),
    });
    let lse = lse.as_host();
    let lse = lse.as_ref().and_then(|lse| lse.to_slice()).unwrap_or(&[]);
    let bias = options.bias.as_ref().and_then(|bias| bias.as_host());
    let bias = bias.as_ref().and_then(|bias| bias.to_slice());
    let delta: Vec<f32> = (grad.par_chunks(problem.d_v).zip(output.par_chunks(problem.d_v)))
        .map(|(grad, output)| {
            grad.iter().zip(output).map(|(g, o)| f64::from(g.widen()) * f64::from(o.widen())).sum::<f64>() as f32
        })
        .collect();
    if let Some(index) = delta.iter().zip(lse).position(|(delta, lse)| !delta.is_finite() || !lse.is_finite()) {
        let crate::gpu::Finding { quantity, expected, found } = FINDING;
        return Err(Error::Domain { place: PLACE, quantity, index, expected, found: found.into() });
    }
    let alibi = options.alibi.as_deref();
    let (d, d_v) = (problem.d.next_multiple_of(LANES), problem.d_v.next_multiple_of(LANES));
    let strange = AtomicUsize::new(usize::MAX);
    let inputs = Inputs { problem, q, k, v, grad, lse, delta, bias, alibi, strange, d, d_v };
    // Meets every query and key that it sees.
    let [dk, dv] = inputs.keys();
    let index = inputs.strange.load(Ordering::Relaxed);
    if index < usize::MAX {
        let crate::gpu::Finding { quantity, expected, found } = BIAS_FINDING;
        return Err(Error::Domain { place: PLACE, quantity, index, expected, found: found.into() });
    }
    let tensor = |shape: [usize; 4], elements| match Array4::from_shape_vec(shape.into_dimension(), elements) {
        Ok(array) => Tensor::host(array),
        Err(_) => unreachable!("as many elements as the shape has"),
    };
    Ok(Gradients {
        q: tensor([problem.batch, problem.q_heads, problem.q_len, problem.d], inputs.queries()),
        k: tensor([problem.batch, problem.kv_heads, problem.kv_len, problem.d], dk),
        v: tensor([problem.batch, problem.kv_heads, problem.kv_len, problem.d_v], dv),
        bias: options.bias.as_ref().map(|bias| {
            let shape = bias.raw_dim();
            tensor([shape[0], shape[1], shape[2], shape[3]], inputs.bias([shape[0], shape[1], shape[2], shape[3]]))
        }),
        sinks: options.sinks.as_ref().map(|sinks| Tensor::host(inputs.sinks(sinks))),
    })
}

/// `flat` cut at the tasks' ranges, which do not overlap.
fn carve<J>(mut flat: &mut [f32], mut tasks: Vec<(Range<usize>, J)>) -> Vec<(&mut [f32], J)> {
    tasks.sort_by_key(|(range, _)| (range.start, range.end));
    let mut at = 0;
    let mut parts = Vec::with_capacity(tasks.len());
    for (range, task) in tasks {
        let (part, rest) = std::mem::take(&mut flat)[range.start - at..].split_at_mut(range.len());
        parts.push((part, task));
        (flat, at) = (rest, range.end);
    }
    parts
}

/// The tiles of `range`.
fn tiles(range: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    range.step_by(TILE).map(move |first| first..(first + TILE).min(end))
}

impl<T: AttentionElement> Inputs<'_, T> {
    /// Row of query `i` in q, the output and its gradient.
    fn q_row(&self, sequence: &Sequence, head: usize, i: usize) -> usize {
        (sequence.batch * self.problem.q_heads + head) * self.problem.q_len + sequence.q_start + i
    }

    /// Row of key `j` in k and v.
    fn kv_row(&self, sequence: &Sequence, kv_head: usize, j: usize) -> usize {
        (sequence.batch * self.problem.kv_heads + kv_head) * self.problem.kv_len + sequence.kv_start + j
    }

    fn work(&self) -> Work {
        let zeros = |count| vec![0.0; count];
        let (d, d_v) = (self.d, self.d_v);
        Work {
            q: zeros(TILE * d),
            grad: zeros(TILE * d_v),
            k: zeros(TILE * d),
            k_across: zeros(TILE * d),
            v_across: zeros(TILE * d_v),
            weights: zeros(TILE * TILE),
            by_bias: zeros(TILE * TILE),
            by_score: zeros(TILE * TILE),
        }
    }

    /// dQ, one task a tile of queries.
    fn queries(&self) -> Vec<f32> {
        let problem = self.problem;
        let mut out = vec![0.0; self.q.len()];
        let mut tasks = Vec::new();
        for (index, sequence) in problem.sequences.iter().enumerate() {
            for head in 0..problem.q_heads {
                for tile in tiles(0..sequence.q_len) {
                    let (first, last) = (self.q_row(sequence, head, tile.start), self.q_row(sequence, head, tile.end));
                    tasks.push((first * problem.d..last * problem.d, (index, head, tile)));
                }
            }
        }
        carve(&mut out, tasks).into_par_iter().for_each_init(
            || (self.work(), vec![0.0; TILE * self.d]),
            |(work, sum), (out, (index, head, queries))| {
                let sequence = &problem.sequences[index];
                self.pack_queries(work, sequence, head, &queries);
                sum.fill(0.0);
                let seen = problem.keys(sequence, queries.start).start..problem.keys(sequence, queries.end - 1).end;
                for keys in tiles(seen) {
                    self.pack_keys(work, sequence, head / problem.group(), &keys);
                    self.score(work, index, head, &queries, &keys);
                    add_product(&work.by_score, TILE, 1, &work.k, self.d, sum);
                }
                for (out, sum) in out.chunks_exact_mut(problem.d).zip(sum.chunks_exact(self.d)) {
                    out.iter_mut().zip(sum).for_each(|(out, sum)| *out = problem.scale * sum);
                }
            },
        );
        out
    }

    /// dK and dV, one task a tile of keys.
    fn keys(&self) -> [Vec<f32>; 2] {
        let problem = self.problem;
        let (mut dk, mut dv) = (vec![0.0; self.k.len()], vec![0.0; self.v.len()]);
        let (mut k_tasks, mut v_tasks) = (Vec::new(), Vec::new());
        for (index, sequence) in problem.sequences.iter().enumerate() {
            for kv_head in 0..problem.kv_heads {
                for tile in tiles(0..sequence.kv_len) {
                    let (first, last) =
                        (self.kv_row(sequence, kv_head, tile.start), self.kv_row(sequence, kv_head, tile.end));
                    v_tasks.push((first * problem.d_v..last * problem.d_v, ()));
                    k_tasks.push((first * problem.d..last * problem.d, (index, kv_head, tile)));
                }
            }
        }
        let tasks: Vec<_> = carve(&mut dk, k_tasks).into_iter().zip(carve(&mut dv, v_tasks)).collect();
        tasks.into_par_iter().for_each_init(
            || (self.work(), vec![0.0; TILE * self.d], vec![0.0; TILE * self.d_v]),
            |(work, k_sum, v_sum), ((dk, (index, kv_head, keys)), (dv, ()))| {
                let sequence = &problem.sequences[index];
                self.pack_keys(work, sequence, kv_head, &keys);
                k_sum.fill(0.0);
                v_sum.fill(0.0);
                for head in kv_head * problem.group()..(kv_head + 1) * problem.group() {
                    for queries in tiles(0..sequence.q_len) {
                        if !self.meet(sequence, &queries, &keys) {
                            continue;
                        }
                        self.pack_queries(work, sequence, head, &queries);
                        self.score(work, index, head, &queries, &keys);
                        add_product(&work.weights, 1, TILE, &work.grad, self.d_v, v_sum);
                        add_product(&work.by_score, 1, TILE, &work.q, self.d, k_sum);
                    }
                }
                for (out, sum) in dk.chunks_exact_mut(problem.d).zip(k_sum.chunks_exact(self.d)) {
                    out.copy_from_slice(&sum[..problem.d]);
                }
                for (out, sum) in dv.chunks_exact_mut(problem.d_v).zip(v_sum.chunks_exact(self.d_v)) {
                    out.copy_from_slice(&sum[..problem.d_v]);
                }
            },
        );
        [dk, dv]
    }

    /// dbias, one task a tile of its rows; sums over broadcast axes in f64.
    fn bias(&self, shape: [usize; 4]) -> Vec<f32> {
        let problem = self.problem;
        let mut out = vec![0.0; shape.iter().product()];
        let Some(strides) = problem.bias_strides else { unreachable!("only called with a bias") };
        let mut tasks = Vec::new();
        for slab in 0..shape[0] * shape[1] {
            for tile in tiles(0..shape[2]) {
                let first = (slab * shape[2] + tile.start) * shape[3];
                tasks.push((first..first + tile.len() * shape[3], (slab / shape[1], slab % shape[1], tile)));
            }
        }
        // All of an axis that is broadcast, else the one index.
        let along = |stride: usize, index: usize, length: usize| if stride == 0 { 0..length } else { index..index + 1 };
        carve(&mut out, tasks).into_par_iter().for_each_init(
            || self.work(),
            |work, (out, (of_sequence, of_head, rows))| {
                let mut sums = vec![0.0f64; out.len()];
                for index in along(strides[0], of_sequence, problem.sequences.len()) {
                    let sequence = &problem.sequences[index];
                    let within =
                        if strides[2] == 0 { 0..sequence.q_len } else { rows.start..rows.end.min(sequence.q_len) };
                    for head in along(strides[1], of_head, problem.q_heads) {
                        for queries in tiles(within.clone()) {
                            self.pack_queries(work, sequence, head, &queries);
                            let seen = problem.keys(sequence, queries.start).start
                                ..problem.keys(sequence, queries.end - 1).end;
                            for keys in tiles(seen) {
                                self.pack_keys(work, sequence, head / problem.group(), &keys);
                                self.score(work, index, head, &queries, &keys);
                                for i in queries.clone() {
                                    let row = if strides[2] == 0 { 0 } else { (i - rows.start) * shape[3] };
                                    let values = &work.by_bias[(i - queries.start) * TILE..][..keys.len()];
                                    if strides[3] == 0 {
                                        sums[row] += values.iter().map(|&value| f64::from(value)).sum::<f64>();
                                        continue;
                                    }
                                    let sums = &mut sums[row + keys.start..][..keys.len()];
                                    sums.iter_mut().zip(values).for_each(|(sum, &value)| *sum += f64::from(value));
                                }
                            }
                        }
                    }
                }
                out.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum as f32);
            },
        );
        out
    }

    fn sinks(&self, sinks: &[f32]) -> Array1<f32> {
        let problem = self.problem;
        let of_head = |head: usize| {
            let rows = (0..problem.batch).flat_map(|batch| {
                let first = (batch * problem.q_heads + head) * problem.q_len;
                first..first + problem.q_len
            });
            -rows.map(|row| f64::from(sinks[head] - self.lse[row]).exp() * f64::from(self.delta[row])).sum::<f64>()
                as f32
        };
        (0..problem.q_heads).into_par_iter().map(of_head).collect::<Vec<_>>().into()
    }

    /// Whether a query of the one sees a key of the other.
    fn meet(&self, sequence: &Sequence, queries: &Range<usize>, keys: &Range<usize>) -> bool {
        let first = self.problem.keys(sequence, queries.start).start;
        let last = self.problem.keys(sequence, queries.end - 1).end;
        first.max(keys.start) < last.min(keys.end)
    }

    fn pack_queries(&self, work: &mut Work, sequence: &Sequence, head: usize, queries: &Range<usize>) {
        let (d, d_v, scale) = (self.problem.d, self.problem.d_v, self.problem.scale);
        work.q.fill(0.0);
        work.grad.fill(0.0);
        let row = self.q_row(sequence, head, queries.start);
        let rows = self.q[row * d..][..queries.len() * d].chunks_exact(d);
        for (row, packed) in rows.zip(work.q.chunks_exact_mut(self.d)) {
            packed.iter_mut().zip(row).for_each(|(packed, value)| *packed = value.widen() * scale);
        }
        let rows = self.grad[row * d_v..][..queries.len() * d_v].chunks_exact(d_v);
        for (row, packed) in rows.zip(work.grad.chunks_exact_mut(self.d_v)) {
            packed.iter_mut().zip(row).for_each(|(packed, value)| *packed = value.widen());
        }
    }

    fn pack_keys(&self, work: &mut Work, sequence: &Sequence, kv_head: usize, keys: &Range<usize>) {
        let (d, d_v) = (self.problem.d, self.problem.d_v);
        work.k.fill(0.0);
        work.k_across.fill(0.0);
        work.v_across.fill(0.0);
        let row = self.kv_row(sequence, kv_head, keys.start);
        let rows = self.k[row * d..][..keys.len() * d].chunks_exact(d);
        for (j, (row, packed)) in rows.zip(work.k.chunks_exact_mut(self.d)).enumerate() {
            for (c, value) in row.iter().enumerate() {
                packed[c] = value.widen();
                work.k_across[c * TILE + j] = packed[c];
            }
        }
        let rows = self.v[row * d_v..][..keys.len() * d_v].chunks_exact(d_v);
        for (j, row) in rows.enumerate() {
            for (c, value) in row.iter().enumerate() {
                work.v_across[c * TILE + j] = value.widen();
            }
        }
    }

    /// P and dS of a tile whose operands are packed; 0 beyond its queries and keys, and where a key is not seen.
    fn score(&self, work: &mut Work, index: usize, head: usize, queries: &Range<usize>, keys: &Range<usize>) {
        let problem = self.problem;
        let sequence = &problem.sequences[index];
        let Work { q, grad, k_across, v_across, weights, by_bias, by_score, .. } = work;
        weights.fill(0.0);
        by_bias.fill(0.0);
        add_product_of(q, self.d, 1, problem.d, k_across, TILE, weights);
        add_product_of(grad, self.d_v, 1, problem.d_v, v_across, TILE, by_bias);
        let first = self.q_row(sequence, head, queries.start);
        let position = sequence.kv_len as f32 - sequence.q_len as f32;
        for i in 0..TILE {
            let row = i * TILE..(i + 1) * TILE;
            let (p, ds, ds_score) = (&mut weights[row.clone()], &mut by_bias[row.clone()], &mut by_score[row]);
            let seen = if i < queries.len() { problem.keys(sequence, queries.start + i) } else { 0..0 };
            let seen =
                seen.start.clamp(keys.start, keys.end) - keys.start..seen.end.clamp(keys.start, keys.end) - keys.start;
            let bias = problem.bias_strides.zip(self.bias).map(|(strides, bias)| {
                let at = index * strides[0] + head * strides[1] + (queries.start + i) * strides[2];
                let keys = keys.start + seen.start..keys.start + seen.end;
                keys.map(move |j| bias[at + j * strides[3]])
            });
            // NaN is not below infinity either.
            if bias.clone().is_some_and(|mut bias| !bias.all(|bias| bias < f32::INFINITY)) {
                self.strange.fetch_min(first + i, Ordering::Relaxed);
            }
            let (lse, delta) = match seen.is_empty() {
                true => (NO_KEY, 0.0),
                false => (self.lse[first + i], self.delta[first + i]),
            };
            if lse <= NO_KEY || seen.is_empty() {
                p.fill(0.0);
                ds.fill(0.0);
                ds_score.fill(0.0);
                continue;
            }
            p[..seen.start].fill(NO_KEY);
            p[seen.end..].fill(NO_KEY);
            let scores = &mut p[seen.clone()];
            // The soft cap's derivative waits where the result will be.
            match problem.softcap {
                None => ds_score.fill(1.0),
                Some(cap) => {
                    ds_score.fill(0.0);
                    for (score, slope) in scores.iter_mut().zip(&mut ds_score[seen.clone()]) {
                        let capped = (*score / cap).tanh();
                        (*score, *slope) = (cap * capped, (1.0 - capped) * (1.0 + capped));
                    }
                }
            }
            if let Some(slopes) = self.alibi {
                let position = position + (queries.start + i) as f32;
                for (score, j) in scores.iter_mut().zip(keys.start + seen.start..) {
                    *score -= slopes[head] * (position - j as f32).abs();
                }
            }
            if let Some(bias) = bias {
                scores.iter_mut().zip(bias).for_each(|(score, bias)| *score += bias);
            }
            finish_row(p, ds, ds_score, lse, delta);
        }
    }
}

/// Scores, dP and the soft cap's derivative become P, P (dP - delta) and that times the derivative.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
fn finish_row(scores: &mut [f32], ds: &mut [f32], ds_score: &mut [f32], lse: f32, delta: f32) {
    let (scores, ds, ds_score) = (&mut scores[..TILE], &mut ds[..TILE], &mut ds_score[..TILE]);
    for j in 0..TILE {
        let weight = if scores[j] > NO_KEY { exp(scores[j] - lse) } else { 0.0 };
        scores[j] = weight;
        ds[j] = weight * (ds[j] - delta);
        ds_score[j] *= ds[j];
    }
}

/// e^x within 2 eps for x from -87 to 80, 0 below: Cody and Waite's reduction and a polynomial, in operations that vectorise.
#[inline(always)]
fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to a whole number
    let clamped = x.clamp(-87.0, 80.0);
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (clamped - n * 0.693_359_4) + n * 2.121_944_4e-4;
    let mut sum = 1.0 / 5040.0;
    for factor in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        sum = sum * r + factor;
    }
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    if x < -87.0 { 0.0 } else { sum * power }
}

/// c (64, n) += a b with a (64, 64) of any strides and b (64, n).
fn add_product(a: &[f32], a_row: usize, a_column: usize, b: &[f32], n: usize, c: &mut [f32]) {
    add_product_of(a, a_row, a_column, TILE, b, n, c);
}

/// c (64, n) += a b with a (64, k) of any strides, b (k, n) and n a multiple of 16: blocks of 4 x 16 sums in registers.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
fn add_product_of(a: &[f32], a_row: usize, a_column: usize, k: usize, b: &[f32], n: usize, c: &mut [f32]) {
    for first in (0..TILE).step_by(ROWS) {
        for column in (0..n).step_by(LANES) {
            let mut sums = [[0.0f32; LANES]; ROWS];
            for inner in 0..k {
                let Some(b) = b[inner * n + column..].first_chunk::<LANES>() else { break };
                for (row, sums) in sums.iter_mut().enumerate() {
                    let a = a[(first + row) * a_row + inner * a_column];
                    for lane in 0..LANES {
                        sums[lane] += a * b[lane];
                    }
                }
            }
            for (row, sums) in sums.iter().enumerate() {
                let c = &mut c[(first + row) * n + column..][..LANES];
                for lane in 0..LANES {
                    c[lane] += sums[lane];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn exponentials() {
        for step in -86_999..80_000 {
            let x = step as f32 * 1e-3;
            let expected = f64::from(x).exp();
            let error = (f64::from(super::exp(x)) - expected).abs() / expected;
            // The documented 2 eps: the polynomial's rounding and its last factor's.
            assert!(error <= 2.0 * f64::from(f32::EPSILON), "{x}: {error:e}");
        }
        assert_eq!(super::exp(-1e30), 0.0);
    }
}
