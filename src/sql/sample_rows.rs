//! A random sample of rows, the same whatever the partitions: those whose hashes are smallest. For the seeds of a mixture.

use std::collections::BTreeMap;
use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray};
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, Float64Type};
use datafusion::error::Result;
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::{AggregateOrderSensitivity, format_state_name};
use datafusion::logical_expr::{Accumulator, AggregateUDFImpl, Signature, Volatility};
use datafusion::scalar::ScalarValue;

use super::column::{Embeddings, Site, Values, external};
use super::mixture_step::coerce;
use crate::Error;

pub(crate) const NAME: &str = "orthant_sample_rows";

/// Not for users: [`fit_mixture`](super::fit_mixture) calls it.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct SampleRows {
    signature: Signature,
    count: u64,
    seed: u64,
}

impl SampleRows {
    pub(crate) fn new(count: u64, seed: u64) -> Self {
        Self { signature: Signature::user_defined(Volatility::Immutable), count, seed }
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        bytemuck::cast_slice(&[self.count, self.seed]).to_vec()
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self> {
        match bytes.as_chunks::<8>() {
            ([count, seed], []) => Ok(Self::new(u64::from_le_bytes(*count), u64::from_le_bytes(*seed))),
            _ => Err(external(Error::Format { what: NAME, reason: "not two numbers".into() })),
        }
    }
}

/// 64 bits that depend on every bit of a row and of the seed, the same on every machine: words are multiplied and folded, as in wyhash.
pub(crate) fn hash(seed: u64, row: &[f32]) -> u64 {
    let fold = |a: u64, b: u64| {
        let product = u128::from(a) * u128::from(b);
        (product as u64) ^ (product >> 64) as u64
    };
    let mixed = row.iter().fold(seed ^ 0x9e37_79b9_7f4a_7c15, |state, value| {
        fold(state ^ u64::from(value.to_bits()) ^ 0xa076_1d64_78bd_642f, 0xe703_7ed1_a0b4_28db)
    });
    fold(mixed ^ row.len() as u64, 0x8ebc_6af0_9c88_c6e3)
}

/// What the sample says.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Sample {
    pub(crate) dim: usize,
    /// Rows that are not NULL.
    pub(crate) rows: u64,
    /// Those of positive weight.
    pub(crate) positive: u64,
    pub(crate) skipped: u64,
    /// Sum of the weights.
    pub(crate) weight: f64,
    /// Rows drawn, (n, dim), and their weights.
    pub(crate) drawn: Vec<f32>,
    pub(crate) weights: Vec<f64>,
}

impl Sample {
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let head =
            [self.dim as u64, self.rows, self.positive, self.skipped, self.weight.to_bits(), self.weights.len() as u64];
        let mut bytes = bytemuck::cast_slice::<u64, u8>(&head).to_vec();
        bytes.extend_from_slice(bytemuck::cast_slice(&self.weights));
        bytes.extend_from_slice(bytemuck::cast_slice(&self.drawn));
        bytes
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let broken = || external(Error::Format { what: NAME, reason: "a state of another length than it says".into() });
        let head: Vec<u64> = bytes.as_chunks::<8>().0.iter().take(6).map(|word| u64::from_le_bytes(*word)).collect();
        let &[dim, rows, positive, skipped, weight, drawn] = head.as_slice() else { return Err(broken()) };
        let (dim, drawn) = (dim as usize, drawn as usize);
        let length = drawn.checked_mul(dim).and_then(|n| n.checked_mul(4)?.checked_add(drawn.checked_mul(8)?));
        if length.and_then(|length| length.checked_add(48)) != Some(bytes.len()) {
            return Err(broken());
        }
        let (weights, rows_of) = bytes[48..].split_at(8 * drawn);
        Ok(Self {
            dim,
            rows,
            positive,
            skipped,
            weight: f64::from_bits(weight),
            weights: weights.as_chunks::<8>().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect(),
            drawn: rows_of.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
        })
    }
}

impl AggregateUDFImpl for SampleRows {
    fn name(&self) -> &str {
        NAME
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, kinds: &[DataType]) -> Result<Vec<DataType>> {
        coerce(kinds)
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Binary)
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        Ok(vec![Arc::new(Field::new(format_state_name(args.name, "sample"), DataType::Binary, true))])
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        AggregateOrderSensitivity::Insensitive
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        let sites = args.expr_fields.iter().map(|field| Site::new("fit_mixture", field.name())).collect();
        let (count, seed) = (self.count as usize, self.seed);
        Ok(Box::new(Drawing { sites, count, seed, seen: 0, sample: Sample::default(), held: BTreeMap::new() }))
    }
}

/// The rows with the smallest hashes so far.
#[derive(Debug)]
struct Drawing {
    sites: Vec<Site>,
    count: usize,
    seed: u64,
    seen: usize,
    /// All but the rows themselves.
    sample: Sample,
    /// By hash and bits: row and weight, and how often it came.
    held: BTreeMap<(u64, Vec<u32>), (f64, usize)>,
}

impl Drawing {
    fn add(&mut self, row: &[f32], weight: f64, times: usize) {
        let hash = hash(self.seed, row);
        if self.held.len() >= self.count && self.held.last_key_value().is_some_and(|((last, _), _)| *last < hash) {
            return;
        }
        let bits = row.iter().map(|value| value.to_bits()).collect();
        let held = self.held.entry((hash, bits)).or_insert((0.0, 0));
        *held = (held.0 + weight, held.1 + times);
        while self.held.len() > self.count {
            self.held.pop_last();
        }
    }

    /// The sample with its rows; a row that came several times is one of their weight.
    fn sample(&self) -> Sample {
        let drawn = self.held.keys().flat_map(|(_, bits)| bits.iter().map(|&bits| f32::from_bits(bits))).collect();
        Sample { drawn, weights: self.held.values().map(|(weight, _)| *weight).collect(), ..self.sample.clone() }
    }
}

impl Accumulator for Drawing {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.sites.iter_mut().for_each(|site| site.first = self.seen);
        self.seen += values[0].len();
        let weights = values.get(1).map(|weights| weights.as_primitive::<Float64Type>());
        let known = (self.sample.dim > 0).then_some((self.sample.dim, "as rows before have"));
        let rows = Embeddings::new(&self.sites[0], &values[0], known, weights.and_then(|weights| weights.nulls()))?;
        self.sample.skipped += (rows.batch - rows.len()) as u64;
        if rows.len() == 0 {
            return Ok(());
        }
        self.sample.dim = rows.dim;
        self.sample.rows += rows.len() as u64;
        let singles = singles(&rows);
        for (at, row) in singles.chunks_exact(rows.dim.max(1)).enumerate() {
            let weight = weights.map_or(1.0, |weights| weights.value(rows.row(at)));
            if !(weight.is_finite() && weight >= 0.0) {
                let site = &self.sites[1];
                return Err(site.bad(Some(rows.row(at)), weight.to_string(), "finite and not negative"));
            }
            if weight > 0.0 {
                let seen = crate::vmf::inverse_norm("fit_mixture", row, at);
                seen.map_err(|error| self.sites[0].in_column(error, &rows))?;
                self.sample.weight += weight;
                self.sample.positive += 1;
                self.add(row, weight, 1);
            }
        }
        Ok(())
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        Ok(ScalarValue::Binary(Some(self.sample().to_bytes())))
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![self.evaluate()?])
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        let states = states[0].as_binary::<i32>();
        for state in (0..states.len()).filter(|&state| states.is_valid(state)) {
            let other = Sample::from_bytes(states.value(state))?;
            if other.dim == 0 {
                self.sample.skipped += other.skipped;
                continue;
            }
            if self.sample.dim != 0 && self.sample.dim != other.dim {
                let found = format!("rows of {} elements in one part of the query", other.dim);
                return Err(self.sites[0].bad(None, found, format!("{} as in another", self.sample.dim)));
            }
            let own = &mut self.sample;
            own.dim = other.dim;
            own.rows += other.rows;
            own.positive += other.positive;
            own.skipped += other.skipped;
            own.weight += other.weight;
            for (row, &weight) in other.drawn.chunks_exact(other.dim).zip(&other.weights) {
                self.add(row, weight, 1);
            }
        }
        Ok(())
    }

    fn size(&self) -> usize {
        size_of::<Self>() + self.held.len() * (4 * self.sample.dim + 64)
    }
}

/// The rows as f32, which is what mixtures compute in.
pub(crate) fn singles<'a>(rows: &'a Embeddings<'_>) -> std::borrow::Cow<'a, [f32]> {
    match &rows.values {
        Values::F16(values) => values.iter().map(|value| value.to_f32()).collect(),
        Values::F32(values) => std::borrow::Cow::Borrowed(&values[..]),
        Values::F64(values) => values.iter().map(|&value| value as f32).collect(),
    }
}
