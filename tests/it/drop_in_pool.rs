//! Who has which server for how long: modes, sizes, limits, lifetimes, and what RELOAD makes of them. Each claim holds
//! for PgBouncer, too.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::drop_in::*;
use crate::support::peer::Reply;
use crate::support::wait::PATIENCE;
use crate::support::wire::*;
use crate::support::*;

const PID: &str = "select pg_backend_pid()";

#[track_caller]
fn start(brand: Brand, lines: &str) -> DropIn {
    DropIn::start(brand, Postgres::shared().database(), lines)
}

/// A role of the database's own, which the pooler started with [`start_for`] knows.
fn role(database: &Database, suffix: &str) -> String {
    let name = format!("{suffix}_{}", database.name);
    database.sql(&format!("create role \"{name}\" login"));
    name
}

/// A pooler that trusts these users beside `postgres`.
#[track_caller]
fn start_for(brand: Brand, database: Database, lines: &str, users: &[&str]) -> DropIn {
    let line = |name: &&str| format!("\"{name}\" \"\"\n");
    let listed: String = ["postgres"].iter().chain(users).map(line).collect();
    DropIn::start_with(brand, database, lines, |command| {
        let ini = Path::new(command.get_args().last().unwrap());
        std::fs::write(ini.with_file_name("userlist.txt"), listed).unwrap();
    })
}

/// Logs in to an entry, or hears why not.
fn log_in(drop_in: &DropIn, user: &str, entry: &str) -> (Client, Reply) {
    let mut client = Client::connect(drop_in.address);
    let reply = client.start(PROTOCOL_3_0, &[("user", user), ("database", entry)]);
    (client, reply)
}

fn client(drop_in: &DropIn, user: &str, entry: &str) -> Client {
    Client::login_with(drop_in.address, &[("user", user), ("database", entry)])
}

/// Asks for something, and has to stand in line for it.
#[track_caller]
fn assert_queued(drop_in: &DropIn, client: &mut Client, sql: &str) {
    client.send(&query(sql));
    drop_in.wait_queued(1);
    assert!(client.has_nothing_to_read());
}

// ---- modes -------------------------------------------------------------------------------------------------------

drop_in!(
    transactions_of_all_clients_take_turns_on_one_server,
    |brand| {
        let drop_in = start(brand, "pool_mode = transaction\ndefault_pool_size = 1");
        let (mut holder, mut next) = (drop_in.client(), drop_in.client());
        assert_eq!(holder.query("begin").status, b'T');
        assert_queued(&drop_in, &mut next, PID);
        assert_eq!(holder.query("select 1/0").status, b'E');
        assert!(next.has_nothing_to_read());
        let pid = holder.query("rollback");
        assert_eq!(pid.status, b'I');
        let pid = next.reply().value();
        assert_eq!(holder.value(PID), pid);
        drop_in.database.wait_backends(1, "true");
    }
);

drop_in!(server_is_held_until_its_pipeline_has_ended, |brand| {
    let drop_in = start(brand, "pool_mode = transaction\ndefault_pool_size = 1");
    let (mut holder, mut next) = (drop_in.client(), drop_in.client());
    holder.send(&[parse("", "select 'half'"), run_prepared("", &[]), flush()].concat());
    for tag in *b"12DC" {
        holder.expect(tag);
    }
    assert_queued(&drop_in, &mut next, "select 'served'");
    assert_eq!(holder.exchange(&sync()).tags, "Z");
    assert_eq!(next.reply().value(), "served");
});

drop_in!(session_keeps_its_server_until_its_client_leaves, |brand| {
    let drop_in = start(brand, "pool_mode = session\ndefault_pool_size = 1");
    let mut holder = drop_in.client();
    let pid = holder.value(PID);
    holder.exchange(&[parse("mine", "select 'mine'"), sync()].concat());
    let mut next = drop_in.client();
    assert_queued(&drop_in, &mut next, PID);
    let reply = holder.exchange(&[run_prepared("mine", &[]), sync()].concat());
    assert_eq!(reply.value(), "mine", "a name of the session");
    drop(holder);
    assert_eq!(next.reply().value(), pid);
    let reply = next.exchange(&[run_prepared("mine", &[]), sync()].concat());
    assert_eq!(reply.code(), "26000", "and gone with it");
});

drop_in!(
    clients_that_are_there_follow_the_mode_of_the_file,
    |brand| {
        let drop_in = start(brand, "pool_mode = transaction\ndefault_pool_size = 1");
        let (mut holder, mut next) = (drop_in.client(), drop_in.client());
        assert_eq!(holder.value("select 'passed on'"), "passed on");
        assert_eq!(next.value("select 'and back'"), "and back");
        drop_in.reload_with("pool_mode = transaction", "pool_mode = session");
        assert_eq!(holder.value("select 'kept'"), "kept");
        assert_queued(&drop_in, &mut next, "select 'served'");
        drop_in.reload_with("pool_mode = session", "pool_mode = transaction");
        assert!(next.has_nothing_to_read());
        assert_eq!(holder.value("select 'passed on'"), "passed on");
        assert_eq!(next.reply().value(), "served");
    }
);

drop_in!(order_to_close_a_server_ends_with_its_lease, |brand| {
    let drop_in = start(brand, "pool_mode = transaction\nserver_fast_close = 1");
    let mut client = drop_in.client();
    assert_eq!(client.query("begin").status, b'T');
    assert_eq!(drop_in.console("RECONNECT").complete, ["RECONNECT"]);
    // Clients hear of it a few times per second.
    wait::pace_until(Instant::now() + Duration::from_millis(700));
    assert_eq!(client.query("commit").status, b'I');
    drop_in.reload_with("pool_mode = transaction", "pool_mode = session");
    let pid = client.value(PID);
    assert_eq!(client.value(PID), pid, "a session that goes on");
});

both_shards!(names_follow_the_mode_of_the_file, |shards| {
    // PgBouncer knows names from 1.21 on.
    const NAMES: &str = "select count(*) from pg_prepared_statements";
    let brand = Brand::Ringbouncer(shards);
    let file = "pool_mode = transaction\ndefault_pool_size = 1\nmax_prepared_statements = 10\n\
                prepared_statement_errors_fatal = 0";
    let drop_in = start(brand, file);
    let run = |client: &mut Client| client.exchange(&[run_prepared("mine", &[]), sync()].concat());
    let prepare = [parse("mine", "select 'mine'"), sync()].concat();
    let (mut early, mut late) = (drop_in.client(), drop_in.client());
    early.exchange(&prepare);
    drop_in.reload_with("pool_mode = transaction", "pool_mode = session");
    assert_eq!(run(&mut early).value(), "mine", "as before");
    drop(early);
    late.exchange(&prepare);
    assert_eq!(run(&mut late).value(), "mine", "a name of the session");
    assert_eq!(late.value(NAMES), "1", "and of no other");
    drop_in.reload_with("pool_mode = session", "pool_mode = transaction");
    assert_eq!(late.value(NAMES), "1", "the session's end");
    assert_eq!(late.value(NAMES), "0", "nothing is left of it");
    assert_eq!(run(&mut late).code(), "26000");
    late.exchange(&prepare);
    assert_eq!(run(&mut late).value(), "mine", "a name of the client");
});

drop_in!(session_leaves_nothing_to_the_next, |brand| {
    let drop_in = start(brand, "pool_mode = session\ndefault_pool_size = 1");
    let mut first = drop_in.client();
    first.value("set work_mem = '77MB'; create temp table leak(n int); listen leak");
    let pid = first.value(PID);
    drop(first);
    let mut second = drop_in.client();
    assert_eq!(second.value(PID), pid);
    assert_ne!(second.value("show work_mem"), "77MB");
    assert_eq!(
        second.value("select to_regclass('pg_temp.leak') is null"),
        "t"
    );
    assert_eq!(
        second.value("select count(*) from pg_listening_channels()"),
        "0"
    );
});

drop_in!(reset_query_runs_after_sessions_or_always, |brand| {
    for (lines, is_reset) in [
        (
            "pool_mode = session\nserver_reset_query = set work_mem = '5MB'",
            true,
        ),
        ("pool_mode = session\nserver_reset_query =", false),
        ("pool_mode = transaction", false),
        (
            "pool_mode = transaction\nserver_reset_query = set work_mem = '5MB'",
            false,
        ),
        (
            "pool_mode = transaction\nserver_reset_query_always = 1",
            true,
        ),
    ] {
        let drop_in = start(brand, &format!("{lines}\ndefault_pool_size = 1"));
        let mut first = drop_in.client();
        first.value("set work_mem = '77MB'");
        drop(first);
        let left = drop_in.client().value("show work_mem");
        assert_eq!(left != "77MB", is_reset, "{lines}: {left}");
    }
});

drop_in!(
    server_of_a_client_that_leaves_in_a_transaction_is_closed,
    |brand| {
        for mode in ["session", "transaction"] {
            let drop_in = start(brand, &format!("pool_mode = {mode}\ndefault_pool_size = 1"));
            drop_in.database.sql("create table t(n int)");
            let mut first = drop_in.client();
            let pid = first.value("begin; insert into t values (1); select pg_backend_pid()");
            match mode {
                "session" => drop(first),
                // Politely.
                _ => first.send(&terminate()),
            }
            let mut second = drop_in.client();
            assert_ne!(second.value(PID), pid, "{mode}");
            assert_eq!(second.value("select count(*) from t"), "0");
            assert!(
                drop_in
                    .log()
                    .contains("closing because: client disconnect while server was not ready"),
                "{}",
                drop_in.log()
            );
        }
    }
);

drop_in!(statement_mode_has_no_transaction_blocks, |brand| {
    let drop_in = start(brand, "pool_mode = statement\ndefault_pool_size = 1");
    let mut client = drop_in.client();
    assert_eq!(client.value("select 1; select 2"), "1");
    client.send(&query("begin"));
    let mut reply = client.reply();
    while !reply.closed {
        reply = client.reply();
    }
    assert_eq!(reply.code(), "08P01");
    reply.assert_fatal("transaction blocks not allowed in statement pooling mode");
    assert_eq!(drop_in.client().value("select 'next'"), "next");
});

drop_in!(mode_of_the_user_goes_before_that_of_the_entry, |brand| {
    let database = Postgres::shared().database();
    let ann = role(&database, "ann");
    let lines = format!(
        "pool_mode = statement\n[users]\n{ann} = pool_mode=session\n[databases]\n{}",
        entry("modal", &database, "pool_mode=transaction")
    );
    let drop_in = start_for(brand, database, &lines, &[&ann]);
    client(&drop_in, &ann, "modal").value("select 1");
    client(&drop_in, "postgres", "modal").value("select 1");
    client(&drop_in, "postgres", &drop_in.database.name).value("select 1");
    let table = drop_in.console("SHOW POOLS").table();
    for (entry, user, mode) in [
        ("modal", &*ann, "session"),
        ("modal", "postgres", "transaction"),
        (&drop_in.database.name, "postgres", "statement"),
    ] {
        let mut rows = table.iter();
        let row = rows.find(|row| row["database"] == entry && row["user"] == user);
        assert_eq!(row.unwrap()["pool_mode"], mode, "{entry} {user}");
    }
});

// ---- sizes and limits --------------------------------------------------------------------------------------------

drop_in!(pool_grows_to_its_size_and_no_further, |brand| {
    let database = Postgres::shared().database();
    let lines = "pool_mode = transaction\ndefault_pool_size = 2\n[databases]\n".to_owned();
    let drop_in = DropIn::start(brand, database, &lines);
    let mut holders = [drop_in.client(), drop_in.client()];
    for holder in &mut holders {
        assert_eq!(holder.query("begin").status, b'T');
    }
    let mut late = drop_in.client();
    assert_queued(&drop_in, &mut late, "select 'served'");
    assert_eq!(drop_in.database.backends("true"), 2);
    assert_eq!(holders[0].query("commit").status, b'I');
    assert_eq!(late.reply().value(), "served");
});

drop_in!(size_of_the_entry_goes_before_the_default, |brand| {
    let database = Postgres::shared().database();
    let own = entry("own", &database, "pool_size=3");
    let lines = format!("pool_mode = transaction\ndefault_pool_size = 1\n[databases]\n{own}");
    let drop_in = DropIn::start(brand, database, &lines);
    let mut holders = [(); 3].map(|()| client(&drop_in, "postgres", "own"));
    for holder in &mut holders {
        assert_eq!(holder.query("begin").status, b'T');
    }
    let mut late = client(&drop_in, "postgres", "own");
    late.send(&query("select 'served'"));
    wait_until("it waits", || drop_in.pools("own", "cl_waiting") == 1);
    assert_eq!(holders[0].query("commit").status, b'I');
    assert_eq!(late.reply().value(), "served");
});

drop_in!(reserve_is_for_those_who_have_waited, |brand| {
    let lines = "pool_mode = transaction\ndefault_pool_size = 1\nreserve_pool_size = 1\nreserve_pool_timeout = 1";
    let drop_in = start(brand, lines);
    let (mut holder, mut second, mut third) =
        (drop_in.client(), drop_in.client(), drop_in.client());
    assert_eq!(holder.query("begin").status, b'T');
    let asked = Instant::now();
    assert_eq!(second.query("begin").status, b'T');
    assert!(
        asked.elapsed() >= Duration::from_millis(900),
        "{:?}",
        asked.elapsed()
    );
    assert!(
        drop_in
            .log()
            .contains("taking connection from reserve_pool")
    );
    assert_queued(&drop_in, &mut third, "select 'third'");
    assert_eq!(drop_in.database.backends("true"), 2);
    assert_eq!(second.query("commit").status, b'I');
    assert_eq!(third.reply().value(), "third");
});

drop_in!(minimum_is_kept_while_there_are_clients, |brand| {
    let drop_in = start(brand, "min_pool_size = 3\nserver_idle_timeout = 1");
    let client = drop_in.client();
    drop_in.database.wait_backends(3, "true");
    assert_eq!(drop_in.database.kill_all(), 3);
    drop_in.database.wait_backends(3, "state = 'idle'");
    drop(client);
});

drop_in!(longest_idle_server_makes_room_in_the_database, |brand| {
    let database = Postgres::shared().database();
    let users = ["ann", "bob", "cyd"].map(|suffix| role(&database, suffix));
    let [ann, bob, cyd] = users.each_ref().map(String::as_str);
    let lines = "pool_mode = transaction\nmax_db_connections = 2";
    let drop_in = start_for(brand, database, lines, &[ann, bob, cyd]);
    let name = &drop_in.database.name;
    let [mut of_ann, mut of_bob, mut of_cyd] = [ann, bob, cyd].map(|user| {
        // None has a server while it has no query.
        let mut client = client(&drop_in, user, name);
        assert_eq!(client.value("select 'served'"), "served");
        client
    });
    let of = |user: &str| drop_in.database.backends(&format!("usename = '{user}'"));
    wait_until("the longest idle has gone", || {
        (of(ann), of(bob), of(cyd)) == (0, 1, 1)
    });
    assert!(drop_in.log().contains("closing because: evicted"));
    for busy in [&mut of_bob, &mut of_cyd] {
        assert_eq!(busy.query("begin").status, b'T');
    }
    assert_queued(&drop_in, &mut of_ann, "select 'late'");
    assert_eq!((of(bob), of(cyd)), (1, 1), "who is busy is not evicted");
    assert_eq!(of_bob.query("commit").status, b'I');
    assert_eq!(of_ann.reply().value(), "late");
});

drop_in!(
    connections_of_a_user_are_limited_over_all_databases,
    |brand| {
        let database = Postgres::shared().database();
        let ann = role(&database, "ann");
        let lines = format!(
            "pool_mode = transaction\n[users]\n{ann} = max_user_connections=2\n[databases]\n{}{}",
            entry("one", &database, ""),
            entry("two", &database, "")
        );
        let drop_in = start_for(brand, database, &lines, &[&ann]);
        let [mut first, mut second, mut third] = ["one", "two", "two"].map(|entry| {
            let mut client = client(&drop_in, &ann, entry);
            client.value("select 1");
            client
        });
        assert_eq!(first.query("begin").status, b'T');
        assert_eq!(second.query("begin").status, b'T');
        third.send(&query("select 'third'"));
        wait_until("it waits", || drop_in.pools("two", "cl_waiting") == 1);
        assert_eq!(drop_in.database.backends("true"), 2);
        assert_eq!(first.query("commit").status, b'I');
        assert_eq!(third.reply().value(), "third");
        assert!(drop_in.log().contains("closing because: evicted"));
    }
);

drop_in!(
    clients_above_max_client_conn_are_refused_but_for_the_console,
    |brand| {
        let drop_in = start(brand, "max_client_conn = 3");
        let name = drop_in.database.name.clone();
        let mut clients: Vec<_> = (0..3).map(|_| drop_in.client()).collect();
        let (_, reply) = log_in(&drop_in, "postgres", &name);
        assert_eq!(reply.code(), "08P01");
        reply.assert_fatal("no more connections allowed (max_client_conn)");
        assert_eq!(drop_in.console("SHOW VERSION").complete, ["SHOW"]);
        drop(clients.pop());
        wait_until("a place is free", || {
            log_in(&drop_in, "postgres", &name).1.status == b'I'
        });
    }
);

drop_in!(client_that_waits_too_long_is_sent_away, |brand| {
    let drop_in = start(
        brand,
        "pool_mode = transaction\ndefault_pool_size = 1\nquery_wait_timeout = 1",
    );
    let (mut holder, mut late) = (drop_in.client(), drop_in.client());
    assert_eq!(holder.query("begin").status, b'T');
    let since = Instant::now();
    let reply = late.query("select 1");
    assert_eq!(reply.code(), "08P01");
    reply.assert_fatal("query_wait_timeout");
    assert!(
        since.elapsed() >= Duration::from_millis(900),
        "{:?}",
        since.elapsed()
    );
    assert_eq!(holder.query("commit").status, b'I');
});

drop_in!(timeouts_say_which_they_are, |brand| {
    for (setting, queries, text) in [
        (
            "query_timeout",
            &["select pg_sleep(60)"][..],
            "query timeout",
        ),
        ("client_idle_timeout", &["select 1"], "client_idle_timeout"),
        (
            "idle_transaction_timeout",
            &["begin"],
            "idle transaction timeout",
        ),
    ] {
        let drop_in = start(brand, &format!("pool_mode = transaction\n{setting} = 1"));
        let mut client = drop_in.client();
        let mut reply = client.query(queries[0]);
        if !reply.closed {
            reply = client.reply();
        }
        assert_eq!(reply.code(), "08P01", "{setting}");
        reply.assert_fatal(text);
    }
});

drop_in!(idle_session_that_has_its_server_is_spared, |brand| {
    let drop_in = start(brand, "pool_mode = session\nclient_idle_timeout = 0");
    let mut session = drop_in.client();
    assert_eq!(session.value("select 1"), "1");
    drop_in.reload_with("client_idle_timeout = 0", "client_idle_timeout = 1");
    let mut idle = drop_in.client();
    idle.reply().assert_fatal("client_idle_timeout");
    let mut again = drop_in.client();
    again.reply().assert_fatal("client_idle_timeout");
    assert_eq!(session.value("select 'there'"), "there");
});

// ---- lives of servers --------------------------------------------------------------------------------------------

drop_in!(old_servers_are_closed_when_they_are_free, |brand| {
    let drop_in = start(brand, "pool_mode = transaction\nserver_lifetime = 1");
    let mut client = drop_in.client();
    let pid = client.value("begin; select pg_backend_pid()");
    let since = Instant::now();
    wait_until("it is too old", || {
        assert_eq!(client.value(PID), pid, "not in a transaction");
        since.elapsed() > Duration::from_millis(1500)
    });
    assert_eq!(client.query("commit").status, b'I');
    drop_in.database.wait_backends(0, &format!("pid = {pid}"));
    assert!(
        drop_in
            .log()
            .contains("closing because: server lifetime over"),
        "{}",
        drop_in.log()
    );
    assert_eq!(client.value("select 'alive'"), "alive");
});

drop_in!(idle_servers_are_closed, |brand| {
    let drop_in = start(brand, "pool_mode = transaction\nserver_idle_timeout = 1");
    let mut client = drop_in.client();
    client.value("select 1");
    drop_in.database.wait_backends(0, "true");
    assert!(
        drop_in
            .log()
            .contains("closing because: server idle timeout"),
        "{}",
        drop_in.log()
    );
    assert_eq!(client.value("select 'alive'"), "alive");
});

drop_in!(idle_server_that_died_is_not_noticed, |brand| {
    let lines = "pool_mode = transaction\nserver_check_delay = 0\nserver_check_query = select 1";
    let drop_in = start(brand, lines);
    let mut client = drop_in.client();
    for _ in 0..3 {
        let pid = client.value(PID);
        drop_in
            .database
            .sql(&format!("select pg_terminate_backend({pid})"));
        drop_in.database.wait_backends(0, &format!("pid = {pid}"));
        assert_ne!(client.value(PID), pid);
    }
});

drop_in!(client_of_a_server_that_dies_hears_its_last_words, |brand| {
    let drop_in = start(brand, "pool_mode = transaction");
    let mut client = drop_in.client();
    let pid = client.value("begin; select pg_backend_pid()");
    drop_in
        .database
        .sql(&format!("select pg_terminate_backend({pid})"));
    let first = client.read().failure();
    assert_eq!((&*first.severity, &*first.code), ("FATAL", "57P01"));
    assert_eq!(
        first.text,
        "terminating connection due to administrator command"
    );
    let reply = client.reply();
    assert_eq!(reply.code(), "08P01");
    reply.assert_fatal("server conn crashed?");
    assert_eq!(drop_in.client().value("select 'alive'"), "alive");
});

drop_in!(client_waits_for_a_server_that_is_down, |brand| {
    let postgres = Postgres::own();
    let drop_in = DropIn::start(
        brand,
        postgres.database(),
        "pool_mode = transaction\nserver_login_retry = 1",
    );
    drop_in.client().value("select 1");
    postgres.kill();
    let name = drop_in.database.name.clone();
    let (address, is_back) = (drop_in.address, Arc::new(AtomicBool::new(false)));
    let seen = is_back.clone();
    // Whoever comes while it is down either waits for it or hears that it is, and may come again.
    let caller = thread::spawn(move || {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut client = Client::connect(address);
            let params = [("user", "postgres"), ("database", &*name)];
            let mut reply = client.start(PROTOCOL_3_0, &params);
            if reply.status == b'I' {
                reply = client.query("select 'back'");
            }
            if reply.value() == "back" {
                assert!(seen.load(Ordering::Acquire));
                return;
            }
            assert!(Instant::now() < deadline, "{reply:?}");
        }
    });
    wait_until("an attempt has failed", || {
        drop_in.log().contains("server conn crashed") || drop_in.log().contains("connect failed")
    });
    is_back.store(true, Ordering::Release);
    postgres.start();
    caller.join().unwrap();
});

// ---- entries and RELOAD ------------------------------------------------------------------------------------------

drop_in!(star_stands_for_every_other_database, |brand| {
    let database = Postgres::shared().database();
    let address = database.postgres.address();
    let lines = format!(
        "[databases]\n* = host={} port={}",
        address.ip(),
        address.port()
    );
    let drop_in = DropIn::start(brand, database, &lines);
    let other = Postgres::shared().database();
    let mut client = client(&drop_in, "postgres", &other.name);
    assert_eq!(client.value("select current_database()"), other.name);
    let (_, reply) = log_in(&drop_in, "postgres", "not_there");
    reply.assert_fatal("database \"not_there\" does not exist");
});

drop_in!(user_of_the_entry_is_who_the_server_sees, |brand| {
    let database = Postgres::shared().database();
    let (ann, bob) = (role(&database, "ann"), role(&database, "bob"));
    let lines = format!(
        "[databases]\n{}",
        entry("forced", &database, &format!("user={ann}"))
    );
    let drop_in = start_for(brand, database, &lines, &[&bob]);
    let mut client = client(&drop_in, &bob, "forced");
    assert_eq!(client.value("select current_user"), ann);
});

drop_in!(clients_of_a_removed_database_are_told, |brand| {
    let database = Postgres::shared().database();
    let extra = entry("extra", &database, "");
    let drop_in = DropIn::start(brand, database, &format!("[databases]\n{extra}"));
    let mut leaver = client(&drop_in, "postgres", "extra");
    leaver.value("select 1");
    let mut stayer = drop_in.client();
    assert_eq!(drop_in.reload_with(&extra, "").complete, ["RELOAD"]);
    let reply = leaver.reply();
    assert_eq!(reply.code(), "08P01");
    reply.assert_fatal("database removed");
    log_in(&drop_in, "postgres", "extra")
        .1
        .assert_fatal("no such database: extra");
    assert_eq!(stayer.value("select 'here'"), "here");
});

drop_in!(database_that_moved_is_found_at_its_new_place, |brand| {
    let (old, new) = (Postgres::shared().database(), Postgres::shared().database());
    let (from, to) = (entry("moved", &old, ""), entry("moved", &new, ""));
    let lines = format!("pool_mode = transaction\n[databases]\n{from}");
    let drop_in = DropIn::start(brand, old, &lines);
    let mut client = client(&drop_in, "postgres", "moved");
    let name = "select current_database()";
    assert_eq!(client.value(name), drop_in.database.name);
    assert_eq!(client.query("begin").status, b'T');
    assert_eq!(drop_in.reload_with(&from, &to).complete, ["RELOAD"]);
    assert_eq!(
        client.value(name),
        drop_in.database.name,
        "not in a transaction"
    );
    assert_eq!(client.query("commit").status, b'I');
    assert_eq!(client.value(name), new.name);
    drop_in.database.wait_backends(0, "true");
});

drop_in!(smaller_pool_closes_what_is_too_much, |brand| {
    let drop_in = start(brand, "pool_mode = transaction\ndefault_pool_size = 4");
    let mut clients = [(); 4].map(|()| drop_in.client());
    for client in &mut clients {
        assert_eq!(client.query("begin").status, b'T');
    }
    let reply = drop_in.reload_with("default_pool_size = 4", "default_pool_size = 1");
    assert_eq!(reply.complete, ["RELOAD"]);
    assert_eq!(drop_in.database.backends("true"), 4, "nobody is cut off");
    for client in &mut clients {
        assert_eq!(client.query("commit").status, b'I');
    }
    drop_in.database.wait_backends(1, "true");
    assert_eq!(clients[3].value("select 'alive'"), "alive");
});

drop_in!(broken_file_leaves_databases_and_clients_alone, |brand| {
    let drop_in = start(brand, "pool_mode = transaction");
    let mut client = drop_in.client();
    let reply = drop_in.reload_with("pool_mode = transaction", "pool_mode = sometimes");
    if !brand.is_before((1, 25)) {
        let error = reply.error.expect("an error");
        assert_eq!((&*error.severity, &*error.code), ("ERROR", "F0000"));
        assert_eq!(error.text, "RELOAD failed, see logs for additional details");
    }
    assert!(drop_in.log().contains("sometimes"), "{}", drop_in.log());
    assert_eq!(client.value("select 'here'"), "here");
    assert_eq!(drop_in.client().value("select 'too'"), "too");
    let reply = drop_in.reload_with("pool_mode = sometimes", "pool_mode = session");
    assert_eq!(reply.complete, ["RELOAD"]);
});

drop_in!(connect_query_runs_on_every_new_server, |brand| {
    let database = Postgres::shared().database();
    let keys = "connect_query='set work_mem = ''7MB'''";
    let lines = format!(
        "pool_mode = transaction\n[databases]\n{}",
        entry("set", &database, keys)
    );
    let drop_in = DropIn::start(brand, database, &lines);
    let mut clients = [(); 2].map(|()| client(&drop_in, "postgres", "set"));
    for client in &mut clients {
        assert_eq!(client.query("begin").status, b'T');
        assert_eq!(client.value("show work_mem"), "7MB");
    }
    drop_in.database.wait_backends(2, "true");
});

drop_in!(minimum_of_a_forced_user_needs_no_clients, |brand| {
    let database = Postgres::shared().database();
    let keys = "user=postgres min_pool_size=2";
    let lines = format!("[databases]\n{}", entry("warm", &database, keys));
    let drop_in = DropIn::start(brand, database, &lines);
    // It needs one until 1.20.
    let is_old = brand.is_before((1, 20));
    let _client = is_old.then(|| client(&drop_in, "postgres", "warm"));
    drop_in.database.wait_backends(2, "state = 'idle'");
});

drop_in!(limit_of_the_entry_goes_before_that_of_all, |brand| {
    let database = Postgres::shared().database();
    let lines = format!(
        "pool_mode = transaction\nmax_db_connections = 1\n[databases]\n{}",
        entry("own", &database, "max_db_connections=2")
    );
    let drop_in = DropIn::start(brand, database, &lines);
    let mut holders = [(); 2].map(|()| client(&drop_in, "postgres", "own"));
    for holder in &mut holders {
        assert_eq!(holder.query("begin").status, b'T');
    }
    let mut late = client(&drop_in, "postgres", "own");
    late.send(&query("select 'served'"));
    wait_until("it waits", || drop_in.pools("own", "cl_waiting") == 1);
    assert_eq!(drop_in.database.backends("true"), 2);
    assert_eq!(holders[0].query("rollback").status, b'I');
    assert_eq!(late.reply().value(), "served");
});

drop_in!(server_that_is_full_tells_so_by_its_own_words, |brand| {
    let full = FakeServer::start(|mut server| {
        if server.read_startup() {
            let fields = [
                (b'S', "FATAL"),
                (b'C', "53300"),
                (b'M', "sorry, too many clients already"),
            ];
            server.send(&error(&fields));
        }
    });
    let address = full.address;
    let lines = format!(
        "[databases]\nfull = host={} port={}",
        address.ip(),
        address.port()
    );
    let drop_in = start(brand, &lines);
    let (_, reply) = log_in(&drop_in, "postgres", "full");
    reply.assert_fatal("sorry, too many clients already");
    // The server's own.
    if !brand.is_before((1, 20)) {
        assert_eq!(reply.code(), "53300");
    }
});

drop_in!(
    session_ends_with_the_transaction_when_servers_are_replaced_fast,
    |brand| {
        for (setting, ends) in [
            ("server_fast_close = 1", true),
            ("server_fast_close = 0", false),
        ] {
            let drop_in = start(brand, &format!("pool_mode = session\n{setting}"));
            let mut client = drop_in.client();
            let pid = client.value("begin; select pg_backend_pid()");
            assert_eq!(drop_in.console("RECONNECT").complete, ["RECONNECT"]);
            assert_eq!(client.value(PID), pid, "not in a transaction");
            client.send(&query("commit"));
            if ends {
                let mut reply = client.reply();
                if !reply.closed {
                    reply = client.reply();
                }
                assert_eq!(reply.code(), "08P01");
                reply.assert_fatal("database configuration changed");
            } else {
                assert_eq!(client.reply().status, b'I');
                assert_eq!(client.value(PID), pid);
            }
        }
    }
);

drop_in!(notifications_reach_the_session_that_listens, |brand| {
    let drop_in = start(brand, "pool_mode = session");
    let mut client = drop_in.client();
    assert_eq!(client.query("listen news").complete, ["LISTEN"]);
    drop_in.database.sql("notify news, 'extra'");
    let message = client.read();
    assert_eq!((message.tag, &*message.strings(4)[1]), (b'A', "extra"));
});

drop_in!(
    query_of_a_client_that_was_welcomed_hears_that_servers_fail,
    |brand| {
        let postgres = Postgres::own();
        let lines = "pool_mode = transaction\nserver_login_retry = 600";
        let drop_in = DropIn::start(brand, postgres.database(), lines);
        let (mut first, mut second) = (drop_in.client(), drop_in.client());
        first.value("select 1");
        postgres.kill();
        // Whoever asks first may still have to wait for the attempt.
        first.send(&query("select 1"));
        wait_until("an attempt has failed", || {
            drop_in.log().contains("connect failed")
        });
        let reply = second.query("select 1");
        assert_eq!(reply.code(), "08P01");
        let text = &reply.fatal().text;
        assert!(
            text.starts_with("server login has been failing, "),
            "{text}"
        );
        assert!(text.ends_with(" (server_login_retry)"), "{text}");
    }
);

/// Whether another client is served beside this one, whose only server the pool has; in its time, if that is `expected`.
fn is_shared(drop_in: &DropIn, client: &mut Client, expected: bool) -> bool {
    let seconds = if expected { 20 } else { 1 };
    let set = drop_in.console(&format!("SET query_wait_timeout = {seconds}"));
    assert!(set.error.is_none(), "{set:?}");
    assert_eq!(client.value("select 1"), "1");
    let mut other = Client::connect(drop_in.address);
    let params = [("user", "postgres"), ("database", &*drop_in.database.name)];
    assert!(other.start(PROTOCOL_3_0, &params).error.is_none());
    let reply = other.query("select 1");
    match &reply.error {
        None => true,
        Some(error) if error.text == "query_wait_timeout" => false,
        Some(_) => panic!("{reply:?}"),
    }
}

drop_in!(mode_of_a_reload_holds_for_everybody, |brand| {
    let more = "default_pool_size = 1\npool_mode = ";
    for (before, after) in [("session", "transaction"), ("transaction", "session")] {
        let drop_in = start(brand, &format!("{more}{before}"));
        let was_shared = before == "transaction";
        let mut old = drop_in.client();
        let is_old_shared = is_shared(&drop_in, &mut old, was_shared);
        assert_eq!(is_old_shared, was_shared, "{before}");
        let [old_line, new_line] = [before, after].map(|mode| format!("pool_mode = {mode}"));
        let reply = drop_in.reload_with(&old_line, &new_line);
        assert_eq!(reply.complete, ["RELOAD"]);
        let is_old_shared = is_shared(&drop_in, &mut old, !was_shared);
        assert_eq!(is_old_shared, !was_shared, "{after}, old");
        drop(old);
        let is_new_shared = is_shared(&drop_in, &mut drop_in.client(), !was_shared);
        assert_eq!(is_new_shared, !was_shared, "{after}, new");
    }
});
