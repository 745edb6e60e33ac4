//! Whether something happens in time, with what the machine itself stalled taken off: threads that only sleep say how late
//! it wakes whom.

use std::sync::{Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use super::wait::{pace_until, wait_until};

/// Several, as a core that is taken away keeps only those from waking that are to run on it.
const CANARIES: usize = 3;
const STEP: Duration = Duration::from_millis(5);
/// What is less is no stall: a busy machine's everyday.
const STALL_MIN: Duration = Duration::from_millis(20);
/// How late a timeout may fire.
const LATE_MAX: Duration = Duration::from_secs(1);

/// What one canary has seen.
struct Seen {
    /// Until when it has looked.
    until: Instant,
    /// When it should have woken, and how much later it did.
    stalls: Vec<(Instant, Duration)>,
}

fn canaries() -> &'static [Mutex<Seen>; CANARIES] {
    static SEEN: OnceLock<[Mutex<Seen>; CANARIES]> = OnceLock::new();
    static STARTED: OnceLock<()> = OnceLock::new();
    let seen = SEEN.get_or_init(|| {
        [(); CANARIES].map(|()| {
            Mutex::new(Seen {
                until: Instant::now(),
                stalls: Vec::new(),
            })
        })
    });
    STARTED.get_or_init(|| {
        for seen in seen {
            thread::spawn(move || watch(seen));
        }
    });
    seen
}

fn watch(seen: &Mutex<Seen>) {
    loop {
        let due = Instant::now() + STEP;
        pace_until(due);
        let now = Instant::now();
        let mut seen = seen.lock().unwrap();
        seen.until = now;
        if now - due > STALL_MIN {
            seen.stalls.push((due, now - due));
        }
    }
}

/// A span of time whose end is due.
#[derive(Clone, Copy)]
pub struct Span {
    since: Instant,
}

impl Span {
    pub fn begin() -> Span {
        canaries();
        Span {
            since: Instant::now(),
        }
    }

    /// Asserts that the span ends now: `after` its begin or up to a second later, not counting what the machine stalled.
    #[track_caller]
    pub fn assert_over(&self, what: &str, after: Duration) {
        let took = self.since.elapsed();
        assert!(took >= after, "{what} after {took:?} already");
        if took > after + LATE_MAX {
            let stalled = self.stalled();
            assert!(
                took <= after + LATE_MAX + stalled,
                "{what} after {took:?}, of which the machine stalled {stalled:?}"
            );
        }
    }

    /// How long the canary that had the worst of it was kept from waking.
    pub fn stalled(&self) -> Duration {
        let now = Instant::now();
        let of = |seen: &Mutex<Seen>| {
            // One that is kept from waking even now has not written it down yet.
            wait_until("the canary has looked", || seen.lock().unwrap().until > now);
            let seen = seen.lock().unwrap();
            let since = |(due, late): &(Instant, Duration)| {
                let (begun, ended) = ((*due).max(self.since), (*due + *late).min(now));
                ended.saturating_duration_since(begun)
            };
            seen.stalls.iter().map(since).sum::<Duration>()
        };
        canaries().iter().map(of).max().unwrap_or_default()
    }
}
