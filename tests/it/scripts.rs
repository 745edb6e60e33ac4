//! The programs in `scripts/` that users run, run.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::support::pooler::{collect, program};
use crate::support::postgres::{MUST_MD5, MUST_SCRAM, binaries, spawn_mortal, unprivileged_user};
use crate::support::wait::{alone, holds_within};
use crate::support::*;

const PASSWORD: &str = "päss 'word' $HOME `id` \\";

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts")
}

fn script(name: &str) -> Command {
    let mut command = Command::new(scripts().join(name));
    let programs = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{}:{programs}", binaries().display()));
    command.stdin(std::process::Stdio::null());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[track_caller]
fn succeeds(command: &mut Command) -> String {
    let output = command.output().expect("the script runs");
    assert!(
        output.status.success(),
        "{}\n{}",
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

#[track_caller]
fn fails(command: &mut Command) -> String {
    let output: Output = command.output().expect("the script runs");
    assert!(!output.status.success(), "{}", text(&output.stdout));
    text(&output.stderr)
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn certificates_have_their_layout_names_and_modes() {
    let home = tempfile::tempdir().unwrap();
    let certs = home.path().join("certs");
    let make = || {
        let mut command = script("generate_certs.sh");
        command.current_dir(home.path());
        command
    };
    succeeds(make().args(["db.example.net", "10.1.2.3"]));
    for (file, wanted) in [
        ("ca/ca.crt", 0o644),
        ("postgresql.crt", 0o644),
        ("pgbouncer.crt", 0o644),
        ("pgbouncer-combined.pem", 0o600),
        ("private/ca.key", 0o600),
        ("private/postgresql.key", 0o600),
        ("private/pgbouncer.key", 0o600),
    ] {
        assert_eq!(mode(&certs.join(file)), wanted, "{file}");
    }
    let openssl =
        |arguments: &[&str]| succeeds(Command::new("openssl").args(arguments).current_dir(&certs));
    openssl(&[
        "verify",
        "-CAfile",
        "ca/ca.crt",
        "postgresql.crt",
        "pgbouncer.crt",
    ]);
    for name in ["localhost", "db.example.net"] {
        let shown = openssl(&["x509", "-in", "pgbouncer.crt", "-noout", "-checkhost", name]);
        assert!(shown.contains("does match"), "{shown}");
    }
    let shown = openssl(&[
        "x509",
        "-in",
        "postgresql.crt",
        "-noout",
        "-checkip",
        "10.1.2.3",
    ]);
    assert!(shown.contains("does match"), "{shown}");
    let public = |command: &[&str]| openssl(command);
    assert_eq!(
        public(&["pkey", "-in", "private/pgbouncer.key", "-pubout"]),
        public(&["x509", "-in", "pgbouncer-combined.pem", "-noout", "-pubkey"])
    );
    assert_eq!(
        public(&["pkey", "-in", "pgbouncer-combined.pem", "-pubout"]),
        public(&["pkey", "-in", "private/pgbouncer.key", "-pubout"])
    );
    let before = fs::read(certs.join("ca/ca.crt")).unwrap();
    assert!(fails(&mut make()).contains("--force"));
    assert_eq!(fs::read(certs.join("ca/ca.crt")).unwrap(), before);
    succeeds(make().arg("--force"));
    assert_ne!(fs::read(certs.join("ca/ca.crt")).unwrap(), before);
    let left: Vec<_> = fs::read_dir(&certs).unwrap().flatten().collect();
    assert_eq!(left.len(), 5, "nothing but the layout: {left:?}");
    assert!(fails(make().args(["--force", "--days", "9999"])).contains("--days"));
    assert!(fails(make().args(["--force", "bad name"])).contains("bad name"));
}

/// A `userlist.txt` line of the Python script.
fn verifier_line(arguments: &[&str]) -> String {
    succeeds(script("generate_scram_verifiers.py").args(arguments))
}

both_shards!(verifiers_of_the_script_let_their_passwords_in, |shards| {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("password");
    // SASLprep: the ligature is the two letters, the soft hyphen nothing.
    for (password, typed) in [
        (PASSWORD, PASSWORD),
        ("o\u{fb03}ce\u{ad}", "office"),
        ("a\u{a0}b", "a b"),
    ] {
        fs::write(&file, format!("{password}\n")).unwrap();
        let by_file = verifier_line(&["alice", "--password-file", file.to_str().unwrap()]);
        let by_argument = verifier_line(&["alice", password, "--iterations", "5000"]);
        for line in [by_file, by_argument] {
            let secret = line
                .trim()
                .strip_prefix("\"alice\" \"")
                .expect("a line of a user list");
            let secret = secret.strip_suffix('"').unwrap();
            let topology = Topology::new(shards)
                .set("auth_type", "scram-sha-256")
                .user_secret("alice", secret);
            let stage = Stage::with_keys(topology, &[("user", "postgres")]);
            let login =
                |password| driver::try_login(stage.address(), "alice", password, &stage.entry);
            assert!(login(typed).is_ok(), "{password}");
            assert!(login("wrong").is_err());
        }
    }
});

#[test]
fn verifier_script_refuses_what_cannot_be_a_user_or_a_password() {
    let try_it = |arguments: &[&str]| fails(script("generate_scram_verifiers.py").args(arguments));
    assert!(try_it(&["", "x"]).contains("user name"));
    assert!(try_it(&["a\nb", "x"]).contains("user name"));
    assert!(try_it(&["alice", ""]).contains("password"));
    assert!(try_it(&["alice"]).contains("password"));
    assert!(try_it(&["alice", "--password-file", "/nonexistent"]).contains("cannot read"));
    assert!(try_it(&["alice", "x", "--iterations", "0"]).contains("iterations"));
    assert!(verifier_line(&["we\"ird", "x"]).starts_with("\"we\"\"ird\" \"SCRAM-SHA-256$4096:"));
}

/// An installation on md5: a user whose secret PostgreSQL stores as md5, and one with SCRAM there.
struct Md5Installation {
    stage: Stage,
    by_md5: String,
    by_scram: String,
}

impl Md5Installation {
    fn new(shards: usize) -> Md5Installation {
        let postgres = Postgres::shared();
        let quoted = PASSWORD.replace('\'', "''");
        let by_md5 = postgres.role(MUST_MD5, "md5", &quoted);
        let by_scram = postgres.role(MUST_SCRAM, "scram-sha-256", &quoted);
        let topology = Topology::new(shards)
            .set("auth_type", "md5")
            .user_secret(&by_md5, &postgres.stored_secret(&by_md5))
            .user_secret(&by_scram, PASSWORD);
        let stage = Stage::pooled(topology);
        Md5Installation {
            stage,
            by_md5,
            by_scram,
        }
    }

    /// Where the pooler's files are.
    fn home(&self) -> PathBuf {
        self.stage
            .unix
            .as_ref()
            .unwrap()
            .parent()
            .unwrap()
            .to_owned()
    }

    fn setup(&self, test_password: &str) -> Command {
        self.setup_as("postgres", test_password)
    }

    /// With this role at PostgreSQL.
    fn setup_as(&self, role: &str, test_password: &str) -> Command {
        let home = self.home();
        let passwords = home.join("passwords");
        fs::write(&passwords, format!("{} {PASSWORD}\n", self.by_md5)).unwrap();
        let server = Postgres::shared().address();
        let settings = [
            (
                "RINGBOUNCER_CONFIG",
                home.join("ringbouncer.toml").display().to_string(),
            ),
            ("PGHOST", server.ip().to_string()),
            ("PGPORT", server.port().to_string()),
            ("PGUSER", role.to_owned()),
            ("POOLER_HOST", "127.0.0.1".to_owned()),
            ("POOLER_PORT", self.stage.address().port().to_string()),
            ("POOLER_SOCKET_DIR", home.display().to_string()),
            ("TEST_USER", self.by_scram.clone()),
            ("TEST_PASSWORD", format!("'{test_password}'")),
            ("TEST_DATABASE", self.stage.entry.clone()),
            ("USER_PASSWORDS", passwords.display().to_string()),
        ];
        let lines: Vec<_> = settings
            .iter()
            .map(|(key, value)| format!("{key}={value}\n"))
            .collect();
        fs::write(home.join(".env"), lines.concat()).unwrap();
        let mut command = script("setup_scram_auth.sh");
        command.current_dir(home).arg("--yes");
        command
    }

    fn files(&self) -> [String; 2] {
        ["ringbouncer.toml", "userlist.txt"]
            .map(|name| fs::read_to_string(self.home().join(name)).unwrap())
    }

    #[track_caller]
    fn assert_logins(&self) {
        for user in [&self.by_md5, &self.by_scram] {
            let outcome =
                driver::try_login(self.stage.address(), user, PASSWORD, &self.stage.entry);
            assert_eq!(outcome, Ok(user.clone()));
        }
    }

    fn server_secret(&self) -> String {
        Postgres::shared().stored_secret(&self.by_md5)
    }
}

both_shards!(setup_moves_an_installation_to_scram_and_back, |shards| {
    let installation = Md5Installation::new(shards);
    installation.assert_logins();
    let (before, secret) = (installation.files(), installation.server_secret());
    succeeds(&mut installation.setup(PASSWORD));
    assert_eq!(
        installation
            .stage
            .as_owner("SHOW CONFIG")
            .table()
            .iter()
            .find(|row| row["key"] == "auth_type")
            .unwrap()["value"],
        "scram-sha-256"
    );
    let [config, list] = installation.files();
    assert!(config.contains("auth_type = \"scram-sha-256\""), "{config}");
    assert_eq!(list.matches("SCRAM-SHA-256$").count(), 2, "{list}");
    assert!(installation.server_secret().starts_with("SCRAM-SHA-256$"));
    // PostgreSQL asks this one for md5, which a SCRAM verifier turns into SCRAM.
    installation.assert_logins();
    assert!(fails(&mut installation.setup(PASSWORD)).contains("before-scram"));
    succeeds(installation.setup(PASSWORD).arg("--rollback"));
    assert_eq!(
        (installation.files(), installation.server_secret()),
        (before, secret)
    );
    installation.assert_logins();
});

both_shards!(setup_asks_by_auth_query_where_there_is_one, |shards| {
    let postgres = Postgres::shared();
    let quoted = PASSWORD.replace('\'', "''");
    let (asker, user) = (
        postgres.role("pg_monitor", "scram-sha-256", "x"),
        postgres.role(MUST_SCRAM, "scram-sha-256", &quoted),
    );
    let lookup = format!("secrets_{asker}");
    let database = postgres.database();
    database.sql(&format!(
        "create function {lookup}(name text) returns table (a text, b text) language sql security definer as \
         'select rolname::text, rolpassword from pg_authid where rolname = name'"
    ));
    let query = format!("SELECT a, b FROM {lookup}($1)");
    let topology = Topology::new(shards)
        .set("auth_type", "md5")
        .set("auth_query", query)
        .user_secret(&user, PASSWORD);
    let database_name = database.name.clone();
    let installation = Md5Installation {
        stage: Stage::on(database, topology, &[]),
        by_md5: user.clone(),
        by_scram: user.clone(),
    };
    // This role cannot read pg_authid.
    let mut setup = installation.setup_as(&asker, PASSWORD);
    succeeds(setup.env("PGDATABASE", database_name));
    let [_, list] = installation.files();
    assert!(list.contains(&postgres.stored_secret(&user)), "{list}");
    installation.assert_logins();
});

both_shards!(setup_that_cannot_log_in_undoes_everything, |shards| {
    let installation = Md5Installation::new(shards);
    let (before, secret) = (installation.files(), installation.server_secret());
    let said = fails(&mut installation.setup("not the password"));
    assert!(said.contains("undoing"), "{said}");
    assert_eq!(
        (installation.files(), installation.server_secret()),
        (before, secret)
    );
    assert!(
        !installation
            .home()
            .join("ringbouncer.toml.before-scram")
            .exists()
    );
    installation.assert_logins();
});

/// How long it may take, which starts two servers and measures them: longer than one step of a test.
const SCRIPT_PATIENCE: Duration = Duration::from_secs(90);

/// Marks everything that a run of `quickstart.sh` starts: it is in the environment of each.
const MARK: &str = "QUICKSTART_OF_TEST";

/// A running `scripts/quickstart.sh`, a process group of its own as in a terminal.
struct Quickstart {
    child: Child,
    mark: String,
    said: Arc<Mutex<String>>,
    complained: Arc<Mutex<String>>,
}

impl Quickstart {
    fn start(mut command: Command, mark: &str, arguments: &[&str]) -> Quickstart {
        let mark = format!("{MARK}={mark}{}", std::process::id());
        let (name, value) = mark.split_once('=').unwrap();
        command
            .args(["--duration", "1"])
            .args(arguments)
            .env(name, value)
            .process_group(0)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = spawn_mortal(command, Signal::TERM);
        Quickstart {
            said: collect(child.stdout.take().unwrap()),
            complained: collect(child.stderr.take().unwrap()),
            child,
            mark,
        }
    }

    fn said(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    /// The names of the processes that this run has started and that still run.
    fn processes(&self) -> Vec<String> {
        let directories = fs::read_dir("/proc").unwrap().flatten();
        let is_its = |path: &PathBuf| {
            let environment = fs::read(path.join("environ")).unwrap_or_default();
            environment
                .split(|byte| *byte == 0)
                .any(|variable| variable == self.mark.as_bytes())
        };
        let name = |path: PathBuf| fs::read_to_string(path.join("comm")).ok();
        let its = directories.map(|entry| entry.path()).filter(is_its);
        its.filter_map(name)
            .map(|name| name.trim().to_owned())
            .collect()
    }

    /// Waits until it invites the user to try it, and does as the terminal does at Ctrl-C.
    #[track_caller]
    fn interrupt_while_it_waits(&mut self, servers: &[&str]) {
        let invites = holds_within(SCRIPT_PATIENCE, || {
            self.has_ended().is_some() || self.said().contains("Ctrl-C stops everything")
        });
        assert!(invites, "{}", self.said());
        let processes = self.processes();
        for server in servers {
            assert!(
                processes.iter().any(|name| name == server),
                "no {server} among {processes:?}: {}",
                self.said()
            );
        }
        assert!(self.directory().exists());
        kill_process_group(Pid::from_child(&self.child), Signal::INT).unwrap();
    }

    /// The directory it made.
    #[track_caller]
    fn directory(&self) -> PathBuf {
        let said = self.said();
        let at = said.find("/tmp/ringbouncer-quickstart.").expect(&said);
        let path = said[at..].split(['/', '\n', ' ']).take(3);
        path.collect::<Vec<_>>().join("/").into()
    }

    fn has_ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Its end, with this exit status: it has measured, reported, and left nothing behind.
    #[track_caller]
    fn ends_with(mut self, code: i32) {
        let ends = holds_within(SCRIPT_PATIENCE, || self.has_ended().is_some());
        assert!(ends, "quickstart.sh goes on: {}", self.said());
        wait_until("it has said everything", || {
            Arc::strong_count(&self.said) == 1 && Arc::strong_count(&self.complained) == 1
        });
        let (said, complained) = (self.said(), self.complained.lock().unwrap().clone());
        let exit = self.has_ended().and_then(|exit| exit.code());
        assert_eq!((exit, complained.as_str()), (Some(code), ""), "{said}");
        assert_eq!(said.matches("    tps = ").count(), 2, "{said}");
        assert_eq!(said.matches("failed transactions: 0 ").count(), 2, "{said}");
        let pools = said.find("==> SHOW POOLS").expect(&said);
        let latencies = said.find("==> SHOW LATENCY").expect(&said);
        assert!(said[pools..latencies].contains("cl_active"), "{said}");
        for column in ["p50_us", "p99_us", "max_us"] {
            assert!(said[latencies..].contains(column), "{column}: {said}");
        }
        let measured = |line: &str| line.contains(" query ") && !line.contains("| 0 ");
        assert!(said[latencies..].lines().any(measured), "{said}");
        assert_eq!(self.processes(), Vec::<String>::new());
        assert!(!self.directory().exists());
    }
}

impl Drop for Quickstart {
    fn drop(&mut self) {
        if self.has_ended().is_none() {
            let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
            let _ = self.child.wait();
        }
    }
}

/// The script with the program under test.
fn quickstart() -> Command {
    let mut command = script("quickstart.sh");
    command.env("RINGBOUNCER_BIN", program().get_program());
    command
}

#[test]
fn quickstart_measures_reports_and_leaves_nothing_behind() {
    // 3 shards
    let _alone = alone();
    Quickstart::start(quickstart(), "plain", &["--no-wait", "--shards", "3"]).ends_with(0);
}

#[test]
fn quickstart_before_an_existing_server_changes_nothing_there() {
    // 1 shard; the server asks for a password
    let _alone = alone();
    let database = Postgres::shared().database();
    let user = Postgres::shared().role(MUST_SCRAM, "scram-sha-256", &PASSWORD.replace('\'', "''"));
    let in_uri = |byte: u8| format!("%{byte:02X}");
    let password: String = PASSWORD.bytes().map(in_uri).collect();
    let dsn = format!(
        "postgres://{user}:{password}@{}/{}",
        database.postgres.address(),
        database.name
    );
    let mut run = Quickstart::start(quickstart(), "dsn", &["--shards", "1", "--dsn", &dsn]);
    run.interrupt_while_it_waits(&["ringbouncer"]);
    run.ends_with(130);
    database.wait_backends(0, "true");
    let sql = "select count(*) from pg_class where relnamespace = 'public'::regnamespace";
    assert_eq!(database.sql(sql).value(), "0");
}

#[test]
fn quickstart_of_an_ordinary_user_stops_everything_at_ctrl_c() {
    // Its own number of shards. An ordinary user may not reach this checkout, but what is in a directory of his.
    let _alone = alone();
    let home = tempfile::tempdir().unwrap();
    let binary = home.path().join("ringbouncer");
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::copy(program().get_program(), &binary).unwrap();
    fs::create_dir(home.path().join("scripts")).unwrap();
    for name in ["quickstart.sh", "lib.sh"] {
        fs::copy(scripts().join(name), home.path().join("scripts").join(name)).unwrap();
    }
    let mut command = Command::new(home.path().join("scripts/quickstart.sh"));
    command
        .env("RINGBOUNCER_BIN", &binary)
        .stdin(Stdio::null())
        .current_dir(home.path());
    if let Some((uid, gid)) = unprivileged_user() {
        command.uid(uid).gid(gid);
    }
    let mut run = Quickstart::start(command, "user", &[]);
    run.interrupt_while_it_waits(&["ringbouncer", "postgres"]);
    run.ends_with(130);
}
