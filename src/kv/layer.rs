//! One layer of a cache as kernels see it: what never changes ([`LatentLayer`]) and where its tokens are ([`Store`]).

use half::f16;

use super::latents::{PAGE, PageLayout};
use crate::device::Device;
use crate::kernels::latent_attention::HostTables;
use crate::{Error, Result};

/// One projection: z = (x - mean) down, x^ = mean + z up, of the rows of `heads` consecutive KV heads side by side.
#[derive(Debug, Clone)]
pub(crate) struct Factors {
    pub(crate) heads: usize,
    pub(crate) rank: usize,
    /// [heads * d].
    pub(crate) mean: Vec<f32>,
    /// [heads * d, rank].
    pub(crate) down: Vec<f32>,
    /// [rank, heads * d].
    pub(crate) up: Vec<f32>,
}

/// The rotary embedding, and which part of it latents of keys are free of.
#[derive(Debug, Clone, Default)]
pub(crate) struct Turns {
    /// Keys of a block have the origin of its first token: 1 takes the rotation away, none leaves it.
    pub(crate) block: Option<usize>,
    /// Two elements of a head, and by what angle a position turns them.
    pub(crate) pairs: Vec<(usize, usize, f64)>,
}

impl Turns {
    /// The block, if anything turns.
    pub(crate) fn block(&self) -> Option<usize> {
        self.block.filter(|_| !self.pairs.is_empty())
    }

    /// The position that the latent of key `n` is relative to.
    pub(crate) fn origin(&self, n: usize) -> usize {
        self.block().map_or(0, |block| n / block * block)
    }

    /// Cosine and sine of each pair's angle at a position: in f64, rounded once.
    pub(crate) fn angles(&self, position: usize, to: &mut Vec<(f32, f32)>) {
        to.clear();
        to.extend(self.pairs.iter().map(|&(_, _, frequency)| {
            let (sin, cos) = (position as f64 * frequency).sin_cos();
            (cos as f32, sin as f32)
        }));
    }

    /// R_{-n} row, of the angles of n.
    pub(crate) fn back(&self, row: &mut [f32], angles: &[(f32, f32)]) {
        for (&(i, j, _), &(cos, sin)) in self.pairs.iter().zip(angles) {
            (row[i], row[j]) = (row[i] * cos + row[j] * sin, row[j] * cos - row[i] * sin);
        }
    }

    /// R_n row.
    pub(crate) fn forth(&self, row: &mut [f32], angles: &[(f32, f32)]) {
        for (&(i, j, _), &(cos, sin)) in self.pairs.iter().zip(angles) {
            (row[i], row[j]) = (row[i] * cos - row[j] * sin, row[j] * cos + row[i] * sin);
        }
    }
}

/// What exact rows are stored as; what is appended is rounded to it before anything else is done with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ExactType {
    /// f16.
    #[default]
    Half,
    /// f32.
    Single,
}

impl ExactType {
    /// Bytes of an element.
    pub(crate) fn bytes(self) -> u64 {
        match self {
            Self::Half => 2,
            Self::Single => 4,
        }
    }
}

/// One layer of a cache: shapes, projections, and where the tokens of a sequence of `len` are.
///
/// Packed are the pages 0..pages(len). Exact are the tokens n < sinks, in place n of the sequence's slot, and those from 32 pages(len) on, in place
/// sinks + n mod ring. A slot is [2 (k, v), kv_heads, places, d].
#[derive(Debug)]
pub(crate) struct LatentLayer {
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) turns: Turns,
    pub(crate) keys: Vec<Factors>,
    pub(crate) values: Vec<Factors>,
    pub(crate) layout: PageLayout,
    pub(crate) sinks: usize,
    pub(crate) window: usize,
    pub(crate) exact: ExactType,
    /// The projections as the CPU's kernels have them; none for a GPU.
    pub(crate) host: Option<HostTables>,
}

impl LatentLayer {
    /// How many pages of a sequence are packed.
    pub(crate) fn pages(&self, len: usize) -> usize {
        len.saturating_sub(self.window) / PAGE
    }

    /// The first token behind the packed ones.
    pub(crate) fn boundary(&self, len: usize) -> usize {
        PAGE * self.pages(len)
    }

    /// Places of the ring: more than are ever exact behind the boundary.
    pub(crate) fn ring(&self) -> usize {
        self.window + PAGE
    }

    /// Rows of a head in a slot.
    pub(crate) fn places(&self) -> usize {
        self.sinks + self.ring()
    }

    /// The place of exact token `n`.
    pub(crate) fn place(&self, n: usize) -> usize {
        if n < self.sinks { n } else { self.sinks + n % self.ring() }
    }

    /// Elements of a slot.
    pub(crate) fn slot_elements(&self) -> usize {
        2 * self.kv_heads * self.places() * self.head_dim
    }

    /// Bytes of a slot.
    pub(crate) fn slot_bytes(&self) -> u64 {
        self.slot_elements() as u64 * self.exact.bytes()
    }

    /// The set of a head, and which of its heads it is.
    pub(crate) fn set_of(sets: &[Factors], head: usize) -> (usize, usize) {
        let mut first = 0;
        for (index, set) in sets.iter().enumerate() {
            if head < first + set.heads {
                return (index, head - first);
            }
            first += set.heads;
        }
        unreachable!("the sets cover all heads")
    }
}

/// One sequence's part of a layer: the ids of its packed pages, the id of its slot, its tokens.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CachedSequence<'a> {
    pub(crate) pages: &'a [u32],
    pub(crate) slot: u32,
    pub(crate) len: usize,
}

/// The pages and slots of one layer, by id. Which are in use its owner knows; contents of new ones are undefined.
#[derive(Debug)]
pub(crate) enum Store {
    Host(HostStore),
}

/// Pages and slots in memory: one allocation each, so what is not in use takes none.
#[derive(Debug, Default)]
pub(crate) struct HostStore {
    pub(crate) pages: Vec<Box<[u32]>>,
    pub(crate) slots: Vec<Rows>,
}

/// Exact rows.
#[derive(Debug, Clone)]
pub(crate) enum Rows {
    Half(Box<[f16]>),
    Single(Box<[f32]>),
}

impl Rows {
    fn new(kind: ExactType, elements: usize) -> Self {
        match kind {
            ExactType::Half => Self::Half(vec![f16::ZERO; elements].into()),
            ExactType::Single => Self::Single(vec![0.0; elements].into()),
        }
    }

    fn clear(&mut self) {
        match self {
            Self::Half(rows) => *rows = Box::default(),
            Self::Single(rows) => *rows = Box::default(),
        }
    }

    /// The row of an element on, as f32.
    pub(crate) fn read(&self, first: usize, to: &mut [f32]) {
        match self {
            Self::Half(rows) => to.iter_mut().zip(&rows[first..]).for_each(|(to, x)| *to = x.to_f32()),
            Self::Single(rows) => to.copy_from_slice(&rows[first..][..to.len()]),
        }
    }

    /// Writes a row from an element on, rounded; what a rebuilt row has beyond f16 becomes its largest.
    pub(crate) fn write(&mut self, first: usize, row: impl Iterator<Item = f32>) {
        match self {
            Self::Half(rows) => {
                let nearest = |x: f32| f16::from_f32(x.clamp(-65504.0, 65504.0));
                rows[first..].iter_mut().zip(row).for_each(|(to, x)| *to = nearest(x));
            }
            Self::Single(rows) => rows[first..].iter_mut().zip(row).for_each(|(to, x)| *to = x),
        }
    }

    /// As bytes in their native order.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Half(rows) => bytemuck::cast_slice(rows),
            Self::Single(rows) => bytemuck::cast_slice(rows),
        }
    }

    /// Takes what [`Rows::as_bytes`] gave; of the same length.
    pub(crate) fn copy_bytes(&mut self, bytes: &[u8]) {
        match self {
            Self::Half(rows) => bytemuck::cast_slice_mut(rows).copy_from_slice(bytes),
            Self::Single(rows) => bytemuck::cast_slice_mut(rows).copy_from_slice(bytes),
        }
    }
}

impl Store {
    /// An empty one.
    pub(crate) fn new(device: &Device) -> Result<Self> {
        match device {
            Device::Cpu => Ok(Self::Host(HostStore::default())),
            Device::Gpu(gpu) => {
                Err(Error::Unsupported { place: "KvCache", feature: "a GPU's cache", device: gpu.to_string() })
            }
        }
    }

    /// Makes room for the pages `0..count`, and memory for those of `ids`.
    pub(crate) fn reserve_pages(&mut self, layer: &LatentLayer, ids: &[u32], count: usize) -> Result<()> {
        match self {
            Self::Host(store) => {
                store.pages.resize_with(count.max(store.pages.len()), Box::default);
                for &id in ids {
                    store.pages[id as usize] = vec![0; layer.layout.words].into();
                }
                Ok(())
            }
        }
    }

    /// Makes room for the slots `0..count`, and memory for `id`.
    pub(crate) fn reserve_slot(&mut self, layer: &LatentLayer, id: u32, count: usize) -> Result<()> {
        match self {
            Self::Host(store) => {
                store.slots.resize_with(count.max(store.slots.len()), || Rows::new(layer.exact, 0));
                store.slots[id as usize] = Rows::new(layer.exact, layer.slot_elements());
                Ok(())
            }
        }
    }

    /// Pages that are no longer in use.
    pub(crate) fn free_pages(&mut self, ids: impl Iterator<Item = u32>) {
        match self {
            Self::Host(store) => ids.for_each(|id| store.pages[id as usize] = Box::default()),
        }
    }

    /// A slot that is no longer in use.
    pub(crate) fn free_slot(&mut self, id: u32) {
        match self {
            Self::Host(store) => store.slots[id as usize].clear(),
        }
    }

    /// Copies a slot's rows.
    pub(crate) fn copy_slot(&mut self, from: u32, to: u32) -> Result<()> {
        match self {
            Self::Host(store) => {
                store.slots[to as usize] = store.slots[from as usize].clone();
                Ok(())
            }
        }
    }

    /// The words of a page, and the bytes of a slot's rows, for files. Waits for a GPU.
    pub(crate) fn read_page(&self, id: u32) -> Result<Vec<u32>> {
        match self {
            Self::Host(store) => Ok(store.pages[id as usize].to_vec()),
        }
    }

    pub(crate) fn read_slot(&self, id: u32) -> Result<Vec<u8>> {
        match self {
            Self::Host(store) => Ok(store.slots[id as usize].as_bytes().to_vec()),
        }
    }

    /// Writes what [`Store::read_page`] and [`Store::read_slot`] gave.
    pub(crate) fn write_page(&mut self, id: u32, words: &[u32]) -> Result<()> {
        match self {
            Self::Host(store) => store.pages[id as usize].copy_from_slice(words),
        }
        Ok(())
    }

    pub(crate) fn write_slot(&mut self, id: u32, bytes: &[u8]) -> Result<()> {
        match self {
            Self::Host(store) => store.slots[id as usize].copy_bytes(bytes),
        }
        Ok(())
    }
}
