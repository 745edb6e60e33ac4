//! The metrics endpoint.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::support::certs::{Authority, Wish};
use crate::support::scrape::{Scrape, endpoint, exchange};
use crate::support::*;

/// How long the endpoint waits for a request, and the machine's own delays.
const REQUEST_SPAN: Duration = Duration::from_secs(2);
const SLACK: Duration = Duration::from_secs(5);

const GET: &[u8] = b"GET /metrics HTTP/1.1\r\nHost: pooler\r\n\r\n";

fn topology(shards: usize) -> Topology {
    Topology::new(shards).set("metrics_listen", "127.0.0.1:0")
}

fn assert_served(address: SocketAddr) {
    assert_eq!(exchange(address, GET).status, 200);
}

both_shards!(counts_go_up_by_exactly_what_was_run, |shards| {
    let stage = Stage::pooled(topology(shards));
    let of_entry = [("database", &*stage.entry)];
    let mut clients = [(); 3].map(|()| stage.client());
    clients[0].value("select 1");
    let before = Scrape::of(&stage);
    for client in &mut clients {
        for _ in 0..7 {
            client.value("select 'one transaction'");
        }
        for sql in ["begin", "select 'another'", "commit"] {
            client.query(sql);
        }
    }
    let after = Scrape::of(&stage);
    let more = |name: &str| after.value(name, &of_entry) - before.value(name, &of_entry);
    for prefix in ["pgbouncer_stats_", "pgbouncer_stats_totals_"] {
        let more = |name: &str| more(&format!("{prefix}{name}"));
        assert_eq!(more("sql_transactions_pooled_total"), 24.0);
        assert_eq!(more("queries_pooled_total"), 30.0);
        assert_eq!(more("server_assignments_total"), 24.0);
        assert!(more("received_bytes_total") >= 30.0 * 12.0);
        assert!(more("sent_bytes_total") >= 30.0 * 12.0);
        assert!(more("queries_duration_seconds_total") > 0.0);
        assert!(
            more("server_in_transaction_seconds_total") >= more("queries_duration_seconds_total")
        );
    }
    for (kind, count) in [("query", 30.0), ("transaction", 24.0), ("wait", 24.0)] {
        let wanted = [of_entry[0], ("kind", kind)];
        let more = |scrape: &Scrape| scrape.value("ringbouncer_latency_seconds_count", &wanted);
        assert_eq!(more(&after) - more(&before), count, "{kind}");
    }
    let shown = stage.console("SHOW STATS_TOTALS").table();
    let shown = shown.iter().find(|row| row["database"] == stage.entry);
    for (column, name) in [
        (
            "xact_count",
            "pgbouncer_stats_sql_transactions_pooled_total",
        ),
        ("bytes_received", "pgbouncer_stats_received_bytes_total"),
        ("bytes_sent", "pgbouncer_stats_sent_bytes_total"),
    ] {
        let column: f64 = shown.unwrap()[column].parse().unwrap();
        assert_eq!(after.value(name, &of_entry), column, "{name}");
    }
});

both_shards!(slow_query_counts_in_the_buckets_above_it, |shards| {
    let stage = Stage::pooled(topology(shards));
    stage.client().value("select pg_sleep(0.3)");
    let scrape = Scrape::of(&stage);
    let bucket = |le: &str| {
        let wanted = [("database", &*stage.entry), ("kind", "query"), ("le", le)];
        scrape.value("ringbouncer_latency_seconds_bucket", &wanted)
    };
    assert_eq!(
        ["0.00005", "0.2", "10", "+Inf"].map(bucket),
        [0.0, 0.0, 1.0, 1.0]
    );
    let wanted = [("database", &*stage.entry), ("kind", "query")];
    let sum = scrape.value("ringbouncer_latency_seconds_sum", &wanted);
    assert!((0.3..10.0).contains(&sum), "{sum}");
    let bounds = scrape.all("ringbouncer_latency_seconds_bucket", &wanted);
    assert_eq!(bounds.len(), 18);
});

both_shards!(who_waits_and_who_is_served_is_seen, |shards| {
    // Pool of one, which a client holds while another waits.
    let stage = Stage::pooled(topology(shards).pool_size(1));
    let mut holder = stage.client();
    holder.query("begin");
    let mut waiter = stage.client();
    waiter.send(&wire::query("select 'served'"));
    wait_until("somebody waits", || {
        stage.pools(&stage.entry, "cl_waiting") == 1
    });
    wait_until("the console's clients have gone", || {
        Scrape::of(&stage).value("pgbouncer_used_clients", &[]) == 2.0
    });
    let scrape = Scrape::of(&stage);
    let of_pool = [("database", &*stage.entry), ("user", "postgres")];
    let pool = |name: &str| scrape.value(&format!("pgbouncer_pools_{name}"), &of_pool);
    assert_eq!(pool("client_active_connections"), 1.0);
    assert_eq!(pool("client_waiting_connections"), 1.0);
    assert_eq!(pool("server_active_connections"), 1.0);
    assert_eq!(pool("server_idle_connections"), 0.0);
    let wait = pool("client_maxwait_seconds");
    assert!(wait > 0.0 && wait < 30.0, "{wait}");
    let of_entry = [("name", &*stage.entry)];
    let database = |name: &str| scrape.value(&format!("pgbouncer_databases_{name}"), &of_entry);
    assert_eq!(database("pool_size"), 1.0);
    assert_eq!(database("current_connections"), 1.0);
    assert_eq!((database("paused"), database("disabled")), (0.0, 0.0));
    assert_eq!(scrape.value("pgbouncer_used_servers", &[]), 1.0);
    assert_eq!(scrape.sum("ringbouncer_shard_clients", &[]), 2.0);
    assert_eq!(scrape.sum("ringbouncer_shard_servers", &[]), 1.0);
    holder.query("commit");
    assert_eq!(waiter.reply().value(), "served");
});

both_shards!(process_says_what_it_is_and_how_its_shards_fare, |shards| {
    let stage = Stage::pooled(topology(shards).set("max_user_connections", 77));
    stage.client().value("select 1");
    stage.console(&format!("DISABLE {}", stage.entry));
    let scrape = Scrape::of(&stage);
    let of_entry = [("name", &*stage.entry)];
    assert_eq!(scrape.value("pgbouncer_databases_disabled", &of_entry), 1.0);
    assert_eq!(scrape.value("pgbouncer_up", &[]), 1.0);
    let version = [("version", &*stage.console("SHOW VERSION").value())];
    assert_eq!(scrape.value("pgbouncer_version_info", &version), 1.0);
    for (name, value) in [("client", 2000.0), ("user", 77.0)] {
        let name = format!("pgbouncer_config_max_{name}_connections");
        assert_eq!(scrape.value(&name, &[]), value);
    }
    assert_eq!(
        scrape.sum("ringbouncer_shard_logins_total", &[]),
        scrape.sum("ringbouncer_shard_accepted_total", &[])
    );
    for name in [
        "handoffs_in_total",
        "handoffs_out_total",
        "moves_in_total",
        "moves_out_total",
        "login_failures_total",
        "mailbox_depth",
        "busy_seconds_total",
        "longest_turn_seconds",
    ] {
        let name = format!("ringbouncer_shard_{name}");
        let all = scrape.all(&name, &[]);
        let ids: BTreeSet<_> = all
            .iter()
            .map(|(labels, _)| labels["shard"].clone())
            .collect();
        assert_eq!(
            ids,
            (0..shards).map(|id| id.to_string()).collect(),
            "{name}"
        );
    }
    assert!(scrape.sum("ringbouncer_shard_busy_seconds_total", &[]) > 0.0);
});

both_shards!(certificates_end_when_show_tls_says, |shards| {
    let authority = Authority::new("authority of the \"pooler\"");
    let signed = authority.sign_as(&Wish {
        is_expired: true,
        common_name: "too old",
        ..Wish::default()
    });
    let topology = topology(shards)
        .set("client_tls_sslmode", "prefer")
        .set("client_tls_cert_file", signed.certificate_path())
        .set("client_tls_key_file", signed.key_path())
        .set("client_tls_ca_file", authority.root.certificate_path());
    let stage = Stage::pooled(topology);
    let shown = stage.console("SHOW TLS").table();
    let scrape = Scrape::of(&stage);
    let ends = scrape.all("ringbouncer_certificate_not_after_seconds", &[]);
    assert_eq!((shown.len(), ends.len()), (2, 2));
    for row in shown {
        let labels = ["setting", "file", "subject"].map(|label| (label, &*row[label]));
        let end = scrape.value("ringbouncer_certificate_not_after_seconds", &labels);
        let sql = format!(
            "select extract(epoch from timestamptz '{}')::bigint",
            row["not_after"]
        );
        let mut postgres = Client::login(stage.database.postgres.address(), "postgres");
        assert_eq!(end.to_string(), postgres.value(&sql));
        let left = scrape.value("ringbouncer_certificate_seconds_left", &labels);
        let shown_left: f64 = row["seconds_left"].parse().unwrap();
        assert!((0.0..30.0).contains(&(shown_left - left)), "{left}");
    }
});

both_shards!(odd_names_are_labels_as_they_are, |shards| {
    let (entry, user) = ("a \"quoted\\ \n} 1", "o\"\"hara\\{},=");
    let database = Postgres::shared().database();
    let keys = [("user", "postgres")];
    let topology = topology(shards).database(entry, &database, &keys);
    let stage = Stage::on(database, topology.user(user, "pool_size", 3), &[]);
    let mut client = Client::login_with(stage.address(), &[("user", user), ("database", entry)]);
    assert_eq!(client.value("select 'in'"), "in");
    // Servers are logged in as this user, which PostgreSQL does not know.
    let refused = [("user", user), ("database", &*stage.entry)];
    Client::connect(stage.address()).start(wire::PROTOCOL_3_0, &refused);
    let scrape = Scrape::of(&stage);
    let of_entry = [("database", entry)];
    assert_eq!(
        scrape.value("pgbouncer_stats_queries_pooled_total", &of_entry),
        1.0
    );
    let of_pool = [("database", entry), ("user", "postgres")];
    let active = scrape.value("pgbouncer_pools_client_active_connections", &of_pool);
    assert_eq!(active, 1.0);
    assert_eq!(
        scrape
            .all("pgbouncer_databases_pool_size", &[("name", entry)])
            .len(),
        1
    );
    let of_user = scrape.all(
        "pgbouncer_pools_server_login_connections",
        &[("user", user)],
    );
    assert_eq!(of_user.len(), 1);
});

both_shards!(requests_for_anything_else_are_refused, |shards| {
    let stage = Stage::pooled(topology(shards));
    let address = endpoint(&stage);
    let long = format!("GET /metrics HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(8192));
    let body = "POST /metrics HTTP/1.1\r\nContent-Length: 70000\r\n\r\n".to_owned();
    for (request, status) in [
        ("GET / HTTP/1.1\r\n\r\n", 404),
        ("GET /metrics/x HTTP/1.1\r\n\r\n", 404),
        ("HEAD /metrics HTTP/1.1\r\n\r\n", 405),
        ("DELETE /metrics HTTP/1.1\r\n\r\n", 405),
        (&*(body + &"x".repeat(70_000)), 405),
        (&*long, 431),
        ("\0\0\0\x08no HTTP\r\n\r\n", 400),
        ("GET /metrics?from=prometheus HTTP/1.0\r\n\r\n", 200),
    ] {
        let answer = exchange(address, request.as_bytes());
        assert_eq!(answer.status, status, "{request:.40}");
        assert!(answer.head.contains("\r\nAllow: GET\r\n"), "{answer:?}");
    }
    assert_served(address);
});

both_shards!(
    clients_that_say_nothing_delay_others_by_no_more_than_the_timeout,
    |shards| {
        let stage = Stage::pooled(topology(shards));
        let address = endpoint(&stage);
        let silent = TcpStream::connect(address).unwrap();
        let start = Instant::now();
        assert_served(address);
        assert!(
            start.elapsed() < REQUEST_SPAN + SLACK,
            "{:?}",
            start.elapsed()
        );
        // Nor does one that says a little now and then, or hangs up.
        let mut slow = TcpStream::connect(address).unwrap();
        let start = Instant::now();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for at in 0..GET.len() {
                    wait::pace_until(start + Duration::from_millis(200) * at as u32);
                    if slow.write_all(&GET[at..=at]).is_err() {
                        return;
                    }
                }
            });
            drop(TcpStream::connect(address).unwrap());
            assert_served(address);
            assert!(
                start.elapsed() < REQUEST_SPAN + SLACK,
                "{:?}",
                start.elapsed()
            );
        });
        // The pooler itself is not delayed, nor is its end.
        assert_eq!(stage.client().value("select 'served'"), "served");
        let _last = TcpStream::connect(address).unwrap();
        drop((stage, silent));
    }
);

/// The ports that a process listens on.
fn ports(pid: u32) -> BTreeSet<u16> {
    let links = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let links = links.filter_map(|link| fs::read_link(link.path()).ok());
    let own: BTreeSet<String> = links.map(|link| link.display().to_string()).collect();
    let table = ["tcp", "tcp6"].map(|name| fs::read_to_string(format!("/proc/{pid}/net/{name}")));
    let table: String = table.into_iter().flatten().collect();
    let lines = table.lines().map(|line| line.split_whitespace().collect());
    let listening = lines.filter(|words: &Vec<&str>| {
        words.get(3) == Some(&"0A") && own.contains(&format!("socket:[{}]", words[9]))
    });
    let port = |words: Vec<&str>| {
        let (_, port) = words[1].split_once(':')?;
        u16::from_str_radix(port, 16).ok()
    };
    listening.filter_map(port).collect()
}

both_shards!(nothing_listens_unless_it_is_told_to, |shards| {
    let silent = Stage::pooled(Topology::new(shards));
    let own = silent.address().port();
    assert_eq!(ports(silent.pid()), BTreeSet::from([own]));
    assert!(!silent.log().contains("metrics"), "{}", silent.log());
    assert_eq!(silent.setting("metrics_listen"), "");
    let told = Stage::pooled(topology(shards));
    let both = [told.address().port(), endpoint(&told).port()];
    assert_eq!(ports(told.pid()), BTreeSet::from(both));
});

both_shards!(new_address_waits_for_the_next_start, |shards| {
    let stage = Stage::pooled(topology(shards));
    let address = endpoint(&stage);
    let database = &stage.database;
    let changed = topology(shards).set("metrics_listen", "127.0.0.1:1");
    stage.rewrite(&changed.database(&stage.entry, database, &[]));
    assert_eq!(stage.console("RELOAD").complete, ["RELOAD"]);
    stage.wait_log("setting changed; it needs a restart");
    assert_eq!(stage.setting("metrics_listen"), "127.0.0.1:0");
    assert_served(address);
});

#[test]
fn address_in_use_or_none_at_all_is_said_at_start() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let refused = |address: &str| {
        let topology = Topology::new(1).set("metrics_listen", address);
        Pooler::try_start(&topology).err().expect("no start")
    };
    let log = refused(&address);
    let sentence = format!("cannot listen on metrics_listen {address}: Address already in use");
    assert!(log.contains(&sentence), "{log}");
    let log = refused("localhost");
    let sentence = "ringbouncer.metrics_listen: \"localhost\" is not an address with a port";
    assert!(log.contains(sentence), "{log}");
}

both_shards!(metrics_of_a_file_of_pgbouncers_are_served, |shards| {
    let write = |directory: &std::path::Path| {
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        fs::set_permissions(directory, open).unwrap();
        let user = match rustix::process::geteuid().is_root() {
            true => "user = nobody",
            false => "",
        };
        let text = format!(
            "[databases]\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = 0\n\
             unix_socket_dir = {}\nauth_type = trust\nmetrics_listen = 127.0.0.1:0\n{user}\n",
            directory.display()
        );
        let path = directory.join("pgbouncer.ini");
        fs::write(&path, text).unwrap();
        path
    };
    let pooler = Pooler::start_ini(write, shards);
    assert_eq!(Scrape::of(&pooler).value("pgbouncer_up", &[]), 1.0);
});
