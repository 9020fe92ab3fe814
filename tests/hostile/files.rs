//! Bytes as a file.

use std::path::{Path, PathBuf};

use crate::cli::complaint::printable;

/// A file of this thread's own, gone when dropped; in memory where the system has such files.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new(ending: &str) -> Self {
        let memory = Path::new("/dev/shm");
        let folder = if memory.is_dir() { memory.to_path_buf() } else { std::env::temp_dir() };
        let thread = format!("{:?}", std::thread::current().id());
        let thread: String = thread.chars().filter(char::is_ascii_digit).collect();
        Self(folder.join(format!("orthant-hostile-{}-{thread}.{ending}", std::process::id())))
    }

    pub fn of(ending: &str, bytes: &[u8]) -> Self {
        let scratch = Self::new(ending);
        std::fs::write(&scratch.0, bytes).unwrap();
        scratch
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // It may never have been written.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// What a call of the library came to; an error must print as one line.
pub fn typed<T>(result: orthant::Result<T>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error) => {
            assert!(!error.to_string().is_empty());
            None
        }
    }
}

/// What a call of the tool came to; an error must name the file, and be printed as a line.
pub fn complained<T>(path: &Path, result: anyhow::Result<T>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error) => {
            let line = printable(&format!("{error:#}"));
            assert!(line.contains(path.to_str().unwrap()), "which file? {line:?}");
            assert!(!line.contains(char::is_control), "{line:?}");
            None
        }
    }
}
