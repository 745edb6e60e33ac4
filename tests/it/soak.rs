//! A low steady load with bursts: where a lost wake-up shows as a stall. SOAK_SECONDS (8).

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::wait::{alone, pace_until, seconds_from_env};
use crate::support::*;

const CLIENTS: u32 = 4;
const TRANSACTIONS_PER_SECOND: u32 = 300;
const BURST_CLIENTS: u32 = 200;
const BURST_EVERY: Duration = Duration::from_secs(3);
/// Threads that measure the machine's own stalls, and how often each looks.
const CANARIES: usize = 3;
const CANARY_STEP: Duration = Duration::from_millis(2);
/// A stall of the machine excuses what happened this close to it: a core that was taken away hits several threads,
/// one after the other.
const NEAR: Duration = Duration::from_millis(300);
/// How much longer than PostgreSQL itself, at the same time, a transaction may take, the shards' time without a core aside.
const STALL: Duration = Duration::from_millis(100);
/// The same while a burst logs in and stands in line before it, and for the burst itself: 200 threads compete for the cores as
/// well. Less than what it takes until the upkeep finds mail whose wake-up was lost.
const STALL_IN_BURST: Duration = Duration::from_millis(250);

both_shards!(no_transaction_stalls, |shards| {
    let _alone = alone();
    let stage = Stage::pooled(Topology::new(shards).pool_size(20));
    let start = Instant::now();
    let until = start + seconds_from_env("SOAK_SECONDS", 8);
    let straight = stage.database.postgres.address();
    let queues = Queues::of(&stage);
    let (pooled, mut direct, (bursts, in_bursts)) = thread::scope(|scope| {
        let bursts = scope.spawn(|| run_bursts(&stage, &queues, until));
        let canaries: Steady = (0..CANARIES)
            .map(|_| scope.spawn(move || canary(until)))
            .collect();
        let direct = spawn_steady(scope, straight, &stage.entry, (start, until), None);
        let address = stage.address();
        let pooled = spawn_steady(scope, address, &stage.entry, (start, until), Some(&queues));
        (
            collect(pooled),
            collect(direct)
                .into_iter()
                .chain(collect(canaries))
                .collect::<Vec<_>>(),
            bursts.join().expect("the bursts"),
        )
    });
    direct.retain(|sample| sample.took > Duration::from_millis(5));
    let (mut bursty, calm): (Vec<_>, Vec<_>) = pooled
        .into_iter()
        .partition(|sample| bursts.iter().any(|burst| burst.overlaps(sample)));
    bursty.extend(in_bursts);
    let (worst, worst_in_burst) = (worst_excess(&calm, &direct), worst_excess(&bursty, &direct));
    println!(
        "{} transactions, worst {worst:?} beyond direct and canaries",
        calm.len()
    );
    println!(
        "{} transactions in {} bursts, worst {worst_in_burst:?} beyond direct",
        bursty.len(),
        bursts.len()
    );
    println!(
        "worst direct: {:?}",
        direct.iter().map(|sample| sample.took).max()
    );
    let late = stage.console("SHOW SHARDS").table();
    let late: Vec<_> = late.iter().map(|row| &row["late_wakeups"]).collect();
    println!("late wake-ups of each shard: {late:?}");
    assert!(worst <= STALL, "a transaction stalled for {worst:?}");
    assert!(
        worst_in_burst <= STALL_IN_BURST,
        "a transaction stalled for {worst_in_burst:?} in a burst"
    );
    stage.assert_no_leak();
});

/// One transaction, or one burst: when it began, how long it took.
struct Sample {
    began: Instant,
    took: Duration,
}

impl Sample {
    fn of(work: impl FnOnce()) -> Sample {
        let began = Instant::now();
        work();
        Sample::since(began)
    }

    fn since(began: Instant) -> Sample {
        Sample {
            began,
            took: began.elapsed(),
        }
    }

    fn overlaps(&self, other: &Sample) -> bool {
        other.began <= self.began + self.took + NEAR
            && self.began <= other.began + other.took + NEAR
    }
}

/// What the kernel says of the threads that are shards: for how long each could have run, and had no core.
struct Queues(Vec<PathBuf>);

impl Queues {
    fn of(pooler: &Pooler) -> Queues {
        let threads = fs::read_dir(format!("/proc/{}/task", pooler.pid())).unwrap();
        let is_shard = |path: &PathBuf| {
            fs::read_to_string(path.join("comm")).is_ok_and(|name| name.starts_with("shard-"))
        };
        let shards = threads.map(|entry| entry.unwrap().path()).filter(is_shard);
        let files: Vec<_> = shards.map(|path| path.join("schedstat")).collect();
        assert!(files.len() >= pooler.shards, "{files:?}");
        Queues(files)
    }

    /// All their time in the queue; zero from a kernel that does not count it.
    fn waited(&self) -> Duration {
        let of = |path: &PathBuf| {
            let text = fs::read_to_string(path).unwrap_or_default();
            let waited = text.split_whitespace().nth(1);
            waited.map_or(0, |nanos| nanos.parse().unwrap())
        };
        Duration::from_nanos(self.0.iter().map(of).sum())
    }

    /// How long `work` takes, less that time.
    fn sample(&self, work: impl FnOnce()) -> Sample {
        let before = self.waited();
        let mut sample = Sample::of(work);
        sample.took = sample.took.saturating_sub(self.waited() - before);
        sample
    }
}

/// A thread that only sleeps: how late it wakes is the machine's doing.
fn canary(until: Instant) -> Vec<Sample> {
    let mut samples = Vec::new();
    let mut next = Instant::now();
    while next < until {
        let began = next;
        next += CANARY_STEP;
        pace_until(next);
        samples.push(Sample::since(began));
        next = next.max(Instant::now());
    }
    samples
}

type Steady<'scope> = Vec<thread::ScopedJoinHandle<'scope, Vec<Sample>>>;

/// Clients that together run [`TRANSACTIONS_PER_SECOND`], evenly spaced.
fn spawn_steady<'scope>(
    scope: &'scope thread::Scope<'scope, '_>,
    address: SocketAddr,
    entry: &'scope str,
    (start, until): (Instant, Instant),
    queues: Option<&'scope Queues>,
) -> Steady<'scope> {
    let step = Duration::from_secs(1) * CLIENTS / TRANSACTIONS_PER_SECOND;
    let run = move |id: u32| {
        let mut client = Client::login(address, entry);
        let mut next = start + step * id / CLIENTS;
        let mut samples = Vec::new();
        while next < until {
            pace_until(next);
            let ask = || assert_eq!(client.value(&format!("select {id}")), id.to_string());
            samples.push(match queues {
                Some(queues) => queues.sample(ask),
                None => Sample::of(ask),
            });
            // Who is late does not catch up: a stall counts once.
            next = (next + step).max(Instant::now());
        }
        samples
    };
    (0..CLIENTS)
        .map(|id| scope.spawn(move || run(id)))
        .collect()
}

fn collect(steady: Steady) -> Vec<Sample> {
    steady
        .into_iter()
        .flat_map(|client| client.join().expect("a steady client"))
        .collect()
}

/// Every [`BURST_EVERY`]: [`BURST_CLIENTS`] come at once, ask once, and leave. The bursts, and the transactions in them.
fn run_bursts(stage: &Stage, queues: &Queues, until: Instant) -> (Vec<Sample>, Vec<Sample>) {
    let mut next = Instant::now() + BURST_EVERY / 3;
    let (mut bursts, mut transactions) = (Vec::new(), Vec::new());
    while next < until {
        pace_until(next);
        next += BURST_EVERY;
        let began = Instant::now();
        let ask = |id: u32| {
            let mut client = stage.client();
            queues.sample(|| assert_eq!(client.value(&format!("select {id}")), id.to_string()))
        };
        thread::scope(|scope| {
            let clients: Vec<_> = (0..BURST_CLIENTS)
                .map(|id| scope.spawn(move || ask(id)))
                .collect();
            let asked = clients.into_iter().map(|client| client.join());
            transactions.extend(asked.map(|sample| sample.expect("a client of a burst")));
        });
        bursts.push(Sample::since(began));
    }
    (bursts, transactions)
}

/// The most by which a transaction outlasted every direct one, and every stall of a canary, at about the same time: what
/// remains when the machine's and PostgreSQL's own stalls are taken off.
fn worst_excess(pooled: &[Sample], direct: &[Sample]) -> Duration {
    let excess = |sample: &Sample| {
        let others = direct.iter().filter(|other| other.overlaps(sample));
        sample
            .took
            .saturating_sub(others.map(|other| other.took).max().unwrap_or_default())
    };
    pooled.iter().map(excess).max().unwrap_or_default()
}
