//! Reads the few protocol-buffer messages of TensorFlow's checkpoint index, field by field.
//! Source: <https://protobuf.dev/programming-guides/encoding/>.

use crate::checkpoint::error::FormatError;

/// The value of one field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Value<'a> {
    Varint(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
    /// A 64-bit field, which none of the messages read here uses.
    Fixed64,
}

/// Takes a base-128 number from the front of `bytes`.
pub(super) fn take_varint(bytes: &mut &[u8]) -> Result<u64, FormatError> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first().ok_or_else(|| FormatError::new("a number is cut short"))?;
        *bytes = rest;
        let bits = u64::from(byte & 0x7f);
        if shift == 63 && bits > 1 {
            break;
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(FormatError::new("a number has more than 64 bits"))
}

/// Takes `length` bytes from the front of `bytes`.
pub(super) fn take<'a>(bytes: &mut &'a [u8], length: u64) -> Result<&'a [u8], FormatError> {
    let (taken, rest) = usize::try_from(length)
        .ok()
        .and_then(|length| bytes.split_at_checked(length))
        .ok_or_else(|| FormatError::new("a record is cut short"))?;
    *bytes = rest;
    Ok(taken)
}

/// The fields of the message in `bytes`, as (number, value) in their order.
pub(super) fn fields(mut bytes: &[u8]) -> impl Iterator<Item = Result<(u64, Value<'_>), FormatError>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let field = take_field(&mut bytes);
        if field.is_err() {
            bytes = &[];
        }
        Some(field)
    })
}

fn take_field<'a>(bytes: &mut &'a [u8]) -> Result<(u64, Value<'a>), FormatError> {
    let key = take_varint(bytes)?;
    let value = match key & 7 {
        0 => Value::Varint(take_varint(bytes)?),
        1 => {
            take(bytes, 8)?;
            Value::Fixed64
        }
        2 => {
            let length = take_varint(bytes)?;
            Value::Bytes(take(bytes, length)?)
        }
        5 => Value::Fixed32(u32::from_le_bytes(take(bytes, 4)?.try_into().expect("four bytes were taken"))),
        other => return Err(FormatError::new(format!("a field has the unknown kind {other}"))),
    };
    Ok((key >> 3, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_any_length() {
        let mut bytes = &[0xac, 0x02, 0x7f][..];
        assert_eq!(take_varint(&mut bytes).unwrap(), 300);
        assert_eq!(take_varint(&mut bytes).unwrap(), 127);
        assert!(take_varint(&mut bytes).is_err());
        let most = [[0xff; 9].as_slice(), &[0x01]].concat();
        assert_eq!(take_varint(&mut &most[..]).unwrap(), u64::MAX);
        assert!(take_varint(&mut &[0xff; 11][..]).is_err());
    }

    #[test]
    fn fields_of_every_kind() {
        let bytes = [0x08, 0x05, 0x12, 0x02, 9, 9, 0x35, 1, 0, 0, 0];
        let read: Vec<_> = fields(&bytes).map(Result::unwrap).collect();
        assert_eq!(read, [(1, Value::Varint(5)), (2, Value::Bytes(&[9, 9])), (6, Value::Fixed32(1))]);
        assert!(fields(&[0x12, 0x7f]).next().unwrap().is_err());
        assert!(fields(&[0x0b]).next().unwrap().is_err());
    }
}
