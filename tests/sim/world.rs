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

mod invariants;
mod mishaps;
mod upkeep;

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
    /// How many idle servers turn out to be too old when their shard looks after them.
    pub ages: f64,
    /// Servers that are kept open (`min_pool_size`), and how long one beyond them may be idle, in microseconds, if
    /// there is a bound.
    pub minimum: u32,
    pub idle_us: Option<u64>,
    /// Whether idle servers serve in turn, at first.
    pub round_robin: bool,
    /// The places for attempts that this pool shares with another one, if it does.
    pub openings_there: Option<u32>,
    /// How many servers turn out to be unfit when they are opened, arrive or cannot be sent.
    pub unfit: f64,
    /// How many clients are on another shard when they come again.
    pub moves: f64,
    /// Whether clients come that have a server opened for themselves, which is never in the pool.
    pub apart: bool,
    /// Whether everybody in line is turned away now and then.
    pub turns_away: bool,
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
    /// For the one client that it was opened for.
    Apart,
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
    /// What it has last read in its configuration.
    minimum: u32,
    is_round_robin: bool,
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
    Upkeep(ShardId),
    Poke(ShardId),
    /// The shard reads its configuration.
    Reload(ShardId),
    /// A client has looked so often for a place for a server of its own.
    Apart(ShardId, u32),
    ApartOpens(ShardId),
    ApartEnds(ShardId, Server),
    /// An idle server has to make room.
    Evict(ShardId),
    /// The shard hears whether the pool is paused.
    Hear(ShardId),
    Resume(ShardId),
    Mishap,
    /// A server of the other pool was evicted.
    OtherCloses,
    /// An attempt of the other pool has ended.
    OtherOpens,
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
    /// The places for attempts at the machines that this pool's servers are on in turn, and how many the other pool has at
    /// the first of them.
    machines: [Arc<Permits>; 2],
    /// At which of them it is, though not all shards have read it.
    machine: usize,
    opening_others: u32,
    /// What the configuration says, though not all shards have read it.
    minimum: u32,
    is_round_robin: bool,
    /// Some server has closed that the pool had not undertaken to close.
    has_lost: bool,
    /// How many servers beyond the limit are allowed now.
    reserve: u32,
    /// Servers of the other pool, all idle; some of them are being evicted.
    others: u32,
    evicting: u32,
    shards: Vec<Shard>,
    clients: Vec<Client>,
    homes: Vec<ShardId>,
    servers: Vec<Whereabouts>,
    /// Those of them that have not gone.
    living: Vec<usize>,
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
        let places = rules.openings_there.unwrap_or(u32::MAX);
        let machines = [(); 2].map(|()| Arc::new(Permits::new(places)));
        let shared = SharedPool::new(rules.shards, rules.limit, vec![outer.clone()]);
        let shared = Arc::new(shared);
        let homes = (0..rules.clients)
            .map(|_| home(&mut random, &rules))
            .collect();
        let mut world = World {
            shards: (0..rules.shards)
                .map(|at| Shard::new(&shared, &machines[0], at, &rules))
                .collect(),
            clients: (0..rules.clients).map(|_| Client::Away).collect(),
            delivered: vec![Moment::default(); rules.shards * rules.shards],
            homes,
            servers: Vec::new(),
            living: Vec::new(),
            timeline: Timeline::new(),
            now: Moment::from_nanos(1_000_000),
            opening: 0,
            is_paused: false,
            is_frozen: false,
            frozen: Vec::new(),
            is_bound_due: false,
            grants: 0,
            hand_offs: 0,
            minimum: rules.minimum,
            is_round_robin: rules.round_robin,
            has_lost: false,
            machines,
            machine: 0,
            opening_others: 0,
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
        (self.minimum, self.rules.idle_us) = (0, None);
        self.tell(Event::Reload);
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
        for at in 0..self.shards.len() {
            let first = self.now.after(self.random.micros(0, 3000));
            self.timeline.add(first, Event::Upkeep(shard(at)));
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
            Event::Tick(shard) | Event::Poke(shard) | Event::Upkeep(shard) => *shard,
            Event::Hear(shard) | Event::Resume(shard) | Event::Reload(shard) => *shard,
            Event::Apart(shard, _) | Event::ApartOpens(shard) => *shard,
            Event::ApartEnds(shard, _) | Event::Evict(shard) => *shard,
            Event::Mishap | Event::OtherCloses | Event::OtherOpens => return None,
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
            Event::Upkeep(shard) => self.upkeep(shard),
            Event::Reload(shard) => self.reload(shard),
            Event::Apart(shard, looks) => self.open_apart(shard, looks),
            Event::ApartOpens(shard) => self.end_opening_apart(shard),
            Event::ApartEnds(shard, server) => self.close(shard, server),
            Event::Evict(shard) => self.evict(shard),
            Event::Poke(shard) => self.with(shard, |pool, now, out| pool.poke(now, out)),
            Event::Hear(shard) => self.hear(shard),
            Event::Resume(shard) => self.resume(shard),
            Event::Mishap => self.mishap(),
            Event::OtherCloses => {
                self.evicting -= 1;
                self.others -= 1;
                self.outer.give_back();
            }
            Event::OtherOpens => {
                self.opening_others -= 1;
                self.machines[0].give_back();
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
            Action::Close(server, _) => self.retire(shard, server),
            Action::Send { to, server, hops } => self.send_server(shard, to, server, hops, out),
            Action::Ask(to) => self.send(shard, to, Mail::Ask).unwrap_or(()),
            Action::Decline(to) => self.send(shard, to, Mail::Decline).unwrap_or(()),
            Action::Wake(to) => self.send(shard, to, Mail::Wake).unwrap_or(()),
            Action::Evict => self.evict_other(),
        }
    }

    fn acquire(&mut self, client: usize) {
        let home = self.homes[client];
        let next = self.next_idle(home);
        let acquired = self.with(home, |pool, now, out| pool.acquire(client, now, out));
        if let Acquired::Granted(server) = &acquired {
            assert_eq!(Some(server.0), next, "it is not that server's turn");
        }
        match acquired {
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
        self.assert_outlook(self.homes[client], id);
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
        self.comes_again(client);
    }

    /// A client that is away thinks and comes again, perhaps to another shard.
    fn comes_again(&mut self, client: usize) {
        if self.random.chance(self.rules.moves) {
            self.homes[client] = home(&mut self.random, &self.rules);
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
        self.comes_again(client);
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
            Err(Mail::Server(server, _)) if self.random.chance(self.rules.unfit) => {
                self.shards[from.index()].pool.send_failed_unfit(to);
                self.close(from, server);
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
                if self.random.chance(self.rules.unfit) {
                    self.close(to, server);
                    self.with(to, |pool, now, out| pool.arrived_unfit(from, now, out));
                    return self.note_idle(to);
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
        self.begin_opening(Event::OpenEnds(shard));
    }

    fn begin_opening(&mut self, ends: Event) {
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
        self.timeline.add(at, ends);
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
        let server = self.new_server(Whereabouts::Travelling);
        if self.random.chance(self.rules.unfit) {
            self.close(shard, server);
            return self.with(shard, |pool, now, out| pool.opened_unfit(now, out));
        }
        self.put_back(shard, |pool, now, out| pool.opened(server, now, out));
    }

    fn new_server(&mut self, place: Whereabouts) -> Server {
        self.living.push(self.servers.len());
        self.servers.push(place);
        Server(self.servers.len() - 1)
    }

    /// Closes a server for a reason that the pool does not count with.
    fn close(&mut self, shard: ShardId, server: Server) {
        self.has_lost = true;
        self.retire(shard, server);
    }

    fn retire(&mut self, shard: ShardId, server: Server) {
        self.move_server(&server, Whereabouts::Closing);
        let at = self.now.after(self.random.micros(1, 200));
        self.timeline.add(at, Event::CloseEnds(shard, server));
    }

    fn end_closing(&mut self, shard: ShardId, server: Server) {
        self.move_server(&server, Whereabouts::Gone);
        self.living.retain(|id| *id != server.0);
        self.with(shard, |pool, now, out| pool.closed(now, out));
    }

    fn tick(&mut self, shard: ShardId) {
        if self.shards[shard.index()].pool.needs_tick() {
            self.with(shard, |pool, now, out| pool.tick(now, out));
        }
        self.timeline.add(self.now.after(TICK), Event::Tick(shard));
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
}

impl Shard {
    fn new(shared: &Arc<SharedPool>, machine: &Arc<Permits>, at: usize, rules: &Rules) -> Shard {
        let mut pool = LocalPool::new(shared.clone(), shard(at));
        pool.open_at(machine.clone());
        pool.set_round_robin(rules.round_robin);
        Shard {
            pool,
            minimum: rules.minimum,
            is_round_robin: rules.round_robin,
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
