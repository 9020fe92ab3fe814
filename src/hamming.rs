//! Exact search over binary codes: [`Codes`], [`Index`]; of bases beyond memory: [`IndexFile`].
//!
//! ```text
//! floats -> binarize -> Codes ─┬─ Index::add ─▶ Index ─ search, within ─▶ Neighbours, Ranges
//! packed bits -> Codes::from_* ┘    save, load ◀─▶ file
//! ```
//!
//! A distance is the number of bits that differ; neighbours are ordered by (distance, lowest id), so a result is the same on every device,
//! whatever its number of threads.

mod asymmetric;
mod binarize;
mod codes;
mod evaluate;
mod file;
mod index;
mod neighbours;
mod options;

pub use crate::kernels::SignRule;
pub use binarize::{Binarizer, Fusion, ItqOptions, binarize, fuse};
pub use codes::Codes;
pub use evaluate::{EvaluateOptions, Evaluation, TopN, WithinRadius, evaluate, evaluate_async};
pub use file::{IndexFile, search_parts};
pub use index::Index;
pub use neighbours::{Neighbours, Ranges};
pub use options::{Mask, Precision, SearchOptions};
