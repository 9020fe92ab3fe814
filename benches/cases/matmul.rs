//! Matrix products: square ones, and the two of an EM iteration. On the CPU beside the crates that others would take.
//!
//! Operations: 2 m n k. Bytes: both factors and the product once.

use anyhow::{Result, ensure};
use faer::linalg::matmul::matmul as faer_matmul;
use faer::{Accum, MatMut, MatRef, Par};
use half::f16;
use ndarray::Array2;
use orthant::kernels::{MatmulElement, matmul};
use orthant::{Element, Tensor};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::harness::{Bench, Case, Effort, Place, Traffic, Work, host, staged};

/// (m, n, k), whether a and b are stored transposed, and what it is.
type Shape = ([usize; 3], [bool; 2], &'static str);

const SMOKE: &[Shape] = &[([33, 17, 40], [false, true], "")];
const QUICK: &[Shape] = &[([512, 512, 512], [false, false], ""), ([4000, 45, 384], [false, true], " E-step")];
const FULL: &[Shape] = &[
    ([512, 512, 512], [false, false], ""),
    ([2048, 2048, 2048], [false, false], ""),
    ([4000, 45, 384], [false, true], " E-step"),
    ([45, 384, 4000], [true, false], " M-step"),
    ([100_000, 64, 384], [false, true], " E-step"),
    ([64, 384, 100_000], [true, false], " M-step"),
];

/// Operations that a software adapter is asked for at most.
const SOFTWARE: usize = 400_000_000;

pub fn run(bench: &mut Bench, places: &[Place]) -> Result<()> {
    let shapes = match bench.effort {
        Effort::Smoke => SMOKE,
        Effort::Quick => QUICK,
        Effort::Full => FULL,
    };
    for shape in shapes {
        let [m, n, k] = shape.0;
        let places: Vec<&Place> = places.iter().filter(|place| place.hardware || 2 * m * n * k <= SOFTWARE).collect();
        let single = Operands::<f32>::new(shape, |value| value);
        let half = Operands::<f16>::new(shape, f16::from_f32);
        let double = Operands::<f64>::new(shape, f64::from);
        let mut cases = Vec::new();
        for &place in &places {
            cases.push(single.case(place)?);
            cases.push(half.case(place)?);
            if place.device.is_cpu() {
                cases.push(double.case(place)?);
                for peer in PEERS {
                    cases.push(single.peer(place, peer));
                }
            }
        }
        bench.time("matmul", cases);
    }
    Ok(())
}

/// A crate's product of row-major matrices with f32 sums: a (m, k) or its transpose, b (k, n) or its transpose, into (m, n).
pub struct Peer {
    pub name: &'static str,
    pub multiply: Multiply,
}

type Multiply = fn(&Array2<f32>, &Array2<f32>, [bool; 2], &mut Array2<f32>);

/// What an EM iteration is held against: the fastest of these.
pub const PEERS: &[Peer] = &[
    Peer { name: "faer", multiply: by_faer },
    Peer { name: "gemm", multiply: by_gemm },
    Peer { name: "ndarray dot", multiply: by_ndarray },
];

fn by_faer(a: &Array2<f32>, b: &Array2<f32>, [transpose_a, transpose_b]: [bool; 2], out: &mut Array2<f32>) {
    let a_view = MatRef::from_row_major_slice(a.as_slice().unwrap_or(&[]), a.nrows(), a.ncols());
    let b_view = MatRef::from_row_major_slice(b.as_slice().unwrap_or(&[]), b.nrows(), b.ncols());
    let (m, n) = out.dim();
    let product = MatMut::from_row_major_slice_mut(out.as_slice_mut().unwrap_or(&mut []), m, n);
    let a_view = if transpose_a { a_view.transpose() } else { a_view };
    let b_view = if transpose_b { b_view.transpose() } else { b_view };
    faer_matmul(product, Accum::Replace, a_view, b_view, 1.0f32, Par::rayon(0));
}

fn by_ndarray(a: &Array2<f32>, b: &Array2<f32>, [transpose_a, transpose_b]: [bool; 2], out: &mut Array2<f32>) {
    let a = if transpose_a { a.t() } else { a.view() };
    let b = if transpose_b { b.t() } else { b.view() };
    ndarray::linalg::general_mat_mul(1.0, &a, &b, 0.0, out);
}

#[allow(unsafe_code, reason = "the crate gemm has no other door; the strides are those of the arrays")]
fn by_gemm(a: &Array2<f32>, b: &Array2<f32>, [transpose_a, transpose_b]: [bool; 2], out: &mut Array2<f32>) {
    let strides = |matrix: &Array2<f32>, transpose| {
        let row = matrix.ncols() as isize;
        // (between columns, between rows)
        if transpose { (row, 1) } else { (1, row) }
    };
    let (m, n) = out.dim();
    let k = if transpose_a { a.nrows() } else { a.ncols() };
    assert_eq!(k, if transpose_b { b.ncols() } else { b.nrows() });
    let (a_columns, a_rows) = strides(a, transpose_a);
    let (b_columns, b_rows) = strides(b, transpose_b);
    let threads = rayon::current_num_threads();
    let parallelism = if threads > 1 { gemm::Parallelism::Rayon(threads) } else { gemm::Parallelism::None };
    // SAFETY: all three are standard row-major arrays of these sizes, and `out` is borrowed mutably.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            n as isize,
            false,
            a.as_ptr(),
            a_columns,
            a_rows,
            b.as_ptr(),
            b_columns,
            b_rows,
            0.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// A pair of matrices as they are stored.
struct Operands<T> {
    shape: Shape,
    a: Array2<T>,
    b: Array2<T>,
}

impl<T: MatmulElement> Operands<T> {
    fn new(shape: &Shape, narrow: impl Fn(f32) -> T) -> Self {
        let ([m, n, k], [transpose_a, transpose_b], _) = *shape;
        let mut random = ChaCha8Rng::seed_from_u64((m * n * k) as u64);
        let mut matrix = |rows, columns, transpose| {
            let shape = if transpose { (columns, rows) } else { (rows, columns) };
            Array2::from_shape_simple_fn(shape, || narrow(random.random::<f32>() - 0.5))
        };
        let a = matrix(m, k, transpose_a);
        let b = matrix(k, n, transpose_b);
        Self { shape: *shape, a, b }
    }

    fn work(&self, kernel: &str) -> Work {
        let ([m, n, k], _, what) = self.shape;
        let (inputs, outputs) = (size_of::<T>() * (m * k + k * n), size_of::<T::Sum>() * m * n);
        Work {
            kernel: kernel.into(),
            shape: format!("{m} x {n} x {k}{what}"),
            dtype: T::NAME,
            flops: 2.0 * (m * n * k) as f64,
            bytes: (inputs + outputs) as f64,
            traffic: Some(Traffic::Read),
        }
    }

    fn case<'a>(&'a self, place: &'a Place) -> Result<Case<'a>>
    where
        T::Sum: Into<f64>,
    {
        let [transpose_a, transpose_b] = self.shape.1;
        let check = |product: &Array2<T::Sum>| self.check(product);
        let device = &place.device;
        let call = move |a: &Tensor<T, _>, b: &Tensor<T, _>| matmul(a, b, transpose_a, transpose_b);
        Ok(match device.as_gpu() {
            None => {
                let (a, b) = (device.tensor(&self.a)?, device.tensor(&self.b)?);
                let run = move || {
                    let (product, times) = host(|| call(&a, &b))?;
                    Ok((product.to_array()?, times))
                };
                Case::new(self.work("matmul"), place, run, check)
            }
            Some(gpu) => {
                let run = move || {
                    let upload = || Ok((device.tensor(&self.a)?, device.tensor(&self.b)?));
                    staged(gpu, upload, |(a, b)| call(a, b), |product| product.to_array())
                };
                Case::new(self.work("matmul"), place, run, check)
            }
        })
    }

    /// Every row against a random combination of columns in f64 (Freivalds), within 256 eps of the sum of magnitudes: sums of up to 128 terms
    /// one after the other, then a tree.
    fn check(&self, product: &Array2<T::Sum>) -> Result<String>
    where
        T::Sum: Into<f64>,
    {
        let ([m, n, k], [transpose_a, transpose_b], _) = self.shape;
        ensure!(product.dim() == (m, n), "the product is {:?}", product.dim());
        let eps = if <T::Sum as Element>::NAME == "f64" { f64::EPSILON } else { f64::from(f32::EPSILON) };
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let signs: Vec<f64> = (0..n).map(|_| if random.random::<bool>() { 1.0 } else { -1.0 }).collect();
        let a =
            |i: usize, l: usize| -> f64 { (if transpose_a { self.a[[l, i]] } else { self.a[[i, l]] }).widen().into() };
        let b =
            |l: usize, j: usize| -> f64 { (if transpose_b { self.b[[j, l]] } else { self.b[[l, j]] }).widen().into() };
        let mut combined = vec![0.0; k];
        let mut sizes = vec![0.0; k];
        for l in 0..k {
            for (j, sign) in signs.iter().enumerate() {
                combined[l] += sign * b(l, j);
                sizes[l] += b(l, j).abs();
            }
        }
        let mut worst: f64 = 0.0;
        for i in 0..m {
            let (mut expected, mut size) = (0.0, 0.0);
            for l in 0..k {
                expected += a(i, l) * combined[l];
                size += a(i, l).abs() * sizes[l];
            }
            let actual: f64 = signs.iter().enumerate().map(|(j, sign)| -> f64 { sign * product[[i, j]].into() }).sum();
            let error = (actual - expected).abs() / size / eps;
            ensure!(error <= 256.0, "row {i}: {actual:e}, expected {expected:e}, {error:.0} eps");
            worst = worst.max(error);
        }
        Ok(format!("products with a vector in f64, {worst:.2} eps"))
    }
}

impl Operands<f32> {
    fn peer<'a>(&'a self, place: &'a Place, peer: &'static Peer) -> Case<'a> {
        let [m, n, _] = self.shape.0;
        let mut out = Array2::zeros((m, n));
        let run = move || {
            let ((), times) = host(|| {
                (peer.multiply)(&self.a, &self.b, self.shape.1, &mut out);
                Ok(())
            })?;
            Ok((out.clone(), times))
        };
        Case::new(self.work(peer.name), place, run, |product| self.check(product))
    }
}
