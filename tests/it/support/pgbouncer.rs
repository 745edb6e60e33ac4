//! PgBouncer on the same stage: proves that a test's expectations are PgBouncer's own behaviour.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use rustix::process::Signal;
use tempfile::TempDir;

use super::peer::{Client, Reply};
use super::pooler::Topology;
use super::ports::free_port;
use super::postgres::{Database, Postgres, spawn_mortal, unprivileged_user};
use super::reference::{self, Version};
use super::stage::Stage;
use super::wait::holds_within;

/// A running PgBouncer: pool of four, transaction mode, everybody trusted, `postgres` is admin, `watcher` may look.
struct PgBouncer {
    address: SocketAddr,
    child: Child,
    _directory: TempDir,
}

/// One of the programs that a claim is checked against.
enum Program {
    Theirs(PgBouncer),
    Ours(Stage),
}

/// A program before two fresh databases.
pub struct Subject {
    program: Program,
    /// Two databases, each behind an entry of its name.
    pub databases: [Database; 2],
    /// Whether it is PgBouncer.
    pub is_theirs: bool,
}

impl Subject {
    /// PgBouncer, if it is at least of version `since`.
    pub fn theirs(since: Version, settings: &[(&str, &str)]) -> Option<Subject> {
        if !reference::is_since(since) {
            return None;
        }
        let databases = [(), ()].map(|()| Postgres::shared().database());
        let program = Program::Theirs(PgBouncer::start(&databases, settings));
        Some(Subject {
            program,
            databases,
            is_theirs: true,
        })
    }

    /// Whether it is a PgBouncer from before `version`.
    pub fn is_before(&self, version: Version) -> bool {
        self.is_theirs && reference::version() < version
    }

    /// Whether it is a PgBouncer of `version` or later.
    pub fn is_from(&self, version: Version) -> bool {
        self.is_theirs && reference::version() >= version
    }

    /// Ringbouncer with so many shards.
    pub fn ours(shards: usize, settings: &[(&str, &str)]) -> Subject {
        let databases = [(), ()].map(|()| Postgres::shared().database());
        let mut topology = Topology::new(shards)
            .user_secret("watcher", "")
            .user_secret("nobody", "")
            .set("stats_users", vec!["watcher"]);
        for (key, value) in settings {
            topology = match value.parse::<i64>() {
                Ok(number) => topology.set(key, number),
                Err(_) => topology.set(key, *value),
            };
        }
        let topology = topology.database(&databases[1].name, &databases[1], &[]);
        let first = Postgres::shared().database();
        let topology = topology.database(&databases[0].name, &databases[0], &[]);
        Subject {
            program: Program::Ours(Stage::on(first, topology, &[])),
            databases,
            is_theirs: false,
        }
    }

    pub fn address(&self) -> SocketAddr {
        match &self.program {
            Program::Theirs(pgbouncer) => pgbouncer.address,
            Program::Ours(stage) => stage.address(),
        }
    }

    /// The name of an entry.
    pub fn entry(&self, at: usize) -> &str {
        &self.databases[at].name
    }

    /// A client of the first database.
    #[track_caller]
    pub fn client(&self) -> Client {
        Client::login(self.address(), self.entry(0))
    }

    /// An admin's session.
    #[track_caller]
    pub fn admin(&self) -> Client {
        Client::login(self.address(), "pgbouncer")
    }

    /// One command of an admin.
    #[track_caller]
    pub fn console(&self, command: &str) -> Reply {
        self.admin().query(command)
    }

    /// The sum of one column of `SHOW POOLS` over the pools of an entry.
    #[track_caller]
    pub fn pools(&self, entry: &str, column: &str) -> u64 {
        let table = self.console("SHOW POOLS").table();
        let rows = table.iter().filter(|row| row["database"] == entry);
        rows.map(|row| row[column].parse::<u64>().unwrap()).sum()
    }
}

impl PgBouncer {
    fn start(databases: &[Database], settings: &[(&str, &str)]) -> PgBouncer {
        for _ in 0..20 {
            if let Some(started) = PgBouncer::try_start(databases, settings) {
                return started;
            }
        }
        panic!("PgBouncer does not start");
    }

    fn try_start(databases: &[Database], settings: &[(&str, &str)]) -> Option<PgBouncer> {
        let directory = tempfile::tempdir().unwrap();
        let readable = fs::Permissions::from_mode(0o755);
        fs::set_permissions(directory.path(), readable).unwrap();
        let users = directory.path().join("users.txt");
        let names = ["postgres", "watcher", "nobody"].map(|name| format!("\"{name}\" \"\"\n"));
        fs::write(&users, names.concat()).unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let mut ini = String::from("[databases]\n");
        for database in databases {
            let (name, server) = (&database.name, database.postgres.address());
            ini += &format!("{name} = host={} port={}\n", server.ip(), server.port());
        }
        let port = address.port();
        ini += &format!(
            "[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
             auth_type = trust\nauth_file = {}\nadmin_users = postgres\nstats_users = watcher\n\
             pool_mode = transaction\ndefault_pool_size = 4\n",
            users.display()
        );
        for (key, value) in settings {
            ini += &format!("{key} = {value}\n");
        }
        let path = directory.path().join("pgbouncer.ini");
        fs::write(&path, ini).unwrap();
        let mut command = Command::new(reference::path());
        command.arg(path).stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        // It refuses to run as root.
        if let Some((uid, gid)) = unprivileged_user() {
            command.uid(uid).gid(gid);
        }
        let mut child = spawn_mortal(command, Signal::KILL);
        let is_up = || std::net::TcpStream::connect(address).is_ok();
        let is_settled = holds_within(super::wait::PATIENCE, || {
            is_up() || child.try_wait().unwrap().is_some()
        });
        let is_serving = is_settled && child.try_wait().unwrap().is_none();
        let pgbouncer = PgBouncer {
            address,
            child,
            _directory: directory,
        };
        is_serving.then_some(pgbouncer)
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One claim, checked against PgBouncer if that has the behaviour (which proves the test), and
/// against Ringbouncer with one shard and with three: `compared!(claim, since(1, 8), |subject| { .. })`, or for what a
/// later version has given up `compared!(claim, since(1, 8), until(1, 26), |subject| { .. })`.
macro_rules! compared {
    ($name:ident, since $since:expr, $claim:expr) => {
        compared!($name, since $since, until (u32::MAX, 0), with &[], $claim);
    };
    ($name:ident, since $since:expr, until $until:expr, $claim:expr) => {
        compared!($name, since $since, until $until, with &[], $claim);
    };
    ($name:ident, since $since:expr, with $settings:expr, $claim:expr) => {
        compared!($name, since $since, until (u32::MAX, 0), with $settings, $claim);
    };
    ($name:ident, since $since:expr, until $until:expr, with $settings:expr, $claim:expr) => {
        mod $name {
            #[allow(unused_imports)]
            use super::*;

            const CLAIM: fn(&Subject) = $claim;
            const SETTINGS: &[(&str, &str)] = $settings;

            #[test]
            fn theirs() {
                if !$crate::support::reference::is_until($until) {
                    return;
                }
                if let Some(subject) = Subject::theirs($since, SETTINGS) {
                    CLAIM(&subject);
                }
            }

            #[test]
            fn shards_1() {
                CLAIM(&Subject::ours(1, SETTINGS));
            }

            #[test]
            fn shards_3() {
                CLAIM(&Subject::ours(3, SETTINGS));
            }
        }
    };
}

pub(crate) use compared;
