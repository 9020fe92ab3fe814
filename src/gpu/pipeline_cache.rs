//! Compiled pipelines kept on disk between runs, where the driver can (`PIPELINE_CACHE`, Vulkan).
//!
//! The file is `$XDG_CACHE_HOME/orthant` (or `~/.cache/orthant`, `%LOCALAPPDATA%\orthant`), one an adapter; `ORTHANT_PIPELINE_CACHE` names another
//! folder, or `off`. It is only a cache: what cannot be read or written is done without.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

const MAGIC: &[u8; 8] = b"orthant1";

#[derive(Default)]
pub(crate) struct DiskCache {
    pub(crate) cache: Option<wgpu::PipelineCache>,
    pub(crate) dirty: AtomicBool,
    path: Option<PathBuf>,
}

impl DiskCache {
    pub(crate) fn open(adapter: &wgpu::Adapter, device: &wgpu::Device) -> Self {
        if !device.features().contains(wgpu::Features::PIPELINE_CACHE) {
            return Self::default();
        }
        let Some(key) = wgpu::util::pipeline_cache_key(&adapter.get_info()) else { return Self::default() };
        let path = folder().map(|folder| folder.join(key));
        let saved = path.as_ref().and_then(|path| std::fs::read(path).ok());
        let data = saved.as_deref().and_then(unseal);
        let cache = create(device, data);
        Self { cache: Some(cache), dirty: AtomicBool::new(false), path }
    }

    /// Writes the cache when it has grown: beside, then renamed, so a reader never sees half a file.
    pub(crate) fn save(&self) {
        let (Some(cache), Some(path)) = (&self.cache, &self.path) else { return };
        if !self.dirty.swap(false, Ordering::Relaxed) {
            return;
        }
        let Some(data) = cache.get_data() else { return };
        let Some(folder) = path.parent() else { return };
        let beside = path.with_extension(format!("{}.tmp", std::process::id()));
        let written = std::fs::create_dir_all(folder)
            .and_then(|()| std::fs::write(&beside, seal(&data)))
            .and_then(|()| std::fs::rename(&beside, path));
        if written.is_err() {
            let _ = std::fs::remove_file(&beside);
        }
    }
}

impl Drop for DiskCache {
    fn drop(&mut self) {
        self.save();
    }
}

fn folder() -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os("ORTHANT_PIPELINE_CACHE") {
        return (folder != "off" && !folder.is_empty()).then(|| folder.into());
    }
    let base = std::env::var_os("XDG_CACHE_HOME")
        .or_else(|| std::env::var_os("LOCALAPPDATA"))
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))?;
    Some(base.join("orthant"))
}

/// FNV-1a, 64 bits.
fn checksum(data: &[u8]) -> u64 {
    data.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Magic, checksum, data.
fn seal(data: &[u8]) -> Vec<u8> {
    [MAGIC, &checksum(data).to_le_bytes(), data].concat()
}

/// The data of an intact file.
fn unseal(file: &[u8]) -> Option<&[u8]> {
    let body = file.strip_prefix(MAGIC)?;
    let (sum, data) = body.split_at_checked(8)?;
    (checksum(data).to_le_bytes() == sum).then_some(data)
}

/// The one unsafe call of the engine.
#[allow(unsafe_code)]
fn create(device: &wgpu::Device, data: Option<&[u8]>) -> wgpu::PipelineCache {
    let descriptor = wgpu::PipelineCacheDescriptor { label: Some("orthant"), data, fallback: true };
    // SAFETY: data must come from `PipelineCache::get_data`. It was written by `save` from just that, under a name made of this adapter's key,
    // and a file that was cut off or changed by accident fails its checksum; wgpu and the driver check vendor, device and version in its header.
    unsafe { device.create_pipeline_cache(&descriptor) }
}

#[cfg(test)]
mod tests {
    use super::{seal, unseal};

    #[test]
    fn only_an_intact_file_is_used() {
        let file = seal(b"pipelines");
        assert_eq!(unseal(&file), Some(&b"pipelines"[..]));
        for cut in 0..file.len() {
            assert_eq!(unseal(&file[..cut]), None, "cut at {cut}");
            let mut changed = file.clone();
            changed[cut] ^= 1;
            assert_eq!(unseal(&changed), None, "changed at {cut}");
        }
    }
}
