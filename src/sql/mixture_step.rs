//! The E-step of a mixture and the sums of its M-step, as an aggregate whose states merge.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray};
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, Float64Type};
use datafusion::common::plan_err;
use datafusion::error::Result;
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::{AggregateOrderSensitivity, format_state_name};
use datafusion::logical_expr::{Accumulator, AggregateUDFImpl, Signature, Volatility};
use datafusion::scalar::ScalarValue;

use super::OnDevice;
use super::column::{Embeddings, Site, external};
use super::sample_rows::{hash, singles};
use super::scalar::coerce_embedding;
use crate::gpu::block_on;
use crate::vmf::Selection;
use crate::vmf::step::{Model, Sums};
use crate::{Device, Error};

pub(crate) const NAME: &str = "orthant_mixture_step";

/// Rows to send to a GPU at a time: some 16 MB.
const ENOUGH: usize = 4 << 20;

/// Embeddings and perhaps weights.
pub(crate) fn coerce(kinds: &[DataType]) -> Result<Vec<DataType>> {
    match kinds {
        [rows] => Ok(vec![coerce_embedding("fit_mixture", rows)?]),
        [rows, weights] if weights.is_numeric() => Ok(vec![coerce_embedding("fit_mixture", rows)?, DataType::Float64]),
        _ => plan_err!("fit_mixture takes a query for embeddings and perhaps weights, found {kinds:?}"),
    }
}

/// Not for users: [`fit_mixture`](super::fit_mixture) calls it, once an iteration.
#[derive(Debug)]
pub(crate) struct MixtureStep {
    signature: Signature,
    device: OnDevice,
    part: Selection,
    model: Arc<Model>,
    /// The model in bytes, by which plans compare.
    bytes: Vec<u8>,
}

impl PartialEq for MixtureStep {
    fn eq(&self, other: &Self) -> bool {
        (&self.device, &self.part, &self.bytes) == (&other.device, &other.part, &other.bytes)
    }
}

impl Eq for MixtureStep {}

impl Hash for MixtureStep {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.part, &self.bytes).hash(state);
    }
}

impl MixtureStep {
    pub(crate) fn new(device: &Device, part: Selection, model: Model) -> Self {
        let bytes = model.to_bytes();
        let signature = Signature::user_defined(Volatility::Immutable);
        Self { signature, device: OnDevice(device.clone()), part, model: Arc::new(model), bytes }
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = bytemuck::cast_slice::<u64, u8>(&[self.part.batch, self.part.batches, self.part.seed]).to_vec();
        bytes.extend_from_slice(&self.bytes);
        bytes
    }

    pub(crate) fn from_bytes(device: &Device, bytes: &[u8]) -> Result<Self> {
        let broken = || external(Error::Format { what: NAME, reason: "too short".into() });
        let (head, rest) = bytes.split_at_checked(24).ok_or_else(broken)?;
        let head: Vec<u64> = head.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
        let part = Selection { batch: head[0], batches: head[1].max(1), seed: head[2] };
        Ok(Self::new(device, part, Model::from_bytes(rest).map_err(external)?))
    }
}

impl AggregateUDFImpl for MixtureStep {
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
        Ok(vec![Arc::new(Field::new(format_state_name(args.name, "sums"), DataType::Binary, true))])
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        AggregateOrderSensitivity::Insensitive
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        let sites = args.expr_fields.iter().map(|field| Site::new("fit_mixture", field.name())).collect();
        Ok(Box::new(Step {
            sites,
            device: self.device.0.clone(),
            part: self.part,
            sums: Sums::new(&self.model),
            model: self.model.clone(),
            seen: 0,
            rows: Vec::new(),
            weights: Vec::new(),
        }))
    }
}

/// The sums so far.
#[derive(Debug)]
struct Step {
    sites: Vec<Site>,
    device: Device,
    part: Selection,
    model: Arc<Model>,
    sums: Sums,
    seen: usize,
    /// What waits for the GPU.
    rows: Vec<f32>,
    weights: Vec<f64>,
}

impl Step {
    fn flush(&mut self) -> Result<()> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let rows = std::mem::take(&mut self.rows);
        let weights = std::mem::take(&mut self.weights);
        let weights = (!weights.is_empty()).then_some(&weights[..]);
        let view = super::column::view(&rows, self.model.dim());
        block_on(self.sums.add_on_gpu(&self.device, &self.model, view, weights)).map_err(external)
    }
}

impl Accumulator for Step {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.sites.iter_mut().for_each(|site| site.first = self.seen);
        self.seen += values[0].len();
        let weights = values.get(1).map(|weights| weights.as_primitive::<Float64Type>());
        let known = Some((self.model.dim(), "as the model has"));
        let rows = Embeddings::new(&self.sites[0], &values[0], known, weights.and_then(|weights| weights.nulls()))?;
        let dim = self.model.dim();
        let mut elements = singles(&rows);
        let mut weights: Option<Vec<f64>> =
            weights.map(|weights| (0..rows.len()).map(|at| weights.value(rows.row(at)) / self.model.unit).collect());
        if self.part.batches > 1 {
            // The rows of this batch; where an error is about one of them, its number is among them.
            let Selection { batch, batches, seed } = self.part;
            let inside: Vec<bool> = elements.chunks_exact(dim).map(|row| hash(seed, row) % batches == batch).collect();
            let kept = elements.chunks_exact(dim).zip(&inside).filter(|(_, inside)| **inside);
            elements = kept.flat_map(|(row, _)| row.iter().copied()).collect();
            if let Some(weights) = &mut weights {
                let mut inside = inside.iter();
                weights.retain(|_| inside.next().copied().unwrap_or(false));
            }
        }
        if elements.is_empty() {
            return Ok(());
        }
        if self.device.is_cpu() {
            let view = super::column::view(&elements, dim);
            let added = self.sums.add(&self.model, &view, weights.as_deref());
            return added.map_err(|error| self.sites[0].in_column(error, &rows));
        }
        self.rows.extend_from_slice(&elements);
        self.weights.extend(weights.into_iter().flatten());
        if self.rows.len() >= ENOUGH { self.flush() } else { Ok(()) }
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        self.flush()?;
        Ok(ScalarValue::Binary(Some(self.sums.to_bytes())))
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![self.evaluate()?])
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        let states = states[0].as_binary::<i32>();
        for state in (0..states.len()).filter(|&state| states.is_valid(state)) {
            self.sums.merge(Sums::from_bytes(&self.model, states.value(state)).map_err(external)?);
        }
        Ok(())
    }

    fn size(&self) -> usize {
        size_of::<Self>() + 3 * self.sums.bytes() + 4 * self.rows.len() + 8 * self.weights.len()
    }
}
