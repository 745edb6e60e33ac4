//! What the console's tables say of a pooler whose clients and servers are known. Each claim holds for PgBouncer, too.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::support::drop_in::*;
use crate::support::peer::{Conversation, Reply};
use crate::support::wire::*;
use crate::support::*;

pub(crate) type Row = BTreeMap<String, String>;

/// The only row with these values.
#[track_caller]
pub(crate) fn row(reply: &Reply, values: &[(&str, &str)]) -> Row {
    let is = |row: &Row, column: &str, value: &str| row.get(column).is_some_and(|is| is == value);
    let mut rows = reply.table();
    rows.retain(|row| values.iter().all(|(column, value)| is(row, column, value)));
    assert_eq!(rows.len(), 1, "{values:?} in {reply:?}");
    rows.remove(0)
}

/// `name=value` for each of these columns; NULL is `-`.
pub(crate) fn picked(row: &Row, columns: &str) -> String {
    let value = |column| row.get(column).map_or("-", String::as_str);
    let pairs = columns
        .split(' ')
        .map(|column| format!("{column}={}", value(column)));
    pairs.collect::<Vec<_>>().join(" ")
}

/// A counter of the first database.
#[track_caller]
fn counted(subject: &Subject, column: &str) -> u64 {
    let stats = subject.console("SHOW STATS");
    let row = row(&stats, &[("database", subject.entry(0))]);
    row[column].parse().unwrap()
}

/// How much each of these counters gains by `work`.
fn gained<const N: usize>(subject: &Subject, columns: [&str; N], work: impl FnOnce()) -> [u64; N] {
    let before = columns.map(|column| counted(subject, column));
    work();
    std::array::from_fn(|at| counted(subject, columns[at]) - before[at])
}

// ---- the login ---------------------------------------------------------------------------------------------------

compared!(console_greets_as_a_server_does, since(1, 18), |subject| {
    let admin = subject.admin();
    let version = &admin.params["server_version"];
    let suffix = if subject.is_theirs {
        "/bouncer"
    } else {
        "/ringbouncer"
    };
    assert!(version.ends_with(suffix), "{version}");
    for (name, value) in [
        ("client_encoding", "UTF8"),
        ("server_encoding", "UTF8"),
        ("DateStyle", "ISO"),
        ("TimeZone", "GMT"),
        ("standard_conforming_strings", "on"),
        ("is_superuser", "on"),
    ] {
        assert_eq!(admin.params[name], value, "{name}");
    }
    assert_eq!(admin.key.1.len(), 4);
});

// ---- what is configured ------------------------------------------------------------------------------------------

drop_in!(databases_are_shown_as_the_file_has_them, |brand| {
    let database = Postgres::shared().database();
    let keys = "user=postgres pool_size=3 reserve_pool=2 pool_mode=statement max_db_connections=7";
    let entries = entry("plain", &database, "") + &entry("full", &database, keys);
    let lines = format!("default_pool_size = 5\n[databases]\n{entries}");
    let drop_in = DropIn::start(brand, database, &lines);
    let mut client = Client::login(drop_in.address, "full");
    client.value("select 1");
    let shown = drop_in.console("SHOW DATABASES");
    let port = drop_in.database.postgres.address().port();
    let place = format!(
        "host=127.0.0.1 port={port} database={}",
        drop_in.database.name
    );
    let own_port = drop_in.address.port();
    for (name, place, limits) in [
        (
            "plain",
            place.clone(),
            "force_user=- pool_size=5 pool_mode=- max_connections=0 current_connections=0",
        ),
        (
            "full",
            place,
            "force_user=postgres pool_size=3 pool_mode=statement max_connections=7 current_connections=1",
        ),
        (
            "pgbouncer",
            format!("host=- port={own_port} database=pgbouncer"),
            "force_user=pgbouncer pool_size=2 pool_mode=statement max_connections=0 current_connections=0",
        ),
    ] {
        let row = row(&shown, &[("name", name)]);
        let columns = "host port database force_user pool_size pool_mode max_connections \
                       current_connections paused disabled";
        let expected = format!("{place} {limits} paused=0 disabled=0");
        assert_eq!(picked(&row, columns), expected, "{name}");
        let reserve = row.get("reserve_pool_size").or(row.get("reserve_pool"));
        let expected = if name == "full" { "2" } else { "0" };
        assert_eq!(reserve.unwrap(), expected, "{name}");
    }
});

drop_in!(users_of_the_files_are_listed_and_no_others, |brand| {
    let has_sizes = !brand.is_before((1, 23));
    let size = if has_sizes { "pool_size=7" } else { "" };
    let lines = format!("[users]\nann = pool_mode=session {size}");
    let users = [("postgres", ""), ("ann", ""), ("bob", "")];
    let drop_in = DropIn::start_knowing(brand, Postgres::shared().database(), &lines, &users);
    drop_in
        .enter("nobody_at_all", &drop_in.database.name)
        .fatal();
    let shown = drop_in.console("SHOW USERS");
    for (name, mode, size) in [
        ("ann", "session", "        7"),
        ("bob", "-", ""),
        ("postgres", "-", ""),
    ] {
        let row = row(&shown, &[("name", name)]);
        assert_eq!(picked(&row, "pool_mode"), format!("pool_mode={mode}"));
        // 1.24 repeats the size of the row before.
        if has_sizes && (name == "ann" || !brand.is_before((1, 26))) {
            assert_eq!(row["pool_size"], size, "{name}");
        }
    }
    let table = shown.table();
    assert!(
        table.iter().all(|row| row["name"] != "nobody_at_all"),
        "{table:?}"
    );
});

compared!(settings_are_in_order, since(1, 18), |subject| {
    // 1.24 has some out of order.
    if subject.is_from((1, 19)) && subject.is_before((1, 26)) {
        return;
    }
    let table = subject.console("SHOW CONFIG").table();
    let keys: Vec<_> = table.iter().map(|row| row["key"].clone()).collect();
    assert!(keys.len() > 50, "{keys:?}");
    assert!(keys.is_sorted(), "{keys:?}");
});

// ---- pools -------------------------------------------------------------------------------------------------------

compared!(console_is_a_pool_of_its_own, since(1, 18), |subject| {
    let row = row(&subject.console("SHOW POOLS"), &[("database", "pgbouncer")]);
    assert_eq!(
        picked(
            &row,
            "user cl_active cl_waiting sv_active sv_idle maxwait maxwait_us pool_mode"
        ),
        "user=pgbouncer cl_active=1 cl_waiting=0 sv_active=0 sv_idle=0 maxwait=0 maxwait_us=0 pool_mode=statement"
    );
});

compared!(
    longest_wait_is_shown_while_somebody_waits,
    since(1, 18),
    with & [("default_pool_size", "1")],
    |subject| {
        let waited = || {
            let row = row(
                &subject.console("SHOW POOLS"),
                &[("database", subject.entry(0))],
            );
            ["maxwait", "maxwait_us"].map(|column| row[column].parse::<u64>().unwrap())
        };
        let (mut holder, mut late) = (subject.client(), subject.client());
        assert_eq!(holder.query("begin").status, b'T');
        assert_eq!(waited(), [0, 0]);
        late.send(&query("select 1"));
        wait_until("it has waited for a second", || {
            let [seconds, rest] = waited();
            assert!(rest < 1_000_000, "{rest}");
            seconds >= 1
        });
        assert_eq!(holder.query("commit").status, b'I');
        assert_eq!(late.reply().value(), "1");
        assert_eq!(waited(), [0, 0]);
    }
);

/// Lines for an entry `fake` that leads to a scripted server.
fn before(server: &FakeServer) -> String {
    let port = server.address.port();
    format!("[databases]\nfake = host=127.0.0.1 port={port} pool_size=1")
}

/// The states of the servers of `fake`.
fn states(drop_in: &DropIn) -> Vec<String> {
    let table = drop_in.console("SHOW SERVERS").table();
    let rows = table.into_iter().filter(|row| row["database"] == "fake");
    rows.map(|mut row| row.remove("state").unwrap()).collect()
}

#[track_caller]
fn wait_pool(drop_in: &DropIn, column: &str) {
    wait_until(column, || drop_in.pools("fake", column) == 1);
}

drop_in!(servers_are_shown_while_they_log_in_and_are_reset, |brand| {
    let [may_greet, may_reset] = [(); 2].map(|()| Arc::new(AtomicBool::new(false)));
    let (greets, resets) = (may_greet.clone(), may_reset.clone());
    let server = FakeServer::start(move |mut server| {
        if !server.read_startup() {
            return;
        }
        server.stall_until(&greets);
        server.send(&Conversation::greeting());
        while let Some(request) = server.next_request() {
            if request.body.starts_with(b"DISCARD ALL") {
                server.stall_until(&resets);
                server.send(&[complete("DISCARD ALL"), ready(b'I')].concat());
            } else {
                server.send(&Conversation::one_row("served"));
            }
        }
    });
    let lines = format!("pool_mode = session\n{}", before(&server));
    let drop_in = DropIn::start(brand, Postgres::shared().database(), &lines);
    let mut client = Client::connect(drop_in.address);
    client.send(&startup(
        PROTOCOL_3_0,
        &[("user", "postgres"), ("database", "fake")],
    ));
    wait_pool(&drop_in, "sv_login");
    match brand {
        Brand::PgBouncer => assert_eq!(states(&drop_in), ["new"]),
        Brand::Ringbouncer(_) => assert!(states(&drop_in).is_empty()),
    }
    may_greet.store(true, Ordering::Release);
    assert_eq!(client.reply().status, b'I');
    assert_eq!(client.value("select 1"), "served");
    assert_eq!(states(&drop_in), ["active"]);
    drop(client);
    wait_pool(&drop_in, "sv_tested");
    assert_eq!(states(&drop_in), ["tested"]);
    may_reset.store(true, Ordering::Release);
    wait_pool(&drop_in, "sv_idle");
    assert_eq!(states(&drop_in), ["idle"]);
});

drop_in!(server_waits_for_the_request_that_cancels_it, |brand| {
    let flags = [(); 4].map(|()| Arc::new(AtomicBool::new(false)));
    let [asked, cancelled, answers, over] = flags.clone();
    let server = FakeServer::start(move |mut server| {
        if !server.read_startup() {
            cancelled.store(true, Ordering::Release);
            server.stall_until(&over);
            return;
        }
        server.send(&Conversation::greeting());
        while server.next_request().is_some() {
            asked.store(true, Ordering::Release);
            server.stall_until(&answers);
            server.send(&Conversation::one_row("served"));
        }
    });
    let [asked, cancelled, answers, over] = flags;
    let lines = format!("pool_mode = transaction\n{}", before(&server));
    let drop_in = DropIn::start(brand, Postgres::shared().database(), &lines);
    let mut client = Client::login(drop_in.address, "fake");
    client.send(&query("select 1"));
    wait_until("it is asked", || asked.load(Ordering::Acquire));
    let mut cancelling = Client::connect(drop_in.address);
    cancelling.send(&cancel_request(client.key.0, &client.key.1));
    wait_until("it is to stop", || cancelled.load(Ordering::Acquire));
    let row_of_pool = || row(&drop_in.console("SHOW POOLS"), &[("database", "fake")]);
    let columns = "cl_active cl_active_cancel_req cl_waiting_cancel_req sv_active_cancel";
    let expected = "cl_active=1 cl_active_cancel_req=1 cl_waiting_cancel_req=0 sv_active_cancel=1";
    assert_eq!(picked(&row_of_pool(), columns), expected);
    answers.store(true, Ordering::Release);
    assert_eq!(client.reply().value(), "served");
    wait_pool(&drop_in, "sv_being_canceled");
    assert!(states(&drop_in).contains(&"being_canceled".to_owned()));
    over.store(true, Ordering::Release);
    wait_pool(&drop_in, "sv_idle");
    let columns = format!("{columns} sv_being_canceled");
    let expected = expected
        .replace("cel_req=1", "cel_req=0")
        .replace("active_cancel=1", "active_cancel=0");
    assert_eq!(
        picked(&row_of_pool(), &columns),
        format!("{expected} sv_being_canceled=0")
    );
});

// ---- clients and servers -----------------------------------------------------------------------------------------

/// Whether this is `2026-11-23 07:05:33 UTC`.
fn is_moment(text: &str) -> bool {
    let digit = |c: char| if c.is_ascii_digit() { '0' } else { c };
    let shape: String = text.chars().map(digit).collect();
    shape == "0000-00-00 00:00:00 UTC"
}

compared!(
    client_and_server_are_shown_as_a_pair,
    since(1, 18),
    with & [("default_pool_size", "1")],
    |subject| {
        let (mut holder, mut late) = (subject.client(), subject.client());
        assert_eq!(holder.query("begin").status, b'T');
        let shown = |client: &Client| {
            let clients = subject.console("SHOW CLIENTS");
            clients.row_of(client).expect("it is listed")
        };
        let server = row(
            &subject.console("SHOW SERVERS"),
            &[("database", subject.entry(0)), ("state", "active")],
        );
        let client = shown(&holder);
        assert_eq!(
            (&client["link"], &client["ptr"]),
            (&server["ptr"], &server["link"])
        );
        assert_eq!(
            picked(&client, "state wait wait_us"),
            "state=active wait=0 wait_us=0"
        );
        assert_eq!(shown(&late)["link"], "");
        late.send(&query("select 1"));
        wait_until("it has waited", || {
            let row = shown(&late);
            row["state"] == "waiting" && row["wait_us"] != "0"
        });
        for row in [client, server] {
            for column in ["connect_time", "request_time"] {
                assert!(is_moment(&row[column]), "{column}: {}", row[column]);
            }
        }
    }
);

compared!(
    sockets_with_a_request_that_waits_are_active,
    since(1, 18),
    with & [("default_pool_size", "1")],
    |subject| {
        let (mut holder, mut late) = (subject.client(), subject.client());
        assert_eq!(holder.query("begin").status, b'T');
        let rows = || {
            let mut table = subject.console("SHOW ACTIVE_SOCKETS").table();
            table.retain(|row| row["database"] == subject.entry(0));
            table
        };
        assert!(rows().is_empty(), "{:?}", rows());
        late.send(&query("select 1"));
        wait_until("it is active", || !rows().is_empty());
        let port = late.local_addr().port().to_string();
        let active: Vec<_> = rows();
        assert_eq!(active.len(), 1, "{active:?}");
        assert_eq!(
            (&*active[0]["port"], &*active[0]["state"]),
            (&*port, "cl_waiting")
        );
        assert_eq!(holder.query("commit").status, b'I');
        assert_eq!(late.reply().value(), "1");
        assert!(rows().is_empty(), "{:?}", rows());
    }
);

compared!(
    lists_count_what_the_other_tables_show,
    since(1, 18),
    with & [("default_pool_size", "2")],
    |subject| {
        let mut clients: Vec<Client> = (0..5).map(|_| subject.client()).collect();
        assert_eq!(clients[0].query("begin").status, b'T');
        // One session, as one that has just gone may still be counted.
        let mut admin = subject.admin();
        for (list, table) in [
            ("databases", "DATABASES"),
            ("users", "USERS"),
            ("pools", "POOLS"),
        ] {
            let rows = admin.query(&format!("SHOW {table}")).rows.len();
            let count = row(&admin.query("SHOW LISTS"), &[("list", list)]);
            assert_eq!(count["items"], rows.to_string(), "{list}");
        }
        let mut count = |list: &str| {
            let row = row(&admin.query("SHOW LISTS"), &[("list", list)]);
            row["items"].parse::<u32>().unwrap()
        };
        assert_eq!(count("used_clients"), 6);
        assert_eq!(count("login_clients"), 0);
        assert_eq!(count("used_servers"), 1);
        let silent = Client::connect(subject.address());
        wait_until("it is seen", || count("login_clients") == 1);
        drop((clients, silent));
        wait_until("nobody is left", || {
            (count("used_clients"), count("login_clients")) == (1, 0)
        });
    }
);

// ---- counters ----------------------------------------------------------------------------------------------------

compared!(tables_of_counters_agree, since(1, 18), |subject| {
    let mut client = subject.client();
    client.value("select pg_sleep(0.01)");
    client.query("begin");
    client.query("commit");
    let [stats, totals, averages] = ["STATS", "STATS_TOTALS", "STATS_AVERAGES"].map(|table| {
        let reply = subject.console(&format!("SHOW {table}"));
        row(&reply, &[("database", subject.entry(0))])
    });
    for (in_stats, in_totals) in [
        ("total_xact_count", "xact_count"),
        ("total_query_count", "query_count"),
        ("total_received", "bytes_received"),
        ("total_sent", "bytes_sent"),
        ("total_xact_time", "xact_time"),
        ("total_query_time", "query_time"),
        ("total_wait_time", "wait_time"),
    ] {
        assert_ne!(stats[in_stats], "0", "{in_stats}");
        assert_eq!(stats[in_stats], totals[in_totals], "{in_stats}");
    }
    // The time that clients waited was divided by the clock until 1.23.
    let times = ["xact_time", "query_time", "wait_time"].into_iter();
    for name in times.take(if subject.is_before((1, 23)) { 2 } else { 3 }) {
        assert_eq!(stats[&format!("avg_{name}")], averages[name], "{name}");
    }
    assert_ne!(averages["query_time"], "0");
    // The console adds neither bytes nor times.
    let all = subject.console("SHOW TOTALS");
    let of_all = |name: &str| row(&all, &[("name", name)])["value"].clone();
    for (in_stats, name) in [
        ("total_received", "total_client_bytes"),
        ("total_sent", "total_server_bytes"),
        ("total_xact_time", "total_xact_time"),
        ("total_query_time", "total_query_time"),
        ("total_wait_time", "total_wait_time"),
    ] {
        assert_eq!(stats[in_stats], of_all(name), "{name}");
    }
    if !subject.is_before((1, 24)) {
        for name in ["client_parse_count", "server_parse_count", "bind_count"] {
            assert_eq!(of_all(&format!("total_ps_{name}")), "0", "{name}");
            assert_eq!(of_all(&format!("avg_ps_{name}")), "0", "{name}");
        }
    }
});

compared!(times_are_in_microseconds, since(1, 18), |subject| {
    let mut client = subject.client();
    client.value("select 1");
    let begun = Instant::now();
    let [xact, query] = gained(subject, ["total_xact_time", "total_query_time"], || {
        client.query("begin");
        client.value("select pg_sleep(0.1)");
        client.query("commit");
    });
    let taken = begun.elapsed().as_micros() as u64;
    assert!(query >= 100_000 && xact >= query, "{xact} {query}");
    // A clock that is read once for several events may begin too early.
    assert!(xact < taken + 1_000_000, "{xact} of {taken}");
});

compared!(
    averages_are_those_of_the_last_periods,
    since(1, 18),
    with & [("stats_period", "1")],
    |subject| {
        let mut client = subject.client();
        wait_until("queries are counted per second", || {
            client.value("select 1");
            counted(subject, "avg_query_count") >= 5
        });
        wait_until("they are forgotten", || {
            counted(subject, "avg_query_count") == 0
        });
        assert_ne!(counted(subject, "total_query_count"), 0);
    }
);

compared!(pipeline_is_one_query, since(1, 18), |subject| {
    let mut client = subject.client();
    client.value("select 1");
    let columns = ["total_xact_count", "total_query_count"];
    let counts = gained(subject, columns, || {
        let one = [parse("", "select 1"), run_prepared("", &[])].concat();
        let batch = [one.clone(), one.clone(), one, sync()].concat();
        assert_eq!(client.exchange(&batch).tags, "12DC12DC12DCZ");
    });
    assert_eq!(counts, [1, 1]);
});
