//! The sorted string table that holds a TensorFlow checkpoint's index: LevelDB's table format, uncompressed.
//!
//! A file is data blocks, a meta index block, an index block and a 48-byte footer with the places of the last two. A
//! block is entries, then the offsets of its restart points and their count; five bytes follow it: compression kind
//! and masked CRC-32C. An entry is varints *shared*, *unshared*, *value length*, then the end of the key and the value;
//! the first *shared* bytes of the key are those of the key before.
//! Source: <https://github.com/google/leveldb/blob/main/doc/table_format.md>.

use super::protobuf::{take, take_varint};
use crate::checkpoint::error::FormatError;
use crate::checkpoint::io::limits::{MAX_NAME_BYTES, part};

const FOOTER_BYTES: usize = 48;
/// The last eight bytes of every table.
pub(crate) const MAGIC: [u8; 8] = [0x57, 0xfb, 0x80, 0x8b, 0x24, 0x75, 0x47, 0xdb];
const TRAILER_BYTES: u64 = 5;
/// LevelDB stores `rotate(crc) + MASK_DELTA`, since checksums of data that contains checksums are weak.
const MASK_DELTA: u32 = 0xa282_ead8;

/// The CRC-32C of `bytes` in the masked form that files store.
pub(super) fn masked_crc32c(bytes: &[u8]) -> u32 {
    masked(crc32c::crc32c(bytes))
}

/// The form in which files store a CRC-32C.
pub(super) fn masked(checksum: u32) -> u32 {
    checksum.rotate_right(15).wrapping_add(MASK_DELTA)
}

/// Calls `visit(key, value)` for every entry of the table `file`, in key order.
pub(super) fn for_each_entry(
    file: &[u8],
    mut visit: impl FnMut(&[u8], &[u8]) -> Result<(), FormatError>,
) -> Result<(), FormatError> {
    let footer = file
        .len()
        .checked_sub(FOOTER_BYTES)
        .map(|start| &file[start..])
        .filter(|footer| footer.ends_with(&MAGIC))
        .ok_or_else(|| FormatError::new("not a checkpoint index: the mark at its end is missing"))?;
    let mut handles = footer;
    take_handle(&mut handles)?; // meta index, which is empty
    let (offset, size) = take_handle(&mut handles)?;
    // Blocks follow one another: going on only forwards keeps a hostile index from visiting one block many times.
    let mut next_block = 0;
    for_each_in_block(block(file, offset, size)?, |_, handle| {
        let (offset, size) = take_handle(&mut &handle[..])?;
        if offset < next_block {
            return Err(FormatError::new("the index is damaged: its blocks overlap"));
        }
        next_block = offset + size.saturating_add(TRAILER_BYTES).min(u64::MAX - offset);
        for_each_in_block(block(file, offset, size)?, &mut visit)
    })
}

fn take_handle(bytes: &mut &[u8]) -> Result<(u64, u64), FormatError> {
    Ok((take_varint(bytes)?, take_varint(bytes)?))
}

/// The entries and restart points of the block at `offset`, its checksum verified.
fn block(file: &[u8], offset: u64, size: u64) -> Result<&[u8], FormatError> {
    let with_trailer = part(file, offset, size.saturating_add(TRAILER_BYTES), "a block of the index")?;
    let (checked, stored) = with_trailer.split_at(with_trailer.len() - 4);
    let stored = u32::from_le_bytes(stored.try_into().expect("the last four bytes"));
    if masked_crc32c(checked) != stored {
        return Err(FormatError::new(
            "a block of the index does not match its checksum; the file is damaged",
        ));
    }
    match checked.split_last() {
        Some((0, content)) => Ok(content),
        _ => Err(FormatError::new("compressed indexes are not read")),
    }
}

fn for_each_in_block(
    block: &[u8],
    mut visit: impl FnMut(&[u8], &[u8]) -> Result<(), FormatError>,
) -> Result<(), FormatError> {
    let damaged = || FormatError::new("a block of the index is damaged");
    let (rest, count) = block.split_last_chunk::<4>().ok_or_else(damaged)?;
    let restarts = (u32::from_le_bytes(*count) as usize).checked_mul(4).ok_or_else(damaged)?;
    let mut entries = &rest[..rest.len().checked_sub(restarts).ok_or_else(damaged)?];
    let mut key = Vec::new();
    while !entries.is_empty() {
        let shared = take_varint(&mut entries)?;
        let unshared = take_varint(&mut entries)?;
        let value_length = take_varint(&mut entries)?;
        let shared =
            usize::try_from(shared).ok().filter(|&shared| shared <= key.len()).ok_or_else(damaged)?;
        key.truncate(shared);
        key.extend_from_slice(take(&mut entries, unshared)?);
        if key.len() > MAX_NAME_BYTES {
            return Err(FormatError::new(format!("a key of the index has {} bytes", key.len())));
        }
        let value = take(&mut entries, value_length)?;
        visit(&key, value)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_masked_as_leveldb_masks_them() {
        // LevelDB's own test: crc32c("foo") and its mask differ, and 32 zero bytes give 0x8a9136aa unmasked.
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(masked_crc32c(&[0; 32]), 0x8a91_36aau32.rotate_right(15).wrapping_add(MASK_DELTA));
    }

    #[test]
    fn keys_share_their_beginnings() {
        let entries = b"\x00\x03\x01abcX\x02\x01\x01dY";
        let block = [&entries[..], &[0, 0, 0, 0, 1, 0, 0, 0]].concat();
        let mut seen = Vec::new();
        for_each_in_block(&block, |key, value| {
            seen.push((key.to_vec(), value.to_vec()));
            Ok(())
        })
        .unwrap();
        assert_eq!(seen, [(b"abc".to_vec(), b"X".to_vec()), (b"abd".to_vec(), b"Y".to_vec())]);
        let beyond = [&b"\x05\x01\x01dY"[..], &[0, 0, 0, 0]].concat();
        assert!(for_each_in_block(&beyond, |_, _| Ok(())).is_err());
    }
}
