//! The console's grammar: bytes to [`Command`]. Total: any bytes give a command or a [`Refusal`].
//!
//! ```text
//! statement = word [word | "quoted" | $1] [;]         ($1 for a database or a client)
//!           | SHOW word [WHERE column op value [AND column op value ...]] [LIMIT value] [;]
//!           | SET word (= | TO) (word | "quoted" | 'quoted' | $1) [;]
//! op        = `=` | `<>` | `!=` | `<` | `<=` | `>` | `>=`
//! value     = word | number | 'quoted' | $ digits
//! word      = letters, digits, _      (keywords in either case, no comments)
//! ```

use super::error::Refusal;
use super::filter::{Filter, Parameter, Test, Written};
use super::office::{Order, Shutdown};
use super::show;
use super::table::Column;
use crate::wire::backend::oid;
use std::borrow::Cow;
use std::sync::Arc;

/// Longest command word, in bytes (PgBouncer's limits, as the next two).
const VERB_BYTES_MAX: usize = 15;
/// Longest argument, or name in a SET.
const ARGUMENT_BYTES_MAX: usize = 63;
/// Longest value in a SET.
const VALUE_BYTES_MAX: usize = 255;

/// What the console can be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// SHOW, or SELECT as its alias.
    Show(Show),
    /// SHOW of some of the rows.
    ShowSome(Show, Arc<Filter>),
    /// `SELECT 1`: how drivers find out whether a connection lives.
    SelectOne,
    /// SET of a [`Variable`]: changes nothing.
    SetIgnored,
    /// SET of a setting, until the next RELOAD.
    Set(Arc<Setting>),
    /// PAUSE, SUSPEND, RESUME, KILL, RECONNECT, DISABLE, ENABLE.
    Order(Order),
    /// Answer when no server of a database, or of any, is to be closed any more.
    WaitClose(Option<Arc<str>>),
    /// Make the client with this id leave.
    KillClient(u64),
    /// A command for admins that lacks its argument, or has an impossible one.
    Incomplete(&'static str, Refusal),
    /// Read the configuration again.
    Reload,
    /// End the process.
    Shutdown(Shutdown),
    /// A command whose argument is the parameter `$1`.
    Blank(Arc<Blank>),
}

/// A command without its argument.
#[derive(Debug, PartialEq, Eq)]
pub struct Blank {
    verb: Vec<u8>,
    /// The name of a SET.
    setting: Option<Vec<u8>>,
}

/// A setting to be changed.
#[derive(Debug, PartialEq, Eq)]
pub struct Setting {
    /// Its name.
    pub name: String,
    /// The value, in the notation of SHOW CONFIG.
    pub value: String,
    tag: String,
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
    /// Every client and every server connection.
    Sockets = "SOCKETS", show::SOCKETS;
    /// Those of them that have a request to pass on.
    ActiveSockets = "ACTIVE_SOCKETS", show::SOCKETS;
    /// Descriptors; for admins.
    Fds = "FDS", show::FDS;
    /// The configured databases.
    Databases = "DATABASES", show::DATABASES;
    /// The known users.
    Users = "USERS", show::USERS;
    /// The settings in force.
    Config = "CONFIG", show::CONFIG;
    /// How many there are of everything.
    Lists = "LISTS", show::LISTS;
    /// Whether the process is paused.
    State = "STATE", show::STATE;
    /// Buffers.
    Mem = "MEM", show::MEM;
    /// Host names and their addresses.
    DnsHosts = "DNS_HOSTS", show::DNS_HOSTS;
    /// DNS zones that are watched: none.
    DnsZones = "DNS_ZONES", show::DNS_ZONES;
    /// Other poolers that cancel requests are passed on to.
    Peers = "PEERS", show::PEERS;
    /// What goes on with them.
    PeerPools = "PEER_POOLS", show::PEER_POOLS;
    /// How each core fares.
    Shards = "SHARDS", show::SHARDS;
    /// Failed logins by address.
    LoginFailures = "LOGIN_FAILURES", show::LOGIN_FAILURES;
    /// Texts that clients have prepared, and how often they were used.
    PreparedStatements = "PREPARED_STATEMENTS", show::PREPARED_STATEMENTS;
    /// Percentiles by pool.
    Latency = "LATENCY", show::LATENCY;
    /// The certificates in force.
    Tls = "TLS", show::TLS;
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

static VARIABLES: [Variable; 6] = [
    Variable::new("client_encoding", "UTF-8"),
    Variable::new("default_transaction_isolation", "read committed"),
    Variable::new("standard_conforming_strings", "on"),
    Variable::new("datestyle", "ISO"),
    Variable::new("timezone", "GMT"),
    // pgjdbc sets it.
    Variable::new("extra_float_digits", "2"),
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
        let command = statement.map(Statement::command).transpose()?.flatten();
        command.ok_or_else(|| Refusal::InvalidCommand {
            text: String::from_utf8_lossy(text).into_owned(),
        })
    }

    /// The types of the parameters that it takes.
    pub(super) fn parameter_types(&self) -> Vec<u32> {
        match self {
            Command::ShowSome(_, filter) => filter.parameter_types(),
            Command::Blank(blank) => vec![blank.parameter_type()],
            _ => Vec::new(),
        }
    }

    /// The same with values for its parameters.
    pub(super) fn bind(&self, values: &[Parameter]) -> Result<Command, Refusal> {
        Ok(match self {
            Command::ShowSome(show, filter) => {
                Command::ShowSome(*show, Arc::new(filter.bind(values)?))
            }
            Command::Blank(blank) => {
                let value = values.first().and_then(Option::as_deref);
                let filled = value.map(|value| blank.filled(value.as_bytes()));
                filled.transpose()?.flatten().ok_or(Refusal::BadArguments)?
            }
            _ => self.clone(),
        })
    }

    /// Whether it is for [`Access::Admin`](super::Access::Admin) only.
    pub const fn needs_admin(&self) -> bool {
        match self {
            Command::Show(show) | Command::ShowSome(show, _) => matches!(show, Show::Fds),
            // What it becomes may be.
            Command::SelectOne | Command::SetIgnored | Command::Blank(_) => false,
            _ => true,
        }
    }

    /// The columns of its rows; empty if it has none.
    pub fn columns(&self) -> &'static [Column] {
        match self {
            Command::Show(show) | Command::ShowSome(show, _) => show.columns(),
            Command::SelectOne => &SELECT_ONE,
            _ => &[],
        }
    }

    /// The tag of its CommandComplete.
    pub fn tag(&self) -> &str {
        match self {
            Command::Show(_) | Command::ShowSome(..) => "SHOW",
            Command::SelectOne => "SELECT 1",
            Command::SetIgnored => "SET",
            Command::Set(setting) => &setting.tag,
            Command::Order(order) => order.verb(),
            Command::WaitClose(_) => "WAIT_CLOSE",
            Command::KillClient(_) => "KILL_CLIENT",
            Command::Incomplete(verb, _) => verb,
            Command::Reload => "RELOAD",
            Command::Shutdown(_) => "SHUTDOWN",
            // It is never complete.
            Command::Blank(_) => "",
        }
    }
}

impl Blank {
    /// That of the `id` column, or text, which everything else is.
    fn parameter_type(&self) -> u32 {
        match self.verb.eq_ignore_ascii_case(b"kill_client") {
            true => oid::INT4,
            false => oid::TEXT,
        }
    }

    /// The command with its argument; none if there is no such command.
    fn filled(&self, argument: &[u8]) -> Result<Option<Command>, Refusal> {
        let argument = Cow::Borrowed(argument);
        let statement = match &self.setting {
            Some(name) => Statement::Set {
                name,
                value: argument,
            },
            None => Statement::Plain {
                verb: &self.verb,
                argument: Some(argument),
            },
        };
        match statement.is_too_long() {
            true => Err(Refusal::BadArguments),
            false => statement.command(),
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
    Some {
        name: Cow<'a, [u8]>,
        conditions: Vec<Comparison<'a>>,
        limit: Option<Written>,
    },
    Blank(Blank),
}

/// A comparison as it is written.
type Comparison<'a> = (Cow<'a, [u8]>, Test, Written);

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
            match words.argument().or_else(|| words.quoted(b'\'')) {
                Some(value) => Statement::Set { name, value },
                None => words.blank(verb, Some(name))?,
            }
        } else {
            let argument = words.argument();
            match argument {
                Some(name) if is_show(verb) && !words.clone().ends() => {
                    Statement::read_some(name, &mut words)?
                }
                None if !words.clone().ends() => words.blank(verb, None)?,
                argument => Statement::Plain { verb, argument },
            }
        };
        words.ends().then_some(statement)
    }

    fn read_some(name: Cow<'a, [u8]>, words: &mut Words<'a>) -> Option<Statement<'a>> {
        let mut conditions = Vec::new();
        let mut limit = None;
        let mut word = words.word()?;
        if word.eq_ignore_ascii_case(b"where") {
            loop {
                conditions.push((words.argument()?, words.test()?, words.value()?));
                match words.word() {
                    Some(and) if and.eq_ignore_ascii_case(b"and") => {}
                    next => {
                        word = next.unwrap_or_default();
                        break;
                    }
                }
            }
        }
        if word.eq_ignore_ascii_case(b"limit") {
            limit = Some(words.value()?);
            word = b"";
        }
        word.is_empty().then_some(Statement::Some {
            name,
            conditions,
            limit,
        })
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
            Statement::Some { name, .. } => name.len() > ARGUMENT_BYTES_MAX,
            // It is asked for once it is filled.
            Statement::Blank(_) => false,
        }
    }

    fn command(self) -> Result<Option<Command>, Refusal> {
        let (verb, argument) = match self {
            Statement::Set { name, value } => return Ok(Some(set(name, &value))),
            Statement::Some {
                name,
                conditions,
                limit,
            } => return shown_some(&name, conditions, limit),
            Statement::Blank(blank) => return blanked(blank),
            Statement::Plain { verb, argument } => (verb, argument),
        };
        let argument = argument.as_deref();
        Ok(match (verb.to_ascii_lowercase().as_slice(), argument) {
            (b"select", Some(b"1")) => Some(Command::SelectOne),
            (b"show" | b"select", Some(name)) => shown(name).map(Command::Show),
            (verb, argument) if let Some(order) = order(verb, argument) => Some(order),
            (b"wait_close", name) => Some(Command::WaitClose(name.map(text))),
            (b"kill_client", id) => Some(client(id)),
            (b"reload", None) => Some(Command::Reload),
            (b"shutdown", how) => manner(how).map(Command::Shutdown),
            _ => None,
        })
    }
}

/// A command that can be filled, and has no rows: their columns would depend on the parameter.
fn blanked(blank: Blank) -> Result<Option<Command>, Refusal> {
    let sample = blank.filled(b"1")?;
    let is_one = sample.is_some_and(|command| command.columns().is_empty());
    Ok(is_one.then(|| Command::Blank(Arc::new(blank))))
}

fn set(name: &[u8], value: &[u8]) -> Command {
    if Variable::named(name).is_some() {
        return Command::SetIgnored;
    }
    let [name, value] = [name, value].map(|part| String::from_utf8_lossy(part).into_owned());
    let tag = format!("SET {name}={value}");
    Command::Set(Arc::new(Setting { name, value, tag }))
}

fn order(verb: &[u8], argument: Option<&[u8]>) -> Option<Command> {
    let name = argument.map(text);
    let required = |verb| Command::Incomplete(verb, Refusal::DatabaseRequired);
    Some(match (verb, name) {
        (b"pause", name) => Command::Order(Order::Pause(name)),
        (b"suspend", None) => Command::Order(Order::Suspend),
        (b"resume", name) => Command::Order(Order::Resume(name)),
        (b"kill", name) => Command::Order(Order::Kill(name)),
        (b"reconnect", name) => Command::Order(Order::Reconnect(name)),
        (b"disable", Some(name)) => Command::Order(Order::Disable(name)),
        (b"enable", Some(name)) => Command::Order(Order::Enable(name)),
        (b"disable", None) => required("DISABLE"),
        (b"enable", None) => required("ENABLE"),
        _ => return None,
    })
}

fn text(bytes: &[u8]) -> Arc<str> {
    String::from_utf8_lossy(bytes).into()
}

/// The client of an `id`, or of a `ptr`, of SHOW CLIENTS.
fn client(argument: Option<&[u8]>) -> Command {
    let word = argument.and_then(|word| str::from_utf8(word).ok());
    let id = word.and_then(|word| match word.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => word.parse().ok(),
    });
    id.map_or(
        Command::Incomplete("KILL_CLIENT", Refusal::BadClient),
        Command::KillClient,
    )
}

fn shown(name: &[u8]) -> Option<Show> {
    let is_it = |(word, _): &&(&str, Show)| name.eq_ignore_ascii_case(word.as_bytes());
    let table = Show::ALL.iter().find(is_it).map(|(_, show)| *show);
    table.or_else(|| Variable::named(name).map(Show::Variable))
}

/// SHOW of some rows; a variable has none to choose from.
fn shown_some(
    name: &[u8],
    conditions: Vec<Comparison<'_>>,
    limit: Option<Written>,
) -> Result<Option<Command>, Refusal> {
    let Some(show) = shown(name).filter(|show| show.columns().len() > 1) else {
        return Ok(None);
    };
    let mut filter = Filter::default();
    for (column, test, written) in conditions {
        filter.add(show.columns(), (&text(&column), test, written))?;
    }
    if let Some(limit) = limit {
        filter.set_limit(limit)?;
    }
    Ok(Some(Command::ShowSome(show, Arc::new(filter))))
}

fn is_show(verb: &[u8]) -> bool {
    verb.eq_ignore_ascii_case(b"show") || verb.eq_ignore_ascii_case(b"select")
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
#[derive(Clone)]
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

    fn test(&mut self) -> Option<Test> {
        self.skip_space();
        let is_it = |(symbol, _): &&(&[u8], Test)| self.rest.starts_with(symbol);
        let (symbol, test) = Test::ALL.iter().find(is_it)?;
        self.advance(symbol.len());
        Some(*test)
    }

    /// The command of a parameter.
    fn blank(&mut self, verb: &[u8], setting: Option<&[u8]>) -> Option<Statement<'a>> {
        let is_it = self.takes(b'$') && self.word() == Some(b"1");
        let setting = setting.map(<[u8]>::to_vec);
        let verb = verb.to_vec();
        is_it.then_some(Statement::Blank(Blank { verb, setting }))
    }

    /// What a column is compared with.
    fn value(&mut self) -> Option<Written> {
        if self.takes(b'$') {
            let number = str::from_utf8(self.word()?).ok()?;
            return number.parse().ok().map(Written::Parameter);
        }
        let quoted = self.quoted(b'\'');
        let value = quoted.or_else(|| self.plain().map(Cow::Borrowed))?;
        let text = String::from_utf8_lossy(&value).into_owned();
        (text.len() <= VALUE_BYTES_MAX).then_some(Written::Text(text))
    }

    /// A word or number.
    fn plain(&mut self) -> Option<&'a [u8]> {
        self.skip_space();
        let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || b"_.-".contains(byte);
        let end = self.rest.iter().position(|byte| !is_part(byte));
        let plain = self.advance(end.unwrap_or(self.rest.len()));
        (!plain.is_empty()).then_some(plain)
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
mod tests;
