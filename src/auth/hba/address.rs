//! The address field of a rule.

use super::fault::RuleFault;
use super::network::Network;
use super::token::{Field, Token};
use std::net::IpAddr;

/// An address of this machine with the mask of its network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interface {
    /// The address.
    pub address: IpAddr,
    /// The mask.
    pub mask: IpAddr,
}

/// What `samehost` and `samenet` stand for: looked up by the caller when the file is read.
pub type MachineAddresses = Vec<Interface>;

/// Which addresses a rule is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Addresses {
    All,
    OneOf(Vec<Network>),
}

impl Addresses {
    /// Reads the address and, if it needs one, the mask; gives the fields behind them.
    pub(super) fn parse<'f>(
        fields: &'f [Field],
        machine: &[Interface],
    ) -> Result<(Addresses, &'f [Field]), RuleFault> {
        let (field, rest) = fields
            .split_first()
            .ok_or(RuleFault::Missing("the address"))?;
        let token = single(field, "the address")?;
        let networks =
            |of: fn(&Interface) -> Network| Addresses::OneOf(machine.iter().map(of).collect());
        if token.is_keyword("all") {
            return Ok((Addresses::All, rest));
        }
        if token.is_keyword("samehost") {
            return Ok((networks(|own| Network::host(own.address)), rest));
        }
        if token.is_keyword("samenet") {
            return Ok((
                networks(|own| Network::with_mask(own.address, own.mask)),
                rest,
            ));
        }
        if token.text.contains('/') {
            let network = Network::cidr(&token.text)?;
            return Ok((Addresses::OneOf(vec![network]), rest));
        }
        let address = token
            .text
            .parse()
            .map_err(|_| not_an_address(&token.text))?;
        let (mask, rest) = rest.split_first().ok_or(RuleFault::Missing("the mask"))?;
        let network = Network::masked(address, &single(mask, "the mask")?.text)?;
        Ok((Addresses::OneOf(vec![network]), rest))
    }

    pub(super) fn contain(&self, address: IpAddr) -> bool {
        match self {
            Addresses::All => true,
            Addresses::OneOf(networks) => networks
                .iter()
                .any(|network| network.contains(address.to_canonical())),
        }
    }
}

fn not_an_address(text: &str) -> RuleFault {
    let letter = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if text.contains(|c: char| c.is_ascii_alphabetic()) && text.chars().all(letter) {
        RuleFault::HostName(text.to_owned())
    } else {
        RuleFault::Address(text.to_owned())
    }
}

/// The only token of a field.
pub(super) fn single<'f>(field: &'f Field, what: &'static str) -> Result<&'f Token, RuleFault> {
    match field.as_slice() {
        [token] => Ok(token),
        _ => Err(RuleFault::NoList(what)),
    }
}
