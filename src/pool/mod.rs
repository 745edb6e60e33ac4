//! Who may use which server connection when. Every shard has one [`LocalPool`] per pool (database
//! and user), which it alone mutates; the local pools of all shards share one [`SharedPool`] of
//! atomics. Together they behave as one pool: its size is exact, and how much later than a
//! waiter elsewhere a waiter may be served has a bound.
//!
//! Pure: no I/O, no clock, no randomness. The shard feeds events in and performs the
//! [`Action`]s that come out; `S` is its server connection, `W` its token for a waiting client.

mod action;
mod ask;
mod backoff;
#[cfg(all(test, feature = "loom"))]
mod interleavings;
mod local;
mod outlook;
mod permit;
mod shard_set;
mod shared;
mod waiter;

pub use action::{Acquired, Action, Closing, Idle};
pub use backoff::pause_after;
pub use local::{HOPS_MAX, LocalPool, UNFAIR_SHARE, UNFAIR_SPAN};
pub use outlook::Outlook;
pub use permit::{PERMITS_MAX, Permit, Permits};
pub use shared::{OPENINGS_MAX, SharedPool};
pub use waiter::WaiterId;
