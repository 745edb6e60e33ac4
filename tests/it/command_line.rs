//! The program as a process: its command line, where it listens, what it looks up and logs.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::process::{Command, Output, Stdio};

use crate::support::pooler::program;
use crate::support::wire::*;
use crate::support::*;

fn run(arguments: &[&str]) -> Output {
    program().args(arguments).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn version_is_the_packages() {
    let output = run(&["--version"]);
    assert!(output.status.success());
    assert_eq!(
        stdout(&output).trim(),
        concat!("ringbouncer ", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn help_names_the_commands() {
    let output = run(&["--help"]);
    assert!(output.status.success());
    assert!(
        ["run", "check"]
            .iter()
            .all(|word| stdout(&output).contains(word)),
        "{}",
        stdout(&output)
    );
}

#[test]
fn a_client_logs_in_with_the_verifier_that_was_printed() {
    // 1 shard, userlist.txt, auth_type scram-sha-256; the password from each of its three sources
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("password");
    std::fs::write(&file, "from \"file\"\nnot this\n").unwrap();
    let path = file.to_str().unwrap();
    let argument = run(&["scram-verifier", "ann", "from argument"]);
    let from_file = run(&["scram-verifier", "bob", "--password-file", path]);
    let mut piped = program()
        .args(["scram-verifier", "cyd"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    piped
        .stdin
        .take()
        .unwrap()
        .write_all(b"from pipe\n")
        .unwrap();
    let cases = [
        ("ann", "from argument", argument),
        ("bob", "from \"file\"", from_file),
        ("cyd", "from pipe", piped.wait_with_output().unwrap()),
    ];
    let mut topology = Topology::new(1).set("auth_type", "scram-sha-256");
    for (user, _, output) in &cases {
        let line = stdout(output);
        let secret = line.strip_prefix(&format!("\"{user}\" \"")).unwrap();
        topology = topology.user_secret(user, secret.strip_suffix("\"\n").unwrap());
    }
    let stage = Stage::with_keys(topology, &[("user", "postgres")]);
    for (user, password, _) in cases {
        let login = |password| driver::try_login(stage.address(), user, password, &stage.entry);
        login(password).unwrap();
        assert!(
            login("wrong")
                .unwrap_err()
                .1
                .contains("authentication failed")
        );
    }
}

#[test]
fn unusable_names_and_passwords_give_no_verifier() {
    for arguments in [&["", "secret"][..], &["ann\n", "secret"], &["ann", ""]] {
        let output = run(&[&["scram-verifier"], arguments].concat());
        assert!(!output.status.success() && stdout(&output).is_empty());
        assert!(stderr(&output).contains("must have"), "{}", stderr(&output));
    }
}

#[test]
fn unknown_arguments_are_refused() {
    for arguments in [
        &["fly"][..],
        &["run"],
        &["run", "--no-such-flag", "x"],
        &["run", "/no/such/file"],
    ] {
        let output = run(arguments);
        assert!(
            !output.status.success() && !stderr(&output).is_empty(),
            "{arguments:?}"
        );
    }
}

#[test]
fn check_accepts_a_good_file() {
    let directory = tempfile::tempdir().unwrap();
    let server = "127.0.0.1:5432".parse().unwrap();
    let file = Topology::new(2)
        .database_at("app", server, &[("user", "u")])
        .write(directory.path());
    let output = run(&["check", file.to_str().unwrap()]);
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn check_names_every_mistake_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let server = "127.0.0.1:5432".parse().unwrap();
    let topology = Topology::new(2)
        .set("pool_mode", "sometimes")
        .set("query_wait_timeout", "12 parsecs");
    let topology = topology
        .set("default_pool_size", -1)
        .set("auth_type", "handshake");
    let topology = topology.database_at("app", server, &[("pool_mode", "never")]);
    let file = topology.write(directory.path());
    let output = run(&["check", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    for key in [
        "pool_mode",
        "query_wait_timeout",
        "default_pool_size",
        "auth_type",
        "databases.app.pool_mode",
    ] {
        assert!(
            stderr(&output).contains(key),
            "{key} is missing in {}",
            stderr(&output)
        );
    }
}

#[test]
fn unknown_keys_and_broken_toml_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let file = Topology::new(1)
        .set("pool_mod", "session")
        .write(directory.path());
    let output = run(&["check", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("pool_mod"), "{}", stderr(&output));
    std::fs::write(&file, "[ringbouncer\nlisten_port = ").unwrap();
    assert_eq!(
        run(&["check", file.to_str().unwrap()]).status.code(),
        Some(1)
    );
}

#[test]
fn bad_configuration_does_not_start() {
    let log = Pooler::try_start(&Topology::new(1).set("pool_mode", "sometimes")).err();
    assert!(log.expect("no start").contains("pool_mode"));
}

#[test]
fn number_of_shards_comes_from_argument_then_environment_then_file() {
    for (argument, environment, expected) in [
        (None, None, 2),
        (None, Some("3"), 3),
        (Some("4"), Some("3"), 4),
    ] {
        let mut pooler = Pooler::start_with(&Topology::new(2), |command| {
            environment.iter().for_each(|shards| {
                command.env("RINGBOUNCER_SHARDS", shards);
            });
            argument.iter().for_each(|shards| {
                command.args(["--shards", shards]);
            });
        });
        assert_eq!(pooler.shards, expected);
        assert!(pooler.is_running());
    }
}

both_shards!(star_listens_on_every_family_at_one_port, |shards| {
    let stage = Stage::pooled(Topology::new(shards).set("listen_addr", vec!["*"]));
    let port = stage.address().port();
    let mut loopbacks = vec![IpAddr::from(Ipv4Addr::LOCALHOST)];
    if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok() {
        loopbacks.push(Ipv6Addr::LOCALHOST.into());
    }
    for loopback in loopbacks {
        let mut client = Client::login(SocketAddr::new(loopback, port), &stage.entry);
        assert_eq!(client.value("select 1"), "1", "over {loopback}");
    }
});

both_shards!(port_of_a_running_pooler_is_refused, |shards| {
    let first = Pooler::start(&Topology::new(shards));
    let port = first.address.port();
    for (wanted, address) in [("127.0.0.1", "127.0.0.1"), ("*", "0.0.0.0")] {
        let same_port = Topology::new(shards)
            .set("listen_addr", vec![wanted])
            .set("listen_port", i64::from(port));
        let log = Pooler::try_start(&same_port).err().expect(wanted);
        let said =
            format!("ringbouncer: cannot listen on {address}:{port}: Address already in use");
        assert!(log.contains(&said), "{wanted}: {log}");
    }
});

both_shards!(host_name_of_a_reload_is_looked_up_at_once, |shards| {
    let stage = Stage::pooled(Topology::new(shards));
    let named = [("host", "localhost")];
    let by_name = Topology::new(shards)
        // Above the patience of a test: a first attempt without an address would show.
        .set("server_login_retry", 60)
        .database(&stage.entry, &stage.database, &named);
    stage.rewrite(&by_name);
    assert_eq!(stage.console("RELOAD").complete, ["RELOAD"]);
    assert_eq!(stage.client().value("select 1"), "1");
});

#[test]
fn names_of_strangers_cannot_forge_a_log_line() {
    let pooler = Pooler::start(&Topology::new(1));
    let params = [("user", "postgres"), ("database", "nowhere\nFORGED line")];
    let reply = Client::connect(pooler.address).start(PROTOCOL_3_0, &params);
    reply.assert_fatal("no such database: nowhere\nFORGED line");
    pooler.wait_log("FORGED");
    assert!(!pooler.log().contains("\nFORGED"), "{}", pooler.log());
}

/// Starts the program with this limit (an argument of `prlimit`) and no privileges over its limits.
fn start_limited(topology: &Topology, limit: &str) -> Result<Pooler, String> {
    Pooler::launch(
        |directory| topology.write(directory),
        |command| bound(command, limit),
    )
}

fn bound(command: &mut Command, limit: &str) {
    let mut bounded = Command::new("setpriv");
    if rustix::process::geteuid().is_root() {
        bounded.arg("--bounding-set=-ipc_lock,-sys_resource");
    } else {
        bounded.arg("--no-new-privs");
    }
    bounded.args(["--", "prlimit", limit, "--"]);
    bounded
        .arg(command.get_program())
        .args(command.get_args())
        .env_remove("RINGBOUNCER_SHARDS");
    *command = bounded;
}

/// Whether the kernel counts the memory of rings against the limit (Linux 6.14).
fn counts_rings() -> bool {
    let name = rustix::system::uname();
    let mut numbers = name.release().to_str().unwrap().split('.');
    let mut next = || numbers.next().unwrap().parse::<u32>().unwrap();
    (next(), next()) >= (6, 14)
}

#[test]
fn want_of_lockable_memory_is_said() {
    let topology = Topology::new(33);
    for (bytes, is_enough) in [(256 << 10, false), (1 << 20, !counts_rings())] {
        match start_limited(&topology, &format!("--memlock={bytes}:{bytes}")) {
            Ok(_) => assert!(is_enough, "{bytes}"),
            Err(log) => {
                let said = format!(
                    "ringbouncer: the limit of {bytes} bytes of locked memory (ulimit -l, LimitMEMLOCK=)"
                );
                assert!(log.contains(&said) && log.contains("33 shards"), "{log}");
            }
        }
    }
}

both_shards!(too_few_open_files_are_refused_with_their_number, |shards| {
    // max_client_conn is 2000.
    let topology = Topology::new(shards);
    let refusal = start_limited(&topology, "--nofile=1024:2000").err();
    let log = refusal.expect("no start");
    let needed = 2000 + 256 + 16 + 64 + 16 * shards;
    let said = format!(
        "ringbouncer: the limit of 2000 open files is too low for max_client_conn and the pools, \
        which need {needed}: raise it (ulimit -n, LimitNOFILE=) or lower max_client_conn"
    );
    assert!(log.contains(&said), "{log}");
    // A soft limit is no obstacle.
    start_limited(&topology, &format!("--nofile=1024:{needed}")).expect("a start");
});
