//! The attention of CTR and vision models on the CPU, against naive f64 oracles; on real data; and its errors.

use ndarray::{Array1, Array2, Array3, Array4, Axis, s};
use orthant::attention::{
    Activation, ActivationKind, ActivationUnitOptions, ActivationUnitWeights, ElaVariant, ElaWeights, HiddenLayer,
    InteractingOptions, InteractingWeights, efficient_local_attention, interacting_layer, local_activation_unit,
};
use orthant::{Device, Error, Result};
use safetensors::tensor::{Dtype, TensorView};

const CPU: Device = Device::Cpu;

/// Repeatable values in [-1, 1).
fn noise<Sh: ndarray::ShapeBuilder>(shape: Sh, seed: u32) -> ndarray::Array<f32, Sh::Dim> {
    let mut state = seed.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
    ndarray::Array::from_shape_simple_fn(shape, || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 8_388_608.0 - 1.0
    })
}

/// Every element within `bound` of the largest magnitude of its row.
fn close(actual: &[f32], expected: &[f64], row: usize, bound: f64) {
    assert_eq!(actual.len(), expected.len());
    for (number, (actual, expected)) in actual.chunks(row).zip(expected.chunks(row)).enumerate() {
        let largest = expected.iter().fold(0.0, |largest: f64, value| largest.max(value.abs()));
        for (&actual, &expected) in actual.iter().zip(expected) {
            let error = (f64::from(actual) - expected).abs();
            assert!(error <= bound * largest, "row {number}: {actual}, expected {expected}, of {largest}");
        }
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// Output before ReLU, and maps.
fn oracle(x: &Array3<f32>, [q, k, v, r]: &[Array2<f32>; 4], heads: usize, scale: f64) -> (Array3<f64>, Array4<f64>) {
    let (batch, fields, _) = x.dim();
    let d = q.ncols() / heads;
    let mut output = Array3::zeros((batch, fields, q.ncols()));
    let mut maps = Array4::zeros((batch, heads, fields, fields));
    for (sample, x) in x.outer_iter().enumerate() {
        let x = x.mapv(f64::from);
        let [q, k, v, r] = [q, k, v, r].map(|matrix| x.dot(&matrix.mapv(f64::from)));
        for head in 0..heads {
            let part = s![.., head * d..(head + 1) * d];
            let mut map = (q.slice(part).dot(&k.slice(part).t()) * scale).mapv(f64::exp);
            for mut row in map.rows_mut() {
                row /= row.sum();
            }
            let sum = map.dot(&v.slice(part)) + r.slice(part);
            output.slice_mut(s![sample, .., head * d..(head + 1) * d]).assign(&sum);
            maps.slice_mut(s![sample, head, .., ..]).assign(&map);
        }
    }
    (output, maps)
}

fn check_interacting(x: &Array3<f32>, weights: &[Array2<f32>; 4], heads: usize, scale: Option<f32>) -> Result<()> {
    let [q, k, v, r] = weights.each_ref().map(|matrix| matrix.view());
    let loaded = InteractingWeights::new(&CPU, &q, &k, &v, Some(&r), heads)?;
    let options = scale.map_or(InteractingOptions::new(), |scale| InteractingOptions::new().scale(scale));
    let result = interacting_layer(&CPU.tensor(x)?, &loaded, &options.maps())?;
    let (output, maps) = oracle(x, weights, heads, f64::from(scale.unwrap_or(1.0)));
    let actual = result.output.to_array()?;
    assert_eq!(actual.dim(), output.dim());
    // 1e-5 of a row's largest magnitude before ReLU: sums of some hundred f32 terms, and scores of some units under exp.
    for (actual, expected) in actual.rows().into_iter().zip(output.rows()) {
        let largest = expected.iter().fold(0.0, |largest: f64, value| largest.max(value.abs()));
        for (&actual, &expected) in actual.iter().zip(expected) {
            assert!((f64::from(actual) - expected.max(0.0)).abs() <= 1e-5 * largest, "{actual}, expected {expected}");
        }
    }
    let actual = result.maps.map(|maps| maps.to_array()).transpose()?;
    let actual: Vec<f32> = actual.into_iter().flatten().collect();
    close(&actual, maps.as_slice().unwrap_or(&[]), x.dim().1.max(1), 1e-5);
    Ok(())
}

#[test]
fn interacting_layers_are_those_of_the_oracle() -> Result<()> {
    for ((batch, fields, input), heads, d) in [
        ((0, 3, 4), 1, 8),
        ((1, 1, 1), 1, 1),
        ((2, 3, 5), 3, 7),
        ((37, 39, 16), 2, 16),
        ((17, 16, 8), 2, 8),
        ((3, 65, 9), 2, 33),
    ] {
        let spread = 1.5 / (input as f32).sqrt();
        let weights = [1, 2, 3, 4].map(|seed| noise((input, heads * d), seed) * spread);
        check_interacting(&noise((batch, fields, input), 5), &weights, heads, None)?;
        check_interacting(&noise((batch, fields, input), 6), &weights, heads, Some(0.3))?;
    }
    Ok(())
}

/// Rows of the Adult census: each category is a row of a seeded table, each number, up to two deviations, a multiple of one.
#[test]
fn interacting_layers_of_the_adult_census() -> Result<()> {
    let text = include_str!("data/adult_128.csv");
    let (input, heads, d) = (16, 2, 16);
    let table = noise((64, input), 11);
    let mut fields = Vec::new();
    let mut count = 0;
    for line in text.lines().skip(1) {
        for (field, value) in line.split(',').enumerate() {
            let value: f32 = value.parse().unwrap_or_else(|error| panic!("{value}: {error}"));
            let (row, factor) =
                if field < 8 { ((value as usize + 7 * field) % 56, 1.0) } else { (48 + field, value.clamp(-2.0, 2.0)) };
            fields.extend(table.row(row).iter().map(|element| element * factor));
        }
        count += 1;
    }
    assert_eq!(count, 128);
    let x = Array3::from_shape_vec((count, 14, input), fields).unwrap_or_else(|error| panic!("{error}"));
    let weights = [1, 2, 3, 4].map(|seed| noise((input, heads * d), seed) * 0.3);
    check_interacting(&x, &weights, heads, None)
}

fn layers(d: usize, units: &[usize], kind: usize) -> Vec<HiddenLayer> {
    let inputs = [4 * d].into_iter().chain(units.iter().copied());
    let layer = |((inputs, &count), seed): ((usize, &usize), u32)| HiddenLayer {
        weights: noise((inputs, count), seed) / (inputs as f32).sqrt(),
        bias: noise(count, seed + 100),
        activation: match kind {
            0 => Activation::Sigmoid,
            1 => Activation::Prelu { alpha: noise(count, seed + 200) },
            _ => Activation::Dice {
                mean: noise(count, seed + 300),
                variance: noise(count, seed + 400).mapv(|value| value.abs() + 0.01),
                alpha: noise(count, seed + 200),
                epsilon: 1e-8,
            },
        },
    };
    inputs.zip(units).zip(10..).map(layer).collect()
}

/// The network on the concatenation, as the paper draws it.
fn logit(q: &[f64], k: &[f64], layers: &[HiddenLayer], last: &Array1<f32>, bias: f64) -> f64 {
    let pairs = || q.iter().zip(k);
    let all = q.iter().chain(k).copied().chain(pairs().map(|(q, k)| q - k)).chain(pairs().map(|(q, k)| q * k));
    let mut values: Array1<f64> = all.collect();
    for layer in layers {
        values = values.dot(&layer.weights.mapv(f64::from)) + layer.bias.mapv(f64::from);
        for (unit, x) in values.iter_mut().enumerate() {
            *x = match &layer.activation {
                Activation::Sigmoid => sigmoid(*x),
                Activation::Prelu { alpha } => x.max(0.0) + f64::from(alpha[unit]) * x.min(0.0),
                Activation::Dice { mean, variance, alpha, epsilon } => {
                    let deviation = (f64::from(variance[unit]) + f64::from(*epsilon)).sqrt();
                    let p = sigmoid((*x - f64::from(mean[unit])) / deviation);
                    p * *x + (1.0 - p) * f64::from(alpha[unit]) * *x
                }
            };
        }
    }
    values.dot(&last.mapv(f64::from)) + bias
}

#[test]
fn activation_units_are_those_of_the_oracle() -> Result<()> {
    let offsets = [0, 0, 5, 6, 40, 40, 73];
    for (d, units) in [(1, vec![1]), (7, vec![17, 3]), (32, vec![80, 40]), (5, vec![33])] {
        let (q, k) = (noise((6, d), 1), noise((73, d), 2));
        for (kind, softmax) in [(0, None), (1, None), (2, None), (1, Some(0.7f32))] {
            let layers = layers(d, &units, kind);
            let last = noise(units[units.len() - 1], 9);
            let weights = ActivationUnitWeights::new(&CPU, &layers, &last.view(), 0.1)?;
            let options =
                softmax.map_or(ActivationUnitOptions::new(), |scale| ActivationUnitOptions::new().softmax(scale));
            let result =
                local_activation_unit(&CPU.tensor(&q)?, &CPU.tensor(&k)?, &offsets, &weights, &options.weights())?;
            let (sums, found) =
                (result.output.to_array()?, result.weights.map(|weights| weights.to_array()).transpose()?);
            let found = found.unwrap_or_default();
            for row in 0..6 {
                let q: Vec<f64> = q.row(row).iter().map(|&value| value.into()).collect();
                let keys = offsets[row]..offsets[row + 1];
                let wide = |key: usize| -> Vec<f64> { k.row(key).iter().map(|&value| value.into()).collect() };
                let mut expected: Vec<f64> =
                    keys.clone().map(|key| logit(&q, &wide(key), &layers, &last, f64::from(0.1f32))).collect();
                if let Some(scale) = softmax {
                    expected.iter_mut().for_each(|weight| *weight = (*weight * f64::from(scale)).exp());
                    let total: f64 = expected.iter().sum();
                    expected.iter_mut().for_each(|weight| *weight /= total);
                }
                // Each layer rounds sums of terms below 1 to some eps; Dice divides by deviations of 0.1.
                let bound = 1e-5 * expected.iter().fold(1.0, |largest: f64, weight| largest.max(weight.abs()));
                let mut sum = vec![0.0; d];
                for (key, weight) in keys.clone().zip(&expected) {
                    assert!((f64::from(found[key]) - weight).abs() <= bound, "{d} {kind}: {} {weight}", found[key]);
                    sum.iter_mut().zip(wide(key)).for_each(|(sum, value)| *sum += weight * value);
                }
                for (&actual, expected) in sums.row(row).iter().zip(sum) {
                    let error = (f64::from(actual) - expected).abs();
                    assert!(error <= bound * keys.len() as f64, "{d} {kind}: {actual} {expected}");
                }
            }
        }
    }
    Ok(())
}

/// The gates of strips (batch, channels, strip).
fn gates(strips: &Array3<f64>, w: &Array3<f32>, gamma: &Array1<f32>, beta: &Array1<f32>, groups: usize) -> Array3<f64> {
    let (batch, channels, length) = strips.dim();
    let (inner, taps) = (w.dim().1, w.dim().2);
    let mut out = Array3::zeros(strips.dim());
    for ((b, c, i), out) in out.indexed_iter_mut() {
        for k in 0..inner {
            for tap in 0..taps {
                let at = i as isize + tap as isize - taps as isize / 2;
                if (0..length as isize).contains(&at) {
                    *out += f64::from(w[[c, k, tap]]) * strips[[b, c / inner * inner + k, at as usize]];
                }
            }
        }
    }
    let size = channels / groups;
    for b in 0..batch {
        for group in 0..groups {
            let mut part = out.slice_mut(s![b, group * size..(group + 1) * size, ..]);
            let mean = part.iter().sum::<f64>() / part.len() as f64;
            let variance = part.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / part.len() as f64;
            for ((c, _), value) in part.indexed_iter_mut() {
                let normal = (*value - mean) / (variance + 1e-5).sqrt();
                *value = sigmoid(normal * f64::from(gamma[group * size + c]) + f64::from(beta[group * size + c]));
            }
        }
    }
    out
}

#[test]
fn gated_maps_are_those_of_the_oracle() -> Result<()> {
    for (shape, inner, taps, groups) in
        [((1, 1, 1, 1), 1, 5, 1), ((2, 16, 1, 9), 8, 7, 16), ((2, 64, 14, 17), 1, 5, 32), ((1, 2, 70, 33), 2, 7, 1)]
    {
        let w: Array3<f32> = noise((shape.1, inner, taps), 1);
        let (gamma, beta) = (noise(shape.1, 3), noise(shape.1, 4));
        let x: Array4<f32> = noise(shape, 5) + 0.3;
        let wide = x.mapv(f64::from);
        let (Some(rows), Some(columns)) = (wide.mean_axis(Axis(3)), wide.mean_axis(Axis(2))) else { panic!("empty") };
        let (rows, columns) = (gates(&rows, &w, &gamma, &beta, groups), gates(&columns, &w, &gamma, &beta, groups));
        let expected: Vec<f64> =
            wide.indexed_iter().map(|((b, c, i, j), x)| x * rows[[b, c, i]] * columns[[b, c, j]]).collect();
        let weights = ElaWeights::new(&CPU, &w.view(), None, &gamma.view(), &beta.view(), groups)?;
        let actual = efficient_local_attention(&CPU.tensor(&x)?, &weights)?.to_array()?;
        // 1e-5 of a plane's largest magnitude: the norm may divide the roundings of means by deviations of some tenths.
        close(actual.as_slice().unwrap_or(&[]), &expected, shape.2 * shape.3, 1e-5);
    }
    assert_eq!(ElaVariant::Tiny.sizes(64), (5, 64, 32));
    assert_eq!(ElaVariant::Large.sizes(64), (7, 8, 16));
    Ok(())
}

/// A `.safetensors` file of f32 tensors, or of f16 ones.
fn file(tensors: &[(&str, Vec<usize>, Vec<f32>)], half: bool) -> Vec<u8> {
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(.., values)| match half {
            true => values.iter().flat_map(|&value| half::f16::from_f32(value).to_le_bytes()).collect(),
            false => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        })
        .collect();
    let views = tensors.iter().zip(&bytes).map(|((name, shape, _), bytes)| {
        let dtype = if half { Dtype::F16 } else { Dtype::F32 };
        (*name, TensorView::new(dtype, shape.clone(), bytes).unwrap_or_else(|error| panic!("{error}")))
    });
    safetensors::serialize(views, None).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn weights_come_from_files() -> Result<()> {
    // Sixteenths, which f16 holds.
    let values = |count: usize| (0..count).map(|at| (at * 5 % 16) as f32 / 16.0 - 0.5).collect::<Vec<_>>();
    let tensor = |name, shape: &[usize]| (name, shape.to_vec(), values(shape.iter().product()));
    let x = CPU.tensor(&noise((3, 4, 6), 1))?;
    let mut outputs = Vec::new();
    for half in [false, true] {
        let names = ["l.W_Query", "l.W_key", "l.W_Value", "l.W_Res"];
        let bytes = file(&names.map(|name| tensor(name, &[6, 8])), half);
        let weights = InteractingWeights::from_bytes(&bytes, "l", 2, &CPU)?;
        outputs.push(interacting_layer(&x, &weights, &InteractingOptions::new())?.output.to_array()?);
    }
    assert_eq!(outputs[0], outputs[1]);
    let reason = |error: Option<Error>| match error {
        Some(Error::Format { reason, .. }) => reason,
        other => panic!("{other:?}"),
    };
    let bytes = file(&[tensor("l.W_Query", &[6, 8]), tensor("l.W_key", &[6, 8])], false);
    assert!(reason(InteractingWeights::from_bytes(&bytes, "l.", 2, &CPU).err()).contains("no tensor l.W_value"));
    let bytes = file(&[tensor("W_Query", &[6, 8]), tensor("W_key", &[6, 7]), tensor("W_Value", &[6, 8])], false);
    let found = reason(InteractingWeights::from_bytes(&bytes, "", 2, &CPU).err());
    assert!(found.contains("W_key has shape [6, 7], expected [6, 8]"), "{found}");
    assert!(matches!(InteractingWeights::from_bytes(&[1, 2, 3], "", 2, &CPU), Err(Error::Format { .. })));
    assert!(matches!(InteractingWeights::load("/nowhere.safetensors", "", 2, &CPU), Err(Error::Io { .. })));

    let mut names = vec![tensor("W1", &[8, 3]), tensor("b1", &[3]), tensor("W2", &[3, 1]), tensor("b2", &[1])];
    ActivationUnitWeights::from_bytes(&file(&names, false), "", ActivationKind::Sigmoid, &CPU)?;
    let error = ActivationUnitWeights::from_bytes(&file(&names, false), "", ActivationKind::Prelu, &CPU);
    assert!(reason(error.err()).contains("alpha1"));
    names.push(tensor("alpha1", &[3]));
    ActivationUnitWeights::from_bytes(&file(&names, true), "", ActivationKind::Prelu, &CPU)?;

    let names = [tensor("a.conv.weight", &[64, 8, 7]), tensor("a.gn.weight", &[64]), tensor("a.gn.bias", &[64])];
    ElaWeights::from_bytes(&file(&names, false), "a", ElaVariant::Large, &CPU)?;
    let found = reason(ElaWeights::from_bytes(&file(&names, false), "a", ElaVariant::Base, &CPU).err());
    assert!(found.contains("a.conv.weight has shape [64, 8, 7]"), "{found}");
    Ok(())
}

#[test]
fn what_does_not_fit_is_named() -> Result<()> {
    let w = noise((4, 6), 1);
    let new = |heads| InteractingWeights::new(&CPU, &w.view(), &w.view(), &w.view(), None, heads);
    assert!(matches!(new(0), Err(Error::Argument { quantity: "heads", .. })));
    assert!(matches!(new(4), Err(Error::Shape { quantity: "W_query", .. })));
    let x = CPU.tensor(&noise((2, 3, 5), 1))?;
    let result = interacting_layer(&x, &new(2)?, &InteractingOptions::new());
    assert!(matches!(result, Err(Error::Shape { quantity: "x", .. })));
    let x = CPU.tensor(&noise((2, 3, 4), 1))?;
    let result = interacting_layer(&x, &new(2)?, &InteractingOptions::new().scale(f32::NAN));
    assert!(matches!(result, Err(Error::Argument { quantity: "scale", .. })));

    let weights = ActivationUnitWeights::new(&CPU, &layers(2, &[3], 0), &noise(3, 1).view(), 0.0)?;
    let (q, k) = (CPU.tensor(&noise((2, 2), 1))?, CPU.tensor(&noise((5, 2), 1))?);
    for offsets in [&[][..], &[0, 5], &[0, 4, 3], &[0, 6, 5], &[0, 2, 4], &[1, 2, 5]] {
        let result = local_activation_unit(&q, &k, offsets, &weights, &ActivationUnitOptions::new());
        assert!(matches!(result, Err(Error::Argument { quantity: "offsets", .. })), "{offsets:?}");
    }
    let last = noise(4, 1);
    let result = ActivationUnitWeights::new(&CPU, &layers(2, &[3], 0), &last.view(), 0.0);
    assert!(matches!(result, Err(Error::Shape { .. })));

    let (w, ones) = (noise((6, 1, 5), 1), Array1::ones(6));
    let new = |groups| ElaWeights::new(&CPU, &w.view(), None, &ones.view(), &ones.view(), groups);
    assert!(matches!(new(4), Err(Error::Argument { quantity: "norm_groups", .. })));
    let result = efficient_local_attention(&CPU.tensor(&noise((1, 5, 2, 2), 1))?, &new(2)?);
    assert!(matches!(result, Err(Error::Shape { quantity: "x", .. })));
    Ok(())
}
