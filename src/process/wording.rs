//! Events as lines: in our own form, text and fields, or in PgBouncer's words.

use std::fmt::{Debug, Write as _};
use tracing::Level;
use tracing::field::{Field, Visit};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Severity {
    Fatal,
    Error,
    Warning,
    Info,
    Debug,
    Trace,
}

impl Severity {
    fn of(level: Level) -> Severity {
        match level {
            Level::ERROR => Severity::Error,
            Level::WARN => Severity::Warning,
            Level::INFO => Severity::Info,
            Level::DEBUG => Severity::Debug,
            Level::TRACE => Severity::Trace,
        }
    }

    pub(super) fn own_word(self) -> &'static str {
        match self {
            Severity::Fatal => "FATAL",
            Severity::Error => "ERROR",
            Severity::Warning => "WARN",
            Severity::Info => "INFO",
            Severity::Debug => "DEBUG",
            Severity::Trace => "TRACE",
        }
    }

    pub(super) fn pgbouncers_word(self) -> &'static str {
        match self {
            Severity::Warning => "WARNING",
            Severity::Info => "LOG",
            Severity::Trace => "NOISE",
            other => other.own_word(),
        }
    }

    /// The priority of syslog(3).
    pub(super) fn priority(self) -> u8 {
        match self {
            Severity::Fatal => 2,
            Severity::Error => 3,
            Severity::Warning => 4,
            Severity::Info => 6,
            Severity::Debug | Severity::Trace => 7,
        }
    }
}

/// An event with its fields.
pub(super) struct Event {
    severity: Severity,
    text: String,
    fields: Vec<(&'static str, Recorded)>,
}

/// A field's value.
enum Recorded {
    /// A string as it is; may hold anything.
    Text(String),
    /// Something already written out.
    Written(String),
}

impl Event {
    pub(super) fn of(event: &tracing::Event<'_>) -> Event {
        let mut recorded = Event {
            severity: Severity::of(*event.metadata().level()),
            text: String::new(),
            fields: Vec::new(),
        };
        event.record(&mut recorded);
        recorded
    }

    /// `text key=value key="string"`.
    pub(super) fn own_wording(&self) -> (Severity, String) {
        let mut line = without_breaks(&self.text);
        self.append_fields(&mut line, &[]);
        (self.severity, line)
    }

    /// The line, or lines, that PgBouncer would have written, where it has the event.
    pub(super) fn pgbouncers_wording(&self) -> (Severity, String) {
        let value = |name| self.value(name);
        let words = match &*self.text {
            "login attempt" => {
                let (database, user) = (value("database"), value("user"));
                let (tls, replication) = (value("tls"), value("replication"));
                let or_no = |said: String| {
                    if said.is_empty() {
                        "no".to_owned()
                    } else {
                        said
                    }
                };
                let (tls, replication) = (or_no(tls), or_no(replication));
                let attempt = format!(
                    "login attempt: db={database} user={user} tls={tls} replication={replication}"
                );
                match self.has("is_stranger") {
                    false => attempt,
                    true => {
                        let nobody = self.prefix_of("(nodb)", "(nouser)");
                        let here = self.prefix();
                        let lines = format!("{nobody}no such user: {user}\n{here}{attempt}");
                        return (self.severity, lines);
                    }
                }
            }
            "login failed" => {
                format!(
                    "login failed: db={} user={}",
                    value("database"),
                    value("user")
                )
            }
            "RELOAD failed, the old configuration stays in force" => value("problem"),
            "pooler error" => format!("pooler error: {}", value("text")),
            "command issued" => match &*value("database") {
                "" => {
                    return (
                        self.severity,
                        format!("{} command issued", value("command")),
                    );
                }
                name => {
                    let words = format!("{} '{name}' command issued", value("command"));
                    return (self.severity, words);
                }
            },
            "closing client connection" | "closing server connection" => {
                format!(
                    "closing because: {} (age={}s)",
                    value("why"),
                    value("age_s")
                )
            }
            "new server connection" => match &*value("local") {
                unix if unix.starts_with("unix") => "new connection to server".to_owned(),
                tcp => format!("new connection to server (from {tcp})"),
            },
            "cannot open a server connection" => match &*value("cause") {
                "" => value("error"),
                cause => format!("{}: {cause}", value("error")),
            },
            "authentication database is not configured" => {
                format!(
                    "authentication database \"{}\" is not configured",
                    value("name")
                )
            }
            "server spoke out of turn" => {
                format!("got packet '{}' from server when not linked", value("tag"))
            }
            text => {
                let mut words = without_breaks(text);
                self.append_fields(
                    &mut words,
                    &[
                        "client",
                        "server",
                        "remote",
                        "database",
                        "user",
                        "is_unknown",
                    ],
                );
                words
            }
        };
        (self.severity, format!("{}{words}", self.prefix()))
    }

    /// `C-0x2a: db/user@1.2.3.4:port ` of a client, `S-..` of a server, nothing of other events.
    fn prefix(&self) -> String {
        if !["client", "server", "database"]
            .iter()
            .any(|it| self.has(it))
        {
            return String::new();
        }
        let or = |name, nobody: &str| match self.value(name) {
            said if said.is_empty() => nobody.to_owned(),
            said => said,
        };
        let database = match self.has("is_unknown") {
            true => "(nodb)".to_owned(),
            false => or("database", "(nodb)"),
        };
        self.prefix_of(&database, &or("user", "(nouser)"))
    }

    fn prefix_of(&self, database: &str, user: &str) -> String {
        let (letter, id) = match self.has("client") {
            true => ("C", self.value("client")),
            false => ("S", self.value("server")),
        };
        let id = id.parse::<u64>().unwrap_or_default();
        let remote = match self.value("remote") {
            said if said.is_empty() => said,
            said => format!("@{said}"),
        };
        format!("{letter}-0x{id:x}: {database}/{user}{remote} ")
    }

    fn has(&self, name: &str) -> bool {
        self.fields.iter().any(|(field, _)| *field == name)
    }

    /// A field's value without the quotes of a string, on one line.
    fn value(&self, name: &str) -> String {
        let found = self.fields.iter().find(|(field, _)| *field == name);
        match found.map(|(_, value)| value) {
            None => String::new(),
            Some(Recorded::Text(text)) => without_breaks(text),
            Some(Recorded::Written(text)) => {
                let inner = text
                    .strip_prefix('"')
                    .and_then(|text| text.strip_suffix('"'));
                without_breaks(inner.unwrap_or(text))
            }
        }
    }

    fn append_fields(&self, line: &mut String, but: &[&str]) {
        for (name, value) in self.fields.iter().filter(|(name, _)| !but.contains(name)) {
            // Writing to a string cannot fail.
            let _ = match value {
                Recorded::Text(text) => write!(line, " {name}={text:?}"),
                Recorded::Written(text) => write!(line, " {name}={}", without_breaks(text)),
            };
        }
    }
}

/// What strangers say must not look like a line of its own.
fn without_breaks(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        match c.is_control() {
            true => line.extend(c.escape_default()),
            false => line.push(c),
        }
    }
    line
}

impl Visit for Event {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.text = value.to_owned(),
            // Where in a library's source a line comes from.
            name if name.starts_with("log.") => {}
            name => self.fields.push((name, Recorded::Text(value.to_owned()))),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let written = format!("{value:?}");
        match field.name() {
            "message" => self.text = written,
            name if name.starts_with("log.") => {}
            name => self.fields.push((name, Recorded::Written(written))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(text: &str, fields: &[(&'static str, &str)]) -> Event {
        let recorded = fields.iter().map(|(name, value)| {
            let value = match value.starts_with('%') {
                true => Recorded::Written(value.trim_start_matches('%').to_owned()),
                false => Recorded::Text((*value).to_owned()),
            };
            (*name, value)
        });
        Event {
            severity: Severity::Info,
            text: text.to_owned(),
            fields: recorded.collect(),
        }
    }

    #[test]
    fn own_form_is_text_and_fields() {
        let event = event("login", &[("client", "%7"), ("user", "a\nb")]);
        assert_eq!(event.own_wording().1, "login client=7 user=\"a\\nb\"");
    }

    #[test]
    fn lines_are_pgbouncers() {
        let client = [("client", "%42"), ("remote", "%127.0.0.1:53898")];
        let named = [("database", "shop"), ("user", "ann")];
        let unnamed = [("database", ""), ("user", "")];
        let cases = [
            (
                event("login attempt", &[&client[..], &named].concat()),
                "C-0x2a: shop/ann@127.0.0.1:53898 login attempt: db=shop user=ann tls=no replication=no",
            ),
            (
                event(
                    "pooler error",
                    &[&client[..], &unnamed, &[("text", "%\"no\"")]].concat(),
                ),
                "C-0x2a: (nodb)/(nouser)@127.0.0.1:53898 pooler error: no",
            ),
            (
                event(
                    "closing server connection",
                    &[
                        ("database", "%\"shop\""),
                        ("user", "%\"ann\""),
                        ("server", "%9"),
                        ("remote", "%[::1]:5432"),
                        ("why", "server lifetime over"),
                        ("age_s", "%3"),
                    ],
                ),
                "S-0x9: shop/ann@[::1]:5432 closing because: server lifetime over (age=3s)",
            ),
            (
                event(
                    "login attempt",
                    &[&client[..], &named, &[("is_unknown", "%true")]].concat(),
                ),
                "C-0x2a: (nodb)/ann@127.0.0.1:53898 login attempt: db=shop user=ann tls=no replication=no",
            ),
            (
                event(
                    "command issued",
                    &[("command", "PAUSE"), ("database", "a b")],
                ),
                "PAUSE 'a b' command issued",
            ),
            (
                event("command issued", &[("command", "RELOAD")]),
                "RELOAD command issued",
            ),
            (
                event("got SIGHUP, re-reading config", &[]),
                "got SIGHUP, re-reading config",
            ),
            (
                event("something", &[("client", "%1"), ("extra", "x")]),
                "C-0x1: (nodb)/(nouser) something extra=\"x\"",
            ),
        ];
        for (event, expected) in cases {
            assert_eq!(event.pgbouncers_wording().1, expected);
        }
    }

    #[test]
    fn nothing_said_by_strangers_breaks_a_line() {
        let fields = [
            ("client", "%1"),
            ("user", "x\n2026 LOG forged"),
            ("database", "\r\u{1b}[1m"),
        ];
        for event in [
            event("login attempt", &fields),
            event("other\nforged", &fields),
        ] {
            for line in [event.own_wording().1, event.pgbouncers_wording().1] {
                assert!(!line.chars().any(char::is_control), "{line:?}");
            }
        }
    }
}
