//! Search among binary codes on GPUs; the base is there already, queries too.
//!
//! Bytes: the codes, once a call. Operations: an exclusive or, a count of bits and an addition for each word of 32 bits of a code and each query.
//!
//! Floors. One query reads the base once: 10M x 256 bits are 320 MB, 67 us at 4.8 TB/s, and writes k of every 2048 codes. A batch reads the base once for
//! 16 queries, and from about 4 queries a read on counting bits is what takes time: 16 counts a clock and multiprocessor on NVIDIA's, a quarter of the rate of
//! additions, so 1000 queries over 1M x 256 bits, 8e9 words, take 2.4 ms on 132 multiprocessors at 1.6 GHz; keys of a tile (2 bytes a pair, written and read in
//! the cache) are another 4e9 bytes. More than 256 neighbours read the keys three times.

use anyhow::{Result, ensure};
use ndarray::Array2;
use orthant::hamming::{Codes, Index, Neighbours, SearchOptions};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::harness::{Bench, Case, Effort, Goal, Place, Traffic, Work, staged};

/// Bits, millions of codes, queries, k, and the share of the copy bandwidth that one query should reach.
type Shape = (usize, f64, usize, usize, Option<f64>);
const SHAPES: &[Shape] = &[
    (64, 1.0, 1, 10, None),
    (256, 10.0, 1, 10, Some(0.7)),
    (256, 1.0, 1, 10_000, None),
    (64, 1.0, 1000, 100, None),
    (256, 1.0, 1000, 100, None),
    (1024, 1.0, 100, 100, None),
];

/// Words times queries that a software adapter is asked for at most.
const SOFTWARE: usize = 20_000_000;

pub fn run(bench: &mut Bench, places: &[Place]) -> Result<()> {
    let (shapes, scale) = match bench.effort {
        Effort::Smoke => (&SHAPES[..1], 0.002),
        Effort::Quick => (SHAPES, 0.01),
        Effort::Full => (SHAPES, 1.0),
    };
    for &(bits, millions, count, k, goal) in shapes {
        let n = (millions * scale * 1e6) as usize;
        let fits = |place: &&Place| !place.device.is_cpu() && (place.hardware || n * count * bits / 32 <= SOFTWARE);
        let places: Vec<&Place> = places.iter().filter(fits).collect();
        if places.is_empty() {
            continue;
        }
        let inputs = Inputs::new(bits, n, count, k);
        let cases = places.iter().map(|place| inputs.case(place)).collect::<Result<_>>()?;
        let seconds = bench.time("hamming", cases);
        for (place, seconds) in places.iter().zip(&seconds) {
            if let (Some(seconds), Some(goal), true, Effort::Full) = (seconds, goal, place.hardware, bench.effort) {
                let what = format!("one query over {n} x {bits} bits: share of the copy bandwidth, {}", place.name);
                let measured = inputs.bytes() / seconds / place.limits.copy;
                bench.goal(Goal { what, measured, at_least: Some(goal), at_most: None });
            }
        }
    }
    Ok(())
}

struct Inputs {
    bits: usize,
    k: usize,
    base: Array2<u8>,
    rows: Array2<u8>,
}

impl Inputs {
    fn new(bits: usize, n: usize, count: usize, k: usize) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(2);
        let mut noise = |n| {
            let mut codes = Array2::<u8>::zeros((n, bits / 8));
            codes.iter_mut().for_each(|byte| *byte = random.random());
            codes
        };
        Self { bits, k, base: noise(n), rows: noise(count) }
    }

    fn bytes(&self) -> f64 {
        self.base.len() as f64
    }

    fn case<'a>(&'a self, place: &'a Place) -> Result<Case<'a>> {
        let n = self.base.nrows();
        let work = Work {
            kernel: if self.rows.nrows() == 1 { "hamming, one query" } else { "hamming" }.into(),
            shape: format!("{} x {n} x {} bits, k {}", self.rows.nrows(), self.bits, self.k),
            dtype: "u1",
            flops: 3.0 * self.bytes() / 4.0 * self.rows.nrows() as f64,
            bytes: self.bytes(),
            traffic: Some(Traffic::Copy),
        };
        let Some(gpu) = place.device.as_gpu() else { anyhow::bail!("{} is no GPU", place.name) };
        let mut index = Index::new(&place.device, self.bits)?;
        index.add(&Codes::from_bytes(&place.device, &self.base.view())?)?;
        let options = SearchOptions::new(self.k);
        let run = move || {
            let upload = || Codes::from_bytes(&place.device, &self.rows.view());
            let readback = |found: Neighbours<u32>| Ok((found.ids.to_array()?, found.distances.to_array()?));
            staged(gpu, upload, |queries| index.search(queries, &options), readback)
        };
        Ok(Case::new(work, place, run, move |(ids, distances)| {
            // The last query against all codes, sorted.
            let last = self.rows.nrows() - 1;
            let distance = |id: usize| -> u32 {
                self.rows.row(last).iter().zip(self.base.row(id)).map(|(a, b)| (a ^ b).count_ones()).sum()
            };
            let mut expected: Vec<(u32, u32)> = (0..n).map(|id| (distance(id), id as u32)).collect();
            expected.sort_unstable();
            let found = distances.row(last).into_iter().copied().zip(ids.row(last).into_iter().copied());
            ensure!(found.eq(expected.into_iter().take(self.k)), "ids or distances differ from those of all, sorted");
            Ok("ids and distances equal to those of all, sorted".into())
        }))
    }
}
