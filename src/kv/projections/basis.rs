//! [`Basis`]: one projection and its expected errors.

use ndarray::{Array1, Array2, s};

use super::PLACE;
use crate::kv::layer::Factors;
use crate::{Error, Result};

/// One projection of the rows x of some consecutive KV heads side by side: z = (x - mean) down, x^ = mean + z up.
#[derive(Debug, Clone, PartialEq)]
pub struct Basis {
    heads: usize,
    mean: Array1<f32>,
    down: Array2<f32>,
    up: Array2<f32>,
    spectrum: Option<Vec<f64>>,
}

impl Basis {
    /// Of given factors.
    ///
    /// * `heads`: consecutive KV heads; `mean`: (heads d); `down`: (heads d, rank); `up`: (rank, heads d); finite
    ///
    /// # Errors
    /// [`Error::Shape`]; [`Error::Domain`] names the first element that is not finite; [`Error::Argument`] for a rank of 0 or above heads d.
    pub fn new(heads: usize, mean: Array1<f32>, down: Array2<f32>, up: Array2<f32>) -> Result<Self> {
        let (width, rank) = down.dim();
        let shape = |quantity, expected: String, found: &[usize]| {
            Err(Error::Shape { place: PLACE, quantity, expected, found: found.to_vec() })
        };
        if heads == 0 || !width.is_multiple_of(heads) {
            return shape("down", format!("(a multiple of {heads} heads, rank)"), down.shape());
        }
        if mean.len() != width {
            return shape("mean", format!("({width})"), mean.shape());
        }
        if up.dim() != (rank, width) {
            return shape("up", format!("({rank}, {width})"), up.shape());
        }
        if !(1..=width).contains(&rank) {
            return super::argument("rank", format!("1 to {width}"), rank);
        }
        let elements = [("mean", mean.as_slice()), ("down", down.as_slice()), ("up", up.as_slice())];
        for (quantity, elements) in elements {
            let elements = elements.unwrap_or_default();
            if let Some(index) = elements.iter().position(|x| !x.is_finite()) {
                let found = elements[index].to_string();
                return Err(Error::Domain { place: PLACE, quantity, index, expected: "finite", found });
            }
        }
        Ok(Self { heads, mean, down, up, spectrum: None })
    }

    /// Of rows (rank, heads d) that are orthonormal: up = rows, down = rows^T.
    ///
    /// # Errors
    /// As [`Basis::new`]; [`Error::Domain`] for the first row that is not of unit length and at right angles to those before, to 1e-3.
    pub fn orthogonal(heads: usize, mean: Array1<f32>, rows: Array2<f32>) -> Result<Self> {
        let wide = rows.mapv(f64::from);
        let gram = wide.dot(&wide.t());
        for index in 0..gram.nrows() {
            let off = |column: usize| (gram[[index, column]] - f64::from(u8::from(index == column))).abs();
            if let Some(worst) = (0..=index).map(off).find(|off| off.is_nan() || *off > 1e-3) {
                let (quantity, expected) = ("rows", "orthonormal");
                return Err(Error::Domain {
                    place: PLACE,
                    quantity,
                    index,
                    expected,
                    found: format!("{worst:.1e} off"),
                });
            }
        }
        Self::new(heads, mean, rows.t().as_standard_layout().into_owned(), rows)
    }

    /// With the spectrum: Lambda of every component, descending, also of those behind the rank.
    pub(crate) fn with_spectrum(mut self, spectrum: Option<Vec<f64>>) -> Self {
        self.spectrum = spectrum;
        self
    }

    /// KV heads it covers.
    pub fn heads(&self) -> usize {
        self.heads
    }

    /// Elements of a row: heads d.
    pub fn width(&self) -> usize {
        self.mean.len()
    }

    /// Latents of a row.
    pub fn rank(&self) -> usize {
        self.up.nrows()
    }

    /// (heads d).
    pub fn mean(&self) -> &Array1<f32> {
        &self.mean
    }

    /// (heads d, rank).
    pub fn down(&self) -> &Array2<f32> {
        &self.down
    }

    /// (rank, heads d).
    pub fn up(&self) -> &Array2<f32> {
        &self.up
    }

    /// What each component of the full basis adds to the expected squared error if it is left out, descending; none for given factors. In the metric
    /// of the weighting: squared elements of a row (PCA), squared logits (Q-weighted keys), squared elements of W_o o (weighted values).
    pub fn spectrum(&self) -> Option<&[f64]> {
        self.spectrum.as_deref()
    }

    /// The expected squared error at a rank, the sum of the spectrum behind it; none for given factors.
    pub fn expected_error(&self, rank: usize) -> Option<f64> {
        // From the small ones on.
        self.spectrum.as_ref().map(|spectrum| spectrum.iter().skip(rank).rev().sum())
    }

    /// The first components.
    pub(super) fn truncated(&self, rank: usize) -> Self {
        Self {
            heads: self.heads,
            mean: self.mean.clone(),
            down: self.down.slice(s![.., ..rank]).as_standard_layout().into_owned(),
            up: self.up.slice(s![..rank, ..]).to_owned(),
            spectrum: self.spectrum.clone(),
        }
    }

    pub(super) fn factors(&self) -> Factors {
        let elements = |matrix: &Array2<f32>| matrix.iter().copied().collect();
        let (down, up) = (elements(&self.down), elements(&self.up));
        Factors { heads: self.heads, rank: self.rank(), mean: self.mean.to_vec(), down, up }
    }
}
