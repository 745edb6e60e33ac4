//! The configuration file as PgBouncer's operators know it: its grammar, what it lets pass, what SET and RELOAD make of
//! it. Each claim holds for PgBouncer, too.

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use crate::support::drop_in::*;
use crate::support::postgres::{MUST_SCRAM, Postgres};
use crate::support::wire::PROTOCOL_3_0;
use crate::support::*;

fn database() -> Database {
    Postgres::shared().database()
}

fn admin(drop_in: &DropIn) -> Client {
    Client::login(drop_in.address, "pgbouncer")
}

/// The value of an option in SHOW CONFIG.
fn setting(drop_in: &DropIn, key: &str) -> String {
    let table = admin(drop_in).query("SHOW CONFIG").table();
    let row = table.iter().find(|row| row["key"] == key);
    let row = row.unwrap_or_else(|| panic!("no option {key}"));
    row.get("value").cloned().unwrap_or_default()
}

fn reload(drop_in: &DropIn) {
    assert_eq!(admin(drop_in).query("RELOAD").complete, ["RELOAD"]);
}

/// Whether `user` is somebody; the console lets nobody in but admins.
fn is_known(drop_in: &DropIn, user: &str) -> bool {
    let params = [("user", user), ("database", "pgbouncer")];
    let reply = Client::connect(drop_in.address).start(PROTOCOL_3_0, &params);
    let refusal = reply.error.map(|error| error.text);
    refusal.as_deref() != Some("\"trust\" authentication failed")
}

/// Asserts of each line whether a file with it, behind the lines of `more`, starts.
#[track_caller]
fn assert_starts(brand: Brand, more: &str, cases: &[(&str, bool)]) {
    for (line, starts) in cases {
        let outcome = DropIn::try_start(brand, database(), &format!("{more}\n{line}"));
        match outcome {
            Ok(_) => assert!(starts, "{line} starts"),
            Err(log) => assert!(!starts, "{line}: {log}"),
        }
    }
}

/// The file that a command is to be started with, its last argument.
fn file_of(command: &Command) -> &Path {
    Path::new(command.get_args().last().unwrap())
}

fn append(file: &Path, bytes: &[u8]) {
    let mut file = fs::OpenOptions::new().append(true).open(file).unwrap();
    file.write_all(bytes).unwrap();
}

// ---- grammar -----------------------------------------------------------------------------------------------------

drop_in!(value_is_what_stands_behind_the_equals_sign, |brand| {
    let cases = [
        ("default_pool_size = 7 ; comment", None),
        ("  default_pool_size=7  ", Some(("default_pool_size", "7"))),
        (
            "; comment\n# another\n\t; third\nverbose = 1",
            Some(("verbose", "1")),
        ),
        ("pool_mode = 'session'", None),
        ("pool_mode = \"session\"", None),
        (
            "pool_mode = TRANSACTION",
            Some(("pool_mode", "transaction")),
        ),
        ("POOL_MODE = session", None),
        (
            "server_check_query = 'quoted'",
            Some(("server_check_query", "'quoted'")),
        ),
        (
            "server_check_query = a ; b # c",
            Some(("server_check_query", "a ; b # c")),
        ),
        ("server_reset_query =", Some(("server_reset_query", ""))),
        ("default_pool_size =", None),
        ("query_timeout =", None),
        ("log_connections = yes", None),
        ("log_connections = on", None),
        ("log_connections = true", None),
        ("log_connections = 0", Some(("log_connections", "0"))),
        ("default_pool_size = 010", Some(("default_pool_size", "8"))),
        (
            "default_pool_size = 0x10",
            Some(("default_pool_size", "16")),
        ),
        ("default_pool_size = 08", None),
        ("default_pool_size = 1.5", None),
        ("query_timeout = 1.5", Some(("query_timeout", "1.5"))),
        ("query_timeout = 1e2", Some(("query_timeout", "100"))),
        ("query_timeout = -1", None),
        ("query_timeout = never", None),
        (
            "default_pool_size = 5\ndefault_pool_size = 6",
            Some(("default_pool_size", "6")),
        ),
        ("nonsense = 1", None),
        ("justakey", None),
        ("= 1", None),
        ("[nonsense]", None),
        ("[pgbouncer", None),
        ("[databases] ; comment\n[pgbouncer]x = 1", None),
        ("%include", None),
        ("%include /nonexistent.ini", None),
    ];
    for (lines, expected) in cases {
        let shown = DropIn::try_start(brand, database(), lines)
            .map(|drop_in| expected.map(|(key, _)| setting(&drop_in, key)));
        let value = expected.map(|(_, value)| value.to_owned());
        match shown {
            Ok(shown) => assert!(shown.is_some() && shown == value, "{lines}: {shown:?}"),
            Err(log) => assert_eq!(value, None, "{lines}: {log}"),
        }
    }
});

drop_in!(connection_strings_are_pairs_between_spaces, |brand| {
    assert_starts(
        brand,
        "[databases]",
        &[
            ("y = host=127.0.0.1 port=5", true),
            ("y = host = 127.0.0.1  port =5", true),
            ("y = host='127.0.0.1' password='it''s'", true),
            ("y =", true),
            ("y = host=127.0.0.1 port=0", false),
            ("y = host=127.0.0.1 port=", false),
            ("y = host", false),
            ("y = host=127.0.0.1 nonsense=1", false),
            ("y = host=127.0.0.1 HOST=127.0.0.1", false),
            ("y = host='open", false),
            ("y = host=127.0.0.1 ; comment", false),
            ("pgbouncer = host=127.0.0.1", false),
            ("a b = host=127.0.0.1", false),
            ("\"y\" = host=127.0.0.1", false),
            ("y = host=127.0.0.1 pool_size=7x", true),
            ("y = host=127.0.0.1 pool_mode=sometimes", false),
            ("y = host=127.0.0.1 pool_mode=Statement", true),
        ],
    );
});

drop_in!(second_section_begins_with_the_defaults, |brand| {
    let drop_in = DropIn::start_with(brand, database(), "default_pool_size = 7", |command| {
        let file = file_of(command);
        let text = fs::read_to_string(file).unwrap();
        let (_, own) = text.split_once("[pgbouncer]").unwrap();
        let again = own.replace("default_pool_size = 7", "");
        append(file, format!("[pgbouncer]{again}").as_bytes());
    });
    assert_eq!(setting(&drop_in, "default_pool_size"), "20");
});

drop_in!(
    included_files_are_sought_in_the_working_directory,
    |brand| {
        let drop_in = DropIn::start_with(brand, database(), "%include more/a.ini", |command| {
            let directory = file_of(command).parent().unwrap().to_owned();
            fs::create_dir(directory.join("more")).unwrap();
            // Not relative to the file that includes it.
            fs::write(directory.join("more/a.ini"), "%include b.ini\n").unwrap();
            fs::write(
                directory.join("b.ini"),
                "default_pool_size = 9\n[databases]\n",
            )
            .unwrap();
            command.current_dir(directory);
        });
        assert_eq!(setting(&drop_in, "default_pool_size"), "9");
    }
);

drop_in!(files_include_each_other_ten_deep, |brand| {
    for (depth, starts) in [(10, true), (11, false)] {
        let (directory, name) = (open_directory(), |n| format!("{n}.ini"));
        let path = |n: usize| directory.path().join(name(n));
        for n in 1..depth {
            let next = format!("%include {}\n", path(n + 1).display());
            fs::write(path(n), next).unwrap();
        }
        fs::write(path(depth), "verbose = 0\n").unwrap();
        let line = format!("%include {}", path(1).display());
        assert_starts(brand, "", &[(&line, starts)]);
    }
});

drop_in!(comments_may_be_in_any_encoding, |brand| {
    let drop_in = DropIn::start_with(brand, database(), "", |command| {
        append(
            file_of(command),
            b"; f\xfcr alle\n  # \xe4\ndefault_pool_size = 6\n",
        );
    });
    assert_eq!(setting(&drop_in, "default_pool_size"), "6");
});

drop_in!(no_number_of_an_option_is_too_large_or_too_small, |brand| {
    assert_starts(
        brand,
        "",
        &[
            ("listen_backlog = 0", true),
            ("listen_backlog = 99999999", true),
            ("max_packet_size = 10", true),
            ("server_idle_timeout = 999999999", true),
            ("server_check_delay = 1e12", true),
            ("default_pool_size = 1000000", true),
            ("stats_period = 0", true),
            ("verbose = 11", true),
        ],
    );
    // Later ones do not listen with what the kernel does not take.
    if !brand.is_from((1, 24)) {
        let taken = [("tcp_keepidle = 99999", true), ("tcp_keepcnt = 1000", true)];
        assert_starts(brand, "", &taken);
    }
});

both_shards!(number_that_is_brought_within_bounds_is_told, |shards| {
    let brand = Brand::Ringbouncer(shards);
    let lines = "server_idle_timeout = 999999999\nreserve_pool_size = 5000";
    let drop_in = DropIn::start(brand, database(), lines);
    for told in [
        "server_idle_timeout: 999999999 s is out of range; 3650 d holds instead",
        "reserve_pool_size: 5000 is out of range; 2047 holds instead",
    ] {
        let told = format!("WARNING pgbouncer.{told}");
        assert!(drop_in.log().contains(&told), "{}", drop_in.log());
    }
    assert_eq!(setting(&drop_in, "server_idle_timeout"), "3.1536e+08");
    assert_eq!(setting(&drop_in, "reserve_pool_size"), "2047");
});

// ---- auth_file ---------------------------------------------------------------------------------------------------

drop_in!(auth_file_that_is_missing_is_no_obstacle, |brand| {
    let drop_in = DropIn::start(brand, database(), "auth_file = /nonexistent");
    assert!(!is_known(&drop_in, "postgres"));
    let drop_in = DropIn::start(brand, database(), "");
    let file = drop_in.path("userlist.txt");
    fs::remove_file(&file).unwrap();
    reload(&drop_in);
    assert!(is_known(&drop_in, "postgres"), "users stay");
    let told = format!("auth_file {}", file.display());
    assert!(drop_in.log().contains(&told), "{}", drop_in.log());
});

drop_in!(users_of_auth_file_before_a_broken_line_are_known, |brand| {
    for broken in ["junk", "# comment", "\"unclosed", "\"none\""] {
        let drop_in = DropIn::start(brand, database(), "");
        let text = format!("\"postgres\" \"\"\n\"early\" \"\"\n{broken}\n\"late\" \"\"\n");
        fs::write(drop_in.path("userlist.txt"), &text).unwrap();
        reload(&drop_in);
        let known = ["early", "late"].map(|user| is_known(&drop_in, user));
        assert_eq!(known, [true, false], "{broken}");
        let more = format!("auth_file = {}", drop_in.path("userlist.txt").display());
        let started = DropIn::start(brand, database(), &more);
        let known = ["early", "late"].map(|user| is_known(&started, user));
        assert_eq!(known, [true, false], "{broken}");
    }
});

drop_in!(names_that_nobody_has_are_no_broken_lines, |brand| {
    let drop_in = DropIn::start(brand, database(), "");
    let text = b"\"postgres\" \"\"\n\"\" \"x\"\n\"b\xffb\" \"x\"\n\"late\" \"\"\n";
    fs::write(drop_in.path("userlist.txt"), text).unwrap();
    reload(&drop_in);
    assert!(is_known(&drop_in, "late"));
});

drop_in!(auth_file_is_not_read_for_pam, |brand| {
    let directory = open_directory();
    let file = directory.path().join("users");
    fs::write(&file, "junk\n").unwrap();
    let more = format!("auth_type = pam\nauth_file = {}", file.display());
    let drop_in = DropIn::start(brand, database(), &more);
    assert!(!drop_in.log().contains("broken auth"), "{}", drop_in.log());
});

// ---- TLS ---------------------------------------------------------------------------------------------------------

/// Lines that turn TLS on towards clients, with a certificate and its key in `directory`.
fn encrypting(directory: &Path) -> String {
    let own = Postgres::authority().sign();
    let [certificate, key] = own.publish(directory, "own");
    format!(
        "client_tls_sslmode = allow\nclient_tls_cert_file = {}\nclient_tls_key_file = {}",
        certificate.display(),
        key.display()
    )
}

drop_in!(
    words_for_tls_that_pgbouncer_takes_are_no_obstacle,
    |brand| {
        let directory = open_directory();
        // Later ones do not know these words.
        let legacy = !brand.is_from((1, 24));
        assert_starts(
            brand,
            &encrypting(directory.path()),
            &[
                ("client_tls_dheparams = legacy", legacy),
                ("client_tls_dheparams = none", true),
                ("client_tls_dheparams =", true),
                ("client_tls_dheparams = nonsense", false),
                ("client_tls_ecdhcurve = none", true),
                ("client_tls_ecdhcurve = AUTO", true),
                ("client_tls_ecdhcurve =", true),
                ("client_tls_ecdhcurve = nonsense", false),
                ("client_tls_protocols =", true),
                ("client_tls_protocols = legacy", legacy),
                ("client_tls_protocols = tlsv1", true),
                ("client_tls_protocols = tlsv1.0,tlsv1.2", true),
                ("client_tls_protocols = all:!tlsv1.2", true),
                ("client_tls_protocols = nonsense", false),
                ("client_tls_ciphers =", true),
                ("client_tls_ciphers = HIGH:MEDIUM:+3DES:!aNULL", true),
                ("client_tls_ciphers = nonsense:HIGH", true),
                ("client_tls_ciphers = legacy", legacy),
                ("client_tls_ciphers = Insecure", legacy),
                ("client_tls_ciphers = nonsense", false),
                // To know who is a client of ours needs a CA of ours.
                ("client_tls_sslmode = verify-full", false),
            ],
        );
    }
);

drop_in!(tls_may_begin_at_once, since(1, 25), |brand| {
    let directory = open_directory();
    let drop_in = DropIn::start(brand, database(), &encrypting(directory.path()));
    let at_once = |protocol: &str| {
        let mut config = Postgres::authority().client_config(None);
        config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        let mut client = Client::connect(drop_in.address);
        let done = client.encrypt(std::sync::Arc::new(config), "localhost");
        done.map(|()| client)
    };
    let mut client = at_once("postgresql").expect("a handshake");
    let params = [("user", "postgres"), ("database", &*drop_in.database.name)];
    assert_eq!(client.start(PROTOCOL_3_0, &params).status, b'I');
    assert_eq!(client.value("select 'encrypted'"), "encrypted");
    at_once("http/1.1").map(drop).expect_err("no handshake");
});

both_shards!(tls_that_nothing_is_left_of_is_refused, |shards| {
    let directory = open_directory();
    let encrypting = encrypting(directory.path());
    // PgBouncer starts with each, and offers what is not safe, or a curve that is not to be had here.
    assert_starts(
        Brand::Ringbouncer(shards),
        &encrypting,
        &[
            ("client_tls_protocols = tlsv1.0", false),
            ("client_tls_protocols = secure,!tlsv1.2,!tlsv1.3", false),
            ("client_tls_ciphers = AES256-SHA", false),
            ("client_tls_ecdhcurve = secp521r1", false),
        ],
    );
    let ciphers = format!("{encrypting}\nclient_tls_ciphers = HIGH:MEDIUM");
    let drop_in = DropIn::start(Brand::Ringbouncer(shards), database(), &ciphers);
    let told = "WARNING pgbouncer.client_tls_ciphers: left out, as not offered: MEDIUM";
    assert!(drop_in.log().contains(told), "{}", drop_in.log());
    assert_eq!(setting(&drop_in, "client_tls_ciphers"), "HIGH");
});

drop_in!(
    without_a_ca_file_servers_are_checked_against_the_systems,
    |brand| {
        let database = Postgres::encrypted().database();
        let drop_in = DropIn::start(brand, database, "server_tls_sslmode = verify-full");
        let params = [("user", "postgres"), ("database", &*drop_in.database.name)];
        let mut client = Client::connect(drop_in.address);
        client.send(&wire::startup(PROTOCOL_3_0, &params));
        // Its certificate is of an authority that the system has never heard of.
        wait_until("the server is refused", || {
            let log = drop_in.log();
            log.contains("certificate verify failed") || log.contains("UnknownIssuer")
        });
        assert!(client.has_nothing_to_read());
        if let Brand::Ringbouncer(_) = brand {
            let file = drop_in.path("pgbouncer.ini");
            let status = brand.command().arg("check").arg(file).status().unwrap();
            assert!(status.success());
        }
    }
);

drop_in!(
    key_for_servers_without_a_certificate_is_no_obstacle,
    |brand| {
        let directory = open_directory();
        let more = encrypting(directory.path()).replace(
            "client_tls_key_file",
            "server_tls_sslmode = require\nserver_tls_key_file",
        );
        let more = more.replace("client_tls_sslmode = allow", "");
        assert_starts(brand, &more, &[("", true)]);
    }
);

// ---- SET and RELOAD ----------------------------------------------------------------------------------------------

drop_in!(set_reads_values_as_the_file_does, |brand| {
    let drop_in = DropIn::start(brand, database(), "");
    let cases = [
        ("log_connections", "2", true),
        ("log_connections", "yes", false),
        ("default_pool_size", "0x10", true),
        ("default_pool_size", "many", false),
        ("pkt_buf", "8192", true),
        ("sbuf_loopcnt", "3", true),
        ("dns_zone_check_period", "3", true),
        ("job_name", "x", true),
        ("resolv_conf", "/etc/resolv.conf", true),
        ("nonsense", "1", false),
        ("client_tls_protocols", "", true),
        ("server_idle_timeout", "999999999", true),
        ("listen_backlog", "0", true),
    ];
    for (name, value, succeeds) in cases {
        let reply = admin(&drop_in).query(&format!("SET {name} = '{value}'"));
        assert_eq!(reply.error.is_none(), succeeds, "{name}={value}: {reply:?}");
    }
    assert_eq!(setting(&drop_in, "default_pool_size"), "16");
    admin(&drop_in).query("SET default_pool_size = 010");
    assert_eq!(setting(&drop_in, "default_pool_size"), "8");
});

drop_in!(set_of_users_leaves_blanks_between_them, |brand| {
    let drop_in = DropIn::start(brand, database(), "");
    let reply = admin(&drop_in).query("SET admin_users = 'somebody postgres'");
    assert!(reply.error.is_none(), "{reply:?}");
    let reply = admin(&drop_in).query("RELOAD");
    assert_eq!(reply.complete, ["RELOAD"], "still an admin");
});

both_shards!(reload_undoes_every_set, |shards| {
    // In PgBouncer those of options without a default stay.
    let drop_in = DropIn::start(Brand::Ringbouncer(shards), database(), "");
    for (name, value) in [
        ("query_timeout", "7"),
        ("auth_user", "ann"),
        ("verbose", "1"),
    ] {
        let before = setting(&drop_in, name);
        admin(&drop_in).query(&format!("SET {name} = '{value}'"));
        assert_eq!(setting(&drop_in, name), value);
        reload(&drop_in);
        assert_eq!(setting(&drop_in, name), before, "{name}");
    }
});

drop_in!(conffile_is_read_by_every_later_reload, |brand| {
    let drop_in = DropIn::start(brand, database(), "default_pool_size = 3");
    let first = drop_in.path("pgbouncer.ini");
    assert_eq!(setting(&drop_in, "conffile"), first.to_str().unwrap());
    let second = drop_in.path("second.ini");
    let text = fs::read_to_string(&first).unwrap();
    let write = |size: u32| {
        let text = text.replace(
            "default_pool_size = 3",
            &format!("default_pool_size = {size}"),
        );
        fs::write(&second, text).unwrap();
    };
    admin(&drop_in).query(&format!("SET conffile = '{}'", second.display()));
    for size in 4..7 {
        write(size);
        reload(&drop_in);
        assert_eq!(setting(&drop_in, "default_pool_size"), size.to_string());
        assert_eq!(setting(&drop_in, "conffile"), second.to_str().unwrap());
    }
});

// ---- logins ------------------------------------------------------------------------------------------------------

drop_in!(auth_query_is_asked_at_every_login, |brand| {
    let database = database();
    let role = database.postgres.role(MUST_SCRAM, "scram-sha-256", "first");
    let more = "auth_type = scram-sha-256\nauth_user = postgres\n\
                auth_query = SELECT rolname, rolpassword FROM pg_authid WHERE rolname = $1 AND rolcanlogin \
                AND coalesce(rolvaliduntil > now(), true)";
    let drop_in = DropIn::start(brand, database, more);
    let name = &drop_in.database.name;
    let owner = |sql: &str| {
        drop_in
            .database
            .direct()
            .query(&format!("alter role {role} {sql}"))
    };
    let login = |password: &str| driver::try_login(drop_in.address, &role, password, name);
    login("first").unwrap();
    owner("valid until 'yesterday'");
    login("first").unwrap_err();
    owner("valid until 'infinity'");
    login("first").unwrap();
    owner("password 'second'");
    login("first").unwrap_err();
    login("second").unwrap();
    owner("nologin");
    login("second").unwrap_err();
});

// ---- the process -------------------------------------------------------------------------------------------------

/// Has `command` run with at most so many open files, and no privileges over its limits.
fn limit_open_files(command: &mut Command, files: u64) {
    let mut bounded = Command::new("setpriv");
    if rustix::process::geteuid().is_root() {
        bounded.arg("--bounding-set=-sys_resource");
    } else {
        bounded.arg("--no-new-privs");
    }
    bounded
        .args(["--", "prlimit", &format!("--nofile={files}:{files}"), "--"])
        .arg(command.get_program())
        .args(command.get_args());
    let own = command.get_envs();
    bounded.envs(own.filter_map(|(key, value)| Some((key, value?))));
    bounded.stdin(std::process::Stdio::null());
    *command = bounded;
}

drop_in!(too_few_open_files_are_told_and_no_obstacle, |brand| {
    let more = "max_client_conn = 1000";
    let drop_in = DropIn::start_with(brand, database(), more, |command| {
        limit_open_files(command, 1024);
    });
    let log = drop_in.log();
    let told = " LOG kernel file descriptor limit: 1024 (hard: 1024); max_client_conn: 1000, max expected fd use: ";
    assert!(log.contains(told), "{log}");
    Client::login(drop_in.address, &drop_in.database.name).value("select 1");
});

drop_in!(address_that_cannot_be_listened_on_is_left_out, |brand| {
    // 192.0.2.0/24 is nobody's (RFC 5737).
    let drop_in = DropIn::start(brand, database(), "listen_addr = 192.0.2.1,127.0.0.1");
    Client::login(drop_in.address, &drop_in.database.name).value("select 1");
    assert!(drop_in.log().contains("cannot listen on 192.0.2.1:"));
    let alone = "listen_addr = 192.0.2.1\nunix_socket_dir =";
    assert_starts(brand, alone, &[("", false)]);
    if !brand.is_before((1, 20)) {
        assert_starts(brand, "listen_addr = 192.0.2.1", &[("", false)]);
    }
});

drop_in!(unix_socket_of_another_is_left_alone, |brand| {
    let directory = open_directory();
    let (port, path) = (free_port(), |name: &str| directory.path().join(name));
    let more = format!(
        "unix_socket_dir = {}\nlisten_port = {port}",
        directory.path().display()
    );
    let start = || DropIn::try_start(brand, database(), &more).map(drop);
    let socket = path(&format!(".s.PGSQL.{port}"));
    let other = UnixListener::bind(&socket).unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    fs::set_permissions(&socket, open).unwrap();
    let log = start().expect_err("somebody listens");
    assert!(log.contains("in use"), "{log}");
    assert!(socket.exists());
    drop(other);
    // A server of PostgreSQL that is not up yet has the lock already.
    let lock = path(&format!(".s.PGSQL.{port}.lock"));
    fs::write(&lock, "").unwrap();
    let log = start().expect_err("somebody has the lock");
    assert!(log.contains("in use"), "{log}");
    fs::remove_file(lock).unwrap();
    start().expect("a stale socket is no obstacle");
});

drop_in!(user_of_the_command_line_is_become, |brand| {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let drop_in = DropIn::start_with(brand, database(), "user = root", |command| {
        let file = file_of(command).to_owned();
        let program = command.get_program().to_owned();
        let envs: Vec<_> = command
            .get_envs()
            .filter_map(|(key, value)| Some((key.to_owned(), value?.to_owned())))
            .collect();
        *command = Command::new(program);
        command.envs(envs).args(["-q", "-u", "nobody"]).arg(file);
    });
    let status = fs::read_to_string(format!("/proc/{}/status", drop_in.pid())).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("Uid:"))
        .unwrap();
    let own = fs::read_to_string("/etc/passwd").unwrap();
    let nobody = own
        .lines()
        .find(|line| line.starts_with("nobody:"))
        .unwrap();
    let uid = nobody.split(':').nth(2).unwrap();
    assert!(
        line.split_whitespace().skip(1).all(|id| id == uid),
        "{line}"
    );
});
