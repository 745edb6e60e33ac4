//! Why the process does not start: one clear sentence each, with what to do about it.

use crate::auth::UserListError;
use crate::auth::hba::RuleFault;
use crate::config::ConfigError;
use crate::net::SetupError;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Why the process does not start, or a reload is refused.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// `auth_file` cannot be read.
    #[error("cannot read auth_file {}: {source}", path.display())]
    AuthFile {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// `auth_file` is wrong.
    #[error("broken auth_file {}: {source}", path.display())]
    UserList {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: UserListError,
    },
    /// Certificates or keys cannot be used.
    #[error(transparent)]
    Tls(#[from] SetupError),
    /// `auth_ldap_options` is wrong.
    #[error("auth_ldap_options: {0}")]
    Ldap(RuleFault),
    /// A secret that stands elsewhere cannot be had.
    #[error("cannot read the secret of {key}: {reason}")]
    Secret {
        /// The key that names the place.
        key: String,
        /// Why not.
        reason: String,
    },
    /// The kernel has no usable io_uring.
    #[error("{0}")]
    IoUring(String),
    /// Too few file descriptors.
    #[error(
        "the limit of {limit} open files is too low for max_client_conn and the pools, which need {needed}: raise it (ulimit -n, LimitNOFILE=) or lower max_client_conn"
    )]
    Descriptors {
        /// The hard limit.
        limit: u64,
        /// What the configuration asks for.
        needed: u64,
    },
    /// Too little memory may be locked.
    #[error(
        "the limit of {limit} bytes of locked memory (ulimit -l, LimitMEMLOCK=), which all processes of a user share, is too low for the rings of {shards} shards: from Linux 6.14 on each needs about 512 KiB"
    )]
    Memlock {
        /// The limit.
        limit: u64,
        /// How many shards were to start.
        shards: usize,
    },
    /// An address of `listen_addr` is none.
    #[error("listen_addr {address:?} is not an address: {source}")]
    Address {
        /// As configured.
        address: String,
        /// Why not.
        source: io::Error,
    },
    /// A listening socket cannot be made.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Where.
        address: String,
        /// Why not.
        source: io::Error,
    },
    /// `metrics_listen` cannot be listened on.
    #[error("cannot listen on metrics_listen {address}: {source}")]
    MetricsListen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// Another process answers on the Unix socket.
    #[error("unix socket {} is in use, cannot continue", path.display())]
    SocketInUse {
        /// Its path.
        path: PathBuf,
    },
    /// The process at the Unix socket cannot be relieved (`-R`).
    #[error("cannot take over from the process at unix socket {}: {reason}", path.display())]
    Reboot {
        /// Its path.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// There is nowhere to listen.
    #[error("nowhere to listen: listen_addr and unix_socket_dir are both empty")]
    NowhereToListen,
    /// `logfile` cannot be opened.
    #[error("cannot open logfile: {source}")]
    LogFile {
        /// Why not.
        source: io::Error,
    },
    /// Another process has the pid file.
    #[error("pidfile {} exists, another instance (pid {pid}) is running", path.display())]
    PidFileInUse {
        /// Its path.
        path: PathBuf,
        /// The other.
        pid: i32,
    },
    /// The pid file cannot be read or written.
    #[error("cannot use pidfile {}: {source}", path.display())]
    PidFile {
        /// Its path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// We cannot become `user`.
    #[error("cannot become user {name:?}: {source}")]
    User {
        /// The user.
        name: String,
        /// Why not.
        source: io::Error,
    },
    /// PgBouncer's file, and nobody named to become.
    #[error("should not run as root: name another user with user = in the file or -u")]
    Root,
    /// A process in the background lacks something.
    #[error("a daemon needs {0} configured")]
    Daemon(&'static str),
    /// A shard could not be started.
    #[error("cannot start shard {shard}: {reason}")]
    Shard {
        /// Which.
        shard: usize,
        /// Why not.
        reason: String,
    },
    /// `cpus` names a core that there is none of.
    #[error("cpus names core {0}, which this process may not run on")]
    NoSuchCpu(usize),
    /// The operating system refused something else.
    #[error("cannot {what}: {source}")]
    System {
        /// What was attempted.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
}
