//! From options to projections, ranks and a cache.

use ndarray::{Array1, Array2, Array3, Axis};
use orthant::Device;
use orthant::kv::{
    Activations, Basis, Budget, CacheOptions, Calibration, Frame, LatentBits, ProjectionOptions, Projections, Rope,
    RopeLayout, Side, Weighting, allocate, error_table,
};

use super::input::{Input, Queries};
use crate::cli::args::{KvBits, KvChoice, KvFrame, KvWeighting};
use crate::cli::complaint::{InFile, InLine, bad};
use crate::cli::progress;

/// Tokens of a block of `--frame block64`.
const BLOCK: usize = 64;
/// Tokens of a packed page.
const PAGE_TOKENS: u64 = 32;

impl KvBits {
    pub fn count(self) -> u32 {
        self.latent().count()
    }

    fn latent(self) -> LatentBits {
        match self {
            KvBits::Sixteen => LatentBits::Sixteen,
            KvBits::Eight => LatentBits::Eight,
            KvBits::Four => LatentBits::Four,
            KvBits::Two => LatentBits::Two,
        }
    }
}

pub fn options(choice: &KvChoice) -> CacheOptions {
    let bits = choice.bits.latent();
    CacheOptions::new().bits(bits, bits).window(choice.window).sinks(choice.sinks)
}

/// Whether keys and values are to be quantised as they are.
pub fn as_they_are(choice: &KvChoice) -> anyhow::Result<bool> {
    let ranks = choice.rank.is_some() || choice.budget.is_some() || choice.bytes.is_some();
    let latents = choice.frame.is_some_and(|frame| frame != KvFrame::Post) || choice.weighting == Some(KvWeighting::Q);
    if !ranks && latents {
        let what = "--frame and --weighting are of latents: give --rank, --budget or --bytes with them";
        return Err(bad("kv evaluate", what));
    }
    Ok(!ranks)
}

/// Whether latents of keys keep their rotation.
fn as_rotated(choice: &KvChoice) -> bool {
    choice.frame == Some(KvFrame::Post) || choice.rank.is_none() && choice.budget.is_none() && choice.bytes.is_none()
}

/// Ranks that are tried: a sixteenth of d up to the half, then an eighth.
pub fn grid(d: usize) -> Vec<usize> {
    let (fine, coarse) = ((d / 16).max(1), (d / 8).max(1));
    let mut ranks: Vec<usize> = (fine..=d / 2).step_by(fine).collect();
    ranks.extend((d / 2 + coarse..d).step_by(coarse));
    ranks.push(d);
    ranks
}

/// The rotary embedding that options say, else the file.
pub fn rope(input: &Input, choice: &KvChoice, layer: usize) -> anyhow::Result<Rope> {
    let d = input.head_dim(layer)?;
    let (adjacent, theta) = match (choice.theta, input.rope()) {
        (Some(theta), _) => (choice.adjacent, theta),
        (None, Some((adjacent, theta))) => (adjacent || choice.adjacent, theta),
        // Keys after rotation are taken as they are.
        (None, None) if input.has(layer, "k_post") && as_rotated(choice) => return Ok(Rope::none()),
        (None, None) => {
            let what = "its metadata says nothing of rotary embedding as `rope`: give --theta (or --frame post)";
            return Err(bad(input.path().display(), what));
        }
    };
    let layout = if adjacent { RopeLayout::Adjacent } else { RopeLayout::Halves };
    Rope::new(layout, d, theta).in_line()
}

/// Full-rank projections by the moments of the file; where it has none of a layer, by those of its keys, values and queries.
pub fn calibrated(input: &Input, choice: &KvChoice, layers: &[usize]) -> anyhow::Result<Projections> {
    let (frame, name) = match choice.frame.unwrap_or(KvFrame::Block64) {
        KvFrame::Pre => (Frame::Pre, "pre"),
        KvFrame::Post => (Frame::Post, "post"),
        KvFrame::Block64 => (Frame::Block(BLOCK), "blk64"),
    };
    let weighting = match choice.weighting.unwrap_or(KvWeighting::Q) {
        KvWeighting::Pca => Weighting::Pca,
        KvWeighting::Q => Weighting::Query,
    };
    let mut needed = vec![format!("cal_k_{name}_mom"), format!("cal_k_{name}_mean")];
    needed.extend(match weighting {
        Weighting::Query => {
            let of_queries = if frame == Frame::Pre { "rel" } else { name };
            vec![format!("cal_q_{of_queries}_mom"), "cal_v_attnw_mom".into(), "cal_v_attnw_mean".into()]
        }
        _ => vec!["cal_v_mom".into(), "cal_v_mean".into()],
    });
    let first = layers.first().copied().unwrap_or(0);
    let (heads, _, d) = input.cube(first, "v")?.dim();
    let q_heads = input.q_heads(first)?;
    let path = input.path();
    let rope = rope(input, choice, first)?;
    let calibration = Calibration::new((q_heads, heads, d), rope.clone(), frame).in_file(path)?;
    let mut calibration = calibration.sinks(choice.sinks);
    for &layer in layers {
        if !needed.iter().any(|name| input.has(layer, name)) {
            input.observe(layer, &rope, &mut calibration)?;
            continue;
        }
        if let Some(missing) = needed.iter().find(|name| !input.has(layer, name)) {
            return Err(input.missing(layer, missing));
        }
        calibration.read_moments(path, layer).in_file(path)?;
    }
    calibration.projections(&ProjectionOptions::new().weighting(weighting, weighting)).in_file(path)
}

/// Keys and values as they are, for a cache that quantises alone.
pub fn identity(input: &Input, layers: &[usize]) -> anyhow::Result<Projections> {
    let first = layers.first().copied().unwrap_or(0);
    let (heads, _, d) = input.cube(first, "v")?.dim();
    let whole = Projections::new(heads, d, Rope::none(), Frame::Post).in_file(input.path())?;
    let basis = Basis::new(1, Array1::zeros(d), Array2::eye(d), Array2::eye(d)).in_file(input.path())?;
    layers.iter().try_fold(whole, |whole, layer| {
        whole.with_layer(*layer, vec![basis.clone(); heads], vec![basis.clone(); heads]).in_file(input.path())
    })
}

/// What [`ranked`] chose.
pub struct Planned {
    pub projections: Projections,
    /// The sum of the measured squared errors of each rank, relative to the layers' outputs; none where ranks were given.
    pub expected: Option<f64>,
}

/// The activations that ranks are chosen by, where they are to be chosen.
pub fn between(
    input: &Input,
    choice: &KvChoice,
    layers: &[usize],
    rope: impl Fn(usize) -> anyhow::Result<Rope>,
) -> anyhow::Result<Vec<Activations>> {
    match choice.budget.is_some() || choice.bytes.is_some() {
        true => layers.iter().map(|layer| input.activations(*layer, Queries::Between, &rope(*layer)?)).collect(),
        false => Ok(Vec::new()),
    }
}

/// The ranks that options ask for.
pub fn ranked(
    device: &Device,
    input: &Input,
    whole: &Projections,
    choice: &KvChoice,
    activations: &[Activations],
) -> anyhow::Result<Planned> {
    let options = &options(choice);
    let layers: &[usize] = &activations.iter().map(Activations::layer).collect::<Vec<_>>();
    let bits = choice.bits.latent();
    let budget = match (choice.budget, choice.bytes) {
        (Some(part), _) => Budget::Kept(part),
        (None, Some(bytes)) => {
            Budget::PageBytes { bytes: bytes.saturating_mul(PAGE_TOKENS), key_bits: bits, value_bits: bits }
        }
        (None, None) => return Ok(Planned { projections: whole.clone(), expected: None }),
    };
    let least = layers
        .iter()
        .flat_map(|layer| [(*layer, Side::Keys), (*layer, Side::Values)])
        .filter_map(|(layer, side)| whole.bases(layer, side).ok()?.iter().map(Basis::rank).min());
    let most = least.min().unwrap_or(whole.head_dim());
    let ranks: Vec<usize> = grid(whole.head_dim()).into_iter().filter(|rank| *rank <= most).collect();
    let bar = progress::bar(layers.len() as u64, "measuring ranks", "layers");
    let mut tables: Vec<Array3<f64>> = Vec::with_capacity(layers.len());
    for of_layer in activations {
        tables.push(error_table(device, whole, of_layer, options, &ranks).in_file(input.path())?);
        bar.inc(1);
    }
    bar.finish_and_clear();
    let views: Vec<_> = tables.iter().map(|table| table.view()).collect();
    let errors = ndarray::stack(Axis(0), &views).map_err(|error| bad(input.path().display(), error))?;
    let found = allocate(errors.view(), &ranks, budget).in_line()?;
    let projections = whole.with_ranks(&found.ranks_of(layers)).in_file(input.path())?;
    Ok(Planned { projections, expected: Some(found.error) })
}

/// The rank of one head.
pub struct HeadRank {
    pub layer: usize,
    pub side: Side,
    pub head: usize,
    pub rank: usize,
}

/// Those of all heads of these layers.
pub fn ranks(projections: &Projections, layers: &[usize]) -> Vec<HeadRank> {
    let mut all = Vec::new();
    for &layer in layers {
        for side in [Side::Keys, Side::Values] {
            let sets = projections.bases(layer, side).unwrap_or_default();
            let heads = sets.iter().flat_map(|set| vec![set.rank(); set.heads()]);
            all.extend(heads.enumerate().map(|(head, rank)| HeadRank { layer, side, head, rank }));
        }
    }
    all
}
