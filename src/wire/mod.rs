//! The PostgreSQL frontend/backend protocol, version 3.0 to 3.2, as bytes: what arrives is read
//! through borrowed views, what the pooler writes itself is appended to a `Vec<u8>`.
//!
//! Pure: no I/O, no clock. Every function that reads takes any bytes at all and answers `Ok` or
//! [`WireError`] in time linear in their number; none panics, none reserves memory because a peer
//! named a length. All other wire code goes through [`Reader`] and [`message`].
//!
//! Not here: what a message means for a client or a server (`session`, `relay`), SCRAM (`auth`).

pub mod backend;
mod cursor;
mod error;
mod frame;
pub mod frontend;
mod options;
mod sqlstate;
mod startup;
pub mod tag;
#[cfg(test)]
mod testing;

pub use cursor::{Reader, message, put_cstr};
pub use error::WireError;
pub use frame::{BadHeader, HEADER_BYTES, Header, LENGTH_BYTES, Scanner, Step};
pub use options::parse_options;
pub use sqlstate::SqlState;
pub use startup::{
    CancelRequest, FirstPacket, PROTOCOL_MINOR_MAX, Replication, StartupPacket, cancel_request,
    first_packet_length, parse_first_packet, ssl_request, startup_packet,
};
