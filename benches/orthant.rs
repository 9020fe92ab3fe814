//! `cargo bench -- [FAMILY] [--device cpu|gpu|all] [--json FILE] [--html FILE] [--quick]`
//!
//! Every row is a result that was checked against an oracle and then timed, beside the limits of the machine measured in the same run. A family
//! is one file in `cases/` and one line here.

mod cases;
mod harness;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::{Parser, ValueEnum};
use harness::report::{self, Run};
use harness::{Bench, Effort, Place, html};

#[derive(Parser)]
#[command(bin_name = "cargo bench --", about = "Times every kernel against the limits of the machine", version)]
struct Options {
    /// Only this family
    family: Option<String>,
    /// Where to run
    #[arg(long, default_value = "all")]
    device: Where,
    /// Write the rows here as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a page with rooflines and the table here
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Under a minute: fewer sizes and repetitions
    #[arg(long)]
    quick: bool,
    /// Cargo passes this
    #[arg(long, hide = true)]
    bench: bool,
    /// Run one fit and print its peak memory: what this program starts as a child
    #[arg(long, hide = true, value_name = "CASE")]
    peak_memory: Option<String>,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Where {
    Cpu,
    Gpu,
    All,
}

fn main() -> ExitCode {
    // `cargo test --benches` does not pass --bench, and may pass what is meant for libtest.
    let timed = std::env::args().any(|word| word == "--bench" || word == "--peak-memory");
    let options = if timed { Options::parse() } else { Options::parse_from(["orthant"]) };
    match run(&options, timed) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(options: &Options, timed: bool) -> Result<bool> {
    if let Some(case) = &options.peak_memory {
        cases::peak_memory(case)?;
        return Ok(true);
    }
    let effort = match (timed, options.quick) {
        (false, _) => Effort::Smoke,
        (true, true) => Effort::Quick,
        (true, false) => Effort::Full,
    };
    let known: Vec<_> = cases::FAMILIES.iter().map(|(name, _)| *name).collect();
    let wanted = |name: &str| options.family.as_deref().is_none_or(|family| family == name);
    ensure!(known.iter().any(|name| wanted(name)), "there is no such family; known are {}", known.join(", "));

    let places = places(options.device, effort)?;
    ensure!(!places.is_empty(), "no such device was found");
    let run = Run::new(&places);
    report::limits(&run);
    let mut bench = Bench { effort, rows: Vec::new(), goals: Vec::new() };
    for (name, family) in cases::FAMILIES {
        if wanted(name) {
            report::header(name);
            family(&mut bench, &places)?;
        }
    }
    if let Some(path) = &options.json {
        report::json(path, &run, &bench)?;
    }
    if let Some(path) = &options.html {
        html::write(path, &run, &bench)?;
    }
    let wrong = bench.rows.iter().filter(|row| !row.checked).count();
    let missed = bench.goals.iter().filter(|goal| !goal.met()).count();
    println!(
        "\n{} rows, {wrong} of them wrong; {} goals, {missed} of them missed",
        bench.rows.len(),
        bench.goals.len()
    );
    Ok(wrong == 0)
}

fn places(device: Where, effort: Effort) -> Result<Vec<Place>> {
    let mut places = Vec::new();
    if device != Where::Gpu {
        places.push(Place::cpu(false, effort)?);
        if rayon::current_num_threads() > 1 {
            places.push(Place::cpu(true, effort)?);
        }
    }
    if device != Where::Cpu {
        for adapter in orthant::Device::adapters() {
            match Place::gpu(adapter.index, effort) {
                Ok(place) => places.push(place),
                Err(error) => eprintln!("{adapter} is left out: {error:#}"),
            }
        }
    }
    Ok(places)
}
