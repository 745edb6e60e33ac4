//! The PgBouncer that claims are compared with: the distribution's, or the program that `RINGBOUNCER_PGBOUNCER` names.

use std::ffi::OsString;
use std::process::Command;
use std::sync::OnceLock;

/// Major and minor version.
pub type Version = (u32, u32);

/// The program.
pub fn path() -> OsString {
    std::env::var_os("RINGBOUNCER_PGBOUNCER").unwrap_or_else(|| "/usr/sbin/pgbouncer".into())
}

/// What it says it is.
pub fn version() -> Version {
    static VERSION: OnceLock<Version> = OnceLock::new();
    *VERSION.get_or_init(|| {
        let output = Command::new(path()).arg("-V").output();
        let output = output.unwrap_or_else(|error| panic!("no PgBouncer: {error}"));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        parse(&text).unwrap_or_else(|| panic!("no version of PgBouncer: {text}"))
    })
}

/// Whether it has what came with `since`; if not, the output says that nothing is compared.
pub fn is_since(since: Version) -> bool {
    let is_since = version() >= since;
    if !is_since {
        eprintln!("PgBouncer is older than {since:?}: not compared");
    }
    is_since
}

/// Whether it is from before `until`, the version that does otherwise; if not, the output says that nothing is compared.
pub fn is_until(until: Version) -> bool {
    let is_until = version() < until;
    if !is_until {
        eprintln!("PgBouncer does otherwise since {until:?}: not compared");
    }
    is_until
}

fn parse(text: &str) -> Option<Version> {
    let mut numbers = text.strip_prefix("PgBouncer ")?.split(['.', '\n']);
    let mut number = || numbers.next()?.parse().ok();
    Some((number()?, number()?))
}
