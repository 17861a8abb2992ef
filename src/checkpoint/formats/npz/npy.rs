//! Headers of NumPy's `.npy` arrays: magic, version, length, and a Python dictionary literal such as
//! `{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }`. Source: `numpy/lib/format.py`.

use crate::checkpoint::error::FormatError;
use crate::checkpoint::io::limits::{MAX_NPY_HEADER, MAX_RANK};
use crate::checkpoint::tensor::Dtype;

const MAGIC: &[u8] = b"\x93NUMPY";
/// NumPy pads headers to a multiple of this.
const ALIGNMENT: usize = 64;
/// Magic, version and the two-byte length of version 1.
const PREAMBLE_BYTES: usize = 10;

/// What precedes the data of an array.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NpyHeader {
    pub(super) dtype: Dtype,
    /// Whether the first index runs fastest in the data.
    pub(super) fortran_order: bool,
    pub(super) shape: Vec<usize>,
    /// Where the data starts.
    pub(super) data_start: usize,
}

impl NpyHeader {
    /// Parses the header at the start of `bytes`.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let short = || FormatError::new("the array header is cut short");
        let rest = bytes.strip_prefix(MAGIC).ok_or_else(|| FormatError::new("not a .npy array"))?;
        let (length, length_bytes) = match rest {
            [1, _, a, b, ..] => (u16::from_le_bytes([*a, *b]) as usize, 2),
            [2 | 3, _, a, b, c, d, ..] => (u32::from_le_bytes([*a, *b, *c, *d]) as usize, 4),
            [1..=3, ..] | [] => return Err(short()),
            [version, ..] => return Err(FormatError::new(format!(".npy version {version} is not read"))),
        };
        if length > MAX_NPY_HEADER {
            return Err(FormatError::new(format!("the array header has {length} bytes")));
        }
        let start = MAGIC.len() + 2 + length_bytes;
        let text = bytes.get(start..start + length).ok_or_else(short)?;
        let text = std::str::from_utf8(text).map_err(|_| FormatError::new("the array header is not text"))?;
        Literal(text).header(start + length)
    }
}

/// The header of a C-ordered array of `shape`, padded so that data behind it is aligned.
pub(super) fn npy_header(dtype: &Dtype, shape: &[usize]) -> Result<Vec<u8>, FormatError> {
    let descr = match dtype {
        Dtype::F64 => "<f8",
        Dtype::F32 => "<f4",
        Dtype::F16 => "<f2",
        Dtype::BF16 => "<V2",
        Dtype::I64 => "<i8",
        Dtype::I32 => "<i4",
        Dtype::I16 => "<i2",
        Dtype::I8 => "|i1",
        Dtype::U64 => "<u8",
        Dtype::U32 => "<u4",
        Dtype::U16 => "<u2",
        Dtype::U8 => "|u1",
        Dtype::Bool => "|b1",
        Dtype::Other(name) => {
            return Err(FormatError::new(format!("elements of type {name} are not written")));
        }
    };
    let sizes: String = shape.iter().map(|size| format!("{size}, ")).collect();
    // A tuple of one needs its comma; others look as NumPy writes them.
    let sizes = if shape.len() == 1 { sizes.trim_end() } else { sizes.trim_end_matches(", ") };
    let mut text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({sizes}), }}");
    while !(PREAMBLE_BYTES + text.len() + 1).is_multiple_of(ALIGNMENT) {
        text.push(' ');
    }
    text.push('\n');
    let length = u16::try_from(text.len()).map_err(|_| FormatError::new("the shape is too long"))?;
    let mut header = MAGIC.to_vec();
    header.extend([1, 0]);
    header.extend(length.to_le_bytes());
    header.extend(text.into_bytes());
    Ok(header)
}

/// Reads the dictionary literal from the front of a text. Not a Python parser: just what NumPy writes.
struct Literal<'a>(&'a str);

impl<'a> Literal<'a> {
    fn header(mut self, data_start: usize) -> Result<NpyHeader, FormatError> {
        let (mut dtype, mut fortran_order, mut shape) = (None, None, None);
        self.expect('{')?;
        while !self.accept('}') {
            let key = self.text()?;
            self.expect(':')?;
            match key {
                "descr" => dtype = Some(self.descr()?),
                "fortran_order" => fortran_order = Some(self.boolean()?),
                "shape" => shape = Some(self.shape()?),
                _ => return Err(Self::error()),
            }
            if !self.accept(',') {
                self.expect('}')?;
                break;
            }
        }
        if !self.0.trim().is_empty() {
            return Err(Self::error());
        }
        match (dtype, fortran_order, shape) {
            (Some(dtype), Some(fortran_order), Some(shape)) => {
                Ok(NpyHeader { dtype, fortran_order, shape, data_start })
            }
            _ => Err(Self::error()),
        }
    }

    fn error() -> FormatError {
        FormatError::new("the array header is damaged")
    }

    fn accept(&mut self, wanted: char) -> bool {
        match self.0.trim_start().strip_prefix(wanted) {
            Some(rest) => {
                self.0 = rest;
                true
            }
            None => false,
        }
    }

    fn expect(&mut self, wanted: char) -> Result<(), FormatError> {
        if self.accept(wanted) { Ok(()) } else { Err(Self::error()) }
    }

    fn text(&mut self) -> Result<&'a str, FormatError> {
        let quote = if self.accept('\'') {
            '\''
        } else {
            self.expect('"')?;
            '"'
        };
        let (text, rest) = self.0.split_once(quote).ok_or_else(Self::error)?;
        self.0 = rest;
        Ok(text)
    }

    fn descr(&mut self) -> Result<Dtype, FormatError> {
        if self.0.trim_start().starts_with('[') {
            return Err(FormatError::new("arrays of records are not read"));
        }
        let descr = self.text()?;
        Ok(match descr {
            "<f8" => Dtype::F64,
            "<f4" => Dtype::F32,
            "<f2" => Dtype::F16,
            // NumPy has no bfloat16: arrays of ml_dtypes' type are saved as anonymous two-byte items.
            "<V2" | "|V2" | "bfloat16" => Dtype::BF16,
            "<i8" => Dtype::I64,
            "<i4" => Dtype::I32,
            "<i2" => Dtype::I16,
            "|i1" | "<i1" => Dtype::I8,
            "<u8" => Dtype::U64,
            "<u4" => Dtype::U32,
            "<u2" => Dtype::U16,
            "|u1" | "<u1" => Dtype::U8,
            "|b1" => Dtype::Bool,
            other => Dtype::Other(other.chars().take(32).collect()),
        })
    }

    fn boolean(&mut self) -> Result<bool, FormatError> {
        let text = self.0.trim_start();
        for (word, value) in [("True", true), ("False", false)] {
            if let Some(rest) = text.strip_prefix(word) {
                self.0 = rest;
                return Ok(value);
            }
        }
        Err(Self::error())
    }

    fn shape(&mut self) -> Result<Vec<usize>, FormatError> {
        let mut shape = Vec::new();
        self.expect('(')?;
        while !self.accept(')') {
            let text = self.0.trim_start();
            let digits = text.bytes().take_while(u8::is_ascii_digit).count();
            let size = text[..digits].parse().map_err(|_| Self::error())?;
            // Python 2 wrote long integers with an L.
            self.0 = text[digits..].strip_prefix('L').unwrap_or(&text[digits..]);
            shape.push(size);
            if shape.len() > MAX_RANK {
                return Err(FormatError::new("the array has too many dimensions"));
            }
            if !self.accept(',') {
                self.expect(')')?;
                break;
            }
        }
        Ok(shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_survive_the_round_trip() {
        for shape in [vec![], vec![5], vec![3, 0, 7]] {
            let bytes = npy_header(&Dtype::F32, &shape).unwrap();
            assert_eq!(bytes.len() % ALIGNMENT, 0);
            let header = NpyHeader::parse(&bytes).unwrap();
            assert_eq!((header.dtype, header.shape), (Dtype::F32, shape));
            assert_eq!((header.fortran_order, header.data_start), (false, bytes.len()));
        }
    }

    #[test]
    fn odd_headers_are_refused() {
        let with_text = |text: &str| {
            let mut bytes = MAGIC.to_vec();
            bytes.extend([1, 0]);
            bytes.extend((text.len() as u16).to_le_bytes());
            bytes.extend(text.bytes());
            NpyHeader::parse(&bytes)
        };
        assert!(with_text("{'descr': '<f4', 'fortran_order': True, 'shape': (3L,)}").unwrap().fortran_order);
        for text in [
            "",
            "{",
            "{'descr': '<f4', 'fortran_order': True}",
            "{'descr': '<f4', 'fortran_order': True, 'shape': (-3,)}",
            "{'descr': '<f4', 'fortran_order': True, 'shape': (99999999999999999999,)}",
            "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': ()}",
            "{'descr': '<f4', 'fortran_order': True, 'shape': (3,)} + __import__('os')",
        ] {
            assert!(with_text(text).is_err(), "{text}");
        }
        assert_eq!(
            with_text("{'descr': '|O', 'fortran_order': False, 'shape': ()}").unwrap().dtype.size(),
            None
        );
    }
}
