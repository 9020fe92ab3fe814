//! Time of each dispatch on the device itself, by timestamp queries around its pass.

use super::{Gpu, Inner, lock, readback};
use crate::Result;

/// The device's own time of one dispatch.
#[derive(Debug, Clone, PartialEq)]
pub struct KernelTime {
    /// The kernel's name, as in [`crate::kernels`].
    pub kernel: &'static str,
    /// Seconds between the start and the end of its pass.
    pub seconds: f64,
}

/// Queries of one batch: two a dispatch, with room to spare over the batch size.
const QUERIES: u32 = 128;

/// What a recorder notes while it is timed.
pub(crate) struct Timing {
    names: Vec<&'static str>,
    open: Option<(wgpu::QuerySet, u32)>,
    resolved: Vec<(wgpu::Buffer, u32)>,
}

impl Timing {
    /// The queries of the next dispatch.
    pub(crate) fn next(&mut self, inner: &Inner, name: &'static str) -> Option<wgpu::ComputePassTimestampWrites<'_>> {
        let (set, next) = self.open.get_or_insert_with(|| {
            let set = inner.device.create_query_set(&wgpu::QuerySetDescriptor {
                label: None,
                ty: wgpu::QueryType::Timestamp,
                count: QUERIES,
            });
            (set, 0)
        });
        if *next + 2 > QUERIES {
            return None;
        }
        let first = *next;
        *next += 2;
        self.names.push(name);
        Some(wgpu::ComputePassTimestampWrites {
            query_set: set,
            beginning_of_pass_write_index: Some(first),
            end_of_pass_write_index: Some(first + 1),
        })
    }

    /// Ends a batch: its queries become numbers in a buffer.
    pub(crate) fn resolve(&mut self, inner: &Inner, encoder: &mut wgpu::CommandEncoder) {
        let Some((set, count)) = self.open.take() else { return };
        let make = |usage| {
            inner.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("timestamps"),
                size: u64::from(QUERIES) * 8,
                usage,
                mapped_at_creation: false,
            })
        };
        let ticks = make(wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC);
        let staging = make(wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST);
        encoder.resolve_query_set(&set, 0..count, &ticks, 0);
        encoder.copy_buffer_to_buffer(&ticks, 0, &staging, 0, u64::from(count) * 8);
        self.resolved.push((staging, count));
    }
}

impl Gpu {
    /// Runs `work` and gives, beside its result, the device's time of every kernel it recorded, in order; `None` where the adapter has no timestamps.
    ///
    /// Each kernel then runs in a pass of its own, so small kernels take longer together than untimed. What other threads record on this device
    /// meanwhile is timed with it.
    ///
    /// # Errors
    /// Those of `work`, and of the device.
    pub fn timed<R>(&self, work: impl FnOnce() -> Result<R>) -> Result<(R, Option<Vec<KernelTime>>)> {
        readback::block_on(self.timed_async(work))
    }

    /// [`Gpu::timed`] where a thread must not block.
    ///
    /// # Errors
    /// As [`Gpu::timed`].
    pub async fn timed_async<R>(&self, work: impl FnOnce() -> Result<R>) -> Result<(R, Option<Vec<KernelTime>>)> {
        if !self.has_timestamps() {
            return Ok((work()?, None));
        }
        let switch = |timing| {
            let mut recorder = lock(&self.inner.recorder);
            recorder.flush(&self.inner);
            std::mem::replace(&mut recorder.timing, timing)
        };
        switch(Some(Timing { names: Vec::new(), open: None, resolved: Vec::new() }));
        let result = work();
        let timing = switch(None);
        let result = result?;
        self.inner.faults.lost("timing", &self.inner.info.to_string())?;

        let period = f64::from(self.inner.queue.get_timestamp_period()) * 1e-9;
        let mut seconds = Vec::new();
        for (staging, count) in timing.iter().flat_map(|timing| &timing.resolved) {
            let mut ticks = vec![0u64; *count as usize];
            readback::map(self, staging, |bytes| {
                let bytes = &bytes[..ticks.len() * 8];
                bytemuck::cast_slice_mut(&mut ticks).copy_from_slice(bytes);
            })
            .await?;
            seconds.extend(ticks.chunks_exact(2).map(|pair| pair[1].wrapping_sub(pair[0]) as f64 * period));
        }
        let names = timing.into_iter().flat_map(|timing| timing.names);
        Ok((result, Some(names.zip(seconds).map(|(kernel, seconds)| KernelTime { kernel, seconds }).collect())))
    }
}
