//! What a device was told to do, step by step, so that another host of WebGPU can do it again.

use std::collections::{BTreeSet, HashMap};

use serde::Serialize;

use super::kernel::Pipeline;
use super::{Gpu, lock};
use crate::Result;

/// One step. Buffers are numbered in the order of their first use; offsets and sizes are bytes, contents words.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "do", rename_all = "lowercase")]
pub enum Step {
    /// The host writes to a buffer.
    #[allow(missing_docs)]
    Write { buffer: usize, offset: u64, words: Vec<u32> },
    /// A part of a buffer becomes zeros.
    #[allow(missing_docs)]
    Clear { buffer: usize, offset: u64, bytes: u64 },
    /// A part of a buffer becomes that of another.
    #[allow(missing_docs)]
    Copy { from: usize, from_offset: u64, to: usize, to_offset: u64, bytes: u64 },
    /// A shader, by the name of its [`super::Variant`], with `Params` at binding 0 and `(buffer, offset, bytes)` from binding 1 on.
    #[allow(missing_docs)]
    Dispatch { shader: String, params: Vec<u32>, bindings: Vec<(usize, u64, u64)>, groups: [u32; 3] },
    /// The host reads from a buffer.
    #[allow(missing_docs)]
    Read { buffer: usize, offset: u64, bytes: u64 },
}

/// The steps of [`Gpu::traced`].
#[derive(Debug, Clone, Default, Serialize)]
pub struct Trace {
    /// Bytes of each buffer. What is in them before the first step is undefined.
    pub buffers: Vec<u64>,
    /// In order.
    pub steps: Vec<Step>,
}

impl Trace {
    /// Names of the shaders that run in it.
    pub fn shaders(&self) -> BTreeSet<&str> {
        self.steps
            .iter()
            .filter_map(|step| match step {
                Step::Dispatch { shader, .. } => Some(shader.as_str()),
                _ => None,
            })
            .collect()
    }
}

/// A trace while it is written.
#[derive(Default)]
pub(super) struct Tracing {
    numbers: HashMap<wgpu::Buffer, usize>,
    trace: Trace,
}

impl Tracing {
    fn number(&mut self, buffer: &wgpu::Buffer) -> usize {
        let next = self.trace.buffers.len();
        *self.numbers.entry(buffer.clone()).or_insert_with(|| {
            self.trace.buffers.push(buffer.size());
            next
        })
    }

    pub(super) fn write(&mut self, buffer: &wgpu::Buffer, offset: u64, bytes: &[u8]) {
        let step = Step::Write { buffer: self.number(buffer), offset, words: words(bytes) };
        self.trace.steps.push(step);
    }

    pub(super) fn clear(&mut self, buffer: &wgpu::Buffer, offset: u64, bytes: u64) {
        let step = Step::Clear { buffer: self.number(buffer), offset, bytes };
        self.trace.steps.push(step);
    }

    pub(super) fn copy(
        &mut self,
        from: &wgpu::Buffer,
        from_offset: u64,
        to: &wgpu::Buffer,
        to_offset: u64,
        bytes: u64,
    ) {
        let step = Step::Copy { from: self.number(from), from_offset, to: self.number(to), to_offset, bytes };
        self.trace.steps.push(step);
    }

    pub(super) fn dispatch(
        &mut self,
        pipeline: &Pipeline,
        params: &[u8],
        bindings: &[super::View<'_>],
        groups: [u32; 3],
    ) {
        let bindings = bindings.iter().map(|view| (self.number(view.buffer.raw()), view.offset, view.bytes)).collect();
        let shader = pipeline.kernel.variant(&pipeline.constants).name;
        self.trace.steps.push(Step::Dispatch { shader, params: words(params), bindings, groups });
    }

    pub(super) fn read(&mut self, buffer: &wgpu::Buffer, offset: u64, bytes: u64) {
        let step = Step::Read { buffer: self.number(buffer), offset, bytes };
        self.trace.steps.push(step);
    }
}

/// Bytes as words, the last filled up with zeros.
fn words(bytes: &[u8]) -> Vec<u32> {
    let word = |four: &[u8]| {
        let mut word = [0; 4];
        word[..four.len()].copy_from_slice(four);
        u32::from_le_bytes(word)
    };
    bytes.chunks(4).map(word).collect()
}

impl Gpu {
    /// Runs `work` and gives, beside its result, what the device was told meanwhile, by any thread. Tensors that `work` reads but did not make have
    /// no contents in the trace. For tests.
    ///
    /// # Errors
    /// Those of `work`.
    #[doc(hidden)]
    pub fn traced<R>(&self, work: impl FnOnce() -> Result<R>) -> Result<(R, Trace)> {
        // A page of status words that was opened before would be one whose zeros the trace does not hold.
        self.close_page();
        lock(&self.inner.recorder).tracing = Some(Tracing::default());
        let result = work();
        let tracing = lock(&self.inner.recorder).tracing.take();
        Ok((result?, tracing.map(|tracing| tracing.trace).unwrap_or_default()))
    }
}
