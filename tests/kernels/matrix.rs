//! Matrix kernels against naive f64 oracles, with error bounds that follow the order in which they add.

use anyhow::{Result, ensure};
use half::f16;
use ndarray::{Array1, Array2};
use orthant::vmf::{MixtureOptions, Vmf, VmfMixture};
use orthant::{Device, Element, Error, Tensor, kernels};

use crate::common::{Case, compare, poison};

const EPS: f64 = f32::EPSILON as f64;

/// Repeatable values in [-1, 1).
fn noise(rows: usize, columns: usize, seed: u32) -> Array2<f32> {
    let mut state = seed.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
    Array2::from_shape_simple_fn((rows, columns), || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 8_388_608.0 - 1.0
    })
}

fn product(device: &Device, (m, n, k): (usize, usize, usize), ta: bool, tb: bool, half: bool) -> Result<()> {
    let a = if ta { noise(k, m, 1) } else { noise(m, k, 1) };
    let b = if tb { noise(n, k, 2) } else { noise(k, n, 2) };
    poison(device, 4 * m * n)?;
    let (a, b, actual) = if half {
        let (a, b) = (a.mapv(f16::from_f32), b.mapv(f16::from_f32));
        let actual = kernels::matmul(&device.tensor(&a)?, &device.tensor(&b)?, ta, tb)?.to_array()?;
        (a.mapv(f16::to_f64), b.mapv(f16::to_f64), actual)
    } else {
        let actual = kernels::matmul(&device.tensor(&a)?, &device.tensor(&b)?, ta, tb)?.to_array()?;
        (a.mapv(f64::from), b.mapv(f64::from), actual)
    };
    ensure!(actual.shape() == [m, n], "{:?}", actual.shape());
    let (a, b) = (if ta { a.reversed_axes() } else { a }, if tb { b.reversed_axes() } else { b });
    let (expected, sizes) = (a.dot(&b), a.mapv(f64::abs).dot(&b.mapv(f64::abs)));
    let sizes: Vec<_> = sizes.iter().copied().collect();
    // The documented bound of `matmul`, with k/1024 split and 2^-24 = eps / 2; one more for the product's own rounding.
    let terms = 129.0 + k as f64 / 128.0 / (k as f64 / 1024.0).ceil().max(1.0) + (k.max(2) as f64).log2();
    let actual: Vec<_> = actual.iter().map(|&value| value.into()).collect();
    let expected: Vec<_> = expected.iter().copied().collect();
    compare(&format!("{m}x{n}x{k} {ta} {tb} {half}"), &actual, &expected, |at, _| terms * EPS / 2.0 * sizes[at])
}

fn products(device: &Device) -> Result<()> {
    let shapes =
        [(1, 1, 1), (63, 64, 65), (64, 64, 16), (65, 1, 17), (1, 130, 300), (3, 5, 0), (0, 4, 3), (70, 33, 2500)];
    for shape in shapes {
        for ta in [false, true] {
            for tb in [false, true] {
                for half in [false, true] {
                    product(device, shape, ta, tb, half)?;
                }
            }
        }
    }
    Ok(())
}

/// The M-step's shape: few outputs, a long sum.
fn long_sums(device: &Device) -> Result<()> {
    product(device, (7, 20, 30_000), true, false, false)?;
    product(device, (7, 21, 30_001), true, false, true)
}

/// Windows of 64 KiB in every direction that can be cut.
fn tiled_products(device: &Device) -> Result<()> {
    let Some(gpu) = device.as_gpu() else { anyhow::bail!("not a GPU") };
    let tiled = Device::gpu_tiled(gpu.info().index, 64 << 10)?;
    for (shape, ta, tb) in [
        ((700, 90, 50), false, false),
        ((90, 700, 50), false, true),
        ((40, 90, 1700), true, false),
        ((700, 30, 65), true, true),
        ((50, 60, 5000), true, false),
    ] {
        product(&tiled, shape, ta, tb, false)?;
        product(&tiled, shape, ta, tb, true)?;
    }
    let wide = tiled.tensor(&noise(2, 40_000, 3))?;
    ensure!(matches!(kernels::matmul(&wide, &wide, false, true), Err(Error::TooLarge { .. })));
    Ok(())
}

fn mismatched_products(device: &Device) -> Result<()> {
    let (a, b) = (device.tensor(&noise(3, 4, 1))?, device.tensor(&noise(5, 6, 1))?);
    ensure!(matches!(kernels::matmul(&a, &b, false, false), Err(Error::Shape { .. })));
    let doubles = Array2::<f64>::eye(3);
    let cpu = Device::cpu().tensor(&doubles)?;
    ensure!(kernels::matmul(&cpu, &cpu, false, true)?.to_array()? == doubles);
    if let Ok(gpu) = device.tensor(&doubles) {
        ensure!(matches!(kernels::matmul(&gpu, &gpu, false, false), Err(Error::Unsupported { .. })));
    }
    Ok(())
}

fn sums(device: &Device) -> Result<()> {
    for (rows, columns) in [(0, 3), (1, 1), (16, 65), (255, 2), (256, 64), (257, 3), (70_001, 5), (300_007, 1)] {
        // All of one sign: a sum that loses digits with its length shows.
        let values = noise(rows, columns, 5).mapv(|value| value.abs() + 0.1);
        poison(device, rows * columns / 64)?;
        let actual = kernels::column_sums(&device.tensor(&values)?)?.to_array()?;
        let expected: Vec<f64> = values.columns().into_iter().map(|c| c.iter().map(|&v| f64::from(v)).sum()).collect();
        let actual: Vec<f64> = actual.iter().map(|&value| value.into()).collect();
        let passes = (rows.max(2) as f64).log(256.0).ceil();
        compare("column_sums", &actual, &expected, |_, sum| 32.0 * passes * EPS / 2.0 * sum)?;
    }
    let Some(gpu) = device.as_gpu() else { anyhow::bail!("not a GPU") };
    let tiled = Device::gpu_tiled(gpu.info().index, 64 << 10)?;
    let values = noise(5000, 37, 6);
    let run = |device: &Device| kernels::column_sums(&device.tensor(&values)?)?.to_array();
    ensure!(run(&tiled)? == run(device)?, "windows give bit for bit the same");
    // Windows of a part of a block, and of a part of a row.
    for (rows, columns) in [(700, 1000), (3, 16_000), (1, 40_000)] {
        let values = noise(rows, columns, 7).mapv(|value| value.abs() + 0.1);
        let actual = kernels::column_sums(&tiled.tensor(&values)?)?.to_array()?;
        let expected: Vec<f64> = values.columns().into_iter().map(|c| c.iter().map(|&v| f64::from(v)).sum()).collect();
        let actual: Vec<f64> = actual.iter().map(|&value| value.into()).collect();
        // 16 windows of a block at most, each added to the ones before.
        compare("windows", &actual, &expected, |_, sum| 64.0 * EPS * sum)?;
    }
    let long = tiled.tensor(&noise(2, 40_000, 8))?;
    ensure!(matches!(kernels::column_sums(&long), Err(Error::TooLarge { .. })));
    Ok(())
}

fn unit_rows<T: kernels::MatmulElement<Sum = f32>>(device: &Device, narrow: fn(f32) -> T) -> Result<()> {
    let Some(gpu) = device.as_gpu() else { anyhow::bail!("not a GPU") };
    let tiled = Device::gpu_tiled(gpu.info().index, 64 << 10)?;
    for device in [device, &tiled] {
        for (rows, columns) in [(0, 3), (1, 1), (3, 127), (65, 129), (200, 1000)] {
            let values = noise(rows, columns, 7).mapv(|value| narrow(value + 1.5));
            poison(device, 4 * rows * columns)?;
            let (unit, norms) = kernels::normalize_rows(&device.tensor(&values)?, None)?;
            let (expected, expected_norms) = kernels::normalize_rows(&Device::cpu().tensor(&values)?, None)?;
            let wide = |tensor: Array2<f32>| tensor.iter().map(|&value| f64::from(value)).collect::<Vec<_>>();
            // 2 eps and the log2(d) of the tree, and the CPU's own eps.
            let bound = (4.0 + (columns.max(2) as f64).log2()) * EPS;
            compare("rows", &wide(unit.to_array()?), &wide(expected.to_array()?), |_, value| bound * value.abs())?;
            let wide = |tensor: Array1<f32>| tensor.iter().map(|&value| f64::from(value)).collect::<Vec<_>>();
            compare("norms", &wide(norms.to_array()?), &wide(expected_norms.to_array()?), |_, value| bound * value)?;
        }
    }
    Ok(())
}

/// Magnitudes whose squares f32 cannot hold, zero rows, rows that are not finite.
fn hostile_rows(device: &Device) -> Result<()> {
    for (scale, what) in [(1e-35f32, "small"), (1e30, "large"), (1.0, "plain")] {
        let values = noise(4, 300, 8).mapv(|value| (value + 2.0) * scale);
        let (unit, _) = kernels::normalize_rows(&device.tensor(&values)?, None)?;
        for row in unit.to_array()?.outer_iter() {
            let length: f64 = row.iter().map(|&value| f64::from(value).powi(2)).sum();
            ensure!((length - 1.0).abs() < 24.0 * EPS, "{what}: {length}");
        }
    }
    for device in [device.clone(), Device::cpu()] {
        let mut values = noise(50, 20, 9);
        values.row_mut(31).fill(0.0);
        let bad = |values: &Array2<f32>| -> Result<Option<Error>> {
            let result = kernels::normalize_rows(&device.tensor(values)?, None);
            Ok(result.and_then(|(unit, _)| unit.to_array()).err())
        };
        let error = bad(&values)?;
        ensure!(matches!(error, Some(Error::Domain { index: 31, .. })), "{error:?}");
        for value in [f32::NAN, f32::INFINITY] {
            let mut values = noise(50, 20, 9);
            values[[17, 4]] = value;
            let error = bad(&values)?;
            ensure!(matches!(error, Some(Error::Domain { index: 17, .. })), "{error:?}");
        }
        let fallback = noise(50, 20, 10);
        let kept = kernels::normalize_rows(&device.tensor(&values)?, Some(&device.tensor(&fallback)?))?.0.to_array()?;
        ensure!(kept.row(31) == fallback.row(31) && kept.row(30) != fallback.row(30));
    }
    Ok(())
}

fn f64s<T: Element + Into<f64>, D: ndarray::Dimension>(tensor: &Tensor<T, D>) -> Result<Vec<f64>> {
    Ok(tensor.to_array()?.iter().map(|&value| value.into()).collect())
}

/// The CPU path is the f64 oracle of the E-step; the f32 one may miss a term by its own rounding.
fn posteriors(device: &Device) -> Result<()> {
    let Some(gpu) = device.as_gpu() else { anyhow::bail!("not a GPU") };
    let tiled = Device::gpu_tiled(gpu.info().index, 64 << 10)?;
    for device in [device, &tiled] {
        for (rows, k, strongest) in
            [(0, 2, 1.0), (1, 1, 10.0), (300, 7, 50.0), (257, 64, 3000.0), (1000, 45, 400.0), (40, 200, 1e6)]
        {
            let cosines = noise(rows, k, 11);
            let kappa: Vec<f32> = (0..k).map(|at| strongest * (1 + at) as f32 / k as f32).collect();
            let bias: Vec<f32> = (0..k).map(|at| -(at as f32) * 0.7).collect();
            let weights: Array1<f32> = (0..rows).map(|row| (row % 3) as f32 * 0.5).collect();
            for (weighted, hard) in [(false, false), (true, false), (true, true)] {
                poison(device, 4 * rows * k)?;
                let run = |device: &Device| -> Result<_> {
                    let weights = weighted.then(|| device.tensor(&weights)).transpose()?;
                    let cosines = device.tensor(&cosines)?;
                    let posterior = kernels::mixture_posterior(&cosines, &kappa, &bias, 100.0, weights.as_ref(), hard)?;
                    let summary = kernels::mixture_summary(&posterior)?;
                    Ok((posterior, summary))
                };
                let ((actual, summary), (expected, expected_summary)) = (run(device)?, run(&Device::cpu())?);
                // Terms reach |bias| + 2 kappa, each within 2 eps of that.
                let term = 4.0 * EPS * (f64::from(2.0 * strongest) + 0.7 * k as f64 + 1.0);
                let terms = Array2::from_shape_fn((rows, k), |(row, at)| {
                    f64::from(bias[at]) - f64::from(kappa[at]) * (1.0 - f64::from(cosines[[row, at]]))
                });
                // Where the best two terms lie within the roundings of both, either may win.
                let tied: Vec<bool> = terms
                    .outer_iter()
                    .map(|terms| {
                        let largest = terms.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                        terms.iter().filter(|&&other| largest - other <= term).count() > 1
                    })
                    .collect();
                let ties = tied.iter().filter(|&&tied| tied).count();
                ensure!(10 * ties <= rows, "{ties} of {rows} rows are tied: nothing is compared");
                let shares = f64s(&expected.shares)?;
                compare("shares", &f64s(&actual.shares)?, &shares, |at, share| match hard {
                    true => {
                        if tied[at / k] {
                            1.0
                        } else {
                            0.0
                        }
                    }
                    false => (term + 8.0 * EPS) * share + 1e-37,
                })?;
                compare("densities", &f64s(&actual.densities)?, &f64s(&expected.densities)?, |at, _| match at % 4 {
                    2 => {
                        if tied[at / 4] {
                            k as f64
                        } else {
                            0.0
                        }
                    }
                    3 => 0.0,
                    _ => term,
                })?;
                for (row, &label) in actual.labels.to_array()?.iter().enumerate() {
                    let best = terms.row(row).iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    ensure!(best - terms[[row, label as usize]] <= term, "label of row {row} is {label}");
                }
                let labels: Vec<u32> = actual.labels.to_array()?.to_vec();
                let (scores, densities) = (f64s(&actual.scores)?, f64s(&actual.densities)?);
                for row in 0..rows {
                    ensure!(f64::from(labels[row]) == densities[4 * row + 2], "label of row {row}");
                    let error = (scores[row] - 100.0 - densities[4 * row]).abs();
                    ensure!(error <= EPS * (100.0 + densities[4 * row].abs()), "score of row {row}");
                }
                let total = rows as f64;
                compare("sums", &f64s(&summary.sums)?, &f64s(&expected_summary.sums)?, |at, sum| {
                    let bound = if at < k {
                        if hard { ties as f64 } else { term * total / k as f64 }
                    } else if at < 2 * k {
                        ties as f64
                    } else {
                        term * total
                    };
                    bound + 64.0 * EPS * sum.abs()
                })?;
                let oracle = f64s(&expected.densities)?;
                let (worst, expected) = (summary.worst.to_array()?, expected_summary.worst.to_array()?);
                ensure!(worst.shape() == expected.shape());
                for (worst, expected) in worst.outer_iter().zip(expected.outer_iter()) {
                    let (value, other) = (f32::from_bits(worst[0]), f32::from_bits(expected[0]));
                    ensure!(f64::from(value - other).abs() <= 2.0 * term, "{value} {other}");
                    // Another row than the oracle's is as bad, within the roundings of both.
                    if worst[1] == u32::MAX || expected[1] == u32::MAX {
                        ensure!(worst == expected, "{worst} {expected}");
                    } else {
                        let own = oracle[4 * worst[1] as usize];
                        ensure!(own - f64::from(other) <= 2.0 * term, "row {} has {own}, not {other}", worst[1]);
                    }
                }
            }
        }
    }
    Ok(())
}

/// Rows of weight 0 are not looked at; without weights none is left out.
fn rows_without_weight(device: &Device) -> Result<()> {
    let mut rows = noise(300, 40, 9);
    (rows[[7, 3]], rows[[200, 0]]) = (f32::NAN, f32::INFINITY);
    rows.row_mut(133).fill(0.0);
    let mut weights = Array1::from_shape_fn(300, |row| 0.5 + (row % 3) as f64);
    for row in [7, 133, 200] {
        weights[row] = 0.0;
    }
    let fit = |device: &Device| Vmf::fit_weighted(&device.tensor(&rows)?, weights.view());
    let (actual, expected) = (fit(device)?, fit(&Device::cpu())?);
    let mean = |vmf: &Vmf| vmf.mean_direction().to_vec();
    // Sums of 300 unit rows in f32 over a resultant of a fifth of them or more.
    compare("mean direction", &mean(&actual), &mean(&expected), |_, _| 300.0 * EPS)?;
    let options = MixtureOptions::new(2).max_iterations(3);
    let mixed = |device: &Device| VmfMixture::fit_weighted(&device.tensor(&rows)?, weights.view(), &options);
    let (actual, expected) = (mixed(device)?.log_likelihood(), mixed(&Device::cpu())?.log_likelihood());
    // Three steps of EM from the same start: terms of up to a hundred in f32, a dozen roundings of each.
    ensure!((actual - expected).abs() <= 1e-4 * expected.abs().max(1.0), "{actual}, expected {expected}");
    weights[133] = 1.0;
    let failed = Vmf::fit_weighted(&device.tensor(&rows)?, weights.view());
    ensure!(matches!(failed, Err(Error::Domain { index: 133, .. })), "{failed:?}");
    let failed = Vmf::fit(&device.tensor(&rows)?);
    ensure!(matches!(failed, Err(Error::Domain { .. })), "{failed:?}");
    Ok(())
}

/// Of terms that are equal the first wins, wherever the others lie among a workgroup's invocations and rounds.
fn equal_terms(device: &Device) -> Result<()> {
    let (rows, k) = (40, 700);
    let mut cosines = Array2::from_elem((rows, k), 0.25f32);
    for (row, mut own) in cosines.outer_iter_mut().enumerate() {
        for at in [row * 17 % k, (row * 17 + 1) % k, (row * 17 + 300) % k, (row * 17 + 513) % k, k - 1] {
            own[at] = 0.5;
        }
    }
    let posterior =
        kernels::mixture_posterior(&device.tensor(&cosines)?, &vec![10.0; k], &vec![0.0; k], 0.0, None, true)?;
    let first = |own: ndarray::ArrayView1<f32>| own.iter().position(|&cosine| cosine == 0.5).unwrap_or(k);
    let expected: Vec<usize> = cosines.outer_iter().map(first).collect();
    let labels: Vec<usize> = posterior.labels.to_array()?.iter().map(|&label| label as usize).collect();
    ensure!(labels == expected, "{labels:?}, expected {expected:?}");
    let shares = posterior.shares.to_array()?;
    let own = |((row, at), &share): ((usize, usize), &f32)| share == f32::from(u8::from(at == expected[row]));
    ensure!(shares.indexed_iter().all(own), "shares");
    Ok(())
}

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("matmul", "products", products),
        Case::new("matmul", "long sums", long_sums),
        Case::new("matmul", "tiled", tiled_products),
        Case::new("matmul", "mismatches", mismatched_products),
        Case::new("column_sums", "sums", sums),
        Case::new("normalize_rows", "f32", |device| unit_rows::<f32>(device, |value| value)),
        Case::new("normalize_rows", "f16", |device| unit_rows::<f16>(device, f16::from_f32)),
        Case::new("normalize_rows", "hostile", hostile_rows),
        Case::new("normalize_rows", "of weight 0", rows_without_weight),
        Case::new("mixture_posterior", "posteriors", posteriors),
        Case::new("mixture_posterior", "equal terms", equal_terms),
        Case::new("mixture_summary", "of posteriors", posteriors),
    ]
}
