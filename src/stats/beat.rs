//! Whether a shard's loop turns, for other shards to see.

use crate::base::Moment;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// A turn takes microseconds; one that takes longer than this leaves its clients waiting.
const TURN_MAX: Duration = Duration::from_millis(20);
/// Every shard's upkeep wakes it three times a second; one asleep for longer does not wake up.
const SLEEP_MAX: Duration = Duration::from_secs(1);

/// The lowest bit: asleep in the ring.
const ASLEEP: u64 = 1;

/// When a shard began its turn, or went to sleep. One writer, two relaxed stores per turn.
#[derive(Debug, Default)]
pub struct Beat(AtomicU64);

impl Beat {
    /// The shard works from `now` on. Only it may call this.
    #[inline]
    pub fn works(&self, now: Moment) {
        self.0.store(now.nanos() & !ASLEEP, Relaxed);
    }

    /// The shard waits for completions from `now` on. Only it may call this.
    #[inline]
    pub fn sleeps(&self, now: Moment) {
        self.0.store(now.nanos() | ASLEEP, Relaxed);
    }

    /// Whether the shard has not turned for so long that nobody should be sent there.
    pub fn is_stalled(&self, now: Moment) -> bool {
        let word = self.0.load(Relaxed);
        let quiet_max = if word & ASLEEP == 0 {
            TURN_MAX
        } else {
            SLEEP_MAX
        };
        now.since(Moment::from_nanos(word)) > quiet_max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn working_for_long_or_not_waking_for_longer_is_a_stall() {
        let (beat, start) = (Beat::default(), Moment::from_nanos(1_000_001));
        let later = |span: Duration| start.after(span + Duration::from_micros(1));
        beat.works(start);
        assert!(!beat.is_stalled(start) && !beat.is_stalled(later(TURN_MAX / 2)));
        assert!(beat.is_stalled(later(TURN_MAX)));
        beat.sleeps(start);
        assert!(!beat.is_stalled(later(TURN_MAX)) && beat.is_stalled(later(SLEEP_MAX)));
    }
}
