//! wgpu behind the door: opening, memory, pipelines, recording, readback, timing.
//!
//! Work is recorded into one open encoder and submitted in batches or at a readback; a [`Gpu`] is a cheap handle to all of it.

mod buffer;
mod check;
mod experimental;
pub(crate) mod extended;
mod fault;
mod kernel;
mod open;
mod pipeline_cache;
mod readback;
mod recorder;
mod timing;
mod trace;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

pub(crate) use buffer::{Buffer, View};
pub(crate) use check::{Check, Finding};
pub(crate) use kernel::{Constant, Kernel, Params, params, shader};
pub(crate) use open::{Ceilings, adapters, open_best, open_index};
pub(crate) use readback::block_on;

pub use extended::{Arithmetic, Extended};
pub use kernel::{Needs, Variant, mutate};
pub use open::{AdapterInfo, AdapterKind};
pub use timing::KernelTime;
pub use trace::{Step, Trace};

use crate::{Error, Result};

/// An open GPU. Clones share the device, its buffer pools and its pipelines.
#[derive(Clone)]
pub struct Gpu {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) info: AdapterInfo,
    pub(crate) device: wgpu::Device,
    queue: wgpu::Queue,
    limits: wgpu::Limits,
    features: wgpu::Features,
    /// Rows of the cooperative matrices that kernels use, or 0.
    cooperative: u32,
    /// What pairs of f32 are computed in.
    arithmetic: extended::Chosen,
    faults: Arc<fault::Faults>,
    pool: Arc<Mutex<buffer::Pool>>,
    /// Held from a call into the driver to the question whether it failed: wgpu reports within the call, so an error goes to the thread that caused it.
    section: Mutex<()>,
    recorder: Mutex<recorder::Recorder>,
    checks: Mutex<check::Pages>,
    /// Staging buffers of finished readbacks.
    readers: Mutex<Vec<buffer::Staging>>,
    pipelines: Mutex<HashMap<kernel::Key, Arc<kernel::Pipeline>>>,
    disk: pipeline_cache::DiskCache,
}

/// A lock that a panicking thread left behind still holds consistent data: nothing here unwinds half-way through an update.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Gpu {
    /// Name, backend, driver, limits and features of the adapter.
    pub fn info(&self) -> &AdapterInfo {
        &self.inner.info
    }

    /// Whether f64 tensors and kernels work here (`SHADER_F64` and `SHADER_INT64`).
    pub fn has_f64(&self) -> bool {
        // Their own exp and log work on the bits.
        self.inner.features.contains(wgpu::Features::SHADER_F64 | wgpu::Features::SHADER_INT64)
    }

    /// Whether kernels can be timed on the device itself (`TIMESTAMP_QUERY`).
    pub fn has_timestamps(&self) -> bool {
        self.inner.features.contains(wgpu::Features::TIMESTAMP_QUERY)
    }

    /// The largest part of a buffer one kernel can see at a time, in bytes. Longer data is tiled.
    ///
    /// `ORTHANT_MAX_BINDING` (bytes) lowers it when the device is opened, to try the tiling on small data.
    pub fn max_binding(&self) -> u64 {
        // Kernels index elements of 2 bytes and more by u32.
        self.inner.limits.max_storage_buffer_binding_size.min(u64::from(u32::MAX)) & !3
    }

    /// Rows of the cooperative matrices that kernels use here, 16 or 8, or 0.
    pub(crate) fn cooperative(&self) -> u32 {
        self.inner.cooperative
    }

    /// Whether kernels by subgroups work here; in a browser their text would need `enable subgroups;`.
    pub(crate) fn has_subgroups(&self) -> bool {
        self.inner.features.contains(wgpu::Features::SUBGROUP) && self.inner.info.backend != "BrowserWebGpu"
    }

    /// Whether the invocations of a workgroup share 32 KiB.
    pub(crate) fn has_large_memory(&self) -> bool {
        self.inner.limits.max_compute_workgroup_storage_size >= 32 << 10
    }

    /// Submits what is recorded so far without waiting for it.
    ///
    /// # Errors
    /// [`Error::DeviceLost`], [`Error::Backend`], [`Error::OutOfMemory`] as the driver reports them.
    pub fn flush(&self) -> Result<()> {
        self.guarded("flush", 0, || lock(&self.inner.recorder).flush(&self.inner))
    }

    /// What `work`, a call into the driver, gives, or the error it reported.
    pub(crate) fn guarded<R>(&self, place: &'static str, bytes: u64, work: impl FnOnce() -> R) -> Result<R> {
        let _section = lock(&self.inner.section);
        let result = work();
        match self.inner.faults.take() {
            None => Ok(result),
            Some(fault::Fault::Refused(reason)) => Err(self.unusable(place, reason)),
            Some(fault) => Err(fault.into_error(place, bytes, &self.inner.info.to_string())),
        }
    }

    /// Why the driver refused something: the device is lost, or it has a defect.
    pub(crate) fn unusable(&self, place: &'static str, reason: String) -> Error {
        let device = self.to_string();
        // A device that is going away makes invalid buffers, without a word, before it says so: in the poll after its last work, maybe another thread's.
        for _ in 0..20 {
            let _ = self.inner.device.poll(wgpu::PollType::wait_indefinitely());
            if let Err(lost) = self.inner.faults.lost(place, &device) {
                return lost;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        Error::Backend { place, device, reason }
    }

    /// Bytes between offsets of bindings.
    pub(crate) fn binding_alignment(&self) -> u64 {
        u64::from(self.inner.limits.min_storage_buffer_offset_alignment)
    }

    /// Workgroups that a grid may have along one axis.
    pub(crate) fn max_groups(&self) -> usize {
        self.inner.limits.max_compute_workgroups_per_dimension as usize
    }

    /// `groups` workgroups as a grid within the limit of each dimension; a kernel's index is
    /// `(workgroup.y * grid.x + workgroup.x) * WORKGROUP + local`, and those past the end return.
    pub(crate) fn grid(&self, place: &'static str, groups: u64) -> Result<[u32; 3]> {
        let limit = self.max_groups() as u64;
        if groups > limit * limit {
            return Err(Error::TooLarge {
                place,
                quantity: "workgroups of one dispatch",
                needed: groups,
                limit: limit * limit,
                device: self.to_string(),
            });
        }
        let y = groups.div_ceil(limit).max(1);
        Ok([groups.div_ceil(y) as u32, y as u32, 1])
    }

    /// Destroys the device as a driver reset would; every later call gives [`Error::DeviceLost`]. For tests.
    #[doc(hidden)]
    pub fn destroy(&self) {
        self.inner.device.destroy();
    }
}

impl PartialEq for Gpu {
    /// Whether both are the same open device.
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }
}

impl fmt::Display for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.info.fmt(f)
    }
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gpu({})", self.inner.info)
    }
}
