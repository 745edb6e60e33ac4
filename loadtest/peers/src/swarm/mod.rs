//! A swarm of clients in several processes: it connects as many as it is asked for, or as the system lets it, holds them, and
//! drives a part of them.
//!
//! One process may have only so many descriptors and one source address only so many ports, so the clients are spread over
//! worker processes ([`worker`]) and, on loopback, over the addresses 127.0.0.2 and following. The parent ([`parent`])
//! passes commands on and merges what the workers measured.
//!
//! **Open loop**: transactions are due at random times (exponentially distributed gaps) whatever the answers do. One that finds
//! no free client waits for the next that becomes free; its latency counts from when it was due. So a stall of the pooler is
//! charged to everybody it delays, which a closed loop (each client sends again when it has its answer) hides.

pub mod client;
pub mod drive;
pub mod options;
pub mod parent;
pub mod report;
pub mod worker;

/// The monotonic clock, the same for all processes.
pub fn now_nanos() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
