//! Shapes and options of one call, checked.

use std::ops::Range;

use super::Options;
use crate::device::Device;
use crate::{Error, Result};

/// The score of a key that is not seen, and the log-sum-exp of a query that sees none: finite, for WGSL knows no infinity.
pub(crate) const NO_KEY: f32 = -1e30;
/// The largest head size.
const MAX_HEAD: usize = 256;

/// Everything of a call but its elements.
#[derive(Debug, Clone)]
pub(crate) struct Problem {
    pub(crate) batch: usize,
    pub(crate) q_heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) q_len: usize,
    pub(crate) kv_len: usize,
    pub(crate) d: usize,
    pub(crate) d_v: usize,
    pub(crate) scale: f32,
    pub(crate) causal: bool,
    pub(crate) window: Option<usize>,
    pub(crate) softcap: Option<f32>,
    /// Strides, in elements, of the bias along sequence, query head, query and key; 0 where it is broadcast.
    pub(crate) bias_strides: Option<[usize; 4]>,
    pub(crate) sequences: Vec<Sequence>,
}

/// Queries that see the same keys: one of the batch, or one of a ragged row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sequence {
    /// Where it lies in the tensors' first axis.
    pub(crate) batch: usize,
    pub(crate) q_start: usize,
    pub(crate) q_len: usize,
    pub(crate) kv_start: usize,
    pub(crate) kv_len: usize,
}

impl Problem {
    /// The problem that tensors of these shapes and `options` make, or which of them does not fit.
    pub(crate) fn new(
        place: &'static str,
        device: &Device,
        q: &[usize],
        k: &[usize],
        v: &[usize],
        options: &Options,
    ) -> Result<Self> {
        let shape = |quantity, expected: String, found: &[usize]| {
            Err(Error::Shape { place, quantity, expected, found: found.to_vec() })
        };
        let argument =
            |quantity, expected: String, found: String| Err(Error::Argument { place, quantity, expected, found });
        let ([batch, q_heads, q_len, d], [_, kv_heads, kv_len, _], [.., d_v]) = (q, k, v) else {
            unreachable!("tensors of four axes")
        };
        let (&batch, &q_heads, &q_len, &d, &kv_heads, &kv_len, &d_v) =
            (batch, q_heads, q_len, d, kv_heads, kv_len, d_v);
        if !(1..=MAX_HEAD).contains(&d) {
            return shape("q", format!("[batch, q_heads, q_len, d] with d from 1 to {MAX_HEAD}"), q);
        }
        if k[0] != batch || k[3] != d {
            return shape("k", format!("[{batch}, kv_heads, kv_len, {d}], as q"), k);
        }
        if v[..3] != k[..3] {
            return shape("v", format!("[{batch}, {kv_heads}, {kv_len}, d_v], as k"), v);
        }
        if !(1..=MAX_HEAD).contains(&d_v) {
            return shape("v", format!("[batch, kv_heads, kv_len, d_v] with d_v from 1 to {MAX_HEAD}"), v);
        }
        if kv_heads == 0 || q_heads == 0 || !q_heads.is_multiple_of(kv_heads) {
            return shape("k", format!("kv_heads that divide the {q_heads} heads of q"), k);
        }
        per_head(place, "sinks", &options.sinks, q_heads)?;
        per_head(place, "alibi", &options.alibi, q_heads)?;
        let scale = options.scale.unwrap_or_else(|| (1.0 / (d as f64).sqrt()) as f32);
        if !scale.is_finite() {
            return argument("scale", "a finite number".into(), scale.to_string());
        }
        if options.window == Some(0) {
            return argument("window", "at least 1".into(), "0".into());
        }
        if options.splits == Some(0) {
            return argument("splits", "at least 1".into(), "0".into());
        }
        if let Some(cap) = options.softcap.filter(|cap| !(cap.is_finite() && *cap > 0.0)) {
            return argument("softcap", "a finite number above 0".into(), cap.to_string());
        }
        let sequences = match (&options.ragged, &options.key_lengths) {
            (Some(_), Some(_)) => {
                return argument("key_lengths", "none where sequences are ragged".into(), "both".into());
            }
            (Some((q_offsets, kv_offsets)), None) => {
                if batch != 1 {
                    return shape("q", "batch 1 where sequences are ragged".into(), q);
                }
                offsets(place, "q_offsets", q_offsets, q_len)?;
                offsets(place, "kv_offsets", kv_offsets, kv_len)?;
                if q_offsets.len() != kv_offsets.len() {
                    let expected = format!("{} offsets, as q_offsets", q_offsets.len());
                    return argument("kv_offsets", expected, kv_offsets.len().to_string());
                }
                let pairs = q_offsets.windows(2).zip(kv_offsets.windows(2));
                pairs
                    .map(|(q, kv)| Sequence {
                        batch: 0,
                        q_start: q[0],
                        q_len: q[1] - q[0],
                        kv_start: kv[0],
                        kv_len: kv[1] - kv[0],
                    })
                    .collect()
            }
            (None, lengths) => {
                if let Some(lengths) = lengths {
                    if lengths.len() != batch {
                        return shape("key_lengths", format!("[{batch}], one for each batch"), &[lengths.len()]);
                    }
                    if let Some(longest) = lengths.iter().find(|length| **length > kv_len) {
                        return argument(
                            "key_lengths",
                            format!("at most {kv_len}, the keys there are"),
                            longest.to_string(),
                        );
                    }
                }
                let kv_len = |batch: usize| lengths.as_ref().map_or(kv_len, |lengths| lengths[batch]);
                (0..batch)
                    .map(|batch| Sequence { batch, q_start: 0, q_len, kv_start: 0, kv_len: kv_len(batch) })
                    .collect::<Vec<_>>()
            }
        };
        let bias_strides = match &options.bias {
            None => None,
            Some(bias) => {
                device.same(place, "bias", bias.device())?;
                let (longest_q, longest_kv) = match &options.ragged {
                    None => (q_len, kv_len),
                    Some(_) => sequences.iter().fold((0, 0), |(q, kv): (usize, usize), sequence: &Sequence| {
                        (q.max(sequence.q_len), kv.max(sequence.kv_len))
                    }),
                };
                let full = [sequences.len(), q_heads, longest_q, longest_kv];
                let found = bias.shape();
                if found.iter().zip(full).any(|(&found, full)| found != 1 && found != full) {
                    return shape("bias", format!("{full:?} or 1 along any axis"), found);
                }
                let mut strides = [found[1] * found[2] * found[3], found[2] * found[3], found[3], 1];
                for (stride, &length) in strides.iter_mut().zip(found) {
                    if length == 1 {
                        *stride = 0;
                    }
                }
                Some(strides)
            }
        };
        Ok(Self {
            batch,
            q_heads,
            kv_heads,
            q_len,
            kv_len,
            d,
            d_v,
            scale,
            causal: options.causal,
            window: options.window,
            softcap: options.softcap,
            bias_strides,
            sequences,
        })
    }

    /// Query heads of a key head.
    pub(crate) fn group(&self) -> usize {
        self.q_heads / self.kv_heads
    }

    /// The keys that query `i` of `sequence` may see, both counted within it.
    pub(crate) fn keys(&self, sequence: &Sequence, i: usize) -> Range<usize> {
        let length = sequence.kv_len as i64;
        let position = i as i64 + length - sequence.q_len as i64;
        let window = self.window.map_or(i64::MAX / 2, |window| (window as u64).min(1 << 40) as i64);
        let first = (position - window + 1).clamp(0, length);
        let last = if self.causal { position + 1 } else { position.saturating_add(window) };
        let last = if self.causal || self.window.is_some() { last.clamp(0, length) } else { length };
        first as usize..(last.max(first)) as usize
    }
}

/// An error unless there is one finite value for each query head.
fn per_head(place: &'static str, quantity: &'static str, values: &Option<Vec<f32>>, heads: usize) -> Result<()> {
    let Some(values) = values else { return Ok(()) };
    if values.len() != heads {
        let expected = format!("[{heads}], one for each query head");
        return Err(Error::Shape { place, quantity, expected, found: vec![values.len()] });
    }
    match values.iter().position(|value| !value.is_finite()) {
        Some(index) => {
            let found = values[index].to_string();
            Err(Error::Domain { place, quantity, index, expected: "finite", found })
        }
        None => Ok(()),
    }
}

fn offsets(place: &'static str, quantity: &'static str, offsets: &[usize], end: usize) -> Result<()> {
    let fine = offsets.first() == Some(&0) && offsets.last() == Some(&end) && offsets.is_sorted();
    if fine {
        return Ok(());
    }
    let expected = format!("offsets from 0 to {end} that never fall");
    Err(Error::Argument { place, quantity, expected, found: format!("{offsets:?}") })
}
