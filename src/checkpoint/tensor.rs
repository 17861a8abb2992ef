//! Tensors of files: which formats and element types there are, how a file lists a tensor, and what its bytes mean.

use std::borrow::Cow;
use std::fmt;

use half::{bf16, f16};

use super::error::FormatError;
use super::io::limits::byte_count;
use crate::sys::f32s_of_bytes;

/// A file format that is read here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// safetensors.
    Safetensors,
    /// Flax msgpack.
    Flax,
    /// TensorFlow checkpoint or SavedModel.
    TensorBundle,
    /// NumPy archive.
    Npz,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Format::Safetensors => "safetensors",
            Format::Flax => "flax",
            Format::TensorBundle => "tensor_bundle",
            Format::Npz => "npz",
        })
    }
}

/// Element type of a stored tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dtype {
    /// 64-bit float.
    F64,
    /// 32-bit float.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a 32-bit float.
    BF16,
    /// Signed 64-bit integer.
    I64,
    /// Signed 32-bit integer.
    I32,
    /// Signed 16-bit integer.
    I16,
    /// Signed byte.
    I8,
    /// Unsigned 64-bit integer.
    U64,
    /// Unsigned 32-bit integer.
    U32,
    /// Unsigned 16-bit integer.
    U16,
    /// Unsigned byte.
    U8,
    /// One byte, 0 or 1.
    Bool,
    /// A type that is listed but not read, under the file's own name for it.
    Other(String),
}

impl Dtype {
    /// Bytes per element; `None` for a type that is not read.
    pub fn size(&self) -> Option<usize> {
        match self {
            Dtype::F64 | Dtype::I64 | Dtype::U64 => Some(8),
            Dtype::F32 | Dtype::I32 | Dtype::U32 => Some(4),
            Dtype::F16 | Dtype::BF16 | Dtype::I16 | Dtype::U16 => Some(2),
            Dtype::I8 | Dtype::U8 | Dtype::Bool => Some(1),
            Dtype::Other(_) => None,
        }
    }

    /// Whether the elements are floating-point numbers, which is what weights must be.
    pub fn is_float(&self) -> bool {
        matches!(self, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16)
    }

    /// The type that NumPy calls `name`, as Flax writes it.
    pub fn from_numpy_name(name: &str) -> Self {
        match name {
            "float64" => Dtype::F64,
            "float32" => Dtype::F32,
            "float16" => Dtype::F16,
            "bfloat16" => Dtype::BF16,
            "int64" => Dtype::I64,
            "int32" => Dtype::I32,
            "int16" => Dtype::I16,
            "int8" => Dtype::I8,
            "uint64" => Dtype::U64,
            "uint32" => Dtype::U32,
            "uint16" => Dtype::U16,
            "uint8" => Dtype::U8,
            "bool" => Dtype::Bool,
            // Names are text of the file: keep messages short.
            other => Dtype::Other(other.chars().take(32).collect()),
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Dtype::F64 => "float64",
            Dtype::F32 => "float32",
            Dtype::F16 => "float16",
            Dtype::BF16 => "bfloat16",
            Dtype::I64 => "int64",
            Dtype::I32 => "int32",
            Dtype::I16 => "int16",
            Dtype::I8 => "int8",
            Dtype::U64 => "uint64",
            Dtype::U32 => "uint32",
            Dtype::U16 => "uint16",
            Dtype::U8 => "uint8",
            Dtype::Bool => "bool",
            Dtype::Other(name) => name,
        })
    }
}

/// One tensor of a file as the file describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Name as in the file; unique there.
    pub name: String,
    /// Element type as stored.
    pub dtype: Dtype,
    /// Sizes of the dimensions, outermost first.
    pub shape: Vec<usize>,
}

/// The content of one entry: little-endian, row-major, without gaps.
#[derive(Debug, Clone)]
pub struct Tensor<'a> {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Cow<'a, [u8]>,
}

impl<'a> Tensor<'a> {
    /// A tensor over `bytes`.
    ///
    /// # Errors
    /// The type is not read, or `bytes` is not exactly as long as the shape asks for.
    pub fn new(dtype: Dtype, shape: Vec<usize>, bytes: Cow<'a, [u8]>) -> Result<Self, FormatError> {
        let Some(size) = dtype.size() else {
            return Err(FormatError::new(format!("elements of type {dtype} are not read")));
        };
        let expected = byte_count(&shape, size)?;
        if bytes.len() != expected {
            return Err(FormatError::new(format!(
                "{dtype} of shape {shape:?} takes {expected} bytes, got {}",
                bytes.len()
            )));
        }
        Ok(Self { dtype, shape, bytes })
    }

    /// Element type.
    pub fn dtype(&self) -> &Dtype {
        &self.dtype
    }

    /// Sizes of the dimensions, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The content.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Type, shape and content, without copying.
    pub fn into_parts(self) -> (Dtype, Vec<usize>, Cow<'a, [u8]>) {
        (self.dtype, self.shape, self.bytes)
    }

    /// Number of elements.
    pub fn element_count(&self) -> usize {
        self.shape.iter().product()
    }

    /// Writes the elements as 32-bit floats into `out`; 64-bit ones are rounded to nearest.
    ///
    /// # Errors
    /// The elements are not floating-point numbers.
    ///
    /// # Panics
    /// `out` does not have exactly [`Tensor::element_count`] elements.
    pub fn write_f32(&self, out: &mut [f32]) -> Result<(), FormatError> {
        assert_eq!(out.len(), self.element_count(), "the destination has the tensor's size");
        match self.dtype {
            Dtype::F32 => convert(&self.bytes, out, f32::from_le_bytes),
            Dtype::F64 => convert(&self.bytes, out, |b| f64::from_le_bytes(b) as f32),
            Dtype::F16 => convert(&self.bytes, out, |b| f16::from_le_bytes(b).to_f32()),
            Dtype::BF16 => convert(&self.bytes, out, |b| bf16::from_le_bytes(b).to_f32()),
            _ => {
                return Err(FormatError::new(format!(
                    "weights must be floating-point numbers, these are {}",
                    self.dtype
                )));
            }
        }
        Ok(())
    }

    /// The elements as 32-bit floats.
    ///
    /// # Errors
    /// As [`Tensor::write_f32`].
    pub fn to_f32(&self) -> Result<Vec<f32>, FormatError> {
        let mut out = vec![0.0; self.element_count()];
        self.write_f32(&mut out)?;
        Ok(out)
    }

    /// The elements as 32-bit floats, borrowed from the file where it has them as such.
    ///
    /// # Errors
    /// As [`Tensor::write_f32`].
    pub fn into_f32(self) -> Result<Cow<'a, [f32]>, FormatError> {
        if let (Dtype::F32, Cow::Borrowed(bytes)) = (&self.dtype, &self.bytes)
            && let Some(values) = f32s_of_bytes(bytes)
        {
            return Ok(Cow::Borrowed(values));
        }
        self.to_f32().map(Cow::Owned)
    }
}

/// `out[i] = read(element i of bytes)` for elements of `N` bytes.
fn convert<const N: usize>(bytes: &[u8], out: &mut [f32], read: impl Fn([u8; N]) -> f32) {
    let (elements, _) = bytes.as_chunks::<N>();
    for (value, &element) in out.iter_mut().zip(elements) {
        *value = read(element);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(dtype: Dtype, bytes: Vec<u8>, n: usize) -> Tensor<'static> {
        Tensor::new(dtype, vec![n], Cow::Owned(bytes)).unwrap()
    }

    #[test]
    fn every_float_type_becomes_f32() {
        let values = [1.5f32, -0.25, 0.0];
        let f64s = values.iter().flat_map(|&v| f64::from(v).to_le_bytes()).collect();
        let f16s = values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect();
        let bf16s = values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect();
        let f32s = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        for (dtype, bytes) in
            [(Dtype::F64, f64s), (Dtype::F16, f16s), (Dtype::BF16, bf16s), (Dtype::F32, f32s)]
        {
            assert_eq!(tensor(dtype, bytes, 3).to_f32().unwrap(), values);
        }
    }

    #[test]
    fn integers_and_wrong_sizes_are_refused() {
        assert!(tensor(Dtype::I32, vec![0; 8], 2).to_f32().is_err());
        assert!(Tensor::new(Dtype::F32, vec![2], Cow::Owned(vec![0; 7])).is_err());
        assert!(Tensor::new(Dtype::Other("string".into()), vec![0], Cow::Owned(vec![])).is_err());
    }
}
