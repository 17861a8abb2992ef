//! Finds the files of one training step of a Flax checkpoint.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::checkpoint::error::FormatError;
use crate::checkpoint::io::limits::MAX_SHARDS;
use crate::error::{Error, Result};

/// The files to read for `path`, replicated (or only) file first, shards after it in order. A folder stands for its
/// latest complete step, or that of the one folder inside it that has step files; a file of a split step for that step;
/// any other file for itself.
///
/// # Errors
/// A folder cannot be listed, or holds no complete step.
pub(super) fn files_of_step(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        let Some(file) = path.file_name().and_then(|name| StepFile::parse(&name.to_string_lossy())) else {
            return Ok(vec![path.to_owned()]);
        };
        return Folder::list(path.parent().unwrap_or(Path::new(".")))?.complete_step(Some(file.step));
    }
    let folder = Folder::list(path)?;
    if folder.has_files() {
        return folder.complete_step(None);
    }
    // Archives of checkpoints often have an enclosing folder, and folders of other things beside it.
    let mut inner = Vec::new();
    for path in &folder.folders {
        // Folders that cannot be listed are none of ours.
        inner.extend(Folder::list(path).ok().filter(Folder::has_files));
    }
    match inner.len() {
        0 => folder.complete_step(None),
        1 => inner.remove(0).complete_step(None),
        _ => {
            let names: Vec<_> = inner.iter().map(|inner| inner.path.display().to_string()).collect();
            let message = format!("several folders in it have checkpoints; give one of {}", names.join(", "));
            Err(FormatError::new(message).in_file(&path.display().to_string()))
        }
    }
}

/// Whether `name` is that of a file of a split step.
pub(crate) fn is_step_file(name: &str) -> bool {
    StepFile::parse(name).is_some()
}

/// What the name of a split step's file says.
struct StepFile {
    step: u64,
    /// `(p, P)` of a shard file.
    shard: Option<(usize, usize)>,
}

impl StepFile {
    fn parse(name: &str) -> Option<Self> {
        if let Some(step) = name.strip_prefix("replicated_checkpoint_") {
            return Some(Self { step: step.parse().ok()?, shard: None });
        }
        let (shard, step) = name.strip_prefix("shard-")?.split_once("_checkpoint_")?;
        let (index, count) = shard.split_once("-of-")?;
        let (index, count) = (index.parse().ok()?, count.parse().ok()?);
        (index < count && count <= MAX_SHARDS)
            .then_some(Self { step: step.parse().ok()?, shard: Some((index, count)) })
    }
}

/// The checkpoint files in one folder, by step.
struct Folder {
    path: PathBuf,
    replicated: BTreeMap<u64, PathBuf>,
    /// Shard files by `(P, p)`.
    shards: BTreeMap<u64, BTreeMap<(usize, usize), PathBuf>>,
    /// Flax's own `checkpoint_<step>`: a whole step in one file.
    whole: BTreeMap<u64, PathBuf>,
    folders: Vec<PathBuf>,
}

impl Folder {
    fn list(folder: &Path) -> Result<Self> {
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        let in_folder = |source| Error::Io { path: folder.display().to_string(), source };
        let mut found = Self {
            path: folder.to_owned(),
            replicated: BTreeMap::new(),
            shards: BTreeMap::new(),
            whole: BTreeMap::new(),
            folders: Vec::new(),
        };
        for entry in std::fs::read_dir(folder).map_err(in_folder)? {
            let path = entry.map_err(in_folder)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            match StepFile::parse(&name) {
                Some(StepFile { step, shard: None }) => {
                    found.replicated.insert(step, path);
                }
                Some(StepFile { step, shard: Some((index, count)) }) => {
                    found.shards.entry(step).or_default().insert((count, index), path);
                }
                None if path.is_dir() => found.folders.push(path),
                None => {
                    let step = name.strip_prefix("checkpoint_").and_then(|step| step.parse().ok());
                    found.whole.extend(step.map(|step| (step, path)));
                }
            }
        }
        found.folders.sort();
        Ok(found)
    }

    fn has_files(&self) -> bool {
        !(self.replicated.is_empty() && self.shards.is_empty() && self.whole.is_empty())
    }

    /// The files of `wanted`, or of the latest step that has its replicated file and, if there are shards at all, all
    /// of its shards.
    fn complete_step(mut self, wanted: Option<u64>) -> Result<Vec<PathBuf>> {
        if self.replicated.is_empty()
            && self.shards.is_empty()
            && let Some((_, file)) = self.whole.pop_last()
        {
            return Ok(vec![file]);
        }
        let is_complete = |step: &&u64| {
            let Some(files) = self.shards.get(step) else { return self.shards.is_empty() };
            let count = files.keys().next().map_or(0, |&(count, _)| count);
            files.keys().copied().eq((0..count).map(|index| (count, index)))
        };
        let is_wanted = |step: &&u64| wanted.is_none_or(|wanted| wanted == **step);
        let Some(&step) = self.replicated.keys().rev().filter(is_wanted).find(is_complete) else {
            let message = if self.has_files() {
                format!(
                    "no training step has its file replicated_checkpoint_<step> and all of its shard files; there are \
                     replicated files of steps {:?} and shard files of steps {:?}",
                    self.replicated.keys().collect::<Vec<_>>(),
                    self.shards.keys().collect::<Vec<_>>()
                )
            } else {
                "this folder has no checkpoint that is read: model.safetensors, TensorFlow's or Flax's (pickles, .bin and \
                 .pt, are not read)"
                    .to_owned()
            };
            return Err(FormatError::new(message).in_file(&self.path.display().to_string()));
        };
        let mut files = vec![self.replicated.remove(&step).expect("the step was chosen from these")];
        files.extend(self.shards.remove(&step).unwrap_or_default().into_values());
        Ok(files)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_complete_step_is_chosen() {
        let folder = std::env::temp_dir().join(format!("sparse-mixer-steps-{}", std::process::id()));
        let inner = folder.join("inner");
        std::fs::create_dir_all(&inner).unwrap();
        let names = |files: Vec<PathBuf>| {
            let names: Vec<_> =
                files.iter().map(|file| file.file_name().unwrap().to_string_lossy().into_owned()).collect();
            names.join(" ")
        };
        for name in [
            "replicated_checkpoint_9",
            "shard-00000-of-00002_checkpoint_9",
            "shard-00001-of-00002_checkpoint_9",
            "replicated_checkpoint_10",
            "shard-00000-of-00002_checkpoint_10",
        ] {
            std::fs::write(inner.join(name), "").unwrap();
        }
        let complete =
            "replicated_checkpoint_9 shard-00000-of-00002_checkpoint_9 shard-00001-of-00002_checkpoint_9";
        assert_eq!(names(files_of_step(&folder).unwrap()), complete);
        assert_eq!(names(files_of_step(&inner.join("shard-00001-of-00002_checkpoint_9")).unwrap()), complete);
        let error = files_of_step(&inner.join("replicated_checkpoint_10")).unwrap_err().to_string();
        assert!(error.contains("[9, 10]"), "{error}");
        assert_eq!(names(files_of_step(&folder.join("any.msgpack")).unwrap()), "any.msgpack");
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn one_of_several_folders_may_have_step_files() {
        let folder = std::env::temp_dir().join(format!("sparse-mixer-folders-{}", std::process::id()));
        for name in ["__MACOSX", "logs", "model"] {
            std::fs::create_dir_all(folder.join(name)).unwrap();
        }
        assert!(files_of_step(&folder).unwrap_err().to_string().contains("this folder has no checkpoint"));
        for step in ["checkpoint_9", "checkpoint_10"] {
            std::fs::write(folder.join("model").join(step), "").unwrap();
        }
        assert_eq!(files_of_step(&folder).unwrap(), [folder.join("model").join("checkpoint_10")]);
        std::fs::write(folder.join("logs").join("replicated_checkpoint_1"), "").unwrap();
        let error = files_of_step(&folder).unwrap_err().to_string();
        assert!(error.contains("logs, ") && error.contains("model"), "{error}");
        std::fs::remove_dir_all(folder).unwrap();
    }
}
