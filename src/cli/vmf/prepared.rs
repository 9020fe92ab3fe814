//! The rows of a file as a fit takes them: as they are, or centred.

use half::f16;
use ndarray::{Array1, Array2, ArrayView1, ArrayViewMut2, s};
use orthant::vmf::{RowSource, Rows, VmfStats};
use orthant::{Error, Result};

use crate::cli::complaint::InFile;
use crate::cli::files::{Matrix, Scalar};
use crate::cli::progress;

/// What one read of a pass over the file holds.
const BLOCK_BYTES: usize = 32 << 20;

/// Rows of a file, with the mean to subtract from each when it has unit length, where one is known.
pub struct Prepared<'a> {
    pub matrix: &'a Matrix,
    pub center: Option<Array1<f64>>,
}

impl Prepared<'_> {
    /// Rows `first..` into all of `into`.
    pub fn read<T: Scalar>(&self, first: usize, mut into: ArrayViewMut2<'_, T>) -> Result<()> {
        self.matrix.read_rows(first, into.view_mut())?;
        let Some(center) = &self.center else { return Ok(()) };
        for (i, mut row) in into.outer_iter_mut().enumerate() {
            let wide: Array1<f64> = row.mapv(Scalar::wide);
            // Scaled first: the squares of elements near the ends of f64's range are beyond them.
            let largest = wide.fold(0.0_f64, |most, x| most.max(x.abs()));
            let unit = &wide / largest;
            let centred = &unit / unit.dot(&unit).sqrt() - center;
            let length = centred.dot(&centred).sqrt();
            if length < 1e-12 {
                let what = self.matrix.path().display().to_string();
                return Err(Error::Io {
                    what,
                    reason: format!("row {} is the mean of all: centred, it is zero", first + i),
                });
            }
            row.zip_mut_with(&centred, |to, x| *to = T::from_f64(x / length));
        }
        Ok(())
    }

    /// Every row, in memory.
    pub fn load(&self) -> anyhow::Result<Array2<f32>> {
        let mut all = self.matrix.room()?;
        let bar = progress::bar(self.matrix.rows() as u64, "reading", "rows");
        for (first, end) in self.blocks::<f32>() {
            self.read(first, all.slice_mut(s![first..end, ..])).in_file(self.matrix.path())?;
            bar.set_position(end as u64);
        }
        bar.finish_and_clear();
        Ok(all)
    }

    /// Every row of a file of f16, in as much memory as the file has bytes.
    pub fn load_f16(&self) -> anyhow::Result<Array2<f16>> {
        let mut all = self.matrix.room::<f16>()?;
        let bar = progress::bar(self.matrix.rows() as u64, "reading", "rows");
        for (first, end) in self.blocks::<f32>() {
            let mut block = Array2::<f32>::zeros((end - first, self.matrix.dim()));
            self.read(first, block.view_mut()).in_file(self.matrix.path())?;
            all.slice_mut(s![first..end, ..]).zip_mut_with(&block, |to, from| *to = f16::from_f32(*from));
            bar.set_position(end as u64);
        }
        bar.finish_and_clear();
        Ok(all)
    }

    /// Reads and checks the first block: before a device is opened, whose drivers may print lines of their own.
    pub fn check_first(&self) -> anyhow::Result<()> {
        let Some((first, end)) = self.blocks::<f32>().next() else { return Ok(()) };
        let mut block = Array2::<f32>::zeros((end - first, self.matrix.dim()));
        self.read(first, block.view_mut()).in_file(self.matrix.path())
    }

    /// The sufficient statistics of all rows, read once in blocks; in f64 where the file is.
    pub fn stats(&self, weights: Option<ArrayView1<'_, f64>>) -> anyhow::Result<VmfStats> {
        if self.matrix.is_f64() { self.stats_in::<f64>(weights) } else { self.stats_in::<f32>(weights) }
    }

    fn stats_in<T: Scalar + Rows>(&self, weights: Option<ArrayView1<'_, f64>>) -> anyhow::Result<VmfStats> {
        let mut stats = VmfStats::new(self.matrix.dim()).in_file(self.matrix.path())?;
        let bar = progress::bar(self.matrix.rows() as u64, "reading", "rows");
        let mut block = Array2::<T>::zeros((0, 0));
        for (first, end) in self.blocks::<T>() {
            if block.nrows() != end - first {
                block = Array2::zeros((end - first, self.matrix.dim()));
            }
            self.read(first, block.view_mut()).in_file(self.matrix.path())?;
            match &weights {
                Some(weights) => stats.push_weighted(block.view(), weights.slice(s![first..end])),
                None => stats.push(block.view()),
            }
            .in_file(self.matrix.path())?;
            bar.set_position(end as u64);
        }
        bar.finish_and_clear();
        Ok(stats)
    }

    /// Runs of rows to read at a time.
    pub fn blocks<T>(&self) -> impl Iterator<Item = (usize, usize)> + use<T> {
        let rows = self.matrix.rows();
        let step = (BLOCK_BYTES / (self.matrix.dim() * size_of::<T>())).max(1);
        (0..rows).step_by(step).map(move |first| (first, (first + step).min(rows)))
    }

    /// At most `most` rows of unit length, evenly spread over the file, and which they are; of very long rows fewer.
    pub fn sample(&self, most: usize) -> anyhow::Result<(Vec<usize>, Array2<f32>)> {
        let rows = self.matrix.rows();
        let count = rows.min(most).min((2 * BLOCK_BYTES / (4 * self.matrix.dim())).max(500));
        let indices: Vec<usize> = (0..count).map(|i| (i as u128 * rows as u128 / count as u128) as usize).collect();
        let mut sample = Array2::<f32>::zeros((count, self.matrix.dim()));
        if count == rows {
            self.read(0, sample.view_mut()).in_file(self.matrix.path())?;
        } else {
            for (i, row) in indices.iter().enumerate() {
                self.read(*row, sample.slice_mut(s![i..=i, ..])).in_file(self.matrix.path())?;
            }
        }
        for mut row in sample.outer_iter_mut() {
            let largest = row.fold(0.0_f32, |most, x: &f32| most.max(x.abs()));
            row /= largest;
            let length = row.dot(&row).sqrt();
            row /= length;
        }
        Ok((indices, sample))
    }
}

impl RowSource for Prepared<'_> {
    fn rows(&self) -> usize {
        self.matrix.rows()
    }

    fn dim(&self) -> usize {
        self.matrix.dim()
    }

    fn read(&self, first: usize, into: ArrayViewMut2<'_, f32>) -> Result<()> {
        Prepared::read(self, first, into)
    }
}
