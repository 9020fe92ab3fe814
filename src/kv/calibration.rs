//! [`Calibration`]: moments of keys, values and queries, and the projections that follow from them.

mod add;
mod attended;
mod file;
mod moments;
mod options;
mod solve;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use ndarray::{Array1, Array2, Array3, ArrayView2, Axis, s};

use super::latents::Side;
use super::layer::Turns;
use super::projections::{MAX_HEADS, Projections, finite};
use super::rope::{Frame, Rope};
use crate::{Error, Result};
use moments::{Inputs, Moments, QueryMoments};

pub use options::{ProjectionOptions, Weighting};

const PLACE: &str = "Calibration";

fn argument<T>(quantity: &'static str, expected: impl Into<String>, found: impl ToString) -> Result<T> {
    Err(Error::Argument { place: PLACE, quantity, expected: expected.into(), found: found.to_string() })
}

/// Moments of the keys, values and queries of some layers, from batches of activations one after the other, from several calibrations merged, or
/// from a file; and the best projections by them.
///
/// * keys: E\[x x^T\] and E\[x\] of the rows of all KV heads side by side, in the frame
/// * values: as those, once with every token alike and once weighted by sum_q p_t^2 over the queries of the head's group (without sinks), for which the
///   error of the attention output is; between heads the weight is the geometric mean of theirs
/// * queries: E\[q q^T\] of each query head, relative to the origins of the keys they see: of each query to 4 of the positions 0..=m up to its
///   own, one of each quarter, so that all keys weigh alike. In the post-RoPE frame they are as they are
///
/// Sums over a batch are matrix products on its device (f64 on the CPU, f32 of 1024 rows at a time on a GPU); sums of those are f64.
#[derive(Debug, Clone, PartialEq)]
pub struct Calibration {
    q_heads: usize,
    kv_heads: usize,
    head_dim: usize,
    rope: Rope,
    frame: Frame,
    sinks: usize,
    layers: BTreeMap<usize, LayerMoments>,
}

/// What is known of a layer.
#[derive(Debug, Clone, Default, PartialEq)]
struct LayerMoments {
    keys: Option<Moments>,
    values: Option<Moments>,
    attended: Option<Moments>,
    queries: Option<QueryMoments>,
    inputs: Option<Inputs>,
    /// W_o^T W_o of each KV head, summed over its group: [kv_heads, d, d].
    output_gram: Option<Array3<f64>>,
    /// W_k and W_v, [kv_heads * d, width].
    weights: [Option<Array2<f64>>; 2],
    /// Whether it is of a file that does not say of how many rows.
    uncounted: bool,
}

impl LayerMoments {
    /// Whether nothing is known of it.
    fn is_empty(&self) -> bool {
        let LayerMoments { keys, values, attended, queries, inputs, output_gram, weights, .. } = self;
        let moments = [keys, values, attended].iter().all(|moments| moments.is_none());
        moments
            && queries.is_none()
            && inputs.is_none()
            && output_gram.is_none()
            && weights.iter().all(|weights| weights.is_none())
    }
}

impl Calibration {
    /// Of no layer yet, for a model whose keys come with `rope`, to project them in `frame`.
    ///
    /// # Errors
    /// [`Error::Argument`] for head counts of 0 or of which one does not divide the other, a head_dim outside 1..=256, a rotation of more elements than
    /// a head has, or a block of 0.
    pub fn new((q_heads, kv_heads, head_dim): (usize, usize, usize), rope: Rope, frame: Frame) -> Result<Self> {
        // The rest of the checks.
        Projections::new(kv_heads, head_dim, rope.clone(), frame)?;
        if !(1..=MAX_HEADS).contains(&q_heads) || !q_heads.is_multiple_of(kv_heads) {
            return argument("q_heads", format!("a multiple of {kv_heads} KV heads, up to {MAX_HEADS}"), q_heads);
        }
        Ok(Self { q_heads, kv_heads, head_dim, rope, frame, sinks: 4, layers: BTreeMap::new() })
    }

    /// The first tokens of a sequence that the cache will hold exactly: they do not count among the attended values. Default 4, as the cache's.
    pub fn sinks(mut self, sinks: usize) -> Self {
        self.sinks = sinks;
        self
    }

    /// The layers (the model's numbers) of which anything is known, ascending.
    pub fn layers(&self) -> impl Iterator<Item = usize> {
        self.layers.keys().copied()
    }

    fn group(&self) -> usize {
        self.q_heads / self.kv_heads
    }

    fn turns(&self) -> Turns {
        self.rope.turns(self.frame)
    }

    fn layer(&mut self, layer: usize) -> &mut LayerMoments {
        self.layers.entry(layer).or_default()
    }

    /// Gives the output projection of a layer, (width of the model, q_heads d): what [`Weighting::Query`] measures errors of values by. Without it they
    /// are measured by the elements of the heads' outputs.
    ///
    /// # Errors
    /// [`Error::Shape`]; [`Error::Domain`] names the first element that is not finite.
    pub fn output_weights(&mut self, layer: usize, w_o: &ArrayView2<'_, f32>) -> Result<()> {
        let d = self.head_dim;
        if w_o.ncols() != self.q_heads * d {
            let expected = format!("(width, {} heads of {d})", self.q_heads);
            return Err(Error::Shape { place: PLACE, quantity: "w_o", expected, found: w_o.shape().to_vec() });
        }
        finite(PLACE, "w_o", w_o.iter())?;
        let mut grams = Array3::zeros((self.kv_heads, d, d));
        for head in 0..self.q_heads {
            let of_head = w_o.slice(s![.., head * d..(head + 1) * d]).mapv(f64::from);
            let mut gram = grams.index_axis_mut(Axis(0), head / self.group());
            gram += &of_head.t().dot(&of_head);
        }
        self.layer(layer).output_gram = Some(grams);
        Ok(())
    }

    /// Gives the projections of a layer that make its keys (before rotation) and values of its input: W_k and W_v, (kv_heads d, width) each. With
    /// [`Calibration::add_inputs`] what [`Weighting::Asvd`] needs.
    ///
    /// # Errors
    /// As [`Calibration::output_weights`].
    pub fn input_weights(&mut self, layer: usize, w_k: &ArrayView2<'_, f32>, w_v: &ArrayView2<'_, f32>) -> Result<()> {
        let rows = self.kv_heads * self.head_dim;
        for (quantity, weights) in [("w_k", w_k), ("w_v", w_v)] {
            if weights.dim() != (rows, w_k.ncols()) {
                let expected = format!("({rows}, width)");
                return Err(Error::Shape { place: PLACE, quantity, expected, found: weights.shape().to_vec() });
            }
            finite(PLACE, quantity, weights.iter())?;
        }
        self.layer(layer).weights = [w_k, w_v].map(|weights| Some(weights.mapv(f64::from)));
        Ok(())
    }

    /// Takes in what another calibration of the same model and frame has seen: the same moments as one that has seen all, but for rounding. Weights that
    /// were given to both stay this one's.
    ///
    /// # Errors
    /// [`Error::Argument`] where the models, frames or sinks differ, or a layer is of a file without counts; this one is then as before.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        let kind = |of: &Self| {
            let heads = format!("{}/{} heads of {}", of.q_heads, of.kv_heads, of.head_dim);
            format!("{heads}, frame {}, {} sinks, {:?}", of.frame, of.sinks, of.rope)
        };
        if kind(self) != kind(other) {
            return argument("other", kind(self), kind(other));
        }
        let mut layers = self.layers.clone();
        for (layer, of_other) in &other.layers {
            let Some(known) = layers.get_mut(layer) else {
                layers.insert(*layer, of_other.clone());
                continue;
            };
            if known.uncounted || of_other.uncounted {
                return argument("layer", format!("counts of the rows of layer {layer}"), "a file without them");
            }
            known.keys = Moments::merged(known.keys.take(), of_other.keys.as_ref());
            known.values = Moments::merged(known.values.take(), of_other.values.as_ref());
            known.attended = Moments::merged(known.attended.take(), of_other.attended.as_ref());
            known.queries = QueryMoments::merged(known.queries.take(), of_other.queries.as_ref());
            let widths = (&known.inputs, &of_other.inputs);
            if let (Some(a), Some(b)) = widths
                && a.sum.len() != b.sum.len()
            {
                return argument("width", format!("{} in layer {layer}", a.sum.len()), b.sum.len());
            }
            known.inputs = Inputs::merged(known.inputs.take(), of_other.inputs.as_ref());
            known.output_gram = known.output_gram.take().or_else(|| of_other.output_gram.clone());
            for (mine, other) in known.weights.iter_mut().zip(&of_other.weights) {
                *mine = mine.take().or_else(|| other.clone());
            }
        }
        self.layers = layers;
        Ok(())
    }
}

/// The part of a matrix that is of some elements.
fn of_heads(matrix: &Array2<f64>, first: usize, last: usize) -> Array2<f64> {
    matrix.slice(s![first..last, first..last]).to_owned()
}

/// Mean rows: [heads * d] by the weights of the heads.
fn by_heads(sums: &Array1<f64>, weights: &Array1<f64>) -> Array1<f64> {
    let d = sums.len() / weights.len();
    Array1::from_shape_fn(sums.len(), |i| if weights[i / d] > 0.0 { sums[i] / weights[i / d] } else { 0.0 })
}
