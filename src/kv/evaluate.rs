//! What a cache does to attention over real keys and values, and what it takes: [`evaluate`]; and by rank, for who allocates: [`error_table`].

use ndarray::{Array2, Array3, ArrayView2, Axis, s};
use rayon::prelude::*;

use super::{CacheOptions, ExactType, KvCache, Projections, Side};
use crate::device::Device;
use crate::{Error, Result};

const PLACE: &str = "kv::evaluate";

/// Keys, values and queries of one layer, of one sequence of tokens.
#[derive(Debug, Clone)]
pub struct Activations {
    layer: usize,
    keys: Array3<f32>,
    values: Array3<f32>,
    queries: Array3<f32>,
    positions: Vec<usize>,
    output_gram: Option<Array3<f64>>,
}

/// What [`evaluate`] found of one layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// The model's number.
    pub layer: usize,
    /// The squared norm of what the output is off by, over all heads and queries.
    pub squared_error: f64,
    /// The squared norm of the output of attention over what was given.
    pub squared_norm: f64,
    /// What the cache holds, as [`KvCache::bytes`] has it.
    pub bytes: u64,
    /// What all tokens take in f16.
    pub bytes_uncompressed: u64,
    /// Of each head, keys before values.
    pub heads: Vec<HeadError>,
}

/// A head's part.
#[derive(Debug, Clone, PartialEq)]
pub struct HeadError {
    /// Of its keys or of its values.
    pub side: Side,
    /// The KV head.
    pub head: usize,
    /// Of its latents.
    pub rank: usize,
    /// Of the output of the query heads that share it, with these latents alone in place of what was given.
    pub relative_error: f64,
    /// What it takes of [`Evaluation::bytes`]; joint latents are split evenly.
    pub bytes: u64,
}

impl Evaluation {
    /// ||O^ - O|| / ||O||, Frobenius; 0 where there is no output.
    pub fn relative_error(&self) -> f64 {
        relative(self.squared_error, self.squared_norm)
    }

    /// That of several layers together.
    pub fn joint_relative_error(layers: &[Self]) -> f64 {
        let sum = |of: fn(&Self) -> f64| layers.iter().map(of).sum();
        relative(sum(|layer| layer.squared_error), sum(|layer| layer.squared_norm))
    }
}

fn relative(squared_error: f64, squared_norm: f64) -> f64 {
    if squared_norm > 0.0 { (squared_error / squared_norm).sqrt() } else { 0.0 }
}

fn shape<T>(quantity: &'static str, expected: String, found: &[usize]) -> Result<T> {
    Err(Error::Shape { place: PLACE, quantity, expected, found: found.to_vec() })
}

impl Activations {
    /// Of the layer with this number in its model.
    ///
    /// * `keys`, `values`: [kv_heads, tokens, d], keys after rotary embedding, the first token at position 0
    /// * `queries`: [q_heads, positions, d], after rotary embedding; `kv_heads` divides `q_heads`
    /// * `positions`: of the queries: each sees the tokens up to its own
    ///
    /// # Errors
    /// [`Error::Shape`]; [`Error::Argument`] for a position without its token; [`Error::Domain`] names the first element that is not finite.
    pub fn new(
        layer: usize,
        keys: Array3<f32>,
        values: Array3<f32>,
        queries: Array3<f32>,
        positions: Vec<usize>,
    ) -> Result<Self> {
        let (heads, tokens, d) = keys.dim();
        if heads == 0 || tokens == 0 || d == 0 {
            return shape("keys", "[kv_heads, tokens, d], none of them 0".into(), keys.shape());
        }
        if values.dim() != keys.dim() {
            return shape("values", format!("that of keys, {:?}", keys.shape()), values.shape());
        }
        let (q_heads, count, of_queries) = queries.dim();
        if q_heads == 0 || !q_heads.is_multiple_of(heads) || count != positions.len() || of_queries != d {
            let expected = format!("[a multiple of {heads}, {}, {d}]", positions.len());
            return shape("queries", expected, queries.shape());
        }
        if let Some(position) = positions.iter().find(|position| **position >= tokens) {
            let (expected, found) = (format!("below the {tokens} tokens"), position.to_string());
            return Err(Error::Argument { place: PLACE, quantity: "a query's position", expected, found });
        }
        for (quantity, of) in [("keys", &keys), ("values", &values), ("queries", &queries)] {
            if let Some((index, x)) = of.iter().enumerate().find(|(_, x)| !x.is_finite()) {
                let found = x.to_string();
                return Err(Error::Domain { place: PLACE, quantity, index, expected: "finite", found });
            }
        }
        Ok(Self { layer, keys, values, queries, positions, output_gram: None })
    }

    /// With the metric in which [`error_table`] measures the output of the query heads that share a KV head: the sum of their W_o^T W_o.
    ///
    /// * `gram`: [kv_heads, d, d], finite
    ///
    /// # Errors
    /// [`Error::Shape`]; [`Error::Domain`].
    pub fn output_gram(mut self, gram: Array3<f64>) -> Result<Self> {
        let (heads, _, d) = self.keys.dim();
        if gram.dim() != (heads, d, d) {
            return shape("output_gram", format!("[{heads}, {d}, {d}]"), gram.shape());
        }
        if let Some((index, x)) = gram.iter().enumerate().find(|(_, x)| !x.is_finite()) {
            let (expected, found) = ("finite", x.to_string());
            return Err(Error::Domain { place: PLACE, quantity: "output_gram", index, expected, found });
        }
        self.output_gram = Some(gram);
        Ok(self)
    }

    /// The layer's number.
    pub fn layer(&self) -> usize {
        self.layer
    }

    /// Of the layer: KV heads, tokens, elements of a head.
    pub fn dim(&self) -> (usize, usize, usize) {
        self.keys.dim()
    }

    /// The query heads that share a KV head.
    fn group(&self) -> usize {
        self.queries.dim().0 / self.keys.dim().0
    }

    /// A cache of this layer's part of `projections` with all tokens in it.
    fn cached(&self, device: &Device, projections: &Projections, options: &CacheOptions) -> Result<KvCache> {
        let mut cache = KvCache::new(device, projections, options)?;
        let sequence = cache.insert()?;
        let on = |rows: &Array3<f32>| device.tensor_from(rows.clone().insert_axis(Axis(0)));
        cache.append(self.layer, &[sequence], &on(&self.keys)?, &on(&self.values)?)?;
        Ok(cache)
    }

    /// The output over what was given, and over what a cache of these projections makes of it.
    fn outputs(&self, device: &Device, projections: &Projections, options: &CacheOptions) -> Result<Outputs> {
        let cache = self.cached(device, projections, &options.clone().exact(ExactType::Single))?;
        let Some(sequence) = cache.sequences().next() else { unreachable!("it was inserted") };
        let rebuilt = cache.rebuild(self.layer, sequence)?;
        let packed = rebuilt.keys.dim().0;
        let exact = |m: usize, n: usize| m - n < options.window || n < options.sinks || n >= packed;
        let group = self.group();
        let heads = (0..self.queries.dim().0)
            .into_par_iter()
            .map(|head| {
                let of = head / group;
                let (keys, values) = (self.keys.index_axis(Axis(0), of), self.values.index_axis(Axis(0), of));
                let (rebuilt_keys, rebuilt_values) =
                    (rebuilt.keys.slice(s![.., of, ..]), rebuilt.values.slice(s![.., of, ..]));
                let queries = self.queries.index_axis(Axis(0), head);
                OfHead::new(queries, &self.positions, [keys, values], [rebuilt_keys, rebuilt_values], exact)
            })
            .collect();
        Ok(Outputs { heads, group })
    }
}

/// The output of one query head, and how far it is off with latents in place of keys, of values, and of both: [positions, d].
struct OfHead {
    output: Array2<f64>,
    keys: Array2<f64>,
    values: Array2<f64>,
    both: Array2<f64>,
}

impl OfHead {
    fn new(
        queries: ArrayView2<'_, f32>,
        positions: &[usize],
        [keys, values]: [ArrayView2<'_, f32>; 2],
        [latent_keys, latent_values]: [ArrayView2<'_, f32>; 2],
        exact: impl Fn(usize, usize) -> bool,
    ) -> Self {
        let (tokens, d) = keys.dim();
        let wide = |rows: ArrayView2<'_, f32>| rows.mapv(f64::from);
        // Behind the packed tokens nothing is approximate.
        let whole = |packed: ArrayView2<'_, f32>, given: &Array2<f64>| {
            let mut all = given.clone();
            all.slice_mut(s![..packed.nrows(), ..]).assign(&wide(packed));
            all
        };
        let queries = wide(queries) / (d as f64).sqrt();
        let (keys, values) = (wide(keys), wide(values));
        let values_off = whole(latent_values, &values) - &values;
        let given = queries.dot(&keys.t());
        let mut scores = queries.dot(&whole(latent_keys, &keys).t());
        for (row, &m) in positions.iter().enumerate() {
            (0..=m).filter(|n| exact(m, *n)).for_each(|n| scores[[row, n]] = given[[row, n]]);
        }
        let (weights, latent_weights) = (softmax(given, positions), softmax(scores, positions));
        // Only weights of approximate tokens carry what values are off by.
        let approximate = |weights: &Array2<f64>| {
            Array2::from_shape_fn((positions.len(), tokens), |(row, n)| {
                let m = positions[row];
                if n > m || exact(m, n) { 0.0 } else { weights[[row, n]] }
            })
        };
        let output = weights.dot(&values);
        let keys_off = (&latent_weights - &weights).dot(&values);
        let both = &keys_off + &approximate(&latent_weights).dot(&values_off);
        let values_off = approximate(&weights).dot(&values_off);
        Self { output, keys: keys_off, values: values_off, both }
    }

    fn off(&self, side: Side) -> &Array2<f64> {
        match side {
            Side::Keys => &self.keys,
            Side::Values => &self.values,
        }
    }
}

/// Each row's softmax over the tokens up to its position; 0 behind.
fn softmax(mut scores: Array2<f64>, positions: &[usize]) -> Array2<f64> {
    for (mut row, &m) in scores.outer_iter_mut().zip(positions) {
        let (mut seen, mut hidden) = row.view_mut().split_at(Axis(0), m + 1);
        let most = seen.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        seen.mapv_inplace(|score| (score - most).exp());
        seen /= seen.sum();
        hidden.fill(0.0);
    }
    scores
}

struct Outputs {
    heads: Vec<OfHead>,
    /// Query heads of a KV head.
    group: usize,
}

fn squared(rows: &Array2<f64>) -> f64 {
    rows.iter().map(|x| x * x).sum()
}

impl Outputs {
    fn of_group(&self, head: usize) -> &[OfHead] {
        &self.heads[head * self.group..][..self.group]
    }
}

/// Attention over a cache of `projections` against attention over what was given.
///
/// * the output of a query at position m has the given keys and values of the tokens n with m - n < window or n < sinks (and, where the last tokens
///   fill no page of 32, of those), and for the others what the cache has packed, on `device`; all else in f64
/// * keys and values that are exact count as they were given: that a cache rounds them to f16 is not in the error, a few 1e-4 of the output
/// * [`Evaluation::bytes`] are those of a cache with these options and all tokens in it
///
/// # Errors
/// As [`KvCache::new`] and [`KvCache::append`].
pub fn evaluate(
    device: &Device,
    projections: &Projections,
    activations: &Activations,
    options: &CacheOptions,
) -> Result<Evaluation> {
    let projections = &of_layer(projections, activations.layer)?;
    let outputs = activations.outputs(device, projections, options)?;
    let cache = activations.cached(device, projections, options)?;
    let Some(sequence) = cache.sequences().next() else { unreachable!("it was inserted") };
    let taken = cache.rebuild(activations.layer, sequence)?.heads;
    let mut heads = Vec::new();
    for (side, of_side) in [Side::Keys, Side::Values].into_iter().zip(taken) {
        for (head, (rank, bytes)) in of_side.into_iter().enumerate() {
            let group = outputs.of_group(head);
            let error = group.iter().map(|of| squared(of.off(side))).sum();
            let norm = group.iter().map(|of| squared(&of.output)).sum();
            heads.push(HeadError { side, head, rank, relative_error: relative(error, norm), bytes });
        }
    }
    let (kv_heads, tokens, d) = activations.dim();
    Ok(Evaluation {
        layer: activations.layer,
        squared_error: outputs.heads.iter().map(|of| squared(&of.both)).sum(),
        squared_norm: outputs.heads.iter().map(|of| squared(&of.output)).sum(),
        bytes: cache.bytes(),
        bytes_uncompressed: 2 * 2 * (kv_heads * tokens * d) as u64,
        heads,
    })
}

/// Those of one layer alone: the places of others' exact rows are not to be counted.
fn of_layer(projections: &Projections, layer: usize) -> Result<Projections> {
    let bases = |side| Ok(projections.bases(layer, side)?.to_vec());
    let (rope, frame) = (projections.rope().clone(), projections.frame());
    Projections::new(projections.kv_heads(), projections.head_dim(), rope, frame)?.with_layer(
        layer,
        bases(Side::Keys)?,
        bases(Side::Values)?,
    )
}

/// What each rank costs in accuracy, of one layer: for [`allocate`](super::allocate).
///
/// * `projections`: of at least the largest of `ranks`, as many bases of keys as of values
/// * returns [2 (keys, values), bases, ranks], a basis being a KV head unless projections are joint: the squared error of the output of the query heads
///   that share its KV heads with that side of them at that rank and all else as given, over the queries, relative to the output of all heads; through
///   W_o where the activations have [`Activations::output_gram`], each query head with an even share of it
///
/// # Errors
/// As [`evaluate`]; [`Error::Argument`] for a rank that is 0 or too large; [`Error::Shape`] for unequal numbers of bases.
pub fn error_table(
    device: &Device,
    projections: &Projections,
    activations: &Activations,
    options: &CacheOptions,
    ranks: &[usize],
) -> Result<Array3<f64>> {
    let projections = of_layer(projections, activations.layer)?;
    let bases = |side| projections.bases(activations.layer, side);
    let (of_keys, of_values) = (bases(Side::Keys)?, bases(Side::Values)?);
    if of_keys.len() != of_values.len() {
        return shape("bases of keys and of values", "as many of both".into(), &[of_keys.len(), of_values.len()]);
    }
    // The basis of each head.
    let basis_of = [of_keys, of_values].map(|sets| -> Vec<usize> {
        sets.iter().enumerate().flat_map(|(basis, set)| vec![basis; set.heads()]).collect()
    });
    let measure = |rows: &Array2<f64>, head: usize| match &activations.output_gram {
        Some(gram) => (rows * &rows.dot(&gram.index_axis(Axis(0), head))).sum() / activations.group() as f64,
        None => squared(rows),
    };
    let mut table = Array3::zeros((2, of_keys.len(), ranks.len()));
    let mut norm = 0.0;
    for (column, &rank) in ranks.iter().enumerate() {
        let outputs = activations.outputs(device, &projections.with_rank(rank)?, options)?;
        norm = 0.0;
        for head in 0..activations.dim().0 {
            for of in outputs.of_group(head) {
                norm += measure(&of.output, head);
                for (row, side) in [Side::Keys, Side::Values].into_iter().enumerate() {
                    table[[row, basis_of[row][head], column]] += measure(of.off(side), head);
                }
            }
        }
    }
    if norm > 0.0 {
        table /= norm;
    }
    Ok(table)
}
