//! Rows as an aligned table on stdout and as JSON.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde::Serialize;

use super::{Bench, Goal, Limits, Place, Row};

/// What a run was: for the JSON file and the head of the page.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    pub version: &'static str,
    /// Of git, where the bench runs in a checkout.
    pub commit: Option<String>,
    /// UTC.
    pub date: String,
    pub command: String,
    pub machine: String,
    pub places: Vec<(String, Limits)>,
}

impl Run {
    pub fn new(places: &[Place]) -> Self {
        let git = Command::new("git").args(["rev-parse", "--short", "HEAD"]).output();
        let commit = git.ok().filter(|output| output.status.success());
        let cpu = std::fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| {
            let line = text.lines().find(|line| line.starts_with("model name"))?;
            Some(line.split_once(':')?.1.trim().to_string())
        });
        let cpu = cpu.unwrap_or_else(|| std::env::consts::ARCH.into());
        Self {
            version: env!("CARGO_PKG_VERSION"),
            commit: commit.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_string()),
            date: today(),
            command: std::env::args()
                .skip(1)
                .filter(|word| word != "--bench")
                .fold("cargo bench --".into(), |all, word| all + " " + &word),
            machine: format!("{cpu}, {} threads, {}", rayon::current_num_threads(), std::env::consts::OS),
            places: places.iter().map(|place| (place.name.clone(), place.limits.clone())).collect(),
        }
    }
}

/// Days since 1970 as year-month-day (Hinnant, "chrono-compatible low-level date algorithms").
fn today() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let days = (seconds / 86_400) as i64 + 719_468;
    let era = days / 146_097;
    let of_era = days % 146_097;
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{:02}", of_year - (153 * shifted + 2) / 5 + 1)
}

/// The head of the run: each place and its limits.
pub fn limits(run: &Run) {
    println!("orthant {} on {}, {}", run.version, run.machine, run.date);
    println!("\n{:<44}{:>12}{:>12}{:>14}{:>14}", "limits", "read GB/s", "copy GB/s", "f32 GFLOP/s", "f64 GFLOP/s");
    for (name, limits) in &run.places {
        let f64 = limits.fma_f64.map_or("-".into(), |rate| format!("{:.1}", rate * 1e-9));
        let (read, copy, f32) = (limits.read * 1e-9, limits.copy * 1e-9, limits.fma_f32 * 1e-9);
        println!("{:<44}{read:>12.1}{copy:>12.1}{f32:>14.1}{f64:>14}", short(name, 43));
    }
}

/// The names of the columns that [`line`] fills.
pub fn header(family: &str) {
    println!(
        "\n{:<20}{:<28}{:<6}{:<19}{:>9}{:>6}{:>10}{:>9}{:>7}  {:<15}{:>10}{:>10}{:>10}  checked against",
        family,
        "shape",
        "dtype",
        "device",
        "time",
        "+-",
        "GFLOP/s",
        "GB/s",
        "share",
        "of limit",
        "upload",
        "kernel",
        "readback"
    );
}

/// One row, or what is wrong with its result: then no time.
pub fn line(row: &Row) {
    let mut text = format!(
        "{:<20}{:<28}{:<6}{:<19}",
        short(&row.kernel, 19),
        short(&row.shape, 27),
        row.dtype,
        short(&row.device, 18)
    );
    let Some(time) = row.seconds else {
        println!("{text}  WRONG: {}", row.check);
        return;
    };
    let number = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.2}"));
    let percent = |value: Option<f64>| value.map_or("-".into(), |value| format!("{:.0}%", value * 100.0));
    let stage = |value: Option<f64>| value.map_or(String::new(), seconds);
    let _ = write!(
        text,
        "{:>9}{:>6}{:>10}{:>9}",
        seconds(time),
        percent(row.spread),
        number(row.gflops),
        number(row.gbytes_per_s)
    );
    let _ = write!(text, "{:>7}  {:<15}", percent(row.share_of_limit), row.limit);
    let _ = write!(
        text,
        "{:>10}{:>10}{:>10}",
        stage(row.upload_seconds),
        stage(row.kernel_seconds),
        stage(row.readback_seconds)
    );
    println!("{text}  {}", row.check);
}

/// One target and how it was met.
pub fn goal(goal: &Goal) {
    println!("{}", sentence(goal));
}

/// A target as a sentence.
pub fn sentence(goal: &Goal) -> String {
    let bound = match (goal.at_least, goal.at_most) {
        (Some(least), _) => format!(">= {least}"),
        (_, Some(most)) => format!("<= {most}"),
        _ => "any".into(),
    };
    format!("goal {}: {}: {:.3} (goal {bound})", if goal.met() { "met" } else { "MISSED" }, goal.what, goal.measured)
}

/// Seconds in a unit that leaves three digits.
pub fn seconds(value: f64) -> String {
    match value {
        value if value < 1e-3 => format!("{:.1} us", value * 1e6),
        value if value < 1.0 => format!("{:.2} ms", value * 1e3),
        value => format!("{value:.2} s"),
    }
}

fn short(text: &str, width: usize) -> String {
    match text.char_indices().nth(width) {
        None => text.into(),
        Some(_) => text.chars().take(width - 1).chain(['…']).collect(),
    }
}

/// Everything of the run as JSON.
pub fn json(path: &Path, run: &Run, bench: &Bench) -> Result<()> {
    let text = serde_json::to_string_pretty(&serde_json::json!({
        "run": run,
        "goals": bench.goals,
        "rows": bench.rows,
    }))?;
    std::fs::write(path, text + "\n").with_context(|| path.display().to_string())
}
