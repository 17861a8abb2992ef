//! The safetensors format, and our own format within it.
//!
//! A file is: header length (u64), JSON header, tensor bytes without gaps. The `safetensors` crate parses and checks the
//! header. Files of our own carry in the header's `__metadata__`, beside the encoder's configuration,
//!
//! * `header_crc32c`: CRC-32C of the header, computed with this field's eight digits as zeros. It comes first, so that
//!   it can be found without parsing;
//! * `format` = `sparse_mixer` and `format_version`;
//! * `crc32c:<tensor>`: CRC-32C of each tensor's bytes.
//!
//! so that damage anywhere is seen, while every other safetensors tool can still read the file.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use crate::Result;
use crate::checkpoint::error::FormatError;
use crate::checkpoint::io::checksum;
use crate::checkpoint::io::file_bytes::FileBytes;
use crate::checkpoint::io::limits::{MAX_SAFETENSORS_HEADER, part};
use crate::checkpoint::source::{EntryList, Listing, TensorSource};
use crate::checkpoint::tensor::Format;
use crate::checkpoint::tensor::{Dtype, Tensor};
use crate::runtime::Interrupt;

/// Newest version of our own format that this library writes and reads.
pub const FORMAT_VERSION: u32 = 1;

/// Bytes of the length field before the header.
pub(super) const LENGTH_BYTES: usize = 8;
/// How the header of our own files begins; eight hexadecimal digits follow.
pub(super) const CHECKSUM_PREFIX: &str = "{\"__metadata__\":{\"header_crc32c\":\"";
/// What stands in place of the header's checksum while it is computed.
pub(super) const CHECKSUM_BLANK: &str = "00000000";
/// Metadata keys of per-tensor checksums begin so.
pub(super) const TENSOR_CHECKSUM_KEY: &str = "crc32c:";
/// Value of the metadata key `format` in our own files.
pub(super) const OWN_FORMAT: &str = "sparse_mixer";

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
        Self::from_bytes(FileBytes::open(path)?, &path.display().to_string())
    }

    /// Reads a file's content; `path` is its name in messages.
    ///
    /// # Errors
    /// The content is not a valid safetensors file.
    pub fn from_bytes(bytes: FileBytes, path: &str) -> Result<Self> {
        Self::parse(bytes, path).map_err(|error| error.in_file(path))
    }

    fn parse(bytes: FileBytes, path: &str) -> Result<Self, FormatError> {
        let length = part(&bytes, 0, LENGTH_BYTES as u64, "the header length")?;
        let length = u64::from_le_bytes(length.try_into().expect("eight bytes were taken"));
        if length > MAX_SAFETENSORS_HEADER as u64 {
            return Err(FormatError::new(format!(
                "the header claims {length} bytes, at most {MAX_SAFETENSORS_HEADER} are read"
            )));
        }
        let header = part(&bytes, LENGTH_BYTES as u64, length, "the header")?;
        verify_header_checksum(header)?;
        let (length, parsed) = safetensors::SafeTensors::read_metadata(&bytes)
            .map_err(|error| FormatError::new(format!("not a valid safetensors file: {error}")))?;
        let data_start = LENGTH_BYTES + length;

        let mut metadata = BTreeMap::new();
        let mut stored_checksums = BTreeMap::new();
        for (key, value) in parsed.metadata().iter().flatten() {
            match key.strip_prefix(TENSOR_CHECKSUM_KEY) {
                Some(tensor) => {
                    let checksum = u32::from_str_radix(value, 16).map_err(|_| {
                        FormatError::new(format!("the checksum of '{tensor}' is not a number"))
                    })?;
                    stored_checksums.insert(tensor.to_owned(), checksum);
                }
                None => {
                    metadata.insert(key.clone(), value.clone());
                }
            }
        }
        check_version(&metadata)?;

        let mut list = EntryList::new();
        for name in parsed.offset_keys() {
            let info = parsed.info(&name).expect("the name comes from the same header");
            let (start, end) = info.data_offsets;
            list.push(name, dtype_of(info.dtype), info.shape.clone(), data_start + start..data_start + end)?;
        }
        let (entries, ranges) = list.finish();
        let checksums = entries.iter().map(|entry| stored_checksums.remove(&entry.name)).collect();
        if let Some((name, _)) = stored_checksums.pop_first() {
            return Err(FormatError::new(format!("there is a checksum but no tensor called '{name}'")));
        }
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

/// The header's CRC-32C with the checksum's own digits as zeros. `header` begins with [`CHECKSUM_PREFIX`].
pub(super) fn header_checksum(header: &[u8]) -> u32 {
    let digits = CHECKSUM_PREFIX.len()..CHECKSUM_PREFIX.len() + CHECKSUM_BLANK.len();
    let checksum = crc32c::crc32c(&header[..digits.start]);
    let checksum = crc32c::crc32c_append(checksum, CHECKSUM_BLANK.as_bytes());
    crc32c::crc32c_append(checksum, header.get(digits.end..).unwrap_or_default())
}

/// Checks the checksum of a header that has one.
fn verify_header_checksum(header: &[u8]) -> Result<(), FormatError> {
    let Some(rest) = header.strip_prefix(CHECKSUM_PREFIX.as_bytes()) else {
        return Ok(());
    };
    // Compared as text: a flipped bit can turn a digit into its upper-case form.
    if rest.get(..CHECKSUM_BLANK.len()) != Some(format!("{:08x}", header_checksum(header)).as_bytes()) {
        return Err(FormatError::new("the header does not match its checksum; the file is damaged"));
    }
    Ok(())
}

fn check_version(metadata: &BTreeMap<String, String>) -> Result<(), FormatError> {
    if metadata.get("format").is_none_or(|format| format != OWN_FORMAT) {
        return Ok(());
    }
    let version = metadata.get("format_version").map_or("none", String::as_str);
    match version.parse::<u32>() {
        Ok(1..=FORMAT_VERSION) => Ok(()),
        _ => Err(FormatError::new(format!(
            "the file has format version {version}, this library reads versions up to {FORMAT_VERSION}; update it"
        ))),
    }
}

fn dtype_of(dtype: safetensors::Dtype) -> Dtype {
    match dtype {
        safetensors::Dtype::F64 => Dtype::F64,
        safetensors::Dtype::F32 => Dtype::F32,
        safetensors::Dtype::F16 => Dtype::F16,
        safetensors::Dtype::BF16 => Dtype::BF16,
        safetensors::Dtype::I64 => Dtype::I64,
        safetensors::Dtype::I32 => Dtype::I32,
        safetensors::Dtype::I16 => Dtype::I16,
        safetensors::Dtype::I8 => Dtype::I8,
        safetensors::Dtype::U64 => Dtype::U64,
        safetensors::Dtype::U32 => Dtype::U32,
        safetensors::Dtype::U16 => Dtype::U16,
        safetensors::Dtype::U8 => Dtype::U8,
        safetensors::Dtype::BOOL => Dtype::Bool,
        other => Dtype::Other(other.to_string()),
    }
}
