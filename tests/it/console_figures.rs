//! Single figures of the console's tables that nothing else rests on. Each claim holds for PgBouncer, too.

use crate::console_values::{Row, picked, row};
use crate::support::drop_in::*;
use crate::support::*;

/// A number of a row.
#[track_caller]
fn number(row: &Row, column: &str) -> u64 {
    row[column].parse().unwrap()
}

/// How many so many a list of SHOW LISTS has.
#[track_caller]
fn listed(drop_in: &DropIn, list: &str) -> u64 {
    let lists = drop_in.console("SHOW LISTS");
    number(&row(&lists, &[("list", list)]), "items")
}

fn rows(drop_in: &DropIn, table: &str) -> u64 {
    drop_in.console(&format!("SHOW {table}")).rows.len() as u64
}

// ---- lists -------------------------------------------------------------------------------------------------------

drop_in!(peers_are_listed, since(1, 21), |brand| {
    let peers =
        "peer_id = 1\n[peers]\n1 = host=/tmp/one\n2 = host=127.0.0.1 port=1\n3 = host=127.0.0.1";
    let drop_in = DropIn::start(brand, Postgres::shared().database(), peers);
    assert_eq!((listed(&drop_in, "peers"), rows(&drop_in, "PEERS")), (3, 3));
    assert_eq!(listed(&drop_in, "peer_pools"), rows(&drop_in, "PEER_POOLS"));
});

drop_in!(looked_up_names_are_listed, |brand| {
    let database = Postgres::shared().database();
    let (name, port) = (&database.name, database.postgres.address().port());
    let line = |entry| format!("{entry} = host=localhost port={port} dbname={name}\n");
    let lines = format!("[databases]\n{}{}", line("one"), line("two"));
    let drop_in = DropIn::start(brand, database, &lines);
    // Later ones stay at an address of version 6 that nobody listens at.
    let _clients = ["one", "two"].map(|entry| {
        let mut client = Client::connect(drop_in.address);
        let params = [("user", "postgres"), ("database", entry)];
        client.send(&wire::startup(wire::PROTOCOL_3_0, &params));
        wait_until("it is looked up", || listed(&drop_in, "dns_names") > 0);
        client
    });
    assert_eq!(listed(&drop_in, "dns_names"), 1);
    let host = row(&drop_in.console("SHOW DNS_HOSTS"), &[]);
    assert_eq!(picked(&host, "hostname"), "hostname=localhost");
    let addresses = &host["addrs"];
    let mut addresses = addresses.split(',');
    assert!(
        addresses.all(|one| ["127.0.0.1:0", "[::1]:0"].contains(&one)),
        "{host:?}"
    );
});

// ---- sizes -------------------------------------------------------------------------------------------------------

drop_in!(smallest_size_of_a_pool_is_shown, since(1, 18), |brand| {
    let database = Postgres::shared().database();
    let entries = entry("plain", &database, "") + &entry("own", &database, "min_pool_size=2");
    let lines = format!("min_pool_size = 1\n[databases]\n{entries}");
    let drop_in = DropIn::start(brand, database, &lines);
    let shown = drop_in.console("SHOW DATABASES");
    for (name, size) in [("plain", "1"), ("own", "2")] {
        let row = row(&shown, &[("name", name)]);
        assert_eq!(row["min_pool_size"], size, "{name}");
    }
});

drop_in!(reserve_of_a_user_is_shown, since(1, 24), |brand| {
    let users = [("postgres", ""), ("ann", ""), ("bob", "")];
    let lines = "reserve_pool_size = 1\n[users]\nbob = reserve_pool_size=4";
    let drop_in = DropIn::start_knowing(brand, Postgres::shared().database(), lines, &users);
    let shown = drop_in.console("SHOW USERS");
    for (name, size) in [("ann", ""), ("bob", "        4")] {
        let row = row(&shown, &[("name", name)]);
        assert_eq!(row["reserve_pool_size"], size, "{name}");
    }
});

// ---- connections -------------------------------------------------------------------------------------------------

drop_in!(both_ends_of_connections_are_shown, |brand| {
    let database = Postgres::shared().database();
    let drop_in = DropIn::start(brand, database, "pool_mode = transaction");
    let mut client = drop_in.client();
    let own = client.value("begin; select inet_client_port()");
    let here = [("database", &*drop_in.database.name)];
    let ends = |table: &str| {
        let row = row(&drop_in.console(&format!("SHOW {table}")), &here);
        picked(&row, "addr port local_addr local_port")
    };
    let (near, far) = (client.local_addr().port(), drop_in.address.port());
    let expected = format!("addr=127.0.0.1 port={near} local_addr=127.0.0.1 local_port={far}");
    assert_eq!(ends("CLIENTS"), expected);
    let far = drop_in.database.postgres.address().port();
    let expected = format!("addr=127.0.0.1 port={far} local_addr=127.0.0.1 local_port={own}");
    assert_eq!(ends("SERVERS"), expected);
});

drop_in!(
    clients_and_servers_are_counted_together,
    since(1, 24),
    |brand| {
        let database = Postgres::shared().database();
        let drop_in = DropIn::start(brand, database, "pool_mode = session");
        let mut early = drop_in.client();
        early.value("select 1");
        let mut late = drop_in.client();
        late.value("select 1");
        let id = |table: &str, column: &str, value: &str| {
            let row = row(
                &drop_in.console(&format!("SHOW {table}")),
                &[(column, value)],
            );
            (number(&row, "id"), row["link"].clone())
        };
        let port = |client: &Client| client.local_addr().port().to_string();
        let ids = [&early, &late].map(|client| {
            let (id_of_client, link) = id("CLIENTS", "port", &port(client));
            [id_of_client, id("SERVERS", "ptr", &link).0]
        });
        assert!(ids.concat().is_sorted_by(|one, next| one < next), "{ids:?}");
    }
);

drop_in!(
    connections_that_could_be_taken_over_are_shown,
    until(1, 26),
    |brand| {
        let drop_in = DropIn::start(
            brand,
            Postgres::shared().database(),
            "pool_mode = transaction",
        );
        let mut client = drop_in.client();
        assert_eq!(client.query("begin").status, b'T');
        let name = &*drop_in.database.name;
        for (task, port) in [
            ("client", client.local_addr().port()),
            ("server", drop_in.database.postgres.address().port()),
        ] {
            let row = row(
                &drop_in.console("SHOW FDS"),
                &[("task", task), ("database", name)],
            );
            let expected = format!("user=postgres database={name} addr=127.0.0.1 port={port}");
            assert_eq!(picked(&row, "user database addr port"), expected);
        }
    }
);

// ---- memory ------------------------------------------------------------------------------------------------------

drop_in!(memory_is_what_is_used_and_free, |brand| {
    let drop_in = DropIn::start(brand, Postgres::shared().database(), "");
    let buffers = row(&drop_in.console("SHOW MEM"), &[("name", "iobuf_cache")]);
    let [size, used, free, all] =
        ["size", "used", "free", "memtotal"].map(|column| number(&buffers, column));
    assert_eq!(size * (used + free), all, "{buffers:?}");
    assert!(all > 0);
});

// ---- counters ----------------------------------------------------------------------------------------------------

drop_in!(console_counts_itself, |brand| {
    let drop_in = DropIn::start(brand, Postgres::shared().database(), "");
    // PgBouncer counts one query for each session.
    let counts = || {
        let stats = drop_in.console("SHOW STATS");
        let row = row(&stats, &[("database", "pgbouncer")]);
        let logins = row.get("total_client_login_count");
        let logins = logins.map(|count| count.parse::<u64>().unwrap());
        let [xacts, queries] = ["total_xact_count", "total_query_count"].map(|c| number(&row, c));
        (xacts, queries, logins)
    };
    let (xacts, queries, logins) = counts();
    for _ in 0..3 {
        drop_in.console("SHOW VERSION");
    }
    let added = logins.map(|logins| logins + 4);
    assert_eq!(counts(), (xacts + 4, queries + 4, added));
});

drop_in!(totals_are_the_sum_over_all_databases, |brand| {
    let database = Postgres::shared().database();
    let other = entry("other", &database, "");
    let lines = format!("pool_mode = transaction\n[databases]\n{other}");
    let drop_in = DropIn::start(brand, database, &lines);
    for name in [&*drop_in.database.name, "other"] {
        let mut client = Client::login(drop_in.address, name);
        client.value("begin; select pg_sleep(0.01)");
        client.query("commit");
    }
    let stats = drop_in.console("SHOW STATS").table();
    let totals = drop_in.console("SHOW TOTALS");
    for (of_all, of_each, since) in [
        ("server_assignment_count", "server_assignment_count", 0),
        ("xact_count", "xact_count", 1),
        ("query_count", "query_count", 1),
        ("client_bytes", "received", 0),
        ("server_bytes", "sent", 0),
        ("xact_time", "xact_time", 0),
        ("query_time", "query_time", 0),
        ("wait_time", "wait_time", 0),
        ("client_login_count", "client_login_count", 1),
    ] {
        let of_each = format!("total_{of_each}");
        if !stats[0].contains_key(&of_each) {
            continue;
        }
        let sum: u64 = stats.iter().map(|row| number(row, &of_each)).sum();
        let total = row(&totals, &[("name", &format!("total_{of_all}"))]);
        assert_eq!(number(&total, "value"), sum + since, "{of_all}");
    }
});

drop_in!(averages_are_per_second_or_per_item, |brand| {
    // a pool of 1; queries of one size, each of which waits for another
    let lines = "pool_mode = transaction\ndefault_pool_size = 1\nstats_period = 1";
    let drop_in = DropIn::start(brand, Postgres::shared().database(), lines);
    let name = &*drop_in.database.name;
    let shown = || row(&drop_in.console("SHOW STATS"), &[("database", name)]);
    let mut clients = [drop_in.client(), drop_in.client()];
    let sleep = wire::query("select pg_sleep(0.01)");
    let mut work = || {
        clients.iter_mut().for_each(|client| client.send(&sleep));
        for client in &mut clients {
            client.reply().value();
        }
    };
    work();
    let before = shown();
    work();
    let after = shown();
    let size = |column| (number(&after, column) - number(&before, column)) / 2;
    let (received, sent) = (size("total_received"), size("total_sent"));
    assert_eq!(received, sleep.len() as u64);
    let mut averages = Row::new();
    wait_until("there are averages", || {
        (0..10).for_each(|_| work());
        averages = shown();
        number(&averages, "avg_query_count") >= 20
    });
    let queries = number(&averages, "avg_query_count");
    for (column, size) in [("avg_recv", received), ("avg_sent", sent)] {
        let bytes = number(&averages, column);
        let expected = queries * size..(queries + 1) * size;
        assert!(
            expected.contains(&bytes),
            "{column}: {bytes} is not in {expected:?}"
        );
    }
    // The time that clients waited was divided by the clock until 1.23. Every second query waits for 10 ms.
    if !brand.is_before((1, 23)) {
        let waited = number(&averages, "avg_wait_time");
        assert!((4_000..200_000).contains(&waited), "{waited}");
    }
});
