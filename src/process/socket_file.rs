//! The file of our Unix socket.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

/// The file of a socket that this process listens at; it goes when this is dropped, but not another that has taken its place: then its
/// second name does.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    id: FileId,
}

/// Which file a name stands for: device, inode, and when it was made, since 1970; 0 where the file system does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileId(u64, u64, Duration);

impl FileId {
    /// That of the file at `path`.
    ///
    /// # Errors
    /// If there is none, or it cannot be looked at.
    pub(super) fn of(path: &Path) -> io::Result<FileId> {
        let file = fs::symlink_metadata(path)?;
        let made = file.created().ok();
        let made = made.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        Ok(FileId(file.dev(), file.ino(), made.unwrap_or_default()))
    }

    /// A name by which this file at `path` can still be found when another is there: one that no other file ever has.
    pub(super) fn second_name(self, path: &Path) -> PathBuf {
        let FileId(_, inode, made) = self;
        file_beside(path, &format!("{:x}-{inode:x}", made.as_nanos()))
    }
}

impl SocketFile {
    /// Takes the file at `path`, which this process has just made.
    ///
    /// # Errors
    /// If it is not there any more.
    pub(super) fn new(path: &Path) -> io::Result<SocketFile> {
        let id = FileId::of(path)?;
        let path = std::path::absolute(path)?;
        Ok(SocketFile { path, id })
    }

    /// Whether another process has put its own in the file's place.
    pub(super) fn is_replaced(&self) -> bool {
        FileId::of(&self.path).is_ok_and(|id| id != self.id)
    }

    /// Puts it at `path`, in place of what is there: whoever connects comes to the one or to the other.
    ///
    /// # Errors
    /// Those of rename(2).
    pub(super) fn move_to(&mut self, path: &Path) -> io::Result<()> {
        let path = std::path::absolute(path)?;
        fs::rename(&self.path, &path)?;
        self.path = path;
        Ok(())
    }
}

/// Another socket's file beside the one at `path`, with the same port at its end, as our end of a connection keeps it.
pub(super) fn file_beside(path: &Path, name: &str) -> PathBuf {
    let mut name = OsString::from(format!(".{name}."));
    name.push(path.extension().unwrap_or_default());
    path.with_file_name(name)
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if FileId::of(&self.path).is_ok_and(|id| id == self.id) {
            let _ = fs::remove_file(&self.path);
        }
        // Its successor may have come and gone.
        let _ = fs::remove_file(self.id.second_name(&self.path));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn file_beside_a_socket_has_its_port() {
        let draft = file_beside(Path::new("/run/a/.s.PGSQL.6432"), "new");
        assert_eq!(draft, Path::new("/run/a/.new.6432"));
    }

    #[test]
    fn file_goes_with_its_process_but_not_a_successors() {
        let directory = tempfile::tempdir().unwrap();
        let (path, draft) = (directory.path().join("s"), directory.path().join("new"));
        let _old = UnixListener::bind(&path).unwrap();
        let old_file = SocketFile::new(&path).unwrap();
        let new = UnixListener::bind(&draft).unwrap();
        let mut new_file = SocketFile::new(&draft).unwrap();
        assert!(!old_file.is_replaced());
        let second = FileId::of(&path).unwrap().second_name(&path);
        fs::hard_link(&path, &second).unwrap();
        new_file.move_to(&path).unwrap();
        assert!(old_file.is_replaced() && !new_file.is_replaced() && !draft.exists());
        assert!(FileId::of(&second).unwrap() != FileId::of(&path).unwrap());
        drop(old_file);
        assert!(!second.exists());
        let _client = UnixStream::connect(&path).unwrap();
        new.accept().unwrap();
        drop(new_file);
        assert!(!path.exists());
    }

    #[test]
    fn second_name_goes_also_when_the_successor_went_first() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s.1");
        let _old = UnixListener::bind(&path).unwrap();
        let old_file = SocketFile::new(&path).unwrap();
        let second = FileId::of(&path).unwrap().second_name(&path);
        fs::hard_link(&path, &second).unwrap();
        fs::remove_file(&path).unwrap();
        drop(old_file);
        assert!(!second.exists());
    }
}
