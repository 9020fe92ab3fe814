//! Packed tokens rebuilt: to exact rows, or to pages of keys as attention reads them.

use std::ops::Range;

use super::*;
use crate::gpu::Buffer;

params! {
    /// As in `shaders/pack_latents/rebuild.wgsl`.
    RebuildParams {
        invocations: u32,
        groups_x: u32,
        d: u32,
        side: u32,
        bits: u32,
        to_slot: u32,
        heads_at: u32,
        first_head: u32,
        heads: u32,
        fours: u32,
        page_offset: u32,
        page_words: u32,
        up_offset: u32,
        out_offset: u32,
        out_words: u32,
        head_words: u32,
        places: u32,
        ring: u32,
        sinks: u32,
        first: u32,
        end: u32,
        turns: u32,
        pairs: u32,
        block: u32,
        angle_offset: u32,
        pad0: u32,
        pad1: u32,
        pad2: u32,
    }
}

pub(super) static REBUILD: Kernel = Kernel {
    name: "pack_latents_rebuild",
    sources: &[shader!("pack_latents/rebuild.wgsl"), shader!("shared/half.wgsl")],
    needs: Needs::NONE,
    fields: RebuildParams::FIELDS,
    params_bytes: size_of::<RebuildParams>(),
};

/// What is rebuilt of which heads, and where it goes.
pub(crate) struct Rebuilding<'a, 'b> {
    pub(crate) side: usize,
    pub(crate) heads: Range<usize>,
    /// Ids and numbers of pages of one chunk.
    pub(crate) pages: &'a [(u32, usize)],
    /// Tokens that are wanted.
    pub(crate) tokens: Range<usize>,
    /// A slot, or pages [pages, heads, d, 32] of f32.
    pub(crate) to: To<'b>,
}

pub(crate) enum To<'a> {
    Slot(u32),
    /// The buffer, and the first page there.
    Pages(&'a Buffer, usize),
}

/// One dispatch, for which everything is there.
pub(crate) struct Ready<'a> {
    gpu: &'a Gpu,
    records: Buffer,
    layout: View<'a>,
    up: View<'a>,
    /// And the window of them.
    angles: (Arc<Buffer>, u64, u64),
    pages: View<'a>,
    out: View<'a>,
    params: RebuildParams,
    grid: [u32; 3],
}

impl Ready<'_> {
    /// Records it; only a lost device fails.
    pub(crate) fn record(&self) -> Result<()> {
        let (angles, offset, bytes) = &self.angles;
        let angles = View { buffer: angles, offset: *offset, bytes: *bytes };
        let bindings = [self.records.view(), self.layout, self.up, angles, self.pages, self.out];
        self.gpu.run(&REBUILD, &[], &self.params, &bindings, self.grid)
    }
}

/// Records it.
pub(crate) fn rebuild_pages(layer: &LatentLayer, store: &DeviceStore, what: &Rebuilding<'_, '_>) -> Result<()> {
    prepare(layer, store, what)?.iter().try_for_each(Ready::record)
}

/// What is to be recorded: all heads at once where everything fits.
fn prepare<'a>(layer: &LatentLayer, store: &'a DeviceStore, what: &Rebuilding<'_, 'a>) -> Result<Vec<Ready<'a>>> {
    let limit = store.gpu.max_binding();
    let wide = store.pages.wide() || matches!(what.to, To::Slot(_)) && store.slots.wide();
    if !wide && store.factors.up[what.side].bytes() <= limit {
        return Ok(prepare_heads(layer, store, what, what.heads.clone())?.into_iter().collect());
    }
    what.heads.clone().filter_map(|head| prepare_heads(layer, store, what, head..head + 1).transpose()).collect()
}

fn prepare_heads<'a>(
    layer: &LatentLayer,
    store: &'a DeviceStore,
    what: &Rebuilding<'_, 'a>,
    heads: Range<usize>,
) -> Result<Option<Ready<'a>>> {
    let (gpu, factors) = (&store.gpu, &store.factors);
    let Some(&(id, first_page)) = what.pages.first() else { return Ok(None) };
    gpu.pipeline(&REBUILD, &[])?;
    let last_page = what.pages.iter().map(|(_, page)| *page).max().unwrap_or(first_page);
    let records: Vec<u32> = what.pages.iter().flat_map(|&(id, page)| [store.pages.place(id).1, page as u32]).collect();
    let records = gpu.upload(PLACE, bytemuck::cast_slice(&records))?;
    let (sets, layouts) = [(&layer.keys, &layer.layout.keys), (&layer.values, &layer.layout.values)][what.side];
    let set = &layouts[LatentLayer::set_of(sets, heads.start).0];
    let (pages, page_offset) = store.pages.view(gpu, store.pages.place(id).0, set.params..set.end)?;
    let of_heads = &factors.heads[what.side];
    let wanted = of_heads[heads.start].start..of_heads[heads.end - 1].end;
    let (up, up_offset) = window(gpu, &factors.up[what.side], wanted, 1)?;
    let turning = layer.turns.block().filter(|_| what.side == 0);
    let pairs = if turning.is_some() { layer.turns.pairs.len() } else { 0 };
    let origins = turning.map_or(0..0, |block| first_page * PAGE / block..((last_page + 1) * PAGE - 1) / block + 1);
    let held = store.angles.up_to(gpu, origins.end)?;
    let (angles, angle_offset) = window(gpu, &held, 2 * pairs * origins.start..(2 * pairs * origins.end).max(4), 2)?;
    let d = layer.head_dim;
    let page_of_keys = what.heads.len() * d * PAGE;
    let (out, out_offset) = match what.to {
        To::Slot(slot) => {
            let (chunk, index) = store.slots.place(slot);
            let head = |head: usize| (what.side * layer.kv_heads + head) * head_words(layer);
            let (view, offset) = store.slots.view(gpu, chunk, head(heads.start)..head(heads.end))?;
            (view, offset.wrapping_add(index * store.slots.words() as u32 + head(0) as u32))
        }
        To::Pages(buffer, first) => {
            let begin = first * page_of_keys + (heads.start - what.heads.start) * d * PAGE;
            (buffer.view(), begin as u32)
        }
    };
    let fours = d.div_ceil(4);
    let invocations = what.pages.len() * heads.len() * fours * PAGE;
    let grid = gpu.grid(PLACE, invocations.div_ceil(64) as u64)?;
    let params = RebuildParams {
        invocations: invocations as u32,
        groups_x: grid[0],
        d: d as u32,
        side: what.side as u32,
        bits: set.bits.count(),
        to_slot: if matches!(what.to, To::Slot(_)) { exact_bits(layer) } else { 0 },
        heads_at: factors.places.packed,
        first_head: heads.start as u32,
        heads: heads.len() as u32,
        fours: fours as u32,
        page_offset,
        page_words: store.pages.words() as u32,
        up_offset,
        out_offset,
        out_words: page_of_keys as u32,
        head_words: head_words(layer) as u32,
        places: layer.places() as u32,
        ring: layer.ring() as u32,
        sinks: layer.sinks as u32,
        first: what.tokens.start as u32,
        end: what.tokens.end as u32,
        turns: factors.places.turns,
        pairs: pairs as u32,
        block: turning.unwrap_or(0) as u32,
        angle_offset,
        pad0: 0,
        pad1: 0,
        pad2: 0,
    };
    let window = (angles.offset, angles.bytes);
    let angles = (held.clone(), window.0, window.1);
    Ok(Some(Ready { gpu, records, layout: factors.layout.view(), up, angles, pages, out, params, grid }))
}

/// What is to be recorded for tokens of packed pages to become exact rows of the sequence.
pub(in super::super) fn prepare_exact<'a>(
    layer: &LatentLayer,
    store: &'a DeviceStore,
    sequence: CachedSequence<'_>,
    tokens: Range<usize>,
) -> Result<Vec<Ready<'a>>> {
    let numbers = tokens.start / PAGE..tokens.end.div_ceil(PAGE);
    let pages: Vec<(u32, usize)> = numbers.map(|page| (sequence.pages[page], page)).collect();
    // Few at a time, so that their angles fit.
    let of_page = layer.turns.block().map_or(1, |block| PAGE.div_ceil(block) + 1) as u64 * store.angles.bytes();
    let step = (store.gpu.max_binding() / 2 / of_page.max(1)).clamp(1, 1024) as usize;
    let mut ready = Vec::new();
    for pages in pages.chunk_by(|a, b| store.pages.place(a.0).0 == store.pages.place(b.0).0) {
        for pages in pages.chunks(step) {
            for side in 0..2 {
                let (heads, to) = (0..layer.kv_heads, To::Slot(sequence.slot));
                ready.extend(prepare(layer, store, &Rebuilding { side, heads, pages, tokens: tokens.clone(), to })?);
            }
        }
    }
    Ok(ready)
}
