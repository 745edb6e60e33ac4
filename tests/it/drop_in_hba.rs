//! HBA rules that look at the way a client comes: sockets, TLS, certificates, the system's word. Each claim holds for
//! PgBouncer, too.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;

use tempfile::TempDir;

use crate::support::certs::{Authority, Signed, Wish};
use crate::support::drop_in::*;
use crate::support::peer::Reply;
use crate::support::postgres::binaries;
use crate::support::wire::*;
use crate::support::*;

const PASSWORD: &str = "sesame";
const REJECTED: &str = "login rejected";
const NO_CERTIFICATE: &str = "certificate authentication failed";
const NO_PEER: &str = "unix socket login rejected";

/// What they are told whom no rule matches.
fn no_rule(brand: Brand) -> &'static str {
    match brand.is_before((1, 20)) {
        true => REJECTED,
        false => "no authentication method is found",
    }
}

/// The files that the rules, the maps and the certificates are in.
struct Files {
    directory: TempDir,
    authority: Authority,
}

impl Files {
    fn new(rules: &str, ident: &str) -> Files {
        let files = Files {
            directory: open_directory(),
            authority: Authority::new("authority of the pooler"),
        };
        files.write("hba", rules);
        files.write("ident", ident);
        files.authority.root.publish(files.directory.path(), "ca");
        let own = files.authority.sign();
        own.publish(files.directory.path(), "own");
        files
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.directory.path().join(name), text).unwrap();
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    fn lines(&self) -> String {
        let ident = format!("auth_ident_file = {}\n", self.path("ident"));
        let is_empty = fs::read(self.path("ident")).unwrap().is_empty();
        format!(
            "auth_type = hba\nauth_hba_file = {}\n{}client_tls_sslmode = allow\nclient_tls_cert_file = {}\n\
             client_tls_key_file = {}\nclient_tls_ca_file = {}",
            self.path("hba"),
            if is_empty { "" } else { &ident },
            self.path("own.crt"),
            self.path("own.key"),
            self.path("ca.crt"),
        )
    }

    /// A pooler with an entry `main`, whose server is `postgres` to everybody.
    fn start(&self, brand: Brand, users: &[&str]) -> DropIn {
        let database = Postgres::shared().database();
        let main = entry("main", &database, "user=postgres");
        let lines = format!("{}\n[databases]\n{main}", self.lines());
        let users: Vec<_> = users.iter().map(|user| (*user, PASSWORD)).collect();
        DropIn::start_knowing(brand, database, &lines, &users)
    }

    /// Logs in over TLS with this certificate, if any.
    #[track_caller]
    fn encrypted(&self, drop_in: &DropIn, own: Option<&Signed>, user: &str) -> Reply {
        let mut client = Client::connect(drop_in.address);
        let config = Arc::new(self.authority.client_config(own));
        client.request_tls(config).expect("a handshake");
        client.start(PROTOCOL_3_0, &[("user", user), ("database", "main")])
    }

    fn named(&self, common_name: &str) -> Signed {
        self.authority.sign_as(&Wish {
            common_name,
            names: &[],
            ..Wish::default()
        })
    }
}

fn by_socket(drop_in: &DropIn, user: &str, database: &str) -> Reply {
    let params = [("user", user), ("database", database)];
    drop_in.by_socket().start(PROTOCOL_3_0, &params)
}

/// Let in, or refused with this text.
#[track_caller]
fn assert_outcome(reply: &Reply, refusal: &str, what: &str) {
    if refusal.is_empty() {
        assert_eq!(reply.status, b'I', "{what}: {reply:?}");
    } else {
        assert_eq!((reply.code(), reply.text()), ("08P01", refusal), "{what}");
        reply.fatal();
    }
}

// ---- the way one comes ---------------------------------------------------------------------------------------------

drop_in!(rules_tell_the_ways_apart, |brand| {
    let no_rule = no_rule(brand);
    // Rule; what it makes of clients by the Unix socket, by TCP, and by TLS.
    let table = [
        ("local all all trust", ["", no_rule, no_rule]),
        ("host all all 127.0.0.1/32 trust", [no_rule, "", ""]),
        ("hostssl all all 127.0.0.1/32 trust", [no_rule, no_rule, ""]),
        (
            "hostnossl all all 127.0.0.1/32 trust",
            [no_rule, "", no_rule],
        ),
        ("local all all reject", [REJECTED, no_rule, no_rule]),
        (
            "hostssl all all 127.0.0.1/32 reject",
            [no_rule, no_rule, REJECTED],
        ),
    ];
    for (rule, outcomes) in table {
        let files = Files::new(&format!("{rule}\n"), "");
        let drop_in = files.start(brand, &["ann"]);
        let replies = [
            by_socket(&drop_in, "ann", "main"),
            drop_in.enter("ann", "main"),
            files.encrypted(&drop_in, None, "ann"),
        ];
        for (reply, outcome) in replies.iter().zip(outcomes) {
            assert_outcome(reply, outcome, rule);
        }
    }
});

drop_in!(addresses_of_version_6_have_rules_of_their_own, |brand| {
    let Ok(_) = std::net::TcpListener::bind("[::1]:0") else {
        eprintln!("no IPv6: nothing is compared");
        return;
    };
    for (rule, refusal) in [
        ("host all all ::1/128 trust", ""),
        ("host all all ::/0 trust", ""),
        (
            "host all all ::1 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff trust",
            "",
        ),
        ("host all all 0.0.0.0/0 trust", no_rule(brand)),
        ("host all all ::2/128 trust", no_rule(brand)),
    ] {
        let files = Files::new(&format!("{rule}\n"), "");
        let database = Postgres::shared().database();
        let lines = format!("listen_addr = 127.0.0.1,::1\n{}", files.lines());
        let drop_in = DropIn::start_knowing(brand, database, &lines, &[("postgres", "")]);
        let mut client =
            Client::connect((std::net::Ipv6Addr::LOCALHOST, drop_in.address.port()).into());
        let params = [("user", "postgres"), ("database", &*drop_in.database.name)];
        assert_outcome(&client.start(PROTOCOL_3_0, &params), refusal, rule);
    }
});

drop_in!(file_of_rules_that_is_missing_lets_nobody_in, |brand| {
    let files = Files::new("", "");
    fs::remove_file(files.path("hba")).unwrap();
    let drop_in = files.start(brand, &["ann"]);
    assert_outcome(&drop_in.enter("ann", "main"), no_rule(brand), "TCP");
    assert_outcome(
        &by_socket(&drop_in, "ann", "main"),
        no_rule(brand),
        "socket",
    );
});

drop_in!(user_whom_nobody_knows_is_not_trusted, |brand| {
    let files = Files::new("host all all 127.0.0.1/32 trust\n", "");
    let drop_in = files.start(brand, &["ann"]);
    let reply = drop_in.enter("nobody_at_all", "main");
    assert_outcome(&reply, "\"trust\" authentication failed", "unknown");
});

drop_in!(database_that_is_not_there_has_rules_all_the_same, |brand| {
    let files = Files::new("host main all 127.0.0.1/32 trust\n", "");
    let drop_in = files.start(brand, &["ann"]);
    assert_outcome(&drop_in.enter("ann", "nowhere"), no_rule(brand), "no rule");
    let files = Files::new("host all all 127.0.0.1/32 trust\n", "");
    let drop_in = files.start(brand, &["ann"]);
    let reply = drop_in.enter("ann", "nowhere");
    assert_outcome(&reply, "no such database: nowhere", "a rule");
});

drop_in!(rules_that_make_no_sense_are_left_out, |brand| {
    let files = Files::new("", "");
    let last = "host all all 127.0.0.1/32 trust";
    for rule in [
        "host all all 127.0.0.1/33 reject",
        "host all all 127.0.0.1/x reject",
        "host all all 127.0.0.1 reject",
        "host all all 127.0.0.1/32",
        "host all all 127.0.0.1/32 gss",
        "local all all 127.0.0.1/32 reject",
        "elsewhere all all 127.0.0.1/32 reject",
        "host all all reject",
    ] {
        files.write("hba", &format!("{rule}\n{last}\n"));
        let drop_in = files.start(brand, &["ann"]);
        assert_outcome(&drop_in.enter("ann", "main"), "", rule);
    }
});

// ---- certificates --------------------------------------------------------------------------------------------------

drop_in!(rule_for_certificates_lets_their_bearers_in, |brand| {
    let rules = "hostssl all all 127.0.0.1/32 cert\nhost all all 127.0.0.1/32 trust\n";
    let files = Files::new(rules, "");
    let drop_in = files.start(brand, &["ann", "bob"]);
    let ann = files.named("ann");
    for (own, user, outcome) in [
        (Some(&ann), "ann", ""),
        (Some(&ann), "bob", NO_CERTIFICATE),
        (None, "ann", NO_CERTIFICATE),
    ] {
        let reply = files.encrypted(&drop_in, own, user);
        assert_outcome(&reply, outcome, user);
    }
    assert_outcome(&drop_in.enter("ann", "main"), "", "in clear text");
});

drop_in!(map_says_whose_certificate_is_whose, since(1, 23), |brand| {
    let rules = "hostssl all all 127.0.0.1/32 cert map=staff\n";
    let ident = "# who may be whom\nstaff \"the boss\" ann\nstaff boy bob\nstaff boy \"cyd\"\nstaff root all\nothers eve ann\n";
    let files = Files::new(rules, ident);
    let drop_in = files.start(brand, &["ann", "bob", "cyd", "boy"]);
    let certificates = ["the boss", "boy", "root", "eve"].map(|name| (name, files.named(name)));
    // Whom each of them may be.
    for ((name, own), users) in certificates
        .iter()
        .zip(["ann", "bob cyd", "ann bob cyd boy", ""])
    {
        for user in ["ann", "bob", "cyd", "boy"] {
            let outcome = match users.split(' ').any(|one| one == user) {
                true => "",
                false => NO_CERTIFICATE,
            };
            let reply = files.encrypted(&drop_in, Some(own), user);
            assert_outcome(&reply, outcome, &format!("{name}, {user}"));
        }
    }
});

// ---- the system's word ---------------------------------------------------------------------------------------------

/// The user that the tests run as.
fn os_user() -> String {
    let output = Command::new("id").arg("-un").output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

drop_in!(system_says_who_comes_by_the_unix_socket, |brand| {
    let own = os_user();
    let files = Files::new("local all all peer\nhost all all 127.0.0.1/32 trust\n", "");
    let drop_in = files.start(brand, &[&own, "ann"]);
    for (user, outcome) in [(&*own, ""), ("ann", NO_PEER), ("nobody_at_all", NO_PEER)] {
        assert_outcome(&by_socket(&drop_in, user, "main"), outcome, user);
    }
    assert_outcome(&drop_in.enter("ann", "main"), "", "TCP");
});

drop_in!(
    map_says_who_may_be_whom_on_the_system,
    since(1, 23),
    |brand| {
        let own = os_user();
        let rules = "local all ann,bob peer map=staff\nlocal all all peer map=masters\n";
        let ident = format!("staff {own} ann\nstaff somebody bob\nmasters {own} all\n");
        let files = Files::new(rules, &ident);
        let drop_in = files.start(brand, &["ann", "bob", "cyd"]);
        for (user, outcome) in [("ann", ""), ("bob", NO_PEER), ("cyd", "")] {
            assert_outcome(&by_socket(&drop_in, user, "main"), outcome, user);
        }
    }
);

drop_in!(
    map_that_is_not_there_lets_nobody_in,
    since(1, 23),
    |brand| {
        let rules = "local all ann peer map=nowhere\nlocal all all trust\n";
        let files = Files::new(rules, "staff somebody ann\n");
        let drop_in = files.start(brand, &["ann"]);
        let outcome = match brand {
            // Which goes on with the next rule.
            Brand::PgBouncer => "",
            Brand::Ringbouncer(_) => NO_PEER,
        };
        assert_outcome(&by_socket(&drop_in, "ann", "main"), outcome, "");
    }
);

drop_in!(
    method_that_does_not_go_with_the_way_lets_nobody_in,
    |brand| {
        let next = "host all all 127.0.0.1/32 trust";
        // Rule; what it makes of clients in clear text, of TLS without a certificate, and with one.
        for (rule, outcomes) in [
            ("host all all 127.0.0.1/32 peer", [NO_PEER; 3]),
            ("hostssl all all 127.0.0.1/32 peer", ["", NO_PEER, NO_PEER]),
            (
                "host all all 127.0.0.1/32 cert",
                [NO_CERTIFICATE, NO_CERTIFICATE, ""],
            ),
            (
                "hostnossl all all 127.0.0.1/32 cert",
                [NO_CERTIFICATE, "", ""],
            ),
        ] {
            let files = Files::new(&format!("{rule}\n{next}\n"), "");
            let drop_in = files.start(brand, &["ann"]);
            let ann = files.named("ann");
            let replies = [
                drop_in.enter("ann", "main"),
                files.encrypted(&drop_in, None, "ann"),
                files.encrypted(&drop_in, Some(&ann), "ann"),
            ];
            for (reply, outcome) in replies.iter().zip(outcomes) {
                assert_outcome(reply, outcome, rule);
            }
        }
    }
);

drop_in!(console_is_for_those_who_are_listed, |brand| {
    let database = Postgres::shared().database();
    let lines = "auth_type = md5\nstats_users = bob";
    let users = [("ann", PASSWORD), ("bob", PASSWORD)];
    let drop_in = DropIn::start_knowing(brand, database, lines, &users);
    let told = |user: &str, password: &str| {
        let outcome = driver::try_login(drop_in.address, user, password, "pgbouncer");
        outcome.unwrap_err().1
    };
    let refused = "password authentication failed";
    let before_proof = match brand {
        Brand::PgBouncer => "not allowed",
        // Which says nothing about who there is.
        Brand::Ringbouncer(_) => refused,
    };
    assert_eq!(told("ann", PASSWORD), "not allowed");
    assert_eq!(told("ann", "wrong"), before_proof);
    assert_eq!(told("bob", "wrong"), refused);
    assert_eq!(told("nobody_at_all", PASSWORD), refused);
});

drop_in!(maps_are_read_again_by_reload, since(1, 23), |brand| {
    let own = os_user();
    let rules = "local all ann peer map=staff\nhost pgbouncer all 127.0.0.1/32 trust\n";
    let files = Files::new(rules, "staff somebody ann\n");
    let drop_in = files.start(brand, &["ann", "postgres"]);
    assert_outcome(&by_socket(&drop_in, "ann", "main"), NO_PEER, "before");
    files.write("ident", &format!("staff {own} ann\n"));
    assert_eq!(drop_in.console("RELOAD").complete, ["RELOAD"]);
    assert_outcome(&by_socket(&drop_in, "ann", "main"), "", "after");
});

/// What psql, run by the user of the pooler's process, hears on its Unix socket.
fn as_its_owner(drop_in: &DropIn, user: &str, database: &str, sql: &str) -> Result<String, String> {
    let owner = fs::metadata(drop_in.path("pid")).unwrap();
    let mut psql = Command::new(binaries().join("psql"));
    psql.args(["-XAtw", "-h"])
        .arg(drop_in.path(""))
        .args(["-p", &drop_in.address.port().to_string()]);
    psql.args(["-U", user, "-d", database, "-c", sql])
        .current_dir("/");
    if rustix::process::geteuid().is_root() {
        psql.uid(owner.uid()).gid(owner.gid());
    }
    let output = psql.output().unwrap();
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout).unwrap()),
        false => Err(String::from_utf8(output.stderr).unwrap()),
    }
}

drop_in!(owner_of_the_process_is_admin_on_the_unix_socket, |brand| {
    let files = Files::new("host main ann 127.0.0.1/32 trust\n", "");
    let drop_in = files.start(brand, &["ann"]);
    let said = as_its_owner(&drop_in, "pgbouncer", "pgbouncer", "RELOAD");
    assert_eq!(said, Ok("RELOAD\n".into()));
    // Only the console, only the Unix socket.
    let refused = as_its_owner(&drop_in, "pgbouncer", "main", "SELECT 1").unwrap_err();
    assert!(refused.contains(no_rule(brand)), "{refused}");
    let reply = drop_in.enter("pgbouncer", "pgbouncer");
    // Old ones do not look at the rules first.
    let by_tcp = match brand.is_before((1, 20)) {
        true => "not allowed",
        false => no_rule(brand),
    };
    assert_outcome(&reply, by_tcp, "TCP");
});

// ---- replication ---------------------------------------------------------------------------------------------------

drop_in!(
    rules_for_all_are_not_for_physical_replication,
    since(1, 23),
    |brand| {
        let no_rule = no_rule(brand);
        // Rule; what it makes of physical and of logical replication; none stands for a way to the server.
        for (rule, outcomes) in [
            ("host all all 127.0.0.1/32 trust", [Some(no_rule), None]),
            (
                "host replication all 127.0.0.1/32 trust",
                [None, Some(no_rule)],
            ),
            ("host main all 127.0.0.1/32 trust", [Some(no_rule), None]),
        ] {
            let files = Files::new(&format!("{rule}\n"), "");
            let drop_in = files.start(brand, &["ann"]);
            for (kind, outcome) in ["true", "database"].iter().zip(outcomes) {
                let params = [
                    ("user", "ann"),
                    ("database", "main"),
                    ("replication", *kind),
                ];
                let reply = Client::connect(drop_in.address).start(PROTOCOL_3_0, &params);
                match outcome {
                    Some(text) => assert_outcome(&reply, text, rule),
                    None => assert_ne!(reply.text(), no_rule, "{rule}: {reply:?}"),
                }
            }
        }
    }
);
