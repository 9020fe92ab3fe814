//! The smallest of a stream: what a search keeps of each query. Keys are distance << 32 | id, and come in order of ids.

use super::simd::TILE;

/// What takes codes that were found near a query.
pub(super) trait Collect {
    /// What a distance must be at most to be of use; none if negative.
    fn limit(&self) -> i32;
    /// Codes of a tile, whose first id is `first`: one bit of `found` for each that may be of use.
    fn take(&mut self, first: u32, found: u64, distances: &[u16; TILE]);
}

/// Calls `each` with (index, distance) of every code found.
#[inline(always)]
fn each_found(mut found: u64, distances: &[u16; TILE], mut each: impl FnMut(u32, u16)) {
    while found != 0 {
        let code = found.trailing_zeros();
        each(code, distances[code as usize]);
        found &= found - 1;
    }
}

/// The k nearest. A histogram of what was kept gives the exact distance beyond which nothing is of use, so a code costs a comparison, and of N codes
/// in random order about k (1 + ln(N / k)) are kept at all. Of ties the first ids win: a code at the k-th distance is no use once there are k.
pub(super) struct Nearest {
    k: usize,
    /// Codes nearer than this are kept: at the start, all.
    below: usize,
    /// Of those kept: how many at each distance, and how many at most `below` away.
    histogram: Vec<u32>,
    within: usize,
    keys: Vec<u64>,
}

impl Nearest {
    pub(super) fn new(k: usize, bits: usize) -> Self {
        Self { k, below: bits + 1, histogram: vec![0; bits + 2], within: 0, keys: Vec::new() }
    }

    /// At most the k nearest, in order.
    pub(super) fn finish(mut self) -> Vec<u64> {
        self.compact();
        // Those kept are in order of ids.
        sort(&mut self.keys, self.histogram.len());
        self.keys.truncate(self.k);
        self.keys
    }

    fn compact(&mut self) {
        let below = self.below as u64;
        self.keys.retain(|key| key >> 32 <= below);
    }
}

impl Collect for Nearest {
    fn limit(&self) -> i32 {
        self.below as i32 - 1
    }

    fn take(&mut self, first: u32, found: u64, distances: &[u16; TILE]) {
        each_found(found, distances, |code, distance| {
            if usize::from(distance) >= self.below {
                return;
            }
            self.keys.push(u64::from(distance) << 32 | u64::from(first + code));
            self.histogram[usize::from(distance)] += 1;
            self.within += 1;
            // As long as k are nearer than `below` alone. No distance is counted twice: it only falls.
            while self.within - self.histogram[self.below] as usize >= self.k {
                self.within -= self.histogram[self.below] as usize;
                self.below -= 1;
            }
        });
        // Fewer than 2 k of them are of use, so this halves them at least: linear in all.
        if self.keys.len() >= 4 * self.k + 1024 {
            self.compact();
        }
    }
}

/// All within a radius.
pub(super) struct Within {
    pub(super) radius: i32,
    pub(super) keys: Vec<u64>,
}

impl Collect for Within {
    fn limit(&self) -> i32 {
        self.radius
    }

    fn take(&mut self, first: u32, found: u64, distances: &[u16; TILE]) {
        each_found(found, distances, |code, distance| {
            self.keys.push(u64::from(distance) << 32 | u64::from(first + code));
        });
    }
}

/// Sorts keys that are in order of ids; distances are less than `distances`.
pub(super) fn sort(keys: &mut Vec<u64>, distances: usize) {
    if keys.len() < 4 * distances {
        keys.sort_unstable();
        return;
    }
    let mut places = vec![0usize; distances + 1];
    keys.iter().for_each(|key| places[(key >> 32) as usize + 1] += 1);
    (1..places.len()).for_each(|distance| places[distance] += places[distance - 1]);
    let mut sorted = vec![0; keys.len()];
    for &key in keys.iter() {
        let place = &mut places[(key >> 32) as usize];
        sorted[*place] = key;
        *place += 1;
    }
    *keys = sorted;
}

/// The k smallest of keys whose distance is any u32.
pub(super) struct Smallest {
    k: usize,
    /// Keys below this are kept.
    pub(super) below: u64,
    keys: Vec<u64>,
}

impl Smallest {
    pub(super) fn new(k: usize) -> Self {
        Self { k, below: u64::MAX, keys: Vec::new() }
    }

    #[inline(always)]
    pub(super) fn push(&mut self, distance: u32, id: u32) {
        let key = u64::from(distance) << 32 | u64::from(id);
        if key < self.below {
            self.keys.push(key);
            if self.keys.len() >= 2 * self.k + 1024 {
                self.compact();
            }
        }
    }

    fn compact(&mut self) {
        if self.keys.len() > self.k {
            self.below = *self.keys.select_nth_unstable(self.k - 1).1 + 1;
            self.keys.truncate(self.k);
        }
    }

    /// At most the k smallest, in order.
    pub(super) fn finish(mut self) -> Vec<u64> {
        self.compact();
        self.keys.sort_unstable();
        self.keys
    }
}
