//! Files that appear whole or not at all.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Error, Result};

/// A file being written beside its final place. [`AtomicFile::commit`] moves it there in one step, after its content
/// has reached the disk; dropping it without that removes it. A crash at any moment leaves the old file or the new one.
///
/// The temporary file is `.<name>.<unique>.tmp` in the same folder and is locked while it is written, so that
/// leftovers of killed processes can be told from the files of running ones; the next write of the same name removes
/// leftovers.
#[derive(Debug)]
pub struct AtomicFile {
    file: File,
    temporary: PathBuf,
    target: PathBuf,
    committed: bool,
}

impl AtomicFile {
    /// Starts a replacement for `path`, or a new file there. A symbolic link keeps pointing where it does: what it
    /// points to is replaced.
    ///
    /// # Errors
    /// `path` is a folder, or the temporary file cannot be created in its folder.
    pub fn create(path: &Path) -> Result<Self> {
        Self::create_io(path).map_err(|source| Error::Io { path: path.display().to_string(), source })
    }

    fn create_io(path: &Path) -> io::Result<Self> {
        let target = match std::fs::canonicalize(path) {
            Ok(existing) if existing.is_dir() => {
                return Err(io::Error::new(io::ErrorKind::IsADirectory, "is a folder, not a file"));
            }
            Ok(existing) => existing,
            Err(_) => path.to_owned(),
        };
        let name = target
            .file_name()
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "does not name a file"))?
            .to_string_lossy()
            .into_owned();
        remove_leftovers(folder_of(&target), &name);
        loop {
            let temporary = folder_of(&target).join(format!(".{name}.{}.tmp", unique()));
            let file = match OpenOptions::new().read(true).write(true).create_new(true).open(&temporary) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                other => other?,
            };
            // Some file systems cannot lock; there, leftovers are simply never taken for live files of others,
            // because their removal needs the lock as well.
            drop(file.try_lock());
            // Between creation and lock, another process may have taken the file for a leftover.
            if !temporary.exists() {
                continue;
            }
            return Ok(Self { file, temporary, target, committed: false });
        }
    }

    /// Makes the file appear at its final place, replacing what was there.
    ///
    /// # Errors
    /// The content cannot be brought to the disk (it is full, say) or the file cannot be moved; what was there before
    /// is untouched then.
    pub fn commit(mut self) -> Result<()> {
        self.commit_io().map_err(|source| Error::Io { path: self.target.display().to_string(), source })
    }

    fn commit_io(&mut self) -> io::Result<()> {
        if let Ok(old) = std::fs::metadata(&self.target) {
            // A refusal only means that the new file has default permissions.
            drop(self.file.set_permissions(old.permissions()));
        }
        self.file.sync_all()?;
        std::fs::rename(&self.temporary, &self.target)?;
        self.committed = true;
        sync_folder(folder_of(&self.target))
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Seek for AtomicFile {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.file.seek(position)
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if !self.committed {
            // Nothing can be done about a failure here; the next write of the same name tries again.
            drop(std::fs::remove_file(&self.temporary));
        }
    }
}

fn folder_of(file: &Path) -> &Path {
    match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// A text that no other writer uses, in this process or another.
fn unique() -> String {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    format!("{}-{:x}-{count}", std::process::id(), now.as_nanos())
}

/// Removes temporary files for `name` whose writers are gone. Best effort.
fn remove_leftovers(folder: &Path, name: &str) {
    let prefix = format!(".{name}.");
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let file_name = entry.file_name();
        let file_name = file_name.to_string_lossy();
        let middle = file_name.strip_prefix(&prefix).and_then(|rest| rest.strip_suffix(".tmp"));
        // The middle part of ours has no dot, so that the leftovers of `model` are not those of `model.safetensors`.
        if middle.is_none_or(|middle| middle.contains('.')) {
            continue;
        }
        if let Ok(file) = OpenOptions::new().write(true).open(entry.path()) {
            match file.try_lock() {
                Ok(()) => drop(std::fs::remove_file(entry.path())),
                Err(TryLockError::WouldBlock | TryLockError::Error(_)) => {}
            }
        }
    }
}

/// Brings a finished rename to the disk, where the file system offers that.
fn sync_folder(folder: &Path) -> io::Result<()> {
    if !cfg!(unix) {
        return Ok(()); // Windows has no handle to a folder that could be flushed.
    }
    match File::open(folder).and_then(|folder| folder.sync_all()) {
        // Several network and FUSE file systems refuse to sync folders; so do folders that may be written but not read.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported | io::ErrorKind::PermissionDenied
            ) =>
        {
            Ok(())
        }
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("sparse-mixer-{name}-{}", unique()));
        std::fs::create_dir(&folder).unwrap();
        folder
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn the_old_file_stays_until_commit() {
        let folder = folder("commit");
        let path = folder.join("weights");
        std::fs::write(&path, "old").unwrap();
        let mut dropped = AtomicFile::create(&path).unwrap();
        dropped.write_all(b"half").unwrap();
        drop(dropped);
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        let mut file = AtomicFile::create(&path).unwrap();
        file.write_all(b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        file.commit().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(names(&folder), ["weights"]);
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn leftovers_go_and_files_of_running_writers_stay() {
        let folder = folder("leftovers");
        let path = folder.join("weights");
        std::fs::write(folder.join(".weights.1-2-3.tmp"), "killed").unwrap();
        std::fs::write(folder.join(".weights.npz.1-2-3.tmp"), "another name").unwrap();
        let first = AtomicFile::create(&path).unwrap();
        let mut second = AtomicFile::create(&path).unwrap();
        second.write_all(b"second").unwrap();
        second.commit().unwrap();
        first.commit().unwrap();
        assert_eq!(names(&folder), [".weights.npz.1-2-3.tmp", "weights"]);
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn links_and_permissions_are_kept() {
        use std::os::unix::fs::PermissionsExt;
        let folder = folder("links");
        let (real, link) = (folder.join("real"), folder.join("link"));
        std::fs::write(&real, "old").unwrap();
        std::fs::set_permissions(&real, std::fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink("real", &link).unwrap();
        let mut file = AtomicFile::create(&link).unwrap();
        file.write_all(b"new").unwrap();
        file.commit().unwrap();
        assert!(link.is_symlink());
        assert_eq!(std::fs::read(&real).unwrap(), b"new");
        assert_eq!(std::fs::metadata(&real).unwrap().permissions().mode() & 0o777, 0o640);
        assert!(AtomicFile::create(&folder).is_err());
        std::fs::remove_dir_all(folder).unwrap();
    }
}
