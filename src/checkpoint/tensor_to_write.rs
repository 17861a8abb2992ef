//! What the writers share: tensors that produce their bytes when asked, so that saving holds one at a time.

use std::io::Write;

use super::error::FormatError;
use super::io::limits::byte_count;
use super::tensor::Dtype;
use crate::error::{Error, Result};
use crate::runtime::inject_fault;
use crate::sys::bytes_of_f32s;

/// Takes the bytes of a tensor in pieces.
pub type ChunkSink<'s> = dyn FnMut(&[u8]) -> Result<()> + 's;

/// Hands a tensor's bytes to a sink.
pub type Content<'a> = Box<dyn FnOnce(&mut ChunkSink<'_>) -> Result<()> + 'a>;

/// A tensor to be written.
pub struct TensorToWrite<'a> {
    /// Name in the file.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Sizes of the dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Hands the content to the sink, little-endian and row-major, in pieces of any size. Called once. It may return
    /// any error (an interrupt, say), which then ends the write without a trace.
    pub content: Content<'a>,
}

impl std::fmt::Debug for TensorToWrite<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TensorToWrite")
            .field("name", &self.name)
            .field("dtype", &self.dtype)
            .field("shape", &self.shape)
            .finish_non_exhaustive()
    }
}

impl<'a> TensorToWrite<'a> {
    /// A tensor of 32-bit floats.
    #[cfg(test)]
    pub fn from_f32(name: impl Into<String>, shape: &[usize], values: &'a [f32]) -> Self {
        Self {
            name: name.into(),
            dtype: Dtype::F32,
            shape: shape.to_vec(),
            content: Box::new(|sink| send_f32(values, sink)),
        }
    }

    /// Bytes of the content.
    pub(super) fn byte_count(&self) -> Result<usize, FormatError> {
        let Some(size) = self.dtype.size() else {
            return Err(FormatError::new(format!(
                "{}: elements of type {} are not written",
                self.name, self.dtype
            )));
        };
        byte_count(&self.shape, size).map_err(|error| error.at(&self.name))
    }

    /// Writes the content to `out` and shows every piece to `observe`, for checksums.
    pub(super) fn write_to(
        self,
        out: &mut impl Write,
        path: &str,
        mut observe: impl FnMut(&[u8]),
    ) -> Result<()> {
        let expected = self.byte_count().map_err(|error| error.in_file(path))?;
        let mut written = 0usize;
        (self.content)(&mut |bytes| {
            inject_fault();
            written += bytes.len();
            observe(bytes);
            out.write_all(bytes).map_err(|source| Error::Io { path: path.to_owned(), source })
        })?;
        if written != expected {
            return Err(Error::value(
                self.name,
                format!("the content should have {expected} bytes, {written} were given"),
            ));
        }
        Ok(())
    }
}

/// Sends `values` to `sink` in little-endian form.
///
/// # Errors
/// Those of the sink.
pub fn send_f32(values: &[f32], sink: &mut ChunkSink<'_>) -> Result<()> {
    if let Some(bytes) = bytes_of_f32s(values) {
        return sink(bytes);
    }
    // The copy stays in cache and is still large enough to pass the writers' buffers by.
    const PIECE: usize = 64 << 10;
    let mut bytes = vec![0; PIECE.min(values.len()) * size_of::<f32>()];
    for piece in values.chunks(PIECE) {
        let bytes = &mut bytes[..size_of_val(piece)];
        for (place, value) in bytes.as_chunks_mut().0.iter_mut().zip(piece) {
            *place = value.to_le_bytes();
        }
        sink(bytes)?;
    }
    Ok(())
}
