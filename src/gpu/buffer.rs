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

/// Idle buffers by size class.
#[derive(Default)]
pub(crate) struct Pool {
    idle: BTreeMap<u64, Vec<wgpu::Buffer>>,
    idle_bytes: u64,
    in_use_bytes: u64,
}

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

    pub(crate) fn clear(&mut self) {
        self.idle.clear();
        self.idle_bytes = 0;
    }

    pub(crate) fn idle(&self) -> u64 {
        self.idle_bytes
    }

    pub(crate) fn in_use(&self) -> u64 {
        self.in_use_bytes
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
        let pooled = lock(&self.inner.pool).take(class);
        let raw = match pooled {
            Some(raw) => raw,
            None => match self.create(place, class) {
                Err(Error::OutOfMemory { .. }) => {
                    // The pool may hold what is missing: give it back, let the device finish, try once more.
                    self.trim();
                    self.flush()?;
                    let _ = self.inner.device.poll(wgpu::PollType::wait_indefinitely());
                    self.create(place, class)?
                }
                other => other?,
            },
        };
        lock(&self.inner.pool).in_use_bytes += class;
        Ok(Buffer { raw: Some(raw), bytes, pool: self.inner.pool.clone() })
    }

    /// Bytes of the largest buffer.
    pub(crate) fn max_buffer(&self) -> u64 {
        self.inner.limits.max_buffer_size & !3
    }

    fn create(&self, place: &'static str, class: u64) -> Result<wgpu::Buffer> {
        let descriptor = wgpu::BufferDescriptor {
            label: Some(place),
            size: class,
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        };
        self.guarded(place, class, || self.inner.device.create_buffer(&descriptor))
    }

    /// A buffer holding `bytes`, copied at once; the copy to the device is recorded.
    pub(crate) fn upload(&self, place: &'static str, bytes: &[u8]) -> Result<Buffer> {
        let buffer = self.allocate(place, bytes.len() as u64)?;
        self.write(place, &buffer, 0, bytes)?;
        Ok(buffer)
    }

    /// Records the copy of `bytes` to `offset` (a multiple of 4) of `buffer`, after everything recorded before.
    pub(crate) fn write(&self, place: &'static str, buffer: &Buffer, offset: u64, bytes: &[u8]) -> Result<()> {
        self.guarded(place, bytes.len() as u64, || {
            lock(&self.inner.recorder).write(&self.inner, buffer, offset, bytes);
        })
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
