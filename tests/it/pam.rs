//! Logins judged by PAM. A service of one's own needs a file in /etc/pam.d, so only root can test it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use crate::support::*;

/// A PAM service for this test, gone with it: `pam_exec` runs a script that gets the password.
struct Service {
    name: String,
    path: PathBuf,
    _home: tempfile::TempDir,
}

impl Service {
    fn new(shards: usize) -> Option<Service> {
        let name = format!("ringbouncer-test-{}-{shards}", std::process::id());
        let path = PathBuf::from("/etc/pam.d").join(&name);
        let home = tempfile::tempdir().unwrap();
        let script = home.path().join("judge");
        let check =
            "#!/bin/sh\nIFS= read -r password\n[ \"$PAM_USER $password\" = 'alice pam secret' ]\n";
        fs::write(
            &script,
            check.replace("read -r password", "read -r password || true"),
        )
        .unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        let rules = format!(
            "auth required pam_exec.so expose_authtok quiet {}\naccount required pam_permit.so\n",
            script.display()
        );
        if let Err(error) = fs::write(&path, rules) {
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
    let Some(service) = Service::new(shards) else {
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

both_shards!(service_that_does_not_exist_lets_nobody_in, |shards| {
    let topology = Topology::new(shards)
        .set("auth_type", "pam")
        .set("auth_pam_service", "ringbouncer-no-such-service");
    let stage = Stage::with_keys(topology, &[("user", "postgres")]);
    let outcome = driver::try_login(stage.address(), "alice", "x", &stage.entry);
    assert_eq!(outcome.unwrap_err().1, "PAM authentication failed");
});
