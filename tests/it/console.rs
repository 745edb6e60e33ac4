//! The admin console.

use std::process::Command;

use crate::support::wire::*;
use crate::support::*;

/// The columns of every table that people's tools know by name.
const TABLES: [(&str, &[&str]); 8] = [
    (
        "CLIENTS",
        &[
            "type",
            "user",
            "database",
            "replication",
            "state",
            "addr",
            "port",
            "local_addr",
            "local_port",
            "connect_time",
            "request_time",
            "wait",
            "wait_us",
            "close_needed",
            "ptr",
            "link",
            "remote_pid",
            "tls",
            "application_name",
            "prepared_statements",
            "id",
        ],
    ),
    (
        "POOLS",
        &[
            "database",
            "user",
            "cl_active",
            "cl_waiting",
            "cl_active_cancel_req",
            "cl_waiting_cancel_req",
            "sv_active",
            "sv_active_cancel",
            "sv_being_canceled",
            "sv_idle",
            "sv_used",
            "sv_tested",
            "sv_login",
            "maxwait",
            "maxwait_us",
            "pool_mode",
            "load_balance_hosts",
        ],
    ),
    (
        "DATABASES",
        &[
            "name",
            "host",
            "port",
            "database",
            "force_user",
            "pool_size",
            "min_pool_size",
            "reserve_pool_size",
            "server_lifetime",
            "pool_mode",
            "load_balance_hosts",
            "max_connections",
            "current_connections",
            "max_client_connections",
            "current_client_connections",
            "paused",
            "disabled",
        ],
    ),
    (
        "USERS",
        &[
            "name",
            "pool_size",
            "reserve_pool_size",
            "pool_mode",
            "max_user_connections",
            "current_connections",
            "max_user_client_connections",
            "current_client_connections",
        ],
    ),
    (
        "STATS",
        &[
            "database",
            "total_server_assignment_count",
            "total_xact_count",
            "total_query_count",
            "total_received",
            "total_sent",
            "total_xact_time",
            "total_query_time",
            "total_wait_time",
            "total_client_parse_count",
            "total_server_parse_count",
            "total_bind_count",
            "total_client_login_count",
            "avg_server_assignment_count",
            "avg_xact_count",
            "avg_query_count",
            "avg_recv",
            "avg_sent",
            "avg_xact_time",
            "avg_query_time",
            "avg_wait_time",
            "avg_client_parse_count",
            "avg_server_parse_count",
            "avg_bind_count",
            "avg_client_login_count",
        ],
    ),
    ("CONFIG", &["key", "value", "default", "changeable"]),
    ("LISTS", &["list", "items"]),
    ("VERSION", &["version"]),
];

both_shards!(tables_have_the_columns_that_tools_know, |shards| {
    let stage = Stage::pooled(Topology::new(shards));
    let mut client = stage.client();
    client.value("select 1");
    for (table, columns) in TABLES {
        let reply = stage.console(&format!("SHOW {table}"));
        assert_eq!(reply.columns, columns, "{table}");
        assert_eq!(reply.complete, ["SHOW"], "{table}");
        assert!(!reply.rows.is_empty(), "{table}");
    }
    assert_eq!(stage.console("SHOW SERVERS").columns, TABLES[0].1);
});

both_shards!(own_tables_answer_too, |shards| {
    let stage = Stage::pooled(Topology::new(shards));
    stage.client().value("select 1");
    assert_eq!(stage.console("SHOW SHARDS").rows.len(), shards);
    let reply = stage.console("SHOW LATENCY");
    assert!(
        reply.error.is_none() && !reply.columns.is_empty(),
        "{reply:?}"
    );
});

both_shards!(console_has_two_names_and_ignores_case, |shards| {
    let stage = Stage::pooled(Topology::new(shards));
    for name in ["ringbouncer", "pgbouncer"] {
        let mut client = Client::login(stage.address(), name);
        for command in ["SHOW VERSION", "show version;", "Show  Version ; "] {
            assert!(
                client
                    .query(command)
                    .value()
                    .contains(env!("CARGO_PKG_VERSION")),
                "{name}: {command}"
            );
        }
    }
});

both_shards!(
    console_answers_a_driver_through_the_extended_protocol,
    |shards| {
        let stage = Stage::pooled(Topology::new(shards).pool_size(2));
        let mut client = stage.client();
        client.value("select 1");
        driver::block_on(async {
            let console = driver::connect(stage.address(), "postgres", "", "ringbouncer")
                .await
                .unwrap();
            for _ in 0..3 {
                let rows = console.query("SHOW POOLS", &[]).await.unwrap();
                let row = rows
                    .iter()
                    .find(|row| row.get::<_, &str>("database") == stage.entry)
                    .unwrap();
                assert_eq!(row.get::<_, i32>("sv_idle"), 1);
                assert_eq!(row.get::<_, &str>("pool_mode"), "transaction");
            }
            assert!(console.query("SHOW NONSENSE", &[]).await.is_err());
            assert_eq!(console.query("SHOW VERSION", &[]).await.unwrap().len(), 1);
            for table in [
                "STATS",
                "CLIENTS",
                "SERVERS",
                "DATABASES",
                "USERS",
                "CONFIG",
                "LISTS",
                "SHARDS",
                "LATENCY",
            ] {
                assert!(
                    !console
                        .query(&format!("SHOW {table}"), &[])
                        .await
                        .unwrap()
                        .is_empty(),
                    "{table}"
                );
            }
        });
    }
);

both_shards!(console_survives_nonsense, |shards| {
    let stage = Stage::pooled(Topology::new(shards));
    let mut console = Client::login(stage.address(), "ringbouncer");
    for nonsense in [
        "SHOW",
        "SHOW NOTHING",
        "DROP TABLE x",
        "'",
        "SHOW POOLS; SHOW",
        "\u{fffd}",
        "PAUSE no_such_db",
    ] {
        let reply = console.query(nonsense);
        assert_eq!(
            reply.error.as_ref().map(|error| error.severity.as_str()),
            Some("ERROR"),
            "{nonsense}"
        );
        assert_eq!(reply.status, b'I', "{nonsense}");
    }
    assert_eq!(console.query("SHOW VERSION").rows.len(), 1);
    console.send(&query(&"SHOW ".repeat(100_000))[..60_000]);
    assert!(
        console.reply().closed,
        "an oversized message ends the session"
    );
});

both_shards!(console_is_closed_to_ordinary_users, |shards| {
    let topology = Topology::new(shards)
        .user_secret("ordinary", "")
        .user_secret("watcher", "");
    let stage = Stage::pooled(topology.set("stats_users", vec!["watcher"]));
    let params = |user| [("user", user), ("database", "ringbouncer")];
    let mut client = Client::connect(stage.address());
    client
        .start(PROTOCOL_3_0, &params("ordinary"))
        .assert_fatal("not allowed");
    let mut watcher = Client::login_with(stage.address(), &params("watcher"));
    assert!(!watcher.query("SHOW STATS").rows.is_empty());
    for command in [
        "RELOAD",
        "SHUTDOWN",
        "SHUTDOWN WAIT_FOR_CLIENTS",
        "SHUTDOWN WAIT_FOR_SERVERS",
    ] {
        assert_eq!(
            watcher.query(command).text(),
            "admin access needed",
            "{command}"
        );
    }
    assert_eq!(stage.client().value("select 1"), "1");
});

both_shards!(counters_count_what_was_done, |shards| {
    let stage = Stage::pooled(Topology::new(shards).pool_size(2));
    let mut clients: Vec<Client> = (0..6).map(|_| stage.client()).collect();
    for client in &mut clients {
        client.value("select 1");
        client.value("begin");
        client.value("select 2");
        client.value("commit");
        assert_eq!(client.exchange(&extended("select $1", &["3"])).value(), "3");
    }
    let count = |column| stage.stats(&stage.entry, column);
    assert_eq!(count("total_query_count"), 30);
    assert_eq!(count("total_xact_count"), 18);
    assert_eq!(count("total_client_login_count"), 6);
    assert!(count("total_received") > 0 && count("total_sent") > count("total_received"));
});

both_shards!(taking_leave_is_no_query, |shards| {
    let stage = Stage::pooled(Topology::new(shards).mode("session"));
    for _ in 0..3 {
        let mut client = stage.client();
        client.value("select 1");
        client.send(&terminate());
        client.expect_closed();
    }
    let count = |column| stage.stats(&stage.entry, column);
    assert_eq!(
        (count("total_query_count"), count("total_xact_count")),
        (3, 3)
    );
});

both_shards!(pools_show_who_is_served_and_who_waits, |shards| {
    let stage = Stage::pooled(Topology::new(shards).pool_size(2));
    let mut clients: Vec<Client> = (0..5).map(|_| stage.client()).collect();
    clients[..2]
        .iter_mut()
        .for_each(|client| assert_eq!(client.query("begin").status, b'T'));
    clients[2..]
        .iter_mut()
        .for_each(|client| client.send(&query("select 1")));
    wait_until("three wait", || {
        stage.pools(&stage.entry, "cl_waiting") == 3
    });
    assert_eq!(stage.pools(&stage.entry, "sv_active"), 2);
    clients[..2]
        .iter_mut()
        .for_each(|client| assert_eq!(client.query("commit").status, b'I'));
    clients[2..]
        .iter_mut()
        .for_each(|client| assert_eq!(client.reply().value(), "1"));
    wait_until("nobody waits", || {
        stage.pools(&stage.entry, "cl_waiting") == 0
    });
    assert_eq!(stage.pools(&stage.entry, "sv_idle"), 2);
});

both_shards!(clients_and_servers_are_listed_from_all_shards, |shards| {
    let stage = Stage::pooled(Topology::new(shards).pool_size(3));
    let mut clients: Vec<Client> = (0..9).map(|_| stage.client()).collect();
    clients[..3]
        .iter_mut()
        .for_each(|client| assert_eq!(client.query("begin").status, b'T'));
    let listed = |table: &str| {
        let table = stage.console(table).table();
        table
            .into_iter()
            .filter(|row| row["database"] == stage.entry)
            .collect::<Vec<_>>()
    };
    assert_eq!(listed("SHOW CLIENTS").len(), 9);
    let servers = listed("SHOW SERVERS");
    let mut pids: Vec<String> = servers
        .iter()
        .map(|row| row["remote_pid"].clone())
        .collect();
    let mut known: Vec<String> = clients[..3]
        .iter_mut()
        .map(|c| c.value("select pg_backend_pid()"))
        .collect();
    pids.sort();
    known.sort();
    assert_eq!(pids, known);
});

both_shards!(psql_health_check_succeeds, |shards| {
    let psql = postgres::binaries().join("psql");
    if !psql.exists() {
        return;
    }
    let stage = Stage::pooled(Topology::new(shards));
    stage.client().value("select 1");
    let port = stage.address().port().to_string();
    let mut command = Command::new(psql);
    command.args([
        "-X",
        "-h",
        "127.0.0.1",
        "-p",
        &port,
        "-U",
        "postgres",
        "-d",
        "pgbouncer",
    ]);
    let output = command.args(["-c", "SHOW STATS"]).output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(String::from_utf8_lossy(&output.stdout).contains(&stage.entry));
});
