//! Limits, continuity and the scalar doors; the golden tables are in tests/golden.rs.

use super::*;

fn scalar(function: Function, v: f64, x: f64) -> f64 {
    let mut out = [f64::NAN];
    f64::bessel(function, &[v], &[x], &mut out);
    out[0]
}

fn rows(file: &str) -> Vec<Vec<f64>> {
    let path = format!("{}/tests/data/{file}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).expect("a table of tests/data");
    text.lines().skip(1).map(|line| line.split(',').map(|field| field.parse().expect("a number")).collect()).collect()
}

/// The scalar doors against the tables: 4 eps of max(|reference|, hypot(v, x)), and 4 eps of A and of 1 - A.
#[test]
fn scalars_reach_the_tables() {
    let scaled = |v: f64, x: f64, found: f64, expect: f64| {
        let unit = f64::EPSILON * expect.abs().max(v.hypot(x));
        assert!((found - expect).abs() <= 4.0 * unit, "v = {v:e}, x = {x:e}: {found:e}, expected {expect:e}");
    };
    for row in rows("golden_bessel.csv") {
        scaled(row[0], row[1], double::<LogIv>(row[0], row[1]), row[2]);
        scaled(row[0], row[1], double::<LogKv>(row[0], row[1]), row[3]);
    }
    for row in rows("golden_vmf.csv") {
        let (d, r, kappa) = (row[0], row[1], row[2]);
        scaled(0.5 * d - 1.0, kappa, vmf_log_normalizer(d, kappa), row[3]);
        if kappa > 0.0 {
            let (ratio, complement) = iv_ratio_pair(0.5 * d - 1.0, kappa);
            // The table's kappa is the double next to the solution of A = R: that rounding adds at most one eps.
            assert!((ratio - r).abs() <= 5.0 * f64::EPSILON * r, "d = {d}, kappa = {kappa:e}: A = {ratio:e}");
            assert!(
                (complement - (1.0 - r)).abs() <= 5.0 * f64::EPSILON * (1.0 - r),
                "d = {d}: 1 - A = {complement:e}"
            );
        }
    }
}

#[test]
fn x_0_takes_the_limits() {
    let infinity = f64::INFINITY;
    let expect = |function| match function {
        Function::LogIv => (0.0, -infinity),
        Function::LogKv => (infinity, infinity),
        Function::IvRatio => (0.0, 0.0),
        Function::IvRatioComplement => (1.0, 1.0),
        Function::LogIvDx => (0.0, infinity),
        Function::LogKvDx => (-infinity, -infinity),
        Function::LogIvDv => (-infinity, -infinity),
        Function::LogKvDv => (0.0, infinity),
        // the circle's length 2 pi, the area 2 pi^2 of the sphere in 4 dimensions
        Function::VmfLogNormalizer => (-(2.0 * std::f64::consts::PI).ln(), -(2.0 * std::f64::consts::PI.powi(2)).ln()),
    };
    for &function in Function::ALL {
        let (zero, one) = (scalar(function, 0.0, 0.0), scalar(function, 1.0, 0.0));
        let close = |found: f64, expect: f64| found == expect || (found - expect).abs() < 1e-15;
        assert!(close(zero, expect(function).0) && close(one, expect(function).1), "{function:?}: {zero} {one}");
    }
}

/// Far outside the domain: finite.
#[test]
fn extremes_are_finite() {
    for v in [0.0, 1e-300, 1e-20, 1e-9, 1e-3, 0.2, 0.3, 1.0, 7.5, 33.9, 34.1, 1e3, 1e6, 1e7] {
        for &function in Function::ALL {
            for x in [1e-139, 1e-100, 1e-20, 1e-9, 1.0, 1e9, 1e20, 1e30, 1e149] {
                let value = scalar(function, v, x);
                assert!(value.is_finite(), "{function:?} v = {v:e}, x = {x:e}: {value}");
            }
        }
    }
}

/// Points of every class, shuffled among blocks, come out at their own places, whatever the length.
#[test]
fn blocks_keep_the_order() {
    let points: Vec<(f64, f64)> =
        (0..5000_u64).map(|i| ((i * 7919 % 613) as f64 / 7.0, (i * 104_729 % 1009) as f64 / 9.0)).collect();
    let (v, x): (Vec<f64>, Vec<f64>) = points.into_iter().unzip();
    for n in [0, 1, 15, 16, 17, 1023, 1024, 1025, 5000] {
        let mut out = vec![f64::NAN; n];
        f64::bessel(Function::LogIv, &v[..n], &x[..n], &mut out);
        for i in 0..n {
            let expect = double::<LogIv>(v[i], x[i]);
            let unit = f64::EPSILON * expect.abs().max(v[i].hypot(x[i]));
            // Each is within 4 eps of the truth.
            assert!(out[i] == expect || (out[i] - expect).abs() <= 8.0 * unit, "{i} of {n}: {} {expect}", out[i]);
        }
    }
}
