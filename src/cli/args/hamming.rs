//! The command lines of `orthant hamming` and `orthant knn`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::{Common, positive};

#[derive(Subcommand)]
pub enum Hamming {
    /// Make binary codes of rows of floats
    Binarize(Box<Binarize>),
    /// Find the exact nearest codes of each query, ties by the lowest id
    Search(HammingSearch),
    /// Say how well codes retrieve what has their label
    Evaluate(Box<HammingEvaluate>),
}

#[derive(Args)]
pub struct Binarize {
    /// Rows: .npy, .npz, .safetensors or .csv, float16, float32 or float64 (rounded to float32)
    pub rows: PathBuf,
    /// Which array of an .npz or .safetensors file
    #[arg(long, value_name = "NAME")]
    pub array: Option<String>,
    /// Bits of a code, a multiple of 8 from 8 to 8192 [default: one for each feature]
    #[arg(long, value_name = "B", required_if_eq_any([("method", "hyperplane"), ("method", "itq")]))]
    pub bits: Option<usize>,
    /// What a bit is
    #[arg(long, value_enum, default_value_t = Method::Sign)]
    pub method: Method,
    /// Which values set a bit
    #[arg(long, value_enum, default_value_t = Rule::AtLeast)]
    pub rule: Rule,
    /// Seed of random hyperplanes, and of the first rotation of itq
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// How often itq fits its rotation
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub iterations: usize,

    /// Rows to learn means, medians or a rotation from, instead of those that get codes
    #[arg(long, value_name = "T.npy", conflicts_with = "view")]
    pub fit: Option<PathBuf>,
    /// A further view of the same things, to make one code of all views; may be given several times
    #[arg(long, value_name = "Y.npy")]
    pub view: Vec<PathBuf>,
    /// A weight for each view, that of ROWS first, separated by commas [default: 1 each]
    #[arg(long, value_name = "W,..", value_delimiter = ',', requires = "view", allow_negative_numbers = true)]
    pub weights: Vec<f32>,
    /// How views become one
    #[arg(long, value_enum, default_value_t = ViewFusion::Concatenate, requires = "view")]
    pub fusion: ViewFusion,
    /// Scale every row to unit length first (every view's)
    #[arg(long)]
    pub normalize: bool,

    /// Write what made the codes, to make others alike
    #[arg(long, value_name = "M.safetensors")]
    pub model: Option<PathBuf>,
    /// Make codes as a saved model does
    #[arg(
        long,
        value_name = "M.safetensors",
        conflicts_with_all = ["bits", "method", "rule", "seed", "iterations", "fit", "model"]
    )]
    pub with: Option<PathBuf>,
    /// The codes, uint32, (rows, bits / 32 rounded up): bit j is bit j % 32 of word j / 32
    #[arg(long, value_name = "C.npy")]
    pub out: PathBuf,
    #[command(flatten)]
    pub common: Common,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Method {
    /// The sign of a feature
    Sign,
    /// A feature against its mean over the rows
    Mean,
    /// A feature against its median over the rows
    Median,
    /// The side of a random hyperplane
    Hyperplane,
    /// The sign of a principal component, turned so that little is lost
    Itq,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Rule {
    /// Those at the threshold too: x >= t
    AtLeast,
    /// Those above it: x > t
    Above,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ViewFusion {
    Concatenate,
    Sum,
}

#[derive(Args)]
pub struct HammingSearch {
    /// Codes to search: a row of uint32 words each (or of uint8 or uint64, least significant bit first)
    #[arg(long, value_name = "C.npy")]
    pub base: PathBuf,
    /// Codes to search for, as wide
    #[arg(long, value_name = "Q.npy")]
    pub queries: PathBuf,
    /// How many neighbours of each query; of a smaller base, all
    #[arg(short, value_name = "K", value_parser = positive)]
    pub k: usize,
    /// Rows of the base, uint32, (queries, k), the nearest first
    #[arg(long, value_name = "I.npy")]
    pub ids: PathBuf,
    /// Bits that differ, uint32, (queries, k)
    #[arg(long, value_name = "D.npy")]
    pub distances: PathBuf,
    #[command(flatten)]
    pub common: Common,
}

#[derive(Args)]
pub struct HammingEvaluate {
    /// Codes to retrieve: a row of uint32 words each (or of uint8 or uint64, least significant bit first)
    #[arg(long, value_name = "C.npy")]
    pub base: PathBuf,
    /// The label of each, a whole number
    #[arg(long, value_name = "Y.npy")]
    pub labels: PathBuf,
    /// Codes to retrieve with [default: each of the base, which then does not find itself]
    #[arg(long, value_name = "Q.npy", requires = "query_labels")]
    pub queries: Option<PathBuf>,
    /// The label of each query
    #[arg(long, value_name = "Z.npy", requires = "queries")]
    pub query_labels: Option<PathBuf>,
    /// Also figures of the first N codes, for each of these N, separated by commas
    #[arg(long, value_name = "N,..", value_delimiter = ',', value_parser = positive)]
    pub top: Vec<usize>,
    /// Draw precision against recall over the radius, and the distances of pairs of one label and of two
    #[arg(long, value_name = "P.svg")]
    pub plot: Option<PathBuf>,
    #[command(flatten)]
    pub common: Common,
}

#[derive(Args)]
pub struct Knn {
    /// Rows to search: .npy, .npz, .safetensors or .csv, float16, float32 or float64 (rounded to float32)
    #[arg(long, value_name = "X.npy")]
    pub base: PathBuf,
    /// Rows to search for
    #[arg(long, value_name = "Q.npy")]
    pub queries: PathBuf,
    /// How many neighbours of each query; of a smaller base, all
    #[arg(short, value_name = "K", value_parser = positive)]
    pub k: usize,
    /// What is near
    #[arg(long, value_enum, default_value_t = KnnMetric::L2)]
    pub metric: KnnMetric,
    /// Rows of the base, uint32, (queries, k), the nearest first, ties by the lowest id
    #[arg(long, value_name = "I.npy")]
    pub ids: PathBuf,
    /// Distances (with ip the products), float32, (queries, k)
    #[arg(long, value_name = "D.npy")]
    pub distances: PathBuf,
    /// The local intrinsic dimension at each query, float32, from its neighbours at a distance above 0
    #[arg(long, value_name = "L.npy")]
    pub lid: Option<PathBuf>,
    /// Neighbours that another index found, integers, (queries, any): say which share of the exact ones they have
    #[arg(long, value_name = "F.npy")]
    pub found: Option<PathBuf>,
    #[command(flatten)]
    pub common: Common,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KnnMetric {
    /// Euclidean distance
    L2,
    /// Inner product, the largest first
    Ip,
    /// One less the cosine
    Cosine,
}
