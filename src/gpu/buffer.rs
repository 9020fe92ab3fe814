//! Device memory: buffers from a size-class pool, and views of parts of them for binding.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use super::{Gpu, lock};
use crate::{Error, Result};

/// A device buffer that returns to its pool when the last handle goes.
///
/// Reuse needs no wait: everything on one queue runs in order, and uploads are recorded copies, never `write_buffer`.
pub(crate) struct Buffer {
    raw: Option<wgpu::Buffer>,
    bytes: u64,
    pool: Arc<Mutex<Pool>>,
}

impl Buffer {
    pub(crate) fn raw(&self) -> &wgpu::Buffer {
        self.raw.as_ref().expect("a buffer is only emptied when it is dropped")
    }

    /// The bytes asked for, rounded up to 4; the class may be larger.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn view(&self) -> View<'_> {
        View { buffer: self, offset: 0, bytes: self.bytes }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(raw) = self.raw.take() {
            lock(&self.pool).give(raw);
        }
    }
}

/// A part of a buffer, in bytes: what a kernel's binding sees.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    pub(crate) buffer: &'a Buffer,
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
}

impl<'a> View<'a> {
    /// The bytes `[first, first + bytes)` of `buffer`, moved down to a binding's alignment: the view, and by how many bytes it was moved.
    pub(crate) fn window(buffer: &'a Buffer, first: u64, bytes: u64, alignment: u64) -> (Self, u64) {
        let shift = first % alignment;
        let offset = first - shift;
        let bytes = (bytes + shift).next_multiple_of(4).min(buffer.bytes - offset);
        (Self { buffer, offset, bytes }, shift)
    }

    pub(crate) fn binding(&self) -> wgpu::BindingResource<'a> {
        wgpu::BindingResource::Buffer(wgpu::BufferBinding {
            buffer: self.buffer.raw(),
            offset: self.offset,
            size: std::num::NonZeroU64::new(self.bytes),
        })
    }
}

/// A buffer that the host maps, to write or to read: counted as long as it is there.
pub(crate) struct Staging {
    pub(crate) raw: wgpu::Buffer,
    pool: Arc<Mutex<Pool>>,
}

impl Staging {
    pub(crate) fn bytes(&self) -> u64 {
        self.raw.size()
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        lock(&self.pool).staging_bytes -= self.raw.size();
    }
}

/// What of the memory of a device is where.
#[derive(Clone, Copy)]
enum Kind {
    Buffer,
    Staging,
}

/// Idle buffers by size class, and the account of all memory of the device. Its lock is the innermost: nothing else is locked under it.
pub(crate) struct Pool {
    idle: BTreeMap<u64, Vec<wgpu::Buffer>>,
    idle_bytes: u64,
    in_use_bytes: u64,
    staging_bytes: u64,
    budget: u64,
    /// Allocations until one fails, for tests.
    failure: Option<u64>,
}

impl Default for Pool {
    fn default() -> Self {
        let idle = BTreeMap::new();
        Self { idle, idle_bytes: 0, in_use_bytes: 0, staging_bytes: 0, budget: u64::MAX, failure: None }
    }
}

/// Uploads go in pieces of at most this many bytes, so staging never doubles a large tensor.
const PIECE: usize = 8 << 20;

/// Idle memory kept for reuse; what comes back beyond it goes to the driver.
const MAX_IDLE_BYTES: u64 = 1 << 30;

/// Four classes to the power of two: at most a quarter of a buffer is unused.
pub(crate) fn size_class(bytes: u64) -> u64 {
    let bytes = bytes.max(256);
    let step = (1u64 << (63 - bytes.leading_zeros())) / 4;
    bytes.next_multiple_of(step)
}

impl Pool {
    fn take(&mut self, class: u64) -> Option<wgpu::Buffer> {
        let buffer = self.idle.get_mut(&class)?.pop()?;
        self.idle_bytes -= class;
        self.in_use_bytes += class;
        Some(buffer)
    }

    fn give(&mut self, buffer: wgpu::Buffer) {
        let class = buffer.size();
        self.in_use_bytes -= class;
        if self.idle_bytes + class <= MAX_IDLE_BYTES {
            self.idle_bytes += class;
            self.idle.entry(class).or_default().push(buffer);
        }
    }

    /// The idle buffers, to be dropped when the pool is no longer locked.
    fn clear(&mut self) -> impl Sized + use<> {
        self.idle_bytes = 0;
        std::mem::take(&mut self.idle)
    }

    /// Counts `bytes` that are about to be allocated, if the budget allows them.
    fn reserve(&mut self, kind: Kind, bytes: u64) -> bool {
        let held = self.in_use_bytes + self.idle_bytes + self.staging_bytes;
        if held.saturating_add(bytes) > self.budget {
            return false;
        }
        *self.account(kind) += bytes;
        true
    }

    fn account(&mut self, kind: Kind) -> &mut u64 {
        match kind {
            Kind::Buffer => &mut self.in_use_bytes,
            Kind::Staging => &mut self.staging_bytes,
        }
    }

    /// Whether this is the allocation that a test wants to fail.
    fn strikes(&mut self) -> bool {
        let left = self.failure.take();
        self.failure = left.and_then(|left| left.checked_sub(1));
        left == Some(0)
    }
}

impl Gpu {
    /// A buffer of `bytes` (rounded up to 4) with undefined contents.
    pub(crate) fn allocate(&self, place: &'static str, bytes: u64) -> Result<Buffer> {
        let bytes = bytes.max(4).next_multiple_of(4);
        let limit = self.inner.limits.max_buffer_size;
        if bytes > limit {
            let device = self.to_string();
            return Err(Error::TooLarge { place, quantity: "buffer", needed: bytes, limit, device });
        }
        let class = size_class(bytes).min(limit & !3);
        self.strike(place, class)?;
        let pooled = lock(&self.inner.pool).take(class);
        let raw = match pooled {
            Some(raw) => raw,
            None => {
                let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
                self.create(place, Kind::Buffer, class, usage)?
            }
        };
        Ok(Buffer { raw: Some(raw), bytes, pool: self.inner.pool.clone() })
    }

    /// A buffer of a size class for the host to write, mapped, or to read, unmapped.
    pub(crate) fn staging(&self, place: &'static str, class: u64, usage: wgpu::BufferUsages) -> Result<Staging> {
        self.strike(place, class)?;
        let raw = self.create(place, Kind::Staging, class, usage)?;
        Ok(Staging { raw, pool: self.inner.pool.clone() })
    }

    /// Bytes of the largest buffer.
    pub(crate) fn max_buffer(&self) -> u64 {
        self.inner.limits.max_buffer_size & !3
    }

    /// A new buffer, counted. Where there is no memory for it, once more when what nobody uses has gone back to the driver.
    fn create(&self, place: &'static str, kind: Kind, class: u64, usage: wgpu::BufferUsages) -> Result<wgpu::Buffer> {
        match self.try_create(place, kind, class, usage) {
            Err(Error::OutOfMemory { .. }) => {
                self.make_room()?;
                self.try_create(place, kind, class, usage)
            }
            other => other,
        }
    }

    fn try_create(
        &self,
        place: &'static str,
        kind: Kind,
        class: u64,
        usage: wgpu::BufferUsages,
    ) -> Result<wgpu::Buffer> {
        if !lock(&self.inner.pool).reserve(kind, class) {
            return Err(Error::OutOfMemory { place, bytes: class, device: self.to_string() });
        }
        let descriptor = wgpu::BufferDescriptor {
            label: Some(place),
            size: class,
            usage,
            mapped_at_creation: usage.contains(wgpu::BufferUsages::MAP_WRITE),
        };
        let created = self.guarded(place, class, || self.inner.device.create_buffer(&descriptor));
        if created.is_err() {
            *lock(&self.inner.pool).account(kind) -= class;
        }
        created
    }

    /// Gives what nobody uses back to the driver, also what only work not yet done holds: waits for that.
    fn make_room(&self) -> Result<()> {
        self.trim_idle();
        self.flush()?;
        let _ = self.inner.device.poll(wgpu::PollType::wait_indefinitely());
        // Staging buffers that came back.
        self.trim_idle();
        Ok(())
    }

    fn trim_idle(&self) {
        let buffers = lock(&self.inner.pool).clear();
        let readers = std::mem::take(&mut *lock(&self.inner.readers));
        let writers = lock(&self.inner.recorder).idle_staging();
        let writers = std::mem::take(&mut *lock(&writers));
        drop((buffers, readers, writers));
    }

    /// Gives pooled buffers that no tensor uses back to the driver. Of a lost device, also what work holds that will never be done.
    pub fn trim(&self) {
        self.close_page();
        if self.inner.faults.lost("trim", "").is_err() {
            let abandoned = lock(&self.inner.recorder).abandon();
            drop(abandoned);
        }
        self.trim_idle();
    }

    /// Bytes in buffers that tensors hold, and bytes waiting in the pool for reuse.
    pub fn memory(&self) -> (u64, u64) {
        let pool = lock(&self.inner.pool);
        (pool.in_use_bytes, pool.idle_bytes)
    }

    /// Bytes of the buffers that transfers go through, in flight or waiting for the next.
    pub fn staging_memory(&self) -> u64 {
        lock(&self.inner.pool).staging_bytes
    }

    /// Lets this device, all its clones, hold at most `bytes` from now on: buffers of tensors, idle ones, and those that transfers go through.
    ///
    /// An allocation beyond it first gives idle buffers back, then waits for work that holds others, then fails with [`Error::OutOfMemory`]; what was
    /// there before stays as it was. What is held already is not taken away. Sizes count as they are allocated, up to a quarter above what was asked for.
    pub fn set_memory_budget(&self, bytes: u64) {
        lock(&self.inner.pool).budget = bytes;
    }

    /// What [`Gpu::set_memory_budget`] said last; `u64::MAX` at first.
    pub fn memory_budget(&self) -> u64 {
        lock(&self.inner.pool).budget
    }

    /// Makes one allocation fail as if there were no memory, after so many more; `None` takes that back. For tests.
    #[doc(hidden)]
    pub fn fail_allocation(&self, after: Option<u64>) {
        lock(&self.inner.pool).failure = after;
    }

    /// Whether the allocation that shall fail is still to come. For tests.
    #[doc(hidden)]
    pub fn failure_pending(&self) -> bool {
        lock(&self.inner.pool).failure.is_some()
    }

    pub(super) fn strike(&self, place: &'static str, bytes: u64) -> Result<()> {
        match lock(&self.inner.pool).strikes() {
            true => Err(Error::OutOfMemory { place, bytes, device: self.to_string() }),
            false => Ok(()),
        }
    }

    /// A buffer holding `bytes`, copied at once; the copy to the device is recorded.
    pub(crate) fn upload(&self, place: &'static str, bytes: &[u8]) -> Result<Buffer> {
        let buffer = self.allocate(place, bytes.len() as u64)?;
        self.write(place, &buffer, 0, bytes)?;
        Ok(buffer)
    }

    /// Records the copy of `bytes` to `offset` (a multiple of 4) of `buffer`, after everything recorded before.
    pub(crate) fn write(&self, place: &'static str, buffer: &Buffer, offset: u64, bytes: &[u8]) -> Result<()> {
        let mut offset = offset;
        for piece in bytes.chunks(PIECE) {
            let padded = (piece.len() as u64).next_multiple_of(4);
            let staging = self.filled(place, piece, padded)?;
            self.guarded(place, padded, || {
                staging.raw.unmap();
                lock(&self.inner.recorder).copy_staged(&self.inner, staging, buffer, offset, piece);
            })?;
            offset += padded;
        }
        Ok(())
    }

    /// A mapped staging buffer that begins with `piece`, and zeros up to `padded` bytes.
    fn filled(&self, place: &'static str, piece: &[u8], padded: u64) -> Result<Staging> {
        let class = size_class(padded);
        let idle = lock(&self.inner.recorder).idle_staging();
        let known = {
            let mut idle = lock(&idle);
            idle.iter().position(|staging| staging.bytes() == class).map(|at| idle.swap_remove(at))
        };
        let usage = wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::COPY_SRC;
        let staging = match known {
            Some(staging) => {
                self.strike(place, class)?;
                staging
            }
            None => self.staging(place, class, usage)?,
        };
        match staging.raw.get_mapped_range_mut(0..padded) {
            Ok(mut range) => {
                range.slice(..piece.len()).copy_from_slice(piece);
                if padded as usize > piece.len() {
                    range.slice(piece.len()..).copy_from_slice(&[0u8; 4][..padded as usize - piece.len()]);
                }
            }
            Err(error) => return Err(self.unusable(place, error.to_string())),
        }
        Ok(staging)
    }

    /// Rows of `bytes` each that one binding can show, wherever they begin.
    pub(crate) fn rows_per_window(&self, place: &'static str, bytes: usize) -> Result<usize> {
        let limit = self.max_binding() - self.binding_alignment() - 4;
        match limit / bytes as u64 {
            0 => Err(Error::TooLarge {
                place,
                quantity: "one row",
                needed: bytes as u64,
                limit,
                device: self.to_string(),
            }),
            rows => Ok(rows as usize),
        }
    }

    /// Records the copy of `from` to `to_offset` of `to`.
    pub(crate) fn copy(&self, from: View<'_>, to: &Buffer, to_offset: u64) {
        lock(&self.inner.recorder).copy(&self.inner, from.buffer.raw(), from.offset, to.raw(), to_offset, from.bytes);
    }

    /// Records filling `buffer` with zeros.
    pub(crate) fn clear(&self, buffer: &Buffer) {
        self.clear_view(buffer.view());
    }

    /// Records filling a part of a buffer with zeros.
    pub(crate) fn clear_view(&self, view: View<'_>) {
        lock(&self.inner.recorder).clear(&self.inner, view.buffer.raw(), view.offset, view.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::size_class;

    #[test]
    fn classes_hold_what_they_are_asked_for_and_waste_at_most_a_quarter() {
        for bytes in (1..5000).chain([1 << 20, (1 << 20) + 1, (1 << 31) - 1, 3 << 30]) {
            let class = size_class(bytes);
            assert!(class >= bytes && class.is_multiple_of(4), "{bytes} -> {class}");
            assert!(bytes <= 256 || class - bytes <= class / 4, "{bytes} -> {class}");
            assert_eq!(size_class(class), class, "a class is its own class");
        }
    }
}
