//! The scalar functions: a value a row.

use std::sync::Arc;

use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, FixedSizeBinaryArray, Float64Array, UInt32Array, new_null_array,
};
use datafusion::arrow::buffer::{Buffer, NullBuffer};
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, Float64Type};
use datafusion::common::{internal_err, plan_err};
use datafusion::error::Result;
use datafusion::logical_expr::simplify::{ExprSimplifyResult, SimplifyContext};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility, lit,
};
use datafusion::scalar::ScalarValue;
use half::f16;
use ndarray::{Array1, ArrayView1};

use super::OnDevice;
use super::column::{CodeRows, Embeddings, Site, Values, external, is_code, is_embedding, width, with_rows};
use super::model::{self, Method, Model};
use crate::hamming::binarize;
use crate::kernels::{log_iv, log_kv};
use crate::vmf::Rows;
use crate::{Device, DoubleSingle, Error, Precision, Tensor};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    LogIv,
    LogKv,
    LogDensity,
    Predict,
    Binarize,
    HammingDistance,
    CosineSimilarity,
}

const ALL: [Kind; 7] = [
    Kind::LogIv,
    Kind::LogKv,
    Kind::LogDensity,
    Kind::Predict,
    Kind::Binarize,
    Kind::HammingDistance,
    Kind::CosineSimilarity,
];

#[derive(Debug, PartialEq, Eq, Hash)]
struct Function {
    kind: Kind,
    device: OnDevice,
    signature: Signature,
}

/// All of them, on `device`.
pub(crate) fn all(device: &Device) -> Vec<ScalarUDF> {
    let signature = Signature::user_defined(Volatility::Immutable);
    let function = |kind| Function { kind, device: OnDevice(device.clone()), signature: signature.clone() };
    ALL.into_iter().map(|kind| ScalarUDF::new_from_impl(function(kind))).collect()
}

impl Function {
    /// The second argument of what takes embeddings and a model or method.
    fn model_argument(&self) -> Option<&'static str> {
        match self.kind {
            Kind::LogDensity | Kind::Predict => Some("model"),
            Kind::Binarize => Some("method"),
            _ => None,
        }
    }
}

/// The type that an argument of embeddings is read as.
pub(crate) fn coerce_embedding(function: &str, kind: &DataType) -> Result<DataType> {
    let wide = |field: &FieldRef| Arc::new(Field::new(field.name(), DataType::Float64, true));
    let coerced = match kind {
        kind if is_embedding(kind) => kind.clone(),
        // as literals have it
        DataType::List(field) if field.data_type().is_numeric() => DataType::List(wide(field)),
        DataType::LargeList(field) if field.data_type().is_numeric() => DataType::LargeList(wide(field)),
        DataType::FixedSizeList(field, width) if field.data_type().is_numeric() => {
            DataType::FixedSizeList(wide(field), *width)
        }
        other => {
            return plan_err!(
                "{function}: an embedding of type {other}, expected a list of Float16, Float32 or Float64"
            );
        }
    };
    Ok(coerced)
}

/// As [`coerce_embedding`] where the library has no f64: it becomes f32.
pub(crate) fn coerce_single(function: &str, kind: &DataType) -> Result<DataType> {
    let narrow = |field: &FieldRef| Arc::new(Field::new(field.name(), DataType::Float32, true));
    Ok(match coerce_embedding(function, kind)? {
        DataType::List(field) if field.data_type() == &DataType::Float64 => DataType::List(narrow(&field)),
        DataType::LargeList(field) if field.data_type() == &DataType::Float64 => DataType::LargeList(narrow(&field)),
        DataType::FixedSizeList(field, width) if field.data_type() == &DataType::Float64 => {
            DataType::FixedSizeList(narrow(&field), width)
        }
        other => other,
    })
}

/// The type that an argument of codes is read as.
pub(crate) fn coerce_code(function: &str, kind: &DataType) -> Result<DataType> {
    match kind {
        kind if is_code(kind) => Ok(kind.clone()),
        other => plan_err!("{function}: a code of type {other}, expected FixedSizeBinary, as binarize returns it"),
    }
}

impl ScalarUDFImpl for Function {
    fn name(&self) -> &str {
        match self.kind {
            Kind::LogIv => "log_iv",
            Kind::LogKv => "log_kv",
            Kind::LogDensity => "vmf_log_density",
            Kind::Predict => "vmf_predict",
            Kind::Binarize => "binarize",
            Kind::HammingDistance => "hamming_distance",
            Kind::CosineSimilarity => "cosine_similarity",
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        internal_err!("{}: return_field_from_args says it", self.name())
    }

    fn coerce_types(&self, kinds: &[DataType]) -> Result<Vec<DataType>> {
        let name = self.name();
        let [first, second] = kinds else {
            return plan_err!("{name} takes 2 arguments, found {}", kinds.len());
        };
        let number = |kind: &DataType| match kind {
            kind if kind.is_numeric() || kind.is_null() => Ok(DataType::Float64),
            other => plan_err!("{name}: an argument of type {other}, expected a number"),
        };
        Ok(match self.kind {
            Kind::LogIv | Kind::LogKv => vec![number(first)?, number(second)?],
            Kind::LogDensity | Kind::Predict => {
                if !model::is_model(second) {
                    return plan_err!("{name}: a model of type {second}, expected text or what vmf_fit returns");
                }
                vec![coerce_embedding(name, first)?, second.clone()]
            }
            Kind::Binarize => {
                if !matches!(second, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Binary) {
                    return plan_err!("{name}: a method of type {second}, expected text");
                }
                vec![coerce_single(name, first)?, second.clone()]
            }
            Kind::HammingDistance => vec![coerce_code(name, first)?, coerce_code(name, second)?],
            Kind::CosineSimilarity => vec![coerce_embedding(name, first)?, coerce_embedding(name, second)?],
        })
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        let kind = match self.kind {
            Kind::LogIv | Kind::LogKv | Kind::LogDensity | Kind::CosineSimilarity => DataType::Float64,
            Kind::Predict | Kind::HammingDistance => DataType::UInt32,
            Kind::Binarize => {
                let [embedding, _] = args.arg_fields else {
                    return plan_err!("binarize takes 2 arguments, found {}", args.arg_fields.len());
                };
                let Some(Some(method)) = args.scalar_arguments.get(1) else {
                    return plan_err!("binarize: the method must be a constant, as it decides the width of a code");
                };
                let known = width(embedding.data_type());
                let Some(bits) = model::method(method)?.bits(known) else {
                    return Err(Site::new("binarize", embedding.name()).bad(
                        None,
                        format!("the type {}, which does not tell how many elements a row has", embedding.data_type()),
                        "FixedSizeList (arrow_cast makes one), or a method with a number of bits, as 'sign 256'",
                    ));
                };
                if let Err(error) = crate::hamming::Index::new(&Device::Cpu, bits) {
                    return Err(external(error));
                }
                DataType::FixedSizeBinary((bits / 8) as i32)
            }
        };
        Ok(Arc::new(Field::new(self.name(), kind, true)))
    }

    /// Files of models and binarizers are read while the query is planned, so that what is in them travels with it.
    fn simplify(&self, args: Vec<Expr>, info: &SimplifyContext) -> Result<ExprSimplifyResult> {
        let [_, Expr::Literal(value, _)] = &args[..] else { return Ok(ExprSimplifyResult::Original(args)) };
        let _ = info;
        let read = match (self.model_argument(), model::string(value)) {
            (Some("model"), Some(text)) => {
                let content = model::text_of(text)?;
                (content != text).then(|| lit(content))
            }
            (Some(_), Some(text)) => match Method::parse(text)? {
                Method::Saved(saved) => Some(lit(ScalarValue::Binary(Some(saved.to_bytes().map_err(external)?)))),
                _ => None,
            },
            _ => None,
        };
        let Some(read) = read else { return Ok(ExprSimplifyResult::Original(args)) };
        let function = Arc::new(ScalarUDF::new_from_impl(Function {
            kind: self.kind,
            device: self.device.clone(),
            signature: self.signature.clone(),
        }));
        let args = vec![args[0].clone(), read];
        Ok(ExprSimplifyResult::Simplified(Expr::ScalarFunction(
            datafusion::logical_expr::expr::ScalarFunction::new_udf(function, args),
        )))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let sites: Vec<Site> =
            args.arg_fields.iter().map(|field| Site::new(self.static_name(), field.name())).collect();
        // Of constants one value is computed, and stays a constant.
        let constant = args.args.iter().all(|argument| matches!(argument, ColumnarValue::Scalar(_)));
        let rows = if constant { 1 } else { args.number_rows };
        let result: ArrayRef = match self.kind {
            Kind::LogIv | Kind::LogKv => self.bessel(&sites, &args.args, rows)?,
            Kind::LogDensity | Kind::Predict => {
                let embedding = args.args[0].to_array(rows)?;
                match model::model(&sites[1], &args.args[1])? {
                    None => new_null_array(args.return_field.data_type(), rows),
                    Some(model) => self.by_model(&sites[0], &embedding, &model)?,
                }
            }
            Kind::Binarize => {
                let embedding = args.args[0].to_array(rows)?;
                let method = model::method(&model::constant(&sites[1], &args.args[1])?)?;
                self.binarize(&sites[0], &embedding, &method, args.return_field.data_type())?
            }
            Kind::HammingDistance => hamming_distance(&sites, &args.args, rows)?,
            Kind::CosineSimilarity => cosine_similarity(&sites, &args.args, rows)?,
        };
        if constant {
            return Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&result, 0)?));
        }
        Ok(ColumnarValue::Array(result))
    }
}

impl Function {
    fn static_name(&self) -> &'static str {
        match self.kind {
            Kind::LogIv => "log_iv",
            Kind::LogKv => "log_kv",
            Kind::LogDensity => "vmf_log_density",
            Kind::Predict => "vmf_predict",
            Kind::Binarize => "binarize",
            Kind::HammingDistance => "hamming_distance",
            Kind::CosineSimilarity => "cosine_similarity",
        }
    }

    fn bessel(&self, sites: &[Site], args: &[ColumnarValue], rows: usize) -> Result<ArrayRef> {
        let arrays = [args[0].to_array(rows)?, args[1].to_array(rows)?];
        let [order, x] = arrays.each_ref().map(|array| array.as_primitive::<Float64Type>());
        let nulls = NullBuffer::union(order.nulls(), x.nulls());
        let there: Vec<usize> =
            (0..rows).filter(|&row| nulls.as_ref().is_none_or(|nulls| nulls.is_valid(row))).collect();
        if there.is_empty() {
            return Ok(new_null_array(&DataType::Float64, rows));
        }
        let pick = |from: &Float64Array| -> Array1<f64> { there.iter().map(|&row| from.value(row)).collect() };
        let values = self.bessel_of(pick(order).view(), pick(x).view()).map_err(|error| match error {
            Error::Domain { quantity, index, expected, found, .. } => {
                let site = &sites[usize::from(quantity != "order")];
                site.bad(Some(there[index]), found, expected)
            }
            error => external(error),
        })?;
        let mut all = vec![None; rows];
        there.iter().zip(values).for_each(|(&row, value)| all[row] = Some(value));
        Ok(Arc::new(Float64Array::from(all)))
    }

    fn bessel_of(&self, order: ArrayView1<'_, f64>, x: ArrayView1<'_, f64>) -> std::result::Result<Vec<f64>, Error> {
        let device = &self.device.0;
        if device.is_cpu() {
            let (order, x) = (device.tensor(&order)?, device.tensor(&x)?);
            let values = if self.kind == Kind::LogIv { log_iv(&order, &x) } else { log_kv(&order, &x) };
            return Ok(values?.to_array()?.to_vec());
        }
        let pairs = |values: ArrayView1<'_, f64>| device.tensor(&values.mapv(DoubleSingle::new));
        let (order, x) = (pairs(order)?, pairs(x)?);
        let values = if self.kind == Kind::LogIv { log_iv(&order, &x) } else { log_kv(&order, &x) };
        Ok(values?.to_f64_array()?.to_vec())
    }

    fn by_model(&self, site: &Site, array: &ArrayRef, model: &Model) -> Result<ArrayRef> {
        let rows = Embeddings::new(site, array, Some((model.dim(), "as the model has")), None)?;
        let in_column = |error| site.in_column(error, &rows);
        if rows.len() == 0 {
            let kind = if self.kind == Kind::Predict { DataType::UInt32 } else { DataType::Float64 };
            return Ok(new_null_array(&kind, rows.batch));
        }
        if self.kind == Kind::Predict {
            let Model::Mixture(mixture) = model else {
                return Err(external(Error::Argument {
                    place: "vmf_predict",
                    quantity: "model",
                    expected: "a mixture".into(),
                    found: "one distribution".into(),
                }));
            };
            let labels = with_rows!(rows, |view| match &self.device.0 {
                Device::Cpu => mixture.predict_of(&view),
                device => device
                    .tensor(&view)
                    .and_then(|rows| mixture.predict(&rows)?.to_array())
                    .map(|labels| labels.to_vec()),
            });
            return Ok(Arc::new(UInt32Array::from(rows.spread(labels.map_err(in_column)?))));
        }
        let densities =
            match model {
                Model::Vmf(vmf) => with_rows!(rows, |view| match &self.device.0 {
                    Device::Cpu => vmf.log_density_of(view),
                    device => device
                        .tensor(&view)
                        .and_then(|rows| vmf.log_density_in(&rows, Precision::Extended))
                        .map(|values| values.to_vec()),
                }),
                Model::Mixture(mixture) => with_rows!(rows, |view| match &self.device.0 {
                    Device::Cpu => mixture.score_of(&view),
                    device => device
                        .tensor(&view)
                        .and_then(|rows| mixture.score(&rows)?.to_array())
                        .map(|values| values.to_vec()),
                })
                .map(|values| values.into_iter().map(f64::from).collect()),
            };
        Ok(Arc::new(Float64Array::from(rows.spread(densities.map_err(in_column)?))))
    }

    fn binarize(&self, site: &Site, array: &ArrayRef, method: &Method, kind: &DataType) -> Result<ArrayRef> {
        let DataType::FixedSizeBinary(bytes) = kind else {
            return internal_err!("binarize returns codes of one width, not {kind}");
        };
        let expected = match method {
            Method::Saved(saved) => Some((saved.dim(), "as the binarizer has")),
            _ => None,
        };
        let rows = Embeddings::new(site, array, expected, None)?;
        if rows.len() == 0 {
            return Ok(new_null_array(kind, rows.batch));
        }
        let binarizer = method.binarizer(rows.dim).map_err(external)?;
        if binarizer.bits() != 8 * *bytes as usize {
            let found = format!("{} elements", rows.dim);
            return Err(site.bad(Some(rows.row(0)), found, format!("{}", 8 * bytes)));
        }
        let device = &self.device.0;
        let codes = match &rows.values {
            Values::F16(values) => tensor::<f16>(device, values, rows.dim).and_then(|rows| binarize(&rows, &binarizer)),
            Values::F32(values) => tensor::<f32>(device, values, rows.dim).and_then(|rows| binarize(&rows, &binarizer)),
            Values::F64(_) => return internal_err!("binarize takes f64 as f32"),
        };
        let codes = codes.and_then(|codes| codes.to_bytes()).map_err(|error| site.in_column(error, &rows))?;
        let packed = codes.into_raw_vec_and_offset().0;
        let Some(present) = &rows.present else {
            return Ok(Arc::new(FixedSizeBinaryArray::try_new(*bytes, Buffer::from(packed), None)?));
        };
        let mut all = vec![0u8; rows.batch * *bytes as usize];
        let mut valid = vec![false; rows.batch];
        for (&row, code) in present.iter().zip(packed.chunks_exact(*bytes as usize)) {
            all[row as usize * *bytes as usize..][..*bytes as usize].copy_from_slice(code);
            valid[row as usize] = true;
        }
        Ok(Arc::new(FixedSizeBinaryArray::try_new(*bytes, Buffer::from(all), Some(NullBuffer::from(valid)))?))
    }
}

fn tensor<T: Rows>(device: &Device, values: &[T], dim: usize) -> std::result::Result<Tensor<T, ndarray::Ix2>, Error> {
    device.tensor(&super::column::view(values, dim))
}

/// The bits that differ, counted on the host: a code takes longer to send to a GPU than to count.
fn hamming_distance(sites: &[Site], args: &[ColumnarValue], rows: usize) -> Result<ArrayRef> {
    let arrays = args.iter().map(one_or_all).collect::<Result<Vec<ArrayRef>>>()?;
    let first = CodeRows::new(&sites[0], &arrays[0], None)?;
    let whence = format!("as {} has", sites[0].column);
    let second = CodeRows::new(&sites[1], &arrays[1], first.width.map(|width| (width, whence.as_str())))?;
    let distance = |row: usize| {
        let at = |array: &ArrayRef| if array.len() == 1 { 0 } else { row };
        let (a, b) = (first.get(at(&arrays[0]))?, second.get(at(&arrays[1]))?);
        Some(super::top_k::hamming(a, b))
    };
    Ok(Arc::new((0..rows).map(distance).collect::<UInt32Array>()))
}

/// A constant as one value, a column as it is.
fn one_or_all(argument: &ColumnarValue) -> Result<ArrayRef> {
    match argument {
        ColumnarValue::Array(array) => Ok(array.clone()),
        ColumnarValue::Scalar(value) => value.to_array(),
    }
}

/// a'b / (|a| |b|) in f64, on the host: each row is used once, so a GPU would only wait for it.
fn cosine_similarity(sites: &[Site], args: &[ColumnarValue], rows: usize) -> Result<ArrayRef> {
    let arrays = args.iter().map(one_or_all).collect::<Result<Vec<ArrayRef>>>()?;
    let a = Embeddings::new(&sites[0], &arrays[0], None, None)?;
    let whence = format!("as {} has", sites[0].column);
    let expected = (a.len() > 0).then_some((a.dim, whence.as_str()));
    let b = Embeddings::new(&sites[1], &arrays[1], expected, None)?;
    let units = |site: &Site, rows: &Embeddings<'_>| -> Result<Vec<Option<Vec<f64>>>> {
        let rows_of = with_rows!(rows, |view| unit_rows(view));
        Ok(rows.spread(rows_of.map_err(|error| site.in_column(error, rows))?))
    };
    let (a, b) = (units(&sites[0], &a)?, units(&sites[1], &b)?);
    let similarity = |row: usize| {
        let at = |rows: &[Option<Vec<f64>>]| if rows.len() == 1 { 0 } else { row };
        let (a, b) = (a[at(&a)].as_ref()?, b[at(&b)].as_ref()?);
        Some(crate::vmf::dot_f64(a, b).clamp(-1.0, 1.0))
    };
    Ok(Arc::new((0..rows).map(similarity).collect::<Float64Array>()))
}

/// The rows at unit length.
fn unit_rows<T: Rows>(rows: ndarray::ArrayView2<'_, T>) -> std::result::Result<Vec<Vec<f64>>, Error> {
    rows.outer_iter()
        .enumerate()
        .map(|(index, row)| {
            let row = row.to_slice().unwrap_or(&[]);
            let inverse = crate::vmf::inverse_norm("cosine_similarity", row, index)?;
            Ok(row.iter().map(|value| value.wide() * inverse).collect())
        })
        .collect()
}
