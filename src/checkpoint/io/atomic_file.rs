//! Files that appear whole or not at all.

use std::fs::{File, Metadata, OpenOptions, Permissions, TryLockError};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use tempfile::NamedTempFile;

use crate::error::{Error, Result};
use crate::runtime::Interrupt;

/// How often a caller that waits for the disk looks for an interrupt.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Files below this size reach any disk soon enough to wait for them.
const SYNC_DIRECTLY_BELOW: u64 = 4 << 20;
/// Names of temporary files are this, a checksum of the final name, `-`, random letters and digits, and `.tmp`: of one
/// length whatever the final name's, and of a form that no other program makes.
const TEMPORARY_PREFIX: &str = ".sparse_mixer-";
const TEMPORARY_SUFFIX: &str = ".tmp";
const RANDOM_CHARACTERS: usize = 12;
/// Most symbolic links followed from a name to its file, as Linux does.
const MAX_LINKS: usize = 40;

/// A file being written beside its final place. [`AtomicFile::commit`] moves it there in one step, after its content
/// has reached the disk; dropping it without that removes it. A crash at any moment leaves the old file or the new one.
///
/// The temporary file is locked while it is written, so that leftovers of killed processes can be told from the files
/// of running ones; the next write of the same name removes leftovers. While it is written, nobody can read it who
/// could not read the file that it replaces.
#[derive(Debug)]
pub struct AtomicFile {
    /// There until the end.
    file: Option<NamedTempFile>,
    target: PathBuf,
    /// Of the file that is replaced.
    permissions: Option<Permissions>,
}

impl AtomicFile {
    /// Starts a replacement for `path`, or a new file there. A symbolic link keeps pointing where it does: what it
    /// points to is replaced, or made.
    ///
    /// # Errors
    /// `path` is a folder, pipe or device, or the temporary file cannot be created in its folder.
    pub fn create(path: &Path) -> Result<Self> {
        Self::create_io(path).map_err(|source| Error::Io { path: path.display().to_string(), source })
    }

    fn create_io(path: &Path) -> io::Result<Self> {
        let target = follow_links(path)?;
        let Some(name) = target.file_name() else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "does not name a file"));
        };
        let prefix = format!("{TEMPORARY_PREFIX}{:08x}-", crc32c::crc32c(name.as_encoded_bytes()));
        let folder = folder_of(&target);
        remove_leftovers(folder, &prefix);
        let permissions = std::fs::metadata(&target).ok().map(|old| old.permissions());
        loop {
            let file = tempfile::Builder::new()
                .prefix(&prefix)
                .suffix(TEMPORARY_SUFFIX)
                .rand_bytes(RANDOM_CHARACTERS)
                .make_in(folder, |path| create_new(path, permissions.is_some()))?;
            // Between creation and lock, another process may take the file for a leftover: then its lock is in the way,
            // or the file is gone. Some file systems cannot lock; nothing is removed there.
            if !matches!(file.as_file().try_lock(), Err(TryLockError::WouldBlock)) && file.path().exists() {
                return Ok(Self { file: Some(file), target, permissions });
            }
        }
    }

    fn file(&self) -> io::Result<&File> {
        self.file.as_ref().map(NamedTempFile::as_file).ok_or_else(closed)
    }

    /// Where the content is until [`AtomicFile::commit`], for writers that open files by name.
    ///
    /// # Panics
    /// The file has been given up.
    pub fn temporary(&self) -> &Path {
        self.file.as_ref().expect("the file is there until the end").path()
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
        let old = std::fs::metadata(&self.target).map(|old| old.permissions());
        if let Some(permissions) = old.ok().or_else(|| self.permissions.clone()) {
            // A refusal only means that the new file has narrower permissions.
            drop(file.set_permissions(permissions));
        }
        if file.metadata().map_err(in_file)?.len() < SYNC_DIRECTLY_BELOW {
            file.sync_all().map_err(in_file)?;
        } else {
            self.sync_in_background(interrupt, in_file)?;
        }
        let file = self.file.take().ok_or_else(|| in_file(closed()))?;
        if let Err(refused) = file.persist(&self.target) {
            self.file = Some(refused.file);
            return Err(in_file(refused.error));
        }
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
            match waiting.recv_timeout(POLL_INTERVAL) {
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
        if let Some(file) = self.file.take() {
            let (file, temporary) = file.into_parts();
            // Nothing can be done about a failure here; the next write of the same name tries again.
            drop(temporary.close());
            close_in_background(file);
        }
    }
}

fn closed() -> io::Error {
    io::Error::other("the file has been closed")
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

/// Creates the file at `path`, for its owner alone if it is to be `private`.
fn create_new(path: &Path, private: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true);
    #[cfg(unix)]
    if private {
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    }
    #[cfg(not(unix))]
    let _ = private; // Files take the rights of their folder there.
    options.open(path)
}

/// The place of the regular file that `path` names, whether or not there is one yet.
fn follow_links(path: &Path) -> io::Result<PathBuf> {
    // What the system says of the end of all links comes first: those below /proc/self/fd lead to no name.
    if let Ok(found) = std::fs::metadata(path) {
        require_regular(&found)?;
    }
    let mut target = std::path::absolute(path)?;
    for _ in 0..MAX_LINKS {
        match std::fs::symlink_metadata(&target) {
            Ok(found) if found.is_symlink() => {
                target = folder_of(&target).join(std::fs::read_link(&target)?);
            }
            Ok(found) => return require_regular(&found).map(|()| target),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(target),
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "too many symbolic links"))
}

fn require_regular(found: &Metadata) -> io::Result<()> {
    match (found.is_file(), found.is_dir()) {
        (true, _) => Ok(()),
        (_, true) => Err(io::Error::new(io::ErrorKind::IsADirectory, "is a folder, not a file")),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "is a pipe, socket or device, which cannot be replaced by a file; give the name of a file",
        )),
    }
}

/// Removes temporary files whose names begin with `prefix` and whose writers are gone. Best effort.
fn remove_leftovers(folder: &Path, prefix: &str) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let random = name
            .to_str()
            .and_then(|name| name.strip_prefix(prefix)?.strip_suffix(TEMPORARY_SUFFIX))
            .filter(|random| random.len() == RANDOM_CHARACTERS);
        let is_ours = random.is_some_and(|random| random.bytes().all(|byte| byte.is_ascii_alphanumeric()));
        // Not that of what a link points to.
        if !is_ours || !entry.file_type().is_ok_and(|kind| kind.is_file()) {
            continue;
        }
        if let Ok(file) = OpenOptions::new().write(true).open(entry.path())
            && file.try_lock().is_ok()
        {
            drop(std::fs::remove_file(entry.path()));
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

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn replace(path: &Path, content: &str) {
        let mut file = AtomicFile::create(path).unwrap();
        file.write_all(content.as_bytes()).unwrap();
        file.commit(&never).unwrap();
    }

    #[test]
    fn the_old_file_stays_until_commit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
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
        assert_eq!(names(folder.path()), ["weights"]);
    }

    #[test]
    fn leftovers_go_and_files_of_running_writers_stay() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        let leftover_of = |path: &Path| {
            let file = AtomicFile::create(path).unwrap();
            let leftover = file.temporary().to_owned();
            drop(file);
            std::fs::write(&leftover, "of a killed process").unwrap();
            leftover.file_name().unwrap().to_str().unwrap().to_owned()
        };
        leftover_of(&path);
        let of_another = leftover_of(&folder.path().join("weights.npz"));
        let first = AtomicFile::create(&path).unwrap();
        replace(&path, "second");
        first.commit(&never).unwrap();
        assert_eq!(names(folder.path()), [of_another.as_str(), "weights"]);
    }

    #[test]
    fn files_of_the_user_stay() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        let ours =
            AtomicFile::create(&path).unwrap().temporary().file_name().unwrap().to_str().unwrap().to_owned();
        let (start, _) = ours.rsplit_once('-').unwrap();
        let users = [
            ".weights.backup.tmp".to_owned(),
            ".weights.1-2-3.tmp".to_owned(),
            "weights.tmp".to_owned(),
            format!("{start}-backup.tmp"),
            format!("{start}-123456789012.tmp.old"),
            format!("{start}-1234.6789012.tmp"),
        ];
        for name in &users {
            std::fs::write(folder.path().join(name), "precious").unwrap();
        }
        let mut all = users.to_vec();
        #[cfg(unix)]
        {
            let link = format!("{start}-abcdefghijkl.tmp");
            std::os::unix::fs::symlink("weights.tmp", folder.path().join(&link)).unwrap();
            all.push(link);
        }
        replace(&path, "new");
        all.push("weights".to_owned());
        all.sort();
        assert_eq!(names(folder.path()), all);
    }

    #[test]
    fn names_may_be_as_long_as_the_system_allows() {
        let folder = tempfile::tempdir().unwrap();
        let name = "w".repeat(255);
        replace(&folder.path().join(&name), "new");
        assert_eq!(names(folder.path()), [name]);
    }

    #[test]
    fn an_interrupt_while_waiting_for_the_disk_leaves_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        std::fs::write(&path, "old").unwrap();
        let mut file = AtomicFile::create(&path).unwrap();
        file.write_all(&vec![1; SYNC_DIRECTLY_BELOW as usize]).unwrap();
        match file.commit(&|| true) {
            Err(Error::Interrupted) => assert_eq!(std::fs::read(&path).unwrap(), b"old"),
            // The disk was faster than the first look.
            Ok(()) => assert_eq!(std::fs::read(&path).unwrap().len() as u64, SYNC_DIRECTLY_BELOW),
            Err(other) => panic!("{other}"),
        }
        assert_eq!(names(folder.path()), ["weights"]);
    }

    #[cfg(unix)]
    #[test]
    fn permissions_are_kept_and_never_wider() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        for kept in [0o600, 0o640, 0o444, 0o664] {
            let path = folder.path().join(format!("{kept:o}"));
            std::fs::write(&path, "old").unwrap();
            std::fs::set_permissions(&path, Permissions::from_mode(kept)).unwrap();
            let mut file = AtomicFile::create(&path).unwrap();
            file.write_all(b"new").unwrap();
            assert_eq!(mode(file.temporary()) & 0o077 & !kept, 0, "{kept:o}");
            file.commit(&never).unwrap();
            assert_eq!(mode(&path), kept);
        }
        // A new file is what the user's mask makes of any new file.
        let (ours, theirs) = (folder.path().join("ours"), folder.path().join("theirs"));
        replace(&ours, "new");
        std::fs::write(&theirs, "new").unwrap();
        assert_eq!(mode(&ours), mode(&theirs));
    }

    #[cfg(unix)]
    #[test]
    fn links_are_written_through_wherever_they_lead() {
        use std::os::unix::fs::symlink;
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name);
        std::fs::create_dir(place("inner")).unwrap();
        std::fs::write(place("inner/real"), "old").unwrap();
        symlink("inner/real", place("link")).unwrap();
        symlink("link", place("link to a link")).unwrap();
        symlink("inner/absent", place("dangling")).unwrap();
        symlink("endless", place("endless")).unwrap();
        replace(&place("link to a link"), "new");
        replace(&place("dangling"), "made");
        assert_eq!(std::fs::read(place("inner/real")).unwrap(), b"new");
        assert_eq!(std::fs::read(place("inner/absent")).unwrap(), b"made");
        assert_eq!(names(&place("inner")), ["absent", "real"]);
        for link in ["link", "link to a link", "dangling"] {
            assert!(place(link).is_symlink(), "{link}");
        }
        assert!(AtomicFile::create(&place("endless")).is_err());
        assert!(AtomicFile::create(folder.path()).unwrap_err().to_string().contains("folder"));
    }

    #[cfg(unix)]
    #[test]
    fn what_is_no_regular_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("/dev/null", &link).unwrap();
        for path in [&*socket, &*link, Path::new("/dev/null")] {
            let error = AtomicFile::create(path).unwrap_err().to_string();
            assert!(error.contains("pipe, socket or device"), "{error}");
        }
        assert_eq!(names(folder.path()), ["link", "socket"]);
    }
}
