//! From PgBouncer's values to TOML: each in the notation that the key's kind reads. The text that comes out is what the
//! rest of this folder checks, with the line that each of its lines stands for.

use super::foreign;
use super::number::{atoi, strtol, written_out};
use super::source::{Origin, Source, Written};
use super::syntax::pairs;
use super::tls_words;
use crate::config::convert::quoted;
use crate::config::document::dotted;
use crate::config::error::Problem;
use crate::config::keys::{Key, Preset, Section, keys};
use crate::config::kind::{Kind, misspelt};
use crate::config::units::{format_duration, parse_duration, parse_size};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::time::Duration;

/// What a source comes to.
#[derive(Debug, Default)]
pub(crate) struct Translation {
    /// The configuration in TOML.
    pub(crate) toml: String,
    /// For each line of it the line that it comes from.
    pub(crate) origins: Vec<Origin>,
    /// What could not be understood.
    pub(crate) problems: Vec<Problem>,
    /// The options that have no effect here.
    pub(crate) ignored: Vec<String>,
    /// What is not as the file says.
    pub(crate) remarks: Vec<String>,
}

/// Translates what `source` says.
pub(crate) fn translate(source: Source) -> Translation {
    let mut translator = Translator {
        source: &source,
        done: Translation::default(),
    };
    translator.general();
    for (section, settings) in [
        (Section::Database, &source.databases),
        (Section::User, &source.users),
        (Section::Peer, &source.peers),
    ] {
        for (name, written) in settings {
            translator.entry(section, name, written);
        }
    }
    let mut done = translator.done;
    done.problems.extend(source.problems);
    done
}

/// Values in TOML, by key, each with the number of its line.
type Table = BTreeMap<String, (String, usize)>;

struct Translator<'s> {
    source: &'s Source,
    done: Translation,
}

impl Translator<'_> {
    fn general(&mut self) {
        let mut table = Table::new();
        for (name, written) in &self.source.general {
            self.setting(Section::General, &["pgbouncer", name], written, &mut table);
        }
        let first = table.values().map(|(_, at)| *at).min().unwrap_or_default();
        self.put(&[Section::General.name()], first, table);
    }

    fn entry(&mut self, section: Section, name: &str, written: &Written) {
        let mut table = Table::new();
        let path = [section.name(), name];
        let found = pairs(&written.text);
        let found = found.map_err(|why| self.blame(written.at, &path, why.to_owned()));
        for (key, text) in found.into_iter().flatten() {
            let key = match &*key {
                "reserve_pool" => "reserve_pool_size",
                key => key,
            };
            let at = written.at;
            let written = Written { text, at };
            self.setting(section, &[path[0], path[1], key], &written, &mut table);
        }
        if section == Section::Database && !table.contains_key("host") {
            self.host_from_socket_dir(&path, written.at, &mut table);
        }
        self.put(&path, written.at, table);
    }

    /// Servers without a host are in `unix_socket_dir`.
    fn host_from_socket_dir(&mut self, path: &[&str], at: usize, table: &mut Table) {
        let written = self.source.general.get("unix_socket_dir");
        match written.map_or("/tmp", |written| &written.text) {
            "" => {
                let text = "needs a host, since there is no unix_socket_dir".to_owned();
                self.blame(at, path, text);
            }
            dir => drop(table.insert("host".to_owned(), (quoted(dir), at))),
        }
    }

    /// Writes a table down.
    fn put(&mut self, path: &[&str], at: usize, table: Table) {
        let quoted: Vec<_> = path.iter().map(|part| quoted(part)).collect();
        self.put_line(&format!("[{}]", quoted.join(".")), at);
        for (key, (value, at)) in table {
            self.put_line(&format!("{key} = {value}"), at);
        }
    }

    fn put_line(&mut self, line: &str, at: usize) {
        self.done.toml.push_str(line);
        self.done.toml.push('\n');
        let nowhere = || Origin {
            file: None,
            line: 0,
        };
        let origin = self.source.origins.get(at).cloned();
        self.done.origins.push(origin.unwrap_or_else(nowhere));
    }

    /// Puts one setting into its table; the last part of `path` is its name.
    fn setting(&mut self, section: Section, path: &[&str], written: &Written, table: &mut Table) {
        let name = path.last().copied().unwrap_or_default();
        let is_it = |key: &&Key| key.section == section && key.name == name;
        let Some(key) = keys().find(is_it) else {
            return self.without_key(section, path, written);
        };
        match reading(key, &written.text) {
            Ok(Reading { value, remark }) => {
                match value {
                    Some(value) => drop(table.insert(name.to_owned(), (value, written.at))),
                    None => drop(table.remove(name)),
                }
                let remark = remark.map(|remark| format!("{}: {remark}", dotted(path)));
                self.done.remarks.extend(remark);
            }
            Err(why) => {
                let text = format!("{why} (allowed: {})", key.kind.allowed());
                self.blame(written.at, path, text);
            }
        }
    }

    fn without_key(&mut self, section: Section, path: &[&str], written: &Written) {
        let name = path.last().copied().unwrap_or_default();
        match foreign::find(section, name).map(|foreign| foreign.check(&written.text)) {
            Some(Ok(())) => self.done.ignored.push(path.join(".")),
            Some(Err(why)) => self.blame(written.at, path, why),
            None => {
                let own = keys().filter(|key| key.section == section);
                let known = own.map(|key| key.name).chain(foreign::names(section));
                self.blame(written.at, path, misspelt("key", name, known));
            }
        }
    }

    fn blame(&mut self, at: usize, path: &[&str], text: String) {
        let problem = self.source.problem(at, &dotted(path), text);
        self.done.problems.push(problem);
    }
}

/// A list of what stands between commas and blanks; none if `element` refuses one.
fn list(written: &str, element: impl Fn(&str) -> Option<String>) -> Option<String> {
    let parts = written.split(|c: char| c == ',' || c.is_whitespace());
    let parts = parts.filter(|part| !part.is_empty()).map(element);
    let parts: Option<Vec<_>> = parts.collect();
    parts.map(|parts| format!("[{}]", parts.join(", ")))
}

/// What a value comes to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Reading {
    /// In TOML; none if it stands for what holds without it.
    pub(crate) value: Option<String>,
    /// What it says that does not hold here.
    pub(crate) remark: Option<String>,
}

impl From<String> for Reading {
    fn from(value: String) -> Reading {
        Reading {
            value: Some(value),
            remark: None,
        }
    }
}

/// What `written` comes to as the value of `key`.
///
/// # Errors
/// Says why it cannot be one.
pub(crate) fn reading(key: &Key, written: &str) -> Result<Reading, String> {
    if let Some(reading) = tls_words::reading(key.name, written) {
        return Ok(reading);
    }
    let is_loose = key.section != Section::General;
    let number = || {
        let read = if is_loose {
            Some(atoi(written))
        } else {
            strtol(written)
        };
        read.ok_or_else(|| format!("{written:?} is not a whole number"))
    };
    let value = match key.kind {
        Kind::Bool => (number()? != 0).to_string(),
        Kind::Int { min, max } => {
            let number = number()?;
            if is_loose && stands_for_unset(key.name, number) {
                return Ok(Reading::default());
            }
            return Ok(match is_place(key.name) {
                true => number.to_string().into(),
                false => bounded(number, min, max),
            });
        }
        Kind::PowerOfTwo { .. } => number()?.to_string(),
        Kind::Numbers { .. } => list(written, |part| strtol(part).map(|n| n.to_string()))
            .ok_or_else(|| format!("{written:?} is not a list of numbers"))?,
        Kind::FileMode => {
            let mode = u32::try_from(number()?);
            quoted(&mode.map_or_else(|_| written.to_owned(), |mode| format!("{mode:04o}")))
        }
        Kind::Duration { min, max, bare } => {
            return Ok(span(written, is_loose, min..=max, bare.one()));
        }
        Kind::Size { min, max } => match parse_size(written) {
            Ok(_) if strtol(written).is_none() => quoted(written),
            _ => return Ok(bounded(number()?, min, max)),
        },
        Kind::List => list(written, |part| Some(quoted(part))).unwrap_or_default(),
        _ if written.is_empty() && matches!(key.preset, Preset::Unset { .. }) => {
            return Ok(Reading::default());
        }
        _ => quoted(written),
    };
    Ok(value.into())
}

/// `number`, or the nearest that is allowed; a negative one is left to be refused.
fn bounded(number: i128, min: u64, max: u64) -> Reading {
    let allowed = number.clamp(min.into(), max.into());
    if number < 0 || allowed == number {
        return number.to_string().into();
    }
    instead(&number, &allowed, allowed.to_string())
}

/// A span of time. In connection strings 0 and less stand for what holds without it.
fn span(
    written: &str,
    is_loose: bool,
    allowed: RangeInclusive<Duration>,
    bare: Duration,
) -> Reading {
    let text = match is_loose && parse_duration(written, bare).is_err() {
        true => atoi(written).to_string(),
        false => written_out(written),
    };
    match parse_duration(&text, bare) {
        Ok(Duration::ZERO) | Err(_) if is_loose => Reading::default(),
        Ok(span) if !allowed.contains(&span) => {
            let nearest = format_duration(span.clamp(*allowed.start(), *allowed.end()));
            instead(&format_duration(span), &nearest, quoted(&nearest))
        }
        _ => quoted(&text).into(),
    }
}

fn instead(written: &dyn Display, allowed: &dyn Display, value: String) -> Reading {
    Reading {
        value: Some(value),
        remark: Some(format!(
            "{written} is out of range; {allowed} holds instead"
        )),
    }
}

/// Whether a number says where something is and not how much, so that no other will do.
fn is_place(name: &str) -> bool {
    matches!(name, "listen_port" | "port" | "peer_id")
}

/// Whether a number in a connection string asks for what holds without it.
fn stands_for_unset(name: &str, number: i128) -> bool {
    number < 0 || number == 0 && name.starts_with("max_")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{AuthType, Config, ConfigError, PoolMode};
    use std::path::Path;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("p.ini"))
    }

    fn config(text: &str) -> Config {
        parse(text).unwrap_or_else(|error| panic!("{error}"))
    }

    fn problems(text: &str) -> Vec<String> {
        match parse(text) {
            Err(ConfigError::Problems { problems, .. }) => {
                problems.iter().map(ToString::to_string).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn pgbouncers_defaults_hold() {
        let general = config("[pgbouncer]").general;
        assert_eq!(general.pool_mode, PoolMode::Session);
        assert_eq!(general.auth_type, AuthType::Md5);
        assert_eq!(general.listen_addr, Vec::<String>::new());
        assert_eq!(general.unix_socket_dir.as_deref(), Some(Path::new("/tmp")));
        assert_eq!(
            (general.max_client_conn, general.listen_backlog),
            (100, 128)
        );
        assert_eq!((general.default_pool_size, general.listen_port), (20, 6432));
        assert_eq!(general.server_lifetime, Duration::from_secs(3600));
    }

    #[test]
    fn options_of_every_type_arrive_in_the_model() {
        let text = "[pgbouncer]\nlisten_addr = 127.0.0.1, ::1,*\nlisten_port = 0x1f49\n\
                    unix_socket_mode = 0700\nunix_socket_dir = /run/x\nlog_connections = 2\nlog_disconnections=0\n\
                    query_timeout = 1.5\nserver_lifetime = 1e2\nidle_transaction_timeout = 5 min\n\
                    pool_mode = TRANSACTION\nadmin_users = a b,\tc\nmax_packet_size = 4MB\n\
                    server_reset_query =\ntcp_user_timeout = 1500\nauth_file = users.txt\nmax_client_conn = 0100\n\
                    server_check_query = \"quotes\" stay\n";
        let general = config(text).general;
        assert_eq!(general.listen_addr, ["127.0.0.1", "::1", "*"]);
        assert_eq!(
            (general.listen_port, general.unix_socket_mode),
            (8009, 0o700)
        );
        assert!(general.log_connections && !general.log_disconnections);
        let spans = [
            (general.query_timeout, 1_500),
            (general.server_lifetime, 100_000),
            (general.idle_transaction_timeout, 300_000),
            (general.tcp_user_timeout, 1_500),
        ];
        for (span, millis) in spans {
            assert_eq!(span, Duration::from_millis(millis));
        }
        assert_eq!(general.pool_mode, PoolMode::Transaction);
        assert_eq!(general.admin_users, ["a", "b", "c"]);
        assert_eq!(general.max_packet_size, 4 << 20);
        assert_eq!(general.server_reset_query, "");
        assert_eq!(general.auth_file.as_deref(), Some(Path::new("users.txt")));
        assert_eq!(general.max_client_conn, 64);
    }

    #[test]
    fn databases_users_and_peers_arrive_in_the_model() {
        let text = "[databases]\n* = host=db port=5433\nlocal =\n'my db' = dbname=shop user=u password='a''b c'\n\
                    loose = pool_size=7x min_pool_size=abc reserve_pool=3 max_db_connections=0\n\
                    unset = pool_size=-1 max_db_client_connections=-5\n\
                    [users]\nann = pool_mode=Session max_user_connections=3\n\
                    [peers]\n1 = host=/run/a port=6433\n2 = host=10.0.0.2 pool_size=4\n[pgbouncer]\n";
        let config = config(text);
        let database = |name: &str| config.database(name).expect("configured");
        assert_eq!((&*database("any").host, database("any").port), ("db", 5433));
        assert_eq!(database("local").host, "/tmp");
        assert_eq!(database("my db").server_dbname(), "shop");
        let password = database("my db").password.clone();
        assert_eq!(
            password.as_ref().map(|secret| secret.expose()),
            Some(&b"a'b c"[..])
        );
        let loose = database("loose");
        assert_eq!((loose.pool_size, loose.min_pool_size), (Some(7), Some(0)));
        assert_eq!(
            (loose.reserve_pool_size, loose.max_db_connections),
            (Some(3), None)
        );
        let unset = database("unset");
        assert_eq!(
            (unset.pool_size, unset.max_db_client_connections),
            (None, None)
        );
        let ann = config.users.get("ann").expect("configured");
        assert_eq!(
            (ann.pool_mode, ann.max_user_connections),
            (Some(PoolMode::Session), Some(3))
        );
        let peers: Vec<_> = config
            .peers
            .values()
            .map(|peer| (peer.id, peer.port))
            .collect();
        assert_eq!(peers, [(1, 6433), (2, 6432)]);
    }

    #[test]
    fn times_of_entries_that_are_not_above_zero_are_those_of_the_whole() {
        for written in ["0", "-1", "0s", "junk"] {
            let text = format!(
                "[databases]\nd = host=h server_lifetime={written} query_wait_timeout={written}\n\
                 [users]\nu = query_timeout={written} client_idle_timeout={written}\n[pgbouncer]\n"
            );
            let config = config(&text);
            let database = config.database("d").expect("configured");
            let user = config.users.get("u").expect("configured");
            let own = [
                database.server_lifetime,
                database.query_wait_timeout,
                user.query_timeout,
                user.client_idle_timeout,
            ];
            assert_eq!(own, [None; 4], "{written}");
        }
        let text = "[databases]\nd = host=h server_lifetime=7x\n[pgbouncer]\n";
        let database = config(text).database("d").expect("configured");
        assert_eq!(database.server_lifetime, Some(Duration::from_secs(7)));
    }

    #[test]
    fn what_is_out_of_our_bounds_alone_is_brought_within_them() {
        let text = "[databases]\nd = host=h pool_size=9999999\n[pgbouncer]\nlisten_backlog = 0\n\
                    max_packet_size = 10\nserver_idle_timeout = 999999999\nserver_check_delay = 1e12\n\
                    stats_period = 0\nverbose = 11\nquery_timeout = 5\nmax_client_conn = 0\n";
        let config = config(text);
        let general = &config.general;
        assert_eq!((general.listen_backlog, general.max_packet_size), (1, 1024));
        assert_eq!((general.verbose, general.max_client_conn), (10, 1));
        let ten_years = Duration::from_secs(3650 * 86_400);
        assert_eq!(general.server_idle_timeout, ten_years);
        assert_eq!(general.server_check_delay, ten_years);
        assert_eq!(general.stats_period, Duration::from_secs(1));
        let database = config.database("d").expect("configured");
        assert_eq!(database.pool_size, Some(100_000));
        assert_eq!(config.remarks.len(), 8, "{:#?}", config.remarks);
        let told = "pgbouncer.listen_backlog: 0 is out of range; 1 holds instead";
        assert!(config.remarks.iter().any(|remark| remark == told));
    }

    #[test]
    fn server_without_host_is_in_the_socket_directory_of_the_file() {
        let text = "[databases]\na =\n[pgbouncer]\nunix_socket_dir = /run/x";
        assert_eq!(
            config(text).database("a").expect("configured").host,
            "/run/x"
        );
        let text = "[databases]\na =\n[pgbouncer]\nunix_socket_dir =\nlisten_addr=*";
        assert_eq!(
            problems(text),
            ["2: databases.a: needs a host, since there is no unix_socket_dir"]
        );
    }

    #[test]
    fn every_mistake_is_told_with_line_and_key() {
        let text = "[databases]\na = port=0\nb = nosuch=1\nc = host=\npgbouncer = host=h\nd = HOST=h\n\
                    [pgbouncer]\npool_mod = session\nlog_connections = yes\nquery_timeout = -3\nquery_wait_timeout =\n\
                    pool_mode = sesion\nLOG_STATS = 1\nmax_client_conn = 100 ; c\njunk\nlisten_port = 70000\n\
                    pkt_buf = big\n[users]\nu = pool_mode=x\n[peers]\nx = host=h\n";
        let found = problems(text);
        let expected = [
            "2: databases.a.port: 0 is out of range",
            "3: databases.b.nosuch: unknown key",
            "4: databases.c: a value is empty",
            "5: databases.pgbouncer: is the name of the console",
            "6: databases.d.HOST: unknown key; did you mean \"host\"?",
            "8: pgbouncer.pool_mod: unknown key; did you mean \"pool_mode\"?",
            "9: pgbouncer.log_connections: \"yes\" is not a whole number (allowed: true or false)",
            "10: pgbouncer.query_timeout: \"-3\" is negative",
            "11: pgbouncer.query_wait_timeout: \"\" is not a number",
            "12: pgbouncer.pool_mode: \"sesion\" is not allowed",
            "13: pgbouncer.LOG_STATS: unknown key",
            "14: pgbouncer.max_client_conn: \"100 ; c\" is not a whole number",
            "15: a line is [section], key = value, or a comment",
            "16: pgbouncer.listen_port: 70000 is out of range",
            "17: pgbouncer.pkt_buf: \"big\" is not a number",
            "19: users.u.pool_mode: \"x\" is not allowed",
            "21: peers.x: a peer's name is its number",
        ];
        assert_eq!(found.len(), expected.len(), "{found:#?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.starts_with(expected), "{found} is not {expected}");
        }
    }

    #[test]
    fn settings_that_cannot_hold_together_are_told_with_their_line() {
        let text = "[peers]\n1 = port=5\n[pgbouncer]\nlisten_addr=x\n";
        assert_eq!(problems(text), ["2: peers.1: a peer needs one host"]);
        let text = "[pgbouncer]\nunix_socket_dir =\n";
        let nowhere = "pgbouncer.listen_addr: nowhere to listen: no address and no unix_socket_dir";
        assert_eq!(problems(text), [nowhere]);
        // PgBouncer starts with both of these.
        let text = "[databases]\na = host=h password=x\n[pgbouncer]\nauth_type = md5\n";
        assert!(parse(text).is_ok());
    }

    #[test]
    fn options_without_effect_are_listed() {
        let text = "[pgbouncer]\npkt_buf = 4096\nresolv_conf =\n";
        assert_eq!(
            config(text).ignored,
            ["pgbouncer.pkt_buf", "pgbouncer.resolv_conf"]
        );
    }

    #[test]
    fn values_are_never_taken_for_toml() {
        let text = "[databases]\n'a\"].x' = host=h dbname='\"\\\n[pgbouncer]\nserver_reset_query = \"\nlisten_port = 1\\";
        assert!(parse(text).is_err());
        let text = "[databases]\n'a\"].x' = host=h dbname='\"\\\u{1}x'\n[pgbouncer]\nserver_reset_query = a\"\\\n";
        let config = config(text);
        let database = config.database("a\"].x").expect("configured");
        assert_eq!(database.server_dbname(), "\"\\\u{1}x");
        assert_eq!(config.general.server_reset_query, "a\"\\");
    }

    #[test]
    fn no_problem_shows_a_secret() {
        let text = "[databases]\na = user=u password='hunter2\nb = password=hunter2 password2=hunter2\n[pgbouncer]\n";
        let found = problems(text).join("\n");
        assert!(!found.contains("hunter2"), "{found}");
    }

    #[test]
    fn truncated_and_mangled_files_never_panic() {
        let text = "[databases]\n'a b' = host = h port='5' password='x''y'\n[pgbouncer]\nlisten_port = 0x10\n\
                    query_timeout = 1e2\n%include x\n[users]\nu = pool_size=-1\n[peers]\n1 = host=h\n";
        for at in 0..text.len() {
            let (before, after) = text.split_at(at);
            let _ = parse(before);
            for strange in [
                "\0",
                "[",
                "]",
                "\"",
                "'",
                "=",
                "\n",
                "\u{feff}",
                "\u{e9}",
                "\r",
                "%include ",
            ] {
                let _ = parse(&format!("{before}{strange}{after}"));
            }
        }
    }
}
