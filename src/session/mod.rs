//! What the pooler must know about a conversation with a server: the replies it owes, prepared
//! statements, settings, cancel keys. Pure: no I/O, no clock.

mod budget;
mod cancel_key;
mod on_server;
mod packed;
mod params;
mod prepared;
mod replies;
pub mod sql;
mod told;
mod usage;

pub use budget::{Budget, TooMany};
pub use cancel_key::{CancelKey, Handle, PeerAddress, SLOTS_MAX};
pub use on_server::{
    Occurrence, Preparation, RowTypes, ServerChange, ServerStatements, StatementId, Types,
    server_name,
};
pub use packed::PackedStatements;
pub use params::{RecentSettings, ServerParams, Setting, Settings, TRACKED, is_setting_name};
pub use prepared::{
    Change, ClientChange, ClientStatements, Finding, Form, Found, Generation, Refusal, Statement,
    Statements,
};
pub use replies::{Fate, Kind, OutOfStep, Replies, Reply};
pub use told::{Telling, Told};
pub use usage::Usage;
