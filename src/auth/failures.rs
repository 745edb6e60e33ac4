//! Failed logins by address: who is refused for a while, and what SHOW LOGIN_FAILURES shows.
//!
//! A window begins with an address's first failure and ends after its span; failures are counted
//! within it. The table is bounded: the address that has been quiet longest is forgotten first.

use crate::base::Moment;
use lru::LruCache;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroUsize;
use std::time::Duration;

/// Addresses that are remembered.
const ADDRESSES_MAX: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");
/// Of an IPv6 address, the part that is somebody's whole network.
const V6_NETWORK: u128 = !0 << 64;

/// What is known of one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressFailures {
    /// Failed logins in the window.
    pub recent: u32,
    /// Failed logins since the address is remembered.
    pub total: u64,
    /// Attempts refused without a look at the password.
    pub refused: u64,
    /// When the last one failed, in microseconds since the Unix epoch.
    pub last_unix_us: u64,
    window: Moment,
}

/// The limit in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailureLimit {
    /// Failures that a window allows; 0 is no limit.
    pub max: u32,
    /// How long a window is.
    pub window: Duration,
}

/// The table.
pub struct LoginFailures(LruCache<IpAddr, AddressFailures>);

impl Default for LoginFailures {
    fn default() -> LoginFailures {
        LoginFailures(LruCache::new(ADDRESSES_MAX))
    }
}

impl LoginFailures {
    /// Whether a client from `address` may try; a refusal is counted.
    pub fn allows(&mut self, address: IpAddr, now: Moment, limit: FailureLimit) -> bool {
        let Some(known) = self.0.peek_mut(&network(address)) else {
            return true;
        };
        let is_blocked = known.is_blocked(now, limit);
        known.refused += u64::from(is_blocked);
        !is_blocked
    }

    /// A login from `address` has failed.
    pub fn failed(&mut self, address: IpAddr, now: Moment, unix_us: u64, window: Duration) {
        let known = self
            .0
            .get_or_insert_mut(network(address), || AddressFailures {
                recent: 0,
                total: 0,
                refused: 0,
                last_unix_us: 0,
                window: now,
            });
        if now.since(known.window) >= window {
            known.window = now;
            known.recent = 0;
        }
        known.recent = known.recent.saturating_add(1);
        known.total += 1;
        known.last_unix_us = unix_us;
    }

    /// Every address with failures and whether it is blocked, the latest first.
    pub fn rows(&self, now: Moment, limit: FailureLimit) -> Vec<(IpAddr, AddressFailures, bool)> {
        let row = |(address, known): (&IpAddr, &AddressFailures)| {
            let mut shown = *known;
            if now.since(known.window) >= limit.window {
                shown.recent = 0;
            }
            (*address, shown, known.is_blocked(now, limit))
        };
        self.0.iter().map(row).collect()
    }
}

impl AddressFailures {
    fn is_blocked(&self, now: Moment, limit: FailureLimit) -> bool {
        limit.max > 0 && self.recent >= limit.max && now.since(self.window) < limit.window
    }
}

/// What is counted together: an IPv4 address, or the network that an IPv6 address is in.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & V6_NETWORK).into(),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: FailureLimit = FailureLimit {
        max: 3,
        window: Duration::from_secs(60),
    };

    fn at(seconds: u64) -> Moment {
        Moment::default().after(Duration::from_secs(seconds))
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn fail(table: &mut LoginFailures, from: &str, seconds: u64) {
        table.failed(address(from), at(seconds), seconds, LIMIT.window);
    }

    #[test]
    fn address_is_refused_from_its_last_failure_to_the_end_of_its_window() {
        let mut table = LoginFailures::default();
        for seconds in [0, 10, 20] {
            assert!(table.allows(address("10.0.0.1"), at(seconds), LIMIT));
            fail(&mut table, "10.0.0.1", seconds);
        }
        assert!(!table.allows(address("10.0.0.1"), at(20), LIMIT));
        assert!(!table.allows(address("::ffff:10.0.0.1"), at(59), LIMIT));
        assert!(table.allows(address("10.0.0.2"), at(59), LIMIT));
        assert!(table.allows(address("10.0.0.1"), at(60), LIMIT));
        let [(_, row, false)] = table.rows(at(60), LIMIT)[..] else {
            panic!("one row");
        };
        assert_eq!((row.recent, row.total, row.refused), (0, 3, 2));
    }

    #[test]
    fn failures_of_an_old_window_do_not_count() {
        let mut table = LoginFailures::default();
        fail(&mut table, "10.0.0.1", 0);
        fail(&mut table, "10.0.0.1", 1);
        fail(&mut table, "10.0.0.1", 60);
        fail(&mut table, "10.0.0.1", 61);
        assert!(table.allows(address("10.0.0.1"), at(61), LIMIT));
        fail(&mut table, "10.0.0.1", 62);
        assert!(!table.allows(address("10.0.0.1"), at(62), LIMIT));
    }

    #[test]
    fn limit_of_zero_refuses_nobody() {
        let mut table = LoginFailures::default();
        (0..100).for_each(|_| fail(&mut table, "10.0.0.1", 0));
        let limit = FailureLimit { max: 0, ..LIMIT };
        assert!(table.allows(address("10.0.0.1"), at(0), limit));
    }

    #[test]
    fn ipv6_is_counted_by_network() {
        let mut table = LoginFailures::default();
        for from in ["fd00::1", "fd00::2", "fd00::3"] {
            fail(&mut table, from, 0);
        }
        assert!(!table.allows(address("fd00::4"), at(0), LIMIT));
        assert!(table.allows(address("fd00:0:0:1::1"), at(0), LIMIT));
    }

    #[test]
    fn table_is_bounded_and_keeps_the_latest() {
        let mut table = LoginFailures::default();
        for number in 0..2 * ADDRESSES_MAX.get() as u32 {
            let from = IpAddr::from(number.to_be_bytes());
            table.failed(from, at(0), 0, LIMIT.window);
        }
        let rows = table.rows(at(0), LIMIT);
        assert_eq!(rows.len(), ADDRESSES_MAX.get());
        assert_eq!(rows[0].0, IpAddr::from((2 * 4096 - 1_u32).to_be_bytes()));
    }
}
