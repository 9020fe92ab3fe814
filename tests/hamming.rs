//! Search among binary codes against an oracle that sorts all pairs; index files, whole, damaged and interrupted.

use ndarray::{Array2, ArrayView2};
use orthant::hamming::{Codes, Index, IndexFile, Mask, Neighbours, Precision, Ranges, SearchOptions, search_parts};
use orthant::kernels::hamming;
use orthant::{Device, Error};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const CPU: Device = Device::Cpu;

type Bytes = Array2<u8>;

fn random(n: usize, bits: usize, seed: u64) -> Bytes {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    Array2::from_shape_simple_fn((n, bits / 8), || random.random())
}

/// As deep hashing gives them: a few codes, of which one has 2 in 3, and few bits turned over elsewhere.
fn clustered(n: usize, bits: usize, seed: u64) -> Bytes {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let centres = self::random(5, bits, seed + 1);
    let mut codes = Bytes::zeros((n, bits / 8));
    for mut code in codes.rows_mut() {
        let centre = if random.random_ratio(2, 3) { 0 } else { random.random_range(1..5) };
        code.assign(&centres.row(centre));
        if random.random_ratio(1, 4) {
            let bit = random.random_range(0..bits);
            code[bit / 8] ^= 1 << (bit % 8);
        }
    }
    codes
}

fn codes(bytes: &Bytes) -> Codes {
    Codes::from_bytes(&CPU, &bytes.view()).unwrap()
}

fn index(bytes: &Bytes) -> Index {
    let mut index = Index::new(&CPU, bytes.ncols() * 8).unwrap();
    index.add(&codes(bytes)).unwrap();
    index
}

fn distance(a: ndarray::ArrayView1<'_, u8>, b: ndarray::ArrayView1<'_, u8>) -> u32 {
    a.iter().zip(b).map(|(a, b)| (a ^ b).count_ones()).sum()
}

/// (distance, id) of all that are allowed, in order.
fn oracle(base: &Bytes, query: ndarray::ArrayView1<'_, u8>, allowed: impl Fn(u32) -> bool) -> Vec<(u32, u32)> {
    let ids = (0..base.nrows() as u32).filter(|id| allowed(*id));
    let mut all: Vec<_> = ids.map(|id| (distance(query, base.row(id as usize)), id)).collect();
    all.sort();
    all
}

fn pairs<T: orthant::Element>(found: &Neighbours<T>) -> Vec<Vec<(T, u32)>> {
    let (ids, distances) = (found.ids.to_array().unwrap(), found.distances.to_array().unwrap());
    let rows = distances.rows().into_iter().zip(ids.rows());
    rows.map(|(distances, ids)| distances.iter().copied().zip(ids.iter().copied()).collect()).collect()
}

fn ranges(found: &Ranges) -> Vec<Vec<(u32, u32)>> {
    let (ids, distances) = (found.ids.to_array().unwrap(), found.distances.to_array().unwrap());
    let offsets = found.offsets.windows(2).map(|pair| pair[0] as usize..pair[1] as usize);
    offsets.map(|hits| hits.map(|hit| (distances[hit], ids[hit])).collect()).collect()
}

fn search(index: &Index, queries: &Bytes, k: usize) -> Vec<Vec<(u32, u32)>> {
    pairs(&index.search(&codes(queries), &SearchOptions::new(k)).unwrap())
}

#[test]
fn codes_are_packed_as_they_are_said_to_be() {
    for bits in [8, 16, 24, 32, 40, 200, 8192] {
        let bytes = random(3, bits, bits as u64);
        let packed = codes(&bytes);
        let rows = Array2::from_shape_fn((3, bits), |(i, j)| bytes[[i, j / 8]] >> (j % 8) & 1 == 1);
        assert_eq!(packed.unpack().unwrap(), rows);
        assert_eq!(packed.to_bytes().unwrap(), bytes);
        let words = packed.words().to_array().unwrap();
        assert_eq!(words.dim(), (3, bits.div_ceil(32)));
        assert!((0..3).all(|i| (0..bits).all(|j| (words[[i, j / 32]] >> (j % 32) & 1 == 1) == rows[[i, j]])));
        assert_eq!(Codes::pack(&CPU, &rows.view()).unwrap().words().to_array().unwrap(), words);
        // np.packbits: the first bit is the largest.
        let big = bytes.mapv(u8::reverse_bits);
        assert_eq!(Codes::from_packbits(&CPU, &big.view()).unwrap().words().to_array().unwrap(), words);
        assert_eq!(Codes::new(packed.words().clone(), bits).unwrap().to_bytes().unwrap(), bytes);
    }
    let words = CPU.tensor(&Array2::from_shape_vec((2, 1), vec![0xff_ffffu32, 0x100_0000]).unwrap()).unwrap();
    assert!(matches!(Codes::new(words.clone(), 24), Err(Error::Domain { index: 1, .. })));
    assert!(matches!(Codes::new(words.clone(), 64), Err(Error::Shape { .. })));
    for bits in [0, 7, 12, 8200] {
        assert!(matches!(Codes::new(words.clone(), bits), Err(Error::Argument { quantity: "bits", .. })));
        assert!(matches!(Index::new(&CPU, bits), Err(Error::Argument { quantity: "bits", .. })));
    }
}

#[test]
fn the_nearest_are_those_of_the_oracle() {
    for (bits, n) in [(8, 300), (16, 3001), (24, 65), (64, 3001), (128, 1000), (256, 3001), (264, 129), (1024, 641)] {
        for (kind, base) in [random(n, bits, 1), clustered(n, bits, 2)].into_iter().enumerate() {
            let index = index(&base);
            let mut queries = random(7, bits, 3);
            // One is in the base, one is as far as can be from one that is.
            queries.row_mut(0).assign(&base.row(n / 2));
            queries.row_mut(1).assign(&base.row(n / 3).mapv(|byte| !byte));
            for k in [1, 10, 100, 1000, n - 1, n, n + 5] {
                for count in [1, 7] {
                    let queries = queries.slice(ndarray::s![..count, ..]).to_owned();
                    let found = search(&index, &queries, k);
                    for (query, found) in queries.rows().into_iter().zip(found) {
                        let mut expected = oracle(&base, query, |_| true);
                        expected.truncate(k);
                        assert_eq!(found, expected, "{bits} bits, {n} codes of kind {kind}, k {k}");
                    }
                }
            }
        }
    }
}

#[test]
fn tens_of_thousands_of_ties_go_to_the_lowest_ids() {
    for (bits, n) in [(16, 30_000), (64, 30_000), (256, 20_000), (4096, 1500)] {
        let base = clustered(n, bits, 4);
        let mut queries = random(101, bits, 5);
        queries.row_mut(0).assign(&base.row(7));
        queries.row_mut(100).assign(&base.row(8));
        let index = index(&base);
        for k in [1, 10, 100, 1000] {
            let found = search(&index, &queries, k);
            for query in [0, 50, 100] {
                let mut expected = oracle(&base, queries.row(query), |_| true);
                let ties = expected.iter().filter(|(distance, _)| *distance == 0).count();
                assert!(query == 50 || ties > n / 100, "{ties} ties");
                expected.truncate(k);
                assert_eq!(found[query], expected, "{bits} bits, k {k}");
            }
        }
    }
}

/// The result does not hang on how the base is cut.
#[test]
fn any_number_of_threads_finds_the_same() {
    let (base, queries) = (clustered(40_000, 64, 6), clustered(5, 64, 7));
    let index = index(&base);
    let of = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let one = queries.slice(ndarray::s![..1, ..]).to_owned();
            (search(&index, &queries, 500), search(&index, &one, 20_000), within(&index, &queries, 3))
        })
    };
    let expected = of(1);
    assert!([2, 3, 8].into_iter().all(|threads| of(threads) == expected));
}

fn within(index: &Index, queries: &Bytes, radius: u32) -> Vec<Vec<(u32, u32)>> {
    ranges(&index.within(&codes(queries), radius, None).unwrap())
}

#[test]
fn a_radius_takes_its_border_in_and_all_pairs_are_right() {
    for (bits, n) in [(16, 2000), (64, 500), (256, 777), (1024, 100)] {
        let (base, queries) = (clustered(n, bits, 8), clustered(9, bits, 9));
        let index = index(&base);
        let middle = distance(queries.row(0), base.row(n - 1));
        for radius in [0, 1, middle, middle.saturating_sub(1), bits as u32, u32::MAX] {
            for (query, found) in queries.rows().into_iter().zip(within(&index, &queries, radius)) {
                let mut expected = oracle(&base, query, |_| true);
                expected.retain(|(distance, _)| *distance <= radius);
                assert_eq!(found, expected, "{bits} bits, radius {radius}");
            }
        }
        let all = hamming(&codes(&queries), &codes(&base)).unwrap().to_array().unwrap();
        let expected = Array2::from_shape_fn((9, n), |(i, j)| distance(queries.row(i), base.row(j)) as u16);
        assert_eq!(all, expected);
    }
}

fn bit(code: ndarray::ArrayView1<'_, u8>, j: usize) -> bool {
    code[j / 8] >> (j % 8) & 1 == 1
}

#[test]
fn jaccard_distances_order_as_fractions() {
    for (bits, n, seed) in [(16, 2000, 10), (256, 500, 11), (1024, 200, 12)] {
        let mut base = random(n, bits, seed) & random(n, bits, seed + 100);
        base.row_mut(3).fill(0);
        let mut queries = random(6, bits, seed + 1);
        queries.row_mut(2).fill(0);
        let index = index(&base);
        for k in [1, 17, n] {
            let found = pairs(&index.search_jaccard(&codes(&queries), &SearchOptions::new(k)).unwrap());
            for (query, found) in queries.rows().into_iter().zip(found) {
                // Numerator and denominator of the distance.
                let fraction = |id: usize| {
                    let count = |both: fn(u8, u8) -> u8| -> u64 {
                        query.iter().zip(base.row(id)).map(|(a, b)| u64::from(both(*a, *b).count_ones())).sum()
                    };
                    (count(|a, b| a ^ b), count(|a, b| a | b).max(1))
                };
                let mut expected: Vec<usize> = (0..n).collect();
                // Stable: ties stay in order of ids.
                expected.sort_by(|a, b| {
                    let ((a, of_a), (b, of_b)) = (fraction(*a), fraction(*b));
                    (a * of_b).cmp(&(b * of_a))
                });
                for ((distance, id), expected) in found.into_iter().zip(expected) {
                    assert_eq!(id as usize, expected, "{bits} bits, k {k}");
                    let (above, below) = fraction(expected);
                    // Rounded down to 2^-28, then to f32.
                    assert!((f64::from(distance) - above as f64 / below as f64).abs() < 1.2e-7);
                }
            }
        }
    }
}

#[test]
fn asymmetric_distances_are_sums_of_magnitudes() {
    for (bits, n) in [(16, 3000), (256, 300), (1024, 70)] {
        let base = random(n, bits, 13);
        let mut random = ChaCha8Rng::seed_from_u64(14);
        let mut queries = Array2::from_shape_simple_fn((3, bits), || random.random_range(-2.0f32..1.0));
        queries.row_mut(2).fill(0.0);
        let index = index(&base);
        let tensor = CPU.tensor(&queries).unwrap();
        for precision in [Precision::Float, Precision::Int4] {
            for k in [1, 30, n] {
                let found = pairs(&index.search_asymmetric(&tensor, precision, &SearchOptions::new(k)).unwrap());
                for (query, found) in queries.rows().into_iter().zip(found) {
                    let largest = query.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
                    let sum = |id: usize| -> f64 {
                        let differ = (0..bits).filter(|&j| (query[j] >= 0.0) != bit(base.row(id), j));
                        let magnitude = |j: usize| match precision {
                            Precision::Float => f64::from(query[j].abs()),
                            Precision::Int4 if largest > 0.0 => f64::from((query[j].abs() / largest * 7.0).round()),
                            Precision::Int4 => 0.0,
                        };
                        differ.map(magnitude).sum()
                    };
                    let mut expected: Vec<(f64, usize)> = (0..n).map(|id| (sum(id), id)).collect();
                    expected.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
                    for ((distance, id), (expected, expected_id)) in found.into_iter().zip(expected) {
                        if precision == Precision::Int4 {
                            assert_eq!(id as usize, expected_id, "{bits} bits, k {k}");
                            assert_eq!(distance, expected as f32 * (largest / 7.0));
                        } else {
                            // bits / 8 sums and as many tables rounded to f32: neighbours that near may change places.
                            let tolerance = bits as f64 / 4.0 * 6e-8 * expected.max(1.0);
                            assert!((f64::from(distance) - expected).abs() <= tolerance, "{distance} {expected}");
                            assert!((sum(id as usize) - expected).abs() <= tolerance);
                        }
                    }
                }
            }
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Add(usize),
    Remove(Vec<prop::sample::Index>),
    Search(usize, bool),
    Reload,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0usize..150).prop_map(Step::Add),
        prop::collection::vec(any::<prop::sample::Index>(), 0..40).prop_map(Step::Remove),
        (1usize..200, any::<bool>()).prop_map(|(k, masked)| Step::Search(k, masked)),
        Just(Step::Reload),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Whatever is added, removed, saved and mapped between: searches find what is there, by ids that stay.
    #[test]
    fn adding_and_removing_keep_ids(bytes in 1usize..6, seed in 0u64..1000, steps in prop::collection::vec(step(), 1..12)) {
        let folder = tempfile::tempdir().unwrap();
        let mut index = Index::new(&CPU, bytes * 8).unwrap().with_first_id(5_000_000_000);
        let mut base = Bytes::zeros((0, bytes));
        let mut there: Vec<bool> = Vec::new();
        for (number, step) in steps.into_iter().enumerate() {
            match step {
                Step::Add(n) => {
                    let more = clustered(n, bytes * 8, seed + number as u64);
                    index.add(&codes(&more)).unwrap();
                    base.append(ndarray::Axis(0), more.view()).unwrap();
                    there.resize(base.nrows(), true);
                }
                Step::Remove(ids) if !there.is_empty() => {
                    let ids: Vec<u32> = ids.iter().map(|id| id.index(there.len()) as u32).collect();
                    let before = there.iter().filter(|there| **there).count();
                    ids.iter().for_each(|id| there[*id as usize] = false);
                    let after = there.iter().filter(|there| **there).count();
                    prop_assert_eq!(index.remove(&ids).unwrap(), before - after);
                }
                Step::Remove(_) => {}
                Step::Reload => {
                    let path = folder.path().join(format!("{number}"));
                    index.save(&path).unwrap();
                    index = if number % 2 == 0 { Index::map(&path).unwrap() } else { Index::load(&CPU, &path).unwrap() };
                }
                Step::Search(k, masked) => {
                    let queries = clustered(3, bytes * 8, seed + 77);
                    let mask = Mask::new((0..there.len()).map(|id| id % 3 != 1));
                    let options = SearchOptions::new(k);
                    let options = if masked { options.allowed(&mask) } else { options };
                    let found = index.search(&codes(&queries), &options).unwrap();
                    prop_assert_eq!(found.global_ids().unwrap(), found.ids.to_array().unwrap().mapv(|id| u64::from(id) + 5_000_000_000));
                    let allowed = |id: u32| there[id as usize] && (!masked || mask.allows(id));
                    let hits = index.within(&codes(&queries), 2, masked.then_some(&mask)).unwrap();
                    for ((query, found), hits) in queries.rows().into_iter().zip(pairs(&found)).zip(ranges(&hits)) {
                        let mut expected = oracle(&base, query, allowed);
                        let near: Vec<_> = expected.iter().copied().filter(|(distance, _)| *distance <= 2).collect();
                        prop_assert_eq!(hits, near);
                        expected.truncate(k);
                        prop_assert_eq!(found, expected);
                    }
                }
            }
            prop_assert_eq!(index.ids(), there.len());
            prop_assert_eq!(index.len(), there.iter().filter(|there| **there).count());
        }
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    let mut index = index(&random(100, 64, 20));
    let (queries, wide) = (codes(&random(2, 64, 21)), codes(&random(2, 72, 21)));
    let ten = SearchOptions::new(10);
    assert!(matches!(index.search(&queries, &SearchOptions::new(0)), Err(Error::Argument { quantity: "k", .. })));
    assert!(matches!(index.search(&wide, &ten), Err(Error::Argument { quantity: "queries", .. })));
    assert!(matches!(index.search_jaccard(&wide, &ten), Err(Error::Argument { quantity: "queries", .. })));
    assert!(matches!(index.within(&wide, 3, None), Err(Error::Argument { quantity: "queries", .. })));
    assert!(matches!(index.add(&wide), Err(Error::Argument { quantity: "codes", .. })));
    assert!(matches!(hamming(&queries, &wide), Err(Error::Argument { .. })));
    let short = Mask::new(vec![true; 99]);
    let masked = ten.clone().allowed(&short);
    assert!(matches!(index.search(&queries, &masked), Err(Error::Argument { quantity: "mask", .. })));
    assert!(matches!(index.within(&queries, 3, Some(&short)), Err(Error::Argument { quantity: "mask", .. })));
    assert!(matches!(index.remove(&[3, 100]), Err(Error::Domain { index: 1, .. })));
    assert_eq!(index.len(), 100);
    let floats = |width: usize, value: f32| CPU.tensor(&Array2::from_elem((1, width), value)).unwrap();
    for precision in [Precision::Float, Precision::Int4] {
        let search = |queries| index.search_asymmetric(&queries, precision, &ten);
        assert!(matches!(search(floats(63, 0.0)), Err(Error::Shape { .. })));
        assert!(matches!(search(floats(64, f32::NAN)), Err(Error::Domain { index: 0, .. })));
        assert!(matches!(search(floats(64, f32::INFINITY)), Err(Error::Domain { .. })));
    }
    // Nothing there: nothing found, as when k is more than there is.
    let nobody = Mask::of_ids(100, &[]).unwrap();
    let found = index.search(&queries, &ten.clone().allowed(&nobody)).unwrap();
    assert_eq!(found.ids.shape(), [2, 0]);
    let empty = Index::new(&CPU, 64).unwrap();
    assert_eq!(empty.search(&queries, &ten).unwrap().ids.shape(), [2, 0]);
    assert_eq!(empty.search_jaccard(&queries, &ten).unwrap().ids.shape(), [2, 0]);
    assert_eq!(empty.within(&queries, 64, None).unwrap().offsets, [0, 0, 0]);
    let none = codes(&Bytes::zeros((0, 8)));
    assert_eq!(index.search(&none, &ten).unwrap().ids.shape(), [0, 10]);
    assert_eq!(index.within(&none, 64, None).unwrap().offsets, [0]);
    assert_eq!(hamming(&none, &queries).unwrap().shape(), [0, 2]);
}

#[test]
fn a_file_gives_back_what_was_saved_whole_mapped_or_in_parts() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("codes");
    let (base, queries) = (clustered(1000, 40, 30), random(5, 40, 31));
    let mut index = index(&base).with_first_id(1 << 40);
    index.remove(&[0, 1, 2, 64, 999]).unwrap();
    index.save(&path).unwrap();
    // Over one that is there already, and mapped: the mapping keeps the old file.
    let mapped = Index::map(&path).unwrap();
    index.save(&path).unwrap();
    let expected = search(&index, &queries, 50);
    for loaded in [mapped, Index::load(&CPU, &path).unwrap(), Index::map(&path).unwrap()] {
        assert_eq!((loaded.len(), loaded.bits(), loaded.first_id()), (995, 40, 1 << 40));
        assert_eq!(search(&loaded, &queries, 50), expected);
    }
    let file = IndexFile::open(&path).unwrap();
    for part in [1000, 333, 64, 7] {
        let (ids, distances) = search_parts(file.parts(&CPU, part), &codes(&queries), 50).unwrap();
        for ((ids, distances), expected) in ids.rows().into_iter().zip(distances.rows()).zip(&expected) {
            let found: Vec<_> = distances.iter().copied().zip(ids.iter().map(|id| (id - (1 << 40)) as u32)).collect();
            assert_eq!(&found, expected, "parts of {part}");
        }
    }
    assert!(matches!(file.part(&CPU, 5..1001), Err(Error::Argument { .. })));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left");
}

#[test]
fn damaged_files_are_refused_before_anything_is_allocated() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("codes");
    let mut index = index(&random(70, 16, 32));
    index.remove(&[5]).unwrap();
    index.save(&path).unwrap();
    let whole = std::fs::read(&path).unwrap();
    let refused = |bytes: &[u8], what: &str| {
        std::fs::write(&path, bytes).unwrap();
        for result in [Index::load(&CPU, &path), Index::map(&path)] {
            assert!(matches!(result, Err(Error::Format { .. })), "{what}: {result:?}");
        }
    };
    (0..whole.len()).for_each(|length| refused(&whole[..length], "cut"));
    refused(&[&whole[..], &[0]].concat(), "longer");
    // Any byte of the header, its zeros too: version, sizes that would be huge, first id.
    for at in 0..64 {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x81;
        refused(&damaged, "header");
    }
    let mut newer = whole.clone();
    newer[8] = 2;
    std::fs::write(&path, &newer).unwrap();
    let error = Index::load(&CPU, &path).unwrap_err().to_string();
    assert!(error.contains("version 2, expected 1") && error.contains("codes"), "{error}");
    assert!(matches!(Index::load(&CPU, folder.path().join("none")), Err(Error::Io { .. })));
    assert!(matches!(index.save(folder.path().join("no/folder")), Err(Error::Io { .. })));
}

/// This test starts itself anew as a child that saves over an index, and ends the child: by the system at a certain byte of the file (a limit of the
/// size of files), and by a signal at a certain time.
#[cfg(unix)]
#[test]
fn a_save_that_is_killed_leaves_the_old_file_whole() {
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Stdio};
    use std::time::Duration;

    const SAVE_TO: &str = "ORTHANT_TEST_SAVE_TO";
    let (old, new) = (random(3000, 64, 33), random(5000, 64, 34));
    if let Some(path) = std::env::var_os(SAVE_TO) {
        let index = index(&new);
        loop {
            index.save(&path).unwrap();
            if std::env::var_os("ORTHANT_TEST_ONCE").is_some() {
                return;
            }
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("codes");
    let child = |limit: &str, once: bool| {
        let mut command = Command::new("sh");
        let words = "a_save_that_is_killed_leaves_the_old_file_whole --exact";
        command.arg("-c").arg(format!("ulimit -c 0; ulimit -f {limit}; exec \"$0\" {words}"));
        command.arg(std::env::current_exe().unwrap()).env(SAVE_TO, &path).stdout(Stdio::null()).stderr(Stdio::null());
        if once {
            command.env("ORTHANT_TEST_ONCE", "1");
        }
        command.spawn().unwrap()
    };
    index(&old).save(&path).unwrap();
    let saved = std::fs::read(&path).unwrap();
    // Blocks of 512 bytes; the new file has 79.1 of them.
    for blocks in [0, 1, 2, 40, 78, 79] {
        let status = child(&blocks.to_string(), true).wait().unwrap();
        assert!(status.signal().is_some(), "{blocks} blocks: {status}");
        assert_eq!(std::fs::read(&path).unwrap(), saved, "killed at {blocks} blocks");
    }
    let expected = [search(&index(&old), &new, 3), search(&index(&new), &new, 3)];
    let mut replaced = 0;
    for milliseconds in [2, 5, 10, 20, 40, 80] {
        let mut child = child("unlimited", false);
        std::thread::sleep(Duration::from_millis(milliseconds));
        child.kill().unwrap();
        child.wait().unwrap();
        let found = search(&Index::load(&CPU, &path).unwrap(), &new, 3);
        assert!(expected.contains(&found), "killed after {milliseconds} ms");
        replaced += usize::from(found == expected[1]);
    }
    // Without a kill it is the new one.
    assert!(child("unlimited", true).wait().unwrap().success());
    assert_eq!(search(&Index::load(&CPU, &path).unwrap(), &new, 3), expected[1], "{replaced} replaced before");
}

/// Several indexes are one base: 2^32 ids each, by their first ids.
#[test]
fn indexes_merge_by_ids_beyond_32_bits() {
    let (base, queries) = (clustered(500, 16, 40), random(4, 16, 41));
    let whole = search(&index(&base), &queries, 20);
    let part = |range: std::ops::Range<usize>, first: u64| {
        let rows: ArrayView2<'_, u8> = base.slice(ndarray::s![range, ..]);
        index(&rows.to_owned()).with_first_id(first).search(&codes(&queries), &SearchOptions::new(20)).unwrap()
    };
    let offset = 1u64 << 33;
    let parts = [part(200..500, offset + 200), part(0..200, offset)];
    let (ids, distances) = Neighbours::merge(&parts, 20).unwrap();
    for ((ids, distances), expected) in ids.rows().into_iter().zip(distances.rows()).zip(whole) {
        let found: Vec<_> = distances.iter().copied().zip(ids.iter().map(|id| (id - offset) as u32)).collect();
        assert_eq!(found, expected);
    }
}
