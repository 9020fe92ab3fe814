//! NumPy's `.npy` and `.npz`: npyz reads and writes the headers, the elements are read piece by piece.

use std::io::{BufReader, Read, Seek, Write};
use std::path::Path;

use npyz::zip::CompressionMethod;
use npyz::{DType, Endianness, NpyHeader, Order, TypeChar, WriterBuilder};

use super::array::{Body, Dtype, RawArray, open_file};
use super::choose;
use crate::cli::complaint::{InFile, bad, reason};
use crate::cli::memory;
use npy_header::read_header;

pub fn open_npy(path: &Path) -> anyhow::Result<RawArray> {
    let (file, length) = open_file(path)?;
    let mut reader = BufReader::new(file);
    let header = read_header(&mut reader).map_err(|error| {
        bad(path.display(), format!("not a .npy file, or truncated in its header ({})", reason(&error)))
    })?;
    let offset = reader.stream_position().in_file(path)?;
    let body = Body::File { file: reader.into_inner(), offset };
    let array = describe(path, &header, body);
    array.check_length(length.saturating_sub(offset))?;
    Ok(array)
}

pub fn open_npz(path: &Path, name: Option<&str>) -> anyhow::Result<RawArray> {
    let (file, length) = open_file(path)?;
    let in_archive =
        |error: std::io::Error| bad(path.display(), format!("not a readable .npz file ({})", reason(&error)));
    let mut archive = npyz::npz::NpzArchive::new(BufReader::new(file)).map_err(in_archive)?;
    let mut names: Vec<String> = archive.array_names().map(str::to_string).collect();
    names.sort();
    let name = choose(path, &names, name)?;
    let entry = archive.zip_archive().by_name(&npyz::npz::file_name_from_array_name(name));
    let mut entry = entry.map_err(|error| in_archive(std::io::Error::other(error.to_string())))?;
    if !matches!(entry.compression(), CompressionMethod::Stored | CompressionMethod::Deflated) {
        let problem =
            format!("{name} is packed by {}, expected deflate or nothing, as NumPy does it", entry.compression());
        return Err(bad(path.display(), problem));
    }
    let packed = entry.compressed_size().min(length);
    let header = read_header(&mut entry).map_err(in_archive)?;
    let mut array = describe(path, &header, Body::Memory(Vec::new()));
    // Not what the archive says it unpacks to, which may be anything, but what the array has; as far as what is there can unpack to that.
    let needed = array.bytes().unwrap_or(0);
    let most = packed.saturating_mul(MAX_RATIO);
    if needed > most {
        return Err(bad(
            path.display(),
            format!("truncated: {name} needs {needed} bytes, the {packed} it is packed in hold at most {most}"),
        ));
    }
    let mut bytes = memory::reserve(needed).ok_or_else(|| {
        bad(
            path.display(),
            format!("{name} has {needed} bytes, more than the free memory; a .npy file is read from disk"),
        )
    })?;
    entry.take(needed).read_to_end(&mut bytes).map_err(in_archive)?;
    array.check_length(bytes.len() as u64)?;
    array.body = Body::Memory(bytes);
    Ok(array)
}

/// SQL's tables read it as well.
#[path = "../../npy_header.rs"]
mod npy_header;

/// What a byte of deflate unpacks to at most.
const MAX_RATIO: u64 = 1032;

fn describe(path: &Path, header: &NpyHeader, body: Body) -> RawArray {
    let native = Endianness::of_machine();
    let (dtype, swapped, dtype_name) = match header.dtype() {
        DType::Plain(kind) => {
            let bytes = kind.num_bytes().unwrap_or(0);
            let bits = 8 * bytes;
            let (dtype, name) = match (kind.type_char(), bytes) {
                (TypeChar::Float, 2) => (Dtype::F16, "float16".to_string()),
                (TypeChar::Float, 4) => (Dtype::F32, "float32".to_string()),
                (TypeChar::Float, 8) => (Dtype::F64, "float64".to_string()),
                (TypeChar::Int, 1 | 2 | 4 | 8) => (Dtype::Signed(bytes), format!("int{bits}")),
                (TypeChar::Uint, 1 | 2 | 4 | 8) => (Dtype::Unsigned(bytes), format!("uint{bits}")),
                (TypeChar::Bool, _) => (Dtype::Other, "bool".to_string()),
                (TypeChar::Complex, _) => (Dtype::Other, format!("complex{bits}")),
                (TypeChar::Object, _) => (Dtype::Other, "Python objects".to_string()),
                _ => (Dtype::Other, format!("of type {kind}")),
            };
            let irrelevant = kind.endianness() == Endianness::Irrelevant;
            (dtype, !irrelevant && kind.endianness() != native, name)
        }
        _ => (Dtype::Other, false, "records".to_string()),
    };
    RawArray {
        path: path.to_path_buf(),
        dtype,
        dtype_name,
        shape: header.shape().iter().map(|n| usize::try_from(*n).unwrap_or(usize::MAX)).collect(),
        fortran: header.order() == Order::Fortran,
        swapped,
        body,
    }
}

/// Writes the header of an array of that shape; the elements follow in C order, as this machine has them.
pub fn write_header<T: npyz::AutoSerialize + npyz::Serialize>(
    to: &mut dyn Write,
    shape: &[u64],
) -> std::io::Result<()> {
    npyz::WriteOptions::<T>::new().default_dtype().shape(shape).writer(to).write_header_only().map(drop)
}

/// Writes a whole array.
pub fn write_npy<T: npyz::AutoSerialize + npyz::Serialize + bytemuck::Pod>(
    to: &mut dyn Write,
    shape: &[u64],
    elements: &[T],
) -> std::io::Result<()> {
    write_header::<T>(to, shape)?;
    to.write_all(bytemuck::cast_slice(elements))
}
