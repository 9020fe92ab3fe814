//! From floats to codes: signs, thresholds, random hyperplanes, a learned rotation; several views in one code.

mod file;
mod itq;
mod views;

use half::f16;
use ndarray::{Array1, Array2, Axis, Ix2, s};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use rayon::prelude::*;

use super::Codes;
use crate::device::host_memory;
use crate::gpu::block_on;
use crate::kernels::{MatmulElement, SignRule, matmul, sign_pack};
use crate::tensor::{Storage, Tensor};
use crate::{Error, Result};

pub use itq::ItqOptions;
pub use views::{Fusion, fuse};

const PLACE: &str = "binarize";
/// The widest code.
const MAX_BITS: usize = 8192;
/// Rows projected at a time on the CPU: their projections stay in a cache's reach.
const BLOCK: usize = 2048;

/// How rows become bits: bit j is the sign of `planes[j]'x - thresholds[j]`, with the planes of the method (none: the features themselves).
///
/// Codes can be compared where one `Binarizer` made them; it is saved and loaded for that.
#[derive(Clone, Debug, PartialEq)]
pub struct Binarizer {
    dim: usize,
    bits: usize,
    rule: SignRule,
    /// (bits, dim); without them bit j is feature j.
    planes: Option<Array2<f32>>,
    /// (bits); without them 0.
    thresholds: Option<Array1<f32>>,
}

impl Binarizer {
    /// The signs of the first `bits` of `dim` features. Of features that are never negative take [`Binarizer::mean`], [`Binarizer::median`] or
    /// [`SignRule::Above`], or every bit is 1.
    ///
    /// # Errors
    /// [`Error::Argument`] where `bits` is no multiple of 8 from 8 to 8192, or above `dim`.
    pub fn sign(dim: usize, bits: usize) -> Result<Self> {
        check_bits(bits, dim)?;
        Ok(Self { dim, bits, rule: SignRule::default(), planes: None, thresholds: None })
    }

    /// The first `bits` features of rows (n, dim), each against its mean over the rows.
    ///
    /// # Errors
    /// As [`Binarizer::sign`]; [`Error::Shape`] without rows; [`Error::Domain`] names the first element that is not finite (row-major); the device's own.
    pub fn mean<T: MatmulElement<Sum = f32>>(rows: &Tensor<T, Ix2>, bits: usize) -> Result<Self> {
        block_on(Self::mean_async(rows, bits))
    }

    /// [`Binarizer::mean`] where a thread must not block.
    ///
    /// # Errors
    /// As [`Binarizer::mean`].
    pub async fn mean_async<T: MatmulElement<Sum = f32>>(rows: &Tensor<T, Ix2>, bits: usize) -> Result<Self> {
        Self::at_columns(rows, bits, |column| {
            column.iter().map(|value| f64::from(*value)).sum::<f64>() / column.len() as f64
        })
        .await
    }

    /// The first `bits` features of rows (n, dim), each against its median over the rows: bits that are set in half of them, where values differ. The
    /// median of an even number is the mean of the middle two.
    ///
    /// # Errors
    /// As [`Binarizer::mean`].
    pub fn median<T: MatmulElement<Sum = f32>>(rows: &Tensor<T, Ix2>, bits: usize) -> Result<Self> {
        block_on(Self::median_async(rows, bits))
    }

    /// [`Binarizer::median`] where a thread must not block.
    ///
    /// # Errors
    /// As [`Binarizer::mean`].
    pub async fn median_async<T: MatmulElement<Sum = f32>>(rows: &Tensor<T, Ix2>, bits: usize) -> Result<Self> {
        Self::at_columns(rows, bits, |column| {
            let (middle, even) = (column.len() / 2, column.len().is_multiple_of(2));
            let (below, upper, _) = column.select_nth_unstable_by(middle, f32::total_cmp);
            let upper = f64::from(*upper);
            match below.iter().copied().max_by(f32::total_cmp) {
                Some(lower) if even => 0.5 * (f64::from(lower) + upper),
                _ => upper,
            }
        })
        .await
    }

    /// Thresholds that are `at` of each column.
    async fn at_columns<T: MatmulElement<Sum = f32>>(
        rows: &Tensor<T, Ix2>,
        bits: usize,
        at: impl Fn(&mut [f32]) -> f64 + Sync,
    ) -> Result<Self> {
        let binarizer = Self::sign(rows.shape()[1], bits)?;
        let rows = finite_rows(rows).await?;
        let thresholds: Vec<f32> = (rows.slice(s![.., ..bits]).axis_iter(Axis(1)).into_par_iter())
            .map(|column| at(&mut column.to_vec()) as f32)
            .collect();
        Ok(Self { thresholds: Some(thresholds.into()), ..binarizer })
    }

    /// `bits` random hyperplanes through 0, with normal directions drawn from `seed`: the expected share of bits in which two codes differ is the angle
    /// between the rows over pi.
    ///
    /// # Errors
    /// [`Error::Argument`] where `bits` is no multiple of 8 from 8 to 8192, or `dim` is 0.
    ///
    /// Source: Charikar, Similarity Estimation Techniques from Rounding Algorithms, STOC 2002.
    pub fn hyperplanes(dim: usize, bits: usize, seed: u64) -> Result<Self> {
        check_bits(bits, usize::MAX)?;
        if dim == 0 {
            return Err(Error::Argument {
                place: PLACE,
                quantity: "dim",
                expected: "at least 1".into(),
                found: "0".into(),
            });
        }
        let mut elements = host_memory(PLACE, bits.saturating_mul(dim))?;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        elements.iter_mut().for_each(|element: &mut f32| *element = StandardNormal.sample(&mut rng));
        let planes = Array2::from_shape_vec((bits, dim), elements);
        let Ok(planes) = planes else { unreachable!("bits dim elements") };
        Ok(Self { dim, bits, rule: SignRule::default(), planes: Some(planes), thresholds: None })
    }

    /// Which values set a bit. Default: [`SignRule::AtLeast`], the threshold itself too.
    pub fn rule(mut self, rule: SignRule) -> Self {
        self.rule = rule;
        self
    }

    /// Features of a row.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Bits of a code.
    pub fn bits(&self) -> usize {
        self.bits
    }

    /// What is compared with what, by [`SignRule`]: the projections of rows (n, dim) on the planes, (n, bits), and the thresholds. For queries that stay floats.
    ///
    /// # Errors
    /// As [`binarize()`].
    pub fn project<T: MatmulElement<Sum = f32>>(&self, rows: &Tensor<T, Ix2>) -> Result<Tensor<f32, Ix2>> {
        self.admit(rows)?;
        if let Some(view) = rows.as_host() {
            check_finite(&view)?;
        }
        let rows = widen(rows)?;
        let planes = match (&self.planes, rows.storage()) {
            (Some(planes), _) => planes.clone(),
            (None, Storage::Host(rows)) => return Ok(Tensor::host(rows.slice(s![.., ..self.bits]).to_owned())),
            // Times 1 and 0: exact.
            (None, Storage::Gpu(..)) if self.bits < self.dim => {
                Array2::from_shape_fn((self.bits, self.dim), |(i, j)| f32::from(u8::from(i == j)))
            }
            (None, Storage::Gpu(..)) => return Ok(rows),
        };
        matmul(&rows, &rows.device().tensor_from(planes)?, false, true)
    }

    fn admit<T: MatmulElement>(&self, rows: &Tensor<T, Ix2>) -> Result<()> {
        if rows.shape()[1] == self.dim {
            return Ok(());
        }
        let expected = format!("rows of {} features, as it was fitted to", self.dim);
        Err(Error::Shape { place: PLACE, quantity: "rows", expected, found: rows.shape().to_vec() })
    }
}

/// The codes of rows (n, dim), on the rows' device.
///
/// * `T`: f32 or f16. Projections are f32 products: a bit whose projection is within their rounding of its threshold (2^-24 dim |plane| |x|) may differ between
///   devices. Without planes codes are the same everywhere.
///
/// # Errors
/// [`Error::Shape`] where rows have not the features the binarizer was made for; [`Error::Domain`] names the first element that is not finite (row-major; on a
/// GPU of the projections, at the wait); the device's own.
pub fn binarize<T: MatmulElement<Sum = f32>>(rows: &Tensor<T, Ix2>, binarizer: &Binarizer) -> Result<Codes> {
    binarizer.admit(rows)?;
    let device = rows.device();
    let thresholds = binarizer.thresholds.as_ref().map(|thresholds| device.tensor(thresholds)).transpose()?;
    let words = match rows.storage() {
        Storage::Host(host) => {
            check_finite(&host)?;
            let mut words = Array2::<u32>::zeros((host.nrows(), binarizer.bits.div_ceil(32)));
            for first in (0..host.nrows()).step_by(BLOCK) {
                let end = (first + BLOCK).min(host.nrows());
                let block = Tensor::host(host.slice(s![first..end, ..]).to_owned());
                let packed = sign_pack(&binarizer.project(&block)?, thresholds.as_ref(), binarizer.rule)?;
                if let Some(packed) = packed.as_host() {
                    words.slice_mut(s![first..end, ..]).assign(&packed);
                }
            }
            Tensor::host(words)
        }
        Storage::Gpu(..) => sign_pack(&binarizer.project(rows)?, thresholds.as_ref(), binarizer.rule)?,
    };
    Ok(Codes::trusted(words, binarizer.bits))
}

fn check_bits(bits: usize, most: usize) -> Result<()> {
    if bits.is_multiple_of(8) && (8..=most.min(MAX_BITS)).contains(&bits) {
        return Ok(());
    }
    let most = if most > MAX_BITS { format!("{MAX_BITS}") } else { format!("the {most} features of a row") };
    let expected = format!("a multiple of 8 from 8 to {most}");
    Err(Error::Argument { place: PLACE, quantity: "bits", expected, found: bits.to_string() })
}

fn check_finite<T: MatmulElement<Sum = f32>>(rows: &ndarray::ArrayView2<'_, T>) -> Result<()> {
    // NaN where an element is NaN or infinite, else 0.
    let flawed = |row: ndarray::ArrayView1<'_, T>| row.iter().fold(0.0, |sum, value| sum + value.widen() * 0.0) != 0.0;
    let bad = rows.axis_iter(Axis(0)).into_par_iter().position_first(flawed);
    let Some(row) = bad else { return Ok(()) };
    let column = rows.row(row).iter().position(|value| !value.widen().is_finite()).unwrap_or(0);
    Err(Error::Domain {
        place: PLACE,
        quantity: "rows",
        index: row * rows.ncols() + column,
        expected: "a finite number",
        found: rows[[row, column]].widen().to_string(),
    })
}

/// Rows on the host as f32, at least one, all finite.
async fn finite_rows<T: MatmulElement<Sum = f32>>(rows: &Tensor<T, Ix2>) -> Result<Array2<f32>> {
    if rows.shape()[0] == 0 {
        let expected = "at least one row to learn from".to_string();
        return Err(Error::Shape { place: PLACE, quantity: "rows", expected, found: rows.shape().to_vec() });
    }
    let rows = rows.to_array_async().await?;
    check_finite(&rows.view())?;
    Ok(rows.mapv(|value| value.widen()))
}

/// The same rows as f32, exactly.
fn widen<T: MatmulElement<Sum = f32>>(rows: &Tensor<T, Ix2>) -> Result<Tensor<f32, Ix2>> {
    match rows.storage() {
        Storage::Host(rows) => Ok(Tensor::host(rows.mapv(|value| value.widen()))),
        Storage::Gpu(..) if T::NAME == "f32" => Ok(rows.clone().of()),
        // A product with the unit matrix: every term but one is 0.
        Storage::Gpu(..) => {
            let dim = rows.shape()[1];
            let unit = Array2::from_shape_fn((dim, dim), |(i, j)| f16::from_f32(f32::from(u8::from(i == j))));
            matmul(&rows.clone().of::<f16>(), &rows.device().tensor_from(unit)?, false, false)
        }
    }
}

/// Standard normal numbers.
fn gaussian(count: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|_| StandardNormal.sample(&mut rng)).collect()
}
