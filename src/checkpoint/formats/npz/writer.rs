//! Writes NumPy's `.npz`, uncompressed, as `numpy.savez` does.

use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

use super::npy::npy_header;
use super::zip::{
    DIRECTORY_END, DIRECTORY_END_64, DIRECTORY_ENTRY, DIRECTORY_LOCATOR_64, EXTRA_64, LOCAL_HEADER,
};
use crate::checkpoint::error::FormatError;
use crate::checkpoint::io::atomic_file::AtomicFile;
use crate::checkpoint::tensor_to_write::TensorToWrite;
use crate::error::{Error, Result};
use crate::runtime::Interrupt;

/// Write buffer; larger pieces pass it by.
const BUFFER_BYTES: usize = 256 << 10;
/// ZIP version that knows 64-bit sizes.
const VERSION_64: u16 = 45;
/// Flag: names are UTF-8.
const FLAG_UTF8: u16 = 1 << 11;
/// The first of January 1980, the earliest date there is: files do not depend on when they were written.
const DOS_DATE: u16 = (1 << 5) | 1;

/// Replaces the file at `path` in one step (see [`AtomicFile`]) by an archive of `tensors`, in their order.
///
/// Memory: what the tensors' own content functions take.
///
/// # Errors
/// The file cannot be written, two tensors have one name, a tensor gives the wrong number of bytes, or its content
/// function fails; the interrupt came while waiting for the disk. The old file is untouched then.
pub fn write_npz(path: &Path, tensors: Vec<TensorToWrite<'_>>, interrupt: Interrupt<'_>) -> Result<()> {
    let label = path.display().to_string();
    let in_file = |source| Error::Io { path: label.clone(), source };
    let mut names = std::collections::HashSet::new();
    if let Some(twice) = tensors.iter().find(|tensor| !names.insert(tensor.name.clone())) {
        return Err(FormatError::new(format!("two tensors are called '{}'", twice.name)).in_file(&label));
    }

    let mut out = BufWriter::with_capacity(BUFFER_BYTES, AtomicFile::create(path)?);
    let mut directory = Vec::with_capacity(tensors.len());
    let mut offset = 0u64;
    for tensor in tensors {
        let name = format!("{}.npy", tensor.name);
        let header =
            npy_header(&tensor.dtype, &tensor.shape).map_err(|error| error.at(&name).in_file(&label))?;
        let content = tensor.byte_count().map_err(|error| error.in_file(&label))?;
        let mut member = Member { name, crc32: 0, size: (header.len() + content) as u64, offset };
        // The checksum is known only after the content: leave room, come back.
        out.write_all(&member.local_header().map_err(|error| error.in_file(&label))?).map_err(in_file)?;
        out.write_all(&header).map_err(in_file)?;
        let mut crc32 = crc32fast::Hasher::new();
        crc32.update(&header);
        tensor.write_to(&mut out, &label, |bytes| crc32.update(bytes))?;
        member.crc32 = crc32.finalize();
        let local_header = member.local_header().map_err(|error| error.in_file(&label))?;
        out.seek(SeekFrom::Start(offset)).map_err(in_file)?;
        out.write_all(&local_header).map_err(in_file)?;
        offset += local_header.len() as u64 + member.size;
        out.seek(SeekFrom::Start(offset)).map_err(in_file)?;
        directory.push(member);
    }
    write_directory(&mut out, &directory, offset).map_err(in_file)?;
    let file = out.into_inner().map_err(|error| in_file(error.into_error()))?;
    file.commit(interrupt)
}

/// A member as the directory needs it. Sizes and offsets are always written in 64 bits.
struct Member {
    name: String,
    crc32: u32,
    size: u64,
    offset: u64,
}

impl Member {
    fn local_header(&self) -> Result<Vec<u8>, FormatError> {
        let name_length = u16::try_from(self.name.len())
            .map_err(|_| FormatError::new("the name is too long").at(&self.name))?;
        let mut header = LOCAL_HEADER.to_vec();
        header.extend(self.common_fields(name_length, 4 + 16));
        header.extend(self.name.as_bytes());
        header.extend(EXTRA_64.to_le_bytes());
        header.extend(16u16.to_le_bytes());
        header.extend(self.size.to_le_bytes());
        header.extend(self.size.to_le_bytes());
        Ok(header)
    }

    fn directory_entry(&self) -> Vec<u8> {
        let mut entry = DIRECTORY_ENTRY.to_vec();
        entry.extend(VERSION_64.to_le_bytes());
        // The length was checked when the local header was made.
        entry.extend(self.common_fields(self.name.len() as u16, 4 + 24));
        entry.extend([0; 10]); // comment, disk, attributes
        entry.extend(u32::MAX.to_le_bytes()); // the offset is in the extra field
        entry.extend(self.name.as_bytes());
        entry.extend(EXTRA_64.to_le_bytes());
        entry.extend(24u16.to_le_bytes());
        for value in [self.size, self.size, self.offset] {
            entry.extend(value.to_le_bytes());
        }
        entry
    }

    /// The fields that local header and directory entry share: version, flags, method (stored), time, date, checksum,
    /// both sizes (in the extra field), lengths of name and extra field.
    fn common_fields(&self, name_length: u16, extra_length: u16) -> Vec<u8> {
        let mut fields = Vec::new();
        for value in [VERSION_64, FLAG_UTF8, 0, 0, DOS_DATE] {
            fields.extend(value.to_le_bytes());
        }
        for value in [self.crc32, u32::MAX, u32::MAX] {
            fields.extend(value.to_le_bytes());
        }
        fields.extend(name_length.to_le_bytes());
        fields.extend(extra_length.to_le_bytes());
        fields
    }
}

fn write_directory(out: &mut impl Write, members: &[Member], start: u64) -> std::io::Result<()> {
    let mut directory = Vec::new();
    for member in members {
        directory.extend(member.directory_entry());
    }
    let (count, size) = (members.len() as u64, directory.len() as u64);
    out.write_all(&directory)?;

    let mut end = DIRECTORY_END_64.to_vec();
    end.extend(44u64.to_le_bytes()); // bytes of this record from here on
    end.extend(VERSION_64.to_le_bytes());
    end.extend(VERSION_64.to_le_bytes());
    end.extend([0; 8]); // disks
    for value in [count, count, size, start] {
        end.extend(value.to_le_bytes());
    }
    end.extend(DIRECTORY_LOCATOR_64);
    end.extend([0; 4]);
    end.extend((start + size).to_le_bytes());
    end.extend(1u32.to_le_bytes());
    end.extend(DIRECTORY_END);
    end.extend([0; 4]);
    end.extend([0xff; 12]); // counts, size and offset are in the 64-bit record
    end.extend([0; 2]); // comment
    out.write_all(&end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{FileBytes, Npz, TensorSource};
    use crate::runtime::never;

    #[test]
    fn what_is_written_is_read() {
        let path = std::env::temp_dir().join(format!("sparse-mixer-{}.npz", std::process::id()));
        let tensors = vec![
            TensorToWrite::from_f32("layer/kernel", &[2, 2], &[1.0, 2.0, 3.0, 4.0]),
            TensorToWrite::from_f32("scalar", &[], &[0.5]),
            TensorToWrite::from_f32("empty", &[0], &[]),
        ];
        write_npz(&path, tensors, &never).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let file = Npz::from_bytes(FileBytes::from(bytes.clone()), "memory").unwrap();
        assert_eq!(file.entries()[0].name, "layer/kernel");
        assert_eq!(file.entries()[0].shape, [2, 2]);
        assert_eq!(file.read(0, &never).unwrap().to_f32().unwrap(), [1.0, 2.0, 3.0, 4.0]);
        assert_eq!(file.read(1, &never).unwrap().to_f32().unwrap(), [0.5]);
        assert!(file.read(2, &never).unwrap().bytes().is_empty());

        // Content is covered by the archive's checksums.
        let place = bytes.windows(4).position(|window| window == 3f32.to_le_bytes()).unwrap();
        let mut damaged = bytes;
        damaged[place] ^= 1;
        let file = Npz::from_bytes(FileBytes::from(damaged), "memory").unwrap();
        assert!(file.read(0, &never).unwrap_err().to_string().contains("checksum"));
    }
}
