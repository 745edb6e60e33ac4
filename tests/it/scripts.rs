//! The programs in `scripts/` that users run, run.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::support::postgres::{MUST_MD5, MUST_SCRAM, binaries};
use crate::support::*;

const PASSWORD: &str = "päss 'word' $HOME `id` \\";

fn script(name: &str) -> Command {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("scripts")
        .join(name);
    let mut command = Command::new(path);
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
            ("PGUSER", "postgres".to_owned()),
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
