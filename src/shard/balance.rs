//! Which shard a client belongs to: the lighter of two when it is accepted, one of its pool's home
//! shards once its start-up packet has been read, a less loaded one later, between two requests.
//!
//! Weights are live counts, each written by its own shard, plus the mail under way there, so that
//! the clients of a burst who have been passed on and not arrived yet count. Nobody is sent to a
//! shard whose loop does not turn.

use super::message::Mail;
use super::root::Shard;
use super::shared::Phase;
use crate::base::{Clock, Moment, ShardId};
use crate::client::{ClientEntry, Greeted};
use crate::config::{Config, Database};
use crate::net::Detached;
use std::rc::Rc;
use std::time::Duration;

/// Server connections of a pool for which one shard serves its clients.
const SERVERS_PER_SHARD: usize = 4;

/// The shards that serve the clients of one pool: some in a row, from a place that follows from
/// the pool's name, so that every shard comes to the same answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Homes {
    first: usize,
    count: usize,
    shards: usize,
}

impl Homes {
    /// Those of the pool of `database` and `user` among `shards`.
    pub(super) fn of(config: &Config, database: &Database, user: &str, shards: usize) -> Homes {
        let wanted = match config.general.pool_shards {
            0 => config.pool_size(database, user) as usize / SERVERS_PER_SHARD,
            wanted => wanted,
        };
        Homes {
            first: place(&database.name, user, shards),
            count: wanted.clamp(1, shards),
            shards,
        }
    }

    /// The first of them, which looks after what nobody else does.
    pub(super) fn first(self) -> ShardId {
        self.nth(0)
    }

    /// Whether `shard` is one of them.
    pub(super) fn contains(self, shard: ShardId) -> bool {
        self.place_of(shard).is_some()
    }

    /// Which of them `shard` is.
    fn place_of(self, shard: ShardId) -> Option<usize> {
        let distance = (shard.index() + self.shards - self.first) % self.shards;
        (distance < self.count).then_some(distance)
    }

    fn nth(self, at: usize) -> ShardId {
        ShardId(((self.first + at % self.count) % self.shards) as u16)
    }
}

/// FNV-1a over the pool's name, mixed: cheap, and the same on every shard.
fn place(database: &str, user: &str, shards: usize) -> usize {
    let name = database.bytes().chain([0]).chain(user.bytes());
    let hash = name.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    (mixed(hash) % shards as u64) as usize
}

/// The finalizer of SplitMix64: every bit of the word has a say in every other.
fn mixed(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ (word >> 31)
}

/// What a shard's thread had used of its core by a moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct LoadReading {
    at: Moment,
    cpu: Duration,
    busy_us: u64,
}

impl LoadReading {
    /// To begin with.
    pub(super) fn now() -> LoadReading {
        LoadReading {
            at: Clock::now(),
            cpu: Clock::thread_cpu(),
            busy_us: 0,
        }
    }
}

/// Clients are moved this often at most, so that the loads can follow.
const SHED_PERIOD: Duration = Duration::from_secs(2);
/// Who has more prepared statements stays: to move their texts would hold up two shards.
const STATEMENTS_MAX: u32 = 1000;
/// A difference in load, in thousandths of a core, below which nobody is moved.
const GAP_MIN: u64 = 100;
/// Clients that one shard sends away at a time.
const SHED_MAX: usize = 64;

/// Which of the clients that did so much `work` should leave a shard with load `own` for one with load
/// `other`, if they `may`: the busiest that fit into half of the difference, so that it does not turn
/// round. None while the difference is small.
fn to_shed(work: &[u64], own: u64, other: u64, may: impl Fn(usize) -> bool) -> Vec<usize> {
    let gap = own.saturating_sub(other);
    let all: u64 = work.iter().sum();
    if !is_notable(own, other) || all == 0 {
        return Vec::new();
    }
    let mut order: Vec<usize> = (0..work.len()).collect();
    order.sort_unstable_by_key(|&at| std::cmp::Reverse(work[at]));
    let (mut rest, mut chosen) = (gap / 2, Vec::new());
    for at in order {
        // Who does nothing is no load, nor are those behind it.
        if work[at] == 0 {
            break;
        }
        let load = own * work[at] / all;
        // Of two equally busy clients one goes, whatever the rounding.
        if chosen.len() < SHED_MAX && load <= rest + rest / 5 && may(at) {
            rest = rest.saturating_sub(load.max(1));
            chosen.push(at);
        }
        if rest == 0 {
            break;
        }
    }
    chosen
}

/// Whether load `own` is so much more than `other` that clients should move.
fn is_notable(own: u64, other: u64) -> bool {
    own.saturating_sub(other) >= GAP_MIN.max(own / 4)
}

/// `part` of `whole` in thousandths, mixed into `before` such that a second or so is remembered.
fn smoothed(before: u64, part: Duration, whole: Duration) -> u64 {
    let share = part.as_secs_f64() / whole.as_secs_f64().max(1e-9) * 1000.0;
    (2 * before + share.min(1000.0).round() as u64) / 3
}

impl Shard {
    /// Publishes how loaded this shard is; to be called a few times per second.
    pub(super) fn read_load(&self) {
        let now = LoadReading {
            busy_us: self.stats.busy_us.load(),
            ..LoadReading::now()
        };
        let before = self.load.replace(now);
        let span = now.at.since(before.at);
        let cpu = now.cpu.saturating_sub(before.cpu);
        let busy = Duration::from_micros(now.busy_us.saturating_sub(before.busy_us));
        let stats = &self.stats;
        stats.load.set(smoothed(stats.load.load(), cpu, span));
        stats.busy.set(smoothed(stats.busy.load(), busy, span));
    }

    /// Invites some of this shard's busiest clients to go on at a less loaded shard, now and then.
    pub(super) fn shed_load(&self, config: &Config) {
        let now = self.net.now();
        let shards = self.common.mesh.shards();
        if now < self.shed_at.get() || shards == 1 || self.is_suspended() {
            return;
        }
        self.shed_at.set(now.after(SHED_PERIOD));
        let sheds = config.general.rebalance_clients
            && self.phase.get() == Phase::Serving
            && self.is_notably_loaded();
        // Their work is counted from the first look on; to look at very many takes a while.
        let is_first_look = sheds && !self.sheds.get();
        if !self.sheds.replace(sheds) && !sheds {
            return;
        }
        let entries: Vec<Rc<ClientEntry>> = self
            .clients
            .borrow()
            .iter()
            .map(|(_, entry)| entry.clone())
            .collect();
        // An invitation that was not followed since is out of date.
        entries.iter().for_each(|entry| entry.move_to.set(None));
        let work: Vec<u64> = entries
            .iter()
            .map(|entry| u64::from(entry.work.take()))
            .collect();
        let to = self.less_loaded();
        let Some(to) = to.filter(|_| sheds && !is_first_look) else {
            return;
        };
        let is_at_home_there = |at: usize| {
            if entries[at].prepared.get() > STATEMENTS_MAX {
                return false;
            }
            let who = entries[at].who();
            let database = who.and_then(|who| config.database(&who.database));
            who.zip(database).is_some_and(|(who, database)| {
                let user = database.server_user(&who.user);
                Homes::of(config, &database, user, shards).contains(to)
            })
        };
        let other = self.common.registry.shard(to).load.load();
        for at in to_shed(&work, self.stats.load.load(), other, is_at_home_there) {
            entries[at].invite(to);
        }
    }

    /// Whether some shard has notably less to do.
    fn is_notably_loaded(&self) -> bool {
        let shards = self.common.registry.shards().iter();
        let least = shards.map(|shard| shard.load.load()).min();
        least.is_some_and(|least| is_notable(self.stats.load.load(), least))
    }

    /// The less loaded of two shards drawn at random, if it is another one that turns.
    fn less_loaded(&self) -> Option<ShardId> {
        let shards = self.common.mesh.shards();
        let load = |shard: &ShardId| self.common.registry.shard(*shard).load.load();
        let drawn = [(); 2].map(|()| ShardId(self.draw_other(self.id.index(), shards) as u16));
        let now = Clock::now();
        let turns = |shard: &ShardId| !self.common.registry.shard(*shard).beat.is_stalled(now);
        drawn.into_iter().filter(turns).min_by_key(load)
    }

    /// Serves an accepted socket here or has another shard do it: of two shards the one with fewer
    /// clients. One of the two is this one, unless this one alone listens (on a Unix socket).
    pub(super) fn place(self: &Rc<Self>, socket: Detached, listens_alone: bool) {
        let shards = self.common.mesh.shards();
        let first = if listens_alone {
            self.draw(shards)
        } else {
            self.id.index()
        };
        let second = self.draw_other(first, shards);
        let to = self.lighter(ShardId(first as u16), ShardId(second as u16));
        self.stats.accepted.inc();
        if to == self.id {
            return self.admit(socket);
        }
        match self.post(to, Mail::Client(socket)) {
            Ok(()) => self.stats.clients_out.inc(),
            Err(Mail::Client(socket)) => self.admit(socket),
            Err(_) => {}
        }
    }

    /// Where a client belongs whose pool is known: this shard, unless its pool is at home elsewhere.
    pub(super) fn home(&self, homes: Homes) -> ShardId {
        if homes.count == homes.shards {
            // Accepting has balanced it already.
            return self.id;
        }
        let first = homes
            .place_of(self.id)
            .unwrap_or_else(|| self.draw(homes.count));
        let second = self.draw_other(first, homes.count);
        self.lighter(homes.nth(first), homes.nth(second))
    }

    /// Sends a client that has said what it wants to its home.
    ///
    /// # Errors
    /// Gives it back if that shard's mailbox is full.
    pub(super) fn send_home(&self, to: ShardId, greeted: Box<Greeted>) -> Result<(), Box<Greeted>> {
        match self.post(to, Mail::Greeted(greeted)) {
            Err(Mail::Greeted(greeted)) => Err(greeted),
            _ => {
                self.stats.clients_out.inc();
                Ok(())
            }
        }
    }

    /// The lighter of two shards, the first of equals; this one if they are stalled.
    fn lighter(&self, first: ShardId, second: ShardId) -> ShardId {
        let now = Clock::now();
        let can_take = |shard: ShardId| {
            shard == self.id || !self.common.registry.shard(shard).beat.is_stalled(now)
        };
        match (can_take(first), can_take(second)) {
            (true, true) if self.weight(second) < self.weight(first) => second,
            (true, _) => first,
            (false, true) => second,
            (false, false) => self.id,
        }
    }

    /// Clients that a shard has or is about to get.
    fn weight(&self, shard: ShardId) -> u64 {
        let live = self.common.registry.shard(shard).clients.load();
        live + self.common.mesh.depth(shard) as u64
    }

    /// Another number below `end` than `first`, if there is one.
    fn draw_other(&self, first: usize, end: usize) -> usize {
        let step = match end {
            1 => 0,
            _ => 1 + self.draw(end - 1),
        };
        (first + step) % end
    }

    /// A number below `end`, at random enough to spread clients (SplitMix64).
    pub(super) fn draw(&self, end: usize) -> usize {
        self.drawn
            .set(self.drawn.get().wrapping_add(0x9E37_79B9_7F4A_7C15));
        (mixed(self.drawn.get()) % end.max(1) as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::path::Path;

    fn homes(pool_size: u32, shards: usize, user: &str) -> Homes {
        let text = format!(
            "ringbouncer.auth_type = \"trust\"\nringbouncer.default_pool_size = {pool_size}\n\
             [databases.shop]"
        );
        let config = Config::parse(&text, Path::new("r.toml")).expect("valid");
        let database = config.database("shop").expect("configured");
        Homes::of(&config, &database, user, shards)
    }

    fn members(homes: Homes) -> Vec<u16> {
        let all = (0..homes.shards as u16).map(ShardId);
        all.filter(|shard| homes.contains(*shard))
            .map(|shard| shard.0)
            .collect()
    }

    #[test]
    fn a_small_pool_lives_on_a_quarter_of_its_size_in_shards() {
        let counts = [(1, 1), (7, 1), (8, 2), (20, 5), (128, 32), (1000, 32)];
        for (pool_size, count) in counts {
            let homes = homes(pool_size, 32, "ann");
            assert_eq!(members(homes).len(), count, "pool of {pool_size}");
            let reached: HashSet<_> = (0..2 * count).map(|at| homes.nth(at).0).collect();
            assert_eq!(reached, members(homes).into_iter().collect());
        }
        assert_eq!(members(homes(20, 3, "ann")), [0, 1, 2]);
    }

    #[test]
    fn busy_clients_leave_until_half_of_the_difference_is_gone() {
        let all = |_: usize| true;
        assert_eq!(to_shed(&[5, 5], 600, 0, all).len(), 1, "one of two");
        assert_eq!(
            to_shed(&[1; 10], 800, 200, all).len(),
            3,
            "0.24 of a core each 0.08"
        );
        assert_eq!(
            to_shed(&[100, 1, 1, 1, 1], 800, 0, all),
            [1, 2, 3, 4],
            "one alone stays"
        );
        assert_eq!(to_shed(&[6, 3, 2, 1], 600, 0, all), [0]);
        assert_eq!(to_shed(&[6, 3, 2, 1], 600, 0, |at| at != 0), [1, 2, 3]);
    }

    #[test]
    fn nobody_leaves_for_a_small_difference() {
        let all = |_: usize| true;
        for (own, other) in [(99, 0), (800, 700), (300, 300), (100, 900), (900, 700)] {
            assert_eq!(
                to_shed(&[1; 10], own, other, all),
                [] as [usize; 0],
                "{own} {other}"
            );
        }
        assert_eq!(
            to_shed(&[0; 10], 900, 0, all),
            [] as [usize; 0],
            "nobody is busy"
        );
        assert_eq!(to_shed(&[0, 5, 5, 0], 900, 0, all).len(), 1, "of the busy");
    }

    #[test]
    fn pools_are_spread_over_the_shards() {
        let users: Vec<_> = (0..1000).map(|n| format!("user_{n}")).collect();
        let mut counts = [0; 32];
        for user in &users {
            counts[homes(4, 32, user).first().index()] += 1;
        }
        assert!(
            counts.iter().all(|count| (10..60).contains(count)),
            "{counts:?}"
        );
    }
}
