//! Limits on server connections that span pools: of a database, of a user, and who has to make room.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::wire::{PROTOCOL_3_0, complete, query, ready, startup};
use crate::support::*;

/// A login of its own; its pools are its own, too.
fn role(database: &Database, suffix: &str) -> String {
    let name = format!("{}_{suffix}", database.name);
    database.sql(&format!("create role \"{name}\" login"));
    name
}

fn client(stage: &Stage, entry: &str, user: &str) -> Client {
    Client::login_with(stage.address(), &[("user", user), ("database", entry)])
}

/// Each of these logs in as often as `clients` says and runs transactions.
fn run_clients(stage: &Stage, logins: &[(&str, &str)], clients: usize) {
    thread::scope(|scope| {
        for (entry, user) in logins {
            for id in 0..clients {
                scope.spawn(move || {
                    let mut client = client(stage, entry, user);
                    for n in 0..20 {
                        let mark = format!("{entry}/{user}/{id}/{n}");
                        assert_eq!(client.value(&format!("begin; select '{mark}'")), mark);
                        assert_eq!(client.query("commit").status, b'I');
                    }
                });
            }
        }
    });
}

fn database_limit_holds(shards: usize) {
    // two pools of 3 in one database that may have 4 connections
    let database = Postgres::shared().database();
    let (ann, bob) = (role(&database, "ann"), role(&database, "bob"));
    let topology = Topology::new(shards)
        .pool_size(3)
        .set("max_db_connections", 4)
        .user_secret(&ann, "")
        .user_secret(&bob, "");
    let stage = Stage::on(database, topology, &[]);
    let condition = "datname = current_database() and usename <> 'postgres'";
    let most = stage.database.most_backends(condition, || {
        run_clients(&stage, &[(&stage.entry, &ann), (&stage.entry, &bob)], 20);
    });
    assert!((2..=4).contains(&most), "{most} connections");
    stage.assert_no_leak();
}

both_shards!(
    all_pools_of_a_database_share_its_limit,
    database_limit_holds
);

#[test]
fn all_pools_of_a_database_share_its_limit_over_33_shards() {
    database_limit_holds(33);
}

both_shards!(all_pools_of_a_user_share_its_limit, |shards| {
    // two databases with pools of 3; the user may have 4 connections
    let (one, two) = (Postgres::shared().database(), Postgres::shared().database());
    let ann = role(&one, "ann");
    let topology = Topology::new(shards)
        .pool_size(3)
        .database("two", &two, &[])
        .user_secret(&ann, "")
        .user(&ann, "max_user_connections", 4);
    let stage = Stage::on(one, topology, &[]);
    let condition = format!("usename = '{ann}'");
    let most = stage.database.most_backends(&condition, || {
        run_clients(&stage, &[(&stage.entry, &ann), ("two", &ann)], 20);
    });
    assert!((2..=4).contains(&most), "{most} connections");
    wait_until("what is shown is what there is", || {
        let table = stage.console("SHOW USERS").table();
        let row = table.iter().find(|row| row["name"] == ann).unwrap();
        assert_eq!(row["max_user_connections"], "4");
        let left = stage.database.backends_anywhere(&condition);
        left > 0 && row["current_connections"] == left.to_string()
    });
});

both_shards!(longest_idle_server_of_another_pool_makes_room, |shards| {
    // two connections for the whole database, three pools
    let database = Postgres::shared().database();
    let users = ["ann", "bob", "cyd"].map(|suffix| role(&database, suffix));
    let with_secret = |topology: Topology, user: &String| topology.user_secret(user, "");
    let topology = users.iter().fold(Topology::new(shards), with_secret);
    let stage = Stage::on(database, topology.set("max_db_connections", 2), &[]);
    let [ann, bob, cyd] = &users;
    let mut of_ann = client(&stage, &stage.entry, ann);
    assert_eq!(of_ann.value("select 'ann'"), "ann");
    let mut of_bob = client(&stage, &stage.entry, bob);
    assert_eq!(of_bob.value("select 'bob'"), "bob");
    let mut of_cyd = client(&stage, &stage.entry, cyd);
    assert_eq!(of_cyd.value("select 'cyd'"), "cyd");
    let of = |user: &str| stage.database.backends(&format!("usename = '{user}'"));
    assert_eq!((of(ann), of(bob), of(cyd)), (0, 1, 1), "the longest idle");
    stage.wait_log("why=\"evicted for max_db_connections\"");
    // Who is busy is not evicted.
    assert_eq!(of_bob.query("begin").status, b'T');
    assert_eq!(of_cyd.query("begin").status, b'T');
    of_ann.send(&crate::support::wire::query("select 'late'"));
    wait_until("ann waits", || stage.pools(&stage.entry, "cl_waiting") > 0);
    assert_eq!((of(bob), of(cyd)), (1, 1));
    assert_eq!(of_bob.query("commit").status, b'I');
    assert_eq!(of_ann.reply().value(), "late");
    assert_eq!(of_cyd.query("commit").status, b'I');
});

/// Three servers for four pools: each time it is that of the pool that was used longest ago that makes room.
fn longest_idle_of_three_makes_room(stage: &Stage, logins: [(&str, &str); 4]) {
    let mut clients = logins.map(|(entry, user)| client(stage, entry, user));
    let mut pids: [Option<String>; 4] = Default::default();
    for (used, evicted) in [
        (0, None),
        (1, None),
        (2, None),
        (0, None),
        (3, Some(1)),
        (1, Some(2)),
        (2, Some(0)),
        (1, None),
        (0, Some(3)),
    ] {
        let before = pids[used].take();
        let pid = clients[used].value("select pg_backend_pid()");
        assert!(before.is_none_or(|before| before == pid), "pool {used}");
        pids[used] = Some(pid);
        if let Some(evicted) = evicted {
            let pid = pids[evicted].take().expect("a server");
            let count = stage.database.backends_anywhere(&format!("pid = {pid}"));
            assert_eq!(count, 0, "pool {evicted} makes room for {used}");
        }
        for pid in pids.iter().flatten() {
            let count = stage.database.backends_anywhere(&format!("pid = {pid}"));
            assert_eq!(count, 1, "one that was used later");
        }
    }
}

both_shards!(longest_idle_server_of_a_database_makes_room, |shards| {
    let database = Postgres::shared().database();
    let users = ["ann", "bob", "cyd", "dan"].map(|suffix| role(&database, suffix));
    let topology = Topology::new(shards).set("max_db_connections", 3);
    let with_secret = |topology: Topology, user: &String| topology.user_secret(user, "");
    let topology = users.iter().fold(topology, with_secret);
    let stage = Stage::on(database, topology, &[]);
    let logins = users.each_ref().map(|user| (&*stage.entry, &**user));
    longest_idle_of_three_makes_room(&stage, logins);
});

both_shards!(longest_idle_server_of_a_user_makes_room, |shards| {
    let database = Postgres::shared().database();
    let ann = role(&database, "ann");
    let entries = ["one", "two", "three", "four"];
    let topology =
        Topology::new(shards)
            .user_secret(&ann, "")
            .user(&ann, "max_user_connections", 3);
    let with_entry = |topology: Topology, entry: &&str| topology.database(entry, &database, &[]);
    let topology = entries.iter().fold(topology, with_entry);
    let stage = Stage::on(Postgres::shared().database(), topology, &[]);
    longest_idle_of_three_makes_room(&stage, entries.map(|entry| (entry, &*ann)));
});

both_shards!(lowered_database_limit_closes_what_is_too_much, |shards| {
    let database = Postgres::shared().database();
    let (ann, bob) = (role(&database, "ann"), role(&database, "bob"));
    let topology = |limit: u32| {
        Topology::new(shards)
            .user_secret(&ann, "")
            .user_secret(&bob, "")
            .set("max_db_connections", limit)
    };
    let stage = Stage::on(database, topology(4), &[]);
    let mut clients: Vec<_> = [&ann, &ann, &bob, &bob]
        .map(|user| client(&stage, &stage.entry, user))
        .into();
    for client in &mut clients {
        assert_eq!(client.query("begin").status, b'T');
    }
    stage.database.wait_backends(4, "usename <> 'postgres'");
    stage.rewrite(&topology(1).database(&stage.entry, &stage.database, &[]));
    assert_eq!(stage.console("RELOAD").complete, ["RELOAD"]);
    assert_eq!(
        stage.database.backends("state <> 'idle'"),
        4,
        "nobody is cut off"
    );
    for client in &mut clients {
        assert_eq!(client.query("commit").status, b'I');
    }
    stage.database.wait_backends(1, "usename <> 'postgres'");
    for client in &mut clients {
        assert_eq!(client.value("select 1"), "1");
    }
});

fn refusal(stage: &Stage, entry: &str, user: &str) -> String {
    let mut client = Client::connect(stage.address());
    let params = [("user", user), ("database", entry)];
    let reply = client.start(196_608, &params);
    assert_eq!(reply.code(), "08P01", "{reply:?}");
    client.expect_closed();
    reply.text().to_owned()
}

both_shards!(clients_of_a_database_and_of_a_user_are_limited, |shards| {
    // 3 clients for each database, 4 for ann; two databases
    let (one, two) = (Postgres::shared().database(), Postgres::shared().database());
    let (ann, bob) = (role(&one, "ann"), role(&one, "bob"));
    let topology = |limit: u32| {
        Topology::new(shards)
            .set("max_db_client_connections", limit)
            .database("two", &two, &[])
            .user_secret(&ann, "")
            .user_secret(&bob, "")
            .user(&ann, "max_user_client_connections", 4)
    };
    let stage = Stage::on(one, topology(3), &[]);
    let entry = stage.entry.as_str();
    let mut of_one: Vec<_> = [&ann, &ann, &bob]
        .map(|user| client(&stage, entry, user))
        .into();
    let of_database = "client connections exceeded (max_db_client_connections)";
    assert_eq!(refusal(&stage, entry, &bob), of_database);
    let _of_two = [&ann, &ann].map(|user| client(&stage, "two", user));
    let of_user = "client connections exceeded (max_user_client_connections)";
    assert_eq!(refusal(&stage, "two", &ann), of_user);
    let _another = client(&stage, "two", &bob);
    drop(of_one.pop());
    wait_until("a place is free", || stage.pools(entry, "cl_active") == 2);
    of_one.push(client(&stage, entry, &bob));
    assert_eq!(
        stage.console("SHOW STATS").complete,
        ["SHOW"],
        "the console has no limit"
    );
    stage.rewrite(&topology(4).database(entry, &stage.database, &[]));
    assert_eq!(stage.console("RELOAD").complete, ["RELOAD"]);
    of_one.push(client(&stage, entry, &bob));
    assert_eq!(refusal(&stage, entry, &bob), of_database);
    for client in &mut of_one {
        assert_eq!(client.value("select 1"), "1");
    }
    let table = stage.console("SHOW DATABASES").table();
    let row = table.iter().find(|row| row["name"] == entry).unwrap();
    let counts = ["max_client_connections", "current_client_connections"].map(|name| &row[name]);
    assert_eq!(counts, ["4", "4"]);
});

both_shards!(
    minimum_is_kept_for_a_forced_user_without_clients,
    |shards| {
        // pool of 4, of which 3 are to be open; servers that idle for a second close
        let topology = Topology::new(shards)
            .set("min_pool_size", 3)
            .set("server_idle_timeout", "1 s");
        let stage = Stage::with_keys(topology, &[("user", "postgres")]);
        stage.database.wait_backends(3, "true");
        assert_eq!(stage.database.kill_all(), 3);
        stage.database.wait_backends(3, "state = 'idle'");
        let mut clients: Vec<_> = (0..4).map(|_| stage.client()).collect();
        for client in &mut clients {
            assert_eq!(client.query("begin").status, b'T');
        }
        assert_eq!(stage.database.backends("true"), 4);
        drop(clients);
        stage.database.wait_backends(3, "state = 'idle'");
    }
);

both_shards!(
    minimum_is_kept_for_other_users_while_they_have_clients,
    |shards| {
        let topology = Topology::new(shards).set("min_pool_size", 3);
        let stage = Stage::pooled(topology.set("server_idle_timeout", "1 s"));
        assert_eq!(stage.database.backends("true"), 0);
        let _client = stage.client();
        stage.database.wait_backends(3, "true");
    }
);

both_shards!(
    reserve_helps_those_who_have_waited_and_goes_again,
    |shards| {
        // pool of 1, reserve of 1 after 1 s
        let topology = Topology::new(shards)
            .pool_size(1)
            .set("reserve_pool_size", 1)
            .set("reserve_pool_timeout", "1 s");
        let stage = Stage::pooled(topology);
        let [mut holder, mut second, mut third] = [(); 3].map(|()| stage.client());
        assert_eq!(holder.query("begin").status, b'T');
        let asked = Instant::now();
        assert_eq!(second.query("begin").status, b'T');
        assert!(
            asked.elapsed() >= Duration::from_secs(1),
            "{:?}",
            asked.elapsed()
        );
        stage.wait_log("taking connection from reserve_pool");
        third.send(&crate::support::wire::query("select 'third'"));
        wait_until("third waits", || {
            stage.pools(&stage.entry, "cl_waiting") == 1
        });
        assert_eq!(stage.database.backends("true"), 2);
        assert_eq!(second.query("commit").status, b'I');
        assert_eq!(third.reply().value(), "third");
        stage.database.wait_backends(1, "true");
        assert_eq!(holder.query("commit").status, b'I');
    }
);

/// Runs `work` while clients of each login have transactions.
fn under_load(stage: &Stage, logins: &[(&str, &str)], clients: usize, work: impl FnOnce()) {
    let is_over = AtomicBool::new(false);
    // All are inside before it begins: a pool that is busy makes no room for another.
    let come = |(entry, user): &(&str, &str)| client(stage, entry, user);
    let crowd: Vec<_> = logins.iter().cycle().take(clients).map(come).collect();
    thread::scope(|scope| {
        for (id, mut client) in crowd.into_iter().enumerate() {
            let is_over = &is_over;
            scope.spawn(move || {
                let mark = id.to_string();
                while !is_over.load(Ordering::Acquire) {
                    assert_eq!(client.value(&format!("begin; select '{mark}'")), mark);
                    assert_eq!(client.query("commit").status, b'I');
                }
            });
        }
        let _over = wait::Over(&is_over);
        work();
    });
}

/// Waits for so many more transactions of all logins together.
fn wait_transactions(stage: &Stage, logins: &[(&str, &str)], count: u64) {
    let entries: BTreeSet<_> = logins.iter().map(|(entry, _)| *entry).collect();
    let of = |entry: &&str| stage.stats(entry, "total_xact_count");
    let served = || entries.iter().map(of).sum::<u64>();
    let enough = served() + count;
    wait_until("transactions", || served() >= enough);
}

/// Under load, lowers and raises a limit from 8 by what `topology` makes of each size: the connections for which
/// `condition` holds are never more than before or now, and once they are as few as are now allowed never more.
fn limit_holds_across_reloads(
    stage: &Stage,
    logins: &[(&str, &str)],
    condition: &str,
    topology: impl Fn(u32) -> Topology,
) {
    let database = &stage.database;
    under_load(stage, logins, 24, || {
        let mut before = 8;
        for size in [2, 8, 3, 6, 1] {
            let during = database.most_backends(condition, || {
                stage.rewrite(&topology(size).database(&stage.entry, database, &[]));
                assert_eq!(stage.console("RELOAD").complete, ["RELOAD"]);
            });
            let most = size.max(before);
            assert!(during <= most, "{during} while {size} came into force");
            wait_until("too many have gone", || {
                database.backends_anywhere(condition) <= size
            });
            let after = database.most_backends(condition, || {
                wait_transactions(stage, logins, 200);
            });
            assert!((1..=size).contains(&after), "{after} of {size}");
            before = size;
        }
    });
    stage.assert_no_leak();
}

const OF_POOL: &str = "datname = current_database()";

both_shards!(reload_that_lowers_a_limit_lets_nobody_above_it, |shards| {
    let topology = |size| Topology::new(shards).pool_size(size);
    let stage = Stage::pooled(topology(8));
    let logins = [(&*stage.entry, "postgres")];
    limit_holds_across_reloads(&stage, &logins, OF_POOL, topology);
});

both_shards!(
    reload_that_lowers_the_reserve_lets_nobody_above_it,
    |shards| {
        // a pool of 1, and as many more in need as make up the size
        let topology = |size: u32| {
            Topology::new(shards)
                .pool_size(1)
                .set("reserve_pool_size", size - 1)
                .set("reserve_pool_timeout", "1 ms")
        };
        let stage = Stage::pooled(topology(8));
        let logins = [(&*stage.entry, "postgres")];
        limit_holds_across_reloads(&stage, &logins, OF_POOL, topology);
    }
);

both_shards!(
    reload_that_exchanges_servers_for_a_reserve_keeps_the_sum,
    |shards| {
        // 2 and a reserve of 6, then 6 and none, and back: never 12, and of 6 and none never 8
        let topology = |size: u32, reserve: u32| {
            Topology::new(shards)
                .pool_size(size)
                .set("reserve_pool_size", reserve)
                .set("reserve_pool_timeout", "1 ms")
        };
        let stage = Stage::pooled(topology(2, 6));
        let logins = [(&*stage.entry, "postgres")];
        under_load(&stage, &logins, 24, || {
            let most = stage.database.most_backends(OF_POOL, || {
                for (size, reserve) in [(6, 0), (2, 6), (6, 0), (2, 6), (6, 0)] {
                    let next = topology(size, reserve);
                    stage.rewrite(&next.database(&stage.entry, &stage.database, &[]));
                    assert_eq!(stage.console("RELOAD").complete, ["RELOAD"]);
                    wait_transactions(&stage, &logins, 50);
                }
            });
            assert!((6..=8).contains(&most), "{most} connections");
        });
        stage.assert_no_leak();
    }
);

both_shards!(
    reload_that_lowers_the_limit_of_a_database_lets_nobody_above_it,
    |shards| {
        // two pools of 8 in one database
        let database = Postgres::shared().database();
        let (ann, bob) = (role(&database, "ann"), role(&database, "bob"));
        let topology = |limit: u32| {
            Topology::new(shards)
                .pool_size(8)
                .set("max_db_connections", limit)
                .user_secret(&ann, "")
                .user_secret(&bob, "")
        };
        let stage = Stage::on(database, topology(8), &[]);
        let logins = [&ann, &bob].map(|user| (&*stage.entry, &**user));
        let condition = format!("{OF_POOL} and usename in ('{ann}', '{bob}')");
        limit_holds_across_reloads(&stage, &logins, &condition, topology);
    }
);

both_shards!(
    reload_that_lowers_the_limit_of_a_user_lets_nobody_above_it,
    |shards| {
        // pools of 8 in two databases
        let (one, two) = (Postgres::shared().database(), Postgres::shared().database());
        let ann = role(&one, "ann");
        let topology = |limit: u32| {
            Topology::new(shards)
                .pool_size(8)
                .database("two", &two, &[])
                .user_secret(&ann, "")
                .user(&ann, "max_user_connections", limit)
        };
        let stage = Stage::on(one, topology(8), &[]);
        let logins = [(&*stage.entry, &*ann), ("two", &ann)];
        let condition = format!("usename = '{ann}'");
        limit_holds_across_reloads(&stage, &logins, &condition, topology);
    }
);

/// 2 connections for the user ann, 4 for every other, of pools of 8.
#[test]
fn a_user_keeps_no_limit_of_a_line_that_is_gone() {
    let database = Postgres::shared().database();
    let ann = role(&database, "ann");
    let without = Topology::new(3)
        .pool_size(8)
        .set("max_user_connections", 4)
        .user_secret(&ann, "");
    let with = without.clone().user(&ann, "max_user_connections", 2);
    let stage = Stage::on(database, with, &[]);
    let mut clients: Vec<_> = (0..4).map(|_| client(&stage, &stage.entry, &ann)).collect();
    let (early, late) = clients.split_at_mut(2);
    for client in early {
        assert_eq!(client.query("begin").status, b'T');
    }
    late.iter_mut()
        .for_each(|client| client.send(&query("begin")));
    wait_until("two wait", || stage.pools(&stage.entry, "cl_waiting") == 2);
    stage.rewrite(&without.database(&stage.entry, &stage.database, &[]));
    assert_eq!(stage.console("RELOAD").complete, ["RELOAD"]);
    for client in late {
        assert_eq!(client.reply().status, b'T');
    }
    assert_eq!(stage.pools(&stage.entry, "sv_active"), 4);
}

/// A setting that limits clients, of everybody or of a user.
type ClientLimit = fn(Topology, &str, u32) -> Topology;

/// What those who are too many are told.
const CLIENT_LIMITS: [(ClientLimit, &str); 3] = [
    (
        |topology, _, limit| topology.set("max_client_conn", limit),
        "no more connections allowed (max_client_conn)",
    ),
    (
        |topology, _, limit| topology.set("max_db_client_connections", limit),
        "client connections exceeded (max_db_client_connections)",
    ),
    (
        |topology, user, limit| topology.user(user, "max_user_client_connections", limit),
        "client connections exceeded (max_user_client_connections)",
    ),
];

both_shards!(
    reload_that_lowers_a_limit_on_clients_lets_nobody_in_above_it,
    |shards| {
        // 4 may be here, then 2: those who are here stay, and nobody comes in until only one of them is left
        for (limited, told) in CLIENT_LIMITS {
            let database = Postgres::shared().database();
            let ann = role(&database, "ann");
            let topology =
                |limit| limited(Topology::new(shards).user_secret(&ann, ""), &ann, limit);
            let stage = Stage::on(database, topology(4), &[]);
            let here = || stage.pools(&stage.entry, "cl_active");
            let assert_full = || assert_eq!(refusal(&stage, &stage.entry, &ann), told);
            let mut clients: Vec<_> = (0..4).map(|_| client(&stage, &stage.entry, &ann)).collect();
            assert_full();
            stage.rewrite(&topology(2).database(&stage.entry, &stage.database, &[]));
            assert_eq!(stage.console("RELOAD").complete, ["RELOAD"]);
            for left in [4, 3, 2] {
                wait_until("who has left is gone", || here() == left);
                for client in &mut clients {
                    assert_eq!(client.value("select 'here'"), "here");
                }
                assert_full();
                drop(clients.pop());
            }
            wait_until("one is left", || here() == 1);
            clients.push(client(&stage, &stage.entry, &ann));
            assert_full();
        }
    }
);

/// 100 clients come at once, and 20 may be in.
fn crowd_gets_as_many_places_as_there_are(shards: usize, limit: &str, told: &str) {
    let topology = Topology::new(shards).pool_size(4).set(limit, 20);
    let stage = Stage::pooled(topology);
    let (is_over, inside) = (AtomicBool::new(false), AtomicUsize::new(0));
    let refused = thread::scope(|scope| {
        let crowd: Vec<_> = (0..100)
            .map(|_| {
                scope.spawn(|| {
                    let mut client = Client::connect(stage.address());
                    let params = [("user", "postgres"), ("database", &*stage.entry)];
                    let reply = client.start(PROTOCOL_3_0, &params);
                    if reply.error.is_some() {
                        reply.assert_fatal(told);
                        return 1;
                    }
                    inside.fetch_add(1, Ordering::AcqRel);
                    while !is_over.load(Ordering::Acquire) {
                        assert_eq!(client.value("select 'inside'"), "inside");
                    }
                    0
                })
            })
            .collect();
        wait_until("everybody is in or refused", || {
            let done = crowd.iter().filter(|one| one.is_finished()).count();
            done + inside.load(Ordering::Acquire) == crowd.len()
        });
        is_over.store(true, Ordering::Release);
        crowd
            .into_iter()
            .map(|one| one.join().unwrap())
            .sum::<usize>()
    });
    assert_eq!((inside.into_inner(), refused), (20, 80));
    stage.assert_no_leak();
}

both_shards!(crowd_gets_all_places_of_the_pooler, |shards| {
    let told = "no more connections allowed (max_client_conn)";
    crowd_gets_as_many_places_as_there_are(shards, "max_client_conn", told);
});

both_shards!(crowd_gets_all_places_of_its_database, |shards| {
    let told = "client connections exceeded (max_db_client_connections)";
    crowd_gets_as_many_places_as_there_are(shards, "max_db_client_connections", told);
});

both_shards!(crowd_gets_all_places_of_its_user, |shards| {
    let told = "client connections exceeded (max_user_client_connections)";
    crowd_gets_as_many_places_as_there_are(shards, "max_user_client_connections", told);
});

both_shards!(
    place_of_a_closed_server_is_free_once_it_has_hung_up,
    |shards| {
        // a pool of 1 before a server that takes its time to leave
        let [is_told, may_leave] = [(); 2].map(|_| Arc::new(AtomicBool::new(false)));
        let (told, leave) = (is_told.clone(), may_leave.clone());
        let server = FakeServer::start(move |mut server| {
            if !server.login() {
                return;
            }
            if told.load(Ordering::Acquire) {
                return server.serve("served");
            }
            server.next_request();
            server.send(&[complete("BEGIN"), ready(b'T')].concat());
            server.wait_closed();
            told.store(true, Ordering::Release);
            server.stall_until(&leave);
        });
        let topology = Topology::new(shards).pool_size(1);
        let stage = Stage::pooled(topology.database_at("slow", server.address, &[]));
        let mut leaver = Client::login(stage.address(), "slow");
        assert_eq!(leaver.query("begin").status, b'T');
        drop(leaver);
        wait_until("the server is told", || is_told.load(Ordering::Acquire));
        let mut client = Client::login(stage.address(), "slow");
        client.send(&query("select 1"));
        wait_until("it waits", || stage.pools("slow", "cl_waiting") == 1);
        assert_eq!(server.connections(), 1);
        may_leave.store(true, Ordering::Release);
        assert_eq!(client.reply().value(), "served");
    }
);

both_shards!(
    server_of_a_client_that_vanished_in_mid_query_is_cancelled,
    |shards| {
        // a pool of 1: the next client needs the place of a query that would last a minute
        let database = Postgres::shared().database();
        let ann = role(&database, "ann");
        let topology = Topology::new(shards).pool_size(1).user_secret(&ann, "");
        let stage = Stage::on(database, topology, &[]);
        let most = stage
            .database
            .most_backends(&format!("usename = '{ann}'"), || {
                for _ in 0..5 {
                    let mut leaver = client(&stage, &stage.entry, &ann);
                    leaver.send(&query("select pg_sleep(60)"));
                    stage.database.wait_backends(1, "wait_event = 'PgSleep'");
                    drop(leaver);
                    let mut next = client(&stage, &stage.entry, &ann);
                    assert_eq!(next.value("select 'next'"), "next");
                }
            });
        assert!(most <= 1, "{most} connections");
        stage.assert_no_leak();
    }
);

/// A storm of logins: who takes part, and how many found no place.
struct Storm {
    is_over: AtomicBool,
    turned_away: AtomicUsize,
}

impl Storm {
    const USERS: usize = 4000;
    const THREADS: usize = 12;
    const AT_ONCE: usize = 25;

    /// Every user has a secret of the most expensive kind: a key has to be made of it.
    fn with_users(topology: Topology) -> Topology {
        (0..Storm::USERS).fold(topology, |topology, number| {
            topology.user_secret(&format!("storm{number}"), &format!("secret {number}"))
        })
    }

    /// One thread's part, until it is over: so many log in together, and prove nothing.
    fn rage(&self, stage: &Stage, thread: usize) {
        let mut users = (thread..Storm::USERS).step_by(Storm::THREADS).cycle();
        while !self.is_over.load(Ordering::Acquire) {
            let mut clients: Vec<_> = users
                .by_ref()
                .take(Storm::AT_ONCE)
                .map(|user| self.knocking(stage, user))
                .collect();
            clients.retain_mut(|client| self.is_asked(client, &scram::initial("n,,n=,r=abcdef")));
            for client in &mut clients {
                let challenge = client.expect(b'R');
                let server_first = scram::server_first(&challenge.body);
                client.send(&scram::wrong_final(&server_first));
            }
            for client in &mut clients {
                client.reply().fatal();
            }
        }
    }

    fn knocking(&self, stage: &Stage, user: usize) -> Client {
        let mut client = Client::connect(stage.address());
        let user = format!("storm{user}");
        let params = [("user", &*user), ("database", &*stage.entry)];
        client.send(&startup(PROTOCOL_3_0, &params));
        client
    }

    /// Answers a client's challenge; false if there was no place for it.
    fn is_asked(&self, client: &mut Client, answer: &[u8]) -> bool {
        let message = client.read();
        if message.tag == b'E' {
            assert!(message.failure().text.contains("max_client_conn"));
            self.turned_away.fetch_add(1, Ordering::AcqRel);
            return false;
        }
        client.send(answer);
        true
    }
}

/// More than a login and an answer may take, the machine's own delays aside.
const OPERATOR_PATIENCE: Duration = Duration::from_secs(1);

/// Ends the storm, also when the test fails.
struct Calm<'a>(&'a Storm);

impl Drop for Calm<'_> {
    fn drop(&mut self) {
        self.0.is_over.store(true, Ordering::Release);
    }
}

both_shards!(
    operators_get_in_and_are_answered_during_a_storm_of_logins,
    |shards| {
        // 300 logins at a time for 200 places
        let _alone = wait::alone();
        let topology = Topology::new(shards)
            .set("auth_type", "scram-sha-256")
            .set("admin_users", vec!["operator"])
            .set("max_client_conn", 200)
            .user_secret("operator", "of the operator");
        let stage = Stage::pooled(Storm::with_users(topology));
        let storm = Storm {
            is_over: AtomicBool::new(false),
            turned_away: AtomicUsize::new(0),
        };
        let turned_away = || storm.turned_away.load(Ordering::Acquire);
        let by_password = || {
            let mut client = Client::connect(stage.address());
            let reply = scram::login(&mut client, "operator", "pgbouncer", "of the operator");
            assert_eq!(reply.status, b'I', "{reply:?}");
            assert_eq!(client.query("SHOW POOLS").complete, ["SHOW"]);
        };
        let by_owning = || assert_eq!(stage.as_owner("SHOW POOLS").complete, ["SHOW"]);
        thread::scope(|scope| {
            for thread in 0..Storm::THREADS {
                let (storm, stage) = (&storm, &stage);
                scope.spawn(move || storm.rage(stage, thread));
            }
            let _calm = Calm(&storm);
            let mut taken = [Vec::new(), Vec::new()];
            for _ in 0..10 {
                let before = turned_away();
                wait_until("no place is left", || turned_away() > before);
                taken[0].push(wait::time_of(by_password));
                taken[1].push(wait::time_of(by_owning));
            }
            for mut taken in taken {
                taken.sort_unstable();
                assert!(taken[taken.len() / 2] < OPERATOR_PATIENCE, "{taken:?}");
            }
        });
        stage.wait_log("login failed");
    }
);
