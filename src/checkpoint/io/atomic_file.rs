//! Files that appear whole or not at all.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use crate::runtime::Interrupt;
use crate::{Error, Result};

/// How often a caller that waits for the disk looks for an interrupt.
const POLL: Duration = Duration::from_millis(20);
/// Files below this size reach any disk soon enough to wait for them.
const SYNC_DIRECTLY_BELOW: u64 = 4 << 20;

/// A file being written beside its final place. [`AtomicFile::commit`] moves it there in one step, after its content
/// has reached the disk; dropping it without that removes it. A crash at any moment leaves the old file or the new one.
///
/// The temporary file is `.<name>.<unique>.tmp` in the same folder and is locked while it is written, so that
/// leftovers of killed processes can be told from the files of running ones; the next write of the same name removes
/// leftovers.
#[derive(Debug)]
pub struct AtomicFile {
    /// There until the end.
    file: Option<File>,
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
            return Ok(Self { file: Some(file), temporary, target, committed: false });
        }
    }

    fn file(&self) -> io::Result<&File> {
        self.file.as_ref().ok_or_else(|| io::Error::other("the file has been closed"))
    }

    /// Where the content is until [`AtomicFile::commit`], for writers that open files by name.
    pub fn temporary(&self) -> &Path {
        &self.temporary
    }

    /// Makes the file appear at its final place, replacing what was there. Bringing a large file to the disk takes
    /// seconds; `interrupt` is asked all the while.
    ///
    /// # Errors
    /// The content cannot be brought to the disk (it is full, say), the file cannot be moved, or the interrupt came;
    /// what was there before is untouched then.
    pub fn commit(mut self, interrupt: Interrupt<'_>) -> Result<()> {
        let path = self.target.display().to_string();
        let in_file = |source| Error::Io { path: path.clone(), source };
        let file = self.file().map_err(in_file)?;
        if let Ok(old) = std::fs::metadata(&self.target) {
            // A refusal only means that the new file has default permissions.
            drop(file.set_permissions(old.permissions()));
        }
        if file.metadata().map_err(in_file)?.len() < SYNC_DIRECTLY_BELOW {
            file.sync_all().map_err(in_file)?;
        } else {
            self.sync_in_background(interrupt, in_file)?;
        }
        std::fs::rename(&self.temporary, &self.target).map_err(in_file)?;
        self.committed = true;
        sync_folder(folder_of(&self.target)).map_err(in_file)
    }

    /// Brings the content to the disk in a thread of its own, which a caller who loses patience leaves behind: the
    /// system call itself cannot be stopped.
    fn sync_in_background(
        &self,
        interrupt: Interrupt<'_>,
        in_file: impl Fn(io::Error) -> Error,
    ) -> Result<()> {
        let (done, waiting) = mpsc::channel();
        let file = self.file().and_then(File::try_clone).map_err(&in_file)?;
        let thread = std::thread::Builder::new().name("sparse-mixer-sync".into()).spawn(move || {
            // The receiver is gone after an interrupt; nobody wants the result then.
            drop(done.send(file.sync_all()));
        });
        if thread.is_err() {
            return self.file().and_then(File::sync_all).map_err(in_file);
        }
        loop {
            match waiting.recv_timeout(POLL) {
                Ok(synced) => return synced.map_err(in_file),
                Err(mpsc::RecvTimeoutError::Timeout) if interrupt() => return Err(Error::Interrupted),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    return Err(Error::Internal("the thread that writes to the disk died".into()));
                }
            }
        }
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file()?.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file()?.flush()
    }
}

impl Seek for AtomicFile {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.file()?.seek(position)
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if !self.committed {
            // Nothing can be done about a failure here; the next write of the same name tries again.
            drop(std::fs::remove_file(&self.temporary));
            if let Some(file) = self.file.take() {
                close_in_background(file);
            }
        }
    }
}

/// Closes a file without a name, which frees what it holds: a tenth of a second for one of a gigabyte.
fn close_in_background(file: File) {
    if file.metadata().is_ok_and(|data| data.len() >= SYNC_DIRECTLY_BELOW) {
        // Without a thread it is closed here, with the closure.
        drop(std::thread::Builder::new().name("sparse-mixer-close".into()).spawn(move || drop(file)));
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
    use crate::runtime::never;

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
        file.commit(&never).unwrap();
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
        second.commit(&never).unwrap();
        first.commit(&never).unwrap();
        assert_eq!(names(&folder), [".weights.npz.1-2-3.tmp", "weights"]);
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn an_interrupt_while_waiting_for_the_disk_leaves_the_old_file() {
        let folder = folder("interrupt");
        let path = folder.join("weights");
        std::fs::write(&path, "old").unwrap();
        let mut file = AtomicFile::create(&path).unwrap();
        file.write_all(&vec![1; SYNC_DIRECTLY_BELOW as usize]).unwrap();
        match file.commit(&|| true) {
            Err(Error::Interrupted) => assert_eq!(std::fs::read(&path).unwrap(), b"old"),
            // The disk was faster than the first look.
            Ok(()) => assert_eq!(std::fs::read(&path).unwrap().len() as u64, SYNC_DIRECTLY_BELOW),
            Err(other) => panic!("{other}"),
        }
        assert_eq!(names(&folder), ["weights"]);
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
        file.commit(&never).unwrap();
        assert!(link.is_symlink());
        assert_eq!(std::fs::read(&real).unwrap(), b"new");
        assert_eq!(std::fs::metadata(&real).unwrap().permissions().mode() & 0o777, 0o640);
        assert!(AtomicFile::create(&folder).is_err());
        std::fs::remove_dir_all(folder).unwrap();
    }
}
