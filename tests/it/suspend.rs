//! SUSPEND: nobody is read until RESUME, or until the console that ordered it is gone.

use crate::support::wire::*;
use crate::support::*;

compared!(
    suspended_clients_wait_for_the_resume,
    since(1, 8),
    until(1, 26),
    |subject| {
        let (mut idle, mut busy) = (subject.client(), subject.client());
        idle.value("select 1");
        assert_eq!(busy.query("begin").status, b'T');
        let mut admin = subject.admin();
        assert_eq!(admin.query("SUSPEND").complete, ["SUSPEND"]);
        idle.send(&query("select 'idle'"));
        busy.send(&query("select 'busy'"));
        let mut late = Client::connect(subject.address());
        late.send(&startup(
            PROTOCOL_3_0,
            &[("user", "postgres"), ("database", subject.entry(0))],
        ));
        assert_eq!(admin.query("SUSPEND").text(), "already suspended/paused");
        assert_eq!(admin.query("PAUSE").text(), "already suspended/paused");
        let ran = "query in ('select ''idle''', 'select ''busy''')";
        assert_eq!(subject.databases[0].backends(ran), 0);
        for client in [&mut idle, &mut busy, &mut late] {
            assert!(client.has_nothing_to_read());
        }
        assert_eq!(admin.query("RESUME").complete, ["RESUME"]);
        assert_eq!(idle.reply().value(), "idle");
        assert_eq!(busy.reply().value(), "busy");
        assert_eq!(late.reply().status, b'I');
        assert_eq!(busy.query("commit").status, b'I');
    }
);

compared!(
    suspension_ends_with_the_session_that_ordered_it,
    since(1, 8),
    until(1, 26),
    |subject| {
        let mut client = subject.client();
        let mut admin = subject.admin();
        assert_eq!(admin.query("SUSPEND").complete, ["SUSPEND"]);
        client.send(&query("select 'served'"));
        assert!(client.has_nothing_to_read());
        drop(admin);
        assert_eq!(client.reply().value(), "served");
    }
);

both_shards!(
    suspension_does_not_end_with_the_session_that_ordered_an_earlier_one,
    |shards| {
        let stage = Stage::pooled(Topology::new(shards));
        let [mut first, mut second] =
            [(); 2].map(|()| Client::login(stage.address(), "ringbouncer"));
        let mut client = stage.client();
        assert_eq!(first.query("SUSPEND").complete, ["SUSPEND"]);
        assert_eq!(stage.console("RESUME").complete, ["RESUME"]);
        assert_eq!(second.query("SUSPEND").complete, ["SUSPEND"]);
        first.finish_sending();
        wait_until("it has left", || {
            stage.console("SHOW CLIENTS").row_of(&first).is_none()
        });
        client.send(&query("select 'resumed'"));
        let state = stage.console("SHOW STATE").table();
        let row = state.iter().find(|row| row["key"] == "suspended");
        assert_eq!(row.unwrap()["value"], "yes");
        drop(second);
        assert_eq!(client.reply().value(), "resumed");
    }
);

compared!(
    nothing_is_suspended_while_a_database_is_paused,
    since(1, 8),
    until(1, 26),
    |subject| {
        let mut admin = subject.admin();
        assert_eq!(
            admin.query(&format!("PAUSE {}", subject.entry(1))).complete,
            ["PAUSE"]
        );
        assert_eq!(
            admin.query("SUSPEND").text(),
            "cannot suspend with paused databases"
        );
        assert_eq!(
            admin
                .query(&format!("RESUME {}", subject.entry(1)))
                .complete,
            ["RESUME"]
        );
        assert_eq!(admin.query("SUSPEND").complete, ["SUSPEND"]);
        assert_eq!(admin.query("RESUME").complete, ["RESUME"]);
    }
);

both_shards!(client_in_line_gets_no_server_while_suspended, |shards| {
    let stage = Stage::pooled(Topology::new(shards).pool_size(1));
    let (mut holder, mut next) = (stage.client(), stage.client());
    assert_eq!(holder.query("begin").status, b'T');
    next.send(&query("select 'next'"));
    wait_until("it stands in line", || {
        stage.pools(&stage.entry, "cl_waiting") == 1
    });
    let mut admin = Client::login(stage.address(), "pgbouncer");
    assert_eq!(admin.query("SUSPEND").complete, ["SUSPEND"]);
    let state = admin.query("SHOW STATE").table();
    assert!(
        state
            .iter()
            .any(|row| row["key"] == "suspended" && row["value"] == "yes"),
        "{state:?}"
    );
    // It leaves, and its server comes free.
    drop(holder);
    assert!(next.has_nothing_to_read());
    assert_eq!(admin.query("RESUME").complete, ["RESUME"]);
    assert_eq!(next.reply().value(), "next");
    drop((next, admin));
    stage.assert_no_leak();
});

both_shards!(
    client_that_takes_nothing_is_dropped_by_a_suspension,
    |shards| {
        let stage = Stage::pooled(Topology::new(shards).set("suspend_timeout", "300ms"));
        let mut deaf = stage.client();
        deaf.send(&query(
            "select repeat('x', 1000) from generate_series(1, 200000)",
        ));
        let blocked = "wait_event = 'ClientWrite'";
        stage.database.wait_backends(1, blocked);
        let (mut sent, mut times) = (0, 0);
        wait_until("nothing flows any more", || {
            let now = stage.stats(&stage.entry, "total_sent");
            times = if now > 0 && now == sent { times + 1 } else { 0 };
            sent = now;
            times == 30
        });
        let mut fine = stage.client();
        let mut admin = Client::login(stage.address(), "pgbouncer");
        assert_eq!(admin.query("SUSPEND").complete, ["SUSPEND"]);
        assert_eq!(admin.query("RESUME").complete, ["RESUME"]);
        assert_eq!(fine.value("select 1"), "1");
        let received = deaf.read_to_end();
        assert!(received.len() < 200_000_000, "it got all of it");
        drop((deaf, fine, admin));
        stage.assert_no_leak();
    }
);

both_shards!(everything_goes_on_after_many_suspensions, |shards| {
    let stage = Stage::pooled(Topology::new(shards).pool_size(2));
    let address = stage.address();
    let entry = stage.entry.clone();
    let workers: Vec<_> = (0..4)
        .map(|n: u32| {
            let entry = entry.clone();
            std::thread::spawn(move || {
                let mut client = Client::login(address, &entry);
                for round in 0..200 {
                    let sql = format!("select {n} * 1000 + {round}");
                    assert_eq!(client.value(&sql), (n * 1000 + round).to_string());
                }
            })
        })
        .collect();
    let mut admin = Client::login(address, "pgbouncer");
    for _ in 0..20 {
        assert_eq!(admin.query("SUSPEND").complete, ["SUSPEND"]);
        assert_eq!(admin.query("RESUME").complete, ["RESUME"]);
    }
    for worker in workers {
        worker.join().unwrap();
    }
    drop(admin);
    stage.assert_no_leak();
});
