//! Lines to the system's log (RFC 3164, as syslog(3) writes them to /dev/log).

use super::local_time;
use super::wording::Severity;
use crate::config::SyslogFacility;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::SystemTime;

/// Where the system listens.
const SOCKET: &str = "/dev/log";

/// A way to the system's log; it is found again after it was lost.
pub(super) struct Syslog {
    path: PathBuf,
    ident: String,
    facility: SyslogFacility,
    socket: Option<UnixDatagram>,
}

impl Syslog {
    /// Lines are marked with `ident` and `facility`.
    pub(super) fn new(ident: &str, facility: SyslogFacility) -> Syslog {
        Syslog {
            path: SOCKET.into(),
            ident: ident.to_owned(),
            facility,
            socket: None,
        }
    }

    /// Sends a line if it can be sent at once; whoever reads syslog has the other outlets for the rest.
    pub(super) fn put(&mut self, severity: Severity, text: &str) {
        let packet = self.packet(severity, text, SystemTime::now());
        if self.send(&packet).is_err() {
            // The daemon may have been started anew.
            self.socket = None;
            let _ = self.send(&packet);
        }
    }

    fn send(&mut self, packet: &[u8]) -> io::Result<usize> {
        let socket = match self.socket.take() {
            Some(socket) => socket,
            None => {
                let socket = UnixDatagram::unbound()?;
                socket.set_nonblocking(true)?;
                socket.connect(&self.path)?;
                socket
            }
        };
        self.socket.insert(socket).send(packet)
    }

    fn packet(&self, severity: Severity, text: &str, now: SystemTime) -> Vec<u8> {
        let priority = u32::from(self.facility.code()) * 8 + u32::from(severity.priority());
        let (ident, pid) = (&self.ident, std::process::id());
        let time = local_time::of_syslog(now);
        format!("<{priority}>{time} {ident}[{pid}]: {text}").into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_arrive_and_find_a_daemon_that_was_started_anew() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut syslog = Syslog {
            path: path.clone(),
            ..Syslog::new("pooler", SyslogFacility::Local0)
        };
        syslog.put(Severity::Info, "nobody listens");
        for text in ["first", "second"] {
            let _ = std::fs::remove_file(&path);
            let daemon = UnixDatagram::bind(&path).unwrap();
            syslog.put(Severity::Warning, text);
            let mut packet = [0; 200];
            let length = daemon.recv(&mut packet).unwrap();
            let packet = String::from_utf8_lossy(&packet[..length]).into_owned();
            let pid = std::process::id();
            assert!(packet.starts_with("<132>"), "{packet}");
            assert!(
                packet.ends_with(&format!(" pooler[{pid}]: {text}")),
                "{packet}"
            );
        }
    }
}
