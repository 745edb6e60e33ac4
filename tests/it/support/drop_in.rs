//! Ringbouncer and PgBouncer with the same configuration file, so that one test is run against both: what PgBouncer
//! passes is a true statement about PgBouncer.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::peer::{Client, Reply};
use super::pooler::program;
pub use super::ports::free_port;
use super::postgres::{Database, spawn_mortal};
use super::reference::{self, Version};
use super::wait::{PATIENCE, holds_within, wait_until};
use super::wire::PROTOCOL_3_0;

/// Which pooler.
#[derive(Clone, Copy)]
pub enum Brand {
    PgBouncer,
    /// With so many shards.
    Ringbouncer(usize),
}

impl Brand {
    /// Whether it is a PgBouncer from before `version`.
    pub fn is_before(self, version: Version) -> bool {
        matches!(self, Brand::PgBouncer) && reference::version() < version
    }

    /// Whether it is a PgBouncer of `version` or later.
    pub fn is_from(self, version: Version) -> bool {
        matches!(self, Brand::PgBouncer) && reference::version() >= version
    }

    /// The program, as whoever runs the tests; the file is still to be added.
    pub fn command(self) -> Command {
        match self {
            Brand::PgBouncer => Command::new(reference::path()),
            Brand::Ringbouncer(shards) => {
                let mut command = program();
                command.env("RINGBOUNCER_SHARDS", shards.to_string());
                command
            }
        }
    }
}

/// A directory for configuration and sockets that an unprivileged user may write to.
pub fn open_directory() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
    directory
}

/// Writes `pgbouncer.ini` into `directory`: everything trusted, on `port`, leading to `database`, with further lines.
pub fn write_ini(directory: &Path, port: u16, database: &Database, more: &str) -> PathBuf {
    let userlist = directory.join("userlist.txt");
    fs::write(&userlist, "\"postgres\" \"\"\n").unwrap();
    let address = database.postgres.address();
    let user = match rustix::process::geteuid().is_root() {
        true => "user = nobody\n",
        false => "",
    };
    let text = format!(
        "; as PgBouncer takes it\n\
         [databases]\n\
         {name} = host={host} port={pg_port}\n\
         [pgbouncer]\n\
         listen_addr = 127.0.0.1\n\
         listen_port = {port}\n\
         unix_socket_dir = {directory}\n\
         auth_type = trust\n\
         auth_file = {userlist}\n\
         admin_users = postgres\n\
         {user}\
         {more}\n",
        name = database.name,
        host = address.ip(),
        pg_port = address.port(),
        directory = directory.display(),
        userlist = userlist.display(),
    );
    let path = directory.join("pgbouncer.ini");
    fs::write(&path, text).unwrap();
    path
}

/// A line of `[databases]` for a further entry that leads to `database`.
pub fn entry(name: &str, database: &Database, keys: &str) -> String {
    let (address, dbname) = (database.postgres.address(), &database.name);
    let (host, port) = (address.ip(), address.port());
    format!("{name} = host={host} port={port} dbname={dbname} {keys}\n")
}

/// A running pooler of either brand, with `log` and `pid` as its log and pid file.
pub struct DropIn {
    pub address: SocketAddr,
    pub database: Database,
    directory: TempDir,
    child: Child,
}

impl DropIn {
    #[track_caller]
    pub fn start(brand: Brand, database: Database, more: &str) -> DropIn {
        DropIn::start_with(brand, database, more, |_| {})
    }

    /// The same with further arguments or environment.
    #[track_caller]
    pub fn start_with(
        brand: Brand,
        database: Database,
        more: &str,
        amend: impl FnOnce(&mut Command),
    ) -> DropIn {
        let started = DropIn::try_start_with(brand, database, more, amend);
        started.unwrap_or_else(|log| panic!("it does not start:\n{log}"))
    }

    /// The same with these users and their secrets.
    #[track_caller]
    pub fn start_knowing(
        brand: Brand,
        database: Database,
        more: &str,
        users: &[(&str, &str)],
    ) -> DropIn {
        let quoted = |text: &str| text.replace('"', "\"\"");
        let line = |(name, secret): &(&str, &str)| {
            format!("\"{}\" \"{}\"\n", quoted(name), quoted(secret))
        };
        let text: String = users.iter().map(line).collect();
        DropIn::start_with(brand, database, more, |command| {
            let ini = Path::new(command.get_args().last().unwrap());
            fs::write(ini.with_file_name("userlist.txt"), text).unwrap();
        })
    }

    /// The same, or what the log says of why it does not start.
    #[track_caller]
    pub fn try_start(brand: Brand, database: Database, more: &str) -> Result<DropIn, String> {
        DropIn::try_start_with(brand, database, more, |_| {})
    }

    #[track_caller]
    fn try_start_with(
        brand: Brand,
        database: Database,
        more: &str,
        amend: impl FnOnce(&mut Command),
    ) -> Result<DropIn, String> {
        let (directory, port) = (open_directory(), free_port());
        let path = directory.path();
        let files = format!(
            "logfile = {}\npidfile = {}\n{more}",
            path.join("log").display(),
            path.join("pid").display()
        );
        let mut command = brand.command();
        command
            .arg("-q")
            .arg(write_ini(path, port, &database, &files))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(path.join("stderr")).unwrap());
        amend(&mut command);
        let child = spawn_mortal(command, Signal::KILL);
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let mut drop_in = DropIn {
            address,
            database,
            directory,
            child,
        };
        // Signals before this would end it.
        let is_up = |drop_in: &DropIn| drop_in.log().contains("process up: ");
        let has_ended = |drop_in: &mut DropIn| drop_in.child.try_wait().unwrap().is_some();
        wait_until("it is up or gone", || {
            is_up(&drop_in) || has_ended(&mut drop_in)
        });
        match is_up(&drop_in) {
            true => Ok(drop_in),
            false => Err(drop_in.said()),
        }
    }

    /// A client of the database, as `postgres`.
    #[track_caller]
    pub fn client(&self) -> Client {
        Client::login(self.address, &self.database.name)
    }

    /// The outcome of a start-up packet of this user for this entry, without a password.
    pub fn enter(&self, user: &str, entry: &str) -> Reply {
        let params = [("user", user), ("database", entry)];
        Client::connect(self.address).start(PROTOCOL_3_0, &params)
    }

    /// A client of its Unix socket that has said nothing yet.
    pub fn by_socket(&self) -> Client {
        let socket = format!(".s.PGSQL.{}", self.address.port());
        Client::connect_unix(&self.path(&socket))
    }

    /// One command of an admin.
    #[track_caller]
    pub fn console(&self, command: &str) -> Reply {
        Client::login(self.address, "pgbouncer").query(command)
    }

    /// The sum of one column of `SHOW POOLS` over the pools of an entry.
    #[track_caller]
    pub fn pools(&self, entry: &str, column: &str) -> u64 {
        let table = self.console("SHOW POOLS").table();
        let rows = table.iter().filter(|row| row["database"] == entry);
        rows.map(|row| row[column].parse::<u64>().unwrap()).sum()
    }

    /// Waits until so many clients of the database stand in line.
    #[track_caller]
    pub fn wait_queued(&self, count: u64) {
        wait_until("clients stand in line", || {
            self.pools(&self.database.name, "cl_waiting") == count
        });
    }

    /// Replaces a part of the configuration file and has it read.
    #[track_caller]
    pub fn reload_with(&self, old: &str, new: &str) -> Reply {
        let file = self.path("pgbouncer.ini");
        let text = fs::read_to_string(&file).unwrap();
        assert!(text.contains(old), "no {old:?} in {text}");
        fs::write(&file, text.replace(old, new)).unwrap();
        self.console("RELOAD")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its log file so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Its log file, and what it said before it had one.
    fn said(&self) -> String {
        fs::read_to_string(self.path("stderr")).unwrap_or_default() + &self.log()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Its end, if it comes before the deadline.
    pub fn wait_exit(&mut self) -> Option<ExitStatus> {
        let mut exit = None;
        holds_within(PATIENCE, || {
            exit = self.child.try_wait().unwrap();
            exit.is_some()
        });
        exit
    }
}

impl Drop for DropIn {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- its log:\n{}---", self.said());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The last line of the log that holds `part`.
#[track_caller]
pub fn line_with(drop_in: &DropIn, part: &str) -> String {
    let log = drop_in.log();
    let found = log.lines().rfind(|line| line.contains(part));
    found
        .unwrap_or_else(|| panic!("no line with {part}"))
        .to_owned()
}

/// The identity in front of a client's or server's line, less what each program chooses.
pub fn prefix(line: &str, letter: char) -> &str {
    let at = line.find(&format!(" {letter}-0x")).expect("a prefix") + 1;
    let (id, rest) = line[at..].split_once(": ").expect("an id");
    assert!(id[4..].chars().all(|c| c.is_ascii_hexdigit()), "{id}");
    rest
}

/// One claim about both, with one shard and with three: `drop_in!(claim, |brand| { .. })`, or for what PgBouncer has
/// from a version on, or until one, `drop_in!(claim, since(1, 25), |brand| { .. })`.
macro_rules! drop_in {
    ($name:ident, $claim:expr) => {
        drop_in!($name, since(0, 0), until(u32::MAX, 0), $claim);
    };
    ($name:ident, since $since:expr, $claim:expr) => {
        drop_in!($name, since $since, until(u32::MAX, 0), $claim);
    };
    ($name:ident, until $until:expr, $claim:expr) => {
        drop_in!($name, since(0, 0), until $until, $claim);
    };
    ($name:ident, since $since:expr, until $until:expr, $claim:expr) => {
        mod $name {
            #[allow(unused_imports)]
            use super::*;

            #[test]
            fn pgbouncer() {
                let claim: fn(Brand) = $claim;
                use $crate::support::reference;
                if reference::is_since($since) && reference::is_until($until) {
                    claim(Brand::PgBouncer);
                }
            }

            #[test]
            fn shards_1() {
                let claim: fn(Brand) = $claim;
                claim(Brand::Ringbouncer(1));
            }

            #[test]
            fn shards_3() {
                let claim: fn(Brand) = $claim;
                claim(Brand::Ringbouncer(3));
            }
        }
    };
}
pub(crate) use drop_in;
