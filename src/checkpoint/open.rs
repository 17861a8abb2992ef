//! Recognises a weight file by what it contains and opens it with the right reader.

use std::path::{Path, PathBuf};

use super::error::FormatError;
use super::formats::detect::{ORBAX, detect_format};
use super::formats::flax::reader::Flax;
use super::formats::flax::step_files::is_step_file;
use super::formats::npz::reader::Npz;
use super::formats::safetensors::reader::Safetensors;
use super::formats::safetensors::sharded::ShardedSafetensors;
use super::formats::tensor_bundle::reader::TensorBundle;
use super::io::file_bytes::FileBytes;
use super::source::TensorSource;
use super::tensor::Format;
use crate::error::Result;

/// Longest `checkpoint` file, which names the latest checkpoint of a folder.
const MAX_STATE_FILE: usize = 64 << 10;

/// How the name of the file ends that says which of several safetensors files has which tensor.
const SHARD_INDEX: &str = ".safetensors.index.json";
/// Files that Orbax writes into the folder of a checkpoint.
const OF_ORBAX: [&str; 3] = ["_CHECKPOINT_METADATA", "_METADATA", "manifest.ocdbt"];
/// Most checkpoints of a folder that an error names.
const MOST_NAMED: usize = 5;
/// How deep below the folder that is given Orbax keeps them: `<step>/default/_METADATA`.
const ORBAX_DEPTH: usize = 2;

/// Opens the checkpoint at `path`: a safetensors, Flax or `.npz` file, a TensorFlow checkpoint (its prefix, its
/// `.index` file, or its folder), a SavedModel folder, the folder of a Flax training step, or a folder with a
/// `model.safetensors`, whole or in several files, or the index of such. Formats are told by content, not by name.
///
/// # Errors
/// There is no such file, its format is not read here, or it is damaged.
pub fn open(path: &Path) -> Result<Box<dyn TensorSource>> {
    if path.is_dir() {
        return open_folder(path);
    }
    if let Some(prefix) = bundle_prefix(path) {
        return Ok(Box::new(TensorBundle::open(&prefix)?));
    }
    if let Some(index) = path.to_str()
        && let Some(stem) = index.strip_suffix(SHARD_INDEX)
        && path.is_file()
    {
        return open_shards(Path::new(stem), index);
    }
    if path.file_name().is_some_and(|name| is_step_file(&name.to_string_lossy())) {
        return Ok(Box::new(Flax::open(path)?));
    }
    open_bytes(FileBytes::open(path)?, &path.display().to_string())
}

/// Opens the safetensors files that lie beside the index at the path `label` and begin with `stem`.
fn open_shards(stem: &Path, label: &str) -> Result<Box<dyn TensorSource>> {
    let folder = match stem.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let stem = stem.file_name().unwrap_or_default().to_string_lossy();
    match ShardedSafetensors::open(folder, &stem)? {
        Some(model) => Ok(Box::new(model)),
        None => {
            let message = format!(
                "this is the index of a model in several files {stem}-*-of-*.safetensors, which are not beside it"
            );
            Err(FormatError::new(message).in_file(label))
        }
    }
}

/// Opens a file of any format with this content; `label` is its name in messages.
///
/// # Errors
/// The format is not read here, is one of several files, or the content is damaged.
pub fn open_bytes(bytes: FileBytes, label: &str) -> Result<Box<dyn TensorSource>> {
    match detect_format(&bytes).map_err(|error| error.in_file(label))? {
        Format::Safetensors => Ok(Box::new(Safetensors::from_bytes(bytes, label)?)),
        Format::Flax => Ok(Box::new(Flax::from_bytes(vec![bytes], label)?)),
        Format::Npz => Ok(Box::new(Npz::from_bytes(bytes, label)?)),
        Format::TensorBundle => {
            Err(FormatError::new("a TensorFlow checkpoint index must be called <prefix>.index")
                .in_file(label))
        }
    }
}

fn open_folder(folder: &Path) -> Result<Box<dyn TensorSource>> {
    let label = folder.display().to_string();
    let saved_model = folder.join("variables").join("variables");
    if index_of(&saved_model).is_file() {
        return Ok(Box::new(TensorBundle::open(&saved_model)?));
    }
    let hugging_face = folder.join("model.safetensors");
    if hugging_face.is_file() {
        return Ok(Box::new(Safetensors::open(&hugging_face)?));
    }
    if let Some(model) = ShardedSafetensors::open(folder, "model")? {
        return Ok(Box::new(model));
    }
    if is_orbax(folder, 0) {
        return Err(FormatError::new(ORBAX).in_file(&label));
    }
    let state = folder.join("checkpoint");
    if state.is_file() {
        let prefix = latest_checkpoint(&state).map_err(|error| error.in_file(&label))?;
        return Ok(Box::new(TensorBundle::open(&folder.join(prefix))?));
    }
    if let Some(prefix) = only_checkpoint(folder).map_err(|error| error.in_file(&label))? {
        return Ok(Box::new(TensorBundle::open(&prefix)?));
    }
    match Flax::open(folder) {
        Ok(step) => Ok(Box::new(step)),
        Err(_) if is_orbax(folder, ORBAX_DEPTH) => Err(FormatError::new(ORBAX).in_file(&label)),
        Err(error) => Err(error),
    }
}

/// The prefix of the TensorFlow checkpoint in a folder without a file that names the latest, as published models are.
///
/// # Errors
/// There are several.
fn only_checkpoint(folder: &Path) -> Result<Option<PathBuf>, FormatError> {
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut found: Vec<PathBuf> = files
        .filter(|path| path.extension().is_some_and(|ending| ending == "index") && path.is_file())
        .map(|path| path.with_extension(""))
        .collect();
    found.sort();
    if found.len() > 1 {
        let names: Vec<_> =
            found.iter().filter_map(|path| path.file_name()).map(|name| name.to_string_lossy()).collect();
        let shown = names[..names.len().min(MOST_NAMED)].join(", ");
        let message =
            format!("there are {} checkpoints in the folder; give one of them: {shown}", names.len());
        return Err(FormatError::new(message));
    }
    Ok(found.pop())
}

/// Whether Orbax has written a checkpoint into `folder`, or into a folder at most `depth` below.
fn is_orbax(folder: &Path, depth: usize) -> bool {
    let below = || {
        let inner = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
        inner.filter(|path| path.is_dir()).any(|path| is_orbax(&path, depth - 1))
    };
    OF_ORBAX.iter().any(|name| folder.join(name).is_file()) || (depth > 0 && below())
}

/// The prefix of the TensorFlow checkpoint that `path` means, if it means one.
fn bundle_prefix(path: &Path) -> Option<PathBuf> {
    let text = path.to_str()?;
    if let Some(prefix) = text.strip_suffix(".index") {
        return Some(prefix.into());
    }
    if let Some((prefix, shard)) = text.rsplit_once(".data-")
        && shard.contains("-of-")
    {
        return Some(prefix.into());
    }
    (!path.exists() && index_of(path).is_file()).then(|| path.to_owned())
}

fn index_of(prefix: &Path) -> PathBuf {
    let mut index = prefix.as_os_str().to_owned();
    index.push(".index");
    index.into()
}

/// The file name of the prefix that a `checkpoint` file gives as `model_checkpoint_path: "..."`. Its folder is left
/// out: checkpoints get moved, and a file should not make us read elsewhere.
fn latest_checkpoint(state: &Path) -> Result<PathBuf, FormatError> {
    let unreadable = || FormatError::new("the file 'checkpoint' does not name a checkpoint");
    let bytes = FileBytes::open(state).map_err(|_| unreadable())?;
    let text = std::str::from_utf8(&bytes[..bytes.len().min(MAX_STATE_FILE)]).map_err(|_| unreadable())?;
    let quoted =
        text.lines().find_map(|line| line.strip_prefix("model_checkpoint_path:")).ok_or_else(unreadable)?;
    let path = Path::new(quoted.trim().trim_matches('"'));
    path.file_name().map(PathBuf::from).ok_or_else(unreadable)
}
