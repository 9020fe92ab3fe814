//! Gradients of attention on a GPU against the naive f64 gradients.

use anyhow::{Result, ensure};
use half::f16;
use ndarray::Array4;
use orthant::attention::{Options, Output, alibi_slopes, attention_backward};
use orthant::{Device, Error};

use crate::common::attention_backward::{Setup, noise};
use crate::common::{Case, poison};

/// A score in f32 in ulps of its magnitude: its sum, the soft cap's tanh, and the exponential of what is left, 1.5 ulps.
const ROUNDINGS: f64 = 8.0;

fn check(device: &Device, setup: &Setup, half: bool) -> Result<()> {
    let rows = setup.batch * (setup.q_heads * setup.q_len).max(setup.kv_heads * setup.kv_len);
    poison(device, 4 * rows * setup.d.max(setup.d_v))?;
    setup.check(device, half, ROUNDINGS).map(drop)
}

fn base() -> Setup {
    Setup { q_heads: 4, kv_heads: 2, q_len: 33, kv_len: 65, d: 16, d_v: 16, ..Setup::default() }
}

/// Heads of every size class, lengths around a tile of 32.
fn sizes(device: &Device) -> Result<()> {
    for (at, (q_len, kv_len, d, d_v)) in [
        (1, 1, 1, 1),
        (31, 33, 3, 2),
        (32, 32, 64, 64),
        (33, 64, 80, 33),
        (5, 70, 128, 128),
        (65, 9, 256, 256),
        (40, 31, 32, 200),
    ]
    .into_iter()
    .enumerate()
    {
        let setup = Setup { q_len, kv_len, d, d_v, kv_heads: [1, 2, 4][at % 3], causal: at % 2 == 1, ..base() };
        check(device, &setup, false)?;
        check(device, &setup, true)?;
    }
    for (batch, q_len, kv_len) in [(0, 3, 3), (1, 0, 3), (1, 3, 0)] {
        let bias = Some(Array4::zeros([batch, 1, q_len, kv_len]));
        check(device, &Setup { batch, q_len, kv_len, bias, sinks: Some(vec![0.5; 4]), ..base() }, false)?;
    }
    Ok(())
}

/// Every option, alone and with others.
fn with_options() -> Vec<Setup> {
    let sinks = Some(vec![1.0, -1.0, 0.0, 3.0]);
    let alibi = Some(alibi_slopes(4));
    let mut masked = noise([1, 4, 33, 65], 5);
    masked.slice_mut(ndarray::s![.., .., ..3, ..]).fill(f32::NEG_INFINITY);
    masked.slice_mut(ndarray::s![.., 1, .., ..40]).fill(-2e30);
    let ragged = Some((vec![0, 40, 40, 41, 80], vec![0, 5, 12, 50, 90]));
    vec![
        Setup { causal: true, window: Some(7), ..base() },
        Setup { window: Some(1), ..base() },
        Setup { window: Some(40), q_len: 65, kv_len: 33, causal: true, ..base() },
        Setup { window: Some(20), q_len: 65, kv_len: 33, ..base() },
        Setup { softcap: Some(1.5), scale: Some(-0.7), ..base() },
        Setup { alibi: alibi.clone(), sinks: sinks.clone(), causal: true, ..base() },
        Setup { bias: Some(masked), sinks: sinks.clone(), ..base() },
        Setup { batch: 2, key_lengths: Some(vec![40, 0]), causal: true, sinks: sinks.clone(), ..base() },
        Setup { batch: 2, bias: Some(noise([2, 1, 33, 1], 6)), key_lengths: Some(vec![65, 33]), ..base() },
        Setup { batch: 2, bias: Some(noise([1, 4, 1, 65], 7)), causal: true, softcap: Some(3.0), ..base() },
        Setup { batch: 2, bias: Some(noise([1, 1, 1, 1], 8)), window: Some(9), ..base() },
        Setup { q_len: 80, kv_len: 90, ragged: ragged.clone(), causal: true, alibi, ..base() },
        Setup { q_len: 80, kv_len: 90, ragged: ragged.clone(), bias: Some(noise([4, 1, 40, 40], 9)), ..base() },
        Setup { q_len: 80, kv_len: 90, ragged, bias: Some(noise([1, 4, 1, 40], 9)), sinks, causal: true, ..base() },
        // Scores of a hundred and more, some of them capped.
        Setup { size: 8.0, ..base() },
        Setup { size: 8.0, softcap: Some(50.0), causal: true, ..base() },
    ]
}

fn options(device: &Device) -> Result<()> {
    for (at, setup) in with_options().iter().enumerate() {
        check(device, setup, at % 2 == 1)?;
    }
    Ok(())
}

/// Windows of 64 KiB, 163 rows of d = 100: of queries and keys, of a bias, of one row of it.
fn windows(device: &Device) -> Result<()> {
    let Some(gpu) = device.as_gpu() else { anyhow::bail!("not a GPU") };
    let tiled = Device::gpu_tiled(gpu.info().index, 64 << 10)?;
    let small = Setup { q_heads: 2, kv_heads: 1, q_len: 170, kv_len: 166, d: 100, d_v: 20, ..Setup::default() };
    let key_lengths = Some(vec![166, 100]);
    for setup in [
        Setup { causal: true, sinks: Some(vec![0.5, 1.0]), ..small.clone() },
        Setup { bias: Some(noise([1, 2, 170, 166], 1)), alibi: Some(alibi_slopes(2)), ..small.clone() },
        Setup { batch: 2, bias: Some(noise([1, 1, 1, 166], 2)), key_lengths, window: Some(90), ..small.clone() },
        Setup { bias: Some(noise([1, 1, 170, 1], 3)), softcap: Some(2.0), ..small.clone() },
        Setup { q_len: 2, kv_len: 17_000, d: 2, d_v: 1, bias: Some(noise([1, 1, 2, 17_000], 4)), ..small.clone() },
        Setup { ragged: Some((vec![0, 130, 170], vec![0, 150, 166])), causal: true, ..small.clone() },
    ] {
        check(&tiled, &setup, false)?;
    }
    // f16 in two windows of queries; and with all that windows shift.
    check(&tiled, &Setup { causal: true, ..small.clone() }, true)?;
    let bias = Some(noise([1, 2, 170, 166], 5));
    check(&tiled, &Setup { causal: true, bias, sinks: Some(vec![0.5, 1.0]), ..small }, true)
}

/// A bias of NaN or +inf where a query sees it, and its first row in the whole; -inf, and whatever a mask hides, is fine.
fn biases(device: &Device) -> Result<()> {
    let Some(gpu) = device.as_gpu() else { anyhow::bail!("not a GPU") };
    let tiled = Device::gpu_tiled(gpu.info().index, 64 << 10)?;
    let plain = Setup { causal: true, ..base() };
    let wide = Setup { q_heads: 2, kv_heads: 1, q_len: 300, kv_len: 170, d: 100, d_v: 20, ..Setup::default() };
    let ragged = Setup { q_len: 80, kv_len: 90, ragged: Some((vec![0, 40, 41, 80], vec![0, 5, 50, 90])), ..base() };
    // Shape and place of the element, the row that it is seen by first.
    let cases = [
        (&plain, [1, 4, 33, 65], [0, 2, 5, 37], Some(2 * 33 + 5)),
        (&plain, [1, 4, 33, 65], [0, 2, 5, 38], None),
        (&plain, [1, 1, 1, 65], [0, 0, 0, 62], Some(30)),
        (&plain, [1, 1, 33, 1], [0, 0, 32, 0], Some(32)),
        (&wide, [1, 2, 300, 170], [0, 1, 200, 169], Some(500)),
        (&ragged, [3, 1, 40, 45], [2, 0, 7, 39], Some(48)),
        (&ragged, [3, 4, 40, 45], [1, 3, 0, 44], Some(3 * 80 + 40)),
        (&ragged, [3, 1, 40, 45], [2, 0, 7, 40], None),
    ];
    for (setup, shape, place, row) in cases {
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut bias = noise(shape, 1);
            bias[place] = bad;
            let setup = Setup { bias: Some(bias), ..setup.clone() };
            for device in [device, &tiled, &Device::cpu()] {
                let zeros = |heads, length, width| device.zeros::<f32, _>([setup.batch, heads, length, width]);
                let q = zeros(setup.q_heads, setup.q_len, setup.d)?;
                let k = zeros(setup.kv_heads, setup.kv_len, setup.d)?;
                let v = zeros(setup.kv_heads, setup.kv_len, setup.d_v)?;
                let output = zeros(setup.q_heads, setup.q_len, setup.d_v)?;
                let lse = Some(device.zeros([setup.batch, setup.q_heads, setup.q_len])?);
                let made = Output { output: output.clone(), lse };
                let found = attention_backward(&q, &k, &v, &made, &output, &setup.options(device)?)
                    .and_then(|gradients| gradients.k.to_array());
                match row.filter(|_| bad != f32::NEG_INFINITY) {
                    None => ensure!(found.is_ok(), "{bad} at {place:?} of {shape:?} on {device}: {:?}", found.err()),
                    Some(row) => ensure!(
                        matches!(found, Err(Error::Domain { quantity: "bias", index, .. }) if index == row),
                        "{bad} at {place:?} of {shape:?} on {device}, row {row}: {:?}",
                        found.err()
                    ),
                }
            }
        }
    }
    Ok(())
}

fn deltas(device: &Device) -> Result<()> {
    let zeros = |shape: [usize; 4]| device.zeros::<f32, _>(shape);
    let (q, k) = (zeros([1, 2, 3, 4])?, zeros([1, 1, 5, 4])?);
    let options = Options::new();
    let output = Output { output: zeros([1, 2, 3, 4])?, lse: Some(device.zeros([1, 2, 3])?) };
    let mut bad = Array4::<f32>::zeros([1, 2, 3, 4]);
    bad[[0, 1, 2, 3]] = f32::INFINITY;
    let found = attention_backward(&q, &k, &k, &output, &device.tensor(&bad)?, &options)?;
    // 0 times infinity.
    let found = found.v.to_array();
    ensure!(matches!(found, Err(Error::Domain { quantity: "grad_output", index: 5, .. })), "{found:?}");
    let away = Device::cpu().zeros::<f32, _>([1, 2, 3, 4])?;
    let found = attention_backward(&q, &k, &k, &output, &away, &options);
    ensure!(matches!(found, Err(Error::DeviceMismatch { quantity: "grad_output", .. })));
    let halves = device.zeros::<f16, _>([1, 2, 3, 4])?;
    let without = Output { output: halves.clone(), lse: None };
    let found = attention_backward(&halves, &halves, &halves, &without, &halves, &options);
    ensure!(matches!(found, Err(Error::Argument { quantity: "output", .. })));
    Ok(())
}

/// From the forward pass's own output and log-sum-exp, both of which stay on the device; twice, to the same bits.
fn chained(device: &Device) -> Result<()> {
    let setup = Setup { causal: true, softcap: Some(3.0), sinks: Some(vec![0.5, -1.0, 0.0, 2.0]), ..base() };
    // What forward makes of the scores is rounded as what backward makes of them.
    setup.check_chained(device, false, 2.0 * ROUNDINGS)?;
    setup.check_chained(device, true, 2.0 * ROUNDINGS)
}

/// Logits that take all, part and nothing of the mass, over many rows and batches.
fn sinks(device: &Device) -> Result<()> {
    let sinks = Some(vec![5.0, -1.0, 0.0, 1.0]);
    check(device, &Setup { batch: 3, q_len: 300, kv_len: 5, d: 4, d_v: 4, sinks, causal: true, ..base() }, false)
}

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("attention_backward", "sizes", sizes),
        Case::new("attention_backward", "options", options),
        Case::new("attention_backward", "windows", windows),
        Case::new("attention_backward", "after forward", chained),
        Case::new("attention_backward_bias", "rows that see what is not finite", biases),
        Case::new("attention_backward_delta", "rows that are not finite", deltas),
        Case::new("attention_backward_sinks", "sinks", sinks),
    ]
}
