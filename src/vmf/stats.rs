//! [`VmfStats`]: the sum of unit rows and their number. All that a vMF fit needs, from any number of chunks, files or machines.

use ndarray::{ArrayView1, ArrayView2, Ix2, s};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::kappa::Resultant;
use super::reduce::GROUP;
use super::rows::{self, Row, RowSource, Rows};
use crate::gpu::block_on;
use crate::kernels::column_sums::block_sums;
use crate::kernels::{extended, normalize_rows};
use crate::{Error, Precision, Result, Tensor};

const PLACE: &str = "VmfStats";

/// Elements of a segment: the rows that are summed one after the other. A constant, so that results do not depend on the threads.
const SEGMENT: usize = 1 << 20;

/// 1 - R below which the rounding of f32 unit rows (2^-24 each, up to 1e-7 of the sum) would cost kappa a hundredth: such rows are added in f64 on
/// the host.
const CONCENTRATED: f64 = 1e-5;

/// Elements that a GPU normalises and adds at a time.
const GPU_CHUNK: usize = 32 << 20;

/// Sufficient statistics of a von Mises-Fisher distribution: weight and sum of the rows seen, each normalised to length 1.
///
/// Statistics of parts merge to those of the whole, in any order (up to rounding), and are serialisable.
///
/// The sum is taken in f64, four or eight rows at a time within segments of about 2^20 elements, the segments as a binary tree. With n rows of d
/// elements, each component of [`VmfStats::resultant`] is within (min(n, max(256, 2^20/d))/2 + d/32 + log2(n) + 10) * 2^-53 of the
/// sum of the weighted absolute values of what was added: at d = 384, 2e-13 relative, whatever the number of rows. (From rows on a GPU:
/// 34 * 2^-24 of it, as they are f32 there, and blocks of 256 are added there.)
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Parts")]
pub struct VmfStats {
    count: u64,
    weight: f64,
    resultant: Vec<f64>,
}

/// What a serialised [`VmfStats`] claims to be.
#[derive(Deserialize)]
struct Parts {
    count: u64,
    weight: f64,
    resultant: Vec<f64>,
}

impl TryFrom<Parts> for VmfStats {
    type Error = Error;
    fn try_from(Parts { count, weight, resultant }: Parts) -> Result<Self> {
        let reason = if resultant.len() < 2 {
            "resultant has fewer than 2 elements"
        } else if !(weight.is_finite() && weight >= 0.0) || resultant.iter().any(|value| !value.is_finite()) {
            "weight or resultant is not finite"
        } else if length(&resultant) > weight * (1.0 + 1e-5) {
            // Ten times what the rounding of f32 rows and their sums can make of it.
            "resultant is longer than the weight, which no sum of unit rows is"
        } else if (count == 0) != (weight == 0.0) {
            "count or weight is 0, the other is not"
        } else {
            return Ok(VmfStats { count, weight, resultant });
        };
        Err(Error::Format { what: "VmfStats", reason: reason.into() })
    }
}

impl VmfStats {
    /// Statistics of no rows yet, in `dim` dimensions.
    ///
    /// # Errors
    /// [`Error::Argument`] for `dim` < 2.
    pub fn new(dim: usize) -> Result<Self> {
        if dim < 2 {
            return Err(Error::Argument {
                place: PLACE,
                quantity: "dim",
                expected: "at least 2".into(),
                found: dim.to_string(),
            });
        }
        Ok(VmfStats { count: 0, weight: 0.0, resultant: vec![0.0; dim] })
    }

    /// Adds `rows`, (n, dim), each normalised on the way and of weight 1.
    ///
    /// On an error nothing is added.
    ///
    /// # Errors
    /// [`Error::Domain`] names the first row that is all zeros or has an element that is not finite; [`Error::Shape`].
    pub fn push<T: Rows>(&mut self, rows: ArrayView2<'_, T>) -> Result<()> {
        self.add(rows, None)
    }

    /// Adds `rows`, (n, dim), with `weights`, (n). A row of weight 0 is skipped unseen; weight 2 counts as the row twice.
    ///
    /// # Errors
    /// As [`VmfStats::push`]; [`Error::Domain`] also for a weight that is negative or not finite, [`Error::Argument`] for sums that are not.
    pub fn push_weighted<T: Rows>(&mut self, rows: ArrayView2<'_, T>, weights: ArrayView1<'_, f64>) -> Result<()> {
        let weights = weights.as_standard_layout();
        self.add(rows, Some(weights.as_slice().unwrap_or(&[])))
    }

    fn add<T: Rows>(&mut self, rows: ArrayView2<'_, T>, weights: Option<&[f64]>) -> Result<()> {
        if rows.ncols() != self.dim() {
            let expected = format!("(any, {})", self.dim());
            return Err(Error::Shape { place: PLACE, quantity: "rows", expected, found: rows.shape().to_vec() });
        }
        rows::check_weights(PLACE, rows.nrows(), weights)?;
        let step = segment_rows(self.dim());
        let sum = |segment: usize| {
            let first = segment * step;
            let last = (first + step).min(rows.nrows());
            // borrowed where it is row-major already
            let block = rows.slice(s![first..last, ..]);
            let block = block.as_standard_layout();
            let mut part = VmfStats { count: 0, weight: 0.0, resultant: vec![0.0; self.dim()] };
            part.sum(block.as_slice().unwrap_or(&[]), weights.map(|weights| &weights[first..last]), first)?;
            Ok(part)
        };
        let parts = match rows.nrows().div_ceil(step) {
            // another thread would only have to be woken
            1 => vec![sum(0)?],
            segments => (0..segments).into_par_iter().map(sum).collect::<Result<Vec<VmfStats>>>()?,
        };
        check_sums(std::iter::once(&*self).chain(&parts))?;
        self.absorb(parts);
        Ok(())
    }

    /// Statistics of all rows of `source`, read once, by all threads.
    ///
    /// # Errors
    /// As [`VmfStats::push`], and what the source fails with.
    pub fn from_source(source: &dyn RowSource) -> Result<Self> {
        let mut total = VmfStats::new(source.dim())?;
        let step = segment_rows(source.dim());
        let segments = source.rows().div_ceil(step);
        // a group of segments at a time: the partial sums of a file of any length stay small
        let group = 16 * rayon::current_num_threads();
        for start in (0..segments).step_by(group) {
            let parts: Result<Vec<VmfStats>> = (start..segments.min(start + group))
                .into_par_iter()
                .map_init(
                    || vec![0.0f32; step * source.dim()],
                    |buffer, segment| {
                        let first = segment * step;
                        let rows = step.min(source.rows() - first);
                        let buffer = &mut buffer[..rows * source.dim()];
                        source.read(first, view_mut(buffer, source.dim()))?;
                        let mut part = VmfStats { count: 0, weight: 0.0, resultant: vec![0.0; source.dim()] };
                        part.sum(buffer, None, first)?;
                        Ok(part)
                    },
                )
                .collect();
            total.absorb(parts?);
        }
        Ok(total)
    }

    /// One thread: adds contiguous `rows`, the first of which has number `first` in messages.
    fn sum<T: Row>(&mut self, rows: &[T], weights: Option<&[f64]>, first: usize) -> Result<()> {
        let dim = self.dim();
        // sums that begin where a cache line does: half of the vector stores would straddle two lines otherwise
        let mut lines = vec![0.0f64; dim + 8];
        let start = lines.as_ptr().align_offset(64).min(8);
        let sums = &mut lines[start..start + dim];
        let block = T::block_rows(dim);
        let mut scratch = Vec::new();
        for (number, rows) in rows.chunks(block * dim).enumerate() {
            let first = first + number * block;
            let weights = weights.map(|weights| &weights[number * block..]);
            self.sum_wide(sums, T::widen(rows, &mut scratch), weights, first)?;
        }
        self.resultant.iter_mut().zip(sums).for_each(|(sum, value)| *sum += *value);
        Ok(())
    }

    /// Adds rows a group at a time.
    fn sum_wide<T: Row>(&mut self, sums: &mut [f64], rows: &[T], weights: Option<&[f64]>, first: usize) -> Result<()> {
        let dim = sums.len();
        for (number, rows) in rows.chunks(GROUP * dim).enumerate() {
            let start = number * GROUP;
            let weight = |lane| weights.map_or(1.0, |weights| weights[start + lane]);
            let row = |(lane, row)| (first + start + lane, row, weight(lane));
            self.sum_group(sums, rows.chunks_exact(dim).enumerate().map(row))?;
        }
        Ok(())
    }

    /// Adds up to [`GROUP`] rows: (number in messages, row, weight).
    fn sum_group<'a, T: Row>(
        &mut self,
        sums: &mut [f64],
        rows: impl Iterator<Item = (usize, &'a [T], f64)>,
    ) -> Result<()> {
        // a row that is not there, or skipped, may hold anything, NaN times 0 included: another stands for it
        let mut present: Option<&[T]> = None;
        let mut members: [&[T]; GROUP] = [&[]; GROUP];
        let mut factors = [0.0; GROUP];
        for (lane, (index, row, weight)) in rows.enumerate() {
            if weight > 0.0 {
                factors[lane] = weight * rows::inverse_norm(PLACE, row, index)?;
                members[lane] = row;
                present.get_or_insert(row);
                self.count += 1;
                self.weight += weight;
            }
        }
        if let Some(present) = present {
            for lane in 0..GROUP {
                if factors[lane] == 0.0 {
                    members[lane] = present;
                }
            }
            T::add_rows(sums, members, factors);
        }
        Ok(())
    }

    /// Adds the rows with the numbers `chosen` of `rows`, (n, dim) row by row, with `weights`, one for each row of `rows`, on this thread. On an error
    /// nothing is added.
    ///
    /// # Errors
    /// As [`VmfStats::push_weighted`].
    #[cfg(feature = "datafusion")]
    pub(crate) fn push_chosen<T: Rows>(&mut self, rows: &[T], weights: Option<&[f64]>, chosen: &[u32]) -> Result<()> {
        let dim = self.dim();
        let mut part = VmfStats { count: 0, weight: 0.0, resultant: vec![0.0; dim] };
        let mut sums = vec![0.0; dim];
        for group in chosen.chunks(GROUP) {
            let row = |&index: &u32| {
                let index = index as usize;
                (index, &rows[index * dim..][..dim], weights.map_or(1.0, |weights| weights[index]))
            };
            part.sum_group(&mut sums, group.iter().map(row))?;
        }
        part.resultant = sums;
        check_sums([&*self, &part])?;
        self.plus(&part);
        Ok(())
    }

    /// The statistics that have these parts.
    ///
    /// # Errors
    /// [`Error::Format`] for parts that no rows have.
    #[cfg(feature = "datafusion")]
    pub(crate) fn of_parts(count: u64, weight: f64, resultant: Vec<f64>) -> Result<Self> {
        Parts { count, weight, resultant }.try_into()
    }

    /// Adds parts as a binary tree.
    fn absorb(&mut self, mut parts: Vec<VmfStats>) {
        while parts.len() > 1 {
            let half = parts.len().div_ceil(2);
            let upper = parts.split_off(half);
            parts.iter_mut().zip(&upper).for_each(|(part, other)| part.plus(other));
        }
        if let Some(part) = parts.first() {
            self.plus(part);
        }
    }

    fn plus(&mut self, other: &VmfStats) {
        self.count += other.count;
        self.weight += other.weight;
        self.resultant.iter_mut().zip(&other.resultant).for_each(|(sum, value)| *sum += value);
    }

    /// Adds the rows that `other` has seen.
    ///
    /// # Errors
    /// [`Error::Shape`] if the dimensions differ; [`Error::Argument`] for sums that are not finite, or of 2^64 rows.
    pub fn merge(&mut self, other: &VmfStats) -> Result<()> {
        if self.dim() != other.dim() {
            let expected = format!("[{}]", self.dim());
            return Err(Error::Shape { place: PLACE, quantity: "other", expected, found: vec![other.dim()] });
        }
        check_sums([&*self, other])?;
        self.plus(other);
        Ok(())
    }

    /// Elements of a row.
    pub fn dim(&self) -> usize {
        self.resultant.len()
    }

    /// Rows seen, those of weight 0 left out.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The sum of their weights.
    pub fn weight(&self) -> f64 {
        self.weight
    }

    /// The weighted sum of the unit rows.
    pub fn resultant(&self) -> ArrayView1<'_, f64> {
        ArrayView1::from(&self.resultant[..])
    }

    /// R = |resultant| / weight, at most 1, and 1 - R without a further loss.
    pub fn mean_resultant(&self) -> Resultant {
        if self.weight == 0.0 {
            return Resultant::new(0.0);
        }
        let length = length(&self.resultant);
        // what the sums themselves cannot tell from 0 is 0: opposite rows have no direction, identical ones no spread
        let floor = 16.0 * f64::EPSILON;
        if length <= floor * self.weight {
            return Resultant::new(0.0);
        }
        let complement = (self.weight - length) / self.weight;
        if complement <= floor {
            return Resultant { length: 1.0, complement: 0.0 };
        }
        Resultant { length: length / self.weight, complement }
    }
}

/// An error where the sum of `parts`, or of their counts, overflows. No sum of rows is longer than their weight, so half of f64's range is enough for all.
fn check_sums<'a>(parts: impl IntoIterator<Item = &'a VmfStats>) -> Result<()> {
    let mut weight = 0.0;
    let mut finite = true;
    let mut count = Some(0u64);
    for part in parts {
        count = count.and_then(|count| count.checked_add(part.count));
        weight += part.weight;
        finite &= part.resultant.iter().all(|value| value.is_finite());
    }
    if finite && weight <= f64::MAX / 2.0 && count.is_some() {
        return Ok(());
    }
    if count.is_none() {
        let (expected, found) = ("fewer than 2^64 in all".into(), "more".into());
        return Err(Error::Argument { place: PLACE, quantity: "rows", expected, found });
    }
    let expected = "weights with a finite sum".into();
    Err(Error::Argument { place: PLACE, quantity: "weights", expected, found: format!("a sum of {weight:e}") })
}

/// |vector|, also where its square overflows or underflows.
fn length(vector: &[f64]) -> f64 {
    let squared = super::reduce::squared_norm_f64(vector);
    let largest = vector.iter().fold(0.0f64, |largest, value| largest.max(value.abs()));
    if (1e-280..1e300).contains(&squared) || largest == 0.0 {
        return squared.sqrt();
    }
    largest * vector.iter().map(|value| (value / largest).powi(2)).sum::<f64>().sqrt()
}

/// Rows of a segment.
fn segment_rows(dim: usize) -> usize {
    (SEGMENT / dim).max(256)
}

/// A row-major view of `buffer` with rows of `dim` elements.
pub(crate) fn view_mut(buffer: &mut [f32], dim: usize) -> ndarray::ArrayViewMut2<'_, f32> {
    let rows = buffer.len() / dim;
    match ndarray::ArrayViewMut2::from_shape((rows, dim), &mut buffer[..rows * dim]) {
        Ok(view) => view,
        Err(_) => unreachable!("the buffer has rows * dim elements"),
    }
}

impl VmfStats {
    /// Statistics of all rows of a tensor, (n, d), with `weights`, (n), if any, on the device that holds it.
    ///
    /// `precision` decides on a GPU: in [`Precision::Single`] 34 * 2^-24 of the sum of what was added (weighted and f64 rows come to the host);
    /// [`Precision::Extended`], 1e-13 of it (f64 rows come to the host, and all of them where R or 1 - R is below 1e-7). A row of f32 whose
    /// largest element is below the smallest normal number is a zero row there, and a weight below 1e-38 of the largest is 0 in the sum.
    ///
    /// # Errors
    /// As [`VmfStats::push_weighted`]; the device's own.
    pub fn from_rows<T: Rows>(
        rows: &Tensor<T, Ix2>,
        weights: Option<ArrayView1<'_, f64>>,
        precision: Precision,
    ) -> Result<Self> {
        block_on(Self::from_rows_async(rows, weights, precision))
    }

    /// [`VmfStats::from_rows`] where a thread must not block.
    ///
    /// # Errors
    /// As [`VmfStats::from_rows`].
    pub async fn from_rows_async<T: Rows>(
        rows: &Tensor<T, Ix2>,
        weights: Option<ArrayView1<'_, f64>>,
        precision: Precision,
    ) -> Result<Self> {
        let mut stats = VmfStats::new(rows.shape()[1])?;
        let weights = weights.map(|weights| weights.to_vec());
        match (rows.as_host(), precision) {
            (Some(view), _) => stats.add(view, weights.as_deref())?,
            (None, Precision::Single) => stats.add_on_gpu(rows, weights.as_deref()).await?,
            (None, Precision::Extended) => stats.add_extended(rows, weights.as_deref()).await?,
        }
        Ok(stats)
    }

    /// Lengths, unit rows and their sums in extended precision, on the device.
    async fn add_extended<T: Rows>(&mut self, rows: &Tensor<T, Ix2>, weights: Option<&[f64]>) -> Result<()> {
        rows::check_weights(PLACE, rows.shape()[0], weights)?;
        if T::NAME == "f64" {
            return self.add(rows.to_array_async().await?.view(), weights);
        }
        let (count, dim) = (rows.shape()[0], self.dim());
        let step = (GPU_CHUNK / dim).max(256);
        let mut total = VmfStats::new(dim)?;
        for first in (0..count).step_by(step) {
            let range = first..(first + step).min(count);
            let part = weights.map(|weights| &weights[range.clone()]);
            let sums = extended::resultant(rows, range.clone(), part).await?;
            total.resultant.iter_mut().zip(&sums).for_each(|(sum, part)| *sum += part);
            let seen = part.map_or(range.len(), |part| part.iter().filter(|weight| **weight > 0.0).count());
            total.count += seen as u64;
            total.weight += part.map_or(range.len() as f64, |part| part.iter().sum());
        }
        check_sums([&*self, &total])?;
        // What 1e-13 of the weight leaves of 1 - R, or of R, would be worth less than six digits: f64 on the host.
        let Resultant { length, complement } = total.mean_resultant();
        if total.weight > 0.0 && (complement < 1e-7 || length < 1e-7) {
            return self.add(rows.to_array_async().await?.view(), weights);
        }
        self.plus(&total);
        Ok(())
    }

    /// Unit rows and the sums of blocks of 256 of them on the device, the sums of those here in f64. f64 rows come to the host whole.
    async fn add_on_gpu<T: Rows>(&mut self, rows: &Tensor<T, Ix2>, weights: Option<&[f64]>) -> Result<()> {
        rows::check_weights(PLACE, rows.shape()[0], weights)?;
        if T::NAME == "f64" || weights.is_some() {
            return self.add(rows.to_array_async().await?.view(), weights);
        }
        let (count, dim) = (rows.shape()[0], self.dim());
        let step = (GPU_CHUNK / dim).max(256);
        for first in (0..count).step_by(step) {
            let range = first..(first + step).min(count);
            let (unit, _) = normalize_rows::on_gpu(rows, range, None, None)?;
            for sums in block_sums(&unit)?.to_array_async().await?.outer_iter() {
                self.resultant.iter_mut().zip(sums).for_each(|(sum, &part)| *sum += f64::from(part));
            }
        }
        self.count += count as u64;
        self.weight += count as f64;
        if count > 0 && self.mean_resultant().complement < CONCENTRATED {
            *self = VmfStats::new(dim)?;
            return self.add(rows.to_array_async().await?.view(), None);
        }
        Ok(())
    }
}
