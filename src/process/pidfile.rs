//! The file with our process id, which keeps a second process away.

use super::error::StartError;
use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The file of this process; it goes when this is dropped.
#[derive(Debug)]
pub(super) struct PidFile {
    path: PathBuf,
}

impl PidFile {
    /// Refuses if the process that the file names is alive; a stale file is removed.
    ///
    /// # Errors
    /// [`StartError::PidFileInUse`], or why the file cannot be read or removed.
    pub(super) fn check(path: &Path) -> Result<(), StartError> {
        let failed = |source| StartError::PidFile {
            path: path.to_owned(),
            source,
        };
        let written = match fs::read_to_string(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            written => written.map_err(failed)?,
        };
        match written.trim().parse() {
            Ok(pid) if is_somebody_else(pid) => Err(StartError::PidFileInUse {
                path: path.to_owned(),
                pid,
            }),
            _ => fs::remove_file(path).map_err(failed),
        }
    }

    /// Writes the file.
    ///
    /// # Errors
    /// Why it cannot be written; also if somebody was faster.
    pub(super) fn create(path: &Path) -> Result<PidFile, StartError> {
        PidFile::written(path, write_new(path))
    }

    /// Writes one that can take the place of that of a process which we relieve: at no time there is none.
    ///
    /// # Errors
    /// Why it cannot be written.
    pub(super) fn draft(path: &Path) -> Result<PidFileDraft, StartError> {
        let mut draft = path.as_os_str().to_owned();
        draft.push(".new");
        let written = match fs::remove_file(&draft) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => write_new(draft.as_ref()),
        };
        PidFile::written(path, written)?;
        Ok(PidFileDraft {
            draft: draft.into(),
            path: path.to_owned(),
        })
    }

    fn written(path: &Path, outcome: io::Result<()>) -> Result<PidFile, StartError> {
        outcome.map_err(|source| StartError::PidFile {
            path: path.to_owned(),
            source,
        })?;
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        Ok(PidFile { path })
    }
}

/// Goes when it is dropped, unless it has taken its place.
#[derive(Debug)]
pub(super) struct PidFileDraft {
    draft: PathBuf,
    path: PathBuf,
}

impl PidFileDraft {
    /// Puts it in the other one's place.
    ///
    /// # Errors
    /// Those of rename(2).
    pub(super) fn put_in_place(self) -> Result<PidFile, StartError> {
        PidFile::written(&self.path, fs::rename(&self.draft, &self.path))
    }
}

impl Drop for PidFileDraft {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.draft);
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        let own = std::process::id().to_string();
        // A successor may have replaced it.
        if fs::read_to_string(&self.path).is_ok_and(|written| written.trim() == own) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Writes our process id into a file that must not exist yet.
fn write_new(path: &Path) -> io::Result<()> {
    let mut file = fs::File::create_new(path)?;
    writeln!(file, "{}", std::process::id())
}

/// In a container, where ids begin anew, the file's process may be this one.
fn is_somebody_else(pid: i32) -> bool {
    let is_alive = || matches!(kill(Pid::from_raw(pid), None), Ok(()) | Err(Errno::EPERM));
    pid > 0 && u32::try_from(pid) != Ok(std::process::id()) && is_alive()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn living_process_is_respected_and_a_dead_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pid");
        PidFile::check(&path).unwrap();
        let parent = std::os::unix::process::parent_id();
        fs::write(&path, format!("{parent}\n")).unwrap();
        let refusal = PidFile::check(&path).unwrap_err();
        assert!(
            matches!(refusal, StartError::PidFileInUse { .. }),
            "{refusal}"
        );
        // 2^22 is the largest id that Linux gives.
        for stale in [
            "4194305",
            "",
            "junk",
            "-1",
            "0",
            &std::process::id().to_string(),
        ] {
            fs::write(&path, stale).unwrap();
            PidFile::check(&path).unwrap();
            assert!(!path.exists(), "{stale}");
        }
    }

    #[test]
    fn file_goes_with_its_process_but_not_a_successors() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pid");
        let file = PidFile::create(&path).unwrap();
        assert!(PidFile::create(&path).is_err());
        drop(file);
        assert!(!path.exists());
        let file = PidFile::create(&path).unwrap();
        fs::write(&path, "1").unwrap();
        drop(file);
        assert!(path.exists());
        let file = PidFile::draft(&path).unwrap().put_in_place().unwrap();
        let own = format!("{}\n", std::process::id());
        assert_eq!(fs::read_to_string(&path).unwrap(), own);
        drop(file);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
