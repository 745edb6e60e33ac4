//! SCRAM-SHA-256 (RFC 5802, RFC 7677) as PostgreSQL speaks it: both sides as steps without I/O.
//! Over TLS with channel binding as well: SCRAM-SHA-256-PLUS, of type `tls-server-end-point`.

mod client;
mod keys;
mod made_up;
mod message;
mod prepare;
mod server;
mod verifier;

pub use client::{ClientExchange, StretchParameters};
pub use keys::ScramKeys;
pub use made_up::{made_up_salt, made_up_verifier, mock_verifier};
pub use message::{
    ITERATIONS_MAX, NONCE_BYTES_MAX, NONCE_RANDOM_BYTES, SALT_BYTES_MAX, SCRAM_SHA_256,
    SCRAM_SHA_256_PLUS, nonce_text,
};
pub(super) use message::{InitialResponse, initial_response, parse_initial_response};
pub use prepare::prepare;
pub use server::{ServerExchange, ServerFinal};
pub use verifier::ScramVerifier;

#[cfg(test)]
pub(super) use message::testing;
