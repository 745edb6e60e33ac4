//! Hundreds of clients doing everything at once, seeded: TORTURE_SECONDS (8), TORTURE_SEED (the clock).
//!
//! Half of them are tidy: they ask one thing at a time, so that SHOW STATS must agree with them to the last
//! transaction. The others also pipeline, cancel, vanish and talk nonsense, in a database of their own.
//! Every reply is checked to be the answer to what this client asked last.

use std::ops::AddAssign;
use std::thread;
use std::time::Instant;

use crate::support::random::{Random, seed_from_env};
use crate::support::wait::{alone, seconds_from_env};
use crate::support::wire::*;
use crate::support::*;

const TIDY: u64 = 120;
const WILD: u64 = 120;
const POOL_SIZE: u32 = 8;

#[test]
fn every_reply_belongs_to_its_asker_and_the_counters_agree() {
    // 3 shards; two databases, pools of POOL_SIZE; transaction mode
    let _alone = alone();
    let seed = seed_from_env("TORTURE_SEED");
    let postgres = Postgres::shared();
    let (tidy, wild) = (postgres.database(), postgres.database());
    for database in [&tidy, &wild] {
        database.sql("create table t(client int, n int)");
    }
    let topology = Topology::new(3)
        .pool_size(POOL_SIZE)
        .database("wild", &wild, &[]);
    let stage = Stage::on(tidy, topology, &[]);
    let descriptors = stage.descriptors();
    // Not before: on a busy disk PostgreSQL takes its time to begin.
    let until = Instant::now() + seconds_from_env("TORTURE_SECONDS", 8);
    let tally = run_everybody(&stage, seed, until);
    println!("{tally:?}");
    check_counters(&stage, &tally);
    check_nothing_is_left(&stage, &wild, descriptors);
}

fn run_everybody(stage: &Stage, seed: u64, until: Instant) -> Tally {
    thread::scope(|scope| {
        let tidy: Vec<_> = (0..TIDY)
            .map(|id| {
                scope.spawn(move || {
                    let mut actor = Actor::new(stage, &stage.entry, id, seed);
                    while Instant::now() < until {
                        actor.act_tidily();
                    }
                    actor.client.send(&terminate());
                    actor.client.expect_closed();
                    actor.tally
                })
            })
            .collect();
        let wild_ones: Vec<_> = (TIDY..TIDY + WILD)
            .map(|id| {
                scope.spawn(move || {
                    let mut actor = Actor::new(stage, "wild", id, seed);
                    while Instant::now() < until {
                        actor.act_wildly();
                    }
                })
            })
            .collect();
        let watch = scope.spawn(move || watch_pool_size(stage, until));
        let mut sum = Tally::default();
        tidy.into_iter()
            .for_each(|actor| sum += actor.join().expect("a tidy client"));
        wild_ones
            .into_iter()
            .for_each(|actor| actor.join().expect("a wild client"));
        watch.join().expect("the watch");
        sum
    })
}

/// The tidy ones break no server connection, so their pool must look exact to PostgreSQL at every moment. The wild
/// ones do: backends whose connection was closed may still be ending while their successors start.
fn watch_pool_size(stage: &Stage, until: Instant) {
    let mut direct = stage.database.direct();
    let sql = format!(
        "select string_agg(concat_ws(' ', pid, state, backend_start, query), e'\\n') {CLIENT_BACKENDS}"
    );
    while Instant::now() < until {
        let backends = direct.value(&sql);
        let count = backends.lines().count();
        assert!(count <= POOL_SIZE as usize, "{count} backends:\n{backends}");
    }
}

fn check_counters(stage: &Stage, tally: &Tally) {
    assert_eq!(stage.stats(&stage.entry, "total_client_login_count"), TIDY);
    assert_eq!(
        stage.stats(&stage.entry, "total_xact_count"),
        tally.transactions
    );
    assert_eq!(
        stage.stats(&stage.entry, "total_query_count"),
        tally.queries
    );
    assert!(stage.stats("wild", "total_xact_count") > 0);
}

fn check_nothing_is_left(stage: &Stage, wild: &Database, descriptors: usize) {
    stage.assert_no_leak();
    for column in [
        "cl_active",
        "cl_waiting",
        "sv_active",
        "sv_active_cancel",
        "sv_being_canceled",
        "sv_login",
    ] {
        wait_until("the wild pool is quiet", || {
            stage.pools("wild", column) == 0
        });
    }
    for database in [&stage.database, wild] {
        database.wait_backends(0, "state <> 'idle'");
        wait_until("the pool has its size", || {
            database.backends("true") <= POOL_SIZE as usize
        });
    }
    let most = descriptors + 2 * POOL_SIZE as usize + 4;
    wait_until("descriptors are closed", || stage.descriptors() <= most);
}

/// What the tidy clients did.
#[derive(Debug, Default)]
struct Tally {
    transactions: u64,
    queries: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.transactions += other.transactions;
        self.queries += other.queries;
    }
}

struct Actor<'a> {
    stage: &'a Stage,
    entry: &'a str,
    id: u64,
    random: Random,
    asked: u64,
    prepared: u64,
    client: Client,
    tally: Tally,
}

impl<'a> Actor<'a> {
    fn new(stage: &'a Stage, entry: &'a str, id: u64, seed: u64) -> Actor<'a> {
        let random = Random::new(seed ^ id.wrapping_mul(0x9e37_79b9));
        let client = Client::login(stage.address(), entry);
        Actor {
            stage,
            entry,
            id,
            random,
            asked: 0,
            prepared: 0,
            client,
            tally: Tally::default(),
        }
    }

    /// A value that nobody else asks for.
    fn mark(&mut self) -> String {
        self.asked += 1;
        format!("{}/{}", self.id, self.asked)
    }

    fn exchange(&mut self, bytes: &[u8]) -> peer::Reply {
        self.tally.queries += 1;
        let reply = self.client.exchange(bytes);
        assert!(!reply.closed, "client {}: {reply:?}", self.id);
        reply
    }

    #[track_caller]
    fn control(&mut self, sql: &str, status: u8) {
        let reply = self.exchange(&query(sql));
        assert_eq!(
            (reply.status, reply.code()),
            (status, ""),
            "{sql}: {reply:?}"
        );
    }

    fn select(&mut self) {
        let mark = self.mark();
        let rows = self.random.below(30) + 1;
        let filler = self.random.below(3000);
        let sql =
            format!("select '{mark}', repeat('{mark}', {filler}) from generate_series(1, {rows})");
        let reply = self.exchange(&query(&sql));
        assert_eq!(reply.rows.len() as u64, rows, "{reply:?}");
        let expected = [Some(mark.clone()), Some(mark.repeat(filler as usize))];
        assert!(
            reply.rows.iter().all(|row| row[..] == expected),
            "client {}: foreign rows",
            self.id
        );
    }

    fn select_extended(&mut self) {
        let mark = self.mark();
        let reply = self.exchange(&extended("select $1 || pg_backend_pid()::text", &[&mark]));
        assert!(
            reply.tags == "12TDCZ" && reply.value().starts_with(&mark),
            "{mark}: {reply:?}"
        );
    }

    /// Every client uses the same statement names, each with texts of its own.
    fn select_prepared(&mut self) {
        let (name, id) = (format!("s{}", self.prepared % 7), self.id);
        if self.prepared < 7 {
            let text = format!("select $1 || ' {id} {name}'");
            assert_eq!(
                self.exchange(&[parse(&name, &text), sync()].concat()).tags,
                "1Z"
            );
            self.tally.transactions += 1;
        }
        self.prepared += 1;
        let mark = self.mark();
        let reply = self.exchange(&[run_prepared(&name, &[&mark]), sync()].concat());
        assert_eq!(
            (reply.tags.as_str(), reply.value()),
            ("2DCZ", format!("{mark} {id} {name}"))
        );
    }

    fn fail(&mut self, status: u8) {
        let mark = self.mark();
        let reply = self.exchange(&query(&format!("select '{mark}'::int")));
        assert!(
            reply.code() == "22P02" && reply.text().contains(&mark),
            "{mark}: {reply:?}"
        );
        assert_eq!(reply.status, status);
    }

    fn copy_out(&mut self) {
        let mark = self.mark();
        let sql = format!("copy (select '{mark}' from generate_series(1, 50)) to stdout");
        self.tally.queries += 1;
        self.client.send(&query(&sql));
        self.client.expect(b'H');
        for _ in 0..50 {
            assert_eq!(
                self.client.expect(b'd').body,
                format!("{mark}\n").as_bytes()
            );
        }
        self.client.expect(b'c');
        assert_eq!(self.client.reply().complete, ["COPY 50"]);
    }

    fn copy_in(&mut self, good: bool) {
        self.tally.queries += 1;
        self.client.send(&query("copy t from stdin"));
        self.client.expect(b'G');
        let rows: String = (0..20).map(|n| format!("{}\t{n}\n", self.id)).collect();
        self.client.send(&copy_data(rows.as_bytes()));
        let end = if good {
            copy_done()
        } else {
            copy_fail("never mind")
        };
        let reply = self.client.exchange(&end);
        assert_eq!(reply.code(), if good { "" } else { "57014" }, "{reply:?}");
    }

    /// Several requests inside BEGIN, then COMMIT or ROLLBACK.
    fn transaction(&mut self) {
        self.control("begin", b'T');
        let mut end = "commit";
        for _ in 0..self.random.below(4) {
            match self.random.below(6) {
                0 | 1 => self.select(),
                2 => self.select_extended(),
                3 => self.copy_out(),
                4 => {
                    self.copy_in(true);
                    let sql = format!("select count(*) >= 20 from t where client = {}", self.id);
                    assert_eq!(self.exchange(&query(&sql)).value(), "t");
                    end = "rollback";
                }
                _ => {
                    self.fail(b'E');
                    end = "rollback";
                    break;
                }
            }
        }
        self.control(end, b'I');
    }

    fn act_tidily(&mut self) {
        match self.random.below(10) {
            0..=2 => self.transaction(),
            3 | 4 => self.select(),
            5 => self.select_extended(),
            6 => self.select_prepared(),
            7 => self.fail(b'I'),
            8 => self.copy_out(),
            _ => self.copy_in(false),
        }
        self.tally.transactions += 1;
    }

    fn act_wildly(&mut self) {
        match self.random.below(12) {
            0..=4 => self.act_tidily(),
            5 | 6 => self.pipeline(),
            7 => self.cancel_oneself(),
            8 => self.vanish_after("begin; select 1"),
            9 => self.vanish_after("copy t from stdin"),
            10 => self.vanish_after("select repeat('x', 50000) from generate_series(1, 100)"),
            _ => self.talk_nonsense(),
        }
    }

    fn pipeline(&mut self) {
        let count = self.random.below(20) + 2;
        let marks: Vec<String> = (0..count).map(|_| self.mark()).collect();
        let bad = self.random.below(count * 2) as usize;
        let request = |(n, mark): (usize, &String)| match (n == bad, n % 2) {
            (true, _) => extended("select $1::int", &[mark]),
            (false, 0) => extended("select $1", &[mark]),
            (false, _) => query(&format!("select '{mark}'")),
        };
        self.client.send(
            &marks
                .iter()
                .enumerate()
                .flat_map(request)
                .collect::<Vec<u8>>(),
        );
        for (n, mark) in marks.iter().enumerate() {
            let reply = self.client.reply();
            let right = if n == bad {
                reply.text().contains(mark)
            } else {
                reply.value() == *mark
            };
            assert!(right, "client {} expected {mark}: {reply:?}", self.id);
        }
    }

    fn cancel_oneself(&mut self) {
        let mark = self.mark();
        self.client
            .send(&query(&format!("select '{mark}' from pg_sleep(0.01)")));
        peer::cancel(self.stage.address(), &self.client.key);
        let reply = self.client.reply();
        assert!(
            reply.value() == mark || reply.code() == "57014",
            "client {}: {reply:?}",
            self.id
        );
    }

    fn vanish_after(&mut self, sql: &str) {
        self.client.send(&query(sql));
        if self.random.below(2) == 0 {
            self.client.read();
        }
        let successor = Client::login(self.stage.address(), self.entry);
        let old = std::mem::replace(&mut self.client, successor);
        self.prepared = 0;
        if self.random.below(2) == 0 {
            old.reset();
        }
    }

    fn talk_nonsense(&mut self) {
        let length = self.random.below(4) as i32;
        self.client
            .send_anyway(&with_length(b'Q', b"nonsense", length));
        while !self.client.reply().closed {}
        self.client = Client::login(self.stage.address(), self.entry);
        self.prepared = 0;
    }
}
