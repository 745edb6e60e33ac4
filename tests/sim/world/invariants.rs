//! What must hold after every step of a world, and when it has come to rest.

use super::*;

impl World {
    pub(super) fn assert_invariants(&self, touched: Option<usize>) {
        let alive = self.living.len();
        assert_eq!(
            self.shared.open(),
            alive as u32 + self.opening,
            "permits and servers differ"
        );
        assert_eq!(
            self.machines
                .iter()
                .map(|places| places.open())
                .sum::<u32>(),
            self.opening + self.opening_others,
            "places for attempts are lost"
        );
        let anyone_waits = self.waiting() > 0;
        assert_eq!(
            self.shared.anyone_waits(),
            anyone_waits,
            "published heads are wrong"
        );
        if anyone_waits && !self.is_paused {
            self.assert_nobody_waits_beside_idle();
        }
        let Some(at) = touched else { return };
        let pool = &self.shards[at].pool;
        assert!(
            (pool.unasked() == 0 && !pool.is_paused()) || pool.idle().len() == 0,
            "idle beside a waiter for whom none is checked, or while paused"
        );
        assert!(
            pool.idle().is_sorted_by_key(|idle| idle.since),
            "idle servers are out of order"
        );
        let is_recorded = |id: usize| self.servers[id] == Whereabouts::Idle(shard(at));
        let recorded = self.living.iter().filter(|id| is_recorded(**id));
        assert_eq!(
            recorded.count(),
            pool.idle().len(),
            "an idle server is lost"
        );
        assert!(
            pool.idle().all(|idle| is_recorded(idle.server.0)),
            "a server is in two places"
        );
    }

    /// Nobody waits, not even for an opening, while a server is idle that nobody has asked for:
    /// what a stalled shard does, one that has not heard of the end of a pause, and what could not be sent,
    /// has to wait for it.
    pub(super) fn assert_nobody_waits_beside_idle(&self) {
        let is_awake = |shard: &Shard| !shard.is_stalled;
        let lines_move = |shard: &Shard| is_awake(shard) && !shard.pool.is_paused();
        let wait_in_vain = |shard: &Shard| shard.servers_coming == 0 && shard.pool.unasked() > 0;
        let spares = |shard: &Shard| shard.pool.idle().len() > 0 && shard.keeps_until < self.now;
        let rich = |(_, shard): &(usize, &Shard)| is_awake(shard) && spares(shard);
        let all = || self.shards.iter().enumerate();
        let rich: Vec<_> = all().filter(rich).collect();
        if rich.is_empty() {
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
    pub(super) fn assert_bound(&self, home: ShardId, since: Moment) {
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
    pub(super) fn assert_settled(&self) {
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
        let least = self.minimum.min(limit);
        assert!(
            open >= least || outer.0 >= outer.1,
            "{open} open, {least} are to be kept, {outer:?}"
        );
    }

    /// Servers that are open or being opened, and not being closed.
    pub(super) fn staying(&self) -> u32 {
        let stays = |id: &&usize| self.servers[**id] != Whereabouts::Closing;
        self.living.iter().filter(stays).count() as u32 + self.opening
    }

    /// What a client is told that has got in line.
    pub(super) fn assert_outlook(&self, home: ShardId, id: WaiterId) {
        let Some(outlook) = self.shards[home.index()].pool.outlook(id, self.now) else {
            panic!("{id:?} is not in line");
        };
        assert_eq!(outlook.waiting, self.waiting() as u64, "{outlook:?}");
        assert!(outlook.ahead < outlook.waiting, "{outlook:?}");
    }
}
