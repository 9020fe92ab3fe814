//! A pass of EM over rows that come a batch at a time, in several places: its sums merge, and both they and the model travel as bytes.

use faer::Par;
use ndarray::ArrayView2;

use super::backend::{Backend, Pass, Summary};
use super::chunks::{Chunks, Memory, Scratch};
use super::em_cpu::{Part, each_chunk};
use super::em_gpu::OnGpu;
use super::posterior::Densities;
use crate::{Device, Error, Result};

/// Worst rows that are remembered, at most: a component that is empty is seeded at one of them.
const WORST: usize = 64;

/// What an E-step needs.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) components: usize,
    /// (K, d), unit rows.
    pub(crate) means: Vec<f32>,
    pub(crate) densities: Densities,
    pub(crate) hard: bool,
    /// What weights are divided by.
    pub(crate) unit: f64,
}

fn broken(reason: &str) -> Error {
    Error::Format { what: "mixture step", reason: reason.into() }
}

/// Numbers one after the other.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize, T>(&mut self, count: usize, of: impl Fn([u8; N]) -> T) -> Result<Vec<T>> {
        let bytes = count.checked_mul(N).and_then(|bytes| self.0.split_at_checked(bytes));
        let (taken, rest) = bytes.ok_or_else(|| broken("shorter than it says"))?;
        self.0 = rest;
        Ok(taken.as_chunks::<N>().0.iter().map(|bytes| of(*bytes)).collect())
    }

    fn counts(&mut self, count: usize) -> Result<Vec<usize>> {
        self.take(count, |bytes| u64::from_le_bytes(bytes) as usize)
    }

    fn doubles(&mut self, count: usize) -> Result<Vec<f64>> {
        self.take(count, f64::from_le_bytes)
    }

    fn singles(&mut self, count: usize) -> Result<Vec<f32>> {
        self.take(count, f32::from_le_bytes)
    }

    fn end(self) -> Result<()> {
        if self.0.is_empty() { Ok(()) } else { Err(broken("longer than it says")) }
    }
}

fn write_counts(bytes: &mut Vec<u8>, values: impl IntoIterator<Item = usize>) {
    values.into_iter().for_each(|value| bytes.extend_from_slice(&(value as u64).to_le_bytes()));
}

fn write_doubles<'a>(bytes: &mut Vec<u8>, values: impl IntoIterator<Item = &'a f64>) {
    values.into_iter().for_each(|value| bytes.extend_from_slice(&value.to_le_bytes()));
}

fn write_singles(bytes: &mut Vec<u8>, values: &[f32]) {
    values.iter().for_each(|value| bytes.extend_from_slice(&value.to_le_bytes()));
}

impl Model {
    pub(crate) fn dim(&self) -> usize {
        self.means.len() / self.components
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let k = self.components;
        let mut bytes = Vec::with_capacity(40 + 16 * k + 4 * self.means.len());
        write_counts(&mut bytes, [k, self.dim(), usize::from(self.hard)]);
        write_doubles(&mut bytes, [&self.unit]);
        write_doubles(&mut bytes, &self.densities.kappa[..k]);
        write_doubles(&mut bytes, &self.densities.bias[..k]);
        write_singles(&mut bytes, &self.means);
        bytes
    }

    /// # Errors
    /// [`Error::Format`] for bytes that [`Model::to_bytes`] does not make.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let mut from = Reader(bytes);
        let [components, dim, hard] = from.counts(3)?[..] else { unreachable!("three") };
        let unit = from.doubles(1)?[0];
        let (kappa, bias) = (from.doubles(components)?, from.doubles(components)?);
        let means = from.singles(components.checked_mul(dim).ok_or_else(|| broken("too large"))?)?;
        from.end()?;
        if components == 0 || dim < 2 || unit.is_nan() || unit <= 0.0 {
            return Err(broken("no components, or less than 2 dimensions"));
        }
        let densities = Densities::new(&kappa, bias.into_iter());
        Ok(Self { components, means, densities, hard: hard != 0, unit })
    }
}

/// ln density and the row at unit length.
pub(crate) type Worst = (f64, Vec<f32>);

/// The sums of a pass.
pub(crate) struct Sums {
    /// Of the rows added here.
    part: Part,
    /// Of what was merged, (K, d).
    merged: Vec<f64>,
    summary: Summary,
    /// The worst first.
    worst: Vec<Worst>,
}

impl std::fmt::Debug for Sums {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sums").field("summary", &self.summary).finish_non_exhaustive()
    }
}

impl Sums {
    pub(crate) fn new(model: &Model) -> Self {
        let (k, dim) = (model.components, model.dim());
        Self {
            part: Part::new(k, dim, usize::MAX),
            merged: vec![0.0; k * dim],
            summary: Summary { mass: vec![0.0; k], sizes: vec![0; k], ..Summary::default() },
            worst: Vec::new(),
        }
    }

    /// Adds rows, (n, d), on this thread; `weights` in units of [`Model::unit`].
    ///
    /// # Errors
    /// [`Error::Domain`] names the first row that is all zeros or has an element that is not finite, or the first such weight.
    pub(crate) fn add(&mut self, model: &Model, rows: &ArrayView2<'_, f32>, weights: Option<&[f64]>) -> Result<()> {
        let memory = Memory::new(rows, weights)?;
        let part = &mut self.part;
        let (k, densities) = (model.components, &model.densities);
        each_chunk(&memory, 0..rows.nrows(), k, &model.means, densities, model.hard, true, Par::Seq, |chunk| {
            part.add(chunk, Par::Seq)
        })?;
        // Rows are numbered within a batch, so the worst of it are taken out of it now.
        for (density, row) in std::mem::take(&mut self.part.summary.worst) {
            let mut scratch = Scratch::default();
            let chunk = memory.chunk(row, 1, &mut scratch)?;
            let unit = chunk.rows.iter().map(|&value| value * chunk.inverse[0]).collect();
            self.worst.push((density, unit));
        }
        self.keep_worst(k);
        Ok(())
    }

    /// As [`Sums::add`], on a GPU.
    ///
    /// # Errors
    /// As [`Sums::add`]; the device's own.
    pub(crate) async fn add_on_gpu(
        &mut self,
        device: &Device,
        model: &Model,
        rows: ArrayView2<'_, f32>,
        weights: Option<&[f64]>,
    ) -> Result<()> {
        let mut backend = OnGpu::resident(&device.tensor(&rows)?, weights, model.components, None).await?;
        backend.set_means(model.means.clone())?;
        let pass = Pass { rows: 0..rows.nrows(), densities: &model.densities, hard: model.hard, blend: (0.0, 1.0) };
        let mut summary = backend.step(pass).await?;
        let sums = backend.sums().await?;
        self.merged.iter_mut().zip(sums).for_each(|(sum, value)| *sum += f64::from(value));
        for (density, row) in std::mem::take(&mut summary.worst) {
            let unit = backend.select(&[row]).await?;
            self.worst.push((density, unit.into_raw_vec_and_offset().0));
            if self.worst.len() >= 2 * WORST {
                break;
            }
        }
        summary.lengths.clear();
        self.summary.add(summary);
        self.keep_worst(model.components);
        Ok(())
    }

    fn keep_worst(&mut self, components: usize) {
        // by the rows themselves where densities are equal, so that the order of parts does not matter
        let bits = |row: &[f32]| row.iter().map(|value| value.to_bits()).collect::<Vec<u32>>();
        self.worst.sort_by(|a, b| a.0.total_cmp(&b.0).then_with(|| bits(&a.1).cmp(&bits(&b.1))));
        self.worst.truncate(components.min(WORST));
    }

    /// Adds the sums of other rows.
    pub(crate) fn merge(&mut self, other: Sums) {
        self.merged.iter_mut().zip(other.totals()).for_each(|(sum, value)| *sum += value);
        self.summary.add(other.part.summary);
        self.summary.add(other.summary);
        let components = self.summary.mass.len();
        self.worst.extend(other.worst);
        self.keep_worst(components);
    }

    /// All sums, (K, d).
    fn totals(&self) -> Vec<f64> {
        let mut totals = self.part.sums();
        totals.iter_mut().zip(&self.merged).for_each(|(total, merged)| *total += merged);
        totals
    }

    /// What the pass found: its summary without lengths and worst rows; the sums, (K, d); the worst rows.
    pub(crate) fn finish(self) -> (Summary, Vec<f64>, Vec<Worst>) {
        let totals = self.totals();
        let mut summary = self.summary;
        summary.add(self.part.summary);
        summary.worst.clear();
        (summary, totals, self.worst)
    }

    /// Bytes that the sums take.
    pub(crate) fn bytes(&self) -> usize {
        8 * self.merged.len()
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut summary = self.summary.clone();
        summary.add(self.part.summary.clone());
        let totals = self.totals();
        let mut bytes = Vec::with_capacity(8 * totals.len() + 1024);
        write_counts(&mut bytes, [self.worst.len()]);
        write_doubles(&mut bytes, [&summary.weight, &summary.log_likelihood, &summary.best]);
        write_doubles(&mut bytes, &summary.mass);
        write_counts(&mut bytes, summary.sizes.iter().copied());
        write_doubles(&mut bytes, &totals);
        for (density, row) in &self.worst {
            write_doubles(&mut bytes, [density]);
            write_singles(&mut bytes, row);
        }
        bytes
    }

    /// # Errors
    /// [`Error::Format`] for bytes that [`Sums::to_bytes`] does not make.
    pub(crate) fn from_bytes(model: &Model, bytes: &[u8]) -> Result<Self> {
        let (k, dim) = (model.components, model.dim());
        let mut from = Reader(bytes);
        let worst = from.counts(1)?[0];
        let [weight, log_likelihood, best] = from.doubles(3)?[..] else { unreachable!("three") };
        let (mass, sizes) = (from.doubles(k)?, from.counts(k)?);
        let merged = from.doubles(k * dim)?;
        let mut rows = Vec::new();
        for _ in 0..worst {
            rows.push((from.doubles(1)?[0], from.singles(dim)?));
        }
        from.end()?;
        let summary = Summary { weight, log_likelihood, best, mass, sizes, ..Summary::default() };
        Ok(Self { part: Part::new(k, dim, 0), merged, summary, worst: rows })
    }
}

#[cfg(test)]
mod tests {
    use ndarray::Array2;

    use super::*;

    fn model() -> Model {
        let means = (0..24).map(|i| if i % 9 == 0 { 1.0 } else { 0.0 }).collect();
        let densities = Densities::new(&[3.0, 40.0, 7.0], [-1.0, -2.5, -0.5].into_iter());
        Model { components: 3, means, densities, hard: false, unit: 1.5 }
    }

    /// Whatever is cut off or added, it is an error.
    #[test]
    fn bytes_that_are_not_whole_are_refused() {
        let model = model();
        let bytes = model.to_bytes();
        assert_eq!(Model::from_bytes(&bytes).unwrap().to_bytes(), bytes);
        let rows = Array2::from_shape_fn((50, 8), |(i, j)| ((i * 5 + j * 3) % 7) as f32 - 2.5);
        let mut sums = Sums::new(&model);
        sums.add(&model, &rows.view(), None).unwrap();
        let state = sums.to_bytes();
        assert_eq!(Sums::from_bytes(&model, &state).unwrap().to_bytes(), state);
        for length in 0..bytes.len() {
            assert!(Model::from_bytes(&bytes[..length]).is_err(), "{length} bytes of a model");
        }
        for length in 0..state.len() {
            assert!(Sums::from_bytes(&model, &state[..length]).is_err(), "{length} bytes of sums");
        }
        assert!(Model::from_bytes(&[&bytes[..], &[0]].concat()).is_err());
        assert!(Sums::from_bytes(&model, &[&state[..], &[0]].concat()).is_err());
        let mut huge = bytes;
        huge[..16].fill(0xff);
        assert!(Model::from_bytes(&huge).is_err(), "2^64 components");
    }

    /// Merged in any order, sums are those of all rows but for roundings.
    #[test]
    fn parts_merge_to_the_whole() {
        let model = model();
        let rows = Array2::from_shape_fn((3000, 8), |(i, j)| ((i * 31 + j * 17) % 101) as f32 - 49.7);
        let part = |first: usize, last: usize| {
            let mut sums = Sums::new(&model);
            sums.add(&model, &rows.slice(ndarray::s![first..last, ..]), None).unwrap();
            sums
        };
        let whole = part(0, 3000);
        let (mut forward, mut backward) = (part(0, 1000), part(1700, 3000));
        forward.merge(part(1000, 1700));
        forward.merge(part(1700, 3000));
        backward.merge(part(1000, 1700));
        backward.merge(part(0, 1000));
        let (summary, totals, worst) = whole.finish();
        for merged in [forward, backward] {
            let (other, sums, others) = merged.finish();
            assert_eq!(summary.sizes, other.sizes);
            assert!((summary.log_likelihood - other.log_likelihood).abs() < 1e-9 * summary.log_likelihood.abs());
            // f32 sums of up to 3000 unit rows: 3000 roundings of 2^-24 of the sum of magnitudes, at random signs far fewer
            assert!(totals.iter().zip(&sums).all(|(a, b)| (a - b).abs() < 3000.0 * 1e-5));
            // Its density may round otherwise where it stands elsewhere in a matrix product.
            assert_eq!(worst[0].1, others[0].1, "the row explained worst");
        }
    }
}
