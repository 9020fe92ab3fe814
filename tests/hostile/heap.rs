//! An allocator that counts: how much a reader holds at most, against the length of what it reads.
#![allow(dead_code, reason = "the fuzz targets use the rest")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// The system's allocator, counted.
pub struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

fn grew(bytes: usize) {
    let live = LIVE.fetch_add(bytes, Relaxed) + bytes;
    MOST.fetch_max(live, Relaxed);
}

// SAFETY: every call goes to the system's allocator as it came; the counters are atomic and allocate nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grew(layout.size());
        // SAFETY: the caller's own promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grew(layout.size());
        // SAFETY: the caller's own promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's own promise.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // As if both were there at once, which they may be.
        grew(size);
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's own promise.
        unsafe { System.realloc(at, layout, size) }
    }
}

/// What `run` returns, and the bytes that were held at most beyond those before it, by all threads.
pub fn most<T>(run: impl FnOnce() -> T) -> (T, usize) {
    let before = LIVE.load(Relaxed);
    MOST.store(before, Relaxed);
    let result = run();
    (result, MOST.load(Relaxed).saturating_sub(before))
}

/// What readers and all that is done with their results may hold: that many times the file's length, and so many bytes more.
pub const READERS: (usize, usize) = (64, 8 << 20);
/// Of archives: what is packed in a byte may be 1032 (deflate's own limit).
pub const ARCHIVES: (usize, usize) = (8 * 1032, 8 << 20);
/// Of calls whose sizes are drawn.
pub const OPTIONS: (usize, usize) = (0, 256 << 20);
