//! What a user can put right: one line that names the file and what is wrong with it, exit code 2.

use std::fmt::{self, Display};
use std::io;
use std::path::Path;

/// A mistake in the input, not in the program.
#[derive(Debug)]
pub struct BadInput(String);

impl Display for BadInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BadInput {}

/// `place: what`, as an error that ends the program with exit code 2.
pub fn bad(place: impl Display, what: impl Display) -> anyhow::Error {
    BadInput(format!("{place}: {what}")).into()
}

/// `text` as one line of which a terminal does nothing but show it: a file may have anything in the names it holds.
pub fn printable(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() }).collect()
}

/// Says which file an error is about.
pub trait InFile<T> {
    fn in_file(self, path: &Path) -> anyhow::Result<T>;
}

impl<T> InFile<T> for io::Result<T> {
    fn in_file(self, path: &Path) -> anyhow::Result<T> {
        self.map_err(|error| bad(path.display(), reason(&error)))
    }
}

impl<T> InFile<T> for orthant::Result<T> {
    fn in_file(self, path: &Path) -> anyhow::Result<T> {
        use orthant::Error::*;
        self.map_err(|error| match error {
            // Already names its file.
            Io { .. } => BadInput(error.to_string()).into(),
            Shape { .. } | Domain { .. } | Argument { .. } | Format { .. } | TooLarge { .. } | Unsupported { .. } => {
                bad(path.display(), error)
            }
            _ => anyhow::Error::new(error).context(path.display().to_string()),
        })
    }
}

/// An error of the library that the user can put right and that is about no file.
pub trait InLine<T> {
    fn in_line(self) -> anyhow::Result<T>;
}

impl<T> InLine<T> for orthant::Result<T> {
    fn in_line(self) -> anyhow::Result<T> {
        self.map_err(|error| BadInput(error.to_string()).into())
    }
}

/// The words of an operating system's error, without its number.
pub fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "no such file or directory".to_string(),
        io::ErrorKind::IsADirectory => "is a directory".to_string(),
        io::ErrorKind::PermissionDenied => "permission denied".to_string(),
        _ => {
            let text = error.to_string();
            text.split(" (os error").next().unwrap_or(&text).to_string()
        }
    }
}
