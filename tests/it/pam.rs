//! Logins judged by PAM. A service of one's own needs a file in /etc/pam.d, so only root can test it.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;

use crate::support::drop_in::*;
use crate::support::wire::*;
use crate::support::*;

/// Threads that the pooler has for logins that others judge.
const JUDGED_AT_ONCE: usize = 32;

/// A PAM service for this test, gone with it: `pam_exec` runs a script that gets the password.
struct Service {
    name: String,
    path: PathBuf,
    _home: tempfile::TempDir,
}

/// Alice with her password, and nobody else.
const CHECK: &str =
    "IFS= read -r password || true\n[ \"$PAM_USER $password\" = 'alice pam secret' ]\n";

/// A command that waits for a file, but not beyond the life of the directory that it is to be in.
fn wait_for(file: &Path) -> String {
    let (directory, file) = (file.parent().unwrap().display(), file.display());
    format!("while [ -d {directory} ] && [ ! -e {file} ]; do sleep 0.05; done")
}

impl Service {
    /// One whose script is `check`; `what` makes its name unique.
    fn new(what: &str, shards: usize, check: &str) -> Option<Service> {
        let name = format!("ringbouncer-test-{}-{what}-{shards}", std::process::id());
        Service::named(name, check)
    }

    /// One of this name, unless there is one.
    fn named(name: String, check: &str) -> Option<Service> {
        let path = PathBuf::from("/etc/pam.d").join(&name);
        let home = open_directory();
        let script = home.path().join("judge");
        fs::write(&script, format!("#!/bin/sh\n{check}")).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        let rules = format!(
            "auth required pam_exec.so expose_authtok quiet {}\naccount required pam_permit.so\n",
            script.display()
        );
        let written = fs::File::create_new(&path);
        if let Err(error) = written.and_then(|mut file| file.write_all(rules.as_bytes())) {
            eprintln!("{}: {error}: nothing is tested", path.display());
            return None;
        }
        Some(Service {
            name,
            path,
            _home: home,
        })
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

both_shards!(pam_decides_and_the_client_learns_no_more, |shards| {
    let Some(service) = Service::new("check", shards, CHECK) else {
        return;
    };
    let topology = Topology::new(shards)
        .set("auth_type", "pam")
        .set("auth_pam_service", service.name.clone());
    let stage = Stage::with_keys(topology, &[("user", "postgres")]);
    for (user, password, good) in [
        ("alice", "pam secret", true),
        ("alice", "wrong", false),
        ("bob", "pam secret", false),
    ] {
        let outcome = driver::try_login(stage.address(), user, password, &stage.entry);
        assert_eq!(outcome.is_ok(), good, "{user}: {outcome:?}");
        if let Err((_, text)) = outcome {
            assert_eq!(text, "PAM authentication failed");
        }
    }
});

// More logins than there are threads to judge them, at a service that is stuck: queries and logins of another kind go on, and
// whoever has left is not asked about when the service is back.
both_shards!(service_that_is_stuck_holds_up_nobody_else, |shards| {
    let signs = tempfile::tempdir().unwrap();
    fs::set_permissions(signs.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let (asked, go) = (signs.path().join("asked"), signs.path().join("go"));
    let check = format!(
        "echo $PAM_USER >>{}\n{}\n{CHECK}",
        asked.display(),
        wait_for(&go)
    );
    let Some(service) = Service::new("stuck", shards, &check) else {
        return;
    };
    let hba = signs.path().join("hba");
    let rules = format!(
        "local all all peer\nhost all postgres all trust\nhost all all all pam pamservice={}\n",
        service.name
    );
    fs::write(&hba, rules).unwrap();
    let topology = Topology::new(shards)
        .set("auth_type", "hba")
        .set("auth_hba_file", hba.to_str().unwrap());
    let stage = Stage::with_keys(topology, &[("user", "postgres")]);
    let questions = || {
        fs::read_to_string(&asked)
            .unwrap_or_default()
            .lines()
            .count()
    };
    // It is for those who are served, too.
    let mut console = Client::login(stage.address(), "ringbouncer");
    let mut set_timeout = |span: &str| {
        let set = console.query(&format!("SET client_login_timeout = '{span}'"));
        assert!(set.error.is_none(), "{set:?}");
    };
    thread::scope(|scope| {
        let stuck: Vec<_> = (0..JUDGED_AT_ONCE + 10)
            .map(|_| scope.spawn(|| driver::try_login(stage.address(), "bob", "x", &stage.entry)))
            .collect();
        wait_until("every thread to be stuck", || questions() == JUDGED_AT_ONCE);
        assert_eq!(stage.client().value("select 'served'"), "served");
        let path = stage.unix.clone().expect("a Unix socket");
        let params = [("user", "nobody knows"), ("database", stage.entry.as_str())];
        let refused = peer::Client::connect_unix(&path).start(PROTOCOL_3_0, &params);
        refused.assert_fatal("unix socket login rejected");
        set_timeout("100 ms");
        for login in stuck {
            assert_eq!(login.join().unwrap().unwrap_err().1, "client_login_timeout");
        }
    });
    set_timeout("1 min");
    fs::write(&go, "").unwrap();
    let outcome = driver::try_login(stage.address(), "alice", "pam secret", &stage.entry);
    assert_eq!(outcome.unwrap(), "postgres");
    assert_eq!(questions(), JUDGED_AT_ONCE + 1);
});

both_shards!(service_that_does_not_exist_lets_nobody_in, |shards| {
    let topology = Topology::new(shards)
        .set("auth_type", "pam")
        .set("auth_pam_service", "ringbouncer-no-such-service");
    let stage = Stage::with_keys(topology, &[("user", "postgres")]);
    let outcome = driver::try_login(stage.address(), "alice", "x", &stage.entry);
    assert_eq!(outcome.unwrap_err().1, "PAM authentication failed");
});

/// The client that gives this password to be judged.
fn giving(drop_in: &DropIn, user: &str, password: &str) -> Client {
    let mut client = Client::connect(drop_in.address);
    client.send(&startup(
        PROTOCOL_3_0,
        &[("user", user), ("database", "main")],
    ));
    client.expect(b'R');
    client.send(&message(b'p', format!("{password}\0").as_bytes()));
    client
}

/// Held by who has PgBouncer's service, which has always the same name.
static ALONE: Mutex<()> = Mutex::new(());

drop_in!(service_lets_in_refuses_and_holds_up_nobody_else, |brand| {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let signs = open_directory();
    let (asked, go) = (signs.path().join("asked"), signs.path().join("go"));
    let check = format!(
        "if [ $PAM_USER = bob ]; then\necho >{}\n{}\nfi\n{CHECK}",
        asked.display(),
        wait_for(&go)
    );
    let Some(_service) = Service::named("pgbouncer".to_owned(), &check) else {
        return;
    };
    let database = Postgres::shared().database();
    let main = entry("main", &database, "user=postgres");
    let lines = format!("auth_type = pam\npool_mode = transaction\n[databases]\n{main}");
    let drop_in = DropIn::start(brand, database, &lines);
    let mut alice = giving(&drop_in, "alice", "pam secret");
    assert_eq!(alice.reply().status, b'I');
    let mut wrong = giving(&drop_in, "alice", "wrong");
    wrong.reply().assert_fatal("PAM authentication failed");
    let mut bob = giving(&drop_in, "bob", "pam secret");
    wait_until("the service is stuck", || asked.exists());
    assert_eq!(alice.value("select 'served'"), "served");
    fs::write(&go, "").unwrap();
    bob.reply().assert_fatal("PAM authentication failed");
});
