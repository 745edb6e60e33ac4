//! The pool under real threads: what the simulation cannot show, since there one event follows
//! the other. Repeatable only in what it asserts.

use ringbouncer::base::{Clock, Moment, ShardId};
use ringbouncer::pool::{Acquired, Action, LocalPool, SharedPool};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

const SHARDS: u16 = 3;
const ROUNDS: u32 = 20_000;

/// Mailboxes never fill up: at most this many messages are under way, far more than servers.
const MAILBOX: usize = 10_000;

/// A round takes microseconds; one that takes this long waits for a wake-up that was lost.
const PATIENCE: Duration = Duration::from_secs(30);

struct Server;
type Actions = Vec<Action<Server, u32>>;

enum Mail {
    Server(Server, u8),
    Ask,
    Decline,
    Wake,
}

/// What all threads see.
struct Arena {
    shared: Arc<SharedPool>,
    held: AtomicU32,
    opened: AtomicU32,
    served: AtomicU32,
    mailboxes: Vec<SyncSender<(ShardId, Mail)>>,
}

struct Shard<'a> {
    me: ShardId,
    arena: &'a Arena,
    pool: LocalPool<Server, u32>,
    inbox: Receiver<(ShardId, Mail)>,
}

impl Shard<'_> {
    /// In every round each shard has one client, and the next begins when all were served.
    fn run(mut self) {
        for round in 1..=ROUNDS {
            let mut out = Vec::new();
            if let Acquired::Granted(server) = self.pool.acquire(round, Clock::now(), &mut out) {
                self.serve(server, &mut out);
            }
            self.perform(out);
            let began = Clock::now();
            while self.arena.served.load(SeqCst) < round * u32::from(SHARDS) {
                self.read_mail();
                self.assert_patience(began, round);
            }
        }
    }

    fn read_mail(&mut self) {
        let Ok((from, mail)) = self.inbox.try_recv() else {
            return thread::yield_now();
        };
        let (now, mut out) = (Clock::now(), Vec::new());
        match mail {
            Mail::Server(server, hops) => self.pool.arrived(server, from, hops, now, &mut out),
            Mail::Ask => self.pool.asked(from, &mut out),
            Mail::Decline => self.pool.declined(from, now, &mut out),
            Mail::Wake => self.pool.poke(now, &mut out),
        }
        self.perform(out);
    }

    fn perform(&mut self, mut actions: Actions) {
        while let Some(action) = actions.pop() {
            match action {
                Action::Grant { server, .. } => self.serve(server, &mut actions),
                Action::Open => {
                    self.arena.opened.fetch_add(1, SeqCst);
                    self.pool.opened(Server, Clock::now(), &mut actions);
                }
                Action::Send { to, server, hops } => self.post(to, Mail::Server(server, hops)),
                Action::Ask(to) => self.post(to, Mail::Ask),
                Action::Decline(to) => self.post(to, Mail::Decline),
                Action::Wake(to) => self.post(to, Mail::Wake),
                Action::Close(..) | Action::Check(_) | Action::Evict => {
                    panic!("closed without a reason")
                }
            }
        }
    }

    fn serve(&mut self, server: Server, out: &mut Actions) {
        let held = self.arena.held.fetch_add(1, SeqCst) + 1;
        assert!(held <= self.arena.shared.limit(), "{held} servers in use");
        self.arena.held.fetch_sub(1, SeqCst);
        self.pool.release(server, Clock::now(), out);
        self.arena.served.fetch_add(1, SeqCst);
    }

    fn post(&self, to: ShardId, mail: Mail) {
        let mailbox = &self.arena.mailboxes[to.index()];
        // A thread that has seen the last round end no longer reads its mail.
        let _gone = mailbox.try_send((self.me, mail));
    }

    fn assert_patience(&self, began: Moment, round: u32) {
        let waited = Clock::now().since(began);
        assert!(waited < PATIENCE, "round {round}: a wake-up was lost");
    }
}

fn run_threads(limit: u32) {
    let (mailboxes, inboxes): (Vec<_>, Vec<_>) = (0..SHARDS).map(|_| sync_channel(MAILBOX)).unzip();
    let arena = Arena {
        shared: Arc::new(SharedPool::new(SHARDS.into(), limit, Vec::new())),
        held: AtomicU32::new(0),
        opened: AtomicU32::new(0),
        served: AtomicU32::new(0),
        mailboxes,
    };
    thread::scope(|scope| {
        for (me, inbox) in (0..SHARDS).map(ShardId).zip(inboxes) {
            let shard = Shard {
                me,
                arena: &arena,
                pool: LocalPool::new(arena.shared.clone(), me),
                inbox,
            };
            scope.spawn(|| shard.run());
        }
    });
    let opened = arena.opened.into_inner();
    assert_eq!(arena.shared.open(), opened);
    assert!((1..=limit).contains(&opened));
    assert_eq!(arena.served.into_inner(), ROUNDS * u32::from(SHARDS));
}

/// 3 shards on threads of their own, one server, no ticks: every round ends, so no wake-up is lost.
#[test]
fn threads_share_one_server_without_ticks() {
    run_threads(1);
}

/// 3 shards on threads of their own, two servers, no ticks.
#[test]
fn threads_share_two_servers_without_ticks() {
    run_threads(2);
}
