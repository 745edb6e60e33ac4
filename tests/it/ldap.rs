//! Logins judged by an LDAP server: a real slapd, started for the test.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use rustix::process::Signal;
use tempfile::TempDir;

use crate::support::certs::{Authority, Signed};
use crate::support::drop_in::{Brand, DropIn, drop_in, entry};
use crate::support::ports::free_port;
use crate::support::postgres::spawn_lasting;
use crate::support::*;

const PASSWORD: &str = "ldap secret";

const CONFIG: &str = "\
include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/inetorgperson.schema
modulepath /usr/lib/ldap
moduleload back_ldif
pidfile HOME/slapd.pid
database ldif
suffix \"dc=example,dc=net\"
directory HOME/data
rootdn \"cn=admin,dc=example,dc=net\"
rootpw admin-secret
TLSCertificateFile CERTIFICATE
TLSCertificateKeyFile KEY
access to attrs=userPassword by anonymous auth by * none
access to * by dn.exact=\"cn=reader,dc=example,dc=net\" read by anonymous auth by * none
";

const ENTRIES: &str = "\
dn: dc=example,dc=net
objectClass: dcObject
objectClass: organization
dc: example
o: example

dn: cn=reader,dc=example,dc=net
objectClass: person
cn: reader
sn: reader
userPassword: reader-secret

dn: ou=people,dc=example,dc=net
objectClass: organizationalUnit
ou: people

dn: uid=alice,ou=people,dc=example,dc=net
objectClass: inetOrgPerson
uid: alice
cn: alice
sn: alice
mail: alice@example.net
userPassword: ldap secret

dn: uid=twin,ou=people,dc=example,dc=net
objectClass: inetOrgPerson
uid: twin
cn: twin
sn: twin
mail: twins@example.net
userPassword: ldap secret

dn: uid=twin2,ou=people,dc=example,dc=net
objectClass: inetOrgPerson
uid: twin2
cn: twin2
sn: twin2
mail: twins@example.net
userPassword: ldap secret
";

/// A slapd with the entries above.
struct Slapd {
    address: SocketAddr,
    /// Where it speaks TLS from the first byte.
    secure: SocketAddr,
    authority: Authority,
    _certificate: Signed,
    _child: Child,
    _home: TempDir,
}

impl Slapd {
    /// The one that all tests share; none if slapd is not installed.
    fn shared() -> Option<&'static Slapd> {
        static SHARED: OnceLock<Option<Slapd>> = OnceLock::new();
        SHARED.get_or_init(Slapd::start).as_ref()
    }

    fn start() -> Option<Slapd> {
        let program = Path::new("/usr/sbin/slapd");
        if !program.exists() {
            eprintln!("slapd is not installed: nothing is tested");
            return None;
        }
        let home = tempfile::tempdir().unwrap();
        fs::create_dir(home.path().join("data")).unwrap();
        let config = home.path().join("slapd.conf");
        let authority = Authority::new("authority of the LDAP server");
        let certificate = authority.sign();
        let text = CONFIG
            .replace("HOME", home.path().to_str().unwrap())
            .replace("CERTIFICATE", certificate.certificate_path())
            .replace("KEY", certificate.key_path());
        fs::write(&config, text).unwrap();
        let entries = home.path().join("entries.ldif");
        fs::write(&entries, ENTRIES).unwrap();
        let loaded = Command::new("/usr/sbin/slapadd")
            .arg("-f")
            .arg(&config)
            .arg("-l")
            .arg(&entries)
            .output()
            .unwrap();
        assert!(
            loaded.status.success(),
            "{}",
            String::from_utf8_lossy(&loaded.stderr)
        );
        for _ in 0..20 {
            let (address, secure) = (free_address(), free_address());
            let mut command = Command::new(program);
            command
                .arg("-f")
                .arg(&config)
                .args(["-d", "0", "-h"])
                .arg(format!(
                    "ldap://{address} ldap://127.0.0.2:{} ldaps://{secure}",
                    address.port()
                ))
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            let mut child = spawn_lasting(command, Signal::KILL);
            let mut is_gone = false;
            wait_until("slapd listens or ends", || {
                is_gone = child.try_wait().unwrap().is_some();
                let listens = || [address, secure].map(|at| TcpStream::connect(at).is_ok());
                is_gone || listens() == [true, true]
            });
            if !is_gone {
                return Some(Slapd {
                    address,
                    secure,
                    authority,
                    _certificate: certificate,
                    _child: child,
                    _home: home,
                });
            }
        }
        panic!("slapd does not start");
    }

    fn server(&self) -> String {
        format!("ldapserver=127.0.0.1 ldapport={}", self.address.port())
    }
}

fn free_address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], free_port()))
}

fn stage(shards: usize, options: &str) -> Stage {
    let topology = Topology::new(shards)
        .set("auth_type", "ldap")
        .set("login_failure_delay", 0)
        .set("auth_ldap_options", options);
    Stage::with_keys(topology, &[("user", "postgres")])
}

/// The same; the system trusts nobody but the authority whose certificate is in this file.
fn stage_that_trusts(shards: usize, options: &str, authority: &str) -> Stage {
    let topology = Topology::new(shards)
        .set("auth_type", "ldap")
        .set("login_failure_delay", 0)
        .set("auth_ldap_options", options);
    Stage::amended(topology, &[("user", "postgres")], |command| {
        command.env("SSL_CERT_FILE", authority);
    })
}

#[track_caller]
fn check(stage: &Stage, cases: &[(&str, &str, bool)]) {
    for (user, password, good) in cases {
        let outcome = driver::try_login(stage.address(), user, password, &stage.entry);
        assert_eq!(
            outcome.is_ok(),
            *good,
            "{user} with {password:?}: {outcome:?}"
        );
        if let Err((_, text)) = outcome {
            let wanted = [
                "LDAP authentication failed",
                "empty password returned by client",
            ];
            assert!(wanted.contains(&text.as_str()), "{text}");
        }
    }
}

const CASES: [(&str, &str, bool); 6] = [
    ("alice", PASSWORD, true),
    ("alice", "wrong", false),
    ("alice", "", false),
    ("nobody", PASSWORD, false),
    ("*", PASSWORD, false),
    ("alice,ou=people", PASSWORD, false),
];

both_shards!(simple_bind_lets_in_who_can_bind, |shards| {
    let Some(slapd) = Slapd::shared() else { return };
    let name = "ldapprefix=\"uid=\" ldapsuffix=\",ou=people,dc=example,dc=net\"";
    let stage = stage(shards, &format!("{} {name}", slapd.server()));
    check(&stage, &CASES);
});

drop_in!(
    who_can_bind_is_let_in_as_by_pgbouncer,
    since(1, 25),
    |brand| {
        let Some(slapd) = Slapd::shared() else { return };
        let database = Postgres::shared().database();
        let main = entry("main", &database, "user=postgres");
        let options = format!("auth_ldap_options = {} {NAME}", slapd.server());
        let lines = format!("auth_type = ldap\n{options}\n[databases]\n{main}");
        let drop_in = DropIn::start(brand, database, &lines);
        for (user, password, good) in CASES {
            let outcome = driver::try_login(drop_in.address, user, password, "main");
            assert_eq!(
                outcome.is_ok(),
                good,
                "{user} with {password:?}: {outcome:?}"
            );
        }
    }
);

both_shards!(search_and_bind_finds_exactly_one_entry, |shards| {
    let Some(slapd) = Slapd::shared() else { return };
    let reader = "ldapbinddn=\"cn=reader,dc=example,dc=net\" ldapbindpasswd=reader-secret";
    let base = format!(
        "{} ldapbasedn=\"dc=example,dc=net\" {reader}",
        slapd.server()
    );
    let by_uid = stage(shards, &base);
    check(&by_uid, &CASES);
    let filter = "ldapsearchfilter=\"(|(uid=$username)(mail=$username))\"";
    let by_either = stage(shards, &format!("{base} {filter}"));
    check(&by_either, &CASES);
    check(
        &by_either,
        &[
            ("alice@example.net", PASSWORD, true),
            ("twin", PASSWORD, true),
            ("twins@example.net", PASSWORD, false),
        ],
    );
});

both_shards!(search_that_may_not_read_finds_nobody, |shards| {
    let Some(slapd) = Slapd::shared() else { return };
    let base = format!("{} ldapbasedn=\"dc=example,dc=net\"", slapd.server());
    check(&stage(shards, &base), &[("alice", PASSWORD, false)]);
    let wrong = "ldapbinddn=\"cn=reader,dc=example,dc=net\" ldapbindpasswd=wrong";
    let stage = stage(shards, &format!("{base} {wrong}"));
    check(&stage, &[("alice", PASSWORD, false)]);
    stage.wait_log("cannot ask an LDAP server");
});

const NAME: &str = "ldapprefix=\"uid=\" ldapsuffix=\",ou=people,dc=example,dc=net\"";

both_shards!(
    password_travels_encrypted_to_a_server_that_is_trusted,
    |shards| {
        let Some(slapd) = Slapd::shared() else { return };
        let root = slapd.authority.root.certificate_path();
        let secure = slapd.secure.port();
        let start_tls = format!("{} ldaptls=1 {NAME}", slapd.server());
        let ldaps = format!("ldapserver=127.0.0.1 ldapport={secure} ldapscheme=ldaps {NAME}");
        let by_url = format!("ldapurl=\"ldaps://localhost:{secure}\" {NAME}");
        for options in [&start_tls, &ldaps, &by_url] {
            check(
                &stage_that_trusts(shards, options, root),
                &[("alice", PASSWORD, true), ("alice", "wrong", false)],
            );
        }
    }
);

both_shards!(ldap_server_that_is_not_trusted_judges_nobody, |shards| {
    let Some(slapd) = Slapd::shared() else { return };
    let stranger = Authority::new("somebody else");
    let stranger = stranger.root.certificate_path();
    let start_tls = format!("{} ldaptls=1 {NAME}", slapd.server());
    let secure = slapd.secure.port();
    let ldaps = format!("ldapserver=127.0.0.1 ldapport={secure} ldapscheme=ldaps {NAME}");
    for options in [&start_tls, &ldaps] {
        let stage = stage_that_trusts(shards, options, stranger);
        check(&stage, &[("alice", PASSWORD, false)]);
        stage.wait_log("UnknownIssuer");
    }
    // By a name that its certificate does not have.
    let root = slapd.authority.root.certificate_path();
    let elsewhere = start_tls.replace("127.0.0.1", "127.0.0.2");
    let stage = stage_that_trusts(shards, &elsewhere, root);
    check(&stage, &[("alice", PASSWORD, false)]);
    stage.wait_log("not valid for name");
});

both_shards!(
    rule_of_the_hba_file_can_name_servers_of_which_one_is_down,
    |shards| {
        let Some(slapd) = Slapd::shared() else { return };
        let home = tempfile::tempdir().unwrap();
        let hba = home.path().join("hba");
        let name = "ldapprefix=\"uid=\" ldapsuffix=\",ou=people,dc=example,dc=net\"";
        let port = slapd.address.port();
        let rules = format!(
            "host all alice all ldap ldapserver=\"127.0.0.254 127.0.0.1\" ldapport={port} {name}\n\
         host all all all reject\n"
        );
        fs::write(&hba, rules).unwrap();
        let topology = Topology::new(shards)
            .set("auth_type", "hba")
            .set("auth_hba_file", hba.to_str().unwrap());
        let stage = Stage::with_keys(topology, &[("user", "postgres")]);
        check(
            &stage,
            &[("alice", PASSWORD, true), ("alice", "wrong", false)],
        );
    }
);

both_shards!(server_that_never_answers_holds_up_nobody_else, |shards| {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let home = tempfile::tempdir().unwrap();
    let hba = home.path().join("hba");
    let port = silent.local_addr().unwrap().port();
    let rules = format!(
        "host all stuck all ldap ldapserver=127.0.0.1 ldapport={port} ldapprefix=\"uid=\"\n\
         host all all all trust\n"
    );
    fs::write(&hba, rules).unwrap();
    let topology = Topology::new(shards)
        .set("auth_type", "hba")
        .set("auth_hba_file", hba.to_str().unwrap());
    let stage = Stage::with_keys(topology, &[("user", "postgres")]);
    std::thread::scope(|scope| {
        let stuck: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| driver::try_login(stage.address(), "stuck", "x", &stage.entry)))
            .collect();
        wait_until("all are stuck", || {
            let table = stage.console("SHOW LISTS").table();
            let row = table.iter().find(|row| row["list"] == "login_clients");
            row.unwrap()["items"] == "4"
        });
        for _ in 0..20 {
            assert_eq!(stage.client().value("select 'served'"), "served");
        }
        // Not before: it is for those who are served, too.
        let set = stage.console("SET client_login_timeout = '100 ms'");
        assert!(set.error.is_none(), "{set:?}");
        for login in stuck {
            assert_eq!(login.join().unwrap().unwrap_err().1, "client_login_timeout");
        }
    });
    drop(silent);
});
