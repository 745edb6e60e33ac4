//! TLS by rustls: who we are and whom we trust, and one connection's records. No I/O but the reading of
//! certificate files; the ring carries the bytes (`net/secure.rs`).

mod binding;
mod certificate;
mod check;
mod error;
mod files;
mod label;
mod session;
mod setup;

pub use binding::end_point_binding;
pub use certificate::Certificate;
pub use error::{HandshakeError, SetupError};
pub use files::{CertificateFile, FileStamp};
pub use label::TlsLabel;
pub use session::Peer;
pub(super) use session::Session;
pub use setup::{Acceptor, Connector, TlsSetup};
