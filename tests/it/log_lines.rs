//! What PgBouncer's operators search its log for: who came how, which server was closed for what reason, and what
//! failed where.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::support::certs::{Authority, Signed};
use crate::support::drop_in::*;
use crate::support::peer::Conversation;
use crate::support::ports::Deaf;
use crate::support::wire::PROTOCOL_3_0;
use crate::support::*;

fn database() -> Database {
    Postgres::shared().database()
}

/// The line of a server of `name` at `remote` that says `text`; waits for it.
#[track_caller]
fn server_says(drop_in: &DropIn, name: &str, remote: &str, text: &str) -> String {
    let text = format!("{name}/postgres@{remote} {text}");
    wait_until(&text, || drop_in.log().contains(&text));
    let line = line_with(drop_in, &text);
    assert!(prefix(&line, 'S').starts_with(&text), "{line}");
    line
}

/// A server of the first database is closed for this reason.
#[track_caller]
fn server_is_closed(drop_in: &DropIn, why: &str) {
    let remote = drop_in.database.postgres.address().to_string();
    let text = format!("closing because: {why} (age=");
    let line = server_says(drop_in, &drop_in.database.name, &remote, &text);
    assert!(
        line.contains("] LOG S-0x") && line.ends_with("s)"),
        "{line}"
    );
}

fn client(drop_in: &DropIn) -> Client {
    Client::login(drop_in.address, &drop_in.database.name)
}

fn console(drop_in: &DropIn, command: &str) {
    let reply = Client::login(drop_in.address, "pgbouncer").query(command);
    assert!(reply.error.is_none(), "{command}: {reply:?}");
}

fn notice() -> Vec<u8> {
    let fields = [(b'S', "NOTICE"), (b'C', "00000"), (b'M', "hear, hear")];
    wire::message(b'N', &wire::error(&fields)[5..])
}

// ---- why servers are closed ------------------------------------------------------------------

drop_in!(server_idle_for_too_long_is_closed_for_that, |brand| {
    let more = "pool_mode = transaction\nserver_idle_timeout = 1";
    let drop_in = DropIn::start(brand, database(), more);
    client(&drop_in).value("select 1");
    server_is_closed(&drop_in, "server idle timeout");
});

drop_in!(idle_server_that_is_too_old_is_closed_for_that, |brand| {
    let more = "pool_mode = transaction\nserver_lifetime = 1";
    let drop_in = DropIn::start(brand, database(), more);
    client(&drop_in).value("select 1");
    server_is_closed(&drop_in, "server lifetime over");
});

drop_in!(server_beyond_a_lowered_limit_is_closed_for_that, |brand| {
    let more = "pool_mode = transaction\ndefault_pool_size = 2";
    let drop_in = DropIn::start(brand, database(), more);
    let mut clients = [client(&drop_in), client(&drop_in)];
    for client in &mut clients {
        assert_eq!(client.query("begin").status, b'T');
    }
    for client in &mut clients {
        assert_eq!(client.query("commit").status, b'I');
    }
    console(&drop_in, "SET default_pool_size = 1");
    server_is_closed(&drop_in, "too many servers in the pool");
});

drop_in!(idle_server_of_a_paused_pool_is_closed_for_that, |brand| {
    let drop_in = DropIn::start(brand, database(), "pool_mode = transaction");
    client(&drop_in).value("select 1");
    console(&drop_in, "PAUSE");
    server_is_closed(&drop_in, "pause mode");
});

drop_in!(idle_server_is_closed_for_a_reconnect, |brand| {
    let drop_in = DropIn::start(brand, database(), "pool_mode = transaction");
    client(&drop_in).value("select 1");
    console(&drop_in, "RECONNECT");
    server_is_closed(&drop_in, "database configuration changed");
});

drop_in!(idle_server_that_is_terminated_has_crashed, |brand| {
    let drop_in = DropIn::start(brand, database(), "pool_mode = transaction");
    let pid = client(&drop_in).value("select pg_backend_pid()");
    let terminate = format!("select pg_terminate_backend({pid})");
    drop_in.database.sql(&terminate);
    let remote = drop_in.database.postgres.address().to_string();
    let text = "got packet 'E' from server when not linked";
    let line = server_says(&drop_in, &drop_in.database.name, &remote, text);
    assert!(line.contains("] WARNING S-0x"), "{line}");
    server_is_closed(&drop_in, "server conn crashed?");
});

drop_in!(idle_server_that_speaks_is_dirty, |brand| {
    let speaks = Arc::new(AtomicBool::new(false));
    let cue = speaks.clone();
    let server = FakeServer::start(move |mut conversation| {
        if conversation.login() && conversation.next_request().is_some() {
            conversation.send(&Conversation::one_row("1"));
            conversation.stall_until(&cue);
            conversation.send(&notice());
            conversation.wait_closed();
        }
    });
    let more = format!(
        "pool_mode = transaction\n[databases]\nfake = host=127.0.0.1 port={}",
        server.address.port()
    );
    let drop_in = DropIn::start(brand, database(), &more);
    Client::login(drop_in.address, "fake").value("select 1");
    speaks.store(true, Ordering::Release);
    let remote = server.address.to_string();
    let text = "got packet 'N' from server when not linked";
    server_says(&drop_in, "fake", &remote, text);
    let text = "closing because: SV_IDLE server got dirty (age=";
    server_says(&drop_in, "fake", &remote, text);
});

/// A server and its client were closed for the same reason.
#[track_caller]
fn both_are_closed(drop_in: &DropIn, why: &str) {
    server_is_closed(drop_in, why);
    let text = format!("closing because: {why} (age=");
    let log = drop_in.log();
    let of_client = |line: &&str| line.contains(" LOG C-0x") && line.contains(&text);
    assert_eq!(log.lines().filter(of_client).count(), 1, "{log}");
}

drop_in!(query_timeout_closes_server_and_client, |brand| {
    let more = "pool_mode = transaction\nquery_timeout = 1";
    let drop_in = DropIn::start(brand, database(), more);
    let reply = client(&drop_in).query("select pg_sleep(60)");
    reply.assert_fatal("query timeout");
    both_are_closed(&drop_in, "query timeout");
});

drop_in!(idle_transaction_timeout_closes_server_and_client, |brand| {
    let more = "pool_mode = transaction\nidle_transaction_timeout = 1";
    let drop_in = DropIn::start(brand, database(), more);
    let mut client = client(&drop_in);
    assert_eq!(client.query("begin").status, b'T');
    client.reply().assert_fatal("idle transaction timeout");
    both_are_closed(&drop_in, "idle transaction timeout");
});

drop_in!(
    transaction_in_statement_mode_closes_server_and_client,
    |brand| {
        let drop_in = DropIn::start(brand, database(), "pool_mode = statement");
        let text = "transaction blocks not allowed in statement pooling mode";
        client(&drop_in).query("begin").assert_fatal(text);
        both_are_closed(&drop_in, text);
    }
);

drop_in!(server_that_dies_at_work_takes_its_client_along, |brand| {
    let drop_in = DropIn::start(brand, database(), "pool_mode = transaction");
    let mut client = client(&drop_in);
    client.query("begin");
    let pid = client.value("select pg_backend_pid()");
    let terminate = format!("select pg_terminate_backend({pid})");
    drop_in.database.sql(&terminate);
    client.reply();
    both_are_closed(&drop_in, "server conn crashed?");
});

drop_in!(
    server_of_a_client_that_leaves_in_a_transaction_is_closed,
    |brand| {
        let drop_in = DropIn::start(brand, database(), "pool_mode = transaction");
        let mut client = client(&drop_in);
        assert_eq!(client.query("begin").status, b'T');
        drop(client);
        server_is_closed(&drop_in, "client disconnect while server was not ready");
    }
);

// ---- servers that cannot be had ---------------------------------------------------------------

drop_in!(failed_connections_are_told_with_their_place, |brand| {
    let released = Arc::new(AtomicBool::new(false));
    let until = released.clone();
    let silent = FakeServer::start(move |conversation| conversation.stall_until(&until));
    let deaf = Deaf::new();
    let dead = deaf.address.port();
    let database = database();
    let postgres = database.postgres.address();
    let more = format!(
        "server_connect_timeout = 1\n[databases]\n\
         dead = host=127.0.0.1 port={dead}\n\
         silent = host=127.0.0.1 port={}\n\
         unnamed = host=no-such-host.invalid port=5432\n\
         unknown = host=127.0.0.1 port={} dbname=no_such_database",
        silent.address.port(),
        postgres.port()
    );
    let drop_in = DropIn::start(brand, database, &more);
    let clients: Vec<_> = ["dead", "silent", "unnamed", "unknown"]
        .into_iter()
        .map(|name| {
            let mut client = Client::connect(drop_in.address);
            let params = [("user", "postgres"), ("database", name)];
            client.send(&wire::startup(PROTOCOL_3_0, &params));
            client
        })
        .collect();
    let place = format!("127.0.0.1:{dead}");
    server_says(
        &drop_in,
        "dead",
        &place,
        "closing because: connect failed (age=",
    );
    let place = silent.address.to_string();
    server_says(
        &drop_in,
        "silent",
        &place,
        "closing because: connect timeout (age=",
    );
    let text = "closing because: server DNS lookup failed (age=";
    wait_until(text, || drop_in.log().contains(text));
    let line = line_with(&drop_in, text);
    assert!(
        prefix(&line, 'S').starts_with("unnamed/postgres@"),
        "{line}"
    );
    let place = postgres.to_string();
    let reason = match brand.is_from((1, 20)) {
        true => "database \"no_such_database\" does not exist",
        false => "login failed",
    };
    let text = format!("closing because: {reason} (age=0s)");
    server_says(&drop_in, "unknown", &place, &text);
    let line = line_with(&drop_in, "server login failed: FATAL");
    let text = "server login failed: FATAL database \"no_such_database\" does not exist";
    assert!(
        line.contains("] WARNING ") && line.ends_with(text),
        "{line}"
    );
    drop(clients);
    released.store(true, Ordering::Release);
});

// ---- the console ------------------------------------------------------------------------------

/// A line that ends like this; nothing stands between the word for its severity and `text`.
#[track_caller]
fn pooler_says(drop_in: &DropIn, severity: &str, text: &str) {
    let end = format!("] {severity} {text}");
    let is_there = || drop_in.log().lines().any(|line| line.ends_with(&end));
    wait_until(&end, is_there);
}

/// A line about a client of `place` that ends like this.
#[track_caller]
fn client_says(drop_in: &DropIn, severity: &str, place: &str, text: &str) {
    let head = format!("] {severity} C-0x");
    let place = format!(": {place}@127.0.0.1:");
    let is_meant = |line: &str| line.contains(&head) && line.contains(&place);
    let is_there = || {
        let log = drop_in.log();
        let mut lines = log.lines().filter(|line| is_meant(line));
        lines.any(|line| line.contains(&format!(" {text}")))
    };
    wait_until(text, is_there);
}

drop_in!(orders_are_told_as_they_were_given, |brand| {
    let drop_in = DropIn::start(brand, database(), "pool_mode = transaction");
    let name = drop_in.database.name.clone();
    for verb in ["PAUSE", "RESUME", "DISABLE", "ENABLE", "KILL", "RESUME"] {
        console(&drop_in, &format!("{verb} {name}"));
        pooler_says(&drop_in, "LOG", &format!("{verb} '{name}' command issued"));
    }
    for command in ["PAUSE", "RESUME", "RECONNECT", "RELOAD", "WAIT_CLOSE"] {
        console(&drop_in, command);
        pooler_says(&drop_in, "LOG", &format!("{command} command issued"));
    }
});

drop_in!(refused_commands_are_errors, |brand| {
    let drop_in = DropIn::start(brand, database(), "");
    for (command, text) in [
        (
            "SHOW NOTHING",
            "invalid command 'SHOW NOTHING', use SHOW HELP;",
        ),
        ("PAUSE nowhere", "no such database: nowhere"),
    ] {
        assert_eq!(drop_in.console(command).text(), text);
        client_says(
            &drop_in,
            "WARNING",
            "pgbouncer/postgres",
            &format!("pooler error: {text}"),
        );
        pooler_says(&drop_in, "ERROR", text);
    }
});

drop_in!(
    console_session_that_hangs_up_is_told_from_one_that_says_so,
    |brand| {
        let drop_in = DropIn::start(brand, database(), "");
        let mut leaving = Client::login(drop_in.address, "pgbouncer");
        leaving.send(&wire::terminate());
        leaving.expect_closed();
        client_says(
            &drop_in,
            "LOG",
            "pgbouncer/postgres",
            "closing because: client close request (age=",
        );
        assert!(!drop_in.log().contains("client unexpected eof"));
        drop(Client::login(drop_in.address, "pgbouncer"));
        client_says(
            &drop_in,
            "LOG",
            "pgbouncer/postgres",
            "closing because: client unexpected eof (age=",
        );
    }
);

drop_in!(database_that_is_taken_out_is_told, |brand| {
    let database = database();
    let other = format!("[databases]\n{}", entry("other", &database, ""));
    let drop_in = DropIn::start(brand, database, &other);
    Client::login(drop_in.address, "other").value("select 1");
    drop_in.reload_with("other = ", "another = ");
    let text = "dropping database 'other' as it does not exist anymore or inactive auto-database";
    pooler_says(&drop_in, "WARNING", text);
});

drop_in!(automatic_database_that_goes_is_told, |brand| {
    let database = database();
    let any = format!(
        "autodb_idle_timeout = 1\nserver_idle_timeout = 1\n[databases]\n{}",
        entry("*", &database, "")
    );
    let drop_in = DropIn::start(brand, database, &any);
    Client::login(drop_in.address, "whatever").value("select 1");
    let text =
        "dropping database 'whatever' as it does not exist anymore or inactive auto-database";
    pooler_says(&drop_in, "WARNING", text);
});

drop_in!(client_that_takes_from_the_reserve_is_named, |brand| {
    let more = "pool_mode = transaction\ndefault_pool_size = 1\nreserve_pool_size = 1\nreserve_pool_timeout = 1";
    let drop_in = DropIn::start(brand, database(), more);
    let (mut one, mut two) = (client(&drop_in), client(&drop_in));
    assert_eq!(one.query("begin").status, b'T');
    assert_eq!(two.value("select 'served'"), "served");
    let place = format!("{}/postgres", drop_in.database.name);
    client_says(
        &drop_in,
        "WARNING",
        &place,
        "taking connection from reserve_pool",
    );
});

drop_in!(last_line_tells_why_it_ends, |brand| {
    let mut drop_in = DropIn::start(brand, database(), "");
    client(&drop_in).value("select 1");
    drop_in.signal(Signal::INT);
    drop_in.wait_exit().expect("an end");
    pooler_says(&drop_in, "LOG", "server connections dropped, exiting");
});

drop_in!(
    idle_servers_are_closed_for_a_pause_when_it_is_interrupted,
    |brand| {
        let mut drop_in = DropIn::start(brand, database(), "pool_mode = transaction");
        client(&drop_in).value("select 1");
        drop_in.signal(Signal::INT);
        drop_in.wait_exit().expect("an end");
        server_is_closed(&drop_in, "pause mode");
    }
);

drop_in!(averages_have_the_logins, since(1, 26), |brand| {
    let drop_in = DropIn::start(brand, database(), "stats_period = 1");
    wait_until("a period", || drop_in.log().contains(" LOG stats: "));
    let line = line_with(&drop_in, " LOG stats: ");
    assert!(line.contains(" binds/s, 0 client logins/s, in "), "{line}");
});

// ---- who comes how ----------------------------------------------------------------------------

drop_in!(client_of_the_unix_socket_is_named_by_its_process, |brand| {
    let drop_in = DropIn::start(brand, database(), "");
    let port = drop_in.address.port();
    let mut client = Client::connect_unix(&drop_in.path(&format!(".s.PGSQL.{port}")));
    let name = drop_in.database.name.clone();
    let params = [("user", "postgres"), ("database", &*name)];
    assert_eq!(client.start(PROTOCOL_3_0, &params).status, b'I');
    let line = line_with(&drop_in, "login attempt: ");
    let place = format!("{name}/postgres@unix({}):{port} ", std::process::id());
    assert!(prefix(&line, 'C').starts_with(&place), "{line}");
});

drop_in!(client_of_an_unknown_database_has_none, |brand| {
    let drop_in = DropIn::start(brand, database(), "");
    let params = [("user", "postgres"), ("database", "nowhere")];
    let reply = Client::connect(drop_in.address).start(PROTOCOL_3_0, &params);
    reply.assert_fatal("no such database: nowhere");
    for (severity, text) in [
        ("LOG", "login attempt: db=nowhere user=postgres tls=no"),
        ("LOG", "login failed: db=nowhere user=postgres"),
        ("LOG", "closing because: no such database: nowhere (age=0s)"),
        ("WARNING", "pooler error: no such database: nowhere"),
    ] {
        client_says(&drop_in, severity, "(nodb)/postgres", text);
    }
});

drop_in!(user_who_is_not_listed_is_a_stranger, |brand| {
    let drop_in = DropIn::start(brand, database(), "");
    let params = [("user", "stranger"), ("database", &*drop_in.database.name)];
    let reply = Client::connect(drop_in.address).start(PROTOCOL_3_0, &params);
    reply.assert_fatal("\"trust\" authentication failed");
    client_says(&drop_in, "LOG", "(nodb)/(nouser)", "no such user: stranger");
    let attempt = format!("login attempt: db={} user=stranger", drop_in.database.name);
    for (severity, text) in [
        ("LOG", &*attempt),
        ("LOG", "closing because: \"trust\" authentication failed"),
        ("WARNING", "pooler error: \"trust\" authentication failed"),
    ] {
        client_says(&drop_in, severity, "(nodb)/stranger", text);
    }
    assert!(!drop_in.log().contains("login failed"));
});

drop_in!(client_that_only_knocks_is_not_worth_a_line, |brand| {
    let drop_in = DropIn::start(brand, database(), "");
    let mut knocking = Client::connect(drop_in.address);
    knocking.finish_sending();
    knocking.expect_closed();
    // Its line would be there by now.
    let mut client = client(&drop_in);
    client.value("select 1");
    assert!(!drop_in.log().contains("client unexpected eof"));
    drop(client);
});

drop_in!(unknown_packet_at_the_console_is_called_so, |brand| {
    let drop_in = DropIn::start(brand, database(), "");
    let mut console = Client::login(drop_in.address, "pgbouncer");
    let reply = console.exchange(&wire::message(b'z', b""));
    reply.assert_fatal("unknown pkt");
    let text = "closing because: unknown pkt (age=";
    client_says(&drop_in, "LOG", "pgbouncer/postgres", text);
});

drop_in!(mistake_in_a_reload_is_told, |brand| {
    let drop_in = DropIn::start(brand, database(), "server_idle_timeout = 60");
    let file = drop_in.path("pgbouncer.ini");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("{text}\npool_mode = nonsense\n")).unwrap();
    drop_in.console("RELOAD");
    let is_told = |line: &str| line.contains("] WARNING config file loading failed");
    wait_until("it is told", || drop_in.log().lines().any(is_told));
    let is_told = |line: &str| line.contains("] ERROR ") && line.contains("pool_mode");
    assert!(drop_in.log().lines().any(is_told), "{}", drop_in.log());
});

drop_in!(server_behind_a_unix_socket_is_named_by_its_port, |brand| {
    // Another pooler, as its socket is one that everybody may use.
    let server = DropIn::start(Brand::Ringbouncer(1), database(), "");
    let (name, port) = (&server.database.name, server.address.port());
    let directory = server.path("");
    let more = format!(
        "[databases]\nlocal = host={} port={port} dbname={name}",
        directory.display()
    );
    let drop_in = DropIn::start(brand, database(), &more);
    Client::login(drop_in.address, "local").value("select 1");
    let text = "new connection to server";
    let line = server_says(&drop_in, "local", &format!("unix:{port}"), text);
    assert!(line.ends_with(text), "{line}");
});

/// A certificate and its key as `crt` and `key` in a directory, for whomever the pooler runs as.
fn readable(shown: &Signed) -> TempDir {
    let files = open_directory();
    for (from, name) in [(&shown.certificate, "crt"), (&shown.key, "key")] {
        let to = files.path().join(name);
        fs::copy(from, &to).unwrap();
        fs::set_permissions(&to, fs::Permissions::from_mode(0o644)).unwrap();
    }
    files
}

drop_in!(tls_settings_are_made_one_after_the_other, |brand| {
    const KEPT: &str = "TLS settings could not be applied, still using old configuration";
    let files = readable(&Authority::new("authority of SET").sign());
    let drop_in = DropIn::start(brand, database(), "");
    let mut console = Client::login(drop_in.address, "pgbouncer");
    let path = |name: &str| files.path().join(name).display().to_string();
    let settings = [
        ("client_tls_sslmode", "require".to_owned(), true),
        ("client_tls_key_file", path("key"), true),
        ("client_tls_cert_file", path("crt"), false),
    ];
    for (name, value, is_early) in settings {
        client(&drop_in).value("select 'in clear text'");
        let reply = console.query(&format!("SET {name} = '{value}'"));
        let notices: &[&str] = if is_early { &[KEPT] } else { &[] };
        assert_eq!(reply.notices, notices, "{name}: {reply:?}");
        assert_eq!(reply.complete, [format!("SET {name}={value}")]);
        let table = console.query("SHOW CONFIG").table();
        let row = table.iter().find(|row| row["key"] == name).unwrap();
        assert_eq!(row["value"], value);
    }
    let params = [("user", "postgres"), ("database", &*drop_in.database.name)];
    let reply = Client::connect(drop_in.address).start(PROTOCOL_3_0, &params);
    reply.assert_fatal("SSL required");
});

drop_in!(encrypted_client_is_said_to_be, |brand| {
    let authority = Authority::new("authority of the log");
    let files = readable(&authority.sign());
    let more = format!(
        "client_tls_sslmode = allow\nclient_tls_cert_file = {0}/crt\nclient_tls_key_file = {0}/key",
        files.path().display()
    );
    let drop_in = DropIn::start(brand, database(), &more);
    let mut client = Client::connect(drop_in.address);
    let config = Arc::new(authority.client_config(None));
    client.request_tls(config).expect("a handshake");
    let name = drop_in.database.name.clone();
    let params = [("user", "postgres"), ("database", &*name)];
    assert_eq!(client.start(PROTOCOL_3_0, &params).status, b'I');
    let line = line_with(&drop_in, "login attempt: ");
    let how = line.rsplit_once(" tls=").expect("tls=").1;
    assert!(how.starts_with("TLSv1.3/TLS_"), "{line}");
});

// ---- when ---------------------------------------------------------------------------------------

drop_in!(lines_have_the_local_time, |brand| {
    let hour = || {
        let since = std::time::UNIX_EPOCH.elapsed().unwrap();
        format!("{:02}", (since.as_secs() / 3600 + 3) % 24)
    };
    let before = hour();
    // Three hours east of Greenwich.
    let drop_in = DropIn::start_with(brand, database(), "", |command| {
        command.env("TZ", "XYZ-3");
    });
    let line = line_with(&drop_in, "process up: ");
    let zone = format!(" XYZ [{}] LOG process up: ", drop_in.pid());
    assert_eq!(line.find(&zone), Some(23), "{line}");
    assert!(
        [before, hour()].iter().any(|hour| line[11..13] == *hour),
        "{line}"
    );
});
