//! Attention and its gradients in f64, row by row with every score at hand, and how far f32 may be from them.
#![allow(dead_code, reason = "each test binary uses a part")]

use anyhow::{Result, ensure};
use half::f16;
use ndarray::{Array1, Array3, Array4, Ix4};
use orthant::attention::{AttentionElement, Gradients, Options, Output, attention, attention_backward};
use orthant::{Device, Tensor};

use super::compare;

/// One problem. `Default` is a small plain one.
#[derive(Debug, Clone)]
pub struct Setup {
    pub batch: usize,
    pub q_heads: usize,
    pub kv_heads: usize,
    pub q_len: usize,
    pub kv_len: usize,
    pub d: usize,
    pub d_v: usize,
    pub scale: Option<f32>,
    pub causal: bool,
    pub window: Option<usize>,
    pub softcap: Option<f32>,
    pub alibi: Option<Vec<f32>>,
    pub sinks: Option<Vec<f32>>,
    pub bias: Option<Array4<f32>>,
    pub key_lengths: Option<Vec<usize>>,
    pub ragged: Option<(Vec<usize>, Vec<usize>)>,
    /// Elements of q and k are below it; those of v and of the gradient below 1.
    pub size: f32,
    pub seed: u32,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            batch: 1,
            q_heads: 2,
            kv_heads: 1,
            q_len: 5,
            kv_len: 7,
            d: 3,
            d_v: 4,
            scale: None,
            causal: false,
            window: None,
            softcap: None,
            alibi: None,
            sinks: None,
            bias: None,
            key_lengths: None,
            ragged: None,
            size: 1.5,
            seed: 1,
        }
    }
}

/// Repeatable values in [-1, 1).
pub fn noise(shape: [usize; 4], seed: u32) -> Array4<f32> {
    let mut state = seed.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
    Array4::from_shape_simple_fn(shape, || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 8_388_608.0 - 1.0
    })
}

/// What an attention is differentiated by, in f64.
#[derive(Debug, Clone)]
pub struct Inputs {
    pub q: Array4<f64>,
    pub k: Array4<f64>,
    pub v: Array4<f64>,
    pub bias: Array4<f64>,
    pub sinks: Array1<f64>,
}

/// Gradients, and how far those of f32 may be from them.
pub struct Expected {
    pub values: Inputs,
    pub bounds: Inputs,
}

/// The queries and keys of one sequence: (batch, first query, queries, first key, keys).
type Sequence = (usize, usize, usize, usize, usize);

impl Setup {
    pub fn options(&self, device: &Device) -> orthant::Result<Options> {
        let mut options = Options::new().lse();
        if let Some(scale) = self.scale {
            options = options.scale(scale);
        }
        if self.causal {
            options = options.causal();
        }
        if let Some(window) = self.window {
            options = options.window(window);
        }
        if let Some(cap) = self.softcap {
            options = options.softcap(cap);
        }
        if let Some(slopes) = &self.alibi {
            options = options.alibi(slopes.clone());
        }
        if let Some(sinks) = &self.sinks {
            options = options.sinks(sinks.clone());
        }
        if let Some(bias) = &self.bias {
            options = options.bias(device.tensor(bias)?);
        }
        if let Some(lengths) = &self.key_lengths {
            options = options.key_lengths(lengths.clone());
        }
        if let Some((q, kv)) = &self.ragged {
            options = options.ragged(q.clone(), kv.clone());
        }
        Ok(options)
    }

    pub fn inputs(&self) -> Inputs {
        let wide = |shape, seed, size: f32| noise(shape, self.seed + seed).mapv(|value| f64::from(value * size));
        Inputs {
            q: wide([self.batch, self.q_heads, self.q_len, self.d], 0, self.size),
            k: wide([self.batch, self.kv_heads, self.kv_len, self.d], 1000, self.size),
            v: wide([self.batch, self.kv_heads, self.kv_len, self.d_v], 2000, 1.0),
            bias: self.bias.as_ref().map_or_else(|| Array4::zeros([0; 4]), |bias| bias.mapv(f64::from)),
            sinks: self.sinks.iter().flatten().map(|&sink| f64::from(sink)).collect(),
        }
    }

    pub fn grad_output(&self) -> Array4<f64> {
        noise([self.batch, self.q_heads, self.q_len, self.d_v], self.seed + 3000).mapv(f64::from)
    }

    pub fn sequences(&self) -> Vec<Sequence> {
        if let Some((q, kv)) = &self.ragged {
            return q
                .windows(2)
                .zip(kv.windows(2))
                .map(|(q, kv)| (0, q[0], q[1] - q[0], kv[0], kv[1] - kv[0]))
                .collect();
        }
        let keys = |batch: usize| self.key_lengths.as_ref().map_or(self.kv_len, |lengths| lengths[batch]);
        (0..self.batch).map(|batch| (batch, 0, self.q_len, 0, keys(batch))).collect()
    }

    fn scale_f64(&self) -> f64 {
        f64::from(self.scale.unwrap_or((1.0 / (self.d as f64).sqrt()) as f32))
    }

    /// For each key that query `i` sees: the key, the score, the soft cap's derivative, and the magnitude of what the score was made of.
    fn scores(&self, inputs: &Inputs, index: usize, sequence: Sequence, head: usize, i: usize) -> Vec<[f64; 4]> {
        let (batch, q_start, q_len, kv_start, kv_len) = sequence;
        let kv_head = head * self.kv_heads / self.q_heads;
        let position = i as i64 + kv_len as i64 - q_len as i64;
        let window = self.window.map_or(i64::MAX / 4, |window| window as i64);
        let mut scores = Vec::new();
        for j in 0..kv_len {
            let key = j as i64;
            let hidden = if self.causal { key > position } else { key >= position.saturating_add(window) };
            if hidden || key <= position - window {
                continue;
            }
            let (mut score, mut size) = (0.0, 0.0);
            for c in 0..self.d {
                let term = self.scale_f64()
                    * inputs.q[[batch, head, q_start + i, c]]
                    * inputs.k[[batch, kv_head, kv_start + j, c]];
                score += term;
                size += term.abs();
            }
            let mut slope = 1.0;
            if let Some(cap) = self.softcap {
                let tanh = (score / f64::from(cap)).tanh();
                (score, slope) = (f64::from(cap) * tanh, 1.0 - tanh * tanh);
                size += f64::from(cap);
            }
            if let Some(slopes) = &self.alibi {
                let distance = f64::from(slopes[head]) * (position - key).abs() as f64;
                score -= distance;
                size += distance.abs();
            }
            if !inputs.bias.is_empty() {
                let shape = inputs.bias.shape();
                let at = |axis: usize, index: usize| if shape[axis] == 1 { 0 } else { index };
                let bias = inputs.bias[[at(0, index), at(1, head), at(2, i), at(3, j)]];
                if bias <= -1e30 {
                    continue;
                }
                score += bias;
                size += bias.abs();
            }
            scores.push([j as f64, score, slope, size]);
        }
        scores
    }

    /// Output and log-sum-exp.
    pub fn forward(&self, inputs: &Inputs) -> (Array4<f64>, Array3<f64>) {
        let mut output = Array4::zeros([self.batch, self.q_heads, self.q_len, self.d_v]);
        let mut lse = Array3::from_elem([self.batch, self.q_heads, self.q_len], -1e30);
        for (index, sequence) in self.sequences().into_iter().enumerate() {
            let (batch, q_start, q_len, kv_start, _) = sequence;
            for head in 0..self.q_heads {
                let kv_head = head * self.kv_heads / self.q_heads;
                for i in 0..q_len {
                    let scores = self.scores(inputs, index, sequence, head, i);
                    let sink = (!inputs.sinks.is_empty()).then(|| inputs.sinks[head]);
                    let largest = scores.iter().map(|score| score[1]).chain(sink).fold(f64::NEG_INFINITY, f64::max);
                    if largest == f64::NEG_INFINITY {
                        continue;
                    }
                    let total: f64 = scores.iter().map(|score| score[1]).chain(sink).map(|s| (s - largest).exp()).sum();
                    lse[[batch, head, q_start + i]] = largest + total.ln();
                    for [j, score, ..] in scores {
                        for c in 0..self.d_v {
                            output[[batch, head, q_start + i, c]] +=
                                (score - largest).exp() / total * inputs.v[[batch, kv_head, kv_start + j as usize, c]];
                        }
                    }
                }
            }
        }
        (output, lse)
    }

    /// The sum of the output times its gradient.
    pub fn loss(&self, inputs: &Inputs) -> f64 {
        (self.forward(inputs).0 * self.grad_output()).sum()
    }

    /// Gradients and bounds. `roundings` is how many ulps of its magnitude a score, or of 1 its exponential, may be off; `half` whether the output
    /// was rounded to f16.
    ///
    /// The bound of an element is the sum of the magnitudes it is made of, each off by
    /// * the score's error (its magnitude and that of the log-sum-exp, times `roundings` ulps), which is the relative error of P;
    /// * 4 sqrt(n) ulps for each sum of n terms, over columns and over the keys or queries: rounding errors of either sign (Higham and Mary 2019);
    /// * 16 ulps for what is done to each element;
    /// * for f16, delta's 2^-11 of the magnitudes it is made of.
    pub fn backward(&self, inputs: &Inputs, grad: &Array4<f64>, roundings: f64, half: bool) -> Expected {
        let zeros = || Inputs {
            q: Array4::zeros(inputs.q.raw_dim()),
            k: Array4::zeros(inputs.k.raw_dim()),
            v: Array4::zeros(inputs.v.raw_dim()),
            bias: Array4::zeros(inputs.bias.raw_dim()),
            sinks: Array1::zeros(inputs.sinks.raw_dim()),
        };
        let (mut values, mut bounds) = (zeros(), zeros());
        let (output, lse) = self.forward(inputs);
        let ulp = f64::from(f32::EPSILON) / 2.0;
        let (scale, group) = (self.scale_f64(), self.q_heads / self.kv_heads);
        let sqrt = |n: usize| 4.0 * (n as f64).sqrt();
        // A bias that is broadcast is summed over all of the rest.
        let sums = sqrt(self.d) + sqrt(self.d_v) + sqrt(self.kv_len.max(self.q_len * group)) + 16.0;
        for (index, sequence) in self.sequences().into_iter().enumerate() {
            let (batch, q_start, q_len, kv_start, _) = sequence;
            for head in 0..self.q_heads {
                let kv_head = head / group;
                for i in 0..q_len {
                    let row = [batch, head, q_start + i];
                    let at = |c: usize| [row[0], row[1], row[2], c];
                    let delta: f64 = (0..self.d_v).map(|c| grad[at(c)] * output[at(c)]).sum();
                    let delta_size: f64 = (0..self.d_v).map(|c| (grad[at(c)] * output[at(c)]).abs()).sum();
                    // Half an ulp of f16, that of its subnormals too.
                    let delta_error: f64 = match half {
                        false => 0.0,
                        true => (0..self.d_v)
                            .map(|c| grad[at(c)].abs() * (output[at(c)].abs() / 2048.0).max((-25.0f64).exp2()))
                            .sum(),
                    };
                    let lse = lse[row];
                    if !inputs.sinks.is_empty() {
                        let share = (inputs.sinks[head] - lse).exp();
                        values.sinks[head] -= share * delta;
                        let own = roundings * (1.0 + lse.abs() + inputs.sinks[head].abs()) + sums;
                        bounds.sinks[head] += share * (delta_size * ulp * own + delta_error);
                    }
                    for [j, score, slope, size] in self.scores(inputs, index, sequence, head, i) {
                        let j = j as usize;
                        let key = |c: usize| [batch, kv_head, kv_start + j, c];
                        let weight = (score - lse).exp();
                        let relative = ulp * (roundings * (1.0 + size + lse.abs()) + sums);
                        let (mut dp, mut dp_size) = (0.0, 0.0);
                        for c in 0..self.d_v {
                            let term = grad[at(c)] * inputs.v[key(c)];
                            dp += term;
                            dp_size += term.abs();
                            values.v[key(c)] += weight * grad[at(c)];
                            bounds.v[key(c)] += relative * weight * grad[at(c)].abs();
                        }
                        let ds = weight * (dp - delta);
                        let ds_bound = weight * (relative * (dp_size + delta_size) + delta_error);
                        if !inputs.bias.is_empty() {
                            let shape = inputs.bias.shape();
                            let place = |axis: usize, index: usize| if shape[axis] == 1 { 0 } else { index };
                            let place = [place(0, index), place(1, head), place(2, i), place(3, j)];
                            values.bias[place] += ds;
                            bounds.bias[place] += ds_bound;
                        }
                        for c in 0..self.d {
                            values.q[at(c)] += scale * ds * slope * inputs.k[key(c)];
                            values.k[key(c)] += scale * ds * slope * inputs.q[at(c)];
                            bounds.q[at(c)] += scale.abs() * ds_bound * inputs.k[key(c)].abs();
                            bounds.k[key(c)] += scale.abs() * ds_bound * inputs.q[at(c)].abs();
                        }
                    }
                }
            }
        }
        Expected { values, bounds }
    }

    /// Gradients on `device` from an exact output rounded to its storage, against the oracle; what was measured, for more comparisons.
    pub fn check(&self, device: &Device, half: bool, roundings: f64) -> Result<Inputs> {
        match half {
            false => self.check_as::<f32>(device, roundings, false),
            true => self.check_as::<f16>(device, roundings, false),
        }
    }

    /// The same from the device's own output and log-sum-exp; two runs must agree bit for bit.
    pub fn check_chained(&self, device: &Device, half: bool, roundings: f64) -> Result<()> {
        match half {
            false => self.check_as::<f32>(device, roundings, true).map(drop),
            true => self.check_as::<f16>(device, roundings, true).map(drop),
        }
    }

    fn check_as<T: AttentionElement>(&self, device: &Device, roundings: f64, chained: bool) -> Result<Inputs> {
        // What the elements are in storage.
        let stored = |array: &Array4<f64>| array.mapv(|value| T::narrow(value as f32));
        let wide = |array: &Array4<T>| array.mapv(|value| f64::from(value.widen()));
        let mut inputs = self.inputs();
        let (q, k, v, grad) = (stored(&inputs.q), stored(&inputs.k), stored(&inputs.v), stored(&self.grad_output()));
        (inputs.q, inputs.k, inputs.v) = (wide(&q), wide(&k), wide(&v));
        let (output, lse) = self.forward(&inputs);
        let half = T::NAME == "f16";
        let expected = self.backward(&inputs, &wide(&grad), roundings, half);
        // Behind the keys that are there: nothing that may be read.
        let (mut k, mut v) = (k, v);
        for (batch, &length) in self.key_lengths.iter().flatten().enumerate() {
            let behind = ndarray::s![batch, .., length.., ..];
            k.slice_mut(behind).fill(T::narrow(f32::NAN));
            v.slice_mut(behind).fill(T::narrow(f32::NAN));
        }
        let tensors = [&q, &k, &v, &grad].map(|array| device.tensor(array));
        let [q, k, v, grad] = tensors;
        let (q, k, v, grad, options) = (q?, k?, v?, grad?, self.options(device)?);
        let output = match chained {
            true => attention(&q, &k, &v, &options)?,
            false => Output {
                output: device.tensor(&stored(&output))?,
                lse: Some(device.tensor(&lse.mapv(|value| value as f32))?),
            },
        };
        let actual = self.read(attention_backward(&q, &k, &v, &output, &grad, &options)?)?;
        if chained {
            let again = self.read(attention_backward(&q, &k, &v, &output, &grad, &options)?)?;
            let same = again.q == actual.q && again.k == actual.k && again.v == actual.v;
            ensure!(same && again.bias == actual.bias && again.sinks == actual.sinks, "two runs differ: {self:?}");
        }
        let Expected { values, bounds } = expected;
        let four = [
            ("dq", &actual.q, &values.q, &bounds.q),
            ("dk", &actual.k, &values.k, &bounds.k),
            ("dv", &actual.v, &values.v, &bounds.v),
            ("dbias", &actual.bias, &values.bias, &bounds.bias),
        ];
        for (name, actual, expected, bounds) in four {
            ensure!(actual.shape() == expected.shape(), "{name}: {:?}", actual.shape());
            let list = |array: &Array4<f64>| array.iter().copied().collect::<Vec<_>>();
            let bounds = list(bounds);
            // Below f32's smallest normal number a GPU may give zero.
            compare(&format!("{name} of {self:?}"), &list(actual), &list(expected), |at, _| bounds[at] + 1e-36)?;
        }
        let list = |array: &Array1<f64>| array.to_vec();
        let sink_bounds = list(&bounds.sinks);
        compare(&format!("dsinks of {self:?}"), &list(&actual.sinks), &list(&values.sinks), |at, _| {
            sink_bounds[at] + 1e-36
        })?;
        Ok(actual)
    }

    pub fn read(&self, gradients: Gradients) -> Result<Inputs> {
        let wide = |tensor: &Tensor<f32, Ix4>| Ok::<_, orthant::Error>(tensor.to_array()?.mapv(f64::from));
        ensure!(gradients.bias.is_some() == self.bias.is_some(), "a gradient of the bias, where there is one");
        ensure!(gradients.sinks.is_some() == self.sinks.is_some(), "gradients of the sinks, where there are some");
        Ok(Inputs {
            q: wide(&gradients.q)?,
            k: wide(&gradients.k)?,
            v: wide(&gradients.v)?,
            bias: gradients.bias.as_ref().map_or(Ok(Array4::zeros([0; 4])), wide)?,
            sinks: match &gradients.sinks {
                None => Array1::zeros(0),
                Some(sinks) => sinks.to_array()?.mapv(f64::from),
            },
        })
    }
}
