//! Attention of units over pages: packed ones with their keys as they are or rebuilt, and exact rows.

use std::collections::BTreeMap;
use std::ops::Range;

use super::queries::Absorbed;
use super::*;
use crate::kernels::pack_latents::gpu::{Rebuilding, To, rebuild_pages};
use crate::kv::latents::PAGE;
use crate::kv::store::device::factors::exact_bits;
use crate::kv::store::device::head_words;

params! {
    /// As in `shaders/latent_attention/attention.wgsl`.
    PagesParams {
        groups: u32,
        groups_x: u32,
        tiles: u32,
        exact: u32,
        key_bits: u32,
        heads_at: u32,
        entries: u32,
        key_words: u32,
        key_offset: u32,
        value_words: u32,
        value_offset: u32,
        stride: u32,
        channels: u32,
        blocks: u32,
        first_block: u32,
        block: u32,
        causal: u32,
        members: u32,
        first_query: u32,
        part_stride: u32,
        sinks: u32,
        ring: u32,
        places: u32,
        pad0: u32,
    }
}

static ATTENTION: Kernel = Kernel {
    name: "latent_attention",
    sources: &[shader!("latent_attention/attention.wgsl"), shader!("shared/half.wgsl")],
    needs: Needs::NONE,
    fields: PagesParams::FIELDS,
    params_bytes: size_of::<PagesParams>(),
};

/// Invocations of a workgroup.
const LANES: usize = 64;
/// Workgroups that fill a device, and pages below which another split costs more than it gains.
const FILL: usize = 1024;
const SPLIT_PAGES: usize = 8;
/// Bytes of scratch of one dispatch, of which there may be more where a binding shows more.
const SCRATCH: usize = 64 << 20;

/// Words of values that an invocation sums: 8 channels, 16 at 2 bits.
fn words(bits: u32) -> u32 {
    (bits / 4).max(1)
}

fn constants(rows: usize, bits: u32) -> [(&'static str, Constant); 3] {
    [("R", Constant::U32(rows as u32)), ("VALUE_BITS", Constant::U32(bits)), ("WORDS", Constant::U32(words(bits)))]
}

pub(super) fn variants() -> Vec<(&'static Kernel, Vec<(&'static str, Constant)>)> {
    let of_bits = |bits| [4, 8].map(|rows| (&ATTENTION, constants(rows, bits).to_vec()));
    [2, 4, 8, 16, 32].map(of_bits).concat()
}

/// Tiles of channels of values, each of which a workgroup sums.
fn tiles(rank: usize, bits: u32) -> usize {
    rank.div_ceil((32 / bits) as usize).div_ceil(LANES * words(bits) as usize)
}

/// Consecutive pages of a sequence, of one chunk: one workgroup's.
#[derive(Clone, Copy)]
struct Split {
    sequence: usize,
    first: usize,
    count: usize,
}

/// Which of some splits, in the order of their sequences, are of each.
fn by_sequence(splits: &[Split], sequences: Range<usize>) -> Vec<Range<usize>> {
    let mut all = vec![0..0; sequences.len()];
    for (index, split) in splits.iter().enumerate() {
        let own = &mut all[split.sequence - sequences.start];
        *own = if own.start == own.end { index } else { own.start }..index + 1;
    }
    all
}

/// What one dispatch reads.
struct Source<'a> {
    exact: bool,
    key_bits: u32,
    value_bits: u32,
    heads_at: u32,
    keys: (View<'a>, u32, usize),
    values: (View<'a>, u32, usize),
    stride: usize,
    block: usize,
    absorbed: &'a Absorbed,
}

impl Call<'_> {
    /// Channels of absorbed queries, with that of the mean.
    pub(super) fn width(&self) -> usize {
        1 + self.layer.layout.keys.iter().map(|set| set.rank).max().unwrap_or(0)
    }

    fn value_rank(&self) -> usize {
        self.layer.layout.values.iter().map(|set| set.rank).max().unwrap_or(0)
    }

    fn bits(&self) -> [u32; 2] {
        let of = |sets: &[crate::kv::latents::SetLayout]| sets.first().map_or(32, |set| set.bits.count());
        [of(&self.layer.layout.keys), of(&self.layer.layout.values)]
    }

    /// Elements of a row of a part.
    pub(super) fn part_stride(&self) -> usize {
        2 * tiles(self.value_rank(), self.bits()[1]) + self.value_rank()
    }

    pub(super) fn exact_stride(&self) -> usize {
        2 * tiles(self.layer.head_dim, exact_bits(self.layer)) + self.layer.head_dim
    }

    /// Whether keys are rebuilt, as a page has more than one origin.
    pub(super) fn rebuilds(&self) -> bool {
        self.layer.turns.block().is_some_and(|block| !block.is_multiple_of(PAGE))
    }

    /// Pages whose absorbed queries, or rebuilt keys, fit at a time.
    fn ranges(&self, region: &Region, units: usize, pages: usize) -> Vec<Range<usize>> {
        let layer = self.layer;
        let scratch = self.limit.min(SCRATCH);
        let angles = self.limit / 2 / (self.store.angles.bytes() as usize).max(1);
        let tables = self.limit / 32 / region.sequences.len();
        let step = match layer.turns.block() {
            Some(block) if self.rebuilds() => {
                let keys = scratch / (4 * region.sequences.len() * region.heads.len() * layer.head_dim * PAGE);
                keys.min(angles * block / PAGE / 2)
            }
            Some(block) => {
                let absorbed = scratch / (4 * units * self.width() * self.rows);
                absorbed.min(angles).max(1).saturating_mul(block / PAGE)
            }
            None => pages,
        };
        let step = step.min(tables).max(1);
        (0..pages).step_by(step).map(|first| first..pages.min(first + step)).collect()
    }

    /// How many pages a split has, of `pages` of a unit, so that there are at most `most`.
    fn split_pages(&self, units: usize, pages: usize, most: usize) -> usize {
        let wanted = (FILL / units).clamp(1, most);
        pages.div_ceil(wanted).max(SPLIT_PAGES)
    }

    /// The most splits of a unit whose parts fit.
    fn most_splits(&self, units: usize, stride: usize) -> usize {
        (self.limit / 2 / (4 * units * self.rows * stride)).max(1)
    }

    /// Records attention over packed pages; none where there are none.
    pub(super) fn packed(&self, region: &Region, units: &mut [Unit]) -> Result<Option<Parts>> {
        let (layer, store, gpu) = (self.layer, self.store, self.gpu);
        let pages = |sequence: usize| layer.pages(self.sequences[sequence].len);
        let longest = region.sequences.clone().map(pages).max().unwrap_or(0);
        if longest == 0 {
            return Ok(None);
        }
        let ranges = self.ranges(region, units.len(), longest);
        let most = self.most_splits(units.len(), self.part_stride());
        let step = self.split_pages(units.len(), ranges[0].len(), most);
        // By range and chunk, the splits of each sequence.
        let mut rounds: Vec<(usize, usize, Vec<Split>)> = Vec::new();
        for (number, range) in ranges.iter().enumerate() {
            let mut chunks: BTreeMap<usize, Vec<Vec<Split>>> = BTreeMap::new();
            for sequence in region.sequences.clone() {
                let ids = self.sequences[sequence].pages;
                let mut first = range.start;
                let own = range.start..range.end.min(pages(sequence));
                if own.is_empty() {
                    continue;
                }
                let chunk = |id: &u32| store.pages.place(*id).0;
                // How many of this sequence there are as yet.
                let mut numbers: BTreeMap<usize, usize> = BTreeMap::new();
                for run in ids[own].chunk_by(|a, b| chunk(a) == chunk(b)) {
                    for part in run.chunks(step) {
                        let batches = chunks.entry(chunk(&run[0])).or_default();
                        let number = numbers.entry(chunk(&run[0])).or_default();
                        // No more of a sequence at once than there is room for.
                        let batch = *number / most;
                        *number += 1;
                        batches.resize_with(batches.len().max(batch + 1), Vec::new);
                        batches[batch].push(Split { sequence, first, count: part.len() });
                        first += part.len();
                    }
                }
            }
            let batches = chunks.into_iter();
            let batches = batches.flat_map(|(chunk, batches)| batches.into_iter().map(move |batch| (chunk, batch)));
            rounds.extend(batches.map(|(chunk, batch)| (number, chunk, batch)));
        }
        let splits = rounds.iter().map(|(.., splits)| &splits[..]);
        let mut parts =
            self.parts(units, splits, self.part_stride(), tiles(self.value_rank(), self.bits()[1]), false)?;
        let mut used = vec![0; parts.of_unit.len()];
        let mut prepared: Option<(usize, Absorbed, Option<Buffer>)> = None;
        for (number, chunk, splits) in rounds {
            let range = &ranges[number];
            if prepared.as_ref().is_none_or(|(known, ..)| *known != number) {
                let first = prepared.take().map(|(_, absorbed, _)| absorbed);
                let (absorbed, keys) = self.prepare(region, units, range.clone(), first)?;
                prepared = Some((number, absorbed, keys));
            }
            let Some((_, absorbed, rebuilt)) = &prepared else { unreachable!("it was just prepared") };
            let wide = store.pages.wide();
            let heads = if wide {
                region.heads.clone().map(|head| head..head + 1).collect()
            } else {
                vec![region.heads.clone()]
            };
            for heads in heads {
                let (key_set, _) = LatentLayer::set_of(&layer.keys, heads.start);
                let (value_set, _) = LatentLayer::set_of(&layer.values, heads.start);
                let (key_set, value_set) = (&layer.layout.keys[key_set], &layer.layout.values[value_set]);
                let (values, value_offset) = store.pages.view(gpu, chunk, value_set.params..value_set.end)?;
                let words = store.pages.words();
                let of_keys = region.heads.len() * layer.head_dim * PAGE;
                let (keys, heads_at, key_bits, block) = match rebuilt {
                    Some(buffer) => {
                        let first = (region.heads.start * layer.head_dim * PAGE) as u32;
                        ((buffer.view(), first.wrapping_neg(), of_keys), store.factors.places.rebuilt, 32, 0)
                    }
                    None => {
                        let (keys, offset) = store.pages.view(gpu, chunk, key_set.params..key_set.end)?;
                        let block = layer.turns.block().unwrap_or(0);
                        ((keys, offset, words), store.factors.places.packed, self.bits()[0], block)
                    }
                };
                let source = Source {
                    exact: false,
                    key_bits,
                    value_bits: self.bits()[1],
                    heads_at,
                    keys,
                    values: (values, value_offset, words),
                    stride: PAGE,
                    block,
                    absorbed,
                };
                let entry = |split: &Split, page: usize| {
                    let place = store.pages.place(self.sequences[split.sequence].pages[page]).1;
                    let of_sequence = (split.sequence - region.sequences.start) * range.len();
                    let key = if rebuilt.is_some() { (of_sequence + page - range.start) as u32 } else { place };
                    [key, place]
                };
                self.over(region, units, heads, &source, &splits, entry, &parts, &used)?;
            }
            for (used, own) in used.iter_mut().zip(by_sequence(&splits, region.sequences.clone())) {
                *used = own.len().max(*used);
            }
        }
        parts.of_unit = used;
        Ok(Some(parts))
    }

    /// Queries for a range of pages, and its keys where they are rebuilt. Queries that serve every range are made once.
    fn prepare(
        &self,
        region: &Region,
        units: &[Unit],
        range: Range<usize>,
        before: Option<Absorbed>,
    ) -> Result<(Absorbed, Option<Buffer>)> {
        let (layer, store) = (self.layer, self.store);
        if !self.rebuilds() {
            let blocks = layer.turns.block().map(|block| block / PAGE);
            let absorbed = match (blocks, before) {
                (None, Some(absorbed)) => absorbed,
                (None, None) => self.queries(region, units, Some(0..1))?,
                (Some(of), _) => self.queries(region, units, Some(range.start / of..range.end.div_ceil(of)))?,
            };
            return Ok((absorbed, None));
        }
        let absorbed = match before {
            Some(absorbed) => absorbed,
            None => self.queries(region, units, None)?,
        };
        let of_page = region.heads.len() * layer.head_dim * PAGE;
        let keys = self.gpu.allocate(PLACE, (4 * region.sequences.len() * range.len() * of_page) as u64)?;
        for (index, sequence) in region.sequences.clone().enumerate() {
            let ids = self.sequences[sequence].pages;
            let end = range.end.min(layer.pages(self.sequences[sequence].len));
            let pages: Vec<(u32, usize)> = (range.start..end).map(|page| (ids[page], page)).collect();
            for run in pages.chunk_by(|a, b| store.pages.place(a.0).0 == store.pages.place(b.0).0) {
                let to = To::Pages(&keys, index * range.len() + run[0].1 - range.start);
                let what = Rebuilding { side: 0, heads: region.heads.clone(), pages: run, tokens: 0..end * PAGE, to };
                rebuild_pages(layer, store, &what)?;
            }
        }
        Ok((absorbed, Some(keys)))
    }

    /// Records attention over exact rows.
    pub(super) fn exact(&self, region: &Region, units: &mut [Unit]) -> Result<Parts> {
        let (layer, store, gpu) = (self.layer, self.store, self.gpu);
        let bits = exact_bits(layer);
        let most = self.most_splits(units.len(), self.exact_stride());
        let mut chunks: BTreeMap<usize, Vec<Split>> = BTreeMap::new();
        for sequence in region.sequences.clone() {
            let CachedSequence { slot, len, .. } = self.sequences[sequence];
            // Places behind are empty.
            let places = if len == 0 { 0 } else { layer.places().min(layer.sinks + len) };
            let pages = places.div_ceil(PAGE);
            let step = self.split_pages(units.len(), pages, most);
            for first in (0..pages).step_by(step) {
                let split = Split { sequence, first, count: step.min(pages - first) };
                chunks.entry(store.slots.place(slot).0).or_default().push(split);
            }
        }
        let splits = chunks.values().map(|splits| &splits[..]);
        let parts = self.parts(units, splits, self.exact_stride(), tiles(layer.head_dim, bits), true)?;
        let absorbed = self.queries(region, units, None)?;
        let used = vec![0; parts.of_unit.len()];
        for (chunk, splits) in chunks {
            let heads = match store.slots.wide() {
                true => region.heads.clone().map(|head| head..head + 1).collect(),
                false => vec![region.heads.clone()],
            };
            for heads in heads {
                let rows = |side: usize| {
                    let first = (side * layer.kv_heads + heads.start) * head_words(layer);
                    store.slots.view(gpu, chunk, first..first + head_words(layer))
                };
                let ((keys, key_offset), (values, value_offset)) = (rows(0)?, rows(1)?);
                let words = store.slots.words();
                let source = Source {
                    exact: true,
                    key_bits: bits,
                    value_bits: bits,
                    heads_at: store.factors.places.exact,
                    keys: (keys, key_offset, words),
                    values: (values, value_offset, words),
                    stride: layer.places(),
                    block: 0,
                    absorbed: &absorbed,
                };
                let entry = |split: &Split, _: usize| [store.slots.place(self.sequences[split.sequence].slot).1; 2];
                self.over(region, units, heads, &source, &splits, entry, &parts, &used)?;
            }
        }
        Ok(parts)
    }

    /// Memory for the parts of rounds of splits, and where those of each unit are.
    fn parts<'s>(
        &self,
        units: &mut [Unit],
        rounds: impl Iterator<Item = &'s [Split]>,
        stride: usize,
        tiles: usize,
        exact: bool,
    ) -> Result<Parts> {
        let first_sequence = units.first().map_or(0, |unit| unit.sequence);
        let sequences = units.last().map_or(0, |unit| unit.sequence + 1) - first_sequence;
        let mut of_unit = vec![0; sequences];
        for splits in rounds {
            let of_round = by_sequence(splits, first_sequence..first_sequence + sequences);
            for (most, own) in of_unit.iter_mut().zip(of_round) {
                *most = own.len().max(*most);
            }
        }
        let mut count = 0;
        for unit in units {
            let own = of_unit[unit.sequence - first_sequence];
            *(if exact { &mut unit.exact } else { &mut unit.packed }) = [count, own];
            count += own;
        }
        let buffer = self.gpu.allocate(PLACE, (4 * count * self.rows * stride) as u64)?;
        Ok(Parts { buffer, of_unit, stride, tiles })
    }

    /// Records one dispatch: units of some heads over splits.
    #[allow(clippy::too_many_arguments)]
    fn over(
        &self,
        region: &Region,
        units: &[Unit],
        heads: Range<usize>,
        source: &Source<'_>,
        splits: &[Split],
        entry: impl Fn(&Split, usize) -> [u32; 2],
        parts: &Parts,
        used: &[usize],
    ) -> Result<()> {
        let (gpu, layer) = (self.gpu, self.layer);
        let mut entries: Vec<u32> = Vec::new();
        let mut of_split = Vec::with_capacity(splits.len());
        for split in splits {
            of_split.push(entries.len() as u32 / 2);
            let pages =
                if source.exact { split.first..split.first + 1 } else { split.first..split.first + split.count };
            entries.extend(pages.flat_map(|page| entry(split, page)));
        }
        let of_sequence = by_sequence(splits, region.sequences.clone());
        let mut tables: Vec<u32> = Vec::new();
        for (index, unit) in units.iter().enumerate().filter(|(_, unit)| heads.contains(&unit.head)) {
            let len = self.sequences[unit.sequence].len;
            let first = if source.exact { unit.exact[0] } else { unit.packed[0] };
            let sequence = unit.sequence - region.sequences.start;
            let own = of_sequence[sequence].clone();
            for (number, (split, at)) in splits[own.clone()].iter().zip(&of_split[own]).enumerate() {
                let continued = number < used[sequence];
                let shift = len as i32 - self.q_len as i32;
                tables.extend([index, unit.head, unit.rows, unit.row].map(|x| x as u32));
                tables.extend([*at, split.count as u32, split.first as u32, (first + number) as u32]);
                tables.extend([continued.into(), len as u32, shift as u32, layer.boundary(len) as u32]);
            }
        }
        let records = tables.len() / 12;
        if records == 0 {
            return Ok(());
        }
        let at = tables.len() as u32;
        tables.extend(entries);
        let tables = gpu.upload(PLACE, bytemuck::cast_slice(&tables))?;
        let groups = records * parts.tiles;
        let grid = gpu.grid(PLACE, groups as u64)?;
        let (keys, key_offset, key_words) = source.keys;
        let (values, value_offset, value_words) = source.values;
        let params = PagesParams {
            groups: groups as u32,
            groups_x: grid[0],
            tiles: parts.tiles as u32,
            exact: source.exact.into(),
            key_bits: source.key_bits,
            heads_at: source.heads_at,
            entries: at,
            key_words: key_words as u32,
            key_offset,
            value_words: value_words as u32,
            value_offset,
            stride: source.stride as u32,
            channels: source.absorbed.channels as u32,
            blocks: source.absorbed.blocks.len() as u32,
            first_block: source.absorbed.blocks.start as u32,
            block: source.block as u32,
            causal: self.attending.causal.into(),
            members: region.members.len() as u32,
            first_query: region.queries.start as u32,
            part_stride: parts.stride as u32,
            sinks: layer.sinks as u32,
            ring: layer.ring() as u32,
            places: layer.places() as u32,
            pad0: 0,
        };
        let layout = self.store.factors.layout.view();
        let bindings = [
            tables.view(),
            layout,
            source.absorbed.buffer.view(),
            keys,
            values,
            parts.buffer.view(),
            self.check.view(),
        ];
        gpu.run(&ATTENTION, &constants(self.rows, source.value_bits), &params, &bindings, grid)
    }
}
