//! What the console needs to know and to do: [`Records`] of the whole process, which metrics are made of as well, and the
//! [`Office`] that the shard of a console session provides.

use super::error::Refusal;
use super::filter::Pick;
use crate::auth::AddressFailures;
use crate::base::{Moment, ShardId};
use crate::client::ClientState;
use crate::config::{Config, PoolMode};
use crate::net::{CertificateFile, Endpoint, TlsLabel};
use crate::server::ServerState;
use crate::stats::{PeriodHistory, Registry};
use crate::wire::Replication;
use std::collections::HashMap;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

/// An answer that takes its time.
pub type Later<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// What a console user may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everything (`admin_users`).
    Admin,
    /// Every SHOW (`stats_users`).
    Stats,
}

/// What holds for the whole process, or for a database, until it is taken back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Give out no servers, to clients of one database or of any.
    Pause(Option<Arc<str>>),
    /// Read nothing from anybody.
    Suspend,
    /// End a pause, or a suspension.
    Resume(Option<Arc<str>>),
    /// Pause, with clients and servers closed at once.
    Kill(Option<Arc<str>>),
    /// Close the servers there are as soon as nobody uses them.
    Reconnect(Option<Arc<str>>),
    /// Let nobody in.
    Disable(Arc<str>),
    /// Let clients in again.
    Enable(Arc<str>),
}

impl Order {
    /// The command, and the tag of its answer.
    pub const fn verb(&self) -> &'static str {
        match self {
            Order::Pause(_) => "PAUSE",
            Order::Suspend => "SUSPEND",
            Order::Resume(_) => "RESUME",
            Order::Kill(_) => "KILL",
            Order::Reconnect(_) => "RECONNECT",
            Order::Disable(_) => "DISABLE",
            Order::Enable(_) => "ENABLE",
        }
    }

    /// The database it is for, if it is not for all.
    pub fn database(&self) -> Option<&str> {
        match self {
            Order::Pause(scope)
            | Order::Resume(scope)
            | Order::Kill(scope)
            | Order::Reconnect(scope) => scope.as_deref(),
            Order::Disable(name) | Order::Enable(name) => Some(name),
            Order::Suspend => None,
        }
    }
}

/// What holds for the whole process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hold {
    /// Nothing: business as usual.
    #[default]
    None,
    /// No client gets a server.
    Paused,
    /// Nothing is read and nobody let in.
    Suspended,
}

/// What has been ordered for one database alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DatabaseFlags {
    /// PAUSE or KILL.
    pub is_paused: bool,
    /// DISABLE.
    pub is_disabled: bool,
}

/// How to shut down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// At once.
    Now,
    /// When the last client has left.
    WaitForClients,
    /// When the last transaction is over.
    WaitForServers,
}

/// What became of a SET.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetOutcome {
    /// It holds.
    Set,
    /// It is noted, but what the TLS settings come to now cannot be, so that the old ones stay in force.
    TlsKept,
    /// There is no such setting, or it cannot have such a value.
    Failed,
}

/// One client, for SHOW CLIENTS.
#[derive(Clone, Debug)]
pub struct ClientRow {
    /// Its shard.
    pub shard: ShardId,
    /// Its id.
    pub id: u64,
    /// Its user; empty while it logs in.
    pub user: Arc<str>,
    /// The database it asked for; empty while it logs in.
    pub database: Arc<str>,
    /// The replication it is there for.
    pub replication: Replication,
    /// What it does.
    pub state: ClientState,
    /// Where it is.
    pub remote: Endpoint,
    /// Our end.
    pub local: Endpoint,
    /// When it connected, in microseconds since the Unix epoch.
    pub connected_unix_us: u64,
    /// When its last request began, likewise.
    pub requested_unix_us: u64,
    /// How long it has been waiting for a server, in microseconds; 0 if it is not.
    pub wait_us: u64,
    /// The server it is linked to.
    pub link: Option<u64>,
    /// How it is encrypted, if it is.
    pub tls: Option<TlsLabel>,
    /// What it calls itself.
    pub application_name: Arc<str>,
    /// Prepared statements it has.
    pub prepared_statements: usize,
}

/// One server connection, for SHOW SERVERS.
#[derive(Clone, Debug)]
pub struct ServerRow {
    /// Its shard.
    pub shard: ShardId,
    /// Its id.
    pub id: u64,
    /// User of its pool.
    pub user: Arc<str>,
    /// Database entry of its pool.
    pub database: Arc<str>,
    /// The replication it is there for.
    pub replication: Replication,
    /// What it does.
    pub state: ServerState,
    /// Where the server is.
    pub remote: Endpoint,
    /// Our end.
    pub local: Endpoint,
    /// When it was opened, in microseconds since the Unix epoch.
    pub connected_unix_us: u64,
    /// When it was last linked, likewise.
    pub requested_unix_us: u64,
    /// Whether it will be closed once it is free.
    pub close_needed: bool,
    /// The client it is linked to.
    pub link: Option<u64>,
    /// The server's process id.
    pub remote_pid: u32,
    /// How it is encrypted, if it is.
    pub tls: Option<TlsLabel>,
    /// What it calls its session.
    pub application_name: Arc<str>,
    /// Statements prepared on it.
    pub prepared_statements: usize,
}

/// One pool, for SHOW POOLS and SHOW DATABASES; its numbers are in the registry.
#[derive(Clone, Debug)]
pub struct PoolRow {
    /// Database entry.
    pub database: Arc<str>,
    /// User of the server connections.
    pub user: Arc<str>,
    /// When servers go back.
    pub mode: PoolMode,
    /// Server connections open, over all shards.
    pub open: u32,
    /// The most there may be.
    pub limit: u32,
    /// How its list of hosts is used, if it has one.
    pub balance: Option<&'static str>,
}

/// One user who may log in, for SHOW USERS.
#[derive(Clone, Debug)]
pub struct UserRow {
    /// The name.
    pub name: String,
    /// Server connections of pools of this user.
    pub current_connections: u32,
}

/// One prepared statement, for SHOW PREPARED_STATEMENTS.
#[derive(Clone, Debug)]
pub struct StatementRow {
    /// Its name on servers.
    pub name: String,
    /// Its text, or the beginning of it.
    pub text: String,
    /// Memory that it takes, on all shards.
    pub bytes: u64,
    /// Names that clients have for it.
    pub names: usize,
    /// Times that a server had it when it was wanted.
    pub hits: u64,
    /// Times that it had to be prepared.
    pub misses: u64,
    /// Times that a server gave it up for another.
    pub evictions: u64,
}

/// Clients that have logged in and where; those of the console are in the first alone.
#[derive(Clone, Debug, Default)]
pub struct ClientCounts {
    /// By database.
    pub by_database: HashMap<Arc<str>, u32>,
    /// By the user they logged in as.
    pub by_user: HashMap<Arc<str>, u32>,
}

/// Cancel requests for another pooler, for SHOW PEER_POOLS.
#[derive(Clone, Copy, Debug, Default)]
pub struct PeerLoad {
    /// On their way to it.
    pub active: u32,
    /// In line for that.
    pub waiting: u32,
}

/// One address whose logins failed, for SHOW LOGIN_FAILURES.
#[derive(Clone, Debug)]
pub struct FailureRow {
    /// The address, or the network of 64 bits.
    pub address: IpAddr,
    /// What is known of it.
    pub failures: AddressFailures,
    /// Whether it is refused at the moment.
    pub is_blocked: bool,
}

/// What is known without asking a shard: shared counters, and what the process has in force.
pub trait Records {
    /// How many clients there are, as far as that is counted; those on their way in are not.
    fn client_counts(&self) -> ClientCounts;
    /// Cancel requests under way to a peer.
    fn peer_load(&self, id: u16) -> PeerLoad;
    /// Every pool that exists.
    fn pools(&self) -> Vec<PoolRow>;
    /// Every user that is known.
    fn users(&self) -> Vec<UserRow>;
    /// Every address with failed logins, the latest first, as things stand at `now`.
    fn login_failures(&self, now: Moment) -> Vec<FailureRow>;
    /// The settings in force.
    fn config(&self) -> Arc<Config>;
    /// The certificates in force.
    fn certificates(&self) -> Vec<CertificateFile>;
    /// All counters.
    fn registry(&self) -> &Registry;
    /// Readings of the counters at period boundaries.
    fn history(&self) -> &Mutex<PeriodHistory>;
    /// Messages that wait in the mailbox of `shard`.
    fn mailbox_depth(&self, shard: ShardId) -> usize;
    /// What has been ordered for a database.
    fn flags(&self, database: &str) -> DatabaseFlags;
    /// What has been ordered for the whole process.
    fn hold(&self) -> Hold;
    /// Host names of the configuration, and their addresses.
    fn hosts(&self) -> Vec<(String, Vec<IpAddr>)>;
}

/// What a console session can ask for.
pub trait Office {
    /// What needs no shard.
    fn records(&self) -> &dyn Records;
    /// The shard that the session runs on.
    fn shard(&self) -> ShardId;
    /// The clients of the process that are wanted, gathered without stopping a shard; shards that do not answer in time are left out.
    fn clients(&self, wanted: Pick<ClientRow>) -> Later<'_, Vec<ClientRow>>;
    /// The same for server connections.
    fn servers(&self, wanted: Pick<ServerRow>) -> Later<'_, Vec<ServerRow>>;
    /// The statements that clients have prepared, gathered likewise.
    fn statements(&self) -> Later<'_, Vec<StatementRow>>;
    /// Gives an order and waits until it has been carried out everywhere.
    fn order<'a>(&'a self, order: &'a Order) -> Later<'a, Result<(), Refusal>>;
    /// Waits until no server of a database, or of any, is to be closed any more.
    fn wait_close<'a>(&'a self, database: Option<&'a str>) -> Later<'a, Result<(), Refusal>>;
    /// Makes a client leave, and waits until it has.
    fn kill_client(&self, id: u64) -> Later<'_, Result<(), Refusal>>;
    /// Changes a setting on every shard until the next reload; what came of it.
    fn set<'a>(&'a self, name: &'a str, value: &'a str) -> Later<'a, SetOutcome>;
    /// Reads the configuration again; the error is for the log and says what was wrong.
    fn reload(&self) -> Later<'_, Result<(), String>>;
    /// Takes note of what the session has been refused.
    fn hear(&self, refusal: &Refusal);
    /// Shuts the process down.
    fn shutdown(&self, how: Shutdown);
}
