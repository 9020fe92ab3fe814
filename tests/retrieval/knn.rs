//! Exact neighbours against sorted f64 distances, where f32 products say little too.

use half::f16;
use ndarray::{Array2, array, s};
use orthant::Error;
use orthant::knn::{self, Metric, local_dimension, recall};
use proptest::prelude::*;

use crate::{noise, tensor};

const METRICS: [Metric; 3] = [Metric::L2, Metric::InnerProduct, Metric::Cosine];

/// All distances of a query in f64: what nearest is by, and what is returned.
fn distances(query: &[f64], base: &Array2<f64>, metric: Metric) -> Vec<(f64, f64)> {
    let length = |row: &[f64]| row.iter().map(|x| x * x).sum::<f64>().sqrt();
    let of = |row: &[f64]| {
        let dot: f64 = query.iter().zip(row).map(|(a, b)| a * b).sum();
        match metric {
            Metric::L2 => {
                let sum: f64 = query.iter().zip(row).map(|(a, b)| (a - b) * (a - b)).sum();
                (sum, sum.sqrt())
            }
            Metric::InnerProduct => (-dot, dot),
            Metric::Cosine => {
                let (a, b) = (length(query), length(row));
                let sum: f64 = query.iter().zip(row).map(|(x, y)| (x / a - y / b).powi(2)).sum();
                (sum, 0.5 * sum)
            }
        }
    };
    base.outer_iter().map(|row| of(&row.to_vec())).collect()
}

/// Every returned distance is right, in order, ids break exact ties, and nothing nearer was left out.
fn check(base: &Array2<f32>, queries: &Array2<f32>, k: usize, metric: Metric) {
    let found = knn::search(&tensor(base), &tensor(queries), k, metric).unwrap();
    let k = k.min(base.nrows());
    assert_eq!(found.ids.dim(), (queries.nrows(), k));
    let wide = base.mapv(f64::from);
    for (query, row) in queries.outer_iter().enumerate() {
        let all = distances(&row.mapv(f64::from).to_vec(), &wide, metric);
        let mut order: Vec<usize> = (0..all.len()).collect();
        order.sort_by(|a, b| all[*a].0.total_cmp(&all[*b].0).then(a.cmp(b)));
        for (at, &expected) in order.iter().enumerate().take(k) {
            let id = found.ids[[query, at]] as usize;
            // The order of additions differs from the library's: keys within some roundings of each other may change places.
            let (key, best) = (all[id].0, all[expected].0);
            assert!(
                (key - best).abs() <= 1e-12 * best.abs().max(1e-3),
                "{metric:?} query {query} place {at}: {id}, expected {expected}"
            );
            let distance = f64::from(found.distances[[query, at]]);
            // One rounding to f32.
            assert!(
                (distance - all[id].1).abs() <= 6.1e-8 * all[id].1.abs().max(1e-7),
                "{metric:?} query {query} place {at}: {distance}"
            );
        }
        for pair in 1..k {
            let (a, b) = (found.ids[[query, pair - 1]], found.ids[[query, pair]]);
            let same = base.row(a as usize) == base.row(b as usize);
            assert!(!same || a < b, "copies come by the lower id");
        }
    }
}

#[test]
fn neighbours_are_those_of_sorted_distances() {
    for metric in METRICS {
        for (n, m, d, k) in [(1, 1, 1, 1), (5, 3, 2, 9), (300, 20, 33, 10), (8300, 3, 16, 100), (700, 300, 8, 1)] {
            check(&noise(n, d, 1), &noise(m, d, 2), k, metric);
        }
    }
}

/// Far from 0 and close together: products of f32 cannot tell these rows apart, |q|^2 - 2 q'b + |b|^2 is noise.
#[test]
fn cancellation_loses_no_neighbour() {
    let far = |n, seed| noise(n, 24, seed).mapv(|x| 1000.0 + 0.01 * x);
    for metric in METRICS {
        check(&far(2000, 3), &far(10, 4), 15, metric);
    }
}

/// Tens of thousands of copies: the lowest ids.
#[test]
fn ties_go_to_the_lowest_id() {
    let few = noise(7, 12, 5);
    let base = Array2::from_shape_fn((20_000, 12), |(i, j)| few[[i % 7, j]]);
    for metric in METRICS {
        let found = knn::search(&tensor(&base), &tensor(&few), 40, metric).unwrap();
        for query in 0..7 {
            let first = found.ids[[query, 0]] as usize % 7;
            assert!(metric == Metric::InnerProduct || first == query, "{metric:?}");
            let expected: Vec<u32> = (0..40).map(|at| (first + 7 * at) as u32).collect();
            assert_eq!(found.ids.row(query).to_vec(), expected, "{metric:?}");
            assert!(metric == Metric::InnerProduct || found.distances.row(query).iter().all(|d| *d == 0.0));
        }
    }
}

#[test]
fn halves_are_their_numbers() {
    let (base, queries) = (noise(500, 31, 6).mapv(f16::from_f32), noise(9, 31, 7).mapv(f16::from_f32));
    for metric in METRICS {
        let half = knn::search(&tensor(&base), &tensor(&queries), 12, metric).unwrap();
        let wide = knn::search(&tensor(&base.mapv(f16::to_f32)), &tensor(&queries.mapv(f16::to_f32)), 12, metric);
        assert_eq!(half, wide.unwrap());
    }
}

/// Products that overflow f32 say nothing, and rows of every size keep their places.
#[test]
fn sizes_do_not_matter() {
    let sized = |n, seed| {
        let mut rows = noise(n, 10, seed);
        for (i, mut row) in rows.outer_iter_mut().enumerate() {
            row *= 10f32.powi([0, 18, 19, 20, -18, 3][i % 6]);
        }
        rows
    };
    let (base, queries) = (sized(600, 8), sized(12, 9));
    for metric in METRICS {
        let found = knn::search(&tensor(&base), &tensor(&queries), 5, metric).unwrap();
        let wide = base.mapv(f64::from);
        for (query, row) in queries.outer_iter().enumerate() {
            let all = distances(&row.mapv(f64::from).to_vec(), &wide, metric);
            let mut keys: Vec<f64> = all.iter().map(|(key, _)| *key).collect();
            keys.sort_by(f64::total_cmp);
            for at in 0..5 {
                let key = all[found.ids[[query, at]] as usize].0;
                assert!((key - keys[at]).abs() <= 1e-12 * keys[at].abs(), "{metric:?} query {query} place {at}");
            }
        }
    }
}

#[test]
fn candidates_are_rescored() {
    let (base, queries) = (noise(400, 20, 10), noise(11, 20, 11));
    let (tb, tq) = (tensor(&base), tensor(&queries));
    for metric in METRICS {
        let all =
            Array2::from_shape_fn((11, 402), |(_, at)| [399 - at.min(399) as u32, 7, u32::MAX][at.saturating_sub(399)]);
        let exact = knn::search(&tb, &tq, 10, metric).unwrap();
        assert_eq!(knn::rescore(&tb, &tq, all.view(), 10, metric).unwrap(), exact);
        let even = Array2::from_shape_fn((11, 200), |(_, at)| 2 * at as u32);
        let of_even = knn::search(&tensor(&base.slice(s![..;2, ..]).to_owned()), &tq, 10, metric).unwrap();
        let found = knn::rescore(&tb, &tq, even.view(), 10, metric).unwrap();
        assert_eq!((found.ids, found.distances), (of_even.ids.mapv(|id| 2 * id), of_even.distances));
    }
    let few = Array2::from_elem((11, 5), 3u32);
    assert!(matches!(knn::rescore(&tb, &tq, few.view(), 2, Metric::L2), Err(Error::Argument { quantity: "k", .. })));
    let short = Array2::from_elem((10, 5), 3u32);
    assert!(matches!(knn::rescore(&tb, &tq, short.view(), 1, Metric::L2), Err(Error::Shape { .. })));
}

#[test]
fn dimensions_of_what_is_known() {
    let found = local_dimension(
        array![
            [1.0f32, 1.0, 1.0, 1.0],
            [0.0, 0.0, 0.0, 2.0],
            [0.0, 0.0, 0.0, 0.0],
            [0.0, 1.0, 2.0, 4.0],
            [4.0, 2.0, 0.0, 1.0],
        ]
        .view(),
    );
    assert!(found[0].is_infinite() && found[0] > 0.0, "all alike");
    assert!(found[1].is_nan() && found[2].is_nan(), "fewer than two");
    // -(1/3 (ln 1/4 + ln 1/2 + 0))^-1
    let expected = 1.0 / 2f64.ln();
    assert!((f64::from(found[3]) - expected).abs() < 1e-7 && found[3] == found[4], "{found}");
    assert_eq!(local_dimension(Array2::<f32>::zeros((2, 0)).view()).len(), 2);

    // Uniform in a cube of 2, 5 and 10 dimensions, in 20 features.
    for d in [2, 5, 10] {
        let planes = noise(d, 20, 12);
        let mut state = 1u64;
        let uniform = Array2::from_shape_simple_fn((4000, d), || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 24) as f32
        });
        let rows = uniform.dot(&planes);
        let (rows, some) = (tensor(&rows), tensor(&rows.slice(s![..300, ..]).to_owned()));
        let dimension = knn::search(&rows, &some, 51, Metric::L2).unwrap().local_dimension().unwrap();
        let mean = dimension.iter().sum::<f32>() / 300.0;
        // One estimate from 50 distances is off by d / sqrt(50); the mean of 300 by less, and edges of the cube make it smaller with d.
        assert!(mean > 0.7 * d as f32 && mean < 1.1 * d as f32, "{d}: {mean}");
    }
    let product = knn::search(&tensor(&noise(9, 4, 1)), &tensor(&noise(2, 4, 2)), 3, Metric::InnerProduct).unwrap();
    assert!(matches!(product.local_dimension(), Err(Error::Argument { quantity: "metric", .. })));
}

#[test]
fn recall_counts_what_was_found() {
    let truth = array![[1u32, 2, 3], [4, 5, 6]];
    assert_eq!(recall(truth.view(), truth.view()).unwrap(), 1.0);
    assert_eq!(recall(array![[3u32, 1, 1, 9], [7, 8, 9, u32::MAX]].view(), truth.view()).unwrap(), 2.0 / 6.0);
    assert_eq!(recall(Array2::zeros((2, 0)).view(), truth.view()).unwrap(), 0.0);
    assert_eq!(recall(Array2::zeros((0, 3)).view(), Array2::zeros((0, 3)).view()).unwrap(), 1.0);
    assert!(matches!(recall(truth.slice(s![..1, ..]), truth.view()), Err(Error::Shape { quantity: "found", .. })));
}

#[test]
fn what_cannot_be_searched_is_named() {
    let (base, queries) = (tensor(&noise(10, 4, 1)), tensor(&noise(3, 4, 2)));
    let search = |base: &_, queries: &_, k| knn::search(base, queries, k, Metric::L2);
    assert!(matches!(search(&base, &queries, 0), Err(Error::Argument { quantity: "k", .. })));
    assert!(matches!(search(&base, &tensor(&noise(3, 5, 2)), 1), Err(Error::Shape { quantity: "queries", .. })));
    assert!(matches!(search(&tensor(&noise(0, 4, 2)), &queries, 1), Err(Error::Shape { quantity: "base", .. })));
    assert_eq!(search(&base, &tensor(&noise(0, 4, 2)), 3).unwrap().ids.dim(), (0, 3));
    let mut bad = noise(10, 4, 1);
    bad[[6, 1]] = f32::NAN;
    let bad = tensor(&bad);
    assert!(matches!(search(&bad, &queries, 1), Err(Error::Domain { quantity: "base", index: 25, .. })));
    assert!(matches!(search(&base, &bad, 1), Err(Error::Domain { quantity: "query", index: 25, .. })));
    let mut zero = noise(10, 4, 1);
    zero.row_mut(5).fill(0.0);
    let zero = tensor(&zero);
    assert!(search(&zero, &queries, 1).is_ok());
    let error = knn::search(&zero, &queries, 1, Metric::Cosine).unwrap_err();
    assert!(matches!(error, Error::Domain { quantity: "base", index: 5, .. }), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, rng_seed: proptest::test_runner::RngSeed::Fixed(7), ..Default::default() })]

    #[test]
    fn any_rows(n in 1usize..200, m in 1usize..5, d in 1usize..40, k in 1usize..30, seed in 0u64..1000, shift in 0.0f32..100.0) {
        for metric in METRICS {
            check(&(noise(n, d, seed) + shift), &(noise(m, d, seed + 1) + shift), k, metric);
        }
    }
}
