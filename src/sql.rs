//! SQL functions over Arrow record batches, for DataFusion in this process and, with the feature `ballista`, on a cluster of its executors.
//!
//! ```no_run
//! # async fn example() -> datafusion::error::Result<()> {
//! use datafusion::prelude::{ParquetReadOptions, SessionContext};
//! let ctx = SessionContext::new();
//! orthant::sql::register(&ctx, orthant::Device::auto());
//! ctx.register_parquet("notes", "notes.parquet", ParquetReadOptions::default()).await?;
//! ctx.sql("SELECT topic, vmf_fit(embedding) FROM notes GROUP BY topic").await?.show().await?;
//! # Ok(())
//! # }
//! ```
//!
//! | function | returns |
//! |---|---|
//! | `log_iv(v, x)`, `log_kv(v, x)` | Float64: ln I_v(x), ln K_v(x), see [`log_iv`](crate::kernels::log_iv) |
//! | `vmf_log_density(embedding, model)` | Float64, nats: [`Vmf::log_density_in`](crate::vmf::Vmf::log_density_in) in extended precision, of a mixture [`VmfMixture::score`](crate::vmf::VmfMixture::score) |
//! | `vmf_predict(embedding, mixture)` | UInt32: [`VmfMixture::predict`](crate::vmf::VmfMixture::predict) |
//! | `binarize(embedding, method)` | FixedSizeBinary(bits / 8) in FAISS's layout: [`binarize`](crate::hamming::binarize()) |
//! | `hamming_distance(code, code)` | UInt32, bits that differ |
//! | `cosine_similarity(embedding, embedding)` | Float64, from -1 to 1 |
//! | `vmf_fit(embedding [, weight])` | struct of mean_direction, kappa, kappa_relative_error, resultant_length, count and skipped (rows that were NULL): [`Vmf::from_stats`](crate::vmf::Vmf::from_stats) |
//! | `hamming_top_k(id, code, query, k)` | list of {id, distance UInt32}, nearest first, ties by the lower id |
//! | `knn_top_k(id, embedding, query, k, metric)` | list of {id, distance Float32}: as [`knn::search`](crate::knn::search()) by `'l2'`, `'cosine'` or `'inner_product'` |
//!
//! * embeddings: `FixedSizeList` or lists of one length of Float16, Float32 or Float64 (which `binarize` and `knn_top_k` round to Float32, as they do literals)
//! * model: text of JSON as [`Vmf::save`](crate::vmf::Vmf::save) writes it, the name of a file of that, or what `vmf_fit` returned; all three also from a table, as
//!   `(SELECT model FROM models WHERE ...)`. Files are read where the query is planned, and travel with it
//! * method: `'sign'`, `'sign BITS'`, `'hyperplanes BITS SEED'`, or the name of a file that [`Binarizer::save`](crate::hamming::Binarizer::save) wrote
//! * ids: integers
//!
//! A NULL row gives NULL; aggregates skip it, and `vmf_fit` says how many it skipped. Aggregates keep a state a partition, which merge: integers do not depend
//! on the partitions, sums and kappas by no more than 1e-12 of themselves.
//!
//! On the CPU batches are read where Arrow has them. On a GPU all partitions share one device and queue: aggregates gather small batches to
//! some 16 MB, scalar functions take batches as they come (`datafusion.execution.batch_size` says how large), and what belongs to many groups at once is added on
//! the host.
//!
//! # Errors
//!
//! What is wrong with a column is an [`Error::Column`](crate::Error::Column) inside [`DataFusionError::External`](datafusion::error::DataFusionError::External): its name, the row where that is known
//! (counted from 0 in the batch for scalar functions, in the partition for aggregates), what was found and what expected. (Of an
//! executor's error Ballista passes on the `Debug` text.) No result is returned beside an error.

#[cfg(feature = "ballista")]
pub mod cluster;
mod column;
mod files;
mod mixture;
mod mixture_step;
mod model;
mod npy;
mod pending;
mod sample_rows;
mod scalar;
mod top_k;
mod vmf_fit;

use std::hash::{Hash, Hasher};

use datafusion::logical_expr::AggregateUDF;
use datafusion::prelude::SessionContext;

use crate::Device;

pub use files::{register_file, register_files_of};
pub use mixture::{FittedMixture, SqlMixtureOptions, fit_mixture};

/// Makes the functions known to `ctx`, computing on `device`. See [the module](self).
pub fn register(ctx: &SessionContext, device: Device) {
    scalar::all(&device).into_iter().for_each(|function| ctx.register_udf(function));
    aggregates(&device).into_iter().for_each(|function| ctx.register_udaf(function));
}

/// The aggregates that queries name.
fn aggregates(device: &Device) -> Vec<AggregateUDF> {
    let mut all = vec![AggregateUDF::new_from_impl(vmf_fit::VmfFit::new(device))];
    all.extend(top_k::all(device));
    all
}

/// A device inside a function: plans compare and hash these.
#[derive(Clone, Debug, PartialEq)]
struct OnDevice(Device);

impl Eq for OnDevice {}

impl Hash for OnDevice {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.is_cpu().hash(state);
    }
}
