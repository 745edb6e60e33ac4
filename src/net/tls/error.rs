//! What can go wrong with TLS: when it is set up, and in a handshake.

use std::io;
use std::path::PathBuf;

/// Why the TLS settings cannot be put in force.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// A file cannot be read.
    #[error("cannot read {key} {}: {source}", path.display())]
    Read {
        /// The setting that names it.
        key: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{key} {}: {problem}", path.display())]
    Content {
        /// The setting that names it.
        key: &'static str,
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The parts do not go together.
    #[error("{side}_tls settings: {problem}")]
    Whole {
        /// `client` or `server`.
        side: &'static str,
        /// What is wrong.
        problem: String,
    },
}

/// Why a handshake failed.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The other side hung up.
    #[error("TLS handshake failed: connection closed")]
    Closed,
    /// The connection broke.
    #[error("TLS handshake failed: {0}")]
    Broken(#[source] io::Error),
    /// The two sides do not agree, or do not trust each other.
    #[error("TLS handshake failed: {0}")]
    Refused(#[source] rustls::Error),
    /// The host's name is none that a certificate can have.
    #[error("TLS handshake failed: {0:?} is no name that a certificate can have")]
    Name(String),
}
