//! [`KvCache`]: keys and values of past tokens, old ones as latents.

mod file;
mod options;
mod rebuild;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use ndarray::Ix4;

use super::latents::PageLayout;
use super::layer::{CachedSequence, ExactType, Factors, LatentLayer, Turns};
use super::projections::Projections;
use super::store::{Angles, Store};
use crate::attention::{AttentionElement, Output};
use crate::device::Device;
use crate::gpu::block_on;
use crate::kernels::attention::first_beyond;
use crate::kernels::latent_attention::{Attending, HostTables, latent_attention};
use crate::kernels::pack_latents::gpu::Ready;
use crate::kernels::pack_latents::{Appended, PackJob, ToExact, keep_exact, pack_latents};
use crate::tensor::Tensor;
use crate::{Error, Result};

pub use options::{AttendOptions, CacheOptions};

const PLACE: &str = "KvCache";

/// One sequence of a [`KvCache`]. Never given twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sequence(u64);

/// Projections of one layer, and its number in the model.
#[derive(Debug, Clone)]
pub(crate) struct LayerFactors {
    pub(crate) layer: usize,
    pub(crate) keys: Vec<Factors>,
    pub(crate) values: Vec<Factors>,
}

/// Keys and values of the tokens of several sequences, each growing on its own: the first and the last tokens of a sequence exactly, those between as
/// latents of low rank, quantised and packed, over which [`KvCache::attend`] attends without rebuilding them.
///
/// Latents are packed in pages of 32 tokens, which forks of a sequence share. Page p is packed once there are 32 (p + 1) + window tokens: the state
/// depends on the number of tokens alone, not on how they were appended. An error leaves the cache as it was.
///
/// On a GPU everything stays there: attending, forking and cutting record work and wait for nothing; [`KvCache::append`] waits for a status word, as it
/// must know whether all was finite before it counts ([`KvCache::append_without_wait`] does not), saving for what it saves.
#[derive(Debug)]
pub struct KvCache {
    device: Device,
    options: CacheOptions,
    layers: Vec<Layer>,
    sequences: BTreeMap<Sequence, Vec<Held>>,
    next: u64,
}

/// One layer: its shapes, its memory, and which of it is in use.
#[derive(Debug)]
struct Layer {
    number: usize,
    shape: LatentLayer,
    store: Store,
    /// How many sequences hold each page.
    references: Vec<u32>,
    free_pages: Vec<u32>,
    slots: usize,
    free_slots: Vec<u32>,
}

/// What a sequence has of a layer.
#[derive(Debug, Clone)]
struct Held {
    pages: Vec<u32>,
    slot: u32,
    len: usize,
}

impl Held {
    fn cached(&self) -> CachedSequence<'_> {
        CachedSequence { pages: &self.pages, slot: self.slot, len: self.len }
    }
}

impl Layer {
    fn bytes(&self) -> u64 {
        let pages = (self.references.len() - self.free_pages.len()) as u64;
        let slots = (self.slots - self.free_slots.len()) as u64;
        pages * self.shape.layout.bytes() + slots * self.shape.slot_bytes()
    }

    /// Ids of `count` pages that nobody holds, with memory.
    fn fresh_pages(&mut self, count: usize) -> Result<Vec<u32>> {
        let fresh = count.saturating_sub(self.free_pages.len());
        let mut ids: Vec<u32> = self.free_pages.iter().rev().take(count).copied().collect();
        let known = self.references.len();
        ids.extend((known..known + fresh).map(|id| id as u32));
        self.store.reserve_pages(&self.shape, &ids, known + fresh)?;
        Ok(ids)
    }

    /// One holder for each of the pages that [`Layer::fresh_pages`] gave.
    fn claim_pages(&mut self, ids: &[u32]) {
        let known = self.references.len();
        let fresh = ids.iter().filter(|id| **id as usize >= known).count();
        self.free_pages.truncate(self.free_pages.len() - (ids.len() - fresh));
        self.references.resize(known + fresh, 0);
        ids.iter().for_each(|id| self.references[*id as usize] = 1);
    }

    /// Ids of `count` new pages, each with one holder.
    fn take_pages(&mut self, count: usize) -> Result<Vec<u32>> {
        let ids = self.fresh_pages(count)?;
        self.claim_pages(&ids);
        Ok(ids)
    }

    /// One holder less of each.
    fn release_pages(&mut self, ids: &[u32]) {
        let references = &mut self.references;
        let mut unused = Vec::new();
        for &id in ids {
            references[id as usize] -= 1;
            if references[id as usize] == 0 {
                unused.push(id);
            }
        }
        self.store.free_pages(unused.iter().copied());
        self.free_pages.extend(unused);
    }

    fn take_slot(&mut self) -> Result<u32> {
        let id = self.free_slots.last().copied().unwrap_or(self.slots as u32);
        self.store.reserve_slot(&self.shape, id, self.slots.max(id as usize + 1))?;
        if self.free_slots.pop().is_none() {
            self.slots += 1;
        }
        Ok(id)
    }

    fn release_slot(&mut self, id: u32) {
        self.store.free_slot(id);
        self.free_slots.push(id);
    }
}

/// One append.
struct Plan {
    index: usize,
    count: usize,
    ids: Vec<u32>,
    jobs: Vec<PackJob>,
    appended: Vec<Appended>,
}

fn argument<T>(quantity: &'static str, expected: impl Into<String>, found: impl ToString) -> Result<T> {
    Err(Error::Argument { place: PLACE, quantity, expected: expected.into(), found: found.to_string() })
}

impl KvCache {
    /// An empty cache on a device: the layers of the projections, at the ranks they have ([`Projections::with_ranks`]).
    ///
    /// # Errors
    /// [`Error::Argument`] for options that do not fit; the device's own.
    pub fn new(device: &Device, projections: &Projections, options: &CacheOptions) -> Result<Self> {
        let heads = (projections.kv_heads(), projections.head_dim());
        let turns = projections.rope().turns(projections.frame());
        Self::from_factors(device, heads, &turns, projections.factors(), options)
    }

    /// A cache of these projections, checked by their owner: each layer's cover the `kv_heads` heads of `d`.
    pub(crate) fn from_factors(
        device: &Device,
        (kv_heads, head_dim): (usize, usize),
        turns: &Turns,
        layers: Vec<LayerFactors>,
        options: &CacheOptions,
    ) -> Result<Self> {
        options.check()?;
        if !(1..=256).contains(&head_dim) {
            return argument("head_dim", "1 to 256", head_dim);
        }
        let ranks = |sets: &[Factors]| sets.iter().map(|set| set.rank).collect::<Vec<_>>();
        let angles = Arc::new(Angles::new(turns));
        let layer = |of_layer: LayerFactors| {
            let LayerFactors { layer, keys, values } = of_layer;
            let layout = PageLayout::new(&ranks(&keys), options.key_bits, &ranks(&values), options.value_bits);
            let host = device.is_cpu().then(|| HostTables::new(&keys, &values, head_dim));
            let (sinks, window, exact) = (options.sinks, options.window, options.exact);
            let turns = turns.clone();
            let shape = LatentLayer { kv_heads, head_dim, turns, keys, values, layout, sinks, window, exact, host };
            Ok(Layer {
                number: layer,
                store: Store::new(device, &shape, &angles)?,
                shape,
                references: Vec::new(),
                free_pages: Vec::new(),
                slots: 0,
                free_slots: Vec::new(),
            })
        };
        let layers = layers.into_iter().map(layer).collect::<Result<Vec<_>>>()?;
        let (device, options) = (device.clone(), options.clone());
        Ok(Self { device, options, layers, sequences: BTreeMap::new(), next: 0 })
    }

    /// A cache of one layer, 0, whose latents are the first `rank` elements of each head, with rotary embedding of the whole head if there is a block:
    /// for tests.
    ///
    /// # Errors
    /// [`Error::Argument`] for a rank above d or options that do not fit.
    #[doc(hidden)]
    pub fn of_leading_channels(
        device: &Device,
        (kv_heads, d): (usize, usize),
        rank: usize,
        block: Option<usize>,
        options: &CacheOptions,
    ) -> Result<Self> {
        if !(1..=d).contains(&rank) {
            return argument("rank", format!("1 to {d}"), rank);
        }
        let down: Vec<f32> = (0..d * rank).map(|i| f32::from(u8::from(i / rank == i % rank))).collect();
        let up: Vec<f32> = (0..rank * d).map(|i| f32::from(u8::from(i / d == i % d))).collect();
        let set = Factors { heads: 1, rank, mean: vec![0.0; d], down, up };
        let half = d / 2;
        let pairs = block.map_or(0..0, |_| 0..half);
        let pairs = pairs.map(|i| (i, i + half, 1e4f64.powf(-(i as f64) / half as f64))).collect();
        let (keys, values) = (vec![set.clone(); kv_heads], vec![set; kv_heads]);
        let layers = vec![LayerFactors { layer: 0, keys, values }];
        Self::from_factors(device, (kv_heads, d), &Turns { block: block.filter(|_| half > 0), pairs }, layers, options)
    }

    /// Where it lives.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The sequences, in the order in which they were made.
    pub fn sequences(&self) -> impl Iterator<Item = Sequence> {
        self.sequences.keys().copied()
    }

    /// Bytes in use: pages, shared ones once, and the exact rows' places of every sequence. Projections are not counted. A GPU's buffers grow by halves, and
    /// what was given back stays in them for what comes.
    pub fn bytes(&self) -> u64 {
        self.layers.iter().map(Layer::bytes).sum()
    }

    /// Tokens of a sequence in a layer (the model's number).
    ///
    /// # Errors
    /// [`Error::Argument`] for a layer or a sequence that is not there.
    pub fn len(&self, layer: usize, sequence: Sequence) -> Result<usize> {
        let index = self.layer(layer)?;
        Ok(self.held(sequence)?[index].len)
    }

    /// Whether there is no sequence.
    pub fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }

    /// A new sequence without tokens.
    ///
    /// # Errors
    /// [`Error::TooLarge`] where the places of its exact rows exceed the capacity; the device's own.
    pub fn insert(&mut self) -> Result<Sequence> {
        self.allow(self.layers.iter().map(|layer| layer.shape.slot_bytes()).sum())?;
        let slots = self.take_slots()?;
        let held = slots.into_iter().map(|slot| Held { pages: Vec::new(), slot, len: 0 }).collect();
        Ok(self.enter(held))
    }

    /// A sequence with the tokens of another: pages are shared, exact rows copied.
    ///
    /// # Errors
    /// As [`KvCache::insert`]; [`Error::Argument`] for a sequence that is not there.
    pub fn fork(&mut self, sequence: Sequence) -> Result<Sequence> {
        let mut held = self.held(sequence)?.clone();
        self.allow(self.layers.iter().map(|layer| layer.shape.slot_bytes()).sum())?;
        let slots = self.take_slots()?;
        for (layer, (held, &slot)) in self.layers.iter_mut().zip(held.iter_mut().zip(&slots)) {
            if let Err(error) = layer.store.copy_slot(held.slot, slot) {
                self.undo(&slots);
                return Err(error);
            }
            held.slot = slot;
        }
        for (layer, held) in self.layers.iter_mut().zip(&held) {
            held.pages.iter().for_each(|page| layer.references[*page as usize] += 1);
        }
        Ok(self.enter(held))
    }

    /// Gives slots back; nothing else was done with them.
    fn undo(&mut self, slots: &[u32]) {
        self.layers.iter_mut().zip(slots).for_each(|(layer, slot)| layer.release_slot(*slot));
    }

    /// One slot of each layer, or none at all.
    fn take_slots(&mut self) -> Result<Vec<u32>> {
        let mut slots = Vec::with_capacity(self.layers.len());
        for index in 0..self.layers.len() {
            match self.layers[index].take_slot() {
                Ok(slot) => slots.push(slot),
                Err(error) => {
                    self.undo(&slots);
                    return Err(error);
                }
            }
        }
        Ok(slots)
    }

    fn enter(&mut self, held: Vec<Held>) -> Sequence {
        let sequence = Sequence(self.next);
        self.next += 1;
        self.sequences.insert(sequence, held);
        sequence
    }

    /// Forgets the tokens from `len` on, in every layer that has so many (speculative decoding). Where that cuts packed pages, their tokens before `len`
    /// become exact rows again, rebuilt from their latents.
    ///
    /// # Errors
    /// [`Error::Argument`] for a sequence that is not there; the device's own.
    pub fn truncate(&mut self, sequence: Sequence, len: usize) -> Result<()> {
        self.held(sequence)?;
        let Some(held) = self.sequences.get_mut(&sequence) else { unreachable!("it was there") };
        fn to_exact<'a>(shape: &LatentLayer, held: &'a Held, len: usize) -> ToExact<'a> {
            let first = shape.boundary(len).max(shape.sinks);
            ToExact { sequence: held.cached(), first, end: shape.boundary(held.len).min(len) }
        }
        // Of all layers what can fail before anything is changed.
        let mut ready = Vec::new();
        for (layer, held) in self.layers.iter().zip(held.iter()).filter(|(_, held)| held.len > len) {
            ready.extend(to_exact(&layer.shape, held, len).prepare(&layer.shape, &layer.store)?);
        }
        ready.iter().try_for_each(Ready::record)?;
        drop(ready);
        for (layer, held) in self.layers.iter_mut().zip(held).filter(|(_, held)| held.len > len) {
            to_exact(&layer.shape, held, len).on_host(&layer.shape, &mut layer.store);
            let cut = held.pages.split_off(layer.shape.pages(len).min(held.pages.len()));
            layer.release_pages(&cut);
            held.len = len;
        }
        Ok(())
    }

    /// Forgets all tokens of a sequence.
    ///
    /// # Errors
    /// As [`KvCache::truncate`].
    pub fn clear(&mut self, sequence: Sequence) -> Result<()> {
        self.truncate(sequence, 0)
    }

    /// Forgets a sequence. Pages that no other shares become free.
    ///
    /// # Errors
    /// [`Error::Argument`] for a sequence that is not there.
    pub fn remove(&mut self, sequence: Sequence) -> Result<()> {
        self.held(sequence)?;
        for (layer, held) in self.layers.iter_mut().zip(self.sequences.remove(&sequence).into_iter().flatten()) {
            layer.release_pages(&held.pages);
            layer.release_slot(held.slot);
        }
        Ok(())
    }

    /// Appends tokens to a layer (the model's number) of some sequences, n each.
    ///
    /// * `k`, `v`: [sequences, kv_heads, n, d], after rotary embedding: token i of a sequence of `len` has the position len + i. Finite.
    ///
    /// # Errors
    /// [`Error::Argument`] for a layer or a sequence that is not there, or one that is named twice; [`Error::Shape`]; [`Error::DeviceMismatch`];
    /// [`Error::Domain`] names the first element that is not finite (or beyond f16, where exact rows are), or the first token of a page with such a
    /// latent; [`Error::TooLarge`] where it would exceed the capacity; the device's own. The cache is then as before: a GPU is waited for, to know.
    pub fn append<T: AttentionElement>(
        &mut self,
        layer: usize,
        sequences: &[Sequence],
        k: &Tensor<T, Ix4>,
        v: &Tensor<T, Ix4>,
    ) -> Result<()> {
        block_on(self.append_async(layer, sequences, k, v))
    }

    /// [`KvCache::append`] where a thread must not block. Dropped before its end, it leaves the cache as before.
    ///
    /// # Errors
    /// As [`KvCache::append`].
    pub async fn append_async<T: AttentionElement>(
        &mut self,
        layer: usize,
        sequences: &[Sequence],
        k: &Tensor<T, Ix4>,
        v: &Tensor<T, Ix4>,
    ) -> Result<()> {
        let plan = self.plan(layer, sequences, k, v)?;
        let Layer { shape, store, .. } = &mut self.layers[plan.index];
        let packed = match pack_latents(shape, store, &plan.jobs, k, v, false) {
            Ok(verdict) => verdict.wait().await,
            Err(error) => Err(error),
        };
        self.commit(sequences, &plan, packed, k, v)
    }

    /// [`KvCache::append`] that does not wait for a GPU: the way to decode with, where keys and values are known to be finite. What is not in its domain is
    /// found at the wait for any later output of [`KvCache::attend`] over this layer, each of which gives that error from then on: the cache is lost.
    /// Errors of `k` and `v` themselves are not among them: who waits for what was made of the same inputs learns of those. On the CPU as `append`.
    ///
    /// # Errors
    /// As [`KvCache::append`], but for [`Error::Domain`] on a GPU.
    pub fn append_without_wait<T: AttentionElement>(
        &mut self,
        layer: usize,
        sequences: &[Sequence],
        k: &Tensor<T, Ix4>,
        v: &Tensor<T, Ix4>,
    ) -> Result<()> {
        let plan = self.plan(layer, sequences, k, v)?;
        let Layer { shape, store, .. } = &mut self.layers[plan.index];
        let packed = pack_latents(shape, store, &plan.jobs, k, v, true).map(drop);
        self.commit(sequences, &plan, packed, k, v)
    }

    /// What an append will do, with memory for it; nothing is changed yet.
    fn plan<T: AttentionElement>(
        &mut self,
        layer: usize,
        sequences: &[Sequence],
        k: &Tensor<T, Ix4>,
        v: &Tensor<T, Ix4>,
    ) -> Result<Plan> {
        const PLACE: &str = "KvCache::append";
        let index = self.layer(layer)?;
        self.distinct(sequences)?;
        self.device.same(PLACE, "k", k.device())?;
        self.device.same(PLACE, "v", v.device())?;
        let shape = &self.layers[index].shape;
        let count = k.shape()[2];
        let expected = [sequences.len(), shape.kv_heads, count, shape.head_dim];
        for (quantity, found) in [("k", k.shape()), ("v", v.shape())] {
            if found != expected {
                let expected = format!("{expected:?}: [sequences, kv_heads, n, d]");
                return Err(Error::Shape { place: PLACE, quantity, expected, found: found.to_vec() });
            }
        }
        for (quantity, rows) in [("k", k), ("v", v)] {
            let largest = if shape.exact == ExactType::Half { 65504.0 } else { f32::MAX };
            let Some(rows) = rows.as_host() else { continue };
            let rows = rows.as_slice().unwrap_or_default();
            if let Some(index) = first_beyond(rows, largest) {
                let expected = if largest < f32::MAX { "finite, in f16" } else { "finite" };
                return Err(Error::Domain { place: PLACE, quantity, index, expected, found: rows[index].to_string() });
            }
        }
        let ahead: Vec<(Held, usize)> = sequences
            .iter()
            .map(|sequence| {
                let held = self.sequences[sequence][index].clone();
                let pages = shape.pages(held.len + count);
                (held, pages)
            })
            .collect();
        let fresh = ahead.iter().map(|(held, pages)| pages - held.pages.len()).sum::<usize>();
        self.allow(fresh as u64 * shape.layout.bytes())?;
        let layer = &mut self.layers[index];
        let ids = layer.fresh_pages(fresh)?;
        let mut next = ids.iter().copied();
        let mut jobs = Vec::with_capacity(fresh);
        for (sequence, (held, pages)) in ahead.iter().enumerate() {
            for (page, id) in (held.pages.len()..*pages).zip(&mut next) {
                jobs.push(PackJob { sequence, slot: held.slot, len: held.len, page, id });
            }
        }
        let appended: Vec<_> = ahead.iter().map(|(held, _)| Appended { slot: held.slot, len: held.len }).collect();
        Ok(Plan { index, count, ids, jobs, appended })
    }

    /// Makes what was packed a part of the sequences, if it was.
    fn commit<T: AttentionElement>(
        &mut self,
        sequences: &[Sequence],
        plan: &Plan,
        packed: Result<()>,
        k: &Tensor<T, Ix4>,
        v: &Tensor<T, Ix4>,
    ) -> Result<()> {
        let Plan { index, count, ids, jobs, appended } = plan;
        let layer = &mut self.layers[*index];
        let kept = packed.and_then(|()| keep_exact(&layer.shape, &mut layer.store, appended, k, v));
        if let Err(error) = kept {
            layer.store.free_pages(ids.iter().copied());
            return Err(error);
        }
        layer.claim_pages(ids);
        for job in jobs {
            if let Some(held) = self.sequences.get_mut(&sequences[job.sequence]) {
                held[*index].pages.push(job.id);
            }
        }
        for sequence in sequences {
            if let Some(held) = self.sequences.get_mut(sequence) {
                held[*index].len += count;
            }
        }
        Ok(())
    }

    /// softmax(scale q k^T) v of one layer (the model's number) over the tokens of each sequence.
    ///
    /// * `q`: [sequences, q_heads, q_len, d], after rotary embedding, finite; `kv_heads` divides `q_heads`; a sequence may be named twice
    /// * returns [sequences, q_heads, q_len, d], and the log-sum-exp if asked for; zeros and -1e30 for a query that sees no token
    /// * within 1e-5 of the row's largest element of attending over rebuilt keys and values (16 and 32 bits; scores up to 100)
    ///
    /// # Errors
    /// [`Error::Argument`] for a layer or a sequence that is not there, or a scale that is not finite; [`Error::Shape`]; [`Error::DeviceMismatch`];
    /// [`Error::Domain`] for an element of q, or of the output, that is not finite, on a GPU at the wait for the output; the device's own.
    pub fn attend<T: AttentionElement>(
        &self,
        layer: usize,
        sequences: &[Sequence],
        q: &Tensor<T, Ix4>,
        options: &AttendOptions,
    ) -> Result<Output<T>> {
        const PLACE: &str = "KvCache::attend";
        let index = self.layer(layer)?;
        self.device.same(PLACE, "q", q.device())?;
        let shape = &self.layers[index].shape;
        let found = q.shape();
        let heads = found[1];
        if found[0] != sequences.len()
            || found[3] != shape.head_dim
            || heads == 0
            || !heads.is_multiple_of(shape.kv_heads)
        {
            let (count, kv_heads, d) = (sequences.len(), shape.kv_heads, shape.head_dim);
            let expected = format!("[{count}, a multiple of {kv_heads}, q_len, {d}]");
            return Err(Error::Shape { place: PLACE, quantity: "q", expected, found: found.to_vec() });
        }
        let scale = options.scale.unwrap_or_else(|| (1.0 / (shape.head_dim as f64).sqrt()) as f32);
        if !scale.is_finite() {
            return argument("scale", "a finite number", scale);
        }
        let held = sequences.iter().map(|sequence| Ok(self.held(*sequence)?[index].cached()));
        let held = held.collect::<Result<Vec<_>>>()?;
        let attending = Attending { scale, causal: options.causal, lse: options.lse };
        latent_attention(shape, &self.layers[index].store, &held, q, attending)
    }

    fn layer(&self, number: usize) -> Result<usize> {
        match self.layers.iter().position(|layer| layer.number == number) {
            Some(index) => Ok(index),
            None => {
                let known: Vec<_> = self.layers.iter().map(|layer| layer.number.to_string()).collect();
                argument("layer", format!("one of {}", known.join(", ")), number)
            }
        }
    }

    fn held(&self, sequence: Sequence) -> Result<&Vec<Held>> {
        match self.sequences.get(&sequence) {
            Some(held) => Ok(held),
            None => argument("sequence", "one of this cache that was not removed", sequence.0),
        }
    }

    fn distinct(&self, sequences: &[Sequence]) -> Result<()> {
        for (index, sequence) in sequences.iter().enumerate() {
            self.held(*sequence)?;
            if sequences[..index].contains(sequence) {
                return argument("sequence", "each once", sequence.0);
            }
        }
        Ok(())
    }

    /// An error if so many more bytes exceed the capacity.
    fn allow(&self, more: u64) -> Result<()> {
        let needed = self.bytes() + more;
        match self.options.capacity {
            Some(limit) if needed > limit => {
                let device = "the cache's capacity".into();
                Err(Error::TooLarge { place: PLACE, quantity: "the cache", needed, limit, device })
            }
            _ => Ok(()),
        }
    }
}
