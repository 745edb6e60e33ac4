//! What everything stands on: id newtypes, the hard bounds of the process, the clock, secrets.

mod clock;
mod id;
pub mod limit;
mod secret;

pub use clock::{Clock, Moment};
pub use id::{ClientId, ServerId, ShardId};
pub use secret::Secret;
