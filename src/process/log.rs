//! Logs: to standard error (or the journal behind it), to `logfile` and to syslog, with a level that a reload can change.
//!
//! Shards write their lines themselves, so that a line stands in the log before the event's consequences can be seen
//! from outside, and so a line must never wait: what an outlet does not take at once, because whoever reads the pipe is
//! slow, is dropped, and the next line that gets through says how many there were. (A file takes everything at once:
//! the page cache does.)

use super::local_time;
use super::syslog::Syslog;
use super::wording::{Event, Severity};
use crate::config::{Config, Dialect, General, LogLevel};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FileType;
use std::fs::{File, OpenOptions};
use std::io::{self, Stderr};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use tracing::Subscriber;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, reload};

/// Longest line in bytes; more is cut off. A pipe that can be written to takes as many at once (POSIX: PIPE_BUF).
const LINE_BYTES_MAX: usize = 4096;

static LEVEL: OnceLock<reload::Handle<LevelFilter, Registry>> = OnceLock::new();
static OUTLETS: Mutex<Outlets> = Mutex::new(Outlets::new());

/// What the command line says about logs.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Wishes {
    /// Nothing to standard error.
    pub(super) quiet: bool,
    /// How much more to log.
    pub(super) verbose: u32,
}

/// Starts logging as `config` says; later calls change what has changed, and open the log file anew.
///
/// # Errors
/// If the log file cannot be opened; everything else is in force then.
pub(super) fn apply(config: &Config, wishes: Wishes) -> io::Result<()> {
    let general = &config.general;
    let opened = outlets().apply(general, config.dialect, wishes);
    let filter = filter(general, wishes);
    if let Some(handle) = LEVEL.get() {
        // Fails only if the subscriber is gone, and then nobody logs.
        let _ = handle.reload(filter);
        return opened;
    }
    let (filter, handle) = reload::Layer::new(filter);
    let registry = tracing_subscriber::registry().with(filter).with(Lines);
    if registry.try_init().is_ok() {
        let _ = LEVEL.set(handle);
    }
    opened
}

/// Leaves standard error alone from now on, as a daemon has to.
pub(super) fn leave_stderr() {
    outlets().stderr = None;
}

/// Writes a last line, about why the process does not go on, to all but standard error, where it will stand anyway.
pub(super) fn fatal(error: &str) {
    let mut outlets = outlets();
    let stderr = outlets.stderr.take();
    outlets.put(Severity::Fatal, error);
    outlets.stderr = stderr;
}

fn outlets() -> MutexGuard<'static, Outlets> {
    OUTLETS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn filter(general: &General, wishes: Wishes) -> LevelFilter {
    let level = match general.log_level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let wanted = match general.verbose.saturating_add(wishes.verbose) {
        0 => level,
        1 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    level.max(wanted)
}

/// Turns events into lines.
struct Lines;

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let recorded = Event::of(event);
        let mut outlets = outlets();
        let (severity, text) = match outlets.dialect {
            Dialect::Toml => recorded.own_wording(),
            Dialect::Ini => recorded.pgbouncers_wording(),
        };
        outlets.put(severity, &text);
    }
}

/// Where lines go.
struct Outlets {
    dialect: Dialect,
    stderr: Option<Impatient<Stderr>>,
    /// Standard error is read by systemd's journal, which wants a priority and no time.
    is_journal: bool,
    file: Option<Impatient<File>>,
    syslog: Option<Syslog>,
}

impl Outlets {
    const fn new() -> Outlets {
        Outlets {
            dialect: Dialect::Toml,
            stderr: None,
            is_journal: false,
            file: None,
            syslog: None,
        }
    }

    fn apply(&mut self, general: &General, dialect: Dialect, wishes: Wishes) -> io::Result<()> {
        self.dialect = dialect;
        self.is_journal = is_journal(&io::stderr());
        if LEVEL.get().is_none() && !wishes.quiet {
            self.stderr = Some(Impatient::new(io::stderr()));
        }
        self.syslog = general
            .syslog
            .then(|| Syslog::new(&general.syslog_ident, general.syslog_facility));
        // The old file goes on if there is no new one.
        let opened = general.logfile.as_deref().map(open).transpose()?;
        self.file = opened.map(Impatient::new);
        Ok(())
    }

    /// One line for each line of `text`, all with one write: how many there are must not show in how long it takes.
    fn put(&mut self, severity: Severity, text: &str) {
        let head = Head::now(self.dialect);
        let lines = |out: &mut Vec<u8>, head: &str| {
            for text in text.lines() {
                line(out, head, text);
            }
        };
        if let Some(stderr) = &mut self.stderr {
            let is_journal = self.is_journal;
            stderr.put(|out| match is_journal {
                true => lines(out, &format!("<{}>", severity.priority())),
                false => lines(out, &head.of(severity)),
            });
        }
        if let Some(file) = &mut self.file {
            file.put(|out| lines(out, &head.of(severity)));
        }
        if let Some(syslog) = &mut self.syslog {
            text.lines().for_each(|text| syslog.put(severity, text));
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

/// Whether a descriptor is the stream that systemd has told of (systemd.exec(5), JOURNAL_STREAM).
fn is_journal(stream: &impl AsFd) -> bool {
    let told = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    let Ok(file) = stream.as_fd().try_clone_to_owned().map(File::from) else {
        return false;
    };
    let about = file.metadata();
    about.is_ok_and(|about| told == format!("{}:{}", about.dev(), about.ino()))
}

/// The part of a line that says when.
struct Head {
    dialect: Dialect,
    time: String,
}

impl Head {
    fn now(dialect: Dialect) -> Head {
        let time = match dialect {
            Dialect::Toml => utc_now(),
            Dialect::Ini => local_time::written(std::time::SystemTime::now()),
        };
        Head { dialect, time }
    }

    fn of(&self, severity: Severity) -> String {
        match self.dialect {
            Dialect::Toml => format!("{} {:>5} ", self.time, severity.own_word()),
            Dialect::Ini => {
                let (time, word) = (&self.time, severity.pgbouncers_word());
                format!("{time} [{}] {word} ", std::process::id())
            }
        }
    }
}

/// `2026-11-23T07:05:33.217456Z`.
fn utc_now() -> String {
    let mut time = String::new();
    // Writing to a string cannot fail.
    let _ = SystemTime.format_time(&mut Writer::new(&mut time));
    time
}

/// One line, however long it would be.
fn line(out: &mut Vec<u8>, head: &str, text: &str) {
    out.extend_from_slice(head.as_bytes());
    out.extend_from_slice(text.as_bytes());
    out.truncate(LINE_BYTES_MAX - 1);
    out.push(b'\n');
}

/// Writes whole lines, or drops and counts them where it would have to wait.
struct Impatient<F> {
    out: F,
    dropped: u64,
    /// A file, which never has anybody wait: nothing to ask before a line, a system call less for each.
    is_file: bool,
}

impl<F: AsFd> Impatient<F> {
    fn new(out: F) -> Impatient<F> {
        let is_file = rustix::fs::fstat(&out)
            .is_ok_and(|about| FileType::from_raw_mode(about.st_mode).is_file());
        Impatient {
            out,
            dropped: 0,
            is_file,
        }
    }

    fn put(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        if self.dropped > 0 {
            self.confess();
        }
        let mut line = Vec::new();
        write(&mut line);
        if !self.try_write(&line) {
            self.dropped += 1;
        }
    }

    fn try_write(&self, line: &[u8]) -> bool {
        (self.is_file || self.is_writable()) && rustix::io::write(&self.out, line).is_ok()
    }

    fn is_writable(&self) -> bool {
        let mut wanted = [PollFd::new(&self.out, PollFlags::OUT)];
        let at_once = Timespec::default();
        poll(&mut wanted, Some(&at_once)).is_ok_and(|ready| ready > 0)
    }

    /// Says how many lines are missing.
    fn confess(&mut self) {
        let note = format!(
            "{}  WARN log lines dropped, nobody took them lines={}\n",
            utc_now(),
            self.dropped
        );
        if self.try_write(note.as_bytes()) {
            self.dropped = 0;
        }
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

    fn put(log: &mut Impatient<PipeWriter>, text: &str) {
        log.put(|out| line(out, "", text));
    }

    #[test]
    fn lines_that_would_have_to_wait_are_dropped_counted_and_confessed() {
        let (mut log, mut reader) = log_and_reader();
        let long = "x".repeat(LINE_BYTES_MAX - 1);
        let mut written = 0;
        while log.dropped == 0 {
            put(&mut log, &long);
            written += 1;
        }
        put(&mut log, &long);
        for _ in 1..written {
            assert_eq!(next_line(&mut reader).len(), LINE_BYTES_MAX);
        }
        put(&mut log, "after");
        let confession = next_line(&mut reader);
        assert!(confession.ends_with("took them lines=2\n"), "{confession}");
        assert_eq!(next_line(&mut reader), "after\n");
    }

    #[test]
    fn a_line_that_is_too_long_is_cut_and_stays_one_line() {
        let (mut log, mut reader) = log_and_reader();
        put(&mut log, &"x".repeat(3 * LINE_BYTES_MAX));
        put(&mut log, "after");
        assert_eq!(next_line(&mut reader).len(), LINE_BYTES_MAX);
        assert_eq!(next_line(&mut reader), "after\n");
    }

    #[test]
    fn nobody_reading_is_no_error() {
        let (mut log, reader) = log_and_reader();
        drop(reader);
        put(&mut log, "lost");
        assert_eq!(log.dropped, 1);
    }

    #[test]
    fn heads_are_each_dialects_own() {
        let head = |dialect, time: &str| Head {
            dialect,
            time: time.to_owned(),
        };
        let own = head(Dialect::Toml, "2026-11-23T07:05:33.217456Z").of(Severity::Info);
        assert_eq!(own, "2026-11-23T07:05:33.217456Z  INFO ");
        let pgbouncers = head(Dialect::Ini, "2026-11-23 08:05:33.217 CET").of(Severity::Warning);
        let expected = format!(
            "2026-11-23 08:05:33.217 CET [{}] WARNING ",
            std::process::id()
        );
        assert_eq!(pgbouncers, expected);
    }
}
