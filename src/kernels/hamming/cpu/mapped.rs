//! A file as memory.
//!
//! # Safety
//! A mapping is a slice whose bytes another program may change, or take away by truncating the file, which Rust does not allow of a slice. It is
//! read as plain bytes, which are valid whatever they are: another program that writes to the file changes distances, no more; one that truncates it ends
//! this program (SIGBUS). [`Index::save`](crate::hamming::Index::save) never does either: it writes another file and renames it. The mapping is private and
//! read-only, and lives as long as the slices that are made of it.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;

use memmap2::{Mmap, MmapOptions};

/// Part of a file.
pub(crate) struct Mapped(Mmap);

impl Mapped {
    /// `length` bytes from `first` on, which must be in the file.
    pub(crate) fn new(file: &File, first: u64, length: usize) -> io::Result<Self> {
        if file.metadata()?.len().checked_sub(first).is_none_or(|rest| rest < length as u64) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // SAFETY: see above.
        let map = unsafe { MmapOptions::new().offset(first).len(length).map(file)? };
        Ok(Self(map))
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}
