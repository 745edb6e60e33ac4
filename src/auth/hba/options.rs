//! The method of a rule with its options.

use super::address::single;
use super::fault::RuleFault;
use super::ident::{IdentMap, IdentMaps};
use super::ldap::{LdapOptions, LdapSettings};
use super::rule::Transport;
use super::token::Field;
use std::sync::Arc;

/// The PAM service while nothing says otherwise: PgBouncer's name for it.
const PAM_SERVICE_DEFAULT: &str = "pgbouncer";

/// What a rule demands.
#[derive(Clone, Debug)]
pub enum HbaMethod {
    /// Nothing.
    Trust,
    /// The impossible.
    Reject,
    /// The password, by md5 or SCRAM.
    Md5,
    /// The password in clear text.
    Password,
    /// The password, by SCRAM.
    ScramSha256,
    /// The name of the process's user, through a map if there is one.
    Peer(Option<Arc<IdentMap>>),
    /// A certificate with the user's name, through a map if there is one.
    Cert(Option<Arc<IdentMap>>),
    /// The password, checked by an LDAP server.
    Ldap(Arc<LdapSettings>),
    /// The password, checked by PAM under this service name.
    Pam(Arc<str>),
}

/// What a rule wants of the client's certificate besides its method (`clientcert=`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CertificateDemand {
    /// Nothing.
    #[default]
    None,
    /// A valid one (`verify-ca`).
    Valid,
    /// A valid one with the user's name (`verify-full`).
    Named,
}

/// Reads the method and what follows it. Why the rule can let nobody in is noted in `doubt`.
pub(super) fn parse(
    transport: Transport,
    fields: &[Field],
    maps: &IdentMaps,
    doubt: &mut Option<RuleFault>,
) -> Result<(HbaMethod, CertificateDemand), RuleFault> {
    let (method, options) = fields
        .split_first()
        .ok_or(RuleFault::Missing("the method"))?;
    let method = single(method, "the method")?;
    let mut read = Options::default();
    for option in options {
        read.take(&single(option, "an option")?.text)?;
    }
    let demand = read.demand(transport)?;
    let method = match (method.text.as_str(), transport) {
        ("trust", _) => HbaMethod::Trust,
        ("reject", _) => HbaMethod::Reject,
        ("md5", _) => HbaMethod::Md5,
        ("password", _) => HbaMethod::Password,
        ("scram-sha-256", _) => HbaMethod::ScramSha256,
        // PostgreSQL takes ident for peer on a Unix socket.
        ("peer", _) | ("ident", Transport::Local) => HbaMethod::Peer(read.map(maps, doubt)),
        ("cert", _) => HbaMethod::Cert(read.map(maps, doubt)),
        ("ldap", _) => HbaMethod::Ldap(Arc::new(std::mem::take(&mut read.ldap).finish()?)),
        ("pam", _) => HbaMethod::Pam(read.pam_service()),
        (other, _) => return Err(RuleFault::Method(other.to_owned())),
    };
    read.check_used(&method)?;
    *doubt = doubt.take().or_else(|| misplaced(&method, transport));
    Ok((method, demand))
}

/// Why nobody who comes this way can meet the method. As in PgBouncer, such a rule stays.
fn misplaced(method: &HbaMethod, transport: Transport) -> Option<RuleFault> {
    let (method, only) = match (method, transport) {
        (HbaMethod::Peer(_), Transport::Host | Transport::HostSsl | Transport::HostNoSsl) => {
            ("peer", "local")
        }
        (HbaMethod::Cert(_), Transport::Local | Transport::HostNoSsl) => ("cert", "hostssl"),
        _ => return None,
    };
    Some(RuleFault::Misplaced { method, only })
}

fn needs<T>(method: &'static str, only: &'static str) -> Result<T, RuleFault> {
    Err(RuleFault::MethodNeeds { method, only })
}

#[derive(Default)]
struct Options {
    map: Option<String>,
    clientcert: Option<String>,
    service: Option<String>,
    ldap: LdapOptions,
    ldap_option: Option<String>,
}

impl Options {
    fn take(&mut self, option: &str) -> Result<(), RuleFault> {
        let unknown = || RuleFault::Option(option.split('=').next().unwrap_or("").to_owned());
        let (name, value) = option.split_once('=').ok_or_else(unknown)?;
        match name {
            "map" => self.map = Some(value.to_owned()),
            "clientcert" => self.clientcert = Some(value.to_owned()),
            "clientname" if value == "CN" => {}
            "pamservice" => self.service = Some(value.to_owned()),
            _ if self.ldap.take(name, value)? => self.ldap_option = Some(name.to_owned()),
            _ => return Err(unknown()),
        }
        Ok(())
    }

    fn demand(&self, transport: Transport) -> Result<CertificateDemand, RuleFault> {
        let demand = match self.clientcert.as_deref() {
            None => return Ok(CertificateDemand::None),
            Some("verify-ca") => CertificateDemand::Valid,
            Some("verify-full") => CertificateDemand::Named,
            Some(_) => return Err(RuleFault::OptionValue("clientcert")),
        };
        if transport == Transport::HostSsl {
            Ok(demand)
        } else {
            needs("clientcert", "hostssl")
        }
    }

    fn map(&self, maps: &IdentMaps, missing: &mut Option<RuleFault>) -> Option<Arc<IdentMap>> {
        let name = self.map.as_ref()?;
        let found = maps.get(name).cloned();
        if found.is_none() {
            *missing = Some(RuleFault::NoMap(name.clone()));
        }
        Some(found.unwrap_or_default())
    }

    fn pam_service(&self) -> Arc<str> {
        self.service
            .as_deref()
            .unwrap_or(PAM_SERVICE_DEFAULT)
            .into()
    }

    /// An option that another method would need is more likely a mistake than a wish.
    fn check_used(&self, method: &HbaMethod) -> Result<(), RuleFault> {
        let misplaced = |name: &str| Err(RuleFault::Option(name.to_owned()));
        let has_map = matches!(method, HbaMethod::Peer(_) | HbaMethod::Cert(_));
        if self.map.is_some() && !has_map {
            return misplaced("map");
        }
        if self.service.is_some() && !matches!(method, HbaMethod::Pam(_)) {
            return misplaced("pamservice");
        }
        match &self.ldap_option {
            Some(name) if !matches!(method, HbaMethod::Ldap(_)) => misplaced(name),
            _ => Ok(()),
        }
    }
}
