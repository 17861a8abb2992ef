//! Tells formats by the content of files.

use crate::checkpoint::error::FormatError;
use crate::checkpoint::formats::npz::zip;
use crate::checkpoint::formats::tensor_bundle::sorted_table;
use crate::checkpoint::tensor::Format;

/// Tells the format of a file from its content.
///
/// # Errors
/// The content looks like none of the formats read here; where it is known to be another one, the error says what to
/// do.
pub fn detect_format(bytes: &[u8]) -> Result<Format, FormatError> {
    if bytes.ends_with(&sorted_table::MAGIC) {
        return Ok(Format::TensorBundle);
    }
    // An empty archive consists of its end record.
    if bytes.starts_with(&zip::LOCAL_HEADER) || bytes.starts_with(&zip::DIRECTORY_END) {
        return Ok(Format::Npz);
    }
    // A safetensors header is JSON behind its length, whose upper half is zero.
    if bytes.get(4..9) == Some(b"\0\0\0\0{") {
        return Ok(Format::Safetensors);
    }
    if bytes.starts_with(b"\x89HDF\r\n\x1a\n") {
        return Err(FormatError::new("HDF5 files are read by the Python package (extra 'h5')"));
    }
    match bytes.first() {
        // PROTO opcode, protocols 2 to 5.
        Some(0x80) if matches!(bytes.get(1), Some(2..=5)) => Err(FormatError::new(
            "this is a Python pickle, which can run any code when it is opened and is therefore not read; convert it \
             to safetensors with the program that made it",
        )),
        Some(0x80..=0x8f | 0xde | 0xdf) => Ok(Format::Flax),
        None => Err(FormatError::new("the file is empty")),
        _ => Err(FormatError::new(
            "the format is not recognised; safetensors, Flax msgpack, TensorFlow checkpoints, .npz and HDF5 are read",
        )),
    }
}
