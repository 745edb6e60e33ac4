//! Every timeout: its message, that it fires in time, whose it is, and what it does not count.

use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use crate::support::canary::Span;
use crate::support::drop_in::*;
use crate::support::postgres::Postgres;
use crate::support::wait::PATIENCE;
use crate::support::wire::*;
use crate::support::*;

/// Waits for the farewell `text`, which is due `after` from the begin of the span.
#[track_caller]
fn expect_farewell(client: &mut Client, text: &str, span: Span, after: Duration) {
    let reply = client.reply();
    reply.assert_fatal(text);
    assert_eq!(reply.code(), "08P01");
    span.assert_over(text, after);
}

const SECOND: Duration = Duration::from_secs(1);

both_shards!(slow_query_is_cut_off, |shards| {
    let stage = Stage::pooled(Topology::new(shards).set("query_timeout", "1 s"));
    let mut client = stage.client();
    let span = Span::begin();
    client.send(&query("select pg_sleep(60)"));
    expect_farewell(&mut client, "query timeout", span, SECOND);
    stage
        .database
        .wait_backends(0, "query like '%pg_sleep(60)%' and state = 'active'");
    assert_eq!(stage.client().value("select 'alive'"), "alive");
});

both_shards!(
    query_timeout_does_not_count_idle_time_in_a_transaction,
    |shards| {
        let topology = Topology::new(shards)
            .set("query_timeout", "1 s")
            .set("idle_transaction_timeout", "3 s");
        let stage = Stage::pooled(topology);
        let mut client = stage.client();
        let span = Span::begin();
        client.value("begin");
        expect_farewell(&mut client, "idle transaction timeout", span, 3 * SECOND);
    }
);

both_shards!(
    idle_transaction_timeout_begins_anew_after_each_query,
    |shards| {
        let stage = Stage::pooled(Topology::new(shards).set("idle_transaction_timeout", "1 s"));
        let mut client = stage.client();
        client.value("begin");
        let span = Span::begin();
        client.value("select pg_sleep(2)");
        expect_farewell(
            &mut client,
            "idle transaction timeout",
            span,
            SECOND * 29 / 10,
        );
        stage
            .database
            .wait_backends(0, "state = 'idle in transaction'");
    }
);

both_shards!(transaction_timeout_counts_from_its_first_query, |shards| {
    let stage = Stage::pooled(Topology::new(shards).set("transaction_timeout", "2 s"));
    let mut client = stage.client();
    let span = Span::begin();
    client.value("begin");
    for _ in 0..100 {
        client.send(&query("select pg_sleep(0.1)"));
        let reply = client.reply();
        if reply.closed {
            reply.assert_fatal("transaction timeout");
            return span.assert_over("transaction timeout", 2 * SECOND);
        }
    }
    panic!("it never fired");
});

both_shards!(idle_client_is_sent_away, |shards| {
    for mode in ["transaction", "session"] {
        let topology = Topology::new(shards).set("client_idle_timeout", "1 s");
        let stage = Stage::pooled(topology.mode(mode));
        let mut client = stage.client();
        let span = Span::begin();
        client.value("select 1");
        expect_farewell(&mut client, "client_idle_timeout", span, SECOND * 9 / 10);
        stage.database.wait_backends(0, "state <> 'idle'");
    }
});

both_shards!(client_in_line_is_sent_away, |shards| {
    // the shorter of query_wait_timeout and query_timeout counts
    for (wait, query_timeout, told) in [
        ("1 s", "0", "query_wait_timeout"),
        ("1 min", "1 s", "query_timeout"),
    ] {
        let topology = Topology::new(shards)
            .pool_size(1)
            .set("query_wait_timeout", wait)
            .user("postgres", "query_timeout", query_timeout);
        let stage = Stage::pooled(topology);
        let mut holder = stage.client();
        holder.value("begin");
        let mut late = stage.client();
        let span = Span::begin();
        late.send(&query("select 1"));
        expect_farewell(&mut late, told, span, SECOND);
        holder.value("commit");
    }
});

both_shards!(user_comes_before_database_comes_before_the_rest, |shards| {
    let database = Postgres::shared().database();
    let ann = format!("ann_{}", database.name);
    database.sql(&format!("create role {ann} login"));
    let topology = Topology::new(shards)
        .set("client_idle_timeout", "1 s")
        .database("plain", &database, &[])
        .database("patient", &database, &[("client_idle_timeout", "1 h")])
        .user_secret(&ann, "")
        .user(&ann, "client_idle_timeout", "1 s");
    let stage = Stage::on(database, topology, &[]);
    let login = |entry: &str, user: &str| {
        Client::login_with(stage.address(), &[("user", user), ("database", entry)])
    };
    let mut patient = login("patient", "postgres");
    for (entry, user) in [("plain", "postgres"), ("patient", ann.as_str())] {
        let span = Span::begin();
        let mut client = login(entry, user);
        expect_farewell(&mut client, "client_idle_timeout", span, SECOND);
    }
    assert!(patient.has_nothing_to_read());
    assert_eq!(patient.value("select 'here'"), "here");
});

// The user's own setting, else the database's, else that of all; for what happens on servers it is the user there.
both_shards!(nearest_setting_of_every_timeout_counts, |shards| {
    let begin_and_sleep: &[&str] = &["begin", "select pg_sleep(3)"];
    let cases: [(&str, &str, &[&str]); 3] = [
        ("query_timeout", "query timeout", &["select pg_sleep(3)"]),
        (
            "idle_transaction_timeout",
            "idle transaction timeout",
            &["begin"],
        ),
        (
            "transaction_timeout",
            "transaction timeout",
            begin_and_sleep,
        ),
    ];
    let database = Postgres::shared().database();
    let [quick, slow] = ["quick", "slow"].map(|name| {
        let name = format!("{name}_{}", database.name);
        database.sql(&format!("create role {name} login"));
        name
    });
    for (key, text, queries) in cases {
        let topology = Topology::new(shards)
            .set(key, "1 s")
            .database("plain", &database, &[])
            .database("patient", &database, &[(key, "1 h")])
            .database("hasty", &database, &[(key, "1 s")])
            .database("forced", &database, &[("user", &quick), (key, "1 h")])
            .user_secret(&quick, "")
            .user(&quick, key, "1 s")
            .user_secret(&slow, "")
            .user(&slow, key, "1 h");
        let pooler = Pooler::start(&topology);
        let table = [
            ("plain", "postgres", true),
            ("patient", "postgres", false),
            ("patient", quick.as_str(), true),
            ("hasty", slow.as_str(), false),
            ("plain", slow.as_str(), false),
            ("forced", slow.as_str(), true),
        ];
        std::thread::scope(|scope| {
            for (entry, user, fires) in table {
                let pooler = &pooler;
                scope.spawn(move || {
                    let params = [("user", user), ("database", entry)];
                    let mut client = Client::login_with(pooler.address, &params);
                    for query in &queries[..queries.len() - 1] {
                        client.query(query);
                    }
                    let mut reply = client.query(queries.last().unwrap());
                    if fires {
                        if reply.error.is_none() {
                            reply = client.reply();
                        }
                        return reply.assert_fatal(text);
                    }
                    assert!(reply.error.is_none(), "{key} {entry} {user}: {reply:?}");
                    // It has been idle for longer than the timeout that is not meant.
                    wait::pace_until(Instant::now() + 2 * SECOND);
                    assert_eq!(client.value("select 'here'"), "here");
                });
            }
        });
    }
});

drop_in!(every_timeout_of_clients_is_over_in_time, |brand| {
    let cases: [(&str, &str, &[&str]); 3] = [
        ("query_timeout", "query timeout", &["select pg_sleep(60)"]),
        ("client_idle_timeout", "client_idle_timeout", &["select 1"]),
        (
            "idle_transaction_timeout",
            "idle transaction timeout",
            &["begin"],
        ),
    ];
    for (setting, text, queries) in cases {
        let drop_in = start(brand, &format!("{setting} = 2"));
        let mut client = drop_in.client();
        let span = Span::begin();
        for sql in queries {
            client.send(&query(sql));
        }
        let mut reply = client.reply();
        if !reply.closed {
            reply = client.reply();
        }
        reply.assert_fatal(text);
        span.assert_over(text, 2 * SECOND);
    }
    let drop_in = start(
        brand,
        "query_wait_timeout = 2\nclient_login_timeout = 2\ntcp_defer_accept = 0",
    );
    let (mut holder, mut late) = (drop_in.client(), drop_in.client());
    assert_eq!(holder.query("begin").status, b'T');
    let span = Span::begin();
    late.send(&query("select 1"));
    expect_farewell(&mut late, "query_wait_timeout", span, 2 * SECOND);
    let span = Span::begin();
    // That it says nothing must be seen at once (tcp_defer_accept).
    let mut silent = Client::connect(drop_in.address);
    let reply = silent.reply();
    assert!(reply.closed, "{reply:?}");
    span.assert_over("client_login_timeout", 2 * SECOND);
});

/// Pool of one, transaction mode.
fn start(brand: Brand, more: &str) -> DropIn {
    let more = format!("pool_mode = transaction\ndefault_pool_size = 1\n{more}");
    DropIn::start(brand, Postgres::shared().database(), &more)
}

drop_in!(connection_to_a_silent_server_is_given_up_in_time, |brand| {
    let (given_up, ends) = channel();
    let server = FakeServer::start(move |mut server| {
        server.wait_closed();
        // The first tells; nobody listens to the others.
        let _ = given_up.send(());
    });
    let more = format!(
        "server_connect_timeout = 2\n[databases]\nsilent = host=127.0.0.1 port={}",
        server.address.port()
    );
    let drop_in = start(brand, &more);
    let mut client = Client::connect(drop_in.address);
    let params = [("user", "postgres"), ("database", "silent")];
    let span = Span::begin();
    client.send(&startup(PROTOCOL_3_0, &params));
    ends.recv_timeout(PATIENCE).expect("an end");
    span.assert_over("connect timeout", SECOND * 19 / 10);
    wait_until("it says so", || drop_in.log().contains("connect timeout"));
});

// In PgBouncer since 1.25.
both_shards!(client_in_line_is_told_in_time, |shards| {
    let topology = Topology::new(shards)
        .pool_size(1)
        .set("query_wait_notify", "2 s");
    let stage = Stage::pooled(topology);
    let (mut holder, mut client) = (stage.client(), stage.client());
    assert_eq!(holder.query("begin").status, b'T');
    let span = Span::begin();
    client.send(&query("select 1"));
    assert_eq!(client.read().tag, b'N');
    span.assert_over("the notice", 2 * SECOND);
});

both_shards!(console_knows_no_timeouts, |shards| {
    let topology = Topology::new(shards)
        .set("client_idle_timeout", "1 s")
        .set("query_timeout", "1 s");
    let stage = Stage::pooled(topology);
    let mut console = Client::login(stage.address(), "ringbouncer");
    let mut other = stage.client();
    other.reply().assert_fatal("client_idle_timeout");
    assert!(console.has_nothing_to_read());
    assert!(console.query("SHOW VERSION").error.is_none());
});

compared!(
    client_in_line_hears_which_timeout_is_over,
    since(1, 8),
    with & [("query_timeout", "1")],
    |subject| {
        let mut holders = [(); 4].map(|()| subject.client());
        for holder in &mut holders {
            assert_eq!(holder.query("begin").status, b'T');
        }
        let mut client = subject.client();
        client.query("select 1").assert_fatal("query_timeout");
        let reply = holders[0].query("select pg_sleep(60)");
        reply.assert_fatal("query timeout");
    }
);

compared!(
    client_that_waits_or_idles_for_too_long_hears_why,
    since(1, 8),
    with & [
        ("query_wait_timeout", "1"),
        ("idle_transaction_timeout", "3"),
        ("client_idle_timeout", "4"),
    ],
    |subject| {
        let mut idle = subject.client();
        let mut holders = [(); 4].map(|()| subject.client());
        for holder in &mut holders {
            assert_eq!(holder.query("begin").status, b'T');
        }
        let mut client = subject.client();
        client.query("select 1").assert_fatal("query_wait_timeout");
        for holder in &mut holders {
            holder.reply().assert_fatal("idle transaction timeout");
        }
        idle.reply().assert_fatal("client_idle_timeout");
    }
);
