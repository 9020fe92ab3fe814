//! Projections as a `.safetensors` file.

use std::collections::BTreeMap;
use std::path::Path;

use ndarray::{Array, Array1, Array2, Dimension, Ix1, Ix2};

use super::*;
use crate::kv::files::{Reading, Writing};
use crate::kv::rope::RopeLayout;

const WHAT: &str = "Projections file";

/// f64 of a file that were f32 (or rounded to it).
pub(super) fn single<D: Dimension>(array: Array<f64, D>) -> Array<f32, D> {
    let array = array.mapv(|x| x as f32);
    array.as_standard_layout().into_owned()
}

impl Projections {
    /// Writes them to a `.safetensors` file, beside it first: for each layer N and each of its bases S, counted from 0, the tensors
    /// `layer.N.keys.S.mean` (heads d), `.down` (heads d, rank), `.up` (rank, heads d) and, where known, `.spectrum` (heads d); as those `layer.N.values.S`;
    /// `rope.frequencies`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        self.written().save(path.as_ref())
    }

    /// What [`Projections::save`] writes, for who writes it elsewhere.
    ///
    /// # Errors
    /// [`Error::Format`] where there is more than a file can hold.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        self.written().to_bytes(WHAT)
    }

    fn written(&self) -> Writing {
        let mut file = Writing::default();
        file.note("orthant_projections", 1);
        file.note("kv_heads", self.kv_heads);
        file.note("head_dim", self.head_dim);
        file.note("frame", self.frame);
        file.note("rope_layout", layout_name(self.rope.layout()));
        let frequencies = self.rope.frequencies();
        file.double("rope.frequencies", &[frequencies.len()], frequencies.iter().copied());
        for (layer, sides) in &self.layers {
            for (side, sets) in [Side::Keys, Side::Values].into_iter().zip(sides) {
                for (index, set) in sets.iter().enumerate() {
                    let name = |what: &str| format!("layer.{layer}.{side}.{index}.{what}");
                    file.single(name("mean"), set.mean());
                    file.single(name("down"), set.down());
                    file.single(name("up"), set.up());
                    if let Some(spectrum) = set.spectrum() {
                        file.double(name("spectrum"), &[spectrum.len()], spectrum.iter().copied());
                    }
                }
            }
        }
        file
    }

    /// Reads what [`Projections::save`] wrote.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Format`] names the tensor that is missing, of another shape, or not finite.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let file = Reading::open(path.as_ref(), WHAT)?;
        file.note("orthant_projections")?;
        let kv_heads = file.parsed("kv_heads")?;
        let head_dim: usize = file.parsed("head_dim")?;
        let frame = file.parsed("frame")?;
        let layout = parse_layout(&file)?;
        let frequencies = file.floats::<Ix1>("rope.frequencies")?.to_vec();
        let as_format = |error: Error| file.format::<Self>(error);
        let rope = Rope::of_frequencies(layout, frequencies)?;
        let mut out = Self::new(kv_heads, head_dim, rope, frame).or_else(as_format)?;
        // How many bases of each side each layer has.
        let mut counts: BTreeMap<usize, [usize; 2]> = BTreeMap::new();
        for name in file.names()?.iter().filter_map(|name| name.strip_prefix("layer.")) {
            let mut parts = name.split('.');
            let (layer, side, index) = (parts.next(), parts.next(), parts.next());
            let (Some(Ok(layer)), Some(Ok(index))) = (layer.map(str::parse), index.map(str::parse::<usize>)) else {
                continue;
            };
            let Some(side) = [Side::Keys, Side::Values].into_iter().find(|known| side == Some(known.name())) else {
                continue;
            };
            let counts = counts.entry(layer).or_default();
            counts[side as usize] = counts[side as usize].max(index.saturating_add(1)).min(kv_heads);
        }
        for (layer, counts) in counts {
            let [keys, values] = [Side::Keys, Side::Values].map(|side| {
                (0..counts[side as usize]).map(|index| read_basis(&file, layer, side, index, head_dim)).collect()
            });
            let (keys, values): (Result<Vec<_>>, Result<Vec<_>>) = (keys, values);
            out = out.with_layer(layer, keys?, values?).or_else(as_format)?;
        }
        Ok(out)
    }
}

pub(crate) fn layout_name(layout: RopeLayout) -> &'static str {
    match layout {
        RopeLayout::Halves => "halves",
        RopeLayout::Adjacent => "adjacent",
    }
}

pub(crate) fn parse_layout(file: &Reading<'_>) -> Result<RopeLayout> {
    match file.note("rope_layout")? {
        "halves" => Ok(RopeLayout::Halves),
        "adjacent" => Ok(RopeLayout::Adjacent),
        other => file.format(format!("its metadata has rope_layout {other}")),
    }
}

fn read_basis(file: &Reading<'_>, layer: usize, side: Side, index: usize, head_dim: usize) -> Result<Basis> {
    let name = |what: &str| format!("layer.{layer}.{side}.{index}.{what}");
    let mean: Array1<f32> = single(file.floats::<Ix1>(&name("mean"))?);
    let width = mean.len();
    if width == 0 || !width.is_multiple_of(head_dim) {
        return file.format(format!("{} has {width} elements, expected a multiple of {head_dim}", name("mean")));
    }
    let down: Array2<f32> = single(file.floats::<Ix2>(&name("down"))?);
    let up: Array2<f32> = single(file.floats::<Ix2>(&name("up"))?);
    let spectrum = match file.has(&name("spectrum"))? {
        true => Some(file.shaped::<Ix1>(&name("spectrum"), &[width])?.to_vec()),
        false => None,
    };
    let basis = Basis::new(width / head_dim, mean, down, up);
    Ok(basis.or_else(|error| file.format(format!("{}: {error}", name("*"))))?.with_spectrum(spectrum))
}
