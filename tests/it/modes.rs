//! When a server goes back to its pool: after a statement, a transaction, a session.

use crate::support::wire::*;
use crate::support::*;

const PID: &str = "select pg_backend_pid()";

/// Asks for something that needs a server and asserts that the client has to stand in line.
#[track_caller]
fn assert_queued(stage: &Stage, client: &mut Client, sql: &str) {
    client.send(&query(sql));
    wait_until("the client stands in line", || {
        stage.pools(&stage.entry, "cl_waiting") == 1
    });
    assert!(client.has_nothing_to_read());
}

both_shards!(server_stays_with_an_open_transaction, |shards| {
    let stage = Stage::pooled(Topology::new(shards).pool_size(1).mode("transaction"));
    let (mut holder, mut next) = (stage.client(), stage.client());
    assert_eq!(holder.query("begin").status, b'T');
    assert_queued(&stage, &mut next, "select 'served'");
    assert_eq!(holder.query("select 1/0").status, b'E');
    assert!(next.has_nothing_to_read());
    assert_eq!(holder.query("rollback").status, b'I');
    assert_eq!(next.reply().value(), "served");
});

both_shards!(server_stays_with_an_unfinished_pipeline, |shards| {
    let stage = Stage::pooled(Topology::new(shards).pool_size(1).mode("transaction"));
    let (mut holder, mut next) = (stage.client(), stage.client());
    holder.send(&[parse("", "select 'half'"), run_prepared("", &[]), flush()].concat());
    [b'1', b'2', b'D', b'C'].iter().for_each(|tag| {
        holder.expect(*tag);
    });
    assert_queued(&stage, &mut next, "select 'served'");
    assert_eq!(holder.exchange(&sync()).tags, "Z");
    assert_eq!(next.reply().value(), "served");
});

both_shards!(server_stays_with_an_open_copy, |shards| {
    let stage = Stage::pooled(Topology::new(shards).pool_size(1).mode("transaction"));
    stage.database.sql("create table t(n int)");
    let (mut holder, mut next) = (stage.client(), stage.client());
    holder.send(&query("copy t from stdin"));
    holder.expect(b'G');
    assert_queued(&stage, &mut next, "select count(*) from t");
    assert_eq!(
        holder
            .exchange(&[copy_data(b"1\n"), copy_done()].concat())
            .tags,
        "CZ"
    );
    assert_eq!(next.reply().value(), "1");
});

both_shards!(idle_clients_hold_no_server, |shards| {
    let stage = Stage::pooled(Topology::new(shards).pool_size(1).mode("transaction"));
    let mut clients: Vec<Client> = (0..20).map(|_| stage.client()).collect();
    let pids: Vec<String> = clients.iter_mut().map(|client| client.value(PID)).collect();
    assert!(pids.iter().all(|pid| *pid == pids[0]), "{pids:?}");
    assert_eq!(stage.database.backends("true"), 1);
});

both_shards!(session_keeps_its_server_until_the_client_leaves, |shards| {
    let stage = Stage::pooled(Topology::new(shards).pool_size(1).mode("session"));
    let mut holder = stage.client();
    let pid = holder.value(PID);
    let mut next = Client::connect(stage.address());
    let params = [("user", "postgres"), ("database", stage.entry.as_str())];
    next.send(&[startup(PROTOCOL_3_0, &params), query(PID)].concat());
    wait_until("the next client stands in line", || {
        stage.pools(&stage.entry, "cl_waiting") == 1
    });
    assert_eq!(holder.value(PID), pid);
    drop(holder);
    assert_eq!(next.reply().status, b'I');
    assert_eq!(next.reply().value(), pid);
});

both_shards!(session_leaves_nothing_to_the_next_client, |shards| {
    let stage = Stage::pooled(Topology::new(shards).pool_size(1).mode("session"));
    let mut first = stage.client();
    first.value("set work_mem = '77MB'; create temp table leak(n int); prepare leak as select 1; listen leak");
    let pid = first.value(PID);
    drop(first);
    let mut second = stage.client();
    assert_eq!(second.value(PID), pid);
    assert_ne!(second.value("show work_mem"), "77MB");
    assert_eq!(
        second.value("select to_regclass('pg_temp.leak') is null"),
        "t"
    );
    assert_eq!(
        second.value("select count(*) from pg_prepared_statements"),
        "0"
    );
    assert_eq!(
        second.value("select count(*) from pg_listening_channels()"),
        "0"
    );
});

both_shards!(
    session_that_leaves_in_a_transaction_loses_its_server,
    |shards| {
        let stage = Stage::pooled(Topology::new(shards).pool_size(1).mode("session"));
        stage.database.sql("create table t(n int)");
        let mut first = stage.client();
        let pid = first.value("begin; insert into t values (1); select pg_backend_pid()");
        drop(first);
        let mut second = stage.client();
        assert_ne!(second.value(PID), pid);
        assert_eq!(second.value("select count(*) from t"), "0");
    }
);

both_shards!(own_reset_query_replaces_discard_all, |shards| {
    let topology = Topology::new(shards).pool_size(1).mode("session");
    let stage = Stage::pooled(topology.set("server_reset_query", "set work_mem = '5MB'"));
    let pid = stage
        .client()
        .value("set work_mem = '77MB'; prepare kept as select 1; select pg_backend_pid()");
    let mut second = stage.client();
    assert_eq!(second.value(PID), pid);
    assert_eq!(second.value("show work_mem"), "5MB");
    assert_eq!(second.value("execute kept"), "1");
});

both_shards!(statement_mode_refuses_a_transaction_block, |shards| {
    let stage = Stage::pooled(Topology::new(shards).pool_size(1).mode("statement"));
    let mut client = stage.client();
    assert_eq!(client.value("select 1; select 2"), "1");
    client.send(&query("begin"));
    let mut reply = client.reply();
    if !reply.closed {
        reply = client.reply();
    }
    reply.assert_fatal("transaction blocks not allowed in statement pooling mode");
    stage.assert_no_leak();
});

both_shards!(
    statement_mode_refuses_a_transaction_block_in_one_flight,
    |shards| {
        let stage = Stage::pooled(Topology::new(shards).pool_size(1).mode("statement"));
        let mut client = stage.client();
        client.send(&[query("begin"), query("select 1"), query("commit")].concat());
        let mut reply = client.reply();
        while !reply.closed {
            reply = client.reply();
        }
        reply.assert_fatal("transaction blocks not allowed in statement pooling mode");
        assert_eq!(stage.client().value("select 'next'"), "next");
    }
);

both_shards!(
    reset_query_that_only_resets_settings_is_followed,
    |shards| {
        // session mode, pool of 1: what the first client set at login is reset, so the second sets it again
        let topology = Topology::new(shards).pool_size(1).mode("session");
        let stage = Stage::pooled(topology.set("server_reset_query", "RESET ALL"));
        for _ in 0..3 {
            let params = [
                ("user", "postgres"),
                ("database", stage.entry.as_str()),
                ("search_path", "elsewhere"),
            ];
            let mut client = Client::login_with(stage.address(), &params);
            assert_eq!(client.value("show search_path"), "elsewhere");
            client.send(&terminate());
            client.expect_closed();
        }
    }
);

both_shards!(database_and_user_may_have_a_mode_of_their_own, |shards| {
    let topology = Topology::new(shards)
        .mode("statement")
        .user_secret("modal", "");
    let topology = topology.user("modal", "pool_mode", "session");
    let database = Postgres::shared().database();
    Client::login(database.postgres.address(), "postgres").query("create role modal login");
    let stage = Stage::on(database, topology, &[("pool_mode", "transaction")]);
    assert_eq!(stage.client().query("begin").status, b'T');
    let params = [("user", "modal"), ("database", stage.entry.as_str())];
    let mut modal = Client::login_with(stage.address(), &params);
    modal.value("set work_mem = '77MB'");
    let mut others: Vec<Client> = (0..3).map(|_| stage.client()).collect();
    others
        .iter_mut()
        .for_each(|other| assert_ne!(other.value("show work_mem"), "77MB"));
    assert_eq!(modal.value("show work_mem"), "77MB");
    let table = stage.console("SHOW POOLS").table();
    let mode = |user: &str| {
        table
            .iter()
            .find(|row| row["user"] == user && row["database"] == stage.entry)
    };
    assert_eq!(mode("modal").unwrap()["pool_mode"], "session");
    assert_eq!(mode("postgres").unwrap()["pool_mode"], "transaction");
});
