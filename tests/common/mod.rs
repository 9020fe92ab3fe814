//! What the tests that need a GPU share: one trial a case and adapter, ignored with the reason where it cannot run.
#![allow(dead_code, reason = "each test binary uses a part")]

pub mod attention;
pub mod attention_backward;

use std::sync::Arc;

use anyhow::Context;
use libtest_mimic::{Arguments, Failed, Trial};
use orthant::{AdapterInfo, AdapterKind, Arithmetic, Device};

/// What an adapter must have for a case.
pub const F64: &str = "f64";
pub const SUBGROUPS: &str = "subgroups";
pub const LARGE_MEMORY: &str = "32 KiB of workgroup memory";

fn has(adapter: &AdapterInfo, need: &str) -> bool {
    match need {
        LARGE_MEMORY => adapter.limits["maxComputeWorkgroupStorageSize"] >= 32 << 10,
        _ => adapter.features.iter().any(|has| has == need),
    }
}

type Run = dyn Fn(&Device) -> anyhow::Result<()> + Send + Sync;

/// One case, run on every adapter.
pub struct Case {
    /// The kernel (as in `kernels::variants()`) or the part of the engine.
    pub subject: &'static str,
    pub name: String,
    pub needs: &'static [&'static str],
    pub run: Arc<Run>,
}

impl Case {
    pub fn new(
        subject: &'static str,
        name: impl Into<String>,
        run: impl Fn(&Device) -> anyhow::Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self { subject, name: name.into(), needs: &[], run: Arc::new(run) }
    }

    pub fn needs(mut self, needs: &'static [&'static str]) -> Self {
        self.needs = needs;
        self
    }
}

/// Runs the cases of the kernels that a broken shader is part of on the first adapter, and exits with 0 where all pass: nobody saw it. 1: one failed; 3:
/// no compiler would take it. `path` holds the shader's file below `shaders/` in its first line, and after it the text. For `.ci/mutate.mjs`.
fn mutant(cases: &[Case], path: &str) -> ! {
    let written = std::fs::read_to_string(path).expect("ORTHANT_MUTANT names a file");
    let (file, text) = written.split_once('\n').expect("the shader's file in the first line");
    orthant::kernels::mutate(file, text);
    let broken: Vec<_> = orthant::kernels::variants().into_iter().filter(|all| all.files.contains(&file)).collect();
    assert!(!broken.is_empty(), "no kernel is made of {file}");
    if broken.iter().all(|variant| naga::front::wgsl::parse_str(&variant.text).is_err()) {
        std::process::exit(3);
    }
    let adapters = Device::adapters();
    let device = Device::gpu_at(adapters.first().expect("an adapter").index).expect("a device");
    // Its own cases, then those of its family, which run it too.
    let family = |kernel: &str| match kernel.split('_').next() {
        Some("pack" | "latent") => "cache".to_string(),
        word => word.unwrap_or_default().to_string(),
    };
    let own = |case: &&Case| broken.iter().any(|variant| variant.kernel == case.subject);
    let related = |case: &&Case| broken.iter().any(|variant| family(variant.kernel) == family(case.subject));
    let concerned = cases.iter().filter(own).chain(cases.iter().filter(|case| !own(case) && related(case)));
    for case in concerned.filter(|case| case.needs.iter().all(|need| has(&adapters[0], need))) {
        let run = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| (case.run)(&device)));
        if !matches!(run, Ok(Ok(()))) {
            println!("{}::{}", case.subject, case.name);
            std::process::exit(1);
        }
    }
    std::process::exit(0)
}

/// Runs every case on every adapter, and `others` once.
pub fn main(cases: Vec<Case>, others: Vec<Trial>) -> ! {
    if let Ok(path) = std::env::var("ORTHANT_MUTANT") {
        mutant(&cases, &path);
    }
    let arguments = Arguments::from_args();
    let required = std::env::var("ORTHANT_REQUIRE_GPU").is_ok_and(|value| value == "1");
    let adapters = Device::adapters();
    let mut trials = others;
    if adapters.is_empty() {
        trials.push(
            Trial::test("an adapter is found", move || match required {
                true => Err(Failed::from("ORTHANT_REQUIRE_GPU=1 and no adapter was found")),
                false => Ok(()),
            })
            .with_ignored_flag(!required),
        );
        for case in &cases {
            let name = format!("{}::{}", case.subject, case.name);
            trials.push(Trial::test(name, || Ok(())).with_kind("no adapter").with_ignored_flag(true));
        }
    }
    for adapter in &adapters {
        let device = match Device::gpu_at(adapter.index) {
            Ok(device) => device,
            Err(error) => {
                trials.push(Trial::test(format!("open {adapter}"), move || Err(Failed::from(error.to_string()))));
                continue;
            }
        };
        for case in &cases {
            let missing = case.needs.iter().find(|need| !has(adapter, need));
            let kind = match (missing, adapter.kind) {
                (Some(need), _) => format!("{} has no {need}", adapter.name),
                (None, _) => adapter.to_string(),
            };
            let (run, device) = (case.run.clone(), device.clone());
            trials.push(
                Trial::test(format!("{}::{}", case.subject, case.name), move || {
                    run(&device).map_err(|error| Failed::from(format!("{error:#}")))
                })
                .with_kind(kind)
                .with_ignored_flag(missing.is_some()),
            );
        }
    }
    libtest_mimic::run(&arguments, trials).exit()
}

/// Whether a trial on this adapter says something about speed.
pub fn is_hardware(kind: AdapterKind) -> bool {
    kind != AdapterKind::Software
}

/// The same adapter opened anew, its pairs computed in `arithmetic`: the other trials go on with what opening chose.
pub fn with_arithmetic(device: &Device, arithmetic: Arithmetic) -> anyhow::Result<Device> {
    let index = device.as_gpu().context("a GPU")?.info().index;
    let device = Device::gpu_at(index)?;
    device.as_gpu().context("a GPU")?.use_arithmetic(arithmetic)?;
    Ok(device)
}

/// Fills the device's idle buffers of every class up to `bytes` with NaNs, so that a kernel that leaves an output unwritten shows.
pub fn poison(device: &Device, bytes: usize) -> anyhow::Result<()> {
    let mut held = Vec::new();
    let mut length = 64;
    while length * 4 <= bytes.max(256) * 5 / 4 {
        for _ in 0..3 {
            held.push(device.tensor(&ndarray::Array1::from_elem(length, f32::from_bits(0x7fc0_dead)))?);
        }
        length += (1 << length.ilog2()) / 4;
    }
    Ok(())
}

/// Compares elementwise: both NaN-free, infinities equal, else `|actual - expected| <= tolerance(index, expected)`.
pub fn compare(
    what: &str,
    actual: &[f64],
    expected: &[f64],
    tolerance: impl Fn(usize, f64) -> f64,
) -> anyhow::Result<()> {
    anyhow::ensure!(actual.len() == expected.len(), "{what}: {} values, expected {}", actual.len(), expected.len());
    let mut wrong = 0;
    let mut worst: Option<(f64, String)> = None;
    for (index, (&actual, &expected)) in actual.iter().zip(expected).enumerate() {
        let bound = tolerance(index, expected);
        let error = (actual - expected).abs();
        // An infinite reference makes error and bound infinite: only equality will do.
        let fine = actual == expected || (error <= bound && error.is_finite());
        if !fine {
            wrong += 1;
            let excess = if error.is_nan() { f64::INFINITY } else { error / bound };
            if worst.as_ref().is_none_or(|(known, _)| excess > *known) {
                let line = format!("at {index}: {actual:e}, expected {expected:e}, error {error:e} > {bound:e}");
                worst = Some((excess, line));
            }
        }
    }
    match worst {
        None => Ok(()),
        Some((_, line)) => anyhow::bail!("{what}: {wrong} of {} values differ; the worst {line}", expected.len()),
    }
}
