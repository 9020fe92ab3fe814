//! [`Rope`]: which elements of a head turn with the position, and how fast; [`Frame`]: which part of that latents of keys are free of.

use std::f64::consts::TAU;
use std::fmt;
use std::str::FromStr;

use super::layer::Turns;
use crate::{Error, Result};

/// Which two elements of a head turn together; n is the number of elements that turn, the first ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RopeLayout {
    /// i and i + n / 2 (rotate-half: Llama in Hugging Face's layout, Qwen, NeoX).
    Halves,
    /// 2 i and 2 i + 1 (GPT-J, Llama in Meta's layout).
    Adjacent,
}

/// How the frequencies of a longer context come from those of training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// Every frequency is divided by the factor (positions are interpolated).
    Linear(f64),
    /// Llama 3.1's: frequencies of a wavelength above `original_context / low_frequency_factor` are divided by `factor`, those below
    /// `original_context / high_frequency_factor` are kept, those between are blended linearly in the number of turns.
    Llama3 {
        /// What low frequencies are divided by.
        factor: f64,
        /// Turns within the original context up to which a frequency is low.
        low_frequency_factor: f64,
        /// Turns from which it is high.
        high_frequency_factor: f64,
        /// Tokens of the context of training.
        original_context: f64,
    },
}

/// A rotary position embedding: position p turns pair i of a head by p times its frequency, in radians. Frequencies are theta^(-2 i / n) for i in 0..n/2
/// unless scaled or given; elements from n on do not turn.
///
/// Source: Su et al. 2021; Dubey et al. 2024 for the scaling by bands.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    layout: RopeLayout,
    frequencies: Vec<f64>,
}

fn argument<T>(quantity: &'static str, expected: impl Into<String>, found: impl fmt::Display) -> Result<T> {
    Err(Error::Argument { place: "Rope", quantity, expected: expected.into(), found: found.to_string() })
}

impl Rope {
    /// No rotation at all.
    pub fn none() -> Self {
        Self { layout: RopeLayout::Halves, frequencies: Vec::new() }
    }

    /// The first `dims` elements of a head turn; `theta` > 0 (1e4 in most models).
    ///
    /// # Errors
    /// [`Error::Argument`] for an odd `dims` or a theta that is not positive and finite.
    pub fn new(layout: RopeLayout, dims: usize, theta: f64) -> Result<Self> {
        if !dims.is_multiple_of(2) {
            return argument("dims", "an even number", dims);
        }
        if !(theta > 0.0 && theta.is_finite()) {
            return argument("theta", "a positive number", theta);
        }
        let frequencies = (0..dims / 2).map(|i| theta.powf(-2.0 * i as f64 / dims as f64)).collect();
        Ok(Self { layout, frequencies })
    }

    /// Given frequencies (radians a position), of the pairs in their order: YaRN's, or whatever a model has.
    ///
    /// # Errors
    /// [`Error::Domain`] names the first that is not finite.
    pub fn of_frequencies(layout: RopeLayout, frequencies: Vec<f64>) -> Result<Self> {
        if let Some(index) = frequencies.iter().position(|x| !x.is_finite()) {
            let (quantity, found) = ("frequency", frequencies[index].to_string());
            return Err(Error::Domain { place: "Rope", quantity, index, expected: "finite", found });
        }
        Ok(Self { layout, frequencies })
    }

    /// With scaled frequencies.
    ///
    /// # Errors
    /// [`Error::Argument`] for factors or a context that are not positive and finite, or bands in the wrong order.
    pub fn scaled(mut self, scaling: RopeScaling) -> Result<Self> {
        let positive = |quantity, x: f64| match x > 0.0 && x.is_finite() {
            true => Ok(()),
            false => argument(quantity, "a positive number", x),
        };
        match scaling {
            RopeScaling::Linear(factor) => {
                positive("factor", factor)?;
                self.frequencies.iter_mut().for_each(|x| *x /= factor);
            }
            RopeScaling::Llama3 {
                factor,
                low_frequency_factor: low,
                high_frequency_factor: high,
                original_context,
            } => {
                positive("factor", factor)?;
                positive("low_frequency_factor", low)?;
                positive("high_frequency_factor", high)?;
                positive("original_context", original_context)?;
                if low >= high {
                    return argument("low_frequency_factor", format!("less than {high}"), low);
                }
                for x in &mut self.frequencies {
                    let turns = original_context * x.abs() / TAU;
                    let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                    *x *= kept + (1.0 - kept) / factor;
                }
            }
        }
        Ok(self)
    }

    /// Which elements turn together.
    pub fn layout(&self) -> RopeLayout {
        self.layout
    }

    /// How many elements of a head turn.
    pub fn dims(&self) -> usize {
        2 * self.frequencies.len()
    }

    /// Radians a position, of each pair.
    pub fn frequencies(&self) -> &[f64] {
        &self.frequencies
    }

    pub(crate) fn check(&self, head_dim: usize) -> Result<()> {
        match self.dims() <= head_dim {
            true => Ok(()),
            false => argument("dims", format!("at most the {head_dim} elements of a head"), self.dims()),
        }
    }

    /// What a cache with latents in `frame` turns by.
    pub(crate) fn turns(&self, frame: Frame) -> Turns {
        let half = self.frequencies.len();
        let pair = |(i, &frequency): (usize, &f64)| match self.layout {
            RopeLayout::Halves => (i, i + half, frequency),
            RopeLayout::Adjacent => (2 * i, 2 * i + 1, frequency),
        };
        Turns { block: frame.block(), pairs: self.frequencies.iter().enumerate().map(pair).collect() }
    }
}

/// What latents of keys are relative to. In each the scores are those of the rotated keys exactly; the energy that few latents keep differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Frame {
    /// Keys before rotation: each at its own position. The lowest rank, but attending turns the query for every key: a block of 1.
    Pre,
    /// Keys as they are after rotation.
    Post,
    /// Keys relative to the first token of their block of so many: R_{n mod B} k_n. At least 1.
    Block(usize),
}

/// Tokens of a block at most: more than a sequence has.
const MAX_BLOCK: usize = 1 << 30;

impl Frame {
    /// Tokens that share an origin; none where positions count from 0.
    pub fn block(self) -> Option<usize> {
        match self {
            Self::Pre => Some(1),
            Self::Post => None,
            Self::Block(block) => Some(block),
        }
    }

    pub(crate) fn check(self) -> Result<()> {
        match self {
            Self::Block(block) if !(1..=MAX_BLOCK).contains(&block) => Err(Error::Argument {
                place: "Frame",
                quantity: "block",
                expected: format!("1 to {MAX_BLOCK} tokens"),
                found: block.to_string(),
            }),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pre => f.write_str("pre"),
            Self::Post => f.write_str("post"),
            Self::Block(block) => write!(f, "block{block}"),
        }
    }
}

impl FromStr for Frame {
    type Err = Error;

    /// `pre`, `post`, or `block64` (any number).
    fn from_str(text: &str) -> Result<Self> {
        let block = text.strip_prefix("block").and_then(|block| block.parse().ok()).filter(|block| *block > 0);
        match (text, block) {
            ("pre", _) => Ok(Self::Pre),
            ("post", _) => Ok(Self::Post),
            (_, Some(block)) => Ok(Self::Block(block)),
            _ => Err(Error::Argument {
                place: "Frame",
                quantity: "frame",
                expected: "pre, post, or block and a number of tokens".into(),
                found: text.into(),
            }),
        }
    }
}
