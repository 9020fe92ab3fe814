//! [`Projections`]: of every layer and set of KV heads, to latents and back.

mod basis;
mod file;
#[cfg(test)]
mod tests;
mod trained;

use std::collections::BTreeMap;

use super::cache::LayerFactors;
use super::latents::Side;
use super::layer::Factors;
use super::rope::{Frame, Rope};
use crate::{Error, Result};

pub use basis::Basis;
pub(crate) use file::{layout_name, parse_layout};
pub use trained::{CskvNames, MatryoshkaNames};

const PLACE: &str = "Projections";
/// More than a model has, and few enough that a file cannot make sizes overflow by them.
pub(super) const MAX_HEADS: usize = 1 << 20;

fn argument<T>(quantity: &'static str, expected: impl Into<String>, found: impl ToString) -> Result<T> {
    Err(Error::Argument { place: PLACE, quantity, expected: expected.into(), found: found.to_string() })
}

/// An error that names the first element that is not finite, in row-major order.
pub(crate) fn finite<'a>(
    place: &'static str,
    quantity: &'static str,
    elements: impl Iterator<Item = &'a f32>,
) -> Result<()> {
    match elements.enumerate().find(|(_, x)| !x.is_finite()) {
        Some((index, found)) => {
            Err(Error::Domain { place, quantity, index, expected: "finite", found: found.to_string() })
        }
        None => Ok(()),
    }
}

/// Ranks by layer (the model's number), keys or values, and set of KV heads (one head, unless the projections are joint).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ranks {
    layers: BTreeMap<usize, [Vec<usize>; 2]>,
}

impl Ranks {
    /// Of no layer.
    pub fn new() -> Self {
        Self::default()
    }

    /// With those of a layer, in place of what it had.
    pub fn with_layer(mut self, layer: usize, keys: Vec<usize>, values: Vec<usize>) -> Self {
        self.layers.insert(layer, [keys, values]);
        self
    }

    /// The layers, ascending.
    pub fn layers(&self) -> impl Iterator<Item = usize> {
        self.layers.keys().copied()
    }

    /// Those of a layer's keys or values, if it is there.
    pub fn of(&self, layer: usize, side: Side) -> Option<&[usize]> {
        self.layers.get(&layer).map(|sides| &sides[side as usize][..])
    }

    /// The sum of all.
    pub fn total(&self) -> usize {
        self.layers.values().flatten().flatten().sum()
    }
}

/// Projections of keys and values to latents, nested: the first r columns are those of rank r.
#[derive(Debug, Clone, PartialEq)]
pub struct Projections {
    kv_heads: usize,
    head_dim: usize,
    rope: Rope,
    frame: Frame,
    layers: BTreeMap<usize, [Vec<Basis>; 2]>,
}

impl Projections {
    /// Of no layer yet: those of given factors follow by [`Projections::with_layer`].
    ///
    /// * `kv_heads`: of each layer; `head_dim`: d, 1 to 256
    /// * `rope`: the rotation that keys come with; `frame`: what the factors of keys were made for
    ///
    /// # Errors
    /// [`Error::Argument`] for sizes out of their range, a rotation of more elements than a head has, or a block of 0.
    pub fn new(kv_heads: usize, head_dim: usize, rope: Rope, frame: Frame) -> Result<Self> {
        if !(1..=MAX_HEADS).contains(&kv_heads) {
            return argument("kv_heads", format!("1 to {MAX_HEADS}"), kv_heads);
        }
        if !(1..=256).contains(&head_dim) {
            return argument("head_dim", "1 to 256", head_dim);
        }
        rope.check(head_dim)?;
        frame.check()?;
        Ok(Self { kv_heads, head_dim, rope, frame, layers: BTreeMap::new() })
    }

    /// With a layer (the model's number), in place of what it had. The bases of `keys`, and those of `values`, cover the KV heads in their order.
    ///
    /// # Errors
    /// [`Error::Shape`] where they do not.
    pub fn with_layer(mut self, layer: usize, keys: Vec<Basis>, values: Vec<Basis>) -> Result<Self> {
        for (quantity, sets) in [("keys", &keys), ("values", &values)] {
            let heads: usize = sets.iter().map(Basis::heads).sum();
            let fits = |set: &Basis| set.width() == set.heads() * self.head_dim;
            if heads != self.kv_heads || !sets.iter().all(fits) {
                let expected = format!("bases of {} heads of {} in layer {layer}", self.kv_heads, self.head_dim);
                let found = sets.iter().flat_map(|set| [set.heads(), set.width()]).collect();
                return Err(Error::Shape { place: PLACE, quantity, expected, found });
            }
        }
        self.layers.insert(layer, [keys, values]);
        Ok(self)
    }

    /// KV heads of a layer.
    pub fn kv_heads(&self) -> usize {
        self.kv_heads
    }

    /// Elements of a head.
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// The rotation that keys come with.
    pub fn rope(&self) -> &Rope {
        &self.rope
    }

    /// What latents of keys are relative to.
    pub fn frame(&self) -> Frame {
        self.frame
    }

    /// The layers (the model's numbers), ascending.
    pub fn layers(&self) -> impl Iterator<Item = usize> {
        self.layers.keys().copied()
    }

    /// The bases of a layer's keys or values, covering its KV heads in their order.
    ///
    /// # Errors
    /// [`Error::Argument`] for a layer that is not there.
    pub fn bases(&self, layer: usize, side: Side) -> Result<&[Basis]> {
        match self.layers.get(&layer) {
            Some(sides) => Ok(&sides[side as usize]),
            None => {
                let known: Vec<_> = self.layers().map(|layer| layer.to_string()).collect();
                argument("layer", format!("one of {}", known.join(", ")), layer)
            }
        }
    }

    /// The ranks they have.
    pub fn ranks(&self) -> Ranks {
        let ranks = |sets: &Vec<Basis>| sets.iter().map(Basis::rank).collect();
        Ranks { layers: self.layers.iter().map(|(layer, sides)| (*layer, sides.each_ref().map(ranks))).collect() }
    }

    /// The first columns of each. Layers that `ranks` does not have keep theirs.
    ///
    /// # Errors
    /// [`Error::Argument`] names the layer and the head whose rank is 0 or more than there is, or a layer that is not there; [`Error::Shape`] where a layer
    /// has another number of ranks than of bases.
    pub fn with_ranks(&self, ranks: &Ranks) -> Result<Self> {
        let mut out = self.clone();
        for layer in ranks.layers() {
            for side in [Side::Keys, Side::Values] {
                let (sets, ranks) = (self.bases(layer, side)?, ranks.of(layer, side).unwrap_or_default());
                if sets.len() != ranks.len() {
                    let expected = format!("one for each of {} bases of the {side} of layer {layer}", sets.len());
                    return Err(Error::Shape { place: PLACE, quantity: "ranks", expected, found: vec![ranks.len()] });
                }
                let mut head = 0;
                let mut cut = Vec::with_capacity(sets.len());
                for (set, &rank) in sets.iter().zip(ranks) {
                    if !(1..=set.rank()).contains(&rank) {
                        let whose = format!("1 to {} for the {side} of head {head} of layer {layer}", set.rank());
                        return argument("rank", whose, rank);
                    }
                    head += set.heads();
                    cut.push(set.truncated(rank));
                }
                if let Some(sides) = out.layers.get_mut(&layer) {
                    sides[side as usize] = cut;
                }
            }
        }
        Ok(out)
    }

    /// The first `rank` columns of every basis.
    ///
    /// # Errors
    /// As [`Projections::with_ranks`].
    pub fn with_rank(&self, rank: usize) -> Result<Self> {
        let same = |sets: &Vec<Basis>| vec![rank; sets.len()];
        self.with_ranks(&Ranks {
            layers: self.layers.iter().map(|(layer, sides)| (*layer, sides.each_ref().map(same))).collect(),
        })
    }

    /// As the cache takes them.
    pub(crate) fn factors(&self) -> Vec<LayerFactors> {
        let of = |sets: &[Basis]| sets.iter().map(Basis::factors).collect::<Vec<Factors>>();
        let layer = |(layer, [keys, values]): (&usize, &[Vec<Basis>; 2])| LayerFactors {
            layer: *layer,
            keys: of(keys),
            values: of(values),
        };
        self.layers.iter().map(layer).collect()
    }
}
