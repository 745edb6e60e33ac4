//! What the pooler must know about a conversation with a server: the replies it owes, prepared
//! statements, settings, cancel keys. Pure: no I/O, no clock.

mod cancel_key;
mod packed;
mod params;
mod prepared;
mod replies;
pub mod sql;
mod usage;

pub use cancel_key::{CancelKey, Handle, PeerAddress, SLOTS_MAX};
pub use packed::PackedStatements;
pub use params::{RecentSettings, ServerParams, Setting, Settings, TRACKED, is_setting_name};
pub use prepared::{
    Budget, Change, ClientChange, ClientStatements, Form, Generation, Preparation, Refusal,
    ServerChange, ServerStatements, Statement, StatementId, Statements, TooMany, server_name,
};
pub use replies::{Fate, Kind, OutOfStep, Replies, Reply};
pub use usage::Usage;
