//! What SHOW CLIENTS and SHOW SERVERS say about a connection's encryption.

use rustls::{CommonState, NamedGroup, ProtocolVersion};
use std::fmt;

/// Version, cipher and curve, in PgBouncer's notation:
/// `TLSv1.3/TLS_AES_256_GCM_SHA384/ECDH=X25519`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TlsLabel {
    suite: &'static str,
    version: Option<ProtocolVersion>,
    group: Option<NamedGroup>,
}

impl TlsLabel {
    /// Of a connection after its handshake.
    pub(super) fn of(state: &CommonState) -> TlsLabel {
        TlsLabel {
            suite: super::setup::suite_name(state.negotiated_cipher_suite()),
            version: state.protocol_version(),
            group: state
                .negotiated_key_exchange_group()
                .map(|group| group.name()),
        }
    }
}

impl fmt::Display for TlsLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let version = match self.version {
            Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
            Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
            _ => "TLS",
        };
        let group = match self.group {
            Some(NamedGroup::X25519) => "X25519",
            Some(NamedGroup::secp256r1) => "prime256v1",
            Some(NamedGroup::secp384r1) => "secp384r1",
            Some(NamedGroup::X25519MLKEM768) => "X25519MLKEM768",
            // A resumed TLS 1.2 session exchanges no keys.
            _ => "none",
        };
        write!(f, "{version}/{}/ECDH={group}", self.suite)
    }
}
