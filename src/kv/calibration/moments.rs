//! Weighted sums that add up, and what they are means of.

use ndarray::{Array1, Array2, Array3};

use super::by_heads;

/// Sums of rows of KV heads side by side and of their products; each head has its own weights, products between heads those' geometric mean.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Moments {
    /// [kv_heads].
    pub(super) weights: Array1<f64>,
    /// [kv_heads * d].
    pub(super) sums: Array1<f64>,
    /// [kv_heads * d, kv_heads * d].
    pub(super) products: Array2<f64>,
}

impl Moments {
    /// Both together.
    pub(super) fn merged(mine: Option<Self>, other: Option<&Self>) -> Option<Self> {
        match (mine, other) {
            (Some(mut mine), Some(other)) => {
                mine.weights += &other.weights;
                mine.sums += &other.sums;
                mine.products += &other.products;
                Some(mine)
            }
            (mine, other) => mine.or_else(|| other.cloned()),
        }
    }

    /// Of means that stand for these weights.
    pub(super) fn of_means(weights: Array1<f64>, mean: &Array1<f64>, moment: &Array2<f64>) -> Self {
        let d = mean.len() / weights.len();
        let sums = Array1::from_shape_fn(mean.len(), |i| mean[i] * weights[i / d]);
        let scale = |i: usize, j: usize| (weights[i / d] * weights[j / d]).sqrt();
        let products = Array2::from_shape_fn(moment.dim(), |(i, j)| moment[[i, j]] * scale(i, j));
        Self { weights, sums, products }
    }

    /// E[x].
    pub(super) fn mean(&self) -> Array1<f64> {
        by_heads(&self.sums, &self.weights)
    }

    /// E[x x^T].
    pub(super) fn moment(&self) -> Array2<f64> {
        let d = self.sums.len() / self.weights.len();
        let scale = |i: usize, j: usize| (self.weights[i / d] * self.weights[j / d]).sqrt();
        Array2::from_shape_fn(self.products.dim(), |(i, j)| match scale(i, j) {
            scale if scale > 0.0 => self.products[[i, j]] / scale,
            _ => 0.0,
        })
    }
}

/// Sums of products of the rows of each query head.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct QueryMoments {
    pub(super) count: f64,
    /// [q_heads, d, d].
    pub(super) products: Array3<f64>,
}

impl QueryMoments {
    /// Both together.
    pub(super) fn merged(mine: Option<Self>, other: Option<&Self>) -> Option<Self> {
        match (mine, other) {
            (Some(mut mine), Some(other)) => {
                mine.count += other.count;
                mine.products += &other.products;
                Some(mine)
            }
            (mine, other) => mine.or_else(|| other.cloned()),
        }
    }
}

/// Sums of the absolute inputs of a layer.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Inputs {
    pub(super) count: f64,
    /// [width].
    pub(super) sum: Array1<f64>,
}

impl Inputs {
    /// Both together; of the same width.
    pub(super) fn merged(mine: Option<Self>, other: Option<&Self>) -> Option<Self> {
        match (mine, other) {
            (Some(mut mine), Some(other)) => {
                mine.count += other.count;
                mine.sum += &other.sum;
                Some(mine)
            }
            (mine, other) => mine.or_else(|| other.cloned()),
        }
    }
}
