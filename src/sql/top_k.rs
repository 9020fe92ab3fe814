//! `hamming_top_k` and `knn_top_k`: the nearest rows of one query.

use std::collections::BinaryHeap;
use std::sync::Arc;

use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, Float32Array, Float64Array, Int64Array, ListArray, StructArray, UInt32Array, UInt64Array,
};
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, Fields, Float64Type, Int64Type, UInt64Type};
use datafusion::common::{not_impl_err, plan_err};
use datafusion::error::Result;
use datafusion::logical_expr::expr::AggregateFunction;
use datafusion::logical_expr::function::{AccumulatorArgs, AggregateFunctionSimplification, StateFieldsArgs};
use datafusion::logical_expr::utils::{AggregateOrderSensitivity, format_state_name};
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, ColumnarValue, Expr, Signature, Volatility,
};
use datafusion::scalar::ScalarValue;
use serde::{Deserialize, Serialize};

use super::OnDevice;
use super::column::{CodeRows, Embeddings, Site, Values, external};
use super::model::{constant, string};
use super::pending::Pending;
use super::scalar::{coerce_code, coerce_single};
use crate::hamming::{Codes, Index, SearchOptions};
use crate::knn::{self, Metric, Query};
use crate::{Device, Error};

/// Codes to send to a GPU at a time: 2^20 of them are 16 MB at 128 bits.
const ENOUGH_CODES: usize = 1 << 20;

/// The bits that differ between two codes of one width.
pub(crate) fn hamming(a: &[u8], b: &[u8]) -> u32 {
    let (a, a_rest) = a.as_chunks::<8>();
    let (b, b_rest) = b.as_chunks::<8>();
    let words = a.iter().zip(b).map(|(a, b)| (u64::from_ne_bytes(*a) ^ u64::from_ne_bytes(*b)).count_ones());
    words.sum::<u32>() + a_rest.iter().zip(b_rest).map(|(a, b)| (a ^ b).count_ones()).sum::<u32>()
}

/// What is asked for, the same for all rows.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Asked {
    Hamming {
        query: Vec<u8>,
        k: usize,
    },
    /// The query as the bits of its f32 elements.
    Knn {
        query: Vec<u32>,
        k: usize,
        metric: String,
    },
}

impl Asked {
    fn k(&self) -> usize {
        match self {
            Self::Hamming { k, .. } | Self::Knn { k, .. } => *k,
        }
    }

    /// From the arguments behind id and code or embedding.
    fn of(sites: &[Site], values: &[ScalarValue]) -> Result<Self> {
        let knn = values.len() == 3;
        let k = match values[1].cast_to(&DataType::Int64)? {
            ScalarValue::Int64(Some(k)) if k > 0 => k as usize,
            _ => return Err(sites[3].bad(None, format!("{}", values[1]), "1 or more")),
        };
        let query = values[0].to_array()?;
        if query.is_null(0) {
            return Err(sites[2].bad(None, "NULL", "a query"));
        }
        if !knn {
            let codes = CodeRows::new(&sites[2], &query, None)?;
            let Some(query) = codes.get(0).filter(|code| !code.is_empty()) else {
                return Err(sites[2].bad(None, "a code of 0 bits", "8 or more"));
            };
            return Ok(Self::Hamming { query: query.to_vec(), k });
        }
        let metric = string(&values[2]).unwrap_or_default().to_ascii_lowercase();
        if metric_of(&metric).is_none() {
            return Err(sites[4].bad(None, format!("{}", values[2]), "'l2', 'cosine' or 'inner_product'"));
        }
        let rows = Embeddings::new(&sites[2], &query, None, None)?;
        let query = match &rows.values {
            Values::F16(values) => values.iter().map(|value| value.to_f32().to_bits()).collect(),
            Values::F32(values) => values.iter().map(|value| value.to_bits()).collect(),
            Values::F64(values) => values.iter().map(|value| (*value as f32).to_bits()).collect(),
        };
        Ok(Self::Knn { query, k, metric })
    }
}

fn metric_of(name: &str) -> Option<Metric> {
    match name {
        "l2" => Some(Metric::L2),
        "cosine" => Some(Metric::Cosine),
        "inner_product" => Some(Metric::InnerProduct),
        _ => None,
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct TopK {
    /// Of rows of floats, else of codes.
    knn: bool,
    device: OnDevice,
    signature: Signature,
    /// What is asked for where the plan has it: then only id and code or embedding are arguments, and the query is not repeated in every row of a batch.
    pub(crate) asked: Option<Asked>,
}

/// Both, on `device`.
pub(crate) fn all(device: &Device) -> Vec<AggregateUDF> {
    [false, true].map(|knn| AggregateUDF::new_from_impl(TopK::new(knn, device, None))).to_vec()
}

impl TopK {
    pub(crate) fn new(knn: bool, device: &Device, asked: Option<Asked>) -> Self {
        Self { knn, device: OnDevice(device.clone()), signature: Signature::user_defined(Volatility::Immutable), asked }
    }

    fn static_name(&self) -> &'static str {
        if self.knn { "knn_top_k" } else { "hamming_top_k" }
    }

    fn neighbour(&self, id: &DataType) -> Fields {
        let distance = if self.knn { DataType::Float32 } else { DataType::UInt32 };
        Fields::from(vec![Field::new("id", id.clone(), false), Field::new("distance", distance, false)])
    }
}

impl AggregateUDFImpl for TopK {
    fn name(&self) -> &str {
        self.static_name()
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, kinds: &[DataType]) -> Result<Vec<DataType>> {
        let name = self.name();
        let all = if self.knn { 5 } else { 4 };
        let expected = if self.asked.is_some() { 2 } else { all };
        if kinds.len() != expected {
            let names = if self.knn { "id, embedding, query, k, metric" } else { "id, code, query, k" };
            return plan_err!("{name}({names}) takes {all} arguments, found {}", kinds.len());
        }
        let id = match &kinds[0] {
            kind if kind.is_signed_integer() => DataType::Int64,
            kind if kind.is_unsigned_integer() => DataType::UInt64,
            other => return plan_err!("{name}: ids of type {other}, expected an integer"),
        };
        let row = |kind: &DataType| if self.knn { coerce_single(name, kind) } else { coerce_code(name, kind) };
        let mut coerced = vec![id, row(&kinds[1])?];
        if self.asked.is_none() {
            coerced.push(row(&kinds[2])?);
            if !kinds[3].is_integer() {
                return plan_err!("{name}: k of type {}, expected an integer", kinds[3]);
            }
            coerced.push(DataType::Int64);
            coerced.extend(self.knn.then_some(DataType::Utf8));
        }
        Ok(coerced)
    }

    fn return_type(&self, kinds: &[DataType]) -> Result<DataType> {
        Ok(DataType::List(Arc::new(Field::new("item", DataType::Struct(self.neighbour(&kinds[0])), true))))
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        let list = |kind: &DataType| DataType::List(Arc::new(Field::new("item", kind.clone(), true)));
        let field = |name, kind| Arc::new(Field::new(format_state_name(args.name, name), kind, true));
        Ok(vec![
            field("ids", list(args.input_fields[0].data_type())),
            field("keys", list(&DataType::Float64)),
            field("query", DataType::Utf8),
        ])
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        AggregateOrderSensitivity::Insensitive
    }

    fn simplify(&self) -> Option<AggregateFunctionSimplification> {
        if self.asked.is_some() {
            return None;
        }
        let this = self.clone();
        Some(Box::new(move |mut function: AggregateFunction, _| {
            let values: Option<Vec<ScalarValue>> = (function.params.args[2..].iter())
                .map(|argument| match argument {
                    Expr::Literal(value, _) => Some(value.clone()),
                    _ => None,
                })
                .collect();
            if let Some(values) = values {
                let names = ["id", "embedding", "query", "k", "metric"].map(|name| Site::new(this.static_name(), name));
                let asked = Asked::of(&names, &values)?;
                function.params.args.truncate(2);
                function.func = Arc::new(AggregateUDF::new_from_impl(TopK { asked: Some(asked), ..this.clone() }));
            }
            Ok(Expr::AggregateFunction(function))
        }))
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        if args.is_distinct {
            return not_impl_err!("{}(DISTINCT ...)", self.name());
        }
        let sites: Vec<Site> =
            args.expr_fields.iter().map(|field| Site::new(self.static_name(), field.name())).collect();
        let id = match args.expr_fields.first().map(|field| field.data_type()) {
            Some(DataType::UInt64) => DataType::UInt64,
            _ => DataType::Int64,
        };
        let mut accumulator = Nearest {
            fields: self.neighbour(&id),
            id,
            device: self.device.0.clone(),
            sites,
            search: None,
            asked: None,
            held: BinaryHeap::new(),
            seen: 0,
            pending: Pending::default(),
            codes: Vec::new(),
        };
        if let Some(asked) = &self.asked {
            accumulator.ask(asked.clone())?;
        }
        Ok(Box::new(accumulator))
    }
}

/// What rows are compared with.
enum Search {
    Hamming(Vec<u8>),
    Knn(Query, Metric, Vec<f32>),
}

/// A row found: what it is sorted by.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Found {
    key: f64,
    /// The id, so that they sort as their type does (see [`Nearest::sortable`]).
    id: u64,
}

impl Eq for Found {}

impl Ord for Found {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key.total_cmp(&other.key).then(self.id.cmp(&other.id))
    }
}

impl PartialOrd for Found {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// The k nearest so far.
struct Nearest {
    id: DataType,
    fields: Fields,
    device: Device,
    sites: Vec<Site>,
    asked: Option<Asked>,
    search: Option<Search>,
    /// The farthest on top.
    held: BinaryHeap<Found>,
    seen: usize,
    /// What waits for the GPU.
    pending: Pending,
    codes: Vec<u8>,
}

impl std::fmt::Debug for Nearest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Nearest").field("asked", &self.asked).field("held", &self.held.len()).finish_non_exhaustive()
    }
}

impl Nearest {
    /// Takes the query of the first batch, or of the plan; every other must be the same.
    fn ask(&mut self, asked: Asked) -> Result<()> {
        if let Some(before) = &self.asked {
            if *before == asked {
                return Ok(());
            }
            let site = self.sites.get(2).unwrap_or(&self.sites[0]);
            return Err(site.bad(None, "another query, k or metric than before", "the same for all rows"));
        }
        self.search = Some(match &asked {
            Asked::Hamming { query, .. } => Search::Hamming(query.clone()),
            Asked::Knn { query, metric, .. } => {
                let elements: Vec<f32> = query.iter().map(|&bits| f32::from_bits(bits)).collect();
                let metric = metric_of(metric).unwrap_or_default();
                let site =
                    self.sites.get(2).cloned().unwrap_or(Site { column: "query".into(), ..self.sites[0].clone() });
                let Some(query) = Query::new(&elements, metric) else {
                    return Err(site.bad(
                        None,
                        "NaN, infinite or (for the cosine) all zero",
                        "a query with finite elements",
                    ));
                };
                Search::Knn(query, metric, elements)
            }
        });
        self.asked = Some(asked);
        Ok(())
    }

    fn k(&self) -> usize {
        self.asked.as_ref().map_or(0, Asked::k)
    }

    fn add(&mut self, found: Found) {
        if self.held.len() < self.k() {
            self.held.push(found);
        } else if let Some(mut farthest) = self.held.peek_mut()
            && found < *farthest
        {
            *farthest = found;
        }
    }

    /// An id as a u64 with the same order.
    fn sortable(&self, ids: &ArrayRef, row: usize) -> u64 {
        match self.id {
            DataType::UInt64 => ids.as_primitive::<UInt64Type>().value(row),
            _ => (ids.as_primitive::<Int64Type>().value(row) as u64) ^ (1 << 63),
        }
    }

    fn ids(&self, found: &[Found]) -> ArrayRef {
        match self.id {
            DataType::UInt64 => Arc::new(UInt64Array::from_iter_values(found.iter().map(|found| found.id))),
            _ => Arc::new(Int64Array::from_iter_values(found.iter().map(|found| (found.id ^ (1 << 63)) as i64))),
        }
    }

    fn update_codes(&mut self, ids: &ArrayRef, codes: &ArrayRef) -> Result<()> {
        let Some(Search::Hamming(query)) = &self.search else { unreachable!("it was asked") };
        let query = query.clone();
        let rows = CodeRows::new(&self.sites[1], codes, Some((query.len(), "as the query has")))?;
        if !self.device.is_cpu() {
            for row in (0..ids.len()).filter(|&row| ids.is_valid(row)) {
                if let Some(code) = rows.get(row) {
                    self.codes.extend_from_slice(code);
                    self.pending.ids.push(self.sortable(ids, row));
                }
            }
            return if self.pending.ids.len() >= ENOUGH_CODES { self.flush() } else { Ok(()) };
        }
        // The distances first, in one loop over bytes that lie side by side where no code is NULL; then those that are near enough.
        let distances: Vec<u32> = match codes.as_fixed_size_binary_opt() {
            Some(codes) if codes.null_count() == 0 => {
                let bytes = &codes.value_data()[..codes.len() * query.len()];
                bytes.chunks_exact(query.len()).map(|code| hamming(code, &query)).collect()
            }
            _ => (0..ids.len()).map(|row| rows.get(row).map_or(u32::MAX, |code| hamming(code, &query))).collect(),
        };
        for (row, &distance) in distances.iter().enumerate() {
            if f64::from(distance) <= self.threshold() && distance != u32::MAX && ids.is_valid(row) {
                self.add(Found { key: distance.into(), id: self.sortable(ids, row) });
            }
        }
        Ok(())
    }

    /// What no key that is among the k smallest is above.
    fn threshold(&self) -> f64 {
        if self.held.len() < self.k() {
            f64::INFINITY
        } else {
            self.held.peek().map_or(f64::INFINITY, |found| found.key)
        }
    }

    fn update_rows(&mut self, ids: &ArrayRef, rows: &ArrayRef) -> Result<()> {
        let Some(Search::Knn(query, metric, _)) = &self.search else { unreachable!("it was asked") };
        let site = self.sites[1].clone();
        let rows = Embeddings::new(&site, rows, Some((query.dim(), "as the query has")), ids.nulls())?;
        if !self.device.is_cpu() {
            let ids: Vec<u64> = (0..rows.len()).map(|at| self.sortable(ids, rows.row(at))).collect();
            self.pending.push(&rows);
            self.pending.ids.extend(ids);
            return if self.pending.is_enough() { self.flush() } else { Ok(()) };
        }
        let keys: Vec<Option<f64>> = match &rows.values {
            Values::F16(values) => values.chunks_exact(rows.dim.max(1)).map(|row| query.key(row)).collect(),
            Values::F32(values) => values.chunks_exact(rows.dim.max(1)).map(|row| query.key(row)).collect(),
            Values::F64(_) => unreachable!("coerced to f32"),
        };
        let cosine = *metric == Metric::Cosine;
        for (at, key) in keys.into_iter().enumerate() {
            let row = rows.row(at);
            let Some(key) = key else {
                let id = self.shown(self.sortable(ids, row));
                let what = if cosine { "a NaN, infinite or only zeros" } else { "a NaN or infinite element" };
                return Err(site.bad(Some(row), format!("the row with id {id} has {what}"), "finite elements"));
            };
            if key <= self.threshold() {
                self.add(Found { key, id: self.sortable(ids, row) });
            }
        }
        Ok(())
    }

    /// Searches what waits for the GPU.
    fn flush(&mut self) -> Result<()> {
        let pending = std::mem::take(&mut self.pending);
        let codes = std::mem::take(&mut self.codes);
        if pending.ids.is_empty() {
            return Ok(());
        }
        // The library gives ties to the lower row: rows go there in the order of their ids.
        let mut order: Vec<u32> = (0..pending.ids.len() as u32).collect();
        order.sort_by_key(|&row| pending.ids[row as usize]);
        let k = self.k().min(order.len());
        let id = |row: u32| pending.ids[order[row as usize] as usize];
        let found: Vec<Found> = match &self.search {
            Some(Search::Hamming(query)) => {
                let near = || -> std::result::Result<_, Error> {
                    let sorted = sorted(&codes, query.len(), &order);
                    let codes = Codes::from_bytes(&self.device, &super::column::view(&sorted, query.len()))?;
                    let queries = Codes::from_bytes(&self.device, &super::column::view(query, query.len()))?;
                    let mut index = Index::new(&self.device, codes.bits())?;
                    index.add(&codes)?;
                    let near = index.search(&queries, &SearchOptions::new(k))?;
                    Ok((near.ids.to_array()?, near.distances.to_array()?))
                };
                let (rows, distances) = near().map_err(external)?;
                rows.iter()
                    .zip(&distances)
                    .map(|(&row, &distance)| Found { key: distance.into(), id: id(row) })
                    .collect()
            }
            Some(Search::Knn(query, metric, elements)) => {
                let rows = sorted(&pending.singles(), query.dim(), &order);
                let near = || {
                    let base = self.device.tensor(&super::column::view(&rows, query.dim()))?;
                    let queries = self.device.tensor(&super::column::view(elements, query.dim()))?;
                    knn::search(&base, &queries, k, *metric)
                };
                let near = near().map_err(|error| match error {
                    Error::Domain { index, expected, found, .. } => {
                        // of elements, but for rows of zeros
                        let row = if expected.contains("direction") { index } else { index / query.dim() };
                        let found = format!("the row with id {} has {found}", self.shown(id(row as u32)));
                        self.sites[1].bad(None, found, expected)
                    }
                    error => external(error),
                })?;
                // by the keys themselves: distances that round to one are not equal
                let key = |row: u32| query.key(&rows[row as usize * query.dim()..][..query.dim()]);
                near.ids.iter().filter_map(|&row| key(row).map(|key| Found { key, id: id(row) })).collect()
            }
            None => Vec::new(),
        };
        found.into_iter().for_each(|found| self.add(found));
        Ok(())
    }

    /// An id as it was.
    fn shown(&self, id: u64) -> String {
        if self.id == DataType::UInt64 { id.to_string() } else { ((id ^ (1 << 63)) as i64).to_string() }
    }
}

/// Rows of `width` elements in another order.
fn sorted<T: Copy>(rows: &[T], width: usize, order: &[u32]) -> Vec<T> {
    order.iter().flat_map(|&row| rows[row as usize * width..][..width].iter().copied()).collect()
}

impl Accumulator for Nearest {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let [ids, rows, rest @ ..] = values else { unreachable!("id and row are there") };
        self.sites.iter_mut().for_each(|site| site.first = self.seen);
        self.seen += ids.len();
        if ids.is_empty() {
            return Ok(());
        }
        if !rest.is_empty() {
            let constants = rest
                .iter()
                .zip(&self.sites[2..])
                .map(|(array, site)| constant(site, &ColumnarValue::Array(array.clone())));
            let asked = Asked::of(&self.sites, &constants.collect::<Result<Vec<_>>>()?)?;
            self.ask(asked)?;
        }
        match &self.search {
            Some(Search::Hamming(_)) => self.update_codes(ids, rows),
            _ => self.update_rows(ids, rows),
        }
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        self.flush()?;
        // kept, as a window asks again when more rows have come
        let found = self.held.clone().into_sorted_vec();
        let distances: ArrayRef = match &self.search {
            Some(Search::Knn(query, ..)) => {
                Arc::new(Float32Array::from_iter_values(found.iter().map(|found| query.distance(found.key))))
            }
            Some(Search::Hamming(_)) => {
                Arc::new(UInt32Array::from_iter_values(found.iter().map(|found| found.key as u32)))
            }
            None => datafusion::arrow::array::new_empty_array(self.fields[1].data_type()),
        };
        let neighbours = StructArray::try_new(self.fields.clone(), vec![self.ids(&found), distances], None)?;
        Ok(list(Arc::new(neighbours)))
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        self.flush()?;
        let found: Vec<Found> = self.held.drain().collect();
        let keys = Float64Array::from_iter_values(found.iter().map(|found| found.key));
        let asked = self.asked.as_ref().map(|asked| serde_json::to_string(asked).unwrap_or_default());
        Ok(vec![list(self.ids(&found)), list(Arc::new(keys)), ScalarValue::Utf8(asked)])
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        let (ids, keys, asked) = (states[0].as_list::<i32>(), states[1].as_list::<i32>(), states[2].as_string::<i32>());
        for state in 0..ids.len() {
            if asked.is_null(state) {
                continue;
            }
            let asked: Asked = serde_json::from_str(asked.value(state))
                .map_err(|error| external(Error::Format { what: "top_k state", reason: error.to_string() }))?;
            self.ask(asked)?;
            let (ids, keys) = (ids.value(state), keys.value(state));
            for (row, &key) in keys.as_primitive::<Float64Type>().values().iter().enumerate() {
                let id = self.sortable(&ids, row);
                self.add(Found { key, id });
            }
        }
        Ok(())
    }

    fn size(&self) -> usize {
        size_of::<Self>() + self.held.len() * size_of::<Found>() + self.codes.len() + self.pending.bytes()
    }
}

/// A list of the elements of `array`.
fn list(array: ArrayRef) -> ScalarValue {
    let field = Arc::new(Field::new("item", array.data_type().clone(), true));
    let offsets = datafusion::arrow::buffer::OffsetBuffer::from_lengths([array.len()]);
    ScalarValue::List(Arc::new(ListArray::new(field, offsets, array, None)))
}
