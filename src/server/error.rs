//! Why a server connection could not be opened or used.

use crate::auth::ServerLoginError;
use crate::net::{HandshakeError, is_deserted};
use crate::wire::{BadHeader, WireError};
use std::borrow::Cow;
use std::io;

/// Why a server connection could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The host's name has no address (yet).
    #[error("server DNS lookup failed")]
    NoAddress,
    /// The connection failed.
    #[error("connect failed")]
    Connect(#[source] io::Error),
    /// Connecting and logging in took longer than `server_connect_timeout`.
    #[error("connect timeout")]
    Timeout,
    /// The server does not encrypt, and has to.
    #[error("server refused SSL")]
    TlsRefused,
    /// The server sent something in clear text behind its consent to encrypt.
    #[error("received unencrypted data after SSL response")]
    DataBeforeTls,
    /// Encryption was not agreed on.
    #[error(transparent)]
    Encrypt(HandshakeError),
    /// The connection broke during the login.
    #[error("server connection broke during login")]
    Broken(#[source] io::Error),
    /// The server hung up during the login.
    #[error("server closed the connection during login")]
    Closed,
    /// The server said something that is not a login.
    #[error("server broke the protocol during login")]
    Protocol(#[source] WireError),
    /// A message whose length cannot be true.
    #[error("server broke the protocol during login")]
    Header(#[source] BadHeader),
    /// A message that has no place in a login.
    #[error("unexpected message '{}' during login", char::from(*.0).escape_default())]
    Unexpected(u8),
    /// We cannot give what the server asks for.
    #[error("cannot log in to the server")]
    Login(#[from] ServerLoginError),
    /// The server refused the login.
    #[error("server login failed: {severity} {message}")]
    Refused {
        /// FATAL, usually.
        severity: String,
        /// The code; none if the server sent none (CVE-2026-6666).
        sqlstate: Option<crate::wire::SqlState>,
        /// What it said.
        message: String,
    },
    /// It hung up after `connect_query`, or was left in the middle of something by it.
    #[error("connect_query left no usable connection")]
    Unfit,
    /// The query that the pooler ran by itself failed.
    #[error("server refused the pooler's own query: {0:?}")]
    OwnQuery(String),
}

impl DialError {
    /// Whether nobody listens there any more.
    pub fn is_nobody_there(&self) -> bool {
        matches!(self, DialError::Connect(error) if is_deserted(error))
    }
}

impl DialError {
    /// PgBouncer's words for why such a connection is closed.
    pub fn reason(&self) -> Cow<'static, str> {
        match self {
            DialError::Refused { .. } => "login failed".into(),
            DialError::Login(_) => "failed to answer authreq".into(),
            DialError::Broken(_) | DialError::Closed => "server conn crashed?".into(),
            other => other.to_string().into(),
        }
    }

    /// Whether the server's rules (pg_hba.conf) refused the connection as it was made.
    pub(super) fn is_refused_by_rules(&self) -> bool {
        const INVALID_AUTHORIZATION: &[u8] = b"28000";
        matches!(self, DialError::Refused { sqlstate: Some(state), .. } if state.as_str().as_bytes() == INVALID_AUTHORIZATION)
    }

    /// Whether the server is starting up (57P03): clients go on waiting for it.
    pub fn is_starting_up(&self) -> bool {
        matches!(self, DialError::Refused { sqlstate: Some(state), .. } if *state == crate::wire::SqlState::CANNOT_CONNECT_NOW)
    }
}
