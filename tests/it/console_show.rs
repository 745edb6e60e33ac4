//! Tables of the console that are as in the distribution's PgBouncer, tables of newer ones, and SET.

use crate::support::wire::*;
use crate::support::*;

/// Columns since version 1.8 or before.
const OLD_TABLES: [(&str, &[&str]); 4] = [
    ("VERSION", &["version"]),
    ("MEM", &["name", "size", "used", "free", "memtotal"]),
    ("DNS_HOSTS", &["hostname", "ttl", "addrs"]),
    ("DNS_ZONES", &["zonename", "serial", "count"]),
];

compared!(
    old_tables_have_pgbouncers_columns,
    since(1, 18),
    |subject| {
        let mut admin = subject.admin();
        for (table, columns) in OLD_TABLES {
            let reply = admin.query(&format!("SHOW {table}"));
            assert_eq!(reply.columns, columns, "{table}");
            assert_eq!(reply.complete, ["SHOW"], "{table}");
        }
        let first = admin.query("SHOW HELP");
        assert_eq!(
            (first.complete, first.rows.len()),
            (vec!["SHOW".to_owned()], 0)
        );
    }
);

compared!(
    descriptors_are_for_admins,
    since(1, 8),
    until(1, 26),
    |subject| {
        let params = [("user", "watcher"), ("database", "pgbouncer")];
        let mut watcher = Client::login_with(subject.address(), &params);
        assert_eq!(watcher.query("SHOW FDS").text(), "admin access needed");
        assert_eq!(watcher.query("SHOW MEM").complete, ["SHOW"]);
    }
);

compared!(sockets_have_prefixed_states, since(1, 18), |subject| {
    let mut client = subject.client();
    client.query("begin");
    let sockets = subject.console("SHOW SOCKETS");
    let buffers = [
        "recv_pos",
        "pkt_pos",
        "pkt_remain",
        "send_pos",
        "send_remain",
        "pkt_avail",
        "send_avail",
    ];
    assert!(
        sockets.columns.ends_with(&buffers.map(str::to_owned)),
        "{:?}",
        sockets.columns
    );
    let states = |kind: &str| {
        let table = sockets.table();
        let theirs = table
            .into_iter()
            .filter(|row| row["type"] == kind && row["database"] == subject.entry(0));
        theirs.map(|row| row["state"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(
        (states("C"), states("S")),
        (vec!["cl_active".to_owned()], vec!["sv_active".to_owned()])
    );
    assert_eq!(
        subject.console("SHOW ACTIVE_SOCKETS").columns,
        sockets.columns
    );
});

compared!(
    set_changes_a_setting_until_the_next_reload,
    since(1, 18),
    |subject| {
        let mut admin = subject.admin();
        let setting = |admin: &mut Client, key: &str| {
            let table = admin.query("SHOW CONFIG").table();
            table.iter().find(|row| row["key"] == key).unwrap()["value"].clone()
        };
        for (command, tag) in [
            ("SET default_pool_size=7", "SET default_pool_size=7"),
            ("set max_client_conn TO 50;", "SET max_client_conn=50"),
            (
                "SET stats_users TO 'watcher, nobody'",
                "SET stats_users=watcher, nobody",
            ),
            ("SET server_lifetime = '3.5'", "SET server_lifetime=3.5"),
            // It answers success and does nothing.
            ("SET listen_port = 7", "SET listen_port=7"),
        ] {
            assert_eq!(admin.query(command).complete, [tag], "{command}");
        }
        for command in ["SET no_such_setting = 1", "SET default_pool_size = abc"] {
            assert_eq!(admin.query(command).text(), "SET failed", "{command}");
        }
        assert_eq!(setting(&mut admin, "default_pool_size"), "7");
        assert_eq!(setting(&mut admin, "server_lifetime"), "3.5");
        let params = [("user", "nobody"), ("database", "pgbouncer")];
        Client::login_with(subject.address(), &params);
        assert_eq!(admin.query("RELOAD").complete, ["RELOAD"]);
        assert_eq!(setting(&mut admin, "default_pool_size"), "4");
        let mut nobody = Client::connect(subject.address());
        nobody
            .start(wire::PROTOCOL_3_0, &params)
            .assert_fatal("not allowed");
    }
);

compared!(
    pretend_variables_are_set_for_nothing,
    since(1, 18),
    |subject| {
        let mut admin = subject.admin();
        for name in [
            "client_encoding",
            "datestyle",
            "timezone",
            "standard_conforming_strings",
        ] {
            let reply = admin.query(&format!("SET {name} = 'x'"));
            assert_eq!(reply.complete, ["SET"], "{name}");
            assert_eq!(admin.query(&format!("SHOW {name}")).columns, [name]);
        }
        let params = [("user", "watcher"), ("database", "pgbouncer")];
        let mut watcher = Client::login_with(subject.address(), &params);
        assert_eq!(watcher.query("SET timezone = 'x'").complete, ["SET"]);
        assert_eq!(
            watcher.query("SET pool_mode = session").text(),
            "admin access needed"
        );
    }
);

both_shards!(set_is_in_force_on_every_shard_when_it_answers, |shards| {
    let subject = Subject::ours(shards, &[]);
    for notice in ["first", "second", "third"] {
        subject.console(&format!("SET login_notify_message = '{notice}'"));
        for _ in 0..9 {
            let mut client = Client::connect(subject.address());
            let params = [("user", "postgres"), ("database", subject.entry(0))];
            let greeting = client.start(wire::PROTOCOL_3_0, &params);
            assert_eq!(greeting.notices, [notice]);
        }
    }
    let table = subject.console("SHOW SHARDS").table();
    assert!(table.iter().all(|row| row["logins"] != "0"), "{table:?}");
});

both_shards!(set_changes_the_size_of_a_pool_in_use, |shards| {
    let subject = Subject::ours(shards, &[]);
    let mut clients: Vec<Client> = (0..6).map(|_| subject.client()).collect();
    for size in [1, 3, 2] {
        assert!(
            subject
                .console(&format!("SET default_pool_size = {size}"))
                .error
                .is_none()
        );
        clients
            .iter_mut()
            .for_each(|client| client.send(&wire::query("begin")));
        let served = || subject.pools(subject.entry(0), "sv_active");
        wait_until("as many are served as may be", || served() == size);
        wait_until("the others wait", || {
            subject.pools(subject.entry(0), "cl_waiting") == 6 - size
        });
        // Everybody gets a turn.
        let mut left: Vec<usize> = (0..6).collect();
        while !left.is_empty() {
            left.retain(|at| {
                let client = &mut clients[*at];
                if client.has_nothing_to_read() {
                    return true;
                }
                assert_eq!(client.reply().status, b'T');
                assert_eq!(client.query("commit").status, b'I');
                false
            });
        }
    }
});

compared!(state_follows_pause_and_resume, since(1, 19), |subject| {
    let state = || {
        let table = subject.console("SHOW STATE").table();
        let rows = table
            .iter()
            .map(|row| format!("{}={}", row["key"], row["value"]));
        rows.collect::<Vec<_>>().join(" ")
    };
    let suspended = match subject.is_from((1, 26)) {
        true => "",
        false => " suspended=no",
    };
    let serving = format!("active=yes paused=no{suspended}");
    assert_eq!(state(), serving);
    subject.console(&format!("PAUSE {}", subject.entry(0)));
    assert_eq!(state(), serving);
    subject.console("PAUSE");
    assert_eq!(state(), format!("active=no paused=yes{suspended}"));
    subject.console("RESUME");
    assert_eq!(state(), serving);
});

both_shards!(
    console_works_with_all_places_taken_and_while_paused,
    |shards| {
        let subject = Subject::ours(shards, &[("max_client_conn", "2")]);
        let _clients = [subject.client(), subject.client()];
        let mut late = Client::connect(subject.address());
        late.start(
            wire::PROTOCOL_3_0,
            &[("user", "postgres"), ("database", subject.entry(0))],
        )
        .assert_fatal("no more connections allowed (max_client_conn)");
        assert_eq!(subject.console("PAUSE").complete, ["PAUSE"]);
        for command in [
            "SHOW CLIENTS",
            "SHOW SERVERS",
            "SHOW POOLS",
            "SHOW STATS",
            "SHOW CONFIG",
            "SHOW LISTS",
        ] {
            assert!(subject.console(command).error.is_none(), "{command}");
        }
        assert_eq!(subject.console("RELOAD").complete, ["RELOAD"]);
        assert_eq!(subject.console("RESUME").complete, ["RESUME"]);
    }
);

both_shards!(rows_are_chosen_by_where_and_limit, |shards| {
    let subject = Subject::ours(shards, &[]);
    let named = |name: &str| {
        let params = [
            ("user", "postgres"),
            ("database", subject.entry(0)),
            ("application_name", name),
        ];
        Client::login_with(subject.address(), &params)
    };
    let mut clients: Vec<Client> = ["ann", "bob", "bob", "bob", "it's"].map(named).into();
    clients[1].query("begin");
    let mut admin = subject.admin();
    let mut count = |rest: &str| {
        let reply = admin.query(&format!("SHOW CLIENTS WHERE {rest}"));
        assert!(reply.error.is_none(), "{rest}: {reply:?}");
        reply.rows.len()
    };
    for (rest, rows) in [
        ("application_name = bob", 3),
        ("application_name = 'it''s';", 1),
        ("application_name <> bob AND database = 'pgbouncer'", 1),
        ("application_name = bob AND state = active", 1),
        ("application_name = bob AND state = idle AND port > 0", 2),
        ("application_name = bob LIMIT 2", 2),
        ("application_name = bob LIMIT 0", 0),
        ("wait >= 0 and wait_us < 1000000 LIMIT 100", 6),
        ("id < 0", 0),
    ] {
        assert_eq!(count(rest), rows, "{rest}");
    }
    assert_eq!(admin.query("SHOW CLIENTS LIMIT 4").rows.len(), 4);
    assert_eq!(
        admin.query("SHOW SERVERS WHERE state = active").rows.len(),
        1
    );
    let one = format!(
        "SHOW SOCKETS WHERE state = 'sv_active' AND database = '{}'",
        subject.entry(0)
    );
    assert_eq!(admin.query(&one).rows.len(), 1);
    let pools = format!(
        "SHOW POOLS WHERE sv_active > 0 AND \"database\" = '{}'",
        subject.entry(0)
    );
    assert_eq!(admin.query(&pools).rows.len(), 1);
    for (command, code) in [
        ("SHOW CLIENTS WHERE nothing = 1", "42703"),
        ("SHOW CLIENTS WHERE port = x", "22P02"),
        ("SHOW CLIENTS WHERE port = $1", "42P02"),
        ("SHOW CLIENTS WHERE", "08P01"),
        ("SHOW CLIENTS LIMIT -1", "08P01"),
    ] {
        assert_eq!(admin.query(command).code(), code, "{command}");
    }
});

both_shards!(driver_chooses_rows_by_parameters, |shards| {
    let subject = Subject::ours(shards, &[]);
    let mut client = subject.client();
    client.query("begin");
    driver::block_on(async {
        let console = driver::connect(subject.address(), "postgres", "", "pgbouncer");
        let console = console.await.unwrap();
        let statement = "SHOW SERVERS WHERE database = $1 AND port > $2 LIMIT $3";
        let (entry, port, limit) = (subject.entry(0), 0i32, 5i64);
        let rows = console
            .query(statement, &[&entry, &port, &limit])
            .await
            .unwrap();
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0].get::<_, &str>("state"), "active");
        let none = console
            .query(statement, &[&"nowhere", &port, &limit])
            .await
            .unwrap();
        assert!(none.is_empty());
        let missing: Option<&str> = None;
        let none = console
            .query(statement, &[&missing, &port, &limit])
            .await
            .unwrap();
        assert!(none.is_empty());
    });
});

both_shards!(driver_gives_orders_by_parameters, |shards| {
    let subject = Subject::ours(shards, &[("query_timeout", "0")]);
    let mut client = subject.client();
    let entry = subject.entry(0);
    driver::block_on(async {
        let console = driver::connect(subject.address(), "postgres", "", "pgbouncer");
        let console = console.await.unwrap();
        let value = "2.5";
        console
            .execute("SET query_timeout = $1", &[&value])
            .await
            .unwrap();
        let shown = subject.console("SHOW CONFIG WHERE key = query_timeout");
        assert_eq!(shown.table()[0]["value"], value);
        console.execute("DISABLE $1", &[&entry]).await.unwrap();
        let refused = console
            .execute("DISABLE $1", &[&"pgbouncer"])
            .await
            .unwrap_err();
        let text = refused.as_db_error().unwrap().message();
        assert_eq!(text, "cannot disable admin db: pgbouncer");
        let of_client = "SHOW CLIENTS WHERE database = $1";
        let row = console.query_one(of_client, &[&entry]).await.unwrap();
        let id: i32 = row.get("id");
        console.execute("KILL_CLIENT $1", &[&id]).await.unwrap();
    });
    client.reply().assert_fatal("admin forced disconnect");
    let disabled = subject.console("SHOW DATABASES WHERE disabled = 1").table();
    assert_eq!((disabled.len(), &*disabled[0]["name"]), (1, entry));
    assert_eq!(subject.console("PAUSE $1").code(), "42P02");
});

both_shards!(use_of_prepared_statements_is_shown, |shards| {
    let topology = Topology::new(shards).pool_size(1);
    let topology = topology
        .set("max_prepared_statements", 1)
        .set("stats_users", vec!["watcher"]);
    let stage = Stage::pooled(topology.user_secret("watcher", ""));
    let mut clients = [stage.client(), stage.client(), stage.client()];
    let shown = |text: &str| {
        let table = stage.console("SHOW PREPARED_STATEMENTS").table();
        let row = table.into_iter().find(|row| row["text"] == text);
        row.unwrap_or_else(|| panic!("no row of {text}"))
    };
    for client in &mut clients {
        let batch = [
            parse("s", "select $1::int + 41"),
            run_prepared("s", &["1"]),
            sync(),
        ]
        .concat();
        assert_eq!(client.exchange(&batch).value(), "42");
    }
    let row = shown("select $1::int + 41");
    assert_eq!(
        (&*row["names"], &*row["misses"], &*row["hits"]),
        ("3", "1", "5")
    );
    assert_eq!(row["evictions"], "0");
    assert!(row["bytes"].parse::<u64>().unwrap() > 20, "{row:?}");
    let other = [parse("t", "select 'other'"), run_prepared("t", &[]), sync()].concat();
    assert_eq!(clients[0].exchange(&other).value(), "other");
    assert_eq!(
        clients[0]
            .exchange(&[run_prepared("s", &["2"]), sync()].concat())
            .value(),
        "43"
    );
    let row = shown("select $1::int + 41");
    assert_eq!((&*row["misses"], &*row["evictions"]), ("2", "1"));
    let params = [("user", "watcher"), ("database", "pgbouncer")];
    let table = Client::login_with(stage.address(), &params)
        .query("SHOW PREPARED_STATEMENTS")
        .table();
    assert!(
        table
            .iter()
            .all(|row| !row.contains_key("text") && row.contains_key("hits")),
        "{table:?}"
    );
    drop(clients);
    assert!(stage.console("SHOW PREPARED_STATEMENTS").error.is_none());
});

both_shards!(clients_and_servers_are_counted, |shards| {
    let stage = Stage::pooled(Topology::new(shards).pool_size(2));
    let mut clients: Vec<Client> = (0..5).map(|_| stage.client()).collect();
    clients[0].value("begin");
    // One session, as one that has just gone may still be counted.
    let mut admin = Client::login(stage.address(), "pgbouncer");
    let mut count = |table: &str, key: (&str, &str), column: &str| {
        let rows = admin.query(table).table();
        let row = rows.iter().find(|row| row[key.0] == key.1).unwrap();
        row[column].parse::<u32>().unwrap()
    };
    let column = "current_client_connections";
    assert_eq!(count("SHOW DATABASES", ("name", &stage.entry), column), 5);
    assert_eq!(count("SHOW DATABASES", ("name", "pgbouncer"), column), 1);
    assert_eq!(count("SHOW USERS", ("name", "postgres"), column), 5);
    assert_eq!(count("SHOW LISTS", ("list", "used_clients"), "items"), 6);
    assert_eq!(count("SHOW LISTS", ("list", "login_clients"), "items"), 0);
    assert_eq!(count("SHOW LISTS", ("list", "used_servers"), "items"), 1);
    let silent = Client::connect(stage.address());
    wait_until("it is seen", || {
        count("SHOW LISTS", ("list", "login_clients"), "items") == 1
    });
    drop((clients, silent));
    wait_until("nobody is left", || {
        count("SHOW DATABASES", ("name", &stage.entry), column) == 0
    });
    assert_eq!(count("SHOW USERS", ("name", "postgres"), column), 0);
});
