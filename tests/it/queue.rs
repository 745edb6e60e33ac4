//! What clients in line are told: their place, the wait to expect, and at once if it is too long.

use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::wait::pace_until;
use crate::support::wire::*;
use crate::support::*;

const QUEUED: &str = "No server connection available in postgres backend, client being queued";

/// Notices up to the next message of another kind: their texts and details.
fn next_notice(client: &mut Client) -> (String, String) {
    let message = client.read();
    assert_eq!(message.tag, b'N', "{message:?}");
    let failure = message.failure();
    assert_eq!(
        (failure.code.as_str(), failure.severity.as_str()),
        ("00000", "NOTICE")
    );
    (failure.text.clone(), failure.detail)
}

both_shards!(clients_in_line_are_told_their_place_once, |shards| {
    // pool of 1; a notice once all have come
    let topology = Topology::new(shards)
        .pool_size(1)
        .set("query_wait_notify", "1 h");
    let stage = Stage::pooled(topology);
    let mut holder = stage.client();
    assert_eq!(holder.query("begin").status, b'T');
    let mut line: Vec<_> = (0..6).map(|_| stage.client()).collect();
    for (at, client) in line.iter_mut().enumerate() {
        client.send(&query(&format!("select {at}")));
        wait_until("it waits", || {
            stage.pools(&stage.entry, "cl_waiting") == at as u64 + 1
        });
    }
    assert!(line.iter_mut().all(Client::has_nothing_to_read));
    let set = stage.console("SET query_wait_notify = '1 ms'");
    assert!(set.error.is_none(), "{set:?}");
    for (at, client) in line.iter_mut().enumerate() {
        let (text, detail) = next_notice(client);
        assert_eq!(text, QUEUED);
        // Those of other shards are counted by their share in time.
        let words: Vec<_> = detail.split_whitespace().collect();
        assert_eq!((words[0], words[2]), ("Place", "of"), "{detail}");
        let place: usize = words[1].parse().unwrap();
        assert!(place.abs_diff(at + 1) < shards, "{at}: {detail}");
        assert!(words[3].starts_with('6'), "{detail}");
    }
    assert_eq!(holder.query("commit").status, b'I');
    for (at, client) in line.iter_mut().enumerate() {
        let reply = client.reply();
        assert_eq!((reply.value(), reply.notices.len()), (at.to_string(), 0));
    }
});

/// Keeps `clients` clients asking, each query for `millis`, until `work` is done.
fn under_load(stage: &Stage, clients: usize, millis: u64, work: impl FnOnce()) {
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..clients {
            scope.spawn(|| {
                let sleep = format!("select pg_sleep({})", millis as f64 / 1e3);
                let mut client = stage.client();
                while !is_over.load(Ordering::Acquire) {
                    let reply = client.query(&sleep);
                    match reply.code() {
                        "" => {}
                        // As a sensible client would, it does not ask again at once.
                        "53300" => pace_until(Instant::now() + Duration::from_millis(20)),
                        _ => client = stage.client(),
                    }
                }
            });
        }
        let done = panic::catch_unwind(AssertUnwindSafe(work));
        is_over.store(true, Ordering::Release);
        done.unwrap_or_else(|payload| panic::resume_unwind(payload));
    });
}

both_shards!(expected_wait_is_the_wait_that_comes, |shards| {
    // pool of 2, 30 clients that sleep for 20 ms each: 280 ms in line
    let topology = Topology::new(shards)
        .pool_size(2)
        .set("query_wait_notify", "1 ms");
    let stage = Stage::pooled(topology);
    under_load(&stage, 30, 20, || {
        let mut probe = stage.client();
        // Told in tenths of a second.
        let is_good = |(said, still): &&(f64, f64)| (said - still).abs() < 0.15;
        let mut ratios = Vec::new();
        // Most of five or, where the machine stalls, of some more.
        while ratios.len() < 5 || ratios.iter().filter(is_good).count() <= ratios.len() / 2 {
            assert!(ratios.len() < 20, "said and came: {ratios:?}");
            let asked = Instant::now();
            probe.send(&query("select 1"));
            let first = probe.read();
            if first.tag != b'N' {
                // Served before the upkeep came by.
                probe.reply();
                continue;
            }
            let noticed = asked.elapsed();
            let detail = first.failure().detail;
            assert_eq!(probe.reply().value(), "1");
            let still = (asked.elapsed() - noticed).as_secs_f64();
            let Some((_, rest)) = detail.split_once("; about ") else {
                continue;
            };
            let said: f64 = rest.split_whitespace().next().unwrap().parse().unwrap();
            ratios.push((said, still));
        }
    });
});

both_shards!(
    query_that_would_wait_too_long_is_refused_at_once,
    |shards| {
        // pool of 1, queries of 100 ms; nobody may wait longer than 1 s. 4 clients, then 30 more
        let topology = Topology::new(shards)
            .pool_size(1)
            .set("query_wait_timeout", "1 s")
            .set("queue_reject", true);
        let stage = Stage::pooled(topology);
        let refused = |reply: &peer::Reply| {
            if reply.code() == "53300" {
                assert_eq!((reply.status, reply.closed), (b'I', false));
                let text = "no server connection within query_wait_timeout: ";
                assert!(reply.text().starts_with(text), "{reply:?}");
            }
            reply.code() == "53300"
        };
        under_load(&stage, 4, 100, || {
            let mut probe = stage.client();
            let mut is_served = || {
                let reply = probe.query("select 1");
                if reply.closed {
                    probe = stage.client();
                }
                !refused(&reply) && reply.value() == "1"
            };
            // Measured, and short enough.
            let mut served = 0;
            wait_until("four are served", || {
                served += usize::from(is_served());
                served == 4
            });
            under_load(&stage, 30, 100, || {
                let mut probe = stage.client();
                let mut ask = |bytes: &[u8]| {
                    let asked = Instant::now();
                    let reply = probe.exchange(bytes);
                    if reply.closed {
                        probe = stage.client();
                    }
                    refused(&reply) && asked.elapsed() < Duration::from_millis(900)
                };
                wait_until("a query is refused", || ask(&query("select 1")));
                // A whole batch is, and the client goes on.
                wait_until("a batch is refused", || ask(&extended("select 2", &[])));
            });
            wait_until("the line is short again", is_served);
        });
        assert_eq!(stage.client().value("select 'later'"), "later");
    }
);

both_shards!(maxwait_is_that_of_the_oldest_anywhere, |shards| {
    // pool of 1, one holder, one that waits on each shard in turn
    let stage = Stage::pooled(Topology::new(shards).pool_size(1));
    let mut holder = stage.client();
    assert_eq!(holder.query("begin").status, b'T');
    let mut line: Vec<_> = (0..3 * shards).map(|_| stage.client()).collect();
    let started = Instant::now();
    line[0].send(&query("select 0"));
    wait_until("one waits", || stage.pools(&stage.entry, "cl_waiting") == 1);
    let began = Instant::now();
    for client in &mut line[1..] {
        client.send(&query("select 0"));
    }
    wait_until("a second has passed", || {
        began.elapsed() > Duration::from_secs(1)
    });
    let table = stage.console("SHOW POOLS").table();
    let row = table
        .iter()
        .find(|row| row["database"] == stage.entry)
        .unwrap();
    let waited =
        row["maxwait"].parse::<f64>().unwrap() + row["maxwait_us"].parse::<f64>().unwrap() / 1e6;
    assert!(
        waited >= 1.0 && waited <= started.elapsed().as_secs_f64(),
        "{row:?}"
    );
    assert_eq!(holder.query("commit").status, b'I');
    line.iter_mut()
        .for_each(|client| assert_eq!(client.reply().value(), "0"));
    wait_until("nobody waits", || {
        stage.pools(&stage.entry, "maxwait_us") == 0
    });
});

both_shards!(
    own_timeouts_of_a_database_decide_who_is_refused_at_once,
    |shards| {
        // pool of 1, queries of 100 ms, 30 clients; everywhere else one may wait for long
        for setting in ["query_wait_timeout", "query_timeout"] {
            let topology = Topology::new(shards)
                .pool_size(1)
                .set("query_wait_timeout", "100 s")
                .set("queue_reject", true);
            let stage = Stage::with_keys(topology, &[(setting, "1 s")]);
            under_load(&stage, 30, 100, || {
                let mut client = stage.client();
                wait_until("a query is refused at once", || {
                    let reply = client.query("select 1");
                    if reply.closed {
                        client = stage.client();
                    }
                    let text = format!("no server connection within {setting}: ");
                    reply.code() == "53300" && reply.text().starts_with(&text)
                });
            });
        }
    }
);
