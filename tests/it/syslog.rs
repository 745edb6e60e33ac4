//! Lines to the system's log: a socket of the test's own in the place of `/dev/log`.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;

use crate::support::drop_in::*;
use crate::support::mounts::{Devices, may_mount};
use crate::support::postgres::Postgres;
use crate::support::wait::PATIENCE;
use crate::support::*;

fn database() -> Database {
    Postgres::shared().database()
}

/// Whoever reads `/dev/log` in place of the system's daemon.
struct Daemon {
    socket: UnixDatagram,
}

impl Daemon {
    fn listen(devices: &Devices) -> Daemon {
        let path = devices.path().join("log");
        let socket = UnixDatagram::bind(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Daemon { socket }
    }

    /// The next line that holds `part`.
    #[track_caller]
    fn expect(&self, part: &str) -> Line {
        let mut packet = [0; 8192];
        loop {
            let length = self.socket.recv(&mut packet);
            let length = length.unwrap_or_else(|error| panic!("{part}: {error}"));
            let text = String::from_utf8_lossy(&packet[..length]).into_owned();
            if text.contains(part) {
                return Line::parse(&text);
            }
        }
    }

    /// Whether no line has come since.
    fn has_nothing(&self) -> bool {
        self.socket.set_nonblocking(true).unwrap();
        let outcome = self.socket.recv(&mut [0; 10]);
        self.socket.set_nonblocking(false).unwrap();
        outcome.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    }
}

/// `<30>Nov 28 07:05:33 ident[4711]: text`.
#[derive(Debug)]
struct Line {
    facility: u32,
    severity: u32,
    time: String,
    tag: String,
    text: String,
}

impl Line {
    fn parse(packet: &str) -> Line {
        let (priority, rest) = packet[1..].split_once('>').expect("a priority");
        let priority: u32 = priority.parse().unwrap();
        let (time, rest) = rest.split_at("Nov 28 07:05:33 ".len());
        let (tag, text) = rest.split_once(": ").expect("a tag");
        Line {
            facility: priority / 8,
            severity: priority % 8,
            time: time.to_owned(),
            tag: tag.to_owned(),
            text: text.trim_end_matches('\0').to_owned(),
        }
    }
}

const DAEMON: u32 = 3;
const LOCAL3: u32 = 19;
const WARNING: u32 = 4;
const INFO: u32 = 6;

fn start(brand: Brand, devices: &Devices, more: &str) -> DropIn {
    start_with(brand, devices, more, |_| {})
}

fn start_with(
    brand: Brand,
    devices: &Devices,
    more: &str,
    amend: impl FnOnce(&mut Command),
) -> DropIn {
    DropIn::start_with(brand, database(), more, |command| {
        devices.show_to(command);
        amend(command);
    })
}

/// What a line of the log file says behind its time, process and level.
fn words_of(line: &str) -> &str {
    line.split_once(" LOG ").expect("a level").1
}

drop_in!(syslog_has_the_lines_of_the_log, |brand| {
    if !may_mount() {
        return;
    }
    let devices = Devices::new();
    let daemon = Daemon::listen(&devices);
    let drop_in = start(brand, &devices, "syslog = 1");
    let line = daemon.expect("process up");
    assert_eq!((line.facility, line.severity), (DAEMON, INFO), "{line:?}");
    assert_eq!(line.tag, format!("pgbouncer[{}]", drop_in.pid()));
    // The same words as in the file, without its time, process and level.
    assert_eq!(line.text, words_of(&line_with(&drop_in, "process up")));
    drop_in.client();
    let line = daemon.expect("login attempt");
    let in_file = line_with(&drop_in, "login attempt");
    assert_eq!((line.severity, &*line.text), (INFO, words_of(&in_file)));
    let params = [("user", "postgres"), ("database", "nowhere")];
    let refused = Client::connect(drop_in.address).start(wire::PROTOCOL_3_0, &params);
    assert!(refused.error.is_some());
    assert_eq!(daemon.expect("pooler error: ").severity, WARNING);
});

drop_in!(lines_for_syslog_are_marked_as_the_file_says, |brand| {
    if !may_mount() {
        return;
    }
    let devices = Devices::new();
    let daemon = Daemon::listen(&devices);
    let more = "syslog = 1\nsyslog_ident = poolone\nsyslog_facility = local3";
    let drop_in = start(brand, &devices, more);
    let line = daemon.expect("process up");
    assert_eq!(line.facility, LOCAL3);
    assert_eq!(line.tag, format!("poolone[{}]", drop_in.pid()));
    // A reload changes it.
    let reply = drop_in.reload_with("poolone\nsyslog_facility = local3", "pooltwo");
    assert_eq!(reply.complete, ["RELOAD"]);
    drop_in.client();
    let line = daemon.expect(&format!("login attempt: db={}", drop_in.database.name));
    let tag = format!("pooltwo[{}]", drop_in.pid());
    assert_eq!((line.facility, line.tag), (DAEMON, tag));
});

drop_in!(time_in_syslog_is_the_local_one, |brand| {
    if !may_mount() {
        return;
    }
    let devices = Devices::new();
    let daemon = Daemon::listen(&devices);
    let drop_in = start_with(brand, &devices, "syslog = 1", |command| {
        command.env("TZ", "XXX-5:30");
    });
    let line = daemon.expect("process up");
    let in_file = line_with(&drop_in, "process up");
    // `2026-11-28 12:35:33.217 XXX`: the hour, which is the same unless one has just ended.
    let hour = |text: &str, at: usize| text[at..at + 2].parse::<u32>().unwrap();
    let (there, here) = (hour(&line.time, 7), hour(&in_file, 11));
    assert!(
        there == here || (there + 23) % 24 == here,
        "{line:?} {in_file}"
    );
});

drop_in!(syslog_begins_and_ends_with_a_reload, |brand| {
    if !may_mount() {
        return;
    }
    let devices = Devices::new();
    let daemon = Daemon::listen(&devices);
    let drop_in = start(brand, &devices, "syslog = 0");
    drop_in.client();
    assert!(daemon.has_nothing());
    drop_in.reload_with("syslog = 0", "syslog = 1");
    drop_in.client();
    daemon.expect("login attempt");
    drop_in.reload_with("syslog = 1", "syslog = 0");
    let console = Client::login(drop_in.address, "pgbouncer");
    drop(console);
    while !daemon.has_nothing() {}
    drop_in.client();
    assert!(drop_in.log().contains("login attempt"));
    assert!(daemon.has_nothing());
});

drop_in!(without_a_system_log_the_other_outlets_go_on, |brand| {
    if !may_mount() {
        return;
    }
    let devices = Devices::new();
    let drop_in = start(brand, &devices, "syslog = 1");
    assert_eq!(drop_in.client().value("select 1"), "1");
    assert!(drop_in.log().contains("login attempt"));
    // A daemon that is started later, or anew, has the lines from then on.
    for _ in 0..2 {
        let _ = fs::remove_file(devices.path().join("log"));
        let daemon = Daemon::listen(&devices);
        drop_in.client();
        daemon.expect("login attempt");
    }
});

// PgBouncer waits for it, as syslog(3) does.
both_shards!(daemon_that_reads_nothing_holds_nobody_up, |shards| {
    if !may_mount() {
        return;
    }
    let brand = Brand::Ringbouncer(shards);
    let devices = Devices::new();
    let daemon = Daemon::listen(&devices);
    let drop_in = start(brand, &devices, "syslog = 1");
    // A datagram socket takes so many lines (unix(7)), and each login has several.
    let text = fs::read_to_string("/proc/sys/net/unix/max_dgram_qlen").unwrap();
    for _ in 0..text.trim().parse::<usize>().unwrap() + 2 {
        drop_in.client();
    }
    assert_eq!(drop_in.client().value("select 'served'"), "served");
    while !daemon.has_nothing() {}
    drop_in.client();
    daemon.expect("login attempt");
});

drop_in!(syslog_alone_is_enough_for_a_daemon, |brand| {
    if !may_mount() {
        return;
    }
    let devices = Devices::new();
    let daemon = Daemon::listen(&devices);
    let (directory, port, database) = (open_directory(), free_port(), database());
    let pidfile = directory.path().join("pid");
    let more = format!("syslog = 1\npidfile = {}", pidfile.display());
    let mut command = brand.command();
    command
        .arg("-d")
        .arg(write_ini(directory.path(), port, &database, &more));
    devices.show_to(&mut command);
    assert!(command.status().unwrap().success());
    let line = daemon.expect("process up");
    wait_until("its number is known", || {
        fs::read_to_string(&pidfile).is_ok_and(|it| it.ends_with('\n'))
    });
    let pid = fs::read_to_string(&pidfile).unwrap();
    let pid = pid.trim();
    assert_eq!(line.tag, format!("pgbouncer[{pid}]"));
    let number = rustix::process::Pid::from_raw(pid.parse().unwrap()).unwrap();
    rustix::process::kill_process(number, rustix::process::Signal::QUIT).unwrap();
    wait_until("it is gone", || !Path::new("/proc").join(pid).exists());
});
