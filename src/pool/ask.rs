//! The questions a shard has out: "you have an idle server, send it to me". Each is answered once,
//! by a server or by a refusal, unless a full mailbox swallows question or answer or the other
//! shard is stalled; then it is overdue, that shard is left alone for a while, and others are
//! asked instead.

use crate::base::{Moment, ShardId};
use std::time::Duration;

/// An answer takes two messages, some tens of microseconds; later than this it is overdue and
/// its waiter counts as unprovided for.
const ANSWER_SPAN: Duration = Duration::from_millis(5);

/// After this the question counts as lost, and the shard may be asked again.
const FORGET_SPAN: Duration = Duration::from_millis(50);

/// Open questions, at most one entry per shard.
#[derive(Debug, Default)]
pub(super) struct Asks {
    entries: Vec<Ask>,
}

#[derive(Debug)]
struct Ask {
    to: ShardId,
    /// How many servers were asked for and not answered; 0 once overdue.
    count: u32,
    /// When the newest of them was sent.
    since: Moment,
}

impl Asks {
    /// Notes a question to `to`.
    pub(super) fn add(&mut self, to: ShardId, now: Moment) {
        match self.find(to) {
            Some(ask) => {
                ask.count += 1;
                ask.since = now;
            }
            None => self.entries.push(Ask {
                to,
                count: 1,
                since: now,
            }),
        }
    }

    /// Notes an answer of `from`; harmless if it was not asked.
    pub(super) fn settle(&mut self, from: ShardId) {
        if let Some(ask) = self.find(from) {
            ask.count = ask.count.saturating_sub(1);
        }
        self.entries.retain(|ask| ask.to != from || ask.count > 0);
    }

    /// Gives up on the overdue and forgets the lost.
    pub(super) fn expire(&mut self, now: Moment) {
        self.entries
            .retain(|ask| now.since(ask.since) < FORGET_SPAN);
        for ask in &mut self.entries {
            if now.since(ask.since) >= ANSWER_SPAN {
                ask.count = 0;
            }
        }
    }

    /// How many servers may still come.
    pub(super) fn pending(&self) -> usize {
        self.entries.iter().map(|ask| ask.count as usize).sum()
    }

    /// How many of `to`'s idle servers are spoken for by us; all of them while it owes an
    /// overdue answer.
    pub(super) fn spoken_for(&self, to: ShardId) -> u32 {
        match self.entries.iter().find(|ask| ask.to == to) {
            Some(ask) if ask.count == 0 => u32::MAX,
            Some(ask) => ask.count,
            None => 0,
        }
    }

    fn find(&mut self, shard: ShardId) -> Option<&mut Ask> {
        self.entries.iter_mut().find(|ask| ask.to == shard)
    }
}

/// A check takes a round trip to the server; when it takes longer than this, its waiter counts as unprovided for.
const CHECK_SPAN: Duration = Duration::from_millis(100);

/// Servers that are being checked for the line.
#[derive(Debug, Default)]
pub(super) struct Checks {
    /// When each began.
    begun: Vec<Moment>,
    /// How many of them are overdue.
    slow: usize,
}

impl Checks {
    pub(super) fn begin(&mut self, now: Moment) {
        self.begun.push(now);
    }

    /// One that began at `begun` has ended.
    pub(super) fn end(&mut self, begun: Moment) {
        if let Some(at) = self.begun.iter().position(|since| *since == begun) {
            self.begun.swap_remove(at);
        }
        self.slow = self.slow.min(self.begun.len());
    }

    /// Looks which are overdue.
    pub(super) fn expire(&mut self, now: Moment) {
        let is_slow = |since: &&Moment| now.since(**since) >= CHECK_SPAN;
        self.slow = self.begun.iter().filter(is_slow).count();
    }

    /// How many may soon end.
    pub(super) fn pending(&self) -> usize {
        self.begun.len() - self.slow
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OTHER: ShardId = ShardId(4);

    #[test]
    fn an_answer_settles_one_question() {
        let mut asks = Asks::default();
        asks.add(OTHER, Moment::default());
        asks.add(OTHER, Moment::default());
        asks.settle(OTHER);
        assert_eq!((asks.pending(), asks.spoken_for(OTHER)), (1, 1));
        asks.settle(OTHER);
        asks.settle(OTHER);
        assert_eq!((asks.pending(), asks.spoken_for(OTHER)), (0, 0));
    }

    #[test]
    fn a_slow_check_is_overdue_whatever_has_begun_since() {
        let start = Moment::default();
        let mut checks = Checks::default();
        checks.begin(start);
        checks.begin(start.after(CHECK_SPAN / 2));
        checks.expire(start.after(CHECK_SPAN));
        assert_eq!(checks.pending(), 1);
        checks.end(start);
        assert_eq!(
            checks.pending(),
            0,
            "which one is overdue is found at the next look"
        );
        checks.expire(start.after(CHECK_SPAN));
        assert_eq!(checks.pending(), 1);
    }

    #[test]
    fn an_overdue_shard_is_left_alone_until_it_answers_or_is_forgotten() {
        let start = Moment::default();
        let mut asks = Asks::default();
        asks.add(OTHER, start);
        asks.expire(start.after(ANSWER_SPAN));
        assert_eq!((asks.pending(), asks.spoken_for(OTHER)), (0, u32::MAX));
        asks.expire(start.after(FORGET_SPAN));
        assert_eq!(asks.spoken_for(OTHER), 0);
    }
}
