//! Signs of a matrix as bits: what makes codes of projections.

mod gpu;

use ndarray::{Array2, Axis, Ix1, Ix2};
use rayon::prelude::*;

use super::matmul::MatmulElement;
use crate::tensor::{Storage, Tensor};
use crate::{Error, Result};

pub(crate) use gpu::variants;

/// What sets a bit. The two differ where a value equals its threshold: for features that are often 0 (behind a ReLU) that is most of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SignRule {
    /// `value >= threshold`, as FAISS binarises.
    #[default]
    AtLeast,
    /// `value > threshold`, as `np.sign(x) > 0`.
    Above,
}

impl SignRule {
    /// The bit of a value.
    fn bit(self, value: f32, threshold: f32) -> u32 {
        match self {
            Self::AtLeast => (value >= threshold).into(),
            Self::Above => (value > threshold).into(),
        }
    }
}

/// The signs of `values` (n, d) minus `thresholds` (d; without them 0), packed into words (n, ceil(d / 32)): column j is bit j % 32 of word j / 32,
/// least significant first, and bits past d are 0.
///
/// * `T`: f32 or f16, compared as f32 and exactly
///
/// # Errors
/// [`Error::Domain`] names the first value that is not finite (row-major, on a GPU at the wait), or a threshold that is not; [`Error::Shape`] where
/// there is not one threshold a column; [`Error::DeviceMismatch`].
pub fn sign_pack<T: MatmulElement<Sum = f32>>(
    values: &Tensor<T, Ix2>,
    thresholds: Option<&Tensor<f32, Ix1>>,
    rule: SignRule,
) -> Result<Tensor<u32, Ix2>> {
    let place = "sign_pack";
    let (rows, columns) = (values.shape()[0], values.shape()[1]);
    if let Some(thresholds) = thresholds {
        values.device().same(place, "thresholds", thresholds.device())?;
        if thresholds.len() != columns {
            let expected = format!("[{columns}], one a column");
            return Err(Error::Shape { place, quantity: "thresholds", expected, found: thresholds.shape().to_vec() });
        }
    }
    let words = columns.div_ceil(32);
    match (values.storage(), thresholds.map(Tensor::storage)) {
        (Storage::Host(values), thresholds) => {
            let zeros = vec![0.0; columns];
            let thresholds = match &thresholds {
                Some(Storage::Host(thresholds)) => thresholds.to_vec(),
                _ => zeros,
            };
            let not_finite = |quantity, index, value: f32| Error::Domain {
                place,
                quantity,
                index,
                expected: "a finite number",
                found: value.to_string(),
            };
            if let Some(index) = thresholds.iter().position(|threshold| !threshold.is_finite()) {
                return Err(not_finite("threshold", index, thresholds[index]));
            }
            let mut packed = Array2::<u32>::zeros((rows, words));
            let bad = (packed.axis_iter_mut(Axis(0)).into_par_iter())
                .zip(values.axis_iter(Axis(0)))
                .enumerate()
                .find_map_first(|(row, (mut packed, values))| {
                    // NaN where an element is NaN or infinite, else 0.
                    let mut flaw = 0.0;
                    for (column, (value, threshold)) in values.iter().zip(&thresholds).enumerate() {
                        let value = value.widen();
                        flaw += value * 0.0;
                        packed[column / 32] |= rule.bit(value, *threshold) << (column % 32);
                    }
                    let at = || values.iter().position(|value| !value.widen().is_finite());
                    if flaw == 0.0 { None } else { at().map(|column| (row * columns + column, values[column].widen())) }
                });
            match bad {
                Some((index, value)) => Err(not_finite("value", index, value)),
                None => Ok(Tensor::host(packed)),
            }
        }
        (Storage::Gpu(..), _) => gpu::on_gpu(place, values, thresholds, rule),
    }
}

#[cfg(test)]
mod tests {
    use half::f16;
    use ndarray::{Array1, Array2};

    use super::*;
    use crate::Device;

    /// One bit at a time, for widths about the word's.
    #[test]
    fn bits_are_comparisons() {
        for (rows, columns) in [(0, 5), (3, 0), (1, 1), (2, 31), (3, 32), (5, 33), (4, 70)] {
            let values = Array2::from_shape_fn((rows, columns), |(i, j)| ((i * 7 + j * 5) % 5) as f32 - 2.0);
            let thresholds = Array1::from_shape_fn(columns, |j| (j % 3) as f32 - 1.0);
            for rule in [SignRule::AtLeast, SignRule::Above] {
                for given in [false, true] {
                    let device = Device::cpu();
                    let wanted = device.tensor(&thresholds).unwrap();
                    let (single, half) =
                        (device.tensor(&values).unwrap(), device.tensor(&values.mapv(f16::from_f32)).unwrap());
                    let packed = sign_pack(&single, given.then_some(&wanted), rule).unwrap().to_array().unwrap();
                    assert_eq!(packed, sign_pack(&half, given.then_some(&wanted), rule).unwrap().to_array().unwrap());
                    assert_eq!(packed.dim(), (rows, columns.div_ceil(32)));
                    for i in 0..rows {
                        for bit in 0..packed.ncols() * 32 {
                            let set = packed[[i, bit / 32]] >> (bit % 32) & 1 == 1;
                            let over = |j: usize| values[[i, j]] - if given { thresholds[j] } else { 0.0 };
                            let expected = bit < columns
                                && if rule == SignRule::Above { over(bit) > 0.0 } else { over(bit) >= 0.0 };
                            assert_eq!(set, expected, "{rows}x{columns}: row {i} bit {bit} {rule:?}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_no_number_is_named() {
        let device = Device::cpu();
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = Array2::<f32>::ones((40, 50));
            values[[17, 3]] = bad;
            values[[30, 1]] = f32::NAN;
            let error = sign_pack(&device.tensor(&values).unwrap(), None, SignRule::Above).unwrap_err();
            assert!(matches!(error, Error::Domain { quantity: "value", index: 853, .. }), "{error}");
        }
        let values = device.tensor(&Array2::<f32>::ones((2, 3))).unwrap();
        let thresholds = device.tensor(&Array1::from(vec![0.0, f32::NAN, 0.0])).unwrap();
        let error = sign_pack(&values, Some(&thresholds), SignRule::Above).unwrap_err();
        assert!(matches!(error, Error::Domain { quantity: "threshold", index: 1, .. }), "{error}");
        let short = device.tensor(&Array1::<f32>::zeros(2)).unwrap();
        assert!(matches!(sign_pack(&values, Some(&short), SignRule::Above), Err(Error::Shape { .. })));
    }
}
