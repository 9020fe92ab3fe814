//! `orthant vmf`: fit, score, sample.

pub mod fit;
mod model;
mod prepared;
mod report;
pub mod sample;
pub mod score;

/// Bytes that can be had without swapping, where the system says so.
fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}
