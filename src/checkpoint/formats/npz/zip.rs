//! The part of the ZIP format that `.npz` files use: a directory at the end, members stored or deflated, no
//! encryption, one disk. Anything else is refused, which also leaves no room for archives that look different to
//! different readers. Source: PKWARE's APPNOTE.TXT 6.3.10, sections 4.3 and 4.5.3 (64-bit sizes).

use std::borrow::Cow;
use std::io::Read;
use std::ops::Range;

use crate::checkpoint::error::FormatError;
use crate::checkpoint::io::limits::{MAX_INFLATED_BEYOND_FILE, MAX_NAME_BYTES, MAX_TENSORS, part};
use crate::runtime::Interrupt;

pub(crate) const LOCAL_HEADER: [u8; 4] = *b"PK\x03\x04";
pub(super) const DIRECTORY_ENTRY: [u8; 4] = *b"PK\x01\x02";
pub(crate) const DIRECTORY_END: [u8; 4] = *b"PK\x05\x06";
pub(super) const DIRECTORY_END_64: [u8; 4] = *b"PK\x06\x06";
pub(super) const DIRECTORY_LOCATOR_64: [u8; 4] = *b"PK\x06\x07";
/// Identifier of the extra field with 64-bit sizes.
pub(super) const EXTRA_64: u16 = 1;
const DIRECTORY_END_BYTES: usize = 22;
const LOCATOR_BYTES: usize = 20;
const LOCAL_HEADER_BYTES: u64 = 30;
/// Bytes decompressed between two looks at the interrupt: a few milliseconds' worth.
const BYTES_PER_LOOK: usize = 1 << 20;
const FLAG_ENCRYPTED: u16 = 1;

/// One file of an archive.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) name: String,
    deflated: bool,
    crc32: u32,
    /// Where the (compressed) content lies in the archive.
    pub(super) range: Range<usize>,
    /// Size of the content, as the directory claims.
    pub(super) size: usize,
}

impl Member {
    /// At most the first `limit` bytes of the content, unverified: to look at a header.
    pub(super) fn peek<'a>(&self, archive: &'a [u8], limit: usize) -> Result<Cow<'a, [u8]>, FormatError> {
        let stored = &archive[self.range.clone()];
        if !self.deflated {
            return Ok(Cow::Borrowed(&stored[..stored.len().min(limit)]));
        }
        let mut content = Vec::new();
        flate2::read::DeflateDecoder::new(stored)
            .take(limit.min(self.size) as u64)
            .read_to_end(&mut content)
            .map_err(|error| FormatError::new(format!("the compressed content is damaged: {error}")))?;
        Ok(Cow::Owned(content))
    }

    /// The whole content, its checksum verified.
    pub(super) fn read<'a>(
        &self,
        archive: &'a [u8],
        interrupt: Interrupt<'_>,
    ) -> Result<Cow<'a, [u8]>, FormatError> {
        let stored = &archive[self.range.clone()];
        let content = if self.deflated {
            Cow::Owned(self.inflate(stored, archive.len(), interrupt)?)
        } else {
            Cow::Borrowed(stored)
        };
        if crc32fast::hash(&content) != self.crc32 {
            return Err(FormatError::new("the content does not match its checksum; the file is damaged"));
        }
        Ok(content)
    }

    fn inflate(
        &self,
        stored: &[u8],
        archive_size: usize,
        interrupt: Interrupt<'_>,
    ) -> Result<Vec<u8>, FormatError> {
        let limit = archive_size.saturating_add(MAX_INFLATED_BEYOND_FILE);
        if self.size > limit {
            return Err(FormatError::new(format!(
                "the content takes {} bytes when decompressed, at most {limit} are allowed for a file of this size",
                self.size
            )));
        }
        // Reserved at once, but no page of it is taken before there is content for it.
        let mut content = Vec::new();
        content
            .try_reserve_exact(self.size)
            .map_err(|_| FormatError::new("not enough memory to decompress it"))?;
        let mut decoder = flate2::read::DeflateDecoder::new(stored);
        loop {
            let left = (self.size - content.len()).min(BYTES_PER_LOOK);
            let read = (&mut decoder)
                .take(left as u64)
                .read_to_end(&mut content)
                .map_err(|error| FormatError::new(format!("the compressed content is damaged: {error}")))?;
            if read == 0 {
                break;
            }
            if content.len() < self.size && interrupt() {
                return Err(FormatError::stopped());
            }
        }
        let more = decoder.read(&mut [0]).map_err(|error| FormatError::new(format!("damaged: {error}")))?;
        if content.len() != self.size || more != 0 {
            return Err(FormatError::new("the content does not have the size that the directory gives"));
        }
        Ok(content)
    }
}

/// The members of `archive`, in the directory's order.
pub(super) fn members(archive: &[u8]) -> Result<Vec<Member>, FormatError> {
    let directory = find_directory(archive)?;
    if directory.count > MAX_TENSORS as u64 {
        return Err(FormatError::new(format!("there are more than {MAX_TENSORS} members")));
    }
    let mut fields = Fields(part(archive, directory.offset, directory.size, "the archive's directory")?);
    let mut members = Vec::new();
    for _ in 0..directory.count {
        members.push(read_directory_entry(archive, &mut fields)?);
    }
    if !fields.0.is_empty() {
        return Err(FormatError::new("the archive's directory has more entries than it says"));
    }
    Ok(members)
}

struct Directory {
    count: u64,
    size: u64,
    offset: u64,
}

/// Reads the record at the archive's end, and its 64-bit twin where there is one.
fn find_directory(archive: &[u8]) -> Result<Directory, FormatError> {
    let missing = || {
        FormatError::new(
            "there is no archive directory at the end; the file is truncated or not a ZIP archive",
        )
    };
    let last = archive.len().checked_sub(DIRECTORY_END_BYTES).ok_or_else(missing)?;
    // A comment of up to 64 kB may follow; it must reach exactly to the end.
    let earliest = last.saturating_sub(u16::MAX as usize);
    let start = (earliest..=last)
        .rev()
        .find(|&start| {
            archive[start..].starts_with(&DIRECTORY_END)
                && u16::from_le_bytes([archive[start + 20], archive[start + 21]]) as usize == last - start
        })
        .ok_or_else(missing)?;
    let mut fields = Fields(&archive[start + 4..]);
    let (disk, directory_disk) = (fields.u16()?, fields.u16()?);
    let (_, count) = (fields.u16()?, fields.u16()?);
    let (size, offset) = (fields.u32()?, fields.u32()?);
    let has_64 =
        start.checked_sub(LOCATOR_BYTES).filter(|&at| archive[at..].starts_with(&DIRECTORY_LOCATOR_64));
    let Some(locator) = has_64 else {
        if disk != 0 || directory_disk != 0 {
            return Err(FormatError::new("archives of several disks are not read"));
        }
        return Ok(Directory { count: count.into(), size: size.into(), offset: offset.into() });
    };
    let mut fields = Fields(&archive[locator + 8..]);
    let record = part(archive, fields.u64()?, 56, "the archive's 64-bit directory record")?;
    if !record.starts_with(&DIRECTORY_END_64) {
        return Err(FormatError::new("the archive's 64-bit directory record is damaged"));
    }
    let mut fields = Fields(&record[32..]);
    Ok(Directory { count: fields.u64()?, size: fields.u64()?, offset: fields.u64()? })
}

fn read_directory_entry(archive: &[u8], fields: &mut Fields<'_>) -> Result<Member, FormatError> {
    if fields.take(4)? != DIRECTORY_ENTRY {
        return Err(FormatError::new("the archive's directory is damaged"));
    }
    fields.take(4)?; // versions
    let flags = fields.u16()?;
    let method = fields.u16()?;
    fields.take(4)?; // time and date
    let crc32 = fields.u32()?;
    let (mut stored_size, mut size): (u64, u64) = (fields.u32()?.into(), fields.u32()?.into());
    let (name_length, extra_length) = (fields.u16()?.into(), fields.u16()?.into());
    let comment_length = fields.u16()?.into();
    fields.take(8)?; // disk, attributes
    let mut header_offset: u64 = fields.u32()?.into();
    if name_length > MAX_NAME_BYTES {
        return Err(FormatError::new(format!("a member's name has {name_length} bytes")));
    }
    let name = std::str::from_utf8(fields.take(name_length)?)
        .map_err(|_| FormatError::new("a member's name is not UTF-8"))?
        .to_owned();
    let mut extra = Fields(fields.take(extra_length)?);
    fields.take(comment_length)?;

    // The 64-bit field holds, in this order, only those values that did not fit.
    while extra.0.len() >= 4 {
        let (identifier, length) = (extra.u16()?, extra.u16()?);
        let mut field = Fields(extra.take(length.into())?);
        if identifier == EXTRA_64 {
            for value in [&mut size, &mut stored_size, &mut header_offset] {
                if *value == u64::from(u32::MAX) {
                    *value = field.u64()?;
                }
            }
        }
    }
    if flags & FLAG_ENCRYPTED != 0 {
        return Err(FormatError::new("the member is encrypted").at(&name));
    }
    let deflated = match method {
        0 => false,
        8 => true,
        other => return Err(FormatError::new(format!("compression method {other} is not read")).at(&name)),
    };
    if !deflated && size != stored_size {
        return Err(FormatError::new("two different sizes of uncompressed content").at(&name));
    }
    let start = content_start(archive, header_offset, &name).map_err(|error| error.at(&name))?;
    part(archive, start, stored_size, "the content").map_err(|error| error.at(&name))?;
    let size = usize::try_from(size).map_err(|_| FormatError::new("too large for this machine").at(&name))?;
    Ok(Member { name, deflated, crc32, range: start as usize..(start + stored_size) as usize, size })
}

/// Where a member's content starts: behind its local header, whose own extra fields may differ from the directory's.
fn content_start(archive: &[u8], header_offset: u64, name: &str) -> Result<u64, FormatError> {
    let header = part(archive, header_offset, LOCAL_HEADER_BYTES, "the member's header")?;
    if !header.starts_with(&LOCAL_HEADER) {
        return Err(FormatError::new("the member's header is damaged"));
    }
    let mut lengths = Fields(&header[26..]);
    let (name_length, extra_length) = (lengths.u16()?, lengths.u16()?);
    let name_start = header_offset + LOCAL_HEADER_BYTES;
    if part(archive, name_start, name_length.into(), "the member's name")? != name.as_bytes() {
        return Err(FormatError::new("the member has another name in its header"));
    }
    Ok(name_start + u64::from(name_length) + u64::from(extra_length))
}

/// Takes little-endian numbers from the front of a slice.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], FormatError> {
        let (taken, rest) = self
            .0
            .split_at_checked(length)
            .ok_or_else(|| FormatError::new("a record of the archive's directory is cut short"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn number<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        Ok(self.take(N)?.try_into().expect("exactly N bytes were taken"))
    }

    fn u16(&mut self) -> Result<u16, FormatError> {
        self.number().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, FormatError> {
        self.number().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, FormatError> {
        self.number().map(u64::from_le_bytes)
    }
}
