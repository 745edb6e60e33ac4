//! How long nobody tries to open a server after attempts have failed: longer with every failure in a
//! row, so that a short outage is over soon and a long one does not keep the server busy.

use std::time::Duration;

/// Doublings from the first pause to the longest.
const DOUBLINGS: u32 = 4;

/// The pause after this many failures in a row; `longest` after five or more. Up to a tenth comes on
/// top as `chance` says, so that the pools of one server do not all try again at the same moment.
pub fn pause_after(failures: u32, longest: Duration, chance: u8) -> Duration {
    let halvings = DOUBLINGS.saturating_sub(failures.saturating_sub(1));
    let pause = longest / (1 << halvings);
    pause + pause / 10 * u32::from(chance) / u32::from(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let longest = Duration::from_millis(16_000);
        let pauses = (1..=7).map(|failures| pause_after(failures, longest, 0).as_millis());
        let expected = [1000, 2000, 4000, 8000, 16_000, 16_000, 16_000];
        assert_eq!(pauses.collect::<Vec<_>>(), expected);
        assert_eq!(pause_after(u32::MAX, longest, 0), longest);
        assert_eq!(pause_after(0, longest, 0), longest / 16);
    }

    #[test]
    fn chance_adds_a_tenth_at_most() {
        let longest = Duration::from_secs(16);
        assert_eq!(pause_after(9, longest, 255), longest + longest / 10);
        assert!(pause_after(9, longest, 100) < pause_after(9, longest, 101));
    }
}
