//! `vmf_fit(embedding [, weight])`: the maximum-likelihood fit, from sums that merge.

use std::sync::Arc;

use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Float64Array, ListArray, StructArray, UInt64Array,
};
use datafusion::arrow::buffer::{NullBuffer, OffsetBuffer};
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, Fields, Float64Type, UInt64Type};
use datafusion::common::{not_impl_err, plan_err};
use datafusion::error::Result;
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::{AggregateOrderSensitivity, format_state_name};
use datafusion::logical_expr::{Accumulator, AggregateUDFImpl, EmitTo, GroupsAccumulator, Signature, Volatility};
use datafusion::scalar::ScalarValue;
use ndarray::ArrayView1;

use super::OnDevice;
use super::column::{Embeddings, Site, external, with_rows};
use super::pending::{OnGpu, Pending};
use super::scalar::coerce_embedding;
use crate::vmf::{Vmf, VmfStats};
use crate::{Device, Precision};

const NAME: &str = "vmf_fit";

#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct VmfFit {
    device: OnDevice,
    signature: Signature,
}

impl VmfFit {
    pub(crate) fn new(device: &Device) -> Self {
        Self { device: OnDevice(device.clone()), signature: Signature::user_defined(Volatility::Immutable) }
    }
}

fn item() -> FieldRef {
    Arc::new(Field::new("item", DataType::Float64, true))
}

/// The fields of the result.
fn fields() -> Fields {
    Fields::from(vec![
        Field::new("mean_direction", DataType::List(item()), true),
        Field::new("kappa", DataType::Float64, true),
        Field::new("kappa_relative_error", DataType::Float64, true),
        Field::new("resultant_length", DataType::Float64, true),
        Field::new("count", DataType::UInt64, false),
        Field::new("skipped", DataType::UInt64, false),
    ])
}

/// Which columns the arguments are.
fn sites(args: &AccumulatorArgs) -> Vec<Site> {
    args.expr_fields.iter().map(|field| Site::new(NAME, field.name())).collect()
}

impl AggregateUDFImpl for VmfFit {
    fn name(&self) -> &str {
        NAME
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, kinds: &[DataType]) -> Result<Vec<DataType>> {
        let weight = |kind: &DataType| match kind {
            kind if kind.is_numeric() || kind.is_null() => Ok(DataType::Float64),
            other => plan_err!("{NAME}: a weight of type {other}, expected a number"),
        };
        match kinds {
            [rows] => Ok(vec![coerce_embedding(NAME, rows)?]),
            [rows, weights] => Ok(vec![coerce_embedding(NAME, rows)?, weight(weights)?]),
            _ => plan_err!("{NAME} takes an embedding and perhaps a weight, found {} arguments", kinds.len()),
        }
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Struct(fields()))
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        let field = |name, kind| Arc::new(Field::new(format_state_name(args.name, name), kind, true));
        Ok(vec![
            field("count", DataType::UInt64),
            field("skipped", DataType::UInt64),
            field("weight", DataType::Float64),
            field("resultant", DataType::List(item())),
        ])
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        AggregateOrderSensitivity::Insensitive
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        if args.is_distinct {
            return not_impl_err!("{NAME}(DISTINCT ...)");
        }
        let groups = Groups { sites: sites(&args), groups: vec![Group::default()], seen: 0 };
        Ok(Box::new(One { device: self.device.0.clone(), groups, pending: Pending::default() }))
    }

    fn groups_accumulator_supported(&self, args: AccumulatorArgs) -> bool {
        !args.is_distinct
    }

    fn create_groups_accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn GroupsAccumulator>> {
        Ok(Box::new(Groups { sites: sites(&args), groups: Vec::new(), seen: 0 }))
    }
}

/// The state of one group.
#[derive(Debug, Default)]
struct Group {
    /// None before the first row.
    stats: Option<VmfStats>,
    skipped: u64,
}

impl Group {
    /// The statistics, begun where they are not.
    fn stats(&mut self, site: &Site, dim: usize) -> Result<&mut VmfStats> {
        match &mut self.stats {
            Some(stats) => Ok(stats),
            none => {
                let two = "at least 2";
                let stats = VmfStats::new(dim).map_err(|_| site.bad(None, format!("rows of {dim} elements"), two))?;
                Ok(none.insert(stats))
            }
        }
    }

    fn merge(&mut self, site: &Site, other: VmfStats) -> Result<()> {
        match &mut self.stats {
            Some(stats) if stats.dim() != other.dim() => {
                let found = format!("rows of {} elements in one part of the query", other.dim());
                Err(site.bad(None, found, format!("{} as in another", stats.dim())))
            }
            Some(stats) => stats.merge(&other).map_err(external),
            none => {
                *none = Some(other);
                Ok(())
            }
        }
    }
}

/// The states of many groups, and the bookkeeping of one.
#[derive(Debug)]
struct Groups {
    sites: Vec<Site>,
    groups: Vec<Group>,
    /// Rows so far.
    seen: usize,
}

/// A batch: rows that are there, and their weights.
struct Batch<'a> {
    rows: Embeddings<'a>,
    weights: Option<Vec<f64>>,
}

impl Groups {
    /// The rows of a batch that are not NULL; all must have as many elements as those before.
    fn batch<'a>(&mut self, values: &'a [ArrayRef], filter: Option<&BooleanArray>) -> Result<Batch<'a>> {
        self.sites.iter_mut().for_each(|site| site.first = self.seen);
        self.seen += values[0].len();
        let known =
            self.groups.iter().find_map(|group| group.stats.as_ref()).map(|stats| (stats.dim(), "as rows before have"));
        let weights = values.get(1).map(|weights| weights.as_primitive::<Float64Type>());
        let kept = filter.map(|filter| {
            NullBuffer::from_iter((0..filter.len()).map(|row| filter.is_valid(row) && filter.value(row)))
        });
        let also = NullBuffer::union(weights.and_then(|weights| weights.nulls()), kept.as_ref());
        let rows = Embeddings::new(&self.sites[0], &values[0], known, also.as_ref())?;
        let weights: Option<Vec<f64>> =
            weights.map(|weights| (0..rows.len()).map(|at| weights.value(rows.row(at))).collect());
        if let Some(weights) = &weights
            && let Some(at) = weights.iter().position(|weight| !(weight.is_finite() && *weight >= 0.0))
        {
            let found = weights[at].to_string();
            return Err(self.sites[1].bad(Some(rows.row(at)), found, "finite and not negative"));
        }
        Ok(Batch { rows, weights })
    }

    fn states(&self, groups: &[Group]) -> Result<Vec<ArrayRef>> {
        let stats = || groups.iter().map(|group| group.stats.as_ref());
        let lengths = stats().map(|stats| stats.map_or(0, VmfStats::dim));
        let sums: Vec<f64> = stats().flatten().flat_map(|stats| stats.resultant().to_vec()).collect();
        let valid = NullBuffer::from_iter(stats().map(|stats| stats.is_some()));
        let sums = ListArray::try_new(
            item(),
            OffsetBuffer::from_lengths(lengths),
            Arc::new(Float64Array::from(sums)),
            Some(valid),
        )?;
        Ok(vec![
            Arc::new(UInt64Array::from_iter_values(stats().map(|stats| stats.map_or(0, VmfStats::count)))),
            Arc::new(UInt64Array::from_iter_values(groups.iter().map(|group| group.skipped))),
            Arc::new(Float64Array::from_iter_values(stats().map(|stats| stats.map_or(0.0, VmfStats::weight)))),
            Arc::new(sums),
        ])
    }

    /// Adds states, each to the group that `group` says.
    fn merge(&mut self, states: &[ArrayRef], group: impl Fn(usize) -> usize) -> Result<()> {
        let counts = states[0].as_primitive::<UInt64Type>();
        let skipped = states[1].as_primitive::<UInt64Type>();
        let weights = states[2].as_primitive::<Float64Type>();
        let sums = states[3].as_list::<i32>();
        for state in 0..counts.len() {
            let into = &mut self.groups[group(state)];
            into.skipped += skipped.value(state);
            if sums.is_valid(state) {
                let resultant = sums.value(state).as_primitive::<Float64Type>().values().to_vec();
                let stats =
                    VmfStats::of_parts(counts.value(state), weights.value(state), resultant).map_err(external)?;
                into.merge(&self.sites[0], stats)?;
            }
        }
        Ok(())
    }

    fn results(groups: &[Group]) -> Result<ArrayRef> {
        // of rows whose weights are all 0 there is no fit either
        let fit =
            |group: &Group| group.stats.as_ref().filter(|stats| stats.weight() > 0.0).map(Vmf::from_stats).transpose();
        let fits = groups.iter().map(fit).collect::<std::result::Result<Vec<_>, _>>().map_err(external)?;
        let of = |value: fn(&Vmf) -> f64| -> ArrayRef {
            Arc::new(fits.iter().map(|fit| fit.as_ref().map(value)).collect::<Float64Array>())
        };
        let means: Vec<f64> = fits.iter().flatten().flat_map(|fit| fit.mean_direction().to_vec()).collect();
        let lengths = fits.iter().map(|fit| fit.as_ref().map_or(0, Vmf::dim));
        let valid = NullBuffer::from_iter(fits.iter().map(Option::is_some));
        let means: ArrayRef = Arc::new(ListArray::try_new(
            item(),
            OffsetBuffer::from_lengths(lengths),
            Arc::new(Float64Array::from(means)),
            Some(valid),
        )?);
        let counts = groups.iter().map(|group| group.stats.as_ref().map_or(0, VmfStats::count));
        let columns = vec![
            means,
            of(Vmf::kappa),
            of(Vmf::kappa_relative_error),
            of(Vmf::resultant_length),
            Arc::new(UInt64Array::from_iter_values(counts)),
            Arc::new(UInt64Array::from_iter_values(groups.iter().map(|group| group.skipped))),
        ];
        Ok(Arc::new(StructArray::try_new(fields(), columns, None)?))
    }

    fn bytes(&self) -> usize {
        let dim = self.groups.iter().find_map(|group| group.stats.as_ref()).map_or(0, VmfStats::dim);
        self.groups.len() * (8 * dim + size_of::<Group>())
    }

    fn grow(&mut self, groups: usize) {
        self.groups.resize_with(groups.max(self.groups.len()), Group::default);
    }
}

impl GroupsAccumulator for Groups {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        groups: &[usize],
        filter: Option<&BooleanArray>,
        total: usize,
    ) -> Result<()> {
        self.grow(total);
        let Batch { rows, weights } = self.batch(values, filter)?;
        // The rows of each group, in their order.
        let mut chosen: Vec<(usize, u32)> = (0..rows.len()).map(|at| (groups[rows.row(at)], at as u32)).collect();
        chosen.sort_unstable();
        let numbers: Vec<u32> = chosen.iter().map(|(_, at)| *at).collect();
        let mut first = 0;
        for run in chosen.chunk_by(|a, b| a.0 == b.0) {
            let numbers = &numbers[first..first + run.len()];
            first += run.len();
            let stats = self.groups[run[0].0].stats(&self.sites[0], rows.dim)?;
            let added = with_rows!(rows, |view| {
                stats.push_chosen(view.to_slice().unwrap_or(&[]), weights.as_deref(), numbers)
            });
            added.map_err(|error| self.sites[0].in_column(error, &rows))?;
        }
        if let Some(present) = &rows.present {
            let mut there = present.iter().copied().peekable();
            for (row, &group) in groups.iter().enumerate() {
                let left_out = filter.is_some_and(|filter| filter.is_null(row) || !filter.value(row));
                if there.next_if_eq(&(row as u32)).is_none() && !left_out {
                    self.groups[group].skipped += 1;
                }
            }
        }
        Ok(())
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        Self::results(&emit_to.take_needed(&mut self.groups))
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        let groups = emit_to.take_needed(&mut self.groups);
        self.states(&groups)
    }

    fn merge_batch(&mut self, states: &[ArrayRef], groups: &[usize], total: usize) -> Result<()> {
        self.grow(total);
        self.merge(states, |state| groups[state])
    }

    fn convert_to_state(&self, values: &[ArrayRef], filter: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        let count = values[0].len();
        let mut alone = Groups { sites: self.sites.clone(), groups: Vec::new(), seen: self.seen };
        let groups: Vec<usize> = (0..count).collect();
        alone.update_batch(values, &groups, filter, count)?;
        alone.states(&alone.groups)
    }

    fn size(&self) -> usize {
        self.bytes()
    }
}

/// One group, which takes whole batches.
#[derive(Debug)]
struct One {
    device: Device,
    groups: Groups,
    pending: Pending,
}

impl One {
    /// Adds what waits for the GPU.
    fn flush(&mut self) -> Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let pending = std::mem::take(&mut self.pending);
        let weights = (!pending.weights.is_empty()).then(|| ArrayView1::from(&pending.weights[..]));
        let stats = match pending.to_device(&self.device).map_err(external)? {
            OnGpu::F16(rows) => VmfStats::from_rows(&rows, weights, Precision::Extended),
            OnGpu::F32(rows) => VmfStats::from_rows(&rows, weights, Precision::Extended),
            OnGpu::F64(rows) => VmfStats::from_rows(&rows, weights, Precision::Extended),
        };
        let site = &self.groups.sites[0];
        let stats = stats.map_err(|error| match error {
            crate::Error::Domain { index, expected, found, .. } => {
                let found = format!("row {index} of those sent to the GPU together is {found}");
                site.bad(None, found, expected)
            }
            error => external(error),
        })?;
        self.groups.groups[0].merge(site, stats)
    }
}

impl Accumulator for One {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let Batch { rows, weights } = self.groups.batch(values, None)?;
        self.groups.groups[0].skipped += (rows.batch - rows.len()) as u64;
        if rows.len() == 0 {
            return Ok(());
        }
        let site = self.groups.sites[0].clone();
        if self.device.is_cpu() {
            let stats = self.groups.groups[0].stats(&site, rows.dim)?;
            let added = with_rows!(rows, |view| match &weights {
                None => stats.push(view),
                Some(weights) => stats.push_weighted(view, ArrayView1::from(&weights[..])),
            });
            return added.map_err(|error| site.in_column(error, &rows));
        }
        // Begun here, so that the length of rows is known from now on.
        self.groups.groups[0].stats(&site, rows.dim)?;
        self.pending.push(&rows);
        self.pending.weights.extend(weights.into_iter().flatten());
        if self.pending.is_enough() { self.flush() } else { Ok(()) }
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        self.flush()?;
        ScalarValue::try_from_array(&Groups::results(&self.groups.groups)?, 0)
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        self.flush()?;
        let states = self.groups.states(&self.groups.groups)?;
        states.iter().map(|state| ScalarValue::try_from_array(state, 0)).collect()
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.groups.merge(states, |_| 0)
    }

    fn size(&self) -> usize {
        size_of::<Self>() + self.groups.bytes() + self.pending.bytes()
    }
}
