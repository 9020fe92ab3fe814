//! The GPU's way: a workgroup 32 channels of a page; where something exceeds a binding, a dispatch for each 32 channels, with windows of what they need.

mod keep;
mod rebuild;
mod rows;

use std::sync::Arc;

use half::f16;

use super::*;
use crate::gpu::{Check, Constant, Finding, Gpu, Kernel, Needs, Params, View, params, shader};
use crate::kv::latents::PAGE;
use crate::kv::layer::ExactType;
use crate::kv::store::DeviceStore;
use crate::kv::store::device::arena::window;
use crate::kv::store::device::factors::{Tile, exact_bits};
use crate::kv::store::device::head_words;
use crate::tensor::Element;

pub(super) use keep::keep;
pub(super) use rebuild::prepare_exact;
pub(crate) use rebuild::{Ready, Rebuilding, To, rebuild_pages};
use rows::NewRows;

params! {
    /// As in `shaders/pack_latents/pack.wgsl`.
    PackParams {
        groups: u32,
        groups_x: u32,
        tiles: u32,
        first_tile: u32,
        d: u32,
        side: u32,
        bits: u32,
        exact: u32,
        x_offset: u32,
        x_sequence: u32,
        x_head: u32,
        slot_offset: u32,
        slot_words: u32,
        head_words: u32,
        kv_heads: u32,
        places: u32,
        ring: u32,
        sinks: u32,
        page_offset: u32,
        page_words: u32,
        down_offset: u32,
        turns: u32,
        pairs: u32,
        block: u32,
        angle_offset: u32,
        pad0: u32,
        pad1: u32,
        pad2: u32,
    }
}

params! {
    /// As in `shaders/pack_latents/check.wgsl`.
    CheckParams { elements: u32, x_offset: u32, first: u32, finding: u32, largest: u32, groups_x: u32 }
}

static PACK: Kernel = Kernel {
    name: "pack_latents",
    sources: &[shader!("pack_latents/pack.wgsl"), shader!("shared/half.wgsl")],
    needs: Needs::NONE,
    fields: PackParams::FIELDS,
    params_bytes: size_of::<PackParams>(),
};
static CHECK: Kernel = Kernel {
    name: "pack_latents_check",
    sources: &[shader!("pack_latents/check.wgsl")],
    needs: Needs::NONE,
    fields: CheckParams::FIELDS,
    params_bytes: size_of::<CheckParams>(),
};

fn constants(half: bool) -> [(&'static str, Constant); 1] {
    [("HALF", Constant::U32(half.into()))]
}

pub(crate) fn variants() -> Vec<(&'static Kernel, Vec<(&'static str, Constant)>)> {
    let by_element = [&PACK, &CHECK, &keep::KEEP].into_iter();
    let by_element = by_element.flat_map(|kernel| [false, true].map(|half| (kernel, constants(half).to_vec())));
    by_element.chain([(&rebuild::REBUILD, Vec::new())]).collect()
}

const LATENT: &str = "finite, and below 32 bits at most 65504";
const BEYOND: &str = "one beyond, in the 32 tokens of that position on";
const fn findings(expected: &'static str, found: &'static str) -> [Finding; 4] {
    [
        Finding { quantity: "k", expected, found },
        Finding { quantity: "v", expected, found },
        Finding { quantity: "a latent of k", expected: LATENT, found: BEYOND },
        Finding { quantity: "a latent of v", expected: LATENT, found: BEYOND },
    ]
}
static OF_HALF: [Finding; 4] = findings("finite, in f16", "not finite, or above 65504");
static OF_SINGLE: [Finding; 4] = findings("finite", "not finite");

/// The status of one append.
pub(super) fn check(layer: &LatentLayer, gpu: &Gpu) -> Result<Arc<Check>> {
    gpu.check(PLACE, if layer.exact == ExactType::Half { &OF_HALF } else { &OF_SINGLE })
}

/// Records that `check` learns of elements that no exact row could hold.
pub(super) fn finite<T: AttentionElement>(
    layer: &LatentLayer,
    store: &DeviceStore,
    (k, v): (&Tensor<T, Ix4>, &Tensor<T, Ix4>),
    check: &Check,
) -> Result<()> {
    let gpu = &store.gpu;
    let largest = if layer.exact == ExactType::Half { 65504.0 } else { f32::MAX };
    for (finding, x) in [(0, k), (1, v)] {
        let Storage::Gpu(_, buffer) = x.storage() else { unreachable!("all are on one device") };
        // Even, for halves.
        let step = gpu.rows_per_window(PLACE, size_of::<T>())? & !1;
        for first in (0..x.len()).step_by(step) {
            let count = step.min(x.len() - first);
            let (first_byte, bytes) = ((first * size_of::<T>()) as u64, (count * size_of::<T>()) as u64);
            let (view, shift) = View::window(buffer, first_byte, bytes, gpu.binding_alignment());
            let grid = gpu.grid(PLACE, count.div_ceil(64) as u64)?;
            let params = CheckParams {
                elements: count as u32,
                x_offset: shift as u32 / size_of::<T>() as u32,
                first: first as u32,
                finding,
                largest: f32::to_bits(largest),
                groups_x: grid[0],
            };
            gpu.run(&CHECK, &constants(T::NAME == f16::NAME), &params, &[view, check.view()], grid)?;
        }
    }
    Ok(())
}

/// Records the packing of `jobs`.
pub(super) fn pack<T: AttentionElement>(
    layer: &LatentLayer,
    store: &DeviceStore,
    jobs: &[PackJob],
    (k, v): (&Tensor<T, Ix4>, &Tensor<T, Ix4>),
    check: &Check,
) -> Result<()> {
    let Some(last) = jobs.iter().map(|job| job.page).max() else { return Ok(()) };
    let block = layer.turns.block();
    let blocks = block.map_or(1, |block| ((last + 1) * PAGE - 1) / block + 1);
    let angles = store.angles.up_to(&store.gpu, blocks)?;
    let call = Call { layer, store, angles: &angles, check, half: T::NAME == f16::NAME };
    for (side, x) in [k, v].into_iter().enumerate() {
        let rows = NewRows::new(&store.gpu, x);
        let mut first = 0;
        while first < jobs.len() {
            let count = (1..=jobs.len() - first).take_while(|count| call.together(&jobs[first..first + count], &rows));
            let count = count.last().unwrap_or(1);
            call.group(side, &jobs[first..first + count], &rows)?;
            first += count;
        }
    }
    Ok(())
}

struct Call<'a> {
    layer: &'a LatentLayer,
    store: &'a DeviceStore,
    angles: &'a crate::gpu::Buffer,
    check: &'a Check,
    half: bool,
}

impl Call<'_> {
    /// Whether the last of some jobs can go with those before.
    fn together(&self, jobs: &[PackJob], rows: &NewRows<'_>) -> bool {
        let ([first, ..], [.., last]) = (jobs, jobs) else { return true };
        let (pages, slots) = (&self.store.pages, &self.store.slots);
        let same =
            pages.place(first.id).0 == pages.place(last.id).0 && slots.place(first.slot).0 == slots.place(last.slot).0;
        let limit = self.store.gpu.max_binding() / 2;
        // One sequence's pages, one after the other, where windows are cut.
        let near = rows.whole() && self.angles.bytes() <= limit
            || first.sequence == last.sequence
                && rows.bytes(1, (last.page + 1 - first.page) * PAGE) <= limit
                && self.origins(jobs).len() as u64 * self.store.angles.bytes() <= limit;
        same && near && 32 * jobs.len() as u64 <= limit
    }

    /// Numbers of the frame blocks of some jobs.
    fn origins(&self, jobs: &[PackJob]) -> std::ops::Range<usize> {
        let Some(block) = self.layer.turns.block() else { return 0..0 };
        let first = jobs.iter().map(|job| job.page).min().unwrap_or(0);
        let last = jobs.iter().map(|job| job.page).max().unwrap_or(0);
        first * PAGE / block..((last + 1) * PAGE - 1) / block + 1
    }

    fn group(&self, side: usize, jobs: &[PackJob], rows: &NewRows<'_>) -> Result<()> {
        let (store, gpu) = (self.store, &self.store.gpu);
        let factors = &store.factors;
        let tiles = &factors.tiles[side];
        let limit = gpu.max_binding();
        if rows.whole() && !store.slots.wide() && !store.pages.wide() && factors.down[side].bytes() <= limit {
            return self.dispatch(side, jobs, rows, tiles);
        }
        tiles.chunks(1).try_for_each(|tile| self.dispatch(side, jobs, rows, tile))
    }

    /// Some tiles, which are of one set where windows are cut.
    fn dispatch(&self, side: usize, jobs: &[PackJob], rows: &NewRows<'_>, tiles: &[Tile]) -> Result<()> {
        let (layer, store, gpu) = (self.layer, self.store, &self.store.gpu);
        let factors = &store.factors;
        let tile = &tiles[0];
        let ([first, ..], [.., last]) = (jobs, jobs) else { return Ok(()) };
        // Tokens of the tensor that are wanted, where it is cut.
        let new = |n: usize| n.saturating_sub(first.len);
        let wanted = new(first.page * PAGE)..new((last.page + 1) * PAGE);
        let x = rows.of(gpu, first.sequence, tile.heads.clone(), wanted)?;
        let records: Vec<u32> = jobs
            .iter()
            .flat_map(|job| {
                let row = if rows.whole() { job.sequence } else { 0 };
                let page = store.pages.place(job.id).1;
                let slot = store.slots.place(job.slot).1;
                let numbers = [row, job.len, job.len + x.first_token, job.page, page as usize, slot as usize, 0, 0];
                numbers.map(|x| x as u32)
            })
            .collect();
        let records = gpu.upload(PLACE, bytemuck::cast_slice(&records))?;
        let of_side = |head: usize| (side * layer.kv_heads + head) * head_words(layer);
        let heads = of_side(tile.heads.start)..of_side(tile.heads.end);
        let (slots, slot_offset) = store.slots.view(gpu, store.slots.place(first.slot).0, heads)?;
        let (pages, page_offset) = store.pages.view(gpu, store.pages.place(first.id).0, tile.page.clone())?;
        let (down, down_offset) = window(gpu, &factors.down[side], tile.down.clone(), 4)?;
        let turning = layer.turns.block().filter(|_| side == 0);
        let pairs = if turning.is_some() { layer.turns.pairs.len() } else { 0 };
        let origins = self.origins(jobs);
        let (angles, angle_offset) =
            window(gpu, self.angles, 2 * pairs * origins.start..(2 * pairs * origins.end).max(4), 2)?;
        let groups = tiles.len() * jobs.len();
        let grid = gpu.grid(PLACE, groups as u64)?;
        let params = PackParams {
            groups: groups as u32,
            groups_x: grid[0],
            tiles: tiles.len() as u32,
            first_tile: tile.place,
            d: layer.head_dim as u32,
            side: side as u32,
            bits: [&layer.layout.keys, &layer.layout.values][side].first().map_or(32, |set| set.bits.count()),
            exact: exact_bits(layer),
            x_offset: x.offset,
            x_sequence: x.sequence,
            x_head: x.head,
            slot_offset,
            slot_words: store.slots.words() as u32,
            head_words: head_words(layer) as u32,
            kv_heads: layer.kv_heads as u32,
            places: layer.places() as u32,
            ring: layer.ring() as u32,
            sinks: layer.sinks as u32,
            page_offset,
            page_words: store.pages.words() as u32,
            down_offset,
            turns: factors.places.turns,
            pairs: pairs as u32,
            block: turning.unwrap_or(0) as u32,
            angle_offset,
            pad0: 0,
            pad1: 0,
            pad2: 0,
        };
        let layout = factors.layout.view();
        let bindings = [x.view(), slots, down, angles, records.view(), layout, pages, self.check.view()];
        gpu.run(&PACK, &constants(self.half), &params, &bindings, grid)
    }
}
