//! The file of our Unix socket.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The file of a socket that this process listens at; it goes when this is dropped, but not another that has taken its place.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    id: FileId,
}

/// Which file a name stands for: device and inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileId(u64, u64);

impl FileId {
    /// That of the file at `path`.
    ///
    /// # Errors
    /// If there is none, or it cannot be looked at.
    pub(super) fn of(path: &Path) -> io::Result<FileId> {
        let file = fs::symlink_metadata(path)?;
        Ok(FileId(file.dev(), file.ino()))
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

impl Drop for SocketFile {
    fn drop(&mut self) {
        if !self.is_replaced() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn file_goes_with_its_process_but_not_a_successors() {
        let directory = tempfile::tempdir().unwrap();
        let (path, draft) = (directory.path().join("s"), directory.path().join("new"));
        let _old = UnixListener::bind(&path).unwrap();
        let old_file = SocketFile::new(&path).unwrap();
        let new = UnixListener::bind(&draft).unwrap();
        let mut new_file = SocketFile::new(&draft).unwrap();
        assert!(!old_file.is_replaced());
        new_file.move_to(&path).unwrap();
        assert!(old_file.is_replaced() && !new_file.is_replaced() && !draft.exists());
        drop(old_file);
        let _client = UnixStream::connect(&path).unwrap();
        new.accept().unwrap();
        drop(new_file);
        assert!(!path.exists());
    }
}
