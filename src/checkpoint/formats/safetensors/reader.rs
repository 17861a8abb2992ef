//! Reads safetensors files; their layout is described in [`super::header`].

use std::borrow::Cow;
use std::ops::Range;
use std::path::Path;

use super::header::Header;
use super::packed::find_packed;
use crate::checkpoint::error::FormatError;
use crate::checkpoint::formats::detect::refuse_other_content;
use crate::checkpoint::io::checksum;
use crate::checkpoint::io::file_bytes::FileBytes;
use crate::checkpoint::source::{Listing, TensorSource};
use crate::checkpoint::tensor::{Format, Tensor};
use crate::error::Result;
use crate::params::{PackedForm, Weight};
use crate::runtime::Interrupt;
use crate::sys::FilePart;

/// A safetensors file.
#[derive(Debug)]
pub struct Safetensors {
    listing: Listing,
    bytes: FileBytes,
    /// Where in the file each entry lies.
    ranges: Vec<Range<usize>>,
    /// CRC-32C of each entry, in our own files.
    checksums: Vec<Option<u32>>,
    /// How packed weights are packed.
    packed: Vec<Option<PackedForm>>,
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
        let mut header = Header::parse(&bytes)?;
        let packed = find_packed(&mut header)?;
        let Header { entries, ranges, checksums, metadata } = header;
        let listing = Listing { metadata, ..Listing::new(Format::Safetensors, path, entries) };
        Ok(Self { listing, bytes, ranges, checksums, packed })
    }
}

impl Safetensors {
    /// The bytes of the entry at `index`, those of a packed weight as row-major numbers.
    fn content(&self, index: usize) -> std::result::Result<Cow<'_, [u8]>, FormatError> {
        let Some((form, part)) = self.packed(index) else {
            return Ok(Cow::Borrowed(&self.bytes[self.ranges[index].clone()]));
        };
        let weight = Weight::<f32>::of_file(form, part);
        let values = weight.ok_or_else(|| FormatError::new("the packed weight is too short"))?.to_vec();
        Ok(Cow::Owned(values.iter().flat_map(|value| value.to_le_bytes()).collect()))
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
            _ => self
                .content(index)
                .and_then(|content| Tensor::new(entry.dtype.clone(), entry.shape.clone(), content)),
        };
        tensor.map_err(|error| error.at(&entry.name).in_file(&self.listing.path))
    }

    fn packed(&self, index: usize) -> Option<(PackedForm, FilePart<'_>)> {
        self.packed[index].map(|form| (form, self.bytes.part(self.ranges[index].clone())))
    }

    fn release(&self, index: usize) {
        // Packed weights may have gone to an encoder, which reads on.
        if self.packed[index].is_some() {
            return;
        }
        self.bytes.release(self.ranges[index].clone());
    }
}
