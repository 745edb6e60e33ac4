//! The validated settings that the rest of the crate sees. Immutable: a reload makes a new one.

use super::dialect::Dialect;
use super::keys::{Database, General, Peer, User};
use super::value::{Field, Value};
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// The console's database, as it is shown; its pool's user has the same name.
pub const CONSOLE: &str = "pgbouncer";

/// Whether a client that asks for `database` asks for the console: no database of the configuration can have such a name.
pub fn is_console(database: &str) -> bool {
    matches!(database, CONSOLE | "ringbouncer")
}

/// The entry of `[databases]` that answers for every name without an entry of its own.
pub(super) const ANY_DATABASE: &str = "*";

/// Everything that a configuration file says, with the defaults filled in.
///
/// `Config::default()` is the table of defaults without any database or user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Settings of the whole process.
    pub general: General,
    /// Databases by the name that clients connect to.
    pub databases: BTreeMap<String, Arc<Database>>,
    /// Users by name.
    pub users: BTreeMap<String, Arc<User>>,
    /// Other poolers that cancel requests are passed on to, by their `peer_id`.
    pub peers: BTreeMap<u16, Arc<Peer>>,
    /// Whose notation the file is in.
    pub dialect: Dialect,
    /// Options of the file that have no effect: `pgbouncer.pkt_buf`.
    pub ignored: Vec<String>,
    /// What of the file holds in another way than it says, until somebody tells the operator.
    pub remarks: Vec<String>,
    /// The file this came from.
    pub path: PathBuf,
}

/// How a user is looked up on a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserLookup<'a> {
    /// Who runs the query.
    pub user: &'a str,
    /// The query.
    pub query: &'a str,
    /// The database entry to run it in; none is the one that the client asks for.
    pub database: Option<&'a str>,
}

impl Config {
    /// The database that a client asks for as `name`: its entry, or a copy of the `*` entry under
    /// this name.
    pub fn database(&self, name: &str) -> Option<Arc<Database>> {
        if let Some(database) = self.databases.get(name) {
            return Some(Arc::clone(database));
        }
        let any = self.databases.get(ANY_DATABASE)?;
        Some(Arc::new(Database {
            name: name.to_owned(),
            ..Database::clone(any)
        }))
    }

    /// How users are looked up who ask for `database`: what the database says, else `[ringbouncer]`.
    /// None unless there is an `auth_user`; without a `database` its own settings are left out.
    pub fn user_lookup<'a>(&'a self, database: Option<&'a Database>) -> Option<UserLookup<'a>> {
        let general = &self.general;
        let user = database.and_then(|own| own.auth_user.as_deref());
        let query = database.and_then(|own| own.auth_query.as_deref());
        let place = database.and_then(|own| own.auth_dbname.as_deref());
        let given = |text: &'a str| Some(text).filter(|text| !text.is_empty());
        Some(UserLookup {
            user: user.or(given(&general.auth_user))?,
            query: query.unwrap_or(&general.auth_query),
            database: place.or(given(&general.auth_dbname)),
        })
    }

    /// When servers go back to the pool of `database` and `user`: what the user says, else the
    /// database, else `[ringbouncer]`. `user` is the pool's: the forced one, if there is one.
    pub fn pool_mode(&self, database: &Database, user: &str) -> PoolMode {
        let of_user = self.users.get(user).and_then(|user| user.pool_mode);
        of_user
            .or(database.pool_mode)
            .unwrap_or(self.general.pool_mode)
    }

    /// Server connections that the pool of `database` and `user` may have; precedence as for
    /// [`Config::pool_mode`].
    pub fn pool_size(&self, database: &Database, user: &str) -> u32 {
        let of_user = self.users.get(user).and_then(|user| user.pool_size);
        of_user
            .or(database.pool_size)
            .unwrap_or(self.general.default_pool_size)
    }

    /// Cancel requests that may be on their way to peer `id`; 0 is no limit.
    pub fn peer_pool_size(&self, id: u16) -> u32 {
        let of_peer = self.peers.get(&id).and_then(|peer| peer.pool_size);
        of_peer.unwrap_or(self.general.default_pool_size)
    }

    /// Server connections that each pool of `database` keeps open.
    pub fn min_pool_size(&self, database: &Database) -> u32 {
        database.min_pool_size.unwrap_or(self.general.min_pool_size)
    }

    /// Server connections beyond its size that the pool of `database` and `user` may open in need;
    /// precedence as for [`Config::pool_mode`].
    pub fn reserve_pool_size(&self, database: &Database, user: &str) -> u32 {
        let of_user = self.users.get(user).and_then(|user| user.reserve_pool_size);
        of_user
            .or(database.reserve_pool_size)
            .unwrap_or(self.general.reserve_pool_size)
    }

    /// Server connections that all pools of `database` together may have; 0 is no limit.
    pub fn db_connections_max(&self, database: &Database) -> u32 {
        database
            .max_db_connections
            .unwrap_or(self.general.max_db_connections)
    }

    /// Client connections that `database` may have; 0 is no limit.
    pub fn db_clients_max(&self, database: &Database) -> u32 {
        database
            .max_db_client_connections
            .unwrap_or(self.general.max_db_client_connections)
    }

    /// Whether any database or user has a timeout of its own.
    pub fn has_own_timeouts(&self) -> bool {
        let of_database = |entry: &Arc<Database>| OwnTimeouts::of_database(entry).is_any();
        let of_user = |entry: &Arc<User>| OwnTimeouts::of_user(entry).is_any();
        self.databases.values().any(of_database) || self.users.values().any(of_user)
    }

    /// The timeouts of clients that have logged in as `user`, and whose database's name is `database`:
    /// what the user says, else the database, else `[ringbouncer]`. For what happens on a server, the
    /// user is the one that servers are logged in as.
    pub fn timeouts(&self, database: &str, user: &str) -> Timeouts {
        let entry = self.databases.get(database);
        let entry = entry.or_else(|| self.databases.get(ANY_DATABASE));
        let own = |user: &str| {
            let of_user = self.users.get(user);
            let of_user =
                of_user.map_or_else(OwnTimeouts::default, |user| OwnTimeouts::of_user(user));
            let of_database = entry.map_or_else(OwnTimeouts::default, |entry| {
                OwnTimeouts::of_database(entry)
            });
            of_user.or(of_database)
        };
        let (client, server) = (
            own(user),
            own(entry.map_or(user, |entry| entry.server_user(user))),
        );
        let general = Timeouts::from(&self.general);
        Timeouts {
            query_wait: client.query_wait.unwrap_or(general.query_wait),
            client_idle: client.client_idle.unwrap_or(general.client_idle),
            query: server.query.unwrap_or(general.query),
            idle_transaction: server.idle_transaction.unwrap_or(general.idle_transaction),
            transaction: server.transaction.unwrap_or(general.transaction),
        }
    }

    /// How old servers of `database` may become; 0 is one use.
    pub fn server_lifetime(&self, database: &Database) -> Duration {
        database
            .server_lifetime
            .unwrap_or(self.general.server_lifetime)
    }

    /// Client connections that `user`, who logs in, may have; 0 is no limit.
    pub fn user_clients_max(&self, user: &str) -> u32 {
        self.users
            .get(user)
            .and_then(|user| user.max_user_client_connections)
            .unwrap_or(self.general.max_user_client_connections)
    }

    /// Server connections that all pools of `user`, who is the pools' user, together may have; 0 is no
    /// limit.
    pub fn user_connections_max(&self, user: &str) -> u32 {
        self.users
            .get(user)
            .and_then(|user| user.max_user_connections)
            .unwrap_or(self.general.max_user_connections)
    }
}

/// How long clients may take for what they do; 0 is for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// `query_wait_timeout`
    pub query_wait: Duration,
    /// `query_timeout`
    pub query: Duration,
    /// `idle_transaction_timeout`
    pub idle_transaction: Duration,
    /// `transaction_timeout`
    pub transaction: Duration,
    /// `client_idle_timeout`
    pub client_idle: Duration,
}

impl From<&General> for Timeouts {
    fn from(general: &General) -> Timeouts {
        Timeouts {
            query_wait: general.query_wait_timeout,
            query: general.query_timeout,
            idle_transaction: general.idle_transaction_timeout,
            transaction: general.transaction_timeout,
            client_idle: general.client_idle_timeout,
        }
    }
}

/// The timeouts that one database or user sets.
#[derive(Clone, Copy, Default)]
struct OwnTimeouts {
    query_wait: Option<Duration>,
    query: Option<Duration>,
    idle_transaction: Option<Duration>,
    transaction: Option<Duration>,
    client_idle: Option<Duration>,
}

macro_rules! own_timeouts {
    ($($name:ident of $entry:ty;)+) => {
        $(fn $name(entry: &$entry) -> OwnTimeouts {
            OwnTimeouts {
                query_wait: entry.query_wait_timeout,
                query: entry.query_timeout,
                idle_transaction: entry.idle_transaction_timeout,
                transaction: entry.transaction_timeout,
                client_idle: entry.client_idle_timeout,
            }
        })+
    };
}

impl OwnTimeouts {
    own_timeouts! {
        of_database of Database;
        of_user of User;
    }

    fn is_any(self) -> bool {
        let mine = [self.query_wait, self.query, self.idle_transaction];
        let others = [self.transaction, self.client_idle];
        mine.iter().chain(&others).any(Option::is_some)
    }

    fn or(self, other: OwnTimeouts) -> OwnTimeouts {
        OwnTimeouts {
            query_wait: self.query_wait.or(other.query_wait),
            query: self.query.or(other.query),
            idle_transaction: self.idle_transaction.or(other.idle_transaction),
            transaction: self.transaction.or(other.transaction),
            client_idle: self.client_idle.or(other.client_idle),
        }
    }
}

impl Database {
    /// The database's name on the server.
    pub fn server_dbname(&self) -> &str {
        self.dbname.as_deref().unwrap_or(&self.name)
    }

    /// The user that server connections log in as when `client_user` is the one who logged in.
    pub fn server_user<'a>(&'a self, client_user: &'a str) -> &'a str {
        self.user.as_deref().unwrap_or(client_user)
    }

    /// The hosts, at least one.
    pub fn hosts(&self) -> impl Iterator<Item = &str> {
        self.host.split(',').map(str::trim)
    }

    /// Whether some of its hosts are reached over TCP.
    pub fn is_over_tcp(&self) -> bool {
        let mut hosts = self.hosts();
        hosts.any(|host| socket_path(host, self.port).is_none())
    }

    /// Whether server connections made for `other` serve this database as well.
    pub fn same_server(&self, other: &Database) -> bool {
        self.host == other.host
            && self.load_balance_hosts == other.load_balance_hosts
            && self.port == other.port
            && self.user == other.user
            && self.server_dbname() == other.server_dbname()
            && self.connect_query == other.connect_query
    }
}

/// The path of a server's Unix socket, if `host` is a directory.
pub fn socket_path(host: &str, port: u16) -> Option<PathBuf> {
    let is_directory = host.starts_with(['/', '@']);
    is_directory.then(|| PathBuf::from(format!("{host}/.s.PGSQL.{port}")))
}

macro_rules! words {
    ($(#[$about:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$doc])* $variant),+ }

        impl $name {
            /// The words of the file, in the order of the variants.
            pub const WORDS: &[&str] = &[$($word),+];

            /// The word for it in the file.
            pub const fn as_str(self) -> &'static str {
                match self { $($name::$variant => $word),+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl Field for $name {
            fn from_value(value: Value) -> Option<Self> {
                match String::from_value(value)?.as_str() {
                    $($word => Some($name::$variant),)+
                    _ => None,
                }
            }

            fn to_value(&self) -> Value {
                Value::Text(self.as_str().to_owned())
            }
        }
    };
}

words! {
    /// Which host of a list a new server connection goes to.
    LoadBalanceHosts {
        /// The next one.
        RoundRobin = "round-robin",
        /// The same one, until it fails.
        Disable = "disable",
    }
}

words! {
    /// When a server connection goes back to its pool.
    PoolMode {
        /// After each transaction.
        Transaction = "transaction",
        /// When the client disconnects.
        Session = "session",
        /// After each statement; transactions of several statements are refused.
        Statement = "statement",
    }
}

words! {
    /// How clients prove who they are.
    AuthType {
        /// Not at all, and whoever they say they are.
        Any = "any",
        /// Not at all; but the user must exist.
        Trust = "trust",
        /// With the password in clear text.
        Plain = "plain",
        /// With an MD5 hash, or SCRAM where the secret is a SCRAM one.
        Md5 = "md5",
        /// With SCRAM (RFC 5802, RFC 7677).
        ScramSha256 = "scram-sha-256",
        /// With a certificate that has their name.
        Cert = "cert",
        /// With the password in clear text, judged by an LDAP server.
        Ldap = "ldap",
        /// With the password in clear text, judged by PAM.
        Pam = "pam",
        /// As the rules of `auth_hba_file` say.
        Hba = "hba",
    }
}

words! {
    /// Whether a connection is encrypted, and what the other side has to prove; in the order of
    /// strictness.
    SslMode {
        /// Never encrypted.
        Disable = "disable",
        /// Encrypted if the other side insists.
        Allow = "allow",
        /// Encrypted if the other side can.
        Prefer = "prefer",
        /// Always encrypted.
        Require = "require",
        /// And the other side has a certificate of the CA.
        VerifyCa = "verify-ca",
        /// And, of a server, one with the host's name.
        VerifyFull = "verify-full",
    }
}

words! {
    /// What syslog files our lines under (syslog(3)).
    SyslogFacility {
        /// Security messages.
        Auth = "auth",
        /// Private security messages.
        Authpriv = "authpriv",
        /// System daemons.
        Daemon = "daemon",
        /// User processes.
        User = "user",
        /// Free for local use, as those that follow.
        Local0 = "local0",
        /// See `Local0`.
        Local1 = "local1",
        /// See `Local0`.
        Local2 = "local2",
        /// See `Local0`.
        Local3 = "local3",
        /// See `Local0`.
        Local4 = "local4",
        /// See `Local0`.
        Local5 = "local5",
        /// See `Local0`.
        Local6 = "local6",
        /// See `Local0`.
        Local7 = "local7",
    }
}

impl SyslogFacility {
    /// Its number (RFC 3164, section 4.1.1).
    pub const fn code(self) -> u8 {
        match self {
            SyslogFacility::User => 1,
            SyslogFacility::Daemon => 3,
            SyslogFacility::Auth => 4,
            SyslogFacility::Authpriv => 10,
            SyslogFacility::Local0 => 16,
            SyslogFacility::Local1 => 17,
            SyslogFacility::Local2 => 18,
            SyslogFacility::Local3 => 19,
            SyslogFacility::Local4 => 20,
            SyslogFacility::Local5 => 21,
            SyslogFacility::Local6 => 22,
            SyslogFacility::Local7 => 23,
        }
    }
}

words! {
    /// How much is logged: this level and those before it.
    LogLevel {
        /// Something failed that should not.
        Error = "error",
        /// Something an operator should look at.
        Warn = "warn",
        /// What the pooler does.
        Info = "info",
        /// Details for those who look for a fault.
        Debug = "debug",
        /// Everything.
        Trace = "trace",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn config(text: &str) -> Config {
        let trusting = format!("ringbouncer.auth_type = \"trust\"\n{text}");
        Config::parse(&trusting, Path::new("r.toml")).expect("valid")
    }

    #[test]
    fn star_entry_answers_for_other_names_only() {
        let config = config("[databases.shop]\nport = 1\n[databases.\"*\"]\nport = 2");
        assert_eq!(config.database("shop").map(|found| found.port), Some(1));
        let other = config.database("other").expect("falls back");
        assert_eq!(
            (other.name.as_str(), other.server_dbname(), other.port),
            ("other", "other", 2)
        );
    }

    #[test]
    fn star_entry_with_a_dbname_sends_every_name_there() {
        let config = config("[databases.\"*\"]\ndbname = \"one\"");
        let other = config.database("other").expect("falls back");
        assert_eq!(
            (other.name.as_str(), other.server_dbname()),
            ("other", "one")
        );
    }

    #[test]
    fn unknown_database_is_none_without_a_star_entry() {
        assert_eq!(config("[databases.shop]").database("other"), None);
    }

    #[test]
    fn user_beats_database_beats_default() {
        let config = config(
            "[databases.plain]\n[databases.tuned]\npool_size = 5\npool_mode = \"session\"\n\
             [users.alice]\npool_size = 7\npool_mode = \"statement\"\n[users.bob]",
        );
        let seen = |database: &str, user: &str| {
            let database = config.database(database).expect("configured");
            (
                config.pool_size(&database, user),
                config.pool_mode(&database, user),
            )
        };
        assert_eq!(seen("plain", "bob"), (20, PoolMode::Transaction));
        assert_eq!(seen("tuned", "bob"), (5, PoolMode::Session));
        assert_eq!(seen("tuned", "nobody"), (5, PoolMode::Session));
        assert_eq!(seen("tuned", "alice"), (7, PoolMode::Statement));
    }

    #[test]
    fn timeout_of_the_user_beats_that_of_the_database() {
        let config = config(
            "ringbouncer.query_timeout = 1\n\
             [databases.plain]\n\
             [databases.tuned]\nquery_timeout = 2\nclient_idle_timeout = 20\n\
             [databases.forced]\nuser = \"alice\"\n\
             [users.alice]\nquery_timeout = 3\nclient_idle_timeout = 30\n[users.bob]",
        );
        let seen = |database, user| {
            let timeouts = config.timeouts(database, user);
            (timeouts.query.as_secs(), timeouts.client_idle.as_secs())
        };
        assert!(config.has_own_timeouts());
        assert_eq!(seen("plain", "bob"), (1, 0));
        assert_eq!(seen("tuned", "bob"), (2, 20));
        assert_eq!(seen("tuned", "alice"), (3, 30));
        // On the server it is alice; the client is bob.
        assert_eq!(seen("forced", "bob"), (3, 0));
    }

    #[test]
    fn only_a_directory_has_a_socket_path() {
        let path = |path: &str| Some(PathBuf::from(path));
        assert_eq!(socket_path("/run/pg", 5433), path("/run/pg/.s.PGSQL.5433"));
        assert_eq!(socket_path("@pg", 1), path("@pg/.s.PGSQL.1"));
        assert_eq!(socket_path("127.0.0.1", 5432), None);
    }

    #[test]
    fn list_of_hosts_is_taken_apart() {
        let config = config("[databases.a]\nhost = \"one, ::1,/run/pg\"");
        let database = config.database("a").expect("configured");
        assert_eq!(
            database.hosts().collect::<Vec<_>>(),
            ["one", "::1", "/run/pg"]
        );
    }
}
