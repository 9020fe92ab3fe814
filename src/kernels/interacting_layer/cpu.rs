//! The CPU's way: a sample at a time from its elements to its output, all of it in the first-level cache, 16 fields side by side.

use multiversion::multiversion;
use multiversion::target::target_cfg_f;
use rayon::prelude::*;

use super::Shape;
use crate::kernels::lanes::{LANES, Lanes, exp, fma, product};

/// Samples of a task.
const SAMPLES: usize = 16;

/// Fills `output` and `maps` (empty if they were not asked for); the first row that is not finite, if any is.
pub(super) fn forward(
    shape: &Shape,
    x: &[f32],
    projections: &[f32],
    output: &mut [f32],
    maps: &mut [f32],
) -> Option<usize> {
    let (fields, width) = (shape.fields, shape.width());
    if shape.batch == 0 || fields == 0 {
        return None;
    }
    let weights = Weights::new(shape, projections);
    let maps_stride = if shape.maps { shape.heads * fields * fields } else { 0 };
    let mut maps: Vec<&mut [f32]> = match maps_stride {
        0 => (0..shape.batch.div_ceil(SAMPLES)).map(|_| Default::default()).collect(),
        stride => maps.chunks_mut(SAMPLES * stride).collect(),
    };
    output
        .par_chunks_mut(SAMPLES * fields * width)
        .zip(maps.par_iter_mut())
        .enumerate()
        .map_init(
            || Scratch::new(shape),
            |scratch, (task, (output, maps))| {
                let x = &x[task * SAMPLES * fields * shape.input..];
                let mut bad = None;
                for (sample, output) in output.chunks_mut(fields * width).enumerate() {
                    let x = &x[sample * fields * shape.input..][..fields * shape.input];
                    let maps = &mut maps[sample * maps_stride..][..maps_stride];
                    let row = one(shape, &weights, x, scratch, output, maps);
                    bad = bad.or(row.map(|row| (task * SAMPLES + sample) * fields + row));
                }
                bad
            },
        )
        .reduce(|| None, |a, b| a.min(b).or(a).or(b))
}

/// The projections as they are multiplied.
struct Weights {
    /// [in, columns of query, key and residual].
    rows: Vec<f32>,
    stride: usize,
    /// Those of the value: [heads, blocks of 16 columns, in].
    value: Vec<Lanes>,
}

impl Weights {
    fn new(shape: &Shape, projections: &[f32]) -> Self {
        let stride = shape.columns() - shape.width();
        let rows = projections.chunks(shape.columns()).flat_map(|row| row[..stride].iter().copied()).collect();
        let mut value = vec![[0.0; LANES]; shape.heads * shape.blocks() * shape.input];
        for (k, row) in projections.chunks(shape.columns()).enumerate() {
            for (head, columns) in row[stride..].chunks(shape.head_dim).enumerate() {
                for (c, &weight) in columns.iter().enumerate() {
                    value[(head * shape.blocks() + c / LANES) * shape.input + k][c % LANES] = weight;
                }
            }
        }
        Self { rows, stride, value }
    }
}

impl Shape {
    /// Blocks of 16 columns of a head.
    fn blocks(&self) -> usize {
        self.head_dim.div_ceil(LANES)
    }
}

/// What one sample goes through.
struct Scratch {
    /// [blocks of fields, in].
    x: Vec<Lanes>,
    /// [blocks of fields, columns of query, key and residual].
    projected: Vec<Lanes>,
    /// Of one head, [blocks of columns, fields, rounded up].
    values: Vec<Lanes>,
    /// Of 16 queries: a score, then a weight, of each key.
    scores: Vec<Lanes>,
    /// Of 16 queries: the columns of a head, rounded up.
    sums: Vec<Lanes>,
}

impl Scratch {
    fn new(shape: &Shape) -> Self {
        let blocks = shape.fields.div_ceil(LANES);
        let lanes = |count| vec![[0.0; LANES]; count];
        Self {
            x: lanes(blocks * shape.input),
            projected: lanes(blocks * (shape.columns() - shape.width())),
            values: lanes(shape.blocks() * blocks * LANES),
            scores: lanes(blocks * LANES),
            sums: lanes(shape.blocks() * LANES),
        }
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512cd+avx512dq+avx512vl+avx2+fma", "x86_64+avx2+fma"))]
fn one(
    shape: &Shape,
    weights: &Weights,
    x: &[f32],
    scratch: &mut Scratch,
    output: &mut [f32],
    maps: &mut [f32],
) -> Option<usize> {
    if target_cfg_f!(any(target_feature = "fma", target_arch = "aarch64")) {
        sample::<true>(shape, weights, x, scratch, output, maps)
    } else {
        sample::<false>(shape, weights, x, scratch, output, maps)
    }
}

/// One sample; the first of its rows that is not finite.
#[inline(always)]
fn sample<const FUSED: bool>(
    shape: &Shape,
    weights: &Weights,
    x: &[f32],
    scratch: &mut Scratch,
    output: &mut [f32],
    maps: &mut [f32],
) -> Option<usize> {
    let &Shape { fields, input, head_dim, heads, .. } = shape;
    let (width, blocks) = (shape.width(), fields.div_ceil(LANES));
    let Scratch { x: columns, projected, values, scores, sums } = scratch;
    for (field, row) in x.chunks_exact(input.max(1)).enumerate() {
        let block = &mut columns[field / LANES * input..][..input];
        for (column, &value) in block.iter_mut().zip(row) {
            column[field % LANES] = value;
        }
    }
    let stride = weights.stride;
    for block in 0..blocks {
        let to = &mut projected[block * stride..][..stride];
        product::<FUSED>(&weights.rows, stride, &columns[block * input..][..input], to);
        // The scale goes with the query.
        if shape.scale != 1.0 {
            to[..width].as_flattened_mut().iter_mut().for_each(|q| *q *= shape.scale);
        }
    }
    let mut first_bad = None;
    for head in 0..heads {
        let value_blocks = shape.blocks();
        for part in 0..value_blocks {
            let weights = &weights.value[(head * value_blocks + part) * input..][..input];
            for block in 0..blocks {
                let to = &mut values[(part * blocks + block) * LANES..][..(fields - block * LANES).min(LANES)];
                product::<FUSED>(columns[block * input..][..input].as_flattened(), LANES, weights, to);
            }
        }
        for block in 0..blocks {
            let query = &projected[block * stride + head * head_dim..][..head_dim];
            for keys in 0..blocks {
                let key = &projected[keys * stride + width + head * head_dim..][..head_dim];
                // As many as there are, in whole tiles of 8.
                let count = (fields - keys * LANES).min(LANES).next_multiple_of(8);
                product::<FUSED>(key.as_flattened(), LANES, query, &mut scores[keys * LANES..][..count]);
            }
            let scores = &mut scores[..fields];
            let inverse = softmax::<FUSED>(scores);
            for part in 0..value_blocks {
                let count = (head_dim - part * LANES).min(LANES);
                let value = values[part * blocks * LANES..][..fields].as_flattened();
                product::<FUSED>(value, LANES, scores, &mut sums[part * LANES..][..count]);
            }
            let residual =
                shape.residual.then(|| &projected[block * stride + 2 * width + head * head_dim..][..head_dim]);
            let sums = &mut sums[..head_dim];
            let mut check = [0.0; LANES];
            for (c, sums) in sums.iter_mut().enumerate() {
                for lane in 0..LANES {
                    let residual = residual.map_or(0.0, |residual| residual[c][lane]);
                    let value = fma::<FUSED>(sums[lane], inverse[lane], residual);
                    // 0 of a finite value, NaN of any other.
                    check[lane] += value * 0.0;
                    sums[lane] = if value > 0.0 { value } else { 0.0 };
                }
            }
            let begin = block * LANES;
            for lane in 0..(fields - begin).min(LANES) {
                let row = &mut output[(begin + lane) * width + head * head_dim..][..head_dim];
                for (out, sums) in row.iter_mut().zip(&*sums) {
                    *out = sums[lane];
                }
                if check[lane] != 0.0 {
                    first_bad = Some(first_bad.map_or(begin + lane, |known: usize| known.min(begin + lane)));
                }
                if !maps.is_empty() {
                    let row = &mut maps[(head * fields + begin + lane) * fields..][..fields];
                    for (out, scores) in row.iter_mut().zip(&*scores) {
                        *out = scores[lane] * inverse[lane];
                    }
                }
            }
        }
    }
    first_bad
}

/// Each score becomes exp(score - the largest of its lane); gives 1 / their sums.
#[inline(always)]
fn softmax<const FUSED: bool>(scores: &mut [Lanes]) -> Lanes {
    let mut largest = [f32::MIN; LANES];
    for score in &*scores {
        for lane in 0..LANES {
            largest[lane] = if score[lane] > largest[lane] { score[lane] } else { largest[lane] };
        }
    }
    let mut total = [0.0; LANES];
    for score in scores {
        for lane in 0..LANES {
            score[lane] = exp::<FUSED>(score[lane] - largest[lane]);
            total[lane] += score[lane];
        }
    }
    total.map(|total| 1.0 / total)
}
