//! Files that a program sees in place of the machine's own: a mount namespace of its own.

use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::ptr;

use tempfile::TempDir;

/// Whether this user may give programs mounts of their own; says so if not.
pub fn may_mount() -> bool {
    let mut nothing = Command::new("true");
    instead_of(&mut nothing, &[]);
    let outcome = nothing.status();
    if let Err(error) = &outcome {
        eprintln!("no mounts of one's own: {error}: nothing is tested");
    }
    outcome.is_ok()
}

/// Lets the program see each `(source, target)`: a file or directory at the place of another.
#[allow(unsafe_code)]
pub fn instead_of(command: &mut Command, binds: &[(&Path, &Path)]) {
    let text = |path: &Path| CString::new(path.as_os_str().as_bytes()).unwrap();
    let binds: Vec<_> = binds
        .iter()
        .map(|(source, target)| (text(source), text(target)))
        .collect();
    // SAFETY: between fork and exec the closure makes system calls and allocates nothing; it owns the paths.
    unsafe {
        command.pre_exec(move || {
            rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS)?;
            mount(None, c"/", libc::MS_REC | libc::MS_PRIVATE)?;
            binds.iter().try_for_each(|(source, target)| {
                mount(Some(source), target, libc::MS_BIND | libc::MS_REC)
            })
        });
    }
}

#[allow(unsafe_code)]
fn mount(source: Option<&CStr>, target: &CStr, flags: libc::c_ulong) -> io::Result<()> {
    let source = source.map_or(ptr::null(), CStr::as_ptr);
    // SAFETY: the paths end with a zero byte and live through the call; the rest may be null.
    let result = unsafe { libc::mount(source, target.as_ptr(), ptr::null(), flags, ptr::null()) };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A directory for the place of `/dev`, to be given to [`instead_of`] with [`Devices::binds`]: the usual devices and
/// whatever the test adds.
pub struct Devices {
    directory: TempDir,
}

impl Devices {
    const USUAL: [&str; 5] = ["null", "zero", "full", "random", "urandom"];

    pub fn new() -> Devices {
        let directory = super::drop_in::open_directory();
        for name in Devices::USUAL {
            fs::write(directory.path().join(name), "").unwrap();
        }
        Devices { directory }
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Has the program see them.
    pub fn show_to(&self, command: &mut Command) {
        let device = |name: &str| (Path::new("/dev").join(name), self.path().join(name));
        let mut pairs: Vec<_> = Devices::USUAL.map(device).into();
        pairs.push((self.path().into(), "/dev".into()));
        let binds: Vec<_> = pairs
            .iter()
            .map(|(source, target)| (&**source, &**target))
            .collect();
        instead_of(command, &binds);
    }
}
