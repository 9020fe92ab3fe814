//! [`DoubleSingle`]: an element of 48 bits and more made of two f32, for GPUs that have no f64.

use std::cmp::Ordering;
use std::fmt;

/// A value as the unevaluated sum of two f32, `high + low`: 48 bits and more (relative error 2^-49 of a rounded f64), with f32's exponents.
///
/// Tensors of it are how results of f64 class are computed on any GPU, those without f64 included: kernels over pairs chain on the device, and
/// [`Tensor::to_f64_array`](crate::Tensor::to_f64_array) puts them together on the host. Values beyond f32's largest become infinite; one below
/// 7e-24 (2^-77) may lose low bits to underflow.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub struct DoubleSingle {
    pub(crate) high: f32,
    pub(crate) low: f32,
}

impl DoubleSingle {
    /// `value` rounded to two words.
    pub fn new(value: f64) -> Self {
        let high = value as f32;
        let low = if high.is_finite() { (value - f64::from(high)) as f32 } else { 0.0 };
        Self { high, low }
    }

    /// The value rounded to f32.
    pub fn high(self) -> f32 {
        self.high
    }

    /// What that leaves, at most half a unit in the last place of [`DoubleSingle::high`].
    pub fn low(self) -> f32 {
        self.low
    }

    /// high + low, exactly.
    pub fn to_f64(self) -> f64 {
        f64::from(self.high) + f64::from(self.low)
    }
}

impl From<f64> for DoubleSingle {
    fn from(value: f64) -> Self {
        Self::new(value)
    }
}

impl From<f32> for DoubleSingle {
    fn from(high: f32) -> Self {
        Self { high, low: 0.0 }
    }
}

impl From<DoubleSingle> for f64 {
    fn from(value: DoubleSingle) -> f64 {
        value.to_f64()
    }
}

impl PartialEq for DoubleSingle {
    fn eq(&self, other: &Self) -> bool {
        self.to_f64() == other.to_f64()
    }
}

impl PartialOrd for DoubleSingle {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        self.to_f64().partial_cmp(&other.to_f64())
    }
}

impl fmt::Display for DoubleSingle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_f64().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::DoubleSingle;

    #[test]
    fn two_words_hold_48_bits() {
        for value in [0.0, -0.1, std::f64::consts::PI, 1.0 / 3.0, 1e-20, -6.02e23, 16_777_217.0, f64::from(f32::MAX)] {
            let pair = DoubleSingle::new(value);
            assert!((pair.to_f64() - value).abs() <= value.abs() * 2f64.powi(-49), "{value}");
            assert!(f64::from(pair.low).abs() <= f64::from(pair.high).abs() * 2f64.powi(-24), "{value}");
            assert_eq!(DoubleSingle::new(pair.to_f64()), pair);
        }
        assert_eq!(DoubleSingle::new(f64::INFINITY).to_f64(), f64::INFINITY);
        assert_eq!(DoubleSingle::new(-1e300).to_f64(), f64::NEG_INFINITY);
        assert!(DoubleSingle::new(f64::NAN).to_f64().is_nan());
        assert!(DoubleSingle::new(1.0 + 1e-13) > DoubleSingle::new(1.0));
    }
}
