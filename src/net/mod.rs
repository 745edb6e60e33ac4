//! The shard's own io_uring for sockets: receive buffers, sockets with or without TLS, listeners, timers,
//! and the driver that is the one place where a shard sleeps.
//!
//! Ownership rules, which make it safe to drop any future at any time:
//! * The kernel writes only into the provided-buffer ring and reads only from payloads owned by a
//!   slot's send queue. No future owns memory that the kernel can see.
//! * A slot keeps its descriptor and its number until its handle is gone, its receive has
//!   delivered the final completion and no send is in flight; so a completion can never meet a
//!   recycled slot or descriptor.

#![allow(unsafe_code)]

mod buffer;
mod driver;
mod listen;
mod queue;
mod reactor;
mod ring;
mod secure;
mod sending;
mod socket;
mod steering;
#[cfg(test)]
pub(crate) mod testing;
mod thrift;
mod timer;
mod tls;
mod turnstile;

pub use buffer::Chunk;
pub use driver::{Driver, spawn};
pub use listen::{Endpoint, Listener, TcpOptions};
pub use listen::{
    adopt_listener, is_deserted, listen_tcp, listen_unix, probe_tcp, share_listener, take_waiting,
    tune_listener,
};
pub use reactor::{Net, NetOptions};
pub use ring::probe;
pub use socket::{Detached, Payload, Socket};
pub use steering::{steer, unsteer};
pub use timer::{Elapsed, Sleep};
pub use tls::{
    Acceptor, Certificate, CertificateFile, Connector, FileStamp, HandshakeError, Peer, SetupError,
    TlsLabel, TlsSetup, end_point_binding,
};
