//! Reload: everything or nothing, and what it does to those connected.

use rustix::process::Signal;

use crate::support::*;

/// Waits until the log says more than before `act`, as every reload must.
fn logged(stage: &Stage, act: impl FnOnce()) {
    let before = stage.log().len();
    act();
    wait_until("the log has a line about it", || stage.log().len() > before);
}

fn topology(shards: usize, database: &Database) -> Topology {
    Topology::new(shards).database(&database.name, database, &[])
}

both_shards!(reload_applies_what_changed, |shards| {
    let stage = Stage::pooled(Topology::new(shards).pool_size(1));
    let mut holder = stage.client();
    holder.query("begin");
    let larger =
        topology(shards, &stage.database)
            .pool_size(2)
            .database("second", &stage.database, &[]);
    stage.rewrite(&larger.user_secret("newcomer", ""));
    assert_eq!(stage.console("RELOAD").complete, ["RELOAD"]);
    assert_eq!(stage.setting("default_pool_size"), "2");
    assert_eq!(
        stage.client().value("select 'second server'"),
        "second server"
    );
    assert_eq!(
        Client::login(stage.address(), "second").value("select 1"),
        "1"
    );
    assert_eq!(holder.query("commit").status, b'I');
});

both_shards!(reload_by_signal_applies_too, |shards| {
    let stage = Stage::pooled(Topology::new(shards).pool_size(1));
    stage.rewrite(&topology(shards, &stage.database).pool_size(3));
    stage.signal(Signal::HUP);
    wait_until("the setting has changed", || {
        stage.setting("default_pool_size") == "3"
    });
});

both_shards!(reload_with_one_mistake_changes_nothing, |shards| {
    let stage = Stage::pooled(Topology::new(shards).pool_size(1));
    let mut client = stage.client();
    let good = topology(shards, &stage.database)
        .pool_size(9)
        .set("max_client_conn", 77);
    for bad in [
        good.clone().set("pool_mode", "sometimes"),
        good.set("no_such_key", 1),
    ] {
        stage.rewrite(&bad);
        assert!(stage.console("RELOAD").error.is_some());
        logged(&stage, || stage.signal(Signal::HUP));
        assert_eq!(stage.setting("default_pool_size"), "1");
        assert_ne!(stage.setting("max_client_conn"), "77");
        assert_eq!(client.value("select 'undisturbed'"), "undisturbed");
    }
});

both_shards!(removed_database_sends_its_clients_away, |shards| {
    let stage = Stage::pooled(Topology::new(shards).pool_size(1));
    let mut client = stage.client();
    client.value("select 1");
    let other = stage.database.postgres.database();
    stage.rewrite(&topology(shards, &other));
    assert_eq!(stage.console("RELOAD").complete, ["RELOAD"]);
    client.reply().assert_fatal("database removed");
    stage.database.wait_backends(0, "true");
    assert_eq!(
        Client::login(stage.address(), &other.name).value("select current_database()"),
        other.name
    );
});

both_shards!(
    changed_database_is_followed_without_losing_clients,
    |shards| {
        let stage = Stage::pooled(Topology::new(shards).pool_size(1));
        let (mut idle, mut busy) = (stage.client(), stage.client());
        assert_eq!(busy.query("begin").status, b'T');
        let other = stage.database.postgres.database();
        stage.rewrite(
            &Topology::new(shards)
                .pool_size(1)
                .database(&stage.entry, &other, &[]),
        );
        assert_eq!(stage.console("RELOAD").complete, ["RELOAD"]);
        assert_eq!(busy.value("select current_database()"), stage.database.name);
        assert_eq!(busy.query("commit").status, b'I');
        assert_eq!(idle.value("select current_database()"), other.name);
        assert_eq!(busy.value("select current_database()"), other.name);
        stage.database.wait_backends(0, "true");
    }
);

both_shards!(smaller_pool_closes_its_surplus, |shards| {
    let stage = Stage::pooled(Topology::new(shards).pool_size(4));
    let mut clients: Vec<Client> = (0..4).map(|_| stage.client()).collect();
    clients
        .iter_mut()
        .for_each(|client| assert_eq!(client.query("begin").status, b'T'));
    clients
        .iter_mut()
        .for_each(|client| assert_eq!(client.query("commit").status, b'I'));
    assert_eq!(stage.database.backends("true"), 4);
    stage.rewrite(&topology(shards, &stage.database).pool_size(1));
    assert_eq!(stage.console("RELOAD").complete, ["RELOAD"]);
    stage.database.wait_backends(1, "true");
    clients
        .iter_mut()
        .for_each(|client| assert_eq!(client.value("select 1"), "1"));
});

both_shards!(reload_under_load_loses_no_query, |shards| {
    let stage = Stage::pooled(Topology::new(shards).pool_size(3));
    let sizes = [1, 6, 2, 5, 3].map(|size| topology(shards, &stage.database).pool_size(size));
    std::thread::scope(|scope| {
        let stage = &stage;
        for id in 0..12 {
            scope.spawn(move || {
                let mut client = stage.client();
                for n in 0..200 {
                    let mark = format!("{id}/{n}");
                    assert_eq!(client.value(&format!("select '{mark}'")), mark);
                }
            });
        }
        for size in &sizes {
            stage.rewrite(size);
            assert_eq!(stage.console("RELOAD").complete, ["RELOAD"]);
        }
    });
    stage.assert_no_leak();
});
