//! The console's tables and grammar as PgBouncer has them: columns with their types, rows, refusals, notices.

use crate::support::drop_in::*;
use crate::support::*;

const TEXT: u32 = 25;
const INT4: u32 = 23;
const INT8: u32 = 20;
const NUMERIC: u32 = 1700;
const BYTEA: u32 = 17;

/// Columns of a connection; `SHOW SOCKETS` has the buffers as well.
const CONNECTION: &str = "type t, user t, database t, replication t 23, state t, addr t, port i, local_addr t, \
    local_port i, connect_time t, request_time t, wait i, wait_us i, close_needed i, ptr t, link t, \
    remote_pid i, tls t, application_name t, prepared_statements i 21, id i 24";
const BUFFERS: &str =
    ", recv_pos i, pkt_pos i, pkt_remain i, send_pos i, send_remain i, pkt_avail i, send_avail i";
const COUNTERS: &str = "database t, server_assignment_count n 23, xact_count n, query_count n, bytes_received n, \
    bytes_sent n, xact_time n, query_time n, wait_time n";

/// The columns of every table with the letter of their type and, as in `23`, the version from which on they are there
/// (1.23); `reserve_pool` is called `reserve_pool_size` since 1.24.
const TABLES: [(&str, &[&str]); 21] = [
    ("CLIENTS", &[CONNECTION]),
    ("SERVERS", &[CONNECTION]),
    ("SOCKETS", &[CONNECTION, BUFFERS]),
    ("ACTIVE_SOCKETS", &[CONNECTION, BUFFERS]),
    (
        "POOLS",
        &[
            "database t, user t, cl_active i, cl_waiting i, cl_active_cancel_req i, \
             cl_waiting_cancel_req i, sv_active i, sv_active_cancel i, sv_being_canceled i, sv_idle i, \
             sv_used i, sv_tested i, sv_login i, maxwait i, maxwait_us i, pool_mode t, \
             load_balance_hosts t 24",
        ],
    ),
    (
        "DATABASES",
        &[
            "name t, host t, port i, database t, force_user t, pool_size i, min_pool_size i, \
             reserve_pool_size i, server_lifetime i 23, pool_mode t, load_balance_hosts t 24, \
             max_connections i, current_connections i, max_client_connections i 24, \
             current_client_connections i 24, paused i, disabled i",
        ],
    ),
    (
        "USERS",
        &[
            "name t, pool_size t 23, reserve_pool_size t 24, pool_mode t, max_user_connections i 23, \
             current_connections i 23, max_user_client_connections i 24, current_client_connections i 24",
        ],
    ),
    (
        "STATS",
        &[
            "database t, total_server_assignment_count n 23, total_xact_count n, total_query_count n, \
             total_received n, total_sent n, total_xact_time n, total_query_time n, total_wait_time n, \
             total_client_parse_count n 24, total_server_parse_count n 24, total_bind_count n 24, \
             total_client_login_count n 26, avg_server_assignment_count n 23, avg_xact_count n, \
             avg_query_count n, avg_recv n, avg_sent n, avg_xact_time n, avg_query_time n, avg_wait_time n, \
             avg_client_parse_count n 24, avg_server_parse_count n 24, avg_bind_count n 24, \
             avg_client_login_count n 26",
        ],
    ),
    (
        "STATS_TOTALS",
        &[
            COUNTERS,
            ", client_parse_count n 24, server_parse_count n 24, bind_count n 24, client_login_count n 26",
        ],
    ),
    (
        "STATS_AVERAGES",
        &[
            COUNTERS,
            ", avg_client_parse_count n 24, avg_server_parse_count n 24, avg_bind_count n 24, \
             avg_client_login_count n 26",
        ],
    ),
    ("TOTALS", &["name t, value n"]),
    ("LISTS", &["list t, items i"]),
    ("CONFIG", &["key t, value t, default t, changeable t"]),
    ("VERSION", &["version t"]),
    // Until 1.26.
    (
        "FDS",
        &[
            "fd i, task t, user t, database t, addr t, port i, cancel l, link i, client_encoding t, \
             std_strings t, datestyle t, timezone t, password t, scram_client_key b, \
             scram_server_key b",
        ],
    ),
    ("MEM", &["name t, size i, used i, free i, memtotal i"]),
    ("DNS_HOSTS", &["hostname t, ttl l, addrs t"]),
    ("DNS_ZONES", &["zonename t, serial l, count i"]),
    ("STATE", &["key t 19, value t 19"]),
    (
        "PEERS",
        &["peer_id i 19, host t 19, port i 19, pool_size i 19"],
    ),
    (
        "PEER_POOLS",
        &[
            "peer_id i 19, cl_active_cancel_req i 19, cl_waiting_cancel_req i 19, sv_active_cancel i 19, \
             sv_login i 19",
        ],
    ),
];

/// What the subject is to show of these columns.
fn columns(subject: &Subject, written: &[&str]) -> Vec<(String, u32)> {
    let written = written.concat();
    let column = |column: &str| {
        let mut parts = column.split(' ');
        let (name, kind) = (parts.next().unwrap(), parts.next().unwrap());
        let minor = parts.next().map_or(0, |minor| minor.parse().unwrap());
        let kind = match kind {
            "t" => TEXT,
            "i" => INT4,
            "l" => INT8,
            "n" => NUMERIC,
            _ => BYTEA,
        };
        (!subject.is_before((1, minor))).then(|| (name.to_owned(), kind))
    };
    written.split(", ").filter_map(column).collect()
}

compared!(
    tables_have_all_columns_in_order_with_their_types,
    since(1, 18),
    |subject| {
        subject.client().value("select 1");
        for (table, written) in TABLES {
            if table == "FDS" && subject.is_from((1, 26)) {
                continue;
            }
            let reply = subject.console(&format!("SHOW {table}"));
            let names = reply.columns.iter().map(|name| match &**name {
                "reserve_pool" => "reserve_pool_size".to_owned(),
                name => name.to_owned(),
            });
            let shown: Vec<_> = names.zip(reply.types.iter().copied()).collect();
            assert_eq!(shown, columns(subject, written), "SHOW {table}");
        }
    }
);

compared!(
    lists_totals_and_averages_have_their_rows,
    since(1, 18),
    |subject| {
        subject.client().value("select 1");
        let names = |table: &str, column: &str| {
            let rows = subject.console(&format!("SHOW {table}")).table();
            rows.into_iter()
                .map(|mut row| row.remove(column).unwrap())
                .collect::<Vec<_>>()
        };
        let contains = |table: &str, names: &[String], wanted: &str| {
            let mut names = names.iter();
            for wanted in wanted.split(' ') {
                assert!(
                    names.any(|name| name == wanted),
                    "SHOW {table}: {wanted} is missing or out of order"
                );
            }
        };
        let wanted = "databases users pools free_clients used_clients login_clients free_servers \
                  used_servers dns_names dns_zones dns_queries dns_pending";
        contains("LISTS", &names("LISTS", "list"), wanted);
        let wanted = "total_xact_count total_query_count total_client_bytes total_server_bytes total_xact_time \
                  total_query_time total_wait_time avg_xact_count avg_query_count avg_client_bytes avg_server_bytes \
                  avg_xact_time avg_query_time avg_wait_time";
        contains("TOTALS", &names("TOTALS", "name"), wanted);
        for table in ["STATS", "STATS_TOTALS", "STATS_AVERAGES"] {
            let mut names = names(table, "database");
            names.sort();
            let mut expected = vec![subject.entry(0).to_owned(), "pgbouncer".to_owned()];
            expected.sort();
            assert_eq!(names, expected, "SHOW {table}");
        }
    }
);

compared!(counters_are_exact, since(1, 18), |subject| {
    let mut client = subject.client();
    let value = |column: &str| {
        let table = subject.console("SHOW STATS").table();
        let row = table.iter().find(|row| row["database"] == subject.entry(0));
        row.map_or(0, |row| row[column].parse::<u64>().unwrap())
    };
    let all = || {
        [
            "total_xact_count",
            "total_query_count",
            "total_received",
            "total_sent",
        ]
        .map(value)
    };
    // Whatever comes with the login is behind us.
    client.value("select 1");
    let before = all();
    let mut sent = 0;
    let mut received = 0;
    for sql in [
        "select 1",
        "begin",
        "select 22",
        "commit",
        "select 'x' where false",
    ] {
        let query = wire::query(sql);
        sent += query.len() as u64;
        client.send(&query);
        loop {
            let message = client.read();
            received += 5 + message.body.len() as u64;
            if message.tag == b'Z' {
                break;
            }
        }
    }
    let after = all();
    let gained: Vec<u64> = before
        .iter()
        .zip(after)
        .map(|(before, after)| after - before)
        .collect();
    assert_eq!(gained, [3, 5, sent, received]);
});

compared!(
    client_without_a_pool_is_not_listed,
    since(1, 18),
    |subject| {
        let silent = Client::connect(subject.address());
        let mut tls = Client::connect(subject.address());
        tls.send(&wire::ssl_request());
        assert_eq!(tls.read_byte(), b'N');
        let _client = subject.client();
        let table = subject.console("SHOW CLIENTS").table();
        let databases: Vec<_> = table.iter().map(|row| &*row["database"]).collect();
        assert_eq!(databases.len(), 2, "{databases:?}");
        assert!(databases.contains(&"pgbouncer") && databases.contains(&subject.entry(0)));
        drop((silent, tls));
    }
);

compared!(
    servers_have_the_application_name_of_their_last_client,
    since(1, 18),
    with & [("default_pool_size", "1")],
    |subject| {
        let named = |name: &str| {
            let params = [
                ("user", "postgres"),
                ("database", subject.entry(0)),
                ("application_name", name),
            ];
            let mut client = Client::login_with(subject.address(), &params);
            client.value("select 1");
            client
        };
        let shown = || {
            let table = subject.console("SHOW SERVERS").table();
            let row = table.iter().find(|row| row["database"] == subject.entry(0));
            row.expect("a server")["application_name"].clone()
        };
        let mut one = named("one");
        assert_eq!(shown(), "one");
        let _two = named("two");
        assert_eq!(shown(), "two");
        one.value("set application_name = 'another'");
        assert_eq!(shown(), "another");
    }
);

drop_in!(
    client_of_the_unix_socket_is_shown_with_its_process,
    |brand| {
        let drop_in = DropIn::start(brand, Postgres::shared().database(), "");
        let port = drop_in.address.port();
        let mut console = Client::connect_unix(&drop_in.path(&format!(".s.PGSQL.{port}")));
        let params = [("user", "postgres"), ("database", "pgbouncer")];
        assert_eq!(console.start(wire::PROTOCOL_3_0, &params).status, b'I');
        let table = console.query("SHOW CLIENTS").table();
        let mut rows = table.iter().filter(|row| row["database"] == "pgbouncer");
        let row = rows.next().expect("itself");
        assert_eq!((&*row["addr"], &*row["local_addr"]), ("unix", "unix"));
        assert_eq!(row["port"], port.to_string());
        assert_eq!(row["local_port"], port.to_string());
        assert_eq!(row["remote_pid"], std::process::id().to_string());
    }
);

drop_in!(whoever_says_whatever_may_look, |brand| {
    let more = "auth_type = any\nadmin_users =\n[databases]\nforced = user=postgres";
    let drop_in = DropIn::start(brand, Postgres::shared().database(), more);
    let params = [("user", "somebody"), ("database", "pgbouncer")];
    let mut console = Client::login_with(drop_in.address, &params);
    assert_eq!(console.query("SHOW POOLS").complete, ["SHOW"]);
    assert_eq!(console.query("RELOAD").text(), "admin access needed");
});

/// What the console says to a command that it refuses.
const REFUSED: [(&str, &str); 32] = [
    ("", "invalid command '', use SHOW HELP;"),
    ("  ", "invalid command '  ', use SHOW HELP;"),
    (";", "invalid command ';', use SHOW HELP;"),
    (
        "SHOW VERSION;;",
        "invalid command 'SHOW VERSION;;', use SHOW HELP;",
    ),
    (
        "SHOW POOLS; SHOW POOLS",
        "invalid command 'SHOW POOLS; SHOW POOLS', use SHOW HELP;",
    ),
    ("-- x", "invalid command '-- x', use SHOW HELP;"),
    (
        "/* x */ SHOW VERSION",
        "invalid command '/* x */ SHOW VERSION', use SHOW HELP;",
    ),
    (
        "SHOW VERSION -- x",
        "invalid command 'SHOW VERSION -- x', use SHOW HELP;",
    ),
    ("SELECT x", "invalid command 'SELECT x', use SHOW HELP;"),
    ("SHOW", "invalid command 'SHOW', use SHOW HELP;"),
    (
        "SHOW NOTHING",
        "invalid command 'SHOW NOTHING', use SHOW HELP;",
    ),
    (
        "SHOW 'VERSION'",
        "invalid command 'SHOW 'VERSION'', use SHOW HELP;",
    ),
    (
        "SHOW VERSION POOLS",
        "invalid command 'SHOW VERSION POOLS', use SHOW HELP;",
    ),
    ("SET", "invalid command 'SET', use SHOW HELP;"),
    ("SET x", "invalid command 'SET x', use SHOW HELP;"),
    (
        "SET default_pool_size 'a",
        "invalid command 'SET default_pool_size 'a', use SHOW HELP;",
    ),
    ("SET no_such = 1", "SET failed"),
    ("SET default_pool_size = abc", "SET failed"),
    ("SET pool_mode = sesion", "SET failed"),
    ("PAUSE nobody", "no such database: nobody"),
    (
        "PAUSE 'nobody'",
        "invalid command 'PAUSE 'nobody'', use SHOW HELP;",
    ),
    ("PAUSE \"no\"\"body\"", "no such database: no\"body"),
    ("PAUSE pgbouncer", "cannot pause admin db: pgbouncer"),
    ("RESUME", "pooler is not paused/suspended"),
    ("DISABLE", "a database is required"),
    ("ENABLE", "a database is required"),
    ("KILL nobody", "no such database: nobody"),
    ("RECONNECT nobody", "no such database: nobody"),
    ("WAIT_CLOSE nobody", "no such database: nobody"),
    ("SHUTDOWN x", "invalid command 'SHUTDOWN x', use SHOW HELP;"),
    ("RELOAD x", "invalid command 'RELOAD x', use SHOW HELP;"),
    ("SUSPEND x", "invalid command 'SUSPEND x', use SHOW HELP;"),
];

compared!(refusals_have_their_texts, since(1, 18), |subject| {
    let mut console = subject.admin();
    let mut assert_refused = |command: &str, text: &str| {
        let reply = console.query(command);
        let error = reply
            .error
            .as_ref()
            .unwrap_or_else(|| panic!("{command}: {reply:?}"));
        assert_eq!(
            (&*error.severity, &*error.code),
            ("ERROR", "08P01"),
            "{command}"
        );
        assert_eq!(error.text, text, "{command}");
        assert_eq!((&*reply.tags, reply.status), ("EZ", b'I'), "{command}");
    };
    for (command, text) in REFUSED {
        match command {
            // There is no SUSPEND since 1.26.
            "RESUME" if subject.is_from((1, 26)) => assert_refused(command, "pooler is not paused"),
            _ => assert_refused(command, text),
        }
    }
    // The longest word of each kind that is taken, and one byte more.
    let word = |count: usize| "x".repeat(count);
    let invalid = |command: &str| format!("invalid command '{command}', use SHOW HELP;");
    assert_refused(&word(15), &invalid(&word(15)));
    assert_refused(&word(16), "bad arguments");
    let show = |count| format!("SHOW {}", word(count));
    assert_refused(&show(63), &invalid(&show(63)));
    assert_refused(&show(64), "bad arguments");
    assert_refused(
        &format!("PAUSE {}", word(63)),
        &format!("no such database: {}", word(63)),
    );
    assert_refused(&format!("PAUSE {}", word(64)), "bad arguments");
    assert_refused(&format!("SET pool_mode = {}", word(255)), "SET failed");
    assert_refused(&format!("SET pool_mode = {}", word(256)), "bad arguments");
});

compared!(
    commands_are_taken_in_each_notation,
    since(1, 18),
    |subject| {
        let mut console = subject.admin();
        let entry = subject.entry(0).to_owned();
        for (command, tag) in [
            ("SHOW VERSION", "SHOW"),
            ("show version ; ", "SHOW"),
            ("SHOW \"VERSION\"", "SHOW"),
            ("SET default_pool_size=7", "SET default_pool_size=7"),
            ("SET default_pool_size = '8'", "SET default_pool_size=8"),
            ("set default_pool_size = \"9\";", "SET default_pool_size=9"),
            ("SET default_pool_size TO 10", "SET default_pool_size=10"),
            ("SET listen_port = 1", "SET listen_port=1"),
            ("WAIT_CLOSE", "WAIT_CLOSE"),
            ("PAUSE", "PAUSE"),
            ("RESUME", "RESUME"),
            (&*format!("PAUSE \"{entry}\""), "PAUSE"),
            (&*format!("resume {entry};"), "RESUME"),
        ] {
            let reply = console.query(command);
            assert_eq!(reply.complete, [tag], "{command}: {reply:?}");
        }
        let reply = console.query(&format!("RESUME {entry}"));
        assert_eq!(reply.text(), format!("database {entry} is not paused"));
    }
);

compared!(notices_have_their_texts, since(1, 18), |subject| {
    let mut console = subject.admin();
    let reply = console.query("SHOW HELP");
    assert_eq!(reply.notices, ["Console usage"]);
    assert_eq!(
        (reply.complete, reply.tags),
        (vec!["SHOW".to_owned()], "CZ".to_owned())
    );
    // What pgjdbc sends, too.
    if !subject.is_before((1, 26)) {
        let reply = console.query("SET extra_float_digits = 3");
        assert_eq!(reply.notices, ["SET ignored"]);
        assert_eq!(console.value("SHOW extra_float_digits"), "2");
    }
    for setting in [
        "client_encoding='UTF8'",
        "datestyle = iso",
        "TimeZone = 'UTC'",
    ] {
        let reply = console.query(&format!("SET {setting}"));
        assert_eq!(reply.notices, ["SET ignored"], "{setting}");
        assert_eq!(reply.complete, ["SET"], "{setting}");
    }
});

compared!(who_may_only_look_does_only_that, since(1, 18), |subject| {
    let console = |user| {
        let params = [("user", user), ("database", "pgbouncer")];
        let mut client = Client::connect(subject.address());
        let reply = client.start(wire::PROTOCOL_3_0, &params);
        (client, reply)
    };
    console("nobody").1.assert_fatal("not allowed");
    let (mut watcher, _) = console("watcher");
    for table in ["POOLS", "CLIENTS", "CONFIG", "STATS"] {
        assert_eq!(
            watcher.query(&format!("SHOW {table}")).complete,
            ["SHOW"],
            "{table}"
        );
    }
    for command in [
        "RELOAD",
        "PAUSE",
        "RESUME",
        "KILL x",
        "RECONNECT",
        "DISABLE x",
        "ENABLE x",
        "WAIT_CLOSE",
        "SET default_pool_size = 3",
        "SHUTDOWN",
    ] {
        assert_eq!(
            watcher.query(command).text(),
            "admin access needed",
            "{command}"
        );
    }
});

/// Keys, defaults (a dash is null) and what a reload changes, less the defaults that later versions have changed.
const SETTINGS: &str = "\
admin_users||yes
application_name_add_host|0|yes
auth_file|-|yes
auth_hba_file||yes
auth_type|md5|yes
auth_user|-|yes
autodb_idle_timeout|3600|yes
client_idle_timeout|0|yes
client_login_timeout|60|yes
client_tls_ca_file||yes
client_tls_cert_file||yes
client_tls_dheparams|auto|yes
client_tls_ecdhcurve|auto|yes
client_tls_key_file||yes
client_tls_protocols|secure|yes
client_tls_sslmode|disable|yes
conffile|-|yes
default_pool_size|20|yes
disable_pqexec|0|no
dns_max_ttl|15|yes
dns_nxdomain_ttl|15|yes
dns_zone_check_period|0|yes
idle_transaction_timeout|0|yes
ignore_startup_parameters||yes
job_name|pgbouncer|no
listen_addr||no
listen_backlog|128|no
listen_port|6432|no
log_connections|1|yes
log_disconnections|1|yes
log_pooler_errors|1|yes
log_stats|1|yes
logfile||yes
max_client_conn|100|yes
max_db_connections|0|yes
max_packet_size|2147483647|yes
max_user_connections|0|yes
min_pool_size|0|yes
pidfile||no
pkt_buf|4096|no
pool_mode|session|yes
query_timeout|0|yes
query_wait_timeout|120|yes
reserve_pool_size|0|yes
reserve_pool_timeout|5|yes
resolv_conf||no
sbuf_loopcnt|5|yes
server_check_delay|30|yes
server_connect_timeout|15|yes
server_fast_close|0|yes
server_idle_timeout|600|yes
server_lifetime|3600|yes
server_login_retry|15|yes
server_reset_query|DISCARD ALL|yes
server_reset_query_always|0|yes
server_round_robin|0|yes
server_tls_ca_file||yes
server_tls_cert_file||yes
server_tls_key_file||yes
server_tls_protocols|secure|yes
so_reuseport|0|no
stats_period|60|yes
stats_users||yes
suspend_timeout|10|yes
syslog|0|yes
syslog_facility|daemon|yes
syslog_ident|pgbouncer|yes
tcp_defer_accept|1|yes
tcp_keepalive|1|yes
tcp_keepcnt|0|yes
tcp_keepidle|0|yes
tcp_keepintvl|0|yes
tcp_socket_buffer|0|yes
tcp_user_timeout|0|yes
unix_socket_dir|/tmp|no
unix_socket_group||no
unix_socket_mode|0777|no
user|-|no
verbose|-|yes";

drop_in!(
    settings_have_their_defaults_and_say_what_a_reload_changes,
    |brand| {
        let drop_in = DropIn::start(brand, Postgres::shared().database(), "");
        let reply = Client::login(drop_in.address, "pgbouncer").query("SHOW CONFIG");
        for line in SETTINGS.lines() {
            let [key, default, changeable]: [&str; 3] =
                line.split('|').collect::<Vec<_>>().try_into().unwrap();
            // Until 1.26.
            if key == "suspend_timeout" && brand.is_from((1, 26)) {
                continue;
            }
            let is_it = |row: &&Vec<Option<String>>| row[0].as_deref() == Some(key);
            let row = reply
                .rows
                .iter()
                .find(is_it)
                .unwrap_or_else(|| panic!("no {key}"));
            let default = (default != "-").then_some(default);
            // Listeners keep it until the next start.
            let changeable = match (brand, key) {
                (Brand::Ringbouncer(_), "tcp_defer_accept") => "no",
                _ => changeable,
            };
            assert_eq!(
                (row[2].as_deref(), row[3].as_deref()),
                (default, Some(changeable)),
                "{key}"
            );
        }
        let value = |key: &str| {
            let found = reply.rows.iter().find(|row| row[0].as_deref() == Some(key));
            found.unwrap()[1].clone()
        };
        let path = drop_in.path("pgbouncer.ini").display().to_string();
        assert_eq!(value("conffile"), Some(path));
        assert_eq!(value("auth_user"), None);
        assert_eq!(value("listen_addr").as_deref(), Some("127.0.0.1"));
        assert_eq!(value("unix_socket_mode").as_deref(), Some("511"));
    }
);
