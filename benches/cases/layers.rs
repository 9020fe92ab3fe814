//! The layers of ranking and vision models: AutoInt's interacting layer, DIN's local activation unit, ELA.
//!
//! Operations. Interacting layer: 8 in h d for the four projections of a field, 4 fields h d for its scores and their sums. Activation unit: two
//! products of d with the first layer's units a behaviour ((Wk - Wd) k and Wp (q * k)), the further layers, 2 d for the sum. ELA: a sum in either
//! direction and two products an element. Bytes: inputs and outputs once (weights stay in the caches); ELA reads its map twice, for the means and
//! for the product.

use anyhow::{Result, ensure};
use ndarray::{Array, Array1, Array2, Array3, Array4, Axis, s};
use orthant::attention::{
    Activation, ActivationUnitOptions, ActivationUnitWeights, ElaVariant, ElaWeights, HiddenLayer, InteractingOptions,
    InteractingWeights, efficient_local_attention, interacting_layer, local_activation_unit,
};
use orthant::{Device, Tensor};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::harness::{Bench, Case, Effort, Place, Traffic, Work, host, staged};

pub fn run(bench: &mut Bench, places: &[Place]) -> Result<()> {
    let small = bench.effort == Effort::Smoke;
    let samples = |count: usize, least: usize| if small { least } else { count };
    // AutoInt on Criteo, DIN on an online catalogue, ELA in the third stage of a ResNet.
    let fields = Interacting::new(samples(1024, 2), 39, 16, 2, 16);
    let clicks = Behaviours::new(samples(512, 3), if small { 7 } else { 100 }, 32, &[80, 40]);
    let map = Map::new([samples(8, 1), 256, samples(28, 5), samples(28, 5)], ElaVariant::Base);
    let places = || places.iter().filter(|place| place.hardware || small);
    let cases = places().map(|place| fields.case(place)).collect::<Result<_>>()?;
    bench.time("layers", cases);
    let cases = places().map(|place| clicks.case(place)).collect::<Result<_>>()?;
    bench.time("layers", cases);
    let cases = places().map(|place| map.case(place)).collect::<Result<_>>()?;
    bench.time("layers", cases);
    Ok(())
}

fn noise<Sh: ndarray::ShapeBuilder>(shape: Sh, seed: u64) -> Array<f32, Sh::Dim> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    Array::from_shape_simple_fn(shape, || random.random_range(-1.0f32..1.0))
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// The largest distance of `actual` from `expected`, over the largest magnitude expected.
fn distance(actual: impl IntoIterator<Item = f32>, expected: &[f64]) -> f64 {
    let size = expected.iter().fold(f64::MIN_POSITIVE, |size, value| size.max(value.abs()));
    actual
        .into_iter()
        .zip(expected)
        .map(|(actual, expected)| (f64::from(actual) - expected).abs() / size)
        .fold(0.0, f64::max)
}

/// A case of a layer that makes a tensor of `inputs`, with weights that are already on the device.
fn layer<'a, I: Send + 'a, D: ndarray::Dimension + 'a>(
    work: Work,
    place: &'a Place,
    upload: impl Fn(&Device) -> orthant::Result<I> + Send + 'a,
    call: impl Fn(&I) -> orthant::Result<Tensor<f32, D>> + Send + 'a,
    check: impl Fn(&Array<f32, D>) -> Result<String> + Send + 'a,
) -> Result<Case<'a>> {
    let device = &place.device;
    Ok(match device.as_gpu() {
        None => {
            let inputs = upload(device)?;
            let run = move || {
                let (result, times) = host(|| call(&inputs))?;
                Ok((result.to_array()?, times))
            };
            Case::new(work, place, run, check)
        }
        Some(gpu) => {
            let run = move || staged(gpu, || upload(device), &call, |result: Tensor<f32, D>| result.to_array());
            Case::new(work, place, run, check)
        }
    })
}

fn passed(what: &str, error: f64, tolerance: f64) -> Result<String> {
    ensure!(error <= tolerance, "{what} is off by {error:e}");
    Ok(format!("{what} in f64 within {error:.0e}"))
}

struct Interacting {
    x: Array3<f32>,
    weights: [Array2<f32>; 4],
    heads: usize,
}

impl Interacting {
    fn new(batch: usize, fields: usize, input: usize, heads: usize, d: usize) -> Self {
        let weights = [1, 2, 3, 4].map(|seed| noise((input, heads * d), seed) * 0.4);
        Self { x: noise((batch, fields, input), 5), weights, heads }
    }

    fn case<'a>(&'a self, place: &'a Place) -> Result<Case<'a>> {
        let (batch, fields, input) = self.x.dim();
        let width = self.weights[0].ncols();
        let rows = (batch * fields) as f64;
        let work = Work {
            kernel: "interacting_layer".into(),
            shape: format!("{batch} x {fields} x {input}, {} x {}", self.heads, width / self.heads),
            dtype: "f32",
            flops: rows * (8.0 * input as f64 + 4.0 * fields as f64) * width as f64,
            bytes: 4.0 * rows * (input + width) as f64,
            traffic: Some(Traffic::Read),
        };
        let [q, k, v, r] = self.weights.each_ref().map(|matrix| matrix.view());
        let weights = InteractingWeights::new(&place.device, &q, &k, &v, Some(&r), self.heads)?;
        let call = move |x: &Tensor<f32, _>| Ok(interacting_layer(x, &weights, &InteractingOptions::new())?.output);
        layer(work, place, |device| device.tensor(&self.x), call, |output| self.check(output))
    }

    /// The last sample against the definition.
    fn check(&self, output: &Array3<f32>) -> Result<String> {
        let x = self.x.index_axis(Axis(0), self.x.dim().0 - 1).mapv(f64::from);
        let [q, k, v, r] = self.weights.each_ref().map(|matrix| x.dot(&matrix.mapv(f64::from)));
        let d = q.ncols() / self.heads;
        let mut worst = 0.0f64;
        for head in 0..self.heads {
            let part = s![.., head * d..(head + 1) * d];
            let mut map = q.slice(part).dot(&k.slice(part).t()).mapv(f64::exp);
            for mut row in map.rows_mut() {
                row /= row.sum();
            }
            let expected = (map.dot(&v.slice(part)) + r.slice(part)).mapv(|value| value.max(0.0));
            let expected: Vec<f64> = expected.iter().copied().collect();
            let actual = output.slice(s![-1, .., head * d..(head + 1) * d]);
            worst = worst.max(distance(actual.iter().copied(), &expected));
        }
        passed("a sample", worst, 1e-5)
    }
}

struct Behaviours {
    candidates: Array2<f32>,
    behaviours: Array2<f32>,
    offsets: Vec<usize>,
    layers: Vec<HiddenLayer>,
    last: Array1<f32>,
}

impl Behaviours {
    /// Every candidate with `mean` behaviours on average, from none to twice as many.
    fn new(candidates: usize, mean: usize, d: usize, units: &[usize]) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(9);
        let mut offsets = vec![0];
        for row in 0..candidates {
            offsets.push(offsets[row] + random.random_range(0..=2 * mean));
        }
        let mut inputs = 4 * d;
        let mut layers = Vec::new();
        for (&units, seed) in units.iter().zip(20..) {
            layers.push(HiddenLayer {
                weights: noise((inputs, units), seed) / (inputs as f32).sqrt(),
                bias: noise(units, seed + 10),
                activation: Activation::Prelu { alpha: noise(units, seed + 20) },
            });
            inputs = units;
        }
        Self {
            candidates: noise((candidates, d), 1),
            behaviours: noise((offsets[candidates], d), 2),
            offsets,
            layers,
            last: noise(inputs, 3),
        }
    }

    fn case<'a>(&'a self, place: &'a Place) -> Result<Case<'a>> {
        let (rows, d) = self.candidates.dim();
        let total = self.behaviours.nrows();
        let products: usize = self.layers.iter().skip(1).map(|layer| layer.weights.len()).sum();
        let each = 4 * d * self.layers[0].bias.len() + 2 * products + 2 * self.last.len() + 2 * d;
        let units: Vec<String> = self.layers.iter().map(|layer| layer.bias.len().to_string()).collect();
        let work = Work {
            kernel: "local_activation_unit".into(),
            shape: format!("{rows} of {total} x {d}, {}", units.join("-")),
            dtype: "f32",
            flops: (total * each) as f64,
            bytes: 4.0 * ((total + 2 * rows) * d) as f64,
            traffic: Some(Traffic::Read),
        };
        let weights = ActivationUnitWeights::new(&place.device, &self.layers, &self.last.view(), 0.1)?;
        let upload = |device: &Device| Ok((device.tensor(&self.candidates)?, device.tensor(&self.behaviours)?));
        let call = move |(q, k): &(Tensor<f32, _>, Tensor<f32, _>)| {
            Ok(local_activation_unit(q, k, &self.offsets, &weights, &ActivationUnitOptions::new())?.output)
        };
        layer(work, place, upload, call, |output| self.check(output))
    }

    /// Some candidates against the network on the concatenation.
    fn check(&self, output: &Array2<f32>) -> Result<String> {
        let (rows, d) = self.candidates.dim();
        let mut worst = 0.0f64;
        for row in (0..rows).step_by(rows.div_ceil(8).max(1)) {
            let mut sum = vec![0.0; d];
            let mut size = f64::MIN_POSITIVE;
            for key in self.offsets[row]..self.offsets[row + 1] {
                let pairs =
                    || (0..d).map(|c| (f64::from(self.candidates[[row, c]]), f64::from(self.behaviours[[key, c]])));
                let (q, k) = (pairs().map(|(q, _)| q), pairs().map(|(_, k)| k));
                let all = q.chain(k).chain(pairs().map(|(q, k)| q - k)).chain(pairs().map(|(q, k)| q * k));
                let mut values: Array1<f64> = all.collect();
                for layer in &self.layers {
                    values = values.dot(&layer.weights.mapv(f64::from)) + layer.bias.mapv(f64::from);
                    if let Activation::Prelu { alpha } = &layer.activation {
                        values.zip_mut_with(alpha, |x, &alpha| *x = x.max(0.0) + f64::from(alpha) * x.min(0.0));
                    }
                }
                let weight = values.dot(&self.last.mapv(f64::from)) + f64::from(0.1f32);
                sum.iter_mut().zip(pairs()).for_each(|(sum, (_, k))| *sum += weight * k);
                size += weight.abs();
            }
            let error = |(actual, expected): (&f32, &f64)| (f64::from(*actual) - expected).abs() / size;
            worst = output.row(row).iter().zip(&sum).map(error).fold(worst, f64::max);
        }
        passed("sums", worst, 1e-5)
    }
}

struct Map {
    x: Array4<f32>,
    convolution: Array3<f32>,
    gamma: Array1<f32>,
    beta: Array1<f32>,
    groups: usize,
}

impl Map {
    fn new(shape: [usize; 4], variant: ElaVariant) -> Self {
        let channels = shape[1];
        let (taps, groups, norms) = variant.sizes(channels);
        Self {
            x: noise(shape, 1) + 0.3,
            convolution: noise((channels, channels / groups, taps), 2),
            gamma: noise(channels, 3),
            beta: noise(channels, 4),
            groups: norms,
        }
    }

    fn case<'a>(&'a self, place: &'a Place) -> Result<Case<'a>> {
        let (batch, channels, height, width) = self.x.dim();
        let work = Work {
            kernel: "efficient_local_attention".into(),
            shape: format!("{batch} x {channels} x {height} x {width}"),
            dtype: "f32",
            flops: 4.0 * self.x.len() as f64,
            bytes: 12.0 * self.x.len() as f64,
            traffic: Some(Traffic::Copy),
        };
        let (gamma, beta) = (self.gamma.view(), self.beta.view());
        let weights = ElaWeights::new(&place.device, &self.convolution.view(), None, &gamma, &beta, self.groups)?;
        let call = move |x: &Tensor<f32, _>| efficient_local_attention(x, &weights);
        layer(work, place, |device| device.tensor(&self.x), call, |output| self.check(output))
    }

    /// The first group of channels of the last map against the definition.
    fn check(&self, output: &Array4<f32>) -> Result<String> {
        let size = self.x.dim().1 / self.groups;
        let x = self.x.slice(s![-1, ..size, .., ..]).mapv(f64::from);
        let (Some(rows), Some(columns)) = (x.mean_axis(Axis(2)), x.mean_axis(Axis(1))) else {
            anyhow::bail!("an empty map");
        };
        let (rows, columns) = (self.gates(&rows), self.gates(&columns));
        let expected: Vec<f64> = x.indexed_iter().map(|((c, i, j), x)| x * rows[[c, i]] * columns[[c, j]]).collect();
        let actual = output.slice(s![-1, ..size, .., ..]);
        passed("a group", distance(actual.iter().copied(), &expected), 1e-5)
    }

    /// The gates of strips (channels of a group, strip), each channel with its own convolution.
    fn gates(&self, strips: &Array2<f64>) -> Array2<f64> {
        let taps = self.convolution.dim().2;
        let mut out = Array2::zeros(strips.dim());
        for ((c, i), out) in out.indexed_iter_mut() {
            for tap in 0..taps {
                let at = (i + tap).wrapping_sub(taps / 2);
                *out += strips.get([c, at]).map_or(0.0, |strip| f64::from(self.convolution[[c, 0, tap]]) * strip);
            }
        }
        let mean = out.iter().sum::<f64>() / out.len() as f64;
        let variance = out.iter().map(|value: &f64| (value - mean).powi(2)).sum::<f64>() / out.len() as f64;
        for ((c, _), value) in out.indexed_iter_mut() {
            let normal = (*value - mean) / (variance + 1e-5).sqrt();
            *value = sigmoid(normal * f64::from(self.gamma[c]) + f64::from(self.beta[c]));
        }
        out
    }
}
