//! Double-single arithmetic and its self-test, on every adapter.

use anyhow::{Context, Result, ensure};
use orthant::{AdapterKind, Arithmetic, Device};

use crate::common::{Case, F64, with_arithmetic};

/// The self-test passes with the guards that opening found, and what is chosen follows from it.
fn self_test(device: &Device) -> Result<()> {
    let gpu = device.as_gpu().context("a GPU")?;
    let extended = gpu.extended();
    let guard = extended.guard.with_context(|| format!("no guard is enough: {}", extended.failure))?;
    ensure!(gpu.double_single_self_test(guard) == Ok(()));
    // Every step guarded is never less exact than some.
    ensure!(gpu.double_single_self_test(2) == Ok(()));
    ensure!(extended.arithmetic.is_some());
    ensure!(extended.cost_of_double_single.is_some() == gpu.has_f64());
    for arithmetic in [Arithmetic::F64, Arithmetic::DoubleSingle] {
        match with_arithmetic(device, arithmetic) {
            Ok(other) => ensure!(other.as_gpu().context("a GPU")?.extended().arithmetic == Some(arithmetic)),
            Err(error) => ensure!(arithmetic == Arithmetic::F64 && !gpu.has_f64(), "{error}"),
        }
    }
    Ok(())
}

/// Without the opaque identity the low words of two-sums are lost, and the self-test says so. (On lavapipe: another compiler may leave them.)
fn broken_guard(device: &Device) -> Result<()> {
    let gpu = device.as_gpu().context("a GPU")?;
    match gpu.double_single_self_test(0) {
        Err(failure) => {
            ensure!(failure.contains("two-sums come out wrong") || failure.contains("two-sums,"), "{failure}")
        }
        Ok(()) => ensure!(
            !gpu.info().driver.contains("llvmpipe") && !gpu.info().name.contains("llvmpipe"),
            "the guards were removed and {gpu} passed"
        ),
    }
    Ok(())
}

/// The measurement of opening ran both arithmetics.
fn rate(device: &Device) -> Result<()> {
    let gpu = device.as_gpu().context("a GPU")?;
    let cost = gpu.extended().cost_of_double_single.context("measured where there is f64")?;
    ensure!(cost.is_finite() && cost > 0.0);
    // 45 operations against 2, of the same rate on a CPU with SIMD of twice the lanes: far above 1.
    ensure!(gpu.info().kind != AdapterKind::Software || cost > 1.0, "{cost}");
    Ok(())
}

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("double_single_check", "self-test", self_test),
        Case::new("double_single_check", "a broken guard is seen", broken_guard),
        Case::new("double_single_rate", "measured at opening", rate).needs(&[F64]),
        Case::new("double_single_rate_f64", "measured at opening", rate).needs(&[F64]),
    ]
}
