//! TLS towards servers: what each mode asks of them, and what becomes of connections that change hands.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use rustls::ClientConnection;

use crate::support::certs::{Authority, Signed, Wish};
use crate::support::held::HeldShard;
use crate::support::peer::Conversation;
use crate::support::postgres::{MUST_CERTIFY, MUST_ENCRYPT, MUST_NOT_ENCRYPT, MUST_SCRAM};
use crate::support::wire::*;
use crate::support::*;

/// Whether the server connection that runs this is encrypted, and by which version.
const VERSION: &str =
    "select coalesce(version, 'plain') from pg_stat_ssl where pid = pg_backend_pid()";

fn topology(shards: usize, mode: &str) -> Topology {
    Topology::new(shards)
        .set("server_tls_sslmode", mode)
        .set("server_login_retry", "50 ms")
}

fn trusting(topology: Topology, authority: &Authority) -> Topology {
    topology.set("server_tls_ca_file", authority.root.certificate_path())
}

/// A pooler to a fresh database of the cluster that encrypts.
fn stage(topology: Topology, keys: &[(&str, &str)]) -> Stage {
    Stage::on(Postgres::encrypted().database(), topology, keys)
}

/// A client of `entry` that has logged in, or `None` once the log says `complaint`: while a server cannot be
/// reached, clients wait.
fn login_unless(pooler: &Pooler, entry: &str, complaint: &str) -> Option<Client> {
    let mut client = Client::connect(pooler.address);
    client.send(&startup(
        PROTOCOL_3_0,
        &[("user", "postgres"), ("database", entry)],
    ));
    let mut is_in = false;
    wait_until("a login or a complaint", || {
        is_in = !client.has_nothing_to_read();
        is_in || pooler.log().contains(complaint)
    });
    is_in.then(|| {
        let reply = client.reply();
        assert_eq!(reply.status, b'I', "{reply:?}");
        client
    })
}

fn role(group: &str) -> String {
    Postgres::encrypted().role(group, "scram-sha-256", "sesame")
}

both_shards!(
    every_mode_meets_servers_that_must_may_and_must_not_encrypt,
    |shards| {
        let (must, must_not) = (role(MUST_ENCRYPT), role(MUST_NOT_ENCRYPT));
        // Mode; then what a server says that must, may and must not encrypt; "" is a refusal.
        let table = [
            ("disable", ["", "plain", "plain"]),
            ("allow", ["TLSv1.3", "plain", "plain"]),
            ("prefer", ["TLSv1.3", "TLSv1.3", ""]),
            ("require", ["TLSv1.3", "TLSv1.3", ""]),
            ("verify-ca", ["TLSv1.3", "TLSv1.3", ""]),
            ("verify-full", ["TLSv1.3", "TLSv1.3", ""]),
        ];
        for (mode, outcomes) in table {
            let topology = trusting(topology(shards, mode), Postgres::authority());
            for (user, outcome) in [must.as_str(), "postgres", must_not.as_str()]
                .iter()
                .zip(outcomes)
            {
                let topology = topology.clone().user_secret(user, "");
                let stage = stage(topology, &[("user", user)]);
                let params = [("user", "postgres"), ("database", stage.entry.as_str())];
                let mut client = Client::connect(stage.address());
                let reply = client.start(PROTOCOL_3_0, &params);
                assert_eq!(
                    reply.status == b'I',
                    !outcome.is_empty(),
                    "{mode} {user}: {reply:?}"
                );
                if reply.status == b'I' {
                    assert_eq!(client.value(VERSION), outcome, "{mode} {user}");
                    let shown = &stage.console("SHOW SERVERS").table()[0]["tls"];
                    assert_eq!(
                        shown.starts_with("TLSv1.3/TLS_AES_256_GCM_SHA384/ECDH="),
                        outcome != "plain"
                    );
                }
            }
        }
    }
);

both_shards!(
    server_that_does_not_encrypt_is_refused_where_it_must,
    |shards| {
        for mode in ["require", "verify-ca", "verify-full"] {
            let stage = Stage::pooled(trusting(topology(shards, mode), Postgres::authority()));
            assert!(login_unless(&stage, &stage.entry, "server refused SSL").is_none());
        }
        let stage = Stage::pooled(topology(shards, "prefer"));
        assert_eq!(stage.client().value(VERSION), "plain");
    }
);

both_shards!(unix_sockets_are_never_encrypted, |shards| {
    let postgres = Postgres::encrypted();
    let topology = trusting(topology(shards, "verify-full"), Postgres::authority());
    let stage = stage(
        topology,
        &[("host", postgres.socket_dir().to_str().unwrap())],
    );
    assert_eq!(stage.client().value(VERSION), "plain");
});

/// A server that shows a certificate and then serves.
fn showing(shown: &Signed) -> FakeServer {
    let config = shown.server_config();
    FakeServer::start(move |mut conversation| {
        if conversation.encrypt(config.clone()) && conversation.login() {
            conversation.serve("served");
        }
    })
}

/// Whether a client is served by a server that shows this certificate.
fn is_served(topology: Topology, shown: &Signed, host: &str) -> bool {
    let server = showing(shown);
    let topology = topology.database_at("db", server.address, &[("host", host)]);
    let pooler = Pooler::start(&topology);
    let complaint = "TLS handshake failed: invalid peer certificate";
    let Some(mut client) = login_unless(&pooler, "db", complaint) else {
        return false;
    };
    assert_eq!(client.value("select 1"), "served");
    true
}

both_shards!(certificates_are_judged_as_the_mode_says, |shards| {
    let authority = Authority::new("ours");
    let wish = |common_name, names| Wish {
        common_name,
        names,
        ..Wish::default()
    };
    let good = authority.sign();
    let by_common_name = authority.sign_as(&wish("localhost", &[]));
    let elsewhere = authority.sign_as(&wish("elsewhere", &["elsewhere.example"]));
    // The common name does not count where there are others.
    let misnamed = authority.sign_as(&wish("localhost", &["elsewhere.example"]));
    let stranger = Authority::new("theirs").sign();
    let expired = authority.sign_as(&Wish {
        is_expired: true,
        ..Wish::default()
    });
    let of_rsa = authority.sign_as(&Wish {
        is_rsa: true,
        ..Wish::default()
    });
    let revoked = authority.sign();
    let directory = tempfile::tempdir().unwrap();
    let list = directory.path().join("revoked.pem");
    fs::write(&list, authority.revoke(&[&revoked])).unwrap();
    // Certificate, and which of require, verify-ca and verify-full take it.
    let table: [(&str, &Signed, [bool; 3]); 8] = [
        ("good", &good, [true; 3]),
        ("rsa", &of_rsa, [true; 3]),
        ("common name", &by_common_name, [true; 3]),
        ("elsewhere", &elsewhere, [true, true, false]),
        ("misnamed", &misnamed, [true, true, false]),
        ("stranger", &stranger, [true, false, false]),
        ("expired", &expired, [true, false, false]),
        ("revoked", &revoked, [true, false, false]),
    ];
    for (name, shown, taken) in table {
        for (mode, is_taken) in ["require", "verify-ca", "verify-full"].iter().zip(taken) {
            let topology = trusting(topology(shards, mode), &authority)
                .set("server_tls_crl_file", list.to_str().unwrap());
            assert_eq!(
                is_served(topology, shown, "localhost"),
                is_taken,
                "{name}, {mode}"
            );
        }
    }
    // The address that is dialled is what has to match, not what it may also be called.
    let named = authority.sign_as(&wish("x", &["localhost"]));
    let full = || trusting(topology(shards, "verify-full"), &authority);
    assert!(is_served(full(), &named, "localhost"));
    assert!(!is_served(full(), &named, "127.0.0.1"));
});

both_shards!(each_side_is_encrypted_as_its_own_mode_says, |shards| {
    const MODES: [&str; 6] = [
        "disable",
        "allow",
        "prefer",
        "require",
        "verify-ca",
        "verify-full",
    ];
    let authority = Authority::new("ours");
    let shown = authority.sign();
    let own = authority.sign_as(&Wish {
        common_name: "postgres",
        ..Wish::default()
    });
    let database = Postgres::encrypted().database();
    for (clients, servers) in MODES
        .iter()
        .flat_map(|clients| MODES.map(|servers| (*clients, servers)))
    {
        let topology = trusting(topology(shards, servers), Postgres::authority())
            .set("client_tls_sslmode", clients)
            .set("client_tls_cert_file", shown.certificate_path())
            .set("client_tls_key_file", shown.key_path())
            .set("client_tls_ca_file", authority.root.certificate_path())
            .database(&database.name, &database, &[]);
        let pooler = Pooler::start(&topology);
        let mut client = Client::connect(pooler.address);
        if clients != "disable" {
            let config = Arc::new(authority.client_config(Some(&own)));
            client.request_tls(config).expect("a handshake");
        }
        let params = [("user", "postgres"), ("database", database.name.as_str())];
        let reply = client.start(PROTOCOL_3_0, &params);
        assert_eq!(reply.status, b'I', "{clients}, {servers}: {reply:?}");
        let expected = match servers {
            "disable" | "allow" => "plain",
            _ => "TLSv1.3",
        };
        assert_eq!(client.value(VERSION), expected, "{clients}, {servers}");
    }
});

both_shards!(settings_choose_version_and_cipher_of_servers, |shards| {
    const CIPHER: &str =
        "select version || '/' || cipher from pg_stat_ssl where pid = pg_backend_pid()";
    let cases = [
        (
            "tlsv1.2",
            "ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305",
            "",
            "TLSv1.2/ECDHE-",
        ),
        (
            "tlsv1.3",
            "default",
            "TLS_CHACHA20_POLY1305_SHA256",
            "TLSv1.3/TLS_CHACHA20_POLY1305_SHA256",
        ),
    ];
    for (protocols, ciphers, tls13, expected) in cases {
        let topology = topology(shards, "require")
            .set("server_tls_protocols", protocols)
            .set("server_tls_ciphers", ciphers)
            .set("server_tls13_ciphers", tls13);
        let stage = stage(topology, &[]);
        let used = stage.client().value(CIPHER);
        assert!(
            used.starts_with(expected) && used.contains("CHACHA20"),
            "{used}"
        );
        let shown = &stage.console("SHOW SERVERS").table()[0]["tls"];
        assert!(shown.starts_with(expected), "{shown}");
    }
});

both_shards!(host_of_another_name_is_left_for_the_next, |shards| {
    let authority = Authority::new("ours");
    let named = authority.sign_as(&Wish {
        names: &["localhost"],
        ..Wish::default()
    });
    for balance in ["disable", "round-robin"] {
        let server = showing(&named);
        // Both are the same server; by its address it is nobody we trust.
        let keys = [
            ("host", "127.0.0.1,localhost"),
            ("load_balance_hosts", balance),
        ];
        let topology = trusting(topology(shards, "verify-full"), &authority).database_at(
            "db",
            server.address,
            &keys,
        );
        let pooler = Pooler::start(&topology);
        let mut client = Client::login(pooler.address, "db");
        assert_eq!(client.value("select 1"), "served");
        pooler.wait_log("invalid peer certificate");
    }
});

both_shards!(
    servers_are_judged_by_the_files_of_the_last_reload,
    |shards| {
        let (before, after) = (Authority::new("before"), Authority::new("after"));
        let (old, new) = (before.sign(), after.sign());
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let put = |name: &str, text: &str| {
            let beside = path("beside");
            fs::write(&beside, text).unwrap();
            fs::rename(&beside, path(name)).unwrap();
        };
        put("ca", &fs::read_to_string(&before.root.certificate).unwrap());
        put("crl", &before.revoke(&[]));
        let (old_server, new_server) = (showing(&old), showing(&new));
        let topology = topology(shards, "verify-full")
            .set("server_tls_ca_file", path("ca").to_str().unwrap())
            .set("server_tls_crl_file", path("crl").to_str().unwrap())
            .database_at("old", old_server.address, &[("host", "localhost")])
            .database_at("new", new_server.address, &[("host", "localhost")]);
        let pooler = Pooler::start(&topology);
        let mut console = Client::login(pooler.address, "ringbouncer");
        let mut reload = || assert_eq!(console.query("RELOAD").complete, ["RELOAD"]);
        let mut trusted = Client::login(pooler.address, "old");
        assert_eq!(trusted.value("select 1"), "served");
        let stranger = "TLS handshake failed: invalid peer certificate: UnknownIssuer";
        assert!(login_unless(&pooler, "new", stranger).is_none());

        // Its certificate is revoked: the server at hand is closed, and no other is opened.
        put("crl", &before.revoke(&[&old]));
        reload();
        trusted.send(&query("select 1"));
        pooler.wait_log("TLS handshake failed: invalid peer certificate: Revoked");
        assert!(trusted.has_nothing_to_read());

        // The authority is another one.
        put("ca", &fs::read_to_string(&after.root.certificate).unwrap());
        put("crl", &after.revoke(&[]));
        reload();
        assert_eq!(
            Client::login(pooler.address, "new").value("select 1"),
            "served"
        );
        assert!(trusted.has_nothing_to_read());
    }
);

both_shards!(certificate_in_the_ca_file_itself_is_trusted, |shards| {
    let authority = Authority::new("localhost");
    let trusted = |mode| trusting(topology(shards, mode), &authority);
    assert!(is_served(
        trusted("verify-ca"),
        &authority.root,
        "localhost"
    ));
    assert!(is_served(
        trusted("verify-full"),
        &authority.root,
        "localhost"
    ));
    assert!(!is_served(
        trusted("verify-full"),
        &authority.root,
        "127.0.0.1"
    ));
});

both_shards!(server_that_misbehaves_before_encryption_is_left, |shards| {
    let answers: [(&[u8], &str); 5] = [
        (
            b"SR\0\0\0\x08\0\0\0\0",
            "received unencrypted data after SSL response",
        ),
        (
            b"NR\0\0\0\x08\0\0\0\0",
            "received unencrypted data after SSL response",
        ),
        (
            b"E\0\0\0\x0eSFATAL\0\0",
            "unexpected message 'E' during login",
        ),
        (b"X", "unexpected message 'X' during login"),
        (b"", "server closed the connection during login"),
    ];
    for (answer, complaint) in answers {
        let server = FakeServer::start(move |mut conversation| {
            conversation.read_untagged();
            conversation.send(answer);
            if !answer.is_empty() {
                conversation.wait_closed();
            }
        });
        let topology = topology(shards, "prefer").database_at("db", server.address, &[]);
        let pooler = Pooler::start(&topology);
        assert!(login_unless(&pooler, "db", complaint).is_none());
    }
});

both_shards!(records_of_a_server_may_arrive_byte_by_byte, |shards| {
    let authority = Authority::new("ours");
    let config = authority.sign().server_config();
    let server = FakeServer::start(move |mut conversation| {
        conversation.chop();
        if conversation.encrypt(config.clone()) && conversation.login() {
            conversation.serve("slow but whole");
        }
    });
    let topology = topology(shards, "require").database_at("db", server.address, &[]);
    let pooler = Pooler::start(&topology);
    assert_eq!(
        Client::login(pooler.address, "db").value("select 1"),
        "slow but whole"
    );
});

both_shards!(
    server_that_ends_without_the_end_of_tls_is_replaced,
    |shards| {
        let authority = Authority::new("ours");
        let config = authority.sign().server_config();
        let count = Arc::new(AtomicUsize::new(0));
        let server = FakeServer::start(move |mut conversation: Conversation| {
            if !conversation.encrypt(config.clone()) || !conversation.login() {
                return;
            }
            if count.fetch_add(1, Ordering::AcqRel) == 0 {
                // The first hangs up in the middle of a reply.
                conversation.next_request();
                conversation.send(&one_column("x"));
                return;
            }
            conversation.serve("second");
        });
        let topology =
            topology(shards, "require")
                .pool_size(1)
                .database_at("db", server.address, &[]);
        let pooler = Pooler::start(&topology);
        let mut client = Client::login(pooler.address, "db");
        assert!(client.query("select 1").closed);
        assert_eq!(
            Client::login(pooler.address, "db").value("select 1"),
            "second"
        );
    }
);

both_shards!(certificate_of_our_own_opens_the_door, |shards| {
    let user = role(MUST_CERTIFY);
    let own = Postgres::authority().sign_as(&Wish {
        common_name: &user,
        ..Wish::default()
    });
    let other = Postgres::authority().sign();
    let as_user = |own: &Signed| {
        topology(shards, "require")
            .set("server_tls_cert_file", own.certificate_path())
            .set("server_tls_key_file", own.key_path())
    };
    let with_it = stage(as_user(&own), &[("user", &user)]);
    assert_eq!(with_it.client().value("select current_user"), user);
    let without = stage(as_user(&other), &[("user", &user)]);
    let params = [("user", "postgres"), ("database", without.entry.as_str())];
    let reply = Client::connect(without.address()).start(PROTOCOL_3_0, &params);
    let refusal = format!("certificate authentication failed for user \"{user}\"");
    reply.assert_fatal(&refusal);
});

both_shards!(
    certificate_of_our_own_is_the_one_of_the_last_reload,
    |shards| {
        let user = role(MUST_CERTIFY);
        let signed = |common_name: &str| {
            Postgres::authority().sign_as(&Wish {
                common_name,
                ..Wish::default()
            })
        };
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let put = |signed: &Signed| {
            fs::copy(&signed.certificate, path("crt")).unwrap();
            fs::copy(&signed.key, path("key")).unwrap();
        };
        put(&signed("somebody else"));
        let topology = topology(shards, "require")
            .set("server_tls_cert_file", path("crt").to_str().unwrap())
            .set("server_tls_key_file", path("key").to_str().unwrap());
        let stage = stage(topology, &[("user", &user)]);
        let params = [("user", "postgres"), ("database", stage.entry.as_str())];
        let refused = Client::connect(stage.address()).start(PROTOCOL_3_0, &params);
        let refusal = format!("certificate authentication failed for user \"{user}\"");
        refused.assert_fatal(&refusal);
        put(&signed(&user));
        assert_eq!(stage.console("RELOAD").complete, ["RELOAD"]);
        wait_until("servers are logged in with the new one", || {
            Client::connect(stage.address())
                .start(PROTOCOL_3_0, &params)
                .status
                == b'I'
        });
        assert_eq!(stage.client().value("select current_user"), user);
    }
);

both_shards!(encrypted_servers_travel_between_shards, |shards| {
    let stage = stage(topology(shards, "require").pool_size(1), &[]);
    let mut clients: Vec<_> = (0..8).map(|_| stage.client()).collect();
    let pid = clients[0].value("select pg_backend_pid()");
    for round in 0..20 {
        for (at, client) in clients.iter_mut().enumerate() {
            let asked = format!(
                "select '{round}.{at}', repeat('x', {})",
                (round * at * 997) % 60_000
            );
            let reply = client.query(&asked);
            assert_eq!(
                reply.rows[0][0].as_deref(),
                Some(format!("{round}.{at}").as_str())
            );
            assert_eq!(
                client.value("select pg_backend_pid()"),
                pid,
                "one server for all"
            );
        }
    }
});

/// A column of SHOW SHARDS, summed over the shards.
fn of_all_shards(stage: &Stage, name: &str) -> usize {
    let table = stage.console("SHOW SHARDS").table();
    table
        .iter()
        .map(|row| row[name].parse::<usize>().unwrap())
        .sum()
}

/// 3 shards, pool of 1, 9 clients (more if all are on one shard) with statements of their own: in every round the server goes to
/// each shard that has some.
#[test]
fn an_encrypted_server_takes_its_statements_along_to_other_shards() {
    const ROUNDS: usize = 20;
    let topology = topology(3, "require").set("rebalance_clients", false);
    let stage = stage(topology.pool_size(1), &[]);
    let mut clients: Vec<_> = (0..9).map(|_| stage.client()).collect();
    // One of them is the console.
    let is_host = |row: &BTreeMap<String, String>| row["clients"].parse::<usize>().unwrap() > 1;
    let shards = || stage.console("SHOW SHARDS").table();
    while shards().into_iter().filter(is_host).count() < 2 {
        assert!(clients.len() < 100, "all are on one shard");
        clients.push(stage.client());
    }
    let row =
        |id: usize| format!("select '{id}:' || $1, pg_backend_pid(), repeat('{id}', $1::int)");
    for (id, client) in clients.iter_mut().enumerate() {
        let prepare = [parse("mine", &row(id)), sync()].concat();
        assert_eq!(client.exchange(&prepare).status, b'I');
    }
    let pid = clients[0].value("select pg_backend_pid()");
    let before = of_all_shards(&stage, "handoffs_in");
    for round in 0..ROUNDS {
        for (id, client) in clients.iter_mut().enumerate() {
            let size = (round * id * 997) % 60_000;
            let text = size.to_string();
            let ask = [bind("", "mine", &[&text]), execute("", 0), sync()].concat();
            let expected = [
                format!("{id}:{size}"),
                pid.clone(),
                id.to_string().repeat(size),
            ];
            let reply = client.exchange(&ask);
            assert_eq!(
                reply.rows,
                [expected.map(Some)],
                "client {id}, round {round}"
            );
        }
    }
    let handed_over = of_all_shards(&stage, "handoffs_in") - before;
    assert!(handed_over >= ROUNDS, "{handed_over} hand-offs");
    assert_eq!(clients[0].value(VERSION), "TLSv1.3");
    // Each was prepared once: the server and what is known of it have not parted.
    let statements =
        "select count(*) from pg_prepared_statements where statement like '%repeat%$1%'";
    let count = clients.len().to_string();
    assert_eq!(clients[8].value(statements), count);
    assert_eq!(
        of_all_shards(&stage, "handoffs_in"),
        of_all_shards(&stage, "handoffs_out")
    );
}

both_shards!(large_results_arrive_whole_through_both_sides, |shards| {
    let authority = Authority::new("ours");
    let shown = authority.sign();
    let topology = topology(shards, "require")
        .set("client_tls_sslmode", "require")
        .set("client_tls_cert_file", shown.certificate_path())
        .set("client_tls_key_file", shown.key_path());
    let stage = stage(topology, &[]);
    let mut client = Client::connect(stage.address());
    let trusting = Arc::new(authority.client_config(None));
    client.request_tls(trusting).expect("a handshake");
    let params = [("user", "postgres"), ("database", &*stage.entry)];
    assert_eq!(client.start(PROTOCOL_3_0, &params).status, b'I');
    let sql = "select md5(i::text) || repeat('y', i % 700) from generate_series(1, 40000) i";
    let expected = stage.database.direct().query(sql).rows;
    assert_eq!(client.query(sql).rows, expected);
    let text = "z".repeat(3_000_000);
    assert_eq!(client.value(&format!("select length('{text}')")), "3000000");
});

both_shards!(cancel_requests_are_encrypted_as_well, |shards| {
    // PostgreSQL takes cancel requests in either form; this server counts those that came encrypted, and is in no hurry.
    let authority = Authority::new("ours");
    let config = authority.sign().server_config();
    let cancels = Arc::new(AtomicUsize::new(0));
    let counted = cancels.clone();
    let [is_first, may_shake] = [true, false].map(|flag| Arc::new(AtomicBool::new(flag)));
    let shakes = may_shake.clone();
    let server = FakeServer::start(move |mut conversation: Conversation| {
        if !is_first.swap(false, Ordering::AcqRel) {
            conversation.stall_until(&shakes);
        }
        if !conversation.encrypt(config.clone()) {
            return;
        }
        match conversation.read_untagged().as_deref() {
            Some([0, 3, ..]) => {
                conversation.send(&Conversation::greeting());
                conversation.next_request();
                wait_until("the cancel request", || {
                    counted.load(Ordering::Acquire) == 1
                });
                let failed = [
                    error(&[(b'S', "ERROR"), (b'C', "57014"), (b'M', "canceled")]),
                    ready(b'I'),
                ];
                conversation.send(&failed.concat());
                conversation.wait_closed();
            }
            Some([4, 210, 22, 46, ..]) => {
                counted.fetch_add(1, Ordering::AcqRel);
            }
            _ => {}
        }
    });
    let topology = trusting(topology(shards, "verify-full"), &authority).database_at(
        "db",
        server.address,
        &[],
    );
    let pooler = Pooler::start(&topology);
    let mut client = Client::login(pooler.address, "db");
    client.send(&query("select pg_sleep(100)"));
    wait_until("the query is under way", || {
        pooler.pools("db", "sv_active") == 1
    });
    let mut request = Client::connect(pooler.address);
    request.send(&cancel_request(client.key.0, &client.key.1));
    let requests = |column| pooler.pools("db", column);
    wait_until("it waits", || requests("cl_waiting_cancel_req") == 1);
    assert_eq!(
        ["cl_active_cancel_req", "sv_active_cancel"].map(requests),
        [0; 2]
    );
    may_shake.store(true, Ordering::Release);
    request.expect_closed();
    assert_eq!(client.reply().code(), "57014");
    assert_eq!(cancels.load(Ordering::Acquire), 1);
});

both_shards!(postgresql_cancels_over_tls, |shards| {
    let stage = stage(topology(shards, "require"), &[]);
    let mut client = stage.client();
    client.send(&query("select pg_sleep(100)"));
    stage
        .database
        .wait_backends(1, "query like '%pg_sleep%' and state = 'active'");
    peer::cancel(stage.address(), &client.key);
    assert_eq!(client.reply().code(), "57014");
});

both_shards!(scram_is_bound_to_the_channel_on_both_sides, |shards| {
    let user = role(MUST_SCRAM);
    let authority = Authority::new("of the pooler");
    let shown = authority.sign();
    let topology = topology(shards, "require")
        .set("auth_type", "scram-sha-256")
        .set("client_tls_sslmode", "prefer")
        .set("client_tls_cert_file", shown.certificate_path())
        .set("client_tls_key_file", shown.key_path())
        .user_secret(&user, &Postgres::encrypted().stored_secret(&user));
    let stage = stage(topology, &[]);
    let ask = |words: &str| {
        let words = format!("user={user} password=sesame {words}");
        psql(stage.address(), &stage.entry, &words, "select 'in'")
    };
    assert_eq!(
        ask("sslmode=require channel_binding=require").as_deref(),
        Ok("in")
    );
    assert_eq!(
        ask("sslmode=require channel_binding=disable").as_deref(),
        Ok("in")
    );
    assert_eq!(ask("sslmode=disable").as_deref(), Ok("in"));
    assert!(ask("sslmode=disable channel_binding=require").is_err());
    assert!(ask("sslmode=require channel_binding=require password=wrong").is_err());
});

/// The mechanism that the pooler picks, by a server that offers both and then hangs up.
fn picked(topology: Topology, shown: &Signed, user: &str) -> String {
    let config = shown.server_config();
    let (sender, receiver) = std::sync::mpsc::channel();
    let server = FakeServer::start(move |mut conversation: Conversation| {
        if conversation.encrypt(config.clone()) && conversation.read_startup() {
            let names = [
                &10_u32.to_be_bytes()[..],
                b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0",
            ]
            .concat();
            conversation.send(&message(b'R', &names));
            if let Some(answer) = conversation.read() {
                let _ = sender.send(String::from_utf8_lossy(&answer.body).into_owned());
            }
        }
    });
    let keys = [("user", user), ("password", "sesame")];
    let pooler = Pooler::start(&topology.database_at("db", server.address, &keys));
    let mut client = Client::connect(pooler.address);
    client.send(&startup(
        PROTOCOL_3_0,
        &[("user", "postgres"), ("database", "db")],
    ));
    receiver.recv_timeout(wait::PATIENCE).expect("an answer")
}

#[test]
fn channel_binding_is_picked_where_it_is_offered() {
    let authority = Authority::new("ours");
    let answer = picked(topology(1, "require"), &authority.sign(), "alice");
    assert!(answer.starts_with("SCRAM-SHA-256-PLUS\0"), "{answer:?}");
    assert!(
        answer.contains("p=tls-server-end-point,,n=,r="),
        "{answer:?}"
    );
}

/// The first message of a client's handshake.
fn client_hello(authority: &Authority) -> Vec<u8> {
    let config = Arc::new(authority.client_config(None));
    let name = "localhost".try_into().unwrap();
    let mut hello = Vec::new();
    let mut connection = ClientConnection::new(config, name).unwrap();
    connection.write_tls(&mut hello).unwrap();
    hello
}

/// The only server has gone; so many clients, 400 a shard, have said hello before one that is in needs a new one: how many
/// of them are answered before the server is.
fn answered_before_a_server(shards: usize, crowd_size: usize) -> usize {
    let authority = Authority::new("ours");
    let shown = authority.sign();
    let config = shown.server_config();
    let (crowd, breaks) = (
        Arc::new(Mutex::new(Vec::new())),
        Arc::new(AtomicBool::new(false)),
    );
    let answered = Arc::new(AtomicUsize::new(crowd_size));
    let (crowded, broken, count) = (crowd.clone(), breaks.clone(), answered.clone());
    let server = FakeServer::start(move |mut conversation| {
        if !conversation.encrypt(config.clone()) {
            return;
        }
        if !broken.load(Ordering::Acquire) {
            // the first: whoever waits for it breaks it as soon as it is in
            conversation.login();
            return conversation.stall_until(&broken);
        }
        let mut crowd = crowded.lock().unwrap();
        let answered = |client: &mut Client| usize::from(!client.has_nothing_to_read());
        count.store(crowd.iter_mut().map(answered).sum(), Ordering::Release);
        drop(crowd);
        conversation.login();
        conversation.serve("served");
    });
    let topology = topology(shards, "require")
        .pool_size(1)
        .set("client_tls_sslmode", "allow")
        .set("client_tls_cert_file", shown.certificate_path())
        .set("client_tls_key_file", shown.key_path())
        .database_at("db", server.address, &[]);
    let pooler = Pooler::start(&topology);
    let mut client = Client::login(pooler.address, "db");
    breaks.store(true, Ordering::Release);
    wait_until("the server has gone", || pooler.pools("db", "sv_idle") == 0);
    let hello = client_hello(&authority);
    let knocking = |_| {
        let mut client = Client::connect(pooler.address);
        client.send(&ssl_request());
        assert_eq!(client.read_byte(), b'S');
        client
    };
    crowd.lock().unwrap().extend((0..crowd_size).map(knocking));
    let shard = client.shard();
    let held = HeldShard::stop(&pooler, shard);
    // Their clients stay unanswered: they are none of this shard's affair.
    let others = (0..shards).filter(|other| *other != shard);
    let _others: Vec<_> = others
        .map(|other| HeldShard::stop(&pooler, other))
        .collect();
    let greets = |client: &mut Client| client.send(&hello);
    crowd.lock().unwrap().iter_mut().for_each(greets);
    client.send(&query("select 1"));
    drop(held);
    assert_eq!(client.reply().value(), "served");
    answered.load(Ordering::Acquire)
}

both_shards!(
    handshake_with_a_server_goes_before_those_of_a_crowd_of_clients,
    |shards| {
        let _alone = wait::alone();
        // without that order all 400, every time; with it those who fit between the server's answers, which take their time
        // on a busy machine
        let mut tries = (0..3).map(|_| answered_before_a_server(shards, 400 * shards));
        let first = tries.next().unwrap();
        let is_few = |answered: usize| answered < 300;
        assert!(
            is_few(first) || tries.any(is_few),
            "{first} clients came first"
        );
    }
);
