//! One rule: whom it is for and what it demands.

use super::address::{Addresses, Interface, single};
use super::fault::RuleFault;
use super::ident::IdentMaps;
use super::options::{self, CertificateDemand, HbaMethod};
use super::pattern::Pattern;
use super::token::{Field, Token};
use std::net::IpAddr;

/// Which connections a rule is for: its first word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Unix sockets.
    Local,
    /// TCP, whether encrypted or not.
    Host,
    /// TCP with TLS.
    HostSsl,
    /// TCP without TLS.
    HostNoSsl,
    /// TCP encrypted by GSSAPI, of which there is none here: such a rule never matches.
    HostGssEnc,
}

/// A connection that asks to be let in.
#[derive(Clone, Copy, Debug)]
pub struct Arrival<'a> {
    /// Its address; `None` on a Unix socket.
    pub address: Option<IpAddr>,
    /// Whether it is encrypted by TLS.
    pub is_tls: bool,
    /// The database it asks for.
    pub database: &'a str,
    /// The user it asks to be.
    pub user: &'a str,
    /// Whether it asks for physical replication.
    pub is_physical_replication: bool,
}

/// One rule of the file.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Where it stands in the file.
    pub line: usize,
    /// What it demands.
    pub method: HbaMethod,
    /// What it wants of the certificate besides.
    pub certificate: CertificateDemand,
    transport: Transport,
    databases: Vec<DatabaseWord>,
    users: Vec<UserWord>,
    addresses: Addresses,
}

#[derive(Clone, Debug)]
enum DatabaseWord {
    All,
    SameUser,
    Replication,
    Name(Pattern),
}

#[derive(Clone, Debug)]
enum UserWord {
    All,
    Name(Pattern),
}

/// What the fields of a rule mean beside the line itself.
pub(super) struct Surroundings<'a> {
    pub(super) maps: &'a IdentMaps,
    pub(super) machine: &'a [Interface],
}

impl Rule {
    /// Reads the fields of one line; `@file` is resolved already. What is merely doubtful goes to
    /// `doubt`.
    pub(super) fn parse(
        line: usize,
        fields: &[Field],
        around: &Surroundings<'_>,
        doubt: &mut Option<RuleFault>,
    ) -> Result<Rule, RuleFault> {
        let (first, rest) = fields.split_first().ok_or(RuleFault::Missing("the type"))?;
        let transport = transport(single(first, "the connection type")?)?;
        let (databases, rest) = rest
            .split_first()
            .ok_or(RuleFault::Missing("the database"))?;
        let (users, rest) = rest.split_first().ok_or(RuleFault::Missing("the user"))?;
        let (addresses, rest) = match transport {
            Transport::Local => (Addresses::All, rest),
            _ => Addresses::parse(rest, around.machine)?,
        };
        let (method, certificate) = options::parse(transport, rest, around.maps, doubt)?;
        Ok(Rule {
            line,
            method,
            certificate,
            transport,
            databases: databases.iter().map(database).collect::<Result<_, _>>()?,
            users: users.iter().map(user).collect::<Result<_, _>>()?,
            addresses,
        })
    }

    /// Whether the rule is for this connection.
    pub(super) fn matches(&self, arrival: &Arrival<'_>) -> bool {
        let address = match (self.transport, arrival.address) {
            (Transport::Local, None) => true,
            (Transport::Local, Some(_)) | (Transport::HostGssEnc, _) | (_, None) => false,
            (Transport::HostSsl, _) if !arrival.is_tls => false,
            (Transport::HostNoSsl, _) if arrival.is_tls => false,
            (_, Some(address)) => self.addresses.contain(address),
        };
        address
            && self.databases.iter().any(|word| word.matches(arrival))
            && self.users.iter().any(|word| word.matches(arrival.user))
    }
}

impl DatabaseWord {
    /// Only its own keyword stands for physical replication, which has no database.
    fn matches(&self, arrival: &Arrival<'_>) -> bool {
        match self {
            DatabaseWord::Replication => arrival.is_physical_replication,
            _ if arrival.is_physical_replication => false,
            DatabaseWord::All => true,
            DatabaseWord::SameUser => arrival.database == arrival.user,
            DatabaseWord::Name(pattern) => pattern.matches(arrival.database),
        }
    }
}

impl UserWord {
    fn matches(&self, user: &str) -> bool {
        match self {
            UserWord::All => true,
            UserWord::Name(pattern) => pattern.matches(user),
        }
    }
}

fn transport(token: &Token) -> Result<Transport, RuleFault> {
    match token.text.as_str() {
        "local" => Ok(Transport::Local),
        "host" | "hostnogssenc" => Ok(Transport::Host),
        "hostssl" => Ok(Transport::HostSsl),
        "hostnossl" => Ok(Transport::HostNoSsl),
        "hostgssenc" => Ok(Transport::HostGssEnc),
        other => Err(RuleFault::Type(other.to_owned())),
    }
}

fn database(token: &Token) -> Result<DatabaseWord, RuleFault> {
    let is_group = token.is_keyword("samerole") || token.is_keyword("samegroup");
    if is_group || token.marked('+').is_some() {
        return Err(RuleFault::RoleMembers(token.text.clone()));
    }
    Ok(if token.is_keyword("all") {
        DatabaseWord::All
    } else if token.is_keyword("sameuser") {
        DatabaseWord::SameUser
    } else if token.is_keyword("replication") {
        DatabaseWord::Replication
    } else {
        DatabaseWord::Name(Pattern::parse(token)?)
    })
}

fn user(token: &Token) -> Result<UserWord, RuleFault> {
    if token.marked('+').is_some() {
        return Err(RuleFault::RoleMembers(token.text.clone()));
    }
    Ok(if token.is_keyword("all") {
        UserWord::All
    } else {
        UserWord::Name(Pattern::parse(token)?)
    })
}
