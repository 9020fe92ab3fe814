//! New tokens to exact rows.

use super::rows::Bound;
use super::*;
use crate::gpu::Buffer;
use crate::kv::store::device::row_words;

params! {
    /// As in `shaders/pack_latents/keep.wgsl`.
    KeepParams {
        words: u32,
        groups_x: u32,
        d: u32,
        exact: u32,
        x_offset: u32,
        x_sequence: u32,
        x_head: u32,
        slot_offset: u32,
        slot_words: u32,
        head_words: u32,
        first_head: u32,
        heads: u32,
        of_row: u32,
        most: u32,
        places: u32,
        ring: u32,
        sinks: u32,
        pad0: u32,
        pad1: u32,
        pad2: u32,
    }
}

pub(super) static KEEP: Kernel = Kernel {
    name: "pack_latents_keep",
    sources: &[shader!("pack_latents/keep.wgsl"), shader!("shared/half.wgsl")],
    needs: Needs::NONE,
    fields: KeepParams::FIELDS,
    params_bytes: size_of::<KeepParams>(),
};

/// Tokens of one row of k and v that stay exact.
#[derive(Clone, Copy)]
struct Job {
    sequence: usize,
    slot: u32,
    len: usize,
    first: usize,
    count: usize,
}

/// One dispatch, for which everything is there.
struct Ready<'a> {
    x: Bound<'a>,
    records: Buffer,
    slots: View<'a>,
    params: KeepParams,
    grid: [u32; 3],
}

/// Records the copies of new tokens to the slots: all of them, or on an error none, as they replace rows that the cache then still needs.
pub(in super::super) fn keep<T: AttentionElement>(
    layer: &LatentLayer,
    store: &DeviceStore,
    sequences: &[Appended],
    (k, v): (&Tensor<T, Ix4>, &Tensor<T, Ix4>),
) -> Result<()> {
    let count = k.shape()[2];
    let mut jobs = Vec::new();
    for (sequence, appended) in sequences.iter().enumerate() {
        let &Appended { slot, len } = appended;
        let end = len + count;
        let sinks = layer.sinks.min(end).max(len);
        let tail = layer.boundary(end).max(sinks);
        for (first, last) in [(len, sinks), (tail, end)] {
            if first < last {
                jobs.push(Job { sequence, slot, len, first, count: last - first });
            }
        }
    }
    let mut ready = Vec::new();
    for (side, x) in [k, v].into_iter().enumerate() {
        let rows = NewRows::new(&store.gpu, x);
        let call = Call { layer, store, side };
        if rows.whole() && !store.slots.wide() {
            // Jobs of one chunk of slots.
            for jobs in jobs.chunk_by(|a, b| store.slots.place(a.slot).0 == store.slots.place(b.slot).0) {
                for jobs in jobs.chunks((store.gpu.max_binding() / 64) as usize) {
                    ready.extend(call.prepare(jobs, &rows, 0..layer.kv_heads)?);
                }
            }
            continue;
        }
        for job in &jobs {
            // Tokens of one head that fit.
            let step = (store.gpu.max_binding() / rows.bytes(1, 1).max(1)).max(1) as usize;
            for first in (0..job.count).step_by(step) {
                let piece = Job { first: job.first + first, count: step.min(job.count - first), ..*job };
                for head in 0..layer.kv_heads {
                    ready.extend(call.prepare(&[piece], &rows, head..head + 1)?);
                }
            }
        }
    }
    let constants = constants(T::NAME == f16::NAME);
    store.gpu.pipeline(&KEEP, &constants)?;
    ready.iter().try_for_each(|Ready { x, records, slots, params, grid }| {
        store.gpu.run(&KEEP, &constants, params, &[x.view(), records.view(), *slots], *grid)
    })
}

struct Call<'a> {
    layer: &'a LatentLayer,
    store: &'a DeviceStore,
    side: usize,
}

impl<'a> Call<'a> {
    fn prepare(&self, jobs: &[Job], rows: &NewRows<'a>, heads: std::ops::Range<usize>) -> Result<Option<Ready<'a>>> {
        let (layer, store, gpu) = (self.layer, self.store, &self.store.gpu);
        let Some(job) = jobs.first() else { return Ok(None) };
        let wanted = job.first - job.len..job.first - job.len + job.count;
        let x = rows.of(gpu, job.sequence, heads.clone(), wanted)?;
        let records: Vec<u32> = jobs
            .iter()
            .flat_map(|job| {
                let row = if rows.whole() { job.sequence } else { 0 };
                let slot = store.slots.place(job.slot).1 as usize;
                [row, job.first, job.first - job.len - x.first_token, job.count, slot, 0, 0, 0].map(|x| x as u32)
            })
            .collect();
        let records = gpu.upload(PLACE, bytemuck::cast_slice(&records))?;
        let own_head = |head: usize| (self.side * layer.kv_heads + head) * head_words(layer);
        let (slots, slot_offset) =
            store.slots.view(gpu, store.slots.place(job.slot).0, own_head(heads.start)..own_head(heads.end))?;
        let (of_row, most) = (row_words(layer), jobs.iter().map(|job| job.count).max().unwrap_or(0));
        let words = jobs.len() * heads.len() * of_row * most;
        let grid = gpu.grid(PLACE, words.div_ceil(64) as u64)?;
        let params = KeepParams {
            words: words as u32,
            groups_x: grid[0],
            d: layer.head_dim as u32,
            exact: exact_bits(layer),
            x_offset: x.offset,
            x_sequence: x.sequence,
            x_head: x.head,
            slot_offset: slot_offset.wrapping_add(own_head(0) as u32),
            slot_words: store.slots.words() as u32,
            head_words: head_words(layer) as u32,
            first_head: heads.start as u32,
            heads: heads.len() as u32,
            of_row: of_row as u32,
            most: most as u32,
            places: layer.places() as u32,
            ring: layer.ring() as u32,
            sinks: layer.sinks as u32,
            pad0: 0,
            pad1: 0,
            pad2: 0,
        };
        Ok(Some(Ready { x, records, slots, params, grid }))
    }
}
