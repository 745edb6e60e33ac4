//! Cancel requests: they hit the query they are meant for, or nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use crate::support::peer::Conversation;
use crate::support::wire::*;
use crate::support::*;

const LONG: &str = "select pg_sleep(600)";

/// Starts a long query and waits until PostgreSQL runs it; `mark` tells it from others.
#[track_caller]
fn start_long(stage: &Stage, client: &mut Client, mark: &str) {
    client.send(&query(&format!("{LONG} -- {mark}")));
    stage
        .database
        .wait_backends(1, &format!("state = 'active' and query like '%-- {mark}'"));
}

everywhere!(cancel_stops_the_running_query, |stage| {
    let mut client = stage.client();
    start_long(stage, &mut client, "cancel me");
    peer::cancel(stage.address(), &client.key);
    let reply = client.reply();
    assert_eq!((reply.code(), reply.status), ("57014", b'I'));
    assert_eq!(client.value("select 'alive'"), "alive");
});

everywhere!(cancel_stops_a_query_inside_a_transaction, |stage| {
    let mut client = stage.client();
    client.query("begin");
    start_long(stage, &mut client, "cancel me");
    peer::cancel(stage.address(), &client.key);
    let reply = client.reply();
    assert_eq!((reply.code(), reply.status), ("57014", b'E'));
    assert_eq!(client.query("rollback").status, b'I');
});

everywhere!(cancel_with_a_wrong_key_does_nothing, |stage| {
    let mut client = stage.client();
    start_long(stage, &mut client, "spare me");
    let (pid, secret) = client.key.clone();
    let wrong = [
        (pid, secret.iter().map(|byte| byte ^ 1).collect()),
        (pid ^ 1, secret.clone()),
        (0, vec![0; 4]),
        (pid, secret[..2].to_vec()),
        (pid, [&secret[..], &secret[..]].concat()),
        (pid, Vec::new()),
    ];
    wrong
        .iter()
        .for_each(|key| peer::cancel(stage.address(), key));
    stage
        .database
        .wait_backends(1, "state = 'active' and query like '%-- spare me'");
    assert!(client.has_nothing_to_read());
    peer::cancel(stage.address(), &client.key);
    assert_eq!(client.reply().code(), "57014");
});

everywhere!(cancel_of_an_idle_client_does_nothing, |stage| {
    let mut client = stage.client();
    for n in 0..20 {
        peer::cancel(stage.address(), &client.key);
        assert_eq!(client.value(&format!("select {n}")), n.to_string());
    }
});

both_shards!(long_key_of_protocol_3_2_cancels, |shards| {
    let stage = Stage::pooled(Topology::new(shards));
    let mut client = Client::connect(stage.address());
    let params = [("user", "postgres"), ("database", stage.entry.as_str())];
    assert_eq!(client.start(PROTOCOL_3_2, &params).status, b'I');
    start_long(&stage, &mut client, "cancel me");
    let (pid, secret) = client.key.clone();
    peer::cancel(stage.address(), &(pid, secret[..4].to_vec()));
    assert!(client.has_nothing_to_read());
    peer::cancel(stage.address(), &(pid, secret));
    assert_eq!(client.reply().code(), "57014");
});

both_shards!(
    cancel_of_a_queued_client_spares_the_one_being_served,
    |shards| {
        let stage = Stage::pooled(Topology::new(shards).pool_size(1));
        let (mut served, mut queued) = (stage.client(), stage.client());
        start_long(&stage, &mut served, "served");
        queued.send(&query("select 'queued'"));
        wait_until("one waits", || stage.pools(&stage.entry, "cl_waiting") == 1);
        peer::cancel(stage.address(), &queued.key);
        let reply = queued.reply();
        assert_eq!(
            (reply.tags.as_str(), reply.code(), reply.status),
            ("EZ", "57014", b'I')
        );
        let still = "state = 'active' and query like '%-- served'";
        assert_eq!(stage.database.backends(still), 1);
        assert!(served.has_nothing_to_read());
        peer::cancel(stage.address(), &served.key);
        assert_eq!(served.reply().code(), "57014");
        assert_eq!(queued.value("select 'on'"), "on");
        drop((served, queued));
        stage.assert_no_leak();
    }
);

#[test]
fn cancel_arriving_on_any_of_33_shards_finds_its_query() {
    let stage = Stage::pooled(Topology::new(33).pool_size(20));
    let mut clients: Vec<Client> = (0..20).map(|_| stage.client()).collect();
    for (n, client) in clients.iter_mut().enumerate() {
        start_long(&stage, client, &format!("number {n} "));
    }
    for client in clients.iter_mut().rev() {
        assert!(client.has_nothing_to_read());
        peer::cancel(stage.address(), &client.key);
        assert_eq!(client.reply().code(), "57014");
    }
    drop(clients);
    stage.assert_no_leak();
}

/// One client cancels itself all the time, its query often being over already, while others use the same server.
fn late_cancel_spares_the_next_client(shards: usize) {
    let stage = Stage::pooled(Topology::new(shards).pool_size(1));
    thread::scope(|scope| {
        for id in 0..3 {
            let stage = &stage;
            scope.spawn(move || {
                let mut client = stage.client();
                for n in 0..150 {
                    let mark = format!("{id}/{n}");
                    assert_eq!(
                        client.value(&format!("select '{mark}' from pg_sleep(0.002)")),
                        mark
                    );
                }
            });
        }
        let mut canceler = stage.client();
        for _ in 0..100 {
            canceler.send(&query("select 'short'"));
            peer::cancel(stage.address(), &canceler.key);
            let reply = canceler.reply();
            assert!(
                reply.value() == "short" || reply.code() == "57014",
                "{reply:?}"
            );
        }
    });
    stage.assert_no_leak();
}

both_shards!(
    cancel_never_hits_the_next_clients_query,
    late_cancel_spares_the_next_client
);

#[test]
fn cancel_never_hits_the_next_clients_query_on_33_shards() {
    late_cancel_spares_the_next_client(33);
}

both_shards!(flood_of_cancels_leaves_no_server_behind, |shards| {
    let stage = Stage::pooled(Topology::new(shards).pool_size(2));
    let mut client = stage.client();
    start_long(&stage, &mut client, "cancel me");
    let key = client.key.clone();
    thread::scope(|scope| {
        for _ in 0..30 {
            scope.spawn(|| peer::cancel(stage.address(), &key));
        }
    });
    assert_eq!(client.reply().code(), "57014");
    drop(client);
    stage.assert_no_leak();
    wait_until("no cancel is left", || {
        stage.pools(&stage.entry, "sv_active_cancel") == 0
    });
});

both_shards!(queued_batch_without_sync_is_cancelled_at_once, |shards| {
    // pool of 1, which somebody holds; the batch ends in a Flush, and its Sync comes after the answer
    let stage = Stage::pooled(Topology::new(shards).pool_size(1));
    let (mut holder, mut queued) = (stage.client(), stage.client());
    assert_eq!(holder.query("begin").status, b'T');
    queued.send(&[parse("", "select 1"), bind("", "", &[]), flush()].concat());
    wait_until("it waits", || stage.pools(&stage.entry, "cl_waiting") == 1);
    peer::cancel(stage.address(), &queued.key);
    let refusal = queued.expect(b'E').failure();
    assert_eq!(
        (refusal.code.as_str(), refusal.text.as_str()),
        ("57014", "canceling statement due to user request")
    );
    queued.send(&[execute("", 0), sync()].concat());
    assert_eq!(queued.reply().tags, "Z");
    assert_eq!(holder.query("commit").status, b'I');
    assert_eq!(queued.value("select 'on'"), "on");
});

both_shards!(
    client_that_leaves_the_line_politely_costs_no_server,
    |shards| {
        let stage = Stage::pooled(Topology::new(shards).pool_size(1));
        let (mut holder, mut queued) = (stage.client(), stage.client());
        let pid = holder.value("begin; select pg_backend_pid()");
        queued.send(&query("select 'never read'"));
        wait_until("it waits", || stage.pools(&stage.entry, "cl_waiting") == 1);
        queued.send(&terminate());
        drop(queued);
        wait_until("it has left", || {
            stage.pools(&stage.entry, "cl_waiting") == 0
        });
        assert_eq!(holder.query("commit").status, b'I');
        assert_eq!(stage.client().value("select pg_backend_pid()"), pid);
    }
);

// The server takes the cancel request and never hangs up. It may yet act on it, so that its connection is closed rather than
// given to somebody else; and whoever sent the request is not kept waiting for ever.
both_shards!(
    cancel_that_a_server_never_deals_with_is_given_up,
    |shards| {
        let (given_up, logins) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicUsize::new(0)),
        );
        let (released, count) = (given_up.clone(), logins.clone());
        let server = FakeServer::start(move |mut conversation| {
            let first = loop {
                match conversation.read_untagged() {
                    Some(body) if body.starts_with(&[4, 210, 22, 47]) => conversation.send(b"N"),
                    Some(body) => break body,
                    None => return,
                }
            };
            if first.starts_with(&[4, 210, 22, 46]) {
                return conversation.wait_closed();
            }
            let number = count.fetch_add(1, Ordering::AcqRel);
            conversation.send(&Conversation::greeting());
            while let Some(message) = conversation.next_request() {
                if message.body.starts_with(b"slow") {
                    conversation.stall_until(&released);
                }
                conversation.send(&Conversation::one_row(&number.to_string()));
            }
        });
        let topology = Topology::new(shards)
            .pool_size(1)
            .set("cancel_wait_timeout", "2 s")
            .database_at("db", server.address, &[]);
        let pooler = Pooler::start(&topology);
        let mut client = Client::login(pooler.address, "db");
        client.send(&query("slow"));
        wait_until("it runs", || {
            let pools = Client::login(pooler.address, "ringbouncer")
                .query("SHOW POOLS")
                .table();
            pools
                .iter()
                .any(|row| row["database"] == "db" && row["sv_active"] == "1")
        });
        let request = || {
            let mut request = Client::connect(pooler.address);
            request.send(&cancel_request(client.key.0, &client.key.1));
            request
        };
        let requests = |column| pooler.pools("db", column);
        let mut first = request();
        wait_until("it is passed on", || requests("cl_active_cancel_req") == 1);
        let mut second = request();
        wait_until("it waits", || requests("cl_waiting_cancel_req") == 1);
        assert_eq!(requests("cl_active_cancel_req"), 1);
        assert_eq!(requests("sv_active_cancel"), 1);
        pooler.wait_log("cancel request timed out");
        for request in [&mut first, &mut second] {
            request.expect_closed();
        }
        let all = [
            "cl_active_cancel_req",
            "cl_waiting_cancel_req",
            "sv_active_cancel",
        ];
        assert_eq!(all.map(requests), [0; 3]);
        given_up.store(true, Ordering::Release);
        assert_eq!(client.reply().value(), "0");
        assert_eq!(client.value("select 1"), "1", "the next server");
        pooler.wait_log("outcome of a cancel request unknown");
        assert_eq!(logins.load(Ordering::Acquire), 2);
    }
);
