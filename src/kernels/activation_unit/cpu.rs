//! The CPU's way: a candidate at a time, 16 of its behaviours side by side.

use multiversion::multiversion;
use multiversion::target::target_cfg_f;
use ndarray::Ix2;
use rayon::prelude::*;

use super::{Kind, Problem};
use crate::kernels::lanes::{LANES, Lanes, exp, fma, product};
use crate::tensor::Tensor;

/// The elements of a tensor on the CPU.
fn elements(tensor: &Tensor<f32, Ix2>) -> Vec<f32> {
    tensor.as_host().map(|view| view.iter().copied().collect()).unwrap_or_default()
}

struct Network<'a> {
    d: usize,
    /// Elements of what each candidate brings to the first layer.
    key: Vec<f32>,
    layers: Vec<Layer>,
    last: Vec<f32>,
    softmax: Option<f32>,
    offsets: &'a [usize],
}

struct Layer {
    /// [in, units]; none of the first layer, which each candidate has its own of.
    weights: Vec<f32>,
    count: usize,
    /// [units, 4].
    units: Vec<f32>,
    kind: Kind,
}

#[derive(Default)]
struct Scratch {
    /// (Wk - Wd) + q * Wp: [d, units].
    weights: Vec<f32>,
    inputs: Vec<Lanes>,
    outputs: Vec<Lanes>,
}

/// Fills `output` and `weights`; the first candidate whose output is not finite, if any is.
pub(super) fn forward(
    problem: &Problem<'_>,
    candidates: &Tensor<f32, Ix2>,
    behaviours: &Tensor<f32, Ix2>,
    base: &Tensor<f32, Ix2>,
    output: &mut [f32],
    weights: &mut [f32],
) -> Option<usize> {
    let (rows, d) = (candidates.shape()[0], candidates.shape()[1]);
    let layers = problem.units.iter().zip(problem.kinds).enumerate().map(|(index, (units, &kind))| Layer {
        weights: index.checked_sub(1).map(|deeper| elements(&problem.deeper[deeper])).unwrap_or_default(),
        count: units.shape()[0],
        units: elements(units),
        kind,
    });
    let network = Network {
        d,
        key: elements(problem.key),
        layers: layers.collect(),
        last: problem.last.as_host().map(|view| view.to_vec()).unwrap_or_default(),
        softmax: problem.softmax,
        offsets: problem.offsets,
    };
    let (Some(q), Some(k), Some(base)) = (candidates.as_host(), behaviours.as_host(), base.as_host()) else {
        unreachable!("only called for the CPU")
    };
    let (Some(q), Some(k), Some(base)) = (q.as_slice(), k.as_slice(), base.as_slice()) else {
        unreachable!("tensors are row-major")
    };
    // The weights of each candidate, apart from those of the others.
    let mut tasks = Vec::with_capacity(rows);
    let (mut output, mut weights) = (output, weights);
    for row in 0..rows {
        let (out, more) = output.split_at_mut(d);
        let (own, others) = weights.split_at_mut(problem.offsets[row + 1] - problem.offsets[row]);
        (output, weights) = (more, others);
        tasks.push((row, out, own));
    }
    let units = network.layers[0].count;
    tasks
        .into_par_iter()
        .map_init(Scratch::default, |scratch, (row, out, own)| {
            let keys = &k[network.offsets[row] * d..network.offsets[row + 1] * d];
            candidate(&network, &q[row * d..][..d], keys, &base[row * units..][..units], scratch, own, out);
            (!out.iter().chain(&*own).all(|value| value.is_finite())).then_some(row)
        })
        .flatten()
        .min()
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512cd+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
fn candidate(
    network: &Network<'_>,
    q: &[f32],
    keys: &[f32],
    base: &[f32],
    scratch: &mut Scratch,
    weights: &mut [f32],
    out: &mut [f32],
) {
    if target_cfg_f!(any(target_feature = "fma", target_arch = "aarch64")) {
        weigh::<true>(network, q, keys, base, scratch, weights, out);
    } else {
        weigh::<false>(network, q, keys, base, scratch, weights, out);
    }
}

#[inline(always)]
fn weigh<const FUSED: bool>(
    network: &Network<'_>,
    q: &[f32],
    keys: &[f32],
    base: &[f32],
    scratch: &mut Scratch,
    weights: &mut [f32],
    out: &mut [f32],
) {
    if weights.is_empty() {
        return;
    }
    let (d, units) = (network.d, base.len());
    let Scratch { weights: own, inputs, outputs } = scratch;
    own.clear();
    for ((&q, plain), gated) in
        q.iter().zip(network.key.chunks_exact(units)).zip(network.key[d * units..].chunks_exact(units))
    {
        own.extend(plain.iter().zip(gated).map(|(&plain, &gated)| fma::<FUSED>(q, gated, plain)));
    }
    for (block, weights) in weights.chunks_mut(LANES).enumerate() {
        inputs.clear();
        inputs.resize(d, [0.0; LANES]);
        for lane in 0..weights.len() {
            let key = &keys[(block * LANES + lane) * d..][..d];
            for (input, &value) in inputs.iter_mut().zip(key) {
                input[lane] = value;
            }
        }
        for (index, layer) in network.layers.iter().enumerate() {
            outputs.clear();
            outputs.resize(layer.count, [0.0; LANES]);
            let matrix = if index == 0 { &*own } else { &layer.weights };
            product::<FUSED>(matrix, layer.count, inputs, outputs);
            for (unit, (values, of_unit)) in outputs.iter_mut().zip(layer.units.chunks_exact(4)).enumerate() {
                let bias = of_unit[0] + if index == 0 { base[unit] } else { 0.0 };
                activate::<FUSED>(layer.kind, values, bias, of_unit);
            }
            std::mem::swap(inputs, outputs);
        }
        let mut logits = [network.last[inputs.len()]; LANES];
        for (values, &weight) in inputs.iter().zip(&network.last) {
            for lane in 0..LANES {
                logits[lane] = fma::<FUSED>(values[lane], weight, logits[lane]);
            }
        }
        weights.copy_from_slice(&logits[..weights.len()]);
    }
    if let Some(scale) = network.softmax {
        weights.iter_mut().for_each(|weight| *weight *= scale);
        let largest = weights.iter().copied().fold(f32::MIN, f32::max);
        weights.iter_mut().for_each(|weight| *weight = exp::<FUSED>(*weight - largest));
        let total: f32 = weights.iter().sum();
        weights.iter_mut().for_each(|weight| *weight /= total);
    }
    for (key, &weight) in keys.chunks_exact(d.max(1)).zip(&*weights) {
        for (out, &value) in out.iter_mut().zip(key) {
            *out = fma::<FUSED>(weight, value, *out);
        }
    }
}

#[inline(always)]
fn activate<const FUSED: bool>(kind: Kind, values: &mut Lanes, bias: f32, unit: &[f32]) {
    let &[_, alpha, factor, mean] = unit else { unreachable!("four of each unit") };
    match kind {
        Kind::Sigmoid => values.iter_mut().for_each(|value| *value = sigmoid::<FUSED>(*value + bias)),
        Kind::Prelu => values.iter_mut().for_each(|value| {
            let x = *value + bias;
            *value = if x < 0.0 { alpha * x } else { x };
        }),
        Kind::Dice => values.iter_mut().for_each(|value| {
            let x = *value + bias;
            let p = sigmoid::<FUSED>((x - mean) * factor);
            *value = x * (p + (1.0 - p) * alpha);
        }),
    }
}

#[inline(always)]
fn sigmoid<const FUSED: bool>(x: f32) -> f32 {
    let power = exp::<FUSED>(-x.abs());
    (if x < 0.0 { power } else { 1.0 }) / (1.0 + power)
}
