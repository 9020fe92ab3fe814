//! Random jobs of every family for as long as `ORTHANT_SOAK_SECONDS` says (10 where it does not), with faults among them: every result on every adapter
//! and on the CPU is checked, memory must return to where it was, and the process must not grow.
//!
//! `ORTHANT_SOAK_SEED` begins elsewhere than at 1; a failure names the seed of its job.

mod common;
#[path = "soak/jobs.rs"]
mod jobs;

use std::pin::pin;
use std::task::{Context as TaskContext, Waker};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use jobs::{JOBS, Soak};
use libtest_mimic::{Arguments, Failed, Trial};
use ndarray::{Array1, Array2};
use orthant::{Device, Error, kernels};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// What the process may grow by, in bytes, from when all has run and a device was opened anew: wgpu keeps some of every device, and an allocator's
/// arenas grow with its threads.
const GROWTH: u64 = 192 << 20;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Bytes of the process in memory, where the system says so.
fn resident() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").ok();
    pages.and_then(|text| text.split(' ').nth(1)?.parse::<u64>().ok()).map_or(0, |pages| pages * 4096)
}

/// Bytes that a device holds when nothing is in use.
fn held(device: &Device) -> Result<u64> {
    let gpu = device.as_gpu().context("a GPU")?;
    device.tensor(&Array1::from_elem(1, 1u32))?.to_array()?;
    gpu.trim();
    Ok(gpu.memory().0 + gpu.memory().1 + gpu.staging_memory())
}

#[derive(Default, Debug)]
struct Counts {
    jobs: u64,
    faults: u64,
    seen: u64,
    losses: u64,
    bytes: u64,
    mismatches: u64,
}

/// A fault that is provoked, and its typed error: whether it came.
fn provoke(soak: &mut Soak, kind: u32) -> Result<()> {
    let device = soak.device.clone();
    let length = soak.random.random_range(2..300usize);
    let x = Array1::from_elem(length, 1.5f32);
    let good = device.tensor(&x)?;
    match kind {
        0 => {
            let other = device.tensor(&Array1::from_elem(length + 1, 1.0f32))?;
            ensure!(matches!(kernels::log_iv(&good, &other), Err(Error::Shape { .. })), "a length that differs");
            let matrix = device.tensor(&Array2::<f32>::ones((length + 1, length)))?;
            ensure!(matches!(kernels::matmul(&matrix, &matrix, false, false), Err(Error::Shape { .. })), "inner sizes");
        }
        1 => {
            let at = soak.random.random_range(0..length);
            let mut bad = x;
            bad[at] = [f32::NAN, -1.0, f32::INFINITY][soak.random.random_range(0..3)];
            let error = kernels::log_kv(&good, &device.tensor(&bad)?)?.to_array().err();
            ensure!(matches!(error, Some(Error::Domain { index, .. }) if index == at), "{at}: {error:?}");
        }
        2 => {
            let result = kernels::log_iv(&good, &good)?;
            drop(result.to_array_async());
            let mut context = TaskContext::from_waker(Waker::noop());
            drop(std::future::Future::poll(pin!(result.to_array_async()), &mut context));
        }
        _ => {
            let cpu = Device::cpu().tensor(&x)?;
            let mixed = kernels::log_iv(&good, &cpu);
            ensure!(matches!(mixed, Err(Error::DeviceMismatch { .. })), "two devices");
        }
    }
    Ok(())
}

/// One job: right, or, where an allocation was made to fail, out of memory.
fn step(soak: &mut Soak, counts: &mut Counts) -> Result<()> {
    let gpu = soak.device.as_gpu().context("a GPU")?.clone();
    let (name, job) = JOBS[soak.random.random_range(0..JOBS.len())];
    let (mut failing, mut little) = (false, false);
    match soak.random.random_range(0..12) {
        0 => {
            gpu.fail_allocation(Some(soak.random.random_range(0..20)));
            failing = true;
        }
        1 => {
            let (in_use, idle) = gpu.memory();
            gpu.set_memory_budget(in_use + idle + soak.random.random_range(0..1 << 20));
            little = true;
        }
        2 => {
            let kind = soak.random.random_range(0..4);
            counts.faults += 1;
            provoke(soak, kind).with_context(|| format!("fault {kind}"))?;
            counts.seen += 1;
        }
        _ => {}
    }
    let result = job(soak);
    let struck = failing && !gpu.failure_pending();
    gpu.fail_allocation(None);
    gpu.set_memory_budget(u64::MAX);
    counts.jobs += 1;
    let refused = match &result {
        Err(error) => matches!(error.downcast_ref::<Error>(), Some(Error::OutOfMemory { .. })),
        Ok(()) => false,
    };
    counts.faults += u64::from(struck || refused && little);
    match result {
        Err(_) if refused && (struck || little) => counts.seen += 1,
        result => {
            result.context(name)?;
            ensure!(!struck, "{name}: an allocation failed, and nobody noticed");
        }
    }
    Ok(())
}

/// The device is destroyed: it says so, holds nothing, and another is opened.
fn lose(soak: &mut Soak, counts: &mut Counts) -> Result<()> {
    let gpu = soak.device.as_gpu().context("a GPU")?.clone();
    counts.faults += 1;
    counts.losses += 1;
    let x = soak.device.tensor(&Array1::from_elem(1000, 2.0f32))?;
    let pending = kernels::log_iv(&x, &x)?;
    gpu.destroy();
    let error = pending.to_array().err();
    let reported = matches!(error, Some(Error::DeviceLost { .. }));
    let (_, job) = JOBS[soak.random.random_range(0..JOBS.len())];
    soak.caches = None;
    let error = job(soak).err();
    let lost = error.as_ref().and_then(|error| error.downcast_ref::<Error>());
    let reported = reported && matches!(lost, Some(Error::DeviceLost { .. }));
    drop((x, pending));
    soak.caches = None;
    soak.device = Device::gpu_at(gpu.info().index)?;
    ensure!(reported, "a lost device: {error:?}");
    gpu.trim();
    let left = gpu.memory().0 + gpu.staging_memory();
    ensure!(left == 0, "{left} bytes are held by a lost device");
    counts.seen += 1;
    Ok(())
}

fn soak(index: usize, seconds: u64) -> Result<()> {
    let device = Device::gpu_at(index)?;
    let name = device.to_string();
    let mut soak = Soak { device, random: ChaCha8Rng::seed_from_u64(0), caches: None, bytes: 0 };
    let mut counts = Counts::default();
    let start = held(&soak.device)?;
    let first = number("ORTHANT_SOAK_SEED", 1);
    let (began, limit) = (Instant::now(), Duration::from_secs(seconds));
    let mut settled = None;
    let (mut reported, mut seed) = (Instant::now(), first);
    // Longer soaks lose a device every 500 jobs; short ones once at least.
    let between = if seconds > 60 { 500 } else { 60 };
    while began.elapsed() < limit {
        soak.random = ChaCha8Rng::seed_from_u64(seed);
        let result = match (seed - first) % between == between - 1 {
            true => lose(&mut soak, &mut counts),
            false => step(&mut soak, &mut counts),
        };
        if let Err(error) = result {
            counts.mismatches += 1;
            println!("soak of {name}: seed {seed}: {error:#}");
            soak.caches = None;
            soak.device = Device::gpu_at(index)?;
            ensure!(counts.mismatches < 20, "20 mismatches");
        }
        seed += 1;
        // Three devices were opened and all jobs ran: from here on it does not grow.
        if settled.is_none() && counts.losses >= 3 {
            settled = Some(resident());
        }
        if reported.elapsed() > Duration::from_secs(60) {
            reported = Instant::now();
            println!("soak of {name}: {} s, {counts:?}, {} MiB resident", began.elapsed().as_secs(), resident() >> 20);
        }
    }
    soak.caches = None;
    counts.bytes = soak.bytes;
    let end = held(&soak.device)?;
    let (before, after) = (settled.unwrap_or_else(resident), resident());
    let Counts { jobs, faults, seen, losses, bytes, mismatches } = counts;
    println!(
        "soak of {name}: {seconds} s, {jobs} jobs, {bytes} bytes moved, {faults} faults ({losses} lost devices), {seen} of them seen, {mismatches} \
         mismatches; device memory {start} bytes at the start, {end} at the end; process {} MiB, {} MiB at the end",
        before >> 20,
        after >> 20
    );
    ensure!(mismatches == 0, "{mismatches} mismatches");
    ensure!(faults == seen, "{faults} faults, {seen} seen");
    ensure!(end == start, "{start} bytes at the start, {end} at the end");
    ensure!(after <= before + GROWTH, "the process has grown from {before} to {after} bytes");
    Ok(())
}

fn main() {
    let arguments = Arguments::from_args();
    let required = std::env::var("ORTHANT_REQUIRE_GPU").is_ok_and(|value| value == "1");
    let adapters = Device::adapters();
    let seconds = number("ORTHANT_SOAK_SECONDS", 10);
    let missing = adapters.is_empty();
    let trial = Trial::test("soak", move || {
        if missing {
            return Err(Failed::from("ORTHANT_REQUIRE_GPU=1 and no adapter was found"));
        }
        // One after the other: the memory of the process is measured.
        for adapter in &adapters {
            let share = (seconds / adapters.len() as u64).max(1);
            soak(adapter.index, share).map_err(|error| Failed::from(format!("{adapter}: {error:#}")))?;
        }
        Ok(())
    });
    libtest_mimic::run(&arguments, vec![trial.with_ignored_flag(missing && !required)]).exit()
}
