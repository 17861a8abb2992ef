//! What every reader offers: a list of entries, each read on its own.

use std::collections::{BTreeMap, HashSet};

use super::error::FormatError;
use super::io::limits::{MAX_NAME_BYTES, MAX_NAMES_BYTES, MAX_TENSORS, element_count};
use super::tensor::{Dtype, Entry, Format, Tensor};
use crate::error::Result;
use crate::params::PackedForm;
use crate::runtime::Interrupt;
use crate::sys::FilePart;

/// What a file says of itself, whatever its format.
#[derive(Debug)]
pub struct Listing {
    /// The file format.
    pub format: Format,
    /// The file or folder, for messages.
    pub path: String,
    /// All tensors, in the file's order.
    pub entries: Vec<Entry>,
    /// The same tensors under names that say what they are, where the file numbers them and tells their names apart.
    pub by_path: Option<Vec<Entry>>,
    /// Text that the file carries beside its tensors.
    pub metadata: BTreeMap<String, String>,
}

impl Listing {
    /// That of a file without text.
    pub(super) fn new(format: Format, path: &str, entries: Vec<Entry>) -> Self {
        Self { format, path: path.to_owned(), entries, by_path: None, metadata: BTreeMap::new() }
    }
}

/// Tensors that can be listed at once and read one at a time.
pub trait TensorSource: Send + Sync {
    /// What there is.
    fn listing(&self) -> &Listing;

    /// The file format.
    fn format(&self) -> Format {
        self.listing().format
    }

    /// The file or folder, for messages.
    fn path(&self) -> &str {
        &self.listing().path
    }

    /// All tensors, in the file's order.
    fn entries(&self) -> &[Entry] {
        &self.listing().entries
    }

    /// Text that the file carries beside its tensors.
    fn metadata(&self) -> &BTreeMap<String, String> {
        &self.listing().metadata
    }

    /// Reads the entry at `index`, verifying its checksum where the format has one; asks the interrupt where it takes
    /// long.
    ///
    /// # Errors
    /// The content is damaged, or of a kind that is listed but not read (text, pickled objects); [`crate::Error::Interrupted`].
    ///
    /// # Panics
    /// `index` is not below `entries().len()`.
    fn read(&self, index: usize, interrupt: Interrupt<'_>) -> Result<Tensor<'_>>;

    /// The entry at `index` where the file holds it in the form in which layers use it. Its checksum is not compared.
    fn packed(&self, index: usize) -> Option<(PackedForm, FilePart<'_>)> {
        let _ = index;
        None
    }

    /// Says that the entry at `index` will not be read again soon, so that mapped pages can go.
    fn release(&self, index: usize);
}

/// Builds a list of entries, each with its place `L` in the file, and refuses what no honest file has.
#[derive(Debug)]
pub(super) struct EntryList<L> {
    entries: Vec<Entry>,
    places: Vec<L>,
    /// Hashes would do, but names are needed for an exact answer; the limit on their total keeps this small.
    seen: HashSet<String>,
    names_bytes: usize,
}

impl<L> Default for EntryList<L> {
    fn default() -> Self {
        Self { entries: Vec::new(), places: Vec::new(), seen: HashSet::new(), names_bytes: 0 }
    }
}

impl<L> EntryList<L> {
    /// Adds an entry that lies at `place`.
    pub(super) fn push(
        &mut self,
        name: String,
        dtype: Dtype,
        shape: Vec<usize>,
        place: L,
    ) -> Result<(), FormatError> {
        if name.len() > MAX_NAME_BYTES {
            return Err(FormatError::new(format!(
                "a tensor name has {} bytes, at most {MAX_NAME_BYTES} are read",
                name.len()
            )));
        }
        self.names_bytes += name.len();
        if self.names_bytes > MAX_NAMES_BYTES {
            return Err(FormatError::new(format!("the tensor names have more than {MAX_NAMES_BYTES} bytes")));
        }
        if self.entries.len() == MAX_TENSORS {
            return Err(FormatError::new(format!("there are more than {MAX_TENSORS} tensors")));
        }
        element_count(&shape).map_err(|error| error.at(&name))?;
        if !self.seen.insert(name.clone()) {
            return Err(FormatError::new(format!("the name '{name}' occurs twice")));
        }
        self.entries.push(Entry { name, dtype, shape });
        self.places.push(place);
        Ok(())
    }

    /// The entries and their places, in the order they were added.
    pub(super) fn finish(self) -> (Vec<Entry>, Vec<L>) {
        (self.entries, self.places)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duplicates_and_long_names_are_refused() {
        let mut list = EntryList::default();
        list.push("a".into(), Dtype::F32, vec![2], ()).unwrap();
        assert!(list.push("a".into(), Dtype::F32, vec![2], ()).is_err());
        assert!(list.push("b".repeat(MAX_NAME_BYTES + 1), Dtype::F32, vec![], ()).is_err());
        assert!(list.push("c".into(), Dtype::F32, vec![usize::MAX, 3], ()).is_err());
        assert_eq!(list.finish().0.len(), 1);
    }
}
