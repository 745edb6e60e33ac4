//! Mail between shards: one bounded mailbox each; senders never wait.

mod mailbox;

pub use mailbox::{Full, Mesh};
