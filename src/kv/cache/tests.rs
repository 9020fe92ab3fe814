use ndarray::{Array3, Array4, ArrayView3, Axis, concatenate, s};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::attention::{Options, attention};
use crate::kv::LatentBits;
use crate::kv::latents::PAGE;

/// What a test's cache is made of.
#[derive(Clone, Debug)]
struct Setup {
    heads: usize,
    d: usize,
    /// Heads and rank of each set.
    keys: Vec<(usize, usize)>,
    values: Vec<(usize, usize)>,
    block: Option<usize>,
    options: CacheOptions,
}

impl Setup {
    fn new(heads: usize, d: usize, rank: usize, bits: LatentBits) -> Self {
        let options = CacheOptions::new().bits(bits, bits).exact(ExactType::Single);
        Self { heads, d, keys: vec![(1, rank); heads], values: vec![(1, rank); heads], block: None, options }
    }

    fn turns(&self) -> Turns {
        let half = self.d / 2;
        let pairs = (0..half).map(|i| (i, i + half, 1e4f64.powf(-(i as f64) / half as f64))).collect();
        Turns { block: self.block, pairs }
    }

    fn factors(&self, seed: u64) -> LayerFactors {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut sets = |sets: &[(usize, usize)]| {
            sets.iter().map(|&(heads, rank)| orthogonal(&mut random, heads, heads * self.d, rank)).collect()
        };
        let keys = sets(&self.keys);
        LayerFactors { layer: 3, keys, values: sets(&self.values) }
    }

    fn cache(&self) -> KvCache {
        let layers = vec![self.factors(7)];
        KvCache::from_factors(&Device::Cpu, (self.heads, self.d), &self.turns(), layers, &self.options).unwrap()
    }
}

/// A mean and `rank` orthonormal directions, by Gram and Schmidt in f64.
fn orthogonal(random: &mut ChaCha8Rng, heads: usize, width: usize, rank: usize) -> Factors {
    let mut rows: Vec<Vec<f64>> = Vec::new();
    for _ in 0..rank {
        let mut row: Vec<f64> = (0..width).map(|_| random.random_range(-1.0..1.0)).collect();
        for _ in 0..2 {
            for other in &rows {
                let along: f64 = row.iter().zip(other).map(|(a, b)| a * b).sum();
                row.iter_mut().zip(other).for_each(|(a, b)| *a -= along * b);
            }
        }
        let norm = row.iter().map(|x| x * x).sum::<f64>().sqrt();
        rows.push(row.iter().map(|x| x / norm).collect());
    }
    let up: Vec<f32> = rows.concat().iter().map(|x| *x as f32).collect();
    let down = (0..width * rank).map(|i| up[i % rank * width + i / rank]).collect();
    let mean = (0..width).map(|_| random.random_range(-0.3f32..0.3)).collect();
    Factors { heads, rank, mean, down, up }
}

fn noise(seed: u64, shape: (usize, usize, usize, usize)) -> Array4<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    Array4::from_shape_simple_fn(shape, || random.random_range(-1.5f32..1.5))
}

fn tensor<T: AttentionElement>(array: &Array4<T>) -> Tensor<T, Ix4> {
    Device::Cpu.tensor(array).unwrap()
}

/// Keys and values [2, kv_heads, len, d] as the definition rebuilds them from what the cache holds, in f64.
fn rebuilt(cache: &KvCache, sequence: Sequence) -> Array4<f64> {
    let layer = &cache.layers[0];
    let (shape, held) = (&layer.shape, &cache.sequences[&sequence][0]);
    let mut out = Array4::zeros((2, shape.kv_heads, held.len, shape.head_dim));
    let Store::Host(store) = &layer.store else { unreachable!() };
    for n in 0..held.len {
        for (side, (sets, layouts)) in
            [(&shape.keys, &shape.layout.keys), (&shape.values, &shape.layout.values)].into_iter().enumerate()
        {
            let mut head = 0;
            for (set, layout) in sets.iter().zip(layouts) {
                let width = set.mean.len();
                for of_set in 0..set.heads {
                    let mut row = vec![0.0f64; shape.head_dim];
                    if n < shape.sinks || n >= shape.boundary(held.len) {
                        let mut exact = vec![0.0; shape.head_dim];
                        let places = shape.places();
                        let at = ((side * shape.kv_heads + head) * places + shape.place(n)) * shape.head_dim;
                        store.slots[held.slot as usize].read(at, &mut exact);
                        row.iter_mut().zip(exact).for_each(|(to, x)| *to = x.into());
                    } else {
                        let page = &store.pages[held.pages[n / PAGE] as usize];
                        for (c, x) in row.iter_mut().enumerate() {
                            let column = of_set * shape.head_dim + c;
                            let z = |i| f64::from(layout.decode(page, i, n % PAGE));
                            *x = f64::from(set.mean[column])
                                + (0..set.rank).map(|i| z(i) * f64::from(set.up[i * width + column])).sum::<f64>();
                        }
                        if side == 0 {
                            turn(&mut row, &shape.turns, shape.turns.origin(n) as f64);
                        }
                    }
                    out.slice_mut(s![side, head, n, ..]).iter_mut().zip(row).for_each(|(to, x)| *to = x);
                    head += 1;
                }
            }
        }
    }
    out
}

fn turn(row: &mut [f64], turns: &Turns, position: f64) {
    for &(i, j, frequency) in &turns.pairs {
        let (sin, cos) = (position * frequency).sin_cos();
        (row[i], row[j]) = (row[i] * cos - row[j] * sin, row[i] * sin + row[j] * cos);
    }
}

/// Attention as its definition reads, over keys and values [2, kv_heads, len, d]: output [q_heads, q_len, d] and log-sum-exp.
fn dense(q: ArrayView3<'_, f32>, kv: &Array4<f64>, causal: bool) -> (Array3<f64>, Array3<f64>) {
    let ((heads, q_len, d), (_, kv_heads, len, _)) = (q.dim(), kv.dim());
    let (mut out, mut lse) = (Array3::zeros((heads, q_len, d)), Array3::from_elem((heads, q_len, 1), -1e30));
    for h in 0..heads {
        for i in 0..q_len {
            let seen = if causal { (i + 1 + len).saturating_sub(q_len) } else { len };
            let head = h * kv_heads / heads;
            let score = |n: usize| {
                (0..d).map(|c| f64::from(q[[h, i, c]]) * kv[[0, head, n, c]]).sum::<f64>() / (d as f64).sqrt()
            };
            let scores: Vec<f64> = (0..seen).map(score).collect();
            let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = scores.iter().map(|x| (x - largest).exp()).sum();
            if seen > 0 {
                lse[[h, i, 0]] = largest + total.ln();
            }
            for (n, score) in scores.iter().enumerate() {
                let weight = (score - largest).exp() / total;
                for c in 0..d {
                    out[[h, i, c]] += weight * kv[[1, head, n, c]];
                }
            }
        }
    }
    (out, lse)
}

/// The largest error, relative to the largest element.
fn worst<'a>(found: impl Iterator<Item = &'a f32>, expected: &Array3<f64>) -> f64 {
    let found: Vec<f64> = found.map(|x| f64::from(*x)).collect();
    let expected: Vec<f64> = expected.iter().copied().collect();
    assert_eq!(found.len(), expected.len());
    found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
        / expected.iter().fold(1e-300, |size: f64, x| size.max(x.abs()))
}

/// [`KvCache::attend`] against [`dense`] of [`rebuilt`]. 1e-5: sums of f32, a few hundred terms.
fn check(cache: &KvCache, sequences: &[Sequence], q: &Array4<f32>, causal: bool) {
    let options = AttendOptions { causal, scale: None, lse: true };
    let result = cache.attend(3, sequences, &tensor(q), &options).unwrap();
    let (output, lse) = (result.output.to_array().unwrap(), result.lse.unwrap().to_array().unwrap());
    for (index, sequence) in sequences.iter().enumerate() {
        let (expected, sums) = dense(q.index_axis(Axis(0), index), &rebuilt(cache, *sequence), causal);
        let found = output.index_axis(Axis(0), index);
        assert!(found.iter().all(|x| x.is_finite()));
        let error = worst(found.iter(), &expected);
        assert!(error <= 1e-5, "sequence {index}: off by {error:e}");
        for (found, expected) in lse.index_axis(Axis(0), index).iter().zip(&sums) {
            assert!((f64::from(*found) - expected).abs() <= 1e-5 * expected.abs().max(1.0), "{found} {expected}");
        }
    }
}

/// Of all appended: dense attention over what was appended, against a cache of full rank.
#[test]
fn full_rank_is_dense_attention() {
    for (bits, exact, block, tolerance) in [
        // Sums of f32.
        (LatentBits::ThirtyTwo, ExactType::Single, None, 1e-5),
        (LatentBits::ThirtyTwo, ExactType::Single, Some(1), 1e-5),
        (LatentBits::ThirtyTwo, ExactType::Single, Some(64), 1e-5),
        // Rows and latents rounded to f16, 2^-11 of each; 4.5e-4 and 5.4e-4 were found, of outputs a few times below the values.
        (LatentBits::Sixteen, ExactType::Half, None, 1e-3),
        (LatentBits::Sixteen, ExactType::Half, Some(64), 1e-3),
    ] {
        let mut setup = Setup::new(2, 32, 32, bits);
        (setup.block, setup.options.exact) = (block, exact);
        let mut cache = setup.cache();
        let sequence = cache.insert().unwrap();
        let (k, v, q) = (noise(1, (1, 2, 700, 32)), noise(2, (1, 2, 700, 32)), noise(3, (1, 6, 3, 32)));
        cache.append(3, &[sequence], &tensor(&k), &tensor(&v)).unwrap();
        let options = Options::new().causal();
        let expected = attention(&tensor(&q), &tensor(&k), &tensor(&v), &options).unwrap().output.to_array().unwrap();
        let found = cache.attend(3, &[sequence], &tensor(&q), &AttendOptions::new().causal()).unwrap();
        let found = found.output.to_array().unwrap();
        let expected = expected.index_axis(Axis(0), 0).mapv(f64::from);
        let error = worst(found.iter(), &expected);
        println!("{bits:?}, exact {exact:?}, block {block:?}: {error:e}");
        assert!(error <= tolerance, "{bits:?} {block:?}: {error:e}");
    }
}

#[test]
fn attends_as_over_rebuilt_keys_and_values() {
    for bits in LatentBits::ALL {
        for block in [None, Some(1), Some(24), Some(32), Some(64), Some(256)] {
            for joint in [false, true] {
                let mut setup = Setup::new(2, 16, 5, bits);
                setup.block = block;
                (setup.keys, setup.values) =
                    if joint { (vec![(2, 20)], vec![(2, 9)]) } else { (vec![(1, 5), (1, 16)], vec![(1, 12), (1, 1)]) };
                let mut cache = setup.cache();
                let sequences = [cache.insert().unwrap(), cache.insert().unwrap(), cache.insert().unwrap()];
                let lengths = [1345, 0, 61];
                for (sequence, length) in sequences.iter().zip(lengths) {
                    let (k, v) = (noise(length as u64, (1, 2, length, 16)), noise(9, (1, 2, length, 16)));
                    cache.append(3, &[*sequence], &tensor(&k), &tensor(&v)).unwrap();
                }
                check(&cache, &sequences, &noise(5, (3, 8, 1, 16)), true);
                check(&cache, &sequences, &noise(6, (3, 2, 70, 16)), true);
                check(&cache, &sequences[..1], &noise(6, (1, 6, 3, 16)), false);
            }
        }
    }
}

#[test]
fn one_at_a_time_gives_the_words_of_all_at_once() {
    let mut setup = Setup::new(2, 16, 8, LatentBits::Four);
    setup.block = Some(64);
    setup.options.exact = ExactType::Half;
    let mut cache = setup.cache();
    let (one, all) = (cache.insert().unwrap(), cache.insert().unwrap());
    let (k, v) = (noise(1, (1, 2, 5000, 16)), noise(2, (1, 2, 5000, 16)));
    cache.append(3, &[all], &tensor(&k), &tensor(&v)).unwrap();
    for n in 0..5000 {
        let row = |from: &Array4<f32>| tensor(&from.slice(s![.., .., n..n + 1, ..]).to_owned());
        cache.append(3, &[one], &row(&k), &row(&v)).unwrap();
    }
    let (a, b) = (&cache.sequences[&one][0], &cache.sequences[&all][0]);
    let layer = &cache.layers[0];
    assert_eq!((a.len, a.pages.len()), (5000, (5000 - 32) / 32));
    for (a, b) in a.pages.iter().zip(&b.pages) {
        assert_eq!(layer.store.read_pages(&[*a]).unwrap(), layer.store.read_pages(&[*b]).unwrap());
    }
    assert_eq!(rebuilt(&cache, one), rebuilt(&cache, all));
}

#[test]
fn half_the_rank_at_4_bits_takes_84_percent_less() {
    let layers = vec![Setup::new(8, 128, 64, LatentBits::Four).factors(1)];
    let options = CacheOptions::new();
    let mut cache = KvCache::from_factors(&Device::Cpu, (8, 128), &Turns::default(), layers, &options).unwrap();
    let sequence = cache.insert().unwrap();
    let rows = Array4::<half::f16>::zeros((1, 8, 1 << 15, 128));
    cache.append(3, &[sequence], &tensor(&rows), &tensor(&rows)).unwrap();
    let Store::Host(store) = &cache.layers[0].store else { unreachable!() };
    let held: usize = store.pages.iter().map(|page| 4 * page.len()).sum::<usize>()
        + store.slots.iter().map(|slot| slot.as_bytes().len()).sum::<usize>();
    assert_eq!(cache.bytes(), held as u64);
    let dense = 2 * 2 * 8 * 128 * (1u64 << 15);
    let cut = 1.0 - held as f64 / dense as f64;
    println!("{held} bytes in place of {dense}: {cut}");
    assert!(cut >= 0.84, "{cut}");
}

#[test]
fn errors_leave_the_cache_as_it_was() {
    let setup = Setup::new(1, 8, 4, LatentBits::Four);
    let mut cache = setup.cache();
    let sequence = cache.insert().unwrap();
    let rows = noise(1, (1, 1, 100, 8));
    cache.append(3, &[sequence], &tensor(&rows), &tensor(&rows)).unwrap();
    let (before, bytes) = (rebuilt(&cache, sequence), cache.bytes());
    let mut bad = noise(2, (1, 1, 100, 8));
    bad[[0, 0, 60, 3]] = f32::NAN;
    let error = cache.append(3, &[sequence], &tensor(&rows), &tensor(&bad)).unwrap_err();
    assert!(matches!(error, Error::Domain { quantity: "v", index: 483, .. }), "{error}");
    // Finite, but its latent has no f16.
    let mut large = rows.clone();
    large[[0, 0, 0, 0]] = 3e6;
    let error = cache.append(3, &[sequence], &tensor(&large), &tensor(&rows)).unwrap_err();
    assert!(matches!(error, Error::Domain { quantity: "a latent of k", index: 96, .. }), "{error}");
    cache.options.capacity = Some(bytes + cache.layers[0].shape.layout.bytes());
    let error = cache.append(3, &[sequence], &tensor(&rows), &tensor(&rows)).unwrap_err();
    assert!(matches!(error, Error::TooLarge { needed, limit, .. } if needed > limit), "{error}");
    assert!(matches!(cache.insert().unwrap_err(), Error::TooLarge { .. }));
    assert!(matches!(cache.append(4, &[sequence], &tensor(&rows), &tensor(&rows)), Err(Error::Argument { .. })));
    assert!(matches!(
        cache.append(3, &[sequence, sequence], &tensor(&rows), &tensor(&rows)),
        Err(Error::Argument { .. })
    ));
    assert!(matches!(cache.append(3, &[], &tensor(&rows), &tensor(&rows)), Err(Error::Shape { quantity: "k", .. })));
    assert!(matches!(
        cache.attend(3, &[Sequence(9)], &tensor(&rows), &AttendOptions::new()),
        Err(Error::Argument { .. })
    ));
    assert_eq!((rebuilt(&cache, sequence), cache.bytes()), (before, bytes));
    let options = CacheOptions::new().window(16);
    let error =
        KvCache::from_factors(&Device::Cpu, (1, 8), &setup.turns(), vec![setup.factors(1)], &options).unwrap_err();
    assert!(matches!(error, Error::Argument { quantity: "window", .. }), "{error}");
}

#[test]
fn what_is_saved_comes_back() {
    let mut setup = Setup::new(2, 8, 3, LatentBits::Two);
    setup.options.exact = ExactType::Half;
    let mut cache = setup.cache();
    let one = cache.insert().unwrap();
    let rows = noise(1, (1, 2, 200, 8));
    cache.append(3, &[one], &tensor(&rows), &tensor(&rows)).unwrap();
    let two = cache.fork(one).unwrap();
    cache.append(3, &[two], &tensor(&rows), &tensor(&rows)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache.safetensors");
    cache.save(&path).unwrap();
    let mut other = setup.cache();
    let loaded = other.load(&path).unwrap();
    assert_eq!(other.bytes(), cache.bytes(), "shared pages stay shared");
    assert_eq!(rebuilt(&other, loaded[0]), rebuilt(&cache, one));
    assert_eq!(rebuilt(&other, loaded[1]), rebuilt(&cache, two));
    other.remove(loaded[0]).unwrap();
    other.remove(loaded[1]).unwrap();
    assert_eq!(other.bytes(), 0);
    setup.options.sinks = 0;
    assert!(matches!(setup.cache().load(&path), Err(Error::Format { .. })));
    std::fs::write(&path, b"no").unwrap();
    assert!(matches!(other.load(&path), Err(Error::Format { .. })));
}

#[derive(Debug, Clone)]
enum Step {
    Append(usize, usize),
    Truncate(usize, usize),
    Fork(usize),
    Remove(usize),
    Attend(usize, usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0usize..4, 0usize..90).prop_map(|(s, n)| Step::Append(s, n)),
        2 => (0usize..4, 0usize..100).prop_map(|(s, cut)| Step::Truncate(s, cut)),
        1 => (0usize..4).prop_map(Step::Fork),
        1 => (0usize..4).prop_map(Step::Remove),
        3 => (0usize..4, 1usize..5).prop_map(|(s, q)| Step::Attend(s, q)),
    ];
    prop::collection::vec(step, 1..40)
}

/// The plain model: rows [2, heads, len, d], of which those of packed pages go through the projection, in f64, when their page is packed.
fn pack_plainly(setup: &Setup, factors: &LayerFactors, rows: &mut Array4<f64>, from: usize, to: usize) {
    let turns = setup.turns();
    for n in (from..to).filter(|n| *n >= setup.options.sinks) {
        for (side, sets) in [&factors.keys, &factors.values].into_iter().enumerate() {
            let mut head = 0;
            for set in sets {
                let width = set.mean.len();
                let mut x = Vec::new();
                let origin = turns.origin(n) as f64;
                for of_set in 0..set.heads {
                    let mut row = rows.slice(s![side, head + of_set, n, ..]).to_vec();
                    if side == 0 {
                        turn(&mut row, &turns, -origin);
                    }
                    x.extend(row);
                }
                let z: Vec<f64> = (0..set.rank)
                    .map(|i| {
                        (0..width)
                            .map(|c| (x[c] - f64::from(set.mean[c])) * f64::from(set.down[c * set.rank + i]))
                            .sum()
                    })
                    .collect();
                for of_set in 0..set.heads {
                    let mut row: Vec<f64> = (of_set * setup.d..(of_set + 1) * setup.d)
                        .map(|c| {
                            let sum: f64 = (0..set.rank).map(|i| z[i] * f64::from(set.up[i * width + c])).sum();
                            f64::from(set.mean[c]) + sum
                        })
                        .collect();
                    if side == 0 {
                        turn(&mut row, &turns, origin);
                    }
                    rows.slice_mut(s![side, head + of_set, n, ..]).iter_mut().zip(row).for_each(|(to, x)| *to = x);
                }
                head += set.heads;
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// With f32 latents, whose rounding is that of sums of f32: twice 1e-5 relative to the largest element, for rows that were packed twice.
    #[test]
    fn any_order_of_steps_agrees_with_a_plain_model(
        steps in steps(), block in prop::sample::select(vec![None, Some(1), Some(64)]), joint: bool, sinks in 0usize..6, window in 0usize..40
    ) {
        let mut setup = Setup::new(2, 8, 8, LatentBits::ThirtyTwo);
        setup.block = block;
        (setup.keys, setup.values) = if joint { (vec![(2, 7)], vec![(2, 9)]) } else { (vec![(1, 4), (1, 8)], vec![(2, 3)]) };
        (setup.options.sinks, setup.options.window) = (sinks, window);
        let factors = setup.factors(7);
        let mut cache = setup.cache();
        let mut plain: Vec<(Sequence, Array4<f64>, usize)> = Vec::new();
        let pages = |len: usize| len.saturating_sub(window) / PAGE * PAGE;
        for (number, step) in steps.iter().enumerate() {
            let pick = |s: usize, count: usize| s % count.max(1);
            if plain.is_empty() || (plain.len() < 3 && number % 7 == 0) {
                plain.push((cache.insert().unwrap(), Array4::zeros((2, 2, 0, 8)), 0));
            }
            let count = plain.len();
            match *step {
                Step::Append(s, n) => {
                    let (sequence, rows, packed) = &mut plain[pick(s, count)];
                    let (k, v) = (noise(number as u64, (1, 2, n, 8)), noise(1000 + number as u64, (1, 2, n, 8)));
                    cache.append(3, &[*sequence], &tensor(&k), &tensor(&v)).unwrap();
                    let new = concatenate![Axis(0), k, v].mapv(f64::from);
                    *rows = concatenate![Axis(2), *rows, new];
                    let to = pages(rows.dim().2);
                    pack_plainly(&setup, &factors, rows, *packed, to);
                    *packed = to;
                }
                Step::Truncate(s, cut) => {
                    let (sequence, rows, packed) = &mut plain[pick(s, count)];
                    let len = rows.dim().2.saturating_sub(cut);
                    cache.truncate(*sequence, len).unwrap();
                    *rows = rows.slice(s![.., .., ..len, ..]).to_owned();
                    *packed = pages(len);
                }
                Step::Fork(s) => {
                    let (sequence, rows, packed) = plain[pick(s, count)].clone();
                    plain.push((cache.fork(sequence).unwrap(), rows, packed));
                }
                Step::Remove(s) => {
                    let (sequence, ..) = plain.remove(pick(s, count));
                    cache.remove(sequence).unwrap();
                    prop_assert!(cache.len(3, sequence).is_err());
                }
                Step::Attend(s, q_len) => {
                    let (sequence, rows, _) = &plain[pick(s, count)];
                    prop_assert_eq!(cache.len(3, *sequence).unwrap(), rows.dim().2);
                    let q = noise(7 * number as u64, (1, 4, q_len, 8));
                    let found = cache.attend(3, &[*sequence], &tensor(&q), &AttendOptions::new().causal()).unwrap();
                    let (expected, _) = dense(q.index_axis(Axis(0), 0), rows, true);
                    let error = worst(found.output.to_array().unwrap().iter(), &expected);
                    prop_assert!(error <= 2e-5, "off by {error:e}");
                }
            }
        }
        for (sequence, ..) in plain {
            cache.remove(sequence).unwrap();
        }
        prop_assert_eq!(cache.bytes(), 0);
    }
}
