//! Attention on every adapter, each algorithm it has, against its definition in f64.

use anyhow::{Context, Result, ensure};
use half::f16;
use ndarray::{Array3, Array4, ArrayView4, s};
use orthant::attention::{Algorithm, AttentionElement, Options, Output, attention, merge_attention};
use orthant::{Device, Element, Error};

use crate::common::attention::{Setup, forward, noise, row_error};
use crate::common::{Case, LARGE_MEMORY, SUBGROUPS, poison};

/// Of a row's largest output: eighty roundings of f32, as on the CPU.
const F32: f64 = 1e-5;
/// Outputs rounded to f16 (5e-4); inputs are f16 for the oracle too.
const F16: f64 = 2e-3;

/// Rows below the smallest normal f16 have fewer digits.
fn floor<T: Element>() -> f64 {
    if T::NAME == "f16" { 2f64.powi(-14) } else { f64::MIN_POSITIVE }
}

/// Listed where the environment asks for them.
const MATRICES: &str = "cooperative-matrices";

fn array<T: AttentionElement>(shape: [usize; 4], values: &[f32]) -> Result<Array4<T>> {
    Ok(ArrayView4::from_shape(shape, values)?.mapv(T::narrow))
}

fn options(device: &Device, setup: &Setup) -> Result<Options> {
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
        options = options.bias(device.tensor(&array::<f32>(*shape, bias)?)?);
    }
    if let Some(lengths) = &setup.key_lengths {
        options = options.key_lengths(lengths.clone());
    }
    if let Some((q, kv)) = &setup.ragged {
        options = options.ragged(q.clone(), kv.clone());
    }
    Ok(options)
}

/// Runs `setup` on `device` and compares output and log-sum-exp; two runs must agree bit for bit.
fn check<T: AttentionElement>(
    device: &Device,
    setup: &Setup,
    change: impl Fn(Options) -> Options,
    data: [&[f32]; 3],
    bound: f64,
) -> Result<()> {
    let &Setup { batch, q_heads, kv_heads, q_len, kv_len, d, d_v, .. } = setup;
    let q = array::<T>([batch, q_heads, q_len, d], data[0])?;
    let k = array::<T>([batch, kv_heads, kv_len, d], data[1])?;
    let v = array::<T>([batch, kv_heads, kv_len, d_v], data[2])?;
    let wide = |array: &Array4<T>| array.iter().map(|value| f64::from(value.widen())).collect::<Vec<_>>();
    let expected = forward(setup, &wide(&q), &wide(&k), &wide(&v));
    // A row of one number has no larger one beside it where its terms cancel: it is measured against a part of the sum of their sizes, a tenth (eight
    // roundings of f32) or, of f16, a quarter (each weight of a matrix unit rounded by 2^-11), and at most a tenth of the largest value.
    let largest = wide(&v).into_iter().fold(0.0f64, |largest, value| largest.max(value.abs()));
    let sizes = match d_v {
        1 => forward(setup, &wide(&q), &wide(&k), &wide(&v.mapv(|v| T::narrow(v.widen().abs())))).output,
        _ => Vec::new(),
    };
    let options = change(options(device, setup)?);
    let (q, k, v) = (device.tensor(&q)?, device.tensor(&k)?, device.tensor(&v)?);
    poison(device, batch * q_heads * q_len * d_v * 4)?;
    let result = attention(&q, &k, &v, &options)?;
    let output = result.output.to_array()?;
    ensure!(output.shape() == [batch, q_heads, q_len, d_v]);
    let part = if T::NAME == "f16" { 0.25 } else { 0.1 };
    let floor =
        |row| sizes.get(row).map_or(floor::<T>(), |size: &f64| floor::<T>().max((part * size).min(0.1 * largest)));
    let (error, row) = row_error(&wide(&output), &expected.output, d_v, floor);
    ensure!(error <= bound, "output row {row} is off by {error:e} > {bound:e}: {setup:?}");
    let lse = result.lse.context("a log-sum-exp")?.to_array()?;
    for (row, (&actual, &expected)) in lse.iter().zip(&expected.lse).enumerate() {
        let error = (f64::from(actual) - expected).abs();
        // The rounding of scores up to their own size.
        ensure!(error <= F32 * expected.abs().max(1.0), "lse {row}: {actual} expected {expected}: {setup:?}");
    }
    let again = attention(&q, &k, &v, &options)?.output.to_array()?;
    ensure!(again == output, "two runs differ: {setup:?}");
    Ok(())
}

fn random<T: AttentionElement>(
    device: &Device,
    setup: &Setup,
    change: impl Fn(Options) -> Options,
    bound: f64,
) -> Result<()> {
    let [q, k, v] = setup.sizes();
    check::<T>(device, setup, change, [&noise(q, 1), &noise(k, 2), &noise(v, 3)], bound)
}

fn by_matrices(algorithm: Algorithm) -> bool {
    matches!(algorithm, Algorithm::CooperativeMatrices | Algorithm::EmulatedMatrices(_))
}

fn each(device: &Device, algorithm: Algorithm, setup: &Setup) -> Result<()> {
    if by_matrices(algorithm) {
        return random::<f16>(device, setup, |options| options.algorithm(algorithm), F16);
    }
    random::<f32>(device, setup, |options| options.algorithm(algorithm), F32)?;
    random::<f16>(device, setup, |options| options.algorithm(algorithm), F16)
}

/// Lengths around a tile, and every size of head.
fn shapes(device: &Device, algorithm: Algorithm) -> Result<()> {
    for length in [0, 1, 15, 16, 17, 33] {
        for queries in [0, 1, 31, 32, 33] {
            each(device, algorithm, &Setup::new(1, (2, 1), (queries, length), (16, 16)))?;
        }
    }
    for (d, d_v) in [(1, 1), (3, 5), (32, 32), (64, 64), (80, 80), (96, 7), (128, 128), (192, 128), (256, 256)] {
        each(device, algorithm, &Setup::new(2, (4, 2), (19, 37), (d, d_v)))?;
        each(device, algorithm, &Setup { causal: true, ..Setup::new(1, (2, 2), (37, 37), (d, d_v)) })?;
    }
    let long = Setup { causal: true, ..Setup::new(1, (1, 1), (1000, 1000), (16, 16)) };
    match by_matrices(algorithm) {
        true => each(device, algorithm, &long),
        false => random::<f32>(device, &long, |options| options.algorithm(algorithm), F32),
    }
}

/// What is special about weights in f16: scores that rise for ever, that fall, that lie so low that f16 alone would lose them; splits; and elements that
/// are not finite.
fn matrices(device: &Device, algorithm: Algorithm) -> Result<()> {
    let setup = Setup { scale: Some(1.0), ..Setup::new(1, (2, 1), (37, 300), (16, 24)) };
    let [q, k, v] = setup.sizes();
    let change = |options: Options| options.algorithm(algorithm);
    let (ones, values) = (vec![1.0; q], noise(v, 3));
    let keys = |score: &dyn Fn(usize) -> f32| (0..k).map(|at| score(at / 16) / 16.0).collect::<Vec<_>>();
    for score in [
        &|key| key as f32 / 4.0 - 40.0,
        &|key| 40.0 - key as f32 / 4.0,
        // One key's weight, and 299 of e^-8 of it: a tenth of the sum.
        &|key| if key == 0 { 8.0 } else { 0.0 },
        // The same after the base has been set by small scores.
        &|key| if key == 299 { 10.0 } else { 0.0 },
        &|key| (key % 7) as f32 * 9.0 - 60.0,
    ] as [&dyn Fn(usize) -> f32; 5]
    {
        check::<f16>(device, &setup, change, [&ones, &keys(score), &values], F16)?;
    }
    for splits in [1, 2, 5] {
        let setup =
            Setup { sinks: Some(vec![0.5, 20.0]), window: Some(100), causal: true, scale: None, ..setup.clone() };
        random::<f16>(device, &setup, |options| change(options).splits(splits), F16)?;
    }
    let data = [(2, 37, 16, 1), (1, 300, 16, 2), (1, 300, 24, 3)];
    for bad in 0..3 {
        let mut all = Vec::new();
        for (at, (heads, length, d, seed)) in data.into_iter().enumerate() {
            let mut values = noise(heads * length * d, seed);
            if at == bad {
                values[5 * d + 3] = if bad == 1 { f32::INFINITY } else { f32::NAN };
            }
            all.push(device.tensor(&array::<f16>([1, heads, length, d], &values)?)?);
        }
        let result = attention(&all[0], &all[1], &all[2], &change(Options::new()))?;
        ensure!(matches!(result.output.to_array(), Err(Error::Domain { .. })), "not finite in tensor {bad}");
    }
    let x = device.tensor(&Array4::<f32>::zeros((1, 1, 2, 4)))?;
    let refused = attention(&x, &x, &x, &change(Options::new()));
    ensure!(matches!(refused, Err(Error::Unsupported { .. })), "f32 by matrices of f16");
    Ok(())
}

/// Few queries against many keys: split, by itself and as told.
fn decode(device: &Device, algorithm: Algorithm) -> Result<()> {
    for (queries, d, d_v) in [(1, 64, 64), (3, 20, 7)] {
        let setup = Setup { causal: true, ..Setup::new(1, (4, 2), (queries, 4096), (d, d_v)) };
        each(device, algorithm, &setup)?;
    }
    for splits in [1, 2, 5, 1000] {
        let setup = Setup {
            sinks: Some(vec![0.5, 2.0]),
            window: Some(100),
            causal: true,
            ..Setup::new(1, (2, 1), (40, 300), (16, 16))
        };
        random::<f32>(device, &setup, |options| options.algorithm(algorithm).splits(splits), F32)?;
    }
    Ok(())
}

fn all_options() -> Vec<Setup> {
    let plain = || Setup::new(2, (4, 2), (35, 50), (16, 24));
    let bias = |shape: [usize; 4]| {
        let mut bias = noise(shape.iter().product(), 4);
        for (at, value) in bias.iter_mut().enumerate() {
            if at % 7 == 3 {
                *value = f32::NEG_INFINITY;
            }
        }
        Some((shape, bias))
    };
    vec![
        Setup { scale: Some(0.7), ..plain() },
        Setup { causal: true, ..plain() },
        Setup { causal: true, kv_len: 20, ..plain() },
        Setup { window: Some(1), ..plain() },
        Setup { window: Some(9), ..plain() },
        Setup { window: Some(9), causal: true, ..plain() },
        Setup { window: Some(usize::MAX), causal: true, kv_len: 20, ..plain() },
        Setup { softcap: Some(0.3), scale: Some(2.0), ..plain() },
        Setup { alibi: Some(vec![0.5, 0.25, 0.0, 0.01]), ..plain() },
        Setup { sinks: Some(vec![1.0, -50.0, 3.0, 20.0]), causal: true, kv_len: 20, ..plain() },
        Setup { bias: bias([2, 4, 35, 50]), ..plain() },
        Setup { bias: bias([1, 4, 1, 50]), ..plain() },
        Setup { bias: bias([2, 1, 35, 1]), causal: true, ..plain() },
        Setup { bias: Some(([1, 1, 1, 1], vec![f32::NEG_INFINITY])), ..plain() },
        Setup { key_lengths: Some(vec![0, 33]), ..plain() },
        Setup { key_lengths: Some(vec![50, 1]), causal: true, ..plain() },
        Setup { ragged: Some((vec![0, 0, 3, 35], vec![0, 7, 7, 50])), batch: 1, causal: true, ..plain() },
        Setup {
            ragged: Some((vec![0, 30, 35], vec![0, 9, 50])),
            batch: 1,
            bias: bias([2, 4, 30, 41]),
            sinks: Some(vec![0.0; 4]),
            alibi: Some(vec![0.1; 4]),
            ..plain()
        },
    ]
}

/// The same of few rows, where each key has several invocations: every size of run, tails of runs and of columns, 1 to 16 rows.
fn decode_shapes(device: &Device) -> Result<()> {
    let algorithm = Algorithm::Subgroups;
    for length in [0, 1, 2, 7, 31, 33, 150] {
        each(device, algorithm, &Setup::new(1, (2, 1), (2, length), (64, 64)))?;
    }
    for (at, (d, d_v)) in
        [(1, 1), (3, 5), (16, 16), (32, 20), (64, 64), (80, 80), (96, 7), (128, 128), (192, 128), (256, 256)]
            .into_iter()
            .enumerate()
    {
        // 1, 4 and 8 rows at a time; 3 and 5 leave some of them empty, 16 take two workgroups.
        for (heads, queries) in [(1, 1), (4, 1), (1, 3), (1, 5), (4, 4)].into_iter().skip(at % 2).step_by(2) {
            each(device, algorithm, &Setup { causal: true, ..Setup::new(1, (2 * heads, 2), (queries, 70), (d, d_v)) })?;
        }
    }
    Ok(())
}

/// Every option with few queries.
fn decode_options(device: &Device) -> Result<()> {
    let few = |setup: Setup| {
        let bias = setup.bias.map(|([sequences, heads, queries, keys], values)| {
            let queries = queries.min(3);
            let values = values.into_iter().take(sequences * heads * queries * keys).collect();
            ([sequences, heads, queries, keys], values)
        });
        let ragged = setup.ragged.map(|(_, kv)| (if kv.len() == 4 { vec![0, 0, 1, 3] } else { vec![0, 2, 3] }, kv));
        let bias = if ragged.is_some() { bias.map(|_| ([2, 4, 2, 41], noise(656, 4))) } else { bias };
        Setup { q_len: 3, bias, ragged, ..setup }
    };
    for setup in all_options() {
        random::<f32>(device, &few(setup), |options| options.algorithm(Algorithm::Subgroups).splits(2), F32)?;
    }
    let setup = Setup { scale: Some(1.0), ..Setup::new(1, (2, 1), (2, 70), (16, 16)) };
    let [q, k, v] = setup.sizes();
    let (loud, keys, mut values) = (noise(q, 1).iter().map(|q| q * 25.0).collect::<Vec<_>>(), noise(k, 2), noise(v, 3));
    check::<f32>(device, &setup, |options| options.algorithm(Algorithm::Subgroups), [&loud, &keys, &values], F32)?;
    values[50] = f32::NAN;
    let [q, k, v] = [(2, 2, &loud), (1, 70, &keys), (1, 70, &values)].map(|(h, n, x)| array::<f32>([1, h, n, 16], x));
    let options = Options::new().algorithm(Algorithm::Subgroups);
    let result = attention(&device.tensor(&q?)?, &device.tensor(&k?)?, &device.tensor(&v?)?, &options)?;
    ensure!(matches!(result.output.to_array(), Err(Error::Domain { .. })), "NaN in v");
    Ok(())
}

fn every_option(device: &Device, algorithm: Algorithm) -> Result<()> {
    all_options().iter().try_for_each(|setup| each(device, algorithm, setup))
}

/// Tiles by subgroups where a workgroup has no more memory than WebGPU promises.
fn subgroups_in_little_memory(device: &Device) -> Result<()> {
    let Some(gpu) = device.as_gpu() else { anyhow::bail!("not a GPU") };
    let small = Device::gpu_small(gpu.info().index)?;
    for (d, d_v) in [(1, 1), (3, 5), (32, 32), (64, 64), (80, 80), (96, 7), (128, 128), (192, 128), (256, 256)] {
        each(&small, Algorithm::Subgroups, &Setup { causal: true, ..Setup::new(1, (2, 1), (19, 37), (d, d_v)) })?;
    }
    hostile(&small, Algorithm::Subgroups)
}

/// Windows of 64 KiB of every tensor.
fn windows(device: &Device) -> Result<()> {
    let Some(gpu) = device.as_gpu() else { anyhow::bail!("not a GPU") };
    let tiled = Device::gpu_tiled(gpu.info().index, 64 << 10)?;
    for setup in [
        Setup { causal: true, ..Setup::new(2, (2, 1), (300, 700), (64, 33)) },
        Setup { sinks: Some(vec![1.0, 2.0]), ..Setup::new(1, (2, 1), (2, 5000), (256, 256)) },
        Setup { bias: Some(([1, 2, 90, 300], noise(54_000, 5))), ..Setup::new(2, (2, 2), (90, 300), (16, 16)) },
        Setup {
            ragged: Some((vec![0, 500, 530, 700], vec![0, 40, 600, 800])),
            causal: true,
            ..Setup::new(1, (4, 2), (700, 800), (32, 31))
        },
        // A table of sequences longer than a binding, and more of them than a grid has workgroups along one axis.
        Setup {
            ragged: Some(((0..=4200).map(|at| at / 3 * 2).collect(), (0..=4200).map(|at| at / 2).collect())),
            sinks: Some(vec![1.0, 2.0]),
            ..Setup::new(1, (2, 1), (2800, 2100), (2, 1))
        },
        Setup { key_lengths: Some((0..4200).map(|at| at % 3).collect()), ..Setup::new(4200, (1, 1), (1, 2), (1, 2)) },
    ] {
        each(&tiled, Algorithm::Auto, &setup)?;
    }
    // Keys in many pieces, merged in rounds: an error names the row of the whole.
    let (heads, queries, keys, d) = (2, 2, 5000, 256);
    let mut q = noise(heads * queries * d, 1);
    q[3 * d + 7] = f32::NAN;
    let q = tiled.tensor(&array::<f32>([1, heads, queries, d], &q)?)?;
    let k = tiled.tensor(&array::<f32>([1, 1, keys, d], &noise(keys * d, 2))?)?;
    let found = attention(&q, &k, &k, &Options::new())?.output.to_array();
    ensure!(matches!(found, Err(Error::Domain { index: 3, .. })), "row 3 of rounds: {:?}", found.err());
    Ok(())
}

/// Large logits, equal keys, one huge key, garbage behind the key lengths, elements that are not finite.
fn hostile(device: &Device, algorithm: Algorithm) -> Result<()> {
    let setup = Setup { scale: Some(1.0), ..Setup::new(1, (2, 1), (33, 70), (16, 16)) };
    let [q, k, v] = setup.sizes();
    let (plain_q, plain_k, values) = (noise(q, 1), noise(k, 2), noise(v, 3));
    let change = |options: Options| options.algorithm(algorithm);
    let loud: Vec<f32> = plain_q.iter().map(|value| value * 25.0).collect();
    // Scores up to 100 are rounded by eps of that, 6e-6 of a weight.
    check::<f32>(device, &setup, change, [&loud, &plain_k, &values], F32)?;
    let equal: Vec<f32> = (0..k).map(|at| plain_k[at % 16]).collect();
    check::<f32>(device, &setup, change, [&plain_q, &equal, &values], F32)?;
    let mut huge = plain_k.clone();
    huge[17 * 16..18 * 16].fill(1000.0);
    // One key takes all or nothing, unless the sum of a row of q is near 0: none of these is.
    check::<f32>(device, &setup, change, [&plain_q, &huge, &values], F32)?;
    let short = Setup { key_lengths: Some(vec![41]), ..setup.clone() };
    let (mut garbage_k, mut garbage_v) = (plain_k.clone(), values.clone());
    garbage_k[41 * 16..].fill(f32::NAN);
    garbage_v[41 * 16..].fill(f32::NAN);
    let ([clean_k, clean_v], dirty) = ([array([1, 1, 70, 16], &plain_k)?, array([1, 1, 70, 16], &values)?], {
        [array::<f32>([1, 1, 70, 16], &garbage_k)?, array::<f32>([1, 1, 70, 16], &garbage_v)?]
    });
    let q = device.tensor(&array::<f32>([1, 2, 33, 16], &plain_q)?)?;
    let options = change(options(device, &short)?);
    let run = |k: &Array4<f32>, v: &Array4<f32>| {
        attention(&q, &device.tensor(k)?, &device.tensor(v)?, &options)?.output.to_array()
    };
    ensure!(run(&clean_k, &clean_v)? == run(&dirty[0], &dirty[1])?, "keys behind the length were read");
    let mut bad = clean_v.clone();
    bad[[0, 0, 3, 2]] = f32::NAN;
    ensure!(matches!(run(&clean_k, &bad), Err(Error::Domain { .. })), "NaN in v");
    Ok(())
}

/// Every element that is not finite, and every score that becomes so, is an error that names its row, however much it looks like a hidden key.
fn not_finite<T: AttentionElement>(device: &Device, algorithm: Algorithm, queries: usize) -> Result<()> {
    let setup = Setup { softcap: None, ..Setup::new(1, (2, 1), (queries, 70), (16, 16)) };
    let capped = Setup { softcap: Some(2.0), ..setup.clone() };
    let sizes = setup.sizes();
    // Without negative elements a key of -inf makes a score of -inf.
    let clean = [1, 2, 3].map(|seed| noise(sizes[seed - 1], seed as u32).iter().map(|x| x.abs()).collect::<Vec<_>>());
    let last = queries - 1;
    let run = |setup: &Setup, data: &[Vec<f32>; 3]| -> Result<Result<Array4<T>, Error>> {
        let [q, k, v] = [(2, queries, 0), (1, 70, 1), (1, 70, 2)]
            .map(|(heads, rows, which)| array::<T>([1, heads, rows, 16], &data[which]));
        let options = options(device, setup)?.algorithm(algorithm);
        let [q, k, v] = [device.tensor(&q?)?, device.tensor(&k?)?, device.tensor(&v?)?];
        Ok(attention(&q, &k, &v, &options)?.output.to_array())
    };
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for setup in [&setup, &capped] {
            // The last query of head 1; a key and a value that all see, in the middle and in the last tile.
            for (which, at, row) in
                [(0, sizes[0] - 5, queries + last), (1, 16 * 17 + 3, 0), (1, 16 * 69, 0), (2, 16 * 33 + 15, 0)]
            {
                let mut data = clean.clone();
                data[which][at] = bad;
                let found = run(setup, &data)?;
                ensure!(
                    matches!(found, Err(Error::Domain { index, .. }) if index == row),
                    "{bad} in {}, {} of row {row}: {:?}",
                    ["q", "k", "v"][which],
                    setup.softcap.is_some(),
                    found.err()
                );
            }
        }
        // Seen by the last query of head 1 alone: what a mask hides is not asked.
        let mut bias = vec![0.0; 2 * queries * 70];
        let at = (queries + last) * 70 + 69;
        bias[at] = bad;
        let biased = Setup { bias: Some(([1, 2, queries, 70], bias)), ..setup.clone() };
        let found = run(&biased, &clean)?;
        match bad == f32::NEG_INFINITY {
            true => ensure!(found.is_ok(), "a bias of -inf hides a key: {:?}", found.err()),
            false => ensure!(
                matches!(found, Err(Error::Domain { index, .. }) if index == queries + last),
                "a bias of {bad}: {:?}",
                found.err()
            ),
        }
        let masked = Setup { causal: true, q_len: queries, ..biased };
        let mut late = vec![0.0; 2 * queries * 70];
        late[69] = bad;
        if queries > 1 {
            let found = run(&Setup { bias: Some(([1, 2, queries, 70], late)), ..masked }, &clean)?;
            ensure!(found.is_ok(), "a bias of {bad} at a hidden key: {:?}", found.err());
        }
    }
    if T::NAME == <f32 as Element>::NAME {
        // Finite elements whose product is too large, in either direction.
        for sign in [1.0, -1.0] {
            for setup in [&setup, &capped] {
                let mut data = clean.clone();
                data[0][last * 16] = 3e30;
                data[1][16 * 40] = sign * 3e30;
                let found = run(setup, &data)?;
                ensure!(
                    matches!(found, Err(Error::Domain { index, .. }) if index == last),
                    "{sign}: {:?}",
                    found.err()
                );
            }
        }
    }
    Ok(())
}

fn every_not_finite(device: &Device, algorithm: Algorithm) -> Result<()> {
    if !by_matrices(algorithm) {
        not_finite::<f32>(device, algorithm, 33)?;
    }
    not_finite::<f16>(device, algorithm, 33)
}

fn few_not_finite(device: &Device) -> Result<()> {
    for queries in [1, 3] {
        not_finite::<f32>(device, Algorithm::Subgroups, queries)?;
        not_finite::<f16>(device, Algorithm::Subgroups, queries)?;
    }
    Ok(())
}

/// Parts that hold no number: the error names their row, and none is lost to a weight of 0.
fn bad_parts<T: AttentionElement>(device: &Device) -> Result<()> {
    let clean = (array::<T>([1, 2, 3, 5], &noise(30, 1))?, Array3::from_shape_vec((1, 2, 3), noise(6, 2))?);
    let part = |output: &Array4<T>, lse: &Array3<f32>| -> Result<Output<T>> {
        Ok(Output { output: device.tensor(output)?, lse: Some(device.tensor(lse)?) })
    };
    let merge = |bad: Output<T>| -> Result<Result<Array4<T>, Error>> {
        let whole = merge_attention(&[part(&clean.0, &clean.1)?, bad])?;
        let lse = whole.lse.context("a log-sum-exp")?.to_array();
        Ok(lse.and_then(|_| whole.output.to_array()))
    };
    ensure!(merge(part(&clean.0, &clean.1)?)?.is_ok(), "clean parts");
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut lse = clean.1.clone();
        lse[[0, 1, 1]] = bad;
        let found = merge(part(&clean.0, &lse)?)?;
        ensure!(matches!(found, Err(Error::Domain { index: 4, .. })), "an lse of {bad}: {:?}", found.err());
        let mut output = clean.0.clone();
        output[[0, 1, 2, 4]] = T::narrow(bad);
        let found = merge(part(&output, &clean.1)?)?;
        ensure!(matches!(found, Err(Error::Domain { index: 5, .. })), "an output of {bad}: {:?}", found.err());
        // Of a part that says that it saw no key: on a GPU the row, on the CPU the element.
        let mut unseen = clean.1.clone();
        unseen[[0, 1, 2]] = -1e30;
        let found = merge(part(&output, &unseen)?)?;
        ensure!(matches!(found, Err(Error::Domain { index: 5, .. })), "an output of {bad}, unseen: {:?}", found.err());
        let (output, unseen) = (Device::cpu().tensor(&output)?, Device::cpu().tensor(&unseen)?);
        let found = merge_attention(&[Output { output, lse: Some(unseen) }]);
        ensure!(
            matches!(found, Err(Error::Domain { index: 29, .. })),
            "an output of {bad}, unseen, on the CPU: {:?}",
            found.err()
        );
    }
    Ok(())
}

/// Parts of the keys, none of them in one, from this device and the CPU.
fn merged<T: AttentionElement>(device: &Device, d_v: usize, bound: f64) -> Result<()> {
    let setup = Setup::new(1, (2, 1), (41, 50), (16, d_v));
    let [q, k, v] = setup.sizes();
    let q = array::<T>([1, 2, 41, 16], &noise(q, 1))?;
    let k = array::<T>([1, 1, 50, 16], &noise(k, 2))?;
    let v = array::<T>([1, 1, 50, d_v], &noise(v, 3))?;
    let wide = |array: &Array4<T>| array.iter().map(|value| f64::from(value.widen())).collect::<Vec<_>>();
    let expected = forward(&setup, &wide(&q), &wide(&k), &wide(&v));
    let mut parts = Vec::new();
    for (device, keys) in [(device, 0..1), (&Device::cpu(), 1..20), (device, 20..20), (device, 20..50)] {
        let cut = |array: &Array4<T>| device.tensor(&array.slice(s![.., .., keys.clone(), ..]));
        parts.push(attention(&device.tensor(&q)?, &cut(&k)?, &cut(&v)?, &Options::new().lse())?);
    }
    poison(device, 4 * 41 * 2 * d_v * 4)?;
    let whole = merge_attention(&parts)?;
    ensure!(whole.output.device() == device, "on the device of the first part");
    let (error, row) = row_error(&wide(&whole.output.to_array()?), &expected.output, d_v, |_| floor::<T>());
    ensure!(error <= bound, "row {row} of merged parts is off by {error:e} > {bound:e}");
    let lse = whole.lse.as_ref().context("a log-sum-exp")?.to_array()?;
    for (actual, expected) in lse.iter().zip(&expected.lse) {
        ensure!(
            (f64::from(*actual) - expected).abs() <= F32 * expected.abs().max(1.0),
            "{actual}, expected {expected}"
        );
    }
    // Merged with a part in which no query sees a key, it stays as it is but for a rounding.
    let again = merge_attention(&[whole, parts.swap_remove(2)])?;
    let (error, row) = row_error(&wide(&again.output.to_array()?), &expected.output, d_v, |_| floor::<T>());
    ensure!(error <= bound, "row {row} is off by {error:e} > {bound:e}");
    Ok(())
}

/// Rows of whole and of half words, at once and in windows of 64 KiB.
fn parts(device: &Device) -> Result<()> {
    let Some(gpu) = device.as_gpu() else { anyhow::bail!("not a GPU") };
    let tiled = Device::gpu_tiled(gpu.info().index, 64 << 10)?;
    for (device, d_v) in [(device, 1), (device, 6), (device, 7), (&tiled, 255)] {
        merged::<f32>(device, d_v, F32)?;
        merged::<f16>(device, d_v, F16)?;
    }
    bad_parts::<f32>(device)?;
    bad_parts::<f16>(device)
}

fn refusals(device: &Device) -> Result<()> {
    let x = device.tensor(&Array4::<f32>::zeros((1, 1, 2, 4)))?;
    let options = Options::new().algorithm(Algorithm::CooperativeMatrices);
    ensure!(matches!(attention(&x, &x, &x, &options), Err(Error::Unsupported { .. })));
    let has = device.as_gpu().is_some_and(|gpu| gpu.info().features.iter().any(|feature| feature == "subgroups"));
    match attention(&x, &x, &x, &Options::new().algorithm(Algorithm::Subgroups)) {
        Ok(_) => ensure!(has, "by subgroups without subgroups"),
        Err(Error::Unsupported { feature: "subgroups", .. }) => ensure!(!has, "subgroups are there"),
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut tiles = |subject, algorithm, needs: &'static [&'static str]| {
        let case = |name, run: fn(&Device, Algorithm) -> Result<()>| {
            Case::new(subject, name, move |device| run(device, algorithm)).needs(needs)
        };
        let hostile = if by_matrices(algorithm) { matrices } else { hostile };
        cases.extend([
            case("shapes", shapes),
            case("options", every_option),
            case("hostile", hostile),
            case("not finite", every_not_finite),
        ]);
    };
    tiles("attention", Algorithm::Portable, &[]);
    tiles("attention_large", Algorithm::LargeTiles, &[LARGE_MEMORY]);
    for units in [16, 8] {
        tiles("attention_matrices_emulated", Algorithm::EmulatedMatrices(units), &[LARGE_MEMORY]);
    }
    // Whichever of the two sizes the adapter has.
    for kernel in ["attention_matrices_16", "attention_matrices_8"] {
        tiles(kernel, Algorithm::CooperativeMatrices, &[MATRICES]);
    }
    tiles("attention_subgroups_large", Algorithm::Subgroups, &[SUBGROUPS, LARGE_MEMORY]);
    let case = |subject, name, needs, run: fn(&Device) -> Result<()>| Case::new(subject, name, run).needs(needs);
    cases.extend([
        case("attention_subgroups", "in 16 KiB", &[SUBGROUPS], subgroups_in_little_memory),
        case("attention_decode", "shapes", &[SUBGROUPS], decode_shapes),
        case("attention_decode", "options", &[SUBGROUPS], decode_options),
        case("attention_decode", "not finite", &[SUBGROUPS], few_not_finite),
        case("attention_decode", "splits", &[SUBGROUPS], |device| decode(device, Algorithm::Subgroups)),
        case("attention_merge", "decode", &[], |device| decode(device, Algorithm::Portable)),
        case("attention_merge", "decode, large tiles", &[LARGE_MEMORY], |device| decode(device, Algorithm::LargeTiles)),
    ]);
    cases.push(Case::new("attention_merge", "windows", windows));
    cases.push(Case::new("attention_merge", "parts", parts));
    cases.push(Case::new("attention", "refusals", refusals));
    cases
}
