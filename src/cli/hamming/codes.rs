//! Binary codes as files hold them.

use std::path::Path;

use ndarray::Array2;
use orthant::Device;
use orthant::hamming::Codes;

use crate::cli::complaint::{InFile, bad};
use crate::cli::files;

/// Codes of a file, before there is a device to put them on.
pub struct Read<'a> {
    path: &'a Path,
    bytes: Array2<u8>,
}

impl<'a> Read<'a> {
    pub fn open(path: &'a Path) -> anyhow::Result<Self> {
        let (bytes, width) = files::open(path, None)?.into_codes()?;
        let bytes = Array2::from_shape_vec((bytes.len() / width, width), bytes)?;
        if bytes.ncols() > 1024 {
            return Err(bad(path.display(), format!("codes of {} bits, expected at most 8192", 8 * bytes.ncols())));
        }
        Ok(Self { path, bytes })
    }

    pub fn len(&self) -> usize {
        self.bytes.nrows()
    }

    pub fn bits(&self) -> usize {
        8 * self.bytes.ncols()
    }

    /// Refuses codes of another width than `base`.
    pub fn of_the_width_of(self, base: &Read) -> anyhow::Result<Self> {
        if self.bits() == base.bits() {
            return Ok(self);
        }
        let what = format!("codes of {} bits, those of {} have {}", self.bits(), base.path.display(), base.bits());
        Err(bad(self.path.display(), what))
    }

    pub fn on(&self, device: &Device) -> anyhow::Result<Codes> {
        Codes::from_bytes(device, &self.bytes.view()).in_file(self.path)
    }
}
