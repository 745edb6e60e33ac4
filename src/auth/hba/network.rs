//! A range of addresses: CIDR, or an address and a mask.

use super::fault::RuleFault;
use std::net::IpAddr;

/// Addresses that equal `base` in every bit of `mask`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    base: u128,
    mask: u128,
    is_v4: bool,
}

impl Network {
    /// `address/bits`; a length beyond the address's own is refused.
    pub(super) fn cidr(text: &str) -> Result<Network, RuleFault> {
        let invalid = || RuleFault::Address(text.to_owned());
        let (address, bits) = text.split_once('/').ok_or_else(invalid)?;
        let address: IpAddr = address.parse().map_err(|_| invalid())?;
        let is_number = !bits.is_empty() && bits.bytes().all(|byte| byte.is_ascii_digit());
        let bits = bits.parse().ok().filter(|_| is_number);
        Network::with_bits(address, bits.ok_or_else(invalid)?).ok_or_else(invalid)
    }

    /// `address` with the mask written as an address of the same kind.
    pub(super) fn masked(address: IpAddr, mask: &str) -> Result<Network, RuleFault> {
        let invalid = || RuleFault::Mask(mask.to_owned());
        let bits: IpAddr = mask.parse().map_err(|_| invalid())?;
        if bits.is_ipv4() != address.is_ipv4() {
            return Err(invalid());
        }
        Ok(Network::with_mask(address, bits))
    }

    /// The network of an interface with this address and mask.
    pub(super) fn with_mask(address: IpAddr, mask: IpAddr) -> Network {
        Network {
            base: number(address),
            mask: number(mask),
            is_v4: address.is_ipv4(),
        }
    }

    /// The one address.
    pub(super) fn host(address: IpAddr) -> Network {
        Network {
            base: number(address),
            mask: u128::MAX,
            is_v4: address.is_ipv4(),
        }
    }

    fn with_bits(address: IpAddr, bits: u32) -> Option<Network> {
        let width = if address.is_ipv4() { 32 } else { 128 };
        let host_bits = u32::checked_sub(width, bits)?;
        let mask = u128::MAX.checked_shl(host_bits).unwrap_or(0);
        Some(Network {
            base: number(address),
            mask: if width == 32 {
                mask & u128::from(u32::MAX)
            } else {
                mask
            },
            is_v4: width == 32,
        })
    }

    /// Whether `address`, in its canonical form, is one of them.
    pub(super) fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.is_v4 && (number(address) ^ self.base) & self.mask == 0
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}
