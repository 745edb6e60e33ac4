//! PgBouncer's configuration file, as it is.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use rustix::process::Signal;

use crate::support::pooler::program;
use crate::support::postgres::Postgres;
use crate::support::*;

/// A file for PgBouncer that leads to `database`, with further lines in its section `[pgbouncer]`.
fn ini(directory: &Path, database: &Database, more: &str) -> PathBuf {
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    fs::set_permissions(directory, open).unwrap();
    let user = match rustix::process::geteuid().is_root() {
        true => "user = nobody\n",
        false => "",
    };
    let userlist = directory.join("userlist.txt");
    fs::write(&userlist, "\"postgres\" \"\"\n\"ann\" \"secret\"\n").unwrap();
    let address = database.postgres.address();
    let text = format!(
        "; as PgBouncer takes it\n\
         [databases]\n\
         {name} = host={host} port={port}\n\
         'odd name' = host = {host}  port = {port} dbname='{name}' user=postgres\n\
         [pgbouncer]\n\
         listen_addr = 127.0.0.1\n\
         listen_port = 0\n\
         unix_socket_dir = {directory}\n\
         auth_type = trust\n\
         auth_file = {userlist}\n\
         admin_users = postgres\n\
         pkt_buf = 8192\n\
         {user}\
         {more}\n",
        name = database.name,
        host = address.ip(),
        port = address.port(),
        directory = directory.display(),
        userlist = userlist.display(),
    );
    let path = directory.join("pgbouncer.ini");
    fs::write(&path, text).unwrap();
    path
}

fn run(arguments: &[&str], file: &Path) -> Output {
    program().args(arguments).arg(file).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

both_shards!(file_of_pgbouncer_runs_as_it_is, |shards| {
    let database = Postgres::shared().database();
    let pooler = Pooler::start_ini(|directory| ini(directory, &database, ""), shards);
    let login = |entry: &str| Client::login(pooler.address, entry);
    assert_eq!(
        login(&database.name).value("select current_database()"),
        database.name
    );
    assert_eq!(
        login("odd name").value("select current_database()"),
        database.name
    );
    for (key, value) in [
        ("pool_mode", "session"),
        ("max_client_conn", "100"),
        ("listen_backlog", "128"),
        ("default_pool_size", "20"),
    ] {
        assert_eq!(pooler.setting(key), value, "{key}");
    }
    let told =
        "options of the configuration file that have no effect options=\"pgbouncer.pkt_buf\"";
    pooler.wait_log(told);
});

both_shards!(session_mode_is_the_default_of_the_file, |shards| {
    let database = Postgres::shared().database();
    let pooler = Pooler::start_ini(
        |directory| ini(directory, &database, "default_pool_size = 2"),
        shards,
    );
    let mut clients = [(); 2].map(|()| Client::login(pooler.address, &database.name));
    let pids = [(); 3].map(|()| clients[0].value("select pg_backend_pid()"));
    assert!(pids.iter().all(|pid| *pid == pids[0]), "{pids:?}");
    assert_ne!(clients[1].value("select pg_backend_pid()"), pids[0]);
});

both_shards!(reload_of_the_file_is_all_or_nothing, |shards| {
    let database = Postgres::shared().database();
    let pooler = Pooler::start_ini(
        |directory| ini(directory, &database, "default_pool_size = 3"),
        shards,
    );
    let directory = pooler.directory();
    ini(
        directory,
        &database,
        "default_pool_size = 7\nquery_timeout = never",
    );
    let refused = pooler.console("RELOAD").error.expect("a refusal");
    assert!(refused.text.contains("RELOAD failed"), "{}", refused.text);
    assert_eq!(pooler.setting("default_pool_size"), "3");
    // A second section begins with the defaults.
    ini(
        directory,
        &database,
        "default_pool_size = 7\n[pgbouncer]\nauth_type = trust\nadmin_users = postgres",
    );
    assert_eq!(pooler.console("RELOAD").complete, ["RELOAD"]);
    assert_eq!(pooler.setting("default_pool_size"), "20");
    ini(directory, &database, "default_pool_size = 9");
    pooler.signal(Signal::HUP);
    wait_until("the signal has its effect", || {
        pooler.setting("default_pool_size") == "9"
    });
});

both_shards!(unlimited_pool_grows_with_its_clients, |shards| {
    let database = Postgres::shared().database();
    let pooler = Pooler::start_ini(
        |directory| ini(directory, &database, "default_pool_size = 0"),
        shards,
    );
    let mut clients: Vec<_> = (0..25)
        .map(|_| Client::login(pooler.address, &database.name))
        .collect();
    for client in &mut clients {
        assert_eq!(client.query("begin").status, b'T');
    }
});

#[test]
fn check_names_file_line_and_key_of_every_mistake() {
    let directory = tempfile::tempdir().unwrap();
    let included = directory.path().join("more.ini");
    fs::write(&included, "\npool_mode = sometimes\n").unwrap();
    let file = directory.path().join("pgbouncer.ini");
    let lines = format!(
        "[databases]\na = host=h port=0\n[pgbouncer]\n%include {}\nlog_connections = yes\nclient_tls_sslmode = hopeful\n",
        included.display()
    );
    fs::write(&file, lines).unwrap();
    let output = run(&["check"], &file);
    assert_eq!(output.status.code(), Some(1));
    let told = text(&output.stderr);
    for place in [
        format!("{}:2: databases.a.port: ", file.display()),
        format!("{}:2: pgbouncer.pool_mode: ", included.display()),
        format!("{}:5: pgbouncer.log_connections: ", file.display()),
        format!("{}:6: pgbouncer.client_tls_sslmode: ", file.display()),
    ] {
        assert!(told.contains(&place), "{place} is missing in {told}");
    }
}

#[test]
fn converted_file_is_checked_and_runs() {
    let database = Postgres::shared().database();
    let directory = tempfile::tempdir().unwrap();
    let file = ini(directory.path(), &database, "query_timeout = 1.5");
    assert!(run(&["check"], &file).status.success());
    let output = run(&["convert"], &file);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let told = text(&output.stderr);
    assert!(told.contains("pgbouncer.pkt_buf has no effect"), "{told}");
    let pooler = Pooler::start_file(|directory| {
        let path = directory.join("converted.toml");
        fs::write(&path, &output.stdout).unwrap();
        path
    });
    assert_eq!(pooler.setting("query_timeout"), "1.5");
    assert_eq!(pooler.setting("pool_mode"), "session");
    assert_eq!(
        Client::login(pooler.address, "odd name").value("select 1"),
        "1"
    );
}

#[test]
fn command_line_is_pgbouncers() {
    for arguments in [&[][..], &["-Z"], &["--no-such-option", "x"]] {
        let output = program().args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        let told = text(&output.stderr);
        assert!(
            told.ends_with("Try \"ringbouncer --help\" for more information.\n"),
            "{told}"
        );
    }
    for argument in ["-V", "--version", "-h", "--help"] {
        let output = program().arg(argument).output().unwrap();
        assert!(
            output.status.success() && !output.stdout.is_empty(),
            "{argument}"
        );
    }
}
