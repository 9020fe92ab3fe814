//! Files the tool writes: claimed before the work begins, written beside their place, moved there when all is done.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use super::complaint::{InFile, bad, reason};

/// The output files of one command. What was staged and not committed is removed when this is dropped.
#[derive(Default)]
pub struct Outputs {
    claimed: Vec<PathBuf>,
    /// (written beside, its place)
    staged: Vec<(PathBuf, PathBuf)>,
}

impl Outputs {
    /// Says at once whether `path` can be written later, and leaves no trace of the trial.
    pub fn claim(&mut self, path: &Path) -> anyhow::Result<()> {
        let unwritable = |why: &dyn std::fmt::Display| bad(path.display(), format!("cannot be written: {why}"));
        if path.file_name().is_none() {
            return Err(unwritable(&"it has no file name"));
        }
        if let Ok(existing) = fs::metadata(path) {
            if existing.is_dir() {
                return Err(unwritable(&"is a directory"));
            }
            if existing.permissions().readonly() {
                return Err(unwritable(&"the file is read-only"));
            }
        }
        let place = real_place(path);
        if self.claimed.contains(&place) {
            return Err(bad(path.display(), "is given for two outputs"));
        }
        if is_special(&place) {
            OpenOptions::new().write(true).open(&place).map_err(|error| unwritable(&reason(&error)))?;
        } else {
            let trial = beside(&place);
            File::create(&trial).map_err(|error| unwritable(&reason(&error)))?;
            fs::remove_file(&trial).in_file(path)?;
        }
        self.claimed.push(place);
        Ok(())
    }

    /// Writes the content for `path` beside it.
    pub fn stage(
        &mut self,
        path: &Path,
        write: impl FnOnce(&mut dyn Write) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let place = real_place(path);
        let target = if is_special(&place) { place.clone() } else { beside(&place) };
        let file =
            if is_special(&place) { OpenOptions::new().write(true).open(&target) } else { File::create(&target) };
        let mut writer = BufWriter::with_capacity(1 << 18, file.in_file(path)?);
        if target != place {
            self.staged.push((target, place));
        }
        let written = write(&mut writer).and_then(|()| Ok(writer.flush()?));
        written.map_err(|error| match error.downcast::<io::Error>() {
            Ok(error) => bad(path.display(), reason(&error)),
            Err(error) => error,
        })
    }

    /// Moves everything staged to its place.
    pub fn commit(mut self) -> anyhow::Result<()> {
        for (beside, place) in std::mem::take(&mut self.staged) {
            fs::rename(&beside, &place).in_file(&place)?;
        }
        Ok(())
    }
}

impl Drop for Outputs {
    fn drop(&mut self) {
        for (beside, _) in &self.staged {
            let _ = fs::remove_file(beside);
        }
    }
}

/// The file itself where `path` is a link to it, so that a link stays one.
fn real_place(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf())
}

/// A device or a pipe is written directly: a file moved onto it would replace it.
fn is_special(place: &Path) -> bool {
    fs::metadata(place).is_ok_and(|metadata| !metadata.is_file())
}

fn beside(place: &Path) -> PathBuf {
    let name = place.file_name().unwrap_or_default().to_string_lossy();
    place.with_file_name(format!(".{name}.{}.partial", std::process::id()))
}

/// Prints to stdout; a reader who has gone away (`| head`) ends the program in peace.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}
