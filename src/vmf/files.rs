//! Models as JSON files, never half-written.

use std::fs;
use std::io::{BufReader, BufWriter, Write};
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Error, Result};

/// Writes `value` as JSON beside `path` and renames it: whoever looks sees the old file or the whole new one.
pub(crate) fn save(path: &Path, value: &impl Serialize) -> Result<()> {
    let io = |error: &dyn std::fmt::Display| Error::Io { what: path.display().to_string(), reason: error.to_string() };
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.partial", std::process::id()));
    let beside = path.with_file_name(name);
    let written = fs::File::create(&beside).map_err(|error| io(&error)).and_then(|file| {
        let mut file = BufWriter::new(file);
        serde_json::to_writer(&mut file, value).map_err(|error| io(&error))?;
        file.flush().map_err(|error| io(&error))
    });
    let renamed = written.and_then(|()| fs::rename(&beside, path).map_err(|error| io(&error)));
    if renamed.is_err() {
        // nothing to report beyond the first error
        let _ = fs::remove_file(&beside);
    }
    renamed
}

/// Reads what [`save`] wrote.
pub(crate) fn load<T: DeserializeOwned>(path: &Path, what: &'static str) -> Result<T> {
    let file = fs::File::open(path)
        .map_err(|error| Error::Io { what: path.display().to_string(), reason: error.to_string() })?;
    serde_json::from_reader(BufReader::new(file))
        .map_err(|error| Error::Format { what, reason: format!("{}: {error}", path.display()) })
}
