//! The messages between shards, and from the control thread. None waits for room; what a full
//! mailbox means stands at each.

use super::moving::Traveller;
use super::shared::{Phase, Snapshot};
use crate::admin::{ClientRow, Pick, ServerRow, StatementRow};
use crate::base::{Moment, ShardId};
use crate::client::{Farewell, Greeted};
use crate::net::Detached;
use crate::server::Parcel;
use std::sync::Arc;

/// Which pool: the database that clients ask for and the user that servers are logged in as.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PoolKey {
    /// Name of the database entry.
    pub database: Arc<str>,
    /// User of the server connections.
    pub user: Arc<str>,
}

/// One message to a shard.
pub enum Mail {
    /// An idle server connection, handed over. Full: the sender keeps it.
    Server {
        /// The connection.
        parcel: Box<Parcel>,
        /// Who sent it.
        from: ShardId,
        /// How often it has travelled without serving anybody.
        hops: u8,
    },
    /// Somebody asks for an idle server. Full: lost; the pool's tick asks again.
    WantServer {
        /// Of which pool.
        pool: PoolKey,
        /// Who asks.
        from: ShardId,
    },
    /// The answer that there is none. Full: lost; the question expires.
    NoServer {
        /// Of which pool.
        pool: PoolKey,
        /// Who answers.
        from: ShardId,
    },
    /// A permit is free. Full: lost; the pool's tick finds it.
    Wake {
        /// Of which pool.
        pool: PoolKey,
    },
    /// Another pool needs the place of the longest idle server. Full: lost; it asks again.
    Evict {
        /// The pool that has it.
        pool: PoolKey,
        /// Void when it is heard of later: then another shard may have been asked.
        due: Moment,
        /// What is logged of it.
        why: &'static str,
    },
    /// A server refused the login: everybody who waits in the pool is told. Full: lost; they wait on.
    LoginRefused {
        /// Of which pool.
        pool: PoolKey,
        /// What they are told.
        farewell: Farewell,
    },
    /// An accepted client socket. Full: the sender serves it itself.
    Client(Detached),
    /// A client that has said which pool it wants, on its way to one of that pool's home shards. Full:
    /// the sender serves it itself.
    Greeted(Box<Greeted>),
    /// A logged-in client between two requests. Full: the sender goes on serving it.
    Traveller(Box<Traveller>),
    /// To the origin of a client (see `moving.rs`): it is at that shard now. Full: posted again.
    Resides {
        /// Its cancel key.
        key: Box<[u8]>,
        /// Where it is.
        at: ShardId,
        /// How often it had moved when it came there.
        moves: u32,
    },
    /// To the origin of a client: it has left for good. Full: posted again.
    Left {
        /// Its cancel key.
        key: Box<[u8]>,
    },
    /// A question to which every shard has an answer. Full: the asker tries again, until its deadline.
    Question {
        /// What is asked.
        ask: Ask,
        /// Who asks.
        from: ShardId,
        /// To find the asker again.
        ticket: u64,
    },
    /// The answer to a [`Mail::Question`]. Full: the sender tries again for a while.
    Answer {
        /// Of the question.
        ticket: u64,
        /// What it is.
        answer: Answer,
    },
    /// There are newer orders ([`Board`](super::orders::Board)). Full: the upkeep finds them.
    Orders,
    /// From the control thread: a new configuration. Full: the control thread tries again.
    Reload {
        /// What it is.
        snapshot: Arc<Snapshot>,
        /// To be noted once it is in force.
        version: u64,
    },
    /// From the resolver: addresses of host names have changed. Full: the resolver tries again.
    Addresses,
    /// From the control thread: what clients may still do. Full: the control thread tries again.
    Phase(Phase),
}

/// What a shard can be asked.
#[derive(Clone, Debug)]
pub enum Ask {
    /// Its clients, or some of them.
    Clients(Pick<ClientRow>),
    /// Its servers, or some of them.
    Servers(Pick<ServerRow>),
    /// The statements that its clients have prepared.
    Statements,
    /// To cancel what the client with this key is doing, wherever it went.
    Cancel(Box<[u8]>),
    /// The same if the client is there.
    CancelStray(Box<[u8]>),
    /// How many killed clients are still there.
    Killed,
    /// How many clients are not suspended yet; with `true` they are told to leave.
    Unsuspended(bool),
    /// How many servers of a database, or of any, are to be closed.
    ToBeClosed(Option<Arc<str>>),
    /// To make the client with this id leave; how many there were.
    KillClient(u64),
}

/// What it answers.
#[derive(Debug)]
pub enum Answer {
    /// Its clients.
    Clients(Vec<ClientRow>),
    /// Its servers.
    Servers(Vec<ServerRow>),
    /// Its clients' statements.
    Statements(Vec<StatementRow>),
    /// How many.
    Count(usize),
    /// Done.
    Done,
    /// Whether the client was there.
    Found(bool),
}
