//! New rows as kernels see them: the tensor, or copies of the parts that fit.

use std::ops::Range;
use std::sync::Arc;

use super::*;
use crate::Error;
use crate::gpu::Buffer;

/// [sequences, kv_heads, n, d] on a GPU.
pub(super) struct NewRows<'a> {
    buffer: &'a Arc<Buffer>,
    shape: [usize; 4],
    element: usize,
    whole: bool,
    limit: u64,
}

/// Some of them: what is bound, and where an element of (sequence, head, token) is.
pub(super) struct Bound<'a> {
    whole: &'a Buffer,
    part: Option<Buffer>,
    pub(super) offset: u32,
    pub(super) sequence: u32,
    pub(super) head: u32,
    /// The token that is the first.
    pub(super) first_token: usize,
}

impl Bound<'_> {
    pub(super) fn view(&self) -> View<'_> {
        self.part.as_ref().unwrap_or(self.whole).view()
    }
}

impl<'a> NewRows<'a> {
    pub(super) fn new<T: AttentionElement>(gpu: &Gpu, x: &'a Tensor<T, Ix4>) -> Self {
        let Storage::Gpu(_, buffer) = x.storage() else { unreachable!("all are on one device") };
        let limit = gpu.max_binding();
        let &[sequences, heads, n, d] = x.shape() else { unreachable!("four axes") };
        Self { buffer, shape: [sequences, heads, n, d], element: size_of::<T>(), whole: buffer.bytes() <= limit, limit }
    }

    /// Whether all of them are bound at once.
    pub(super) fn whole(&self) -> bool {
        self.whole
    }

    /// Bytes of some heads' tokens.
    pub(super) fn bytes(&self, heads: usize, tokens: usize) -> u64 {
        (heads * tokens * self.shape[3] * self.element) as u64
    }

    /// All of them, or those of a sequence's heads and tokens (clipped to what there is).
    pub(super) fn of(
        &self,
        gpu: &Gpu,
        sequence: usize,
        heads: Range<usize>,
        tokens: Range<usize>,
    ) -> Result<Bound<'a>> {
        let [_, kv_heads, n, d] = self.shape;
        if self.whole {
            let (sequence, head) = ((kv_heads * n * d) as u32, (n * d) as u32);
            return Ok(Bound { whole: self.buffer, part: None, offset: 0, sequence, head, first_token: 0 });
        }
        let tokens = tokens.start.min(n)..tokens.end.min(n);
        let bytes = self.bytes(heads.len(), tokens.len());
        let row = (d * self.element) as u64;
        // Copies are of whole words.
        let limit = if row.is_multiple_of(4) { self.limit } else { 0 };
        if bytes > limit {
            let device = gpu.to_string();
            return Err(Error::TooLarge { place: PLACE, quantity: "rows of one page", needed: bytes, limit, device });
        }
        let part = gpu.allocate(PLACE, bytes)?;
        let length = tokens.len() as u64 * row;
        for (index, head) in heads.clone().enumerate() {
            let first = ((sequence * kv_heads + head) * n + tokens.start) as u64 * row;
            gpu.copy(View { buffer: self.buffer, offset: first, bytes: length }, &part, index as u64 * length);
        }
        let head = (tokens.len() * d) as u32;
        let offset = (heads.start as u32).wrapping_mul(head).wrapping_neg();
        Ok(Bound { whole: self.buffer, part: Some(part), offset, sequence: 0, head, first_token: tokens.start })
    }
}
