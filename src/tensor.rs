//! [`Tensor`]: a host array or a device buffer, with its element type and its number of axes in the type.

use std::fmt::{Debug, Display};
use std::sync::Arc;

use half::f16;
use ndarray::{ArcArray, Array, ArrayView, Dimension, IntoDimension};

use crate::device::Device;
use crate::gpu::{Buffer, Check, Gpu, block_on};
use crate::{Error, Result};

mod sealed {
    pub trait Sealed {}
}

/// An element of a tensor: f32, f64, f16, u32 or i32.
pub trait Element:
    sealed::Sealed + bytemuck::Pod + Default + PartialOrd + Debug + Display + Send + Sync + 'static
{
    /// The name of the type in Rust and WGSL.
    const NAME: &'static str;
}

/// An element that the special functions compute in: f32 or f64.
#[allow(private_bounds)]
pub trait Real: Element + crate::kernels::bessel::cpu::CpuReal {
    /// The value as f64.
    fn to_f64(self) -> f64;
}

macro_rules! elements {
    ($($type:ident),*) => { $(
        impl sealed::Sealed for $type {}
        impl Element for $type {
            const NAME: &'static str = stringify!($type);
        }
    )* };
}
elements!(f32, f64, f16, u32, i32);
impl Real for f32 {
    fn to_f64(self) -> f64 {
        self.into()
    }
}
impl Real for f64 {
    fn to_f64(self) -> f64 {
        self
    }
}

/// An array of `T` with axes `D` on a [`Device`], in row-major order. Immutable, and cheap to clone.
///
/// Results of kernels stay where their inputs are; [`Tensor::to_array`] is the only wait.
#[derive(Clone)]
pub struct Tensor<T, D: Dimension> {
    device: Device,
    data: Data<T, D>,
}

#[derive(Clone)]
enum Data<T, D: Dimension> {
    Host(ArcArray<T, D>),
    Gpu { buffer: Arc<Buffer>, dim: D, checks: Vec<Arc<Check>> },
}

/// A tensor's memory as a kernel sees it.
pub(crate) enum Storage<'a, T, D: Dimension> {
    Host(ArrayView<'a, T, D>),
    Gpu(&'a Gpu, &'a Arc<Buffer>),
}

impl<T: Element, D: Dimension> Tensor<T, D> {
    /// A tensor on the CPU that takes `array` as it is if it is in row-major order.
    pub(crate) fn host(array: Array<T, D>) -> Self {
        let array = if array.is_standard_layout() { array } else { array.as_standard_layout().into_owned() };
        Self { device: Device::Cpu, data: Data::Host(array.into_shared()) }
    }

    /// The result of kernels on `gpu`; `checks` are those of its inputs and its own.
    pub(crate) fn on_gpu(gpu: &Gpu, buffer: Buffer, dim: D, checks: Vec<Arc<Check>>) -> Self {
        Self { device: Device::Gpu(gpu.clone()), data: Data::Gpu { buffer: Arc::new(buffer), dim, checks } }
    }

    /// Where the elements are.
    pub(crate) fn storage(&self) -> Storage<'_, T, D> {
        match (&self.data, &self.device) {
            (Data::Host(array), _) => Storage::Host(array.view()),
            (Data::Gpu { buffer, .. }, Device::Gpu(gpu)) => Storage::Gpu(gpu, buffer),
            (Data::Gpu { .. }, Device::Cpu) => unreachable!("a device buffer is made with its GPU"),
        }
    }

    /// The checks that a result made from this tensor inherits.
    pub(crate) fn checks(&self) -> &[Arc<Check>] {
        match &self.data {
            Data::Host(_) => &[],
            Data::Gpu { checks, .. } => checks,
        }
    }

    /// The device it lives on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Elements along each axis.
    pub fn shape(&self) -> &[usize] {
        match &self.data {
            Data::Host(array) => array.shape(),
            Data::Gpu { dim, .. } => dim.slice(),
        }
    }

    /// The shape as ndarray's dimension.
    pub fn raw_dim(&self) -> D {
        match &self.data {
            Data::Host(array) => array.raw_dim(),
            Data::Gpu { dim, .. } => dim.clone(),
        }
    }

    /// Elements in all.
    pub fn len(&self) -> usize {
        self.raw_dim().size()
    }

    /// Whether it has no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The same elements in row-major order under another shape.
    ///
    /// # Errors
    /// [`Error::Shape`] when the numbers of elements differ.
    pub fn into_shape<S: IntoDimension>(self, shape: S) -> Result<Tensor<T, S::Dim>> {
        let dim = shape.into_dimension();
        if dim.size_checked() != Some(self.len()) {
            return Err(Error::Shape {
                place: "into_shape",
                quantity: "tensor",
                expected: format!("as many elements as {:?}", dim.slice()),
                found: self.shape().to_vec(),
            });
        }
        let data = match self.data {
            Data::Host(array) => match array.into_shape_with_order(dim) {
                Ok(array) => Data::Host(array),
                Err(_) => unreachable!("a row-major array takes any shape of its size"),
            },
            Data::Gpu { buffer, checks, .. } => Data::Gpu { buffer, dim, checks },
        };
        Ok(Tensor { device: self.device, data })
    }

    /// A view of the elements, without a copy, where they are on the CPU.
    pub fn as_host(&self) -> Option<ArrayView<'_, T, D>> {
        match &self.data {
            Data::Host(array) => Some(array.view()),
            Data::Gpu { .. } => None,
        }
    }

    /// The elements as an array on the host. Waits for everything recorded before.
    ///
    /// # Errors
    /// What went wrong on the way to this tensor: [`Error::Domain`] when a kernel met an input out of its domain, and the device's own errors.
    pub fn to_array(&self) -> Result<Array<T, D>> {
        block_on(self.to_array_async())
    }

    /// [`Tensor::to_array`] where a thread must not block.
    ///
    /// # Errors
    /// As [`Tensor::to_array`].
    pub async fn to_array_async(&self) -> Result<Array<T, D>> {
        match self.storage() {
            Storage::Host(view) => Ok(view.to_owned()),
            Storage::Gpu(gpu, buffer) => {
                let mut elements = vec![T::zeroed(); self.len()];
                gpu.read(buffer.view(), self.checks(), bytemuck::cast_slice_mut(&mut elements)).await?;
                match Array::from_shape_vec(self.raw_dim(), elements) {
                    Ok(array) => Ok(array),
                    Err(_) => unreachable!("as many elements as the shape has"),
                }
            }
        }
    }

    /// The same elements on another device; the same tensor if it is there already.
    ///
    /// # Errors
    /// As [`Tensor::to_array`] and [`Device::tensor`].
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        if self.device == *device { Ok(self.clone()) } else { device.tensor_from(self.to_array()?) }
    }
}

impl<T: Element, D: Dimension> Debug for Tensor<T, D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tensor<{}>{:?} on {}", T::NAME, self.shape(), self.device)
    }
}
