//! Pages and slots on a GPU, and the projections of their layer there.
//!
//! A page is in a buffer as it is anywhere. A slot is [2 (k, v), kv_heads, words, places]: one channel of f32 a word, or two of f16, so that kernels read it
//! as they read pages.

pub(crate) mod arena;
pub(crate) mod factors;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use crate::Result;
use crate::gpu::{Buffer, Check, Gpu, View, block_on};
use crate::kv::layer::{ExactType, LatentLayer, Turns};

pub(crate) use arena::Arena;
pub(crate) use factors::DeviceFactors;

const PLACE: &str = "KvCache";

/// A layer's memory on a GPU.
pub(crate) struct DeviceStore {
    pub(crate) gpu: Gpu,
    pub(crate) factors: DeviceFactors,
    pub(crate) angles: Arc<Angles>,
    pub(crate) pages: Arena,
    pub(crate) slots: Arena,
    /// What appends that nobody waited for found, if there were some.
    pub(crate) unwaited: Option<Arc<Check>>,
}

impl fmt::Debug for DeviceStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceStore on {}", self.gpu)
    }
}

impl DeviceStore {
    pub(super) fn new(gpu: &Gpu, layer: &LatentLayer, angles: &Arc<Angles>) -> Result<Self> {
        let slot_words = 2 * layer.kv_heads * head_words(layer);
        Ok(Self {
            gpu: gpu.clone(),
            factors: DeviceFactors::new(gpu, layer)?,
            angles: angles.clone(),
            pages: Arena::new(gpu, layer.layout.words, 8),
            slots: Arena::new(gpu, slot_words, 1),
            unwaited: None,
        })
    }

    pub(super) fn copy_slot(&self, from: u32, to: u32) -> Result<()> {
        // No copy within one buffer.
        let between = self.gpu.allocate(PLACE, self.slots.bytes())?;
        self.gpu.copy(self.slots.item(from), &between, 0);
        let to = self.slots.item(to);
        self.gpu.copy(between.view(), to.buffer, to.offset);
        Ok(())
    }

    /// The words of items, one after the other.
    pub(super) fn read_items(&self, arena: &Arena, ids: &[u32]) -> Result<Vec<u32>> {
        /// Bytes that are read at a time.
        const PIECE: u64 = 64 << 20;
        let bytes = arena.bytes();
        let mut words = vec![0u32; ids.len() * (bytes / 4) as usize];
        let step = (PIECE / bytes.max(1)).max(1) as usize;
        for (ids, words) in ids.chunks(step).zip(words.chunks_mut(step * (bytes / 4) as usize)) {
            let between = self.gpu.allocate(PLACE, 4 * words.len() as u64)?;
            for (&id, at) in ids.iter().zip((0..).step_by(bytes as usize)) {
                self.gpu.copy(arena.item(id), &between, at);
            }
            block_on(self.gpu.read(between.view(), &[], bytemuck::cast_slice_mut(words)))?;
        }
        Ok(words)
    }
}

/// Words of a token of a head in a slot.
pub(crate) fn row_words(layer: &LatentLayer) -> usize {
    match layer.exact {
        ExactType::Half => layer.head_dim.div_ceil(2),
        ExactType::Single => layer.head_dim,
    }
}

/// Words of a head in a slot.
pub(crate) fn head_words(layer: &LatentLayer) -> usize {
    row_words(layer) * layer.places()
}

/// From the words of a slot to bytes of rows [2, kv_heads, places, d].
pub(super) fn rows_of_words(layer: &LatentLayer, words: &[u32]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(layer.slot_bytes() as usize);
    for head in words.chunks_exact(head_words(layer)) {
        for place in 0..layer.places() {
            for j in 0..layer.head_dim {
                match layer.exact {
                    ExactType::Half => {
                        let word = head[j / 2 * layer.places() + place];
                        bytes.extend(((word >> (16 * (j % 2))) as u16).to_ne_bytes());
                    }
                    ExactType::Single => bytes.extend(head[j * layer.places() + place].to_ne_bytes()),
                }
            }
        }
    }
    bytes
}

/// The other way round.
pub(super) fn words_of_rows(layer: &LatentLayer, bytes: &[u8]) -> Vec<u32> {
    let (d, places) = (layer.head_dim, layer.places());
    let mut words = vec![0u32; 2 * layer.kv_heads * head_words(layer)];
    let size = layer.exact.bytes() as usize;
    for (index, element) in bytes.chunks_exact(size).enumerate() {
        let (j, place, head) = (index % d, index / d % places, index / d / places);
        let head = &mut words[head * head_words(layer)..];
        match element {
            [a, b] => {
                head[j / 2 * places + place] |= u32::from(u16::from_ne_bytes([*a, *b])) << (16 * (j % 2));
            }
            [a, b, c, d] => head[j * places + place] = u32::from_ne_bytes([*a, *b, *c, *d]),
            _ => {}
        }
    }
    words
}

/// Cosines and sines of the origins of all frame blocks, [blocks, pairs], as far as they were needed; for all layers of a cache.
pub(crate) struct Angles {
    turns: Turns,
    held: Mutex<Option<(Arc<Buffer>, usize)>>,
}

impl fmt::Debug for Angles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Angles of {} pairs", self.turns.pairs.len())
    }
}

impl Angles {
    pub(crate) fn new(turns: &Turns) -> Self {
        Self { turns: turns.clone(), held: Mutex::new(None) }
    }

    /// Bytes of a block.
    pub(crate) fn bytes(&self) -> u64 {
        8 * self.turns.pairs.len() as u64
    }

    /// Those of `blocks` blocks at least; something to bind where nothing turns.
    pub(crate) fn up_to(&self, gpu: &Gpu, blocks: usize) -> Result<Arc<Buffer>> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((buffer, count)) = &*held
            && *count >= blocks
        {
            return Ok(buffer.clone());
        }
        let Some(block) = self.turns.block() else {
            let buffer = Arc::new(gpu.upload(PLACE, &[0; 16])?);
            *held = Some((buffer.clone(), usize::MAX));
            return Ok(buffer);
        };
        let (old, known) = held.take().map_or((None, 0), |(buffer, count)| (Some(buffer), count));
        let count = blocks.max(16).next_power_of_two();
        let buffer = gpu.allocate(PLACE, count as u64 * self.bytes())?;
        if let Some(old) = old {
            gpu.copy(View { buffer: &old, offset: 0, bytes: known as u64 * self.bytes() }, &buffer, 0);
        }
        let (mut all, mut angles) = (Vec::new(), Vec::new());
        for number in known..count {
            self.turns.angles(number * block, &mut angles);
            all.extend(angles.iter().flat_map(|(cos, sin)| [*cos, *sin]));
        }
        gpu.write(PLACE, &buffer, known as u64 * self.bytes(), bytemuck::cast_slice(&all))?;
        let buffer = Arc::new(buffer);
        *held = Some((buffer.clone(), count));
        Ok(buffer)
    }
}
