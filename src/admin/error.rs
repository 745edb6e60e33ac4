//! Why the console does not do what it was asked.

use crate::wire::backend::{Report, Severity, error_response};
use crate::wire::{SqlState, WireError};

/// A command or message that fails; the session goes on. Where PgBouncer has a text for the case,
/// the text is PgBouncer's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not a command of the console.
    #[error("invalid command '{text}', use SHOW HELP;")]
    InvalidCommand {
        /// What was typed.
        text: String,
    },
    /// A word of the command is too long.
    #[error("bad arguments")]
    BadArguments,
    /// The user may only look.
    #[error("admin access needed")]
    AdminAccessNeeded,
    /// SET of something that is no setting, or to what it cannot be.
    #[error("SET failed")]
    SetFailed,
    /// PAUSE, KILL or SUSPEND of what is paused already.
    #[error("already suspended/paused")]
    AlreadyPaused,
    /// SUSPEND while a database is paused.
    #[error("cannot suspend with paused databases")]
    PausedDatabases,
    /// RESUME of a process that is not paused.
    #[error("pooler is not paused/suspended")]
    NotPaused,
    /// RESUME of a database that is not paused.
    #[error("database {name} is not paused")]
    DatabaseNotPaused {
        /// The name.
        name: String,
    },
    /// RESUME during a shutdown.
    #[error("pooler is shutting down")]
    ShuttingDown,
    /// No database has this name.
    #[error("no such database: {name}")]
    NoSuchDatabase {
        /// The name.
        name: String,
    },
    /// A command that is for other databases than the console's.
    #[error("cannot {verb} admin db: {name}")]
    AdminDatabase {
        /// What was to be done.
        verb: &'static str,
        /// The name.
        name: String,
    },
    /// A command without the database that it is for.
    #[error("a database is required")]
    DatabaseRequired,
    /// A cancel request, or RESUME, ended the wait for what was ordered before its time.
    #[error("canceling statement due to user request")]
    WaitEnded,
    /// KILL_CLIENT of nobody.
    #[error("client not found")]
    NoSuchClient,
    /// KILL_CLIENT without a number.
    #[error("invalid client pointer supplied")]
    BadClient,
    /// The configuration could not be read again; the old one stays in force.
    #[error("RELOAD failed, see logs for additional details")]
    ReloadFailed {
        /// What was wrong with it.
        detail: String,
    },
    /// A message's body is malformed.
    #[error("malformed message: {0}")]
    Malformed(#[from] WireError),
    /// A Parse for a name that is taken.
    #[error("prepared statement \"{name}\" already exists")]
    StatementExists {
        /// The name.
        name: String,
    },
    /// No such prepared statement.
    #[error("prepared statement \"{name}\" does not exist")]
    NoStatement {
        /// The name.
        name: String,
    },
    /// A Bind for a name that is taken.
    #[error("portal \"{name}\" already exists")]
    PortalExists {
        /// The name.
        name: String,
    },
    /// No such portal.
    #[error("portal \"{name}\" does not exist")]
    NoPortal {
        /// The name.
        name: String,
    },
    /// A portal of a command without rows runs only once.
    #[error("portal \"{name}\" cannot be run again")]
    PortalSpent {
        /// The name.
        name: String,
    },
    /// More statements or portals than a session may have, or a name longer than it may be.
    #[error("{what} exceed the limit of {limit}")]
    TooMuch {
        /// What there is too much of.
        what: &'static str,
        /// How much there may be.
        limit: usize,
    },
    /// A Bind with too many parameters, or too few.
    #[error("bind message supplies {count} parameters, but the statement requires {required}")]
    Parameters {
        /// How many.
        count: usize,
        /// How many there must be.
        required: usize,
    },
    /// A parameter that nobody gives a value.
    #[error("there is no parameter ${number}")]
    NoParameter {
        /// Its number.
        number: u16,
    },
    /// A parameter's value that cannot be read.
    #[error("cannot read parameter ${number} of type {type_oid}")]
    BadParameter {
        /// Its number.
        number: usize,
        /// Its type's object id.
        type_oid: u32,
    },
    /// WHERE with a column that the table does not have.
    #[error("column \"{name}\" does not exist")]
    NoColumn {
        /// The name.
        name: String,
    },
    /// A number is due.
    #[error("invalid input syntax for type numeric: \"{text}\"")]
    NoNumber {
        /// What stands there instead.
        text: String,
    },
    /// LIMIT of less than nothing, or of a fraction.
    #[error("LIMIT must be a whole number and not be negative")]
    BadLimit,
    /// A Bind with result formats for another number of columns.
    #[error("bind message has {formats} result formats but query has {columns} columns")]
    FormatCount {
        /// Formats in the message.
        formats: usize,
        /// Columns of the result.
        columns: usize,
    },
    /// Neither text nor binary.
    #[error("unsupported format code: {code}")]
    FormatCode {
        /// The code.
        code: u16,
    },
}

impl Refusal {
    /// Its code: PgBouncer's 08P01, except where PostgreSQL has one that drivers react to.
    pub const fn sqlstate(&self) -> SqlState {
        match self {
            Refusal::ReloadFailed { .. } => SqlState::CONFIGURATION_FILE_ERROR,
            Refusal::WaitEnded => SqlState::QUERY_CANCELED,
            Refusal::NoColumn { .. } => SqlState::UNDEFINED_COLUMN,
            Refusal::NoNumber { .. } | Refusal::BadParameter { .. } => {
                SqlState::INVALID_TEXT_REPRESENTATION
            }
            Refusal::NoParameter { .. } => SqlState::UNDEFINED_PARAMETER,
            Refusal::NoStatement { .. } => SqlState::INVALID_STATEMENT_NAME,
            Refusal::StatementExists { .. } => SqlState::DUPLICATE_PREPARED_STATEMENT,
            _ => SqlState::PROTOCOL_VIOLATION,
        }
    }

    /// Appends it as an ErrorResponse.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let detail = match self {
            Refusal::ReloadFailed { detail } => Some(detail.as_str()),
            _ => None,
        };
        let report = Report {
            severity: Severity::Error,
            sqlstate: self.sqlstate(),
            message: &self.to_string(),
            detail,
            hint: None,
        };
        error_response(out, &report);
    }
}

/// Why a session does not go on as usual.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// This request failed.
    Refused(Refusal),
    /// The session is over, without another word.
    Ended,
}

/// The session is over, without another word.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ended;

impl From<Ended> for Stop {
    fn from(_: Ended) -> Stop {
        Stop::Ended
    }
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Stop {
        Stop::Refused(refusal)
    }
}

impl From<WireError> for Stop {
    fn from(error: WireError) -> Stop {
        Stop::Refused(error.into())
    }
}
