//! Attention: prefill, decode, many small ones as in ranking models, and gradients.
//!
//! Operations: 2 (d + d_v) for each key that a query sees (10 d for its gradients: five products). Bytes: q, k, v and the output once (the gradients
//! too). A prefill is limited by arithmetic, a decode by the keys and values that it reads.

use anyhow::{Result, ensure};
use half::f16;
use ndarray::{Array4, Ix4};
use orthant::attention::{AttentionElement, Options, Output, attention, attention_backward};
use orthant::{Device, Tensor};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::harness::{Bench, Case, Effort, Place, Traffic, Work, host, staged};

/// Batch, heads of q and of k, lengths of q and of k, d.
type Shape = ([usize; 6], bool);

const SMOKE: &[Shape] = &[([1, 2, 1, 9, 17, 8], true)];
const QUICK: &[Shape] = &[([1, 8, 8, 512, 512, 64], false), ([1, 32, 8, 1, 4096, 128], false)];
const FULL: &[Shape] = &[
    ([1, 4, 4, 128, 128, 64], true),
    ([1, 8, 8, 512, 512, 64], false),
    ([1, 8, 8, 512, 512, 64], true),
    ([1, 8, 8, 2048, 2048, 64], false),
    ([1, 8, 8, 2048, 2048, 64], true),
    ([1, 32, 8, 512, 512, 128], true),
    ([1, 32, 8, 1, 4096, 128], false),
    ([1, 32, 8, 4, 4096, 128], true),
    ([16, 32, 8, 1, 4096, 128], false),
    ([1024, 2, 2, 39, 39, 16], false),
];

/// Operations that a software adapter is asked for at most.
const SOFTWARE: f64 = 100e6;

pub fn run(bench: &mut Bench, places: &[Place]) -> Result<()> {
    let shapes = match bench.effort {
        Effort::Smoke => SMOKE,
        Effort::Quick => QUICK,
        Effort::Full => FULL,
    };
    for shape in shapes {
        let (single, half) = (Inputs::<f32>::new(shape), Inputs::<f16>::new(shape));
        let mut cases = Vec::new();
        for place in places.iter().filter(|place| place.hardware || single.flops() <= SOFTWARE) {
            cases.push(single.case(place)?);
            cases.push(half.case(place)?);
            let [_, _, _, q_len, kv_len, _] = shape.0;
            if q_len > 1 && q_len.max(kv_len) <= 512 {
                cases.push(single.gradients(place)?);
            }
        }
        bench.time("attention", cases);
    }
    Ok(())
}

struct Inputs<T> {
    shape: Shape,
    q: Array4<T>,
    k: Array4<T>,
    v: Array4<T>,
}

impl<T: AttentionElement> Inputs<T> {
    fn new(shape: &Shape) -> Self {
        let [batch, q_heads, kv_heads, q_len, kv_len, d] = shape.0;
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let mut noise = |heads, length| {
            Array4::from_shape_simple_fn((batch, heads, length, d), || T::narrow(random.random_range(-1.0f32..1.0)))
        };
        Self { shape: *shape, q: noise(q_heads, q_len), k: noise(kv_heads, kv_len), v: noise(kv_heads, kv_len) }
    }

    /// Pairs of a query and a key that it sees, over all heads.
    fn pairs(&self) -> f64 {
        let ([batch, q_heads, _, q_len, kv_len, _], causal) = self.shape;
        let seen = |i: usize| if causal { (i + 1 + kv_len).saturating_sub(q_len).min(kv_len) } else { kv_len };
        (batch * q_heads) as f64 * (0..q_len).map(|i| seen(i) as f64).sum::<f64>()
    }

    fn flops(&self) -> f64 {
        4.0 * self.shape.0[5] as f64 * self.pairs()
    }

    fn work(&self, kernel: &str, factor: f64) -> Work {
        let ([batch, q_heads, kv_heads, q_len, kv_len, d], causal) = self.shape;
        let heads = if q_heads == kv_heads { q_heads.to_string() } else { format!("{q_heads}/{kv_heads}") };
        let mask = if causal { " causal" } else { "" };
        let elements = 2 * self.q.len() + self.k.len() + self.v.len();
        Work {
            kernel: kernel.into(),
            shape: format!("{batch}, {heads}, {q_len} x {kv_len}, {d}{mask}"),
            dtype: T::NAME,
            flops: factor * self.flops(),
            bytes: factor.floor() * (elements * size_of::<T>()) as f64,
            traffic: Some(Traffic::Read),
        }
    }

    fn options(&self) -> Options {
        if self.shape.1 { Options::new().causal() } else { Options::new() }
    }

    fn on(&self, device: &Device) -> orthant::Result<[Tensor<T, Ix4>; 3]> {
        Ok([device.tensor(&self.q)?, device.tensor(&self.k)?, device.tensor(&self.v)?])
    }

    fn case<'a>(&'a self, place: &'a Place) -> Result<Case<'a>> {
        let device = &place.device;
        let options = self.options();
        let call = move |[q, k, v]: &[Tensor<T, Ix4>; 3]| attention(q, k, v, &options);
        let check = |output: &Array4<T>| self.check(output);
        Ok(match device.as_gpu() {
            None => {
                let inputs = self.on(device)?;
                let run = move || {
                    let (result, times) = host(|| call(&inputs))?;
                    Ok((result.output.to_array()?, times))
                };
                Case::new(self.work("attention", 1.0), place, run, check)
            }
            Some(gpu) => {
                let readback = |result: Output<T>| result.output.to_array();
                let run = move || staged(gpu, || self.on(device), &call, readback);
                Case::new(self.work("attention", 1.0), place, run, check)
            }
        })
    }

    /// Some rows of the output against the definition in f64, within 1e-5 of the row (f16: 2e-3).
    fn check(&self, output: &Array4<T>) -> Result<String> {
        let ([batch, q_heads, kv_heads, q_len, kv_len, d], causal) = self.shape;
        ensure!(output.dim() == (batch, q_heads, q_len, d), "the output is {:?}", output.dim());
        let wide = |value: T| f64::from(value.widen());
        let rows = batch * q_heads * q_len;
        let mut worst = 0.0f64;
        for row in (0..rows).step_by(rows.div_ceil(24).max(1) | 1) {
            let (b, h, i) = (row / q_len / q_heads, row / q_len % q_heads, row % q_len);
            let kv = h * kv_heads / q_heads;
            let seen = if causal { i + 1 + kv_len - q_len } else { kv_len };
            let score = |j: usize| {
                (0..d).map(|c| wide(self.q[[b, h, i, c]]) * wide(self.k[[b, kv, j, c]])).sum::<f64>()
                    / (d as f64).sqrt()
            };
            let weights: Vec<f64> = (0..seen).map(|j| score(j).exp()).collect();
            let total: f64 = weights.iter().sum();
            let expected: Vec<f64> = (0..d)
                .map(|c| {
                    weights.iter().enumerate().map(|(j, weight)| weight * wide(self.v[[b, kv, j, c]])).sum::<f64>()
                        / total
                })
                .collect();
            let size = expected.iter().fold(0.0f64, |size, value| size.max(value.abs()));
            for (c, expected) in expected.iter().enumerate() {
                worst = worst.max((wide(output[[b, h, i, c]]) - expected).abs() / size);
            }
        }
        let tolerance = if T::NAME == "f16" { 2e-3 } else { 1e-5 };
        ensure!(worst <= tolerance, "a row is off by {worst:e}");
        Ok(format!("rows in f64 within {worst:.0e}"))
    }
}

impl Inputs<f32> {
    /// The gradients of the sum of squares of the output, halved: its own output is its gradient.
    fn gradients<'a>(&'a self, place: &'a Place) -> Result<Case<'a>> {
        let device = &place.device;
        let options = self.options().lse();
        let forward = move |device: &Device| -> orthant::Result<_> {
            let [q, k, v] = self.on(device)?;
            let output = attention(&q, &k, &v, &options)?;
            Ok((q, k, v, output))
        };
        let options = self.options().lse();
        type Forward = (Tensor<f32, Ix4>, Tensor<f32, Ix4>, Tensor<f32, Ix4>, Output<f32>);
        let call =
            move |(q, k, v, output): &Forward| Ok(attention_backward(q, k, v, output, &output.output, &options)?.q);
        let check = |gradient: &Array4<f32>| self.check_gradient(gradient);
        Ok(match device.as_gpu() {
            None => {
                let inputs = forward(device)?;
                let run = move || {
                    let (gradient, times) = host(|| call(&inputs))?;
                    Ok((gradient.to_array()?, times))
                };
                Case::new(self.work("attention_backward", 2.5), place, run, check)
            }
            Some(gpu) => {
                let run =
                    move || staged(gpu, || forward(device), &call, |gradient: Tensor<f32, Ix4>| gradient.to_array());
                Case::new(self.work("attention_backward", 2.5), place, run, check)
            }
        })
    }

    /// Along a random direction of q, against the difference that it makes to the sum of squares, in f64.
    fn check_gradient(&self, gradient: &Array4<f32>) -> Result<String> {
        ensure!(gradient.dim() == self.q.dim(), "the gradient is {:?}", gradient.dim());
        let ([_, q_heads, kv_heads, q_len, kv_len, d], causal) = self.shape;
        let (h, i) = (q_heads - 1, q_len / 2);
        let kv = h * kv_heads / q_heads;
        let seen = if causal { i + 1 + kv_len - q_len } else { kv_len };
        let direction: Vec<f64> = (0..d).map(|c| if c % 3 == 0 { 1.0 } else { -0.5 }).collect();
        let half_square = |step: f64| {
            let score = |j: usize| {
                let q = |c: usize| f64::from(self.q[[0, h, i, c]]) + step * direction[c];
                (0..d).map(|c| q(c) * f64::from(self.k[[0, kv, j, c]])).sum::<f64>() / (d as f64).sqrt()
            };
            let weights: Vec<f64> = (0..seen).map(|j| score(j).exp()).collect();
            let total: f64 = weights.iter().sum();
            let output = |c: usize| {
                weights.iter().enumerate().map(|(j, weight)| weight * f64::from(self.v[[0, kv, j, c]])).sum::<f64>()
                    / total
            };
            (0..d).map(|c| output(c).powi(2)).sum::<f64>() / 2.0
        };
        let expected = (half_square(1e-4) - half_square(-1e-4)) / 2e-4;
        let along = |c: usize| f64::from(gradient[[0, h, i, c]]) * direction[c];
        let (actual, size) = ((0..d).map(along).sum::<f64>(), (0..d).map(|c| along(c).abs()).sum::<f64>());
        let error = (actual - expected).abs() / size;
        // The difference is good to 1e-8, the gradient to f32's roundings of its terms.
        ensure!(error <= 1e-4, "along q it is {actual:e}, expected {expected:e}");
        Ok(format!("a difference in f64 within {error:.0e}"))
    }
}
