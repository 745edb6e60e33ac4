//! Who the process is: another user than root, and perhaps a process of its own in the background. Both happen before
//! there is a second thread.

use super::error::StartError;
use nix::unistd::{ForkResult, Uid, User, fork, getuid, initgroups, setgid, setsid, setuid};
use rustix::pipe::pipe;
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};

/// Becomes `user` with all its groups.
///
/// # Errors
/// If there is no such user, or we may not.
pub(super) fn become_user(name: &str) -> Result<(), StartError> {
    let failed = |source: io::Error| StartError::User {
        name: name.to_owned(),
        source,
    };
    let unknown = || {
        failed(io::Error::new(
            io::ErrorKind::NotFound,
            "there is no such user",
        ))
    };
    let found = User::from_name(name).map_err(|error| failed(error.into()))?;
    let user = found.ok_or_else(unknown)?;
    if user.uid == getuid() {
        return Ok(());
    }
    let c_name = CString::new(name).map_err(|_| unknown())?;
    initgroups(&c_name, user.gid)
        .and_then(|()| setgid(user.gid))
        .and_then(|()| setuid(user.uid))
        .map_err(|error| failed(error.into()))
}

/// Whether we are root.
pub(super) fn is_root() -> bool {
    Uid::effective().is_root()
}

/// What a process in the background still has of its terminal, and who waits there.
pub(super) struct Starting {
    waiting: File,
}

/// Goes on in a process in the background. The one in the foreground waits until that serves, and ends: with success,
/// or with failure if it does not come to serve.
///
/// # Errors
/// If there is no second process to be had.
#[allow(unsafe_code)]
pub(super) fn go_to_background() -> Result<Starting, StartError> {
    let failed = |source| StartError::System {
        what: "go to the background",
        source,
    };
    let (reader, writer) = pipe().map_err(|error| failed(error.into()))?;
    // SAFETY: there is one thread as yet, so the child may do whatever the parent may.
    match unsafe { fork() }.map_err(|error| failed(error.into()))? {
        ForkResult::Parent { .. } => {
            drop(writer);
            std::process::exit(i32::from(!is_serving(reader.into())));
        }
        ForkResult::Child => {}
    }
    drop(reader);
    setsid().map_err(|error| failed(error.into()))?;
    // SAFETY: as above. Who is no session leader never gets a terminal again.
    match unsafe { fork() }.map_err(|error| failed(error.into()))? {
        ForkResult::Parent { .. } => std::process::exit(0),
        ForkResult::Child => Ok(Starting {
            waiting: writer.into(),
        }),
    }
}

/// Whether the process in the background said so before it let go of the pipe.
fn is_serving(mut pipe: File) -> bool {
    let mut word = Vec::new();
    pipe.read_to_end(&mut word).is_ok_and(|length| length > 0)
}

impl Starting {
    /// Serves: lets the terminal go.
    pub(super) fn done(mut self) {
        if let Ok(nothing) = OpenOptions::new().read(true).write(true).open("/dev/null") {
            // Whatever is still said there has no reader.
            let _ = dup2_stdin(&nothing);
            let _ = dup2_stdout(&nothing);
            let _ = dup2_stderr(&nothing);
        }
        let _ = self.waiting.write_all(b"+");
    }
}
