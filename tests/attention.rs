//! Attention on the CPU against its definition in f64, over shapes, options, hostile and real values; and what cannot be, with its error.
//! Devices are compared with the same definition in `tests/kernels/attention.rs`.

mod common;

use std::path::Path;

use common::attention::{Setup, forward, noise, row_error};
use half::f16;
use ndarray::{Array3, Array4, Axis, s};
use orthant::attention::{AttentionElement, Options, Output, alibi_slopes, attention, merge_attention};
use orthant::{Device, Error, Tensor};

/// Rows are within this of the oracle, over the largest element of the row: 1e-5 is eighty roundings of f32, of scores up to 100.
const F32: f64 = 1e-5;
/// The same for f16 outputs: their last rounding is 2^-11 = 4.9e-4.
const F16: f64 = 2e-3;

fn options(setup: &Setup) -> Options {
    let mut options = Options::new().lse();
    if let Some(scale) = setup.scale {
        options = options.scale(scale as f32);
    }
    if setup.causal {
        options = options.causal();
    }
    if let Some(window) = setup.window {
        options = options.window(window);
    }
    if let Some(cap) = setup.softcap {
        options = options.softcap(cap as f32);
    }
    if let Some(slopes) = &setup.alibi {
        options = options.alibi(slopes.clone());
    }
    if let Some(sinks) = &setup.sinks {
        options = options.sinks(sinks.clone());
    }
    if let Some((shape, bias)) = &setup.bias {
        options = options.bias(tensor(*shape, bias));
    }
    if let Some(lengths) = &setup.key_lengths {
        options = options.key_lengths(lengths.clone());
    }
    if let Some((q, kv)) = &setup.ragged {
        options = options.ragged(q.clone(), kv.clone());
    }
    options
}

fn tensor<T: orthant::Element>(shape: [usize; 4], elements: &[T]) -> Tensor<T, ndarray::Ix4> {
    Device::cpu().tensor_from(Array4::from_shape_vec(shape, elements.to_vec()).unwrap()).unwrap()
}

fn tensors<T: AttentionElement>(setup: &Setup, q: &[T], k: &[T], v: &[T]) -> [Tensor<T, ndarray::Ix4>; 3] {
    let Setup { batch, q_heads, kv_heads, q_len, kv_len, d, d_v, .. } = *setup;
    [
        tensor([batch, q_heads, q_len, d], q),
        tensor([batch, kv_heads, kv_len, d], k),
        tensor([batch, kv_heads, kv_len, d_v], v),
    ]
}

/// Runs `setup` on these values, stored as `T`, and compares output and log-sum-exp with the oracle on the values as stored.
#[track_caller]
fn check_values<T: AttentionElement>(setup: &Setup, values: [&[f32]; 3], tolerance: f64) -> Output<T> {
    let [q, k, v] = values.map(|values| values.iter().map(|&value| T::narrow(value)).collect::<Vec<T>>());
    let wide = |values: &[T]| values.iter().map(|value| f64::from(value.widen())).collect::<Vec<f64>>();
    let expected = forward(setup, &wide(&q), &wide(&k), &wide(&v));
    let [q, k, v] = tensors(setup, &q, &k, &v);
    let actual = attention(&q, &k, &v, &options(setup)).unwrap();
    let output: Vec<f64> = actual.output.to_array().unwrap().iter().map(|value| value.widen().into()).collect();
    // Rows below the smallest normal f16 have fewer digits.
    let floor = if T::NAME == "f16" { 2f64.powi(-14) } else { f64::MIN_POSITIVE };
    let (error, row) = row_error(&output, &expected.output, setup.d_v, |_| floor);
    assert!(error <= tolerance, "{setup:?}: row {row} of the output is off by {error:e}");
    let lse: Vec<f64> = actual.lse.as_ref().unwrap().to_array().unwrap().iter().map(|&value| value.into()).collect();
    // Scores are good to f32's roundings of their own size.
    let (error, row) = row_error(&lse, &expected.lse, 1, |_| 1.0);
    assert!(error <= F32, "{setup:?}: log-sum-exp {row} is {:e}, expected {:e}", lse[row], expected.lse[row]);
    actual
}

#[track_caller]
fn check(setup: &Setup) {
    let [q, k, v] = setup.sizes();
    let (q, k, v) = (noise(q, 1), noise(k, 2), noise(v, 3));
    let amplified: Vec<f32> = q.iter().map(|value| 2.0 * value).collect();
    check_values::<f32>(setup, [&amplified, &k, &v], F32);
    check_values::<f16>(setup, [&amplified, &k, &v], F16);
}

#[test]
fn every_length_and_size() {
    // 0 and 1, around the tiles of vectors (8, 16, 32), of rows (12, 64) and of keys (64, 128), and long.
    for length in [0, 1, 7, 8, 9, 11, 12, 13, 31, 32, 33, 63, 64, 65, 127, 128, 129, 257] {
        for causal in [false, true] {
            check(&Setup { causal, ..Setup::new(1, (2, 1), (length, length), (16, 16)) });
            check(&Setup { causal, ..Setup::new(1, (2, 2), (length, 70), (24, 8)) });
            check(&Setup { causal, ..Setup::new(2, (3, 1), (33, length), (8, 24)) });
        }
    }
    for d in [1, 2, 3, 15, 17, 32, 64, 80, 96, 128, 255, 256] {
        check(&Setup::new(1, (2, 1), (40, 75), (d, d)));
        check(&Setup::new(1, (2, 1), (1, 75), (d, d)));
        check(&Setup { causal: true, ..Setup::new(1, (4, 2), (37, 75), (d, 20)) });
        check(&Setup { causal: true, ..Setup::new(1, (4, 2), (2, 75), (20, d)) });
    }
    for length in [1000, 4096] {
        check(&Setup { causal: true, ..Setup::new(1, (2, 1), (70, length), (64, 64)) });
        check(&Setup::new(1, (4, 1), (1, length), (128, 128)));
    }
    check(&Setup { causal: true, ..Setup::new(1, (1, 1), (1000, 1000), (32, 32)) });
    check(&Setup::new(0, (2, 1), (3, 4), (8, 8)));
}

#[test]
fn every_option_with_every_other() {
    let bias_shapes = [[2, 6, 45, 80], [1, 6, 1, 80], [2, 1, 45, 1], [1, 1, 1, 1]];
    let mut number = 0;
    for (q_len, kv_len) in [(45, 80), (80, 45), (3, 80), (1, 300)] {
        for causal in [false, true] {
            for window in [None, Some(1), Some(17), Some(1000)] {
                for more in 0..16u32 {
                    number += 1;
                    let has = |bit: u32| more >> bit & 1 == 1;
                    let mut setup = Setup { causal, window, ..Setup::new(2, (6, 2), (q_len, kv_len), (12, 20)) };
                    setup.softcap = has(0).then_some(1.5);
                    setup.alibi = has(1).then(|| alibi_slopes(6));
                    setup.sinks = has(2).then(|| noise(6, number).iter().map(|logit| 3.0 * logit).collect());
                    if has(3) {
                        let mut shape = bias_shapes[number as usize % 4];
                        shape[2] = if shape[2] == 1 { 1 } else { q_len };
                        shape[3] = if shape[3] == 1 { 1 } else { kv_len };
                        let mut bias = noise(shape.iter().product(), number);
                        if bias.len() > 1 {
                            bias.iter_mut().step_by(5).for_each(|bias| *bias = f32::NEG_INFINITY);
                        }
                        setup.bias = Some((shape, bias));
                    }
                    match number % 3 {
                        0 => setup.key_lengths = Some(vec![kv_len / 3, kv_len]),
                        1 => setup.key_lengths = Some(vec![0, kv_len - 1]),
                        _ => setup.scale = Some(0.75),
                    }
                    check(&setup);
                }
            }
        }
    }
}

#[test]
fn ragged_sequences() {
    for causal in [false, true] {
        for window in [None, Some(20)] {
            let q_offsets = vec![0, 0, 1, 40, 41, 41, 130];
            let kv_offsets = vec![0, 5, 6, 46, 246, 247, 300];
            let mut setup = Setup { causal, window, ..Setup::new(1, (4, 2), (130, 300), (16, 16)) };
            setup.ragged = Some((q_offsets, kv_offsets));
            check(&setup);
            setup.bias = Some(([6, 1, 89, 200], noise(6 * 89 * 200, 5)));
            setup.sinks = Some(noise(4, 6));
            check(&setup);
        }
    }
    check(&Setup { ragged: Some((vec![0], vec![0])), ..Setup::new(1, (2, 1), (0, 0), (8, 8)) });
}

#[test]
fn hostile_values() {
    let setup = Setup { causal: true, ..Setup::new(1, (2, 1), (50, 120), (16, 16)) };
    let [q, k, v] = setup.sizes();
    let (noise_q, noise_k, values) = (noise(q, 1), noise(k, 2), noise(v, 3));
    // Logits of +-100 and beyond.
    let loud = |values: &[f32], factor: f32| values.iter().map(|value| value.signum() * factor).collect::<Vec<_>>();
    check_values::<f32>(&setup, [&loud(&noise_q, 5.0), &loud(&noise_k, 5.0), &values], F32);
    check_values::<f32>(&setup, [&loud(&noise_q, 5.0), &loud(&noise_k, 5.0), &loud(&values, 1e30)], F32);
    check_values::<f16>(&setup, [&loud(&noise_q, 5.0), &loud(&noise_k, 5.0), &values], F16);
    // All keys equal: the mean of the values.
    check_values::<f32>(&setup, [&noise_q, &vec![0.5; k], &values], F32);
    // One huge key: it takes everything, or nothing.
    let mut huge = noise_k.clone();
    huge[7 * 16..8 * 16].fill(300.0);
    check_values::<f32>(&setup, [&noise_q, &huge, &values], F32);
    check_values::<f16>(&setup, [&noise_q, &huge, &values], F16);
    // Every score far below, or far above, where exp() ends: the softmax knows only differences.
    for level in [-1e6, 1e6] {
        let mut shifted = setup.clone();
        shifted.bias = Some(([1, 1, 1, 1], vec![level]));
        let [q, k, v] = tensors(&setup, &noise_q, &vec![0.0; k], &values);
        let expected = attention(&q, &k, &v, &options(&setup)).unwrap().output.to_array().unwrap();
        let actual = attention(&q, &k, &v, &options(&shifted)).unwrap().output.to_array().unwrap();
        assert_eq!(actual, expected, "{level}");
    }
    // Scores beyond f32 are refused, not wrong.
    let [q, k, v] = tensors(&setup, &loud(&noise_q, 1e20), &loud(&noise_k, 1e20), &values);
    let refused = attention(&q, &k, &v, &options(&setup));
    assert!(matches!(refused, Err(Error::Domain { .. })), "{refused:?}");
}

#[test]
fn what_lies_behind_a_length_is_never_read() {
    for (q_len, d) in [(1, 16), (40, 16), (40, 13)] {
        let setup =
            Setup { key_lengths: Some(vec![30, 0]), causal: true, ..Setup::new(2, (2, 1), (q_len, 64), (d, d)) };
        let [q, k, v] = setup.sizes();
        let (q, mut k, mut v) = (noise(q, 1), noise(k, 2), noise(v, 3));
        let clean = check_values::<f32>(&setup, [&q, &k, &v], F32).output.to_array().unwrap();
        for values in [&mut k, &mut v] {
            for batch in 0..2 {
                let first = (batch * 64 + [30, 0][batch]) * d;
                values[first..(batch + 1) * 64 * d].fill(f32::NAN);
            }
        }
        let [q, k, v] = tensors(&setup, &q, &k, &v);
        let dirty = attention(&q, &k, &v, &options(&setup)).unwrap();
        assert_eq!(dirty.output.to_array().unwrap(), clean);
        assert!(dirty.lse.unwrap().to_array().unwrap().slice(s![1, .., ..]).iter().all(|&lse| lse == -1e30));
    }
}

/// Three tensors of the data file, as f32, with a batch axis.
fn activations() -> [Vec<f32>; 3] {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/smollm2_layer08_512.safetensors");
    let file = std::fs::read(path).unwrap();
    let header = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let names: serde_json::Value = serde_json::from_slice(&file[8..8 + header]).unwrap();
    ["q_post_last64", "k_post", "v"].map(|name| {
        let at = |index: usize| 8 + header + names[name]["data_offsets"][index].as_u64().unwrap() as usize;
        file[at(0)..at(1)].as_chunks().0.iter().map(|&bytes| f16::from_le_bytes(bytes).to_f32()).collect()
    })
}

#[test]
fn real_activations_with_their_sink() {
    let setup = Setup { causal: true, ..Setup::new(1, (9, 3), (64, 512), (64, 64)) };
    let [q, k, v] = activations();
    check_values::<f32>(&setup, [&q, &k, &v], F32);
    check_values::<f16>(&setup, [&q, &k, &v], F16);
    // The decoder's last token alone.
    let last: Vec<f32> = q.chunks(64 * 64).flat_map(|head| head[63 * 64..].to_vec()).collect();
    check_values::<f32>(&Setup { q_len: 1, ..setup.clone() }, [&last, &k, &v], F32);
    // What the first key takes: 1 - exp(lse without it - lse).
    let lse = |bias: Vec<f32>| {
        let setup = Setup { bias: Some(([1, 1, 1, 512], bias)), ..setup.clone() };
        check_values::<f32>(&setup, [&q, &k, &v], F32).lse.unwrap().to_array().unwrap()
    };
    let mut masked = vec![0.0; 512];
    masked[0] = f32::NEG_INFINITY;
    let (with, without) = (lse(vec![0.0; 512]), lse(masked));
    let share = 1.0 - (&without - &with).exp().mean().unwrap();
    assert!((share - 0.110).abs() < 0.002, "NumPy in f64 says 0.110: {share}");
}

/// The same bits on one thread and on several, run after run.
#[test]
fn threads_change_nothing() {
    for (q_len, kv_len) in [(200, 300), (1, 5000), (2, 700)] {
        let setup = Setup { causal: true, ..Setup::new(2, (4, 2), (q_len, kv_len), (32, 32)) };
        let [q, k, v] = setup.sizes();
        let [q, k, v] = tensors(&setup, &noise(q, 1), &noise(k, 2), &noise(v, 3));
        let run = || attention(&q, &k, &v, &options(&setup)).unwrap();
        let results = [1, 2, 3, 2].map(|threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let result = pool.install(run);
            (result.output.to_array().unwrap(), result.lse.unwrap().to_array().unwrap())
        });
        for result in &results[1..] {
            assert_eq!(*result, results[0], "{q_len} {kv_len}");
        }
    }
}

/// Parts of the keys merge to the whole.
#[test]
fn parts_merge() {
    let whole = Setup { sinks: Some(vec![0.5, -1.0]), ..Setup::new(1, (2, 1), (9, 100), (16, 16)) };
    let [q, k, v] = whole.sizes();
    let (q, k, v) = (noise(q, 1), noise(k, 2), noise(v, 3));
    let expected = check_values::<f32>(&whole, [&q, &k, &v], F32);
    let [q, k, v] = tensors(&whole, &q, &k, &v);
    let (k, v) = (k.to_array().unwrap(), v.to_array().unwrap());
    let part = |keys: std::ops::Range<usize>, sinks: bool| {
        let cut = |array: &Array4<f32>| Device::cpu().tensor(&array.slice(s![.., .., keys.clone(), ..])).unwrap();
        let options = if sinks { options(&whole) } else { Options::new().lse() };
        attention(&q, &cut(&k), &cut(&v), &options).unwrap()
    };
    let merged =
        merge_attention(&[part(0..40, false), part(40..40, false), part(40..93, true), part(93..100, false)]).unwrap();
    let close = |actual: Vec<f32>, expected: Vec<f32>, width| {
        let wide = |values: Vec<f32>| values.into_iter().map(f64::from).collect::<Vec<f64>>();
        // Both are within 1e-6 or so of the oracle.
        let (error, row) = row_error(&wide(actual), &wide(expected), width, |_| 1e-3);
        assert!(error < 4e-6, "row {row}: {error:e}");
    };
    let flat = |output: &Output<f32>| output.output.to_array().unwrap().into_raw_vec_and_offset().0;
    close(flat(&merged), flat(&expected), 16);
    let lse = |output: Output<f32>| output.lse.unwrap().to_array().unwrap().into_raw_vec_and_offset().0;
    close(lse(merged), lse(expected), 1);
    let bare = attention(&q, &tensor([1, 1, 0, 16], &[]), &tensor([1, 1, 0, 16], &[]), &Options::new()).unwrap();
    assert!(matches!(merge_attention(&[bare]), Err(Error::Argument { .. })));
    assert!(matches!(merge_attention::<f32>(&[]), Err(Error::Argument { .. })));
}

#[test]
fn what_does_not_fit_is_named() {
    let zeros = |shape: [usize; 4]| tensor(shape, &vec![0.0f32; shape.iter().product()]);
    let (q, k, v) = (zeros([2, 4, 3, 8]), zeros([2, 2, 5, 8]), zeros([2, 2, 5, 6]));
    let said = |q: &Tensor<f32, _>, k: &Tensor<f32, _>, v: &Tensor<f32, _>, options: Options| {
        attention(q, k, v, &options).expect_err("it does not fit").to_string()
    };
    let shapes = [
        (zeros([2, 4, 3, 8]), zeros([2, 3, 5, 8]), zeros([2, 3, 5, 6]), "kv_heads that divide"),
        (zeros([2, 4, 3, 8]), zeros([2, 0, 5, 8]), zeros([2, 0, 5, 6]), "kv_heads that divide"),
        (zeros([2, 4, 3, 8]), zeros([1, 2, 5, 8]), zeros([1, 2, 5, 6]), "k has shape"),
        (zeros([2, 4, 3, 8]), zeros([2, 2, 5, 7]), zeros([2, 2, 5, 6]), "k has shape"),
        (zeros([2, 4, 3, 8]), zeros([2, 2, 5, 8]), zeros([2, 2, 4, 6]), "v has shape"),
        (zeros([2, 4, 3, 257]), zeros([2, 2, 5, 257]), zeros([2, 2, 5, 6]), "d from 1 to 256"),
        (zeros([2, 4, 3, 8]), zeros([2, 2, 5, 8]), zeros([2, 2, 5, 0]), "d_v from 1 to 256"),
    ];
    for (q, k, v, words) in &shapes {
        let said = said(q, k, v, Options::new());
        assert!(said.contains(words), "{said}");
    }
    let bias = |shape| Options::new().bias(zeros(shape));
    let options = [
        (Options::new().window(0), "window is 0"),
        (Options::new().splits(0), "splits is 0"),
        (Options::new().softcap(0.0), "softcap is 0"),
        (Options::new().softcap(f32::NAN), "softcap is NaN"),
        (Options::new().scale(f32::INFINITY), "scale is inf"),
        (Options::new().sinks(vec![0.0; 3]), "sinks has shape [3], expected [4]"),
        (Options::new().sinks(vec![0.0, 0.0, f32::NAN, 0.0]), "sinks at index 2 is NaN"),
        (Options::new().alibi(vec![0.0; 5]), "alibi has shape [5]"),
        (Options::new().key_lengths(vec![1]), "key_lengths has shape [1]"),
        (Options::new().key_lengths(vec![1, 6]), "key_lengths is 6, expected at most 5"),
        (Options::new().ragged(vec![0, 3], vec![0, 5]), "batch 1"),
        (bias([2, 4, 3, 4]), "bias has shape [2, 4, 3, 4]"),
        (bias([2, 2, 3, 5]), "bias has shape [2, 2, 3, 5]"),
        (bias([0, 1, 1, 1]), "bias has shape [0, 1, 1, 1]"),
    ];
    for (options, words) in options {
        let said = said(&q, &k, &v, options);
        assert!(said.contains(words), "{said}");
    }
    let (q, k, v) = (zeros([1, 4, 3, 8]), zeros([1, 2, 5, 8]), zeros([1, 2, 5, 6]));
    let offsets = [
        (vec![0, 2], vec![0, 5], "q_offsets is"),
        (vec![0, 4, 3], vec![0, 2, 5], "q_offsets is"),
        (vec![1, 3], vec![0, 5], "q_offsets is"),
        (vec![], vec![], "q_offsets is"),
        (vec![0, 3], vec![0, 2, 5], "kv_offsets is 3, expected 2 offsets"),
        (vec![0, 3], vec![0, 6], "kv_offsets is"),
    ];
    for (q_offsets, kv_offsets, words) in offsets {
        let said = said(&q, &k, &v, Options::new().ragged(q_offsets, kv_offsets));
        assert!(said.contains(words), "{said}");
    }
    let both = Options::new().ragged(vec![0, 3], vec![0, 5]).key_lengths(vec![5]);
    assert!(said(&q, &k, &v, both).contains("key_lengths"));
}

#[test]
fn elements_that_are_not_finite_are_named() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for (q_len, kv_len) in [(1, 100), (40, 100)] {
            for which in 0..3 {
                let setup = Setup::new(1, (2, 1), (q_len, kv_len), (16, 16));
                let [q, k, v] = setup.sizes();
                let mut values = [noise(q, 1), noise(k, 2), noise(v, 3)];
                let index = values[which].len() - 5;
                values[which][index] = bad;
                let [q, k, v] = tensors(&setup, &values[0], &values[1], &values[2]);
                let said = attention(&q, &k, &v, &options(&setup)).expect_err("not finite").to_string();
                let name = ["q", "k", "v"][which];
                assert!(said.starts_with(&format!("attention: {name} at index {index} is ")), "{said}");
            }
        }
    }
}

/// A bias of -inf hides a key, NaN and infinity are errors, where a query sees the key.
#[test]
fn a_bias_that_is_not_finite_is_named() {
    for (q_len, shape) in [(1, [1, 2, 1, 100]), (40, [1, 1, 40, 100]), (40, [1, 2, 40, 1]), (2, [1, 1, 1, 1])] {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut bias = vec![0.0; shape.iter().product()];
            let index = bias.len() - 1;
            bias[index] = bad;
            let setup = Setup { bias: Some((shape, bias)), ..Setup::new(1, (2, 1), (q_len, 100), (16, 16)) };
            let [q, k, v] = setup.sizes();
            let [q, k, v] = tensors(&setup, &noise(q, 1), &noise(k, 2), &noise(v, 3));
            match attention(&q, &k, &v, &options(&setup)) {
                Ok(_) => assert_eq!(bad, f32::NEG_INFINITY),
                Err(error) => assert!(
                    bad != f32::NEG_INFINITY
                        && error.to_string().starts_with(&format!("attention: bias at index {index} is ")),
                    "{bad}: {error}"
                ),
            }
        }
    }
}

/// A product that is too large stays an error behind the soft cap.
#[test]
fn a_soft_cap_hides_no_overflow() {
    for q_len in [1, 40] {
        for sign in [1.0, -1.0] {
            let setup = Setup { softcap: Some(2.0), ..Setup::new(1, (2, 1), (q_len, 100), (16, 16)) };
            let [q, k, v] = setup.sizes();
            let (mut q, mut k) = (noise(q, 1), noise(k, 2));
            (q[0], k[16 * 40]) = (3e30, sign * 3e30);
            let [q, k, v] = tensors(&setup, &q, &k, &noise(v, 3));
            assert!(matches!(attention(&q, &k, &v, &options(&setup)), Err(Error::Domain { .. })), "{q_len}");
        }
    }
}

#[test]
fn slopes_are_those_of_the_paper() {
    let powers: Vec<f32> = (1..=8).map(|i| 0.5f32.powi(i)).collect();
    assert_eq!(alibi_slopes(8), powers);
    let twelve = alibi_slopes(12);
    assert_eq!(twelve[..8], powers);
    // Every second slope of sixteen heads: 2^-0.5, 2^-1.5, ...
    for (slope, exponent) in twelve[8..].iter().zip([0.5f32, 1.5, 2.5, 3.5]) {
        assert!((slope - (-exponent).exp2()).abs() < 1e-7, "{slope}");
    }
    assert!(alibi_slopes(0).is_empty());
}

/// Tensors that are views of others, in any order of axes, are taken as they read.
#[test]
fn strided_arrays() {
    let array = Array3::from_shape_vec((10, 2, 8), noise(160, 4)).unwrap();
    let view = array.view().permuted_axes([1, 0, 2]).insert_axis(Axis(0));
    let device = Device::cpu();
    let strided = device.tensor(&view).unwrap();
    let plain = device.tensor(&view.as_standard_layout()).unwrap();
    let run = |t: &Tensor<f32, _>| attention(t, t, t, &Options::new()).unwrap().output.to_array().unwrap();
    assert_eq!(run(&strided), run(&plain));
}
