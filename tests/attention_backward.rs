//! Gradients of attention on the CPU: against central finite differences in f64 for every combination of options, and against the naive f64 gradients.

mod common;

use anyhow::{Result, ensure};
use common::attention_backward::{Inputs, Setup, noise};
use half::f16;
use ndarray::Array4;
use orthant::attention::{Options, Output, alibi_slopes, attention, attention_backward};
use orthant::{Device, Error};

/// A score in f32: the terms' rounding and the exponential's, in ulps of its magnitude.
const ROUNDINGS: f64 = 2.0;

/// A small problem with the options whose bits are set; `variation` changes sizes and how the bias is broadcast.
fn combined(bits: u32, variation: usize) -> Setup {
    let bit = |at: u32| bits >> at & 1 == 1;
    let ragged = bit(6) && bit(7);
    let mut setup = Setup {
        batch: if ragged { 1 } else { 2 },
        q_heads: 4,
        kv_heads: [1, 2, 4][variation % 3],
        q_len: [3, 7, 5][variation % 3],
        kv_len: [6, 5, 5][variation % 3],
        d: [3, 1, 5][variation % 3],
        d_v: [2, 3, 1][variation % 3],
        scale: bit(0).then_some(-0.8),
        causal: bit(1),
        window: bit(2).then_some(1 + variation % 4),
        softcap: bit(3).then_some(1.7),
        alibi: bit(4).then(|| alibi_slopes(4)),
        sinks: bit(5).then(|| vec![0.3, -1.0, 2.0, 0.0]),
        seed: bits + 17 * variation as u32,
        ..Setup::default()
    };
    if ragged {
        let half = setup.q_len / 2;
        setup.ragged = Some((vec![0, half, half, setup.q_len], vec![0, 1, 3, setup.kv_len]));
    } else if bit(6) {
        setup.key_lengths = Some(vec![setup.kv_len - 1, variation % 2]);
    }
    if bit(7) || bit(0) {
        let (longest_q, longest_kv) =
            setup.sequences().iter().fold((0, 0), |(q, kv), &(_, _, q_len, _, kv_len)| (q.max(q_len), kv.max(kv_len)));
        let kv = if ragged { longest_kv } else { setup.kv_len };
        let full = [setup.sequences().len(), 4, longest_q, kv];
        let axes = (bits as usize * 7 + variation) % 16;
        let shape = std::array::from_fn(|axis| if axes >> axis & 1 == 1 { 1 } else { full[axis] });
        let mut bias = noise(shape, bits);
        if bias.len() > 2 {
            bias.as_slice_mut().unwrap()[1] = f32::NEG_INFINITY;
        }
        setup.bias = Some(bias);
    }
    setup
}

/// Central differences of the loss by every element of one input.
fn differences<D: ndarray::Dimension>(
    setup: &Setup,
    inputs: &Inputs,
    of: impl Fn(&mut Inputs) -> &mut ndarray::Array<f64, D>,
) -> Vec<f64> {
    let mut moved = inputs.clone();
    let count = of(&mut moved).len();
    let step = 1e-5;
    let mut all = Vec::with_capacity(count);
    for at in 0..count {
        let mut loss = |by: f64| {
            let element = &mut of(&mut moved).as_slice_mut().unwrap()[at];
            let kept = *element;
            *element += by;
            let loss = setup.loss(&moved);
            of(&mut moved).as_slice_mut().unwrap()[at] = kept;
            loss
        };
        all.push((loss(step) - loss(-step)) / (2.0 * step));
    }
    all
}

#[test]
fn gradients_are_finite_differences() -> Result<()> {
    for bits in 0..256 {
        let variation = bits as usize % 12;
        let setup = combined(bits, variation);
        let inputs = setup.inputs();
        let actual = setup.check(&Device::cpu(), false, ROUNDINGS)?;
        let oracle = setup.backward(&inputs, &setup.grad_output(), 0.0, false).values;
        let found = [
            ("dq", differences(&setup, &inputs, |inputs| &mut inputs.q), actual.q, oracle.q),
            ("dk", differences(&setup, &inputs, |inputs| &mut inputs.k), actual.k, oracle.k),
            ("dv", differences(&setup, &inputs, |inputs| &mut inputs.v), actual.v, oracle.v),
            ("dbias", differences(&setup, &inputs, |inputs| &mut inputs.bias), actual.bias, oracle.bias),
        ];
        for (name, differences, actual, oracle) in found {
            let name = format!("{name}, options {bits:#b}, {setup:?}");
            let oracle: Vec<_> = oracle.iter().copied().collect();
            let actual: Vec<_> = actual.iter().copied().collect();
            // Central differences with a step of 1e-5: truncation 1e-10 of the third derivative, rounding 1e-16 / 1e-5 of the loss.
            common::compare(&name, &oracle, &differences, |_, value| 1e-7 * (1.0 + value.abs()))?;
            // f32: sums of a dozen terms of order 1.
            common::compare(&name, &actual, &differences, |_, value| 5e-6 * (1.0 + value.abs()))?;
        }
        let differences = differences(&setup, &inputs, |inputs| &mut inputs.sinks);
        common::compare("dsinks", &oracle.sinks.to_vec(), &differences, |_, value| 1e-7 * (1.0 + value.abs()))?;
        common::compare("dsinks", &actual.sinks.to_vec(), &differences, |_, value| 5e-6 * (1.0 + value.abs()))?;
    }
    Ok(())
}

#[test]
fn f16_gradients_with_every_option() -> Result<()> {
    for bits in 0..256 {
        combined(bits, bits as usize % 7).check(&Device::cpu(), true, ROUNDINGS)?;
    }
    Ok(())
}

/// Tiles of 64: one less, one more, many; heads of any size.
#[test]
fn larger_shapes() -> Result<()> {
    let wide = Setup { q_heads: 4, kv_heads: 2, ..Setup::default() };
    for (q_len, kv_len, d, d_v) in [
        (63, 65, 64, 64),
        (64, 64, 80, 16),
        (65, 63, 256, 17),
        (1, 300, 128, 128),
        (200, 190, 33, 256),
        (130, 1, 16, 1),
    ] {
        let setup = Setup { q_len, kv_len, d, d_v, causal: q_len > 63, ..wide.clone() };
        setup.check(&Device::cpu(), false, ROUNDINGS)?;
        let window = Some(q_len / 3 + 1);
        let setup = Setup { causal: q_len < 65, window, softcap: Some(2.0), alibi: Some(alibi_slopes(4)), ..setup };
        setup.check(&Device::cpu(), true, ROUNDINGS)?;
    }
    let ragged = Some((vec![0, 70, 70, 71, 150], vec![0, 130, 140, 140, 160]));
    let bias = Some(noise([4, 1, 79, 130], 9));
    let setup = Setup { q_len: 150, kv_len: 160, d: 24, d_v: 24, ragged, bias, causal: true, ..wide.clone() };
    setup.check(&Device::cpu(), false, ROUNDINGS)?;
    for shape in [[2, 4, 100, 90], [1, 4, 1, 90], [2, 1, 100, 1], [1, 1, 1, 1]] {
        let (bias, key_lengths) = (Some(noise(shape, 3)), Some(vec![70, 90]));
        let setup = Setup { batch: 2, q_len: 100, kv_len: 90, d: 20, bias, key_lengths, ..wide.clone() };
        setup.check(&Device::cpu(), false, ROUNDINGS)?;
    }
    Ok(())
}

/// Logits of +-100 and more, rows without a key, more queries than keys, nothing at all.
#[test]
fn hostile_values() -> Result<()> {
    let base = Setup { q_len: 70, kv_len: 66, d: 16, d_v: 16, ..Setup::default() };
    let sinks = Some(vec![100.0, -100.0]);
    // Products of elements below 12 with scale 1 / 4: up to 576, a few hundred in the largest.
    let large = Setup { size: 12.0, ..base.clone() };
    large.check(&Device::cpu(), false, ROUNDINGS)?;
    Setup { softcap: Some(30.0), sinks: sinks.clone(), ..large.clone() }.check(&Device::cpu(), false, ROUNDINGS)?;
    // The first four queries see no key, and with a window of 1 and bias, others too.
    let empty = Setup { causal: true, window: Some(1), bias: Some(noise([1, 2, 1, 66], 4)), ..base.clone() };
    let mut masked = empty.clone();
    masked.bias.as_mut().unwrap().slice_mut(ndarray::s![.., 0, .., ..40]).fill(f32::NEG_INFINITY);
    masked.bias.as_mut().unwrap().slice_mut(ndarray::s![.., 1, .., ..9]).fill(-2e30);
    for setup in [empty, masked.clone(), Setup { sinks, ..masked }] {
        let found = setup.check(&Device::cpu(), false, ROUNDINGS)?;
        ensure!(found.q.slice(ndarray::s![.., .., ..4, ..]).iter().all(|&value| value == 0.0), "rows without a key");
    }
    for (batch, q_len, kv_len) in [(0, 3, 3), (1, 0, 3), (1, 3, 0), (2, 0, 0)] {
        let setup = Setup { batch, q_len, kv_len, sinks: Some(vec![0.5; 2]), ..base.clone() };
        setup.check(&Device::cpu(), false, ROUNDINGS)?;
        let bias = Some(Array4::zeros([batch, 1, q_len, kv_len]));
        Setup { bias, ..setup }.check(&Device::cpu(), false, ROUNDINGS)?;
    }
    Ok(())
}

/// From the library's own forward pass, in f32.
#[test]
fn after_the_forward_pass() -> Result<()> {
    let setup = Setup { q_len: 90, kv_len: 80, d: 40, d_v: 24, causal: true, ..Setup::default() };
    let (inputs, grad) = (setup.inputs(), setup.grad_output());
    let device = Device::cpu();
    let tensor = |array: &Array4<f64>| device.tensor(&array.mapv(|value| value as f32));
    let (q, k, v, grad) = (tensor(&inputs.q)?, tensor(&inputs.k)?, tensor(&inputs.v)?, tensor(&grad)?);
    let options = setup.options(&device)?;
    let output = attention(&q, &k, &v, &options)?;
    let found = setup.read(attention_backward(&q, &k, &v, &output, &grad, &options)?)?;
    let expected = setup.backward(&inputs, &setup.grad_output(), ROUNDINGS, false);
    let list = |array: &Array4<f64>| array.iter().copied().collect::<Vec<_>>();
    let bounds = list(&expected.bounds.q);
    // The forward pass rounds the output and the log-sum-exp once more.
    common::compare("dq", &list(&found.q), &list(&expected.values.q), |at, _| 2.0 * bounds[at])?;
    let again = setup.read(attention_backward(&q, &k, &v, &output, &grad, &options)?)?;
    ensure!(found.q == again.q && found.k == again.k && found.v == again.v, "bit for bit the same");
    Ok(())
}

#[test]
fn what_does_not_fit_is_named() -> Result<()> {
    let device = Device::cpu();
    let zeros = |shape: [usize; 4]| device.zeros::<f32, _>(shape);
    let (q, k) = (zeros([1, 2, 3, 4])?, zeros([1, 1, 5, 4])?);
    let options = Options::new().lse();
    let output = attention(&q, &k, &k, &options)?;
    let run = |output: &Output<f32>, grad: [usize; 4]| {
        attention_backward(&q, &k, &k, output, &zeros(grad)?, &options).map(drop)
    };
    run(&output, [1, 2, 3, 4])?;
    let error = |result: orthant::Result<()>| result.map_or_else(|error| error.to_string(), |()| "none".into());
    let without = Output { lse: None, ..output.clone() };
    let found = error(run(&without, [1, 2, 3, 4]));
    ensure!(found.contains("output is none, expected an output with its log-sum-exp"), "{found}");
    let found = error(run(&output, [1, 2, 3, 5]));
    ensure!(found.contains("grad_output has shape [1, 2, 3, 5]"), "{found}");
    let longer = Output { output: zeros([1, 2, 4, 4])?, ..output.clone() };
    ensure!(matches!(run(&longer, [1, 2, 3, 4]), Err(Error::Shape { quantity: "output", .. })));
    let longer = Output { lse: Some(device.zeros([1, 2, 4])?), ..output.clone() };
    ensure!(matches!(run(&longer, [1, 2, 3, 4]), Err(Error::Shape { quantity: "lse", .. })));
    let (halves, grad) = (device.zeros::<f16, _>([1, 2, 3, 4])?, device.zeros::<f16, _>([1, 2, 3, 4])?);
    let found = attention_backward(
        &halves,
        &device.zeros([1, 3, 5, 4])?,
        &device.zeros([1, 3, 5, 4])?,
        &Output { output: halves.clone(), lse: None },
        &grad,
        &options,
    );
    ensure!(matches!(found, Err(Error::Shape { quantity: "k", .. })));
    let mut bad = Array4::<f32>::zeros([1, 2, 3, 4]);
    bad[[0, 1, 2, 3]] = f32::NAN;
    let found = attention_backward(&q, &k, &k, &output, &device.tensor(&bad)?, &options);
    ensure!(matches!(found, Err(Error::Domain { quantity: "grad_output", index: 5, .. })), "{found:?}");
    Ok(())
}
