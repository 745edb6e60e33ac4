//! HBA rules, ident maps, and logins that something else than a password decides.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use tempfile::TempDir;

use crate::support::certs::{Authority, Signed, Wish};
use crate::support::wire::*;
use crate::support::*;

/// Files for a pooler, gone with the test.
struct Files(TempDir);

impl Files {
    fn new(hba: &str, ident: &str) -> Files {
        let files = Files(tempfile::tempdir().unwrap());
        files.write("hba", hba);
        files.write("ident", ident);
        files
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn topology(&self, shards: usize) -> Topology {
        let path = |name: &str| self.path(name).to_str().unwrap().to_owned();
        Topology::new(shards)
            .set("auth_type", "hba")
            .set("auth_hba_file", path("hba"))
            .set("auth_ident_file", path("ident"))
    }
}

/// The user that tests, and so the pooler, run as.
fn os_user() -> String {
    let output = Command::new("id").arg("-un").output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Logs in by TCP, without a password.
fn by_tcp(stage: &Stage, user: &str) -> peer::Reply {
    let params = [("user", user), ("database", stage.entry.as_str())];
    Client::connect(stage.address()).start(PROTOCOL_3_0, &params)
}

/// Logs in by the Unix socket, without a password.
fn by_socket(stage: &Stage, user: &str, database: &str) -> peer::Reply {
    let path = stage.unix.clone().expect("a Unix socket");
    let params = [("user", user), ("database", database)];
    Client::connect_unix(&path).start(PROTOCOL_3_0, &params)
}

fn is_in(reply: &peer::Reply) -> bool {
    reply.status == b'I' && reply.error.is_none()
}

const RULES: &str = "
# nonsense that is skipped
host all all example.com trust
remote all all trust
local all postgres trust
host all banned 127.0.0.0/8 reject
host all asked samehost password
host all postgres 127.0.0.1/32 trust
host @names all samenet trust
";

both_shards!(first_matching_rule_decides, |shards| {
    let files = Files::new(RULES, "");
    files.write("names", "listed # a comment\n");
    let users = ["banned", "asked", "stranger"];
    let topology = users.iter().fold(files.topology(shards), |topology, user| {
        topology.user_secret(user, "secret")
    });
    let database = Postgres::shared().database();
    let topology = topology.database("listed", &database, &[("user", "postgres")]);
    let stage = Stage::on(database, topology, &[("user", "postgres")]);
    assert!(is_in(&by_tcp(&stage, "postgres")));
    assert!(is_in(&by_socket(&stage, "postgres", &stage.entry)));
    by_tcp(&stage, "banned").assert_fatal("login rejected");
    by_tcp(&stage, "stranger").assert_fatal("no authentication method is found");
    by_socket(&stage, "stranger", &stage.entry).assert_fatal("no authentication method is found");
    let listed = [("user", "stranger"), ("database", "listed")];
    assert!(is_in(
        &Client::connect(stage.address()).start(PROTOCOL_3_0, &listed)
    ));
    for (password, good) in [("secret", true), ("wrong", false)] {
        let outcome = driver::try_login(stage.address(), "asked", password, &stage.entry);
        assert_eq!(outcome.is_ok(), good, "{outcome:?}");
    }
    stage.wait_log("hba:3: ");
    stage.wait_log("host names are not supported");
});

both_shards!(rules_apply_to_users_nobody_knows_alike, |shards| {
    let files = Files::new("host all all all scram-sha-256\n", "");
    let stage = Stage::with_keys(
        files.topology(shards).user_secret("known", "secret"),
        &[("user", "postgres")],
    );
    for user in ["known", "unknown"] {
        let refused = driver::try_login(stage.address(), user, "wrong", &stage.entry).unwrap_err();
        assert_eq!(refused.1, "SASL authentication failed", "{user}");
    }
});

both_shards!(missing_file_refuses_everybody, |shards| {
    let files = Files::new("", "");
    fs::remove_file(files.path("hba")).unwrap();
    let stage = Stage::pooled(files.topology(shards));
    by_tcp(&stage, "postgres").assert_fatal("no authentication method is found");
    by_socket(&stage, "postgres", &stage.entry).assert_fatal("no authentication method is found");
    stage.wait_log("cannot read auth_hba_file");
});

both_shards!(reload_reads_the_rules_again, |shards| {
    let files = Files::new("host all postgres all trust\n", "");
    let topology = files.topology(shards).user_secret("other", "");
    let stage = Stage::with_keys(topology, &[("user", "postgres")]);
    by_tcp(&stage, "other").assert_fatal("no authentication method is found");
    files.write("hba", "host all all all trust\n");
    assert_eq!(stage.console("RELOAD").complete, ["RELOAD"]);
    assert!(is_in(&by_tcp(&stage, "other")));
});

both_shards!(peer_takes_the_systems_word_for_it, |shards| {
    let own = os_user();
    let ident = format!("staff {own} mapped\nstaff /^(.).*$ \\1_first\n");
    let rules = "local all mapped,/_first$ peer map=staff\nlocal all nomap peer map=none\n\
                 local all all peer\nhost all all all trust\n";
    let files = Files::new(rules, &ident);
    let first = format!("{}_first", &own[..1]);
    let users = [own.as_str(), "mapped", "nomap", "other", &first, "?_first"];
    let topology = users.iter().fold(files.topology(shards), |topology, user| {
        topology.user_secret(user, "")
    });
    let stage = Stage::with_keys(topology, &[("user", "postgres")]);
    for (user, good) in [
        (own.as_str(), true),
        ("mapped", true),
        (first.as_str(), true),
        ("?_first", false),
        ("nomap", false),
        ("other", false),
        ("unknown", false),
    ] {
        let reply = by_socket(&stage, user, &stage.entry);
        assert_eq!(is_in(&reply), good, "{user}: {reply:?}");
        if !good {
            reply.assert_fatal("unix socket login rejected");
        }
    }
});

both_shards!(
    owner_of_the_process_is_administrator_on_the_socket,
    |shards| {
        let files = Files::new("", "");
        let stage = Stage::pooled(
            files
                .topology(shards)
                .set("admin_users", Vec::<String>::new()),
        );
        for database in ["pgbouncer", "ringbouncer"] {
            let reply = by_socket(&stage, "pgbouncer", database);
            assert!(is_in(&reply), "{reply:?}");
            by_socket(&stage, "postgres", database)
                .assert_fatal("no authentication method is found");
        }
        // Only the console, only the socket.
        by_socket(&stage, "pgbouncer", &stage.entry)
            .assert_fatal("no authentication method is found");
        let params = [("user", "pgbouncer"), ("database", "pgbouncer")];
        let reply = Client::connect(stage.address()).start(PROTOCOL_3_0, &params);
        reply.assert_fatal("no authentication method is found");
        let mut owner = Client::connect_unix(stage.unix.as_ref().unwrap());
        owner.start(PROTOCOL_3_0, &params);
        assert_eq!(owner.query("RELOAD").complete, ["RELOAD"]);
    }
);

both_shards!(any_lets_everybody_in_as_the_forced_user, |shards| {
    let topology = Topology::new(shards).set("auth_type", "any");
    let stage = Stage::with_keys(topology, &[("user", "postgres")]);
    for user in ["anybody", "postgres", "x y"] {
        let outcome = driver::try_login(stage.address(), user, "", &stage.entry);
        assert_eq!(outcome, Ok("postgres".into()));
    }
    // The console shows itself to everybody, and obeys its administrators only.
    let params = [("user", "anybody"), ("database", "pgbouncer")];
    let mut client = Client::connect(stage.address());
    client.start(PROTOCOL_3_0, &params);
    assert!(client.query("SHOW POOLS").error.is_none());
    assert!(
        client
            .query("RELOAD")
            .text()
            .contains("admin access needed")
    );
    assert_eq!(stage.console("RELOAD").complete, ["RELOAD"]);
});

both_shards!(any_needs_a_user_for_every_database, |shards| {
    let database = Postgres::shared().database();
    let topology = Topology::new(shards)
        .set("auth_type", "any")
        .database("shared", &database, &[]);
    let log = Pooler::try_start(&topology).err().expect("a refusal");
    assert!(log.contains("databases.shared.user"), "{log}");
});

/// Logs in over TLS with this certificate, if any, and without a password.
fn by_tls(stage: &Stage, authority: &Authority, own: Option<&Signed>, user: &str) -> peer::Reply {
    let mut client = Client::connect(stage.address());
    let config = Arc::new(authority.client_config(own));
    client.request_tls(config).expect("a handshake");
    let params = [("user", user), ("database", stage.entry.as_str())];
    client.start(PROTOCOL_3_0, &params)
}

both_shards!(names_in_a_certificate_decide_who_its_bearer_is, |shards| {
    let authority = Authority::new("authority of the clients");
    let shown = authority.sign();
    let named = |common_name, names| {
        authority.sign_as(&Wish {
            common_name,
            names,
            ..Wish::default()
        })
    };
    let (alice, san) = (named("alice", &[]), named("alice", &["bob"]));
    let rules = "hostssl all mapped all cert map=staff\nhostssl all plain all trust\n\
                 hostssl all named all trust clientcert=verify-full\n\
                 hostssl all valid all trust clientcert=verify-ca\n\
                 hostssl all all all cert\nhost all all all reject\n";
    let files = Files::new(rules, "staff alice mapped\n");
    let users = ["alice", "bob", "mapped", "plain", "named", "valid"];
    let topology = files
        .topology(shards)
        .set("client_tls_sslmode", "allow")
        .set("client_tls_cert_file", shown.certificate_path())
        .set("client_tls_key_file", shown.key_path())
        .set("client_tls_ca_file", authority.root.certificate_path());
    let topology = users
        .iter()
        .fold(topology, |topology, user| topology.user_secret(user, ""));
    let stage = Stage::with_keys(topology, &[("user", "postgres")]);
    let login = |own: Option<&Signed>, user: &str| by_tls(&stage, &authority, own, user);
    for (own, user, good) in [
        (Some(&alice), "alice", true),
        (Some(&alice), "bob", false),
        (Some(&alice), "mapped", true),
        (Some(&alice), "unknown", false),
        (Some(&alice), "named", false),
        (Some(&alice), "valid", true),
        (Some(&san), "bob", true),
        (Some(&san), "alice", true),
        (Some(&san), "unknown", false),
        (None, "plain", true),
        (None, "alice", false),
        (None, "valid", false),
    ] {
        let reply = login(own, user);
        assert_eq!(is_in(&reply), good, "{user}: {reply:?}");
        if !good {
            reply.assert_fatal("certificate authentication failed");
        }
    }
    by_tcp(&stage, "alice").assert_fatal("login rejected");
});

both_shards!(certificate_logins_need_a_certificate, |shards| {
    let files = Files::new("hostssl all all all cert\n", "");
    let stage = Stage::pooled(files.topology(shards));
    by_tcp(&stage, "postgres").assert_fatal("no authentication method is found");
    let authority = Authority::new("authority of the clients");
    let shown = authority.sign();
    let topology = Topology::new(shards)
        .set("auth_type", "cert")
        .set("client_tls_sslmode", "allow")
        .set("client_tls_cert_file", shown.certificate_path())
        .set("client_tls_key_file", shown.key_path())
        .set("client_tls_ca_file", authority.root.certificate_path());
    let stage = Stage::pooled(topology);
    let reply = by_tls(&stage, &authority, None, "postgres");
    reply.assert_fatal("certificate authentication failed");
    by_tcp(&stage, "postgres").assert_fatal("certificate authentication failed");
});
