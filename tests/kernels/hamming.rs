//! Searches of codes: GPU equal to CPU in every bit, for sizes about those of tiles, clustered codes and forced tiling.

use anyhow::{Result, ensure};
use half::f16;
use ndarray::{Array1, Array2};
use orthant::hamming::{Codes, Index, Mask, Precision, SearchOptions};
use orthant::kernels::{self, SignRule};
use orthant::{Device, Error};

use crate::common::{Case, poison};

/// Repeatable words.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 32) as u32
    }
}

/// n words of codes of `bits`: of every `spread` codes all but the first are copies of one of a few with few bits turned over, or copies; 0: all are random.
fn words(n: usize, bits: usize, spread: u32, seed: u64) -> Array2<u32> {
    let mut noise = Noise(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let columns = bits.div_ceil(32);
    let last = if bits.is_multiple_of(32) { u32::MAX } else { (1 << (bits % 32)) - 1 };
    let mut centres = Noise(7);
    let centres = Array2::from_shape_simple_fn((4, columns), || centres.next());
    let mut out = Array2::zeros((n, columns));
    for mut row in out.rows_mut() {
        if spread > 0 && !noise.next().is_multiple_of(spread) {
            row.assign(&centres.row((noise.next() % 4) as usize));
            if noise.next().is_multiple_of(4) {
                let bit = noise.next() as usize % bits;
                row[bit / 32] ^= 1 << (bit % 32);
            }
        } else {
            row.mapv_inplace(|_| noise.next());
        }
        row[columns - 1] &= last;
    }
    out
}

fn codes(device: &Device, n: usize, bits: usize, spread: u32, seed: u64) -> Result<Codes> {
    Ok(Codes::new(device.tensor(&words(n, bits, spread, seed))?, bits)?)
}

fn tiled(device: &Device) -> Result<Device> {
    let Some(gpu) = device.as_gpu() else { anyhow::bail!("not a GPU") };
    Ok(Device::gpu_tiled(gpu.info().index, 64 << 10)?)
}

/// A base and queries, searched with a mask or without.
#[derive(Clone, Copy, Debug)]
struct Search {
    n: usize,
    queries: usize,
    bits: usize,
    spread: u32,
    k: usize,
    masked: bool,
}

/// The index of `search.n` codes, added in batches that begin at odd places.
fn index(device: &Device, search: Search) -> Result<Index> {
    let mut index = Index::new(device, search.bits)?;
    let first = search.n / 3;
    index.add(&codes(device, first, search.bits, search.spread, 1)?)?;
    index.add(&codes(device, search.n - first, search.bits, search.spread, 2)?)?;
    Ok(index)
}

fn options(search: Search) -> SearchOptions {
    let options = SearchOptions::new(search.k);
    if search.masked { options.allowed(&mask(search.n)) } else { options }
}

fn mask(n: usize) -> Mask {
    Mask::new((0..n).map(|id| id % 3 != 1 || id % 7 == 0))
}

fn nearest(device: &Device, search: Search) -> Result<()> {
    poison(device, 1 << 20)?;
    let run = |device: &Device| -> Result<_> {
        let queries = codes(device, search.queries, search.bits, search.spread, 3)?;
        let found = index(device, search)?.search(&queries, &options(search))?;
        Ok((found.ids.to_array()?, found.distances.to_array()?))
    };
    let ((ids, distances), (expected_ids, expected)) = (run(device)?, run(&Device::cpu())?);
    same(search, &distances, &expected)?;
    same(search, &ids, &expected_ids)
}

fn same<T: PartialEq + std::fmt::Debug>(
    what: impl std::fmt::Debug,
    actual: &Array2<T>,
    expected: &Array2<T>,
) -> Result<()> {
    ensure!(actual.dim() == expected.dim(), "{what:?}: shape {:?}, expected {:?}", actual.dim(), expected.dim());
    let wrong: Vec<_> = actual.indexed_iter().zip(expected).filter(|((_, a), e)| a != e).collect();
    let Some(((at, actual), expected)) = wrong.first() else { return Ok(()) };
    anyhow::bail!("{what:?}: {} differ, the first at {at:?}: {actual:?}, expected {expected:?}", wrong.len())
}

/// Distances in f32: of Jaccard, and of queries that are not binary; their bits must be the CPU's.
fn rated(device: &Device, search: Search) -> Result<()> {
    poison(device, 1 << 20)?;
    let run = |device: &Device| -> Result<_> {
        let index = index(device, search)?;
        let mut noise = Noise(11);
        let floats =
            Array2::from_shape_simple_fn((search.queries, search.bits), || (noise.next() % 2001) as f32 / 1000.0 - 1.0);
        let (floats, options) = (device.tensor(&floats)?, options(search));
        let queries = codes(device, search.queries, search.bits, search.spread, 3)?;
        let mut all = vec![index.search_jaccard(&queries, &options)?];
        for precision in [Precision::Int4, Precision::Float] {
            all.push(index.search_asymmetric(&floats, precision, &options)?);
        }
        all.into_iter()
            .map(|found| -> Result<_> { Ok((found.ids.to_array()?, found.distances.to_array()?.mapv(f32::to_bits))) })
            .collect::<Result<Vec<_>>>()
    };
    for ((found, expected), what) in run(device)?.iter().zip(run(&Device::cpu())?).zip(["Jaccard", "int4", "float"]) {
        same((search, what), &found.1, &expected.1)?;
        same((search, what), &found.0, &expected.0)?;
    }
    Ok(())
}

fn ratings(device: &Device) -> Result<()> {
    for (n, bits, k) in [(1, 8, 1), (1023, 24, 7), (1025, 64, 256), (3000, 128, 300), (5000, 64, 5000), (300, 1024, 12)]
    {
        for queries in [1, 6] {
            rated(device, Search { n, queries, bits, spread: 3, k, masked: n == 3000 })?;
        }
    }
    let tiled = tiled(device)?;
    rated(&tiled, Search { n: 20_000, queries: 5, bits: 64, spread: 3, k: 20, masked: true })?;
    // The table of a float query is longer than a binding.
    rated(&tiled, Search { n: 200, queries: 3, bits: 1024, spread: 3, k: 300, masked: false })
}

const PLAIN: Search = Search { n: 0, queries: 5, bits: 64, spread: 0, k: 10, masked: false };

/// Few neighbours, lists of lists: one query at a time, and tiles.
fn few(device: &Device) -> Result<()> {
    for n in [1, 63, 64, 65, 255, 257, 2047, 2048, 2049, 5000] {
        for (queries, spread) in [(1, 0), (4, 3), (5, 3), (17, 40)] {
            for k in [1, 10, 256] {
                nearest(device, Search { n, queries, spread, k, masked: n % 2 == 0, ..PLAIN })?;
            }
        }
    }
    // Lists of lists of lists.
    for (queries, k) in [(1, 256), (1, 1), (5, 200)] {
        nearest(device, Search { n: 70_001, queries, spread: 5, k, ..PLAIN })?;
    }
    Ok(())
}

fn widths(device: &Device) -> Result<()> {
    for bits in [8, 16, 24, 40, 128, 256, 264, 1024, 4096, 8192] {
        for (queries, k) in [(2, 10), (19, 33), (6, 300)] {
            nearest(device, Search { n: 777, queries, bits, spread: 4, k, masked: bits % 16 == 8 })?;
        }
    }
    Ok(())
}

/// More neighbours than lists hold: thresholds, ties in order, sorted runs.
fn many(device: &Device) -> Result<()> {
    for (n, k) in [(300, 257), (300, 300), (2048, 2047), (5000, 257), (5000, 2049), (9001, 9001), (40_000, 30_000)] {
        for spread in [0, 2, 1000] {
            match nearest(device, Search { n, queries: 3, spread, k, masked: n == 5000, bits: 24 }) {
                // The 8 k bytes of one query's neighbours are in one binding, which CI makes as small as 64 KiB.
                Err(error) if matches!(error.downcast_ref(), Some(Error::TooLarge { limit, .. }) if 8 * k as u64 > *limit) =>
                    {}
                found => found?,
            }
        }
    }
    nearest(device, Search { n: 20_000, queries: 18, spread: 3, k: 1000, bits: 128, ..PLAIN })
}

/// Windows of 64 KiB, grids of 1024, and a threshold carried over them.
fn in_windows(device: &Device) -> Result<()> {
    let tiled = tiled(device)?;
    for (n, queries, bits, k) in
        [(40_000, 1, 64, 100), (40_000, 40, 64, 10), (3000, 3, 1024, 256), (200, 9, 8192, 20), (40_000, 5, 16, 3000)]
    {
        for spread in [0, 3] {
            nearest(&tiled, Search { n, queries, bits, spread, k, masked: n == 3000 })?;
        }
    }
    // Beyond what one binding holds of a query's neighbours.
    let search = Search { n: 40_000, queries: 1, k: 40_000, ..PLAIN };
    let queries = codes(&tiled, 1, 64, 0, 3)?;
    ensure!(matches!(index(&tiled, search)?.search(&queries, &options(search)), Err(Error::TooLarge { .. })));
    Ok(())
}

fn removed(device: &Device) -> Result<()> {
    let run = |device: &Device| -> Result<_> {
        let mut index = index(device, Search { n: 3000, spread: 3, ..PLAIN })?;
        index.remove(&(0..3000).step_by(3).collect::<Vec<_>>())?;
        index.add(&codes(device, 100, 64, 3, 9)?)?;
        let found = index.search(&codes(device, 7, 64, 3, 3)?, &SearchOptions::new(50))?;
        Ok((found.ids.to_array()?, found.distances.to_array()?))
    };
    let ((ids, distances), (expected_ids, expected)) = (run(device)?, run(&Device::cpu())?);
    same("distances", &distances, &expected)?;
    same("ids", &ids, &expected_ids)
}

fn nothing(device: &Device) -> Result<()> {
    let none = Search { n: 0, ..PLAIN };
    nearest(device, none)?;
    // More neighbours than the mask leaves, in lists of more words than a workgroup has invocations; fewer codes than neighbours.
    nearest(device, Search { n: 5000, queries: 3, k: 4500, masked: true, ..PLAIN })?;
    nearest(device, Search { n: 200, queries: 40, k: 300, ..PLAIN })?;
    nearest(device, Search { queries: 40, k: 300, ..none })?;
    nearest(device, Search { n: 100, queries: 0, ..PLAIN })?;
    let found = index(device, none)?.within(&codes(device, 3, 64, 0, 3)?, 5, None)?;
    ensure!(found.offsets == [0, 0, 0, 0] && found.ids.to_array()?.is_empty());
    let found = index(device, Search { n: 100, ..PLAIN })?.within(&codes(device, 0, 64, 0, 3)?, 5, None)?;
    ensure!(found.offsets == [0] && found.ids.to_array()?.is_empty());
    Ok(())
}

fn within(device: &Device, search: Search, radius: u32) -> Result<()> {
    poison(device, 1 << 18)?;
    let run = |device: &Device| -> Result<_> {
        let queries = codes(device, search.queries, search.bits, search.spread, 3)?;
        let mask = search.masked.then(|| mask(search.n));
        let found = index(device, search)?.within(&queries, radius, mask.as_ref())?;
        let (hits, one) = (found.ids.len(), |values: Array1<u32>| values.insert_axis(ndarray::Axis(0)));
        Ok((found.offsets, one(found.ids.to_array()?), one(found.distances.to_array()?), hits))
    };
    let (found, expected) = (run(device)?, run(&Device::cpu())?);
    ensure!(found.0 == expected.0, "{search:?} {radius}: {:?}, expected {:?}", found.0, expected.0);
    same((search, radius), &found.2, &expected.2)?;
    same((search, radius), &found.1, &expected.1)?;
    // A single query may be one of those that are near nothing.
    ensure!(radius == 0 || search.queries == 1 || found.3 > 0, "{search:?} {radius}: nothing is found");
    Ok(())
}

fn radii(device: &Device) -> Result<()> {
    for (n, spread, radius) in
        [(1, 0, 64), (2048, 2, 0), (2049, 2, 1), (5000, 3, 2), (5000, 0, 30), (3000, 2, 1000), (300, 5, 64)]
    {
        for queries in [1, 5, 33] {
            within(device, Search { n, queries, spread, masked: n == 3000, ..PLAIN }, radius)?;
        }
    }
    within(device, Search { n: 900, queries: 3, bits: 1024, spread: 2, ..PLAIN }, 3)
}

/// More hits of one query than a binding holds, and of several.
fn radii_in_windows(device: &Device) -> Result<()> {
    let tiled = tiled(device)?;
    within(&tiled, Search { n: 40_000, queries: 2, bits: 16, ..PLAIN }, 9)?;
    within(&tiled, Search { n: 20_000, queries: 20, spread: 2, ..PLAIN }, 1)
}

fn pairs(device: &Device) -> Result<()> {
    let run = |device: &Device, (n, m, bits): (usize, usize, usize)| -> Result<_> {
        poison(device, n * m * 2)?;
        Ok(kernels::hamming(&codes(device, n, bits, 3, 1)?, &codes(device, m, bits, 3, 2)?)?.to_array()?)
    };
    let tiled = tiled(device)?;
    for shape in
        [(0, 3, 8), (3, 0, 8), (1, 1, 8), (15, 17, 16), (16, 256, 24), (17, 255, 64), (3, 513, 1024), (33, 258, 4096)]
    {
        same(shape, &run(device, shape)?, &run(&Device::cpu(), shape)?)?;
        same(shape, &run(&tiled, shape)?, &run(&Device::cpu(), shape)?)?;
    }
    for shape in [(100, 3001, 64), (9, 9999, 256), (200, 2000, 8)] {
        same(shape, &run(&tiled, shape)?, &run(&Device::cpu(), shape)?)?;
    }
    let other = codes(device, 2, 16, 0, 1)?;
    ensure!(matches!(kernels::hamming(&other, &codes(device, 2, 8, 0, 1)?), Err(Error::Argument { .. })));
    Ok(())
}

fn histograms(device: &Device) -> Result<()> {
    let run = |device: &Device, (n, queries, bits): (usize, usize, usize)| -> Result<_> {
        poison(device, queries * (bits + 1) * 4)?;
        let labels = |n: usize, seed| {
            let mut noise = Noise(seed);
            device.tensor(&Array1::from_shape_simple_fn(n, || noise.next() % 5))
        };
        let (base, wanted) = (codes(device, n, bits, 3, 1)?, codes(device, queries, bits, 3, 2)?);
        let (all, relevant) = kernels::hamming_histograms(&base, &labels(n, 1)?, &wanted, &labels(queries, 2)?)?;
        Ok((all.to_array()?, relevant.to_array()?))
    };
    let tiled = tiled(device)?;
    for shape in [(0, 2, 8), (1, 1, 8), (8191, 3, 64), (8193, 20, 128), (500, 7, 2048), (300, 2, 8192)] {
        let (all, relevant) = run(&Device::cpu(), shape)?;
        for device in [device, &tiled] {
            let found = run(device, shape)?;
            same(shape, &found.0, &all)?;
            same(shape, &found.1, &relevant)?;
        }
    }
    Ok(())
}

fn signs(device: &Device) -> Result<()> {
    let tiled = tiled(device)?;
    for (rows, columns) in [(0, 5), (3, 0), (1, 1), (2, 31), (3, 32), (5, 33), (40, 256), (129, 1000), (3, 8192)] {
        let mut noise = Noise(5);
        // Zeros of both signs, subnormal numbers, and what f16 keeps.
        let values = Array2::from_shape_simple_fn((rows, columns), || match noise.next() % 8 {
            0 => 0.0,
            1 => -0.0,
            2 => -1e-40,
            3 => 1e-40,
            _ => (noise.next() % 9) as f32 / 4.0 - 1.0,
        });
        let thresholds = Array1::from_shape_fn(columns, |column| (column % 5) as f32 / 4.0 - 0.5);
        for rule in [SignRule::AtLeast, SignRule::Above] {
            for given in [false, true] {
                let run = |device: &Device| -> Result<_> {
                    poison(device, rows * columns / 8)?;
                    let wanted = device.tensor(&thresholds)?;
                    let half = values.mapv(|value| f16::from_f32(value * if value.abs() < 1e-30 { 1e34 } else { 1.0 }));
                    let single = kernels::sign_pack(&device.tensor(&values)?, given.then_some(&wanted), rule)?;
                    let half = kernels::sign_pack(&device.tensor(&half)?, given.then_some(&wanted), rule)?;
                    Ok((single.to_array()?, half.to_array()?))
                };
                let expected = run(&Device::cpu())?;
                for device in [device, &tiled] {
                    let found = run(device)?;
                    same((rows, columns, rule, given), &found.0, &expected.0)?;
                    same((rows, columns, rule, given, "f16"), &found.1, &expected.1)?;
                }
            }
        }
    }
    for bad in [f32::NAN, f32::INFINITY] {
        let mut values = Array2::<f32>::ones((300, 70));
        (values[[170, 3]], values[[299, 0]]) = (bad, bad);
        let packed = kernels::sign_pack(&tiled.tensor(&values)?, None, SignRule::AtLeast)?.to_array();
        ensure!(matches!(packed, Err(Error::Domain { quantity: "value", index: 11_903, .. })), "{packed:?}");
        let packed =
            kernels::sign_pack(&device.tensor(&values.mapv(f16::from_f32))?, None, SignRule::AtLeast)?.to_array();
        ensure!(matches!(packed, Err(Error::Domain { quantity: "value", index: 11_903, .. })), "{packed:?}");
        let thresholds = device.tensor(&Array1::from_shape_fn(70, |at| if at == 9 { bad } else { 0.0 }))?;
        let packed = kernels::sign_pack(&device.tensor(&values)?, Some(&thresholds), SignRule::AtLeast)?.to_array();
        ensure!(matches!(packed, Err(Error::Domain { quantity: "threshold", index: 9, .. })), "{packed:?}");
    }
    Ok(())
}

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("hamming_from_codes", "few neighbours", few),
        Case::new("hamming_from_distances", "all widths", widths),
        Case::new("hamming_from_lists", "in windows", in_windows),
        Case::new("hamming_thresholds", "many neighbours", many),
        Case::new("hamming_interleave", "removed codes", removed),
        Case::new("hamming_fill", "nothing", nothing),
        Case::new("hamming_compact_write", "within a radius", radii),
        Case::new("hamming_compact_count", "more hits than a binding holds", radii_in_windows),
        Case::new("hamming_distances", "all pairs", pairs),
        Case::new("hamming_histogram_labels", "histograms", histograms),
        Case::new("sign_pack", "signs", signs),
        Case::new("hamming_values", "Jaccard and float distances", ratings),
        Case::new("hamming_from_keys", "Jaccard and float distances", |device| {
            rated(device, Search { n: 2500, spread: 9, k: 100, ..PLAIN })
        }),
        Case::new("hamming_tables", "all bytes", |device| {
            rated(device, Search { n: 257, bits: 8192, k: 257, ..PLAIN })
        }),
        // What the searches above go through, by name.
        Case::new("hamming_histogram", "many neighbours", |device| {
            nearest(device, Search { n: 6000, k: 400, bits: 2048, spread: 9, ..PLAIN })
        }),
        Case::new("hamming_offsets", "several windows", |device| {
            nearest(device, Search { n: 540_000, queries: 1, k: 500, bits: 16, ..PLAIN })
        }),
        Case::new("hamming_merge_runs", "runs", |device| nearest(device, Search { n: 9000, k: 8000, ..PLAIN })),
        Case::new("hamming_pack_pairs", "rows of odd length", |device| {
            let run = |device: &Device| -> Result<_> {
                Ok(kernels::hamming(&codes(device, 301, 8, 3, 1)?, &codes(device, 301, 8, 3, 2)?)?.to_array()?)
            };
            same("odd", &run(device)?, &run(&Device::cpu())?)
        }),
    ]
}
