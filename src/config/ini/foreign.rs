//! PgBouncer's options that have no key here. They are checked as PgBouncer checks them and then left alone.

use super::number::{strtol, written_out};
use crate::config::keys::Section;
use crate::config::units::parse_duration;
use std::time::Duration;

/// An option of `[pgbouncer]` without a key.
pub(super) struct Foreign {
    pub(super) name: &'static str,
    kind: Kind,
}

/// What PgBouncer accepts for it.
#[derive(Clone, Copy)]
enum Kind {
    Int,
    Time,
    Text,
}

const fn option(name: &'static str, kind: Kind) -> Foreign {
    Foreign { name, kind }
}

const FOREIGN: &[Foreign] = &[
    option("dns_zone_check_period", Kind::Time),
    option("job_name", Kind::Text),
    option("pkt_buf", Kind::Int),
    option("resolv_conf", Kind::Text),
    option("sbuf_loopcnt", Kind::Int),
    option("service_name", Kind::Text),
];

/// The option `name` of PgBouncer.
pub(super) fn find(section: Section, name: &str) -> Option<&'static Foreign> {
    let mut of_section = FOREIGN.iter().filter(|_| section == Section::General);
    of_section.find(|foreign| foreign.name == name)
}

/// Every option of a section.
pub(super) fn names(section: Section) -> impl Iterator<Item = &'static str> {
    let of_section = FOREIGN.iter().filter(move |_| section == Section::General);
    of_section.map(|foreign| foreign.name)
}

/// Whether `written` is a value of an option of `[pgbouncer]` that has no effect here.
pub(crate) fn has_no_effect(name: &str, written: &str) -> bool {
    find(Section::General, name).is_some_and(|foreign| foreign.check(written).is_ok())
}

impl Foreign {
    /// Whether `written` may be left alone.
    ///
    /// # Errors
    /// Says why not.
    pub(super) fn check(&self, written: &str) -> Result<(), String> {
        let is_good = match self.kind {
            Kind::Int => strtol(written).is_some(),
            Kind::Time => parse_duration(&written_out(written), Duration::from_secs(1)).is_ok(),
            Kind::Text => true,
        };
        match is_good {
            true => Ok(()),
            false => Err(format!("{written:?} is not a number")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, written: &str) -> Result<(), String> {
        let foreign = find(Section::General, name).expect("an option of PgBouncer");
        foreign.check(written)
    }

    #[test]
    fn what_means_nothing_here_is_checked_and_left_alone() {
        assert_eq!(check("pkt_buf", "75"), Ok(()));
        assert_eq!(check("dns_zone_check_period", "1.5"), Ok(()));
        assert_eq!(check("resolv_conf", ""), Ok(()));
        assert!(check("pkt_buf", "many").is_err());
        assert!(check("dns_zone_check_period", "").is_err());
    }

    #[test]
    fn no_option_has_a_key_as_well() {
        let is_key = |name: &str| {
            let mut keys = crate::config::keys::keys();
            keys.any(|key| key.section == Section::General && key.name == name)
        };
        assert!(FOREIGN.iter().all(|foreign| !is_key(foreign.name)));
    }
}
