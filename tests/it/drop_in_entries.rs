//! Lines of the file for databases and users: what a change of them does, what they count for, how they are written.
//! Each claim holds for PgBouncer, too.

use std::fs;
use std::io;
use std::net::{Ipv6Addr, Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::thread;
use std::time::Instant;

use crate::support::drop_in::*;
use crate::support::second::Second;
use crate::support::wire::*;
use crate::support::*;

const PID: &str = "select pg_backend_pid()";

fn database() -> Database {
    Postgres::shared().database()
}

fn client_as(drop_in: &DropIn, user: &str, entry: &str) -> Client {
    Client::login_with(drop_in.address, &[("user", user), ("database", entry)])
}

/// One column of the line of an entry in `SHOW DATABASES`; nothing if it is null.
#[track_caller]
fn shown(drop_in: &DropIn, entry: &str, column: &str) -> Option<String> {
    let table = drop_in.console("SHOW DATABASES").table();
    let row = table.iter().find(|row| row["name"] == entry);
    row.expect("a row").get(column).cloned()
}

// ---- changes -----------------------------------------------------------------------------------------------------

/// Which of several entries get new servers when a reload makes their keys from the first of each pair the second.
fn replaced(brand: Brand, changes: &[[&str; 2]]) -> Vec<bool> {
    let database = database();
    let [before, after] = [0, 1].map(|at| {
        let entries = (0..).zip(changes);
        let entries = entries.map(|(n, keys)| entry(&format!("own{n}"), &database, keys[at]));
        entries.collect::<String>()
    });
    let lines = format!("pool_mode = transaction\n[databases]\n{before}");
    let drop_in = DropIn::start(brand, database, &lines);
    let login = |n| Client::login(drop_in.address, &format!("own{n}"));
    let mut clients: Vec<_> = (0..changes.len()).map(login).collect();
    let pids: Vec<_> = clients.iter_mut().map(|client| client.value(PID)).collect();
    assert_eq!(drop_in.reload_with(&before, &after).complete, ["RELOAD"]);
    let both = clients.iter_mut().zip(pids);
    both.map(|(client, pid)| client.value(PID) != pid).collect()
}

drop_in!(change_of_host_or_port_replaces_servers, |brand| {
    let database = database();
    let second = Second::start(&database);
    let (name, port) = (&database.name, database.postgres.address().port());
    let at = |host: &str, port: u16| format!("own = host={host} port={port} dbname={name}\n");
    // Nobody listens at that port.
    let places = [
        at("127.0.0.1", port),
        at(&second.address, port),
        at("127.0.0.1", free_port()),
        at("127.0.0.1", port),
    ];
    let lines = format!(
        "pool_mode = transaction\nserver_login_retry = 1\n[databases]\n{}",
        places[0]
    );
    let drop_in = DropIn::start(brand, database, &lines);
    let mut client = Client::login(drop_in.address, "own");
    let pid = client.value(PID);
    assert!(!second.serves(&mut client));
    drop_in.reload_with(&places[0], &places[1]);
    assert!(second.serves(&mut client));
    let by_second = client.value(PID);
    assert_ne!(by_second, pid);
    drop_in.reload_with(&places[1], &places[2]);
    let gone = format!("pid = {by_second}");
    wait_until("its servers are closed", || {
        drop_in.database.backends(&gone) == 0
    });
    drop_in.reload_with(&places[2], &places[3]);
    let mut client = Client::login(drop_in.address, "own");
    assert!(!second.serves(&mut client));
});

drop_in!(change_of_connect_query_replaces_servers, |brand| {
    let keys = ["7MB", "9MB"].map(|size| format!("connect_query='set work_mem = ''{size}'''"));
    let change = keys.each_ref().map(String::as_str);
    assert_eq!(replaced(brand, &[change]), [true]);
});

drop_in!(servers_outlive_a_change_of_how_they_are_opened, |brand| {
    let changes = [
        ["password=old", "password=new"],
        ["client_encoding=UTF8", "client_encoding=LATIN1"],
        ["datestyle=ISO", "datestyle=German"],
        ["timezone=GMT", "timezone=Asia/Tokyo"],
        ["application_name=old", "application_name=new"],
        ["pool_size=3", "pool_size=4"],
    ];
    assert_eq!(replaced(brand, &changes), [false; 6]);
});

// ---- keys --------------------------------------------------------------------------------------------------------

drop_in!(entry_may_have_a_reserve_of_its_own, |brand| {
    let database = database();
    let key = match brand.is_before((1, 24)) {
        true => "reserve_pool",
        false => "reserve_pool_size",
    };
    let entries = [
        entry("own", &database, &format!("{key}=3")),
        entry("old", &database, "reserve_pool=4"),
        entry("plain", &database, ""),
    ];
    let lines = format!(
        "pool_mode = transaction\ndefault_pool_size = 1\nreserve_pool_size = 0\n\
         reserve_pool_timeout = 0.1\n[databases]\n{}",
        entries.concat()
    );
    let drop_in = DropIn::start(brand, database, &lines);
    for (name, size) in [("own", "3"), ("old", "4"), ("plain", "0")] {
        assert_eq!(shown(&drop_in, name, key).as_deref(), Some(size), "{name}");
    }
    let mut clients = [(); 2].map(|()| Client::login(drop_in.address, "old"));
    for client in &mut clients {
        assert_eq!(client.query("begin").status, b'T');
    }
    assert!(
        drop_in
            .log()
            .contains("taking connection from reserve_pool")
    );
});

drop_in!(negative_size_and_no_limit_are_those_of_all, |brand| {
    let database = database();
    let mut keys = "pool_size=-1 max_db_connections=0".to_owned();
    let mut lines = "default_pool_size = 7\nmax_db_connections = 9\n".to_owned();
    let mut expected = vec![("pool_size", "7"), ("max_connections", "9")];
    if !brand.is_before((1, 24)) {
        keys += " max_db_client_connections=0";
        lines += "max_db_client_connections = 11\n";
        expected.push(("max_client_connections", "11"));
    }
    lines += &format!("[databases]\n{}", entry("own", &database, &keys));
    let drop_in = DropIn::start(brand, database, &lines);
    for (column, value) in expected {
        let shown = shown(&drop_in, "own", column);
        assert_eq!(shown.as_deref(), Some(value), "{column}");
    }
});

/// Passes connections to an address of version 6 on to PostgreSQL, to the end of all tests; its port.
fn listen_on_version_6(database: &Database) -> Option<u16> {
    let listener = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).ok()?;
    let port = listener.local_addr().unwrap().port();
    let far = database.postgres.address();
    thread::spawn(move || {
        for near in listener.incoming().map_while(Result::ok) {
            let far = TcpStream::connect(far).unwrap();
            for (mut from, mut to) in [
                (near.try_clone().unwrap(), far.try_clone().unwrap()),
                (far, near),
            ] {
                thread::spawn(move || {
                    let _ = io::copy(&mut from, &mut to);
                    let _ = to.shutdown(Shutdown::Write);
                });
            }
        }
    });
    Some(port)
}

drop_in!(server_may_have_an_address_of_version_6, |brand| {
    let database = database();
    let Some(port) = listen_on_version_6(&database) else {
        eprintln!("no IPv6: nothing is compared");
        return;
    };
    let lines = format!(
        "[databases]\nsix = host=::1 port={port} dbname={}",
        database.name
    );
    let drop_in = DropIn::start(brand, database, &lines);
    let mut client = Client::login(drop_in.address, "six");
    assert_eq!(client.value("select 'served'"), "served");
    assert_eq!(shown(&drop_in, "six", "host").as_deref(), Some("::1"));
    let line = line_with(&drop_in, "new connection to server");
    assert!(
        prefix(&line, 'S').starts_with(&format!("six/postgres@[::1]:{port} ")),
        "{line}"
    );
});

drop_in!(port_of_an_entry_is_postgresqls_unless_told, |brand| {
    let lines = "[databases]\nbare = host=127.0.0.1";
    let drop_in = DropIn::start(brand, database(), lines);
    assert_eq!(shown(&drop_in, "bare", "port").as_deref(), Some("5432"));
    assert_eq!(shown(&drop_in, "bare", "database").as_deref(), Some("bare"));
});

drop_in!(
    entry_may_have_a_lifetime_of_its_own,
    since(1, 23),
    |brand| {
        let database = database();
        let entries = [
            entry("short", &database, "server_lifetime=1"),
            entry("long", &database, ""),
        ];
        let lines = format!("pool_mode = transaction\n[databases]\n{}", entries.concat());
        let drop_in = DropIn::start(brand, database, &lines);
        let pids = ["long", "short"].map(|entry| Client::login(drop_in.address, entry).value(PID));
        drop_in
            .database
            .wait_backends(0, &format!("pid = {}", pids[1]));
        assert_eq!(drop_in.database.backends(&format!("pid = {}", pids[0])), 1);
        assert!(
            drop_in
                .log()
                .contains("closing because: server lifetime over")
        );
    }
);

// ---- users -------------------------------------------------------------------------------------------------------

/// A pooler with one server a pool whose entry `main` is as a role of its own to everybody, with these lines of it and
/// of `bob`, who comes as himself, in `[users]`; the role's name is `ROLE`.
fn start_forced(brand: Brand, lines: &str, users: &str) -> (DropIn, String) {
    let database = database();
    let role = format!("ann_{}", database.name);
    database.sql(&format!("create role \"{role}\" login"));
    let main = entry("main", &database, &format!("user={role}"));
    let users = users.replace("ROLE", &role);
    let lines = format!("{lines}\n[users]\n{users}\n[databases]\n{main}");
    let known = [("postgres", ""), (&*role, ""), ("bob", "")];
    (DropIn::start_knowing(brand, database, &lines, &known), role)
}

drop_in!(
    mode_is_that_of_the_user_of_the_server,
    since(1, 24),
    |brand| {
        let users = "ROLE = pool_mode=statement\nbob = pool_mode=session";
        let (drop_in, role) = start_forced(brand, "pool_mode = transaction", users);
        let mut bob = client_as(&drop_in, "bob", "main");
        bob.value("select 1");
        let table = drop_in.console("SHOW POOLS").table();
        let row = table.iter().find(|row| row["database"] == "main").unwrap();
        assert_eq!((&*row["user"], &*row["pool_mode"]), (&*role, "statement"));
        let text = "transaction blocks not allowed in statement pooling mode";
        bob.send(&query("begin"));
        let mut reply = bob.reply();
        while !reply.closed {
            reply = bob.reply();
        }
        reply.assert_fatal(text);
    }
);

drop_in!(
    size_is_that_of_the_user_of_the_server,
    since(1, 23),
    |brand| {
        let users = "ROLE = pool_size=1\nbob = pool_size=5";
        let (drop_in, _) = start_forced(brand, "pool_mode = transaction", users);
        let [mut holder, mut late] = [(); 2].map(|()| client_as(&drop_in, "bob", "main"));
        assert_eq!(holder.query("begin").status, b'T');
        late.send(&query("select 'late'"));
        wait_until("it waits", || drop_in.pools("main", "cl_waiting") == 1);
        assert_eq!(holder.query("commit").status, b'I');
        assert_eq!(late.reply().value(), "late");
    }
);

drop_in!(
    timeouts_of_servers_are_those_of_the_user_of_the_server,
    since(1, 25),
    |brand| {
        let cases = [
            ("query_timeout", "select pg_sleep(60)", "query timeout"),
            (
                "idle_transaction_timeout",
                "begin",
                "idle transaction timeout",
            ),
            ("transaction_timeout", "begin", "transaction timeout"),
        ];
        // All of them run at the same time.
        let asked = cases.map(|(key, sql, _)| {
            let users = format!("ROLE = {key}=1\nbob = {key}=600");
            let (drop_in, _) = start_forced(brand, "pool_mode = transaction", &users);
            let mut bob = client_as(&drop_in, "bob", "main");
            bob.send(&query(sql));
            (drop_in, bob)
        });
        for ((_drop_in, mut bob), (_, _, text)) in asked.into_iter().zip(cases) {
            let mut reply = bob.reply();
            if !reply.closed {
                reply = bob.reply();
            }
            reply.assert_fatal(text);
        }
    }
);

drop_in!(
    idleness_is_that_of_who_has_logged_in,
    since(1, 24),
    |brand| {
        let users = "ROLE = client_idle_timeout=600\nbob = client_idle_timeout=1";
        let (drop_in, _) = start_forced(brand, "pool_mode = transaction", users);
        let mut bob = client_as(&drop_in, "bob", "main");
        bob.reply().assert_fatal("client_idle_timeout");
    }
);

drop_in!(
    patience_is_that_of_who_has_logged_in,
    since(1, 26),
    |brand| {
        let users = "ROLE = query_wait_timeout=600\nbob = query_wait_timeout=1";
        let lines = "pool_mode = transaction\ndefault_pool_size = 1";
        let (drop_in, _) = start_forced(brand, lines, users);
        let mut holder = client_as(&drop_in, "postgres", "main");
        assert_eq!(holder.query("begin").status, b'T');
        let mut bob = client_as(&drop_in, "bob", "main");
        let begin = Instant::now();
        bob.query("select 1").assert_fatal("query_wait_timeout");
        assert!(begin.elapsed().as_millis() >= 600);
        assert_eq!(holder.query("commit").status, b'I');
    }
);

// ---- how they are written ----------------------------------------------------------------------------------------

drop_in!(name_of_an_entry_may_be_quoted, since(1, 26), |brand| {
    let database = database();
    let quoted = entry("'my db'", &database, "");
    let drop_in = DropIn::start(brand, database, &format!("[databases]\n{quoted}"));
    let mut client = Client::login(drop_in.address, "my db");
    assert_eq!(client.value("select 'served'"), "served");
});

drop_in!(file_without_its_section_does_not_start, |brand| {
    let directory = open_directory();
    let bare = directory.path().join("pgbouncer.ini");
    fs::write(&bare, "[databases]\nown = host=127.0.0.1\n").unwrap();
    let mut command = brand.command();
    command.arg(bare);
    if rustix::process::geteuid().is_root() {
        command.args(["-u", "nobody"]);
    }
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("section"), "{told}");
});

drop_in!(tabulator_is_a_part_of_a_value, |brand| {
    let lines = "[databases]\nown = host=127.0.0.1 dbname=x\tport=7 pool_size=3";
    let drop_in = DropIn::start(brand, database(), lines);
    let expected = [
        ("database", "x\tport=7"),
        ("port", "5432"),
        ("pool_size", "3"),
    ];
    for (column, value) in expected {
        assert_eq!(shown(&drop_in, "own", column).as_deref(), Some(value));
    }
});

drop_in!(seconds_of_an_entry_are_whole, since(1, 23), |brand| {
    let database = database();
    let entries = [
        entry("long", &database, "server_lifetime=7.9"),
        entry("short", &database, "server_lifetime=5x"),
    ];
    let lines = format!("[databases]\n{}", entries.concat());
    let drop_in = DropIn::start(brand, database, &lines);
    for (name, seconds) in [("long", "7"), ("short", "5")] {
        let lifetime = shown(&drop_in, name, "server_lifetime");
        assert_eq!(lifetime.as_deref(), Some(seconds), "{name}");
    }
});

drop_in!(
    option_without_a_default_outlives_a_second_section,
    |brand| {
        let lines = "auth_user = ann\nverbose = 1\nquery_timeout = 7";
        let drop_in = DropIn::start_with(brand, database(), lines, |command| {
            let file = Path::new(command.get_args().last().unwrap());
            let text = fs::read_to_string(file).unwrap();
            let (_, own) = text.split_once("[pgbouncer]").unwrap();
            let again = own.replace(lines, "");
            assert_ne!(again, own);
            fs::write(file, format!("{text}[pgbouncer]{again}")).unwrap();
        });
        let table = drop_in.console("SHOW CONFIG").table();
        let value = |key: &str| {
            let row = table.iter().find(|row| row["key"] == key).unwrap();
            row["value"].clone()
        };
        assert_eq!(value("auth_user"), "ann");
        assert_eq!(value("verbose"), "1");
        assert_eq!(value("query_timeout"), "0");
    }
);
