//! Rows to two dimensions: the two axes along which the components' means differ most.

use faer::{Mat, Side};
use ndarray::{Array1, Array2, ArrayView1, ArrayView2};

/// Points of a plane. The axes are the leading eigenvectors of the scatter between the components' means, weighted by
/// their sizes; where that has fewer than two (one or two components), the leading ones of the scatter within.
pub struct Projection {
    pub points: Vec<[f64; 2]>,
    /// The mean of each component's points, where it has any.
    pub centres: Vec<Option<[f64; 2]>>,
    /// The share of the scatter between the means that the two axes show.
    pub share: f64,
}

impl Projection {
    pub fn new(rows: ArrayView2<'_, f32>, assigned: &[u32], components: usize) -> Projection {
        let dim = rows.ncols();
        let mut means = Array2::<f64>::zeros((components, dim));
        let mut sizes = vec![0.0; components];
        for (row, component) in rows.outer_iter().zip(assigned) {
            let component = *component as usize;
            means.row_mut(component).zip_mut_with(&row, |sum, x| *sum += f64::from(*x));
            sizes[component] += 1.0;
        }
        let total = rows.nrows() as f64;
        let centre = means.sum_axis(ndarray::Axis(0)) / total;
        for (mut mean, size) in means.outer_iter_mut().zip(&sizes) {
            if *size > 0.0 {
                mean /= *size;
                mean -= &centre;
            }
            // A mean counts as often as it has rows.
            mean *= f64::sqrt(*size / total);
        }

        let (mut axes, share) = leading_axes(&means);
        while axes.len() < 2 {
            let axis = within_axis(rows, assigned, &means, &sizes, &centre, &axes);
            axes.push(axis);
        }
        let place = |row: ArrayView1<'_, f32>| {
            [0, 1]
                .map(|a: usize| row.iter().zip(&axes[a]).zip(&centre).map(|((x, u), c)| (f64::from(*x) - c) * u).sum())
        };
        let points: Vec<[f64; 2]> = rows.outer_iter().map(place).collect();
        let mut centres = vec![[0.0; 2]; components];
        for (point, component) in points.iter().zip(assigned) {
            let component = *component as usize;
            (0..2).for_each(|a| centres[component][a] += point[a] / sizes[component]);
        }
        let centres = centres.into_iter().zip(&sizes).map(|(centre, size)| (*size > 0.0).then_some(centre)).collect();
        Projection { points, centres, share }
    }
}

/// Up to two leading axes of the rows of `means`, by their Gram matrix: there are fewer of them than dimensions.
fn leading_axes(means: &Array2<f64>) -> (Vec<Array1<f64>>, f64) {
    let n = means.nrows();
    let gram = Mat::from_fn(n, n, |i, j| means.row(i).dot(&means.row(j)));
    let trace: f64 = (0..n).map(|i| gram[(i, i)]).sum();
    let Ok(eigen) = gram.self_adjoint_eigen(Side::Lower) else { return (Vec::new(), 0.0) };
    let (mut axes, mut shown) = (Vec::new(), 0.0);
    for k in (n.saturating_sub(2)..n).rev() {
        let value = eigen.S()[k];
        // Below the rounding of the sums, an axis is noise.
        if value > 1e-10 * trace && value > 0.0 {
            let axis = (0..n)
                .fold(Array1::zeros(means.ncols()), |sum: Array1<f64>, i| sum + &means.row(i) * eigen.U()[(i, k)]);
            axes.push(axis / value.sqrt());
            shown += value;
        }
    }
    (axes, if trace > 0.0 { shown / trace } else { 0.0 })
}

/// The leading axis of the rows about their components' means, at right angles to `axes`, by power iteration.
fn within_axis(
    rows: ArrayView2<'_, f32>,
    assigned: &[u32],
    means: &Array2<f64>,
    sizes: &[f64],
    centre: &Array1<f64>,
    axes: &[Array1<f64>],
) -> Array1<f64> {
    /// Enough rows and rounds for a picture.
    const ROWS: usize = 1000;
    const ROUNDS: usize = 30;
    let total = rows.nrows() as f64;
    let step = rows.nrows().div_ceil(ROWS);
    let residuals: Vec<Array1<f64>> = (0..rows.nrows())
        .step_by(step)
        .map(|i| {
            let component = assigned[i] as usize;
            let scale = f64::sqrt(total / sizes[component]);
            let mut residual = rows.row(i).mapv(f64::from);
            residual -= centre;
            residual.scaled_add(-scale, &means.row(component));
            for axis in axes {
                let along = residual.dot(axis);
                residual.scaled_add(-along, axis);
            }
            residual
        })
        .collect();
    // A start that no residual is likely to be orthogonal to.
    let mut axis = Array1::from_shape_fn(rows.ncols(), |j| f64::sin(1.0 + j as f64));
    for other in axes {
        let along = axis.dot(other);
        axis.scaled_add(-along, other);
    }
    for _ in 0..ROUNDS {
        let mut next = Array1::<f64>::zeros(axis.len());
        residuals.iter().for_each(|residual| next.scaled_add(residual.dot(&axis), residual));
        let norm = next.dot(&next).sqrt();
        if norm == 0.0 {
            break;
        }
        axis = next / norm;
    }
    let norm = axis.dot(&axis).sqrt();
    if norm > 0.0 { axis / norm } else { axis }
}
