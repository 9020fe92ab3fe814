//! Status words: a kernel that meets an input out of its domain says where, and the wait for its result returns the error.

use std::sync::Arc;

use super::{Buffer, Gpu, View, lock};
use crate::{Error, Result};

/// Status words of one check: one for each quantity a kernel tests.
pub(crate) const WORDS: usize = 4;

/// What a nonzero status word means: `quantity` at an index must be `expected`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Finding {
    pub(crate) quantity: &'static str,
    pub(crate) expected: &'static str,
    pub(crate) found: &'static str,
}

/// A slot of a status page and how to read it. A kernel does `atomicMax(&status[q], 0xffffffff - index)`, so that 0 is "all fine" and the
/// first bad element wins.
pub(crate) struct Check {
    page: Arc<Buffer>,
    offset: u64,
    place: &'static str,
    findings: &'static [Finding],
}

/// The open page: slots are used once, so nothing has to be reset; a page goes when its last check does.
#[derive(Default)]
pub(crate) struct Pages {
    open: Option<(Arc<Buffer>, u64)>,
}

/// Bytes of a page: 256 slots at the common alignment.
const PAGE: u64 = 64 << 10;

impl Gpu {
    /// A status slot for one call of the kernel `place`.
    pub(crate) fn check(&self, place: &'static str, findings: &'static [Finding]) -> Result<Arc<Check>> {
        debug_assert!(findings.len() <= WORDS);
        let stride = self.binding_alignment().max(4 * WORDS as u64);
        loop {
            if let Some((page, next)) = &mut lock(&self.inner.checks).open
                && *next + stride <= PAGE
            {
                let offset = *next;
                *next += stride;
                return Ok(Arc::new(Check { page: page.clone(), offset, place, findings }));
            }
            // Not under the lock: an allocation may wait for the device.
            let page = self.allocate("status", PAGE)?;
            self.clear(&page);
            let known = lock(&self.inner.checks).open.replace((Arc::new(page), 0));
            drop(known);
        }
    }

    /// Lets go of the open page, which goes with its last check.
    pub(super) fn close_page(&self) {
        let known = lock(&self.inner.checks).open.take();
        drop(known);
    }
}

impl Check {
    /// The slot as a kernel's binding.
    pub(crate) fn view(&self) -> View<'_> {
        View { buffer: &self.page, offset: self.offset, bytes: 4 * WORDS as u64 }
    }

    /// The error that the words of the slot tell, if any.
    pub(crate) fn verdict(&self, words: &[u32]) -> Result<()> {
        for (finding, &word) in self.findings.iter().zip(words) {
            if word != 0 {
                return Err(Error::Domain {
                    place: self.place,
                    quantity: finding.quantity,
                    index: (u32::MAX - word) as usize,
                    expected: finding.expected,
                    found: finding.found.to_string(),
                });
            }
        }
        Ok(())
    }
}
