//! The hot loops over rows: norms, sums of normalised rows, dot products. f64 throughout, so that no order of summation matters
//! at f32's scale.
//!
//! Which loop sums f32 rows is a matter of the caches, measured at one thread (GB/s; a plain read 24, norms alone 26): eight rows at a time
//! after their norms 18 at d = 32768, 16 at 2048 and at 384 (four rows at a time 12 at most: the sums themselves go through the second-level
//! cache once a group); at 384, where everything is near, four rows while the next four stream in 19.

use multiversion::multiversion;

/// Independent partial sums a loop keeps, so that the compiler can use vectors of any width up to 512 bits.
const LANES: usize = 16;

fn fold(mut sums: [f64; LANES]) -> f64 {
    for width in [8, 4, 2, 1] {
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
    }
    sums[0]
}

/// The sum of squares of an f32 row, in f64: it neither overflows nor underflows. NaN or infinite elements make it so.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
pub(crate) fn squared_norm_f32(row: &[f32]) -> f64 {
    let mut sums = [0.0f64; LANES];
    let blocks = row.chunks_exact(LANES);
    for (lane, &value) in blocks.remainder().iter().enumerate() {
        sums[lane] = value as f64 * value as f64;
    }
    for block in blocks {
        for lane in 0..LANES {
            let value = block[lane] as f64;
            sums[lane] += value * value;
        }
    }
    fold(sums)
}

/// The sum of squares of an f64 row; may overflow or underflow.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
pub(crate) fn squared_norm_f64(row: &[f64]) -> f64 {
    let mut sums = [0.0f64; LANES];
    let blocks = row.chunks_exact(LANES);
    for (lane, &value) in blocks.remainder().iter().enumerate() {
        sums[lane] = value * value;
    }
    for block in blocks {
        for lane in 0..LANES {
            sums[lane] += block[lane] * block[lane];
        }
    }
    fold(sums)
}

/// Rows that are added at a time.
pub(crate) const GROUP: usize = 8;
/// Rows up to this length are summed while the next ones stream in.
const NARROW: usize = 512;

/// sum += the f32 rows times their factors, and the sums of squares of the rows that come `next`, if any do.
pub(crate) fn add_rows_f32(
    sum: &mut [f64],
    rows: [&[f32]; GROUP],
    factors: [f64; GROUP],
    next: Option<[&[f32]; GROUP]>,
) -> [f64; GROUP] {
    let dim = sum.len();
    let Some(next) = next else {
        add_eight(sum, rows, factors);
        return [0.0; GROUP];
    };
    if dim <= NARROW && dim.is_multiple_of(64) {
        let mut norms = [0.0; GROUP];
        for at in [0, 4] {
            let factors = std::array::from_fn(|i| factors[at + i]);
            let four = add_while_reading(sum, half(rows, at), factors, half(next, at));
            norms[at..at + 4].copy_from_slice(&four);
        }
        return norms;
    }
    add_eight(sum, rows, factors);
    next.map(squared_norm_f32)
}

/// Four rows of eight.
fn half<T>(rows: [&[T]; GROUP], at: usize) -> [&[T]; 4] {
    std::array::from_fn(|i| rows[at + i])
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
fn add_eight(sum: &mut [f64], rows: [&[f32]; GROUP], factors: [f64; GROUP]) {
    let n = sum.len();
    let [a, b, c, d, e, g, h, k] = rows.map(|row| &row[..n]);
    let [fa, fb, fc, fd, fe, fg, fh, fk] = factors;
    for i in 0..n {
        let first = (a[i] as f64 * fa + b[i] as f64 * fb) + (c[i] as f64 * fc + d[i] as f64 * fd);
        let second = (e[i] as f64 * fe + g[i] as f64 * fg) + (h[i] as f64 * fh + k[i] as f64 * fk);
        sum[i] += first + second;
    }
}

/// acc += the squares of 64 elements.
#[inline(always)]
fn squares(tile: &[f32; 64], acc: &mut [f64; LANES]) {
    for block in tile.as_chunks::<LANES>().0 {
        for lane in 0..LANES {
            let value = block[lane] as f64;
            acc[lane] += value * value;
        }
    }
}

/// 16 columns of four rows.
type Tile = [f32; 16];

#[inline(always)]
fn add_tile(sum: &mut [f64; 16], a: &Tile, b: &Tile, c: &Tile, d: &Tile, f: &[f64; 4]) {
    for i in 0..16 {
        sum[i] += (a[i] as f64 * f[0] + b[i] as f64 * f[1]) + (c[i] as f64 * f[2] + d[i] as f64 * f[3]);
    }
}

/// Sums a quarter of the columns of four rows during the norm of each of the next four, so that memory never waits: one stream of it, in order.
///
/// (Written so that the compiler sees every length: slices cut anew for each quarter, no closures. It is three times slower otherwise.)
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
fn add_while_reading(sum: &mut [f64], rows: [&[f32]; 4], factors: [f64; 4], next: [&[f32]; 4]) -> [f64; 4] {
    let n = sum.len() / 64;
    let sum = sum.as_chunks_mut::<16>().0;
    let [a, b, c, d] = rows;
    let (a, b) = (a.as_chunks::<16>().0, b.as_chunks::<16>().0);
    let (c, d) = (c.as_chunks::<16>().0, d.as_chunks::<16>().0);
    let mut norms = [0.0f64; 4];
    for quarter in 0..4 {
        let next = &next[quarter].as_chunks::<64>().0[..n];
        let sum = &mut sum[quarter * n..][..n];
        let (a, b) = (&a[quarter * n..][..n], &b[quarter * n..][..n]);
        let (c, d) = (&c[quarter * n..][..n], &d[quarter * n..][..n]);
        let mut acc = [0.0f64; LANES];
        for i in 0..n {
            squares(&next[i], &mut acc);
            add_tile(&mut sum[i], &a[i], &b[i], &c[i], &d[i], &factors);
        }
        norms[quarter] = acc.iter().sum();
    }
    norms
}

/// sum += the f64 rows times their factors.
pub(crate) fn add_rows_f64(sum: &mut [f64], rows: [&[f64]; GROUP], factors: [f64; GROUP]) {
    for at in [0, 4] {
        add_four(sum, half(rows, at), std::array::from_fn(|i| factors[at + i]));
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
fn add_four(sum: &mut [f64], rows: [&[f64]; 4], factors: [f64; 4]) {
    let n = sum.len();
    let [a, b, c, d] = rows.map(|row| &row[..n]);
    let [fa, fb, fc, fd] = factors;
    for i in 0..n {
        sum[i] += (a[i] * fa + b[i] * fb) + (c[i] * fc + d[i] * fd);
    }
}

/// The dot product of an f32 row with an f64 vector, in f64.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
pub(crate) fn dot_f32(row: &[f32], vector: &[f64]) -> f64 {
    let mut sums = [0.0f64; LANES];
    let (a, b) = (row.chunks_exact(LANES), vector.chunks_exact(LANES));
    for (lane, (&x, &y)) in a.remainder().iter().zip(b.remainder()).enumerate() {
        sums[lane] = x as f64 * y;
    }
    for (x, y) in a.zip(b) {
        for lane in 0..LANES {
            sums[lane] += x[lane] as f64 * y[lane];
        }
    }
    fold(sums)
}

/// The dot product of two f64 vectors.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
pub(crate) fn dot_f64(row: &[f64], vector: &[f64]) -> f64 {
    let mut sums = [0.0f64; LANES];
    let (a, b) = (row.chunks_exact(LANES), vector.chunks_exact(LANES));
    for (lane, (&x, &y)) in a.remainder().iter().zip(b.remainder()).enumerate() {
        sums[lane] = x * y;
    }
    for (x, y) in a.zip(b) {
        for lane in 0..LANES {
            sums[lane] += x[lane] * y[lane];
        }
    }
    fold(sums)
}
