//! The CPU's way. Rows (queries times heads of a group) of one KV head walk its tokens, some hundred at a time: packed ones in latent space, exact ones as
//! they are.
//!
//! Few rows are cut in ranges of 2048 tokens for the threads, many walk all tokens at once. Queries are absorbed (D R_{-n0} q) once a frame block, or,
//! where blocks are so short or rows so many that it costs less, keys are rebuilt.

mod quantised;
mod tables;

use std::ops::Range;
use std::sync::Arc;

use ndarray::{Array3, Array4, ArrayView4};
use rayon::prelude::*;

use super::*;
use crate::Error;
use crate::attention::NO_KEY;
use crate::kernels::attention::cpu::micro::codes::Ahead;
use crate::kernels::attention::cpu::micro::{Isa, PACK, SOFTMAX_ROWS, Stored};
use crate::kernels::attention::first_beyond;
use crate::kv::latents::PAGE;
use crate::kv::store::{HostStore, Rows};

pub(crate) use tables::HostTables;

/// Tokens of a step of the online softmax.
const STEP: usize = 256;
/// The same where few rows go over quantised values, which pays at the end of each step.
const CODE_STEP: usize = 512;
/// Tokens of a range, where rows are few.
const RANGE: usize = 2048;
/// Keys of so many pages ahead are asked for.
const AHEAD: usize = 2;
/// Rows that are few.
const FEW_ROWS: usize = 16;

/// Output and log-sum-exp. The order of every sum depends on the shapes alone.
pub(super) fn forward<T: AttentionElement>(
    layer: &LatentLayer,
    store: &HostStore,
    sequences: &[CachedSequence<'_>],
    q: &ArrayView4<'_, T>,
    attending: Attending,
) -> Result<(Array4<T>, Array3<f32>)> {
    let (batch, q_heads, q_len, d) = q.dim();
    let Some(elements) = q.as_slice() else { unreachable!("tensors are in row-major order") };
    if let Some(index) = first_beyond(elements, f32::MAX) {
        let found = elements[index].to_string();
        return Err(Error::Domain { place: PLACE, quantity: "q", index, expected: "finite", found });
    }
    let Some(tables) = &layer.host else { unreachable!("a layer on the CPU has its tables") };
    let group = q_heads / layer.kv_heads;
    let longest = sequences.iter().map(|sequence| layer.boundary(sequence.len)).max().unwrap_or(0);
    let call = Call {
        layer,
        store,
        sequences,
        tables,
        q: elements,
        group,
        q_heads,
        q_len,
        attending,
        angles: tables.angles(&layer.turns, longest),
        way: quantised::Way::best(tables.isa),
    };
    let step = (SOFTMAX_ROWS / group).max(1).min(q_len.max(1));
    let mut units = Vec::new();
    for sequence in 0..batch {
        for kv_head in 0..layer.kv_heads {
            for first in (0..q_len).step_by(step) {
                for heads in (0..group).step_by(SOFTMAX_ROWS) {
                    let heads = heads..group.min(heads + SOFTMAX_ROWS);
                    let query_range = first..q_len.min(first + step);
                    units.push(Unit { sequence, kv_head, query_range, heads, queries: Vec::new(), absorbed: None });
                }
            }
        }
    }
    units.par_iter_mut().for_each_init(Vec::new, |turned, unit| {
        unit.queries = call.queries(unit);
        if layer.turns.block().is_none() {
            let set = LatentLayer::set_of(&layer.keys, unit.kv_head).0;
            let mut absorbed = Vec::new();
            call.absorb(unit, 0..1, turned, &mut absorbed, layer.layout.keys[set].rank);
            unit.absorbed = Some(absorbed);
        }
    });
    let tasks: Vec<(usize, Task)> =
        units.iter().enumerate().flat_map(|(index, unit)| call.tasks(unit).map(move |task| (index, task))).collect();
    // Range by range, all heads of one before the next: its pages stay known to the processor, whose table of addresses holds few megabytes (with heads one
    // after the other 32768 tokens of 8 heads took 11 ms, so 7).
    let mut order: Vec<usize> = (0..tasks.len()).collect();
    order.sort_by_key(|task| {
        let (unit, task) = &tasks[*task];
        let first = if let Task::Packed(tokens) = task { tokens.start } else { usize::MAX };
        (units[*unit].sequence, first, *unit)
    });
    let mut parts: Vec<(usize, Part)> = order
        .par_iter()
        .map_init(Scratch::default, |scratch, &index| {
            let (unit, task) = &tasks[index];
            (index, call.part(&units[*unit], task, scratch))
        })
        .collect();
    parts.sort_unstable_by_key(|(index, _)| *index);
    let parts: Vec<Part> = parts.into_iter().map(|(_, part)| part).collect();
    let mut output = Array4::from_elem((batch, q_heads, q_len, d), T::default());
    let mut lse = Array3::from_elem((batch, q_heads, q_len), NO_KEY);
    let (Some(rows), Some(sums)) = (output.as_slice_mut(), lse.as_slice_mut()) else {
        unreachable!("new arrays are in row-major order")
    };
    let mut fine = true;
    let mut done = 0;
    for (index, unit) in units.iter().enumerate() {
        let count = tasks[done..].iter().take_while(|(of, _)| *of == index).count();
        fine &= call.merge(unit, &tasks[done..done + count], &parts[done..done + count], rows, sums);
        done += count;
    }
    if fine {
        return Ok((output, lse));
    }
    let index = rows.iter().position(|x| !x.widen().is_finite());
    let (quantity, index) = index.map_or(("a score", 0), |index| ("output", index));
    Err(Error::Domain { place: PLACE, quantity, index, expected: "finite", found: "not finite".into() })
}

/// One call.
struct Call<'a, T> {
    layer: &'a LatentLayer,
    store: &'a HostStore,
    sequences: &'a [CachedSequence<'a>],
    tables: &'a HostTables,
    q: &'a [T],
    group: usize,
    q_heads: usize,
    q_len: usize,
    attending: Attending,
    /// Of the origins of blocks, one after the other.
    angles: Arc<Vec<(f32, f32)>>,
    /// How few rows go over quantised latents.
    way: quantised::Way,
}

/// Rows that are computed together: row r is query `query_range.start + r / heads` of head `kv_head * group + heads.start + r % heads`.
struct Unit {
    sequence: usize,
    kv_head: usize,
    query_range: Range<usize>,
    /// Within the group.
    heads: Range<usize>,
    /// Its queries times the scale, whole vectors of d apart.
    queries: Vec<f32>,
    /// As all tokens take them, where the frame has no blocks.
    absorbed: Option<Vec<f32>>,
}

impl Unit {
    fn rows(&self) -> usize {
        self.query_range.len() * self.heads.len()
    }
}

/// Some tokens of a unit: packed ones (whole pages), or all exact ones.
enum Task {
    Packed(Range<usize>),
    Exact,
}

/// What came of some tokens: sums of weighted rows ([rows, d], or latents [rank, ld]), largest scores and sums of weights.
struct Part {
    o: Vec<f32>,
    m: Vec<f32>,
    l: Vec<f32>,
}

/// What a thread holds.
#[derive(Default)]
struct Scratch {
    /// R_{-n0} q of several blocks, then what is absorbed.
    turned: Vec<f32>,
    absorbed: Vec<f32>,
    /// Latents of keys in panels, rebuilt keys in panels, latents of values.
    keys: Vec<f32>,
    rebuilt: Vec<f32>,
    values: Vec<f32>,
    scores: Vec<f32>,
    transposed: Vec<f32>,
    packing: Vec<f32>,
    angles: Vec<(f32, f32)>,
    quantised: quantised::Scratch,
    sums: quantised::Sums,
}

fn sized(vector: &mut Vec<f32>, length: usize) -> &mut [f32] {
    if vector.len() < length {
        vector.resize(length, 0.0);
    }
    &mut vector[..length]
}

impl<'a, T: AttentionElement> Call<'a, T> {
    /// The tasks of a unit, in the order in which their parts are merged.
    fn tasks(&self, unit: &Unit) -> impl Iterator<Item = Task> + use<T> {
        let sequence = self.sequences[unit.sequence];
        let boundary = self.layer.boundary(sequence.len);
        let range = if unit.rows() <= FEW_ROWS { RANGE } else { boundary.max(1) };
        let packed = (0..boundary).step_by(range).map(move |first| Task::Packed(first..boundary.min(first + range)));
        packed.chain([Task::Exact])
    }

    /// Query and head of a row.
    fn row(&self, unit: &Unit, row: usize) -> (usize, usize) {
        let heads = unit.heads.len();
        (unit.query_range.start + row / heads, unit.kv_head * self.group + unit.heads.start + row % heads)
    }

    /// Where a row begins in q and the output.
    fn place(&self, unit: &Unit, row: usize) -> usize {
        let (query, head) = self.row(unit, row);
        (unit.sequence * self.q_heads + head) * self.q_len + query
    }

    /// Tokens that a row sees: the first so many.
    fn seen(&self, unit: &Unit, row: usize) -> usize {
        let len = self.sequences[unit.sequence].len;
        if self.attending.causal { (self.row(unit, row).0 + 1 + len).saturating_sub(self.q_len) } else { len }
    }

    /// The rows of q times the scale, in whole vectors of d.
    fn queries(&self, unit: &Unit) -> Vec<f32> {
        let (d, isa) = (self.layer.head_dim, self.tables.isa);
        let ld = isa.whole(d);
        let mut queries = vec![0.0; unit.rows() * ld];
        for (row, to) in queries.chunks_exact_mut(ld).enumerate() {
            isa.pack_row(&self.q[self.place(unit, row) * d..][..d], self.attending.scale, to);
        }
        queries
    }

    fn part(&self, unit: &Unit, task: &Task, scratch: &mut Scratch) -> Part {
        match task {
            Task::Packed(tokens) => self.packed(unit, tokens.clone(), scratch),
            Task::Exact => match &self.store.slots[self.sequences[unit.sequence].slot as usize] {
                Rows::Half(rows) => self.exact(unit, rows, scratch),
                Rows::Single(rows) => self.exact(unit, rows, scratch),
            },
        }
    }

    /// The exact tokens, where they lie.
    fn exact<E: Stored>(&self, unit: &Unit, slot: &[E], scratch: &mut Scratch) -> Part {
        let (layer, isa, rows) = (self.layer, self.tables.isa, unit.rows());
        let (d, places, len) = (layer.head_dim, layer.places(), self.sequences[unit.sequence].len);
        let ld = isa.whole(d);
        let mut part = Part { o: vec![0.0; rows * ld], m: vec![NO_KEY; rows], l: vec![0.0; rows] };
        let q = &unit.queries;
        let scores = sized(&mut scratch.scores, rows * STEP);
        let mut run = |tokens: Range<usize>| {
            let mut n = tokens.start;
            while n < tokens.end {
                // To the end of the ring at most.
                let place = layer.place(n);
                let whole = if n < layer.sinks { layer.sinks } else { places };
                let count = (tokens.end - n).min(whole - place).min(STEP);
                let of =
                    |side: usize| &slot[((side * layer.kv_heads + unit.kv_head) * places + place) * d..][..count * d];
                isa.dots(of(0), count, d, q, rows, ld, scores, STEP, of(1));
                let mut bounds = [(0, 0); SOFTMAX_ROWS];
                for (row, bounds) in bounds[..rows].iter_mut().enumerate() {
                    *bounds = (0, self.seen(unit, row).clamp(n, n + count) as u32 - n as u32);
                }
                let mut fade = [0.0; SOFTMAX_ROWS];
                isa.softmax(rows, isa.whole(count), scores, STEP, &bounds, &mut part.m, &mut part.l, &mut fade);
                isa.scale_rows(rows, ld, &mut part.o, ld, &fade);
                isa.weighted_sum(of(1), count, d, scores, rows, STEP, &mut part.o, ld, &[]);
                n += count;
            }
        };
        let sinks = layer.sinks.min(len);
        run(0..sinks);
        run(layer.boundary(len).max(sinks)..len);
        part
    }

    /// Packed tokens, in latent space.
    fn packed(&self, unit: &Unit, tokens: Range<usize>, scratch: &mut Scratch) -> Part {
        let (layer, tables, isa, rows) = (self.layer, self.tables, self.tables.isa, unit.rows());
        let Scratch { turned, absorbed, keys, rebuilt, values, scores, transposed, packing, angles, quantised, sums } =
            scratch;
        let sequence = self.sequences[unit.sequence];
        let (key_set, key_head) = LatentLayer::set_of(&layer.keys, unit.kv_head);
        let (value_set, _) = LatentLayer::set_of(&layer.values, unit.kv_head);
        let (key_layout, value_layout) = (&layer.layout.keys[key_set], &layer.layout.values[value_set]);
        let absorb = &tables.key_heads[key_set][key_head];
        let (d, rank, rank_v) = (layer.head_dim, key_layout.rank, value_layout.rank);
        let (ldq, panel) = (isa.whole(d), 2 * isa.lanes());
        let ldr = isa.whole(rank + 1);
        let ldo = isa.whole(rows);
        let mut part = Part { o: vec![0.0; rank_v * ldo], m: vec![NO_KEY; rows], l: vec![0.0; rows] };
        let block = layer.turns.block();
        let rebuilds = rebuilds(block, rows, rank, d);
        let few = rows <= FEW_ROWS;
        let key_codes = few && key_layout.bits.quantised() && !rebuilds;
        let value_codes = few && value_layout.bits.quantised();
        let step = if value_codes { CODE_STEP } else { STEP };
        if value_codes {
            self.way.clear(sums, value_layout, rows);
        }
        // Which blocks' absorbed queries are there.
        let mut there = 0..0;
        let (mut bounds, mut fade) = ([(0, 0); SOFTMAX_ROWS], [0.0; SOFTMAX_ROWS]);
        for first in tokens.clone().step_by(step) {
            let count = step.min(tokens.end - first);
            // Those of this step, and some behind them.
            let ids = &sequence.pages[first / PAGE..];
            let all: [&[u32]; CODE_STEP / PAGE + AHEAD] =
                std::array::from_fn(|page| ids.get(page).map_or(&[][..], |id| &self.store.pages[*id as usize][..]));
            let pages = &all[..count / PAGE];
            let scores = sized(scores, rows * count);
            // One more row of ones, for the means.
            let keys = sized(keys, if key_codes { 0 } else { (rank + 1) * count });
            if !key_codes {
                tables::decode_panels(isa, key_layout, pages, panel, keys);
            }
            if rebuilds {
                let rebuilt = sized(rebuilt, d * count);
                rebuild_panels(layer, isa, absorb, first, count, keys, rank, rebuilt, &mut *angles);
                isa.product(rows, d, count, &unit.queries, ldq, rebuilt, d * panel, 0, scores, count, false);
            } else {
                let mut n = first;
                while n < first + count {
                    let origin = layer.turns.origin(n);
                    let next = block.map_or(first + count, |block| (origin + block).min(first + count));
                    let number = block.map_or(0, |block| n / block);
                    if unit.absorbed.is_none() && !there.contains(&number) {
                        let last = block.map_or(0, |block| (tokens.end - 1) / block);
                        // So many blocks at once that the product has work, and what comes of it stays in the cache.
                        there = number..(number + (64 / rows).max(1)).min(last + 1);
                        self.absorb(unit, there.clone(), turned, absorbed, rank);
                    }
                    let absorbed = match &unit.absorbed {
                        Some(absorbed) => &absorbed[..rows * ldr],
                        None => &absorbed[(number - there.start) * rows * ldr..][..rows * ldr],
                    };
                    if key_codes {
                        let of_run = (n - first) / PAGE..(next - first) / PAGE;
                        let ahead = &all[of_run.start + AHEAD..of_run.end + AHEAD];
                        let ahead = Ahead { pages: ahead, values: (value_layout.params, value_layout.end) };
                        let (pages, scores) = (&pages[of_run], &mut scores[n - first..]);
                        self.way.scores(key_layout, pages, ahead, absorbed, ldr, rows, scores, count, quantised);
                    }
                    for at in (if key_codes { next } else { n }..next).step_by(panel) {
                        let width = panel.min(next - at);
                        let from = at - first;
                        let keys = &keys[from * (rank + 1)..][..width * (rank + 1)];
                        isa.product(
                            rows,
                            rank + 1,
                            width,
                            absorbed,
                            ldr,
                            keys,
                            0,
                            0,
                            &mut scores[from..],
                            count,
                            false,
                        );
                    }
                    n = next;
                }
            }
            for (row, bounds) in bounds[..rows].iter_mut().enumerate() {
                let end = self.seen(unit, row).clamp(first, first + count) - first;
                // Sinks are held exactly.
                *bounds = (layer.sinks.saturating_sub(first).min(end) as u32, end as u32);
            }
            isa.softmax(rows, count, scores, count, &bounds, &mut part.m, &mut part.l, &mut fade);
            if value_codes {
                sums.add(value_layout, pages, scores, count, rows, &fade, quantised);
                continue;
            }
            if fade[..rows].iter().any(|fade| *fade != 1.0) {
                for sums in part.o.chunks_exact_mut(ldo) {
                    sums.iter_mut().zip(&fade[..rows]).for_each(|(sum, fade)| *sum *= fade);
                }
            }
            let values = sized(values, rank_v * count);
            tables::decode_rows(isa, value_layout, pages, values);
            let transposed = sized(transposed, ldo * count);
            let Ok(rows_of_panels) = sized(packing, PACK).try_into() else { unreachable!("as many as were asked for") };
            isa.pack_keys(scores, rows, count, transposed, rows_of_panels);
            isa.product(rank_v, count, rows, values, count, transposed, panel * count, 0, &mut part.o, ldo, true);
        }
        if value_codes {
            sums.finish(value_layout, rows, &mut part.o, ldo);
        }
        part
    }

    /// D R_{-n0} q, and R_{-n0} q . mean behind it, for some blocks: one product.
    fn absorb(&self, unit: &Unit, blocks: Range<usize>, turned: &mut Vec<f32>, absorbed: &mut Vec<f32>, rank: usize) {
        let (layer, isa, rows) = (self.layer, self.tables.isa, unit.rows());
        let (key_set, key_head) = LatentLayer::set_of(&layer.keys, unit.kv_head);
        let (d, panels) = (layer.head_dim, &self.tables.key_heads[key_set][key_head].panels);
        let (ldq, ldr) = (isa.whole(d), isa.whole(rank + 1));
        let count = blocks.len() * rows;
        let turned = if layer.turns.block().is_some() {
            let (turned, pairs) = (sized(turned, count * ldq), layer.turns.pairs.len());
            for (number, of_block) in blocks.zip(turned.chunks_exact_mut(rows * ldq)) {
                of_block.copy_from_slice(&unit.queries);
                let angles = &self.angles[number * pairs..][..pairs];
                of_block.chunks_exact_mut(ldq).for_each(|row| layer.turns.back(row, angles));
            }
            turned
        } else {
            &unit.queries[..]
        };
        let absorbed = sized(absorbed, count * ldr);
        isa.product(count, d, rank + 1, turned, ldq, panels, 2 * isa.lanes() * d, 0, absorbed, ldr, false);
    }

    /// Writes a unit's rows. False if something is not finite.
    fn merge(&self, unit: &Unit, tasks: &[(usize, Task)], parts: &[Part], output: &mut [T], lse: &mut [f32]) -> bool {
        let (layer, isa, rows) = (self.layer, self.tables.isa, unit.rows());
        let (d, ldd) = (layer.head_dim, isa.whole(layer.head_dim));
        let (value_set, value_head) = LatentLayer::set_of(&layer.values, unit.kv_head);
        let rank = layer.values[value_set].rank;
        let (ldo, ldr) = (isa.whole(rows), rank + 1);
        let mut joined = vec![0.0; rank * ldo];
        let mut latents = vec![0.0; rows * ldr];
        let mut sums = vec![0.0; rows * ldd];
        let (mut largest, mut total) = (vec![NO_KEY; rows], vec![0.0; rows]);
        for row in 0..rows {
            largest[row] = parts.iter().fold(NO_KEY, |largest, part| part.m[row].max(largest));
        }
        let mut weights = vec![0.0; ldo];
        for ((_, task), part) in tasks.iter().zip(parts) {
            for row in 0..rows {
                weights[row] = (part.m[row] - largest[row]).exp();
                total[row] += weights[row] * part.l[row];
            }
            if let Task::Packed(_) = task {
                for (joined, o) in joined.chunks_exact_mut(ldo).zip(part.o.chunks_exact(ldo)) {
                    joined.iter_mut().zip(o).zip(&weights).for_each(|((sum, o), weight)| *sum += weight * o);
                }
                (0..rows).for_each(|row| latents[row * ldr + rank] += weights[row] * part.l[row]);
            }
        }
        for (row, latents) in latents.chunks_exact_mut(ldr).enumerate() {
            latents.iter_mut().zip(joined[row..].iter().step_by(ldo)).for_each(|(to, from)| *to = *from);
        }
        let packed = tasks.len() > 1;
        if packed {
            isa.product(
                rows,
                ldr,
                d,
                &latents,
                ldr,
                &self.tables.value_heads[value_set][value_head],
                2 * isa.lanes() * ldr,
                0,
                &mut sums,
                ldd,
                false,
            );
        }
        let mut fine = true;
        for row in 0..rows {
            let sum = &mut sums[row * ldd..][..d];
            for ((_, task), part) in tasks.iter().zip(parts) {
                if let Task::Exact = task {
                    let weight = (part.m[row] - largest[row]).exp();
                    sum.iter_mut().zip(&part.o[row * ldd..]).for_each(|(sum, o)| *sum += weight * o);
                }
            }
            if total[row] == 0.0 {
                continue;
            }
            let place = self.place(unit, row);
            lse[place] = largest[row] + total[row].ln();
            fine &= isa.write_row(sum, 1.0 / total[row], &mut output[place * d..][..d]) & lse[place].is_finite();
        }
        fine
    }
}

/// Whether keys are rebuilt: rank d + rows d products a token, where absorbing takes rows rank d / block + rows rank; and always where a block is not of
/// whole pages.
fn rebuilds(block: Option<usize>, rows: usize, rank: usize, d: usize) -> bool {
    let Some(block) = block else { return false };
    !block.is_multiple_of(PAGE) || rank * d + rows * d < rows * rank * d / block + rows * rank
}

/// R_{n0}(mean + z D) of the tokens of panels, in panels [d][panel].
#[allow(clippy::too_many_arguments)]
fn rebuild_panels(
    layer: &LatentLayer,
    isa: Isa,
    head: &tables::KeyHead,
    first: usize,
    count: usize,
    keys: &[f32],
    rank: usize,
    rebuilt: &mut [f32],
    angles: &mut Vec<(f32, f32)>,
) {
    let (d, panel) = (layer.head_dim, 2 * isa.lanes());
    let mut origin = None;
    for at in (0..count).step_by(panel) {
        let to = &mut rebuilt[at * d..][..panel * d];
        isa.product(d, rank + 1, panel, &head.rows, rank + 1, &keys[at * (rank + 1)..], 0, 0, to, panel, false);
        for lane in 0..panel {
            let of_token = layer.turns.origin(first + at + lane);
            if origin != Some(of_token) {
                layer.turns.angles(of_token, angles);
                origin = Some(of_token);
            }
            for (&(i, j, _), &(cos, sin)) in layer.turns.pairs.iter().zip(angles.iter()) {
                let (a, b) = (to[i * panel + lane], to[j * panel + lane]);
                to[i * panel + lane] = a * cos - b * sin;
                to[j * panel + lane] = b * cos + a * sin;
            }
        }
    }
}
