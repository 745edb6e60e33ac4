//! Time stamps as PgBouncer prints them.

const SECONDS_PER_DAY: u64 = 86_400;

/// `2026-11-23 06:53:48 UTC`, for microseconds since the Unix epoch.
pub(super) fn timestamp(unix_us: u64) -> String {
    let seconds = unix_us / 1_000_000;
    let (year, month, day) = date(seconds / SECONDS_PER_DAY);
    let (minutes, second) = (seconds / 60, seconds % 60);
    let (hour, minute) = (minutes / 60 % 24, minutes % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

/// Year, month and day of the Gregorian calendar, `days` after 1970-01-01.
fn date(days: u64) -> (u64, usize, u64) {
    let days = days + days_before(1970);
    // 400 years have 146,097 days; the guess is off by one year at most.
    let mut year = days * 400 / 146_097 + 1;
    if days < days_before(year) {
        year -= 1;
    } else if days >= days_before(year + 1) {
        year += 1;
    }
    let mut day = days - days_before(year);
    let february = 28 + days_before(year + 1) - days_before(year) - 365;
    let lengths = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30];
    let mut month = 1;
    for length in lengths {
        if day < length {
            break;
        }
        day -= length;
        month += 1;
    }
    (year, month, day + 1)
}

/// Days from 0001-01-01 to the first of January of `year`.
const fn days_before(year: u64) -> u64 {
    let full = year - 1;
    full * 365 + full / 4 - full / 100 + full / 400
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_moments_are_printed() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_399, "2000-02-28 23:59:59 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (951_868_800, "2000-03-01 00:00:00 UTC"),
            (1_735_689_599, "2024-12-31 23:59:59 UTC"),
            (1_795_416_828, "2026-11-23 06:53:48 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
        ] {
            assert_eq!(timestamp(seconds * 1_000_000 + 999_999), text);
        }
        assert!(timestamp(u64::MAX).ends_with(" UTC"));
    }

    #[test]
    fn every_day_of_four_centuries_follows_the_one_before() {
        let (mut year, mut month, mut day) = date(0);
        for days in 1..=146_097 {
            let next = date(days);
            let same_month = (year, month, day + 1);
            let next_month = (year, month + 1, 1);
            let next_year = (year + 1, 1, 1);
            let follows = next == same_month
                || (next == next_month && day >= 28)
                || (next == next_year && (month, day) == (12, 31));
            assert!(follows, "{next:?} after {year}-{month}-{day}");
            (year, month, day) = next;
        }
        assert_eq!((year, month, day), (2370, 1, 1));
    }
}
