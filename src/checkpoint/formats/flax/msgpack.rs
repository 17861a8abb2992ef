//! A pull decoder for msgpack: one token at a time, borrowing from the input, allocating nothing.
//! Source: the msgpack specification, <https://github.com/msgpack/msgpack/blob/master/spec.md>.

use std::ops::Range;

use crate::checkpoint::error::FormatError;

/// The next thing in a document. Maps and arrays give their length; their content follows as tokens.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Token<'a> {
    Map(usize),
    Array(usize),
    Text(&'a str),
    Binary(Range<usize>),
    Extension(i8, Range<usize>),
    Integer(i128),
    Float,
    Bool,
    Nil,
}

/// Reads tokens from a slice. Ranges in tokens count from the start of that slice.
#[derive(Debug)]
pub(super) struct Decoder<'a> {
    bytes: &'a [u8],
    position: usize,
    end: usize,
}

impl<'a> Decoder<'a> {
    /// A decoder of the document in `bytes[range]`.
    ///
    /// # Panics
    /// The range does not lie inside `bytes`.
    pub(super) fn new(bytes: &'a [u8], range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= bytes.len(), "a part of the input");
        Self { bytes, position: range.start, end: range.end }
    }

    /// Whether everything has been read.
    pub(super) fn is_at_end(&self) -> bool {
        self.position == self.end
    }

    /// Reads the next token.
    pub(super) fn next(&mut self) -> Result<Token<'a>, FormatError> {
        let [first] = self.fixed()?;
        Ok(match first {
            0x00..=0x7f => Token::Integer(first.into()),
            0x80..=0x8f => Token::Map((first & 0x0f).into()),
            0x90..=0x9f => Token::Array((first & 0x0f).into()),
            0xa0..=0xbf => self.text((first & 0x1f).into())?,
            0xc0 => Token::Nil,
            0xc1 => return Err(FormatError::new("the byte 0xc1 never occurs in msgpack")),
            0xc2 | 0xc3 => Token::Bool,
            0xc4..=0xc6 => {
                let length = self.length(first - 0xc4)?;
                Token::Binary(self.take(length)?)
            }
            0xc7..=0xc9 => {
                let length = self.length(first - 0xc7)?;
                self.extension(length)?
            }
            0xca => self.skip_float(4)?,
            0xcb => self.skip_float(8)?,
            0xcc => Token::Integer(u8::from_be_bytes(self.fixed()?).into()),
            0xcd => Token::Integer(u16::from_be_bytes(self.fixed()?).into()),
            0xce => Token::Integer(u32::from_be_bytes(self.fixed()?).into()),
            0xcf => Token::Integer(u64::from_be_bytes(self.fixed()?).into()),
            0xd0 => Token::Integer(i8::from_be_bytes(self.fixed()?).into()),
            0xd1 => Token::Integer(i16::from_be_bytes(self.fixed()?).into()),
            0xd2 => Token::Integer(i32::from_be_bytes(self.fixed()?).into()),
            0xd3 => Token::Integer(i64::from_be_bytes(self.fixed()?).into()),
            0xd4..=0xd8 => self.extension(1 << (first - 0xd4))?,
            0xd9..=0xdb => {
                let length = self.length(first - 0xd9)?;
                self.text(length)?
            }
            0xdc | 0xdd => Token::Array(self.length(first - 0xdc + 1)?),
            0xde | 0xdf => Token::Map(self.length(first - 0xde + 1)?),
            0xe0..=0xff => Token::Integer((first as i8).into()),
        })
    }

    /// Reads a text, or fails.
    pub(super) fn expect_text(&mut self) -> Result<&'a str, FormatError> {
        match self.next()? {
            Token::Text(text) => Ok(text),
            _ => Err(FormatError::new("the keys of maps must be texts")),
        }
    }

    /// Reads a size (a non-negative integer), or fails.
    pub(super) fn expect_size(&mut self) -> Result<usize, FormatError> {
        match self.next()? {
            Token::Integer(value) => {
                usize::try_from(value).map_err(|_| FormatError::new(format!("{value} is not a size")))
            }
            _ => Err(FormatError::new("a size must be an integer")),
        }
    }

    /// Skips the content of a map or array of `count` tokens in all, nested ones included, up to `depth` levels down.
    pub(super) fn skip(&mut self, depth: usize) -> Result<(), FormatError> {
        let Some(depth) = depth.checked_sub(1) else {
            return Err(FormatError::new("maps are nested too deeply"));
        };
        let children = match self.next()? {
            Token::Map(length) => length.saturating_mul(2),
            Token::Array(length) => length,
            _ => 0,
        };
        for _ in 0..children {
            self.skip(depth)?;
        }
        Ok(())
    }

    fn take(&mut self, length: usize) -> Result<Range<usize>, FormatError> {
        if length > self.end - self.position {
            return Err(FormatError::new(format!(
                "truncated: {length} bytes are expected at offset {}, {} are left",
                self.position,
                self.end - self.position
            )));
        }
        let range = self.position..self.position + length;
        self.position = range.end;
        Ok(range)
    }

    fn fixed<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let range = self.take(N)?;
        Ok(self.bytes[range].try_into().expect("exactly N bytes were taken"))
    }

    /// A length of 1, 2 or 4 bytes for `width` 0, 1 or 2.
    fn length(&mut self, width: u8) -> Result<usize, FormatError> {
        Ok(match width {
            0 => u8::from_be_bytes(self.fixed()?).into(),
            1 => u16::from_be_bytes(self.fixed()?).into(),
            _ => u32::from_be_bytes(self.fixed()?) as usize,
        })
    }

    fn text(&mut self, length: usize) -> Result<Token<'a>, FormatError> {
        let range = self.take(length)?;
        std::str::from_utf8(&self.bytes[range])
            .map(Token::Text)
            .map_err(|_| FormatError::new("a text is not UTF-8"))
    }

    fn extension(&mut self, length: usize) -> Result<Token<'a>, FormatError> {
        let [kind] = self.fixed()?;
        Ok(Token::Extension(kind as i8, self.take(length)?))
    }

    fn skip_float(&mut self, length: usize) -> Result<Token<'a>, FormatError> {
        self.take(length)?;
        Ok(Token::Float)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(bytes: &[u8]) -> Result<Token<'_>, FormatError> {
        Decoder::new(bytes, 0..bytes.len()).next()
    }

    #[test]
    fn tokens_follow_the_specification() {
        assert_eq!(one(&[0x7f]).unwrap(), Token::Integer(127));
        assert_eq!(one(&[0xff]).unwrap(), Token::Integer(-1));
        assert_eq!(one(&[0xd1, 0xff, 0x00]).unwrap(), Token::Integer(-256));
        assert_eq!(one(&[0xcf, 0xff, 0, 0, 0, 0, 0, 0, 0]).unwrap(), Token::Integer(0xff << 56));
        assert_eq!(one(&[0xa2, b'h', b'i']).unwrap(), Token::Text("hi"));
        assert_eq!(one(&[0xda, 0, 1, b'x']).unwrap(), Token::Text("x"));
        assert_eq!(one(&[0xc4, 2, 9, 9]).unwrap(), Token::Binary(2..4));
        assert_eq!(one(&[0xc7, 1, 5, 9]).unwrap(), Token::Extension(5, 3..4));
        assert_eq!(one(&[0xd5, 0xfe, 9, 9]).unwrap(), Token::Extension(-2, 2..4));
        assert_eq!(one(&[0xde, 1, 0]).unwrap(), Token::Map(256));
        assert_eq!(one(&[0xdd, 0, 0, 1, 0]).unwrap(), Token::Array(256));
    }

    #[test]
    fn damage_is_an_error() {
        for bytes in [&[][..], &[0xc1], &[0xa2, b'h'], &[0xa1, 0xff], &[0xc6, 0xff, 0xff, 0xff, 0xff, 0]] {
            assert!(one(bytes).is_err(), "{bytes:?}");
        }
        let deep = [0x91; 100];
        assert!(Decoder::new(&deep, 0..100).skip(64).is_err());
    }
}
