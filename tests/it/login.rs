//! Passwords: what clients must prove to the pooler, and the pooler to PostgreSQL.

use std::sync::Arc;

use crate::support::postgres::{MUST_MD5, MUST_PASSWORD, MUST_SCRAM};
use crate::support::wire::*;
use crate::support::*;

const PASSWORD: &str = "correct horse, 'battery' staple";

/// A role in a group of the test cluster, its password quoted for SQL.
fn role(group: &str, encryption: &str) -> String {
    Postgres::shared().role(group, encryption, &PASSWORD.replace('\'', "''"))
}

/// A role's secret the three ways a user list can hold it: the words `plain`, `md5`, `scram`.
fn secrets() -> [(&'static str, String, String); 3] {
    let postgres: &Arc<Postgres> = Postgres::shared();
    let (by_md5, by_scram, plain) = (
        role(MUST_MD5, "md5"),
        role(MUST_SCRAM, "scram-sha-256"),
        role(MUST_SCRAM, "md5"),
    );
    let secret = |name: &str| postgres.stored_secret(name);
    let (md5, scram) = (secret(&by_md5), secret(&by_scram));
    [
        ("plain", plain, PASSWORD.into()),
        ("md5", by_md5, md5),
        ("scram", by_scram, scram),
    ]
}

/// A pooler that asks for passwords this way, knows all three kinds, and reaches PostgreSQL as a trusted user.
fn stage_asking(shards: usize, auth_type: &str, secrets: &[(&str, String, String)]) -> Stage {
    let topology = Topology::new(shards).set("auth_type", auth_type);
    let with_secret = |topology: Topology, (_, name, secret): &(&str, String, String)| {
        topology.user_secret(name, secret)
    };
    let topology = secrets.iter().fold(topology, with_secret);
    Stage::with_keys(topology, &[("user", "postgres")])
}

fn right_passwords_are_let_in(shards: usize, auth_type: &str, kinds: &[&str]) {
    let secrets = secrets();
    let stage = stage_asking(shards, auth_type, &secrets);
    for (kind, name, _) in &secrets {
        let outcome = driver::try_login(stage.address(), name, PASSWORD, &stage.entry);
        assert_eq!(
            outcome.is_ok(),
            kinds.contains(kind),
            "{auth_type} with a {kind} secret: {outcome:?}"
        );
        let refused = driver::try_login(stage.address(), name, "wrong", &stage.entry).unwrap_err();
        assert!(
            refused.1.contains("authentication failed"),
            "{auth_type} with a {kind} secret: {refused:?}"
        );
        assert!(
            ["08P01", "28P01", "28000"].contains(&refused.0.as_str()),
            "{refused:?}"
        );
    }
    stage.database.wait_backends(0, "state <> 'idle'");
}

both_shards!(plain_accepts_every_kind_of_secret, |shards| {
    right_passwords_are_let_in(shards, "plain", &["plain", "md5", "scram"]);
});

both_shards!(md5_accepts_every_kind_of_secret, |shards| {
    right_passwords_are_let_in(shards, "md5", &["plain", "md5", "scram"]);
});

both_shards!(scram_accepts_all_but_md5_secrets, |shards| {
    right_passwords_are_let_in(shards, "scram-sha-256", &["plain", "scram"]);
});

/// What a stranger can see of a failed login: the tags, the kind of request, the refusal.
fn visible(stage: &Stage, user: &str, database: &str) -> (Vec<u32>, Option<Failure>) {
    let mut client = Client::connect(stage.address());
    client.send(&startup(
        PROTOCOL_3_0,
        &[("user", user), ("database", database)],
    ));
    let mut requests = Vec::new();
    loop {
        let message = client.read();
        if message.tag == b'E' {
            client.expect_closed();
            return (requests, Some(message.failure()));
        }
        assert_eq!(message.tag, b'R', "{message:?}");
        requests.push(message.u32_at(0));
        match message.u32_at(0) {
            10 => client.send(&scram::initial("n,,n=,r=abcdefghijklmnop")),
            11 => {
                let server_first = scram::server_first(&message.body);
                client.send(&scram::wrong_final(&server_first));
            }
            3 | 5 => client.send(&scram::message_p("md500000000000000000000000000000000\0")),
            other => panic!("authentication request {other}"),
        }
    }
}

/// Largest body of a message with a password or with SASL data.
const AUTH_BODY_MAX: usize = 65_535;
/// Longest secret that a file may have.
const SECRET_MAX: usize = 65_530;

/// A client of `user` that has been asked for a proof: the kind of request is as expected.
fn asked(stage: &Stage, user: &str, kind: u32) -> Client {
    let mut client = Client::connect(stage.address());
    let params = [("user", user), ("database", stage.entry.as_str())];
    client.send(&startup(PROTOCOL_3_0, &params));
    assert_eq!(client.expect(b'R').u32_at(0), kind);
    client
}

/// A message `p` of one byte more than may be is refused when its header has come, whatever follows.
#[track_caller]
fn assert_too_long(mut client: Client) {
    let head = with_length(b'p', b"", AUTH_BODY_MAX as i32 + 1 + 4);
    client.send(&head);
    client
        .reply()
        .assert_fatal("bad packet header: '7000010004'");
}

both_shards!(
    longest_password_is_accepted_and_no_longer_message,
    |shards| {
        let longest = "p".repeat(SECRET_MAX);
        let topology = Topology::new(shards)
            .set("auth_type", "plain")
            .user_secret("talker", &longest);
        let stage = Stage::with_keys(topology, &[("user", "postgres")]);
        let outcome = driver::try_login(stage.address(), "talker", &longest, &stage.entry);
        assert_eq!(outcome, Ok("postgres".into()));
        // As long as a message may be: that is read, and compared.
        let mut client = asked(&stage, "talker", 3);
        let reply = client.exchange(&scram::message_p(&("p".repeat(AUTH_BODY_MAX - 1) + "\0")));
        reply.assert_fatal("password authentication failed");
        assert_too_long(asked(&stage, "talker", 3));
    }
);

/// A message of SCRAM made as long as messages may be by `part`, which is given some padding.
fn longest(part: impl Fn(&str) -> Vec<u8>) -> Vec<u8> {
    const HEADER: usize = 5;
    let bytes = AUTH_BODY_MAX + HEADER;
    let message = part(&"x".repeat(bytes - part("").len()));
    assert_eq!(message.len(), bytes);
    message
}

both_shards!(
    longest_messages_of_scram_are_accepted_and_no_longer_ones,
    |shards| {
        let topology = Topology::new(shards)
            .set("auth_type", "scram-sha-256")
            .user_secret("talker", PASSWORD);
        let stage = Stage::with_keys(topology, &[("user", "postgres")]);
        assert_too_long(asked(&stage, "talker", 10));
        let bare = |padding: &str| format!("n={padding},r=abcdefghijklmnop");
        let initial = longest(|padding| scram::initial(&format!("n,,{}", bare(padding))));
        let name = "x".repeat(initial.len() - scram::initial(&format!("n,,{}", bare(""))).len());
        for is_longer in [false, true] {
            let mut client = asked(&stage, "talker", 10);
            client.send(&initial);
            let challenge = client.expect(b'R');
            assert_eq!(challenge.u32_at(0), 11);
            if is_longer {
                assert_too_long(client);
                continue;
            }
            let server_first = scram::server_first(&challenge.body);
            let answer = longest(|padding| {
                let without_proof = scram::without_proof(&server_first, &format!(",e={padding}"));
                let signed = format!("{},{server_first},{without_proof}", bare(&name));
                let proof = scram::proof(PASSWORD, &server_first, &signed);
                scram::message_p(&format!("{without_proof},p={proof}"))
            });
            let reply = client.exchange(&answer);
            assert_eq!(reply.status, b'I', "{reply:?}");
        }
    }
);

both_shards!(unknown_user_looks_like_a_wrong_password, |shards| {
    let secrets = secrets();
    for auth_type in ["plain", "md5", "scram-sha-256"] {
        let stage = stage_asking(shards, auth_type, &secrets);
        let known = visible(&stage, &secrets[0].1, &stage.entry);
        assert_eq!(
            visible(&stage, "nobody_at_all", &stage.entry),
            known,
            "{auth_type}"
        );
        assert_eq!(
            visible(&stage, &secrets[0].1, "no_database"),
            known,
            "{auth_type}"
        );
        assert_eq!(
            visible(&stage, "nobody_at_all", "no_database"),
            known,
            "{auth_type}"
        );
    }
});

/// Salt and iterations that the pooler shows for a user.
fn salt(stage: &Stage, user: &str) -> String {
    let mut client = Client::connect(stage.address());
    client.send(&startup(
        PROTOCOL_3_0,
        &[("user", user), ("database", &stage.entry)],
    ));
    client.expect(b'R');
    client.send(&scram::initial("n,,n=,r=abcdefghijklmnop"));
    let server_first = String::from_utf8(client.expect(b'R').body[4..].to_vec()).unwrap();
    server_first.split_once(',').unwrap().1.to_owned()
}

both_shards!(salt_of_an_unknown_user_does_not_change, |shards| {
    let secrets = secrets();
    let stage = stage_asking(shards, "scram-sha-256", &secrets);
    assert_eq!(salt(&stage, "nobody_at_all"), salt(&stage, "nobody_at_all"));
    assert_ne!(salt(&stage, "nobody_at_all"), salt(&stage, "somebody_else"));
    assert_eq!(salt(&stage, &secrets[0].1), salt(&stage, &secrets[0].1));
});

both_shards!(
    iterations_are_those_of_the_setting_or_of_the_secret,
    |shards| {
        let [_, _, (_, by_scram, secret)] = secrets();
        let topology = Topology::new(shards)
            .set("auth_type", "scram-sha-256")
            .set("scram_iterations", 7777)
            .user_secret("of_setting", "secret")
            .user_secret(&by_scram, &secret);
        let stage = Stage::with_keys(topology, &[("user", "postgres")]);
        for (user, password, iterations) in [
            ("of_setting", "secret", ",i=7777"),
            (&by_scram, PASSWORD, ",i=4096"),
        ] {
            assert!(salt(&stage, user).ends_with(iterations), "{user}");
            assert!(driver::try_login(stage.address(), user, password, &stage.entry).is_ok());
        }
        assert!(salt(&stage, "nobody_at_all").ends_with(",i=7777"));
    }
);

both_shards!(trust_lets_in_the_listed_and_nobody_else, |shards| {
    let stage = Stage::with_keys(
        Topology::new(shards).user_secret("listed", "x"),
        &[("user", "postgres")],
    );
    assert!(driver::try_login(stage.address(), "listed", "", &stage.entry).is_ok());
    let refused =
        driver::try_login(stage.address(), "nobody_at_all", "", &stage.entry).unwrap_err();
    assert!(refused.1.contains("authentication failed"), "{refused:?}");
});

both_shards!(empty_password_is_refused, |shards| {
    let secrets = secrets();
    for auth_type in ["plain", "md5", "scram-sha-256"] {
        let topology = Topology::new(shards)
            .set("auth_type", auth_type)
            .user_secret("hollow", "");
        let stage = Stage::with_keys(topology, &[("user", "postgres")]);
        for name in ["hollow", &secrets[0].1] {
            assert!(
                driver::try_login(stage.address(), name, "", &stage.entry).is_err(),
                "{auth_type}"
            );
        }
    }
});

both_shards!(nothing_is_served_before_the_password, |shards| {
    let secrets = secrets();
    for auth_type in ["plain", "md5", "scram-sha-256"] {
        let stage = stage_asking(shards, auth_type, &secrets);
        let mut client = Client::connect(stage.address());
        let params = [
            ("user", secrets[0].1.as_str()),
            ("database", stage.entry.as_str()),
        ];
        client.send(&[startup(PROTOCOL_3_0, &params), query("select 'leak'")].concat());
        let reply = client.reply();
        assert!(
            reply.closed && reply.rows.is_empty() && reply.status == 0,
            "{auth_type}: {reply:?}"
        );
    }
});

both_shards!(lying_password_messages_end_the_connection, |shards| {
    let secrets = secrets();
    let stage = stage_asking(shards, "scram-sha-256", &secrets);
    let huge = (0x7fff_ffff_u32).to_be_bytes();
    let lies = [
        with_length(b'p', b"", 3),
        with_length(b'p', b"", -1),
        with_length(b'p', b"", 0x7fff_ffff),
        message(b'p', b""),
        message(b'p', b"SCRAM-SHA-256"),
        message(
            b'p',
            &[b"SCRAM-SHA-256\0", &huge[..], b"n,,n=,r=a"].concat(),
        ),
        scram::initial(""),
        scram::initial("p=tls-unique,,n=,r=abc"),
        scram::initial("n,,n=,r="),
        scram::initial("n,a=admin,n=,r=abcdefgh"),
    ];
    for lie in lies {
        let mut client = Client::connect(stage.address());
        let params = [
            ("user", secrets[2].1.as_str()),
            ("database", stage.entry.as_str()),
        ];
        client.send(&startup(PROTOCOL_3_0, &params));
        client.expect(b'R');
        client.send(&lie);
        let reply = client.reply();
        assert!(reply.closed && reply.status == 0, "{lie:?}: {reply:?}");
    }
    stage.database.wait_backends(0, "state <> 'idle'");
});

/// Logs in through a pooler that must itself log in with the password of its configuration.
fn pooler_proves_itself(shards: usize, group: &str, encryption: &str) {
    let name = role(group, encryption);
    for (password, good) in [(PASSWORD, true), ("wrong", false)] {
        let topology = Topology::new(shards).set("query_wait_timeout", "3s");
        let stage = Stage::with_keys(topology, &[("user", &name), ("password", password)]);
        let outcome = driver::try_login(stage.address(), "postgres", "", &stage.entry);
        match outcome {
            Ok(user) => assert!(good && user == name, "{user} with {password}"),
            Err(refusal) => assert!(!good, "{refusal:?}"),
        }
    }
}

both_shards!(pooler_logs_in_with_a_clear_text_password, |shards| {
    pooler_proves_itself(shards, MUST_PASSWORD, "scram-sha-256");
});

both_shards!(pooler_logs_in_with_md5, |shards| {
    pooler_proves_itself(shards, MUST_MD5, "md5");
});

both_shards!(pooler_logs_in_with_scram, |shards| {
    pooler_proves_itself(shards, MUST_SCRAM, "scram-sha-256");
});

both_shards!(plain_secret_of_the_user_list_opens_postgres, |shards| {
    let name = role(MUST_SCRAM, "scram-sha-256");
    let topology = Topology::new(shards).set("auth_type", "scram-sha-256");
    let stage = Stage::pooled(topology.user_secret(&name, PASSWORD));
    let outcome = driver::try_login(stage.address(), &name, PASSWORD, &stage.entry);
    assert_eq!(outcome, Ok(name));
});

both_shards!(md5_secret_of_the_user_list_opens_postgres, |shards| {
    let name = role(MUST_MD5, "md5");
    let secret = Postgres::shared().stored_secret(&name);
    let stage = Stage::pooled(
        Topology::new(shards)
            .set("auth_type", "md5")
            .user_secret(&name, &secret),
    );
    let outcome = driver::try_login(stage.address(), &name, PASSWORD, &stage.entry);
    assert_eq!(outcome, Ok(name));
});

both_shards!(scram_secret_is_passed_through_to_postgres, |shards| {
    let name = role(MUST_SCRAM, "scram-sha-256");
    let secret = Postgres::shared().stored_secret(&name);
    assert!(secret.starts_with("SCRAM-SHA-256$"));
    let topology = Topology::new(shards)
        .pool_size(2)
        .set("auth_type", "scram-sha-256");
    let stage = Stage::pooled(topology.user_secret(&name, &secret));
    for _ in 0..3 {
        let outcome = driver::try_login(stage.address(), &name, PASSWORD, &stage.entry);
        assert_eq!(outcome, Ok(name.clone()));
        let kill = "select pg_terminate_backend(pid) from pg_stat_activity where usename";
        stage.database.sql(&format!("{kill} = '{name}'"));
        wait_until("the pool is empty", || stage.database.backends("true") == 0);
    }
});

/// A file of one line, gone with the guard.
fn secret_file(content: &str) -> (tempfile::TempDir, String) {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("secret");
    std::fs::write(&path, content).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (home, path)
}

both_shards!(
    secrets_may_stand_in_a_file_and_are_read_again_by_reload,
    |shards| {
        let name = role(MUST_SCRAM, "scram-sha-256");
        let (_home, path) = secret_file("wrong\n");
        let topology = Topology::new(shards)
            .set("auth_type", "scram-sha-256")
            .set("server_login_retry", "10 ms")
            .user("client", "password_file", path.clone());
        let keys = [("user", name.as_str()), ("password_file", path.as_str())];
        let stage = Stage::with_keys(topology, &keys);
        let login = |password| driver::try_login(stage.address(), "client", password, &stage.entry);
        assert!(login("wrong").is_err(), "PostgreSQL does not take it");
        std::fs::write(&path, format!("{PASSWORD}\r\nsecond line\n")).unwrap();
        assert_eq!(stage.as_owner("RELOAD").complete, ["RELOAD"]);
        assert_eq!(login(PASSWORD), Ok(name));
        assert!(login("wrong").is_err());
        let shown = stage.as_owner("SHOW CONFIG");
        assert!(!format!("{shown:?} {}", stage.log()).contains(PASSWORD));
    }
);

both_shards!(secrets_may_stand_in_the_environment, |shards| {
    let name = role(MUST_SCRAM, "scram-sha-256");
    let database = Postgres::shared().database();
    let keys = [
        ("user", name.as_str()),
        ("password_env", "TEST_SHOP_PASSWORD"),
    ];
    let topology = Topology::new(shards).database(&database.name, &database, &keys);
    let log = Pooler::try_start(&topology).err().expect("a refusal");
    assert!(
        log.contains("password_env") && log.contains("TEST_SHOP_PASSWORD"),
        "{log}"
    );
    let pooler = Pooler::start_with(&topology, |command| {
        command.env("TEST_SHOP_PASSWORD", PASSWORD);
    });
    let outcome = driver::try_login(pooler.address, "postgres", "", &database.name);
    assert_eq!(outcome, Ok(name));
});

both_shards!(
    secret_that_cannot_be_read_keeps_the_old_configuration,
    |shards| {
        let (home, path) = secret_file("secret");
        let topology = Topology::new(shards)
            .set("auth_type", "scram-sha-256")
            .user("client", "password_file", path);
        let stage = Stage::with_keys(topology, &[("user", "postgres")]);
        drop(home);
        assert!(stage.as_owner("RELOAD").error.is_some());
        let outcome = driver::try_login(stage.address(), "client", "secret", &stage.entry);
        assert!(outcome.is_ok(), "{outcome:?}");
        stage.wait_log("users.client.password_file");
    }
);

both_shards!(pass_through_that_cannot_work_says_why, |shards| {
    let name = role(MUST_SCRAM, "scram-sha-256");
    let stored = Postgres::shared().stored_secret(&name);
    let salt = stored.split(['$', ':']).nth(2).unwrap();
    // The same password, but a verifier of its own.
    for (iterations, reason) in [
        ("4096", "another salt"),
        ("5000", "4096 iterations instead of 5000"),
    ] {
        let made = crate::support::pooler::program()
            .args([
                "scram-verifier",
                &name,
                PASSWORD,
                "--iterations",
                iterations,
            ])
            .output()
            .unwrap();
        let line = String::from_utf8(made.stdout).unwrap();
        let secret = line
            .trim()
            .split("\" \"")
            .nth(1)
            .unwrap()
            .trim_end_matches('"')
            .to_owned();
        assert!(!secret.contains(salt));
        let topology = Topology::new(shards)
            .set("auth_type", "scram-sha-256")
            .user_secret(&name, &secret);
        let stage = Stage::pooled(topology);
        let refused =
            driver::try_login(stage.address(), &name, PASSWORD, &stage.entry).unwrap_err();
        assert!(
            refused.1.contains("pass-through") && refused.1.contains(reason),
            "{refused:?}"
        );
    }
});

/// One row of SHOW LOGIN_FAILURES: recent, total, refused, blocked.
fn failures(stage: &Stage) -> Option<[u64; 4]> {
    let table = stage.as_owner("SHOW LOGIN_FAILURES").table();
    let row = table
        .into_iter()
        .find(|row| row["address"] == "127.0.0.1")?;
    Some(["recent", "total", "refused", "blocked"].map(|column| row[column].parse().unwrap()))
}

both_shards!(
    address_with_too_many_failures_is_refused_for_a_while,
    |shards| {
        let topology = Topology::new(shards)
            .set("auth_type", "scram-sha-256")
            .set("login_failures_max", 3)
            .set("login_failures_window", "1 h")
            .set("login_failure_delay", 0)
            .user_secret("client", "right");
        let stage = Stage::with_keys(topology.clone(), &[("user", "postgres")]);
        let login = |password| driver::try_login(stage.address(), "client", password, &stage.entry);
        assert_eq!(failures(&stage), None);
        assert!(login("right").is_ok());
        for _ in 0..3 {
            assert_eq!(login("wrong").unwrap_err().1, "SASL authentication failed");
        }
        for password in ["right", "wrong"] {
            let refused = login(password).unwrap_err().1;
            assert_eq!(refused, "too many failed logins from this address");
        }
        assert_eq!(failures(&stage), Some([3, 3, 2, 1]));
        // The window is over at once.
        let topology = topology.set("login_failures_window", "1 ms");
        let topology = topology.database(&stage.entry, &stage.database, &[("user", "postgres")]);
        stage.rewrite(&topology);
        assert_eq!(stage.as_owner("RELOAD").complete, ["RELOAD"]);
        assert!(login("right").is_ok());
        assert_eq!(failures(&stage), Some([0, 3, 2, 0]));
    }
);

both_shards!(
    failed_login_is_told_after_a_delay_that_harms_nobody_else,
    |shards| {
        let topology = Topology::new(shards)
            .set("auth_type", "scram-sha-256")
            .set("login_failure_delay", "2 s")
            .user_secret("client", "right");
        let stage = Stage::with_keys(topology, &[("user", "postgres")]);
        let login = |password| driver::try_login(stage.address(), "client", password, &stage.entry);
        assert!(login("right").is_ok());
        let begun = std::time::Instant::now();
        std::thread::scope(|scope| {
            let wrong = scope.spawn(|| login("wrong"));
            wait_until("the failure is counted", || failures(&stage).is_some());
            assert!(login("right").is_ok());
            assert!(!wrong.is_finished() || begun.elapsed().as_secs() >= 2);
            assert!(wrong.join().unwrap().is_err());
        });
        assert!(begun.elapsed().as_secs() >= 2);
    }
);

/// Connections to a Unix socket, by a process of a user who is not the tests'.
struct Strangers(std::process::Child);

impl Strangers {
    fn come(path: &std::path::Path, count: usize) -> Strangers {
        // Debian has it in any case, and where everybody may run it.
        let program =
            "@all = map { IO::Socket::UNIX->new($ARGV[0]) or die $! } 1..$ARGV[1]; <STDIN>";
        let mut command = std::process::Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]);
        command.args(["/usr/bin/perl", "-MIO::Socket::UNIX", "-e", program]);
        command.arg(path).arg(count.to_string());
        command.stdin(std::process::Stdio::piped());
        Strangers(command.spawn().unwrap())
    }
}

impl Drop for Strangers {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

both_shards!(
    strangers_on_the_unix_socket_do_not_keep_the_operator_out,
    |shards| {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let stage = Stage::pooled(Topology::new(shards).set("max_client_conn", 5));
        let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(stage.directory(), everybody).unwrap();
        let limit = 5 + 256;
        let crowd = Strangers::come(stage.unix.as_ref().expect("a unix socket"), limit + 40);
        let listed = || stage.as_owner("SHOW SOCKETS").table().len();
        wait_until("the crowd is in", || listed() >= limit);
        for _ in 0..20 {
            assert!(listed() <= limit + 16, "and no more than may be");
        }
        drop(crowd);
        wait_until("the crowd is gone", || listed() < 5);
    }
);

both_shards!(
    crowd_that_says_nothing_does_not_keep_the_operator_out,
    |shards| {
        let topology = Topology::new(shards).set("max_client_conn", 5);
        let stage = Stage::pooled(topology);
        let limit = 5 + 256;
        let crowd: Vec<_> = (0..limit + 40)
            .map(|_| Client::connect(stage.address()))
            .collect();
        let listed = || stage.as_owner("SHOW SOCKETS").table().len();
        wait_until("the crowd is in", || listed() >= limit);
        assert!(listed() <= limit + 16, "and no more than may be");
        assert_eq!(stage.as_owner("RELOAD").complete, ["RELOAD"]);
        drop(crowd);
        wait_until("the crowd is gone", || listed() < 5);
        assert_eq!(stage.client().value("select 'served'"), "served");
    }
);
