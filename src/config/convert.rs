//! A configuration as commented TOML: what `ringbouncer convert` prints.

use super::keys::{Key, Section};
use super::kind::Kind;
use super::model::Config;
use super::reference::wrapped;
use super::units::{format_duration, format_size};
use super::value::Value;
use std::path::Path;

/// What differs between any file of PgBouncer's and its conversion, or between running from one and from the other.
const ALWAYS_DIFFERENT: [&str; 15] = [
    "comments and the order of the lines are not kept, and included files become part of the one file",
    "relative paths are made absolute: PgBouncer's start at the working directory, those in TOML at the file",
    "a setting that is taken out of the TOML later has Ringbouncer's default, which is not PgBouncer's for pool_mode, \
     max_client_conn, listen_addr, strict_startup_parameters and others",
    "run from TOML, log lines have Ringbouncer's own form and not PgBouncer's, and lines that PgBouncer has for its admins are \
     left out: login attempts, limits of open files, databases that are dropped, what the console refuses",
    "run from TOML, the log has other words for why a server was closed in a shutdown that waits for servers",
    "run from TOML, running as root is allowed",
    "run from TOML, an address of listen_addr that cannot be listened on is an error, even if there are others",
    "run from TOML, a limit on open files that is too low for max_client_conn is an error and no warning",
    "run from TOML, an auth_file that is missing or has a broken line is an error, also with auth_type pam",
    "run from TOML, settings that make no sense together are errors where PgBouncer takes them, also in SET",
    "run from TOML, client_idle_timeout holds in session pooling as well, where PgBouncer spares a client that has a server",
    "run from TOML, clients are not told pgbouncer.pool_mode and pgbouncer.max_prepared_statements when they log in",
    "run from TOML, SET reads Ringbouncer's notation: on and yes are 1, numbers are decimal, modes octal",
    "run from TOML, SET does not know options without effect, and SHOW CONFIG does not have them",
    "run from TOML, SHOW CONFIG has Ringbouncer's defaults, and \"\" for what PgBouncer shows as NULL",
];

/// A converted configuration.
#[derive(Debug, PartialEq, Eq)]
pub struct Converted {
    /// The file.
    pub toml: String,
    /// What it does not say as the original did, a sentence each.
    pub differences: Vec<String>,
}

/// Writes `config` as TOML that means the same; `here` is where relative paths start.
pub fn convert(config: &Config, here: &Path) -> Converted {
    let mut writer = Writer {
        here,
        done: Converted {
            toml: format!(
                "# Converted from {}. What is as by default (`ringbouncer defaults`) is left out.\n",
                config.path.display()
            ),
            differences: ALWAYS_DIFFERENT.map(str::to_owned).into(),
        },
    };
    writer.table(&[Section::General.name()], config.general.values());
    for (name, database) in &config.databases {
        writer.table(&[Section::Database.name(), name], database.values());
    }
    for (name, user) in &config.users {
        writer.table(&[Section::User.name(), name], user.values());
    }
    for (id, peer) in &config.peers {
        writer.table(&[Section::Peer.name(), &id.to_string()], peer.values());
    }
    let mut done = writer.done;
    let ignored = config.ignored.iter();
    done.differences
        .extend(ignored.map(|key| format!("{key} has no effect and is left out")));
    done.differences.extend_from_slice(&config.remarks);
    if let Err(error) = Config::parse(&done.toml, Path::new("converted.toml")) {
        let lines = error.to_string();
        done.differences
            .extend(lines.lines().map(|line| format!("to be mended: {line}")));
    }
    done
}

struct Writer<'a> {
    here: &'a Path,
    done: Converted,
}

impl Writer<'_> {
    fn table(&mut self, path: &[&str], values: Vec<(&'static Key, Value)>) {
        let header: Vec<_> = path.iter().map(|part| quoted_if_odd(part)).collect();
        let header = header.join(".");
        self.done.toml.push_str(&format!("\n[{header}]\n"));
        let has_user = values
            .iter()
            .any(|(key, value)| key.name == "user" && *value != Value::Unset);
        for (key, value) in values {
            if key.section == Section::Database && key.name == "password" && !has_user {
                if value != Value::Unset {
                    let text = "has no effect without user and is left out";
                    self.done
                        .differences
                        .push(format!("{header}.password {text}"));
                }
                continue;
            }
            if value != key.preset_value() {
                self.setting(key, &value);
            }
        }
    }

    fn setting(&mut self, key: &Key, value: &Value) {
        let words = wrapped(key.doc);
        let written = self.written(key, value);
        let lines = format!("{words}{} = {written}\n", key.name);
        self.done.toml.push_str(&lines);
    }

    fn written(&self, key: &Key, value: &Value) -> String {
        match value {
            Value::Unset => "\"\"".to_owned(),
            Value::Bool(on) => on.to_string(),
            Value::Int(mode) if matches!(key.kind, Kind::FileMode) => format!("\"{mode:04o}\""),
            Value::Int(size) if matches!(key.kind, Kind::Size { .. }) => {
                format!("\"{}\"", format_size(*size))
            }
            Value::Int(number) => number.to_string(),
            Value::Duration(span) => format!("\"{}\"", format_duration(*span)),
            Value::Text(name) if matches!(key.kind, Kind::SocketDir) && name.starts_with('@') => {
                quoted(name)
            }
            Value::Text(path) if matches!(key.kind, Kind::Path | Kind::SocketDir) => {
                quoted(&self.here.join(path).to_string_lossy())
            }
            Value::Text(text) => quoted(text),
            Value::List(entries) => listed(entries.iter().map(|entry| quoted(entry))),
            Value::Numbers(numbers) => listed(numbers.iter().map(ToString::to_string)),
            Value::Secret(secret) => quoted(&String::from_utf8_lossy(secret.expose())),
        }
    }
}

fn listed(entries: impl Iterator<Item = String>) -> String {
    format!("[{}]", entries.collect::<Vec<_>>().join(", "))
}

fn quoted_if_odd(name: &str) -> String {
    let is_bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if !name.is_empty() && name.chars().all(is_bare) {
        return name.to_owned();
    }
    quoted(name)
}

/// A string of TOML: one line, whatever it holds.
pub(super) fn quoted(text: &str) -> String {
    let mut quoted = "\"".to_owned();
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => quoted.push_str(&format!("\\U{:08X}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Dialect;
    use std::path::PathBuf;

    const INI: &str = "[databases]\n* = host=db port=5433 user=u password='a\"b\\c'\n'odd \"name' = pool_size=3\n\
        [users]\nann = pool_mode=statement\n[peers]\n2 = host=/run/b pool_size=4\n\
        [pgbouncer]\nauth_file = users.txt\nquery_timeout = 1.5\nunix_socket_mode = 0700\nlisten_addr = a, b\n\
        max_packet_size = 1048576\nadmin_users = x,y\npkt_buf = 1\nlog_connections = 0\n";

    #[test]
    fn conversion_means_the_same() {
        let original = Config::parse(INI, Path::new("p.ini")).expect("valid");
        let converted = convert(&original, Path::new("/here"));
        let back = Config::parse(&converted.toml, Path::new("/else/p.toml"));
        let mut back = back.unwrap_or_else(|error| panic!("{error}\n{}", converted.toml));
        assert_eq!(
            back.general.auth_file.as_deref(),
            Some(Path::new("/here/users.txt"))
        );
        back.general
            .auth_file
            .clone_from(&original.general.auth_file);
        assert_eq!(back.dialect, Dialect::Toml);
        let back = Config {
            dialect: original.dialect,
            ignored: original.ignored.clone(),
            path: original.path.clone(),
            ..back
        };
        assert_eq!(back, original);
        assert!(
            converted
                .differences
                .contains(&"pgbouncer.pkt_buf has no effect and is left out".to_owned())
        );
    }

    /// Each file that asks for the dialect, with words of what is told of the difference, as many as it has places.
    const ASKED_FOR: [(&str, &[&str]); 15] = [
        ("config/cross.rs", &["no sense together"]),
        ("config/set.rs", &["SET reads"]),
        ("config/show.rs", &["without effect", "SHOW CONFIG has"]),
        ("process/control.rs", &["own form", "dropped"]),
        ("process/listening.rs", &["listen_addr"]),
        ("process/log.rs", &["own form"; 3]),
        ("process/preflight.rs", &["open files"; 2]),
        ("process/sources.rs", &["auth_file"]),
        ("process/start.rs", &["root"]),
        ("shard/entrance.rs", &["own form"]),
        (
            "shard/guest.rs",
            &[
                "login attempts",
                "own form",
                "pgbouncer.pool_mode",
                "own form",
                "own form",
                "console refuses",
            ],
        ),
        ("shard/opening.rs", &["own form"]),
        ("shard/pools.rs", &["why a server was closed"]),
        ("shard/unused.rs", &["dropped"]),
        ("shard/upkeep.rs", &["client_idle_timeout"]),
    ];

    /// How often the code of each file asks for the dialect, but for those that tell which it is.
    fn asking(folder: &Path, found: &mut Vec<(PathBuf, usize)>) {
        for entry in std::fs::read_dir(folder).expect("a folder of the sources") {
            let path = entry.expect("a file").path();
            if path.is_dir() {
                asking(&path, found);
                continue;
            }
            let text = std::fs::read_to_string(&path).expect("a source");
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            let ways = ["dialect == Dialect::", "dialect != Dialect::", "dialect {"];
            let count = ways.iter().map(|way| code.matches(way).count()).sum();
            if count > 0 {
                found.push((path, count));
            }
        }
    }

    #[test]
    #[cfg_attr(miri, ignore)] // reads the sources
    fn every_difference_that_the_dialect_makes_is_told() {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut found = Vec::new();
        asking(&sources, &mut found);
        found.retain(|(path, _)| !path.ends_with("config/load.rs"));
        found.sort();
        let listed = ASKED_FOR.map(|(file, words)| (sources.join(file), words.len()));
        assert_eq!(found, listed, "tell of it in ALWAYS_DIFFERENT, and list it");
        for word in ASKED_FOR.iter().flat_map(|(_, words)| *words) {
            let is_told = ALWAYS_DIFFERENT.iter().any(|told| told.contains(word));
            assert!(is_told, "{word}");
        }
    }

    #[test]
    fn what_toml_would_refuse_is_told() {
        let ini = "[databases]\na = host=h password=x\n[pgbouncer]\n";
        let original = Config::parse(ini, Path::new("p.ini")).expect("valid");
        let converted = convert(&original, Path::new("/"));
        assert!(!converted.toml.contains("password ="), "{}", converted.toml);
        let told = converted.differences.join("\n");
        assert!(
            told.contains("databases.a.password has no effect"),
            "{told}"
        );
        assert!(
            told.contains("ringbouncer.auth_type: nobody could log in"),
            "{told}"
        );
    }

    #[test]
    fn every_setting_is_explained() {
        let original =
            Config::parse("[pgbouncer]\nauth_file=x", Path::new("p.ini")).expect("valid");
        let toml = convert(&original, Path::new("/")).toml;
        assert!(
            toml.contains("# When a server connection goes back to its pool"),
            "{toml}"
        );
        assert!(toml.contains("\npool_mode = \"session\"\n"), "{toml}");
    }
}
