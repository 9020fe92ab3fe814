//! AutoInt's interacting layer: self-attention over the fields of a sample.

use std::path::Path;

use ndarray::{Array2, ArrayView2, Axis, Dimension, Ix2, Ix3, Ix4, concatenate};

use super::weights::{self, Weights};
use crate::device::Device;
use crate::kernels::interacting_layer as kernel;
use crate::kernels::matmul;
use crate::tensor::Tensor;
use crate::{Error, Result};

const PLACE: &str = "interacting_layer";
/// The largest head size.
const MAX_HEAD: usize = 256;

/// The weights of an [`interacting_layer`] on a device: W_query, W_key, W_value and W_res where there is one, side by side, [in, heads * head_dim] each.
#[derive(Debug, Clone)]
pub struct InteractingWeights {
    /// [in, columns]: query, key, the residual if there is one, value.
    projections: Tensor<f32, Ix2>,
    heads: usize,
    head_dim: usize,
    residual: bool,
}

impl InteractingWeights {
    /// Weights of shape [in, heads * head_dim] each, finite, head_dim from 1 to 256; without `residual` the layer adds none.
    ///
    /// # Errors
    /// [`Error::Shape`] and [`Error::Domain`] name the one that does not fit; [`Error::Argument`] for 0 heads; the device's own.
    pub fn new(
        device: &Device,
        query: &ArrayView2<'_, f32>,
        key: &ArrayView2<'_, f32>,
        value: &ArrayView2<'_, f32>,
        residual: Option<&ArrayView2<'_, f32>>,
        heads: usize,
    ) -> Result<Self> {
        let shape = |quantity, expected, found: &ArrayView2<'_, f32>| {
            Err(Error::Shape { place: PLACE, quantity, expected, found: found.shape().to_vec() })
        };
        if heads == 0 {
            return Err(Error::Argument {
                place: PLACE,
                quantity: "heads",
                expected: "at least 1".into(),
                found: "0".into(),
            });
        }
        let (width, head_dim) = (query.ncols(), query.ncols() / heads);
        if !width.is_multiple_of(heads) || !(1..=MAX_HEAD).contains(&head_dim) {
            return shape(
                "W_query",
                format!("[in, {heads} heads * head_dim] with head_dim from 1 to {MAX_HEAD}"),
                query,
            );
        }
        let mut all = vec![("W_query", query), ("W_key", key)];
        all.extend(residual.map(|residual| ("W_res", residual)));
        all.push(("W_value", value));
        for (quantity, matrix) in &all {
            if matrix.shape() != query.shape() {
                return shape(quantity, format!("{:?}, as W_query", query.shape()), matrix);
            }
            weights::finite(PLACE, quantity, matrix.iter())?;
        }
        let matrices: Vec<_> = all.iter().map(|(_, matrix)| matrix.view()).collect();
        let Ok(projections) = concatenate(Axis(1), &matrices) else { unreachable!("all have as many rows") };
        let projections = device.tensor_from(projections)?;
        Ok(Self { projections, heads, head_dim, residual: residual.is_some() })
    }

    /// The weights `W_query`, `W_key`, `W_value` and, if it is there, `W_res` (in any case of letters) below `prefix` in a `.safetensors` file of f32, f16
    /// or bf16 tensors.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Format`] names the tensor that is missing or of the wrong shape; as [`InteractingWeights::new`].
    pub fn load(path: impl AsRef<Path>, prefix: &str, heads: usize, device: &Device) -> Result<Self> {
        Self::from_bytes(&weights::read(path.as_ref())?, prefix, heads, device)
    }

    /// [`InteractingWeights::load`] of a file's bytes.
    ///
    /// # Errors
    /// As [`InteractingWeights::load`].
    pub fn from_bytes(bytes: &[u8], prefix: &str, heads: usize, device: &Device) -> Result<Self> {
        let file = Weights::new("weights of interacting_layer", bytes, prefix)?;
        let (query, key, value) = (file.get::<Ix2>("W_query")?, file.get::<Ix2>("W_key")?, file.get::<Ix2>("W_value")?);
        let residual: Option<Array2<f32>> = file.has("W_res").then(|| file.get("W_res")).transpose()?;
        let residual = residual.as_ref().map(|residual| residual.view());
        Self::new(device, &query.view(), &key.view(), &value.view(), residual.as_ref(), heads)
            .map_err(|error| file.explain(error))
    }

    /// Elements of a field that goes in.
    pub fn input(&self) -> usize {
        self.projections.shape()[0]
    }

    /// Heads.
    pub fn heads(&self) -> usize {
        self.heads
    }

    /// Elements of a head; a field that comes out has heads * head_dim.
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }
}

/// What an [`interacting_layer`] does and returns. The default is AutoInt's: no scale, no maps.
#[derive(Debug, Clone, Copy, Default)]
pub struct InteractingOptions {
    scale: Option<f32>,
    maps: bool,
}

impl InteractingOptions {
    /// As AutoInt has it.
    pub fn new() -> Self {
        Self::default()
    }

    /// What scores are multiplied by; finite. Default 1.
    pub fn scale(mut self, scale: f32) -> Self {
        self.scale = Some(scale);
        self
    }

    /// Also return the attention maps.
    pub fn maps(mut self) -> Self {
        self.maps = true;
        self
    }
}

/// What an [`interacting_layer`] gives.
#[derive(Debug, Clone)]
pub struct Interacted {
    /// [batch, fields, heads * head_dim].
    pub output: Tensor<f32, Ix3>,
    /// The weight that each field (third axis) gives to each other (fourth), [batch, heads, fields, fields], if they were asked for.
    pub maps: Option<Tensor<f32, Ix4>>,
}

/// relu(concat_h softmax(scale Q_h K_h^T) V_h + x W_res) over the fields of each sample, with Q = x W_query and so on.
///
/// * `x` [batch, fields, in], finite; `weights`; `options`: the scale (AutoInt has none) and whether the maps are returned
/// * an element is within 1e-5 of its row's largest magnitude before the residual and ReLU, for scores up to about 10; larger ones lose digits as exp does
///
/// # Errors
/// [`Error::Shape`], [`Error::Argument`], [`Error::DeviceMismatch`]; [`Error::Domain`] names the first row (of batch * fields) that is not finite because
/// its sample is not, or because a sum overflows: on a GPU at the wait; [`Error::TooLarge`] where one sample exceeds a binding.
///
/// Source: Song et al. 2019, AutoInt (equations 5 to 8).
pub fn interacting_layer(
    x: &Tensor<f32, Ix3>,
    weights: &InteractingWeights,
    options: &InteractingOptions,
) -> Result<Interacted> {
    let device = x.device();
    device.same(PLACE, "weights", weights.projections.device())?;
    let (batch, fields, input) = x.raw_dim().into_pattern();
    if input != weights.input() {
        let expected = format!("[batch, fields, {}], as the weights", weights.input());
        return Err(Error::Shape { place: PLACE, quantity: "x", expected, found: x.shape().to_vec() });
    }
    let scale = options.scale.unwrap_or(1.0);
    if !scale.is_finite() {
        let expected = "a finite number".into();
        return Err(Error::Argument { place: PLACE, quantity: "scale", expected, found: scale.to_string() });
    }
    let shape = kernel::Shape {
        batch,
        fields,
        input,
        heads: weights.heads,
        head_dim: weights.head_dim,
        residual: weights.residual,
        scale,
        maps: options.maps,
    };
    let (output, maps) = match device {
        Device::Cpu => kernel::on_cpu(&shape, x, &weights.projections)?,
        Device::Gpu(_) => {
            let rows = x.clone().into_shape([batch * fields, input])?;
            kernel::on_gpu(&shape, &matmul(&rows, &weights.projections, false, false)?)?
        }
    };
    Ok(Interacted { output, maps })
}
