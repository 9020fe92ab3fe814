//! Models as SQL's arguments: JSON text, the name of a file, or what `vmf_fit` returns.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use datafusion::arrow::array::{Array, AsArray};
use datafusion::arrow::datatypes::{DataType, Float64Type};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::ColumnarValue;
use datafusion::scalar::ScalarValue;

use super::column::{Site, external};
use crate::Error;
use crate::hamming::Binarizer;
use crate::vmf::{Vmf, VmfMixture};

/// A fitted model.
#[derive(Debug)]
pub(crate) enum Model {
    Vmf(Vmf),
    Mixture(Box<VmfMixture>),
}

impl Model {
    pub(crate) fn dim(&self) -> usize {
        match self {
            Self::Vmf(vmf) => vmf.dim(),
            Self::Mixture(mixture) => mixture.dim(),
        }
    }
}

/// Models read lately: every batch of a query names the same one.
static RECENT: Mutex<VecDeque<(String, Arc<Model>)>> = Mutex::new(VecDeque::new());
const REMEMBERED: usize = 8;

/// Whether `text` is a model itself, and not the name of a file.
fn is_json(text: &str) -> bool {
    text.trim_start().starts_with('{')
}

/// The text of a model: itself, or what is in the file of that name. Asked for when a query is planned, so that the model travels in the plan.
pub(crate) fn text_of(argument: &str) -> Result<String> {
    if is_json(argument) {
        return Ok(argument.to_string());
    }
    let io = |error: std::io::Error| {
        let reason = format!(
            "{error} (a model is JSON, as Vmf::save and VmfMixture::save write it, or the name of a file of that)"
        );
        external(Error::Io { what: argument.to_string(), reason })
    };
    std::fs::read_to_string(argument).map_err(io)
}

/// The model that `argument` is or names.
pub(crate) fn parse(argument: &str) -> Result<Arc<Model>> {
    let mut recent = RECENT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, model)) = recent.iter().find(|(text, _)| text == argument) {
        return Ok(model.clone());
    }
    let text = text_of(argument)?;
    let format = |what, error: serde_json::Error| external(Error::Format { what, reason: error.to_string() });
    let value: serde_json::Value = serde_json::from_str(&text).map_err(|error| format("model", error))?;
    // as the text, so that numbers are read with all their digits
    let model = if value.get("components").is_some() {
        Model::Mixture(serde_json::from_str(&text).map_err(|error| format("VmfMixture", error))?)
    } else {
        Model::Vmf(serde_json::from_str(&text).map_err(|error| format("Vmf", error))?)
    };
    let model = Arc::new(model);
    // A file may be another by the next query.
    if is_json(argument) {
        recent.truncate(REMEMBERED - 1);
        recent.push_front((argument.to_string(), model.clone()));
    }
    Ok(model)
}

/// The one value of a constant argument.
///
/// # Errors
/// [`Error::Column`] where rows differ.
pub(crate) fn constant(site: &Site, argument: &ColumnarValue) -> Result<ScalarValue> {
    match argument {
        ColumnarValue::Scalar(value) => Ok(value.clone()),
        ColumnarValue::Array(array) => {
            if array.is_empty() {
                return ScalarValue::try_new_null(array.data_type());
            }
            let first = ScalarValue::try_from_array(array, 0)?;
            for row in 1..array.len() {
                if !first.eq_array(array, row)? {
                    return Err(site.bad(Some(row), "another value than before", "the same for all rows"));
                }
            }
            Ok(first)
        }
    }
}

/// Text of a scalar.
pub(crate) fn string(value: &ScalarValue) -> Option<&str> {
    value.try_as_str().flatten()
}

/// Whether this is a type that models may have.
pub(crate) fn is_model(kind: &DataType) -> bool {
    match kind {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        DataType::Struct(fields) => fields.find("mean_direction").is_some() && fields.find("kappa").is_some(),
        _ => false,
    }
}

/// The model of an argument; None for NULL.
///
/// # Errors
/// As reading a model; [`Error::Column`] for a value that is none.
pub(crate) fn model(site: &Site, argument: &ColumnarValue) -> Result<Option<Arc<Model>>> {
    let value = constant(site, argument)?;
    if value.is_null() {
        return Ok(None);
    }
    if let Some(text) = string(&value) {
        return parse(text).map(Some);
    }
    let ScalarValue::Struct(row) = &value else {
        return Err(site.bad(None, format!("a value of type {}", value.data_type()), "a model"));
    };
    let (Some(mean), Some(kappa)) = (row.column_by_name("mean_direction"), row.column_by_name("kappa")) else {
        return Err(site.bad(None, "a struct without mean_direction and kappa", "a model, as vmf_fit returns it"));
    };
    let numbers = |kind: &DataType| matches!(kind, DataType::List(field) if field.data_type() == &DataType::Float64);
    if !numbers(mean.data_type()) || kappa.data_type() != &DataType::Float64 {
        return Err(site.bad(None, "a mean_direction or kappa of another type", "List(Float64) and Float64"));
    }
    if mean.is_null(0) || kappa.is_null(0) {
        return Ok(None);
    }
    let mean = mean.as_list::<i32>().value(0);
    let kappa = kappa.as_primitive::<Float64Type>().value(0);
    let direction = ndarray::ArrayView1::from(&mean.as_primitive::<Float64Type>().values()[..]);
    Vmf::new(direction, kappa).map(|vmf| Some(Arc::new(Model::Vmf(vmf)))).map_err(external)
}

/// How `binarize` is told to make bits.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Method {
    /// The signs of the first so many features; of all where none are named.
    Sign(Option<usize>),
    /// Random hyperplanes: bits and seed.
    Hyperplanes(usize, u64),
    /// A saved [`Binarizer`].
    Saved(Binarizer),
}

/// The binarizer of the batch before: drawing hyperplanes takes longer than using them.
static LAST: Mutex<Option<(Method, usize, Arc<Binarizer>)>> = Mutex::new(None);

const METHODS: &str = "'sign', 'sign BITS', 'hyperplanes BITS SEED' or the name of a file that Binarizer::save wrote";

impl Method {
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let unknown = || {
            external(Error::Argument {
                place: "binarize",
                quantity: "method",
                expected: METHODS.into(),
                found: format!("{text:?}"),
            })
        };
        let words: Vec<&str> = text.split_whitespace().collect();
        match words[..] {
            ["sign"] => Ok(Self::Sign(None)),
            ["sign", bits] => Ok(Self::Sign(Some(bits.parse().map_err(|_| unknown())?))),
            ["hyperplanes", bits, seed] => match (bits.parse(), seed.parse()) {
                (Ok(bits), Ok(seed)) => Ok(Self::Hyperplanes(bits, seed)),
                _ => Err(unknown()),
            },
            _ => match Binarizer::load(text) {
                Ok(saved) => Ok(Self::Saved(saved)),
                Err(Error::Io { what, reason }) => {
                    Err(external(Error::Io { what, reason: format!("{reason} (a method is {METHODS})") }))
                }
                Err(error) => Err(external(error)),
            },
        }
    }

    /// The bits of a code of rows of `dim` elements, where that can be told.
    pub(crate) fn bits(&self, dim: Option<usize>) -> Option<usize> {
        match self {
            Self::Sign(bits) => bits.or(dim),
            Self::Hyperplanes(bits, _) => Some(*bits),
            Self::Saved(saved) => Some(saved.bits()),
        }
    }

    /// The binarizer for rows of `dim` elements.
    pub(crate) fn binarizer(&self, dim: usize) -> std::result::Result<Arc<Binarizer>, Error> {
        let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((method, of, binarizer)) = last.as_ref()
            && (method, *of) == (self, dim)
        {
            return Ok(binarizer.clone());
        }
        let binarizer = Arc::new(match self {
            Self::Sign(bits) => Binarizer::sign(dim, bits.unwrap_or(dim))?,
            Self::Hyperplanes(bits, seed) => Binarizer::hyperplanes(dim, *bits, *seed)?,
            Self::Saved(saved) => saved.clone(),
        });
        *last = Some((self.clone(), dim, binarizer.clone()));
        Ok(binarizer)
    }
}

/// A method in a plan: its words, or the bytes of the file.
pub(crate) fn method(value: &ScalarValue) -> Result<Method> {
    match value {
        ScalarValue::Binary(Some(bytes)) => Binarizer::from_bytes(bytes).map(Method::Saved).map_err(external),
        value => match string(value) {
            Some(text) => Method::parse(text),
            None => Err(DataFusionError::Plan(format!("binarize: the method is {value}, expected {METHODS}"))),
        },
    }
}
