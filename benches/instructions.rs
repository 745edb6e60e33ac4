//! Runs `COUNT` transactions of a kind for `scripts/instructions.py`, which has callgrind count their instructions.
//!
//! ```text
//! instructions simple|extended|prepared|rows COUNT     what a relay does, without its sockets
//! instructions idle|line|lines|mixed SHARDS COUNT      what the parts of one pool on so many shards do
//! ```

use ringbouncer::base::{Moment, ShardId};
use ringbouncer::pool::{Acquired, Action, LocalPool, SharedPool};
use ringbouncer::relay::Rehearsal;
use ringbouncer::wire::backend::{self, Column, TransactionStatus, oid};
use ringbouncer::wire::{frontend, message};
use std::collections::VecDeque;
use std::hint::black_box;
use std::mem::take;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let number = |at: usize| arguments.get(at)?.parse::<usize>().ok();
    match (arguments.get(1), number(2), number(3)) {
        (Some(case), Some(count), None) => relay(case, count),
        (Some(case), Some(shards), Some(count)) => {
            let mut shards = Shards::new(case, shards);
            shards.run(count);
            println!("{} servers changed shards", shards.hand_offs);
        }
        _ => println!("usage: see the head of benches/instructions.rs"),
    }
}

// ---- the relay -------------------------------------------------------------------------------

const TEXT: &str = "SELECT abalance FROM pgbench_accounts WHERE aid = 12345";
const TEXT_WITH_PARAMETER: &str = "SELECT abalance FROM pgbench_accounts WHERE aid = $1";

fn relay(case: &str, count: usize) {
    let mut rehearsal = Rehearsal::default();
    let (request, answer) = match case {
        "simple" => (query(), answer_to_query(1)),
        "rows" => (query(), answer_to_query(100)),
        "extended" => (extended(b"", true), answer_to_extended(true)),
        "prepared" => {
            rehearsal.transaction(&extended(b"named", true), &answer_to_named());
            (extended(b"named", false), answer_to_extended(false))
        }
        other => panic!("unknown case {other}"),
    };
    for _ in 0..count {
        black_box(rehearsal.transaction(black_box(&request), black_box(&answer)));
    }
}

fn query() -> Vec<u8> {
    let mut out = Vec::new();
    frontend::query(&mut out, TEXT);
    out
}

fn extended(statement: &[u8], parses: bool) -> Vec<u8> {
    let mut out = Vec::new();
    if parses {
        frontend::parse(&mut out, statement, TEXT_WITH_PARAMETER.as_bytes(), &[]);
    }
    frontend::bind(&mut out, b"", statement, &[Some(b"12345")]);
    message(&mut out, b'D', |body| body.extend_from_slice(b"P\0"));
    frontend::execute(&mut out, b"", 0);
    frontend::sync(&mut out);
    out
}

fn answer_to_query(rows: usize) -> Vec<u8> {
    let mut out = Vec::new();
    let column = Column {
        name: "abalance",
        type_oid: oid::INT4,
    };
    backend::row_description(&mut out, &[column]);
    for _ in 0..rows {
        backend::data_row(&mut out, &[Some(b"0")]);
    }
    backend::command_complete(&mut out, "SELECT 1");
    backend::ready_for_query(&mut out, TransactionStatus::Idle);
    out
}

/// The pooler asks for the type of the parameter, which the Parse leaves open.
fn answer_to_named() -> Vec<u8> {
    let mut out = Vec::new();
    backend::parse_complete(&mut out);
    backend::parameter_description(&mut out, &[oid::INT4]);
    backend::no_data(&mut out);
    out.extend(answer_to_extended(false));
    out
}

fn answer_to_extended(parses: bool) -> Vec<u8> {
    let mut out = Vec::new();
    if parses {
        backend::parse_complete(&mut out);
    }
    backend::bind_complete(&mut out);
    out.extend(answer_to_query(1));
    out
}

// ---- the pool --------------------------------------------------------------------------------

/// Servers of a shard.
const SERVERS: usize = 4;
/// Clients of a shard whose pool is saturated.
const CLIENTS: usize = 32;
/// How long a server takes for a query.
const QUERY: Duration = Duration::from_micros(200);

/// A client that has a server.
struct Lease {
    shard: usize,
    server: usize,
    client: usize,
}

/// All shards of one pool, in one thread. Each client asks again at once; a message arrives as soon as it is sent. What is
/// done here, about 110 instructions per transaction, is counted as well.
struct Shards {
    shards: Vec<LocalPool<usize, usize>>,
    /// In the order in which the queries end.
    leases: VecDeque<Lease>,
    /// Instead they end in any order.
    random: Option<u64>,
    now: Moment,
    servers: usize,
    hand_offs: usize,
    /// Memory to be used again.
    actions: Vec<Action<usize, usize>>,
}

impl Shards {
    fn new(case: &str, count: usize) -> Shards {
        let limit = (count * SERVERS) as u32;
        let shared = Arc::new(SharedPool::new(count, limit, Vec::new()));
        let shard = |id| LocalPool::new(shared.clone(), ShardId(id as u16));
        let mut shards = Shards {
            shards: (0..count).map(shard).collect(),
            leases: VecDeque::new(),
            random: (case == "mixed").then_some(1),
            now: Moment::from_nanos(1),
            servers: 0,
            hand_offs: 0,
            actions: Vec::new(),
        };
        match case {
            // Every client finds an idle server.
            "idle" => shards.populate(0..count, SERVERS),
            // One shard has a line. The others had idle servers, and have lent them for long.
            "line" => {
                shards.populate(1..count, SERVERS);
                shards.run(count * SERVERS);
                shards.leases.clear();
                shards.populate(0..1, CLIENTS);
            }
            // Every shard has a line.
            "lines" | "mixed" => shards.populate(0..count, CLIENTS),
            other => panic!("unknown case {other}"),
        }
        shards
    }

    /// Lets so many clients of each of these shards ask for a server.
    fn populate(&mut self, shards: Range<usize>, clients: usize) {
        for client in 0..clients {
            for shard in shards.clone() {
                self.acquire(shard, client);
            }
        }
    }

    /// Lets so many queries end.
    fn run(&mut self, count: usize) {
        let pause = QUERY / self.leases.len().max(1) as u32;
        for _ in 0..count {
            let Some(lease) = self.next_lease() else {
                break;
            };
            self.now = self.now.after(pause);
            let mut actions = take(&mut self.actions);
            self.shards[lease.shard].release(lease.server, self.now, &mut actions);
            self.perform(lease.shard, actions);
            self.acquire(lease.shard, lease.client);
        }
    }

    fn next_lease(&mut self) -> Option<Lease> {
        if let Some(state) = &mut self.random {
            // xorshift64
            *state ^= *state << 13;
            *state ^= *state >> 7;
            *state ^= *state << 17;
            let at = *state as usize % self.leases.len();
            self.leases.swap(0, at);
        }
        self.leases.pop_front()
    }

    fn acquire(&mut self, shard: usize, client: usize) {
        let mut actions = take(&mut self.actions);
        let acquired = self.shards[shard].acquire(client, self.now, &mut actions);
        if let Acquired::Granted(server) = acquired {
            self.lend(shard, server, client);
        }
        self.perform(shard, actions);
    }

    fn lend(&mut self, shard: usize, server: usize, client: usize) {
        self.leases.push_back(Lease {
            shard,
            server,
            client,
        });
    }

    fn perform(&mut self, shard: usize, mut actions: Vec<Action<usize, usize>>) {
        let (me, now) = (ShardId(shard as u16), self.now);
        for action in actions.drain(..) {
            let mut out = Vec::new();
            let at = match action {
                Action::Grant { waiter, server } => {
                    self.lend(shard, server, waiter);
                    continue;
                }
                Action::Open => {
                    self.servers += 1;
                    self.shards[shard].opened(self.servers, now, &mut out);
                    shard
                }
                Action::Send { to, server, hops } => {
                    self.hand_offs += 1;
                    self.shards[to.index()].arrived(server, me, hops, now, &mut out);
                    to.index()
                }
                Action::Ask(to) => {
                    self.shards[to.index()].asked(me, &mut out);
                    to.index()
                }
                Action::Decline(to) => {
                    self.shards[to.index()].declined(me, now, &mut out);
                    to.index()
                }
                Action::Wake(to) => {
                    self.shards[to.index()].poke(now, &mut out);
                    to.index()
                }
                Action::Close(..) | Action::Check(_) | Action::Evict => {
                    unreachable!("no limit has changed")
                }
            };
            self.perform(at, out);
        }
        self.actions = actions;
    }
}
