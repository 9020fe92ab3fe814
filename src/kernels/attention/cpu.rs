//! The CPU's way: tiles of an online softmax for many query rows ([`prefill`]), a walk over keys and values where they lie for few ([`decode`]).

mod decode;
pub(crate) mod micro;
mod prefill;
mod simd;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use ndarray::{Array3, Array4, ArrayView4};
use rayon::prelude::*;

use self::micro::Isa;
use super::AttentionElement;
use crate::attention::{NO_KEY, Options, Problem, Sequence};
use crate::{Error, Result};

const PLACE: &str = "attention";
/// Query rows of one key head, at most, that are decoded.
const DECODED_ROWS: usize = 12;
/// Keys of a tile.
const KEYS: usize = 128;

/// Output and log-sum-exp. The order of every sum depends on the shapes alone, not on the threads.
///
/// An element that is not finite is an error, wherever a query reads it: what is packed is tested, of what is decoded the scores and the output
/// are, through which it cannot slip. Keys that no query of a sequence sees may go untested.
pub(super) fn forward<T: AttentionElement>(
    problem: &Problem,
    options: &Options,
    q: &ArrayView4<'_, T>,
    k: &ArrayView4<'_, T>,
    v: &ArrayView4<'_, T>,
) -> Result<(Array4<T>, Array3<f32>)> {
    forward_on(Isa::best(), problem, options, q, k, v)
}

fn forward_on<T: AttentionElement>(
    isa: Isa,
    problem: &Problem,
    options: &Options,
    q: &ArrayView4<'_, T>,
    k: &ArrayView4<'_, T>,
    v: &ArrayView4<'_, T>,
) -> Result<(Array4<T>, Array3<f32>)> {
    let mut output = Array4::from_elem((problem.batch, problem.q_heads, problem.q_len, problem.d_v), T::default());
    let mut lse = Array3::from_elem((problem.batch, problem.q_heads, problem.q_len), NO_KEY);
    let bias = options.bias.as_ref().and_then(|bias| bias.as_host());
    let bias = bias.as_ref().and_then(|bias| bias.as_slice());
    let (Some(q), Some(k), Some(v)) = (q.as_slice(), k.as_slice(), v.as_slice()) else {
        unreachable!("tensors are in row-major order")
    };
    let (Some(rows), Some(sums)) = (output.as_slice_mut(), lse.as_slice_mut()) else {
        unreachable!("new arrays are in row-major order")
    };
    let call = Call {
        isa,
        problem,
        q,
        k,
        v,
        slopes: options.alibi.as_deref(),
        sinks: options.sinks.as_deref(),
        lse: options.lse,
        bias: bias.zip(problem.bias_strides),
        strange: AtomicUsize::new(usize::MAX),
    };
    let (units, ranges) = call.units();
    let mut pieces = pieces(problem, &units, rows, sums);
    let (partial, mut fine) = decode::partial(&call, &units, &ranges);
    let unit_rows = units.iter().filter(|unit| unit.ranges.is_none()).map(|unit| unit.queries.len()).max();
    let unit_rows = unit_rows.unwrap_or(0) * problem.group();
    fine &= pieces
        .par_chunks_exact_mut(problem.group())
        .zip(&units)
        .with_min_len(units.len() / (64 * rayon::current_num_threads()) + 1)
        .map_init(
            || prefill::Scratch::new(&call, unit_rows),
            |scratch, (pieces, unit)| match &unit.ranges {
                Some(ranges) => decode::merge(&call, unit, partial.parts(ranges.clone()), pieces),
                None => prefill::unit(&call, unit, scratch, pieces),
            },
        )
        .reduce(|| true, |a, b| a & b);
    drop(pieces);
    if fine {
        return Ok((output, lse));
    }
    Err(call.not_finite(output.as_slice().unwrap_or_default(), lse.as_slice().unwrap_or_default()))
}

/// One call: tensors as slices, and what is added to scores.
struct Call<'a, T> {
    isa: Isa,
    problem: &'a Problem,
    q: &'a [T],
    k: &'a [T],
    v: &'a [T],
    slopes: Option<&'a [f32]>,
    sinks: Option<&'a [f32]>,
    /// Whether the log-sum-exp is wished for.
    lse: bool,
    /// Elements and strides.
    bias: Option<(&'a [f32], [usize; 4])>,
    /// The first row of the output with a score that is not finite.
    strange: AtomicUsize,
}

/// Queries of one sequence and one key head that are computed together. A row of it is a query and one of the heads that share the key head:
/// row r is query `queries.start + r / group` of head `kv_head * group + r % group`.
struct Unit {
    sequence: usize,
    kv_head: usize,
    queries: Range<usize>,
    /// Where it is decoded, its ranges of keys.
    ranges: Option<Range<usize>>,
}

/// Where the rows of one head of a unit go.
struct Piece<'a, T> {
    /// Unit * group + head within the group.
    index: usize,
    output: &'a mut [T],
    lse: &'a mut [f32],
}

/// The output's rows as each unit's heads have them, in the units' order.
fn pieces<'a, T>(
    problem: &Problem,
    units: &[Unit],
    mut output: &'a mut [T],
    mut lse: &'a mut [f32],
) -> Vec<Piece<'a, T>> {
    let group = problem.group();
    let mut pieces = Vec::with_capacity(units.len() * group);
    // Units come by sequence, key head and queries; the output by batch, head, sequence and query.
    let of_sequence: Vec<Range<usize>> = {
        let mut next = 0;
        (0..problem.sequences.len())
            .map(|sequence| {
                let first = next;
                next += units[first..].iter().take_while(|unit| unit.sequence == sequence).count();
                first..next
            })
            .collect()
    };
    for sequences in problem.sequences.chunk_by(|a, b| a.batch == b.batch).scan(0, |first, of_batch| {
        let sequences = *first..*first + of_batch.len();
        *first = sequences.end;
        Some(sequences)
    }) {
        for head in 0..problem.q_heads {
            for sequence in sequences.clone() {
                let of_sequence = of_sequence[sequence].clone();
                let of_head = of_sequence.len() / problem.kv_heads;
                let first = of_sequence.start + head / group * of_head;
                for (unit, at) in units[first..first + of_head].iter().zip(first..) {
                    let queries = unit.queries.len();
                    let (of_output, of_lse);
                    (of_output, output) = output.split_at_mut(queries * problem.d_v);
                    (of_lse, lse) = lse.split_at_mut(queries);
                    pieces.push(Piece { index: at * group + head % group, output: of_output, lse: of_lse });
                }
            }
        }
    }
    if !pieces.is_sorted_by_key(|piece| piece.index) {
        pieces.sort_unstable_by_key(|piece| piece.index);
    }
    pieces
}

impl<'a, T: AttentionElement> Call<'a, T> {
    /// The units by sequence, key head and queries, and the ranges of keys of those that are decoded, with their unit.
    fn units(&self) -> (Vec<Unit>, Vec<(usize, Range<usize>)>) {
        let Problem { kv_heads, sequences, d, d_v, .. } = self.problem;
        let group = self.problem.group();
        let total: usize = sequences.iter().map(|sequence| sequence.q_len * self.problem.q_heads).sum();
        // Rows whose q and output stay in the second-level cache (512 KiB), but enough units for every thread to get several.
        let most = (1 << 16) / (d + d_v);
        let rows = most.min(total / (8 * rayon::current_num_threads())).max(96);
        let step = (rows / group).max(1);
        let (mut units, mut ranges) = (Vec::new(), Vec::new());
        for (index, sequence) in sequences.iter().enumerate().filter(|(_, sequence)| sequence.q_len > 0) {
            for kv_head in 0..*kv_heads {
                if sequence.q_len * group <= DECODED_ROWS {
                    let keys = self.keys_of(sequence, 0..sequence.q_len);
                    let first = ranges.len();
                    ranges.extend(decode::ranges(keys).map(|range| (units.len(), range)));
                    let queries = 0..sequence.q_len;
                    units.push(Unit { sequence: index, kv_head, queries, ranges: Some(first..ranges.len()) });
                    continue;
                }
                for first in (0..sequence.q_len).step_by(step) {
                    let queries = first..sequence.q_len.min(first + step);
                    units.push(Unit { sequence: index, kv_head, queries, ranges: None });
                }
            }
        }
        (units, ranges)
    }

    /// All keys that some of the queries may see.
    fn keys_of(&self, sequence: &Sequence, queries: Range<usize>) -> Range<usize> {
        self.problem.keys(sequence, queries.start).start..self.problem.keys(sequence, queries.end - 1).end
    }

    fn sequence(&self, unit: &Unit) -> &'a Sequence {
        &self.problem.sequences[unit.sequence]
    }

    /// Query and head of a unit's row.
    fn row(&self, unit: &Unit, row: usize) -> (usize, usize) {
        let group = self.problem.group();
        if group == 1 {
            // A division costs as much as a row of a small tile.
            return (unit.queries.start + row, unit.kv_head);
        }
        (unit.queries.start + row / group, unit.kv_head * group + row % group)
    }

    /// The elements of a unit's row of q, and of those behind it in memory, `count` in all.
    fn q_rows(&self, unit: &Unit, row: usize, count: usize) -> &'a [T] {
        let sequence = self.sequence(unit);
        let (query, head) = self.row(unit, row);
        let row = (sequence.batch * self.problem.q_heads + head) * self.problem.q_len + sequence.q_start + query;
        &self.q[row * self.problem.d..][..count * self.problem.d]
    }

    /// Keys and values of a unit.
    fn keys_and_values(&self, unit: &Unit, keys: Range<usize>) -> (&'a [T], &'a [T]) {
        let Problem { kv_heads, kv_len, d, d_v, .. } = *self.problem;
        let sequence = self.sequence(unit);
        let first = (sequence.batch * kv_heads + unit.kv_head) * kv_len + sequence.kv_start + keys.start;
        (&self.k[first * d..][..keys.len() * d], &self.v[first * d_v..][..keys.len() * d_v])
    }

    /// Whether scores are more than products.
    fn adjusts(&self) -> bool {
        self.problem.softcap.is_some() || self.slopes.is_some() || self.bias.is_some()
    }

    /// Whether some scores of one row are finite; if not, the row is remembered. One of -inf would pass for a hidden key.
    fn test(&self, unit: &Unit, row: usize, scores: &[f32]) -> bool {
        let fine = micro::finite(scores);
        if !fine {
            let sequence = self.sequence(unit);
            let (query, head) = self.row(unit, row);
            let row = (sequence.batch * self.problem.q_heads + head) * self.problem.q_len + sequence.q_start + query;
            self.strange.fetch_min(row, Ordering::Relaxed);
        }
        fine
    }

    /// Soft cap, ALiBi and bias of one row's scores, which begin with key `first`; only those of `seen` (within `scores`) matter. False if one of them or
    /// of the bias is not finite; a bias of -inf is.
    fn adjust(&self, unit: &Unit, row: usize, first: usize, scores: &mut [f32], seen: Range<usize>) -> bool {
        let mut fine = self.test(unit, row, &scores[seen.clone()]);
        let sequence = self.sequence(unit);
        let (query, head) = self.row(unit, row);
        if let Some(cap) = self.problem.softcap {
            self.isa.soft_cap(scores, cap);
        }
        let scores = &mut scores[seen.clone()];
        let first = first + seen.start;
        if let Some(slopes) = self.slopes {
            // From -(2^24) to 2^24 a difference of positions is exact.
            let ahead = (query + sequence.kv_len) as i64 - (sequence.q_len + first) as i64;
            for (j, score) in (0..).zip(scores.iter_mut()) {
                *score -= slopes[head] * ((ahead - j) as f32).abs();
            }
            fine &= self.test(unit, row, scores);
        }
        if let Some((bias, strides)) = self.bias {
            let at = unit.sequence * strides[0] + head * strides[1] + query * strides[2] + first * strides[3];
            if strides[3] == 0 {
                fine &= scores.is_empty() || bias[at] < f32::INFINITY;
                scores.iter_mut().for_each(|score| *score += bias[at]);
            } else {
                // NaN is not below infinity either.
                fine &= bias[at..].iter().take(scores.len()).fold(true, |fine, bias| fine & (*bias < f32::INFINITY));
                scores.iter_mut().zip(&bias[at..]).for_each(|(score, bias)| *score += bias);
            }
        }
        fine
    }

    /// Writes one row: `o` over the sum of weights, where `m` is the largest score, `l` the sum of exp(score - m). False if it is not finite.
    fn finish(&self, head: usize, o: &[f32], m: f32, l: f32, output: &mut [T], lse: &mut f32) -> bool {
        let (mut fade, mut largest, mut total) = (1.0, m, l);
        if let Some(sinks) = self.sinks {
            largest = m.max(sinks[head]);
            fade = (m - largest).exp();
            total = l * fade + (sinks[head] - largest).exp();
        }
        if total == 0.0 {
            // No key, no sink: zeros and NO_KEY are there already.
            return true;
        }
        let scale = fade / total;
        if self.lse {
            *lse = largest + total.ln();
        }
        self.isa.write_row(o, scale, output) & (largest + total).is_finite()
    }

    /// The first element of q, k, v or the bias that is not finite; else the first row of such scores, else an element of what came of them.
    #[cold]
    fn not_finite(&self, output: &[T], lse: &[f32]) -> Error {
        let Problem { kv_heads, kv_len, d, d_v, .. } = *self.problem;
        let error = |quantity, index: usize, found: &dyn std::fmt::Display| Error::Domain {
            place: PLACE,
            quantity,
            index,
            expected: "finite",
            found: found.to_string(),
        };
        let bad = |x: &T| !x.widen().is_finite();
        if let Some(index) = self.q.iter().position(bad) {
            return error("q", index, &self.q[index]);
        }
        for (name, elements, width) in [("k", self.k, d), ("v", self.v, d_v)] {
            for sequences in self.problem.sequences.chunk_by(|a, b| a.batch == b.batch) {
                for head in 0..kv_heads {
                    for sequence in sequences {
                        let first = ((sequence.batch * kv_heads + head) * kv_len + sequence.kv_start) * width;
                        let rows = &elements[first..][..sequence.kv_len * width];
                        if let Some(index) = rows.iter().position(bad) {
                            return error(name, first + index, &rows[index]);
                        }
                    }
                }
            }
        }
        if let Some((bias, _)) = self.bias
            && let Some(index) = bias.iter().position(|x| x.is_nan() || *x == f32::INFINITY)
        {
            return error("bias", index, &bias[index]);
        }
        // Of finite elements a product or a sum was too large.
        let row = self.strange.load(Ordering::Relaxed);
        if row < usize::MAX {
            return error("a score", row, &"not finite, in a row");
        }
        if let Some(index) = output.iter().position(bad) {
            return error("output", index, &output[index]);
        }
        let index = lse.iter().position(|x| !x.is_finite()).unwrap_or_default();
        error("lse", index, &"not finite")
    }
}
