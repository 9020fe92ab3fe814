//! The harness: places to run at, cases that check their result before they are timed, rows.

pub mod html;
pub mod limits;
pub mod report;

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use orthant::{AdapterKind, Device, Gpu};
use serde::Serialize;

pub use limits::{Limits, Traffic, wait};

/// How long a run may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effort {
    /// Everything once on tiny inputs: only that it works, for `cargo test --benches`.
    Smoke,
    /// Under a minute.
    Quick,
    Full,
}

/// A device with a number of threads, and what it can do at most.
pub struct Place {
    /// "CPU, 2 threads", or the adapter.
    pub name: String,
    pub device: Device,
    /// Of the CPU.
    pub threads: Option<usize>,
    /// Whether its speed says anything: not that of a software adapter.
    pub hardware: bool,
    pub limits: Limits,
    /// None for adapters.
    pool: Option<rayon::ThreadPool>,
}

impl Place {
    /// One thread of the CPU, or all of them.
    pub fn cpu(all: bool, effort: Effort) -> Result<Self> {
        let threads = if all { rayon::current_num_threads() } else { 1 };
        // of its own for all threads too: what a worker allocates comes from an arena that keeps its pages, the main thread's faults them in anew
        let pool = Some(rayon::ThreadPoolBuilder::new().num_threads(threads).build()?);
        let name = if threads == 1 { "CPU, 1 thread".into() } else { format!("CPU, {threads} threads") };
        let mut place =
            Self { name, device: Device::Cpu, threads: Some(threads), hardware: true, limits: Limits::default(), pool };
        place.limits = place.run(|| limits::cpu(threads, effort))?;
        Ok(place)
    }

    /// The adapter at `index`.
    pub fn gpu(index: usize, effort: Effort) -> Result<Self> {
        let device = Device::gpu_at(index)?;
        let gpu = device.as_gpu().context("an adapter is a GPU")?;
        Ok(Self {
            name: device.to_string(),
            threads: None,
            hardware: gpu.info().kind != AdapterKind::Software,
            limits: limits::gpu(gpu, effort)?,
            pool: None,
            device,
        })
    }

    /// `call` on this place's threads.
    pub fn run<R: Send>(&self, call: impl FnOnce() -> R + Send) -> R {
        match &self.pool {
            Some(pool) => pool.install(call),
            None => call(),
        }
    }
}

/// What one call took, in seconds: the whole, and on a GPU its stages.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Times {
    pub whole: f64,
    pub stages: Option<Stages>,
}

/// Upload of the inputs, the kernels by the device's own clock, readback of the results.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stages {
    pub upload: f64,
    pub kernel: f64,
    pub readback: f64,
}

/// A call on the host.
pub fn host<R>(call: impl FnOnce() -> orthant::Result<R>) -> Result<(R, Times)> {
    let start = Instant::now();
    let result = call()?;
    Ok((result, Times { whole: start.elapsed().as_secs_f64(), stages: None }))
}

/// A call on a GPU in its three stages.
pub fn staged<I, O, R>(
    gpu: &Gpu,
    upload: impl FnOnce() -> orthant::Result<I>,
    call: impl FnOnce(&I) -> orthant::Result<O>,
    readback: impl FnOnce(O) -> orthant::Result<R>,
) -> Result<(R, Times)> {
    let start = Instant::now();
    let inputs = upload()?;
    wait(gpu)?;
    let uploaded = start.elapsed();
    let (output, kernel) = limits::kernel_seconds(gpu, || call(&inputs))?;
    let computed = Instant::now();
    let result = readback(output)?;
    let stages = Stages { upload: uploaded.as_secs_f64(), kernel, readback: computed.elapsed().as_secs_f64() };
    Ok((result, Times { whole: start.elapsed().as_secs_f64(), stages: Some(stages) }))
}

/// What a case computes, for the rates of its row.
#[derive(Clone, Debug)]
pub struct Work {
    pub kernel: String,
    pub shape: String,
    pub dtype: &'static str,
    /// Floating-point operations, by the model that the family's file states.
    pub flops: f64,
    /// Bytes that must move, each counted once.
    pub bytes: f64,
    /// None where no limit is measured: the link between host and GPU.
    pub traffic: Option<Traffic>,
}

type Call<'a> = dyn FnMut(bool) -> Result<(Times, Option<String>)> + Send + 'a;

/// One thing to time at one place.
pub struct Case<'a> {
    pub work: Work,
    pub place: &'a Place,
    call: Box<Call<'a>>,
}

impl<'a> Case<'a> {
    /// `call` computes and times; `check` holds its first result against an oracle and says how close it came.
    pub fn new<R>(
        work: Work,
        place: &'a Place,
        mut call: impl FnMut() -> Result<(R, Times)> + Send + 'a,
        check: impl Fn(&R) -> Result<String> + Send + 'a,
    ) -> Self {
        let call = move |first: bool| {
            let (result, times) = call()?;
            Ok((times, if first { Some(check(&result)?) } else { None }))
        };
        Self { work, place, call: Box::new(call) }
    }
}

/// A line of the table.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub family: &'static str,
    pub kernel: String,
    pub shape: String,
    pub dtype: &'static str,
    pub device: String,
    pub threads: Option<usize>,
    /// Median wall-clock of the call; on a GPU with upload and readback.
    pub seconds: Option<f64>,
    /// Half of the distance between the quartiles, over the median.
    pub spread: Option<f64>,
    pub repetitions: usize,
    pub upload_seconds: Option<f64>,
    /// By the device's own clock.
    pub kernel_seconds: Option<f64>,
    pub readback_seconds: Option<f64>,
    /// Of the kernel where its time is known, else of the call.
    pub gflops: Option<f64>,
    pub gbytes_per_s: Option<f64>,
    /// Time at the limit over the time taken.
    pub share_of_limit: Option<f64>,
    /// Which limit of the place bounds this work.
    pub limit: &'static str,
    /// Floating-point operations a byte.
    pub intensity: f64,
    pub checked: bool,
    /// What the result was held against, or what is wrong with it.
    pub check: String,
}

/// A target that a family set itself, and what came out.
#[derive(Clone, Debug, Serialize)]
pub struct Goal {
    pub what: String,
    pub measured: f64,
    pub at_least: Option<f64>,
    pub at_most: Option<f64>,
}

impl Goal {
    pub fn met(&self) -> bool {
        self.at_least.is_none_or(|goal| self.measured >= goal) && self.at_most.is_none_or(|goal| self.measured <= goal)
    }
}

/// A run: how long it may take, and what came of it.
pub struct Bench {
    pub effort: Effort,
    pub rows: Vec<Row>,
    pub goals: Vec<Goal>,
}

impl Bench {
    /// Checks every case, then times those that passed, in turns, so that a disturbance hits them alike. Gives their median seconds.
    pub fn time(&mut self, family: &'static str, cases: Vec<Case<'_>>) -> Vec<Option<f64>> {
        let budget = match self.effort {
            Effort::Smoke => Duration::ZERO,
            Effort::Quick => Duration::from_millis(60),
            Effort::Full => Duration::from_millis(250),
        };
        let mut running: Vec<Running<'_>> = cases.into_iter().map(|case| Running::start(case, budget)).collect();
        let most = running.iter().map(|running| running.repetitions).max().unwrap_or(0);
        for repetition in 0..most {
            for running in running.iter_mut().filter(|running| running.repetitions > repetition) {
                running.repeat();
            }
        }
        let first = self.rows.len();
        self.rows.extend(running.into_iter().map(|running| running.row(family)));
        for row in &self.rows[first..] {
            report::line(row);
        }
        self.rows[first..].iter().map(|row| row.seconds).collect()
    }

    /// Notes a target and prints how it was met.
    pub fn goal(&mut self, goal: Goal) {
        report::goal(&goal);
        self.goals.push(goal);
    }
}

/// A case while it is timed.
struct Running<'a> {
    case: Case<'a>,
    times: Vec<Times>,
    repetitions: usize,
    check: Result<String>,
}

impl<'a> Running<'a> {
    /// The checked first call, which also warms up, and how many more fit in the budget.
    fn start(mut case: Case<'a>, budget: Duration) -> Self {
        let first = case.place.run(|| (case.call)(true));
        let (check, repetitions, times) = match first {
            Err(error) => (Err(error), 0, Vec::new()),
            Ok((times, check)) if budget.is_zero() => (Ok(check.unwrap_or_default()), 0, vec![times]),
            Ok((times, check)) => {
                let fit = (budget.as_secs_f64() / times.whole.max(1e-9)) as usize;
                (Ok(check.unwrap_or_default()), fit.clamp(3, 31), Vec::new())
            }
        };
        Self { case, times, repetitions, check }
    }

    fn repeat(&mut self) {
        match self.case.place.run(|| (self.case.call)(false)) {
            Ok((times, _)) => self.times.push(times),
            Err(error) => (self.check, self.repetitions) = (Err(error), 0),
        }
    }

    fn row(self, family: &'static str) -> Row {
        let Work { kernel, shape, dtype, flops, bytes, traffic } = self.case.work;
        let place = self.case.place;
        let of = |part: &dyn Fn(&Times) -> Option<f64>| {
            let mut seconds: Vec<f64> = self.times.iter().filter_map(part).collect();
            if self.check.is_err() || seconds.is_empty() { None } else { Some(median(&mut seconds)) }
        };
        let stage = |part: fn(&Stages) -> f64| of(&|times| times.stages.as_ref().map(part));
        let seconds = of(&|times| Some(times.whole));
        let kernel_seconds = stage(|stages| stages.kernel);
        let busy = kernel_seconds.or(seconds);
        let (floor, limit) = match traffic {
            Some(traffic) => place.limits.floor(flops, bytes, traffic, dtype),
            None => (f64::NAN, ""),
        };
        Row {
            family,
            kernel,
            shape,
            dtype,
            device: place.name.clone(),
            threads: place.threads,
            spread: seconds.map(|median| spread(&self.times) / median),
            repetitions: self.times.len(),
            upload_seconds: stage(|stages| stages.upload),
            readback_seconds: stage(|stages| stages.readback),
            gflops: busy.map(|busy| flops / busy * 1e-9),
            gbytes_per_s: busy.map(|busy| bytes / busy * 1e-9),
            share_of_limit: busy.map(|busy| floor / busy).filter(|share| share.is_finite()),
            limit,
            intensity: flops / bytes,
            checked: self.check.is_ok(),
            check: self.check.unwrap_or_else(|error| format!("{error:#}")),
            seconds,
            kernel_seconds,
        }
    }
}

/// The middle value; the upper one of two.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn spread(times: &[Times]) -> f64 {
    let mut whole: Vec<f64> = times.iter().map(|times| times.whole).collect();
    whole.sort_by(f64::total_cmp);
    (whole[whole.len() * 3 / 4] - whole[whole.len() / 4]) / 2.0
}
