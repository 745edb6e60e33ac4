//! Durations and sizes as people write them: `"250ms"`, `"5 min"`, `"4 MiB"`, or a bare number.
//!
//! The arithmetic is exact (no floating point), so that what is written is what applies: a value
//! that is no whole number of nanoseconds or bytes is refused, not rounded.

use std::time::Duration;

type Units = &'static [(&'static str, u128)];

const SECOND: u128 = 1_000_000_000;

/// Nanoseconds of each unit of time; the first spelling of a factor is the one printed.
const TIME_UNITS: Units = &[
    ("d", 86_400 * SECOND),
    ("h", 3_600 * SECOND),
    ("min", 60 * SECOND),
    ("s", SECOND),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
    ("day", 86_400 * SECOND),
    ("days", 86_400 * SECOND),
    ("hour", 3_600 * SECOND),
    ("hours", 3_600 * SECOND),
    ("m", 60 * SECOND),
    ("minute", 60 * SECOND),
    ("minutes", 60 * SECOND),
    ("sec", SECOND),
    ("second", SECOND),
    ("seconds", SECOND),
];

/// Bytes of each unit of size. `kB`, `MB`, `GB` count in 1024 as in postgresql.conf (PostgreSQL
/// manual, 19.1.1), so that a value copied from there keeps its meaning.
const SIZE_UNITS: Units = &[
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
    ("TB", 1 << 40),
    ("GB", 1 << 30),
    ("MB", 1 << 20),
    ("kB", 1 << 10),
];

/// Most digits behind the decimal point; more could not matter to a nanosecond of a day.
const FRACTION_DIGITS_MAX: usize = 15;

/// Reads a span of time such as `30s`, `1.5 h`, `250ms`; a bare number counts in `bare`.
///
/// # Errors
/// Says what is wrong: no number, negative, unknown unit, too large, finer than a nanosecond.
pub fn parse_duration(text: &str, bare: Duration) -> Result<Duration, &'static str> {
    let nanos = scaled(text, TIME_UNITS, bare.as_nanos())?;
    let nanos = nanos.map_err(|Inexact| "is finer than a nanosecond")?;
    let seconds = u64::try_from(nanos / SECOND).map_err(|_| "is too large")?;
    let rest = u32::try_from(nanos % SECOND).map_err(|_| "is too large")?;
    Ok(Duration::new(seconds, rest))
}

/// Reads a size such as `4 MiB` or `64kB`; a bare number counts bytes.
///
/// # Errors
/// Says what is wrong: no number, negative, unknown unit, too large, not whole bytes.
pub fn parse_size(text: &str) -> Result<u64, &'static str> {
    let bytes = scaled(text, SIZE_UNITS, 1)?;
    let bytes = bytes.map_err(|Inexact| "is not a whole number of bytes")?;
    u64::try_from(bytes).map_err(|_| "is too large")
}

/// `span` in the largest unit that divides it: `90 min`, `250 ms`; read back by
/// [`parse_duration`].
pub fn format_duration(span: Duration) -> String {
    if span.is_zero() {
        return "0 s".to_owned();
    }
    in_largest_unit(span.as_nanos(), TIME_UNITS)
}

/// `bytes` in the largest unit that divides it: `4 MiB`, `1000 B`; read back by [`parse_size`].
pub fn format_size(bytes: u64) -> String {
    if bytes == 0 {
        return "0 B".to_owned();
    }
    in_largest_unit(u128::from(bytes), SIZE_UNITS)
}

/// `number` as C's `printf("%g")` prints it, which is how PgBouncer shows spans of time: six
/// significant digits, no trailing zeros, an exponent from a million on.
pub fn seconds_as_g(number: f64) -> String {
    let scientific = format!("{number:.5e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    match usize::try_from(5 - exponent) {
        Ok(digits) if exponent >= -4 => without_zeros(&format!("{number:.digits$}")).to_owned(),
        _ => {
            let sign = if exponent < 0 { '-' } else { '+' };
            let size = exponent.unsigned_abs();
            format!("{}e{sign}{size:02}", without_zeros(mantissa))
        }
    }
}

fn without_zeros(decimal: &str) -> &str {
    if !decimal.contains('.') {
        return decimal;
    }
    decimal.trim_end_matches('0').trim_end_matches('.')
}

/// The value is no whole multiple of the smallest unit.
struct Inexact;

/// `text` as a number times its unit.
fn scaled(text: &str, units: Units, bare: u128) -> Result<Result<u128, Inexact>, &'static str> {
    let text = text.trim();
    if text.starts_with('-') {
        return Err("is negative");
    }
    let number_end = text.find(|c: char| !c.is_ascii_digit() && c != '.');
    let (number, unit) = text.split_at(number_end.unwrap_or(text.len()));
    let (mantissa, divisor) = decimal(number)?;
    let total = mantissa.checked_mul(factor(unit.trim(), units, bare)?);
    let total = total.ok_or("is too large")?;
    Ok(if total.is_multiple_of(divisor) {
        Ok(total / divisor)
    } else {
        Err(Inexact)
    })
}

fn factor(unit: &str, units: Units, bare: u128) -> Result<u128, &'static str> {
    if unit.is_empty() {
        return Ok(bare);
    }
    let known = units
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(unit));
    known
        .map(|(_, factor)| *factor)
        .ok_or("has an unknown unit")
}

/// `12.50` as (1250, 100).
fn decimal(number: &str) -> Result<(u128, u128), &'static str> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if whole.is_empty() || fraction.is_empty() || fraction.contains('.') {
        return Err("is not a number with a unit");
    }
    if fraction.len() > FRACTION_DIGITS_MAX {
        return Err("has too many digits");
    }
    let digits = format!("{whole}{fraction}");
    let mantissa = digits.parse().map_err(|_| "is too large")?;
    Ok((mantissa, fraction.chars().fold(1, |power, _| power * 10)))
}

fn in_largest_unit(amount: u128, units: Units) -> String {
    let fits = units
        .iter()
        .find(|(_, factor)| amount.is_multiple_of(*factor));
    fits.map_or_else(
        || amount.to_string(),
        |(name, factor)| format!("{} {name}", amount / factor),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn duration(text: &str) -> Result<Duration, &'static str> {
        parse_duration(text, S)
    }

    #[test]
    fn durations_are_read_exactly() {
        let cases = [
            ("250ms", 250),
            ("30s", 30_000),
            (" 5 min ", 300_000),
            ("5m", 300_000),
            ("2h", 7_200_000),
            ("1d", 86_400_000),
            ("1.5 hours", 5_400_000),
            ("0.001", 1),
            ("10", 10_000),
            ("0", 0),
            ("3 MS", 3),
        ];
        for (text, millis) in cases {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        assert_eq!(
            parse_duration("12", Duration::from_millis(1)),
            Ok(S * 12 / 1000)
        );
    }

    #[test]
    fn nonsense_durations_are_refused_with_the_reason() {
        let cases = [
            ("", "is not a number with a unit"),
            ("s", "is not a number with a unit"),
            (".5s", "is not a number with a unit"),
            ("5.s", "is not a number with a unit"),
            ("1.2.3", "is not a number with a unit"),
            ("-3s", "is negative"),
            ("1e3", "has an unknown unit"),
            ("5 month", "has an unknown unit"),
            ("1h 30min", "has an unknown unit"),
            ("0.5ns", "is finer than a nanosecond"),
            ("1.0000000000000000s", "has too many digits"),
            ("400000000000000000d", "is too large"),
            ("99999999999999999999999999999999999999999", "is too large"),
        ];
        for (text, reason) in cases {
            assert_eq!(duration(text), Err(reason), "{text}");
        }
    }

    #[test]
    fn largest_duration_is_read_and_one_more_is_refused() {
        let most = format!("{}s", u64::MAX);
        assert_eq!(duration(&most), Ok(Duration::from_secs(u64::MAX)));
        assert_eq!(duration("18446744073709551616s"), Err("is too large"));
    }

    #[test]
    fn sizes_are_read_in_powers_of_1024() {
        let cases = [
            ("4 MiB", 4 << 20),
            ("8KiB", 8 << 10),
            ("64kB", 64 << 10),
            ("64 kb", 64 << 10),
            ("1.5 KiB", 1536),
            ("100", 100),
            ("7B", 7),
            ("2TiB", 2 << 40),
        ];
        for (text, bytes) in cases {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn nonsense_sizes_are_refused_with_the_reason() {
        assert_eq!(parse_size("0.3 KiB"), Err("is not a whole number of bytes"));
        assert_eq!(parse_size("-1"), Err("is negative"));
        assert_eq!(parse_size("4 Mib/s"), Err("has an unknown unit"));
        assert_eq!(parse_size("16777216 TiB"), Err("is too large"));
        assert_eq!(parse_size("18446744073709551615"), Ok(u64::MAX));
    }

    #[test]
    fn printed_values_are_read_back() {
        for nanos in [
            0,
            1,
            999,
            1_500,
            250_000_000,
            90_000_000_000,
            86_400_000_000_000,
            u64::MAX,
        ] {
            let span = Duration::from_nanos(nanos);
            assert_eq!(duration(&format_duration(span)), Ok(span));
        }
        for bytes in [0, 1, 1000, 1024, 4 << 20, (4 << 20) + 1, u64::MAX] {
            assert_eq!(parse_size(&format_size(bytes)), Ok(bytes));
        }
        assert_eq!(format_duration(S * 5400), "90 min");
        assert_eq!(format_size(8192), "8 KiB");
    }

    #[test]
    fn seconds_print_like_percent_g() {
        let cases = [
            (0.0, "0"),
            (15.0, "15"),
            (0.25, "0.25"),
            (3600.0, "3600"),
            (999_999.0, "999999"),
            (1_000_000.0, "1e+06"),
            (2_147_483.0, "2.14748e+06"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (120.5, "120.5"),
        ];
        for (number, text) in cases {
            assert_eq!(seconds_as_g(number), text);
        }
    }
}
