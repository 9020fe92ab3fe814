//! Items of one size in buffers that a binding can show.

use std::ops::Range;

use super::PLACE;
use crate::gpu::{Buffer, Gpu, View};
use crate::{Error, Result};

/// Equally sized items by number, `per_chunk` a buffer; the last buffer grows by half, with a copy, the others are full. Where an item is larger than a
/// binding each has a buffer of its own, of which kernels see windows.
pub(crate) struct Arena {
    words: usize,
    per_chunk: usize,
    wide: bool,
    /// The least that a buffer is made for.
    least: usize,
    /// Buffers, and how many items they have room for.
    chunks: Vec<(Buffer, usize)>,
}

impl Arena {
    pub(super) fn new(gpu: &Gpu, words: usize, least: usize) -> Self {
        let per_chunk = (gpu.max_binding() / (4 * words as u64)) as usize;
        Self { words, per_chunk: per_chunk.max(1), wide: per_chunk == 0, least, chunks: Vec::new() }
    }

    /// Bytes of an item.
    pub(crate) fn bytes(&self) -> u64 {
        4 * self.words as u64
    }

    /// Words of an item.
    pub(crate) fn words(&self) -> usize {
        self.words
    }

    /// Whether an item is larger than a binding.
    pub(crate) fn wide(&self) -> bool {
        self.wide
    }

    /// The chunk of an item, and its number there.
    pub(crate) fn place(&self, id: u32) -> (usize, u32) {
        (id as usize / self.per_chunk, (id as usize % self.per_chunk) as u32)
    }

    /// Makes room for the items 0..count.
    pub(crate) fn reserve(&mut self, gpu: &Gpu, count: usize) -> Result<()> {
        let bytes = self.bytes();
        for chunk in 0..count.div_ceil(self.per_chunk) {
            let wanted = (count - chunk * self.per_chunk).min(self.per_chunk);
            let held = self.chunks.get(chunk).map_or(0, |(_, held)| *held);
            if held >= wanted {
                continue;
            }
            let room = wanted.max(held + held / 2).max(self.least).min(self.per_chunk);
            let buffer = gpu.allocate(PLACE, room as u64 * bytes)?;
            match self.chunks.get_mut(chunk) {
                Some(known) => {
                    let view = View { buffer: &known.0, offset: 0, bytes: held as u64 * bytes };
                    gpu.copy(view, &buffer, 0);
                    *known = (buffer, room);
                }
                None => self.chunks.push((buffer, room)),
            }
        }
        Ok(())
    }

    /// All of an item, for copies.
    pub(crate) fn item(&self, id: u32) -> View<'_> {
        let (chunk, index) = self.place(id);
        View { buffer: &self.chunks[chunk].0, offset: u64::from(index) * self.bytes(), bytes: self.bytes() }
    }

    pub(crate) fn write(&self, gpu: &Gpu, id: u32, words: &[u32]) -> Result<()> {
        let item = self.item(id);
        gpu.write(PLACE, item.buffer, item.offset, bytemuck::cast_slice(words))
    }

    /// A chunk as a kernel sees it, and what to add (modulo 2^32) to a word's place in it: all of it, or those words of its one item.
    pub(crate) fn view(&self, gpu: &Gpu, chunk: usize, words: Range<usize>) -> Result<(View<'_>, u32)> {
        let (buffer, room) = &self.chunks[chunk];
        if !self.wide {
            return Ok((View { buffer, offset: 0, bytes: *room as u64 * self.bytes() }, 0));
        }
        window(gpu, buffer, words, 1)
    }
}

/// The words of a buffer as a kernel sees them, and what to add (modulo 2^32) to the place of an element of `unit` words.
pub(crate) fn window<'a>(gpu: &Gpu, buffer: &'a Buffer, words: Range<usize>, unit: usize) -> Result<(View<'a>, u32)> {
    if buffer.bytes() <= gpu.max_binding() {
        return Ok((buffer.view(), 0));
    }
    let (first, bytes) = (4 * words.start as u64, 4 * words.len() as u64);
    let (view, shift) = View::window(buffer, first, bytes, gpu.binding_alignment());
    if view.bytes > gpu.max_binding() {
        let (needed, limit, device) = (view.bytes, gpu.max_binding(), gpu.to_string());
        return Err(Error::TooLarge { place: PLACE, quantity: "one projection of a layer", needed, limit, device });
    }
    Ok((view, (shift as u32 / 4 / unit as u32).wrapping_sub((words.start / unit) as u32)))
}
