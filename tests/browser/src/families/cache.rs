//! Attention over keys and values of a decoder, whole and in a low-rank cache.

use half::f16;
use ndarray::{Array3, Array4, Axis, s};
use orthant::attention::{self, attention};
use orthant::kv::{
    AttendOptions, CacheOptions, Calibration, Frame, KvCache, LatentBits, ProjectionOptions, Rope, RopeLayout,
};
use orthant::{Device, Tensor};
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

use super::{Clock, Failure};

/// What the file says of itself: layer 8 of a decoder with rotary embedding of theta 1e5.
const LAYER: usize = 8;
const THETA: f64 = 1e5;

/// Queries, at the last positions.
const QUERIES: usize = 16;

const RANKS: [usize; 4] = [16, 32, 48, 64];
const BITS: [(LatentBits, u32); 3] = [(LatentBits::Two, 2), (LatentBits::Four, 4), (LatentBits::Eight, 8)];

fn rows(file: &SafeTensors<'_>, name: &str) -> Result<Array3<f32>, Failure> {
    let tensor = file.tensor(name)?;
    let [heads, count, d] = tensor.shape()[..] else { return Err(format!("{name} has not 3 axes").into()) };
    if tensor.dtype() != Dtype::F32 {
        return Err(format!("{name} is not of f32").into());
    }
    let elements = tensor.data().chunks_exact(4).map(|x| f32::from_le_bytes([x[0], x[1], x[2], x[3]])).collect();
    Ok(Array3::from_shape_vec((heads, count, d), elements)?)
}

fn relative_error(found: &Array4<f32>, exact: &Array4<f32>) -> f64 {
    let squares = |pair: (&f32, &f32)| (f64::from(*pair.0) - f64::from(*pair.1)).powi(2);
    let norm: f64 = exact.iter().map(|x| f64::from(*x).powi(2)).sum();
    (found.iter().zip(exact).map(squares).sum::<f64>() / norm).sqrt()
}

/// Attention of the last queries over all tokens, and over caches of several ranks and bits: ||O^ - O|| / ||O|| over all heads and queries against
/// the bytes of the cache. Projections are calibrated on other texts, by moments that the file has too.
pub async fn cache(device: &Device, activations: &[u8], now: Clock) -> Result<Value, Failure> {
    let file = SafeTensors::deserialize(activations)?;
    let (keys, values, queries) = (rows(&file, "k_post")?, rows(&file, "v")?, rows(&file, "q_post_last256")?);
    let queries = queries.slice(s![.., queries.dim().1 - QUERIES.., ..]).to_owned();
    let ((kv_heads, tokens, d), q_heads) = (keys.dim(), queries.dim().0);

    let start = now();
    let rope = Rope::new(RopeLayout::Halves, d, THETA)?;
    let mut calibration = Calibration::new((q_heads, kv_heads, d), rope, Frame::Block(64))?;
    calibration.read_moments_bytes(activations, LAYER)?;
    let projections = calibration.projections(&ProjectionOptions::new())?;
    let calibrated = now();

    let on = |array: &Array3<f32>| -> orthant::Result<Tensor<f32, _>> {
        device.tensor_from(array.clone().insert_axis(Axis(0)))
    };
    let (k, v, q) = (on(&keys)?, on(&values)?, on(&queries)?);
    let causal = attention::Options::new().causal();
    let exact = attention(&q, &k, &v, &causal)?.output.to_array_async().await?;

    // What rounding keys and values to f16 costs, uncompressed; and the time of attention, for the first call compiles.
    let half = |array: &Array3<f32>| array.mapv(|x| f16::from_f32(x).to_f32());
    let (k16, v16) = (on(&half(&keys))?, on(&half(&values))?);
    let again = now();
    let rounded = attention(&q, &k16, &v16, &causal)?.output.to_array_async().await?;
    let milliseconds_attention = now() - again;

    let mut points = Vec::new();
    for (bits, count) in BITS {
        for rank in RANKS {
            let options = CacheOptions::new().bits(bits, bits);
            let mut cache = KvCache::new(device, &projections.with_rank(rank)?, &options)?;
            let sequence = cache.insert()?;
            let before = now();
            cache.append_async(LAYER, &[sequence], &k, &v).await?;
            let packed = now();
            let attended = cache.attend(LAYER, &[sequence], &q, &AttendOptions::new().causal())?;
            let output = attended.output.to_array_async().await?;
            points.push(json!({
                "bits": count, "rank": rank, "bytes": cache.bytes(), "relative_error": relative_error(&output, &exact),
                "milliseconds_append": packed - before, "milliseconds_attend": now() - packed,
            }));
        }
    }
    let last = exact.slice(s![0, .., QUERIES - 1, ..8]);
    Ok(json!({
        "layer": LAYER, "tokens": tokens, "queries": QUERIES, "q_heads": q_heads, "kv_heads": kv_heads, "head_dim": d,
        "attention": last.iter().collect::<Vec<_>>(),
        "bytes_uncompressed": 2 * 2 * kv_heads * tokens * d, "relative_error_f16": relative_error(&rounded, &exact),
        "points": points, "milliseconds_calibration": calibrated - start, "milliseconds_attention": milliseconds_attention,
        "milliseconds": now() - start,
    }))
}
