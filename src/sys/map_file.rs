//! A file mapped read-only into memory. It is here because mapping is `unsafe`: the operating system cannot promise
//! that nobody changes the file meanwhile.

use std::fs::File;
use std::io;
use std::ops::{Deref, Range};

#[cfg(unix)]
use memmap2::UncheckedAdvice;
use memmap2::{Mmap, MmapOptions};

/// The bytes of a whole file, paged in on demand.
///
/// The file must not be changed in place while it is mapped: truncating it kills the process (`SIGBUS`) when the lost
/// part is read, overwriting it may show old and new bytes mixed. Replacing it by `rename`, as this library's own
/// writers do, is harmless, since the mapping keeps the old file alive.
#[derive(Debug)]
pub struct MappedFile {
    map: Mmap,
}

impl MappedFile {
    /// Maps the whole of `file`. The mapping outlives the handle.
    ///
    /// # Errors
    /// Whatever `mmap` reports; some network and FUSE file systems cannot map at all.
    pub fn open(file: &File) -> io::Result<Self> {
        // SAFETY: the pages are read-only and private to this process, so no write of ours can reach them. Changes by
        // other processes are excluded by the contract of this type, which every function that maps repeats to users.
        let map = unsafe { MmapOptions::new().map_copy_read_only(file)? };
        Ok(Self { map })
    }

    /// Tells the system that `range` will not be read again soon, so that its pages stop counting as memory of this
    /// process. Reading it again is allowed and fetches the pages again. Never fails: it is only a hint, and systems
    /// that have no such call do nothing.
    pub fn release(&self, range: Range<usize>) {
        let start = range.start.min(self.map.len());
        let length = range.end.min(self.map.len()).saturating_sub(start);
        if length == 0 {
            return;
        }
        #[cfg(unix)]
        // SAFETY: the mapping was never written to, so dropping its pages loses nothing: the next access reads the
        // same bytes from the file again, and references into the mapping stay valid.
        let advised = unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, start, length) };
        // A system that does not know the hint merely keeps the pages.
        #[cfg(unix)]
        drop(advised);
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

#[cfg(test)]
#[cfg(not(miri))] // Miri has no files to map.
mod tests {
    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "Miri maps no files")]
    fn released_pages_read_the_same_again() {
        let path = std::env::temp_dir().join(format!("sparse-mixer-map-{}", std::process::id()));
        let content: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &content).unwrap();
        let map = MappedFile::open(&File::open(&path).unwrap()).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(&map[..], &content[..]);
        map.release(0..100_000);
        map.release(5_000..usize::MAX);
        map.release(200_000..300_000);
        assert_eq!(&map[..], &content[..]);
    }
}
