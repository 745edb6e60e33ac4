//! Why a client is sent away: what it is told, and with which SQLSTATE.

use crate::wire::SqlState;
use crate::wire::backend::{Report, Severity, error_response};
use std::borrow::Cow;

/// A reason to close a client's connection. Texts and codes are PgBouncer's where it has the case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Farewell {
    /// The code.
    pub sqlstate: SqlState,
    /// The text.
    pub text: Cow<'static, str>,
}

impl Farewell {
    /// A reason with PgBouncer's usual code, 08P01.
    pub const fn new(text: &'static str) -> Farewell {
        Farewell {
            sqlstate: SqlState::PROTOCOL_VIOLATION,
            text: Cow::Borrowed(text),
        }
    }

    /// There is no memory for it (`memory_max`).
    pub const OUT_OF_MEMORY: Farewell = Farewell {
        sqlstate: SqlState::OUT_OF_MEMORY,
        text: Cow::Borrowed("out of memory (memory_max)"),
    };

    /// A reason with a text made up at run time.
    pub fn with(sqlstate: SqlState, text: impl Into<String>) -> Farewell {
        Farewell {
            sqlstate,
            text: Cow::Owned(text.into()),
        }
    }

    /// A reason with PgBouncer's usual code and a text made up at run time.
    pub fn because(text: impl Into<String>) -> Farewell {
        Farewell::with(SqlState::PROTOCOL_VIOLATION, text)
    }

    /// Appends it as a FATAL error.
    pub fn write(&self, out: &mut Vec<u8>) {
        let report = Report {
            severity: Severity::Fatal,
            sqlstate: self.sqlstate,
            message: &self.text,
            detail: None,
            hint: None,
        };
        error_response(out, &report);
    }
}

macro_rules! farewells {
    ($($(#[$doc:meta])+ $name:ident = $text:literal;)+) => {
        impl Farewell {
            $($(#[$doc])+ pub const $name: Farewell = Farewell::new($text);)+
        }
    };
}

farewells! {
    /// Start-up and login took too long.
    LOGIN_TIMEOUT = "client_login_timeout";
    /// Too many logins from its address have failed.
    TOO_MANY_FAILURES = "too many failed logins from this address";
    /// A user could not be looked up, for a reason that is not the client's business.
    CONFIG_ERROR = "bouncer config error";
    /// Too many clients.
    TOO_MANY_CLIENTS = "no more connections allowed (max_client_conn)";
    /// Too many clients of its database.
    TOO_MANY_DB_CLIENTS = "client connections exceeded (max_db_client_connections)";
    /// Too many clients of its user.
    TOO_MANY_USER_CLIENTS = "client connections exceeded (max_user_client_connections)";
    /// Waited too long for a server.
    QUERY_WAIT_TIMEOUT = "query_wait_timeout";
    /// A query took too long before it had a server.
    QUERY_TIMEOUT_IN_LINE = "query_timeout";
    /// A query took too long.
    QUERY_TIMEOUT = "query timeout";
    /// Idle inside a transaction for too long.
    IDLE_TRANSACTION_TIMEOUT = "idle transaction timeout";
    /// A transaction took too long.
    TRANSACTION_TIMEOUT = "transaction timeout";
    /// Idle for too long.
    CLIENT_IDLE_TIMEOUT = "client_idle_timeout";
    /// Its server went away.
    SERVER_CRASHED = "server conn crashed?";
    /// Its server broke the protocol.
    SERVER_CONFUSED = "server broke the protocol";
    /// The database was taken out of the configuration.
    DATABASE_REMOVED = "database removed";
    /// What was to be sent to it could not be during a SUSPEND.
    SUSPEND_TIMEOUT = "suspend_timeout";
    /// KILL_CLIENT.
    ADMIN_DISCONNECT = "admin forced disconnect";
    /// A login during a shutdown.
    SHUTTING_DOWN = "pooler is shutting down";
    /// Waiting for a server during a shutdown.
    SERVER_SHUTTING_DOWN = "server shutting down";
    /// A transaction that lasts longer than a statement, in statement mode.
    NO_TRANSACTIONS = "transaction blocks not allowed in statement pooling mode";
    /// The user may not use the console.
    NOT_ALLOWED = "not allowed";
    /// Too many requests without reading the replies.
    PIPELINE_TOO_LONG = "too many requests in the pipeline";
    /// The database's forced user changed.
    CONFIGURATION_CHANGED = "database configuration changed";
    /// A setting of the client that the server does not take.
    INVALID_SETTING = "invalid server parameter";
    /// A message other than a password, where one is due.
    EXPECTED_PASSWORD = "expected password response";
    /// More data than a login needs.
    OVERSIZED_LOGIN = "login message is too large";
    /// A client that does not encrypt, where it must.
    SSL_REQUIRED = "SSL required";
    /// TLS without SSLRequest and without ALPN, which PostgreSQL refuses as well.
    DIRECT_TLS_WITHOUT_ALPN = "direct SSL connection without ALPN protocol negotiation";
    /// Bytes behind an SSLRequest that would be read as if they were encrypted (CVE-2021-3935).
    DATA_AFTER_SSL_REQUEST = "received unencrypted data after SSL request";
}
