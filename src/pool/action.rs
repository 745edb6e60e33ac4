//! What the scheduler tells its shard to do, and what it answers. Owns nothing.

use super::waiter::WaiterId;
use crate::base::{Moment, ShardId};

/// What the shard must do for the pool.
#[must_use = "an action that is not performed loses a server or a turn"]
#[derive(Debug, PartialEq, Eq)]
pub enum Action<S, W> {
    /// Lease `server` to `waiter`. If the waiter has gone: [`LocalPool::release`](super::LocalPool::release).
    Grant {
        /// The token given to [`LocalPool::acquire`](super::LocalPool::acquire).
        waiter: W,
        /// The server, from now on the waiter's alone.
        server: S,
    },
    /// Check that the server still answers, if it has been idle for long: [`LocalPool::checked`](super::LocalPool::checked),
    /// or [`LocalPool::check_failed`](super::LocalPool::check_failed), after which it closes.
    Check(S),
    /// Connect to PostgreSQL and log in; the permit is held. Ends in [`LocalPool::opened`](super::LocalPool::opened) or
    /// [`LocalPool::open_failed`](super::LocalPool::open_failed), always.
    Open,
    /// Close the server, for this reason. Ends in [`LocalPool::closed`](super::LocalPool::closed), always.
    Close(S, Closing),
    /// Move the server to shard `to`, which runs [`LocalPool::arrived`](super::LocalPool::arrived). If its mailbox is full:
    /// [`LocalPool::send_failed`](super::LocalPool::send_failed).
    Send {
        /// The receiver.
        to: ShardId,
        /// The server.
        server: S,
        /// How often it has travelled without serving anybody, this time included.
        hops: u8,
    },
    /// Tell the shard that we would like an idle server: [`LocalPool::asked`](super::LocalPool::asked). May be lost.
    Ask(ShardId),
    /// Tell the shard that asked that there is none: [`LocalPool::declined`](super::LocalPool::declined). May be lost.
    Decline(ShardId),
    /// A limit that spans pools is all that keeps a waiter from a new server: close the longest idle
    /// server of another pool under that limit ([`LocalPool::evict`](super::LocalPool::evict) there). May
    /// be lost.
    Evict,
    /// Tell the shard that a permit is free: [`LocalPool::poke`](super::LocalPool::poke). May be lost.
    Wake(ShardId),
}

/// Why the scheduler wants a server closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closing {
    /// The pool is paused.
    Paused,
    /// The pool has more than its limit.
    Surplus,
    /// Whoever called [`LocalPool::expire_idle`](super::LocalPool::expire_idle) said so, for this reason.
    Expired(&'static str),
}

/// What became of an [`LocalPool::acquire`](super::LocalPool::acquire).
#[derive(Debug, PartialEq, Eq)]
pub enum Acquired<S> {
    /// An idle server was at hand; it is leased, and the waiter's token was dropped.
    Granted(S),
    /// The client is in line; an [`Action::Grant`] will name its token.
    Waits(WaiterId),
}

/// A server that nobody uses.
#[derive(Debug)]
pub struct Idle<S> {
    /// The server.
    pub server: S,
    /// When it went idle on this shard.
    pub since: Moment,
}
