//! A binarizer as a `.safetensors` file.

use std::collections::HashMap;
use std::path::Path;

use ndarray::{Array1, Array2};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::{Binarizer, check_bits};
use crate::kernels::SignRule;
use crate::{Error, Result};

const WHAT: &str = "Binarizer file";
const VERSION: &str = "1";

fn format<T>(path: &Path, reason: impl std::fmt::Display) -> Result<T> {
    Err(Error::Format { what: WHAT, reason: format!("{}: {reason}", path.display()) })
}

fn io(path: &Path, error: &dyn std::fmt::Display) -> Error {
    Error::Io { what: path.display().to_string(), reason: error.to_string() }
}

impl Binarizer {
    /// It as a `.safetensors` file: `planes` (bits, dim) and `thresholds` (bits), where it has them, and in the metadata `dim`, `bits` and `rule`.
    ///
    /// # Errors
    /// [`Error::Format`] where the format has no room for it.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let not_one = |error: safetensors::SafeTensorError| Error::Format { what: WHAT, reason: error.to_string() };
        let bytes = |values: &mut dyn Iterator<Item = &f32>| values.flat_map(|value| value.to_le_bytes()).collect();
        let mut tensors: Vec<(&str, Vec<usize>, Vec<u8>)> = Vec::new();
        if let Some(planes) = &self.planes {
            tensors.push(("planes", planes.shape().to_vec(), bytes(&mut planes.iter())));
        }
        if let Some(thresholds) = &self.thresholds {
            tensors.push(("thresholds", thresholds.shape().to_vec(), bytes(&mut thresholds.iter())));
        }
        let views = tensors.iter().map(|(name, shape, bytes)| {
            TensorView::new(Dtype::F32, shape.clone(), bytes).map(|view| (*name, view)).map_err(not_one)
        });
        let views = views.collect::<Result<Vec<_>>>()?;
        let rule = match self.rule {
            SignRule::AtLeast => "at-least",
            SignRule::Above => "above",
        };
        let metadata = HashMap::from(
            [
                ("orthant_binarizer", VERSION.to_string()),
                ("dim", self.dim.to_string()),
                ("bits", self.bits.to_string()),
                ("rule", rule.to_string()),
            ]
            .map(|(key, value)| (key.to_string(), value)),
        );
        safetensors::serialize(views, Some(metadata)).map_err(not_one)
    }

    /// Writes [`Binarizer::to_bytes`] beside `path`, then renames it.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let bytes = self.to_bytes()?;
        let mut name = path.file_name().unwrap_or_default().to_os_string();
        name.push(format!(".{}.partial", std::process::id()));
        let beside = path.with_file_name(name);
        let written = std::fs::write(&beside, bytes).and_then(|()| std::fs::rename(&beside, path));
        if written.is_err() {
            // Nothing to report beyond the first error.
            let _ = std::fs::remove_file(&beside);
        }
        written.map_err(|error| io(path, &error))
    }

    /// Reads what [`Binarizer::save`] wrote.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Format`] where the file is no binarizer, of another version, or damaged.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::read(path, &std::fs::read(path).map_err(|error| io(path, &error))?)
    }

    /// What [`Binarizer::to_bytes`] made.
    ///
    /// # Errors
    /// [`Error::Format`] as [`Binarizer::load`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        Self::read(Path::new("bytes"), bytes)
    }

    fn read(path: &Path, bytes: &[u8]) -> Result<Self> {
        let (file, header) = match (SafeTensors::deserialize(bytes), SafeTensors::read_metadata(bytes)) {
            (Ok(file), Ok((_, header))) => (file, header),
            (Err(error), _) | (_, Err(error)) => return format(path, error),
        };
        let none = HashMap::new();
        let metadata = header.metadata().as_ref().unwrap_or(&none);
        match metadata.get("orthant_binarizer").map(String::as_str) {
            Some(VERSION) => {}
            Some(other) => return format(path, format!("it is of version {other}, expected {VERSION}")),
            None => return format(path, "it holds no binarizer"),
        }
        let number = |key: &str| metadata.get(key).and_then(|value| value.parse::<usize>().ok());
        let (Some(dim), Some(bits)) = (number("dim"), number("bits")) else {
            return format(path, "dim or bits is missing");
        };
        let rule = match metadata.get("rule").map(String::as_str) {
            Some("at-least") => SignRule::AtLeast,
            Some("above") => SignRule::Above,
            _ => return format(path, "rule is missing"),
        };
        let values = |name: &str, shape: &[usize]| -> Result<Option<Vec<f32>>> {
            let Ok(tensor) = file.tensor(name) else { return Ok(None) };
            if tensor.dtype() != Dtype::F32 || tensor.shape() != shape {
                return format(
                    path,
                    format!("{name} is {:?} {:?}, expected F32 {shape:?}", tensor.dtype(), tensor.shape()),
                );
            }
            let values: Vec<f32> =
                tensor.data().chunks_exact(4).map(|x| f32::from_le_bytes(x.try_into().unwrap_or_default())).collect();
            if values.iter().all(|value| value.is_finite()) {
                Ok(Some(values))
            } else {
                format(path, format!("{name} is not finite"))
            }
        };
        let planes = values("planes", &[bits, dim])?;
        if check_bits(bits, if planes.is_some() { usize::MAX } else { dim }).is_err() || dim == 0 {
            return format(path, format!("{bits} bits of {dim} features"));
        }
        let planes = match planes.map(|planes| Array2::from_shape_vec((bits, dim), planes)) {
            Some(Ok(planes)) => Some(planes),
            Some(Err(error)) => return format(path, error),
            None => None,
        };
        let thresholds = values("thresholds", &[bits])?.map(Array1::from);
        Ok(Self { dim, bits, rule, planes, thresholds })
    }
}
