//! The rows that may be among the k nearest of one query, from keys that are known within bounds.

use super::Metric;

/// A row whose key lies in `lower..=upper`.
#[derive(Clone, Copy)]
struct Candidate {
    lower: f64,
    upper: f64,
    id: u32,
}

/// What is known of one query: a row is kept while its `lower` is not above the k-th smallest `upper` so far. The k-th smallest key of all is at most
/// that, so no row of the k nearest is dropped, nor one that ties with the last of them.
pub(super) struct Candidates {
    k: usize,
    held: Vec<Candidate>,
    /// The k-th smallest upper bound when last looked.
    threshold: f64,
    /// How many to hold before looking again.
    room: usize,
}

/// How far a product may be from the exact one.
#[derive(Clone, Copy)]
pub(super) struct Bound {
    /// Of a row of length 1, times the query's length.
    relative: f64,
    absolute: f64,
    /// Of the f64 parts, times the square of both lengths together.
    wide: f64,
}

impl Bound {
    /// Of products of `dim` terms: each f32 product and sum rounds by at most 2^-24 of sum |q b| <= |q| |b| (gamma_dim of Higham, Accuracy and Stability
    /// of Numerical Algorithms, 3.1, in any order of summation; on a GPU 128 terms at a time, whence the 160), and unit rows by twice that of themselves;
    /// 2 % more for the products of these. What underflows is at most the smallest normal number a term. Squared lengths, and the distances that are
    /// computed again, round as sums of f64.
    pub fn new(dim: usize) -> Self {
        let rounding = 0.5 * f64::from(f32::EPSILON);
        let terms = dim as f64 + 164.0;
        let relative = 1.02 * terms * rounding / (1.0 - (terms * rounding).min(0.5));
        let absolute = 2.0 * dim as f64 * f64::from(f32::MIN_POSITIVE);
        Self { relative, absolute, wide: 2.0 * (dim as f64 + 16.0) * f64::EPSILON }
    }
}

impl Candidates {
    pub fn new(k: usize) -> Self {
        Self { k, held: Vec::new(), threshold: f64::INFINITY, room: (4 * k).max(256) }
    }

    /// The rows from `first` on, by their products with the query; `lengths` are theirs, `length` is the query's (with the cosine all are 1).
    pub fn add(&mut self, metric: Metric, bound: Bound, length: f64, lengths: &[f64], products: &[f32], first: u32) {
        // key = a |b|^2 + c q'b, off by at most |c| times the product's error. |q|^2 is the same for all.
        let (square, factor) = match metric {
            Metric::L2 => (1.0, -2.0),
            Metric::Cosine => (0.0, -2.0),
            Metric::InnerProduct => (0.0, -1.0),
        };
        let (per_length, absolute) = match metric {
            Metric::Cosine => (0.0, 2.0 * (bound.relative + bound.absolute)),
            _ => (-factor * bound.relative * length, -factor * bound.absolute),
        };
        let cosine = metric == Metric::Cosine;
        for ((product, row_length), id) in products.iter().zip(lengths).zip(first..) {
            let key = square * row_length * row_length + factor * f64::from(*product);
            let both = if cosine { 2.0 } else { length + row_length };
            let slack = per_length * row_length + absolute + bound.wide * both * both;
            // A product that overflowed says nothing, whatever its sign: other terms may outweigh the one that did.
            let known = product.is_finite();
            let (lower, upper) = if known { (key - slack, key + slack) } else { (f64::NEG_INFINITY, f64::INFINITY) };
            if lower > self.threshold {
                continue;
            }
            self.held.push(Candidate { lower, upper, id });
            if self.held.len() >= self.room {
                self.prune();
                // Ties may leave many.
                self.room = self.room.max(2 * self.held.len());
            }
        }
    }

    fn prune(&mut self) {
        if self.held.len() < self.k {
            return;
        }
        let (_, kth, _) = self.held.select_nth_unstable_by(self.k - 1, |a, b| a.upper.total_cmp(&b.upper));
        self.threshold = self.threshold.min(kth.upper);
        let threshold = self.threshold;
        self.held.retain(|candidate| candidate.lower <= threshold);
    }

    /// The ids that remain.
    pub fn finish(mut self) -> Vec<u32> {
        self.prune();
        self.held.into_iter().map(|candidate| candidate.id).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keys as far off as they may be never lose one of the k nearest.
    #[test]
    fn the_nearest_remain_however_keys_are_off() {
        let mut state = 7u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f64 / (1u64 << 24) as f64
        };
        // Of 10^6 terms: an error of 6 % of the lengths, so that the order of products says little.
        let bound = Bound::new(1_000_000);
        assert!(bound.relative > 0.05 && bound.relative < 0.07);
        for (k, n) in [(1, 1), (1, 500), (10, 2000), (100, 90), (300, 1000)] {
            let exact: Vec<f64> = (0..n).map(|_| (random() * 40.0).floor() / 20.0 - 1.0).collect();
            let products: Vec<f32> =
                exact.iter().map(|x| (x + (2.0 * random() - 1.0) * 0.99 * bound.relative) as f32).collect();
            let mut candidates = Candidates::new(k);
            for (piece, first) in products.chunks(97).zip((0..).step_by(97)) {
                candidates.add(Metric::InnerProduct, bound, 1.0, &vec![1.0; piece.len()], piece, first);
            }
            let kept = candidates.finish();
            let mut order: Vec<u32> = (0..n as u32).collect();
            order.sort_by(|a, b| exact[*b as usize].total_cmp(&exact[*a as usize]).then(a.cmp(b)));
            for id in order.iter().take(k) {
                assert!(kept.contains(id), "k {k}, n {n}: {id} is lost");
            }
            assert!(k >= n || n < 500 || kept.len() < n, "k {k}, n {n}: all {} kept", kept.len());
        }
    }
}
