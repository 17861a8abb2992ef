//! Numbers in memory of their own, or where they lie in a mapped file.

use std::fmt;
use std::ops::{Deref, DerefMut, Range};
use std::sync::Arc;

use bytemuck::Pod;

use super::aligned::{ALIGNMENT, AlignedVec};
use super::map_file::MappedFile;

/// Numbers that are ours, or that a mapped file holds. Those of a file are read where they are, from pages that all
/// processes share, and copied before they are changed.
#[derive(Clone)]
pub enum MaybeMapped<T> {
    /// In memory of our own.
    Owned(AlignedVec<T>),
    /// The bytes `range` of a file: whole numbers, the first at a multiple of 64 bytes.
    Mapped {
        /// The file; unmapped when the last that uses it is dropped.
        file: Arc<MappedFile>,
        /// Where its numbers are.
        range: Range<usize>,
    },
}

/// Bytes of a file, little-endian numbers among them.
#[derive(Clone, Copy, Debug)]
pub struct FilePart<'a> {
    bytes: &'a [u8],
    /// The mapped file and where in it the bytes begin; `None` for bytes that were read.
    mapped: Option<(&'a Arc<MappedFile>, usize)>,
}

impl<'a> FilePart<'a> {
    /// The bytes `range` of a mapped file.
    pub fn of_map(file: &'a Arc<MappedFile>, range: Range<usize>) -> Self {
        FilePart { bytes: &file[range.clone()], mapped: Some((file, range.start)) }
    }

    /// Bytes in memory.
    pub fn of_bytes(bytes: &'a [u8]) -> Self {
        FilePart { bytes, mapped: None }
    }

    /// Number of bytes.
    pub fn len(self) -> usize {
        self.bytes.len()
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.bytes.is_empty()
    }

    /// The first `len` bytes, and the others; `None` if there are fewer.
    pub fn split(self, len: usize) -> Option<(Self, Self)> {
        let (first, rest) = self.bytes.split_at_checked(len)?;
        let after = self.mapped.map(|(file, at)| (file, at + len));
        Some((FilePart { bytes: first, ..self }, FilePart { bytes: rest, mapped: after }))
    }

    /// The numbers that these bytes are: mapped where they can be, else copied. Bytes beyond the last whole number are
    /// passed over.
    pub fn numbers<T: Pod>(self) -> MaybeMapped<T> {
        let bytes = &self.bytes[..self.bytes.len() / size_of::<T>() * size_of::<T>()];
        if let Some((file, at)) = self.mapped
            && !bytes.is_empty()
            && bytes.as_ptr().addr().is_multiple_of(ALIGNMENT)
        {
            return MaybeMapped::Mapped { file: file.clone(), range: at..at + bytes.len() };
        }
        MaybeMapped::Owned(AlignedVec::of_bytes(bytes))
    }
}

impl<T: Pod> MaybeMapped<T> {
    /// Copies numbers of a file, so that they can be changed.
    pub fn make_owned(&mut self) -> &mut AlignedVec<T> {
        if let MaybeMapped::Mapped { .. } = self {
            *self = MaybeMapped::Owned(AlignedVec::of_bytes(bytemuck::cast_slice(self)));
        }
        match self {
            MaybeMapped::Owned(values) => values,
            MaybeMapped::Mapped { .. } => unreachable!("they have just been copied"),
        }
    }
}

impl<T> MaybeMapped<T> {
    /// Whether a file holds them.
    pub fn is_mapped(&self) -> bool {
        matches!(self, MaybeMapped::Mapped { .. })
    }
}

impl<T: Pod> Deref for MaybeMapped<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        match self {
            MaybeMapped::Owned(values) => values,
            MaybeMapped::Mapped { file, range } => bytemuck::cast_slice(&file[range.clone()]),
        }
    }
}

/// Copies numbers of a file first.
impl<T: Pod> DerefMut for MaybeMapped<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        self.make_owned()
    }
}

impl<T> From<AlignedVec<T>> for MaybeMapped<T> {
    fn from(values: AlignedVec<T>) -> Self {
        MaybeMapped::Owned(values)
    }
}

impl<T: fmt::Debug> fmt::Debug for MaybeMapped<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MaybeMapped::Owned(values) => values.fmt(f),
            MaybeMapped::Mapped { range, .. } => write!(f, "bytes {range:?} of a file"),
        }
    }
}

#[cfg(test)]
#[cfg(not(miri))] // Miri has no files to map.
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn numbers_stay_in_the_file_until_they_are_changed() {
        let mut file = tempfile::tempfile().unwrap();
        let numbers: Vec<f32> = (0..64).map(|i| i as f32).collect();
        file.write_all(bytemuck::cast_slice(&numbers)).unwrap();
        let map = Arc::new(MappedFile::open(&file).unwrap());
        let part = FilePart::of_map(&map, 0..256);
        let (first, rest) = part.split(64).unwrap();
        let mut values = rest.numbers::<f32>();
        assert!(values.is_mapped());
        assert_eq!((values[0], values.len()), (16.0, 48));
        let other = values.clone();
        values[0] = -1.0;
        assert!(!values.is_mapped());
        assert_eq!((values[0], values[1], other[0], rest.numbers::<f32>()[0]), (-1.0, 17.0, 16.0, 16.0));
        // At an odd place, or out of memory, they are copied; half a number is passed over.
        let odd = first.split(3).unwrap().1;
        assert_eq!(odd.numbers::<u8>()[..2], bytemuck::cast_slice::<f32, u8>(&numbers)[3..5]);
        assert!(!odd.numbers::<u8>().is_mapped());
        assert_eq!(FilePart::of_bytes(&[0, 0, 128, 63, 7]).numbers::<f32>()[..], [1.0]);
        assert!(part.split(257).is_none());
    }
}
