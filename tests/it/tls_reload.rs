//! Certificates that are replaced while the pooler runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use rustls::ClientConfig;
use tempfile::TempDir;

use crate::support::certs::{Authority, Signed, Wish};
use crate::support::wire::*;
use crate::support::*;

/// The files of a pooler, which are replaced in place.
struct Files {
    authority: Authority,
    directory: TempDir,
}

impl Files {
    fn new() -> Files {
        let files = Files {
            authority: Authority::new("authority of the pooler"),
            directory: tempfile::tempdir().unwrap(),
        };
        fs::copy(&files.authority.root.certificate, files.path("ca")).unwrap();
        files.put(&files.authority.sign());
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn put(&self, signed: &Signed) {
        replace(&signed.certificate, &self.path("crt"));
        replace(&signed.key, &self.path("key"));
    }

    fn topology(&self, shards: usize) -> Topology {
        let path = |name| self.path(name).to_str().unwrap().to_owned();
        Topology::new(shards)
            .set("client_tls_sslmode", "require")
            .set("client_tls_cert_file", path("crt"))
            .set("client_tls_key_file", path("key"))
            .set("client_tls_ca_file", path("ca"))
    }

    fn config(&self) -> Arc<ClientConfig> {
        Arc::new(self.authority.client_config(None))
    }

    /// The certificate that a new client is shown.
    fn shown(&self, stage: &Stage) -> Vec<u8> {
        let mut client = Client::connect(stage.address());
        client.request_tls(self.config()).expect("a handshake");
        client.tls().peer_certificates().unwrap()[0].to_vec()
    }
}

/// As certbot does: the new file takes the old one's place in one step.
fn replace(from: &Path, to: &Path) {
    let beside = to.with_extension("new");
    fs::copy(from, &beside).unwrap();
    fs::rename(&beside, to).unwrap();
}

fn login(stage: &Stage, config: Arc<ClientConfig>) -> Client {
    let mut client = Client::connect(stage.address());
    client.request_tls(config).expect("a handshake");
    let params = [("user", "postgres"), ("database", stage.entry.as_str())];
    let reply = client.start(PROTOCOL_3_0, &params);
    assert_eq!(reply.status, b'I', "{reply:?}");
    client
}

/// A command on the console, over TLS.
fn console(stage: &Stage, files: &Files, command: &str) -> peer::Reply {
    let mut client = Client::connect(stage.address());
    client.request_tls(files.config()).expect("a handshake");
    let params = [("user", "postgres"), ("database", "ringbouncer")];
    assert_eq!(client.start(PROTOCOL_3_0, &params).status, b'I');
    client.query(command)
}

both_shards!(renewed_certificate_is_shown_without_a_reload, |shards| {
    let files = Files::new();
    let stage = Stage::pooled(files.topology(shards));
    let mut guest = login(&stage, files.config());
    let renewed = files.authority.sign();
    files.put(&renewed);
    let expected = renewed.der();
    wait_until("the new certificate is shown", || {
        files.shown(&stage) == expected
    });
    assert_eq!(guest.value("select 'still here'"), "still here");
    // And with one.
    let again = files.authority.sign();
    files.put(&again);
    assert_eq!(console(&stage, &files, "RELOAD").complete, ["RELOAD"]);
    wait_until("the newest certificate is shown", || {
        files.shown(&stage) == again.der()
    });
});

both_shards!(
    broken_files_leave_the_old_certificate_in_force_and_say_so,
    |shards| {
        let files = Files::new();
        let stage = Stage::pooled(files.topology(shards));
        let before = files.shown(&stage);
        let other = files.authority.sign();
        replace(&other.key, &files.path("key"));
        stage.wait_log("cannot be used, the old ones stay in force");
        stage.wait_log("is not the key of the certificate");
        assert_eq!(files.shown(&stage), before);
        let refused = console(&stage, &files, "RELOAD");
        assert!(refused.error.is_some(), "{refused:?}");
        assert_eq!(files.shown(&stage), before);
        // It is whole again once the other half has come.
        replace(&other.certificate, &files.path("crt"));
        wait_until("the new pair is shown", || {
            files.shown(&stage) == other.der()
        });
    }
);

both_shards!(
    certificates_change_under_load_and_nobody_notices,
    |shards| {
        let files = Files::new();
        let stage = Stage::pooled(files.topology(shards));
        let (done, turns) = (AtomicBool::new(false), AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    let mut guest = login(&stage, files.config());
                    while !done.load(Ordering::Acquire) {
                        assert_eq!(guest.value("select 'busy'"), "busy");
                        assert_eq!(login(&stage, files.config()).value("select 'new'"), "new");
                        turns.fetch_add(1, Ordering::AcqRel);
                    }
                });
            }
            for _ in 0..4 {
                let renewed = files.authority.sign();
                files.put(&renewed);
                wait_until("the new certificate is shown", || {
                    files.shown(&stage) == renewed.der()
                });
                let seen = turns.load(Ordering::Acquire);
                wait_until("everybody goes on", || {
                    turns.load(Ordering::Acquire) > seen + 6
                });
            }
            done.store(true, Ordering::Release);
        });
    }
);

both_shards!(session_of_before_a_change_is_not_resumed, |shards| {
    // It could have begun with a client certificate that has been revoked since.
    let files = Files::new();
    let stage = Stage::pooled(files.topology(shards));
    let mut config = files.authority.client_config(None);
    config.resumption = rustls::client::Resumption::in_memory_sessions(8);
    let config = Arc::new(config);
    login(&stage, config.clone()).value("select 1");
    let mut second = login(&stage, config.clone());
    assert_eq!(
        second.tls().handshake_kind(),
        Some(rustls::HandshakeKind::Resumed)
    );
    second.value("select 1");
    let renewed = files.authority.sign();
    files.put(&renewed);
    wait_until("the new certificate is shown", || {
        files.shown(&stage) == renewed.der()
    });
    let mut third = login(&stage, config);
    assert_eq!(
        third.tls().handshake_kind(),
        Some(rustls::HandshakeKind::Full)
    );
});

both_shards!(
    client_certificate_is_revoked_while_the_pooler_runs,
    |shards| {
        let files = Files::new();
        let guest = files.authority.sign();
        let list = files.path("crl");
        fs::write(&list, files.authority.revoke(&[])).unwrap();
        let topology = files
            .topology(shards)
            .set("client_tls_crl_file", list.to_str().unwrap());
        let stage = Stage::pooled(topology);
        let words = format!(
            "sslmode=require sslcert={} sslkey={}",
            guest.certificate_path(),
            guest.key_path()
        );
        let ask = || psql(stage.address(), &stage.entry, &words, "select 'in'");
        assert_eq!(ask().as_deref(), Ok("in"));
        let beside = files.path("crl.new");
        fs::write(&beside, files.authority.revoke(&[&guest])).unwrap();
        fs::rename(&beside, &list).unwrap();
        wait_until("it is refused", || ask().is_err());
    }
);

both_shards!(show_tls_tells_when_certificates_expire, |shards| {
    let files = Files::new();
    files.put(&files.authority.sign_as(&Wish {
        is_expired: true,
        common_name: "too old",
        ..Wish::default()
    }));
    let stage = Stage::pooled(files.topology(shards).set("client_tls_sslmode", "prefer"));
    let table = stage.console("SHOW TLS").table();
    let settings: Vec<_> = table.iter().map(|row| row["setting"].as_str()).collect();
    assert_eq!(settings, ["client_tls_ca_file", "client_tls_cert_file"]);
    assert_eq!(table[1]["subject"], "CN=too old");
    assert_eq!(table[1]["not_after"], "2021-01-01 00:00:00 UTC");
    assert!(
        table[1]["seconds_left"].starts_with('-') && !table[0]["seconds_left"].starts_with('-')
    );
    stage.wait_log("certificate has expired");
});

both_shards!(
    changed_server_settings_make_pools_reconnect_and_unchanged_do_not,
    |shards| {
        let pid = |stage: &Stage| stage.client().value("select pg_backend_pid()");
        let topology = |mode: &str| {
            Topology::new(shards)
                .pool_size(1)
                .set("server_tls_sslmode", mode)
                .set(
                    "server_tls_ca_file",
                    Postgres::authority().root.certificate_path(),
                )
        };
        let database = Postgres::encrypted().database();
        let name = database.name.clone();
        let stage = Stage::on(database, topology("require"), &[]);
        let rewrite = |topology: Topology| {
            stage.rewrite(&topology.database(&name, &stage.database, &[]));
            assert_eq!(stage.console("RELOAD").complete, ["RELOAD"]);
        };
        let first = pid(&stage);
        rewrite(topology("require").set("max_client_conn", 1999));
        assert_eq!(pid(&stage), first);
        let mut busy = stage.client();
        busy.query("begin");
        let held = busy.value("select pg_backend_pid()");
        rewrite(topology("verify-full"));
        // A transaction under way keeps its server; then it goes.
        assert_eq!(busy.value("select pg_backend_pid()"), held);
        busy.query("commit");
        drop(busy);
        assert_ne!(pid(&stage), held);
    }
);
