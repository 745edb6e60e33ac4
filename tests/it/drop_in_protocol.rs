//! The wire as PgBouncer's clients know it: the first packet, parameters, cancel requests, COPY, oversize and broken
//! messages. Each claim holds for PgBouncer, too.

use std::fs;
use std::path::Path;

use crate::support::drop_in::*;
use crate::support::peer::Reply;
use crate::support::wire::*;
use crate::support::*;

const V2: u32 = 0x0002_0000;

#[track_caller]
fn start(brand: Brand, lines: &str) -> DropIn {
    DropIn::start(brand, Postgres::shared().database(), lines)
}

/// Logs in with these parameters beside user and database.
fn start_up(drop_in: &DropIn, more: &[(&str, &str)]) -> (Client, Reply) {
    let own = [("user", "postgres"), ("database", &*drop_in.database.name)];
    let mut client = Client::connect(drop_in.address);
    let reply = client.start(PROTOCOL_3_0, &[&own[..], more].concat());
    (client, reply)
}

/// These first bytes end in this FATAL error.
#[track_caller]
fn assert_refused(drop_in: &DropIn, bytes: &[u8], text: &str) {
    let mut client = Client::connect(drop_in.address);
    client.send(bytes);
    let reply = client.reply();
    assert_eq!(
        (reply.tags.as_str(), reply.code()),
        ("E", "08P01"),
        "{bytes:?}"
    );
    reply.assert_fatal(text);
}

// ---- the first packet --------------------------------------------------------------------------------------------

drop_in!(first_packet_that_is_none_is_refused, |brand| {
    let drop_in = start(brand, "");
    let params = [("user", "postgres"), ("database", "x")];
    assert_refused(
        &drop_in,
        &startup(V2, &params),
        "old V2 protocol not supported",
    );
    let without_user = startup(PROTOCOL_3_0, &[("database", "x")]);
    assert_refused(&drop_in, &without_user, "no username supplied");
    for length in [0_u32, 7, 0x7fff_ffff, 0xffff_ffff] {
        let packet = [&length.to_be_bytes()[..], &PROTOCOL_3_0.to_be_bytes()].concat();
        let hex: String = packet.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_refused(&drop_in, &packet, &format!("bad packet header: '{hex}'"));
    }
    assert_eq!(drop_in.client().value("select 'alive'"), "alive");
});

drop_in!(database_is_the_user_if_none_is_named, |brand| {
    let database = Postgres::shared().database();
    let lines = format!("[databases]\n{}", entry("postgres", &database, ""));
    let drop_in = DropIn::start(brand, database, &lines);
    let mut client = Client::login_with(drop_in.address, &[("user", "postgres")]);
    assert_eq!(
        client.value("select current_database()"),
        drop_in.database.name
    );
    let mut stranger = Client::connect(drop_in.address);
    let reply = stranger.start(PROTOCOL_3_0, &[("user", "postgres"), ("database", "none")]);
    assert_eq!(reply.code(), "08P01");
    reply.assert_fatal("no such database: none");
});

drop_in!(encryption_is_declined_and_the_login_goes_on, |brand| {
    let drop_in = start(brand, "");
    let mut client = Client::connect(drop_in.address);
    for request in [gssenc_request(), ssl_request()] {
        client.send(&request);
        assert_eq!(client.read_byte(), b'N');
    }
    let params = [("user", "postgres"), ("database", &*drop_in.database.name)];
    assert_eq!(client.start(PROTOCOL_3_0, &params).status, b'I');
    assert_eq!(client.value("select 1"), "1");
});

drop_in!(greeting_has_the_servers_parameters_and_a_key, |brand| {
    let drop_in = start(brand, "");
    let (client, reply) = start_up(&drop_in, &[]);
    assert_eq!((reply.tags.as_str(), client.key.1.len()), ("RKZ", 4));
    let mut direct = drop_in.database.direct();
    for name in [
        "server_version",
        "server_encoding",
        "client_encoding",
        "DateStyle",
        "TimeZone",
        "integer_datetimes",
        "standard_conforming_strings",
    ] {
        assert_eq!(
            client.params[name],
            direct.value(&format!("show {name}")),
            "{name}"
        );
    }
});

drop_in!(packet_may_arrive_byte_by_byte, |brand| {
    let drop_in = start(brand, "");
    let params = [("user", "postgres"), ("database", &*drop_in.database.name)];
    let mut client = Client::connect(drop_in.address);
    match brand.is_before((1, 23)) {
        true => client.send(&startup(PROTOCOL_3_0, &params)),
        false => client.send_bytewise(&startup(PROTOCOL_3_0, &params)),
    }
    assert_eq!(client.reply().status, b'I');
    client.send_bytewise(&query("select 'slow'"));
    assert_eq!(client.reply().value(), "slow");
});

drop_in!(
    parameter_that_is_not_tracked_is_refused_or_ignored,
    |brand| {
        let drop_in = start(
            brand,
            "ignore_startup_parameters = extra_float_digits, geqo",
        );
        for (name, refused) in [
            ("work_mem", true),
            ("enable_seqscan", true),
            ("extra_float_digits", false),
            ("geqo", false),
            ("application_name", false),
        ] {
            let (_, reply) = start_up(&drop_in, &[(name, "1")]);
            match refused {
                true => {
                    assert_eq!(reply.code(), "08P01", "{name}");
                    reply.assert_fatal(&format!("unsupported startup parameter: {name}"));
                }
                false => assert_eq!(reply.status, b'I', "{name}: {reply:?}"),
            }
        }
        let (mut client, _) = start_up(&drop_in, &[("extra_float_digits", "3")]);
        assert_eq!(
            client.value("show extra_float_digits"),
            "1",
            "it is dropped"
        );
    }
);

drop_in!(options_are_ignored_if_they_are_to_be, |brand| {
    let drop_in = start(brand, "ignore_startup_parameters = options");
    let (mut client, reply) = start_up(&drop_in, &[("options", "-c geqo=off")]);
    assert_eq!(reply.status, b'I');
    assert_eq!(client.value("show geqo"), "on");
});

drop_in!(
    parameter_that_is_tracked_is_ignored_if_it_is_to_be,
    since(1, 26),
    |brand| {
        let more = "ignore_startup_parameters = TimeZone, search_path, application_name";
        let drop_in = start(brand, more);
        let ignored = [("TimeZone", "Asia/Tokyo"), ("search_path", "pg_catalog")];
        let (mut client, reply) = start_up(&drop_in, &ignored);
        assert_eq!(reply.status, b'I', "{reply:?}");
        assert_ne!(client.value("show timezone"), "Asia/Tokyo");
        assert_eq!(client.value("show search_path"), "\"$user\", public");
        let options = [("options", "-c TimeZone=Asia/Tokyo -c application_name=x")];
        let (mut client, reply) = start_up(&drop_in, &options);
        assert_eq!(reply.status, b'I', "{reply:?}");
        assert_ne!(client.value("show timezone"), "Asia/Tokyo");
        assert_eq!(client.value("show application_name"), "");
        // The name is taken nevertheless.
        let (mut client, _) = start_up(&drop_in, &[("application_name", "x")]);
        assert_eq!(client.value("show application_name"), "x");
    }
);

drop_in!(packet_has_its_terminator, since(1, 25), |brand| {
    let drop_in = start(brand, "");
    let mut packet = startup(PROTOCOL_3_0, &[("user", "postgres"), ("database", "x")]);
    *packet.last_mut().unwrap() = b'x';
    let text = "invalid startup packet layout: expected terminator as last byte";
    assert_refused(&drop_in, &packet, text);
});

drop_in!(packet_of_a_later_protocol_is_refused, |brand| {
    let drop_in = start(brand, "");
    for version in [0x0004_0000, 0x0005_0001] {
        let packet = startup(version, &[("user", "postgres"), ("database", "x")]);
        let hex: String = packet[..8]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_refused(&drop_in, &packet, &format!("bad packet header: '{hex}'"));
    }
});

drop_in!(packet_may_have_64_kb_less_one, since(1, 23), |brand| {
    let drop_in = start(brand, "ignore_startup_parameters = padding");
    let packet = |bytes: usize| {
        let padded = |padding: &str| {
            let own = [("user", "postgres"), ("database", &*drop_in.database.name)];
            startup(PROTOCOL_3_0, &[&own[..], &[("padding", padding)]].concat())
        };
        padded(&"x".repeat(bytes - padded("").len()))
    };
    for bytes in [5000, 65_535] {
        let mut client = Client::connect(drop_in.address);
        assert_eq!(client.exchange(&packet(bytes)).status, b'I', "{bytes}");
        assert_eq!(client.value("select 'in'"), "in");
    }
    // The length alone decides.
    let head = &packet(65_536)[..8];
    let hex: String = head.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_refused(&drop_in, head, &format!("bad packet header: '{hex}'"));
});

drop_in!(
    options_are_settings_and_nothing_else,
    since(1, 20),
    |brand| {
        let drop_in = start(brand, "pool_mode = transaction");
        let mut good = vec![
            ("-c TimeZone=Asia/Tokyo", "Asia/Tokyo"),
            ("-cTimeZone=Asia/Tokyo", "Asia/Tokyo"),
            ("-c timezone=UTC  -c TimeZone=Asia/Tokyo", "Asia/Tokyo"),
            ("-c TimeZone=Asia/T\\okyo", "Asia/Tokyo"),
        ];
        if !brand.is_before((1, 23)) {
            good.push(("--TimeZone=Asia/Tokyo", "Asia/Tokyo"));
        }
        for (options, zone) in good {
            let (mut client, reply) = start_up(&drop_in, &[("options", options)]);
            assert_eq!(reply.status, b'I', "{options}: {reply:?}");
            assert_eq!(client.value("show timezone"), zone, "{options}");
        }
        let (mut client, _) = start_up(&drop_in, &[("options", "-c application_name=a\\ b")]);
        assert_eq!(client.value("show application_name"), "a b");
        for (options, text) in [
            (
                "-c work_mem=77MB",
                "unsupported startup parameter in options: work_mem",
            ),
            (
                "-d 5",
                "unsupported options startup parameter: only '-c config=val'",
            ),
            (
                "TimeZone=UTC",
                "unsupported options startup parameter: only '-c config=val'",
            ),
        ] {
            let (_, reply) = start_up(&drop_in, &[("options", options)]);
            let told = &reply.fatal().text;
            assert!(told.starts_with(text), "{options}: {told}");
        }
    }
);

drop_in!(version_is_negotiated_once, since(1, 26), |brand| {
    // The packet is looked at again when the user has been looked up.
    const PROTOCOL_3_9: u32 = 0x0003_0009;
    let database = Postgres::shared().database();
    let lines = format!(
        "auth_user = postgres\nauth_query = select $1::text, null::text\n[databases]\n{}",
        entry("main", &database, "user=postgres")
    );
    let drop_in = DropIn::start(brand, database, &lines);
    let mut client = Client::connect(drop_in.address);
    let reply = client.start(PROTOCOL_3_9, &[("user", "ann"), ("database", "main")]);
    assert_eq!((&*reply.tags, reply.status), ("vRKZ", b'I'), "{reply:?}");
    assert_eq!(client.value("select 1"), "1");
});

// ---- parameters --------------------------------------------------------------------------------------------------

drop_in!(
    what_a_client_sets_does_not_reach_the_next_one,
    since(1, 26),
    |brand| {
        let drop_in = start(brand, "pool_mode = transaction\ndefault_pool_size = 1");
        let (mut one, mut two) = (drop_in.client(), drop_in.client());
        for (name, value, other) in [
            ("default_transaction_read_only", "on", "off"),
            ("IntervalStyle", "iso_8601", "postgres"),
            ("DateStyle", "German, DMY", "ISO, MDY"),
        ] {
            let reply = one.query(&format!("set {name} = {value}"));
            assert_eq!(reply.complete, ["SET"], "{reply:?}");
            for _ in 0..2 {
                assert_eq!(two.value(&format!("show {name}")), other);
                assert_eq!(one.value(&format!("show {name}")), value);
            }
        }
        assert_eq!(
            two.query("create table t (x int)").complete,
            ["CREATE TABLE"]
        );
        assert_eq!(one.query("create table u (x int)").code(), "25006");
    }
);

drop_in!(
    what_old_servers_do_not_report_holds_from_the_first_packet_on,
    since(1, 26),
    |brand| {
        let drop_in = start(brand, "pool_mode = transaction\ndefault_pool_size = 1");
        let table = [
            ("search_path", "pg_catalog"),
            ("default_transaction_read_only", "on"),
        ];
        let (mut with, reply) = start_up(&drop_in, &table);
        assert_eq!(reply.status, b'I', "{reply:?}");
        let mut without = drop_in.client();
        for _ in 0..2 {
            assert_eq!(with.value("show search_path"), "pg_catalog");
            assert_eq!(with.value("show default_transaction_read_only"), "on");
            assert_eq!(without.value("show search_path"), "\"$user\", public");
            assert_eq!(without.value("show default_transaction_read_only"), "off");
        }
    }
);

drop_in!(
    parameters_of_the_first_packet_hold_on_every_server,
    |brand| {
        let drop_in = start(brand, "pool_mode = transaction\ndefault_pool_size = 1");
        let table = [
            ("application_name", "o'neill \\ co"),
            ("TimeZone", "Europe/Vienna"),
            ("client_encoding", "LATIN1"),
            ("DateStyle", "German, DMY"),
            ("standard_conforming_strings", "off"),
        ];
        let (mut with, reply) = start_up(&drop_in, &table);
        assert_eq!(reply.status, b'I');
        let (mut without, _) = start_up(&drop_in, &[("application_name", "other")]);
        for _ in 0..2 {
            for (name, value) in table {
                assert_eq!(with.value(&format!("show {name}")), value);
                assert_ne!(without.value(&format!("show {name}")), value);
                assert_eq!(with.params[name], value);
            }
        }
    }
);

drop_in!(parameters_follow_their_client, |brand| {
    let drop_in = start(brand, "pool_mode = transaction\ndefault_pool_size = 1");
    let mut one = drop_in.client();
    let (mut two, _) = start_up(&drop_in, &[("application_name", "two")]);
    one.value("set application_name = 'one'");
    one.value("set timezone = 'Asia/Tokyo'");
    assert_eq!(one.params["application_name"], "one");
    for _ in 0..2 {
        assert_eq!(two.value("show application_name"), "two");
        assert_ne!(two.value("show timezone"), "Asia/Tokyo");
        assert_eq!(one.value("show application_name"), "one");
        assert_eq!(one.value("show timezone"), "Asia/Tokyo");
    }
});

drop_in!(setting_that_is_not_tracked_stays_with_its_server, |brand| {
    let drop_in = start(brand, "pool_mode = transaction\ndefault_pool_size = 1");
    let (mut one, mut two) = (drop_in.client(), drop_in.client());
    one.value("set work_mem = '77MB'");
    assert_eq!(two.value("show work_mem"), "77MB");
});

drop_in!(impossible_parameter_is_refused_and_harms_nobody, |brand| {
    let drop_in = start(brand, "pool_mode = transaction\ndefault_pool_size = 1");
    let (mut client, mut reply) = start_up(&drop_in, &[("TimeZone", "No/Where")]);
    if !reply.closed {
        reply = client.query("select 1");
    }
    assert_eq!(reply.code(), "08P01");
    reply.assert_fatal("invalid server parameter");
    assert_eq!(drop_in.client().value("select 'alive'"), "alive");
});

drop_in!(host_is_added_to_the_name_of_the_application, |brand| {
    let drop_in = start(brand, "application_name_add_host = 1");
    for (given, shown) in [
        (Some("shop"), "shop - 127.0.0.1:"),
        (None, "app - 127.0.0.1:"),
    ] {
        let params = given.map(|name| ("application_name", name));
        let (mut client, _) = start_up(&drop_in, params.as_slice());
        let name = client.value("show application_name");
        let port = name.strip_prefix(shown).unwrap_or_else(|| panic!("{name}"));
        assert!(port.parse::<u16>().is_ok(), "{name}");
    }
});

drop_in!(parameters_of_the_entry_are_the_servers_defaults, |brand| {
    let database = Postgres::shared().database();
    let keys =
        "client_encoding=LATIN1 datestyle=German timezone=Asia/Tokyo application_name=pooled";
    let lines = format!("[databases]\n{}", entry("set", &database, keys));
    let drop_in = DropIn::start(brand, database, &lines);
    let mut client = Client::login(drop_in.address, "set");
    assert_eq!(client.value("show client_encoding"), "LATIN1");
    assert_eq!(client.value("show datestyle"), "German, DMY");
    assert_eq!(client.value("show timezone"), "Asia/Tokyo");
});

// ---- cancel ------------------------------------------------------------------------------------------------------

/// Starts a long query and waits until PostgreSQL runs it.
#[track_caller]
fn start_long(drop_in: &DropIn, client: &mut Client, mark: &str) {
    client.send(&query(&format!("select pg_sleep(600) -- {mark}")));
    let running = format!("state = 'active' and query like '%-- {mark}'");
    drop_in.database.wait_backends(1, &running);
}

drop_in!(cancel_stops_the_running_query, |brand| {
    for mode in ["session", "transaction"] {
        let drop_in = start(brand, &format!("pool_mode = {mode}"));
        let mut client = drop_in.client();
        start_long(&drop_in, &mut client, "cancel me");
        peer::cancel(drop_in.address, &client.key);
        let reply = client.reply();
        assert_eq!((reply.code(), reply.status), ("57014", b'I'), "{mode}");
        assert_eq!(reply.text(), "canceling statement due to user request");
        assert_eq!(client.value("select 'alive'"), "alive");
    }
});

drop_in!(cancel_with_a_wrong_key_does_nothing, |brand| {
    let drop_in = start(brand, "");
    let mut client = drop_in.client();
    start_long(&drop_in, &mut client, "spare me");
    let (pid, secret) = client.key.clone();
    for wrong in [
        (pid, secret.iter().map(|byte| byte ^ 1).collect()),
        (pid ^ 1, secret.clone()),
        (0, vec![0; 4]),
    ] {
        peer::cancel(drop_in.address, &wrong);
    }
    drop_in
        .database
        .wait_backends(1, "state = 'active' and query like '%-- spare me'");
    assert!(client.has_nothing_to_read());
    peer::cancel(drop_in.address, &client.key);
    assert_eq!(client.reply().code(), "57014");
});

drop_in!(cancel_of_an_idle_client_does_nothing, |brand| {
    for mode in ["session", "transaction"] {
        let drop_in = start(brand, &format!("pool_mode = {mode}\ndefault_pool_size = 1"));
        let mut client = drop_in.client();
        client.value("select 1");
        for n in 0..5 {
            peer::cancel(drop_in.address, &client.key);
            assert_eq!(client.value(&format!("select {n}")), n.to_string());
        }
    }
});

drop_in!(cancel_of_a_client_in_line_spares_who_is_served, |brand| {
    let drop_in = start(brand, "pool_mode = transaction\ndefault_pool_size = 1");
    let (mut served, mut queued) = (drop_in.client(), drop_in.client());
    start_long(&drop_in, &mut served, "served");
    queued.send(&query("select 'queued'"));
    drop_in.wait_queued(1);
    peer::cancel(drop_in.address, &queued.key);
    drop_in
        .database
        .wait_backends(1, "state = 'active' and query like '%-- served'");
    assert!(served.has_nothing_to_read());
    peer::cancel(drop_in.address, &served.key);
    assert_eq!(served.reply().code(), "57014");
});

// ---- COPY --------------------------------------------------------------------------------------------------------

/// A pooler in transaction mode, one server, a client, and a table `t(n int)`.
fn with_table(brand: Brand) -> (DropIn, Client) {
    let drop_in = start(brand, "pool_mode = transaction\ndefault_pool_size = 1");
    drop_in.database.sql("create table t(n int)");
    let client = drop_in.client();
    (drop_in, client)
}

drop_in!(copy_stores_and_returns_rows, |brand| {
    let (drop_in, mut client) = with_table(brand);
    client.send(&query("copy t from stdin"));
    client.expect(b'G');
    let mut other = drop_in.client();
    other.send(&query("select count(*) from t"));
    drop_in.wait_queued(1);
    let reply = client.exchange(&[copy_data(b"1\n2"), copy_data(b"\n3\n"), copy_done()].concat());
    assert_eq!((reply.tags.as_str(), &*reply.complete[0]), ("CZ", "COPY 3"));
    assert_eq!(
        other.reply().value(),
        "3",
        "the server was held until the end"
    );
    let reply = client.query("copy t to stdout");
    assert_eq!(
        (reply.tags.as_str(), &*reply.complete[0]),
        ("HdddcCZ", "COPY 3")
    );
});

drop_in!(copy_in_that_its_client_fails_stores_nothing, |brand| {
    let (_drop_in, mut client) = with_table(brand);
    client.send(&query("copy t from stdin"));
    client.expect(b'G');
    let reply = client.exchange(&[copy_data(b"1\n"), copy_fail("changed my mind")].concat());
    assert_eq!(
        (reply.tags.as_str(), reply.code(), reply.status),
        ("EZ", "57014", b'I')
    );
    assert_eq!(reply.text(), "COPY from stdin failed: changed my mind");
    assert_eq!(client.value("select count(*) from t"), "0");
});

drop_in!(
    copy_in_that_the_server_fails_leaves_client_and_server_in_step,
    |brand| {
        // 1.24 never answers what follows; mended in 1.26.
        if brand.is_from((1, 24)) && brand.is_before((1, 26)) {
            return;
        }
        let (drop_in, mut client) = with_table(brand);
        client.send(&query("copy t from stdin"));
        client.expect(b'G');
        client.send(&copy_data(b"nonsense\n"));
        let reply = client.reply();
        assert_eq!(
            (reply.tags.as_str(), reply.code(), reply.status),
            ("EZ", "22P02", b'I')
        );
        // PostgreSQL drops what comes too late.
        client.send(&[copy_data(b"1\n"), copy_done()].concat());
        assert_eq!(client.value("select count(*) from t"), "0");
        assert_eq!(drop_in.client().value("select 'next'"), "next");
    }
);

drop_in!(copy_in_of_the_extended_protocol_ignores_sync, |brand| {
    let (drop_in, mut client) = with_table(brand);
    for (row, early) in [("1\n", flush()), ("2\n", sync())] {
        let batch = [parse("", "copy t from stdin"), run_prepared("", &[]), early];
        client.send(&batch.concat());
        for tag in *b"12G" {
            client.expect(tag);
        }
        let reply = client.exchange(&[copy_data(row.as_bytes()), copy_done(), sync()].concat());
        assert_eq!(reply.tags, "CZ");
    }
    assert_eq!(client.value("select sum(n) from t"), "3");
    let reply = client.exchange(&extended("copy t to stdout", &[]));
    assert_eq!(reply.tags, "12nHddcCZ");
    assert_eq!(drop_in.client().value("select 'next'"), "next");
});

drop_in!(
    late_copy_data_does_not_reach_the_next_client,
    since(1, 26),
    |brand| {
        let (drop_in, mut client) = with_table(brand);
        let mut other = drop_in.client();
        client.send(&query("copy t from stdin"));
        client.expect(b'G');
        assert_eq!(client.exchange(&copy_data(b"nonsense\n")).code(), "22P02");
        // Whether it has the server by now or later.
        other.send(&query("copy t from stdin"));
        let late = [copy_data(b"1\n"), copy_done(), query("select 'next'")];
        client.send(&late.concat());
        other.expect(b'G');
        let reply = other.exchange(&[copy_data(b"2\n"), copy_done()].concat());
        assert_eq!(reply.complete, ["COPY 1"]);
        assert_eq!(client.reply().value(), "next");
        assert_eq!(client.value("select sum(n) from t"), "2");
    }
);

// ---- broken and oversize messages --------------------------------------------------------------------------------

drop_in!(message_above_max_packet_size_is_refused, |brand| {
    let drop_in = start(brand, "max_packet_size = 10000");
    let mut client = drop_in.client();
    let fits = "x".repeat(9000);
    assert_eq!(client.value(&format!("select '{fits}'")), fits);
    let packet = query(&format!("select '{}'", "x".repeat(10_000)));
    client.send_anyway(&packet);
    let reply = client.reply();
    let hex: String = packet
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert_eq!(reply.code(), "08P01");
    let text = reply.fatal().text.clone();
    assert!(text.starts_with("bad packet header: '"), "{text}");
    assert!(text.contains(&hex[..10]), "{text}");
});

drop_in!(unknown_message_ends_the_connection, |brand| {
    let drop_in = start(brand, "");
    let mut client = drop_in.client();
    client.send(&message(b'!', b""));
    let reply = client.reply();
    assert_eq!(reply.code(), "08P01");
    reply.assert_fatal("unknown pkt");
    assert_eq!(drop_in.client().value("select 'alive'"), "alive");
});

drop_in!(simple_queries_can_be_disabled, |brand| {
    let drop_in = start(brand, "disable_pqexec = 1");
    let mut client = drop_in.client();
    assert_eq!(
        client.exchange(&extended("select 'extended'", &[])).value(),
        "extended"
    );
    client.send(&query("select 1"));
    let reply = client.reply();
    assert_eq!(reply.code(), "08P01");
    reply.assert_fatal("PQexec disallowed");
});

drop_in!(users_of_the_file_have_quotes_in_their_names, |brand| {
    let name = "o\"neill 'x'";
    let database = Postgres::shared().database();
    let lines = format!("[databases]\n{}", entry("main", &database, "user=postgres"));
    let drop_in = DropIn::start_with(brand, database, &lines, |command| {
        let ini = Path::new(command.get_args().last().unwrap());
        let users = "\"o\"\"neill 'x'\" \"\" ignored \"too\"\n";
        fs::write(ini.with_file_name("userlist.txt"), users).unwrap();
    });
    let params = [("user", name), ("database", "main")];
    let mut client = Client::login_with(drop_in.address, &params);
    assert_eq!(client.value("select current_user"), "postgres");
});

// ---- pipelines ---------------------------------------------------------------------------------------------------

drop_in!(answers_of_a_pipeline_come_in_order, |brand| {
    for mode in ["session", "transaction"] {
        let drop_in = start(brand, &format!("pool_mode = {mode}\ndefault_pool_size = 1"));
        let (mut one, mut two) = (drop_in.client(), drop_in.client());
        let batch: Vec<u8> = (0..200)
            .flat_map(|n| query(&format!("select {n}")))
            .collect();
        one.send(&batch);
        if mode == "transaction" {
            two.send(&batch);
        }
        for n in 0..200 {
            assert_eq!(one.reply().value(), n.to_string());
        }
        drop(one);
        if mode == "session" {
            two.send(&batch);
        }
        for n in 0..200 {
            assert_eq!(two.reply().value(), n.to_string());
        }
    }
});

drop_in!(error_in_a_pipeline_skips_to_its_sync, |brand| {
    let drop_in = start(brand, "pool_mode = transaction\ndefault_pool_size = 1");
    let mut client = drop_in.client();
    let broken = [parse("", "select 1/0"), run_prepared("", &[])].concat();
    let skipped = [parse("", "select 'skipped'"), run_prepared("", &[]), sync()].concat();
    client.send(&[broken, skipped, extended("select 'next'", &[])].concat());
    let reply = client.reply();
    assert_eq!((reply.tags.as_str(), reply.code()), ("1EZ", "22012"));
    assert_eq!(client.reply().value(), "next");
    assert_eq!(drop_in.client().value("select 'alive'"), "alive");
});

drop_in!(large_values_pass_both_ways, |brand| {
    let drop_in = start(brand, "pool_mode = transaction");
    let mut client = drop_in.client();
    let large = "x".repeat(3_000_000);
    assert_eq!(
        client
            .exchange(&extended("select $1::text", &[&large]))
            .value(),
        large
    );
    assert_eq!(client.value("select repeat('y', 5000000)").len(), 5_000_000);
});

drop_in!(key_of_a_client_that_has_gone_cancels_nothing, |brand| {
    let drop_in = start(brand, "pool_mode = transaction\ndefault_pool_size = 1");
    let mut gone = drop_in.client();
    gone.value("select 1");
    let key = gone.key.clone();
    drop(gone);
    let mut client = drop_in.client();
    start_long(&drop_in, &mut client, "spare me");
    peer::cancel(drop_in.address, &key);
    drop_in
        .database
        .wait_backends(1, "state = 'active' and query like '%-- spare me'");
    assert!(client.has_nothing_to_read());
    peer::cancel(drop_in.address, &client.key);
    assert_eq!(client.reply().code(), "57014");
});

drop_in!(
    cancel_of_a_client_that_has_finished_spares_the_next_one,
    |brand| {
        let drop_in = start(brand, "pool_mode = transaction\ndefault_pool_size = 1");
        let (mut first, mut second) = (drop_in.client(), drop_in.client());
        first.value("select 1");
        start_long(&drop_in, &mut second, "spare me");
        peer::cancel(drop_in.address, &first.key);
        drop_in
            .database
            .wait_backends(1, "state = 'active' and query like '%-- spare me'");
        assert!(second.has_nothing_to_read());
        peer::cancel(drop_in.address, &second.key);
        assert_eq!(second.reply().code(), "57014");
    }
);

drop_in!(notice_of_the_server_reaches_its_client, |brand| {
    let drop_in = start(brand, "pool_mode = transaction");
    let mut client = drop_in.client();
    let reply = client.query("do $$ begin raise notice 'look'; end $$");
    assert_eq!(
        (&*reply.notices, reply.status),
        (&["look".to_owned()][..], b'I')
    );
});
