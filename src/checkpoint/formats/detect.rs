//! Tells formats by the content of files, and says what files are that hold no weights.

use crate::checkpoint::error::FormatError;
use crate::checkpoint::formats::npz::zip;
use crate::checkpoint::formats::tensor_bundle::sorted_table;
use crate::checkpoint::tensor::Format;

/// Bytes at the start of a text file that are looked at.
const LOOKED_AT: usize = 512;

/// The member of PyTorch's archives with the pickle.
const PICKLE: &[u8] = b"/data.pkl";

/// Tells the format of a file from its content.
///
/// # Errors
/// The content looks like none of the formats read here; where it is known to be another one, the error says what to
/// do.
pub fn detect_format(bytes: &[u8]) -> Result<Format, FormatError> {
    if is_safetensors(bytes) {
        return Ok(Format::Safetensors);
    }
    if bytes.ends_with(&sorted_table::MAGIC) {
        return Ok(Format::TensorBundle);
    }
    // An empty archive consists of its end record.
    if bytes.starts_with(&zip::LOCAL_HEADER) || bytes.starts_with(&zip::DIRECTORY_END) {
        return Ok(Format::Npz);
    }
    refuse_other_content(bytes)?;
    match bytes.first() {
        Some(0x80..=0x8f | 0xde | 0xdf) => Ok(Format::Flax),
        _ => Err(FormatError::new(
            "the format is not recognised; safetensors, Flax msgpack, TensorFlow checkpoints, .npz and HDF5 are read",
        )),
    }
}

/// A safetensors header is JSON behind its length, whose upper half is zero. The lower half may be the mark of any other
/// format.
fn is_safetensors(bytes: &[u8]) -> bool {
    bytes.get(4..9) == Some(b"\0\0\0\0{")
}

/// Refuses what is found in the place of weights, saying what it is and what to do.
///
/// # Errors
/// The content is nothing, text, an archive, or of a format that is not read here.
pub(crate) fn refuse_other_content(bytes: &[u8]) -> Result<(), FormatError> {
    match other_content(bytes) {
        Some(what) if !is_safetensors(bytes) => Err(FormatError::new(what)),
        _ => Ok(()),
    }
}

/// Whether `bytes` are the text that stands in a Git repository for a large file.
pub(crate) fn is_lfs_pointer(bytes: &[u8]) -> bool {
    bytes.starts_with(b"version https://git-lfs")
}

fn other_content(bytes: &[u8]) -> Option<&'static str> {
    const ARCHIVES: [&[u8]; 6] =
        [b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\x07"];
    if bytes.is_empty() {
        return Some("the file is empty; what should have written or downloaded it has not: get it again");
    }
    if is_lfs_pointer(bytes) {
        return Some(LFS);
    }
    if bytes.starts_with(b"\x89HDF\r\n\x1a\n") {
        return Some("HDF5 files are read by the Python package (extra 'h5')");
    }
    // PROTO opcode, protocols 2 to 5.
    if matches!(bytes, [0x80, 2..=5, ..]) {
        return Some(
            "this is a Python pickle, as PyTorch's older .bin and .pt files are, which can run any code when it is \
             opened and is therefore not read; convert it to safetensors with the program that made it",
        );
    }
    if bytes.starts_with(b"\x0c\xdb\x3a\x2a") {
        return Some(ORBAX);
    }
    if bytes.starts_with(&zip::LOCAL_HEADER) {
        // PyTorch writes this member first.
        let start = &bytes[..bytes.len().min(LOOKED_AT)];
        return Some(if start.windows(PICKLE.len()).any(|name| name == PICKLE) { PYTORCH } else { ARCHIVE });
    }
    if ARCHIVES.iter().any(|magic| bytes.starts_with(magic)) || bytes.get(257..262) == Some(b"ustar") {
        return Some(ARCHIVE);
    }
    other_text(&bytes[..bytes.len().min(LOOKED_AT)])
}

/// What a text that begins with `bytes` is.
fn other_text(bytes: &[u8]) -> Option<&'static str> {
    let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes).trim_ascii_start();
    let begins =
        |start: &[u8]| text.get(..start.len()).is_some_and(|found| found.eq_ignore_ascii_case(start));
    if begins(b"<!doctype html") || begins(b"<html") || begins(b"<head") {
        return Some(
            "this is an HTML page (of a login or an error?) in the place of the weights; download the file itself: \
             on Hugging Face and GitHub its address has /resolve/ or /raw/ where that of the page has /blob/",
        );
    }
    if begins(b"<?xml") || begins(b"<error") {
        return Some(
            "this is an XML document, as servers send for errors; look what it says, and download the file again",
        );
    }
    // msgpack has small numbers here, which no checkpoint begins with.
    if matches!(text.first(), Some(b'{' | b'[')) && std::str::from_utf8(&text[..text.len().min(64)]).is_ok() {
        return Some("this is a JSON text, not weights; give the weights beside it, or the folder of both");
    }
    None
}

const ARCHIVE: &str = "this is an archive; unpack it and give the file or folder in it";
/// What to say of PyTorch's files.
pub(crate) const PYTORCH: &str = "this is a PyTorch file (.bin, .pt), which holds a Python pickle that can run any code when \
     it is opened and is therefore not read; convert it to safetensors: \
     safetensors.torch.save_file(torch.load(path, weights_only=True), \"model.safetensors\")";
/// What to say of a pointer of Git LFS.
pub(crate) const LFS: &str = "this is a Git LFS pointer, a short text in the place of the weights; run `git lfs pull` in \
     the repository, or download the file itself";
/// What to say of a checkpoint of Orbax.
pub(crate) const ORBAX: &str = "this is an Orbax checkpoint, which is not read; where JAX is installed, two lines convert it: \
     params = orbax.checkpoint.StandardCheckpointer().restore(os.path.abspath(path)); \
     SparseMixer.from_flax(params, config).save(\"encoder.safetensors\")";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_in_the_place_of_weights_are_called_by_name() {
        let mut tar = vec![b'a'; 600];
        tar[257..262].copy_from_slice(b"ustar");
        for (bytes, name) in [
            (&b""[..], "empty"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS pointer"),
            (b"\n<!DOCTYPE html><html>", "HTML page"),
            (b"<HTML><head>", "HTML page"),
            (b"<?xml version=\"1.0\"?><Error>AccessDenied", "XML document"),
            (b"{\n \"model_type\": \"bert\"}", "JSON text"),
            (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "pickle"),
            (b"\x1f\x8b\x08\0", "archive"),
            (b"\xfd7zXZ\0", "archive"),
            (&tar, "archive"),
            (b"\x0c\xdb\x3a\x2a\0", "Orbax"),
            (b"\x89HDF\r\n\x1a\n", "HDF5"),
            (b"random text", "not recognised"),
        ] {
            let message = detect_format(bytes).unwrap_err().in_file("x").to_string();
            assert!(message.contains(name), "{name}: {message}");
        }
        assert_eq!(detect_format(b"\x02\0\0\0\0\0\0\0{}").unwrap(), Format::Safetensors);
        // Lengths of headers that are the marks of other formats.
        for length in [b"{\0", b"\x1f\x8b", b"\x80\x03", b"PK"] {
            let file = [&length[..], b"\0\0\0\0\0\0{"].concat();
            assert_eq!(detect_format(&file).unwrap(), Format::Safetensors);
            assert!(refuse_other_content(&file).is_ok());
        }
        assert_eq!(detect_format(b"\x81\xa1a\xc0").unwrap(), Format::Flax);
    }
}
