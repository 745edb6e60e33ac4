//! A PostgreSQL that belongs to this test process alone and dies with it.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::thread;

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use super::certs::{Authority, Signed};
use super::peer::{Client, Reply};
use super::ports::free_port;
use super::wait::{Over, PATIENCE, holds_within, wait_until};

/// One cluster: its data directory and the postmaster that runs on it.
pub struct Postgres {
    data: PathBuf,
    running: Mutex<Option<Running>>,
    port: AtomicUsize,
}

/// Members of these roles must give a password on TCP; everybody else is trusted.
pub const MUST_SCRAM: &str = "must_scram";
pub const MUST_MD5: &str = "must_md5";
pub const MUST_PASSWORD: &str = "must_password";

/// Only in a cluster that encrypts.
pub const MUST_ENCRYPT: &str = "must_encrypt";
pub const MUST_NOT_ENCRYPT: &str = "must_not_encrypt";
pub const MUST_CERTIFY: &str = "must_certify";

impl Postgres {
    /// The cluster that most tests share, each with a database of its own.
    pub fn shared() -> &'static Arc<Postgres> {
        static SHARED: OnceLock<Arc<Postgres>> = OnceLock::new();
        SHARED.get_or_init(Postgres::own)
    }

    /// A cluster that encrypts, with a certificate of [`Postgres::authority`]. Beside the rules of the others:
    /// a role of [`MUST_ENCRYPT`] must, of [`MUST_NOT_ENCRYPT`] must not, and one of [`MUST_CERTIFY`] must show
    /// a certificate of the same authority with its own name.
    pub fn encrypted() -> &'static Arc<Postgres> {
        static ENCRYPTED: OnceLock<Arc<Postgres>> = OnceLock::new();
        ENCRYPTED.get_or_init(|| Postgres::with(|data| {
            let own = Postgres::authority().sign();
            Postgres::present(data, &own);
            let root = data.join("root.crt");
            fs::copy(&Postgres::authority().root.certificate, &root).unwrap();
            own_file(&root);
            let settings = "ssl = on\nssl_cert_file = 'server.crt'\nssl_key_file = 'server.key'\nssl_ca_file = 'root.crt'\n";
            append(&data.join("postgresql.conf"), settings);
            let rules = format!(
                "hostssl all +{MUST_ENCRYPT} 127.0.0.1/32 trust\nhost all +{MUST_ENCRYPT} 127.0.0.1/32 reject\n\
                 hostnossl all +{MUST_NOT_ENCRYPT} 127.0.0.1/32 trust\nhost all +{MUST_NOT_ENCRYPT} 127.0.0.1/32 reject\n\
                 hostssl all +{MUST_CERTIFY} 127.0.0.1/32 cert\nhost all +{MUST_CERTIFY} 127.0.0.1/32 reject\n"
            );
            let hba = data.join("pg_hba.conf");
            fs::write(&hba, rules + &fs::read_to_string(&hba).unwrap()).unwrap();
        }))
    }

    /// Who has signed the certificate of [`Postgres::encrypted`].
    pub fn authority() -> &'static Authority {
        static AUTHORITY: OnceLock<Authority> = OnceLock::new();
        AUTHORITY.get_or_init(|| Authority::new("authority of the test cluster"))
    }

    fn present(data: &Path, own: &Signed) {
        for (from, name) in [(&own.certificate, "server.crt"), (&own.key, "server.key")] {
            let to = data.join(name);
            fs::copy(from, &to).unwrap();
            super::certs::private(&to);
            own_file(&to);
        }
    }

    /// A cluster of one's own, for tests that stop it.
    pub fn own() -> Arc<Postgres> {
        Postgres::with(|_| {})
    }

    /// A cluster of one's own, its data directory prepared before it starts.
    pub fn with(prepare: impl FnOnce(&Path)) -> Arc<Postgres> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let data = Home::get()
            .path
            .join(format!("data{}", COUNT.fetch_add(1, Ordering::Relaxed)));
        run_to_end(Command::new("cp").arg("-a").arg(template()).arg(&data));
        prepare(&data);
        let postgres = Postgres {
            data,
            running: Mutex::new(None),
            port: AtomicUsize::new(0),
        };
        postgres.start();
        let mut client = Client::login(postgres.address(), "postgres");
        for role in [
            MUST_SCRAM,
            MUST_MD5,
            MUST_PASSWORD,
            MUST_ENCRYPT,
            MUST_NOT_ENCRYPT,
            MUST_CERTIFY,
        ] {
            client.value(&format!("create role {role}"));
        }
        Arc::new(postgres)
    }

    /// Where it listens; the port stays the same after a restart unless somebody took it.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port.load(Ordering::Acquire) as u16))
    }

    /// The directory of its Unix socket.
    pub fn socket_dir(&self) -> &Path {
        &self.data
    }

    /// Starts the postmaster, on the port it had before if that is free.
    pub fn start(&self) {
        let mut running = self.running.lock().unwrap();
        for _ in 0..20 {
            let port = Some(self.address().port())
                .filter(|port| *port > 0)
                .unwrap_or_else(free_port);
            if let Some(started) = Running::try_start(&self.data, port) {
                self.port.store(port as usize, Ordering::Release);
                *running = Some(started);
                return;
            }
            self.port.store(0, Ordering::Release);
        }
        let log = fs::read_to_string(self.data.join("server.log")).unwrap_or_default();
        panic!("postgres does not start: {log}");
    }

    /// Kills it as a crash would (immediate shutdown) and waits until it is gone.
    pub fn kill(&self) {
        drop(self.running.lock().unwrap().take());
    }

    /// A fresh database.
    pub fn database(self: &Arc<Self>) -> Database {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("test{}", COUNT.fetch_add(1, Ordering::Relaxed));
        Client::login(self.address(), "postgres").value(&format!("create database {name}"));
        Database {
            name,
            postgres: self.clone(),
        }
    }

    /// A fresh role with a password (stored as `encryption` says) and membership in `group`; its name.
    pub fn role(&self, group: &str, encryption: &str, password: &str) -> String {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("role{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let mut client = Client::login(self.address(), "postgres");
        client.value(&format!("set password_encryption = '{encryption}'"));
        client.value(&format!(
            "create role {name} login password '{password}' in role {group}"
        ));
        name
    }

    /// The secret of a role as `pg_authid` stores it.
    pub fn stored_secret(&self, role: &str) -> String {
        let mut client = Client::login(self.address(), "postgres");
        client.value(&format!(
            "select rolpassword from pg_authid where rolname = '{role}'"
        ))
    }
}

/// Somebody's connections to this database, except those of [`Database::direct`], which are seen for a moment after
/// they were closed; not the workers of a parallel scan.
pub const CLIENT_BACKENDS: &str = "from pg_stat_activity where datname = current_database() \
                                   and application_name <> 'observer' and backend_type = 'client backend'";

/// A database of one test.
pub struct Database {
    pub name: String,
    pub postgres: Arc<Postgres>,
}

impl Database {
    /// A client straight to PostgreSQL.
    #[track_caller]
    pub fn direct(&self) -> Client {
        let params = [
            ("user", "postgres"),
            ("database", &self.name),
            ("application_name", "observer"),
        ];
        Client::login_with(self.postgres.address(), &params)
    }

    /// Runs one statement straight on PostgreSQL.
    #[track_caller]
    pub fn sql(&self, sql: &str) -> Reply {
        let reply = self.direct().query(sql);
        assert!(reply.error.is_none() && !reply.closed, "{sql}: {reply:?}");
        reply
    }

    /// Backends in this database, the one that asks not counted, for which `condition` holds.
    #[track_caller]
    pub fn backends(&self, condition: &str) -> usize {
        let sql = format!("select count(*) {CLIENT_BACKENDS} and ({condition})");
        self.sql(&sql).value().parse().unwrap()
    }

    /// The most connections, of any database, for which `condition` held at any moment while `work` ran.
    pub fn most_backends(&self, condition: &str, work: impl FnOnce()) -> u32 {
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            let watch = scope.spawn(|| {
                let sql = count_anywhere(condition);
                let (mut direct, mut most) = (self.direct(), 0);
                while !is_over.load(Ordering::Acquire) {
                    most = most.max(direct.value(&sql).parse::<u32>().unwrap());
                }
                most
            });
            let over = Over(&is_over);
            work();
            drop(over);
            watch.join().unwrap()
        })
    }

    /// How many connections there are, of any database, for which `condition` holds.
    pub fn backends_anywhere(&self, condition: &str) -> u32 {
        let count = self.sql(&count_anywhere(condition));
        count.value().parse().unwrap()
    }

    /// Ends all backends of this database, those of [`Database::direct`] not, and waits until they have gone; how many.
    #[track_caller]
    pub fn kill_all(&self) -> usize {
        let sql = format!("select pid, pg_terminate_backend(pid) {CLIENT_BACKENDS}");
        let rows = self.sql(&sql).rows;
        let pids: Vec<_> = rows.iter().map(|row| row[0].as_deref().unwrap()).collect();
        if !pids.is_empty() {
            self.wait_backends(0, &format!("pid in ({})", pids.join(", ")));
        }
        pids.len()
    }

    /// Waits until exactly `count` backends of this database satisfy `condition`.
    #[track_caller]
    pub fn wait_backends(&self, count: usize, condition: &str) {
        let what = format!("{count} backends: {condition}");
        wait_until(&what, || self.backends(condition) == count);
    }
}

fn count_anywhere(condition: &str) -> String {
    format!(
        "select count(*) from pg_stat_activity where application_name <> 'observer' \
         and backend_type = 'client backend' and {condition}"
    )
}

/// A live postmaster. Dropping it kills it and waits for its end.
struct Running {
    pid: Pid,
    gone: Arc<AtomicBool>,
}

impl Running {
    fn try_start(data: &Path, port: u16) -> Option<Running> {
        let _ = fs::remove_file(data.join("postmaster.pid"));
        let command = postmaster_command(data, port);
        let (sender, receiver) = mpsc::channel();
        let gone = Arc::new(AtomicBool::new(false));
        let gone_here = gone.clone();
        // The parent-death signal fires when the spawning thread ends, so this thread stays until the child does.
        thread::spawn(move || {
            let mut child = spawn_mortal(command, Signal::QUIT);
            sender.send(Pid::from_child(&child)).unwrap();
            let _ = child.wait();
            gone_here.store(true, Ordering::Release);
        });
        let running = Running {
            pid: receiver.recv().unwrap(),
            gone,
        };
        running.becomes_ready(data).then_some(running)
    }

    fn becomes_ready(&self, data: &Path) -> bool {
        let ready = || {
            let file = fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
            file.lines()
                .nth(7)
                .is_some_and(|status| status.trim() == "ready")
        };
        let settled = || self.gone.load(Ordering::Acquire) || ready();
        holds_within(PATIENCE, settled) && !self.gone.load(Ordering::Acquire)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.gone.load(Ordering::Acquire) {
            let _ = kill_process(self.pid, Signal::QUIT);
            holds_within(PATIENCE, || self.gone.load(Ordering::Acquire));
        }
    }
}

fn postmaster_command(data: &Path, port: u16) -> Command {
    let log = fs::File::options()
        .create(true)
        .append(true)
        .open(data.join("server.log"))
        .unwrap();
    let mut command = as_postgres_user(&binaries().join("postgres"));
    command.arg("-D").arg(data).arg("-k").arg(data).args([
        "-h",
        "127.0.0.1",
        "-p",
        &port.to_string(),
    ]);
    let settings = [
        "fsync=off",
        "synchronous_commit=off",
        "full_page_writes=off",
        "autovacuum=off",
        "max_connections=300",
        "shared_buffers=64MB",
        "max_prepared_transactions=4",
        "log_connections=on",
    ];
    settings.iter().for_each(|setting| {
        command.args(["-c", setting]);
    });
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log);
    command
}

/// Spawns a child that gets `signal` when this process ends, whatever becomes of the calling thread.
pub fn spawn_lasting(command: Command, signal: Signal) -> Child {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        sender.send(spawn_mortal(command, signal)).unwrap();
        loop {
            thread::park();
        }
    });
    receiver.recv().unwrap()
}

/// Spawns a child that gets `signal` when the calling thread ends.
#[allow(unsafe_code)]
pub fn spawn_mortal(mut command: Command, signal: Signal) -> Child {
    // SAFETY: between fork and exec the closure makes one system call and touches no memory of the parent's.
    unsafe {
        command.pre_exec(move || {
            Ok(rustix::process::set_parent_process_death_signal(Some(
                signal,
            ))?)
        });
    }
    command
        .spawn()
        .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"))
}

/// A data directory as initdb left it; clusters are copies of it.
fn template() -> &'static Path {
    static TEMPLATE: OnceLock<PathBuf> = OnceLock::new();
    TEMPLATE.get_or_init(|| {
        let data = Home::get().path.join("template");
        let mut initdb = as_postgres_user(&binaries().join("initdb"));
        initdb.args([
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C",
            "--no-sync",
        ]);
        run_to_end(initdb.args(["--no-instructions", "-D"]).arg(&data));
        let hba = format!(
            "local all all trust\n\
             host all +{MUST_SCRAM} 127.0.0.1/32 scram-sha-256\n\
             host all +{MUST_MD5} 127.0.0.1/32 md5\n\
             host all +{MUST_PASSWORD} 127.0.0.1/32 password\n\
             host all all 127.0.0.1/32 trust\n"
        );
        fs::write(data.join("pg_hba.conf"), hba).unwrap();
        data
    })
}

fn append(path: &Path, text: &str) {
    fs::write(path, fs::read_to_string(path).unwrap() + text).unwrap();
}

/// Gives a file to the user that PostgreSQL runs as.
fn own_file(path: &Path) {
    if let Some((uid, gid)) = unprivileged_user() {
        std::os::unix::fs::chown(path, Some(uid), Some(gid)).unwrap();
    }
}

fn run_to_end(command: &mut Command) {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// PostgreSQL refuses to run as root: then it runs as `postgres` or `nobody`.
fn as_postgres_user(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_remove("PGDATA").env("LC_ALL", "C");
    if let Some((uid, gid)) = unprivileged_user() {
        command.uid(uid).gid(gid).current_dir("/");
    }
    command
}

pub fn unprivileged_user() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let passwd = fs::read_to_string("/etc/passwd").unwrap();
    let find = |name: &str| {
        let line = passwd
            .lines()
            .find(|line| line.split(':').next() == Some(name))?;
        let mut fields = line.split(':').skip(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    find("postgres").or_else(|| find("nobody"))
}

/// Where `initdb`, `postgres` and `psql` are: PG_BINDIR, else the newest Debian directory, else pg_config.
pub fn binaries() -> &'static Path {
    static BINARIES: OnceLock<PathBuf> = OnceLock::new();
    BINARIES.get_or_init(|| {
        let given = std::env::var_os("PG_BINDIR").map(PathBuf::from);
        given
            .or_else(newest_debian)
            .or_else(from_pg_config)
            .expect("PostgreSQL binaries; set PG_BINDIR")
    })
}

fn newest_debian() -> Option<PathBuf> {
    let entries = fs::read_dir("/usr/lib/postgresql").ok()?.flatten();
    let versions = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let found = |version: &u32| PathBuf::from(format!("/usr/lib/postgresql/{version}/bin"));
    versions
        .filter(|version| found(version).join("postgres").exists())
        .max()
        .map(|version| found(&version))
}

fn from_pg_config() -> Option<PathBuf> {
    let output = Command::new("pg_config").arg("--bindir").output().ok()?;
    Some(PathBuf::from(String::from_utf8(output.stdout).ok()?.trim()))
}

/// The directory of this test process; removed, with whatever still runs in it, when the process exits.
struct Home {
    path: PathBuf,
}

const HOME_PREFIX: &str = "ringbouncer-it-";

impl Home {
    fn get() -> &'static Home {
        static HOME: OnceLock<Home> = OnceLock::new();
        HOME.get_or_init(|| {
            remove_homes_of_dead_processes();
            let path = std::env::temp_dir().join(format!("{HOME_PREFIX}{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            if let Some((uid, gid)) = unprivileged_user() {
                std::os::unix::fs::chown(&path, Some(uid), Some(gid)).unwrap();
            }
            at_exit(stop_everything);
            Home { path }
        })
    }
}

#[allow(unsafe_code)]
fn at_exit(action: extern "C" fn()) {
    // SAFETY: `action` is a plain function that stays valid for the life of the process.
    assert_eq!(unsafe { libc::atexit(action) }, 0);
}

extern "C" fn stop_everything() {
    let home = &Home::get().path;
    let directories = fs::read_dir(home).into_iter().flatten().flatten();
    for data in directories.map(|entry| entry.path()) {
        let file = fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
        let pid = file
            .lines()
            .next()
            .and_then(|line| line.parse().ok())
            .and_then(Pid::from_raw);
        if let Some(pid) = pid.filter(|pid| kill_process(*pid, Signal::QUIT).is_ok()) {
            holds_within(PATIENCE, || test_kill_process(pid).is_err());
        }
    }
    let _ = fs::remove_dir_all(home);
}

fn remove_homes_of_dead_processes() {
    for entry in fs::read_dir(std::env::temp_dir())
        .into_iter()
        .flatten()
        .flatten()
    {
        let name = entry.file_name().into_string().unwrap_or_default();
        let pid = name
            .strip_prefix(HOME_PREFIX)
            .and_then(|pid| Pid::from_raw(pid.parse().ok()?));
        if pid.is_some_and(|pid| test_kill_process(pid).is_err()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
