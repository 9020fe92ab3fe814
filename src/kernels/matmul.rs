//! Matrix products with f32 sums that stay accurate over any length, of f32 or f16 (and on the CPU f64) matrices.

use std::borrow::Cow;

use faer::linalg::matmul::matmul as faer_matmul;
use faer::{Accum, MatMut, MatRef, Par};
use half::f16;
use ndarray::{Array2, ArrayView2, Ix2};

use super::column_sums;
use crate::gpu::{Buffer, Constant, Gpu, Kernel, Needs, Params, View, params, shader};
use crate::tensor::{Element, Storage, Tensor};
use crate::{Error, Result};

/// An element that matrices are multiplied in: f32, f16 (into f32), f64 (CPU only).
pub trait MatmulElement: Element {
    /// The element of the product.
    type Sum: MatmulElement + faer::traits::ComplexField;
    /// The value as the product computes with it.
    fn widen(self) -> Self::Sum;
}

impl MatmulElement for f32 {
    type Sum = f32;
    fn widen(self) -> f32 {
        self
    }
}
impl MatmulElement for f16 {
    type Sum = f32;
    fn widen(self) -> f32 {
        self.to_f32()
    }
}
impl MatmulElement for f64 {
    type Sum = f64;
    fn widen(self) -> f64 {
        self
    }
}

params! {
    /// As in `shaders/matmul.wgsl`.
    MatmulParams {
        m: u32,
        n: u32,
        k: u32,
        lda: u32,
        ldb: u32,
        ldc: u32,
        a_offset: u32,
        b_offset: u32,
        c_offset: u32,
        k_range: u32,
        split_stride: u32,
        accumulate: u32,
    }
}

static MATMUL: Kernel = Kernel {
    name: "matmul",
    sources: &[shader!("matmul.wgsl")],
    needs: Needs::NONE,
    fields: MatmulParams::FIELDS,
    params_bytes: size_of::<MatmulParams>(),
};

fn constants(transpose_a: bool, transpose_b: bool, half: bool) -> Vec<(&'static str, Constant)> {
    vec![
        ("TRANSPOSE_A", Constant::U32(transpose_a.into())),
        ("TRANSPOSE_B", Constant::U32(transpose_b.into())),
        ("HALF", Constant::U32(half.into())),
    ]
}

pub(crate) fn variants() -> Vec<(&'static Kernel, Vec<(&'static str, Constant)>)> {
    let flags = [false, true];
    let all = flags.into_iter().flat_map(|a| flags.into_iter().flat_map(move |b| flags.map(|half| (a, b, half))));
    all.map(|(a, b, half)| (&MATMUL, constants(a, b, half))).collect()
}

/// The product of `a` (m, k) and `b` (k, n); with `transpose_a`, `a` is stored as (k, m), with `transpose_b`, `b` as (n, k).
///
/// * f32 and f16 inputs give f32; f64 gives f64, on the CPU only.
/// * On a GPU an element's error is at most `(128 + k/128 + log2(k)) * 2^-24 * sum |a b|`: sums of 128 terms, then sums of those; where k is split, of 8
///   of those and then a tree. On the CPU it is that of `faer`'s blocked product.
///
/// Products with a k much longer than m n (sums over rows) are split over k, so the whole device works on them.
///
/// # Errors
/// [`Error::Shape`] where the inner sizes differ; [`Error::DeviceMismatch`]; [`Error::Unsupported`] for f64 on a GPU; [`Error::TooLarge`] where one
/// row of a matrix exceeds a binding.
pub fn matmul<T: MatmulElement>(
    a: &Tensor<T, Ix2>,
    b: &Tensor<T, Ix2>,
    transpose_a: bool,
    transpose_b: bool,
) -> Result<Tensor<T::Sum, Ix2>> {
    a.device().same("matmul", "b", b.device())?;
    let shape = Shape::new(a.shape(), b.shape(), transpose_a, transpose_b)?;
    match (a.storage(), b.storage()) {
        (Storage::Host(a), Storage::Host(b)) => Ok(Tensor::host(on_cpu(&a, &b, &shape))),
        (Storage::Gpu(gpu, a_buffer), Storage::Gpu(_, b_buffer)) => {
            if T::NAME == "f64" {
                return Err(Error::Unsupported { place: "matmul", feature: "f64", device: gpu.to_string() });
            }
            let half = T::NAME == "f16";
            let out = gpu.allocate("matmul", (shape.m * shape.n * 4) as u64)?;
            on_gpu(gpu, &shape, half, a_buffer, b_buffer, &out, false)?;
            let checks = super::inherit(&[a.checks(), b.checks()]);
            Ok(Tensor::on_gpu(gpu, out, Ix2(shape.m, shape.n), checks))
        }
        _ => unreachable!("both are on one device"),
    }
}

/// `sum` + a b for f32 matrices on a GPU, as [`matmul()`] computes it.
pub(crate) fn matmul_add(
    sum: &Tensor<f32, Ix2>,
    a: &Tensor<f32, Ix2>,
    b: &Tensor<f32, Ix2>,
    transpose_a: bool,
    transpose_b: bool,
) -> Result<Tensor<f32, Ix2>> {
    let shape = Shape::new(a.shape(), b.shape(), transpose_a, transpose_b)?;
    match (sum.storage(), a.storage(), b.storage()) {
        (Storage::Gpu(gpu, sum_buffer), Storage::Gpu(_, a_buffer), Storage::Gpu(_, b_buffer)) => {
            let out = gpu.allocate("matmul", (shape.m * shape.n * 4) as u64)?;
            gpu.copy(sum_buffer.view(), &out, 0);
            on_gpu(gpu, &shape, false, a_buffer, b_buffer, &out, true)?;
            let checks = super::inherit(&[sum.checks(), a.checks(), b.checks()]);
            Ok(Tensor::on_gpu(gpu, out, Ix2(shape.m, shape.n), checks))
        }
        _ => unreachable!("the CPU adds up in its own loop"),
    }
}

struct Shape {
    m: usize,
    n: usize,
    k: usize,
    /// Elements of a stored row.
    lda: usize,
    ldb: usize,
    transpose_a: bool,
    transpose_b: bool,
}

impl Shape {
    fn new(a: &[usize], b: &[usize], transpose_a: bool, transpose_b: bool) -> Result<Self> {
        let (m, k) = if transpose_a { (a[1], a[0]) } else { (a[0], a[1]) };
        let (inner, n) = if transpose_b { (b[1], b[0]) } else { (b[0], b[1]) };
        if inner != k {
            let expected = format!("{k} {}", if transpose_b { "columns" } else { "rows" });
            return Err(Error::Shape { place: "matmul", quantity: "b", expected, found: b.to_vec() });
        }
        Ok(Self { m, n, k, lda: a[1], ldb: b[1], transpose_a, transpose_b })
    }
}

fn on_cpu<T: MatmulElement>(a: &ArrayView2<'_, T>, b: &ArrayView2<'_, T>, shape: &Shape) -> Array2<T::Sum> {
    let (a_wide, b_wide) = (widen(a), widen(b));
    let a = MatRef::from_row_major_slice(&a_wide, a.nrows(), a.ncols());
    let b = MatRef::from_row_major_slice(&b_wide, b.nrows(), b.ncols());
    let a = if shape.transpose_a { a.transpose() } else { a };
    let b = if shape.transpose_b { b.transpose() } else { b };
    let mut out = vec![<T::Sum as bytemuck::Zeroable>::zeroed(); shape.m * shape.n];
    let product = MatMut::from_row_major_slice_mut(&mut out, shape.m, shape.n);
    let one = <T::Sum as faer::traits::ComplexField>::one_impl();
    faer_matmul(product, Accum::Replace, a, b, one, parallel(0));
    match Array2::from_shape_vec((shape.m, shape.n), out) {
        Ok(array) => array,
        Err(_) => unreachable!("m n elements"),
    }
}

/// a b' of rows on the host, borrowed: as [`matmul()`] with `transpose_b`, for rows of equal length.
pub(crate) fn on_host<T: MatmulElement>(a: &ArrayView2<'_, T>, b: &ArrayView2<'_, T>) -> Array2<T::Sum> {
    let (m, n, k) = (a.nrows(), b.nrows(), a.ncols());
    on_cpu(a, b, &Shape { m, n, k, lda: k, ldb: k, transpose_a: false, transpose_b: true })
}

/// `threads` of rayon's pool for a product on the CPU, 0 for all of them.
pub(crate) fn parallel(threads: usize) -> Par {
    #[cfg(not(target_arch = "wasm32"))]
    return Par::rayon(threads);
    #[cfg(target_arch = "wasm32")]
    {
        let _ = threads;
        Par::Seq
    }
}

/// The elements as they are multiplied, borrowed where they are so already.
fn widen<'a, T: MatmulElement>(matrix: &'a ArrayView2<'_, T>) -> Cow<'a, [T::Sum]> {
    match matrix.as_slice() {
        Some(elements) if T::NAME == <T::Sum as Element>::NAME => Cow::Borrowed(bytemuck::cast_slice(elements)),
        _ => Cow::Owned(matrix.iter().map(|value| value.widen()).collect()),
    }
}

/// Terms of a split: enough that writing and adding up its partial tile costs little.
const SPLIT: usize = 1024;
/// Bytes of partial products at a time.
const PARTIAL: usize = 64 << 20;
const TILE: usize = 64;

/// Records out = a b, or out += a b with `add`, window by window.
fn on_gpu(gpu: &Gpu, shape: &Shape, half: bool, a: &Buffer, b: &Buffer, out: &Buffer, add: bool) -> Result<()> {
    let &Shape { m, n, k, lda, ldb, transpose_a, transpose_b } = shape;
    if m * n == 0 {
        return Ok(());
    }
    if k == 0 {
        if !add {
            gpu.clear(out);
        }
        return Ok(());
    }
    let element = if half { 2 } else { 4 };
    let alignment = gpu.binding_alignment();
    let limit = (gpu.max_binding() - alignment - 4) as usize;
    let rows_of = |stride: usize, bytes: usize, count: usize| {
        Ok(gpu.rows_per_window("matmul", (stride * bytes).max(1))?.min(count))
    };
    let a_rows = rows_of(lda, element, if transpose_a { k } else { m })?;
    let b_rows = rows_of(ldb, element, if transpose_b { n } else { k })?;
    let c_rows = rows_of(n, 4, m)?;
    let groups = gpu.max_groups() * TILE;
    let m_step = if transpose_a { c_rows } else { a_rows.min(c_rows) }.min(groups);
    let n_step = if transpose_b { b_rows } else { n }.min(groups);
    let mut k_step = if transpose_a { a_rows } else { k }.min(if transpose_b { k } else { b_rows });
    // Few tiles, all in one window, and a long k: split k, as far as the partial products fit.
    let tiles = m.div_ceil(TILE) * n.div_ceil(TILE);
    let whole = m_step >= m && n_step >= n;
    let split = whole && tiles < 128 && k > 2 * SPLIT && m * n * 4 <= limit / 2;
    if split {
        let splits = (PARTIAL.min(limit) / (m * n * 4)).clamp(1, gpu.max_groups());
        k_step = k_step.min(splits * SPLIT);
    }
    let constants = constants(transpose_a, transpose_b, half);
    for m0 in (0..m).step_by(m_step) {
        let rows = m_step.min(m - m0);
        for n0 in (0..n).step_by(n_step) {
            let columns = n_step.min(n - n0);
            for k0 in (0..k).step_by(k_step) {
                let terms = k_step.min(k - k0);
                let window = |buffer, first: usize, rows: usize, stride: usize| {
                    let (view, shift) = View::window(
                        buffer,
                        (first * stride * element) as u64,
                        (rows * stride * element) as u64,
                        alignment,
                    );
                    (view, shift as u32 / element as u32)
                };
                let (a_view, a_shift) = if transpose_a { window(a, k0, terms, lda) } else { window(a, m0, rows, lda) };
                let (b_view, b_shift) =
                    if transpose_b { window(b, n0, columns, ldb) } else { window(b, k0, terms, ldb) };
                let splits = if split { terms.div_ceil(SPLIT) } else { 1 };
                let (c_view, c_shift) = View::window(out, (m0 * n * 4) as u64, (rows * n * 4) as u64, alignment);
                let mut params = MatmulParams {
                    m: rows as u32,
                    n: columns as u32,
                    k: terms as u32,
                    lda: lda as u32,
                    ldb: ldb as u32,
                    ldc: n as u32,
                    // A window of rows begins at its own first row; the columns of the other operand are counted from 0.
                    a_offset: a_shift + if transpose_a { m0 as u32 } else { k0 as u32 },
                    b_offset: b_shift + if transpose_b { k0 as u32 } else { n0 as u32 },
                    c_offset: c_shift as u32 / 4 + n0 as u32,
                    k_range: terms.next_multiple_of(16) as u32,
                    split_stride: 0,
                    accumulate: (add || k0 > 0).into(),
                };
                let grid = [columns.div_ceil(TILE) as u32, rows.div_ceil(TILE) as u32, splits as u32];
                if splits == 1 {
                    gpu.run(&MATMUL, &constants, &params, &[a_view, b_view, c_view], grid)?;
                    continue;
                }
                // Here the whole product is one window: partial products, then a tree over them.
                params.c_offset = 0;
                params.k_range = SPLIT as u32;
                params.split_stride = (m * n) as u32;
                params.accumulate = 0;
                let partial = gpu.allocate("matmul", (splits * m * n * 4) as u64)?;
                gpu.run(&MATMUL, &constants, &params, &[a_view, b_view, partial.view()], grid)?;
                let keep = if add || k0 > 0 { 1.0 } else { 0.0 };
                column_sums::tree(gpu, &partial, splits, m * n, out, keep, 1.0)?;
            }
        }
    }
    Ok(())
}
