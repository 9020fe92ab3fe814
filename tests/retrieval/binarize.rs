//! Binarizers against what they say they do, bit by bit in f64.

use half::f16;
use ndarray::{Array1, Array2, Axis, s};
use orthant::hamming::{Binarizer, Codes, Fusion, ItqOptions, SignRule, binarize, fuse};
use orthant::{Device, Error};
use proptest::prelude::*;

use crate::{noise, tensor};

fn unpacked(rows: &Array2<f32>, binarizer: &Binarizer) -> Array2<bool> {
    binarize(&tensor(rows), binarizer).unwrap().unpack().unwrap()
}

#[test]
fn signs_and_thresholds_are_comparisons() {
    // Small whole numbers, so that many values are at their threshold.
    let rows = noise(101, 72, 1).mapv(|x| (2.0 * x).round());
    let median = |column: Vec<f32>| {
        let mut column = column;
        column.sort_by(f32::total_cmp);
        let n = column.len();
        0.5 * (column[(n - 1) / 2] + column[n / 2])
    };
    for n in [1, 2, 100, 101] {
        let rows = rows.slice(s![..n, ..]).to_owned();
        for bits in [8, 40, 72] {
            let tensor = tensor(&rows);
            let mean: Array1<f32> = rows.mapv(f64::from).mean_axis(Axis(0)).unwrap().mapv(|x| x as f32);
            let medians: Array1<f32> = rows.columns().into_iter().map(|column| median(column.to_vec())).collect();
            for (binarizer, thresholds) in [
                (Binarizer::sign(72, bits).unwrap(), Array1::zeros(72)),
                (Binarizer::mean(&tensor, bits).unwrap(), mean),
                (Binarizer::median(&tensor, bits).unwrap(), medians),
            ] {
                for rule in [SignRule::AtLeast, SignRule::Above] {
                    let binarizer = binarizer.clone().rule(rule);
                    let found = unpacked(&rows, &binarizer);
                    assert_eq!(found.dim(), (n, bits));
                    for ((i, j), bit) in found.indexed_iter() {
                        let (x, t) = (rows[[i, j]], thresholds[j]);
                        let expected = if rule == SignRule::Above { x > t } else { x >= t };
                        assert_eq!(*bit, expected, "row {i} bit {j}: {x} and {t}, {rule:?}");
                    }
                    let half = binarize(&crate::tensor(&rows.mapv(f16::from_f32)), &binarizer).unwrap();
                    assert_eq!(half.unpack().unwrap(), found, "f16 holds these numbers");
                }
            }
        }
    }
}

/// Bits are the signs of the projections in f64 wherever these are clear of their own rounding; the seed decides all.
#[test]
fn hyperplanes_are_products() {
    let rows = noise(5000, 50, 2);
    let binarizer = Binarizer::hyperplanes(50, 96, 7).unwrap();
    assert_eq!(binarizer, Binarizer::hyperplanes(50, 96, 7).unwrap());
    assert_ne!(binarizer, Binarizer::hyperplanes(50, 96, 8).unwrap());
    let found = unpacked(&rows, &binarizer);
    let projected = binarizer.project(&tensor(&rows)).unwrap().to_array().unwrap();
    let unit = binarizer.project(&tensor(&Array2::<f32>::eye(50))).unwrap().to_array().unwrap();
    let exact = rows.mapv(f64::from).dot(&unit.mapv(f64::from));
    let mut close = 0;
    for ((i, j), bit) in found.indexed_iter() {
        // 50 terms of a few: 50 * 2^-24 * |x| |plane| of about 50.
        let error = (exact[[i, j]] - f64::from(projected[[i, j]])).abs();
        assert!(error < 1.5e-4, "{error}");
        if exact[[i, j]].abs() > 1.5e-4 {
            assert_eq!(*bit, exact[[i, j]] > 0.0, "row {i} bit {j}");
        } else {
            close += 1;
        }
    }
    assert!(close < 100, "{close} of 480000 cannot be told");
    // The share of differing bits is the angle over pi: 96 bits of 2000 pairs, a standard error of 0.5 / sqrt(192000) = 0.0011, and pairs are of one set of planes.
    let (mut share, mut angles) = (0.0, 0.0);
    for i in 0..2000 {
        let (a, b) = (rows.row(2 * i).mapv(f64::from), rows.row(2 * i + 1).mapv(f64::from));
        angles += (a.dot(&b) / (a.dot(&a) * b.dot(&b)).sqrt()).acos() / std::f64::consts::PI;
        share += (0..96).filter(|j| found[[2 * i, *j]] != found[[2 * i + 1, *j]]).count() as f64 / 96.0;
    }
    assert!((share - angles).abs() / 2000.0 < 0.006, "{share} {angles}");
}

#[test]
fn binarizers_are_saved_and_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("b.safetensors");
    let rows = noise(200, 24, 3);
    for binarizer in [
        Binarizer::sign(24, 16).unwrap(),
        Binarizer::median(&tensor(&rows), 24).unwrap().rule(SignRule::Above),
        Binarizer::hyperplanes(24, 40, 1).unwrap(),
        Binarizer::itq(&tensor(&rows), &ItqOptions::new(16).iterations(5).seed(2)).unwrap(),
    ] {
        binarizer.save(&path).unwrap();
        let loaded = Binarizer::load(&path).unwrap();
        assert_eq!(loaded, binarizer);
        assert_eq!(unpacked(&rows, &loaded), unpacked(&rows, &binarizer));
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
    let whole = std::fs::read(&path).unwrap();
    for length in (0..whole.len()).step_by(37) {
        std::fs::write(&path, &whole[..length]).unwrap();
        assert!(matches!(Binarizer::load(&path), Err(Error::Format { .. })), "{length} bytes");
    }
    let key = b"orthant_binarizer\":\"";
    let at = whole.windows(key.len()).position(|bytes| bytes == key).unwrap() + key.len();
    let mut other = whole.clone();
    other[at] = b'2';
    std::fs::write(&path, &other).unwrap();
    let error = Binarizer::load(&path).unwrap_err().to_string();
    assert!(error.contains("version 2"), "{error}");
    assert!(matches!(Binarizer::load(folder.path().join("none")), Err(Error::Io { .. })));
}

#[test]
fn views_are_fused() {
    let (a, b, c) = (noise(30, 8, 4), noise(30, 16, 5), noise(30, 8, 6));
    let device = Device::cpu();
    let [ta, tb, tc] = [&a, &b, &c].map(tensor);
    let side = fuse(&[&ta, &tb], &[2.0, -0.5], Fusion::Concatenate).unwrap().to_array().unwrap();
    let expected = ndarray::concatenate(Axis(1), &[(&a * 2.0).view(), (&b * -0.5).view()]).unwrap();
    assert_eq!(side, expected);
    let sum = fuse(&[&ta, &tc], &[2.0, 0.5], Fusion::Sum).unwrap().to_array().unwrap();
    assert_eq!(sum, &a * 2.0 + &c * 0.5);
    assert_eq!(unpacked(&side, &Binarizer::sign(24, 24).unwrap()).ncols(), 24);
    assert!(matches!(fuse(&[&ta, &tb], &[1.0, 1.0], Fusion::Sum), Err(Error::Shape { quantity: "view", .. })));
    assert!(matches!(fuse(&[&ta], &[], Fusion::Sum), Err(Error::Shape { quantity: "weights", .. })));
    assert!(matches!(fuse::<f32>(&[], &[], Fusion::Sum), Err(Error::Argument { .. })));
    assert!(matches!(fuse(&[&ta], &[f32::NAN], Fusion::Sum), Err(Error::Argument { quantity: "weight", .. })));
    let short = device.tensor(&noise(29, 8, 6)).unwrap();
    assert!(matches!(fuse(&[&ta, &short], &[1.0, 1.0], Fusion::Concatenate), Err(Error::Shape { .. })));
}

#[test]
fn what_makes_no_codes_is_named() {
    let rows = noise(20, 24, 7);
    for bits in [0, 7, 12, 8200] {
        assert!(matches!(Binarizer::sign(9000, bits), Err(Error::Argument { quantity: "bits", .. })), "{bits}");
        assert!(matches!(Binarizer::hyperplanes(24, bits, 1), Err(Error::Argument { .. })), "{bits}");
    }
    assert!(matches!(Binarizer::mean(&tensor(&rows), 32), Err(Error::Argument { .. })), "more bits than features");
    assert!(matches!(Binarizer::itq(&tensor(&rows), &ItqOptions::new(32)), Err(Error::Argument { .. })));
    assert!(matches!(Binarizer::hyperplanes(0, 8, 1), Err(Error::Argument { quantity: "dim", .. })));
    assert!(matches!(Binarizer::mean(&tensor(&Array2::<f32>::zeros((0, 24))), 8), Err(Error::Shape { .. })));
    let one = tensor(&rows.slice(s![..1, ..]).to_owned());
    assert!(matches!(Binarizer::itq(&one, &ItqOptions::new(8)), Err(Error::Argument { quantity: "rows", .. })));
    let sign = Binarizer::sign(16, 16).unwrap();
    assert!(matches!(binarize(&tensor(&rows), &sign), Err(Error::Shape { quantity: "rows", .. })));
    let mut bad = noise(5000, 24, 7);
    bad[[4321, 5]] = f32::NAN;
    bad[[4999, 0]] = f32::INFINITY;
    let index = 4321 * 24 + 5;
    for result in [
        binarize(&tensor(&bad), &Binarizer::sign(24, 24).unwrap()).map(drop),
        binarize(&tensor(&bad), &Binarizer::hyperplanes(24, 16, 0).unwrap()).map(drop),
        Binarizer::mean(&tensor(&bad), 24).map(drop),
        Binarizer::median(&tensor(&bad), 24).map(drop),
        Binarizer::itq(&tensor(&bad), &ItqOptions::new(8)).map(drop),
    ] {
        let error = result.unwrap_err();
        assert!(matches!(error, Error::Domain { index: at, .. } if at == index), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, rng_seed: proptest::test_runner::RngSeed::Fixed(5), ..Default::default() })]

    /// Codes of a row do not depend on the rows beside it, nor signs on a positive scale.
    #[test]
    fn codes_are_of_rows(n in 1usize..40, dim in 8usize..70, seed in 0u64..1000, scale in 0.01f32..100.0) {
        let rows = noise(n, dim, seed);
        let bits = dim / 8 * 8;
        for binarizer in [Binarizer::sign(dim, bits).unwrap(), Binarizer::hyperplanes(dim, bits, seed).unwrap()] {
            let all = unpacked(&rows, &binarizer);
            let one = unpacked(&rows.slice(s![n / 2..n / 2 + 1, ..]).to_owned(), &binarizer);
            prop_assert_eq!(one.row(0), all.row(n / 2));
        }
        let sign = Binarizer::sign(dim, bits).unwrap();
        prop_assert_eq!(unpacked(&rows, &sign), unpacked(&(&rows * scale), &sign));
        let codes = binarize(&tensor(&rows), &sign).unwrap();
        let again = Codes::pack(&Device::cpu(), &codes.unpack().unwrap().view()).unwrap();
        prop_assert_eq!(codes.words().to_array().unwrap(), again.words().to_array().unwrap());
    }
}
