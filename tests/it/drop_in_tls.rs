//! TLS towards clients: who must encrypt, whose certificate is good, what changes with a reload. Each claim holds for
//! PgBouncer, too.

use std::fs;
use std::io;
use std::sync::Arc;

use rustls::ClientConfig;
use tempfile::TempDir;

use crate::support::certs::{Authority, Signed, Wish};
use crate::support::drop_in::*;
use crate::support::peer::{self, Reply};
use crate::support::wire::*;
use crate::support::*;

fn database() -> Database {
    Postgres::shared().database()
}

/// Who signs the certificates of a test, and the files that the pooler reads.
struct Office {
    authority: Authority,
    files: TempDir,
}

impl Office {
    fn new() -> Office {
        let office = Office {
            authority: Authority::new("authority of the pooler"),
            files: open_directory(),
        };
        office.authority.root.publish(office.files.path(), "ca");
        office.show(&office.authority.sign());
        office
    }

    /// From the next reading on the pooler shows this certificate.
    fn show(&self, signed: &Signed) {
        signed.publish(self.files.path(), "own");
    }

    fn path(&self, name: &str) -> String {
        self.files.path().join(name).display().to_string()
    }

    /// Lines of the file that turn TLS on.
    fn lines(&self, mode: &str) -> String {
        format!(
            "client_tls_sslmode = {mode}\nclient_tls_cert_file = {}\nclient_tls_key_file = {}\nclient_tls_ca_file = {}",
            self.path("own.crt"),
            self.path("own.key"),
            self.path("ca.crt"),
        )
    }

    fn start(&self, brand: Brand, mode: &str, more: &str) -> DropIn {
        let lines = format!("{}\n{more}", self.lines(mode));
        DropIn::start(brand, database(), &lines)
    }

    fn config(&self, own: Option<&Signed>) -> Arc<ClientConfig> {
        Arc::new(self.authority.client_config(own))
    }

    fn config_of(&self, version: &'static rustls::SupportedProtocolVersion) -> Arc<ClientConfig> {
        Arc::new(self.authority.client_config_of(&[version]))
    }

    /// Somebody whose certificate says so.
    fn named(&self, common_name: &str, names: &[&str]) -> Signed {
        self.authority.sign_as(&Wish {
            common_name,
            names,
            ..Wish::default()
        })
    }
}

/// Logs in over TLS: an error if the handshake fails, of which a client of TLS 1.3 hears by the answer to its first
/// message, or by the end in its place.
fn enter(
    drop_in: &DropIn,
    config: Arc<ClientConfig>,
    user: &str,
    entry: &str,
) -> io::Result<(Client, Reply)> {
    let mut client = Client::connect(drop_in.address);
    client.request_tls(config)?;
    client.send_anyway(&startup(
        PROTOCOL_3_0,
        &[("user", user), ("database", entry)],
    ));
    let reply = client.try_reply()?;
    match reply.closed && reply.error.is_none() {
        true => Err(io::ErrorKind::UnexpectedEof.into()),
        false => Ok((client, reply)),
    }
}

/// A client that has logged in as `postgres` over TLS.
#[track_caller]
fn encrypted(drop_in: &DropIn, config: Arc<ClientConfig>, entry: &str) -> Client {
    let (client, reply) = enter(drop_in, config, "postgres", entry).expect("a handshake");
    assert_eq!(reply.status, b'I', "{reply:?}");
    client
}

/// The answer to an SSLRequest.
fn answer_to_request(drop_in: &DropIn) -> u8 {
    let mut client = Client::connect(drop_in.address);
    client.send(&ssl_request());
    client.read_byte()
}

// ---- modes -------------------------------------------------------------------------------------------------------

drop_in!(mode_says_who_must_encrypt, |brand| {
    let office = Office::new();
    // Mode; the answer to an SSLRequest; whether clients get in that do not encrypt.
    let table = [
        ("disable", b'N', true),
        ("allow", b'S', true),
        ("prefer", b'S', true),
        ("require", b'S', false),
        ("verify-ca", b'S', false),
        ("verify-full", b'S', false),
    ];
    for (mode, answer, is_let_in) in table {
        let drop_in = office.start(brand, mode, "");
        assert_eq!(answer_to_request(&drop_in), answer, "{mode}");
        let reply = drop_in.enter("postgres", &drop_in.database.name);
        if is_let_in {
            assert_eq!(reply.status, b'I', "{mode}: {reply:?}");
        } else {
            assert_eq!(reply.code(), "08P01", "{mode}");
            reply.assert_fatal("SSL required");
        }
    }
});

drop_in!(mode_says_whose_certificate_is_good, |brand| {
    let office = Office::new();
    let good = office.named("anybody", &[]);
    let stranger = Authority::new("nobody knows this one").sign();
    let expired = office.authority.sign_as(&Wish {
        is_expired: true,
        ..Wish::default()
    });
    for mode in ["allow", "prefer", "require", "verify-ca", "verify-full"] {
        let drop_in = office.start(brand, mode, "");
        let gets_in = |own: Option<&Signed>| {
            let outcome = enter(
                &drop_in,
                office.config(own),
                "postgres",
                &drop_in.database.name,
            );
            outcome.is_ok_and(|(_, reply)| reply.status == b'I')
        };
        assert!(gets_in(Some(&good)), "{mode}");
        assert!(!gets_in(Some(&stranger)), "{mode}");
        assert!(!gets_in(Some(&expired)), "{mode}");
        assert_eq!(gets_in(None), !mode.starts_with("verify"), "{mode}");
    }
});

drop_in!(unix_sockets_are_not_encrypted_and_need_not_be, |brand| {
    let office = Office::new();
    for mode in ["allow", "require", "verify-full"] {
        let drop_in = office.start(brand, mode, "");
        let mut client = drop_in.by_socket();
        client.send(&ssl_request());
        assert_eq!(client.read_byte(), b'N', "{mode}");
        let params = [("user", "postgres"), ("database", &*drop_in.database.name)];
        assert_eq!(client.start(PROTOCOL_3_0, &params).status, b'I', "{mode}");
    }
});

drop_in!(tls_needs_a_certificate_and_its_key, |brand| {
    let office = Office::new();
    let other = office.authority.sign();
    other.publish(office.files.path(), "other");
    let whole = office.lines("allow");
    let cases = [
        (whole.clone(), true),
        (whole.replace("own.key", "other.key"), false),
        (whole.replace("own.key", "nowhere"), false),
        (whole.replace("own.crt", "nowhere"), false),
        (whole.replace("own.crt", "own.key"), false),
        (whole.replace("ca.crt", "nowhere"), false),
        ("client_tls_sslmode = require".into(), false),
        ("client_tls_sslmode = nonsense".into(), false),
        ("client_tls_sslmode = REQUIRE".into(), false),
        (whole.replace("allow", "ALLOW"), true),
    ];
    for (lines, starts) in cases {
        let started = DropIn::try_start(brand, database(), &lines);
        assert_eq!(started.is_ok(), starts, "{lines}");
    }
});

// ---- the request -------------------------------------------------------------------------------------------------

drop_in!(data_behind_the_request_is_refused, |brand| {
    let office = Office::new();
    let drop_in = office.start(brand, "allow", "");
    let params = [("user", "postgres"), ("database", &*drop_in.database.name)];
    let mut client = Client::connect(drop_in.address);
    let reply = client.exchange(&[ssl_request(), startup(PROTOCOL_3_0, &params)].concat());
    assert_eq!(reply.code(), "08P01");
    reply.assert_fatal("received unencrypted data after SSL request");
});

drop_in!(request_inside_tls_ends_the_connection, |brand| {
    let office = Office::new();
    let drop_in = office.start(brand, "allow", "");
    let mut client = Client::connect(drop_in.address);
    client.request_tls(office.config(None)).unwrap();
    client.send(&ssl_request());
    let reply = client.reply();
    assert!(reply.closed && reply.status == 0, "{reply:?}");
});

drop_in!(other_encryption_is_declined_and_tls_goes_on, |brand| {
    let office = Office::new();
    let drop_in = office.start(brand, "require", "");
    let mut client = Client::connect(drop_in.address);
    client.send(&gssenc_request());
    assert_eq!(client.read_byte(), b'N');
    client.request_tls(office.config(None)).unwrap();
    let params = [("user", "postgres"), ("database", &*drop_in.database.name)];
    assert_eq!(client.start(PROTOCOL_3_0, &params).status, b'I');
});

drop_in!(handshake_that_is_none_harms_nobody_else, |brand| {
    let office = Office::new();
    let drop_in = office.start(brand, "allow", "");
    let mut garbage = Client::connect(drop_in.address);
    garbage.send(&ssl_request());
    assert_eq!(garbage.read_byte(), b'S');
    garbage.send_anyway(b"GET / HTTP/1.1\r\n\r\n");
    // Old ones leave it to its timeout.
    if !brand.is_before((1, 24)) {
        garbage.read_to_end();
    }
    let mut client = encrypted(&drop_in, office.config(None), &drop_in.database.name);
    assert_eq!(client.value("select 'fine'"), "fine");
});

drop_in!(cancel_requests_may_be_encrypted, |brand| {
    let office = Office::new();
    let drop_in = office.start(brand, "require", "");
    let mut client = encrypted(&drop_in, office.config(None), &drop_in.database.name);
    client.send(&query("select pg_sleep(100)"));
    drop_in.database.wait_backends(1, "state = 'active'");
    let mut canceller = Client::connect(drop_in.address);
    canceller.request_tls(office.config(None)).unwrap();
    canceller.send(&cancel_request(client.key.0, &client.key.1));
    assert_eq!(client.reply().code(), "57014");
});

// libpq before version 17 encrypts none.
drop_in!(cancel_requests_need_not_be_encrypted, |brand| {
    let office = Office::new();
    let drop_in = office.start(brand, "require", "");
    let mut client = encrypted(&drop_in, office.config(None), &drop_in.database.name);
    client.send(&query("select pg_sleep(100)"));
    drop_in.database.wait_backends(1, "state = 'active'");
    peer::cancel(drop_in.address, &client.key);
    assert_eq!(client.reply().code(), "57014");
});

// ---- what is agreed on -------------------------------------------------------------------------------------------

/// What the console says of the TLS of its own client.
fn shown(drop_in: &DropIn, config: Arc<ClientConfig>) -> String {
    let mut console = encrypted(drop_in, config, "pgbouncer");
    let clients = console.query("SHOW CLIENTS");
    clients.row_of(&console).expect("itself")["tls"].clone()
}

drop_in!(console_and_log_tell_what_is_agreed_on, |brand| {
    let office = Office::new();
    let drop_in = office.start(brand, "allow", "client_tls_ecdhcurve = prime256v1");
    // PgBouncer tells no curve of TLS 1.3.
    let last_of_new = match brand {
        Brand::PgBouncer => "_SHA384",
        Brand::Ringbouncer(_) => "_SHA384/ECDH=prime256v1",
    };
    for (version, first, last) in [
        (
            &rustls::version::TLS13,
            "TLSv1.3/TLS_AES_256_GCM",
            last_of_new,
        ),
        (
            &rustls::version::TLS12,
            "TLSv1.2/ECDHE-ECDSA-",
            "/ECDH=prime256v1",
        ),
    ] {
        let shown = shown(&drop_in, office.config_of(version));
        assert!(shown.starts_with(first) && shown.ends_with(last), "{shown}");
        let line = line_with(&drop_in, "login attempt");
        let told = format!("login attempt: db=pgbouncer user=postgres tls={shown}");
        assert!(line.contains(&told), "{line}");
    }
    let mut plain = Client::login(drop_in.address, "pgbouncer");
    let clients = plain.query("SHOW CLIENTS");
    assert_eq!(clients.row_of(&plain).expect("itself")["tls"], "");
});

drop_in!(file_chooses_protocol_and_ciphers, |brand| {
    let office = Office::new();
    let (old, new) = (&rustls::version::TLS12, &rustls::version::TLS13);
    // Lines; what each version of a client comes to, "" if to nothing.
    let table = [
        ("client_tls_protocols = tlsv1.2", "TLSv1.2/", ""),
        ("client_tls_protocols = tlsv1.3", "", "TLSv1.3/"),
        ("client_tls_protocols = secure", "TLSv1.2/", "TLSv1.3/"),
        ("client_tls_protocols = all,!tlsv1.3", "TLSv1.2/", ""),
        (
            "client_tls_ciphers = ECDHE-ECDSA-CHACHA20-POLY1305",
            "TLSv1.2/ECDHE-ECDSA-CHACHA20-POLY1305",
            "TLSv1.3/",
        ),
        (
            "client_tls_ciphers = ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256",
            "TLSv1.2/ECDHE-ECDSA-AES128-GCM-SHA256",
            "TLSv1.3/",
        ),
    ];
    for (lines, of_old, of_new) in table {
        let drop_in = office.start(brand, "allow", lines);
        for (version, expected) in [(old, of_old), (new, of_new)] {
            let config = office.config_of(version);
            if expected.is_empty() {
                let outcome = enter(&drop_in, config, "postgres", "pgbouncer");
                assert!(outcome.is_err(), "{lines}");
            } else {
                let shown = shown(&drop_in, config);
                assert!(shown.starts_with(expected), "{lines}: {shown}");
            }
        }
    }
});

drop_in!(file_chooses_ciphers_of_tls_1_3, since(1, 25), |brand| {
    let office = Office::new();
    let lines = "client_tls13_ciphers = TLS_CHACHA20_POLY1305_SHA256";
    let drop_in = office.start(brand, "allow", lines);
    let shown = shown(&drop_in, office.config_of(&rustls::version::TLS13));
    assert!(
        shown.starts_with("TLSv1.3/TLS_CHACHA20_POLY1305_SHA256"),
        "{shown}"
    );
});

// ---- changes -----------------------------------------------------------------------------------------------------

/// The certificate that a new client is shown.
fn certificate(drop_in: &DropIn, config: Arc<ClientConfig>) -> Vec<u8> {
    let mut client = Client::connect(drop_in.address);
    client.request_tls(config).expect("a handshake");
    client.tls().peer_certificates().unwrap()[0].to_vec()
}

drop_in!(reload_reads_certificates_again, |brand| {
    let office = Office::new();
    let drop_in = office.start(brand, "allow", "");
    let mut before = encrypted(&drop_in, office.config(None), &drop_in.database.name);
    let renewed = office.authority.sign();
    office.show(&renewed);
    assert_eq!(drop_in.console("RELOAD").complete, ["RELOAD"]);
    assert_eq!(certificate(&drop_in, office.config(None)), renewed.der());
    assert_eq!(before.value("select 'still here'"), "still here");
});

drop_in!(reload_reads_the_ca_of_clients_again, |brand| {
    let office = Office::new();
    let drop_in = office.start(brand, "verify-full", "");
    let other = Authority::new("another authority");
    let (old, new) = (office.authority.sign(), other.sign());
    let gets_in = |own: &Signed| {
        let config = office.config(Some(own));
        let outcome = enter(&drop_in, config, "postgres", &drop_in.database.name);
        outcome.is_ok_and(|(_, reply)| reply.status == b'I')
    };
    assert_eq!([&old, &new].map(gets_in), [true, false]);
    other.root.publish(office.files.path(), "ca");
    let mut console = encrypted_console(&drop_in, &office, &old);
    assert_eq!(console.query("RELOAD").complete, ["RELOAD"]);
    assert_eq!([&old, &new].map(gets_in), [false, true]);
});

/// An admin with this certificate, who has come before the files change.
#[track_caller]
fn encrypted_console(drop_in: &DropIn, office: &Office, own: &Signed) -> Client {
    encrypted(drop_in, office.config(Some(own)), "pgbouncer")
}

drop_in!(certificate_that_is_none_leaves_the_one_of_before, |brand| {
    let office = Office::new();
    let drop_in = office.start(brand, "allow", "");
    let before = certificate(&drop_in, office.config(None));
    fs::write(office.path("own.crt"), "no certificate\n").unwrap();
    let reply = drop_in.console("RELOAD");
    match brand.is_before((1, 25)) {
        true => assert_eq!(reply.complete, ["RELOAD"]),
        false => {
            assert_eq!(reply.code(), "F0000");
            assert_eq!(
                reply.text(),
                "RELOAD failed, see logs for additional details"
            );
        }
    }
    assert_eq!(certificate(&drop_in, office.config(None)), before);
});

drop_in!(mode_can_be_changed_by_reload_and_set, |brand| {
    let office = Office::new();
    let drop_in = office.start(brand, "disable", "");
    assert_eq!(answer_to_request(&drop_in), b'N');
    let reply = drop_in.reload_with("sslmode = disable", "sslmode = prefer");
    assert_eq!(reply.complete, ["RELOAD"]);
    assert_eq!(answer_to_request(&drop_in), b'S');
    let mut console = Client::login(drop_in.address, "pgbouncer");
    assert!(
        console
            .query("SET client_tls_sslmode = require")
            .error
            .is_none()
    );
    let reply = drop_in.enter("postgres", &drop_in.database.name);
    reply.assert_fatal("SSL required");
});

// ---- auth_type = cert ----------------------------------------------------------------------------------------------

/// A pooler that lets bearers of certificates in, with an entry `main` as `postgres`.
fn start_certified(brand: Brand, office: &Office, users: &[&str]) -> DropIn {
    let database = database();
    let lines = format!(
        "{}\nauth_type = cert\n[databases]\n{}",
        office.lines("verify-full"),
        entry("main", &database, "user=postgres")
    );
    let users: Vec<_> = users.iter().map(|user| (*user, "")).collect();
    DropIn::start_knowing(brand, database, &lines, &users)
}

const NO_CERTIFICATE: &str = "certificate authentication failed";

drop_in!(names_in_a_certificate_decide_who_its_bearer_is, |brand| {
    let office = Office::new();
    let drop_in = start_certified(brand, &office, &["ann", "bob", "cyd"]);
    let (ann, also_bob) = (office.named("ann", &[]), office.named("ann", &["bob"]));
    let both = office.named("cyd", &["bob", "ann"]);
    for (own, user, is_let_in) in [
        (&ann, "ann", true),
        (&ann, "bob", false),
        (&ann, "nobody_at_all", false),
        (&also_bob, "bob", true),
        (&also_bob, "ann", true),
        (&also_bob, "cyd", false),
        (&both, "ann", true),
        (&both, "bob", true),
        (&both, "cyd", true),
    ] {
        let config = office.config(Some(own));
        let (_, reply) = enter(&drop_in, config, user, "main").expect("a handshake");
        match is_let_in {
            true => assert_eq!(reply.status, b'I', "{user}: {reply:?}"),
            false => {
                assert_eq!(reply.code(), "08P01", "{user}");
                reply.assert_fatal(NO_CERTIFICATE);
            }
        }
    }
});

drop_in!(bearers_of_certificates_must_be_known, |brand| {
    let office = Office::new();
    let drop_in = start_certified(brand, &office, &["ann"]);
    let config = office.config(Some(&office.named("eve", &[])));
    let (_, reply) = enter(&drop_in, config, "eve", "main").expect("a handshake");
    reply.assert_fatal(NO_CERTIFICATE);
});

drop_in!(
    certificates_for_all_need_a_mode_that_asks_for_them,
    |brand| {
        let office = Office::new();
        // Ours asks in every mode that encrypts.
        let asks = matches!(brand, Brand::Ringbouncer(_));
        for (mode, starts) in [
            ("disable", false),
            ("allow", asks),
            ("require", asks),
            ("verify-full", true),
        ] {
            let lines = format!("{}\nauth_type = cert", office.lines(mode));
            let started = DropIn::try_start(brand, database(), &lines);
            assert_eq!(started.is_ok(), starts, "{mode}");
        }
    }
);

drop_in!(names_in_a_certificate_are_compared, |brand| {
    let office = Office::new();
    let drop_in = start_certified(brand, &office, &["ann", "a.example.org"]);
    let is_theirs = matches!(brand, Brand::PgBouncer);
    for (name, user) in [("Ann", "ann"), ("*.example.org", "a.example.org")] {
        let config = office.config(Some(&office.named(name, &[])));
        let (_, reply) = enter(&drop_in, config, user, "main").expect("a handshake");
        // Other users' names and patterns are not this user's.
        assert_eq!(reply.status == b'I', is_theirs, "{name}: {reply:?}");
    }
});
