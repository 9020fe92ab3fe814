//! Hugging Face's `.safetensors`: the header by its own crate, the elements where they lie in the file.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use safetensors::Dtype as Stored;
use safetensors::tensor::Metadata;

use super::array::{Body, Dtype, RawArray, open_file};
use super::choose;
use crate::cli::complaint::{InFile, bad};

/// What the safetensors crate allows a header to be.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// The header of a file, and where the elements begin.
fn header(path: &Path) -> anyhow::Result<(File, Metadata, u64)> {
    let (mut file, length) = open_file(path)?;
    let not_one = |why: String| bad(path.display(), format!("not a .safetensors file, or truncated ({why})"));
    let mut size = [0; 8];
    file.read_exact(&mut size).map_err(|_| not_one(format!("it has {length} bytes")))?;
    let size = u64::from_le_bytes(size);
    if size > MAX_HEADER_BYTES || size + 8 > length {
        return Err(not_one(format!("the header is {size} bytes long, the file {length}")));
    }
    let mut header = vec![0; size as usize];
    file.read_exact(&mut header).in_file(path)?;
    let metadata: Metadata = serde_json::from_slice(&header).map_err(|error| not_one(error.to_string()))?;
    let available = length - 8 - size;
    if (metadata.data_len() as u64) > available {
        return Err(bad(
            path.display(),
            format!("truncated: the tensors need {} bytes, the file has {available}", metadata.data_len()),
        ));
    }
    Ok((file, metadata, 8 + size))
}

/// The names of the tensors, sorted, and what else the file says of itself.
pub fn contents(path: &Path) -> anyhow::Result<(Vec<String>, HashMap<String, String>)> {
    let (_, metadata, _) = header(path)?;
    let mut names = metadata.offset_keys();
    names.sort();
    Ok((names, metadata.metadata().clone().unwrap_or_default()))
}

pub fn open(path: &Path, name: Option<&str>) -> anyhow::Result<RawArray> {
    let (file, metadata, start) = header(path)?;
    let mut names = metadata.offset_keys();
    names.sort();
    let name = choose(path, &names, name)?;
    let info = metadata.info(name).ok_or_else(|| bad(path.display(), "the tensor is gone"))?;
    let dtype = match info.dtype {
        Stored::F16 => Dtype::F16,
        Stored::F32 => Dtype::F32,
        Stored::F64 => Dtype::F64,
        Stored::I8 => Dtype::Signed(1),
        Stored::I16 => Dtype::Signed(2),
        Stored::I32 => Dtype::Signed(4),
        Stored::I64 => Dtype::Signed(8),
        Stored::U8 => Dtype::Unsigned(1),
        Stored::U16 => Dtype::Unsigned(2),
        Stored::U32 => Dtype::Unsigned(4),
        Stored::U64 => Dtype::Unsigned(8),
        _ => Dtype::Other,
    };
    Ok(RawArray {
        path: path.to_path_buf(),
        dtype,
        dtype_name: info.dtype.to_string(),
        shape: info.shape.clone(),
        fortran: false,
        swapped: cfg!(target_endian = "big"),
        body: Body::File { file, offset: start + info.data_offsets.0 as u64 },
    })
}
