//! From rows of k and v to the pages and exact rows of a low-rank cache, and back: the door.

mod cpu;
pub(crate) mod gpu;

use std::sync::Arc;

use ndarray::Ix4;

use crate::Result;
use crate::attention::AttentionElement;
use crate::gpu::{Check, Gpu, View};
use crate::kernels::inherit;
use crate::kv::layer::{CachedSequence, LatentLayer};
use crate::kv::store::Store;
use crate::tensor::{Storage, Tensor};

pub(crate) use gpu::variants;

pub(crate) const PLACE: &str = "KvCache::append";

/// A page to be packed: `page` (its tokens are 32 page..) of the sequence that is row `sequence` of k and v, whose first `len` tokens were there before
/// and whose exact rows are in `slot`. Goes to page `id`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PackJob {
    pub(crate) sequence: usize,
    pub(crate) slot: u32,
    pub(crate) len: usize,
    pub(crate) page: usize,
    pub(crate) id: u32,
}

/// One row of k and v of a call: the sequence that it is of, as it was before.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Appended {
    pub(crate) slot: u32,
    pub(crate) len: usize,
}

/// What is known of a packing only after a wait: on a GPU, whether all was in its domain.
#[must_use]
pub(crate) struct Verdict(Option<(Gpu, Vec<Arc<Check>>)>);

impl Verdict {
    /// Waits for it.
    pub(crate) async fn wait(self) -> Result<()> {
        let Some((gpu, checks)) = self.0 else { return Ok(()) };
        let Some(own) = checks.last() else { return Ok(()) };
        let view = View { bytes: 4, ..own.view() };
        gpu.read(view, &checks, &mut [0; 4]).await
    }
}

/// Packs pages in one pass: z = (R_{-n0} k - mean) E and z = (v - mean) E, quantised and packed as [`crate::kv::latents`] has it.
///
/// * `k`, `v`: [sequences, kv_heads, n, d], after rotary embedding, finite and rounded to the layer's exact type by this kernel; token t of a job is
///   row t - len where t >= len, else the slot's exact row
/// * writes the jobs' pages alone: nothing that was there
/// * on a GPU sums are of another order: z is within 2 (width + 2) eps of sum |x - mean| |E| of the CPU's, and its words are those of that z, bit for bit
/// * `unwaited`: nobody will wait for the verdict: who attends over the layer learns of it
///
/// # Errors
/// [`Error::Domain`](crate::Error::Domain) for a latent beyond f16's range (below 32 bits) or not finite; on a GPU by the verdict, and also for elements of
/// k and v that are not finite or above what exact rows hold, which the CPU's caller has looked for.
pub(crate) fn pack_latents<T: AttentionElement>(
    layer: &LatentLayer,
    store: &mut Store,
    jobs: &[PackJob],
    k: &Tensor<T, Ix4>,
    v: &Tensor<T, Ix4>,
    unwaited: bool,
) -> Result<Verdict> {
    match (store, k.storage(), v.storage()) {
        (Store::Host(store), Storage::Host(k), Storage::Host(v)) => {
            cpu::pack(layer, store, jobs, &k, &v)?;
            Ok(Verdict(None))
        }
        (Store::Device(store), ..) => {
            let known = if unwaited { store.unwaited.clone() } else { None };
            let check = match known {
                Some(check) => check,
                None => gpu::check(layer, &store.gpu)?,
            };
            gpu::finite(layer, store, (k, v), &check)?;
            gpu::pack(layer, store, jobs, (k, v), &check)?;
            if unwaited {
                store.unwaited = Some(check);
                return Ok(Verdict(None));
            }
            let checks = inherit(&[k.checks(), v.checks(), &[check]]);
            Ok(Verdict(Some((store.gpu.clone(), checks))))
        }
        _ => unreachable!("all are on one device"),
    }
}

/// Writes the new tokens that stay exact (sinks, and those from the new boundary on) to the slots; after [`pack_latents`], which reads what they replace.
pub(crate) fn keep_exact<T: AttentionElement>(
    layer: &LatentLayer,
    store: &mut Store,
    sequences: &[Appended],
    k: &Tensor<T, Ix4>,
    v: &Tensor<T, Ix4>,
) -> Result<()> {
    match (store, k.storage(), v.storage()) {
        (Store::Host(store), Storage::Host(k), Storage::Host(v)) => {
            cpu::keep(layer, store, sequences, &k, &v);
            Ok(())
        }
        (Store::Device(store), ..) => gpu::keep(layer, store, sequences, (k, v)),
        _ => unreachable!("all are on one device"),
    }
}

/// Tokens of packed pages to be rebuilt, R_{n0}(mean + z D) and mean + z D, to the exact rows of `sequence`'s slot: those from `first` to `end`
/// (excluded), sinks not among them.
#[derive(Clone, Copy)]
pub(crate) struct ToExact<'a> {
    pub(crate) sequence: CachedSequence<'a>,
    pub(crate) first: usize,
    pub(crate) end: usize,
}

impl ToExact<'_> {
    /// What of it is to be recorded on a GPU. The rows that it replaces stay until it is.
    pub(crate) fn prepare<'a>(&self, layer: &LatentLayer, store: &'a Store) -> Result<Vec<gpu::Ready<'a>>> {
        match store {
            Store::Device(store) if self.first < self.end => {
                gpu::prepare_exact(layer, store, self.sequence, self.first..self.end)
            }
            _ => Ok(Vec::new()),
        }
    }

    /// Does it on the CPU.
    pub(crate) fn on_host(&self, layer: &LatentLayer, store: &mut Store) {
        if let Store::Host(store) = store
            && self.first < self.end
        {
            cpu::rebuild(layer, store, self.sequence, self.first, self.end);
        }
    }
}
