//! PgBouncer's options for what servers and clients are made to do, each as PgBouncer has it: claims of `drop_in!` hold for
//! PgBouncer, too.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::drop_in::*;
use crate::support::peer::Conversation;
use crate::support::postgres::Postgres;
use crate::support::wire::*;
use crate::support::*;

const PID: &str = "select pg_backend_pid()";

fn database() -> Database {
    Postgres::shared().database()
}

/// A further entry `other` for the same database, with these options.
fn other(database: &Database, options: &str) -> String {
    let (name, address) = (&database.name, database.postgres.address());
    let (host, port) = (address.ip(), address.port());
    format!("[databases]\nother = host={host} port={port} dbname={name} {options}")
}

fn params<'a>(entry: &'a str, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    [&[("user", "postgres"), ("database", entry)], more].concat()
}

drop_in!(
    reset_query_runs_after_every_transaction_if_told_so,
    |brand| {
        let more = "pool_mode = transaction\ndefault_pool_size = 1\nserver_reset_query_always = 1\n\
                server_reset_query = set work_mem = '5MB'";
        let drop_in = DropIn::start(brand, database(), more);
        let mut client = Client::login(drop_in.address, &drop_in.database.name);
        let pid = client.value(PID);
        client.value("set work_mem = '77MB'");
        assert_eq!(client.value("show work_mem"), "5MB");
        assert_eq!(client.value(PID), pid);
        assert_eq!(
            client.value("begin; set work_mem = '77MB'; show work_mem"),
            "77MB"
        );
        assert_eq!(client.value("show work_mem"), "77MB");
        client.value("commit");
        assert_eq!(client.value("show work_mem"), "5MB");
    }
);

both_shards!(
    statements_survive_a_reset_after_every_transaction,
    |shards| {
        let topology = Topology::new(shards).pool_size(1);
        let stage = Stage::pooled(topology.set("server_reset_query_always", true));
        let mut client = stage.client();
        let reply = client.exchange(&[parse("s", "select $1::int + 1"), sync()].concat());
        assert_eq!(reply.tags, "1Z");
        for n in 1..4 {
            let reply = client.exchange(&[run_prepared("s", &[&n.to_string()]), sync()].concat());
            assert_eq!((reply.value(), reply.status), ((n + 1).to_string(), b'I'));
        }
        drop(client);
        stage.assert_no_leak();
    }
);

both_shards!(
    server_whose_reset_fails_after_a_transaction_is_replaced,
    |shards| {
        let topology = Topology::new(shards).pool_size(1);
        let topology = topology.set("server_reset_query_always", true);
        let stage = Stage::pooled(topology.set("server_reset_query", "select 1/0"));
        let mut client = stage.client();
        let first = client.value(PID);
        assert_ne!(client.value(PID), first);
        drop(client);
        stage.assert_no_leak();
    }
);

drop_in!(connect_query_runs_on_every_new_server, |brand| {
    let database = database();
    let more = other(&database, "connect_query='set work_mem to ''7MB'''");
    let more = format!("pool_mode = transaction\n{more}");
    let drop_in = DropIn::start(brand, database, &more);
    let mut clients = [(); 3].map(|()| Client::login(drop_in.address, "other"));
    for client in &mut clients {
        assert_eq!(client.value("begin; show work_mem"), "7MB");
    }
    let mut plain = Client::login(drop_in.address, &drop_in.database.name);
    assert_ne!(plain.value("show work_mem"), "7MB");
});

drop_in!(error_of_the_connect_query_is_nobodys_affair, |brand| {
    let database = database();
    let more = other(&database, "connect_query='select 1/0'");
    let drop_in = DropIn::start(brand, database, &more);
    assert_eq!(
        Client::login(drop_in.address, "other").value("select 1"),
        "1"
    );
});

both_shards!(error_of_the_connect_query_is_logged, |shards| {
    let stage = Stage::with_keys(
        Topology::new(shards).pool_size(1),
        &[("connect_query", "set work_mem = '7MB'; select 1/0")],
    );
    assert_eq!(stage.client().value("select 1"), "1");
    stage.wait_log("connect_query failed");
    let log = stage.log();
    let mut lines = log.lines();
    let line = lines.find(|line| line.contains("connect_query failed"));
    assert!(line.unwrap().contains("division by zero"), "{log}");
    stage.assert_no_leak();
});

both_shards!(
    connect_query_that_leaves_a_transaction_open_opens_no_server,
    |shards| {
        let keys = [("connect_query", "begin")];
        let topology = Topology::new(shards)
            .pool_size(1)
            .set("client_login_timeout", "1s");
        let stage = Stage::with_keys(topology, &keys);
        let mut client = Client::connect(stage.address());
        let reply = client.start(PROTOCOL_3_0, &params(&stage.entry, &[]));
        reply.assert_fatal("client_login_timeout (server down)");
        stage.wait_log("left a transaction open");
    }
);

both_shards!(
    connect_query_that_never_ends_takes_one_place_only,
    |shards| {
        let topology = Topology::new(shards)
            .pool_size(1)
            .set("server_connect_timeout", "300ms")
            .set("server_login_retry", "10ms");
        let stage = Stage::with_keys(topology, &[("connect_query", "select pg_sleep(600)")]);
        let mut client = Client::connect(stage.address());
        client.send(&startup(PROTOCOL_3_0, &params(&stage.entry, &[])));
        wait_until("three attempts", || {
            assert!(stage.database.backends("true") <= 1);
            let log = stage.log();
            log.matches("cannot open a server connection").count() >= 3
        });
    }
);

both_shards!(changed_connect_query_replaces_the_servers, |shards| {
    let database = database();
    let entry = database.name.clone();
    let topology = Topology::new(shards).pool_size(1);
    let with = |query: &str| {
        topology
            .clone()
            .database(&entry, &database, &[("connect_query", query)])
    };
    let pooler = Pooler::start(&with("set work_mem = '7MB'"));
    let mut client = Client::login(pooler.address, &entry);
    assert_eq!(client.value("show work_mem"), "7MB");
    pooler.rewrite(&with("set work_mem = '9MB'"));
    assert_eq!(pooler.console("RELOAD").complete, ["RELOAD"]);
    assert_eq!(client.value("show work_mem"), "9MB");
});

drop_in!(entry_gives_its_servers_start_up_values, |brand| {
    let database = database();
    let values =
        "client_encoding=LATIN1 datestyle=German timezone='Asia/Tokyo' application_name=entry";
    let more = format!(
        "pool_mode = transaction\ndefault_pool_size = 1\n{}",
        other(&database, values)
    );
    let drop_in = DropIn::start(brand, database, &more);
    let mut client = Client::login(drop_in.address, "other");
    assert_eq!(client.params["client_encoding"], "LATIN1");
    assert_eq!(client.params["DateStyle"], "German, DMY");
    for (name, value) in [
        ("client_encoding", "LATIN1"),
        ("datestyle", "German, DMY"),
        ("timezone", "Asia/Tokyo"),
        ("application_name", "entry"),
    ] {
        assert_eq!(client.value(&format!("show {name}")), value);
    }
    let own = params(
        "other",
        &[("TimeZone", "Europe/Vienna"), ("application_name", "own")],
    );
    let mut own = Client::login_with(drop_in.address, &own);
    assert_eq!(own.value("show timezone"), "Europe/Vienna");
    assert_eq!(own.value("show application_name"), "own");
    assert_eq!(client.value("show timezone"), "Asia/Tokyo");
    assert_eq!(client.value("show application_name"), "entry");
});

both_shards!(entry_has_a_server_lifetime_of_its_own, |shards| {
    let keys = [("server_lifetime", "0s")];
    let stage = Stage::with_keys(Topology::new(shards).pool_size(1), &keys);
    let mut client = stage.client();
    assert_ne!(client.value(PID), client.value(PID));
    let table = stage.console("SHOW DATABASES").table();
    let row = table.iter().find(|row| row["name"] == stage.entry).unwrap();
    assert_eq!(row["server_lifetime"], "0");
});

drop_in!(address_is_added_to_the_application_name, |brand| {
    let more = "application_name_add_host = 1";
    let drop_in = DropIn::start(brand, database(), more);
    let entry = &drop_in.database.name;
    let named = params(entry, &[("application_name", "psql")]);
    for (params, name) in [(named, "psql"), (params(entry, &[]), "app")] {
        let mut client = Client::login_with(drop_in.address, &params);
        let expected = format!("{name} - 127.0.0.1:");
        let shown = client.value("show application_name");
        assert!(shown.starts_with(&expected), "{shown}");
        assert_eq!(client.params["application_name"], shown);
        let table = Client::login(drop_in.address, "pgbouncer")
            .query("SHOW CLIENTS")
            .table();
        let row = table.iter().find(|row| row["application_name"] == shown);
        let row = row.unwrap_or_else(|| panic!("{table:?} has no {shown}"));
        assert_eq!(shown, format!("{expected}{}", row["port"]));
    }
});

drop_in!(
    unknown_start_up_parameter_is_refused_unless_ignored,
    |brand| {
        let more = "ignore_startup_parameters = extra_float_digits, geqo";
        let drop_in = DropIn::start(brand, database(), more);
        let entry = &drop_in.database.name;
        let odd = params(entry, &[("work_mem", "77MB")]);
        let reply = Client::connect(drop_in.address).start(PROTOCOL_3_0, &odd);
        reply.assert_fatal("unsupported startup parameter: work_mem");
        let usual = [
            ("extra_float_digits", "3"),
            ("geqo", "off"),
            ("datestyle", "German"),
        ];
        let mut client = Client::login_with(drop_in.address, &params(entry, &usual));
        assert_eq!(client.value("show geqo"), "on");
        assert_eq!(client.value("show datestyle"), "German, DMY");
    }
);

both_shards!(strictness_holds_within_options_as_well, |shards| {
    let topology = Topology::new(shards)
        .pool_size(1)
        .set("strict_startup_parameters", true);
    let ignoring = |ignored: &[&str]| {
        let topology = topology.clone();
        Stage::pooled(topology.set("ignore_startup_parameters", ignored.to_vec()))
    };
    let options = [("options", "-c work_mem=77MB -c TimeZone=Asia/Tokyo")];
    let stage = ignoring(&[]);
    let reply =
        Client::connect(stage.address()).start(PROTOCOL_3_0, &params(&stage.entry, &options));
    reply.assert_fatal("unsupported startup parameter in options: work_mem");
    for ignored in ["options", "work_mem"] {
        let stage = ignoring(&[ignored]);
        let mut client = Client::login_with(stage.address(), &params(&stage.entry, &options));
        assert_ne!(client.value("show work_mem"), "77MB");
        assert_eq!(client.value("show timezone"), "Asia/Tokyo");
    }
});

drop_in!(simple_query_is_refused_if_told_so, |brand| {
    let drop_in = DropIn::start(
        brand,
        database(),
        "pool_mode = transaction\ndisable_pqexec = 1",
    );
    let mut client = Client::login(drop_in.address, &drop_in.database.name);
    assert_eq!(client.exchange(&extended("select 7", &[])).value(), "7");
    client.query("select 1").assert_fatal("PQexec disallowed");
    let mut client = Client::login(drop_in.address, &drop_in.database.name);
    client.send(&extended("begin", &[]));
    assert_eq!(client.reply().status, b'T');
    client.query("select 1").assert_fatal("PQexec disallowed");
});

both_shards!(console_takes_simple_queries_in_any_case, |shards| {
    let stage = Stage::pooled(Topology::new(shards).set("disable_pqexec", true));
    assert_eq!(stage.console("SHOW VERSION").complete, ["SHOW"]);
});

both_shards!(refused_query_does_not_run, |shards| {
    let stage = Stage::pooled(
        Topology::new(shards)
            .pool_size(1)
            .set("disable_pqexec", true),
    );
    stage.database.sql("create table t(n int)");
    let insert = "insert into t values (1)";
    let mut client = stage.client();
    let batch = [
        parse("", "select 1"),
        bind("", "", &[]),
        execute("", 0),
        query(insert),
    ]
    .concat();
    client.exchange(&batch).assert_fatal("PQexec disallowed");
    let mut client = stage.client();
    // It is refused by its header: the connection may be reset under whoever goes on sending.
    client.send_bytewise(&query(insert)[..5]);
    client.reply().assert_fatal("PQexec disallowed");
    assert_eq!(stage.database.sql("select count(*) from t").value(), "0");
    drop(client);
    stage.assert_quiet();
});

both_shards!(notice_greets_whoever_logs_in, |shards| {
    let text = "maintenance tonight";
    let stage = Stage::pooled(Topology::new(shards).set("login_notify_message", text));
    let mut client = Client::connect(stage.address());
    let reply = client.start(PROTOCOL_3_0, &params(&stage.entry, &[]));
    assert_eq!(
        (reply.status, &reply.notices[..]),
        (b'I', &[text.to_owned()][..])
    );
    assert!(client.query("select 1").notices.is_empty());
});

both_shards!(
    setting_that_is_tracked_by_order_follows_its_client,
    |shards| {
        let tracked = vec!["IntervalStyle", "DEFAULT_transaction_read_only"];
        let topology = Topology::new(shards)
            .pool_size(2)
            .set("track_extra_parameters", tracked);
        let stage = Stage::pooled(topology);
        let name = "default_transaction_read_only";
        let mut owner = stage.client();
        assert_eq!(owner.params[name], "off");
        let first = owner.value(&format!("set {name} = on; {PID}"));
        assert_eq!(owner.params[name], "on");
        let mut others = [stage.client(), stage.client()];
        let pids = others
            .each_mut()
            .map(|other| other.value(&format!("begin; {PID}")));
        // Both servers are taken; only the one that the owner has not seen is given back.
        let free = pids.iter().position(|pid| *pid != first).unwrap();
        assert_eq!(others[1 - free].value(&format!("show {name}")), "off");
        others[free].value("commit");
        assert_eq!(owner.value(PID), pids[free]);
        assert_eq!(owner.value(&format!("show {name}")), "on");
    }
);

drop_in!(server_is_checked_before_every_use_if_told_so, |brand| {
    let more = "pool_mode = transaction\ndefault_pool_size = 1\nserver_check_delay = 0\n\
                server_check_query = set work_mem = '5MB'";
    let drop_in = DropIn::start(brand, database(), more);
    let mut client = Client::login(drop_in.address, &drop_in.database.name);
    let pid = client.value(PID);
    client.value("set work_mem = '77MB'");
    assert_eq!(client.value("show work_mem"), "5MB");
    let mut second = Client::login(drop_in.address, &drop_in.database.name);
    second.value("begin; set work_mem = '77MB'");
    client.send(&query("show work_mem"));
    second.value("commit");
    assert_eq!(client.reply().value(), "5MB");
    assert_eq!(client.value(PID), pid);
});

both_shards!(
    server_idle_for_long_is_checked_once_it_is_wanted,
    |shards| {
        let topology = Topology::new(shards).pool_size(1);
        let topology = topology.set("server_check_delay", "1 h");
        let stage = Stage::pooled(topology.set("server_check_query", "set work_mem = '5MB'"));
        let set_delay = |span: &str| {
            let set = stage.console(&format!("SET server_check_delay = '{span}'"));
            assert!(set.error.is_none(), "{set:?}");
        };
        let mut client = stage.client();
        let pid = client.value(&format!("set work_mem = '77MB'; {PID}"));
        assert_eq!(client.value("show work_mem"), "77MB");
        set_delay("200ms");
        wait_until("it has been idle for long", || {
            stage.pools(&stage.entry, "sv_used") == 1
        });
        assert_eq!(stage.pools(&stage.entry, "sv_idle"), 0);
        let servers = stage.console("SHOW SERVERS").table();
        assert!(
            servers.iter().any(|row| row["state"] == "used"),
            "{servers:?}"
        );
        set_delay("1 h");
        assert_eq!(client.value("show work_mem"), "5MB");
        assert_eq!(client.value(PID), pid);
        assert_eq!(stage.pools(&stage.entry, "sv_used"), 0);
    }
);

both_shards!(
    client_does_not_notice_that_its_idle_server_had_gone_silent,
    |shards| {
        let is_first = AtomicBool::new(true);
        let server = FakeServer::start(move |mut server| {
            let is_first = is_first.swap(false, Ordering::AcqRel);
            if !server.login() {
                return;
            }
            if is_first {
                // Sees one request and hears nothing any more.
                let greeted = server.next_request().is_some();
                server.send(&Conversation::one_row("first"));
                while greeted && server.read().is_some() {}
            }
            server.serve("second");
        });
        let topology = Topology::new(shards).pool_size(1);
        let topology = topology
            .set("server_check_delay", 0)
            .set("close_timeout", "100ms");
        let stage = Stage::pooled(topology.database_at("fake", server.address, &[]));
        let mut client = Client::login(stage.address(), "fake");
        // The login itself has used the server already.
        assert_eq!(client.value("select 1"), "first");
        // Not before, as it holds for logins, too.
        let set = stage.console("SET server_connect_timeout = '1 s'");
        assert!(set.error.is_none(), "{set:?}");
        assert_eq!(client.value("select 1"), "second");
        // And one to cancel what the silent one may be doing.
        assert!(server.connections() >= 2);
    }
);

/// A check of servers that lasts while another session has the lock.
const LONG_CHECK: &str = "select pg_advisory_xact_lock_shared(1)";

/// From now on, until this session gives the lock back.
fn long_checks(database: &Database) -> Client {
    let mut holder = database.direct();
    holder.value("select pg_advisory_lock(1)");
    holder
}

both_shards!(
    client_whose_server_does_not_answer_the_check_is_served_by_the_next_that_is_free,
    |shards| {
        // pool of 2: one is busy until it is let go, the other falls silent
        let (is_silent, is_let_go) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let (silent, let_go) = (is_silent.clone(), Arc::<AtomicBool>::clone(&is_let_go));
        let server = FakeServer::start(move |mut server| {
            let mut is_busy_one = false;
            let is_in = server.login();
            while let Some(request) = server.next_request().filter(|_| is_in) {
                let is_check = request.body.starts_with(b"check");
                if is_check && !is_busy_one && silent.load(Ordering::Acquire) {
                    while server.read().is_some() {}
                    return;
                }
                if request.body.starts_with(b"hold") {
                    is_busy_one = true;
                    server.stall_until(&let_go);
                }
                server.send(&Conversation::one_row("served"));
            }
        });
        let topology = Topology::new(shards)
            .pool_size(2)
            .set("server_connect_timeout", "100s")
            .set("server_check_query", "check")
            .set("server_check_delay", 0);
        let stage = Stage::pooled(topology.database_at("fake", server.address, &[]));
        let login = |_| Client::login(stage.address(), "fake");
        let [mut holder, mut other, mut waiting] = [0, 1, 2].map(login);
        holder.send(&query("hold"));
        wait_until("one is busy", || stage.pools("fake", "sv_active") == 1);
        assert_eq!(other.value("select 1"), "served");
        is_silent.store(true, Ordering::Release);
        waiting.send(&query("select 2"));
        wait_until("the other is checked", || {
            stage.pools("fake", "sv_tested") == 1
        });
        assert_eq!(stage.pools("fake", "cl_waiting"), 1);
        is_let_go.store(true, Ordering::Release);
        assert_eq!(waiting.reply().value(), "served");
        assert_eq!(holder.reply().value(), "served");
    }
);

both_shards!(
    client_that_leaves_while_its_server_is_checked_takes_nothing_along,
    |shards| {
        let topology = Topology::new(shards)
            .pool_size(1)
            .set("server_check_delay", 0);
        let stage = Stage::pooled(topology.set("server_check_query", LONG_CHECK));
        stage.client().value("select 1");
        let mut holder = long_checks(&stage.database);
        let mut impatient = stage.client();
        impatient.send(&query("select 1"));
        wait_until("its server is checked", || {
            stage.pools(&stage.entry, "sv_tested") == 1
        });
        assert_eq!(stage.pools(&stage.entry, "cl_waiting"), 1);
        impatient.reset();
        holder.value("select pg_advisory_unlock(1)");
        assert_eq!(stage.client().value("select 2"), "2");
        stage.assert_no_leak();
    }
);

both_shards!(
    paused_pool_serves_nobody_whose_server_was_being_checked,
    |shards| {
        let topology = Topology::new(shards)
            .pool_size(1)
            .set("server_check_delay", 0);
        let stage = Stage::pooled(topology.set("server_check_query", LONG_CHECK));
        let mut client = stage.client();
        client.value("select 1");
        let mut holder = long_checks(&stage.database);
        client.send(&query("select 2"));
        wait_until("its server is checked", || {
            stage.pools(&stage.entry, "sv_tested") == 1
        });
        let mut admin = Client::login(stage.address(), "ringbouncer");
        admin.send(&query("PAUSE"));
        stage.wait_paused();
        holder.value("select pg_advisory_unlock(1)");
        assert_eq!(admin.reply().complete, ["PAUSE"]);
        assert!(client.has_nothing_to_read());
        assert_eq!(stage.console("RESUME").complete, ["RESUME"]);
        assert_eq!(client.reply().value(), "2");
    }
);

drop_in!(
    session_ends_with_its_transaction_when_its_server_is_to_be_closed,
    |brand| {
        let drop_in = DropIn::start(brand, database(), "server_fast_close = 1");
        let name = &drop_in.database.name;
        let (mut busy, mut idle) = (
            Client::login(drop_in.address, name),
            Client::login(drop_in.address, name),
        );
        assert_eq!(busy.query("begin").status, b'T');
        idle.value("select 1");
        let reply = Client::login(drop_in.address, "pgbouncer").query("RECONNECT");
        assert_eq!(reply.complete, ["RECONNECT"]);
        idle.reply().assert_fatal("database configuration changed");
        assert_eq!(busy.value("select 1"), "1");
        busy.send(&query("commit"));
        let reply = busy.reply();
        assert_eq!(
            (&reply.complete[..], reply.status),
            (&["COMMIT".to_owned()][..], b'I')
        );
        busy.reply().assert_fatal("database configuration changed");
    }
);

both_shards!(session_outlives_a_reconnect_without_fast_close, |shards| {
    let stage = Stage::pooled(Topology::new(shards).pool_size(2).mode("session"));
    let mut client = stage.client();
    let pid = client.value(PID);
    assert_eq!(stage.console("RECONNECT").complete, ["RECONNECT"]);
    wait_until("upkeep has looked", || {
        let servers = stage.console("SHOW SERVERS").table();
        servers.iter().any(|row| row["close_needed"] == "1")
    });
    assert_eq!(client.value(PID), pid);
});
