//! The one table of settings: a row per key with its kind, default, what a reload does with it, and
//! its meaning. The structs of the model have exactly these rows as fields.
//!
//! A row reads `name: type = kind, default, reload, "meaning";`. A default is written as in the file;
//! [`Preset::Unset`] stands for keys that have none.

use super::kind::{Bare, Kind};
use super::model::{AuthType, LoadBalanceHosts, LogLevel, PoolMode, SslMode, SyslogFacility};
use super::tls::{parse_ciphers, parse_curves, parse_protocols, parse_tls13_ciphers};
use super::value::{Field, Value};
use crate::base::{Secret, limit};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use toml::de::DeValue;

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Where the key stands in the file.
    pub section: Section,
    /// Heading of the group of keys it belongs to.
    pub group: &'static str,
    /// The name: PgBouncer's, where PgBouncer has the setting.
    pub name: &'static str,
    /// What it accepts, with unit and bounds.
    pub kind: Kind,
    /// What holds while the file does not say.
    pub preset: Preset,
    /// What RELOAD does with a new value.
    pub reload: Reload,
    /// The meaning.
    pub doc: &'static str,
}

/// A table of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// `[ringbouncer]`: the whole process.
    General,
    /// `[databases.NAME]`.
    Database,
    /// `[users.NAME]`.
    User,
    /// `[peers.ID]`.
    Peer,
}

impl Section {
    /// The name of the table at the top of the file.
    pub const fn name(self) -> &'static str {
        match self {
            Section::General => "ringbouncer",
            Section::Database => "databases",
            Section::User => "users",
            Section::Peer => "peers",
        }
    }
}

/// The value of a key that the file does not set.
#[derive(Clone, Copy, Debug)]
pub enum Preset {
    /// This value, in the notation of the file.
    Toml(&'static str),
    /// None.
    Unset {
        /// What holds instead, in words.
        means: &'static str,
        /// A value to show, in the notation of the file.
        example: &'static str,
    },
}

/// What becomes of a new value when the file is read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reload {
    /// It holds at once.
    Live,
    /// It holds for connections made from then on.
    NewConnections,
    /// It waits for the next start of the process.
    Restart,
}

impl Reload {
    /// A sentence for people.
    pub const fn describe(self) -> &'static str {
        match self {
            Reload::Live => "applies at once",
            Reload::NewConnections => "applies to new connections",
            Reload::Restart => "needs a restart",
        }
    }
}

impl Key {
    /// Whether the value must never be printed.
    pub const fn is_secret(&self) -> bool {
        matches!(self.kind, Kind::Secret)
    }

    /// The value that holds while the file does not say.
    pub(super) fn preset_value(&self) -> Value {
        let Preset::Toml(written) = self.preset else {
            return Value::Unset;
        };
        self.value_of(written)
    }

    /// The value that a default is the notation of.
    pub(super) fn value_of(&self, written: &str) -> Value {
        let value = DeValue::parse(written).expect("a default is valid TOML");
        let checked = self.kind.check(value.get_ref(), Path::new(""));
        checked.expect("a default is allowed by its kind")
    }
}

/// Every key: those of `[ringbouncer]`, of a database, of a user, of a peer, each in the order of the file.
pub fn keys() -> impl Iterator<Item = &'static Key> {
    let named = DATABASE_KEYS.iter().chain(USER_KEYS).chain(PEER_KEYS);
    GENERAL_KEYS.iter().chain(named)
}

/// The checked values of one table of the file, by name of key.
pub(super) type Values = BTreeMap<&'static str, Value>;

macro_rules! settings {
    (
        $(#[$about:meta])*
        $struct:ident ($($(#[$extra_about:meta])* $extra:ident: $extra_type:ty)?),
        $table:ident of $section:ident:
        $($group:literal {
            $($name:ident: $type:ty = $kind:expr, $preset:expr, $reload:ident, $doc:literal;)+
        })+
    ) => {
        $(#[$about])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $struct {
            $($(#[$extra_about])* pub $extra: $extra_type,)?
            $($(#[doc = $doc] pub $name: $type,)+)+
        }

        pub(super) const $table: &[Key] = &[$($(Key {
            section: Section::$section,
            group: $group,
            name: stringify!($name),
            kind: $kind,
            preset: $preset,
            reload: Reload::$reload,
            doc: $doc,
        },)+)+];

        impl $struct {
            /// Gives every value its type; the error is the key whose type cannot hold its value.
            pub(super) fn from_values(
                $($extra: $extra_type,)?
                values: &mut Values,
            ) -> Result<$struct, &'static str> {
                Ok($struct { $($extra,)? $($($name: taken(values, stringify!($name))?,)+)+ })
            }

            /// The values in the order of the table.
            pub(super) fn values(&self) -> Vec<(&'static Key, Value)> {
                let values = vec![$($(self.$name.to_value(),)+)+];
                $table.iter().zip(values).collect()
            }
        }
    };
}

fn taken<T: Field>(values: &mut Values, name: &'static str) -> Result<T, &'static str> {
    let value = values.remove(name).unwrap_or(Value::Unset);
    T::from_value(value).ok_or(name)
}

const fn default(written: &'static str) -> Preset {
    Preset::Toml(written)
}

const fn unset(means: &'static str, example: &'static str) -> Preset {
    Preset::Unset { means, example }
}

const fn int(min: u64, max: u64) -> Kind {
    Kind::Int { min, max }
}

/// Ten years: longer than any process lives, far from any overflow of the clock.
const SPAN_MAX: Duration = Duration::from_secs(3650 * 86_400);

/// A span of time from 0; in PgBouncer's keys a bare number counts seconds.
const SPAN: Kind = Kind::Duration {
    min: Duration::ZERO,
    max: SPAN_MAX,
    bare: Bare::Seconds,
};

/// A span of time that must not be 0.
const SPAN_NOT_ZERO: Kind = Kind::Duration {
    min: Duration::from_millis(1),
    max: SPAN_MAX,
    bare: Bare::Seconds,
};

/// What Linux takes for TCP_KEEPIDLE and TCP_KEEPINTVL: at most 32767 s (tcp(7)).
const KEEPALIVE_SPAN: Kind = Kind::Duration {
    min: Duration::ZERO,
    max: Duration::from_secs(32_767),
    bare: Bare::Seconds,
};

const DATABASE_NAME: Kind = Kind::Name {
    bytes_max: limit::DATABASE_NAME_BYTES_MAX,
};
const USER_NAME: Kind = Kind::Name {
    bytes_max: limit::USER_NAME_BYTES_MAX,
};

/// Longest statement that the file can ask for, in bytes.
const STATEMENT_BYTES_MAX: usize = 8192;

/// The value of a start-up parameter of server connections.
const STARTUP_VALUE: Kind = Kind::Text { bytes_max: 255 };

/// Longest name of an environment variable, in bytes.
const VARIABLE_BYTES_MAX: usize = 255;

const TLS_PROTOCOLS: Kind = Kind::Parsed {
    allowed: "secure, default or all (each is TLS 1.2 and 1.3), or a list of tlsv1.2 and tlsv1.3; ! takes one away",
    fault: |text| parse_protocols(text).err(),
    example: "tlsv1.3",
};
const TLS_CIPHERS: Kind = Kind::Parsed {
    allowed: "default, secure, fast, normal or all, or a list of OpenSSL names in the order of preference",
    fault: |text| parse_ciphers(text).err(),
    example: "ECDHE-RSA-AES128-GCM-SHA256",
};
const TLS13_CIPHERS: Kind = Kind::Parsed {
    allowed: "list of names in the order of preference, \"\" for all",
    fault: |text| parse_tls13_ciphers(text).err(),
    example: "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384",
};
const CURVES: Kind = Kind::Parsed {
    allowed: "auto, or a list of X25519, prime256v1, secp384r1, X25519MLKEM768",
    fault: |text| parse_curves(text).err(),
    example: "prime256v1",
};

/// Of one pool.
const POOL_SIZE: Kind = int(0, 100_000);
const CONNECTIONS: Kind = int(0, 1_000_000);
/// What one word of permits has room for.
const RESERVE: Kind = int(0, 2_047);

settings! {
    /// The settings of the whole process: table `[ringbouncer]`.
    General (),
    GENERAL_KEYS of General:
    "Listening" {
        listen_addr: Vec<String> = Kind::List, default(r#"["127.0.0.1"]"#), Restart,
            "Addresses or host names to listen on for TCP; \"*\" is every address of the machine, [] is no TCP.";
        listen_port: u16 = int(0, 65_535), default("6432"), Restart,
            "TCP port, and number in the name of the Unix socket (.s.PGSQL.PORT); 0 is any free port.";
        listen_backlog: u32 = int(1, 65_535), default("4096"), Restart,
            "Connections that the kernel holds for us until they are accepted; it also obeys net.core.somaxconn.";
        unix_socket_dir: Option<PathBuf> = Kind::SocketDir, default(r#""""#), Restart,
            "Directory to create a Unix socket in.";
        unix_socket_mode: u32 = Kind::FileMode, default(r#""0777""#), Restart,
            "Permissions of the Unix socket.";
        unix_socket_group: String = Kind::Text { bytes_max: limit::USER_NAME_BYTES_MAX }, default(r#""""#), Restart,
            "Group of the Unix socket, a name or a number; \"\" leaves it as it is.";
        so_reuseport: bool = Kind::Bool, default("false"), Restart,
            "Whether other processes of the same user may listen on our TCP port, so that one can take over from another; each needs a unix_socket_dir, a pidfile and a metrics_listen of its own.";
        tcp_defer_accept: bool = Kind::Bool, default("false"), Restart,
            "Whether a connection is only taken once its client has said something (TCP_DEFER_ACCEPT).";
    }
    "Process" {
        user: String = Kind::Text { bytes_max: limit::USER_NAME_BYTES_MAX }, default(r#""""#), Restart,
            "User to become once limits have been raised and before anything is opened, which only root can; \"\" is who starts it.";
        pidfile: Option<PathBuf> = Kind::Path, default(r#""""#), Restart,
            "File for the number of the process; while a process lives whose number it has, no second one starts.";
        conffile: Option<PathBuf> = Kind::Path, default(r#""""#), Live,
            "File that the next reload reads in place of this one.";
    }
    "Cores" {
        shards: usize = int(0, limit::SHARDS_MAX as u64), default("0"), Restart,
            "Shards to run, each a thread; 0 is one for each physical core, tied to it. Fewer go where the kernel puts them, if cpus is empty.";
        pool_shards: usize = int(0, limit::SHARDS_MAX as u64), default("0"), NewConnections,
            "Shards that serve the clients of one pool; 0 is one for every four server connections of its size, so that those of a small pool need not travel.";
        rebalance_clients: bool = Kind::Bool, default("true"), Live,
            "Whether idle clients are moved to another shard, between two transactions, when shards are unevenly loaded.";
        cpus: Vec<usize> = Kind::Numbers { max: 4095 }, default("[]"), Restart,
            "Numbers of the cores that shards run on, one shard on each in this order; [] leaves the choice to us.";
    }
    "Peers" {
        peer_id: u16 = int(0, 65_535), default("0"), Live,
            "Our own number among the [peers], by which their cancel requests find us; 0 is no peering.";
    }
    "Pools" {
        pool_mode: PoolMode = Kind::Word(PoolMode::WORDS), default(r#""transaction""#), Live,
            "When a server connection goes back to its pool: after each transaction, when the client leaves (session), or after each statement, which refuses transactions of several statements.";
        default_pool_size: u32 = POOL_SIZE, default("20"), Live,
            "Server connections that one pool (one pair of database and user) may have, over all shards; 0 is no limit.";
        min_pool_size: u32 = CONNECTIONS, default("0"), Live,
            "Server connections that a pool keeps open, at most its size: if the database has a user of its own, else while it has clients.";
        reserve_pool_size: u32 = RESERVE, default("0"), Live,
            "Server connections beyond its size that a pool may open for clients that have waited for reserve_pool_timeout; they close when nobody waits.";
        reserve_pool_timeout: Duration = SPAN, default(r#""5 s""#), Live,
            "Wait after which the reserve is used; 0 turns it off.";
        autodb_idle_timeout: Duration = SPAN, default(r#""1 h""#), Live,
            "Pools of databases that only the entry \"*\" answers for go when they have had no client and no server for this long; 0 is never.";
        pool_idle_timeout: Duration = SPAN, default("0"), Live,
            "The same for all other pools.";
        max_db_connections: u32 = CONNECTIONS, default("0"), Live,
            "Server connections that all pools of one database together may have, over all shards; 0 is no limit.";
        max_user_connections: u32 = CONNECTIONS, default("0"), Live,
            "Server connections that all pools of one user (the one that servers are logged in as) together may have; 0 is no limit.";
        max_db_client_connections: u32 = CONNECTIONS, default("0"), Live,
            "Client connections that one database may have, over all shards; 0 is no limit.";
        max_user_client_connections: u32 = CONNECTIONS, default("0"), Live,
            "Client connections that one user (the one who logged in) may have, over all shards; 0 is no limit.";
        max_client_conn: usize = int(1, 10_000_000), default("10000"), Live,
            "Client connections that the process accepts, over all shards; those to the console do not count.";
    }
    "Login" {
        auth_type: AuthType = Kind::Word(AuthType::WORDS), default(r#""scram-sha-256""#), NewConnections,
            "How clients prove who they are. trust asks for nothing but a user that exists, any not even for that (every database then needs user); plain asks for the password in clear text; with md5, users whose secret is a SCRAM one are asked for SCRAM; cert takes the name in the client's certificate; ldap and pam have the password (in clear text) judged by an LDAP server or the system's PAM modules; hba lets auth_hba_file decide.";
        auth_hba_file: Option<PathBuf> = Kind::Path, default(r#""""#), NewConnections,
            "Rules for auth_type hba, in the format of PostgreSQL's pg_hba.conf; without the file everybody is refused.";
        auth_ident_file: Option<PathBuf> = Kind::Path, default(r#""""#), NewConnections,
            "Maps from names in certificates and of the system's users to users, in the format of PostgreSQL's pg_ident.conf.";
        auth_file: Option<PathBuf> = Kind::Path, default(r#""""#), NewConnections,
            "File of users and secrets in PgBouncer's format (\"user\" \"secret\" on each line), besides those of [users].";
        scram_iterations: u32 = int(1, 10_000_000), default("4096"), NewConnections,
            "Rounds of key stretching (PBKDF2) in a SCRAM login whose user has a password in plain text as secret; others' secrets say their own.";
        auth_ldap_options: String = Kind::Text { bytes_max: STATEMENT_BYTES_MAX }, default(r#""""#), NewConnections,
            "Options for auth_type ldap, as in pg_hba.conf: ldapserver=.. ldapport=.. ldaptls=1 ldapprefix=.. ldapsuffix=.. or ldapbasedn=.. ldapbinddn=.. ldapbindpasswd=.. ldapsearchattribute=.. ldapsearchfilter=.. or ldapurl=...";
        auth_pam_service: String = USER_NAME, default(r#""pgbouncer""#), NewConnections,
            "Name of the PAM service for auth_type pam (a file in /etc/pam.d).";
        auth_user: String = Kind::Text { bytes_max: limit::USER_NAME_BYTES_MAX }, default(r#""""#), NewConnections,
            "User that runs auth_query: users without a secret in [users] and auth_file are then looked up on the server. \"\" is nobody.";
        auth_query: String = Kind::Text { bytes_max: STATEMENT_BYTES_MAX }, default(r#""SELECT rolname, CASE WHEN rolvaliduntil < now() THEN NULL ELSE rolpassword END FROM pg_authid WHERE rolname=$1 AND rolcanlogin""#), NewConnections,
            "Query that gives name and secret of the user $1 in two columns. It must heed VALID UNTIL by itself.";
        auth_dbname: String = Kind::Text { bytes_max: limit::DATABASE_NAME_BYTES_MAX }, default(r#""""#), NewConnections,
            "Database entry in which auth_query is run; \"\" is the one that the client asks for.";
        auth_query_ttl: Duration = SPAN, default(r#""10 s""#), NewConnections,
            "How long the answer of auth_query about a user who exists is used again; 0 asks at every login. A failed login and RELOAD forget it.";
        auth_query_negative_ttl: Duration = SPAN, default(r#""2 s""#), NewConnections,
            "How long the answer that a user does not exist is used again; 0 asks at every login.";
        login_failure_delay: Duration = Kind::Duration {
            min: Duration::ZERO,
            max: Duration::from_secs(60),
            bare: Bare::Seconds,
        }, default(r#""100 ms""#), NewConnections,
            "How long a client whose password was wrong waits until it is told.";
        login_failures_max: u32 = int(0, 1_000_000), default("0"), Live,
            "Failed logins within login_failures_window after which an address (of IPv6: a network of 64 bits) is refused until the window is over; 0 is no limit. SHOW LOGIN_FAILURES has the table.";
        login_failures_window: Duration = SPAN_NOT_ZERO, default(r#""1 min""#), Live,
            "Time over which failed logins are counted.";
        admin_users: Vec<String> = Kind::List, default("[]"), NewConnections,
            "Users who may run every command of the console (database ringbouncer or pgbouncer).";
        stats_users: Vec<String> = Kind::List, default("[]"), NewConnections,
            "Users who may read the SHOW tables of the console and nothing else.";
        ignore_startup_parameters: Vec<String> = Kind::List, default("[]"), NewConnections,
            "Start-up parameters of clients that are dropped, tracked ones but application_name included; options among them has unknown settings within options dropped.";
        track_extra_parameters: Vec<String> = Kind::List, default(r#"["IntervalStyle"]"#), Restart,
            "Settings that PostgreSQL reports (GUC_REPORT) and that follow a client from server to server when it changes them, beside DateStyle, IntervalStyle, client_encoding, TimeZone, standard_conforming_strings, application_name, default_transaction_read_only and search_path.";
        strict_startup_parameters: bool = Kind::Bool, default("false"), NewConnections,
            "Whether start-up parameters are refused that are neither tracked nor ignored, as PgBouncer does; else they are settings that follow the client from server to server.";
        application_name_add_host: bool = Kind::Bool, default("false"), NewConnections,
            "Whether the client's address is appended to the application_name that it logs in with.";
        login_notify_message: String = Kind::Text { bytes_max: STATEMENT_BYTES_MAX }, default(r#""""#), NewConnections,
            "Notice that every client is sent when it has logged in; \"\" is none.";
        disable_pqexec: bool = Kind::Bool, default("false"), Restart,
            "Whether clients that send a Query message (the simple protocol, in which several statements may stand together) are disconnected.";
    }
    "Servers" {
        server_connect_timeout: Duration = SPAN, default(r#""15 s""#), NewConnections,
            "Time a new server connection has for connecting and logging in; 0 is no bound.";
        server_login_retry: Duration = SPAN, default(r#""15 s""#), Live,
            "Pause after a server could not be reached or refused the login, before the next try.";
        server_round_robin: bool = Kind::Bool, default("false"), Live,
            "Whether idle server connections serve in turn; else the one used last goes first, and surplus ones can time out.";
        server_idle_timeout: Duration = SPAN, default(r#""10 min""#), Live,
            "Server connections unused for longer are closed; 0 is never.";
        server_lifetime: Duration = SPAN, default(r#""1 h""#), Live,
            "Server connections older than this are closed as soon as they are idle; 0 closes them after one use.";
        server_reset_query: String = Kind::Text { bytes_max: STATEMENT_BYTES_MAX }, default(r#""DISCARD ALL""#), Live,
            "Statement that cleans a server connection before the next client gets it, in session mode; \"\" is none.";
        server_reset_query_always: bool = Kind::Bool, default("false"), Live,
            "Whether server_reset_query is run in transaction and statement mode as well.";
        server_check_delay: Duration = SPAN, default(r#""30 s""#), Live,
            "Server connections idle for longer are checked with server_check_query before a client gets them; 0 checks them always.";
        server_check_query: String = Kind::Text { bytes_max: STATEMENT_BYTES_MAX }, default(r#""<empty>""#), Live,
            "Query that shows whether an idle server connection still works; \"<empty>\" is the empty query, \"\" is no check.";
        server_fast_close: bool = Kind::Bool, default("false"), Live,
            "Whether in session mode a server connection that is to be closed (after RECONNECT, or a changed configuration) closes at the end of its transaction, and its client's connection with it; else when the client leaves.";
        max_prepared_statements: usize = int(0, 100_000), default("200"), Live,
            "Prepared statements that are kept on each server connection, so that clients can use theirs in transaction mode; 0 turns the tracking off.";
        prepared_statements_bytes_max: usize = Kind::Size { min: 65_536, max: 1 << 40 }, default(r#""1 GiB""#), Live,
            "Memory that the texts and names of all clients' prepared statements may take in transaction mode; a statement beyond it is refused (53400).";
        prepared_statement_errors_fatal: bool = Kind::Bool, default("false"), NewConnections,
            "Whether a client that prepares a name it has in use, or uses a name it has not prepared, is disconnected, as PgBouncer does; else it gets PostgreSQL's error (42P05, 26000) and goes on.";
    }
    "TLS of clients" {
        client_tls_sslmode: SslMode = Kind::Word(SslMode::WORDS), default(r#""disable""#), NewConnections,
            "Whether clients may (allow, prefer) or must (require and up) encrypt; verify-ca and verify-full (here the same) also ask for a certificate of client_tls_ca_file. Unix sockets are never encrypted, and exempt.";
        client_tls_key_file: Option<PathBuf> = Kind::Path, default(r#""""#), NewConnections,
            "Private key of our certificate, in PEM. It and every other file of this group takes effect when it changes, without a RELOAD.";
        client_tls_cert_file: Option<PathBuf> = Kind::Path, default(r#""""#), NewConnections,
            "Our certificate, with those between it and the root behind it, in PEM.";
        client_tls_ca_file: Option<PathBuf> = Kind::Path, default(r#""""#), NewConnections,
            "Certificates that those of clients must come from, in PEM; with it a certificate that a client presents is always verified.";
        client_tls_crl_file: Option<PathBuf> = Kind::Path, default(r#""""#), NewConnections,
            "Lists of revoked client certificates, in PEM.";
        client_tls_protocols: String = TLS_PROTOCOLS, default(r#""secure""#), NewConnections,
            "Versions of TLS.";
        client_tls_ciphers: String = TLS_CIPHERS, default(r#""default""#), NewConnections,
            "Ciphers of TLS 1.2.";
        client_tls13_ciphers: String = TLS13_CIPHERS, default(r#""""#), NewConnections,
            "Ciphers of TLS 1.3.";
        client_tls_ecdhcurve: String = CURVES, default(r#""auto""#), NewConnections,
            "Curves for the exchange of keys.";
        client_tls_dheparams: String = Kind::Word(&["auto", "none"]), default(r#""auto""#), NewConnections,
            "There for PgBouncer's sake: key exchange over finite fields is not offered.";
    }
    "TLS of servers" {
        server_tls_sslmode: SslMode = Kind::Word(SslMode::WORDS), default(r#""prefer""#), NewConnections,
            "Whether connections to servers are encrypted: allow if the server insists, prefer if it can, require always; verify-ca also checks its certificate against server_tls_ca_file, verify-full its host name as well. Unix sockets are never encrypted.";
        server_tls_ca_file: Option<PathBuf> = Kind::Path, default(r#""""#), NewConnections,
            "Certificates that those of servers must come from, in PEM.";
        server_tls_crl_file: Option<PathBuf> = Kind::Path, default(r#""""#), NewConnections,
            "Lists of revoked server certificates, in PEM.";
        server_tls_key_file: Option<PathBuf> = Kind::Path, default(r#""""#), NewConnections,
            "Private key of the certificate that we present to servers, in PEM.";
        server_tls_cert_file: Option<PathBuf> = Kind::Path, default(r#""""#), NewConnections,
            "The certificate that we present to servers that ask for one, in PEM.";
        server_tls_protocols: String = TLS_PROTOCOLS, default(r#""secure""#), NewConnections,
            "Versions of TLS.";
        server_tls_ciphers: String = TLS_CIPHERS, default(r#""default""#), NewConnections,
            "Ciphers of TLS 1.2.";
        server_tls13_ciphers: String = TLS13_CIPHERS, default(r#""""#), NewConnections,
            "Ciphers of TLS 1.3.";
    }
    "Timeouts" {
        query_wait_timeout: Duration = SPAN, default(r#""2 min""#), Live,
            "A client that has waited longer for a server connection is disconnected; 0 is never.";
        query_wait_notify: Duration = SPAN, default(r#""5 s""#), Live,
            "A client that has waited longer for a server connection is sent a notice, with its place in the queue and the wait to expect; 0 is never.";
        queue_reject: bool = Kind::Bool, default("false"), Live,
            "Whether a query is refused at once (SQLSTATE 53300, the client stays connected) when, by what was measured, it would wait longer than query_wait_timeout.";
        query_timeout: Duration = SPAN, default("0"), Live,
            "A query that takes longer is cut off, together with its server connection; 0 is never.";
        idle_transaction_timeout: Duration = SPAN, default("0"), Live,
            "A client idle in a transaction for longer is disconnected; 0 is never.";
        transaction_timeout: Duration = SPAN, default("0"), Live,
            "A client whose transaction takes longer is disconnected; 0 is never.";
        client_idle_timeout: Duration = SPAN, default("0"), Live,
            "A client idle outside of transactions for longer is disconnected; 0 is never.";
        client_login_timeout: Duration = SPAN, default(r#""60 s""#), NewConnections,
            "A client that has not logged in by then is disconnected; 0 is never.";
        dns_max_ttl: Duration = SPAN, default(r#""15 s""#), Live,
            "Age at which the addresses of a host name are looked up again, whatever DNS says; servers at addresses that are gone are closed.";
        dns_nxdomain_ttl: Duration = SPAN, default(r#""15 s""#), Live,
            "Time after which a name that could not be looked up is tried again.";
        suspend_timeout: Duration = SPAN, default(r#""10 s""#), Live,
            "A client to which what was read for it cannot be sent within this time of a SUSPEND is disconnected; 0 is never.";
        cancel_wait_timeout: Duration = SPAN, default(r#""10 s""#), Live,
            "A cancel request that could not be delivered by then is dropped; 0 is never.";
        close_timeout: Duration = SPAN_NOT_ZERO, default(r#""10 s""#), Live,
            "How long a peer that does not read may delay the closing of its connection.";
    }
    "Limits and buffers" {
        max_packet_size: u32 = Kind::Size { min: 1024, max: 2_147_483_647 }, default("2147483647"), NewConnections,
            "Largest protocol message that is let through; a larger one closes its connection.";
        memory_max: usize = Kind::Size { min: 0, max: 1 << 50 }, default("0"), Live,
            "Memory that the process may take (its resident set; not the kernel's socket buffers), 0 or at least 32 MiB. From three quarters of it on, nobody is read before what was read of him is passed on; from seven eighths on, new clients and large statements are refused (53200); at all of it, so is a client whose request cannot be kept. 0 is no limit.";
        receive_buffer_bytes: usize = Kind::Size { min: 2048, max: 65_536 }, default(r#""8 KiB""#), Restart,
            "Size of one receive buffer.";
        receive_buffers: u16 = Kind::PowerOfTwo { min: 64, max: 32_768 }, default("512"), Restart,
            "Receive buffers of each shard.";
    }
    "TCP (for new sockets; Unix sockets have none of these)" {
        tcp_socket_buffer: usize = Kind::Size { min: 0, max: 1 << 30 }, default("0"), NewConnections,
            "Size of the kernel's buffers of a socket, each way; 0 is the system's default.";
        tcp_keepalive: bool = Kind::Bool, default("true"), NewConnections,
            "Whether the kernel probes idle connections, so that dead peers are noticed.";
        tcp_keepidle: Duration = KEEPALIVE_SPAN, default("0"), NewConnections,
            "Idle time before the first probe, in whole seconds; 0 is the system's default.";
        tcp_keepintvl: Duration = KEEPALIVE_SPAN, default("0"), NewConnections,
            "Time between probes, in whole seconds; 0 is the system's default.";
        tcp_keepcnt: u32 = int(0, 127), default("0"), NewConnections,
            "Probes without an answer after which a connection is dead; 0 is the system's default.";
        tcp_user_timeout: Duration = Kind::Duration {
            min: Duration::ZERO,
            max: Duration::from_millis(2_147_483_647),
            bare: Bare::Millis,
        }, default("0"), NewConnections,
            "Time that sent data may stay unacknowledged before the connection is dead (TCP_USER_TIMEOUT, in whole milliseconds); 0 is the system's default.";
    }
    "Logs and statistics" {
        log_level: LogLevel = Kind::Word(LogLevel::WORDS), default(r#""info""#), Live,
            "The least severe level that is logged.";
        verbose: u32 = int(0, 10), default("0"), Live,
            "1 logs at least level debug, more logs everything.";
        logfile: Option<PathBuf> = Kind::Path, default(r#""""#), Live,
            "File that lines are appended to, besides standard error; each reload opens it anew.";
        syslog: bool = Kind::Bool, default("false"), Live,
            "Whether lines go to syslog as well.";
        syslog_ident: String = Kind::Name { bytes_max: 64 }, default(r#""ringbouncer""#), Live,
            "Name of the program in syslog.";
        syslog_facility: SyslogFacility = Kind::Word(SyslogFacility::WORDS), default(r#""daemon""#), Live,
            "What syslog files the lines under.";
        log_stats: bool = Kind::Bool, default("true"), Live,
            "Whether the averages of each stats_period are logged.";
        log_connections: bool = Kind::Bool, default("true"), Live,
            "Whether each login is logged.";
        log_disconnections: bool = Kind::Bool, default("true"), Live,
            "Whether each end of a connection is logged, with its reason.";
        log_pooler_errors: bool = Kind::Bool, default("true"), Live,
            "Whether each error that we (not the server) send to a client is logged.";
        stats_period: Duration = Kind::Duration {
            min: Duration::from_secs(1),
            max: SPAN_MAX,
            bare: Bare::Seconds,
        }, default(r#""60 s""#), Live,
            "Time over which the averages of SHOW STATS are taken.";
        metrics_listen: Option<SocketAddr> = Kind::Address, default(r#""""#), Restart,
            "Address and port where metrics are served to whoever asks, as http://ADDR:PORT/metrics in Prometheus's text format; \"\" is nowhere, port 0 is any free one.";
    }
}

settings! {
    /// One database that clients can connect to: table `[databases.NAME]`.
    Database (
        /// The name that clients connect to; `*` in the entry for all other names.
        name: String
    ),
    DATABASE_KEYS of Database:
    "Database" {
        host: String = Kind::Host, default(r#""127.0.0.1""#), NewConnections,
            "Where PostgreSQL listens, one host or several with commas between them; a directory (beginning with /) holds its Unix socket.";
        load_balance_hosts: LoadBalanceHosts = Kind::Word(LoadBalanceHosts::WORDS), default(r#""round-robin""#), NewConnections,
            "Which of several hosts a new server connection goes to: the next one each time, or (disable) the same one until a connection to it fails.";
        port: u16 = int(1, 65_535), default("5432"), NewConnections,
            "Its port, also of a Unix socket.";
        dbname: Option<String> = DATABASE_NAME, unset("NAME", r#""shop""#), NewConnections,
            "The database's name on the server.";
        user: Option<String> = USER_NAME, unset("the user who logged in", r#""shop_app""#), NewConnections,
            "User for all server connections, so that all clients of this database share one pool.";
        password: Option<Secret> = Kind::Secret, unset("the secret of the user in [users] or auth_file", r#""change-me""#), NewConnections,
            "Password of `user` on the server.";
        password_file: Option<PathBuf> = Kind::Path, default(r#""""#), NewConnections,
            "File whose first line is that password, read at start and at each RELOAD.";
        password_env: String = Kind::Text { bytes_max: VARIABLE_BYTES_MAX }, default(r#""""#), Restart,
            "Name of an environment variable that holds that password; \"\" is none.";
        auth_user: Option<String> = USER_NAME, unset("auth_user of [ringbouncer]", r#""pooler_auth""#), NewConnections,
            "User that runs auth_query for this database.";
        auth_query: Option<String> = Kind::Text { bytes_max: STATEMENT_BYTES_MAX }, unset("auth_query of [ringbouncer]", r#""SELECT usename, passwd FROM auth.lookup($1)""#), NewConnections,
            "Query that gives name and secret of a user of this database.";
        auth_dbname: Option<String> = DATABASE_NAME, unset("auth_dbname of [ringbouncer]", r#""postgres""#), NewConnections,
            "Database entry in which auth_query is run for this database.";
        pool_size: Option<u32> = POOL_SIZE, unset("default_pool_size", "50"), Live,
            "Server connections that each pool of this database may have; 0 is no limit.";
        min_pool_size: Option<u32> = CONNECTIONS, unset("min_pool_size of [ringbouncer]", "5"), Live,
            "Server connections that each pool of this database keeps open.";
        reserve_pool_size: Option<u32> = RESERVE, unset("reserve_pool_size of [ringbouncer]", "5"), Live,
            "Server connections beyond its size that each pool of this database may open in need.";
        max_db_connections: Option<u32> = CONNECTIONS, unset("max_db_connections of [ringbouncer]", "100"), Live,
            "Server connections that all pools of this database together may have; 0 is no limit.";
        max_db_client_connections: Option<u32> = CONNECTIONS, unset("max_db_client_connections of [ringbouncer]", "1000"), Live,
            "Client connections that this database may have; 0 is no limit.";
        server_lifetime: Option<Duration> = SPAN, unset("server_lifetime of [ringbouncer]", r#""10 min""#), Live,
            "Server connections older than this are closed as soon as they are idle; 0 closes them after one use.";
        connect_query: String = Kind::Text { bytes_max: STATEMENT_BYTES_MAX }, default(r#""""#), NewConnections,
            "Statements that each new server connection runs before a client gets it; an error is logged and otherwise ignored. \"\" is none.";
        client_encoding: String = STARTUP_VALUE, default(r#""""#), NewConnections,
            "Encoding that server connections are opened with, which holds for clients that ask for none; \"\" is the server's own.";
        datestyle: String = STARTUP_VALUE, default(r#""""#), NewConnections,
            "The same for DateStyle.";
        timezone: String = STARTUP_VALUE, default(r#""""#), NewConnections,
            "The same for TimeZone.";
        application_name: String = STARTUP_VALUE, default(r#""""#), NewConnections,
            "The same for application_name.";
        pool_mode: Option<PoolMode> = Kind::Word(PoolMode::WORDS), unset("pool_mode of [ringbouncer]", r#""session""#), Live,
            "When a server connection goes back to its pool.";
        query_wait_timeout: Option<Duration> = SPAN, unset("query_wait_timeout of [ringbouncer]", r#""30 s""#), Live,
            "A client that has waited longer for a server connection is disconnected; 0 is never.";
        query_timeout: Option<Duration> = SPAN, unset("query_timeout of [ringbouncer]", r#""5 min""#), Live,
            "A query that takes longer is cut off; 0 is never.";
        idle_transaction_timeout: Option<Duration> = SPAN, unset("idle_transaction_timeout of [ringbouncer]", r#""1 min""#), Live,
            "A client idle in a transaction for longer is disconnected; 0 is never.";
        transaction_timeout: Option<Duration> = SPAN, unset("transaction_timeout of [ringbouncer]", r#""10 min""#), Live,
            "A client whose transaction takes longer is disconnected; 0 is never.";
        client_idle_timeout: Option<Duration> = SPAN, unset("client_idle_timeout of [ringbouncer]", r#""1 h""#), Live,
            "A client idle outside of transactions for longer is disconnected; 0 is never.";
    }
}

settings! {
    /// One user: table `[users.NAME]`.
    User (
        /// The name that clients log in with.
        name: String
    ),
    USER_KEYS of User:
    "User" {
        password: Option<Secret> = Kind::Secret, unset("the one of auth_file; if there is none, only trust lets the user in", r#""change-me""#), NewConnections,
            "The user's secret: the password, or as PostgreSQL stores it: md5..., or SCRAM-SHA-256$... (which serves to check clients; to log in to servers, the password itself is needed unless they use md5 or trust).";
        password_file: Option<PathBuf> = Kind::Path, default(r#""""#), NewConnections,
            "File whose first line is the user's secret, read at start and at each RELOAD.";
        password_env: String = Kind::Text { bytes_max: VARIABLE_BYTES_MAX }, default(r#""""#), Restart,
            "Name of an environment variable that holds the user's secret; \"\" is none.";
        pool_size: Option<u32> = POOL_SIZE, unset("pool_size of the database", "30"), Live,
            "Server connections that each pool of this user may have; 0 is no limit.";
        reserve_pool_size: Option<u32> = RESERVE, unset("reserve_pool_size of the database", "5"), Live,
            "Server connections beyond its size that each pool of this user may open in need.";
        max_user_connections: Option<u32> = CONNECTIONS, unset("max_user_connections of [ringbouncer]", "100"), Live,
            "Server connections that all pools of this user together may have; 0 is no limit.";
        max_user_client_connections: Option<u32> = CONNECTIONS, unset("max_user_client_connections of [ringbouncer]", "1000"), Live,
            "Client connections that this user may have; 0 is no limit.";
        pool_mode: Option<PoolMode> = Kind::Word(PoolMode::WORDS), unset("pool_mode of the database", r#""session""#), Live,
            "When a server connection of this user goes back to its pool.";
        query_wait_timeout: Option<Duration> = SPAN, unset("query_wait_timeout of the database", r#""30 s""#), Live,
            "A client that has waited longer for a server connection is disconnected; 0 is never.";
        query_timeout: Option<Duration> = SPAN, unset("query_timeout of the database", r#""5 min""#), Live,
            "A query that takes longer is cut off; 0 is never.";
        idle_transaction_timeout: Option<Duration> = SPAN, unset("idle_transaction_timeout of the database", r#""1 min""#), Live,
            "A client idle in a transaction for longer is disconnected; 0 is never.";
        transaction_timeout: Option<Duration> = SPAN, unset("transaction_timeout of the database", r#""10 min""#), Live,
            "A client whose transaction takes longer is disconnected; 0 is never.";
        client_idle_timeout: Option<Duration> = SPAN, unset("client_idle_timeout of the database", r#""1 h""#), Live,
            "A client idle outside of transactions for longer is disconnected; 0 is never.";
    }
}

settings! {
    /// Another pooler that cancel requests are passed on to: table `[peers.ID]`.
    Peer (
        /// Its `peer_id`.
        id: u16
    ),
    PEER_KEYS of Peer:
    "Peer" {
        host: Option<String> = Kind::Host, unset("none: a peer needs one", r#""/run/pooler-2""#), NewConnections,
            "Where the peer listens; a directory (beginning with /) holds its Unix socket.";
        port: u16 = int(1, 65_535), default("6432"), NewConnections,
            "Its port, also of a Unix socket.";
        pool_size: Option<u32> = POOL_SIZE, unset("default_pool_size", "5"), Live,
            "Cancel requests that may be on their way to the peer at the same time.";
    }
}

impl Default for General {
    fn default() -> General {
        let mut values = GENERAL_KEYS
            .iter()
            .map(|key| (key.name, key.preset_value()))
            .collect();
        General::from_values(&mut values).expect("the type of a key holds its default")
    }
}

#[cfg(test)]
impl Database {
    /// A database entry that says nothing.
    pub fn named(name: &str) -> Database {
        let presets = DATABASE_KEYS
            .iter()
            .map(|key| (key.name, key.preset_value()));
        Database::from_values(name.to_owned(), &mut presets.collect()).expect("the defaults")
    }
}

#[cfg(test)]
impl User {
    /// A user entry that says nothing.
    pub fn named(name: &str) -> User {
        let presets = USER_KEYS.iter().map(|key| (key.name, key.preset_value()));
        User::from_values(name.to_owned(), &mut presets.collect()).expect("the defaults")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::config::units::{format_duration, format_size};
    use std::collections::BTreeSet;

    /// Values at the edges of what `kind` allows, in the notation of the file.
    fn edges(kind: Kind) -> Vec<String> {
        match kind {
            Kind::Bool => vec!["false".into(), "true".into()],
            Kind::Int { min, max } | Kind::PowerOfTwo { min, max } => {
                vec![min.to_string(), max.to_string()]
            }
            Kind::Numbers { max } => vec!["[]".into(), format!("[0, {max}]")],
            Kind::FileMode => vec![r#""0000""#.into(), r#""0777""#.into()],
            Kind::Duration { min, max, .. } => [min, max]
                .map(|span| format!("{:?}", format_duration(span)))
                .into(),
            Kind::Size { min, max } => [min, max]
                .map(|size| format!("{:?}", format_size(size)))
                .into(),
            Kind::Word(words) => words.iter().map(|word| format!("{word:?}")).collect(),
            Kind::Name { bytes_max } | Kind::Text { bytes_max } => {
                vec![r#""x""#.into(), format!("{:?}", "x".repeat(bytes_max))]
            }
            Kind::Parsed { example, .. } => vec![format!("{example:?}")],
            Kind::List => vec!["[]".into(), r#"["a", "b"]"#.into()],
            Kind::Host => vec![r#""::1""#.into()],
            Kind::Address => vec![r#""""#.into(), r#""[::1]:9127""#.into()],
            Kind::Path | Kind::SocketDir => vec![r#""""#.into(), r#""/run""#.into()],
            Kind::Secret => vec![r#""x""#.into()],
        }
    }

    fn checked(key: &Key, written: &str) -> Value {
        let value = DeValue::parse(written).expect("valid TOML");
        key.kind
            .check(value.get_ref(), Path::new(""))
            .unwrap_or_else(|refusal| panic!("{} = {written}: {refusal:?}", key.name))
    }

    #[test]
    fn type_of_every_key_holds_all_its_kind_allows() {
        for key in keys() {
            for written in edges(key.kind) {
                let mut values = Values::from([(key.name, checked(key, &written))]);
                let rest = keys().filter(|other| other.section == key.section);
                for other in rest {
                    values
                        .entry(other.name)
                        .or_insert_with(|| other.preset_value());
                }
                let name = || "x".to_owned();
                let failed = match key.section {
                    Section::General => General::from_values(&mut values).err(),
                    Section::Database => Database::from_values(name(), &mut values).err(),
                    Section::User => User::from_values(name(), &mut values).err(),
                    Section::Peer => Peer::from_values(1, &mut values).err(),
                };
                assert_eq!(failed, None, "{written}");
            }
        }
    }

    #[test]
    fn values_come_back_as_they_went_in() {
        let general = General::default();
        let mut values = general
            .values()
            .into_iter()
            .map(|(key, value)| (key.name, value))
            .collect();
        assert_eq!(General::from_values(&mut values), Ok(general));
        assert!(values.is_empty());
    }

    #[test]
    fn every_default_and_example_is_allowed() {
        for key in keys() {
            match key.preset {
                Preset::Toml(_) => drop(key.preset_value()),
                Preset::Unset { example, .. } => drop(checked(key, example)),
            }
        }
    }

    #[test]
    fn names_are_unique_within_a_section_and_have_a_meaning() {
        let mut seen = BTreeSet::new();
        for key in keys() {
            assert!(seen.insert((key.section.name(), key.name)), "{}", key.name);
            assert!(
                key.doc.ends_with('.') && !key.group.is_empty(),
                "{}",
                key.name
            );
        }
    }

    #[test]
    fn only_passwords_are_secret() {
        let secret: Vec<_> = keys()
            .filter(|key| key.is_secret())
            .map(|key| key.name)
            .collect();
        assert_eq!(secret, ["password", "password"]);
    }

    #[test]
    fn minimal_file_is_valid_and_short() {
        let text = include_str!("../../config/minimal.toml");
        let config = Config::parse(text, Path::new("minimal.toml")).expect("valid");
        assert_eq!(config.databases.len(), 1);
        assert!(text.lines().count() <= 12);
    }
}
