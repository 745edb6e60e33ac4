//! The first packets of a connection: versions, encryption requests, refusals.

use crate::support::wire::*;
use crate::support::*;

const V2: u32 = 0x0002_0000;
const PROTOCOL_3_9: u32 = 0x0003_0009;
const PROTOCOL_4_0: u32 = 0x0004_0000;

fn params(stage: &Stage) -> [(&str, &str); 2] {
    [("user", "postgres"), ("database", &stage.entry)]
}

/// Sends raw bytes as the first ones and reads to the end.
fn first_bytes(stage: &Stage, bytes: &[u8]) -> peer::Reply {
    let mut client = Client::connect(stage.address());
    client.send_anyway(bytes);
    client.reply()
}

/// These first bytes are refused with a text, which is logged.
#[track_caller]
fn assert_refused(stage: &Stage, bytes: &[u8], text: &str) {
    let reply = first_bytes(stage, bytes);
    assert_eq!((reply.tags.as_str(), reply.code()), ("E", "08P01"));
    reply.assert_fatal(text);
    stage.wait_log(&format!("text={text:?}"));
}

/// What is said of a first packet that is none: its first eight bytes, or fewer if there are not so many.
fn bad_header(bytes: &[u8]) -> String {
    let hex = bytes.iter().take(8).map(|byte| format!("{byte:02x}"));
    format!("bad packet header: '{}'", hex.collect::<String>())
}

everywhere!(
    encryption_requests_are_declined_and_the_login_goes_on,
    |stage| {
        let mut client = Client::connect(stage.address());
        if !stage.is_direct() {
            // A PostgreSQL built with GSSAPI may say yes to this one.
            client.send(&gssenc_request());
            assert_eq!(client.read_byte(), b'N');
        }
        client.send(&ssl_request());
        assert_eq!(client.read_byte(), b'N');
        assert_eq!(client.start(PROTOCOL_3_0, &params(stage)).status, b'I');
        assert_eq!(client.value("select 1"), "1");
    }
);

everywhere!(
    bytes_sent_along_with_an_ssl_request_are_not_taken_as_plain_text,
    |stage| {
        let mut client = Client::connect(stage.address());
        let smuggled = [startup(PROTOCOL_3_0, &params(stage)), query("select 1")].concat();
        client.send(&[ssl_request(), smuggled].concat());
        client.finish_sending();
        let answer = client.read_to_end();
        let ok = authentication_ok();
        assert!(
            !answer.windows(ok.len()).any(|window| window == ok),
            "{answer:?}"
        );
    }
);

everywhere!(database_defaults_to_the_user, |stage| {
    let mut client = Client::connect(stage.address());
    let reply = client.start(PROTOCOL_3_0, &[("user", "postgres")]);
    if stage.is_direct() {
        assert_eq!(reply.status, b'I');
    } else {
        reply.assert_fatal("no such database: postgres");
    }
});

both_shards!(protocol_3_0_has_a_key_of_four_bytes, |shards| {
    let stage = Stage::pooled(Topology::new(shards));
    let mut client = Client::connect(stage.address());
    let reply = client.start(PROTOCOL_3_0, &params(&stage));
    assert_eq!((reply.tags.as_str(), client.key.1.len()), ("RKZ", 4));
});

both_shards!(protocol_3_2_has_a_longer_key, |shards| {
    let stage = Stage::pooled(Topology::new(shards));
    let mut client = Client::connect(stage.address());
    let reply = client.start(PROTOCOL_3_2, &params(&stage));
    assert_eq!(reply.tags, "RKZ");
    assert!(
        (5..=256).contains(&client.key.1.len()),
        "{} bytes",
        client.key.1.len()
    );
    assert_eq!(client.value("select 1"), "1");
});

both_shards!(newer_minor_version_is_negotiated_down, |shards| {
    let stage = Stage::pooled(Topology::new(shards));
    let mut client = Client::connect(stage.address());
    client.send(&startup(PROTOCOL_3_9, &params(&stage)));
    let answer = client.expect(b'v');
    assert_eq!((answer.u32_at(0), answer.u32_at(4)), (PROTOCOL_3_2, 0));
    assert_eq!(client.reply().status, b'I');
});

both_shards!(
    unknown_protocol_options_are_listed_and_the_login_goes_on,
    |shards| {
        let stage = Stage::pooled(Topology::new(shards));
        let mut client = Client::connect(stage.address());
        let options = [("_pq_.flying", "1"), ("_pq_.diving", "on")];
        client.send(&startup(
            PROTOCOL_3_0,
            &[&params(&stage)[..], &options].concat(),
        ));
        let answer = client.expect(b'v');
        assert_eq!((answer.u32_at(0), answer.u32_at(4)), (PROTOCOL_3_0, 2));
        assert_eq!(answer.strings(8)[..2], ["_pq_.flying", "_pq_.diving"]);
        assert_eq!(client.reply().status, b'I');
    }
);

both_shards!(protocol_2_is_refused, |shards| {
    let stage = Stage::pooled(Topology::new(shards));
    let packet = startup(V2, &params(&stage));
    assert_refused(&stage, &packet, "old V2 protocol not supported");
});

both_shards!(protocol_4_is_refused, |shards| {
    let stage = Stage::pooled(Topology::new(shards));
    let packet = startup(PROTOCOL_4_0, &params(&stage));
    assert_refused(&stage, &packet, &bad_header(&packet));
});

both_shards!(start_without_user_is_refused, |shards| {
    let stage = Stage::pooled(Topology::new(shards));
    let reply = first_bytes(
        &stage,
        &startup(PROTOCOL_3_0, &[("database", &stage.entry)]),
    );
    reply.assert_fatal("no username supplied");
});

both_shards!(start_without_terminator_is_refused, |shards| {
    let stage = Stage::pooled(Topology::new(shards));
    let mut packet = startup(PROTOCOL_3_0, &params(&stage));
    *packet.last_mut().unwrap() = b'x';
    let reply = first_bytes(&stage, &packet);
    reply.assert_fatal("invalid startup packet layout: expected terminator as last byte");
});

both_shards!(start_with_impossible_parameter_name_is_refused, |shards| {
    let stage = Stage::pooled(Topology::new(shards));
    let odd = [("work_mem; drop table t", "77MB")];
    let packet = startup(PROTOCOL_3_0, &[&params(&stage)[..], &odd].concat());
    first_bytes(&stage, &packet)
        .assert_fatal("unsupported startup parameter: work_mem; drop table t");
});

both_shards!(
    untracked_setting_of_the_start_up_packet_is_its_clients_alone,
    |shards| {
        let stage = Stage::pooled(Topology::new(shards).pool_size(1));
        let odd = [("work_mem", "77MB")];
        let mut with = Client::login_with(stage.address(), &[&params(&stage)[..], &odd].concat());
        let mut without = stage.client();
        for _ in 0..3 {
            assert_eq!(with.value("show work_mem"), "77MB");
            assert_ne!(without.value("show work_mem"), "77MB");
        }
    }
);

both_shards!(ignored_start_up_parameter_is_dropped, |shards| {
    let topology = Topology::new(shards).set(
        "ignore_startup_parameters",
        vec!["work_mem", "extra_float_digits"],
    );
    let stage = Stage::pooled(topology);
    let odd = [("work_mem", "77MB")];
    let mut client = Client::login_with(stage.address(), &[&params(&stage)[..], &odd].concat());
    assert_ne!(client.value("show work_mem"), "77MB");
});

both_shards!(lying_start_up_lengths_end_the_connection, |shards| {
    let stage = Stage::pooled(Topology::new(shards).set("client_login_timeout", "60s"));
    for length in [
        0_u32,
        1,
        4,
        7,
        70_000,
        0x7fff_ffff,
        0x8000_0000,
        0xffff_ffff,
    ] {
        let packet = [&length.to_be_bytes()[..], &PROTOCOL_3_0.to_be_bytes()].concat();
        assert_refused(&stage, &packet, &bad_header(&packet));
    }
    // Nothing but a version.
    let packet = [&8_u32.to_be_bytes()[..], &PROTOCOL_3_0.to_be_bytes()].concat();
    let text = "invalid startup packet layout: expected terminator as last byte";
    assert_refused(&stage, &packet, text);
    stage.assert_no_leak();
});

/// A start-up packet of exactly so many bytes, its length word included.
fn start_of(stage: &Stage, bytes: usize) -> Vec<u8> {
    let padded = |padding: usize| {
        let padding = "x".repeat(padding);
        let odd = [("padding", padding.as_str())];
        startup(PROTOCOL_3_0, &[&params(stage)[..], &odd].concat())
    };
    let packet = padded(bytes - padded(0).len());
    assert_eq!(packet.len(), bytes);
    packet
}

both_shards!(
    longest_start_up_packet_is_accepted_and_no_longer_one,
    |shards| {
        let topology = Topology::new(shards);
        let stage = Stage::pooled(topology.set("ignore_startup_parameters", vec!["padding"]));
        for bytes in [65_534, 65_535] {
            let mut client = Client::connect(stage.address());
            let reply = client.exchange(&start_of(&stage, bytes));
            assert_eq!(reply.status, b'I', "{bytes}: {reply:?}");
            assert_eq!(client.value("select 'in'"), "in");
        }
        let packet = start_of(&stage, 65_536);
        // The length alone decides; the rest of the packet is not waited for.
        let (head, rest) = packet.split_at(8);
        assert_refused(&stage, head, &bad_header(head));
        assert!(!rest.is_empty());
    }
);

both_shards!(garbage_ends_the_connection, |shards| {
    let stage = Stage::pooled(Topology::new(shards).set("client_login_timeout", "60s"));
    let lies: [&[u8]; 4] = [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        &[0xff; 600],
        b"Q\0\0\0\x0dselect 1\0",
        &[0; 64],
    ];
    for bytes in lies {
        assert_refused(&stage, bytes, &bad_header(bytes));
    }
    stage.assert_no_leak();
});

both_shards!(
    every_truncated_start_up_packet_ends_without_harm,
    |shards| {
        let stage = Stage::pooled(Topology::new(shards));
        let packet = startup(PROTOCOL_3_0, &params(&stage));
        for length in 0..packet.len() {
            let mut client = Client::connect(stage.address());
            client.send(&packet[..length]);
            client.finish_sending();
            client.read_to_end();
        }
        stage.assert_no_leak();
    }
);

both_shards!(
    silent_client_is_sent_away_after_the_login_timeout,
    |shards| {
        let stage = Stage::pooled(Topology::new(shards).set("client_login_timeout", "1s"));
        let mut silent = Client::connect(stage.address());
        let mut half = Client::connect(stage.address());
        half.send(&startup(PROTOCOL_3_0, &params(&stage))[..20]);
        for client in [&mut silent, &mut half] {
            let reply = client.reply();
            assert!(reply.closed, "{reply:?}");
            assert!(
                reply.error.is_none() || reply.text().contains("client_login_timeout"),
                "{reply:?}"
            );
        }
    }
);

both_shards!(unix_socket_leads_to_the_same_pools, |shards| {
    let stage = Stage::pooled(Topology::new(shards).pool_size(1));
    let path = stage.unix.clone().expect("unix= in the ready line");
    let mut client = Client::connect_unix(&path);
    assert_eq!(client.start(PROTOCOL_3_0, &params(&stage)).status, b'I');
    let pid = client.value("select pg_backend_pid()");
    assert_eq!(stage.client().value("select pg_backend_pid()"), pid);
});

both_shards!(postgres_is_reached_through_its_unix_socket, |shards| {
    let database = Postgres::shared().database();
    let directory = database.postgres.socket_dir().to_str().unwrap().to_owned();
    let stage = Stage::on(database, Topology::new(shards), &[("host", &directory)]);
    assert_eq!(
        stage.client().value("select inet_client_addr() is null"),
        "t"
    );
});

compared!(
    names_that_are_too_long_are_refused,
    since(1, 18),
    |subject| {
        let start = |user: &str, database: &str| {
            let params = [("user", user), ("database", database)];
            Client::connect(subject.address()).start(PROTOCOL_3_0, &params)
        };
        let name = |bytes: usize| "n".repeat(bytes);
        let entry = subject.entry(0);
        for bytes in [128, 200] {
            start(&name(bytes), entry).assert_fatal("username too long");
        }
        let unknown = start(&name(127), entry);
        unknown.assert_fatal("\"trust\" authentication failed");
        for bytes in [63, 64, 200] {
            let text = format!("no such database: {}", name(bytes.min(50)));
            let refused = start("postgres", &name(bytes));
            assert!(refused.fatal().text.starts_with(&text), "{refused:?}");
        }
    }
);
