//! From a TOML tree to the model. Every problem is gathered; a bad value is replaced by its default
//! so that the checks behind it still run.

use super::cross;
use super::dialect::Dialect;
use super::document::{Document, Lines, dotted};
use super::error::Problem;
use super::keys::{DATABASE_KEYS, Database, GENERAL_KEYS, General, Key, Section, USER_KEYS, User};
use super::keys::{PEER_KEYS, Peer, Values, keys};
use super::kind::{Refusal, did_you_mean, misspelt};
use super::model::{Config, is_console};
use crate::base::limit;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

/// The tables that the file may have.
const SECTIONS: [Section; 4] = [
    Section::General,
    Section::Database,
    Section::User,
    Section::Peer,
];

type Entry<'t, 'i> = (&'t Spanned<DeString<'i>>, &'t Spanned<DeValue<'i>>);

/// Checks the whole of `document`, the content of the file at `path`.
///
/// # Errors
/// Every problem there is, by line; those without a line come last.
pub(super) fn check(
    document: Document<'_>,
    dialect: Dialect,
    path: &Path,
) -> Result<Config, Vec<Problem>> {
    let mut checker = Checker {
        lines: document.lines,
        dialect,
        dir: dialect.paths_start_at(path),
        seen: BTreeMap::new(),
        problems: Vec::new(),
    };
    let mut config = checker.config(&document.tree, path);
    config.ignored = document.ignored;
    config.remarks = document.remarks;
    if document.problems.is_empty() {
        checker.relations(&config);
    }
    let certain = |line| !document.guessed.contains(&line);
    checker
        .problems
        .retain(|problem| problem.line.is_none_or(certain));
    checker.problems.extend(document.problems);
    dialect.translate(&mut checker.problems);
    checker.problems.sort_by(|one, other| {
        let place = |problem: &Problem| (problem.line.is_none(), problem.file.is_some());
        let order = place(one).cmp(&place(other));
        order.then_with(|| (&one.file, one.line).cmp(&(&other.file, other.line)))
    });
    if checker.problems.is_empty() {
        Ok(config)
    } else {
        Err(checker.problems)
    }
}

struct Checker<'a> {
    lines: Lines,
    dialect: Dialect,
    /// Where relative paths start.
    dir: &'a Path,
    /// The position of every key in the file, by dotted path.
    seen: BTreeMap<String, usize>,
    problems: Vec<Problem>,
}

impl Checker<'_> {
    fn config(&mut self, tree: &DeTable<'_>, path: &Path) -> Config {
        self.unknown_tables(tree);
        Config {
            general: self.general(tree),
            databases: self.databases(tree),
            users: self.users(tree),
            peers: self.peers(tree),
            dialect: self.dialect,
            ignored: Vec::new(),
            remarks: Vec::new(),
            path: path.to_owned(),
        }
    }

    fn unknown_tables(&mut self, tree: &DeTable<'_>) {
        for (name, value) in tree {
            if SECTIONS
                .iter()
                .any(|section| section.name() == name.get_ref())
            {
                continue;
            }
            let sections = SECTIONS.map(Section::name);
            let text = match value.get_ref() {
                DeValue::Table(_) => misspelt("table", name.get_ref(), sections),
                _ => misplaced(name.get_ref(), None)
                    .unwrap_or_else(|| misspelt("key", name.get_ref(), sections)),
            };
            self.blames(&[name.get_ref()], name, text);
        }
    }

    fn general(&mut self, tree: &DeTable<'_>) -> General {
        let name = Section::General.name();
        let table = tree
            .get_key_value(name)
            .and_then(|entry| self.table(&[name], entry));
        let mut values = self.values(GENERAL_KEYS, &[name], table);
        self.typed(General::from_values(&mut values), &[name])
            .unwrap_or_default()
    }

    fn databases(&mut self, tree: &DeTable<'_>) -> BTreeMap<String, Arc<Database>> {
        let bytes_max = limit::DATABASE_NAME_BYTES_MAX;
        let mut databases = BTreeMap::new();
        for (name, mut values) in self.named(tree, Section::Database, DATABASE_KEYS, bytes_max) {
            let database = Database::from_values(name.clone(), &mut values);
            if let Some(database) = self.typed(database, &[Section::Database.name(), &name]) {
                databases.insert(name, Arc::new(database));
            }
        }
        databases
    }

    fn users(&mut self, tree: &DeTable<'_>) -> BTreeMap<String, Arc<User>> {
        let mut users = BTreeMap::new();
        for (name, mut values) in
            self.named(tree, Section::User, USER_KEYS, limit::USER_NAME_BYTES_MAX)
        {
            let user = User::from_values(name.clone(), &mut values);
            if let Some(user) = self.typed(user, &[Section::User.name(), &name]) {
                users.insert(name, Arc::new(user));
            }
        }
        users
    }

    fn peers(&mut self, tree: &DeTable<'_>) -> BTreeMap<u16, Arc<Peer>> {
        let mut peers = BTreeMap::new();
        let bytes_max = limit::DATABASE_NAME_BYTES_MAX;
        for (name, mut values) in self.named(tree, Section::Peer, PEER_KEYS, bytes_max) {
            // A name that is no number has been blamed.
            let id = name.parse().unwrap_or_default();
            let peer = Peer::from_values(id, &mut values);
            if let Some(peer) = self.typed(peer, &[Section::Peer.name(), &name]) {
                peers.insert(id, Arc::new(peer));
            }
        }
        peers
    }

    /// The tables under `section`, each with its checked values.
    fn named(
        &mut self,
        tree: &DeTable<'_>,
        section: Section,
        keys: &'static [Key],
        bytes_max: usize,
    ) -> Vec<(String, Values)> {
        let outer = section.name();
        let all = tree
            .get_key_value(outer)
            .and_then(|entry| self.table(&[outer], entry));
        let mut found = Vec::new();
        for entry in all.into_iter().flatten() {
            let name = entry.0.get_ref().as_ref();
            let table = self.table(&[outer, name], entry);
            if let Some(fault) = name_fault(section, name, bytes_max) {
                self.blames(&[outer, name], entry.0, fault);
            }
            found.push((name.to_owned(), self.values(keys, &[outer, name], table)));
        }
        found
    }

    /// The table that `entry` is, or a problem.
    fn table<'t, 'i>(
        &mut self,
        path: &[&str],
        (name, value): Entry<'t, 'i>,
    ) -> Option<&'t DeTable<'i>> {
        self.sees(path, name);
        let table = value.get_ref().as_table();
        if table.is_none() {
            let header = match path {
                ["ringbouncer"] => "[ringbouncer]".to_owned(),
                [section] => format!("[{section}.NAME]"),
                path => format!("[{}]", dotted(path)),
            };
            self.blames(
                path,
                name,
                format!("is no table (a table begins with {header})"),
            );
        }
        table
    }

    /// The checked values of `table`, with defaults for what is missing or wrong.
    fn values(
        &mut self,
        keys: &'static [Key],
        path: &[&str],
        table: Option<&DeTable<'_>>,
    ) -> Values {
        let mut values: Values = BTreeMap::new();
        for (name, value) in table.into_iter().flatten() {
            let path = [path, &[name.get_ref()]].concat();
            self.sees(&path, name);
            let Some(key) = keys.iter().find(|key| key.name == name.get_ref()) else {
                self.blames(
                    &path,
                    name,
                    unknown_key(keys, name.get_ref(), value.get_ref()),
                );
                continue;
            };
            match key.kind.check(value.get_ref(), self.dir) {
                Ok(value) => drop(values.insert(key.name, value)),
                Err(refusal) => self.blames(&path, name, refused(key, &refusal)),
            }
        }
        for key in keys {
            let preset = || self.dialect.preset_value(key);
            values.entry(key.name).or_insert_with(preset);
        }
        values
    }

    fn typed<T>(&mut self, typed: Result<T, &'static str>, path: &[&str]) -> Option<T> {
        let wrong = |name: &'static str| {
            let key = dotted(&[path, &[name]].concat());
            let problem = self.of_key(key, "does not fit this machine");
            self.problems.push(problem);
        };
        typed.map_err(wrong).ok()
    }

    /// Checks what no key says alone, unless one of the keys concerned is wrong anyway.
    fn relations(&mut self, config: &Config) {
        for fault in cross::faults(config) {
            let concerns = |problem: &Problem| {
                let within = |key: &String| is_within(&problem.key, key);
                fault.concerns.iter().any(within)
            };
            if !self.problems.iter().any(concerns) {
                let problem = self.of_key(fault.key, fault.text);
                self.problems.push(problem);
            }
        }
    }

    fn sees(&mut self, path: &[&str], name: &Spanned<DeString<'_>>) {
        self.seen.insert(dotted(path), name.span().start);
    }

    /// A problem with a key, wherever it stands.
    fn of_key(&self, key: String, text: impl Into<String>) -> Problem {
        match self.seen.get(&key) {
            Some(position) => self.at(*position, key, text),
            None => Problem::new(None, key, text),
        }
    }

    fn at(&self, position: usize, key: String, text: impl Into<String>) -> Problem {
        let problem = Problem::new(Some(self.lines.number(position)), key, text);
        match self.lines.file(position) {
            Some(file) => problem.in_file(file),
            None => problem,
        }
    }

    fn blames(&mut self, path: &[&str], name: &Spanned<DeString<'_>>, text: impl Into<String>) {
        let problem = self.at(name.span().start, dotted(path), text);
        self.problems.push(problem);
    }
}

/// Whether the dotted path `key` is `table` or lies below it.
fn is_within(key: &str, table: &str) -> bool {
    let below = key.strip_prefix(table);
    below.is_some_and(|below| below.is_empty() || below.starts_with('.'))
}

fn refused(key: &Key, refusal: &Refusal) -> String {
    let Refusal { what, meant } = refusal;
    format!(
        "{what} (allowed: {}){}",
        key.kind.allowed(),
        did_you_mean(*meant)
    )
}

/// The text for a key that its table does not have.
fn unknown_key(known: &'static [Key], name: &str, value: &DeValue<'_>) -> String {
    if value.is_table() {
        return "is a table (a name with a dot in it needs quotes)".to_owned();
    }
    let here = known.first().map(|key| key.section);
    let names = known.iter().map(|key| key.name);
    misplaced(name, here).unwrap_or_else(|| misspelt("key", name, names))
}

/// The text for a key that belongs in another table than `here`.
fn misplaced(name: &str, here: Option<Section>) -> Option<String> {
    let elsewhere = keys().find(|key| key.name == name && Some(key.section) != here)?;
    Some(match elsewhere.section {
        Section::General => "unknown key; it belongs under [ringbouncer]".to_owned(),
        section => format!("unknown key; it belongs under [{}.NAME]", section.name()),
    })
}

fn name_fault(section: Section, name: &str, bytes_max: usize) -> Option<String> {
    if section == Section::Peer {
        let is_id = name.parse::<u16>().is_ok_and(|id| id > 0);
        return (!is_id).then(|| "a peer's name is its number (allowed: 1 to 65535)".to_owned());
    }
    if section == Section::Database && is_console(name) {
        return Some("is the name of the console".to_owned());
    }
    let fits = (1..=bytes_max).contains(&name.len());
    let length = || {
        format!(
            "the name has {} bytes (allowed: 1 to {bytes_max})",
            name.len()
        )
    };
    let zero = || {
        name.contains('\0')
            .then(|| "the name contains a zero byte".to_owned())
    };
    if fits { zero() } else { Some(length()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{AuthType, reference_toml};
    use std::time::Duration;

    fn check(text: &str, path: &Path) -> Result<Config, Vec<Problem>> {
        super::check(Document::read(text), Dialect::Toml, path)
    }

    fn problems(text: &str) -> Vec<String> {
        let found = check(text, Path::new("/etc/r.toml")).expect_err("must be refused");
        found.iter().map(ToString::to_string).collect()
    }

    /// The only problem of `text`, which gets a first line that lets it do without users.
    fn only_problem(text: &str) -> String {
        let found = problems(&format!("ringbouncer.auth_type = \"trust\"\n{text}"));
        assert_eq!(found.len(), 1, "{found:?}");
        found.concat()
    }

    #[test]
    fn whole_file_arrives_in_the_model() {
        let text = r#"
            [ringbouncer]
            listen_addr = ["127.0.0.1", "::1"]
            auth_type = "md5"
            auth_file = "users.txt"
            query_timeout = "1.5 min"
            tcp_user_timeout = 1500
            receive_buffer_bytes = "16 KiB"
            unix_socket_mode = "0700"
            [databases.shop]
            host = "/run/postgresql"
            user = "app"
            password = "secret"
            [users."odd name"]
            pool_size = 3
        "#;
        let config = check(text, Path::new("/etc/r.toml")).expect("valid");
        let general = &config.general;
        assert_eq!(general.listen_addr, ["127.0.0.1", "::1"]);
        assert_eq!(general.auth_type, AuthType::Md5);
        assert_eq!(
            general.auth_file.as_deref(),
            Some(Path::new("/etc/users.txt"))
        );
        assert_eq!(general.query_timeout, Duration::from_secs(90));
        assert_eq!(general.tcp_user_timeout, Duration::from_millis(1500));
        assert_eq!(
            (general.receive_buffer_bytes, general.unix_socket_mode),
            (16_384, 0o700)
        );
        let shop = config.database("shop").expect("configured");
        assert_eq!(
            (shop.server_user("alice"), shop.server_dbname()),
            ("app", "shop")
        );
        assert_eq!(
            shop.password.as_ref().map(|password| password.expose()),
            Some(&b"secret"[..])
        );
        assert_eq!(
            config.users.get("odd name").and_then(|user| user.pool_size),
            Some(3)
        );
    }

    #[test]
    fn all_kinds_of_problems_are_reported_at_once_by_line() {
        let text = "[ringbouncer]\n\
                    listn_port = 1\n\
                    listen_port = 70000\n\
                    pool_mode = \"sesion\"\n\
                    query_timeout = nope\n\
                    log_connections = 1\n\
                    [databases.shop]\n\
                    prt = 1\n\
                    [databases.pgbouncer]\n\
                    [databases.shop]\n\
                    port = \"5432\"\n\
                    [user.alice]\n";
        let found = problems(text);
        let expected = [
            "2: ringbouncer.listn_port: unknown key; did you mean \"listen_port\"?",
            "3: ringbouncer.listen_port: 70000 is out of range (allowed: integer, 0 to 65535)",
            "4: ringbouncer.pool_mode: \"sesion\" is not allowed (allowed: \"transaction\", \
             \"session\", \"statement\"); did you mean \"session\"?",
            "5: ringbouncer.query_timeout: not valid TOML: ",
            "6: ringbouncer.log_connections: is an integer (allowed: true or false)",
            "8: databases.shop.prt: unknown key; did you mean \"port\"?",
            "9: databases.pgbouncer: is the name of the console",
            "10: databases.shop: duplicate database, first defined on line 7",
            "11: databases.shop.port: is a string (allowed: integer, 1 to 65535)",
            "12: user: unknown table; did you mean \"users\"?",
        ];
        assert_eq!(found.len(), expected.len(), "{found:#?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.starts_with(expected), "{found} is not {expected}");
        }
    }

    #[test]
    fn key_in_the_wrong_table_is_sent_to_the_right_one() {
        let text = "[databases.shop]\nmax_client_conn = 5";
        assert!(only_problem(text).ends_with("unknown key; it belongs under [ringbouncer]"));
        let text = "listen_port = 1\n";
        let found = problems(text);
        assert!(
            found
                .iter()
                .any(|found| found.ends_with("it belongs under [ringbouncer]")),
            "{found:?}"
        );
        let text = "[users.a]\ndbname = \"x\"";
        assert!(only_problem(text).ends_with("it belongs under [databases.NAME]"));
    }

    #[test]
    fn pgbouncer_style_database_line_is_told_what_a_table_is() {
        let text = "[databases]\nshop = \"host=127.0.0.1\"";
        let expected = "3: databases.shop: is no table (a table begins with [databases.shop])";
        assert_eq!(only_problem(text), expected);
        assert!(only_problem("[databases.my.db]").contains("needs quotes"));
    }

    #[test]
    fn names_are_bounded() {
        let longest = "d".repeat(limit::DATABASE_NAME_BYTES_MAX);
        let text = format!("ringbouncer.auth_type = \"trust\"\n[databases.{longest}]");
        assert!(check(&text, Path::new("")).is_ok());
        assert!(only_problem(&format!("[databases.{longest}d]")).contains("64 bytes"));
        assert!(only_problem(&format!("[users.{}]", "u".repeat(128))).contains("128 bytes"));
        assert!(only_problem("[users.\"\"]").contains("0 bytes"));
        assert!(only_problem("[users.\"a\\u0000\"]").contains("zero byte"));
        assert!(only_problem("[databases.ringbouncer]").contains("console"));
    }

    #[test]
    fn settings_that_cannot_hold_together_are_refused() {
        let cases = [
            (
                "listen_addr = []",
                "ringbouncer.listen_addr: nowhere to listen",
            ),
            (
                "cpus = [1, 2, 1]",
                "ringbouncer.cpus: core 1 is named twice",
            ),
            (
                "cpus = [1, 2]\nshards = 3",
                "ringbouncer.shards: 3 shards need as many cores",
            ),
            (
                "tcp_keepidle = 1.5",
                "ringbouncer.tcp_keepidle: must be whole seconds",
            ),
            (
                "[databases.a]\npassword = \"x\"",
                "databases.a.password: has no effect without user",
            ),
            ("auth_type = \"cert\"", "needs a client_tls_ca_file"),
            (
                "auth_type = \"cert\"\nclient_tls_ca_file = \"ca\"",
                "needs a client_tls_sslmode that encrypts",
            ),
        ];
        for (text, expected) in cases {
            let others = match text.starts_with("auth_type") {
                true => "",
                false => "auth_type = \"trust\"",
            };
            let found = problems(&format!("[ringbouncer]\n{others}\n{text}")).concat();
            assert!(found.contains(expected), "{found}");
        }
    }

    #[test]
    fn file_that_lets_nobody_in_is_refused() {
        assert!(
            problems("")
                .concat()
                .starts_with("ringbouncer.auth_type: nobody could log in")
        );
        assert!(
            problems("[users.a]")
                .concat()
                .contains("nobody could log in")
        );
        for good in [
            "users.a.password = \"x\"",
            "ringbouncer.auth_file = \"users.txt\"",
        ] {
            assert!(check(good, Path::new("")).is_ok(), "{good}");
        }
    }

    #[test]
    fn verdict_that_rests_on_a_wrong_value_is_not_given() {
        assert_eq!(problems("[ringbouncer]\nauth_type = \"trsut\"").len(), 1);
        assert_eq!(problems("[users.a]\npasword = \"x\"").len(), 1);
        let of_neighbour = "[databases.ab]\nprt = 1\n[databases.a]\npassword = \"x\"\n\
                            [users.a]\npassword = \"x\"";
        assert_eq!(problems(of_neighbour).len(), 2);
    }

    #[test]
    fn duplicate_does_not_hide_what_else_is_wrong_on_its_line() {
        let found = problems("[databases]\nx = {host = \"a\", hots = \"b\", host = \"c\"}");
        assert_eq!(found.len(), 2, "{found:?}");
    }

    #[test]
    fn no_problem_shows_a_secret() {
        let text = "[databases.shop]\npassword = [\"hunter2\"]\n[users.a]\npassword = 'hunter2\n\
                    [users.b]\npassword = hunter2\n[users.c]\npassword = \"hunter2\\u0000\"";
        let found = problems(text).join("\n");
        assert!(!found.contains("hunter2"), "{found}");
    }

    #[test]
    fn truncated_file_never_panics() {
        let shipped = reference_toml();
        let is_setting = |line: &&str| !line.is_empty() && !line.starts_with("# ");
        let settings = shipped
            .lines()
            .filter(is_setting)
            .collect::<Vec<_>>()
            .join("\n");
        for text in [shipped, settings.replace('#', "")] {
            for end in (0..=text.len()).filter(|end| text.is_char_boundary(*end)) {
                let _ = check(&text[..end], Path::new("r.toml"));
            }
        }
    }

    #[test]
    fn mangled_file_never_panics() {
        let text = include_str!("../../config/minimal.toml");
        for at in (0..text.len()).filter(|at| text.is_char_boundary(*at)) {
            let (before, after) = text.split_at(at);
            for strange in [
                "\0", "[", "]", "\"", "'''", "=", ".", "{", "\n", "\u{feff}", "é", "[[",
            ] {
                let _ = check(&format!("{before}{strange}{after}"), Path::new("r.toml"));
            }
        }
    }
}
