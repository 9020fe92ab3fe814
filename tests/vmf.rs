//! One von Mises-Fisher distribution: fits, statistics, densities and samples.

use half::f16;
use ndarray::{Array1, Array2, ArrayView2, Axis, s};
use orthant::vmf::{MAX_KAPPA, Resultant, RowSource, Vmf, VmfStats, log_density_pairs, solve_kappa};
use orthant::{Device, Error, Result};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

/// d, R, kappa, ln C_d, entropy, A' of the golden table, computed with 60 digits.
fn golden() -> Vec<[f64; 6]> {
    let mut reader = csv::Reader::from_path("tests/data/golden_vmf.csv").expect("the golden table");
    let row = |row: csv::StringRecord| std::array::from_fn(|column| row[column].parse().expect("a number"));
    let rows: Vec<_> = reader.records().map(|record| row(record.expect("a row"))).collect();
    assert_eq!(rows.len(), 518);
    rows
}

fn gaussian(n: usize, d: usize, rng: &mut impl Rng) -> Array2<f32> {
    Array2::from_shape_simple_fn((n, d), || StandardNormal.sample(rng))
}

fn unit(d: usize, seed: u64) -> Array1<f64> {
    let row = gaussian(1, d, &mut ChaCha8Rng::seed_from_u64(seed)).row(0).mapv(f64::from);
    &row / row.dot(&row).sqrt()
}

fn fit(rows: &Array2<f32>) -> Result<Vmf> {
    Vmf::fit(&Device::cpu().tensor(rows)?)
}

#[test]
fn kappa_agrees_with_the_golden_table() {
    let mut errors: Vec<f64> = golden()
        .iter()
        .map(|&[d, r, kappa, ..]| {
            let error = (solve_kappa(d as usize, Resultant::new(r)) - kappa).abs() / kappa / f64::EPSILON;
            assert!(error <= 34.0, "d {d} R {r}: {error} eps");
            error
        })
        .collect();
    errors.sort_by(f64::total_cmp);
    // what log-Bessel ratios of 1.7 eps allow
    let p99 = errors[errors.len() * 99 / 100];
    println!("kappa: median {} p99 {p99} max {} eps", errors[errors.len() / 2], errors[errors.len() - 1]);
    assert!(p99 <= 3.0, "p99 {p99} eps");
}

#[test]
fn entropy_and_normaliser_agree_with_the_golden_table() {
    for [d, r, kappa, log_c, entropy, _] in golden() {
        let mut mean = Array1::zeros(d as usize);
        mean[0] = 1.0;
        let vmf = Vmf::new(mean.view(), kappa).expect("a distribution");
        // the terms are of the size of hypot(d/2 - 1, kappa): 4 eps of it from the Bessel functions, 16 from three of them
        let scale = (d / 2.0 - 1.0).hypot(kappa);
        let close = |what, value: f64, expected: f64, eps: f64| {
            let error = (value - expected).abs() / expected.abs().max(scale) / f64::EPSILON;
            assert!(error <= eps, "{what} at d {d} R {r}: {value}, expected {expected}, {error} eps");
        };
        close("log_normalizer", vmf.log_normalizer(), log_c, 4.0);
        close("entropy", vmf.entropy(), entropy, 16.0);
        // A has a condition number below 1 in kappa: 4 eps of its own and the rounding of kappa in the table
        assert!((vmf.resultant_length() - r).abs() <= 6.0 * f64::EPSILON * r, "R at d {d} R {r}");
    }
}

#[test]
fn a_fit_recovers_what_was_sampled_in_any_dimension() {
    for (d, kappa, n) in
        [(2, 3.0, 20_000), (3, 0.5, 50_000), (3, 1e6, 5000), (10, 40.0, 5000), (384, 400.0, 2000), (4096, 9000.0, 200)]
    {
        let truth = Vmf::new(unit(d, 1).view(), kappa).expect("a distribution");
        let fitted = fit(&truth.sample(n, 2)).expect("a fit");
        // the fit's own estimate of its error, five standard deviations of it
        let error = (fitted.kappa() - kappa).abs() / kappa;
        let bound = 5.0 * fitted.kappa_relative_error();
        assert!(error <= bound, "d {d}: kappa {} for {kappa}, error {error}, bound {bound}", fitted.kappa());
        assert!(fitted.is_resolvable() && bound < 0.5, "d {d}");
        let cosine = fitted.mean_direction().dot(&truth.mean_direction());
        // 1 - cos has mean (d-1) (1-R) / ... / n: the tangent components have variance A/kappa each
        let expected = (d as f64 - 1.0) / (2.0 * n as f64 * kappa * truth.resultant_length());
        assert!(1.0 - cosine <= 6.0 * expected + 1e-12, "d {d}: 1 - cos {}, expected {expected}", 1.0 - cosine);
        assert_eq!(fitted.n(), n as f64);
    }
}

#[test]
fn few_rows_in_many_dimensions_are_not_resolvable() {
    // log-bessel.md's example: at d = 4096, kappa = 10 and 10^4 rows give a kappa that is far too large
    let truth = Vmf::new(unit(1024, 3).view(), 1.0).expect("a distribution");
    let fitted = fit(&truth.sample(500, 4)).expect("a fit");
    assert!(fitted.kappa() > 20.0, "{}", fitted.kappa());
    assert!(!fitted.is_resolvable());
}

#[test]
fn edges_have_defined_results() {
    let row = unit(5, 9).mapv(|value| value as f32);
    let same = row.broadcast((7, 5)).expect("copies").to_owned();
    for rows in [same, row.clone().insert_axis(Axis(0))] {
        let fitted = fit(&rows).expect("a fit");
        assert_eq!((fitted.kappa(), fitted.resultant_length()), (MAX_KAPPA, 1.0));
        assert_eq!(fitted.kappa_relative_error(), f64::INFINITY);
        assert!(!fitted.is_resolvable());
        assert!((fitted.mean_direction().dot(&row.mapv(f64::from)) - 1.0).abs() < 1e-7, "the one direction there is");
        assert!(fitted.log_normalizer().is_finite() && fitted.entropy().is_finite());
    }
    let opposite = ndarray::stack(Axis(0), &[row.view(), row.mapv(|value| -value).view()]).expect("two rows");
    let fitted = fit(&opposite).expect("a fit");
    assert_eq!((fitted.kappa(), fitted.resultant_length(), fitted.mean_direction()[0]), (0.0, 0.0, 1.0));
    assert!(!fitted.is_resolvable());
    assert!(matches!(fit(&Array2::zeros((0, 5))), Err(Error::Argument { quantity: "rows", .. })));
    assert!(matches!(fit(&Array2::ones((4, 1))), Err(Error::Argument { quantity: "dim", .. })));
}

#[test]
fn a_bad_row_is_named() {
    for (bad, what) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (0.0, "zeros")] {
        let mut rows = gaussian(40_000, 64, &mut ChaCha8Rng::seed_from_u64(5));
        for index in [17, 39_999] {
            if bad == 0.0 { rows.row_mut(index).fill(0.0) } else { rows[[index, 3]] = bad }
        }
        match fit(&rows) {
            Err(Error::Domain { index: 17, quantity: "row", found, .. }) => assert!(found.contains(what), "{found}"),
            other => panic!("{bad}: {other:?}"),
        }
        let mut stats = VmfStats::new(64).expect("64 dimensions");
        assert!(stats.push(rows.view()).is_err());
        assert_eq!((stats.count(), stats.weight()), (0, 0.0), "nothing was added");
        // weight 0 hides a row, whatever it holds
        let mut weights = Array1::ones(40_000);
        weights[17] = 0.0;
        weights[39_999] = 0.0;
        stats.push_weighted(rows.view(), weights.view()).expect("the bad rows have no weight");
        assert_eq!(stats.count(), 39_998);
        assert!(stats.resultant().iter().all(|value| value.is_finite()));
    }
}

#[test]
fn bad_weights_are_named() {
    let rows = gaussian(10, 4, &mut ChaCha8Rng::seed_from_u64(5));
    let rows = Device::cpu().tensor(&rows).expect("a tensor");
    let mut weights = Array1::ones(10);
    weights[6] = -1.0;
    let error = Vmf::fit_weighted(&rows, weights.view()).expect_err("a negative weight");
    assert!(matches!(error, Error::Domain { quantity: "weight", index: 6, .. }), "{error}");
    assert!(matches!(Vmf::fit_weighted(&rows, weights.slice(s![..9])), Err(Error::Shape { .. })));
    assert!(matches!(Vmf::fit_weighted(&rows, Array1::zeros(10).view()), Err(Error::Argument { .. })));
}

#[test]
fn weights_are_repetitions() {
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    let rows = gaussian(301, 33, &mut rng) + 0.3;
    let weights = Array1::from_shape_simple_fn(301, || rng.random_range(0..4) as f64);
    let repeated: Vec<usize> = (0..301).flat_map(|row| std::iter::repeat_n(row, weights[row] as usize)).collect();
    let once = Vmf::fit_weighted(&Device::cpu().tensor(&rows).expect("a tensor"), weights.view()).expect("a fit");
    let many = fit(&rows.select(Axis(0), &repeated)).expect("a fit");
    assert_eq!(once.n(), many.n());
    // both sums are good to 1e-14
    assert!((once.kappa() - many.kappa()).abs() <= 1e-12 * many.kappa());
}

#[test]
fn every_element_type_and_layout_gives_the_same_fit() {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let halves = (gaussian(1003, 130, &mut rng) + 0.2).mapv(f16::from_f32);
    let cpu = Device::cpu();
    let fits = [
        Vmf::fit(&cpu.tensor(&halves).expect("f16")).expect("a fit"),
        Vmf::fit(&cpu.tensor(&halves.mapv(f16::to_f32)).expect("f32")).expect("a fit"),
        Vmf::fit(&cpu.tensor(&halves.mapv(f16::to_f64)).expect("f64")).expect("a fit"),
        Vmf::fit(&cpu.tensor(&halves.t().to_owned().t()).expect("column-major")).expect("a fit"),
    ];
    for other in &fits[1..] {
        assert!((other.kappa() - fits[0].kappa()).abs() <= 1e-12 * fits[0].kappa(), "the rows are the same numbers");
    }
    // the scale of a row does not matter, to the ends of f64
    let mut scaled = halves.mapv(f16::to_f64);
    for (index, mut row) in scaled.rows_mut().into_iter().enumerate() {
        row *= 10f64.powi([-290, -200, 0, 200, 300][index % 5]);
    }
    let other = Vmf::fit(&cpu.tensor(&scaled).expect("f64")).expect("a fit");
    assert!((other.kappa() - fits[0].kappa()).abs() <= 1e-12 * fits[0].kappa());
    // a strided view, straight into the statistics
    let mut wide = Array2::zeros((1003, 260));
    wide.slice_mut(s![.., ..;2]).assign(&halves.mapv(f16::to_f32));
    let mut stats = VmfStats::new(130).expect("130 dimensions");
    stats.push(wide.slice(s![.., ..;2])).expect("rows");
    assert_eq!(Vmf::from_stats(&stats).expect("a fit").kappa(), fits[1].kappa());
}

/// Rows in memory, read as if from elsewhere.
struct Source(Array2<f32>);

impl RowSource for Source {
    fn rows(&self) -> usize {
        self.0.nrows()
    }
    fn dim(&self) -> usize {
        self.0.ncols()
    }
    fn read(&self, first: usize, mut into: ndarray::ArrayViewMut2<'_, f32>) -> Result<()> {
        let last = first + into.nrows();
        into.assign(&self.0.slice(s![first..last, ..]));
        Ok(())
    }
}

fn stats(rows: ArrayView2<'_, f32>) -> VmfStats {
    let mut stats = VmfStats::new(rows.ncols()).expect("a dimension");
    stats.push(rows).expect("rows");
    stats
}

#[test]
fn statistics_merge_in_any_order_and_stream() {
    let rows = gaussian(50_000, 96, &mut ChaCha8Rng::seed_from_u64(8));
    let whole = stats(rows.view());
    let cuts = [0, 1, 777, 20_000, 49_999, 50_000];
    let parts: Vec<VmfStats> = cuts.windows(2).map(|cut| stats(rows.slice(s![cut[0]..cut[1], ..]))).collect();
    let merged = |order: &[usize]| {
        let mut total = VmfStats::new(96).expect("96 dimensions");
        order.iter().for_each(|&part| total.merge(&parts[part]).expect("one dimension"));
        total
    };
    let (forth, back) = (merged(&[0, 1, 2, 3, 4]), merged(&[4, 3, 2, 1, 0]));
    let mut nested = merged(&[1, 2]);
    nested.merge(&merged(&[3, 4, 0])).expect("one dimension");
    let streamed = VmfStats::from_source(&Source(rows.clone())).expect("rows");
    assert_eq!(streamed, whole, "the same segments in the same order");
    for other in [&forth, &back, &nested] {
        assert_eq!((other.count(), other.weight()), (50_000, 50_000.0));
        for (a, b) in other.resultant().iter().zip(whole.resultant()) {
            // the stated bound with sums of absolute values below n sqrt(2 / (pi d)), generously
            assert!((a - b).abs() <= 1e-12 * 50_000.0 * (2.0 / 96f64).sqrt());
        }
    }
    let json = serde_json::to_string(&forth).expect("JSON");
    assert_eq!(serde_json::from_str::<VmfStats>(&json).expect("statistics"), forth, "every bit survives JSON");
    assert!(serde_json::from_str::<VmfStats>(r#"{"count":1,"weight":1.0,"resultant":[1.0]}"#).is_err());
    assert!(forth.clone().merge(&VmfStats::new(95).expect("95 dimensions")).is_err());
}

/// The stated error bound, against sums in exact arithmetic (integers), on rows made to cancel.
#[test]
fn the_sum_keeps_its_error_bound() {
    // unit rows of four elements 1/2 each, signs at random: every sum is an exact multiple of 1/2, and norms are exact
    let (n, d) = (60_001, 16);
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let mut rows = Array2::<f32>::zeros((n, d));
    let mut exact = vec![0i64; d];
    for (index, mut row) in rows.rows_mut().into_iter().enumerate() {
        for element in 0..4 {
            let sign = if rng.random::<bool>() { 1 } else { -1 };
            let at = (index + 3 * element) % d;
            row[at] = 3.7 * sign as f32;
            exact[at] += sign;
        }
    }
    let stats = stats(rows.view());
    let absolute = n as f64 * 4.0 / d as f64 * 0.5;
    let bound = (60_001f64 / 4.0 + 26.5) * 2f64.powi(-53) * absolute;
    for (value, exact) in stats.resultant().iter().zip(&exact) {
        assert!((value - *exact as f64 / 2.0).abs() <= bound, "{value} {exact}: bound {bound}");
    }
}

/// Rows of every width that is summed its own way, of any length, in f32 and f64.
#[test]
fn rows_of_every_width_keep_their_resultant() {
    for d in [64, 67, 384, 513, 2003] {
        let row = unit(d, 9).mapv(|value| value as f32 * 3.0);
        let same = fit(&row.broadcast((11, d)).expect("copies").to_owned()).expect("a fit");
        assert_eq!((same.kappa(), same.resultant_length()), (MAX_KAPPA, 1.0));
        let rows = Vmf::new(unit(d, 10).view(), 1e6).expect("a distribution").sample(403, 3);
        let (single, double) =
            (fit(&rows).expect("a fit"), Vmf::fit(&Device::cpu().tensor(&rows.mapv(f64::from)).expect("f64")));
        let double = double.expect("a fit");
        // f64 sums, 1e-14 of R, and 1 - R is above 3e-5
        assert!(
            (single.kappa() - double.kappa()).abs() <= 1e-9 * double.kappa(),
            "{} {}",
            single.kappa(),
            double.kappa()
        );
        // rows rounded once more in f32: 2^-25 of their elements at random
        let mut scaled = rows.clone();
        scaled.rows_mut().into_iter().enumerate().for_each(|(index, mut row)| row *= [1e-30f32, 1.0, 1e30][index % 3]);
        let scaled = fit(&scaled).expect("a fit");
        assert!(
            (scaled.kappa() - double.kappa()).abs() <= 1e-4 * double.kappa(),
            "{} {}",
            scaled.kappa(),
            double.kappa()
        );
    }
}

/// mu'x of many draws.
fn cosines(vmf: &Vmf, n: usize, seed: u64) -> Vec<f64> {
    vmf.sample(n, seed).rows().into_iter().map(|row| row.mapv(f64::from).dot(&vmf.mean_direction())).collect()
}

#[test]
fn samples_have_the_mean_and_variance_of_the_distribution() {
    for d in [2, 3, 4, 7, 50, 1000] {
        for kappa in [0.0, 1e-3, 1.0, 30.0, 1e3, 1e6] {
            let vmf = Vmf::new(unit(d, d as u64).view(), kappa).expect("a distribution");
            let n = 4000;
            // 1 - cos as half the squared distance: cos itself drowns at kappa 1e6
            let complement: Vec<f64> = vmf
                .sample(n, 21)
                .rows()
                .into_iter()
                .map(|row| {
                    let row = row.mapv(f64::from);
                    (&row - &vmf.mean_direction()).mapv(|value| value * value).sum() / 2.0
                })
                .collect();
            let mean = complement.iter().sum::<f64>() / n as f64;
            let variance = complement.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / n as f64;
            // f32 rows are off by 2^-25 of their elements, so 1 - cos by 1e-15 and 1e-8 of its root
            let expected = 1.0 - vmf.resultant_length();
            let slack = 4.5 * (variance / n as f64).sqrt() + 1e-9;
            assert!(
                (mean - expected).abs() <= slack,
                "d {d} kappa {kappa}: mean {mean}, expected {expected} +- {slack}"
            );
        }
    }
}

#[test]
fn samples_in_three_dimensions_pass_kolmogorov_smirnov() {
    // F(w) = (e^(kappa w) - e^-kappa) / (e^kappa - e^-kappa) at d = 3
    for kappa in [0.1f64, 2.0, 50.0] {
        for mean in [[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0], [0.6, 0.0, 0.8], [0.0, 0.0, -1.0]] {
            let vmf = Vmf::new(Array1::from(mean.to_vec()).view(), kappa).expect("a distribution");
            let n = 5000;
            let mut w = cosines(&vmf, n, 5);
            w.sort_by(f64::total_cmp);
            let cdf = |w: f64| {
                (((kappa * (w - 1.0)).exp() - (-2.0 * kappa).exp()) / (-(-2.0 * kappa).exp_m1())).clamp(0.0, 1.0)
            };
            let distance = w
                .iter()
                .enumerate()
                .map(|(i, &w)| (cdf(w) - i as f64 / n as f64).abs().max((cdf(w) - (i + 1) as f64 / n as f64).abs()))
                .fold(0.0, f64::max);
            // p = 1e-4 of Kolmogorov's distribution is at 2.23 / sqrt(n)
            assert!(distance < 2.23 / (n as f64).sqrt(), "kappa {kappa} mean {mean:?}: {distance}");
        }
    }
}

#[test]
fn the_tangent_of_samples_is_uniform_also_at_the_poles() {
    let n = 6000;
    for mean in [
        [1.0, 0.0, 0.0, 0.0],
        [-1.0, 0.0, 0.0, 0.0],
        [1.0, 1e-9, 0.0, 0.0],
        [-1.0, 0.0, 1e-9, 0.0],
        [0.5, 0.5, 0.5, 0.5],
    ] {
        let vmf = Vmf::new(Array1::from(mean.to_vec()).view(), 5.0).expect("a distribution");
        let mu = vmf.mean_direction().to_owned();
        let rows = vmf.sample(n, 13).mapv(f64::from);
        let mut second = Array2::<f64>::zeros((4, 4));
        let mut first = Array1::<f64>::zeros(4);
        for row in rows.rows() {
            assert!((row.dot(&row) - 1.0).abs() < 1e-6, "unit length in f32");
            let tangent = &row - &(&mu * row.dot(&mu));
            let tangent = &tangent / tangent.dot(&tangent).sqrt();
            first += &tangent;
            for a in 0..4 {
                for b in 0..4 {
                    second[[a, b]] += tangent[a] * tangent[b] / n as f64;
                }
            }
        }
        // uniform on a 2-sphere: mean 0 with variance 1/3 a component; second moments (I - mu mu') / 3 with variance below 1/9
        let five = 5.0 / (n as f64).sqrt();
        assert!(first.iter().all(|sum| (sum / n as f64).abs() < five * 0.6), "{mean:?}: {first}");
        for a in 0..4 {
            for b in 0..4 {
                let expected = (if a == b { 1.0 } else { 0.0 } - mu[a] * mu[b]) / 3.0;
                assert!((second[[a, b]] - expected).abs() < five / 3.0, "{mean:?}: {second}");
            }
        }
    }
}

#[test]
fn samples_depend_on_the_seed_alone() {
    let vmf = Vmf::new(unit(65_536, 2).view(), 1e5).expect("a distribution");
    let rows = vmf.sample(3, 7);
    assert_eq!(rows, vmf.sample(3, 7));
    assert_ne!(rows, vmf.sample(3, 8));
    let small = Vmf::new(unit(6, 2).view(), 9.0).expect("a distribution");
    let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
    assert_eq!(pool(1).install(|| small.sample(2000, 7)), pool(3).install(|| small.sample(2000, 7)));
    let mut into = Array2::zeros((5, 6));
    small.sample_into(&mut into.view_mut(), &mut ChaCha8Rng::seed_from_u64(1)).expect("rows of 6");
    assert!(small.sample_into(&mut Array2::zeros((5, 7)).view_mut(), &mut ChaCha8Rng::seed_from_u64(1)).is_err());
    assert!(into.iter().all(|value| value.is_finite()));
}

#[test]
fn densities_integrate_to_one_and_agree_row_by_row() {
    let cpu = Device::cpu();
    // uniform rows: the mean of the density times the area of the sphere is 1
    let rows = gaussian(40_000, 5, &mut ChaCha8Rng::seed_from_u64(3));
    let vmf = Vmf::new(unit(5, 4).view(), 2.5).expect("a distribution");
    let area = Vmf::new(unit(5, 4).view(), 0.0).expect("the uniform").entropy().exp();
    let densities = vmf.log_density(&cpu.tensor(&rows).expect("rows")).expect("densities").to_array().expect("host");
    let mean = densities.iter().map(|&value| f64::from(value).exp()).sum::<f64>() / 40_000.0 * area;
    // the density has a relative standard deviation of about 1.3 at kappa 2.5: five standard errors
    assert!((mean - 1.0).abs() < 0.035, "{mean}");

    let rows = gaussian(50, 700, &mut ChaCha8Rng::seed_from_u64(5)).mapv(f64::from);
    let means = gaussian(50, 700, &mut ChaCha8Rng::seed_from_u64(6)).mapv(f64::from);
    let kappas = Array1::from_shape_fn(50, |i| 10f64.powf(i as f64 / 5.0 - 4.0));
    let tensor = |array: &Array2<f64>| cpu.tensor(array).expect("a tensor");
    let pairs = log_density_pairs(&tensor(&rows), &tensor(&means), &cpu.tensor(&kappas).expect("kappas"));
    let pairs = pairs.expect("densities").to_array().expect("host");
    for i in 0..50 {
        let vmf = Vmf::new(means.row(i), kappas[i]).expect("a distribution");
        let one = rows.slice(s![i..i + 1, ..]).to_owned();
        let alone = vmf.log_density(&tensor(&one)).expect("a density").to_array().expect("host")[0];
        // two ways to normalise: 1e-15 of kappa and of the normaliser
        assert!((pairs[i] - alone).abs() <= 1e-14 * alone.abs().max(kappas[i]), "{i}: {} {alone}", pairs[i]);
        let (x, mu) = (rows.row(i), means.row(i));
        let cosine = x.dot(&mu) / x.dot(&x).sqrt() / mu.dot(&mu).sqrt();
        assert!((alone - (vmf.log_normalizer() + kappas[i] * cosine)).abs() <= 1e-14 * alone.abs().max(kappas[i]));
    }
    let wrong = log_density_pairs(&tensor(&rows), &tensor(&means), &cpu.tensor(&kappas.mapv(|k| -k)).expect("kappas"));
    assert!(matches!(wrong, Err(Error::Domain { quantity: "kappa", index: 0, .. })));
    assert!(vmf.log_density(&cpu.tensor(&Array2::<f32>::ones((2, 6))).expect("rows")).is_err());
}

#[test]
fn the_divergence_is_an_expectation_and_vanishes_quadratically() {
    let p = Vmf::new(unit(20, 1).view(), 30.0).expect("a distribution");
    let q = Vmf::new((&unit(20, 1) + &(0.3 * &unit(20, 2))).view(), 18.0).expect("a distribution");
    let rows = Device::cpu().tensor(&p.sample(20_000, 3)).expect("rows");
    let density = |vmf: &Vmf| vmf.log_density(&rows).expect("densities").to_array().expect("host").mapv(f64::from);
    let differences = density(&p) - density(&q);
    let mean = differences.mean().expect("rows");
    let exact = p.kl_divergence(&q).expect("one dimension");
    // five standard errors
    assert!((mean - exact).abs() < 5.0 * differences.std(0.0) / 20_000f64.sqrt(), "{mean} {exact}");
    assert_eq!(p.kl_divergence(&p).expect("one dimension"), 0.0);
    // (dkappa)^2 A' / 2 for close kappas; the integral has no cancellation
    for kappa in [0.01, 1.0, 300.0, 1e7] {
        let at = |kappa: f64| Vmf::new(unit(20, 1).view(), kappa).expect("a distribution");
        let (near, far) =
            (at(kappa).kl_divergence(&at(kappa * (1.0 + 1e-6))), at(kappa).kl_divergence(&at(kappa * (1.0 + 2e-6))));
        let ratio = far.expect("one dimension") / near.expect("one dimension");
        // A' changes by about 2e-6 over the step
        assert!((ratio - 4.0).abs() < 1e-4, "kappa {kappa}: {ratio}");
    }
    assert!(p.kl_divergence(&Vmf::new(unit(3, 1).view(), 1.0).expect("a distribution")).is_err());
}

#[test]
fn a_distribution_survives_its_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("vmf.json");
    let fitted = fit(&(gaussian(100, 12, &mut ChaCha8Rng::seed_from_u64(1)) + 0.5)).expect("a fit");
    fitted.save(&path).expect("saved");
    assert_eq!(Vmf::load(&path).expect("loaded"), fitted);
    assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 1, "nothing is left beside it");
    std::fs::write(&path, r#"{"mean_direction":[1.0,1.0],"kappa":2.0,"fitted":null}"#).expect("written");
    assert!(matches!(Vmf::load(&path), Err(Error::Format { .. })));
    assert!(matches!(Vmf::load(folder.path().join("none")), Err(Error::Io { .. })));
    assert!(matches!(fitted.save(folder.path().join("no/such/folder")), Err(Error::Io { .. })));
}

#[test]
fn weights_of_any_scale_merge_and_fit() {
    let rows =
        Array2::from_shape_fn((40, 7), |(i, j)| ((i * 7 + j) as f64 * 0.37).sin() + if j == 0 { 2.0 } else { 0.0 });
    let stats = |weight: f64| {
        let mut stats = VmfStats::new(7).expect("stats");
        stats.push_weighted(rows.view(), Array1::from_elem(40, weight).view()).map(|()| stats)
    };
    let expected = Vmf::from_stats(&stats(1.0).expect("sums")).expect("a fit");
    for weight in [1e300, 1e160, 1e-160, 1e-300] {
        let fitted = Vmf::from_stats(&stats(weight).expect("sums")).expect("a fit");
        // sums of other values: a few roundings, times (d - 1) / (1 - R) of about 50
        assert!((fitted.kappa() / expected.kappa() - 1.0).abs() < 1e-12, "weight {weight}: {}", fitted.kappa());
        assert!(fitted.mean_direction().dot(&expected.mean_direction()) > 1.0 - 1e-14);
        assert!((fitted.n() / weight - 40.0).abs() < 1e-12 * 40.0);
    }
    let mut merged = stats(1e200).expect("sums");
    merged.merge(&stats(1.0).expect("sums")).expect("merged");
    assert_eq!(merged.weight(), stats(1e200).expect("sums").weight(), "1 of 1e200 is nothing");
    assert!(matches!(stats(1e308), Err(Error::Argument { quantity: "weights", .. })));
    let mut heavy = stats(2e306).expect("sums");
    let before = heavy.clone();
    assert!(matches!(heavy.merge(&before), Err(Error::Argument { quantity: "weights", .. })));
    assert_eq!(heavy, before, "nothing is added");
}
