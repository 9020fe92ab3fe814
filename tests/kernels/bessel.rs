//! The log-Bessel kernels: the published tables on every adapter, and parity with the CPU over the whole domain.

use anyhow::{Context, Result, ensure};
use ndarray::{Array, Array1, Array2, Array6, Ix1, Ix6};
use orthant::{Arithmetic, Device, DoubleSingle, Error, Real, Tensor, kernels};

use crate::common::{Case, F64, compare, poison, with_arithmetic};

type Call<T> = fn(&Tensor<T, Ix1>, &Tensor<T, Ix1>) -> orthant::Result<Tensor<T, Ix1>>;
type Scale = fn(f64, f64) -> f64;

/// Every function, with how its error is scaled: bounds are in eps of max(|reference|, scale(v, x)).
fn functions<T: Real>() -> [(&'static str, Call<T>, Scale); 9] {
    let hypot: Scale = f64::hypot;
    let relative: Scale = |_, _| 0.0;
    // d/dv passes through 0, where its terms (ln(x/2), digamma) cancel.
    let dv: Scale = |_, _| 1.0;
    [
        ("log_iv", kernels::log_iv, hypot),
        ("log_kv", kernels::log_kv, hypot),
        ("iv_ratio", kernels::iv_ratio, relative),
        ("iv_ratio_complement", kernels::iv_ratio_complement, relative),
        ("log_iv_dx", kernels::log_iv_dx, relative),
        ("log_kv_dx", kernels::log_kv_dx, relative),
        ("log_iv_dv", kernels::log_iv_dv, dv),
        ("log_kv_dv", kernels::log_kv_dv, dv),
        ("vmf_log_normalizer", kernels::vmf_log_normalizer, hypot),
    ]
}

fn read(name: &str) -> Result<Vec<Vec<f64>>> {
    let path = format!("{}/tests/data/{name}", env!("CARGO_MANIFEST_DIR"));
    let mut reader = csv::Reader::from_path(&path).with_context(|| path.clone())?;
    reader.records().map(|record| record?.iter().map(|field| Ok(field.parse().unwrap_or(f64::NAN))).collect()).collect()
}

fn cast<T: num::Narrow>(values: impl Iterator<Item = f64>) -> Array1<T> {
    values.map(T::narrow).collect()
}

mod num {
    pub trait Narrow {
        fn narrow(value: f64) -> Self;
    }
    impl Narrow for f32 {
        fn narrow(value: f64) -> Self {
            value as f32
        }
    }
    impl Narrow for orthant::DoubleSingle {
        fn narrow(value: f64) -> Self {
            value.into()
        }
    }
    impl Narrow for f64 {
        fn narrow(value: f64) -> Self {
            value
        }
    }
}

/// Within `scaled` of the scaled error: 16 eps of f32 and f64, for a GPU's division and sqrt err by 2.5 and 4.5 ulp; 1e-13 in pairs, 28 roundings
/// of 2^-48. Relative error at most 4 times that where |reference| > 0.1 s.
fn golden<T: Real + num::Narrow>(device: &Device, bound: f64) -> Result<()> {
    let single = T::NAME == "f32";
    let exact: Vec<bool> = {
        let path = format!("{}/tests/data/golden_bessel_tags.csv", env!("CARGO_MANIFEST_DIR"));
        csv::Reader::from_path(path)?.records().map(|record| Ok(&record?[1] == "1")).collect::<Result<_>>()?
    };
    let table = read("golden_bessel.csv")?;
    ensure!(table.len() == exact.len() && table.len() > 3000);
    let logs: Vec<_> = table.iter().zip(&exact).filter(|(_, exact)| !single || **exact).map(|(row, _)| row).collect();
    // The table of derivatives has no tags: f32 takes the rows whose inputs f32 holds.
    let aux = read("golden_bessel_aux.csv")?;
    let fits = |row: &&Vec<f64>| !single || row[..2].iter().all(|&value| f64::from(value as f32) == value);
    let aux: Vec<_> = aux.iter().filter(fits).collect();
    ensure!(logs.len() > 1000 && aux.len() > 300, "{} {}", logs.len(), aux.len());

    for (name, call, scale) in functions::<T>() {
        let (rows, column) = match name {
            "log_iv" => (&logs, 2),
            "log_kv" => (&logs, 3),
            "iv_ratio" => (&aux, 2),
            "log_iv_dx" => (&aux, 4),
            "log_kv_dx" => (&aux, 5),
            "log_iv_dv" => (&aux, 6),
            "log_kv_dv" => (&aux, 7),
            _ => continue,
        };
        poison(device, rows.len() * size_of::<T>())?;
        let order = device.tensor(&cast::<T>(rows.iter().map(|row| row[0])))?;
        let x = device.tensor(&cast::<T>(rows.iter().map(|row| row[1])))?;
        let actual: Vec<f64> = call(&order, &x)?.to_array()?.iter().map(|value| value.to_f64()).collect();
        let expected: Vec<f64> = rows.iter().map(|row| row[column]).collect();
        compare(name, &actual, &expected, |index, reference| {
            let (v, x) = (rows[index][0], rows[index][1]);
            let scaled = bound * reference.abs().max(scale(v, x));
            let far = name.starts_with("log_") && reference.abs() > 0.1 * v.hypot(x);
            let bound = if far { scaled.min(4.0 * bound * reference.abs()) } else { scaled };
            // The smallest normal number: nothing below it is promised.
            bound.max(if T::NAME == "f64" { f64::MIN_POSITIVE } else { f64::from(f32::MIN_POSITIVE) })
        })?;
    }
    Ok(())
}

/// The tables of densities, for the two functions that the others do not have: 1 - A of an exact R, and the normaliser.
fn golden_vmf<T: Real + num::Narrow>(device: &Device, bound: f64) -> Result<()> {
    let table = read("golden_vmf.csv")?;
    ensure!(table.len() == 518);
    let order = device.tensor(&cast::<T>(table.iter().map(|row| 0.5 * row[0] - 1.0)))?;
    let kappa = device.tensor(&cast::<T>(table.iter().map(|row| row[2])))?;
    for (name, call, scale) in functions::<T>() {
        let expected: Vec<f64> = match name {
            "iv_ratio_complement" => table.iter().map(|row| 1.0 - row[1]).collect(),
            "vmf_log_normalizer" => table.iter().map(|row| row[3]).collect(),
            _ => continue,
        };
        poison(device, table.len() * size_of::<T>())?;
        let actual: Vec<f64> = call(&order, &kappa)?.to_array()?.iter().map(|value| value.to_f64()).collect();
        compare(name, &actual, &expected, |index, reference| {
            bound * reference.abs().max(scale(0.5 * table[index][0] - 1.0, table[index][2]))
        })?;
    }
    Ok(())
}

/// The tables and the grid with pairs computed in `arithmetic`: within `bound`, and both sides' of it from the CPU.
fn in_pairs(device: &Device, arithmetic: Arithmetic, bound: f64) -> Result<()> {
    let device = with_arithmetic(device, arithmetic)?;
    golden::<DoubleSingle>(&device, bound)?;
    golden_vmf::<DoubleSingle>(&device, bound)?;
    parity::<DoubleSingle>(&device, bound + 16.0 * f64::EPSILON)
}

/// CPU and GPU on a grid of the domain, limits at 0 included. The bound is the sum of both sides' own.
fn parity<T: Real + num::Narrow>(device: &Device, bound: f64) -> Result<()> {
    let orders = [0.0, 1e-6, 0.3, 0.5, 1.0, 2.5, 7.0, 16.0, 31.0, 100.5, 1023.0, 16383.0, 1e6];
    let arguments: Vec<f64> = std::iter::once(0.0).chain((-32..=32).map(|k| 10f64.powf(f64::from(k) / 4.0))).collect();
    let pairs = Array2::from_shape_fn((orders.len(), arguments.len()), |(i, j)| (orders[i], arguments[j]));
    let order: Array1<T> = cast(pairs.iter().map(|pair| pair.0));
    let x: Array1<T> = cast(pairs.iter().map(|pair| pair.1));
    for (name, call, scale) in functions::<T>() {
        poison(device, x.len() * size_of::<T>())?;
        let run = |device: &Device| -> Result<Vec<f64>> {
            let values = call(&device.tensor(&order)?, &device.tensor(&x)?)?.to_array()?;
            Ok(values.iter().map(|value| value.to_f64()).collect())
        };
        let (actual, expected) = (run(device)?, run(&Device::cpu())?);
        compare(name, &actual, &expected, |index, reference| {
            let size = reference.abs().max(scale(order[index].to_f64(), x[index].to_f64()));
            // Pairs lose low words below 7e-24: what counts there is far above the smallest number.
            let smallest = if T::NAME == "f64" { f64::MIN_POSITIVE } else { f64::from(f32::MIN_POSITIVE) };
            (bound * size).max(smallest)
        })?;
    }
    Ok(())
}

fn sizes(device: &Device) -> Result<()> {
    for length in [0, 1, 63, 64, 65, 255, 257, 4097] {
        let x = Array1::from_shape_fn(length, |i| 0.25 + i as f32);
        let order = Array1::from_shape_fn(length, |i| (i % 40) as f32);
        poison(device, 4 * length)?;
        let run = |device: &Device| -> Result<Vec<f64>> {
            let values = kernels::log_iv(&device.tensor(&order)?, &device.tensor(&x)?)?.to_array()?;
            Ok(values.iter().map(|&value| value.into()).collect())
        };
        compare("log_iv", &run(device)?, &run(&Device::cpu())?, |index, reference| {
            24.0 * f64::from(f32::EPSILON) * reference.abs().max(f64::from(order[index].hypot(x[index])))
        })?;
    }
    Ok(())
}

/// Inputs that broadcast along axes that cannot be joined, more of them than a vector has components.
fn broadcasts(device: &Device) -> Result<()> {
    let (of_order, of_x) = (Ix6(2, 1, 3, 1, 2, 1), Ix6(1, 2, 3, 2, 1, 3));
    let order = Array::from_shape_fn(of_order, |(a, _, b, _, c, _)| (7 * a + 3 * b + 2 * c) as f32 * 0.5);
    let x = Array::from_shape_fn(of_x, |(_, a, b, c, _, e)| 0.25 + (11 * a + 5 * b + 2 * c + e) as f32);
    poison(device, 4 * 2 * 2 * 3 * 2 * 2 * 3)?;
    let run = |device: &Device| kernels::log_iv(&device.tensor(&order)?, &device.tensor(&x)?)?.to_array();
    let (actual, expected) = (run(device)?, run(&Device::cpu())?);
    ensure!(actual.shape() == [2, 2, 3, 2, 2, 3] && expected.shape() == actual.shape());
    let wide = |values: &Array6<f32>| values.iter().map(|&value| f64::from(value)).collect::<Vec<_>>();
    // Orders to 8, arguments to 26: sizes of 28 at most.
    let bound = 24.0 * f64::from(f32::EPSILON);
    compare("broadcast", &wide(&actual), &wide(&expected), |_, value| bound * value.abs().max(28.0))
}

/// An element out of the domain, by its number, of either input.
fn domains<T: Real + num::Narrow>(device: &Device, bad: &[f64]) -> Result<()> {
    for &bad in bad {
        for in_order in [true, false] {
            let fine = || cast::<T>((0..200).map(|i| 1.0 + f64::from(i)));
            let (mut order, mut x) = (fine(), fine());
            (if in_order { &mut order } else { &mut x })[170] = T::narrow(bad);
            for device in [device, &Device::cpu()] {
                let result =
                    kernels::log_iv(&device.tensor(&order)?, &device.tensor(&x)?).and_then(|out| out.to_array());
                let quantity = if in_order { "order" } else { "x" };
                let as_it_should =
                    matches!(&result, Err(Error::Domain { quantity: found, index: 170, .. }) if *found == quantity);
                ensure!(as_it_should, "{bad:e} as {quantity} on {device}: {:?}", result.err());
            }
        }
    }
    Ok(())
}

const OUTSIDE: [f64; 5] = [f64::INFINITY, f64::NAN, -1.0, -1e-30, 2e9];

pub fn cases() -> Vec<Case> {
    let (single, double) = (f64::from(f32::EPSILON), f64::EPSILON);
    vec![
        Case::new("bessel_f32", "golden tables", move |device| golden::<f32>(device, 16.0 * single)),
        Case::new("bessel_f32", "parity", move |device| parity::<f32>(device, 32.0 * single)),
        Case::new("bessel_f32", "sizes", sizes),
        Case::new("bessel_f32", "broadcasts", broadcasts),
        Case::new("bessel_f32", "domain", |device| domains::<f32>(device, &OUTSIDE)),
        Case::new("bessel_f64", "domain", |device| domains::<f64>(device, &OUTSIDE)).needs(&[F64]),
        Case::new("bessel_double_single", "domain", |device| {
            domains::<DoubleSingle>(&with_arithmetic(device, Arithmetic::DoubleSingle)?, &OUTSIDE)
        }),
        Case::new("bessel_f64", "golden tables", move |device| golden::<f64>(device, 16.0 * double)).needs(&[F64]),
        Case::new("bessel_f64", "golden densities", move |device| golden_vmf::<f64>(device, 16.0 * double))
            .needs(&[F64]),
        Case::new("bessel_f64", "parity", move |device| parity::<f64>(device, 32.0 * double)).needs(&[F64]),
        // 28 roundings of 2^-48; in f64 the rounding of the pairs that go in and out, 2^-49 of arguments whose logs are ten times as steep.
        Case::new("bessel_double_single", "golden", |device| in_pairs(device, Arithmetic::DoubleSingle, 1e-13)),
        Case::new("bessel_pairs_f64", "golden", |device| in_pairs(device, Arithmetic::F64, 2e-14)).needs(&[F64]),
    ]
}
