//! The bytes of a file, mapped where that pays.

use std::fs::File;
use std::io::{self, Read};
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::sys::{FilePart, MappedFile};

/// Files up to this size are read: mapping costs more than it saves, and a copy cannot change under us.
const READ_WHOLE_BELOW: u64 = 1 << 20;

/// A file's content, mapped or in memory.
#[derive(Debug)]
pub enum FileBytes {
    /// Paged in on demand; see [`MappedFile`] for what must not happen to the file meanwhile.
    Mapped(Arc<MappedFile>),
    /// Held in memory.
    Owned(Vec<u8>),
}

impl FileBytes {
    /// Opens the regular file at `path`. It must not be changed in place while this lives; replacing it is fine.
    ///
    /// # Errors
    /// The file cannot be opened or read, or is not a regular file (a pipe or device may never end).
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_io(path).map_err(|source| Error::Io { path: path.display().to_string(), source })
    }

    fn open_io(path: &Path) -> io::Result<Self> {
        // Asked before opening: opening a pipe waits for its other end.
        if !std::fs::metadata(path)?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        let mut file = File::open(path)?;
        if file.metadata()?.len() >= READ_WHOLE_BELOW
            && let Ok(map) = MappedFile::open(&file)
        {
            return Ok(FileBytes::Mapped(Arc::new(map)));
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(FileBytes::Owned(bytes))
    }

    /// The bytes `range`, whose numbers may stay in the file.
    pub fn part(&self, range: Range<usize>) -> FilePart<'_> {
        match self {
            FileBytes::Mapped(map) => FilePart::of_map(map, range),
            FileBytes::Owned(bytes) => FilePart::of_bytes(&bytes[range]),
        }
    }

    /// Says that `range` will not be read again soon; see [`MappedFile::release`].
    pub fn release(&self, range: Range<usize>) {
        if let FileBytes::Mapped(map) = self {
            map.release(range);
        }
    }
}

impl Deref for FileBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            FileBytes::Mapped(map) => map,
            FileBytes::Owned(bytes) => bytes,
        }
    }
}

impl From<Vec<u8>> for FileBytes {
    fn from(bytes: Vec<u8>) -> Self {
        FileBytes::Owned(bytes)
    }
}
