//! Files the tool writes: claimed before the work begins, written beside their place, moved there when all is done.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use super::complaint::{InFile, bad, reason};

/// The output files of one command. What was staged and not committed is removed when this is dropped.
pub struct Outputs {
    inputs: Vec<PathBuf>,
    claimed: Vec<PathBuf>,
    /// (written beside, its place)
    staged: Vec<(PathBuf, PathBuf)>,
}

impl Outputs {
    /// The outputs of a command that reads `inputs`: none of these is ever written.
    pub fn beside<'a>(inputs: impl IntoIterator<Item = &'a PathBuf>) -> Outputs {
        Outputs { inputs: inputs.into_iter().cloned().collect(), claimed: Vec::new(), staged: Vec::new() }
    }

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
        if self.inputs.iter().any(|input| is_same_file(input, path)) {
            return Err(bad(path.display(), "is also an input"));
        }
        let place = real_place(path);
        if self.claimed.contains(&place) || self.claimed.iter().any(|claimed| is_same_file(claimed, path)) {
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

    /// Moves everything staged to its place. Where that fails half-way, the complaint says what is there already.
    pub fn commit(mut self) -> anyhow::Result<()> {
        for (done, (beside, place)) in self.staged.iter().enumerate() {
            fs::rename(beside, place).map_err(|error| {
                let written: Vec<String> = self.staged[..done].iter().map(|(_, to)| to.display().to_string()).collect();
                let written = if written.is_empty() { "nothing".to_string() } else { written.join(", ") };
                bad(place.display(), format!("cannot be written: {}; written before it: {written}", reason(&error)))
            })?;
        }
        self.staged.clear();
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

/// The file itself where `path` is a link to it, so that a link stays one; one name for a file that is not there yet.
fn real_place(path: &Path) -> PathBuf {
    let absent = || {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Some(fs::canonicalize(folder).ok()?.join(path.file_name()?))
    };
    fs::canonicalize(path).ok().or_else(absent).unwrap_or_else(|| path.to_path_buf())
}

/// Whether two paths lead to one file; to read a terminal and to write it is no conflict.
fn is_same_file(a: &Path, b: &Path) -> bool {
    match (fs::metadata(a), fs::metadata(b)) {
        (Ok(one), Ok(other)) if one.is_file() && other.is_file() => {
            real_place(a) == real_place(b) || is_same_inode(&one, &other)
        }
        _ => false,
    }
}

#[cfg(unix)]
fn is_same_inode(a: &fs::Metadata, b: &fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

#[cfg(not(unix))]
fn is_same_inode(_: &fs::Metadata, _: &fs::Metadata) -> bool {
    false
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What cannot be moved to its place is not left beside it, and the complaint names what was.
    #[test]
    fn a_late_failure_says_what_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = (folder.path().join("first"), folder.path().join("second"));
        let mut outputs = Outputs::beside([]);
        for path in [&first, &second] {
            outputs.claim(path).unwrap();
            outputs.stage(path, |to| Ok(to.write_all(b"new")?)).unwrap();
        }
        fs::create_dir(&second).unwrap();
        let complaint = outputs.commit().unwrap_err().to_string();
        assert!(complaint.contains("second: cannot be written"), "{complaint}");
        assert!(complaint.ends_with(&format!("written before it: {}", first.display())), "{complaint}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
