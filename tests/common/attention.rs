//! Attention as its definition reads, in f64, one query and one key at a time: plain data in, plain data out.
#![allow(dead_code, reason = "each test binary uses a part")]

/// Shapes and options of one call. [`Setup::new`] has no option set; tests fill in fields.
#[derive(Debug, Clone, Default)]
pub struct Setup {
    pub batch: usize,
    pub q_heads: usize,
    pub kv_heads: usize,
    pub q_len: usize,
    pub kv_len: usize,
    pub d: usize,
    pub d_v: usize,
    /// Default 1 / sqrt(d).
    pub scale: Option<f64>,
    pub causal: bool,
    pub window: Option<usize>,
    pub softcap: Option<f64>,
    /// One a query head.
    pub alibi: Option<Vec<f32>>,
    /// One a query head.
    pub sinks: Option<Vec<f32>>,
    /// Shape (each axis 1 or full) and elements.
    pub bias: Option<([usize; 4], Vec<f32>)>,
    pub key_lengths: Option<Vec<usize>>,
    /// q_offsets, kv_offsets.
    pub ragged: Option<(Vec<usize>, Vec<usize>)>,
}

/// What [`forward`] gives.
#[derive(Debug, Clone)]
pub struct Forward {
    /// [batch, q_heads, q_len, d_v].
    pub output: Vec<f64>,
    /// [batch, q_heads, q_len]; -1e30 where a query sees no key (and there is no sink).
    pub lse: Vec<f64>,
}

/// One sequence: its number, batch, first query, queries, first key, keys.
struct Sequence {
    number: usize,
    batch: usize,
    q_start: usize,
    q_len: usize,
    kv_start: usize,
    kv_len: usize,
}

impl Setup {
    /// q [batch, q_heads, q_len, d], k [batch, kv_heads, kv_len, d], v [batch, kv_heads, kv_len, d_v].
    pub fn new(batch: usize, heads: (usize, usize), lengths: (usize, usize), sizes: (usize, usize)) -> Self {
        let ((q_heads, kv_heads), (q_len, kv_len), (d, d_v)) = (heads, lengths, sizes);
        Self { batch, q_heads, kv_heads, q_len, kv_len, d, d_v, ..Self::default() }
    }

    /// Elements of q, k, v.
    pub fn sizes(&self) -> [usize; 3] {
        let keys = self.batch * self.kv_heads * self.kv_len;
        [self.batch * self.q_heads * self.q_len * self.d, keys * self.d, keys * self.d_v]
    }

    fn sequences(&self) -> Vec<Sequence> {
        match &self.ragged {
            Some((q, kv)) => (0..q.len() - 1)
                .map(|number| Sequence {
                    number,
                    batch: 0,
                    q_start: q[number],
                    q_len: q[number + 1] - q[number],
                    kv_start: kv[number],
                    kv_len: kv[number + 1] - kv[number],
                })
                .collect(),
            None => (0..self.batch)
                .map(|batch| Sequence {
                    number: batch,
                    batch,
                    q_start: 0,
                    q_len: self.q_len,
                    kv_start: 0,
                    kv_len: self.key_lengths.as_ref().map_or(self.kv_len, |lengths| lengths[batch]),
                })
                .collect(),
        }
    }

    /// Whether query `i` of a sequence sees its key `j`, and how far apart they are.
    fn sees(&self, sequence: &Sequence, i: usize, j: usize) -> (bool, f64) {
        let distance = (i + sequence.kv_len) as i64 - sequence.q_len as i64 - j as i64;
        let window = self.window.map_or(i64::MAX, |window| i64::try_from(window).unwrap_or(i64::MAX));
        let ahead = if self.causal { distance >= 0 } else { -distance < window };
        (ahead && distance < window, distance as f64)
    }
}

/// The score of every key that `query` (sequence, head, i) sees: (place of the key's row in k and v, score, place of its bias).
fn scores(
    setup: &Setup,
    sequence: &Sequence,
    head: usize,
    i: usize,
    q: &[f64],
    k: &[f64],
) -> Vec<(usize, f64, Option<usize>)> {
    let scale = setup.scale.unwrap_or(1.0 / (setup.d as f64).sqrt());
    let kv_head = head / (setup.q_heads / setup.kv_heads);
    let q_row = (sequence.batch * setup.q_heads + head) * setup.q_len + sequence.q_start + i;
    let mut scores = Vec::new();
    for j in 0..sequence.kv_len {
        let (seen, distance) = setup.sees(sequence, i, j);
        if !seen {
            continue;
        }
        let k_row = (sequence.batch * setup.kv_heads + kv_head) * setup.kv_len + sequence.kv_start + j;
        let mut score = 0.0;
        for c in 0..setup.d {
            score += q[q_row * setup.d + c] * scale * k[k_row * setup.d + c];
        }
        if let Some(cap) = setup.softcap {
            score = cap * (score / cap).tanh();
        }
        if let Some(slopes) = &setup.alibi {
            score -= f64::from(slopes[head]) * distance.abs();
        }
        let mut bias_at = None;
        if let Some((shape, bias)) = &setup.bias {
            let mut at = 0;
            for (index, length) in [sequence.number, head, i, j].into_iter().zip(shape) {
                at = at * length + if *length == 1 { 0 } else { index };
            }
            let bias = f64::from(bias[at]);
            if bias <= -1e30 {
                continue;
            }
            score += bias;
            bias_at = Some(at);
        }
        scores.push((k_row, score, bias_at));
    }
    scores
}

/// `attention` of `q`, `k`, `v`, row-major, in f64.
pub fn forward(setup: &Setup, q: &[f64], k: &[f64], v: &[f64]) -> Forward {
    let rows = setup.batch * setup.q_heads * setup.q_len;
    let mut output = vec![0.0; rows * setup.d_v];
    let mut lse = vec![-1e30; rows];
    for sequence in setup.sequences() {
        for head in 0..setup.q_heads {
            for i in 0..sequence.q_len {
                let row = (sequence.batch * setup.q_heads + head) * setup.q_len + sequence.q_start + i;
                let scores = scores(setup, &sequence, head, i, q, k);
                let sink = setup.sinks.as_ref().map(|sinks| f64::from(sinks[head]));
                let largest = scores.iter().map(|score| score.1).chain(sink).fold(f64::NEG_INFINITY, f64::max);
                if largest == f64::NEG_INFINITY {
                    continue;
                }
                let mut total = sink.map_or(0.0, |sink| (sink - largest).exp());
                for &(k_row, score, _) in &scores {
                    let weight = (score - largest).exp();
                    total += weight;
                    for c in 0..setup.d_v {
                        output[row * setup.d_v + c] += weight * v[k_row * setup.d_v + c];
                    }
                }
                for c in 0..setup.d_v {
                    output[row * setup.d_v + c] /= total;
                }
                lse[row] = largest + total.ln();
            }
        }
    }
    Forward { output, lse }
}

/// Repeatable values in [-1, 1).
pub fn noise(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 8_388_608.0 - 1.0
        })
        .collect()
}

/// The largest `|actual - expected|` of a row of `width` over the largest `|expected|` of the row (or over `floor(row)` where that is more), and its row.
/// A NaN counts as infinite.
pub fn row_error(actual: &[f64], expected: &[f64], width: usize, floor: impl Fn(usize) -> f64) -> (f64, usize) {
    assert_eq!(actual.len(), expected.len(), "as many values");
    let rows = actual.chunks(width.max(1)).zip(expected.chunks(width.max(1)));
    rows.enumerate().fold((0.0, 0), |worst, (row, (actual, expected))| {
        let size = expected.iter().fold(floor(row), |size, value| size.max(value.abs()));
        let error = actual.iter().zip(expected).fold(0.0f64, |error, (a, b)| {
            let difference = (a - b).abs();
            if difference.is_nan() { f64::INFINITY } else { error.max(difference) }
        });
        let error = if error == 0.0 { 0.0 } else { error / size };
        if error > worst.0 { (error, row) } else { worst }
    })
}
