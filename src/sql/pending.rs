//! Rows that wait until they are worth sending to a GPU.

use half::f16;
use ndarray::{ArrayView2, Ix2};

use super::column::{Embeddings, Values, view};
use crate::{Device, Error, Tensor};

/// Elements to send at a time.
const ENOUGH: usize = 4 << 20;

#[derive(Debug)]
enum Held {
    F16(Vec<f16>),
    F32(Vec<f32>),
    F64(Vec<f64>),
}

/// Rows of one type and length, with what goes with them.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    held: Option<Held>,
    pub(crate) dim: usize,
    /// One a row, where rows have weights.
    pub(crate) weights: Vec<f64>,
    /// One a row, where rows have ids.
    pub(crate) ids: Vec<u64>,
}

/// The rows on a device.
pub(crate) enum OnGpu {
    F16(Tensor<f16, Ix2>),
    F32(Tensor<f32, Ix2>),
    F64(Tensor<f64, Ix2>),
}

impl Pending {
    pub(crate) fn push(&mut self, rows: &Embeddings<'_>) {
        self.dim = rows.dim;
        match (&mut self.held, &rows.values) {
            (None, Values::F16(values)) => self.held = Some(Held::F16(values.to_vec())),
            (None, Values::F32(values)) => self.held = Some(Held::F32(values.to_vec())),
            (None, Values::F64(values)) => self.held = Some(Held::F64(values.to_vec())),
            (Some(Held::F16(held)), Values::F16(values)) => held.extend_from_slice(values),
            (Some(Held::F32(held)), Values::F32(values)) => held.extend_from_slice(values),
            (Some(Held::F64(held)), Values::F64(values)) => held.extend_from_slice(values),
            _ => unreachable!("a column has one type"),
        }
    }

    /// Whether there is enough.
    pub(crate) fn is_enough(&self) -> bool {
        self.elements() >= ENOUGH
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.elements() == 0
    }

    fn elements(&self) -> usize {
        match &self.held {
            None => 0,
            Some(Held::F16(held)) => held.len(),
            Some(Held::F32(held)) => held.len(),
            Some(Held::F64(held)) => held.len(),
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        8 * (self.elements() + self.weights.len() + self.ids.len())
    }

    pub(crate) fn to_device(&self, device: &Device) -> Result<OnGpu, Error> {
        match &self.held {
            Some(Held::F16(held)) => device.tensor(&view(held, self.dim)).map(OnGpu::F16),
            Some(Held::F64(held)) => device.tensor(&view(held, self.dim)).map(OnGpu::F64),
            Some(Held::F32(held)) => device.tensor(&view(held, self.dim)).map(OnGpu::F32),
            None => device.tensor(&ArrayView2::<f32>::from(&[[0.0f32; 0]; 0])).map(OnGpu::F32),
        }
    }

    /// The rows as f32, which f16 and f32 are exactly.
    pub(crate) fn singles(&self) -> Vec<f32> {
        match &self.held {
            Some(Held::F16(held)) => held.iter().map(|value| value.to_f32()).collect(),
            Some(Held::F32(held)) => held.clone(),
            Some(Held::F64(held)) => held.iter().map(|&value| value as f32).collect(),
            None => Vec::new(),
        }
    }
}
