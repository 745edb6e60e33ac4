//! Reload: everything or nothing, and what it does to those connected.

use std::fs;

use rustix::process::Signal;

use crate::support::drop_in::*;
use crate::support::wire::*;
use crate::support::*;

/// Whether the log says of the `nth` signal, behind the line about its arrival, that the file is no good.
fn is_refused(stage: &Stage, nth: usize) -> bool {
    let log = stage.log();
    let said = log.split("got SIGHUP").nth(nth);
    said.is_some_and(|said| said.contains("RELOAD failed"))
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
    let bad = [
        good.clone().set("pool_mode", "sometimes"),
        good.set("no_such_key", 1),
    ];
    for (nth, bad) in (1..).zip(bad) {
        stage.rewrite(&bad);
        assert!(stage.console("RELOAD").error.is_some());
        stage.signal(Signal::HUP);
        wait_until("it has been refused", || is_refused(&stage, nth));
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

// A transaction ends on the server that it began on; whoever waits is served as the other user. PgBouncer 1.26 asks
// the server of the new user for the session authorization of the old one.
drop_in!(
    clients_go_on_as_the_user_that_a_reload_names_for_servers,
    until(1, 26),
    |brand| {
        let database = Postgres::shared().database();
        let [one, two] = [(); 2].map(|()| Postgres::shared().role("pg_monitor", "md5", "x"));
        let address = database.postgres.address();
        let (host, port, name) = (address.ip(), address.port(), &database.name);
        let more = format!(
            "[databases]\nforced = host={host} port={port} dbname={name} user={one} pool_size=1 pool_mode=transaction\n"
        );
        let drop_in = DropIn::start(brand, database, &more);
        let who = "select current_user";
        let login = || Client::login(drop_in.address, "forced");
        let [mut idle, mut busy, mut waiting] = [(); 3].map(|()| login());
        let key = idle.key.clone();
        assert_eq!(idle.value(who), one);
        assert_eq!(busy.query("begin").status, b'T');
        assert_eq!(busy.value(who), one);
        waiting.send(&query(who));
        let mut console = Client::login(drop_in.address, "pgbouncer");
        let mut pool_of = |user: &str, column: &str| {
            let pools = console.query("SHOW POOLS").table();
            let row = pools.into_iter().find(|row| row["user"] == user);
            row.map_or(0, |row| row[column].parse::<u32>().unwrap())
        };
        wait_until("it waits", || pool_of(&one, "cl_waiting") == 1);

        let file = drop_in.path("pgbouncer.ini");
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, text.replace(&one, &two)).unwrap();
        drop_in.signal(Signal::HUP);
        wait_until("new clients are served as the other user", || {
            login().value(who) == two
        });
        assert_eq!(waiting.reply().value(), two);
        assert_eq!(busy.value(who), one);
        assert_eq!(busy.query("commit").complete, ["COMMIT"]);
        for client in [&mut busy, &mut idle] {
            assert_eq!(client.value(who), two);
        }
        wait_until("they are shown there", || pool_of(&two, "cl_active") == 3);
        // Its cancel key still is.
        idle.send(&query("select pg_sleep(60)"));
        wait_until("it sleeps", || {
            peer::cancel(drop_in.address, &key);
            !idle.has_nothing_to_read()
        });
        assert_eq!(idle.reply().error.unwrap().code, "57014");
    }
);

// Whoever was let in as somebody has not proved to be the user that servers would be logged in as now.
both_shards!(
    client_of_a_database_that_names_no_user_any_more_has_to_come_again,
    |shards| {
        let stage = Stage::pooled(Topology::new(shards));
        let role = Postgres::shared().role("pg_monitor", "md5", "x");
        let with = |keys: &[(&str, &str)]| {
            stage.rewrite(&Topology::new(shards).database("d", &stage.database, keys));
            assert_eq!(stage.console("RELOAD").complete, ["RELOAD"]);
        };
        with(&[("user", &role)]);
        let login = || Client::login(stage.address(), "d");
        let (mut idle, mut busy) = (login(), login());
        assert_eq!(idle.value("select current_user"), role);
        assert_eq!(busy.query("begin").status, b'T');
        with(&[]);
        assert_eq!(busy.query("commit").complete, ["COMMIT"]);
        for client in [&mut idle, &mut busy] {
            let refused = client.query("select current_user");
            refused.assert_fatal("database configuration changed");
        }
        assert_eq!(login().value("select current_user"), "postgres");
    }
);
