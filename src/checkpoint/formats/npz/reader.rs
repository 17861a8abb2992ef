//! NumPy's `.npz`: a ZIP archive of `.npy` arrays. Arrays of Python objects, which need `pickle`, are listed but never
//! read.

use std::borrow::Cow;

use super::npy::NpyHeader;
use super::zip::{Member, members};
use crate::checkpoint::error::FormatError;
use crate::checkpoint::formats::detect::PYTORCH;
use crate::checkpoint::io::file_bytes::FileBytes;
use crate::checkpoint::io::limits::{MAX_NPY_HEADER, byte_count};
use crate::checkpoint::permute::permute_axes;
use crate::checkpoint::source::{EntryList, Listing, TensorSource};
use crate::checkpoint::tensor::Format;
use crate::checkpoint::tensor::Tensor;
use crate::error::Result;
use crate::runtime::Interrupt;

/// An `.npz` archive.
#[derive(Debug)]
pub struct Npz {
    listing: Listing,
    bytes: FileBytes,
    arrays: Vec<Array>,
}

#[derive(Debug)]
struct Array {
    member: Member,
    data_start: usize,
    fortran_order: bool,
}

impl Npz {
    /// Reads a file's content; `path` is its name in messages.
    ///
    /// # Errors
    /// The content is not a valid archive of arrays.
    pub fn from_bytes(bytes: FileBytes, path: &str) -> Result<Self> {
        Self::parse(bytes, path).map_err(|error| error.in_file(path))
    }

    fn parse(bytes: FileBytes, path: &str) -> Result<Self, FormatError> {
        let mut list = EntryList::default();
        let members = members(&bytes)?;
        if let Some(what) = other_archive(&members) {
            return Err(FormatError::new(what));
        }
        for member in members {
            let Some(name) = member.name.strip_suffix(".npy") else {
                return Err(FormatError::new(format!(
                    "'{}' is not an array, so this is not an .npz archive; unpack it and give the file or folder in it",
                    member.name
                )));
            };
            let name = name.to_owned();
            let head = member.peek(&bytes, 16 + MAX_NPY_HEADER).map_err(|error| error.at(&name))?;
            let header = NpyHeader::parse(&head).map_err(|error| error.at(&name))?;
            if let Some(item_size) = header.dtype.size() {
                let expected = byte_count(&header.shape, item_size)?;
                if member.size.checked_sub(header.data_start) != Some(expected) {
                    return Err(FormatError::new(format!(
                        "{} of shape {:?} takes {expected} bytes, the archive has {} with the header",
                        header.dtype, header.shape, member.size
                    ))
                    .at(&name));
                }
            }
            let array = Array { member, data_start: header.data_start, fortran_order: header.fortran_order };
            list.push(name, header.dtype, header.shape, array)?;
        }
        let (entries, arrays) = list.finish();
        Ok(Self { listing: Listing::new(Format::Npz, path, entries), bytes, arrays })
    }

    fn read_array(&self, index: usize, interrupt: Interrupt<'_>) -> Result<Tensor<'_>, FormatError> {
        let (entry, array) = (&self.listing.entries[index], &self.arrays[index]);
        let Some(item_size) = entry.dtype.size() else {
            return Err(FormatError::new(format!("elements of type {} are not read", entry.dtype)));
        };
        let data = match array.member.read(&self.bytes, interrupt)? {
            Cow::Borrowed(content) => Cow::Borrowed(&content[array.data_start..]),
            Cow::Owned(mut content) => {
                content.drain(..array.data_start);
                Cow::Owned(content)
            }
        };
        if !array.fortran_order || entry.shape.len() < 2 {
            return Tensor::new(entry.dtype.clone(), entry.shape.clone(), data);
        }
        // The data is that of the transposed array in C order: transpose it back.
        let reversed: Vec<usize> = entry.shape.iter().rev().copied().collect();
        let axes: Vec<usize> = (0..reversed.len()).rev().collect();
        let bytes = permute_axes(&data, item_size, &reversed, &axes);
        Tensor::new(entry.dtype.clone(), entry.shape.clone(), Cow::Owned(bytes))
    }
}

/// What an archive is that holds something else than arrays.
fn other_archive(members: &[Member]) -> Option<&'static str> {
    let ends = |end: &str| members.iter().any(|member| member.name.ends_with(end));
    if ends("/data.pkl") {
        return Some(PYTORCH);
    }
    ends("model.weights.h5").then_some(".keras files are read by the Python package (extra 'h5')")
}

impl TensorSource for Npz {
    fn listing(&self) -> &Listing {
        &self.listing
    }

    fn read(&self, index: usize, interrupt: Interrupt<'_>) -> Result<Tensor<'_>> {
        self.read_array(index, interrupt)
            .map_err(|error| error.at(&self.listing.entries[index].name).in_file(&self.listing.path))
    }

    fn release(&self, index: usize) {
        self.bytes.release(self.arrays[index].member.range.clone());
    }
}
