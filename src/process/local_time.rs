//! The time of day where the process runs, by its TZ or /etc/localtime.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// `2026-11-23 08:05:33.217 CET`, as PgBouncer's log has it.
pub(super) fn written(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let seconds = libc::time_t::try_from(since.as_secs()).unwrap_or_default();
    let Some((parts, zone)) = broken_down(seconds) else {
        return format!("{}.{:03}", since.as_secs(), since.subsec_millis());
    };
    format!(
        "{:04}-{:02}-{:02} {:02}:{:02}:{:02}.{:03} {zone}",
        parts.tm_year + 1900,
        parts.tm_mon + 1,
        parts.tm_mday,
        parts.tm_hour,
        parts.tm_min,
        parts.tm_sec,
        since.subsec_millis(),
    )
}

/// `Nov  3 08:05:33`, as syslog(3) writes it (RFC 3164, TIMESTAMP).
pub(super) fn of_syslog(time: SystemTime) -> String {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let seconds = libc::time_t::try_from(since.as_secs()).unwrap_or_default();
    let Some((parts, _)) = broken_down(seconds) else {
        return "Jan  1 00:00:00".to_owned();
    };
    let month = usize::try_from(parts.tm_mon).ok();
    let month = month.and_then(|month| MONTHS.get(month)).unwrap_or(&"Jan");
    format!(
        "{month} {:>2} {:02}:{:02}:{:02}",
        parts.tm_mday, parts.tm_hour, parts.tm_min, parts.tm_sec,
    )
}

/// Local date, time and name of the zone; none for a year beyond all bounds.
fn broken_down(seconds: libc::time_t) -> Option<(libc::tm, String)> {
    let mut parts = std::mem::MaybeUninit::<libc::tm>::zeroed();
    // SAFETY: both point to what lives through the call, and localtime_r keeps neither.
    let written = unsafe { libc::localtime_r(&raw const seconds, parts.as_mut_ptr()) };
    if written.is_null() {
        return None;
    }
    // SAFETY: localtime_r has filled it, and all zeroes would be a value as well.
    let parts = unsafe { parts.assume_init() };
    if parts.tm_zone.is_null() {
        return Some((parts, String::new()));
    }
    // SAFETY: it points to the C library's own name of the zone, which stays as long as nobody changes TZ: we never do.
    let zone = unsafe { CStr::from_ptr(parts.tm_zone) };
    Some((parts, zone.to_string_lossy().into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_of_syslog_is_the_same_moment() {
        for (seconds, months) in [
            (951_868_800, ["Feb", "Mar"]),
            (1_798_761_599, ["Dec", "Jan"]),
        ] {
            let time = UNIX_EPOCH + Duration::from_secs(seconds);
            let (short, long) = (of_syslog(time), written(time));
            assert_eq!(short.len(), "Nov  3 08:05:33".len(), "{short}");
            assert!(months.contains(&&short[..3]), "{short}");
            assert_eq!(short[7..], long[11..19]);
            assert_eq!(short[4..6].trim().parse(), long[8..10].parse::<u8>());
        }
    }

    #[test]
    fn time_has_milliseconds_and_a_zone() {
        let time = UNIX_EPOCH + Duration::from_millis(1_795_416_828_045);
        let text = written(time);
        let (time, zone) = text.rsplit_once(' ').expect("a zone");
        assert!(!zone.is_empty(), "{text}");
        assert_eq!(time.len(), "2026-11-23 06:53:48.045".len(), "{text}");
        assert!(
            time.starts_with("2026-11-2") && time.ends_with(":48.045"),
            "{text}"
        );
    }
}
