//! TLS towards clients: who may come in how, and that nothing else changes.

use std::sync::Arc;

use rustls::{ClientConfig, Connection};

use crate::support::certs::{Authority, Signed, Wish};
use crate::support::wire::*;
use crate::support::*;

/// What the clients of a test trust, and what the pooler shows them.
struct Office {
    authority: Authority,
    shown: Signed,
}

impl Office {
    fn new() -> Office {
        let authority = Authority::new("authority of the pooler");
        Office {
            shown: authority.sign(),
            authority,
        }
    }

    fn topology(&self, shards: usize, mode: &str) -> Topology {
        Topology::new(shards)
            .set("client_tls_sslmode", mode)
            .set("client_tls_cert_file", self.shown.certificate_path())
            .set("client_tls_key_file", self.shown.key_path())
            .set("client_tls_ca_file", self.authority.root.certificate_path())
    }

    fn config(&self) -> Arc<ClientConfig> {
        Arc::new(self.authority.client_config(None))
    }

    /// A client that has logged in over TLS.
    fn client(&self, stage: &Stage) -> Client {
        login_over_tls(stage, self.config())
    }

    /// Words for psql: trust this authority.
    fn root(&self) -> String {
        format!("sslrootcert={}", self.authority.root.certificate_path())
    }
}

#[track_caller]
fn login_over_tls(stage: &Stage, config: Arc<ClientConfig>) -> Client {
    let mut client = Client::connect(stage.address());
    client.request_tls(config).expect("a handshake");
    let params = [("user", "postgres"), ("database", stage.entry.as_str())];
    let reply = client.start(PROTOCOL_3_0, &params);
    assert_eq!(reply.status, b'I', "login failed: {reply:?}");
    client
}

/// Words for psql: show this certificate.
fn own(signed: &Signed) -> String {
    format!(
        "sslcert={} sslkey={}",
        signed.certificate_path(),
        signed.key_path()
    )
}

both_shards!(
    every_mode_of_the_pooler_meets_every_mode_of_psql,
    |shards| {
        let office = Office::new();
        let own_one = office.authority.sign_as(&Wish {
            common_name: "postgres",
            ..Wish::default()
        });
        let certificate = own(&own_one);
        // Which modes of psql get in: d(isable), a(llow), p(refer), r(equire), c (verify-ca), f (verify-full).
        let table = [
            ("disable", "dap", ""),
            ("allow", "daprcf", "prcf"),
            ("prefer", "daprcf", "prcf"),
            ("require", "aprcf", "aprcf"),
            ("verify-ca", "aprcf", "aprcf"),
            ("verify-full", "aprcf", "aprcf"),
        ];
        let theirs = [
            ("d", "disable"),
            ("a", "allow"),
            ("p", "prefer"),
            ("r", "require"),
            ("c", "verify-ca"),
            ("f", "verify-full"),
        ];
        for (ours, come_in, encrypted) in table {
            let stage = Stage::pooled(office.topology(shards, ours));
            for (letter, mode) in theirs {
                let words = format!("sslmode={mode} {} {certificate}", office.root());
                let console = psql(stage.address(), "ringbouncer", &words, "show clients");
                assert_eq!(
                    console.is_ok(),
                    come_in.contains(letter),
                    "{ours}, {mode}: {console:?}"
                );
                if let Ok(rows) = console {
                    let is_encrypted = rows.contains("TLSv1.3/TLS_AES_256_GCM_SHA384/ECDH=");
                    assert_eq!(
                        is_encrypted,
                        encrypted.contains(letter),
                        "{ours}, {mode}: {rows}"
                    );
                    let answer = psql(stage.address(), &stage.entry, &words, "select 1");
                    assert_eq!(answer.as_deref(), Ok("1"));
                }
            }
        }
    }
);

both_shards!(
    client_that_does_not_encrypt_is_told_that_it_must,
    |shards| {
        let office = Office::new();
        let stage = Stage::pooled(office.topology(shards, "require"));
        let mut client = Client::connect(stage.address());
        let reply = client.start(
            PROTOCOL_3_0,
            &[("user", "postgres"), ("database", &stage.entry)],
        );
        reply.assert_fatal("SSL required");
        assert_eq!(reply.code(), "08P01");
        // Unix sockets are exempt, and never encrypted.
        let mut client = Client::connect_unix(stage.unix.as_ref().unwrap());
        client.send(&ssl_request());
        assert_eq!(client.read_byte(), b'N');
        let reply = client.start(
            PROTOCOL_3_0,
            &[("user", "postgres"), ("database", &stage.entry)],
        );
        assert_eq!(reply.status, b'I');
    }
);

both_shards!(
    certificate_of_a_client_is_verified_whenever_it_is_shown,
    |shards| {
        let office = Office::new();
        let good = office.authority.sign();
        let stranger = Authority::new("nobody knows this one").sign();
        let expired = office.authority.sign_as(&Wish {
            is_expired: true,
            ..Wish::default()
        });
        let revoked = office.authority.sign();
        let directory = tempfile::tempdir().unwrap();
        let list = directory.path().join("revoked.pem");
        std::fs::write(&list, office.authority.revoke(&[&revoked])).unwrap();
        for mode in ["allow", "prefer", "require", "verify-ca", "verify-full"] {
            let topology = office
                .topology(shards, mode)
                .set("client_tls_crl_file", list.to_str().unwrap());
            let stage = Stage::pooled(topology);
            let ask = |words: &str| {
                let words = format!("sslmode=verify-full {} {words}", office.root());
                psql(stage.address(), &stage.entry, &words, "select 'in'")
            };
            assert_eq!(ask(&own(&good)).as_deref(), Ok("in"), "{mode}");
            for bad in [&stranger, &expired, &revoked] {
                let complaint = ask(&own(bad)).expect_err(mode);
                assert!(
                    complaint.contains("SSL") || complaint.contains("alert"),
                    "{complaint}"
                );
            }
            let without = ask("");
            assert_eq!(
                without.is_ok(),
                !mode.starts_with("verify"),
                "{mode}: {without:?}"
            );
        }
    }
);

both_shards!(client_refuses_a_pooler_that_it_does_not_trust, |shards| {
    let office = Office::new();
    let stage = Stage::pooled(office.topology(shards, "require"));
    let other = Authority::new("another authority");
    let other_root = format!(
        "sslmode=verify-ca sslrootcert={}",
        other.root.certificate_path()
    );
    assert!(psql(stage.address(), &stage.entry, &other_root, "select 1").is_err());
    let far = office.authority.sign_as(&Wish {
        common_name: "elsewhere",
        names: &["elsewhere.example"],
        ..Wish::default()
    });
    let topology = office
        .topology(shards, "require")
        .set("client_tls_cert_file", far.certificate_path())
        .set("client_tls_key_file", far.key_path());
    let stage = Stage::pooled(topology);
    let ask = |mode: &str| {
        let words = format!("sslmode={mode} {}", office.root());
        psql(stage.address(), &stage.entry, &words, "select 1")
    };
    assert!(ask("verify-ca").is_ok());
    assert!(ask("verify-full").is_err());
});

both_shards!(tls_at_once_needs_alpn, |shards| {
    let office = Office::new();
    let stage = Stage::pooled(office.topology(shards, "require"));
    let direct = |protocols: &[&str]| {
        let mut config = office.authority.client_config(None);
        config.alpn_protocols = protocols
            .iter()
            .map(|name| name.as_bytes().to_vec())
            .collect();
        let mut client = Client::connect(stage.address());
        client
            .encrypt(Arc::new(config), "localhost")
            .map(|()| client)
    };
    let params = [("user", "postgres"), ("database", stage.entry.as_str())];
    let mut client = direct(&["postgresql"]).expect("a handshake");
    assert_eq!(client.start(PROTOCOL_3_0, &params).status, b'I');
    assert_eq!(client.value("select 'direct'"), "direct");
    // Another protocol: no handshake. None at all: refused before anything is said.
    let refused = direct(&["http/1.1"]).map(drop).expect_err("no handshake");
    assert!(
        refused.to_string().contains("NoApplicationProtocol"),
        "{refused}"
    );
    let mut client = direct(&[]).expect("a handshake");
    client.send_anyway(&startup(PROTOCOL_3_0, &params));
    client
        .reply()
        .assert_fatal("direct SSL connection without ALPN protocol negotiation");
});

both_shards!(
    cve_2021_3935_data_sent_along_with_an_ssl_request_is_refused,
    |shards| {
        let office = Office::new();
        let stage = Stage::pooled(office.topology(shards, "prefer"));
        let mut client = Client::connect(stage.address());
        let smuggled = startup(
            PROTOCOL_3_0,
            &[("user", "postgres"), ("database", &stage.entry)],
        );
        client.send(&[ssl_request(), smuggled].concat());
        client
            .reply()
            .assert_fatal("received unencrypted data after SSL request");
    }
);

both_shards!(ssl_request_inside_tls_ends_the_connection, |shards| {
    let office = Office::new();
    let stage = Stage::pooled(office.topology(shards, "require"));
    let mut client = Client::connect(stage.address());
    client.request_tls(office.config()).unwrap();
    client.send(&ssl_request());
    client.expect_closed();
});

both_shards!(
    garbage_instead_of_a_handshake_ends_the_connection_alone,
    |shards| {
        let office = Office::new();
        let stage = Stage::pooled(office.topology(shards, "prefer"));
        let garbage: [&[u8]; 5] = [
            b"GET / HTTP/1.1\r\n\r\n",
            &[0x16, 3, 1, 0, 4, 1, 0, 0, 0],
            &[0x16, 3, 1, 0xff, 0xff, 0, 0],
            &[0x17, 3, 3, 0, 1, 0],
            &[0x15, 3, 3, 0, 2, 2, 40],
        ];
        for bytes in garbage {
            let mut client = Client::connect(stage.address());
            client.send(&ssl_request());
            assert_eq!(client.read_byte(), b'S');
            client.send_anyway(bytes);
            // Perhaps an alert, then the end.
            client.read_to_end();
        }
        // A handshake that stops in the middle, and one whose client hangs up.
        let mut stuck = Client::connect(stage.address());
        stuck.send(&ssl_request());
        assert_eq!(stuck.read_byte(), b'S');
        stuck.send(&[0x16, 3, 1, 2, 0, 1]);
        let mut gone = Client::connect(stage.address());
        gone.send(&ssl_request());
        gone.send_anyway(&[0x16, 3, 1]);
        drop(gone);
        assert_eq!(office.client(&stage).value("select 'fine'"), "fine");
        wait_until("the one that hung up has gone", || {
            let table = stage.console("SHOW SOCKETS").table();
            table.iter().filter(|row| row["type"] == "C").count() <= 2
        });
    }
);

both_shards!(records_may_arrive_byte_by_byte, |shards| {
    let office = Office::new();
    let stage = Stage::pooled(office.topology(shards, "require"));
    let mut client = Client::connect(stage.address());
    client.chop();
    client.request_tls(office.config()).unwrap();
    let reply = client.start(
        PROTOCOL_3_0,
        &[("user", "postgres"), ("database", &stage.entry)],
    );
    assert_eq!(reply.status, b'I');
    assert_eq!(client.value("select 'every byte'"), "every byte");
});

both_shards!(large_results_and_large_queries_arrive_whole, |shards| {
    let office = Office::new();
    let stage = Stage::pooled(office.topology(shards, "require"));
    let mut client = office.client(&stage);
    let sum = "select md5(string_agg(x, '')) from (select md5(i::text) || repeat('y', i % 700) as x \
               from generate_series(1, 40000) i) q";
    let rows = "select md5(i::text) || repeat('y', i % 700) from generate_series(1, 40000) i";
    let expected = stage.database.direct().value(sum);
    let reply = client.query(rows);
    assert_eq!(reply.rows.len(), 40_000);
    let text: String = reply
        .rows
        .into_iter()
        .map(|row| row[0].clone().unwrap())
        .collect();
    let literal = client.value(&format!("select md5('{text}')"));
    assert_eq!(literal, expected);
});

both_shards!(copy_runs_both_ways, |shards| {
    let office = Office::new();
    let stage = Stage::pooled(office.topology(shards, "require"));
    stage.database.sql("create table t (x text)");
    let mut client = office.client(&stage);
    client.send(&query("copy t from stdin"));
    client.expect(b'G');
    let line = [b"z".repeat(5000), b"\n".to_vec()].concat();
    for _ in 0..400 {
        client.send(&message(b'd', &line));
    }
    let reply = client.exchange(&message(b'c', b""));
    assert_eq!(reply.complete, ["COPY 400"]);
    let reply = client.query("copy t to stdout");
    assert_eq!(reply.tags.matches('d').count(), 400);
});

both_shards!(
    client_that_does_not_read_stops_the_server_and_loses_nothing,
    |shards| {
        let office = Office::new();
        let stage = Stage::pooled(office.topology(shards, "require"));
        let mut client = office.client(&stage);
        let before = stage.resident_bytes();
        client.send(&query(
            "select repeat('w', 1000) from generate_series(1, 200000)",
        ));
        stage
            .database
            .wait_backends(1, "wait_event = 'ClientWrite'");
        let grown = stage.resident_bytes().saturating_sub(before);
        assert!(
            grown < 40 << 20,
            "{grown} bytes for a client that does not read"
        );
        assert_eq!(client.reply().rows.len(), 200_000);
    }
);

both_shards!(query_is_cancelled_over_tls, |shards| {
    let office = Office::new();
    let stage = Stage::pooled(office.topology(shards, "require"));
    let mut client = office.client(&stage);
    client.send(&query("select pg_sleep(100)"));
    stage.database.wait_backends(1, "state = 'active'");
    let (pid, secret) = client.key.clone();
    let mut canceller = Client::connect(stage.address());
    canceller.request_tls(office.config()).unwrap();
    canceller.send(&cancel_request(pid, &secret));
    canceller.expect_closed();
    assert_eq!(client.reply().code(), "57014");
});

both_shards!(
    end_of_tls_ends_the_session_and_so_does_its_absence,
    |shards| {
        let office = Office::new();
        let stage = Stage::pooled(
            office
                .topology(shards, "require")
                .mode("session")
                .pool_size(1),
        );
        for says_so in [true, false] {
            let mut client = office.client(&stage);
            client.query("begin");
            if says_so {
                client.tls().send_close_notify();
                client.flush_tls();
            } else {
                client.finish_sending();
            }
            // The pooler says the same in turn, and lets the server go.
            client.expect_closed();
            assert_eq!(office.client(&stage).value("select 'free'"), "free");
        }
    }
);

both_shards!(sessions_are_resumed, |shards| {
    let office = Office::new();
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let stage = Stage::pooled(office.topology(shards, "require"));
        let mut config = office.authority.client_config_of(&[version]);
        config.resumption = rustls::client::Resumption::in_memory_sessions(8);
        let config = Arc::new(config);
        assert!(!is_resumed(login_over_tls(&stage, config.clone()).tls()));
        // Shards share the keys of the tickets, so it does not matter which one is met.
        for _ in 0..6 {
            let mut client = login_over_tls(&stage, config.clone());
            assert!(is_resumed(client.tls()), "{version:?}");
            assert_eq!(client.value("select 'again'"), "again");
        }
    }
});

fn is_resumed(tls: &Connection) -> bool {
    let kind = match tls {
        Connection::Client(client) => client.handshake_kind(),
        Connection::Server(server) => server.handshake_kind(),
    };
    kind == Some(rustls::HandshakeKind::Resumed)
}

both_shards!(settings_choose_version_and_cipher, |shards| {
    let office = Office::new();
    let cases = [
        (
            "tlsv1.2",
            "ECDHE-ECDSA-CHACHA20-POLY1305",
            "",
            "TLSv1.2/ECDHE-ECDSA-CHACHA20-POLY1305/ECDH=secp384r1",
        ),
        (
            "tlsv1.3",
            "default",
            "TLS_AES_128_GCM_SHA256",
            "TLSv1.3/TLS_AES_128_GCM_SHA256/ECDH=secp384r1",
        ),
    ];
    for (protocols, ciphers, tls13, shown) in cases {
        let topology = office
            .topology(shards, "require")
            .set("client_tls_protocols", protocols)
            .set("client_tls_ciphers", ciphers)
            .set("client_tls13_ciphers", tls13)
            .set("client_tls_ecdhcurve", "secp384r1");
        let stage = Stage::pooled(topology);
        let rows = psql(
            stage.address(),
            "ringbouncer",
            "sslmode=require",
            "show clients",
        )
        .unwrap();
        assert!(rows.contains(shown), "{rows}");
    }
});

#[test]
fn files_that_do_not_go_together_are_refused_at_start() {
    let office = Office::new();
    let other = office.authority.sign();
    let refused = |topology: Topology, part: &str| {
        let log = Pooler::try_start(&topology).err().expect("no start");
        assert!(log.contains(part), "{log}");
    };
    let topology = office.topology(1, "require");
    refused(
        topology
            .clone()
            .set("client_tls_key_file", other.key_path()),
        "is not the key of the certificate",
    );
    refused(
        topology
            .clone()
            .set("client_tls_cert_file", other.key_path()),
        "holds no certificate",
    );
    refused(
        topology.clone().set("client_tls_key_file", "nowhere.key"),
        "cannot read client_tls_key_file",
    );
    refused(
        topology.clone().set("client_tls_ciphers", "AES256-SHA"),
        "is not offered",
    );
    refused(
        topology.set("client_tls_ca_file", other.key_path()),
        "holds no certificate",
    );
    refused(
        Topology::new(1).set("client_tls_sslmode", "require"),
        "needs client_tls_key_file and client_tls_cert_file",
    );
}
