//! [`Device`]: the door. Where tensors live and kernels run, chosen once, on opening.

use std::fmt;

use ndarray::{Array, ArrayBase, Data, Dimension, ShapeBuilder};

use crate::gpu::{self, AdapterInfo, Gpu, block_on};
use crate::tensor::{Element, Tensor};
use crate::{Error, Result};

/// The CPU, or an open GPU. Cheap to clone.
///
/// On a GPU an error is an error: nothing falls back to the CPU midway.
#[derive(Clone, Debug, PartialEq)]
pub enum Device {
    /// This computer's processors, through rayon's global pool.
    Cpu,
    /// An open adapter.
    Gpu(Gpu),
}

impl Device {
    /// A hardware GPU where there is one, else the CPU; `ORTHANT_DEVICE=auto|cpu|gpu` decides instead where it is set.
    ///
    /// It never picks a software adapter (lavapipe, SwiftShader, WARP): the CPU path is faster. Where `ORTHANT_DEVICE` cannot be followed, a
    /// line on stderr says so and the CPU is taken; [`Device::from_env`] returns that as an error instead.
    pub fn auto() -> Self {
        block_on(Self::auto_async())
    }

    /// [`Device::auto`] where a thread must not block.
    pub async fn auto_async() -> Self {
        match Self::from_env_async().await {
            Ok(device) => device,
            Err(error) => {
                eprintln!("orthant: {error}; running on the CPU");
                Self::Cpu
            }
        }
    }

    /// As `ORTHANT_DEVICE` says: `cpu`, `gpu` (any adapter, also a software one), or `auto`, which is also the default.
    ///
    /// # Errors
    /// [`Error::Argument`] for another word; [`Error::NoGpu`] for `gpu` without an adapter.
    pub fn from_env() -> Result<Self> {
        block_on(Self::from_env_async())
    }

    /// [`Device::from_env`] where a thread must not block.
    ///
    /// # Errors
    /// As [`Device::from_env`].
    pub async fn from_env_async() -> Result<Self> {
        match std::env::var("ORTHANT_DEVICE").as_deref() {
            Err(_) | Ok("" | "auto") => match gpu::open_best(false).await {
                Ok(gpu) => Ok(Self::Gpu(gpu)),
                Err(Error::NoGpu { .. }) => Ok(Self::Cpu),
                Err(error) => Err(error),
            },
            Ok("cpu") => Ok(Self::Cpu),
            Ok("gpu") => Self::gpu_async().await,
            Ok(other) => Err(Error::Argument {
                place: "Device",
                quantity: "ORTHANT_DEVICE",
                expected: "auto, cpu or gpu".into(),
                found: format!("{other:?}"),
            }),
        }
    }

    /// The CPU.
    pub fn cpu() -> Self {
        Self::Cpu
    }

    /// The best adapter there is, also a software one.
    ///
    /// # Errors
    /// [`Error::NoGpu`] where there is none or it cannot be opened.
    pub fn gpu() -> Result<Self> {
        block_on(Self::gpu_async())
    }

    /// [`Device::gpu`] where a thread must not block.
    ///
    /// # Errors
    /// As [`Device::gpu`].
    pub async fn gpu_async() -> Result<Self> {
        gpu::open_best(true).await.map(Self::Gpu)
    }

    /// The adapter at `index` of [`Device::adapters`].
    ///
    /// # Errors
    /// [`Error::NoGpu`] where there is none or it cannot be opened.
    pub fn gpu_at(index: usize) -> Result<Self> {
        block_on(Self::gpu_at_async(index))
    }

    /// [`Device::gpu_at`] where a thread must not block.
    ///
    /// # Errors
    /// As [`Device::gpu_at`].
    pub async fn gpu_at_async(index: usize) -> Result<Self> {
        gpu::open_index(index, gpu::Ceilings::default()).await.map(Self::Gpu)
    }

    /// [`Device::gpu_at`] with bindings of at most `bytes` and grids of at most 1024 workgroups an axis, so that tests tile small data.
    #[doc(hidden)]
    pub fn gpu_tiled(index: usize, bytes: u64) -> Result<Self> {
        let ceilings = gpu::Ceilings { binding: Some(bytes), groups: Some(1024), ..Default::default() };
        block_on(gpu::open_index(index, ceilings)).map(Self::Gpu)
    }

    /// [`Device::gpu_at`] with the 16 KiB of workgroup memory that WebGPU promises.
    #[doc(hidden)]
    pub fn gpu_small(index: usize) -> Result<Self> {
        let ceilings = gpu::Ceilings { workgroup_memory: Some(16 << 10), ..Default::default() };
        block_on(gpu::open_index(index, ceilings)).map(Self::Gpu)
    }

    /// [`Device::gpu_at`] with what every browser's device has, and no more: no features, 16 KiB of workgroup memory, offsets in steps of 256 bytes.
    #[doc(hidden)]
    pub fn gpu_as_in_browsers(index: usize) -> Result<Self> {
        let ceilings = gpu::Ceilings { browser: true, ..Default::default() };
        block_on(gpu::open_index(index, ceilings)).map(Self::Gpu)
    }

    /// Every adapter with compute shaders; the one that [`Device::auto`] takes is marked.
    pub fn adapters() -> Vec<AdapterInfo> {
        block_on(Self::adapters_async())
    }

    /// [`Device::adapters`] where a thread must not block.
    pub async fn adapters_async() -> Vec<AdapterInfo> {
        gpu::adapters().await
    }

    /// Whether this is the CPU.
    pub fn is_cpu(&self) -> bool {
        matches!(self, Self::Cpu)
    }

    /// The GPU, if this is one.
    pub fn as_gpu(&self) -> Option<&Gpu> {
        match self {
            Self::Cpu => None,
            Self::Gpu(gpu) => Some(gpu),
        }
    }

    /// A tensor with the elements of `array`, copied once. Any layout; the tensor is row-major.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for f64 on a GPU without it; [`Error::TooLarge`] and [`Error::OutOfMemory`] where it does not fit.
    pub fn tensor<T, S, D>(&self, array: &ArrayBase<S, D>) -> Result<Tensor<T, D>>
    where
        T: Element,
        S: Data<Elem = T>,
        D: Dimension,
    {
        match self {
            Self::Cpu => Ok(Tensor::host(array.as_standard_layout().into_owned())),
            Self::Gpu(gpu) => {
                self.admit::<T>()?;
                let standard = array.as_standard_layout();
                let elements = standard.as_slice().unwrap_or(&[]);
                let buffer = gpu.upload("tensor", bytemuck::cast_slice(elements))?;
                Ok(Tensor::on_gpu(gpu, buffer, array.raw_dim(), Vec::new()))
            }
        }
    }

    /// A tensor made of `array` itself: no copy on the CPU if the array is row-major.
    ///
    /// # Errors
    /// As [`Device::tensor`].
    pub fn tensor_from<T: Element, D: Dimension>(&self, array: Array<T, D>) -> Result<Tensor<T, D>> {
        match self {
            Self::Cpu => Ok(Tensor::host(array)),
            Self::Gpu(_) => self.tensor(&array),
        }
    }

    /// A tensor of zeros.
    ///
    /// # Errors
    /// As [`Device::tensor`].
    pub fn zeros<T: Element, D: Dimension>(&self, shape: impl ShapeBuilder<Dim = D>) -> Result<Tensor<T, D>> {
        let dim = shape.into_shape_with_order().raw_dim().clone();
        let bytes = dim.size_checked().and_then(|size| size.checked_mul(size_of::<T>()));
        let Some(bytes) = bytes.filter(|bytes| isize::try_from(*bytes).is_ok()) else {
            return Err(Error::TooLarge {
                place: "zeros",
                quantity: "tensor",
                needed: u64::MAX,
                limit: isize::MAX as u64,
                device: self.to_string(),
            });
        };
        match self {
            Self::Cpu => {
                let elements = host_memory("zeros", bytes / size_of::<T>().max(1))?;
                match Array::from_shape_vec(dim, elements) {
                    Ok(array) => Ok(Tensor::host(array)),
                    Err(_) => unreachable!("as many elements as the shape has"),
                }
            }
            Self::Gpu(gpu) => {
                self.admit::<T>()?;
                let buffer = gpu.allocate("zeros", bytes as u64)?;
                gpu.clear(&buffer);
                Ok(Tensor::on_gpu(gpu, buffer, dim, Vec::new()))
            }
        }
    }

    fn admit<T: Element>(&self) -> Result<()> {
        match self {
            Self::Gpu(gpu) if T::NAME == "f64" && !gpu.has_f64() => {
                Err(Error::Unsupported { place: "tensor", feature: "f64 (SHADER_F64)", device: self.to_string() })
            }
            _ => Ok(()),
        }
    }

    /// An error if `found` is another device than this.
    pub(crate) fn same(&self, place: &'static str, quantity: &'static str, found: &Device) -> Result<()> {
        if self == found {
            return Ok(());
        }
        Err(Error::DeviceMismatch { place, quantity, expected: self.to_string(), found: found.to_string() })
    }
}

/// `count` zeros in the computer's own memory, or the error that there is none.
pub(crate) fn host_memory<T: Element>(place: &'static str, count: usize) -> Result<Vec<T>> {
    let mut elements = Vec::new();
    match elements.try_reserve_exact(count) {
        Ok(()) => {
            elements.resize(count, T::zeroed());
            Ok(elements)
        }
        Err(_) => {
            let bytes = (count as u64).saturating_mul(size_of::<T>() as u64);
            Err(Error::OutOfMemory { place, bytes, device: Device::Cpu.to_string() })
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => match rayon::current_num_threads() {
                1 => write!(f, "CPU, 1 thread"),
                threads => write!(f, "CPU, {threads} threads"),
            },
            Self::Gpu(gpu) => gpu.fmt(f),
        }
    }
}
