//! Distances of a few queries to tiles of codes, for the instruction set that the machine turns out to have.
//!
//! A tile is 64 codes, [bytes of a code][64]: a row of it, one byte of each code, is one cache line. Counts of a vector are those of as many codes,
//! so nothing is added up across a vector, and 31 rows fit in counts of 8 bits.
//!
//! * AVX-512 (BITALG): exclusive or, count, add for 64 codes at once
//! * AVX2: two look-ups, by the low and the high four bits, in tables of the query's own byte: the exclusive or is in the tables. 4 queries x 32 codes
//!   take 19 instructions, where those that count after an exclusive or take 30
//! * NEON: exclusive or, count, add for 16 codes
//! * elsewhere: 8 codes in a word of 64 bits
//!
//! # Safety
//! Two things are unsafe here: instructions that a machine may not have, and pointers into slices. An [`Isa`] is made by [`Isa::available`] alone, of
//! what the machine was found to have. [`scan`] asserts, before it makes a pointer, that its slices hold every tile and every query that it will read; what
//! it writes are arrays of 64 counts of its own. Prefetching needs no memory to be there.
#![allow(unsafe_code)]
// Queries, rows and vectors index registers.
#![allow(clippy::needless_range_loop)]

/// Codes of a tile.
pub(crate) const TILE: usize = 64;
/// Most queries of a call of [`Isa::scan`].
pub(crate) const GROUP: usize = 4;
/// Rows that counts of 8 bits hold.
const ROWS: usize = 31;
/// Bytes ahead of which a single query asks for memory.
const AHEAD: usize = 4096;

/// What [`Isa::scan`] finds for one query: tiles with codes at most `limit` away.
#[derive(Default)]
pub(crate) struct Hits {
    /// Number of the tile in the call, and one bit a code.
    pub(crate) tiles: Vec<(u32, u64)>,
    /// Of every code of those tiles; only those of codes whose bit is set are sure to be right.
    pub(crate) distances: Vec<[u16; TILE]>,
}

impl Hits {
    pub(crate) fn clear(&mut self) {
        self.tiles.clear();
        self.distances.clear();
    }
}

/// An instruction set.
trait Simd {
    /// Counts of 8 bits, one a code.
    type V: Copy;
    /// One byte of `LANES` codes, made ready.
    type Codes: Copy;
    /// One byte of a query, made ready.
    type Query: Copy;
    const LANES: usize;
    /// Bytes that one byte of a query takes when it is prepared.
    const PREPARED: usize;
    /// Whether counts stop at 255.
    const SATURATES: bool;
    unsafe fn zero() -> Self::V;
    unsafe fn codes(from: *const u8) -> Self::Codes;
    unsafe fn query(from: *const u8) -> Self::Query;
    /// Counts, and the bits in which codes and query differ.
    unsafe fn add(counts: Self::V, codes: Self::Codes, query: Self::Query) -> Self::V;
    /// One bit for each count that is at most `limit`.
    unsafe fn at_most(counts: Self::V, limit: u8) -> u64;
    unsafe fn store(to: *mut u8, counts: Self::V);
    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::Simd;

    /// avx512f, avx512bw and avx512bitalg.
    pub(super) struct Avx512;

    impl Simd for Avx512 {
        type V = __m512i;
        type Codes = __m512i;
        type Query = __m512i;
        const LANES: usize = 64;
        /// Four times: a load repeats 32 bits, where 8 bits would take the port that counts.
        const PREPARED: usize = 4;
        const SATURATES: bool = true;
        #[inline(always)]
        unsafe fn zero() -> __m512i {
            unsafe { _mm512_setzero_si512() }
        }
        #[inline(always)]
        unsafe fn codes(from: *const u8) -> __m512i {
            unsafe { _mm512_loadu_si512(from.cast()) }
        }
        #[inline(always)]
        unsafe fn query(from: *const u8) -> __m512i {
            unsafe { _mm512_set1_epi32(from.cast::<i32>().read_unaligned()) }
        }
        #[inline(always)]
        unsafe fn add(counts: __m512i, codes: __m512i, query: __m512i) -> __m512i {
            unsafe { _mm512_adds_epu8(counts, _mm512_popcnt_epi8(_mm512_xor_si512(codes, query))) }
        }
        #[inline(always)]
        unsafe fn at_most(counts: __m512i, limit: u8) -> u64 {
            unsafe { _mm512_cmple_epu8_mask(counts, _mm512_set1_epi8(limit as i8)) }
        }
        #[inline(always)]
        unsafe fn store(to: *mut u8, counts: __m512i) {
            unsafe { _mm512_storeu_si512(to.cast(), counts) }
        }
        #[inline(always)]
        unsafe fn prefetch(at: *const u8) {
            unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
        }
    }

    /// avx2.
    pub(super) struct Avx2;

    impl Simd for Avx2 {
        type V = __m256i;
        type Codes = [__m256i; 2];
        type Query = [__m256i; 2];
        const LANES: usize = 32;
        /// Two tables of 16 entries: see [`super::tables`].
        const PREPARED: usize = 32;
        const SATURATES: bool = true;
        #[inline(always)]
        unsafe fn zero() -> __m256i {
            unsafe { _mm256_setzero_si256() }
        }
        #[inline(always)]
        unsafe fn codes(from: *const u8) -> [__m256i; 2] {
            unsafe {
                let (codes, low) = (_mm256_loadu_si256(from.cast()), _mm256_set1_epi8(15));
                [_mm256_and_si256(codes, low), _mm256_and_si256(_mm256_srli_epi16::<4>(codes), low)]
            }
        }
        #[inline(always)]
        unsafe fn query(from: *const u8) -> [__m256i; 2] {
            unsafe { [0, 16].map(|at| _mm256_broadcastsi128_si256(_mm_loadu_si128(from.add(at).cast()))) }
        }
        #[inline(always)]
        unsafe fn add(counts: __m256i, codes: [__m256i; 2], query: [__m256i; 2]) -> __m256i {
            unsafe {
                let low = _mm256_shuffle_epi8(query[0], codes[0]);
                let high = _mm256_shuffle_epi8(query[1], codes[1]);
                _mm256_adds_epu8(_mm256_adds_epu8(counts, low), high)
            }
        }
        #[inline(always)]
        unsafe fn at_most(counts: __m256i, limit: u8) -> u64 {
            unsafe {
                let limit = _mm256_set1_epi8(limit as i8);
                let is = _mm256_cmpeq_epi8(_mm256_min_epu8(counts, limit), counts);
                u64::from(_mm256_movemask_epi8(is) as u32)
            }
        }
        #[inline(always)]
        unsafe fn store(to: *mut u8, counts: __m256i) {
            unsafe { _mm256_storeu_si256(to.cast(), counts) }
        }
        #[inline(always)]
        unsafe fn prefetch(at: *const u8) {
            unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
        }
    }
}

#[cfg(target_arch = "aarch64")]
mod arm {
    use std::arch::aarch64::*;

    use super::Simd;

    /// What every 64-bit ARM has.
    pub(super) struct Neon;

    impl Simd for Neon {
        type V = uint8x16_t;
        type Codes = uint8x16_t;
        type Query = uint8x16_t;
        const LANES: usize = 16;
        const PREPARED: usize = 1;
        const SATURATES: bool = true;
        #[inline(always)]
        unsafe fn zero() -> uint8x16_t {
            unsafe { vdupq_n_u8(0) }
        }
        #[inline(always)]
        unsafe fn codes(from: *const u8) -> uint8x16_t {
            unsafe { vld1q_u8(from) }
        }
        #[inline(always)]
        unsafe fn query(from: *const u8) -> uint8x16_t {
            unsafe { vld1q_dup_u8(from) }
        }
        #[inline(always)]
        unsafe fn add(counts: uint8x16_t, codes: uint8x16_t, query: uint8x16_t) -> uint8x16_t {
            unsafe { vqaddq_u8(counts, vcntq_u8(veorq_u8(codes, query))) }
        }
        #[inline(always)]
        unsafe fn at_most(counts: uint8x16_t, limit: u8) -> u64 {
            const BITS: [u8; 16] = [1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128];
            unsafe {
                let is = vandq_u8(vcleq_u8(counts, vdupq_n_u8(limit)), vld1q_u8(BITS.as_ptr()));
                u64::from(vaddv_u8(vget_low_u8(is))) | u64::from(vaddv_u8(vget_high_u8(is))) << 8
            }
        }
        #[inline(always)]
        unsafe fn store(to: *mut u8, counts: uint8x16_t) {
            unsafe { vst1q_u8(to, counts) }
        }
    }
}

/// Eight codes in a word, for every other machine.
struct Portable;

const ONES: u64 = u64::MAX / 255;

impl Simd for Portable {
    type V = u64;
    type Codes = u64;
    type Query = u64;
    const LANES: usize = 8;
    const PREPARED: usize = 1;
    const SATURATES: bool = false;
    #[inline(always)]
    unsafe fn zero() -> u64 {
        0
    }
    #[inline(always)]
    unsafe fn codes(from: *const u8) -> u64 {
        unsafe { from.cast::<u64>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn query(from: *const u8) -> u64 {
        u64::from(unsafe { *from }) * ONES
    }
    #[inline(always)]
    unsafe fn add(counts: u64, codes: u64, query: u64) -> u64 {
        let bits = codes ^ query;
        let pairs = bits - (bits >> 1 & (0x55 * ONES));
        let fours = (pairs & (0x33 * ONES)) + (pairs >> 2 & (0x33 * ONES));
        counts + ((fours + (fours >> 4)) & (0x0f * ONES))
    }
    #[inline(always)]
    unsafe fn at_most(counts: u64, limit: u8) -> u64 {
        let is = |(lane, count): (usize, u8)| u64::from(count <= limit) << lane;
        counts.to_ne_bytes().into_iter().enumerate().map(is).sum()
    }
    #[inline(always)]
    unsafe fn store(to: *mut u8, counts: u64) {
        unsafe { to.cast::<u64>().write_unaligned(counts) }
    }
}

/// For a byte of a query, the bits in which a code differs from it: by the code's low four bits, then by its high four.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn tables(byte: u8) -> [u8; 32] {
    std::array::from_fn(|at| {
        let of = if at < 16 { byte & 15 } else { byte >> 4 };
        (of ^ (at as u8 & 15)).count_ones() as u8
    })
}

/// An instruction set that this machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Isa(Kind);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "aarch64")]
    Neon,
    Portable,
}

impl Isa {
    /// Every one that this machine has, the best first.
    pub(crate) fn available() -> Vec<Self> {
        let mut found = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512bitalg")
            {
                found.push(Self(Kind::Avx512));
            }
            if is_x86_feature_detected!("avx2") {
                found.push(Self(Kind::Avx2));
            }
        }
        #[cfg(target_arch = "aarch64")]
        found.push(Self(Kind::Neon));
        found.push(Self(Kind::Portable));
        found
    }

    /// The best that this machine has.
    pub(crate) fn best() -> Self {
        Self::available()[0]
    }

    /// Appends a query's bytes as [`Isa::scan`] reads them.
    pub(crate) fn prepare(self, query: &[u8], to: &mut Vec<u8>) {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => query.iter().for_each(|&byte| to.extend([byte; x86::Avx512::PREPARED])),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => query.iter().for_each(|&byte| to.extend(tables(byte))),
            #[cfg(target_arch = "aarch64")]
            Kind::Neon => to.extend_from_slice(query),
            Kind::Portable => to.extend_from_slice(query),
        }
    }

    /// Bytes of a prepared query whose code has `bytes`.
    pub(crate) fn prepared(self, bytes: usize) -> usize {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => bytes * x86::Avx512::PREPARED,
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => bytes * x86::Avx2::PREPARED,
            #[cfg(target_arch = "aarch64")]
            Kind::Neon => bytes * arm::Neon::PREPARED,
            Kind::Portable => bytes * Portable::PREPARED,
        }
    }

    /// Finds codes at most `limits[q]` away from query q, of up to [`GROUP`] prepared one after the other; a negative limit finds none.
    ///
    /// * `tiles`: [tile][byte][64]; `admitted`: one word a tile, one bit a code that may be found
    /// * `hits`: one a query, appended to
    pub(crate) fn scan(
        self,
        tiles: &[u8],
        bytes: usize,
        admitted: &[u64],
        queries: &[u8],
        limits: &[i32],
        hits: &mut [Hits],
    ) {
        assert!((1..=GROUP).contains(&limits.len()) && hits.len() == limits.len() && bytes > 0);
        assert!(tiles.len() == admitted.len() * bytes * TILE && queries.len() == limits.len() * self.prepared(bytes));
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => {
                #[target_feature(enable = "avx512f,avx512bw,avx512bitalg")]
                fn run(t: &[u8], b: usize, a: &[u64], q: &[u8], l: &[i32], h: &mut [Hits]) {
                    unsafe { by_queries::<x86::Avx512>(t, b, a, q, l, h) }
                }
                // SAFETY: the machine has it.
                unsafe { run(tiles, bytes, admitted, queries, limits, hits) }
            }
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => {
                #[target_feature(enable = "avx2")]
                fn run(t: &[u8], b: usize, a: &[u64], q: &[u8], l: &[i32], h: &mut [Hits]) {
                    unsafe { by_queries::<x86::Avx2>(t, b, a, q, l, h) }
                }
                // SAFETY: the machine has it.
                unsafe { run(tiles, bytes, admitted, queries, limits, hits) }
            }
            #[cfg(target_arch = "aarch64")]
            // SAFETY: every such machine has it.
            Kind::Neon => unsafe { by_queries::<arm::Neon>(tiles, bytes, admitted, queries, limits, hits) },
            // SAFETY: it needs no instructions of its own.
            Kind::Portable => unsafe { by_queries::<Portable>(tiles, bytes, admitted, queries, limits, hits) },
        }
    }
}

#[inline(always)]
unsafe fn by_queries<S: Simd>(
    tiles: &[u8],
    bytes: usize,
    admitted: &[u64],
    queries: &[u8],
    limits: &[i32],
    hits: &mut [Hits],
) {
    unsafe {
        match limits.len() {
            1 => scan::<S, 1>(tiles, bytes, admitted, queries, limits, hits),
            2 => scan::<S, 2>(tiles, bytes, admitted, queries, limits, hits),
            3 => scan::<S, 3>(tiles, bytes, admitted, queries, limits, hits),
            _ => scan::<S, 4>(tiles, bytes, admitted, queries, limits, hits),
        }
    }
}

/// What [`Isa::scan`] says, for Q queries.
#[inline(always)]
unsafe fn scan<S: Simd, const Q: usize>(
    tiles: &[u8],
    bytes: usize,
    admitted: &[u64],
    queries: &[u8],
    limits: &[i32],
    hits: &mut [Hits],
) {
    assert!(limits.len() == Q && hits.len() == Q && queries.len() >= Q * bytes * S::PREPARED);
    assert!(tiles.len() >= admitted.len() * bytes * TILE);
    // Counts of 8 bits do for narrow codes, and for a limit below where they stop.
    let narrow = bytes <= ROWS || S::SATURATES && limits.iter().all(|&limit| limit < 255);
    for (number, &admitted) in admitted.iter().enumerate() {
        if admitted == 0 {
            continue;
        }
        // SAFETY: both are within what was asserted.
        unsafe {
            let tile = tiles.as_ptr().add(number * bytes * TILE);
            if narrow {
                narrow_tile::<S, Q>(tile, bytes, admitted, queries.as_ptr(), limits, hits, number as u32);
            } else {
                wide_tile::<S, Q>(tile, bytes, admitted, queries.as_ptr(), limits, hits, number as u32);
            }
        }
    }
}

/// Vectors of a tile, at most.
const MOST: usize = 8;

/// Counts of rows `first..end` of a tile.
#[inline(always)]
unsafe fn count<S: Simd, const Q: usize>(
    tile: *const u8,
    bytes: usize,
    first: usize,
    end: usize,
    queries: *const u8,
) -> [[S::V; MOST]; Q] {
    unsafe {
        let mut counts = [[S::zero(); MOST]; Q];
        for row in first..end {
            if Q == 1 {
                S::prefetch(tile.wrapping_add(row * TILE + AHEAD));
            }
            let queries: [S::Query; Q] =
                std::array::from_fn(|q| S::query(queries.add((q * bytes + row) * S::PREPARED)));
            for v in 0..TILE / S::LANES {
                let codes = S::codes(tile.add(row * TILE + v * S::LANES));
                for q in 0..Q {
                    counts[q][v] = S::add(counts[q][v], codes, queries[q]);
                }
            }
        }
        counts
    }
}

#[inline(always)]
unsafe fn narrow_tile<S: Simd, const Q: usize>(
    tile: *const u8,
    bytes: usize,
    admitted: u64,
    queries: *const u8,
    limits: &[i32],
    hits: &mut [Hits],
    number: u32,
) {
    unsafe {
        let counts = count::<S, Q>(tile, bytes, 0, bytes, queries);
        for q in 0..Q {
            let mut found = 0;
            for v in 0..TILE / S::LANES {
                found |= S::at_most(counts[q][v], limits[q].clamp(0, 255) as u8) << (v * S::LANES);
            }
            if found & admitted != 0 && limits[q] >= 0 {
                let mut distances = [0u8; TILE];
                for v in 0..TILE / S::LANES {
                    S::store(distances.as_mut_ptr().add(v * S::LANES), counts[q][v]);
                }
                hits[q].tiles.push((number, found & admitted));
                hits[q].distances.push(distances.map(u16::from));
            }
        }
    }
}

#[inline(always)]
unsafe fn wide_tile<S: Simd, const Q: usize>(
    tile: *const u8,
    bytes: usize,
    admitted: u64,
    queries: *const u8,
    limits: &[i32],
    hits: &mut [Hits],
    number: u32,
) {
    unsafe {
        let mut sums = [[0u16; TILE]; Q];
        for first in (0..bytes).step_by(ROWS) {
            let counts = count::<S, Q>(tile, bytes, first, bytes.min(first + ROWS), queries);
            for q in 0..Q {
                let mut part = [0u8; TILE];
                for v in 0..TILE / S::LANES {
                    S::store(part.as_mut_ptr().add(v * S::LANES), counts[q][v]);
                }
                for (sum, part) in sums[q].iter_mut().zip(part) {
                    *sum += u16::from(part);
                }
            }
        }
        for q in 0..Q {
            // Most tiles have none: the smallest says so with few instructions on every machine.
            let smallest = sums[q].iter().fold(u16::MAX, |least, &sum| least.min(sum));
            if i32::from(smallest) > limits[q] {
                continue;
            }
            let is = |(code, &sum): (usize, &u16)| u64::from(i32::from(sum) <= limits[q]) << code;
            let found = sums[q].iter().enumerate().map(is).fold(0, |found, bit| found | bit) & admitted;
            if found != 0 {
                hits[q].tiles.push((number, found));
                hits[q].distances.push(sums[q]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every instruction set of this machine against bits counted one by one, at every limit that matters.
    #[test]
    fn every_instruction_set_counts_alike() {
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 56) as u8
        };
        for bytes in [1, 2, 3, 8, 16, 31, 32, 33, 62, 63, 128, 1024] {
            let count = 3;
            let mut tiles: Vec<u8> = (0..count * bytes * TILE).map(|_| next()).collect();
            let queries: Vec<Vec<u8>> = (0..GROUP).map(|_| (0..bytes).map(|_| next()).collect()).collect();
            // One code is a query, one its complement: distances 0 and all.
            for (row, byte) in queries[0].iter().enumerate() {
                tiles[row * TILE + 5] = *byte;
                tiles[bytes * TILE + row * TILE + 63] = !*byte;
            }
            let admitted = [u64::MAX, 0xffff_0000_ffff_fff1 | 1 << 63, 0];
            let distance = |query: &[u8], tile: usize, code: usize| -> u32 {
                let rows = query.iter().enumerate();
                rows.map(|(row, byte)| (byte ^ tiles[(tile * bytes + row) * TILE + code]).count_ones()).sum()
            };
            let bits = 8 * bytes as i32;
            for isa in Isa::available() {
                for number in 1..=GROUP {
                    for limit in [-1, 0, bits / 2, 253, 254, 255, 256, bits - 1, bits, i32::MAX] {
                        let mut prepared = Vec::new();
                        queries[..number].iter().for_each(|query| isa.prepare(query, &mut prepared));
                        let mut hits: Vec<Hits> = (0..number).map(|_| Hits::default()).collect();
                        isa.scan(&tiles, bytes, &admitted, &prepared, &vec![limit; number], &mut hits);
                        for (query, hits) in queries.iter().zip(&hits) {
                            let mut seen = [0u64; 3];
                            for (&(tile, found), distances) in hits.tiles.iter().zip(&hits.distances) {
                                seen[tile as usize] = found;
                                for code in (0..TILE).filter(|code| found >> code & 1 == 1) {
                                    let expected = distance(query, tile as usize, code);
                                    assert_eq!(u32::from(distances[code]), expected, "{isa:?} {bytes} {limit}");
                                }
                            }
                            for tile in 0..count {
                                let within = |code: &usize| distance(query, tile, *code) as i32 <= limit;
                                let expected = (0..TILE).filter(within).fold(0u64, |all, code| all | 1 << code);
                                assert_eq!(seen[tile], expected & admitted[tile], "{isa:?} {bytes} {limit} {tile}");
                            }
                        }
                    }
                }
            }
        }
    }
}
