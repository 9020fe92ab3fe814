//! Peak memory of a fit, measured in a child process of its own: what the system says the process held at most (`VmHWM`), data included.

use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use ndarray::{Array2, ArrayViewMut2, Axis};
use orthant::Device;
use orthant::vmf::{MixtureOptions, RowSource, Vmf, VmfMixture, VmfStats};
use serde::{Deserialize, Serialize};

use crate::harness::{Bench, Effort, Goal};

const TINY: (usize, usize) = (20_000, 64);
const WIDE: (usize, usize) = (2000, 32_768);
const LONG: (usize, usize) = (200_000, 384);

struct Fit {
    name: &'static str,
    shape: (usize, usize),
    run: fn((usize, usize)) -> Result<()>,
    /// Over the bytes of the data. None: the data are read in pieces, and this is only reported.
    goal: Option<f64>,
    effort: Effort,
}

/// What the issue asks of fits from memory, and how little one from a source holds.
const FITS: &[Fit] = &[
    Fit { name: "tiny", shape: TINY, run: fit, goal: None, effort: Effort::Smoke },
    Fit { name: "vmf-wide", shape: WIDE, run: fit, goal: Some(1.3), effort: Effort::Quick },
    Fit { name: "vmf-long", shape: LONG, run: fit, goal: Some(1.3), effort: Effort::Quick },
    Fit { name: "mixture-wide", shape: WIDE, run: fit_mixture, goal: Some(1.3), effort: Effort::Full },
    Fit { name: "mixture-long", shape: LONG, run: fit_mixture, goal: Some(1.3), effort: Effort::Full },
    Fit { name: "vmf-streamed", shape: LONG, run: fit_streamed, goal: None, effort: Effort::Quick },
    Fit { name: "mixture-streamed", shape: LONG, run: stream_mixture, goal: None, effort: Effort::Full },
];

/// What a child prints.
#[derive(Serialize, Deserialize)]
struct Peak {
    bytes: f64,
}

pub fn run(bench: &mut Bench) -> Result<()> {
    if !cfg!(target_os = "linux") {
        println!("peak memory is measured on Linux only");
        return Ok(());
    }
    let wanted = |fit: &&Fit| match bench.effort {
        Effort::Smoke => fit.effort == Effort::Smoke,
        effort => fit.effort != Effort::Smoke && fit.effort <= effort,
    };
    for fit in FITS.iter().filter(wanted).collect::<Vec<_>>() {
        let output = Command::new(std::env::current_exe()?).args(["--peak-memory", fit.name]).output()?;
        ensure!(output.status.success(), "{}: {}", fit.name, String::from_utf8_lossy(&output.stderr));
        let peak: Peak = serde_json::from_slice(&output.stdout).with_context(|| fit.name)?;
        let (rows, dim) = fit.shape;
        let data = 4.0 * (rows * dim) as f64;
        bench.goal(Goal {
            what: format!("peak memory of {}, {rows} x {dim} f32, over its data ({:.0} MB)", fit.name, data * 1e-6),
            measured: peak.bytes / data,
            at_least: None,
            at_most: fit.goal,
        });
    }
    Ok(())
}

/// The child: one fit, then what it took.
pub fn child(name: &str) -> Result<()> {
    let Some(fit) = FITS.iter().find(|fit| fit.name == name) else { bail!("there is no fit {name:?}") };
    (fit.run)(fit.shape)?;
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kilobytes: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    println!("{}", serde_json::to_string(&Peak { bytes: kilobytes * 1024.0 })?);
    Ok(())
}

fn data((rows, dim): (usize, usize)) -> Result<Array2<f32>> {
    let mut data = Array2::zeros((rows, dim));
    Generated(rows, dim).read(0, data.view_mut())?;
    Ok(data)
}

fn fit(shape: (usize, usize)) -> Result<()> {
    Vmf::fit(&Device::Cpu.tensor_from(data(shape)?)?)?;
    Ok(())
}

fn options() -> MixtureOptions {
    MixtureOptions::new(16).seed(1).max_iterations(3)
}

fn fit_mixture(shape: (usize, usize)) -> Result<()> {
    VmfMixture::fit(&Device::Cpu.tensor_from(data(shape)?)?, &options())?;
    Ok(())
}

fn fit_streamed(shape: (usize, usize)) -> Result<()> {
    Vmf::from_stats(&VmfStats::from_source(&Generated(shape.0, shape.1))?)?;
    Ok(())
}

fn stream_mixture(shape: (usize, usize)) -> Result<()> {
    VmfMixture::fit_source(&Device::Cpu, &Generated(shape.0, shape.1), &options())?;
    Ok(())
}

/// Rows around 16 directions, made when they are read.
struct Generated(usize, usize);

impl RowSource for Generated {
    fn rows(&self) -> usize {
        self.0
    }

    fn dim(&self) -> usize {
        self.1
    }

    fn read(&self, first: usize, mut into: ArrayViewMut2<'_, f32>) -> orthant::Result<()> {
        for (row, mut values) in (first as u64..).zip(into.axis_iter_mut(Axis(0))) {
            let noise = |seed: u64| {
                let mixed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                ((mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 40) as f32 / (1u64 << 24) as f32 - 0.5
            };
            for (column, value) in (0u64..).zip(values.iter_mut()) {
                *value = noise((row % 16) << 32 | column) + noise((row + 16) << 32 | column);
            }
        }
        Ok(())
    }
}
