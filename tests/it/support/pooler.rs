//! The real program, started on a free port with a configuration of its own.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use toml::{Table, Value};

use super::peer::{Client, Reply};
use super::postgres::{Database, spawn_mortal};
use super::wait::{PATIENCE, holds_within, wait_until};
use super::wire::PROTOCOL_3_0;

/// A configuration in the making. Defaults: pool of four, transaction mode, everybody in the user list trusted.
#[derive(Clone)]
pub struct Topology {
    settings: Table,
    databases: Table,
    users: Table,
    peers: Table,
    userlist: String,
}

impl Topology {
    pub fn new(shards: usize) -> Topology {
        let topology = Topology {
            settings: Table::new(),
            databases: Table::new(),
            users: Table::new(),
            peers: Table::new(),
            userlist: String::new(),
        };
        topology
            .set("listen_addr", "127.0.0.1")
            .set("listen_port", 0)
            .set("shards", shards as i64)
            // Small pools would live on one shard each: nothing would travel between them.
            .set("pool_shards", shards as i64)
            .set("auth_type", "trust")
            .set("admin_users", vec!["postgres"])
            .set("max_client_conn", 2000)
            .pool_size(4)
            .mode("transaction")
            .user_secret("postgres", "")
    }

    /// A key of `[ringbouncer]`.
    pub fn set(mut self, key: &str, value: impl Into<Value>) -> Topology {
        self.settings.insert(key.into(), value.into());
        self
    }

    pub fn pool_size(self, size: u32) -> Topology {
        self.set("default_pool_size", size)
    }

    pub fn mode(self, mode: &str) -> Topology {
        self.set("pool_mode", mode)
    }

    /// A database entry that leads to `database`, with further keys.
    pub fn database(self, entry: &str, database: &Database, keys: &[(&str, &str)]) -> Topology {
        let name = [("dbname", database.name.as_str())];
        self.database_at(entry, database.postgres.address(), &[&name, keys].concat())
    }

    /// A database entry that leads to any address.
    pub fn database_at(
        mut self,
        entry: &str,
        address: SocketAddr,
        keys: &[(&str, &str)],
    ) -> Topology {
        let mut table = Table::new();
        table.insert("host".into(), address.ip().to_string().into());
        table.insert("port".into(), i64::from(address.port()).into());
        for (key, value) in keys {
            table.insert((*key).into(), (*value).into());
        }
        self.databases.insert(entry.into(), table.into());
        self
    }

    /// A key of `[users.NAME]`.
    pub fn user(mut self, name: &str, key: &str, value: impl Into<Value>) -> Topology {
        let entry = self
            .users
            .entry(name)
            .or_insert_with(|| Table::new().into());
        entry
            .as_table_mut()
            .unwrap()
            .insert(key.into(), value.into());
        self
    }

    /// Another pooler.
    pub fn peer(mut self, id: u16, address: SocketAddr) -> Topology {
        let mut table = Table::new();
        table.insert("host".into(), address.ip().to_string().into());
        table.insert("port".into(), i64::from(address.port()).into());
        self.peers.insert(id.to_string(), table.into());
        self
    }

    /// A line of the user list.
    pub fn user_secret(mut self, name: &str, secret: &str) -> Topology {
        self.userlist
            .push_str(&format!("\"{name}\" \"{secret}\"\n"));
        self
    }

    /// Writes the configuration into `directory`; the path of the file.
    pub fn write(&self, directory: &Path) -> PathBuf {
        let userlist = directory.join("userlist.txt");
        fs::write(&userlist, &self.userlist).unwrap();
        let mut settings = self.settings.clone();
        settings.insert("auth_file".into(), userlist.to_str().unwrap().into());
        let directory_text = directory.to_str().unwrap();
        settings
            .entry("unix_socket_dir")
            .or_insert_with(|| directory_text.into());
        let mut file = Table::new();
        file.insert("ringbouncer".into(), settings.into());
        file.insert("databases".into(), self.databases.clone().into());
        file.insert("users".into(), self.users.clone().into());
        file.insert("peers".into(), self.peers.clone().into());
        let path = directory.join("ringbouncer.toml");
        fs::write(&path, toml::to_string(&file).unwrap()).unwrap();
        path
    }
}

/// A running pooler. Dropping it stops it and checks that it went in peace.
pub struct Pooler {
    pub address: SocketAddr,
    pub unix: Option<PathBuf>,
    pub shards: usize,
    child: Child,
    directory: TempDir,
    log: Arc<Mutex<String>>,
    exit: Option<ExitStatus>,
}

impl Pooler {
    #[track_caller]
    pub fn start(topology: &Topology) -> Pooler {
        Pooler::try_start(topology)
            .unwrap_or_else(|log| panic!("the pooler does not start:\n{log}"))
    }

    /// The same with further arguments or environment.
    #[track_caller]
    pub fn start_with(topology: &Topology, amend: impl FnOnce(&mut Command)) -> Pooler {
        let started = Pooler::spawn(topology, amend);
        started.unwrap_or_else(|log| panic!("the pooler does not start:\n{log}"))
    }

    /// The running program, or its log if it does not become ready.
    pub fn try_start(topology: &Topology) -> Result<Pooler, String> {
        Pooler::spawn(topology, |_| {})
    }

    fn spawn(topology: &Topology, amend: impl FnOnce(&mut Command)) -> Result<Pooler, String> {
        Pooler::launch(|directory| topology.write(directory), amend)
    }

    /// The program with the file that `write` makes in its directory.
    #[track_caller]
    pub fn start_file(write: impl FnOnce(&Path) -> PathBuf) -> Pooler {
        Pooler::launch(write, |_| {})
            .unwrap_or_else(|log| panic!("the pooler does not start:\n{log}"))
    }

    /// The same with a file that does not say how many shards.
    #[track_caller]
    pub fn start_ini(write: impl FnOnce(&Path) -> PathBuf, shards: usize) -> Pooler {
        let amend = |command: &mut Command| {
            command.args(["--shards", &shards.to_string()]);
        };
        Pooler::launch(write, amend)
            .unwrap_or_else(|log| panic!("the pooler does not start:\n{log}"))
    }

    /// The running program, or its log if it does not become ready.
    pub fn launch(
        write: impl FnOnce(&Path) -> PathBuf,
        amend: impl FnOnce(&mut Command),
    ) -> Result<Pooler, String> {
        let directory = tempfile::tempdir().unwrap();
        let mut command = program();
        command.arg("run").arg(write(directory.path()));
        amend(&mut command);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = spawn_mortal(command, Signal::KILL);
        let log = collect(child.stderr.take().unwrap());
        let lines = lines_of(child.stdout.take().unwrap());
        let Some(ready) = lines
            .recv_timeout(PATIENCE)
            .ok()
            .and_then(|line| ReadyLine::parse(&line))
        else {
            let _ = child.kill();
            let _ = child.wait();
            wait_until("the whole log", || Arc::strong_count(&log) == 1);
            return Err(log.lock().unwrap().clone());
        };
        let ReadyLine {
            address,
            unix,
            shards,
        } = ready;
        Ok(Pooler {
            address,
            unix,
            shards,
            child,
            directory,
            log,
            exit: None,
        })
    }

    /// Where its configuration is.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Replaces the configuration file; no reload yet.
    pub fn rewrite(&self, topology: &Topology) {
        topology.write(self.directory.path());
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// The program's end, if it comes before the deadline.
    pub fn wait_exit(&mut self) -> Option<ExitStatus> {
        holds_within(PATIENCE, || !self.is_running());
        self.exit
    }

    pub fn is_running(&mut self) -> bool {
        self.exit = self.exit.or(self.child.try_wait().unwrap());
        self.exit.is_none()
    }

    /// What it wrote to standard error so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Waits until its log has `text`: what it wrote before it answered may reach us after the answer.
    #[track_caller]
    pub fn wait_log(&self, text: &str) {
        wait_until(text, || self.log().contains(text));
    }

    /// One console command on a connection of its own.
    #[track_caller]
    pub fn console(&self, command: &str) -> Reply {
        Client::login(self.address, "ringbouncer").query(command)
    }

    /// The same as the owner of the process, whom no method of logging in keeps out.
    #[track_caller]
    pub fn as_owner(&self, command: &str) -> Reply {
        let path = self.unix.as_ref().expect("a Unix socket");
        let mut client = Client::connect_unix(path);
        let params = [("user", "pgbouncer"), ("database", "pgbouncer")];
        let reply = client.start(PROTOCOL_3_0, &params);
        assert!(reply.error.is_none(), "{reply:?}");
        client.query(command)
    }

    /// The sum of one column of `SHOW POOLS` over the pools of a database entry.
    #[track_caller]
    pub fn pools(&self, entry: &str, column: &str) -> u64 {
        let table = self.console("SHOW POOLS").table();
        let rows = table.iter().filter(|row| row["database"] == entry);
        rows.map(|row| row[column].parse::<u64>().unwrap()).sum()
    }

    /// One number of `SHOW STATS` for a database entry; 0 if it is not listed.
    #[track_caller]
    pub fn stats(&self, entry: &str, column: &str) -> u64 {
        let table = self.console("SHOW STATS").table();
        let row = table.iter().find(|row| row["database"] == entry);
        row.map_or(0, |row| row[column].parse().unwrap())
    }

    /// The current value of a setting.
    #[track_caller]
    pub fn setting(&self, key: &str) -> String {
        let table = self.console("SHOW CONFIG").table();
        let row = table.iter().find(|row| row["key"] == key);
        row.unwrap_or_else(|| panic!("no setting {key}"))
            .get("value")
            .cloned()
            .unwrap_or_default()
    }

    /// Resident memory in bytes.
    pub fn resident_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .unwrap();
        line.split_whitespace()
            .nth(1)
            .unwrap()
            .parse::<u64>()
            .unwrap()
            * 1024
    }

    /// Open file descriptors.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid()))
            .unwrap()
            .count()
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let alive = self.is_running();
        if alive {
            self.signal(Signal::QUIT);
        }
        let exit = self.wait_exit();
        if exit.is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        let log = self.log();
        if thread::panicking() {
            eprintln!("--- the pooler ended with {exit:?}; its log:\n{log}---");
            return;
        }
        assert!(
            exit.is_some_and(|exit| exit.success()),
            "ended with {exit:?}; its log:\n{log}"
        );
        assert!(!log.contains("panicked at"), "the pooler panicked:\n{log}");
    }
}

/// One column of SHOW SHARDS, shard by shard. Of the clients that it counts this console is one; who asks on a connection of
/// its own each time may find the last one counted, too.
#[track_caller]
pub fn of_shards(console: &mut Client, column: &str) -> Vec<u64> {
    let table = console.query("SHOW SHARDS").table();
    table
        .iter()
        .map(|row| row[column].parse().unwrap())
        .collect()
}

/// The program under test, without settings from the environment: the one just built, or RINGBOUNCER_BIN.
pub fn program() -> Command {
    let given = std::env::var_os("RINGBOUNCER_BIN");
    let mut command = Command::new(given.unwrap_or(env!("CARGO_BIN_EXE_ringbouncer").into()));
    command.env_remove("RINGBOUNCER_SHARDS");
    command
}

/// `ready tcp=127.0.0.1:40123 unix=/path/.s.PGSQL.40123 shards=3 pid=4711`
struct ReadyLine {
    address: SocketAddr,
    unix: Option<PathBuf>,
    shards: usize,
}

impl ReadyLine {
    fn parse(line: &str) -> Option<ReadyLine> {
        let words = line.strip_prefix("ready ")?;
        let word = |key| {
            words
                .split_whitespace()
                .find_map(|word| word.strip_prefix(key))
        };
        Some(ReadyLine {
            address: word("tcp=")?.parse().ok()?,
            unix: word("unix=").map(PathBuf::from),
            shards: word("shards=")?.parse().ok()?,
        })
    }
}

/// Everything that comes out of a stream, as it comes.
pub fn collect(mut stream: impl Read + Send + 'static) -> Arc<Mutex<String>> {
    let log = Arc::new(Mutex::new(String::new()));
    let log_here = log.clone();
    thread::spawn(move || {
        let mut chunk = [0; 4096];
        while let Ok(count @ 1..) = stream.read(&mut chunk) {
            log_here
                .lock()
                .unwrap()
                .push_str(&String::from_utf8_lossy(&chunk[..count]));
        }
    });
    log
}

fn lines_of(stream: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    receiver
}
