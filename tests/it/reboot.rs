//! The online restart: `-R` takes the place of the process that serves.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use crate::support::drop_in::*;
use crate::support::peer::cancel;
use crate::support::postgres::{Postgres, spawn_mortal};
use crate::support::scrape::exchange;
use crate::support::sockets::listeners;
use crate::support::wait::{Over, pace_until};
use crate::support::wire::*;
use crate::support::*;

/// Connections of each caller in a second, and after an event that are enough to go on.
const CALLS_PER_SECOND: u32 = 150;
const CALLS_ENOUGH: usize = 300;

fn database() -> Database {
    Postgres::shared().database()
}

/// The process that has been started with `-R` and the file of another.
struct Successor {
    child: Child,
}

impl Successor {
    /// Starts it and waits until it serves and the other has been told.
    #[track_caller]
    fn start(brand: Brand, old: &DropIn) -> Successor {
        let mut command = brand.command();
        command
            .args(["-q", "-R"])
            .arg(old.path("pgbouncer.ini"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut child = spawn_mortal(command, Signal::KILL);
        let mut line = String::new();
        let mut told = BufReader::new(child.stdout.take().unwrap());
        told.read_line(&mut line).unwrap();
        assert!(line.starts_with("ready "), "{line:?}\n{}", old.log());
        Successor { child }
    }

    #[track_caller]
    fn end(mut self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What comes of a start with `-R` that fails.
fn refused(brand: Brand, old: &DropIn) -> String {
    let mut command = brand.command();
    let Output { status, stderr, .. } = command
        .arg("-R")
        .arg(old.path("pgbouncer.ini"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&stderr).into_owned();
    assert_eq!(status.code(), Some(1), "{told}");
    told
}

/// Replaces a part of the configuration file, which nobody reads just now.
#[track_caller]
fn amend(old: &DropIn, part: &str, new: &str) {
    let file = old.path("pgbouncer.ini");
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains(part), "{text}");
    fs::write(&file, text.replacen(part, new, 1)).unwrap();
}

fn pid_in(file: &Path) -> u32 {
    fs::read_to_string(file).unwrap().trim().parse().unwrap()
}

fn socket_of(process: &DropIn) -> std::path::PathBuf {
    process.path(&format!(".s.PGSQL.{}", process.address.port()))
}

/// The files of a process that serves, as no other has them.
fn marks(process: &DropIn) -> (u64, u32) {
    let socket = fs::symlink_metadata(socket_of(process)).unwrap();
    (socket.ino(), pid_in(&process.path("pid")))
}

/// A setting of whoever serves at the Unix socket, told to its owner.
#[track_caller]
fn setting_at_the_socket(process: &DropIn, key: &str) -> String {
    let mut console = process.by_socket();
    let params = [("user", "postgres"), ("database", "pgbouncer")];
    assert!(console.start(PROTOCOL_3_0, &params).error.is_none());
    let table = console.query("SHOW CONFIG").table();
    let row = table.into_iter().find(|row| row["key"] == key);
    row.expect("such a setting")["value"].clone()
}

/// Where a caller connects.
#[derive(Clone, Copy)]
enum Door<'a> {
    Tcp(SocketAddr),
    Unix(&'a Path),
}

impl Door<'_> {
    #[track_caller]
    fn knock(self) -> Client {
        match self {
            Door::Tcp(address) => Client::connect(address),
            Door::Unix(path) => Client::connect_unix(path),
        }
    }
}

/// Logs in and asks, each time on a connection of its own, until `is_over`.
fn call(door: Door<'_>, database: &str, calls: &AtomicUsize, is_over: &AtomicBool) {
    let mut due = Instant::now();
    while !is_over.load(Ordering::Acquire) {
        let mut client = door.knock();
        let params = [("user", "postgres"), ("database", database)];
        let reply = client.start(PROTOCOL_3_0, &params);
        assert_eq!(reply.status, b'I', "{reply:?}");
        assert_eq!(client.value("select 'served'"), "served");
        calls.fetch_add(1, Ordering::Relaxed);
        due += Duration::from_secs(1) / CALLS_PER_SECOND;
        pace_until(due);
    }
}

both_shards!(
    online_restart_refuses_nobody_and_cuts_nobody_off,
    |shards| {
        let brand = Brand::Ringbouncer(shards);
        let metrics = free_port();
        let more = format!(
            "pool_mode = transaction\nmax_client_conn = 10000\nmetrics_listen = 127.0.0.1:{metrics}"
        );
        let mut old = DropIn::start(brand, database(), &more);
        let (address, name, socket) = (old.address, old.database.name.clone(), socket_of(&old));
        old.database.sql("create table t(n int)");
        let mut staying = old.client();
        staying.exchange(&[parse("s", "select 'prepared'"), sync()].concat());
        assert_eq!(
            staying.query("begin; insert into t values (1)").status,
            b'T'
        );
        // Who they are they say when the old process is on its way.
        let mut late = [Door::Tcp(address), Door::Unix(&socket)].map(Door::knock);
        let before = marks(&old);
        amend(
            &old,
            "pool_mode = transaction",
            "pool_mode = transaction\ndefault_pool_size = 7",
        );
        let (calls, is_over) = (AtomicUsize::new(0), AtomicBool::new(false));
        let more_calls = || {
            let enough = calls.load(Ordering::Relaxed) + CALLS_ENOUGH;
            wait_until("more calls", || calls.load(Ordering::Relaxed) >= enough);
        };
        let new = thread::scope(|scope| {
            let _over = Over(&is_over);
            for door in [Door::Tcp(address), Door::Unix(&socket)].repeat(2) {
                let (name, calls, is_over) = (&name, &calls, &is_over);
                scope.spawn(move || call(door, name, calls, is_over));
            }
            more_calls();
            let new = Successor::start(brand, &old);
            more_calls();
            new
        });
        let after = marks(&old);
        assert!(after.0 != before.0 && after.1 == new.child.id() && before.1 == old.pid());
        assert_eq!(setting_at_the_socket(&old, "default_pool_size"), "7");
        assert!(listeners(old.pid()).is_empty(), "the old one listens");
        let scrape = exchange(
            ([127, 0, 0, 1], metrics).into(),
            b"GET /metrics HTTP/1.0\r\n\r\n",
        );
        assert_eq!(scrape.status, 200);
        for client in &mut late {
            let reply = client.start(PROTOCOL_3_0, &[("user", "postgres"), ("database", &name)]);
            assert_eq!(reply.status, b'I', "{reply:?}");
        }
        assert_eq!(staying.query("insert into t values (2)").status, b'T');
        let asleep = late.first_mut().unwrap();
        asleep.send(&query("select pg_sleep(600)"));
        old.database
            .wait_backends(1, "query like '%pg_sleep%' and state = 'active'");
        // It comes to the new process.
        cancel(address, &asleep.key);
        assert_eq!(asleep.reply().code(), "57014");
        assert_eq!(staying.query("commit").complete, ["COMMIT"]);
        let prepared = staying.exchange(&[run_prepared("s", &[]), sync()].concat());
        assert_eq!(prepared.value(), "prepared");
        assert_eq!(old.database.sql("select count(*) from t").value(), "2");
        drop(late);
        assert!(test_kill_process(Pid::from_raw(old.pid() as i32).unwrap()).is_ok());
        drop(staying);
        assert!(
            old.wait_exit()
                .expect("an end with the last client")
                .success()
        );
        assert_eq!(marks(&old), after);
        let left = fs::read_dir(socket.parent().unwrap()).unwrap().flatten();
        let sockets = left.filter(|file| file.file_name().to_string_lossy().starts_with('.'));
        assert_eq!(sockets.count(), 1, "only that of the new process is left");
        assert_eq!(old.client().value("select 'served'"), "served");
        new.end();
        assert!(!socket.exists() && !old.path("pid").exists());
    }
);

// As in PgBouncer, until 1.26 gave it up: a script may always say -R.
drop_in!(
    online_restart_is_a_start_where_nobody_serves,
    until(1, 26),
    |brand| {
        for more in ["", "unix_socket_dir ="] {
            let drop_in = DropIn::start_with(brand, database(), more, |command| {
                command.arg("-R");
            });
            assert_eq!(drop_in.client().value("select 1"), "1");
            if more.is_empty() {
                let log = drop_in.log();
                let text = "old process not found, try to continue normally";
                assert!(log.contains(text), "{log}");
            }
        }
    }
);

both_shards!(failed_restart_leaves_the_old_process_as_it_was, |shards| {
    let brand = Brand::Ringbouncer(shards);
    let old = DropIn::start(brand, database(), "");
    let (before, mut client) = (marks(&old), old.client());
    let stranger = TcpListener::bind(("127.0.0.2", old.address.port())).unwrap();
    let elsewhere = "127.0.0.1, 127.0.0.2";
    for (part, new, reason) in [
        ("auth_type = trust", "auth_type = luck", "auth_type"),
        (
            "listen_addr = 127.0.0.1",
            &*format!("listen_addr = {elsewhere}"),
            "cannot listen",
        ),
        ("pidfile = ", "pidfile = /no/such/directory/", "pidfile"),
    ] {
        amend(&old, part, new);
        let told = refused(brand, &old);
        assert!(told.contains(reason), "{told}");
        amend(&old, new, part);
        assert_eq!(marks(&old), before);
        assert!(!old.path(&format!(".new.{}", old.address.port())).exists());
        for _ in 0..20 {
            assert_eq!(old.client().value("select 'served'"), "served");
        }
    }
    drop(stranger);
    assert_eq!(client.value("select 'still served'"), "still served");
    // Nor does it hinder the next one.
    Successor::start(brand, &old).end();
});

both_shards!(
    process_that_holds_its_clients_back_is_not_relieved,
    |shards| {
        let brand = Brand::Ringbouncer(shards);
        let old = DropIn::start(brand, database(), "");
        let before = marks(&old);
        let entry = old.database.name.clone();
        for (hold, release) in [("PAUSE", "RESUME"), ("SUSPEND", "RESUME")]
            .map(|(hold, release)| (hold.to_owned(), release.to_owned()))
            .into_iter()
            .chain([(format!("PAUSE {entry}"), format!("RESUME {entry}"))])
        {
            // A suspension ends with its session.
            let mut console = Client::login(old.address, "pgbouncer");
            assert!(console.query(&hold).error.is_none());
            let told = refused(brand, &old);
            assert!(told.contains("RESUME it first"), "{hold}: {told}");
            assert!(console.query(&release).error.is_none());
            assert_eq!(marks(&old), before);
            assert_eq!(old.client().value("select 'served'"), "served");
        }
    }
);

// It has only PgBouncer's own -R to go by.
both_shards!(other_programs_are_not_relieved, |shards| {
    let old = DropIn::start(Brand::PgBouncer, database(), "");
    let before = marks(&old);
    let told = refused(Brand::Ringbouncer(shards), &old);
    assert!(told.contains("it is no Ringbouncer"), "{told}");
    assert_eq!(marks(&old), before);
    assert_eq!(old.client().value("select 'served'"), "served");
});

both_shards!(program_that_hangs_up_is_not_relieved, |shards| {
    let brand = Brand::Ringbouncer(shards);
    let mut old = DropIn::start(brand, database(), "");
    old.signal(Signal::QUIT);
    old.wait_exit().expect("an end");
    let other = UnixListener::bind(socket_of(&old)).unwrap();
    fs::set_permissions(socket_of(&old), Permissions::from_mode(0o777)).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| drop(other.accept().unwrap()));
        let told = refused(brand, &old);
        assert!(told.contains("cannot take over"), "{told}");
    });
    assert!(socket_of(&old).exists());
});

both_shards!(process_on_its_way_out_is_relieved_without_haste, |shards| {
    let brand = Brand::Ringbouncer(shards);
    let mut old = DropIn::start(brand, database(), "pool_mode = transaction");
    let mut staying = old.client();
    assert_eq!(staying.query("begin").status, b'T');
    old.signal(Signal::TERM);
    wait_until("it has closed its listeners", || {
        listeners(old.pid()).is_empty()
    });
    let new = Successor::start(brand, &old);
    // A second order to shut down would end it at once.
    assert_eq!(staying.query("commit").complete, ["COMMIT"]);
    assert_eq!(staying.value("select 'still served'"), "still served");
    drop(staying);
    assert!(old.wait_exit().expect("an end").success());
    assert_eq!(pid_in(&old.path("pid")), new.child.id());
    assert_eq!(old.client().value("select 'served'"), "served");
    new.end();
});

/// A process in the background, which outlives no failed test.
struct Daemon(Pid);

impl Daemon {
    /// Starts it in place of the process that has the pid file; when the command returns, all of it is done.
    #[track_caller]
    fn relieve(brand: Brand, file: &Path) -> Daemon {
        assert!(daemon(brand, file).wait().unwrap().success());
        Daemon::of(file)
    }

    /// The one that the pid file beside `file` names.
    #[track_caller]
    fn of(file: &Path) -> Daemon {
        let pid = pid_in(&file.with_file_name("pid"));
        Daemon(Pid::from_raw(pid as i32).unwrap())
    }

    fn is_gone(&self) -> bool {
        test_kill_process(self.0).is_err()
    }
}

/// The command that starts one.
fn daemon(brand: Brand, file: &Path) -> Child {
    let mut command = brand.command();
    command
        .args(["-d", "-q", "-R"])
        .arg(file)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.spawn().unwrap()
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::QUIT);
    }
}

both_shards!(daemons_relieve_each_other, |shards| {
    let brand = Brand::Ringbouncer(shards);
    let mut first = DropIn::start(brand, database(), "");
    let mut staying = first.client();
    let file = first.path("pgbouncer.ini");
    let second = Daemon::relieve(brand, &file);
    assert_ne!(second.0.as_raw_nonzero().get().unsigned_abs(), first.pid());
    assert_eq!(first.client().value("select 'served'"), "served");
    assert_eq!(staying.value("select 'still served'"), "still served");
    drop(staying);
    assert!(first.wait_exit().expect("an end").success());
    let third = Daemon::relieve(brand, &file);
    assert_ne!(second.0, third.0);
    wait_until("the second has gone", || second.is_gone());
    assert_eq!(first.client().value("select 'served'"), "served");
    kill_process(third.0, Signal::TERM).unwrap();
    wait_until("the third has gone", || third.is_gone());
    assert!(!socket_of(&first).exists() && !first.path("pid").exists());
});

both_shards!(only_one_restart_at_a_time_succeeds, |shards| {
    let brand = Brand::Ringbouncer(shards);
    let mut first = DropIn::start(brand, database(), "");
    let file = first.path("pgbouncer.ini");
    let commands = [(); 2].map(|()| daemon(brand, &file));
    let outcomes = commands.map(|mut command| command.wait().unwrap().success());
    assert!(outcomes.contains(&true), "{}", first.log());
    assert!(first.wait_exit().expect("an end").success());
    // If the other came late enough, it has relieved that one.
    let last = Daemon::of(&file);
    for _ in 0..20 {
        assert_eq!(first.client().value("select 'served'"), "served");
    }
    assert_eq!(setting_at_the_socket(&first, "max_client_conn"), "100");
    kill_process(last.0, Signal::TERM).unwrap();
    wait_until("it has gone", || last.is_gone());
    assert!(!socket_of(&first).exists() && !first.path("pid").exists());
});
