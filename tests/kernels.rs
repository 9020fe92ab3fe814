//! CPU against GPU, on every adapter: one case at least for every kernel.

#[path = "kernels/attention.rs"]
mod attention;
#[path = "kernels/attention_backward.rs"]
mod attention_backward;
#[path = "kernels/bessel.rs"]
mod bessel;
#[path = "kernels/calibration.rs"]
mod calibration;
mod common;
#[path = "kernels/ctr.rs"]
mod ctr;
#[path = "kernels/double_single.rs"]
mod double_single;
#[path = "kernels/extended.rs"]
mod extended;
#[path = "kernels/hamming.rs"]
mod hamming;
#[path = "kernels/knn.rs"]
mod knn;
#[path = "kernels/kv.rs"]
mod kv;
#[path = "kernels/limits.rs"]
mod limits;
#[path = "kernels/matrix.rs"]
mod matrix;

use std::collections::BTreeSet;

use common::{Case, compare};
use libtest_mimic::{Failed, Trial};

/// Every kernel has a case, and every case a kernel.
fn no_kernel_without_a_case(subjects: &BTreeSet<&'static str>) -> Result<(), Failed> {
    let kernels: BTreeSet<_> = orthant::kernels::variants().iter().map(|variant| variant.kernel).collect();
    match kernels == *subjects {
        true => Ok(()),
        false => Err(Failed::from(format!("kernels {kernels:?}, cases {subjects:?}"))),
    }
}

/// The comparison itself: it must see a planted error, a NaN on either side, a length that differs.
fn a_planted_error_is_found() -> Result<(), Failed> {
    let expected: Vec<f64> = (0..1000).map(|i| f64::from(i).sin()).collect();
    let tolerance = |_: usize, expected: f64| 1e-9 * expected.abs().max(1.0);
    let mut planted = Vec::new();
    for wrong in [f64::NAN, f64::INFINITY, expected[617] + 2e-9, -expected[617]] {
        let mut actual = expected.clone();
        actual[617] = wrong;
        planted.push((compare("planted", &actual, &expected, tolerance), true));
        planted.push((compare("planted", &expected, &actual, tolerance), true));
    }
    planted.push((compare("short", &expected[..999], &expected, tolerance), true));
    planted.push((compare("equal", &expected, &expected, tolerance), false));
    planted.push((compare("infinite", &[f64::INFINITY], &[f64::INFINITY], tolerance), false));
    for (index, (result, wrong)) in planted.iter().enumerate() {
        if result.is_err() != *wrong {
            return Err(Failed::from(format!("planted case {index}: {result:?}")));
        }
    }
    Ok(())
}

fn main() {
    let cases: Vec<Case> = [
        attention::cases(),
        attention_backward::cases(),
        bessel::cases(),
        calibration::cases(),
        ctr::cases(),
        double_single::cases(),
        extended::cases(),
        hamming::cases(),
        knn::cases(),
        kv::cases(),
        limits::cases(),
        matrix::cases(),
    ]
    .into_iter()
    .flatten()
    .collect();
    let subjects: BTreeSet<_> = cases.iter().map(|case| case.subject).collect();
    let others = vec![
        Trial::test("no kernel without a case", move || no_kernel_without_a_case(&subjects)),
        Trial::test("a planted error is found", a_planted_error_is_found),
    ];
    common::main(cases, others)
}
