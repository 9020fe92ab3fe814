//! What one round of dispatches computes, and how a call is cut where it exceeds a binding.

use std::ops::Range;

use super::*;
use crate::Error;
use crate::kv::latents::PAGE;

/// A part of a call.
#[derive(Debug, Clone)]
pub(super) struct Region {
    pub(super) sequences: Range<usize>,
    /// KV heads.
    pub(super) heads: Range<usize>,
    /// Query heads of each group.
    pub(super) members: Range<usize>,
    pub(super) queries: Range<usize>,
}

/// Rows that a workgroup has: `rows` from `row` on, row = query * members + member, counted from the region's first.
#[derive(Debug, Clone)]
pub(super) struct Unit {
    pub(super) sequence: usize,
    pub(super) head: usize,
    pub(super) row: usize,
    pub(super) rows: usize,
    /// First part, and how many.
    pub(super) packed: [usize; 2],
    pub(super) exact: [usize; 2],
}

impl Region {
    pub(super) fn whole(call: &Call<'_>) -> Self {
        Self {
            sequences: 0..call.sequences.len(),
            heads: 0..call.layer.kv_heads,
            members: 0..call.group,
            queries: 0..call.q_len,
        }
    }

    /// Units of each sequence and head.
    fn tiles(&self, call: &Call<'_>) -> usize {
        (self.members.len() * self.queries.len()).div_ceil(call.rows)
    }

    /// How many units there are.
    pub(super) fn count(&self, call: &Call<'_>) -> usize {
        self.sequences.len() * self.heads.len() * self.tiles(call)
    }

    /// All units, by sequence, head and row.
    pub(super) fn units(&self, call: &Call<'_>) -> Vec<Unit> {
        let all = self.members.len() * self.queries.len();
        let mut units = Vec::with_capacity(self.count(call));
        for sequence in self.sequences.clone() {
            for head in self.heads.clone() {
                for row in (0..all).step_by(call.rows) {
                    let rows = call.rows.min(all - row);
                    units.push(Unit { sequence, head, row, rows, packed: [0; 2], exact: [0; 2] });
                }
            }
        }
        units
    }

    /// From the first to the last row of q and the output: the first, and how many.
    pub(super) fn span(&self, call: &Call<'_>) -> (usize, usize) {
        let row = |sequence: usize, head: usize, member: usize, query: usize| {
            ((sequence * call.q_heads) + head * call.group + member) * call.q_len + query
        };
        let first = row(self.sequences.start, self.heads.start, self.members.start, self.queries.start);
        let last = row(self.sequences.end - 1, self.heads.end - 1, self.members.end - 1, self.queries.end);
        (first, last - first)
    }

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
    /// Records a region, in halves where it is too large.
    pub(super) fn region(&self, region: &Region) -> Result<()> {
        if region.sequences.is_empty() || region.queries.is_empty() {
            return Ok(());
        }
        let d = self.layer.head_dim;
        let (_, rows) = region.span(self);
        let bound = 4 * rows * d;
        // One block's absorbed queries, one split's parts, one page of rebuilt keys of each head.
        let units = 4 * region.count(self) * self.rows * self.width().max(self.part_stride()).max(self.exact_stride());
        let keys = if self.rebuilds() { 4 * region.sequences.len() * region.heads.len() * d * PAGE } else { 0 };
        let needed = bound.max(2 * units).max(keys);
        if needed <= self.limit {
            return self.fitting(region);
        }
        let mut axes: Vec<fn(&mut Region) -> &mut Range<usize>> = vec![|r| &mut r.sequences, |r| &mut r.heads];
        if bound > self.limit {
            // Queries of one head lie side by side, those of several do not.
            axes.push(|r| &mut r.members);
        }
        axes.extend([(|r| &mut r.queries) as fn(&mut Region) -> &mut Range<usize>, |r| &mut r.members]);
        for axis in axes {
            if let Some(halves) = region.halves(axis) {
                return halves.iter().try_for_each(|half| self.region(half));
            }
        }
        let (needed, limit, device) = (needed as u64, self.limit as u64, self.gpu.to_string());
        Err(Error::TooLarge { place: PLACE, quantity: "one row's latents", needed, limit, device })
    }
}
