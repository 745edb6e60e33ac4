//! The process as PgBouncer's operators know it: log lines, pid file, daemon, signals. Each claim holds for PgBouncer, too.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use crate::support::drop_in::*;
use crate::support::postgres::{Postgres, spawn_mortal};
use crate::support::wait::PATIENCE;
use crate::support::wire::PROTOCOL_3_0;
use crate::support::*;

fn database() -> Database {
    Postgres::shared().database()
}

/// Whether `line` is `2026-11-23 07:05:33.217 UTC [pid] LEVEL text`.
fn is_line(line: &str, pid: u32, level: &str, text: &str) -> bool {
    let shape = |time: &str| {
        let digit = |c: char| if c.is_ascii_digit() { '0' } else { c };
        time.chars().map(digit).collect::<String>()
    };
    let Some((time, rest)) = line.split_at_checked(23) else {
        return false;
    };
    shape(time) == "0000-00-00 00:00:00.000" && rest == format!(" UTC [{pid}] {level} {text}")
}

drop_in!(log_has_the_line_before_the_client_has_its_answer, |brand| {
    let drop_in = DropIn::start(brand, database(), "");
    let name = drop_in.database.name.clone();
    let mut client = Client::login(drop_in.address, &name);
    let line = line_with(
        &drop_in,
        &format!("login attempt: db={name} user=postgres tls=no"),
    );
    assert!(
        prefix(&line, 'C').starts_with(&format!("{name}/postgres@127.0.0.1:")),
        "{line}"
    );
    assert!(
        line.contains(&format!(" UTC [{}] LOG C-0x", drop_in.pid())),
        "{line}"
    );
    client.value("select 1");
    let line = line_with(&drop_in, "new connection to server (from 127.0.0.1:");
    let port = drop_in.database.postgres.address().port();
    assert!(
        prefix(&line, 'S').starts_with(&format!("{name}/postgres@127.0.0.1:{port} ")),
        "{line}"
    );
    drop(client);
    wait_until("the end is logged", || {
        drop_in.log().contains("closing because: client ")
    });
    let line = line_with(&drop_in, "closing because: client ");
    assert!(
        line.ends_with("(age=0s)") || line.contains("(age="),
        "{line}"
    );
});

drop_in!(
    errors_of_the_pooler_are_logged_before_the_client_sees_them,
    |brand| {
        let drop_in = DropIn::start(brand, database(), "");
        for n in 0..20 {
            let nowhere = format!("nowhere{n}");
            let params = [("user", "postgres"), ("database", nowhere.as_str())];
            let reply = Client::connect(drop_in.address).start(PROTOCOL_3_0, &params);
            reply.assert_fatal(&format!("no such database: {nowhere}"));
            let line = line_with(
                &drop_in,
                &format!("pooler error: no such database: {nowhere}"),
            );
            assert!(line.contains("] WARNING C-0x"), "{line}");
            line_with(
                &drop_in,
                &format!("closing because: no such database: {nowhere} (age="),
            );
        }
    }
);

drop_in!(log_switches_keep_lines_away, |brand| {
    let quiet = "log_connections = 0\nlog_disconnections = 0\nlog_pooler_errors = 0\nlog_stats = 0\nstats_period = 1";
    let drop_in = DropIn::start(brand, database(), quiet);
    Client::login(drop_in.address, &drop_in.database.name).value("select 1");
    let params = [("user", "postgres"), ("database", "nowhere")];
    Client::connect(drop_in.address)
        .start(PROTOCOL_3_0, &params)
        .assert_fatal("no such database: nowhere");
    drop_in.signal(Signal::HUP);
    wait_until("a later line", || {
        drop_in.log().contains("got SIGHUP, re-reading config")
    });
    for part in [
        "login attempt",
        "closing because",
        "pooler error",
        "stats: ",
    ] {
        assert!(!drop_in.log().contains(part), "{part}");
    }
});

drop_in!(averages_are_logged_each_period, |brand| {
    let drop_in = DropIn::start(brand, database(), "stats_period = 1");
    wait_until("two periods", || {
        drop_in.log().matches(" LOG stats: ").count() >= 2
    });
    let line = line_with(&drop_in, " LOG stats: ");
    for part in [
        " xacts/s, ",
        " queries/s, ",
        ", in ",
        " B/s, out ",
        " B/s, xact ",
        " us, query ",
        " us, wait ",
    ] {
        assert!(line.contains(part), "{line} lacks {part}");
    }
});

drop_in!(start_says_where_it_listens, |brand| {
    let drop_in = DropIn::start(brand, database(), "");
    let port = drop_in.address.port();
    let tcp = format!("listening on 127.0.0.1:{port}");
    let unix = format!(
        "listening on unix:{}",
        drop_in.path(&format!(".s.PGSQL.{port}")).display()
    );
    wait_until("it is up", || drop_in.log().contains("process up: "));
    for text in [tcp, unix] {
        assert!(is_line(
            &line_with(&drop_in, &text),
            drop_in.pid(),
            "LOG",
            &text
        ));
    }
});

drop_in!(
    log_file_that_was_moved_away_is_made_anew_by_a_reload,
    |brand| {
        let drop_in = DropIn::start(brand, database(), "");
        fs::rename(drop_in.path("log"), drop_in.path("log.1")).unwrap();
        drop_in.signal(Signal::HUP);
        // PgBouncer makes it with the next line.
        wait_until("a line in a new file", || {
            drop(Client::login(drop_in.address, &drop_in.database.name));
            drop_in.log().contains("login attempt")
        });
        let moved = fs::read_to_string(drop_in.path("log.1")).unwrap();
        assert!(moved.contains("got SIGHUP, re-reading config"), "{moved}");
    }
);

drop_in!(
    pid_file_keeps_a_second_process_away_and_goes_at_the_end,
    |brand| {
        let mut drop_in = DropIn::start(brand, database(), "");
        let written = fs::read_to_string(drop_in.path("pid")).unwrap();
        assert_eq!(written.trim(), drop_in.pid().to_string());
        let elsewhere = open_directory();
        let pidfile = format!("pidfile = {}", drop_in.path("pid").display());
        let port = free_port();
        let file = write_ini(elsewhere.path(), port, &drop_in.database, &pidfile);
        let second = brand.command().arg(file).output().unwrap();
        assert_eq!(second.status.code(), Some(1));
        let told = String::from_utf8_lossy(&second.stderr).into_owned();
        assert!(told.contains("pidfile"), "{told}");
        drop_in.signal(Signal::INT);
        assert!(drop_in.wait_exit().expect("an end").success());
        assert!(!drop_in.path("pid").exists());
        assert!(
            !drop_in
                .path(&format!(".s.PGSQL.{}", drop_in.address.port()))
                .exists()
        );
    }
);

drop_in!(stale_pid_file_is_no_obstacle, |brand| {
    // 2^22 is the largest id that Linux gives.
    let mut drop_in = DropIn::start_with(brand, database(), "", |command| {
        let file = command.get_args().last().unwrap().to_owned();
        let pid = std::path::Path::new(&file).with_file_name("pid");
        fs::write(&pid, "4194305\n").unwrap();
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o666);
        fs::set_permissions(&pid, open).unwrap();
    });
    let own = drop_in.pid().to_string();
    wait_until("its own id", || {
        fs::read_to_string(drop_in.path("pid")).is_ok_and(|pid| pid.trim() == own)
    });
    drop_in.signal(Signal::INT);
    assert!(drop_in.wait_exit().expect("an end").success());
});

drop_in!(daemon_serves_when_the_command_has_ended, |brand| {
    let (directory, port, database) = (open_directory(), free_port(), database());
    let path = |name: &str| directory.path().join(name);
    let files = format!(
        "logfile = {}\npidfile = {}",
        path("log").display(),
        path("pid").display()
    );
    let file = write_ini(directory.path(), port, &database, &files);
    let status = brand
        .command()
        .arg("--daemon")
        .arg(file)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    wait_until("a pid file", || {
        fs::read_to_string(path("pid")).is_ok_and(|pid| pid.ends_with('\n'))
    });
    let pid = fs::read_to_string(path("pid")).unwrap();
    let pid = Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
    wait_until("it listens", || TcpStream::connect(address).is_ok());
    Client::login(address, &database.name).value("select 1");
    assert!(
        fs::read_to_string(path("log"))
            .unwrap()
            .contains("login attempt")
    );
    kill_process(pid, Signal::INT).unwrap();
    wait_until("it is gone", || test_kill_process(pid).is_err());
    assert!(!path("pid").exists());
});

drop_in!(daemon_without_pid_file_is_refused, |brand| {
    let directory = open_directory();
    let file = write_ini(directory.path(), free_port(), &database(), "");
    let output = brand.command().arg("-d").arg(file).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("daemon needs pidfile configured"), "{told}");
});

drop_in!(root_is_refused_unless_another_user_is_named, |brand| {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let directory = open_directory();
    let file = write_ini(directory.path(), free_port(), &database(), "");
    let text = fs::read_to_string(&file)
        .unwrap()
        .replace("user = nobody\n", "");
    fs::write(&file, text).unwrap();
    let output = brand.command().arg(&file).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("should not run as root"), "{told}");
    let output = brand
        .command()
        .args(["-u", "no such user"])
        .arg(&file)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
});

drop_in!(process_has_the_rights_of_the_user_it_became, |brand| {
    let drop_in = DropIn::start(brand, database(), "");
    let status = fs::read_to_string(format!("/proc/{}/status", drop_in.pid())).unwrap();
    let ids = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace()
            .skip(1)
            .map(|id| id.parse::<u32>().unwrap())
            .collect::<Vec<_>>()
    };
    for name in ["Uid:", "Gid:"] {
        let ids = ids(name);
        assert!(
            ids.iter().all(|id| *id == ids[0] && *id != 0),
            "{name} {ids:?}"
        );
    }
});

drop_in!(without_listen_addr_there_is_the_unix_socket_only, |brand| {
    let (directory, port, database) = (open_directory(), free_port(), database());
    let file = write_ini(
        directory.path(),
        port,
        &database,
        "listen_addr =\nunix_socket_mode = 0750",
    );
    let mut child = brand
        .command()
        .arg("-q")
        .arg(file)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let socket = directory.path().join(format!(".s.PGSQL.{port}"));
    wait_until("it listens", || {
        std::os::unix::net::UnixStream::connect(&socket).is_ok()
    });
    let mut client = Client::connect_unix(&socket);
    let params = [("user", "postgres"), ("database", database.name.as_str())];
    assert_eq!(client.start(PROTOCOL_3_0, &params).status, b'I');
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&socket).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o750);
    assert!(sockets::listeners(child.id()).is_empty());
    drop(client);
    kill_process(Pid::from_child(&child), Signal::QUIT).unwrap();
    child.wait().unwrap();
});

drop_in!(servers_serve_last_first_or_in_turn, |brand| {
    for (setting, distinct) in [("server_round_robin = 0", 1), ("server_round_robin = 1", 3)] {
        let more = format!("pool_mode = transaction\ndefault_pool_size = 3\n{setting}");
        let drop_in = DropIn::start(brand, database(), &more);
        let login = || Client::login(drop_in.address, &drop_in.database.name);
        let mut clients = [login(), login(), login()];
        for client in &mut clients {
            assert_eq!(client.query("begin").status, b'T');
        }
        for client in &mut clients {
            assert_eq!(client.query("commit").status, b'I');
        }
        let pids = (0..6).map(|_| clients[0].value("select pg_backend_pid()"));
        let pids: std::collections::BTreeSet<_> = pids.collect();
        assert_eq!(pids.len(), distinct, "{setting}");
    }
});

drop_in!(signals_pause_and_resume, |brand| {
    let drop_in = DropIn::start(brand, database(), "pool_mode = transaction");
    let name = &drop_in.database.name;
    let mut client = Client::login(drop_in.address, name);
    client.value("select 1");
    let number = |column: &str| {
        let table = Client::login(drop_in.address, "pgbouncer")
            .query("SHOW POOLS")
            .table();
        let row = table.iter().find(|row| row["database"] == *name);
        row.map_or(0, |row| row[column].parse::<u32>().unwrap())
    };
    drop_in.signal(Signal::USR1);
    wait_until("idle servers are closed", || number("sv_idle") == 0);
    client.send(&wire::query("select 'resumed'"));
    wait_until("it waits", || number("cl_waiting") == 1);
    assert!(drop_in.log().contains("got SIGUSR1, pausing all activity"));
    drop_in.signal(Signal::USR2);
    assert_eq!(client.reply().value(), "resumed");
    assert!(drop_in.log().contains("got SIGUSR2, continuing from PAUSE"));
});

drop_in!(
    signals_to_pause_and_resume_say_what_is_so_already,
    |brand| {
        let drop_in = DropIn::start(brand, database(), "");
        let suspended = match brand.is_from((1, 26)) {
            true => "",
            false => "/suspended",
        };
        for (signal, text) in [
            (
                Signal::USR2,
                &*format!("got SIGUSR2, but not paused{suspended}"),
            ),
            (Signal::USR1, "got SIGUSR1, pausing all activity"),
            (
                Signal::USR1,
                &*format!("got SIGUSR1, but already paused{suspended}"),
            ),
            (Signal::USR2, "got SIGUSR2, continuing from PAUSE"),
        ] {
            drop_in.signal(signal);
            wait_until(text, || drop_in.log().contains(text));
        }
        if brand.is_from((1, 26)) {
            return;
        }
        let mut console = Client::login(drop_in.address, "pgbouncer");
        assert_eq!(console.query("SUSPEND").complete, ["SUSPEND"]);
        drop_in.signal(Signal::USR2);
        wait_until("it goes on", || {
            drop_in
                .log()
                .contains("got SIGUSR2, continuing from SUSPEND")
        });
    }
);

drop_in!(
    suspended_process_goes_at_every_signal,
    until(1, 26),
    |brand| {
        for signal in [Signal::INT, Signal::TERM] {
            let mut drop_in = DropIn::start(brand, database(), "");
            let mut client = Client::login(drop_in.address, &drop_in.database.name);
            client.value("select 1");
            let mut console = Client::login(drop_in.address, "pgbouncer");
            assert_eq!(console.query("SUSPEND").complete, ["SUSPEND"]);
            drop_in.signal(signal);
            drop_in.wait_exit().expect("an end");
            assert!(client.reply().closed);
        }
    }
);

drop_in!(signal_waits_for_the_transactions_under_way, |brand| {
    let more = "pool_mode = transaction\ndefault_pool_size = 1";
    let mut drop_in = DropIn::start(brand, database(), more);
    drop_in.database.sql("create table t(n int)");
    let mut busy = Client::login(drop_in.address, &drop_in.database.name);
    busy.value("begin; insert into t values (1)");
    drop_in.signal(Signal::INT);
    wait_until("it shuts down", || {
        drop_in.log().contains("got SIGINT, shutting down")
    });
    busy.value("insert into t values (2)");
    assert_eq!(busy.query("commit").complete, ["COMMIT"]);
    assert!(drop_in.wait_exit().expect("an end").success());
    let count = drop_in.database.sql("select count(*) from t");
    assert_eq!(count.value(), "2");
});

drop_in!(shutdown_on_the_console_waits_for_nobody, |brand| {
    let mut drop_in = DropIn::start(brand, database(), "pool_mode = transaction");
    let mut busy = Client::login(drop_in.address, &drop_in.database.name);
    assert_eq!(busy.query("begin").status, b'T');
    let mut console = Client::login(drop_in.address, "pgbouncer");
    console.send(&wire::query("SHUTDOWN"));
    assert!(drop_in.wait_exit().expect("an end").success());
    assert!(drop_in.log().contains("SHUTDOWN command issued"));
    assert!(busy.reply().closed && console.reply().closed);
    assert!(!drop_in.path("pid").exists());
    drop_in.database.wait_backends(0, "true");
});

drop_in!(systemd_is_told_of_readiness_and_the_end, |brand| {
    let directory = open_directory();
    let path = directory.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let told = |wanted: &str| {
        let mut packet = [0; 500];
        loop {
            let length = socket
                .recv(&mut packet)
                .unwrap_or_else(|error| panic!("{wanted}: {error}"));
            let text = String::from_utf8_lossy(&packet[..length]).into_owned();
            if text.contains(wanted) {
                return text;
            }
        }
    };
    let mut drop_in = DropIn::start_with(brand, database(), "stats_period = 1", |command| {
        command.env("NOTIFY_SOCKET", &path);
    });
    told("READY=1");
    told("STATUS=stats: ");
    drop_in.signal(Signal::HUP);
    let reloading = told("RELOADING=1");
    if !brand.is_before((1, 24)) {
        assert!(reloading.contains("\nMONOTONIC_USEC="), "{reloading}");
    }
    told("READY=1");
    drop_in.signal(Signal::INT);
    told("STOPPING=1");
    assert!(drop_in.wait_exit().expect("an end").success());
});

drop_in!(sockets_that_systemd_passes_on_are_used, |brand| {
    let (directory, database) = (open_directory(), database());
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let file = write_ini(directory.path(), free_port(), &database, "");
    let inherited = rustix::io::fcntl_dupfd_cloexec(&listener, 10).unwrap();
    rustix::io::fcntl_setfd(&inherited, rustix::io::FdFlags::empty()).unwrap();
    let fd = std::os::fd::AsRawFd::as_raw_fd(&inherited);
    let bare = brand.command();
    let mut command = std::process::Command::new("bash");
    command
        .args([
            "-c",
            &format!("exec 3<&{fd} {fd}<&-; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$@\""),
        ])
        .arg("bash")
        .arg(bare.get_program())
        .arg("-q")
        .arg(file)
        .stdout(Stdio::null());
    command.envs(
        bare.get_envs()
            .filter_map(|(key, value)| Some((key, value?))),
    );
    let mut child = command.spawn().unwrap();
    drop((listener, inherited));
    for _ in 0..6 {
        assert_eq!(
            Client::login(address, &database.name).value("select 1"),
            "1"
        );
    }
    kill_process(Pid::from_child(&child), Signal::QUIT).unwrap();
    child.wait().unwrap();
});

drop_in!(journal_gets_priorities_instead_of_times, |brand| {
    let (directory, port, database) = (open_directory(), free_port(), database());
    let file = write_ini(directory.path(), port, &database, "");
    let journal = directory.path().join("journal");
    let stderr = fs::File::create(&journal).unwrap();
    let about = std::os::unix::fs::MetadataExt::dev(&stderr.metadata().unwrap());
    let inode = std::os::unix::fs::MetadataExt::ino(&stderr.metadata().unwrap());
    let mut command = brand.command();
    command
        .arg(file)
        .env("JOURNAL_STREAM", format!("{about}:{inode}"))
        .stdout(Stdio::null())
        .stderr(stderr);
    let mut child = spawn_mortal(command, Signal::KILL);
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    wait_until("it listens", || TcpStream::connect(address).is_ok());
    // PgBouncer writes to the journal itself.
    let text = fs::read_to_string(&journal).unwrap();
    assert_eq!(text.is_empty(), matches!(brand, Brand::PgBouncer));
    let is_told = |line: &str| line.starts_with("<6>") || line.starts_with("<4>");
    assert!(text.lines().all(is_told), "{text}");
    child.kill().unwrap();
    child.wait().unwrap();
});

// ---- the command line --------------------------------------------------------------------------------------------

drop_in!(command_line_is_explained, |brand| {
    let run = |arguments: &[&str]| {
        let output = brand.command().args(arguments).output().unwrap();
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        let (told, complaint) = (text(&output.stdout), text(&output.stderr));
        (output.status.code().unwrap(), told, complaint)
    };
    for arguments in [&[][..], &["-Z"], &["--no-such-option", "x.ini"]] {
        let (code, _, complaint) = run(arguments);
        assert_eq!(code, 1, "{arguments:?}");
        let advice = "--help\" for more information.\n";
        assert!(complaint.ends_with(advice), "{complaint}");
    }
    for argument in ["-h", "--help"] {
        let (code, told, _) = run(&[argument]);
        assert_eq!(code, 0, "{argument}");
        for option in ["--daemon", "--quiet", "--verbose", "--user", "--version"] {
            assert!(told.contains(option), "no {option} in {told}");
        }
    }
    let drop_in = DropIn::start(brand, database(), "");
    let version = drop_in.console("SHOW VERSION").value();
    for argument in ["-V", "--version"] {
        let (code, told, _) = run(&[argument]);
        let first = told.lines().next().unwrap();
        assert_eq!(code, 0, "{argument}");
        assert!(first.eq_ignore_ascii_case(&version), "{first}");
    }
});

drop_in!(file_that_cannot_be_read_is_named, |brand| {
    let file = "/nonexistent/pgbouncer.ini";
    let output = brand.command().arg(file).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains(file), "{told}");
});

/// Gives the program these options instead of its own.
fn set_options(command: &mut Command, options: &[&str]) {
    let file = Path::new(command.get_args().last().unwrap()).to_owned();
    let envs = command.get_envs();
    let envs: Vec<_> = envs
        .filter_map(|(key, value)| Some((key.to_owned(), value?.to_owned())))
        .collect();
    let mut amended = Command::new(command.get_program());
    amended.envs(envs).args(options).arg(&file);
    amended.stdin(Stdio::null()).stdout(Stdio::null());
    amended.stderr(fs::File::create(file.with_file_name("stderr")).unwrap());
    *command = amended;
}

drop_in!(options_have_long_names, |brand| {
    let is_root = rustix::process::geteuid().is_root();
    let (lines, options) = match is_root {
        // As which it would refuse to run.
        true => (
            "user = root",
            &["--quiet", "--verbose", "--user=nobody"][..],
        ),
        false => ("", &["--quiet", "--verbose"][..]),
    };
    let drop_in = DropIn::start_with(brand, database(), lines, |command| {
        set_options(command, options);
    });
    assert_eq!(drop_in.client().value("select 1"), "1");
    let told = fs::read_to_string(drop_in.path("stderr")).unwrap();
    assert_eq!(told, "", "quiet");
    drop(Client::connect(drop_in.address));
    wait_until("it is verbose", || drop_in.log().contains(" DEBUG "));
});

drop_in!(details_are_logged_if_wanted, |brand| {
    for (options, verbose, is_told) in [
        (&["-q"][..], 0, false),
        (&["-q", "-v", "-v"], 0, true),
        (&["-q"], 1, true),
    ] {
        let lines = format!("verbose = {verbose}");
        let drop_in = DropIn::start_with(brand, database(), &lines, |command| {
            set_options(command, options);
        });
        drop(Client::connect(drop_in.address));
        assert_eq!(drop_in.client().value("select 1"), "1");
        let has_details = || drop_in.log().contains(" DEBUG ");
        if is_told {
            wait_until("there are details", has_details);
        }
        assert_eq!(has_details(), is_told, "{options:?} {verbose}");
    }
});

drop_in!(processes_share_a_port, |brand| {
    let lines = |size| format!("so_reuseport = 1\ndefault_pool_size = {size}");
    let first = DropIn::start(brand, database(), &lines(3));
    let port = first.address.port();
    let mut second = DropIn::start_with(brand, database(), &lines(4), |command| {
        let file = Path::new(command.get_args().last().unwrap());
        let text = fs::read_to_string(file).unwrap();
        let line = |line: &str| match line.starts_with("listen_port") {
            true => format!("listen_port = {port}\n"),
            false => format!("{line}\n"),
        };
        fs::write(file, text.lines().map(line).collect::<String>()).unwrap();
    });
    let reached = || {
        let table = first.console("SHOW CONFIG").table();
        let mut rows = table.into_iter();
        let row = rows.find(|row| row["key"] == "default_pool_size");
        row.unwrap()["value"].clone()
    };
    for size in ["3", "4"] {
        wait_until("each has been reached", || reached() == size);
    }
    second.signal(Signal::TERM);
    second.wait_exit().expect("an end");
    for _ in 0..8 {
        assert_eq!(reached(), "3");
    }
});

// ---- what PgBouncer 1.18 does not have ---------------------------------------------------------------------------

// Before, it ended the shutdown.
drop_in!(
    signal_to_resume_is_ignored_during_a_shutdown,
    since(1, 23),
    |brand| {
        let mut drop_in = DropIn::start(brand, database(), "pool_mode = transaction");
        let mut client = Client::login(drop_in.address, &drop_in.database.name);
        assert_eq!(client.query("begin").status, b'T');
        drop_in.signal(Signal::INT);
        wait_until("it shuts down", || {
            drop_in.log().contains("got SIGINT, shutting down")
        });
        drop_in.signal(Signal::USR2);
        wait_until("it says so", || {
            drop_in
                .log()
                .contains("got SIGUSR2 while shutting down, ignoring")
        });
        assert!(!drop_in.log().contains("continuing"));
        assert_eq!(client.query("commit").complete, ["COMMIT"]);
        assert!(drop_in.wait_exit().expect("an end").success());
    }
);

both_shards!(rolling_restart_refuses_nobody, |shards| {
    let brand = Brand::Ringbouncer(shards);
    let old = DropIn::start(
        brand,
        database(),
        "so_reuseport = 1\nmax_client_conn = 10000",
    );
    let (address, name) = (old.address, old.database.name.clone());
    let mut staying = Client::login(address, &name);
    let other = open_directory();
    let file = write_ini(
        other.path(),
        address.port(),
        &old.database,
        "so_reuseport = 1\nmax_client_conn = 10000",
    );
    let log = other.path().join("log");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("{text}\nlogfile = {}\n", log.display())).unwrap();
    let mut new = brand
        .command()
        .arg("-q")
        .arg(&file)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let is_up = || fs::read_to_string(&log).is_ok_and(|log| log.contains("process up: "));
    wait_until("the new process serves", is_up);
    let calls = AtomicUsize::new(0);
    let after = |more: usize| {
        let enough = calls.load(Ordering::Relaxed) + more;
        wait_until("more calls", || calls.load(Ordering::Relaxed) >= enough);
    };
    std::thread::scope(|scope| {
        let (calls, name) = (&calls, &name);
        let call = |_| {
            let (stop, stopped) = channel();
            let run = move || call_at_rate(address, name, 250, calls, &stopped);
            (stop, scope.spawn(run))
        };
        let (stops, callers): (Vec<_>, Vec<_>) = (0..4).map(call).unzip();
        after(300);
        old.signal(Signal::TERM);
        wait_until("the old process has closed its listeners", || {
            !listens(&old)
        });
        after(300);
        drop(stops);
        callers
            .into_iter()
            .for_each(|caller| caller.join().unwrap());
    });
    assert_eq!(staying.value("select 'still served'"), "still served");
    drop(staying);
    let mut old = old;
    assert!(old.wait_exit().expect("an end").success());
    assert_eq!(Client::login(address, &name).value("select 1"), "1");
    kill_process(Pid::from_child(&new), Signal::QUIT).unwrap();
    new.wait().unwrap();
});

/// Whether the process has a listening socket among its descriptors.
fn listens(process: &DropIn) -> bool {
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let inodes: Vec<_> = table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|words| words.get(3) == Some(&"0A"))
        .filter_map(|words| Some(format!("socket:[{}]", words.get(9)?)))
        .collect();
    let Ok(descriptors) = fs::read_dir(format!("/proc/{}/fd", process.pid())) else {
        return false;
    };
    descriptors.flatten().any(|fd| {
        let target = fs::read_link(fd.path()).unwrap_or_default();
        inodes
            .iter()
            .any(|inode| target.as_os_str() == inode.as_str())
    })
}

/// Logs in `per_second` times a second, each on a connection of its own, until the other end of `stopped` is dropped.
fn call_at_rate(
    address: SocketAddr,
    database: &str,
    per_second: u32,
    calls: &AtomicUsize,
    stopped: &Receiver<()>,
) {
    let pause = Duration::from_secs(1) / per_second;
    let mut due = Instant::now();
    let left = |due: Instant| due.saturating_duration_since(Instant::now());
    while stopped.recv_timeout(left(due)) == Err(RecvTimeoutError::Timeout) {
        Client::login(address, database);
        calls.fetch_add(1, Ordering::Relaxed);
        due += pause;
    }
}
