//! Limits and fairness of one pool over all shards.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::wire::*;
use crate::support::*;

/// Every client runs `transactions` short transactions and checks its answers; all at the same time.
fn run_clients(stage: &Stage, clients: usize, transactions: usize) {
    thread::scope(|scope| {
        for id in 0..clients {
            scope.spawn(move || {
                let mut client = stage.client();
                for n in 0..transactions {
                    let mark = format!("{id}/{n}");
                    assert_eq!(client.value(&format!("begin; select '{mark}'")), mark);
                    assert_eq!(client.query("commit").status, b'I');
                }
            });
        }
    });
}

fn everybody_is_served_by_one_server(shards: usize) {
    let stage = Stage::pooled(Topology::new(shards).pool_size(1));
    assert_eq!(stage.shards, shards);
    run_clients(&stage, 40, 25);
    stage.assert_no_leak();
    assert_eq!(stage.database.backends("true"), 1);
}

both_shards!(
    one_server_serves_everybody,
    everybody_is_served_by_one_server
);

#[test]
fn one_server_serves_everybody_on_33_shards() {
    everybody_is_served_by_one_server(33);
}

fn pool_size_holds(shards: usize) {
    let stage = Stage::pooled(Topology::new(shards).pool_size(3));
    let finished = AtomicBool::new(false);
    thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut direct = stage.database.direct();
            let mut most = 0;
            while !finished.load(Ordering::Acquire) {
                let sql = format!("select count(*) {CLIENT_BACKENDS}");
                most = most.max(direct.value(&sql).parse::<u32>().unwrap());
            }
            most
        });
        run_clients(&stage, 60, 40);
        finished.store(true, Ordering::Release);
        let most = watch.join().unwrap();
        assert!((1..=3).contains(&most), "{most} server connections");
    });
}

both_shards!(postgres_never_sees_more_than_pool_size, pool_size_holds);

#[test]
fn postgres_never_sees_more_than_pool_size_with_33_shards() {
    pool_size_holds(33);
}

both_shards!(pool_is_used_up_to_its_size, |shards| {
    let stage = Stage::pooled(Topology::new(shards).pool_size(7));
    let mut clients: Vec<Client> = (0..7).map(|_| stage.client()).collect();
    clients
        .iter_mut()
        .for_each(|client| assert_eq!(client.query("begin").status, b'T'));
    assert_eq!(stage.database.backends("state = 'idle in transaction'"), 7);
    assert_eq!(stage.pools(&stage.entry, "sv_active"), 7);
});

both_shards!(users_have_pools_of_their_own, |shards| {
    let database = Postgres::shared().database();
    Client::login(database.postgres.address(), "postgres").query("create role neighbour login");
    let topology = Topology::new(shards)
        .pool_size(1)
        .user_secret("neighbour", "");
    let stage = Stage::on(database, topology, &[]);
    let mut holder = stage.client();
    holder.query("begin");
    let params = [("user", "neighbour"), ("database", stage.entry.as_str())];
    let mut neighbour = Client::login_with(stage.address(), &params);
    assert_eq!(neighbour.value("select current_user"), "neighbour");
});

both_shards!(forced_user_is_the_one_postgres_sees, |shards| {
    let database = Postgres::shared().database();
    Client::login(database.postgres.address(), "postgres").query("create role forced login");
    let stage = Stage::on(database, Topology::new(shards), &[("user", "forced")]);
    assert_eq!(stage.client().value("select current_user"), "forced");
});

both_shards!(client_queued_too_long_is_sent_away, |shards| {
    let topology = Topology::new(shards)
        .pool_size(1)
        .set("query_wait_timeout", "1s");
    let stage = Stage::pooled(topology);
    let (mut holder, mut late) = (stage.client(), stage.client());
    holder.query("begin");
    late.query("select 1").assert_fatal("query_wait_timeout");
    assert_eq!(holder.query("commit").status, b'I');
    drop((holder, late));
    stage.assert_no_leak();
});

both_shards!(client_that_leaves_the_line_does_not_block_it, |shards| {
    let stage = Stage::pooled(Topology::new(shards).pool_size(1));
    let (mut holder, mut leaver, mut patient) = (stage.client(), stage.client(), stage.client());
    holder.query("begin");
    leaver.send(&query("select 'never read'"));
    wait_until("one waits", || stage.pools(&stage.entry, "cl_waiting") == 1);
    patient.send(&query("select 'served'"));
    wait_until("two wait", || stage.pools(&stage.entry, "cl_waiting") == 2);
    leaver.reset();
    wait_until("one waits", || stage.pools(&stage.entry, "cl_waiting") == 1);
    holder.query("commit");
    assert_eq!(patient.reply().value(), "served");
});

both_shards!(client_above_max_client_conn_is_refused, |shards| {
    let stage = Stage::pooled(Topology::new(shards).set("max_client_conn", 3));
    let clients: Vec<Client> = (0..3).map(|_| stage.client()).collect();
    let params = [("user", "postgres"), ("database", stage.entry.as_str())];
    let refused = Client::connect(stage.address()).start(PROTOCOL_3_0, &params);
    refused.assert_fatal("no more connections allowed (max_client_conn)");
    drop(clients);
    let place = || {
        Client::connect(stage.address())
            .start(PROTOCOL_3_0, &params)
            .status
            == b'I'
    };
    wait_until("there is place again", place);
});

both_shards!(unknown_database_is_named_in_the_refusal, |shards| {
    let stage = Stage::pooled(Topology::new(shards));
    let params = [("user", "postgres"), ("database", "atlantis")];
    let reply = Client::connect(stage.address()).start(PROTOCOL_3_0, &params);
    reply.assert_fatal("no such database: atlantis");
});

both_shards!(
    database_missing_on_the_server_is_reported_in_its_words,
    |shards| {
        let postgres = Postgres::shared().address();
        let topology =
            Topology::new(shards).database_at("gone", postgres, &[("dbname", "atlantis")]);
        let pooler = Pooler::start(&topology);
        let params = [("user", "postgres"), ("database", "gone")];
        let mut client = Client::connect(pooler.address);
        let mut reply = client.start(PROTOCOL_3_0, &params);
        if reply.status == b'I' {
            reply = client.query("select 1");
        }
        assert_eq!((reply.code(), reply.closed), ("3D000", true));
        assert!(reply.text().contains("atlantis"));
    }
);

both_shards!(idle_servers_are_closed_after_their_timeout, |shards| {
    let stage = Stage::pooled(Topology::new(shards).set("server_idle_timeout", "1h"));
    let mut client = stage.client();
    client.value("select 1");
    assert_eq!(stage.database.backends("true"), 1);
    let set = stage.console("SET server_idle_timeout = '1s'");
    assert!(set.error.is_none(), "{set:?}");
    stage.database.wait_backends(0, "true");
    assert_eq!(client.value("select 'again'"), "again");
});

both_shards!(old_servers_are_replaced_after_their_lifetime, |shards| {
    let topology = Topology::new(shards)
        .pool_size(1)
        .set("server_lifetime", "1s");
    let stage = Stage::pooled(topology);
    let mut client = stage.client();
    let pid = client.value("select pg_backend_pid()");
    wait_until("another server answers", || {
        client.value("select pg_backend_pid()") != pid
    });
});

both_shards!(servers_of_one_age_are_not_closed_at_once, |shards| {
    let topology = Topology::new(shards)
        .pool_size(4)
        .set("server_lifetime", "2s");
    let stage = Stage::pooled(topology);
    let mut clients: Vec<Client> = (0..4).map(|_| stage.client()).collect();
    for sql in ["begin", "commit"] {
        clients.iter_mut().for_each(|client| {
            client.value(sql);
        });
    }
    let mut first = Instant::now();
    wait_until("the first is closed", || {
        let now = Instant::now();
        let is_whole = stage.database.backends("true") == 4;
        if is_whole {
            first = now;
        }
        !is_whole
    });
    stage.database.wait_backends(0, "true");
    // Half a second lies between two.
    assert!(first.elapsed() >= Duration::from_secs(1));
});

both_shards!(lifetime_of_zero_is_one_use, |shards| {
    let topology = Topology::new(shards)
        .pool_size(2)
        .set("server_lifetime", "0");
    let stage = Stage::pooled(topology);
    let mut clients: Vec<Client> = (0..6).map(|_| stage.client()).collect();
    let mut pids = BTreeSet::new();
    for _ in 0..2 {
        pids.extend(
            clients
                .iter_mut()
                .map(|client| client.value("select pg_backend_pid()")),
        );
    }
    assert_eq!(pids.len(), 12);
});

both_shards!(server_killed_while_idle_is_replaced_unnoticed, |shards| {
    let stage = Stage::pooled(Topology::new(shards).pool_size(2));
    let mut client = stage.client();
    let pid = client.value("select pg_backend_pid()");
    stage
        .database
        .sql(&format!("select pg_terminate_backend({pid})"));
    stage.database.wait_backends(0, &format!("pid = {pid}"));
    wait_until("the pool has noticed", || {
        stage.pools(&stage.entry, "sv_idle") == 0
    });
    assert_ne!(client.value("select pg_backend_pid()"), pid);
    drop(client);
    stage.assert_no_leak();
});

/// The server's last words, then ours, then the end.
#[track_caller]
fn hear_of_a_killed_server(client: &mut Client) {
    let mut heard = Vec::new();
    while let Ok(Some(message)) = client.try_read() {
        if message.tag != b'E' {
            continue;
        }
        let failure = message.failure();
        heard.push(format!(
            "{} {}: {}",
            failure.severity, failure.code, failure.text
        ));
    }
    let expected = [
        "FATAL 57P01: terminating connection due to administrator command",
        "FATAL 08P01: server conn crashed?",
    ];
    assert_eq!(heard, expected);
}

both_shards!(server_killed_while_leased_ends_its_client_only, |shards| {
    let stage = Stage::pooled(Topology::new(shards).pool_size(2));
    let (mut victim, mut other) = (stage.client(), stage.client());
    let pid = victim.value("begin; select pg_backend_pid()");
    assert_eq!(other.query("begin").status, b'T');
    stage
        .database
        .sql(&format!("select pg_terminate_backend({pid})"));
    hear_of_a_killed_server(&mut victim);
    assert_eq!(other.value("select 'untouched'"), "untouched");
    drop((victim, other));
    stage.assert_no_leak();
});

both_shards!(server_killed_in_mid_query_ends_its_client_only, |shards| {
    let stage = Stage::pooled(Topology::new(shards).pool_size(2));
    let (mut victim, mut other) = (stage.client(), stage.client());
    victim.send(&query("select pg_sleep(600) -- victim"));
    stage
        .database
        .wait_backends(1, "state = 'active' and query like '%victim'");
    let kill = "select pg_terminate_backend(pid) from pg_stat_activity where query like '%victim'";
    stage.database.sql(&format!(
        "{kill} and pid <> pg_backend_pid() and datname = current_database()"
    ));
    hear_of_a_killed_server(&mut victim);
    assert_eq!(other.value("select 'untouched'"), "untouched");
    drop((victim, other));
    stage.assert_no_leak();
});

both_shards!(restarted_postgres_is_found_again, |shards| {
    let database = Postgres::own().database();
    let topology = Topology::new(shards)
        .pool_size(2)
        .set("server_login_retry", "100ms");
    let stage = Stage::on(database, topology, &[]);
    assert_eq!(stage.client().value("select 1"), "1");
    let address = stage.database.postgres.address();
    stage.database.postgres.kill();
    stage.database.postgres.start();
    assert_eq!(
        stage.database.postgres.address(),
        address,
        "the port was taken meanwhile"
    );
    let params = [("user", "postgres"), ("database", stage.entry.as_str())];
    wait_until("clients are served again", || {
        let mut client = Client::connect(stage.address());
        client.start(PROTOCOL_3_0, &params).status == b'I'
            && client.query("select 1").value() == "1"
    });
    stage.assert_no_leak();
});

both_shards!(frozen_client_holds_up_nobody_else, |shards| {
    let stage = Stage::pooled(Topology::new(shards).pool_size(2));
    let mut frozen = stage.client();
    frozen.send(&query(
        "select repeat('x', 1000) from generate_series(1, 100000)",
    ));
    stage
        .database
        .wait_backends(1, "wait_event = 'ClientWrite'");
    run_clients(&stage, 12, 10);
    let count = frozen.reply().rows.len();
    assert_eq!(count, 100_000);
});

both_shards!(frozen_postgres_is_waited_for, |shards| {
    let stage = Stage::pooled(Topology::new(shards).pool_size(1));
    let mut client = stage.client();
    let pid = client.value("select pg_backend_pid()").parse().unwrap();
    let backend = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(backend, Signal::STOP).unwrap();
    client.send(&query("select 'thawed'"));
    assert!(!wait::holds_within(Duration::from_millis(200), || !client.has_nothing_to_read()));
    rustix::process::kill_process(backend, Signal::CONT).unwrap();
    assert_eq!(client.reply().value(), "thawed");
});
