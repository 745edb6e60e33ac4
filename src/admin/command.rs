//! The console's grammar: bytes to [`Command`]. Total: any bytes give a command or a [`Refusal`].
//!
//! ```text
//! statement = word [word | "quoted"] [;]
//!           | SET word (= | TO) (word | "quoted" | 'quoted') [;]
//! word      = letters, digits, _      (keywords in either case, no comments)
//! ```

use super::error::Refusal;
use super::office::Shutdown;
use super::show;
use super::table::Column;
use std::borrow::Cow;

/// Longest command word, in bytes (PgBouncer's limits, as the next two).
const VERB_BYTES_MAX: usize = 15;
/// Longest argument, or name in a SET.
const ARGUMENT_BYTES_MAX: usize = 63;
/// Longest value in a SET.
const VALUE_BYTES_MAX: usize = 255;

/// What the console can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// SHOW, or SELECT as its alias.
    Show(Show),
    /// `SELECT 1`: how drivers find out whether a connection lives.
    SelectOne,
    /// SET of a [`Variable`]: changes nothing.
    SetIgnored,
    /// Read the configuration again.
    Reload,
    /// End the process.
    Shutdown(Shutdown),
}

macro_rules! shows {
    ($($(#[$doc:meta])+ $variant:ident = $word:literal, $columns:path;)+) => {
        /// What can be shown.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Show {
            $($(#[$doc])+ $variant,)+
            /// A setting that drivers ask for.
            Variable(&'static Variable),
        }

        impl Show {
            /// Everything with a name of its own, in the order of SHOW HELP.
            pub const ALL: &[(&str, Show)] = &[$(($word, Show::$variant)),+];

            /// The columns of its table; none for [`Show::Help`], which is a notice.
            pub fn columns(self) -> &'static [Column] {
                match self {
                    $(Show::$variant => $columns,)+
                    Show::Variable(variable) => &variable.column,
                }
            }
        }
    };
}

shows! {
    /// The commands.
    Help = "HELP", show::NONE;
    /// Name and version of the program.
    Version = "VERSION", show::VERSION;
    /// Counters and averages by database.
    Stats = "STATS", show::STATS;
    /// Counters by database.
    StatsTotals = "STATS_TOTALS", show::STATS_TOTALS;
    /// Averages by database.
    StatsAverages = "STATS_AVERAGES", show::STATS_AVERAGES;
    /// Counters and averages of the whole process.
    Totals = "TOTALS", show::TOTALS;
    /// Clients and servers by pool and state.
    Pools = "POOLS", show::POOLS;
    /// Every client.
    Clients = "CLIENTS", show::CONNECTIONS;
    /// Every server connection.
    Servers = "SERVERS", show::CONNECTIONS;
    /// The configured databases.
    Databases = "DATABASES", show::DATABASES;
    /// The known users.
    Users = "USERS", show::USERS;
    /// The settings in force.
    Config = "CONFIG", show::CONFIG;
    /// How many there are of everything.
    Lists = "LISTS", show::LISTS;
    /// How each core fares.
    Shards = "SHARDS", show::SHARDS;
    /// Percentiles by pool.
    Latency = "LATENCY", show::LATENCY;
}

/// A setting that drivers ask for or set as they would on a server; its value never changes.
#[derive(Debug, PartialEq, Eq)]
pub struct Variable {
    /// What it is.
    pub value: &'static str,
    column: [Column; 1],
}

impl Variable {
    const fn new(name: &'static str, value: &'static str) -> Variable {
        let column = [Column::text(name)];
        Variable { value, column }
    }

    fn named(name: &[u8]) -> Option<&'static Variable> {
        let is_it = |variable: &&Variable| {
            let [column] = variable.column;
            name.eq_ignore_ascii_case(column.name.as_bytes())
        };
        VARIABLES.iter().find(is_it)
    }
}

static VARIABLES: [Variable; 5] = [
    Variable::new("client_encoding", "UTF-8"),
    Variable::new("default_transaction_isolation", "read committed"),
    Variable::new("standard_conforming_strings", "on"),
    Variable::new("datestyle", "ISO"),
    Variable::new("timezone", "GMT"),
];

static SELECT_ONE: [Column; 1] = [Column::int4("?column?")];

impl Command {
    /// Reads the text of one statement.
    ///
    /// # Errors
    /// [`Refusal::InvalidCommand`], or [`Refusal::BadArguments`] if a word of it is too long.
    pub fn parse(text: &[u8]) -> Result<Command, Refusal> {
        let statement = Statement::read(text);
        if statement.as_ref().is_some_and(Statement::is_too_long) {
            return Err(Refusal::BadArguments);
        }
        let command = statement.as_ref().and_then(Statement::command);
        command.ok_or_else(|| Refusal::InvalidCommand {
            text: String::from_utf8_lossy(text).into_owned(),
        })
    }

    /// Whether it is for [`Access::Admin`](super::Access::Admin) only.
    pub const fn needs_admin(self) -> bool {
        matches!(self, Command::Reload | Command::Shutdown(_))
    }

    /// The columns of its rows; empty if it has none.
    pub fn columns(self) -> &'static [Column] {
        match self {
            Command::Show(show) => show.columns(),
            Command::SelectOne => &SELECT_ONE,
            _ => &[],
        }
    }

    /// The tag of its CommandComplete.
    pub const fn tag(self) -> &'static str {
        match self {
            Command::Show(_) => "SHOW",
            Command::SelectOne => "SELECT 1",
            Command::SetIgnored => "SET",
            Command::Reload => "RELOAD",
            Command::Shutdown(_) => "SHUTDOWN",
        }
    }
}

/// Whether `text` holds no statement: nothing but space and at most one semicolon.
pub(super) fn is_empty(text: &[u8]) -> bool {
    Words { rest: text }.ends()
}

/// A statement by its form.
enum Statement<'a> {
    Plain {
        verb: &'a [u8],
        argument: Option<Cow<'a, [u8]>>,
    },
    Set {
        name: &'a [u8],
        value: Cow<'a, [u8]>,
    },
}

impl<'a> Statement<'a> {
    fn read(text: &'a [u8]) -> Option<Statement<'a>> {
        let mut words = Words { rest: text };
        let verb = words.word()?;
        let statement = if verb.eq_ignore_ascii_case(b"set") {
            let name = words.word()?;
            if !words.takes(b'=') {
                let to = words.word()?;
                to.eq_ignore_ascii_case(b"to").then_some(())?;
            }
            let value = words.argument().or_else(|| words.quoted(b'\''))?;
            Statement::Set { name, value }
        } else {
            let argument = words.argument();
            Statement::Plain { verb, argument }
        };
        words.ends().then_some(statement)
    }

    fn is_too_long(&self) -> bool {
        match self {
            Statement::Plain { verb, argument } => {
                let argument_bytes = argument.as_ref().map_or(0, |argument| argument.len());
                verb.len() > VERB_BYTES_MAX || argument_bytes > ARGUMENT_BYTES_MAX
            }
            Statement::Set { name, value } => {
                name.len() > ARGUMENT_BYTES_MAX || value.len() > VALUE_BYTES_MAX
            }
        }
    }

    fn command(&self) -> Option<Command> {
        let (verb, argument) = match self {
            Statement::Set { name, .. } => {
                return Variable::named(name).map(|_| Command::SetIgnored);
            }
            Statement::Plain { verb, argument } => (verb, argument.as_deref()),
        };
        match (verb.to_ascii_lowercase().as_slice(), argument) {
            (b"select", Some(b"1")) => Some(Command::SelectOne),
            (b"show" | b"select", Some(name)) => shown(name).map(Command::Show),
            (b"reload", None) => Some(Command::Reload),
            (b"shutdown", how) => manner(how).map(Command::Shutdown),
            _ => None,
        }
    }
}

fn shown(name: &[u8]) -> Option<Show> {
    let is_it = |(word, _): &&(&str, Show)| name.eq_ignore_ascii_case(word.as_bytes());
    let table = Show::ALL.iter().find(is_it).map(|(_, show)| *show);
    table.or_else(|| Variable::named(name).map(Show::Variable))
}

fn manner(argument: Option<&[u8]>) -> Option<Shutdown> {
    let Some(word) = argument else {
        return Some(Shutdown::Now);
    };
    match word.to_ascii_lowercase().as_slice() {
        b"wait_for_clients" => Some(Shutdown::WaitForClients),
        b"wait_for_servers" => Some(Shutdown::WaitForServers),
        _ => None,
    }
}

/// Takes words off the front of a statement; each method skips space first.
struct Words<'a> {
    rest: &'a [u8],
}

impl<'a> Words<'a> {
    fn skip_space(&mut self) {
        let is_space = |byte: &u8| byte.is_ascii_whitespace() || *byte == b'\x0b';
        let end = self.rest.iter().position(|byte| !is_space(byte));
        self.advance(end.unwrap_or(self.rest.len()));
    }

    fn word(&mut self) -> Option<&'a [u8]> {
        self.skip_space();
        let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
        let end = self.rest.iter().position(|byte| !is_word(byte));
        let word = self.advance(end.unwrap_or(self.rest.len()));
        (!word.is_empty()).then_some(word)
    }

    fn argument(&mut self) -> Option<Cow<'a, [u8]>> {
        let word = self.word().map(Cow::Borrowed);
        word.or_else(|| self.quoted(b'"'))
    }

    /// Text between two `quote`s, in which two of them stand for one.
    fn quoted(&mut self, quote: u8) -> Option<Cow<'a, [u8]>> {
        if !self.takes(quote) {
            return None;
        }
        let mut text = Vec::new();
        loop {
            let end = self.rest.iter().position(|byte| *byte == quote)?;
            text.extend_from_slice(self.advance(end));
            self.advance(1);
            if self.rest.first() != Some(&quote) {
                return Some(Cow::Owned(text));
            }
            self.advance(1);
            text.push(quote);
        }
    }

    fn takes(&mut self, symbol: u8) -> bool {
        self.skip_space();
        let is_there = self.rest.first() == Some(&symbol);
        self.advance(usize::from(is_there));
        is_there
    }

    /// Whether nothing is left but at most one semicolon.
    fn ends(&mut self) -> bool {
        self.takes(b';');
        self.skip_space();
        self.rest.is_empty()
    }

    fn advance(&mut self, bytes: usize) -> &'a [u8] {
        let (taken, rest) = self
            .rest
            .split_at_checked(bytes)
            .unwrap_or((self.rest, b""));
        self.rest = rest;
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read() {
        let table: &[(&str, Command)] = &[
            ("SHOW STATS", Command::Show(Show::Stats)),
            (" show\tstats_TOTALS ; ", Command::Show(Show::StatsTotals)),
            ("SELECT clients;", Command::Show(Show::Clients)),
            ("show \"Pools\"", Command::Show(Show::Pools)),
            ("\x0b\r\nSHOW help", Command::Show(Show::Help)),
            ("select 1", Command::SelectOne),
            ("SELECT 1;", Command::SelectOne),
            ("reload", Command::Reload),
            ("SHUTDOWN;", Command::Shutdown(Shutdown::Now)),
            (
                "shutdown WAIT_FOR_CLIENTS",
                Command::Shutdown(Shutdown::WaitForClients),
            ),
            (
                "SHUTDOWN wait_for_servers;",
                Command::Shutdown(Shutdown::WaitForServers),
            ),
            ("SET DateStyle = 'ISO, MDY'", Command::SetIgnored),
            ("set timezone to gmt;", Command::SetIgnored),
            ("SET client_encoding='it''s'", Command::SetIgnored),
            (
                "SET standard_conforming_strings TO \"on\"",
                Command::SetIgnored,
            ),
        ];
        for (text, command) in table {
            assert_eq!(Command::parse(text.as_bytes()), Ok(*command), "{text}");
        }
    }

    #[test]
    fn variables_have_pgbouncers_values_and_their_name_as_column() {
        let table = [
            ("CLIENT_ENCODING", "client_encoding", "UTF-8"),
            (
                "default_transaction_isolation",
                "default_transaction_isolation",
                "read committed",
            ),
            (
                "standard_conforming_strings",
                "standard_conforming_strings",
                "on",
            ),
            ("DateStyle", "datestyle", "ISO"),
            ("timezone", "timezone", "GMT"),
        ];
        for (typed, name, value) in table {
            let command = Command::parse(format!("SHOW {typed}").as_bytes()).unwrap();
            let Command::Show(Show::Variable(variable)) = command else {
                panic!("{command:?}")
            };
            assert_eq!(variable.value, value);
            assert_eq!(command.columns(), [Column::text(name)]);
        }
    }

    #[test]
    fn everything_shown_by_name_is_found_by_its_name() {
        for (word, show) in Show::ALL {
            assert_eq!(shown(word.as_bytes()), Some(*show));
        }
    }

    #[test]
    fn anything_else_is_invalid_and_quoted_back() {
        let table: &[&[u8]] = &[
            b"",
            b";",
            b"BEGIN",
            b"COMMIT",
            b"PAUSE",
            b"SHOW",
            b"SHOW ;",
            b"SHOW nothing",
            b"SHOW pools pools",
            b"SHOW pools;;",
            b"SHOW pools; SHOW pools",
            b"SHOW pools -- comment",
            b"SHOW 'pools'",
            b"SHOW \"pools",
            b"SELECT 2",
            b"SELECT version()",
            b"RELOAD now",
            b"SHUTDOWN later",
            b"SET timezone",
            b"SET timezone =",
            b"SET timezone gmt",
            b"SET pool_mode = session",
            b"SET server_lifetime = 3.5",
            b"SET timezone = 'gmt",
            b"\xff\xfe",
            b"SHOW\0POOLS",
        ];
        for text in table {
            let quoted = String::from_utf8_lossy(text).into_owned();
            assert_eq!(
                Command::parse(text),
                Err(Refusal::InvalidCommand { text: quoted }),
                "{text:?}"
            );
        }
        let refusal = Command::parse(b"BEGIN").unwrap_err();
        assert_eq!(
            refusal.to_string(),
            "invalid command 'BEGIN', use SHOW HELP;"
        );
    }

    #[test]
    fn words_beyond_pgbouncers_limits_are_bad_arguments() {
        let long = |count| "x".repeat(count);
        let verdict = |text: String| Command::parse(text.as_bytes()).unwrap_err();
        let is_invalid = |text| matches!(verdict(text), Refusal::InvalidCommand { .. });
        assert!(is_invalid(long(15)));
        assert!(is_invalid(format!("SHOW {}", long(63))));
        assert!(is_invalid(format!("SET {} = 1", long(63))));
        assert_eq!(verdict(long(16)), Refusal::BadArguments);
        assert_eq!(verdict(format!("SHOW {}", long(64))), Refusal::BadArguments);
        assert_eq!(
            verdict(format!("SET {} = 1", long(64))),
            Refusal::BadArguments
        );
        let value = |count| format!("SET timezone = '{}'", long(count));
        assert_eq!(
            Command::parse(value(255).as_bytes()),
            Ok(Command::SetIgnored)
        );
        assert_eq!(verdict(value(256)), Refusal::BadArguments);
    }

    #[test]
    fn parser_is_total_on_every_truncation_and_flipped_byte() {
        let texts: [&[u8]; 3] = [
            b"SET timezone TO \"a\"\"b\";",
            b"show \"clients\" ;",
            b"shutdown wait_for_clients;",
        ];
        for text in texts {
            for cut in 0..text.len() {
                let _ = Command::parse(&text[..cut]);
                for byte in 0..=u8::MAX {
                    let mut flipped = text.to_vec();
                    flipped[cut] = byte;
                    let _ = Command::parse(&flipped);
                    let _ = is_empty(&flipped);
                }
            }
        }
    }

    #[test]
    fn only_space_and_one_semicolon_are_empty() {
        for text in ["", " \t", ";", " ;\n"] {
            assert!(is_empty(text.as_bytes()), "{text:?}");
        }
        for text in [";;", "SHOW", "; x", "--"] {
            assert!(!is_empty(text.as_bytes()), "{text:?}");
        }
    }
}
