//! Writes our own format; its layout is described in [`super::header`].

use std::collections::BTreeMap;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

use super::header::{
    CHECKSUM_BLANK, CHECKSUM_PREFIX, FORMAT_VERSION, LENGTH_BYTES, OWN_FORMAT, TENSOR_CHECKSUM_KEY,
    header_checksum,
};
use super::packed::{LAYOUT_KEY, PAGE};
use crate::checkpoint::error::FormatError;
use crate::checkpoint::io::atomic_file::AtomicFile;
use crate::checkpoint::io::limits::MAX_SAFETENSORS_HEADER;
use crate::checkpoint::source::EntryList;
use crate::checkpoint::tensor::Dtype;
use crate::checkpoint::tensor_to_write::TensorToWrite;
use crate::error::{Error, Result};
use crate::runtime::Interrupt;

/// Tensor data starts at a multiple of this, so that mapped tensors are aligned for vector loads.
const DATA_ALIGNMENT: usize = 64;
/// Write buffer; larger pieces pass it by.
const BUFFER_BYTES: usize = 256 << 10;

/// Replaces the file at `path` in one step (see [`AtomicFile`]) by one with `tensors`, in their order, and `metadata`
/// (our own keys excepted: `format`, `format_version` and the checksums are added here).
///
/// Memory: the header and what the tensors' own content functions take. Time: one pass over the content.
///
/// # Errors
/// The file cannot be written, two tensors have one name, a tensor gives the wrong number of bytes, or its content
/// function fails; the interrupt came while waiting for the disk. The old file is untouched then.
pub fn write_safetensors(
    path: &Path,
    metadata: &BTreeMap<String, String>,
    tensors: Vec<TensorToWrite<'_>>,
    interrupt: Interrupt<'_>,
) -> Result<()> {
    let label = path.display().to_string();
    let in_file = |source| Error::Io { path: label.clone(), source };
    let mut header = Header::new(metadata, &tensors).map_err(|error| error.in_file(&label))?;

    let mut out = BufWriter::with_capacity(BUFFER_BYTES, AtomicFile::create(path)?);
    // The checksums are known only after the content: the header is written blank and again, complete, at the end.
    header.write_to(&mut out).map_err(in_file)?;
    for (index, tensor) in tensors.into_iter().enumerate() {
        let mut checksum = 0;
        tensor.write_to(&mut out, &label, |bytes| checksum = crc32c::crc32c_append(checksum, bytes))?;
        header.set_checksum(index, checksum);
    }
    header.seal();
    out.seek(SeekFrom::Start(0)).map_err(in_file)?;
    header.write_to(&mut out).map_err(in_file)?;
    let file = out.into_inner().map_err(|error| in_file(error.into_error()))?;
    file.commit(interrupt)
}

/// The header's text with room for checksums.
struct Header {
    text: Vec<u8>,
    /// Where the eight digits of each tensor's checksum stand in `text`.
    checksum_offsets: Vec<usize>,
}

impl Header {
    fn new(metadata: &BTreeMap<String, String>, tensors: &[TensorToWrite<'_>]) -> Result<Self, FormatError> {
        let mut text = format!("{CHECKSUM_PREFIX}{CHECKSUM_BLANK}\"");
        let mut own = metadata.clone();
        own.insert("format".into(), OWN_FORMAT.into());
        own.insert("format_version".into(), FORMAT_VERSION.to_string());
        for (key, value) in &own {
            text += &format!(",{}:{}", quoted(key), quoted(value));
        }
        let mut checksum_offsets = Vec::with_capacity(tensors.len());
        for tensor in tensors {
            text += &format!(",{}:\"", quoted(&format!("{TENSOR_CHECKSUM_KEY}{}", tensor.name)));
            checksum_offsets.push(text.len());
            text += CHECKSUM_BLANK;
            text.push('"');
        }
        text.push('}');

        // What the reader will ask.
        let mut listed = EntryList::default();
        let mut offset = 0usize;
        for tensor in tensors {
            listed.push(tensor.name.clone(), tensor.dtype.clone(), tensor.shape.clone(), ())?;
            let end = offset
                .checked_add(tensor.byte_count()?)
                .ok_or_else(|| FormatError::new("the tensors are too large"))?;
            text += &format!(
                ",{}:{{\"dtype\":\"{}\",\"shape\":{:?},\"data_offsets\":[{offset},{end}]}}",
                quoted(&tensor.name),
                dtype_name(&tensor.dtype)?,
                tensor.shape
            );
            offset = end;
        }
        text.push('}');
        // The format allows spaces after the header.
        let alignment = if metadata.contains_key(LAYOUT_KEY) { PAGE } else { DATA_ALIGNMENT };
        while !(LENGTH_BYTES + text.len()).is_multiple_of(alignment) {
            text.push(' ');
        }
        if text.len() > MAX_SAFETENSORS_HEADER {
            return Err(FormatError::new(format!(
                "names and metadata take {} bytes, at most {MAX_SAFETENSORS_HEADER} can be read back",
                text.len()
            )));
        }
        Ok(Self { text: text.into_bytes(), checksum_offsets })
    }

    fn set_checksum(&mut self, index: usize, checksum: u32) {
        write_digits(&mut self.text[self.checksum_offsets[index]..], checksum);
    }

    /// Fills in the header's own checksum. Last, since it covers all the others.
    fn seal(&mut self) {
        let checksum = header_checksum(&self.text);
        write_digits(&mut self.text[CHECKSUM_PREFIX.len()..], checksum);
    }

    fn write_to(&self, out: &mut impl Write) -> std::io::Result<()> {
        out.write_all(&(self.text.len() as u64).to_le_bytes())?;
        out.write_all(&self.text)
    }
}

fn write_digits(place: &mut [u8], checksum: u32) {
    place[..CHECKSUM_BLANK.len()].copy_from_slice(format!("{checksum:08x}").as_bytes());
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// The format's name for a type.
fn dtype_name(dtype: &Dtype) -> Result<&'static str, FormatError> {
    Ok(match dtype {
        Dtype::F64 => "F64",
        Dtype::F32 => "F32",
        Dtype::F16 => "F16",
        Dtype::BF16 => "BF16",
        Dtype::I64 => "I64",
        Dtype::I32 => "I32",
        Dtype::I16 => "I16",
        Dtype::I8 => "I8",
        Dtype::U64 => "U64",
        Dtype::U32 => "U32",
        Dtype::U16 => "U16",
        Dtype::U8 => "U8",
        Dtype::Bool => "BOOL",
        Dtype::Other(name) => {
            return Err(FormatError::new(format!("elements of type {name} are not written")));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{FileBytes, Safetensors, TensorSource};
    use crate::runtime::never;

    fn written(tensors: Vec<TensorToWrite<'_>>) -> Result<Vec<u8>> {
        let path = std::env::temp_dir().join(format!(
            "sparse-mixer-write-{}-{:?}.safetensors",
            std::process::id(),
            std::thread::current().id()
        ));
        let metadata = BTreeMap::from([("config".to_owned(), "{\"a\": \"ü\"}".to_owned())]);
        write_safetensors(&path, &metadata, tensors, &never)?;
        let bytes = std::fs::read(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        Ok(bytes)
    }

    fn sample() -> Vec<u8> {
        written(vec![
            TensorToWrite::from_f32("layer/kernel", &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, -0.5]),
            TensorToWrite::from_f32("empty \"name\"", &[0, 7], &[]),
            TensorToWrite::from_f32("scalar", &[], &[2.5]),
        ])
        .unwrap()
    }

    fn read_all(bytes: Vec<u8>) -> Result<Vec<Vec<f32>>> {
        let file = Safetensors::from_bytes(FileBytes::from(bytes), "memory")?;
        (0..file.entries().len())
            .map(|index| file.read(index, &never)?.to_f32().map_err(|error| error.in_file("memory")))
            .collect()
    }

    #[test]
    fn what_is_written_is_read() {
        let file = Safetensors::from_bytes(FileBytes::from(sample()), "memory").unwrap();
        assert_eq!(file.metadata()["format"], OWN_FORMAT);
        assert_eq!(file.metadata()["config"], "{\"a\": \"ü\"}");
        assert_eq!(file.entries()[1].shape, [0, 7]);
        let header_bytes = u64::from_le_bytes(*sample().first_chunk().unwrap()) as usize;
        assert_eq!((LENGTH_BYTES + header_bytes) % DATA_ALIGNMENT, 0);
        assert_eq!(read_all(sample()).unwrap(), [vec![1.0, 2.0, 3.0, 4.0, 5.0, -0.5], vec![], vec![2.5]]);
    }

    #[test]
    fn very_many_tensors_are_read_back() {
        let names: Vec<String> =
            (0..20_000).map(|number| format!("transformer/layer_{number}/output/bias")).collect();
        let bytes =
            written(names.iter().map(|name| TensorToWrite::from_f32(name, &[1], &[0.5])).collect()).unwrap();
        assert!(u64::from_le_bytes(*bytes.first_chunk().unwrap()) > 2 << 20);
        let file = Safetensors::from_bytes(FileBytes::from(bytes), "memory").unwrap();
        assert_eq!(file.entries().len(), 20_000);
        assert_eq!(file.read(19_999, &never).unwrap().to_f32().unwrap(), [0.5]);
    }

    #[test]
    fn every_single_bit_flip_is_noticed() {
        let good = sample();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let in_prefix = (LENGTH_BYTES..LENGTH_BYTES + CHECKSUM_PREFIX.len()).contains(&(bit / 8));
            match read_all(bad) {
                Err(Error::Checkpoint { .. }) => {}
                Err(other) => panic!("bit {bit}: {other}"),
                // The name of the checksum field protects nothing but itself.
                Ok(values) => assert!(in_prefix && values == read_all(good.clone()).unwrap(), "bit {bit}"),
            }
        }
    }

    #[test]
    fn newer_versions_are_refused() {
        let text = String::from_utf8_lossy(&sample()[8..400]).into_owned();
        assert!(text.contains("\"format_version\":\"1\""));
        let header = r#"{"__metadata__":{"format":"sparse_mixer","format_version":"2"}}"#;
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        let error = read_all(bytes).unwrap_err().to_string();
        assert!(error.contains("version 2"), "{error}");
    }

    #[test]
    fn bad_content_leaves_no_file() {
        let wrong_size = TensorToWrite::from_f32("x", &[3], &[1.0]);
        assert!(written(vec![wrong_size]).unwrap_err().to_string().contains("12 bytes"));
        let twice =
            vec![TensorToWrite::from_f32("x", &[1], &[1.0]), TensorToWrite::from_f32("x", &[1], &[1.0])];
        assert!(written(twice).is_err());
        let interrupted = TensorToWrite {
            name: "x".into(),
            dtype: Dtype::F32,
            shape: vec![1],
            content: Box::new(|_| Err(Error::Interrupted)),
        };
        assert!(matches!(written(vec![interrupted]), Err(Error::Interrupted)));
    }
}
