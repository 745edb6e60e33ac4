//! The console's further words and what they do. Each claim holds for PgBouncer, too.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::drop_in::*;
use crate::support::peer::Conversation;
use crate::support::wire::*;
use crate::support::*;

compared!(select_is_show, since(1, 18), |subject| {
    let mut console = subject.admin();
    for table in ["VERSION", "databases", "Lists", "POOLS"] {
        let shown = console.query(&format!("SHOW {table}"));
        let selected = console.query(&format!("select {table};"));
        assert_eq!(selected.complete, ["SHOW"], "{table}: {selected:?}");
        assert_eq!(selected.columns, shown.columns, "{table}");
        assert!(!selected.rows.is_empty(), "{table}");
    }
});

compared!(pretended_variables_have_values, since(1, 18), |subject| {
    let mut console = subject.admin();
    for (name, value) in [
        ("client_encoding", "UTF-8"),
        ("default_transaction_isolation", "read committed"),
        ("standard_conforming_strings", "on"),
        ("datestyle", "ISO"),
        ("timezone", "GMT"),
    ] {
        let reply = console.query(&format!("SHOW {name}"));
        assert_eq!(reply.value(), value, "{name}");
        assert_eq!((&*reply.tags, reply.rows.len()), ("TDCZ", 1), "{name}");
        let reply = console.query(&format!("SET {name} = 'x'"));
        assert_eq!(reply.notices, ["SET ignored"], "{name}");
        assert_eq!(console.value(&format!("SHOW {name}")), value, "{name}");
    }
});

compared!(value_with_a_point_needs_quotes, since(1, 18), |subject| {
    let mut console = subject.admin();
    for value in ["3.5", "a-b", "a,b", "/tmp"] {
        let command = format!("SET server_lifetime = {value}");
        let reply = console.query(&command);
        let text = format!("invalid command '{command}', use SHOW HELP;");
        assert_eq!((reply.code(), reply.text()), ("08P01", &*text));
    }
    let reply = console.query("SET server_lifetime = '3.5'");
    assert_eq!(reply.complete, ["SET server_lifetime=3.5"]);
});

compared!(
    message_that_the_console_does_not_know_ends_the_session,
    since(1, 18),
    |subject| {
        let mut console = subject.admin();
        // FunctionCall.
        console.send(&message(b'F', &[0; 10]));
        let mut told = Vec::new();
        while let Some(message) = console.try_read().unwrap() {
            if message.tag == b'E' {
                let failure = message.failure();
                told.push([failure.severity, failure.code, failure.text]);
            }
        }
        let unsupported = "unsupported packet type for admin console: 70";
        assert_eq!(
            told,
            [
                ["ERROR", "08P01", unsupported],
                ["FATAL", "08P01", "bad packet"]
            ]
        );
    }
);

compared!(
    wait_close_of_a_database_waits_for_no_other,
    since(1, 18),
    |subject| {
        let mut busy = [0, 1].map(|at| Client::login(subject.address(), subject.entry(at)));
        for client in &mut busy {
            assert_eq!(client.query("begin").status, b'T');
        }
        assert_eq!(subject.console("RECONNECT").complete, ["RECONNECT"]);
        let wait_close = |at| {
            let mut console = subject.admin();
            console.send(&query(&format!("WAIT_CLOSE {}", subject.entry(at))));
            console
        };
        let mut waiting = wait_close(1);
        assert_eq!(subject.console("SHOW VERSION").complete, ["SHOW"]);
        assert!(waiting.has_nothing_to_read());
        assert_eq!(busy[1].query("commit").status, b'I');
        assert_eq!(waiting.reply().complete, ["WAIT_CLOSE"]);
        let mut waiting = wait_close(0);
        assert_eq!(subject.console("SHOW VERSION").complete, ["SHOW"]);
        assert!(waiting.has_nothing_to_read());
        assert_eq!(busy[0].query("commit").status, b'I');
        assert_eq!(waiting.reply().complete, ["WAIT_CLOSE"]);
    }
);

drop_in!(greeting_is_that_of_the_servers_of_now, |brand| {
    let count = Arc::new(AtomicUsize::new(0));
    let logins = count.clone();
    let server = FakeServer::start(move |mut server| {
        if !server.read_startup() {
            return;
        }
        let number = logins.fetch_add(1, Ordering::AcqRel).to_string();
        let ready = ready(b'I');
        let greeting = Conversation::greeting();
        let greeting = greeting.strip_suffix(&*ready).unwrap();
        server.send(&[greeting, &parameter_status("generation", &number), &ready].concat());
        server.serve("answer");
    });
    let address = server.address;
    let lines = format!(
        "pool_mode = transaction\n[databases]\nfake = host={} port={}",
        address.ip(),
        address.port()
    );
    let drop_in = DropIn::start(brand, Postgres::shared().database(), &lines);
    let generation = || Client::login(drop_in.address, "fake").params["generation"].clone();
    assert_eq!([generation(), generation()], ["0", "0"]);
    assert_eq!(drop_in.console("RECONNECT fake").complete, ["RECONNECT"]);
    assert_eq!([generation(), generation()], ["1", "1"]);
});

compared!(help_lists_the_commands, since(1, 18), |subject| {
    let mut console = subject.admin();
    console.send(&query("SHOW HELP"));
    let notice = console.read();
    assert_eq!(notice.tag, b'N');
    let detail = notice.failure().detail;
    assert!(detail.starts_with("\n\tSHOW HELP|"), "{detail}");
    let tables = detail
        .split("\n\t")
        .filter_map(|line| line.strip_prefix("SHOW "));
    let tables: Vec<_> = tables.flat_map(|line| line.split('|')).collect();
    for table in [
        "CONFIG",
        "DATABASES",
        "POOLS",
        "CLIENTS",
        "SERVERS",
        "USERS",
        "VERSION",
        "FDS",
        "SOCKETS",
        "ACTIVE_SOCKETS",
        "LISTS",
        "MEM",
        "DNS_HOSTS",
        "DNS_ZONES",
        "STATS",
        "STATS_TOTALS",
        "STATS_AVERAGES",
        "TOTALS",
    ] {
        let is_old = table == "FDS" && subject.is_from((1, 26));
        assert!(is_old || tables.contains(&table), "{table}: {detail}");
    }
    for command in [
        "SET key = arg",
        "RELOAD",
        "PAUSE [<db>]",
        "RESUME [<db>]",
        "DISABLE <db>",
        "ENABLE <db>",
        "RECONNECT [<db>]",
        "SHUTDOWN",
    ] {
        let is_listed = detail.lines().any(|line| line.trim() == command);
        assert!(is_listed, "{command}: {detail}");
    }
    assert_eq!(console.reply().complete, ["SHOW"]);
});

drop_in!(
    nothing_is_resumed_during_a_shutdown,
    since(1, 23),
    |brand| {
        let drop_in = DropIn::start(brand, Postgres::shared().database(), "");
        let mut client = drop_in.client();
        let mut console = Client::login(drop_in.address, "pgbouncer");
        let reply = console.query("SHUTDOWN WAIT_FOR_CLIENTS");
        assert_eq!(reply.complete, ["SHUTDOWN"]);
        wait_until("everybody knows", || {
            let reply = console.query("RESUME");
            assert_eq!(reply.code(), "08P01", "{reply:?}");
            reply.text() == "pooler is shutting down"
        });
        assert_eq!(client.value("select 'to the last'"), "to the last");
    }
);

/// Keys, defaults (a dash is null), what a reload changes, and the version from which on it is so.
const SETTINGS: &str = "\
auth_dbname|-|yes|1.19
auth_ident_file|-|yes|1.23
auth_ldap_options|-|yes|1.25
cancel_wait_timeout|10|yes|1.19
client_tls13_ciphers|-|yes|1.25
client_tls_ciphers|default|yes|1.25
login_notify_message||yes|1.26
max_db_client_connections|0|yes|1.24
max_prepared_statements|200|yes|1.24
max_user_client_connections|0|yes|1.24
peer_id|0|yes|1.19
pool_idle_timeout|0|yes|1.26
query_wait_notify|5|yes|1.25
scram_iterations|4096|yes|1.25
server_check_query|<empty>|yes|1.25
server_tls13_ciphers|-|yes|1.25
server_tls_ciphers|default|yes|1.25
server_tls_sslmode|prefer|yes|1.21
track_extra_parameters|IntervalStyle|no|1.20
transaction_timeout|0|yes|1.25";

drop_in!(newer_settings_have_their_defaults, |brand| {
    let drop_in = DropIn::start(brand, Postgres::shared().database(), "");
    let rows = drop_in.console("SHOW CONFIG").rows;
    let row = |key: &str| {
        let row = rows.iter().find(|row| row[0].as_deref() == Some(key));
        let row = row.unwrap_or_else(|| panic!("no {key}"));
        (row[2].as_deref(), row[3].as_deref())
    };
    for line in SETTINGS.lines() {
        let [key, default, changeable, since]: [&str; 4] =
            line.split('|').collect::<Vec<_>>().try_into().unwrap();
        let (major, minor) = since.split_once('.').unwrap();
        if brand.is_before((major.parse().unwrap(), minor.parse().unwrap())) {
            continue;
        }
        let default = (default != "-").then_some(default);
        // Everybody has it since then.
        let default = match (brand, key) {
            (Brand::PgBouncer, "track_extra_parameters") if brand.is_from((1, 26)) => Some(""),
            _ => default,
        };
        assert_eq!(row(key), (default, Some(changeable)), "{key}");
    }
    for key in [
        "auth_query",
        "client_tls_ciphers",
        "server_check_query",
        "server_tls_ciphers",
        "server_tls_sslmode",
    ] {
        assert_eq!(row(key).1, Some("yes"), "{key}");
    }
    if !brand.is_before((1, 24)) {
        assert!(row("auth_query").0.unwrap().contains("rolvaliduntil"));
    }
});
