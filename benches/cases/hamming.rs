//! Search among binary codes, uniform ones: what a query costs does not hang on them beyond the few that it keeps.
//!
//! Bytes: the codes, once a call. Operations: an exclusive or, a count of bits and an addition for each byte of a code and each query; there is no limit
//! measured for them, so the floor is that of reading, which one query should come near and a batch does not.

use anyhow::{Result, ensure};
use ndarray::Array2;
use orthant::Device;
use orthant::hamming::{Codes, Index, SearchOptions};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::harness::{Bench, Case, Effort, Goal, Place, Traffic, Work, host};

/// Bits, millions of codes, queries, k, and the share of the read bandwidth that one query should reach on one thread.
type Shape = (usize, f64, usize, usize, Option<f64>);
const SHAPES: &[Shape] = &[
    (64, 1.0, 1, 10, None),
    (256, 1.0, 1, 10, None),
    (1024, 1.0, 1, 10, Some(0.78)),
    (256, 10.0, 1, 10, Some(0.78)),
    (64, 1.0, 100, 100, None),
    (256, 1.0, 100, 100, None),
    (1024, 1.0, 100, 100, None),
    (256, 1.0, 1, 10_000, None),
];

pub fn run(bench: &mut Bench, places: &[Place]) -> Result<()> {
    let (shapes, scale) = match bench.effort {
        Effort::Smoke => (&SHAPES[..1], 0.002),
        Effort::Quick => (SHAPES, 0.1),
        Effort::Full => (SHAPES, 1.0),
    };
    for &(bits, millions, count, k, goal) in shapes {
        let inputs = Inputs::new(bits, (millions * scale * 1e6) as usize, count, k)?;
        let places: Vec<_> = places.iter().filter(|place| place.device.is_cpu()).collect();
        let cases = places.iter().map(|place| inputs.case(place)).collect();
        let seconds = bench.time("hamming", cases);
        if bench.effort != Effort::Full {
            continue;
        }
        for (place, seconds) in places.iter().zip(&seconds) {
            if let (Some(seconds), Some(goal), Some(1)) = (seconds, goal, place.threads) {
                let what =
                    format!("one query over {} x {bits} bits: share of the read bandwidth, {}", inputs.n, place.name);
                let measured = inputs.bytes() / seconds / place.limits.read;
                bench.goal(Goal { what, measured, at_least: Some(goal), at_most: None });
            }
        }
        if let ([Some(one), Some(two)], 1) = (seconds.as_slice(), count)
            && places[1].threads == Some(2)
        {
            let what = format!("one query over {} x {bits} bits, k {k}: two threads over one", inputs.n);
            bench.goal(Goal { what, measured: one / two, at_least: Some(1.8), at_most: None });
        }
    }
    super::hamming_gpu::run(bench, places)
}

struct Inputs {
    n: usize,
    bits: usize,
    k: usize,
    base: Array2<u8>,
    rows: Array2<u8>,
    index: Index,
    queries: Codes,
}

impl Inputs {
    fn new(bits: usize, n: usize, count: usize, k: usize) -> Result<Self> {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let mut noise = |n| {
            let mut codes = Array2::<u8>::zeros((n, bits / 8));
            codes.iter_mut().for_each(|byte| *byte = random.random());
            codes
        };
        let (base, rows) = (noise(n), noise(count));
        let mut index = Index::new(&Device::Cpu, bits)?;
        index.add(&Codes::from_bytes(&Device::Cpu, &base.view())?)?;
        let queries = Codes::from_bytes(&Device::Cpu, &rows.view())?;
        Ok(Self { n, bits, k, base, rows, index, queries })
    }

    fn bytes(&self) -> f64 {
        self.base.len() as f64
    }

    fn case<'a>(&'a self, place: &'a Place) -> Case<'a> {
        let work = Work {
            kernel: if self.rows.nrows() == 1 { "hamming, one query" } else { "hamming" }.into(),
            shape: format!("{} x {} x {} bits, k {}", self.rows.nrows(), self.n, self.bits, self.k),
            dtype: "u1",
            flops: 3.0 * self.bytes() * self.rows.nrows() as f64,
            bytes: self.bytes(),
            traffic: Some(Traffic::Read),
        };
        let options = SearchOptions::new(self.k);
        let run = move || {
            let (found, times) = host(|| self.index.search(&self.queries, &options))?;
            Ok(((found.ids.to_array()?, found.distances.to_array()?), times))
        };
        Case::new(work, place, run, |(ids, distances)| {
            // The first query against all codes, sorted.
            let distance = |id: usize| -> u32 {
                self.rows.row(0).iter().zip(self.base.row(id)).map(|(a, b)| (a ^ b).count_ones()).sum()
            };
            let mut expected: Vec<(u32, u32)> = (0..self.n).map(|id| (distance(id), id as u32)).collect();
            expected.sort();
            let found = distances.row(0).into_iter().copied().zip(ids.row(0).into_iter().copied());
            ensure!(found.eq(expected.into_iter().take(self.k)), "ids or distances differ from those of all, sorted");
            Ok("ids and distances equal to those of all, sorted".into())
        })
    }
}
