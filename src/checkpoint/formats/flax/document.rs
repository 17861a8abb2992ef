//! One Flax msgpack file: nested maps whose leaves are extension values of type 1 (array) or 3 (scalar) that hold
//! `[shape, dtype name, bytes]`; arrays of more than 2^30 bytes are maps of chunks.
//! Source: `flax/serialization.py`, the same since Flax 0.5.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;

use super::msgpack::{Decoder, Token};
use crate::checkpoint::error::FormatError;
use crate::checkpoint::io::file_bytes::FileBytes;
use crate::checkpoint::io::limits::{MAX_DEPTH, MAX_RANK, byte_count};
use crate::checkpoint::source::EntryList;
use crate::checkpoint::tensor::Entry;
use crate::checkpoint::tensor::{Dtype, Tensor};

const EXTENSION_ARRAY: i8 = 1;
const EXTENSION_SCALAR: i8 = 3;
/// First key of the map that stands for an array of chunks.
const CHUNKED_ARRAY_KEY: &str = "__msgpack_chunked_array__";

/// One msgpack file: its leaves and where their bytes are.
#[derive(Debug)]
pub(super) struct Document {
    bytes: FileBytes,
    pub(super) entries: Vec<Entry>,
    /// The pieces of each leaf: one, except for chunked arrays.
    pieces: Vec<Vec<Range<usize>>>,
}

impl Document {
    /// Lists the leaves of the file's content.
    pub(super) fn parse(bytes: FileBytes) -> Result<Self, FormatError> {
        let mut decoder = Decoder::new(&bytes, 0..bytes.len());
        let Token::Map(length) = decoder.next()? else {
            return Err(FormatError::new("not a Flax checkpoint: it does not start with a map"));
        };
        let mut tree = Tree { bytes: &bytes, path: String::new(), leaves: EntryList::default() };
        tree.walk_map(&mut decoder, length, MAX_DEPTH)?;
        if !decoder.is_at_end() {
            return Err(FormatError::new("there is something after the end of the checkpoint"));
        }
        let (entries, pieces) = tree.leaves.finish();
        Ok(Self { bytes, entries, pieces })
    }

    /// The index of every leaf by its path.
    pub(super) fn by_name(&self) -> HashMap<&str, usize> {
        self.entries.iter().enumerate().map(|(index, entry)| (entry.name.as_str(), index)).collect()
    }

    /// The leaf at index `leaf`.
    pub(super) fn read(&self, leaf: usize) -> Result<Tensor<'_>, FormatError> {
        let entry = &self.entries[leaf];
        let bytes = match &self.pieces[leaf][..] {
            [piece] => Cow::Borrowed(&self.bytes[piece.clone()]),
            pieces => {
                let total = pieces.iter().map(Range::len).sum();
                let mut bytes = Vec::with_capacity(total);
                for piece in pieces {
                    bytes.extend_from_slice(&self.bytes[piece.clone()]);
                }
                Cow::Owned(bytes)
            }
        };
        Tensor::new(entry.dtype.clone(), entry.shape.clone(), bytes)
    }

    /// Says that the leaf will not be read again soon.
    pub(super) fn release(&self, leaf: usize) {
        for piece in &self.pieces[leaf] {
            self.bytes.release(piece.clone());
        }
    }
}

/// Collects leaves while walking down a document.
struct Tree<'a> {
    bytes: &'a [u8],
    /// Path of the node being read.
    path: String,
    leaves: EntryList<Vec<Range<usize>>>,
}

impl<'a> Tree<'a> {
    /// Reads the content of a map of `length` keys that may nest `depth` levels further.
    fn walk_map(
        &mut self,
        decoder: &mut Decoder<'a>,
        length: usize,
        depth: usize,
    ) -> Result<(), FormatError> {
        let Some(depth) = depth.checked_sub(1) else {
            return Err(FormatError::new(format!("maps are nested more than {MAX_DEPTH} deep")));
        };
        for position in 0..length {
            let key = decoder.expect_text()?;
            if position == 0 && key == CHUNKED_ARRAY_KEY {
                return self.chunked_array(decoder, length, depth);
            }
            let parent = self.path.len();
            if parent > 0 {
                self.path.push('/');
            }
            self.path.push_str(key);
            self.value(decoder, depth)?;
            self.path.truncate(parent);
        }
        Ok(())
    }

    fn value(&mut self, decoder: &mut Decoder<'a>, depth: usize) -> Result<(), FormatError> {
        match decoder.next()? {
            Token::Map(length) => self.walk_map(decoder, length, depth),
            Token::Extension(EXTENSION_ARRAY | EXTENSION_SCALAR, payload) => {
                let leaf = read_array(self.bytes, payload).map_err(|error| error.at(&self.path))?;
                self.leaves.push(self.path.clone(), leaf.dtype, leaf.shape, vec![leaf.data])
            }
            // State dictionaries turn lists into maps, so an array is not a tree of weights: step over it.
            Token::Array(length) => {
                for _ in 0..length {
                    decoder.skip(depth)?;
                }
                self.other("list")
            }
            Token::Nil => Ok(()),
            Token::Extension(..) => self.other("extension"),
            Token::Integer(_) => self.other("integer"),
            Token::Float => self.other("float"),
            Token::Bool => self.other("bool"),
            Token::Text(_) => self.other("text"),
            Token::Binary(_) => self.other("bytes"),
        }
    }

    /// Lists a value that is not an array and is therefore not read.
    fn other(&mut self, kind: &str) -> Result<(), FormatError> {
        self.leaves.push(self.path.clone(), Dtype::Other(kind.to_owned()), Vec::new(), Vec::new())
    }

    /// Reads the rest of `{CHUNKED_ARRAY_KEY: true, "shape": {"0": ..}, "chunks": {"0": array, ..}}` of `length` keys.
    fn chunked_array(
        &mut self,
        decoder: &mut Decoder<'a>,
        length: usize,
        depth: usize,
    ) -> Result<(), FormatError> {
        decoder.skip(depth)?;
        let (mut shape, mut dtype, mut chunks) = (Vec::new(), None, Vec::new());
        for _ in 1..length {
            let key = decoder.expect_text()?;
            let Token::Map(count) = decoder.next()? else {
                return Err(FormatError::new("a chunked array is damaged").at(&self.path));
            };
            for position in 0..count {
                if decoder.expect_text()? != position.to_string() {
                    return Err(FormatError::new("the chunks of an array are not in order").at(&self.path));
                }
                match key {
                    "shape" if position < MAX_RANK => shape.push(decoder.expect_size()?),
                    "chunks" => {
                        let Token::Extension(EXTENSION_ARRAY, payload) = decoder.next()? else {
                            return Err(FormatError::new("a chunk is not an array").at(&self.path));
                        };
                        let chunk = read_array(self.bytes, payload).map_err(|error| error.at(&self.path))?;
                        if dtype.get_or_insert_with(|| chunk.dtype.clone()) != &chunk.dtype {
                            return Err(
                                FormatError::new("the chunks of an array differ in type").at(&self.path)
                            );
                        }
                        chunks.push(chunk.data);
                    }
                    _ => return Err(FormatError::new("a chunked array is damaged").at(&self.path)),
                }
            }
        }
        let dtype = dtype.ok_or_else(|| FormatError::new("a chunked array has no chunks").at(&self.path))?;
        let total: usize = chunks.iter().map(Range::len).sum();
        let item_size =
            dtype.size().ok_or_else(|| FormatError::new(format!("{dtype} in chunks is not read")))?;
        if total != byte_count(&shape, item_size)? {
            return Err(
                FormatError::new(format!("the chunks do not add up to the shape {shape:?}")).at(&self.path)
            );
        }
        self.leaves.push(self.path.clone(), dtype, shape, chunks)
    }
}

struct Leaf {
    dtype: Dtype,
    shape: Vec<usize>,
    data: Range<usize>,
}

/// Reads `[shape, dtype name, bytes]` from the extension payload at `payload`.
fn read_array(bytes: &[u8], payload: Range<usize>) -> Result<Leaf, FormatError> {
    let damaged = || FormatError::new("an array is not [shape, type, bytes]");
    let mut decoder = Decoder::new(bytes, payload);
    if decoder.next()? != Token::Array(3) {
        return Err(damaged());
    }
    let Token::Array(rank) = decoder.next()? else {
        return Err(damaged());
    };
    if rank > MAX_RANK {
        return Err(FormatError::new(format!("an array has {rank} dimensions, at most {MAX_RANK} are read")));
    }
    let shape = (0..rank).map(|_| decoder.expect_size()).collect::<Result<Vec<_>, _>>()?;
    let Token::Text(name) = decoder.next()? else {
        return Err(damaged());
    };
    let dtype = Dtype::from_numpy_name(name);
    let Token::Binary(data) = decoder.next()? else {
        return Err(damaged());
    };
    if !decoder.is_at_end() {
        return Err(damaged());
    }
    if let Some(item_size) = dtype.size() {
        let expected = byte_count(&shape, item_size)?;
        if data.len() != expected {
            return Err(FormatError::new(format!(
                "{dtype} of shape {shape:?} takes {expected} bytes, got {}",
                data.len()
            )));
        }
    }
    Ok(Leaf { dtype, shape, data })
}
