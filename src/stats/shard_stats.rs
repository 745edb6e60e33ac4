//! How one shard fares: connections, hand-offs, mail, ring, buffers, time.

use crossbeam::utils::CachePadded;

use super::beat::Beat;
use super::counter::{Counter, Gauge, Peak};

/// The numbers of one shard. **Only that shard writes.**
///
/// Aligned to whole cache lines (by `clients`), so that two shards never share one.
#[derive(Debug, Default)]
pub struct ShardStats {
    /// Client connections now, logging-in ones included. Other shards read it at each accept to
    /// find the lighter one; so it has a line of its own, apart from the counters that change all the
    /// time.
    pub clients: CachePadded<Gauge>,
    /// Whether the loop turns; other shards read it before they send somebody here.
    pub beat: CachePadded<Beat>,
    /// CPU time of the shard's thread in thousandths of a core, the kernel's work for it included,
    /// over the last second or so.
    pub load: Gauge,
    /// Share of the last second or so in which the loop worked and did not wait, in thousandths.
    pub busy: Gauge,
    /// Server connections now, connecting ones included.
    pub servers: Gauge,
    /// Payloads queued on sockets and not sent yet.
    pub sends_queued: Gauge,
    /// Buffers of the ring that are free now.
    pub buffers_free: Gauge,

    /// Client sockets accepted by this shard's listeners.
    pub accepted: Counter,
    /// Client sockets taken over from another shard.
    pub clients_in: Counter,
    /// Client sockets passed to another shard.
    pub clients_out: Counter,
    /// Logged-in clients that came from another shard between two transactions.
    pub moves_in: Counter,
    /// Logged-in clients that went to another shard.
    pub moves_out: Counter,
    /// Clients that completed authentication.
    pub logins: Counter,
    /// Clients refused before they were logged in, or lost while logging in.
    pub login_failures: Counter,
    /// Clients refused, or sent away, for want of memory (`memory_max`).
    pub memory_refusals: Counter,
    /// Servers opened (logged in).
    pub servers_opened: Counter,
    /// Attempts to open a server that failed.
    pub server_failures: Counter,

    /// Idle servers taken over from another shard.
    pub handoffs_in: Counter,
    /// Idle servers handed to another shard.
    pub handoffs_out: Counter,
    /// Messages taken from this shard's mailbox.
    pub mail_received: Counter,
    /// Messages this shard could not send because the target's mailbox was full.
    pub mailbox_full: Counter,
    /// Most messages ever found waiting in this shard's mailbox.
    pub mailbox_depth_max: Peak,

    /// io_uring_enter calls.
    pub ring_enters: Counter,
    /// Completions reaped from the ring.
    pub completions: Counter,
    /// Receives that found no free buffer (ENOBUFS).
    pub buffers_starved: Counter,
    /// Buffers copied to the heap and given back because few were free.
    pub heap_copies: Counter,
    /// Bytes so copied.
    pub heap_copy_bytes: Counter,

    /// Time spent working, not waiting in the ring, in microseconds.
    pub busy_us: Counter,
    /// The longest turn, in microseconds.
    pub longest_turn_us: Peak,
    /// Times the watchdog found work that a sleeping shard should have been woken for.
    pub late_wakeups: Counter,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_never_share_a_cache_line_and_the_live_count_has_its_own() {
        assert!(align_of::<ShardStats>() >= 64);
        let stats = ShardStats::default();
        let clients = &raw const *stats.clients as usize;
        let others = [
            &raw const *stats.beat as usize,
            &raw const stats.servers as usize,
            &raw const stats.busy_us as usize,
        ];
        assert!(others.iter().all(|other| other.abs_diff(clients) >= 64));
    }
}
