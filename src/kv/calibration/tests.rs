use faer::Mat;
use ndarray::{Array4, Ix3, concatenate};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::Device;
use crate::attention::{Options, attention};
use crate::kv::files::Reading;
use crate::kv::rope::RopeLayout;
use crate::kv::{AttendOptions, CacheOptions, ExactType, KvCache, LatentBits, RopeScaling};
use crate::tensor::Tensor;
use ndarray::Ix4;

const FRAMES: [Frame; 4] = [Frame::Pre, Frame::Post, Frame::Block(24), Frame::Block(64)];

fn noise(seed: u64, shape: (usize, usize, usize, usize)) -> Array4<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    // Some directions larger than others, and off their mean.
    Array4::from_shape_fn(shape, |(_, head, _, c)| {
        random.random_range(-1.5f32..1.5) * (1.0 + (c * 7 % 5) as f32) / 3.0 + 0.1 * (head + c) as f32
    })
}

fn tensor(array: &Array4<f32>) -> Tensor<f32, Ix4> {
    Device::Cpu.tensor(array).unwrap()
}

fn rope(dims: usize) -> Rope {
    Rope::new(RopeLayout::Halves, dims, 1e4).unwrap()
}

/// The largest difference, relative to the largest value.
fn off<'a>(a: impl Iterator<Item = &'a f64>, b: impl Iterator<Item = &'a f64>) -> f64 {
    let (mut difference, mut largest) = (0.0f64, 0.0f64);
    for (a, b) in a.zip(b) {
        assert!(a.is_finite() && b.is_finite());
        difference = difference.max((a - b).abs());
        largest = largest.max(b.abs());
    }
    difference / largest
}

/// How far two are apart, in whatever both have.
fn apart(a: &Calibration, b: &Calibration, attended: bool) -> f64 {
    assert_eq!(a.layers().collect::<Vec<_>>(), b.layers().collect::<Vec<_>>());
    let mut worst = 0.0f64;
    for (a, b) in a.layers.values().zip(b.layers.values()) {
        let mut sides = vec![(&a.keys, &b.keys), (&a.values, &b.values)];
        if attended {
            sides.push((&a.attended, &b.attended));
        }
        for (a, b) in sides {
            let (a, b) = (a.as_ref().unwrap(), b.as_ref().unwrap());
            worst = worst.max(off(a.products.iter(), b.products.iter())).max(off(a.sums.iter(), b.sums.iter()));
            worst = worst.max(off(a.weights.iter(), b.weights.iter()));
        }
        let (a, b) = (a.queries.as_ref().unwrap(), b.queries.as_ref().unwrap());
        assert_eq!(a.count, b.count);
        worst = worst.max(off(a.products.iter(), b.products.iter()));
    }
    worst
}

#[test]
fn batches_and_merging_equal_one_batch() {
    for frame in FRAMES {
        let new = || Calibration::new((4, 2, 8), rope(8), frame).unwrap();
        let (q, k, v) = (noise(1, (3, 4, 90, 8)), noise(2, (3, 2, 90, 8)), noise(3, (3, 2, 90, 8)));
        let starts = [0, 70, 5];
        let mut whole = new();
        whole.add(1, &starts, &tensor(&q), &tensor(&k), &tensor(&v)).unwrap();
        // One calibration a sequence: merged from the left, from the right, and streamed.
        let mut streamed = new();
        let mut each: Vec<_> = (0..3)
            .map(|i| {
                let of = |x: &Array4<f32>| tensor(&x.slice(s![i..i + 1, .., .., ..]).to_owned());
                let mut one = new();
                one.add(1, &starts[i..=i], &of(&q), &of(&k), &of(&v)).unwrap();
                streamed.add(1, &starts[i..=i], &of(&q), &of(&k), &of(&v)).unwrap();
                one
            })
            .collect();
        let mut left = each[0].clone();
        left.merge(&each[1]).unwrap();
        left.merge(&each[2]).unwrap();
        let last = each.pop().unwrap();
        let mut right = each.pop().unwrap();
        right.merge(&last).unwrap();
        let mut first = each.pop().unwrap();
        first.merge(&right).unwrap();
        for (name, found) in [("streamed", &streamed), ("left", &left), ("right", &first)] {
            // Sums in f64 in another order.
            let error = apart(found, &whole, true);
            assert!(error < 1e-12, "{name}, frame {frame}: {error:e}");
        }
        // Cut along the tokens, all but the attention is the same: positions decide.
        let mut cut = new();
        for (from, to) in [(0, 33), (33, 90)] {
            let of = |x: &Array4<f32>| tensor(&x.slice(s![.., .., from..to, ..]).to_owned());
            let starts: Vec<usize> = starts.iter().map(|start| start + from).collect();
            cut.add(1, &starts, &of(&q), &of(&k), &of(&v)).unwrap();
        }
        let error = apart(&cut, &whole, false);
        assert!(error < 1e-12, "frame {frame}: {error:e}");
    }
}

#[test]
fn keys_before_rotation_give_the_same() {
    for layout in [RopeLayout::Halves, RopeLayout::Adjacent] {
        let rope = Rope::new(layout, 6, 1e4).unwrap();
        let (q, k, v) = (noise(1, (1, 4, 50, 8)), noise(2, (1, 2, 50, 8)), noise(3, (1, 2, 50, 8)));
        let rotated = |rows: &Array4<f32>, start: usize| {
            Array4::from_shape_fn(rows.dim(), |(s, h, n, c)| {
                let (i, j, sign, pair) = match layout {
                    _ if c >= 6 => return rows[[s, h, n, c]],
                    RopeLayout::Halves => (c, (c + 3) % 6, if c < 3 { -1.0 } else { 1.0 }, c % 3),
                    RopeLayout::Adjacent => (c, c ^ 1, if c % 2 == 0 { -1.0 } else { 1.0 }, c / 2),
                };
                let angle = (start + n) as f64 * 1e4f64.powf(-(pair as f64) / 3.0);
                let (x, y) = (f64::from(rows[[s, h, n, i]]), f64::from(rows[[s, h, n, j]]));
                (x * angle.cos() + sign * y * angle.sin()) as f32
            })
        };
        for frame in FRAMES {
            let mut before = Calibration::new((4, 2, 8), rope.clone(), frame).unwrap();
            let mut after = before.clone();
            before.add_unrotated(0, &[7], &tensor(&q), &tensor(&k), &tensor(&v)).unwrap();
            after.add(0, &[7], &tensor(&rotated(&q, 7)), &tensor(&rotated(&k, 7)), &tensor(&v)).unwrap();
            // Rotations in f32, and by way of scores of some 10 the squares of probabilities.
            let error = apart(&before, &after, true);
            assert!(error < 1e-5, "{layout:?} {frame}: {error:e}");
            if frame == Frame::Pre {
                // Back where they were.
                let rows = k.index_axis(Axis(0), 0).mapv(f64::from);
                let of = |head| rows.index_axis(Axis(0), head).to_owned();
                let rows: Array2<f64> = concatenate![Axis(1), of(0), of(1)];
                let products = &after.layers[&0].keys.as_ref().unwrap().products;
                let error = off(products.iter(), rows.t().dot(&rows).iter());
                assert!(error < 1e-6, "{error:e}");
            }
        }
    }
}

#[test]
fn attention_to_a_token_is_the_sum_of_squared_probabilities() {
    // Rows of more than one block.
    let (q, k) = (noise(1, (2, 4, 300, 8)), noise(2, (2, 2, 320, 8)));
    let found = attended::weights(&Device::Cpu, &q, &k, &[0, 3], 4).unwrap();
    let mut expected = Array2::<f64>::zeros((640, 2));
    for (s, h, i) in (0..2).flat_map(|s| (0..4).flat_map(move |h| (0..300).map(move |i| (s, h, i)))) {
        let score = |n: usize| {
            (0..8).map(|c| f64::from(q[[s, h, i, c]]) * f64::from(k[[s, h / 2, n, c]])).sum::<f64>() / 8f64.sqrt()
        };
        let weights: Vec<f64> = (0..=i + 20).map(|n| score(n).exp()).collect();
        let total: f64 = weights.iter().sum();
        weights.iter().enumerate().for_each(|(n, w)| expected[[s * 320 + n, h / 2]] += (w / total).powi(2));
    }
    expected.slice_mut(s![..4, ..]).fill(0.0);
    expected.slice_mut(s![320..321, ..]).fill(0.0);
    // Scores of up to 30 in f32.
    let error = off(found.iter(), expected.iter());
    assert!(error < 3e-5, "{error:e}");
}

/// Squared singular values, descending.
fn singular(matrix: &Array2<f64>) -> Vec<f64> {
    let matrix = Mat::from_fn(matrix.nrows(), matrix.ncols(), |i, j| matrix[[i, j]]);
    matrix.singular_values().unwrap().into_iter().map(|x| x * x).collect()
}

/// x - x^ of the first `rank` components, of rows (n, width).
fn lost(projections: &Projections, side: Side, rank: usize, rows: &Array2<f64>) -> Array2<f64> {
    let cut = projections.with_rank(rank).unwrap();
    let basis = &cut.bases(2, side).unwrap()[0];
    let (mean, down, up) = (basis.mean().mapv(f64::from), basis.down().mapv(f64::from), basis.up().mapv(f64::from));
    let centred = rows - &mean;
    &centred - &centred.dot(&down).dot(&up)
}

/// Against the brute force: no matrix of rank r is nearer to the logits, or to the weighted outputs, than its SVD cut at r.
#[test]
fn every_prefix_is_the_best_of_its_rank() {
    let (d, n) = (6, 200);
    let (q, k, v) = (noise(1, (1, 2, n, d)), noise(2, (1, 1, n, d)), noise(3, (1, 1, n, d)));
    let mut random = ChaCha8Rng::seed_from_u64(4);
    let w_o = Array2::from_shape_simple_fn((9, 2 * d), || random.random_range(-1.0f32..1.0));
    let mut calibration = Calibration::new((2, 1, d), Rope::none(), Frame::Post).unwrap();
    calibration.add(2, &[0], &tensor(&q), &tensor(&k), &tensor(&v)).unwrap();
    calibration.output_weights(2, &w_o.view()).unwrap();
    let rows = |x: &Array4<f32>, head: usize| x.slice(s![0, head, .., ..]).mapv(f64::from);
    let queries: Array2<f64> = concatenate![Axis(0), rows(&q, 0), rows(&q, 1)];
    let (keys, values) = (rows(&k, 0), rows(&v, 0));
    let weights = attended::weights(&Device::Cpu, &q, &k, &[0], 4).unwrap();
    let weights = weights.index_axis(Axis(1), 0).mapv(|w| (w / weights.sum()).sqrt()).insert_axis(Axis(1));
    let w_o = w_o.mapv(f64::from);
    let stacked: Array2<f64> = concatenate![Axis(0), w_o.slice(s![.., ..d]), w_o.slice(s![.., d..])];
    for centred in [true, false] {
        for weighting in [Weighting::Query, Weighting::Pca] {
            let options = ProjectionOptions::new().weighting(weighting, weighting).centred(centred);
            let projections = calibration.projections(&options).unwrap();
            for side in [Side::Keys, Side::Values] {
                let scale = 1.0 / (2 * n * n * d) as f64;
                let seen = |rows: &Array2<f64>| match (weighting, side) {
                    (Weighting::Query, Side::Keys) => queries.dot(&rows.t()) * scale.sqrt(),
                    (Weighting::Query, _) => (rows * &weights).dot(&stacked.t()),
                    _ => rows / (n as f64).sqrt(),
                };
                let of_side = if side == Side::Keys { &keys } else { &values };
                let basis = &projections.bases(2, side).unwrap()[0];
                let best = singular(&seen(&(of_side - &basis.mean().mapv(f64::from))));
                for rank in 1..=d {
                    let least: f64 = best[rank..].iter().sum();
                    let found: f64 = seen(&lost(&projections, side, rank, of_side)).iter().map(|x| x * x).sum();
                    let expected = basis.expected_error(rank).unwrap();
                    let of_all: f64 = best.iter().sum();
                    // Bases and means are f32.
                    assert!((found - least).abs() < 1e-5 * of_all, "{weighting:?} {side} {rank}: {found} {least}");
                    assert!((expected - least).abs() < 1e-5 * of_all, "{side} {rank}: {expected} {least}");
                }
            }
        }
    }
}

#[test]
fn weights_are_decomposed_as_activations_scale_them() {
    let (d, width) = (4, 11);
    let mut random = ChaCha8Rng::seed_from_u64(4);
    let mut matrix = || Array2::from_shape_simple_fn((2 * d, width), || random.random_range(-1.0f32..1.0));
    let (w_k, w_v) = (matrix(), matrix());
    let x = Array3::from_shape_fn((2, 30, width), |(s, n, c)| ((s + n * 3 + c * 5) % 13) as f32 * (c + 1) as f32 - 9.0);
    let mut calibration = Calibration::new((2, 2, d), rope(d), Frame::Pre).unwrap();
    calibration.input_weights(2, &w_k.view(), &w_v.view()).unwrap();
    let device = Device::Cpu;
    calibration.add_inputs(2, &device.tensor(&x.slice(s![..1, .., ..])).unwrap()).unwrap();
    calibration.add_inputs(2, &device.tensor(&x.slice(s![1.., .., ..])).unwrap()).unwrap();
    let scales = x.mapv(|x| f64::from(x.abs())).mean_axis(Axis(0)).unwrap().mean_axis(Axis(0)).unwrap();
    let options = ProjectionOptions::new().weighting(Weighting::Asvd, Weighting::Asvd).joint(2, 2).alpha(0.7);
    let projections = calibration.projections(&options).unwrap();
    for (side, weights) in [(Side::Keys, w_k), (Side::Values, w_v)] {
        let scaled = weights.mapv(f64::from) * scales.mapv(|x| x.powf(0.7));
        let best = singular(&scaled);
        let basis = &projections.bases(2, side).unwrap()[0];
        assert_eq!((basis.heads(), basis.rank()), (2, 2 * d));
        for rank in 1..=2 * d {
            let least: f64 = best[rank..].iter().sum();
            let left = lost(&projections, side, rank, &scaled.t().to_owned());
            let found: f64 = left.iter().map(|x| x * x).sum();
            assert!((found - least).abs() < 1e-5 * best[0], "{side} {rank}: {found} {least}");
        }
    }
    let mut rotated = Calibration::new((2, 2, d), rope(d), Frame::Post).unwrap();
    rotated.layers = calibration.layers.clone();
    assert!(matches!(rotated.projections(&options), Err(Error::Argument { quantity: "frame", .. })));
}

/// Keys or values of layer 8 as their latents rebuild them.
fn rebuilt(projections: &Projections, side: Side, rows: &Array3<f64>) -> Array3<f64> {
    let turns = projections.rope().turns(projections.frame());
    let turn = |row: &mut [f64], n: usize, sign: f64| {
        for &(i, j, frequency) in turns.pairs.iter().filter(|_| side == Side::Keys) {
            let (sin, cos) = (sign * turns.origin(n) as f64 * frequency).sin_cos();
            (row[i], row[j]) = (row[i] * cos - row[j] * sin, row[j] * cos + row[i] * sin);
        }
    };
    let (_, len, d) = rows.dim();
    let mut out = rows.clone();
    let mut first = 0;
    for basis in projections.bases(8, side).unwrap() {
        let wide = |x: &Array2<f32>| x.mapv(f64::from);
        let (mean, down, up) = (basis.mean().mapv(f64::from), wide(basis.down()), wide(basis.up()));
        let mut x = Array2::zeros((len, basis.width()));
        for (n, mut x) in x.outer_iter_mut().enumerate() {
            for (head, to) in x.as_slice_mut().unwrap().chunks_exact_mut(d).enumerate() {
                to.copy_from_slice(&rows.slice(s![first + head, n, ..]).to_vec());
                turn(to, n, -1.0);
            }
        }
        let mut back = (x - &mean).dot(&down).dot(&up) + &mean;
        for (n, mut x) in back.outer_iter_mut().enumerate() {
            for (head, row) in x.as_slice_mut().unwrap().chunks_exact_mut(d).enumerate() {
                turn(row, n, 1.0);
                out.slice_mut(s![first + head, n, ..]).assign(&ndarray::ArrayView1::from(&*row));
            }
        }
        first += basis.heads();
    }
    out
}

/// Rows with the exact ones among them as they are.
fn mixed(exact: &Array3<f64>, rebuilt: &Array3<f64>, is_exact: impl Fn(usize) -> bool) -> Array3<f64> {
    Array3::from_shape_fn(exact.dim(), |at| if is_exact(at.1) { exact[at] } else { rebuilt[at] })
}

/// Causal attention of the last queries.
fn attended_by(q: &Array3<f64>, k: &Array3<f64>, v: &Array3<f64>) -> Array3<f64> {
    let (q_heads, q_len, d) = q.dim();
    let (kv_heads, len, _) = k.dim();
    let mut out = Array3::zeros(q.dim());
    for head in 0..q_heads {
        let of = head * kv_heads / q_heads;
        for i in 0..q_len {
            let seen = len - q_len + i + 1;
            let scores = k.slice(s![of, ..seen, ..]).dot(&q.slice(s![head, i, ..])) / (d as f64).sqrt();
            let largest = scores.iter().fold(f64::MIN, |a, b| a.max(*b));
            let weights = scores.mapv(|x| (x - largest).exp());
            let row = v.slice(s![of, ..seen, ..]).t().dot(&weights) / weights.sum();
            out.slice_mut(s![head, i, ..]).assign(&row);
        }
    }
    out
}

fn frobenius(found: &Array3<f64>, expected: &Array3<f64>) -> f64 {
    let norm = |x: &Array3<f64>| x.iter().map(|x| x * x).sum::<f64>().sqrt();
    norm(&(found - expected)) / norm(expected)
}

/// The output of a cache over tokens that are appended at once.
fn cached(
    projections: &Projections,
    bits: LatentBits,
    (q, k, v): (&Array4<f32>, &Array4<f32>, &Array4<f32>),
) -> Array3<f64> {
    let options = CacheOptions::new().bits(bits, bits).exact(ExactType::Single);
    let mut cache = KvCache::new(&Device::Cpu, projections, &options).unwrap();
    let sequence = cache.insert().unwrap();
    cache.append(8, &[sequence], &tensor(k), &tensor(v)).unwrap();
    let output = cache.attend(8, &[sequence], &tensor(q), &AttendOptions::new().causal()).unwrap().output;
    output.to_array().unwrap().index_axis(Axis(0), 0).mapv(f64::from)
}

/// Tokens of the first and last pages, as the default cache holds them.
fn exact_of(len: usize) -> impl Fn(usize) -> bool {
    move |n| n < 4 || n >= (len - 32) / 32 * 32
}

fn check_cache(calibration: &Calibration, (q, k, v): (&Array4<f32>, &Array4<f32>, &Array4<f32>), rank: usize) {
    let frame = calibration.frame;
    let wide = |x: &Array4<f32>| x.index_axis(Axis(0), 0).mapv(f64::from);
    let (wide_q, wide_k, wide_v) = (wide(q), wide(k), wide(v));
    for weighting in [Weighting::Pca, Weighting::Query] {
        for joint in [1, calibration.kv_heads] {
            let options = ProjectionOptions::new().weighting(weighting, weighting).joint(joint, joint);
            let full = calibration.projections(&options).unwrap();
            let dense = attention(&tensor(q), &tensor(k), &tensor(v), &Options::new().causal()).unwrap();
            let dense = dense.output.to_array().unwrap().index_axis(Axis(0), 0).mapv(f64::from);
            // At 32 bits sums of f32. At 16 each latent is rounded to 11 bits, and a latent of keys moves a score by 2^-12 of its share of it.
            for (bits, tolerance) in [(LatentBits::ThirtyTwo, 1e-5), (LatentBits::Sixteen, 2e-3)] {
                let error = frobenius(&cached(&full, bits, (q, k, v)), &dense);
                println!("{frame} {weighting:?} joint {joint} full rank {bits:?}: {error:e}");
                assert!(error < tolerance, "{frame} {weighting:?} joint {joint} {bits:?}: {error:e}");
            }
            let cut = full.with_rank(rank * joint).unwrap();
            let exact = exact_of(k.dim().2);
            let rows = |side, rows| mixed(rows, &rebuilt(&cut, side, rows), &exact);
            let expected = attended_by(&wide_q, &rows(Side::Keys, &wide_k), &rows(Side::Values, &wide_v));
            let error = frobenius(&cached(&cut, LatentBits::ThirtyTwo, (q, k, v)), &expected);
            let of_rank = frobenius(&expected, &dense);
            println!("{frame} {weighting:?} joint {joint} rank {rank}: {of_rank:e} of rank, {error:e} of the cache");
            assert!(error < 1e-5, "{frame} {weighting:?} joint {joint}: {error:e}");
            assert!(of_rank > 1e-4, "rank {rank} loses nothing: {of_rank:e}");
        }
    }
}

#[test]
fn caches_of_real_keys_attend_as_they_should() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/smollm2_layer08_512.safetensors");
    let file = Reading::open(path.as_ref(), "test data").unwrap();
    let read = |name| file.floats::<Ix3>(name).unwrap().mapv(|x| x as f32).insert_axis(Axis(0));
    let (q, k, v) = (read("q_post_last64"), read("k_post"), read("v"));
    let rope = Rope::new(RopeLayout::Halves, 64, 1e5).unwrap();
    for frame in [Frame::Pre, Frame::Post, Frame::Block(64)] {
        let mut calibration = Calibration::new((9, 3, 64), rope.clone(), frame).unwrap();
        calibration.add(8, &[0], &tensor(&q), &tensor(&k), &tensor(&v)).unwrap();
        check_cache(&calibration, (&q, &k, &v), 32);
    }
}

#[test]
fn caches_in_other_frames_attend_as_they_should() {
    let scaling = RopeScaling::Llama3 {
        factor: 8.0,
        low_frequency_factor: 1.0,
        high_frequency_factor: 4.0,
        original_context: 128.0,
    };
    let ropes = [
        Rope::none(),
        rope(16),
        rope(6),
        Rope::new(RopeLayout::Adjacent, 12, 1e4).unwrap(),
        rope(16).scaled(scaling).unwrap(),
        rope(16).scaled(RopeScaling::Linear(4.0)).unwrap(),
    ];
    let (q, k, v) = (noise(1, (1, 4, 40, 16)), noise(2, (1, 2, 300, 16)), noise(3, (1, 2, 300, 16)));
    for rope in ropes {
        for frame in FRAMES {
            let mut calibration = Calibration::new((4, 2, 16), rope.clone(), frame).unwrap();
            calibration.add(8, &[0], &tensor(&q), &tensor(&k), &tensor(&v)).unwrap();
            check_cache(&calibration, (&q, &k, &v), 8);
        }
    }
}

#[test]
fn what_is_saved_comes_back() {
    for frame in FRAMES {
        let (q, k, v) = (noise(1, (1, 4, 90, 8)), noise(2, (1, 2, 90, 8)), noise(3, (1, 2, 90, 8)));
        let mut calibration = Calibration::new((4, 2, 8), rope(4), frame).unwrap().sinks(2);
        let w_o = Array2::from_shape_fn((5, 32), |(i, j)| (i + j) as f32);
        calibration.output_weights(3, &w_o.view()).unwrap();
        for layer in [3, 12] {
            calibration.add(layer, &[0], &tensor(&q), &tensor(&k), &tensor(&v)).unwrap();
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("calibration.safetensors");
        calibration.save(&path).unwrap();
        let loaded = Calibration::load(&path).unwrap();
        // Means divided by their counts and times them again.
        assert!(apart(&loaded, &calibration, true) < 1e-14);
        assert_eq!(loaded.layers[&3].output_gram, calibration.layers[&3].output_gram);
        assert_eq!((&loaded.rope, loaded.sinks, loaded.frame), (&calibration.rope, 2, frame));
        let mut one = Calibration::new((4, 2, 8), rope(4), frame).unwrap();
        one.read_moments(&path, 12).unwrap();
        assert_eq!(one.layers().collect::<Vec<_>>(), [12]);
        let mut of_bytes = Calibration::new((4, 2, 8), rope(4), frame).unwrap();
        of_bytes.read_moments_bytes(&std::fs::read(&path).unwrap(), 12).unwrap();
        assert_eq!(of_bytes, one);
        assert!(matches!(of_bytes.read_moments_bytes(b"no", 12), Err(Error::Format { .. })));
        let error = one.read_moments(&path, 5).unwrap_err();
        assert!(matches!(&error, Error::Format { reason, .. } if reason.contains("layer 5")), "{error}");
    }
}

#[test]
fn bad_input_is_named() {
    let new = |heads| Calibration::new(heads, rope(8), Frame::Pre);
    assert!(matches!(new((4, 0, 8)), Err(Error::Argument { quantity: "kv_heads", .. })));
    assert!(matches!(new((4, 3, 8)), Err(Error::Argument { quantity: "q_heads", .. })));
    assert!(matches!(new((4, 2, 6)), Err(Error::Argument { quantity: "dims", .. })));
    let mut calibration = new((4, 2, 8)).unwrap();
    let (q, k) = (noise(1, (1, 4, 50, 8)), noise(2, (1, 2, 50, 8)));
    let mut bad = k.clone();
    bad[[0, 1, 3, 2]] = f32::INFINITY;
    let error = calibration.add(4, &[0], &tensor(&q), &tensor(&k), &tensor(&bad)).unwrap_err();
    assert!(matches!(error, Error::Domain { quantity: "v", index: 426, .. }), "{error}");
    let error = calibration.add(4, &[0], &tensor(&k), &tensor(&k), &tensor(&k)).unwrap_err();
    assert!(matches!(error, Error::Shape { quantity: "q", .. }), "{error}");
    let error = calibration.add(4, &[0, 1], &tensor(&q), &tensor(&k), &tensor(&k)).unwrap_err();
    assert!(matches!(&error, Error::Shape { quantity: "k", expected, .. } if expected.contains("layer 4")), "{error}");
    assert_eq!(calibration.layers().count(), 0, "it is as before");
    calibration.output_weights(4, &Array2::zeros((3, 32)).view()).unwrap();
    let error = calibration.projections(&ProjectionOptions::new()).unwrap_err();
    assert!(matches!(&error, Error::Argument { expected, .. } if expected.contains("layer 4")), "{error}");
    calibration.add(4, &[0], &tensor(&q), &tensor(&k), &tensor(&k)).unwrap();
    let options = ProjectionOptions::new();
    assert!(calibration.projections(&options).is_ok(), "also in a metric of zeros");
    for options in [options.clone().joint(3, 1), options.clone().joint(0, 1)] {
        assert!(matches!(calibration.projections(&options), Err(Error::Argument { quantity: "joint", .. })));
    }
    let options = options.weighting(Weighting::Asvd, Weighting::Pca);
    let error = calibration.projections(&options).unwrap_err();
    assert!(matches!(error, Error::Argument { quantity: "weights", .. }), "{error}");
    let mut other = Calibration::new((4, 2, 8), rope(8), Frame::Post).unwrap();
    assert!(matches!(other.merge(&calibration), Err(Error::Argument { quantity: "other", .. })));
    other.add(4, &[0], &tensor(&q.slice(s![.., .., ..0, ..]).to_owned()), &tensor(&k), &tensor(&k)).unwrap();
    let error = other.projections(&ProjectionOptions::new()).unwrap_err();
    assert!(matches!(error, Error::Argument { quantity: "moments of queries", .. }), "{error}");
}

/// Some of the published errors, from the published moments: `ORTHANT_KV_DATA` is the folder.
#[test]
#[ignore = "needs the activations of a decoder, 24 MB: ORTHANT_KV_DATA"]
fn golden_errors_come_out() {
    let folder = std::path::PathBuf::from(std::env::var("ORTHANT_KV_DATA").unwrap());
    let golden: std::collections::BTreeMap<String, f64> =
        serde_json::from_slice(&std::fs::read(folder.join("golden.json")).unwrap()).unwrap();
    let rope = Rope::new(RopeLayout::Halves, 64, 1e5).unwrap();
    let mut count = 0;
    for (layer, q_name) in [(1, "q_post_last256"), (8, "q_post"), (22, "q_post_last256")] {
        let path = folder.join(format!("smollm2_kv_layer{layer:02}.safetensors"));
        let file = Reading::open(&path, "test data").unwrap();
        let read = |name| file.floats::<Ix3>(name).unwrap();
        let (q, k, v) = (read(q_name), read("k_post"), read("v"));
        let first = q.dim().1 - 256;
        for (name, frame, weighting) in [
            ("mkv", Frame::Post, Weighting::Pca),
            ("postq", Frame::Post, Weighting::Query),
            ("blk64q", Frame::Block(64), Weighting::Query),
        ] {
            let mut calibration = Calibration::new((9, 3, 64), rope.clone(), frame).unwrap();
            calibration.read_moments(&path, layer).unwrap();
            calibration.layers = calibration.layers.into_values().map(|moments| (8, moments)).collect();
            let options = ProjectionOptions::new().weighting(weighting, weighting);
            let full = calibration.projections(&options).unwrap();
            for rank in [48, 32, 13] {
                let cut = full.with_rank(rank).unwrap();
                let (low_k, low_v) = (rebuilt(&cut, Side::Keys, &k), rebuilt(&cut, Side::Values, &v));
                for sinks in [0, 4] {
                    let (mut error, mut norm) = (0.0, 0.0);
                    for step in (0..256).step_by(4) {
                        let len = 2048 - 256 + step + 1;
                        let of = |x: &Array3<f64>| x.slice(s![.., ..len, ..]).to_owned();
                        let exact = |n: usize| len - 1 - n < 32 || n < sinks;
                        let rows = |x, low| mixed(&of(x), &of(low), exact);
                        let q = q.slice(s![.., first + step..first + step + 1, ..]).to_owned();
                        let found = attended_by(&q, &rows(&k, &low_k), &rows(&v, &low_v));
                        let dense = attended_by(&q, &of(&k), &of(&v));
                        error += (&found - &dense).iter().map(|x| x * x).sum::<f64>();
                        norm += dense.iter().map(|x| x * x).sum::<f64>();
                    }
                    let key = format!("layer{layer}/{name}/r{rank}/16bit/sink{sinks}");
                    let (found, expected) = ((error / norm).sqrt(), golden[&key]);
                    println!("{key}: {found:.5}, published {expected:.5}, {:+.2} %", 100.0 * (found / expected - 1.0));
                    assert!((found / expected - 1.0).abs() < 0.02, "{key}: {found} {expected}");
                    count += 1;
                }
            }
        }
    }
    assert_eq!(count, 54);
}
