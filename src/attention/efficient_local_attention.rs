//! ELA: a map gated by what its rows and columns hold.

use std::path::Path;

use ndarray::{Array1, ArrayView1, ArrayView3, Dimension, Ix1, Ix3, Ix4};

use super::weights::{self, Weights};
use crate::device::Device;
use crate::kernels::strips as kernel;
use crate::tensor::Tensor;
use crate::{Error, Result};

const PLACE: &str = "efficient_local_attention";

/// The published sizes of an [`efficient_local_attention`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ElaVariant {
    /// ELA-T: kernel 5, a group a channel, GroupNorm of 32.
    Tiny,
    /// ELA-B: kernel 7, a group a channel, GroupNorm of 16.
    Base,
    /// ELA-S: kernel 5, channels / 8 groups, GroupNorm of 16.
    Small,
    /// ELA-L: kernel 7, channels / 8 groups, GroupNorm of 16.
    Large,
}

impl ElaVariant {
    /// Length of the convolution, its groups, and those of the normalisation, for so many channels.
    pub fn sizes(self, channels: usize) -> (usize, usize, usize) {
        match self {
            Self::Tiny => (5, channels, 32),
            Self::Base => (7, channels, 16),
            Self::Small => (5, channels / 8, 16),
            Self::Large => (7, channels / 8, 16),
        }
    }
}

/// The weights of an [`efficient_local_attention`] on a device: one convolution and one GroupNorm for both directions.
#[derive(Debug, Clone)]
pub struct ElaWeights {
    /// [channels, channels / groups, kernel].
    convolution: Tensor<f32, Ix3>,
    /// Bias, gamma and beta of each channel.
    affine: Tensor<f32, Ix1>,
    norm_groups: usize,
    epsilon: f32,
}

impl ElaWeights {
    /// A convolution [channels, channels / groups, kernel] with an odd kernel and an optional bias (channels), and a GroupNorm of `norm_groups` groups
    /// with `gamma` and `beta` (channels); all finite. Its eps is 1e-5, PyTorch's.
    ///
    /// # Errors
    /// [`Error::Shape`] and [`Error::Domain`] name the one that does not fit; [`Error::Argument`] for groups that do not divide the channels; the device's.
    pub fn new(
        device: &Device,
        convolution: &ArrayView3<'_, f32>,
        bias: Option<&ArrayView1<'_, f32>>,
        gamma: &ArrayView1<'_, f32>,
        beta: &ArrayView1<'_, f32>,
        norm_groups: usize,
    ) -> Result<Self> {
        let (channels, inner, length) = convolution.raw_dim().into_pattern();
        let shape = |quantity, expected: String, found: &[usize]| {
            Err(Error::Shape { place: PLACE, quantity, expected, found: found.to_vec() })
        };
        if inner == 0 || !channels.is_multiple_of(inner) || length.is_multiple_of(2) {
            let expected = "[channels, channels / groups, an odd kernel]".into();
            return shape("conv.weight", expected, convolution.shape());
        }
        if norm_groups == 0 || !channels.is_multiple_of(norm_groups) {
            let expected = format!("a divisor of the {channels} channels");
            let found = norm_groups.to_string();
            return Err(Error::Argument { place: PLACE, quantity: "norm_groups", expected, found });
        }
        let zeros = Array1::zeros(channels);
        let zeros = zeros.view();
        let bias = bias.unwrap_or(&zeros);
        weights::finite(PLACE, "conv.weight", convolution.iter())?;
        for (quantity, vector) in [("conv.bias", bias), ("gn.weight", gamma), ("gn.bias", beta)] {
            if vector.len() != channels {
                return shape(quantity, format!("[{channels}], one for each channel"), vector.shape());
            }
            weights::finite(PLACE, quantity, vector.iter())?;
        }
        let affine: Array1<f32> = bias.iter().chain(gamma).chain(beta).copied().collect();
        let (convolution, affine) = (device.tensor(convolution)?, device.tensor_from(affine)?);
        Ok(Self { convolution, affine, norm_groups, epsilon: 1e-5 })
    }

    /// What is added to a group's variance; finite, above 0.
    ///
    /// # Errors
    /// [`Error::Argument`] for another.
    pub fn epsilon(mut self, epsilon: f32) -> Result<Self> {
        if !(epsilon.is_finite() && epsilon > 0.0) {
            let (expected, found) = ("finite, above 0".into(), epsilon.to_string());
            return Err(Error::Argument { place: PLACE, quantity: "epsilon", expected, found });
        }
        self.epsilon = epsilon;
        Ok(self)
    }

    /// The weights `conv.weight`, `gn.weight`, `gn.bias` and, if it is there, `conv.bias` below `prefix` in a `.safetensors` file, of the sizes of
    /// `variant`.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Format`] names the tensor that is missing or of the wrong shape; as [`ElaWeights::new`].
    pub fn load(path: impl AsRef<Path>, prefix: &str, variant: ElaVariant, device: &Device) -> Result<Self> {
        Self::from_bytes(&weights::read(path.as_ref())?, prefix, variant, device)
    }

    /// [`ElaWeights::load`] of a file's bytes.
    ///
    /// # Errors
    /// As [`ElaWeights::load`].
    pub fn from_bytes(bytes: &[u8], prefix: &str, variant: ElaVariant, device: &Device) -> Result<Self> {
        let file = Weights::new("weights of efficient_local_attention", bytes, prefix)?;
        let convolution = file.get::<Ix3>("conv.weight")?;
        let bias = file.has("conv.bias").then(|| file.get::<Ix1>("conv.bias")).transpose()?;
        let (gamma, beta) = (file.get::<Ix1>("gn.weight")?, file.get::<Ix1>("gn.bias")?);
        let channels = convolution.shape()[0];
        let (length, groups, norm_groups) = variant.sizes(channels);
        if groups == 0 || convolution.shape()[1] * groups != channels || convolution.shape()[2] != length {
            return Err(file.explain(Error::Shape {
                place: PLACE,
                quantity: "conv.weight",
                expected: format!("[{channels}, {channels} / {groups} groups, {length}]"),
                found: convolution.shape().to_vec(),
            }));
        }
        let bias = bias.as_ref().map(|bias| bias.view());
        Self::new(device, &convolution.view(), bias.as_ref(), &gamma.view(), &beta.view(), norm_groups)
            .map_err(|error| file.explain(error))
    }

    /// Channels of a map.
    pub fn channels(&self) -> usize {
        self.convolution.shape()[0]
    }
}

/// x[b, c, i, j] * a(rows)[b, c, i] * a(columns)[b, c, j], where a = sigmoid(GroupNorm(conv1d(strip))) of the means of each row, and of each column.
///
/// * `x` [batch, channels, height, width], finite; `weights`: the convolution along a strip is padded with zeros to its length
/// * an element is within 1e-5 of the largest magnitude of its plane, for strips of some thousand elements
///
/// # Errors
/// [`Error::Shape`], [`Error::DeviceMismatch`]; [`Error::Domain`] names the first map of the batch whose statistics are not finite because an element
/// is not, or because a sum overflows: on a GPU at the wait; [`Error::TooLarge`] where a plane or the strips of a map exceed a binding.
///
/// Source: Xu & Wan 2024, ELA (equations 4 to 8).
pub fn efficient_local_attention(x: &Tensor<f32, Ix4>, weights: &ElaWeights) -> Result<Tensor<f32, Ix4>> {
    x.device().same(PLACE, "weights", weights.convolution.device())?;
    let (batch, channels, height, width) = x.raw_dim().into_pattern();
    if channels != weights.channels() {
        let expected = format!("[batch, {}, height, width], as the weights", weights.channels());
        return Err(Error::Shape { place: PLACE, quantity: "x", expected, found: x.shape().to_vec() });
    }
    let shape = kernel::Shape {
        batch,
        channels,
        height,
        width,
        inner: weights.convolution.shape()[1],
        length: weights.convolution.shape()[2],
        norm_groups: weights.norm_groups,
        epsilon: weights.epsilon,
    };
    match x.device() {
        Device::Cpu => kernel::on_cpu(&shape, x, &weights.convolution, &weights.affine),
        Device::Gpu(_) => kernel::on_gpu(&shape, x, &weights.convolution, &weights.affine),
    }
}
