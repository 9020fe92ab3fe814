//! How well codes retrieve what has their label: mean average precision, precision within a radius and among the first N, precision and recall over the radius.
//!
//! Everything comes of two histograms a query, of all codes and of the relevant ones over the distance, so nothing is sorted and distances are held a tile at a
//! time. Only what depends on the order of codes at equal distance reads the base a second time, to count who comes before whom.

mod average;
mod count;

use std::hash::Hash;

use ndarray::Array2;

use super::Codes;
use crate::gpu::block_on;
use crate::{Error, Result};
use average::Top;

const PLACE: &str = "evaluate";

/// What [`evaluate()`] counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EvaluateOptions {
    tops: Vec<usize>,
    leave_one_out: bool,
}

impl EvaluateOptions {
    /// Everything but first-N figures, and queries are not rows of the base.
    pub fn new() -> Self {
        Self::default()
    }

    /// Also figures of the first N codes of a query, for each of these N.
    pub fn tops(mut self, tops: &[usize]) -> Self {
        self.tops = tops.to_vec();
        self
    }

    /// Query i is row i of the base, and not among what it may find. Default: no.
    pub fn leave_one_out(mut self, leave: bool) -> Self {
        self.leave_one_out = leave;
        self
    }
}

/// Of the first N codes of a query, or all where the base has fewer; means over the queries.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TopN {
    /// N.
    pub n: usize,
    /// mAP@N with the lowest id first among equal distances. AP@N = (1 / R_N) sum_{i <= N} rel_i P@i, R_N the relevant ones among the first N; 0 where there
    /// are none.
    pub map: f64,
    /// Its expectation where codes at equal distance come in random order.
    pub map_tie_aware: f64,
    /// R_N / N, the lowest id first.
    pub precision: f64,
    /// Its expectation.
    pub precision_tie_aware: f64,
    /// The share of queries with a relevant code among the first N, the lowest id first: recall@N where one code is relevant.
    pub hits: f64,
    /// Its expectation.
    pub hits_tie_aware: f64,
    /// The share of queries that have one in any order of ties.
    pub hits_sure: f64,
}

/// Of the codes at most `radius` bits from a query; means over the queries.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WithinRadius {
    /// In bits, inclusive.
    pub radius: usize,
    /// The relevant share of what is within; 0 where nothing is.
    pub precision: f64,
    /// The share of the relevant codes that is within, over the queries that have any.
    pub recall: f64,
    /// The share of queries with nothing within.
    pub empty_balls: f64,
}

/// What [`evaluate()`] found.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// Number of queries.
    pub queries: usize,
    /// Number of codes in the base.
    pub base: usize,
    /// Bits of a code.
    pub bits: usize,
    /// Queries with no relevant code, which count as 0 in every mean but that of recall.
    pub without_relevant: usize,
    /// mAP over the whole base, the lowest id first among equal distances.
    pub map_all: f64,
    /// Its expectation where codes at equal distance come in random order.
    pub map_all_tie_aware: f64,
    /// For each N of [`EvaluateOptions::tops`].
    pub tops: Vec<TopN>,
    /// For each radius from 0 to `bits`: the precision-recall curve.
    pub radii: Vec<WithinRadius>,
    /// Pairs of a query and a code of its label, at each distance from 0 to `bits`.
    pub same_label: Vec<u64>,
    /// Pairs of different labels.
    pub different_label: Vec<u64>,
}

/// What one query adds to the means.
#[derive(Default)]
struct OfQuery {
    relevant: u64,
    average_precision: f64,
    expected: f64,
    tops: Vec<(Top, Top)>,
}

/// Retrieval of `base` (one label a code) by `queries` (one label each): a code is relevant to a query of its label.
///
/// * codes of one width on one device: distances are computed there, and counted there; the order of ties is counted on the host
///
/// Precision's and recall's means, and mAP, are over all queries; a query with nothing relevant has an average precision of 0 and counts.
///
/// Deep-hash papers differ in how they break ties, which moves mAP by up to 0.1 at 16 bits: the value for the lowest id first, which [`Index`](super::Index) returns, and
/// the exact expectation over all orders of ties are both given.
///
/// # Errors
/// [`Error::Argument`] for codes of other widths, or N = 0; [`Error::Shape`] where base or queries are empty, where there is not one label a code, or for leave-one-out
/// as many queries as codes; [`Error::DeviceMismatch`]; the device's own.
pub fn evaluate<L: Eq + Hash + Sync>(
    base: &Codes,
    labels: &[L],
    queries: &Codes,
    query_labels: &[L],
    options: &EvaluateOptions,
) -> Result<Evaluation> {
    block_on(evaluate_async(base, labels, queries, query_labels, options))
}

/// [`evaluate()`] where a thread must not block.
///
/// # Errors
/// As [`evaluate()`].
pub async fn evaluate_async<L: Eq + Hash + Sync>(
    base: &Codes,
    labels: &[L],
    queries: &Codes,
    query_labels: &[L],
    options: &EvaluateOptions,
) -> Result<Evaluation> {
    base.agree(PLACE, "queries", queries)?;
    let shape = |quantity, expected: String, found: usize| Error::Shape {
        place: PLACE,
        quantity,
        expected,
        found: vec![found],
    };
    for (quantity, codes) in [("base", base), ("queries", queries)] {
        if codes.is_empty() {
            return Err(shape(quantity, "at least one code".into(), 0));
        }
    }
    for (quantity, codes, labels) in
        [("labels", base.len(), labels.len()), ("query_labels", queries.len(), query_labels.len())]
    {
        if codes != labels {
            return Err(shape(quantity, format!("[{codes}], one a code"), labels));
        }
    }
    if options.leave_one_out && queries.len() != base.len() {
        return Err(shape("queries", format!("the {} of the base, to leave one out", base.len()), queries.len()));
    }
    if options.tops.contains(&0) {
        let expected = "at least 1".to_string();
        return Err(Error::Argument { place: PLACE, quantity: "N", expected, found: "0".into() });
    }
    // What a query may find.
    let others = base.len() - usize::from(options.leave_one_out);
    let tops: Vec<u64> = options.tops.iter().map(|n| (*n).min(others) as u64).collect();
    let task = count::Task { base, labels, queries, query_labels, leave_one_out: options.leave_one_out, tops };

    let bits = base.bits();
    let mut sums = Sums::new(bits, options.tops.len());
    for first in (0..queries.len()).step_by(count::queries_at_once(bits)) {
        let end = (first + count::queries_at_once(bits)).min(queries.len());
        let counts = task.histograms(first, end).await?;
        let ordered = task.in_order(first, end, &counts).await?;
        for (counts, of_query) in counts.iter().zip(ordered) {
            sums.add(counts, &of_query);
        }
    }
    Ok(sums.means(base.len(), queries.len(), options))
}

/// Sums over queries.
struct Sums {
    without_relevant: usize,
    map: [f64; 2],
    tops: Vec<[f64; 7]>,
    /// precision, recall and empty balls at each radius.
    radii: Vec<[f64; 3]>,
    pairs: Array2<u64>,
}

impl Sums {
    fn new(bits: usize, tops: usize) -> Self {
        Self {
            without_relevant: 0,
            map: [0.0; 2],
            tops: vec![[0.0; 7]; tops],
            radii: vec![[0.0; 3]; bits + 1],
            pairs: Array2::zeros((2, bits + 1)),
        }
    }

    fn add(&mut self, counts: &[[u32; 2]], of_query: &OfQuery) {
        self.without_relevant += usize::from(of_query.relevant == 0);
        self.map[0] += of_query.average_precision;
        self.map[1] += of_query.expected;
        for (sums, (lowest_id, expected)) in self.tops.iter_mut().zip(&of_query.tops) {
            let values = [
                lowest_id.average_precision,
                expected.average_precision,
                lowest_id.precision,
                expected.precision,
                lowest_id.hit,
                expected.hit,
                f64::from(expected.sure),
            ];
            sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
        }
        let (mut all, mut relevant) = (0u64, 0u64);
        for (distance, (sums, [more, more_relevant])) in self.radii.iter_mut().zip(counts).enumerate() {
            all += u64::from(*more);
            relevant += u64::from(*more_relevant);
            match all {
                0 => sums[2] += 1.0,
                _ => sums[0] += relevant as f64 / all as f64,
            }
            if of_query.relevant > 0 {
                sums[1] += relevant as f64 / of_query.relevant as f64;
            }
            self.pairs[[0, distance]] += u64::from(*more_relevant);
            self.pairs[[1, distance]] += u64::from(more - more_relevant);
        }
    }

    fn means(self, base: usize, queries: usize, options: &EvaluateOptions) -> Evaluation {
        let n = queries as f64;
        let with_relevant = (queries - self.without_relevant).max(1) as f64;
        Evaluation {
            queries,
            base,
            bits: self.radii.len() - 1,
            without_relevant: self.without_relevant,
            map_all: self.map[0] / n,
            map_all_tie_aware: self.map[1] / n,
            tops: (options.tops.iter().zip(self.tops))
                .map(|(top, sums)| {
                    let [map, map_tie_aware, precision, precision_tie_aware, hits, hits_tie_aware, hits_sure] =
                        sums.map(|sum| sum / n);
                    TopN {
                        n: *top,
                        map,
                        map_tie_aware,
                        precision,
                        precision_tie_aware,
                        hits,
                        hits_tie_aware,
                        hits_sure,
                    }
                })
                .collect(),
            radii: (self.radii.into_iter().enumerate())
                .map(|(radius, [precision, recall, empty])| WithinRadius {
                    radius,
                    precision: precision / n,
                    recall: recall / with_relevant,
                    empty_balls: empty / n,
                })
                .collect(),
            same_label: self.pairs.row(0).to_vec(),
            different_label: self.pairs.row(1).to_vec(),
        }
    }
}
