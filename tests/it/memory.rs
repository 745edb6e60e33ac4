//! The budget of memory (`memory_max`): nobody is read ahead when it is tight, new clients are refused when little is left, and
//! whoever is there goes on.

use std::collections::BTreeMap;
use std::thread;

use crate::support::peer::{Reply, cancel};
use crate::support::wire::{PROTOCOL_3_0, execute, parse, query, run_prepared, startup, sync};
use crate::support::*;

const MIB: u64 = 1024 * 1024;
/// What a client's start-up packet carries, which is kept for as long as it stays.
const BAGGAGE_BYTES: usize = 50_000;
const REFUSED: &str = "out of memory (memory_max)";

/// With a budget that is none, so that the receive buffers have their memory from the start.
fn topology(shards: usize) -> Topology {
    Topology::new(shards).set("memory_max", "1 GiB")
}

fn set_budget(stage: &Stage, bytes: u64) {
    let reply = stage.console(&format!("SET memory_max = '{bytes} B'"));
    assert_eq!(reply.code(), "", "{reply:?}");
    // It is measured three times a second.
    wait_until("memory has been measured", || {
        used(stage) > 0 && stage.setting("memory_max") == bytes.to_string()
    });
}

fn row(stage: &Stage) -> BTreeMap<String, String> {
    let table = stage.console("SHOW MEM").table();
    let row = table.into_iter().find(|row| row["name"] == "process");
    row.expect("SHOW MEM has the process")
}

/// Bytes in use, as the console says.
fn used(stage: &Stage) -> u64 {
    row(stage)["used"].parse::<u64>().unwrap() * 1024
}

/// A client that takes memory by being there, or what it was told.
fn laden(stage: &Stage, number: usize) -> Result<Client, Box<Reply>> {
    let baggage = format!("{number} {}", "x".repeat(BAGGAGE_BYTES));
    let params = [
        ("user", "postgres"),
        ("database", &stage.entry),
        ("application_name", &baggage),
    ];
    let mut client = Client::connect(stage.address());
    client.send(&startup(PROTOCOL_3_0, &params));
    let reply = client.reply();
    match reply.error {
        None => Ok(client),
        Some(_) => Err(Box::new(reply)),
    }
}

/// Takes up memory by clients until the process has as much.
fn fill(stage: &Stage, bytes: u64) -> Vec<Client> {
    let mut crowd = Vec::new();
    while stage.resident_bytes() < bytes {
        for _ in 0..20 {
            crowd.push(laden(stage, crowd.len()).expect("there is room yet"));
        }
    }
    crowd
}

fn refusals(stage: &Stage) -> usize {
    let table = stage.console("SHOW SHARDS").table();
    let each = table
        .iter()
        .map(|row| row["memory_refusals"].parse::<usize>());
    each.map(Result::unwrap).sum()
}

both_shards!(new_clients_are_refused_until_others_have_left, |shards| {
    let stage = Stage::pooled(topology(shards).set("max_client_conn", 5000));
    let mut first = stage.client();
    let budget = stage.resident_bytes() + 24 * MIB;
    set_budget(&stage, budget);
    let mut crowd = Vec::new();
    let refused = loop {
        match laden(&stage, crowd.len()) {
            Ok(client) => crowd.push(client),
            Err(reply) => break reply,
        }
        assert!(crowd.len() < 1000, "nobody is refused");
    };
    refused.assert_fatal(REFUSED);
    assert_eq!(refused.code(), "53200");
    assert!(crowd.len() > 50, "only {} were let in", crowd.len());
    // who is in goes on, and so does whoever asks what is the matter
    assert_eq!(first.value("select 1"), "1");
    assert_eq!(crowd[0].value("select 2"), "2");
    let resident = stage.resident_bytes();
    assert!(resident < budget, "{resident} bytes of {budget}");
    assert!(used(&stage) > budget / 2);
    assert_eq!(row(&stage)["memtotal"], (budget / 1024 * 1024).to_string());
    assert_eq!(refusals(&stage), 1);
    stage.wait_log("(memory_max), new clients are refused");
    // a cancel request is no client
    let key = first.key.clone();
    first.send(&query("select pg_sleep(60) -- laden"));
    let running = "state = 'active' and query like '%-- laden'";
    stage.database.wait_backends(1, running);
    cancel(stage.address(), &key);
    assert_eq!(first.reply().code(), "57014");

    drop(crowd);
    wait_until("there is room again", || laden(&stage, 0).is_ok());
    stage.wait_log("(memory_max), new clients are let in again");
    drop(first);
    stage.assert_no_leak();
});

both_shards!(requests_in_line_are_not_read_ahead_of_memory, |shards| {
    const CLIENTS: usize = 200;
    const TEXT_BYTES: usize = 300_000;
    let stage = Stage::pooled(topology(shards).pool_size(1));
    let mut holder = stage.client();
    assert_eq!(holder.query("begin").status, b'T');
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| stage.client()).collect();
    let before = stage.resident_bytes();
    // unread, 8 chunks of 8 KiB wait for each
    let budget = (before + 9 * MIB).max(32 * MIB);
    let _crowd = fill(&stage, budget - 9 * MIB);
    set_budget(&stage, budget);
    let text = |number: usize| format!("{number}:{}", "y".repeat(TEXT_BYTES));
    let mut most = 0;
    thread::scope(|scope| {
        let each = clients.iter_mut().enumerate();
        let writers: Vec<_> = each
            .map(|(number, client)| {
                scope.spawn(move || {
                    client.send(&query(&format!("select '{}'", text(number))));
                    let reply = client.reply();
                    assert!(reply.value() == text(number), "{}", reply.text());
                })
            })
            .collect();
        wait_until("all are in line", || {
            most = most.max(stage.resident_bytes());
            stage.pools(&stage.entry, "cl_waiting") == CLIENTS as u64
        });
        most = most.max(stage.resident_bytes());
        assert_eq!(holder.query("commit").status, b'I');
        while !writers.iter().all(thread::ScopedJoinHandle::is_finished) {
            most = most.max(stage.resident_bytes());
        }
    });
    assert!(most < budget, "{most} bytes of {budget}");
    assert_eq!(refusals(&stage), 0);
});

both_shards!(
    statement_that_does_not_fit_costs_its_client_alone,
    |shards| {
        let stage = Stage::pooled(topology(shards));
        let mut other = stage.client();
        let mut client = stage.client();
        let budget = (stage.resident_bytes() + 20 * MIB).max(32 * MIB);
        let _crowd = fill(&stage, budget - 20 * MIB);
        set_budget(&stage, budget);
        let sql = |bytes| format!("select length('{}')", "z".repeat(bytes));
        let run = |bytes| [parse("s", &sql(bytes)), run_prepared("s", &[]), sync()].concat();
        let small = client.exchange(&run(MIB as usize));
        assert_eq!(small.value(), MIB.to_string());
        client.send_anyway(&[parse("t", &sql(30 << 20)), execute("", 0), sync()].concat());
        let reply = client.reply();
        reply.assert_fatal(REFUSED);
        assert_eq!((reply.code(), refusals(&stage)), ("53200", 1));
        let resident = stage.resident_bytes();
        assert!(resident < budget, "{resident} bytes of {budget}");
        assert_eq!(other.value("select 1"), "1");
    }
);

both_shards!(who_asks_for_more_than_there_is_is_sent_away, |shards| {
    const CLIENTS: usize = 300;
    let topology = topology(shards)
        .pool_size(1)
        .set("receive_buffers", 64)
        .set("receive_buffer_bytes", "2 KiB");
    let stage = Stage::pooled(topology);
    let mut holder = stage.client();
    assert_eq!(holder.query("begin").status, b'T');
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| stage.client()).collect();
    let _crowd = fill(&stage, 33 * MIB);
    set_budget(&stage, 32 * MIB);
    // in several chunks, the last one a short one, which must not pass where one before it has not
    let text = "w".repeat(3 * 2048 + 100);
    for client in &mut clients {
        client.send_anyway(&query(&format!("select '{text}'")));
    }
    let in_line = || stage.pools(&stage.entry, "cl_waiting");
    wait_until("every client waits, or has been refused", || {
        in_line() > 0 && in_line() as usize + refusals(&stage) == CLIENTS
    });
    let refused = refusals(&stage);
    assert!((1..CLIENTS).contains(&refused), "{refused} refused");
    assert_eq!(holder.value("select 1"), "1");
    assert_eq!(holder.query("commit").status, b'I');
    let replies: Vec<_> = clients.iter_mut().map(Client::reply).collect();
    let served = replies.iter().filter(|reply| reply.value() == text);
    assert_eq!(served.count(), CLIENTS - refused);
    let sent_away = replies.iter().filter(|reply| reply.error.is_some());
    sent_away.for_each(|reply| reply.assert_fatal(REFUSED));
});

both_shards!(replies_that_nobody_reads_wait_outside, |shards| {
    const CLIENTS: usize = 40;
    const BYTES: usize = 3_000_000;
    let stage = Stage::pooled(topology(shards).pool_size(CLIENTS as u32));
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| stage.client()).collect();
    for client in &mut clients {
        assert_eq!(client.value("select 1"), "1");
    }
    let budget = (stage.resident_bytes() + 6 * MIB).max(32 * MIB);
    let _crowd = fill(&stage, budget - 6 * MIB);
    set_budget(&stage, budget);
    for client in &mut clients {
        client.send(&query(&format!("select repeat('v', {BYTES})")));
    }
    let mut most = 0;
    for client in &mut clients {
        most = most.max(stage.resident_bytes());
        let reply = client.reply();
        assert!(reply.value().len() == BYTES, "{}", reply.text());
    }
    assert!(most < budget, "{most} bytes of {budget}");
});

both_shards!(
    server_that_goes_while_memory_is_tight_is_noticed,
    |shards| {
        let stage = Stage::pooled(topology(shards));
        let mut client = stage.client();
        let pid = client.value("select pg_backend_pid()");
        let _crowd = fill(&stage, 33 * MIB);
        set_budget(&stage, 40 * MIB);
        stage
            .database
            .sql(&format!("select pg_terminate_backend({pid})"));
        wait_until("its end is noticed", || {
            stage.pools(&stage.entry, "sv_idle") == 0
        });
        assert_ne!(client.value("select pg_backend_pid()"), pid);
    }
);

both_shards!(
    client_that_hangs_up_in_line_while_memory_is_tight_is_noticed,
    |shards| {
        let stage = Stage::pooled(topology(shards).pool_size(1));
        let mut holder = stage.client();
        assert_eq!(holder.query("begin").status, b'T');
        let crowd = fill(&stage, 33 * MIB);
        let mut queued = stage.client();
        queued.send(&query("select 1"));
        wait_until("it waits", || stage.pools(&stage.entry, "cl_waiting") == 1);
        set_budget(&stage, 40 * MIB);
        assert_eq!(holder.value("select 1"), "1");
        drop(queued);
        wait_until("it has left", || {
            stage.pools(&stage.entry, "cl_waiting") == 0
        });
        drop(crowd);
    }
);

#[test]
fn budget_below_any_use_is_refused() {
    let topology = Topology::new(1).set("memory_max", "1 MiB");
    let error = Pooler::try_start(&topology).err().expect("it starts");
    assert!(error.contains("must be 0 or at least 32 MiB"), "{error}");
}
