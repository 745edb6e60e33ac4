//! Replication connections: a server of their own, whatever the pool. Each claim holds for PgBouncer, too.

use crate::replication::cluster;
use crate::support::drop_in::*;
use crate::support::peer::Reply;
use crate::support::wire::*;
use crate::support::*;

fn start(brand: Brand, lines: &str) -> DropIn {
    DropIn::start(brand, cluster().database(), lines)
}

fn params<'a>(drop_in: &'a DropIn, kind: &'a str) -> [(&'a str, &'a str); 3] {
    let database = drop_in.database.name.as_str();
    [
        ("user", "postgres"),
        ("database", database),
        ("replication", kind),
    ]
}

#[track_caller]
fn replicating(drop_in: &DropIn, kind: &str) -> Client {
    Client::login_with(drop_in.address, &params(drop_in, kind))
}

/// The column `replication` of the clients or servers of the database.
fn kinds(drop_in: &DropIn, table: &str) -> Vec<String> {
    let rows = drop_in.console(&format!("SHOW {table}")).table();
    let own = rows
        .into_iter()
        .filter(|row| row["database"] == drop_in.database.name);
    own.map(|mut row| row.remove("replication").unwrap())
        .collect()
}

drop_in!(
    words_say_which_replication_is_meant,
    since(1, 23),
    |brand| {
        let drop_in = start(brand, "");
        for (word, kind) in [
            ("true", "physical"),
            ("on", "physical"),
            ("yes", "physical"),
            ("1", "physical"),
            ("database", "logical"),
            ("false", "none"),
            ("off", "none"),
            ("no", "none"),
            ("0", "none"),
        ] {
            let mut client = replicating(&drop_in, word);
            assert_eq!(kinds(&drop_in, "CLIENTS"), [kind], "{word}");
            let reply = client.query("IDENTIFY_SYSTEM");
            assert_eq!(reply.error.is_none(), kind != "none", "{word}: {reply:?}");
            client.send(&terminate());
            client.expect_closed();
            wait_until("it has gone", || kinds(&drop_in, "CLIENTS").is_empty());
        }
    }
);

drop_in!(
    word_that_means_nothing_is_no_replication,
    since(1, 23),
    |brand| {
        let drop_in = start(brand, "");
        let reply =
            Client::connect(drop_in.address).start(PROTOCOL_3_0, &params(&drop_in, "perhaps"));
        match brand {
            Brand::PgBouncer => assert_eq!(reply.status, b'I', "{reply:?}"),
            Brand::Ringbouncer(_) => {
                assert_eq!(reply.code(), "08P01", "{reply:?}");
                reply.assert_fatal("unsupported startup parameter: replication");
            }
        }
    }
);

drop_in!(
    replication_is_refused_by_those_who_do_not_know_it,
    until(1, 23),
    |brand| {
        if matches!(brand, Brand::Ringbouncer(_)) {
            return;
        }
        let drop_in = start(brand, "");
        let reply = Client::connect(drop_in.address).start(PROTOCOL_3_0, &params(&drop_in, "true"));
        reply.assert_fatal("unsupported startup parameter: replication");
    }
);

drop_in!(console_tells_who_replicates, since(1, 23), |brand| {
    for (word, kind, logged) in [
        ("true", "physical", "yes"),
        ("database", "logical", "database"),
    ] {
        let drop_in = start(brand, "pool_mode = transaction");
        let _client = replicating(&drop_in, word);
        assert_eq!(kinds(&drop_in, "CLIENTS"), [kind]);
        assert_eq!(kinds(&drop_in, "SERVERS"), [kind]);
        let line = line_with(
            &drop_in,
            &format!("login attempt: db={} ", drop_in.database.name),
        );
        assert!(line.ends_with(&format!("replication={logged}")), "{line}");
    }
});

drop_in!(
    replication_keeps_its_server_in_every_mode,
    since(1, 23),
    |brand| {
        for mode in ["session", "transaction", "statement"] {
            let drop_in = start(brand, &format!("pool_mode = {mode}"));
            let mut first = replicating(&drop_in, "database");
            let mut second = replicating(&drop_in, "database");
            let pids =
                |clients: [&mut Client; 2]| clients.map(|it| it.value("select pg_backend_pid()"));
            let before = pids([&mut first, &mut second]);
            assert_ne!(before[0], before[1], "{mode}");
            assert_eq!(pids([&mut first, &mut second]), before, "{mode}");
            first.query("set work_mem = '77MB'");
            assert_eq!(first.value("show work_mem"), "77MB", "{mode}");
            assert_eq!(
                drop_in.pools(&drop_in.database.name, "sv_active"),
                2,
                "{mode}"
            );
        }
    }
);

drop_in!(
    server_of_a_replication_serves_nobody_else,
    since(1, 23),
    |brand| {
        let drop_in = start(brand, "pool_mode = transaction");
        let mut client = replicating(&drop_in, "database");
        let pid = client.value("select pg_backend_pid()");
        client.send(&terminate());
        client.expect_closed();
        wait_until("its server is closed", || {
            kinds(&drop_in, "SERVERS").is_empty()
        });
        assert_ne!(drop_in.client().value("select pg_backend_pid()"), pid);
    }
);

drop_in!(
    replication_counts_in_the_pool_and_evicts_who_is_idle,
    since(1, 23),
    |brand| {
        let drop_in = start(brand, "pool_mode = transaction\ndefault_pool_size = 1");
        let mut other = drop_in.client();
        let pid = other.value("select pg_backend_pid()");
        let mut client = replicating(&drop_in, "database");
        assert_ne!(client.value("select pg_backend_pid()"), pid);
        assert_eq!(kinds(&drop_in, "SERVERS"), ["logical"]);
        other.send(&query("select 'served'"));
        drop_in.wait_queued(1);
        client.send(&terminate());
        client.expect_closed();
        assert_eq!(other.reply().value(), "served");
    }
);

drop_in!(
    parameters_of_a_replication_reach_its_server,
    since(1, 23),
    |brand| {
        let drop_in = start(brand, "ignore_startup_parameters = options");
        let more = [
            ("application_name", "standby"),
            ("options", "-c work_mem=77MB"),
        ];
        let params = [&params(&drop_in, "database")[..], &more].concat();
        let mut client = Client::login_with(drop_in.address, &params);
        assert_eq!(client.value("show application_name"), "standby");
        assert_eq!(client.value("show work_mem"), "77MB");
    }
);

fn stream(client: &mut Client) {
    let start = client.query("IDENTIFY_SYSTEM");
    let at = start.rows[0][2].clone().unwrap();
    client.send(&query(&format!("START_REPLICATION PHYSICAL {at}")));
    client.expect(b'W');
}

drop_in!(physical_replication_streams, since(1, 23), |brand| {
    let drop_in = start(brand, "pool_mode = transaction");
    let mut client = replicating(&drop_in, "true");
    stream(&mut client);
    drop_in.database.sql("create table t as select 1 as n");
    // WAL or a sign of life.
    client.expect(b'd');
    client.send(&copy_done());
    let is_over = |reply: &Reply| reply.status == b'I' && reply.error.is_none();
    let reply = client.reply();
    assert!(is_over(&reply), "{reply:?}");
    assert_eq!(client.query("IDENTIFY_SYSTEM").rows.len(), 1);
});

drop_in!(
    replication_ends_at_once_when_its_server_is_to_be_closed,
    since(1, 23),
    |brand| {
        let drop_in = start(brand, "");
        let mut client = replicating(&drop_in, "database");
        assert_eq!(drop_in.console("RECONNECT").complete, ["RECONNECT"]);
        client
            .reply()
            .assert_fatal("database configuration changed");
    }
);

drop_in!(
    replication_that_the_server_refuses_is_ended,
    since(1, 23),
    |brand| {
        let name = match brand {
            Brand::PgBouncer => "mere_of_pgbouncer".to_owned(),
            Brand::Ringbouncer(shards) => format!("mere_of_{shards}"),
        };
        let database = cluster().database();
        database.sql(&format!("drop role if exists {name}"));
        database.sql(&format!("create role {name} login"));
        let drop_in = DropIn::start_knowing(brand, database, "", &[(&name, "")]);
        let mut params = params(&drop_in, "true");
        params[0].1 = &name;
        let reply = Client::connect(drop_in.address).start(PROTOCOL_3_0, &params);
        match brand {
            Brand::PgBouncer => reply.assert_fatal("login failed"),
            // The server's own words.
            Brand::Ringbouncer(_) => assert_eq!(reply.code(), "42501", "{reply:?}"),
        }
    }
);
