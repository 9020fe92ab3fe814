//! Results of f64 class on a GPU: whether its double-single arithmetic can be trusted, and whether its f64 is faster. Found out once, on opening.

mod self_test;

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{LazyLock, Mutex};
use std::time::Instant;

use self::self_test::{OUTPUTS, inputs, verdict};
use super::{AdapterInfo, Constant, Gpu, Kernel, Needs, Params, View, lock, params, shader};
use crate::double_single::DoubleSingle;
use crate::{Error, Result};

/// What computes with [`DoubleSingle`] values on a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Arithmetic {
    /// Pairs of f32. Needs no feature, but a compiler that leaves error terms alone: the self-test says whether it does.
    DoubleSingle,
    /// The adapter's own f64 (`SHADER_F64`), rounded to pairs where it is stored.
    F64,
}

impl fmt::Display for Arithmetic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DoubleSingle => "double-single",
            Self::F64 => "f64",
        })
    }
}

/// What opening found out about an adapter's extended precision.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Extended {
    /// What [`DoubleSingle`] tensors are computed in; `None` where neither will do.
    pub arithmetic: Option<Arithmetic>,
    /// Guards that the self-test of double-single arithmetic passes with: 1, of sums and products, or 2, of every step. `None` where it fails.
    pub guard: Option<u32>,
    /// Why it fails, or why there was no measurement; else empty.
    pub failure: String,
    /// Seconds of a chain of products and sums in double-single over those of the same in f64; `None` where there is only one of them.
    pub cost_of_double_single: Option<f64>,
}

impl fmt::Display for Extended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.arithmetic {
            Some(arithmetic) => write!(f, "in {arithmetic}")?,
            None => f.write_str("none")?,
        }
        match self.guard {
            Some(1) => f.write_str("; double-single passes its self-test")?,
            Some(_) => f.write_str("; double-single passes its self-test with every step guarded")?,
            None => write!(f, "; double-single fails its self-test: {}", self.failure)?,
        }
        match self.cost_of_double_single {
            Some(ratio) => write!(f, " and takes {ratio:.2} times as long as f64"),
            None if self.guard.is_some() && !self.failure.is_empty() => write!(f, "; {}", self.failure),
            None => Ok(()),
        }
    }
}

params! {
    /// As in `shaders/double_single/check.wgsl`.
    CheckParams { zero: u32, count: u32 }
}

params! {
    /// As in `shaders/double_single/rate.wgsl`.
    RateParams { zero: u32, count: u32, steps: u32, slots: u32 }
}

static CHECK: Kernel = Kernel {
    name: "double_single_check",
    sources: &[shader!("double_single/check.wgsl"), shader!("shared/double_single.wgsl")],
    needs: Needs::NONE,
    fields: CheckParams::FIELDS,
    params_bytes: size_of::<CheckParams>(),
};

static RATE: Kernel = Kernel {
    name: "double_single_rate",
    sources: &[
        shader!("double_single/rate.wgsl"),
        shader!("double_single/rate_pairs.wgsl"),
        shader!("shared/double_single.wgsl"),
    ],
    needs: Needs::NONE,
    fields: RateParams::FIELDS,
    params_bytes: size_of::<RateParams>(),
};

static RATE_F64: Kernel = Kernel {
    name: "double_single_rate_f64",
    sources: &[shader!("double_single/rate.wgsl"), shader!("double_single/rate_f64.wgsl")],
    needs: Needs { f64: true, ..Needs::NONE },
    fields: RateParams::FIELDS,
    params_bytes: size_of::<RateParams>(),
};

const WORKGROUP: u32 = 64;

/// Guards that a shader can be compiled with, none included.
const GUARDS: [u32; 3] = [0, 1, 2];

fn constants(guard: u32) -> Vec<(&'static str, Constant)> {
    vec![("WORKGROUP", Constant::U32(WORKGROUP)), ("GUARD", Constant::U32(guard))]
}

pub(crate) fn variants() -> Vec<(&'static Kernel, Vec<(&'static str, Constant)>)> {
    let mut all: Vec<_> = GUARDS.iter().map(|&guard| (&CHECK, constants(guard))).collect();
    all.extend([1, 2].map(|guard| (&RATE, constants(guard))));
    all.push((&RATE_F64, vec![("WORKGROUP", Constant::U32(WORKGROUP))]));
    all
}

/// Found on opening, once a process for each adapter and driver.
static KNOWN: LazyLock<Mutex<HashMap<String, Extended>>> = LazyLock::new(Mutex::default);

fn key(info: &AdapterInfo) -> String {
    format!("{}\n{}\n{}", info.name, info.backend, info.driver)
}

/// The arithmetic of a [`Gpu`]: 0 is none.
#[derive(Default)]
pub(crate) struct Chosen(AtomicU8);

impl Chosen {
    fn set(&self, arithmetic: Option<Arithmetic>) {
        self.0.store(arithmetic.map_or(0, |one| 1 + one as u8), Ordering::Relaxed);
    }

    fn get(&self) -> Option<Arithmetic> {
        match self.0.load(Ordering::Relaxed) {
            0 => None,
            1 => Some(Arithmetic::DoubleSingle),
            _ => Some(Arithmetic::F64),
        }
    }
}

impl Gpu {
    /// What this adapter's extended precision is made of, and why: the outcome of the self-test and of the measurement at opening.
    pub fn extended(&self) -> Extended {
        let known = lock(&KNOWN).get(&key(self.info())).cloned();
        let found = known.unwrap_or_else(|| unreachable!("an open adapter has been tested"));
        Extended { arithmetic: self.inner.arithmetic.get(), ..found }
    }

    /// Computes with [`DoubleSingle`] tensors in `arithmetic` from now on, whatever the measurement at opening said: for comparisons of the two.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where the adapter has no f64, or its double-single arithmetic fails the self-test.
    pub fn use_arithmetic(&self, arithmetic: Arithmetic) -> Result<()> {
        let place = "use_arithmetic";
        match arithmetic {
            Arithmetic::F64 => {
                self.require(place, RATE_F64.needs)?;
            }
            Arithmetic::DoubleSingle if self.extended().guard.is_none() => return Err(self.no_digits(place)),
            Arithmetic::DoubleSingle => {}
        }
        self.inner.arithmetic.set(Some(arithmetic));
        Ok(())
    }

    /// What to compute pairs in, and the guard that double-single needs here.
    pub(crate) fn arithmetic(&self, place: &'static str) -> Result<(Arithmetic, u32)> {
        match self.inner.arithmetic.get() {
            Some(arithmetic) => Ok((arithmetic, self.extended().guard.unwrap_or(1))),
            None => Err(self.no_digits(place)),
        }
    }

    fn no_digits(&self, place: &'static str) -> Error {
        let feature = "extended precision (double-single arithmetic failed its self-test here)";
        Error::Unsupported { place, feature, device: self.to_string() }
    }

    /// Tests this adapter, or remembers what the last test found.
    pub(super) async fn probe_extended(&self) {
        // A fault of the device says nothing of the adapter: the next to open it tests it anew.
        let known = lock(&KNOWN).get(&key(self.info())).filter(|known| known.failure.is_empty()).cloned();
        let found = match known {
            Some(found) => found,
            None => {
                let found = self.find_extended().await;
                lock(&KNOWN).insert(key(self.info()), found.clone());
                found
            }
        };
        self.inner.arithmetic.set(found.arithmetic);
    }

    async fn find_extended(&self) -> Extended {
        let mut failure = String::new();
        let mut guard = None;
        for tried in [1, 2] {
            match self.double_single_self_test_async(tried).await {
                Ok(()) => {
                    guard = Some(tried);
                    failure.clear();
                    break;
                }
                Err(reason) => failure = reason,
            }
        }
        let mut cost = None;
        if let (Some(guard), true) = (guard, self.has_f64()) {
            match self.measure(guard).await {
                Ok(ratio) => cost = Some(ratio),
                Err(error) => failure = format!("not measured against f64: {error}"),
            }
        }
        let arithmetic = match (guard, self.has_f64(), cost) {
            (Some(_), true, Some(cost)) if cost > 1.0 => Some(Arithmetic::F64),
            (Some(_), ..) => Some(Arithmetic::DoubleSingle),
            (None, true, _) => Some(Arithmetic::F64),
            (None, false, _) => None,
        };
        Extended { arithmetic, guard, failure, cost_of_double_single: cost }
    }

    /// The self-test of double-single arithmetic under `guard` (see `shaders/shared/double_single.wgsl`); what comes out wrong. For tests.
    #[doc(hidden)]
    pub fn double_single_self_test(&self, guard: u32) -> std::result::Result<(), String> {
        super::block_on(self.double_single_self_test_async(guard))
    }

    async fn double_single_self_test_async(&self, guard: u32) -> std::result::Result<(), String> {
        let inputs = inputs();
        let run = async {
            let pairs = self.upload(CHECK.name, bytemuck::cast_slice(&inputs))?;
            let out = self.allocate(CHECK.name, (inputs.len() * OUTPUTS * size_of::<DoubleSingle>()) as u64)?;
            self.clear(&out);
            let params = CheckParams { zero: 0, count: inputs.len() as u32 };
            let groups = (inputs.len() as u32).div_ceil(WORKGROUP);
            self.run(&CHECK, &constants(guard), &params, &[pairs.view(), out.view()], [groups, 1, 1])?;
            let mut results = vec![DoubleSingle::default(); inputs.len() * OUTPUTS];
            self.read(out.view(), &[], bytemuck::cast_slice_mut(&mut results)).await?;
            Ok::<_, Error>(results)
        };
        let results = run.await.map_err(|error| error.to_string())?;
        verdict(&inputs, &results)
    }

    /// Seconds of chains in double-single over those in f64, in as many invocations as fill a large GPU.
    async fn measure(&self, guard: u32) -> Result<f64> {
        const COUNT: u32 = 1 << 18;
        const SLOTS: u32 = 4096;
        let out = self.allocate(RATE.name, u64::from(SLOTS) * 8)?;
        let mut steps = 8;
        loop {
            let mut seconds = [f64::INFINITY; 2];
            // The first of each run compiles; the fastest of the others counts.
            for pass in 0..3 {
                for (form, best) in seconds.iter_mut().enumerate() {
                    let params = RateParams { zero: 0, count: COUNT, steps, slots: SLOTS };
                    let groups = [COUNT / WORKGROUP, 1, 1];
                    let views: [View<'_>; 1] = [out.view()];
                    let start = Instant::now();
                    match form {
                        0 => self.run(&RATE, &constants(guard), &params, &views, groups)?,
                        _ => self.run(&RATE_F64, &constants(guard)[..1], &params, &views, groups)?,
                    }
                    let mut last = [0u8; 8];
                    self.read(View { buffer: &out, offset: 0, bytes: 8 }, &[], &mut last).await?;
                    if pass > 0 {
                        *best = best.min(start.elapsed().as_secs_f64());
                    }
                }
            }
            // Long enough that a submit and a wait count for little of the faster.
            if seconds[0].min(seconds[1]) > 1e-3 || steps >= 1 << 12 {
                return Ok(seconds[0] / seconds[1]);
            }
            steps *= 8;
        }
    }
}
