//! Evaluation against lists that are sorted and counted, in f64.

use ndarray::Array2;
use orthant::hamming::{Codes, EvaluateOptions, Evaluation, evaluate};
use orthant::{Device, Error};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::bits;

fn codes(rows: &Array2<bool>) -> Codes {
    Codes::pack(&Device::cpu(), &rows.view()).unwrap()
}

/// Bits of clusters: copies of a few codes with some bits flipped, so that most distances are shared by many.
fn clustered(n: usize, width: usize, clusters: usize, flips: f64, seed: u64) -> Array2<bool> {
    let (centres, noise) = (bits(clusters, width, 0.5, seed), bits(n, width, flips, seed + 1));
    Array2::from_shape_fn((n, width), |(i, j)| centres[[i % clusters, j]] ^ noise[[i, j]])
}

fn labels(n: usize, kinds: u32, seed: u64) -> Vec<u32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..n).map(|_| rng.random_range(0..kinds)).collect()
}

/// (distance, relevant) of every code, nearest first, ties by the order of `tie`.
fn ranking(
    query: usize,
    (queries, query_labels): (&Array2<bool>, &[u32]),
    (base, base_labels): (&Array2<bool>, &[u32]),
    leave_one_out: bool,
    tie: impl Fn(usize) -> usize,
) -> Vec<(usize, bool)> {
    let mut all: Vec<(usize, usize, bool)> = (0..base.nrows())
        .filter(|id| !(leave_one_out && *id == query))
        .map(|id| {
            let distance = queries.row(query).iter().zip(base.row(id)).filter(|(a, b)| a != b).count();
            (distance, tie(id), query_labels[query] == base_labels[id])
        })
        .collect();
    all.sort();
    all.into_iter().map(|(distance, _, relevant)| (distance, relevant)).collect()
}

/// AP@n, precision@n and whether there is a hit.
fn top(ranking: &[(usize, bool)], n: usize) -> [f64; 3] {
    let (mut found, mut sum) = (0.0, 0.0);
    let n = n.min(ranking.len());
    for (i, (_, relevant)) in ranking[..n].iter().enumerate() {
        if *relevant {
            found += 1.0;
            sum += found / (i + 1) as f64;
        }
    }
    [if found > 0.0 { sum / found } else { 0.0 }, found / n as f64, f64::from(found > 0.0)]
}

/// (distance, relevant), nearest first.
type Ranking = Vec<(usize, bool)>;
type Side<'a> = (&'a Array2<bool>, &'a [u32]);

fn check(base: Side<'_>, queries: Side<'_>, tops: &[usize], leave_one_out: bool) -> Evaluation {
    let options = EvaluateOptions::new().tops(tops).leave_one_out(leave_one_out);
    let found = evaluate(&codes(base.0), base.1, &codes(queries.0), queries.1, &options).unwrap();
    let (n, width) = (queries.0.nrows() as f64, base.0.ncols());
    let rankings: Vec<_> =
        (0..queries.0.nrows()).map(|query| ranking(query, queries, base, leave_one_out, |id| id)).collect();
    let near = |a: f64, b: f64, what: &str| assert!((a - b).abs() < 1e-11, "{what}: {a}, expected {b}");
    let mean = |of: &dyn Fn(&Ranking) -> f64| rankings.iter().map(of).sum::<f64>() / n;
    near(found.map_all, mean(&|ranking| top(ranking, ranking.len())[0]), "map_all");
    for (at, top_n) in tops.iter().zip(&found.tops) {
        near(top_n.map, mean(&|ranking| top(ranking, *at)[0]), "map");
        near(top_n.precision, mean(&|ranking| top(ranking, *at)[1]), "precision");
        near(top_n.hits, mean(&|ranking| top(ranking, *at)[2]), "hits");
        assert!(top_n.hits_sure <= top_n.hits_tie_aware + 1e-12 && top_n.hits_sure <= top_n.hits);
    }
    let relevant = |ranking: &Vec<(usize, bool)>| ranking.iter().filter(|(_, relevant)| *relevant).count() as f64;
    let with = rankings.iter().filter(|ranking| relevant(ranking) > 0.0).count();
    assert_eq!(found.without_relevant, rankings.len() - with);
    assert_eq!(found.radii.len(), width + 1);
    for within in &found.radii {
        let inside = |ranking: &Vec<(usize, bool)>| {
            let inside: Vec<bool> =
                ranking.iter().filter(|(d, _)| *d <= within.radius).map(|(_, relevant)| *relevant).collect();
            (inside.len() as f64, inside.iter().filter(|relevant| **relevant).count() as f64)
        };
        let precision = mean(&|ranking| {
            let (all, good) = inside(ranking);
            if all == 0.0 { 0.0 } else { good / all }
        });
        near(within.precision, precision, "precision within");
        near(within.empty_balls, mean(&|ranking| f64::from(inside(ranking).0 == 0.0)), "empty balls");
        let recall: f64 = rankings.iter().filter(|r| relevant(r) > 0.0).map(|r| inside(r).1 / relevant(r)).sum::<f64>();
        near(within.recall, recall / with.max(1) as f64, "recall within");
    }
    let pairs = |good: bool, d: usize| {
        rankings.iter().flatten().filter(|(distance, relevant)| *relevant == good && *distance == d).count() as u64
    };
    for d in 0..=width {
        assert_eq!((found.same_label[d], found.different_label[d]), (pairs(true, d), pairs(false, d)), "{d}");
    }
    found
}

#[test]
fn figures_are_those_of_sorted_lists() {
    for (n, m, width, kinds, flips) in
        [(1, 1, 8, 1, 0.0), (37, 5, 8, 3, 0.1), (300, 40, 24, 4, 0.02), (257, 131, 64, 7, 0.2), (90, 30, 136, 2, 0.0)]
    {
        let (base, queries) = (clustered(n, width, 5, flips, 1), clustered(m, width, 5, flips, 1));
        // One label more among queries: it has nothing relevant.
        let (base_labels, query_labels) = (labels(n, kinds, 3), labels(m, kinds + 1, 4));
        let found = check((&base, &base_labels), (&queries, &query_labels), &[1, 5, 50, 1000], false);
        assert_eq!((found.base, found.queries, found.bits), (n, m, width));
        if n > 1 {
            check((&base, &base_labels), (&base, &base_labels), &[1, 10, n - 1], true);
        }
    }
}

/// More queries and codes than a tile has.
#[test]
fn tiles_do_not_show() {
    let (base, queries) = (clustered(8200, 16, 300, 0.05, 8), clustered(130, 16, 300, 0.05, 8));
    let (base_labels, query_labels) = (labels(8200, 9, 1), labels(130, 9, 2));
    check((&base, &base_labels), (&queries, &query_labels), &[1, 100, 8200], false);
}

/// The expectation is the mean over orders of ties; the oracle draws them.
#[test]
fn expectations_are_means_of_shuffled_ties() {
    let (base, queries) = (clustered(60, 8, 3, 0.1, 5), clustered(6, 8, 3, 0.1, 5));
    let (base_labels, query_labels) = (labels(60, 3, 6), labels(6, 3, 7));
    let found = check((&base, &base_labels), (&queries, &query_labels), &[3, 10], false);
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    let draws = 20_000;
    let mut sums = [[0.0; 3]; 3];
    let mut all = [0.0; 2];
    for _ in 0..draws {
        let tie: Vec<usize> = (0..60).map(|_| rng.random_range(0..usize::MAX)).collect();
        for query in 0..6 {
            let ranking = ranking(query, (&queries, &query_labels), (&base, &base_labels), false, |id| tie[id]);
            let ap = top(&ranking, 60)[0];
            all[0] += ap;
            all[1] += ap * ap;
            for (sums, n) in sums.iter_mut().zip([3, 10]) {
                sums.iter_mut().zip(top(&ranking, n)).for_each(|(sum, value)| *sum += value);
            }
        }
    }
    let count = f64::from(draws) * 6.0;
    // Five standard errors of a mean of values in 0..1, of which each draw has six that are independent given the draw: 5 * 0.5 / sqrt(20000).
    let slack = 0.018;
    assert!(
        (found.map_all_tie_aware - all[0] / count).abs() < slack / 3.0,
        "{} {}",
        found.map_all_tie_aware,
        all[0] / count
    );
    assert!((found.map_all_tie_aware - found.map_all).abs() > 1e-4, "the case has ties that matter");
    for (top, sums) in found.tops.iter().zip(sums) {
        for (value, sum) in [top.map_tie_aware, top.precision_tie_aware, top.hits_tie_aware].iter().zip(sums) {
            assert!((value - sum / count).abs() < slack, "first {}: {value}, expected {}", top.n, sum / count);
        }
    }
}

#[test]
fn what_cannot_be_evaluated_is_named() {
    let (small, wide) = (codes(&bits(3, 8, 0.5, 1)), codes(&bits(3, 16, 0.5, 1)));
    let none = codes(&Array2::from_elem((0, 8), false));
    let options = EvaluateOptions::new();
    let l = [1, 2, 3];
    assert!(matches!(evaluate(&small, &l, &wide, &l, &options), Err(Error::Argument { .. })));
    assert!(matches!(evaluate(&small, &l[..2], &small, &l, &options), Err(Error::Shape { quantity: "labels", .. })));
    assert!(matches!(
        evaluate(&small, &l, &small, &l[1..], &options),
        Err(Error::Shape { quantity: "query_labels", .. })
    ));
    assert!(matches!(evaluate(&none, &[], &small, &l, &options), Err(Error::Shape { quantity: "base", .. })));
    assert!(matches!(evaluate(&small, &l, &none, &[], &options), Err(Error::Shape { quantity: "queries", .. })));
    assert!(matches!(
        evaluate(&small, &l, &small, &l, &options.clone().tops(&[3, 0])),
        Err(Error::Argument { quantity: "N", .. })
    ));
    let two = codes(&bits(2, 8, 0.5, 1));
    let leave = options.leave_one_out(true);
    assert!(matches!(evaluate(&small, &l, &two, &l[..2], &leave), Err(Error::Shape { quantity: "queries", .. })));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 30, rng_seed: proptest::test_runner::RngSeed::Fixed(3), ..Default::default() })]

    #[test]
    fn any_codes(n in 1usize..60, m in 1usize..12, width in 1usize..6, kinds in 1u32..5, flips in 0.0f64..0.5, seed in 0u64..1000) {
        let (base, queries) = (clustered(n, 8 * width, 4, flips, seed), clustered(m, 8 * width, 4, flips, seed));
        let found = check((&base, &labels(n, kinds, seed)), (&queries, &labels(m, kinds, seed + 1)), &[1, 7], false);
        prop_assert!((0.0..=1.0 + 1e-12).contains(&found.map_all_tie_aware));
        // Nothing but the order inside ties is left to chance: without ties both agree.
        let distinct = found.same_label.iter().zip(&found.different_label).all(|(a, b)| a + b <= 1);
        if distinct && m == 1 {
            prop_assert!((found.map_all_tie_aware - found.map_all).abs() < 1e-12);
        }
    }
}
