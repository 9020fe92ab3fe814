//! Mixtures of von Mises-Fisher distributions.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use half::f16;
use ndarray::{Array1, Array2, Axis, s};
use orthant::vmf::{MixtureOptions, RowSource, Vmf, VmfMixture};
use orthant::{Device, Error, Result, Tensor};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

/// `n` rows of a mixture of `k` components of concentration `kappa` in `d` dimensions, of varying length, with their labels.
fn clusters(n: usize, d: usize, k: usize, kappa: f64, seed: u64) -> (Array2<f32>, Vec<u32>) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut rows = Array2::zeros((n, d));
    let labels: Vec<u32> = (0..n).map(|_| rng.random_range(0..k as u32)).collect();
    for label in 0..k as u32 {
        let mean = Array1::from_shape_simple_fn(d, || StandardNormal.sample(&mut rng));
        // components differ in kappa by up to 2
        let vmf = Vmf::new(mean.view(), kappa * (1.0 + label as f64 / k as f64)).expect("a distribution");
        let own: Vec<usize> = (0..n).filter(|&row| labels[row] == label).collect();
        for (row, drawn) in own.iter().zip(vmf.sample(own.len(), seed + label as u64).rows()) {
            rows.row_mut(*row).assign(&(&drawn * rng.random_range(0.5f32..20.0)));
        }
    }
    (rows, labels)
}

fn tensor(rows: &Array2<f32>) -> Tensor<f32, ndarray::Ix2> {
    Device::cpu().tensor(rows).expect("a tensor")
}

/// Normalised mutual information, arithmetic mean of the entropies, as sklearn's default.
fn nmi(a: &[u32], b: &[u32]) -> f64 {
    let (ka, kb) = (a.iter().max().map_or(0, |&m| m as usize + 1), b.iter().max().map_or(0, |&m| m as usize + 1));
    let n = a.len() as f64;
    let mut joint = Array2::<f64>::zeros((ka, kb));
    a.iter().zip(b).for_each(|(&a, &b)| joint[[a as usize, b as usize]] += 1.0 / n);
    let (pa, pb) = (joint.sum_axis(Axis(1)), joint.sum_axis(Axis(0)));
    let entropy = |p: &Array1<f64>| -p.iter().filter(|p| **p > 0.0).map(|p| p * p.ln()).sum::<f64>();
    let mutual: f64 =
        joint.indexed_iter().filter(|(_, p)| **p > 0.0).map(|((i, j), p)| p * (p / pa[i] / pb[j]).ln()).sum();
    2.0 * mutual / (entropy(&pa) + entropy(&pb))
}

fn purity(labels: &[u32], found: &[u32]) -> f64 {
    let mut counts = std::collections::HashMap::<(u32, u32), usize>::new();
    labels.iter().zip(found).for_each(|(&a, &b)| *counts.entry((b, a)).or_default() += 1);
    let mut best = std::collections::HashMap::<u32, usize>::new();
    counts.iter().for_each(|(&(b, _), &count)| {
        let best = best.entry(b).or_default();
        *best = count.max(*best);
    });
    best.values().sum::<usize>() as f64 / labels.len() as f64
}

fn predict(mixture: &VmfMixture, rows: &Array2<f32>) -> Vec<u32> {
    mixture.predict(&tensor(rows)).expect("labels").to_array().expect("host").to_vec()
}

fn assert_monotone(mixture: &VmfMixture) {
    let kappa = mixture.components().iter().fold(0.0f64, |largest, component| largest.max(component.kappa));
    for pair in mixture.log_likelihood_trace().windows(2) {
        // f32 cosines are off by up to about 1e-6
        assert!(pair[1] >= pair[0] - 1e-6 * kappa.max(1.0), "{:?}", mixture.log_likelihood_trace());
    }
}

#[test]
fn a_mixture_is_recovered() {
    for (n, d, k, kappa, seed) in [(3000, 3, 3, 60.0, 1), (4000, 50, 8, 120.0, 2), (2000, 500, 5, 600.0, 3)] {
        let (rows, labels) = clusters(n, d, k, kappa, seed);
        for (hard, tied) in [(false, false), (true, false), (false, true), (true, true)] {
            let options = MixtureOptions::new(k).seed(5).starts(2).hard(hard).tied_kappa(tied);
            let mixture = VmfMixture::fit(&tensor(&rows), &options).expect("a fit");
            let found = predict(&mixture, &rows);
            let nmi = nmi(&labels, &found);
            assert!(nmi > 0.93, "d {d} hard {hard} tied {tied}: nmi {nmi}");
            assert!(mixture.converged());
            assert_monotone(&mixture);
            assert_eq!(mixture.iterations(), mixture.log_likelihood_trace().len());
            let sizes: usize = mixture.components().iter().map(|component| component.size).sum();
            assert_eq!(sizes, n);
            for (k, component) in mixture.components().iter().enumerate() {
                assert_eq!(component.size, found.iter().filter(|label| **label == k as u32).count());
                let expected = 1.5 * kappa;
                assert!(
                    component.kappa > 0.5 * expected && component.kappa < 2.0 * expected,
                    "kappa {}",
                    component.kappa
                );
                assert!(component.kappa_relative_error < 0.2);
            }
            let weights: f64 = mixture.components().iter().map(|component| component.weight).sum();
            assert!((weights - 1.0).abs() < 1e-9);
            // responsibilities and scores agree with the definition, in f64
            let r = mixture.responsibilities(&tensor(&rows)).expect("responsibilities").to_array().expect("host");
            let scores = mixture.score(&tensor(&rows)).expect("scores").to_array().expect("host");
            for row in (0..n).step_by(97) {
                let x = rows.row(row).mapv(f64::from);
                let x = &x / x.dot(&x).sqrt();
                let terms: Vec<f64> = mixture
                    .components()
                    .iter()
                    .map(|c| c.weight.ln() + c.log_normalizer + c.kappa * c.mean_direction.mapv(f64::from).dot(&x))
                    .collect();
                let largest = terms.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b));
                let score = largest + terms.iter().map(|term| (term - largest).exp()).sum::<f64>().ln();
                // kappa times the rounding of an f32 dot product
                let slack = 1e-6 * 3.0 * kappa;
                assert!((scores[row] as f64 - score).abs() < slack + 1e-6 * score.abs(), "{} {score}", scores[row]);
                for (k, term) in terms.iter().enumerate() {
                    assert!((r[[row, k]] as f64 - (term - score).exp()).abs() < 2.0 * slack);
                }
                assert!((r.row(row).sum() - 1.0).abs() < 1e-5);
            }
            let mean = scores.mapv(f64::from).mean().expect("rows");
            assert!((mean - mixture.log_likelihood()).abs() < 1e-6 * mean.abs().max(kappa));
            if !hard {
                let last = mixture.log_likelihood_trace().last().copied().expect("an iteration");
                assert_eq!(last, mixture.log_likelihood());
            }
        }
    }
}

#[test]
fn criteria_prefer_the_right_number_of_components() {
    let (rows, _) = clusters(3000, 10, 4, 60.0, 4);
    let fit = |k| VmfMixture::fit(&tensor(&rows), &MixtureOptions::new(k).starts(3)).expect("a fit");
    let bic: Vec<f64> = [2, 3, 4, 5, 7].map(|k| fit(k).bic()).to_vec();
    assert!(bic.iter().all(|&value| value >= bic[2]), "{bic:?}");
    let four = fit(4);
    let parameters = (4 * 9 + 4 + 3) as f64;
    assert!((four.aic() - (2.0 * parameters - 2.0 * 3000.0 * four.log_likelihood())).abs() < 1e-6);
    assert!((four.bic() - four.aic() - parameters * (3000f64.ln() - 2.0)).abs() < 1e-6);
}

struct Source<'a> {
    rows: &'a Array2<f32>,
    read: AtomicUsize,
}

impl RowSource for Source<'_> {
    fn rows(&self) -> usize {
        self.rows.nrows()
    }
    fn dim(&self) -> usize {
        self.rows.ncols()
    }
    fn read(&self, first: usize, mut into: ndarray::ArrayViewMut2<'_, f32>) -> Result<()> {
        self.read.fetch_add(into.nrows(), Ordering::Relaxed);
        let last = first + into.nrows();
        into.assign(&self.rows.slice(s![first..last, ..]));
        Ok(())
    }
}

#[test]
fn a_source_gives_the_same_fit_as_memory() {
    let (rows, _) = clusters(5000, 40, 6, 100.0, 7);
    let source = Source { rows: &rows, read: AtomicUsize::new(0) };
    let options = MixtureOptions::new(6).seed(3);
    let streamed = VmfMixture::fit_source(&Device::cpu(), &source, &options).expect("a fit");
    // the sample for the seeds, then every row once an iteration
    assert_eq!(source.read.load(Ordering::Relaxed), 5000 * (1 + streamed.iterations()));
    let memory = VmfMixture::fit(&tensor(&rows), &options).expect("a fit");
    assert_eq!(streamed, memory, "the sample is all rows, and the arithmetic is the same");

    let mut labels = vec![u32::MAX; 5000];
    let mut next = 0;
    memory
        .predict_source(&Device::cpu(), &source, &mut |first, part| {
            assert_eq!(first, next, "in order");
            next += part.len();
            labels[first..next].iter_mut().zip(part).for_each(|(label, &part)| *label = part);
            Ok(())
        })
        .expect("labels");
    assert_eq!(labels, predict(&memory, &rows));
    let mut scores: Vec<f32> = Vec::new();
    memory
        .score_source(&Device::cpu(), &source, &mut |_, part| {
            scores.extend(part);
            Ok(())
        })
        .expect("scores");
    assert_eq!(scores, memory.score(&tensor(&rows)).expect("scores").to_array().expect("host").to_vec());
    let refused = memory.score_source(&Device::cpu(), &source, &mut |_, _| {
        Err(Error::Io { what: "sink".into(), reason: "full".into() })
    });
    assert!(matches!(refused, Err(Error::Io { .. })));
}

#[test]
fn mini_batches_come_close_to_full_ones() {
    let (rows, labels) = clusters(6000, 30, 5, 80.0, 9);
    let options = MixtureOptions::new(5).seed(3).batch(Some(512)).max_iterations(6);
    let mixture = VmfMixture::fit(&tensor(&rows), &options).expect("a fit");
    let full = VmfMixture::fit(&tensor(&rows), &MixtureOptions::new(5).seed(3)).expect("a fit");
    assert!(nmi(&labels, &predict(&mixture, &rows)) > 0.93);
    // stepwise EM forgets with step^-0.7, so its estimates keep the noise of some thousand rows
    assert!((mixture.log_likelihood() - full.log_likelihood()).abs() < 0.1);
}

#[test]
fn weights_are_repetitions_and_hide_rows() {
    let (mut rows, _) = clusters(900, 12, 3, 80.0, 10);
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let weights = Array1::from_shape_simple_fn(900, || rng.random_range(0..3) as f64);
    let repeated: Vec<usize> = (0..900).flat_map(|row| std::iter::repeat_n(row, weights[row] as usize)).collect();
    let many = VmfMixture::fit(&tensor(&rows.select(Axis(0), &repeated)), &MixtureOptions::new(3).tolerance(1e-9))
        .expect("a fit");
    for (row, weight) in weights.iter().enumerate() {
        if *weight == 0.0 {
            rows.row_mut(row).fill(f32::NAN);
        }
    }
    let once = VmfMixture::fit_weighted(&tensor(&rows), weights.view(), &MixtureOptions::new(3).tolerance(1e-9))
        .expect("a fit");
    // different seeds, one optimum: well separated components
    assert!(
        (once.log_likelihood() - many.log_likelihood()).abs() < 1e-4,
        "{} {}",
        once.log_likelihood(),
        many.log_likelihood()
    );
    assert!((once.bic() - many.bic()).abs() < 1.0);
}

#[test]
fn rows_of_any_scale_and_type_give_the_same_mixture() {
    let (rows, _) = clusters(500, 20, 3, 80.0, 11);
    let halves = rows.mapv(f16::from_f32);
    let cpu = Device::cpu();
    let options = MixtureOptions::new(3);
    let a = VmfMixture::fit(&cpu.tensor(&halves).expect("f16"), &options).expect("a fit");
    let b = VmfMixture::fit(&cpu.tensor(&halves.mapv(f16::to_f32)).expect("f32"), &options).expect("a fit");
    assert_eq!(a, b, "f16 rows are widened exactly");
    let mut scaled = halves.mapv(f16::to_f64);
    for (index, mut row) in scaled.rows_mut().into_iter().enumerate() {
        row *= 10f64.powi([-200, -30, 0, 30, 200][index % 5]);
    }
    let c = VmfMixture::fit(&cpu.tensor(&scaled).expect("f64"), &options).expect("a fit");
    // rounding of a normalised row to f32
    assert!((c.log_likelihood() - b.log_likelihood()).abs() < 1e-4, "{} {}", c.log_likelihood(), b.log_likelihood());
}

#[test]
fn options_that_make_no_sense_are_refused() {
    let (rows, _) = clusters(20, 5, 2, 50.0, 12);
    let rows = tensor(&rows);
    let quantity = |options: MixtureOptions| match VmfMixture::fit(&rows, &options) {
        Err(Error::Argument { quantity, .. }) => quantity,
        other => panic!("{other:?}"),
    };
    assert_eq!(quantity(MixtureOptions::new(0)), "components");
    assert_eq!(quantity(MixtureOptions::new(21)), "components");
    assert_eq!(quantity(MixtureOptions::new(2).starts(0)), "starts");
    assert_eq!(quantity(MixtureOptions::new(2).max_iterations(0)), "max_iterations");
    assert_eq!(quantity(MixtureOptions::new(2).tolerance(f64::NAN)), "tolerance");
    assert_eq!(quantity(MixtureOptions::new(2).max_kappa(0.0)), "max_kappa");
    assert_eq!(quantity(MixtureOptions::new(2).batch(Some(0))), "batch");
    let error =
        VmfMixture::fit_weighted(&rows, Array1::zeros(20).view(), &MixtureOptions::new(2)).expect_err("no rows");
    assert!(matches!(error, Error::Argument { .. }), "{error}");
    let fitted = VmfMixture::fit(&rows, &MixtureOptions::new(2)).expect("a fit");
    assert!(matches!(fitted.predict(&tensor(&Array2::ones((3, 4)))), Err(Error::Shape { .. })));
}

#[test]
fn a_bad_row_is_named() {
    for bad in [f32::NAN, f32::INFINITY, 0.0] {
        let (mut rows, _) = clusters(5000, 16, 2, 50.0, 13);
        for index in [17, 4999] {
            if bad == 0.0 { rows.row_mut(index).fill(0.0) } else { rows[[index, 3]] = bad }
        }
        let named = |error: Error| matches!(error, Error::Domain { index: 17, quantity: "row", .. });
        let options = MixtureOptions::new(2);
        assert!(named(VmfMixture::fit(&tensor(&rows), &options).expect_err("a bad row")));
        let source = Source { rows: &rows, read: AtomicUsize::new(0) };
        assert!(named(VmfMixture::fit_source(&Device::cpu(), &source, &options).expect_err("a bad row")));
    }
}

#[test]
fn degenerate_data_gives_a_model_all_the_same() {
    // as many components as rows, identical rows, more components than distinct rows, opposite rows
    let (rows, _) = clusters(12, 6, 3, 50.0, 14);
    let one = rows.select(Axis(0), &[0; 30]);
    let two = rows.select(Axis(0), &[0, 1, 0, 1, 0, 1, 0, 1]);
    let opposite = ndarray::concatenate![Axis(0), rows, -&rows];
    for (rows, k) in [(&rows, 12), (&one, 4), (&two, 5), (&opposite, 1), (&opposite, 3)] {
        for hard in [false, true] {
            let mixture = VmfMixture::fit(&tensor(rows), &MixtureOptions::new(k).hard(hard)).expect("a fit");
            assert!(mixture.log_likelihood().is_finite(), "{mixture:?}");
            assert!(mixture.components().iter().all(|c| c.weight.is_finite() && c.kappa.is_finite()));
            let labels = predict(&mixture, rows);
            assert!(labels.iter().all(|&label| (label as usize) < k));
            assert_survives(&mixture);
        }
    }
    // components that are empty until the last iteration are seeded again in it
    let identical = rows.select(Axis(0), &[0; 50]);
    for iterations in 1..=5 {
        let options = MixtureOptions::new(20).max_iterations(iterations);
        assert_survives(&VmfMixture::fit(&tensor(&identical), &options).expect("a fit"));
    }
    let capped = VmfMixture::fit(&tensor(&one), &MixtureOptions::new(1).max_kappa(1000.0)).expect("a fit");
    assert_eq!(capped.components()[0].kappa, 1000.0);
    assert!(capped.converged());
}

/// The weights add up to 1, and the model's own loader takes it.
fn assert_survives(mixture: &VmfMixture) {
    let weights: f64 = mixture.components().iter().map(|component| component.weight).sum();
    assert!((weights - 1.0).abs() < 1e-9, "weights add up to {weights}");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("mixture.json");
    mixture.save(&path).expect("saved");
    let loaded = VmfMixture::load(&path).expect("loaded");
    for (a, b) in loaded.components().iter().zip(mixture.components()) {
        assert_eq!(a.kappa_relative_error, b.kappa_relative_error);
    }
}

#[test]
fn a_kappa_that_is_only_a_cap_has_no_error_bar() {
    let (rows, _) = clusters(3, 6, 1, 50.0, 16);
    let error = |rows: &Array2<f32>, options: MixtureOptions| {
        let mixture = VmfMixture::fit(&tensor(rows), &options).expect("a fit");
        assert_survives(&mixture);
        mixture.components()[0].kappa_relative_error
    };
    assert_eq!(error(&rows.select(Axis(0), &[0; 30]), MixtureOptions::new(1)), f64::INFINITY);
    let drawn = |kappa| Vmf::new(ndarray::arr1(&[1.0, 2.0, 3.0]).view(), kappa).expect("a vMF").sample(2000, 1);
    assert_eq!(error(&drawn(1e8), MixtureOptions::new(1)), f64::INFINITY);
    assert_eq!(error(&drawn(1e4), MixtureOptions::new(1).max_kappa(5e3)), f64::INFINITY);
    // 1 / sqrt(n) in three dimensions
    assert!(error(&drawn(1e4), MixtureOptions::new(1)) < 0.03);
}

#[test]
fn mini_batches_keep_every_component_of_sorted_rows() {
    let (rows, labels) = clusters(3000, 20, 6, 80.0, 17);
    let mut order: Vec<usize> = (0..3000).collect();
    order.sort_by_key(|&row| labels[row]);
    let rows = tensor(&rows.select(Axis(0), &order));
    let fit = |options: MixtureOptions| VmfMixture::fit(&rows, &options.seed(3)).expect("a fit");
    let single = fit(MixtureOptions::new(1)).log_likelihood();
    for hard in [false, true] {
        let full = fit(MixtureOptions::new(6).hard(hard));
        let range = full.log_likelihood() - single;
        // a fifth of a cluster, most of one, and fewer rows than components
        for (batch, iterations) in [(100, 1), (100, 6), (400, 6), (4, 3)] {
            let options = MixtureOptions::new(6).hard(hard).batch(Some(batch)).max_iterations(iterations);
            let mixture = fit(options);
            let short = full.log_likelihood() - mixture.log_likelihood();
            assert!(short.abs() < 0.01 * range, "batch {batch} hard {hard}: {short} of {range}");
            // clusters of about 500 rows
            assert!(mixture.components().iter().all(|component| component.size > 300), "batch {batch} hard {hard}");
        }
    }
}

#[test]
fn a_common_factor_of_the_weights_is_only_a_number_of_rows() {
    let (rows, _) = clusters(600, 12, 3, 80.0, 18);
    let rows = tensor(&rows);
    let fit = |weight: f64| {
        let weights = Array1::from_shape_fn(600, |row| weight * (1 + row % 3) as f64);
        VmfMixture::fit_weighted(&rows, weights.view(), &MixtureOptions::new(3))
    };
    let expected = fit(1.0).expect("a fit");
    for weight in [1e300, 1e-60, 1e-300, 1.0 / 1200.0] {
        let mixture = fit(weight).expect("a fit");
        assert_survives(&mixture);
        assert_eq!(mixture.iterations(), expected.iterations(), "no component counts as empty");
        // weights are rounded in another place: f32 responsibilities
        assert!((mixture.log_likelihood() - expected.log_likelihood()).abs() < 1e-4, "weight {weight}");
        for (a, b) in mixture.components().iter().zip(expected.components()) {
            assert!((a.weight - b.weight).abs() < 1e-5 && (a.kappa / b.kappa - 1.0).abs() < 1e-4, "weight {weight}");
        }
        // 2 p = 2 (3 * 11 + 3 + 2) for any number of rows
        let penalty = mixture.aic() + 2.0 * mixture.log_likelihood() * weight * 1200.0;
        assert!((penalty - 76.0).abs() <= 1e-9 * mixture.aic().abs(), "{penalty}");
    }
    assert!(matches!(fit(5e307), Err(Error::Argument { quantity: "weights", .. })));
}

#[test]
fn a_mixture_survives_its_file_and_reports_its_progress() {
    let (rows, _) = clusters(400, 9, 3, 50.0, 15);
    let seen = std::sync::Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    let options =
        MixtureOptions::new(3).progress(move |iteration, value| log.lock().expect("a lock").push((iteration, value)));
    let mixture = VmfMixture::fit(&tensor(&rows), &options).expect("a fit");
    let expected: Vec<(usize, f64)> = (1..).zip(mixture.log_likelihood_trace().iter().copied()).collect();
    assert_eq!(*seen.lock().expect("a lock"), expected);
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("mixture.json");
    mixture.save(&path).expect("saved");
    let loaded = VmfMixture::load(&path).expect("loaded");
    assert_eq!(predict(&loaded, &rows), predict(&mixture, &rows));
    assert_eq!(loaded.log_likelihood_trace(), mixture.log_likelihood_trace());
    assert_eq!((loaded.aic(), loaded.bic()), (mixture.aic(), mixture.bic()));
    for (a, b) in loaded.components().iter().zip(mixture.components()) {
        assert_eq!((a.kappa, a.weight, a.size, &a.mean_direction), (b.kappa, b.weight, b.size, &b.mean_direction));
    }
    let text = std::fs::read_to_string(&path).expect("text").replacen("\"weight\":0.", "\"weight\":7.", 1);
    std::fs::write(&path, text).expect("written");
    assert!(matches!(VmfMixture::load(&path), Err(Error::Format { .. })));
    let (drawn, labels) = mixture.sample(3000, 4);
    assert_eq!((drawn.shape(), labels.len()), (&[3000, 9][..], 3000));
    let again = VmfMixture::fit(&tensor(&drawn), &MixtureOptions::new(3)).expect("a fit");
    // a fit of 3000 rows of itself: parameters / (2 n) below, noise of 3 / sqrt(n)
    assert!((again.log_likelihood() - mixture.log_likelihood()).abs() < 0.3);
    assert_eq!(mixture.sample(10, 4).0, mixture.sample(10, 4).0);
}

fn shipped<T: npyz::Deserialize>(name: &str) -> (Vec<u64>, Vec<T>) {
    let file = std::io::BufReader::new(std::fs::File::open(format!("tests/data/{name}")).expect("shipped data"));
    let npy = npyz::NpyFile::new(file).expect("an .npy file");
    (npy.shape().to_vec(), npy.into_vec().expect("elements"))
}

#[test]
fn the_speakers_are_told_apart() {
    let (shape, values) = shipped::<f16>("speakers_ge2e.npy");
    let rows = Array2::from_shape_vec((shape[0] as usize, shape[1] as usize), values).expect("rows");
    let labels: Vec<u32> = shipped::<i32>("speakers_labels.npy").1.iter().map(|&label| label as u32).collect();
    let rows = Device::cpu().tensor(&rows).expect("rows");
    let mixture = VmfMixture::fit(&rows, &MixtureOptions::new(7).starts(5)).expect("a fit");
    let found = mixture.predict(&rows).expect("labels").to_array().expect("host").to_vec();
    let (nmi, purity) = (nmi(&labels, &found), purity(&labels, &found));
    println!("speakers: nmi {nmi} purity {purity}");
    assert!(purity > 0.95, "purity {purity}, nmi {nmi}");
}
