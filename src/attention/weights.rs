//! Tensors of a layer, read from a `.safetensors` file.

use std::path::Path;

use half::{bf16, f16};
use ndarray::{Array, Dimension};
use safetensors::{Dtype, SafeTensors};

use crate::{Error, Result};

/// The tensors of one layer in a file.
pub(super) struct Weights<'a> {
    what: &'static str,
    prefix: &'a str,
    tensors: SafeTensors<'a>,
}

/// All of a file.
pub(super) fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|error| Error::Io { what: path.display().to_string(), reason: error.to_string() })
}

impl<'a> Weights<'a> {
    /// `what` the file is for; the names of the layer's tensors begin with `prefix` and a dot, unless it is empty or ends with a dot itself.
    pub(super) fn new(what: &'static str, bytes: &'a [u8], prefix: &'a str) -> Result<Self> {
        let tensors = SafeTensors::deserialize(bytes).map_err(|error| Error::Format {
            what,
            reason: format!("not a .safetensors file, or truncated ({error})"),
        })?;
        Ok(Self { what, prefix, tensors })
    }

    fn name(&self, name: &str) -> String {
        let dot = if self.prefix.is_empty() || self.prefix.ends_with('.') { "" } else { "." };
        format!("{}{dot}{name}", self.prefix)
    }

    /// Whether the tensor is there; upper and lower case count as one.
    pub(super) fn has(&self, name: &str) -> bool {
        self.find(&self.name(name)).is_some()
    }

    fn find(&self, name: &str) -> Option<&str> {
        self.tensors.names().into_iter().find(|there| there.eq_ignore_ascii_case(name))
    }

    /// The tensor as f32; f16 and bf16 are widened.
    pub(super) fn get<D: Dimension>(&self, name: &str) -> Result<Array<f32, D>> {
        let fault = |reason| Error::Format { what: self.what, reason };
        let name = self.name(name);
        let view = self.find(&name).and_then(|name| self.tensors.tensor(name).ok());
        let Some(view) = view else { return Err(fault(format!("there is no tensor {name}"))) };
        let bytes = view.data();
        let elements: Vec<f32> = match view.dtype() {
            Dtype::F32 => bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect(),
            Dtype::F16 => bytes.as_chunks().0.iter().map(|&bytes| f16::from_le_bytes(bytes).to_f32()).collect(),
            Dtype::BF16 => bytes.as_chunks().0.iter().map(|&bytes| bf16::from_le_bytes(bytes).to_f32()).collect(),
            other => return Err(fault(format!("{name} holds {other}, expected F32, F16 or BF16"))),
        };
        let shape = view.shape();
        let array = Array::from_shape_vec(shape, elements).ok().and_then(|array| array.into_dimensionality::<D>().ok());
        array.ok_or_else(|| {
            let axes = D::NDIM.unwrap_or(0);
            fault(format!("{name} has shape {shape:?}, expected {axes} axes"))
        })
    }

    /// `error` of a constructor that was given the tensor `name`, under the tensor's own name.
    pub(super) fn explain(&self, error: Error) -> Error {
        match error {
            Error::Shape { quantity, expected, found, .. } => Error::Format {
                what: self.what,
                reason: format!("{} has shape {found:?}, expected {expected}", self.name(quantity)),
            },
            Error::Domain { quantity, index, expected, found, .. } => Error::Format {
                what: self.what,
                reason: format!("{} at index {index} is {found}, expected {expected}", self.name(quantity)),
            },
            other => other,
        }
    }
}

/// An error unless every element is finite.
pub(super) fn finite<'a>(
    place: &'static str,
    quantity: &'static str,
    mut values: impl Iterator<Item = &'a f32>,
) -> Result<()> {
    let bad = values.by_ref().enumerate().find(|(_, value)| !value.is_finite());
    match bad {
        None => Ok(()),
        Some((index, value)) => {
            Err(Error::Domain { place, quantity, index, expected: "finite", found: value.to_string() })
        }
    }
}
