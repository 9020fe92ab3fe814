//! How much memory there is.

/// Bytes that can be had without swapping, where the system says so.
pub fn available() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// Room for `bytes`, or `None` where memory has not that much free.
pub fn reserve(bytes: u64) -> Option<Vec<u8>> {
    let mut room = Vec::new();
    let free = available().is_none_or(|free| bytes <= free);
    (free && room.try_reserve_exact(usize::try_from(bytes).ok()?).is_ok()).then_some(room)
}
