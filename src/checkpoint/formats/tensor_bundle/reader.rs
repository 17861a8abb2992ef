//! TensorFlow's tensor bundle: what `tf.train.Checkpoint`, `save_weights` and SavedModel write. `<prefix>.index` is a
//! sorted table (see [`super::sorted_table`]) from tensor names to their type, shape, place and checksum;
//! `<prefix>.data-<i>-of-<n>` hold the bytes.
//! Source: `tensorflow/core/protobuf/tensor_bundle.proto`.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use super::object_graph::{GRAPH_NAME, names_by_path};
use super::protobuf::{Value, fields, take, take_varint};
use super::sorted_table::{MAGIC, for_each_entry, masked, masked_crc32c};
use crate::checkpoint::error::FormatError;
use crate::checkpoint::formats::detect::{LFS, is_lfs_pointer, refuse_other_content};
use crate::checkpoint::io::file_bytes::FileBytes;
use crate::checkpoint::io::limits::{MAX_RANK, MAX_SHARDS, part};
use crate::checkpoint::source::{EntryList, Listing, TensorSource};
use crate::checkpoint::tensor::Format;
use crate::checkpoint::tensor::{Dtype, Entry, Tensor};
use crate::error::Result;
use crate::runtime::Interrupt;

/// How the names of a SavedModel's variables begin; a number follows.
const NUMBERED: &str = "variables/";

/// A TensorFlow checkpoint.
#[derive(Debug)]
pub struct TensorBundle {
    listing: Listing,
    shards: Vec<FileBytes>,
    places: Vec<Place>,
}

/// Where a tensor's bytes are, as the index says.
#[derive(Debug, Default, Clone, Copy)]
struct Place {
    shard: u64,
    offset: u64,
    size: u64,
    masked_crc32c: u32,
    is_partitioned: bool,
}

impl Place {
    fn find(self, shards: &[FileBytes]) -> Result<&[u8], FormatError> {
        let shard = usize::try_from(self.shard).ok().and_then(|shard| shards.get(shard));
        let shard = shard.ok_or_else(|| FormatError::new(format!("there is no data file {}", self.shard)))?;
        part(shard, self.offset, self.size, "the content").map_err(|error| match is_lfs_pointer(shard) {
            true => FormatError::new(LFS),
            false => error,
        })
    }
}

impl TensorBundle {
    /// Opens the checkpoint with this prefix: `<prefix>.index` and its data files.
    ///
    /// # Errors
    /// Files are missing, cannot be read, or the index is damaged.
    pub fn open(prefix: &Path) -> Result<Self> {
        let label = prefix.display().to_string();
        let index = FileBytes::open(&with_suffix(prefix, ".index"))?;
        let index = Index::parse(&index).map_err(|error| error.in_file(&format!("{label}.index")))?;
        let count = index.shard_count;
        let shards = (0..count)
            .map(|shard| FileBytes::open(&with_suffix(prefix, &format!(".data-{shard:05}-of-{count:05}"))))
            .collect::<Result<Vec<_>>>()?;
        Self::new(index, shards, &label).map_err(|error| error.in_file(&label))
    }

    /// Reads an index and the contents of its data files; `path` is their name in messages.
    ///
    /// # Errors
    /// The index is damaged or knows another number of data files.
    pub fn from_bytes(index: &[u8], shards: Vec<FileBytes>, path: &str) -> Result<Self> {
        let index = Index::parse(index).map_err(|error| error.in_file(path))?;
        if shards.len() != index.shard_count {
            let (expected, got) = (index.shard_count, shards.len());
            return Err(FormatError::new(format!("expected {expected} data files, got {got}")).in_file(path));
        }
        Self::new(index, shards, path).map_err(|error| error.in_file(path))
    }

    /// Checks that every tensor lies inside its data file: a truncated one is noticed at once.
    fn new(index: Index, shards: Vec<FileBytes>, path: &str) -> Result<Self, FormatError> {
        let (entries, places) = index.entries.finish();
        for (entry, place) in entries.iter().zip(&places).filter(|(_, place)| !place.is_partitioned) {
            place.find(&shards).map_err(|error| error.at(&entry.name))?;
        }
        let by_path = entries_by_path(&entries, &places, &shards).map_err(|error| error.at(GRAPH_NAME))?;
        let listing = Listing { by_path, ..Listing::new(Format::TensorBundle, path, entries) };
        Ok(Self { listing, shards, places })
    }

    fn read_tensor(&self, index: usize) -> Result<Tensor<'_>, FormatError> {
        let (entry, place) = (&self.listing.entries[index], self.places[index]);
        if place.is_partitioned {
            return Err(FormatError::new(
                "partitioned variables are not read; save the model without partitioning",
            ));
        }
        if entry.dtype.size().is_none() {
            return Err(FormatError::new(format!("elements of type {} are not read", entry.dtype)));
        }
        let bytes = place.find(&self.shards)?;
        let tensor = Tensor::new(entry.dtype.clone(), entry.shape.clone(), Cow::Borrowed(bytes))?;
        if masked_crc32c(bytes) != place.masked_crc32c {
            return Err(FormatError::new("the content does not match its checksum; the file is damaged"));
        }
        Ok(tensor)
    }
}

impl TensorSource for TensorBundle {
    fn listing(&self) -> &Listing {
        &self.listing
    }

    fn read(&self, index: usize, _: Interrupt<'_>) -> Result<Tensor<'_>> {
        self.read_tensor(index)
            .map_err(|error| error.at(&self.listing.entries[index].name).in_file(&self.listing.path))
    }

    fn release(&self, index: usize) {
        let place = self.places[index];
        if !place.is_partitioned {
            // These numbers lie inside the file, as was checked when it was opened.
            let start = place.offset as usize;
            self.shards[place.shard as usize].release(start..start + place.size as usize);
        }
    }
}

/// The entries of a SavedModel under the paths of their objects, if they are numbered and the file has the graph.
fn entries_by_path(
    entries: &[Entry],
    places: &[Place],
    shards: &[FileBytes],
) -> Result<Option<Vec<Entry>>, FormatError> {
    let graph = entries.iter().position(|entry| entry.name == GRAPH_NAME && entry.shape.is_empty());
    let (true, Some(graph)) = (entries.iter().any(|entry| entry.name.starts_with(NUMBERED)), graph) else {
        return Ok(None);
    };
    let mut names = names_by_path(read_text(places[graph].find(shards)?, places[graph].masked_crc32c)?)?;
    let mut list = EntryList::default();
    for entry in entries {
        let name = names.remove(entry.name.as_str()).unwrap_or_else(|| entry.name.clone());
        list.push(name, entry.dtype.clone(), entry.shape.clone(), ())?;
    }
    Ok(Some(list.finish().0))
}

/// The one text in the content of a tensor of texts: its length, a checksum of the length, the text. The tensor's own
/// checksum covers the length as a number of 32 bits, or of 64 where it needs them.
/// Source: `tensorflow/core/util/tensor_bundle/tensor_bundle.cc`, `WriteStringTensor`.
fn read_text(mut content: &[u8], masked_checksum: u32) -> Result<&[u8], FormatError> {
    let length = take_varint(&mut content)?;
    let stored = take(&mut content, 4)?;
    let checksum = match u32::try_from(length) {
        Ok(short) => crc32c::crc32c(&short.to_le_bytes()),
        Err(_) => crc32c::crc32c(&length.to_le_bytes()),
    };
    let whole = crc32c::crc32c_append(crc32c::crc32c_append(checksum, stored), content);
    if stored != masked(checksum).to_le_bytes()
        || masked(whole) != masked_checksum
        || content.len() as u64 != length
    {
        return Err(FormatError::new("the content does not match its checksum; the file is damaged"));
    }
    Ok(content)
}

fn with_suffix(prefix: &Path, suffix: &str) -> PathBuf {
    let mut path = prefix.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

/// The content of an index file.
struct Index {
    shard_count: usize,
    entries: EntryList<Place>,
}

impl Index {
    fn parse(file: &[u8]) -> Result<Self, FormatError> {
        if !file.ends_with(&MAGIC) {
            refuse_other_content(file)?;
        }
        let mut shard_count = None;
        let mut entries = EntryList::default();
        for_each_entry(file, |key, value| {
            if key.is_empty() {
                shard_count = Some(read_header(value)?);
                return Ok(());
            }
            let name =
                std::str::from_utf8(key).map_err(|_| FormatError::new("a tensor name is not UTF-8"))?;
            let (dtype, shape, place) = read_entry(value).map_err(|error| error.at(name))?;
            entries.push(name.to_owned(), dtype, shape, place)
        })?;
        let shard_count = shard_count.ok_or_else(|| FormatError::new("the index has no header"))?;
        Ok(Self { shard_count, entries })
    }
}

/// Reads the `BundleHeaderProto`: the number of data files.
fn read_header(message: &[u8]) -> Result<usize, FormatError> {
    let mut shard_count = 0;
    for field in fields(message) {
        match field? {
            (1, Value::Varint(count)) => shard_count = count,
            (2, Value::Varint(endianness)) if endianness != 0 => {
                return Err(FormatError::new("big-endian checkpoints are not read"));
            }
            _ => {}
        }
    }
    usize::try_from(shard_count).ok().filter(|&count| count <= MAX_SHARDS).ok_or_else(|| {
        FormatError::new(format!("there should be {shard_count} data files, at most {MAX_SHARDS} are read"))
    })
}

/// Reads a `BundleEntryProto`. Fields that are zero are absent.
fn read_entry(message: &[u8]) -> Result<(Dtype, Vec<usize>, Place), FormatError> {
    let mut dtype = 0;
    let mut shape = Vec::new();
    let mut place = Place::default();
    for field in fields(message) {
        match field? {
            (1, Value::Varint(value)) => dtype = value,
            (2, Value::Bytes(message)) => shape = read_shape(message)?,
            (3, Value::Varint(shard)) => place.shard = shard,
            (4, Value::Varint(offset)) => place.offset = offset,
            (5, Value::Varint(size)) => place.size = size,
            (6, Value::Fixed32(checksum)) => place.masked_crc32c = checksum,
            (7, Value::Bytes(_)) => place.is_partitioned = true,
            _ => {}
        }
    }
    // Numbers of `tensorflow/core/framework/types.proto`.
    let dtype = match dtype {
        1 => Dtype::F32,
        2 => Dtype::F64,
        3 => Dtype::I32,
        4 => Dtype::U8,
        5 => Dtype::I16,
        6 => Dtype::I8,
        7 => Dtype::Other("string".to_owned()),
        9 => Dtype::I64,
        10 => Dtype::Bool,
        14 => Dtype::BF16,
        17 => Dtype::U16,
        19 => Dtype::F16,
        22 => Dtype::U32,
        23 => Dtype::U64,
        other => Dtype::Other(format!("TensorFlow type {other}")),
    };
    Ok((dtype, shape, place))
}

/// Reads a `TensorShapeProto`: repeated field 2, each with its size in field 1.
fn read_shape(message: &[u8]) -> Result<Vec<usize>, FormatError> {
    let mut shape = Vec::new();
    for field in fields(message) {
        let (2, Value::Bytes(dimension)) = field? else { continue };
        if shape.len() == MAX_RANK {
            return Err(FormatError::new(format!("a shape has more than {MAX_RANK} dimensions")));
        }
        let mut size = 0;
        for field in fields(dimension) {
            if let (1, Value::Varint(value)) = field? {
                size = value;
            }
        }
        shape.push(
            usize::try_from(size).map_err(|_| FormatError::new(format!("the size {size} is too large")))?,
        );
    }
    Ok(shape)
}
