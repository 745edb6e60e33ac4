//! The only place where a test lets time pass.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

/// How long anything may take before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Sets the flag by which other threads end, also when a test fails.
pub struct Over<'a>(pub &'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Polls until `condition` holds; panics with `what` after [`PATIENCE`].
#[track_caller]
pub fn wait_until(what: &str, condition: impl FnMut() -> bool) {
    assert!(
        holds_within(PATIENCE, condition),
        "waited {PATIENCE:?} in vain until {what}"
    );
}

/// Polls until `condition` holds; false if it did not within `patience`.
pub fn holds_within(patience: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        sleep(Duration::from_millis(3));
    }
}

/// Blocks until `moment`: for loads of a fixed rate, not for waiting on events.
pub fn pace_until(moment: Instant) {
    sleep(moment.saturating_duration_since(Instant::now()));
}

/// How long `work` takes, less the time for which the machine kept a thread waiting that did nothing meanwhile but wake up.
pub fn time_of(work: impl FnOnce()) -> Duration {
    const NAP: Duration = Duration::from_millis(1);
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let stall = scope.spawn(|| {
            let mut stall = Duration::ZERO;
            while !is_over.load(Ordering::Acquire) {
                let begun = Instant::now();
                sleep(NAP);
                stall += begun.elapsed() - NAP;
            }
            stall
        });
        let begun = Instant::now();
        work();
        let taken = begun.elapsed();
        is_over.store(true, Ordering::Release);
        taken.saturating_sub(stall.join().unwrap())
    })
}

/// A duration in seconds from the environment: `TORTURE_SECONDS=60`.
pub fn seconds_from_env(name: &str, default: u64) -> Duration {
    let seconds = std::env::var(name)
        .ok()
        .map(|text| text.parse().expect("a number of seconds"));
    Duration::from_secs(seconds.unwrap_or(default))
}

/// Held by tests that load or time the whole machine: one of them runs at a time.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}
