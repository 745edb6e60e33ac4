//! The ways to stop.

use std::net::TcpStream;

use rustix::process::Signal;

use crate::support::wire::*;
use crate::support::*;

#[track_caller]
fn assert_gone(stage: &mut Stage) {
    let exit = stage
        .pooler_mut()
        .wait_exit()
        .expect("an exit before the deadline");
    assert!(exit.success(), "{exit}");
    let unix = stage.unix.clone().expect("a unix socket");
    assert!(!unix.exists(), "{} is left", unix.display());
    stage.database.wait_backends(0, "true");
}

#[track_caller]
fn wait_refused(stage: &Stage) {
    wait_until("new connections are refused", || {
        TcpStream::connect(stage.address()).is_err()
    });
}

fn waits_for_the_clients(shards: usize, order: impl Fn(&Stage)) {
    let mut stage = Stage::pooled(Topology::new(shards).pool_size(1));
    let (mut first, mut second) = (stage.client(), stage.client());
    order(&stage);
    wait_refused(&stage);
    // The Unix socket stays, for the console alone.
    assert!(stage.as_owner("SHOW VERSION").error.is_none());
    let mut late = Client::connect_unix(stage.unix.as_ref().expect("a unix socket"));
    let params = [("user", "postgres"), ("database", &*stage.entry)];
    let told = late.start(PROTOCOL_3_0, &params);
    told.assert_fatal("pooler is shutting down");
    for client in [&mut first, &mut second] {
        assert_eq!(client.value("select 'still served'"), "still served");
    }
    drop(first);
    assert_eq!(
        second.value("select 'served to the last'"),
        "served to the last"
    );
    assert!(stage.pooler_mut().is_running());
    drop(second);
    assert_gone(&mut stage);
}

both_shards!(sigterm_waits_for_the_clients, |shards| {
    waits_for_the_clients(shards, |stage| stage.signal(Signal::TERM));
});

both_shards!(shutdown_on_the_console_waits_for_the_clients, |shards| {
    waits_for_the_clients(shards, |stage| {
        let reply = stage.console("SHUTDOWN WAIT_FOR_CLIENTS");
        assert_eq!(reply.complete, ["SHUTDOWN"], "{reply:?}");
    });
});

fn waits_for_the_transactions(shards: usize, order: impl Fn(&Stage)) {
    let mut stage = Stage::pooled(Topology::new(shards).pool_size(1));
    stage.database.sql("create table t(n int)");
    let (mut busy, mut queued) = (stage.client(), stage.client());
    busy.value("begin; insert into t values (1)");
    queued.send(&query("select 1"));
    wait_until("one waits", || stage.pools(&stage.entry, "cl_waiting") == 1);
    order(&stage);
    wait_refused(&stage);
    queued.reply().assert_fatal("server shutting down");
    assert!(stage.pooler_mut().is_running());
    busy.value("insert into t values (2)");
    assert_eq!(busy.query("commit").complete, ["COMMIT"]);
    assert_gone(&mut stage);
    assert_eq!(stage.database.sql("select count(*) from t").value(), "2");
}

both_shards!(sigint_waits_for_the_transactions, |shards| {
    waits_for_the_transactions(shards, |stage| stage.signal(Signal::INT));
});

both_shards!(
    shutdown_on_the_console_waits_for_the_transactions,
    |shards| {
        waits_for_the_transactions(shards, |stage| {
            let reply = stage.console("SHUTDOWN WAIT_FOR_SERVERS");
            assert_eq!(reply.complete, ["SHUTDOWN"], "{reply:?}");
        });
    }
);

both_shards!(sigquit_leaves_at_once, |shards| {
    let mut stage = Stage::pooled(Topology::new(shards).pool_size(2));
    let (mut busy, mut idle) = (stage.client(), stage.client());
    busy.query("begin");
    idle.value("select 1");
    stage.signal(Signal::QUIT);
    assert_gone(&mut stage);
    assert!(busy.reply().closed && idle.reply().closed);
});

both_shards!(second_signal_ends_the_waiting, |shards| {
    let mut stage = Stage::pooled(Topology::new(shards).pool_size(1));
    let mut busy = stage.client();
    busy.query("begin");
    stage.signal(Signal::TERM);
    wait_refused(&stage);
    stage.signal(Signal::INT);
    assert_gone(&mut stage);
    assert!(busy.reply().closed);
});

both_shards!(shutdown_on_the_console_leaves_at_once, |shards| {
    let mut stage = Stage::pooled(Topology::new(shards).pool_size(1));
    let mut busy = stage.client();
    busy.query("begin");
    let mut console = Client::login(stage.address(), "ringbouncer");
    console.send(&query("SHUTDOWN"));
    assert_gone(&mut stage);
    assert!(busy.reply().closed && console.reply().closed);
});

both_shards!(idle_pooler_goes_at_every_signal, |shards| {
    for signal in [Signal::TERM, Signal::INT, Signal::QUIT] {
        let mut stage = Stage::pooled(Topology::new(shards));
        stage.signal(signal);
        assert_gone(&mut stage);
    }
});
