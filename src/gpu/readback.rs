//! The waits: mapping a buffer, as a future that a browser's event loop or a thread of its own completes.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use super::buffer::{Staging, size_class};
use super::check::WORDS;
use super::{Check, Gpu, View, lock};
use crate::Result;

thread_local! {
    /// Set while a blocking door waits: then the future may block this thread on the device instead of asking another to.
    static BLOCKING: Cell<bool> = const { Cell::new(false) };
}

/// Waits for `future`: what every blocking door does with its `_async` form.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    /// Puts the flag back, also when the future panics.
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            BLOCKING.set(self.0);
        }
    }
    let _restore = Restore(BLOCKING.replace(true));
    pollster::block_on(future)
}

#[derive(Default)]
struct Mapping {
    result: Option<std::result::Result<(), wgpu::BufferAsyncError>>,
    waker: Option<Waker>,
}

/// Ready when the callback of `map_async` has run.
struct MapFuture {
    state: Arc<Mutex<Mapping>>,
    #[cfg(not(target_arch = "wasm32"))]
    device: wgpu::Device,
    #[cfg(not(target_arch = "wasm32"))]
    watcher: Option<std::thread::JoinHandle<()>>,
}

impl Future for MapFuture {
    type Output = std::result::Result<(), wgpu::BufferAsyncError>;

    #[cfg_attr(target_arch = "wasm32", allow(unused_mut, reason = "there is no watcher to start"))]
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        #[cfg(not(target_arch = "wasm32"))]
        if lock(&self.state).result.is_none() {
            let wait = BLOCKING.get();
            let _ = self.device.poll(if wait { wgpu::PollType::wait_indefinitely() } else { wgpu::PollType::Poll });
        }
        let taken = {
            let mut state = lock(&self.state);
            if state.result.is_none() {
                state.waker = Some(context.waker().clone());
            }
            state.result.take()
        };
        if let Some(result) = taken {
            // The watcher is past its wait: no thread outlives the future that started it. (An executor may run tasks on the thread that wakes them.)
            #[cfg(not(target_arch = "wasm32"))]
            if let Some(watcher) = self.watcher.take()
                && watcher.thread().id() != std::thread::current().id()
            {
                let _ = watcher.join();
            }
            return Poll::Ready(result);
        }
        // In a browser the event loop runs the callback. Elsewhere somebody has to poll the device: a thread, once a wait.
        #[cfg(not(target_arch = "wasm32"))]
        if self.watcher.is_none() {
            let device = self.device.clone();
            self.watcher = Some(std::thread::spawn(move || {
                let _ = device.poll(wgpu::PollType::wait_indefinitely());
            }));
        }
        Poll::Pending
    }
}

/// Maps `staging`, waits, and hands its bytes to `read`.
pub(super) async fn map(gpu: &Gpu, staging: &wgpu::Buffer, read: impl FnOnce(&[u8])) -> Result<()> {
    let state = Arc::new(Mutex::new(Mapping::default()));
    let report = state.clone();
    staging.slice(..).map_async(wgpu::MapMode::Read, move |result| {
        let waker = {
            let mut state = lock(&report);
            state.result = Some(result);
            state.waker.take()
        };
        // Not under the lock: an executor may poll the future from within.
        if let Some(waker) = waker {
            waker.wake();
        }
    });
    let mapped = MapFuture {
        state,
        #[cfg(not(target_arch = "wasm32"))]
        device: gpu.inner.device.clone(),
        #[cfg(not(target_arch = "wasm32"))]
        watcher: None,
    }
    .await;
    gpu.inner.faults.lost("readback", &gpu.inner.info.to_string())?;
    let refused = |reason: String| gpu.unusable("readback", reason);
    mapped.map_err(|error| refused(error.to_string()))?;
    let range = staging.slice(..).get_mapped_range().map_err(|error| refused(error.to_string()))?;
    read(&range);
    drop(range);
    staging.unmap();
    Ok(())
}

/// Staging bytes kept for the next readbacks.
const MAX_READERS: u64 = 64 << 20;

impl Gpu {
    /// Waits for everything recorded so far, checks what `checks` found, and copies `view` to `out`.
    pub(crate) async fn read(&self, view: View<'_>, checks: &[Arc<Check>], out: &mut [u8]) -> Result<()> {
        let data = view.bytes.next_multiple_of(4);
        let words = 4 * WORDS as u64;
        let class = size_class(data + checks.len() as u64 * words);
        let staging = self.reader(class)?;
        self.guarded("readback", class, || {
            let mut recorder = lock(&self.inner.recorder);
            recorder.read(&self.inner, view.buffer.raw(), view.offset, &staging.raw, data);
            for (check, at) in checks.iter().zip((data..).step_by(words as usize)) {
                let status = check.view();
                let encoder = recorder.encoder(&self.inner);
                encoder.copy_buffer_to_buffer(status.buffer.raw(), status.offset, &staging.raw, at, words);
            }
            recorder.flush(&self.inner);
        })?;
        let mut verdict = Ok(());
        map(self, &staging.raw, |bytes| {
            out.copy_from_slice(&bytes[..out.len()]);
            let status = bytes[data as usize..].chunks_exact(words as usize);
            verdict = checks.iter().zip(status).try_for_each(|(check, status)| {
                let mut words = [0u32; WORDS];
                bytemuck::cast_slice_mut(&mut words).copy_from_slice(status);
                check.verdict(&words)
            });
        })
        .await?;
        let mut readers = lock(&self.inner.readers);
        if readers.iter().map(Staging::bytes).sum::<u64>() + class <= MAX_READERS {
            readers.push(staging);
        }
        verdict
    }

    fn reader(&self, class: u64) -> Result<Staging> {
        let known = {
            let mut readers = lock(&self.inner.readers);
            readers.iter().position(|staging| staging.bytes() == class).map(|at| readers.swap_remove(at))
        };
        match known {
            Some(staging) => {
                self.strike("readback", class)?;
                Ok(staging)
            }
            None => self.staging("readback", class, wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST),
        }
    }
}
