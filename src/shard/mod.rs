//! One core and all it owns: accepting clients, leading them to the relay or the console, running
//! its part of every pool, mail from other shards, upkeep. Nothing here is global but [`Common`].

mod balance;
mod canceling;
mod doors;
mod entrance;
mod guest;
mod inbox;
mod lookup;
mod message;
mod moving;
mod obeying;
mod opening;
mod orders;
mod pools;
mod promise;
mod records;
mod replicating;
mod root;
mod shared;
mod startup;
mod unused;
mod upkeep;

pub use message::{Answer, Ask, Mail, PoolKey};
pub use root::{Listeners, Shard, run, tcp_options};
pub use shared::{Common, Phase, Request, Snapshot};
pub use unused::log_dropped;
