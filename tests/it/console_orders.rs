//! PAUSE, RESUME, KILL, RECONNECT, WAIT_CLOSE, DISABLE, ENABLE, KILL_CLIENT: on every shard when they answer.

use std::sync::atomic::AtomicBool;

use rustix::process::Signal;

use super::support::peer::cancel;
use crate::support::wire::*;
use crate::support::*;

/// Checks each command's answer: the tag, or the text of the error.
#[track_caller]
fn assert_answers(admin: &mut Client, table: &[(String, String)]) {
    for (command, answer) in table {
        let reply = admin.query(command);
        match &reply.error {
            Some(error) => assert_eq!(
                (&error.text, &error.severity[..]),
                (answer, "ERROR"),
                "{command}"
            ),
            None => assert_eq!(reply.complete, [answer.as_str()], "{command}"),
        }
        assert_eq!(reply.status, b'I', "{command}");
    }
}

fn table(rows: &[(&str, &str)], entry: &str) -> Vec<(String, String)> {
    let fill = |text: &str| text.replace("DB", entry);
    rows.iter()
        .map(|(command, answer)| (fill(command), fill(answer)))
        .collect()
}

/// The text on what is paused or not: of PgBouncer there is no SUSPEND since 1.26.
fn paused(subject: &Subject, text: &str) -> String {
    match subject.is_from((1, 26)) {
        true => text
            .replace("suspended/paused", "paused")
            .replace("paused/suspended", "paused"),
        false => text.to_owned(),
    }
}

compared!(
    pauses_are_answered_as_in_pgbouncer,
    since(1, 8),
    |subject| {
        let rows = [
            ("RESUME", "pooler is not paused/suspended"),
            ("RESUME DB", "database DB is not paused"),
            ("PAUSE DB", "PAUSE"),
            ("pause \"DB\";", "PAUSE"),
            ("RESUME", "pooler is not paused/suspended"),
            ("RESUME DB", "RESUME"),
            ("RESUME DB", "database DB is not paused"),
            ("PAUSE", "PAUSE"),
            ("PAUSE", "already suspended/paused"),
            ("PAUSE DB", "already suspended/paused"),
            ("KILL DB", "already suspended/paused"),
            ("RESUME DB", "database DB is not paused"),
            ("RESUME", "RESUME"),
            ("PAUSE pgbouncer", "cannot pause admin db: pgbouncer"),
            ("PAUSE none", "no such database: none"),
            ("RESUME none", "no such database: none"),
            ("RESUME pgbouncer", "database pgbouncer is not paused"),
            ("KILL pgbouncer", "cannot kill admin db: pgbouncer"),
            ("KILL none", "no such database: none"),
            (
                "PAUSE DB DB",
                "invalid command 'PAUSE DB DB', use SHOW HELP;",
            ),
        ];
        let mut rows = table(&rows, subject.entry(0));
        for (_, answer) in &mut rows {
            *answer = paused(subject, answer);
        }
        assert_answers(&mut subject.admin(), &rows);
    }
);

compared!(
    other_commands_are_answered_as_in_pgbouncer,
    since(1, 12),
    |subject| {
        let enable = match subject.is_before((1, 26)) {
            true => "cannot disable admin db: pgbouncer",
            false => "cannot enable admin db: pgbouncer",
        };
        let rows = [
            ("DISABLE", "a database is required"),
            ("ENABLE", "a database is required"),
            ("DISABLE DB", "DISABLE"),
            ("DISABLE DB", "DISABLE"),
            ("ENABLE DB", "ENABLE"),
            ("ENABLE DB", "ENABLE"),
            ("DISABLE none", "no such database: none"),
            ("ENABLE none", "no such database: none"),
            ("DISABLE pgbouncer", "cannot disable admin db: pgbouncer"),
            ("ENABLE pgbouncer", enable),
            ("RECONNECT", "RECONNECT"),
            ("RECONNECT DB", "RECONNECT"),
            ("RECONNECT none", "no such database: none"),
            (
                "RECONNECT pgbouncer",
                "cannot reconnect admin db: pgbouncer",
            ),
            ("WAIT_CLOSE", "WAIT_CLOSE"),
            ("WAIT_CLOSE DB", "WAIT_CLOSE"),
            ("WAIT_CLOSE none", "no such database: none"),
            ("WAIT_CLOSE pgbouncer", "cannot wait in admin db: pgbouncer"),
            ("RELOAD", "RELOAD"),
        ];
        assert_answers(&mut subject.admin(), &table(&rows, subject.entry(0)));
    }
);

compared!(commands_of_admins_are_for_admins, since(1, 12), |subject| {
    let params = [("user", "watcher"), ("database", "pgbouncer")];
    let mut watcher = Client::login_with(subject.address(), &params);
    let mut commands = vec![
        "PAUSE",
        "RESUME",
        "KILL x",
        "DISABLE x",
        "ENABLE x",
        "RECONNECT",
        "WAIT_CLOSE",
        "RELOAD",
        "SHUTDOWN",
        "PAUSE none",
    ];
    // CVE-2026-6667: up to 1.25.1 everybody in the console could.
    if !subject.is_before((1, 26)) {
        commands.extend(["KILL_CLIENT 1", "KILL_CLIENT", "KILL", "DISABLE"]);
    }
    for command in commands {
        assert_eq!(
            watcher.query(command).text(),
            "admin access needed",
            "{command}"
        );
    }
    assert!(!watcher.query("SHOW STATS").rows.is_empty());
});

compared!(
    pause_waits_for_the_transaction_and_leaves_no_server,
    since(1, 8),
    |subject| {
        let (mut busy, mut other) = (subject.client(), subject.client());
        busy.query("begin");
        other.value("select 1");
        let mut admin = subject.admin();
        admin.send(&query("PAUSE"));
        wait_until("idle servers are closed", || {
            subject.pools(subject.entry(0), "sv_idle") == 0
        });
        assert!(
            admin.has_nothing_to_read(),
            "answered while a transaction is open"
        );
        other.send(&query("select 2"));
        wait_until("it waits", || {
            subject.pools(subject.entry(0), "cl_waiting") == 1
        });
        busy.query("commit");
        assert_eq!(admin.reply().complete, ["PAUSE"]);
        let pools = |column: &str| subject.pools(subject.entry(0), column);
        assert_eq!(
            [pools("sv_active"), pools("sv_idle"), pools("cl_waiting")],
            [0, 0, 1]
        );
        busy.send(&query("select 3"));
        wait_until("both wait", || pools("cl_waiting") == 2);
        assert_eq!(admin.query("RESUME").complete, ["RESUME"]);
        assert_eq!(
            (other.reply().value(), busy.reply().value()),
            ("2".into(), "3".into())
        );
    }
);

compared!(
    pause_waits_for_the_end_of_sessions,
    since(1, 18),
    with & [("pool_mode", "session")],
    |subject| {
        let (mut holder, mut late) = (subject.client(), subject.client());
        assert_eq!(holder.value("select 1"), "1");
        let entry = subject.entry(0);
        let mut admin = subject.admin();
        admin.send(&query(&format!("PAUSE {entry}")));
        wait_until("it is pausing", || {
            let table = subject.console("SHOW DATABASES").table();
            table
                .iter()
                .any(|row| row["name"] == entry && row["paused"] == "1")
        });
        late.send(&query("select 'late'"));
        wait_until("it waits", || subject.pools(entry, "cl_waiting") == 1);
        assert_eq!(holder.value("select 'goes on'"), "goes on");
        assert!(admin.has_nothing_to_read(), "answered during a session");
        drop(holder);
        assert_eq!(admin.reply().complete, ["PAUSE"]);
        subject.databases[0].wait_backends(0, "true");
        assert!(late.has_nothing_to_read());
        assert_eq!(admin.query(&format!("RESUME {entry}")).complete, ["RESUME"]);
        assert_eq!(late.reply().value(), "late");
    }
);

compared!(
    pause_of_a_database_leaves_the_others_alone,
    since(1, 8),
    |subject| {
        let [one, two] = [0, 1].map(|at| subject.entry(at).to_owned());
        let (mut client, mut other) = (subject.client(), Client::login(subject.address(), &two));
        let answers = (client.value("select 1"), other.value("select 2"));
        assert_eq!(answers, ("1".into(), "2".into()));
        assert_eq!(subject.console(&format!("PAUSE {one}")).complete, ["PAUSE"]);
        client.send(&query("select 3"));
        assert_eq!(other.value("select 4"), "4");
        wait_until("it waits", || subject.pools(&one, "cl_waiting") == 1);
        let databases = subject.console("SHOW DATABASES").table();
        let flag = |name: &str| {
            databases.iter().find(|row| row["name"] == name).unwrap()["paused"].clone()
        };
        assert_eq!((flag(&one), flag(&two)), ("1".into(), "0".into()));
        // A login to a pool that has served before succeeds.
        let mut late = subject.client();
        late.send(&query("select 5"));
        assert_eq!(
            subject.console(&format!("RESUME {one}")).complete,
            ["RESUME"]
        );
        assert_eq!(
            (client.reply().value(), late.reply().value()),
            ("3".into(), "5".into())
        );
    }
);

compared!(
    kill_drops_clients_and_servers_and_leaves_the_database_paused,
    since(1, 8),
    |subject| {
        let one = subject.entry(0).to_owned();
        let (mut idle, mut busy, mut running) =
            (subject.client(), subject.client(), subject.client());
        let mut other = Client::login(subject.address(), subject.entry(1));
        idle.value("select 1");
        busy.query("begin");
        running.send(&query("select pg_sleep(60)"));
        wait_until("both are served", || subject.pools(&one, "sv_active") == 2);
        // A cancel request that comes before its query begins is lost.
        let condition = "state = 'active' and query like '%pg_sleep%'";
        subject.databases[0].wait_backends(1, condition);
        assert_eq!(subject.console(&format!("KILL {one}")).complete, ["KILL"]);
        if !subject.is_theirs {
            let pools = |column: &str| subject.pools(&one, column);
            assert_eq!(
                [pools("cl_active"), pools("sv_active"), pools("sv_idle")],
                [0; 3]
            );
            subject.databases[0].wait_backends(0, "true");
        }
        for client in [&mut idle, &mut busy, &mut running] {
            client.reply().assert_fatal("database removed");
        }
        // The pool knows no server's welcome any more: a login waits for one.
        let mut late = Client::connect(subject.address());
        late.send(&startup(
            PROTOCOL_3_0,
            &[("user", "postgres"), ("database", &one)],
        ));
        assert_eq!(other.value("select 3"), "3");
        assert!(late.has_nothing_to_read());
        assert_eq!(
            subject.console(&format!("RESUME {one}")).complete,
            ["RESUME"]
        );
        assert_eq!(late.reply().status, b'I');
        assert_eq!(late.value("select 2"), "2");
    }
);

compared!(
    disabled_database_lets_nobody_in_and_serves_who_is_there,
    since(1, 8),
    |subject| {
        let one = subject.entry(0).to_owned();
        let mut client = subject.client();
        client.value("select 1");
        assert_eq!(
            subject.console(&format!("DISABLE {one}")).complete,
            ["DISABLE"]
        );
        let late = |text: &str| {
            let mut late = Client::connect(subject.address());
            let params = [("user", "postgres"), ("database", &one)];
            late.start(PROTOCOL_3_0, &params).assert_fatal(text);
        };
        if subject.is_theirs {
            late(&format!("database \"{one}\" is disabled"));
        } else {
            // Whatever shard they come to.
            (0..8).for_each(|_| late(&format!("database \"{one}\" is disabled")));
        }
        assert_eq!(client.value("select 2"), "2");
        let databases = subject.console("SHOW DATABASES").table();
        let row = databases.iter().find(|row| row["name"] == one).unwrap();
        assert_eq!(
            (row["paused"].as_str(), row["disabled"].as_str()),
            ("0", "1")
        );
        assert_eq!(
            subject.console(&format!("ENABLE {one}")).complete,
            ["ENABLE"]
        );
        assert_eq!(subject.client().value("select 3"), "3");
    }
);

compared!(
    reconnect_replaces_servers_and_wait_close_waits_for_it,
    since(1, 10),
    |subject| {
        let one = subject.entry(0).to_owned();
        let mut busy = subject.client();
        busy.query("begin");
        let mut other = subject.client();
        let old = [&mut busy, &mut other].map(|client| client.value("select pg_backend_pid()"));
        let mut admin = subject.admin();
        assert_eq!(
            admin.query(&format!("RECONNECT {one}")).complete,
            ["RECONNECT"]
        );
        let new = other.value("select pg_backend_pid()");
        assert!(!old.contains(&new), "an old server is used");
        assert_eq!(
            busy.value("select pg_backend_pid()"),
            old[0],
            "the transaction goes on"
        );
        let marked = || {
            let servers = subject.console("SHOW SERVERS").table();
            let pids = servers.iter().filter(|row| row["close_needed"] == "1");
            pids.map(|row| row["remote_pid"].clone())
                .collect::<Vec<_>>()
        };
        assert_eq!(marked(), [old[0].as_str()]);
        admin.send(&query("WAIT_CLOSE"));
        wait_until("time passes", || {
            subject.console("SHOW VERSION").rows.len() == 1
        });
        assert!(
            admin.has_nothing_to_read(),
            "answered while an old server is in use"
        );
        busy.query("commit");
        assert_eq!(admin.reply().complete, ["WAIT_CLOSE"]);
        assert!(marked().is_empty());
        assert_ne!(busy.value("select pg_backend_pid()"), old[0]);
    }
);

compared!(
    cancel_request_of_a_paused_console_resumes,
    since(1, 8),
    |subject| {
        let mut busy = subject.client();
        busy.query("begin");
        let mut other = subject.client();
        other.value("select 1");
        let idle = || subject.pools(subject.entry(0), "sv_idle");
        wait_until("its server is idle", || idle() > 0);
        let mut admin = subject.admin();
        admin.send(&query("PAUSE"));
        // Its shard has heard of it then.
        wait_until("its server is closed", || idle() == 0);
        other.send(&query("select 2"));
        wait_until("it waits", || {
            subject.pools(subject.entry(0), "cl_waiting") == 1
        });
        cancel(subject.address(), &admin.key);
        assert_eq!(other.reply().value(), "2");
        if !subject.is_theirs {
            // PgBouncer never answers this session.
            assert_eq!(admin.reply().code(), "57014");
            assert_eq!(admin.query("PAUSE none").text(), "no such database: none");
        }
        assert_eq!(
            subject.console("RESUME").text(),
            paused(subject, "pooler is not paused/suspended")
        );
        busy.query("commit");
    }
);

/// A pool on a server that does not hang up when the pooler does: a KILL that has told its client so, and waits for the server.
struct WaitingKill {
    _server: FakeServer,
    stage: Stage,
    admin: Client,
}

impl WaitingKill {
    fn new(shards: usize) -> WaitingKill {
        let server = FakeServer::start(move |mut conversation| {
            conversation.login();
            conversation.stall_until(&AtomicBool::new(false));
        });
        let topology = Topology::new(shards).set("close_timeout", "1 h");
        let stage = Stage::pooled(topology.database_at("fake", server.address, &[]));
        let mut client = Client::login(stage.address(), "fake");
        let mut admin = Client::login(stage.address(), "ringbouncer");
        admin.send(&query("KILL fake"));
        client.reply().assert_fatal("database removed");
        assert!(admin.has_nothing_to_read());
        WaitingKill {
            _server: server,
            stage,
            admin,
        }
    }
}

both_shards!(cancel_request_ends_the_wait_of_a_kill, |shards| {
    let WaitingKill {
        stage, mut admin, ..
    } = WaitingKill::new(shards);
    cancel(stage.address(), &admin.key);
    assert_eq!(admin.reply().code(), "57014");
    assert_eq!(stage.pools("fake", "sv_idle"), 0);
    assert_eq!(
        admin.query("RESUME fake").complete,
        ["RESUME"],
        "what was killed stays paused"
    );
});

both_shards!(
    console_that_hangs_up_ends_the_wait_of_a_kill_for_itself_alone,
    |shards| {
        let WaitingKill {
            stage, mut admin, ..
        } = WaitingKill::new(shards);
        admin.finish_sending();
        wait_until("it is not listed any more", || {
            stage.console("SHOW CLIENTS").row_of(&admin).is_none()
        });
        assert_eq!(stage.console("RESUME fake").complete, ["RESUME"]);
    }
);

both_shards!(cancel_request_ends_a_wait_close, |shards| {
    let stage = Stage::pooled(Topology::new(shards));
    let mut busy = stage.client();
    busy.query("begin");
    let mut admin = Client::login(stage.address(), "ringbouncer");
    assert_eq!(admin.query("RECONNECT").complete, ["RECONNECT"]);
    let began = |count| {
        wait_until("it waits", || {
            let log = stage.log();
            log.matches("command=\"WAIT_CLOSE\"").count() == count
        });
    };
    admin.send(&query("WAIT_CLOSE"));
    began(1);
    cancel(stage.address(), &admin.key);
    assert_eq!(admin.reply().code(), "57014");
    // With the next one nothing of that is left.
    admin.send(&query("WAIT_CLOSE"));
    began(2);
    assert!(admin.has_nothing_to_read());
    busy.query("commit");
    assert_eq!(admin.reply().complete, ["WAIT_CLOSE"]);
});

compared!(
    kill_without_a_database_is_for_all_of_them,
    since(1, 25),
    |subject| {
        let mut clients = [0, 1].map(|at| Client::login(subject.address(), subject.entry(at)));
        clients
            .iter_mut()
            .for_each(|client| assert_eq!(client.query("begin").status, b'T'));
        assert_eq!(subject.console("KILL").complete, ["KILL"]);
        clients
            .iter_mut()
            .for_each(|client| client.reply().assert_fatal("database removed"));
        let mut late = Client::connect(subject.address());
        let params = [("user", "postgres"), ("database", subject.entry(0))];
        late.send(&startup(PROTOCOL_3_0, &params));
        assert_eq!(
            subject.console("SHOW STATE").rows[1][1].as_deref(),
            Some("no")
        );
        assert!(late.has_nothing_to_read());
        for at in [0, 1] {
            let command = format!("RESUME {}", subject.entry(at));
            assert_eq!(subject.console(&command).complete, ["RESUME"]);
            let text = format!("database {} is not paused", subject.entry(at));
            assert_eq!(subject.console(&command).text(), text);
        }
        assert_eq!(late.reply().status, b'I');
        assert_eq!(subject.client().value("select 1"), "1");
    }
);

both_shards!(what_a_kill_has_paused_is_resumed_at_once, |shards| {
    // PgBouncer would have each database resumed by name.
    let subject = Subject::ours(shards, &[]);
    let mut client = Client::login(subject.address(), subject.entry(1));
    let mut admin = subject.admin();
    assert_eq!(admin.query("KILL").complete, ["KILL"]);
    client.reply().assert_fatal("database removed");
    assert_eq!(admin.query("KILL").complete, ["KILL"]);
    assert_eq!(
        admin.query("SUSPEND").text(),
        "cannot suspend with paused databases"
    );
    assert_eq!(admin.query("RESUME").complete, ["RESUME"]);
    for at in [0, 1] {
        let mut client = Client::login(subject.address(), subject.entry(at));
        assert_eq!(client.value("select 1"), "1");
    }
    assert_eq!(
        admin.query("RESUME").text(),
        "pooler is not paused/suspended"
    );
});

compared!(
    kill_client_ends_one_client_whatever_shard_it_is_on,
    since(1, 24),
    |subject| {
        let mut admin = subject.admin();
        let rows = [
            ("KILL_CLIENT", "invalid client pointer supplied"),
            ("KILL_CLIENT x", "invalid client pointer supplied"),
            ("KILL_CLIENT 4711", "client not found"),
        ];
        assert_answers(&mut admin, &table(&rows, ""));
        for at in 0..6 {
            let name = format!("victim {at}");
            let params = [
                ("user", "postgres"),
                ("database", subject.entry(0)),
                ("application_name", &name),
            ];
            let mut client = Client::login_with(subject.address(), &params);
            client.query(if at % 2 == 0 { "begin" } else { "select 1" });
            let listed = |admin: &mut Client| {
                let table = admin.query("SHOW CLIENTS").table();
                table
                    .into_iter()
                    .find(|row| row["application_name"] == name)
            };
            let row = listed(&mut admin).expect("it is listed");
            let by_pointer = !subject.is_theirs && at % 3 == 0;
            let column = if by_pointer { "ptr" } else { "id" };
            let reply = admin.query(&format!("KILL_CLIENT {}", row[column]));
            assert_eq!(reply.complete, ["KILL_CLIENT"]);
            assert!(listed(&mut admin).is_none(), "still listed");
            client.reply().assert_fatal("admin forced disconnect");
        }
        assert_eq!(subject.client().value("select 1"), "1");
    }
);

both_shards!(
    two_consoles_that_pause_and_resume_at_once_end_in_one_state,
    |shards| {
        let subject = Subject::ours(shards, &[]);
        let address = subject.address();
        let entry = subject.entry(0).to_owned();
        let load = std::thread::spawn(move || {
            let mut clients: Vec<Client> = (0..6).map(|_| Client::login(address, &entry)).collect();
            for turn in 0..60 {
                for client in &mut clients {
                    client.send(&query(&format!("select {turn}")));
                }
                for client in &mut clients {
                    assert_eq!(client.reply().value(), turn.to_string());
                }
            }
        });
        let console = move |turns: usize| {
            let mut admin = Client::login(address, "pgbouncer");
            for _ in 0..turns {
                let paused = admin.query("PAUSE");
                let is_expected = match &paused.error {
                    None => true,
                    Some(error) => [
                        "already suspended/paused",
                        "canceling statement due to user request",
                    ]
                    .contains(&&*error.text),
                };
                assert!(is_expected, "{paused:?}");
                let resumed = admin.query("RESUME");
                let is_expected = resumed
                    .error
                    .as_ref()
                    .is_none_or(|error| error.text == "pooler is not paused/suspended");
                assert!(is_expected, "{resumed:?}");
            }
        };
        let consoles = [(), (), ()].map(|()| std::thread::spawn(move || console(15)));
        consoles
            .into_iter()
            .for_each(|console| console.join().unwrap());
        load.join().unwrap();
        assert_eq!(
            subject.console("RESUME").text(),
            "pooler is not paused/suspended"
        );
        assert_eq!(subject.client().value("select 1"), "1");
    }
);

both_shards!(
    reload_in_between_keeps_a_pause_and_drops_one_of_a_database_that_is_gone,
    |shards| {
        let database = Postgres::shared().database();
        let topology = Topology::new(shards).database("kept", &database, &[]);
        let stage = Stage::pooled(topology.clone().database("gone", &database, &[]));
        let mut client = Client::login(stage.address(), "kept");
        client.value("select 1");
        for name in ["kept", "gone"] {
            assert_eq!(stage.console(&format!("PAUSE {name}")).complete, ["PAUSE"]);
        }
        client.send(&query("select 2"));
        let again = topology.clone().database("gone", &database, &[]);
        for topology in [&topology, &again] {
            stage.rewrite(topology);
            assert_eq!(stage.console("RELOAD").complete, ["RELOAD"]);
        }
        assert_eq!(
            Client::login(stage.address(), "gone").value("select 3"),
            "3"
        );
        assert_eq!(stage.pools("kept", "cl_waiting"), 1);
        assert_eq!(stage.console("RESUME kept").complete, ["RESUME"]);
        assert_eq!(client.reply().value(), "2");
    }
);

both_shards!(opening_that_hangs_does_not_hold_a_pause_up, |shards| {
    let released = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let hold = released.clone();
    let server = FakeServer::start(move |mut conversation| {
        conversation.read_startup();
        conversation.stall_until(&hold);
    });
    let topology = Topology::new(shards).set("close_timeout", "1 s");
    let stage = Stage::pooled(topology.database_at("hangs", server.address, &[]));
    let mut client = Client::connect(stage.address());
    client.send(&startup(
        PROTOCOL_3_0,
        &[("user", "postgres"), ("database", "hangs")],
    ));
    wait_until("it is dialled", || server.connections() > 0);
    let began = std::time::Instant::now();
    assert_eq!(stage.console("PAUSE hangs").complete, ["PAUSE"]);
    // server_connect_timeout is 15 s.
    assert!(began.elapsed().as_secs() < 10);
    assert_eq!(stage.pools("hangs", "sv_login"), 0);
    released.store(true, std::sync::atomic::Ordering::Relaxed);
});

both_shards!(signals_pause_and_resume, |shards| {
    let stage = Stage::pooled(Topology::new(shards));
    let mut client = stage.client();
    client.value("select 1");
    let state = || stage.console("SHOW STATE").table()[1]["value"].clone();
    stage.signal(Signal::USR1);
    stage.wait_paused();
    client.send(&query("select 2"));
    wait_until("it waits", || stage.pools(&stage.entry, "cl_waiting") == 1);
    stage.signal(Signal::USR2);
    assert_eq!(client.reply().value(), "2");
    assert_eq!(state(), "no");
});

both_shards!(login_to_a_paused_pool_succeeds_on_every_shard, |shards| {
    let subject = Subject::ours(shards, &[]);
    subject.console("RECONNECT");
    subject.client().value("select 1");
    assert_eq!(subject.console("PAUSE").complete, ["PAUSE"]);
    let mut clients: Vec<Client> = (0..9).map(|_| subject.client()).collect();
    clients
        .iter_mut()
        .for_each(|client| client.send(&query("select 2")));
    wait_until("all wait", || {
        subject.pools(subject.entry(0), "cl_waiting") == 9
    });
    assert_eq!(subject.console("RESUME").complete, ["RESUME"]);
    clients
        .iter_mut()
        .for_each(|client| assert_eq!(client.reply().value(), "2"));
});
