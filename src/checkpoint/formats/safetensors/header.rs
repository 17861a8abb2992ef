//! The header of a safetensors file, and what our own format adds to it.
//!
//! A file is: header length (u64), JSON header, tensor bytes without gaps. Files of our own carry in the header's
//! `__metadata__`, beside the encoder's configuration,
//!
//! * `header_crc32c`: CRC-32C of the header, computed with this field's eight digits as zeros. It comes first, so that
//!   it can be found without parsing;
//! * `format` = `sparse_mixer` and `format_version`;
//! * `crc32c:<tensor>`: CRC-32C of each tensor's bytes.
//!
//! so that damage anywhere is seen, while every other safetensors tool can still read the file.
//!
//! A header may have 100 MB. Parsing goes through it once and keeps names, shapes and metadata within the limits of
//! [`crate::checkpoint::io::limits`], so that what it takes does not grow with what a header repeats.
//! Source: <https://github.com/huggingface/safetensors#format>.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::checkpoint::error::FormatError;
use crate::checkpoint::io::limits::{
    MAX_HEADER_STRING, MAX_METADATA_BYTES, MAX_METADATA_ENTRIES, MAX_NAMES_BYTES, MAX_SAFETENSORS_HEADER,
    MAX_TENSORS, byte_count, part,
};
use crate::checkpoint::source::EntryList;
use crate::checkpoint::tensor::{Dtype, Entry};

/// Newest version of our own format that this library writes and reads.
pub const FORMAT_VERSION: u32 = 1;

/// Bytes of the length field before the header.
pub(super) const LENGTH_BYTES: usize = 8;
/// How the header of our own files begins; eight hexadecimal digits follow.
pub(super) const CHECKSUM_PREFIX: &str = "{\"__metadata__\":{\"header_crc32c\":\"";
/// What stands in place of the header's checksum while it is computed.
pub(super) const CHECKSUM_BLANK: &str = "00000000";
/// Metadata keys of per-tensor checksums begin so.
pub(super) const TENSOR_CHECKSUM_KEY: &str = "crc32c:";
/// Value of the metadata key `format` in our own files.
pub(super) const OWN_FORMAT: &str = "sparse_mixer";

const METADATA_KEY: &str = "__metadata__";
/// Longest description of a tensor, `{"dtype":"F32","shape":[2],"data_offsets":[0,8]}`, with room for spaces.
const MAX_DESCRIPTION_BYTES: usize = 4 << 10;
/// Of a message about a header; it may quote the header.
const MAX_MESSAGE_CHARACTERS: usize = 300;

/// What a header says.
#[derive(Debug)]
pub(super) struct Header {
    /// All tensors, in the order of their content.
    pub(super) entries: Vec<Entry>,
    /// Where in the file each tensor lies.
    pub(super) ranges: Vec<Range<usize>>,
    /// CRC-32C of each tensor, in our own files.
    pub(super) checksums: Vec<Option<u32>>,
    /// Text beside the tensors; checksums are left out.
    pub(super) metadata: BTreeMap<String, String>,
}

impl Header {
    /// Reads the header of the file with content `bytes` and checks that it fits the file's length.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let text = header_text(bytes)?;
        verify_checksum(text)?;
        if longest_string(text) > MAX_HEADER_STRING {
            return Err(FormatError::new(format!(
                "the header has a text of more than {MAX_HEADER_STRING} bytes"
            )));
        }
        let mut collected = Collected::default();
        let mut deserializer = serde_json::Deserializer::from_slice(text);
        let outcome = deserializer.deserialize_map(&mut collected).and_then(|()| deserializer.end());
        if let Some(refused) = collected.refused {
            return Err(refused);
        }
        if let Err(error) = outcome {
            let message: String = error.to_string().chars().take(MAX_MESSAGE_CHARACTERS).collect();
            return Err(FormatError::new(format!("not a valid safetensors file: {message}")));
        }
        check_version(&collected.metadata)?;
        let (entries, ranges) = collected.entries.finish();
        let mut tensors: Vec<(Entry, Range<usize>)> = entries.into_iter().zip(ranges).collect();
        tensors.sort_by_key(|(_, range)| (range.start, range.end));
        let content = LENGTH_BYTES + text.len()..bytes.len();
        check_places(&tensors, content.len())?;
        let (entries, ranges): (Vec<_>, Vec<_>) = tensors
            .into_iter()
            .map(|(entry, range)| (entry, content.start + range.start..content.start + range.end))
            .unzip();
        let mut stored = collected.checksums;
        let checksums = entries.iter().map(|entry| stored.remove(&entry.name)).collect();
        if let Some((name, _)) = stored.pop_first() {
            return Err(FormatError::new(format!("there is a checksum but no tensor called '{name}'")));
        }
        Ok(Self { entries, ranges, checksums, metadata: collected.metadata })
    }
}

/// The header's bytes, without its length.
fn header_text(bytes: &[u8]) -> Result<&[u8], FormatError> {
    let length = part(bytes, 0, LENGTH_BYTES as u64, "the header length")?;
    let length = u64::from_le_bytes(length.try_into().expect("eight bytes were taken"));
    if length > MAX_SAFETENSORS_HEADER as u64 {
        return Err(FormatError::new(format!(
            "the header claims {length} bytes, at most {MAX_SAFETENSORS_HEADER} are allowed by the format"
        )));
    }
    let text = part(bytes, LENGTH_BYTES as u64, length, "the header")?;
    if !text.starts_with(b"{") {
        return Err(FormatError::new("not a valid safetensors file: the header does not begin with '{'"));
    }
    Ok(text)
}

/// Bytes of the longest string in the JSON `text`, or more where it is not JSON. A parser may copy a string whole, for an
/// error message too.
fn longest_string(text: &[u8]) -> usize {
    let (mut longest, mut start, mut escaped) = (0, None, false);
    for (place, &byte) in text.iter().enumerate() {
        match start {
            None if byte == b'"' => start = Some(place),
            None => {}
            Some(_) if escaped => escaped = false,
            Some(_) if byte == b'\\' => escaped = true,
            Some(begun) if byte == b'"' => {
                longest = longest.max(place - begun);
                start = None;
            }
            Some(_) => {}
        }
    }
    start.map_or(longest, |begun| longest.max(text.len() - begun))
}

/// The tensors must fill the `content_bytes` behind the header without gaps or overlaps.
fn check_places(tensors: &[(Entry, Range<usize>)], content_bytes: usize) -> Result<(), FormatError> {
    let mut end = 0;
    for (entry, range) in tensors {
        if range.start != end || range.end < range.start {
            return Err(FormatError::new("tensors overlap or leave a gap").at(&entry.name));
        }
        if let Some(size) = entry.dtype.size() {
            let expected = byte_count(&entry.shape, size)?;
            if range.len() != expected {
                let message = format!(
                    "{} of shape {:?} takes {expected} bytes, the header gives it {}",
                    entry.dtype,
                    entry.shape,
                    range.len()
                );
                return Err(FormatError::new(message).at(&entry.name));
            }
        }
        end = range.end;
    }
    if end != content_bytes {
        return Err(FormatError::new(format!(
            "the tensors take {end} bytes, but {content_bytes} follow the header; the file is damaged or not complete"
        )));
    }
    Ok(())
}

/// What has been read of a header.
#[derive(Default)]
struct Collected {
    entries: EntryList<Range<usize>>,
    metadata: BTreeMap<String, String>,
    checksums: BTreeMap<String, u32>,
    metadata_bytes: usize,
    checksum_bytes: usize,
    has_metadata: bool,
    /// Why reading stopped, unless the text is no JSON.
    refused: Option<FormatError>,
}

impl Collected {
    fn add_tensor(&mut self, name: String, description: &str) -> Result<(), FormatError> {
        if description.len() > MAX_DESCRIPTION_BYTES {
            let bytes = description.len();
            return Err(
                FormatError::new(format!("the header describes it in {bytes} bytes")).at(&shortened(&name))
            );
        }
        let described: Description = serde_json::from_str(description).map_err(|error| {
            FormatError::new(format!("the header is damaged: {error}")).at(&shortened(&name))
        })?;
        let (start, end) = described.data_offsets;
        self.entries.push(name, dtype_of(&described.dtype), described.shape, start..end)
    }

    fn add_text(&mut self, key: String, value: String) -> Result<(), FormatError> {
        if let Some(tensor) = key.strip_prefix(TENSOR_CHECKSUM_KEY) {
            let damaged = || FormatError::new("its checksum is not a number").at(&shortened(tensor));
            let checksum = u32::from_str_radix(&value, 16).map_err(|_| damaged())?;
            self.checksum_bytes += tensor.len();
            self.checksums.insert(tensor.to_owned(), checksum);
            if self.checksums.len() > MAX_TENSORS || self.checksum_bytes > MAX_NAMES_BYTES {
                return Err(FormatError::new(format!("there are more than {MAX_TENSORS} checksums")));
            }
        } else {
            self.metadata_bytes += key.len() + value.len();
            self.metadata.insert(key, value);
        }
        if self.metadata.len() > MAX_METADATA_ENTRIES || self.metadata_bytes > MAX_METADATA_BYTES {
            return Err(FormatError::new(format!(
                "the metadata has more than {MAX_METADATA_ENTRIES} keys or {MAX_METADATA_BYTES} bytes"
            )));
        }
        Ok(())
    }

    /// Keeps a refusal, which a parser's own error could not carry.
    fn keep<E: serde::de::Error>(&mut self, outcome: Result<(), FormatError>) -> Result<(), E> {
        outcome.map_err(|error| {
            self.refused = Some(error);
            E::custom("refused")
        })
    }
}

/// The tensors and the metadata.
impl<'de> Visitor<'de> for &mut Collected {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<String>()? {
            if name == METADATA_KEY {
                if std::mem::replace(&mut self.has_metadata, true) {
                    return Err(A::Error::custom("there are two maps of metadata"));
                }
                map.next_value_seed(Metadata(self))?;
            } else {
                let description: &RawValue = map.next_value()?;
                let added = self.add_tensor(name, description.get());
                self.keep(added)?;
            }
        }
        Ok(())
    }
}

/// Reads the map of metadata.
struct Metadata<'a>(&'a mut Collected);

impl<'de> DeserializeSeed<'de> for Metadata<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Metadata<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of texts")
    }

    /// Nothing: some programs write `null`.
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some((key, value)) = map.next_entry()? {
            let added = self.0.add_text(key, value);
            self.0.keep(added)?;
        }
        Ok(())
    }
}

/// The value of a tensor's name.
#[derive(Deserialize)]
struct Description {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

fn shortened(name: &str) -> String {
    name.chars().take(MAX_MESSAGE_CHARACTERS).collect()
}

/// The type that the format calls `name`.
fn dtype_of(name: &str) -> Dtype {
    match name {
        "F64" => Dtype::F64,
        "F32" => Dtype::F32,
        "F16" => Dtype::F16,
        "BF16" => Dtype::BF16,
        "I64" => Dtype::I64,
        "I32" => Dtype::I32,
        "I16" => Dtype::I16,
        "I8" => Dtype::I8,
        "U64" => Dtype::U64,
        "U32" => Dtype::U32,
        "U16" => Dtype::U16,
        "U8" => Dtype::U8,
        "BOOL" => Dtype::Bool,
        other => Dtype::Other(other.chars().take(32).collect()),
    }
}

/// The header's CRC-32C with the checksum's own digits as zeros. `header` begins with [`CHECKSUM_PREFIX`].
pub(super) fn header_checksum(header: &[u8]) -> u32 {
    let digits = CHECKSUM_PREFIX.len()..CHECKSUM_PREFIX.len() + CHECKSUM_BLANK.len();
    let checksum = crc32c::crc32c(&header[..digits.start]);
    let checksum = crc32c::crc32c_append(checksum, CHECKSUM_BLANK.as_bytes());
    crc32c::crc32c_append(checksum, header.get(digits.end..).unwrap_or_default())
}

/// Checks the checksum of a header that has one.
fn verify_checksum(header: &[u8]) -> Result<(), FormatError> {
    let Some(rest) = header.strip_prefix(CHECKSUM_PREFIX.as_bytes()) else {
        return Ok(());
    };
    // Compared as text: a flipped bit can turn a digit into its upper-case form.
    if rest.get(..CHECKSUM_BLANK.len()) != Some(format!("{:08x}", header_checksum(header)).as_bytes()) {
        return Err(FormatError::new("the header does not match its checksum; the file is damaged"));
    }
    Ok(())
}

fn check_version(metadata: &BTreeMap<String, String>) -> Result<(), FormatError> {
    if metadata.get("format").is_none_or(|format| format != OWN_FORMAT) {
        return Ok(());
    }
    let version = metadata.get("format_version").map_or("none", String::as_str);
    match version.parse::<u32>() {
        Ok(1..=FORMAT_VERSION) => Ok(()),
        _ => Err(FormatError::new(format!(
            "the file has format version {version}, this library reads versions up to {FORMAT_VERSION}; update it"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(header: &str, content_bytes: usize) -> Result<Header, FormatError> {
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.as_bytes());
        file.extend(vec![0; content_bytes]);
        Header::parse(&file)
    }

    #[test]
    fn tensors_come_in_the_order_of_their_content() {
        let header = r#"{"b":{"dtype":"F16","shape":[2],"data_offsets":[8,12]},
            "__metadata__":{"k":"\u00fc"}, "a":{"data_offsets":[0,8],"shape":[],"dtype":"F64"},
            "eight bits":{"dtype":"F8_E4M3","shape":[1],"data_offsets":[12,13]}}  "#;
        let header = parse(header, 13).unwrap();
        let names: Vec<_> = header.entries.iter().map(|entry| entry.name.as_str()).collect();
        assert_eq!(names, ["a", "b", "eight bits"]);
        assert_eq!(header.entries[2].dtype, Dtype::Other("F8_E4M3".into()));
        assert_eq!(header.metadata["k"], "ü");
        assert_eq!(header.ranges[1].len(), 4);
    }

    #[test]
    fn what_no_honest_file_has_is_refused() {
        let tensor = |name: &str, start: usize, end: usize| {
            format!(r#""{name}":{{"dtype":"U8","shape":[4],"data_offsets":[{start},{end}]}}"#)
        };
        let of = |tensors: &[String]| format!("{{{}}}", tensors.join(","));
        let long = format!(r#"{{"a":"{}"}}"#, "x".repeat(MAX_HEADER_STRING + 1));
        let wide =
            format!(r#"{{"a":{{"shape":[{}1],"dtype":"U8","data_offsets":[0,1]}}}}"#, "1,".repeat(9000));
        for (header, content_bytes, message) in [
            (of(&[tensor("a", 0, 4), tensor("b", 4, 8)]), 9, "8 bytes, but 9"),
            (of(&[tensor("a", 0, 4), tensor("b", 4, 8)]), 7, "8 bytes, but 7"),
            (of(&[tensor("a", 0, 4), tensor("b", 5, 9)]), 9, "b: tensors overlap or leave a gap"),
            (of(&[tensor("a", 0, 4), tensor("b", 3, 7)]), 7, "b: tensors overlap or leave a gap"),
            (of(&[tensor("a", 1, 5)]), 5, "gap"),
            (of(&[tensor("a", 0, 5)]), 5, "takes 4 bytes, the header gives it 5"),
            (of(&[tensor("a", 4, 0)]), 4, "gap"),
            (of(&[tensor("a", 0, 4), tensor("a", 4, 8)]), 8, "twice"),
            (r#"{"a":"text"}"#.into(), 0, "a: the header is damaged"),
            (r#"{"__metadata__":{"a":1}}"#.into(), 0, "expected a string"),
            (r#"{"__metadata__":{},"__metadata__":{}}"#.into(), 0, "two maps"),
            (r#"{"__metadata__":{"crc32c:a":"00000000"}}"#.into(), 0, "no tensor called 'a'"),
            (" {}".into(), 0, "does not begin"),
            ("{".into(), 0, "not a valid safetensors file"),
            (long, 0, "a text of more than"),
            (wide, 1, "describes it in"),
        ] {
            let error = parse(&header, content_bytes).unwrap_err().in_file("x").to_string();
            let start = header.get(..80).unwrap_or(&header);
            assert!(error.contains(message) && error.len() < 1000, "{start}: {error}");
        }
    }
}
