//! One open encoder: dispatches and copies are recorded in order and submitted together.
//!
//! Measured on lavapipe: 74 us an op with a submit each, 31 us in one pass. So a pass stays open until a copy or a submit needs it closed.

use std::sync::{Arc, Mutex};

use super::buffer::{Buffer, Staging};
use super::kernel::Pipeline;
use super::timing::Timing;
use super::trace::Tracing;
use super::{Inner, lock};

/// Dispatches a batch.
const BATCH: u32 = 32;
/// Bytes of the uniform arena that holds the `Params` of a batch.
const ARENA: u64 = 64 << 10;
/// Staged bytes after which a batch is submitted, so that its staging buffers come back.
const STAGED: u64 = 64 << 20;

#[derive(Default)]
pub(crate) struct Recorder {
    // Declared before the encoder: a pass must end before its encoder does, also when both are dropped.
    pass: Option<wgpu::ComputePass<'static>>,
    encoder: Option<wgpu::CommandEncoder>,
    dispatches: u32,
    arena: Option<wgpu::Buffer>,
    params: Vec<u8>,
    staged: Vec<Staging>,
    staged_bytes: u64,
    /// Mapped, ready to be filled; filled by the callbacks of finished batches.
    staging: Arc<Mutex<Vec<Staging>>>,
    pub(crate) timing: Option<Timing>,
    pub(super) tracing: Option<Tracing>,
}

impl Recorder {
    pub(crate) fn encoder(&mut self, inner: &Inner) -> &mut wgpu::CommandEncoder {
        self.pass = None;
        self.encoder.get_or_insert_with(|| inner.device.create_command_encoder(&Default::default()))
    }

    /// Staging buffers that wait for the next upload.
    pub(crate) fn idle_staging(&self) -> Arc<Mutex<Vec<Staging>>> {
        self.staging.clone()
    }

    /// Records one dispatch. `bindings` are the storage buffers from binding 1 on. Where something of it cannot be made, nothing is recorded: an invalid
    /// command would take all others of the batch with it.
    pub(crate) fn dispatch(
        &mut self,
        inner: &Inner,
        pipeline: &Pipeline,
        params: &[u8],
        bindings: &[super::View<'_>],
        groups: [u32; 3],
    ) {
        let alignment = inner.limits.min_uniform_buffer_offset_alignment.max(4) as usize;
        if self.params.len() + params.len() > ARENA as usize {
            self.flush(inner);
        }
        let reports = inner.faults.reports();
        let arena = self.arena.take().unwrap_or_else(|| {
            inner.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("params"),
                size: ARENA,
                usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            })
        });
        if inner.faults.reports() != reports {
            return;
        }
        let arena = &*self.arena.insert(arena);
        let offset = self.params.len() as u64;

        let mut entries = vec![wgpu::BindGroupEntry {
            binding: 0,
            resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                buffer: arena,
                offset,
                size: std::num::NonZeroU64::new(params.len() as u64),
            }),
        }];
        entries.extend(
            (1..).zip(bindings).map(|(binding, view)| wgpu::BindGroupEntry { binding, resource: view.binding() }),
        );
        let group = inner.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some(pipeline.kernel.name),
            layout: &pipeline.layout,
            entries: &entries,
        });
        if inner.faults.reports() != reports {
            return;
        }
        self.params.extend_from_slice(params);
        self.params.resize(self.params.len().next_multiple_of(alignment), 0);

        if self.timing.is_some() || self.pass.is_none() {
            let mut timing = self.timing.take();
            let writes = timing.as_mut().and_then(|timing| timing.next(inner, pipeline.kernel.name));
            let pass = self
                .encoder(inner)
                .begin_compute_pass(&wgpu::ComputePassDescriptor { label: None, timestamp_writes: writes })
                .forget_lifetime();
            self.pass = Some(pass);
            self.timing = timing;
        }
        if let Some(pass) = &mut self.pass {
            pass.set_pipeline(&pipeline.raw);
            pass.set_bind_group(0, &group, &[]);
            pass.dispatch_workgroups(groups[0], groups[1], groups[2]);
        }
        if let Some(tracing) = &mut self.tracing {
            tracing.dispatch(pipeline, params, bindings, groups);
        }
        self.dispatches += 1;
        if self.dispatches >= BATCH {
            self.flush(inner);
        }
    }

    /// Records the copy of a filled staging buffer, which comes back when it has been read; `written` is what it holds for the host.
    pub(crate) fn copy_staged(&mut self, inner: &Inner, staging: Staging, to: &Buffer, offset: u64, written: &[u8]) {
        let bytes = (written.len() as u64).next_multiple_of(4);
        self.encoder(inner).copy_buffer_to_buffer(&staging.raw, 0, to.raw(), offset, bytes);
        if let Some(tracing) = &mut self.tracing {
            tracing.write(to.raw(), offset, written);
        }
        self.staged_bytes += staging.bytes();
        self.staged.push(staging);
        if self.staged_bytes >= STAGED {
            self.flush(inner);
        }
    }

    pub(crate) fn copy(
        &mut self,
        inner: &Inner,
        from: &wgpu::Buffer,
        from_offset: u64,
        to: &wgpu::Buffer,
        to_offset: u64,
        bytes: u64,
    ) {
        self.encoder(inner).copy_buffer_to_buffer(from, from_offset, to, to_offset, bytes);
        if let Some(tracing) = &mut self.tracing {
            tracing.copy(from, from_offset, to, to_offset, bytes);
        }
    }

    /// Records the copy of a part of a buffer to one that the host reads.
    pub(crate) fn read(
        &mut self,
        inner: &Inner,
        from: &wgpu::Buffer,
        from_offset: u64,
        staging: &wgpu::Buffer,
        bytes: u64,
    ) {
        self.encoder(inner).copy_buffer_to_buffer(from, from_offset, staging, 0, bytes);
        if let Some(tracing) = &mut self.tracing {
            tracing.read(from, from_offset, bytes);
        }
    }

    pub(crate) fn clear(&mut self, inner: &Inner, buffer: &wgpu::Buffer, offset: u64, bytes: u64) {
        self.encoder(inner).clear_buffer(buffer, offset, Some(bytes));
        if let Some(tracing) = &mut self.tracing {
            tracing.clear(buffer, offset, bytes);
        }
    }

    /// Forgets everything recorded; what it held, to be dropped when the recorder is no longer locked.
    pub(crate) fn abandon(&mut self) -> impl Sized + use<> {
        self.params.clear();
        (self.dispatches, self.staged_bytes) = (0, 0);
        (self.pass.take(), self.encoder.take(), std::mem::take(&mut self.staged))
    }

    /// Submits everything recorded.
    pub(crate) fn flush(&mut self, inner: &Inner) {
        self.pass = None;
        let Some(mut encoder) = self.encoder.take() else { return };
        if let Some(timing) = &mut self.timing {
            timing.resolve(inner, &mut encoder);
        }
        let reports = inner.faults.reports();
        if let Some(arena) = &self.arena
            && !self.params.is_empty()
        {
            // Ordered after the batches submitted before, and nothing else ever writes the arena.
            inner.queue.write_buffer(arena, 0, &self.params);
        }
        inner.queue.submit([encoder.finish()]);
        if inner.faults.reports() != reports {
            inner.faults.lose_work();
        }
        self.params.clear();
        self.dispatches = 0;
        self.staged_bytes = 0;
        for buffer in self.staged.drain(..) {
            let (idle, raw) = (self.staging.clone(), buffer.raw.clone());
            raw.slice(..).map_async(wgpu::MapMode::Write, move |result| {
                let mut idle = lock(&idle);
                if result.is_ok() && idle.iter().map(Staging::bytes).sum::<u64>() < STAGED {
                    idle.push(buffer);
                }
            });
        }
    }
}
