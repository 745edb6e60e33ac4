//! Numbers as C reads them: what PgBouncer's options are made of.

/// A whole number as `strtol` reads it with base 0: octal with a leading 0, hexadecimal with 0x. Nothing may stand
/// behind it.
pub(super) fn strtol(written: &str) -> Option<i128> {
    let (is_negative, digits) = signed(written);
    let (digits, radix) = match digits.strip_prefix("0x").or(digits.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None if digits.len() > 1 && digits.starts_with('0') => (digits, 8),
        None => (digits, 10),
    };
    // A second sign would be let through.
    let number = digits.starts_with(|c: char| c.is_ascii_hexdigit());
    let number = number.then(|| i128::from_str_radix(digits, radix).ok());
    number.flatten().map(|n| if is_negative { -n } else { n })
}

/// The whole number at the start of `written`, as `atoi` reads it; 0 if there is none.
pub(super) fn atoi(written: &str) -> i128 {
    let (is_negative, rest) = signed(written.trim_start());
    let end = rest.find(|c: char| !c.is_ascii_digit());
    let digits = rest.get(..end.unwrap_or(rest.len())).unwrap_or_default();
    // Too many digits are far out of every range.
    let number = match digits {
        "" => 0,
        digits => digits.parse().unwrap_or(i128::from(i64::MAX)),
    };
    if is_negative { -number } else { number }
}

/// A decimal number with an exponent, such as `1e2`, written out; anything else as it is.
pub(super) fn written_out(written: &str) -> String {
    let has_exponent = written.contains(['e', 'E']);
    match written.parse::<f64>() {
        Ok(number) if has_exponent && number.is_finite() => number.to_string(),
        _ => written.to_owned(),
    }
}

fn signed(written: &str) -> (bool, &str) {
    match written.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, written.strip_prefix('+').unwrap_or(written)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_numbers_come_in_three_bases() {
        let cases = [
            ("0", 0),
            ("100", 100),
            ("0100", 64),
            ("0x1f49", 8009),
            ("0XF", 15),
            ("-1", -1),
            ("+7", 7),
            ("99999999999", 99_999_999_999),
        ];
        for (written, expected) in cases {
            assert_eq!(strtol(written), Some(expected), "{written}");
        }
        for junk in ["", "yes", "08", "1.5", "5s", "0x", "--1", "-+1", "1 2", "-"] {
            assert_eq!(strtol(junk), None, "{junk}");
        }
    }

    #[test]
    fn numbers_of_connection_strings_end_where_junk_begins() {
        let cases = [
            ("5", 5),
            (" 7x", 7),
            ("abc", 0),
            ("-1", -1),
            ("1.9", 1),
            ("010", 10),
            ("", 0),
        ];
        for (written, expected) in cases {
            assert_eq!(atoi(written), expected, "{written}");
        }
        assert!(atoi(&"9".repeat(99)) > i128::from(u32::MAX));
    }

    #[test]
    fn exponents_are_written_out() {
        assert_eq!(written_out("1e2"), "100");
        assert_eq!(written_out("1.5E-1"), "0.15");
        assert_eq!(written_out("5 min"), "5 min");
        assert_eq!(written_out("1.50"), "1.50");
        assert_eq!(written_out("1e999"), "1e999");
    }
}
