//! An array as it lies in a file: element type, shape, order of the axes and where the bytes are.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use half::f16;

use super::Matrix;
use crate::cli::complaint::{InFile, bad};

/// The element types a file may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    F16,
    F32,
    F64,
    /// An integer of that many bytes.
    Signed(usize),
    Unsigned(usize),
    /// Booleans, complex numbers, text, records...: named in errors, never read.
    Other,
}

impl Dtype {
    pub fn bytes(self) -> Option<usize> {
        match self {
            Dtype::F16 => Some(2),
            Dtype::F32 => Some(4),
            Dtype::F64 => Some(8),
            Dtype::Signed(bytes) | Dtype::Unsigned(bytes) => Some(bytes),
            Dtype::Other => None,
        }
    }
}

/// Where the elements are.
pub enum Body {
    /// From this byte of the file on; read piece by piece, so the file may be larger than memory.
    File {
        file: File,
        offset: u64,
    },
    Memory(Vec<u8>),
}

impl Body {
    /// Fills `into` from byte `at` of the elements on.
    pub fn read_at(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        match self {
            Body::File { file, offset } => read_exact_at(file, into, offset + at),
            Body::Memory(bytes) => {
                let at = usize::try_from(at).map_err(io::Error::other)?;
                let from = bytes.get(at..at + into.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
                into.copy_from_slice(from);
                Ok(())
            }
        }
    }
}

/// Reads without a cursor, so that several threads can.
#[cfg(unix)]
fn read_exact_at(file: &File, into: &mut [u8], at: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, into, at)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut into: &mut [u8], mut at: u64) -> io::Result<()> {
    while !into.is_empty() {
        let n = std::os::windows::fs::FileExt::seek_read(file, into, at)?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let rest = into;
        (into, at) = (&mut rest[n..], at + n as u64);
    }
    Ok(())
}

/// An array of any rank and element type, not yet read.
pub struct RawArray {
    pub path: PathBuf,
    pub dtype: Dtype,
    /// The file's own name for the element type, for messages.
    pub dtype_name: String,
    pub shape: Vec<usize>,
    /// The first axis is the fastest.
    pub fortran: bool,
    /// The bytes of an element are in the other order than this machine's.
    pub swapped: bool,
    pub body: Body,
}

impl RawArray {
    /// `(1535,)`, as NumPy prints it.
    pub fn shape_text(&self) -> String {
        match self.shape.as_slice() {
            [n] => format!("({n},)"),
            shape => format!("({})", shape.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")),
        }
    }

    /// How many bytes the elements take, where these are numbers and 2^64 is enough.
    pub fn bytes(&self) -> Option<u64> {
        let bytes = self.dtype.bytes()? as u64;
        self.shape.iter().try_fold(bytes, |product, n| product.checked_mul(*n as u64))
    }

    /// Refuses an array whose elements do not all lie within the `available` bytes of the file.
    pub fn check_length(&self, available: u64) -> anyhow::Result<()> {
        if self.dtype == Dtype::Other {
            return Ok(());
        }
        let needed = self.bytes();
        match needed {
            Some(needed) if needed <= available => Ok(()),
            _ => Err(bad(
                self.path.display(),
                format!(
                    "truncated: shape {} of {} needs {} bytes, the file has {available}",
                    self.shape_text(),
                    self.dtype_name,
                    needed.map_or("more than 2^64".to_string(), |n| n.to_string())
                ),
            )),
        }
    }

    /// The array as rows of floating-point numbers, at least two to a row: directions.
    pub fn into_matrix(self) -> anyhow::Result<Matrix> {
        self.into_matrix_of(2)
    }

    /// The array as rows of at least `least` floating-point numbers.
    pub fn into_matrix_of(self, least: usize) -> anyhow::Result<Matrix> {
        let problem = match (self.dtype, self.shape.as_slice()) {
            (Dtype::F16 | Dtype::F32 | Dtype::F64, &[rows, dim]) if rows > 0 && dim >= least => {
                return Ok(Matrix::new(self, rows, dim));
            }
            (Dtype::F16 | Dtype::F32 | Dtype::F64, &[0, _]) => "the array has no rows".to_string(),
            (Dtype::F16 | Dtype::F32 | Dtype::F64, &[_, dim]) => {
                format!("the rows have {dim} elements, expected at least {least}")
            }
            (Dtype::F16 | Dtype::F32 | Dtype::F64, shape) => format!(
                "the array has {} dimension{} (shape {}), expected 2: rows and their elements",
                shape.len(),
                if shape.len() == 1 { "" } else { "s" },
                self.shape_text()
            ),
            _ => format!("the elements are {}, expected float16, float32 or float64", self.dtype_name),
        };
        Err(bad(self.path.display(), problem))
    }

    /// One whole number for each of the `rows` rows; `what` says what they are, for messages.
    pub fn into_integers(self, what: &str, rows: usize) -> anyhow::Result<Vec<i64>> {
        self.check_vector(what, rows)?;
        let path = self.path.clone();
        let not_whole =
            |i, value: String| bad(path.display(), format!("{what} {i} is {value}, expected a whole number"));
        match self.dtype {
            Dtype::Signed(_) | Dtype::Unsigned(_) => self.integers(),
            Dtype::Other => {
                Err(bad(path.display(), format!("the elements are {}, expected integers", self.dtype_name)))
            }
            _ => (0..).zip(self.floats()?).map(|(i, x)| whole(x).ok_or_else(|| not_whole(i, x.to_string()))).collect(),
        }
    }

    /// The words of rows of binary codes, each as its bytes from the least significant, and the bytes of a row.
    pub fn into_codes(self) -> anyhow::Result<(Vec<u8>, usize)> {
        let problem = match (self.dtype, self.shape.as_slice()) {
            (Dtype::Unsigned(1 | 4 | 8) | Dtype::Signed(1 | 4 | 8), &[rows, words]) if rows > 0 && words > 0 => {
                let bytes = self.dtype.bytes().unwrap_or(1);
                let raw = self.little_endian()?;
                if !self.fortran {
                    return Ok((raw, words * bytes));
                }
                let place = |row: usize, word: usize| (word * rows + row) * bytes;
                let places = (0..rows).flat_map(|row| (0..words).map(move |word| place(row, word)));
                return Ok((places.flat_map(|at| raw[at..at + bytes].iter().copied()).collect(), words * bytes));
            }
            (Dtype::Unsigned(1 | 4 | 8) | Dtype::Signed(1 | 4 | 8), &[0, _]) => "there are no codes".to_string(),
            (Dtype::Unsigned(1 | 4 | 8) | Dtype::Signed(1 | 4 | 8), _) => {
                format!("the array has shape {}, expected (codes, words)", self.shape_text())
            }
            _ => format!("the elements are {}, expected words of codes: uint32, uint8 or uint64", self.dtype_name),
        };
        Err(bad(self.path.display(), problem))
    }

    /// Rows of whole numbers, and how many to a row.
    pub fn into_id_lists(self, rows: usize) -> anyhow::Result<(Vec<i64>, usize)> {
        match (self.dtype, self.shape.as_slice()) {
            (Dtype::Unsigned(_) | Dtype::Signed(_), &[n, length]) if n == rows && !self.fortran => {
                Ok((self.integers()?, length))
            }
            (Dtype::Unsigned(_) | Dtype::Signed(_), _) => {
                let order = if self.fortran { " in Fortran order" } else { "" };
                let what =
                    format!("the array has shape {}{order}, expected ({rows}, any): ids of a query", self.shape_text());
                Err(bad(self.path.display(), what))
            }
            _ => Err(bad(self.path.display(), format!("the elements are {}, expected integers", self.dtype_name))),
        }
    }

    /// One number for each of the `rows` rows.
    pub fn into_floats(self, what: &str, rows: usize) -> anyhow::Result<Vec<f64>> {
        self.check_vector(what, rows)?;
        match self.dtype {
            Dtype::Signed(_) | Dtype::Unsigned(_) => Ok(self.integers()?.into_iter().map(|i| i as f64).collect()),
            Dtype::Other => {
                Err(bad(self.path.display(), format!("the elements are {}, expected numbers", self.dtype_name)))
            }
            _ => self.floats(),
        }
    }

    fn check_vector(&self, what: &str, rows: usize) -> anyhow::Result<()> {
        match self.shape.as_slice() {
            &[n] | &[n, 1] if n == rows => Ok(()),
            &[n] | &[n, 1] => {
                Err(bad(self.path.display(), format!("there are {n} {what}s, expected {rows}: one a row")))
            }
            _ => {
                let shape = self.shape_text();
                Err(bad(
                    self.path.display(),
                    format!("the array has shape {shape}, expected ({rows},): one {what} a row"),
                ))
            }
        }
    }

    /// The bytes of all elements in the order in which they lie, each least significant first.
    fn little_endian(&self) -> anyhow::Result<Vec<u8>> {
        let bytes = self.dtype.bytes().unwrap_or(1);
        let mut raw = vec![0; self.shape.iter().product::<usize>() * bytes];
        self.body.read_at(0, &mut raw).in_file(&self.path)?;
        let big_endian = self.swapped == cfg!(target_endian = "little");
        if big_endian {
            raw.chunks_exact_mut(bytes).for_each(<[u8]>::reverse);
        }
        Ok(raw)
    }

    /// Every element, from its bytes, least significant first.
    fn elements<T>(&self, decode: impl Fn(&[u8]) -> Option<T>) -> anyhow::Result<Vec<T>> {
        let bytes = self.dtype.bytes().unwrap_or(1);
        let raw = self.little_endian()?;
        (raw.chunks_exact(bytes).enumerate())
            .map(|(i, element)| {
                decode(element).ok_or_else(|| bad(self.path.display(), format!("element {i} is too large")))
            })
            .collect()
    }

    fn integers(&self) -> anyhow::Result<Vec<i64>> {
        let signed = matches!(self.dtype, Dtype::Signed(_));
        self.elements(|element| {
            let negative = signed && element.last().is_some_and(|high| high & 0x80 != 0);
            let mut wide = [if negative { 0xff } else { 0 }; 8];
            wide[..element.len()].copy_from_slice(element);
            if signed { Some(i64::from_le_bytes(wide)) } else { i64::try_from(u64::from_le_bytes(wide)).ok() }
        })
    }

    /// Every element, in the order in which they lie.
    pub fn floats(&self) -> anyhow::Result<Vec<f64>> {
        self.elements(|element| match *element {
            [a, b] => Some(f16::from_le_bytes([a, b]).to_f64()),
            [a, b, c, d] => Some(f64::from(f32::from_le_bytes([a, b, c, d]))),
            _ => element.try_into().ok().map(f64::from_le_bytes),
        })
    }
}

/// `x` as an integer, where it is one that f64 holds exactly.
fn whole(x: f64) -> Option<i64> {
    (x.fract() == 0.0 && x.abs() < 9e15).then_some(x as i64)
}

/// An open file and its length.
pub fn open_file(path: &Path) -> anyhow::Result<(File, u64)> {
    let file = File::open(path).in_file(path)?;
    let metadata = file.metadata().in_file(path)?;
    if metadata.is_dir() {
        return Err(bad(path.display(), "is a directory"));
    }
    Ok((file, metadata.len()))
}
