//! Indexes, binarizers, caches, projections, calibrations and layers' weights: what is read works, and is the same when written and read again.

use ndarray::{Array2, Array3, Array4};
use orthant::Device;
use orthant::attention::{
    ActivationKind, ActivationUnitOptions, ActivationUnitWeights, ElaVariant, ElaWeights, InteractingOptions,
    InteractingWeights, efficient_local_attention, interacting_layer, local_activation_unit,
};
use orthant::hamming::{Binarizer, Codes, Index, IndexFile, Precision, SearchOptions, binarize, search_parts};
use orthant::kv::{
    AttendOptions, CacheOptions, Calibration, CskvNames, KvCache, MatryoshkaNames, ProjectionOptions, Projections,
    Side, Weighting,
};

use super::files::{Scratch, typed};
use super::{formats, seeds};

/// How many kinds of file [`indexes`] knows.
pub const KINDS: u8 = 7;

/// The first byte says which kind of file the others are, and whether lengths and checksums are put right again before.
pub fn indexes(bytes: &[u8]) {
    let Some((&kind, bytes)) = bytes.split_first() else { return };
    let mut bytes = bytes.to_vec();
    let kind = if kind >= 128 {
        formats::put_right(
            if kind % KINDS == 0 { formats::Format::Index } else { formats::Format::Safetensors },
            &mut bytes,
        );
        kind % KINDS
    } else {
        kind % KINDS
    };
    match kind {
        0 => index(&bytes),
        1 => binarizer(&bytes),
        2 => cache(&bytes),
        3 => projections(&bytes),
        4 => calibration(&bytes),
        5 => trained(&bytes),
        _ => weights(&bytes),
    }
}

/// What searches find of an index: ids and distances of two queries in three measures, and everything within all bits.
type Found = (Vec<u64>, Vec<u32>, Vec<u32>, Vec<u32>, Vec<u32>);

fn found(index: &Index) -> Found {
    let bits = index.bits();
    let flags = Array2::from_shape_fn((2, bits), |(i, j)| i == 1 && j % 3 == 0);
    let queries = Codes::pack(&Device::Cpu, &flags.view()).unwrap();
    let options = SearchOptions::new(3);
    let nearest = index.search(&queries, &options).unwrap();
    let rows = Device::Cpu.tensor_from(seeds::rows(2, bits)).unwrap();
    let jaccard = index.search_jaccard(&queries, &options).unwrap();
    for precision in [Precision::Float, Precision::Int4] {
        let nearest = index.search_asymmetric(&rows, precision, &options).unwrap();
        assert!(nearest.distances.to_array().unwrap().iter().all(|x| x.is_finite()));
    }
    let within = index.within(&queries, bits as u32, None).unwrap();
    let (ids, distances) = (within.ids.to_array().unwrap(), within.distances.to_array().unwrap());
    assert_eq!(ids.len(), 2 * index.len());
    assert!(ids.iter().all(|id| (*id as usize) < index.ids()) && distances.iter().all(|x| *x as usize <= bits));
    let global = nearest.global_ids().unwrap();
    assert_eq!(global.ncols(), index.len().min(3));
    assert!(global.iter().all(|id| *id >= index.first_id()));
    (
        global.into_iter().collect(),
        nearest.distances.to_array().unwrap().into_iter().collect(),
        jaccard.ids.to_array().unwrap().into_iter().collect(),
        ids.to_vec(),
        distances.to_vec(),
    )
}

pub fn index(bytes: &[u8]) {
    let file = Scratch::of("index", bytes);
    let Some(mut index) = typed(Index::load(&Device::Cpu, file.path())) else {
        assert!(Index::map(file.path()).is_err() || IndexFile::open(file.path()).is_ok());
        return;
    };
    let answers = found(&index);
    let mapped = Index::map(file.path()).expect("what was loaded");
    assert_eq!(found(&mapped), answers);
    assert_eq!((index.len(), index.is_empty()), (mapped.len(), mapped.is_empty()));
    let parts = IndexFile::open(file.path()).expect("what was loaded");
    assert_eq!((parts.bits(), parts.ids(), parts.first_id()), (index.bits(), index.ids(), index.first_id()));
    let queries = Codes::pack(&Device::Cpu, &Array2::from_elem((1, index.bits()), true).view()).unwrap();
    if let Some((ids, _)) = typed(search_parts(parts.parts(&Device::Cpu, 3), &queries, 2)) {
        assert!(ids.len() <= 2);
    }
    typed(parts.part(&Device::Cpu, 1..2));
    let again = Scratch::new("again.index");
    index.save(again.path()).unwrap();
    assert_eq!(found(&Index::load(&Device::Cpu, again.path()).expect("what was saved")), answers);
    // What lies behind the last code is not part of what is added next.
    let ids = index.ids();
    let zeros = Codes::pack(&Device::Cpu, &Array2::from_elem((3, index.bits()), false).view()).unwrap();
    if typed(index.add(&zeros)).is_some() {
        let nearest = index.search(&zeros, &SearchOptions::new(index.ids())).unwrap();
        let (found, distances) = (nearest.ids.to_array().unwrap(), nearest.distances.to_array().unwrap());
        let added = found.iter().zip(&distances).filter(|(id, _)| **id as usize >= ids);
        assert!(added.clone().count() == 9 && added.clone().all(|(_, distance)| *distance == 0));
        assert_eq!(index.remove(&[ids as u32]).unwrap(), 1);
    }
}

pub fn binarizer(bytes: &[u8]) {
    let file = Scratch::of("safetensors", bytes);
    let loaded = typed(Binarizer::load(file.path()));
    assert_eq!(typed(Binarizer::from_bytes(bytes)), loaded, "from a file or from memory");
    let Some(binarizer) = loaded else { return };
    let (dim, bits) = (binarizer.dim(), binarizer.bits());
    assert!(dim > 0 && bits > 0 && bits % 32 == 0);
    // What has no planes may be of more features than there is memory.
    if dim <= 1 << 16 {
        let rows = Device::Cpu.tensor_from(seeds::rows(2, dim)).unwrap();
        let codes = binarize(&rows, &binarizer).unwrap();
        assert_eq!((codes.len(), codes.bits()), (2, bits));
        assert!(binarizer.project(&rows).unwrap().to_array().unwrap().iter().all(|x| !x.is_nan()));
        let again = Scratch::of("again.safetensors", &binarizer.to_bytes().unwrap());
        let again = Binarizer::load(again.path()).expect("what was saved");
        assert_eq!(binarize(&rows, &again).unwrap().to_bytes().unwrap(), codes.to_bytes().unwrap());
    }
}

pub fn cache(bytes: &[u8]) {
    let file = Scratch::of("safetensors", bytes);
    for mut cache in seeds::caches() {
        let Some(sequences) = typed(cache.load(file.path())) else {
            assert!(cache.is_empty() && cache.bytes() == 0, "an error left something behind");
            continue;
        };
        check_cache(&mut cache, &sequences);
    }
}

fn check_cache(cache: &mut KvCache, sequences: &[orthant::kv::Sequence]) {
    let (q_heads, kv_heads, d) = seeds::HEADS;
    let again = Scratch::new("again.safetensors");
    cache.save(again.path()).unwrap();
    let written = std::fs::read(again.path()).unwrap();
    assert_eq!(cache.sequences().collect::<Vec<_>>(), sequences);
    for &sequence in sequences.iter().take(3) {
        let on = |heads: usize, n: usize| {
            let all = Array4::from_shape_fn((1, heads, n, d), |(_, h, t, i)| seeds::number((h * n + t) * d + i));
            Device::Cpu.tensor_from(all).unwrap()
        };
        let finite = |cache: &KvCache| {
            for options in [AttendOptions::new(), AttendOptions::new().causal().lse()] {
                // Of elements near the ends of f32's range scores may be beyond them, and that is said.
                let Some(attended) = typed(cache.attend(5, &[sequence], &on(q_heads, 1), &options)) else { continue };
                assert!(attended.output.to_array().unwrap().iter().all(|x| x.is_finite()), "of what was loaded");
            }
        };
        finite(cache);
        let len = cache.len(5, sequence).unwrap();
        if typed(cache.append(5, &[sequence], &on(kv_heads, 33), &on(kv_heads, 33))).is_some() {
            assert_eq!(cache.len(5, sequence).unwrap(), len + 33);
            finite(cache);
        }
        typed(cache.truncate(sequence, len / 2));
        finite(cache);
        cache.remove(sequence).unwrap();
    }
    let other = seeds::caches().into_iter().find_map(|mut other| {
        let loaded = other.load(again.path()).ok();
        loaded.map(|loaded| (other, loaded))
    });
    let (other, loaded) = other.expect("what was saved");
    assert_eq!(loaded.len(), sequences.len());
    other.save(again.path()).unwrap();
    let twice = std::fs::read(again.path()).unwrap();
    assert_eq!(twice.len(), written.len(), "another file the second time");
}

pub fn projections(bytes: &[u8]) {
    let file = Scratch::of("safetensors", bytes);
    if let Some(projections) = typed(Projections::load(file.path())) {
        check_projections(&projections);
        let again = Scratch::of("again.safetensors", &projections.to_bytes().unwrap());
        assert_eq!(Projections::load(again.path()).expect("what was saved"), projections);
    }
}

pub fn check_projections(projections: &Projections) {
    let (heads, d) = (projections.kv_heads(), projections.head_dim());
    assert!(heads > 0 && (1..=256).contains(&d) && projections.rope().dims() <= d);
    for layer in projections.layers() {
        for side in [Side::Keys, Side::Values] {
            let bases = projections.bases(layer, side).unwrap();
            assert_eq!(bases.iter().map(|basis| basis.heads()).sum::<usize>(), heads);
            for basis in bases {
                assert_eq!((basis.width(), basis.mean().len()), (basis.heads() * d, basis.heads() * d));
                assert_eq!(
                    (basis.down().dim(), basis.up().dim()),
                    ((basis.width(), basis.rank()), (basis.rank(), basis.width()))
                );
                assert!(basis.mean().iter().chain(basis.down()).chain(basis.up()).all(|x| x.is_finite()));
                assert!(basis.spectrum().is_none_or(|spectrum| spectrum.iter().all(|x| x.is_finite())));
                basis.expected_error(1);
            }
        }
    }
    typed(projections.with_rank(1));
    assert_eq!(projections.with_ranks(&projections.ranks()).unwrap().ranks(), projections.ranks());
    let Some(mut cache) = typed(KvCache::new(&Device::Cpu, projections, &CacheOptions::new())) else { return };
    let Some(layer) = projections.layers().next() else { return };
    if heads > 64 {
        return;
    }
    let sequence = cache.insert().unwrap();
    let on = |n: usize| {
        let all = Array4::from_shape_fn((1, heads, n, d), |(_, h, t, i)| seeds::number((h * n + t) * d + i));
        Device::Cpu.tensor_from(all).unwrap()
    };
    if typed(cache.append(layer, &[sequence], &on(65), &on(65))).is_some() {
        // Of elements near the ends of f32's range scores may be beyond them, and that is said.
        typed(cache.attend(layer, &[sequence], &on(1), &AttendOptions::new()));
    }
}

pub fn calibration(bytes: &[u8]) {
    let file = Scratch::of("safetensors", bytes);
    let options = [
        ProjectionOptions::new(),
        ProjectionOptions::new().weighting(Weighting::Pca, Weighting::Pca).centred(true).joint(1, 1),
        ProjectionOptions::new().weighting(Weighting::Asvd, Weighting::Asvd).alpha(0.5),
    ];
    if let Some(calibration) = typed(Calibration::load(file.path())) {
        options.iter().for_each(|options| check_calibration(&calibration, options));
        let again = Scratch::new("again.safetensors");
        calibration.save(again.path()).unwrap();
        let again = Calibration::load(again.path()).expect("what was saved");
        assert!(again.layers().eq(calibration.layers()));
        let mut sum = calibration.clone();
        typed(sum.merge(&again));
        check_calibration(&sum, &options[0]);
    }
    let mut into = seeds::calibration();
    if typed(into.read_moments(file.path(), 5)).is_some() {
        options.iter().for_each(|options| check_calibration(&into, options));
        let mut of_bytes = seeds::calibration();
        of_bytes.read_moments_bytes(bytes, 5).expect("what is in the file");
        assert_eq!(of_bytes.projections(&options[0]).ok(), into.projections(&options[0]).ok());
    }
}

pub fn check_calibration(calibration: &Calibration, options: &ProjectionOptions) {
    if let Some(projections) = typed(calibration.projections(options)) {
        check_projections(&projections);
        assert!(projections.layers().eq(calibration.layers()));
    }
}

/// MatryoshkaKV's and CSKV's weights.
pub fn trained(bytes: &[u8]) {
    let file = Scratch::of("safetensors", bytes);
    let (_, kv_heads, d) = seeds::HEADS;
    for names in [MatryoshkaNames::default(), MatryoshkaNames::matrices()] {
        if let Some(projections) =
            typed(Projections::load_matryoshka(file.path(), (kv_heads, d), seeds::rope(), &names))
        {
            check_projections(&projections);
        }
    }
    if let Some(projections) =
        typed(Projections::load_cskv(file.path(), (kv_heads, d), seeds::rope(), &CskvNames::default()))
    {
        check_projections(&projections);
    }
}

/// Weights of the three layers that have any. Sums of large ones may be beyond f32, and that is said.
pub fn weights(bytes: &[u8]) {
    let device = &Device::Cpu;
    let file = Scratch::of("safetensors", bytes);
    for heads in [1, 2] {
        let loaded = typed(InteractingWeights::from_bytes(bytes, "l", heads, device));
        assert_eq!(typed(InteractingWeights::load(file.path(), "l", heads, device)).is_some(), loaded.is_some());
        let Some(weights) = loaded else { continue };
        assert_eq!(weights.heads(), heads);
        assert!(weights.head_dim() > 0);
        let x = device.tensor_from(Array3::from_elem((2, 3, weights.input()), 0.5)).unwrap();
        typed(interacting_layer(&x, &weights, &InteractingOptions::new().maps()));
    }
    for kind in [ActivationKind::Sigmoid, ActivationKind::Prelu, ActivationKind::Dice { epsilon: 1e-9 }] {
        let loaded = typed(ActivationUnitWeights::from_bytes(bytes, "l", kind, device));
        assert_eq!(typed(ActivationUnitWeights::load(file.path(), "l", kind, device)).is_some(), loaded.is_some());
        let Some(weights) = loaded else { continue };
        let rows = |n: usize| device.tensor_from(Array2::from_elem((n, weights.dim()), 0.5)).unwrap();
        let options = ActivationUnitOptions::new();
        typed(local_activation_unit(&rows(1), &rows(2), &[0, 2], &weights, &options));
    }
    for variant in [ElaVariant::Tiny, ElaVariant::Base, ElaVariant::Small, ElaVariant::Large] {
        let loaded = typed(ElaWeights::from_bytes(bytes, "l", variant, device));
        assert_eq!(typed(ElaWeights::load(file.path(), "l", variant, device)).is_some(), loaded.is_some());
        let Some(weights) = loaded else { continue };
        let x = device.tensor_from(Array4::from_elem((1, weights.channels(), 2, 3), 0.5)).unwrap();
        typed(efficient_local_attention(&x, &weights));
    }
}
