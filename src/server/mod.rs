//! A PostgreSQL connection that we dialled: connecting, logging in, what is known about it, and
//! cancel requests to it.

mod cancel;
mod conn;
mod connect;
mod dial;
mod entry;
mod error;
mod lookup;
mod messages;
mod reset;

pub use cancel::{CancelWay, send_cancel};
pub use conn::{Dialogue, Parcel, Server, Unnamed};
pub use connect::{ServerTls, Target};
pub use dial::{Login, Wishes, dial};
pub use entry::{ServerEntry, ServerState};
pub use error::DialError;
pub use lookup::{LookupError, UserRow, look_up};
pub use reset::{request_settings, run_query};
