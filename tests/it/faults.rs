//! Peers that lie, vanish and dawdle. After each of them nothing is left behind and the next client is served.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::peer::{Conversation, Reply};
use crate::support::ports::Deaf;
use crate::support::wire::*;
use crate::support::*;

const MIB: usize = 1 << 20;

/// A pooler with a good database and, as `fake`, a server that plays a script.
fn stage_with_fake(shards: usize, server: SocketAddr) -> Stage {
    let topology = Topology::new(shards)
        // A second server would play the beginning of its script to a client that is to see how it goes on.
        .pool_size(1)
        .set("query_wait_timeout", "8s")
        .set("server_login_retry", "100ms");
    Stage::pooled(topology.database_at("fake", server, &[]))
}

/// Logs in to `fake` and, if that works, asks for something; what came back last.
fn ask_fake(stage: &Stage) -> Reply {
    let mut client = Client::connect(stage.address());
    let reply = client.start(PROTOCOL_3_0, &[("user", "postgres"), ("database", "fake")]);
    if reply.status == b'I' {
        client.exchange(&query("select 'from fake'"))
    } else {
        reply
    }
}

#[track_caller]
fn assert_fake_is_quiet(stage: &Stage) {
    for column in ["cl_active", "cl_waiting", "sv_active"] {
        wait_until("the fake database has nothing active", || {
            stage.pools("fake", column) == 0
        });
    }
    stage.assert_no_leak();
}

/// A client that has logged in sends these bytes: it is sent away with this text, which is logged once, and nobody
/// else notices.
#[track_caller]
fn assert_sent_away(stage: &Stage, bytes: &[u8], text: &str) {
    let line = format!("text={text:?}");
    let logged = || stage.log().matches(&line).count();
    let before = logged();
    let mut client = stage.client();
    assert_eq!(client.value("select 1"), "1");
    client.send_anyway(bytes);
    let reply = client.reply();
    assert_eq!((reply.tags.as_str(), reply.code()), ("E", "08P01"));
    reply.assert_fatal(text);
    wait_until(&line, || logged() > before);
    assert_eq!(logged(), before + 1);
}

both_shards!(client_that_lies_about_a_length_is_sent_away, |shards| {
    let stage = Stage::pooled(Topology::new(shards));
    for length in [0, 1, 3, -1, i32::MIN] {
        for tag in *b"QPBEDCSHXdcfF" {
            let text = format!("bad packet header: '{tag:02x}{length:08x}'");
            assert_sent_away(&stage, &with_length(tag, b"select 1\0", length), &text);
        }
    }
    stage.assert_no_leak();
});

both_shards!(
    message_that_is_too_long_for_postgres_costs_no_server,
    |shards| {
        // Limits of PostgreSQL 14 and later, length word included: 10,000 bytes, and a little less than 1 GiB.
        let stage = Stage::pooled(Topology::new(shards).pool_size(1));
        let mut bystander = stage.client();
        let server = bystander.value("select pg_backend_pid()");
        let small = b"SHEcf".map(|tag| (tag, 10_001));
        let large = b"QPBDCFd".map(|tag| (tag, 0x3fff_ffff));
        let lies = b"QPBEDCSHdcfF".map(|tag| (tag, i32::MAX));
        for (tag, length) in small.into_iter().chain(large).chain(lies) {
            let mut client = stage.client();
            client.send_anyway(&with_length(tag, b"select 1\0", length));
            client
                .reply()
                .assert_fatal(&format!("bad packet header: '{tag:02x}{length:08x}'"));
            assert_eq!(bystander.value("select pg_backend_pid()"), server);
        }
        let portal = [b"P".to_vec(), vec![b'p'; 10_000], b"\0".to_vec()].concat();
        for tag in *b"DC" {
            let mut client = stage.client();
            client.send(&[message(tag, &portal), sync()].concat());
            let header = format!("bad packet header: '{tag:02x}00002716'");
            client.reply().assert_fatal(&header);
        }
        stage.wait_log("why=\"bad packet header: '5300002711'\"");
    }
);

both_shards!(client_that_sends_unknown_messages_is_sent_away, |shards| {
    let stage = Stage::pooled(Topology::new(shards));
    for tag in [0, b'y', b'R', b'Z', b'T', 0x16, 0xff, b'p'] {
        assert_sent_away(&stage, &message(tag, b"nonsense\0"), "unknown pkt");
    }
    stage.assert_no_leak();
});

both_shards!(malformed_messages_harm_nobody, |shards| {
    let stage = Stage::pooled(Topology::new(shards).pool_size(1));
    let bodies: [&[u8]; 5] = [
        b"",
        b"\0",
        b"no terminator",
        b"s\0\0\xff\xff",
        b"s\0s\0\0\x01\x7f\xff\xff\xff",
    ];
    let mut bystander = stage.client();
    for tag in *b"QPBEDCdf" {
        for body in bodies {
            let mut client = stage.client();
            client.send_anyway(&[message(tag, body), sync()].concat());
            client.finish_sending();
            client.read_to_end();
            assert_eq!(
                bystander.value("select 'unharmed'"),
                "unharmed",
                "{} {body:?}",
                tag as char
            );
        }
    }
    drop(bystander);
    stage.assert_no_leak();
});

both_shards!(every_truncated_message_ends_without_harm, |shards| {
    let stage = Stage::pooled(Topology::new(shards).pool_size(1));
    let request = [
        parse("s", "select $1::int"),
        run_prepared("s", &["1"]),
        sync(),
    ]
    .concat();
    for length in 0..request.len() {
        let mut client = stage.client();
        client.send(&request[..length]);
        drop(client);
    }
    stage.assert_no_leak();
});

/// A client that does something, then is gone: with a proper end, and with a reset.
fn vanish(shards: usize, act: fn(&mut Client)) {
    let stage = Stage::pooled(Topology::new(shards).pool_size(1));
    stage.database.sql("create table t(n int)");
    for reset in [false, true] {
        let mut client = stage.client();
        act(&mut client);
        if reset {
            client.reset()
        } else {
            drop(client)
        }
        stage.assert_no_leak();
    }
    assert_eq!(stage.client().value("select count(*) from t"), "0");
    assert!(stage.database.backends("true") <= 1);
}

both_shards!(client_may_vanish_while_idle, |shards| vanish(
    shards,
    |client| {
        client.value("select 1");
    }
));

both_shards!(client_may_vanish_in_a_transaction, |shards| vanish(
    shards,
    |client| {
        client.value("begin; insert into t values (1)");
    }
));

both_shards!(client_may_vanish_in_a_failed_transaction, |shards| vanish(
    shards,
    |client| {
        assert_eq!(
            client
                .query("begin; insert into t values (1); select 1/0")
                .code(),
            "22012"
        );
    }
));

both_shards!(client_may_vanish_in_the_middle_of_copy_in, |shards| vanish(
    shards,
    |client| {
        client.send(&query("copy t from stdin"));
        client.expect(b'G');
        client.send(&copy_data(b"1\n"));
    }
));

both_shards!(client_may_vanish_inside_a_copy_message, |shards| vanish(
    shards,
    |client| {
        client.send(&query("copy t from stdin"));
        client.expect(b'G');
        client.send(&with_length(b'd', b"1\n2\n", 1000));
    }
));

both_shards!(
    client_may_vanish_in_the_middle_of_copy_out,
    |shards| vanish(shards, |client| {
        client.send(&query(
            "copy (select generate_series(1, 5000000)) to stdout",
        ));
        client.expect(b'H');
        client.expect(b'd');
    })
);

both_shards!(client_may_vanish_with_a_result_half_sent, |shards| vanish(
    shards,
    |client| {
        client.send(&query(
            "select repeat('x', 100000) from generate_series(1, 2000)",
        ));
        client.expect(b'T');
        client.expect(b'D');
    }
));

both_shards!(client_may_vanish_in_the_middle_of_a_pipeline, |shards| {
    vanish(shards, |client| {
        let request = [
            parse("", "insert into t values (1)"),
            run_prepared("", &[]),
            flush(),
        ]
        .concat();
        client.send(&request);
        client.expect(b'1');
    })
});

both_shards!(client_may_vanish_in_the_middle_of_a_query_text, |shards| {
    vanish(shards, |client| {
        client.send(&with_length(b'Q', b"insert into t", 1_000_000));
    })
});

both_shards!(client_may_vanish_while_standing_in_line, |shards| {
    let stage = Stage::pooled(Topology::new(shards).pool_size(1));
    let mut holder = stage.client();
    holder.query("begin");
    let mut leaver = stage.client();
    leaver.send(&query("select 1"));
    wait_until("one waits", || stage.pools(&stage.entry, "cl_waiting") == 1);
    drop(leaver);
    wait_until("nobody waits", || {
        stage.pools(&stage.entry, "cl_waiting") == 0
    });
    assert_eq!(holder.query("commit").status, b'I');
    drop(holder);
    stage.assert_no_leak();
});

both_shards!(clients_that_vanish_during_login_leave_nothing, |shards| {
    let stage = Stage::pooled(
        Topology::new(shards)
            .set("auth_type", "plain")
            .user_secret("plain", "secret"),
    );
    let descriptors = stage.descriptors();
    for _ in 0..50 {
        Client::connect(stage.address()).reset();
        let mut client = Client::connect(stage.address());
        client.send(&startup(
            PROTOCOL_3_0,
            &[("user", "plain"), ("database", &stage.entry)],
        ));
        client.expect(b'R');
    }
    wait_until("all descriptors are closed", || {
        stage.descriptors() <= descriptors + 2
    });
});

/// A server with a fault on its first connection, sound afterwards: its client must hear of the end in some way
/// (or be served by the second connection), the next one must be served.
fn server_fault(shards: usize, fault: fn(&mut Conversation)) {
    let spent = Arc::new(AtomicBool::new(false));
    let server = FakeServer::start(move |mut server| {
        if !spent.swap(true, Ordering::AcqRel) {
            fault(&mut server);
        } else if server.login() {
            server.serve("sound");
        }
    });
    let stage = stage_with_fake(shards, server.address);
    let reply = ask_fake(&stage);
    let told = reply.closed || reply.error.is_some() || reply.value() == "sound";
    assert!(told, "{reply:?}");
    wait_until("the next client is served", || {
        ask_fake(&stage).value() == "sound"
    });
    assert_fake_is_quiet(&stage);
}

both_shards!(server_may_vanish_on_connect, |shards| server_fault(
    shards,
    |_| {}
));

both_shards!(server_may_vanish_after_the_start_up_packet, |shards| {
    server_fault(shards, |server| {
        server.read_startup();
    })
});

both_shards!(server_may_vanish_in_mid_login, |shards| server_fault(
    shards,
    |server| {
        server.read_startup();
        server.send(&authentication_ok());
    }
));

both_shards!(
    server_may_vanish_inside_its_greeting,
    |shards| server_fault(shards, |server| {
        server.read_startup();
        let greeting = Conversation::greeting();
        server.send(&greeting[..greeting.len() - 3]);
    })
);

both_shards!(server_may_vanish_while_idle, |shards| server_fault(
    shards,
    |server| {
        server.login();
    }
));

both_shards!(server_may_vanish_on_the_query, |shards| server_fault(
    shards,
    |server| {
        server.login();
        server.next_request();
    }
));

both_shards!(server_may_vanish_inside_a_row, |shards| server_fault(
    shards,
    |server| {
        server.login();
        server.next_request();
        let rows = Conversation::one_row("never whole");
        server.send(&rows[..rows.len() / 2]);
    }
));

both_shards!(server_may_vanish_before_ready_for_query, |shards| {
    server_fault(shards, |server| {
        server.login();
        server.next_request();
        let rows = Conversation::one_row("never ready");
        server.send(&rows[..rows.len() - ready(b'I').len()]);
    })
});

both_shards!(server_may_lie_about_a_length, |shards| server_fault(
    shards,
    |server| {
        server.login();
        server.next_request();
        server.send(&with_length(b'D', b"", 2));
        server.wait_closed();
    }
));

both_shards!(server_may_lie_about_a_length_in_its_greeting, |shards| {
    server_fault(shards, |server| {
        server.read_startup();
        server.send(&with_length(b'R', b"", -1));
        server.wait_closed();
    })
});

both_shards!(server_may_send_garbage_as_greeting, |shards| server_fault(
    shards,
    |server| {
        server.read_startup();
        server.send(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
    }
));

both_shards!(server_may_ask_for_an_unknown_kind_of_password, |shards| {
    server_fault(shards, |server| {
        server.read_startup();
        server.send(&message(b'R', &99_u32.to_be_bytes()));
        server.wait_closed();
    })
});

both_shards!(server_may_send_a_huge_scram_nonce, |shards| server_fault(
    shards,
    |server| {
        server.read_startup();
        server.send(&message(
            b'R',
            &[&10_u32.to_be_bytes()[..], b"SCRAM-SHA-256\0\0"].concat(),
        ));
        server.read();
        let nonce = format!("r={},s=QSXCR+Q6sek8bf92,i=4096", "x".repeat(100_000));
        server.send(&message(
            b'R',
            &[&11_u32.to_be_bytes()[..], nonce.as_bytes()].concat(),
        ));
        server.wait_closed();
    }
));

both_shards!(server_may_refuse_without_sqlstate, |shards| server_fault(
    shards,
    |server| {
        server.read_startup();
        server.send(&error(&[(b'M', "no code at all")]));
    }
));

both_shards!(server_may_send_an_error_without_fields, |shards| {
    server_fault(shards, |server| {
        server.login();
        server.next_request();
        server.send(&[error(&[]), ready(b'I')].concat());
        server.serve("sound");
    })
});

both_shards!(server_may_send_more_than_was_asked_for, |shards| {
    server_fault(shards, |server| {
        server.login();
        server.next_request();
        server.send(
            &[
                Conversation::one_row("sound"),
                Conversation::one_row("surplus"),
            ]
            .concat(),
        );
        server.wait_closed();
    })
});

both_shards!(error_without_sqlstate_is_relayed_and_survived, |shards| {
    let server = FakeServer::start(|mut server| {
        if server.login() && server.next_request().is_some() {
            server.send(&[error(&[(b'M', "no code at all")]), ready(b'I')].concat());
            server.serve("sound");
        }
    });
    let stage = stage_with_fake(shards, server.address);
    assert_eq!(ask_fake(&stage).text(), "no code at all");
    assert_eq!(ask_fake(&stage).value(), "sound");
    assert_fake_is_quiet(&stage);
});

both_shards!(abandoned_query_is_cancelled_until_it_ends, |shards| {
    let cancels = Arc::new(AtomicUsize::new(0));
    let seen = cancels.clone();
    // The first cancel comes too early to hit anything.
    let server = FakeServer::start(move |mut server| {
        if !server.login() {
            seen.fetch_add(1, Ordering::AcqRel);
        } else if server.next_request().is_some() {
            wait_until("a second cancel", || seen.load(Ordering::Acquire) >= 2);
        }
    });
    let stage = stage_with_fake(shards, server.address);
    let mut client = Client::login(stage.address(), "fake");
    client.send(&query("select 'forever'"));
    wait_until("the query runs", || stage.pools("fake", "sv_active") == 1);
    drop(client);
    wait_until("a second cancel", || cancels.load(Ordering::Acquire) >= 2);
    assert_fake_is_quiet(&stage);
});

both_shards!(words_of_an_idle_server_reach_no_client, |shards| {
    let server = FakeServer::start(|mut server| {
        if server.login() {
            server.next_request();
            // In one write: what comes after the next client's request cannot be told from its answer.
            server.send(
                &[
                    Conversation::one_row("first"),
                    Conversation::one_row("unasked"),
                ]
                .concat(),
            );
            server.wait_closed();
        }
    });
    let stage = stage_with_fake(shards, server.address);
    for _ in 0..5 {
        let reply = ask_fake(&stage);
        assert!(reply.closed || reply.value() == "first", "{reply:?}");
    }
    assert!(server.connections() >= 2);
});

both_shards!(
    client_that_waits_for_a_dead_server_is_seen_and_can_leave,
    |shards| {
        let deaf = Deaf::new();
        let topology = Topology::new(shards).set("client_login_timeout", "1 h");
        let stage = Stage::pooled(topology.database_at("fake", deaf.address, &[]));
        let mut client = Client::connect(stage.address());
        let params = [("user", "postgres"), ("database", "fake")];
        client.send(&startup(PROTOCOL_3_0, &params));
        wait_until("the client waits", || {
            stage.pools("fake", "cl_waiting") == 1
        });
        let rows = stage.console("SHOW CLIENTS").table();
        let row = rows.iter().find(|row| row["database"] == "fake").unwrap();
        assert_eq!((&*row["user"], &*row["state"]), ("postgres", "waiting"));
        drop(client);
        wait_until("it is gone", || stage.pools("fake", "cl_waiting") == 0);
        assert_fake_is_quiet(&stage);
        wait_until("its end is in the log", || {
            let log = stage.log();
            let mut lines = log.lines();
            lines.any(|line| line.contains("closing client") && line.contains("\"fake\""))
        });
    }
);

both_shards!(nobody_listening_is_reported_in_time, |shards| {
    let deaf = Deaf::new();
    let topology = Topology::new(shards).set("client_login_timeout", "1s");
    let stage = Stage::pooled(topology.database_at("fake", deaf.address, &[]));
    let reply = ask_fake(&stage);
    let error = reply.error.as_ref().expect("a reason");
    assert!(
        reply.closed && error.text.contains("server down"),
        "{reply:?}"
    );
    assert_fake_is_quiet(&stage);
});

both_shards!(server_that_never_answers_the_login_is_given_up, |shards| {
    let server = FakeServer::start(|mut server| server.wait_closed());
    let topology = Topology::new(shards)
        .set("server_connect_timeout", "1s")
        .set("client_login_timeout", "2s");
    let stage = Stage::pooled(topology.database_at("fake", server.address, &[]));
    let reply = ask_fake(&stage);
    assert!(reply.closed && reply.error.is_some(), "{reply:?}");
    assert_fake_is_quiet(&stage);
});

both_shards!(slow_reader_does_not_fill_the_poolers_memory, |shards| {
    let stage = Stage::pooled(Topology::new(shards).pool_size(1));
    let mut slow = stage.client();
    slow.value("select 1");
    let before = stage.resident_bytes();
    slow.send(&query(
        "select repeat('x', 1024 * 1024) from generate_series(1, 200)",
    ));
    stage
        .database
        .wait_backends(1, "wait_event = 'ClientWrite'");
    let (mut read, mut most) = (0, 0);
    while read < 200 * MIB {
        read += slow.read_some(MIB).len();
        most = most.max(stage.resident_bytes());
    }
    let grown = most.saturating_sub(before) / MIB as u64;
    assert!(grown < 32, "grew by {grown} MiB");
});

both_shards!(slow_server_does_not_fill_the_poolers_memory, |shards| {
    let released = Arc::new(AtomicBool::new(false));
    let release = released.clone();
    let server = FakeServer::start(move |mut server| {
        if server.login() && server.next_request().is_some() {
            server.send(&message(b'G', &[0, 0, 0]));
            server.stall_until(&released);
        }
    });
    let stage = stage_with_fake(shards, server.address);
    let mut client = Client::login(stage.address(), "fake");
    client.send(&query("copy t from stdin"));
    client.expect(b'G');
    let before = stage.resident_bytes();
    let taken = client.send_until_blocked(
        &copy_data(&[b'x'; 60_000]),
        200 * MIB,
        Duration::from_secs(1),
    );
    let grown = stage.resident_bytes().saturating_sub(before) / MIB as u64;
    release.store(true, Ordering::Release);
    assert!(
        taken < 64 * MIB && grown < 32,
        "took {} MiB, grew by {grown} MiB",
        taken / MIB
    );
});

both_shards!(
    cancel_while_settings_are_made_hits_neither_them_nor_the_query,
    |shards| {
        // the scripted server answers the pooler's settings only after the cancel request has been dealt with
        let (is_asked, may_answer) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicBool::new(false)),
        );
        let (asked, answer) = (is_asked.clone(), may_answer.clone());
        let server = FakeServer::start(move |mut server| {
            if !server.login() {
                return;
            }
            while let Some(request) = server.next_request() {
                if request.tag == b'Q' {
                    server.send(&Conversation::one_row("served"));
                    continue;
                }
                asked.store(true, Ordering::Release);
                server.stall_until(&answer);
                let settled = [
                    message(b'1', b""),
                    message(b'2', b""),
                    one_value("elsewhere"),
                ];
                server.send(&[settled.concat(), complete("SELECT 1"), ready(b'I')].concat());
            }
        });
        let stage = stage_with_fake(shards, server.address);
        let params = [
            ("user", "postgres"),
            ("database", "fake"),
            ("search_path", "elsewhere"),
        ];
        let mut client = Client::login_with(stage.address(), &params);
        client.send(&query("select 'from fake'"));
        wait_until("the settings are being made", || {
            is_asked.load(Ordering::Acquire)
        });
        let connections = server.connections();
        peer::cancel(stage.address(), &client.key);
        may_answer.store(true, Ordering::Release);
        assert_eq!(client.reply().value(), "served");
        assert_eq!(
            server.connections(),
            connections,
            "no cancel request went out"
        );
    }
);

both_shards!(notification_for_nobody_costs_no_server, |shards| {
    let (speak, spoken) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicBool::new(false)),
    );
    let (may_speak, has_spoken) = (speak.clone(), spoken.clone());
    let server = FakeServer::start(move |mut server| {
        if !server.login() || server.next_request().is_none() {
            return;
        }
        server.send(&Conversation::one_row("first"));
        wait_until("the server is idle", || may_speak.load(Ordering::Acquire));
        let notification = message(b'A', b"\0\0\0\x2achannel\0payload\0");
        // In pieces, but few: all of them are read by the time of the next query.
        let stream = notification.repeat(3);
        stream.chunks(17).for_each(|piece| server.send(piece));
        has_spoken.store(true, Ordering::Release);
        server.serve("second");
    });
    let stage = stage_with_fake(shards, server.address);
    let mut client = Client::login(stage.address(), "fake");
    assert_eq!(client.value("select 1"), "first");
    wait_until("the server is idle", || stage.pools("fake", "sv_idle") == 1);
    speak.store(true, Ordering::Release);
    wait_until("it has spoken", || spoken.load(Ordering::Acquire));
    assert_eq!(client.value("select 2"), "second");
    assert_eq!(server.connections(), 1);
});
