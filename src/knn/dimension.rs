//! Local intrinsic dimension from the distances to neighbours.

use ndarray::{Array1, ArrayView2};

/// The maximum-likelihood estimate of the local intrinsic dimension at each query, from its distances to its nearest neighbours (queries, k), in any
/// order: `-1 / mean_i ln(r_i / r_k)` over its distances above 0, the largest, r_k, among them.
///
/// Distances of 0 (the query itself and its copies) are dropped, so where queries are rows of the base ask for one neighbour more. All distances
/// equal gives infinity, the limit of ever thinner shells; fewer than two of them above 0 gives NaN.
///
/// Source: Amsaleg et al., Estimating Local Intrinsic Dimensionality, KDD 2015, equation 9.
pub fn local_dimension(distances: ArrayView2<'_, f32>) -> Array1<f32> {
    let of_row = |row: ndarray::ArrayView1<'_, f32>| {
        let kept = || row.iter().copied().filter(|r| *r > 0.0).map(f64::from);
        let (count, largest) = kept().fold((0usize, 0.0f64), |(count, largest), r| (count + 1, largest.max(r)));
        if count < 2 {
            return f32::NAN;
        }
        let sum: f64 = kept().map(|r| (r / largest).ln()).sum();
        // -0 would give -infinity.
        if sum == 0.0 { f32::INFINITY } else { (-(count as f64) / sum) as f32 }
    };
    distances.outer_iter().map(of_row).collect()
}
