//! The crate's one error type: one case per kind of mistake, one plain sentence each.

use thiserror::Error;

/// What can go wrong in the core. The Python layer maps each case to one exception class.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument has the right type but a value that cannot work (`ValueError`).
    #[error("{argument}: {message}")]
    Value {
        /// Name of the argument as the user spells it.
        argument: String,
        /// What was got and what was expected.
        message: String,
    },
    /// The caller asked the computation to stop (`KeyboardInterrupt`); nothing was changed.
    #[error("the computation was interrupted")]
    Interrupted,
    /// A user-supplied callback (a custom activation) failed with this error.
    #[error("a user-supplied callable failed: {0}")]
    Callback(Box<dyn std::error::Error + Send + Sync>),
    /// A file or stream could not be read or written (`OSError`).
    #[error("{path}: {source}")]
    Io {
        /// The file, as the user named it.
        path: String,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A weight file is damaged, hostile, or of a kind that is not read (`CheckpointError`).
    #[error("{path}: {message}")]
    Checkpoint {
        /// The file, as the user named it.
        path: String,
        /// What is wrong with it.
        message: String,
    },
    /// The system refuses the memory for something (`MemoryError`).
    #[error("{what}: not enough memory for {bytes} bytes")]
    Memory {
        /// What it was for.
        what: String,
        /// How much.
        bytes: usize,
    },
    /// A bug in this library (`InternalError`).
    #[error("internal error: {0}; please report this with the arguments that led to it")]
    Internal(String),
}

/// Result with the crate's [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A value error for `argument`; `message` says what was got and what was expected.
    pub fn value(argument: impl Into<String>, message: impl Into<String>) -> Self {
        Error::Value { argument: argument.into(), message: message.into() }
    }
}
