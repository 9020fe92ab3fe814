//! The hot loops over rows: norms, sums of normalised rows, dot products. f64 throughout, so that no order of summation matters
//! at f32's scale.
//!
//! A fit reads a group of eight rows twice: from memory for its norms, then from the caches for its sum. Both passes convert each f32 and
//! multiply and add it once; the conversions bound them, 16 bytes a cycle on Zen 4. Measured at one thread (GB/s): a plain read 22 to 24, norms
//! alone the same, norms and sums 16 to 18 at any width. Eight rows at a time, because the sums themselves go through the second-level cache
//! once a group: four rows reach 12, sixteen run out of registers.

use multiversion::{multiversion, target::target_cfg_f};

/// Independent partial sums a loop keeps: four vectors of 512 bits, as many as an addition takes cycles.
const LANES: usize = 32;

/// Rows that are added at a time.
pub(crate) const GROUP: usize = 8;

/// An element as f64.
pub(crate) trait Wide: Copy {
    fn wide(self) -> f64;
}
impl Wide for f32 {
    #[inline(always)]
    fn wide(self) -> f64 {
        self as f64
    }
}
impl Wide for f64 {
    #[inline(always)]
    fn wide(self) -> f64 {
        self
    }
}

/// a b + c, in one rounding if the function around is compiled for a processor that has it.
#[inline(always)]
fn fma<const FUSED: bool>(a: f64, b: f64, c: f64) -> f64 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

#[inline(always)]
fn fold(mut sums: [f64; LANES]) -> f64 {
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
    }
    sums[0]
}

/// The sum of squares. (As a dot product with itself it would load each element twice, and be a sixth slower.)
#[inline(always)]
fn squares<const FUSED: bool, A: Wide>(row: &[A]) -> f64 {
    let mut sums = [0.0f64; LANES];
    let (blocks, rest) = row.as_chunks::<LANES>();
    for block in blocks {
        for lane in 0..LANES {
            let value = block[lane].wide();
            sums[lane] = fma::<FUSED>(value, value, sums[lane]);
        }
    }
    for (sum, &value) in sums.iter_mut().zip(rest) {
        *sum += value.wide() * value.wide();
    }
    fold(sums)
}

/// The dot product of two rows.
#[inline(always)]
fn dot<const FUSED: bool, A: Wide>(row: &[A], vector: &[f64]) -> f64 {
    let mut sums = [0.0f64; LANES];
    let (a, a_rest) = row.as_chunks::<LANES>();
    let (b, b_rest) = vector.as_chunks::<LANES>();
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            sums[lane] = fma::<FUSED>(a[lane].wide(), b[lane], sums[lane]);
        }
    }
    for ((sum, &a), &b) in sums.iter_mut().zip(a_rest).zip(b_rest) {
        *sum += a.wide() * b;
    }
    fold(sums)
}

/// sum += the rows times their factors.
#[inline(always)]
fn add<const FUSED: bool, A: Wide>(sum: &mut [f64], rows: [&[A]; GROUP], factors: [f64; GROUP]) {
    let n = sum.len();
    let [a, b, c, d, e, g, h, k] = rows.map(|row| &row[..n]);
    let [fa, fb, fc, fd, fe, fg, fh, fk] = factors;
    for i in 0..n {
        let first = fma::<FUSED>(b[i].wide(), fb, a[i].wide() * fa);
        let second = fma::<FUSED>(d[i].wide(), fd, c[i].wide() * fc);
        let third = fma::<FUSED>(g[i].wide(), fg, e[i].wide() * fe);
        let fourth = fma::<FUSED>(k[i].wide(), fk, fma::<FUSED>(h[i].wide(), fh, sum[i]));
        sum[i] = (first + second) + (third + fourth);
    }
}

/// The sum of squares of an f32 row, in f64: it neither overflows nor underflows. NaN or infinite elements make it so.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
pub(crate) fn squared_norm_f32(row: &[f32]) -> f64 {
    if target_cfg_f!(any(target_feature = "fma", target_arch = "aarch64")) {
        squares::<true, f32>(row)
    } else {
        squares::<false, f32>(row)
    }
}

/// The sum of squares of an f64 row; may overflow or underflow.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
pub(crate) fn squared_norm_f64(row: &[f64]) -> f64 {
    if target_cfg_f!(any(target_feature = "fma", target_arch = "aarch64")) {
        squares::<true, f64>(row)
    } else {
        squares::<false, f64>(row)
    }
}

/// The dot product of an f32 row with an f64 vector, in f64.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
pub(crate) fn dot_f32(row: &[f32], vector: &[f64]) -> f64 {
    if target_cfg_f!(any(target_feature = "fma", target_arch = "aarch64")) {
        dot::<true, f32>(row, vector)
    } else {
        dot::<false, f32>(row, vector)
    }
}

/// The dot product of two f64 vectors; may overflow or underflow.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
pub(crate) fn dot_f64(row: &[f64], vector: &[f64]) -> f64 {
    if target_cfg_f!(any(target_feature = "fma", target_arch = "aarch64")) {
        dot::<true, f64>(row, vector)
    } else {
        dot::<false, f64>(row, vector)
    }
}

/// sum += the f32 rows times their factors.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
pub(crate) fn add_rows_f32(sum: &mut [f64], rows: [&[f32]; GROUP], factors: [f64; GROUP]) {
    if target_cfg_f!(any(target_feature = "fma", target_arch = "aarch64")) {
        add::<true, f32>(sum, rows, factors)
    } else {
        add::<false, f32>(sum, rows, factors)
    }
}

/// sum += the f64 rows times their factors.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
pub(crate) fn add_rows_f64(sum: &mut [f64], rows: [&[f64]; GROUP], factors: [f64; GROUP]) {
    if target_cfg_f!(any(target_feature = "fma", target_arch = "aarch64")) {
        add::<true, f64>(sum, rows, factors)
    } else {
        add::<false, f64>(sum, rows, factors)
    }
}
