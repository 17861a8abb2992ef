//! Bounds on what a file may ask for. They are far above any real model and low enough that no file, however hostile,
//! makes a reader take more than 64 MiB beyond the file's own size.

use crate::checkpoint::error::FormatError;

/// Most tensors in one file.
pub const MAX_TENSORS: usize = 100_000;
/// Most dimensions of one tensor.
pub const MAX_RANK: usize = 16;
/// Longest tensor name, in bytes.
pub const MAX_NAME_BYTES: usize = 1024;
/// All tensor names together, in bytes. Formats that compress names could otherwise blow up a small file.
pub const MAX_NAMES_BYTES: usize = 8 << 20;
/// Longest safetensors header: what the format allows. The header is part of the file, so that this many bytes are there.
pub const MAX_SAFETENSORS_HEADER: usize = 100_000_000;
/// Longest text in a safetensors header.
pub const MAX_HEADER_STRING: usize = 4 << 20;
/// Most keys of a file's metadata; checksums of tensors are not counted.
pub const MAX_METADATA_ENTRIES: usize = 10_000;
/// All metadata together, in bytes.
pub const MAX_METADATA_BYTES: usize = 8 << 20;
/// Deepest nesting of maps in a msgpack document.
pub const MAX_DEPTH: usize = 64;
/// Longest header of a `.npy` array.
pub const MAX_NPY_HEADER: usize = 64 << 10;
/// Most data or shard files of one checkpoint.
pub const MAX_SHARDS: usize = 4096;
/// What a compressed tensor may take in memory beyond the size of its file.
pub const MAX_INFLATED_BEYOND_FILE: usize = 60 << 20;

/// Number of elements of `shape`. Success means that the product of any choice of its non-zero sizes fits, too, so that
/// code may multiply sizes in any order.
///
/// # Errors
/// The shape has too many dimensions or is too large.
pub fn element_count(shape: &[usize]) -> Result<usize, FormatError> {
    if shape.len() > MAX_RANK {
        return Err(FormatError::new(format!(
            "a shape has {} dimensions, at most {MAX_RANK} are read",
            shape.len()
        )));
    }
    shape
        .iter()
        .try_fold(1usize, |product, &size| product.checked_mul(size.max(1)))
        .filter(|&count| count <= isize::MAX as usize)
        .map(|count| if shape.contains(&0) { 0 } else { count })
        .ok_or_else(|| FormatError::new(format!("the shape {shape:?} is too large")))
}

/// Bytes of a tensor of `shape` with `item_size` bytes per element.
///
/// # Errors
/// As [`element_count`].
pub fn byte_count(shape: &[usize], item_size: usize) -> Result<usize, FormatError> {
    element_count(shape)?
        .checked_mul(item_size)
        .filter(|&count| count <= isize::MAX as usize)
        .ok_or_else(|| FormatError::new(format!("the shape {shape:?} is too large")))
}

/// The part `offset .. offset + size` of `bytes`, `what` naming it in the error.
///
/// # Errors
/// The part does not lie inside `bytes`.
pub fn part<'a>(bytes: &'a [u8], offset: u64, size: u64, what: &str) -> Result<&'a [u8], FormatError> {
    let start = usize::try_from(offset).ok();
    let end = offset.checked_add(size).and_then(|end| usize::try_from(end).ok());
    start.zip(end).and_then(|(start, end)| bytes.get(start..end)).ok_or_else(|| {
        FormatError::new(format!(
            "{what} should be {size} bytes at offset {offset}, but there are only {} bytes",
            bytes.len()
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_overflow_are_refused() {
        assert_eq!(element_count(&[]).unwrap(), 1);
        assert_eq!(element_count(&[3, 0, 4]).unwrap(), 0);
        assert!(element_count(&[0, usize::MAX, usize::MAX]).is_err());
        assert!(element_count(&[usize::MAX, 2]).is_err());
        assert!(element_count(&[1; MAX_RANK + 1]).is_err());
        assert!(byte_count(&[usize::MAX / 4], 4).is_err());
    }

    #[test]
    fn parts_outside_the_file_are_refused() {
        let bytes = [0u8; 10];
        assert_eq!(part(&bytes, 4, 6, "x").unwrap().len(), 6);
        assert!(part(&bytes, 4, 7, "x").is_err());
        assert!(part(&bytes, u64::MAX, 2, "x").is_err());
    }
}
