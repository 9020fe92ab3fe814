//! [`SearchOptions`], [`Mask`].

use std::sync::Arc;

use crate::{Error, Result};

/// Which ids a search may return: one bit an id. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mask {
    words: Arc<Vec<u32>>,
    len: usize,
    count: usize,
}

impl Mask {
    /// From one flag an id.
    pub fn new(allowed: impl IntoIterator<Item = bool>) -> Self {
        let (mut words, mut len) = (Vec::new(), 0);
        for allow in allowed {
            if len % 32 == 0 {
                words.push(0);
            }
            words[len / 32] |= u32::from(allow) << (len % 32);
            len += 1;
        }
        Self::of(words, len)
    }

    /// From the ids that are allowed, of `len`, counted from the index's `first_id`.
    ///
    /// # Errors
    /// [`Error::Domain`] names the first id that is `len` or more.
    pub fn of_ids(len: usize, ids: &[u32]) -> Result<Self> {
        let mut words = vec![0; len.div_ceil(32)];
        for (index, &id) in ids.iter().enumerate() {
            if id as usize >= len {
                return Err(Error::Domain {
                    place: "Mask",
                    quantity: "ids",
                    index,
                    expected: "less than the number of ids",
                    found: id.to_string(),
                });
            }
            words[id as usize / 32] |= 1 << (id % 32);
        }
        Ok(Self::of(words, len))
    }

    pub(crate) fn of(words: Vec<u32>, len: usize) -> Self {
        let count = words.iter().map(|word| word.count_ones() as usize).sum();
        Self { words: words.into(), len, count }
    }

    /// Number of ids it speaks of.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it speaks of none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of ids it allows.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Whether it allows `id`.
    pub fn allows(&self, id: u32) -> bool {
        (id as usize) < self.len && self.words[id as usize / 32] >> (id % 32) & 1 == 1
    }

    /// Id i is bit i % 32 of word i / 32; bits beyond are 0.
    pub(crate) fn words(&self) -> &[u32] {
        &self.words
    }
}

/// How to search: how many neighbours, among which.
#[derive(Debug, Clone)]
pub struct SearchOptions {
    pub(crate) k: usize,
    pub(crate) allowed: Option<Mask>,
}

impl SearchOptions {
    /// The `k` nearest, or all that there are if they are fewer.
    pub fn new(k: usize) -> Self {
        Self { k, allowed: None }
    }

    /// Only ids that `mask` allows, which must speak of as many as [`Index::ids`](super::Index::ids).
    pub fn allowed(mut self, mask: &Mask) -> Self {
        self.allowed = Some(mask.clone());
        self
    }
}

/// In what precision queries that are not binary are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// f32.
    Float,
    /// A sign and a magnitude of 3 bits, of the query's largest: four Hamming distances a code, summed in integers, so the same on every device.
    Int4,
}
