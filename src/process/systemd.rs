//! What a process that systemd has started owes it and gets from it: sd_notify(3) and sd_listen_fds(3), without their
//! library.

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::time::{ClockId, clock_gettime};
use std::ffi::OsStr;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The first descriptor that is passed (SD_LISTEN_FDS_START).
const FIRST_PASSED: RawFd = 3;

/// Tells systemd how we are, if it wants to know.
pub(super) fn notify(state: &str) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    if let Err(error) = send(&socket, state) {
        tracing::warn!(%error, "cannot notify systemd");
    }
}

fn send(socket: &OsStr, state: &str) -> io::Result<()> {
    let address = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    let sender = UnixDatagram::unbound()?;
    sender.set_nonblocking(true)?;
    sender.send_to_addr(state.as_bytes(), &address).map(drop)
}

/// A reload begins; Type=notify-reload wants to know when (systemd 253).
pub(super) fn notify_reloading() {
    let now = clock_gettime(ClockId::Monotonic);
    let micros = now.tv_sec * 1_000_000 + now.tv_nsec / 1_000;
    notify(&format!("RELOADING=1\nMONOTONIC_USEC={micros}"));
}

/// The listening sockets that systemd passes on; none if it does not. To be called once.
pub(super) fn passed_sockets() -> Vec<OwnedFd> {
    let number = |name| std::env::var(name).ok()?.parse::<u32>().ok();
    if number("LISTEN_PID") != Some(std::process::id()) {
        return Vec::new();
    }
    let count = number("LISTEN_FDS").and_then(|count| RawFd::try_from(count).ok());
    let passed = FIRST_PASSED..FIRST_PASSED.saturating_add(count.unwrap_or(0));
    passed.filter_map(adopt).collect()
}

/// Takes a descriptor over that is open.
#[allow(unsafe_code)]
fn adopt(fd: RawFd) -> Option<OwnedFd> {
    // SAFETY: by the protocol of LISTEN_FDS this descriptor was passed to us alone, and this is called once, before
    // anything else in the process opens one; that it is open is checked before it is used otherwise.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    match fcntl_setfd(&fd, FdFlags::CLOEXEC) {
        Ok(()) => Some(fd),
        Err(_) => {
            // Closing what is not open would be an error.
            std::mem::forget(fd);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_arrives_at_a_path_and_at_an_abstract_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let by_path = UnixDatagram::bind(&path).unwrap();
        let name = format!("ringbouncer-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let by_name = UnixDatagram::bind_addr(&address).unwrap();
        let abstract_name = format!("@{name}");
        for (socket, listener) in [
            (path.as_os_str(), by_path),
            (OsStr::new(&abstract_name), by_name),
        ] {
            send(socket, "READY=1").unwrap();
            let mut packet = [0; 20];
            let length = listener.recv(&mut packet).unwrap();
            assert_eq!(&packet[..length], b"READY=1");
        }
    }
}
