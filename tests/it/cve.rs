//! What has been wrong with PgBouncer, by the number under which it was published: none of it is here.

use std::time::{Duration, Instant};

use crate::support::drop_in::{Brand, DropIn};
use crate::support::peer::Conversation;
use crate::support::postgres::MUST_SCRAM;
use crate::support::wire::*;
use crate::support::*;

const PASSWORD: &str = "correct horse";

fn role() -> String {
    Postgres::shared().role(MUST_SCRAM, "scram-sha-256", PASSWORD)
}

/// Asks the pooler for SCRAM, as a server; the nonce that it begins with.
fn asked_nonce(conversation: &mut Conversation) -> Option<String> {
    if !conversation.read_startup() {
        return None;
    }
    conversation.send(&message(b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0"));
    let first = conversation.read()?;
    let text = String::from_utf8_lossy(&first.body);
    text.rsplit("r=").next().map(str::to_owned)
}

fn asking(shards: usize) -> Topology {
    Topology::new(shards)
        .set("auth_type", "scram-sha-256")
        .set("auth_user", "postgres")
}

/// Sends raw bytes in the place of a SCRAM initial response.
fn answer_sasl(stage: &Stage, body: &[u8]) -> peer::Reply {
    let mut client = Client::connect(stage.address());
    let params = [("user", "postgres"), ("database", stage.entry.as_str())];
    client.send(&startup(PROTOCOL_3_0, &params));
    client.expect(b'R');
    client.send(&message(b'p', body));
    client.reply()
}

// A second start-up packet in the middle of SCRAM: what is proved for one user is not to count for another.
both_shards!(
    cve_2026_107350_second_start_up_packet_does_not_change_the_user,
    |shards| {
        let topology = Topology::new(shards)
            .set("auth_type", "scram-sha-256")
            .set("admin_users", vec!["postgres", "victim"])
            .user_secret("attacker", PASSWORD)
            .user_secret("victim", "never told");
        let stage = Stage::with_keys(topology, &[("user", "postgres")]);
        let log_in = |user: &str, password: &str| {
            let mut client = Client::connect(stage.address());
            scram::login(&mut client, user, &stage.entry, password)
        };
        for (user, password) in [("attacker", PASSWORD), ("victim", "never told")] {
            assert_eq!(log_in(user, password).status, b'I', "{user}");
        }
        let names = ["no_such_database", stage.entry.as_str()];
        for (first, second) in [(0, 0), (0, 1), (1, 1)].map(|(a, b)| (names[a], names[b])) {
            for second in [second, "pgbouncer"] {
                // With its last message the attacker is in, where there is a database.
                let steps = if first == names[0] { 3 } else { 2 };
                for asked_again in 0..steps {
                    let reply = start_twice(&stage, asked_again, first, second);
                    let context = format!("{first}, {second}, {asked_again}: {reply:?}");
                    assert_ne!(reply.status, b'I', "{context}");
                    assert!(reply.closed, "{context}");
                }
            }
        }
        assert_eq!(log_in("attacker", PASSWORD).status, b'I');
    }
);

/// Logs the attacker in to `first`, and asks once more, as the victim of `second`, after so many messages of SCRAM.
fn start_twice(stage: &Stage, asked_again: usize, first: &str, second: &str) -> peer::Reply {
    let packet = |user: &str, database: &str| {
        startup(PROTOCOL_3_0, &[("user", user), ("database", database)])
    };
    let again = |step: usize| match step == asked_again {
        true => packet("victim", second),
        false => Vec::new(),
    };
    let mut client = Client::connect(stage.address());
    client.send(&packet("attacker", first));
    assert_eq!(client.expect(b'R').u32_at(0), 10);
    client.send_anyway(&[again(0), scram::first()].concat());
    let proof = match client.try_read().expect("an answer") {
        Some(challenge) if challenge.tag == b'R' && challenge.u32_at(0) == 11 => {
            scram::right_final(PASSWORD, &scram::server_first(&challenge.body))
        }
        _ => Vec::new(),
    };
    client.send_anyway(&[again(1), proof, again(2)].concat());
    client.reply()
}

// A setting without a name in `options`, at which a loop over them did not advance.
both_shards!(cve_2026_107349_options_with_an_empty_name, |shards| {
    let topology = Topology::new(shards)
        .set("ignore_startup_parameters", vec!["extra_float_digits"])
        .set("client_login_timeout", "30 s");
    let stage = Stage::pooled(topology);
    let mut bystander = stage.client();
    for options in [
        "-c=",
        "-c =",
        "-c=x",
        "--=",
        "--=x",
        "-c geqo=off -c=",
        "-c= -c geqo=off",
    ] {
        let params = [
            ("user", "postgres"),
            ("database", stage.entry.as_str()),
            ("options", options),
        ];
        let reply = Client::connect(stage.address()).start(PROTOCOL_3_0, &params);
        let error = reply.fatal();
        assert_eq!(error.code, "08P01", "{options}: {error:?}");
        assert!(error.text.contains("options"), "{options}: {error:?}");
        assert_eq!(bystander.value("select 'served'"), "served", "{options}");
    }
    // Every shard accepts.
    for _ in 0..2 * shards {
        assert_eq!(stage.client().value("select 'served'"), "served");
    }
});

// A header that declares more than 2^31 bytes, where PgBouncer's buffer grew and grew.
both_shards!(cve_2026_107348_and_6668_header_of_two_gigabytes, |shards| {
    let database = Postgres::shared().database();
    // What PgBouncer had to be told to be open to it.
    let more = "pool_mode = transaction\nmax_packet_size = 4294967295";
    let drop_in = DropIn::start(Brand::Ringbouncer(shards), database, more);
    let mut bystander = drop_in.client();
    for length in [0x8000_0000_u32, 0x8000_0001, 0xffff_fffb, u32::MAX] {
        let body = [b'x'; 100_000];
        let mut first = Client::connect(drop_in.address);
        first.send_anyway(
            &[
                &length.to_be_bytes()[..],
                &0x0003_0000_u32.to_be_bytes(),
                &body,
            ]
            .concat(),
        );
        assert_refused(first, length);
        for tag in *b"QPBdSXp" {
            let mut client = drop_in.client();
            client.send_anyway(&with_length(tag, &body, length as i32));
            assert_refused(client, length);
            let mut client = drop_in.client();
            assert_eq!(client.query("begin").status, b'T');
            client.send_anyway(&with_length(tag, &body, length as i32));
            assert_refused(client, length);
        }
        assert_eq!(bystander.value("select 'served'"), "served", "{length:x}");
    }
    // As long as a message may be: it is awaited, in no more memory than has come.
    let before = resident_kib(drop_in.pid());
    let mut waiting = drop_in.client();
    waiting.send(&with_length(b'Q', &[b'x'; 100_000], i32::MAX));
    assert_eq!(bystander.value("select 'served'"), "served");
    let grown = resident_kib(drop_in.pid()).saturating_sub(before);
    assert!(grown < 64 * 1024, "{grown} KiB");
});

/// The connection has ended, after a refusal unless that was lost with a reset.
#[track_caller]
fn assert_refused(mut client: Client, length: u32) {
    let reply = client.reply();
    assert!(reply.closed && reply.status == 0, "{length:x}: {reply:?}");
    if let Some(error) = &reply.error {
        assert!(error.text.starts_with("bad packet header: '"), "{error:?}");
    }
}

fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let mut words = line.expect("VmRSS").split_whitespace();
    words.nth(1).unwrap().parse().unwrap()
}

// A last message of SCRAM without the nonce, which PgBouncer then compared all the same.
both_shards!(
    cve_2026_19888_client_final_message_without_a_nonce,
    |shards| {
        let topology = Topology::new(shards)
            .set("auth_type", "scram-sha-256")
            .user_secret("talker", PASSWORD);
        let stage = Stage::with_keys(topology, &[("user", "postgres")]);
        let proof = "A".repeat(43) + "=";
        for user in ["talker", "nobody_at_all"] {
            for database in [stage.entry.as_str(), "no_such_database"] {
                for last in [
                    format!("c=biws,p={proof}"),
                    format!("c=biws,r=,p={proof}"),
                    format!("c=biws,r,p={proof}"),
                    format!("c=biws,e=x,p={proof}"),
                    "c=biws".to_owned(),
                    "c=biws,".to_owned(),
                    String::new(),
                ] {
                    let mut client = Client::connect(stage.address());
                    client.send(&startup(
                        PROTOCOL_3_0,
                        &[("user", user), ("database", database)],
                    ));
                    assert_eq!(client.expect(b'R').u32_at(0), 10);
                    client.send(&scram::first());
                    assert_eq!(client.expect(b'R').u32_at(0), 11);
                    let reply = client.exchange(&scram::message_p(&last));
                    reply.assert_fatal("SASL authentication failed");
                }
            }
        }
        let mut client = Client::connect(stage.address());
        let reply = scram::login(&mut client, "talker", &stage.entry, PASSWORD);
        assert_eq!(reply.status, b'I', "{reply:?}");
    }
);

// A server that demands more work for a login than anybody has time for.
both_shards!(
    cve_2026_6669_server_that_demands_endless_stretching,
    |shards| {
        let demanded = [u32::MAX, i32::MAX as u32, 1_000_001, 1_000_000];
        let servers = demanded.map(|iterations| {
            FakeServer::start(move |mut conversation| {
                let Some(nonce) = asked_nonce(&mut conversation) else {
                    return;
                };
                let reply = format!("r={nonce}more,s=c2FsdA==,i={iterations}");
                conversation.send(&message(b'R', &[b"\0\0\0\x0b", reply.as_bytes()].concat()));
                conversation.wait_closed();
            })
        });
        let database = Postgres::shared().database();
        let topology = Topology::new(shards).set("server_connect_timeout", "2 s");
        let topology = topology.database("good", &database, &[]);
        let keys = [("user", "postgres"), ("password", "x")];
        let add = |topology: Topology, (at, server): (usize, &FakeServer)| {
            topology.database_at(&format!("evil{at}"), server.address, &keys)
        };
        let pooler = Pooler::start(&servers.iter().enumerate().fold(topology, add));
        for (at, iterations) in demanded.into_iter().enumerate() {
            let name = format!("evil{at}");
            let params = [("user", "postgres"), ("database", name.as_str())];
            let mut waiting = Client::connect(pooler.address);
            waiting.send(&startup(PROTOCOL_3_0, &params));
            wait_until("the server has been dialled", || {
                servers[at].connections() > 0
            });
            // Wherever the work is done, the others of that shard are served.
            for _ in 0..2 * shards {
                let began = Instant::now();
                let mut client = Client::login(pooler.address, "good");
                assert_eq!(client.value("select 'served'"), "served");
                assert!(began.elapsed() < Duration::from_secs(5), "{iterations}");
            }
            if iterations > 1_000_000 {
                let text = "server login failed: SCRAM exchange with the server broke off";
                waiting.reply().assert_fatal(text);
            }
        }
    }
);

// Length arithmetic: a SASL initial response that claims more bytes than there are.
both_shards!(cve_2026_6664_huge_length_in_a_sasl_response, |shards| {
    let topology = Topology::new(shards)
        .set("auth_type", "scram-sha-256")
        .user_secret("postgres", "x");
    let stage = Stage::pooled(topology);
    for length in [
        0x7fff_ffff_u32,
        0x8000_0000,
        0xffff_fffe,
        0xffff_ffff,
        65_536,
    ] {
        let body = [
            b"SCRAM-SHA-256\0",
            &length.to_be_bytes()[..],
            b"n,,n=,r=abc",
        ]
        .concat();
        let reply = answer_sasl(&stage, &body);
        reply.assert_fatal("SASL authentication failed");
    }
    for length in [i32::MIN, -1, 0, 3, i32::MAX] {
        let mut client = Client::connect(stage.address());
        let params = [("user", "postgres"), ("database", stage.entry.as_str())];
        client.send(&startup(PROTOCOL_3_0, &params));
        client.expect(b'R');
        client.send(&with_length(b'p', b"", length));
        let said = format!("bad packet header: '70{length:08x}'");
        client.reply().assert_fatal(&said);
    }
    assert!(stage.as_owner("SHOW VERSION").error.is_none());
});

// A malicious server's nonce, far longer than any buffer.
both_shards!(cve_2026_6665_overlong_nonce_of_a_server, |shards| {
    let server = FakeServer::start(|mut conversation| {
        let Some(nonce) = asked_nonce(&mut conversation) else {
            return;
        };
        let long = "n".repeat(60_000);
        let reply = format!("r={nonce}{long},s=c2FsdA==,i=4096");
        conversation.send(&message(b'R', &[b"\0\0\0\x0b", reply.as_bytes()].concat()));
        conversation.wait_closed();
    });
    let keys = [("user", "postgres"), ("password", "x")];
    let topology = Topology::new(shards).set("client_login_timeout", "3 s");
    let pooler = Pooler::start(&topology.database_at("evil", server.address, &keys));
    let params = [("user", "postgres"), ("database", "evil")];
    let reply = Client::connect(pooler.address).start(PROTOCOL_3_0, &params);
    reply.assert_fatal("server login failed: SCRAM exchange with the server broke off");
    assert!(pooler.console("SHOW VERSION").error.is_none());
});

// An ErrorResponse without the field for SQLSTATE, or without any.
both_shards!(cve_2026_6666_error_of_a_server_without_sqlstate, |shards| {
    for fields in [
        &[(b'S', "FATAL"), (b'M', "no code")][..],
        &[(b'M', "no code")],
    ] {
        let refusal = error(fields);
        let server = FakeServer::start(move |mut conversation| {
            if conversation.read_startup() {
                conversation.send(&refusal);
                conversation.wait_closed();
            }
        });
        let topology = Topology::new(shards);
        let pooler = Pooler::start(&topology.database_at("odd", server.address, &[]));
        let params = [("user", "postgres"), ("database", "odd")];
        let reply = Client::connect(pooler.address).start(PROTOCOL_3_0, &params);
        reply.assert_fatal("no code");
    }
});

// A console command that stats_users could use.
both_shards!(cve_2026_6667_stats_user_commands_nothing, |shards| {
    let topology = Topology::new(shards)
        .user_secret("watcher", "")
        .set("stats_users", vec!["watcher"]);
    let stage = Stage::pooled(topology);
    let mut victim = stage.client();
    let id = stage
        .console("SHOW CLIENTS")
        .table()
        .into_iter()
        .find(|row| row["database"] == stage.entry)
        .expect("the victim is listed")["id"]
        .clone();
    let params = [("user", "watcher"), ("database", "pgbouncer")];
    for command in [
        format!("KILL_CLIENT {id}"),
        "KILL".to_owned(),
        format!("KILL {}", stage.entry),
        "PAUSE".to_owned(),
        "SUSPEND".to_owned(),
        "RECONNECT".to_owned(),
        format!("DISABLE {}", stage.entry),
        "RELOAD".to_owned(),
        "SHUTDOWN".to_owned(),
        "SET default_pool_size = 1".to_owned(),
    ] {
        let mut watcher = Client::connect(stage.address());
        watcher.start(PROTOCOL_3_0, &params);
        assert!(watcher.query(&command).error.is_some(), "{command}");
    }
    assert_eq!(victim.value("select 'alive'"), "alive");
});

// search_path of a client that is not authenticated yet, on the connection that runs auth_query.
both_shards!(
    cve_2025_12819_start_up_settings_do_not_reach_auth_query,
    |shards| {
        let database = Postgres::shared().database();
        let name = role();
        database.sql("create table logins (name text, secret text)");
        database.sql(&format!("insert into logins values ('{name}', 'right')"));
        database.sql("create schema evil");
        database.sql("create table evil.logins (name text, secret text)");
        database.sql(&format!(
            "insert into evil.logins values ('{name}', 'wrong')"
        ));
        let query = "select name, secret from logins where name = $1";
        let topology = asking(shards)
            .pool_size(1)
            .set("auth_query", query)
            .set("auth_query_ttl", 0)
            .set("auth_query_negative_ttl", 0)
            .user_secret("postgres", "owner");
        let stage = Stage::on(database, topology, &[]);
        let with_path = |user: &str, password: &str| {
            let config = format!(
                "host=127.0.0.1 port={} user={user} password={password} dbname={} options='-c search_path=evil'",
                stage.address().port(),
                stage.entry
            );
            driver::block_on(async {
                let (client, connection) =
                    tokio_postgres::connect(&config, tokio_postgres::NoTls).await?;
                tokio::spawn(connection);
                client.query_one("select 1", &[]).await.map(drop)
            })
        };
        let refused = with_path(&name, "wrong").unwrap_err();
        let text = refused
            .as_db_error()
            .expect("a refusal")
            .message()
            .to_owned();
        assert_eq!(text, "SASL authentication failed");
        // Nor what another client of the very same pool has set on the very same server.
        with_path("postgres", "owner").expect("the pool's own user logs in");
        assert!(with_path(&name, "wrong").is_err());
        let shown = stage.as_owner("SHOW SERVERS").table();
        assert!(
            shown.iter().any(|row| row["user"] == "postgres"),
            "{shown:?}"
        );
    }
);

// Roles that are no longer valid.
both_shards!(cve_2025_2291_expired_password_does_not_log_in, |shards| {
    let stage = Stage::pooled(asking(shards).set("auth_query_negative_ttl", 0));
    let name = role();
    let login = || driver::try_login(stage.address(), &name, PASSWORD, &stage.entry);
    let until = |when: &str| {
        let sql = format!("alter role {name} valid until '{when}'");
        stage.database.sql(&sql);
        assert_eq!(stage.as_owner("RELOAD").complete, ["RELOAD"]);
    };
    until("2001-01-01");
    assert_eq!(login().unwrap_err().1, "SASL authentication failed");
    until("infinity");
    assert_eq!(login(), Ok(name.clone()));
    until("2001-01-01");
    assert_eq!(login().unwrap_err().1, "SASL authentication failed");
});

// Bytes sent along with SSLRequest, which would be read as if they were encrypted.
both_shards!(
    cve_2021_3935_data_sent_along_with_an_ssl_request,
    |shards| {
        let stage = Stage::pooled(Topology::new(shards));
        let params = [("user", "postgres"), ("database", stage.entry.as_str())];
        let injected = [startup(PROTOCOL_3_0, &params), query("select 'injected'")].concat();
        for request in [ssl_request(), gssenc_request()] {
            let mut client = Client::connect(stage.address());
            client.send(&[request, injected.clone()].concat());
            let bytes = client.read_to_end();
            let said = String::from_utf8_lossy(&bytes);
            assert!(
                said.contains("received unencrypted data after SSL request"),
                "{said}"
            );
            assert!(!said.contains("injected"), "{said}");
        }
    }
);

// A user whom auth_query does not know, logged in as the user who runs it.
both_shards!(
    cve_2015_6817_unknown_user_is_not_logged_in_as_auth_user,
    |shards| {
        let stage = Stage::pooled(asking(shards));
        for auth_type in ["trust", "md5", "plain", "scram-sha-256"] {
            let topology = asking(shards).set("auth_type", auth_type).database(
                &stage.entry,
                &stage.database,
                &[],
            );
            stage.rewrite(&topology);
            assert_eq!(stage.as_owner("RELOAD").complete, ["RELOAD"]);
            for password in ["", "x"] {
                let outcome = driver::try_login(stage.address(), "nobody", password, &stage.entry);
                assert!(outcome.is_err(), "{auth_type}: {outcome:?}");
            }
        }
    }
);

// A database name longer than any buffer, for the entry that stands for all names.
both_shards!(cve_2012_4575_overlong_database_name, |shards| {
    let database = Postgres::shared().database();
    let topology = Topology::new(shards).database("*", &database, &[]);
    let pooler = Pooler::start(&topology);
    for length in [63, 64, 128, 5_000, 60_000] {
        let name = "d".repeat(length);
        let params = [("user", "postgres"), ("database", name.as_str())];
        let reply = Client::connect(pooler.address).start(PROTOCOL_3_0, &params);
        assert_eq!(reply.error.is_none(), length == 63, "{length}: {reply:?}");
    }
    let params = [("user", "postgres"), ("database", "other")];
    let reply = Client::connect(pooler.address).start(PROTOCOL_3_0, &params);
    assert!(reply.error.is_none(), "{reply:?}");
});
