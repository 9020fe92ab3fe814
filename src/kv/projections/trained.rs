//! Projections that the codes of the papers trained.

use std::collections::BTreeSet;
use std::path::Path;

use faer::linalg::solvers::Solve;
use faer::{Mat, Side as Triangle};
use ndarray::{Array1, Array2, ArrayD, Ix2, Ix3, IxDyn, s};

use super::file::single;
use super::*;
use crate::kv::files::Reading;

/// The names of MatryoshkaKV's tensors, `{layer}` standing for the layer's number. Defaults are those of the paper's code (modeling_pcallama, a state dict as
/// `.safetensors`).
///
/// Per layer: `keys` and `values`, [kv_heads, d, d], of which column i is the i-th direction of a head; `key_means`, `value_means`, kv_heads d elements in
/// any shape, zeros where the file has none. With `cayley`, matrices are the X of the trained parametrisation, Q = (I - A/2)^-1 (I + A/2) with
/// A = X - X^T.
#[allow(missing_docs)]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MatryoshkaNames {
    pub keys: String,
    pub values: String,
    pub key_means: String,
    pub value_means: String,
    pub cayley: bool,
}

impl Default for MatryoshkaNames {
    /// The parameters as they are trained: `key_unitary_transform_weights` and so on.
    fn default() -> Self {
        let name = |what: &str| format!("model.layers.{{layer}}.self_attn.{what}");
        Self {
            keys: name("key_unitary_transform_weights"),
            values: name("value_unitary_transform_weights"),
            key_means: name("mean_key_weights"),
            value_means: name("mean_value_weights"),
            cayley: true,
        }
    }
}

impl MatryoshkaNames {
    /// The orthogonal matrices themselves: `key_unitary_transform_matrix` and so on, the code's buffers.
    pub fn matrices() -> Self {
        let name = |what: &str| format!("model.layers.{{layer}}.self_attn.{what}");
        Self {
            keys: name("key_unitary_transform_matrix"),
            values: name("value_unitary_transform_matrix"),
            key_means: name("mean_key_states"),
            value_means: name("mean_value_states"),
            cayley: false,
        }
    }
}

/// The names of CSKV's tensors, `{layer}` standing for the layer's number. Defaults are those of the paper's code.
///
/// Per layer: `key_a`, [r, width], latents of the layer's input; `key_b`, [kv_heads d, r], keys of latents; those of values. `key_weights`, [kv_heads d,
/// width]: W_k. Where the rows of W_k come before those of A in one tensor, [kv_heads d + r, width], as in the code's models for inference, `key_a` is that
/// tensor.
#[allow(missing_docs)]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CskvNames {
    pub key_a: String,
    pub key_b: String,
    pub key_weights: String,
    pub value_a: String,
    pub value_b: String,
    pub value_weights: String,
}

impl Default for CskvNames {
    fn default() -> Self {
        let name = |what: &str| format!("model.layers.{{layer}}.self_attn.{what}.weight");
        Self {
            key_a: name("k_proj_a"),
            key_b: name("k_proj_b"),
            key_weights: name("k_proj"),
            value_a: name("v_proj_a"),
            value_b: name("v_proj_b"),
            value_weights: name("v_proj"),
        }
    }
}

impl Projections {
    /// MatryoshkaKV's: an orthogonal matrix for each KV head, of keys after rotation. Every layer of the file that has `names.keys`; ranks follow by
    /// [`Projections::with_ranks`].
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Format`] for a file without such a layer, and names the tensor that is missing, of another shape, not finite or not orthogonal;
    /// [`Error::Argument`] as [`Projections::new`].
    pub fn load_matryoshka(
        path: impl AsRef<Path>,
        (kv_heads, head_dim): (usize, usize),
        rope: Rope,
        names: &MatryoshkaNames,
    ) -> Result<Self> {
        let file = Reading::open(path.as_ref(), "MatryoshkaKV file")?;
        let mut out = Self::new(kv_heads, head_dim, rope, Frame::Post)?;
        for layer in layers(&file, &names.keys)? {
            let bases = |matrices: &str, means: &str| {
                let (matrices, means) = (of_layer(matrices, layer), of_layer(means, layer));
                let found = file.shaped::<Ix3>(&matrices, &[kv_heads, head_dim, head_dim])?;
                let mean = match file.has(&means)? {
                    true => file.floats::<IxDyn>(&means)?,
                    false => ArrayD::zeros(vec![kv_heads * head_dim]),
                };
                if mean.len() != kv_heads * head_dim {
                    let expected = format!("expected {kv_heads} heads of {head_dim}");
                    return file.format(format!("{means} has shape {:?}, {expected}", mean.shape()));
                }
                let mean: Vec<f32> = mean.iter().map(|x| *x as f32).collect();
                let basis = |(head, matrix): (usize, ndarray::ArrayView2<'_, f64>)| {
                    let q = if names.cayley { cayley(&matrix.to_owned()) } else { matrix.to_owned() };
                    let mean = Array1::from(mean[head * head_dim..][..head_dim].to_vec());
                    let basis = Basis::orthogonal(1, mean, single(q.reversed_axes()));
                    basis.or_else(|error| file.format(format!("{matrices} of head {head}: {error}")))
                };
                found.outer_iter().enumerate().map(basis).collect::<Result<Vec<_>>>()
            };
            let (keys, values) = (bases(&names.keys, &names.key_means)?, bases(&names.values, &names.value_means)?);
            out = out.with_layer(layer, keys, values)?;
        }
        Ok(out)
    }

    /// CSKV's: a pair of factors A, B of W_k and of W_v for each layer, joint over the heads, of keys before rotation.
    ///
    /// The paper's latents are A x of the layer's input x; a cache has only k = W_k x. With W_k in the file, latents are A W_k^+ k: the same where the
    /// rows of A lie in the span of W_k's, as they do at its start, and nearest to it once trained. Without, they are B^+ k, the best for B.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Format`] for a file without such a layer, and names the tensor that is missing, of another shape, or not finite, and factors of
    /// deficient rank; [`Error::Argument`] as [`Projections::new`].
    pub fn load_cskv(
        path: impl AsRef<Path>,
        (kv_heads, head_dim): (usize, usize),
        rope: Rope,
        names: &CskvNames,
    ) -> Result<Self> {
        let file = Reading::open(path.as_ref(), "CSKV file")?;
        let mut out = Self::new(kv_heads, head_dim, rope, Frame::Pre)?;
        let width = kv_heads * head_dim;
        for layer in layers(&file, &names.key_b)? {
            let basis = |a: &str, b: &str, weights: &str| -> Result<Vec<Basis>> {
                let [a, b, weights] = [a, b, weights].map(|name| of_layer(name, layer));
                let up = file.floats::<Ix2>(&b)?;
                let rank = up.ncols();
                if up.nrows() != width || !(1..=width).contains(&rank) {
                    return file.format(format!("{b} has shape {:?}, expected ({width}, rank)", up.shape()));
                }
                let mut factor = file.floats::<Ix2>(&a)?;
                let mut of_inputs = None;
                if factor.nrows() == width + rank {
                    of_inputs = Some(factor.slice(s![..width, ..]).to_owned());
                    factor = factor.slice(s![width.., ..]).to_owned();
                } else if file.has(&weights)? {
                    of_inputs = Some(file.shaped::<Ix2>(&weights, &[width, factor.ncols()])?);
                }
                if factor.nrows() != rank {
                    let expected = format!("expected {rank} rows, or {} with the weights", width + rank);
                    return file.format(format!("{a} has shape {:?}, {expected}", factor.shape()));
                }
                // down^T W = A, or up down^T nearest to the identity on the span of up.
                let down = match of_inputs {
                    Some(w) => solve(&w.dot(&w.t()), &w.dot(&factor.t())),
                    None => solve(&up.t().dot(&up), &up.t().to_owned()).map(Array2::reversed_axes),
                };
                let Some(down) = down else { return file.format(format!("{a} and {b} are of deficient rank")) };
                let set = Basis::new(kv_heads, Array1::zeros(width), single(down), single(up.reversed_axes()));
                Ok(vec![set.or_else(|error| file.format(format!("{a} and {b}: {error}")))?])
            };
            let keys = basis(&names.key_a, &names.key_b, &names.key_weights)?;
            let values = basis(&names.value_a, &names.value_b, &names.value_weights)?;
            out = out.with_layer(layer, keys, values)?;
        }
        Ok(out)
    }
}

fn of_layer(name: &str, layer: usize) -> String {
    name.replace("{layer}", &layer.to_string())
}

/// The layers that have a tensor of such a name; at least one.
fn layers(file: &Reading<'_>, name: &str) -> Result<BTreeSet<usize>> {
    let (before, after) = name.split_once("{layer}").unwrap_or((name, ""));
    let number = |name: &String| name.strip_prefix(before)?.strip_suffix(after)?.parse().ok();
    let found: BTreeSet<usize> = file.names()?.iter().filter_map(number).collect();
    match found.is_empty() {
        true => file.format(format!("there is no tensor {name} of any layer")),
        false => Ok(found),
    }
}

fn wide(matrix: &Array2<f64>) -> Mat<f64> {
    Mat::from_fn(matrix.nrows(), matrix.ncols(), |i, j| matrix[[i, j]])
}

/// gram^-1 right, of a gram matrix; none where it has no rank.
fn solve(gram: &Array2<f64>, right: &Array2<f64>) -> Option<Array2<f64>> {
    let gram = wide(gram);
    let largest = (0..gram.nrows()).map(|i| gram[(i, i)]).fold(0.0, f64::max);
    let factor = gram.llt(Triangle::Lower).ok()?;
    let worst = (0..gram.nrows()).map(|i| factor.L()[(i, i)].powi(2)).fold(f64::INFINITY, f64::min);
    if worst.is_nan() || worst <= 1e-12 * largest {
        return None;
    }
    let solved = factor.solve(wide(right));
    Some(Array2::from_shape_fn(right.dim(), |(i, j)| solved[(i, j)]))
}

/// (I - A/2)^-1 (I + A/2), A = X - X^T: orthogonal for every X.
fn cayley(x: &Array2<f64>) -> Array2<f64> {
    let n = x.nrows();
    let half = |i: usize, j: usize| 0.5 * (x[[i, j]] - x[[j, i]]);
    let one = |i: usize, j: usize| f64::from(u8::from(i == j));
    let left = Mat::from_fn(n, n, |i, j| one(i, j) - half(i, j));
    let right = Mat::from_fn(n, n, |i, j| one(i, j) + half(i, j));
    let solved = left.partial_piv_lu().solve(right);
    Array2::from_shape_fn((n, n), |(i, j)| solved[(i, j)])
}
