//! One client's life between client and server: idle without a server, in line for one, in
//! conversation with one.

mod downstream;
mod kept;
mod lease;
mod outlet;
mod parcel;
mod portal;
mod preparing;
mod rehearsal;
mod run;
mod spoken;
mod stores;
mod suspend;
mod upstream;

pub use lease::{Denial, Grant, Servers, Terms, Waiter};
pub use parcel::RelayParcel;
pub use rehearsal::Rehearsal;
pub use run::{Ending, Relay, RelaySettings};
pub use stores::Stores;
