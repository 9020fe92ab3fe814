//! Pages and slots in this computer's memory.

use half::f16;

use crate::kv::layer::ExactType;

/// Pages and slots in memory: one allocation each, so what is not in use takes none.
#[derive(Debug, Default)]
pub(crate) struct HostStore {
    pub(crate) pages: Vec<Box<[u32]>>,
    pub(crate) slots: Vec<Rows>,
}

/// Exact rows.
#[derive(Debug, Clone)]
pub(crate) enum Rows {
    Half(Box<[f16]>),
    Single(Box<[f32]>),
}

impl Rows {
    pub(super) fn new(kind: ExactType, elements: usize) -> Self {
        match kind {
            ExactType::Half => Self::Half(vec![f16::ZERO; elements].into()),
            ExactType::Single => Self::Single(vec![0.0; elements].into()),
        }
    }

    pub(super) fn clear(&mut self) {
        match self {
            Self::Half(rows) => *rows = Box::default(),
            Self::Single(rows) => *rows = Box::default(),
        }
    }

    /// The row of an element on, as f32.
    pub(crate) fn read(&self, first: usize, to: &mut [f32]) {
        match self {
            Self::Half(rows) => to.iter_mut().zip(&rows[first..]).for_each(|(to, x)| *to = x.to_f32()),
            Self::Single(rows) => to.copy_from_slice(&rows[first..][..to.len()]),
        }
    }

    /// Writes a row from an element on, rounded; what a rebuilt row has beyond f16 becomes its largest.
    pub(crate) fn write(&mut self, first: usize, row: impl Iterator<Item = f32>) {
        match self {
            Self::Half(rows) => {
                let nearest = |x: f32| f16::from_f32(x.clamp(-65504.0, 65504.0));
                rows[first..].iter_mut().zip(row).for_each(|(to, x)| *to = nearest(x));
            }
            Self::Single(rows) => rows[first..].iter_mut().zip(row).for_each(|(to, x)| *to = x),
        }
    }

    /// As bytes in their native order.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Half(rows) => bytemuck::cast_slice(rows),
            Self::Single(rows) => bytemuck::cast_slice(rows),
        }
    }

    /// Takes what [`Rows::as_bytes`] gave; of the same length.
    pub(crate) fn copy_bytes(&mut self, bytes: &[u8]) {
        match self {
            Self::Half(rows) => bytemuck::cast_slice_mut(rows).copy_from_slice(bytes),
            Self::Single(rows) => bytemuck::cast_slice_mut(rows).copy_from_slice(bytes),
        }
    }
}
