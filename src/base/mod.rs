//! What everything stands on: id newtypes, the hard bounds of the process, the clock, secrets, the
//! atomics that shards share.

mod clock;
#[cfg(all(test, feature = "loom"))]
mod explored;
mod id;
pub mod limit;
pub mod memory;
mod secret;
pub mod sync;

pub use clock::{Clock, Moment, Since};
pub use id::{ClientId, ServerId, ShardId};
pub use secret::Secret;
