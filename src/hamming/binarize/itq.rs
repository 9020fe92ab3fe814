//! Iterative quantisation: the rotation of the principal axes under which rows lie closest to the corners of a cube.

use faer::{Mat, MatRef, Side};
use ndarray::{Array1, Array2, ArrayView2, Axis, Ix2};

use super::{Binarizer, PLACE, check_bits, finite_rows, gaussian};
use crate::gpu::block_on;
use crate::kernels::{MatmulElement, SignRule, matmul};
use crate::tensor::Tensor;
use crate::{Error, Result};

/// How [`Binarizer::itq`] learns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ItqOptions {
    bits: usize,
    iterations: usize,
    seed: u64,
}

impl ItqOptions {
    /// Codes of `bits` bits, 50 iterations, seed 0.
    pub fn new(bits: usize) -> Self {
        Self { bits, iterations: 50, seed: 0 }
    }

    /// How often the rotation is fitted to the signs anew; 0 leaves a random one. Default 50.
    pub fn iterations(mut self, iterations: usize) -> Self {
        self.iterations = iterations;
        self
    }

    /// Seed of the first rotation. Default 0.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }
}

impl Binarizer {
    /// Learned from rows (n, dim): their first `bits` principal axes W, turned by the orthogonal R that makes |B - X W R| small for the signs B of X W R. R
    /// begins random and is, in turn with B, the polar factor of W'X'B: the error never grows. The mean of the rows is the threshold.
    ///
    /// It is computed on the host: in f64 the covariance of the features and its eigenvectors, in f32 the rest, n bits elements.
    ///
    /// # Errors
    /// As [`Binarizer::mean`]; [`Error::Argument`] where `bits` is above the features, or there are fewer than two rows.
    ///
    /// Source: Gong and Lazebnik, Iterative Quantization: A Procrustean Approach to Learning Binary Codes, CVPR 2011.
    pub fn itq<T: MatmulElement<Sum = f32>>(rows: &Tensor<T, Ix2>, options: &ItqOptions) -> Result<Self> {
        block_on(Self::itq_async(rows, options))
    }

    /// [`Binarizer::itq`] where a thread must not block.
    ///
    /// # Errors
    /// As [`Binarizer::itq`].
    pub async fn itq_async<T: MatmulElement<Sum = f32>>(rows: &Tensor<T, Ix2>, options: &ItqOptions) -> Result<Self> {
        let dim = rows.shape()[1];
        check_bits(options.bits, dim)?;
        let mut rows = finite_rows(rows).await?;
        if rows.nrows() < 2 {
            let expected = "at least 2 to learn from".to_string();
            return Err(Error::Argument { place: PLACE, quantity: "rows", expected, found: "1".into() });
        }
        let mean = rows.mapv(f64::from).mean_axis(Axis(0)).unwrap_or_else(|| Array1::zeros(dim));
        for mut row in rows.outer_iter_mut() {
            row.zip_mut_with(&mean, |value, mean| *value = (f64::from(*value) - mean) as f32);
        }
        let axes = principal_axes(&rows, options.bits)?;
        let projected = product(&rows, &axes, false)?;
        let rotation = rotate(&projected, options)?;
        // (bits, dim): the axes, turned.
        let planes = product(&rotation, &axes, true)?;
        let thresholds = planes
            .outer_iter()
            .map(|plane| plane.iter().zip(&mean).map(|(p, m)| f64::from(*p) * m).sum::<f64>() as f32)
            .collect();
        Ok(Self {
            dim,
            bits: options.bits,
            rule: SignRule::default(),
            planes: Some(planes),
            thresholds: Some(thresholds),
        })
    }
}

/// a b, or a' b' with `turned`.
fn product(a: &Array2<f32>, b: &Array2<f32>, turned: bool) -> Result<Array2<f32>> {
    matmul(&Tensor::host(a.clone()), &Tensor::host(b.clone()), turned, turned)?.to_array()
}

/// The eigenvectors of the `count` largest eigenvalues of the covariance of centred rows, as columns (dim, count).
fn principal_axes(rows: &Array2<f32>, count: usize) -> Result<Array2<f32>> {
    let (n, dim) = rows.dim();
    if n < dim
        && count < n
        && let Some(axes) = axes_of_products(rows, count)?
    {
        return Ok(axes);
    }
    let mut covariance = Array2::<f64>::zeros((dim, dim));
    // In blocks, so that f64 copies stay small.
    for block in rows.axis_chunks_iter(Axis(0), 1024) {
        let block = Tensor::host(block.mapv(f64::from));
        covariance += &matmul(&block, &block, true, false)?.to_array()?;
    }
    let eigen = view(&covariance.view()).self_adjoint_eigen(Side::Lower).map_err(|_| no_convergence("eigenvectors"))?;
    // Eigenvalues rise.
    Ok(Array2::from_shape_fn((dim, count), |(i, j)| eigen.U()[(i, dim - 1 - j)] as f32))
}

/// The same from X X' (n, n), the smaller matrix: X'u of its eigenvectors u, of unit length. None where one of these is nothing but rounding.
fn axes_of_products(rows: &Array2<f32>, count: usize) -> Result<Option<Array2<f32>>> {
    let n = rows.nrows();
    let wide = Tensor::host(rows.mapv(f64::from));
    let products = matmul(&wide, &wide, false, true)?.to_array()?;
    let eigen = view(&products.view()).self_adjoint_eigen(Side::Lower).map_err(|_| no_convergence("eigenvectors"))?;
    let vectors = Array2::from_shape_fn((n, count), |(i, j)| eigen.U()[(i, n - 1 - j)]);
    let mut axes = matmul(&wide, &Tensor::host(vectors), true, false)?.to_array()?;
    let lengths: Vec<f64> =
        axes.columns().into_iter().map(|axis| axis.iter().map(|x| x * x).sum::<f64>().sqrt()).collect();
    // The squares of these are eigenvalues, known within some eps of the largest.
    if lengths.iter().any(|length| *length <= 1e-5 * lengths[0]) {
        return Ok(None);
    }
    for (mut axis, length) in axes.columns_mut().into_iter().zip(lengths) {
        axis /= length;
    }
    Ok(Some(axes.mapv(|x| x as f32)))
}

/// R (bits, bits).
fn rotate(projected: &Array2<f32>, options: &ItqOptions) -> Result<Array2<f32>> {
    let bits = options.bits;
    let random: Vec<f64> = gaussian(bits * bits, options.seed).into_iter().map(f64::from).collect();
    let mut rotation = polar(MatRef::from_row_major_slice(&random, bits, bits))?;
    for _ in 0..options.iterations {
        let turned = product(projected, &rotation, false)?;
        let signs = turned.mapv(|value| if value >= 0.0 { 1.0f32 } else { -1.0 });
        let agreement =
            matmul(&Tensor::host(projected.clone()), &Tensor::host(signs), true, false)?.to_array()?.mapv(f64::from);
        rotation = polar(view(&agreement.view()))?;
    }
    Ok(rotation)
}

/// The orthogonal matrix nearest to a square one: U V' of its singular value decomposition.
fn polar(matrix: MatRef<'_, f64>) -> Result<Array2<f32>> {
    let svd = matrix.thin_svd().map_err(|_| no_convergence("singular vectors"))?;
    let nearest: Mat<f64> = svd.U() * svd.V().transpose();
    Ok(Array2::from_shape_fn((matrix.nrows(), matrix.ncols()), |(i, j)| nearest[(i, j)] as f32))
}

fn view<'a>(matrix: &'a ArrayView2<'_, f64>) -> MatRef<'a, f64> {
    MatRef::from_row_major_slice(matrix.as_slice().unwrap_or(&[]), matrix.nrows(), matrix.ncols())
}

fn no_convergence(quantity: &'static str) -> Error {
    Error::Argument { place: PLACE, quantity, expected: "rows that have them".into(), found: "no convergence".into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;

    fn error(projected: &Array2<f32>, rotation: &Array2<f32>) -> f64 {
        let turned = projected.mapv(f64::from).dot(&rotation.mapv(f64::from));
        turned.mapv(|value| (value.abs() - 1.0).powi(2)).sum()
    }

    /// Fewer rows than features, by both ways; and rows of fewer dimensions than bits.
    #[test]
    fn axes_of_few_rows() {
        let scale = Array1::from_shape_fn(60, |j| 3.0 / (1.0 + j as f32));
        let rows = Array2::from_shape_vec((40, 60), gaussian(40 * 60, 4)).unwrap() * scale;
        let few = axes_of_products(&rows, 16).unwrap().unwrap();
        assert_eq!(principal_axes(&rows, 16).unwrap(), few);
        // Twice the same rows are not fewer than the features, and have the same axes.
        let twice = ndarray::concatenate(Axis(0), &[rows.view(), rows.view()]).unwrap();
        let many = principal_axes(&twice, 16).unwrap();
        for (a, b) in few.columns().into_iter().zip(many.columns()) {
            let product: f32 = a.iter().zip(b).map(|(a, b)| a * b).sum();
            // Up to the sign; the gaps between eigenvalues are above a thousandth of them.
            assert!((product.abs() - 1.0).abs() < 1e-4, "{product}");
        }
        let flat = Array2::from_shape_fn((40, 60), |(i, j)| if j < 3 { rows[[i, j]] } else { 0.0 });
        assert!(axes_of_products(&flat, 16).unwrap().is_none());
        assert!(principal_axes(&flat, 16).unwrap().iter().all(|x| x.is_finite()));
    }

    #[test]
    fn the_error_falls_and_the_rotation_is_one() {
        let rows = Array2::from_shape_vec((500, 40), gaussian(500 * 40, 3)).unwrap();
        let scale = Array1::from_shape_fn(40, |j| 2.0 / (1.0 + j as f32));
        let rows = rows * scale;
        let axes = principal_axes(&rows, 16).unwrap();
        // Axes of the features themselves, but for the noise of 500 rows.
        assert!(axes[[0, 0]].abs() > 0.99, "{}", axes[[0, 0]]);
        let projected = rows.dot(&axes);
        let mut last = f64::INFINITY;
        for iterations in 0..12 {
            let rotation = rotate(&projected, &ItqOptions::new(16).iterations(iterations).seed(5)).unwrap();
            let unit = rotation.t().dot(&rotation);
            // Rounded to f32, sums of 16.
            assert!(unit.indexed_iter().all(|((i, j), x)| (x - f32::from(u8::from(i == j))).abs() < 1e-5));
            let error = error(&projected, &rotation);
            assert!(error <= last * (1.0 + 1e-6), "iteration {iterations}: {error} after {last}");
            last = error;
        }
        let device = Device::cpu();
        let binarizer = Binarizer::itq(&device.tensor(&rows).unwrap(), &ItqOptions::new(16).iterations(3)).unwrap();
        assert_eq!((binarizer.dim(), binarizer.bits()), (40, 16));
        let same = Binarizer::itq(&device.tensor(&rows).unwrap(), &ItqOptions::new(16).iterations(3)).unwrap();
        assert_eq!(binarizer, same, "one seed, one result");
        let planes = binarizer.planes.unwrap();
        let product: f32 = planes.row(0).iter().zip(planes.row(1)).map(|(a, b)| a * b).sum();
        assert!(product.abs() < 1e-5, "{product}");
    }
}
