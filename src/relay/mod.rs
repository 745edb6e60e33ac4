//! One client's life between client and server: idle without a server, in line for one, in
//! conversation with one.

mod downstream;
mod lease;
mod outlet;
mod rehearsal;
mod run;
mod upstream;

pub use lease::{Denial, Grant, Servers, Waiter};
pub use rehearsal::Rehearsal;
pub use run::{Ending, Relay, RelaySettings};
