//! Hugging Face's large models: safetensors files `<stem>-<p>-of-<P>.safetensors` in one folder, each with some of the
//! tensors. The index beside them is not needed: the files say what they have.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::reader::Safetensors;
use crate::checkpoint::error::FormatError;
use crate::checkpoint::io::limits::MAX_SHARDS;
use crate::checkpoint::source::{EntryList, Listing, TensorSource};
use crate::checkpoint::tensor::Format;
use crate::checkpoint::tensor::Tensor;
use crate::error::{Error, Result};
use crate::runtime::Interrupt;

/// The safetensors files of one model, put together.
#[derive(Debug)]
pub(crate) struct ShardedSafetensors {
    listing: Listing,
    shards: Vec<Safetensors>,
    /// Shard, and place in it, of each entry.
    origins: Vec<(usize, usize)>,
}

impl ShardedSafetensors {
    /// Opens the shards in `folder` whose names begin with `stem`, usually `model`; `None` if there are none.
    ///
    /// # Errors
    /// Shards are missing, cannot be read, are damaged, or have a tensor in common.
    pub(crate) fn open(folder: &Path, stem: &str) -> Result<Option<Self>> {
        let path = folder.display().to_string();
        let files = shard_files(folder, stem)?;
        let Some(&(_, count)) = files.keys().next() else { return Ok(None) };
        if !files.keys().copied().eq((1..=count).map(|index| (index, count))) {
            let message = format!("there are {} of {count} files {stem}-*-of-*.safetensors", files.len());
            return Err(FormatError::new(message).in_file(&path));
        }
        let mut list = EntryList::default();
        let mut shards = Vec::with_capacity(files.len());
        for file in files.into_values() {
            let shard = Safetensors::open(&file)?;
            for (index, entry) in shard.entries().iter().enumerate() {
                let place = (shards.len(), index);
                list.push(entry.name.clone(), entry.dtype.clone(), entry.shape.clone(), place)
                    .map_err(|error| error.in_file(shard.path()))?;
            }
            shards.push(shard);
        }
        let (entries, origins) = list.finish();
        let listing = Listing::new(Format::Safetensors, &path, entries);
        Ok(Some(Self { listing, shards, origins }))
    }
}

impl TensorSource for ShardedSafetensors {
    fn listing(&self) -> &Listing {
        &self.listing
    }

    fn read(&self, index: usize, interrupt: Interrupt<'_>) -> Result<Tensor<'_>> {
        let (shard, place) = self.origins[index];
        self.shards[shard].read(place, interrupt)
    }

    fn release(&self, index: usize) {
        let (shard, place) = self.origins[index];
        self.shards[shard].release(place);
    }
}

/// The shards of `stem` in `folder` by number (from 1) and count.
fn shard_files(folder: &Path, stem: &str) -> Result<BTreeMap<(usize, usize), PathBuf>> {
    let in_folder = |source| Error::Io { path: folder.display().to_string(), source };
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(folder).map_err(in_folder)? {
        let path = entry.map_err(in_folder)?.path();
        if let Some(number) = shard_number(&path.file_name().unwrap_or_default().to_string_lossy(), stem) {
            files.insert(number, path);
        }
    }
    Ok(files)
}

fn shard_number(name: &str, stem: &str) -> Option<(usize, usize)> {
    let (index, count) =
        name.strip_prefix(stem)?.strip_prefix('-')?.strip_suffix(".safetensors")?.split_once("-of-")?;
    let (index, count) = (index.parse().ok()?, count.parse().ok()?);
    (1 <= index && index <= count && count <= MAX_SHARDS).then_some((index, count))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{TensorToWrite, write_safetensors};
    use crate::runtime::never;

    #[test]
    fn shards_are_put_together_and_must_be_complete() {
        let folder = std::env::temp_dir().join(format!("sparse-mixer-shards-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        assert!(ShardedSafetensors::open(&folder, "model").unwrap().is_none());
        let write = |file: &str, name: &str, values: &[f32]| {
            let tensors = vec![TensorToWrite::from_f32(name, &[values.len()], values)];
            write_safetensors(&folder.join(file), &BTreeMap::new(), tensors, &never).unwrap();
        };
        write("model-00002-of-00002.safetensors", "b", &[2.0, 3.0]);
        let error = ShardedSafetensors::open(&folder, "model").unwrap_err().to_string();
        assert!(error.contains("1 of 2 files"), "{error}");
        write("model-00001-of-00002.safetensors", "a", &[1.0]);
        let model = ShardedSafetensors::open(&folder, "model").unwrap().unwrap();
        assert_eq!(model.entries().iter().map(|entry| &entry.name[..]).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(model.read(1, &never).unwrap().to_f32().unwrap(), [2.0, 3.0]);
        model.release(1);
        write("model-00001-of-00002.safetensors", "b", &[1.0]);
        assert!(ShardedSafetensors::open(&folder, "model").unwrap_err().to_string().contains("twice"));
        std::fs::remove_dir_all(folder).unwrap();
    }
}
