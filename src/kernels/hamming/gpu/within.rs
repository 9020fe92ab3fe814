//! All codes within a radius: counted, then gathered in the order of ids, then sorted by (query, distance, id).

use std::ops::Range;

use ndarray::Ix1;

use super::PLACE;
use super::base::Store;
use super::compact::{Compaction, Histogram};
use super::distances::{self, Measure, Queries, Rows};
use super::nearest::Plan;
use super::select::{Entries, Keys, Slot, Source};
use crate::Result;
use crate::gpu::{Buffer, View};
use crate::hamming::{Codes, Ranges};
use crate::tensor::{Storage, Tensor};

/// The bits of a tagged key that are its distance.
const DISTANCE: u32 = (1 << 14) - 1;

struct Balls<'a> {
    store: &'a Store,
    queries: Queries<'a>,
    radius: u32,
    mask: Option<Buffer>,
    plan: Plan,
    /// (radius + 1, 0) for each query of a block.
    limits: Buffer,
    scratch: Buffer,
}

/// As the CPU's: all codes at most `radius` from each query. Waits for their numbers.
pub(crate) async fn within(store: &Store, queries: &Codes, radius: u32, allowed: Option<&[u32]>) -> Result<Ranges> {
    let Storage::Gpu(gpu, buffer) = queries.words().storage() else { unreachable!("only called for a GPU") };
    let count = queries.len();
    let checks = crate::kernels::inherit(&[&store.checks, queries.words().checks()]);
    let mask = allowed.map(|words| gpu.upload(PLACE, bytemuck::cast_slice(words))).transpose()?;
    let bins = (store.bits + 1) * 4;
    let plan = Plan::new(gpu, store.words, store.len(), Measure::Hamming.bytes(), count, bins)?;
    let radius = radius.min(store.bits as u32);
    let limits: Vec<u32> = (0..plan.block).flat_map(|_| [radius + 1, 0]).collect();
    let limits = gpu.upload(PLACE, bytemuck::cast_slice(&limits))?;
    let scratch = gpu.allocate(PLACE, (plan.block * plan.chunk * 2) as u64)?;
    let queries = Queries { buffer, words: store.words, totals: None };
    let balls = Balls { store, queries, radius, mask, plan, limits, scratch };

    let totals = gpu.allocate(PLACE, (count * 8) as u64)?;
    for first in (0..count).step_by(balls.plan.block) {
        let block = first..count.min(first + balls.plan.block);
        let compaction = balls.compaction(block.len())?;
        balls.each_window(&block, |_, len| compaction.count(&balls.scratch, balls.stride(), len))?;
        let bytes = (block.len() * 8) as u64;
        gpu.copy(View { buffer: &compaction.carry, offset: 0, bytes }, &totals, (first * 8) as u64);
    }
    let mut numbers = vec![0u32; count * 2];
    if count > 0 {
        gpu.read(totals.view(), &checks, bytemuck::cast_slice_mut(&mut numbers)).await?;
    }
    let mut offsets = vec![0u64];
    for hits in numbers.chunks_exact(2) {
        offsets.push(offsets[offsets.len() - 1] + u64::from(hits[0]));
    }

    let hits = offsets[count];
    let (keys, ids) = (gpu.allocate(PLACE, hits * 4)?, gpu.allocate(PLACE, hits * 4)?);
    let together = balls.together();
    let mut first = 0;
    while first < count {
        // As many queries as a block and a binding hold.
        let mut last = first + 1;
        while last < count && last - first < balls.plan.block && offsets[last + 1] - offsets[first] <= together {
            last += 1;
        }
        let spans = &offsets[first..=last];
        match spans[last - first] - spans[0] {
            0 => {}
            some if some <= together => balls.sorted(first..last, spans, &keys, &ids)?,
            _ => balls.by_distance(first, spans, &keys, &ids).await?,
        }
        first = last;
    }
    Ok(Ranges {
        offsets,
        ids: Tensor::on_gpu(gpu, ids, Ix1(hits as usize), checks.clone()),
        distances: Tensor::on_gpu(gpu, keys, Ix1(hits as usize), checks),
        first_id: 0,
    })
}

impl Balls<'_> {
    fn stride(&self) -> usize {
        self.plan.chunk / 2
    }

    /// Hits that are sorted together: whole tiles of them fit a binding wherever they begin.
    fn together(&self) -> u64 {
        let gpu = &self.store.gpu;
        let tile = Keys::Wide.tile() as u64;
        let fitting = (gpu.max_binding() - gpu.binding_alignment()) / 4 / tile * tile;
        fitting.min(gpu.max_groups() as u64 * tile)
    }

    fn compaction(&self, queries: usize) -> Result<Compaction<'_>> {
        Compaction::new(&self.store.gpu, queries, self.limits.view(), self.plan.chunk)
    }

    /// Records the distances of `block` window by window; `work` takes the number of the window's first code and how many there are.
    fn each_window(&self, block: &Range<usize>, work: impl Fn(usize, usize) -> Result<()>) -> Result<()> {
        let gpu = &self.store.gpu;
        for (before, base) in self.store.bases() {
            for window in base.windows(gpu, self.plan.chunk) {
                let first = before + window.first;
                let mask = self.mask.as_ref().map(|mask| (mask, first));
                let out = Rows { view: self.scratch.view(), offset: 0, stride: self.stride() };
                distances::record(gpu, Measure::Hamming, &self.queries, block.clone(), &window, mask, &out)?;
                work(first, window.len)?;
            }
        }
        Ok(())
    }

    /// The hits of some queries, `spans` of the whole, which fit a binding together.
    fn sorted(&self, block: Range<usize>, spans: &[u64], keys: &Buffer, ids: &Buffer) -> Result<()> {
        let gpu = &self.store.gpu;
        let hits = (spans[block.len()] - spans[0]) as usize;
        let starts: Vec<u32> = spans[..block.len()].iter().map(|start| (start - spans[0]) as u32).collect();
        let starts = gpu.upload(PLACE, bytemuck::cast_slice(&starts))?;
        let room = || gpu.allocate(PLACE, (hits * 4) as u64);
        let (tagged, unsorted) = (room()?, room()?);
        let mut compaction = self.compaction(block.len())?;
        compaction.tag = true;
        self.each_window(&block, |first, len| {
            compaction.count(&self.scratch, self.stride(), len)?;
            let to = (tagged.view(), unsorted.view());
            compaction.write(&self.scratch, self.stride(), len, first, starts.view(), to, 0)
        })?;
        let window = |buffer| View::window(buffer, spans[0] * 4, (hits * 4) as u64, gpu.binding_alignment());
        let ((keys, shift), (ids, _)) = (window(keys), window(ids));
        let offset = shift as usize / 4;
        let to = Slot { keys, ids, offset, ids_offset: offset, stride: hits };
        let source = Source::Lists { keys: tagged.view(), ids: unsorted.view(), stride: hits };
        let entries = Entries { gpu, queries: 1, keys: Keys::Wide, key_bits: 32, limits: None };
        entries.sorted(source, 0, hits, hits, DISTANCE, &to)
    }

    /// The hits of one query that has more than a binding holds: those of each distance in turn, straight to their places.
    async fn by_distance(&self, query: usize, spans: &[u64], keys: &Buffer, ids: &Buffer) -> Result<()> {
        let gpu = &self.store.gpu;
        let block = query..query + 1;
        let histogram = Histogram::new(gpu, 1, self.store.bits + 1)?;
        self.each_window(&block, |_, len| histogram.add(&self.scratch, self.stride(), len))?;
        let mut counts = vec![0u32; self.store.bits + 1];
        gpu.read(histogram.counts.view(), &[], bytemuck::cast_slice_mut(&mut counts)).await?;
        let start = gpu.upload(PLACE, &[0; 4])?;
        let alignment = gpu.binding_alignment();
        let step = (gpu.max_binding() - alignment) / 4;
        let mut begin = spans[0];
        for (distance, &count) in (0..=self.radius).zip(&counts) {
            let limit = gpu.upload(PLACE, bytemuck::cast_slice(&[distance, u32::MAX]))?;
            for skipped in (0..u64::from(count)).step_by(step as usize) {
                let part = step.min(u64::from(count) - skipped);
                let mut compaction = Compaction::new(gpu, 1, limit.view(), self.plan.chunk)?;
                compaction.exact = true;
                let window = |buffer| View::window(buffer, (begin + skipped) * 4, part * 4, alignment);
                let ((keys, shift), (ids, _)) = (window(keys), window(ids));
                self.each_window(&block, |first, len| {
                    compaction.count(&self.scratch, self.stride(), len)?;
                    let skipped = (skipped as u32).wrapping_sub(shift as u32 / 4);
                    compaction.write(&self.scratch, self.stride(), len, first, start.view(), (keys, ids), skipped)
                })?;
            }
            begin += u64::from(count);
        }
        Ok(())
    }
}
