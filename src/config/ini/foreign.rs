//! PgBouncer's options that have no key here. They are checked as PgBouncer checks them and then left alone, unless
//! leaving them alone would let somebody in, or send something in clear text, that PgBouncer would not have.

use super::number::{strtol, written_out};
use crate::config::keys::Section;
use crate::config::units::parse_duration;
use std::time::Duration;

/// An option without a key.
pub(super) struct Foreign {
    section: Section,
    pub(super) name: &'static str,
    kind: Kind,
    /// The only values that may be left alone; none is all.
    harmless: &'static [&'static str],
}

/// What PgBouncer accepts for it.
#[derive(Clone, Copy)]
enum Kind {
    Int,
    Time,
    Text,
    /// A value in a connection string, where numbers end at the first junk.
    Loose,
}

const fn of_general(name: &'static str, kind: Kind) -> Foreign {
    Foreign {
        section: Section::General,
        name,
        kind,
        harmless: &[],
    }
}

const fn guarded(name: &'static str, kind: Kind, harmless: &'static [&'static str]) -> Foreign {
    Foreign {
        section: Section::General,
        name,
        kind,
        harmless,
    }
}

const fn loose(section: Section, name: &'static str) -> Foreign {
    Foreign {
        section,
        name,
        kind: Kind::Loose,
        harmless: &[],
    }
}

/// Keys of the one table go before rows of the same name here.
const FOREIGN: &[Foreign] = &[
    guarded("disable_pqexec", Kind::Int, &["0"]),
    of_general("application_name_add_host", Kind::Int),
    of_general("autodb_idle_timeout", Kind::Time),
    of_general("dns_zone_check_period", Kind::Time),
    of_general("job_name", Kind::Text),
    of_general("login_notify_message", Kind::Text),
    of_general("pkt_buf", Kind::Int),
    of_general("pool_idle_timeout", Kind::Time),
    of_general("query_wait_notify", Kind::Int),
    of_general("resolv_conf", Kind::Text),
    of_general("sbuf_loopcnt", Kind::Int),
    of_general("scram_iterations", Kind::Int),
    of_general("server_check_delay", Kind::Time),
    of_general("server_check_query", Kind::Text),
    of_general("server_fast_close", Kind::Int),
    of_general("server_reset_query_always", Kind::Int),
    of_general("service_name", Kind::Text),
    of_general("suspend_timeout", Kind::Time),
    of_general("track_extra_parameters", Kind::Text),
    loose(Section::Database, "application_name"),
    loose(Section::Database, "client_encoding"),
    loose(Section::Database, "connect_query"),
    loose(Section::Database, "datestyle"),
    loose(Section::Database, "server_lifetime"),
    loose(Section::Database, "timezone"),
];

/// The option `name` of PgBouncer.
pub(super) fn find(section: Section, name: &str) -> Option<&'static Foreign> {
    FOREIGN
        .iter()
        .find(|foreign| foreign.section == section && foreign.name == name)
}

/// Every option of a section.
pub(super) fn names(section: Section) -> impl Iterator<Item = &'static str> {
    let of_section = FOREIGN
        .iter()
        .filter(move |foreign| foreign.section == section);
    of_section.map(|foreign| foreign.name)
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
            Kind::Text | Kind::Loose => true,
        };
        if !is_good {
            return Err(format!("{written:?} is not a number"));
        }
        let is_harmless = |harmless: &&str| harmless.eq_ignore_ascii_case(written);
        if self.harmless.is_empty() || self.harmless.iter().any(is_harmless) {
            return Ok(());
        }
        Err(format!(
            "{written:?} is not supported yet, and doing without it would weaken security (allowed: {})",
            self.harmless.join(", ")
        ))
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
    fn what_protects_is_not_silently_left_out() {
        assert_eq!(check("disable_pqexec", "0"), Ok(()));
        let refusal = check("disable_pqexec", "1").expect_err("refused");
        assert!(refusal.contains("weaken security"), "{refusal}");
    }
}
