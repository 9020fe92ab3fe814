//! The hot loops over rows: norms, sums of normalised rows, dot products. f64 throughout, so that no order of summation matters
//! at f32's scale; measured to keep up with memory (see benches).

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

/// sum += f0 a + f1 b + f2 c + f3 d, four f32 rows at once: the sums go through the cache once for four rows.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
pub(crate) fn add_rows_f32(sum: &mut [f64], rows: [&[f32]; 4], factors: [f64; 4]) {
    let n = sum.len();
    let [a, b, c, d] = rows.map(|row| &row[..n]);
    let [fa, fb, fc, fd] = factors;
    for i in 0..n {
        sum[i] += (a[i] as f64 * fa + b[i] as f64 * fb) + (c[i] as f64 * fc + d[i] as f64 * fd);
    }
}

/// As [`add_rows_f32`], for f64 rows.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
pub(crate) fn add_rows_f64(sum: &mut [f64], rows: [&[f64]; 4], factors: [f64; 4]) {
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
