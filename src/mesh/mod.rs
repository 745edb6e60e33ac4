//! Mail between shards: one bounded mailbox each; senders never wait.

#[cfg(all(test, feature = "loom"))]
mod interleavings;
mod mailbox;

pub use mailbox::{Full, Mesh};
