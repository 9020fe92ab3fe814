//! What one dispatch computes, and how a call is cut where its tensors exceed a binding.

use std::ops::Range;

use super::{Call, PLACE};
use crate::Result;
use crate::attention::Problem;
use crate::gpu::Buffer;

/// A part of a call: sequences, key heads, query heads of each key head, and queries and keys counted within a sequence.
#[derive(Debug, Clone)]
pub(super) struct Region {
    pub(super) sequences: Range<usize>,
    pub(super) heads: Range<usize>,
    pub(super) members: Range<usize>,
    pub(super) queries: Range<usize>,
    pub(super) keys: Range<usize>,
}

/// First element and number of elements of each tensor that a region touches; rows of out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spans {
    pub(super) q: (usize, usize),
    pub(super) k: (usize, usize),
    pub(super) v: (usize, usize),
    pub(super) bias: (usize, usize),
    pub(super) rows: (usize, usize),
}

/// Workgroups that fill a device, and keys below which another split costs more than it gains.
const FILL: usize = 256;
const SPLIT_KEYS: usize = 128;
/// Rows of a key head below which its keys are split.
const FEW_ROWS: usize = 32;

impl Region {
    pub(super) fn whole(problem: &Problem) -> Self {
        let longest =
            |length: fn(&crate::attention::Sequence) -> usize| problem.sequences.iter().map(length).max().unwrap_or(0);
        Self {
            sequences: 0..problem.sequences.len(),
            heads: 0..problem.kv_heads,
            members: 0..problem.group(),
            queries: 0..longest(|sequence| sequence.q_len),
            keys: 0..longest(|sequence| sequence.kv_len),
        }
    }

    /// From the first to the last element of each tensor.
    pub(super) fn spans(&self, problem: &Problem) -> Spans {
        let sequences = &problem.sequences[self.sequences.clone()];
        let group = problem.group();
        let (first_head, last_head) =
            (self.heads.start * group + self.members.start, (self.heads.end - 1) * group + self.members.end - 1);
        let (mut rows, mut keys) = ((usize::MAX, 0), (usize::MAX, 0));
        for sequence in sequences {
            let base = sequence.batch * problem.q_heads * problem.q_len + sequence.q_start;
            let end = self.queries.end.min(sequence.q_len);
            if end > self.queries.start {
                rows.0 = rows.0.min(base + first_head * problem.q_len + self.queries.start);
                rows.1 = rows.1.max(base + last_head * problem.q_len + end);
            }
            let base = sequence.batch * problem.kv_heads * problem.kv_len + sequence.kv_start;
            let end = self.keys.end.min(sequence.kv_len);
            if end > self.keys.start {
                keys.0 = keys.0.min(base + self.heads.start * problem.kv_len + self.keys.start);
                keys.1 = keys.1.max(base + (self.heads.end - 1) * problem.kv_len + end);
            }
        }
        let span = |(first, end): (usize, usize)| if end == 0 { (0, 0) } else { (first, end - first) };
        let (rows, keys) = (span(rows), span(keys));
        let bias = problem.bias_strides.map_or((0, 0), |strides| {
            let at = |sequence: usize, head: usize, query: usize, key: usize| {
                sequence * strides[0] + head * strides[1] + query * strides[2] + key * strides[3]
            };
            let first = at(self.sequences.start, first_head, self.queries.start, self.keys.start);
            let last = |range: &Range<usize>| range.end.max(range.start + 1) - 1;
            let last = at(last(&self.sequences), last_head, last(&self.queries), last(&self.keys));
            (first, last - first + 1)
        });
        Spans {
            q: (rows.0 * problem.d, rows.1 * problem.d),
            k: (keys.0 * problem.d, keys.1 * problem.d),
            v: (keys.0 * problem.d_v, keys.1 * problem.d_v),
            bias,
            rows,
        }
    }

    /// Two halves along an axis of more than one.
    fn halves(&self, axis: fn(&mut Self) -> &mut Range<usize>) -> Option<[Self; 2]> {
        let (mut low, mut high) = (self.clone(), self.clone());
        let range = axis(&mut low).clone();
        if range.len() < 2 {
            return None;
        }
        let middle = range.start + range.len() / 2;
        axis(&mut low).end = middle;
        axis(&mut high).start = middle;
        Some([low, high])
    }
}

impl Call<'_> {
    /// Records a region, cut so that every dispatch sees windows of its tensors.
    ///
    /// Rows of each part lie without gaps in out: of a batch, sequences are cut before heads; of a ragged row, heads before sequences.
    pub(super) fn region(&self, region: Region) -> Result<()> {
        if region.queries.is_empty() || region.sequences.is_empty() {
            return Ok(());
        }
        let problem = self.problem;
        let limit = (self.gpu.max_binding() - self.gpu.binding_alignment() - 4) as usize;
        let spans = region.spans(problem);
        if spans.rows.1 == 0 {
            return Ok(());
        }
        let fits = |count: usize, bytes: usize| count * bytes <= limit;
        let rows_fit = fits(spans.q.1, self.element) && fits(spans.rows.1 * problem.d_v.max(1), 4);
        let keys_fit = fits(spans.k.1, self.element) && fits(spans.v.1, self.element);
        let bias_fits = fits(spans.bias.1, 4);
        let tables_fit = region.sequences.len() <= self.most_sequences;
        if rows_fit && keys_fit && bias_fits && tables_fit {
            return self.split(&region, self.splits_of(&region, spans.rows.1, limit));
        }
        let outer: [fn(&mut Region) -> &mut Range<usize>; 3] = if self.options.ragged.is_some() {
            [|r| &mut r.heads, |r| &mut r.members, |r| &mut r.sequences]
        } else {
            [|r| &mut r.sequences, |r| &mut r.heads, |r| &mut r.members]
        };
        for axis in outer {
            if let Some(halves) = region.halves(axis) {
                return halves.into_iter().try_for_each(|half| self.region(half));
            }
        }
        // One query head of one sequence: cut queries until the rest fits, then keys.
        let widest = problem.d.max(problem.d_v) * self.element;
        let own_bias = problem.bias_strides.map_or(0, |strides| strides[3]);
        let keys = (limit / widest).min(if own_bias > 0 { limit / 4 } else { usize::MAX }).max(1);
        let pieces = region.keys.len().div_ceil(keys).max(1);
        let few = limit / (spans.rows.1 * problem.d_v * 4).max(1) < pieces.min(8);
        if (!rows_fit || !bias_fits || few)
            && let Some(halves) = region.halves(|r| &mut r.queries)
        {
            return halves.into_iter().try_for_each(|half| self.region(half));
        }
        self.pieces(&region, keys, limit)
    }

    /// How many ranges of keys a region that fits is split in.
    fn splits_of(&self, region: &Region, rows: usize, limit: usize) -> usize {
        let most = limit / (rows * self.problem.d_v * 4).max(1);
        let own = region.members.len() * region.queries.len();
        let groups = own.div_ceil(self.choice.rows as usize) * region.heads.len() * region.sequences.len();
        let wanted = match self.splits {
            Some(splits) => splits.min(region.keys.len().div_ceil(self.choice.keys as usize)),
            None if own < FEW_ROWS => (FILL / groups.max(1)).min(region.keys.len() / SPLIT_KEYS),
            None => 1,
        };
        wanted.clamp(1, most.max(1))
    }

    fn scratch(&self, rows: usize, slots: usize) -> Result<(Buffer, Buffer)> {
        let out = self.gpu.allocate(PLACE, (slots * rows * self.problem.d_v * 4) as u64)?;
        Ok((out, self.gpu.allocate(PLACE, (slots * rows * 4) as u64)?))
    }

    /// A region that fits: one dispatch, and a merge where it is split.
    fn split(&self, region: &Region, splits: usize) -> Result<()> {
        if splits == 1 {
            return self.dispatch(region, 1, 0, true, self.half_out, (self.out, self.lse), (0, 0));
        }
        let (row, rows) = region.spans(self.problem).rows;
        let (part, part_lse) = self.scratch(rows, splits)?;
        self.dispatch(region, splits, 0, true, false, (&part, &part_lse), (row, rows))?;
        self.merge((&part, &part_lse), splits, (self.out, self.lse), row, (row, rows), self.half_out)
    }

    /// Rows of one head whose keys exceed a window: pieces of `keys` keys, merged as often as the scratch is full.
    fn pieces(&self, region: &Region, keys: usize, limit: usize) -> Result<()> {
        let (row, rows) = region.spans(self.problem).rows;
        let pieces = region.keys.len().div_ceil(keys);
        let slots = (limit / (rows * self.problem.d_v * 4)).clamp(2, pieces.max(2));
        let (part, part_lse) = self.scratch(rows, slots)?;
        let mut used = 0;
        for piece in 0..pieces {
            if used == slots {
                // What there is becomes the first part of the next round.
                let (carry, carry_lse) = self.scratch(rows, 1)?;
                self.merge((&part, &part_lse), slots, (&carry, &carry_lse), 0, (row, rows), false)?;
                self.gpu.copy(carry.view(), &part, 0);
                self.gpu.copy(carry_lse.view(), &part_lse, 0);
                used = 1;
            }
            let start = region.keys.start + piece * keys;
            let own = Region { keys: start..(start + keys).min(region.keys.end), ..region.clone() };
            self.dispatch(&own, 1, used, piece == 0, false, (&part, &part_lse), (row, rows))?;
            used += 1;
        }
        self.merge((&part, &part_lse), used, (self.out, self.lse), row, (row, rows), self.half_out)
    }
}
