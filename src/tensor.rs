//! [`Tensor`]: a host array or a device buffer, with its element type and its number of axes in the type.

use std::fmt::{Debug, Display};
use std::sync::Arc;

use half::f16;
use ndarray::{ArcArray, Array, ArrayView, Dimension, IntoDimension, Ix1, Ix2};

use crate::device::Device;
use crate::double_single::DoubleSingle;
use crate::gpu::{Buffer, Check, Gpu, View, block_on};
use crate::{Error, Result};

mod sealed {
    pub trait Sealed {}
}

/// An element of a tensor: f32, f64, f16, u32, i32, u16, or [`DoubleSingle`], a pair of f32.
pub trait Element:
    sealed::Sealed + bytemuck::Pod + Default + PartialOrd + Debug + Display + Send + Sync + 'static
{
    /// The name of the type in Rust and WGSL (which has no u16: kernels write two to a word).
    const NAME: &'static str;
}

/// An element that the special functions compute in: f32, f64 or [`DoubleSingle`].
#[allow(private_bounds)]
pub trait Real: Element + crate::kernels::bessel::cpu::CpuReal {
    /// The value as f64.
    fn to_f64(self) -> f64;
    /// `value` rounded to the type.
    fn from_f64(value: f64) -> Self;
}

macro_rules! elements {
    ($($type:ident),*) => { $(
        impl sealed::Sealed for $type {}
        impl Element for $type {
            const NAME: &'static str = stringify!($type);
        }
    )* };
}
elements!(f32, f64, f16, u32, i32, u16);
impl sealed::Sealed for DoubleSingle {}
impl Element for DoubleSingle {
    const NAME: &'static str = "vec2<f32>";
}
impl Real for DoubleSingle {
    fn to_f64(self) -> f64 {
        Self::to_f64(self)
    }
    fn from_f64(value: f64) -> Self {
        Self::new(value)
    }
}
impl Real for f32 {
    fn to_f64(self) -> f64 {
        self.into()
    }
    fn from_f64(value: f64) -> Self {
        value as f32
    }
}
impl Real for f64 {
    fn to_f64(self) -> f64 {
        self
    }
    fn from_f64(value: f64) -> Self {
        value
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

    /// The same tensor with `checks` in place of its own.
    pub(crate) fn checked(mut self, of: &[Arc<Check>]) -> Self {
        if let Data::Gpu { checks, .. } = &mut self.data {
            *checks = of.to_vec();
        }
        self
    }

    /// The same tensor without its checks. Only after a wait that has made them: that of this tensor, or of one made from it.
    pub(crate) fn verified(mut self) -> Self {
        if let Data::Gpu { checks, .. } = &mut self.data {
            checks.clear();
        }
        self
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
        // ndarray takes no shape whose axes above 0 multiply to more than isize::MAX, be there elements or not.
        let axes = dim.slice().iter().try_fold(1usize, |product, &axis| product.checked_mul(axis.max(1)));
        let fits = axes.is_some_and(|product| isize::try_from(product).is_ok());
        if dim.size_checked() != Some(self.len()) || !fits {
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
        block_on(self.to_device_async(device))
    }

    /// [`Tensor::to_device`] where a thread must not block.
    ///
    /// # Errors
    /// As [`Tensor::to_device`].
    pub async fn to_device_async(&self, device: &Device) -> Result<Self> {
        if self.device == *device { Ok(self.clone()) } else { device.tensor_from(self.to_array_async().await?) }
    }
}

impl<T: Element, D: Dimension> Tensor<T, D> {
    /// The elements along one axis, in row-major order.
    pub(crate) fn flatten(self) -> Tensor<T, Ix1> {
        let length = self.len();
        match self.into_shape(length) {
            Ok(flat) => flat,
            Err(_) => unreachable!("as many elements"),
        }
    }

    /// The same tensor under another name of its element type.
    pub(crate) fn of<U: Element>(self) -> Tensor<U, D> {
        assert_eq!(T::NAME, U::NAME, "only the name changes");
        let data = match self.data {
            Data::Host(array) => Data::Host(array.mapv(|value| bytemuck::cast(value)).into_shared()),
            Data::Gpu { buffer, dim, checks } => Data::Gpu { buffer, dim, checks },
        };
        Tensor { device: self.device, data }
    }

    /// The bits of 4-byte elements.
    pub(crate) fn bits(&self) -> Tensor<u32, D> {
        let data = match &self.data {
            Data::Host(array) => Data::Host(array.mapv(|value| bytemuck::cast(value)).into_shared()),
            Data::Gpu { buffer, dim, checks } => {
                Data::Gpu { buffer: buffer.clone(), dim: dim.clone(), checks: checks.clone() }
            }
        };
        Tensor { device: self.device.clone(), data }
    }
}

impl<T: Element> Tensor<T, Ix1> {
    /// The elements of several tensors of one device, one after the other. Elements of 4 bytes on a GPU.
    ///
    /// # Errors
    /// The device's own.
    pub(crate) fn concatenate(device: &Device, parts: &[Self]) -> Result<Self> {
        let Device::Gpu(gpu) = device else {
            let all = parts.iter().filter_map(Tensor::as_host).flat_map(|part| part.to_vec()).collect();
            return Ok(Self::host(all));
        };
        let length: usize = parts.iter().map(Tensor::len).sum();
        let out = gpu.allocate("concatenate", (length * size_of::<T>()) as u64)?;
        let mut checks: Vec<Arc<Check>> = Vec::new();
        let mut at = 0;
        for part in parts {
            if let Data::Gpu { buffer, checks: of_part, .. } = &part.data
                && !part.is_empty()
            {
                let bytes = (part.len() * size_of::<T>()) as u64;
                gpu.copy(View { buffer, offset: 0, bytes }, &out, at);
                at += bytes;
                checks.extend(of_part.iter().cloned());
            }
        }
        checks.sort_by_key(Arc::as_ptr);
        checks.dedup_by(|a, b| Arc::ptr_eq(a, b));
        Ok(Self::on_gpu(gpu, out, Ix1(length), checks))
    }
}

impl<D: Dimension> Tensor<DoubleSingle, D> {
    /// The elements on the host, their two words put together. Waits as [`Tensor::to_array`].
    ///
    /// # Errors
    /// As [`Tensor::to_array`].
    pub fn to_f64_array(&self) -> Result<Array<f64, D>> {
        block_on(self.to_f64_array_async())
    }

    /// [`Tensor::to_f64_array`] where a thread must not block.
    ///
    /// # Errors
    /// As [`Tensor::to_array`].
    pub async fn to_f64_array_async(&self) -> Result<Array<f64, D>> {
        Ok(self.to_array_async().await?.mapv(DoubleSingle::to_f64))
    }
}

impl Tensor<f32, Ix2> {
    /// The rows at `indices` of a matrix on a GPU.
    pub(crate) fn select_rows(&self, indices: &[usize]) -> Result<Self> {
        let Storage::Gpu(gpu, buffer) = self.storage() else { unreachable!("only called for a GPU") };
        let bytes = (self.shape()[1] * 4) as u64;
        let out = gpu.allocate("select_rows", indices.len() as u64 * bytes)?;
        for (&row, to) in indices.iter().zip((0..).step_by(bytes.max(1) as usize)) {
            gpu.copy(View { buffer, offset: row as u64 * bytes, bytes }, &out, to);
        }
        Ok(Self::on_gpu(gpu, out, Ix2(indices.len(), self.shape()[1]), self.checks().to_vec()))
    }

    /// The same matrix on a GPU with row `to` replaced by row `from` of `other`.
    pub(crate) fn with_row(&self, to: usize, other: &Self, from: usize) -> Result<Self> {
        match (self.storage(), other.storage()) {
            (Storage::Gpu(gpu, buffer), Storage::Gpu(_, source)) => {
                let bytes = (self.shape()[1] * 4) as u64;
                let out = gpu.allocate("with_row", buffer.bytes())?;
                gpu.copy(buffer.view(), &out, 0);
                gpu.copy(View { buffer: source, offset: from as u64 * bytes, bytes }, &out, to as u64 * bytes);
                Ok(Self::on_gpu(gpu, out, self.raw_dim(), self.checks().to_vec()))
            }
            _ => unreachable!("only called for a GPU"),
        }
    }
}

impl<T: Element, D: Dimension> Debug for Tensor<T, D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tensor<{}>{:?} on {}", T::NAME, self.shape(), self.device)
    }
}
