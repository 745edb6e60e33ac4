//! What a relay does to the bytes of a transaction, without sockets: so that its instructions can be counted
//! (`benches/instructions.rs`). The steps are those of [`super::Relay`] between a request and the end of its answer.

use super::downstream::{Audience, Downstream};
use super::outlet::{Outlet, Passed};
use super::upstream::{Counts, Exchange, Idle, Rules, Upstream};
use crate::server::Dialogue;
use crate::session::{ClientStatements, Settings, Statements};
use crate::stats::PoolStats;

/// One client and one server that belong together for one transaction after the other.
pub struct Rehearsal {
    upstream: Upstream,
    downstream: Downstream,
    dialogue: Dialogue,
    names: ClientStatements,
    statements: Statements,
    settings: Settings,
    stats: PoolStats,
}

impl Rehearsal {
    /// A client that has just logged in.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Rehearsal {
        Rehearsal {
            upstream: Upstream::default(),
            downstream: Downstream::default(),
            dialogue: Dialogue::default(),
            names: ClientStatements::default(),
            statements: Statements::default(),
            settings: Settings::default(),
            stats: PoolStats::default(),
        }
    }

    /// Relays a request and its answer; gives the bytes that went to the server and to the client.
    ///
    /// # Panics
    /// If they do not fit each other, or the server could not be released afterwards.
    pub fn transaction(&mut self, request: &[u8], answer: &[u8]) -> (usize, usize) {
        let passed = (self.forward(request), self.backward(answer));
        assert!(
            self.dialogue.replies.is_clean() && self.downstream.is_between(),
            "the answer is complete"
        );
        passed
    }

    fn forward(&mut self, request: &[u8]) -> usize {
        let rules = Rules {
            prepared_max: 100,
            body_bytes_max: usize::MAX,
        };
        let idle = self.upstream.idle(request, rules);
        assert!(
            matches!(idle, Ok(Idle::Needs(0))),
            "a request needs a server"
        );
        self.stats.server_assigned(1_000);
        let differences = self.dialogue.params.differences(&mut self.settings);
        assert!(differences.is_empty(), "nobody has made settings");
        self.stats.xact_count.inc();
        self.stats.query_count.inc();
        self.stats.bytes_received.add(request.len() as u64);
        let mut outlet = Outlet::new(request, None);
        let mut counts = Counts::default();
        let fed = self.upstream.feed(
            request,
            &mut outlet,
            &mut Exchange {
                rules,
                dialogue: &mut self.dialogue,
                names: &mut self.names,
                statements: &mut self.statements,
                counts: &mut counts,
            },
        );
        assert!(matches!(fed, Ok(false)), "the client stays");
        length(&outlet.finish())
    }

    fn backward(&mut self, answer: &[u8]) -> usize {
        let mut outlet = Outlet::new(answer, None);
        let fed = self.downstream.feed(
            answer,
            &mut outlet,
            &mut Audience {
                dialogue: &mut self.dialogue,
                names: &mut self.names,
                settings: &mut self.settings,
                refuses_transactions: false,
            },
        );
        assert!(fed.is_ok(), "the server keeps to the protocol");
        self.stats.bytes_sent.add(answer.len() as u64);
        self.stats.query_ended(100_000);
        self.stats.transaction_ended(100_000);
        length(&outlet.finish())
    }
}

fn length(passed: &Passed) -> usize {
    match passed {
        Passed::Prefix(length) => *length,
        Passed::Copy(bytes) => bytes.len(),
    }
}
