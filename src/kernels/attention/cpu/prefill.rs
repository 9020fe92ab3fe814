//! Many query rows: tiles of scores, an online softmax, the weights times the values.
//!
//! Keys (transposed) and values are packed a tile at a time and shared by all rows of a unit, also those of several heads; scores of a block of
//! rows stay in the first-level cache. Tiles that a mask hides are not computed, and only those at its edge are masked.

use super::*;

/// Rows of a block: their scores and weights are computed together.
const ROWS: usize = 24;
/// Terms of a sum that is rounded in one go: with fewer than d, scores of 100 keep two more bits.
const PART: usize = 32;

/// Far enough below the largest f32 for the roundings of a sum.
const LARGE: f32 = 1e38;

/// What a thread holds: O((rows + KEYS) (d + d_v)), whatever the lengths.
pub(super) struct Scratch {
    q: Vec<f32>,
    o: Vec<f32>,
    m: Vec<f32>,
    l: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    scores: Vec<f32>,
    pack: Box<[f32; micro::PACK]>,
}

impl Scratch {
    pub(super) fn new<T: AttentionElement>(call: &Call<'_, T>, rows: usize) -> Self {
        let Problem { d, d_v, .. } = *call.problem;
        let d_v = call.isa.whole(d_v);
        let zeros = |count: usize| vec![0.0; if rows == 0 { 0 } else { count }];
        Self {
            q: zeros(rows * d),
            o: zeros(rows * d_v),
            m: zeros(rows),
            l: zeros(rows),
            keys: zeros(KEYS * d),
            values: zeros(KEYS * d_v),
            scores: zeros(ROWS * KEYS),
            pack: Box::new([0.0; micro::PACK]),
        }
    }
}

/// One unit's output; false if something is not finite.
pub(super) fn unit<T: AttentionElement>(
    call: &Call<'_, T>,
    unit: &Unit,
    scratch: &mut Scratch,
    pieces: &mut [Piece<'_, T>],
) -> bool {
    let Problem { d, d_v, scale, .. } = *call.problem;
    let (isa, group, sequence) = (call.isa, call.problem.group(), call.sequence(unit));
    let (ldo, panel) = (isa.whole(d_v), isa.panel());
    let rows = unit.queries.len() * group;
    let Scratch { q, o, m, l, keys, values, scores, pack } = scratch;
    let mut fine = true;
    // With one head a key head, rows lie one after the other.
    let (lie, calls) = if group == 1 { (rows, 1) } else { (1, rows) };
    for (row, q) in q.chunks_exact_mut(lie * d).take(calls).enumerate() {
        fine &= isa.pack_row(call.q_rows(unit, row, lie), scale, q);
    }
    let largest_q = isa.largest(&q[..rows * d]);
    o[..rows * ldo].fill(0.0);
    m[..rows].fill(NO_KEY);
    l[..rows].fill(0.0);
    let seen = call.keys_of(sequence, unit.queries.clone());
    for first in (seen.start / KEYS * KEYS..seen.end).step_by(KEYS) {
        let count = KEYS.min(seen.end - first);
        let (k, v) = call.keys_and_values(unit, first..first + count);
        let largest_k = isa.pack_keys(k, count, d, keys, pack);
        fine &= largest_k.is_finite();
        // Else no score, and no part of one, can be too large: only a row whose largest is would show that in its sums.
        let largest = largest_k * (largest_q * d as f32);
        let overflows = largest.is_nan() || largest > LARGE;
        fine &= isa.pack_values(v, count, d_v, values);
        for row in (0..rows).step_by(ROWS) {
            let block = ROWS.min(rows - row);
            let queries = unit.queries.start + row / group..unit.queries.start + (row + block - 1) / group + 1;
            let seen = call.keys_of(sequence, queries);
            let (from, end) = (seen.start.max(first), seen.end.min(first + count));
            if from >= end {
                continue;
            }
            // Whole panels.
            let skip = (from - first) / panel * panel;
            let columns = (end - first).next_multiple_of(panel).min(count) - skip;
            let q = &q[row * d..];
            for part in (0..d).step_by(PART) {
                let (length, keys) = (PART.min(d - part), &keys[skip * d..]);
                isa.product(block, length, columns, &q[part..], d, keys, panel * d, part, scores, KEYS, part > 0);
            }
            let whole = isa.whole(columns);
            let begin = first + skip;
            let mut bounds = [(0, (end - begin) as u32); ROWS];
            if call.problem.causal || call.problem.window.is_some() {
                for (r, bounds) in bounds[..block].iter_mut().enumerate() {
                    let seen = call.problem.keys(sequence, call.row(unit, row + r).0);
                    let end = seen.end.clamp(begin, end) - begin;
                    *bounds = ((seen.start.max(begin) - begin).min(end) as u32, end as u32);
                }
            }
            if overflows {
                for (r, &(from, end)) in bounds[..block].iter().enumerate() {
                    fine &= call.test(unit, row + r, &scores[r * KEYS..][from as usize..end as usize]);
                }
            }
            if call.adjusts() {
                for (r, &(from, end)) in bounds[..block].iter().enumerate() {
                    let scores = &mut scores[r * KEYS..][..whole];
                    fine &= call.adjust(unit, row + r, begin, scores, from as usize..end as usize);
                }
            }
            let mut fade = [0.0; micro::SOFTMAX_ROWS];
            isa.softmax(block, whole, scores, KEYS, &bounds, &mut m[row..], &mut l[row..], &mut fade);
            let o = &mut o[row * ldo..];
            isa.scale_rows(block, ldo, o, ldo, &fade);
            let seen = end - begin;
            isa.product(block, seen, d_v, scores, KEYS, values, panel * count, skip, o, ldo, true);
        }
    }
    for row in 0..rows {
        let (query, head) = call.row(unit, row);
        let (query, head) = (query - unit.queries.start, head - unit.kv_head * group);
        let Piece { output, lse, .. } = &mut pieces[head];
        let to = &mut output[query * d_v..][..d_v];
        fine &= call.finish(call.row(unit, row).1, &o[row * ldo..], m[row], l[row], to, &mut lse[query]);
    }
    fine
}
