//! The command line, as clap reads it.

mod hamming;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub use hamming::{Binarize, Hamming, HammingEvaluate, HammingSearch, Knn, KnnMetric, Method, Rule, ViewFusion};

#[derive(Parser)]
#[command(
    name = "orthant",
    version,
    about = "Compute for embedding spaces: log-Bessel functions, von Mises-Fisher fitting, attention"
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// List every adapter, and say which one `auto` takes and why
    Devices(Devices),
    /// Evaluate a log-Bessel function at the points of a CSV file
    Bessel(Bessel),
    /// Fit von Mises-Fisher distributions to embeddings, score rows with them, draw samples
    #[command(subcommand)]
    Vmf(Vmf),
    /// Attend with the queries of a file to its keys and values
    Attention(Box<Attention>),
    /// Make binary codes, search and evaluate them
    #[command(subcommand)]
    Hamming(Hamming),
    /// Find the exact nearest rows of floats
    Knn(Knn),
    /// Find projections for a low-rank cache of keys and values, and see what such a cache does to attention
    #[command(subcommand)]
    Kv(Kv),
    /// Answer a SQL query over Parquet, CSV and .npy files, with functions to fit, score, hash and search embeddings
    #[cfg(feature = "datafusion")]
    Sql(Sql),
}

#[cfg(feature = "datafusion")]
#[derive(Args)]
pub struct Sql {
    /// The query. Files are tables under their names: SELECT vmf_fit(embedding) FROM 'notes.parquet'
    pub query: String,
    /// Another name for a file, which may be given several times
    #[arg(long, value_name = "NAME=FILE")]
    pub table: Vec<String>,
    /// Run it on the cluster with that scheduler (an orthant-scheduler), whose executors read the files
    #[arg(long, value_name = "HOST:PORT")]
    pub cluster: Option<String>,
    #[command(flatten)]
    pub common: Common,
}

/// What every command that computes takes.
#[derive(Args)]
pub struct Common {
    /// Where to compute; without it ORTHANT_DEVICE decides, and without that `auto`
    #[arg(long, value_enum)]
    pub device: Option<DeviceChoice>,
    /// Print one JSON object on stdout
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DeviceChoice {
    /// A hardware GPU, else the CPU
    Auto,
    Cpu,
    /// Any adapter, software ones too
    Gpu,
}

#[derive(Args)]
pub struct Devices {
    #[command(flatten)]
    pub common: Common,
}

#[derive(Args)]
pub struct Bessel {
    #[arg(value_enum)]
    pub function: BesselFunction,
    /// CSV with columns v (the order) and x (the argument); other columns are ignored
    pub input: PathBuf,
    /// Arithmetic
    #[arg(long, value_enum, default_value_t = BesselDtype::F64)]
    pub dtype: BesselDtype,
    /// CSV to write, with columns v, x and value
    #[arg(long)]
    pub out: PathBuf,
    #[command(flatten)]
    pub common: Common,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum BesselFunction {
    /// ln I_v(x)
    LogIv,
    /// ln K_v(x)
    LogKv,
    /// I_{v+1}(x) / I_v(x)
    Ratio,
    /// 1 - I_{v+1}(x) / I_v(x), without cancellation
    RatioComplement,
    /// d/dx of ln I_v(x)
    LogIvDx,
    /// d/dx of ln K_v(x)
    LogKvDx,
    /// d/dv of ln I_v(x)
    LogIvDv,
    /// d/dv of ln K_v(x)
    LogKvDv,
    /// ln C_d(kappa) of von Mises-Fisher, v = d/2 - 1 and x = kappa
    LogNormalizer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BesselDtype {
    F32,
    F64,
    /// f64 class on every GPU, by pairs of f32 where it has no f64: within 1e-13
    Extended,
}

impl BesselDtype {
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F64 => "f64",
            Self::Extended => "extended",
        }
    }
}

#[derive(Args)]
pub struct Attention {
    /// .safetensors or .npz with the three tensors, float16 or float32
    pub input: PathBuf,
    /// Queries, (q_heads, q_len, d) or with a batch axis before
    #[arg(long, value_name = "NAME")]
    pub q: String,
    /// Keys, (kv_heads, kv_len, d); kv_heads divides q_heads
    #[arg(long, value_name = "NAME")]
    pub k: String,
    /// Values, (kv_heads, kv_len, d_v)
    #[arg(long, value_name = "NAME")]
    pub v: String,
    /// A query sees no key behind its own position; the last query is at the last key
    #[arg(long)]
    pub causal: bool,
    /// A query sees so many keys, its own position's among them (without --causal: so many in either direction)
    #[arg(long, value_name = "W")]
    pub window: Option<usize>,
    /// Scores become C tanh(score / C)
    #[arg(long, value_name = "C", allow_negative_numbers = true)]
    pub softcap: Option<f32>,
    /// Add the linear biases of ALiBi, with its slopes for so many heads
    #[arg(long)]
    pub alibi: bool,
    /// What scores are multiplied by [default: 1 / sqrt(d)]
    #[arg(long, allow_negative_numbers = true)]
    pub scale: Option<f32>,
    /// One learned logit for each query head, which takes its share of the softmax
    #[arg(long, value_name = "NAME")]
    pub sinks: Option<String>,
    /// Storage of the tensors [default: f16 where all three are, else f32]
    #[arg(long, value_enum)]
    pub dtype: Option<AttentionDtype>,
    /// .npy to write, the output with the axes of the queries
    #[arg(long)]
    pub out: PathBuf,
    /// .npy to write the log-sum-exp of each query's scores to, float32
    #[arg(long, value_name = "FILE")]
    pub lse: Option<PathBuf>,
    #[command(flatten)]
    pub common: Common,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AttentionDtype {
    F16,
    F32,
}

#[derive(Subcommand)]
pub enum Kv {
    /// Write projections of keys and values, with a rank for each head
    Calibrate(Box<KvCalibrate>),
    /// Say how far attention over a low-rank cache is off, and what the cache takes
    Evaluate(Box<KvEvaluate>),
}

#[derive(Args)]
pub struct KvCalibrate {
    /// .safetensors of one layer, or of several whose names begin with `layer.N.`: `k_post` or `k_pre` and `v` (kv_heads, tokens, d),
    /// `q_post` or `q_post_lastN` (q_heads, tokens or N, d), moments `cal_*`, `wo_gram` (kv_heads, d, d); float16 or float32
    pub input: PathBuf,
    #[command(flatten)]
    pub choice: KvChoice,
    /// .safetensors to write the projections to
    #[arg(long, value_name = "P.safetensors")]
    pub out: PathBuf,
    #[command(flatten)]
    pub common: Common,
}

#[derive(Args)]
pub struct KvEvaluate {
    /// .safetensors as `kv calibrate` reads it
    pub input: PathBuf,
    /// Projections that `kv calibrate` wrote [default: calibrated from the `cal_*` moments of the input]
    #[arg(long, value_name = "P.safetensors", conflicts_with_all = ["frame", "weighting", "theta", "adjacent"])]
    pub projections: Option<PathBuf>,
    #[command(flatten)]
    pub choice: KvChoice,
    /// Draw error against memory over ranks, beside a cache that is only quantised and one that is not compressed
    #[arg(long, value_name = "P.svg")]
    pub plot: Option<PathBuf>,
    #[command(flatten)]
    pub common: Common,
}

/// What projections are made of, and what the cache is like.
#[derive(Args)]
pub struct KvChoice {
    /// Layers of the input, separated by commas [default: all of it]
    #[arg(long, value_name = "N,..", value_delimiter = ',')]
    pub layers: Vec<usize>,
    /// What keys are latents of: before or after rotary embedding, or turned relative to the first of their block of 64 [default: block64]
    #[arg(long, value_enum)]
    pub frame: Option<KvFrame>,
    /// What is made small: what keys and values are off by (pca), or scores and outputs (q) [default: q]
    #[arg(long, value_enum)]
    pub weighting: Option<KvWeighting>,
    /// One rank for all heads. Without it and a budget keys and values are quantised as they are
    #[arg(long, value_name = "R", conflicts_with_all = ["budget", "bytes"])]
    pub rank: Option<usize>,
    /// Ranks by what each is worth: the part of all latents of full rank that is kept, above 0 and at most 1
    #[arg(long, value_name = "F", conflicts_with = "bytes", allow_negative_numbers = true)]
    pub budget: Option<f64>,
    /// The same, as bytes that the latents of a token may take over all layers, minima and scales among them
    #[arg(long, value_name = "B")]
    pub bytes: Option<u64>,
    /// Bits of a latent; with 8 and fewer, a minimum and a scale for 32 of them take one more
    #[arg(long, value_enum, default_value_t = KvBits::Four)]
    pub bits: KvBits,
    /// So many of the last tokens are exact
    #[arg(long, value_name = "W", default_value_t = 32)]
    pub window: usize,
    /// So many of the first tokens are exact
    #[arg(long, value_name = "S", default_value_t = 4)]
    pub sinks: usize,
    /// Rotary embedding turns elements i and i + d/2 by position / THETA^(2 i / d) [default: what the file's metadata says as `rope`]
    #[arg(long, value_name = "THETA")]
    pub theta: Option<f64>,
    /// Rotary embedding turns elements 2 i and 2 i + 1
    #[arg(long)]
    pub adjacent: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KvFrame {
    Pre,
    Post,
    Block64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KvWeighting {
    /// Centred principal components of keys and of values
    Pca,
    /// Keys by the moments of queries, values by attention and the output projection
    Q,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KvBits {
    #[value(name = "16")]
    Sixteen,
    #[value(name = "8")]
    Eight,
    #[value(name = "4")]
    Four,
    #[value(name = "2")]
    Two,
}

#[derive(Subcommand)]
pub enum Vmf {
    /// Fit one distribution, or a mixture with --components
    Fit(Box<Fit>),
    /// Write the log-density of every row under a fitted model
    Score(Score),
    /// Draw unit vectors from a fitted model
    Sample(Sample),
}

#[derive(Args)]
pub struct Fit {
    /// Rows to fit: .npy, .npz, .safetensors or .csv, float16, float32 or float64; every row is scaled to unit length.
    /// The first line of a .csv is names if no field of it is a number, else data
    pub rows: PathBuf,
    /// Which array of an .npz or .safetensors file
    #[arg(long, value_name = "NAME")]
    pub array: Option<String>,
    /// Fit a mixture of K components by expectation maximisation
    #[arg(long, short = 'k', value_name = "K", value_parser = positive)]
    pub components: Option<usize>,
    /// Give every row to one component (spherical k-means in the limit) instead of sharing it
    #[arg(long, requires = "components")]
    pub hard: bool,
    /// Subtract the mean of the unit rows and scale to unit length again; the model remembers the mean
    #[arg(long)]
    pub center: bool,
    /// A weight for every row
    #[arg(long, value_name = "W.npy")]
    pub weights: Option<PathBuf>,
    /// How one distribution's rows are summed on a GPU: in f32, or within 1e-13 as on the CPU
    #[arg(long, value_enum, conflicts_with = "components", default_value_t = FitPrecision::Single)]
    pub precision: FitPrecision,

    /// Seed of everything random
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Fits from that many seedings, of which the likeliest is kept
    #[arg(long, value_name = "N", value_parser = positive, requires = "components", default_value_t = 1)]
    pub starts: usize,
    /// Stop a start after that many iterations
    #[arg(long, value_name = "N", value_parser = positive, requires = "components", default_value_t = 200)]
    pub max_iterations: usize,
    /// Stop a start when the mean log-likelihood of a row grows by less, in nats
    #[arg(long, value_name = "T", value_parser = not_negative, requires = "components", default_value_t = 1e-4)]
    pub tolerance: f64,
    /// One kappa for all components
    #[arg(long, requires = "components")]
    pub tied_kappa: bool,
    /// The largest kappa a component may have
    #[arg(long, value_name = "KAPPA", value_parser = above_zero, requires = "components")]
    pub max_kappa: Option<f64>,
    /// Update the components after every ROWS rows instead of after all
    #[arg(long, value_name = "ROWS", value_parser = positive, requires = "components")]
    pub batch: Option<usize>,
    /// Read the rows from the file anew in every iteration; a file that memory has no room for is read so by itself
    #[arg(long)]
    pub stream: bool,

    /// A whole number for every row, to compare the components with: purity, NMI (arithmetic mean) and ARI
    #[arg(long, value_name = "Y.npy")]
    pub labels: Option<PathBuf>,
    /// JSON list of the labels' names, or an object from label to name
    #[arg(long, value_name = "FILE.json", requires = "labels")]
    pub label_names: Option<PathBuf>,
    /// Write the fitted model
    #[arg(long, value_name = "M.json")]
    pub model: Option<PathBuf>,
    /// Write the component of every row, as uint32
    #[arg(long, value_name = "A.npy")]
    pub assign: Option<PathBuf>,
    /// Draw components, log-likelihood and, with --labels, how they match
    #[arg(long, value_name = "P.svg")]
    pub plot: Option<PathBuf>,
    #[command(flatten)]
    pub common: Common,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FitPrecision {
    Single,
    Extended,
}

#[derive(Args)]
pub struct Score {
    /// Rows to score, of the model's dimension
    pub rows: PathBuf,
    /// Which array of an .npz or .safetensors file
    #[arg(long, value_name = "NAME")]
    pub array: Option<String>,
    /// A model `vmf fit --model` wrote
    #[arg(long, value_name = "M.json")]
    pub model: PathBuf,
    /// The log-density of every row, in nats
    #[arg(long, value_name = "L.npy")]
    pub out: PathBuf,
    #[command(flatten)]
    pub common: Common,
}

#[derive(Args)]
pub struct Sample {
    /// A model `vmf fit --model` wrote
    #[arg(long, value_name = "M.json")]
    pub model: PathBuf,
    /// How many rows
    #[arg(short = 'n', long, value_name = "N", value_parser = positive)]
    pub number: usize,
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// The rows, float32
    #[arg(long, value_name = "X.npy")]
    pub out: PathBuf,
    #[command(flatten)]
    pub common: Common,
}

fn positive(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| *n > 0).ok_or_else(|| "expected a whole number from 1 up".to_string())
}

fn not_negative(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|x: &f64| x.is_finite() && *x >= 0.0)
        .ok_or_else(|| "expected a number from 0 up".to_string())
}

fn above_zero(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|x: &f64| x.is_finite() && *x > 0.0).ok_or_else(|| "expected a number above 0".to_string())
}
