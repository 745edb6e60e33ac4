//! The schema changes under prepared statements: "cached plan must not change result type" is not for clients.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use crate::support::peer::{Conversation, FakeServer};
use crate::support::wait::alone;
use crate::support::wire::*;
use crate::support::*;

const CLIENTS: usize = 200;

#[track_caller]
fn prepare(client: &mut Client, name: &str, sql: &str) {
    let reply = client.exchange(&[parse(name, sql), sync()].concat());
    assert_eq!(reply.tags, "1Z", "{reply:?}");
}

/// Bind, Describe of the portal, Execute, Sync: what libpq sends.
fn described(name: &str, params: &[&str]) -> Vec<u8> {
    let portal = [describe(b'P', ""), execute("", 0), sync()].concat();
    [bind("", name, params), portal].concat()
}

/// Bind that asks for binary values, as drivers that keep descriptions do.
fn binary(name: &str) -> Vec<u8> {
    let body = [b"\0", name.as_bytes(), b"\0\0\0\0\0\0\x01\0\x01"].concat();
    [message(b'B', &body), execute("", 0), sync()].concat()
}

fn table(stage: &Stage) {
    stage.database.sql("create table t (id int, v int)");
    stage.database.sql("insert into t values (1, 10)");
}

both_shards!(changed_result_type_is_not_the_clients_affair, |shards| {
    // one server, which has the statement from before the change
    let stage = Stage::pooled(Topology::new(shards).pool_size(1));
    table(&stage);
    let mut client = stage.client();
    prepare(&mut client, "s", "select * from t");
    assert_eq!(client.exchange(&described("s", &[])).tags, "2TDCZ");
    stage
        .database
        .sql("alter table t add column w text default 'new'");
    let reply = client.exchange(&described("s", &[]));
    assert_eq!((reply.tags.as_str(), reply.columns.len()), ("2TDCZ", 3));
    stage.database.sql("alter table t drop column w");
    let text = [run_prepared("s", &[]), sync()].concat();
    assert_eq!(client.exchange(&text).rows[0].len(), 2);
    stage.database.sql("alter table t alter column v type text");
    let reply = client.exchange(&[describe(b'S', "s"), sync()].concat());
    assert_eq!(reply.tags, "tTZ");
    assert_eq!(stage.stats(&stage.entry, "total_bind_count"), 3);
});

both_shards!(
    statement_whose_eviction_was_skipped_is_asked_for_its_result_once,
    |shards| {
        // one server, which keeps one statement: the Close that makes room stands behind an error
        let topology = Topology::new(shards)
            .pool_size(1)
            .set("max_prepared_statements", 1);
        let stage = Stage::pooled(topology);
        let mut client = stage.client();
        prepare(&mut client, "other", "select 1");
        prepare(&mut client, "kept", "select 2");
        let told = client.exchange(&[describe(b'S', "kept"), sync()].concat());
        assert_eq!(told.tags, "tTZ");
        let fails = [
            parse("", "select $1::int"),
            bind("", "", &["x"]),
            run_prepared("other", &[]),
            sync(),
        ];
        client.send(&[fails.concat(), binary("kept")].concat());
        assert_eq!(client.reply().tags, "1EZ");
        assert_eq!(client.reply().tags, "2DCZ");
    }
);

both_shards!(
    half_a_header_behind_a_batch_is_the_next_messages,
    |shards| {
        let stage = Stage::pooled(Topology::new(shards).pool_size(1));
        table(&stage);
        let mut client = stage.client();
        prepare(&mut client, "s", "select * from t");
        assert_eq!(client.exchange(&described("s", &[])).tags, "2TDCZ");
        stage.database.sql("alter table t add column w int");
        let next = query("select 'next'");
        client.send(&[described("s", &[]), next[..3].to_vec()].concat());
        // As PostgreSQL, or prepared anew.
        let reply = client.reply();
        assert!(["EZ", "2TDCZ"].contains(&&*reply.tags), "{reply:?}");
        client.send(&next[3..]);
        assert_eq!(client.reply().value(), "next");
    }
);

both_shards!(batch_cut_into_bytes_is_sent_again_as_a_whole, |shards| {
    let stage = Stage::pooled(Topology::new(shards).pool_size(1));
    table(&stage);
    let mut client = stage.client();
    prepare(&mut client, "s", "select *, $1::text from t");
    assert_eq!(client.exchange(&described("s", &["a"])).tags, "2TDCZ");
    stage.database.sql("alter table t add column w int");
    client.send_bytewise(&described("s", &["b"]));
    let reply = client.reply();
    assert_eq!((reply.tags.as_str(), reply.rows[0].len()), ("2TDCZ", 4));
    assert_eq!(reply.rows[0][3].as_deref(), Some("b"));
});

/// A server that refuses the first Bind at once, and says something for the client to see behind that.
fn refuses_first_bind(mut server: Conversation) {
    let (mut binds, mut is_skipping) = (0, false);
    if !server.login() {
        return;
    }
    while let Some(request) = server.read() {
        let is_skipped = is_skipping && request.tag != b'S';
        let reply = match request.tag {
            _ if is_skipped => Vec::new(),
            b'P' => message(b'1', b""),
            b'C' => message(b'3', b""),
            b'B' if binds == 0 => {
                (binds, is_skipping) = (1, true);
                let fields = [
                    (b'S', "ERROR"),
                    (b'C', "0A000"),
                    (b'M', "cached plan must not change result type"),
                    (b'R', "RevalidateCachedQuery"),
                ];
                let notice = message(b'N', b"SNOTICE\0C00000\0Mrefused\0\0");
                [error(&fields), notice].concat()
            }
            b'B' => message(b'2', b""),
            b'D' => one_column("x"),
            b'E' => [one_value("new"), complete("SELECT 1")].concat(),
            b'S' => {
                is_skipping = false;
                ready(b'I')
            }
            _ => return,
        };
        server.send(&reply);
    }
}

/// A client whose batch has been refused after `bind`, when the refusal has come to the pooler.
fn refused_early(shards: usize, bind: &[u8]) -> (Client, Stage, FakeServer) {
    let server = FakeServer::start(refuses_first_bind);
    let topology = Topology::new(shards).pool_size(1);
    let stage = Stage::pooled(topology.database_at("fake", server.address, &[]));
    let mut client = Client::login(stage.address(), "fake");
    prepare(&mut client, "s", "select x");
    client.send(bind);
    assert_eq!(client.read().tag, b'N');
    (client, stage, server)
}

both_shards!(batch_refused_before_it_is_whole_is_sent_again, |shards| {
    let (mut client, _stage, _server) = refused_early(shards, &bind("", "s", &[]));
    let rest = [describe(b'P', ""), execute("", 0), sync()].concat();
    let reply = client.exchange(&rest);
    assert_eq!((reply.tags.as_str(), &*reply.value()), ("2TDCZ", "new"));
});

both_shards!(refused_client_of_an_old_description_is_told, |shards| {
    let batch = binary("s");
    let (bind, rest) = batch.split_at(batch.len() - execute("", 0).len() - sync().len());
    let (mut client, _stage, _server) = refused_early(shards, bind);
    let reply = client.exchange(rest);
    assert_eq!((reply.tags.as_str(), reply.code()), ("EZ", "0A000"));
});

both_shards!(refused_client_that_flushes_is_told_at_once, |shards| {
    let (mut client, _stage, _server) = refused_early(shards, &bind("", "s", &[]));
    client.send(&flush());
    assert_eq!(client.expect(b'E').failure().code, "0A000");
    assert_eq!(client.exchange(&sync()).tags, "Z");
});

both_shards!(
    new_client_prepares_and_runs_in_one_batch_after_a_change,
    |shards| {
        let stage = Stage::pooled(Topology::new(shards).pool_size(1));
        table(&stage);
        let batch = [parse("s", "select * from t"), described("s", &[])].concat();
        assert_eq!(stage.client().exchange(&batch).tags, "12TDCZ");
        stage.database.sql("alter table t add column w int");
        let reply = stage.client().exchange(&batch);
        assert_eq!((reply.tags.as_str(), reply.rows[0].len()), ("12TDCZ", 3));
    }
);

both_shards!(
    statement_inside_a_transaction_fails_as_on_postgresql,
    |shards| {
        let stage = Stage::pooled(Topology::new(shards).pool_size(1));
        table(&stage);
        let mut client = stage.client();
        prepare(&mut client, "s", "select * from t");
        client.exchange(&described("s", &[]));
        stage.database.sql("alter table t add column w int");
        client.value("begin");
        let reply = client.exchange(&described("s", &[]));
        assert_eq!((reply.code(), reply.status), ("0A000", b'E'));
        client.value("rollback");
        client.value("begin");
        let reply = client.exchange(&described("s", &[]));
        assert_eq!((reply.tags.as_str(), reply.status), ("2TDCZ", b'T'));
        client.value("commit");
    }
);

both_shards!(
    other_servers_prepare_anew_before_a_transaction_can_fail,
    |shards| {
        let stage = Stage::pooled(Topology::new(shards).pool_size(2));
        table(&stage);
        let mut clients = [stage.client(), stage.client()];
        for client in &mut clients {
            prepare(client, "s", "select * from t");
        }
        // Both servers have the statement.
        clients
            .iter_mut()
            .for_each(|client| drop(client.value("begin")));
        for client in &mut clients {
            assert_eq!(client.exchange(&described("s", &[])).tags, "2TDCZ");
        }
        clients
            .iter_mut()
            .for_each(|client| drop(client.value("commit")));
        stage.database.sql("alter table t add column w int");
        assert_eq!(clients[0].exchange(&described("s", &[])).tags, "2TDCZ");
        clients
            .iter_mut()
            .for_each(|client| drop(client.value("begin")));
        for client in &mut clients {
            let reply = client.exchange(&described("s", &[]));
            assert_eq!(reply.tags, "2TDCZ", "{reply:?}");
        }
    }
);

both_shards!(batch_of_a_large_value_is_sent_again_as_well, |shards| {
    let stage = Stage::pooled(Topology::new(shards).pool_size(1));
    table(&stage);
    let mut client = stage.client();
    prepare(&mut client, "s", "select v, length($1) from t");
    let value = "x".repeat(900_000);
    let run = described("s", &[&value]);
    assert_eq!(client.exchange(&run).tags, "2TDCZ");
    stage.database.sql("alter table t alter column v type text");
    assert_eq!(client.exchange(&run).tags, "2TDCZ");
});

both_shards!(
    client_that_relies_on_an_old_description_is_told_as_by_postgresql,
    |shards| {
        // it could misread binary values of another type; a driver prepares anew when it gets this error
        let stage = Stage::pooled(Topology::new(shards).pool_size(1));
        table(&stage);
        let mut client = stage.client();
        prepare(&mut client, "s", "select v from t");
        assert_eq!(client.exchange(&binary("s")).tags, "2DCZ");
        stage
            .database
            .sql("alter table t alter column v type bigint");
        let reply = client.exchange(&binary("s"));
        assert_eq!((reply.tags.as_str(), reply.code()), ("EZ", "0A000"));
        prepare(&mut client, "again", "select v from t");
        assert_eq!(client.exchange(&binary("again")).tags, "2DCZ");
    }
);

/// A client that was told the types of "s" by `describe`, before they changed, and another one's lease of the only server
/// that has had the statement until then.
fn told_before_the_change(shards: usize, describe: &[u8]) -> (Stage, Client, Client) {
    let stage = Stage::pooled(Topology::new(shards).pool_size(2));
    table(&stage);
    let mut client = stage.client();
    prepare(&mut client, "s", "select v from t");
    assert!(client.exchange(describe).error.is_none());
    let mut hog = stage.client();
    hog.value("begin");
    stage.database.sql("alter table t alter column v type real");
    (stage, client, hog)
}

/// Makes the free server know the types of "s" as they are now.
fn make_known(stage: &Stage) {
    let mut other = stage.client();
    prepare(&mut other, "s", "select v from t");
    let reply = other.exchange(&[describe(b'S', "s"), sync()].concat());
    assert_eq!(reply.tags, "tTZ");
}

both_shards!(
    client_that_describes_is_told_the_new_types_and_no_error,
    |shards| {
        let ask = [describe(b'S', "s"), sync()].concat();
        let whole = [describe(b'S', "s"), binary("s")].concat();
        for is_one_batch in [true, false] {
            let (stage, mut client, _hog) = told_before_the_change(shards, &ask);
            make_known(&stage);
            if is_one_batch {
                assert_eq!(client.exchange(&whole).tags, "tT2DCZ");
            } else {
                client.send(&[&*ask, &*binary("s")].concat());
                assert_eq!(client.reply().tags, "tTZ");
                assert_eq!(client.reply().tags, "2DCZ");
            }
            assert_eq!(client.exchange(&binary("s")).tags, "2DCZ");
        }
    }
);

both_shards!(
    client_that_has_described_a_portal_is_told_of_other_types,
    |shards| {
        // as pgjdbc does, which asks for binary values of the types that it has seen
        for is_known in [false, true] {
            let (stage, mut client, _hog) = told_before_the_change(shards, &described("s", &[]));
            if is_known {
                make_known(&stage);
            }
            for _ in 0..2 {
                let reply = client.exchange(&binary("s"));
                assert_eq!((reply.tags.as_str(), reply.code()), ("EZ", "0A000"));
            }
            let batch = [&described("s", &[])[..], &binary("s")].concat();
            client.send(&batch);
            assert_eq!(client.reply().tags, "2TDCZ");
            assert_eq!(client.reply().tags, "2DCZ");
            assert_eq!(client.exchange(&binary("s")).tags, "2DCZ");
        }
    }
);

both_shards!(
    description_of_a_portal_is_of_the_statement_bound_last,
    |shards| {
        let batches = [
            [parse("", "select 'x'"), bind("", "", &[])].concat(),
            [parse("n", "select 'x'"), bind("", "n", &[])].concat(),
        ];
        for last in batches {
            let ask = [bind("", "s", &[]), last, describe(b'P', ""), sync()].concat();
            let (stage, mut client, _hog) = told_before_the_change(shards, &ask);
            make_known(&stage);
            assert_eq!(client.exchange(&binary("s")).tags, "2DCZ", "never told");
        }
    }
);

both_shards!(
    failed_transaction_is_told_before_a_change_of_types,
    |shards| {
        for ask in [described("s", &[]), [describe(b'S', "s"), sync()].concat()] {
            let (stage, mut client, _hog) = told_before_the_change(shards, &ask);
            make_known(&stage);
            client.value("begin");
            assert_eq!(client.query("select 1/0").code(), "22012");
            let reply = client.exchange(&binary("s"));
            assert_eq!((reply.code(), reply.status), ("25P02", b'E'));
            client.value("rollback");
            assert_eq!(client.exchange(&binary("s")).code(), "0A000");
        }
    }
);

both_shards!(batch_behind_another_is_not_sent_twice, |shards| {
    let stage = Stage::pooled(Topology::new(shards).pool_size(1));
    table(&stage);
    let mut client = stage.client();
    prepare(&mut client, "s", "select * from t");
    prepare(&mut client, "add", "insert into t values (2, 20)");
    client.exchange(&described("s", &[]));
    stage.database.sql("alter table t add column w int");
    let add = [run_prepared("add", &[]), sync()].concat();
    client.send(&[described("s", &[]), add].concat());
    assert_eq!(client.reply().code(), "0A000");
    assert_eq!(client.reply().tags, "2CZ");
    assert_eq!(client.value("select count(*) from t"), "2");
});

both_shards!(
    statement_deallocated_behind_the_poolers_back_is_prepared_anew,
    |shards| {
        let stage = Stage::pooled(Topology::new(shards).pool_size(1));
        let mut client = stage.client();
        prepare(&mut client, "s", "select 'here'");
        assert_eq!(client.exchange(&described("s", &[])).value(), "here");
        client.value("do $$ begin execute 'deallocate all'; end $$");
        assert_eq!(client.exchange(&described("s", &[])).value(), "here");
    }
);

/// Runs statements of a client until told to stop; how many there were.
fn keep_busy(stage: &Stage, number: usize, done: &AtomicBool, ready: &AtomicUsize) -> usize {
    let mut client = stage.client();
    prepare(&mut client, "all", "select * from t where id = $1");
    prepare(&mut client, "one", "select v from t where id = $1");
    prepare(
        &mut client,
        "set",
        "update t set v = v where id = $1 returning *",
    );
    let mut count = 0;
    loop {
        for name in ["all", "one", "set"] {
            let id = (number % 10).to_string();
            let reply = client.exchange(&described(name, &[&id]));
            assert!(reply.error.is_none() && !reply.closed, "{name}: {reply:?}");
            assert_eq!(reply.rows.len(), 1, "{name}: {reply:?}");
            assert_eq!(
                reply.rows[0].len(),
                reply.columns.len(),
                "{name}: {reply:?}"
            );
            count += 1;
        }
        if count == 3 {
            ready.fetch_add(1, Ordering::AcqRel);
        }
        if done.load(Ordering::Acquire) {
            return count;
        }
    }
}

both_shards!(migration_under_busy_clients_is_seen_by_none, |shards| {
    let _alone = alone();
    let stage = Stage::pooled(Topology::new(shards).pool_size(8));
    stage
        .database
        .sql("create table t (id int primary key, v int)");
    stage
        .database
        .sql("insert into t select n, n from generate_series(0, 9) n");
    let (done, ready) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        let spawn = |number| {
            let (stage, done, ready) = (&stage, &done, &ready);
            scope.spawn(move || keep_busy(stage, number, done, ready))
        };
        let clients: Vec<_> = (0..CLIENTS).map(spawn).collect();
        let all_went_round = |target: usize| ready.load(Ordering::Acquire) >= target;
        wait_until("all are busy", || {
            all_went_round(CLIENTS) || clients.iter().any(|client| client.is_finished())
        });
        let mut migration = stage.database.direct();
        for change in [
            "alter table t add column w text default 'w'",
            "alter table t alter column v type bigint",
            "alter table t drop column w",
            "alter table t add column w int default 1, add column x int",
            "alter table t alter column v type text",
            "alter table t drop column x",
        ] {
            let before = stage.stats(&stage.entry, "total_query_count");
            migration.value(change);
            wait_until("everybody has met the change", || {
                let now = stage.stats(&stage.entry, "total_query_count");
                now > before + 6 * CLIENTS as u64
                    || clients.iter().any(|client| client.is_finished())
            });
        }
        done.store(true, Ordering::Release);
        clients
            .into_iter()
            .for_each(|client| assert!(client.join().unwrap() > 6));
    });
    stage.assert_no_leak();
});
