//! The k nearest of many queries, piece by piece of a base.

use std::sync::Arc;

use ndarray::Ix2;

use super::base::{Base, Store, chunk};
use super::compact::{Compaction, Histogram};
use super::distances::{self, Measure, Queries, Rows};
use super::select::{Entries, Keys, MAX_LIST, Slot, Source, fill, merge_runs};
use super::{PLACE, tables, too_large};
use crate::Result;
use crate::gpu::{Buffer, Check, Gpu, View};
use crate::hamming::{Codes, Neighbours};
use crate::tensor::{Element, Storage, Tensor};

/// Bytes of the keys that are held at a time: a tile of queries x base stays within a large cache.
const SCRATCH: usize = 32 << 20;
/// So many queries go one by one over the base, which then is all that is read.
const FEW: usize = 4;
/// Queries of a block at most: compaction tags entries with them in 10 bits.
const BLOCK: usize = 1024;

/// How a search is cut: codes a window, queries a block.
pub(super) struct Plan {
    pub(super) chunk: usize,
    pub(super) block: usize,
}

impl Plan {
    /// `entry_bytes`: what else a query needs in one binding.
    pub(super) fn new(
        gpu: &Gpu,
        words: usize,
        len: usize,
        key_bytes: usize,
        queries: usize,
        entry_bytes: usize,
    ) -> Result<Self> {
        let chunk = chunk(gpu, words, key_bytes)?.min(len.next_multiple_of(64).max(64));
        let row = (chunk * key_bytes).max(entry_bytes).max(words * 4);
        let binding = gpu.max_binding() as usize;
        if row > binding {
            return Err(too_large(gpu, "the neighbours of one query", row));
        }
        let block = (SCRATCH.min(binding) / row).max(1);
        let block = if block >= 16 { block / 16 * 16 } else { block };
        let block =
            block.min(queries.max(1)).min(BLOCK).min(gpu.max_groups()).min(gpu.rows_per_window(PLACE, words * 16)?);
        Ok(Self { chunk, block })
    }
}

/// The nearest so far of a block of queries: the first k of 2 k entries a query, the other k for those of the next piece.
struct Block {
    first: usize,
    queries: usize,
    keys: Buffer,
    ids: Buffer,
    limits: Buffer,
    filled: bool,
}

/// A search that goes on piece by piece.
pub(super) struct Search<'a> {
    gpu: &'a Gpu,
    queries: Queries<'a>,
    count: usize,
    measure: Measure,
    bits: usize,
    k: usize,
    mask: Option<&'a Buffer>,
    /// Whether keys are not held but computed where they are looked at.
    fused: bool,
    plan: Plan,
    blocks: Vec<Block>,
}

impl<'a> Search<'a> {
    /// `len`: codes of the base, or of its largest piece. `mask`: of the base, from its first code on.
    #[allow(clippy::too_many_arguments, reason = "a constructor of what a search holds")]
    pub(super) fn new(
        gpu: &'a Gpu,
        queries: Queries<'a>,
        count: usize,
        measure: Measure,
        bits: usize,
        len: usize,
        k: usize,
        mask: Option<&'a Buffer>,
    ) -> Result<Self> {
        let keys = measure.keys();
        let fused = count <= FEW && measure == Measure::Hamming && k <= MAX_LIST;
        let key_bytes = if fused { 0 } else { measure.bytes() };
        let codes = chunk(gpu, queries.words, key_bytes)?.min(len.next_multiple_of(64).max(64));
        let held = match (k > MAX_LIST, measure) {
            (false, _) => codes.div_ceil(keys.tile()) * k,
            (true, Measure::Hamming) => Entries::sorted_room(keys, k).max(bits + 1),
            (true, _) => Entries::sorted_room(keys, codes),
        };
        // A table that exceeds a binding is gone through in parts.
        let table =
            if measure == Measure::Float { (bits / 8 * tables::TABLE).min(gpu.max_binding() as usize) } else { 0 };
        let rows = queries.words * measure.planes() * 4;
        let plan = Plan::new(gpu, queries.words, len, key_bytes, count, table.max(held.max(2 * k) * 4).max(rows))?;
        Ok(Self { gpu, queries, count, measure, bits, k, mask, fused, plan, blocks: Vec::new() })
    }

    /// Goes on with `base`, whose first code is number `first`.
    pub(super) fn push(&mut self, base: Base<'_>, first: usize) -> Result<()> {
        if self.blocks.is_empty() {
            for start in (0..self.count).step_by(self.plan.block) {
                let queries = self.plan.block.min(self.count - start);
                let bytes = (queries * 2 * self.k * 4) as u64;
                let room = || self.gpu.allocate(PLACE, bytes);
                let limits = self.gpu.allocate(PLACE, (queries * 4) as u64)?;
                self.gpu.clear(&limits);
                self.blocks.push(Block { first: start, queries, keys: room()?, ids: room()?, limits, filled: false });
            }
        }
        if base.len == 0 {
            return Ok(());
        }
        let mut blocks = std::mem::take(&mut self.blocks);
        let result = blocks.iter_mut().try_for_each(|block| match (self.measure, self.k > MAX_LIST) {
            (Measure::Hamming, true) => self.by_histogram(block, base, first),
            _ => self.by_windows(block, base, first),
        });
        self.blocks = blocks;
        result
    }

    fn entries<'b>(&'b self, queries: usize, limits: Option<&'b Buffer>) -> Entries<'b> {
        let key_bits = usize::BITS - self.measure.largest(self.bits).leading_zeros();
        Entries { gpu: self.gpu, queries, keys: self.measure.keys(), key_bits, limits }
    }

    /// Where the nearest of a window go.
    fn slot<'b>(&self, block: &'b Block) -> Slot<'b> {
        let offset = if block.filled { self.k } else { 0 };
        Slot { offset, ids_offset: offset, ..Slot::whole(&block.keys, &block.ids, 2 * self.k) }
    }

    /// Joins what is in the slot with the nearest so far.
    fn join(&self, block: &mut Block) -> Result<()> {
        if block.filled {
            let bytes = block.keys.bytes();
            let (keys, ids) = (self.gpu.allocate(PLACE, bytes)?, self.gpu.allocate(PLACE, bytes)?);
            let from = Slot::whole(&block.keys, &block.ids, 2 * self.k);
            let to = Slot::whole(&keys, &ids, 2 * self.k);
            merge_runs(self.gpu, block.queries, &from, 2 * self.k, self.k, self.k, u32::MAX, &to)?;
            (block.keys, block.ids) = (keys, ids);
        }
        block.filled = true;
        Ok(())
    }

    /// Keys of a block and a window.
    fn keys(&self, block: &Block, window: &super::base::Window<'_>, first: usize, out: &Rows<'_>) -> Result<()> {
        let mask = self.mask.map(|mask| (mask, first + window.first));
        let queries = block.first..block.first + block.queries;
        if let (Measure::Float, Some(tables)) = (self.measure, self.queries.totals) {
            return tables::record(self.gpu, tables, self.bits / 8, queries, window, mask, out);
        }
        distances::record(self.gpu, self.measure, &self.queries, queries, window, mask, out)
    }

    fn scratch(&self, block: &Block) -> Result<(Buffer, usize)> {
        let stride = self.plan.chunk * self.measure.bytes() / 4;
        Ok((self.gpu.allocate(PLACE, (block.queries * stride * 4) as u64)?, stride))
    }

    /// The nearest of each window.
    fn by_windows(&self, block: &mut Block, base: Base<'_>, first: usize) -> Result<()> {
        let (scratch, stride) = if self.fused { (self.gpu.allocate(PLACE, 4)?, 0) } else { self.scratch(block)? };
        for window in base.windows(self.gpu, self.plan.chunk) {
            let source = if self.fused {
                let mask = self.mask.map(|mask| (mask, first + window.first));
                Source::Codes { queries: self.queries, first_query: block.first, window: &window, mask }
            } else {
                self.keys(block, &window, first, &Rows { view: scratch.view(), offset: 0, stride })?;
                match self.measure.keys() {
                    Keys::Narrow => Source::Distances { rows: scratch.view(), stride },
                    Keys::Wide => Source::Keys { rows: scratch.view(), stride },
                }
            };
            let limits = (self.k <= MAX_LIST).then_some(&block.limits);
            let entries = self.entries(block.queries, limits);
            entries.nearest(source, first + window.first, window.len, self.k, &self.slot(block))?;
            self.join(block)?;
        }
        Ok(())
    }

    /// More neighbours than lists hold: a histogram tells the k-th distance, and what is below it and enough at it is gathered and sorted.
    fn by_histogram(&self, block: &mut Block, base: Base<'_>, first: usize) -> Result<()> {
        let (scratch, stride) = self.scratch(block)?;
        let rows = || Rows { view: scratch.view(), offset: 0, stride };
        let histogram = Histogram::new(self.gpu, block.queries, self.bits + 1)?;
        let windows: Vec<_> = base.windows(self.gpu, self.plan.chunk).collect();
        for window in &windows {
            self.keys(block, window, first, &rows())?;
            histogram.add(&scratch, stride, window.len)?;
        }
        let thresholds = histogram.thresholds(self.k)?;
        let (keys, ids) = {
            let bytes = (block.queries * self.k * 4) as u64;
            (self.gpu.allocate(PLACE, bytes)?, self.gpu.allocate(PLACE, bytes)?)
        };
        fill(self.gpu, &keys)?;
        fill(self.gpu, &ids)?;
        let starts: Vec<u32> = (0..block.queries).map(|query| (query * self.k) as u32).collect();
        let starts = self.gpu.upload(PLACE, bytemuck::cast_slice(&starts))?;
        let compaction = Compaction::new(self.gpu, block.queries, thresholds.view(), self.plan.chunk)?;
        for window in &windows {
            // One window's distances are still there.
            if windows.len() > 1 {
                self.keys(block, window, first, &rows())?;
            }
            compaction.count(&scratch, stride, window.len)?;
            compaction.write(
                &scratch,
                stride,
                window.len,
                first + window.first,
                starts.view(),
                (keys.view(), ids.view()),
                0,
            )?;
        }
        let source = Source::Lists { keys: keys.view(), ids: ids.view(), stride: self.k };
        let entries = self.entries(block.queries, None);
        entries.sorted(source, 0, self.k, self.k, u32::MAX, &self.slot(block))?;
        self.join(block)
    }

    /// Keys and ids, (queries, k).
    pub(super) fn finish(self) -> Result<(Buffer, Buffer)> {
        let bytes = (self.count * self.k * 4) as u64;
        let (keys, ids) = (self.gpu.allocate(PLACE, bytes)?, self.gpu.allocate(PLACE, bytes)?);
        for block in &self.blocks {
            let row = (self.k * 4) as u64;
            let window = |buffer| {
                let (first, bytes) = (block.first as u64 * row, block.queries as u64 * row);
                View::window(buffer, first, bytes, self.gpu.binding_alignment())
            };
            let ((keys, keys_shift), (ids, ids_shift)) = (window(&keys), window(&ids));
            let to =
                Slot { keys, ids, offset: keys_shift as usize / 4, ids_offset: ids_shift as usize / 4, stride: self.k };
            let from = Slot::whole(&block.keys, &block.ids, 2 * self.k);
            let length = if block.filled { self.k } else { 0 };
            merge_runs(self.gpu, block.queries, &from, length, self.k.max(1), self.k, u32::MAX, &to)?;
        }
        Ok((keys, ids))
    }
}

/// Keys (as u32) and ids, (queries, k).
pub(super) fn search(
    store: &Store,
    queries: Queries<'_>,
    count: usize,
    measure: Measure,
    k: usize,
    allowed: Option<&[u32]>,
) -> Result<(Buffer, Buffer)> {
    let gpu = &store.gpu;
    let mask = allowed.map(|words| gpu.upload(PLACE, bytemuck::cast_slice(words))).transpose()?;
    let mut search = Search::new(gpu, queries, count, measure, store.bits, store.len(), k, mask.as_ref())?;
    if k > 0 && count > 0 {
        for (first, base) in store.bases() {
            search.push(base, first)?;
        }
    }
    search.finish()
}

/// The result, its ids and distances as they are in two buffers.
pub(super) fn neighbours<T: Element>(
    store: &Store,
    queries: &[Arc<Check>],
    shape: (usize, usize),
    (distances, ids): (Buffer, Buffer),
) -> Neighbours<T> {
    let checks = crate::kernels::inherit(&[&store.checks, queries]);
    let dim = Ix2(shape.0, shape.1);
    Neighbours {
        ids: Tensor::on_gpu(&store.gpu, ids, dim, checks.clone()),
        distances: Tensor::on_gpu(&store.gpu, distances, dim, checks),
        first_id: 0,
    }
}

/// The words of codes on a GPU.
pub(super) fn words(codes: &Codes) -> &Buffer {
    match codes.words().storage() {
        Storage::Gpu(_, buffer) => buffer,
        Storage::Host(_) => unreachable!("only called for a GPU"),
    }
}

/// As the CPU's: the k nearest of each query by (distance, lowest id).
pub(crate) fn nearest(store: &Store, queries: &Codes, k: usize, allowed: Option<&[u32]>) -> Result<Neighbours<u32>> {
    let (wanted, count) = (Queries { buffer: words(queries), words: store.words, totals: None }, queries.len());
    let found = search(store, wanted, count, Measure::Hamming, k, allowed)?;
    Ok(neighbours(store, queries.words().checks(), (count, k), found))
}
