//! What a key accepts: one [`Kind`] per key checks a TOML value, and says in words what it allows.

use super::units::{format_duration, format_size, parse_duration, parse_size};
use super::value::Value;
use crate::base::{Secret, limit};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;
use toml::de::{DeInteger, DeValue};

/// Longest path of a Unix socket (`sun_path` of sockaddr_un, less its final zero), in bytes.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Longest file name of a PostgreSQL socket, put behind its directory.
const SOCKET_NAME_LONGEST: &str = "/.s.PGSQL.65535";

/// Longest directory that leaves room for the socket's name, in bytes.
const SOCKET_DIR_BYTES_MAX: usize = SOCKET_PATH_BYTES_MAX - SOCKET_NAME_LONGEST.len();

/// Longest path (PATH_MAX of Linux, less its final zero), in bytes.
const PATH_BYTES_MAX: usize = 4095;

/// Longest host name (RFC 1035, section 2.3.4), in bytes.
const HOST_NAME_BYTES_MAX: usize = 253;

/// Longest list of hosts, in bytes.
const HOSTS_BYTES_MAX: usize = 8192;

/// The type of a key with its bounds, all inclusive.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// `true` or `false`.
    Bool,
    /// A whole number.
    Int {
        /// Smallest value.
        min: u64,
        /// Largest value.
        max: u64,
    },
    /// A power of two.
    PowerOfTwo {
        /// Smallest value.
        min: u64,
        /// Largest value.
        max: u64,
    },
    /// A list of whole numbers.
    Numbers {
        /// Largest value of each.
        max: u64,
    },
    /// Permission bits of a file, an octal number in a string: `"0770"`.
    FileMode,
    /// A span of time.
    Duration {
        /// Shortest span.
        min: Duration,
        /// Longest span.
        max: Duration,
        /// What a bare number counts, and what SHOW CONFIG prints.
        bare: Bare,
    },
    /// A number of bytes.
    Size {
        /// Smallest value, in bytes.
        min: u64,
        /// Largest value, in bytes.
        max: u64,
    },
    /// One of these words.
    Word(&'static [&'static str]),
    /// The name of a database or user: not empty.
    Name {
        /// Longest name, in bytes.
        bytes_max: usize,
    },
    /// Any string.
    Text {
        /// Longest string, in bytes.
        bytes_max: usize,
    },
    /// A string with a grammar of its own.
    Parsed {
        /// What it allows, in words.
        allowed: &'static str,
        /// What is wrong with a value.
        fault: fn(&str) -> Option<String>,
        /// A value to show, for tests over every key.
        example: &'static str,
    },
    /// Where a PostgreSQL server listens: IP address, host name, or directory of a Unix socket (abstract with `@`).
    Host,
    /// An IP address and a port to listen on; "" is none.
    Address,
    /// A list of strings; one string stands for a list of one.
    List,
    /// A file; a relative path starts at the configuration file's directory, "" is none.
    Path,
    /// The directory of a Unix socket: as `Path`, and short enough for a socket address; `@x` is an abstract one.
    SocketDir,
    /// A password or a hash of one; never printed.
    Secret,
}

/// What a span of time without a unit counts: PgBouncer's unit for the same key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bare {
    /// Seconds.
    Seconds,
    /// Milliseconds.
    Millis,
}

impl Bare {
    /// The span that a bare 1 stands for.
    pub const fn one(self) -> Duration {
        match self {
            Bare::Seconds => Duration::from_secs(1),
            Bare::Millis => Duration::from_millis(1),
        }
    }

    const fn plural(self) -> &'static str {
        match self {
            Bare::Seconds => "seconds",
            Bare::Millis => "milliseconds",
        }
    }
}

/// Why a value was refused.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// Such as `is a string`, with the value where it is no secret.
    pub(super) what: String,
    /// The word that was probably meant.
    pub(super) meant: Option<&'static str>,
}

impl<T: Into<String>> From<T> for Refusal {
    fn from(what: T) -> Refusal {
        Refusal {
            what: what.into(),
            meant: None,
        }
    }
}

type Checked = Result<Value, Refusal>;

impl Kind {
    /// What is allowed, with unit and bounds: `integer, 0 to 65535`.
    pub fn allowed(&self) -> String {
        match self {
            Kind::Bool => "true or false".to_owned(),
            Kind::Int { min, max } => format!("integer, {min} to {max}"),
            Kind::PowerOfTwo { min, max } => format!("power of two, {min} to {max}"),
            Kind::Numbers { max } => format!("list of integers, each 0 to {max}"),
            Kind::FileMode => r#"octal number in a string, "0000" to "0777""#.to_owned(),
            Kind::Duration { min, max, bare } => duration_allowed(*min, *max, *bare),
            Kind::Size { min, max } => size_allowed(*min, *max),
            Kind::Word(words) => words_allowed(words),
            Kind::Name { bytes_max } => format!("string of 1 to {bytes_max} bytes"),
            Kind::Text { bytes_max } => format!("string of at most {bytes_max} bytes"),
            Kind::Parsed { allowed, .. } => (*allowed).to_owned(),
            Kind::Host => {
                "IP address, host name, or directory of a Unix socket; several with commas"
                    .to_owned()
            }
            Kind::Address => {
                r#"IP address and port such as "127.0.0.1:9127", "" for none"#.to_owned()
            }
            Kind::List => r#"list of strings such as ["a", "b"], or one string"#.to_owned(),
            Kind::Path => r#"path, "" for none"#.to_owned(),
            Kind::SocketDir => {
                format!(r#"path of at most {SOCKET_DIR_BYTES_MAX} bytes, "" for none"#)
            }
            Kind::Secret => format!("string of 1 to {} bytes", limit::AUTH_MESSAGE_BYTES_MAX),
        }
    }

    /// `value` if this kind allows it; relative paths start at `dir`. Of a secret the refusal shows
    /// nothing.
    pub(super) fn check(&self, value: &DeValue<'_>, dir: &Path) -> Checked {
        match *self {
            Kind::Bool => value
                .as_bool()
                .map(Value::Bool)
                .ok_or_else(|| wrong_type(value)),
            Kind::Int { min, max } => integer(value, min, max).map(Value::Int),
            Kind::PowerOfTwo { min, max } => power_of_two(value, min, max),
            Kind::Numbers { max } => numbers(value, max),
            Kind::FileMode => file_mode(value),
            Kind::Duration { min, max, bare } => duration(value, min, max, bare),
            Kind::Size { min, max } => size(value, min, max),
            Kind::Word(words) => word(value, words),
            Kind::Name { bytes_max } => name(value, bytes_max).map(Value::Text),
            Kind::Text { bytes_max } => text(value, bytes_max).map(Value::Text),
            Kind::Parsed { fault, .. } => parsed(value, fault),
            Kind::Host => host(value),
            Kind::Address => address(value),
            Kind::List => list(value),
            Kind::Path => path(value, dir, PATH_BYTES_MAX),
            Kind::SocketDir => socket_dir(value, dir),
            Kind::Secret => secret(value),
        }
    }
}

/// Longest string with a grammar of its own, in bytes.
const PARSED_BYTES_MAX: usize = 4096;

fn parsed(value: &DeValue<'_>, fault: fn(&str) -> Option<String>) -> Checked {
    let written = text(value, PARSED_BYTES_MAX)?;
    match fault(&written) {
        None => Ok(Value::Text(written)),
        Some(why) => Err(why.into()),
    }
}

/// The entry of `candidates` that `word` is a misspelling of, if one is close: at most one edit
/// for every three letters.
pub(super) fn nearest(
    word: &str,
    candidates: impl IntoIterator<Item = &'static str>,
) -> Option<&'static str> {
    const LETTERS_MAX: usize = 64;
    if word.len() > LETTERS_MAX {
        return None;
    }
    let word = word.to_ascii_lowercase();
    let rated = candidates.into_iter().map(|candidate| {
        let edits = strsim::damerau_levenshtein(&word, candidate);
        (edits, candidate)
    });
    let close = rated.filter(|(edits, candidate)| *edits <= candidate.len().div_ceil(3));
    close
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, candidate)| candidate)
}

/// The question at the end of a text about a word, if it is known what was meant.
pub(super) fn did_you_mean(meant: Option<&str>) -> String {
    meant
        .map(|meant| format!("; did you mean {meant:?}?"))
        .unwrap_or_default()
}

/// The text for a name that is none of `known`.
pub(super) fn misspelt(
    noun: &str,
    name: &str,
    known: impl IntoIterator<Item = &'static str>,
) -> String {
    format!("unknown {noun}{}", did_you_mean(nearest(name, known)))
}

fn duration_allowed(min: Duration, max: Duration, bare: Bare) -> String {
    let (min, max) = (format_duration(min), format_duration(max));
    format!(
        r#"duration such as "5 min", {min} to {max}; a bare number counts {}"#,
        bare.plural()
    )
}

fn size_allowed(min: u64, max: u64) -> String {
    let (min, max) = (format_size(min), format_size(max));
    format!(r#"size such as "8 KiB", {min} to {max}; a bare number counts bytes"#)
}

fn words_allowed(words: &[&str]) -> String {
    words
        .iter()
        .map(|word| format!("{word:?}"))
        .collect::<Vec<_>>()
        .join(", ")
}

fn wrong_type(value: &DeValue<'_>) -> Refusal {
    let name = match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    };
    format!("is {name}").into()
}

fn integer(value: &DeValue<'_>, min: u64, max: u64) -> Result<u64, Refusal> {
    let written = value.as_integer().ok_or_else(|| wrong_type(value))?;
    let number = whole(written).and_then(|number| u64::try_from(number).ok());
    let inside = number.filter(|number| (min..=max).contains(number));
    inside.ok_or_else(|| format!("{} is out of range", shortened(&written.to_string())).into())
}

fn whole(written: &DeInteger<'_>) -> Option<i128> {
    i128::from_str_radix(written.as_str(), written.radix()).ok()
}

fn power_of_two(value: &DeValue<'_>, min: u64, max: u64) -> Checked {
    let number = integer(value, min, max)?;
    if !number.is_power_of_two() {
        return Err(format!("{number} is no power of two").into());
    }
    Ok(Value::Int(number))
}

fn numbers(value: &DeValue<'_>, max: u64) -> Checked {
    let entries = value.as_array().ok_or_else(|| wrong_type(value))?;
    let numbers = entries.iter().map(|entry| integer(entry.get_ref(), 0, max));
    numbers.collect::<Result<_, _>>().map(Value::Numbers)
}

/// An octal string, or TOML's own octal notation; a decimal 770 would silently mean something else.
fn file_mode(value: &DeValue<'_>) -> Checked {
    let digits = match value {
        DeValue::String(digits) => digits.as_ref(),
        DeValue::Integer(written) if written.radix() == 8 => written.as_str(),
        _ => return Err(wrong_type(value)),
    };
    let octal = !digits.is_empty() && digits.bytes().all(|digit| matches!(digit, b'0'..=b'7'));
    let mode = octal.then(|| u64::from_str_radix(digits, 8).ok()).flatten();
    let mode = mode.filter(|mode| *mode <= 0o777);
    mode.map(Value::Int)
        .ok_or_else(|| format!("{:?} is not allowed", shortened(digits)).into())
}

fn duration(value: &DeValue<'_>, min: Duration, max: Duration, bare: Bare) -> Checked {
    let written = quantity(value)?;
    let span = parse_duration(&written, bare.one());
    let span = span.map_err(|why| format!("{:?} {why}", shortened(&written)))?;
    if !(min..=max).contains(&span) {
        return Err(format!("{} is out of range", format_duration(span)).into());
    }
    Ok(Value::Duration(span))
}

fn size(value: &DeValue<'_>, min: u64, max: u64) -> Checked {
    let written = quantity(value)?;
    let bytes = parse_size(&written);
    let bytes = bytes.map_err(|why| format!("{:?} {why}", shortened(&written)))?;
    if !(min..=max).contains(&bytes) {
        return Err(format!("{} is out of range", format_size(bytes)).into());
    }
    Ok(Value::Int(bytes))
}

/// A number, or a string with number and unit, as text.
fn quantity(value: &DeValue<'_>) -> Result<String, Refusal> {
    match value {
        DeValue::String(written) => Ok(written.as_ref().to_owned()),
        DeValue::Float(written) => Ok(without_plus(written.as_str()).to_owned()),
        DeValue::Integer(written) => whole(written)
            .map(|number| number.to_string())
            .ok_or_else(|| format!("{} is out of range", shortened(&written.to_string())).into()),
        _ => Err(wrong_type(value)),
    }
}

fn without_plus(number: &str) -> &str {
    number.strip_prefix('+').unwrap_or(number)
}

fn word(value: &DeValue<'_>, words: &'static [&'static str]) -> Checked {
    let written = value.as_str().ok_or_else(|| wrong_type(value))?;
    match words.iter().find(|word| word.eq_ignore_ascii_case(written)) {
        Some(word) => Ok(Value::Text((*word).to_owned())),
        None => Err(Refusal {
            what: format!("{:?} is not allowed", shortened(written)),
            meant: nearest(written, words.iter().copied()),
        }),
    }
}

fn text(value: &DeValue<'_>, bytes_max: usize) -> Result<String, Refusal> {
    let written = value.as_str().ok_or_else(|| wrong_type(value))?;
    if written.len() > bytes_max {
        return Err(format!("is {} bytes long", written.len()).into());
    }
    // The protocol's strings end at the first zero byte (PostgreSQL manual, 54.6).
    if written.contains('\0') {
        return Err("contains a zero byte".into());
    }
    Ok(written.to_owned())
}

fn name(value: &DeValue<'_>, bytes_max: usize) -> Result<String, Refusal> {
    let written = text(value, bytes_max)?;
    if written.is_empty() {
        return Err("is empty".into());
    }
    Ok(written)
}

fn secret(value: &DeValue<'_>) -> Checked {
    let password = name(value, limit::AUTH_MESSAGE_BYTES_MAX)?;
    Ok(Value::Secret(Secret::new(password)))
}

/// One host, or several with commas between them.
fn host(value: &DeValue<'_>) -> Checked {
    let written = name(value, HOSTS_BYTES_MAX)?;
    if !written.split(',').map(str::trim).all(is_host) {
        return Err(format!("{:?} is not allowed", shortened(&written)).into());
    }
    Ok(Value::Text(written))
}

fn is_host(written: &str) -> bool {
    if written.starts_with(['/', '@']) {
        return written.len() <= SOCKET_DIR_BYTES_MAX;
    }
    !written.is_empty() && (written.parse::<IpAddr>().is_ok() || is_host_name(written))
}

/// Letters, digits and what resolvers let through besides; no `host:port`.
fn is_host_name(written: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    written.len() <= HOST_NAME_BYTES_MAX && written.bytes().all(letter)
}

fn address(value: &DeValue<'_>) -> Checked {
    let written = text(value, HOST_NAME_BYTES_MAX)?;
    if written.is_empty() {
        return Ok(Value::Unset);
    }
    if written.parse::<SocketAddr>().is_err() {
        return Err(format!("{:?} is not an address with a port", shortened(&written)).into());
    }
    Ok(Value::Text(written))
}

/// A bare string is a list of one; with a comma or blank in it, it is more likely several in
/// PgBouncer's notation, and refused rather than misread.
fn list(value: &DeValue<'_>) -> Checked {
    if let DeValue::String(written) = value {
        if written.contains(|c: char| c == ',' || c.is_whitespace()) {
            return Err(format!("{:?} is not a list", shortened(written)).into());
        }
        return Ok(Value::List(vec![entry(value)?]));
    }
    let entries = value.as_array().ok_or_else(|| wrong_type(value))?;
    let entries = entries.iter().map(|element| entry(element.get_ref()));
    entries.collect::<Result<_, _>>().map(Value::List)
}

fn entry(element: &DeValue<'_>) -> Result<String, Refusal> {
    name(element, HOST_NAME_BYTES_MAX).map_err(|refusal| match element {
        DeValue::String(_) => format!("has an entry that {}", refusal.what).into(),
        _ => "has an entry that is no string".into(),
    })
}

/// An abstract name is no path.
fn socket_dir(value: &DeValue<'_>, dir: &Path) -> Checked {
    match text(value, SOCKET_DIR_BYTES_MAX)? {
        name if name.starts_with('@') => Ok(Value::Text(name)),
        _ => path(value, dir, SOCKET_DIR_BYTES_MAX),
    }
}

/// The length counts once the path is absolute, because that is what the kernel sees.
fn path(value: &DeValue<'_>, dir: &Path, bytes_max: usize) -> Checked {
    let written = text(value, bytes_max)?;
    if written.is_empty() {
        return Ok(Value::Unset);
    }
    let whole = dir.join(&written).to_string_lossy().into_owned();
    if whole.len() > bytes_max {
        return Err(format!("is {} bytes long", whole.len()).into());
    }
    Ok(Value::Text(whole))
}

/// At most the first 40 characters, so that a message stays one line.
fn shortened(written: &str) -> String {
    const CHARS_MAX: usize = 40;
    match written.char_indices().nth(CHARS_MAX) {
        Some((end, _)) => format!("{}...", written.get(..end).unwrap_or_default()),
        None => written.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(kind: Kind, written: &str) -> Result<Value, String> {
        let value = DeValue::parse(written).expect("valid TOML");
        kind.check(value.get_ref(), Path::new("/etc"))
            .map_err(|refusal| refusal.what)
    }

    fn refused(kind: Kind, written: &str) -> String {
        check(kind, written).expect_err("must be refused")
    }

    #[test]
    fn bounds_of_integers_are_inclusive() {
        let kind = Kind::Int { min: 1, max: 65535 };
        assert_eq!(check(kind, "1"), Ok(Value::Int(1)));
        assert_eq!(check(kind, "0xffff"), Ok(Value::Int(65535)));
        for outside in [
            "0",
            "65536",
            "-1",
            "99999999999999999999999999999999999999999999",
        ] {
            assert!(
                refused(kind, outside).ends_with("is out of range"),
                "{outside}"
            );
        }
        assert_eq!(refused(kind, "\"6432\""), "is a string");
        assert_eq!(refused(kind, "1.0"), "is a number with a fraction");
    }

    #[test]
    fn powers_of_two_refuse_their_neighbours() {
        let kind = Kind::PowerOfTwo { min: 64, max: 1024 };
        assert_eq!(check(kind, "64"), Ok(Value::Int(64)));
        assert_eq!(refused(kind, "65"), "65 is no power of two");
        assert_eq!(refused(kind, "32"), "32 is out of range");
    }

    #[test]
    fn durations_take_strings_and_bare_numbers() {
        let (min, max) = (Duration::from_secs(1), Duration::from_secs(60));
        let kind = Kind::Duration {
            min,
            max,
            bare: Bare::Seconds,
        };
        assert_eq!(check(kind, "\"1 min\""), Ok(Value::Duration(max)));
        assert_eq!(
            check(kind, "1.5"),
            Ok(Value::Duration(Duration::from_millis(1500)))
        );
        assert_eq!(
            check(kind, "+2"),
            Ok(Value::Duration(Duration::from_secs(2)))
        );
        assert_eq!(refused(kind, "61"), "61 s is out of range");
        assert_eq!(
            refused(kind, "\"5 parsec\""),
            "\"5 parsec\" has an unknown unit"
        );
        assert_eq!(refused(kind, "-1"), "\"-1\" is negative");
        assert_eq!(refused(kind, "inf"), "\"inf\" is not a number with a unit");
        assert_eq!(refused(kind, "true"), "is a boolean");
        let kind = Kind::Duration {
            min: Duration::ZERO,
            max,
            bare: Bare::Millis,
        };
        assert_eq!(
            check(kind, "1500"),
            Ok(Value::Duration(Duration::from_millis(1500)))
        );
    }

    #[test]
    fn sizes_are_bounded_in_bytes() {
        let kind = Kind::Size {
            min: 1024,
            max: 4096,
        };
        assert_eq!(check(kind, "\"4 KiB\""), Ok(Value::Int(4096)));
        assert_eq!(refused(kind, "4097"), "4097 B is out of range");
    }

    #[test]
    fn addresses_have_a_port() {
        for address in ["127.0.0.1:9127", "[::1]:0"] {
            let text = Ok(Value::Text(address.to_owned()));
            assert_eq!(check(Kind::Address, &format!("{address:?}")), text);
        }
        assert_eq!(check(Kind::Address, "\"\""), Ok(Value::Unset));
        for bad in [
            "127.0.0.1",
            ":9127",
            "localhost:9127",
            "1.2.3.4:65536",
            "::1:x",
        ] {
            let why = format!("{bad:?} is not an address with a port");
            assert_eq!(refused(Kind::Address, &format!("{bad:?}")), why);
        }
        assert_eq!(refused(Kind::Address, "9127"), "is an integer");
    }

    #[test]
    fn file_modes_are_octal_or_refused() {
        assert_eq!(check(Kind::FileMode, "\"0770\""), Ok(Value::Int(0o770)));
        assert_eq!(check(Kind::FileMode, "0o770"), Ok(Value::Int(0o770)));
        assert_eq!(refused(Kind::FileMode, "770"), "is an integer");
        for bad in ["\"\"", "\"0888\"", "\"1777\"", "\"+77\""] {
            assert!(
                refused(Kind::FileMode, bad).ends_with("is not allowed"),
                "{bad}"
            );
        }
    }

    #[test]
    fn misspelt_word_brings_the_word_that_was_meant() {
        let kind = Kind::Word(&["transaction", "session"]);
        assert_eq!(
            check(kind, "\"Session\""),
            Ok(Value::Text("session".to_owned()))
        );
        let value = DeValue::parse("\"transacton\"").expect("valid TOML");
        let refusal = kind
            .check(value.get_ref(), Path::new(""))
            .expect_err("misspelt");
        assert_eq!(refusal.meant, Some("transaction"));
        assert_eq!(nearest("xyzzy", ["transaction"]), None);
    }

    #[test]
    fn list_in_pgbouncer_notation_is_refused_not_misread() {
        let listed = |names: &[&str]| {
            Ok(Value::List(
                names.iter().map(|name| (*name).to_owned()).collect(),
            ))
        };
        assert_eq!(check(Kind::List, "\"a\""), listed(&["a"]));
        assert_eq!(check(Kind::List, "[\"a\", \"b c\"]"), listed(&["a", "b c"]));
        assert_eq!(check(Kind::List, "[]"), listed(&[]));
        assert_eq!(refused(Kind::List, "\"a, b\""), "\"a, b\" is not a list");
        assert_eq!(
            refused(Kind::List, "[\"a\", 1]"),
            "has an entry that is no string"
        );
        assert_eq!(refused(Kind::List, "[\"\"]"), "has an entry that is empty");
    }

    #[test]
    fn host_is_addresses_names_or_directories() {
        for good in [
            "127.0.0.1",
            "::1",
            "db-1.example_net",
            "/run/postgresql",
            "@abstract",
            "a,b, ::1,/run",
        ] {
            assert!(check(Kind::Host, &format!("{good:?}")).is_ok(), "{good}");
        }
        let long = format!("/{}", "x".repeat(SOCKET_DIR_BYTES_MAX));
        for bad in [
            "",
            "a,,b",
            "a,",
            "db:5432",
            "run/postgresql",
            "two words",
            &long,
            "a\0b",
        ] {
            let written = format!("\"{}\"", bad.replace('\0', "\\u0000"));
            assert!(check(Kind::Host, &written).is_err(), "{bad}");
        }
    }

    #[test]
    fn relative_path_starts_at_the_directory_of_the_file() {
        let path = |written: &str| Ok(Value::Text(written.to_owned()));
        assert_eq!(check(Kind::Path, "\"users.txt\""), path("/etc/users.txt"));
        assert_eq!(
            check(Kind::Path, "\"/var/users.txt\""),
            path("/var/users.txt")
        );
        assert_eq!(check(Kind::Path, "\"\""), Ok(Value::Unset));
        assert_eq!(check(Kind::SocketDir, "\"@x\""), path("@x"));
        assert_eq!(check(Kind::Path, "\"@x\""), path("/etc/@x"));
        let longest = "x".repeat(SOCKET_DIR_BYTES_MAX - "/etc/".len());
        assert!(check(Kind::SocketDir, &format!("\"{longest}\"")).is_ok());
        assert_eq!(
            refused(Kind::SocketDir, &format!("\"{longest}y\"")),
            "is 93 bytes long"
        );
    }

    #[test]
    fn refused_secret_does_not_show_itself() {
        assert_eq!(refused(Kind::Secret, "12345678"), "is an integer");
        assert_eq!(
            refused(Kind::Secret, "\"hunter2\\u0000\""),
            "contains a zero byte"
        );
        assert_eq!(refused(Kind::Secret, "\"\""), "is empty");
    }
}
