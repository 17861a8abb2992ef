//! Flax msgpack checkpoints, as the original Sparse Mixer code writes them.
//!
//! Leaves appear under their slash-joined paths, `params/encoder/...`.
//!
//! A training step may be split over files of one folder: `replicated_checkpoint_<step>` and, when the model has
//! experts, one `shard-<p>-of-<P>_checkpoint_<step>` per host. All hold the same tree; leaves that belong to the other
//! kind of file are empty. A leaf is sharded if its path contains `expert`. In shard `p` it has the shape
//! `[D, x, e, y...]` (`D` devices of `e` experts each) and stands for
//! `full[x, (p*D + l)*e + j, y...] = shard_p[l, x, j, y...]`; the entries here are the full leaves.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

use super::document::Document;
use super::step_files::files_of_step;
use crate::checkpoint::error::FormatError;
use crate::checkpoint::formats::detect::refuse_other_content;
use crate::checkpoint::io::file_bytes::FileBytes;
use crate::checkpoint::permute::permute_axes;
use crate::checkpoint::source::{EntryList, Listing, TensorSource};
use crate::checkpoint::tensor::Format;
use crate::checkpoint::tensor::{Dtype, Tensor};
use crate::error::Result;
use crate::runtime::Interrupt;

/// Leaves whose path contains this are split over the shard files.
const SHARDED_MARK: &str = "expert";

/// A Flax checkpoint: one file, or the files of one training step put together.
#[derive(Debug)]
pub struct Flax {
    listing: Listing,
    /// The replicated (or only) file first, then the shards in order.
    files: Vec<Document>,
    origins: Vec<Origin>,
}

/// Where a leaf comes from: an entry of the first file, or one entry of every shard file.
#[derive(Debug)]
enum Origin {
    Whole(usize),
    Sharded(Vec<usize>),
}

impl Flax {
    /// Opens a checkpoint file, or the latest complete training step in a folder (or in the one folder inside it). For
    /// one file of a split step, the other files of the step are found beside it.
    ///
    /// # Errors
    /// Files cannot be read, are damaged, do not fit together, or shards are missing.
    pub fn open(path: &Path) -> Result<Self> {
        let label = path.display().to_string();
        let documents = files_of_step(path)?
            .iter()
            .map(|file| {
                let label = file.display().to_string();
                let bytes = FileBytes::open(file)?;
                refuse_other_content(&bytes).map_err(|error| error.in_file(&label))?;
                Document::parse(bytes).map_err(|error| error.in_file(&label))
            })
            .collect::<Result<Vec<_>>>()?;
        Self::assemble(documents, &label).map_err(|error| error.in_file(&label))
    }

    /// Puts together the contents of a replicated (or only) file and of the shard files in order; `path` is their name
    /// in messages.
    ///
    /// # Errors
    /// The contents are damaged or do not fit together.
    pub fn from_bytes(files: Vec<FileBytes>, path: &str) -> Result<Self> {
        let documents: Result<Vec<_>, FormatError> = files.into_iter().map(Document::parse).collect();
        documents.and_then(|documents| Self::assemble(documents, path)).map_err(|error| error.in_file(path))
    }

    fn assemble(files: Vec<Document>, path: &str) -> Result<Self, FormatError> {
        let (first, shards) = files.split_first().ok_or_else(|| FormatError::new("there is no file"))?;
        let by_name: Vec<HashMap<&str, usize>> = shards.iter().map(Document::by_name).collect();
        let sizes: HashMap<&str, &[usize]> =
            first.entries.iter().map(|entry| (entry.name.as_str(), &entry.shape[..])).collect();
        let mut list = EntryList::default();
        for (index, entry) in first.entries.iter().enumerate() {
            let is_placeholder = entry.shape == [0] && entry.name.contains(SHARDED_MARK);
            if !is_placeholder {
                list.push(
                    entry.name.clone(),
                    entry.dtype.clone(),
                    entry.shape.clone(),
                    Origin::Whole(index),
                )?;
                continue;
            }
            if shards.is_empty() {
                return Err(FormatError::new(format!(
                    "'{}' is empty here: the experts are in files shard-*-of-*_checkpoint_*, which are missing",
                    entry.name
                )));
            }
            let (dtype, shape, parts) =
                merged_leaf(&entry.name, shards, &by_name).map_err(|error| error.at(&entry.name))?;
            check_against_router(&entry.name, shape[1], &sizes)?;
            list.push(entry.name.clone(), dtype, shape, Origin::Sharded(parts))?;
        }
        let (entries, origins) = list.finish();
        Ok(Self { listing: Listing::new(Format::Flax, path, entries), files, origins })
    }

    fn read_leaf(&self, index: usize) -> Result<Tensor<'_>, FormatError> {
        let entry = &self.listing.entries[index];
        let parts = match &self.origins[index] {
            Origin::Whole(leaf) => return self.files[0].read(*leaf),
            Origin::Sharded(parts) => parts,
        };
        let mut rows = Vec::with_capacity(parts.len());
        for (file, &leaf) in self.files[1..].iter().zip(parts) {
            let tensor = file.read(leaf)?;
            let item_size = tensor.dtype().size().expect("a tensor with bytes has a known type");
            let mut axes: Vec<usize> = (0..tensor.shape().len()).collect();
            axes.swap(0, 1);
            rows.push(permute_axes(tensor.bytes(), item_size, tensor.shape(), &axes));
        }
        // Each part is now [x, D*e*y...]: a row of the whole is the parts' rows one after the other.
        let mut bytes = Vec::with_capacity(rows.iter().map(Vec::len).sum());
        let count = entry.shape[0];
        for row in 0..count {
            for part in &rows {
                let length = part.len() / count;
                bytes.extend_from_slice(&part[row * length..(row + 1) * length]);
            }
        }
        Tensor::new(entry.dtype.clone(), entry.shape.clone(), Cow::Owned(bytes))
    }
}

impl TensorSource for Flax {
    fn listing(&self) -> &Listing {
        &self.listing
    }

    fn read(&self, index: usize, _: Interrupt<'_>) -> Result<Tensor<'_>> {
        self.read_leaf(index)
            .map_err(|error| error.at(&self.listing.entries[index].name).in_file(&self.listing.path))
    }

    fn release(&self, index: usize) {
        match &self.origins[index] {
            Origin::Whole(leaf) => self.files[0].release(*leaf),
            Origin::Sharded(parts) => {
                for (file, &leaf) in self.files[1..].iter().zip(parts) {
                    file.release(leaf);
                }
            }
        }
    }
}

/// Finds a sharded leaf in every shard: its type, its full shape, and its index in each shard.
fn merged_leaf(
    name: &str,
    shards: &[Document],
    by_name: &[HashMap<&str, usize>],
) -> Result<(Dtype, Vec<usize>, Vec<usize>), FormatError> {
    let parts: Option<Vec<usize>> = by_name.iter().map(|names| names.get(name).copied()).collect();
    let parts = parts.ok_or_else(|| FormatError::new("missing in a shard file"))?;
    let entry = &shards[0].entries[parts[0]];
    let [devices, rows, experts, rest @ ..] = &entry.shape[..] else {
        return Err(FormatError::new(format!(
            "expected shape [devices, ?, experts, ...], got {:?}",
            entry.shape
        )));
    };
    for (shard, &part) in shards.iter().zip(&parts) {
        let other = &shard.entries[part];
        if (&other.shape, &other.dtype) != (&entry.shape, &entry.dtype) {
            return Err(FormatError::new(format!(
                "the shards disagree: {} of shape {:?} and {} of shape {:?}",
                entry.dtype, entry.shape, other.dtype, other.shape
            )));
        }
    }
    let experts = (devices * experts)
        .checked_mul(shards.len())
        .ok_or_else(|| FormatError::new(format!("the shape {:?} is too large", entry.shape)))?;
    let mut shape = vec![*rows, experts];
    shape.extend(rest);
    Ok((entry.dtype.clone(), shape, parts))
}

/// The experts that the shards hold must be as many as the router of the same layer knows.
fn check_against_router(
    name: &str,
    experts: usize,
    shapes: &HashMap<&str, &[usize]>,
) -> Result<(), FormatError> {
    let router = name.split_once("/expert_").and_then(|(before, after)| {
        let (layer, _) = after.split_once('/')?;
        shapes.get(format!("{before}/router_weights_{layer}/DenseGeneral_0/kernel").as_str())
    });
    match router.and_then(|shape| shape.last()) {
        Some(&routed) if routed != experts => Err(FormatError::new(format!(
            "'{name}': the shard files hold {experts} experts, the router has {routed}; shards are missing"
        ))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::never;

    /// A document `{"params": {name: f32 array}}`; the payloads are below 256 bytes.
    fn document(leaves: &[(&str, &[u8], &[f32])]) -> FileBytes {
        let mut out = vec![0x81, 0xa6];
        out.extend(b"params");
        out.push(0x80 | leaves.len() as u8);
        for (name, shape, values) in leaves {
            let mut payload = vec![0x93, 0x90 | shape.len() as u8];
            payload.extend(*shape);
            payload.push(0xa0 | 7);
            payload.extend(b"float32");
            payload.extend([0xc4, (values.len() * 4) as u8]);
            payload.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            out.extend([0xd9, name.len() as u8]);
            out.extend(name.as_bytes());
            out.extend([0xc7, payload.len() as u8, 1]);
            out.extend(payload);
        }
        FileBytes::from(out)
    }

    const KERNEL: &str = "expert_1/k";

    #[test]
    fn shards_interleave_by_process_device_and_expert() {
        // x = 2 rows; 2 processes of 2 devices of 1 expert: value = 10 * row + global expert.
        let replicated = document(&[(KERNEL, &[0], &[]), ("pooler/k", &[1], &[7.0])]);
        let shard = |p: f32| [2.0 * p, 10.0 + 2.0 * p, 2.0 * p + 1.0, 11.0 + 2.0 * p];
        let files = vec![
            replicated,
            document(&[(KERNEL, &[2, 2, 1], &shard(0.0)), ("pooler/k", &[0], &[])]),
            document(&[(KERNEL, &[2, 2, 1], &shard(1.0)), ("pooler/k", &[0], &[])]),
        ];
        let flax = Flax::from_bytes(files, "memory").unwrap();
        assert_eq!(flax.entries()[0].name, "params/expert_1/k");
        assert_eq!(flax.entries()[0].shape, [2, 4]);
        let expected = [0.0, 1.0, 2.0, 3.0, 10.0, 11.0, 12.0, 13.0];
        assert_eq!(flax.read(0, &never).unwrap().to_f32().unwrap(), expected);
        assert_eq!(flax.read(1, &never).unwrap().to_f32().unwrap(), [7.0]);
    }

    #[test]
    fn missing_and_unequal_shards_are_refused() {
        let replicated = || document(&[(KERNEL, &[0], &[])]);
        let error = |files| Flax::from_bytes(files, "memory").unwrap_err().to_string();
        assert!(error(vec![replicated()]).contains("missing"));
        assert!(error(vec![replicated(), document(&[])]).contains("missing"));
        let (one, other) =
            (document(&[(KERNEL, &[1, 1, 1], &[0.0])]), document(&[(KERNEL, &[1, 1, 0], &[])]));
        assert!(error(vec![replicated(), one, other]).contains("disagree"));
        let router = ("router_weights_1/DenseGeneral_0/kernel", &[1u8, 4][..], &[0.0f32; 4][..]);
        let few =
            vec![document(&[(KERNEL, &[0], &[]), router]), document(&[(KERNEL, &[1, 1, 2], &[0.0, 0.0])])];
        assert!(error(few).contains("2 experts"));
    }
}
