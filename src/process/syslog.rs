//! Lines to the system's log (RFC 3164, as syslog(3) writes them to /dev/log).

use super::wording::Severity;
use crate::base::Clock;
use crate::config::SyslogFacility;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;

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
        let packet = self.packet(severity, text, Clock::unix_micros());
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

    fn packet(&self, severity: Severity, text: &str, unix_us: u64) -> Vec<u8> {
        let priority = u32::from(self.facility.code()) * 8 + u32::from(severity.priority());
        let (ident, pid) = (&self.ident, std::process::id());
        let time = time(unix_us / 1_000_000);
        format!("<{priority}>{time} {ident}[{pid}]: {text}").into_bytes()
    }
}

/// `Nov  3 07:05:33`, in UTC.
fn time(unix_s: u64) -> String {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let (month, day) = month_and_day(unix_s / 86_400);
    let month = MONTHS.get(month).unwrap_or(&MONTHS[0]);
    let (hour, minute, second) = (unix_s / 3600 % 24, unix_s / 60 % 60, unix_s % 60);
    format!("{month} {day:>2} {hour:02}:{minute:02}:{second:02}")
}

/// Month from 0 and day from 1, `days` after 1970-01-01 (H. Hinnant, "chrono-compatible low-level date algorithms":
/// years that begin in March).
fn month_and_day(days: u64) -> (usize, u64) {
    let of_era = (days + 719_468) % 146_097;
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    (((from_march + 2) % 12) as usize, day)
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

    #[test]
    fn times_are_those_of_the_calendar() {
        let cases = [
            (0, "Jan  1 00:00:00"),
            (951_782_399, "Feb 28 23:59:59"),
            (951_782_400, "Feb 29 00:00:00"),
            (951_868_800, "Mar  1 00:00:00"),
            (1_795_464_000, "Nov 23 20:00:00"),
            (1_798_761_599, "Dec 31 23:59:59"),
        ];
        for (unix_s, expected) in cases {
            assert_eq!(time(unix_s), expected);
        }
    }
}
