//! Ringbouncer: a PostgreSQL connection pooler with one io_uring executor per core and one exact
//! pool over all of them.
//!
//! The crate is layered; an import goes to a lower line, never up, never sideways
//! (`tests/tidy.rs` checks it):
//!
//! | line | folders | owns |
//! | --- | --- | --- |
//! | 10 | `main.rs` | the allocator, and nothing else |
//! | 9 | [`cli`] | arguments in, exit code out |
//! | 8 | [`process`] | start, core placement, signals, reload, shutdown, the control thread |
//! | 7 | [`shard`] | the root object of one core: accept, inbox, timers |
//! | 6 | [`relay`], [`admin`] | one client's life between client and server; the console |
//! | 5 | [`server`], [`client`] | a connection we dialled; a connection that dialled us |
//! | 4 | [`pool`] | who may use which server connection when: pure |
//! | 3 | [`net`], [`mesh`], [`judge`] | the ring, sockets, TLS, buffers; mail between shards; who else is asked about a client |
//! | 2 | [`auth`], [`session`] | SCRAM, md5, users; owed replies, prepared statements, parameters: pure |
//! | 1 | [`wire`], [`config`], [`stats`] | protocol codec; settings; counters and histograms |
//! | 0 | [`base`] | ids, hard limits, clock, secrets |

pub mod admin;
pub mod auth;
pub mod base;
pub mod cli;
pub mod client;
pub mod config;
pub mod judge;
pub mod mesh;
pub mod net;
pub mod pool;
pub mod process;
pub mod relay;
pub mod server;
pub mod session;
pub mod shard;
pub mod stats;
pub mod wire;
