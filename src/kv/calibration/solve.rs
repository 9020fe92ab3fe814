//! From moments to projections.

use faer::{Mat, Side as Triangle};
use ndarray::{Array1, Array2, s};

use super::*;
use crate::kv::projections::Basis;

/// Eigenvalues of a metric are at least this share of the largest: what it does not see may not blow up.
const FLOOR: f64 = 1e-6;

/// What a projection is made of: x of covariance C about a mean, errors measured by a metric.
struct Problem {
    covariance: Array2<f64>,
    mean: Array1<f64>,
    metric: Option<Array2<f64>>,
}

impl Calibration {
    /// The best projections of every layer at full rank, columns in the order of what they keep: the first r are the best of rank r.
    ///
    /// With the covariance C and the metric M (of keys the mean of E\[q q^T\] / d over the group, of values W_o^T W_o summed over it, identity for
    /// [`Weighting::Pca`]): S = M^(1/2), S C S = U Lambda U^T, down = S U, up = U^T S^-1. The expected error of rank r is the sum of Lambda from r on.
    /// Eigenvalues of M are floored at 1e-6 of the largest. f64 throughout.
    ///
    /// # Errors
    /// [`Error::Argument`] for sets of heads that do not divide their number, an alpha outside 0..=1, [`Weighting::Asvd`] of rotated keys, and names the layer
    /// that lacks a moment.
    pub fn projections(&self, options: &ProjectionOptions) -> Result<Projections> {
        for joint in options.joint {
            if joint == 0 || !self.kv_heads.is_multiple_of(joint) {
                return argument("joint", format!("a divisor of {} KV heads", self.kv_heads), joint);
            }
        }
        if !(0.0..=1.0).contains(&options.alpha) {
            return argument("alpha", "0 to 1", options.alpha);
        }
        if options.weightings[0] == Weighting::Asvd && self.frame != Frame::Pre && self.rope.dims() > 0 {
            return argument("frame", "pre, for a decomposition of the weights of keys", self.frame);
        }
        let mut out = Projections::new(self.kv_heads, self.head_dim, self.rope.clone(), self.frame)?;
        for (&number, layer) in &self.layers {
            let bases = |side: Side| {
                let whole = self.problem(number, layer, side, options)?;
                let joint = options.joint[side as usize];
                let width = joint * self.head_dim;
                let sets = (0..self.kv_heads / joint).map(|set| {
                    let (first, last) = (set * width, (set + 1) * width);
                    let problem = Problem {
                        covariance: of_heads(&whole.covariance, first, last),
                        mean: whole.mean.slice(s![first..last]).to_owned(),
                        metric: whole.metric.as_ref().map(|metric| of_heads(metric, first, last)),
                    };
                    problem.solve(joint)
                });
                sets.collect::<Result<Vec<_>>>()
            };
            out = out.with_layer(number, bases(Side::Keys)?, bases(Side::Values)?)?;
        }
        Ok(out)
    }

    /// The problem of all heads side by side.
    fn problem(&self, number: usize, layer: &LayerMoments, side: Side, options: &ProjectionOptions) -> Result<Problem> {
        let weighting = options.weightings[side as usize];
        if weighting == Weighting::Asvd {
            let weights = needed(number, "weights", layer.weights[side as usize].as_ref())?;
            let inputs = needed(number, "absolute inputs", layer.inputs.as_ref())?;
            if weights.ncols() != inputs.sum.len() {
                let expected = format!("those of layer {number} have {}", weights.ncols());
                return argument("width of the inputs", expected, inputs.sum.len());
            }
            // W S S W^T: its eigenvectors are the left singular vectors of W S.
            let scales = inputs.sum.mapv(|sum| (sum / inputs.count).powf(options.alpha));
            let scaled = weights * &scales;
            let mean = Array1::zeros(weights.nrows());
            return Ok(Problem { covariance: scaled.dot(&scaled.t()), mean, metric: None });
        }
        let by_queries = weighting == Weighting::Query;
        let moments = match side {
            Side::Keys => needed(number, "moments of keys", layer.keys.as_ref())?,
            Side::Values if by_queries => needed(number, "moments of attended values", layer.attended.as_ref())?,
            Side::Values => needed(number, "moments of values", layer.values.as_ref())?,
        };
        let mut covariance = moments.moment();
        let mut mean = moments.mean();
        match options.centred {
            true => {
                let column = mean.view().insert_axis(Axis(1));
                covariance -= &column.dot(&column.t());
            }
            false => mean.fill(0.0),
        }
        let metric = match side {
            _ if !by_queries => None,
            Side::Keys => Some(self.query_metric(needed(number, "moments of queries", layer.queries.as_ref())?)),
            Side::Values => layer.output_gram.as_ref().map(|grams| self.block_diagonal(grams)),
        };
        Ok(Problem { covariance, mean, metric })
    }

    /// The mean of E[q q^T] / d over each group, on the diagonal.
    fn query_metric(&self, queries: &QueryMoments) -> Array2<f64> {
        let (d, group) = (self.head_dim, self.group());
        let mut of_groups = Array3::zeros((self.kv_heads, d, d));
        for (head, products) in queries.products.outer_iter().enumerate() {
            let scale = 1.0 / (queries.count * (d * group) as f64);
            of_groups.index_axis_mut(Axis(0), head / group).scaled_add(scale, &products);
        }
        self.block_diagonal(&of_groups)
    }

    fn block_diagonal(&self, blocks: &Array3<f64>) -> Array2<f64> {
        let (d, width) = (self.head_dim, self.kv_heads * self.head_dim);
        let mut out = Array2::zeros((width, width));
        for (head, block) in blocks.outer_iter().enumerate() {
            out.slice_mut(s![head * d..(head + 1) * d, head * d..(head + 1) * d]).assign(&block);
        }
        out
    }
}

fn needed<'a, T>(layer: usize, what: &'static str, found: Option<&'a T>) -> Result<&'a T> {
    match found {
        Some(found) => Ok(found),
        None => argument(what, format!("some for layer {layer}"), "none"),
    }
}

impl Problem {
    fn solve(self, heads: usize) -> Result<Basis> {
        let width = self.mean.len();
        let wide = |matrix: &Array2<f64>| {
            // Symmetric but for rounding.
            Mat::from_fn(width, width, |i, j| 0.5 * (matrix[[i, j]] + matrix[[j, i]]))
        };
        let (covariance, roots) = match &self.metric {
            None => (wide(&self.covariance), None),
            Some(metric) => {
                let (root, inverse) = roots(&wide(metric))?;
                (&root * wide(&self.covariance) * &root, Some((root, inverse)))
            }
        };
        let (values, vectors) = eigen(&covariance)?;
        let (down, up) = match roots {
            None => (vectors.clone(), vectors.transpose().to_owned()),
            Some((root, inverse)) => (&root * &vectors, vectors.transpose() * &inverse),
        };
        // Below zero by rounding only.
        let spectrum = values.into_iter().map(|value| value.max(0.0)).collect();
        let single = |matrix: &Mat<f64>| Array2::from_shape_fn((width, width), |(i, j)| matrix[(i, j)] as f32);
        let mean = self.mean.mapv(|x| x as f32);
        Ok(Basis::new(heads, mean, single(&down), single(&up))?.with_spectrum(Some(spectrum)))
    }
}

/// Eigenvalues, descending, and the eigenvectors in columns.
fn eigen(matrix: &Mat<f64>) -> Result<(Vec<f64>, Mat<f64>)> {
    let Ok(eigen) = matrix.self_adjoint_eigen(Triangle::Lower) else {
        return argument("moments", "a matrix with an eigendecomposition", "none that converged");
    };
    let n = matrix.nrows();
    let values = (0..n).rev().map(|i| eigen.S()[i]).collect();
    Ok((values, Mat::from_fn(n, n, |i, j| eigen.U()[(i, n - 1 - j)])))
}

/// The square root of a metric, and its inverse.
fn roots(metric: &Mat<f64>) -> Result<(Mat<f64>, Mat<f64>)> {
    let (values, vectors) = eigen(metric)?;
    let n = values.len();
    let largest = values.first().copied().unwrap_or(0.0);
    // Of nothing at all: every direction alike.
    let value = |k: usize| if largest > 0.0 { values[k].max(FLOOR * largest).sqrt() } else { 1.0 };
    let scaled = |by: &dyn Fn(usize) -> f64| Mat::from_fn(n, n, |i, k| vectors[(i, k)] * by(k));
    let root = scaled(&value) * vectors.transpose();
    let inverse = scaled(&|k| 1.0 / value(k)) * vectors.transpose();
    Ok((root, inverse))
}
