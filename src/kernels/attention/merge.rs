//! Parts of one attention, each over some of the keys, combined by their log-sum-exp.

use rayon::prelude::*;

use super::*;
use crate::attention::NO_KEY;
use crate::gpu::block_on;

const PLACE: &str = "merge_attention";

/// The attention over all keys from parts over some of them each, whose order and sizes do not matter to more than rounding:
/// output = sum w o / sum w with w = exp(lse - largest lse), lse = largest lse + ln(sum w).
///
/// * `parts`: at least one, all of one shape, each with its log-sum-exp ([`Options::lse`]); parts on other devices are brought to the first's
/// * a query that sees no key in any part gets zeros and -1e30; sinks must be in one part only
/// * returns both the output and its log-sum-exp, so results merge again
///
/// # Errors
/// [`Error::Argument`] where there is no part, or one without log-sum-exp; [`Error::Shape`]; on the CPU [`Error::Domain`] for an element that is not
/// finite (index in its part); on a GPU [`Error::TooLarge`] where two rows of all parts exceed a binding; the device's own.
///
/// Source: Dao 2023 (split keys).
pub fn merge_attention<T: AttentionElement>(parts: &[Output<T>]) -> Result<Output<T>> {
    block_on(merge_attention_async(parts))
}

/// [`merge_attention`] where a thread must not block.
///
/// # Errors
/// As [`merge_attention`].
pub async fn merge_attention_async<T: AttentionElement>(parts: &[Output<T>]) -> Result<Output<T>> {
    let argument = |quantity, expected: &str, found: String| {
        Err(Error::Argument { place: PLACE, quantity, expected: expected.into(), found })
    };
    let Some(first) = parts.first() else {
        return argument("parts", "at least one", "none".into());
    };
    let device = first.output.device();
    let mut brought = Vec::with_capacity(parts.len());
    for (index, part) in parts.iter().enumerate() {
        let Some(lse) = &part.lse else {
            return argument("lse", "one of every part", format!("none of part {index}"));
        };
        let shape = |quantity, expected: &[usize], found: &[usize]| {
            let expected = format!("{expected:?}, as the first part");
            Err(Error::Shape { place: PLACE, quantity, expected, found: found.to_vec() })
        };
        if part.output.shape() != first.output.shape() {
            return shape("output", first.output.shape(), part.output.shape());
        }
        if lse.shape() != &first.output.shape()[..3] {
            return shape("lse", &first.output.shape()[..3], lse.shape());
        }
        brought.push((part.output.to_device_async(device).await?, lse.to_device_async(device).await?));
    }
    match device.as_gpu() {
        None => on_cpu(&brought),
        Some(gpu) => super::gpu::merge_parts(gpu, &brought),
    }
}

/// Output and log-sum-exp.
pub(super) type Part<T> = (Tensor<T, Ix4>, Tensor<f32, Ix3>);

fn on_cpu<T: AttentionElement>(parts: &[Part<T>]) -> Result<Output<T>> {
    let hosts: Vec<_> = parts.iter().filter_map(|(output, lse)| Some((output.as_host()?, lse.as_host()?))).collect();
    let slices: Vec<(&[T], &[f32])> =
        hosts.iter().filter_map(|(output, lse)| Some((output.as_slice()?, lse.as_slice()?))).collect();
    let (shape, lse_shape) = (parts[0].0.raw_dim(), parts[0].1.raw_dim());
    let (mut output, mut lse) = (Array4::from_elem(shape, T::default()), Array3::from_elem(lse_shape, NO_KEY));
    let (Some(rows), Some(sums)) = (output.as_slice_mut(), lse.as_slice_mut()) else {
        unreachable!("new arrays are in row-major order")
    };
    let d_v = shape[3];
    if d_v == 0 {
        return Ok(Output { output: Tensor::host(output), lse: Some(Tensor::host(lse)) });
    }
    let found =
        rows.par_chunks_exact_mut(d_v).zip(sums).with_min_len(64).enumerate().find_map_first(|(row, (out, lse))| {
            let not_finite = |quantity, index, found: String| {
                Some(Error::Domain { place: PLACE, quantity, index, expected: "finite", found })
            };
            if let Some((_, part)) = slices.iter().find(|(_, part)| !part[row].is_finite()) {
                return not_finite("lse", row, part[row].to_string());
            }
            let largest = slices.iter().fold(NO_KEY, |largest, (_, part)| largest.max(part[row]));
            let weight = |lse: f32| if lse > NO_KEY { (lse - largest).exp() } else { 0.0 };
            let total: f32 = slices.iter().map(|(_, part)| weight(part[row])).sum();
            if largest > NO_KEY {
                *lse = largest + total.ln();
            }
            let scale = if total > 0.0 { 1.0 / total } else { 0.0 };
            for (c, out) in out.iter_mut().enumerate() {
                let index = row * d_v + c;
                let sum: f32 = slices.iter().map(|(part, lse)| weight(lse[row]) * scale * part[index].widen()).sum();
                if !sum.is_finite() {
                    let found =
                        slices.iter().find(|(part, _)| !part[index].widen().is_finite()).map(|(part, _)| part[index]);
                    return not_finite("output", index, found.map_or(sum.to_string(), |found| found.to_string()));
                }
                *out = T::narrow(sum);
            }
            None
        });
    match found {
        Some(error) => Err(error),
        None => Ok(Output { output: Tensor::host(output), lse: Some(Tensor::host(lse)) }),
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array, s};

    use super::*;
    use crate::Device;

    fn tensor(shape: [usize; 4], seed: usize) -> Tensor<f32, Ix4> {
        let count: usize = shape.iter().product();
        let values = (0..count).map(|i| ((i * 7919 + seed * 104729) % 1009) as f32 / 504.5 - 1.0).collect();
        Device::cpu().tensor_from(Array::from_shape_vec(shape, values).unwrap()).unwrap()
    }

    #[test]
    fn parts_of_the_keys_make_the_whole() {
        let (q, k, v) = (tensor([2, 4, 3, 8], 1), tensor([2, 2, 50, 8], 2), tensor([2, 2, 50, 5], 3));
        let options = Options::new().lse();
        let whole = attention(&q, &k, &v, &options).unwrap();
        let part = |from: usize, to: usize| {
            let cut = |t: &Tensor<f32, Ix4>| {
                Device::cpu().tensor(&t.as_host().unwrap().slice(s![.., .., from..to, ..])).unwrap()
            };
            attention(&q, &cut(&k), &cut(&v), &options).unwrap()
        };
        let merged = merge_attention(&[part(0, 1), part(1, 1), part(1, 30), part(30, 50)]).unwrap();
        let close = |a: &[f32], b: &[f32]| {
            // Sums of 50 terms of at most 1 in another order: some 1e-7.
            a.iter().zip(b).for_each(|(a, b)| assert!((a - b).abs() < 1e-6, "{a} {b}"));
        };
        close(
            merged.output.as_host().unwrap().as_slice().unwrap(),
            whole.output.as_host().unwrap().as_slice().unwrap(),
        );
        let (merged, whole) = (merged.lse.unwrap(), whole.lse.unwrap());
        close(merged.as_host().unwrap().as_slice().unwrap(), whole.as_host().unwrap().as_slice().unwrap());
    }

    #[test]
    fn what_does_not_fit_is_named() {
        assert!(matches!(merge_attention::<f32>(&[]), Err(Error::Argument { quantity: "parts", .. })));
        let (q, k, v) = (tensor([1, 1, 3, 8], 1), tensor([1, 1, 5, 8], 2), tensor([1, 1, 5, 5], 3));
        let part = attention(&q, &k, &v, &Options::new().lse()).unwrap();
        let without = Output { output: part.output.clone(), lse: None };
        assert!(matches!(merge_attention(&[part.clone(), without]), Err(Error::Argument { quantity: "lse", .. })));
        let other = attention(&tensor([1, 1, 2, 8], 1), &k, &v, &Options::new().lse()).unwrap();
        assert!(matches!(merge_attention(&[part.clone(), other]), Err(Error::Shape { quantity: "output", .. })));
        let mut rows = part.output.to_array().unwrap();
        rows[[0, 0, 1, 2]] = f32::NAN;
        let bad = Output { output: Tensor::host(rows), lse: part.lse.clone() };
        assert!(matches!(merge_attention(&[part, bad]), Err(Error::Domain { quantity: "output", index: 7, .. })));
    }

    #[test]
    fn rows_without_a_key_stay_empty() {
        let part = Output {
            output: Tensor::host(Array4::<f32>::zeros((1, 1, 2, 3))),
            lse: Some(Tensor::host(Array3::from_elem((1, 1, 2), NO_KEY))),
        };
        let merged = merge_attention(&[part.clone(), part]).unwrap();
        assert!(merged.output.as_host().unwrap().iter().all(|&x| x == 0.0));
        assert!(merged.lse.unwrap().as_host().unwrap().iter().all(|&x| x == NO_KEY));
    }
}
