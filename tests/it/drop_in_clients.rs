//! Who gets in by which secret, whom a cancel request finds, and what the log calls them. Each claim holds for PgBouncer, too.

use std::fs;
use std::net::{Ipv6Addr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::drop_in::*;
use crate::support::peer::{Conversation, Reply, cancel};
use crate::support::wire::*;
use crate::support::*;

const PASSWORD: &str = "sesame";

fn database() -> Database {
    Postgres::shared().database()
}

/// A pooler with these lines in `[pgbouncer]` and these users, and an entry `main` that is `postgres` to everybody.
#[track_caller]
fn start(brand: Brand, lines: &str, users: &[(&str, &str)]) -> DropIn {
    let database = database();
    let main = entry("main", &database, "user=postgres");
    DropIn::start_knowing(
        brand,
        database,
        &format!("{lines}\n[databases]\n{main}"),
        users,
    )
}

/// Who one is for the server, or what one is told.
fn login(drop_in: &DropIn, user: &str, password: &str, entry: &str) -> Result<String, String> {
    let outcome = driver::try_login(drop_in.address, user, password, entry);
    outcome.map_err(|(_, text)| text)
}

// ---- secrets -----------------------------------------------------------------------------------------------------

drop_in!(
    user_whose_line_is_gone_is_trusted_by_pgbouncer_only,
    |brand| {
        let drop_in = start(brand, "", &[("postgres", ""), ("ann", "")]);
        assert_eq!(drop_in.enter("ann", "main").status, b'I');
        fs::write(drop_in.path("userlist.txt"), "\"postgres\" \"\"\n").unwrap();
        assert_eq!(drop_in.console("RELOAD").complete, ["RELOAD"]);
        let reply = drop_in.enter("ann", "main");
        match brand {
            Brand::PgBouncer => assert_eq!(reply.status, b'I', "{reply:?}"),
            Brand::Ringbouncer(_) => reply.assert_fatal("\"trust\" authentication failed"),
        }
    }
);

drop_in!(
    star_may_stand_for_the_database_to_ask,
    since(1, 19),
    |brand| {
        let (database, asked) = (database(), self::database());
        let (address, name) = (database.postgres.address(), &asked.name);
        let lines = format!(
            "auth_type = plain\nauth_user = postgres\nauth_dbname = {name}\n\
         auth_query = select $1::text, current_database()::text\n[databases]\n{}* = host={} port={}\n",
            entry("main", &database, "user=postgres"),
            address.ip(),
            address.port()
        );
        let drop_in = DropIn::start_knowing(brand, database, &lines, &[("postgres", "")]);
        assert_eq!(login(&drop_in, "ann", name, "main"), Ok("postgres".into()));
    }
);

drop_in!(error_of_the_query_is_logged, since(1, 20), |brand| {
    let lines = "auth_type = plain\nauth_user = postgres\n\
                 auth_query = select $1::text, no_such_column::text";
    let drop_in = start(brand, lines, &[("postgres", "")]);
    assert_eq!(
        login(&drop_in, "ann", PASSWORD, "main"),
        Err("bouncer config error".into())
    );
    let said = "column \"no_such_column\" does not exist";
    wait_until("it is logged", || drop_in.log().contains(said));
});

drop_in!(nobody_is_asked_where_pam_decides, |brand| {
    let database = database();
    database.sql("create sequence asked");
    let main = entry("main", &database, "user=postgres");
    let lines = format!(
        "auth_type = pam\nauth_user = postgres\n\
         auth_query = select $1::text, nextval('asked')::text\n[databases]\n{main}"
    );
    let drop_in = DropIn::start_knowing(brand, database, &lines, &[("postgres", "")]);
    assert!(login(&drop_in, "nobody_at_all", "1", "main").is_err());
    let is_asked = drop_in.database.sql("select is_called from asked").value();
    assert_eq!(is_asked, "f");
});

/// What the first message of SCRAM from this user is answered with.
fn challenge(drop_in: &DropIn, user: &str, first: &str) -> (Client, Message) {
    let mut client = Client::connect(drop_in.address);
    client.send(&startup(
        PROTOCOL_3_0,
        &[("user", user), ("database", "main")],
    ));
    client.expect(b'R');
    client.send(&scram::initial(first));
    let message = client.read();
    (client, message)
}

const SCRAM: &str = "auth_type = scram-sha-256";
const BARE: &str = "n=,r=abcdefghijklmnop";

/// The outcome of a login with a password, with this header of GS2 and its base64.
fn log_in_by_scram(drop_in: &DropIn, header: &str, encoded: &str, password: &str) -> Reply {
    let (mut client, message) = challenge(drop_in, "ann", &format!("{header}{BARE}"));
    assert_eq!(message.tag, b'R', "{message:?}");
    let server_first = scram::server_first(&message.body);
    let nonce = server_first.split(',').next().unwrap();
    let without_proof = format!("c={encoded},{nonce}");
    let signed = format!("{BARE},{server_first},{without_proof}");
    let proof = scram::proof(password, &server_first, &signed);
    client.exchange(&scram::message_p(&format!("{without_proof},p={proof}")))
}

drop_in!(client_may_know_of_channel_binding_and_not_use_it, |brand| {
    let drop_in = start(brand, SCRAM, &[("ann", PASSWORD)]);
    for (header, encoded) in [("n,,", "biws"), ("y,,", "eSws")] {
        let reply = log_in_by_scram(&drop_in, header, encoded, PASSWORD);
        assert_eq!(reply.status, b'I', "{header}: {reply:?}");
    }
    for header in ["p=tls-server-end-point,,", "n,a=admin,"] {
        let (mut client, refusal) = challenge(&drop_in, "ann", &format!("{header}{BARE}"));
        assert_eq!(refusal.tag, b'E', "{header}");
        assert_eq!(refusal.failure().severity, "FATAL", "{header}");
        client.expect_closed();
    }
});

drop_in!(salt_of_nobody_is_always_the_same, |brand| {
    let drop_in = start(brand, SCRAM, &[("ann", PASSWORD)]);
    let salt = |user: &str| {
        let (_, message) = challenge(&drop_in, user, &format!("n,,{BARE}"));
        assert_eq!(message.tag, b'R', "{user}: {message:?}");
        let first = scram::server_first(&message.body);
        let salt = first.split(',').find(|part| part.starts_with("s="));
        salt.unwrap().to_owned()
    };
    assert_eq!(salt("nobody_at_all"), salt("nobody_at_all"));
    // Old ones make a new one up each time.
    if !brand.is_before((1, 25)) {
        assert_eq!(salt("ann"), salt("ann"));
    }
    assert_ne!(salt("nobody_at_all"), salt("nobody_else"));
});

drop_in!(password_is_prepared_before_it_is_hashed, |brand| {
    // RFC 4013, section 3: a soft hyphen is nothing, a feminine ordinal indicator is an `a`.
    let drop_in = start(brand, SCRAM, &[("ann", "I\u{ad}X\u{aa}")]);
    let reply = log_in_by_scram(&drop_in, "n,,", "biws", "IXa");
    assert_eq!(reply.status, b'I', "{reply:?}");
});

drop_in!(password_may_be_very_long, since(1, 26), |brand| {
    let password = "p".repeat(65_530);
    let drop_in = start(brand, "auth_type = plain", &[("ann", &password)]);
    assert_eq!(
        login(&drop_in, "ann", &password, "main"),
        Ok("postgres".into())
    );
    let wrong = password.replace("pp", "pq");
    assert_eq!(
        login(&drop_in, "ann", &wrong, "main"),
        Err("password authentication failed".into())
    );
});

// ---- rules -------------------------------------------------------------------------------------------------------

drop_in!(rule_may_name_databases_by_a_file_and_no_groups, |brand| {
    let refusal = match brand.is_before((1, 20)) {
        true => "login rejected",
        false => "no authentication method is found",
    };
    for (rules, at_main, at_other) in [
        ("host @names all 127.0.0.1/32 trust\n", "", refusal),
        ("host all +ann 127.0.0.1/32 trust\n", refusal, refusal),
        (
            "host all +ann 127.0.0.1/32 reject\nhost all all 127.0.0.1/32 trust\n",
            "",
            "",
        ),
    ] {
        let files = open_directory();
        fs::write(files.path().join("names"), "none\n\"main\"\n").unwrap();
        fs::write(files.path().join("hba"), rules).unwrap();
        let database = database();
        let entries = ["main", "other"].map(|name| entry(name, &database, "user=postgres"));
        let lines = format!(
            "auth_type = hba\nauth_hba_file = {}\n[databases]\n{}",
            files.path().join("hba").display(),
            entries.concat()
        );
        let drop_in = DropIn::start_knowing(brand, database, &lines, &[("ann", PASSWORD)]);
        for (entry, told) in [("main", at_main), ("other", at_other)] {
            let reply = drop_in.enter("ann", entry);
            assert_eq!(reply.text(), told, "{rules} {entry}");
            assert_eq!(reply.closed, !told.is_empty());
        }
    }
});

// ---- cancel ------------------------------------------------------------------------------------------------------

/// A pooler whose entry `fake` leads to this server.
fn start_before(brand: Brand, server: &FakeServer, lines: &str) -> DropIn {
    let (ip, port) = (server.address.ip(), server.address.port());
    let lines =
        format!("pool_mode = transaction\n{lines}\n[databases]\nfake = host={ip} port={port}");
    DropIn::start(brand, database(), &lines)
}

drop_in!(
    cancel_request_spares_the_settings_of_the_pooler,
    since(1, 24),
    |brand| {
        let [is_asked, may_answer] = [(); 2].map(|()| Arc::new(AtomicBool::new(false)));
        let (asked, answer) = (is_asked.clone(), may_answer.clone());
        let server = FakeServer::start(move |mut server| {
            if !server.login() {
                return;
            }
            while let Some(asked_for) = server.read() {
                // We make settings by the extended protocol.
                let made = match (asked_for.tag, asked_for.body.starts_with(b"SET ")) {
                    (b'Q', true) => complete("SET"),
                    (b'S', _) => {
                        let settled = [message(b'1', b""), message(b'2', b""), one_value("shop")];
                        [settled.concat(), complete("SELECT 1")].concat()
                    }
                    (b'Q', false) => {
                        server.send(&Conversation::one_row("served"));
                        continue;
                    }
                    _ => continue,
                };
                asked.store(true, Ordering::Release);
                server.stall_until(&answer);
                server.send(&[made, ready(b'I')].concat());
            }
        });
        let drop_in = start_before(brand, &server, "");
        let params = [
            ("user", "postgres"),
            ("database", "fake"),
            ("application_name", "shop"),
        ];
        let mut client = Client::login_with(drop_in.address, &params);
        client.send(&query("select 'from fake'"));
        wait_until("the settings are being made", || {
            is_asked.load(Ordering::Acquire)
        });
        let connections = server.connections();
        cancel(drop_in.address, &client.key);
        may_answer.store(true, Ordering::Release);
        assert_eq!(client.reply().value(), "served");
        assert_eq!(server.connections(), connections);
    }
);

drop_in!(
    cancel_request_that_waits_too_long_is_dropped,
    since(1, 19),
    |brand| {
        let is_over = Arc::new(AtomicBool::new(false));
        let over = is_over.clone();
        // Answers no query and deals with no cancel request.
        let server = FakeServer::start(move |mut server| {
            if server.login() {
                server.next_request();
            }
            server.stall_until(&over);
        });
        let lines = "default_pool_size = 1\ncancel_wait_timeout = 1";
        let drop_in = start_before(brand, &server, lines);
        let mut client = Client::login(drop_in.address, "fake");
        client.send(&query("select 1"));
        wait_until("it is served", || drop_in.pools("fake", "sv_active") == 1);
        let request = || {
            let mut request = Client::connect(drop_in.address);
            request.send(&cancel_request(client.key.0, &client.key.1));
            request
        };
        let begin = Instant::now();
        let _first = request();
        wait_until("the server has the first", || server.connections() == 2);
        request().expect_closed();
        let taken = begin.elapsed();
        assert!(taken >= Duration::from_millis(600), "{taken:?}");
        assert!(client.has_nothing_to_read());
        is_over.store(true, Ordering::Release);
    }
);

/// Two poolers of one brand that are each other's peers, 1 and 2, before a database each.
fn start_peers(brand: Brand) -> [DropIn; 2] {
    let ports = [1, 2].map(|id: u16| (id, free_port()));
    let lines = ports.map(|(id, port)| format!("{id} = host=127.0.0.1 port={port}\n"));
    ports.map(|(id, port)| {
        let own = format!(
            "listen_port = {port}\npeer_id = {id}\n[peers]\n{}",
            lines.concat()
        );
        let mut pooler = DropIn::start(brand, database(), &own);
        pooler.address.set_port(port);
        pooler
    })
}

drop_in!(
    key_tells_the_peer_and_how_far_requests_go,
    since(1, 21),
    |brand| {
        let [first, second] = start_peers(brand);
        for (id, pooler) in [(1, &first), (2, &second)] {
            let client = pooler.client();
            let [top, low, high, _] = client.key.0.to_be_bytes();
            assert_eq!((top & 0x80, low, high), (0, id, 0));
            assert_eq!(client.key.1[3] & 3, 3);
        }
        let mut client = first.client();
        client.send(&query("select pg_sleep(600)"));
        let asleep = "query = 'select pg_sleep(600)' and state = 'active'";
        first.database.wait_backends(1, asleep);
        let (pid, secret) = client.key.clone();
        let mut exhausted = secret.clone();
        exhausted[3] &= !3;
        cancel(second.address, &(pid, exhausted));
        assert_eq!(first.database.backends(asleep), 1);
        cancel(second.address, &(pid, secret));
        assert_eq!(client.reply().code(), "57014");
        let table = second.console("SHOW PEER_POOLS").table();
        let column = match brand {
            Brand::PgBouncer if brand.is_before((1, 23)) => "database",
            _ => "peer_id",
        };
        assert!(table.iter().any(|row| row[column] == "1"), "{table:?}");
        let is_named = second.log().contains(": peer-1@127.0.0.1:");
        assert_eq!(
            is_named,
            matches!(brand, Brand::PgBouncer),
            "{}",
            second.log()
        );
    }
);

// ---- names -------------------------------------------------------------------------------------------------------

drop_in!(what_has_no_name_and_portals_are_passed_on, |brand| {
    let lines = "pool_mode = transaction\ndefault_pool_size = 1";
    let drop_in = DropIn::start(brand, database(), lines);
    let mut client = drop_in.client();
    let both = [parse("", "select 'unnamed'"), run_prepared("", &[]), sync()].concat();
    assert_eq!(client.exchange(&both).value(), "unnamed");
    assert_eq!(client.query("begin").status, b'T');
    let open = [
        parse("", "select generate_series(1, 3)::text"),
        bind("cursor", "", &[]),
        execute("cursor", 1),
        sync(),
    ];
    let reply = client.exchange(&open.concat());
    assert_eq!(
        (reply.tags.as_str(), reply.value().as_str()),
        ("12DsZ", "1")
    );
    assert_eq!(client.value("select name from pg_cursors"), "cursor");
    let reply = client.exchange(&[execute("cursor", 0), sync()].concat());
    assert_eq!((reply.tags.as_str(), reply.value().as_str()), ("DDCZ", "2"));
    let reply = client.exchange(&[close(b'P', "cursor"), sync()].concat());
    assert_eq!(reply.tags, "3Z");
    let reply = client.exchange(&[execute("cursor", 0), sync()].concat());
    assert_eq!(reply.code(), "34000");
});

drop_in!(name_in_use_is_told_to_the_log, since(1, 21), |brand| {
    let lines = "pool_mode = transaction\nmax_prepared_statements = 10";
    let drop_in = DropIn::start(brand, database(), lines);
    let mut client = drop_in.client();
    let prepare = [parse("s", "select 1"), sync()].concat();
    client.exchange(&prepare);
    client.exchange(&prepare).fatal();
    let log = drop_in.log();
    let told = "pooler error: prepared statement name is already in use";
    assert!(log.contains(told), "{log}");
    let is_named = log.contains("prepared statement 's' was already prepared");
    assert_eq!(is_named, matches!(brand, Brand::PgBouncer), "{log}");
});

// ---- the log -----------------------------------------------------------------------------------------------------

drop_in!(address_of_version_6_stands_in_brackets, |brand| {
    if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_err() {
        eprintln!("no IPv6: nothing is compared");
        return;
    }
    let drop_in = DropIn::start(brand, database(), "listen_addr = 127.0.0.1,::1");
    let address = (Ipv6Addr::LOCALHOST, drop_in.address.port()).into();
    let client = Client::login(address, &drop_in.database.name);
    let line = line_with(&drop_in, "login attempt: ");
    let place = format!(
        "{}/postgres@{} ",
        drop_in.database.name,
        client.local_addr()
    );
    assert!(prefix(&line, 'C').starts_with(&place), "{line}");
});
