//! What a relay does to the bytes of a transaction, without sockets: so that its instructions can be counted
//! (`benches/instructions.rs`). The steps are those of [`super::Relay`] between a request and the end of its answer.

use super::downstream::Audience;
use super::outlet::{Outlet, Passed};
use super::stores::Lease;
use super::upstream::{Counts, Exchange, Fed, Idle, Rules, Upstream};
use crate::server::Dialogue;
use crate::session::{Budget, ClientStatements, Generation, Settings, Statements};
use crate::stats::PoolStats;
use std::sync::Arc;

/// Default of `max_prepared_statements`.
const PREPARED_MAX: usize = 200;
/// Bytes that prepared statements may take.
const STATEMENTS_BYTES_MAX: u64 = 1 << 20;
/// What every query takes, in nanoseconds.
const QUERY_NS: u64 = 100_000;

/// One client and one server that belong together for one transaction after the other.
pub struct Rehearsal {
    rules: Rules,
    upstream: Upstream,
    dialogue: Dialogue,
    names: ClientStatements,
    unnamed: u64,
    statements: Statements,
    generation: Generation,
    lease: Lease,
    settings: Settings,
    stats: PoolStats,
}

impl Default for Rehearsal {
    /// A client that has just logged in, in transaction mode.
    fn default() -> Rehearsal {
        Rehearsal {
            rules: Rules {
                prepared_max: PREPARED_MAX,
                body_bytes_max: usize::MAX,
                is_strict: false,
                refuses_query: false,
            },
            upstream: Upstream::default(),
            dialogue: Dialogue::default(),
            names: ClientStatements::default(),
            unnamed: 0,
            statements: Statements::new(Arc::new(Budget::new(STATEMENTS_BYTES_MAX))),
            generation: Generation::default(),
            lease: Lease::default(),
            settings: Settings::default(),
            stats: PoolStats::default(),
        }
    }
}

impl Rehearsal {
    /// Relays a request and its answer; gives how many bytes went to the server and to the client.
    ///
    /// # Panics
    /// If they do not fit each other, or the server could not be released afterwards.
    pub fn transaction(&mut self, request: &[u8], answer: &[u8]) -> (usize, usize) {
        self.begin(request);
        let passed = (self.forward(request), self.backward(answer));
        let is_between = self.upstream.is_between() && self.lease.downstream.is_between();
        assert!(
            self.dialogue.replies.is_clean() && is_between,
            "the answer is complete"
        );
        passed
    }

    fn begin(&mut self, request: &[u8]) {
        self.stats.bytes_received.add(request.len() as u64);
        let idle = self.upstream.idle(request, self.rules);
        assert!(
            matches!(idle, Ok(Idle::Needs(0))),
            "a request needs a server"
        );
        self.stats.server_assigned(0);
        let differences = self.dialogue.params.differences(&mut self.settings);
        assert!(differences.is_empty(), "nobody has made settings");
        self.lease.end();
        self.lease.kept.arm();
    }

    fn forward(&mut self, request: &[u8]) -> usize {
        let mut counts = Counts::default();
        let mut outlet = Outlet::new(request, None);
        let fed = self.upstream.feed(
            request,
            &mut outlet,
            &mut self.lease.kept,
            &mut Exchange {
                rules: self.rules,
                client: 1,
                unnamed: &mut self.unnamed,
                dialogue: &mut self.dialogue,
                names: &mut self.names,
                statements: &mut self.statements,
                counts: &mut counts,
                generation: &self.generation,
                spoken: &mut self.lease.spoken,
                portal: &mut self.lease.portal,
                settings: &self.settings,
            },
        );
        assert!(matches!(fed, Ok(Fed::All)), "the client stays");
        self.stats.xact_count.inc();
        self.stats.query_count.inc();
        self.stats.client_parse_count.add(counts.client_parse);
        self.stats.server_parse_count.add(counts.server_parse);
        self.stats.bind_count.add(counts.bind);
        bytes(&outlet.finish())
    }

    fn backward(&mut self, answer: &[u8]) -> usize {
        self.stats.bytes_sent.add(answer.len() as u64);
        let mut outlet = Outlet::new(answer, None);
        let fed = self.lease.downstream.feed(
            answer,
            &mut outlet,
            &mut Audience {
                dialogue: &mut self.dialogue,
                names: &mut self.names,
                settings: &mut self.settings,
                refuses_transactions: false,
                kept: &mut self.lease.kept,
                generation: &self.generation,
                spoken: &mut self.lease.spoken,
                instead: Vec::new(),
            },
        );
        assert!(fed.is_ok(), "the server keeps to the protocol");
        self.stats.query_ended(QUERY_NS);
        self.stats.transaction_ended(QUERY_NS);
        bytes(&outlet.finish())
    }
}

fn bytes(passed: &Passed) -> usize {
    match passed {
        Passed::Prefix(length) => *length,
        Passed::Copy(bytes) => bytes.len(),
    }
}
