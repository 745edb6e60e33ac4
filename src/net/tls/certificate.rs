//! What is read from a certificate.

use rustls::pki_types::ServerName;
use std::net::IpAddr;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// One certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// All of it.
    pub der: Vec<u8>,
    /// The whole name of its subject, as `CN=alice, O=Example`.
    pub subject: String,
    /// The subject's common name; if there are several, the last, which is the most specific.
    pub common_name: Option<String>,
    /// The DNS names among its alternative names.
    pub dns_names: Vec<String>,
    /// The addresses among its alternative names.
    pub ip_addresses: Vec<IpAddr>,
    /// From when it is valid, in seconds since the Unix epoch.
    pub not_before: i64,
    /// Until when.
    pub not_after: i64,
}

impl Certificate {
    /// Reads one; none if it is not a certificate.
    pub fn parse(der: &[u8]) -> Option<Certificate> {
        let (rest, certificate) = X509Certificate::from_der(der).ok()?;
        if !rest.is_empty() {
            return None;
        }
        let (mut dns_names, mut ip_addresses) = (Vec::new(), Vec::new());
        let alternatives = certificate.subject_alternative_name().ok().flatten();
        for name in alternatives
            .iter()
            .flat_map(|names| &names.value.general_names)
        {
            match name {
                GeneralName::DNSName(name) => dns_names.push((*name).to_owned()),
                GeneralName::IPAddress(bytes) => ip_addresses.extend(address(bytes)),
                _ => {}
            }
        }
        let common_names = certificate.subject().iter_common_name();
        Some(Certificate {
            der: der.to_vec(),
            subject: certificate.subject().to_string(),
            common_name: common_names
                .filter_map(|name| name.as_str().ok())
                // A zero byte would end the name for whoever reads it as a C string.
                .filter(|name| !name.contains('\0'))
                .last()
                .map(str::to_owned),
            dns_names,
            ip_addresses,
            not_before: certificate.validity().not_before.timestamp(),
            not_after: certificate.validity().not_after.timestamp(),
        })
    }

    /// Whether its common name stands for `host`, as it does where there are no alternative names
    /// (RFC 6125, section 6.4.4; libpq does the same).
    pub(super) fn common_name_is(&self, host: &str) -> bool {
        if !self.dns_names.is_empty() || !self.ip_addresses.is_empty() {
            return false;
        }
        let Some(name) = &self.common_name else {
            return false;
        };
        stands_for(name, host)
    }

    /// Whether one of its alternative names is `name`; `*` may be the whole first label.
    pub(super) fn has_alternative_name(&self, name: &ServerName<'_>) -> bool {
        match name {
            ServerName::IpAddress(address) => self.ip_addresses.contains(&IpAddr::from(*address)),
            other => {
                let host = other.to_str();
                self.dns_names.iter().any(|name| stands_for(name, &host))
            }
        }
    }

    /// Whether it is valid at `unix_seconds`.
    pub(super) fn is_valid_at(&self, unix_seconds: i64) -> bool {
        (self.not_before..=self.not_after).contains(&unix_seconds)
    }
}

/// Whether a name of a certificate means `host`: the same name, or with `*` as its first label.
fn stands_for(name: &str, host: &str) -> bool {
    if name.eq_ignore_ascii_case(host) {
        return true;
    }
    let is_address = host.parse::<IpAddr>().is_ok();
    match (name.strip_prefix("*."), host.split_once('.')) {
        (Some(pattern), Some((label, parent))) if !is_address && pattern.contains('.') => {
            !label.is_empty() && pattern.eq_ignore_ascii_case(parent)
        }
        _ => false,
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(common_name: &str, dns_names: &[&str]) -> Certificate {
        Certificate {
            der: Vec::new(),
            subject: format!("CN={common_name}"),
            common_name: Some(common_name.to_owned()),
            dns_names: dns_names.iter().map(|name| (*name).to_owned()).collect(),
            ip_addresses: Vec::new(),
            not_before: 10,
            not_after: 20,
        }
    }

    #[test]
    fn common_name_counts_only_without_alternatives() {
        assert!(certificate("db.example.org", &[]).common_name_is("DB.example.org"));
        assert!(!certificate("db.example.org", &["x.org"]).common_name_is("db.example.org"));
        assert!(certificate("127.0.0.1", &[]).common_name_is("127.0.0.1"));
    }

    #[test]
    fn star_is_one_label_of_a_name_and_never_of_an_address() {
        let star = certificate("*.example.org", &[]);
        assert!(star.common_name_is("db.example.org"));
        for other in [
            "example.org",
            "a.b.example.org",
            ".example.org",
            "db.example.com",
        ] {
            assert!(!star.common_name_is(other), "{other}");
        }
        assert!(!certificate("*.0.0.1", &[]).common_name_is("127.0.0.1"));
        assert!(!certificate("*.org", &[]).common_name_is("example.org"));
        assert!(!certificate("*", &[]).common_name_is("localhost"));
    }

    #[test]
    fn validity_includes_both_ends() {
        let certificate = certificate("x", &[]);
        let valid = [9, 10, 20, 21].map(|second| certificate.is_valid_at(second));
        assert_eq!(valid, [false, true, true, false]);
    }

    #[test]
    fn what_is_no_certificate_is_none() {
        for bytes in [&b""[..], b"\x30", b"\x30\x03\x02\x01\x01", &[0xff; 64]] {
            assert_eq!(Certificate::parse(bytes), None);
        }
    }
}
