//! The SQLSTATE codes that a pooler sends or reacts to.

use std::fmt;

/// A five-character error code (PostgreSQL documentation, appendix A): digits and upper-case
/// letters only. The first two characters are its class.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SqlState([u8; 5]);

macro_rules! codes {
    ($($name:ident = $code:literal $meaning:literal;)+) => {
        impl SqlState {
            $(#[doc = concat!("`", $code, "`: ", $meaning, ".")]
            pub const $name: SqlState = SqlState::literal($code);)+
        }
    };
}

codes! {
    SUCCESSFUL_COMPLETION = "00000" "successful completion, also the code of plain notices";
    WARNING = "01000" "warning";
    CONNECTION_EXCEPTION = "08000" "connection exception";
    CANNOT_CONNECT = "08001" "unable to establish a connection to the server";
    CONNECTION_REJECTED = "08004" "the server rejected the connection";
    CONNECTION_FAILURE = "08006" "connection failure";
    PROTOCOL_VIOLATION = "08P01" "protocol violation; PgBouncer's code for nearly everything";
    FEATURE_NOT_SUPPORTED = "0A000" "feature not supported";
    INVALID_TEXT_REPRESENTATION = "22P02" "a text is no value of its type";
    INVALID_PARAMETER_VALUE = "22023" "invalid parameter value";
    ACTIVE_TRANSACTION = "25001" "not possible inside of a transaction";
    READ_ONLY_TRANSACTION = "25006" "the transaction, or the server, is read-only";
    FAILED_TRANSACTION = "25P02" "the transaction has failed and waits for its ROLLBACK";
    IDLE_IN_TRANSACTION_TIMEOUT = "25P03" "idle_in_transaction_session_timeout";
    TRANSACTION_TIMEOUT = "25P04" "transaction_timeout";
    INVALID_STATEMENT_NAME = "26000" "no such prepared statement";
    INVALID_AUTHORIZATION = "28000" "this login is not allowed";
    INVALID_PASSWORD = "28P01" "password authentication failed";
    INVALID_CATALOG_NAME = "3D000" "no such database";
    INSUFFICIENT_PRIVILEGE = "42501" "insufficient privilege";
    SYNTAX_ERROR = "42601" "syntax error";
    UNDEFINED_COLUMN = "42703" "no such column";
    UNDEFINED_PARAMETER = "42P02" "no such parameter";
    UNDEFINED_OBJECT = "42704" "no such setting or object";
    DUPLICATE_PREPARED_STATEMENT = "42P05" "the prepared statement exists already";
    INSUFFICIENT_RESOURCES = "53000" "insufficient resources";
    OUT_OF_MEMORY = "53200" "out of memory";
    TOO_MANY_CONNECTIONS = "53300" "too many connections";
    CONFIGURATION_LIMIT_EXCEEDED = "53400" "a configured limit is exceeded";
    PROGRAM_LIMIT_EXCEEDED = "54000" "a limit of the program is exceeded";
    OBJECT_NOT_IN_STATE = "55000" "the object is not in the state this needs";
    QUERY_CANCELED = "57014" "the query was cancelled";
    ADMIN_SHUTDOWN = "57P01" "an administrator ended the connection";
    CRASH_SHUTDOWN = "57P02" "another server process crashed";
    CANNOT_CONNECT_NOW = "57P03" "the server is starting up or shutting down";
    DATABASE_DROPPED = "57P04" "the database was dropped";
    IDLE_SESSION_TIMEOUT = "57P05" "idle_session_timeout";
    SYSTEM_ERROR = "58000" "an error outside of the server";
    CONFIGURATION_FILE_ERROR = "F0000" "configuration file error";
    INTERNAL_ERROR = "XX000" "internal error";
}

impl SqlState {
    /// The code in `bytes`; `None` unless it is five digits or upper-case letters.
    pub fn parse(bytes: &[u8]) -> Option<SqlState> {
        let code: [u8; 5] = bytes.try_into().ok()?;
        code.iter().all(is_code_byte).then_some(SqlState(code))
    }

    /// The code as text.
    pub fn as_str(&self) -> &str {
        // Both constructors let ASCII through only.
        str::from_utf8(&self.0).unwrap_or_default()
    }

    /// The first two characters, for example `08` for all connection exceptions.
    pub fn class(&self) -> &str {
        self.as_str().get(..2).unwrap_or_default()
    }

    const fn literal(code: &str) -> SqlState {
        let Some(code) = code.as_bytes().first_chunk::<5>() else {
            panic!("an SQLSTATE has five characters");
        };
        SqlState(*code)
    }
}

impl fmt::Display for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SqlState({self})")
    }
}

const fn is_code_byte(byte: &u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'A'..=b'Z')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_round_trips_and_has_a_class() {
        let code = SqlState::parse(b"08P01").unwrap();
        assert_eq!(code, SqlState::PROTOCOL_VIOLATION);
        assert_eq!((code.as_str(), code.class()), ("08P01", "08"));
        assert_eq!(format!("{code:?}"), "SqlState(08P01)");
    }

    #[test]
    fn anything_but_five_digits_or_capitals_is_refused() {
        for bytes in [
            &b""[..],
            b"0800",
            b"080000",
            b"08p01",
            b"08\xff01",
            b"08 01",
        ] {
            assert_eq!(SqlState::parse(bytes), None, "{bytes:?}");
        }
    }
}
