//! What the pooler must know about a conversation with a server: the replies it owes, prepared
//! statements, settings, cancel keys. Pure: no I/O, no clock.

mod cancel_key;
mod params;
mod prepared;
mod replies;

pub use cancel_key::{CancelKey, SLOTS_MAX};
pub use params::{RecentSettings, ServerParams, Setting, Settings, TRACKED, is_setting_name};
pub use prepared::{
    Change, ClientChange, ClientStatements, NameInUse, PackedStatements, Preparation, ServerChange,
    ServerStatements, Statement, StatementId, Statements, server_name,
};
pub use replies::{Fate, Kind, OutOfStep, Replies, Reply};
