//! Real embeddings, against values that NumPy computed in f64 from the same files.

use std::path::{Path, PathBuf};

use half::f16;
use ndarray::{Array2, Axis, s};
use orthant::hamming::{
    Binarizer, Codes, EvaluateOptions, Evaluation, Index, ItqOptions, SearchOptions, TopN, binarize, evaluate,
};
use orthant::knn::{self, Metric};

use crate::tensor;

fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn floats(path: &Path) -> Array2<f32> {
    let bytes = std::fs::read(path).unwrap();
    let file = npyz::NpyFile::new(&bytes[..]).unwrap();
    let shape = (file.shape()[0] as usize, file.shape()[1] as usize);
    let values: Vec<f32> = match file.dtype().descr().contains("f2") {
        true => file.into_vec::<f16>().unwrap().into_iter().map(f16::to_f32).collect(),
        false => file.into_vec().unwrap(),
    };
    Array2::from_shape_vec(shape, values).unwrap()
}

fn integers(path: &Path) -> Vec<i32> {
    let bytes = std::fs::read(path).unwrap();
    npyz::NpyFile::new(&bytes[..]).unwrap().into_vec().unwrap()
}

/// Emoji of one vendor find the same emoji of another.
struct Emoji {
    /// Unit rows of all, which means are over.
    all: Array2<f32>,
    queries: Array2<f32>,
    query_labels: Vec<i32>,
    base: Array2<f32>,
    labels: Vec<i32>,
}

impl Emoji {
    /// `labels` holds (emoji, vendor) of each row as its last two columns.
    fn read(rows: &Path, labels: &Path) -> Emoji {
        let mut all = floats(rows);
        for mut row in all.outer_iter_mut() {
            let length = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
            row.mapv_inplace(|x| (f64::from(x) / length) as f32);
        }
        let flat = integers(labels);
        let columns = flat.len() / all.nrows();
        let of: Vec<(i32, i32)> = flat.chunks(columns).map(|row| (row[columns - 2], row[columns - 1])).collect();
        let side = |vendor| -> Vec<usize> { (0..of.len()).filter(|i| of[*i].1 == vendor).collect() };
        let (google, twitter) = (side(0), side(1));
        Emoji {
            queries: all.select(Axis(0), &google),
            query_labels: google.iter().map(|i| of[*i].0).collect(),
            base: all.select(Axis(0), &twitter),
            labels: twitter.iter().map(|i| of[*i].0).collect(),
            all,
        }
    }

    fn evaluate(&self, binarizer: &Binarizer) -> Evaluation {
        let [base, queries] = [&self.base, &self.queries].map(|rows| binarize(&tensor(rows), binarizer).unwrap());
        let options = EvaluateOptions::new().tops(&[1, 10]);
        evaluate(&base, &self.labels, &queries, &self.query_labels, &options).unwrap()
    }

    /// Rows less the mean of all, and the share of queries whose emoji is among the first 1 and 10 by cosine.
    fn cosine(&self) -> (Array2<f32>, Array2<f32>, [f64; 2]) {
        let mean = self.all.mapv(f64::from).mean_axis(Axis(0)).unwrap().mapv(|x| x as f32);
        let (base, queries) = (&self.base - &mean, &self.queries - &mean);
        let found = knn::search(&tensor(&base), &tensor(&queries), 10, Metric::Cosine).unwrap();
        let within = |k: usize| {
            let hit = |query: &usize| {
                found.ids.slice(s![*query, ..k]).iter().any(|id| self.labels[*id as usize] == self.query_labels[*query])
            };
            (0..queries.nrows()).filter(hit).count() as f64 / queries.nrows() as f64
        };
        let recall = [within(1), within(10)];
        (base, queries, recall)
    }

    /// Which share of the 10 nearest by cosine is among the 10 nearest of 10 x `oversampling` codes, by cosine.
    fn rescored(&self, binarizer: &Binarizer, oversampling: usize) -> f64 {
        let (base, queries, _) = self.cosine();
        let [codes, of_queries] = [&self.base, &self.queries].map(|rows| binarize(&tensor(rows), binarizer).unwrap());
        let mut index = Index::new(codes.device(), codes.bits()).unwrap();
        index.add(&codes).unwrap();
        let near = index.search(&of_queries, &SearchOptions::new(10 * oversampling)).unwrap().ids.to_array().unwrap();
        let (base, queries) = (tensor(&base), tensor(&queries));
        let truth = knn::search(&base, &queries, 10, Metric::Cosine).unwrap();
        let found = knn::rescore(&base, &queries, near.view(), 10, Metric::Cosine).unwrap();
        knn::recall(found.ids.view(), truth.ids.view()).unwrap()
    }
}

fn hits(top: &TopN) -> [f64; 2] {
    [top.hits, top.hits_sure]
}

/// Bits and cosines agree with NumPy's but for features within a rounding of their mean, and ties of cosines.
fn close(found: f64, expected: f64, queries: f64) -> bool {
    (found - expected).abs() <= 1.01 / queries
}

/// NumPy 2.4: unit rows, each bit a feature against its mean over all 512; by the lowest id, and with every tie counted against the query.
#[test]
fn emoji_of_the_cut() {
    let emoji = Emoji::read(&shipped("emoji_features_512.npy"), &shipped("emoji_labels_512.npy"));
    let sign = emoji.evaluate(&Binarizer::mean(&tensor(&emoji.all), 2048).unwrap());
    for (top, expected) in sign.tops.iter().zip([[0.515625, 0.5078125], [0.7421875, 0.734375]]) {
        let hits = hits(top);
        assert!(hits.iter().zip(expected).all(|(a, b)| close(*a, b, 256.0)), "{hits:?}, expected {expected:?}");
    }
    let (_, _, cosine) = emoji.cosine();
    assert!(close(cosine[0], 0.61328125, 256.0) && close(cosine[1], 0.890625, 256.0), "{cosine:?}");
    let itq = emoji.evaluate(&Binarizer::itq(&tensor(&emoji.all), &ItqOptions::new(256).iterations(20)).unwrap());
    let few = emoji.evaluate(&Binarizer::mean(&tensor(&emoji.all), 256).unwrap());
    for (itq, few) in itq.tops.iter().zip(&few.tops) {
        assert!(itq.hits > few.hits, "256 bits, first {}: {} learned, {} of features", itq.n, itq.hits, few.hits);
    }
    let half = Binarizer::median(&tensor(&emoji.all), 2048).unwrap();
    assert!(emoji.rescored(&half, 2) < emoji.rescored(&half, 8));
    // Of 256 codes 80: NumPy gives 0.9957.
    assert!(emoji.rescored(&half, 8) > 0.99);
}

/// Telephone voices find their own: each feature against its mean, NumPy 2.4 over sorted lists, ties by the lowest id.
#[test]
fn speakers_are_retrieved() {
    let rows = tensor(&floats(&shipped("speakers_ge2e.npy")));
    let labels = integers(&shipped("speakers_labels.npy"));
    for (bits, map, map_100, precision, empty) in [
        (256, 0.9036584859283268, 0.9750279595147945, 0.019543973941368076, 0.9785016286644951),
        (64, 0.7242826279923634, 0.8805352779529138, 0.046905537459283386, 0.9511400651465798),
        (16, 0.44067400077912333, 0.5880022495928211, 0.5498316947765391, 0.0013029315960912053),
    ] {
        let codes = binarize(&rows, &Binarizer::mean(&rows, bits).unwrap()).unwrap();
        let options = EvaluateOptions::new().tops(&[100]).leave_one_out(true);
        let found = evaluate(&codes, &labels, &codes, &labels, &options).unwrap();
        let two = found.radii[2];
        for (found, expected) in
            [(found.map_all, map), (found.tops[0].map, map_100), (two.precision, precision), (two.empty_balls, empty)]
        {
            assert!((found - expected).abs() < 1e-9, "{bits} bits: {found}, expected {expected}");
        }
        // Ties move it, the more the fewer bits.
        let moved = (found.map_all - found.map_all_tie_aware).abs();
        assert!(moved < if bits == 16 { 0.1 } else { 0.01 }, "{bits} bits: {moved}");
    }
    // A learned rotation keeps more in 64 bits than 64 of the features do.
    let itq = Binarizer::itq(&rows, &ItqOptions::new(64)).unwrap();
    let codes = binarize(&rows, &itq).unwrap();
    let found = evaluate(&codes, &labels, &codes, &labels, &EvaluateOptions::new().leave_one_out(true)).unwrap();
    assert!(found.map_all > 0.75, "{}", found.map_all);
}

/// NumPy 2.4, f64 of the shipped f16 rows: distances of the first 200 to all by differences, sorted, the 0 of itself dropped,
/// `-1 / np.log(r / r[:, -1:]).mean(1)`.
#[test]
fn dimensions_of_wordnet() {
    let rows = floats(&shipped("wordnet_minilm_4k.npy")).mapv(f16::from_f32);
    let queries = tensor(&rows.slice(s![..200, ..]).to_owned());
    for (k, mean, first) in [
        (20, 24.36224035256095, [11.65058236404181, 12.633175974772929, 27.73496456876287, 22.972675203936507]),
        (100, 25.093594446364122, [16.6839130997484, 19.08645315060642, 25.52405608986127, 15.393652302831443]),
    ] {
        let found = knn::search(&tensor(&rows), &queries, k + 1, Metric::L2).unwrap();
        assert!((0..200).all(|query| found.ids[[query, 0]] == query as u32), "each finds itself");
        let nearest = [0.8342969058782813, 0.8753594342601065, 0.9082226495105479];
        // Distances are rounded to f32.
        assert!((1..4).all(|at| (f64::from(found.distances[[0, at]]) - nearest[at - 1]).abs() < 6e-8));
        let dimension = found.local_dimension().unwrap().mapv(f64::from);
        // So logarithms are off by 1e-7, their mean of 0.04 by 3e-6 of it at most.
        for (query, expected) in first.into_iter().enumerate() {
            assert!(
                (dimension[query] / expected - 1.0).abs() < 5e-6,
                "{query}: {}, expected {expected}",
                dimension[query]
            );
        }
        assert!((dimension.mean().unwrap() / mean - 1.0).abs() < 5e-6, "k {k}");
    }
}

/// All 1911 emoji, where ORTHANT_EMBEDDINGS names a folder with `emoji_features_2048.npy`: `cargo test --release --test retrieval -- --ignored --nocapture`.
#[test]
#[ignore = "the features of all emoji are not in the repository"]
fn all_emoji() {
    let folder = PathBuf::from(std::env::var("ORTHANT_EMBEDDINGS").expect("ORTHANT_EMBEDDINGS names a folder"));
    let emoji = Emoji::read(&folder.join("emoji_features_2048.npy"), &folder.join("emoji_labels.npy"));
    let all = tensor(&emoji.all);
    let mean = Binarizer::mean(&all, 2048).unwrap();
    let sign = emoji.evaluate(&mean);
    println!(
        "2048 bits, means: recall@1, @10 (lowest id, ties against): {:?} {:?}",
        hits(&sign.tops[0]),
        hits(&sign.tops[1])
    );
    let (_, _, cosine) = emoji.cosine();
    println!("cosine: {cosine:?}");
    let queries = emoji.queries.nrows() as f64;
    assert!(close(sign.tops[0].hits_sure, 0.380, 1000.0) && close(sign.tops[1].hits_sure, 0.640, 1000.0));
    assert!(close(cosine[0], 0.409, queries / 4.0) && close(cosine[1], 0.708, 1000.0), "{cosine:?}");

    let itq = Binarizer::itq(&all, &ItqOptions::new(256)).unwrap();
    let (of_itq, of_sign) = (emoji.evaluate(&itq), emoji.evaluate(&Binarizer::mean(&all, 256).unwrap()));
    let planes = emoji.evaluate(&Binarizer::hyperplanes(2048, 256, 1).unwrap());
    for (name, found) in [("itq", &of_itq), ("means", &of_sign), ("hyperplanes", &planes)] {
        println!("256 bits, {name}: mAP {:.4}, {:?} {:?}", found.map_all, hits(&found.tops[0]), hits(&found.tops[1]));
    }
    assert!(of_itq.tops[0].hits > of_sign.tops[0].hits && of_itq.tops[1].hits > of_sign.tops[1].hits);
    assert!(of_itq.map_all > of_sign.map_all);

    let median = Binarizer::median(&all, 2048).unwrap();
    for (name, binarizer, enough) in [("means", &mean, 48), ("medians", &median, 16), ("256 bits of itq", &itq, 8)] {
        for oversampling in [1, 2, 4, 8, 16, 48] {
            let recall = emoji.rescored(binarizer, oversampling);
            println!("{name}, {oversampling} x 10 rescored: recall@10 {recall:.4}");
            // Means of features that are mostly 0 say too little about them.
            assert!(oversampling < enough || recall >= if name == "means" { 0.94 } else { 0.99 }, "{name}: {recall}");
        }
    }
}

/// Codes of files and codes of this library are the same bits.
#[test]
fn codes_are_packed_as_numpy_packs() {
    let rows = floats(&shipped("speakers_ge2e.npy")).slice(s![..50, ..]).to_owned();
    let codes =
        binarize(&tensor(&rows), &Binarizer::sign(256, 256).unwrap().rule(orthant::hamming::SignRule::Above)).unwrap();
    let bytes = Array2::from_shape_fn((50, 32), |(i, j)| {
        (0..8).map(|bit| u8::from(rows[[i, 8 * j + bit]] > 0.0) << bit).sum::<u8>()
    });
    let packed = Codes::from_bytes(codes.device(), &bytes.view()).unwrap();
    assert_eq!(packed.words().to_array().unwrap(), codes.words().to_array().unwrap());
}
