//! Users that no file knows, looked up on the server.

use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::postgres::MUST_SCRAM;
use crate::support::wire::*;
use crate::support::*;

const PASSWORD: &str = "secret of a role";

fn topology(shards: usize) -> Topology {
    Topology::new(shards)
        .set("auth_type", "scram-sha-256")
        .set("auth_user", "postgres")
}

fn role() -> String {
    Postgres::shared().role(MUST_SCRAM, "scram-sha-256", PASSWORD)
}

fn login(stage: &Stage, user: &str, password: &str) -> Result<String, (String, String)> {
    driver::try_login(stage.address(), user, password, &stage.entry)
}

fn text(outcome: Result<String, (String, String)>) -> String {
    outcome.expect_err("a refusal").1
}

/// A function that counts its calls and gives what `row` says, once nobody has [`delayed`] it.
fn counted(database: &Database, row: &str) -> String {
    database.sql("create sequence calls");
    let wait = "select pg_sleep(0.2); select pg_advisory_xact_lock_shared(1)";
    let body = format!("select nextval('calls'); {wait}; {row}");
    database.sql(&format!(
        "create function look_up(wanted text) returns table (name text, secret text) \
         language sql security definer as $$ {body} $$"
    ));
    "select name, secret from public.look_up($1)".to_owned()
}

/// Questions wait until `go_on` has been called with this session.
fn delayed(database: &Database) -> Client {
    let mut holder = database.direct();
    holder.value("select pg_advisory_lock(1)");
    holder
}

fn go_on(holder: &mut Client) {
    assert_eq!(holder.value("select pg_advisory_unlock(1)"), "t");
}

/// Waits until the server has been asked and the answer is [`delayed`].
#[track_caller]
fn wait_asked(database: &Database) {
    database.wait_backends(1, "wait_event_type = 'Lock'");
}

/// Waits until so many clients are logging in.
#[track_caller]
fn wait_logging_in(stage: &Stage, count: usize) {
    wait_until("they are logging in", || {
        let table = stage.as_owner("SHOW LISTS").table();
        let row = table.iter().find(|row| row["list"] == "login_clients");
        row.unwrap()["items"] == count.to_string()
    });
}

fn calls(database: &Database) -> String {
    let value = "case when is_called then last_value else 0 end";
    let reply = database.sql(&format!("select {value}::text from calls"));
    reply.value()
}

const STORED: &str = "select rolname::text, rolpassword from pg_authid where rolname = wanted";

both_shards!(role_of_the_server_logs_in_as_itself, |shards| {
    let stage = Stage::pooled(topology(shards));
    let name = role();
    for _ in 0..2 {
        assert_eq!(login(&stage, &name, PASSWORD), Ok(name.clone()));
    }
    assert_eq!(
        text(login(&stage, &name, "wrong")),
        "SASL authentication failed"
    );
    assert_eq!(login(&stage, &name, PASSWORD), Ok(name));
});

both_shards!(who_was_looked_up_is_among_the_users, |shards| {
    let stage = Stage::pooled(topology(shards));
    let name = role();
    driver::block_on(async {
        let client = driver::connect(stage.address(), &name, PASSWORD, &stage.entry);
        let client = client.await.unwrap();
        client.simple_query("select 1").await.unwrap();
        let table = stage.as_owner("SHOW USERS").table();
        let row = table.iter().find(|row| row["name"] == name).expect("a row");
        assert_eq!(row["current_connections"], "1");
        assert_eq!(row["current_client_connections"], "1");
    });
});

both_shards!(nobody_looks_like_a_wrong_password, |shards| {
    let stage = Stage::pooled(topology(shards));
    let name = role();
    let wrong = login(&stage, &name, "wrong").unwrap_err();
    assert_eq!(login(&stage, "nobody_at_all", "wrong").unwrap_err(), wrong);
    let elsewhere = driver::try_login(stage.address(), &name, "wrong", "no_database");
    assert_eq!(elsewhere.unwrap_err(), wrong);
});

both_shards!(secret_of_a_file_goes_before_the_server, |shards| {
    let name = role();
    let stage = Stage::with_keys(
        topology(shards).user_secret(&name, "of the file"),
        &[("user", "postgres")],
    );
    assert_eq!(login(&stage, &name, "of the file"), Ok("postgres".into()));
    assert_eq!(
        text(login(&stage, &name, PASSWORD)),
        "SASL authentication failed"
    );
});

both_shards!(user_without_a_secret_in_the_file_is_looked_up, |shards| {
    let name = role();
    let stage = Stage::pooled(topology(shards).user_secret(&name, ""));
    assert_eq!(login(&stage, &name, PASSWORD), Ok(name));
});

both_shards!(
    query_runs_in_auth_dbname_and_by_the_databases_own_settings,
    |shards| {
        let database = Postgres::shared().database();
        let elsewhere = Postgres::shared().database();
        database.sql("create table users (name text, secret text)");
        database.sql("insert into users values ('only_here', 'x')");
        let query = "select name, secret from users where name = $1";
        let keys = [
            ("user", "postgres"),
            ("auth_dbname", database.name.as_str()),
            ("auth_query", query),
            ("auth_user", "postgres"),
        ];
        let topology = Topology::new(shards)
            .set("auth_type", "scram-sha-256")
            .user_secret("listed", "y")
            .database(&elsewhere.name, &elsewhere, &keys);
        let stage = Stage::on(database, topology, &[("user", "postgres")]);
        let address = stage.address();
        assert!(driver::try_login(address, "only_here", "x", &elsewhere.name).is_ok());
        // The other entry has no auth_user.
        assert!(login(&stage, "only_here", "x").is_err());
        assert!(login(&stage, "listed", "y").is_ok());
    }
);

both_shards!(name_in_the_answer_is_the_user_who_is_logged_in, |shards| {
    let name = role();
    let query = format!(
        "select '{name}'::text, rolpassword from pg_authid where rolname = '{name}' and $1 = 'alias'"
    );
    let stage = Stage::pooled(topology(shards).set("auth_query", query));
    assert_eq!(login(&stage, "alias", PASSWORD), Ok(name.clone()));
    let users: Vec<_> = stage.as_owner("SHOW POOLS").table();
    assert!(users.iter().any(|row| row["user"] == name), "{users:?}");
});

both_shards!(
    answers_that_make_no_sense_say_nothing_to_the_client,
    |shards| {
        let cases = [
            ("select 'a', 'b', $1::text", "exactly 2 columns"),
            ("select $1::text", "exactly 2 columns"),
            ("select ''::text, $1::text", "without a name"),
            ("select no_such_column, $1::text", "no_such_column"),
            ("select $1::text, (1/0)::text", "division by zero"),
            (
                "select v, $1::text from (values ('a'), ('b')) as t(v)",
                "more than one row",
            ),
            ("listen $1", "auth_query"),
        ];
        for (query, logged) in cases {
            let stage = Stage::pooled(topology(shards).set("auth_query", query));
            assert_eq!(
                text(login(&stage, "somebody", "x")),
                "bouncer config error",
                "{query}"
            );
            stage.wait_log(logged);
        }
    }
);

both_shards!(
    database_to_ask_that_does_not_exist_is_an_error_of_the_configuration,
    |shards| {
        let stage = Stage::pooled(topology(shards).set("auth_dbname", "not_configured"));
        assert_eq!(text(login(&stage, "somebody", "x")), "bouncer config error");
        stage.wait_log("authentication database is not configured");
    }
);

both_shards!(disabled_database_to_ask_is_named, |shards| {
    let elsewhere = Postgres::shared().database();
    let topology = topology(shards)
        .set("auth_dbname", &*elsewhere.name)
        .database(&elsewhere.name, &elsewhere, &[]);
    let stage = Stage::pooled(topology);
    let disable = format!("DISABLE {}", elsewhere.name);
    assert_eq!(stage.as_owner(&disable).complete, ["DISABLE"]);
    let text_wanted = format!("authentication database \"{}\" is disabled", elsewhere.name);
    assert_eq!(text(login(&stage, "somebody", "x")), text_wanted);
    let enable = format!("ENABLE {}", elsewhere.name);
    assert_eq!(stage.as_owner(&enable).complete, ["ENABLE"]);
    let name = role();
    assert_eq!(login(&stage, &name, PASSWORD), Ok(name));
});

both_shards!(null_secret_never_matches, |shards| {
    let stage = Stage::pooled(topology(shards).set("auth_query", "select $1::text, null::text"));
    for password in ["", "null", "x"] {
        assert!(login(&stage, "somebody", password).is_err());
    }
});

both_shards!(many_logins_of_one_user_ask_once, |shards| {
    let database = Postgres::shared().database();
    let query = counted(&database, STORED);
    let stage = Stage::on(database, topology(shards).set("auth_query", query), &[]);
    let name = role();
    thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(|| assert_eq!(login(&stage, &name, PASSWORD), Ok(name.clone())));
        }
    });
    assert_eq!(calls(&stage.database), "1");
    assert_eq!(login(&stage, &name, PASSWORD), Ok(name.clone()));
    assert_eq!(calls(&stage.database), "1", "the answer is remembered");
    assert_eq!(stage.as_owner("RELOAD").complete, ["RELOAD"]);
    assert_eq!(login(&stage, &name, PASSWORD), Ok(name));
    assert_eq!(calls(&stage.database), "2", "a reload forgets it");
});

both_shards!(without_a_time_to_live_every_login_asks, |shards| {
    let database = Postgres::shared().database();
    let query = counted(&database, STORED);
    let topology = topology(shards)
        .set("auth_query", query)
        .set("auth_query_ttl", 0)
        .set("auth_query_negative_ttl", 0);
    let stage = Stage::on(database, topology, &[]);
    let name = role();
    for _ in 0..2 {
        assert_eq!(login(&stage, &name, PASSWORD), Ok(name.clone()));
        assert!(login(&stage, "nobody_at_all", PASSWORD).is_err());
    }
    assert_eq!(calls(&stage.database), "4");
});

/// Looks users up in a table of its own, by a function that counts.
fn listed(database: &Database) -> String {
    database.sql("create table users (name text, secret text)");
    counted(
        database,
        "select u.name, u.secret from public.users u where u.name = wanted",
    )
}

const NEGATIVE_TTL: Duration = Duration::from_secs(1);

/// A pool of 4, in which unknown users stay unknown for [`NEGATIVE_TTL`].
fn listed_stage(shards: usize) -> Stage {
    let database = Postgres::shared().database();
    let topology = topology(shards)
        .set("auth_query", listed(&database))
        .set("auth_query_negative_ttl", "1 s");
    Stage::on(database, topology, &[("user", "postgres")])
}

both_shards!(unknown_user_is_asked_for_once_in_a_negative_ttl, |shards| {
    let stage = listed_stage(shards);
    let begun = Instant::now();
    wait_until("a fourth question", || {
        assert!(login(&stage, "late", PASSWORD).is_err());
        calls(&stage.database) == "4"
    });
    let taken = begun.elapsed();
    assert!(taken >= 3 * NEGATIVE_TTL, "{taken:?}");
});

both_shards!(
    user_that_is_created_gets_in_after_the_negative_ttl,
    |shards| {
        let stage = listed_stage(shards);
        let begun = Instant::now();
        assert!(login(&stage, "late", PASSWORD).is_err());
        let create = format!("insert into users values ('late', '{PASSWORD}')");
        stage.database.sql(&create);
        wait_until("it is let in", || login(&stage, "late", PASSWORD).is_ok());
        assert!(begun.elapsed() >= NEGATIVE_TTL, "{:?}", begun.elapsed());
        assert_eq!(calls(&stage.database), "2");
    }
);

both_shards!(
    hundred_logins_of_an_unknown_user_at_once_ask_once,
    |shards| {
        // the answer comes when all wait for it; whoever is late all the same finds what is remembered
        let database = Postgres::shared().database();
        let topology = topology(shards)
            .set("auth_query", listed(&database))
            .set("auth_query_negative_ttl", "10 s");
        let stage = Stage::on(database, topology, &[("user", "postgres")]);
        let mut holder = stage.database.direct();
        holder.query("begin; lock table users");
        let mut crowd: Vec<Client> = (0..100).map(|_| Client::connect(stage.address())).collect();
        let knock = startup(
            PROTOCOL_3_0,
            &[("user", "late"), ("database", &stage.entry)],
        );
        crowd.iter_mut().for_each(|client| client.send(&knock));
        wait_asked(&stage.database);
        wait_logging_in(&stage, 100);
        assert!(crowd.iter_mut().all(|client| client.has_nothing_to_read()));
        assert_eq!(holder.query("commit").status, b'I');
        for client in &mut crowd {
            // AuthenticationSASL, as anybody gets.
            assert_eq!(client.expect(b'R').u32_at(0), 10);
        }
        assert_eq!(calls(&stage.database), "1");
    }
);

both_shards!(
    changed_password_is_noticed_by_the_login_that_fails,
    |shards| {
        let topology = topology(shards)
            .set("auth_query_ttl", "1 h")
            .set("auth_query_negative_ttl", 0);
        let stage = Stage::with_keys(topology, &[("user", "postgres")]);
        let name = role();
        assert!(login(&stage, &name, PASSWORD).is_ok());
        stage
            .database
            .sql(&format!("alter role {name} password 'newer'"));
        assert!(
            login(&stage, &name, "newer").is_err(),
            "the old answer is still used"
        );
        assert!(
            login(&stage, &name, "newer").is_ok(),
            "and doubted once it failed"
        );
    }
);

both_shards!(first_client_to_ask_may_leave, |shards| {
    let database = Postgres::shared().database();
    let query = counted(&database, STORED);
    let stage = Stage::on(database, topology(shards).set("auth_query", query), &[]);
    let name = role();
    let mut holder = delayed(&stage.database);
    let mut first = Client::connect(stage.address());
    first.send(&startup(
        PROTOCOL_3_0,
        &[("user", &name), ("database", &stage.entry)],
    ));
    wait_asked(&stage.database);
    thread::scope(|scope| {
        let second = scope.spawn(|| login(&stage, &name, PASSWORD));
        wait_logging_in(&stage, 2);
        drop(first);
        go_on(&mut holder);
        assert_eq!(second.join().unwrap(), Ok(name.clone()));
    });
    assert_eq!(calls(&stage.database), "1");
});

both_shards!(
    server_that_dies_in_the_query_fails_the_login_only,
    |shards| {
        let database = Postgres::shared().database();
        let query = counted(&database, STORED);
        let stage = Stage::on(database, topology(shards).set("auth_query", query), &[]);
        let name = role();
        let mut holder = delayed(&stage.database);
        thread::scope(|scope| {
            let victim = scope.spawn(|| login(&stage, &name, PASSWORD));
            wait_asked(&stage.database);
            assert_eq!(stage.database.kill_all(), 1);
            assert_eq!(text(victim.join().unwrap()), "bouncer config error");
        });
        go_on(&mut holder);
        assert_eq!(login(&stage, &name, PASSWORD), Ok(name));
        stage.wait_log("auth_query failed");
    }
);

both_shards!(lookups_keep_to_the_limits_of_their_pool, |shards| {
    let database = Postgres::shared().database();
    let query = counted(&database, STORED);
    let topology = topology(shards).set("auth_query", query).pool_size(1);
    let stage = Stage::on(database, topology, &[]);
    let names: Vec<_> = (0..4).map(|_| role()).collect();
    thread::scope(|scope| {
        for name in &names {
            scope.spawn(|| assert_eq!(login(&stage, name, PASSWORD), Ok(name.clone())));
        }
        wait_until("all have been looked up", || {
            assert!(
                stage
                    .database
                    .backends("usename = 'postgres' and state = 'active'")
                    <= 1
            );
            calls(&stage.database) == "4"
        });
    });
});

both_shards!(console_users_can_be_looked_up_in_auth_dbname, |shards| {
    let name = role();
    let database = Postgres::shared().database();
    let topology = topology(shards)
        .set("auth_dbname", database.name.clone())
        .set("admin_users", vec![name.clone()]);
    let stage = Stage::on(database, topology, &[]);
    // A driver's first query is none of the console's; the refusal shows that it is in.
    let outcome = driver::try_login(stage.address(), &name, PASSWORD, "ringbouncer");
    assert!(text(outcome) != "SASL authentication failed");
    let outcome = driver::try_login(stage.address(), &name, "wrong", "ringbouncer");
    assert_eq!(text(outcome), "SASL authentication failed");
    stage.signal(Signal::HUP);
});
