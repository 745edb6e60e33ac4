//! Logs: to standard error, with a level that a reload can change.
//!
//! Shards write their lines themselves, so a line must never wait: what standard error does not take at once, because
//! whoever reads the pipe is slow, is dropped, and the next line that gets through says how many there were. A line is
//! written before the event's consequences can be seen from outside.

use crate::config::LogLevel;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fmt::Write as _;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::{Mutex, OnceLock};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, fmt, reload};

/// Longest line in bytes; more is cut off. A pipe that can be written to takes as many at once (POSIX: PIPE_BUF).
const LINE_BYTES_MAX: usize = 4096;

static LEVEL: OnceLock<reload::Handle<LevelFilter, Registry>> = OnceLock::new();

/// Starts logging; later calls change the level.
pub(super) fn set_level(level: LogLevel) {
    let filter = filter(level);
    if let Some(handle) = LEVEL.get() {
        // Fails only if the subscriber is gone, and then nobody logs.
        let _ = handle.reload(filter);
        return;
    }
    let (filter, handle) = reload::Layer::new(filter);
    let format = fmt::layer()
        .with_writer(Mutex::new(Impatient::new(io::stderr())))
        .with_ansi(false)
        .with_target(false);
    if tracing_subscriber::registry()
        .with(filter)
        .with(format)
        .try_init()
        .is_ok()
    {
        let _ = LEVEL.set(handle);
    }
}

fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}

/// Writes whole lines, or drops and counts them where it would have to wait.
struct Impatient<F> {
    out: F,
    dropped: u64,
}

impl<F: AsFd> Impatient<F> {
    fn new(out: F) -> Impatient<F> {
        Impatient { out, dropped: 0 }
    }

    fn try_write(&self, line: &[u8]) -> bool {
        let mut wanted = [PollFd::new(&self.out, PollFlags::OUT)];
        let at_once = Timespec::default();
        poll(&mut wanted, Some(&at_once)).is_ok_and(|ready| ready > 0)
            && rustix::io::write(&self.out, line).is_ok()
    }

    /// Says how many lines are missing.
    fn confess(&mut self) {
        let mut note = String::new();
        // Writing to a string cannot fail.
        let _ = SystemTime.format_time(&mut Writer::new(&mut note));
        let _ = writeln!(
            note,
            "  WARN log lines dropped, standard error was full lines={}",
            self.dropped
        );
        if self.try_write(note.as_bytes()) {
            self.dropped = 0;
        }
    }
}

impl<F: AsFd> Write for Impatient<F> {
    /// Takes one line.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.dropped > 0 {
            self.confess();
        }
        let is_written = match line.get(..LINE_BYTES_MAX - 1) {
            Some(part) if line.len() > LINE_BYTES_MAX => self.try_write(&[part, b"\n"].concat()),
            _ => self.try_write(line),
        };
        if !is_written {
            self.dropped += 1;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, PipeReader, PipeWriter, pipe};

    fn log_and_reader() -> (Impatient<PipeWriter>, BufReader<PipeReader>) {
        let (reader, writer) = pipe().unwrap();
        (Impatient::new(writer), BufReader::new(reader))
    }

    fn next_line(reader: &mut BufReader<PipeReader>) -> String {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        line
    }

    #[test]
    fn lines_that_would_have_to_wait_are_dropped_counted_and_confessed() {
        let (mut log, mut reader) = log_and_reader();
        let line = [&[b'x'; LINE_BYTES_MAX - 1][..], b"\n"].concat();
        let mut written = 0;
        while log.dropped == 0 {
            log.write_all(&line).unwrap();
            written += 1;
        }
        log.write_all(&line).unwrap();
        for _ in 1..written {
            assert_eq!(next_line(&mut reader).len(), line.len());
        }
        log.write_all(b"after\n").unwrap();
        let confession = next_line(&mut reader);
        assert!(confession.ends_with("was full lines=2\n"), "{confession}");
        assert_eq!(next_line(&mut reader), "after\n");
    }

    #[test]
    fn a_line_that_is_too_long_is_cut_and_stays_one_line() {
        let (mut log, mut reader) = log_and_reader();
        log.write_all(&[b'x'; 3 * LINE_BYTES_MAX]).unwrap();
        log.write_all(b"after\n").unwrap();
        assert_eq!(next_line(&mut reader).len(), LINE_BYTES_MAX);
        assert_eq!(next_line(&mut reader), "after\n");
    }

    #[test]
    fn nobody_reading_is_no_error() {
        let (mut log, reader) = log_and_reader();
        drop(reader);
        log.write_all(b"lost\n").unwrap();
        assert_eq!(log.dropped, 1);
    }
}
