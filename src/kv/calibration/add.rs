//! Batches of activations into moments.

use ndarray::{Array4, ArrayView4, Ix3, Ix4};

use super::*;
use crate::attention::AttentionElement;
use crate::device::Device;
use crate::kernels::matmul;
use crate::tensor::Tensor;

/// Rows of a product: on a GPU f32 sums of so many.
const ROWS: usize = 1024;
/// Of the positions that a query sees, each one of so many equal parts.
const SAMPLES: usize = 4;
/// Spreads where in its part a sample is evenly over consecutive queries.
const GOLDEN: f64 = 0.618_033_988_749_894_9;

/// The activations of a call, checked and in f32: [sequences, heads, n, d], and the first position of each sequence.
struct Batch<'a> {
    device: &'a Device,
    starts: &'a [usize],
    q: Array4<f32>,
    k: Array4<f32>,
    v: Array4<f32>,
}

/// The last position at which a sequence may begin: f64 tells it from its neighbours, and no position of the sequence is beyond usize.
const MAX_START: usize = 1 << if usize::BITS == 64 { 52 } else { 31 };

impl Calibration {
    /// Adds a batch of a layer's activations, after rotary embedding as the cache gets them.
    ///
    /// * `starts`: of each sequence the position of its first token
    /// * `q`: [sequences, q_heads, q_len, d], of the last q_len tokens; `k`, `v`: [sequences, kv_heads, n, d] with n >= q_len; finite, of one device
    ///
    /// A sequence that comes in several batches counts as several for the attention that values get: queries attend within their batch, causally. Waits
    /// for a GPU.
    ///
    /// # Errors
    /// [`Error::Shape`]; [`Error::DeviceMismatch`]; [`Error::Domain`] names the first element that is not finite; [`Error::Argument`] for a layer that came
    /// of a file without counts; the device's own. It is then as before.
    pub fn add<T: AttentionElement>(
        &mut self,
        layer: usize,
        starts: &[usize],
        q: &Tensor<T, Ix4>,
        k: &Tensor<T, Ix4>,
        v: &Tensor<T, Ix4>,
    ) -> Result<()> {
        let batch = self.batch(layer, starts, q, k, v)?;
        self.take(layer, &batch)
    }

    /// [`Calibration::add`] of queries and keys before rotary embedding.
    ///
    /// # Errors
    /// As [`Calibration::add`].
    pub fn add_unrotated<T: AttentionElement>(
        &mut self,
        layer: usize,
        starts: &[usize],
        q: &Tensor<T, Ix4>,
        k: &Tensor<T, Ix4>,
        v: &Tensor<T, Ix4>,
    ) -> Result<()> {
        let mut batch = self.batch(layer, starts, q, k, v)?;
        let turns = self.turns();
        let (count, q_len) = (batch.k.dim().2, batch.q.dim().2);
        let mut angles = Vec::new();
        for (sequence, &start) in starts.iter().enumerate() {
            for (rows, first) in [(&mut batch.k, 0), (&mut batch.q, count - q_len)] {
                let mut of_sequence = rows.index_axis_mut(Axis(0), sequence);
                for (n, mut token) in of_sequence.axis_iter_mut(Axis(1)).enumerate() {
                    turns.angles(start + first + n, &mut angles);
                    for mut row in token.outer_iter_mut() {
                        if let Some(row) = row.as_slice_mut() {
                            turns.forth(row, &angles);
                        }
                    }
                }
            }
        }
        self.take(layer, &batch)
    }

    /// Adds inputs of a layer, [sequences, n, width], as W_k and W_v take them: the mean of their absolute values, for [`Weighting::Asvd`].
    ///
    /// # Errors
    /// [`Error::Shape`] for another width than before, or than that of the weights; [`Error::Domain`] names the first element that is not finite;
    /// [`Error::Argument`] for a layer that came of a file without counts; the device's own.
    pub fn add_inputs<T: AttentionElement>(&mut self, layer: usize, x: &Tensor<T, Ix3>) -> Result<()> {
        self.counted(layer)?;
        let width = x.shape()[2];
        let known = self.layers.get(&layer).and_then(|layer| {
            let inputs = layer.inputs.as_ref().map(|inputs| inputs.sum.len());
            inputs.or_else(|| layer.weights[0].as_ref().map(Array2::ncols))
        });
        if let Some(known) = known.filter(|known| *known != width) {
            let expected = format!("[sequences, n, {known}]");
            return Err(Error::Shape { place: PLACE, quantity: "x", expected, found: x.shape().to_vec() });
        }
        let x = x.to_array()?.mapv(AttentionElement::widen);
        finite(PLACE, "x", x.iter())?;
        let mut sum = Array1::zeros(width);
        for row in x.rows() {
            sum.zip_mut_with(&row, |sum: &mut f64, x| *sum += f64::from(x.abs()));
        }
        let new = Inputs { count: (x.dim().0 * x.dim().1) as f64, sum };
        let layer = self.layer(layer);
        layer.inputs = Inputs::merged(layer.inputs.take(), Some(&new)).filter(|inputs| inputs.count > 0.0);
        Ok(())
    }

    fn counted(&self, layer: usize) -> Result<()> {
        match self.layers.get(&layer).is_some_and(|layer| layer.uncounted) {
            true => argument("layer", format!("counts of the rows of layer {layer}"), "a file without them"),
            false => Ok(()),
        }
    }

    fn batch<'a, T: AttentionElement>(
        &self,
        layer: usize,
        starts: &'a [usize],
        q: &'a Tensor<T, Ix4>,
        k: &Tensor<T, Ix4>,
        v: &Tensor<T, Ix4>,
    ) -> Result<Batch<'a>> {
        self.counted(layer)?;
        let device = q.device();
        device.same(PLACE, "k", k.device())?;
        device.same(PLACE, "v", v.device())?;
        let (count, q_len) = (k.shape()[2], q.shape()[2]);
        let of = |heads: usize, count: usize| [starts.len(), heads, count, self.head_dim];
        let expected = [
            ("k", k.shape(), of(self.kv_heads, count)),
            ("v", v.shape(), of(self.kv_heads, count)),
            ("q", q.shape(), of(self.q_heads, q_len.min(count))),
        ];
        for (quantity, found, expected) in expected {
            if found != expected {
                let expected = format!("{expected:?} in layer {layer}");
                return Err(Error::Shape { place: PLACE, quantity, expected, found: found.to_vec() });
            }
        }
        if let Some(start) = starts.iter().find(|start| **start > MAX_START) {
            return super::argument("starts", format!("at most {MAX_START}"), start);
        }
        let host = |quantity, tensor: &Tensor<T, Ix4>| {
            let array = tensor.to_array()?.mapv(AttentionElement::widen);
            finite(PLACE, quantity, array.iter())?;
            Ok(array)
        };
        Ok(Batch { device, starts, q: host("q", q)?, k: host("k", k)?, v: host("v", v)? })
    }

    fn take(&mut self, layer: usize, batch: &Batch<'_>) -> Result<()> {
        let (sequences, _, count, _) = batch.k.dim();
        if sequences * count == 0 {
            return Ok(());
        }
        let turns = self.turns();
        let mut keys = side_by_side(batch.k.view());
        for (token, mut row) in keys.outer_iter_mut().enumerate() {
            let origin = turns.origin(batch.starts[token / count] + token % count);
            let mut angles = Vec::new();
            turns.angles(origin, &mut angles);
            let Some(row) = row.as_slice_mut() else { unreachable!("new arrays are in row-major order") };
            row.chunks_exact_mut(self.head_dim).for_each(|row| turns.back(row, &angles));
        }
        let mut values = side_by_side(batch.v.view());
        let alike = Array2::ones((sequences * count, self.kv_heads));
        let mut new = LayerMoments {
            keys: Some(moments(batch.device, &keys, &alike)?),
            values: Some(moments(batch.device, &values, &alike)?),
            ..LayerMoments::default()
        };
        drop(keys);
        if batch.q.dim().2 > 0 {
            new.queries = Some(self.queries(batch, &turns)?);
            let weights = attended::weights(batch.device, &batch.q, &batch.k, batch.starts, self.sinks)?;
            let roots = weights.mapv(f64::sqrt);
            for (mut row, roots) in values.outer_iter_mut().zip(roots.outer_iter()) {
                let scaled = |(i, x): (usize, &mut f32)| *x = (f64::from(*x) * roots[i / self.head_dim]) as f32;
                row.iter_mut().enumerate().for_each(scaled);
            }
            // Of rows times the root of their weight: their products, and w x = sqrt(w) (sqrt(w) x).
            let mut attended = moments(batch.device, &values, &roots)?;
            attended.weights = weights.sum_axis(Axis(0));
            new.attended = Some(attended);
        }
        let layer = self.layer(layer);
        layer.keys = Moments::merged(layer.keys.take(), new.keys.as_ref());
        layer.values = Moments::merged(layer.values.take(), new.values.as_ref());
        layer.attended = Moments::merged(layer.attended.take(), new.attended.as_ref());
        layer.queries = QueryMoments::merged(layer.queries.take(), new.queries.as_ref());
        Ok(())
    }

    /// Each query relative to the origins of some of the keys it sees.
    fn queries(&self, batch: &Batch<'_>, turns: &Turns) -> Result<QueryMoments> {
        let (sequences, q_heads, q_len, d) = batch.q.dim();
        let samples = if turns.block().is_some() { SAMPLES } else { 1 };
        let before = batch.k.dim().2 - q_len;
        let angles: Vec<Vec<(f32, f32)>> = (0..sequences * q_len * samples)
            .map(|row| {
                let (query, sample) = (row / samples, row % samples);
                let position = batch.starts[query / q_len] + before + query % q_len;
                let part = (sample as f64 + (position as f64 * GOLDEN).fract()) / samples as f64;
                let key = ((position + 1) as f64 * part) as usize;
                let mut angles = Vec::new();
                turns.angles(turns.origin(key.min(position)), &mut angles);
                angles
            })
            .collect();
        let mut products = Array3::zeros((q_heads, d, d));
        for (head, mut product) in products.outer_iter_mut().enumerate() {
            let mut rows = Array2::zeros((angles.len(), d));
            for (row, (mut to, angles)) in rows.outer_iter_mut().zip(&angles).enumerate() {
                let query = row / samples;
                to.assign(&batch.q.slice(s![query / q_len, head, query % q_len, ..]));
                let Some(to) = to.as_slice_mut() else { unreachable!("new arrays are in row-major order") };
                turns.back(to, angles);
            }
            product.assign(&gram(batch.device, &rows)?);
        }
        Ok(QueryMoments { count: angles.len() as f64, products })
    }
}

/// [sequences, heads, n, d] as [sequences * n, heads * d].
fn side_by_side(rows: ArrayView4<'_, f32>) -> Array2<f32> {
    let (sequences, heads, count, d) = rows.dim();
    let by_token = rows.permuted_axes([0, 2, 1, 3]);
    let elements = by_token.iter().copied().collect();
    match Array2::from_shape_vec((sequences * count, heads * d), elements) {
        Ok(rows) => rows,
        Err(_) => unreachable!("as many elements"),
    }
}

/// The products of rows, and their sums with these weights, (rows, heads).
fn moments(device: &Device, rows: &Array2<f32>, weights: &Array2<f64>) -> Result<Moments> {
    let heads = weights.ncols();
    let d = rows.ncols() / heads;
    let mut sums = Array1::<f64>::zeros(rows.ncols());
    for (row, weights) in rows.outer_iter().zip(weights.outer_iter()) {
        sums.iter_mut().zip(row).enumerate().for_each(|(i, (sum, x))| *sum += weights[i / d] * f64::from(*x));
    }
    Ok(Moments { weights: weights.sum_axis(Axis(0)), sums, products: gram(device, rows)? })
}

/// rows^T rows.
fn gram(device: &Device, rows: &Array2<f32>) -> Result<Array2<f64>> {
    let mut out = Array2::zeros((rows.ncols(), rows.ncols()));
    for rows in rows.axis_chunks_iter(Axis(0), ROWS) {
        if device.is_cpu() {
            let rows = device.tensor_from(rows.mapv(f64::from))?;
            out += &matmul(&rows, &rows, true, false)?.to_array()?;
        } else {
            let rows = device.tensor(&rows)?;
            out += &matmul(&rows, &rows, true, false)?.to_array()?.mapv(f64::from);
        }
    }
    Ok(out)
}
