//! How well components agree with labels: purity, normalised mutual information and the adjusted Rand index.
//!
//! Own few lines: no kept-up Rust crate has the three. Tested against scikit-learn 1.9's values.

use std::collections::{BTreeMap, BTreeSet};

/// Pairs of component and label that are counted at most: 128 MiB of counts.
pub const MAX_CELLS: usize = 1 << 24;

/// How many different labels there are.
pub fn distinct(labels: &[i64]) -> usize {
    labels.iter().collect::<BTreeSet<_>>().len()
}

/// How many rows each (component, label) pair has.
pub struct Confusion {
    /// `counts[component][label]`
    pub counts: Vec<Vec<u64>>,
    /// The value of each label, ascending.
    pub labels: Vec<i64>,
}

impl Confusion {
    /// Of one component and one label a row; components are `0..components`.
    pub fn new(assigned: &[u32], labels: &[i64], components: usize) -> Confusion {
        let distinct: BTreeMap<i64, usize> = labels.iter().map(|label| (*label, 0)).collect();
        let index: BTreeMap<i64, usize> = distinct.into_keys().zip(0..).collect();
        let mut counts = vec![vec![0; index.len()]; components];
        for (component, label) in assigned.iter().zip(labels) {
            counts[*component as usize][index[label]] += 1;
        }
        Confusion { counts, labels: index.into_keys().collect() }
    }

    fn component_sizes(&self) -> Vec<u64> {
        self.counts.iter().map(|row| row.iter().sum()).collect()
    }

    /// The number of rows of each label.
    pub fn label_sizes(&self) -> Vec<u64> {
        (0..self.labels.len()).map(|j| self.counts.iter().map(|row| row[j]).sum()).collect()
    }

    fn total(&self) -> f64 {
        self.component_sizes().iter().sum::<u64>() as f64
    }

    /// The share of rows that have the most frequent label of their component: 1 is best, and free with as many
    /// components as rows.
    pub fn purity(&self) -> f64 {
        let best: u64 = self.counts.iter().filter_map(|row| row.iter().max()).sum();
        best as f64 / self.total()
    }

    /// Mutual information over the arithmetic mean of the two entropies: 0 to 1, scikit-learn's
    /// `normalized_mutual_info_score` with its default `average_method="arithmetic"`. 1 where both sides have one class.
    pub fn nmi(&self) -> f64 {
        let total = self.total();
        let entropy = |sizes: &[u64]| {
            let p = sizes.iter().filter(|n| **n > 0).map(|n| *n as f64 / total);
            -p.map(|p| p * p.ln()).sum::<f64>()
        };
        let (components, labels) = (self.component_sizes(), self.label_sizes());
        let mean = 0.5 * (entropy(&components) + entropy(&labels));
        if mean == 0.0 {
            return 1.0;
        }
        let mut mutual = 0.0;
        for (row, a) in self.counts.iter().zip(&components) {
            for (n, b) in row.iter().zip(&labels).filter(|(n, _)| **n > 0) {
                let n = *n as f64;
                mutual += n / total * (n * total / (*a as f64 * *b as f64)).ln();
            }
        }
        (mutual / mean).clamp(0.0, 1.0)
    }

    /// The Rand index corrected for chance (Hubert and Arabie 1985): 1 for equal partitions, 0 expected of random ones.
    pub fn ari(&self) -> f64 {
        let pairs = |n: u64| n as f64 * (n as f64 - 1.0) / 2.0;
        let together: f64 = self.counts.iter().flatten().map(|n| pairs(*n)).sum();
        let components: f64 = self.component_sizes().into_iter().map(pairs).sum();
        let labels: f64 = self.label_sizes().into_iter().map(pairs).sum();
        let all = self.total() * (self.total() - 1.0) / 2.0;
        let (expected, best) = (components * labels / all.max(1.0), 0.5 * (components + labels));
        if best == expected { 1.0 } else { (together - expected) / (best - expected) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sums of a few logarithms: some eps, with room.
    const TOLERANCE: f64 = 1e-13;

    fn check(assigned: &[u32], labels: &[i64], purity: f64, nmi: f64, ari: f64) {
        let components = assigned.iter().max().map_or(0, |most| *most as usize + 1);
        let confusion = Confusion::new(assigned, labels, components);
        for (name, found, expected) in
            [("purity", confusion.purity(), purity), ("nmi", confusion.nmi(), nmi), ("ari", confusion.ari(), ari)]
        {
            assert!((found - expected).abs() < TOLERANCE, "{name} is {found}, expected {expected}");
        }
    }

    /// Values of scikit-learn 1.9.1: `normalized_mutual_info_score`, `adjusted_rand_score`, and the row maxima of
    /// `contingency_matrix`.
    #[test]
    fn scikit_learn_agrees() {
        check(&[0, 0, 1, 2], &[0, 0, 1, 1], 1.0, 0.8, 0.571_428_571_428_571_4);
        check(&[0, 0, 0, 1, 1, 1], &[0, 0, 1, 1, 2, 2], 2.0 / 3.0, 0.515_803_742_979_388_9, 0.242_424_242_424_242_43);
        check(&[0, 1, 0, 1], &[0, 0, 1, 1], 0.5, 0.0, -0.5);
        check(&[0, 0, 0, 0], &[0, 1, 2, 3], 0.25, 0.0, 0.0);
        check(&[0, 0, 0], &[5, 5, 5], 1.0, 1.0, 1.0);
        let squares: Vec<u32> = (0..60).map(|i| (i * i + 3 * i) % 7).collect();
        let nines: Vec<i64> = (0..60).map(|i| i / 9).collect();
        check(&squares, &nines, 11.0 / 60.0, 0.015_447_229_729_884_188, -0.057_430_898_247_101_21);
        let tens: Vec<u32> = (0..60).map(|i| i / 10).collect();
        let shifted: Vec<i64> = (0..60).map(|i| (i + (i * i) % 5) / 9).collect();
        check(&tens, &shifted, 41.0 / 60.0, 0.718_631_896_908_244, 0.519_192_157_789_065_3);
    }

    /// Labels need not be 0, 1, 2, and a component may be empty.
    #[test]
    fn any_labels_and_empty_components() {
        let confusion = Confusion::new(&[3, 3, 0], &[-7, -7, 900], 5);
        assert_eq!(confusion.labels, [-7, 900]);
        assert_eq!(confusion.counts, [vec![0, 1], vec![0, 0], vec![0, 0], vec![2, 0], vec![0, 0]]);
        assert_eq!((confusion.purity(), confusion.ari()), (1.0, 1.0));
    }
}
