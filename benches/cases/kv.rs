//! Decoding over a low-rank cache, beside decoding over all keys and values in f16.
//!
//! Operations: 2 (rank of keys + rank of values) for each query head and token; 4 d of the dense one. Bytes: latents with their minima and scales,
//! exact rows; keys and values of the dense one.
//!
//! Floor of a decode on a GPU: those bytes over the bandwidth, 0.625 bytes a latent at 4 bits with minimum and scale, which is 2 / 0.625 = 3.2 multiply-adds
//! a byte for each query head of a group besides one to make the latent: at 4 heads a group 16 operations a byte, near what hardware does of f32 in the time
//! of a byte. What our kernels move beside: parts (rank + 2 floats for each row of 4 and split of at least 256 tokens: 1056 bytes beside the 256 rank 1.25 of
//! its latents of keys and values, 5 % at rank 64), and the queries absorbed for each frame block (4 (rank + 1) floats written and read a block and head of
//! keys: 2080 bytes beside 64 rank 1.25 = 5120 at block 64, where the latter are read once, and none to speak of without blocks).

use anyhow::{Result, ensure};
use half::f16;
use ndarray::{Array4, Ix4};
use orthant::attention::{Options, Output, attention};
use orthant::kv::{AttendOptions, CacheOptions, KvCache, LatentBits, Sequence};
use orthant::{Device, Tensor};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::harness::{Bench, Case, Effort, Goal, Place, Traffic, Work, host, staged};

/// Heads of q and of k, d.
const HEADS: [usize; 3] = [32, 8, 128];

/// Rank, bits, frame block, and how many times as fast as the dense one it should be on one thread, and on a hardware GPU.
type Variant = (usize, LatentBits, Option<usize>, Option<[f64; 2]>);
const VARIANTS: &[Variant] = &[
    (64, LatentBits::Four, None, Some([3.0, 4.0])),
    (32, LatentBits::Four, None, Some([5.0, 8.0])),
    (64, LatentBits::Four, Some(64), None),
    (64, LatentBits::Four, Some(256), None),
    (64, LatentBits::Eight, None, None),
    (64, LatentBits::Sixteen, None, None),
];

pub fn run(bench: &mut Bench, places: &[Place]) -> Result<()> {
    let tokens = match bench.effort {
        Effort::Smoke => 300,
        Effort::Quick => 8192,
        Effort::Full => 32768,
    };
    let variants = if bench.effort == Effort::Smoke { &VARIANTS[..1] } else { VARIANTS };
    let inputs = Inputs::new(tokens);
    for place in places {
        let caches = variants.iter().map(|variant| inputs.cache(&place.device, variant)).collect::<Result<Vec<_>>>()?;
        let mut cases = vec![inputs.dense(place)?];
        for (variant, cache) in variants.iter().zip(&caches) {
            cases.push(inputs.latent(place, variant, cache)?);
        }
        let count = cases.len();
        bench.time("kv", cases);
        // On a GPU what it computes, not what it is sent.
        let rows = &bench.rows[bench.rows.len() - count..];
        let seconds: Vec<_> = rows.iter().map(|row| row.kernel_seconds.or(row.seconds)).collect();
        // Of goals, the first is that of one thread, the second that of a GPU.
        let which = match place.device.is_cpu() {
            true if place.threads == Some(1) => 0,
            false if place.hardware => 1,
            _ => continue,
        };
        let Some(dense) = seconds[0].filter(|_| bench.effort == Effort::Full) else {
            continue;
        };
        for (&(rank, bits, _, goal), seconds) in variants.iter().zip(&seconds[1..]) {
            if let (Some(at_least), Some(seconds)) = (goal, seconds) {
                let what = format!("rank {rank}, {} bits, {tokens} tokens: times as fast as dense", bits.count());
                let at_least = Some(at_least[which]);
                bench.goal(Goal { what, measured: dense / seconds, at_least, at_most: None });
            }
        }
    }
    Ok(())
}

struct Inputs {
    q: Array4<f16>,
    k: Array4<f16>,
    v: Array4<f16>,
}

type Cached = (KvCache, Sequence);

impl Inputs {
    fn new(tokens: usize) -> Self {
        let [q_heads, kv_heads, d] = HEADS;
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let mut noise = |heads, length| {
            Array4::from_shape_simple_fn((1, heads, length, d), || f16::from_f32(random.random_range(-1.0f32..1.0)))
        };
        Self { q: noise(q_heads, 1), k: noise(kv_heads, tokens), v: noise(kv_heads, tokens) }
    }

    fn tokens(&self) -> usize {
        self.k.dim().2
    }

    /// Projections that keep the first channels.
    fn cache(&self, device: &Device, &(rank, bits, block, _): &Variant) -> Result<Cached> {
        let [_, kv_heads, d] = HEADS;
        let options = CacheOptions::new().bits(bits, bits);
        let mut cache = KvCache::of_leading_channels(device, (kv_heads, d), rank, block, &options)?;
        let sequence = cache.insert()?;
        cache.append(0, &[sequence], &device.tensor(&self.k)?, &device.tensor(&self.v)?)?;
        Ok((cache, sequence))
    }

    fn work(&self, kernel: &str, ranks: usize, bytes: f64) -> Work {
        let [q_heads, kv_heads, d] = HEADS;
        Work {
            kernel: kernel.into(),
            shape: format!("{q_heads}/{kv_heads}, 1 x {}, {d}", self.tokens()),
            dtype: "f16",
            flops: 2.0 * (ranks * q_heads * self.tokens()) as f64,
            bytes,
            traffic: Some(Traffic::Read),
        }
    }

    fn dense<'a>(&'a self, place: &'a Place) -> Result<Case<'a>> {
        let device = &place.device;
        let on = move || Ok([device.tensor(&self.q)?, device.tensor(&self.k)?, device.tensor(&self.v)?]);
        let call = |[q, k, v]: &[Tensor<f16, Ix4>; 3]| attention(q, k, v, &Options::new());
        let work = self.work("attention", 2 * HEADS[2], (4 * self.k.len()) as f64);
        let check = |output: &Array4<f16>| {
            ensure!(output.iter().all(|x| x.to_f32().is_finite()), "an output is not finite");
            Ok("finite; its own family checks it".into())
        };
        Ok(match device.as_gpu() {
            None => {
                let inputs = on()?;
                let run = move || {
                    let (result, times) = host(|| call(&inputs))?;
                    Ok((result.output.to_array()?, times))
                };
                Case::new(work, place, run, check)
            }
            Some(gpu) => {
                let run = move || staged(gpu, on, call, |result: Output<f16>| result.output.to_array());
                Case::new(work, place, run, check)
            }
        })
    }

    fn latent<'a>(&'a self, place: &'a Place, variant: &Variant, cached: &'a Cached) -> Result<Case<'a>> {
        let (cache, sequence) = cached;
        let &(rank, bits, block, _) = variant;
        let call = move |q: &Tensor<f16, Ix4>| cache.attend(0, &[*sequence], q, &AttendOptions::new());
        let frame = block.map_or(String::new(), |block| format!(" block {block}"));
        let kernel = format!("kv rank {rank} {} bits{frame}", bits.count());
        let work = self.work(&kernel, 2 * rank, cache.bytes() as f64);
        let steps = f64::from(if bits.quantised() { (1u32 << bits.count()) - 1 } else { 2048 });
        let check = move |output: &Array4<f16>| self.check(output, rank, block, 2.0 / steps);
        Ok(match place.device.as_gpu() {
            None => {
                let q = place.device.tensor(&self.q)?;
                let run = move || {
                    let (result, times) = host(|| call(&q))?;
                    Ok((result.output.to_array()?, times))
                };
                Case::new(work, place, run, check)
            }
            Some(gpu) => {
                let on = move || place.device.tensor(&self.q);
                let run = move || staged(gpu, on, call, |result: Output<f16>| result.output.to_array());
                Case::new(work, place, run, check)
            }
        })
    }

    /// Some heads against attention in f64 over keys and values without the channels that were left out, but for exact rows.
    fn check(&self, output: &Array4<f16>, rank: usize, block: Option<usize>, step: f64) -> Result<String> {
        let [q_heads, kv_heads, d] = HEADS;
        let (tokens, mut worst) = (self.tokens(), 0.0f64);
        let boundary = tokens.saturating_sub(32) / 32 * 32;
        for head in [0, q_heads / 2 + 1, q_heads - 1] {
            let kv = head * kv_heads / q_heads;
            let channels = |n: usize| if n < 4 || n >= boundary { d } else { rank };
            let score = |n: usize| {
                // Of the rotations of q and k to the origin of the block.
                let angles: Vec<(f64, f64)> = match block {
                    Some(block) if channels(n) < d => {
                        let angle = |i: usize| (n / block * block) as f64 * 1e4f64.powf(-2.0 * i as f64 / d as f64);
                        (0..d / 2).map(|i| angle(i).sin_cos()).collect()
                    }
                    _ => vec![(0.0, 1.0); d / 2],
                };
                let turned = |row: &dyn Fn(usize) -> f64, c: usize| {
                    let ((sin, cos), half) = (angles[c % (d / 2)], d / 2);
                    if c < half { row(c) * cos + row(c + half) * sin } else { row(c) * cos - row(c - half) * sin }
                };
                let (q, k) = (|c| self.q[[0, head, 0, c]].to_f64(), |c| self.k[[0, kv, n, c]].to_f64());
                (0..channels(n)).map(|c| turned(&q, c) * turned(&k, c)).sum::<f64>() / (d as f64).sqrt()
            };
            let weights: Vec<f64> = (0..tokens).map(|n| score(n).exp()).collect();
            let total: f64 = weights.iter().sum();
            let spread = weights.iter().map(|weight| weight * weight).sum::<f64>().sqrt() / total;
            for c in 0..d {
                let terms = weights.iter().enumerate().filter(|(n, _)| c < channels(*n));
                let expected = terms.map(|(n, weight)| weight * self.v[[0, kv, n, c]].to_f64()).sum::<f64>() / total;
                // Errors of latents are noise of up to half a step, on weights by way of scores and on values; 6 of their deviations, and f16 of the output.
                let tolerance = 6.0 * step * spread + 1e-3 * expected.abs() + 1e-6;
                worst = worst.max((output[[0, head, 0, c]].to_f64() - expected).abs() / tolerance);
            }
        }
        ensure!(worst <= 1.0, "an output is {worst:.2} times as far off as rounding its latents explains");
        Ok(format!("f64 within {worst:.2} of its rounding"))
    }
}
