//! [`CacheOptions`] and [`AttendOptions`].

use crate::kv::latents::PAGE;
use crate::kv::{ExactType, LatentBits};
use crate::{Error, Result};

/// How a cache stores what it is given.
#[derive(Debug, Clone, PartialEq)]
pub struct CacheOptions {
    pub(crate) key_bits: LatentBits,
    pub(crate) value_bits: LatentBits,
    pub(crate) window: usize,
    pub(crate) sinks: usize,
    pub(crate) exact: ExactType,
    pub(crate) capacity: Option<u64>,
}

impl Default for CacheOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl CacheOptions {
    /// 4 bits for keys and values, the last 32 to 63 tokens and the first 4 exact in f16, no limit.
    pub fn new() -> Self {
        Self {
            key_bits: LatentBits::Four,
            value_bits: LatentBits::Four,
            window: PAGE,
            sinks: 4,
            exact: ExactType::Half,
            capacity: None,
        }
    }

    /// Bits of the latents of keys and of values.
    pub fn bits(mut self, keys: LatentBits, values: LatentBits) -> Self {
        (self.key_bits, self.value_bits) = (keys, values);
        self
    }

    /// So many of the last tokens are exact, and up to 31 more, until a page of 32 is full. At 8 bits and below at least 32.
    pub fn window(mut self, window: usize) -> Self {
        self.window = window;
        self
    }

    /// So many of the first tokens are exact, at most 32.
    pub fn sinks(mut self, sinks: usize) -> Self {
        self.sinks = sinks;
        self
    }

    /// What exact rows are stored as. What is appended is rounded to it first.
    pub fn exact(mut self, exact: ExactType) -> Self {
        self.exact = exact;
        self
    }

    /// Bytes that may be in use, as [`KvCache::bytes`](super::KvCache::bytes) counts them.
    pub fn capacity(mut self, bytes: u64) -> Self {
        self.capacity = Some(bytes);
        self
    }

    pub(super) fn check(&self) -> Result<()> {
        let argument = |quantity, expected: &str, found: usize| {
            Err(Error::Argument { place: "KvCache", quantity, expected: expected.into(), found: found.to_string() })
        };
        if self.sinks > PAGE {
            return argument("sinks", "at most 32", self.sinks);
        }
        if self.window < PAGE && (self.key_bits.quantised() || self.value_bits.quantised()) {
            return argument("window", "at least the 32 tokens of a quantisation block", self.window);
        }
        if self.window > 1 << 20 {
            return argument("window", "at most 1048576", self.window);
        }
        Ok(())
    }
}

/// What an attention over a cache masks and returns. [`AttendOptions::default`]: every query sees all tokens, scale 1 / sqrt(d), no log-sum-exp.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AttendOptions {
    pub(crate) causal: bool,
    pub(crate) scale: Option<f32>,
    pub(crate) lse: bool,
}

impl AttendOptions {
    /// As [`AttendOptions::default`].
    pub fn new() -> Self {
        Self::default()
    }

    /// Query i of q_len sees the tokens n <= len - q_len + i of its sequence only.
    pub fn causal(mut self) -> Self {
        self.causal = true;
        self
    }

    /// What scores are multiplied by; finite. Default 1 / sqrt(d).
    pub fn scale(mut self, scale: f32) -> Self {
        self.scale = Some(scale);
        self
    }

    /// Also return the log-sum-exp: what [`merge_attention`](crate::attention::merge_attention) needs.
    pub fn lse(mut self) -> Self {
        self.lse = true;
        self
    }
}
