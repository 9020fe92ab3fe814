//! The inner loops of attention, for the instruction set that the machine turns out to have.
//!
//! * prefill: [`Isa::product`], C (rows x columns) (+)= A B with B packed in panels by [`Isa::pack_keys`] and [`Isa::pack_values`]: tiles of
//!   12 x 32 (AVX-512), 6 x 16 (AVX2), 8 x 8 (NEON), 4 x 8 (elsewhere) stay in registers; and [`Isa::softmax`]
//! * decode: [`Isa::dots`] and [`Isa::weighted_sum`], on keys and values where they lie
//!
//! # Safety
//! Two things are unsafe here: instructions that a machine may not have, and pointers into slices. An [`Isa`] is made by [`Isa::available`] alone,
//! of what the machine was found to have. Each function below asserts, before it makes a pointer, that its slices hold everything it will touch.
#![allow(unsafe_code)]
// Rows, columns and keys index registers and memory alike.
#![allow(clippy::needless_range_loop)]

use half::f16;

#[cfg(target_arch = "aarch64")]
use super::simd::Neon;
#[cfg(target_arch = "x86_64")]
use super::simd::{Avx2, Avx512};
use super::simd::{Portable, Simd};

/// What a masked key's score is at most: as `crate::attention::NO_KEY`.
const NO_KEY: f32 = -1e30;
/// Where the power of two of exp has the exponent of 0.
const LOWEST: f32 = -88.0;
/// Rows of a call of [`Isa::softmax`], at most.
pub(crate) const SOFTMAX_ROWS: usize = 64;
/// Elements of scratch for [`Isa::pack_keys`].
pub(crate) const PACK: usize = 16 * 256;
const LANE: [f32; 16] = [0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.];
/// Keys between two requests for memory ahead. Decoding 4096 keys of 8 heads of 128 on one thread, where a plain read has 25 GB/s: 19 GB/s with
/// requests every 4 keys, 10 with 8, 16 or none (in bursts they fill the buffers that the loop's own reads need).
const AHEAD: usize = 4;

/// What queries, keys and values are stored as.
pub(crate) trait Stored: Copy + Default + Send + Sync + 'static {
    /// Vectors of this type are loaded as f32.
    ///
    /// # Safety
    /// That of [`Simd`]; `S::LANES` elements at `from`.
    #[doc(hidden)]
    unsafe fn load<S: Simd>(from: *const Self) -> S::V;
    /// The elements, if they are f32.
    fn single(elements: &[Self]) -> Option<&[f32]>;
    /// The nearest of its kind.
    fn nearest(x: f32) -> Self;
    /// The bits of the least f32 whose nearest is infinite; those of larger ones and of NaN are larger.
    const INFINITE: u32;
}

impl Stored for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const f32) -> S::V {
        unsafe { S::load(from) }
    }
    #[inline(always)]
    fn single(elements: &[f32]) -> Option<&[f32]> {
        Some(elements)
    }
    #[inline(always)]
    fn nearest(x: f32) -> f32 {
        x
    }
    const INFINITE: u32 = 0x7f80_0000;
}

impl Stored for f16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const f16) -> S::V {
        unsafe { S::load_half(from) }
    }
    #[inline(always)]
    fn single(_: &[f16]) -> Option<&[f32]> {
        None
    }
    #[inline(always)]
    fn nearest(x: f32) -> f16 {
        f16::from_f32(x)
    }
    // 65520
    const INFINITE: u32 = 0x477f_f000;
}

/// The first `count` elements at `from`, then zeros.
#[inline(always)]
unsafe fn load_part<S: Simd, T: Stored>(from: *const T, count: usize) -> S::V {
    let mut part = [T::default(); 16];
    unsafe {
        std::ptr::copy_nonoverlapping(from, part.as_mut_ptr(), count.min(S::LANES));
        T::load::<S>(part.as_ptr())
    }
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

macro_rules! for_every_isa {
    ($(
        $(#[$doc:meta])*
        fn $name:ident $(<$t:ident>)? ($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)?;
    )*) => {
        impl Isa {
            $(
                $(#[$doc])*
                #[allow(clippy::too_many_arguments)]
                pub(crate) fn $name $(<$t: Stored>)? (self, $($argument: $type),*) $(-> $result)? {
                    match self.0 {
                        #[cfg(target_arch = "x86_64")]
                        Kind::Avx512 => {
                            #[target_feature(enable = "avx512f,avx2,fma,f16c")]
                            fn run $(<$t: Stored>)? ($($argument: $type),*) $(-> $result)? {
                                unsafe { $name::<Avx512 $(, $t)?>($($argument),*) }
                            }
                            // SAFETY: the machine has it, or there were no such Isa.
                            unsafe { run($($argument),*) }
                        }
                        #[cfg(target_arch = "x86_64")]
                        Kind::Avx2 => {
                            #[target_feature(enable = "avx2,fma,f16c")]
                            fn run $(<$t: Stored>)? ($($argument: $type),*) $(-> $result)? {
                                unsafe { $name::<Avx2 $(, $t)?>($($argument),*) }
                            }
                            // SAFETY: as above.
                            unsafe { run($($argument),*) }
                        }
                        #[cfg(target_arch = "aarch64")]
                        // SAFETY: every such machine has it.
                        Kind::Neon => unsafe { $name::<Neon $(, $t)?>($($argument),*) },
                        // SAFETY: it is plain Rust.
                        Kind::Portable => unsafe { $name::<Portable $(, $t)?>($($argument),*) },
                    }
                }
            )*
        }
    };
}

pub(crate) mod codes;

for_every_isa! {
    /// Lanes of a vector, and the columns of a panel are two vectors.
    fn lanes() -> usize;
    /// `to` = `scale` * `from`; false if an element is not finite.
    fn pack_row<T>(from: &[T], scale: f32, to: &mut [f32]) -> bool;
    /// `to` = `scale` * `from`, as far as `to` goes; false if an element of `to` is not finite.
    fn write_row<T>(from: &[f32], scale: f32, to: &mut [T]) -> bool;
    /// `keys` rows of `d` as columns: panels of two vectors of keys, each (d, width), the last one vector wide where that suffices; lanes of
    /// keys that are not there hold zeros. `rows` is scratch. Returns the largest magnitude, which is not finite if one is not.
    fn pack_keys<T>(from: &[T], keys: usize, d: usize, to: &mut [f32], rows: &mut [f32; PACK]) -> f32;
    /// The largest magnitude, which is not finite if one is not.
    fn largest(values: &[f32]) -> f32;
    /// `keys` rows of `d` in panels of columns, each (keys, width) as [`Isa::pack_keys`] has them. False if an element is not finite.
    fn pack_values<T>(from: &[T], keys: usize, d: usize, to: &mut [f32]) -> bool;
    /// `c` = `a` b, or `c` += `a` b: `rows` of `k` elements, `lda` apart, times `columns` columns in panels that begin `panel` elements apart, whose first
    /// `skip` rows do not count. Of `c`, whole vectors are written. Every element is summed in the order of k, whatever the size.
    fn product(
        rows: usize, k: usize, columns: usize, a: &[f32], lda: usize, b: &[f32], panel: usize, skip: usize, c: &mut [f32],
        ldc: usize, add: bool,
    );
    /// One step of the online softmax over `rows` rows of `columns` scores (whole vectors), `ld` apart: of those outside of `seen` and those at most
    /// -1e30 the weight is 0. Replaces scores by weights exp(s - m), m (the largest as yet, -1e30 before any) and l (the sum of weights) by the
    /// new ones, and sets `fade` to the factor of what was summed before. A score that is not a number makes l so.
    fn softmax(
        rows: usize, columns: usize, s: &mut [f32], ld: usize, seen: &[(u32, u32)], m: &mut [f32], l: &mut [f32],
        fade: &mut [f32; SOFTMAX_ROWS],
    );
    /// Row r of `c` (of `columns`, whole vectors) times `by[r]`.
    fn scale_rows(rows: usize, columns: usize, c: &mut [f32], ld: usize, by: &[f32]);
    /// s = cap tanh(s / cap).
    fn soft_cap(s: &mut [f32], cap: f32);
    /// Products of `rows` rows (`ldq` apart, zeros from d up to a whole vector) with `keys` keys of d elements: s (rows, ld). False if one is not
    /// finite.
    fn dots<T>(k: &[T], keys: usize, d: usize, q: &[f32], rows: usize, ldq: usize, s: &mut [f32], ld: usize, ahead: &[T]) -> bool;
    /// `o` (rows, ldo) += `p` (rows, ldp; `keys` each) times values of d elements; of `o` whole vectors are written.
    fn weighted_sum<T>(v: &[T], keys: usize, d: usize, p: &[f32], rows: usize, ldp: usize, o: &mut [f32], ldo: usize, ahead: &[T]);
}

impl Isa {
    /// All that this machine has, the best first.
    pub(crate) fn available() -> impl Iterator<Item = Self> {
        let kinds = [
            #[cfg(target_arch = "x86_64")]
            (Kind::Avx512, is_x86_feature_detected!("avx512f") && avx2()),
            #[cfg(target_arch = "x86_64")]
            (Kind::Avx2, avx2()),
            #[cfg(target_arch = "aarch64")]
            (Kind::Neon, true),
            (Kind::Portable, true),
        ];
        kinds.into_iter().filter(|(_, there)| *there).map(|(kind, _)| Self(kind))
    }

    /// The best of this machine.
    pub(crate) fn best() -> Self {
        Self::available().next().unwrap_or(Self(Kind::Portable))
    }

    /// `count` rounded up to whole vectors.
    pub(crate) fn whole(self, count: usize) -> usize {
        count.next_multiple_of(self.lanes())
    }

    /// `to` (keys, columns) of the best panel, in columns.
    pub(crate) fn panel(self) -> usize {
        2 * self.lanes()
    }
}

#[cfg(target_arch = "x86_64")]
fn avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

#[inline(always)]
unsafe fn lanes<S: Simd>() -> usize {
    S::LANES
}

/// The largest magnitude: among bits, that of an infinity or a NaN is above all others.
#[inline(always)]
fn magnitude(values: &[f32]) -> f32 {
    f32::from_bits(values.iter().fold(0, |largest: u32, x| largest.max(x.to_bits() & 0x7fff_ffff)))
}

#[inline(always)]
pub(super) fn finite(values: &[f32]) -> bool {
    magnitude(values).is_finite()
}

#[inline(always)]
unsafe fn largest<S: Simd>(values: &[f32]) -> f32 {
    magnitude(values)
}

/// exp(x) for x <= 88 within 2 ulp; 0 below -87.68.
#[inline(always)]
unsafe fn exp<S: Simd>(x: S::V) -> S::V {
    let [e] = unsafe { exps::<S, 1>([x]) };
    e
}

/// [`exp`] of several vectors, step by step: the steps of one wait for each other.
#[inline(always)]
unsafe fn exps<S: Simd, const N: usize>(x: [S::V; N]) -> [S::V; N] {
    unsafe {
        // The lowest bits of x / ln 2 + this are the nearest integer n and the bias of an exponent.
        let magic = S::splat(12_582_912.0 + 127.0);
        let (mut t, mut r, mut p) = (x, x, [S::splat(1.987_569_1e-4); N]);
        for i in 0..N {
            // Down to where the exponent is 0, and so the power of two; what is not a number stays.
            let x = S::max(S::splat(LOWEST), x[i]);
            t[i] = S::fma(x, S::splat(std::f32::consts::LOG2_E), magic);
            let n = S::sub(t[i], magic);
            // ln 2 in two parts, the first of so few bits that n times it is exact.
            r[i] = S::fma(n, S::splat(-0.693_359_4), x);
            r[i] = S::fma(n, S::splat(2.121_944_4e-4), r[i]);
        }
        // e^r = 1 + r + r^2 p(r), |r| <= ln 2 / 2 (Cephes, expf).
        for coefficient in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5, 1.0, 1.0] {
            for i in 0..N {
                p[i] = S::fma(p[i], r[i], S::splat(coefficient));
            }
        }
        for i in 0..N {
            p[i] = S::mul(p[i], S::into_exponent(t[i]));
        }
        p
    }
}

#[inline(always)]
unsafe fn pack_row<S: Simd, T: Stored>(from: &[T], scale: f32, to: &mut [f32]) -> bool {
    assert!(to.len() >= from.len());
    let (count, whole) = (from.len(), from.len() / S::LANES * S::LANES);
    let mut fine = true;
    let mut part = [0.0; 16];
    // SAFETY: whole vectors of both, then fewer elements by way of `part`.
    unsafe {
        // 0 x is 0 for finite x alone.
        let (by, zero) = (S::splat(scale), S::splat(0.0));
        let mut test = zero;
        for i in (0..whole).step_by(S::LANES) {
            let x = T::load::<S>(from.as_ptr().add(i));
            test = S::fma(x, zero, test);
            S::store(to.as_mut_ptr().add(i), S::mul(x, by));
        }
        if whole < count {
            let x = load_part::<S, T>(from.as_ptr().add(whole), count - whole);
            test = S::fma(x, zero, test);
            S::store(part.as_mut_ptr(), S::mul(x, by));
            to[whole..count].copy_from_slice(&part[..count - whole]);
        }
        S::store(part.as_mut_ptr(), test);
        fine &= part[..S::LANES].iter().all(|x| *x == 0.0);
    }
    fine
}

#[inline(always)]
unsafe fn write_row<S: Simd, T: Stored>(from: &[f32], scale: f32, to: &mut [T]) -> bool {
    let mut largest = 0;
    for (to, x) in to.iter_mut().zip(from) {
        let x = x * scale;
        largest = (x.to_bits() & 0x7fff_ffff).max(largest);
        *to = T::nearest(x);
    }
    largest < T::INFINITE
}

/// `count` elements as f32.
#[inline(always)]
unsafe fn widen<S: Simd, T: Stored>(from: *const T, count: usize, to: *mut f32) {
    let whole = count / S::LANES * S::LANES;
    unsafe {
        for i in (0..whole).step_by(S::LANES) {
            S::store(to.add(i), T::load::<S>(from.add(i)));
        }
        if whole < count {
            let mut part = [0.0; 16];
            S::store(part.as_mut_ptr(), load_part::<S, T>(from.add(whole), count - whole));
            std::ptr::copy_nonoverlapping(part.as_ptr(), to.add(whole), count - whole);
        }
    }
}

/// Width of the panel that begins at `column` of `columns`.
#[inline(always)]
fn width<S: Simd>(column: usize, columns: usize) -> usize {
    if columns - column > S::LANES { 2 * S::LANES } else { S::LANES }
}

#[inline(always)]
unsafe fn pack_keys<S: Simd, T: Stored>(
    from: &[T],
    keys: usize,
    d: usize,
    to: &mut [f32],
    rows: &mut [f32; PACK],
) -> f32 {
    assert!(from.len() >= keys * d && to.len() >= keys.next_multiple_of(S::LANES) * d && d <= 256);
    // LANES rows as f32, with zeros from d up to a whole vector and for keys that are not there.
    let stride = d.next_multiple_of(S::LANES);
    let mut columns = [0.0f32; 16 * 16];
    let mut largest = 0;
    for first in (0..keys).step_by(S::LANES) {
        let count = S::LANES.min(keys - first);
        if count < S::LANES {
            rows[count * stride..S::LANES * stride].fill(0.0);
        }
        // f32 rows of whole vectors are transposed from where they are.
        let there = match T::single(&from[first * d..]) {
            Some(there) if count == S::LANES && stride == d => {
                largest = largest.max(magnitude(&there[..count * d]).to_bits());
                there.as_ptr()
            }
            _ => {
                for row in 0..count {
                    // SAFETY: the row is within `from`, and stride >= d.
                    unsafe {
                        widen::<S, T>(from.as_ptr().add((first + row) * d), d, rows.as_mut_ptr().add(row * stride));
                    }
                }
                largest = largest.max(magnitude(&rows[..count * stride]).to_bits());
                rows.as_ptr()
            }
        };
        let panel = first / (2 * S::LANES) * 2 * S::LANES;
        let width = width::<S>(panel, keys);
        let base = panel * d + first - panel;
        for c in (0..d).step_by(S::LANES) {
            // SAFETY: row r of the panel begins at panel * d + r * width, for r < d, and ends within the keys rounded up to whole vectors.
            unsafe {
                if c + S::LANES <= d {
                    S::transpose(there.add(c), stride, to.as_mut_ptr().add(base + c * width), width);
                } else {
                    S::transpose(there.add(c), stride, columns.as_mut_ptr(), S::LANES);
                    for row in 0..d - c {
                        let column = S::load(columns.as_ptr().add(row * S::LANES));
                        S::store(to.as_mut_ptr().add(base + (c + row) * width), column);
                    }
                }
            }
        }
    }
    f32::from_bits(largest)
}

#[inline(always)]
unsafe fn pack_values<S: Simd, T: Stored>(from: &[T], keys: usize, d: usize, to: &mut [f32]) -> bool {
    assert!(from.len() >= keys * d && to.len() >= keys * d.next_multiple_of(S::LANES));
    let mut fine = true;
    for panel in (0..d).step_by(2 * S::LANES) {
        let width = width::<S>(panel, d);
        let there = width.min(d - panel);
        let to = &mut to[panel * keys..][..width * keys];
        // SAFETY: of each row the elements panel..panel + there, there <= width.
        unsafe {
            let (mut from, mut to) = (from.as_ptr().add(panel), to.as_mut_ptr());
            for _ in 0..keys {
                if there == 2 * S::LANES {
                    let (x, y) = (T::load::<S>(from), T::load::<S>(from.add(S::LANES)));
                    S::store(to, x);
                    S::store(to.add(S::LANES), y);
                } else if there == S::LANES {
                    S::store(to, T::load::<S>(from));
                } else {
                    let first = there.min(S::LANES);
                    S::store(to, load_part::<S, T>(from, first));
                    if width > S::LANES {
                        S::store(to.add(S::LANES), load_part::<S, T>(from.add(S::LANES), there - first));
                    }
                }
                from = from.wrapping_add(d);
                to = to.wrapping_add(width);
            }
        }
        fine &= finite(to);
    }
    fine
}

/// Tile of `R` rows and `N` vectors: `c` (+)= `a` `b` with rows of `b` `ldb` elements apart, of which the last vector has `last` columns.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn tile<S: Simd, T: Stored, const R: usize, const N: usize>(
    k: usize,
    a: *const f32,
    lda: usize,
    b: *const T,
    ldb: usize,
    last: usize,
    c: *mut f32,
    ldc: usize,
    add: bool,
) {
    unsafe {
        let mut sums = [[S::splat(0.0); N]; R];
        let mut row = b;
        let mut at = a;
        for _ in 0..k {
            let mut columns = [S::splat(0.0); N];
            for n in 0..N {
                columns[n] = if n + 1 == N && last < S::LANES {
                    load_part::<S, T>(row.add(n * S::LANES), last)
                } else {
                    T::load::<S>(row.add(n * S::LANES))
                };
            }
            for r in 0..R {
                let x = S::splat(*at.add(r * lda));
                for n in 0..N {
                    sums[r][n] = S::fma(x, columns[n], sums[r][n]);
                }
            }
            // Behind the last row it may be beyond the elements, where none is read.
            row = row.wrapping_add(ldb);
            at = at.add(1);
        }
        for r in 0..R {
            for n in 0..N {
                let at = c.add(r * ldc + n * S::LANES);
                // Sums of their own first: what is added to may be large.
                S::store(at, if add { S::add(S::load(at), sums[r][n]) } else { sums[r][n] });
            }
        }
    }
}

/// [`tile`] of `rows` rows, at most 12.
macro_rules! tile_of {
    ($s:ty, $t:ty, $rows:expr, $n:literal, $($argument:expr),*) => {
        match $rows {
            1 => tile::<$s, $t, 1, $n>($($argument),*),
            2 => tile::<$s, $t, 2, $n>($($argument),*),
            3 => tile::<$s, $t, 3, $n>($($argument),*),
            4 => tile::<$s, $t, 4, $n>($($argument),*),
            5 if <$s>::ROWS > 4 => tile::<$s, $t, 5, $n>($($argument),*),
            6 if <$s>::ROWS > 4 => tile::<$s, $t, 6, $n>($($argument),*),
            7 if <$s>::ROWS > 6 => tile::<$s, $t, 7, $n>($($argument),*),
            8 if <$s>::ROWS > 6 => tile::<$s, $t, 8, $n>($($argument),*),
            9 if <$s>::ROWS > 8 => tile::<$s, $t, 9, $n>($($argument),*),
            10 if <$s>::ROWS > 8 => tile::<$s, $t, 10, $n>($($argument),*),
            11 if <$s>::ROWS > 8 => tile::<$s, $t, 11, $n>($($argument),*),
            12 if <$s>::ROWS > 8 => tile::<$s, $t, 12, $n>($($argument),*),
            _ => unreachable!("rows are cut to what registers hold"),
        }
    };
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn product<S: Simd>(
    rows: usize,
    k: usize,
    columns: usize,
    a: &[f32],
    lda: usize,
    b: &[f32],
    panel: usize,
    skip: usize,
    c: &mut [f32],
    ldc: usize,
    add: bool,
) {
    if rows == 0 || columns == 0 {
        return;
    }
    let whole = columns.next_multiple_of(S::LANES);
    let last = (columns - 1) / (2 * S::LANES) * 2 * S::LANES;
    assert!(a.len() >= (rows - 1) * lda + k && c.len() >= (rows - 1) * ldc + whole && whole <= ldc);
    assert!(b.len() >= last / (2 * S::LANES) * panel + (skip + k) * width::<S>(last, columns));
    // As few tiles as there can be, of nearly the same height.
    let tiles = rows.div_ceil(S::ROWS);
    let (height, taller) = (rows / tiles, rows % tiles);
    for (index, column) in (0..columns).step_by(2 * S::LANES).enumerate() {
        let mut row = 0;
        for t in 0..tiles {
            let height = height + usize::from(t < taller);
            // SAFETY: rows row..row + height of a and c, and panel `index`, which the assertions above hold.
            unsafe {
                let a = a.as_ptr().add(row * lda);
                let b = b.as_ptr().add(index * panel + skip * width::<S>(column, columns));
                let c = c.as_mut_ptr().add(row * ldc + column);
                if width::<S>(column, columns) > S::LANES {
                    tile_of!(S, f32, height, 2, k, a, lda, b, 2 * S::LANES, S::LANES, c, ldc, add);
                } else {
                    tile_of!(S, f32, height, 1, k, a, lda, b, S::LANES, S::LANES, c, ldc, add);
                }
            }
            row += height;
        }
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn softmax<S: Simd>(
    rows: usize,
    columns: usize,
    s: &mut [f32],
    ld: usize,
    seen: &[(u32, u32)],
    m: &mut [f32],
    l: &mut [f32],
    fade: &mut [f32; SOFTMAX_ROWS],
) {
    assert!(rows <= SOFTMAX_ROWS && seen.len() >= rows && m.len() >= rows && l.len() >= rows);
    assert!(
        columns.is_multiple_of(S::LANES)
            && columns > 0
            && columns <= ld
            && s.len() >= rows.saturating_sub(1) * ld + columns
    );
    unsafe {
        // What the largest was less what it is: the exponent of the factor.
        for row in 0..rows {
            let scores = &mut s[row * ld..][..columns];
            let (first, end) = (seen[row].0 as usize, seen[row].1 as usize);
            let at = scores.as_mut_ptr();
            let lowest = S::splat(NO_KEY);
            let mut largest = lowest;
            if first > 0 || end < columns {
                let (first, end, mut lane) = (S::splat(first as f32), S::splat(end as f32), S::load(LANE.as_ptr()));
                for i in (0..columns).step_by(S::LANES) {
                    let x = S::select_less(lane, end, S::load(at.add(i)), lowest);
                    let x = S::select_less(lane, first, lowest, x);
                    S::store(at.add(i), x);
                    largest = S::max(largest, x);
                    lane = S::add(lane, S::splat(S::LANES as f32));
                }
            } else {
                for i in (0..columns).step_by(S::LANES) {
                    largest = S::max(largest, S::load(at.add(i)));
                }
            }
            let largest = S::largest(largest).max(m[row]);
            fade[row] = m[row] - largest;
            m[row] = largest;
        }
        for i in (0..rows).step_by(S::LANES) {
            let at = fade.as_mut_ptr().add(i);
            S::store(at, exp::<S>(S::load(at)));
        }
        for row in 0..rows {
            let at = s.as_mut_ptr().add(row * ld);
            // Where no key was seen, as below -1e30, the weight of all is 0.
            let shift = S::splat(if m[row] <= NO_KEY { 0.0 } else { m[row] });
            let mut sum = S::splat(0.0);
            let pairs = columns / (2 * S::LANES) * (2 * S::LANES);
            for i in (0..pairs).step_by(2 * S::LANES) {
                let (first, second) = (at.add(i), at.add(i + S::LANES));
                let weights = exps::<S, 2>([S::sub(S::load(first), shift), S::sub(S::load(second), shift)]);
                S::store(first, weights[0]);
                S::store(second, weights[1]);
                sum = S::add(sum, S::add(weights[0], weights[1]));
            }
            if pairs < columns {
                let weight = exp::<S>(S::sub(S::load(at.add(pairs)), shift));
                S::store(at.add(pairs), weight);
                sum = S::add(sum, weight);
            }
            l[row] = l[row] * fade[row] + S::sum(sum);
        }
    }
}

#[inline(always)]
unsafe fn scale_rows<S: Simd>(rows: usize, columns: usize, c: &mut [f32], ld: usize, by: &[f32]) {
    assert!(columns.is_multiple_of(S::LANES) && by.len() >= rows && c.len() >= rows.saturating_sub(1) * ld + columns);
    for (row, &by) in by[..rows].iter().enumerate().filter(|(_, by)| **by != 1.0) {
        // SAFETY: whole vectors of the row, which the assertion holds.
        unsafe {
            for i in (0..columns).step_by(S::LANES) {
                let at = c.as_mut_ptr().add(row * ld + i);
                S::store(at, S::mul(S::load(at), S::splat(by)));
            }
        }
    }
}

#[inline(always)]
unsafe fn soft_cap<S: Simd>(s: &mut [f32], cap: f32) {
    assert!(s.len().is_multiple_of(S::LANES));
    for at in s.chunks_exact_mut(S::LANES) {
        // SAFETY: one vector.
        unsafe {
            let x = S::div(S::load(at.as_ptr()), S::splat(cap));
            let positive = S::max(x, S::sub(S::splat(0.0), x));
            // |x| < 0.625: x + x^3 p(x^2) (Cephes, tanhf); else 1 - 2 / (exp(2 |x|) + 1), which from 10 on is 1.
            let square = S::mul(x, x);
            let mut p = S::splat(-5.704_988e-3);
            for coefficient in [2.063_909e-2, -5.373_971_5e-2, 1.333_144_2e-1, -3.333_328e-1] {
                p = S::fma(p, square, S::splat(coefficient));
            }
            let small = S::fma(S::mul(square, x), p, x);
            let ten = S::splat(10.0);
            let bound = S::select_less(ten, positive, ten, positive);
            let e = exp::<S>(S::add(bound, bound));
            let large = S::sub(S::splat(1.0), S::div(S::splat(2.0), S::add(e, S::splat(1.0))));
            let signed = S::select_less(x, S::splat(0.0), S::sub(S::splat(0.0), large), large);
            let tanh = S::select_less(positive, S::splat(0.625), small, signed);
            S::store(at.as_mut_ptr(), S::mul(S::splat(cap), tanh));
        }
    }
}

/// Asks for the part of `ahead` that is due at `key` of `keys`.
#[inline(always)]
unsafe fn prefetch<S: Simd, T>(ahead: &[T], key: usize, keys: usize) {
    let bytes = size_of_val(ahead);
    let (from, end) = (bytes * key / keys, bytes * (key + AHEAD).min(keys) / keys);
    for at in (from..end).step_by(64) {
        unsafe { S::prefetch(ahead.as_ptr().cast::<u8>().wrapping_add(at)) };
    }
}

/// `R` rows by `J` keys.
#[inline(always)]
unsafe fn dots_of<S: Simd, T: Stored, const R: usize, const J: usize>(
    k: *const T,
    d: usize,
    q: *const f32,
    ldq: usize,
    s: *mut f32,
    ld: usize,
) {
    unsafe {
        let mut sums = [[S::splat(0.0); J]; R];
        let whole = d / S::LANES * S::LANES;
        for c in (0..whole).step_by(S::LANES) {
            let mut keys = [S::splat(0.0); J];
            for j in 0..J {
                keys[j] = T::load::<S>(k.add(j * d + c));
            }
            for r in 0..R {
                let x = S::load(q.add(r * ldq + c));
                for j in 0..J {
                    sums[r][j] = S::fma(x, keys[j], sums[r][j]);
                }
            }
        }
        if whole < d {
            for j in 0..J {
                let key = load_part::<S, T>(k.add(j * d + whole), d - whole);
                for r in 0..R {
                    sums[r][j] = S::fma(S::load(q.add(r * ldq + whole)), key, sums[r][j]);
                }
            }
        }
        for r in 0..R {
            for j in 0..J {
                *s.add(r * ld + j) = S::sum(sums[r][j]);
            }
        }
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn dots<S: Simd, T: Stored>(
    k: &[T],
    keys: usize,
    d: usize,
    q: &[f32],
    rows: usize,
    ldq: usize,
    s: &mut [f32],
    ld: usize,
    ahead: &[T],
) -> bool {
    if rows == 0 {
        return true;
    }
    assert!(k.len() >= keys * d && q.len() >= (rows - 1) * ldq + d.next_multiple_of(S::LANES));
    assert!(s.len() >= (rows - 1) * ld + keys && keys <= ld);
    let mut key = 0;
    while key < keys {
        if key.is_multiple_of(AHEAD) {
            // SAFETY: it may be any address.
            unsafe { prefetch::<S, T>(ahead, key, keys) };
        }
        let mut row = 0;
        let four = keys - key >= 4;
        while row < rows {
            // SAFETY: rows row.. and keys key.. within the slices, by the assertions.
            unsafe {
                let k = k.as_ptr().add(key * d);
                let q = q.as_ptr().add(row * ldq);
                let s = s.as_mut_ptr().add(row * ld + key);
                match (rows - row, four) {
                    (1, true) => dots_of::<S, T, 1, 4>(k, d, q, ldq, s, ld),
                    (2 | 3, true) => dots_of::<S, T, 2, 4>(k, d, q, ldq, s, ld),
                    (_, true) if S::LANES == 16 => dots_of::<S, T, 4, 4>(k, d, q, ldq, s, ld),
                    (_, true) => dots_of::<S, T, 2, 4>(k, d, q, ldq, s, ld),
                    (_, false) => dots_of::<S, T, 1, 1>(k, d, q, ldq, s, ld),
                }
            }
            row += match (rows - row, four) {
                (1, _) | (_, false) => 1,
                (2 | 3, true) => 2,
                _ => {
                    if S::LANES == 16 {
                        4
                    } else {
                        2
                    }
                }
            };
        }
        key += if four { 4 } else { 1 };
    }
    (0..rows).all(|row| finite(&s[row * ld..][..keys]))
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn weighted_sum<S: Simd, T: Stored>(
    v: &[T],
    keys: usize,
    d: usize,
    p: &[f32],
    rows: usize,
    ldp: usize,
    o: &mut [f32],
    ldo: usize,
    ahead: &[T],
) {
    if rows == 0 || keys == 0 {
        return;
    }
    let whole = d.next_multiple_of(S::LANES);
    assert!(
        v.len() >= keys * d
            && p.len() >= (rows - 1) * ldp + keys
            && o.len() >= (rows - 1) * ldo + whole
            && whole <= ldo
    );
    let full = S::LANES;
    for first in (0..keys).step_by(AHEAD) {
        let count = AHEAD.min(keys - first);
        // SAFETY: it may be any address.
        unsafe { prefetch::<S, T>(ahead, first, keys) };
        let mut row = 0;
        while row < rows {
            let height = (rows - row).min(4);
            let mut column = 0;
            while column < d {
                let left = d - column;
                // SAFETY: rows row..row + height of p and o, keys first..first + count and columns column.. of v and o, by the assertions.
                unsafe {
                    let p = p.as_ptr().add(row * ldp + first);
                    let v = v.as_ptr().add(first * d + column);
                    let o = o.as_mut_ptr().add(row * ldo + column);
                    if left >= 4 * full && full == 16 {
                        tile_of!(S, T, height, 4, count, p, ldp, v, d, full, o, ldo, true);
                        column += 4 * full;
                    } else if left >= 2 * full {
                        tile_of!(S, T, height, 2, count, p, ldp, v, d, full, o, ldo, true);
                        column += 2 * full;
                    } else {
                        tile_of!(S, T, height, 1, count, p, ldp, v, d, left.min(full), o, ldo, true);
                        column += full;
                    }
                }
            }
            row += height;
        }
    }
}
