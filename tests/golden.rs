//! The CPU path against values computed elsewhere, to 60 digits and more, by two methods a row.
//!
//! A table row is compared in eps of the element type: *scaled* errors are relative to max(|reference|, s), s = hypot(v, x), because
//! ln I and ln K cross 0 where relative errors mean nothing; ratios and derivatives relative to themselves. Each test prints the
//! largest error by region (`cargo test --test golden -- --nocapture`).

use std::collections::BTreeMap;

use ndarray::{Array1, Ix1};
use orthant::{Device, Result, Tensor, kernels};

type Rows = Vec<Vec<f64>>;

fn rows(file: &str) -> Rows {
    let path = format!("{}/tests/data/{file}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    text.lines().skip(1).map(|line| line.split(',').map(|field| field.parse().unwrap_or(f64::NAN)).collect()).collect()
}

/// (v, x, reference) of a column.
struct Table {
    name: &'static str,
    points: Vec<(f64, f64, f64)>,
}

impl Table {
    fn new(name: &'static str, rows: &Rows, point: impl Fn(&[f64]) -> (f64, f64, f64)) -> Self {
        Self { name, points: rows.iter().map(|row| point(row)).collect() }
    }

    /// Only the rows whose v and x are f32 values: a rounded argument would be another point.
    fn single(mut self) -> Self {
        self.points.retain(|&(v, x, _)| f64::from(v as f32) == v && f64::from(x as f32) == x);
        assert!(self.points.len() > 100, "{}: {} rows in f32", self.name, self.points.len());
        self
    }
}

/// One element type through the public door.
trait Door {
    const EPS: f64;
    /// Below this s the Debye expansion gives way.
    const REACH: f64;
    /// Absolute slack: the smallest normal number.
    const TINY: f64;
    fn values(f: Function, points: &[(f64, f64, f64)]) -> Vec<f64>;
}

enum Function {
    LogIv,
    LogKv,
    IvRatio,
    IvRatioComplement,
    LogIvDx,
    LogKvDx,
    LogIvDv,
    LogKvDv,
    VmfLogNormalizer,
}

macro_rules! door {
    ($real:ident, $reach:literal) => {
        impl Door for $real {
            const EPS: f64 = $real::EPSILON as f64;
            const REACH: f64 = $reach;
            const TINY: f64 = $real::MIN_POSITIVE as f64;
            fn values(f: Function, points: &[(f64, f64, f64)]) -> Vec<f64> {
                let column = |pick: fn(&(f64, f64, f64)) -> f64| {
                    let values: Array1<$real> = points.iter().map(|point| pick(point) as $real).collect();
                    Device::cpu().tensor(&values).expect("a tensor on the CPU")
                };
                let call: fn(&Tensor<$real, Ix1>, &Tensor<$real, Ix1>) -> Result<Tensor<$real, Ix1>> = match f {
                    Function::LogIv => kernels::log_iv,
                    Function::LogKv => kernels::log_kv,
                    Function::IvRatio => kernels::iv_ratio,
                    Function::IvRatioComplement => kernels::iv_ratio_complement,
                    Function::LogIvDx => kernels::log_iv_dx,
                    Function::LogKvDx => kernels::log_kv_dx,
                    Function::LogIvDv => kernels::log_iv_dv,
                    Function::LogKvDv => kernels::log_kv_dv,
                    Function::VmfLogNormalizer => kernels::vmf_log_normalizer,
                };
                let out =
                    call(&column(|p| p.0), &column(|p| p.1)).and_then(|out| out.to_array()).expect("in the domain");
                out.iter().map(|&value| f64::from(value)).collect()
            }
        }
    };
}
door!(f64, 34.0);
door!(f32, 17.0);

/// Fails where an error exceeds `bound` (below, above the Debye expansion's reach); prints the largest by region.
///
/// `relative`: relative to the reference. Else scaled, and relative within four bounds where |reference| > 0.1 s.
fn check<T: Door>(function: Function, table: &Table, relative: bool, bound: (f64, f64)) {
    let found = T::values(function, &table.points);
    let mut regions: BTreeMap<&str, (usize, f64, (f64, f64))> = BTreeMap::new();
    let mut failures = Vec::new();
    for (&(v, x, reference), found) in table.points.iter().zip(found) {
        let s = v.hypot(x);
        // A reference rounded to T, and to a subnormal or 0 where it underflows, is as good as it gets.
        let error = (found - reference).abs();
        let error = if error <= T::TINY { 0.0 } else { error / T::EPS };
        let of_itself = if error == 0.0 { 0.0 } else { error / reference.abs() };
        let measure = if relative { of_itself } else { error / reference.abs().max(s) };
        let (region, bound) = if s < 1.0 {
            ("a: s < 1", bound.0)
        } else if s < T::REACH {
            ("b: 1 <= s < reach", bound.0)
        } else if s < 100.0 {
            ("c: reach <= s < 100", bound.1)
        } else {
            ("d: s >= 100", bound.1)
        };
        let held = measure <= bound && (relative || reference.abs() <= 0.1 * s || of_itself <= 4.0 * bound);
        if !held {
            failures.push(format!("v = {v:e}, x = {x:e}: {found:e}, expected {reference:e}, {measure:.2} eps"));
        }
        let entry = regions.entry(region).or_insert((0, 0.0, (v, x)));
        entry.0 += 1;
        if measure > entry.1 || measure.is_nan() {
            (entry.1, entry.2) = (measure, (v, x));
        }
    }
    let bits = if T::REACH == 17.0 { 32 } else { 64 };
    for (region, (rows, largest, (v, x))) in regions {
        println!(
            "{} f{bits} {region}: {rows} rows, largest error {largest:.2} eps at v = {v:e}, x = {x:e}",
            table.name
        );
    }
    assert!(failures.is_empty(), "{} f{bits}: {} rows fail\n{}", table.name, failures.len(), failures.join("\n"));
}

fn bessel(name: &'static str, column: usize) -> Table {
    Table::new(name, &rows("golden_bessel.csv"), |row| (row[0], row[1], row[column]))
}

fn aux(name: &'static str, column: usize) -> Table {
    Table::new(name, &rows("golden_bessel_aux.csv"), |row| (row[0], row[1], row[column]))
}

// The bounds of log_iv and log_kv: three to four roundings of terms as large as s (or ln K itself) in the Debye expansion; below,
// a cancellation of v ln(x/2) and ln Gamma. f32 below 17 is computed in f64: half an eps, 8 are allowed.

#[test]
fn log_iv() {
    check::<f64>(Function::LogIv, &bessel("log_iv", 2), false, (16.0, 4.0));
    check::<f32>(Function::LogIv, &bessel("log_iv", 2).single(), false, (8.0, 4.0));
}

#[test]
fn log_kv() {
    check::<f64>(Function::LogKv, &bessel("log_kv", 3), false, (16.0, 4.0));
    check::<f32>(Function::LogKv, &bessel("log_kv", 3).single(), false, (8.0, 4.0));
}

// A few roundings of positive terms.

#[test]
fn iv_ratio() {
    check::<f64>(Function::IvRatio, &aux("iv_ratio", 2), true, (4.0, 4.0));
    check::<f32>(Function::IvRatio, &aux("iv_ratio", 2).single(), true, (4.0, 4.0));
}

/// 1 - A, relative to itself. golden_bessel_aux.csv has A to 17 digits: 1 minus it says little where A is near 1. golden_vmf.csv
/// has kappa rounded to a double for an exact f32 R, and moves 1 - A by less than one eps for it.
#[test]
fn iv_ratio_complement() {
    let mut wide = aux("iv_ratio_complement", 2);
    wide.points.iter_mut().for_each(|point| point.2 = 1.0 - point.2);
    wide.points.retain(|point| point.2 > 0.3);
    check::<f64>(Function::IvRatioComplement, &wide, true, (4.0, 4.0));
    check::<f32>(Function::IvRatioComplement, &wide.single(), true, (4.0, 4.0));
    let vmf = Table::new("iv_ratio_complement (vMF)", &rows("golden_vmf.csv"), |row| {
        (0.5 * row[0] - 1.0, row[2], 1.0 - row[1])
    });
    check::<f64>(Function::IvRatioComplement, &vmf, true, (5.0, 5.0));
}

#[test]
fn log_iv_dx() {
    check::<f64>(Function::LogIvDx, &aux("log_iv_dx", 4), true, (4.0, 4.0));
    check::<f32>(Function::LogIvDx, &aux("log_iv_dx", 4).single(), true, (4.0, 4.0));
}

/// Below the reach the trapezoidal rule stops at 2^-60 of the sum, which x cosh u weighs more near its end.
#[test]
fn log_kv_dx() {
    check::<f64>(Function::LogKvDx, &aux("log_kv_dx", 5), true, (8.0, 4.0));
    check::<f32>(Function::LogKvDx, &aux("log_kv_dx", 5).single(), true, (4.0, 4.0));
}

#[test]
fn log_iv_dv() {
    check::<f64>(Function::LogIvDv, &aux("log_iv_dv", 6), true, (4.0, 4.0));
    check::<f32>(Function::LogIvDv, &aux("log_iv_dv", 6).single(), true, (4.0, 4.0));
}

#[test]
fn log_kv_dv() {
    check::<f64>(Function::LogKvDv, &aux("log_kv_dv", 7), true, (4.0, 4.0));
    check::<f32>(Function::LogKvDv, &aux("log_kv_dv", 7).single(), true, (4.0, 4.0));
}

#[test]
fn vmf_log_normalizer() {
    let table = Table::new("vmf_log_normalizer", &rows("golden_vmf.csv"), |row| (0.5 * row[0] - 1.0, row[2], row[3]));
    check::<f64>(Function::VmfLogNormalizer, &table, false, (4.0, 4.0));
    // That table's kappas are no f32 values; ln C from the table of ln I, in f64 where it cancels to a few f32 eps / 1e5, serves f32.
    let single = Table::new("vmf_log_normalizer", &rows("golden_bessel.csv"), |row| {
        let (v, x) = (row[0], row[1]);
        (v, x, v * x.ln() - (v + 1.0) * (2.0 * std::f64::consts::PI).ln() - row[2])
    });
    check::<f32>(Function::VmfLogNormalizer, &single.single(), false, (8.0, 4.0));
}

/// A'(kappa) = A (1 - A) + (1 - A) - 2 v' A / kappa with v' = (d - 1)/2, from the two ratios; the table's a_prime. The sum cancels:
/// its error is that of its terms.
#[test]
fn slope_of_the_mean_resultant_length() {
    let table = Table::new("A'", &rows("golden_vmf.csv"), |row| (0.5 * row[0] - 1.0, row[2], row[5]));
    let ratio = f64::values(Function::IvRatio, &table.points);
    let complement = f64::values(Function::IvRatioComplement, &table.points);
    for ((&(v, kappa, reference), a), c) in table.points.iter().zip(ratio).zip(complement) {
        let pull = (2.0 * v + 1.0) * a / kappa;
        let found = c * (1.0 + a) - pull;
        // Four eps of each ratio and three roundings.
        let bound = 8.0 * f64::EPSILON * (c * (1.0 + a) + pull);
        assert!((found - reference).abs() <= bound, "v = {v}, kappa = {kappa:e}: {found:e}, expected {reference:e}");
    }
}
