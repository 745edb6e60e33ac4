//! The console: the database `ringbouncer`, also reachable as `pgbouncer`, whose SQL is SHOW and a
//! few commands. Spoken over simple and extended queries. Its tables are also metrics (`metrics`).
//!
//! Pure and tested as such: the grammar (`command`), tables and their encoding (`table`), the rows of
//! each SHOW (`show`), the state of an extended query (`extended`), gathering of messages
//! (`messages`). Only `serve` and `outlet` touch a socket.

mod command;
mod error;
mod extended;
mod filter;
mod messages;
mod metrics;
mod office;
mod outlet;
mod parameters;
#[cfg(test)]
mod rehearsal;
mod serve;
mod show;
mod table;

pub use command::{Command, Show, Variable};
pub use error::Refusal;
pub use filter::{Filter, Pick};
pub use metrics::exposition;
pub use office::{
    Access, ClientCounts, ClientRow, DatabaseFlags, FailureRow, Hold, Later, Office, Order,
    PeerLoad, PoolRow, Records, ServerRow, SetOutcome, Shutdown, StatementRow, UserRow,
};
pub use serve::{Parting, Session, serve};
pub use show::balance;
pub use table::{Column, Type};
