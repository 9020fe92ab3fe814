//! The attention of CTR and vision models: the CPU path, which the tests of `ctr.rs` hold to naive f64 oracles, against each adapter.

use anyhow::{Result, ensure};
use ndarray::{Array, Array1, Array2, Array3, Array4, Dimension, ShapeBuilder};
use orthant::attention::{
    Activation, ActivationUnitOptions, ActivationUnitWeights, ElaWeights, HiddenLayer, InteractingOptions,
    InteractingWeights, efficient_local_attention, interacting_layer, local_activation_unit,
};
use orthant::{Device, Error, Tensor};

use crate::common::{Case, compare, poison};

/// Repeatable values in [-1, 1).
fn noise<Sh: ShapeBuilder>(shape: Sh, seed: u32) -> Array<f32, Sh::Dim> {
    let mut state = seed.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
    Array::from_shape_simple_fn(shape, || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 8_388_608.0 - 1.0
    })
}

/// Elements within `bound` of the largest magnitude of their row, `length` elements.
fn close<D: Dimension>(
    what: &str,
    actual: &Tensor<f32, D>,
    expected: &Tensor<f32, D>,
    length: usize,
    bound: f64,
) -> Result<()> {
    let wide = |tensor: &Tensor<f32, D>| -> Result<Vec<f64>> {
        Ok(tensor.to_array()?.iter().map(|&value| f64::from(value)).collect())
    };
    let (actual, expected) = (wide(actual)?, wide(expected)?);
    let largest: Vec<f64> = expected
        .chunks(length.max(1))
        .map(|row| row.iter().fold(0.0, |largest: f64, value| largest.max(value.abs())))
        .collect();
    compare(what, &actual, &expected, |at, _| bound * largest[at / length.max(1)] + 1e-30)
}

fn tiled(device: &Device) -> Result<Device> {
    let Some(gpu) = device.as_gpu() else { anyhow::bail!("not a GPU") };
    Ok(Device::gpu_tiled(gpu.info().index, 64 << 10)?)
}

fn interacting(device: &Device, (batch, fields, input): (usize, usize, usize), heads: usize, d: usize) -> Result<()> {
    let width = heads * d;
    // Scores of a few units: the differences of exp stay small next to the roundings of sums.
    let spread = 1.5 / (input as f32).sqrt();
    let [query, key, value, residual] = [1, 2, 3, 4].map(|seed| noise((input, width), seed) * spread);
    let x = noise((batch, fields, input), 5);
    for (with_residual, maps, scale) in [(true, true, None), (false, false, Some(0.25)), (true, false, None)] {
        let run = |device: &Device| -> Result<_> {
            let residual = residual.view();
            let residual = with_residual.then_some(&residual);
            let weights = InteractingWeights::new(device, &query.view(), &key.view(), &value.view(), residual, heads)?;
            let options = InteractingOptions::new().scale(scale.unwrap_or(1.0));
            let options = if maps { options.maps() } else { options };
            Ok(interacting_layer(&device.tensor(&x)?, &weights, &options)?)
        };
        poison(device, 4 * batch * fields * width)?;
        // Where a binding cannot show one sample, an error says so.
        let row = width * if with_residual { 4 } else { 3 };
        let of_sample = 4 * fields * row.max(if maps { heads * fields } else { 0 });
        if device.as_gpu().is_some_and(|gpu| gpu.max_binding() < of_sample as u64) {
            let error = run(device).err().and_then(|error| error.downcast::<Error>().ok());
            ensure!(matches!(error, Some(Error::TooLarge { .. })), "{error:?}");
            continue;
        }
        let (actual, expected) = (run(device)?, run(&Device::cpu())?);
        let what = format!("{batch}x{fields}x{input}, {heads} heads of {d}, {with_residual}");
        // 1e-5 for each of the two paths.
        close(&what, &actual.output, &expected.output, width, 2e-5)?;
        ensure!(actual.maps.is_some() == maps && expected.maps.is_some() == maps);
        if let (Some(actual), Some(expected)) = (&actual.maps, &expected.maps) {
            close(&what, actual, expected, fields, 2e-5)?;
        }
    }
    Ok(())
}

fn interacting_layers(device: &Device) -> Result<()> {
    for (shape, heads, d) in [
        ((0, 5, 4), 2, 8),
        ((3, 0, 4), 1, 8),
        ((1, 1, 1), 1, 1),
        ((2, 3, 5), 3, 7),
        ((1000, 39, 16), 2, 16),
        ((3, 129, 9), 2, 33),
        ((2, 300, 8), 1, 16),
        ((2, 20, 16), 1, 128),
        ((1, 17, 16), 1, 250),
    ] {
        interacting(device, shape, heads, d)?;
    }
    interacting(&tiled(device)?, (50, 39, 16), 2, 16)
}

fn hostile_samples(device: &Device) -> Result<()> {
    let weights = |device: &Device| {
        let [query, key, value] = [1, 2, 3].map(|seed| noise((4, 16), seed));
        InteractingWeights::new(device, &query.view(), &key.view(), &value.view(), None, 2)
    };
    for device in [device.clone(), Device::cpu()] {
        for value in [f32::NAN, f32::INFINITY, 3e38] {
            let mut x = noise((9, 6, 4), 4);
            x[[5, 3, 1]] = value;
            let result = interacting_layer(&device.tensor(&x)?, &weights(&device)?, &InteractingOptions::new());
            let error = result.and_then(|interacted| interacted.output.to_array()).err();
            ensure!(matches!(error, Some(Error::Domain { index: 30..36, .. })), "{device} {value}: {error:?}");
        }
        // One key takes all, and all keys are equal.
        let mut x = Array3::from_elem((2, 6, 4), 0.5f32);
        x[[1, 2, 0]] = 60.0;
        let out = interacting_layer(&device.tensor(&x)?, &weights(&device)?, &InteractingOptions::new().maps())?;
        for row in out.maps.into_iter().flat_map(|maps| maps.to_array()).flatten().collect::<Vec<_>>().chunks(6) {
            ensure!((row.iter().sum::<f32>() - 1.0).abs() < 1e-6, "{row:?}");
        }
    }
    Ok(())
}

/// Three layers of each activation.
fn network(device: &Device, d: usize, units: &[usize], kind: usize) -> Result<ActivationUnitWeights> {
    let mut inputs = 4 * d;
    let mut layers = Vec::new();
    for (seed, &count) in (10..).zip(units) {
        layers.push(HiddenLayer {
            weights: noise((inputs, count), seed) / (inputs as f32).sqrt(),
            bias: noise(count, seed + 100),
            activation: match kind {
                0 => Activation::Sigmoid,
                1 => Activation::Prelu { alpha: noise(count, seed + 200) },
                _ => Activation::Dice {
                    mean: noise(count, seed + 300),
                    variance: noise(count, seed + 400).mapv(f32::abs),
                    alpha: noise(count, seed + 200),
                    epsilon: 1e-8,
                },
            },
        });
        inputs = count;
    }
    Ok(ActivationUnitWeights::new(device, &layers, &noise(inputs, 9).view(), 0.1)?)
}

fn activation_units(device: &Device) -> Result<()> {
    let tiled = tiled(device)?;
    let shapes: [(usize, usize, &[usize], usize); 6] = [
        (0, 3, &[4], 2),
        (1, 1, &[1], 1),
        (5, 7, &[17, 3], 40),
        (300, 32, &[80, 40], 50),
        (40, 65, &[100], 30),
        // Histories of more keys than a workgroup has invocations.
        (60, 3, &[4], 300),
    ];
    for (rows, d, units, longest) in shapes {
        let mut offsets = vec![0];
        offsets.extend((0..rows).scan(0, |end, row| {
            *end += if row % 3 == 1 { 0 } else { (row * 7 + 1) % (longest + 1) };
            Some(*end)
        }));
        let (q, k) = (noise((rows, d), 1), noise((offsets[rows], d), 2));
        for device in [device, &tiled] {
            for (kind, softmax) in [(0, None), (1, None), (2, None), (2, Some(0.5))] {
                let run = |device: &Device| -> Result<_> {
                    let options = ActivationUnitOptions::new().weights();
                    let options = softmax.map_or(options, |scale| options.softmax(scale));
                    let weights = network(device, d, units, kind)?;
                    let (q, k) = (device.tensor(&q)?, device.tensor(&k)?);
                    Ok(local_activation_unit(&q, &k, &offsets, &weights, &options)?)
                };
                poison(device, 4 * k.len())?;
                let (actual, expected) = (run(device)?, run(&Device::cpu())?);
                let what = format!("{rows}x{d} {units:?} {kind} {softmax:?}");
                let (Some(weights), Some(other)) = (&actual.weights, &expected.weights) else {
                    anyhow::bail!("no weights")
                };
                // Sigmoids and sums of a hundred terms below 1, on either side; Dice divides by deviations down to 0.03 or so, three layers deep.
                let bound = if kind == 2 { 1e-4 } else { 2e-5 };
                let total: Vec<f64> = other.to_array()?.iter().map(|&weight| f64::from(weight)).collect();
                let largest = total.iter().fold(1.0, |largest: f64, weight| largest.max(weight.abs()));
                let found: Vec<f64> = weights.to_array()?.iter().map(|&weight| f64::from(weight)).collect();
                compare(&what, &found, &total, |_, _| bound * largest)?;
                let sums = |tensor: &Tensor<f32, _>| -> Result<Vec<f64>> {
                    let array: Array2<f32> = tensor.to_array()?;
                    Ok(array.iter().map(|&value| f64::from(value)).collect())
                };
                compare(&what, &sums(&actual.output)?, &sums(&expected.output)?, |at, _| {
                    bound * largest * (offsets[at / d + 1] - offsets[at / d]) as f64
                })?;
            }
        }
    }
    for device in [device.clone(), Device::cpu()] {
        let weights = network(&device, 3, &[4], 0)?;
        for in_query in [true, false] {
            let (mut q, mut k) = (noise((4, 3), 1), noise((8, 3), 2));
            if in_query {
                q[[2, 1]] = f32::NAN
            } else {
                k[[5, 0]] = f32::INFINITY
            }
            let (q, k) = (device.tensor(&q)?, device.tensor(&k)?);
            let options = ActivationUnitOptions::new();
            let result = local_activation_unit(&q, &k, &[0, 2, 4, 6, 8], &weights, &options);
            let error = result.and_then(|activated| activated.output.to_array()).err();
            ensure!(matches!(error, Some(Error::Domain { index: 2, .. })), "{device}: {error:?}");
        }
    }
    Ok(())
}

fn gated_maps(device: &Device) -> Result<()> {
    let tiled = tiled(device)?;
    for (shape, inner, taps, norm_groups) in [
        ((0, 4, 3, 3), 1, 5, 2),
        ((1, 1, 1, 1), 1, 5, 1),
        ((2, 16, 1, 9), 8, 7, 16),
        ((3, 64, 14, 17), 1, 5, 32),
        ((2, 64, 28, 28), 8, 7, 16),
        ((1, 2, 70, 130), 2, 7, 1),
        // Rows longer than one round of a workgroup.
        ((1, 2, 3, 600), 1, 5, 1),
    ] {
        let channels = shape.1;
        let (convolution, bias) = (noise((channels, inner, taps), 1), noise(channels, 2));
        let (gamma, beta) = (noise(channels, 3), noise(channels, 4));
        let x: Array4<f32> = noise(shape, 5) + 0.3;
        let run = |device: &Device| -> Result<_> {
            let bias = bias.view();
            let weights =
                ElaWeights::new(device, &convolution.view(), Some(&bias), &gamma.view(), &beta.view(), norm_groups)?;
            Ok(efficient_local_attention(&device.tensor(&x)?, &weights)?)
        };
        for device in [device, &tiled] {
            poison(device, 4 * x.len())?;
            // Means are within an eps or two of each other, but the norm may divide their roundings by a small deviation; gates have slope 1/4.
            close(&format!("{shape:?}"), &run(device)?, &run(&Device::cpu())?, shape.2 * shape.3, 2e-5)?;
        }
    }
    for device in [device.clone(), Device::cpu()] {
        let ones = Array1::ones(4);
        let convolution = noise((4, 1, 5), 1);
        let weights = ElaWeights::new(&device, &convolution.view(), None, &ones.view(), &ones.view(), 2)?;
        for value in [f32::NAN, f32::INFINITY] {
            let mut x: Array4<f32> = noise((3, 4, 5, 6), 2);
            x[[1, 2, 3, 4]] = value;
            let result = efficient_local_attention(&device.tensor(&x)?, &weights);
            let error = result.and_then(|out| out.to_array()).err();
            ensure!(matches!(error, Some(Error::Domain { index: 1, .. })), "{device}: {error:?}");
        }
    }
    Ok(())
}

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("interacting_layer", "of many samples", interacting_layers),
        Case::new("interacting_layer", "hostile", hostile_samples),
        Case::new("activation_unit", "ragged", activation_units),
        Case::new("activation_pool", "ragged", activation_units),
        Case::new("strip_means", "gated maps", gated_maps),
        Case::new("strip_gates", "gated maps", gated_maps),
        Case::new("strip_product", "gated maps", gated_maps),
    ]
}
