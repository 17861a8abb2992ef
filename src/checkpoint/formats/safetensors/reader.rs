//! Reads safetensors files; their layout is described in [`super::header`].

use std::borrow::Cow;
use std::ops::Range;
use std::path::Path;

use super::header::Header;
use crate::checkpoint::error::FormatError;
use crate::checkpoint::formats::detect::refuse_other_content;
use crate::checkpoint::io::checksum;
use crate::checkpoint::io::file_bytes::FileBytes;
use crate::checkpoint::source::{Listing, TensorSource};
use crate::checkpoint::tensor::{Format, Tensor};
use crate::error::Result;
use crate::runtime::Interrupt;

/// A safetensors file.
#[derive(Debug)]
pub struct Safetensors {
    listing: Listing,
    bytes: FileBytes,
    /// Where in the file each entry lies.
    ranges: Vec<Range<usize>>,
    /// CRC-32C of each entry, in our own files.
    checksums: Vec<Option<u32>>,
}

impl Safetensors {
    /// Opens the file at `path`.
    ///
    /// # Errors
    /// The file cannot be read or is not a valid safetensors file.
    pub fn open(path: &Path) -> Result<Self> {
        let (bytes, label) = (FileBytes::open(path)?, path.display().to_string());
        refuse_other_content(&bytes).map_err(|error| error.in_file(&label))?;
        Self::from_bytes(bytes, &label)
    }

    /// Reads a file's content; `path` is its name in messages.
    ///
    /// # Errors
    /// The content is not a valid safetensors file.
    pub fn from_bytes(bytes: FileBytes, path: &str) -> Result<Self> {
        Self::parse(bytes, path).map_err(|error| error.in_file(path))
    }

    fn parse(bytes: FileBytes, path: &str) -> Result<Self, FormatError> {
        let Header { entries, ranges, checksums, metadata } = Header::parse(&bytes)?;
        let listing = Listing { metadata, ..Listing::new(Format::Safetensors, path, entries) };
        Ok(Self { listing, bytes, ranges, checksums })
    }
}

impl TensorSource for Safetensors {
    fn listing(&self) -> &Listing {
        &self.listing
    }

    fn read(&self, index: usize, _: Interrupt<'_>) -> Result<Tensor<'_>> {
        let entry = &self.listing.entries[index];
        let bytes = &self.bytes[self.ranges[index].clone()];
        let tensor = match self.checksums[index] {
            Some(expected) if checksum::crc32c(bytes) != expected => {
                Err(FormatError::new("the content does not match its checksum; the file is damaged"))
            }
            _ => Tensor::new(entry.dtype.clone(), entry.shape.clone(), Cow::Borrowed(bytes)),
        };
        tensor.map_err(|error| error.at(&entry.name).in_file(&self.listing.path))
    }

    fn release(&self, index: usize) {
        self.bytes.release(self.ranges[index].clone());
    }
}
