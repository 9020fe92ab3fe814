//! [`Codes`]: binary codes, packed.

use ndarray::{Array2, ArrayView2, Ix2};

use crate::{Device, Error, Result, Tensor};

const PLACE: &str = "Codes";
/// The widest code.
pub(crate) const MAX_BITS: usize = 8192;

/// n binary codes of `bits` bits each, on a [`Device`].
///
/// Bit j of a code is bit j % 32 (the least significant is 0) of its word j / 32; words are u32, (n, ceil(bits / 32)) row by row, and bits of the
/// last word beyond `bits` are 0. In memory of a little-endian machine that is FAISS's layout, padded to words.
#[derive(Debug, Clone)]
pub struct Codes {
    words: Tensor<u32, Ix2>,
    bits: usize,
}

/// Words of a code of `bits`.
pub(crate) fn words_of(bits: usize) -> usize {
    bits.div_ceil(32)
}

/// An error unless `bits` is a multiple of 8 from 8 to 8192.
pub(crate) fn check_bits(place: &'static str, bits: usize) -> Result<()> {
    if bits.is_multiple_of(8) && (8..=MAX_BITS).contains(&bits) {
        return Ok(());
    }
    Err(Error::Argument {
        place,
        quantity: "bits",
        expected: format!("a multiple of 8 from 8 to {MAX_BITS}"),
        found: bits.to_string(),
    })
}

impl Codes {
    /// Codes whose words are there already, (n, ceil(bits / 32)). Waits for them, to see that padding bits are 0; where `bits` is a multiple of 32 there are
    /// none, and nothing waits.
    ///
    /// # Errors
    /// [`Error::Argument`] unless `bits` is a multiple of 8 from 8 to 8192; [`Error::Shape`] for another number of words; [`Error::Domain`] names the
    /// first code with a padding bit set; what went wrong on the way to the tensor.
    pub fn new(words: Tensor<u32, Ix2>, bits: usize) -> Result<Self> {
        check_bits(PLACE, bits)?;
        if words.shape()[1] != words_of(bits) {
            return Err(Error::Shape {
                place: PLACE,
                quantity: "words",
                expected: format!("(n, {}) for {bits} bits", words_of(bits)),
                found: words.shape().to_vec(),
            });
        }
        if !bits.is_multiple_of(32) {
            match words.as_host() {
                Some(view) => check_padding(&view, bits)?,
                None => check_padding(&words.to_array()?.view(), bits)?,
            }
        }
        Ok(Self { words, bits })
    }

    /// As [`Codes::new`] of words whose padding a kernel has left 0.
    pub(crate) fn trusted(words: Tensor<u32, Ix2>, bits: usize) -> Self {
        debug_assert_eq!(words.shape()[1], words_of(bits));
        Self { words, bits }
    }

    /// Codes of rows of 0 and 1, (n, bits).
    ///
    /// # Errors
    /// [`Error::Argument`] unless the number of columns is a multiple of 8 from 8 to 8192; those of [`Device::tensor`].
    pub fn pack(device: &Device, rows: &ArrayView2<'_, bool>) -> Result<Self> {
        let bits = rows.ncols();
        check_bits(PLACE, bits)?;
        let mut words = Array2::zeros((rows.nrows(), words_of(bits)));
        for (row, mut code) in rows.rows().into_iter().zip(words.rows_mut()) {
            for (j, &bit) in row.iter().enumerate() {
                code[j / 32] |= u32::from(bit) << (j % 32);
            }
        }
        Ok(Self { words: device.tensor_from(words)?, bits })
    }

    /// The bits, (n, bits). Waits.
    ///
    /// # Errors
    /// Those of [`Tensor::to_array`].
    pub fn unpack(&self) -> Result<Array2<bool>> {
        let words = self.words.to_array()?;
        Ok(Array2::from_shape_fn((self.len(), self.bits), |(i, j)| words[[i, j / 32]] >> (j % 32) & 1 == 1))
    }

    /// Codes of FAISS's binary indexes: (n, bits / 8) bytes, bit j of a code being bit j % 8 (the least significant is 0) of its byte j / 8. That is also
    /// `np.packbits(rows, axis=1, bitorder="little")`.
    ///
    /// # Errors
    /// As [`Codes::pack`], for 8 times the number of columns.
    pub fn from_bytes(device: &Device, bytes: &ArrayView2<'_, u8>) -> Result<Self> {
        Self::of_bytes(device, bytes, |byte| byte)
    }

    /// Codes of `np.packbits(rows, axis=1)`, whose first bit is the most significant of its byte. (With `bitorder="little"`: [`Codes::from_bytes`].)
    ///
    /// # Errors
    /// As [`Codes::from_bytes`].
    pub fn from_packbits(device: &Device, bytes: &ArrayView2<'_, u8>) -> Result<Self> {
        Self::of_bytes(device, bytes, u8::reverse_bits)
    }

    fn of_bytes(device: &Device, bytes: &ArrayView2<'_, u8>, order: impl Fn(u8) -> u8) -> Result<Self> {
        let bits = bytes.ncols().saturating_mul(8);
        check_bits(PLACE, bits)?;
        let mut words = Array2::zeros((bytes.nrows(), words_of(bits)));
        for (row, mut code) in bytes.rows().into_iter().zip(words.rows_mut()) {
            for (j, &byte) in row.iter().enumerate() {
                code[j / 4] |= u32::from(order(byte)) << (8 * (j % 4));
            }
        }
        Ok(Self { words: device.tensor_from(words)?, bits })
    }

    /// The codes as bytes in FAISS's layout, (n, bits / 8). Waits.
    ///
    /// # Errors
    /// Those of [`Tensor::to_array`].
    pub fn to_bytes(&self) -> Result<Array2<u8>> {
        let words = self.words.to_array()?;
        Ok(Array2::from_shape_fn((self.len(), self.bits / 8), |(i, j)| (words[[i, j / 4]] >> (8 * (j % 4))) as u8))
    }

    /// The words, (n, ceil(bits / 32)).
    pub fn words(&self) -> &Tensor<u32, Ix2> {
        &self.words
    }

    /// Bits of a code.
    pub fn bits(&self) -> usize {
        self.bits
    }

    /// Number of codes.
    pub fn len(&self) -> usize {
        self.words.shape()[0]
    }

    /// Whether there is no code.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where the codes are.
    pub fn device(&self) -> &Device {
        self.words.device()
    }

    /// The same codes on another device.
    ///
    /// # Errors
    /// As [`Tensor::to_device`].
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        Ok(Self { words: self.words.to_device(device)?, bits: self.bits })
    }

    /// An error unless both have codes of the same width on the same device.
    pub(crate) fn agree(&self, place: &'static str, quantity: &'static str, other: &Self) -> Result<()> {
        self.device().same(place, quantity, other.device())?;
        if self.bits == other.bits { Ok(()) } else { Err(width(place, quantity, self.bits, other.bits)) }
    }
}

/// The error that codes have another width.
pub(crate) fn width(place: &'static str, quantity: &'static str, expected: usize, found: usize) -> Error {
    Error::Argument {
        place,
        quantity,
        expected: format!("codes of {expected} bits"),
        found: format!("of {found} bits"),
    }
}

fn check_padding(words: &ArrayView2<'_, u32>, bits: usize) -> Result<()> {
    let padding = u32::MAX << (bits % 32);
    match words.column(words.ncols() - 1).iter().position(|word| word & padding != 0) {
        None => Ok(()),
        Some(index) => Err(Error::Domain {
            place: PLACE,
            quantity: "words",
            index,
            expected: "no bit set beyond the code's width",
            found: format!("{:#010x}", words[[index, words.ncols() - 1]]),
        }),
    }
}
