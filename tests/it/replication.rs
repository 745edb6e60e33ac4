//! Replication, physical and logical: a server connection for each client, of no use to anybody else.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, OnceLock};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::support::postgres::{binaries, spawn_mortal};
use crate::support::wire::*;
use crate::support::*;

/// A cluster that can be replicated from.
pub fn cluster() -> &'static Arc<Postgres> {
    static CLUSTER: OnceLock<Arc<Postgres>> = OnceLock::new();
    CLUSTER.get_or_init(|| {
        Postgres::with(|data| {
            let append = |name: &str, text: &str| {
                let path = data.join(name);
                fs::write(&path, fs::read_to_string(&path).unwrap() + text).unwrap();
            };
            append(
                "postgresql.conf",
                "wal_level = logical\nmax_wal_senders = 40\nmax_replication_slots = 40\n",
            );
            append("pg_hba.conf", "host replication all 127.0.0.1/32 trust\n");
        })
    })
}

/// A pooler before it, with a further entry `replication`, which libpq's programs ask for.
fn stage(topology: Topology, dbname: &str) -> Stage {
    let database = cluster().database();
    let topology = topology.database_at("replication", cluster().address(), &[("dbname", dbname)]);
    Stage::on(database, topology, &[])
}

fn replicating(stage: &Stage, kind: &str) -> Client {
    let params = [
        ("user", "postgres"),
        ("database", stage.entry.as_str()),
        ("replication", kind),
    ];
    Client::login_with(stage.address(), &params)
}

/// A program that runs until it is told to stop.
struct Running(Child);

impl Running {
    fn start(program: &str, stage: &Stage, arguments: &[&str]) -> Running {
        let mut command = Command::new(binaries().join(program));
        let port = stage.address().port().to_string();
        command.args(["-h", "127.0.0.1", "-p", &port, "-U", "postgres", "-w"]);
        command.args(arguments).stdin(Stdio::null());
        Running(spawn_mortal(command, Signal::KILL))
    }

    /// Ctrl-C; its exit must be a success.
    fn stop(mut self) {
        kill_process(Pid::from_child(&self.0), Signal::INT).unwrap();
        let mut exit = None;
        wait_until("the program has ended", || {
            exit = self.0.try_wait().unwrap();
            exit.is_some()
        });
        assert!(exit.is_some_and(|exit| exit.success()), "{exit:?}");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn bytes_in(directory: &Path) -> u64 {
    let files = fs::read_dir(directory).unwrap().flatten();
    let files = files.filter(|file| file.file_name() != "archive_status");
    files
        .map(|file| {
            fs::read(file.path())
                .unwrap_or_default()
                .iter()
                .filter(|byte| **byte != 0)
                .count() as u64
        })
        .sum()
}

both_shards!(pg_receivewal_streams_through_the_pooler, |shards| {
    // The database of the entry does not matter: physical replication has none.
    let stage = stage(Topology::new(shards), "no_such_database");
    let directory = TempDir::new().unwrap();
    let path = directory.path().to_str().unwrap();
    let receiver = Running::start("pg_receivewal", &stage, &["-D", path, "-n", "-s", "1"]);
    wait_until("it streams", || {
        let rows = stage.console("SHOW CLIENTS").table();
        rows.iter()
            .any(|row| row["replication"] == "physical" && row["state"] == "active")
    });
    let servers = stage.console("SHOW SERVERS").table();
    let server = servers
        .iter()
        .find(|row| row["database"] == "replication")
        .unwrap();
    assert_eq!(
        (&*server["replication"], &*server["state"]),
        ("physical", "active")
    );
    let before = bytes_in(directory.path());
    stage
        .database
        .sql("create table t as select generate_series(1, 20000) as n");
    wait_until("the WAL has arrived", || {
        bytes_in(directory.path()) > before + 500_000
    });
    receiver.stop();
    wait_until("its server is closed", || {
        stage.pools("replication", "sv_active") == 0
    });
    assert_eq!(stage.pools("replication", "sv_idle"), 0);
});

both_shards!(
    pg_recvlogical_receives_changes_through_the_pooler,
    |shards| {
        let stage = stage(Topology::new(shards), "postgres");
        stage.database.sql("create table t(n int)");
        let slot = format!("slot_{}_{shards}", stage.entry);
        let file = TempDir::new().unwrap();
        let path = file.path().join("changes");
        let common = ["-d", &stage.entry, "-S", &slot];
        let mut create = Running::start(
            "pg_recvlogical",
            &stage,
            &[&common[..], &["--create-slot", "-P", "test_decoding"]].concat(),
        );
        assert!(create.0.wait().unwrap().success());
        let path = path.to_str().unwrap();
        let receiver = Running::start(
            "pg_recvlogical",
            &stage,
            &[
                &common[..],
                &["--start", "-f", path, "-n", "-F", "1", "-s", "1"],
            ]
            .concat(),
        );
        let mut client = stage.client();
        client.value("insert into t select generate_series(1, 5)");
        wait_until("the changes have arrived", || {
            let text = fs::read_to_string(path).unwrap_or_default();
            text.matches("INSERT: n[integer]:").count() == 5
        });
        let rows = stage.console("SHOW CLIENTS").table();
        assert!(
            rows.iter().any(|row| row["replication"] == "logical"),
            "{rows:?}"
        );
        receiver.stop();
        wait_until("only the pool's own server is left", || {
            stage.database.backends("backend_type <> 'walsender'") == 1
                && stage.pools(&stage.entry, "sv_active") == 0
        });
    }
);

both_shards!(
    client_for_replication_has_a_server_of_its_own_under_the_limit,
    |shards| {
        let stage = stage(Topology::new(shards).pool_size(1), "postgres");
        let pid = stage.client().value("select pg_backend_pid()");
        let mut walsender = replicating(&stage, "database");
        // It took the place of the idle one, and queries work on it as well.
        let own = walsender.value("select pg_backend_pid()");
        assert_ne!(own, pid);
        assert_eq!(walsender.query("IDENTIFY_SYSTEM").columns[0], "systemid");
        assert_eq!(walsender.value("select pg_backend_pid()"), own);
        let mut client = Client::connect(stage.address());
        client.send(&startup(
            PROTOCOL_3_0,
            &[("user", "postgres"), ("database", &stage.entry)],
        ));
        let mut reply = client.reply();
        if reply.status == b'I' {
            client.send(&query("select 'served'"));
            wait_until("the client stands in line", || {
                stage.pools(&stage.entry, "cl_waiting") == 1
            });
            walsender.send(&terminate());
            reply = client.reply();
        }
        assert_eq!(reply.value(), "served");
        drop((client, walsender));
        stage.assert_no_leak();
    }
);

both_shards!(
    start_up_parameters_reach_the_server_of_a_replication,
    |shards| {
        let topology = Topology::new(shards).set("strict_startup_parameters", true);
        let stage = stage(topology, "postgres");
        let params = [
            ("user", "postgres"),
            ("database", stage.entry.as_str()),
            ("replication", "database"),
            ("application_name", "standby"),
            ("options", "-c work_mem=77MB"),
        ];
        let mut client = Client::login_with(stage.address(), &params);
        assert_eq!(client.params["application_name"], "standby");
        assert_eq!(client.value("show application_name"), "standby");
        assert_eq!(client.value("show work_mem"), "77MB");
        // No settings were sent ahead of it.
        let physical = [
            ("user", "postgres"),
            ("database", stage.entry.as_str()),
            ("replication", "true"),
            ("DateStyle", "German"),
        ];
        let mut physical = Client::login_with(stage.address(), &physical);
        assert_eq!(physical.query("IDENTIFY_SYSTEM").rows.len(), 1);
    }
);

both_shards!(
    replication_ends_at_once_when_its_server_is_to_be_closed,
    |shards| {
        let stage = stage(Topology::new(shards), "postgres");
        let mut idle = replicating(&stage, "database");
        let mut busy = replicating(&stage, "true");
        let start = busy.query("IDENTIFY_SYSTEM");
        let at = start.rows[0][2].clone().unwrap();
        busy.send(&query(&format!("START_REPLICATION PHYSICAL {at}")));
        busy.expect(b'W');
        let servers = stage.console("SHOW SERVERS").table();
        let pids: Vec<_> = servers.iter().map(|row| &*row["remote_pid"]).collect();
        assert_eq!(pids.len(), 2, "{servers:?}");
        assert_eq!(stage.console("RECONNECT").complete, ["RECONNECT"]);
        idle.reply().assert_fatal("database configuration changed");
        // What other tests write may come on this stream, too; in the middle of that it is told nothing.
        while let Ok(Some(_)) = busy.try_read() {}
        wait_until("both are sent away for this reason", || {
            let log = stage.log();
            let mut lines = log.lines();
            let is_one = |line: &&str| {
                line.contains("closing client") && line.contains("configuration changed")
            };
            lines.by_ref().filter(is_one).count() == 2
        });
        drop((idle, busy));
        stage.assert_no_leak();
        let left = format!(
            "select count(*) from pg_stat_activity where pid in ({})",
            pids.join(", ")
        );
        wait_until("none of its walsenders is left", || {
            stage.database.sql(&left).value() == "0"
        });
    }
);

both_shards!(refused_replication_harms_no_other_client, |shards| {
    // Roles belong to all databases, and the variants of this test run at once.
    let mere = format!("mere_{shards}");
    let stage = stage(Topology::new(shards).user_secret(&mere, ""), "postgres");
    let role = [
        format!("drop role if exists {mere}"),
        format!("create role {mere} login"),
    ];
    role.iter().for_each(|sql| drop(stage.database.sql(sql)));
    let params = [
        ("user", mere.as_str()),
        ("database", stage.entry.as_str()),
        ("replication", "true"),
    ];
    let reply = Client::connect(stage.address()).start(PROTOCOL_3_0, &params);
    // The server's own words; PgBouncer says no more than that the login failed.
    let database = [params[0], ("database", &*stage.database.name), params[2]];
    let server = stage.database.postgres.address();
    let direct = Client::connect(server).start(PROTOCOL_3_0, &database);
    assert_eq!(reply.code(), "42501");
    reply.assert_fatal(direct.text());
    assert_eq!(reply.error, direct.error);
    let mut client = Client::login_with(stage.address(), &params[..2]);
    assert_eq!(client.value("select 1"), "1");
    drop(client);
    let ending = "select pg_terminate_backend(pid) from pg_stat_activity where usename";
    stage.database.sql(&format!("{ending} = '{mere}'"));
    let odd = [params[1], ("user", "postgres"), ("replication", "perhaps")];
    let reply = Client::connect(stage.address()).start(PROTOCOL_3_0, &odd);
    reply.assert_fatal("unsupported startup parameter: replication");
});
