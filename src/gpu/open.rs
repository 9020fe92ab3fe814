//! Finding adapters, describing them, choosing one, opening it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};

use serde::Serialize;

use super::experimental;
use super::fault::Faults;
use super::pipeline_cache::DiskCache;
use super::{Gpu, Inner};
use crate::{Error, Result};

/// What an adapter is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum AdapterKind {
    /// A card of its own.
    Discrete,
    /// Shares memory with the CPU.
    Integrated,
    /// A virtual machine's.
    Virtual,
    /// A driver that runs on the CPU (lavapipe, SwiftShader, WARP).
    Software,
    /// The driver does not say.
    Other,
}

/// An adapter as [`crate::Device::adapters`] lists it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct AdapterInfo {
    /// Its place in the list, for [`crate::Device::gpu_at`].
    pub index: usize,
    /// The driver's name for it.
    pub name: String,
    /// Vulkan, Metal, Dx12, Gl or BrowserWebGpu.
    pub backend: String,
    /// Hardware or software.
    #[serde(rename = "type")]
    pub kind: AdapterKind,
    /// Driver and its version.
    pub driver: String,
    /// Features that kernels use, of those it has.
    pub features: Vec<String>,
    /// Limits that kernels respect, by their WebGPU names.
    pub limits: BTreeMap<String, u64>,
    /// Whether [`crate::Device::auto`] takes it.
    pub chosen: bool,
    /// Why, or why not.
    pub reason: String,
}

impl fmt::Display for AdapterInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.backend)
    }
}

/// Features that kernels use where they are.
const FEATURES: [(&str, wgpu::Features); 6] = [
    ("f64", wgpu::Features::SHADER_F64),
    ("i64", wgpu::Features::SHADER_INT64),
    ("f16", wgpu::Features::SHADER_F16),
    ("subgroups", wgpu::Features::SUBGROUP),
    ("timestamps", wgpu::Features::TIMESTAMP_QUERY),
    ("pipeline-cache", wgpu::Features::PIPELINE_CACHE),
];

fn describe(index: usize, adapter: &wgpu::Adapter) -> AdapterInfo {
    let info = adapter.get_info();
    let limits = adapter.limits();
    let kind = match info.device_type {
        wgpu::DeviceType::DiscreteGpu => AdapterKind::Discrete,
        wgpu::DeviceType::IntegratedGpu => AdapterKind::Integrated,
        wgpu::DeviceType::VirtualGpu => AdapterKind::Virtual,
        wgpu::DeviceType::Cpu => AdapterKind::Software,
        wgpu::DeviceType::Other => AdapterKind::Other,
    };
    AdapterInfo {
        index,
        // Browsers leave it empty, so that pages cannot tell users apart by it.
        name: if info.name.is_empty() { "unnamed adapter".into() } else { info.name },
        backend: format!("{:?}", info.backend),
        kind,
        driver: [info.driver, info.driver_info].join(" ").trim().to_string(),
        features: FEATURES
            .iter()
            .filter(|(_, feature)| adapter.features().contains(*feature))
            .map(|(name, _)| (*name).to_string())
            .chain((experimental::rows(adapter) != 0).then(|| "cooperative-matrices".to_string()))
            .collect(),
        limits: [
            ("maxBufferSize", limits.max_buffer_size),
            ("maxStorageBufferBindingSize", limits.max_storage_buffer_binding_size),
            ("maxComputeWorkgroupStorageSize", limits.max_compute_workgroup_storage_size.into()),
            ("maxComputeInvocationsPerWorkgroup", limits.max_compute_invocations_per_workgroup.into()),
            ("maxComputeWorkgroupsPerDimension", limits.max_compute_workgroups_per_dimension.into()),
            ("minStorageBufferOffsetAlignment", limits.min_storage_buffer_offset_alignment.into()),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_string(), value))
        .collect(),
        chosen: false,
        reason: String::new(),
    }
}

/// Lower is better; `None` is never chosen by itself.
fn rank(kind: AdapterKind) -> Option<u32> {
    match kind {
        AdapterKind::Discrete => Some(0),
        AdapterKind::Integrated => Some(1),
        AdapterKind::Virtual => Some(2),
        AdapterKind::Other => Some(3),
        AdapterKind::Software => None,
    }
}

/// Every adapter with compute shaders, with the one that `auto` takes marked. The first of equals wins: the list begins with the native backends.
async fn enumerate() -> Vec<(AdapterInfo, wgpu::Adapter)> {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
    let mut found = native(&instance).await;
    found.retain(|adapter| {
        adapter.get_downlevel_capabilities().flags.contains(wgpu::DownlevelFlags::COMPUTE_SHADERS)
            && adapter.limits().max_storage_buffers_per_shader_stage >= 8
    });
    found.sort_by_key(|adapter| adapter.get_info().backend == wgpu::Backend::Gl);
    let mut list: Vec<_> =
        found.into_iter().enumerate().map(|(index, adapter)| (describe(index, &adapter), adapter)).collect();
    let best = list
        .iter()
        .filter_map(|(info, _)| Some((rank(info.kind)?, info.backend == "Gl", info.index)))
        .min()
        .map(|(.., index)| index);
    for (info, _) in &mut list {
        info.chosen = Some(info.index) == best;
        info.reason = match (info.chosen, info.kind) {
            (true, _) => "the best hardware adapter".into(),
            (_, AdapterKind::Software) => "a software driver is slower than the native CPU path".into(),
            _ => "another adapter ranks before it".into(),
        };
    }
    list
}

#[cfg(not(target_arch = "wasm32"))]
async fn native(instance: &wgpu::Instance) -> Vec<wgpu::Adapter> {
    instance.enumerate_adapters(wgpu::Backends::all()).await
}

/// A browser gives one adapter, to a request.
#[cfg(target_arch = "wasm32")]
async fn native(instance: &wgpu::Instance) -> Vec<wgpu::Adapter> {
    let options =
        wgpu::RequestAdapterOptions { power_preference: wgpu::PowerPreference::HighPerformance, ..Default::default() };
    instance.request_adapter(&options).await.into_iter().collect()
}

/// Every adapter, described.
pub(crate) async fn adapters() -> Vec<AdapterInfo> {
    enumerate().await.into_iter().map(|(info, _)| info).collect()
}

/// The best adapter; a software one only if asked for.
pub(crate) async fn open_best(software: bool) -> Result<Gpu> {
    let list = enumerate().await;
    let found = list.len();
    let best = list
        .into_iter()
        .filter(|(info, _)| software || rank(info.kind).is_some())
        .min_by_key(|(info, _)| (rank(info.kind).unwrap_or(u32::MAX), info.backend == "Gl", info.index));
    match best {
        Some((info, adapter)) => open(info, &adapter, Ceilings::default()).await,
        None if found == 0 => Err(Error::NoGpu { reason: "no adapter with compute shaders was found".into() }),
        None => Err(Error::NoGpu { reason: "only software adapters were found".into() }),
    }
}

/// What limits are lowered to, so that tests see what a smaller adapter does.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Ceilings {
    /// Bytes that one binding may hold.
    pub(crate) binding: Option<u64>,
    /// Bytes.
    pub(crate) workgroup_memory: Option<u32>,
    /// Workgroups along one axis.
    pub(crate) groups: Option<u32>,
    /// No features, the least workgroup memory and the coarsest offsets that WebGPU allows: every browser's device.
    pub(crate) browser: bool,
}

/// The adapter at `index` of [`adapters`]; `ceilings` lower its limits.
pub(crate) async fn open_index(index: usize, ceilings: Ceilings) -> Result<Gpu> {
    let mut list = enumerate().await;
    if index >= list.len() {
        let found = list.len();
        return Err(Error::NoGpu { reason: format!("there is no adapter {index}: {found} found") });
    }
    let (info, adapter) = list.swap_remove(index);
    open(info, &adapter, ceilings).await
}

async fn open(info: AdapterInfo, adapter: &wgpu::Adapter, ceilings: Ceilings) -> Result<Gpu> {
    let wanted = FEATURES.iter().map(|(_, feature)| *feature).fold(wgpu::Features::empty(), |all, one| all | one);
    let wanted = if ceilings.browser { wgpu::Features::empty() } else { wanted };
    let mut limits = adapter.limits();
    if ceilings.browser {
        let least = wgpu::Limits::default();
        limits.max_compute_workgroup_storage_size = least.max_compute_workgroup_storage_size;
        limits.min_storage_buffer_offset_alignment = least.min_storage_buffer_offset_alignment;
        limits.min_uniform_buffer_offset_alignment = least.min_uniform_buffer_offset_alignment;
    }
    let from_env = || std::env::var("ORTHANT_MAX_BINDING").ok().and_then(|text| text.parse::<u64>().ok());
    if let Some(bytes) = ceilings.workgroup_memory {
        limits.max_compute_workgroup_storage_size = limits.max_compute_workgroup_storage_size.min(bytes);
    }
    if let Some(groups) = ceilings.groups {
        limits.max_compute_workgroups_per_dimension = limits.max_compute_workgroups_per_dimension.min(groups);
    }
    if let Some(bytes) = ceilings.binding.or_else(from_env) {
        // Less than 64 KiB would only be slow: the engine's own status and params pages are that large.
        limits.max_storage_buffer_binding_size = limits.max_storage_buffer_binding_size.min(bytes.max(64 << 10));
    }
    let cooperative = if ceilings.browser { 0 } else { experimental::rows(adapter) };
    let (experiment, experimental_features) = experimental::request(cooperative);
    let (device, queue) = adapter
        .request_device(&wgpu::DeviceDescriptor {
            label: Some("orthant"),
            required_features: (adapter.features() & wanted) | experiment,
            experimental_features,
            required_limits: limits.clone(),
            ..Default::default()
        })
        .await
        .map_err(|error| Error::NoGpu { reason: format!("{info} cannot be opened: {error}") })?;
    let faults = Arc::new(Faults::default());
    let reports = faults.clone();
    device.on_uncaptured_error(Arc::new(move |error| reports.report(error)));
    let losses = faults.clone();
    device.set_device_lost_callback(move |reason, text| losses.lose(format!("{reason:?}: {text}")));
    let disk = DiskCache::open(adapter, &device);
    let gpu = Gpu {
        inner: Arc::new(Inner {
            info,
            features: device.features(),
            cooperative,
            device,
            queue,
            limits,
            faults,
            pool: Arc::new(Mutex::new(Default::default())),
            section: Default::default(),
            recorder: Default::default(),
            checks: Default::default(),
            pipelines: Default::default(),
            readers: Default::default(),
            disk,
            arithmetic: Default::default(),
        }),
    };
    gpu.probe_extended().await;
    Ok(gpu)
}
