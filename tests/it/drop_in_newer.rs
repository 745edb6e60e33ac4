//! What PgBouncer has got since 1.19 beside names, limits and timeouts. Each claim holds for it, too.

use std::fs;
use std::net::TcpStream;

use crate::support::drop_in::*;
use crate::support::scram;
use crate::support::wire::*;
use crate::support::*;
use rustix::process::Signal;

fn database() -> Database {
    Postgres::shared().database()
}

// ---- shutdown ----------------------------------------------------------------------------------------------------

#[track_caller]
fn wait_refused(drop_in: &DropIn) {
    wait_until("new connections are refused", || {
        TcpStream::connect(drop_in.address).is_err()
    });
}

fn by_socket(drop_in: &DropIn, database: &str) -> (Client, peer::Reply) {
    let mut client = drop_in.by_socket();
    let params = [("user", "postgres"), ("database", database)];
    let reply = client.start(PROTOCOL_3_0, &params);
    (client, reply)
}

fn shut_down_after_clients(brand: Brand, order: fn(&DropIn)) {
    let lines = "pool_mode = transaction\ndefault_pool_size = 1";
    let mut drop_in = DropIn::start(brand, database(), lines);
    let mut clients = [(); 2].map(|()| drop_in.client());
    order(&drop_in);
    wait_refused(&drop_in);
    if !brand.is_before((1, 25)) {
        let (mut console, _) = by_socket(&drop_in, "pgbouncer");
        assert_eq!(console.query("SHOW VERSION").complete, ["SHOW"]);
        let (_, reply) = by_socket(&drop_in, &drop_in.database.name);
        reply.assert_fatal("pooler is shutting down");
    }
    let [mut first, second] = clients.each_mut();
    for client in [&mut first, second] {
        assert_eq!(client.value("select 'served'"), "served");
    }
    let [first, mut second] = clients;
    drop(first);
    assert_eq!(second.value("select 'to the last'"), "to the last");
    drop(second);
    assert!(drop_in.wait_exit().expect("an end").success());
    assert!(!drop_in.path("pid").exists());
}

drop_in!(signal_waits_for_the_clients, since(1, 23), |brand| {
    shut_down_after_clients(brand, |drop_in| drop_in.signal(Signal::TERM));
});

drop_in!(shutdown_waits_for_the_clients, since(1, 23), |brand| {
    shut_down_after_clients(brand, |drop_in| {
        let reply = drop_in.console("SHUTDOWN WAIT_FOR_CLIENTS");
        assert_eq!(reply.complete, ["SHUTDOWN"], "{reply:?}");
    });
});

drop_in!(shutdown_waits_for_the_servers, since(1, 23), |brand| {
    let lines = "pool_mode = transaction\ndefault_pool_size = 1";
    let mut drop_in = DropIn::start(brand, database(), lines);
    let (mut busy, mut late) = (drop_in.client(), drop_in.client());
    assert_eq!(busy.query("begin").status, b'T');
    late.send(&query("select 'late'"));
    drop_in.wait_queued(1);
    let reply = drop_in.console("SHUTDOWN WAIT_FOR_SERVERS");
    assert_eq!(reply.complete, ["SHUTDOWN"], "{reply:?}");
    wait_refused(&drop_in);
    late.reply().assert_fatal("server shutting down");
    assert_eq!(busy.value("select 'goes on'"), "goes on");
    assert_eq!(busy.query("commit").complete, ["COMMIT"]);
    assert!(drop_in.wait_exit().expect("an end").success());
});

drop_in!(second_signal_waits_for_nobody, since(1, 23), |brand| {
    for [first, second] in [
        [Signal::TERM, Signal::INT],
        [Signal::TERM, Signal::TERM],
        [Signal::INT, Signal::TERM],
    ] {
        let mut drop_in = DropIn::start(brand, database(), "pool_mode = transaction");
        let mut busy = drop_in.client();
        assert_eq!(busy.query("begin").status, b'T');
        drop_in.signal(first);
        wait_refused(&drop_in);
        drop_in.signal(second);
        assert!(drop_in.wait_exit().expect("an end").success());
        busy.expect_closed();
        assert!(!drop_in.path("pid").exists());
    }
});

drop_in!(signal_to_quit_waits_for_nobody, since(1, 23), |brand| {
    let mut drop_in = DropIn::start(brand, database(), "pool_mode = transaction");
    let (mut busy, mut idle) = (drop_in.client(), drop_in.client());
    assert_eq!(busy.query("begin").status, b'T');
    drop_in.signal(Signal::QUIT);
    assert!(drop_in.wait_exit().expect("an end").success());
    busy.expect_closed();
    idle.expect_closed();
    assert!(!drop_in.path("pid").exists());
});

// ---- servers -----------------------------------------------------------------------------------------------------

drop_in!(
    host_that_fails_is_left_for_the_next,
    since(1, 24),
    |brand| {
        for balance in ["round-robin", "disable"] {
            let database = database();
            let (name, port) = (&database.name, database.postgres.address().port());
            // Nobody listens at 127.0.0.2.
            let lines = format!(
                "server_login_retry = 1\n[databases]\nmany = host=127.0.0.2,127.0.0.1 port={port} \
             dbname={name} load_balance_hosts={balance}"
            );
            let drop_in = DropIn::start(brand, database, &lines);
            let mut client = Client::login(drop_in.address, "many");
            assert_eq!(client.value("select 'served'"), "served");
            for (table, column) in [("POOLS", "database"), ("DATABASES", "name")] {
                let rows = drop_in.console(&format!("SHOW {table}")).table();
                let row = rows.iter().find(|row| row[column] == "many");
                assert_eq!(
                    row.expect("a row")["load_balance_hosts"],
                    balance,
                    "{table}"
                );
            }
        }
    }
);

drop_in!(
    further_parameters_follow_their_client,
    since(1, 20),
    |brand| {
        // Names may be in any case.
        for name in [
            "default_transaction_read_only",
            "DEFAULT_Transaction_Read_Only",
        ] {
            let lines = format!(
                "pool_mode = transaction\ndefault_pool_size = 1\ntrack_extra_parameters = {name}"
            );
            let drop_in = DropIn::start(brand, database(), &lines);
            let (mut careful, mut other) = (drop_in.client(), drop_in.client());
            let show = "show default_transaction_read_only";
            careful.query("set default_transaction_read_only = on");
            for _ in 0..2 {
                assert_eq!(other.value(show), "off", "{name}");
                assert_eq!(careful.value(show), "on", "{name}");
            }
        }
    }
);

// ---- logins ------------------------------------------------------------------------------------------------------

drop_in!(
    options_of_the_protocol_are_negotiated,
    since(1, 23),
    |brand| {
        let drop_in = DropIn::start(brand, database(), "");
        let name = drop_in.database.name.as_str();
        let params = [
            ("user", "postgres"),
            ("database", name),
            ("_pq_.flying", "1"),
        ];
        let mut client = Client::connect(drop_in.address);
        client.send(&startup(PROTOCOL_3_0, &params));
        let answer = client.expect(b'v');
        assert_eq!((answer.u32_at(0), answer.u32_at(4)), (PROTOCOL_3_0, 1));
        assert_eq!(answer.strings(8)[0], "_pq_.flying");
        assert_eq!(client.reply().status, b'I');
        assert_eq!(client.value("select 'in'"), "in");
    }
);

drop_in!(
    iterations_of_made_up_secrets_can_be_set,
    since(1, 25),
    |brand| {
        let lines = "auth_type = scram-sha-256\nscram_iterations = 777";
        let drop_in = DropIn::start_with(brand, database(), lines, |command| {
            let ini = std::path::Path::new(command.get_args().last().unwrap());
            fs::write(ini.with_file_name("userlist.txt"), "\"ann\" \"secret\"\n").unwrap();
        });
        for user in ["ann", "nobody_at_all"] {
            let mut client = Client::connect(drop_in.address);
            let params = [("user", user), ("database", &*drop_in.database.name)];
            client.send(&startup(PROTOCOL_3_0, &params));
            client.expect(b'R');
            client.send(&scram::initial("n,,n=,r=abcdefghijklmnop"));
            let first = scram::server_first(&client.expect(b'R').body);
            assert!(first.ends_with(",i=777"), "{user}: {first}");
        }
    }
);

drop_in!(client_is_told_how_it_is_pooled, since(1, 26), |brand| {
    let database = Postgres::shared().database();
    let session = entry("session", &database, "pool_mode=session");
    let lines =
        format!("pool_mode = transaction\nmax_prepared_statements = 7\n[databases]\n{session}");
    let drop_in = DropIn::start(brand, database, &lines);
    for (name, mode) in [
        (&*drop_in.database.name, "transaction"),
        ("session", "session"),
    ] {
        let params = Client::login(drop_in.address, name).params;
        assert_eq!(params["pgbouncer.pool_mode"], mode);
        assert_eq!(params["pgbouncer.max_prepared_statements"], "7");
    }
});
