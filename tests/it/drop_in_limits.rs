//! Limits and timeouts that PgBouncer has got since 1.19, per user, per database and for all. Each claim holds for it, too.

use std::path::Path;

use crate::support::drop_in::*;
use crate::support::peer::Reply;
use crate::support::wire::*;
use crate::support::*;
use std::time::{Duration, Instant};

/// A second, less what clocks and rounding may differ.
const ALMOST: Duration = Duration::from_millis(600);

/// One server for each pool, transaction mode, `lines` of whatever section, before a database that ann and bob may
/// connect to, who are no admins.
fn start(brand: Brand, lines: &str) -> DropIn {
    start_with(brand, "", lines)
}

/// The same with `keys` in the line of the database.
fn start_with(brand: Brand, keys: &str, lines: &str) -> DropIn {
    let database = Postgres::shared().database();
    let main = entry("main", &database, keys);
    let lines =
        format!("pool_mode = transaction\ndefault_pool_size = 1\n{lines}\n[databases]\n{main}");
    let users = ["postgres", "ann", "bob"].map(|user| format!("\"{user}\" \"\"\n"));
    for user in ["ann", "bob"] {
        let create = format!("create role {user} login");
        let exists = "exception when duplicate_object or unique_violation then null";
        database.sql(&format!("do $$ begin {create}; {exists}; end $$"));
    }
    DropIn::start_with(brand, database, &lines, |command| {
        let ini = Path::new(command.get_args().last().unwrap());
        std::fs::write(ini.with_file_name("userlist.txt"), users.concat()).unwrap();
    })
}

fn log_in(drop_in: &DropIn, user: &str) -> (Client, Reply) {
    let mut client = Client::connect(drop_in.address);
    let reply = client.start(PROTOCOL_3_0, &[("user", user), ("database", "main")]);
    (client, reply)
}

#[track_caller]
fn client(drop_in: &DropIn, user: &str) -> Client {
    let (client, reply) = log_in(drop_in, user);
    assert_eq!(reply.status, b'I', "{user}: {reply:?}");
    client
}

#[track_caller]
fn assert_refused(drop_in: &DropIn, user: &str, text: &str) {
    let (_, reply) = log_in(drop_in, user);
    assert_eq!(reply.code(), "08P01", "{reply:?}");
    reply.assert_fatal(text);
}

/// Waits for the farewell `text`, which is due a second after `since`; how exact we are, `timeouts` claims.
#[track_caller]
fn expect_farewell(client: &mut Client, text: &str, since: Instant) {
    let reply = client.reply();
    assert_eq!(reply.code(), "08P01", "{reply:?}");
    reply.assert_fatal(text);
    assert!(
        since.elapsed() >= ALMOST,
        "{text} after {:?}",
        since.elapsed()
    );
}

// ---- limits ------------------------------------------------------------------------------------------------------

const OF_DATABASE: &str = "client connections exceeded (max_db_client_connections)";
const OF_USER: &str = "client connections exceeded (max_user_client_connections)";

drop_in!(clients_of_a_database_are_limited, since(1, 24), |brand| {
    for (keys, lines) in [
        ("", "max_db_client_connections = 2"),
        (
            "max_db_client_connections=2",
            "max_db_client_connections = 9",
        ),
    ] {
        let drop_in = start_with(brand, keys, lines);
        let _ann = client(&drop_in, "ann");
        let bob = client(&drop_in, "bob");
        assert_refused(&drop_in, "ann", OF_DATABASE);
        assert_refused(&drop_in, "postgres", OF_DATABASE);
        let shown = |name: &str| {
            let table = drop_in.console("SHOW DATABASES").table();
            let row = table.iter().find(|row| row["name"] == "main");
            row.unwrap()[name].clone()
        };
        assert_eq!(shown("max_client_connections"), "2");
        assert_eq!(shown("current_client_connections"), "2");
        drop(bob);
        wait_until("he has left", || shown("current_client_connections") == "1");
        client(&drop_in, "ann");
    }
});

drop_in!(clients_of_a_user_are_limited, since(1, 24), |brand| {
    for (lines, of_bob) in [
        ("max_user_client_connections = 1", OF_USER),
        ("[users]\nann = max_user_client_connections=1", ""),
    ] {
        let drop_in = start(brand, lines);
        let ann = client(&drop_in, "ann");
        let _bob = client(&drop_in, "bob");
        assert_refused(&drop_in, "ann", OF_USER);
        match of_bob {
            "" => drop(client(&drop_in, "bob")),
            text => assert_refused(&drop_in, "bob", text),
        }
        // The console knows no limits.
        let _consoles = [(); 2].map(|()| Client::login(drop_in.address, "pgbouncer"));
        let shown = |name: &str| {
            let table = drop_in.console("SHOW USERS").table();
            let row = table.iter().find(|row| row["name"] == "ann");
            row.unwrap()[name].clone()
        };
        assert_eq!(shown("max_user_client_connections"), "1");
        assert_eq!(shown("current_client_connections"), "1");
        drop(ann);
        wait_until("she has left", || {
            shown("current_client_connections") == "0"
        });
        client(&drop_in, "ann");
    }
});

drop_in!(pool_may_have_a_size_of_its_user, since(1, 23), |brand| {
    let drop_in = start_with(brand, "pool_size=3", "[users]\nann = pool_size=1");
    let mut of_ann = [(); 2].map(|()| client(&drop_in, "ann"));
    let mut of_bob = [(); 2].map(|()| client(&drop_in, "bob"));
    assert_eq!(of_ann[0].query("begin").status, b'T');
    of_bob
        .iter_mut()
        .for_each(|bob| assert_eq!(bob.query("begin").status, b'T'));
    of_ann[1].send(&query("select 'late'"));
    wait_until("one waits", || drop_in.pools("main", "cl_waiting") == 1);
    assert_eq!(of_ann[0].query("commit").status, b'I');
    assert_eq!(of_ann[1].reply().value(), "late");
    let table = drop_in.console("SHOW USERS").table();
    let row = table.iter().find(|row| row["name"] == "ann").unwrap();
    assert_eq!(row["pool_size"].trim(), "1");
});

drop_in!(reserve_may_be_of_its_user, since(1, 24), |brand| {
    let lines = "reserve_pool_timeout = 1\n[users]\nann = reserve_pool_size=1";
    let drop_in = start(brand, lines);
    let mut clients = [(); 3].map(|()| client(&drop_in, "ann"));
    assert_eq!(clients[0].query("begin").status, b'T');
    assert_eq!(clients[1].query("begin").status, b'T');
    let log = drop_in.log();
    assert!(log.contains("taking connection from reserve_pool"), "{log}");
    clients[2].send(&query("select 'late'"));
    wait_until("one waits", || drop_in.pools("main", "cl_waiting") == 1);
    assert_eq!(drop_in.pools("main", "sv_active"), 2);
});

drop_in!(size_of_nought_is_no_limit, since(1, 24), |brand| {
    let drop_in = start_with(brand, "pool_size=0", "");
    let mut clients: Vec<_> = (0..30).map(|_| client(&drop_in, "ann")).collect();
    for client in &mut clients {
        assert_eq!(client.query("begin").status, b'T');
    }
    assert_eq!(drop_in.pools("main", "sv_active"), 30);
});

drop_in!(
    evicted_server_tells_which_limit_it_was,
    since(1, 26),
    |brand| {
        for (lines, limit) in [
            ("max_db_connections = 1", "max_db_connections"),
            ("max_user_connections = 1", "max_user_connections"),
        ] {
            let database = Postgres::shared().database();
            let other = entry("other", &database, "");
            let drop_in = start(brand, &format!("{lines}\n[databases]\n{other}"));
            client(&drop_in, "ann").value("select 'ann'");
            let (user, entry) = match limit {
                "max_db_connections" => ("bob", "main"),
                _ => ("ann", "other"),
            };
            let params = [("user", user), ("database", entry)];
            Client::login_with(drop_in.address, &params).value("select 1");
            let log = drop_in.log();
            let text = format!("closing because: evicted for {limit} (age=");
            assert!(log.contains(&text), "{log}");
        }
    }
);

// ---- timeouts ----------------------------------------------------------------------------------------------------

drop_in!(
    query_may_have_a_timeout_of_its_user,
    since(1, 24),
    |brand| {
        let drop_in = start(brand, "query_timeout = 0\n[users]\nann = query_timeout=1");
        let (mut ann, mut bob) = (client(&drop_in, "ann"), client(&drop_in, "bob"));
        let begin = Instant::now();
        bob.send(&query("select pg_sleep(3)::text || 'slept'"));
        ann.send(&query("select pg_sleep(60)"));
        expect_farewell(&mut ann, "query timeout", begin);
        assert_eq!(bob.reply().value(), "slept");
    }
);

drop_in!(idle_client_is_sent_away, since(1, 24), |brand| {
    let lines = "client_idle_timeout = 1\n[users]\nbob = client_idle_timeout=600";
    let drop_in = start(brand, lines);
    let (mut ann, mut bob) = (client(&drop_in, "ann"), client(&drop_in, "bob"));
    ann.value("select 1");
    expect_farewell(&mut ann, "client_idle_timeout", Instant::now());
    assert!(bob.has_nothing_to_read());
    assert_eq!(bob.value("select 'here'"), "here");
});

drop_in!(transaction_is_timed_from_its_begin, since(1, 25), |brand| {
    for lines in [
        "transaction_timeout = 1",
        "[users]\nann = transaction_timeout=1",
    ] {
        let drop_in = start(brand, lines);
        let mut ann = client(&drop_in, "ann");
        let begin = Instant::now();
        assert_eq!(ann.query("begin").status, b'T');
        expect_farewell(&mut ann, "transaction timeout", begin);
        assert_eq!(client(&drop_in, "ann").value("select 'next'"), "next");
    }
});

drop_in!(
    idle_transaction_may_be_timed_by_user,
    since(1, 25),
    |brand| {
        let lines = "idle_transaction_timeout = 0\n[users]\nann = idle_transaction_timeout=1";
        let drop_in = start(brand, lines);
        let (mut ann, mut bob) = (client(&drop_in, "ann"), client(&drop_in, "bob"));
        assert_eq!(bob.query("begin").status, b'T');
        let begin = Instant::now();
        assert_eq!(ann.query("begin").status, b'T');
        expect_farewell(&mut ann, "idle transaction timeout", begin);
        assert_eq!(bob.query("commit").status, b'I');
    }
);

drop_in!(client_in_line_is_told_once, since(1, 25), |brand| {
    let drop_in = start(brand, "query_wait_notify = 1");
    let (mut holder, mut late) = (client(&drop_in, "ann"), client(&drop_in, "ann"));
    assert_eq!(holder.query("begin").status, b'T');
    let begin = Instant::now();
    late.send(&query("select 'late'"));
    let notice = late.read();
    assert_eq!(notice.tag, b'N');
    assert!(begin.elapsed() >= ALMOST, "after {:?}", begin.elapsed());
    let fields = notice.failure();
    assert_eq!((&*fields.severity, &*fields.code), ("NOTICE", "00000"));
    assert_eq!(
        fields.text,
        "No server connection available in postgres backend, client being queued"
    );
    assert_eq!(holder.query("commit").status, b'I');
    let reply = late.reply();
    assert_eq!((reply.value().as_str(), reply.notices.len()), ("late", 0));
});

// The nearest setting counts and not the shortest.
drop_in!(
    line_may_be_as_long_as_user_or_database_say,
    since(1, 26),
    |brand| {
        let own = |span| format!("[users]\nann = query_wait_timeout={span}");
        for (general, keys, lines, is_short) in [
            ("60", "query_wait_timeout=1", String::new(), true),
            ("60", "query_wait_timeout=60", own(1), true),
            ("1", "query_wait_timeout=60", String::new(), false),
            ("60", "query_wait_timeout=1", own(60), false),
            ("1", "", own(60), false),
        ] {
            let lines = format!("query_wait_timeout = {general}\n{lines}");
            let drop_in = start_with(brand, keys, &lines);
            let (mut holder, mut late) = (client(&drop_in, "ann"), client(&drop_in, "ann"));
            assert_eq!(holder.query("begin").status, b'T');
            let begin = Instant::now();
            late.send(&query("select 'late'"));
            if is_short {
                expect_farewell(&mut late, "query_wait_timeout", begin);
            } else {
                wait::pace_until(begin + Duration::from_millis(2500));
                assert!(late.has_nothing_to_read(), "{general} {keys} {lines}");
            }
            assert_eq!(holder.query("commit").status, b'I');
            if !is_short {
                assert_eq!(late.reply().value(), "late");
            }
        }
    }
);

drop_in!(pool_that_nobody_uses_goes, since(1, 26), |brand| {
    let drop_in = start(brand, "server_idle_timeout = 1\npool_idle_timeout = 1");
    client(&drop_in, "ann").value("select 1");
    let is_listed = |user: &str| {
        let table = drop_in.console("SHOW POOLS").table();
        table.iter().any(|row| row["user"] == user)
    };
    assert!(is_listed("ann"));
    let _bob = client(&drop_in, "bob");
    wait_until("her pool is gone", || !is_listed("ann"));
    assert!(is_listed("bob"));
    assert_eq!(client(&drop_in, "ann").value("select 'again'"), "again");
});

drop_in!(
    query_timeout_does_not_run_between_the_queries_of_a_transaction,
    since(1, 26),
    |brand| {
        let drop_in = start(brand, "query_timeout = 1");
        let mut client = drop_in.client();
        assert_eq!(client.query("begin").status, b'T');
        wait::pace_until(Instant::now() + Duration::from_millis(1800));
        assert_eq!(client.value("select 'there'"), "there");
        assert_eq!(client.query("commit").status, b'I');
        client
            .query("select pg_sleep(60)")
            .assert_fatal("query timeout");
    }
);

// ---- logins ------------------------------------------------------------------------------------------------------

drop_in!(who_logs_in_is_told_and_counted, since(1, 26), |brand| {
    let drop_in = start(brand, "login_notify_message = mind the gap");
    for _ in 0..3 {
        let (_, reply) = log_in(&drop_in, "ann");
        assert_eq!(reply.notices, ["mind the gap"]);
        assert_eq!(reply.status, b'I');
    }
    let table = drop_in.console("SHOW STATS").table();
    let row = table.iter().find(|row| row["database"] == "main").unwrap();
    assert_eq!(row["total_client_login_count"], "3");
});

drop_in!(assignments_of_servers_are_counted, since(1, 23), |brand| {
    let drop_in = start(brand, "");
    let count = || {
        let table = drop_in.console("SHOW STATS").table();
        let row = table.iter().find(|row| row["database"] == "main").unwrap();
        row["total_server_assignment_count"].parse::<u64>().unwrap()
    };
    let mut ann = client(&drop_in, "ann");
    ann.value("select 1");
    let before = count();
    for sql in ["select 1", "begin", "select 2", "commit", "select 3"] {
        assert!(ann.query(sql).error.is_none());
    }
    assert_eq!(count() - before, 3);
});

drop_in!(
    state_of_a_client_without_a_server_is_idle,
    since(1, 25),
    |brand| {
        let drop_in = start(brand, "");
        let (mut busy, mut late) = (client(&drop_in, "ann"), client(&drop_in, "ann"));
        let _idle = client(&drop_in, "ann");
        assert_eq!(busy.query("begin").status, b'T');
        late.send(&query("select 1"));
        wait_until("one waits", || drop_in.pools("main", "cl_waiting") == 1);
        let table = drop_in.console("SHOW CLIENTS").table();
        let rows = table.iter().filter(|row| row["database"] == "main");
        let mut states: Vec<_> = rows.map(|row| row["state"].as_str()).collect();
        states.sort_unstable();
        assert_eq!(states, ["active", "idle", "waiting"]);
    }
);

// ---- what is counted ------------------------------------------------------------------------------------------------

/// One column of `SHOW STATS` of one database.
#[track_caller]
fn counted(drop_in: &DropIn, database: &str, column: &str) -> u64 {
    let table = drop_in.console("SHOW STATS").table();
    let row = table.iter().find(|row| row["database"] == database);
    row.expect("a row")[column].parse().unwrap()
}

drop_in!(console_counts_no_time_and_no_bytes, |brand| {
    let drop_in = DropIn::start(
        brand,
        Postgres::shared().database(),
        "pool_mode = transaction",
    );
    let mut holder = drop_in.client();
    assert_eq!(holder.query("begin").status, b'T');
    let mut pausing = Client::login(drop_in.address, "pgbouncer");
    pausing.send(&query(&format!("PAUSE {}", drop_in.database.name)));
    wait_until("it is pausing", || {
        let table = drop_in.console("SHOW DATABASES").table();
        table.iter().any(|row| row["paused"] == "1")
    });
    assert_eq!(holder.query("commit").status, b'I');
    assert_eq!(pausing.reply().complete, ["PAUSE"]);
    for column in ["received", "sent", "xact_time", "query_time", "wait_time"] {
        let sum = counted(&drop_in, "pgbouncer", &format!("total_{column}"));
        assert_eq!(sum, 0, "{column}");
    }
    assert!(counted(&drop_in, "pgbouncer", "total_query_count") > 0);
});

drop_in!(login_that_waits_for_the_first_server_has_waited, |brand| {
    let drop_in = DropIn::start(brand, Postgres::shared().database(), "");
    let _client = drop_in.client();
    assert!(counted(&drop_in, &drop_in.database.name, "total_wait_time") > 0);
});
