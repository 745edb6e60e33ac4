//! Options one by one: what switches them off, what they promise not to do, where it listens and what it says there.
//! Each claim holds for PgBouncer, too.

use std::fs;
use std::net::{Ipv6Addr, SocketAddr, TcpListener};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::drop_in::*;
use crate::support::peer::Conversation;
use crate::support::postgres::spawn_mortal;
use crate::support::wire::*;
use crate::support::*;

const PID: &str = "select pg_backend_pid()";

fn database() -> Database {
    Postgres::shared().database()
}

#[track_caller]
fn start(brand: Brand, lines: &str) -> DropIn {
    DropIn::start(brand, database(), lines)
}

// ---- off ---------------------------------------------------------------------------------------------------------

/// What a server was asked by a client with two queries, whose server is checked before every use by this query.
fn asked_when_checked_by(brand: Brand, check: &str) -> Vec<String> {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let list = asked.clone();
    let server = FakeServer::start(move |mut server| {
        if !server.login() {
            return;
        }
        while let Some(message) = server.read().filter(|message| message.tag == b'Q') {
            list.lock().unwrap().push(message.strings(0)[0].clone());
            server.send(&Conversation::one_row("answer"));
        }
    });
    let lines = format!(
        "pool_mode = transaction\nserver_check_delay = 0\nserver_check_query = {check}\n[databases]\n\
         fake = host=127.0.0.1 port={}",
        server.address.port()
    );
    let drop_in = start(brand, &lines);
    let mut client = Client::login(drop_in.address, "fake");
    for sql in ["first", "second"] {
        assert_eq!(client.value(sql), "answer");
    }
    asked.lock().unwrap().clone()
}

drop_in!(empty_check_query_is_no_check, |brand| {
    assert_eq!(asked_when_checked_by(brand, ""), ["first", "second"]);
    let asked = asked_when_checked_by(brand, "check");
    assert!(asked.ends_with(&["check", "second"].map(str::to_owned)));
});

drop_in!(nought_switches_the_reserve_off, |brand| {
    let lines = "pool_mode = transaction\ndefault_pool_size = 1\nreserve_pool_size = 1\n\
                 reserve_pool_timeout = 0\nquery_wait_timeout = 1";
    let drop_in = start(brand, lines);
    let (mut holder, mut late) = (drop_in.client(), drop_in.client());
    assert_eq!(holder.query("begin").status, b'T');
    late.query("select 'late'")
        .assert_fatal("query_wait_timeout");
    assert!(!drop_in.log().contains("reserve_pool"));
    assert_eq!(holder.query("commit").status, b'I');
});

drop_in!(nought_keeps_idle_servers, |brand| {
    let lines = "pool_mode = transaction\nserver_idle_timeout = 0\nclient_idle_timeout = 1";
    let drop_in = start(brand, lines);
    let pid = drop_in.client().value(PID);
    // The servers are looked at several times meanwhile.
    let reply = drop_in.client().reply();
    reply.assert_fatal("client_idle_timeout");
    assert_eq!(drop_in.client().value(PID), pid);
});

drop_in!(
    nought_switches_the_notice_to_who_waits_off,
    since(1, 25),
    |brand| {
        let lines = "pool_mode = transaction\ndefault_pool_size = 1\nquery_wait_notify = 0\n\
                     query_wait_timeout = 1";
        let drop_in = start(brand, lines);
        let (mut holder, mut late) = (drop_in.client(), drop_in.client());
        assert_eq!(holder.query("begin").status, b'T');
        let reply = late.query("select 'late'");
        reply.assert_fatal("query_wait_timeout");
        assert!(reply.notices.is_empty(), "{reply:?}");
        assert_eq!(holder.query("commit").status, b'I');
    }
);

// ---- min_pool_size and server_lifetime ---------------------------------------------------------------------------

/// A pooler with two databases, `one` and `other`, with these keys of their entries.
fn start_two(brand: Brand, keys: [&str; 2], lines: &str) -> (DropIn, Database) {
    let (one, other) = (database(), database());
    let entries = [entry("one", &one, keys[0]), entry("other", &other, keys[1])].concat();
    let drop_in = DropIn::start(brand, one, &format!("{lines}\n[databases]\n{entries}"));
    (drop_in, other)
}

/// Waits until pools have been brought to their minimum again, this database's among them.
#[track_caller]
fn wait_replenished(database: &Database, count: usize) {
    for _ in 0..2 {
        database.wait_backends(count, "state = 'idle'");
        assert_eq!(database.kill_all(), count);
    }
    database.wait_backends(count, "state = 'idle'");
}

drop_in!(minimum_is_not_kept_for_nobody, |brand| {
    let (drop_in, other) = start_two(brand, ["min_pool_size=1"; 2], "");
    let leaver = Client::login(drop_in.address, "one");
    let _stayer = Client::login(drop_in.address, "other");
    drop_in.database.wait_backends(1, "state = 'idle'");
    drop(leaver);
    wait_until("the client has gone", || {
        drop_in.pools("one", "cl_active") == 0
    });
    assert_eq!(drop_in.database.kill_all(), 1);
    wait_replenished(&other, 1);
    assert_eq!(drop_in.database.backends("true"), 0);
});

drop_in!(idle_servers_of_the_minimum_are_kept, |brand| {
    let lines = "pool_mode = transaction\nserver_idle_timeout = 1";
    let (drop_in, other) = start_two(brand, ["min_pool_size=1", ""], lines);
    let mut kept = Client::login(drop_in.address, "one");
    let pid = kept.value(PID);
    Client::login(drop_in.address, "other").value("select 1");
    other.wait_backends(0, "true");
    assert_eq!(kept.value(PID), pid);
});

drop_in!(minimum_is_no_more_than_the_pool_may_have, |brand| {
    let keys = ["pool_size=1 min_pool_size=3", "pool_size=3 min_pool_size=3"];
    let (drop_in, other) = start_two(brand, keys, "");
    let _clients = ["one", "other"].map(|entry| Client::login(drop_in.address, entry));
    other.wait_backends(3, "state = 'idle'");
    assert_eq!(drop_in.database.backends("true"), 1);
});

drop_in!(minimum_evicts_nobody, |brand| {
    let database = database();
    let role = format!("ann_{}", database.name);
    database.sql(&format!("create role \"{role}\" login"));
    let other = self::database();
    let entries = [
        entry("one", &database, "max_db_connections=1 min_pool_size=1"),
        entry("other", &other, "min_pool_size=1"),
    ]
    .concat();
    let lines = format!("pool_mode = transaction\n[databases]\n{entries}");
    let users = [("postgres", ""), (role.as_str(), "")];
    let drop_in = DropIn::start_knowing(brand, database, &lines, &users);
    let as_user =
        |user| Client::login_with(drop_in.address, &[("user", user), ("database", "one")]);
    let mut first = as_user("postgres");
    assert_eq!(first.value("select 'served'"), "served");
    // Takes the place of the first.
    let mut second = as_user(&role);
    let pid = second.value(PID);
    let _stayer = Client::login(drop_in.address, "other");
    wait_replenished(&other, 1);
    assert_eq!(drop_in.database.backends(&format!("pid = {pid}")), 1);
    assert_eq!(second.value(PID), pid);
});

drop_in!(servers_of_one_age_are_closed_one_by_one, |brand| {
    let lines = "pool_mode = transaction\ndefault_pool_size = 4\nserver_lifetime = 2";
    let drop_in = start(brand, lines);
    let mut clients = [(); 4].map(|()| drop_in.client());
    for sql in ["begin", "commit"] {
        clients.iter_mut().for_each(|client| {
            client.value(sql);
        });
    }
    let mut whole = Instant::now();
    wait_until("the first is closed", || {
        let now = Instant::now();
        let is_whole = drop_in.database.backends("true") == 4;
        if is_whole {
            whole = now;
        }
        !is_whole
    });
    drop_in.database.wait_backends(0, "true");
    // Half a second lies between two.
    assert!(whole.elapsed() >= Duration::from_secs(1));
});

// ---- listening ---------------------------------------------------------------------------------------------------

drop_in!(star_listens_on_every_address, |brand| {
    let drop_in = start(brand, "listen_addr = *");
    let port = drop_in.address.port();
    // 127.0.0.2 is this machine's, too.
    let mut addresses = vec![drop_in.address, SocketAddr::from(([127, 0, 0, 2], port))];
    if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok() {
        addresses.push((Ipv6Addr::LOCALHOST, port).into());
    }
    for address in addresses {
        let mut client = Client::login(address, &drop_in.database.name);
        assert_eq!(client.value("select 'served'"), "served", "{address}");
    }
});

drop_in!(address_to_listen_on_may_be_a_name, |brand| {
    let drop_in = start(brand, "listen_addr = localhost");
    let port = drop_in.address.port();
    let address = (std::net::ToSocketAddrs::to_socket_addrs(&("localhost", port)).unwrap())
        .find(|address| std::net::TcpStream::connect(address).is_ok());
    let address = address.expect("it listens at an address of the name");
    let mut client = Client::login(address, &drop_in.database.name);
    assert_eq!(client.value("select 'served'"), "served");
    let elsewhere = SocketAddr::from(([127, 0, 0, 2], port));
    assert!(std::net::TcpStream::connect(elsewhere).is_err());
});

// ---- what is told ------------------------------------------------------------------------------------------------

drop_in!(process_and_host_are_added_for_the_unix_socket, |brand| {
    let drop_in = start(brand, "application_name_add_host = 1");
    let mut client = drop_in.by_socket();
    let params = [
        ("user", "postgres"),
        ("database", &*drop_in.database.name),
        ("application_name", "shop"),
    ];
    assert_eq!(client.start(PROTOCOL_3_0, &params).status, b'I');
    let host = rustix::system::uname();
    let (pid, host) = (
        std::process::id(),
        host.nodename().to_string_lossy().into_owned(),
    );
    assert_eq!(
        client.value("show application_name"),
        format!("shop - unix({pid}@{host}):{}", drop_in.address.port())
    );
});

/// A pooler that is killed in the end.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

drop_in!(lines_go_to_standard_error_unless_told_otherwise, |brand| {
    for (arguments, is_loud) in [(&[][..], true), (&["-q"], false), (&["--quiet"], false)] {
        let directory = open_directory();
        let path = |name: &str| directory.path().join(name);
        let more = format!("logfile = {}", path("log").display());
        let file = write_ini(directory.path(), free_port(), &database(), &more);
        let mut command = brand.command();
        command.args(arguments).arg(file).stdin(Stdio::null());
        command
            .stdout(Stdio::null())
            .stderr(fs::File::create(path("stderr")).unwrap());
        let _running = Running(spawn_mortal(command, Signal::KILL));
        let said = |name| fs::read_to_string(path(name)).unwrap_or_default();
        let is_up = |name| said(name).contains("process up: ");
        wait_until("it is up", || is_up("log") && (is_up("stderr") || !is_loud));
        let line = said("log");
        let line = line.lines().find(|line| line.contains("listening on"));
        let told = said("stderr").contains(line.expect("a line"));
        assert_eq!(told, is_loud, "{arguments:?}: {}", said("stderr"));
    }
});

drop_in!(user_may_have_so_many_servers_of_all_databases, |brand| {
    let database = database();
    let entries = ["one", "two"]
        .map(|name| entry(name, &database, ""))
        .concat();
    let lines =
        format!("pool_mode = transaction\nmax_user_connections = 2\n[databases]\n{entries}");
    let drop_in = DropIn::start(brand, database, &lines);
    let [mut first, mut second, mut third] =
        ["one", "two", "two"].map(|entry| Client::login(drop_in.address, entry));
    for holder in [&mut first, &mut second] {
        assert_eq!(holder.query("begin").status, b'T');
    }
    third.send(&query("select 'third'"));
    wait_until("it waits", || drop_in.pools("two", "cl_waiting") == 1);
    assert_eq!(drop_in.database.backends("true"), 2);
    assert_eq!(first.query("commit").status, b'I');
    assert_eq!(third.reply().value(), "third");
});
