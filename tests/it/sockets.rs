//! Sockets as the kernel has them: options of connections and listeners, Unix sockets in and outside of the file system,
//! listeners that systemd passes on. What PgBouncer has, too, is run against it.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{Pid, Signal, kill_process};

use crate::support::drop_in::*;
use crate::support::postgres::{Postgres, spawn_mortal, unprivileged_user};
use crate::support::sockets::{Options, backlog, connection, deferral, listeners};
use crate::support::wire::PROTOCOL_3_0;
use crate::support::*;

fn database() -> Database {
    Postgres::shared().database()
}

/// The process's ends of a connection with a client and of one with its server.
fn both_ends(drop_in: &DropIn) -> [Options; 2] {
    let mut client = drop_in.client();
    client.value("select 1");
    let ends = [client.local_addr(), drop_in.database.postgres.address()];
    ends.map(|peer| Options::of(&connection(drop_in.pid(), peer)))
}

/// A number that the kernel has for every connection that asks for no other.
fn of_the_kernel(name: &str) -> u32 {
    let text = fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).unwrap();
    text.trim().parse().unwrap()
}

fn seconds(number: u32) -> Duration {
    Duration::from_secs(number.into())
}

// ---- connections ---------------------------------------------------------------------------------------------------

drop_in!(connections_have_the_options_of_the_file, |brand| {
    let more = "tcp_keepidle = 77\ntcp_keepintvl = 11\ntcp_keepcnt = 4\ntcp_user_timeout = 12345\n\
                tcp_socket_buffer = 50000";
    let drop_in = DropIn::start(brand, database(), more);
    let expected = Options {
        nodelay: true,
        keepalive: true,
        idle: seconds(77),
        interval: seconds(11),
        count: 4,
        user_timeout: Some(Duration::from_millis(12_345)),
        buffers: [100_000; 2],
    };
    assert_eq!(both_ends(&drop_in), [(); 2].map(|()| expected.clone()));
});

drop_in!(
    connections_are_probed_at_the_kernels_pace_by_default,
    |brand| {
        let drop_in = DropIn::start(brand, database(), "");
        for end in both_ends(&drop_in) {
            assert!(end.nodelay && end.keepalive, "{end:?}");
            assert_eq!(end.idle, seconds(of_the_kernel("tcp_keepalive_time")));
            assert_eq!(end.interval, seconds(of_the_kernel("tcp_keepalive_intvl")));
            assert_eq!(end.count, of_the_kernel("tcp_keepalive_probes"));
            assert_eq!(end.user_timeout, None);
        }
    }
);

drop_in!(connections_are_not_probed_if_told_so, |brand| {
    let drop_in = DropIn::start(brand, database(), "tcp_keepalive = 0\ntcp_keepidle = 77");
    for end in both_ends(&drop_in) {
        assert!(!end.keepalive, "{end:?}");
    }
});

drop_in!(options_of_a_reload_are_those_of_new_connections, |brand| {
    // A pool of one: another server that comes late, and is never used, would stay.
    let more =
        "tcp_keepidle = 77\ntcp_user_timeout = 12345\nserver_lifetime = 0\ndefault_pool_size = 1";
    let drop_in = DropIn::start(brand, database(), more);
    let (mut old, before) = (drop_in.client(), both_ends(&drop_in));
    drop_in.database.wait_backends(0, "true");
    drop_in.reload_with("tcp_keepidle = 77", "tcp_keepidle = 88");
    let again = "tcp_user_timeout = 12345\nserver_lifetime = 0\ntcp_socket_buffer = 60000";
    let reply = drop_in.reload_with("tcp_user_timeout = 12345\nserver_lifetime = 0", again);
    assert_eq!(reply.complete, ["RELOAD"]);
    let set = drop_in.console("SET tcp_keepintvl = 9");
    assert!(set.error.is_none(), "{set:?}");
    for (end, before) in both_ends(&drop_in).into_iter().zip(before) {
        let expected = Options {
            idle: seconds(88),
            interval: seconds(9),
            buffers: [120_000; 2],
            ..before
        };
        assert_eq!(end, expected);
    }
    let kept = Options::of(&connection(drop_in.pid(), old.local_addr()));
    assert_eq!(kept.idle, seconds(77));
    assert_eq!(old.value("select 'still here'"), "still here");
});

drop_in!(new_connections_are_not_probed_once_told_so, |brand| {
    let drop_in = DropIn::start(
        brand,
        database(),
        "tcp_keepalive = 1\nserver_lifetime = 0\ndefault_pool_size = 1",
    );
    assert!(both_ends(&drop_in).iter().all(|end| end.keepalive));
    drop_in.database.wait_backends(0, "true");
    let reply = drop_in.reload_with("tcp_keepalive = 1", "tcp_keepalive = 0");
    assert_eq!(reply.complete, ["RELOAD"]);
    assert!(both_ends(&drop_in).iter().all(|end| !end.keepalive));
});

// ---- listeners -----------------------------------------------------------------------------------------------------

drop_in!(as_many_connections_as_the_file_says_may_wait, |brand| {
    let drop_in = DropIn::start(brand, database(), "listen_backlog = 37");
    let of_tcp: Vec<_> = listeners(drop_in.pid()).iter().map(backlog).collect();
    let expected = match brand {
        Brand::PgBouncer => 1,
        Brand::Ringbouncer(shards) => shards,
    };
    assert_eq!(of_tcp, vec![37; expected]);
    // One more than that waits at a Unix socket (unix(7)), as long as nobody accepts.
    let port = drop_in.address.port();
    let path = drop_in.path(&format!(".s.PGSQL.{port}"));
    drop_in.signal(Signal::STOP);
    wait_until("it stands still", || is_stopped(drop_in.pid()));
    let waiting: Vec<_> = std::iter::from_fn(|| knock(&path)).take(100).collect();
    drop_in.signal(Signal::CONT);
    assert_eq!(waiting.len(), 38);
});

/// Whether no thread of the process runs.
fn is_stopped(pid: u32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let mut states = threads.map(|thread| fs::read_to_string(thread.unwrap().path().join("stat")));
    states.all(|stat| stat.is_ok_and(|stat| stat.contains(") T ")))
}

/// A connection that need not be accepted; none if there is no room for one.
fn knock(path: &Path) -> Option<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None);
    let (socket, address) = (socket.unwrap(), SocketAddrUnix::new(path).unwrap());
    match rustix::net::connect(&socket, &address) {
        Ok(()) => Some(socket),
        Err(rustix::io::Errno::AGAIN) => None,
        Err(error) => panic!("{}: {error}", path.display()),
    }
}

drop_in!(
    connections_are_held_back_until_they_say_something,
    |brand| {
        for (more, expected) in [("", true), ("tcp_defer_accept = 0", false)] {
            let drop_in = DropIn::start(brand, database(), more);
            for listener in listeners(drop_in.pid()) {
                assert_eq!(deferral(&listener) > 0, expected, "{more}");
            }
            assert_eq!(drop_in.client().value("select 1"), "1");
        }
    }
);

both_shards!(nobody_is_held_back_at_a_port_that_is_shared, |shards| {
    let brand = Brand::Ringbouncer(shards);
    let drop_in = DropIn::start(brand, database(), "so_reuseport = 1");
    for listener in listeners(drop_in.pid()) {
        assert_eq!(deferral(&listener), 0);
    }
});

// ---- Unix sockets --------------------------------------------------------------------------------------------------

/// A name for an abstract socket that nobody else has.
fn unused_name(directory: &Path) -> String {
    let unique = directory.file_name().unwrap().to_string_lossy();
    format!("@ringbouncer-{}-{unique}", std::process::id())
}

/// A client that has come by a Unix socket.
fn client_of(path: &Path, database: &str) -> Client {
    let mut client = Client::connect_unix(path);
    let params = [("user", "postgres"), ("database", database)];
    assert_eq!(client.start(PROTOCOL_3_0, &params).status, b'I');
    client
}

drop_in!(clients_and_servers_meet_at_abstract_sockets, |brand| {
    let directory = open_directory();
    let name = unused_name(directory.path());
    let here = format!("unix_socket_dir = {name}");
    let server = DropIn::start(brand, database(), &here);
    let (entry, port) = (&server.database.name, server.address.port());
    let mut client = client_of(&Path::new(&name).join(format!(".s.PGSQL.{port}")), entry);
    assert_eq!(
        client.value("select 'by an abstract name'"),
        "by an abstract name"
    );
    let clients = server.console("SHOW CLIENTS").table();
    assert!(
        clients.iter().any(|row| row["addr"] == "unix"),
        "{clients:?}"
    );
    assert!(!server.path(&name).exists() && !Path::new(&name).exists());
    // And a pooler before that one: its host by name, and where servers without a host are sought.
    let more =
        format!("unix_socket_dir =\n[databases]\nnamed = host={name} port={port} dbname={entry}\n");
    let named = DropIn::start(brand, database(), &more);
    assert_eq!(
        Client::login(named.address, "named").value("select 'hop'"),
        "hop"
    );
    let servers = named.console("SHOW SERVERS").table();
    assert!(
        servers.iter().any(|row| row["addr"] == "unix"),
        "{servers:?}"
    );
    let more = format!("{here}\n[databases]\nhostless = port={port} dbname={entry}\n");
    let hostless = DropIn::start(brand, database(), &more);
    assert_eq!(
        Client::login(hostless.address, "hostless").value("select 'hop'"),
        "hop"
    );
});

// PgBouncer does without a Unix socket then.
both_shards!(abstract_socket_of_another_process_is_left_to_it, |shards| {
    let brand = Brand::Ringbouncer(shards);
    let directory = open_directory();
    let name = unused_name(directory.path());
    let here = format!("unix_socket_dir = {name}");
    let first = DropIn::start(brand, database(), &here);
    // The same port on another address of this machine: only the Unix socket is taken.
    let port = first.address.port();
    let again = format!("{here}\nlisten_addr = 127.0.0.2\nlisten_port = {port}");
    let refused = DropIn::try_start(brand, database(), &again).err();
    let log = refused.expect("no start");
    assert!(log.contains("in use"), "{log}");
    let path = Path::new(&name).join(format!(".s.PGSQL.{port}"));
    assert_eq!(
        client_of(&path, &first.database.name).value("select 1"),
        "1"
    );
});

/// A user who is in a group besides his own, and that group's name and number; nobody but root may become him.
fn member() -> Option<(String, String, u32)> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("only root becomes somebody: nothing is tested");
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").unwrap();
    let is_user = |name: &&str| {
        users
            .lines()
            .any(|line| line.starts_with(&format!("{name}:")))
    };
    let groups = fs::read_to_string("/etc/group").unwrap();
    groups.lines().find_map(|line| {
        let [group, _, number, members] = *line.split(':').collect::<Vec<_>>() else {
            return None;
        };
        let mut members = members.split(',').filter(|name| *name != "root");
        let user = members.find(is_user)?;
        Some((user.to_owned(), group.to_owned(), number.parse().ok()?))
    })
}

/// Asserts that the Unix socket of a pooler started so has what the file says.
fn assert_mode_and_group(
    brand: Brand,
    user: &str,
    number: u32,
    group: &str,
    amend: fn(&mut Command),
) {
    for (written, mode) in [(group, 0o640), (&number.to_string(), 0o770)] {
        let more =
            format!("user = {user}\nunix_socket_group = {written}\nunix_socket_mode = 0{mode:o}");
        let mut drop_in = DropIn::start_with(brand, database(), &more, amend);
        let path = drop_in.path(&format!(".s.PGSQL.{}", drop_in.address.port()));
        let about = fs::metadata(&path).unwrap();
        assert!(about.file_type().is_socket());
        assert_eq!(
            (about.mode() & 0o7777, about.gid()),
            (mode, number),
            "{written}"
        );
        drop_in.signal(Signal::INT);
        assert!(drop_in.wait_exit().expect("an end").success());
        assert!(!path.exists(), "it is still there");
    }
}

drop_in!(unix_socket_has_the_mode_and_group_of_the_file, |brand| {
    let Some((_, group, number)) = member() else {
        return;
    };
    // Whoever starts it has given it the group, and no other user to become.
    assert_mode_and_group(brand, "", number, &group, become_member);
});

// PgBouncer has no group but the user's own then.
both_shards!(unix_socket_has_a_group_of_the_user_it_became, |shards| {
    let Some((user, group, number)) = member() else {
        return;
    };
    assert_mode_and_group(Brand::Ringbouncer(shards), &user, number, &group, |_| {});
});

/// Has the program run as nobody with that further group.
#[allow(unsafe_code)]
fn become_member(command: &mut Command) {
    let (_, _, group) = member().expect("a group");
    let (uid, gid) = unprivileged_user().expect("a user");
    let group = rustix::process::Gid::from_raw(group);
    let (uid, gid) = (
        rustix::process::Uid::from_raw(uid),
        rustix::process::Gid::from_raw(gid),
    );
    // SAFETY: between fork and exec the closure makes three system calls and touches no memory of the parent's.
    unsafe {
        command.pre_exec(move || {
            rustix::thread::set_thread_groups(&[group])?;
            rustix::thread::set_thread_gid(gid)?;
            Ok(rustix::thread::set_thread_uid(uid)?)
        });
    }
}

drop_in!(unix_socket_is_open_to_everybody_by_default, |brand| {
    let drop_in = DropIn::start(brand, database(), "");
    let path = drop_in.path(&format!(".s.PGSQL.{}", drop_in.address.port()));
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o777);
});

drop_in!(group_that_nobody_knows_is_refused, |brand| {
    let more = "unix_socket_group = nosuchgroup";
    let refused = DropIn::try_start(brand, database(), more).err();
    let log = refused.expect("no start");
    assert!(log.contains("nosuchgroup"), "{log}");
});

// ---- systemd -------------------------------------------------------------------------------------------------------

/// A pooler that is passed descriptors as systemd does it; stopped when it is dropped.
struct Activated {
    child: Child,
    log: PathBuf,
}

impl Activated {
    /// Passes `sockets` on to whom `pid`, of the shell, names.
    fn start(brand: Brand, file: &Path, sockets: &[OwnedFd], pid: &str) -> Activated {
        let inherited: Vec<_> = sockets
            .iter()
            .map(|socket| {
                let copy = rustix::io::fcntl_dupfd_cloexec(socket, 20).unwrap();
                rustix::io::fcntl_setfd(&copy, rustix::io::FdFlags::empty()).unwrap();
                copy
            })
            .collect();
        let numbers = inherited.iter().map(|fd| fd.as_raw_fd());
        let places = numbers
            .zip(3..)
            .map(|(fd, place)| format!("{place}<&{fd} {fd}<&-"));
        let (places, count) = (places.collect::<Vec<_>>().join(" "), sockets.len());
        let script = format!("exec {places}; LISTEN_FDS={count} LISTEN_PID={pid} exec \"$@\"");
        let bare = brand.command();
        let mut command = Command::new("bash");
        command
            .args(["-c", &script, "bash"])
            .arg(bare.get_program());
        command.arg("-q").arg(file).stdout(Stdio::null());
        let set = bare
            .get_envs()
            .filter_map(|(key, value)| Some((key, value?)));
        command.envs(set);
        let child = spawn_mortal(command, Signal::KILL);
        let log = file.with_file_name("log");
        let activated = Activated { child, log };
        wait_until("it is up", || activated.log().contains("process up: "));
        activated
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Activated {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- its log:\n{}---", self.log());
        }
        let _ = kill_process(Pid::from_child(&self.child), Signal::QUIT);
        let _ = self.child.wait();
    }
}

/// A file with a log beside it.
fn with_log(directory: &Path, port: u16, database: &Database) -> PathBuf {
    let log = format!("logfile = {}", directory.join("log").display());
    write_ini(directory, port, database, &log)
}

/// One listener each over IPv4, IPv6 (if there is any) and a Unix socket, and a way to log in at each.
fn listeners_of_systemd(directory: &Path) -> (Vec<SocketAddr>, PathBuf, Vec<OwnedFd>) {
    let any = [
        SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        SocketAddr::from((Ipv6Addr::LOCALHOST, 0)),
    ];
    let tcp: Vec<_> = any
        .iter()
        .filter_map(|any| TcpListener::bind(any).ok())
        .collect();
    let addresses = tcp
        .iter()
        .map(|listener| listener.local_addr().unwrap())
        .collect();
    let path = directory.join("activated.5432");
    let unix = UnixListener::bind(&path).unwrap();
    let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    fs::set_permissions(&path, everybody).unwrap();
    let sockets = tcp.into_iter().map(OwnedFd::from);
    (addresses, path, sockets.chain([unix.into()]).collect())
}

drop_in!(every_socket_that_systemd_passes_on_is_used, |brand| {
    let (directory, database, port) = (open_directory(), database(), free_port());
    let (addresses, path, sockets) = listeners_of_systemd(directory.path());
    let file = with_log(directory.path(), port, &database);
    let activated = Activated::start(brand, &file, &sockets, "$$");
    drop(sockets);
    for round in 0..4 {
        for address in &addresses {
            let mut client = Client::login(*address, &database.name);
            assert_eq!(client.value("select 1"), "1", "{address} {round}");
        }
        let mut client = client_of(&path, &database.name);
        assert_eq!(client.value("select 1"), "1", "{round}");
    }
    // What the file says of places to listen at does not count.
    for listener in listeners(activated.child.id()) {
        // Those of this test's variants may have been inherited, too.
        let address = listener.local_addr().unwrap().as_socket();
        assert_ne!(address.map(|it| it.port()), Some(port));
    }
    assert!(!directory.path().join(format!(".s.PGSQL.{port}")).exists());
    assert!(activated.log().contains("ignored"), "{}", activated.log());
    drop(activated);
    // It was not the process's own to remove.
    assert!(path.exists());
});

drop_in!(
    sockets_that_systemd_passes_on_outlive_the_process,
    |brand| {
        let (directory, database, port) = (open_directory(), database(), free_port());
        let (addresses, _, sockets) = listeners_of_systemd(directory.path());
        let file = with_log(directory.path(), port, &database);
        for _ in 0..2 {
            let mut activated = Activated::start(brand, &file, &sockets, "$$");
            for address in &addresses {
                let mut client = Client::login(*address, &database.name);
                assert_eq!(client.value("select 1"), "1", "{address}");
            }
            kill_process(Pid::from_child(&activated.child), Signal::TERM).unwrap();
            activated.child.wait().unwrap();
        }
    }
);

drop_in!(sockets_for_another_process_are_left_alone, |brand| {
    let (directory, database, port) = (open_directory(), database(), free_port());
    let (addresses, _, sockets) = listeners_of_systemd(directory.path());
    let file = with_log(directory.path(), port, &database);
    let _activated = Activated::start(brand, &file, &sockets, "1");
    let own = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    assert_eq!(Client::login(own, &database.name).value("select 1"), "1");
    assert!(directory.path().join(format!(".s.PGSQL.{port}")).exists());
    // Somebody waits there, as nobody accepts.
    let waiting = TcpStream::connect(addresses[0]).unwrap();
    let listener = TcpListener::from(sockets.into_iter().next().unwrap());
    listener.set_nonblocking(true).unwrap();
    let ours = listener.accept().map(|(_, peer)| peer);
    assert_eq!(ours.ok(), waiting.local_addr().ok());
    let none = listener.accept().unwrap_err();
    assert_eq!(none.kind(), io::ErrorKind::WouldBlock);
});
