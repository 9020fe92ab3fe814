//! `.safetensors` files of projections and calibrations: never half-written, read with errors that name the tensor.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt::Display;
use std::path::Path;

use half::{bf16, f16};
use ndarray::{Array, Dimension, IxDyn};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use crate::{Error, Result};

fn io(path: &Path, error: &dyn Display) -> Error {
    Error::Io { what: path.display().to_string(), reason: error.to_string() }
}

/// Tensors and notes that become a file.
#[derive(Default)]
pub(crate) struct Writing {
    tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)>,
    notes: HashMap<String, String>,
}

impl Writing {
    pub(crate) fn note(&mut self, name: &str, text: impl ToString) {
        self.notes.insert(name.into(), text.to_string());
    }

    pub(crate) fn single<D: Dimension>(&mut self, name: impl Into<String>, array: &Array<f32, D>) {
        let bytes = array.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.tensors.push((name.into(), Dtype::F32, array.shape().to_vec(), bytes));
    }

    pub(crate) fn double(&mut self, name: impl Into<String>, shape: &[usize], elements: impl IntoIterator<Item = f64>) {
        let bytes = elements.into_iter().flat_map(f64::to_le_bytes).collect();
        self.tensors.push((name.into(), Dtype::F64, shape.to_vec(), bytes));
    }

    /// The whole file; `what` is what errors call it.
    pub(crate) fn to_bytes(&self, what: &'static str) -> Result<Vec<u8>> {
        let format = |error: safetensors::SafeTensorError| Error::Format { what, reason: error.to_string() };
        let views = self.tensors.iter().map(|(name, dtype, shape, bytes)| {
            Ok((name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).map_err(format)?))
        });
        let views = views.collect::<Result<Vec<_>>>()?;
        safetensors::serialize(views, Some(self.notes.clone())).map_err(format)
    }

    /// Beside `path`, then renamed: whoever looks sees the old file or the whole new one.
    pub(crate) fn save(&self, path: &Path) -> Result<()> {
        let views = self.tensors.iter().map(|(name, dtype, shape, bytes)| {
            let view = TensorView::new(*dtype, shape.clone(), bytes).map_err(|error| io(path, &error))?;
            Ok((name.as_str(), view))
        });
        let views = views.collect::<Result<Vec<_>>>()?;
        let mut name = path.file_name().unwrap_or_default().to_os_string();
        name.push(format!(".{}.partial", std::process::id()));
        let beside = path.with_file_name(name);
        let notes = Some(self.notes.clone());
        let written = safetensors::serialize_to_file(views, notes, &beside).map_err(|error| io(path, &error));
        let renamed = written.and_then(|()| std::fs::rename(&beside, path).map_err(|error| io(path, &error)));
        if renamed.is_err() {
            // Nothing to report beyond the first error.
            let _ = std::fs::remove_file(&beside);
        }
        renamed
    }
}

/// A file that is read.
pub(crate) struct Reading<'a> {
    what: &'static str,
    /// What errors call this one.
    name: String,
    bytes: Cow<'a, [u8]>,
    notes: HashMap<String, String>,
}

impl Reading<'static> {
    /// `what` is what errors call it.
    pub(crate) fn open(path: &Path, what: &'static str) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|error| io(path, &error))?;
        Self::new(path.display().to_string(), bytes.into(), what)
    }
}

impl<'a> Reading<'a> {
    /// The bytes of a file that somebody else has read.
    pub(crate) fn of_bytes(bytes: &'a [u8], what: &'static str) -> Result<Self> {
        Self::new(format!("{} bytes", bytes.len()), bytes.into(), what)
    }

    fn new(name: String, bytes: Cow<'a, [u8]>, what: &'static str) -> Result<Self> {
        let format = |error| Error::Format { what, reason: format!("{name}: {error}") };
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(format)?;
        let notes = header.metadata().clone().unwrap_or_default();
        SafeTensors::deserialize(&bytes).map_err(format)?;
        Ok(Self { what, name, bytes, notes })
    }

    /// An error that names the file.
    pub(crate) fn format<T>(&self, reason: impl Display) -> Result<T> {
        Err(Error::Format { what: self.what, reason: format!("{}: {reason}", self.name) })
    }

    fn tensors(&self) -> Result<SafeTensors<'_>> {
        SafeTensors::deserialize(&self.bytes).or_else(|error| self.format(error))
    }

    pub(crate) fn note(&self, name: &str) -> Result<&str> {
        match self.notes.get(name) {
            Some(text) => Ok(text),
            None => self.format(format!("its metadata has no {name}")),
        }
    }

    /// A note as what it stands for.
    pub(crate) fn parsed<T: std::str::FromStr>(&self, name: &str) -> Result<T> {
        let text = self.note(name)?;
        text.parse().or_else(|_| self.format(format!("its metadata has {name} {text}")))
    }

    /// The names of all tensors.
    pub(crate) fn names(&self) -> Result<Vec<String>> {
        Ok(self.tensors()?.names().into_iter().map(Into::into).collect())
    }

    pub(crate) fn has(&self, name: &str) -> Result<bool> {
        Ok(self.tensors()?.tensor(name).is_ok())
    }

    /// A tensor of f16, bf16, f32 or f64 in `axes` axes, finite.
    pub(crate) fn floats<D: Dimension>(&self, name: &str) -> Result<Array<f64, D>> {
        let tensors = self.tensors()?;
        let Ok(tensor) = tensors.tensor(name) else { return self.format(format!("there is no tensor {name}")) };
        let data = tensor.data();
        let elements: Vec<f64> = match tensor.dtype() {
            Dtype::F16 => data.chunks_exact(2).map(|x| f16::from_le_bytes([x[0], x[1]]).to_f64()).collect(),
            Dtype::BF16 => data.chunks_exact(2).map(|x| bf16::from_le_bytes([x[0], x[1]]).to_f64()).collect(),
            Dtype::F32 => data.chunks_exact(4).map(|x| f32::from_le_bytes([x[0], x[1], x[2], x[3]]).into()).collect(),
            Dtype::F64 => data.chunks_exact(8).map(|x| f64::from_le_bytes(x.try_into().unwrap_or_default())).collect(),
            other => return self.format(format!("{name} is of {other:?}, expected F16, BF16, F32 or F64")),
        };
        if let Some(index) = elements.iter().position(|x| !x.is_finite()) {
            return self.format(format!("{name} at index {index} is {}, expected finite", elements[index]));
        }
        let shape = tensor.shape();
        match Array::from_shape_vec(IxDyn(shape), elements).map(Array::into_dimensionality::<D>) {
            Ok(Ok(array)) => Ok(array),
            _ => {
                let axes = D::NDIM.unwrap_or_default();
                self.format(format!("{name} has shape {shape:?}, expected {axes} axes"))
            }
        }
    }

    /// As [`Reading::floats`], of this shape.
    pub(crate) fn shaped<D: Dimension>(&self, name: &str, shape: &[usize]) -> Result<Array<f64, D>> {
        let array = self.floats::<D>(name)?;
        match array.shape() == shape {
            true => Ok(array),
            false => self.format(format!("{name} has shape {:?}, expected {shape:?}", array.shape())),
        }
    }
}
