//! Extended precision beyond the Bessel functions: kappa, sums over rows, densities; in pairs of f32, and in f64 where an adapter has it.

use anyhow::{Context, Result, ensure};
use half::f16;
use ndarray::{Array1, Array2, Ix1};
use orthant::vmf::{Rows, Vmf, VmfStats};
use orthant::{Arithmetic, Device, DoubleSingle, Error, Precision, Real, Tensor, kernels};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::common::{Case, F64, compare, poison, with_arithmetic};

fn vmf_table() -> Result<Vec<Vec<f64>>> {
    let path = format!("{}/tests/data/golden_vmf.csv", env!("CARGO_MANIFEST_DIR"));
    let mut reader = csv::Reader::from_path(path)?;
    reader.records().map(|record| record?.iter().map(|field| Ok(field.parse()?)).collect()).collect()
}

/// The table's kappas, each correctly rounded for an R that f32 holds, and R of 0, 1 and beyond what a fit reports.
fn kappa<T: Real>(device: &Device, bound: f64) -> Result<()> {
    let mut table: Vec<[f64; 3]> = vmf_table()?.iter().map(|row| [row[0], row[1], row[2]]).collect();
    ensure!(table.len() == 518);
    table.extend([[2.0, 0.0, 0.0], [768.0, 0.0, 0.0], [2.0, 1.0, 1e12], [1e7, 1.0, 1e12]]);
    let column =
        |pick: &dyn Fn(&[f64; 3]) -> f64| -> Array1<T> { table.iter().map(|row| T::from_f64(pick(row))).collect() };
    let (dim, length, complement) = (column(&|row| row[0]), column(&|row| row[1]), column(&|row| 1.0 - row[1]));
    let run = |device: &Device| -> Result<Vec<f64>> {
        poison(device, table.len() * size_of::<T>())?;
        let inputs = [device.tensor(&dim)?, device.tensor(&length)?, device.tensor(&complement)?];
        let out: Tensor<T, Ix1> = kernels::vmf_kappa(&inputs[0], &inputs[1], &inputs[2])?;
        Ok(out.to_array()?.iter().map(|value| value.to_f64()).collect())
    };
    let expected: Vec<f64> = table.iter().map(|row| row[2]).collect();
    compare("kappa", &run(device)?, &expected, |_, kappa| bound * kappa)?;
    compare("kappa on the CPU", &run(&Device::cpu())?, &expected, |_, kappa| bound * kappa)?;

    let good = [20.0, 0.3, 0.7].map(|value| device.tensor(&Array1::from_elem(300, T::from_f64(value))));
    let [dim, length, complement] = good.map(Result::ok).map(Option::unwrap);
    let with = |base: f64, index: usize, value: f64| {
        let mut array = Array1::from_elem(300, T::from_f64(base));
        array[index] = T::from_f64(value);
        device.tensor(&array)
    };
    let fails = |result: orthant::Result<Tensor<T, Ix1>>, what: &str, at: usize| -> Result<()> {
        match result.and_then(|out| out.to_array()) {
            Err(Error::Domain { quantity, index, .. }) if quantity == what && index == at => Ok(()),
            other => anyhow::bail!("{what} at {at}: {other:?}"),
        }
    };
    fails(kernels::vmf_kappa(&with(20.0, 0, 1.5)?, &length, &complement), "dim", 0)?;
    fails(kernels::vmf_kappa(&dim, &with(0.3, 299, 1.01)?, &complement), "length", 299)?;
    fails(kernels::vmf_kappa(&dim, &with(0.3, 65, f64::NAN)?, &complement), "length", 65)?;
    fails(kernels::vmf_kappa(&dim, &length, &with(0.7, 64, -0.01)?), "complement", 64)?;
    // Between 0 and 1, and not 1 - R.
    fails(kernels::vmf_kappa(&dim, &length, &with(0.7, 64, 0.4)?), "complement", 64)?;
    // By as little as the type can say.
    let step = if T::NAME == "f32" { 2e-7 } else { 1e-13 };
    fails(kernels::vmf_kappa(&dim, &with(0.3, 7, 1.0 + step)?, &complement), "length", 7)?;
    let short_of_two = device.tensor(&Array1::from_elem(300, T::from_f64(2.0 - step)))?;
    fails(kernels::vmf_kappa(&short_of_two, &length, &complement), "dim", 0)?;
    let short = device.tensor(&Array1::from_elem(299, T::from_f64(0.5)))?;
    ensure!(matches!(kernels::vmf_kappa(&dim, &short, &complement), Err(Error::Shape { quantity: "length", .. })));
    Ok(())
}

/// Rows of f32 with exponents from 2^-6 to 2^6: an i128 holds their sums exactly.
fn values(rows: usize, columns: usize, seed: u64) -> Array2<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    Array2::from_shape_simple_fn((rows, columns), || {
        let exponent = random.random_range(-6..=6);
        random.random_range(-1.0f32..1.0) * 2f32.powi(exponent)
    })
}

/// Sums of columns and of magnitudes, exact in units of 2^-60.
fn exact(values: &Array2<f32>) -> Vec<(f64, f64)> {
    let unit = 2f64.powi(60);
    let mut sums = vec![(0i128, 0i128); values.ncols()];
    for row in values.outer_iter() {
        for (sum, &value) in sums.iter_mut().zip(row) {
            let integer = (f64::from(value) * unit) as i128;
            sum.0 += integer;
            sum.1 += integer.abs();
        }
    }
    sums.into_iter().map(|(sum, size)| (sum as f64 / unit, size as f64 / unit)).collect()
}

fn sums(device: &Device, shapes: &[(usize, usize)], bound: f64) -> Result<()> {
    for &(rows, columns) in shapes {
        let values = values(rows, columns, (rows * 31 + columns) as u64);
        let exact = exact(&values);
        let expected: Vec<f64> = exact.iter().map(|(sum, _)| *sum).collect();
        poison(device, (rows / 256 + 1) * columns * 8)?;
        for device in [device, &Device::cpu()] {
            let actual = kernels::column_sums_extended(&device.tensor(&values)?)?;
            compare(&format!("sums {rows} x {columns}"), &actual.to_vec(), &expected, |column, _| {
                bound * exact[column].1
            })?;
        }
        let halves = values.mapv(f16::from_f32);
        let widened = halves.mapv(f32::from);
        let exact = self::exact(&widened);
        let expected: Vec<f64> = exact.iter().map(|(sum, _)| *sum).collect();
        let actual = kernels::column_sums_extended(&device.tensor(&halves)?)?;
        compare(&format!("sums of f16, {rows} x {columns}"), &actual.to_vec(), &expected, |column, _| {
            bound * exact[column].1
        })?;
    }
    Ok(())
}

const SHAPES: [(usize, usize); 11] =
    [(0, 3), (5, 0), (1, 1), (15, 2), (16, 64), (17, 65), (255, 3), (256, 7), (257, 1000), (20_000, 5), (70_000, 2)];

/// Unit rows, weights and densities against the CPU's f64: sums within 1e-13 of their weight, which is what both promise.
fn rows<T: Rows>(device: &Device, narrow: fn(f32) -> T) -> Result<()> {
    let weights = |count: usize| Array1::from_shape_fn(count, |i| [0.0, 1.0, 2.5, 1e-3][i % 4]);
    for (count, dim) in [(1, 2), (63, 65), (300, 384), (5000, 3), (129, 4096)] {
        let mut embeddings = values(count, dim, 7 * dim as u64);
        // Rows of every length, and drawn towards one direction.
        for (index, mut row) in embeddings.outer_iter_mut().enumerate() {
            let size = 2f32.powi((index % 20) as i32 - 10);
            row.mapv_inplace(|value| (0.3 * value + 0.5) * size);
        }
        let embeddings = embeddings.mapv(narrow);
        let near = Device::cpu().tensor(&embeddings)?;
        let far = device.tensor(&embeddings)?;
        let weights = weights(count);
        for weights in [None, Some(weights.view())] {
            let expected = VmfStats::from_rows(&near, weights, Precision::Extended)?;
            let actual = VmfStats::from_rows(&far, weights, Precision::Extended)?;
            ensure!(
                actual.count() == expected.count()
                    && (actual.weight() - expected.weight()).abs() <= 1e-13 * expected.weight()
            );
            let bound = 1e-13 * expected.weight();
            compare("resultant", &actual.resultant().to_vec(), &expected.resultant().to_vec(), |_, _| bound)?;
        }
        for kappa in [0.0, 1.0, 500.0, 1e6] {
            let vmf = Vmf::new(Array1::from_shape_fn(dim, |i| 1.0 + i as f64 / dim as f64).view(), kappa)?;
            let expected = vmf.log_density_in(&near, Precision::Extended)?;
            let size = 1e-13 * (expected.iter().fold(0.0f64, |most, value| most.max(value.abs())) + kappa);
            let actual = vmf.log_density_in(&far, Precision::Extended)?;
            compare("log-density", &actual.to_vec(), &expected.to_vec(), |_, _| size)?;
            // Single is what it was: f32.
            let single = vmf.log_density_in(&far, Precision::Single)?;
            compare("single", &single.to_vec(), &expected.to_vec(), |_, _| 2e7 * size)?;
        }
    }
    Ok(())
}

/// A row that cannot be normalised is named, of any weight but 0; nothing is added.
fn bad_rows(device: &Device) -> Result<()> {
    let mut embeddings = Array2::from_elem((700, 5), 1.0f32);
    embeddings.row_mut(513).fill(0.0);
    let fails = |embeddings: &Array2<f32>, weights: Option<&Array1<f64>>, at: Option<usize>| -> Result<()> {
        let weights = weights.map(|weights| weights.view());
        match (VmfStats::from_rows(&device.tensor(embeddings)?, weights, Precision::Extended), at) {
            (Err(Error::Domain { index, .. }), Some(at)) if index == at => Ok(()),
            (Ok(stats), None) => {
                ensure!(stats.count() == 699);
                Ok(())
            }
            (other, _) => anyhow::bail!("expected {at:?}: {other:?}"),
        }
    };
    fails(&embeddings, None, Some(513))?;
    let mut weights = Array1::from_elem(700, 1.0);
    fails(&embeddings, Some(&weights), Some(513))?;
    weights[513] = 0.0;
    fails(&embeddings, Some(&weights), None)?;
    weights[3] = f64::NAN;
    fails(&embeddings, Some(&weights), Some(3))?;
    // What a row of weight 0 holds is not looked at.
    weights[3] = 1.0;
    for value in [f32::NAN, f32::INFINITY, 3e38] {
        embeddings.row_mut(513).fill(value);
        let stats = VmfStats::from_rows(&device.tensor(&embeddings)?, Some(weights.view()), Precision::Extended)?;
        let halves = device.tensor(&embeddings.mapv(f16::from_f32))?;
        let of_halves = VmfStats::from_rows(&halves, Some(weights.view()), Precision::Extended)?;
        for stats in [stats, of_halves] {
            let expected = 699.0 / 5f64.sqrt();
            compare("skipped", &stats.resultant().to_vec(), &[expected; 5], |_, _| 1e-13 * 699.0)?;
        }
    }
    embeddings.row_mut(513).fill(1.0);
    embeddings.row_mut(513)[2] = f32::NAN;
    let vmf = Vmf::new(Array1::from_elem(5, 1.0).view(), 3.0)?;
    let density = vmf.log_density_in(&device.tensor(&embeddings)?, Precision::Extended);
    ensure!(matches!(density, Err(Error::Domain { index: 513, .. })), "{density:?}");
    // Rows so close together, or so opposite, that 1e-13 of their sum says too little: as on the CPU.
    let close = Array2::from_shape_fn((1000, 3), |(i, j)| 1.0 + 1e-5 * ((i * 3 + j) % 7) as f32);
    let opposite = Array2::from_shape_fn((1000, 3), |(i, j)| (j as f32 + 1.0) * if i % 2 == 0 { 1.0 } else { -1.0 });
    for rows in [close, opposite] {
        let near = Vmf::fit_in(&Device::cpu().tensor(&rows)?, None, Precision::Extended)?;
        ensure!(Vmf::fit_in(&device.tensor(&rows)?, None, Precision::Extended)? == near);
    }
    // Lengths that squares of f32 do not hold.
    let extreme = ndarray::array![[3e38f32, -3e38], [2e-38, 2e-38]];
    let stats = VmfStats::from_rows(&device.tensor(&extreme)?, None, Precision::Extended)?;
    compare("extreme rows", &stats.resultant().to_vec(), &[2f64.sqrt(), 0.0], |_, _| 1e-13)?;
    Ok(())
}

/// f32 results go on in pairs on the device: the log of a ratio's argument, as if the host had widened it.
fn widened(device: &Device) -> Result<()> {
    for length in [0, 1, 65, 20_000] {
        let values = Array1::from_shape_fn(length, |i| 0.25 + i as f32 / 3.0);
        poison(device, 8 * length)?;
        let pairs = kernels::widen(&device.tensor(&values)?)?;
        ensure!(pairs.to_f64_array()? == values.mapv(f64::from));
        let order = device.tensor(&Array1::from_elem(length, DoubleSingle::new(0.1)))?;
        let chained = kernels::log_iv(&order, &kernels::log_iv_dx(&order, &pairs)?)?.to_f64_array()?;
        let wide = |value: f32| f64::from(value);
        let near = Device::cpu();
        let order = near.tensor(&Array1::from_elem(length, DoubleSingle::new(0.1).to_f64()))?;
        let expected = kernels::log_iv(&order, &kernels::log_iv_dx(&order, &near.tensor(&values.mapv(wide))?)?)?;
        compare("chained", &chained.to_vec(), &expected.to_array()?.to_vec(), |_, value| 2e-13 * value.abs().max(1.0))?;
    }
    Ok(())
}

/// In windows of 64 KiB: a bad row of a later window by its own number; a mean direction of 72 KB is refused.
fn tiled_rows(device: &Device) -> Result<()> {
    let mut embeddings = Array2::from_elem((700, 100), 1.0f32);
    embeddings.row_mut(613).fill(0.0);
    let failed = VmfStats::from_rows(&device.tensor(&embeddings)?, None, Precision::Extended);
    ensure!(matches!(failed, Err(Error::Domain { index: 613, .. })), "{failed:?}");
    let wide = device.tensor(&Array2::from_elem((2, 9000), 1.0f32))?;
    let vmf = Vmf::new(Array1::from_elem(9000, 1.0).view(), 3.0)?;
    let failed = vmf.log_density_in(&wide, Precision::Extended);
    ensure!(matches!(failed, Err(Error::TooLarge { .. })), "{failed:?}");
    Ok(())
}

/// Every case in one arithmetic.
fn in_arithmetic(device: &Device, arithmetic: Arithmetic, part: &str) -> Result<()> {
    let index = device.as_gpu().context("a GPU")?.info().index;
    let device = with_arithmetic(device, arithmetic).context("opening")?;
    // Blocks that begin in one window and end in another, and a mean direction that no window holds.
    let tiled = Device::gpu_tiled(index, 1 << 16)?;
    tiled.as_gpu().context("a GPU")?.use_arithmetic(arithmetic)?;
    match part {
        "kappa" => kappa::<DoubleSingle>(&device, 1e-13),
        "sums" => {
            let huge = device.tensor(&Array2::from_elem((3, 2), 3e38f32))?;
            let result = kernels::column_sums_extended(&huge);
            ensure!(matches!(result, Err(Error::Domain { index: 0, .. })), "{result:?}");
            sums(&tiled, &[(257, 1000), (20_000, 5)], 1e-13)?;
            sums(&device, &SHAPES, 1e-13)
        }
        "rows" if tiled_rows(&tiled).is_err() => tiled_rows(&tiled),
        _ => {
            rows::<f32>(&device, |value| value)?;
            rows::<f16>(&device, f16::from_f32)?;
            bad_rows(&device)
        }
    }
}

/// Ten million rows of one sign: within 1e-12 of the exact sum.
fn ten_million(device: &Device) -> Result<()> {
    for arithmetic in [Arithmetic::F64, Arithmetic::DoubleSingle] {
        if arithmetic == Arithmetic::F64 && !device.as_gpu().context("a GPU")?.has_f64() {
            continue;
        }
        let values = values(10_000_000, 1, 5).mapv_into(f32::abs);
        let (expected, _) = exact(&values)[0];
        let actual = kernels::column_sums_extended(&with_arithmetic(device, arithmetic)?.tensor(&values)?)?;
        compare("ten million rows", &actual.to_vec(), &[expected], |_, sum| 1e-12 * sum)?;
    }
    Ok(())
}

pub fn cases() -> Vec<Case> {
    let (pairs, double) = (Arithmetic::DoubleSingle, Arithmetic::F64);
    let case = |subject, name: &'static str, arithmetic| {
        Case::new(subject, name, move |device| in_arithmetic(device, arithmetic, name))
    };
    // f32: the complement is within 2 eps, and kappa as far as it is. f64: 34 eps, as on the CPU.
    vec![
        Case::new("vmf_kappa_f32", "kappa", |device| kappa::<f32>(device, 32.0 * f64::from(f32::EPSILON))),
        Case::new("vmf_kappa_f64", "kappa", |device| kappa::<f64>(device, 64.0 * f64::EPSILON)).needs(&[F64]),
        case("vmf_kappa_double_single", "kappa", pairs),
        case("vmf_kappa_pairs_f64", "kappa", double).needs(&[F64]),
        case("extended_sums", "sums", pairs),
        case("extended_sums_f64", "sums", double).needs(&[F64]),
        case("extended_rows", "rows", pairs),
        case("extended_rows_f64", "rows", double).needs(&[F64]),
        Case::new("extended_sums", "ten million rows", ten_million),
        Case::new("widen", "chains", widened),
    ]
}
