//! Few query rows: every key and value is read once, where it lies, for all heads that share it. The time is that of reading them.
//!
//! Keys are cut in ranges of [`RANGE`], computed by any thread and merged in their order.

use super::*;

/// Keys of a range.
const RANGE: usize = 1024;

/// Partial results of all ranges: of each `rows` rows of sums, then largest scores, then sums of weights.
pub(super) struct Partial {
    parts: Vec<f32>,
    rows: usize,
    ldo: usize,
}

pub(super) struct Part<'a> {
    o: &'a [f32],
    m: &'a [f32],
    l: &'a [f32],
}

impl Partial {
    fn stride(&self) -> usize {
        self.rows * (self.ldo + 2)
    }

    /// Those of some ranges.
    pub(super) fn parts(&self, ranges: Range<usize>) -> impl Iterator<Item = Part<'_>> + Clone {
        let stride = self.stride();
        self.parts[ranges.start * stride..ranges.end * stride].chunks_exact(stride.max(1)).map(|part| {
            let (o, sums) = part.split_at(self.rows * self.ldo);
            let (m, l) = sums.split_at(self.rows);
            Part { o, m, l }
        })
    }
}

/// The ranges that the keys are cut in: the same for any first key.
pub(super) fn ranges(keys: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    (keys.start / RANGE..keys.end.div_ceil(RANGE).max(keys.start / RANGE))
        .map(move |range| keys.start.max(range * RANGE)..keys.end.min((range + 1) * RANGE))
        .filter(|range| !range.is_empty())
}

/// What a thread holds.
struct Scratch {
    q: Vec<f32>,
    scores: Vec<f32>,
}

/// The partial results of all ranges; false if something is not finite.
pub(super) fn partial<T: AttentionElement>(
    call: &Call<'_, T>,
    units: &[Unit],
    ranges: &[(usize, Range<usize>)],
) -> (Partial, bool) {
    let group = call.problem.group();
    let ldo = call.isa.whole(call.problem.d_v);
    let rows = ranges.iter().map(|(unit, _)| units[*unit].queries.len() * group).max().unwrap_or(0);
    let mut partial = Partial { parts: vec![0.0; ranges.len() * rows * (ldo + 2)], rows, ldo };
    let stride = partial.stride();
    if stride == 0 {
        return (partial, true);
    }
    let scratch = || Scratch { q: vec![0.0; rows * call.isa.whole(call.problem.d)], scores: vec![0.0; rows * KEYS] };
    let fine = partial
        .parts
        .par_chunks_exact_mut(stride)
        .zip(ranges)
        .map_init(scratch, |scratch, (part, (unit, keys))| {
            let (o, sums) = part.split_at_mut(rows * ldo);
            let (m, l) = sums.split_at_mut(rows);
            range(call, &units[*unit], keys.clone(), scratch, o, m, l)
        })
        .reduce(|| true, |a, b| a & b);
    (partial, fine)
}

/// One range of one unit.
fn range<T: AttentionElement>(
    call: &Call<'_, T>,
    unit: &Unit,
    keys: Range<usize>,
    scratch: &mut Scratch,
    o: &mut [f32],
    m: &mut [f32],
    l: &mut [f32],
) -> bool {
    let Problem { d, d_v, scale, .. } = *call.problem;
    let (isa, group, sequence) = (call.isa, call.problem.group(), call.sequence(unit));
    let (ldq, ldo) = (isa.whole(d), isa.whole(d_v));
    let rows = unit.queries.len() * group;
    let Scratch { q, scores } = scratch;
    let mut fine = true;
    for (row, q) in q.chunks_exact_mut(ldq).take(rows).enumerate() {
        fine &= isa.pack_row(call.q_rows(unit, row, 1), scale, q);
    }
    m.fill(NO_KEY);
    for first in keys.clone().step_by(KEYS) {
        let count = KEYS.min(keys.end - first);
        let (k, v) = call.keys_and_values(unit, first..first + count);
        if !isa.dots(k, count, d, q, rows, ldq, scores, KEYS, v) {
            fine = false;
            for row in 0..rows {
                call.test(unit, row, &scores[row * KEYS..][..count]);
            }
        }
        let whole = isa.whole(count);
        let mut bounds = [(0, 0); DECODED_ROWS];
        for (row, bounds) in bounds[..rows].iter_mut().enumerate() {
            let seen = call.problem.keys(sequence, call.row(unit, row).0);
            let end = seen.end.clamp(first, first + count) - first;
            let from = (seen.start.max(first) - first).min(end);
            *bounds = (from as u32, end as u32);
            if call.adjusts() {
                fine &= call.adjust(unit, row, first, &mut scores[row * KEYS..][..whole], from..end);
            }
        }
        let mut fade = [0.0; micro::SOFTMAX_ROWS];
        isa.softmax(rows, whole, scores, KEYS, &bounds, m, l, &mut fade);
        isa.scale_rows(rows, ldo, o, ldo, &fade);
        let next = (first + count).min(keys.end);
        let ahead = call.keys_and_values(unit, next..keys.end.min(next + KEYS)).0;
        isa.weighted_sum(v, count, d_v, scores, rows, KEYS, o, ldo, ahead);
    }
    fine
}

/// Writes a unit's rows: its parts, in order, each with the weight that its largest score has; false if something is not finite.
pub(super) fn merge<'a, T: AttentionElement>(
    call: &Call<'_, T>,
    unit: &Unit,
    parts: impl Iterator<Item = Part<'a>> + Clone,
    pieces: &mut [Piece<'_, T>],
) -> bool {
    let (group, d_v) = (call.problem.group(), call.problem.d_v);
    let ldo = call.isa.whole(d_v);
    let mut fine = true;
    let mut o = [0.0; 256];
    for row in 0..unit.queries.len() * group {
        let (query, head) = (row / group, row % group);
        let largest = parts.clone().fold(NO_KEY, |largest, part| part.m[row].max(largest));
        let mut total = 0.0;
        let o = &mut o[..d_v];
        o.fill(0.0);
        for part in parts.clone() {
            let weight = (part.m[row] - largest).exp();
            total += weight * part.l[row];
            o.iter_mut().zip(&part.o[row * ldo..]).for_each(|(sum, o)| *sum += weight * o);
        }
        let Piece { output, lse, .. } = &mut pieces[head];
        let to = &mut output[query * d_v..][..d_v];
        fine &= call.finish(call.row(unit, row).1, o, largest, total, to, &mut lse[query]);
    }
    fine
}
