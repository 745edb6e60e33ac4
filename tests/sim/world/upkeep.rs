//! What a shard does for its pool now and then, and for clients that have a server of their own.

use super::*;

/// Every shard looks after its servers this often.
const UPKEEP: Duration = Duration::from_millis(3);

/// A client that finds no place for a server of its own looks again so often, a tick apart.
const LOOKS_MAX: u32 = 10;

impl World {
    pub(super) fn upkeep(&mut self, shard: ShardId) {
        self.expire(shard);
        self.warm(shard);
        self.timeline
            .add(self.now.after(UPKEEP), Event::Upkeep(shard));
    }

    /// Closes an idle server that has become too old, and those that have been idle for too long.
    fn expire(&mut self, shard: ShardId) {
        let old = self.next_idle(shard);
        let old = old.filter(|_| !self.is_frozen && self.random.chance(self.rules.ages));
        self.with(shard, |pool, _, out| {
            pool.expire_idle(|server, _| (Some(server.0) == old).then_some("old"), out)
        });
        let Some(idle_us) = self.rules.idle_us else {
            return;
        };
        let before = self.staying();
        let least = self.shards[shard.index()].minimum;
        self.with(shard, |pool, now, out| {
            let is_due = |_: &Server, since| now.since(since) >= Duration::from_micros(idle_us);
            pool.expire_spare(least, "idle", is_due, out);
        });
        let after = self.staying();
        assert!(
            self.has_lost || after >= least.min(before),
            "{after} of {before} servers stay, {least} are to be kept"
        );
    }

    fn warm(&mut self, shard: ShardId) {
        let minimum = self.shards[shard.index()].minimum;
        let before = self.opening;
        self.with(shard, |pool, now, out| pool.warm(minimum, now, out));
        assert!(
            self.opening == before || self.shared.open() <= minimum.min(self.shared.limit()),
            "opened more than {minimum} ahead of need"
        );
    }

    pub(super) fn reload(&mut self, at: ShardId) {
        let shard = &mut self.shards[at.index()];
        (shard.minimum, shard.is_round_robin) = (self.minimum, self.is_round_robin);
        shard.pool.set_round_robin(self.is_round_robin);
        shard.pool.open_at(self.machines[self.machine].clone());
    }

    /// The idle server of `shard` that is to be used next.
    pub(super) fn next_idle(&self, at: ShardId) -> Option<usize> {
        let shard = &self.shards[at.index()];
        let mut idle = shard.pool.idle().map(|idle| idle.server.0);
        if shard.is_round_robin {
            idle.next()
        } else {
            idle.last()
        }
    }

    pub(super) fn open_apart(&mut self, shard: ShardId, looks: u32) {
        if self.is_frozen {
            return;
        }
        if self.with(shard, |pool, now, _| pool.open_apart(now)) {
            return self.begin_opening(Event::ApartOpens(shard));
        }
        if let Some((_, rich)) = self.shared.longest_idle(|_| self.shared.is_full()) {
            let at = self.now.after(self.random.micros(1, self.rules.latency_us));
            self.timeline.add(at, Event::Evict(rich));
        }
        if looks < LOOKS_MAX {
            let again = Event::Apart(shard, looks + 1);
            self.timeline.add(self.now.after(TICK), again);
        }
    }

    pub(super) fn end_opening_apart(&mut self, shard: ShardId) {
        self.opening -= 1;
        self.shards[shard.index()].pool.ends_apart();
        if self.random.chance(self.rules.open_fails) {
            return self.with(shard, |pool, now, out| pool.open_failed(None, now, out));
        }
        let server = self.new_server(Whereabouts::Apart);
        let at = self.now.after(self.random.micros(1, self.rules.lease_us));
        self.timeline.add(at, Event::ApartEnds(shard, server));
        self.with(shard, |pool, now, out| pool.opened_unfit(now, out));
    }

    pub(super) fn evict(&mut self, shard: ShardId) {
        if let Some(server) = self.shards[shard.index()].pool.evict() {
            self.retire(shard, server);
        }
    }
}
