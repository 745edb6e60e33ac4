//! The only reader of the operating system's clocks. Layers that must stay pure take a [`Moment`]
//! as an argument instead.

use rustix::time::{ClockId, clock_gettime};
use std::cell::Cell;
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A point on the monotonic clock, in nanoseconds since the process first looked at it.
///
/// Fits an `AtomicU64`, so that shards can publish moments to each other. `u64` nanoseconds last
/// for 584 years.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(u64);

impl Moment {
    /// A moment that never comes.
    pub const NEVER: Moment = Moment(u64::MAX);

    /// The moment `nanos` nanoseconds after the process's origin.
    pub const fn from_nanos(nanos: u64) -> Moment {
        Moment(nanos)
    }

    /// Nanoseconds since the process's origin.
    pub const fn nanos(self) -> u64 {
        self.0
    }

    /// Time passed since `earlier`; zero if `earlier` lies ahead.
    pub const fn since(self, earlier: Moment) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// This moment moved by `span`; [`Moment::NEVER`] if that overflows.
    pub fn after(self, span: Duration) -> Moment {
        let nanos = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        Moment(self.0.saturating_add(nanos))
    }

    /// The end of a `timeout` that begins now; of one of 0, which is none, [`Moment::NEVER`].
    pub fn deadline(self, timeout: Duration) -> Moment {
        match timeout.is_zero() {
            true => Moment::NEVER,
            false => self.after(timeout),
        }
    }
}

/// Since when something is so, if it is: a cell for an optional moment in the room of one, as every client has a few.
#[derive(Debug)]
pub struct Since(Cell<Moment>);

impl Default for Since {
    /// It is not so.
    fn default() -> Since {
        Since(Cell::new(Moment::NEVER))
    }
}

impl Since {
    /// Since when.
    pub fn get(&self) -> Option<Moment> {
        Some(self.0.get()).filter(|moment| *moment != Moment::NEVER)
    }

    /// Replaces it; [`Moment::NEVER`] is none.
    pub fn set(&self, moment: Option<Moment>) {
        self.0.set(moment.unwrap_or(Moment::NEVER));
    }

    /// Since when it was so until now.
    pub fn take(&self) -> Option<Moment> {
        let moment = self.get();
        self.set(None);
        moment
    }
}

/// Reads the clocks.
#[derive(Clone, Copy, Debug)]
pub struct Clock;

impl Clock {
    /// Now, on the monotonic clock (CLOCK_MONOTONIC, a vDSO call of about 20 ns).
    pub fn now() -> Moment {
        static ORIGIN: OnceLock<Instant> = OnceLock::new();
        let nanos = ORIGIN.get_or_init(Instant::now).elapsed().as_nanos();
        Moment(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// CPU time that the calling thread has used, in the kernel and out of it.
    pub fn thread_cpu() -> Duration {
        let used = clock_gettime(ClockId::ThreadCPUTime);
        let secs = u64::try_from(used.tv_sec).unwrap_or_default();
        Duration::from_secs(secs) + Duration::from_nanos(used.tv_nsec.unsigned_abs())
    }

    /// Now, as microseconds since the Unix epoch: for time stamps that people read.
    pub fn unix_micros() -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        u64::try_from(since.unwrap_or_default().as_micros()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_is_what_was_set_until_it_is_taken() {
        let since = Since::default();
        assert_eq!(since.get(), None);
        since.set(Some(Moment::from_nanos(0)));
        assert_eq!(since.get(), Some(Moment::from_nanos(0)));
        assert_eq!(since.take(), Some(Moment::from_nanos(0)));
        assert_eq!(since.take(), None);
        assert_eq!(size_of::<Since>(), size_of::<Moment>());
    }

    #[test]
    fn after_saturates_and_since_never_goes_negative() {
        let early = Moment::from_nanos(5);
        let late = early.after(Duration::from_nanos(7));
        assert_eq!(late.since(early), Duration::from_nanos(7));
        assert_eq!(early.since(late), Duration::ZERO);
        assert_eq!(late.after(Duration::MAX), Moment::NEVER);
        assert_eq!(early.deadline(Duration::from_nanos(7)), late);
        assert_eq!(early.deadline(Duration::ZERO), Moment::NEVER);
    }
}
