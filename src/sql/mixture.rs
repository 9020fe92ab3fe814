//! [`fit_mixture`]: EM over a query, each iteration one aggregate.

use std::path::PathBuf;

use datafusion::arrow::array::{Array, AsArray};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::{AggregateUDF, AggregateUDFImpl, Expr};
use datafusion::prelude::{DataFrame, SessionContext};

use super::column::{Site, external};
use super::mixture_step::{MixtureStep, NAME};
use super::sample_rows::{Sample, SampleRows};
use crate::vmf::step::Model;
use crate::vmf::{Fit, MixtureOptions, OverBatches, Selection, VmfMixture};
use crate::{Device, Error};

/// How [`fit_mixture`] fits. The defaults are those of [`SqlMixtureOptions::new`].
#[derive(Clone, Debug)]
pub struct SqlMixtureOptions {
    mixture: MixtureOptions,
    device: Device,
    checkpoint: Option<PathBuf>,
    resume: bool,
}

impl SqlMixtureOptions {
    /// As `mixture` says, on the CPU, without a checkpoint. [`MixtureOptions::batch`] samples: rows fall into batches by their hashes.
    pub fn new(mixture: MixtureOptions) -> Self {
        Self { mixture, device: Device::Cpu, checkpoint: None, resume: false }
    }

    /// Where partitions of this process compute. (Executors of a cluster have devices of their own.) Default: the CPU.
    pub fn device(mut self, device: Device) -> Self {
        self.device = device;
        self
    }

    /// Save the model to that file after every iteration, as [`VmfMixture::save`] does: whole, or as it was before. With one start only.
    pub fn checkpoint(mut self, path: impl Into<PathBuf>) -> Self {
        self.checkpoint = Some(path.into());
        self
    }

    /// Go on from the checkpoint where there is one: its iterations count, and without mini-batches the fit comes to what it would have come to. Default: no.
    pub fn resume(mut self, resume: bool) -> Self {
        self.resume = resume;
        self
    }
}

/// What [`fit_mixture`] found.
#[derive(Clone, Debug)]
pub struct FittedMixture {
    /// The model.
    pub mixture: VmfMixture,
    /// Rows it was fitted to.
    pub rows: u64,
    /// Rows that were NULL.
    pub skipped: u64,
}

/// Fits a mixture to what `query` returns, wherever `ctx` runs it: a column of embeddings and, if there is a second, of weights.
///
/// One pass counts the rows and draws a sample of them, the same whatever the partitions (64 rows a component, at least 16384, at most 64 MB), from which seeds are
/// chosen as [`VmfMixture::fit`] chooses them. Then every iteration is one aggregate over the query, with the model in its plan, so the query is run
/// anew each time: what is costly in it belongs in a table. The sums of an iteration are f32 within 4096 rows of a partition and f64 beyond, so kappas
/// differ with the partitions by about 1e-6 of themselves.
///
/// # Errors
/// [`Error::Column`] names the column and row of a row of another length, all zeros or not finite, or a weight that is negative; [`Error::Argument`] for options
/// that make no sense, more components than rows among them; [`Error::Format`] for a checkpoint of another shape; what the query fails with. A checkpoint
/// that was saved stays.
pub async fn fit_mixture(ctx: &SessionContext, query: &str, options: &SqlMixtureOptions) -> Result<FittedMixture> {
    let argument = |quantity, expected: &str, found: String| {
        external(Error::Argument { place: "fit_mixture", quantity, expected: expected.into(), found })
    };
    if options.checkpoint.is_some() && options.mixture.starts > 1 {
        return Err(argument("starts", "1 with a checkpoint", options.mixture.starts.to_string()));
    }
    let rows = ctx.sql(query).await?;
    let columns = rows.schema().fields().len();
    if !(1..=2).contains(&columns) {
        return Err(argument(
            "query",
            "a column of embeddings, and perhaps one of weights",
            format!("of {columns} columns"),
        ));
    }
    let over = OverQuery { rows, device: options.device.clone() };
    let seed = options.mixture.seed;
    let wanted = Fit::sample_rows(&options.mixture);
    let sample = Sample::from_bytes(&over.run(SampleRows::new(wanted as u64, seed)).await?)?;
    let Sample { dim, rows, positive, skipped, .. } = sample;
    if dim == 0 {
        let site = Site::new("fit_mixture", over.rows.schema().field(0).name());
        return Err(site.bad(None, format!("no rows ({skipped} NULL)"), "at least one embedding"));
    }
    let weighted = columns == 2;
    // weights in units of the mean positive one, as the library has them
    let unit = if weighted && positive > 0 { sample.weight / positive as f64 } else { 1.0 };
    let count = if weighted { positive } else { rows } as usize;
    let resumed = match &options.checkpoint {
        Some(path) if options.resume && path.exists() => Some(VmfMixture::load(path).map_err(external)?),
        _ => None,
    };
    let checkpoint = options.checkpoint.as_deref();
    let fit = Fit::new(&options.mixture, (count, dim), unit, checkpoint, resumed).map_err(external)?;
    match fit.run(&over, &sample.drawn, &sample.weights).await {
        Err((_, Some(error))) => Err(error),
        Err((error, None)) => Err(external(error)),
        Ok(mixture) => Ok(FittedMixture { mixture, rows, skipped }),
    }
}

/// Aggregates over what a query returns.
struct OverQuery {
    rows: DataFrame,
    device: Device,
}

impl OverQuery {
    /// The one value that `aggregate` makes of all rows.
    async fn run(&self, aggregate: impl AggregateUDFImpl + 'static) -> Result<Vec<u8>> {
        let columns: Vec<Expr> = (0..self.rows.schema().fields().len())
            .map(|column| Expr::from(self.rows.schema().qualified_field(column)))
            .collect();
        let call = AggregateUDF::new_from_impl(aggregate).call(columns).alias("state");
        let batches = self.rows.clone().aggregate(vec![], vec![call])?.collect().await?;
        let states =
            batches.iter().filter(|batch| batch.num_rows() > 0).map(|batch| batch.column(0).as_binary::<i32>());
        let states: Vec<&[u8]> = states.filter(|states| states.is_valid(0)).map(|states| states.value(0)).collect();
        match states[..] {
            [state] => Ok(state.to_vec()),
            _ => Err(DataFusionError::Internal(format!("{NAME}: {} results, expected 1", states.len()))),
        }
    }
}

impl OverBatches for OverQuery {
    type Failure = DataFusionError;

    async fn pass(&self, model: Model, selection: Selection) -> Result<Vec<u8>> {
        self.run(MixtureStep::new(&self.device, selection, model)).await
    }
}
