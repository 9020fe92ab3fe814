use ndarray::{Array3, Axis, s};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::kv::files::Writing;
use crate::kv::rope::{RopeLayout, RopeScaling};
use crate::kv::{CacheOptions, KvCache};
use ndarray::{Array1, Array2};

fn random(seed: u64, rows: usize, columns: usize) -> Array2<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    Array2::from_shape_simple_fn((rows, columns), || random.random_range(-1.0f32..1.0))
}

/// Two heads of 4: keys each on its own, values joint.
fn some() -> Projections {
    let rope = Rope::new(RopeLayout::Adjacent, 4, 1e4).unwrap();
    let basis = |seed, heads: usize, rank| {
        let width = 4 * heads;
        Basis::new(
            heads,
            random(seed, 1, width).row(0).to_owned(),
            random(seed, width, rank),
            random(seed, rank, width),
        )
        .unwrap()
    };
    let new = Projections::new(2, 4, rope, Frame::Block(64)).unwrap();
    let values = basis(3, 2, 7).with_spectrum(Some((0..8).rev().map(f64::from).collect()));
    new.with_layer(5, vec![basis(1, 1, 4), basis(2, 1, 3)], vec![values]).unwrap()
}

fn is_format(error: &Error, part: &str) -> bool {
    matches!(error, Error::Format { reason, .. } if reason.contains(part))
}

#[test]
fn what_is_saved_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("projections.safetensors");
    let projections = some();
    projections.save(&path).unwrap();
    assert_eq!(Projections::load(&path).unwrap(), projections);
    let cut = projections.with_ranks(&Ranks::new().with_layer(5, vec![2, 3], vec![1])).unwrap();
    cut.save(&path).unwrap();
    assert_eq!(Projections::load(&path).unwrap(), cut);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside");
    assert_eq!(cut.bases(5, Side::Values).unwrap()[0].expected_error(6), Some(1.0), "the spectrum stays whole");
    std::fs::write(&path, b"no").unwrap();
    assert!(is_format(&Projections::load(&path).unwrap_err(), "projections.safetensors"));
    assert!(matches!(Projections::load(folder.path().join("none")), Err(Error::Io { .. })));
}

#[test]
fn damaged_files_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.safetensors");
    let written = |change: &dyn Fn(&mut Writing)| {
        let mut file = Writing::default();
        for (name, text) in [("orthant_projections", "1"), ("kv_heads", "1"), ("head_dim", "2"), ("frame", "pre")] {
            file.note(name, text);
        }
        file.note("rope_layout", "halves");
        file.double("rope.frequencies", &[1], [1.0]);
        for side in ["keys", "values"] {
            file.single(format!("layer.3.{side}.0.mean"), &Array1::zeros(2));
            file.single(format!("layer.3.{side}.0.down"), &random(1, 2, 1));
        }
        file.single("layer.3.values.0.up", &random(1, 1, 2));
        change(&mut file);
        file.save(&path).unwrap();
        Projections::load(&path)
    };
    assert!(written(&|file| file.single("layer.3.keys.0.up", &random(1, 1, 2))).is_ok());
    assert!(is_format(&written(&|_| ()).unwrap_err(), "layer.3.keys.0.up"), "missing");
    assert!(is_format(&written(&|file| file.single("layer.3.keys.0.up", &random(1, 2, 2))).unwrap_err(), "(1, 2)"));
    let nan = |file: &mut Writing| file.single("layer.3.keys.0.up", &Array2::from_elem((1, 2), f32::NAN));
    assert!(is_format(&written(&nan).unwrap_err(), "layer.3.keys.0.up at index 0 is NaN"));
    assert!(is_format(&written(&|file| file.note("frame", "block0")).unwrap_err(), "block0"));
}

#[test]
fn ranks_out_of_range_name_the_head() {
    let projections = some();
    for (ranks, whose) in [
        (Ranks::new().with_layer(5, vec![4, 0], vec![7]), "keys of head 1 of layer 5"),
        (Ranks::new().with_layer(5, vec![5, 3], vec![7]), "keys of head 0 of layer 5"),
        (Ranks::new().with_layer(5, vec![4, 3], vec![8]), "values of head 0 of layer 5"),
        (Ranks::new().with_layer(4, vec![4, 3], vec![8]), "one of 5"),
    ] {
        let error = projections.with_ranks(&ranks).unwrap_err();
        assert!(matches!(&error, Error::Argument { expected, .. } if expected.contains(whose)), "{error}");
    }
    let error = projections.with_ranks(&Ranks::new().with_layer(5, vec![4], vec![7])).unwrap_err();
    assert!(matches!(error, Error::Shape { quantity: "ranks", .. }), "{error}");
    assert!(projections.with_rank(0).is_err() && projections.with_rank(4).is_err());
    assert_eq!(projections.with_rank(3).unwrap().ranks().of(5, Side::Keys), Some(&[3, 3][..]));
    assert_eq!(projections.ranks().total(), 14);
    let cut = projections.with_rank(2).unwrap();
    let (cut, whole) = (&cut.bases(5, Side::Values).unwrap()[0], &projections.bases(5, Side::Values).unwrap()[0]);
    assert_eq!((cut.down().view(), cut.up().view()), (whole.down().slice(s![.., ..2]), whole.up().slice(s![..2, ..])));
}

#[test]
fn factors_must_fit() {
    let zeros = |n: usize| Array1::<f32>::zeros(n);
    assert!(matches!(Basis::new(1, zeros(4), random(1, 4, 2), random(1, 3, 4)), Err(Error::Shape { .. })));
    assert!(matches!(Basis::new(1, zeros(3), random(1, 4, 2), random(1, 2, 4)), Err(Error::Shape { .. })));
    assert!(matches!(Basis::new(1, zeros(4), random(1, 4, 5), random(1, 5, 4)), Err(Error::Argument { .. })));
    assert!(matches!(Basis::new(1, zeros(4), random(1, 4, 0), random(1, 0, 4)), Err(Error::Argument { .. })));
    let mut columns = random(1, 2, 4).reversed_axes();
    columns[[3, 1]] = f32::NAN;
    let error = Basis::new(1, zeros(4), columns, random(1, 2, 4)).unwrap_err();
    assert!(matches!(error, Error::Domain { quantity: "down", index: 7, .. }), "{error}");
    let eye = Array2::from_diag_elem(4, 1.0f32);
    assert!(Basis::orthogonal(1, zeros(4), eye.clone()).is_ok());
    let error = Basis::orthogonal(1, zeros(4), eye * 1.01).unwrap_err();
    assert!(matches!(error, Error::Domain { quantity: "rows", index: 0, .. }), "{error}");
    let eye = || Basis::orthogonal(1, zeros(4), Array2::from_diag_elem(4, 1.0f32)).unwrap();
    let new = Projections::new(2, 4, Rope::none(), Frame::Post).unwrap();
    let error = new.with_layer(0, vec![eye(), eye()], vec![eye()]).unwrap_err();
    assert!(matches!(error, Error::Shape { quantity: "values", .. }), "{error}");
    assert!(Projections::new(1, 4, Rope::none(), Frame::Block(0)).is_err());
    let options = CacheOptions::new().window(8);
    assert!(matches!(
        KvCache::new(&crate::Device::Cpu, &some(), &options),
        Err(Error::Argument { quantity: "window", .. })
    ));
}

#[test]
fn rotations_are_those_of_the_models() {
    let halves = Rope::new(RopeLayout::Halves, 4, 1e4).unwrap();
    assert_eq!(halves.turns(Frame::Pre).pairs, [(0, 2, 1.0), (1, 3, 0.01)]);
    let adjacent = Rope::new(RopeLayout::Adjacent, 4, 1e4).unwrap();
    assert_eq!(adjacent.turns(Frame::Post).pairs, [(0, 1, 1.0), (2, 3, 0.01)]);
    assert_eq!(adjacent.turns(Frame::Post).block(), None);
    assert_eq!(Rope::none().turns(Frame::Pre).block(), None, "nothing turns");
    // Llama 3.1: the shortest wavelengths stay, the longest are 8 times as long, between is the line of the definition.
    let scaling = RopeScaling::Llama3 {
        factor: 8.0,
        low_frequency_factor: 1.0,
        high_frequency_factor: 4.0,
        original_context: 8192.0,
    };
    let plain = Rope::new(RopeLayout::Halves, 128, 5e5).unwrap();
    let scaled = plain.clone().scaled(scaling).unwrap();
    let mut bands = [0; 3];
    for (before, after) in plain.frequencies().iter().zip(scaled.frequencies()) {
        let wavelength = std::f64::consts::TAU / before;
        let expected = if wavelength < 8192.0 / 4.0 {
            bands[0] += 1;
            *before
        } else if wavelength > 8192.0 {
            bands[2] += 1;
            before / 8.0
        } else {
            bands[1] += 1;
            let smooth = (8192.0 / wavelength - 1.0) / 3.0;
            (1.0 - smooth) * before / 8.0 + smooth * before
        };
        assert!((after / expected - 1.0).abs() < 1e-12, "{after} {expected}");
    }
    assert_eq!(bands, [29, 6, 29]);
    assert!(Rope::new(RopeLayout::Halves, 5, 1e4).is_err() && Rope::new(RopeLayout::Halves, 4, 0.0).is_err());
    assert!(Rope::of_frequencies(RopeLayout::Halves, vec![1.0, f64::NAN]).is_err());
    assert!(halves.scaled(RopeScaling::Linear(f64::NAN)).is_err());
    for (text, frame) in [("pre", Frame::Pre), ("post", Frame::Post), ("block24", Frame::Block(24))] {
        assert_eq!((text.parse::<Frame>().unwrap(), frame.to_string()), (frame, text.to_string()));
    }
    assert!("block".parse::<Frame>().is_err() && "block0".parse::<Frame>().is_err());
}

#[test]
fn matryoshka_files_load() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.safetensors");
    let names = MatryoshkaNames::default();
    let matrices = MatryoshkaNames::matrices();
    let skew = |seed: u64| {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        Array3::from_shape_simple_fn((2, 4, 4), || random.random_range(-1.0f32..1.0))
    };
    let mut file = Writing::default();
    for layer in [0, 11] {
        let name = |pattern: &str| pattern.replace("{layer}", &layer.to_string());
        file.single(name(&names.keys), &skew(layer));
        file.single(name(&names.values), &skew(layer + 1));
        file.single(name(&names.key_means), &random(layer, 2, 4).insert_axis(Axis(0)).insert_axis(Axis(2)));
        let eye = Array2::from_diag_elem(4, 1.0f32);
        let turned: Array3<f32> = ndarray::stack![Axis(0), eye, eye.slice(s![.., ..;-1])];
        file.single(name(&matrices.keys), &turned);
        file.single(name(&matrices.values), &turned);
    }
    file.save(&path).unwrap();
    let rope = || Rope::new(RopeLayout::Halves, 4, 1e4).unwrap();
    let loaded = Projections::load_matryoshka(&path, (2, 4), rope(), &names).unwrap();
    assert_eq!((loaded.layers().collect::<Vec<_>>(), loaded.frame()), (vec![0, 11], Frame::Post));
    let basis = &loaded.bases(11, Side::Keys).unwrap()[1];
    assert_eq!(*basis.mean(), random(11, 2, 4).row(1));
    assert_eq!(loaded.bases(0, Side::Values).unwrap()[0].mean().sum(), 0.0, "no means in the file");
    // (I - A/2) Q = I + A/2.
    let x = skew(11).index_axis(Axis(0), 1).mapv(f64::from);
    let half = (&x - &x.t()) * 0.5;
    let eye = Array2::<f64>::eye(4);
    let off = (&eye - &half).dot(&basis.down().mapv(f64::from)) - (&eye + &half);
    assert!(off.iter().all(|x| x.abs() < 1e-6), "{off}");
    let given = Projections::load_matryoshka(&path, (2, 4), rope(), &matrices).unwrap();
    let z = given.bases(0, Side::Keys).unwrap()[1].down().clone();
    assert_eq!(z, Array2::from_shape_fn((4, 4), |(i, j)| f32::from(u8::from(i + j == 3))));
    let error = Projections::load_matryoshka(&path, (1, 4), rope(), &names).unwrap_err();
    assert!(is_format(&error, "layers.0.self_attn.key_unitary_transform_weights has shape [2, 4, 4]"), "{error}");
    let wrong = MatryoshkaNames { cayley: false, ..names };
    let error = Projections::load_matryoshka(&path, (2, 4), rope(), &wrong).unwrap_err();
    assert!(is_format(&error, "orthonormal"), "{error}");
    let other = MatryoshkaNames { keys: "a.{layer}".into(), ..matrices };
    assert!(is_format(&Projections::load_matryoshka(&path, (2, 4), rope(), &other).unwrap_err(), "a.{layer}"));
}

#[test]
fn cskv_files_load() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c.safetensors");
    let (rank, width, inputs) = (3, 8, 20);
    // A in the span of the rows of W, as the SVD of W leaves it: A = M W.
    let (w, m, b) = (random(1, width, inputs), random(2, rank, width), random(3, width, rank));
    let a = m.dot(&w);
    let (w_v, a_v, b_v) = (random(4, width, inputs), random(5, rank, inputs), random(6, width, rank));
    let names = CskvNames::default();
    let name = |pattern: &str| pattern.replace("{layer}", "2");
    let mut file = Writing::default();
    // Keys as the code's models for inference, values as those in training.
    let both: Array2<f32> = ndarray::concatenate![Axis(0), w, a];
    file.single(name(&names.key_a), &both);
    file.single(name(&names.key_b), &b);
    file.single(name(&names.value_a), &a_v);
    file.single(name(&names.value_b), &b_v);
    file.save(&path).unwrap();
    let load = || Projections::load_cskv(&path, (2, 4), Rope::none(), &names);
    let loaded = load().unwrap();
    assert_eq!((loaded.layers().collect::<Vec<_>>(), loaded.frame()), (vec![2], Frame::Pre));
    let keys = &loaded.bases(2, Side::Keys).unwrap()[0];
    assert_eq!((keys.heads(), keys.rank()), (2, rank));
    // The latents of k = W x are A x, and keys are B times them.
    let x = random(7, inputs, 1);
    let difference = keys.down().t().dot(&w.dot(&x)) - a.dot(&x);
    assert!(difference.iter().all(|x| x.abs() < 1e-4), "{difference}");
    assert_eq!(*keys.up(), b.t());
    // Without W_v, what B holds is kept.
    let values = &loaded.bases(2, Side::Values).unwrap()[0];
    let inside = b_v.dot(&random(8, rank, 1));
    let difference = values.up().t().dot(&values.down().t().dot(&inside)) - &inside;
    assert!(difference.iter().all(|x| x.abs() < 1e-5), "{difference}");
    // With it, the nearest to A: what is left of A is at right angles to the rows of W_v.
    file.single(name(&names.value_weights), &w_v);
    file.save(&path).unwrap();
    let loaded = load().unwrap();
    let values = &loaded.bases(2, Side::Values).unwrap()[0];
    let left = (&a_v - &values.down().t().dot(&w_v)).dot(&w_v.t());
    assert!(left.iter().all(|x| x.abs() < 1e-4), "{left}");
    assert!(keys.truncated(1).rank() == 1);
    let names = CskvNames { value_b: "none.{layer}".into(), ..CskvNames::default() };
    let error = Projections::load_cskv(&path, (2, 4), Rope::none(), &names).unwrap_err();
    assert!(is_format(&error, "none.2"), "{error}");
    let error = Projections::load_cskv(&path, (2, 2), Rope::none(), &CskvNames::default()).unwrap_err();
    assert!(is_format(&error, "k_proj_b"), "{error}");
}
