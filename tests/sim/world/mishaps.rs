//! What goes wrong in a world, and what its operator does to it.

use super::*;

#[derive(Clone, Copy)]
enum Mishap {
    Stall,
    Death,
    Limit,
    OuterLimit,
    OtherServer,
    OtherOpening,
    TurnAway,
    Reload,
    Apart,
}

impl World {
    pub(super) fn plan_mishap(&mut self) {
        if let Some(mean) = self.rules.mishap_us {
            let at = self.now.after(self.random.micros(1, 2 * mean));
            self.timeline.add(at, Event::Mishap);
        }
    }

    pub(super) fn mishap(&mut self) {
        if self.is_frozen {
            return;
        }
        let at = self.random.below(self.shards.len());
        if self.rules.pauses && self.random.chance(0.25) {
            self.pause(!self.is_paused);
            return self.plan_mishap();
        }
        match self.random.one_of(&self.possible_mishaps()) {
            Mishap::Stall => self.stall(at),
            Mishap::Death => self.kill_idle(shard(at)),
            Mishap::Limit => self.change_limit(),
            Mishap::OuterLimit => self.change_outer_limit(),
            Mishap::OtherServer if self.others < OTHERS_MAX => {
                self.others += u32::from(self.outer.try_take());
            }
            Mishap::OtherServer => {}
            Mishap::OtherOpening => self.open_other(),
            Mishap::TurnAway => self.turn_away(shard(at)),
            Mishap::Reload => self.change_configuration(),
            Mishap::Apart => self.timeline.add(self.now, Event::Apart(shard(at), 0)),
        }
        self.plan_mishap();
    }

    fn possible_mishaps(&self) -> Vec<Mishap> {
        let rules = &self.rules;
        let possible = [
            (Mishap::Stall, rules.stall_us.is_some()),
            (Mishap::Death, true),
            (Mishap::Limit, true),
            (Mishap::OuterLimit, rules.outer.is_some()),
            (Mishap::OtherServer, rules.outer.is_some()),
            (Mishap::OtherOpening, rules.openings_there.is_some()),
            (Mishap::TurnAway, rules.turns_away),
            (Mishap::Reload, true),
            (Mishap::Apart, rules.apart),
        ];
        let mishap = |(mishap, is_possible): (Mishap, bool)| is_possible.then_some(mishap);
        possible.into_iter().filter_map(mishap).collect()
    }

    /// The other pool opens a server, if there is a place for the attempt.
    fn open_other(&mut self) {
        if self.machines[0].try_take() {
            self.opening_others += 1;
            let at = self.now.after(self.random.micros(50, 5000));
            self.timeline.add(at, Event::OtherOpens);
        }
    }

    /// Everybody who has waited for some time leaves the line, oldest first.
    fn turn_away(&mut self, shard: ShardId) {
        if self.shards[shard.index()].is_stalled {
            return;
        }
        let until = match self.random.chance(0.5) {
            true => Moment::NEVER,
            false => {
                let span = self.random.micros(0, 2 * self.rules.lease_us);
                Moment::default().after(self.now.since(Moment::default()).saturating_sub(span))
            }
        };
        let expected = self.in_line_since(shard, until);
        let taken = self.shards[shard.index()].pool.take_waiters(until);
        assert_eq!(taken, expected, "others were turned away");
        for client in taken {
            self.clients[client] = Client::Away;
            self.comes_again(client);
        }
    }

    /// Who is in line on `shard` and has been since `until` or longer, oldest first.
    fn in_line_since(&self, shard: ShardId, until: Moment) -> Vec<usize> {
        let clients = self.clients.iter().zip(&self.homes).enumerate();
        let mut line: Vec<_> = clients
            .filter_map(|(client, (state, home))| match state {
                Client::Waiting(id, since) if *home == shard && *since <= until => {
                    Some((*id, client))
                }
                _ => None,
            })
            .collect();
        line.sort_unstable();
        line.into_iter().map(|(_, client)| client).collect()
    }

    fn change_configuration(&mut self) {
        self.minimum = self.random.below(self.rules.minimum as usize + 1) as u32;
        self.is_round_robin = self.rules.round_robin ^ self.random.chance(0.3);
        self.machine = self.random.below(self.machines.len());
        self.tell(Event::Reload);
    }

    /// Every shard hears of it in its own time, and of the newest order whenever it does.
    pub(super) fn pause(&mut self, is_paused: bool) {
        self.is_paused = is_paused;
        self.tell(Event::Hear);
    }

    pub(super) fn hear(&mut self, shard: ShardId) {
        let is_paused = self.is_paused;
        self.with(shard, |pool, now, out| match is_paused {
            true => pool.pause(out),
            false => pool.resume(now, out),
        });
        assert_eq!(self.shards[shard.index()].pool.is_paused(), is_paused);
    }

    pub(super) fn stall(&mut self, at: usize) {
        if !std::mem::replace(&mut self.shards[at].is_stalled, true) {
            let longest = self.rules.stall_us.unwrap_or(100);
            let until = self.now.after(self.random.micros(100, longest));
            self.timeline.add(until, Event::Resume(shard(at)));
        }
    }

    pub(super) fn resume(&mut self, shard: ShardId) {
        self.shards[shard.index()].is_stalled = false;
        while let Some(event) = self.shards[shard.index()].inbox.pop_front() {
            self.perform(event);
        }
    }

    pub(super) fn kill_idle(&mut self, shard: ShardId) {
        let is_stalled = self.shards[shard.index()].is_stalled;
        let killed = self.shards[shard.index()].pool.remove_idle(|_| !is_stalled);
        if let Some(server) = killed {
            self.close(shard, server);
        }
    }

    pub(super) fn change_limit(&mut self) {
        let limit = self.random.below(2 * self.rules.limit as usize + 1) as u32;
        let reserve = self.random.below(2 * self.rules.reserve.0 as usize + 1) as u32;
        self.set_limits(limit, reserve);
        self.tell(Event::Poke);
    }

    pub(super) fn set_limits(&mut self, limit: u32, reserve: u32) {
        let after = Duration::from_micros(self.rules.reserve.1);
        self.shared.set_limits(limit, reserve, after);
        self.reserve = reserve;
    }

    pub(super) fn change_outer_limit(&mut self) {
        let mean = self.rules.outer.unwrap_or_default() as usize;
        self.outer.set_limit(self.random.below(2 * mean + 1) as u32);
        while self.others > self.evicting && self.outer.try_retire(false) {
            self.others -= 1;
            self.outer.give_back_retired();
        }
        self.tell(Event::Poke);
    }

    /// The other pool closes one of its servers, all of which are idle.
    pub(super) fn evict_other(&mut self) {
        assert!(!self.outer.has_free(), "evicted for nothing");
        if self.evicting < self.others {
            self.evicting += 1;
            let at = self.now.after(self.random.micros(1, 200));
            self.timeline.add(at, Event::OtherCloses);
        }
    }

    /// Every shard does as `event` says in its own time.
    pub(super) fn tell(&mut self, event: impl Fn(ShardId) -> Event) {
        for at in 0..self.shards.len() {
            let heard = self.now.after(self.random.micros(1, 500));
            self.timeline.add(heard, event(shard(at)));
        }
    }
}
