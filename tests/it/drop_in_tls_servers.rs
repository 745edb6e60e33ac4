//! TLS towards servers: what each mode asks of them, whose certificate is good, what changes with a reload. Each claim
//! holds for PgBouncer, too.

use std::fs;

use tempfile::TempDir;

use crate::support::certs::{Authority, Signed, Wish};
use crate::support::drop_in::*;
use crate::support::postgres::{MUST_CERTIFY, MUST_ENCRYPT, MUST_NOT_ENCRYPT};
use crate::support::wire::*;
use crate::support::*;

/// Whether the server connection that runs this is encrypted, and by which version.
const VERSION: &str =
    "select coalesce(version, 'plain') from pg_stat_ssl where pid = pg_backend_pid()";

fn database() -> Database {
    Postgres::encrypted().database()
}

fn role(group: &str) -> String {
    Postgres::encrypted().role(group, "scram-sha-256", "sesame")
}

/// Files of the pooler: `ca.crt` is of whoever has signed the certificates of servers.
struct Files(TempDir);

impl Files {
    fn trusting(authority: &Authority) -> Files {
        let files = Files(open_directory());
        files.publish(&authority.root, "ca");
        files
    }

    fn publish(&self, signed: &Signed, name: &str) {
        signed.publish(self.0.path(), name);
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    /// Lines of the file for this mode.
    fn lines(&self, mode: &str) -> String {
        format!(
            "server_login_retry = 1\nserver_tls_sslmode = {mode}\nserver_tls_ca_file = {}",
            self.path("ca.crt")
        )
    }

    /// The certificate that servers are shown.
    fn own(&self) -> String {
        format!(
            "server_tls_cert_file = {}\nserver_tls_key_file = {}",
            self.path("own.crt"),
            self.path("own.key")
        )
    }
}

/// Clients of these entries, or the texts that they are told: while a server cannot be reached, they wait for the time of
/// a login.
fn reach(drop_in: &DropIn, entries: &[&str]) -> Vec<Result<Client, String>> {
    let ask = |entry: &&str| {
        let mut client = Client::connect(drop_in.address);
        let params = [("user", "postgres"), ("database", *entry)];
        client.send(&startup(PROTOCOL_3_0, &params));
        client
    };
    let clients: Vec<_> = entries.iter().map(ask).collect();
    let outcome = |mut client: Client| match client.reply().error {
        None => Ok(client),
        Some(error) => Err(error.text),
    };
    clients.into_iter().map(outcome).collect()
}

const UNREACHED: &str = "client_login_timeout (server down)";

// ---- modes -------------------------------------------------------------------------------------------------------

drop_in!(mode_says_which_servers_are_encrypted, |brand| {
    let files = Files::trusting(Postgres::authority());
    let roles = [
        role(MUST_ENCRYPT),
        "postgres".into(),
        role(MUST_NOT_ENCRYPT),
    ];
    // Mode; then what a server says that must, may and must not encrypt; "" is a refusal.
    let encrypted = ["TLSv1.3", "TLSv1.3", ""];
    let table = [
        ("disable", ["", "plain", "plain"]),
        match brand {
            Brand::PgBouncer => ("allow", encrypted),
            // In clear text where the server takes that.
            Brand::Ringbouncer(_) => ("allow", ["TLSv1.3", "plain", "plain"]),
        },
        ("prefer", encrypted),
        ("require", encrypted),
        ("verify-ca", encrypted),
        ("verify-full", encrypted),
    ];
    for (mode, outcomes) in table {
        let database = database();
        let entries = ["must", "may", "must_not"];
        let lines: String = entries
            .iter()
            .zip(&roles)
            .map(|(name, role)| entry(name, &database, &format!("user={role}")))
            .collect();
        let lines = format!("{}\n[databases]\n{lines}", files.lines(mode));
        let drop_in = DropIn::start(brand, database, &lines);
        let reached = reach(&drop_in, &entries);
        for ((name, client), expected) in entries.iter().zip(reached).zip(outcomes) {
            let said = client.map(|mut client| client.value(VERSION));
            assert_eq!(
                said.as_deref().unwrap_or(""),
                expected,
                "{mode}, {name}: {said:?}"
            );
        }
    }
});

drop_in!(
    server_that_does_not_encrypt_is_refused_where_it_must,
    |brand| {
        let files = Files::trusting(Postgres::authority());
        for (mode, is_taken) in [
            ("disable", true),
            ("allow", true),
            ("prefer", true),
            ("require", false),
            ("verify-ca", false),
            ("verify-full", false),
        ] {
            let lines = format!("{}\nclient_login_timeout = 2", files.lines(mode));
            let drop_in = DropIn::start(brand, Postgres::shared().database(), &lines);
            let name = drop_in.database.name.clone();
            match reach(&drop_in, &[&name]).remove(0) {
                Ok(mut client) => assert_eq!(client.value(VERSION), "plain", "{mode}"),
                Err(text) => assert_eq!(text, UNREACHED, "{mode}"),
            }
            let refused = drop_in
                .log()
                .contains("closing because: server refused SSL");
            assert_eq!(refused, !is_taken, "{mode}");
        }
    }
);

drop_in!(unix_sockets_of_servers_need_not_be_encrypted, |brand| {
    let files = Files::trusting(Postgres::authority());
    // Its Unix socket encrypts for nobody.
    let server = DropIn::start(brand, Postgres::shared().database(), "");
    let lines = format!(
        "{}\n[databases]\nnear = host={} port={} dbname={}",
        files.lines("verify-full"),
        server.path("").display(),
        server.address.port(),
        server.database.name
    );
    let drop_in = DropIn::start(brand, database(), &lines);
    let mut client = Client::login(drop_in.address, "near");
    assert_eq!(client.value("select 'served'"), "served");
});

drop_in!(console_tells_how_servers_are_encrypted, |brand| {
    let files = Files::trusting(Postgres::authority());
    let drop_in = DropIn::start(brand, database(), &files.lines("require"));
    let mut client = drop_in.client();
    assert_eq!(client.query("begin").status, b'T');
    let servers = drop_in.console("SHOW SERVERS").table();
    let shown = &servers[0]["tls"];
    let agreed = shown.strip_prefix("TLSv1.3/TLS_AES_256_GCM_SHA384");
    let agreed = agreed.unwrap_or_else(|| panic!("{shown}"));
    assert!(agreed.is_empty() || agreed.starts_with("/ECDH="), "{shown}");
});

drop_in!(file_chooses_protocol_and_ciphers_of_servers, |brand| {
    const CIPHER: &str =
        "select version || '/' || cipher from pg_stat_ssl where pid = pg_backend_pid()";
    let files = Files::trusting(Postgres::authority());
    let ciphers = "server_tls_protocols = tlsv1.2\nserver_tls_ciphers = \
                   ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305";
    for (lines, expected) in [
        (
            "server_tls_protocols = tlsv1.2",
            "TLSv1.2/ECDHE-ECDSA-AES256-GCM-SHA384",
        ),
        (
            "server_tls_protocols = tlsv1.3",
            "TLSv1.3/TLS_AES_256_GCM_SHA384",
        ),
        (ciphers, "TLSv1.2/ECDHE-ECDSA-CHACHA20-POLY1305"),
    ] {
        let lines = format!("{}\n{lines}", files.lines("require"));
        let drop_in = DropIn::start(brand, database(), &lines);
        assert_eq!(drop_in.client().value(CIPHER), expected);
    }
});

// ---- certificates ------------------------------------------------------------------------------------------------

/// A server that shows a certificate and then serves.
fn showing(shown: &Signed) -> FakeServer {
    let config = shown.server_config();
    FakeServer::start(move |mut conversation| {
        if conversation.encrypt(config.clone()) && conversation.login() {
            conversation.serve("served");
        }
    })
}

/// A line of `[databases]` for a server, which is called by its address.
fn local(name: &str, server: &FakeServer) -> String {
    format!("{name} = host=127.0.0.1 port={}\n", server.address.port())
}

drop_in!(
    certificates_of_servers_are_judged_as_the_mode_says,
    |brand| {
        let authority = Authority::new("ours");
        let named = |common_name, names| {
            authority.sign_as(&Wish {
                common_name,
                names,
                ..Wish::default()
            })
        };
        let expired = authority.sign_as(&Wish {
            is_expired: true,
            ..Wish::default()
        });
        let is_theirs = matches!(brand, Brand::PgBouncer);
        // Certificate, and which of require, verify-ca and verify-full take it.
        let table = [
            ("good", authority.sign(), [true; 3]),
            ("common", named("127.0.0.1", &[]), [true; 3]),
            (
                "elsewhere",
                named("elsewhere", &["elsewhere.example"]),
                [true, true, false],
            ),
            // The common name beside others.
            (
                "misnamed",
                named("127.0.0.1", &["elsewhere.example"]),
                [true, true, is_theirs],
            ),
            (
                "stranger",
                Authority::new("theirs").sign(),
                [true, false, false],
            ),
            ("expired", expired, [true, false, false]),
        ];
        let servers = table.each_ref().map(|(_, shown, _)| showing(shown));
        let names = table.each_ref().map(|(name, ..)| *name);
        let entries: String = names
            .iter()
            .zip(&servers)
            .map(|(name, server)| local(name, server))
            .collect();
        let files = Files::trusting(&authority);
        for (at, mode) in ["require", "verify-ca", "verify-full"].iter().enumerate() {
            let lines = format!(
                "{}\nclient_login_timeout = 2\n[databases]\n{entries}",
                files.lines(mode)
            );
            let drop_in = DropIn::start(brand, Postgres::shared().database(), &lines);
            let reached = reach(&drop_in, &names);
            for ((name, _, taken), client) in table.iter().zip(reached) {
                let said = client.map(|mut client| client.value("select 1"));
                let expected = match taken[at] {
                    true => Ok("served".to_owned()),
                    false => Err(UNREACHED.to_owned()),
                };
                assert_eq!(said, expected, "{name}, {mode}");
            }
        }
    }
);

drop_in!(
    host_of_another_name_is_left_for_the_next,
    since(1, 25),
    |brand| {
        let authority = Authority::new("ours");
        let named = authority.sign_as(&Wish {
            common_name: "x",
            names: &["127.0.0.1"],
            ..Wish::default()
        });
        let (files, server) = (Files::trusting(&authority), showing(&named));
        for balance in ["disable", "round-robin"] {
            // Both are the same server; by its name it is nobody we trust.
            let lines = format!(
                "{}\n[databases]\nmany = host=localhost,127.0.0.1 port={} load_balance_hosts={balance}\n",
                files.lines("verify-full"),
                server.address.port(),
            );
            let drop_in = DropIn::start(brand, Postgres::shared().database(), &lines);
            assert_eq!(
                Client::login(drop_in.address, "many").value("select 1"),
                "served"
            );
        }
    }
);

drop_in!(certificate_of_the_pooler_opens_the_door, |brand| {
    let user = role(MUST_CERTIFY);
    let own = Postgres::authority().sign_as(&Wish {
        common_name: &user,
        ..Wish::default()
    });
    let files = Files::trusting(Postgres::authority());
    files.publish(&own, "own");
    let start = |lines: &str| {
        let database = database();
        let entry = entry("main", &database, &format!("user={user}"));
        let lines = format!("{}\n{lines}\n[databases]\n{entry}", files.lines("require"));
        DropIn::start(brand, database, &lines)
    };
    let with = start(&files.own());
    let mut client = Client::login(with.address, "main");
    assert_eq!(client.value("select current_user"), user);
    let without = start("");
    let told = reach(&without, &["main"]).remove(0).map(drop);
    assert_eq!(
        told,
        Err("connection requires a valid client certificate".into())
    );
});

// ---- servers that misbehave --------------------------------------------------------------------------------------

drop_in!(data_behind_the_consent_to_encrypt_is_refused, |brand| {
    let authority = Authority::new("ours");
    let files = Files::trusting(&authority);
    for answer in [&b"SR\0\0\0\x08\0\0\0\0"[..], b"X"] {
        let server = FakeServer::start(move |mut conversation| {
            conversation.read_untagged();
            conversation.send(answer);
            conversation.wait_closed();
        });
        let lines = format!(
            "{}\nclient_login_timeout = 2\n[databases]\n{}",
            files.lines("require"),
            local("odd", &server)
        );
        let drop_in = DropIn::start(brand, Postgres::shared().database(), &lines);
        let told = reach(&drop_in, &["odd"]).remove(0).map(drop);
        assert_eq!(told, Err(UNREACHED.into()));
        line_with(&drop_in, "closing because: ");
    }
});

// ---- changes -----------------------------------------------------------------------------------------------------

drop_in!(servers_are_replaced_when_tls_changes, |brand| {
    let files = Files::trusting(Postgres::authority());
    let lines = format!("{}\npool_mode = transaction", files.lines("disable"));
    let drop_in = DropIn::start(brand, database(), &lines);
    let (mut idle, mut busy) = (drop_in.client(), drop_in.client());
    assert_eq!(busy.query("begin").status, b'T');
    assert_eq!(idle.value(VERSION), "plain");
    let reply = drop_in.reload_with("sslmode = disable", "sslmode = require");
    assert_eq!(reply.complete, ["RELOAD"]);
    assert_eq!(busy.value(VERSION), "plain", "its transaction goes on");
    assert_eq!(busy.query("commit").complete, ["COMMIT"]);
    for client in [&mut idle, &mut busy] {
        assert_eq!(client.value(VERSION), "TLSv1.3");
    }
});

drop_in!(
    servers_stay_when_tls_does_not_change,
    since(1, 24),
    |brand| {
        let files = Files::trusting(Postgres::authority());
        let lines = format!("{}\npool_mode = transaction", files.lines("verify-full"));
        let drop_in = DropIn::start(brand, database(), &lines);
        let mut client = drop_in.client();
        let pid = client.value("select pg_backend_pid()");
        assert_eq!(drop_in.console("RELOAD").complete, ["RELOAD"]);
        assert_eq!(client.value("select pg_backend_pid()"), pid);
    }
);

drop_in!(reload_reads_the_ca_of_servers_again, |brand| {
    let (before, after) = (Authority::new("before"), Authority::new("after"));
    let (old, new) = (showing(&before.sign()), showing(&after.sign()));
    let files = Files::trusting(&before);
    let lines = format!(
        "{}\nclient_login_timeout = 2\n[databases]\n{}{}",
        files.lines("verify-full"),
        local("old", &old),
        local("new", &new)
    );
    let drop_in = DropIn::start(brand, Postgres::shared().database(), &lines);
    let reached = |names: [&str; 2]| {
        let clients = reach(&drop_in, &names);
        clients.iter().map(Result::is_ok).collect::<Vec<_>>()
    };
    assert_eq!(reached(["old", "new"]), [true, false]);
    fs::write(
        files.path("ca.crt"),
        fs::read(&after.root.certificate).unwrap(),
    )
    .unwrap();
    assert_eq!(drop_in.console("RELOAD").complete, ["RELOAD"]);
    // Later ones look at the names of the files and keep the servers they have.
    let keeps = brand.is_from((1, 24));
    assert_eq!(reached(["old", "new"]), [keeps, true]);
});

drop_in!(cancel_requests_reach_servers_that_encrypt, |brand| {
    let files = Files::trusting(Postgres::authority());
    let drop_in = DropIn::start(brand, database(), &files.lines("verify-full"));
    let mut client = drop_in.client();
    client.send(&query("select pg_sleep(100)"));
    drop_in.database.wait_backends(1, "state = 'active'");
    peer::cancel(drop_in.address, &client.key);
    assert_eq!(client.reply().code(), "57014");
});
