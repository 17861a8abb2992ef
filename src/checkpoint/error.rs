//! What is wrong with a file's content.

use crate::error::Error;

/// What is wrong with some bytes, before it is known which file they come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FormatError {
    message: String,
    /// Nothing is wrong; the caller wanted no more.
    stopped: bool,
}

impl FormatError {
    /// A error described by `message`, a clause that can stand after the file's name and a colon.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), stopped: false }
    }

    /// That reading stopped because the caller's interrupt came.
    pub(super) fn stopped() -> Self {
        Self { message: "interrupted".into(), stopped: true }
    }

    /// The error for this problem in the file called `path`.
    pub fn in_file(self, path: &str) -> Error {
        match self.stopped {
            true => Error::Interrupted,
            false => Error::Checkpoint { path: path.to_owned(), message: self.message },
        }
    }

    /// The same error, said to be in `place`.
    pub fn at(self, place: &str) -> Self {
        Self { message: format!("{place}: {}", self.message), ..self }
    }
}
