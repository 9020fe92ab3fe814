//! Low-rank caches of keys and values: the CPU path, which unit tests hold to dense attention in f64, against each adapter.

use anyhow::{Result, bail, ensure};
use half::f16;
use ndarray::{Array1, Array2, Array4, Axis, Slice};
use orthant::attention::AttentionElement;
use orthant::kv::{
    AttendOptions, Basis, CacheOptions, ExactType, Frame, KvCache, LatentBits, Projections, Rope, RopeLayout, Sequence,
};
use orthant::{Device, Error};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::SafeTensors;

use crate::common::{Case, compare, poison};

/// What a cache is made of: heads, d, heads and rank of each set of keys and of values, frame block, options.
#[derive(Clone, Debug)]
struct Setup {
    heads: usize,
    d: usize,
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

    fn ranks(mut self, keys: &[(usize, usize)], values: &[(usize, usize)]) -> Self {
        (self.keys, self.values) = (keys.to_vec(), values.to_vec());
        self
    }

    fn block(mut self, block: usize) -> Self {
        self.block = Some(block);
        self
    }

    fn options(mut self, change: impl Fn(CacheOptions) -> CacheOptions) -> Self {
        self.options = change(self.options);
        self
    }

    /// Random projections of unit columns; D is E transposed, so that what comes back is no larger than what went in. Pairs of odd heads lie side by side.
    fn cache(&self, device: &Device) -> Result<KvCache> {
        let mut random = ChaCha8Rng::seed_from_u64(7);
        let mut basis = |&(heads, rank): &(usize, usize)| {
            let width = heads * self.d;
            let mut up = Array2::from_shape_simple_fn((rank, width), || random.random_range(-1.0f32..1.0));
            up.rows_mut().into_iter().for_each(|mut row| row /= row.dot(&row).sqrt());
            let mean = Array1::from_shape_simple_fn(width, || random.random_range(-0.3f32..0.3));
            Basis::new(heads, mean, up.t().as_standard_layout().into_owned(), up)
        };
        let keys = self.keys.iter().map(&mut basis).collect::<orthant::Result<Vec<_>>>()?;
        let values = self.values.iter().map(&mut basis).collect::<orthant::Result<Vec<_>>>()?;
        let layout = if self.d.is_multiple_of(3) { RopeLayout::Adjacent } else { RopeLayout::Halves };
        let rope = Rope::new(layout, self.d / 2 * 2, 1e4)?;
        let frame = self.block.map_or(Frame::Post, Frame::Block);
        let projections = Projections::new(self.heads, self.d, rope, frame)?.with_layer(0, keys, values)?;
        Ok(KvCache::new(device, &projections, &self.options)?)
    }
}

fn noise<T: AttentionElement>(seed: u64, shape: (usize, usize, usize, usize)) -> Array4<T> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    Array4::from_shape_simple_fn(shape, || T::narrow(random.random_range(-1.5f32..1.5)))
}

/// The same tokens to a sequence of both caches, in pieces.
fn append<T: AttentionElement>(
    caches: &mut [&mut KvCache],
    sequences: &[Sequence],
    (k, v): (&Array4<T>, &Array4<T>),
    pieces: &[usize],
) -> Result<()> {
    let mut first = 0;
    for &count in pieces {
        let part = |rows: &Array4<T>| rows.slice_axis(Axis(2), Slice::from(first..first + count)).to_owned();
        for cache in caches.iter_mut() {
            let device = cache.device().clone();
            cache.append(0, sequences, &device.tensor(&part(k))?, &device.tensor(&part(v))?)?;
        }
        first += count;
    }
    ensure!(first == k.dim().2, "pieces");
    Ok(())
}

/// Outputs and log-sum-exps of both, within `bound` of the row's largest element.
fn same<T: AttentionElement>(
    what: &str,
    (gpu, cpu): (&KvCache, &KvCache),
    sequences: &[Sequence],
    q: &Array4<T>,
    options: &AttendOptions,
    bound: f64,
) -> Result<()> {
    let run = |cache: &KvCache| -> Result<(Vec<f64>, Vec<f64>)> {
        poison(cache.device(), 4 * q.len())?;
        let out = cache.attend(0, sequences, &cache.device().tensor(q)?, &options.clone().lse())?;
        let wide = |x: &T| f64::from(x.widen());
        let Some(lse) = out.lse else { bail!("no log-sum-exp") };
        Ok((out.output.to_array()?.iter().map(wide).collect(), lse.to_array()?.iter().map(|x| f64::from(*x)).collect()))
    };
    let ((out, lse), (expected, expected_lse)) = (run(gpu)?, run(cpu)?);
    let d = q.dim().3;
    let largest: Vec<f64> =
        expected.chunks(d).map(|row| row.iter().fold(0.0, |largest: f64, x| largest.max(x.abs()))).collect();
    compare(what, &out, &expected, |at, _| bound * largest[at / d] + 1e-30)?;
    compare(&format!("{what}: lse"), &lse, &expected_lse, |_, expected| bound * expected.abs().max(1.0))
}

/// f32 sums of other orders; f16 outputs.
const SINGLE: f64 = 1e-5;
const HALF: f64 = 2e-3;

fn tiled(device: &Device) -> Result<Device> {
    let Some(gpu) = device.as_gpu() else { bail!("not a GPU") };
    Ok(Device::gpu_tiled(gpu.info().index, 64 << 10)?)
}

/// A cache on both devices with one sequence of `len` tokens, and queries over it.
fn attends<T: AttentionElement>(
    device: &Device,
    setup: &Setup,
    len: usize,
    q: (usize, usize),
    bound: f64,
) -> Result<()> {
    let what = format!("{setup:?} of {len} by {q:?}");
    let run = || -> Result<()> {
        let (mut gpu, mut cpu) = (setup.cache(device)?, setup.cache(&Device::cpu())?);
        let sequences = [gpu.insert()?];
        cpu.insert()?;
        let shape = (1, setup.heads, len, setup.d);
        let (k, v) = (noise::<T>(1, shape), noise::<T>(2, shape));
        append(&mut [&mut gpu, &mut cpu], &sequences, (&k, &v), &[len])?;
        let queries = noise::<T>(3, (1, setup.heads * q.0, q.1, setup.d));
        for options in [AttendOptions::new(), AttendOptions::new().causal()] {
            same("", (&gpu, &cpu), &sequences, &queries, &options, bound)?;
        }
        Ok(())
    };
    run().map_err(|error| error.context(what))
}

/// Latents that are not quantised: they differ by roundings of sums alone.
fn ranks_and_sizes(device: &Device) -> Result<()> {
    let bits = LatentBits::ThirtyTwo;
    for (d, rank) in [(64, 1), (64, 7), (80, 33), (128, 64), (16, 16)] {
        attends::<f32>(device, &Setup::new(2, d, rank, bits), 300, (2, 1), SINGLE)?;
        attends::<f16>(device, &Setup::new(2, d, rank, LatentBits::Sixteen), 300, (2, 3), HALF)?;
    }
    // Odd rows of f16; one set over all heads; ranks that differ.
    attends::<f16>(device, &Setup::new(3, 33, 9, bits), 190, (2, 2), HALF)?;
    let joint = Setup::new(2, 24, 1, bits).ranks(&[(2, 20)], &[(2, 41)]);
    attends::<f32>(device, &joint, 500, (3, 5), SINGLE)?;
    let differing = Setup::new(3, 24, 1, bits).ranks(&[(1, 5), (1, 24), (1, 1)], &[(2, 40), (1, 3)]);
    attends::<f32>(device, &differing.clone().block(64), 500, (4, 70), SINGLE)?;
    // More than 512 channels of values: two tiles. Where a binding cannot show 32 channels of E, an error says so.
    let wide = Setup::new(5, 128, 1, bits).ranks(&[(1, 3); 5], &[(5, 530)]);
    let result = attends::<f32>(device, &wide, 70, (1, 2), SINGLE);
    if device.as_gpu().is_some_and(|gpu| gpu.max_binding() < 128 << 10) {
        let error = result.err().and_then(|error| error.downcast::<Error>().ok());
        ensure!(matches!(error, Some(Error::TooLarge { .. })), "{error:?}");
        return Ok(());
    }
    result?;
    // Both tiles go on over several windows of pages.
    let Some(gpu) = device.as_gpu() else { bail!("not a GPU") };
    attends::<f32>(&Device::gpu_tiled(gpu.info().index, 256 << 10)?, &wide, 420, (1, 2), SINGLE)
}

fn frames_and_windows(device: &Device) -> Result<()> {
    for block in [1, 24, 32, 64, 256] {
        let setup = Setup::new(2, 12, 9, LatentBits::ThirtyTwo).block(block);
        attends::<f32>(device, &setup, 400, (3, 2), SINGLE)?;
        attends::<f32>(&tiled(device)?, &setup, 700, (2, 20), SINGLE)?;
    }
    for (window, sinks) in [(0, 0), (1, 4), (32, 32), (100, 0), (500, 3)] {
        for len in [1, 3, 95, 97, 200] {
            let setup = Setup::new(1, 16, 9, LatentBits::ThirtyTwo).options(|o| o.window(window).sinks(sinks));
            attends::<f32>(device, &setup, len, (2, 1), SINGLE)?;
        }
    }
    Ok(())
}

/// The same pages, written to a file on the CPU, on both: words that are not those of the same latents would show as soon as scores are sharp.
fn every_width_of_latents(device: &Device) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("cache.safetensors");
    for keys in LatentBits::ALL {
        for values in LatentBits::ALL {
            let setup = Setup::new(2, 40, 35, LatentBits::Two).block(64).options(|o| o.bits(keys, values));
            let mut cpu = setup.cache(&Device::cpu())?;
            let one = cpu.insert()?;
            let rows = |seed| noise::<f32>(seed, (1, 2, 333, 40));
            append(&mut [&mut cpu], &[one], (&rows(1), &rows(2)), &[333])?;
            cpu.save(&path)?;
            let mut gpu = setup.cache(device)?;
            let sequences = gpu.load(&path)?;
            ensure!(sequences == [one], "{sequences:?}");
            let what = format!("{keys:?} {values:?}");
            for q in [(8, 1), (2, 7)] {
                let q = noise::<f32>(3, (1, 2 * q.0, q.1, 40));
                same(&what, (&gpu, &cpu), &sequences, &q, &AttendOptions::new().causal(), SINGLE)?;
            }
        }
    }
    Ok(())
}

/// The words of a layer's pages, in the order in which a file has them, and the bytes of its exact rows.
fn words(cache: &KvCache) -> Result<(Vec<u32>, Vec<u8>)> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("cache.safetensors");
    cache.save(&path)?;
    let bytes = std::fs::read(&path)?;
    let file = SafeTensors::deserialize(&bytes)?;
    let pages = file.tensor("layer.0.pages")?;
    let word = |x: &[u8]| Ok(u32::from_le_bytes(x.try_into()?));
    Ok((pages.data().chunks_exact(4).map(word).collect::<Result<_>>()?, file.tensor("layer.0.exact")?.data().to_vec()))
}

/// What a set's words must be for latents z [rank, 32], as `src/kv/latents.rs` has it, written once more: parameters, then codes.
fn packed(z: &[f32], keys: bool, bits: u32, skip: usize) -> Vec<u32> {
    let rank = z.len() / 32;
    let of_word = 32 / bits as usize;
    let mut codes = vec![0u32; rank.div_ceil(of_word) * 32];
    let mut params = Vec::new();
    let levels = ((1u64 << bits) - 1) as f32;
    let scaling = |own: &mut dyn Iterator<Item = f32>| {
        let (min, max) = own.fold((f32::INFINITY, f32::NEG_INFINITY), |(min, max), z| (min.min(z), max.max(z)));
        if min > max {
            (f16::ZERO, f16::ZERO)
        } else {
            (f16::from_f32(min), f16::from_f32(((max - f16::from_f32(min).to_f32()) / levels).max(0.0)))
        }
    };
    let mut scalings = Vec::new();
    if keys {
        scalings.extend((0..rank).map(|c| scaling(&mut (skip..32).map(|t| z[c * 32 + t]))));
    } else {
        for first in (0..rank).step_by(32) {
            scalings.extend((0..32).map(|t| {
                let channels = if t < skip { 0..0 } else { first..rank.min(first + 32) };
                scaling(&mut channels.map(|c| z[c * 32 + t]))
            }));
        }
    }
    if bits <= 8 {
        params.extend(scalings.iter().map(|(min, scale)| u32::from(min.to_bits()) | u32::from(scale.to_bits()) << 16));
    }
    for c in 0..rank {
        for t in 0..32 {
            let z = z[c * 32 + t];
            let code = match bits {
                32 => z.to_bits(),
                16 => f16::from_f32(z).to_bits().into(),
                _ => {
                    let (min, scale) = scalings[if keys { c } else { c / 32 * 32 + t }];
                    let steps = (z - min.to_f32()) / scale.to_f32();
                    if scale == f16::ZERO { 0 } else { steps.round_ties_even().clamp(0.0, levels) as u32 }
                }
            };
            codes[c / of_word * 32 + t] |= code << (c % of_word * bits as usize);
        }
    }
    params.extend(codes);
    params
}

/// The words of a GPU are those of its own latents (as a cache of 32 bits holds them) bit for bit, and its latents are the CPU's within the rounding of sums.
/// Values on a grid make many quotients fall on ties, and some channels constant.
fn words_are_those_of_the_latents(device: &Device) -> Result<()> {
    for (on_grid, size) in [(false, 1.0f32), (true, 1.0), (false, 1e-3), (false, 300.0)] {
        let plain = Setup::new(2, 24, 1, LatentBits::ThirtyTwo).ranks(&[(1, 7), (1, 24)], &[(2, 45)]).block(64);
        let mut rows = [noise::<f32>(1, (1, 2, 200, 24)), noise::<f32>(2, (1, 2, 200, 24))];
        rows.iter_mut().for_each(|rows| {
            rows.mapv_inplace(|x| if on_grid { (x * 8.0).round() / 8.0 } else { x * size });
        });
        let sides = [(true, vec![7, 24]), (false, vec![45])];
        let pages = (200 - 32) / 32;
        let of = |device: &Device, bits: LatentBits| -> Result<(Vec<u32>, Vec<u8>)> {
            let mut cache = plain.clone().options(|o| o.bits(bits, bits)).cache(device)?;
            let one = cache.insert()?;
            append(&mut [&mut cache], &[one], (&rows[0], &rows[1]), &[40, 97, 63])?;
            words(&cache)
        };
        let (z, exact) = of(device, LatentBits::ThirtyTwo)?;
        let (cpu, cpu_exact) = of(&Device::cpu(), LatentBits::ThirtyTwo)?;
        ensure!(exact == cpu_exact, "exact rows differ");
        let float = |words: &[u32]| words.iter().map(|word| f64::from(f32::from_bits(*word))).collect::<Vec<_>>();
        // Roundings of sums of up to 48 terms of up to 1.8 size + 0.3 times elements of a unit vector, and of the rotation.
        compare("latents", &float(&z), &float(&cpu), |_, _| 2e-6 * f64::from(size + 0.3))?;
        let z: Vec<f32> = z.iter().map(|word| f32::from_bits(*word)).collect();
        for bits in LatentBits::ALL {
            let (found, _) = of(device, bits)?;
            let (mut at, mut expected) = (0, Vec::new());
            for page in 0..pages {
                for (keys, ranks) in &sides {
                    for rank in ranks {
                        let skip = if page == 0 { 4 } else { 0 };
                        expected.extend(packed(&z[at..][..rank * 32], *keys, bits.count(), skip));
                        at += rank * 32;
                    }
                }
            }
            let wrong = found.iter().zip(&expected).position(|(a, b)| a != b);
            ensure!(found.len() == expected.len() && wrong.is_none(), "{bits:?}, on a grid {on_grid}: word {wrong:?}");
        }
    }
    Ok(())
}

/// Rows of f16, and of f32 rounded to them, also below f16's normal numbers.
fn exact_rows_are_rounded_alike(device: &Device) -> Result<()> {
    let setup = Setup::new(2, 17, 5, LatentBits::Four).options(|o| o.exact(ExactType::Half));
    let mut rows = noise::<f32>(5, (1, 2, 90, 17));
    rows.indexed_iter_mut().for_each(|((_, _, n, _), x)| *x *= 2f32.powi(12 - (n % 40) as i32));
    let all = |device: &Device| -> Result<_> {
        let mut cache = setup.cache(device)?;
        let one = cache.insert()?;
        append(&mut [&mut cache], &[one], (&rows, &rows), &[1, 30, 59])?;
        Ok(words(&cache)?.1)
    };
    ensure!(all(device)? == all(&Device::cpu())?);
    Ok(())
}

/// Append, fork, truncate and attend, of several sequences of different length.
fn a_life_of_sequences(device: &Device) -> Result<()> {
    for device in [device, &tiled(device)?] {
        for (block, joint, exact) in [(None, false, ExactType::Half), (Some(64), true, ExactType::Single)] {
            let mut setup = Setup::new(2, 40, 11, LatentBits::ThirtyTwo).options(|o| o.exact(exact));
            setup.block = block;
            if joint {
                setup = setup.ranks(&[(2, 20)], &[(2, 9)]);
            }
            let (mut gpu, mut cpu) = (setup.cache(device)?, setup.cache(&Device::cpu())?);
            let mut sequences = Vec::new();
            for _ in 0..3 {
                sequences.push(gpu.insert()?);
                cpu.insert()?;
            }
            let rows =
                |seed, batch, n| (noise::<f32>(seed, (batch, 2, n, 40)), noise::<f32>(seed + 1, (batch, 2, n, 40)));
            let (k, v) = rows(1, 3, 131);
            append(&mut [&mut gpu, &mut cpu], &sequences, (&k, &v), &[1, 0, 66, 1, 63])?;
            let (k, v) = rows(3, 1, 611);
            append(&mut [&mut gpu, &mut cpu], &sequences[1..2], (&k, &v), &[600, 11])?;
            // Rows that were rebuilt: roundings of two projections; in f16 some of them next to a tie, off by 2^-11 with the weight of one token in 80.
            let cut = if exact == ExactType::Half { 1e-4 } else { 2.0 * SINGLE };
            let check = |gpu: &KvCache, cpu: &KvCache, sequences: &[Sequence], what: &str, bound: f64| -> Result<()> {
                ensure!(gpu.bytes() == cpu.bytes(), "{what}: {} and {} bytes", gpu.bytes(), cpu.bytes());
                for q_len in [1, 9] {
                    let q = noise::<f32>(9, (sequences.len(), 6, q_len, 40));
                    same(what, (gpu, cpu), sequences, &q, &AttendOptions::new().causal(), bound)?;
                }
                Ok(())
            };
            check(&gpu, &cpu, &sequences, "ragged", SINGLE)?;
            for cache in [&mut gpu, &mut cpu] {
                let fork = cache.fork(sequences[1])?;
                cache.truncate(fork, 300)?;
                cache.truncate(sequences[0], 2)?;
                cache.truncate(sequences[2], 97)?;
                cache.truncate(sequences[2], 80)?;
            }
            sequences = gpu.sequences().collect();
            check(&gpu, &cpu, &sequences, "after a cut", cut)?;
            let (k, v) = rows(5, 4, 70);
            append(&mut [&mut gpu, &mut cpu], &sequences, (&k, &v), &[70])?;
            check(&gpu, &cpu, &sequences, "and on", cut)?;
            for cache in [&mut gpu, &mut cpu] {
                cache.remove(sequences[1])?;
                cache.clear(sequences[0])?;
            }
            sequences.remove(1);
            let (k, v) = rows(7, 3, 200);
            append(&mut [&mut gpu, &mut cpu], &sequences, (&k, &v), &[150, 50])?;
            check(&gpu, &cpu, &sequences, "in pages used before", cut)?;
            // What is saved on one is loaded on the other.
            let folder = tempfile::tempdir()?;
            let path = folder.path().join("cache.safetensors");
            gpu.save(&path)?;
            let loaded = cpu.load(&path)?;
            let q = noise::<f32>(9, (3, 4, 2, 40));
            let run = |cache: &KvCache, sequences: &[Sequence]| -> Result<Vec<f64>> {
                let out = cache.attend(0, sequences, &cache.device().tensor(&q)?, &AttendOptions::new())?;
                Ok(out.output.to_array()?.iter().map(|x| f64::from(*x)).collect())
            };
            compare("loaded", &run(&cpu, &loaded)?, &run(&gpu, &sequences)?, |_, _| 1e-5)?;
        }
    }
    Ok(())
}

fn errors_leave_the_cache_as_it_was(device: &Device) -> Result<()> {
    let setup = Setup::new(1, 8, 4, LatentBits::Four).options(|o| o.exact(ExactType::Half));
    let mut cache = setup.cache(device)?;
    let one = cache.insert()?;
    let rows = noise::<f32>(1, (1, 1, 100, 8));
    let q = noise::<f32>(2, (1, 2, 1, 8));
    append(&mut [&mut cache], &[one], (&rows, &rows), &[100])?;
    let (before, bytes) = (words(&cache)?, cache.bytes());
    for (value, in_keys, index) in [(f32::NAN, true, 3), (f32::INFINITY, false, 60), (7e4, false, 99)] {
        let mut bad = rows.clone();
        bad[[0, 0, index, 5]] = value;
        let (k, v) = if in_keys { (&bad, &rows) } else { (&rows, &bad) };
        let error = cache.append(0, &[one], &device.tensor(k)?, &device.tensor(v)?).err();
        let quantity = if in_keys { "k" } else { "v" };
        let as_it_should = matches!(&error, Some(Error::Domain { quantity: found, index: at, .. }) if *found == quantity && *at == index * 8 + 5);
        ensure!(as_it_should, "{error:?}");
        ensure!(words(&cache)? == before && cache.bytes() == bytes && cache.len(0, one)? == 100);
    }
    // Finite, but the latent has no f16.
    let mut large = rows.clone();
    large.slice_mut(ndarray::s![.., .., 1, ..]).fill(6e4);
    let error = cache.append(0, &[one], &device.tensor(&large)?, &device.tensor(&rows)?).err();
    ensure!(matches!(error, Some(Error::Domain { quantity: "a latent of k", index: 96, .. })), "{error:?}");
    ensure!(words(&cache)? == before && cache.bytes() == bytes);
    // Too little room.
    let mut small = setup.clone().options(|o| o.capacity(bytes)).cache(device)?;
    let other = small.insert()?;
    append(&mut [&mut small], &[other], (&rows, &rows), &[100])?;
    let error = small.append(0, &[other], &device.tensor(&rows)?, &device.tensor(&rows)?).err();
    ensure!(matches!(error, Some(Error::TooLarge { .. })), "{error:?}");
    ensure!(words(&small)? == before);
    // Queries that are not finite, at the wait.
    let mut bad = q.clone();
    bad[[0, 1, 0, 3]] = f32::NAN;
    let result = cache.attend(0, &[one], &device.tensor(&bad)?, &AttendOptions::new());
    let error = result.and_then(|out| out.output.to_array()).err();
    ensure!(matches!(error, Some(Error::Domain { quantity: "q", index: 11, .. })), "{error:?}");
    // Finite rows whose sum has no f16, at the wait.
    for device in [device, &Device::cpu()] {
        let setup = Setup::new(1, 8, 4, LatentBits::ThirtyTwo).options(|o| o.exact(ExactType::Single).window(64));
        let mut cache = setup.cache(device)?;
        let one = cache.insert()?;
        let large = noise::<f32>(1, (1, 1, 20, 8)).mapv(|value| 7e4 + value);
        append(&mut [&mut cache], &[one], (&noise(4, (1, 1, 20, 8)), &large), &[20])?;
        let q = device.tensor(&noise::<f16>(2, (1, 2, 1, 8)))?;
        let error = cache.attend(0, &[one], &q, &AttendOptions::new()).and_then(|out| out.output.to_array()).err();
        ensure!(matches!(error, Some(Error::Domain { quantity: "output", .. })), "{device}: {error:?}");
    }
    // Without a wait: the error comes with the next output.
    let mut bad = rows.clone();
    bad[[0, 0, 2, 1]] = f32::NAN;
    cache.append_without_wait(0, &[one], &device.tensor(&rows)?, &device.tensor(&rows)?)?;
    let attend =
        |cache: &KvCache| cache.attend(0, &[one], &device.tensor(&q)?, &AttendOptions::new())?.output.to_array();
    attend(&cache)?;
    cache.append_without_wait(0, &[one], &device.tensor(&rows)?, &device.tensor(&bad)?)?;
    let error = attend(&cache).err();
    ensure!(matches!(error, Some(Error::Domain { quantity: "v", index: 17, .. })), "{error:?}");
    Ok(())
}

/// In windows of 64 KiB: pages and slots above a binding, k, v and q too.
fn beyond_a_binding(device: &Device) -> Result<()> {
    let tiled = tiled(device)?;
    let setup = Setup::new(8, 128, 64, LatentBits::ThirtyTwo);
    attends::<f32>(&tiled, &setup, 110, (2, 9), SINGLE)?;
    attends::<f16>(&tiled, &setup.clone().block(64).options(|o| o.exact(ExactType::Half)), 100, (1, 1), HALF)?;
    // Several windows of pages, each going on from the sums of that before for many rows.
    let long = Setup::new(1, 64, 60, LatentBits::ThirtyTwo);
    attends::<f32>(&tiled, &long, 420, (2, 9), SINGLE)?;
    attends::<f32>(&tiled, &long, 420, (1, 3), SINGLE)?;
    let small = Setup::new(2, 64, 20, LatentBits::Eight).block(1);
    // Codes differ where a latent is next to a tie.
    attends::<f32>(&tiled, &small, 300, (4, 50), 2e-2)
}

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("latent_attention", "ranks and sizes", ranks_and_sizes),
        Case::new("latent_attention", "every width", every_width_of_latents),
        Case::new("latent_attention_queries", "frames and windows", frames_and_windows),
        Case::new("latent_attention_merge", "beyond a binding", beyond_a_binding),
        Case::new("pack_latents", "words", words_are_those_of_the_latents),
        Case::new("pack_latents_keep", "rounded alike", exact_rows_are_rounded_alike),
        Case::new("pack_latents_rebuild", "a life of sequences", a_life_of_sequences),
        Case::new("pack_latents_check", "errors", errors_leave_the_cache_as_it_was),
    ]
}
