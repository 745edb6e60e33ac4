//! Shards, clients, servers and mail of one pool, driven event by event. After every event the
//! invariants of the pool are checked against an independent record of where every server is.

use crate::random::Random;
use crate::timeline::Timeline;
use ringbouncer::base::{Moment, ShardId};
use ringbouncer::pool::{
    Acquired, Action, HOPS_MAX, LocalPool, OPENINGS_MAX, Permits, SharedPool, WaiterId,
};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// What may happen in a run, and how often.
#[derive(Clone, Debug)]
pub struct Rules {
    pub shards: usize,
    pub limit: u32,
    /// Servers beyond the limit, for who has waited so many microseconds.
    pub reserve: (u32, u64),
    /// The limit that this pool shares with another one, if there is another.
    pub outer: Option<u32>,
    pub clients: usize,
    /// Most messages under way to one shard.
    pub mailbox: usize,
    /// Slowest message, in microseconds.
    pub latency_us: u64,
    /// Longest lease, in microseconds.
    pub lease_us: u64,
    /// Longest pause of a client between two leases, in microseconds.
    pub think_us: u64,
    /// How many of the clients belong to the first shard, beside those it gets by chance.
    pub skew: f64,
    /// How many waits are given up.
    pub cancel: f64,
    /// How many leases end with the server's death.
    pub death: f64,
    /// How many servers are checked before somebody has them, and how many of those do not pass.
    pub check: f64,
    pub check_fails: f64,
    /// How many openings fail, and how many are given up.
    pub open_fails: f64,
    pub open_given_up: f64,
    /// Mean time between mishaps (a stall, an idle server's death, a new limit), if any.
    pub mishap_us: Option<u64>,
    /// Whether the pool is paused and resumed now and then.
    pub pauses: bool,
    /// The longest stall of a shard in microseconds, if shards stall.
    pub stall_us: Option<u64>,
    /// Whether shards tick.
    pub ticks: bool,
}

/// A server connection. Not `Clone`: the pool cannot be in two minds about where it is.
#[derive(Debug)]
struct Server(usize);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whereabouts {
    Idle(ShardId),
    Leased,
    Checked,
    Travelling,
    Closing,
    Gone,
}

#[derive(Debug)]
enum Client {
    Away,
    Waiting(WaiterId, Moment),
    Leased(Server),
}

type Pool = LocalPool<Server, usize>;
type Actions = Vec<Action<Server, usize>>;

struct Shard {
    pool: Pool,
    /// Events that came while it was stalled.
    inbox: VecDeque<Event>,
    is_stalled: bool,
    /// Messages under way here, and servers among them.
    mail: usize,
    servers_coming: usize,
    /// Until its next tick it may keep servers that others wait for: one could not be sent, or has
    /// travelled too often.
    keeps_until: Moment,
}

#[derive(Debug)]
enum Mail {
    Server(Server, u8),
    Ask,
    Decline,
    Wake,
}

#[derive(Debug)]
enum Event {
    Acquire(usize),
    LeaseEnds(usize),
    GiveUp(usize, WaiterId),
    Mail {
        to: ShardId,
        from: ShardId,
        mail: Mail,
    },
    OpenEnds(ShardId),
    /// The server of a failed attempt has hung up as well.
    AttemptCleared(ShardId),
    CheckEnds(ShardId, Moment, Server),
    CloseEnds(ShardId, Server),
    Tick(ShardId),
    Poke(ShardId),
    /// The shard hears whether the pool is paused.
    Hear(ShardId),
    Resume(ShardId),
    Mishap,
    /// A server of the other pool was evicted.
    OtherCloses,
}

/// Every shard ticks this often.
const TICK: Duration = Duration::from_millis(1);

/// Most servers of the other pool: an eviction takes 10 ms, and all must fit into [`SETTLE`].
const OTHERS_MAX: u32 = 4;

/// Within this after the last mishap, and the end of the last stall, everything must have settled:
/// questions are forgotten after 50 ms, the slowest checks take 150, and some ticks more.
const SETTLE: Duration = Duration::from_millis(160);

pub struct World {
    rules: Rules,
    random: Random,
    now: Moment,
    timeline: Timeline<Event>,
    shared: Arc<SharedPool>,
    outer: Arc<Permits>,
    /// How many servers beyond the limit are allowed now.
    reserve: u32,
    /// Servers of the other pool, all idle; some of them are being evicted.
    others: u32,
    evicting: u32,
    shards: Vec<Shard>,
    clients: Vec<Client>,
    homes: Vec<ShardId>,
    servers: Vec<Whereabouts>,
    /// When the newest message from one shard to another arrives: mail of a pair keeps its order.
    delivered: Vec<Moment>,
    opening: u32,
    /// What the shards have been told, or will be.
    is_paused: bool,
    /// No client comes, leaves or ends its lease, and nothing goes wrong.
    is_frozen: bool,
    frozen: Vec<Event>,
    /// The shard whose lease or opening has just ended: its grants must keep the bound.
    is_bound_due: bool,
    pub grants: u64,
    pub hand_offs: u64,
}

impl World {
    pub fn new(rules: Rules, seed: u64) -> World {
        let mut random = Random::new(seed);
        let outer = Arc::new(Permits::new(rules.outer.unwrap_or(u32::MAX)));
        let levels = vec![outer.clone()];
        let shared = Arc::new(SharedPool::new(rules.shards, rules.limit, levels));
        let homes = (0..rules.clients)
            .map(|_| home(&mut random, &rules))
            .collect();
        let mut world = World {
            shards: (0..rules.shards)
                .map(|at| Shard::new(&shared, at))
                .collect(),
            clients: (0..rules.clients).map(|_| Client::Away).collect(),
            delivered: vec![Moment::default(); rules.shards * rules.shards],
            homes,
            servers: Vec::new(),
            timeline: Timeline::new(),
            now: Moment::from_nanos(1_000_000),
            opening: 0,
            is_paused: false,
            is_frozen: false,
            frozen: Vec::new(),
            is_bound_due: false,
            grants: 0,
            hand_offs: 0,
            rules,
            random,
            shared,
            outer,
            reserve: 0,
            others: 0,
            evicting: 0,
        };
        world.set_limits(world.rules.limit, world.rules.reserve.0);
        world.begin();
        world
    }

    /// Lets everything happen for `span`.
    pub fn run(&mut self, span: Duration) {
        let end = self.now.after(span);
        while self.timeline.next_at().is_some_and(|at| at <= end) {
            self.step();
        }
        self.now = end;
    }

    /// Lets nothing new happen until all mail is read, then checks that no wake-up was lost.
    pub fn freeze(&mut self) {
        self.is_frozen = true;
        self.settle();
        self.assert_settled();
    }

    /// Lets life go on after [`World::freeze`].
    pub fn thaw(&mut self) {
        self.is_frozen = false;
        for event in std::mem::take(&mut self.frozen) {
            self.timeline.add(self.now, event);
        }
        self.plan_mishap();
    }

    /// Lets all leases end, with no new ones and nothing going wrong, and checks that everybody is
    /// served; then closes everything.
    pub fn drain(&mut self) {
        self.shared.set_limit(self.shared.limit().max(1));
        self.outer.set_limit(self.outer.limit().max(1));
        (0..self.shards.len()).for_each(|at| self.timeline.add(self.now, Event::Poke(shard(at))));
        self.pause(false);
        self.rules.death = 0.0;
        for _ in 0..1000 {
            if self.waiting() == 0 {
                break;
            }
            self.run(TICK * 5);
            self.end_leases();
        }
        assert_eq!(self.waiting(), 0, "clients wait for ever");
        self.end_leases();
        self.settle();
        self.close_all();
        assert_eq!(self.shared.open(), 0, "permits are lost");
        assert_eq!(self.outer.open(), self.others, "outer permits are lost");
    }

    fn settle(&mut self) {
        let stall = Duration::from_micros(self.rules.stall_us.unwrap_or(0));
        self.run(SETTLE + stall);
    }

    fn begin(&mut self) {
        for client in 0..self.clients.len() {
            let at = self.now.after(self.random.micros(0, self.rules.think_us));
            self.timeline.add(at, Event::Acquire(client));
        }
        for at in (0..self.shards.len()).filter(|_| self.rules.ticks) {
            let first = self.now.after(self.random.micros(0, 1000));
            self.timeline.add(first, Event::Tick(shard(at)));
        }
        self.plan_mishap();
    }

    fn step(&mut self) {
        let Some((now, event)) = self.timeline.next() else {
            return;
        };
        self.now = now;
        let home = self.shard_of(&event);
        match home {
            Some(at) if self.shards[at].is_stalled && !matches!(event, Event::Resume(_)) => {
                self.shards[at].inbox.push_back(event);
            }
            _ => self.perform(event),
        }
        self.assert_invariants(home);
    }

    fn shard_of(&self, event: &Event) -> Option<usize> {
        let shard = match event {
            Event::Acquire(client) | Event::LeaseEnds(client) | Event::GiveUp(client, _) => {
                self.homes[*client]
            }
            Event::Mail { to, .. } => *to,
            Event::OpenEnds(shard) | Event::CloseEnds(shard, _) => *shard,
            Event::AttemptCleared(shard) | Event::CheckEnds(shard, ..) => *shard,
            Event::Tick(shard) | Event::Poke(shard) => *shard,
            Event::Hear(shard) | Event::Resume(shard) => *shard,
            Event::Mishap | Event::OtherCloses => return None,
        };
        Some(shard.index())
    }

    fn perform(&mut self, event: Event) {
        match event {
            Event::Acquire(_) | Event::LeaseEnds(_) if self.is_frozen => self.frozen.push(event),
            Event::Acquire(client) => self.acquire(client),
            Event::LeaseEnds(client) => self.end_lease(client),
            Event::GiveUp(client, id) => self.give_up(client, id),
            Event::Mail { to, from, mail } => self.deliver(to, from, mail),
            Event::OpenEnds(shard) => self.end_opening(shard),
            Event::AttemptCleared(shard) => {
                self.opening -= 1;
                self.with(shard, |pool, now, out| pool.attempt_cleared(now, out));
            }
            Event::CheckEnds(shard, begun, server) => self.end_check(shard, begun, server),
            Event::CloseEnds(shard, server) => self.end_closing(shard, server),
            Event::Tick(shard) => self.tick(shard),
            Event::Poke(shard) => self.with(shard, |pool, now, out| pool.poke(now, out)),
            Event::Hear(shard) => self.hear(shard),
            Event::Resume(shard) => self.resume(shard),
            Event::Mishap => self.mishap(),
            Event::OtherCloses => {
                self.evicting -= 1;
                self.others -= 1;
                self.outer.give_back();
            }
        }
    }

    /// Lets a pool handle an event and performs what it wants done.
    fn with<R>(
        &mut self,
        shard: ShardId,
        event: impl FnOnce(&mut Pool, Moment, &mut Actions) -> R,
    ) -> R {
        let mut out = Vec::new();
        let pool = &mut self.shards[shard.index()].pool;
        let result = event(pool, self.now, &mut out);
        if out.iter().any(|action| matches!(action, Action::Open)) {
            let waited = pool.first_waiter_since().map(|since| self.now.since(since));
            assert!(
                self.shared.open() <= self.shared.limit()
                    || waited >= Some(Duration::from_micros(self.rules.reserve.1)),
                "opened above the limit for who has waited {waited:?}"
            );
        }
        while !out.is_empty() {
            for action in std::mem::take(&mut out) {
                self.act(shard, action, &mut out);
            }
        }
        result
    }

    fn act(&mut self, shard: ShardId, action: Action<Server, usize>, out: &mut Actions) {
        match action {
            Action::Grant { waiter, server } => self.grant(shard, waiter, server),
            Action::Check(server) => self.check(shard, server),
            Action::Open => self.open(shard),
            Action::Close(server, _) => self.close(shard, server),
            Action::Send { to, server, hops } => self.send_server(shard, to, server, hops, out),
            Action::Ask(to) => self.send(shard, to, Mail::Ask).unwrap_or(()),
            Action::Decline(to) => self.send(shard, to, Mail::Decline).unwrap_or(()),
            Action::Wake(to) => self.send(shard, to, Mail::Wake).unwrap_or(()),
            Action::Evict => self.evict_other(),
        }
    }

    fn acquire(&mut self, client: usize) {
        let home = self.homes[client];
        match self.with(home, |pool, now, out| pool.acquire(client, now, out)) {
            Acquired::Granted(server) if self.random.chance(self.rules.check) => {
                self.check(home, server);
                let id = self.with(home, |pool, now, out| pool.check(client, now, out));
                self.wait(client, id);
            }
            Acquired::Granted(server) => self.lease(client, server),
            Acquired::Waits(id) => self.wait(client, id),
        }
    }

    fn wait(&mut self, client: usize, id: WaiterId) {
        self.clients[client] = Client::Waiting(id, self.now);
        if self.random.chance(self.rules.cancel) {
            let span = self.random.micros(1, 4 * self.rules.lease_us);
            let at = self.now.after(span);
            self.timeline.add(at, Event::GiveUp(client, id));
        }
    }

    /// Most checks take no time; some of them longer than a shard waits for.
    fn check(&mut self, home: ShardId, server: Server) {
        self.move_server(&server, Whereabouts::Checked);
        let longest = if self.random.chance(0.02) {
            150_000
        } else {
            500
        };
        let at = self.now.after(self.random.micros(50, longest));
        let ends = Event::CheckEnds(home, self.now, server);
        self.timeline.add(at, ends);
    }

    fn end_check(&mut self, home: ShardId, begun: Moment, server: Server) {
        if !self.is_frozen && self.random.chance(self.rules.check_fails) {
            self.close(home, server);
            self.with(home, |pool, now, out| pool.check_failed(begun, now, out));
            return self.note_idle(home);
        }
        self.put_back(home, |pool, now, out| pool.checked(server, begun, now, out));
    }

    fn grant(&mut self, home: ShardId, client: usize, server: Server) {
        let Client::Waiting(_, since) = self.clients[client] else {
            panic!("client {client} was granted a server and does not wait");
        };
        assert_eq!(self.homes[client], home);
        if self.is_bound_due {
            self.assert_bound(home, since);
        }
        self.lease(client, server);
    }

    fn lease(&mut self, client: usize, server: Server) {
        self.grants += 1;
        self.move_server(&server, Whereabouts::Leased);
        self.clients[client] = Client::Leased(server);
        let at = self.now.after(self.random.micros(1, self.rules.lease_us));
        self.timeline.add(at, Event::LeaseEnds(client));
    }

    fn end_lease(&mut self, client: usize) {
        let Client::Leased(server) = std::mem::replace(&mut self.clients[client], Client::Away)
        else {
            panic!("client {client} ends a lease it does not have");
        };
        let home = self.homes[client];
        let is_waited_for = self.shards[home.index()].pool.waiting() > 0;
        if self.random.chance(self.rules.death) {
            self.close(home, server);
        } else if is_waited_for && self.random.chance(self.rules.check) {
            self.shards[home.index()].pool.check_begins(self.now);
            self.check(home, server);
        } else {
            self.put_back(home, |pool, now, out| pool.release(server, now, out));
        }
        let at = self.now.after(self.random.micros(0, self.rules.think_us));
        self.timeline.add(at, Event::Acquire(client));
    }

    /// An event after which grants must keep the unfairness bound.
    fn put_back(&mut self, home: ShardId, event: impl FnOnce(&mut Pool, Moment, &mut Actions)) {
        self.is_bound_due = true;
        self.with(home, event);
        self.is_bound_due = false;
        self.note_idle(home);
    }

    fn give_up(&mut self, client: usize, id: WaiterId) {
        if !matches!(self.clients[client], Client::Waiting(waits, _) if waits == id) {
            return;
        }
        let token = self.shards[self.homes[client].index()].pool.cancel_wait(id);
        assert_eq!(token, Some(client));
        self.clients[client] = Client::Away;
        let at = self.now.after(self.random.micros(0, self.rules.think_us));
        self.timeline.add(at, Event::Acquire(client));
    }

    fn send(&mut self, from: ShardId, to: ShardId, mail: Mail) -> Result<(), Mail> {
        assert_ne!(from, to, "mail to oneself");
        if self.shards[to.index()].mail >= self.rules.mailbox {
            return Err(mail);
        }
        self.shards[to.index()].mail += 1;
        let newest = &mut self.delivered[from.index() * self.rules.shards + to.index()];
        let at = self
            .now
            .after(self.random.micros(1, self.rules.latency_us))
            .max(*newest);
        *newest = at;
        self.timeline.add(at, Event::Mail { to, from, mail });
        Ok(())
    }

    fn send_server(
        &mut self,
        from: ShardId,
        to: ShardId,
        server: Server,
        hops: u8,
        out: &mut Actions,
    ) {
        let id = server.0;
        match self.send(from, to, Mail::Server(server, hops)) {
            Ok(()) => {
                self.hand_offs += 1;
                self.servers[id] = Whereabouts::Travelling;
                self.shards[to.index()].servers_coming += 1;
            }
            Err(Mail::Server(server, _)) => {
                // What cannot be sent may be served here, whoever is older elsewhere.
                self.is_bound_due = false;
                self.shards[from.index()].keeps_until = self.now.after(2 * TICK);
                let pool = &mut self.shards[from.index()].pool;
                pool.send_failed(server, to, self.now, out);
            }
            Err(mail) => panic!("{mail:?} came back"),
        }
        self.note_idle(from);
    }

    fn deliver(&mut self, to: ShardId, from: ShardId, mail: Mail) {
        self.shards[to.index()].mail -= 1;
        match mail {
            Mail::Server(server, hops) => {
                self.shards[to.index()].servers_coming -= 1;
                if hops == HOPS_MAX {
                    // It may have to stay until that shard's next tick.
                    self.timeline.add(self.now.after(TICK), Event::Poke(to));
                    self.shards[to.index()].keeps_until = self.now.after(TICK);
                }
                let is_waited_for = self.shards[to.index()].pool.waiting() > 0;
                if is_waited_for && self.random.chance(self.rules.check) {
                    self.check(to, server);
                    self.with(to, |pool, now, out| pool.arrived_unchecked(from, now, out));
                    return self.note_idle(to);
                }
                self.is_bound_due = hops < HOPS_MAX;
                self.with(to, |pool, now, out| {
                    pool.arrived(server, from, hops, now, out)
                });
                self.is_bound_due = false;
            }
            Mail::Ask => self.with(to, |pool, _, out| pool.asked(from, out)),
            Mail::Decline => self.with(to, |pool, now, out| pool.declined(from, now, out)),
            Mail::Wake => self.with(to, |pool, now, out| pool.poke(now, out)),
        }
        self.note_idle(to);
    }

    fn open(&mut self, shard: ShardId) {
        assert!(
            self.shared.open() <= self.shared.limit() + self.reserve,
            "opened above limit and reserve"
        );
        assert!(
            self.outer.open() <= self.outer.limit(),
            "opened above the outer limit"
        );
        self.opening += 1;
        assert!(self.opening <= OPENINGS_MAX, "a herd of openings");
        let at = self.now.after(self.random.micros(50, 2000));
        self.timeline.add(at, Event::OpenEnds(shard));
    }

    fn end_opening(&mut self, shard: ShardId) {
        let is_given_up = !self.is_frozen && self.random.chance(self.rules.open_given_up);
        if is_given_up || !self.is_frozen && self.random.chance(self.rules.open_fails) {
            let pause = self.random.micros(100, 5000);
            let retry_at = (!is_given_up).then_some(self.now.after(pause));
            self.with(shard, |pool, now, out| {
                pool.attempt_failed(retry_at, now, out);
            });
            // Most servers hang up at once, some do not.
            let longest = if self.random.chance(0.1) { 20_000 } else { 50 };
            let at = self.now.after(self.random.micros(1, longest));
            return self.timeline.add(at, Event::AttemptCleared(shard));
        }
        self.opening -= 1;
        let server = Server(self.servers.len());
        self.servers.push(Whereabouts::Travelling);
        self.put_back(shard, |pool, now, out| pool.opened(server, now, out));
    }

    fn close(&mut self, shard: ShardId, server: Server) {
        self.move_server(&server, Whereabouts::Closing);
        let at = self.now.after(self.random.micros(1, 200));
        self.timeline.add(at, Event::CloseEnds(shard, server));
    }

    fn end_closing(&mut self, shard: ShardId, server: Server) {
        self.move_server(&server, Whereabouts::Gone);
        self.with(shard, |pool, now, out| pool.closed(now, out));
    }

    fn tick(&mut self, shard: ShardId) {
        if self.shards[shard.index()].pool.needs_tick() {
            self.with(shard, |pool, now, out| pool.tick(now, out));
        }
        self.timeline.add(self.now.after(TICK), Event::Tick(shard));
    }

    fn plan_mishap(&mut self) {
        if let Some(mean) = self.rules.mishap_us {
            let at = self.now.after(self.random.micros(1, 2 * mean));
            self.timeline.add(at, Event::Mishap);
        }
    }

    fn mishap(&mut self) {
        if self.is_frozen {
            return;
        }
        let at = self.random.below(self.shards.len());
        if self.rules.pauses && self.random.chance(0.25) {
            self.pause(!self.is_paused);
            return self.plan_mishap();
        }
        let choices = if self.rules.outer.is_some() { 5 } else { 3 };
        match self.random.below(choices) {
            0 if self.rules.stall_us.is_some() => self.stall(at),
            1 => self.kill_idle(shard(at)),
            3 => self.change_outer_limit(),
            4 if self.others < OTHERS_MAX => self.others += u32::from(self.outer.try_take()),
            _ => self.change_limit(),
        }
        self.plan_mishap();
    }

    /// Every shard hears of it in its own time, and of the newest order whenever it does.
    fn pause(&mut self, is_paused: bool) {
        self.is_paused = is_paused;
        for at in 0..self.shards.len() {
            let heard = self.now.after(self.random.micros(1, 500));
            self.timeline.add(heard, Event::Hear(shard(at)));
        }
    }

    fn hear(&mut self, shard: ShardId) {
        let is_paused = self.is_paused;
        self.with(shard, |pool, now, out| match is_paused {
            true => pool.pause(out),
            false => pool.resume(now, out),
        });
        assert_eq!(self.shards[shard.index()].pool.is_paused(), is_paused);
    }

    fn stall(&mut self, at: usize) {
        if !std::mem::replace(&mut self.shards[at].is_stalled, true) {
            let longest = self.rules.stall_us.unwrap_or(100);
            let until = self.now.after(self.random.micros(100, longest));
            self.timeline.add(until, Event::Resume(shard(at)));
        }
    }

    fn resume(&mut self, shard: ShardId) {
        self.shards[shard.index()].is_stalled = false;
        while let Some(event) = self.shards[shard.index()].inbox.pop_front() {
            self.perform(event);
        }
    }

    fn kill_idle(&mut self, shard: ShardId) {
        let is_stalled = self.shards[shard.index()].is_stalled;
        let killed = self.shards[shard.index()].pool.remove_idle(|_| !is_stalled);
        if let Some(server) = killed {
            self.close(shard, server);
        }
    }

    fn change_limit(&mut self) {
        let limit = self.random.below(2 * self.rules.limit as usize + 1) as u32;
        let reserve = self.random.below(2 * self.rules.reserve.0 as usize + 1) as u32;
        self.set_limits(limit, reserve);
        self.tell_of_limits();
    }

    fn set_limits(&mut self, limit: u32, reserve: u32) {
        let after = Duration::from_micros(self.rules.reserve.1);
        self.shared.set_limits(limit, reserve, after);
        self.reserve = reserve;
    }

    fn change_outer_limit(&mut self) {
        let mean = self.rules.outer.unwrap_or_default() as usize;
        self.outer.set_limit(self.random.below(2 * mean + 1) as u32);
        while self.others > self.evicting && self.outer.try_retire(false) {
            self.others -= 1;
            self.outer.give_back_retired();
        }
        self.tell_of_limits();
    }

    /// The other pool closes one of its servers, all of which are idle.
    fn evict_other(&mut self) {
        assert!(!self.outer.has_free(), "evicted for nothing");
        if self.evicting < self.others {
            self.evicting += 1;
            let at = self.now.after(self.random.micros(1, 200));
            self.timeline.add(at, Event::OtherCloses);
        }
    }

    fn tell_of_limits(&mut self) {
        for at in 0..self.shards.len() {
            let heard = self.now.after(self.random.micros(1, 500));
            self.timeline.add(heard, Event::Poke(shard(at)));
        }
    }

    fn end_leases(&mut self) {
        self.is_frozen = false;
        for client in 0..self.clients.len() {
            if matches!(self.clients[client], Client::Leased(_)) {
                self.end_lease(client);
            }
        }
        self.is_frozen = true;
        // The leases' own ends have been forestalled, and nobody is to come back.
        self.frozen.clear();
        self.timeline
            .retain(|event| !matches!(event, Event::LeaseEnds(_) | Event::Acquire(_)));
    }

    fn close_all(&mut self) {
        for at in 0..self.shards.len() {
            self.with(shard(at), |pool, _, out| {
                pool.expire_idle(|_, _| Some("expired"), out)
            });
        }
        self.run(TICK);
    }

    fn move_server(&mut self, server: &Server, to: Whereabouts) {
        let place = &mut self.servers[server.0];
        assert_ne!(
            *place,
            Whereabouts::Gone,
            "server {} is used after it closed",
            server.0
        );
        *place = to;
    }

    /// Records which servers idle on `shard` now.
    fn note_idle(&mut self, shard: ShardId) {
        for idle in self.shards[shard.index()].pool.idle() {
            self.servers[idle.server.0] = Whereabouts::Idle(shard);
        }
    }

    fn waiting(&self) -> usize {
        self.shards.iter().map(|shard| shard.pool.waiting()).sum()
    }

    fn assert_invariants(&self, touched: Option<usize>) {
        let alive = self
            .servers
            .iter()
            .filter(|place| **place != Whereabouts::Gone)
            .count();
        assert_eq!(
            self.shared.open(),
            alive as u32 + self.opening,
            "permits and servers differ"
        );
        assert_eq!(
            self.shared.anyone_waits(),
            self.waiting() > 0,
            "published heads are wrong"
        );
        self.assert_nobody_waits_beside_idle();
        let Some(at) = touched else { return };
        let pool = &self.shards[at].pool;
        assert!(
            (pool.unasked() == 0 && !pool.is_paused()) || pool.idle().len() == 0,
            "idle beside a waiter for whom none is checked, or while paused"
        );
        let recorded = self
            .servers
            .iter()
            .filter(|place| **place == Whereabouts::Idle(shard(at)));
        assert_eq!(
            recorded.count(),
            pool.idle().len(),
            "an idle server is lost"
        );
        let is_recorded = |id: usize| self.servers[id] == Whereabouts::Idle(shard(at));
        assert!(
            pool.idle().all(|idle| is_recorded(idle.server.0)),
            "a server is in two places"
        );
    }

    /// Nobody waits, not even for an opening, while a server is idle that nobody has asked for:
    /// what a stalled shard does, one that has not heard of the end of a pause, and what could not be sent,
    /// has to wait for it.
    fn assert_nobody_waits_beside_idle(&self) {
        let is_awake = |shard: &Shard| !shard.is_stalled;
        let lines_move = |shard: &Shard| is_awake(shard) && !shard.pool.is_paused();
        let wait_in_vain = |shard: &Shard| shard.servers_coming == 0 && shard.pool.unasked() > 0;
        let spares = |shard: &Shard| shard.pool.idle().len() > 0 && shard.keeps_until < self.now;
        let rich = |(_, shard): &(usize, &Shard)| is_awake(shard) && spares(shard);
        let all = || self.shards.iter().enumerate();
        let rich: Vec<_> = all().filter(rich).collect();
        if rich.is_empty() || self.is_paused {
            return;
        }
        for (poor, waiting) in all().filter(|(_, one)| lines_move(one) && wait_in_vain(one)) {
            for (at, other) in &rich {
                let (idle, asked) = (other.pool.idle().len(), waiting.pool.asked_of(shard(*at)));
                assert!(
                    idle <= asked as usize,
                    "shard {poor} waits, shard {at} has {idle} idle servers of which it asked for {asked}"
                );
            }
        }
    }

    /// A server was put back on `home`, or arrived there, and went to a waiter: nobody elsewhere may have
    /// waited longer by more than the bound, unless a server was on its way to him.
    fn assert_bound(&self, home: ShardId, since: Moment) {
        for (at, other) in self.shards.iter().enumerate() {
            let Some(theirs) = other.pool.first_waiter_since() else {
                continue;
            };
            if shard(at) == home || other.servers_coming > 0 {
                continue;
            }
            let bound = (self.now.since(theirs) / 10).max(Duration::from_micros(300));
            let overtaken_by = since.since(theirs);
            assert!(
                overtaken_by <= bound,
                "overtaken by {overtaken_by:?}, bound {bound:?}"
            );
        }
    }

    /// Nothing is under way any more: nobody may wait beside an idle server or a free permit.
    fn assert_settled(&self) {
        assert!(
            self.shards
                .iter()
                .all(|shard| shard.mail == 0 && !shard.is_stalled)
        );
        assert_eq!(self.opening, 0);
        let idle: usize = self
            .shards
            .iter()
            .map(|shard| shard.pool.idle().len())
            .sum();
        assert_eq!(self.shared.idle() as usize, idle);
        let (open, limit, waiting) = (self.shared.open(), self.shared.limit(), self.waiting());
        let reserve = self.reserve;
        if self.is_paused {
            let leased = |client: &&Client| matches!(client, Client::Leased(_));
            let leased = self.clients.iter().filter(leased).count();
            assert_eq!((idle, open as usize), (0, leased), "open in a pause");
            assert_eq!(self.outer.open(), open + self.others);
            return;
        }
        assert!(
            waiting == 0 || idle == 0,
            "{waiting} wait beside {idle} idle servers"
        );
        let outer = (self.outer.open(), self.outer.limit());
        let is_outer_full = outer.0 >= outer.1 && self.others == 0;
        assert!(
            waiting == 0 || open >= limit + reserve || is_outer_full,
            "{waiting} wait: {open} open of {limit} and {reserve}, {outer:?}, {} others",
            self.others
        );
        assert!(
            idle == 0 || open <= limit && outer.0 <= outer.1.max(self.others),
            "{idle} idle: {open} open of {limit}, {outer:?}"
        );
        assert_eq!(outer.0, open + self.others, "outer permits are lost");
    }
}

impl Shard {
    fn new(shared: &Arc<SharedPool>, at: usize) -> Shard {
        Shard {
            pool: LocalPool::new(shared.clone(), shard(at)),
            inbox: VecDeque::new(),
            is_stalled: false,
            mail: 0,
            servers_coming: 0,
            keeps_until: Moment::default(),
        }
    }
}

fn shard(at: usize) -> ShardId {
    ShardId(at as u16)
}

fn home(random: &mut Random, rules: &Rules) -> ShardId {
    match random.chance(rules.skew) {
        true => shard(0),
        false => shard(random.below(rules.shards)),
    }
}
