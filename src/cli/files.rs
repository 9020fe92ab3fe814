//! The files people have: `.npy`, `.npz`, `.safetensors` and `.csv`, each opened as one [`RawArray`].

mod array;
mod matrix;
mod npy;
mod safetensors;
mod table;

use std::path::Path;

pub use array::{Dtype, RawArray, open_file};
pub use matrix::{Matrix, Scalar};
pub use npy::{write_header, write_npy};
pub use safetensors::contents;
pub use table::one_line as csv_error;

use super::complaint::bad;

/// Opens the array of `path`; in an `.npz` or `.safetensors` file the one called `name`, or the only one.
pub fn open(path: &Path, name: Option<&str>) -> anyhow::Result<RawArray> {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or("").to_ascii_lowercase();
    match extension.as_str() {
        "npz" => npy::open_npz(path, name),
        "safetensors" => safetensors::open(path, name),
        "npy" | "csv" if name.is_some() => Err(bad(
            path.display(),
            format!("--array names an array of an .npz or .safetensors file, not of a .{extension} file"),
        )),
        "npy" => npy::open_npy(path),
        "csv" => table::open(path),
        _ => Err(bad(path.display(), "the name must end in .npy, .npz, .safetensors or .csv")),
    }
}

/// Which of `names` is meant.
fn choose<'a>(path: &Path, names: &'a [String], wanted: Option<&str>) -> anyhow::Result<&'a String> {
    let list = || if names.is_empty() { "none".to_string() } else { names.join(", ") };
    match (wanted, names) {
        (Some(wanted), _) => names
            .iter()
            .find(|name| *name == wanted)
            .ok_or_else(|| bad(path.display(), format!("no array is called {wanted:?}; there are: {}", list()))),
        (None, [only]) => Ok(only),
        (None, _) => Err(bad(path.display(), format!("say which array with --array NAME; there are: {}", list()))),
    }
}
