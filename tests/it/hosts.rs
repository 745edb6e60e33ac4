//! Several hosts for one database.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::wire::*;
use crate::support::*;

/// Four servers, each opened for a client in a transaction; whether each is reached over the Unix socket.
fn four_ways(shards: usize, balance: &str) -> Vec<bool> {
    let database = postgres::Postgres::shared().database();
    let sockets = database.postgres.socket_dir().to_str().unwrap().to_owned();
    let host = format!("127.0.0.1, {sockets}");
    let keys = [("host", &*host), ("load_balance_hosts", balance)];
    let stage = Stage::on(database, Topology::new(shards).pool_size(4), &keys);
    let mut clients: Vec<_> = (0..4).map(|_| stage.client()).collect();
    for client in &mut clients {
        assert_eq!(client.query("begin").status, b'T');
    }
    let ways = clients
        .iter_mut()
        .map(|client| client.value("select inet_server_addr() is null") == "t");
    ways.collect()
}

both_shards!(servers_go_round_the_hosts, |shards| {
    let ways = four_ways(shards, "round-robin");
    assert_eq!(
        ways.iter().filter(|is_unix| **is_unix).count(),
        2,
        "{ways:?}"
    );
});

both_shards!(without_balance_servers_stay_at_the_first_host, |shards| {
    let ways = four_ways(shards, "disable");
    assert_eq!(
        ways.iter().filter(|is_unix| **is_unix).count(),
        0,
        "{ways:?}"
    );
});

both_shards!(host_that_fails_is_left_for_the_next, |shards| {
    for balance in ["round-robin", "disable"] {
        // Nobody listens at 127.0.0.2.
        let keys = [
            ("host", "127.0.0.2,127.0.0.1"),
            ("load_balance_hosts", balance),
        ];
        let topology = Topology::new(shards)
            .pool_size(1)
            .set("server_login_retry", "100 ms");
        let stage = Stage::with_keys(topology, &keys);
        assert_eq!(stage.client().value("select 'served'"), "served");
    }
});

both_shards!(tables_tell_how_hosts_are_used, |shards| {
    let stage = Stage::with_keys(Topology::new(shards), &[("host", "127.0.0.1,127.0.0.1")]);
    let table = stage.console("SHOW DATABASES").table();
    let row = table
        .iter()
        .find(|row| row["name"] == stage.entry)
        .expect("a row");
    assert_eq!(row["host"], "127.0.0.1,127.0.0.1");
    assert_eq!(row["load_balance_hosts"], "round-robin");
    stage.client().value("select 1");
    let table = stage.console("SHOW POOLS").table();
    let row = table
        .iter()
        .find(|row| row["database"] == stage.entry)
        .expect("a row");
    assert_eq!(row["load_balance_hosts"], "round-robin");
});

both_shards!(server_that_refuses_a_login_is_not_left, |shards| {
    let calls = AtomicUsize::new(0);
    let server = FakeServer::start(move |mut conversation| {
        if calls.fetch_add(1, Ordering::Relaxed) > 0 {
            if conversation.login() {
                conversation.serve("the first");
            }
        } else if conversation.read_startup() {
            let fields = [
                (b'S', "FATAL"),
                (b'C', "53300"),
                (b'M', "sorry, too many clients already"),
            ];
            conversation.send(&error(&fields));
        }
    });
    let keys = [
        ("host", "127.0.0.1,127.0.0.2"),
        ("load_balance_hosts", "disable"),
    ];
    let topology = Topology::new(shards)
        .set("server_login_retry", "50 ms")
        .database_at("db", server.address, &keys);
    let pooler = Pooler::start(&topology);
    let params = [("user", "postgres"), ("database", "db")];
    let refused = Client::connect(pooler.address).start(PROTOCOL_3_0, &params);
    refused.assert_fatal("sorry, too many clients already");
    assert_eq!(
        Client::login(pooler.address, "db").value("select 1"),
        "the first"
    );
    assert!(!pooler.log().contains("connect failed"), "{}", pooler.log());
});
